"""The executor contract, run for ours and for the standard pool, which is the control of the suite itself."""

from __future__ import annotations

from tests.pools.executor_contract import ExecutorContract
from tests.pools.executor_endings import ExecutorEndings, SennitExecutorEndings


class TestThreadPoolExecutor(ExecutorEndings):
    source = """
from concurrent.futures import ThreadPoolExecutor as make_pool
"""


class TestWorkStealingExecutor(SennitExecutorEndings):
    source = """
from sennit.execute.stealing_pool import WorkStealingExecutor as make_pool
"""


class TestAdaptiveThreadPoolExecutor(SennitExecutorEndings):
    """Of a fixed size here, because the contract counts OS threads."""

    source = """
from sennit.execute.adaptive_pool import AdaptiveThreadPoolExecutor
def make_pool(workers, *args, **options):
    return AdaptiveThreadPoolExecutor(workers, *args, workers_min=workers, workers_initial=workers, **options)
"""


class TestAdaptiveThreadPoolExecutorThatGrows(ExecutorContract):
    """As it comes: it starts with one worker, so what needs several needs it to grow. How it ends is the same code."""

    source = """
from sennit.execute.adaptive_pool import AdaptiveThreadPoolExecutor
def make_pool(workers, *args, **options):
    # Initializers may wait for each other: the second OS thread keeps watch only when its own is done.
    initial = workers if "initializer" in options else min(workers, 1)
    return AdaptiveThreadPoolExecutor(workers, *args, workers_initial=initial, **options)
"""
