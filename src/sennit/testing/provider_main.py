"""The fake provider as a process of its own: `python -m sennit.testing.provider_main --port 0 --knob rpm=60`.

It prints one line of JSON when it listens, `{"url": …, "port": …, "pid": …}`, and serves until it is interrupted, or until the process
that it was started for ends.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys

import msgspec

from sennit.errors import SettingsError
from sennit.testing.provider_control import serve
from sennit.testing.provider_knobs import Knobs, turned


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m sennit.testing.provider_main", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="on 127.0.0.1; 0 takes a free one")
    parser.add_argument(
        "--knob",
        action="append",
        default=[],
        metavar="NAME=JSON",
        help='for example max_concurrency=40, or latency={"type":"lognormal","median_s":8}; may be repeated',
    )
    parser.add_argument(
        "--parent", type=int, default=0, metavar="PID", help="end with this process, or when stdin closes"
    )
    return parser.parse_args(argv)


def knobs_of(words: list[str]) -> Knobs:
    """Return the knobs of `NAME=JSON` words; what is no JSON is text.

    Raises:
        SettingsError: a knob is unknown or out of its bounds.
    """
    changes: dict[str, object] = {}
    for word in words:
        name, _, value = word.partition("=")
        try:
            changes[name] = msgspec.json.decode(value)
        except msgspec.DecodeError:
            changes[name] = value
    return turned(Knobs(), changes)


def main(argv: list[str] | None = None) -> int:
    """Serve; return the exit code."""
    options = arguments(argv)
    try:
        asyncio.run(_serve(knobs_of(options.knob), options.port, options.parent))
    except (SettingsError, OSError) as error:
        _print({"error": str(error)})
        return error.exit_code if isinstance(error, SettingsError) else 1
    return 0


async def _serve(knobs: Knobs, port: int, parent: int) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    if parent:  # Ctrl-C reaches us too; the parent wants the last statistics and then ends us
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    else:
        loop.add_signal_handler(signal.SIGINT, stop.set)
    parent_fd = _watch_parent(loop, stop, parent) if parent else None

    async def until() -> None:
        await stop.wait()

    def ready(bound: int) -> None:
        _print({"url": f"http://127.0.0.1:{bound}", "port": bound, "pid": os.getpid()})

    try:
        await serve(knobs, port, ready, until)
    finally:
        if parent_fd is not None:
            loop.remove_reader(parent_fd)
            os.close(parent_fd)


def _watch_parent(loop: asyncio.AbstractEventLoop, stop: asyncio.Event, parent: int) -> int | None:
    """Stop when the parent is gone.

    Its end of our stdin closes with it, at once and however it dies; but a process that it has forked meanwhile holds that end
    open too. So where the system can (Linux), its pidfd is watched as well, and returned.
    """

    def look() -> None:
        if not os.read(0, 4096):
            loop.remove_reader(0)
            stop.set()

    loop.add_reader(0, look)
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        parent_fd = os.pidfd_open(parent)
    except ProcessLookupError:
        stop.set()
        return None
    except OSError:  # forbidden, as in some containers: stdin it is
        return None
    loop.add_reader(parent_fd, stop.set)
    if os.getppid() != parent:  # it has died meanwhile, and its number may be somebody else's
        stop.set()
    return parent_fd


def _print(line: dict[str, object]) -> None:
    sys.stdout.write(msgspec.json.encode(line).decode() + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
