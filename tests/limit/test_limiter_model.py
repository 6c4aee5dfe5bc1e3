"""The limiter against a model of it: who is granted next, how many at once, and that nobody is forgotten.

Waiters are tasks of one event loop and OS threads. Permits are released on the loop, outside of it and from another OS
thread; waiters are cancelled while they wait, and at the very moment at which they are granted.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sennit.errors import UsageError
from sennit.limit.limiter import AdaptiveLimiter, Permit
from sennit.limit.rejected import Rejected
from sennit.limit.strategies import LimitState, allowed, new_state, sample
from sennit.model.order import HANDICAP_BY_NUMBER_US, Priority
from sennit.model.provider import CallOutcome, Strategy

PATIENCE_S = 30.0  # for an OS thread to be scheduled
PLACES = ("loop", "outside", "os thread")

pick = st.integers(0, 1000)
places = st.sampled_from(PLACES)
priorities = st.sampled_from([Priority.URGENT, Priority.NORMAL, Priority.NORMAL, Priority.LOW])
outcomes = st.sampled_from(["ok", "ok", "ok", "ok", "throttled", "timeout", "error", "cancelled"])


@dataclass(eq=False)
class Client:
    """Somebody who asked for a permit, as the model sees it."""

    priority: Priority
    since_us: int
    serial: int
    is_granted: bool = False
    task: asyncio.Task[Permit] | None = None
    thread: threading.Thread | None = None
    got: Future[Permit] = field(default_factory=Future)

    @property
    def place(self) -> tuple[int, int]:
        return self.since_us + HANDICAP_BY_NUMBER_US[self.priority], self.serial

    def permit_now(self) -> Permit | None:
        """Return what the real limiter has given it, if anything."""
        if self.task is not None:
            return self.task.result() if self.task.done() and not self.task.cancelled() else None
        return self.got.result() if self.got.done() else None


class LimiterMachine(RuleBasedStateMachine):
    @initialize(
        strategy=st.sampled_from(["fixed", "fixed", "aimd", "vegas"]), ceiling=st.integers(1, 10), floor=st.just(1)
    )
    def begin(self, strategy: Strategy, ceiling: int, floor: int) -> None:
        self.loop = asyncio.new_event_loop()
        self.now_us = 10**12
        self.strategy = strategy
        self.ceiling = ceiling
        self.state: LimitState = new_state(strategy, ceiling=ceiling, floor=floor)
        self.limiter = AdaptiveLimiter(ceiling, strategy=strategy, floor=floor, now_us=lambda: self.now_us)
        self.other = AdaptiveLimiter(3)
        self.waiting: list[Client] = []
        self.held: list[tuple[Permit, int]] = []  # and when it was granted
        self.released: list[Permit] = []
        self.granted: list[Client] = []  # by the model, and not looked at yet
        self.in_flight = 0
        self.serial = 0

    # ------------------------------------------------------------ the model

    def limit(self) -> int:
        return allowed(self.state, strategy=self.strategy, ceiling=self.ceiling, floor=1)

    def enter_model(self, priority: Priority) -> Client:
        self.serial += 1
        client = Client(priority, self.now_us, self.serial)
        self.waiting.append(client)
        self.grant_model()
        return client

    def grant_model(self, *, but_not: Client | None = None) -> None:
        while self.in_flight < self.limit() and self.waiting:
            client = min(self.waiting, key=lambda c: c.place)
            self.waiting.remove(client)
            if client is but_not:
                continue  # it was granted, and passes it on
            client.is_granted = True
            self.granted.append(client)
            self.in_flight += 1

    def release_model(self, outcome: CallOutcome, granted_us: int, tokens: int) -> None:
        sample(
            self.state, strategy=self.strategy, ceiling=self.ceiling, in_flight=self.in_flight, outcome=outcome,
            duration_us=self.now_us - granted_us, work=tokens, now_us=self.now_us,
        )  # fmt: skip
        self.in_flight -= 1

    # ------------------------------------------------------------ the real one

    def do(self, place: str, call: Callable[[], object]) -> None:
        """Call it on the loop, with no loop, or from another OS thread; then let the loop run until it is idle."""
        if place == "loop":

            async def on_loop() -> None:
                call()

            self.loop.run_until_complete(on_loop())
        elif place == "outside":
            call()
        else:
            failed: Future[None] = Future()

            def in_thread() -> None:
                try:
                    call()
                except BaseException as error:  # noqa: BLE001 - handed to the test
                    failed.set_exception(error)
                else:
                    failed.set_result(None)

            threading.Thread(target=in_thread).start()
            failed.result(PATIENCE_S)
        self.settle()

    def settle(self) -> None:
        for _ in range(6):
            self.loop.run_until_complete(asyncio.sleep(0))
        for client in self.granted:
            permit = client.got.result(PATIENCE_S) if client.thread is not None else client.permit_now()
            assert permit is not None, "granted by the model, still waiting in truth"
            self.held.append((permit, client.since_us if permit.waited_us == 0 else self.now_us))
        self.granted.clear()

    @rule(priority=priorities)
    def enter_as_a_task(self, priority: Priority) -> None:
        client = self.enter_model(priority)

        async def wait() -> Permit:
            return await self.limiter.acquire(priority=priority)

        client.task = self.loop.create_task(wait())
        self.settle()

    @rule(priority=priorities)
    def enter_as_an_os_thread(self, priority: Priority) -> None:
        client = self.enter_model(priority)

        def wait() -> None:
            try:
                client.got.set_result(self.limiter.acquire(priority=priority).result())
            except BaseException as error:  # noqa: BLE001 - handed to the test
                client.got.set_exception(error)

        client.thread = threading.Thread(target=wait, daemon=True)
        client.thread.start()
        if not client.is_granted:
            self.until(lambda: sum(self.limiter.statistics().waiting.values()) == len(self.waiting))
        self.settle()

    def until(self, is_so: Callable[[], bool]) -> None:
        """Wait for another OS thread to get there."""
        pause = threading.Event()
        for _ in range(int(PATIENCE_S / 0.0002)):
            if is_so():
                return
            pause.wait(0.0002)
        raise AssertionError("an OS thread did not come to where it should be")

    @rule()
    def try_it(self) -> None:
        permit = self.limiter.try_acquire()

        if self.in_flight < self.limit():
            assert isinstance(permit, Permit)
            self.in_flight += 1
            self.held.append((permit, self.now_us))
        else:
            assert isinstance(permit, Rejected)
            assert permit.retry_after_s >= 0.0

    @precondition(lambda self: self.held)
    @rule(pick=pick, outcome=outcomes, place=places, tokens=st.sampled_from([0, 0, 1000]))
    def release(self, pick: int, outcome: CallOutcome, place: str, tokens: int) -> None:
        permit, granted_us = self.held.pop(pick % len(self.held))
        self.release_model(outcome, granted_us, tokens)
        self.grant_model()

        self.released.append(permit)
        self.do(place, lambda: self.limiter.release(permit, outcome=outcome, tokens=tokens))

    @precondition(lambda self: self.held and any(client.task for client in self.waiting))
    @rule(pick=pick, whom=pick, place=st.sampled_from(["loop", "outside"]))
    def release_and_cancel_whom_it_may_be_granted_to(self, pick: int, whom: int, place: str) -> None:
        tasks = sorted((c for c in self.waiting if c.task), key=lambda c: c.place)
        client = tasks[0] if whom % 2 else tasks[whom % len(tasks)]
        permit, granted_us = self.held.pop(pick % len(self.held))
        self.release_model("ok", granted_us, 0)
        self.grant_model(but_not=client)
        if client in self.waiting:
            self.waiting.remove(client)

        def both() -> None:
            self.limiter.release(permit)
            assert client.task is not None
            client.task.cancel()

        self.released.append(permit)
        self.do(place, both)
        assert client.task is not None
        assert client.task.cancelled()

    @precondition(lambda self: any(client.task for client in self.waiting))
    @rule(pick=pick)
    def cancel_one_that_waits(self, pick: int) -> None:
        tasks = [client for client in self.waiting if client.task]
        client = tasks[pick % len(tasks)]
        self.waiting.remove(client)

        assert client.task is not None
        client.task.cancel()
        self.settle()

    @rule(ceiling=st.integers(1, 12), place=places)
    def resize(self, ceiling: int, place: str) -> None:
        self.resize_to(ceiling, place)

    @rule(place=places)
    def resize_storm(self, place: str) -> None:
        """The sequence that left 16 running of 5 in anyio 4.14.2."""
        for ceiling in (10, 2, 5, 2, 5):
            self.resize_to(ceiling, place)

    def resize_to(self, ceiling: int, place: str) -> None:
        self.ceiling = ceiling
        self.grant_model()
        self.do(place, lambda: self.limiter.resize(ceiling))

    @rule(seconds=st.sampled_from([0.001, 1.0, 8.0, 70.0, 700.0]))
    def time_passes(self, seconds: float) -> None:
        self.now_us += round(seconds * 1e6)

    @precondition(lambda self: self.released)
    @rule(pick=pick)
    def release_twice(self, pick: int) -> None:
        with pytest.raises(UsageError, match="given back already"):
            self.limiter.release(self.released[pick % len(self.released)])

    @rule()
    def release_what_is_not_ours(self) -> None:
        permit = self.other.try_acquire()
        assert isinstance(permit, Permit)
        with pytest.raises(UsageError, match="another limiter"):
            self.limiter.release(permit)
        self.other.release(permit)

    # ------------------------------------------------------------ what must hold

    @invariant()
    def both_say_the_same(self) -> None:
        if not hasattr(self, "limiter"):
            return
        now = self.limiter.statistics()
        assert now.limit == self.limit() == self.limiter.limit
        assert now.in_flight == self.in_flight == len(self.held)
        assert now.waiting == {p.name.lower(): sum(c.priority is p for c in self.waiting) for p in Priority}
        assert not (self.waiting and self.in_flight < self.limit())
        assert [c.serial for c in self.waiting if c.permit_now() is not None] == []

    def teardown(self) -> None:
        if not hasattr(self, "limiter"):
            return
        self.limiter.resize(1000)
        for _ in range(1000):  # the limit of a strategy does not jump to its ceiling: free what there is
            self.settle_teardown()
            if not self.waiting:
                break
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.settle_loop()
        self.loop.close()

    def settle_teardown(self) -> None:
        self.ceiling = 1000
        self.grant_model()
        self.settle()
        if self.held:
            permit, granted_us = self.held.pop()
            self.release_model("ok", granted_us, 0)
            self.grant_model()
            self.limiter.release(permit)
            self.settle()

    def settle_loop(self) -> None:
        self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.run_until_complete(asyncio.sleep(0))


LimiterMachine.TestCase.settings = settings(max_examples=120, stateful_step_count=40)
TestLimiterModel: Any = LimiterMachine.TestCase
