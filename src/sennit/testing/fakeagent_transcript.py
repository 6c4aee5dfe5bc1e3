"""The session of a fake agent: a file of JSON lines under its config folder, and what it says has been done.

    user ─► (tool_use ─► tool_result | deferred)* ─► text* ─► result          one turn; a run may end anywhere in it

Each line carries `fake`, which is all that this program reads back; what stands beside it is for the eye. Lines are
appended in one write and never changed. A kill -9 loses none of them, a power failure may: nothing is synced.
"""

from __future__ import annotations

import json
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Transcript:
    """One session.

    Attributes:
        turns: the prompts so far.
        done: keys (`turn.step`) of steps that are over, with how often they were.
        begun: steps with a tool use that has no answer: key -> call id.
        deferred: key of the step that waits for leave, "" when none does.
        said: the last text of the current turn.
        runs: processes that worked on it so far.
        is_finished: the last turn has its result.
        usage: of all runs before this one: input, cached, output.
    """

    def __init__(self, path: str, session_id: str) -> None:
        self.path = path
        self.session_id = session_id
        self.turns: list[str] = []
        self.done: dict[str, int] = {}
        self.begun: dict[str, str] = {}
        self.deferred = ""
        self.said = ""
        self.runs = 0
        self.is_finished = False
        self.usage = [0, 0, 0]
        self._fd = -1

    @property
    def key_prefix(self) -> str:
        """Of the steps of the current turn."""
        return f"{max(len(self.turns) - 1, 0)}."

    def exists(self) -> bool:
        """Whether the session is known."""
        return os.path.exists(self.path)  # noqa: PTH110 - pathlib costs 5 ms of start

    def load(self) -> None:
        """Read it.

        Raises:
            FileNotFoundError: there is none.
        """
        with open(self.path, "rb") as file:  # noqa: PTH123 - pathlib costs 5 ms of start
            for line in file:
                try:
                    self._apply(json.loads(line)["fake"])
                except (ValueError, KeyError):
                    continue  # the half line of a process that was killed while it wrote

    def note(self, what: str, beside: dict[str, Any] | None = None, **facts: object) -> None:
        """Append a line: `what` with `facts`, and `beside` it what the real program would write."""
        fake = {"what": what, **facts}
        self._apply(fake)
        if self.path:
            if self._fd < 0:
                os.makedirs(os.path.dirname(self.path), exist_ok=True)  # noqa: PTH103, PTH120
                self._fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            os.write(self._fd, json.dumps({**(beside or {}), "fake": fake}, separators=(",", ":")).encode() + b"\n")

    def forget(self) -> None:
        """Lose the session."""
        if self.path:
            os.unlink(self.path)  # noqa: PTH108
            self.path = ""

    def _apply(self, fake: dict[str, Any]) -> None:
        key = str(fake.get("key", ""))
        match fake["what"]:
            case "run":
                self.runs += 1
            case "user":
                if fake["is_turn"]:
                    self.turns.append(fake["text"])
                    self.is_finished = False
                    self.said = ""
            case "tool_use":
                self.begun[key] = fake["call_id"]
            case "tool_result":
                self.begun.pop(key, None)
                self.done[key] = 1
                self.deferred = ""
            case "deferred":
                self.deferred = key
            case "step":
                self.done[key] = self.done.get(key, 0) + 1
                self.said = fake.get("text", self.said)
            case "usage":
                self.usage = [had + more for had, more in zip(self.usage, fake["usage"], strict=True)]
            case "result":
                self.is_finished = not fake["is_error"]
