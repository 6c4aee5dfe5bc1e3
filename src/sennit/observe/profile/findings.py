"""What to change, what it would gain, and the measurement that says so: facts in, findings out, the largest gain first.

A gain is an upper bound: the seconds of the run, or the bytes of its memory, that the cause accounts for. What accounts
for less than one part in a hundred is not worth reading about.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import Final

from sennit.observe.profile.facts import CopyFacts, Facts, LockFacts, PoolFacts
from sennit.observe.profile.sizing import knee, rate

__all__ = ["LOCKED_MAX", "SHARE_MIN", "Finding", "findings"]

SHARE_MIN: Final = 0.01

# A lock is worth a word when it is contended this often and somebody waited this long: below, waiting is as cheap as it gets.
CONTENDED_MIN: Final = 0.1
WAITED_S_MIN: Final = 0.01
# A lock that was hardly ever contended is one whose holder the OS has put aside once, unless the wait was a long one.
CONTENDED_OFTEN: Final = 10
LONG_WAIT_S_MIN: Final = 0.1

IMBALANCE_MIN: Final = 0.3  # standard deviation of the busy time, as a share of its mean
# … and the busiest was it that the others waited for: busy for this share of the time. Else calls came one by one, and
# whoever was free took them.
BUSIEST_MIN: Final = 0.8
PICKLED_BYTES_MIN: Final = 1_000_000
GIL_LOUD_S: Final = 0.002  # as in execute.workload: waits beside a Python loop start at 1.5 ms
KNEE_MAX: Final = 64
LOCKED_MAX: Final = 0.3  # of the time in calls: beyond it, more OS threads would stand in front of the lock


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to change.

    Attributes:
        gain_s: of the run's seconds, at most; 0 when the gain is memory.
        gain_bytes: of its memory, at most.
        share: the gain as a share of the run, or of its peak memory; findings are ordered by it.
        measured: the figures behind it.
        attempt: what to try, and the switch.
    """

    what: str
    gain_s: float
    gain_bytes: int
    share: float
    measured: str
    attempt: str


def findings(facts: Facts) -> list[Finding]:
    """Return what is worth changing, the largest gain first."""
    found = [
        *_blocking(facts),
        *_computing(facts),
        *_small_pools(facts),
        *_locks(facts),
        *_imbalance(facts),
        *_pickling(facts),
        *_copies(facts),
    ]
    return sorted((f for f in found if f.share >= SHARE_MIN), key=lambda f: f.share, reverse=True)


def _seconds(facts: Facts, what: str, gain_s: float, measured: str, attempt: str) -> Finding:
    gain_s = min(gain_s, facts.elapsed_s)
    return Finding(what, gain_s, 0, gain_s / max(facts.elapsed_s, 1e-9), measured, attempt)


def _blocking(facts: Facts) -> Iterator[Finding]:
    for block in facts.blocks:
        if block.is_sennit:
            continue  # nothing that the program could do about it
        yield _seconds(
            facts,
            f"{block.what} blocks the event loop at {block.stack[0] if block.stack else 'an unknown place'}",
            block.blocked_s,
            f"{block.count} × over 50 ms, {block.blocked_s:.2f} s together, the longest {block.blocked_s_max:.2f} s",
            "await what it waits for, or hand it to asyncio.to_thread; in a task of sennit: a plain `def`, or cpu=True",
        )


def _computing(facts: Facts) -> Iterator[Finding]:
    """Python that computes in OS threads: they take turns at the GIL, processes would not."""
    for function in facts.functions:
        holds_gil = function.holds_gil or (function.holds_gil is None and facts.gil.wait_s_p50 >= GIL_LOUD_S)
        if function.kind != "cpu" or not holds_gil or not facts.has_gil or facts.cores < 2:
            continue
        road = _IMPORTABLE if function.importable else _NOT_IMPORTABLE
        yield _seconds(
            facts,
            f"{function.name} computes in Python under the GIL",
            function.cpu_s * (1 - 1 / facts.cores),
            f"{function.calls} calls, {function.cpu_s:.2f} s of CPU in {function.ran_s:.2f} s; an OS thread waits "
            f"{facts.gil.wait_s_p50 * 1000:.1f} ms for the GIL (p50)",
            road,
        )


_IMPORTABLE: Final = (
    "worker processes: in a task of sennit cpu=True, or leave it to placement=auto; else ProcessPoolExecutor"
)
_NOT_IMPORTABLE: Final = "define it at the top level of a module, so that worker processes can import it; then cpu=True"


