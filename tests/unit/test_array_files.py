"""numpy arrays in arguments and results: what goes into the JSON, what into a file, and what comes back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sennit.errors import PayloadError
from sennit.submit.codec import Codec
from sennit.sync import array_files

LARGE = array_files.FILE_BYTES_MIN // 8  # float64


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    before = array_files.folder()
    array_files.keep_in(tmp_path / "arrays")
    yield tmp_path / "arrays"
    array_files.keep_in(before)


def mean(values: NDArray[np.float64], others: list[np.ndarray] | None = None) -> np.ndarray:
    del others
    return np.asarray(values.mean(axis=0, keepdims=True))


CODEC = Codec(mean, "mean")


def there_and_back(value: Any) -> Any:
    payload, _ = CODEC.encode([value], {}, 1 << 30)
    return CODEC.decode(payload, ())[1]["values"]


@given(
    shape=st.lists(st.integers(0, 4), max_size=3),
    dtype=st.sampled_from(["<f8", ">i4", "?", "<U3", "<c16", "<M8[s]", [("a", "<i2"), ("b", "<f4")]]),
    order=st.sampled_from(["C", "F"]),
)
def test_a_small_array_comes_back_as_it_was(shape: list[int], dtype: Any, order: Any) -> None:
    value = np.zeros(shape, dtype=dtype, order=order)

    back = there_and_back(value)

    assert (back.dtype, back.shape) == (value.dtype, value.shape)
    assert np.array_equal(back, value)


def test_a_large_array_is_one_file_however_often_it_is_passed(folder: Path) -> None:
    value = np.arange(LARGE, dtype=float)

    payload, _ = CODEC.encode([value, [value, value.copy()]], {}, 1000)

    (file,) = folder.iterdir()
    assert array_files.files_in(payload) == [str(file)]
    assert np.array_equal(np.load(file), value)


def test_a_large_array_comes_back_mapped_and_read_only(folder: Path) -> None:
    value = np.asfortranarray(np.arange(2.0 * LARGE).reshape(2, -1))

    back = there_and_back(value)

    assert type(back) is np.ndarray
    assert np.array_equal(back, value)
    with pytest.raises(ValueError, match="read-only"):
        back[0, 0] = 1.0
    assert len(list(folder.iterdir())) == 1


def test_arrays_of_equal_bytes_and_other_shape_or_type_are_other_files() -> None:
    value = np.zeros(8)

    names = {array_files.digest(v) for v in (value, value.reshape(2, 4), value.view("<i8"), np.zeros(8, ">f8"))}

    assert len(names) == 4


@pytest.mark.usefixtures("folder")
def test_without_a_folder_a_large_array_is_in_the_payload() -> None:
    array_files.keep_in(None)

    payload, _ = CODEC.encode([np.ones(LARGE)], {}, 1 << 30)

    assert array_files.files_in(payload) == []
    assert CODEC.decode(payload, ())[1]["values"].sum() == LARGE


def test_an_array_of_objects_is_refused() -> None:
    with pytest.raises(PayloadError, match="holds Python objects"):
        CODEC.encode([np.array([{}])], {}, 1000)


def test_a_file_that_is_gone_says_what_several_machines_need(folder: Path) -> None:
    payload, _ = CODEC.encode([np.ones(LARGE)], {}, 1000)
    next(folder.iterdir()).unlink()

    with pytest.raises(PayloadError, match="array_folder"):
        CODEC.decode(payload, ())


def test_a_file_that_is_not_whole_is_never_seen_under_its_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written is renamed when it is whole and on disk; a write that fails leaves nothing."""
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))

    with pytest.raises(OSError, match="No space"):
        array_files.write(folder / "x.npy", np.ones(LARGE))

    assert list(folder.iterdir()) == []


def test_carried_arrays_are_read_without_their_file_and_written_to_none(folder: Path) -> None:
    payload, _ = CODEC.encode([np.ones(LARGE)], {}, 1000)
    (path,) = array_files.files_in(payload)
    Path(path).unlink()
    mine = np.full(LARGE, 2.0)

    with array_files.carried(folder, {path: mine}) as carried:
        back = CODEC.decode(payload, ())[1]["values"]
        result = CODEC.encode_result(np.full(LARGE, 3.0), 1000)

    assert back is mine
    assert list(carried.taken) == array_files.files_in(result)
    assert list(folder.iterdir()) == []
