"""What every shape of the fake agent needs: lines out, the log of what it did, refusals, and its few options.

Standard library only, and little of it: this is loaded by a program that starts a hundred times in a test.
"""

from __future__ import annotations

import json
import os
import signal
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SIGTERM_CODE = 143  # what claude and codex return after a TERM (seen with 2.1.197 and 0.169)


class Refused(Exception):
    """The program ends before it has begun: a bad flag, an unknown session.

    Attributes:
        code: of the exit.  out: lines for stdout.  err: text for stderr.
    """

    def __init__(self, code: int, err: str, out: tuple[dict[str, Any], ...] = ()) -> None:
        super().__init__(err)
        self.code = code
        self.err = err
        self.out = out


class Ended(Exception):
    """The run is over; what it had to write is written.

    Attributes:
        code: of the exit.
    """

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Wanted:
    """What the command line asked for, in words that all shapes share."""

    def __init__(self) -> None:
        self.prompt: str | None = None
        self.session_id = ""
        self.is_resume = False
        self.is_fork = False
        self.is_json = True  # events; else only the last text is printed
        self.keeps = True  # a transcript of the session
        self.model = ""
        self.has_schema = False
        self.last_message = ""  # file for the last text, codex -o
        self.settings: list[dict[str, Any]] = []
        self.allowed: tuple[str, ...] = ()
        self.mode = "default"


class Output:
    """Lines to stdout, each in one write; counts them, and may die before one."""

    def __init__(self) -> None:
        self.lines = 0
        self.die_at_line = 0
        self.is_mute = False
        self.is_json = True  # else only the result is printed

    def event(self, event: dict[str, Any]) -> None:
        """Write one JSON line, where lines of JSON were asked for."""
        if self.is_json:
            self.raw(json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")

    def raw(self, data: bytes, *, fd: int = 1) -> None:
        """Write all of `data`, whatever it is."""
        if self.is_mute:
            return
        if fd == 1:
            self.lines += 1
            if self.lines == self.die_at_line:
                os.kill(os.getpid(), signal.SIGKILL)
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]


class Journal:
    """The log of what the agent did: one JSON line each, appended in one write, so that many agents share a file."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self.session_id = ""
        self.run = 0

    def note(self, event: str, **facts: object) -> None:
        """Append `event`."""
        line = {"event": event, "pid": os.getpid(), "session_id": self.session_id, "run": self.run, **facts}
        os.write(self._fd, json.dumps(line, separators=(",", ":")).encode() + b"\n")


def stamp() -> str:
    """Return now as these programs write it: `2026-11-22T01:38:01.076Z`."""
    nanoseconds = time.clock_gettime_ns(time.CLOCK_REALTIME)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(nanoseconds // 10**9)) + f".{nanoseconds // 10**6 % 1000:03}Z"


def new_uuid() -> str:
    """Return a random UUID; the module `uuid` would cost more than all of this program."""
    digits = os.urandom(16).hex()
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}"


def is_uuid(text: str) -> bool:
    """Whether `text` has the form of a UUID."""
    parts = text.split("-")
    return [len(part) for part in parts] == [8, 4, 4, 4, 12] and all(
        c in "0123456789abcdefABCDEF" for c in "".join(parts)
    )


def read_stdin() -> str:
    """Return all of stdin; it waits for its end, as the real ones do."""
    chunks = []
    while chunk := os.read(0, 1 << 16):
        chunks.append(chunk)
    return b"".join(chunks).decode(errors="replace")


class Options:
    """A small reader of command lines: `flags` take nothing, `values` take one, `many` all up to the next flag."""

    def __init__(self, argv: list[str], *, flags: str, values: str, many: str = "", optional: str = "") -> None:
        """Parse.

        Args:
            flags, values, many, optional: names divided by blanks; `-p=--print` makes -p another name of --print.

        Raises:
            KeyError: an unknown option, which is its argument.
        """
        names: dict[str, tuple[str, str]] = {}
        for kind, text in (("flag", flags), ("value", values), ("many", many), ("optional", optional)):
            for word in text.split():
                *others, name = word.split("=")
                names.update(dict.fromkeys((*others, name), (kind, name)))
        self.found: dict[str, list[str]] = {}
        self.rest: list[str] = []
        words = list(argv)
        while words:
            word = words.pop(0)
            if word == "--":
                self.rest += words
                break
            if not word.startswith("-") or word == "-":
                self.rest.append(word)
                continue
            name, has_value, value = word.partition("=") if word.startswith("--") else (word, "", "")
            if name not in names:
                raise KeyError(name)
            kind, name = names[name]
            taken = self.found.setdefault(name, [])
            if kind == "flag":
                continue
            if has_value:
                taken.append(value)
            elif kind == "value":
                taken.append(words.pop(0) if words else "")
            elif kind == "optional":
                taken.append(words.pop(0) if words and not words[0].startswith("-") else "")
            else:
                while words and not words[0].startswith("-"):
                    taken.append(words.pop(0))

    def has(self, name: str) -> bool:
        """Whether the option was given."""
        return name in self.found

    def get(self, name: str, default: str = "") -> str:
        """Return its last value."""
        return (self.found.get(name) or [default])[-1]
