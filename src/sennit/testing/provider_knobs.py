"""What can be turned on the fake provider, and how long an answer takes.

    FakeProvider(max_concurrency=40, latency=Lognormal(8.0, 0.5)) ──► Knobs ──JSON──► the server, which may be another process

All knobs are off at first: the fake answers at once, always, without limits.
"""

from __future__ import annotations

import math
import random
from typing import Final, Literal, get_args

import msgspec

from sennit.errors import SettingsError

# ---------------------------------------------------------------- how long an answer takes


class Constant(msgspec.Struct, frozen=True, tag="constant", forbid_unknown_fields=True):
    """Always the same; a plain number means this too."""

    seconds: float


class Uniform(msgspec.Struct, frozen=True, tag="uniform", forbid_unknown_fields=True):
    """Anything from `low_s` to `high_s`, all equally often."""

    low_s: float
    high_s: float


class Lognormal(msgspec.Struct, frozen=True, tag="lognormal", forbid_unknown_fields=True):
    """Mostly near the median, now and then much longer, as answers of models are.

    Attributes:
        median_s: half of the answers are faster.
        sigma: of the logarithm; 0.5 makes one answer in twenty take 2.3 medians or more.
        max_s: none takes longer.
    """

    median_s: float
    sigma: float = 0.5
    max_s: float = 3600.0


class Steps(msgspec.Struct, frozen=True, tag="steps", forbid_unknown_fields=True):
    """One latency after the other: `(0.0, 1.0), (30.0, 4.0)` is 1 s, and 4 s from half a minute after the knob was set."""

    steps: tuple[tuple[float, float | Constant | Uniform | Lognormal], ...]


Latency = float | Constant | Uniform | Lognormal | Steps


def latency_s(latency: Latency, rng: random.Random, since_s: float) -> float:
    """Return the next sample in seconds, at least 0; `since_s` is the time since the knob was set."""
    match latency:
        case Constant(seconds):
            sample = seconds
        case Uniform(low_s, high_s):
            sample = rng.uniform(low_s, high_s)
        case Lognormal(median_s, sigma, max_s):
            sample = min(median_s * math.exp(rng.gauss(0.0, sigma)), max_s) if median_s > 0 else 0.0
        case Steps(steps):
            due = [step for from_s, step in steps if from_s <= since_s]
            sample = latency_s(due[-1], rng, since_s) if due else 0.0
        case _:
            sample = float(latency)
    return max(0.0, sample)


# ---------------------------------------------------------------- what goes wrong

# `status_N` is an error answer, `status_429` one that says nothing of why or how long. `hang_*` sends nothing more until the
# client goes away; `truncate` closes in the middle of the answer, `reset` before it with a TCP RST; `malformed` breaks the JSON; `no_usage`
# leaves the usage out; `stream_error` is an error event after the 200 (an error answer when nothing is streamed).
Fault = Literal[
    "status_400",
    "status_401",
    "status_403",
    "status_404",
    "status_408",
    "status_413",
    "status_429",
    "status_500",
    "status_502",
    "status_503",
    "status_504",
    "status_529",
    "hang_before_headers",
    "hang_after_headers",
    "hang_mid_stream",
    "truncate",
    "reset",
    "malformed",
    "no_usage",
    "stream_error",
]
FAULTS: Final[tuple[Fault, ...]] = get_args(Fault)

# How a 429 says when to come back. `ms` adds OpenAI's retry-after-ms to the whole seconds. The odd ones have all been seen.
RetryAfter = Literal[
    "seconds", "ms", "decimal", "date", "none", "zero", "negative", "absurd", "past_date", "garbage", "infinity"
]

# What the 429 of a used up quota looks like. `day`: OpenAI's requests per day, Anthropic's unified headers with a reset;
# `usage_limit`: the body tells the reset (OpenAI), headers as for `day` (Anthropic); `quota`: nothing tells it (insufficient_quota).
WindowStyle = Literal["day", "usage_limit", "quota"]


