"""Watching the inbox: each change rings, then what there is now is compared with what was told.

    ring ─► questions with ids above the highest one seen, open or closed ─┐
            all open ones ─────────────────────────────────────────────────┴─► those of another version than was told
            each that was told as open and is not among them ────────────────► as it is now: closed

So a question that was opened and closed between two looks is told too, once, as it ended. The one exception: ids are
given when something is asked first; if a revived task asks again, and is answered before the next look, nobody is told.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from typing import Final, Generic, TypeVar

from sennit.errors import AskNotFound, UsageError
from sennit.model.thread import AskView
from sennit.store.protocol_threads import ThreadStore
from sennit.sync.ack import in_event_loop
from sennit.sync.pending import Flow, got, run, run_blocking

Q = TypeVar("Q")

_ALL: Final = 10**9
_NEVER_SEEN: Final = -1  # below every revision: the first look does not wait


class Watch(Generic[Q]):
    """The open questions, then each that is new, has changed or is closed. Iterate it once.

    Args:
        shown: makes of a view what is yielded.
    """

    def __init__(self, store: Callable[[], ThreadStore], shown: Callable[[AskView], Q]) -> None:
        self._store = store
        self._shown = shown
        self._seen = _NEVER_SEEN
        self._highest_id: int | None = None  # every question up to this id was looked at
        self._versions: dict[int, int] = {}  # of the questions that were open at the last look

    async def __aiter__(self) -> AsyncIterator[Q]:
        while True:
            for view in await run(self._look()):
                yield self._shown(view)

    def __iter__(self) -> Iterator[Q]:
        if in_event_loop():
            raise UsageError("the inbox was watched with `for` in async code", fix="use `async for` instead")
        while True:
            for view in run_blocking(self._look()):
                yield self._shown(view)

    def _look(self) -> Flow[list[AskView]]:
        """Wait for a change; return what is new since the last look."""
        store = self._store()
        self._seen = yield from got(store.watch_inbox(self._seen))
        later = yield from self._later(store)
        # Read after the others, so that nothing opens unseen in between: what `later` has missed, it finds next time.
        open_ = yield from got(store.asks(limit=_ALL))
        found = {view.id: view for view in (*later, *open_)}
        news = [found[ask_id] for ask_id in sorted(found) if self._versions.get(ask_id) != found[ask_id].version]
        for ask_id in sorted(self._versions.keys() - found.keys()):
            with suppress(AskNotFound):  # pruned together with its task: there is nothing to show
                news.append((yield from got(store.ask(ask_id))))
        self._versions = {view.id: view.version for view in found.values() if view.state == "open"}
        return news

    def _later(self, store: ThreadStore) -> Flow[list[AskView]]:
        """Return what was asked since the last look, open or not; of the time before the first look nothing."""
        if self._highest_id is None:
            newest = yield from got(store.asks(states=(), newest_first=True, limit=1))
            self._highest_id = max((view.id for view in newest), default=0)
            return []
        later = yield from got(store.asks(states=(), after_id=self._highest_id, limit=_ALL))
        self._highest_id = max((view.id for view in later), default=self._highest_id)
        return later
