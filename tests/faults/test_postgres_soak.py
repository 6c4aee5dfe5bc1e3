"""The short form of the soak: each kind of fault once, in another order every time. The long one: `tests/faults/soak.py`."""

from __future__ import annotations

from random import SystemRandom

import pytest

from tests.crash.nursery import Nursery
from tests.faults.soak import soak


@pytest.mark.timeout(180)
def test_random_faults_lose_nothing_and_nothing_is_accepted_twice(nursery: Nursery) -> None:
    seed = SystemRandom().randrange(1 << 32)
    print(f"\nseed {seed}")  # noqa: T201 - pytest shows it when the test fails
    with soak(nursery, seed=seed, pace_s=0.4) as some:
        figures = some.run(len(some.faults))

    print(figures)  # noqa: T201 - the figures, with `pytest -s`
    assert figures.faults.total() == len(some.faults)
