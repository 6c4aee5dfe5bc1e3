"""Pauses: a provider has said "not now", and the whole fleet holds back until it may. Pure.

    open ──429──► paused ──reset + jitter──► probing ──it answers──► ramping: 2, 4, 8 … ──► open
                    ▲                           │ 429                   │ 429
                    └───────────────────────────┴───────────────────────┘

Only what was sent since the reset decides: the answers to calls that were under way when the pause began say nothing
new, neither the 429s of the volley nor a success that was let through before it.

Three kinds of 429 are told apart by who reads the response (`limit.feedback`). `minute` and `window` pause as above. A
`burst` is too many calls at once and not an empty quota: it only holds everybody back for a moment, the adaptive limit
sees to the rest, and there is nothing to probe.
"""

from __future__ import annotations

from typing import Final, Literal
from zlib import crc32

import msgspec

from sennit.model.provider import CallReport, PauseKind

# How long to hold back when the provider does not say: doubled by each answer of that kind to a call that was sent after
# the last pause. The first is what such a limit usually needs; the last is where a human would have looked.
_FIRST_S: Final[dict[str, float]] = {"burst": 0.5, "minute": 5.0, "window": 900.0}
_LAST_S: Final[dict[str, float]] = {"burst": 60.0, "minute": 120.0, "window": 3600.0}
_DOUBT_S: Final = 0.5
_LEVEL_MAX: Final = 16
# A limit that comes back at a known moment comes back for every client in the world: each adds a little of its own.
JITTER_US_MAX: Final = 250_000
# Whole seconds are what `retry-after` counts in: each answer of a volley would move the end on by its own delay.
ROUNDING_US: Final = 1_000_000
# A refusal comes within seconds, an answer may take minutes: a probe that was not refused for so long has passed.
PROBE_US: Final = 10_000_000


class PauseState(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What is known of pauses.

    Attributes:
        hold_us: nothing is sent before this, after a burst. bursts: how often in a row holding back did not help.
        kind: of the last pause; "" once it is over and everything is open again.
        until_us: nothing is sent before this.
        epoch: counts the pauses. A call remembers in which it was sent.
        level: how often in a row a pause did not help.
        out: calls of this epoch that are under way. probe_us: when the first of them was sent, 0 before it.
        ramp: how many may be under way at once while it ramps up; 0 until the probe has passed.
    """

    hold_us: int = 0
    bursts: int = 0
    kind: PauseKind | Literal[""] = ""
    since_us: int = 0
    until_us: int = 0
    epoch: int = 0
    level: int = 0
    out: int = 0
    probe_us: int = 0
    ramp: int = 0

    @property
    def is_open(self) -> bool:
        """True when nothing is held back."""
        return not self.kind


def throttled(state: PauseState, report: CallReport, *, epoch: int, now_us: int, pause_s_max: float, name: str) -> None:
    """A call that was sent in `epoch` was refused: hold everybody back."""
    if report.pause in {"minute", "window"}:
        _pause(
            state, report.pause, report.retry_after_s, epoch=epoch, now_us=now_us, pause_s_max=pause_s_max, name=name
        )
        return
    if epoch == state.epoch and not state.is_open:  # it counts as out, and neither passed nor says how long to wait
        state.out = max(0, state.out - 1)
    is_news = now_us >= state.hold_us  # else it was under way with the one that is known
    length_us = _length_us("burst", report.retry_after_s, level=state.bursts, pause_s_max=pause_s_max)
    if is_news or report.retry_after_s is not None:
        state.hold_us = max(state.hold_us, now_us + length_us)
    if is_news:
        state.bursts = min(state.bursts + 1, _LEVEL_MAX)


def _pause(
    state: PauseState,
    kind: PauseKind,
    asked_s: float | None,
    *,
    epoch: int,
    now_us: int,
    pause_s_max: float,
    name: str,
) -> None:
    is_news = epoch == state.epoch
    if not is_news and (asked_s is None or state.is_open):
        return  # of a volley that is known; what followed it has been dealt with
    length_us = _length_us(kind, asked_s, level=state.level if is_news else 0, pause_s_max=pause_s_max)
    begin(state, kind=kind, until_us=now_us + length_us, now_us=now_us, name=name)
    if is_news:
        state.level = min(state.level + 1, _LEVEL_MAX)


def _length_us(kind: str, asked_s: float | None, *, level: int, pause_s_max: float) -> int:
    """Return how long to hold back.

    A server that refuses again after the time it gave is believed less each time: a second first, since a reset that
    comes a moment late is common.
    """
    first_s = _FIRST_S[kind] if asked_s is None else _DOUBT_S
    backoff_s = min(first_s * 2.0**level, _LAST_S[kind])
    seconds = backoff_s if asked_s is None else max(asked_s, backoff_s) if level else asked_s
    return int(min(seconds, pause_s_max) * 1_000_000)


def begin(state: PauseState, *, kind: PauseKind, until_us: int, now_us: int, name: str) -> None:
    """Hold back until `until_us` and a little more; an earlier end than the one known does not shorten it."""
    until_us += _jitter_us(name, until_us, now_us)
    if not state.is_open and now_us < state.until_us:
        if until_us > state.until_us + ROUNDING_US:
            state.until_us = until_us
        state.kind = "window" if "window" in {kind, state.kind} else kind
        return
    state.kind, state.since_us, state.until_us = kind, now_us, until_us
    state.epoch += 1
    state.out = state.probe_us = state.ramp = 0


def allowed(state: PauseState, now_us: int) -> tuple[int | None, int | None]:
    """Return how many calls more the pause lets through, None for any number, and when that changes by itself."""
    if now_us < state.hold_us:
        return 0, max(state.hold_us, 0 if state.is_open else state.until_us)
    if state.is_open:
        return None, None
    if now_us < state.until_us:
        return 0, state.until_us
    if state.ramp:
        return max(0, state.ramp - state.out), None
    if not state.out:
        return 1, None
    passed_us = state.probe_us + PROBE_US
    return (1, None) if now_us >= passed_us else (0, passed_us)


def sent(state: PauseState, now_us: int) -> bool:
    """Take note that a call begins; True when it is the probe."""
    if state.is_open:
        return False
    is_probe = not state.ramp and not state.out
    if is_probe:
        state.probe_us = now_us
    elif not state.ramp:  # the probe was not refused in time for us to know: it has passed
        state.ramp = 2
    state.out += 1
    return is_probe


def answered(state: PauseState, *, epoch: int, passed: bool, limit: int) -> None:
    """Take note that a call has ended; `passed`: the provider has taken it.

    Args:
        limit: how many may be under way when everything is open; the ramp ends there.
    """
    if epoch != state.epoch:
        return
    state.out = max(0, state.out - 1)
    if passed:
        state.level = state.bursts = 0
        if not state.is_open:
            state.ramp = max(2, state.ramp + 1)  # each success adds one: the number doubles with each round
            if state.ramp >= limit:
                lift(state)


def lift(state: PauseState) -> None:
    """Open everything."""
    state.kind = ""
    state.hold_us = state.until_us = state.probe_us = state.ramp = state.out = 0


def _jitter_us(name: str, until_us: int, now_us: int) -> int:
    """Return a little more to wait, at most a twentieth of the pause; the same for the same pause."""
    return crc32(f"{name} {until_us}".encode()) % (min(JITTER_US_MAX, max(0, until_us - now_us) // 20) + 1)
