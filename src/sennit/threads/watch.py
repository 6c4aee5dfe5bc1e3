"""Watching the inbox: each change rings, then the open questions are compared with those of the last look."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from typing import Final

from sennit.errors import AskNotFound, UsageError
from sennit.model.thread import AskView
from sennit.store.protocol_threads import ThreadStore
from sennit.sync.ack import in_event_loop
from sennit.sync.pending import Flow, got, run, run_blocking

_ALL: Final = 10**9
_NEVER_SEEN: Final = -1  # below every revision: the first look does not wait


class Watch:
    """The open questions, then each that is new or has changed, closed ones included. Iterate it once."""

    def __init__(self, store: Callable[[], ThreadStore]) -> None:
        self._store = store
        self._seen = _NEVER_SEEN
        self._versions: dict[int, int] = {}  # of the questions that were open at the last look

    async def __aiter__(self) -> AsyncIterator[AskView]:
        while True:
            for view in await run(self._look()):
                yield view

    def __iter__(self) -> Iterator[AskView]:
        if in_event_loop():
            raise UsageError("the inbox was watched with `for` in async code", fix="use `async for` instead")
        while True:
            yield from run_blocking(self._look())

    def _look(self) -> Flow[list[AskView]]:
        """Wait for a change; return what is new since the last look."""
        store = self._store()
        self._seen = yield from got(store.watch_inbox(self._seen))
        views = yield from got(store.asks(limit=_ALL))
        open_ = {view.id: view.version for view in views}
        news = [view for view in views if self._versions.get(view.id) != view.version]
        for ask_id in sorted(self._versions.keys() - open_.keys()):
            with suppress(AskNotFound):  # pruned together with its task: there is nothing to show
                news.append((yield from got(store.ask(ask_id))))
        self._versions = open_
        return news
