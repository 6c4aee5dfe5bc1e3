"""Every knob: name with unit, default, bounds and the reason for the default.

The table in docs/reference/settings.md is drawn from this class. Values come from keywords of `App`, from the
environment (`SENNIT_SLOTS=8`), from `sennit.toml` or `[tool.sennit]`, and from the profile, in that order; reading them
is the job of `runtime`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, Final

from sennit.errors import SettingsError
from sennit.model.route import checked_labels, checked_version


def _knob(
    default: Any,
    *,
    unit: str,
    reason: str,
    low: float | None = None,
    high: float | None = None,
    one_of: tuple[str, ...] = (),
) -> Any:
    return field(default=default, metadata={"unit": unit, "reason": reason, "low": low, "high": high, "one_of": one_of})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings of one process, validated at construction.

    Raises:
        SettingsError: a value is of the wrong type or out of its bounds.
    """

    profile: str = _knob(
        "",
        unit="",
        one_of=("", "small", "medium", "large"),
        reason="a set of defaults for this much work: threads_max, thread_memory_bytes_max, queue_max, provider_parallel; "
        "empty: each has its own default",
    )
    durability: str = _knob(
        "full",
        unit="",
        one_of=("full", "normal"),
        reason="full: an acknowledged task survives a power cut (one fsync per group commit); "
        "normal: it survives kill -9, a power cut may take the last commits",
    )
    slots: int = _knob(
        100,
        unit="tasks",
        low=1,
        high=100_000,
        reason="agents mostly wait; 100 waiting bodies cost little, and each queue can have its own figure",
    )
    labels: str = _knob(
        "",
        unit="",
        reason="what this machine has that tasks may need, with commas: gpu,eu; a task goes only to a worker that has "
        "all it needs; * is everything, for development",
    )
    version: str = _knob(
        "",
        unit="",
        reason="of the code of this process: pinned tasks go only to workers of the version that submitted them",
    )
    claim_ahead: int = _knob(
        0,
        unit="tasks",
        low=0,
        high=10_000,
        reason="tasks of each queue that a process holds beyond its slots, and an idle one takes over; 0 is none: a free slot "
        "claims its next task in the commit that records the end of the last, which is as fast",
    )
    cpu_slots: int = _knob(
        0, unit="processes", low=0, high=1024, reason="0 is the number of usable cores; more only adds switching"
    )
    cpu_memory_bytes_max: int = _knob(
        0, unit="bytes", low=0, high=2**50, reason="0 is no limit; else a cpu body fails alone with MemoryError"
    )
    cpu_prefetch: int = _knob(
        0,
        unit="tasks",
        low=0,
        high=64,
        reason="sent ahead to a busy worker process, so that it begins the next without asking; off: we measured no consistent gain",
    )
    cpu_recycle_tasks: int = _knob(
        0, unit="tasks", low=0, high=1_000_000_000, reason="a worker process is replaced after so many; 0 is never"
    )
    cpu_recycle_bytes: int = _knob(
        0,
        unit="bytes",
        low=0,
        high=2**50,
        reason="a worker process is replaced after a body that leaves it with more resident memory of its own; 0 is never",
    )
    cpu_affinity: str = _knob(
        "auto",
        unit="",
        one_of=("auto", "off"),
        reason="auto: where the machine has more than one NUMA node, each worker process is pinned to one of them",
    )
    placement: str = _knob(
        "auto",
        unit="",
        one_of=("auto", "declared"),
        reason="auto: a plain `def` without cpu= that turns out to compute in Python runs in worker processes from then on, "
        "if it means the same there; declared: only cpu=True does",
    )
    cluster: str = _knob(
        "",
        unit="",
        reason="where CPU bodies run: empty is processes of this machine; ray, the Ray cluster that it is a node of; "
        "ray://HOST:PORT, one elsewhere; [cluster] address in a file",
    )
    cluster_token_path: str = _knob(
        "",
        unit="",
        reason="file with the token of the Ray cluster; empty is RAY_AUTH_TOKEN_PATH, else ~/.ray/auth_token; "
        "[cluster] token_path in a file",
    )
    array_folder: str = _knob(
        "",
        unit="",
        reason="where numpy arrays from 64 KiB on are kept; empty is beside a SQLite file; on several machines, a folder "
        "that all of them mount",
    )
    agents_max: int = _knob(
        8,
        unit="agents",
        low=1,
        high=10_000,
        reason="coding agents of this process at once, of all kinds, and the slots of the queue agents; each takes some 300 MB",
    )
    agent_folder: str = _knob(
        "",
        unit="",
        reason="where each run of an agent keeps what it wrote; empty is beside a SQLite file, else .sennit/agents",
    )
    agent_keep_s: float = _knob(
        7 * 86_400.0,
        unit="s",
        low=0,
        high=10 * 365 * 86_400,
        reason="how long the files of a run are kept after its end",
    )
    payload_bytes_max: int = _knob(
        1_048_576,
        unit="bytes",
        low=1024,
        high=512 * 1024 * 1024,
        reason="arguments and results are read by every claim; large data belongs in files",
    )
    thread_memory_bytes_max: int = _knob(
        0,
        unit="bytes",
        low=0,
        high=2**50,
        reason="state and config of one thread together; 0 is only payload_bytes_max for each: they are read as a whole",
    )
    memory_bytes_max: int = _knob(
        0,
        unit="bytes",
        low=0,
        high=2**50,
        reason="resident memory of this process and its cpu processes above which it takes no further tasks; 0 is off, "
        "since only you know what else runs here",
    )
    threads_max: int = _knob(
        0,
        unit="threads",
        low=0,
        high=10_000_000,
        reason="conversations with a task that is ready or running, in all processes; 0 is no bound, slots are one already",
    )
    queue_max: int = _knob(
        0,
        unit="tasks",
        low=0,
        high=100_000_000,
        reason="tasks of one queue that wait for a slot or their thread's turn; 0 is no bound, a row costs only disk",
    )
    on_full: str = _knob(
        "block",
        unit="",
        one_of=("block", "reject", "shed"),
        reason="block: a submit waits for room, which slows down whoever hands in too much; reject: it fails at once; "
        "shed: it takes the place of waiting tasks of lower priority",
    )
    admission_timeout_s: float = _knob(
        30.0, unit="s", low=0, high=86_400, reason="how long a blocking submit waits for room before it fails"
    )
    state_versions: int = _knob(
        20, unit="versions", low=1, high=100_000, reason="versions of a thread's state that are kept, to look back at"
    )
    provider_parallel: int = _knob(
        10,
        unit="calls",
        low=1,
        high=100_000,
        reason="calls to one provider at once, unless the provider says otherwise",
    )
    lease_s: float = _knob(
        10.0,
        unit="s",
        low=0.2,
        high=3600,
        reason="a dead process on this host is seen at once; the lease is for one that is frozen or elsewhere",
    )
    drain_s: float = _knob(
        10.0, unit="s", low=0, high=86_400, reason="how long a graceful stop lets bodies run before handing them back"
    )
    crashes_max: int = _knob(
        3, unit="crashes", low=1, high=1000, reason="a task that killed its worker this often is poison"
    )
    retention_s: float = _knob(
        7 * 86_400.0, unit="s", low=0, high=10 * 365 * 86_400.0, reason="ended tasks are kept a week for questions"
    )
    retention_batch: int = _knob(
        500, unit="tasks", low=1, high=100_000, reason="small batches keep the writer free for live work"
    )
    writer_batch_max: int = _knob(
        512, unit="operations", low=1, high=100_000, reason="bounds the time one commit holds the write lock"
    )
    hand_over: bool = _knob(
        True,
        unit="",
        reason="a task is claimed by the transaction that made it ready, if this process has a slot for it: one fsync from a "
        "submit or the end of a parent to the body; off: by a transaction of its own, to measure what that costs",
    )
    lock_timeout_s: float = _knob(
        30.0, unit="s", low=0.01, high=3600, reason="how long a foreign program may hold the write lock"
    )
    listen_url: str = _knob(
        "",
        unit="",
        reason="a direct way to PostgreSQL for what it has to say by itself, when the store's URL leads to a pooler; empty is that",
    )
    lock_url: str = _knob(
        "",
        unit="",
        reason="where `app.lock` takes its locks: `redis://host:6379/0`; empty is the store, whose locks a fence proves best",
    )
    no_worker_notice_s: float = _knob(
        2.0, unit="s", low=0.05, high=3600, reason="after this long result() says when nobody serves the queue"
    )
    handler_missing_s: float = _knob(
        300.0,
        unit="s",
        low=0,
        high=86_400 * 30,
        reason="how long a task whose handler no worker knows is kept for a deploy in progress before it fails",
    )
    log_capture: bool = _knob(
        True, unit="", reason="log records made inside a body are kept per attempt (`sennit tasks logs`)"
    )
    result_bursts: bool = _knob(
        True,
        unit="",
        reason="results of sync bodies that end together reach the event loop by one wake-up, which costs tens of µs; off: by "
        "one each, to measure that",
    )
    loop_lag_notice_s: float = _knob(
        0.25, unit="s", low=0.01, high=3600, reason="an async body that blocks the loop longer than this is named"
    )

    load_control: bool = _knob(
        False,
        unit="",
        reason="run less at once while cores, memory or the event loop are overloaded; off, since bodies that only wait "
        "gain nothing by it, and load that comes from other programs would slow them down",
    )
    load_cpu_pressure_max: float = _knob(
        0.8,
        unit="share of time",
        low=0.05,
        high=1.0,
        reason="in which something waited for a core: 0 with as many busy processes as cores, 0.5 with one more, near 1 "
        "with two more; 1 is off",
    )
    load_memory_free_min: float = _knob(
        0.1,
        unit="share of memory",
        low=0.0,
        high=0.9,
        reason="left under the tightest bound, machine or container; below half of it no task is started; 0 is off",
    )

    load_queue_age_s_max: float = _knob(
        0.0,
        unit="s",
        low=0,
        high=86_400 * 30,
        reason="how long tasks may have waited for a slot before `app.load.should_throttle` asks those who hand in `low` "
        "ones to wait; lowers nothing, since doing less would make the queue older still; 0 is off",
    )

    def __post_init__(self) -> None:
        for knob in fields(self):
            _check(knob, getattr(self, knob.name))
        checked_labels(self.labels, of_worker=True)
        checked_version(self.version)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Settings:
        """Build from a mapping, for example parsed from a file or from keywords.

        Raises:
            SettingsError: an unknown name (with the nearest known one), a wrong type or a value out of bounds.
        """
        known = [f.name for f in fields(cls)]
        for name in values:
            if name not in known:
                near = get_close_matches(name, known, n=1)
                raise SettingsError(
                    f"there is no setting {name!r}",
                    fix=f"did you mean {near[0]!r}?" if near else "see `sennit config show`",
                )
        return cls(**values)


