"""Both stores, driven with the same operations at the same times, answer the same and hold the same tasks.

`stores_side_by_side` has the machine for tasks; here it learns of threads, questions and admission, and runs.
"""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from sennit.model.admission import Entry
from sennit.model.agent import AgentStatus, AgentView
from sennit.model.task import Parked, Succeeded
from sennit.model.thread import CONFIG, STATE, Answer, AskSpec, AskState, AskView, Decision, StateView, StateWrite
from sennit.store.protocol import Store
from sennit.sync.ack import Ack
from sennit.testing.contract_tools import got
from tests.contract.stores_side_by_side import QUEUES, THREADS, StoresMachine, agree, pick, seconds

ALL_STATES: tuple[AskState, ...] = ("open", "answered", "denied", "expired", "void")
KEYS, EVENT_KEYS = "abc", "12"
STATUSES: tuple[AgentStatus, ...] = ("starting", "working", "waiting", "idle", "done", "failed")

entries = st.builds(
    Entry,
    on_busy=st.sampled_from(["enqueue", "reject", "interrupt", "rollback"]),
    queue_max=st.sampled_from([0, 2, 4]),
    on_full=st.sampled_from(["reject", "shed"]),
    cache_us=st.sampled_from([0, 0, 5_000_000]),
    cache_key=st.sampled_from("mn"),
    cache_tags=st.lists(st.sampled_from("uv"), max_size=2, unique=True).map(tuple),
)
entering = st.fixed_dictionaries(
    {"queue": st.sampled_from(QUEUES), "priority": st.integers(0, 3)},
    optional={"thread_id": st.sampled_from(THREADS)},
)
writes = st.fixed_dictionaries(
    {
        "thread_id": st.sampled_from(THREADS),
        "name": st.sampled_from([STATE, STATE, CONFIG]),
        "ahead": st.sampled_from([0, 0, 0, 0, 1, -1]),
        "data": st.sampled_from([b"1", b"2", b"3"]),
        "operation_id": st.sampled_from([None, None, "o", "p"]),
    }
)
questions = st.builds(
    AskSpec,
    key=st.sampled_from(KEYS),
    expires_us=st.one_of(st.just(0), seconds),
    on_expire=st.sampled_from(["fail", "default", "escalate"]),
    default=st.just(msgspec.Raw(b'"default"')),
    assignee=st.sampled_from(["", "ann"]),
    escalate_to=st.just("boss"),
)
waits = st.builds(
    AskSpec,
    key=st.sampled_from(KEYS),
    kind=st.just("event"),
    name=st.just("paid"),
    event_key=st.sampled_from(EVENT_KEYS),
    expires_us=st.one_of(st.just(0), seconds),
)
asks = st.lists(st.one_of(questions, questions, waits), min_size=1, max_size=3, unique_by=lambda spec: spec.key)
decisions = st.lists(
    st.tuples(pick, st.sampled_from(["answered", "denied"]), st.sampled_from([None, None, 0, 1])),
    min_size=1,
    max_size=3,
)


def asked(view: AskView) -> tuple[Any, ...]:
    """Return what of a question both stores must agree on: all but its id."""
    return msgspec.structs.astuple(view)[1:]


def all_asks(store: Store) -> list[AskView]:
    """Return every question there is or was."""
    return got(store.asks(states=ALL_STATES, limit=10**6))


