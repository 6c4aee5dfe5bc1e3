"""numpy operations for a `Batcher`: many small ones become one on a stack of arrays.

    A1 @ B1, A2 @ B2, A3 @ B3   ─►  stack(A) @ stack(B)      one call into numpy, three results

A numpy call costs about a microsecond before it computes anything; sorting and stacking cost one to two per item. So this
pays for operations of several calls (a belief update of 64 states: 3.7 µs for 5.5 µs), and a lone product gains nothing
(8 × 8: 1.5 µs for 1.1 µs) unless the arrays are stacked already (0.1 µs). Stacks stay small (`STACK_BYTES_MAX`); large
arrays are computed one by one. Items of other shapes or dtypes are stacked with their like; one that has no like is
computed alone. Each result equals that of the single operation to rounding (1e-12), and is an array of its own.

    product = matmul_batcher()                              # OS threads: product((a, b))
    product = AsyncBatcher(stacked_matmul)                  # coroutines: await product((a, b))

numpy is an extra, and is not imported before somebody has arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from sennit.errors import UsageError
from sennit.sync.batch import Batcher

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

__all__ = ["BeliefUpdate", "belief_batcher", "matmul_batcher", "stacked_beliefs", "stacked_matmul"]

STACK_BYTES_MAX: Final = 65_536
"""Of one stack. Above 128 KiB malloc maps fresh pages for it each time: 64 products of 24 × 24 took 9 µs each on one stack,
1.7 µs one by one."""

_WORTH_IT: Final = 4  # a stack of fewer gains nothing

I = TypeVar("I")  # noqa: E741 - an item


def _numpy() -> ModuleType:
    try:
        import numpy as np  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise UsageError(
            "a numpy operation cannot be batched: numpy is not installed", fix="pip install 'sennit[numpy]'"
        ) from error
    return np


def matmul_batcher(*, items_max: int = 64, in_flight_max: int = 1) -> Batcher[tuple[Array, Array], Array]:
    """Return a batcher of `np.matmul`: `batcher((a, b))` is `a @ b`.

    Raises:
        UsageError: numpy is not installed.
    """
    _numpy()
    return Batcher(stacked_matmul, items_max=items_max, in_flight_max=in_flight_max)


def stacked_matmul(pairs: Sequence[tuple[Array, Array]]) -> list[Array | Exception]:
    """Return `a @ b` of each pair: (m, k) @ (k, n) → (m, n). In the place of a pair that does not fit stands its error.

    Pairs of matrices of equal shapes and dtypes are stacked. Vectors, stacks of matrices and subclasses of arrays have
    rules of their own (`np.matmul`), and are computed one by one.
    """
    np = _numpy()

    def like(pair: tuple[Array, Array]) -> Hashable:
        a, b = pair
        if type(a) is not np.ndarray or type(b) is not np.ndarray or not a.ndim == b.ndim == 2:
            return None
        return a.shape, a.dtype, b.shape, b.dtype

    def stacked(some: list[tuple[Array, Array]]) -> Iterable[Array]:
        # A copy each: a view would keep the results of all others alive.
        return (each.copy() for each in np.matmul(_stack(np, [a for a, _ in some]), _stack(np, [b for _, b in some])))

    def size_bytes(some: list[tuple[Array, Array]]) -> int:
        a, b = some[0]
        return max(int(a.nbytes), int(b.nbytes), int(a.shape[0]) * int(b.shape[1]) * 8)

    return _grouped(pairs, like, lambda pair: np.matmul(*pair), stacked, size_bytes)


class BeliefUpdate(NamedTuple):
    """What an agent believes and what it has seen.

    Attributes:
        prior: (S,) probabilities of the S states.
        likelihood: (S, O); `likelihood[s, o]` is the probability to see o in state s.
        observation: what was seen, 0 … O-1.
        transition: (S, S); `transition[s, t]` is the probability to go from s to t afterwards. None: states stay.
    """

    prior: Array
    likelihood: Array
    observation: int
    transition: Array | None = None


def belief_batcher(*, items_max: int = 64, in_flight_max: int = 1) -> Batcher[BeliefUpdate, Array]:
    """Return a batcher of `stacked_beliefs`: `batcher(BeliefUpdate(…))` is the new belief, (S,).

    Raises:
        UsageError: numpy is not installed.
    """
    _numpy()
    return Batcher(stacked_beliefs, items_max=items_max, in_flight_max=in_flight_max)


def stacked_beliefs(updates: Sequence[BeliefUpdate]) -> list[Array | Exception]:
    """Return the belief after each update, (S,): Bayes' rule, then the transition if there is one.

        posterior[s] = likelihood[s, o] · prior[s] / Σ…          belief[t] = Σ_s posterior[s] · transition[s, t]

    A likelihood or transition that all updates share (the same object) is not copied. In the place of an update that has
    no answer stands its error: ValueError for shapes that do not fit, or for an observation that is impossible under the
    prior; IndexError for one that does not exist.

    Source: forward filtering of a hidden Markov model, e.g. Rabiner 1989, "A tutorial on hidden Markov models", III.A.
    """
    np = _numpy()

    def like(update: BeliefUpdate) -> Hashable:
        prior, likelihood, _, transition = update
        return (
            prior.shape,
            prior.dtype,
            likelihood.shape,
            likelihood.dtype,
            None if transition is None else (transition.shape, transition.dtype),
        )

    def stacked(some: list[BeliefUpdate]) -> Iterable[Array | Exception]:
        seen = np.array([_checked(update) for update in some])
        first = some[0]
        if all(update.likelihood is first.likelihood for update in some):
            chances = first.likelihood[:, seen].T
        else:
            chances = np.stack([update.likelihood[:, update.observation] for update in some])
        weights = chances * _stack(np, [update.prior for update in some])
        totals = weights.sum(axis=1)
        possible = totals > 0
        beliefs = weights / np.where(possible, totals, 1.0)[:, None]
        if first.transition is not None:
            if all(update.transition is first.transition for update in some):
                beliefs = beliefs @ first.transition
            else:
                transitions = [update.transition for update in some if update.transition is not None]
                beliefs = np.einsum("ns,nst->nt", beliefs, _stack(np, transitions))
        for update, belief, fine in zip(some, beliefs, possible, strict=True):
            yield belief.copy() if fine else _impossible(update)

    def size_bytes(some: list[BeliefUpdate]) -> int:
        first = some[0].transition
        shares = first is None or all(update.transition is first for update in some)
        return some[0].prior.nbytes if first is None or shares else first.nbytes

    def single(update: BeliefUpdate) -> Array | Exception:
        _checked(update)
        return next(iter(stacked([update])))

    return _grouped(updates, like, single, stacked, size_bytes)


def _checked(update: BeliefUpdate) -> int:
    """Return the observation; raises if the update does not fit together."""
    prior, likelihood, observation, transition = update
    states = prior.shape[0] if prior.ndim == 1 else -1
    fits = likelihood.ndim == 2 and likelihood.shape[0] == states
    if not fits or (transition is not None and transition.shape != (states, states)):
        after = "" if transition is None else f" and a transition of shape {transition.shape}"
        raise ValueError(f"a prior of shape {prior.shape}, a likelihood of shape {likelihood.shape}{after} do not fit")
    if not 0 <= observation < likelihood.shape[1]:
        raise IndexError(f"observation {observation} is not one of {likelihood.shape[1]}")
    return observation


def _impossible(update: BeliefUpdate) -> ValueError:
    return ValueError(f"observation {update.observation} has no probability above 0 under the prior")


def _stack(np: ModuleType, arrays: list[Array]) -> Array:
    """Return `np.stack(arrays)` of arrays that are alike, in a third of its time."""
    stacked: Array = np.concatenate(arrays)
    return stacked.reshape(len(arrays), *arrays[0].shape)


def _grouped(
    items: Sequence[I],
    like: Callable[[I], Hashable],
    single: Callable[[I], Array | Exception],
    stacked: Callable[[list[I]], Iterable[Array | Exception]],
    size_bytes: Callable[[list[I]], int],
) -> list[Array | Exception]:
    """Compute items that are alike together and the others (None) alone; where a stack fails, one by one.

    Args:
        size_bytes: what each of these, all alike, takes of a stack.
    """
    groups: dict[Hashable, list[int]] = {}
    results: list[Array | Exception] = [RuntimeError("not computed")] * len(items)
    for place, item in enumerate(items):
        try:
            group = like(item)
        except Exception:  # noqa: BLE001 - it is no item at all; computed alone it says why
            group = None
        groups.setdefault(group, []).append(place)
    alone = groups.pop(None, [])
    for places in groups.values():
        at_once = STACK_BYTES_MAX // max(1, size_bytes([items[place] for place in places]))
        for start in range(0, len(places), max(1, at_once)):
            some = places[start : start + max(1, at_once)]
            found = _stacked_or_none(stacked, [items[place] for place in some]) if len(some) >= _WORTH_IT else None
            if found is None:
                alone += some
            else:
                for place, result in zip(some, found, strict=True):
                    results[place] = result
    for place in alone:
        try:
            results[place] = single(items[place])
        except Exception as error:  # noqa: BLE001 - it is this item's answer
            results[place] = error
    return results


def _stacked_or_none(
    stacked: Callable[[list[I]], Iterable[Array | Exception]], some: list[I]
) -> list[Array | Exception] | None:
    try:
        return list(stacked(some))
    except Exception:  # noqa: BLE001 - alone each says what is wrong with it
        return None
