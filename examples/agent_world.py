"""A thousand agents look for one target: each keeps a matrix of what it believes, and learns from what it sees.

    target moves ─► each agent sees "here", "near" or "far" ─► Bayes' rule on its 8 × 8 matrix ─► where is the target?

The same world runs in two ways. In lock-step, one stacked numpy update moves all agents on. Asynchronously every agent is
a coroutine of its own that hears of sightings on a `Topic`; an `AsyncBatcher` stacks the updates that are asked for at the
same time. Both reach the same beliefs, since what is seen depends on the seed and the step alone.

Beliefs are rows of one `SharedArray`: a task in another process gets them without a copy (`certainty`). `save` takes a
snapshot between two updates and writes it beside the steps that follow.

    python examples/agent_world.py            needs numpy: pip install 'sennit[numpy]'
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import numpy as np
import psutil

from sennit import App
from sennit.sync import array_files
from sennit.sync.arrays import SharedArray, SharedArrayPool
from sennit.sync.batch import AsyncBatcher, BatchStatistics
from sennit.sync.batch_numpy import BeliefUpdate, stacked_beliefs
from sennit.sync.broadcast import Subscription, Topic
from sennit.sync.registry import Registration, Registry

Array = np.ndarray[Any, np.dtype[Any]]

SIDE: Final = 8
CELLS: Final = SIDE * SIDE
SIGHTS: Final = np.array([[0.80, 0.15, 0.05], [0.15, 0.70, 0.15], [0.02, 0.18, 0.80]])
"""P(sight | distance): rows are on the spot, one cell away, further; columns are "here", "near", "far"."""


def distance(a: int, b: int) -> int:
    """Return how many moves of a king lie between two cells."""
    return max(abs(a // SIDE - b // SIDE), abs(a % SIDE - b % SIDE))


LIKELIHOOD: Final = np.array([[SIGHTS[min(distance(at, cell), 2)] for cell in range(CELLS)] for at in range(CELLS)])
"""(CELLS, CELLS, 3): P(sight | where the target is), for an agent at each cell."""
_NEAR: Final = np.array([[float(distance(a, b) <= 1) for b in range(CELLS)] for a in range(CELLS)])
TRANSITION: Final = _NEAR / _NEAR.sum(axis=1, keepdims=True)
"""(CELLS, CELLS): the target stays, or goes to one of the cells around it."""


@dataclass(frozen=True, slots=True)
class Agent:
    """Where an agent stands, and which row of the beliefs is its own."""

    row: int
    at: int


@dataclass(frozen=True, slots=True)
class Sighting:
    """What every agent sees in one step: (agents,) of 0 … 2."""

    step: int
    seen: Array


class World:
    """All agents and what they believe. `done[row]` is how many steps an agent has learnt from.

    Args:
        pool: of the beliefs; without values they begin even.
        seed: fixes where the agents stand, how the target moves, and what is seen.
    """

    def __init__(
        self,
        pool: SharedArrayPool,
        *,
        agents: int = 1000,
        seed: int = 0,
        beliefs: Array | None = None,
        done: Array | None = None,
    ) -> None:
        self.seed = seed
        self.at = np.random.default_rng([seed, 0]).integers(CELLS, size=agents)
        self.agents: Registry[int, Agent] = Registry()
        self.agents.register_all(
            Registration(row, Agent(row, int(at)), labels=frozenset({"north" if at < CELLS // 2 else "south"}))
            for row, at in enumerate(self.at)
        )
        self.shared: SharedArray = pool.share(np.full((agents, CELLS), 1 / CELLS) if beliefs is None else beliefs)
        self.beliefs: Array = self.shared.array
        self.done: Array = np.zeros(agents, dtype=np.int64) if done is None else np.array(done)
        self._path = [int(np.random.default_rng([seed, 1]).integers(CELLS))]  # of the target, as far as it was needed

    def target(self, step: int) -> int:
        """Return where the target is in a step; the first is 1."""
        while len(self._path) <= step:
            chance = np.random.default_rng([self.seed, 2, len(self._path)])
            self._path.append(int(chance.choice(CELLS, p=TRANSITION[self._path[-1]])))
        return self._path[step]

    def sighting(self, step: int) -> Sighting:
        """Return what is seen in a step: the same whenever it is asked."""
        chances = LIKELIHOOD[self.at, self.target(step)].cumsum(axis=1)
        drawn = np.random.default_rng([self.seed, 3, step]).random((len(self.at), 1))
        return Sighting(step, np.minimum((drawn > chances).sum(axis=1), 2))

    # ------------------------------------------------------------ two ways to go on

    def step(self) -> None:
        """Move all agents on by one step, in lock-step: one stacked update.

        Raises:
            ValueError: they are not at the same step; let `run` take them there.
        """
        at = int(self.done[0])
        if (self.done != at).any():
            raise ValueError(f"the agents are between steps {self.done.min()} and {self.done.max()}")
        weights = LIKELIHOOD[self.at, :, self.sighting(at + 1).seen] * self.beliefs
        self.beliefs[...] = (weights / weights.sum(axis=1, keepdims=True)) @ TRANSITION
        self.done += 1

    async def run(self, until: int, *, items_max: int = 256) -> BatchStatistics:
        """Take every agent to this step, each as a coroutine at its own pace; return how their updates were batched."""
        topic: Topic[Sighting] = Topic()
        async with AsyncBatcher(stacked_beliefs, items_max=items_max) as update, asyncio.TaskGroup() as agents:
            for agent in self.agents.snapshot().values():
                agents.create_task(self._live(agent, topic.subscribe(waiting_max=4), update))
            for step in range(int(self.done.min()) + 1, until + 1):
                await topic.publish(self.sighting(step))  # waits for who is four steps behind
            topic.close()
        return update.statistics()

    async def _live(
        self, agent: Agent, sightings: Subscription[Sighting], update: AsyncBatcher[BeliefUpdate, Array]
    ) -> None:
        row, likelihood = agent.row, LIKELIHOOD[agent.at]
        async for batch in sightings:
            for sighting in batch:
                if sighting.step > self.done[row]:  # a loaded world may be ahead in some rows
                    seen = int(sighting.seen[row])
                    belief = await update(BeliefUpdate(self.beliefs[row], likelihood, seen, TRANSITION))
                    self.beliefs[row], self.done[row] = belief, sighting.step  # no await between the two

    def guess(self, label: str) -> int:
        """Return the cell that the agents of a label together hold for the likeliest."""
        rows = [row for row, _ in self.agents.by_label(label)]
        return int(np.log(self.beliefs[rows]).sum(axis=0).argmax())

    # ------------------------------------------------------------ saving and loading, beside the steps

    async def save(self, folder: Path, *, executor: Executor | None = None) -> None:
        """Save the world as it is at the moment of the call; steps go on meanwhile."""
        beliefs, done = self.beliefs.copy(), self.done.copy()  # no agent is half-way through a row here
        write = partial(_write, folder, self.seed, beliefs, done)
        await asyncio.get_running_loop().run_in_executor(executor, write)

    @classmethod
    async def load(cls, folder: Path, pool: SharedArrayPool, *, executor: Executor | None = None) -> World:
        """Return the world that was saved last; the loop goes on while it is read."""
        seed, beliefs, done = await asyncio.get_running_loop().run_in_executor(executor, _read, folder)
        return cls(pool, agents=len(done), seed=seed, beliefs=beliefs, done=done)

    def close(self) -> None:
        """Give the memory back to the pool."""
        del self.beliefs
        self.shared.release()


def _write(folder: Path, seed: int, beliefs: Array, done: Array) -> None:
    """Write the arrays under the hash of what is in them, then the file that names them: whole or not at all."""
    names = {"beliefs": f"{array_files.digest(beliefs)}.npy", "done": f"{array_files.digest(done)}.npy"}
    array_files.write(folder / names["beliefs"], beliefs)
    array_files.write(folder / names["done"], done)
    part = folder / "world.json.part"
    part.write_text(json.dumps({"seed": seed, **names}), encoding="utf-8")
    part.replace(folder / "world.json")


def _read(folder: Path) -> tuple[int, Array, Array]:
    saved = json.loads((folder / "world.json").read_text(encoding="utf-8"))
    return saved["seed"], array_files.read(folder / saved["beliefs"]), array_files.read(folder / saved["done"])


# ---------------------------------------------------------------- a report

app = App("memory://")


@app.task(cpu=True)
def certainty(beliefs: np.ndarray) -> float:
    """Return the mean of the agents' highest probabilities. Runs in a worker process, on the same memory."""
    return float(beliefs.max(axis=1).mean())


