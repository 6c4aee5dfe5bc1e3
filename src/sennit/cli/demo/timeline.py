"""The tasks of a run over time, one strip per worker process, and one for the person who was asked.

Bars are SVG, stretched to the width of the page; words are HTML, so that they are never stretched and can be read
aloud, found and printed. A bar's colour is the kind of task, its outline how the attempt ended.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Final

from sennit.cli.demo.digest import WorkerLanes, plural, workers
from sennit.cli.demo.question import in_words

if TYPE_CHECKING:
    from sennit.cli.demo.records import Attempt, RunReport

_WIDTH: Final = 1000
_STRIP_PX_MAX: Final = 96
_LANE_PX_MIN, _LANE_PX_MAX = 4, 12
_TICKS_MAX: Final = 6
# Kinds in the order of the run; the style sheet has a colour for each, and one for any other.
KINDS: Final = ("plan", "approve", "analyse", "review", "audit", "summarise", "report")
_ENDS: Final = {
    "rate_limited": "429, given back",
    "failed": "failed, tried again",
    "suspended": "suspended, went on when answered",
    "killed": "killed with the worker",
    "cancelled": "cancelled",
}


def render_timeline(run: RunReport) -> str:
    """Return the timeline as HTML, or "" for a run without attempts."""
    strips = workers(run)
    if not strips:
        return ""
    end_s = max(run.ledger.seconds, *(attempt.end_s for attempt in run.attempts), 0.001)
    rows = _person(run, end_s) + "".join(_strip(worker, end_s) for worker in strips)
    return f'<div class="timeline">{rows}{_axis(end_s)}</div>{_legend(run)}'


def _person(run: RunReport, end_s: float) -> str:
    """Draw how long the question waited: a strip of its own, because no worker held it."""
    approval = run.approval
    if approval is None:
        return ""
    x = _WIDTH * approval.asked_s / end_s
    width = max(1.5, _WIDTH * (approval.closed_s - approval.asked_s) / end_s)
    said = f"{approval.question} {in_words(approval)}, {approval.asked_s:.2f}-{approval.closed_s:.2f} s"
    return (
        '<div class="worker"><div class="who"><span>a person</span>'
        f'<span class="quiet">{escape(in_words(approval))}</span></div>'
        f'<div class="strip"><svg viewBox="0 0 {_WIDTH} {_LANE_PX_MAX}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(said)}" style="height:{_LANE_PX_MAX}px"><rect class="k-approve" x="{x:.1f}" y="0.5" '
        f'width="{width:.1f}" height="{_LANE_PX_MAX - 1}"><title>{escape(said)}</title></rect></svg></div></div>'
    )


def _strip(worker: WorkerLanes, end_s: float) -> str:
    lane_px = min(_LANE_PX_MAX, max(_LANE_PX_MIN, _STRIP_PX_MAX // len(worker.lanes)))
    height = lane_px * len(worker.lanes)
    attempts = sum(map(len, worker.lanes))
    bars = "".join(
        _bar(attempt, end_s, lane * lane_px, lane_px)
        for lane, lane_of in enumerate(worker.lanes)
        for attempt in lane_of
    )
    fate, mark = "", ""
    if worker.killed_s is not None:
        left = 100 * worker.killed_s / end_s
        fate = f'<strong class="killed">✕ kill -9 at {worker.killed_s:.2f} s</strong>'
        mark = f'<span class="kill" style="left:{left:.2f}%" aria-hidden="true"><b>✕</b></span>'
    label = f"worker {worker.pid}: {plural(attempts, 'attempt')}"
    return (
        f'<div class="worker"><div class="who"><span>worker <b>{worker.pid}</b></span>'
        f'<span class="quiet">{plural(attempts, "attempt")}</span>{fate}</div>'
        f'<div class="strip"><svg viewBox="0 0 {_WIDTH} {height}" preserveAspectRatio="none" role="img" '
        f'aria-label="{label}" style="height:{height}px">{bars}</svg>{mark}</div></div>'
    )


def _bar(attempt: Attempt, end_s: float, top: int, lane_px: int) -> str:
    x = _WIDTH * attempt.start_s / end_s
    width = max(1.5, _WIDTH * (attempt.end_s - attempt.start_s) / end_s)
    kind = attempt.kind if attempt.kind in KINDS else "other"
    ended = _ENDS.get(attempt.outcome, "done")
    took = f"{attempt.start_s:.2f}-{attempt.end_s:.2f} s"
    title = f"{attempt.kind} {attempt.label}, task {attempt.task_id}, attempt {attempt.attempt}, {took}, {ended}"
    return (
        f'<rect class="k-{kind} o-{attempt.outcome}" x="{x:.1f}" y="{top + 0.5}" width="{width:.1f}" '
        f'height="{lane_px - 1}"><title>{escape(title)}</title></rect>'
    )


def _axis(end_s: float) -> str:
    step_s = next(s for s in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 300, 1800, 86_400) if end_s / s <= _TICKS_MAX)
    # A label that starts in the last tenth would stick out of a narrow page.
    ticks = (index * step_s for index in range(int(0.9 * end_s / step_s) + 1))
    marks = "".join(f'<span style="left:{100 * at_s / end_s:.2f}%">{at_s:g} s</span>' for at_s in ticks)
    return f'<div class="worker axis" aria-hidden="true"><div class="who"></div><div class="strip">{marks}</div></div>'


def _legend(run: RunReport) -> str:
    kinds = [kind for kind in KINDS if any(attempt.kind == kind for attempt in run.attempts)]
    ends = [end for end in _ENDS if any(attempt.outcome == end for attempt in run.attempts)]
    items = [_legend_item(f"k-{kind}", kind) for kind in kinds]
    if any(attempt.kind not in KINDS for attempt in run.attempts):
        items.append(_legend_item("k-other", "other"))
    items += [_legend_item(f"k-review o-{end}", _ENDS[end]) for end in ends]
    return f'<ul class="legend">{"".join(items)}</ul>'


def _legend_item(classes: str, words: str) -> str:
    return (
        f'<li><svg viewBox="0 0 18 10" aria-hidden="true"><rect class="{classes}" x="1" y="1" width="16" height="8"/>'
        f"</svg>{words}</li>"
    )
