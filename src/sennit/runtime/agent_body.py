"""The body of an agent's task: from the story so far to the next run, until one has succeeded.

    story ─┬─ nothing yet ──────────────► new session
           ├─ cut off, limited, failed ─► the same session goes on, and is told what is unknown
           ├─ waits for leave ──────────► ask; the task is suspended and no process is there ─► the same session
           ├─ session lost ─────────────► new session that is told to look around first
           └─ success ──────────────────► the working folder is finished, and that is the result

A provider's limit is nobody's failure: the attempt is given back, and claimed when the provider takes calls again.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec

from sennit.errors import AgentError, AgentFailed, AgentLimited, SessionBusy
from sennit.execute.adapters.base import Adapter, AgentRun
from sennit.execute.agent_run import Finished, RunPlan, run_agent
from sennit.model.agent import AgentEvent, AgentResult, AgentUsage, AgentView, Ceilings, RunEnd
from sennit.model.retry import Snooze
from sennit.runtime.agent_board import Board, shortened
from sennit.runtime.agent_calls import Calls, RunCall, limited_s
from sennit.runtime.agent_crew import Crew
from sennit.runtime.agent_fit import last_that_fit
from sennit.runtime.agent_places import OnSuccess, Place, PlaceFinished, Workplaces, folder_in, unused
from sennit.runtime.agent_sessions import session_held
from sennit.runtime.agent_story import RunRecord, Story, sum_of
from sennit.runtime.agent_words import Prompt, go_on, question, whole
from sennit.store.protocol import Store
from sennit.submit.asking import ask
from sennit.submit.attempt import Attempt
from sennit.submit.context import attempt_here
from sennit.submit.limits import Limits
from sennit.sync.pending import run as run_flow

__all__ = ["AgentKind", "work"]

# A limit that says nothing of its end, where no provider is declared that would probe it.
LIMITED_S: Final = 60.0
# One whose end has passed and that is still there: doubled by each run that it refuses.
LIMITED_S_MIN: Final = 1.0
# Another task works on the session, perhaps for hours.
SESSION_AGAIN_S: Final = 10.0


# Nobody is there to answer git, and it is not to tidy up a repository under others that work in it.
_ENVIRON: Final = {
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_CONFIG_COUNT": "2",
    "GIT_CONFIG_KEY_0": "gc.auto",
    "GIT_CONFIG_VALUE_0": "0",
    "GIT_CONFIG_KEY_1": "maintenance.auto",
    "GIT_CONFIG_VALUE_1": "false",
}


class AgentKind(msgspec.Struct, frozen=True, kw_only=True):
    """What `app.agent` was told. See there."""

    name: str
    adapter: Any  # an Adapter
    ceilings: Ceilings = Ceilings()
    cwd: Path | None = None
    environ: Mapping[str, str] = {}
    passes: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()
    provider: str = ""
    isolate: str = ""
    on_success: OnSuccess = "leave"
    base: str = "HEAD"
    on_retry: str = "resume"
    approve_s: float | None = None


async def work(
    kind: AgentKind,
    prompt: Prompt,
    *,
    crew: Crew,
    store: Callable[[], Store],
    limits: Limits,
    workplaces: Workplaces,
) -> AgentResult | Snooze:
    """Run an agent as the body of the attempt around this, to its result.

    Raises:
        AgentFailed, AgentMissing, SessionBusy: the attempt has failed; a later one goes on with the session. A session that
            another task works on here is waited for, without a slot.
        AgentLimited: its provider refuses calls; the attempt is given back.
        AgentError: its working folder cannot be.
    """
    attempt = attempt_here(f"the agent {kind.name!r}")
    return await _Work(kind, prompt, attempt, crew, store(), limits, workplaces).to_result()


class _Work:
    """One attempt."""

    def __init__(  # noqa: PLR0917 - one caller, just above
        self,
        kind: AgentKind,
        prompt: Prompt,
        attempt: Attempt,
        crew: Crew,
        store: Store,
        limits: Limits,
        workplaces: Workplaces,
    ) -> None:
        self._kind = kind
        self._adapter: Adapter = kind.adapter
        self._prompt = prompt
        self._attempt = attempt
        self._crew = crew
        self._store = store
        self._workplaces = workplaces
        self._story = Story(attempt)
        self._calls = Calls(store, limits, kind.provider, attempt.task.id)
        self._lost = 0
        self._decided: dict[str, bool] = {}
        self._asked: set[int] = set()  # runs whose questions are among these

    async def to_result(self) -> AgentResult | Snooze:
        story = self._story
        try:
            if story.last is not None and story.last_end is None:
                end = await story.end(await asyncio.to_thread(story.reread, self._adapter))
                self._calls.ended_alone(end, Path(story.last.folder))
            place: Place | None = None
            while (last := story.last_end) is None or last.outcome != "success":
                if self._attempt.is_pressed:
                    await run_flow(self._attempt.make_room())
                place = place or await self._place()
                decisions = await self._decisions()
                try:
                    finished = await self._next_run(place, decisions)
                except SessionBusy as error:
                    return Snooze(SESSION_AGAIN_S, reason=error.what)
                later = self._judge(finished)
                if later is not None:
                    return later
            return await self._concluded(place, last)
        finally:
            self._crew.gone(self._attempt.task.id)
            self._crew.tidy(self._store)

    async def _place(self) -> Place:
        kind = self._kind
        return await self._workplaces.of(
            folder_in(kind.cwd, self._prompt.cwd),
            agent=kind.name,
            task_id=self._attempt.task.id,
            isolate=kind.isolate,
            base=kind.base,
        )

    # ------------------------------------------------------------ leave from people

    async def _decisions(self) -> dict[str, bool]:
        """Return what people said to all that was asked so far; suspends the task while they have not.

        Each question is put once in an attempt: put again it would be another one.
        """
        wanted = [
            (asked, ask(
                question(self._kind.name, asked.tool, asked.input),
                bool,
                context={"agent": self._kind.name, "tool": asked.tool, "input": asked.input},
                expires_s=self._kind.approve_s,
            ))
            for number, end in sorted(self._story.ends.items())
            if number not in self._asked
            for asked in end.asks
        ]  # fmt: skip
        self._asked.update(self._story.ends)
        for asked, answer in wanted:
            self._decided[asked.call_id] = await answer
        return self._decided

    # ------------------------------------------------------------ one run

    async def _next_run(self, place: Place, decisions: Mapping[str, bool]) -> Finished:
        run = self._planned(place, decisions)
        # The place last: a permit came with the claim, so who waits for one must hold no place.
        async with self._session(run), self._calls.one() as call, self._crew.place():
            finished = await self._run(run, place, call)
            end = finished.end
            if end.outcome == "limited" and self._kind.provider:
                # In here, so that the slot sees it: then the attempt is not to blame, and is given back.
                raise AgentLimited(
                    f"agent {self._kind.name}: {end.text or 'its provider takes no calls'}",
                    agent=self._kind.name,
                    retry_after_s=limited_s(end),
                )
            return finished

    async def _run(self, run: AgentRun, place: Place, call: RunCall) -> Finished:
        board = self._board(run, place)
        view = board.view
        self._crew.note(view)
        await self._story.begin(
            RunRecord(
                run=view.run,
                attempt=view.attempt,
                session_id=run.session_id,
                is_resume=run.is_resume,
                folder=view.folder,
                cwd=view.cwd,
                host=view.host,
            )
        )
        plan = RunPlan(
            run=run,
            ceilings=self._kind.ceilings,
            environ={**_ENVIRON, **self._kind.environ},
            passes=self._kind.passes,
            secrets=self._kind.secrets,
        )
        try:
            finished = await run_agent(
                self._crew.supervisor(),
                self._adapter,
                plan,
                on_event=partial(self._told, board),
                on_started=board.started,
            )
            end = await self._story.end(self._as_ended(finished))
            finished = msgspec.structs.replace(finished, end=end)
            call.ended(end)
            await self._note_end(board, finished)
        except BaseException as error:
            if isinstance(error, AgentError):  # nothing was started
                await self._story.end(RunEnd(outcome="error", text=error.what))
                await board.last("waiting", error=error.what)
            else:
                call.cut_off(board.view.usage, run.folder)
            raise
        finally:
            board.close()
        return finished

    def _board(self, run: AgentRun, place: Place) -> Board:
        view = AgentView(
            task_id=self._attempt.task.id,
            agent=self._kind.name,
            adapter=self._adapter.name,
            attempt=self._attempt.task.attempt,
            run=self._story.runs + 1,
            session_id=run.session_id,
            host=socket.gethostname(),
            since_us=self._store.now_us(),
            tools=self._story.tools,
            cwd=str(run.cwd),
            folder=str(run.folder),
        )
        view = msgspec.structs.replace(view, **place.facts)
        return Board(self._store, self._attempt.task.claim, view, on_change=self._crew.note)

    def _as_ended(self, finished: Finished) -> RunEnd:
        """Return the end with what only we know: how long it took, and how long to leave alone a limit that is still there."""
        end = msgspec.structs.replace(finished.end, duration_s=finished.duration_s)
        if end.outcome == "limited" and (after_s := limited_s(end)) is not None:
            least_s = min(LIMITED_S, LIMITED_S_MIN * 2.0**self._story.limited_in_a_row)
            if after_s < least_s:
                end = msgspec.structs.replace(end, retry_after_s=least_s)
        return end

    def _planned(self, place: Place, decisions: Mapping[str, bool]) -> AgentRun:
        """Return the next run: the first of a new session, or one that goes on with a session."""
        story, prompt, end = self._story, self._prompt, self._story.last_end
        folder = unused(self._crew.run_folder(self._attempt.task.id, story.runs + 1))
        given = prompt.resume.session_id if isinstance(prompt.resume, AgentResult) else prompt.resume or ""
        text, session_id = "", story.session_id
        is_fresh = end is None or not session_id or end.outcome == "lost_session"
        is_fresh |= end is not None and end.outcome == "busy_session" and not self._last_was_resume()
        is_fresh |= end is not None and self._kind.on_retry == "restart" and end.outcome not in {"asks", "limited"}
        if is_fresh and given and end is None:
            text, session_id, is_fresh = whole(prompt.text, prompt.context), given, False
        elif is_fresh:
            is_anew = end is not None and end.outcome != "busy_session"
            text, session_id = whole(prompt.text, prompt.context, is_anew=is_anew), self._adapter.new_session_id()
        elif end is not None and end.outcome != "asks":
            # Of one that has used no tool nobody knows whether it was told its task at all.
            task = "" if story.answered or story.unknown else whole(prompt.text, prompt.context)
            text = go_on(end, story.answered, story.unknown, task=task)
        return AgentRun(
            prompt=text,
            session_id=session_id,
            is_resume=not is_fresh,
            cwd=place.cwd,
            folder=folder,
            decisions=decisions,
            usage=AgentUsage() if is_fresh else story.used(session_id),
        )

    def _last_was_resume(self) -> bool:
        last = self._story.last
        return last is not None and last.is_resume

    def _session(self, run: AgentRun) -> AbstractAsyncContextManager[None]:
        last = self._story.last if run.is_resume and run.session_id == self._story.session_id else None
        return session_held(
            self._adapter.name,
            run.session_id,
            agent=self._kind.name,
            whose=f"task {self._attempt.task.id} in {self._crew.folder}",
            before=None if last is None else Path(last.folder),
        )

    def _told(self, board: Board, event: AgentEvent) -> None:
        self._attempt.beat()
        self._story.note(event)
        self._calls.told(event)
        board.event(event)

    async def _note_end(self, board: Board, finished: Finished) -> None:
        """Note how it stands: one that has not succeeded waits, for its task may be attempted again; if not, that ends it."""
        end = finished.end
        facts: dict[str, Any] = {"session_id": self._story.session_id, "tools": self._story.tools}
        if end.usage != AgentUsage():
            facts["usage"] = end.usage
        if end.outcome == "success":
            await board.last("done", doing="", **facts)
        else:
            facts["error"] = "" if end.outcome == "asks" else _what(self._kind.name, finished)
            await board.last("waiting", **facts)

    # ------------------------------------------------------------ how it went

    def _judge(self, finished: Finished) -> Snooze | None:
        """Raise what the attempt fails with; return a snooze, or None to go on."""
        end, name = finished.end, self._kind.name
        match end.outcome:
            case "success" | "asks":
                return None
            case "lost_session" if not self._lost:
                self._lost += 1
                return None
            case "busy_session" if not self._last_was_resume() and not self._lost:
                self._lost += 1
                return None
            case "busy_session":
                raise SessionBusy(f"session {self._story.session_id} is in use", agent=name, why=end.text)
            case "limited":
                after_s = limited_s(end)
                return Snooze(LIMITED_S if after_s is None else after_s, reason=f"the provider of {name} is limited")
        last = self._story.last
        raise AgentFailed(
            _what(name, finished),
            agent=name,
            outcome=finished.exit.cause if finished.exit.cause not in {"", "linger"} else end.outcome,
            folder="" if last is None else last.folder,
            fix=_fix(end, self._attempt.task.id),
        )

    async def _concluded(self, place: Place | None, end: RunEnd) -> AgentResult:
        """Finish the working folder; return what the task gives. Repeated after a crash, it comes to the same."""
        story = self._story
        finished = story.finished(PlaceFinished)
        if not self._kind.isolate:
            finished = PlaceFinished()
        if finished is None:
            place = place or await self._place()
            finished = await self._workplaces.finish(place, self._kind.on_success, message=self._prompt.text)
            await story.finish(finished)  # before the worktree goes: a later attempt could not count its commits
        finished = await self._workplaces.clear(finished)
        if finished.name and not finished.worktree:
            await self._store.release_agent(self._attempt.task.id)
        last = story.last
        ends: Sequence[RunEnd] = list(story.ends.values())
        return AgentResult(
            text=end.text,
            agent=self._kind.name,
            task_id=self._attempt.task.id,
            session_id=story.session_id,
            model=end.model,
            structured=end.structured,
            turns=sum(part.turns for part in ends),
            runs=story.runs,
            tools=story.tools,
            usage=sum_of(end.usage for end in ends),
            duration_s=sum(part.duration_s for part in ends),
            unknown=last_that_fit(story.unknown, self._attempt.size_bytes_max),
            branch=finished.branch,
            commits=finished.commits,
            merged=finished.merged,
            worktree=finished.worktree,
            repository=finished.repository,
            note=finished.why,
            folder="" if last is None else last.folder,
        )


def _what(name: str, finished: Finished) -> str:
    """Return in one sentence how a run failed."""
    end, ended = finished.end, finished.exit
    by = {
        "wall": "it ran longer than wall_s",
        "idle": "it said nothing for idle_s",
        "memory": "its processes took more than memory_bytes_max",
        "output": "it wrote more than output_bytes_max",
        "disk": "what it wrote could not be stored: the disk is full",
        "stopped": "it was stopped",
    }.get(ended.cause, "")
    how = by or {
        "no_result": "it ended without a result",
        "lost_session": "it does not know its session",
        "unauthorised": "its credential was refused",
    }.get(end.outcome, "")
    status = f"signal {ended.signal}" if ended.signal else f"exit code {ended.code}"
    said = shortened(end.text)
    return f"agent {name} failed: " + ": ".join(filter(None, [how, said])) + f" ({status})"


def _fix(end: RunEnd, task_id: int) -> str:
    if end.outcome == "unauthorised":
        return "log the program in, or pass its key: app.agent(…, passes=[NAME]) lets a variable through"
    return f"`sennit agents tail {task_id}` shows what it wrote"
