"""One reference to an array in shared memory, and how it is found again from its JSON form.

    form ─► its pool is in this process ─► one more lease on the block
         └► another process has it ──────► its segment is opened and the block held (`array_holds`)

What numpy refers to is the lease, not the reference: releasing a reference never pulls memory away from a view.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

from sennit.errors import ArrayReleased, UsageError
from sennit.sync.array_blocks import Block
from sennit.sync.array_forms import Form, Place, form_in, need_numpy
from sennit.sync.array_holds import gone, hold
from sennit.sync.array_segments import Lease, need_linux

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

__all__ = ["SharedArray", "from_form", "ndarray_of", "open_form", "owners", "released_at_end"]


class Owner(Protocol):
    """The pool an array is from, seen from here."""

    def leave_handle(self, block: Block, generation: int) -> None:
        """A reference was released; from a finalizer."""

    def tell(self, block: Block) -> None:
        """Other processes are about to learn where a block is."""

    def open_here(self, place: Place, *, writable: bool, handle: bool) -> tuple[Lease, Block]:
        """Return one more lease on a block of this process."""


owners: Final[weakref.WeakValueDictionary[str, Owner]] = weakref.WeakValueDictionary()
"""Token of a segment → the pool of this process that has made it."""

_opened: ContextVar[list[SharedArray] | None] = ContextVar("sennit-shared-arrays", default=None)


class SharedArray:
    """One reference to an array in shared memory; `array` is the numpy array.

    Made by `SharedArrayPool.acquire`, by a task that got one as argument, and by unpickling. Released by `release`, at
    the end of `with`, at the end of the task that got it, or when it is garbage. Not for use by a forked child.
    """

    __slots__ = ("__weakref__", "_array", "_block", "_form", "_lease", "_pid", "_pool", "_releasing")

    def __init__(self, form: Form, lease: Lease | None, pool: Owner | None, block: Block | None) -> None:
        self._form = form
        self._lease = lease
        self._array: Array | None = None
        self._pool = pool
        self._block = block
        self._pid = os.getpid()
        self._releasing = threading.Lock()

    # ------------------------------------------------------------ what it is

    @property
    def shape(self) -> tuple[int, ...]:
        """Its lengths."""
        return self._form.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Its dtype, in the byte order it was acquired with."""
        return self._form.numpy_dtype()

    @property
    def is_readonly(self) -> bool:
        """Whether `array` cannot be written to."""
        return self._form.readonly

    @property
    def is_released(self) -> bool:
        """Whether `release` was called."""
        return self._releasing.locked()

    @property
    def array(self) -> Array:
        """The numpy array: the shared memory itself.

        Raises:
            ArrayReleased: it was released.
            UsageError: this process is a forked child of the one that has it.
        """
        self._check_usable("used")
        array = self._array
        if array is None:
            lease = self._lease
            if lease is None and self._form.place is not None:
                self._check_usable("used")  # another OS thread has just released it
            self._array = array = ndarray_of(self._form, lease)
            if self.is_released:  # meanwhile
                self._array = None
        return array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:  # noqa: FBT001 - as numpy calls it
        np = need_numpy()
        found: Array = self.array
        if dtype is not None and np.dtype(dtype) != found.dtype:
            if copy is False:
                raise ValueError("another dtype needs a copy")
            return found.astype(dtype)
        return found.copy() if copy else found

    def __getitem__(self, key: Any) -> Any:
        return self.array[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        self.array[key] = value

    def __repr__(self) -> str:
        state = "released" if self.is_released else "read-only" if self.is_readonly else "writable"
        return f"<SharedArray shape={self.shape} dtype={self.dtype} {state}>"

    # ------------------------------------------------------------ references

    def readonly(self) -> SharedArray:
        """Return one more reference through which nobody can write, here or in a task that gets it; release both."""
        return self._another(readonly=True)

    def reference(self) -> SharedArray:
        """Return one more reference with the same rights; the memory is kept until both are released."""
        return self._another(readonly=self.is_readonly)

    def _another(self, *, readonly: bool) -> SharedArray:
        self._check_usable("used")
        form = self._told()
        return _open(Form(form.dtype, form.shape, form.place, readonly=readonly), collect=False)

    def release(self) -> None:
        """Give this reference back. The memory is free when this was the last, and no numpy view refers to it.

        Raises:
            ArrayReleased: this reference was released before.
            UsageError: this process is a forked child of the one that has it.
        """
        self._check_process()
        if not self._releasing.acquire(blocking=False):
            raise ArrayReleased(
                f"{self!r} was released twice",
                why="a second release could take it from whoever has the memory now; nothing was done",
                fix="release each reference once: use `with`, and `reference()` for one more",
            )
        self._drop()

    def _drop(self) -> None:
        pool, block, place = self._pool, self._block, self._form.place
        if pool is not None and block is not None and place is not None:
            pool.leave_handle(block, place.generation)
        self._lease = None
        self._array = None

    def __enter__(self) -> Self:
        self._check_usable("used")
        return self

    def __exit__(self, *_: object) -> None:
        if not self.is_released:
            self.release()

    def __del__(self) -> None:
        with suppress(AttributeError):  # half made
            if self._pid == os.getpid() and self._releasing.acquire(blocking=False):
                self._drop()

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            raise UsageError(
                f"{self!r} belongs to process {self._pid}, of which this is a forked child",
                why="a fork copies the address and not the count: the memory may be used again at any moment",
                fix="pass it as an argument of a task or of a worker process (it pickles)",
            )

    def _check_usable(self, how: str) -> None:
        self._check_process()
        if self.is_released:
            raise ArrayReleased(
                f"{self!r} was {how} after its release",
                why="its memory may hold another array by now",
                fix="release it when all is done, or take a `reference()` first",
            )

    # ------------------------------------------------------------ to other processes

    def plain(self) -> dict[str, Any]:
        """Return its JSON form; whoever opens it before the owner releases it gets the same memory.

        Raises:
            ArrayReleased: this process owns it and has released it.
        """
        if self._pool is not None:
            self._check_usable("handed on")
        return self._told().plain()

    def _told(self) -> Form:
        if self._pool is not None and self._block is not None:
            self._pool.tell(self._block)
        return self._form

    def __reduce__(self) -> tuple[Callable[[dict[str, Any]], SharedArray], tuple[dict[str, Any]]]:
        return open_form, (self.plain(),)


# ------------------------------------------------------------ from JSON


def open_form(value: dict[str, Any]) -> SharedArray:
    """Return a reference to the array of a JSON form.

    Raises:
        ArrayGone: its memory is gone, was released, or is on another machine.
        PayloadError: this is no form.
        SharedMemoryFull: it cannot be mapped.
        UsageError: this is not Linux, or numpy is not installed.
    """
    return _open(form_in(value), collect=True)


def from_form(wanted: type, value: dict[str, Any]) -> SharedArray | Array:
    """Return what an annotation asks for: a reference, or a numpy array that keeps the memory for as long as it is there.

    Raises:
        NotImplementedError: it asks for something else.
        what `open_form` raises.
    """
    if wanted is SharedArray:
        return open_form(value)
    np = need_numpy()
    if not issubclass(wanted, np.ndarray):
        raise NotImplementedError(f"a shared array is a SharedArray or a numpy.ndarray, and no {wanted.__qualname__}")
    form = form_in(value)
    return ndarray_of(form, None if form.place is None else _lease(form.place, writable=not form.readonly))


def ndarray_of(form: Form, lease: Lease | None) -> Array:
    """Return the numpy array on a lease; without one, an array without elements."""
    np = need_numpy()
    found: Array
    if lease is None:
        found = np.zeros(form.shape, form.numpy_dtype())
        found.flags.writeable = not form.readonly
        return found
    found = np.asarray(lease).view(form.numpy_dtype()).reshape(form.shape)
    return found


@contextmanager
def released_at_end() -> Iterator[list[SharedArray]]:
    """Release at the end what is opened from JSON meanwhile, in this context."""
    opened: list[SharedArray] = []
    token = _opened.set(opened)
    try:
        yield opened
    finally:
        _opened.reset(token)
        for array in opened:
            if not array.is_released:
                array.release()


def _open(form: Form, *, collect: bool) -> SharedArray:
    lease: Lease | None = None
    owner: Owner | None = None
    block: Block | None = None
    if form.place is not None:
        owner = _owner_here(form.place)
        if owner is None:
            lease = _lease(form.place, writable=not form.readonly)
        else:
            lease, block = owner.open_here(form.place, writable=not form.readonly, handle=True)
    array = SharedArray(form, lease, owner, block)
    opened = _opened.get()
    if collect and opened is not None:
        opened.append(array)
    return array


def _lease(place: Place, *, writable: bool) -> Lease:
    need_numpy()
    need_linux()
    owner = _owner_here(place)
    if owner is None:
        return hold(place, writable=writable)
    return owner.open_here(place, writable=writable, handle=False)[0]


def _owner_here(place: Place) -> Owner | None:
    if place.pid != os.getpid():
        return None
    owner = owners.get(place.token)
    if owner is None:
        raise gone("a shared array of this process cannot be opened: its memory is gone", "its pool was closed")
    return owner
