"""`sennit profile`: run a Python program and say what keeps it from being faster, the largest gain first.

sennit profile -- python job.py ──► the same interpreter, watched from inside ──► facts ──► findings
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from sennit.cli.failure import report
from sennit.cli.output import clipped, emit, safe, size, table
from sennit.cli.shared import Shared, examples, pass_shared, shared_options
from sennit.errors import UsageError
from sennit.observe.profile.facts import Facts, FunctionFacts
from sennit.observe.profile.findings import LOCKED_MAX, Finding, findings
from sennit.observe.profile.sizing import SIZES, knee, rate

ROWS: Final = 8
STACK_ROWS: Final = 4


@click.command(
    context_settings={"ignore_unknown_options": True},
    epilog=examples("sennit profile -- python job.py", "sennit profile --stacks -- python -m package.job --fast"),
)
@click.argument("command", nargs=-1, type=click.UNPROCESSED, required=True)
@click.option("--stacks", is_flag=True, help="Also where the main OS thread spends its time; needs sennit[profile].")
@click.option(
    "--flame",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Also a flame graph (SVG) of all OS threads and worker processes, by py-spy; needs sennit[profile].",
)
@shared_options()
@pass_shared
def profile(shared: Shared, *, command: tuple[str, ...], stacks: bool, flame: Path | None) -> int:
    """Run a Python program and say what keeps it from being faster.

    Watched: waiting for the GIL, steps that block an event loop, functions in pools of OS threads and whether they wait or
    compute, locks that are waited for, uneven pools, what is pickled for other processes, and the same data in memory twice.
    The program runs a little slower. The exit code is the program's.
    """
    words = python_words(command)
    with tempfile.TemporaryDirectory(prefix="sennit-profile-") as place:
        path = Path(place) / "facts.json"
        inner = [*words.interpreter, "-m", "sennit.cli.profile_child", str(path)]
        code = _run([*_flame(flame), *inner, *(["--stacks"] if stacks else []), *words.program])
        facts = msgspec.json.decode(path.read_bytes(), type=Facts) if path.exists() else None
    if facts is None:
        report(_nothing_measured(code, words, has_flame=flame is not None), shared)
        return code or UsageError.exit_code
    found = findings(facts)
    if shared.json:
        for finding in found:
            emit({"schema": "sennit.finding/1", **msgspec.to_builtins(finding)})
        emit({"schema": "sennit.profile/1", **msgspec.to_builtins(facts)})
    else:
        _show(facts, found, is_verbose=shared.verbosity > 0)
    return facts.exit_code  # that of py-spy is another


def _nothing_measured(code: int, words: Words, *, has_flame: bool) -> UsageError:
    flame = ", or py-spy may not trace it: see above, and try without --flame" if has_flame else ""
    return UsageError(
        f"the program ended with exit code {code} and left no measurements",
        why=f"it was killed, ended by os._exit, or its interpreter cannot import sennit{flame}",
        fix=f"try `{' '.join(words.interpreter)} -c 'import sennit'`; let it end by itself or by sys.exit",
    )


class Words(msgspec.Struct, frozen=True):
    """A command line of Python: the interpreter with its own options, and the program."""

    interpreter: list[str]
    program: list[str]


def python_words(command: tuple[str, ...]) -> Words:
    """Split a command line.

    Raises:
        UsageError: it does not run Python, or what it runs cannot be told.
    """
    first, *rest = command
    # A bare `python` is ours: what else is first on the PATH may know nothing of sennit.
    path = sys.executable if first in {"python", "python3"} else shutil.which(first) or first
    if path != sys.executable and not Path(path).name.startswith(("python", "pypy")):
        if first.endswith(".py"):
            return Words([sys.executable], [*command])
        interpreter = _shebang(Path(path))
        if interpreter is None:
            raise UsageError(
                f"{first!r} is not a Python program",
                why="the measuring is done inside the interpreter",
                fix="sennit profile -- python job.py, or the name of a script that pip installed",
            )
        return Words(interpreter, [path, *rest])
    options: list[str] = []
    while rest and rest[0].startswith("-") and rest[0] not in {"-m", "-c"}:
        options.append(rest.pop(0))
        if options[-1] in {"-X", "-W"} and rest:
            options.append(rest.pop(0))
    if not rest or (rest[0] in {"-m", "-c"} and len(rest) == 1):
        raise UsageError("no program to run", fix="sennit profile -- python job.py, -m module or -c 'code'")
    if rest[0] not in {"-m", "-c"} and not Path(rest[0]).is_file():
        raise UsageError(f"there is no file {rest[0]!r}", fix="name a script, or use -m module")
    return Words([path, *options], rest)


def _shebang(path: Path) -> list[str] | None:
    """Return the Python that a script asks for in its first line."""
    try:
        with path.open("rb") as file:
            line = file.readline(512).decode("utf-8", "replace")
    except OSError:
        return None
    words = line[2:].split() if line.startswith("#!") else []
    if words and Path(words[0]).name == "env":
        words = words[1:]
    return words if words and Path(words[0]).name.startswith(("python", "pypy")) else None


def _flame(path: Path | None) -> list[str]:
    if path is None:
        return []
    recorder = shutil.which("py-spy") or shutil.which("py-spy", path=str(Path(sys.executable).parent))
    if recorder is None:
        raise UsageError("py-spy is not installed", why="it draws the flame graph", fix="pip install 'sennit[profile]'")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"there is no folder {str(path.parent)!r}", fix="name a file in a folder that is there")
    return [recorder, "record", "--subprocesses", "--threads", "--output", str(path), "--"]


def _run(command: list[str]) -> int:
    """Run it with our terminal; Ctrl-C is for it. Return its exit code as a shell would say it."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        code = subprocess.call(command, preexec_fn=_interruptible)
    finally:
        signal.signal(signal.SIGINT, before)
    return 128 - code if code < 0 else code


