"""The demo's model server and its client, over a real loopback connection."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable
from urllib.request import urlopen

import msgspec
import pytest

from sennit.cli.demo.analysis import analyse
from sennit.cli.demo.client import ChatReply, ModelUnavailable, RateLimited, chat, endpoint_from
from sennit.cli.demo.model_server import MODEL, ModelServerSettings, ServerStats, serving
from sennit.cli.demo.review import compose, messages_for, summarise

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
AT_ONCE = ModelServerSettings(delay_scale=0.0, refused_share=0.0)


def ask(base_url: str, prompt: str, *, timeout_s: float = 10.0) -> Awaitable[ChatReply]:
    return chat(base_url, "key", MODEL, [{"role": "user", "content": prompt}], timeout_s=timeout_s)


def stats_at(base_url: str) -> ServerStats:
    with urlopen(base_url.removesuffix("/v1") + "/stats", timeout=10) as answer:
        return msgspec.json.decode(answer.read(), type=ServerStats)


def ask_one_that_answers(raw: bytes, *, scheme: str = "http", timeout_s: float = 10.0) -> ChatReply:
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
            return await ask(f"{scheme}://127.0.0.1:{port}/v1", "hello", timeout_s=timeout_s)

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


# ---------------------------------------------------------------- the server


def test_a_chat_answers_with_the_review_its_tokens_and_its_model() -> None:
    messages = messages_for(analyse("pkg/books.py", SOURCE), SOURCE)

    with serving(AT_ONCE) as (_, base_url):
        reply = asyncio.run(chat(base_url, "key", MODEL, messages, timeout_s=10.0))

    assert (reply.text, reply.model) == (compose(messages), MODEL)
    assert reply.prompt_tokens > reply.completion_tokens > 0


def test_the_models_and_the_stats_can_be_read() -> None:
    with serving(AT_ONCE) as (server, base_url):
        asyncio.run(chat(base_url, "", MODEL, [{"role": "user", "content": "x = 1"}], timeout_s=10.0))
        with urlopen(f"{base_url}/models", timeout=10) as answer:
            models = msgspec.json.decode(answer.read())

        assert [model["id"] for model in models["data"]] == [MODEL]
        assert stats_at(base_url) == ServerStats(1, 1, 0, 0, 1) == server.statistics()


def test_the_same_seed_refuses_the_same_prompts_in_any_order_and_not_for_ever() -> None:
    prompts = [f"x = {number}" for number in range(60)]
    settings = ModelServerSettings(delay_scale=0.0, refused_share=0.3, in_flight_max=1000)

    async def refused(base_url: str, asked: list[str]) -> set[str]:
        replies = await asyncio.gather(*(ask(base_url, prompt) for prompt in asked), return_exceptions=True)
        assert all(isinstance(reply, (ChatReply, RateLimited)) for reply in replies)
        return {prompt for prompt, reply in zip(asked, replies, strict=True) if isinstance(reply, RateLimited)}

    with serving(settings) as (_, base_url):
        first = asyncio.run(refused(base_url, prompts))
        again = asyncio.run(refused(base_url, prompts))
    with serving(settings) as (server, base_url):
        reversed_ = asyncio.run(refused(base_url, prompts[::-1]))

        assert server.statistics().rate_limited == len(reversed_)
    assert first == reversed_
    assert 5 < len(first) < 35
    assert first != again


def test_requests_above_the_limit_are_refused_and_the_server_stops_while_others_wait() -> None:
    settings = ModelServerSettings(delay_s_median=600.0, refused_share=0.0, in_flight_max=2, retry_after_s=2.0)

    async def first_three(base_url: str) -> list[RateLimited]:
        calls = {asyncio.ensure_future(ask(base_url, f"x = {number}", timeout_s=60.0)) for number in range(5)}
        refused: list[RateLimited] = []
        while len(refused) < 3:
            done, calls = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
            refused += [error for call in done if isinstance(error := call.exception(), RateLimited)]
        assert len(calls) == 2
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        return refused

    with serving(settings) as (server, base_url):
        refused = asyncio.run(first_three(base_url))
        stats = server.statistics()

    assert all(1.0 <= error.retry_after_s <= 3.0 for error in refused)
    assert (stats.requests, stats.rate_limited, stats.answered, stats.in_flight_max) == (5, 3, 0, 2)


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"nonsense\r\n\r\n", b"400"),
        (b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 2\r\n\r\n[]", b"400"),
        (b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n", b"413"),
        (b"GET /elsewhere HTTP/1.1\r\n\r\n", b"404"),
    ],
)
def test_a_request_that_makes_no_sense_gets_its_status_and_harms_nobody(raw: bytes, status: bytes) -> None:
    with serving(AT_ONCE) as (_, base_url):
        port = int(base_url.rpartition(":")[2].removesuffix("/v1"))
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(raw)
            answer = connection.recv(4096)

        assert answer.split()[1] == status
        assert asyncio.run(as_text(ask(base_url, "x = 1")))


async def as_text(call: Awaitable[ChatReply]) -> str:
    return (await call).text


# ---------------------------------------------------------------- the client


def test_a_reply_in_chunks_is_read() -> None:
    body = b'{"choices":[{"message":{"content":"fine"}}]}'
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:7], body[7:]))

    reply = ask_one_that_answers(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n")

    assert reply == ChatReply("fine", MODEL, 0, 0)


@pytest.mark.parametrize(
    ("headers", "retry_after_s"),
    [
        (("Retry-After: 7",), 7.0),
        (("Retry-After: 7", "retry-after-ms: 250"), 0.25),
        (("Date: Sat, 21 Nov 2026 10:00:00 GMT", "Retry-After: Sat, 21 Nov 2026 10:00:30 GMT"), 30.0),
        (("Retry-After: soon",), 1.0),
        ((), 1.0),
    ],
)
def test_a_429_says_when_to_come_back(headers: tuple[str, ...], retry_after_s: float) -> None:
    with pytest.raises(RateLimited) as caught:
        ask_one_that_answers(http("429 Too Many Requests", b"{}", *headers))

    assert caught.value.retry_after_s == retry_after_s


@pytest.mark.parametrize(
    ("raw", "what", "retryable"),
    [
        (http("401 Unauthorized", b"no such key"), "refused the credentials", False),
        (http("404 Not Found", b"no such model"), "answered HTTP 404", False),
        (http("503 Service Unavailable", b""), "answered HTTP 503", True),
        (http("200 OK", b"<html>"), "did not answer with a chat completion", False),
        (http("200 OK", b'{"choices":[]}'), "did not answer with a chat completion", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort", "no HTTP answer", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9999999999\r\n\r\n", "no HTTP answer", True),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "no HTTP answer", True),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000, "no HTTP answer", True),
    ],
)
def test_a_bad_answer_says_what_why_and_how_to_go_on(raw: bytes, what: str, retryable: bool) -> None:  # noqa: FBT001
    with pytest.raises(ModelUnavailable, match=what) as caught:
        ask_one_that_answers(raw)

    assert caught.value.why
    assert caught.value.fix
    assert caught.value.retryable is retryable


def test_a_server_that_never_answers_is_left_after_the_time_out() -> None:
    with pytest.raises(ModelUnavailable, match=r"did not answer within 0\.05 s"):
        ask_one_that_answers(b"", timeout_s=0.05)


def test_a_port_where_nobody_listens_is_unavailable() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]

        with pytest.raises(ModelUnavailable, match="no HTTP answer") as caught:
            asyncio.run(as_text(ask(f"http://127.0.0.1:{port}/v1", "hello")))

    assert "Connect" in caught.value.why


def test_https_to_a_server_without_tls_is_unavailable() -> None:
    with pytest.raises(ModelUnavailable, match="no HTTP answer") as caught:
        ask_one_that_answers(http("400 Bad Request", b""), scheme="https")

    assert "SSLError" in caught.value.why


@pytest.mark.parametrize("base_url", ["ftp://localhost/v1", "localhost:8000", "http://", "http://localhost:port/v1"])
def test_a_base_url_that_is_none_is_refused(base_url: str) -> None:
    with pytest.raises(ModelUnavailable, match="no HTTP answer"):
        asyncio.run(as_text(ask(base_url, "hello")))


def test_a_key_that_would_add_a_header_is_refused() -> None:
    with serving(AT_ONCE) as (_, base_url), pytest.raises(ModelUnavailable, match="no HTTP answer") as caught:
        asyncio.run(as_text(chat(base_url, "key\r\nX-Evil: 1", MODEL, [], timeout_s=10.0)))

    assert "Evil" not in str(caught.value)


def test_the_endpoint_is_taken_from_the_environment_when_it_has_a_base_url() -> None:
    named = endpoint_from({"OPENAI_BASE_URL": "http://box/v1", "OPENAI_API_KEY": "k", "OPENAI_MODEL": "m"})

    assert named is not None
    assert (named.base_url, named.api_key, named.model) == ("http://box/v1", "k", "m")
    assert endpoint_from({"OPENAI_API_KEY": "k"}) is None
