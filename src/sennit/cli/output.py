"""stdout: JSON Lines for programs, aligned columns for people, and the words for times and sizes."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import accumulate, takewhile
from typing import Any, TypeVar

import click
import msgspec

from sennit.model.route import parts_of
from sennit.model.task import ErrorInfo, Ledger, LogLine, RouteView, TaskView, WorkerInfo

T = TypeVar("T")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def emit(value: Any) -> None:
    """Write one line of JSON."""
    click.echo(msgspec.json.encode(value))


# ---------------------------------------------------------------- text that somebody else has written


def safe(text: str) -> str:
    """Return text for one line of a terminal: what would move the cursor, or turn the direction, is escaped."""
    return text if text.isprintable() else "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def safe_lines(text: str) -> str:
    """Return text that may have lines."""
    return "\n".join(safe(line) for line in text.split("\n"))


def columns(text: str) -> int:
    """Return how many columns of a terminal a line takes: wide characters of East Asia two, combining marks none.

    As UAX #11 has it (https://www.unicode.org/reports/tr11/): W and F are wide; A, "ambiguous", is narrow outside of
    East Asian legacy encodings.
    """
    return len(text) if text.isascii() else sum(map(_columns, text))


def _columns(character: str) -> int:
    if unicodedata.category(character) in {"Mn", "Me"}:
        return 0
    return 2 if unicodedata.east_asian_width(character) in {"W", "F"} else 1


def padded(text: str, width: int, *, right: bool = False) -> str:
    """Return text with as many spaces as make it `width` columns: after it, or before it so that it is flush right."""
    space = " " * (width - columns(text))
    return space + text if right else text + space


def clipped(text: str, width: int) -> str:
    """Return the first line of a text, at most `width` columns of a terminal."""
    first, *rest = text.splitlines() or [""]
    if columns(first) <= width and not rest:
        return first
    ends = takewhile(lambda end: end < width, accumulate(map(_columns, first)))
    return f"{first[: sum(1 for _ in ends)]}…"


def pretty(data: bytes | msgspec.Raw) -> str:
    """Return stored JSON for people: indented, and safe to print."""
    return safe_lines(msgspec.json.format(bytes(data), indent=2).decode())


def rfc3339(at_us: int | None) -> str | None:
    """Return a moment of the store's clock (µs since the epoch) as RFC 3339 in UTC."""
    if at_us is None:
        return None
    return (_EPOCH + timedelta(microseconds=at_us)).isoformat(timespec="microseconds").replace("+00:00", "Z")


def moment(at_us: int | None, now_us: int) -> str:
    """Return a moment in the local time zone for people, with the date unless it is today; "" for none."""
    if at_us is None:
        return ""
    at, now = ((_EPOCH + timedelta(microseconds=us)).astimezone() for us in (at_us, now_us))
    return at.strftime("%H:%M:%S" if at.date() == now.date() else "%Y-%m-%d %H:%M")


def span(seconds: float) -> str:
    """Return a duration for people: 0.4s, 12s, 4m12s, 3h07m, 2d05h."""
    if round(seconds, 1) < 10:
        return f"{max(seconds, 0.0):.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86_400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86_400}d{whole % 86_400 // 3600:02}h"


