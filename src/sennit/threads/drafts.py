"""What a body has changed in threads and not committed yet.

    update ─► draft: stored version, changes, values ─► Succeeded.writes, in one transaction with the result
                        │                    ▲
                        │ save()             │ conflict: read again, apply the functions again, in order (`rebase`)
                        ▼                    │
                    written now, under the claim token

The body reads what it wrote. An attempt that does not succeed leaves nothing behind but what it saved. A change that was
saved carries an operation id made of task and call site: a later attempt meets the same call, finds that the thread
knows it, and does not apply it again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from sennit.errors import AttemptCancelled, ConcurrentModificationError, LeaseLost, UsageError
from sennit.model.lock import Fence
from sennit.model.task import Claim
from sennit.model.thread import StateView, StateWrite
from sennit.store.protocol_threads import ThreadStore
from sennit.sync.ack import Ack
from sennit.sync.pending import Flow, got

REBASES_MAX: Final = 20

SAVES: Final = "sennit.saves"
"""The step of a task that has begun to save: from then on its attempts ask whether a change was applied already."""

_NEVER: Final = -1
"""No chain is ever at this version: a write that expects it changes nothing, and finds a known operation."""

Chain = tuple[str, str]


class DraftStore(ThreadStore, Protocol):
    """The part of the store that drafts need."""

    def save_step(self, claim: Claim, key: str, result: bytes) -> Ack[bool]:
        """Keep a step's result while the attempt is held."""


class Change:
    """One call that changes a chain.

    Attributes:
        key: its call site and occurrence in the attempt.
        apply: the stored value to the next one; raises what the function raises.
        operation_id: given by the user, or None.
        expected: the version it insists on, or None.
        fences: of the locks it is made under.
    """

    __slots__ = ("apply", "expected", "fences", "key", "operation_id")

    def __init__(
        self,
        key: str,
        apply: Callable[[bytes | None], bytes],
        *,
        operation_id: str | None = None,
        expected: int | None = None,
        fences: tuple[Fence, ...] = (),
    ) -> None:
        self.fences = fences
        self.key = key
        self.apply = apply
        self.operation_id = operation_id
        self.expected = expected


class _Draft:
    """The changes of one chain, and its value after each of them."""

    __slots__ = ("base", "changes", "values")

    def __init__(self, base: StateView) -> None:
        self.base = base
        self.changes: list[Change] = []
        self.values: list[bytes] = []

    @property
    def guard(self) -> int:
        """1 if a version without a change is to be written first.

        An operation that somebody else has done meanwhile writes nothing and is no conflict. What follows it would then
        be taken for a change of the version that the other one made, if that was just one.
        """
        return int(len(self.changes) > 1 and self.changes[0].operation_id is not None)

    def view(self) -> StateView:
        """Return the value as the body sees it, with the version it will have."""
        base = self.base
        if not self.changes:
            return base
        version = base.version + self.guard + len(self.changes)
        return StateView(thread_id=base.thread_id, name=base.name, version=version, data=self.values[-1])

    def add(self, change: Change) -> bytes:
        data = change.apply(self.view().data)
        self.changes.append(change)
        self.values.append(data)
        return data


