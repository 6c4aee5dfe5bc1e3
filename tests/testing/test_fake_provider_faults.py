"""Bad days on the wire: hangs at every place, answers cut short, JSON that is none, latencies of every kind."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import anthropic
import httpx2
import openai
import pytest

from sennit.errors import SettingsError
from sennit.testing.provider import FAULTS, FakeProvider, Fault, Lognormal, Steps, Uniform
from tests.testing.provider_wire import CHAT, MESSAGES, connected, head_of, post, read_all, read_until

BOTH = pytest.mark.parametrize("path", [CHAT, "/v1/responses", MESSAGES])


@pytest.fixture
def provider() -> Iterator[FakeProvider]:
    with FakeProvider(input_tokens=10, output_tokens=20) as provider:
        yield provider


# ---------------------------------------------------------------- hangs


def test_a_hang_before_the_headers_sends_nothing_at_all(provider: FakeProvider) -> None:
    provider.inject("hang_before_headers")
    with connected(provider.port) as connection:
        connection.sendall(head_of())
        provider.wait_for(in_service=1)
        provider.stop()

        assert read_all(connection) == b""


@BOTH
@pytest.mark.parametrize("stream", [False, True])
def test_a_hang_after_the_headers_sends_only_those(provider: FakeProvider, path: str, stream: bool) -> None:  # noqa: FBT001
    provider.inject("hang_after_headers")
    with connected(provider.port) as connection:
        connection.sendall(head_of(path, stream=stream))
        seen = read_until(connection, b"\r\n\r\n")
        assert provider.statistics().in_service == 1
        provider.stop()
        seen += read_all(connection)

    assert seen.startswith(b"HTTP/1.1 200 OK\r\n")
    assert seen.endswith(b"\r\n\r\n")
    assert seen.count(b"\r\n\r\n") == 1
    assert provider.statistics().ok == 0


@BOTH
def test_a_hang_in_the_middle_leaves_half_an_answer(provider: FakeProvider, path: str) -> None:
    provider.inject("hang_mid_stream")
    with connected(provider.port) as connection:
        connection.sendall(head_of(path, stream=True))
        seen = read_until(connection, b"before ")
        assert provider.statistics().in_service == 1
        provider.stop()
        seen += read_all(connection)

    assert b"seven ships" in seen
    assert not seen.endswith(b"0\r\n\r\n")
    assert provider.statistics().ok == 0


def test_a_hanging_call_is_in_service_until_its_client_goes_away(provider: FakeProvider) -> None:
    provider.configure(max_concurrency=1)
    provider.inject("hang_mid_stream")
    with connected(provider.port) as connection:
        connection.sendall(head_of())
        provider.wait_for(in_service=1)
        refused = post(provider.url)
    provider.wait_for(idle=True)

    assert (refused.status_code, post(provider.url).status_code) == (429, 200)


# ---------------------------------------------------------------- cut short


@BOTH
def test_a_truncated_stream_ends_without_its_last_chunk(provider: FakeProvider, path: str) -> None:
    provider.inject("truncate")
    with connected(provider.port) as connection:
        connection.sendall(head_of(path, stream=True))
        seen = read_all(connection)

    assert seen.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"seven ships" in seen
    assert not seen.endswith(b"0\r\n\r\n")
    assert b"[DONE]" not in seen
    assert b"message_stop" not in seen


@BOTH
def test_a_truncated_answer_is_shorter_than_it_says(provider: FakeProvider, path: str) -> None:
    provider.inject("truncate")

    with pytest.raises(httpx2.RemoteProtocolError):
        post(provider.url, path)

    assert (provider.statistics().ok, provider.statistics().by_status) == (0, {200: 1})


def test_a_reset_ends_the_connection_without_an_answer(provider: FakeProvider) -> None:
    provider.inject("reset", 2)
    with connected(provider.port) as connection:
        connection.sendall(head_of())
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
    with (
        openai.OpenAI(base_url=f"{provider.url}/v1", api_key="any", max_retries=0) as client,
        pytest.raises(openai.APIConnectionError),
    ):
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": "Where?"}])

    assert provider.statistics().by_status == {0: 2}


# ---------------------------------------------------------------- broken content


@BOTH
def test_malformed_json_comes_with_a_200(provider: FakeProvider, path: str) -> None:
    provider.inject("malformed")

    answer = post(provider.url, path)

    assert answer.status_code == 200
    with pytest.raises(json.JSONDecodeError):
        answer.json()
    assert provider.statistics().ok == 0


@BOTH
def test_one_event_of_a_malformed_stream_is_no_json(provider: FakeProvider, path: str) -> None:
    provider.inject("malformed")

    lines = [line for line in post(provider.url, path, stream=True).text.splitlines() if line.startswith("data: {")]

    broken = []
    for line in lines:
        try:
            json.loads(line.removeprefix("data: "))
        except json.JSONDecodeError:
            broken.append(line)
    assert len(broken) == 1


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
@pytest.mark.parametrize("stream", [False, True])
def test_the_usage_can_be_missing(provider: FakeProvider, path: str, stream: bool) -> None:  # noqa: FBT001
    options = {"stream_options": {"include_usage": True}} if stream and path == CHAT else {}
    told = post(provider.url, path, stream=stream, **options).text
    provider.inject("no_usage")

    missing = post(provider.url, path, stream=stream, **options).text

    assert '"usage":{' in told
    assert '"usage":{' not in missing
    assert provider.statistics().ok == 2


def test_real_clients_read_an_answer_without_usage(provider: FakeProvider) -> None:
    provider.inject("no_usage", 2)
    with openai.OpenAI(base_url=f"{provider.url}/v1", api_key="any", max_retries=0) as gpt:
        chat = gpt.chat.completions.create(model="m", messages=[{"role": "user", "content": "Where?"}])
    with anthropic.Anthropic(base_url=provider.url, api_key="any", max_retries=0) as claude:
        message = claude.messages.create(model="m", max_tokens=9, messages=[{"role": "user", "content": "Where?"}])

    assert chat.usage is None
    assert message.content[0].type == "text"
    assert not getattr(message, "usage", None)


@pytest.mark.parametrize("fault", ["status_502", "status_504"])
def test_a_gateway_answers_in_html(provider: FakeProvider, fault: Fault) -> None:
    provider.inject(fault)

    answer = post(provider.url)

    assert f"status_{answer.status_code}" == fault
    assert answer.headers["content-type"] == "text/html"


def test_a_bare_429_says_nothing_of_why_or_how_long(provider: FakeProvider) -> None:
    provider.inject("status_429")

    answer = post(provider.url)

    assert answer.status_code == 429
    assert not [name for name in answer.headers if "retry" in name or "ratelimit" in name]


# ---------------------------------------------------------------- how often


def test_so_many_calls_in_a_row_fail_and_the_next_does_not(provider: FakeProvider) -> None:
    provider.inject("status_500", 2)
    provider.inject("status_529")

    assert [post(provider.url).status_code for _ in range(4)] == [500, 500, 529, 200]
    assert provider.statistics().faults == {"status_500": 2, "status_529": 1}


def test_faults_by_chance_are_the_same_for_the_same_seed(provider: FakeProvider) -> None:
    provider.configure(faults={"status_500": 0.3, "status_503": 0.3}, seed=7)
    first = [post(provider.url).status_code for _ in range(20)]
    provider.configure(seed=7)

    assert [post(provider.url).status_code for _ in range(20)] == first
    assert {200, 500, 503} == set(first)


def test_a_refusal_uses_up_no_fault(provider: FakeProvider) -> None:
    provider.inject("status_500")
    provider.exhaust(60)
    refused = post(provider.url)
    provider.exhaust(0)

    assert (refused.status_code, post(provider.url).status_code) == (429, 500)


@pytest.mark.parametrize("fault", FAULTS)
def test_after_each_fault_the_next_call_is_served(provider: FakeProvider, fault: Fault) -> None:
    provider.inject(fault)
    with connected(provider.port) as connection:
        connection.sendall(head_of(stream=True))
        if fault.startswith("hang_"):
            provider.wait_for(in_service=1)
        else:
            provider.wait_for(ended=1)

    assert provider.wait_for(idle=True).faults == {fault: 1}
    assert post(provider.url).status_code == 200


# ---------------------------------------------------------------- latency


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("latency", [0.1, Uniform(0.1, 0.11), Steps(((0.0, 0.1),)), Lognormal(0.1, sigma=0.0)])
def test_an_answer_takes_its_time(
    provider: FakeProvider,
    latency: object,
    stream: bool,  # noqa: FBT001
) -> None:
    provider.configure(latency=latency)
    began_s = time.monotonic()

    assert post(provider.url, stream=stream).status_code == 200
    assert time.monotonic() - began_s >= 0.1


def test_the_pieces_of_a_stream_come_one_after_the_other(provider: FakeProvider) -> None:
    provider.configure(latency=0.4, stream_pieces=4, first_token=0.5)
    began_s = time.monotonic()

    with httpx2.stream("POST", provider.url + CHAT, json={"model": "m", "messages": [{}], "stream": True}) as answer:
        headers_s = time.monotonic() - began_s
        arrivals_s = [time.monotonic() - began_s for chunk in answer.iter_raw() if b"content" in chunk]

    assert headers_s >= 0.2
    assert len(arrivals_s) >= 3
    assert arrivals_s[-1] - arrivals_s[0] >= 0.1


# ---------------------------------------------------------------- knobs


@pytest.mark.parametrize(
    "knobs",
    [
        {"rpn": 5},
        {"rpm": "many"},
        {"rpm": -1},
        {"minute_s": 0},
        {"latency": {"type": "gamma"}},
        {"faults": {"status_500": 2.0}},
        {"faults": {"status_500": 0.6, "status_503": 0.6}},
        {"faults": {"status_999": 0.1}},
        {"latency": Steps(((5.0, 1.0), (0.0, 2.0)))},
        {"overload_status": 200},
        {"first_token": 1.5},
        {"minute_s": float("inf")},
    ],
)
def test_a_knob_that_makes_no_sense_is_refused_before_and_while_it_runs(
    provider: FakeProvider, knobs: dict[str, object]
) -> None:
    before = provider.knobs

    with pytest.raises(SettingsError):
        FakeProvider(**knobs)  # type: ignore[arg-type]
    with pytest.raises(SettingsError):
        provider.configure(**knobs)
    assert provider.knobs == before