def _interruptible() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


# ---------------------------------------------------------------- for people


def _show(facts: Facts, found: list[Finding], *, is_verbose: bool) -> None:
    gil = f"{facts.gil.wait_s_p50 * 1000:.1f} ms p50, {facts.gil.wait_s_p99 * 1000:.1f} ms p99"
    click.echo(f"\n{safe(' '.join(facts.command))}")
    click.echo(
        f"{facts.elapsed_s:.2f} s · CPU {facts.cpu_s:.2f} s = {facts.cpu_s / max(facts.elapsed_s, 1e-9):.2f} of {facts.cores} cores · "
        f"waiting for the GIL {gil if facts.has_gil else 'never: there is none'} · {size(facts.memory_bytes_max)} at most"
    )
    if not found:
        click.echo("\nnothing was found that accounts for more than one part in a hundred")
    for n, finding in enumerate(found, 1):
        gain = f"{finding.gain_s:.2f} s" if finding.gain_s else size(finding.gain_bytes)
        click.echo(f"\n{n}. {click.style(safe(finding.what), bold=True)}   up to {gain}, {finding.share:.0%}")
        click.echo(f"   {'measured':<9}{safe(finding.measured)}")
        click.echo(f"   {'try':<9}{safe(finding.attempt)}")
    _show_functions(facts)
    _show_blocks(facts, is_verbose=is_verbose)
    _show_locks(facts)
    if facts.hot:
        click.echo(facts.hot)
    if is_verbose and facts.copies_at_s:
        click.echo(f"memory was looked through at {', '.join(f'{at:g} s' for at in facts.copies_at_s)}")


def _show_functions(facts: Facts) -> None:
    if not facts.functions:
        return
    click.echo("\nin pools of OS threads")
    rows = [
        [
            clipped(f.name, 48), f.kind + {True: ", GIL", False: ", no GIL", None: ""}[f.holds_gil], f"{f.calls:,}",
            f"{f.ran_s / f.calls * 1000:.2f}", f"{f.cpu_s / f.calls * 1000:.2f}", f"{f.queued_s / f.calls * 1000:.2f}",
            f"{f.locked_s / f.calls * 1000:.2f}",
        ]
        for f in facts.functions[:ROWS]
    ]  # fmt: skip
    right = frozenset({"calls", "ran ms", "cpu ms", "queued ms", "locked ms"})
    table(["function", "kind", "calls", "ran ms", "cpu ms", "queued ms", "locked ms"], rows, right=right)
    _left_out(len(facts.functions))
    free = [f for f in facts.functions if f.locked_s <= f.ran_s * LOCKED_MAX]  # more would stand before the lock
    if not free:
        return
    click.echo("\ncalls per second that a pool of n OS threads can do at most (from the figures above, not tried)")
    lines = [[clipped(f.name, 48), *_curve(f, facts)] for f in free[:3]]
    heads = [*(str(n) for n in SIZES), "bends at"]
    table(["function", *heads], lines, right=frozenset(heads))


def _curve(function: FunctionFacts, facts: Facts) -> list[str]:
    how: dict[str, Any] = {
        "cpu_s": function.cpu_s / function.calls,
        "blocked_s": function.blocked_s,
        "cores": facts.cores,
        "holds_gil": facts.has_gil and function.holds_gil is not False,
    }
    return [*(f"{rate(n, **how):,.0f}" for n in SIZES), str(knee(**how))]


def _show_blocks(facts: Facts, *, is_verbose: bool) -> None:
    for block in facts.blocks[:ROWS]:
        click.echo(f"\nblocked the event loop: {safe(block.what)}, {block.count} ×, {block.blocked_s:.2f} s")
        for place in block.stack[: None if is_verbose else STACK_ROWS]:
            click.echo(f"   {safe(place)}")
    _left_out(len(facts.blocks))


def _show_locks(facts: Facts) -> None:
    waited = [lock for lock in facts.locks if lock.contended]
    if not waited:
        return
    click.echo("\nlocks that were waited for")
    rows = [
        [clipped(lock.where, 60), f"{lock.acquisitions:,}", f"{lock.contended:,}", f"{lock.waited_s:.3f}", f"{lock.waited_s_max * 1000:.1f}"]
        for lock in waited[:ROWS]
    ]  # fmt: skip
    right = frozenset({"taken", "contended", "waited s", "longest ms"})
    table(["made at", "taken", "contended", "waited s", "longest ms"], rows, right=right)
    _left_out(len(waited))


def _left_out(n: int) -> None:
    if n > ROWS:
        click.echo(f"… and {n - ROWS} more (--json has them all)")
