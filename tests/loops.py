"""Every event loop is closed by the test that made it.

One left open would fail some later test, whichever runs when it is collected, and with the name of that one.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

Loop = asyncio.SelectorEventLoop  # what asyncio makes here; simulated ones have nothing to close

_made: Final[list[tuple[weakref.ref[asyncio.AbstractEventLoop], threading.Thread]]] = []
_make: Final = Loop.__init__


def _noted(self: Any, *args: Any, **kwargs: Any) -> None:
    _make(self, *args, **kwargs)
    _made.append((weakref.ref(self), threading.current_thread()))


Loop.__init__ = _noted  # type: ignore[method-assign]


@contextmanager
def all_closed(*, others: bool) -> Iterator[None]:
    """Fail if a loop that was made meanwhile is left open; `others` are libraries that do that, and theirs are closed.

    Not looked at: a loop that runs, or whose OS thread may be about to run it.
    """
    _made.clear()
    yield
    main = threading.main_thread()
    left = [loop for ref, maker in _made if (maker is main or not maker.is_alive()) and (loop := ref()) is not None]
    left = [loop for loop in left if not loop.is_closed() and not loop.is_running()]
    for loop in left:
        loop.close()
    assert others or not left, f"left open: {left}"