async def report(agents: int, steps: int) -> list[str]:
    """Run both ways, save and load on the way, and say what was seen."""
    resident = psutil.Process().memory_info().rss
    with SharedArrayPool(bytes_max=8 * agents * CELLS * 8 + (1 << 20)) as pool, tempfile.TemporaryDirectory() as folder:
        marching, living = World(pool, agents=agents), World(pool, agents=agents)

        began_s = perf_counter()
        for _ in range(steps // 2):
            marching.step()
        saving = asyncio.ensure_future(marching.save(Path(folder)))
        for _ in range(steps - steps // 2):
            await asyncio.sleep(0)  # lets the save begin and end; no step waits for it
            marching.step()
        marched_s = perf_counter() - began_s
        await saving

        began_s = perf_counter()
        batches = await living.run(until=steps)
        lived_s = perf_counter() - began_s
        memory = (psutil.Process().memory_info().rss - resident) / agents

        async with app:
            sure = await certainty.submit(marching.shared)  # type: ignore[arg-type] # a SharedArray arrives as its array
        loaded = await World.load(Path(folder), pool)
        while loaded.done[0] < steps:
            loaded.step()
        apart = float(np.abs(marching.beliefs - living.beliefs).max())
        off = [distance(marching.guess(label), marching.target(steps + 1)) for label in ("north", "south")]
        return [
            f"{agents} agents, {steps} steps, beliefs of {SIDE} × {SIDE}",
            f"lock-step     {steps / marched_s:8.1f} steps/s   one update of {agents}",
            f"asynchronous  {steps / lived_s:8.1f} steps/s   {batches.batches} batches of {batches.size_mean:.0f}",
            f"largest difference between the two: {apart:.1e}",
            f"saved at step {steps // 2}, loaded, continued: "
            + ("the same bits" if np.array_equal(loaded.beliefs, marching.beliefs) else "DIFFERENT"),
            f"all agents in the north guess {off[0]} cells beside where the target goes next, in the south {off[1]}",
            f"mean certainty of an agent, by a task on the shared array: {sure:.2f}",
            f"memory: {CELLS * 8} B of beliefs per agent and world, {memory / 1000:.1f} kB resident per agent in all",
        ]


async def main(agents: int = 1000, steps: int = 20) -> None:
    """Print the report."""
    print("\n".join(await report(agents, steps)))


if __name__ == "__main__":
    asyncio.run(main())
