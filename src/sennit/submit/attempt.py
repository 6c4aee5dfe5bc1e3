"""Attempt: the context of one running attempt, found by what its body calls through one context variable.

What a body writes through it goes to the store under the claim token, so a stale attempt writes nothing. Calls are told
apart by *what* they are and how many times that was met, never by when they run: that is how a later attempt finds the
steps, children, questions and saved changes of an earlier one.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Final, NoReturn, Protocol, Self

import msgspec

from sennit.errors import (
    AttemptCancelled,
    AttemptHeldBack,
    AttemptPreempted,
    AttemptSuspended,
    ProviderBusy,
    UsageError,
)
from sennit.model.provider import Permit, PermitRequest
from sennit.model.task import Claim, Claimed, Ref, TaskSpec
from sennit.model.thread import AskSpec, StateWrite
from sennit.store.protocol_providers import ProviderStore
from sennit.store.protocol_threads import ThreadStore
from sennit.submit.afar import attempt_is_out_of_reach
from sennit.submit.codec import encode_value
from sennit.submit.permits import HeldPermit, take
from sennit.sync.ack import Ack
from sennit.sync.pending import Flow, got
from sennit.threads.chains import Chains
from sennit.threads.drafts import Drafts
from sennit.threads.state import Home

_current: ContextVar[Attempt | None] = ContextVar("sennit_attempt", default=None)
# The steps around this code, outermost first.
_steps: ContextVar[tuple[str, ...]] = ContextVar("sennit_steps", default=())
# A pause that is shorter is waited for where the body is: giving an attempt back and claiming it again costs about that.
# It is also what a provider says that does not know when it opens: one that somebody has isolated.
GIVE_BACK_S: Final = 1.0


class AttemptStore(ThreadStore, ProviderStore, Protocol):
    """The part of the store a context needs."""

    def now_us(self) -> int:
        """The store's clock."""

    def take_ids(self, n: int) -> Sequence[int]:
        """Return new ids."""

    def save_step(self, claim: Claim, key: str, result: bytes) -> Ack[bool]:
        """Keep a step's result while the attempt is held."""

    def add_children(self, claim: Claim, specs: Sequence[TaskSpec]) -> Ack[list[int]]:
        """Submit children of a running attempt."""


