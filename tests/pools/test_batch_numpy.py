"""Stacked numpy operations: the same results as one by one, and an error where one by one would have one."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sennit.sync.batch import AsyncBatcher, Batcher
from sennit.sync.batch_numpy import BeliefUpdate, belief_batcher, matmul_batcher, stacked_beliefs, stacked_matmul

Array = np.ndarray[Any, np.dtype[Any]]

SHAPES = [
    ((8, 8), (8, 8)),
    ((8, 8), (8, 3)),
    ((1, 5), (5, 1)),
    ((0, 4), (4, 2)),
    ((3, 0), (0, 3)),
    ((40, 50), (50, 40)),
]
DTYPES = ["float64", "float32", ">f8", "int32", "complex128", "bool"]


def filled(seed: int, shape: tuple[int, ...], dtype: str = "float64") -> Array:
    return np.random.default_rng(seed).uniform(-3, 3, shape).astype(dtype)


def same(left: Array | Exception, right: Array) -> None:
    assert isinstance(left, np.ndarray), left
    assert (left.shape, left.dtype) == (right.shape, right.dtype)
    np.testing.assert_allclose(left, right, rtol=1e-12 if right.dtype.itemsize >= 8 else 1e-5, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(SHAPES), st.sampled_from(DTYPES), st.integers(0, 9)), max_size=20))
def test_a_stacked_product_equals_the_single_ones(
    plan: list[tuple[tuple[tuple[int, int], tuple[int, int]], str, int]],
) -> None:
    pairs = [(filled(seed, left, dtype), filled(seed + 1, right, dtype)) for (left, right), dtype, seed in plan]

    for found, (a, b) in zip(stacked_matmul(pairs), pairs, strict=True):
        same(found, a @ b)


def test_what_numpy_does_otherwise_than_with_two_matrices_is_done_one_by_one() -> None:
    vector, matrix, stack = filled(1, (4,)), filled(2, (4, 4)), filled(3, (2, 4, 4))
    masked = np.ma.masked_array(matrix, matrix > 0)
    pairs = [(vector, vector), (vector, vector), (matrix, vector), (stack, matrix), (stack, matrix)]

    for found, (a, b) in zip(stacked_matmul(pairs), pairs, strict=True):
        assert not isinstance(found, Exception)
        np.testing.assert_allclose(found, a @ b, rtol=1e-12)
    assert [type(each) for each in stacked_matmul([(masked, masked)] * 2)] == [type(np.matmul(masked, masked))] * 2


def test_a_pair_that_does_not_fit_fails_alone() -> None:
    fits, does_not = (np.eye(2), np.eye(2)), (np.eye(2), np.eye(3))

    found = stacked_matmul([fits, does_not, fits, does_not, ("no", None), fits])  # type: ignore[list-item]

    assert [isinstance(each, Exception) for each in found] == [False, True, False, True, True, False]


def test_a_result_does_not_keep_those_of_others_alive() -> None:
    found = stacked_matmul([(np.eye(8), np.eye(8))] * 5)

    assert all(isinstance(each, np.ndarray) and each.base is None for each in found)


def believed(update: BeliefUpdate) -> Array:
    """The single computation, as a textbook has it."""
    posterior = update.likelihood[:, update.observation] * update.prior
    posterior = posterior / posterior.sum()
    return np.asarray(posterior if update.transition is None else posterior @ update.transition)


def stochastic(seed: int, rows: int, columns: int) -> Array:
    found = np.random.default_rng(seed).uniform(0.01, 1, (rows, columns))
    return np.asarray(found / found.sum(axis=1, keepdims=True))


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    states=st.integers(2, 12),
    symbols=st.integers(1, 5),
    shared=st.booleans(),
    moves=st.booleans(),
)
def test_stacked_belief_updates_equal_the_single_ones(
    data: st.DataObject, states: int, symbols: int, *, shared: bool, moves: bool
) -> None:
    models = [stochastic(7 if shared else n, states, symbols) for n in range(1 if shared else 6)] * 6
    moving = [stochastic(20 if shared else n + 20, states, states) for n in range(1 if shared else 6)] * 6
    updates = [
        BeliefUpdate(
            stochastic(n, 1, states)[0],
            models[n],
            data.draw(st.integers(0, symbols - 1)),
            moving[n] if moves else None,
        )
        for n in range(6)
    ]

    for found, update in zip(stacked_beliefs(updates), updates, strict=True):
        same(found, believed(update))


def test_an_update_without_an_answer_fails_alone() -> None:
    prior, likelihood = np.array([1.0, 0.0]), np.array([[1.0, 0.0], [0.2, 0.8]])
    updates = [
        BeliefUpdate(prior, likelihood, 0),
        BeliefUpdate(prior, likelihood, 1),  # impossible: the prior rules out the state that shows it
        BeliefUpdate(prior, likelihood, 2),
        BeliefUpdate(prior, likelihood, -1),
        BeliefUpdate(np.array([np.nan, 1.0]), likelihood, 0),
        BeliefUpdate(np.ones(3), likelihood, 0),
        BeliefUpdate(prior, likelihood, 0, np.eye(3)),
        BeliefUpdate(prior, likelihood, 0),
    ]

    found = stacked_beliefs(updates)

    assert [type(each) for each in found] == [
        np.ndarray, ValueError, IndexError, IndexError, ValueError, ValueError, ValueError, np.ndarray,
    ]  # fmt: skip
    same(found[0], prior)
    same(found[7], prior)


def test_many_os_threads_get_their_own_products_and_beliefs() -> None:
    pairs = [(filled(n, (8, 8)), filled(n + 1, (8, 8))) for n in range(40)]
    updates = [BeliefUpdate(stochastic(n, 1, 5)[0], stochastic(n, 5, 3), n % 3) for n in range(40)]

    with ThreadPoolExecutor(8) as callers, matmul_batcher() as product, belief_batcher() as believe:
        products, beliefs = callers.map(product, pairs), callers.map(believe, updates)
        for found, (a, b) in zip(products, pairs, strict=True):
            same(found, a @ b)
        for found, update in zip(beliefs, updates, strict=True):
            same(found, believed(update))


def test_the_functions_are_for_either_batcher() -> None:
    stacked: Batcher[tuple[Array, Array], Array] = Batcher(stacked_matmul)
    in_loop: AsyncBatcher[tuple[Array, Array], Array] = AsyncBatcher(stacked_matmul)

    same(stacked((np.eye(2), np.eye(2))), np.eye(2))
    assert in_loop.statistics().batches == 0


def test_without_numpy_it_says_which_extra_is_missing_and_batch_works_all_the_same() -> None:
    program = """
import sys
sys.modules["numpy"] = None
from sennit.errors import UsageError
from sennit.sync.batch import Batcher
from sennit.sync import batch_numpy, broadcast
assert Batcher(lambda items: items)(3) == 3
for make in (batch_numpy.matmul_batcher, batch_numpy.belief_batcher, lambda: batch_numpy.stacked_matmul([])):
    try:
        make()
    except UsageError as error:
        assert "sennit[numpy]" in str(error), error
    else:
        raise AssertionError(make)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=50)


def test_numpy_is_not_imported_before_somebody_has_arrays() -> None:
    program = "import sys, sennit.sync.batch_numpy, sennit.sync.broadcast; assert 'numpy' not in sys.modules"

    subprocess.run([sys.executable, "-c", program], check=True, timeout=50)