class Knobs(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """All that can be turned; 0 is no bound.

    Attributes:
        latency: from the arrival of a request to the last byte of its answer, in seconds or as a distribution.
        seed: of the latencies and of the faults that come by chance; setting it starts them anew.
        first_token: the share of the latency that a stream lets pass before its headers; the rest is spread over its pieces.
        stream_pieces: deltas of a stream; each has at least one token.
        input_tokens: of each request; 0 reckons a token for four bytes of the request.
        output_tokens: of each answer, unless the request allows fewer.
        answer: its text; "" makes one up that has as many words as tokens.
        models: what GET /v1/models lists. Any other name is answered too.
        api_key: what requests must carry; "" lets in everybody.

        max_concurrency: requests in service at once; one more is answered `overload_status` without being served.
        overload_status: 429, 503 or 529.  overload_retry_after_s: what it asks to wait; None says nothing.
        slots: of a local server: it works on so many answers at once, and none is refused for it. With `share` all that are in service
            get slower together (processor sharing), with `queue` the others wait in line.
        rpm, tpm, input_tpm, output_tpm: per minute; a used up minute is a 429 that says when to come back.
        minute_s: how long a minute is.
        minute: `bucket` refills continuously, as the real ones do; `fixed` is whole again when the minute ends.
        window_requests: after so many in `window_s` all are refused until the window ends.
        window_style: what that refusal looks like.

        retry_after: how refusals say when to come back.
        keeps_refusing_s: how much longer than announced a used up minute or window lasts.
        rate_headers: False leaves x-ratelimit-* and anthropic-ratelimit-* out.
        faults: chance of each fault, 0 to 1, for a request that would have been served.
        log_max: requests kept in the log of the statistics; older ones are dropped.
    """

    latency: Latency = 0.0
    seed: int = 0
    first_token: float = 0.2
    stream_pieces: int = 8
    input_tokens: int = 0
    output_tokens: int = 16
    answer: str = ""
    models: tuple[str, ...] = ("fake-model",)
    api_key: str = ""

    max_concurrency: int = 0
    overload_status: Literal[429, 503, 529] = 429
    overload_retry_after_s: float | None = None
    slots: int = 0
    slots_mode: Literal["share", "queue"] = "share"

    rpm: int = 0
    tpm: int = 0
    input_tpm: int = 0
    output_tpm: int = 0
    minute_s: float = 60.0
    minute: Literal["bucket", "fixed"] = "bucket"

    window_requests: int = 0
    window_s: float = 5 * 3600.0
    window_style: WindowStyle = "day"

    retry_after: RetryAfter = "seconds"
    keeps_refusing_s: float = 0.0
    rate_headers: bool = True

    faults: dict[Fault, float] = {}
    log_max: int = 10_000


def turned(knobs: Knobs, changes: dict[str, object]) -> Knobs:
    """Return `knobs` with the changes, as values or as their JSON reads.

    Raises:
        SettingsError: a knob is unknown, of the wrong type or out of its bounds.
    """
    try:
        plain = msgspec.to_builtins(knobs) | msgspec.to_builtins(changes)
        # Strict but for tuples, which are lists in JSON; str_keys keeps "status_500" a name.
        new = msgspec.convert(plain, Knobs)
    except (msgspec.ValidationError, TypeError) as error:
        raise SettingsError(
            f"the fake provider cannot be set so: {error}",
            fix="see sennit.testing.provider_knobs.Knobs for what there is",
        ) from error
    check(new)
    return new


def check(knobs: Knobs) -> None:
    """Raise SettingsError if a number is out of its bounds."""
    at_least_0 = {
        name: value
        for name in Knobs.__struct_fields__
        if isinstance(value := getattr(knobs, name), int | float) and not isinstance(value, bool) and name != "seed"
    }
    wrong = [f"{name} is {value}" for name, value in at_least_0.items() if not 0 <= value < math.inf]
    wrong += [f"{name} is 0" for name in ("minute_s", "window_s", "stream_pieces") if not at_least_0[name]]
    wrong += [f"the chance of {fault} is {chance}" for fault, chance in knobs.faults.items() if not 0 <= chance <= 1]
    if knobs.first_token > 1:
        wrong.append(f"first_token is {knobs.first_token}, and it is a share")
    if sum(knobs.faults.values()) > 1:
        wrong.append("the chances of the faults are more than 1 together")
    if isinstance(knobs.latency, Steps) and list(knobs.latency.steps) != sorted(
        knobs.latency.steps, key=lambda s: s[0]
    ):
        wrong.append("the steps of the latency are not in the order of time")
    if wrong:
        raise SettingsError(
            f"the fake provider cannot be set so: {', '.join(wrong)}",
            why="numbers are at least 0 and finite; minute_s, window_s and stream_pieces are above 0; chances are 0 to 1",
        )
