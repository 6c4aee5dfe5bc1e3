"""`sennit`: finds the command, imports only that one, and turns what it raises into three lines and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Final

import click

from sennit._version import __version__
from sennit.cli.group import LazyGroup
from sennit.cli.shared import Shared, shared_options

# Command → where it lives, and its line in `sennit --help`, which therefore imports none of them.
COMMANDS: Final = {
    "demo": ("sennit.cli.demo.command:demo", "Watch a fleet read a source tree, lose a worker and lose nothing."),
    "up": ("sennit.cli.worker:up", "Work in this process, with a live status line."),
    "worker": ("sennit.cli.worker:worker", "Work in this process until told to stop."),
    "run": ("sennit.cli.run:run", "Hand in one task, and wait for its result if asked."),
    "map": ("sennit.cli.map:map_", "Hand in one task per line of a file and wait for all."),
    "status": ("sennit.cli.status:status", "Queues, workers and the ledger at a glance."),
    "tasks": ("sennit.cli.tasks:tasks", "List, look at, wait for, cancel and retry tasks."),
    "agents": ("sennit.cli.agents:agents", "Coding agents: what they do and say, and how to end them."),
    "inbox": ("sennit.cli.inbox:inbox", "See and answer the questions of tasks."),
    "threads": ("sennit.cli.threads:threads", "Conversations: their tasks, state, versions and diffs."),
    "mcp": ("sennit.cli.mcp:mcp", "A server through which agents of any kind take tasks (Model Context Protocol)."),
    "init": ("sennit.cli.init:init", "Tell the agents that work in this repository about sennit."),
    "proxy": ("sennit.cli.proxy:proxy", "An HTTP proxy on this host that puts the limits before any client."),
    "providers": ("sennit.cli.providers:providers", "Limits, pauses and budgets of model providers."),
    "signal": ("sennit.cli.signal:signal", "Tell the tasks that wait for an event that it has come."),
    "cache": ("sennit.cli.cache:cache", "Forget cached results."),
    "locks": ("sennit.cli.locks:locks", "Who holds which lock, of the store and of files."),
    "verify": ("sennit.cli.verify:verify", "Check that nothing was lost: exit 1 on any broken promise."),
    "bench": ("sennit.cli.bench:bench", "Measure this machine, beside the limit of raw SQLite."),
    "profile": ("sennit.cli.profile:profile", "Run a Python program and say what keeps it from being faster."),
    "db": ("sennit.cli.db:db", "Make, migrate, check, back up and move the database."),
    "config": ("sennit.cli.config:config", "Show the settings in force and where they come from."),
    "doctor": ("sennit.cli.doctor:doctor", "Check that this machine has what sennit needs."),
    "version": ("sennit.cli.version:version", "Print the versions of sennit and what it stands on."),
}

SIGINT_EXIT: Final = 130
BROKEN_PIPE_EXIT: Final = 1  # the same that click gives when it is the one to notice


@click.group(cls=LazyGroup, lazy=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "--version", prog_name="sennit", message="%(prog)s %(version)s")
@shared_options()
def cli() -> None:
    """Run fleets of agents and tasks on a SQLite file or on PostgreSQL, and lose nothing."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code (docs/reference/cli.md has the table).

    Args:
        argv: without the program's name; default: that of this process.
    """
    shared = Shared.from_environment(os.environ)
    try:
        code = cli.main(list(sys.argv[1:] if argv is None else argv), "sennit", standalone_mode=False, obj=shared)
        sys.stdout.flush()  # here, where a reader that went away is still an ordinary exception
    except BrokenPipeError:
        with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - a device
            # What is left in the buffer has nobody to read it; the interpreter would complain at exit.
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        return BROKEN_PIPE_EXIT
    except (KeyboardInterrupt, click.Abort):
        return SIGINT_EXIT
    except Exception as error:  # noqa: BLE001 - the one place where every error is shown
        from sennit.cli.failure import report

        return report(error, shared)
    finally:
        shared.close()
    return code if isinstance(code, int) else 0
