"""`sennit demo [PATH]`: the whole of sennit in one command, on real code, with a worker killed in the middle."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Final

import click

from sennit.cli.output import emit
from sennit.cli.shared import Shared, pass_shared, shared_options

FAILURES_SHOWN: Final = 5


@click.command()
@click.argument("path", type=click.Path(path_type=Path), required=False)
@click.option("--fast", is_flag=True, help="The local model answers sooner: about five seconds in all.")
@click.option("--seed", default=7, show_default=True, help="Of the local model's delays.")
@click.option("--workers", default=3, show_default=True, type=click.IntRange(1, 64), help="Worker processes.")
@click.option(
    "--no-kill",
    is_flag=True,
    help="Let all workers live; else one with an agent is killed with -9 after 40 % of the tasks.",
)
@click.option("--yes", is_flag=True, help="Publish the report without asking anybody.")
@click.option(
    "--keep", is_flag=True, help="Keep the temporary database, the journal, the workers' log and the agents' files."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("sennit-report"),
    show_default=True,
    help="Folder for report.html and report.md, or draft.html and draft.md.",
)
@shared_options()
@pass_shared
def demo(
    shared: Shared,
    path: Path | None,
    *,
    fast: bool,
    seed: int,
    workers: int,
    no_kill: bool,
    yes: bool,
    keep: bool,
    out: Path,
) -> int:
    """Let a fleet of tasks read the Python code at PATH (default: sennit itself) and write a report.

    Every file is analysed, and reviewed by a model: the one of OPENAI_BASE_URL, OPENAI_API_KEY and OPENAI_MODEL if
    set, else a local server that the demo starts. How many calls at once that takes, the workers find out; after the kill
    its quota is used up for a second, and all hold back together. --db names a new database, which is kept.

    Coding agents audit the largest packages: a fake program that speaks as claude does, reads files, and needs neither a
    model nor a network. The worker that is killed has one, which then goes on with its session in another worker.

    A task asks whether the report may be published: at a terminal y or n answers, and 60 s of silence leave a draft; else
    10 s of silence (2 s with --fast) are a yes. `sennit inbox` in another terminal answers too; the command is shown.

    Exit 0 when all went well, also after a no: then it is draft.html, and marked. Exit 1 if a task or an update of a
    thread's state failed, was lost or was accepted twice.

    --json writes one object: tasks, succeeded, failed, cancelled, live, kills, rescued, retries, rate_limited (attempts
    given back for a 429), lost, duplicated, asked (counts); seconds, first_result_s; waited_s (all tasks together, by what
    they waited for); agents (null where none can run, or agents, tools, runs, resumed, repeated); model (null, or name,
    limit, ceiling, calls, throttled, attempts_lost, input_tokens, output_tokens, cost_usd, highest, too_many, pauses);
    sound (nothing contradicts anything), problems, failures (sentences); approval (null, or question, approved, state, by,
    reason, asked_s, closed_s), published, report (path).
    """
    from sennit.sync.clock import uptime_us

    started_us = uptime_us()  # before the imports: they are part of what one waits for

    import sennit
    from sennit.cli.demo.digest import agents_words, model_words
    from sennit.cli.demo.person import somebody_here
    from sennit.cli.demo.run import Request, Screen, run
    from sennit.runtime.stores import sqlite_path

    shared.start_logging()
    log = shared.log_lines
    assert log is not None  # noqa: S101 - started above
    shown = shared.verbosity >= 0
    request = Request(
        root=path or Path(sennit.__file__).parent,
        out=out,
        command=shlex.join(["sennit", *sys.argv[1:]]),
        workers=workers,
        seed=seed,
        fast=fast,
        keep=keep,
        db=sqlite_path(shared.db) if shared.db else None,
        kill=not no_kill,
        somebody=shown and not yes and somebody_here(),
        yes=yes,
    )
    screen = Screen(log.say if shown else None, log.live if shown and sys.stderr.isatty() else None)
    result = run(request, screen, started_us=started_us)
    for sentence in (*result.stock.problems, *result.stock.failures[:FAILURES_SHOWN]):
        log.say(sentence)
    if unshown := len(result.stock.failures[FAILURES_SHOWN:]):
        log.say(f"and {unshown} more like these")
    if result.use is not None:
        screen.tell(model_words(result.use))
    if result.stock.agents is not None:
        screen.tell(agents_words(result.stock.agents))
    emit(result.facts()) if shared.json else click.echo(result.line())
    return result.exit_code
