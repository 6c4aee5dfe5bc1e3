"""The heart: renews this process's lease from an OS thread of its own, so that a blocked event loop is not taken for dead.

    lease   |────────────|────────────|────────────|        renewed whenever a third of it is used
                 beat         beat ✕ ✕ ✕ ✕ │       ╵ ends: others may take over what we hold
                                         fence: we have stopped before that

It beats only while something is held. An idle process has nothing to lose, so it does not beat, and its lease is renewed
with the next claim; where only its lease tells other machines that it lives, it beats all the same. A process that cannot renew is *fenced* a fifth of a lease before the end: its bodies are stopped and
write nothing more. It goes on trying, and works again as soon as the store answers. A process that was frozen past its
lease asks first: what it still holds goes on, what others took over is stopped.

A body that holds the GIL in C code for longer than a lease does stop the heart: then its tasks run elsewhere and what it
writes is refused by the store, which is the safe side.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final, Protocol

from sennit.errors import StoreError
from sennit.model.task import Claim
from sennit.store.protocol import Store
from sennit.sync.ack import Ack

_log = logging.getLogger("sennit")

# The part of a lease before its end in which nothing runs any more: bodies unwind meanwhile, and the clocks of two
# machines may drift apart by so much in the time of a lease.
FENCE_MARGIN: Final = 0.2
# How long a process waits for the answer that has slept past its own fence (frozen, or starved of a core).
LATE_PATIENCE_S: Final = 1.0
# After a beat that failed it tries again this soon, as a part of the lease.
_RETRY_PART: Final = 0.05


class Pulse(Protocol):
    """A heart as the rest of the process sees it; a simulation has one without an OS thread."""

    def start(self) -> None:
        """Begin."""

    def held(self, n: int) -> None:
        """Say how many attempts are held now; it beats while there are any."""

    def stop(self) -> None:
        """Beat no more. Called from another OS thread than the loop's."""


class Heart:
    """Beats whenever a third of the lease is used. All callbacks are made on its OS thread.

    Args:
        on_beat: told what the store says this process holds.
        on_trouble: told when the store could not be written.
        on_fence: told, with the reason, that this process must stop all it runs now.
        on_back: told that the store answers again after that; before `on_beat`.
    """

    def __init__(
        self,
        store: Store,
        worker_id: int,
        *,
        lease_s: float,
        on_beat: Callable[[list[Claim]], None],
        on_trouble: Callable[[StoreError], None],
        on_fence: Callable[[str], None],
        on_back: Callable[[], None],
    ) -> None:
        self._store = store
        self._worker_id = worker_id
        self._lease_s = lease_s
        self._on_beat = on_beat
        self._on_trouble = on_trouble
        self._on_fence = on_fence
        self._on_back = on_back
        self._changed = threading.Condition()
        self._holds = False
        self._stopping = False
        self._is_fenced = False
        self._beats_idle = store.spans_hosts
        self._asked: Ack[list[Claim]] | None = None  # the beat that has no answer yet
        self._thread = threading.Thread(target=self._run, name="sennit-heart", daemon=True)

    def start(self) -> None:
        """Start the OS thread; it sleeps until something is held."""
        self._thread.start()

    def held(self, n: int) -> None:
        """Say how many attempts are held now."""
        if bool(n) != self._holds:
            with self._changed:
                self._holds = bool(n)
                self._changed.notify()

    def stop(self) -> None:
        """End the OS thread. Idempotent."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    # ------------------------------------------------------------ on its OS thread

    def _run(self) -> None:
        failed = False
        while True:
            self._sleep(None, lambda: self._beats)
            pause_s = self._lease_s * _RETRY_PART if failed else self._until_beat_s()
            if self._sleep(pause_s, lambda: False):
                return
            if self._beats:
                failed = not self._beat()

    @property
    def _beats(self) -> bool:
        """A fenced process goes on trying: it holds nothing, and may claim nothing until the store answers."""
        return self._holds or self._is_fenced or (self._beats_idle and self._store.lease_until_us > 0)

    def _sleep(self, seconds: float | None, until: Callable[[], bool]) -> bool:
        """Sleep until a fact or for so long; True if it is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or until(), seconds)
            return self._stopping

    def _left_s(self) -> float:
        """Return how long the lease is ours yet, as far as this process knows."""
        return (self._store.lease_until_us - self._store.now_us()) / 1_000_000

    def _until_beat_s(self) -> float:
        """Return when a third of the lease is used; half of it while nothing can be lost."""
        used_s = self._lease_s / (3 if self._holds else 2)
        return min(max(0.0, self._left_s() - self._lease_s + used_s), used_s)

    def _beat(self) -> bool:
        """Renew the lease, or raise the fence when it is time for that; False if the store does not answer."""
        left_s = self._left_s() - self._lease_s * FENCE_MARGIN
        if self._holds and self._asked is None and not self._is_fenced and self._left_s() < 0:
            _log.warning(
                "worker %d wakes %.1f s after the end of its lease: the process was stopped, or had no core. "
                "It asks what it still holds; what others took over is stopped here",
                self._worker_id,
                -self._left_s(),
            )
        patience_s = left_s if left_s > 0 and not self._is_fenced else LATE_PATIENCE_S
        try:
            held = self._answer(patience_s)
        except StoreError as error:
            self._on_trouble(error)
            self._fence_if_late(str(error))
            return False
        if held is None:
            if not self._stopping:
                self._fence_if_late("the store does not answer")
            return False
        if self._is_late:  # the answer has taken too long, and the lease it tells of is nearly over
            self._fence_if_late("the store answers too late")
            return False
        if self._is_fenced:
            self._is_fenced = False
            self._on_back()
        self._on_beat(held)
        return True

    def _answer(self, patience_s: float) -> list[Claim] | None:
        """Return what the store says is held, None if it says nothing for so long. A beat under way is not repeated.

        Raises:
            StoreError: it could not be written.
        """
        if self._asked is None:
            self._asked = self._store.heartbeat(self._worker_id, int(self._lease_s * 1_000_000))
            self._asked.add_done_callback(self._wake)
        asked = self._asked
        self._sleep(patience_s, lambda: asked.done)
        if not asked.done:
            return None
        self._asked = None
        return asked.wait()

    def _wake(self, _: Ack[list[Claim]]) -> None:
        with self._changed:
            self._changed.notify()

    @property
    def _is_late(self) -> bool:
        return self._left_s() <= self._lease_s * FENCE_MARGIN

    def _fence_if_late(self, why: str) -> None:
        if not self._is_fenced and self._is_late:
            self._is_fenced = True
            self._on_fence(why)
