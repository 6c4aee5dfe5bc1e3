"""Maps and registries under many OS threads, and the batcher.

registry, registry_reads, sharded_map   8 OS threads, 9 reads to 1 write, or only reads, on 1,000 keys
batcher                                 what it adds for a caller who is alone
batch_calls, batch_matmul               what it gains for many, where a call costs and where NumPy computes
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from time import perf_counter, sleep
from typing import Any, Final

from sennit.cli.pool_cases.measure import Bound, Case, Side, Sides, scaled
from sennit.cli.pool_cases.rivals import LockedDict, part
from sennit.sync.batch import AsyncBatcher, Batcher
from sennit.sync.registry import Registry
from sennit.sync.shards import ShardedMap

OS_THREADS: Final = 8
KEYS: Final = 1_000
READS_PER_WRITE: Final = 9
CALLERS: Final = 32
CALL_S: Final = 0.001
MATRIX: Final = 32

Read = Callable[[str], object]
Write = Callable[[str, int], object]


# ---------------------------------------------------------------- maps


def ops_per_s(read: Read, write: Write | None, *, groups: int, os_threads: int = OS_THREADS) -> float:
    """Let OS threads read 9 keys and write 1, over and over; return operations per second. Without `write` they read 10."""
    gate = threading.Barrier(os_threads + 1)
    keys = [f"agent-{n}" for n in range(KEYS)]
    per_group = READS_PER_WRITE + 1

    def work(first: int) -> None:
        mine = [keys[(first * 131 + n * 7) % KEYS] for n in range(per_group)]
        gate.wait()
        if write is None:
            for _ in range(groups):
                for key in mine:
                    read(key)
        else:
            *reads, last = mine
            for n in range(groups):
                for key in reads:
                    read(key)
                write(last, n)

    workers = [threading.Thread(target=work, args=(n,)) for n in range(os_threads)]
    for worker in workers:
        worker.start()
    gate.wait()
    began_s = perf_counter()
    for worker in workers:
        worker.join()
    return os_threads * groups * per_group / (perf_counter() - began_s)


def filled(write: Write) -> None:
    """Write every key once."""
    for n in range(KEYS):
        write(f"agent-{n}", n)


def _maps(scale: float, *, writes: bool, sharded: bool) -> Sides:
    groups = scaled(3_000, scale)
    locked: LockedDict[str, int] = LockedDict()
    plain: dict[str, int] = {}
    registry: Registry[str, int] = Registry()
    shards: ShardedMap[str, int] = ShardedMap()
    kinds: dict[str, tuple[Read, Write]] = {
        "one lock": (locked.get, locked.set),
        "Registry": (registry.get, partial(registry.register, replace=True)),
        "ShardedMap": (shards.get, shards.set),
        "a dict, no lock at all": (plain.get, plain.__setitem__),
    }
    del kinds["Registry" if sharded else "ShardedMap"]
    for _, write in kinds.values():
        filled(write)

    def side(read: Read, write: Write) -> Side:
        return lambda: ops_per_s(read, write if writes else None, groups=groups)

    return {name: side(read, write) for name, (read, write) in kinds.items()}


# ---------------------------------------------------------------- the batcher


def _same(items: Sequence[int]) -> list[int]:
    return list(items)


def _alone(stack: ExitStack, scale: float) -> Sides:
    n = scaled(3_000, scale)
    batcher = stack.enter_context(Batcher(_same))
    runner = stack.enter_context(asyncio.Runner())

    def direct() -> float:
        began_s = perf_counter()
        for k in range(n):
            _same([k])
        return (perf_counter() - began_s) / n * 1e6

    def batched() -> float:
        began_s = perf_counter()
        for k in range(n):
            batcher(k)
        return (perf_counter() - began_s) / n * 1e6

    async def answer(items: Sequence[int]) -> list[int]:
        return list(items)

    async def in_a_loop() -> float:
        async with AsyncBatcher(answer) as batch:
            began_s = perf_counter()
            for k in range(n):
                await batch(k)
            return (perf_counter() - began_s) / n * 1e6

    return {"direct call": direct, "Batcher": batched, "AsyncBatcher": lambda: runner.run(in_a_loop())}


def _by_all(call: Callable[[Any], object], item: Any, each: int) -> float:
    """Let 32 OS threads call; return calls per second."""
    gate = threading.Barrier(CALLERS + 1)

    def work() -> None:
        gate.wait()
        for _ in range(each):
            call(item)

    callers = [threading.Thread(target=work) for _ in range(CALLERS)]
    for caller in callers:
        caller.start()
    gate.wait()
    began_s = perf_counter()
    for caller in callers:
        caller.join()
    return CALLERS * each / (perf_counter() - began_s)


def _calls(stack: ExitStack, scale: float) -> Sides:
    each = scaled(40, scale)
    connection = threading.Lock()  # one connection: a second call waits for the first

    def ask(items: Sequence[int]) -> list[int]:
        with connection:
            # sleep: the round trip, which costs the same for one item and for many
            sleep(CALL_S)
        return list(items)

    batcher = stack.enter_context(Batcher(ask, items_max=CALLERS))
    return {
        "one call each": partial(_by_all, lambda item: ask([item]), 1, scaled(8, scale)),
        "Batcher": partial(_by_all, batcher, 1, each),
    }


def _matmul(stack: ExitStack, scale: float) -> Sides:
    numpy = part("numpy", "__version__")
    if numpy.startswith("not here"):
        return {"one matmul each": numpy, "Batcher, stacked": numpy}
    import numpy as np

    each = scaled(60, scale)
    belief = np.random.default_rng(1).random((MATRIX, MATRIX))

    def stacked(items: Sequence[Any]) -> list[Any]:
        together = np.stack(items)
        return list(np.matmul(together, together))

    batcher = stack.enter_context(Batcher(stacked, items_max=CALLERS))
    return {
        "one matmul each": partial(_by_all, lambda item: np.matmul(item, item), belief, each),
        "Batcher, stacked": partial(_by_all, batcher, belief, each),
    }


_BUILD: Final = "With the GIL a dict needs no lock for single reads and writes; that side is the ceiling, not an offer."

_CASES: Final = (
    Case(
        name="registry",
        what=f"{OS_THREADS} OS threads, 9 reads to 1 write, {KEYS:,} keys: operations",
        unit="per s",
        sides=lambda _, scale: _maps(scale, writes=True, sharded=False),
        bounds=(
            Bound(what="9 reads to 1 write, against one lock", side="Registry", against=("one lock",), at_least=3),
        ),
        remark=_BUILD,
    ),
    Case(
        name="registry_reads",
        what=f"{OS_THREADS} OS threads, only reads, {KEYS:,} keys",
        unit="per s",
        sides=lambda _, scale: _maps(scale, writes=False, sharded=False),
        bounds=(Bound(what="only reads, against one lock", side="Registry", against=("one lock",), at_least=3),),
        remark=_BUILD,
    ),
    Case(
        name="sharded_map",
        what=f"{OS_THREADS} OS threads, 9 reads to 1 write, {KEYS:,} keys: operations",
        unit="per s",
        sides=lambda _, scale: _maps(scale, writes=True, sharded=True),
        bounds=(Bound(what="against one lock", side="ShardedMap", against=("one lock",), at_least=1),),
        remark=_BUILD,
    ),
    Case(
        name="batcher",
        what="a caller who is alone: one call, by the batcher and without it",
        unit="us",
        sides=_alone,
        bounds=tuple(
            Bound(what=f"{side}: added for one caller, us", side=side, at_most=100)
            for side in ("Batcher", "AsyncBatcher")
        ),
    ),
    Case(
        name="batch_calls",
        what=f"{CALLERS} callers, one connection, a round trip of 1 ms",
        unit="per s",
        sides=_calls,
        rounds=3,
    ),
    Case(
        name="batch_matmul",
        what=f"{CALLERS} callers in OS threads, matrices of {MATRIX} × {MATRIX}",
        unit="per s",
        sides=_matmul,
        rounds=3,
    ),
)
CASES: Final = {case.name: case for case in _CASES}
