"""How the fake provider begins and ends: in an OS thread, in a process, from the shell; and that nothing of it is left."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx2
import psutil
import pytest

import sennit
from sennit.errors import UsageError
from sennit.testing.provider import FakeProvider, Knobs, Lognormal, Uniform
from tests.testing.provider_wire import connected, head_of, post, read_all

BOTH = pytest.mark.parametrize("process", [False, True])
ENV = {**os.environ, "PYTHONPATH": str(Path(sennit.__path__[0]).parent)}


def open_sockets() -> int:
    return len(psutil.Process().net_connections("tcp"))


# ---------------------------------------------------------------- both ways


@BOTH
def test_it_serves_counts_and_is_gone(process: bool) -> None:  # noqa: FBT001
    before = (threading.active_count(), open_sockets())
    with FakeProvider(process=process, rpm=1, latency=Uniform(0.0, 0.01)) as provider:
        url, pid = provider.url, provider.pid
        statuses = [post(url).status_code, post(url).status_code]
        provider.inject("hang_before_headers")
        assert (pid is not None) == process
        assert provider.knobs == Knobs(rpm=1, latency=Uniform(0.0, 0.01))

    seen = provider.statistics()
    assert statuses == [200, 429]
    assert (seen.requests, seen.ok, seen.refused) == (2, 1, {"minute": 1})
    assert before == (threading.active_count(), open_sockets())
    assert pid is None or not psutil.pid_exists(pid)
    with pytest.raises(httpx2.ConnectError):
        post(url)


@BOTH
def test_it_ends_while_calls_hang(process: bool) -> None:  # noqa: FBT001
    with (
        FakeProvider(process=process) as provider,
        connected(provider.port) as hanging,
        connected(provider.port) as idle,
    ):
        provider.inject("hang_mid_stream")
        hanging.sendall(head_of(stream=True))
        provider.wait_for(in_service=1)
        provider.stop()

        assert read_all(idle) == b""
        assert read_all(hanging).startswith(b"HTTP/1.1 200 OK")


@BOTH
def test_it_is_an_async_context_manager_too(process: bool) -> None:  # noqa: FBT001
    async def ask() -> list[int]:
        async with FakeProvider(process=process) as provider, httpx2.AsyncClient() as client:
            calls = [client.post(f"{provider.url}/v1/responses", json={"model": "m"}) for _ in range(5)]
            return [response.status_code for response in await asyncio.gather(*calls)]

    assert asyncio.run(ask()) == [200] * 5


@BOTH
def test_it_can_begin_again_and_not_twice_at_once(process: bool) -> None:  # noqa: FBT001
    provider = FakeProvider(process=process)
    for _ in range(2):
        with provider:
            assert post(provider.url).status_code == 200
            with pytest.raises(UsageError):
                provider.start()
    with pytest.raises(UsageError):
        provider.configure(rpm=1)
    assert provider.statistics().ok == 1


@BOTH
def test_a_port_that_is_taken_is_an_error_at_once(process: bool) -> None:  # noqa: FBT001
    before = threading.active_count()
    with FakeProvider() as first:
        with pytest.raises(OSError, match="address already in use"):
            FakeProvider(process=process, port=first.port).start()
        assert threading.active_count() == before + 1


def test_waiting_for_what_does_not_come_ends_in_time() -> None:
    with FakeProvider() as provider, pytest.raises(TimeoutError, match='"requests":0'):
        provider.wait_for(requests=1, timeout_s=0.05)


def test_counting_begins_again_on_request() -> None:
    with FakeProvider(rpm=1) as provider:
        post(provider.url)
        provider.inject("status_500")
        provider.reset()

        assert provider.statistics().requests == 0
        assert post(provider.url).status_code == 200


# ---------------------------------------------------------------- its own process

PARENT = """
import os, signal, sys
from sennit.testing.provider import FakeProvider
provider = FakeProvider(process=True).start()
if sys.argv[1] == "fork" and os.fork() == 0:    # it holds our end of the provider's stdin open, and outlives us
    signal.pause()
print(provider.pid, flush=True)
signal.pause()
"""


def wait_for_end(pidfd: int) -> bool:
    """Wait until the process has ended, 10 s at most."""
    return bool(select.select([pidfd], [], [], 10)[0])


@pytest.mark.parametrize("how", ["plain", "fork"])
def test_the_process_dies_with_a_parent_that_is_killed(how: str) -> None:
    """Also while a process that the parent has forked still holds the pipe to it open."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, how], stdout=subprocess.PIPE, env=ENV, start_new_session=True
    )
    with parent:
        assert parent.stdout is not None
        pidfd = os.pidfd_open(int(parent.stdout.readline()))
        try:
            parent.kill()
            assert wait_for_end(pidfd)
        finally:
            os.close(pidfd)
            if how == "fork":
                os.killpg(parent.pid, signal.SIGKILL)  # the forked one, in the session we have made


def test_a_process_that_has_died_is_no_trouble_at_the_end() -> None:
    with FakeProvider(process=True) as provider:
        assert provider.pid is not None
        os.kill(provider.pid, signal.SIGKILL)
        psutil.Process(provider.pid).wait(10)

        with pytest.raises(OSError):
            provider.statistics()
    with pytest.raises(UsageError):
        provider.statistics()


# ---------------------------------------------------------------- the shell


def test_the_shell_starts_it_and_any_process_reads_its_counters() -> None:
    argv = [sys.executable, "-m", "sennit.testing.provider_main", "--port", "0", "--knob", "rpm=1"]
    argv += ["--knob", 'latency={"type":"lognormal","median_s":0.001}', "--knob", "window_style=quota"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env=ENV) as server:
        assert server.stdout is not None
        url = json.loads(server.stdout.readline())["url"]
        post(url)
        post(url)
        seen = httpx2.get(f"{url}/control/statistics?log=0").json()
        knobs = httpx2.get(f"{url}/control/knobs").json()
        httpx2.post(f"{url}/control/exhaust", json={"reset_in_s": 60})
        refused = post(url)
        server.send_signal(signal.SIGINT)

        assert server.wait(10) == 0
    assert (seen["requests"], seen["by_status"], seen["log"]) == (2, {"200": 1, "429": 1}, [])
    assert (knobs["rpm"], knobs["latency"]["median_s"]) == (1, 0.001)
    assert refused.json()["error"]["code"] == "insufficient_quota"


@pytest.mark.parametrize("knob", ["rpn=1", "rpm=-1", "latency=slow"])
def test_the_shell_is_told_of_a_knob_that_makes_no_sense(knob: str) -> None:
    argv = [sys.executable, "-m", "sennit.testing.provider_main", "--knob", knob]

    told = subprocess.run(argv, capture_output=True, env=ENV, check=False, timeout=30)

    assert told.returncode == 78
    assert "cannot be set so" in json.loads(told.stdout)["error"]


def test_all_knobs_reach_the_process() -> None:
    latency = Lognormal(0.001, sigma=0.1)
    knobs = {"latency": latency, "faults": {"status_500": 0.5}, "overload_retry_after_s": 1.5, "answer": 'Say "aye".'}
    with FakeProvider(process=True, **knobs) as provider:  # type: ignore[arg-type]
        assert provider.knobs == Knobs(**knobs)  # type: ignore[arg-type]