class Drafts:
    """The drafts of one attempt. Its flows are run by the body, and `rebase` also by the worker.

    Args:
        steps: of this task, by key; shared with the attempt.
        key: returns a call site with its occurrence in the attempt.
    """

    def __init__(self, store: DraftStore, claim: Claim, steps: dict[str, bytes], key: Callable[[str], str]) -> None:
        self.key = key
        self._store = store
        self._claim = claim
        self._steps = steps
        self._may_be_saved = SAVES in steps
        self._drafts: dict[Chain, _Draft] = {}
        self._ended = False

    def end(self) -> None:
        """The attempt is over: what is done from now on would go nowhere."""
        self._ended = True

    # ------------------------------------------------------------ what the body does

    def present(self, chain: Chain) -> Flow[StateView]:
        """Return a chain as the body sees it."""
        draft = yield from self._open(chain)
        return draft.view()

    def change(self, chain: Chain, change: Change) -> Flow[bytes]:
        """Buffer a change, unless the thread knows it; return the value after it."""
        draft = yield from self._open(chain)
        known = yield from self._known(chain, change)  # after it: an operation done in between is a conflict at the end
        draft = self._drafts.get(chain) or draft
        if known is not None:
            return known.data or draft.view().data or b"null"
        return self._add(chain, draft, change)

    def change_if(self, chain: Chain, change: Change) -> Flow[bool]:
        """Buffer a change if the chain, as the body sees it, is at the version it insists on."""
        draft = yield from self._open(chain)
        if (yield from self._known(chain, change)) is not None:
            return True
        draft = self._drafts.get(chain) or draft
        if draft.view().version != change.expected:
            return False
        self._add(chain, draft, change)
        return True

    def save(self, thread_id: str) -> Flow[None]:
        """Commit what is buffered for a thread, now.

        Raises:
            ConcurrentModificationError: others changed it again and again, or it has a change that insists on a version.
            AttemptCancelled: the attempt is not held any more; nothing was committed.
            Fenced: one was made under a lock that somebody else has, or has had, since; nothing was committed.
        """
        for _ in range(REBASES_MAX):
            drafts = {chain: draft for chain, draft in self._drafts.items() if chain[0] == thread_id}
            if not drafts:
                return
            if SAVES not in self._steps:
                if not (yield from got(self._store.save_step(self._claim, SAVES, b"true"))):
                    raise AttemptCancelled("lease lost")
                self._steps[SAVES] = b"true"
            saved = [
                (chain, *made) for chain, draft in drafts.items() for made in self._writes(chain, draft, saving=True)
            ]
            try:
                views = yield from got(self._store.write_states([write for _, _, write in saved], claim=self._claim))
            except LeaseLost:
                raise AttemptCancelled("lease lost") from None
            except ConcurrentModificationError as error:
                conflict = error
                yield from self._rebase(drafts)
                continue
            for (chain, change, _), view in zip(saved, views, strict=True):
                self._saved(chain, change, view)
            return
        raise conflict

    # ------------------------------------------------------------ what the worker does

    def writes(self) -> tuple[StateWrite, ...]:
        """Return what commits with the result."""
        return tuple(
            write for chain, draft in self._drafts.items() for _, write in self._writes(chain, draft, saving=False)
        )

    def rebase(self) -> Flow[None]:
        """Apply the changes again, in order, to what is stored now.

        Raises:
            ConcurrentModificationError: one of them insists on a version that is gone.
            Exception: whatever a function raises.
        """
        return self._rebase(dict(self._drafts))

    # ------------------------------------------------------------ inside

    def _open(self, chain: Chain) -> Flow[_Draft]:
        """Return the draft of a chain; one without changes shows what is stored now."""
        if self._ended:
            raise UsageError(
                "the state of a thread was used after the attempt it belongs to",
                why="thread() in a body is the view of that one attempt",
                fix="call thread() in the body that uses it, and await what the body starts; outside, use app.thread(…)",
            )
        draft = self._drafts.get(chain)
        if draft is not None:
            return draft
        view = yield from got(self._store.state(*chain))
        return self._drafts.get(chain) or _Draft(view)  # another coroutine of the body may have changed it meanwhile

    def _add(self, chain: Chain, draft: _Draft, change: Change) -> bytes:
        data = draft.add(change)
        self._drafts[chain] = draft
        return data

    def _known(self, chain: Chain, change: Change) -> Flow[StateView | None]:
        """Return the version that this very change has made before, if it has."""
        known = self._buffered(chain, change)
        if known is not None or (change.operation_id is None and not self._may_be_saved):
            return known
        applied = yield from self._applied(chain, change)
        return self._buffered(chain, change) if applied is None else applied  # again: another coroutine may have it now

    def _buffered(self, chain: Chain, change: Change) -> StateView | None:
        draft = self._drafts.get(chain)
        for other, data in zip(draft.changes, draft.values, strict=True) if draft is not None else ():
            if other.key == change.key or (change.operation_id and other.operation_id == change.operation_id):
                return StateView(thread_id=chain[0], name=chain[1], data=data)
        return None

    def _applied(self, chain: Chain, change: Change) -> Flow[StateView | None]:
        """Ask the store for the version that an operation has made."""
        probe = StateWrite(
            thread_id=chain[0], name=chain[1], expected=_NEVER, data=b"null", operation_id=self._operation(change)
        )
        try:
            views = yield from got(self._store.write_states([probe], claim=self._claim))
        except ConcurrentModificationError:
            return None
        except LeaseLost:
            raise AttemptCancelled("lease lost") from None
        return views[0]

    def _operation(self, change: Change) -> str:
        return change.operation_id or f"task {self._claim.task_id}: {change.key}"

    def _writes(self, chain: Chain, draft: _Draft, *, saving: bool) -> list[tuple[Change | None, StateWrite]]:
        """Return the writes of a chain, each with the change it makes; None for a guard."""
        made: list[tuple[Change | None, bytes]] = list(zip(draft.changes, draft.values, strict=True))
        if draft.guard:
            made.insert(0, (None, draft.base.data or b"null"))
        return [
            (
                change,
                StateWrite(
                    thread_id=chain[0],
                    name=chain[1],
                    expected=draft.base.version + n,
                    data=data,
                    operation_id=None if change is None else self._operation(change) if saving else change.operation_id,
                    fences=() if change is None else change.fences,
                ),
            )
            for n, (change, data) in enumerate(made)
        ]

    def _saved(self, chain: Chain, change: Change | None, view: StateView) -> None:
        """Take out one change that is stored; those the body made meanwhile stay, on top of it."""
        draft = self._drafts.get(chain)
        if draft is None or change is None or change not in draft.changes:
            return
        n = draft.changes.index(change)
        draft.base = view if view.data is not None else draft.base
        del draft.changes[n], draft.values[n]
        if not draft.changes:
            del self._drafts[chain]

    def _rebase(self, drafts: dict[Chain, _Draft]) -> Flow[None]:
        for chain, draft in drafts.items():
            base = yield from got(self._store.state(*chain))
            if base.version == draft.base.version:
                continue
            known = set()
            for change in list(draft.changes):
                if change.operation_id is not None and (yield from self._applied(chain, change)):
                    known.add(change)
            fresh = _Draft(base)
            for change in draft.changes:  # also what the body has added meanwhile
                if change in known:
                    continue
                if change.expected is not None:
                    raise ConcurrentModificationError(chain[0], expected=change.expected, actual=base.version)
                fresh.add(change)
            draft.base, draft.changes, draft.values = fresh.base, fresh.changes, fresh.values
            if not draft.changes:
                self._drafts.pop(chain, None)
