"""The demo's model and its client, over a real loopback connection and under a real provider's limits."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing
from pathlib import Path

import msgspec
import pytest

from sennit import App
from sennit.cli.demo import fleet
from sennit.cli.demo.analysis import analyse
from sennit.cli.demo.client import ChatReply, Endpoint, ModelUnavailable, RateLimited, chat, endpoint_from
from sennit.cli.demo.digest import model_words
from sennit.cli.demo.model import Model, model_of
from sennit.cli.demo.records import ModelUse, Pause
from sennit.cli.demo.review import compose, messages_for, summarise
from sennit.model.provider import ProviderView

SOURCE = '''"""Keeps the books. Twice."""
def tangle(a, b=[]):
    """Tangle."""
    try:
        pass
    except:
        pass
    return a and b or a
def plain(): pass
'''


@pytest.fixture
def fleet_app() -> Iterator[App]:
    with closing(App("memory://")) as app:
        yield app


class Caller:
    """Makes calls as a worker does. `used` is what the provider knows of them."""

    def __init__(self, app: App, name: str = "model") -> None:
        self._provider = app.provider(name, parallel=8, prices={fleet.MODEL: (1.0, 2.0)}, breaker=None)

    async def ask(self, base_url: str, *, key: str = "key", timeout_s: float = 10.0) -> ChatReply:
        messages = [{"role": "user", "content": "x = 1"}]
        return await self.chat(Endpoint(base_url, key, fleet.MODEL), messages, timeout_s=timeout_s)

    async def chat(self, endpoint: Endpoint, messages: list[dict[str, str]], *, timeout_s: float = 10.0) -> ChatReply:
        return await chat(self._provider.slot(), endpoint, messages, timeout_s=timeout_s)

    @property
    def used(self) -> ProviderView:
        return self._provider.view().result()[0]


@pytest.fixture
def caller(fleet_app: App) -> Caller:
    return Caller(fleet_app)


@pytest.fixture
def environ(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY", "OPENAI_MODEL"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def our_model(*, n_files: int = 1000) -> AbstractContextManager[Model]:
    return model_of(workers=1, n_files=n_files, seed=7, fast=n_files > 1)


def ask_one_that_answers(caller: Caller, raw: bytes, *, scheme: str = "http", timeout_s: float = 10.0) -> ChatReply:
    """Ask a server that sends `raw` to whoever asks, and hangs up (or, for b"", never answers)."""

    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1) if scheme == "https" else await reader.readuntil(b"\r\n\r\n")
        if not raw:
            await reader.read(-1)
        writer.write(raw)
        writer.close()

    async def both() -> ChatReply:
        async with await asyncio.start_server(reply, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            return await caller.ask(f"{scheme}://127.0.0.1:{port}/v1", timeout_s=timeout_s)

    return asyncio.run(both())


def http(status: str, body: bytes, *headers: str) -> bytes:
    lines = (f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", "")
    return "\r\n".join(lines).encode() + body


# ---------------------------------------------------------------- the answers are true


def test_a_review_names_what_is_in_the_file() -> None:
    text = compose(messages_for(analyse("pkg/books.py", SOURCE), SOURCE))

    assert "Keeps the books" in text
    assert "2 functions in 9 lines" in text
    assert "bare `except:` that swallows even Ctrl-C at line 6" in text
    assert "mutable default shared between calls at line 2" in text
    assert "1 of 2 public names has no docstring (`plain`)" in text


def test_a_review_is_the_same_each_time_and_measures_source_it_is_handed_bare() -> None:
    bare = [{"role": "user", "content": f"What of this?\n```python\n{SOURCE}\n```"}]

    assert compose(bare) == compose(bare)
    assert "mutable default" in compose(bare)


def test_a_review_of_a_broken_file_says_where_it_breaks() -> None:
    source = "x = 1\ndef f(:\n"

    text = compose(messages_for(analyse("pkg/broken.py", source), source))

    assert "`pkg/broken.py` (line 2)" in text


def test_a_long_source_is_cut_at_a_line_and_says_so() -> None:
    source = "x = 1\n" * 20_000

    content = messages_for(analyse("m.py", source), source)[1]["content"]

    assert content.endswith("x = 1\n# (the rest of the file is left out)\n```")
    assert len(content) < 34_000


def test_a_package_summary_counts_its_files() -> None:
    summary = summarise("pkg", [analyse("pkg/a.py", SOURCE), analyse("pkg/b.py", "x = 1\n")])

    assert (summary.files, summary.lines, summary.findings) == (2, 10, 4)
    assert "`pkg/a.py` holds 90\N{NO-BREAK SPACE}% of it" in summary.text


# ---------------------------------------------------------------- the demo's own model


def test_a_chat_answers_with_the_review_and_the_provider_knows_what_it_cost(
    caller: Caller, environ: pytest.MonkeyPatch
) -> None:
    del environ
    messages = messages_for(analyse("pkg/books.py", SOURCE), SOURCE)

    with our_model() as model:
        endpoint = endpoint_from(model.environ)
        assert endpoint is not None
        reply = asyncio.run(caller.chat(endpoint, messages))

    assert (reply.text, reply.model) == (compose(messages), fleet.MODEL)
    assert reply.prompt_tokens > reply.completion_tokens > 0
    used = caller.used
    assert (used.granted, used.succeeded, used.in_use) == (1, 1, 0)
    assert used.cost_nano == 1_000 * (reply.prompt_tokens + 2 * reply.completion_tokens) > 0


def test_it_bears_so_many_calls_at_once_and_refuses_one_more(fleet_app: App, environ: pytest.MonkeyPatch) -> None:
    del environ

    async def ask_beside_each_other(base_url: str) -> list[ChatReply | BaseException]:
        callers = [Caller(fleet_app, f"key {n}") for n in range(5)]  # who do not know of each other
        return await asyncio.gather(*(one.ask(base_url) for one in callers), return_exceptions=True)

    with our_model(n_files=24) as model:  # so many that the quota is not used up yet
        answers = asyncio.run(ask_beside_each_other(model.environ["OPENAI_BASE_URL"]))
        use = model.use(Caller(fleet_app).used, [])

    assert [type(answer) for answer in answers].count(RateLimited) == 1
    assert (use.highest, use.too_many, use.pauses) == (4, 1, ())


def test_a_quota_that_is_used_up_is_one_pause_and_the_next_call_is_made_after_it(
    tmp_path: Path, environ: pytest.MonkeyPatch
) -> None:
    del environ

    async def ask_twice(caller: Caller, model: Model) -> ChatReply:
        assert "used up for 0.6 s" in await model.exhaust()
        with pytest.raises(RateLimited):
            await caller.ask(model.environ["OPENAI_BASE_URL"])
        return await caller.ask(model.environ["OPENAI_BASE_URL"])  # waits for its permit, and is the probe

    with closing(App(f"sqlite:///{tmp_path}/fleet.db")) as app, our_model() as model:
        caller = Caller(app)
        reply = asyncio.run(ask_twice(caller, model))
        use = model.use(caller.used, [])

    assert reply.text
    assert [pause.calls for pause in use.pauses] == [0]
    assert 0.0 < use.pauses[0].seconds <= 0.6
    assert (use.calls, use.throttled, use.too_many, use.ours) == (2, 1, 0, True)


def test_a_quota_that_nobody_uses_up_in_time_is_used_up_with_a_late_call_and_only_once(
    tmp_path: Path, environ: pytest.MonkeyPatch
) -> None:
    del environ

    async def ask(caller: Caller, model: Model) -> str:
        url = model.environ["OPENAI_BASE_URL"]
        for _ in range(3):
            await caller.ask(url)
        with pytest.raises(RateLimited):  # the fourth of five reviews
            await caller.ask(url)
        said = await model.exhaust()
        await caller.ask(url)
        return said

    with closing(App(f"sqlite:///{tmp_path}/fleet.db")) as app, our_model(n_files=5) as model:
        caller = Caller(app)
        said = asyncio.run(ask(caller, model))
        use = model.use(caller.used, [])

    assert said == "the model's quota has been used up for 0.6 s"
    assert (len(use.pauses), use.calls, use.throttled) == (1, 5, 1)


def test_the_users_own_endpoint_is_under_the_same_provider_and_nothing_is_made_up(
    caller: Caller, environ: pytest.MonkeyPatch
) -> None:
    environ.setenv("OPENAI_BASE_URL", "http://box:8000/v1")
    environ.setenv("OPENAI_MODEL", "llama")

    with our_model() as model:
        said = asyncio.run(model.exhaust())
        use = model.use(caller.used, [])

    assert (dict(model.environ), model.says, said) == ({}, "llama at box", "")
    assert (use.ours, use.highest, use.pauses, use.cost_usd) == (False, None, (), 0.0)
    assert model_words(use) == "model: 0 calls, 0 answered 429, 4 at once allowed at the end, 0 attempts lost"


def test_the_limits_of_the_model_are_told_in_plain_words() -> None:
    use = ModelUse("model", 12, 64, 330, 13, highest=12, too_many=11, pauses=(Pause(1.2, 1),), cost_usd=0.42)

    assert model_words(use) == (
        "model: highest concurrency 12 (found by 11 refused calls), 1 pause of 1.2 s, 1 request in it, "
        "0 attempts lost, 0.42 USD (made-up prices)"
    )
    assert "no pause, 2 attempts lost" in model_words(msgspec.structs.replace(use, pauses=(), attempts_lost=2))


# ---------------------------------------------------------------- the client


def test_a_reply_in_chunks_is_read(caller: Caller) -> None:
    body = b'{"choices":[{"message":{"content":"fine"}}]}'
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:7], body[7:]))

    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    reply = ask_one_that_answers(caller, head + chunks + b"0\r\n\r\n")

    assert reply == ChatReply("fine", fleet.MODEL, 0, 0)


def test_a_429_is_no_fault_and_the_provider_holds_back_as_long_as_it_asks(caller: Caller) -> None:
    with pytest.raises(RateLimited) as caught:
        ask_one_that_answers(caller, http("429 Too Many Requests", b"quota", "Retry-After: 600"))

    used = caller.used
    assert "quota" in caught.value.why
    assert (used.throttled, used.failed, used.reason, used.pause) == (1, 0, "pause", "window")


@pytest.mark.parametrize(
    ("raw", "what", "retryable", "failed"),
    [
        (http("401 Unauthorized", b"no such key"), "refused the credentials", False, 0),
        (http("404 Not Found", b"no such model"), "answered HTTP 404", False, 0),
        (http("503 Service Unavailable", b""), "answered HTTP 503", True, 0),
        (http("200 OK", b"<html>"), "did not answer with a chat completion", False, 0),
        (http("200 OK", b'{"choices":[]}'), "did not answer with a chat completion", False, 0),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort", "no HTTP answer", True, 1),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9999999999\r\n\r\n", "no HTTP answer", True, 0),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "no HTTP answer", True, 0),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000, "no HTTP answer", True, 0),
    ],
)
def test_a_bad_answer_says_what_why_and_how_to_go_on(
    caller: Caller,
    raw: bytes,
    what: str,
    retryable: bool,  # noqa: FBT001
    failed: int,
) -> None:
    with pytest.raises(ModelUnavailable, match=what) as caught:
        ask_one_that_answers(caller, raw)

    assert caught.value.why
    assert caught.value.fix
    assert caught.value.retryable is retryable
    assert (caller.used.failed, caller.used.in_use) == (failed, 0)


def test_a_server_that_never_answers_is_left_after_the_time_out(caller: Caller) -> None:
    with pytest.raises(ModelUnavailable, match=r"did not answer within 0\.05 s"):
        ask_one_that_answers(caller, b"", timeout_s=0.05)

    assert caller.used.failed == 1


def test_a_port_where_nobody_listens_is_unavailable(caller: Caller) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]

        with pytest.raises(ModelUnavailable, match="no HTTP answer") as caught:
            asyncio.run(caller.ask(f"http://127.0.0.1:{port}/v1"))

    assert "Connect" in caught.value.why
    assert caller.used.failed == 1


def test_https_to_a_server_without_tls_is_unavailable(caller: Caller) -> None:
    with pytest.raises(ModelUnavailable, match="no HTTP answer") as caught:
        ask_one_that_answers(caller, http("400 Bad Request", b""), scheme="https")

    assert "SSLError" in caught.value.why


@pytest.mark.parametrize("base_url", ["ftp://localhost/v1", "localhost:8000", "http://", "http://localhost:port/v1"])
def test_a_base_url_that_is_none_is_refused(caller: Caller, base_url: str) -> None:
    with pytest.raises(ModelUnavailable, match="no HTTP answer"):
        asyncio.run(caller.ask(base_url))


def test_a_key_that_would_add_a_header_is_refused(caller: Caller) -> None:
    with pytest.raises(ModelUnavailable, match="no HTTP answer") as caught:
        asyncio.run(caller.ask("http://127.0.0.1:9/v1", key="key\r\nX-Evil: 1"))

    assert "Evil" not in str(caught.value)


def test_the_endpoint_is_taken_from_the_environment_when_it_has_a_base_url() -> None:
    named = endpoint_from({"OPENAI_BASE_URL": "http://box/v1", "OPENAI_API_KEY": "k", "OPENAI_MODEL": "m"})

    assert named is not None
    assert (named.base_url, named.api_key, named.model) == ("http://box/v1", "k", "m")
    assert endpoint_from({"OPENAI_API_KEY": "k"}) is None
