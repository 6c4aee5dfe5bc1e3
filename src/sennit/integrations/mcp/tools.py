"""What each tool does: a method of its name, from its arguments to plain data.

Whatever is about a claim returns its token again. Each write is checked twice: here, whether the token is one that this
server holds, and by the store in the transaction of the write, whether the attempt is still the one that is held.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import msgspec

from sennit.errors import BodyFailed, LeaseLost, PayloadTooLarge, UsageError
from sennit.execute.verdict import Judge
from sennit.integrations.mcp import arguments as args
from sennit.integrations.mcp.clients import Client, Held
from sennit.integrations.mcp.desk import Desk
from sennit.integrations.mcp.paths import PathClaims
from sennit.integrations.mcp.questions import Questions, answer_of, checked_schema
from sennit.integrations.mcp.shown import EXTERNAL, NOTE, Errand, claimed, listed
from sennit.limit.admission import check_thread_bytes
from sennit.model.admission import Entry
from sennit.model.lifecycle import State
from sennit.model.order import Priority
from sennit.model.retry import RetryPolicy
from sennit.model.settings import Settings
from sennit.model.task import Ending, ErrorInfo, Failed, GivenBack, LogLine, Ref, Succeeded, TaskOptions, TaskSpec
from sennit.model.thread import StateWrite, checked_thread_id


class Tools:
    """The tools over one desk. Each method raises SennitError, which the caller turns into an answer.

    Args:
        policy: handler → how it is tried again, for those that say nothing themselves.
    """

    def __init__(
        self,
        desk: Desk,
        questions: Questions,
        paths: PathClaims,
        settings: Settings,
        *,
        policy: Callable[[str], RetryPolicy] = lambda _: RetryPolicy(),
    ) -> None:
        self._desk = desk
        self._store = desk.store
        self._questions = questions
        self._paths = paths
        self._settings = settings
        self._policy = policy
        self._judge = Judge(self._store.now_us, Random())

    # ------------------------------------------------------------ tasks

    async def task_ready(self, client: Client, a: args.TaskReady) -> dict[str, Any]:
        """List what is ready."""
        del client
        queues = self._queues(a.queue)
        counts = await self._store.counts()
        found = [await self._store.tasks(states=[State.READY], queue=queue, limit=a.limit) for queue in queues]
        newest = sorted((view for views in found for view in views), key=lambda view: -view.id)[: a.limit]
        views = [await self._store.task(view.id) for view in newest]  # lists come without payload
        ready = {queue: counts.get(queue, {}).get(State.READY, 0) for queue in queues}
        return {"ready": ready, "tasks": [listed(view) for view in views]}

    async def task_claim(self, client: Client, a: args.TaskClaim) -> dict[str, Any]:
        """Claim the next one."""
        queues = self._queues(a.queue)
        held = await self._desk.claim(client, queues, a.wait_s)
        if held is None:
            return {"claim": None, "reason": f"no task of {', '.join(queues)} in {a.wait_s:g} s; call again to wait on"}
        shown, held.notes = claimed(held.task)
        return self._of(held) | shown

    async def task_heartbeat(self, client: Client, a: args.TaskHeartbeat) -> dict[str, Any]:
        """Count the lease from now."""
        del client
        return self._of(self._desk.held(a.claim))

    async def task_complete(self, client: Client, a: args.TaskComplete) -> dict[str, Any]:
        """End as done."""
        del client
        held = self._desk.held(a.claim)
        result = self._checked("the result", a.result)
        return await self._end(held, Succeeded(held.claim, result), "succeeded")

    async def task_fail(self, client: Client, a: args.TaskFail) -> dict[str, Any]:
        """End as not done."""
        del client
        held = self._desk.held(a.claim)
        self._checked("the error", a.error)
        if a.give_back:
            await self._note(held, f"given back: {a.error}")
            return await self._end(held, GivenBack(held.claim), "given back")
        if not a.retry:
            failed = Failed(held.claim, ErrorInfo(kind="AgentFailed", message=a.error))
            return await self._end(held, failed, "failed")
        error = BodyFailed(kind="AgentFailed", message=a.error, remote_traceback="", original=None)
        ending = self._judge.error(held.task, self._policy(held.task.handler), error)
        return await self._end(held, ending, "failed" if isinstance(ending, Failed) else "will be tried again")

    async def _end(self, held: Held, ending: Ending, outcome: str) -> dict[str, Any]:
        if not await self._desk.end(held, ending):
            raise LeaseLost(held.task.id, held.task.attempt)
        return {"claim": held.token, "task": held.task.id, "attempt": held.task.attempt, "outcome": outcome}

    async def task_create(self, client: Client, a: args.TaskCreate) -> dict[str, Any]:
        """Hand in a task for an agent."""
        del client
        held = None if a.claim is None else self._desk.held(a.claim)
        depends_on = list(dict.fromkeys(a.depends_on))
        errand = Errand(title=a.title, instructions=a.instructions, data=a.data, depends_on=depends_on)
        overrides = msgspec.json.encode(TaskOptions(retries=a.retries)) if a.retries else None
        queue_max = self._settings.queue_max
        spec = TaskSpec(
            ref=Ref(self._store.take_ids(1)[0]), handler=EXTERNAL, queue=self._queues(a.queue)[0],
            payload=self._checked("the task", errand), priority=Priority.parse(a.priority),
            parents=tuple(map(Ref, depends_on)), on_parent_failed=a.on_dependency_failed,
            thread_id=None if a.thread_id is None else checked_thread_id(a.thread_id),
            crashes_max=self._settings.crashes_max, options=overrides,
            entry=Entry(queue_max=queue_max, on_full="reject") if queue_max else None,
        )  # fmt: skip
        if held is None:
            spec.key = a.key
            (task_id,) = await self._store.submit([spec])
            return {"task": task_id}
        spec.parent_id = held.task.id
        spec.child_key = None if a.key is None else f"task|{a.key}"
        (task_id,) = await self._store.add_children(held.claim, [spec])
        return self._of(held) | {"task": task_id, "parent": held.task.id}

    async def task_note(self, client: Client, a: args.TaskNote) -> dict[str, Any]:
        """Keep a note with the task."""
        del client
        held = self._desk.held(a.claim)
        return self._of(held) | {"note": await self._note(held, a.text)}

    async def _note(self, held: Held, text: str) -> int:
        data = self._checked("the note", text)
        held.notes += 1
        number = held.notes
        if not await self._store.save_step(held.claim, f"{NOTE}{number}", data):
            raise LeaseLost(held.task.id, held.task.attempt)
        now_us = self._store.now_us()
        await self._store.log(
            [LogLine(task_id=held.task.id, attempt=held.task.attempt, at_us=now_us, level="INFO", text=text)]
        )
        return number

    # ------------------------------------------------------------ people

    async def ask_human(self, client: Client, a: args.AskHuman) -> dict[str, Any]:
        """Ask, and go on."""
        del client
        held = None if a.claim is None else self._desk.held(a.claim)
        self._checked("the question", a)
        async with asyncio.timeout(args.WAIT_S_MAX):
            view = await self._questions.ask(
                a.question,
                claim=None if held is None else held.claim,
                schema=checked_schema(yes_no=a.yes_no, choices=a.choices, schema=a.schema),
                context=a.context,
                expires_s=a.expires_s,
                default=a.default,
                assignee=a.assignee,
            )
        return ({} if held is None else self._of(held)) | answer_of(view)

    async def await_answer(self, client: Client, a: args.AwaitAnswer) -> dict[str, Any]:
        """Wait for an answer."""
        held = None if a.claim is None else self._desk.held(a.claim)
        view = await self._questions.answered(a.ask, client, a.wait_s)
        if held is not None and a.claim is not None:
            held = self._desk.held(a.claim)  # it may have ended meanwhile; if not, its lease counts from here
        return ({} if held is None else self._of(held)) | answer_of(view)

    # ------------------------------------------------------------ paths

    async def lock_paths(self, client: Client, a: args.LockPaths) -> dict[str, Any]:
        """Reserve paths."""
        held = self._desk.held(a.claim)
        if a.wait_s:
            with client.waiting(claims=False):
                locked = await self._paths.lock(held, a.paths, a.wait_s)
        else:
            locked = await self._paths.lock(held, a.paths, 0)
        return self._of(self._desk.held(a.claim)) | locked

    async def release_paths(self, client: Client, a: args.ReleasePaths) -> dict[str, Any]:
        """Give paths up."""
        del client
        held = self._desk.held(a.claim)
        return self._of(held) | {"released": await self._paths.release(held, a.reservation)}

    # ------------------------------------------------------------ state

    async def state_get(self, client: Client, a: args.StateGet) -> dict[str, Any]:
        """Read the state of a thread."""
        del client
        held = None if a.claim is None else self._desk.held(a.claim)
        view = await self._store.state(_thread(a.thread_id, held))
        state = {} if view.data is None else msgspec.json.decode(view.data)
        shown = {"thread_id": view.thread_id, "version": view.version, "state": state}
        return ({} if held is None else self._of(held)) | shown

    async def state_update(self, client: Client, a: args.StateUpdate) -> dict[str, Any]:
        """Write the state of a thread."""
        del client
        held = self._desk.held(a.claim)
        thread_id, data = _thread(a.thread_id, held), self._checked("the state", a.state)
        check_thread_bytes(thread_id, len(data), self._settings.thread_memory_bytes_max)
        write = StateWrite(thread_id=thread_id, expected=a.expected_version, data=data)
        (view,) = await self._store.write_states([write], claim=held.claim)
        return self._of(held) | {"thread_id": thread_id, "version": view.version}

    # ------------------------------------------------------------ inside

    def _of(self, held: Held) -> dict[str, Any]:
        """Return what every answer about a claim begins with."""
        return {"claim": held.token, "task": held.task.id, "attempt": held.task.attempt, "lease_s": self._desk.lease_s}

    def _queues(self, queue: str | None) -> Sequence[str]:
        if queue is None:
            return self._desk.queues
        if queue not in self._desk.queues:
            raise UsageError(
                f"this server does not serve the queue {queue!r}",
                why=f"it was started for {', '.join(self._desk.queues)}",
                fix="use one of those, or start it with --queue",
            )
        return [queue]

    def _checked(self, what: str, value: Any) -> bytes:
        """Return JSON that is not too large."""
        data = msgspec.json.encode(value)
        if len(data) > self._settings.payload_bytes_max:
            raise PayloadTooLarge(what, size_bytes=len(data), size_bytes_max=self._settings.payload_bytes_max)
        return data


def _thread(thread_id: str | None, held: Held | None) -> str:
    """Return the thread that is meant."""
    found = thread_id if thread_id is not None else None if held is None else held.task.thread_id
    if found is None:
        raise UsageError(
            "no conversation is named",
            why="no thread_id is given" if held is None else f"task {held.task.id} belongs to none",
            fix="pass thread_id",
        )
    return checked_thread_id(found)
