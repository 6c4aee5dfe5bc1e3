"""What the attempts of an agent's task tell each other: sessions, runs, tool uses. Kept as steps, so under the claim token.

    agent|run|1      before the process is started: where it will write, which session was chosen for it
    agent|session|1  as soon as the program has named its session
    agent|tool|1|id  it begins to use a tool: pending     agent|done|1|id  and has: committed
    agent|end|1      how the run ended; without it the run was cut off, and its files are read to learn the rest

A tool use that is pending when its run was cut off is *unknown*: nobody repeats it, the agent itself is told.
"""

from __future__ import annotations

import hashlib
import logging
import re
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from sennit.errors import AgentError, AttemptCancelled
from sennit.execute.adapters.base import Adapter, AgentRun, Exit, Reader
from sennit.execute.agent_leftover import clean_up
from sennit.execute.agent_output import read_lines
from sennit.model.agent import AgentEvent, AgentUsage, RunEnd, ToolUse
from sennit.runtime.agent_fit import fitting, short_input
from sennit.submit.attempt import Attempt
from sennit.sync.ack import Ack

__all__ = ["RunRecord", "Story", "sum_of"]

_log = logging.getLogger("sennit")

T = TypeVar("T")

# A tool that waits for leave was not used.
_ASKED: Final = "asked"
_FINISHED: Final = "agent-worktree"
# A program chooses its call ids: one that is no such word is not part of a key as it is.
_WORD: Final = re.compile(r"[\w.:#-]{1,120}", re.ASCII)
_CALL_ID_CHARS_MAX: Final = 200
# Why we ended it ourselves, not for anything that it did: a result that was there before stands.
_NOT_ITS_FAULT: Final = frozenset({"stopped", "lease", "lost"})


