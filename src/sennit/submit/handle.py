"""The handle: what a submitter keeps. `await` it in async code, `.result()` in sync code, pass it on as an argument."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from sennit.model.task import Ref, TaskView
from sennit.sync.ack import Ack

if TYPE_CHECKING:
    from sennit.model.task import Outcome

T = TypeVar("T")


class HandleClient(Protocol):
    """What a handle needs of the client that made it."""

    async def wait_for(self, handle: Handle[Any]) -> Outcome:
        """Return how the task ended."""

    async def wait_for_all(self, handles: Sequence[Handle[Any]]) -> list[Outcome]:
        """Return how several tasks ended, in order."""

    def wait_for_blocking(self, handles: Sequence[Handle[Any]], timeout_s: float | None) -> list[Outcome]:
        """The same, blocking this OS thread."""

    def value_of(self, handle: Handle[Any], outcome: Outcome) -> Any:
        """Return the result, or raise what became of the task."""

    def cancel_task(self, handle: Handle[Any], reason: str) -> Ack[bool]:
        """Cancel it."""

    def view_of(self, handle: Handle[Any]) -> Ack[TaskView]:
        """Look at it."""

    def position_of(self, handle: Handle[Any]) -> Ack[int | None]:
        """Return how many tasks are before it."""


class Handle(Generic[T]):
    """One submitted task.

    As an argument of another `submit` it is a dependency: that task starts when this one has succeeded, and gets its
    result in place of the handle.
    """

    __slots__ = ("_client", "_stored", "decode", "handler", "queue", "ref")

    def __init__(  # noqa: PLR0917 - made a hundred thousand at a time by one caller; keywords cost a third
        self,
        client: HandleClient,
        ref: Ref,
        handler: str,
        queue: str,
        stored: Ack[Any] | None,
        decode: Callable[[bytes], Any],
    ) -> None:
        self._client = client
        self._stored = stored
        self.ref = ref
        self.handler = handler
        self.queue = queue
        self.decode = decode

    @property
    def id(self) -> int:
        """The task's id. With a `key` or `cache_s`, final once `stored()` is done."""
        return self.ref.id

    def __repr__(self) -> str:
        return f"<Handle {self.handler} {self.id}>"

    async def stored(self) -> Handle[T]:
        """Wait until the task is durable; return this handle.

        In sync code `submit` has waited for it already.

        Raises:
            SubmitError: the store refused it (an unknown parent, a duplicate key, a full queue).
        """
        if self._stored is not None:
            await self._stored
        return self

    def submitted(self) -> Ack[Any] | None:
        """Return the ack of the submit, None when this handle was made from an id."""
        return self._stored

    async def outcome(self) -> Outcome:
        """Wait until the task has ended, well or badly; return how. Raises nothing for a failed task."""
        return await self._client.wait_for(self)

    def __await__(self) -> Generator[Any, None, T]:
        outcome = yield from self._client.wait_for(self).__await__()
        value: T = self._client.value_of(self, outcome)
        return value

    def result(self, timeout_s: float | None = None) -> T:
        """Block until the task has ended and return its result.

        Raises:
            TaskFailed, TaskCancelled: it did not succeed.
            ResultTimeout: it has not ended within `timeout_s`; it goes on.
            UsageError: called on an event loop; use `await`.
        """
        value: T = self._client.value_of(self, self._client.wait_for_blocking([self], timeout_s)[0])
        return value

    def as_argument(self) -> T:
        """Return this handle, typed as its result: `report.submit(draft.as_argument())` satisfies a type checker."""
        return self  # type: ignore[return-value]  # that is its purpose

    def cancel(self, reason: str = "") -> Ack[bool]:
        """End the task as cancelled, running or not; the ack says False if it had ended already."""
        return self._client.cancel_task(self, reason)

    def view(self) -> Ack[TaskView]:
        """Look at the task: state, attempts, error."""
        return self._client.view_of(self)

    def position(self) -> Ack[int | None]:
        """Return how many tasks start before this one if nothing more is handed in; 0 is the next.

        None unless it waits for a slot or for its thread's turn.
        """
        return self._client.position_of(self)


class Handles(list[Handle[T]], Generic[T]):
    """Handles of a fan-out, in the order of the inputs; as an argument, the list of their results."""

    def __await__(self) -> Generator[Any, None, list[T]]:
        return self._all().__await__()

    async def _all(self) -> list[T]:
        if not self:
            return []
        client = self[0]._client  # noqa: SLF001 - same module
        outcomes = await client.wait_for_all(self)
        return [client.value_of(handle, outcome) for handle, outcome in zip(self, outcomes, strict=True)]

    def result(self, timeout_s: float | None = None) -> list[T]:
        """Block until all have ended; return the results in order.

        Raises:
            TaskFailed, TaskCancelled: the first, in order, that did not succeed.
            ResultTimeout: not all have ended within `timeout_s`; they go on.
            UsageError: called on an event loop; use `await`.
        """
        if not self:
            return []
        client = self[0]._client  # noqa: SLF001 - same module
        outcomes = client.wait_for_blocking(self, timeout_s)
        return [client.value_of(handle, outcome) for handle, outcome in zip(self, outcomes, strict=True)]

    def as_argument(self) -> list[T]:
        """Return this list, typed as the list of results."""
        return self  # type: ignore[return-value]  # that is its purpose

    async def as_completed(self) -> AsyncIterator[Handle[T]]:
        """Yield the handles as their tasks end, well or badly."""
        import asyncio  # noqa: PLC0415 - only for callers that are async anyway

        async def ended(handle: Handle[T]) -> Handle[T]:
            await handle._client.wait_for(handle)  # noqa: SLF001 - same module
            return handle

        for next_ended in asyncio.as_completed([ended(handle) for handle in self]):
            yield await next_ended

    def iter_results(self) -> Iterator[T]:
        """Yield the results in order, blocking for each."""
        for handle in self:
            yield handle.result()
