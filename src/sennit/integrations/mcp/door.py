"""The door: all that stands between a transport and the store, put together, opened and closed in order.

call(client, name, arguments) ─► checked ─► tool ─► Answer: plain data, or an error that says what, why and what to do
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import msgspec

from sennit.errors import LeaseLost, SennitError, SettingsError, UsageError
from sennit.integrations.mcp.arguments import TOOLS, Arguments
from sennit.integrations.mcp.clients import MANY, Bounds, Client
from sennit.integrations.mcp.desk import Desk
from sennit.integrations.mcp.paths import PathClaims
from sennit.integrations.mcp.questions import Questions, service
from sennit.integrations.mcp.shown import what_became_of
from sennit.integrations.mcp.tools import Tools
from sennit.model.retry import RetryPolicy
from sennit.model.settings import Settings
from sennit.store.leases import Locks
from sennit.store.protocol import Store
from sennit.submit.registry import EXTERNAL_QUEUE

_log = logging.getLogger("sennit.mcp")

QUEUE: Final = EXTERNAL_QUEUE
CLAIM_LEASE_S: Final = 300.0
# One message: a payload of the allowed size, escaped, and what is around it.
_ENVELOPE_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a server is run.

    Attributes:
        queues: that clients may take from; the first is where task_create puts tasks.
        claim_lease_s: how long a client may say nothing about a claim.
        root: what paths are relative to.
    """

    queues: Sequence[str] = (QUEUE,)
    claim_lease_s: float = CLAIM_LEASE_S
    bounds: Bounds = field(default_factory=Bounds)
    root: Path = Path()

    def __post_init__(self) -> None:
        if not self.queues or len(set(self.queues)) < len(self.queues) or not all(self.queues):
            raise SettingsError(f"queues are {list(self.queues)}", fix="name at least one, each once")
        if not 1 <= self.claim_lease_s <= 86_400:
            raise SettingsError(f"claim_lease_s is {self.claim_lease_s}; it must be between 1 and 86400")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a tool says."""

    data: dict[str, Any]
    is_error: bool = False

    @property
    def text(self) -> str:
        """The same for clients that read text only."""
        if self.is_error:
            error = self.data["error"]
            return "\n".join(f"{name}: {error[name]}" for name in ("what", "why", "fix") if error.get(name))
        return msgspec.json.encode(self.data).decode()


class Door:
    """`async with Door(store, settings, Options()) as door:`. All methods belong to the event loop that entered it.

    Args:
        store: stays open; whoever has opened it closes it.
        policy: handler → how it is tried again.
    """

    def __init__(
        self,
        store: Store,
        settings: Settings,
        options: Options,
        *,
        policy: Callable[[str], RetryPolicy] = lambda _: RetryPolicy(),
    ) -> None:
        self.store = store
        self.options = options
        self.message_bytes_max = 2 * settings.payload_bytes_max + _ENVELOPE_BYTES
        self._locks = Locks(lambda: store, lambda: settings.lock_url)
        self._paths = PathClaims(self._locks, options.root)
        self.desk = Desk(
            store,
            options.queues,
            lease_s=options.claim_lease_s,
            worker_lease_s=settings.lease_s,
            slots=options.bounds.claims_max,
            service=service(),
            on_end=self._paths.drop,
        )
        self._tools = Tools(self.desk, Questions(store), self._paths, settings, policy=policy)
        self._crowd = self.client("clients without a session", Bounds() * MANY)

    async def __aenter__(self) -> Self:
        await self.desk.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            await self.desk.close()
            await self._paths.close()
        finally:
            self._locks.close()

    # ------------------------------------------------------------ clients

    def client(self, name: str, bounds: Bounds | None = None) -> Client:
        """Return a new client."""
        return Client(name, self.options.bounds if bounds is None else bounds)

    @property
    def crowd(self) -> Client:
        """The one client that stands for all that have no session."""
        return self._crowd

    def leave(self, client: Client) -> None:
        """A client has gone."""
        self.desk.leave(client)

    # ------------------------------------------------------------ calls

    async def call(self, client: Client, name: str, arguments: Mapping[str, Any] | None) -> Answer:
        """Return what a tool says.

        Raises:
            UnknownTool: there is none of this name.
        """
        kind = TOOLS.get(name)
        if kind is None:
            raise UnknownTool(name)
        tool: Callable[[Client, Arguments], Awaitable[dict[str, Any]]] = getattr(self._tools, name)
        try:
            with client.calling():
                return Answer(await tool(client, _converted(name, kind, arguments)))
        except LeaseLost as error:
            return _refused(error, why=await self._why_lost(error))
        except SennitError as error:
            return _refused(error)
        except TimeoutError:
            return _refused(UsageError(f"{name} took too long", why="the store is slow, or is not served", fix="again"))
        except Exception:  # noqa: BLE001 - the client must get an answer, and the log has it
            _log.exception("the tool %s failed", name)
            what = f"{name} failed in the server; its log has the details"
            return _refused(SennitError(what, why="this is a bug of sennit", fix="report it"))

    async def _why_lost(self, error: LeaseLost) -> str:
        try:
            became = await what_became_of(self.store, error.task_id)
        except SennitError as trouble:
            became = trouble.what
        return f"{became}; a claim ends when nothing was heard for {self.options.claim_lease_s:g} s, or with its client"


class UnknownTool(UsageError, LookupError):
    """A client has called a tool that there is not."""

    def __init__(self, name: str) -> None:
        super().__init__(f"there is no tool {name!r}", fix=f"there are {', '.join(TOOLS)}")


def _converted(name: str, kind: type[Arguments], arguments: Mapping[str, Any] | None) -> Arguments:
    try:
        return msgspec.convert(dict(arguments or {}), kind)
    except msgspec.ValidationError as error:
        raise UsageError(
            f"the arguments of {name} are wrong: {error}", why="nothing was done", fix="see the schema of the tool"
        ) from None


def _refused(error: SennitError, *, why: str = "") -> Answer:
    facts: dict[str, str | int] = {"code": error.code, "what": error.what, "why": why or error.why, "fix": error.fix}
    for name in ("task_id", "attempt", "actual", "expected", "size_bytes_max"):
        if isinstance(value := getattr(error, name, None), int):
            facts[name] = value
    return Answer({"error": facts}, is_error=True)
