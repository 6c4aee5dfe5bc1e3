"""What the fake provider enforces, seen on the wire: statuses, headers and bodies are those of the real ones."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime

import httpx2
import pytest

from sennit.testing.provider import FakeProvider, RetryAfter
from tests.testing.provider_wire import CHAT, MESSAGES, connected, head_of, post, read_until


@pytest.fixture
def provider() -> Iterator[FakeProvider]:
    with FakeProvider(input_tokens=10, output_tokens=10) as provider:
        yield provider


def rate_headers(response: httpx2.Response) -> dict[str, str]:
    return {name: value for name, value in response.headers.items() if "ratelimit" in name}


# ---------------------------------------------------------------- at once


@pytest.mark.parametrize(("path", "status"), [(CHAT, 429), (MESSAGES, 429), (CHAT, 503), (MESSAGES, 529)])
def test_one_too_many_at_once_is_refused_and_no_more_are_ever_in_service(
    provider: FakeProvider, path: str, status: int
) -> None:
    provider.configure(max_concurrency=2, overload_status=status)
    provider.inject("hang_before_headers", 2)
    with connected(provider.port) as first, connected(provider.port) as second:
        first.sendall(head_of())
        second.sendall(head_of())
        provider.wait_for(in_service=2)

        refused = post(provider.url, path)

    assert refused.status_code == status
    assert "retry-after" not in refused.headers
    seen = provider.wait_for(idle=True)
    assert (seen.max_concurrency, seen.refused) == (2, {"burst": 1})
    assert post(provider.url, path).status_code == 200


def test_a_burst_says_when_to_come_back_if_it_is_told_to(provider: FakeProvider) -> None:
    provider.configure(max_concurrency=1, overload_retry_after_s=2.4)
    provider.inject("hang_before_headers")
    with connected(provider.port) as first:
        first.sendall(head_of())
        provider.wait_for(in_service=1)

        refused = post(provider.url)

    assert refused.headers["retry-after"] == "3"
    assert provider.statistics().pauses == ()


def test_a_client_that_sends_the_next_call_at_once_is_never_counted_twice(provider: FakeProvider) -> None:
    provider.configure(max_concurrency=1)

    with httpx2.Client() as client:
        statuses = {
            client.post(provider.url + CHAT, json={"model": "m", "messages": [{}]}).status_code for _ in range(100)
        }

    assert statuses == {200}
    assert provider.statistics().max_concurrency == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_has_left_before_its_last_byte_is_sent(provider: FakeProvider, stream: bool) -> None:  # noqa: FBT001
    """Pipelined, the next call is taken in the very turn of the server's loop in which the answer before it goes out."""
    provider.configure(max_concurrency=1)

    with connected(provider.port) as connection:
        connection.sendall(head_of(stream=stream) * 20)
        seen = provider.wait_for(ended=20)

    assert (seen.ok, seen.max_concurrency) == (20, 1)


# ---------------------------------------------------------------- a minute


def test_a_used_up_minute_of_openai_says_what_and_until_when(provider: FakeProvider) -> None:
    provider.configure(rpm=2, tpm=10_000)
    served = [post(provider.url), post(provider.url)]

    refused = post(provider.url)

    assert [response.status_code for response in served] == [200, 200]
    assert served[0].headers["x-ratelimit-limit-requests"] == "2"
    assert served[0].headers["x-ratelimit-remaining-requests"] == "1"
    assert served[0].headers["x-ratelimit-remaining-tokens"] == "9980"
    assert refused.status_code == 429
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert re.fullmatch(r"(1m0|59\.\d+)s", refused.headers["x-ratelimit-reset-requests"])
    assert 29 <= int(refused.headers["retry-after"]) <= 30  # one request comes back in half a minute
    error = refused.json()["error"]
    assert (error["type"], error["code"]) == ("requests", "rate_limit_exceeded")
    assert "requests per min (RPM): Limit 2, Used 2, Requested 1." in error["message"]


def test_used_up_tokens_are_told_apart_from_requests(provider: FakeProvider) -> None:
    provider.configure(rpm=100, tpm=30)
    post(provider.url)

    refused = post(provider.url)

    assert refused.json()["error"]["type"] == "tokens"
    assert (refused.headers["x-ratelimit-remaining-requests"], refused.headers["x-ratelimit-remaining-tokens"]) == (
        "99",
        "10",
    )
    assert 19 <= int(refused.headers["retry-after"]) <= 20  # ten missing, half a token a second


