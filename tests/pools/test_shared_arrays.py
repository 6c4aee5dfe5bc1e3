"""Shared arrays in one process, and what another one sees of them."""

from __future__ import annotations

import copy
import gc
import pickle
import re
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sennit.errors import (
    ArrayGone,
    ArrayInvalid,
    ArrayReleased,
    ArraysExhausted,
    PayloadError,
    SennitError,
    SettingsError,
    SharedMemoryFull,
)
from sennit.sync import array_segments
from sennit.sync.arrays import SharedArray, SharedArrayPool, open_form
from tests.crash.nursery import Nursery
from tests.pools.array_child import Child, ChildError

PAGE = 4096
MIB = 1 << 20


@pytest.fixture(scope="module")
def reader(nursery: Nursery) -> Iterator[Child]:
    """One other process for all tests here that do not kill it."""
    with closing(Child(nursery)) as child:
        yield child


# ---------------------------------------------------------------- the four faults of an earlier version


def test_an_array_is_the_same_memory_in_another_process(reader: Child) -> None:
    with SharedArrayPool(bytes_max=MIB) as pool, pool.acquire((4, 4)) as array:
        reader.run("a = open_form(given); a[1, 2] = 42.0; a.release()", array.plain())

        assert array[1, 2] == 42.0


def test_an_exhausted_pool_never_hands_out_a_copy() -> None:
    with SharedArrayPool(bytes_max=2 * PAGE) as pool:
        held = [pool.acquire(512), pool.acquire(512)]

        with pytest.raises(
            ArraysExhausted, match=r"no room for 8 bytes within 0 s in a pool of bytes_max=8192"
        ) as caught:
            pool.acquire(1, timeout_s=0)

        (line,) = caught.value.holders
        assert re.fullmatch(r"8192 bytes in 2 arrays: this process, acquired at test_shared_arrays\.py:\d+", line)
        assert pool.statistics().bytes_memory == 2 * PAGE
        assert len(held) == 2


def test_a_block_that_is_used_again_is_zero_unless_declared_dirty() -> None:
    with SharedArrayPool(bytes_max=PAGE) as pool:
        with pool.acquire(512) as first:
            first[:] = 7.0
        with pool.acquire(512, zeroed=False) as dirty:
            was = dirty.array.copy()
        with pool.acquire(512) as clean:
            assert not clean.array.any()

        assert (was == 7.0).all()  # the same block, so that the zeros above are work done


def test_a_second_release_is_an_error_and_takes_the_array_from_nobody() -> None:
    with SharedArrayPool(bytes_max=2 * PAGE) as pool:
        first = pool.acquire(512)
        first.release()
        second = pool.acquire(512)
        second[:] = 2.0

        with pytest.raises(ArrayReleased, match="released twice"):
            first.release()

        third = pool.acquire(512)
        third[:] = 3.0
        assert (second.array == 2.0).all()


# ---------------------------------------------------------------- what can be acquired


@pytest.mark.parametrize(
    ("shape", "dtype", "says"),
    [
        ((-1, 4), "f8", "negative"),
        (4, object, "cannot be shared"),
        (4, [("a", "f8"), ("b", object)], "cannot be shared"),
        ((1 << 40, 1 << 40), "f8", "more than there are addresses"),
        ((0, 1 << 60), "f8", "more than there are addresses"),
        (MIB, "f8", "does not fit into a pool"),
        ((1,) * 40, "f8", "40 dimensions"),
        ((1.5,), "f8", "is no array"),
        ("23", "f8", "is no array"),
        (4, "no such type", "is no array"),
    ],
)
def test_what_cannot_be_is_refused_at_once(shape: object, dtype: object, says: str) -> None:
    with SharedArrayPool(bytes_max=MIB) as pool:
        with pytest.raises(ArrayInvalid, match=says):
            pool.acquire(shape, dtype)  # type: ignore[arg-type]

        assert pool.statistics().arrays_held == 0


@pytest.mark.parametrize(
    ("values", "read"),
    [
        (np.array([1.5, -2.0], ">f8"), "a.array.tolist()"),
        (np.array([[1, 2], [3, 4]], "<u2"), "a.array.tolist()"),
        (np.array(7), "a.array.item()"),
        (np.array([b"agent", b"x"], "S5"), "[t.decode() for t in a.array.tolist()]"),
        (np.array(["größe", "x"], "U5"), "a.array.tolist()"),
        (np.array(["2026-01-02"], "M8[D]"), "[str(t) for t in a.array]"),
        (
            np.array([(1, [2.0, 3.0])], [("n", ">i2"), ("v", "<f4", (2,))]),
            "[a.array['n'].tolist(), a.array['v'].tolist()]",
        ),
        (np.array([(1, 2.0)], np.dtype([("n", "i1"), ("v", "f8")], align=True)), "a.array['v'].tolist()"),
        (np.array([True, False]), "a.array.tolist()"),
    ],
    ids=lambda value: str(getattr(value, "dtype", "")),
)
def test_dtype_byte_order_and_values_are_the_same_elsewhere(reader: Child, values: np.ndarray, read: str) -> None:
    with SharedArrayPool(bytes_max=MIB) as pool, pool.share(values) as a:
        there = reader.run(
            f"a = open_form(given); out = [{read}, a.array.dtype.str, a.array.dtype == a.dtype]; del a", a.plain()
        )

        assert there == [eval(read, {"a": a}), values.dtype.str, True]
        assert a.array.dtype == values.dtype
        assert a.array.flags.aligned


