"""Two books of the audit: who has which idempotency key, and how long bodies run.

Both are kept from what is handed in and from what bodies say, never from what the store or the worker knows of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from sennit.errors import DuplicateKey
from sennit.model.task import Claim, ErrorInfo, TaskSpec, TaskView

__all__ = ["NO_LIMITS", "KeyBook", "TimeBook", "Times"]

GIVEN_UP_S: Final = 5.0
"""An interrupted sync body that does not come back is given up after this long."""

_INSTANT_S: Final = 1e-3
"""More than the rounding of clocks; virtual time does not pass while code runs."""

_TOO_LONG, _SILENT = "the attempt ran longer than", "no sign of life for"


class KeyBook:
    """Which task has each key of each handler: at most one, and what a second submit did to it is what it asked for.

    Args:
        view: returns a task as it is stored now.
        object_to: called with the sentence when a promise is broken.
    """

    def __init__(self, view: Callable[[int], TaskView], object_to: Callable[[str], object]) -> None:
        self._view = view
        self._object_to = object_to
        self._owners: dict[tuple[str, str], int] = {}
        self.ever: dict[int, tuple[str, str]] = {}
        self._replaced: set[int] = set()

    def before(self, specs: Sequence[TaskSpec]) -> list[int]:
        """Return the ids that new tasks of this batch would get; call it before the batch is applied."""
        return [spec.ref.id for spec in specs]

    def refused(self, specs: Sequence[TaskSpec], error: BaseException | None) -> None:
        """Check a batch that was not stored."""
        taken = [spec for spec in specs if spec.on_conflict == "reject" and self._owner_of(spec) is not None]
        if isinstance(error, DuplicateKey) and not taken:
            self._object_to(f"{error.what}, and nobody has the key, or its policy is another")

    def stored(self, specs: Sequence[TaskSpec], fresh_ids: Sequence[int]) -> None:
        """Check and note a batch that was stored; `fresh_ids` are what `before` returned."""
        for spec, fresh_id in zip(specs, fresh_ids, strict=True):
            if spec.key is None or self._was_made_before(spec, fresh_id):
                continue
            owner_id, where = self._owner_of(spec), f"task {fresh_id} with key {spec.key!r} ({spec.on_conflict})"
            if owner_id is not None and spec.on_conflict == "reject":
                self._object_to(f"{where} was stored beside task {owner_id}")
            if owner_id is not None and spec.on_conflict == "existing":
                if spec.ref.id != owner_id:
                    self._object_to(f"{where} became task {spec.ref.id}, and task {owner_id} has that key")
                continue
            if spec.ref.id != fresh_id:
                self._object_to(f"{where} became task {spec.ref.id}")
            if owner_id is not None:
                if self._view(owner_id).state.live:
                    self._object_to(
                        f"{where} has replaced task {owner_id}, which is still {self._view(owner_id).state}"
                    )
                self._replaced.add(owner_id)
            self._owners[spec.handler, spec.key] = self.ever_had(spec, fresh_id)

    def _was_made_before(self, spec: TaskSpec, fresh_id: int) -> bool:
        """A child that an earlier attempt has made stands for this one, whoever has the key now."""
        return spec.ref.id != fresh_id and self._view(spec.ref.id).parent_id == spec.parent_id is not None

    def ever_had(self, spec: TaskSpec, task_id: int) -> int:
        """Note that a task was stored with a key; return its id."""
        assert spec.key is not None  # noqa: S101 - the caller has looked
        self.ever[task_id] = (spec.handler, spec.key)
        return task_id

    def _owner_of(self, spec: TaskSpec) -> int | None:
        return None if spec.key is None else self._owners.get((spec.handler, spec.key))

    def faults(self, views: Sequence[TaskView]) -> list[str]:
        """Say which keys have more than one task, or another one than the book has."""
        faults = []
        having: dict[tuple[str, str], list[int]] = {}
        for view in views:
            if view.key is not None:
                having.setdefault((view.handler, view.key), []).append(view.id)
            elif view.id in self.ever and view.id not in self._replaced:
                faults.append(f"task {view.id} has lost its key {self.ever[view.id]}")
        for key, ids in sorted(having.items()):
            if ids != [self._owners.get(key)]:
                faults.append(f"key {key} is that of tasks {ids}, and should be of task {self._owners.get(key)}")
        return faults


@dataclass(frozen=True, slots=True)
class Times:
    """The limits of one attempt in seconds, None for no limit."""

    timeout_s: float | None = None
    idle_timeout_s: float | None = None


NO_LIMITS: Final = Times()


@dataclass(slots=True)
class _Span:
    """One body: its limits, when it began, when it last gave a sign of life, and when it was out, virtual seconds."""

    times: Times
    grace_s: float
    begun_s: float
    sign_s: float
    freezes: int
    was_frozen: bool
    out_s: float | None = None


class TimeBook:
    """How long bodies run: not beyond their limits while their process runs, and not shorter if a limit is what ended them.

    Args:
        now_s: virtual time.
        object_to: called with the sentence when a promise is broken.
    """

    def __init__(self, now_s: Callable[[], float], object_to: Callable[[str], object]) -> None:
        self._now_s = now_s
        self._object_to = object_to
        self._spans: dict[Claim, _Span] = {}

    def begin(self, claim: Claim, times: Times, *, is_sync: bool, freezes: int) -> None:
        """A body begins; `freezes` as of `SimLoop.freezes`."""
        now_s, grace_s = self._now_s(), (GIVEN_UP_S if is_sync else 0.0) + _INSTANT_S
        self._spans[claim] = _Span(times, grace_s, now_s, now_s, freezes, was_frozen=freezes > 0)

    def sign(self, claim: Claim, *, freezes: int) -> None:
        """A body gives a sign of life, or ends: look whether it should have been interrupted before."""
        span, now_s = self._spans[claim], self._now_s()
        if span.out_s is not None:
            return  # given up
        if span.freezes != freezes:
            span.freezes, span.was_frozen = freezes, True
        ran_s, silent_s = now_s - span.begun_s, now_s - span.sign_s
        for limit_s, took_s, what in (
            (span.times.timeout_s, ran_s, "runs"), (span.times.idle_timeout_s, silent_s, "is silent"),
        ):  # fmt: skip
            if limit_s is not None and took_s > limit_s + span.grace_s and not span.was_frozen:
                self._object_to(f"{claim} {what} for {took_s:g} s, and its limit is {limit_s:g} s")
        span.sign_s = now_s

    def out(self, claim: Claim, *, freezes: int) -> None:
        """A body has ended, or was given up."""
        sign_s = self._spans[claim].sign_s
        self.sign(claim, freezes=freezes)
        span = self._spans[claim]
        if span.out_s is None:
            span.sign_s, span.out_s = sign_s, self._now_s()  # an end is no sign of life

    def ended(self, claim: Claim, error: ErrorInfo | None) -> None:
        """An attempt is recorded as ended with `error`: look whether that was its limit, and not too early."""
        span = self._spans.get(claim)
        if error is None or error.kind != "TimeoutError" or span is None or span.was_frozen or span.out_s is None:
            return
        ran_s, silent_s = span.out_s - span.begun_s, span.out_s - span.sign_s
        too_long, silent = error.message.startswith(_TOO_LONG), error.message.startswith(_SILENT)
        limit_s = span.times.timeout_s if too_long else span.times.idle_timeout_s if silent else None
        took_s = ran_s if too_long else silent_s
        if limit_s is None or took_s < limit_s - _INSTANT_S:
            self._object_to(f"{claim} ended as {error.message!r}, after {took_s:g} s, and its limits are {span.times}")
