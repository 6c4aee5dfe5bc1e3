"""What a store promises about distributed locks. Each sentence of a docstring has a test in `sennit.testing.contract`.

The fourth part of `store.protocol.Store`, which inherits this; `store.redis_locks` keeps the same promises about locks, and
none about writes.

*Holding.* A lock is held alone, or shared: then with others that are shared, and with no more than each of them allows.
Whoever asked first holds it first; nobody passes the first of the line, also not one who would fit beside the holders.
A grant lasts for its time and not longer; then the next in line has it, without anybody asking again.
A process that is known to be dead holds nothing and waits for nothing.
When a store object is closed, what it held and what it waited for is over.

*Tokens.* Each grant has a token that is greater than all earlier ones of that name, also after everybody has let go, after a
restart, and after the name was pruned.

*Fences.* A write that carries a fence is refused with Fenced when its lock has a newer token, in the transaction of the write.
A fence that is `shared` is refused when that grant is not held any more. One of a name the store has never given out is refused.
A foreign fence is refused when an earlier write has carried a newer token of that name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from sennit.model.lock import LockGrant, LockRequest, LockView
from sennit.sync.ack import Ack


class LockBackend(Protocol):
    """What gives out locks: a store, or Redis. Methods may be called from any OS thread and never block it, except `take_ids`."""

    def now_us(self) -> int:
        """Return the clock in which grants are dated, µs."""

    def close(self) -> None:
        """Let go of all that was taken through this object; who still waits is told. Idempotent."""

    def take_ids(self, n: int) -> Sequence[int]:
        """Return `n` ids that no other call in any process returns."""

    def acquire_lock(self, request: LockRequest) -> Ack[LockGrant]:
        """Resolve with a grant as soon as the request is first in line and fits beside those who hold the lock.

        Raises:
            LockTimeout: it does not wait, and there is no room, or others wait ahead of it.
            LockLost: it was given up while it waited, or its process was taken for dead.
            StoreUnavailable: the store object was closed.
        """

    def extend_lock(self, name: str, token: int, ttl_us: int) -> Ack[LockGrant]:
        """Hold it until `ttl_us` from now, be that earlier or later than before.

        Raises:
            LockLost: it is not held any more; also when its time is over and nobody else has it yet.
        """

    def release_lock(self, name: str, token: int) -> Ack[None]:
        """Let go; the next in line has it in the same transaction, in whatever process.

        Raises:
            LockLost: it is not held any more; the present holder keeps it.
        """

    def give_up_lock(self, request_id: int) -> Ack[bool]:
        """Wait no longer; a grant that has come meanwhile is released. False when there is no such request.

        The ack of the request is rejected with LockLost, unless it has its grant.
        """

    def locks(self, names: Sequence[str] = ()) -> Ack[list[LockView]]:
        """Return the locks that are held or waited for, by name; with `names` those, held or not, if they were ever held."""

    def seize_lock(self, name: str) -> Ack[int]:
        """Take a lock away from all who hold it; return how many did. The next in line has it.

        Their tokens are old from then on, also when nobody waits: what they write under it is refused.
        """


class LockStore(LockBackend, Protocol):
    """Locks in the store itself. Writes carry fences in `StateWrite.fences`."""
