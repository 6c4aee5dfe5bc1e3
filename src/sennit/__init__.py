"""Sennit runs fleets of AI agents in parallel and loses nothing.

submit/     1  it is handed in        model/    what a task is: pure values
store/      2  it is written down     sync/     clock, locks, acks
schedule/   3  its turn comes         runtime/  wires it all: App
execute/    4  it runs                cli/      one file per noun
observe/    5  it is seen             testing/  store contract, virtual time, simulator
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sennit._version import __version__

if TYPE_CHECKING:
    from sennit.errors import (
        AskDenied,
        AskExpired,
        BudgetExceeded,
        QueueFull,
        SennitError,
        StoreError,
        SubmitError,
        TaskCancelled,
        TaskFailed,
        TaskNotFound,
        ThreadBusy,
    )
    from sennit.model.order import Priority
    from sennit.model.retry import Cancel, NotRetryable, Retry, RetryPolicy, Rule, Snooze
    from sennit.model.timeout import AdaptiveTimeout
    from sennit.runtime import App
    from sennit.submit.asking import ask, wait_event
    from sennit.submit.context import heartbeat, sleep, step
    from sennit.submit.handle import Handle, Handles
    from sennit.submit.registry import Task
    from sennit.submit.talk import thread

# Where each name lives; imported on first use, so that `sennit --version` stays far below 100 ms.
_HOMES = {
    "AdaptiveTimeout": "sennit.model.timeout",
    "App": "sennit.runtime",
    "AskDenied": "sennit.errors",
    "AskExpired": "sennit.errors",
    "BudgetExceeded": "sennit.errors",
    "Cancel": "sennit.model.retry",
    "Handle": "sennit.submit.handle",
    "Handles": "sennit.submit.handle",
    "NotRetryable": "sennit.model.retry",
    "Priority": "sennit.model.order",
    "QueueFull": "sennit.errors",
    "Retry": "sennit.model.retry",
    "RetryPolicy": "sennit.model.retry",
    "Rule": "sennit.model.retry",
    "SennitError": "sennit.errors",
    "Snooze": "sennit.model.retry",
    "StoreError": "sennit.errors",
    "SubmitError": "sennit.errors",
    "Task": "sennit.submit.registry",
    "TaskCancelled": "sennit.errors",
    "TaskFailed": "sennit.errors",
    "TaskNotFound": "sennit.errors",
    "ThreadBusy": "sennit.errors",
    "ask": "sennit.submit.asking",
    "heartbeat": "sennit.submit.context",
    "sleep": "sennit.submit.context",
    "step": "sennit.submit.context",
    "thread": "sennit.submit.talk",
    "wait_event": "sennit.submit.asking",
}

__all__ = [
    "AdaptiveTimeout",
    "App",
    "AskDenied",
    "AskExpired",
    "BudgetExceeded",
    "Cancel",
    "Handle",
    "Handles",
    "NotRetryable",
    "Priority",
    "QueueFull",
    "Retry",
    "RetryPolicy",
    "Rule",
    "SennitError",
    "Snooze",
    "StoreError",
    "SubmitError",
    "Task",
    "TaskCancelled",
    "TaskFailed",
    "TaskNotFound",
    "ThreadBusy",
    "__version__",
    "ask",
    "heartbeat",
    "sleep",
    "step",
    "thread",
    "wait_event",
]


def __getattr__(name: str) -> Any:
    try:
        home = _HOMES[name]
    except KeyError:
        raise AttributeError(f"module 'sennit' has no attribute {name!r}") from None
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value
