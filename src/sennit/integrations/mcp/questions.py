"""Questions to people from agents that go on working while they wait.

    ask_human ─► a task `sennit.ask`, child of the claimed one ─► parked with the question ─► inbox … answer ─► done
                     any MCP server of this store takes it, twice: to ask, and to note the answer

The question belongs to a task of its own, so the claim of the agent stays as it is, and the answer is found by its number
from any process, also after a restart.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from typing import Any, Final

import msgspec

from sennit.errors import StoreError, UsageError
from sennit.integrations.mcp.clients import Client
from sennit.integrations.mcp.orders import Service
from sennit.model.task import Claim, Claimed, Ending, ErrorInfo, Failed, Parked, Ref, Succeeded, TaskSpec
from sennit.model.thread import NOTHING, Answer, AskSpec, AskView, OnExpire
from sennit.store.protocol import Store
from sennit.sync.ack import Ack
from sennit.threads.answers import check_answer

_log = logging.getLogger("sennit.mcp")

HANDLER: Final = "sennit.ask"
QUEUE: Final = "sennit.asks"
# How many questions one process moves at once: each is one commit, so more would only sit in memory.
ORDERS: Final = 4
_KEY: Final = "question"
_NEVER_SEEN: Final = -1  # below every revision of the inbox


def service() -> Service:
    """Return what serves the tasks of questions."""
    return Service(QUEUE, ORDERS, _start)


def _start(task: Claimed) -> Ending:
    """Ask, or when there is an answer say so."""
    answer = task.steps.get(_KEY)
    if answer is not None:
        return Succeeded(task.claim, answer)
    try:
        spec = msgspec.json.decode(task.payload, type=AskSpec)
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        return Failed(task.claim, ErrorInfo(kind="PayloadError", message=f"this is no question: {error}"))
    return Parked(task.claim, "ask", (spec,))


class Questions:
    """Asks, and waits for answers. All methods belong to one event loop."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._news = _InboxNews(store)

    async def ask(
        self,
        question: str,
        *,
        claim: Claim | None,
        schema: dict[str, Any],
        context: Any = None,
        expires_s: float | None = None,
        default: Any = None,
        assignee: str = "",
    ) -> AskView:
        """Ask; return the question as it is in the inbox. The same question of the same task is asked once.

        Args:
            claim: of the task that needs the answer; None for a question of no task.
            default: the answer when nobody has given one in time; None is none.

        Raises:
            LeaseLost: the claim is not held any more; nothing was asked.
            AnswerInvalid: the default does not fit the schema.
        """
        on_expire: OnExpire = "fail" if default is None else "default"
        spec = AskSpec(
            key=_KEY,
            question=question,
            schema=schema,
            context=NOTHING if context is None else _raw(context),
            expires_us=0 if expires_s is None else max(1, int(expires_s * 1_000_000)),
            on_expire=on_expire,
            default=NOTHING if default is None else _raw(default),
            assignee=assignee,
        )
        if default is not None:
            check_answer(AskView(id=0, task_id=0, handler=HANDLER, spec=spec, created_us=0), spec.default)
        payload = msgspec.json.encode(spec)
        task = TaskSpec(ref=Ref(self._store.take_ids(1)[0]), handler=HANDLER, queue=QUEUE, payload=payload)
        if claim is None:
            task_id = (await self._store.submit([task]))[0]
        else:
            task.parent_id = claim.task_id
            task.child_key = f"ask|{hashlib.blake2b(payload, digest_size=12).hexdigest()}"
            task_id = (await self._store.add_children(claim, [task]))[0]
        seen = _NEVER_SEEN
        while True:
            seen = await self._news.after(seen)
            views = await self._store.asks(states=(), task_id=task_id)
            if views:
                return views[0]

    async def answered(self, ask_id: int, client: Client, wait_s: float) -> AskView:
        """Return the question as soon as it is closed; as it is after `wait_s`.

        Raises:
            AskNotFound: there is no such question.
            UsageError: too many calls of the client wait.
        """
        view = await self._store.ask(ask_id)
        if view.state != "open" or not wait_s:
            return view
        seen = _NEVER_SEEN
        with client.waiting(claims=False):
            try:
                async with asyncio.timeout(wait_s):
                    while view.state == "open":
                        seen = await self._news.after(seen)
                        view = await self._store.ask(ask_id)
            except TimeoutError:
                pass
        return view