# Profile → the defaults it sets. More threads at once means less memory for each.
PROFILES: Final[Mapping[str, Mapping[str, int]]] = MappingProxyType(
    {
        "small": MappingProxyType(
            {"threads_max": 20, "thread_memory_bytes_max": 50_000_000, "queue_max": 100, "provider_parallel": 10}
        ),
        "medium": MappingProxyType(
            {"threads_max": 100, "thread_memory_bytes_max": 30_000_000, "queue_max": 500, "provider_parallel": 20}
        ),
        "large": MappingProxyType(
            {"threads_max": 200, "thread_memory_bytes_max": 20_000_000, "queue_max": 1000, "provider_parallel": 50}
        ),
    }
)


def _check(knob: Field[Any], value: object) -> None:
    """Raise SettingsError unless `value` has the type of the default and lies in the bounds."""
    meta, default = knob.metadata, knob.default
    wanted = float if isinstance(default, float) else type(default)
    fits = isinstance(value, (int, float)) if wanted is float else isinstance(value, wanted)
    if not fits or (isinstance(value, bool) and wanted is not bool):
        raise SettingsError(f"setting {knob.name} must be {wanted.__name__}, not {value!r}")
    if meta["one_of"] and value not in meta["one_of"]:
        words = ", ".join(word or "''" for word in meta["one_of"])
        raise SettingsError(f"setting {knob.name} must be one of {words}, not {value!r}")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        low, high = meta["low"], meta["high"]
        if value != value or (low is not None and value < low) or (high is not None and value > high):  # noqa: PLR0124 - NaN
            raise SettingsError(
                f"setting {knob.name} is {value} {meta['unit']} and must lie between {low} and {high}",
                why=meta["reason"],
            )
