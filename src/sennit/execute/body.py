"""What a worker needs to know of a handler and of the attempt it runs. `submit` provides both; the runtime hands them over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from sennit.model.provider import Budget
from sennit.model.retry import RetryPolicy
from sennit.model.task import Claimed, TaskSpec
from sennit.model.thread import AskSpec, StateWrite
from sennit.model.timeout import AdaptiveTimeout
from sennit.sync.ack import Ack
from sennit.sync.pending import Flow


class BodyCodec(Protocol):
    """Reads arguments and writes results."""

    def decode(self, payload: bytes, parents: Sequence[bytes | None]) -> tuple[list[Any], dict[str, Any]]:
        """Return the arguments of the call."""

    def filled(self, payload: bytes, parents: Sequence[bytes | None]) -> bytes:
        """Return the payload with parents' results in it, for a worker process."""

    def encode_result(self, value: Any, size_bytes_max: int) -> bytes:
        """Return the result as it is stored."""


class Body(Protocol):
    """A registered handler."""

    @property
    def function(self) -> Callable[..., Any]:
        """What to call."""

    @property
    def kind(self) -> str:
        """`async`, `sync` or `cpu`."""

    @property
    def is_movable(self) -> bool:
        """Whether nobody has said where it runs, nor anything that only works in this process."""

    @property
    def codec(self) -> BodyCodec:
        """Its types."""

    @property
    def retry(self) -> RetryPolicy:
        """When to try again."""

    @property
    def timeout_s(self) -> float | None:
        """Per attempt."""

    @property
    def adaptive_timeout(self) -> AdaptiveTimeout | None:
        """Per attempt, learnt from others; it has a ceiling."""

    @property
    def idle_timeout_s(self) -> float | None:
        """Without a sign of life."""

    @property
    def preemptible(self) -> bool:
        """Whether an urgent task may take its slot between two steps."""

    @property
    def reference(self) -> str:
        """`module:qualname`."""


class Scope(Protocol):
    """The context of one attempt: what `step`, `sleep` and `submit` find when the body calls them."""

    beat_us: int
    is_pressed: bool
    is_touched: bool

    @property
    def waits(self) -> bool:
        """Whether the body waits for other tasks; its slot is lent meanwhile."""

    @property
    def in_line(self) -> bool:
        """Whether the body waits for a permit; time that passes there is not its own."""

    def is_gone(self) -> None:
        """The attempt is over though its body still runs: what it still says is not said for the next one."""

    def fence(self) -> None:
        """Refuse what the body still writes from now on, in this process: it may not be ours any more."""

    def throttled_by(self, error: BaseException) -> str:
        """Return which provider refused the call that `error` is from, "" when none did."""

    def take_children(self) -> tuple[TaskSpec, ...]:
        """Return the children that commit with the result."""

    def flush(self) -> Ack[list[int]] | None:
        """Store the children now."""

    def asks(self) -> tuple[AskSpec, ...]:
        """Return the questions that the body has asked and that have no answer yet."""

    def writes(self) -> tuple[StateWrite, ...]:
        """Return what it changed in threads, to commit with the result."""

    def rebase(self) -> Flow[None]:
        """Make these changes again, from what is stored now."""


class Runtime(Protocol):
    """What surrounds the worker."""

    def find(self, handler: str) -> Body | None:
        """Return the handler of this name, if this process knows it."""

    def scope(self, task: Claimed) -> AbstractContextManager[Scope]:
        """Open the context of one attempt."""

    def now_us(self) -> int:
        """The store's clock."""

    def raise_budget(self, budget: Budget) -> None:
        """Set a new bound, before anything else that this process writes from now on."""