class Attempt:
    """The context of one running attempt.

    Attributes:
        task: what was claimed.
        store: where it is from.
        beat_us: when the body last gave a sign of life, store clock.
        threads: the thread of each task it has submitted.
        permit: for a call to its provider.
        in_line: whether the body stands in line for a permit; time that passes there is not its own.
        is_pressed: an urgent task wants the slot; the next step makes room for it.
        is_touched: whether the body has asked for it so far, by a step, a submit, a thread or a log line; one that does
            cannot run elsewhere.
        lend, take_back: called when the body begins to wait for other tasks and when it no longer waits for any; the
            slot is free meanwhile.
    """

    def __init__(
        self,
        task: Claimed,
        store: AttemptStore,
        *,
        size_bytes_max: int,
        thread_bytes_max: int = 0,
        lend: Callable[[], None],
        take_back: Callable[[], None],
    ) -> None:
        self.task = task
        self.store = store
        self.beat_us = store.now_us()
        self.is_pressed = False
        self.is_touched = False
        self.threads: dict[Ref, str | None] = {}
        self.permit = HeldPermit(task, store)
        self.size_bytes_max = size_bytes_max
        self._thread_bytes_max = thread_bytes_max
        self._home: Home | None = None
        self._lend = lend
        self._take_back = take_back
        self._waits = 0
        self._in_line = 0
        self._met: Counter[str] = Counter()
        self._children: list[TaskSpec] = []
        self._asks: dict[str, AskSpec] = {}
        self._steps_running: set[str] = set()
        self._steps_done: Ack[None] | None = None
        self._ended = False
        self._is_fenced = False

    def __enter__(self) -> Self:
        self._token = _current.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        del kind, traceback
        _current.reset(self._token)
        self._ended = True
        self.permit.end(error)
        if self.drafts is not None:
            self.drafts.end()

    def is_gone(self) -> None:
        """The store has ended the attempt, though its body still runs."""
        self.permit.is_gone()

    def fence(self) -> None:
        """Refuse all that the body writes from now on. Any OS thread may call this."""
        self._is_fenced = self._ended = True
        self.permit.is_gone()
        if self.drafts is not None:
            self.drafts.end()

    def _pass_fence(self) -> None:
        if self._is_fenced:
            raise AttemptCancelled("fenced: this process could not renew its lease, and the task may run elsewhere")

    def beat(self) -> None:
        """Note a sign of life."""
        self.beat_us = self.store.now_us()

    def key(self, what: str) -> str:
        """Return `what` with its occurrence in this attempt, counted from 0."""
        n = self._met[what]
        self._met[what] += 1
        return f"{what}#{n}"

    # ------------------------------------------------------------ steps

    def recall(self, key: str) -> bytes | None:
        """Return the stored result of a finished step."""
        return self.task.steps.get(key)

    def remember(self, key: str, value: Any, what: str) -> Ack[bool]:
        """Store the result of a step."""
        self._pass_fence()
        self.beat()
        encoded = encode_value(value, what, self.size_bytes_max)
        self.task.steps[key] = encoded
        return self.store.save_step(self.task.claim, key, encoded)

    @contextmanager
    def stepping(self, key: str) -> Iterator[None]:
        """Around a step that runs: the attempt does not suspend under it.

        Raises:
            AttemptCancelled: the attempt has ended; this is a coroutine it has left behind.
        """
        if self._ended:
            raise AttemptCancelled("the attempt has ended")
        self._steps_running.add(key)
        token = _steps.set((*_steps.get(), key))
        try:
            yield
        finally:
            _steps.reset(token)
            self._left(key)

    def _left(self, *keys: str) -> None:
        self._steps_running.difference_update(keys)
        if not self._steps_running and self._steps_done is not None:
            self._steps_done.resolve(None)
            self._steps_done = None

    # ------------------------------------------------------------ suspending

    def ask(self, spec: AskSpec) -> None:
        """Note a question; it is stored when the attempt suspends."""
        self._asks[spec.key] = spec

    def asks(self) -> tuple[AskSpec, ...]:
        """Return the questions that have no answer yet."""
        return tuple(self._asks.values())

    def suspend(self, reason: str, *, due_us: int | None = None) -> Flow[NoReturn]:
        """End the attempt here; the task goes on later, from its finished steps.

        Steps that run beside this (`gather`) end first: they would have to be done again. Children are stored.

        Raises:
            AttemptSuspended: always.
        """
        yield from self._other_steps_end()
        children = self.flush()
        if children is not None:
            yield from got(children)
        raise AttemptSuspended(due_us=due_us, reason=reason)

    def make_room(self) -> Flow[NoReturn]:
        """End the attempt before its next step, for an urgent task; the task goes on after it, from its finished steps.

        Children that are not stored yet are handed in when the body comes to them again.

        Raises:
            AttemptPreempted: always.
        """
        yield from self._other_steps_end()
        raise AttemptPreempted

    def hold_back(self, reason: str) -> Flow[NoReturn]:
        """End the attempt here because its provider takes no calls for a while; the task goes on when it does.

        Children that are not stored yet are handed in when the body comes to them again.

        Raises:
            AttemptHeldBack: always.
        """
        yield from self._other_steps_end()
        raise AttemptHeldBack(reason)

    def throttled_by(self, error: BaseException) -> str:
        """Return who refused the call that `error` is from, "" when it is from none: then it is the body's failure."""
        return self.permit.throttled_by(error)

    def _other_steps_end(self) -> Flow[None]:
        self._left(*_steps.get())  # a step that ends the attempt does not end itself, and is not to be waited for
        if self._steps_running:
            if self._steps_done is None:
                self._steps_done = Ack()
            yield from got(self._steps_done)

    # ------------------------------------------------------------ waiting for others

    @property
    def waits(self) -> bool:
        """Whether the body waits for other tasks: its slot is lent."""
        return self._waits > 0

    def begin_wait(self) -> None:
        """A wait for another task begins. A body may be in many at once (`gather`), and has one slot to lend."""
        self._waits += 1
        if self._waits == 1:
            self.permit.lend()
            self._lend()

    def end_wait(self) -> None:
        """One of these waits is over."""
        self._waits -= 1
        if not self._waits:
            self._take_back()

    def go_on(self) -> Flow[None]:
        """After a wait: take the permit back that was lent with the slot, in line with other calls."""
        provider = "" if self._waits else self.permit.lent()
        if provider:
            try:
                permit = yield from self.take_permit(provider)
            except BaseException:  # a time-out of the body around this wait
                self.permit.stay_lent()
                raise
            self.permit.hold(permit)
            if self._waits:  # another part of the body has begun to wait meanwhile
                self.permit.lend()

    # ------------------------------------------------------------ permits for calls

    @property
    def in_line(self) -> bool:
        """Whether the body waits for a permit."""
        return self._in_line > 0

    def take_permit(self, provider: str, *, priority: int | None = None, tokens: int = 0) -> Flow[Permit]:
        """Wait in line for one more call. The slot is lent meanwhile, and a permit that the body has not used is given back.

        Raises:
            AttemptHeldBack: the task was claimed for this provider, and it is closed for long.
            BudgetExceeded: what may be spent is spent.
        """
        request = PermitRequest(
            id=self.store.take_ids(1)[0],
            provider=provider,
            priority=self.task.priority if priority is None else priority,
            tokens=tokens,
            task_id=self.task.id,
            wait=False,
        )
        try:
            return (yield from take(self.store, request))
        except ProviderBusy as error:
            busy = error
        is_closed = busy.reason in {"pause", "breaker"} and busy.retry_after_s >= GIVE_BACK_S
        if is_closed and self.permit.is_for(provider) and not self.permit.is_from_fallback:
            yield from self.hold_back(f"{provider} is closed ({busy.reason})")
        self.permit.let_go()
        self.begin_wait()
        self._in_line += 1
        try:
            in_line = msgspec.structs.replace(request, id=self.store.take_ids(1)[0], wait=True)
            return (yield from take(self.store, in_line))
        finally:
            self._in_line -= 1
            self.end_wait()

    # ------------------------------------------------------------ what commits with the result

    @property
    def home(self) -> Home:
        """Where the threads that the body works on live; what it changes goes to the drafts."""
        if self._home is None:
            drafts = Drafts(self.store, self.task.claim, self.task.steps, self.key)
            if self._ended:
                drafts.end()
            self._home = Home(self.store, Chains(self.store), self.size_bytes_max, drafts, self._thread_bytes_max)
        return self._home

    @property
    def drafts(self) -> Drafts | None:
        """What the body has changed in threads; None if it never looked at one."""
        return None if self._home is None else self._home.drafts

    def writes(self) -> tuple[StateWrite, ...]:
        """Return what the body has changed in threads."""
        return () if self.drafts is None else self.drafts.writes()

    def rebase(self) -> Flow[None]:
        """Make these changes again, from what is stored now."""
        if self.drafts is not None:
            yield from self.drafts.rebase()

    def adopt(self, spec: TaskSpec) -> None:
        """Make `spec` a child: it commits with the attempt's result, or when somebody waits for it before that."""
        digest = hashlib.blake2b(spec.payload, digest_size=8).hexdigest()
        spec.parent_id = self.task.id
        spec.child_key = self.key(f"{spec.handler}|{digest}")
        self.threads[spec.ref] = spec.thread_id
        self._children.append(spec)

    def take_children(self) -> tuple[TaskSpec, ...]:
        """Return and forget the children that are not stored yet."""
        children, self._children = tuple(self._children), []
        return children

    def flush(self) -> Ack[list[int]] | None:
        """Store the children now; None when there are none."""
        self._pass_fence()
        children = self.take_children()
        return self.store.add_children(self.task.claim, children) if children else None


def current() -> Attempt | None:
    """Return the attempt this code runs in, or None.

    Raises:
        ContextOutOfReach: this code was moved to a process that does not have it.
    """
    attempt = _current.get()
    if attempt is not None:
        attempt.is_touched = True
    else:
        attempt_is_out_of_reach()
    return attempt


def attempt_here(what: str) -> Attempt:
    """Return the attempt this code runs in.

    Raises:
        UsageError: outside of a task body.
    """
    attempt = current()
    if attempt is None:
        raise UsageError(
            f"{what} was called outside of a task body",
            why="it belongs to one attempt of one task (in a cpu=True body it is not available)",
            fix="call it in a function decorated with @app.task that was submitted, not called directly",
        )
    return attempt