class ThreadsMachine(StoresMachine):
    """The same, with state, questions, events and bounds."""

    # ------------------------------------------------------------ admission

    @rule(process=st.integers(0, 1), entry=entries, tasks=st.lists(entering, min_size=1, max_size=3))
    def submit_with_entry(self, process: int, entry: Entry, tasks: list[dict[str, Any]]) -> None:
        if entry.on_busy != "enqueue" and (entry.queue_max or entry.cache_us):
            del tasks[1:]  # whether one task of a batch clears its thread before another is looked at is free
        self.submit(process, lambda: [self.spec(**options, entry=entry) for options in tasks], batch=len(tasks))

    @rule(
        process=st.integers(0, 1),
        tags=st.lists(st.sampled_from("uv"), max_size=2),
        keys=st.lists(st.tuples(st.just("h"), st.sampled_from("mn")), max_size=2),
    )
    def invalidate(self, process: int, tags: list[str], keys: list[tuple[str, str]]) -> None:
        self.both(process, lambda store: store.invalidate(tags=tags, keys=keys))

    # ------------------------------------------------------------ state

    def versions(self, drawn: list[dict[str, Any]]) -> list[StateWrite]:
        """Return writes that follow on the present versions, but for those that are drawn to conflict."""
        made: dict[tuple[str, str], int] = {}
        result = []
        for options in drawn:
            chain = options["thread_id"], options["name"]
            if chain not in made:
                made[chain] = got(self.pairs[0][0].state(*chain)).version
            ahead = options["ahead"]
            rest = {k: v for k, v in options.items() if k != "ahead"}
            result.append(StateWrite(expected=max(made[chain] + ahead, 0), **rest))
            made[chain] += 1
        return result

    @rule(process=st.integers(0, 1), drawn=st.lists(writes, min_size=1, max_size=3))
    def write(self, process: int, drawn: list[dict[str, Any]]) -> None:
        new = self.versions(drawn)
        self.both(process, lambda store: store.write_states(new))

    @precondition(lambda self: self.claims)
    @rule(process=st.integers(0, 1), n=pick, drawn=st.lists(writes, min_size=1, max_size=2))
    def write_under_a_claim(self, process: int, n: int, drawn: list[dict[str, Any]]) -> None:
        new, claim = self.versions(drawn), self.claims[-1 - n % len(self.claims)]
        self.both(process, lambda store: store.write_states(new, claim=claim))

    @precondition(lambda self: self.claims)
    @rule(process=st.integers(0, 1), which=st.lists(pick, min_size=1, max_size=2), drawn=st.lists(writes, max_size=3))
    def finish_with_writes(self, process: int, which: list[int], drawn: list[dict[str, Any]]) -> None:
        new = tuple(self.versions(drawn))
        endings = [Succeeded(self.claims[-1 - n % len(self.claims)], b"1", writes=new) for n in which]
        self.both(process, lambda store: store.finish(endings))

    @rule(process=st.integers(0, 1), thread_id=st.sampled_from(THREADS))
    def forget(self, process: int, thread_id: str) -> None:
        self.both(process, lambda store: store.forget_thread(thread_id))

    # ------------------------------------------------------------ questions

    @precondition(lambda self: self.claims)
    @rule(process=st.integers(0, 1), n=pick, specs=asks)
    def park_with_asks(self, process: int, n: int, specs: list[AskSpec]) -> None:
        ending = Parked(self.claims[-1 - n % len(self.claims)], "ask", tuple(specs))
        self.both(process, lambda store: store.finish([ending]))

    @rule(process=st.integers(0, 1), drawn=decisions)
    def answer(self, process: int, drawn: list[tuple[int, Any, int | None]]) -> None:
        def decide(store: Store) -> Ack[list[AskView]]:
            views = all_asks(store)  # each store has ids of its own
            chosen = [(views[n % len(views)], state, behind) for n, state, behind in drawn if views]
            return store.answer(
                [
                    Decision(
                        ask_id=view.id,
                        answer=Answer(state=state, by=f"{n}"),
                        version=None if behind is None else view.version - behind,
                    )
                    for n, (view, state, behind) in enumerate(chosen)
                ]
            )

        self.both(process, decide, seen=lambda views: [asked(view) for view in views])

    @rule(process=st.integers(0, 1), event_key=st.sampled_from(EVENT_KEYS), payload=st.sampled_from([b"1", b"2"]))
    def signal(self, process: int, event_key: str, payload: bytes) -> None:
        self.both(process, lambda store: store.signal("paid", event_key, payload))

    # ------------------------------------------------------------ agents

    @precondition(lambda self: self.claims)
    @rule(process=st.integers(0, 1), n=pick, status=st.sampled_from(STATUSES), worktree=st.sampled_from(["", "", "/w"]))
    def note_agent(self, process: int, n: int, status: AgentStatus, worktree: str) -> None:
        claim = self.claims[-1 - n % len(self.claims)]
        view = AgentView(task_id=claim.task_id, agent="h", status=status, worktree=worktree)
        self.both(process, lambda store: store.note_agent(claim, view))

    @precondition(lambda self: self.ids)
    @rule(process=st.integers(0, 1), n=pick)
    def release_agent(self, process: int, n: int) -> None:
        task_id = self.ids[n % len(self.ids)]
        self.both(process, lambda store: store.release_agent(task_id))

    # ------------------------------------------------------------ what always holds

    @invariant()
    def both_have_the_same_questions(self) -> None:
        agree(*([asked(view) for view in all_asks(store)] for store in self.pairs[0]))

    @invariant()
    def both_show_the_same_agents(self) -> None:
        self.both(0, lambda store: store.agents(limit=10**6))
        self.both(0, lambda store: store.agents(live=True, limit=2))
        self.both(0, lambda store: store.agent_counts())

    @invariant()
    def both_remember_the_same(self) -> None:
        for thread_id in THREADS:
            self.both(0, lambda store, t=thread_id: store.state_history(t))  # type: ignore[misc]

    @precondition(lambda self: self.ids)
    @rule(process=st.integers(0, 1), n=pick)
    def look_at_the_line(self, process: int, n: int) -> None:
        task_id = self.ids[n % len(self.ids)]
        self.both(process, lambda store: store.position(task_id))
        self.both(
            process, lambda store: store.threads(), seen=lambda views: sorted(views, key=lambda view: view.thread_id)
        )

    def compare_the_end(self) -> None:
        super().compare_the_end()
        for chain in [(thread_id, name) for thread_id in THREADS for name in (STATE, CONFIG)]:
            memory: Any = self.both(0, lambda store, c=chain: store.state(*c))  # type: ignore[misc]
            assert isinstance(memory, StateView)
            for version in range(memory.version + 2):
                self.both(1, lambda store, c=chain, v=version: store.state(*c, version=v), seen=lambda s: s.data)  # type: ignore[misc]


# The second machine has all rules of the first, among its own: the first alone is for runs that are of tasks only.
StoresMachine.TestCase.settings = settings(stateful_step_count=40, max_examples=20)
ThreadsMachine.TestCase.settings = settings(stateful_step_count=40, max_examples=60)
TestTheStoresAgree = StoresMachine.TestCase
TestTheStoresAgreeOnThreads = ThreadsMachine.TestCase