def answer_of(view: AskView) -> dict[str, Any]:
    """Return what became of a question, as the tools say it."""
    said = {"ask": view.id, "state": view.state, "question": view.spec.question}
    if view.answer is None:
        return said
    answer: Answer = view.answer
    value: Any = msgspec.json.decode(answer.value) if answer.value else None
    if answer.state == "denied" and (view.spec.schema or {}).get("type") == "boolean":
        value = False
    return said | {"answer": value, "by": answer.by, "reason": answer.reason}


def checked_schema(*, yes_no: bool, choices: list[str], schema: dict[str, Any] | None) -> dict[str, Any]:
    """Return the JSON schema of an answer.

    Raises:
        UsageError: more than one shape is given, or the schema is none.
    """
    if yes_no + bool(choices) + (schema is not None) > 1:
        raise UsageError("an answer has one shape", fix="pass one of yes_no, choices and schema")
    if yes_no:
        return {"type": "boolean"}
    if choices:
        return {"enum": choices}
    if schema is None:
        return {"type": "string"}
    from jsonschema import Draft202012Validator  # noqa: PLC0415 - 60 ms that only those pay who need it
    from jsonschema.exceptions import SchemaError  # noqa: PLC0415

    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise UsageError(f"this is no JSON schema: {error.message}", fix="see json-schema.org, draft 2020-12") from None
    schema = {key: value for key, value in schema.items() if key not in ("$schema", "$id")}
    if _refers_elsewhere(schema):
        raise UsageError(
            "the schema refers to another document",
            why="whoever answers the question would fetch it",
            fix="put what it needs under $defs, and refer to it by #/$defs/…",
        )
    return schema


def _refers_elsewhere(value: Any) -> bool:
    """Return whether a schema names a document that would have to be fetched."""
    if isinstance(value, dict):
        refs = [value[key] for key in ("$ref", "$dynamicRef", "$id") if isinstance(value.get(key), str)]
        return not all(ref.startswith("#") for ref in refs) or any(map(_refers_elsewhere, value.values()))
    return isinstance(value, list) and any(map(_refers_elsewhere, value))


def _raw(value: Any) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))


class _InboxNews:
    """The revision of the inbox, with one watch of the store for all who wait here, and none when nobody does."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._loop = asyncio.get_running_loop()
        self._revision = _NEVER_SEEN
        self._waiting: set[asyncio.Future[None]] = set()
        self._is_watching = False

    async def after(self, seen: int) -> int:
        """Return the revision as soon as it is greater than `seen`; for -1 at once, whatever it is.

        Raises:
            StoreError: the store is closed, or has failed.
        """
        if seen == _NEVER_SEEN:
            self._revision = max(self._revision, await self._store.watch_inbox(_NEVER_SEEN))
        while self._revision <= seen:
            future: asyncio.Future[None] = self._loop.create_future()
            self._waiting.add(future)
            try:
                self._watch()
                await future
            finally:
                self._waiting.discard(future)
        return self._revision

    def _watch(self) -> None:
        if not self._is_watching:
            self._is_watching = True
            self._store.watch_inbox(self._revision).call_when_done(self._loop, self._changed)

    def _changed(self, ack: Ack[int]) -> None:
        self._is_watching = False
        waiting, self._waiting = self._waiting, set()
        try:
            self._revision = ack.wait()
        except StoreError as error:
            for future in waiting:
                if not future.done():
                    future.set_exception(error)
            return
        for future in waiting:
            if not future.done():
                future.set_result(None)
