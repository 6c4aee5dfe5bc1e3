"""examples/agent_world.py: both ways of stepping agree, and a save holds up no step."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from examples import agent_world
from examples.agent_world import CELLS, LIKELIHOOD, TRANSITION, World
from sennit.sync.arrays import SharedArrayPool


@pytest.fixture
def pool() -> Iterator[SharedArrayPool]:
    with SharedArrayPool(bytes_max=8 << 20) as some:
        yield some


def test_lock_step_and_a_thousand_coroutines_believe_the_same(pool: SharedArrayPool) -> None:
    marching, living, other = World(pool, seed=5), World(pool, seed=5), World(pool, seed=6)
    for _ in range(4):
        marching.step()
        other.step()

    batches = asyncio.run(living.run(until=4))

    np.testing.assert_allclose(living.beliefs, marching.beliefs, rtol=0, atol=1e-12)
    np.testing.assert_allclose(living.beliefs.sum(axis=1), 1, atol=1e-12)
    assert batches.items == 4000
    assert batches.size_mean > 100
    assert list(np.unique(living.done)) == [4]
    assert np.abs(other.beliefs - marching.beliefs).max() > 0.01


def test_an_update_is_bayes_rule_and_the_targets_move(pool: SharedArrayPool) -> None:
    world = World(pool, agents=3, seed=1)
    seen = world.sighting(1).seen
    world.step()

    for row, at in enumerate(world.at):
        posterior = [LIKELIHOOD[at, cell, seen[row]] / CELLS for cell in range(CELLS)]
        expected = [sum(posterior[a] * TRANSITION[a, b] for a in range(CELLS)) for b in range(CELLS)]
        np.testing.assert_allclose(world.beliefs[row], np.array(expected) / sum(posterior), rtol=1e-12)


def test_what_is_seen_is_drawn_from_the_likelihood(pool: SharedArrayPool) -> None:
    world = World(pool, agents=1000, seed=2)
    counts = np.zeros(3)
    expected = np.zeros(3)
    for step in range(1, 41):
        counts += np.bincount(world.sighting(step).seen, minlength=3)
        expected += LIKELIHOOD[world.at, world.target(step)].sum(axis=0)

    np.testing.assert_allclose(counts / counts.sum(), expected / expected.sum(), atol=0.02)


def test_steps_go_on_while_a_save_is_under_way_and_it_saves_the_moment_it_was_asked(
    pool: SharedArrayPool, tmp_path: Path
) -> None:
    """The save cannot go on before the steps are done: its one OS thread is held until then."""

    async def main() -> None:
        world = World(pool)
        world.step()
        then = world.beliefs.copy()
        held = threading.Event()
        with ThreadPoolExecutor(1) as executor:
            executor.submit(held.wait)
            saving = asyncio.ensure_future(world.save(tmp_path, executor=executor))
            await asyncio.sleep(0)  # the save has begun
            for _ in range(3):
                world.step()
                await asyncio.sleep(0)
            assert not saving.done()
            assert not (tmp_path / "world.json").exists()
            held.set()
            await saving

            held.clear()
            executor.submit(held.wait)
            loading = asyncio.ensure_future(World.load(tmp_path, pool, executor=executor))
            await asyncio.sleep(0)
            world.step()
            assert not loading.done()
            held.set()
            loaded = await loading

        assert list(np.unique(world.done)) == [5]
        assert list(np.unique(loaded.done)) == [1]
        assert np.array_equal(loaded.beliefs, then)
        for _ in range(4):
            loaded.step()
        assert np.array_equal(loaded.beliefs, world.beliefs), "as if it had never been interrupted"

    asyncio.run(main())


def test_a_world_saved_while_its_agents_are_at_different_steps_goes_on_from_there(
    pool: SharedArrayPool, tmp_path: Path
) -> None:
    async def main() -> None:
        world = World(pool, agents=300)
        running = asyncio.ensure_future(world.run(until=4, items_max=64))
        while world.done.min() == world.done.max():  # noqa: ASYNC110 - the agents tell nobody
            await asyncio.sleep(0)
        done = world.done.copy()
        await world.save(tmp_path)
        await running
        loaded = await World.load(tmp_path, pool)
        assert np.array_equal(loaded.done, done)
        with pytest.raises(ValueError, match="between steps"):
            loaded.step()
        await loaded.run(until=4)

        assert list(np.unique(loaded.done)) == [4]
        np.testing.assert_allclose(loaded.beliefs, world.beliefs, rtol=0, atol=1e-12)

    asyncio.run(main())


def test_it_prints_a_short_report(capsys: pytest.CaptureFixture[str]) -> None:
    asyncio.run(agent_world.main(steps=4))

    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "1000 agents, 4 steps, beliefs of 8 × 8"
    assert "saved at step 2, loaded, continued: the same bits" in lines
    assert len(lines) == 8
