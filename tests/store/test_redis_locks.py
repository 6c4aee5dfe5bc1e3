"""Redis keeps the contract of locks; every backend object is another process."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from sennit.errors import LockLost, SettingsError, StoreUnavailable
from sennit.store.redis_locks import RedisLocks
from sennit.testing.contract_locks import Hand, LockBackendContract, Pass
from sennit.testing.contract_tools import got
from sennit.testing.servers import RedisServer


class TestRedisLocks(LockBackendContract):
    @pytest.fixture
    def open_hand(self, redis: str) -> Iterator[Callable[[], Hand]]:
        opened: list[RedisLocks] = []

        def open_hand() -> Hand:
            opened.append(backend := RedisLocks(redis))
            return Hand(backend, lambda: got(backend.give_up_lock(0)))

        yield open_hand
        for backend in opened:
            backend.close()

    @pytest.fixture
    def time_passes(self, redis: str) -> Iterator[Pass]:
        backend = RedisLocks(redis)

        def time_passes(seconds: float) -> None:
            end_us = backend.now_us() + round(seconds * 1e6)
            while backend.now_us() < end_us:
                threading.Event().wait((end_us - backend.now_us()) / 1e6)  # sleep: Redis has no clock a test could move
            got(backend.give_up_lock(0))

        yield time_passes
        backend.close()


def hand_of(backend: RedisLocks) -> Hand:
    return Hand(backend, lambda: got(backend.give_up_lock(0)))


def test_when_redis_is_killed_those_who_wait_are_told_and_who_holds_cannot_extend(
    start_redis: Callable[..., RedisServer],
) -> None:
    server = start_redis()
    backend = RedisLocks(server.url)
    hand = hand_of(backend)
    held = hand.take(ttl_s=60)
    waiting = hand.line_up()

    server.kill()

    with pytest.raises(StoreUnavailable, match="locks in Redis"):
        got(waiting)
    with pytest.raises(StoreUnavailable):
        hand.extend(held, 60)
    backend.close()


def test_tokens_grow_also_over_a_crash_in_which_redis_has_lost_everything(
    start_redis: Callable[..., RedisServer],
) -> None:
    server = start_redis()
    backend = RedisLocks(server.url)
    hand = hand_of(backend)
    before = hand.take(ttl_s=60)
    server.kill()
    server.start()

    after = hand_of(RedisLocks(server.url)).take(ttl_s=60)

    assert after.token > before.token
    with pytest.raises(LockLost):
        hand.extend(before, 60)
    backend.close()


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)  # as if it were not installed

    with pytest.raises(SettingsError, match=r"sennit\[redis\]"):
        RedisLocks("redis://user:secret@localhost:1/0")


def test_a_server_that_is_not_there_is_named_without_its_password() -> None:
    backend = RedisLocks("redis://user:secret@localhost:1/0")

    with pytest.raises(StoreUnavailable, match=r"redis://localhost:1/0") as refused:
        hand_of(backend).take()

    backend.close()
    assert "secret" not in str(refused.value)


def test_what_is_no_url_of_redis_is_refused() -> None:
    with pytest.raises(SettingsError, match="not a Redis server"):
        RedisLocks("postgresql://x/y")
