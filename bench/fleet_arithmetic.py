"""A fleet on one primary, in numbers: what each resource is asked for, and at how many agents it is used up.

    python bench/fleet_arithmetic.py

Every input stands below with its source. `measured` names the command that makes the figure, on the two cores of the
machine that docs/reference/benchmarks.md names, server and clients together; `setting` is read from the code; `assumed`
is what an operator should replace by what he has. The page docs/explanation/very-large-fleets.md quotes the tables.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from report import drawn

from sennit.model.settings import Settings
from sennit.store.ids import BLOCK

COSTS: Final = "postgres_costs.py"
SCALES: Final = (1_000, 10_000, 100_000, 1_000_000)  # agents with a model call under way
DAY_S: Final = 86_400
YEAR_S: Final = 365.25 * DAY_S


class Input(NamedTuple):
    """One number that the rest follows from."""

    name: str
    value: float
    unit: str
    kind: Literal["measured", "setting", "assumed"]
    source: str


_SETTINGS: Final = Settings()

INPUTS: Final = (
    Input("call_s", 8, "s", "assumed", "a model call, and one task per call"),
    Input("node_slots", 200, "tasks", "assumed", "at once on one node, all waiting for models"),
    Input("node_connections", 3, "connections", "assumed", "per node: writes, reads, LISTEN"),
    Input("max_connections", 100, "connections", "setting", "PostgreSQL's default"),
    Input("lease_s", _SETTINGS.lease_s, "s", "setting", "lease_s; renewed every third of it"),
    Input("retention_s", _SETTINGS.retention_s, "s", "setting", "retention_s"),
    Input("wal_bytes", 2_788, "bytes per task", "measured", f"{COSTS}, together_wal_bytes_per_task"),
    Input("kept_bytes", 1_671, "bytes per ended task", "measured", f"{COSTS}, together_kept_bytes_per_task"),
    Input("disk_gb", 2_000, "GB", "assumed", "one volume for the database"),
    Input("wal_mb_per_s", 60, "MB/s", "assumed", "half of a 1 Gbit/s line to one standby"),
    Input("commits_per_s", 3_903, "per s", "measured", f"{COSTS}, own_rows_per_s"),
    Input("heartbeats_per_s", 346, "per s", "measured", f"{COSTS}, heartbeats_one_connection_per_s"),
    Input("listeners", 300, "connections", "measured", f"{COSTS}: with one bell commits fall to three quarters"),
    Input("rows_per_s", 10_000, "tasks/s", "assumed", "R: through one primary, in large batches"),
    Input("turn_s", 0.003, "s", "assumed", "a transaction without its rows: round trips and commit"),
    Input("turn_wait_s", 1, "s", "assumed", "a bearable wait for a turn to write"),
)
IN: Final = {one.name: one.value for one in INPUTS}


# ---------------------------------------------------------------- what a fleet asks for


def tasks_per_s(agents: float) -> float:
    """Return tasks that begin, and end, in a second."""
    return agents / IN["call_s"]


def nodes(agents: float) -> float:
    """Return how many node processes it takes."""
    return agents / IN["node_slots"]


def heartbeats_per_s(agents: float) -> float:
    """Return renewals of leases: one row per process, not per task."""
    return nodes(agents) * 3 / IN["lease_s"]


def history_bytes_per_day(agents: float) -> float:
    """Return what ended tasks leave behind in a day."""
    return tasks_per_s(agents) * IN["kept_bytes"] * DAY_S


def id_years(ids_per_s: float, *, bits: int = 63, used_of_block: int = BLOCK) -> float:
    """Return how long ids last when each block of `BLOCK` is given up after so many of it were used."""
    return 2.0**bits / (ids_per_s * BLOCK / used_of_block) / YEAR_S


def turn_wait_s(agents: float) -> float:
    """Return how long a node waits until it may write again, when all nodes write one after the other.

    A turn costs `turn_s`, and its rows `1 / rows_per_s` each; what a node has to write piles up until its turn. With n nodes
    of r tasks/s: T = n (turn_s + r T / R), so T = n turn_s / (1 - n r / R). Infinite when the rows alone are too many.
    """
    spare = 1 - tasks_per_s(agents) / IN["rows_per_s"]
    return nodes(agents) * IN["turn_s"] / spare if spare > 0 else float("inf")


def nodes_of_turn(wait_s: float) -> float:
    """Return with how many nodes that wait is reached."""
    of_rows = wait_s * IN["node_slots"] / IN["call_s"] / IN["rows_per_s"]
    return wait_s / (IN["turn_s"] + of_rows)


def _wait(agents: float) -> str:
    wait_s = turn_wait_s(agents)
    return "never" if wait_s == float("inf") else f"{1000 * wait_s:,.0f} ms"


def _batch(agents: float) -> str:
    wait_s = turn_wait_s(agents)
    return "-" if wait_s == float("inf") else f"{tasks_per_s(agents) / nodes(agents) * wait_s:,.1f}"


@dataclass(frozen=True, kw_only=True)
class Bound:
    """A resource of one primary, and how many agents use it up."""

    what: str
    agents: float
    how: str
    then: str


def bounds() -> list[Bound]:
    """Return what breaks, first things first."""
    per_call = IN["call_s"]
    return sorted(
        [
            Bound(
                what="connections, `max_connections` as it comes",
                agents=IN["max_connections"] / IN["node_connections"] * IN["node_slots"],
                how=f"{IN['node_connections']:.0f} per node",
                then="raise it, or a transaction pooler for all but LISTEN",
            ),
            Bound(
                what="disk, a week of history",
                agents=1e9 * IN["disk_gb"] / IN["retention_s"] / IN["kept_bytes"] * per_call,
                how=f"{IN['kept_bytes']:,.0f} bytes per task, {IN['retention_s'] / DAY_S:.0f} days",
                then="a shorter `retention_s`; an archive",
            ),
            Bound(
                what="commits side by side, none of them shared",
                agents=IN["commits_per_s"] / 2 * per_call,
                how="tasks without providers, 2 each: claimed, and ended with what it submits",
                then="the writer of each node shares them under load; several primaries",
            ),
            Bound(
                what="turns to write",
                agents=nodes_of_turn(IN["turn_wait_s"]) * IN["node_slots"],
                how=f"tasks with providers: a node waits {IN['turn_wait_s']:g} s until all others have written once",
                then="fewer, larger nodes; blocks of permits; several primaries",
            ),
            Bound(
                what="what one primary gets done",
                agents=IN["rows_per_s"] * per_call,
                how="R tasks/s, whatever the batches",
                then="a larger server; several primaries",
            ),
            Bound(
                what="connections that LISTEN",
                agents=IN["listeners"] * IN["node_slots"],
                how="1 per node; each NOTIFY wakes all of them up to PostgreSQL 18",
                then="another bell: it carries no truth",
            ),
            Bound(
                what="WAL to a standby",
                agents=1e6 * IN["wal_mb_per_s"] / IN["wal_bytes"] * per_call,
                how=f"{IN['wal_bytes']:,.0f} bytes per task",
                then="a wider line; large results in files; several primaries",
            ),
            Bound(
                what="heartbeats on one connection",
                agents=IN["heartbeats_per_s"] * IN["lease_s"] / 3 * IN["node_slots"],
                how="3 per lease and node",
                then="they come from many connections: never",
            ),
        ],
        key=lambda bound: bound.agents,
    )


# ---------------------------------------------------------------- tables


def inputs_table() -> str:
    """Return the inputs."""
    rows = [["input", "value", "kind", "from"]]
    rows += [[f"`{one.name}`", f"{one.value:,.10g} {one.unit}", one.kind, one.source] for one in INPUTS]
    return drawn(rows)


def scales_table() -> str:
    """Return what each scale asks for."""
    rows = [["agents in a call", "1×: 1,000", "10×", "100×", "1000×"]]
    lines: dict[str, Callable[[float], str]] = {
        "tasks/s": lambda agents: f"{tasks_per_s(agents):,.0f}",
        "nodes": lambda agents: f"{nodes(agents):,.0f}",
        "connections": lambda agents: f"{nodes(agents) * IN['node_connections']:,.0f}",
        "of these LISTEN": lambda agents: f"{nodes(agents):,.0f}",
        "heartbeats/s": lambda agents: f"{heartbeats_per_s(agents):,.1f}",
        "turns to write: a node waits": _wait,
        "tasks that share its turn": _batch,
        "permit changes/s, one provider": lambda agents: f"{2 * tasks_per_s(agents):,.0f}",
        "WAL, MB/s": lambda agents: f"{tasks_per_s(agents) * IN['wal_bytes'] / 1e6:,.2f}",
        "history, GB/day": lambda agents: f"{history_bytes_per_day(agents) / 1e9:,.0f}",
        "history, a week, TB": lambda agents: f"{7 * history_bytes_per_day(agents) / 1e12:,.1f}",
    }
    rows += [[name, *(line(agents) for agents in SCALES)] for name, line in lines.items()]
    return drawn(rows)


def bounds_table() -> str:
    """Return what breaks first on one primary."""
    rows = [["used up", "at agents", "because", "then"]]
    rows += [[bound.what, f"{bound.agents:,.0f}", bound.how, bound.then] for bound in bounds()]
    return drawn(rows)


def ids_table() -> str:
    """Return how long ids last."""
    rows = [["ids", "per second", "last"]]
    cases = [
        ("63 bits, every id of a block is used", 1e6, id_years(1e6)),
        ("63 bits, one id of each block is used", 1e6, id_years(1e6, used_of_block=1)),
        ("12 bits for the shard, 51 for a cell's own count, all used", 12_500, id_years(12_500, bits=51)),
        ("the same, one id of each block is used", 1_000, id_years(1_000, bits=51, used_of_block=1)),
        ("53 bits: what a JavaScript number holds exactly", 12_500, id_years(12_500, bits=53)),
        ("53 bits with 12 of them for the shard", 12_500, id_years(12_500, bits=41)),
    ]
    rows += [[what, f"{rate:,.0f}", f"{years:,.0f} years"] for what, rate, years in cases]
    return drawn(rows)


if __name__ == "__main__":
    print(inputs_table(), scales_table(), bounds_table(), ids_table(), sep="\n\n")
