"""An ack wakes each event loop once, in order, and one listener's bug keeps nobody else from being told."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from sennit.sync.ack import Ack, resolve_all


def elsewhere(function: Any, *args: Any) -> None:
    """Call it in another OS thread, and wait."""
    thread = threading.Thread(target=function, args=args)
    thread.start()
    thread.join()


def test_calls_come_before_who_awaits_and_all_with_one_wake_up() -> None:
    said: list[str] = []
    wakes: list[object] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        one: Ack[int] = Ack()
        other: Ack[int] = Ack()
        one.call_when_done(loop, lambda ack: said.append(f"callback {ack.wait()}"))

        async def waits() -> None:
            said.append(f"awaited {await other}")

        waiting = loop.create_task(waits())
        await asyncio.sleep(0)
        wake = loop.call_soon_threadsafe

        def counted(*args: Any, **options: Any) -> Any:
            wakes.append(args)
            return wake(*args, **options)

        loop.call_soon_threadsafe = counted  # type: ignore[method-assign, assignment]
        calls = [(loop, lambda: said.append("call"))]
        elsewhere(resolve_all, [(other, 2, None), (one, 1, None)], calls)
        await waiting

    asyncio.run(main())
    assert said == ["call", "callback 1", "awaited 2"]
    assert len(wakes) == 1


def test_a_call_that_fails_is_reported_and_the_others_are_made() -> None:
    reported: list[BaseException] = []

    async def main() -> int:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: reported.append(context["exception"]))
        ack: Ack[int] = Ack()
        waiting = loop.create_task(asyncio.wait_for(ack, 10))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        elsewhere(resolve_all, [(ack, 1, None)], [(loop, lambda: 1 // 0)])
        return await waiting

    assert asyncio.run(main()) == 1
    assert [type(error) for error in reported] == [ZeroDivisionError]


def test_a_call_that_ends_the_loop_leaves_the_rest_to_the_next_run() -> None:
    loop = asyncio.new_event_loop()
    ack: Ack[int] = Ack()

    async def waits() -> int:
        return await ack

    def interrupt() -> None:
        raise KeyboardInterrupt

    waiting = loop.create_task(waits())
    loop.run_until_complete(asyncio.sleep(0))
    elsewhere(resolve_all, [(ack, 1, None)], [(loop, interrupt)])
    with pytest.raises(KeyboardInterrupt):
        loop.run_forever()

    assert loop.run_until_complete(waiting) == 1
    loop.close()


@pytest.mark.parametrize("is_done", [True, False])
def test_a_callback_is_never_called_from_inside_who_asks_for_it(is_done: bool) -> None:  # noqa: FBT001 - a case
    async def main() -> list[str]:
        loop, said = asyncio.get_running_loop(), list[str]()
        ack: Ack[int] = Ack()
        if is_done:
            ack.resolve(1)
        ack.call_when_done(loop, lambda _: said.append("called"))
        if not is_done:
            ack.resolve(1)
        said.append("asked")
        await asyncio.sleep(0)
        return said

    assert asyncio.run(main()) == ["asked", "called"]


def test_a_callback_for_a_closed_loop_is_dropped() -> None:
    loop = asyncio.new_event_loop()
    ack: Ack[int] = Ack()
    ack.call_when_done(loop, print)
    loop.close()

    ack.resolve(1)

    assert ack.result() == 1
