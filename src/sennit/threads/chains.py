"""The tips of chains: what this process believes is the latest version of each thread's state.

    update ─► tip known? no: read ─► fn(tip) ─► offer: is the tip still the one fn saw? ─► queued, and the tip is the new value
                                                                                            │
                     one write of a chain is under way at a time; what is offered meanwhile follows together, in order

So an update costs one write and no read, and updates of one thread by many in this process share transactions. A write
leaves only when what it builds on is stored: versions are numbers, and another process may have written the same number
with other data. When a write fails, everything that was built on it is told so and starts again from what is stored.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from functools import partial
from typing import Any, Final

from sennit.errors import SennitError
from sennit.model.thread import StateView, StateWrite
from sennit.store.protocol_threads import ThreadStore
from sennit.sync.ack import Ack, resolve_all

TIPS_MAX: Final = 1024
"""Chains whose tip is kept; with `TIP_BYTES_MAX`, at most 64 MiB."""

TIP_BYTES_MAX: Final = 65_536
"""A larger value is read again for each update."""

BATCH_MAX: Final = 128
"""Writes of one chain in one transaction: bounds how long others wait for it, and what one conflict throws back."""

Key = tuple[str, str]
_Settled = tuple[Ack[Any], Any, BaseException | None]


class Overtaken(Exception):
    """What this write was built on was not stored; start again."""


class Tip:
    """The latest version of a chain. `stored` turns true when it is acknowledged."""

    __slots__ = ("data", "stored", "version")

    def __init__(self, version: int, data: bytes | None, *, stored: bool) -> None:
        self.version = version
        self.data = data
        self.stored = stored


class _Offer:
    """One write on its way, what the tip is after it, and who waits for it."""

    __slots__ = ("ack", "tip", "write")

    def __init__(self, write: StateWrite, tip: Tip) -> None:
        self.write = write
        self.tip = tip
        self.ack: Ack[list[StateView]] | None = None  # None: whoever offered it waits for the store itself


class _Chain:
    """`barrier` is set while nothing may be built on the tip before it is stored; it is what to wait for."""

    __slots__ = ("barrier", "flying", "queued", "tip")

    def __init__(self, tip: Tip) -> None:
        self.tip = tip
        self.queued: list[_Offer] = []
        self.flying = False
        self.barrier: Ack[None] | None = None


class Chains:
    """The tips of one store object. Any OS thread may call; no method waits."""

    def __init__(self, store: ThreadStore) -> None:
        self._store = store
        self._lock = threading.Lock()  # held for a look or an append, never while a function of the user runs
        self._chains: OrderedDict[Key, _Chain] = OrderedDict()

    def look(self, key: Key) -> Tip | Ack[None] | None:
        """Return the tip, or what to wait for before there is one, or None: read it."""
        with self._lock:
            chain = self._chains.get(key)
            if chain is None:
                return None
            self._chains.move_to_end(key)
            return chain.tip if chain.barrier is None else chain.barrier

    def learn(self, key: Key, view: StateView) -> Tip:
        """Note what was read from the store; return the tip to build on."""
        tip = Tip(view.version, view.data, stored=True)
        if view.data is not None and len(view.data) > TIP_BYTES_MAX:
            return tip
        with self._lock:
            chain = self._chains.get(key)
            if chain is None or not (chain.flying or chain.tip.version >= tip.version):
                self._chains[key] = _Chain(tip)
                self._shrink()
            elif chain.barrier is None:
                tip = chain.tip
        return tip

    def forget(self, thread_id: str) -> None:
        """Drop the tips of a thread that was deleted: its versions begin again at 1."""
        with self._lock:
            for key in [key for key, chain in self._chains.items() if key[0] == thread_id and not chain.flying]:
                del self._chains[key]

    def offer(self, tip: Tip, write: StateWrite) -> Ack[list[StateView]] | None:
        """Write what was built on `tip`; None when that is not the tip any more.

        The ack holds the new version alone, or `Overtaken` or ConcurrentModificationError: start again.
        """
        key = (write.thread_id, write.name)
        with self._lock:
            chain = self._chains.get(key)
            if chain is None and tip.stored:  # its value is large, or other chains were used since
                chain = self._chains[key] = _Chain(tip)
                self._shrink()
            if chain is None or chain.tip is not tip or chain.barrier is not None:
                return None
            chain.tip = Tip(tip.version + 1, write.data, stored=False)
            offer = _Offer(write, chain.tip)
            if write.operation_id is not None or len(write.data) > TIP_BYTES_MAX:
                chain.barrier = Ack()  # a known operation writes nothing: what becomes of the tip is not known yet
            if chain.flying:
                chain.queued.append(offer)
                offer.ack = Ack()
                return offer.ack
            chain.flying = True
        return self._send(key, chain, [offer])

    # ------------------------------------------------------------ inside

    def _send(self, key: Key, chain: _Chain, batch: list[_Offer]) -> Ack[list[StateView]]:
        """Write a batch, and what was queued meanwhile if the store answers at once; return the ack of the first."""
        first = ack = self._write(batch)
        while ack.done:
            batch = self._landed(key, chain, batch, ack)
            if not batch:
                return first
            ack = self._write(batch)
        ack.add_done_callback(partial(self._landed_later, key, chain, batch))
        return first

    def _write(self, batch: list[_Offer]) -> Ack[list[StateView]]:
        try:
            return self._store.write_states([offer.write for offer in batch])
        except SennitError as error:
            return Ack.failed_with(error)

    def _landed_later(self, key: Key, chain: _Chain, batch: list[_Offer], ack: Ack[list[StateView]]) -> None:
        following = self._landed(key, chain, batch, ack)
        if following:
            self._send(key, chain, following)

    def _landed(self, key: Key, chain: _Chain, batch: list[_Offer], ack: Ack[list[StateView]]) -> list[_Offer]:
        """Tell who waits; return what was queued meanwhile."""
        try:
            views = ack.wait()
        except BaseException as error:  # noqa: BLE001 - handed on to those who wait
            with self._lock:
                built_on, chain.queued = chain.queued, []
                chain.flying = False
                barrier = self._drop(key, chain)
            settled: list[_Settled] = [(o.ack, None, error) for o in batch if o.ack is not None]
            settled += [(o.ack, None, Overtaken()) for o in built_on if o.ack is not None]
            following: list[_Offer] = []
        else:
            settled = [(o.ack, [view], None) for o, view in zip(batch, views, strict=True) if o.ack is not None]
            with self._lock:
                batch[-1].tip.stored = True
                barrier = None
                if chain.barrier is not None and chain.tip is batch[-1].tip:
                    barrier, chain.barrier = chain.barrier, None
                    if views[-1].version != chain.tip.version or len(batch[-1].write.data) > TIP_BYTES_MAX:
                        self._drop(key, chain)
                following = chain.queued[:BATCH_MAX]
                del chain.queued[: len(following)]
                chain.flying = bool(following)
        if barrier is not None:
            settled.append((barrier, None, None))
        if settled:
            resolve_all(settled)
        return following

    def _drop(self, key: Key, chain: _Chain) -> Ack[None] | None:
        """Forget a chain; whoever still holds its tip must not build on it. Returns what others may wait for."""
        chain.tip = Tip(-1, None, stored=False)
        if self._chains.get(key) is chain:
            del self._chains[key]
        barrier, chain.barrier = chain.barrier, None
        return barrier

    def _shrink(self) -> None:
        if len(self._chains) > TIPS_MAX:
            idle = next((key for key, chain in self._chains.items() if not chain.flying), None)
            if idle is not None:
                del self._chains[idle]
