"""State of a thread: a chain of versions, changed by functions of the value before.

    update(fn):  read ─► fn(value) ─► write if nobody else has ─► the new value
                  ▲                        │ conflict
                  └────────────────────────┘ at most 1000 times

In a body nothing is written before the attempt succeeds: there the same calls go to its drafts.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any, Final, Generic, TypeVar

from sennit.errors import ConcurrentModificationError, UsageError
from sennit.limit.admission import check_thread_bytes
from sennit.model.lock import Fence
from sennit.model.thread import StateView, StateWrite
from sennit.store.protocol_threads import ThreadStore
from sennit.sync.ack import Ack
from sennit.sync.pending import Flow, Pause, Pending, got
from sennit.sync.plain import Typed
from sennit.sync.versioned import Versioned
from sennit.threads.chains import Chains, Overtaken
from sennit.threads.drafts import Change, Drafts

S = TypeVar("S")

CONFLICTS_MAX: Final = 1000

PAUSE_S: Final = 0.0005
PAUSE_S_MAX: Final = 0.02
"""Between two conflicts with other processes: up to this, doubling, at random. Without it all come back at the same time
and one of them is served; measured with 8 processes on one thread, 2 cores: 540 updates/s without, 1300 to 1600 with."""


@dataclass(frozen=True, slots=True)
class Home:
    """Where the threads of one caller live.

    Attributes:
        size_bytes_max: of one value, as for any payload.
        drafts: of the attempt the caller is; None outside of a body.
        thread_bytes_max: of the state of a thread, and of its config; 0 is no bound of their own.
        chance: for pauses.
    """

    store: ThreadStore
    chains: Chains
    size_bytes_max: int
    drafts: Drafts | None = None
    thread_bytes_max: int = 0
    chance: Random = field(default_factory=Random)


class State(Generic[S]):
    """One chain of a thread: its state, or its config. Everything it returns is awaited, or asked for its `.result()`.

    A function given to `update` gets the present value, which is its own to change, and returns the new one. It may be
    called several times and must have no other effects. It is called without any lock, in the OS thread that waits: one
    that never returns holds up its own caller (in async code, that event loop) and nobody else.
    """

    def __init__(self, home: Callable[[], Home], thread_id: str, name: str, kind: Typed[S]) -> None:
        self._home = home
        self._chain = (thread_id, name)
        self._kind = kind
        self._what = f"the {name} of thread {thread_id!r}"

    def __repr__(self) -> str:
        return f"<State {self._chain[1]} of {self._chain[0]!r}>"

    # ------------------------------------------------------------ reading

    def get(self) -> Pending[S]:
        """Return the present value; in a body with what it has changed. Absent, it is `type()`, or None."""

        def flow() -> Flow[S]:
            view = yield from self._present()
            return self._value(view.data)

        return Pending.of(flow)

    def get_versioned(self) -> Pending[Versioned[S]]:
        """Return the present value and its version, for `update_if`; 0 is a state nobody has written yet."""

        def flow() -> Flow[Versioned[S]]:
            view = yield from self._present()
            return Versioned(self._value(view.data), view.version)

        return Pending.of(flow)

    def history(self, limit: int = 100) -> Pending[list[Versioned[S]]]:
        """Return the stored versions that are still kept, newest first."""

        def flow() -> Flow[list[Versioned[S]]]:
            views = yield from got(self._home().store.state_history(*self._chain, limit=limit))
            return [Versioned(self._value(view.data), view.version) for view in views]

        return Pending.of(flow)

    # ------------------------------------------------------------ writing

    def update(
        self, fn: Callable[[S], S], *, operation_id: str | None = None, fence: Fence | None = None
    ) -> Pending[S]:
        """Replace the value by `fn(value)`; return the new one.

        Args:
            operation_id: a repeat of an operation the thread knows changes nothing, and returns what it made then
                (the present value if that is not kept any more).
            fence: of the lock it is made under, `lease.fence`.

        Raises:
            ConcurrentModificationError: others were faster, 1000 times in a row.
            Fenced: somebody else has, or has had, that lock since; nothing is changed. In a body it is the attempt's failure,
                or raised by `save`.
            PayloadError, PayloadTooLarge: what `fn` returned is no value of the type, or too large; nothing is changed.
            StateTooLarge: it is larger than `settings.thread_memory_bytes_max`; nothing is changed.
            UsageError: `fn` is async.
        """
        return self._update((fn,), operation_id, fence)

    def apply(
        self, fns: Iterable[Callable[[S], S]], *, operation_id: str | None = None, fence: Fence | None = None
    ) -> Pending[S]:
        """Run the value through several functions, as one version: all or nothing. Otherwise as `update`."""
        return self._update(tuple(fns), operation_id, fence)

    def update_if(self, expected_version: int, fn: Callable[[S], S], *, fence: Fence | None = None) -> Pending[bool]:
        """Replace the value by `fn(value)` if it is at `expected_version`; False, and no change, if it is not.

        In a body the version is checked again when the attempt ends: a conflict then is its error.

        Raises:
            PayloadError, PayloadTooLarge, Fenced, UsageError: as `update`.
        """
        apply, home = self._function((fn,)), self._home()
        if home.drafts is not None:
            change = Change(
                self._call_site(home.drafts, (fn,)), apply, expected=expected_version, fences=_fences(fence)
            )
            return Pending.of(partial(home.drafts.change_if, self._chain, change))

        def flow() -> Flow[bool]:
            view = yield from self._present()
            if view.version != expected_version:
                return False
            write = self._write(view.version, apply(view.data), None, fence)
            try:
                views = yield from got(home.store.write_states([write]))
            except ConcurrentModificationError:
                return False
            home.chains.learn(self._chain, views[0])
            return True

        return Pending.of(flow)

    def _update(self, fns: tuple[Callable[[S], S], ...], operation_id: str | None, fence: Fence | None) -> Pending[S]:
        apply, home = self._function(fns), self._home()
        if home.drafts is None:
            return Pending.of(partial(self._write_through, home, apply, operation_id, fence))
        change = Change(self._call_site(home.drafts, fns), apply, operation_id=operation_id, fences=_fences(fence))

        def flow(drafts: Drafts = home.drafts) -> Flow[S]:
            return self._value((yield from drafts.change(self._chain, change)))

        return Pending.of(flow)

    def _write_through(
        self, home: Home, apply: Callable[[bytes | None], bytes], operation_id: str | None, fence: Fence | None
    ) -> Flow[S]:
        """Update outside of a body. Normally one write and no read: the tip of the chain is known.

        A fenced write goes by itself: when it is refused, that is none of the business of others who write to the chain.
        """
        conflicts, expected = 0, 0
        while conflicts < CONFLICTS_MAX:
            tip = home.chains.look(self._chain)
            if isinstance(tip, Ack):
                yield from got(tip)
                continue
            if tip is None:
                tip = home.chains.learn(self._chain, (yield from self._present()))
            expected = tip.version
            write = self._write(tip.version, apply(tip.data), operation_id, fence)
            ack = home.chains.offer(tip, write) if fence is None else home.store.write_states([write])
            if ack is not None:
                try:
                    view = (yield from got(ack))[0]
                except (Overtaken, ConcurrentModificationError):
                    if conflicts:  # the first is mostly a tip that another process has made old
                        yield Pause(home.chance.uniform(0.0, min(PAUSE_S * 2**conflicts, PAUSE_S_MAX)))
                else:
                    if fence is not None:
                        home.chains.learn(self._chain, view)
                    if view.data is None:  # an operation of old
                        view = yield from self._present()
                    return self._value(view.data)
            conflicts += 1
        actual = (yield from self._present()).version
        raise ConcurrentModificationError(self._chain[0], expected=expected, actual=actual)

    # ------------------------------------------------------------ inside

    def _present(self) -> Flow[StateView]:
        home = self._home()
        if home.drafts is not None:
            return (yield from home.drafts.present(self._chain))
        return (yield from got(home.store.state(*self._chain)))

    def _write(self, expected: int, data: bytes, operation_id: str | None, fence: Fence | None) -> StateWrite:
        thread_id, name = self._chain
        return StateWrite(
            thread_id=thread_id,
            name=name,
            expected=expected,
            data=data,
            operation_id=operation_id,
            fences=_fences(fence),
        )

    def _call_site(self, drafts: Drafts, fns: tuple[Callable[..., Any], ...]) -> str:
        functions = ",".join(getattr(fn, "__qualname__", type(fn).__qualname__) for fn in fns)
        return drafts.key(f"{self._chain[1]}|{self._chain[0]}|{functions}")

    def _value(self, data: bytes | None) -> S:
        """Return the value of stored JSON. `null` is how a rolled back first version looks."""
        if data is not None and data != b"null":
            return self._kind.decode(data, self._what)
        try:
            return self._kind.wanted()
        except (TypeError, ValueError):  # it cannot be built without arguments
            absent: Any = None
            value: S = absent
            return value

    def _function(self, fns: tuple[Callable[[S], S], ...]) -> Callable[[bytes | None], bytes]:
        home = self._home()

        def apply(data: bytes | None) -> bytes:
            value = self._value(data)
            for fn in fns:
                value = fn(value)
                if inspect.isawaitable(value):
                    _refuse(fn, value)
            data = self._kind.encode(value, f"what the function made of {self._what}", home.size_bytes_max)
            check_thread_bytes(self._chain[0], len(data), home.thread_bytes_max)
            return data

        return apply


def _fences(fence: Fence | None) -> tuple[Fence, ...]:
    return () if fence is None else (fence,)


def _refuse(fn: object, value: object) -> None:
    if inspect.iscoroutine(value):
        value.close()  # or Python warns that nobody awaited it
    raise UsageError(
        f"{getattr(fn, '__qualname__', fn)} is async, and a thread's state was to be changed by it",
        why="it may be called several times, and must be as quick as the change itself",
        fix="await what it needs before, and give a plain function that uses it",
    )
