"""What is known of providers, inside one transaction: read once, changed by the governor, written once.

    Pools ─► pool(name): spec, state, permits that are out ◄──counted from their rows
      │           └─ room ─► grant, settle            (limit.governor decides)
      └─► offer(lane): who gives a permit for it, the provider itself or one that stands in

A lane is what tasks and calls name: `name`, or `name/model`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple, assert_never

import msgspec

from sennit.errors import ProviderNotFound
from sennit.limit import governor
from sennit.limit.governor import GovernorState, Mark, Room
from sennit.model.admission import Bounds
from sennit.model.provider import CallReport, ProviderSpec, ProviderView, Rates, split_name
from sennit.model.task import encode
from sennit.store.database import Connection
from sennit.store.effects import Effects
from sennit.store.protocol_providers import Steer
from sennit.store.sql import statements

_LOAD, _STORE, _NAMES, _OUT, _WAITING, _DUE, _FORGET, _STOOD_IN = statements("provider")
_LANES = statements("permit")[3]
_UNHOLD = (
    "DELETE FROM sennit_held WHERE lane = ?1 OR (lane > CAST(?1 AS TEXT) || '/' AND lane < CAST(?1 AS TEXT) || '0')"
)
_SPENT = "SELECT 1 FROM sennit_budget WHERE scope = 'provider' AND key = ? AND is_spent = 1"

_spec_of = msgspec.json.Decoder(ProviderSpec).decode
_state_of = msgspec.json.Decoder(GovernorState).decode
_mark_of = msgspec.json.Decoder(Mark).decode


def lane_of(provider: str, model: str) -> str:
    """Return the lane of a provider's model; "" is no particular one."""
    return f"{provider}/{model}" if model else provider


class Pool:
    """One provider, as it is in this transaction.

    Attributes:
        out: permits that are out, by model.
        wake_us: somebody is held back until then.
    """

    __slots__ = ("_stored", "name", "now_us", "out", "spec", "state", "wake_us")

    def __init__(self, name: str, spec: ProviderSpec, state: GovernorState, wake_us: int | None, now_us: int) -> None:
        self.name = name
        self.spec = spec
        self.state = state
        self.wake_us = wake_us
        self.now_us = now_us
        self.out: Counter[str] = Counter()
        self._stored: tuple[ProviderSpec, int, int | None] | None = (spec, state.revision, wake_us)

    @property
    def is_changed(self) -> bool:
        """True when the row says otherwise."""
        return self._stored is None or self._stored != (self.spec, self.state.revision, self.wake_us)

    def is_new(self) -> None:
        """There is no row."""
        self._stored = None

    @property
    def in_use(self) -> int:
        """Permits that are out."""
        return self.out.total()

    def room(self, model: str, tokens: int) -> Room:
        """Return how many calls may be begun now."""
        return governor.room(
            self.spec, self.state, self.now_us,
            in_use=self.in_use, model=model, model_in_use=self.out[model], tokens=tokens,
        )  # fmt: skip

    def grant(self, model: str, tokens: int) -> Mark:
        """Let one call begin; `room` has just said that it may."""
        mark = governor.grant(self.spec, self.state, self.now_us, in_use=self.in_use, model=model, tokens=tokens)
        self.out[model] += 1
        return mark

    def wait_until(self, wake_us: int | None) -> None:
        """Somebody is held back, and that may be otherwise at `wake_us`."""
        if wake_us is not None and (self.wake_us is None or not self.now_us < self.wake_us <= wake_us):
            self.wake_us = max(wake_us, self.now_us + 1)

    def view(self, *, waiting: int, ready: int) -> ProviderView:
        """Return what people want to know."""
        facts = governor.facts(self.spec, self.state, self.now_us, in_use=self.in_use)
        return ProviderView(
            spec=self.spec, limit=facts.limit, in_use=self.in_use, waiting=waiting, ready=ready,
            closed_until_us=facts.closed_until_us, reason=facts.reason, pause=facts.pause, breaker=facts.breaker,
            **msgspec.structs.asdict(facts.counts),
        )  # fmt: skip


class Over(NamedTuple):
    """A call is over, or was made without a permit: what a provider is to be told.

    Attributes:
        mark: as it stands in the row of the permit; None when there was none.
    """

    provider: str
    model: str
    mark: bytes | None
    report: CallReport | None


class Offer(NamedTuple):
    """Who gives a permit; without `pool` nobody does, for the reason in `room`."""

    pool: Pool | None
    model: str
    room: Room


