"""What threads remember, in the memory store: per thread and name a chain of versions, the last one is the present.

1 ─ 2 ─ 3 ─ … ─ 21 ─ 22 ─ 23      old versions lose their data and still know their operations, until retention
└ no data ┘      └ data ┘ └ present
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field

import msgspec

from sennit.errors import ConcurrentModificationError
from sennit.model.lock import Fence
from sennit.model.thread import STATE, StateView, StateWrite


@dataclass(slots=True)
class Chain:
    """The versions of one state.

    Attributes:
        versions: by number, growing; the present one is always there.
        operations: operation id → the version it made.
        dropped: versions up to this one have lost their data.
        forgotten: versions up to this one never were, as far as anybody can see.
    """

    versions: dict[int, StateView] = field(default_factory=dict)
    operations: dict[str, int] = field(default_factory=dict)
    dropped: int = 0
    forgotten: int = 0

    @property
    def present(self) -> int:
        """The number of the present version."""
        return next(reversed(self.versions), 0)

    def append(self, view: StateView, *, versions_max: int) -> None:
        """Add a version, and drop the data of what is too old now."""
        self.versions[view.version] = view
        if view.operation_id is not None:
            self.operations[view.operation_id] = view.version
        newest_dropped = view.version - max(versions_max, 1)
        for version in range(self.dropped + 1, newest_dropped + 1):
            self.versions[version] = msgspec.structs.replace(self.versions[version], data=None)
        self.dropped = max(self.dropped, newest_dropped)

    def undo_operations(self, first: int) -> None:
        """Forget the operations that made version `first` and later ones."""
        for operation_id, version in list(self.operations.items()):
            if version >= first:
                del self.operations[operation_id]
                self.versions[version] = msgspec.structs.replace(self.versions[version], operation_id=None)

    def forget(self, *, now_us: int) -> bool:
        """Drop all but the number of the present version; False when there was nothing."""
        view = self.versions[self.present]
        if view.data is None:
            return False
        blank = StateView(thread_id=view.thread_id, name=view.name, version=view.version, at_us=now_us)
        self.versions, self.operations = {blank.version: blank}, {}
        self.dropped = self.forgotten = blank.version
        return True


class States:
    """All chains, by thread and name."""

    def __init__(self) -> None:
        self.chains: dict[tuple[str, str], Chain] = {}

    def state(self, thread_id: str, name: str = STATE, *, version: int | None = None) -> StateView:
        """Return one version, by default the present one; version 0 when it is not there."""
        chain = self.chains.get((thread_id, name))
        nothing = StateView(thread_id=thread_id, name=name)
        if chain is None:
            return nothing
        return chain.versions.get(chain.present if version is None else version, nothing)

    def history(self, thread_id: str, name: str, *, limit: int) -> list[StateView]:
        """Return the versions that have data, newest first."""
        chain = self.chains.get((thread_id, name), Chain())
        return [view for view in reversed(chain.versions.values()) if view.data is not None][:limit]

    # ------------------------------------------------------------ writing

    def plan(
        self,
        writes: Iterable[StateWrite],
        *,
        task_id: int | None,
        now_us: int,
        check: Callable[[Iterable[Fence]], None],
    ) -> list[StateView]:
        """Return the versions that these writes make, or made when their operations were new; change nothing.

        Raises:
            ConcurrentModificationError: a write was not made from the present version, or the one planned before it.
            Fenced: `check` has refused the fences of a write that is new.
        """
        planned: list[StateView] = []
        for write in writes:
            mine = [v for v in planned if (v.thread_id, v.name) == (write.thread_id, write.name)]
            known = self._known(write, mine)
            if known is None:
                check(write.fences)
                present = max([self.state(write.thread_id, write.name).version, *(v.version for v in mine)])
                if write.expected != present:
                    raise ConcurrentModificationError(write.thread_id, write.expected, present)
                known = StateView(
                    thread_id=write.thread_id,
                    name=write.name,
                    version=present + 1,
                    data=write.data,
                    at_us=now_us,
                    task_id=task_id,
                    operation_id=write.operation_id,
                )
            planned.append(known)
        return planned

    def _known(self, write: StateWrite, planned: Sequence[StateView]) -> StateView | None:
        """Return the version that this operation has made already."""
        if write.operation_id is None:
            return None
        for view in planned:
            if view.operation_id == write.operation_id:
                return view
        chain = self.chains.get((write.thread_id, write.name), Chain())
        version = chain.operations.get(write.operation_id)
        return None if version is None else chain.versions[version]

    def store(self, planned: Iterable[StateView], *, versions_max: int) -> list[StateView]:
        """Store what is new of what was planned, in order; return all as they are when it is their turn."""
        stored: list[StateView] = []
        for view in planned:
            chain = self.chains.setdefault((view.thread_id, view.name), Chain())
            if view.version > chain.present:
                chain.append(view, versions_max=versions_max)
                stored.append(view)
            else:
                stored.append(chain.versions[view.version])
        return stored

    def roll_back(self, thread_id: str, task_ids: Collection[int], *, now_us: int, versions_max: int) -> None:
        """Write a version with the data from before the first one that any of these tasks wrote, if one did.

        `null` if that was nothing. When it is dropped already, the oldest data that is left comes next to it. The new
        version is nobody's: it is not taken back with a task. What was taken back has not happened: its operations, and
        those since then, may be done again; not those whose change is in the data that it goes back to.
        """
        chain = self.chains.get((thread_id, STATE))
        if chain is None:
            return
        first = next((v.version for v in chain.versions.values() if v.task_id in task_ids), None)
        if first is None:
            return
        data: bytes | None = b"null"
        goes_back_to = first - 1
        if goes_back_to > chain.forgotten:
            goes_back_to = max(goes_back_to, chain.dropped + 1)
            data = chain.versions[goes_back_to].data
        chain.undo_operations(goes_back_to + 1)
        view = StateView(thread_id=thread_id, version=chain.present + 1, data=data, at_us=now_us)
        chain.append(view, versions_max=versions_max)

    # ------------------------------------------------------------ forgetting

    def forget(self, thread_id: str, *, now_us: int) -> bool:
        """Forget all chains of a thread; False when there was nothing."""
        return sum(chain.forget(now_us=now_us) for key, chain in self.chains.items() if key[0] == thread_id) > 0

    def known(self) -> set[str]:
        """Return the threads that have a state or config."""
        return {thread_id for (thread_id, _), chain in self.chains.items() if chain.present > chain.forgotten}

    def prune(self, *, before_us: int) -> None:
        """Delete old versions that have no data any more, and with them the operations they remember."""
        for chain in self.chains.values():
            for version, view in list(chain.versions.items()):
                if version <= chain.dropped and version != chain.present and view.at_us < before_us:
                    del chain.versions[version]
                    if view.operation_id is not None:
                        del chain.operations[view.operation_id]
