"""The tips of chains: what is built on a write that is still on its way, and what becomes of it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from sennit.errors import ConcurrentModificationError
from sennit.model.task import Claim
from sennit.model.thread import StateView, StateWrite
from sennit.store.memory import MemoryStore
from sennit.sync.ack import Ack
from sennit.threads.chains import TIP_BYTES_MAX, Chains, Overtaken, Tip

KEY = ("t", "state")
WAIT_S = 30.0


class LateStore(MemoryStore):
    """Writes when it is told to, as a busy disk would. Claims are not what these tests are about."""

    def __init__(self) -> None:
        super().__init__()
        self.late: list[tuple[list[StateWrite], Ack[list[StateView]]]] = []

    def write_states(self, writes: Sequence[StateWrite], *, claim: Claim | None = None) -> Ack[list[StateView]]:
        ack: Ack[list[StateView]] = Ack()
        self.late.append((list(writes), ack))
        return ack

    def write(self) -> None:
        """Do the oldest write that waits."""
        writes, ack = self.late.pop(0)
        try:
            views = super().write_states(writes).wait()
        except ConcurrentModificationError as error:
            ack.reject(error)
        else:
            ack.resolve(views)

    def write_behind(self, expected: int, data: bytes, operation_id: str | None = None) -> None:
        """Write at once, as another process would."""
        super().write_states([write(expected, data, operation_id)]).wait()


def write(expected: int, data: bytes, operation_id: str | None = None) -> StateWrite:
    return StateWrite(thread_id="t", expected=expected, data=data, operation_id=operation_id)


def offered(ack: Ack[list[StateView]] | None) -> Ack[list[StateView]]:
    assert ack is not None
    return ack


@pytest.fixture
def store() -> LateStore:
    store = LateStore()
    store.write_behind(0, b"1")
    return store


@pytest.fixture
def chains(store: LateStore) -> Chains:
    return Chains(store)


def test_the_next_writer_builds_on_a_write_that_is_under_way(store: LateStore, chains: Chains) -> None:
    first = offered(chains.offer(chains.learn(KEY, store.state("t").wait()), write(1, b"2")))
    tip = chains.look(KEY)
    assert isinstance(tip, Tip)
    assert (tip.version, tip.data) == (2, b"2")
    second = offered(chains.offer(tip, write(2, b"3")))
    assert len(store.late) == 1  # one at a time

    store.write()
    store.write()

    assert (first.wait(WAIT_S)[0].version, second.wait(WAIT_S)[0].version) == (2, 3)


def test_what_is_offered_meanwhile_follows_in_one_transaction(store: LateStore, chains: Chains) -> None:
    tip = chains.learn(KEY, store.state("t").wait())
    acks = []
    for n in range(1, 6):
        acks.append(offered(chains.offer(tip, write(n, b"%d" % (n + 1)))))
        present = chains.look(KEY)
        assert isinstance(present, Tip)
        tip = present
    store.write()

    assert [len(writes) for writes, _ in store.late] == [4]
    store.write()
    assert [ack.wait(WAIT_S)[0].version for ack in acks] == [2, 3, 4, 5, 6]


def test_what_was_built_on_a_write_that_failed_is_not_written(store: LateStore, chains: Chains) -> None:
    """Another process has written the very version number that the second one expects."""
    first = offered(chains.offer(chains.learn(KEY, store.state("t").wait()), write(1, b'"mine"')))
    tip = chains.look(KEY)
    assert isinstance(tip, Tip)
    second = offered(chains.offer(tip, write(2, b'"built on mine"')))
    store.write_behind(1, b'"theirs"')
    store.write()

    with pytest.raises(ConcurrentModificationError):
        first.wait(WAIT_S)
    with pytest.raises(Overtaken):
        second.wait(WAIT_S)
    assert store.late == []
    assert store.state("t").wait().data == b'"theirs"'
    assert chains.look(KEY) is None


def test_nothing_is_built_on_an_operation_before_it_is_known_what_it_did(store: LateStore, chains: Chains) -> None:
    store.write_behind(1, b"2", "known")
    store.write_behind(2, b"3")
    ack = offered(chains.offer(chains.learn(KEY, store.state("t").wait()), write(3, b"4", "known")))
    barrier = chains.look(KEY)
    assert isinstance(barrier, Ack)
    assert not barrier.done

    store.write()

    assert ack.wait(WAIT_S)[0].version == 2
    assert barrier.done
    assert chains.look(KEY) is None  # the tip would be wrong: nothing was written


def test_the_tip_of_a_new_operation_stays(store: LateStore, chains: Chains) -> None:
    ack = offered(chains.offer(chains.learn(KEY, store.state("t").wait()), write(1, b"2", "new")))
    store.write()

    assert ack.wait(WAIT_S)[0].version == 2
    tip = chains.look(KEY)
    assert isinstance(tip, Tip)
    assert (tip.version, tip.data, tip.stored) == (2, b"2", True)


def test_a_large_value_is_no_tip(store: LateStore, chains: Chains) -> None:
    large = b'"' + b"x" * TIP_BYTES_MAX + b'"'
    offered(chains.offer(chains.learn(KEY, store.state("t").wait()), write(1, large)))
    assert isinstance(chains.look(KEY), Ack)
    store.write()

    assert chains.look(KEY) is None
    read = chains.learn(KEY, store.state("t").wait())
    assert chains.look(KEY) is None
    offered(chains.offer(read, write(2, b"3")))
    store.write()
    assert store.state("t").wait().data == b"3"


def test_a_tip_that_was_passed_is_not_built_on(store: LateStore, chains: Chains) -> None:
    tip = chains.learn(KEY, store.state("t").wait())
    offered(chains.offer(tip, write(1, b"2")))

    assert chains.offer(tip, write(1, b'"late"')) is None


def test_a_tip_older_than_what_was_read_makes_way(store: LateStore, chains: Chains) -> None:
    old = chains.learn(KEY, store.state("t").wait())
    store.write_behind(1, b"2")
    fresh = chains.learn(KEY, store.state("t").wait())

    assert (fresh.version, chains.look(KEY)) == (2, fresh)
    assert chains.offer(old, write(1, b'"late"')) is None


def test_a_store_that_fails_tells_those_who_wait_and_the_chain_goes_on(store: LateStore, chains: Chains) -> None:
    first = offered(chains.offer(chains.learn(KEY, store.state("t").wait()), write(1, b"2")))
    tip = chains.look(KEY)
    assert isinstance(tip, Tip)
    second = offered(chains.offer(tip, write(2, b"3")))
    _, ack = store.late.pop()
    ack.reject(OSError("disk full"))

    with pytest.raises(OSError, match="disk full"):
        first.wait(WAIT_S)
    with pytest.raises(Overtaken):
        second.wait(WAIT_S)
    offered(chains.offer(chains.learn(KEY, store.state("t").wait()), write(1, b"2")))
    store.write()
    assert store.state("t").wait().version == 2