def test_a_used_up_minute_of_anthropic_has_its_own_headers(provider: FakeProvider) -> None:
    provider.configure(rpm=100, input_tpm=50_000, output_tpm=15)
    served = post(provider.url, MESSAGES)

    refused = post(provider.url, MESSAGES)

    assert (
        served.headers["anthropic-ratelimit-input-tokens-remaining"] == "50000"
    )  # rounded to a thousand, as the real ones
    assert refused.status_code == 429
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert "15 output tokens per minute" in refused.json()["error"]["message"]
    assert refused.headers["anthropic-ratelimit-output-tokens-limit"] == "15"
    assert refused.headers["anthropic-ratelimit-requests-remaining"] == "99"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", refused.headers["anthropic-ratelimit-requests-reset"])
    assert not [name for name in refused.headers if "unified" in name]


def test_whoever_waits_as_told_is_served(provider: FakeProvider) -> None:
    provider.configure(rpm=1, minute_s=1.0, retry_after="decimal")
    post(provider.url)
    refused = post(provider.url)
    time.sleep(float(refused.headers["retry-after"]))  # sleep: the provider asks for it

    assert post(provider.url).status_code == 200


def test_a_fixed_minute_is_whole_again_at_its_end(provider: FakeProvider) -> None:
    provider.configure(rpm=3, minute_s=1.0, minute="fixed", retry_after="decimal")
    statuses = [post(provider.url).status_code for _ in range(3)]
    refused = post(provider.url)
    time.sleep(float(refused.headers["retry-after"]))  # sleep: the provider asks for it

    statuses += [post(provider.url).status_code for _ in range(3)]

    assert statuses == [200] * 6


def test_a_limit_can_be_changed_while_it_runs(provider: FakeProvider) -> None:
    provider.configure(rpm=1)
    before = [post(provider.url).status_code, post(provider.url).status_code]
    provider.configure(rpm=5)
    after = post(provider.url)
    provider.configure(rpm=0)

    assert (before, after.status_code) == ([200, 429], 200)
    assert rate_headers(post(provider.url)) == {}


# ---------------------------------------------------------------- a window


def test_a_used_up_window_counts_who_comes_meanwhile_and_who_comes_first_after(provider: FakeProvider) -> None:
    provider.exhaust(reset_in_s=1.0, at_next_call=True)
    told = post(provider.url)
    ignored = post(provider.url)
    pause = provider.statistics().pauses[0]
    time.sleep(max(0.0, pause.until_s - time.monotonic()))  # sleep: the window is over then
    served = post(provider.url)

    seen = provider.statistics()
    assert [response.status_code for response in (told, ignored, served)] == [429, 429, 200]
    assert seen.requests_during_pause == 1  # not the one that was told first
    assert (seen.pauses[0].kind, seen.pauses[0].requests) == ("window", 1)
    assert seen.pauses[0].first_arrival_s is not None
    assert seen.pauses[0].first_ok_s is not None
    assert pause.until_s <= seen.pauses[0].first_arrival_s <= seen.pauses[0].first_ok_s
    assert [status for _, status in seen.log] == [429, 429, 200]


def test_a_window_of_openai_resets_by_the_day(provider: FakeProvider) -> None:
    provider.configure(window_requests=1, window_s=5000)
    post(provider.url)

    refused = post(provider.url)

    assert re.fullmatch(r"1h23m(20|19\.\d+)s", refused.headers["x-ratelimit-reset-requests"])
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert 4999 <= int(refused.headers["retry-after"]) <= 5000
    assert "requests per day (RPD): Limit 1, Used 1" in refused.json()["error"]["message"]


def test_a_window_of_anthropic_is_told_by_the_unified_headers(provider: FakeProvider) -> None:
    provider.configure(window_requests=2, window_s=5000)
    served = post(provider.url, MESSAGES)
    post(provider.url, MESSAGES)

    refused = post(provider.url, MESSAGES)

    start = "anthropic-ratelimit-unified"
    assert served.headers[f"{start}-status"] == "allowed"
    assert served.headers[f"{start}-5h-utilization"] == "0.50"
    assert refused.headers[f"{start}-status"] == "rejected"
    assert refused.headers[f"{start}-representative-claim"] == "five_hour"
    assert abs(int(refused.headers[f"{start}-5h-reset"]) - time.time() - 5000) < 60
    assert 4999 <= int(refused.headers["retry-after"]) <= 5000