def size(n_bytes: int) -> str:
    """Return a size for people, in powers of 1024."""
    amount = float(n_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def say_more(shown: Sequence[object], limit: int) -> None:
    """Say on stderr that a list may go on; nothing is cut off silently."""
    if len(shown) >= limit:
        click.echo(f"{len(shown):,} shown, there may be more: --limit", err=True)


def at_most(found: Sequence[T], limit: int) -> Sequence[T]:
    """Return the first `limit` of a list that was asked for one more; say on stderr if that one is there."""
    if len(found) > limit:
        click.echo(f"showing {limit:,} of more than {limit:,}; more with --limit", err=True)
    return found[:limit]


def table(head: Sequence[str], rows: Sequence[Sequence[object]], *, right: frozenset[str] = frozenset()) -> None:
    """Write aligned columns; those named in `right` are flush right. The last one is not padded."""
    cells = [[safe(str(cell)) for cell in row] for row in rows]
    widths = [max([columns(name), *(columns(row[i]) for row in cells)]) for i, name in enumerate(head)]
    for line in ([*head], *cells):
        parts = [padded(cell, width, right=name in right) for name, cell, width in zip(head, line, widths, strict=True)]
        click.echo("  ".join(parts).rstrip())


def _error(error: ErrorInfo | None) -> dict[str, str] | None:
    if error is None:
        return None
    return {"kind": error.kind, "message": error.message, "traceback": error.traceback, "fix": error.fix}


def task_json(task: TaskView) -> dict[str, Any]:
    """Return the keys of `sennit.task/1`; a key may be added, none is taken away within version 1."""
    return {
        "schema": "sennit.task/1",
        "id": task.id,
        "handler": task.handler,
        "queue": task.queue,
        "provider": task.provider,
        "needs": parts_of(task.route)[0],
        "pinned_to": parts_of(task.route)[1],
        "state": str(task.state),
        "priority": task.priority.name.lower(),
        "attempt": task.attempt,
        "failures": task.failures,
        "crashes": task.crashes,
        "thread_id": task.thread_id,
        "key": task.key,
        "parent_id": task.parent_id,
        "waiting_for": task.waiting_for,
        "worker_id": task.worker_id,
        "reason": task.reason,
        "created_at": rfc3339(task.created_us),
        "due_at": rfc3339(task.due_us),
        "started_at": rfc3339(task.started_us),
        "done_at": rfc3339(task.done_us),
        "error": _error(task.error),
    }


def raw(payload: bytes | None) -> Any:
    """Return stored JSON so that it is written as it is."""
    return None if payload is None else msgspec.Raw(payload)


def log_json(line: LogLine) -> dict[str, Any]:
    """Return the keys of `sennit.log/1`."""
    return {
        "schema": "sennit.log/1",
        "seq": line.seq,
        "task_id": line.task_id,
        "attempt": line.attempt,
        "at": rfc3339(line.at_us),
        "level": line.level,
        "text": line.text,
    }


def worker_json(worker: WorkerInfo) -> dict[str, Any]:
    """Return what `status` says of one process."""
    return {
        "id": worker.id,
        "role": worker.role,
        "pid": worker.pid,
        "host": worker.host,
        "queues": worker.queues,
        "labels": worker.labels,
        "version": worker.version,
        "drains": worker.drains,
        "fenced": worker.fenced,
        "listening": worker.listening,
        "running": worker.running,
        "started_at": rfc3339(worker.started_us),
        "lease_until": rfc3339(worker.expire_us),
    }


def traits(worker: WorkerInfo | None, now_us: int | None = None) -> str:
    """Return what is special about a worker for people, with two spaces before each; with a time also how it is now."""
    if worker is None:
        return ""
    found = [f"with {','.join(worker.labels)}" if worker.labels else "", worker.version and f"version {worker.version}"]
    if now_us is not None:
        found.append("drains" if worker.drains else "")
        found.append("its lease has lapsed" if worker.running and worker.expire_us < now_us else "")
        found.append(f"was fenced {worker.fenced}×" if worker.fenced else "")
        found.append("" if worker.listening else "hears nothing, looks every second")
    return "".join(f"  {words}" for words in found if words)


def route_json(view: RouteView) -> dict[str, Any]:
    """Return what `status` says of the tasks that need the same of their worker."""
    return msgspec.structs.asdict(view)


def route_words(view: RouteView) -> str:
    """Return the same for people: `gpu, eu`, `version 7`."""
    return " and ".join(filter(None, [", ".join(view.needs), view.version and f"version {view.version}"]))


def ledger_json(ledger: Ledger) -> dict[str, int]:
    """Return the counts and what is missing."""
    return {**msgspec.structs.asdict(ledger), "missing": ledger.missing}


def ledger_line(ledger: Ledger) -> str:
    """Return the ledger as one line for people."""
    verdict = "✓ nothing missing" if ledger.balanced else f"✕ {abs(ledger.missing):,} {_wrong(ledger)}"
    return (
        f"submitted {ledger.submitted:,} = succeeded {ledger.succeeded:,} + failed {ledger.failed:,}"
        f" + cancelled {ledger.cancelled:,} + live {ledger.live:,}   {verdict}"
    )


def _wrong(ledger: Ledger) -> str:
    return "missing" if ledger.missing > 0 else "counted twice"
