"""numpy arrays between tasks, on one machine: a cpu body's result is the next one's argument, without a copy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sennit import App

WAIT_S = 60.0
ROWS = 1000  # × 1000 float64 = 8 MB, eight times what a payload may have


def make(rows: int) -> NDArray[np.float64]:
    return np.full((rows, 1000), 2.0)


def look(values: list[np.ndarray], *, offset: NDArray[np.int64]) -> tuple[float, list[bool]]:
    return float(sum(v.sum() for v in values) + offset.sum()), [v.flags.writeable for v in values]


def test_arrays_larger_than_a_payload_go_from_body_to_body(tmp_path: Path) -> None:
    """From processes and from OS threads; equal ones are one file, beside the database."""
    app = App(f"sqlite:///{tmp_path}/fleet.db", cpu_slots=2)
    cpu, look_cpu = app.task(cpu=True, name="cpu")(make), app.task(cpu=True, name="look_cpu")(look)
    here, look_here = app.task(name="here")(make), app.task(name="look_here")(look)

    with app:
        arrays = [cpu.submit(ROWS), here.submit(ROWS), cpu.submit(ROWS + 1)]
        calls = [t.call(arrays, offset=np.arange(3)) for t in (look_cpu, look_here)]  # type: ignore[arg-type]  # handles
        seen = [handle.result(WAIT_S) for handle in app.submit_many(calls)]
        own = arrays[0].result(WAIT_S)

    assert seen == [(2000.0 * (3 * ROWS + 1) + 3, [False] * 3)] * 2
    assert own.shape == (ROWS, 1000)
    assert len(list((tmp_path / "fleet.db.arrays").iterdir())) == 2