@pytest.mark.parametrize("shape", [0, (3, 0), (5, 0, 3)])
def test_an_array_without_elements_takes_no_memory(reader: Child, shape: int | tuple[int, ...]) -> None:
    with SharedArrayPool(bytes_max=PAGE) as pool, pool.acquire(PAGE // 8), pool.acquire(shape) as array:
        there = reader.run("out = open_form(given).array.shape", array.plain())

        assert tuple(there) == array.array.shape == array.shape
        with pytest.raises(ValueError, match="read-only"):
            array.readonly().array[...] = 1


def test_a_pool_of_nothing_is_refused() -> None:
    with pytest.raises(SettingsError, match="less than one page"):
        SharedArrayPool(bytes_max=100)


def test_memory_is_counted_in_pages_and_never_over_the_bound() -> None:
    with SharedArrayPool(bytes_max=10 * PAGE) as pool:
        small = [pool.acquire(1) for _ in range(8)]
        for array in small:
            array.release()
        assert pool.statistics().bytes_memory == 8 * PAGE  # kept warm

        with pool.acquire(10 * PAGE, "u1") as whole:  # and given back when a larger one needs the room
            assert not whole.array.any()
            assert pool.statistics().bytes_memory == 10 * PAGE


@given(st.lists(st.tuples(st.integers(1, 9 * PAGE), st.booleans(), st.integers(0, 5)), max_size=40))
@settings(max_examples=40)
def test_any_sizes_in_any_order_stay_apart_and_within_the_bound(steps: list[tuple[int, bool, int]]) -> None:
    """The model: the arrays that are held, each full of its own number."""
    held: list[tuple[int, SharedArray]] = []
    with SharedArrayPool(bytes_max=20 * PAGE) as pool:
        for n, (size_bytes, zeroed, release) in enumerate(steps):
            fits = sum(-(-array.array.nbytes // PAGE) for _, array in held) + -(-size_bytes // PAGE) <= 20
            try:
                array = pool.acquire(size_bytes, "u1", zeroed=zeroed, timeout_s=0)
            except ArraysExhausted:
                # What is held may lie in blocks that were larger before: a block is counted whole.
                assert not fits or pool.statistics().bytes_held > sum(a.array.nbytes for _, a in held)
            else:
                assert not (zeroed and array.array.any())
                array[:] = n % 251
                held.append((n % 251, array))
            assert pool.statistics().bytes_memory <= 20 * PAGE
            assert all((array.array == number).all() for number, array in held)
            if held and release < len(held):
                held.pop(release)[1].release()
        for _, array in held:
            array.release()
        pool.acquire(20 * PAGE, "u1", timeout_s=0).release()


# ---------------------------------------------------------------- references


def test_a_view_keeps_the_memory_after_the_release() -> None:
    with SharedArrayPool(bytes_max=PAGE) as pool:
        array = pool.acquire(512)
        view = array.array[10:20]
        array.release()

        with pytest.raises(ArraysExhausted, match="numpy views of it are still there"):
            pool.acquire(512, timeout_s=0)
        view[:] = 1.0
        del view
        pool.acquire(512, timeout_s=0).release()


def test_what_is_forgotten_is_released() -> None:
    with SharedArrayPool(bytes_max=PAGE) as pool:
        array = pool.acquire(512)
        array[0] = 1.0
        del array
        gc.collect()

        pool.acquire(512, timeout_s=0).release()


def test_each_use_after_the_release_is_an_error() -> None:
    with SharedArrayPool(bytes_max=PAGE) as pool:
        array = pool.acquire(512)
        array.release()

        for use in (
            lambda: array.array,
            array.readonly,
            array.reference,
            lambda: array[0],
            lambda: pickle.dumps(array),
        ):
            with pytest.raises(ArrayReleased, match="after its release"):
                use()
        with pytest.raises(ArrayReleased), array:
            pass


def test_the_memory_is_free_when_the_last_reference_is_released() -> None:
    with SharedArrayPool(bytes_max=PAGE) as pool:
        first = pool.acquire(512)
        second, copy = first.reference(), pickle.loads(pickle.dumps(first))
        first[0] = 5.0
        first.release()
        second.release()

        assert copy[0] == 5.0
        assert pool.statistics().arrays_held == 1
        copy.release()
        assert pool.statistics().arrays_held == 0


def test_a_readonly_reference_cannot_be_written_to_here_or_elsewhere(reader: Child) -> None:
    with SharedArrayPool(bytes_max=PAGE) as pool, pool.acquire(512) as array, array.readonly() as seen:
        array[0] = 3.0

        with pytest.raises(ValueError, match="read-only"):
            seen[0] = 1.0
        with pytest.raises(ValueError, match="WRITEABLE"):
            seen.array.flags.writeable = True
        assert reader.run("a = open_form(given); out = a[0].item()", seen.plain()) == 3.0
        with pytest.raises(ChildError, match="read-only"):
            reader.run("a[0] = 1.0")
        with pytest.raises(ChildError, match="WRITEABLE"):
            reader.run("a.array.flags.writeable = True")
        reader.run("del a")


def test_numpy_takes_a_shared_array_for_an_array() -> None:
    with SharedArrayPool(bytes_max=PAGE) as pool, pool.share([1.0, 2.0]) as array:
        assert np.asarray(array) is array.array
        assert np.sum(array) == 3.0
        assert np.asarray(array, "i4").tolist() == [1, 2]
        assert np.array(array, copy=True).base is None


def test_a_release_that_comes_in_the_middle_of_a_use_never_gives_an_array_of_zeros() -> None:
    with SharedArrayPool(bytes_max=PAGE) as pool:
        array = pool.acquire(512)
        array[:] = 1.0

        class Overtaken(SharedArray):
            __slots__ = ()

            def _check_usable(self, how: str) -> None:
                super()._check_usable(how)
                self.release()  # what another OS thread may do right here

        overtaken = Overtaken(array._form, array._lease, None, None)
        with pytest.raises(ArrayReleased, match="after its release"):
            overtaken.array  # noqa: B018 - it is the use


# ---------------------------------------------------------------- forms that come late


def test_a_lease_that_is_collected_before_its_reference_lets_nobody_in_who_was_told() -> None:
    """In a cycle the garbage collector ends them in the order in which they were made: the lease first."""
    with SharedArrayPool(bytes_max=PAGE) as pool:
        first = pool.acquire(512)
        told = first.plain()
        first._lease = None  # as the collector does it
        second = pool.acquire(512, timeout_s=0)
        second[:] = 9.0
        told_second = second.plain()
        with pytest.raises(ArrayGone, match="it was released"):
            open_form(told)
        del first  # its reference comes late, and takes nothing from the second

        with open_form(told_second) as same:
            assert same[0] == 9.0
        second.release()
        with pytest.raises(ArrayGone, match="it was released"):
            open_form(told_second)


def test_a_lease_interrupted_before_it_was_counted_takes_no_other_off_the_count() -> None:
    class Interrupted:
        came_back = 0

        def lent(self, lease: array_segments.Lease) -> None:
            raise KeyboardInterrupt

        def come_back(self, block: object) -> None:
            self.came_back += 1

    home = Interrupted()
    segment = array_segments.Segment(PAGE, 1, "test")
    with pytest.raises(KeyboardInterrupt):
        array_segments.Lease(home, 0, segment.mapping, PAGE, PAGE, writable=True)
    gc.collect()

    assert home.came_back == 0


def test_a_closed_segment_lets_nobody_in_who_was_told_of_a_block() -> None:
    segment = array_segments.Segment(PAGE, 2, "test")
    before = [segment.generation(index) for index in range(2)]
    segment.close()

    assert [segment.generation(index) for index in range(2)] == [number + 1 for number in before]


def test_who_comes_after_the_release_gets_an_error_and_nobodys_data(reader: Child) -> None:
    with SharedArrayPool(bytes_max=PAGE) as pool:
        with pool.acquire(512) as first:
            late = first.plain()
            reader.run("open_form(given).release()", late)
        with pool.acquire(512) as second:  # the same block
            second[:] = 9.0

            with pytest.raises(ChildError, match=r"ArrayGone: .*it was released"):
                reader.run("open_form(given)", late)
            with pytest.raises(ArrayGone, match="it was released"):
                open_form(late)
            assert pool.statistics().arrays_held == 1


@pytest.mark.parametrize(
    ("part", "value", "says"),
    [
        ("token", "00" * 16, "its memory is gone"),
        ("ino", 1, "its memory is gone"),
        ("fd", 0, "its memory is gone"),
        ("pid", 1 << 22, "its memory is gone"),
        ("size", 1 << 40, "its memory is gone"),
        ("boot", "another", "another machine"),
    ],
)
def test_another_file_or_process_is_never_taken_for_the_array(
    reader: Child, part: str, value: object, says: str
) -> None:
    with SharedArrayPool(bytes_max=PAGE) as pool, pool.acquire(512) as array:
        form = array.plain()
        form["$sennit.shared"]["place"][part] = value

        with pytest.raises(ChildError, match=f"ArrayGone: .*{says}"):
            reader.run("open_form(given)", form)


@pytest.mark.parametrize(
    "error",
    [
        ArraysExhausted(bytes_wanted=8, bytes_max=4096, timeout_s=1.0, holders=("1 array: process 7",)),
        SharedMemoryFull(4096, "no space"),
        ArrayGone("it is gone", why="it was released", fix="keep it"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_is_the_same_after_pickling_and_copying(error: SennitError) -> None:
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(twin) is type(error)
        assert (str(twin), twin.args, vars(twin)) == (str(error), error.args, vars(error))


def test_what_is_no_form_is_refused() -> None:
    with pytest.raises(PayloadError, match="no shared array"):
        open_form({"$sennit.shared": {"dtype": 3}})
