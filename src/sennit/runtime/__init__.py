"""The composition root: only here a concrete store, pool or clock is chosen, and parts are started and stopped in order.

`App` is imported on first use: a command that only looks at a store needs `config` and `stores`, a third of the imports.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sennit.runtime.app import App

__all__ = ["App"]


def __getattr__(name: str) -> object:
    if name != "App":
        raise AttributeError(f"module 'sennit.runtime' has no attribute {name!r}")
    from sennit.runtime.app import App  # noqa: PLC0415 - the whole runtime

    globals()["App"] = App
    return App
