"""`sennit inbox`: the questions that tasks have asked people, and the answers."""

from __future__ import annotations

import getpass
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import click
import msgspec

from sennit.cli.forms import ask_line, asked, somebody_is_there, text_of, value_of, with_changes
from sennit.cli.group import Group
from sennit.cli.opening import existing
from sennit.cli.output import clipped, emit, moment, safe, safe_lines, table
from sennit.cli.questions import (
    ALL,
    QUESTION_CHARS,
    ask_json,
    event_row,
    events_wait,
    in_full,
    needs_you,
    outcome,
    row,
)
from sennit.cli.shared import Shared, examples, pass_shared, shared_options, thread_option
from sennit.errors import AnswerInvalid, AskClosed, AskStale, UsageError
from sennit.model.thread import AskView, Decision
from sennit.threads.inbox import Inbox, Question

HOME: Final = "\x1b[H\x1b[2J"  # cursor to the corner, erase the screen (ECMA-48 CUP and ED)


Ref = tuple[int, int | None]


def _ref(ctx: click.Context, parameter: click.Parameter, value: str) -> Ref:
    """Return (id, version) of `7` or `7@2`."""
    ask_id, at, version = value.partition("@")
    if not (ask_id.isdecimal() and (version.isdecimal() if at else True)):
        message = f"{value!r} is no id of a question, such as 7, or 7@2 for its version 2"
        raise click.BadParameter(message, ctx=ctx, param=parameter)
    return int(ask_id), int(version) if at else None


def _refs(ctx: click.Context, parameter: click.Parameter, values: Sequence[str]) -> list[Ref]:
    return [_ref(ctx, parameter, value) for value in values]


ask_ids = click.argument("refs", nargs=-1, required=True, callback=_refs, metavar="ID[@VERSION]...")
ask_id = click.argument("ref", callback=_ref, metavar="ID[@VERSION]")
by_option = click.option("--by", default=None, help="Who decides; default: the user of this OS account.")