class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A run that was about to be started. `session_id` is "" where the program chooses it."""

    run: int
    attempt: int
    session_id: str
    is_resume: bool
    folder: str
    cwd: str
    host: str


class Story:
    """All runs of one task so far, of all attempts. Writes go to the store at once and are refused to a stale attempt.

    Attributes:
        records, ends: by number of the run, from 1.
        unknown: tool uses of which nobody knows whether they took place.
        answered: those that took place, in order.
    """

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self.records: dict[int, RunRecord] = {}
        self.ends: dict[int, RunEnd] = {}
        self.session_id = ""
        self.unknown: list[ToolUse] = []
        self.answered: list[ToolUse] = []
        self._pending: dict[str, ToolUse] = {}  # by the word for the call, of the last run
        self._known: set[str] = set()  # all that the last run has begun
        self._unsaved: list[Ack[bool]] = []
        uses: list[tuple[int, str, ToolUse]] = []
        answers: dict[str, str] = {}
        for kind, number, rest, value in _steps_of(attempt):
            match kind:
                case "run":
                    self.records[number] = msgspec.json.decode(value, type=RunRecord)
                case "session":
                    self.session_id = msgspec.json.decode(value, type=str)
                case "end":
                    self.ends[number] = msgspec.json.decode(value, type=RunEnd)
                case "tool":
                    uses.append((number, rest, msgspec.json.decode(value, type=ToolUse)))
                case _:
                    answers[rest] = msgspec.json.decode(value, type=str)
        for number, rest, use in uses:
            word = rest.partition("|")[2]
            if number not in self.ends:
                self._known.add(word)
            if rest in answers:
                if answers[rest] != _ASKED:
                    self.answered.append(use)
            elif number in self.ends:
                self.unknown.append(use)
            else:
                self._pending[word] = use

    @property
    def runs(self) -> int:
        """How many there were."""
        return max(self.records, default=0)

    @property
    def tools(self) -> int:
        """How many tool uses were answered."""
        return len(self.answered)

    @property
    def last(self) -> RunRecord | None:
        """The last run; None before the first."""
        return self.records.get(self.runs)

    @property
    def last_end(self) -> RunEnd | None:
        """How it ended; None before that, also when it was cut off and nobody has looked yet."""
        return self.ends.get(self.runs)

    def used(self, session_id: str) -> AgentUsage:
        """Return what a session has used so far, as its runs have told."""
        return sum_of(end.usage for end in self.ends.values() if end.session_id == session_id)

    @property
    def limited_in_a_row(self) -> int:
        """How many of the last runs its provider has refused."""
        ends = [self.ends[number].outcome for number in sorted(self.ends)]
        return next((n for n, outcome in enumerate(reversed(ends)) if outcome != "limited"), len(ends))

    # ------------------------------------------------------------ what happens

    async def begin(self, record: RunRecord) -> None:
        """Record a run before it is started: whoever comes after can find what it left."""
        self.records[record.run] = record
        self._known.clear()
        await self._saved("run", str(record.run), record)
        await self._named(record.session_id)

    def note(self, event: AgentEvent) -> None:
        """Take down what an event says, without waiting for the store."""
        run, word = self.runs, _word(event.call_id)
        match event.kind:
            case "session" if event.session_id and event.session_id != self.session_id:
                self.session_id = event.session_id
                self._save("session", str(run), event.session_id)
            case "tool_begin" if event.call_id and word not in self._known:
                use = ToolUse(
                    call_id=event.call_id[:_CALL_ID_CHARS_MAX],
                    tool=event.tool[:_CALL_ID_CHARS_MAX],
                    input=short_input(event.input, self._attempt.size_bytes_max),
                )
                self._known.add(word)
                self._pending[word] = use
                self._save("tool", f"{run}|{word}", use)
            case "tool_end" if word in self._pending:
                self.answered.append(self._pending.pop(word))
                self._save("done", f"{run}|{word}", "error" if event.is_error else "ok")

    async def end(self, end: RunEnd) -> RunEnd:
        """Record how the last run ended; return it as it is kept. A result that is too long is whole in the run's folder.

        What it began and did not end is unknown, unless it asked for leave first.
        """
        await self._named(end.session_id)
        # Of calls that were asked for at once, claude's ids carry what they do, too: `id#fingerprint`.
        asked = {_word(said) for wanted in end.asks for said in (wanted.call_id, wanted.call_id.partition("#")[0])}
        for word, use in self._pending.items():
            if word in asked:
                self._save("done", f"{self.runs}|{word}", _ASKED)
            else:
                self.unknown.append(use)
        self._pending.clear()
        unsaved, self._unsaved = self._unsaved, []
        for ack in unsaved:
            _held(await ack)
        folder = None if self.last is None else Path(self.last.folder)
        end = fitting(end, self._attempt.size_bytes_max, folder)
        self.ends[self.runs] = end
        await self._saved("end", str(self.runs), end)
        return end

    def finished(self, kind: type[T]) -> T | None:
        """Return what became of the working folder, if an attempt has come that far."""
        stored = self._attempt.recall(_FINISHED)
        return None if stored is None else msgspec.json.decode(stored, type=kind)

    async def finish(self, finished: msgspec.Struct) -> None:
        """Record what became of the working folder."""
        _held(await self._attempt.remember(_FINISHED, finished, "the end of a worktree"))

    def reread(self, adapter: Adapter) -> RunEnd:
        """End what is left of a run that was cut off, then read its files to their end; blocks.

        Return how it ended: as its reader says when its terminal event is there, or when it ended by itself and only nobody
        was there to take it down; else `cut_off`. On another machine than that of the run there is nothing to end or to read.
        """
        record = self.last
        if record is None:
            raise AssertionError("there was no run")
        folder = Path(record.folder)
        end = RunEnd(outcome="cut_off", text="its supervisor ended before it", session_id=self.session_id)
        if record.host != socket.gethostname() or not folder.exists():
            return end
        left = clean_up(folder)
        if left is not None:
            _log.warning("run %d of this agent was left behind: %s", record.run, left)
        reader = adapter.reader(_as_run(record, self.used(record.session_id)))
        is_done = self._read_all(folder, reader)
        ended = _exit_in(folder)
        if is_done and (ended is None or ended.cause in _NOT_ITS_FAULT):
            return reader.end(Exit(signal=9, cause="linger"))
        if ended is not None and ended.cause not in _NOT_ITS_FAULT:
            return reader.end(ended)
        lost = reader.end(Exit(signal=9, cause="lost"))
        return msgspec.structs.replace(
            end,
            session_id=lost.session_id or end.session_id,
            usage=lost.usage,
            model=lost.model,
            turns=lost.turns,
        )

    def _read_all(self, folder: Path, reader: Reader) -> bool:
        """Take down what a run has written; return whether its terminal event is there."""
        is_done = False
        try:
            for name, feed in (("stdout.log", reader.feed), ("stderr.log", reader.feed_error)):
                for line in read_lines(folder / name):
                    for event in feed(line):
                        self.note(event)
                        is_done |= event.kind == "result"
        except (OSError, AgentError) as error:
            _log.warning("what a run has written to %s cannot be read: %s", folder, error)
        return is_done

    # ------------------------------------------------------------ writing

    async def _named(self, session_id: str) -> None:
        if session_id and session_id != self.session_id:
            self.session_id = session_id
            await self._saved("session", str(self.runs), session_id)

    def _save(self, kind: str, rest: str, value: Any) -> None:
        self._unsaved.append(self._attempt.remember(f"agent|{kind}|{rest}", value, f"the {kind} of an agent"))

    async def _saved(self, kind: str, rest: str, value: Any) -> None:
        _held(await self._attempt.remember(f"agent|{kind}|{rest}", value, f"the {kind} of an agent"))


def sum_of(usages: Iterable[AgentUsage]) -> AgentUsage:
    """Return the sum; its cost is None where no run told any."""
    every = list(usages)
    costs = [usage.cost_usd for usage in every if usage.cost_usd is not None]
    return AgentUsage(
        input_tokens=sum(usage.input_tokens for usage in every),
        output_tokens=sum(usage.output_tokens for usage in every),
        cached_input_tokens=sum(usage.cached_input_tokens for usage in every),
        cost_usd=sum(costs) if costs else None,
    )


def _steps_of(attempt: Attempt) -> list[tuple[str, int, str, bytes]]:
    """Return (kind, run, what follows the kind, value) of each step that is ours, by run."""
    found = []
    for key, value in attempt.task.steps.items():
        if key.startswith("agent|"):
            _, kind, rest = key.split("|", 2)
            found.append((kind, int(rest.partition("|")[0]), rest, value))
    return sorted(found, key=lambda part: part[1])


def _held(accepted: bool) -> None:  # noqa: FBT001 - the store's answer, as it comes
    if not accepted:
        raise AttemptCancelled("lease lost")


def _as_run(record: RunRecord, usage: AgentUsage) -> AgentRun:
    return AgentRun(
        prompt="",
        session_id=record.session_id,
        is_resume=record.is_resume,
        cwd=Path(record.cwd),
        folder=Path(record.folder),
        usage=usage if record.is_resume else AgentUsage(),
    )


def _exit_in(folder: Path) -> Exit | None:
    """Return what the keeper of a run has left: how its program ended; None when it could not."""
    try:
        return msgspec.json.decode((folder / "exit.json").read_bytes(), type=Exit)
    except (OSError, msgspec.DecodeError):
        return None


def _word(call_id: str) -> str:
    """Return what stands for a call in a key."""
    if _WORD.fullmatch(call_id):
        return call_id
    return hashlib.blake2b(call_id.encode("utf-8", "replace"), digest_size=12).hexdigest()
