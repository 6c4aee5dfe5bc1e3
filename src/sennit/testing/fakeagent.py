"""A coding agent for tests: a real program that behaves like claude, codex or gemini, does what a script says, and costs nothing.

    agent = FakeAgent(tmp_path / "fake", "claude")
    agent.does(append("notes.txt", "one"), dies(), append("notes.txt", "two"), say("both are there"))

    fleet.agent("worker", Claude(program=agent.program), …)       # or start agent.program yourself, with agent.environ
    …
    assert [effect.facts["line"] for effect in agent.effects()] == ["one", "two"]       # and each of them once
    assert [run.pid for run in agent.runs()]                                            # two processes, one session

It keeps its sessions as the real ones do: `--resume` goes on where the transcript ends, a session id in use is refused, and two
processes on one session are *not* kept apart. A step is done once per session, also a fault: after `dies()` the next run goes on.
The prompt may say the steps as well, one per line: `fake: append notes.txt "one"`, `fake: {"do": "fail", "text": "no"}`.

It starts in about 30 ms, needs nothing but Python, and never touches the network (but for `calls_model`).
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Self

from sennit.errors import SettingsError
from sennit.testing.fakeagent_script import (
    Step,
    append,
    calls_model,
    commit,
    dies,
    dies_at_line,
    eats_memory,
    ends,
    exits,
    fails,
    floods,
    forgets_session,
    hangs,
    ignores_term,
    is_limited,
    leaks,
    leaves_child,
    leaves_daemon,
    pause,
    prints_garbage,
    prints_half_line,
    prints_long_line,
    prints_nothing,
    prints_raw,
    reaches_window,
    read,
    refuses,
    retries,
    say,
    shell,
    starts_slowly,
    stops_itself,
    think,
    touch,
    usage,
    uses,
    wait_for,
    write,
)

__all__ = [
    "FakeAgent",
    "FakeEvent",
    "Shape",
    "Step",
    "append",
    "calls_model",
    "commit",
    "dies",
    "dies_at_line",
    "eats_memory",
    "ends",
    "exits",
    "fails",
    "floods",
    "forgets_session",
    "hangs",
    "ignores_term",
    "is_limited",
    "leaks",
    "leaves_child",
    "leaves_daemon",
    "pause",
    "prints_garbage",
    "prints_half_line",
    "prints_long_line",
    "prints_nothing",
    "prints_raw",
    "reaches_window",
    "read",
    "refuses",
    "retries",
    "say",
    "shell",
    "starts_slowly",
    "stops_itself",
    "think",
    "touch",
    "usage",
    "uses",
    "wait_for",
    "write",
]

Shape = Literal["claude", "codex", "gemini"]

PROGRAM: Final = Path(__file__).with_name("fakeagent_program.py")
CONFIG: Final = {"claude": "CLAUDE_CONFIG_DIR", "codex": "CODEX_HOME", "gemini": "GEMINI_CLI_HOME"}


@dataclass(frozen=True, slots=True)
class FakeEvent:
    """One line of a fake agent's log.

    Attributes:
        event: `start` `refused` `prompt` `begin` `did` `denied` `deferred` `unanswered` `hook` `step` `spawned` `signal`
            `result` `end`. A process that was killed has no `end`.
        pid: of the process.  session_id: "" before it knows.  run: the how manieth process of its session, 0 before it knows.
        facts: the rest; of `start`: argv, cwd, environ (names only); of `did`: do, tool, path, line, …
    """

    event: str
    pid: int
    session_id: str
    run: int
    facts: Mapping[str, Any]


class FakeAgent:
    """A fake program in a folder, its script, and its log.

    One program may be started any number of times, also at once: what it does is decided by session and prompt.

    Args:
        folder: for the program, its script, its log and its config; made if it is not there.
        shape: whose flags and events it has.
        strict: refuse tools without leave by a flag or a hook, as claude does; else what no hook decides is allowed.
        unanswered: what a resumed session does about a tool use that was begun and never answered: `look` whether the effect
            is there and do it only if not, `repeat` it blindly, `skip` it.
        structured: what the result carries when a JSON schema is asked for.
        version: that `--version` prints.

    Raises:
        SettingsError: no such shape.
    """

    def __init__(
        self,
        folder: Path,
        shape: Shape = "claude",
        *,
        strict: bool = False,
        unanswered: Literal["look", "repeat", "skip"] = "look",
        structured: object = None,
        version: str = "",
    ) -> None:
        if shape not in CONFIG:
            raise SettingsError(f"there is no fake agent of the shape {shape!r}", fix="say claude, codex or gemini")
        self.folder = folder.absolute()
        self.shape: Shape = shape
        self.folder.mkdir(parents=True, exist_ok=True)
        self._script: dict[str, Any] = {
            "shape": shape,
            "strict": strict,
            "unanswered": unanswered,
            "structured": structured,
        }
        self._script |= {"version": version, "turns": []}
        self._wrapper = self.folder / shape
        argv = shlex.join([sys.executable, "-I", "-S", str(PROGRAM), str(self.folder)])
        self._wrapper.write_text(f'#!/bin/sh\nexec {argv} "$@"\n', encoding="utf-8")
        self._wrapper.chmod(0o755)
        self._save()

    # ---------------------------------------------------------------- what it is

    @property
    def program(self) -> str:
        """The file to run, named as its shape: with `folder` first on PATH it stands in for the real one."""
        return str(self._wrapper)

    @property
    def environ(self) -> dict[str, str]:
        """The environment variable that keeps its sessions inside its folder; add it to what you start it with."""
        return {CONFIG[self.shape]: str(self.folder / "config")}

    # ---------------------------------------------------------------- what it does

    def does(self, *steps: Step) -> Self:
        """Say what it does at the next prompt of a session: the first call is for the first, and so on."""
        self._script["turns"].append(list(steps))
        self._save()
        return self

    def otherwise(self, *steps: Step) -> Self:
        """Say what it does at all further prompts; without it, it says "done"."""
        self._script["otherwise"] = list(steps)
        self._save()
        return self

    def forgets_all(self) -> None:
        """Remove script, log and sessions; the program stays."""
        self._script["turns"] = []
        self._script.pop("otherwise", None)
        (self.folder / "log.jsonl").unlink(missing_ok=True)
        shutil.rmtree(self.folder / "config", ignore_errors=True)
        self._save()

    def _save(self) -> None:
        fresh = self.folder / "script.json.new"
        fresh.write_text(json.dumps(self._script), encoding="utf-8")
        fresh.replace(self.folder / "script.json")  # at once: a program may be starting

    # ---------------------------------------------------------------- what it did

    def events(self, *kinds: str) -> list[FakeEvent]:
        """Return its log in order, all of it or the lines of these kinds."""
        try:
            written = (self.folder / "log.jsonl").read_bytes()
        except FileNotFoundError:
            return []
        found = []
        for line in written[: written.rfind(b"\n") + 1].splitlines():  # the last one may be half-way
            facts = json.loads(line)
            if not kinds or facts["event"] in kinds:
                known = {name: facts.pop(name) for name in ("event", "pid", "session_id", "run")}
                found.append(FakeEvent(**known, facts=facts))
        return found

    def runs(self) -> list[FakeEvent]:
        """Return the start of each process: `facts["argv"]`, `["cwd"]`, `["environ"]` (names only)."""
        return self.events("start")

    def prompts(self) -> list[str | None]:
        """Return what it was told, run by run; None where it was to go on with a tool it had leave for."""
        return [event.facts["text"] for event in self.events("prompt")]

    def sessions(self) -> list[str]:
        """Return the ids of its sessions, in the order of their beginning."""
        return list(dict.fromkeys(event.session_id for event in self.events("prompt")))

    def effects(self) -> list[FakeEvent]:
        """Return the effects of its tools that took place, in order: what was done twice stands here twice."""
        return [event for event in self.events("did") if event.facts["do"] != "read"]

    def left_behind(self) -> list[int]:
        """Return the pids of the processes that it left behind, whether they live or not."""
        return [event.facts["child"] for event in self.events("spawned")]