@click.group(cls=Group, invoke_without_command=True)
@shared_options()
@click.pass_context
def inbox(ctx: click.Context) -> None:
    """See and answer the questions of tasks; alone it means `ls`."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(ls)


# ---------------------------------------------------------------- looking


@inbox.command(
    epilog=examples(
        "sennit inbox ls --assignee ann",
        "sennit inbox ls --json | jq -r 'select(.kind == \"approve\") | .id'",
        "sennit inbox ls --events                  which tasks wait for which event",
    )
)
@click.option("--all", "closed", is_flag=True, help="Also those that are closed.")
@click.option("--events", is_flag=True, help="Waits for events instead of questions; `sennit signal` ends them.")
@thread_option
@click.option("--assignee", metavar="A", help="Only those that this one is asked.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="How many at most.")
@shared_options()
@pass_shared
def ls(
    shared: Shared,
    *,
    closed: bool = False,
    events: bool = False,
    thread_id: str | None = None,
    assignee: str | None = None,
    limit: int = 100,
) -> None:
    """List questions that wait for somebody, oldest first."""
    with existing(shared.url) as store:
        found = store.asks(
            states=() if closed else ("open",), thread_id=thread_id, assignee=assignee,
            kind="event" if events else "ask", limit=ALL,
        ).result()  # fmt: skip
        now_us = store.now_us()
    shown = found[-limit:] if closed else found[:limit]
    if shared.json:
        for ask in shown:
            emit(ask_json(ask))
    else:
        open_ = [ask for ask in found if ask.state == "open"]
        click.echo(f"events  {events_wait(open_, now_us)}" if events else f"needs you  {needs_you(open_, now_us)}")
        if shown:
            _print_table(shown, now_us, closed=closed, events=events)
    if len(shown) < len(found):
        click.echo(f"{len(shown):,} of {len(found):,}; more with --limit", err=True)


def _print_table(asks: Sequence[AskView], now_us: int, *, closed: bool, events: bool) -> None:
    head = ["id", "age", "expires", "thread", *(("task", "event", "key") if events else ("question", "kind"))]
    rows = [(event_row if events else row)(ask, now_us) for ask in asks]
    if closed:
        head.append("decision")
        for cells, ask in zip(rows, asks, strict=True):
            cells.append(clipped(outcome(ask), QUESTION_CHARS))
            if ask.state != "open":
                cells[2] = ""
    table(head, rows, right=frozenset({"id", "age"}))


@inbox.command(epilog=examples("sennit inbox show 7"))
@ask_id
@shared_options()
@pass_shared
def show(shared: Shared, ref: Ref) -> None:
    """Show one question, or wait for an event: what is proposed, what an answer looks like, who has decided what."""
    with existing(shared.url) as store:
        ask = store.ask(ref[0]).result()
        now_us = store.now_us()
    if shared.json:
        emit(ask_json(ask))
    else:
        click.echo("\n".join(in_full(ask, now_us)))


@inbox.command(epilog=examples("sennit inbox watch --json | jq -r 'select(.state == \"open\") | .question'"))
@thread_option
@click.option("--assignee", metavar="A", help="Only those that this one is asked.")
@shared_options()
@pass_shared
def watch(shared: Shared, *, thread_id: str | None, assignee: str | None) -> None:
    """Show the questions that wait, and from then on each that is new, changed or closed, until Ctrl-C.

    On a terminal a list that stays current; else, or with --json, a line each. It sleeps until something changes.
    """
    with existing(shared.url) as store:
        open_: dict[int, AskView] = {}
        live = sys.stdout.isatty() and not shared.json
        if live:
            _redraw(open_, store.now_us())
        for question in Inbox(lambda: store).watch():
            ask = question.view
            matches = thread_id in (None, ask.thread_id) and assignee in (None, ask.assignee)
            if not matches and ask.id not in open_:
                continue
            if matches and ask.state == "open":
                open_[ask.id] = ask
            else:  # closed, or escalated to somebody else
                open_.pop(ask.id, None)
            if shared.json:
                emit(ask_json(ask))
            elif live:
                _redraw(open_, store.now_us())
            else:
                click.echo(safe(f"{ask.id}@{ask.version}  {outcome(ask)}  {ask.spec.question}  ({ask.handler})"))
            sys.stdout.flush()


def _redraw(open_: Mapping[int, AskView], now_us: int) -> None:
    """Draw the whole list. Moments instead of ages: it is drawn again only when something has changed."""
    shown = [open_[ask_id] for ask_id in sorted(open_)[: max(1, shutil.get_terminal_size().lines - 4)]]
    click.echo(f"{HOME}needs you  {len(open_):,} waiting   (Ctrl-C ends)")
    rows = [
        [a.id, moment(a.created_us, now_us), moment(a.expires_us, now_us), *row(a, now_us)[3:]]
        for a in shown
    ]  # fmt: skip
    if rows:
        table(["id", "asked", "expires", "thread", "question", "kind"], rows, right=frozenset({"id"}))
    if len(shown) < len(open_):
        click.echo(f"and {len(open_) - len(shown):,} more")


# ---------------------------------------------------------------- deciding


@inbox.command(
    epilog=examples("sennit inbox approve 7 8 9", "sennit inbox approve 7@2          only if it is still at version 2")
)
@ask_ids
@by_option
@shared_options()
@pass_shared
def approve(shared: Shared, refs: Sequence[Ref], *, by: str | None) -> None:
    """Say yes to questions, or take what they propose: all of them, or none if one cannot be approved."""
    _decide(shared, refs, by, lambda question, me: question.approval(by=me))


@inbox.command(epilog=examples('sennit inbox reject 7 --reason "not on a Friday"'))
@ask_ids
@click.option("--reason", default="", help="The task and the list show it.")
@by_option
@shared_options()
@pass_shared
def reject(shared: Shared, refs: Sequence[Ref], *, reason: str, by: str | None) -> None:
    """Say no to questions: all of them, or none if one takes no answer any more."""
    _decide(shared, refs, by, lambda question, me: question.rejection(reason, by=me))


@inbox.command(
    epilog=examples('sennit inbox edit 7 --set subject="Hello again" --set n=2', "sennit inbox edit 7 --editor")
)
@ask_id
@click.option("--set", "changes", multiple=True, metavar="NAME=VALUE", help="Change one field; may be repeated.")
@click.option("--value", metavar="JSON", help="Another value in place of the proposal; - reads stdin.")
@click.option("--editor", is_flag=True, help="Change it in $VISUAL or $EDITOR.")
@by_option
@shared_options()
@pass_shared
def edit(
    shared: Shared, ref: Ref, *, changes: tuple[str, ...], value: str | None, editor: bool, by: str | None
) -> None:
    """Approve something else than what is proposed; without an option, a terminal asks field by field.

    NAME may be a path: to.name=ann, items.0=apple. VALUE is JSON, or text where text is wanted.
    """
    if sum((bool(changes), value is not None, editor)) > 1:
        raise UsageError("--set, --value and --editor exclude each other", fix="use one of them")

    def edition(question: Question, me: str) -> Decision:
        schema, proposal = question.view.spec.schema, question.proposal
        if not question.view.spec.allow_edit:
            return question.edition(None, by=me)  # says why not
        if changes:
            return question.edition(with_changes(proposal, changes, schema), by=me)
        if value is not None:
            return question.edition(value_of(text_of(value), schema), by=me)
        if editor:
            return _edited(question, me)
        return _asked(question, lambda given: question.edition(given, by=me), proposal)

    _decide(shared, [ref], by, edition)


@inbox.command(
    epilog=examples('sennit inbox respond 7 "Use the second one"', 'sennit inbox respond 8 \'{"to": "ann", "n": 2}\'')
)
@ask_id
@click.argument("answer", required=False, metavar="[TEXT|JSON]")
@by_option
@shared_options()
@pass_shared
def respond(shared: Shared, ref: Ref, answer: str | None, *, by: str | None) -> None:
    """Answer a question with a value; - reads it from stdin. Without one, a terminal asks for it.

    Text is taken as it is where text is wanted; y and n where it is yes or no; else it is JSON.
    """

    def response(question: Question, me: str) -> Decision:
        if answer is None:
            return _asked(question, lambda given: question.response(given, by=me), None)
        return question.response(value_of(text_of(answer), question.view.spec.schema), by=me)

    _decide(shared, [ref], by, response)


def _decide(shared: Shared, refs: Sequence[Ref], by: str | None, decide: Callable[[Question, str], Decision]) -> None:
    """Look at all questions, decide each, and record all or none: what has changed since the look is refused."""
    me = _whoami() if by is None else by
    with existing(shared.url) as store:
        box = Inbox(lambda: store)
        questions = [_question(box, ref) for ref in dict.fromkeys(refs)]
        decided = box.decide([decide(question, me) for question in questions]).result()
    for ask in decided:
        if shared.json:
            emit(ask_json(ask))
        else:
            click.echo(safe(f"question {ask.id} {outcome(ask)}; task {ask.task_id} goes on"))


def _question(box: Inbox, ref: Ref) -> Question:
    """Return an open question.

    Raises:
        AskNotFound, AskClosed, AskStale: there is none, or not at this version.
    """
    question = box.show(ref[0]).result()
    view = question.view
    if view.state != "open":
        raise AskClosed(view.id, state=view.state, by="" if view.answer is None else view.answer.by)
    if ref[1] not in (None, view.version):
        raise AskStale(view.id, expected=ref[1] or 0, actual=view.version)
    return question


def _whoami() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # an id without an account, as in some containers
        return f"uid {os.getuid()}"


def _asked(question: Question, decide: Callable[[Any], Decision], proposal: Any) -> Decision:
    """Let somebody at a terminal fill in a form, until it fits."""
    if not somebody_is_there():
        raise UsageError(
            f"no answer to question {question.id} is given, and nobody can be asked for one",
            why="stdin or stderr is no terminal",
            fix=f"give it on the command line; see `sennit inbox show {question.id}`",
        )
    click.echo(safe_lines(question.text), err=True)
    while True:
        try:
            return decide(asked(question.view.spec.schema, ask_line, proposal=proposal))
        except AnswerInvalid as error:
            click.echo(safe(f"  {error.why or error.what}"), err=True)


def _edited(question: Question, me: str) -> Decision:
    """Let somebody change the proposal in an editor; what does not fit is kept in a file."""
    before = msgspec.json.format(msgspec.json.encode(question.proposal), indent=2).decode() + "\n"
    after = click.edit(before, extension=".json")
    if after is None or after == before:
        raise UsageError(
            f"nothing was changed: question {question.id} is still open",
            fix=f"to take the proposal as it is: sennit inbox approve {question.id}",
        )
    try:
        return question.edition(msgspec.json.decode(after), by=me)
    except (msgspec.DecodeError, AnswerInvalid) as error:
        descriptor, path = tempfile.mkstemp(prefix=f"sennit-answer-{question.id}-", suffix=".json")
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(after)
        raise UsageError(
            f"the edited answer does not fit question {question.id}, which is still open",
            why=error.why if isinstance(error, AnswerInvalid) else f"it is not JSON: {error}",
            fix=f"correct it in {path}, then: sennit inbox edit {question.id} --value - < {path}",
        ) from error