def _small_pools(facts: Facts) -> Iterator[Finding]:
    """Calls stand in the queue of a pool although more OS threads would do more."""
    for pool in facts.pools:
        size, ran_s = len(pool.busy_s), sum(pool.busy_s)
        is_full = size >= pool.workers_max  # it never needed the rest
        if not pool.calls or not is_full or pool.queued_s < ran_s / 2 or pool.locked_s > ran_s * LOCKED_MAX:
            continue
        foreign_s = min(facts.foreign_s, pool.blocked_s)  # a library computed for it in OS threads of its own
        how = {
            "cpu_s": (pool.cpu_s + foreign_s) / pool.calls,
            "blocked_s": (pool.blocked_s - foreign_s) / pool.calls,
        }
        holds_gil = facts.has_gil and pool.holding_s >= pool.cpu_s / 2
        best = knee(**how, cores=facts.cores, holds_gil=holds_gil, size_max=min(KNEE_MAX, pool.calls))
        if best <= size:
            continue
        now, then = (rate(n, **how, cores=facts.cores, holds_gil=holds_gil) for n in (size, best))
        yield _seconds(
            facts,
            f"the {pool.name} made at {pool.made_at} is too small",
            pool.backlog_s * (1 - now / then),
            f"{size} OS threads; {pool.calls} calls of {ran_s / pool.calls * 1000:.1f} ms stood "
            f"{pool.queued_s / pool.calls * 1000:.1f} ms in the queue on average; the curve bends at {best}",
            f"max_workers={best}, or AdaptiveThreadPoolExecutor, which finds its size",
        )


def _locks(facts: Facts) -> Iterator[Finding]:
    for lock in facts.locks:
        if not _is_contended(lock):
            continue
        yield _seconds(
            facts,
            f"OS threads wait for the lock made at {lock.where}",
            lock.waited_s / max(1, lock.waiters),
            f"contended in {lock.contended:,} of {lock.acquisitions:,} acquisitions; {lock.waited_s:.2f} s of waiting in "
            f"{lock.waiters} OS threads, the longest {lock.waited_s_max * 1000:.0f} ms",
            "hold it for less; for a map ShardedMap or Registry, for long reads RWLock; Mutex says who holds it",
        )


def _is_contended(lock: LockFacts) -> bool:
    long = LONG_WAIT_S_MIN if lock.contended < CONTENDED_OFTEN else WAITED_S_MIN
    return lock.contended >= max(2, lock.acquisitions * CONTENDED_MIN) or lock.waited_s_max >= long


def _imbalance(facts: Facts) -> Iterator[Finding]:
    for pool in facts.pools:
        if _spread(pool) < IMBALANCE_MIN or max(pool.busy_s) < pool.active_s * BUSIEST_MIN:
            continue
        yield _seconds(
            facts,
            f"the OS threads of the {pool.name} made at {pool.made_at} are unevenly busy",
            max(pool.busy_s) - fmean(pool.busy_s),
            f"busiest {max(pool.busy_s):.2f} s, mean {fmean(pool.busy_s):.2f} s, over {len(pool.busy_s)} OS threads",
            "hand in the longest calls first, or smaller ones; WorkStealingExecutor where work is split beforehand",
        )


def _spread(pool: PoolFacts) -> float:
    return pstdev(pool.busy_s) / mean if len(pool.busy_s) > 1 and (mean := fmean(pool.busy_s)) > 0 else 0.0


def _pickling(facts: Facts) -> Iterator[Finding]:
    for pickle in facts.pickles:
        if pickle.sent_bytes < PICKLED_BYTES_MIN:
            continue  # seconds of small messages are those of waking up somebody
        yield _seconds(
            facts,
            f"{pickle.sent_bytes / 1e6:,.0f} MB are pickled for other processes at {pickle.where}",
            pickle.spent_s,
            f"{pickle.messages:,} messages, {pickle.spent_s:.2f} s here; unpickling there comes on top",
            "SharedArrayPool for numpy arrays: other processes map them instead",
        )


def _copies(facts: Facts) -> Iterator[Finding]:
    wasted_bytes = sum(copy.wasted_bytes for copy in facts.copies)
    if not wasted_bytes:
        return
    first: CopyFacts = facts.copies[0]
    yield Finding(
        "the same content is in memory several times",
        0.0,
        wasted_bytes,
        wasted_bytes / max(facts.memory_bytes_max, 1),
        f"{wasted_bytes / 1e6:,.1f} MB of {facts.memory_bytes_max / 1e6:,.0f} MB; most of it {first.copies} × a "
        f"{first.kind} of {first.size_bytes / 1e6:,.1f} MB",
        "keep one and hand out references; between processes SharedArrayPool",
    )
