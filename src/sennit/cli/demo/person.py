"""Whoever is asked, from the director's side: the question is shown, and closed from one of four places.

    asked ─► shown ─┬─► y or n on this terminal ────┐
                    ├─► `sennit inbox` in another ──┼─► closed ─► said
                    ├─► --yes ──────────────────────┤
                    └─► silence: it expires ────────┘

Nothing polls: the inbox rings, and a key is readable. The answer goes to the store, as anybody else's would.
"""

from __future__ import annotations

import asyncio
import getpass
import os
import shlex
import sys
import termios
import tty
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from sennit.cli.demo.question import Asking, approval_of, in_words
from sennit.cli.forms import somebody_is_there
from sennit.cli.output import safe
from sennit.errors import AskClosed
from sennit.model.thread import AskView
from sennit.threads.inbox import Inbox, Question

_ANSWERS = {"y": True, "Y": True, "n": False, "N": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """Who may answer the question of a run.

    Attributes:
        asking: how it is put.
        at_keyboard: somebody is at this terminal.
        yes: the command line has said yes beforehand.
        url: of the store, for whoever answers from elsewhere.
        tell: writes a line that stays.
    """

    asking: Asking
    at_keyboard: bool
    yes: bool
    fast: bool
    url: str
    tell: Callable[[str], None]

    async def attend(self, inbox: Inbox) -> None:
        """Wait for the question, show it, take the answer if it is given here, and say what became of it."""
        changes = aiter(inbox.watch())
        asked = (await anext(changes)).view
        closing = asyncio.create_task(_closed(asked, changes))
        try:
            if self.yes:
                await _decide(inbox, asked, approve=True, by="--yes")
            elif self.at_keyboard:
                self._show(asked)
                await self._listen(inbox, asked, closing)
            else:
                self._show(asked)
            approval = approval_of(await closing, lambda at_us: (at_us - asked.created_us) / 1e6)
        finally:
            closing.cancel()
        if approval is not None:
            self.tell(safe(f"{asked.spec.question} {in_words(approval)}"))

    async def _listen(self, inbox: Inbox, asked: AskView, closing: asyncio.Task[AskView]) -> None:
        """Take y or n from the keyboard, until the question is closed."""
        said: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def pressed(key: str) -> None:
            if key in _ANSWERS and not said.done():
                said.set_result(_ANSWERS[key])

        with _keys(sys.stdin.fileno(), pressed):
            await asyncio.wait((said, closing), return_when=asyncio.FIRST_COMPLETED)
        if said.done():
            await _decide(inbox, asked, approve=said.result(), by=_whoami())

    def _show(self, asked: AskView) -> None:
        question, after = asked.spec.question, f"{self.asking.expires_s:g} s"
        elsewhere = f"{asked.id} --db {shlex.quote(self.url)}"
        if self.at_keyboard:
            self.tell(f"{question} Press y or n; after {after} without an answer it stays a draft.")
            self.tell(f"  or in another terminal: sennit inbox approve {elsewhere}")
        else:
            short = ", short because of --fast" if self.fast else ""
            self.tell(f"{question} Nobody is at a keyboard: silence is a yes after {after}{short}.")
            self.tell(f"  or say no: sennit inbox reject {elsewhere}")


def somebody_here() -> bool:
    """Tell whether a question can be read, and a key pressed, at this terminal."""
    return somebody_is_there() and _in_foreground(sys.stdin.fileno())


async def _closed(asked: AskView, changes: AsyncIterator[Question]) -> AskView:
    """Return the question as it is when it takes no answer any more."""
    if asked.state != "open":
        return asked
    async for question in changes:
        if question.state != "open":
            return question.view
    raise AssertionError("a watch goes on until it is left")


async def _decide(inbox: Inbox, asked: AskView, *, approve: bool, by: str) -> None:
    question = Question(inbox, asked)
    with suppress(AskClosed):  # somebody else was first, and the watch says what they said
        await (question.approve(by=by) if approve else question.reject(by=by))


def _whoami() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # an id without an account, as in some containers
        return f"uid {os.getuid()}"


# ---------------------------------------------------------------- the keyboard


@contextmanager
def _keys(terminal: int, pressed: Callable[[str], None]) -> Iterator[None]:
    """Call `pressed` for each key as it is pressed, without echo; Ctrl-C and Ctrl-Z go on meaning what they mean.

    In the background of a terminal nothing is touched: reading there would stop this process.
    """
    if not _in_foreground(terminal):
        yield
        return
    loop, before = asyncio.get_running_loop(), termios.tcgetattr(terminal)

    def read() -> None:
        typed = b""
        with suppress(OSError):  # the terminal is gone
            typed = os.read(terminal, 64) if _in_foreground(terminal) else b""
        for key in typed.decode("ascii", "replace"):
            pressed(key)
        if not typed:
            loop.remove_reader(terminal)

    tty.setcbreak(terminal, termios.TCSANOW)
    loop.add_reader(terminal, read)
    try:
        yield
    finally:
        loop.remove_reader(terminal)
        if _in_foreground(terminal):
            termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def _in_foreground(terminal: int) -> bool:
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:  # it is not our controlling terminal
        return False
