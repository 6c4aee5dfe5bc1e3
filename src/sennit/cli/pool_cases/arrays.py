"""An array of 40 MB on its way to other processes: by pickling, by the standard library's shared memory, by ours.

array_send     until the other process has it and has looked at both ends of it
array_read     until it has summed it up: reading costs the same, however it came
array_memory   what four processes that have read it hold of it, together with the one it came from (PSS)
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from time import perf_counter
from typing import Any, Final

from sennit.cli.pool_cases.measure import Bound, Case, Side, Sides
from sennit.cli.pool_cases.processes import start_context
from sennit.cli.pool_cases.rivals import part

ARRAY_BYTES: Final = 40_000_000
READERS: Final = 4
OURS: Final = "SharedArray"
COPIED: Final = "SharedArray, with the copy into it"
PICKLED: Final = "pickled through a pipe"
STANDARD: Final = "multiprocessing.shared_memory"


# ---------------------------------------------------------------- the other process


def serve(connection: Connection) -> None:
    """Do what comes through the pipe: look at an array's ends, sum it up, let go of it; answer when it is done."""
    kept: list[Any] = []
    while (order := connection.recv()) is not None:
        what, thing = order
        if what == "drop":
            kept.clear()
            give_back_memory()
            connection.send(0.0)
            continue
        arrays = [_opened(one, kept) for one in (thing if isinstance(thing, list) else [thing])]
        read = (one.flat[0] + one.flat[-1] if what == "look" else one.sum() for one in arrays)
        connection.send(float(sum(read)))
        del arrays, read, thing, order


def give_back_memory() -> None:
    """Return freed memory to the system, so that what is measured is what is held; glibc keeps some of it otherwise."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _opened(thing: Any, kept: list[Any]) -> Any:
    """Return the numpy array of what came, and keep it."""
    if isinstance(thing, str):
        import numpy as np

        memory = SharedMemory(thing)
        array = np.ndarray(memory.size // 8, dtype="float64", buffer=memory.buf)
        kept += [array, memory]  # in this order: the memory is closed after the array is gone
        return array
    kept.append(thing)
    return getattr(thing, "array", thing)


class Reader:
    """A process that serves, and our end of its pipe."""

    def __init__(self, stack: ExitStack) -> None:
        context = start_context()
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=serve, args=(other,), daemon=True)
        self._process.start()
        other.close()
        stack.callback(self._end)

    @property
    def pid(self) -> int:
        """Its id."""
        return self._process.pid or 0

    def order(self, what: str, thing: Any = None) -> None:
        """Send something, without waiting for the answer."""
        self._pipe.send((what, thing))

    def answer(self) -> float:
        """Wait for the answer."""
        return float(self._pipe.recv())

    def ask(self, what: str, thing: Any = None) -> float:
        """Send something and wait for the answer."""
        self.order(what, thing)
        return self.answer()

    def _end(self) -> None:
        self._pipe.send(None)
        self._process.join()
        self._pipe.close()


# ---------------------------------------------------------------- cases


def _missing() -> dict[str, str] | None:
    why = part("numpy", "__version__")
    return dict.fromkeys((OURS, PICKLED, STANDARD), why) if why.startswith("not here") else None


def _numbers(n_bytes: int) -> Any:
    import numpy as np

    return np.arange(n_bytes // 8, dtype="float64")


@contextmanager
def in_standard(values: Any) -> Iterator[str]:
    """Put values into the standard library's shared memory; yield its name."""
    import numpy as np

    memory = SharedMemory(create=True, size=values.nbytes)
    try:
        array = np.ndarray(values.shape, dtype=values.dtype, buffer=memory.buf)
        array[...] = values
        del array, values
        yield memory.name
    finally:
        memory.close()
        memory.unlink()


def pool_of(values: Any) -> Any:
    """Return a pool of ours that holds two such arrays."""
    from sennit.sync.arrays import SharedArrayPool

    return SharedArrayPool(bytes_max=2 * values.nbytes + 65_536)


def _send(stack: ExitStack, scale: float, *, what: str) -> Sides:
    if missing := _missing():
        return missing
    values = _numbers(round(ARRAY_BYTES * scale))
    pool = stack.enter_context(pool_of(values))
    shared = stack.enter_context(pool.share(values))
    name = stack.enter_context(in_standard(values))
    reader = Reader(stack)

    def side(thing: Callable[[], Any]) -> Side:
        def milliseconds() -> float:
            began_s = perf_counter()
            reader.ask(what, thing())
            took_s = perf_counter() - began_s
            reader.ask("drop")
            return took_s * 1e3

        milliseconds()
        return milliseconds

    return {
        OURS: side(lambda: shared),
        COPIED: side(lambda: pool.share(values)),
        STANDARD: side(lambda: name),
        PICKLED: side(lambda: values),
    }


def pss_bytes(pids: Sequence[int | str]) -> int:
    """Return the memory of some processes; what they share is counted once (PSS, proc_pid_smaps(5))."""
    total = 0
    for pid in pids:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


def _memory(stack: ExitStack, scale: float) -> Sides:
    if missing := _missing():
        return missing
    n_bytes = round(ARRAY_BYTES * scale)
    readers = [Reader(stack) for _ in range(READERS)]
    everybody: list[int | str] = ["self", *(reader.pid for reader in readers)]

    def read_by_all(thing: Any) -> None:
        for reader in readers:
            reader.ask("sum", thing)

    def drop() -> None:
        for reader in readers:
            reader.ask("drop")

    def side(hold: Callable[[ExitStack], Any]) -> Side:
        def times_the_array() -> float:
            give_back_memory()
            before = pss_bytes(everybody)
            with ExitStack() as inner:
                inner.callback(drop)
                thing = hold(inner)  # kept, as by the one who made it
                read_by_all(thing)
                return (pss_bytes(everybody) - before) / n_bytes

        times_the_array()
        return times_the_array

    def ours(inner: ExitStack) -> Any:
        pool = inner.enter_context(pool_of(values := _numbers(n_bytes)))
        return inner.enter_context(pool.share(values))

    return {
        OURS: side(ours),
        STANDARD: side(lambda inner: inner.enter_context(in_standard(_numbers(n_bytes)))),
        PICKLED: side(lambda _: _numbers(n_bytes)),
    }


_CASES: Final = (
    Case(
        name="array_send",
        what="40 MB to another process, until it has looked at both ends",
        unit="ms",
        sides=partial(_send, what="look"),
        bounds=(Bound(what="pickling: time against ours", side=PICKLED, against=(OURS,), at_least=100),),
        remark="Ours and shared_memory hand over what is in shared memory already; the copy into it is a line of its own.",
    ),
    Case(
        name="array_read",
        what="the same, until it has summed it up",
        unit="ms",
        sides=partial(_send, what="sum"),
    ),
    Case(
        name="array_memory",
        what=f"memory of {READERS} processes that have read it and of the one it came from",
        unit="× the array",
        sides=_memory,
        rounds=3,
        bounds=(Bound(what="1 ×, however many processes", side=OURS, at_most=1.2),),
    ),
)
CASES: Final = {case.name: case for case in _CASES}
