"""The agents of a run from the director's side: who waits at its gate, who may go on, and what their program has logged.

    agent ─► log.jsonl ─tail─► waits at its gate ─► the worker to kill ─► killed ─► gates of all others open
                                                                                       │
             log.jsonl ─tail─► its session is gone on with, in another process ─► its gate opens too

The gate of the agent that was killed opens last: else it could be through before the kernel has ended it.

The log is written by the program itself, and by nobody else: it is a witness of its own of what took place how often.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec

from sennit.cli.demo.audit import Auditing, arrived, gate
from sennit.cli.demo.journal import Entry
from sennit.cli.demo.records import AgentsUse, Audit, Discrepancies, Outcome
from sennit.errors import AgentMissing, AgentUnsupported
from sennit.execute.agent_output import tail
from sennit.execute.supervisor import ProcessSpec, Supervisor
from sennit.model.lifecycle import State
from sennit.model.task import TaskView
from sennit.testing.fakeagent import FakeAgent, FakeEvent


async def why_unsupported(folder: Path) -> str:
    """Return why no agent can run on this system; "" when they can. Nothing is started."""
    nothing = ProcessSpec(
        argv=(), environ={}, cwd=folder, folder=folder, stdin=None, talks=False, secrets=(), memory_bytes_max=0,
        output_bytes_max=0,
    )  # fmt: skip
    try:
        await Supervisor().spawn(nothing)
    except AgentUnsupported as error:
        return error.why or error.what
    except AgentMissing:  # it has looked for the program, so it would start one
        return ""
    raise AssertionError("there was nothing to start")


class Auditors:
    """The agents of one run; belongs to the director's event loop.

    Args:
        pids: of the workers.
        waits: they wait at their gates for one of these to be killed.

    Attributes:
        auditing: None when no agent is to run.
    """

    def __init__(self, folder: Path, *, pids: Sequence[int], waits: bool, tell: Callable[[str], None]) -> None:
        self.auditing: Auditing | None = None
        self._folder = folder
        self._pids = tuple(pids)
        self._waits = waits
        self._tell = tell

    async def prepare(self) -> None:
        """Make their program ready, if this system can run it; else say so."""
        why = await why_unsupported(self._folder.parent)
        if why:
            self._tell(f"without coding agents: {why}")
            return
        FakeAgent(self._folder)
        self.auditing = Auditing(str(self._folder), waits=self._waits)

    async def watch(self, on_arrival: Callable[[], None]) -> None:
        """Follow the log of their program: call `on_arrival` when one waits, open all gates when one has gone on."""
        if self.auditing is None or not self._waits:
            return
        async with tail(self._folder / "log.jsonl") as lines:
            async for line in lines:
                event = msgspec.json.decode(line)
                if event["event"] == "step" and event["do"] == "touch":
                    on_arrival()
                elif event["event"] == "prompt" and event["run"] > 1:
                    self.let_go()

    def at_gate(self) -> set[int]:
        """Return the workers of which an agent waits; each runs one at a time."""
        if self.auditing is None or not self._waits:
            return set()
        return {pid for pid in self._pids if arrived(self.auditing, pid).exists()}

    @property
    def environ(self) -> dict[str, str]:
        """What workers need to know: where temporary files lie, so that the locks of sessions go with the sessions."""
        return {} if self.auditing is None else {"TMPDIR": self.auditing.folder}

    def let_go(self, *, but: int = 0) -> None:
        """Open the gates of all agents, but those of one worker."""
        if self.auditing is not None and self._waits:
            for pid in self._pids:
                if pid != but:
                    gate(self.auditing, pid).touch()


# ---------------------------------------------------------------- the stocktaking


def logged(folder: Path) -> list[FakeEvent]:
    """Return what their program has logged; nothing where none ran."""
    return FakeAgent(folder).events("prompt", "did", "result") if (folder / "log.jsonl").exists() else []


def use_of(audits: Sequence[Audit], events: Iterable[FakeEvent]) -> AgentsUse:
    """Return what the agents took."""
    done = Counter((event.session_id, event.facts["key"]) for event in events if event.event == "did")  # by step
    return AgentsUse(
        agents=len(audits),
        tools=len(done),
        runs=sum(audit.runs for audit in audits),
        resumed=sum(audit.runs > 1 for audit in audits),
        repeated=sum(n - 1 for n in done.values()),
    )


def compare(audits: Iterable[Audit], events: Iterable[FakeEvent]) -> Discrepancies:
    """Hold what the report has of each agent against the log of their program."""
    said = {(event.session_id, event.facts["text"]) for event in events if event.event == "result"}
    return Discrepancies(
        wrong=tuple(
            f"the audit of {audit.package} (task {audit.task_id}) succeeded, and no program has said what it says"
            for audit in audits
            if (audit.session_id, audit.text) not in said
        )
    )


def with_ends(entries: Sequence[Entry], rows: Iterable[TaskView], *, handler: str, offset_us: int) -> list[Entry]:
    """Return the journal with the ends of audits, of which no body tells: those in the store.

    Args:
        offset_us: from uptime to the store's clock.
    """
    begun = {(entry.task_id, entry.attempt): entry for entry in entries if entry.kind == "audit"}
    ends = []
    for row in rows:
        last = begun.get((row.id, row.attempt)) if row.handler == handler else None
        if last is not None and row.done_us is not None:
            outcome: Outcome = "succeeded" if row.state is State.SUCCEEDED else "failed"
            ends.append(msgspec.structs.replace(last, at_us=row.done_us - offset_us, outcome=outcome))
    return [*entries, *ends]
