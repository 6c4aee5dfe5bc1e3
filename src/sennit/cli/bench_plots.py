"""The plots of `sennit bench limits`: per provider one PNG, per strategy one small panel, all on the same axes.

┌ fixed ──────┐ ┌ aimd ───────┐      line    what the governor allows
│             │ │  ╱╲╱╲╱╲╱╲   │      area    calls that are out
└─────────────┘ └─────────────┘      dashes  what the provider bears, which nobody has told it
┌ gradient ───┐ ┌ vegas ──────┐
└─────────────┘ └─────────────┘
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Final

from matplotlib.figure import Figure
from PIL import Image

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from sennit.cli.bench_limits import Row
    from sennit.testing.governorsim import GovernedRun, Scenario

DPI: Final = 100
SIZE_INCHES: Final = (8.0, 4.3)  # 800 pixels wide
LIMIT, IN_FLIGHT, CAP, INK, FRAME = "#1f4e79", "#bcd0e5", "#b5472f", "#333333", "#bbbbbb"
HEADROOM: Final = 1.25
COLOURS: Final = 64


def draw(scenario: Scenario, panels: Sequence[tuple[Row, GovernedRun]], ceiling: int, path: Path) -> None:
    """Write one PNG."""
    figure = Figure(figsize=SIZE_INCHES, dpi=DPI, layout="constrained")
    axes = figure.subplots(2, 2, sharex=True, sharey=True)
    top = _top(scenario, panels, ceiling)
    for axis, (row, run) in zip(axes.flat, panels, strict=True):
        _panel(axis, scenario, row, run, ceiling=ceiling, top=top)
    for axis in axes[-1]:
        axis.set_xlabel("minutes", fontsize=8, color=INK)
    for axis in axes[:, 0]:
        axis.set_ylabel("calls at once", fontsize=8, color=INK)
    figure.suptitle(scenario.provider.name, fontsize=10, color=INK, x=0.01, ha="left")
    handles, labels = axes[0][1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper right", ncols=3, fontsize=8, frameon=False, labelcolor=INK)
    drawn = BytesIO()
    figure.savefig(drawn, format="png")
    # With a palette it is a third of the size, and nothing is lost that an eye sees. Pillow comes with matplotlib.
    picture = Image.open(drawn).convert("RGB")
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(path, format="PNG", optimize=True)


def _top(scenario: Scenario, panels: Sequence[tuple[Row, GovernedRun]], ceiling: int) -> float:
    """Return the end of the axis: what the strategies that move need; the ceiling may lie far above it."""
    moving = max(point.limit for row, run in panels if row.strategy != "fixed" for point in run.trace)
    bears = max(scenario.bears(point.at_s, ceiling) for point in panels[0][1].trace)
    return min(HEADROOM * max(moving, bears), HEADROOM * ceiling)


def _panel(axis: Axes, scenario: Scenario, row: Row, run: GovernedRun, *, ceiling: int, top: float) -> None:
    minutes = [point.at_s / 60 for point in run.trace]
    in_flight = [point.in_flight for point in run.trace]
    axis.fill_between(minutes, in_flight, step="post", color=IN_FLIGHT, linewidth=0, label="calls in flight")
    bears = [scenario.bears(point.at_s, ceiling) for point in run.trace]
    axis.plot(
        minutes, bears, color=CAP, linewidth=1.0, linestyle=(0, (4, 2)), drawstyle="steps-post", label="what it bears"
    )
    limits = [point.limit for point in run.trace]
    axis.plot(minutes, limits, color=LIMIT, linewidth=1.2, drawstyle="steps-post", label="limit")
    axis.set_title(
        f"{row.strategy}:  {row.of_oracle:.0%} of the oracle, {row.throttled_share:.1%} 429s, {row.timeouts:,.0f} time-outs",
        fontsize=8, color=INK, loc="left",
    )  # fmt: skip
    if run.median_limit > top:
        axis.text(
            0.99, 0.95, f"limit {ceiling}, far above", transform=axis.transAxes, ha="right", va="top", fontsize=8,
            color=LIMIT, backgroundcolor="white",
        )  # fmt: skip
    axis.set_ylim(0, top)
    axis.set_xlim(0, minutes[-1])
    axis.tick_params(labelsize=8, colors=INK, length=2)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axis.spines[side].set_color(FRAME)