class Pools:
    """The providers that one transaction looks at. Loads what is asked for; `flush` writes what was changed."""

    def __init__(self, connection: Connection, now_us: int, bounds: Bounds) -> None:
        self.connection = connection
        self.now_us = now_us
        self._bounds = bounds
        self._pools: dict[str, Pool] = {}
        self._lines: set[str] | None = None

    def known(self, name: str) -> Pool | None:
        """Return a provider that has a row."""
        pool = self._pools.get(name)
        if pool is None:
            row = self.connection.execute(_LOAD, (name,)).fetchone()
            if row is None:
                return None
            pool = self._pools[name] = Pool(name, _spec_of(row[0]), _state_of(row[1]), row[2], self.now_us)
            self._count_out(pool)
        return pool

    def pool(self, name: str) -> Pool:
        """Return a provider; the first use of one that nobody has declared declares it."""
        pool = self.known(name)
        if pool is None:
            spec = ProviderSpec(name=name, rates=Rates(parallel=self._bounds.provider_parallel))
            pool = self.add(spec)
        return pool

    def add(self, spec: ProviderSpec) -> Pool:
        """Begin with a provider that has no row."""
        pool = self._pools[spec.name] = Pool(spec.name, spec, governor.fresh(spec, self.now_us), None, self.now_us)
        self._count_out(pool)
        pool.is_new()
        return pool

    def _count_out(self, pool: Pool) -> None:
        pool.out.update(dict(self.connection.execute(_OUT, (pool.name,)).fetchall()))

    def settle(self, over: Sequence[Over]) -> None:
        """Tell the providers how calls went. The rows of their permits are gone, and were not counted."""
        for call in over:
            if call.mark is not None:
                self.pool(call.provider).out[call.model] += 1
        for call in over:
            pool = self.pool(call.provider)
            mark = None if call.mark is None else _mark_of(call.mark)
            governor.settle(pool.spec, pool.state, mark, call.report, self.now_us, in_use=pool.in_use)
            if mark is not None:
                pool.out[call.model] -= 1

    # ------------------------------------------------------------ who gives

    @property
    def lines(self) -> set[str]:
        """The lanes in which calls wait; whoever serves them keeps it up to date."""
        if self._lines is None:
            self._lines = set()
            last = ("", "")
            while (row := self.connection.execute(_LANES, last).fetchone()) is not None:
                last = row
                self._lines.add(lane_of(*row))
        return self._lines

    def forget_lines(self) -> None:
        """Calls have gone from their lanes."""
        self._lines = None

    def offer(self, lane: str, tokens: int = 0, *, is_first: bool = False) -> Offer:
        """Say who gives a permit for a call of `lane` now.

        When the provider is closed, the first of its fallbacks that is not, has room, and is not waited for itself.

        Args:
            is_first: it is the first of the calls that wait in its lane; others come behind those.
        """
        name, model = split_name(lane)
        pool = self.pool(name)
        room = pool.room(model, tokens)
        if room.n and (is_first or lane not in self.lines):
            return Offer(pool, model, room)
        pool.wait_until(room.wake_us)
        if not room.is_closed or not (is_first or lane not in self.lines):
            return Offer(None, model, room)
        for fallback in pool.spec.fallbacks:
            other_name, other_model = split_name(fallback)
            if other_name == name or lane_of(other_name, other_model) in self.lines or self._is_spent(other_name):
                continue
            other = self.pool(other_name)
            found = other.room(other_model, tokens)
            if found.n:
                return Offer(other, other_model, found)
            other.wait_until(found.wake_us)
        return Offer(None, model, room)

    def _is_spent(self, name: str) -> bool:
        return self.connection.execute(_SPENT, (name,)).fetchone() is not None

    # ------------------------------------------------------------ the end of it

    def flush(self, effects: Effects) -> None:
        """Write what was changed."""
        for pool in self._pools.values():
            if pool.is_changed:
                row = (pool.name, encode(pool.spec), encode(pool.state), pool.wake_us)
                self.connection.execute(_STORE, row)
                if pool.wake_us is not None:
                    effects.due(pool.wake_us)

    def view(self, pool: Pool) -> ProviderView:
        """Return what people want to know of a provider."""
        waiting, ready = self.connection.execute(_WAITING, (pool.name,)).fetchone()
        return pool.view(waiting=waiting, ready=ready)


# ---------------------------------------------------------------- by hand


def declare(pools: Pools, effects: Effects, spec: ProviderSpec) -> ProviderView:
    """Store what is declared of a provider."""
    pool = pools.known(spec.name)
    if pool is None:
        pool = pools.add(spec)
    elif pool.spec != spec:
        governor.redeclare(pool.spec, spec, pool.state, effects.now_us)
        pool.spec = spec
    effects.for_calls().touched.add(spec.name)
    return pools.view(pool)


def steer(pools: Pools, effects: Effects, name: str, how: Steer, until_us: int | None) -> ProviderView:
    """Do by hand what the governor does by itself.

    Raises:
        ProviderNotFound: not known.
    """
    pool = pools.known(name)
    if pool is None:
        raise ProviderNotFound(name)
    match how:
        case "isolate":
            governor.isolate(pool.spec, pool.state, effects.now_us)
        case "pause":
            governor.pause(pool.spec, pool.state, effects.now_us, until_us=until_us or effects.now_us)
        case "reset":
            governor.reset(pool.spec, pool.state, effects.now_us)
        case _:
            assert_never(how)
    effects.for_calls().touched.add(name)
    return pools.view(pool)


def forget(connection: Connection, pools: Pools, name: str) -> bool:
    """Delete a provider that is neither used nor waited for."""
    pool = pools.known(name)
    if pool is None or pool.in_use or any(connection.execute(_WAITING, (name,)).fetchone()):
        return False
    if connection.execute(_STOOD_IN, (name,)).fetchone()[0]:
        return False
    connection.execute(_FORGET, (name,))
    connection.execute(_UNHOLD, (name,))
    return True


def views(pools: Pools, names: Sequence[str]) -> list[ProviderView]:
    """Return providers, by name.

    Raises:
        ProviderNotFound: one of `names` is not known.
    """
    found = []
    for name in sorted(set(names)) if names else [name for (name,) in pools.connection.execute(_NAMES).fetchall()]:
        pool = pools.known(name)
        if pool is None:
            raise ProviderNotFound(name)
        found.append(pools.view(pool))
    return found


def due(connection: Connection, pools: Pools) -> list[str]:
    """Return the providers for which the time has come that somebody was held back for."""
    names = [name for (name,) in connection.execute(_DUE, (pools.now_us,)).fetchall()]
    for name in names:
        pools.pool(name).wake_us = None
    return names
