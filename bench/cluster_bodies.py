"""The bodies of bench/cluster.py, imported by worker processes, Ray workers and Dask workers alike."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sennit import App

app = App("memory://")


@app.task(cpu=True)
def nothing(n: int) -> int:
    return n


@app.task(cpu=True)
def make(rows: int) -> NDArray[np.float64]:
    return np.full((rows, 1024), float(rows))


@app.task(cpu=True)
def look(values: np.ndarray) -> float:
    """Read one element of each page: the array is there, and nobody pays for summing it."""
    return float(values.reshape(-1)[::512].sum())
