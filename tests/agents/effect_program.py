"""A worker process whose effects are lines in a file, and which dies at a chosen point of an effect's first attempt.

    before ─► mark is sent ─► begun ─► [in the call: a line is written] ─► called ─► committed

`EFFECT_STOP=begun` waits for a file lock there instead, so that a test can freeze the process at that point.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from sennit import App
from sennit.errors import OutcomeUnknown
from sennit.submit.attempt import Attempt
from sennit.submit.context import current
from sennit.submit.effect_ledger import EffectView, Ledger, effects_of
from sennit.submit.effects import NOT_DONE, NotDone, effect
from tests.crash.fleet import write

POINTS = ("before", "mark is sent", "begun", "in the call", "called", "committed")
MODES = ("fail", "check", "ask", "repeat")


class Told(msgspec.Struct):
    """What a body says of its effect."""

    result: int | None
    effects: list[EffectView]


def die(point: str, at: str) -> None:
    """End this process here, if that is the point and this the first attempt."""
    attempt = current()
    if point == at and attempt is not None and attempt.task.attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def pause(at: str) -> None:
    """Wait here for the gate, if this is where to stop and this the first attempt."""
    attempt = current()
    if os.environ.get("EFFECT_STOP") == at and attempt is not None and attempt.task.attempt == 1:
        write("paused")
        with Path(os.environ["EFFECT_GATE"]).open("rb") as gate:
            fcntl.flock(gate, fcntl.LOCK_EX)


def lines_of(file: str) -> list[int]:
    return [int(line) for line in Path(file).read_text().split()] if Path(file).exists() else []


def pay(file: str, point: str, n: int) -> int:
    """Write a line: the consequence that must not be repeated."""
    die(point, "begun")
    with Path(file).open("ab", buffering=0) as effects:
        effects.write(f"{n}\n".encode())
    die(point, "in the call")
    return n


def has_paid(file: str, point: str, n: int) -> int | NotDone:
    del point
    return n if n in lines_of(file) else NOT_DONE


def handlers(app: App) -> Any:
    """Register the body."""

    @app.task(name="payer", retries=0)
    def payer(file: str, point: str, mode: str, n: int) -> Told:
        write("start")
        die(point, "before")
        options: dict[str, Any] = {"check": has_paid} if mode == "check" else {"on_unknown": mode}
        result = None
        try:
            result = effect(pay, file, point, n, **options).result()
        except OutcomeUnknown as error:
            write("unknown", error.key)
        die(point, "committed")
        attempt = current()
        assert attempt is not None
        return Told(result, effects_of(attempt.task.steps, running=attempt.task.attempt))

    return payer


def break_here() -> None:
    """Let the process die, or wait, where no function of a user is called."""
    remember, look = Attempt.remember, Ledger._look_again

    def deadly(self: Attempt, key: str, value: Any, what: str) -> Any:
        point = msgspec.json.decode(self.task.payload)["point"]
        if key.startswith("effect|"):
            die(point, "called")
            pause("called")
        ack = remember(self, key, value, what)
        if key.startswith("effect-begun|"):
            die(point, "mark is sent")
        return ack

    def waiting(self: Ledger, mark: str, sure_until_us: int) -> Iterator[Any]:
        pause("begun")
        yield from look(self, mark, sure_until_us)

    Attempt.remember = deadly  # type: ignore[method-assign]
    Ledger._look_again = waiting  # type: ignore[method-assign, assignment]


def run() -> None:
    """Be a worker process until SIGTERM or worse."""
    break_here()
    asyncio.run(main())


async def main() -> None:
    app = App()
    handlers(app)
    over = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
    async with app:
        write("ready")
        await over.wait()
    write("left")


if __name__ == "__main__":
    run()
