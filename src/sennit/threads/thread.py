"""Thread: one conversation, by its `thread_id`. Its state and its config are two chains of versions.

thread()            in a body: the thread of its task; changes commit with the result, or by `save()`
app.thread("id")    outside: each change is a transaction of its own
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, Generic, TypeVar

from sennit.errors import ConcurrentModificationError, UsageError
from sennit.model.lock import Fence
from sennit.model.thread import CONFIG, STATE, StateView, StateWrite, checked_thread_id
from sennit.sync.pending import Flow, Pending, got
from sennit.sync.plain import typed
from sennit.sync.versioned import Versioned
from sennit.threads.drafts import Change, Drafts
from sennit.threads.state import Home, State

S = TypeVar("S")

_CHAINS: Final = (STATE, CONFIG)


class Thread(Generic[S]):
    """One conversation. What its methods return is awaited, or asked for its `.result()`.

    Attributes:
        id: the thread_id.
        state: what the conversation is at, of the type that was asked for.
        config: a dict beside it, with versions of its own.

    Raises:
        SettingsError: `thread_id` is no text of 1 to 1000 characters.
        UsageError: `type` cannot be read from JSON.
    """

    def __init__(self, home: Callable[[], Home], thread_id: str, type: type[S]) -> None:  # noqa: A002 - API
        self.id = checked_thread_id(thread_id)
        self._home = home
        self._type = type
        self.state: State[S] = State(home, self.id, STATE, typed(type))
        self.config: State[dict[str, Any]] = State(home, self.id, CONFIG, typed(dict[str, Any]))

    def __repr__(self) -> str:
        return f"<Thread {self.id!r}>"

    # ------------------------------------------------------------ the state, for short

    def get(self) -> Pending[S]:
        """Return the state, as `state.get`."""
        return self.state.get()

    def get_versioned(self) -> Pending[Versioned[S]]:
        """Return the state and its version, as `state.get_versioned`."""
        return self.state.get_versioned()

    def update(
        self, fn: Callable[[S], S], *, operation_id: str | None = None, fence: Fence | None = None
    ) -> Pending[S]:
        """Replace the state by `fn(state)`, as `state.update`."""
        return self.state.update(fn, operation_id=operation_id, fence=fence)

    def update_if(self, expected_version: int, fn: Callable[[S], S], *, fence: Fence | None = None) -> Pending[bool]:
        """Replace the state if it is at a version, as `state.update_if`."""
        return self.state.update_if(expected_version, fn, fence=fence)

    def apply(
        self, fns: Iterable[Callable[[S], S]], *, operation_id: str | None = None, fence: Fence | None = None
    ) -> Pending[S]:
        """Replace the state by several functions at once, as `state.apply`."""
        return self.state.apply(fns, operation_id=operation_id, fence=fence)

    def history(self, limit: int = 100) -> Pending[list[Versioned[S]]]:
        """Return the versions of the state that are kept, as `state.history`."""
        return self.state.history(limit)

    # ------------------------------------------------------------ the thread as a whole

    def save(self) -> Pending[None]:
        """In a body: commit what it has changed in this thread so far, now and for good, also if the attempt fails later.

        A later attempt meets the same calls again and does not repeat them. Outside of a body there is nothing to save.

        Raises:
            ConcurrentModificationError: others were faster again and again, or an `update_if` has come too late.
            AttemptCancelled: the attempt is not held any more; nothing was committed.
        """

        def flow() -> Flow[None]:
            drafts = self._home().drafts
            if drafts is not None:
                yield from drafts.save(self.id)

        return Pending.of(flow)

    def fork(self, new_thread_id: str, version: int | None = None) -> Pending[Thread[S]]:
        """Begin another thread with a copy of this one's state and config; return it.

        Args:
            version: of the state, if it is not to be the present one; it must still be kept.

        Raises:
            ConcurrentModificationError: the new thread has a state or config already.
            UsageError: the version does not exist, or is not kept any more.
        """
        home, new_id = self._home(), checked_thread_id(new_thread_id)
        call_site = "" if home.drafts is None else home.drafts.key(f"fork|{self.id}|{new_id}")

        def flow() -> Flow[Thread[S]]:
            copies = []
            for name in _CHAINS:
                view = yield from self._source(home, name, version if name == STATE else None)
                if view.data is not None:
                    copies.append(StateWrite(thread_id=new_id, name=name, expected=0, data=view.data))
            if home.drafts is not None:
                for copy in copies:
                    yield from _buffer(home.drafts, call_site, copy)
                return Thread(self._home, new_id, self._type)
            for name in _CHAINS:  # looked at before, so that it is refused also when there is nothing to copy
                begun = yield from got(home.store.state(new_id, name))
                if begun.version:
                    raise ConcurrentModificationError(new_id, expected=0, actual=begun.version)
            if copies:
                yield from got(home.store.write_states(copies))
            return Thread(self._home, new_id, self._type)

        return Pending.of(flow)

    def forget(self) -> Pending[bool]:
        """Delete state and config, all versions, now; False when there was nothing.

        Raises:
            ThreadBusy: it has open tasks; nothing is deleted.
        """

        def flow() -> Flow[bool]:
            home = self._home()
            forgotten = yield from got(home.store.forget_thread(self.id))
            home.chains.forget(self.id)
            return forgotten

        return Pending.of(flow)

    # ------------------------------------------------------------ inside

    def _source(self, home: Home, name: str, version: int | None) -> Flow[StateView]:
        if version is None and home.drafts is not None:
            return (yield from home.drafts.present((self.id, name)))
        view = yield from got(home.store.state(self.id, name, version=version))
        if version is not None and (view.data is None or view.version != version):
            raise UsageError(
                f"there is no version {version} of the state of thread {self.id!r}",
                why="it was never written, or it is older than the versions that are kept",
                fix="see which there are: thread.history()",
            )
        return view


def _buffer(drafts: Drafts, call_site: str, copy: StateWrite) -> Flow[None]:
    """Make a copy part of what the attempt commits."""
    chain = (copy.thread_id, copy.name)
    change = Change(f"{call_site}|{copy.name}", lambda _: copy.data, expected=0)
    if not (yield from drafts.change_if(chain, change)):
        actual = (yield from drafts.present(chain)).version
        raise ConcurrentModificationError(copy.thread_id, expected=0, actual=actual)
