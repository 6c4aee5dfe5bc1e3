"""NumPy arrays in shared memory, from a pool with a bound, counted across processes and handed to tasks without a copy.

    pool.acquire(shape, dtype) ─► SharedArray ─► task.submit(array): 250 bytes in the store
         ▲  waits when full          .array          │ the body, in whatever process of this host, gets
         │                                           ▼ the same memory: as SharedArray, or as np.ndarray
         └── last reference gone, here and there ─ released, or the holder has died (also by kill -9)

Who acquires an array keeps it until the result is there: `with pool.acquire(...) as a: task.submit(a).result()`. After
its release nobody who was told of it gets in any more (`ArrayGone`), and its memory is used again when the last process
that has it has let go. What a numpy view still refers to is in use, too: a view never shows somebody else's array.

Its memory is gone when its owner (the process of the pool) has ended and the last holder has let go; a holder may go on
after the owner's death. What must survive the owner is passed as a plain numpy array, which becomes a file
(`array_files`). Linux only, see `array_segments`.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Self

from sennit.errors import ArrayInvalid, ArraysExhausted, SettingsError, SharedMemoryFull, UsageError
from sennit.sync.array_blocks import Block, Blocks, SharedArrayStatistics
from sennit.sync.array_forms import Form, Place, checked, need_numpy, this_boot
from sennit.sync.array_holds import Section, gone
from sennit.sync.array_line import Waiter, site, wake
from sennit.sync.array_segments import Lease, Segment, need_linux, page_round
from sennit.sync.array_shared import SharedArray, open_form, owners
from sennit.sync.array_waits import Watch
from sennit.sync.forks import drop_after_fork

__all__ = ["SharedArray", "SharedArrayPool", "SharedArrayStatistics", "open_form"]

_TO_THREAD_BYTES_MIN: Final = 1 << 20
"""From this size on clearing an array takes longer than an event loop should stand still for it, some 0.1 ms."""


class SharedArrayPool:
    """A bounded pool of arrays in shared memory. For all OS threads and event loops of this process.

    Memory is counted in whole pages and allocated when an array is acquired; a released block stays warm for the next
    array of about its size. For very many small arrays acquire one, and give each its row.

    Args:
        bytes_max: of all arrays together, in use or kept warm.
        name: in /proc/PID/maps and in messages.

    Raises:
        SettingsError: `bytes_max` is less than a page.
        UsageError: this is not Linux, or numpy is not installed.
    """

    def __init__(self, *, bytes_max: int, name: str = "arrays") -> None:
        need_linux()
        need_numpy()
        if bytes_max < page_round(1):
            raise SettingsError(f"bytes_max={bytes_max} is less than one page of {page_round(1)} bytes")
        self.bytes_max = bytes_max
        self.name = name
        self._pid = os.getpid()
        self._section: Section[tuple[Block, int | None]] = Section(self._settle)
        self._blocks = Blocks(name, bytes_max, self, owners)
        self._waiters: deque[Waiter] = deque()
        self._watch = Watch(self._watched, self._look, self._watch_failed, self._section)
        self._closed = False
        drop_after_fork(self)

    # ------------------------------------------------------------ acquiring

    def acquire(
        self,
        shape: int | Sequence[int],
        dtype: Any = "float64",
        *,
        zeroed: bool = True,
        timeout_s: float | None = None,
    ) -> SharedArray:
        """Return an array; wait for room while the pool is exhausted, in the order of the calls.

        Args:
            shape: its lengths; 0 among them makes an array without memory.
            dtype: of its elements; byte order, fixed-size text and structured ones are kept.
            zeroed: False leaves in it what the array before it in this pool held, and saves the time to clear it.
            timeout_s: how long to wait; None for as long as it takes, 0 not at all.

        Raises:
            ArraysExhausted: there was no room in time; says who holds what.
            ArrayInvalid: no such array can be in this pool.
            SharedMemoryFull: the system refuses the memory.
            UsageError: the pool is closed, or belongs to the parent of this forked process.
        """
        form, nbytes = self._form(shape, dtype)
        if not nbytes:
            return SharedArray(form, None, self, None)
        lease = self._take(nbytes)
        if lease is None:
            # A bare lock: a finalizer wakes us, too, and may run inside an Event's own code, with the Event's lock held.
            gate = threading.Lock()
            gate.acquire()
            with self._waiting(nbytes, gate.release, timeout_s) as waiter:
                gate.acquire(timeout=-1 if timeout_s is None else min(max(0.0, timeout_s), threading.TIMEOUT_MAX))
            lease = waiter.granted()
        _prepare(lease, zeroed=zeroed)
        return self._handle(form, lease)

    async def acquire_async(
        self,
        shape: int | Sequence[int],
        dtype: Any = "float64",
        *,
        zeroed: bool = True,
        timeout_s: float | None = None,
    ) -> SharedArray:
        """Do as `acquire` does, without blocking the event loop."""
        form, nbytes = self._form(shape, dtype)
        if not nbytes:
            return SharedArray(form, None, self, None)
        lease = self._take(nbytes)
        if lease is None:
            loop = asyncio.get_running_loop()
            woken: asyncio.Future[None] = loop.create_future()
            with self._waiting(nbytes, lambda: wake(loop, woken), timeout_s) as waiter:
                await asyncio.wait((woken,), timeout=timeout_s)
            lease = waiter.granted()
        if nbytes >= _TO_THREAD_BYTES_MIN:
            await asyncio.to_thread(_prepare, lease, zeroed=zeroed)
        else:
            _prepare(lease, zeroed=zeroed)
        return self._handle(form, lease)

    def share(self, values: Any, *, timeout_s: float | None = None) -> SharedArray:
        """Return a shared array with the values of any array: the one copy there is.

        Raises:
            what `acquire` raises.
        """
        array = need_numpy().asarray(values)
        shared = self.acquire(array.shape, array.dtype, zeroed=False, timeout_s=timeout_s)
        shared.array[...] = array
        return shared

    def statistics(self) -> SharedArrayStatistics:
        """Return the figures of this moment."""
        with self._section.lock:
            found = self._blocks.statistics(waiting=len(self._waiters))
        self._section.settle()
        return found

    def holders(self) -> tuple[str, ...]:
        """Return a line for each that holds arrays of this pool, the largest first."""
        with self._section.lock:
            self._blocks.sweep()
            found = self._blocks.holders()
        self._section.settle()
        return found

    def close(self) -> None:
        """Refuse who comes and who waits, and give back what is free; arrays in use stay until they are released."""
        with self._section.lock:
            self._closed = True
            self._fail_waiters(_closed(self.name))
            self._blocks.close_free()
            self._watch.poke()
        self._section.settle()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------ one acquire

    def _form(self, shape: int | Sequence[int], dtype: Any) -> tuple[Form, int]:
        if self._pid != os.getpid():
            raise UsageError(
                f"the pool {self.name!r} belongs to process {self._pid}, of which this is a forked child",
                fix="make a pool here, or pass arrays of the parent as arguments",
            )
        lengths, _, nbytes, coded = checked(shape, dtype)
        if page_round(nbytes) > self.bytes_max:
            raise ArrayInvalid(
                f"an array of {nbytes} bytes does not fit into a pool of bytes_max={self.bytes_max}",
                why="no release could ever make room for it",
                fix="use a smaller array, or raise bytes_max",
            )
        return Form(coded, lengths), nbytes

    def _take(self, nbytes: int) -> Lease | None:
        """Return a lease if there is room, and nobody waits already."""
        try:
            with self._section.lock:
                if self._closed:
                    raise _closed(self.name)
                return None if self._waiters else self._blocks.take(nbytes, site(__file__))
        finally:
            self._section.settle()

    @contextmanager
    def _waiting(self, nbytes: int, awaken: Callable[[], None], timeout_s: float | None) -> Iterator[Waiter]:
        """Stand in line inside of this, and sleep there until `wake` is called."""
        waiter = Waiter(nbytes, site(__file__), awaken)
        with self._section.lock:
            if self._closed:
                raise _closed(self.name)
            self._waiters.append(waiter)
            self._serve()  # what was let go of since `_take`
        self._section.settle()
        try:
            yield waiter
        except BaseException:
            self._leave_line(waiter)
            waiter.lease = None  # the traceback would keep it
            raise
        self._leave_line(waiter)
        if not waiter.is_served:
            waiter.error = ArraysExhausted(
                bytes_wanted=nbytes, bytes_max=self.bytes_max, timeout_s=timeout_s or 0, holders=self.holders()
            )

    def _leave_line(self, waiter: Waiter) -> None:
        with self._section.lock:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
                self._serve()  # it may have been in the way of a smaller one
        self._section.settle()

    def _serve(self) -> None:
        """With the lock held: give to those that wait, in their order, and see that news from elsewhere comes in."""
        while self._waiters:
            waiter = self._waiters[0]
            try:
                waiter.lease = self._blocks.take(waiter.nbytes, waiter.site)
            except SharedMemoryFull as error:
                waiter.error = error
            if not waiter.is_served:
                break
            self._waiters.popleft()
            waiter.wake()
        self._watch.poke()

    def _fail_waiters(self, error: Exception) -> None:
        """With the lock held."""
        while self._waiters:
            waiter = self._waiters.popleft()
            waiter.error = error
            waiter.wake()

    def _handle(self, form: Form, lease: Lease) -> SharedArray:
        block: Block = lease.block
        place = self._place(block, lease)
        with self._section.lock:
            block.handles += 1
        self._section.settle()
        return SharedArray(Form(form.dtype, form.shape, place), lease, self, block)

    def _place(self, block: Block, lease: Lease) -> Place:
        segment = block.segment
        return Place(
            pid=self._pid,
            fd=segment.descriptor,
            ino=segment.inode,
            token=segment.token,
            block=block.index,
            generation=segment.generation(block.index),
            offset=segment.offset(block.index),
            size=lease.nbytes,
            boot=this_boot(),
        )

    # ------------------------------------------------------------ references and leases come and go

    def lent(self, lease: Lease) -> None:
        """With the lock held: a lease was made."""
        self._blocks.lent(lease)

    def come_back(self, block: Block) -> None:
        """A lease is gone; from a finalizer."""
        self._section.leave((block, None))

    def leave_handle(self, block: Block, generation: int) -> None:
        """A reference was released; from a finalizer, too."""
        self._section.leave((block, generation))

    def tell(self, block: Block) -> None:
        """Other processes are about to learn where a block is."""
        with self._section.lock:
            block.is_told = True
        self._section.settle()

    def open_here(self, place: Place, *, writable: bool, handle: bool) -> tuple[Lease, Block]:
        """Return one more lease on a block of this process.

        Raises:
            ArrayGone: it was released.
        """
        try:
            with self._section.lock:
                block = self._blocks.taken.get((place.token, place.block))
                if block is None or block.segment.generation(place.block) != place.generation:
                    raise gone(
                        "a shared array of this process cannot be opened: it was released",
                        "its memory may hold somebody else's array by now",
                    )
                lease = Lease(self, block, block.segment.mapping, place.offset, place.size, writable=writable)
                block.handles += handle
                return lease, block
        finally:
            self._section.settle()

    def _settle(self, what: tuple[Block, int | None]) -> None:
        """With the lock held: what finalizers have left, a reference of some generation or a lease."""
        block, generation = what
        if generation is not None:
            self._blocks.handle_gone(block, generation)
        else:
            self._blocks.lease_gone(block)
            self._serve()
            if self._closed:
                self._blocks.close_free()

    # ------------------------------------------------------------ other processes let go

    def _watched(self) -> Iterable[Segment]:
        """With the lock held: segments of which others hold blocks, while somebody here waits for one."""
        return {block.segment for block in self._blocks.away} if self._waiters else ()

    def _look(self) -> bool:
        with self._section.lock:
            is_back = self._blocks.sweep()
            if is_back:
                self._serve()
        self._section.settle()
        return is_back

    def _watch_failed(self, error: OSError) -> None:
        """With the lock held."""
        self._fail_waiters(SharedMemoryFull(0, f"waiting for other processes: {error.strerror or error}"))

    def drop_after_fork(self) -> None:
        """In a forked child: close what would keep the memory of its parent."""
        self._section = Section(self._settle)
        self._waiters.clear()
        self._watch.drop_after_fork()
        for segment in self._blocks.segments.values():
            segment.forget()


def _prepare(lease: Lease, *, zeroed: bool) -> None:
    """Have memory behind a block, cleared if that was asked for."""
    block: Block = lease.block
    need_bytes = page_round(lease.nbytes)
    if block.backed_bytes < need_bytes:
        try:
            block.segment.commit(block.index, need_bytes)
        except SharedMemoryFull:
            block.is_lost = True
            raise
        block.backed_bytes = need_bytes
    if zeroed and block.is_used:
        need_numpy().asarray(lease).fill(0)


def _closed(name: str) -> UsageError:
    return UsageError(f"the pool {name!r} of shared arrays is closed", fix="acquire before close()")
