"""What an adapter is: it says what to start, and reads what the program writes. It starts nothing and waits for nothing.

AgentRun ─launch─► Launch (argv, environment, files, stdin) ─► supervisor ─► process
                                          ▲                                    │ lines of stdout and stderr
                                to_say ───┴── Reader ◄─────────────────────────┘
                                                └──► AgentEvent …  ─► RunEnd, when it has exited
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import msgspec

from sennit.model.agent import AgentEvent, AgentUsage, RunEnd


class AgentRun(msgspec.Struct, frozen=True, kw_only=True):
    """One run that is to be started.

    Attributes:
        prompt: what to do; on a resume after a crash, what to be told; "" where only leave was given.
        session_id: chosen by us for a new session, "" where the program chooses; of the session, on a resume.
        is_resume: go on with the session.
        cwd: the folder to work in.
        folder: of this run, private, exists: for files that the program or its hooks read.
        decisions: leave that people gave or refused, by call id.
        usage: what the session has used before this run, as far as is known: codex tells only the sum of a session.
    """

    prompt: str
    session_id: str
    is_resume: bool
    cwd: Path
    folder: Path
    decisions: Mapping[str, bool] = {}
    usage: AgentUsage = AgentUsage()


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """What to start.

    Attributes:
        environ: added to what the allow-list lets through.
        stdin: what it reads, then end of file; None is nothing at all (/dev/null).
        talks: stdin stays open, and what `Reader.to_say` returns is written to it.
    """

    argv: tuple[str, ...]
    environ: Mapping[str, str] = {}
    stdin: bytes | None = None
    talks: bool = False


class Exit(msgspec.Struct, frozen=True, kw_only=True):
    """How a process ended.

    Attributes:
        code: what it returned; None when a signal ended it.  signal: which.
        cause: why we ended it: a ceiling (`wall` `idle` `memory` `output` `linger`), `disk` (its output could not be
            written), `stopped`, `lease` (of a supervisor that was frozen), `lost` (who stood over it was killed); "" when it ended by
            itself.
        left_behind: processes of its tree that outlived it and were killed.
        cpu_s, memory_bytes_peak: of its whole tree, as far as the kernel tells.
    """

    code: int | None = None
    signal: int = 0
    cause: str = ""
    left_behind: int = 0
    cpu_s: float = 0.0
    memory_bytes_peak: int = 0


class Reader(Protocol):
    """Reads one run. Its methods never raise because of what the program wrote: that is hostile or broken at times."""

    def feed(self, line: bytes) -> list[AgentEvent]:
        """Read one line of stdout, without its end; one that makes no sense gives nothing."""

    def feed_error(self, line: bytes) -> list[AgentEvent]:
        """Read one line of stderr."""

    def to_say(self) -> bytes:
        """Return and forget what is to be written to stdin now; asked at the start and after each line."""

    def end(self, exit: Exit) -> RunEnd:  # noqa: A002 - that is what it is
        """Judge the run. Success is a terminal event, no error flag in it, and exit 0 (or our own end after it: `linger`)."""


class Adapter(Protocol):
    """One kind of program."""

    @property
    def name(self) -> str:
        """Of the kind of program: `claude`, `codex`, `gemini`, `acp`, `command`."""

    @property
    def program(self) -> str:
        """The file to run, or the name that is looked for on PATH."""

    @property
    def passes(self) -> tuple[str, ...]:
        """Environment variables that it needs besides the usual ones; `PREFIX_*` is all that begin so."""

    @property
    def secrets(self) -> tuple[str, ...]:
        """Environment variables among them whose values are never written down."""

    def new_session_id(self) -> str:
        """Return an id for a new session, "" where the program chooses one."""

    def launch(self, run: AgentRun) -> Launch:
        """Return what to start; may write files into `run.folder`."""

    def reader(self, run: AgentRun) -> Reader:
        """Return a reader for this run."""
