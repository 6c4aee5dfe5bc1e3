"""`sennit run`: one task by hand."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import click

from sennit.cli.calls import PRIORITIES, call_of_words
from sennit.cli.discover import load_app
from sennit.cli.output import emit, raw, task_json
from sennit.cli.shared import Shared, pass_shared, shared_options
from sennit.cli.waits import waited_json, waited_us, waited_words
from sennit.errors import TaskError
from sennit.runtime.app import App
from sennit.store.urls import without_password
from sennit.submit.handle import Handle
from sennit.submit.options import SubmitOptions


@click.command()
@click.argument("target", metavar="MODULE:APP")
@click.argument("handler")
@click.argument("words", nargs=-1, metavar="[JSON | NAME=VALUE]...")
@click.option("--wait", is_flag=True, help="Wait for the end and print the result.")
@click.option("--timeout-s", type=click.FloatRange(0, min_open=True), help="With --wait: exit 124 after this long.")
@click.option("--key", help="At most one stored task of this handler has this key; a second run finds the first.")
@click.option("--priority", type=click.Choice(PRIORITIES), help="Default: the handler's.")
@click.option("--thread-id", help="The conversation it belongs to.")
@click.option("--queue", help="Default: the handler's.")
@click.option("--delay-s", type=click.FloatRange(0), help="Start no sooner than this.")
@shared_options()
@pass_shared
def run(
    shared: Shared,
    /,
    target: str,
    handler: str,
    words: tuple[str, ...],
    *,
    wait: bool,
    timeout_s: float | None,
    **given: Any,
) -> None:
    """Hand in one task of HANDLER (its name, or the last part of it) and print its id.

    Arguments are JSON values or NAME=VALUE; what is not JSON is taken as text. A single JSON object names them all.
    With --wait the result is printed instead: exit 0 succeeded, 1 failed, 6 cancelled, 124 not in time; -v says as well
    what it waited for.
    """
    shared.start_logging()
    app = load_app(target)
    if shared.db:
        app.use(shared.db)
    options: SubmitOptions = {name: value for name, value in given.items() if value is not None}  # type: ignore[assignment]  # the options above are its keys
    call = call_of_words(app.registry.find(handler), words, options)
    with closing(app):
        handle = app.submit_many([call])[0]
        if wait:
            _wait(shared, app, handle, timeout_s)
        elif shared.json:
            emit(task_json(handle.view().result()))
        else:
            click.echo(handle.id)


def _wait(shared: Shared, app: App, handle: Handle[Any], timeout_s: float | None) -> None:
    try:
        handle.result(timeout_s)
    except TaskError:
        if shared.json:
            emit(task_json(handle.view().result()))
        raise
    except KeyboardInterrupt:
        if shared.verbosity >= 0:
            click.echo(
                f"stopped waiting; task {handle.id} goes on: sennit tasks wait {handle.id} --db {without_password(app.url)}",
                err=True,
            )
        raise
    view = handle.view().result()
    waited = waited_us(app.store, [view]).get(view.id, {})
    if shared.json:
        emit({**task_json(view), "waited_s": waited_json(waited), "result": raw(view.result)})
    else:
        if shared.verbosity > 0 and (words := waited_words(waited)):
            click.echo(f"task {view.id} has waited: {words}", err=True)
        click.echo(view.result or b"null")
