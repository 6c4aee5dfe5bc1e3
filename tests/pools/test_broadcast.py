"""Topic: every subscriber gets every message in order, or is told what it missed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from random import Random

import pytest

from sennit.errors import BatcherClosed, SettingsError, SubscriberTooSlow, UsageError
from sennit.sync import broadcast
from sennit.sync.broadcast import Subscription, Topic, WhenFull
from sennit.testing.preempt import Case, explore
from sennit.testing.seededloop import SeededLoop
from sennit.testing.seeds import run_seeds
from sennit.testing.simloop import SimLoop


def test_each_subscriber_gets_every_message_since_it_came_in_order_and_in_batches() -> None:
    topic: Topic[int] = Topic()
    early = topic.subscribe(items_max=4)
    for message in range(3):
        topic.publish_blocking(message)
    late = topic.subscribe()
    for message in range(3, 6):
        topic.publish_blocking(message)
    topic.close()

    assert list(early) == [[0, 1, 2, 3], [4, 5]]
    assert list(late) == [[3, 4, 5]]


def test_coroutines_and_os_threads_hear_the_same() -> None:
    topic: Topic[int] = Topic()
    heard: list[list[int]] = [[], []]

    async def main() -> None:
        with topic.subscribe() as here:
            async for batch in here:
                heard[0] += batch

    subscription = topic.subscribe()
    listener = threading.Thread(target=lambda: heard[1].extend(n for batch in subscription for n in batch))
    loop = threading.Thread(target=asyncio.run, args=(main(),))
    listener.start()
    loop.start()
    while topic.statistics().subscribers < 2:
        pass
    for message in range(50):
        topic.publish_blocking(message)
    topic.close()
    listener.join()
    loop.join()

    assert heard == [list(range(50))] * 2


def test_a_full_subscription_holds_the_publisher_and_the_message_goes_to_nobody_meanwhile() -> None:
    async def main() -> None:
        topic: Topic[int] = Topic()
        slow, other = topic.subscribe(waiting_max=2), topic.subscribe()
        for message in range(2):
            await topic.publish(message)
        held = [asyncio.ensure_future(topic.publish(message)) for message in (2, 3)]
        await asyncio.sleep(0.1)  # sleep: virtual
        assert not any(task.done() for task in held)
        assert topic.statistics().publishers_waiting == 2
        assert [len(slow), len(other)] == [2, 2]

        assert await slow.take() == [0, 1]
        await asyncio.gather(*held)
        assert sorted(await slow.take()) == [2, 3]

    virtually(main)


def virtually(main: Callable[[], object]) -> None:
    loop = SeededLoop(3)
    loop.run_until_complete(main())  # type: ignore[arg-type]
    loop.close()


def test_a_publisher_cancelled_while_it_waits_has_told_nobody_and_holds_nobody_up() -> None:
    async def main() -> None:
        topic: Topic[str] = Topic()
        slow = topic.subscribe(waiting_max=1)
        await topic.publish("first")
        held = asyncio.ensure_future(topic.publish("cancelled"))
        await asyncio.sleep(0.1)  # sleep: virtual
        after = asyncio.ensure_future(topic.publish("after"))
        held.cancel()
        await asyncio.sleep(0.1)  # sleep: virtual
        assert await slow.take() == ["first"]
        await after
        assert await slow.take() == ["after"]

    virtually(main)


def test_dropped_messages_are_the_oldest_and_are_counted_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    topic: Topic[int] = Topic()
    slow, fast = topic.subscribe(waiting_max=3, when_full="drop_oldest"), topic.subscribe()
    for message in range(10):
        topic.publish_blocking(message)

    assert slow.take_blocking() == [7, 8, 9]
    assert slow.dropped == topic.statistics().dropped == 7
    assert fast.take_blocking() == list(range(10))
    assert [record.getMessage() for record in caplog.records] == [
        "a subscriber is more than 3 messages behind: the oldest go"
    ]


def test_a_subscriber_that_asked_for_an_error_gets_what_it_holds_and_then_how_much_it_missed() -> None:
    topic: Topic[int] = Topic()
    slow = topic.subscribe(waiting_max=2, items_max=1, when_full="error")
    for message in range(5):
        topic.publish_blocking(message)

    assert [slow.take_blocking(), slow.take_blocking()] == [[0], [1]]
    topic.publish_blocking(5)  # there is room again, but a gap is a gap
    with pytest.raises(SubscriberTooSlow, match="more than 2 messages behind and has missed 4"):
        slow.take_blocking()
    with pytest.raises(SubscriberTooSlow):
        list(slow)


def test_who_leaves_lets_publishers_go_on() -> None:
    async def main() -> None:
        topic: Topic[int] = Topic()
        with topic.subscribe(waiting_max=1) as slow:
            await topic.publish(1)
            held = asyncio.ensure_future(topic.publish(2))
            await asyncio.sleep(0.1)  # sleep: virtual
            assert not held.done()
        await held
        assert await slow.take() == [1]
        assert await slow.take() == []

    virtually(main)


def test_closing_a_topic_ends_iterations_and_tells_publishers_that_wait() -> None:
    async def main() -> None:
        topic: Topic[int] = Topic()
        full, empty = topic.subscribe(waiting_max=1), topic.subscribe()
        waits = asyncio.ensure_future(empty.take())
        await topic.publish(1)
        assert await waits == [1]
        waits = asyncio.ensure_future(empty.take())
        held = asyncio.ensure_future(topic.publish(2))
        await asyncio.sleep(0.1)  # sleep: virtual
        topic.close()
        with pytest.raises(BatcherClosed, match="before the message was out"):
            await held
        assert await waits == []
        assert [batch async for batch in full] == [[1]]
        for use in (topic.publish(3), asyncio.to_thread(topic.subscribe)):
            with pytest.raises(BatcherClosed):
                await use

    virtually(main)


def test_the_blocking_face_is_refused_on_a_loop_and_odd_bounds_always() -> None:
    topic: Topic[int] = Topic()
    subscription = topic.subscribe()

    async def main() -> None:
        for use in (lambda: topic.publish_blocking(1), subscription.take_blocking):
            with pytest.raises(UsageError, match="await"):
                use()

    asyncio.run(main())
    with pytest.raises(SettingsError):
        topic.subscribe(waiting_max=0)
    with pytest.raises(SettingsError):
        topic.subscribe(when_full="forget")  # type: ignore[arg-type]


POLICIES: tuple[WhenFull, ...] = ("block", "drop_oldest", "error")


async def crowd(random: Random, loop: SimLoop) -> None:
    """Publishers and readers of every policy, some cancelled: all hear one order, and every gap is accounted for."""
    topic: Topic[tuple[int, int]] = Topic()
    subscriptions = [
        (policy, topic.subscribe(waiting_max=random.randint(1, 4), items_max=random.randint(1, 3), when_full=policy))
        for policy in POLICIES
    ]
    heard: list[list[tuple[int, int]]] = [[] for _ in POLICIES]
    missed = [0] * len(POLICIES)

    async def publish(number: int) -> None:
        for message in range(6):
            await asyncio.sleep(random.choice([0, 0, 0.01]))  # sleep: virtual
            await topic.publish((number, message))

    async def read(place: int, subscription: Subscription[tuple[int, int]]) -> None:
        try:
            while True:
                take = asyncio.ensure_future(subscription.take())
                if random.random() < 0.3:  # a reader that is cancelled while it waits has taken nothing
                    await asyncio.sleep(0)
                    if not take.done():
                        take.cancel()
                        await asyncio.wait([take])
                        if take.cancelled():
                            continue
                batch = await take
                if not batch:
                    return
                heard[place] += batch
                await asyncio.sleep(random.choice([0, 0.01]))  # sleep: virtual
        except SubscriberTooSlow as error:
            missed[place] = error.missed

    readers = [asyncio.ensure_future(read(place, each)) for place, (_, each) in enumerate(subscriptions)]
    await asyncio.gather(*(publish(number) for number in range(3)))
    topic.close()
    await asyncio.gather(*readers)

    everything = heard[0]
    assert sorted(everything) == [(number, message) for number in range(3) for message in range(6)]
    for number in range(3):
        assert [message for n, message in everything if n == number] == list(range(6))
    rest = iter(everything)
    assert all(message in rest for message in heard[1])  # in the same order
    assert len(heard[1]) + subscriptions[1][1].dropped == 18
    assert heard[2] == everything[: len(heard[2])]
    assert (len(heard[2]) == 18) == (missed[2] == 0)


def test_all_hear_one_order_and_every_gap_is_accounted_for() -> None:
    run_seeds(crowd, range(120))


def test_no_wake_up_is_lost_between_os_threads() -> None:
    def make_case() -> Case:
        topic: Topic[int] = Topic()
        subscriptions = [topic.subscribe(waiting_max=1), topic.subscribe(waiting_max=2, items_max=1)]
        heard: list[list[int]] = [[], []]

        def publisher(base: int) -> Callable[[], None]:
            def body() -> None:
                for n in range(3):
                    topic.publish_blocking(base + n)

            return body

        def reader(place: int) -> Callable[[], None]:
            def body() -> None:
                while len(heard[place]) < 6:
                    heard[place].extend(subscriptions[place].take_blocking())

            return body

        return Case(
            [publisher(0), publisher(10), reader(0), reader(1)],
            lambda: heard[0] == heard[1] and sorted(heard[0]) == [0, 1, 2, 10, 11, 12],
        )

    explore(make_case, range(80), watch=[broadcast])
