"""`sennit doctor` for a store on PostgreSQL: can it be reached, is it new enough, does a commit last, do notifications arrive?"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from typing import Any, Final, Literal

from sennit.cli.doctor import Check, shut
from sennit.cli.opening import reading, schema_of
from sennit.errors import SennitError
from sennit.runtime.stores import need_psycopg
from sennit.sync.clock import wall_us

CLOCK_S_MAX: Final = 5.0
SNAPSHOT_S_MAX: Final = 600.0
PER_PROCESS: Final = 3


def server_checks(url: str) -> Iterator[Check]:
    """Yield the findings; the first that stops everything ends them."""
    try:
        need_psycopg()
    except SennitError as error:
        yield Check("driver", "problem", error.what, error.fix)
        return
    yield Check("driver", "ok", f"psycopg {version('psycopg')}")
    try:
        schema = schema_of(url)
        facts, clock_us, oldest_s = _facts(url)
    except SennitError as error:
        yield Check("server", "problem", error.what, error.fix)
        return
    yield Check("server", "ok", f"PostgreSQL {facts['server_version']} answers")
    yield _schema(schema.found, schema.latest)
    yield _rights(facts, needs_tables=schema.found < schema.latest)
    if schema.found == schema.latest:
        yield from shut(url)
    yield _encoding(facts["encoding"])
    yield _role(is_standby=facts["is_standby"])
    yield _lasting(facts)
    yield _room(facts)
    yield _clock(clock_us)
    yield _snapshot(oldest_s)
    yield _notifications(url)


def _facts(url: str) -> tuple[dict[str, Any], int, float | None]:
    from sennit.store.postgres_facts import oldest_snapshot_s, server_facts

    with reading(url) as reader:
        facts = reader.put(server_facts).result()
        before_us = wall_us()
        server_us = reader.put(
            lambda c: int(c.execute("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint").fetchone()[0])
        ).result()
        middle_us = (before_us + wall_us()) // 2
        return facts, server_us - middle_us, reader.put(oldest_snapshot_s).result()


def _schema(found: int, latest: int) -> Check:
    if found == latest:
        return Check("schema", "ok", f"schema {found}")
    if found == 0:
        return Check("schema", "notice", "no tables of sennit yet", "sennit db init, or the first worker makes them")
    return Check("schema", "notice", f"schema {found}, this sennit needs {latest}", "sennit db migrate")


def _rights(facts: dict[str, Any], *, needs_tables: bool) -> Check:
    """Tables are made, and changed by migrations, by whoever opens the store first."""
    found, place = f"{facts['user']} may create tables", facts["schema"] or "a schema of the search_path"
    if facts["may_create"]:
        return Check("rights", "ok", found)
    fix = f"GRANT CREATE ON SCHEMA {place} TO {facts['user']}, or let its owner run sennit db init and migrate"
    level: Literal["notice", "problem"] = "problem" if needs_tables else "notice"
    return Check("rights", level, f"{facts['user']} may not create tables in {place}", fix)


def _encoding(encoding: str) -> Check:
    if encoding == "UTF8":
        return Check("encoding", "ok", "UTF8")
    fix = "createdb --encoding UTF8 --template template0"
    return Check("encoding", "problem", f"{encoding} cannot keep every text", fix)


def _role(*, is_standby: bool) -> Check:
    if is_standby:
        fix = "point the URL at the primary: target_session_attrs=read-write"
        return Check("role", "problem", "a standby takes no writes", fix)
    return Check("role", "ok", "a primary")


def _lasting(facts: dict[str, Any]) -> Check:
    off = [name for name in ("fsync", "full_page_writes", "synchronous_commit") if facts[name] == "off"]
    if off:
        return Check("durability", "problem", f"{', '.join(off)} off", "set them to on: acknowledged tasks can be lost")
    sums = "" if facts["data_checksums"] == "on" else ", without data checksums"
    return Check("durability", "ok", f"a commit is on the disk{sums}")


def _room(facts: dict[str, Any]) -> Check:
    used, at_most = facts["connections_all"], facts["connections_max"]
    found = f"{used} of {at_most} in use, a process needs {PER_PROCESS}"
    if at_most - used < 2 * PER_PROCESS:
        return Check("connections", "notice", found, "raise max_connections, or put a transaction pooler in front")
    return Check("connections", "ok", found)


def _clock(off_us: int) -> Check:
    off_s = off_us / 1e6
    if abs(off_s) > CLOCK_S_MAX:
        found = f"the server is {off_s:+.1f} s from this machine"
        return Check(
            "clock", "notice", found, "run an NTP service: leases go by the server's clock, what people read by yours"
        )
    return Check("clock", "ok", f"the server is {off_s:+.3f} s from this machine")


def _snapshot(oldest_s: float | None) -> Check:
    if oldest_s is not None and oldest_s > SNAPSHOT_S_MAX:
        found = f"a transaction has kept its snapshot for {oldest_s:.0f} s"
        return Check("snapshots", "notice", found, "end it: vacuum cannot clean behind it, and claims get slower")
    return Check("snapshots", "ok", "none is old")


def _notifications(url: str) -> Check:
    from sennit.store.postgres_facts import hears_itself

    try:
        delay_s = hears_itself(url)
    except SennitError as error:
        return Check("notifications", "problem", error.what, error.fix)
    if delay_s is None:
        fix = "connect workers directly, or let the pooler keep sessions: without it they look every second"
        return Check("notifications", "notice", "LISTEN hears nothing here", fix)
    return Check("notifications", "ok", f"heard after {delay_s * 1000:.1f} ms")