def test_an_empty_account_says_no_reset_at_all(provider: FakeProvider) -> None:
    provider.configure(window_style="quota")
    provider.exhaust(reset_in_s=60)

    openai, anthropic = post(provider.url), post(provider.url, MESSAGES)

    assert openai.json()["error"]["code"] == "insufficient_quota"
    assert anthropic.json()["error"]["type"] == "rate_limit_error"
    assert "retry-after" not in {*openai.headers, *anthropic.headers}
    assert rate_headers(openai) == rate_headers(anthropic) == {}


def test_a_usage_limit_tells_its_reset_in_the_body(provider: FakeProvider) -> None:
    provider.configure(window_style="usage_limit")
    provider.exhaust(reset_in_s=60)

    error = post(provider.url).json()["error"]

    assert error["type"] == "usage_limit_reached"
    assert 59 <= error["resets_in_seconds"] <= 60


def test_the_window_can_be_made_whole(provider: FakeProvider) -> None:
    provider.exhaust(reset_in_s=60)
    refused = post(provider.url)
    provider.exhaust(reset_in_s=0)

    assert (refused.status_code, post(provider.url).status_code) == (429, 200)


# ---------------------------------------------------------------- when to come back


@pytest.mark.parametrize(
    ("how", "header"),
    [
        ("seconds", "60"),
        ("ms", "60"),
        ("decimal", r"59\.\d{3}|60\.000"),
        ("none", None),
        ("zero", "0"),
        ("negative", "-60"),
        ("absurd", "1000000000000"),
        ("garbage", "soon"),
        ("infinity", "inf"),
    ],
)
def test_a_refusal_says_when_to_come_back_in_good_ways_and_in_bad_ones(
    provider: FakeProvider, how: RetryAfter, header: str | None
) -> None:
    provider.configure(retry_after=how)
    provider.exhaust(reset_in_s=60)

    refused = post(provider.url)

    found = refused.headers.get("retry-after")
    assert found is None if header is None else found is not None and re.fullmatch(header, found)
    assert ("retry-after-ms" in refused.headers) == (how == "ms")


def test_a_refusal_can_name_a_date(provider: FakeProvider) -> None:
    provider.exhaust(reset_in_s=600)
    provider.configure(retry_after="date")
    future = parsedate_to_datetime(post(provider.url).headers["retry-after"]).timestamp()
    provider.configure(retry_after="past_date")
    past = parsedate_to_datetime(post(provider.url).headers["retry-after"]).timestamp()

    assert 500 < future - time.time() < 700
    assert past < time.time()


def test_a_provider_that_lies_keeps_refusing_after_its_own_time(provider: FakeProvider) -> None:
    provider.configure(keeps_refusing_s=60, retry_after="decimal")
    provider.exhaust(reset_in_s=0.1)
    told = float(post(provider.url).headers["retry-after"])
    time.sleep(told)  # sleep: the provider asks for it

    again = post(provider.url)

    assert again.status_code == 429
    assert float(again.headers["retry-after"]) == pytest.approx(0.1)


def test_the_headers_of_the_rates_can_be_left_out(provider: FakeProvider) -> None:
    provider.configure(rpm=1, rate_headers=False, retry_after="none")

    served, refused = post(provider.url), post(provider.url)

    assert (served.status_code, refused.status_code) == (200, 429)
    assert rate_headers(served) == rate_headers(refused) == {}


# ---------------------------------------------------------------- a local server


def test_a_local_server_with_one_slot_queues_and_refuses_nobody(provider: FakeProvider) -> None:
    provider.configure(slots=1, slots_mode="queue", latency=0.05)
    began_s = time.monotonic()

    with ThreadPoolExecutor(4) as clients:
        statuses = list(clients.map(lambda _: post(provider.url).status_code, range(4)))

    assert statuses == [200] * 4
    assert time.monotonic() - began_s >= 4 * 0.05
    assert provider.statistics().refused == {}


def test_answers_of_a_shared_server_get_slower_together(provider: FakeProvider) -> None:
    provider.configure(slots=1, slots_mode="share", latency=0.05)
    began_s = time.monotonic()

    with connected(provider.port) as first, connected(provider.port) as second:
        first.sendall(head_of())
        second.sendall(head_of())
        read_until(first, b"}}")
        read_until(second, b"}}")

    assert time.monotonic() - began_s >= 2 * 0.05
    assert provider.statistics().max_concurrency == 2
