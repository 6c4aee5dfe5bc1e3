"""What belongs to a conversation: its versioned state, and the questions its tasks ask.

    body ──ask──► Parked(asks=[AskSpec]) ──► inbox: AskView ──Decision──► an answer, kept like a step's result ──► body goes on

A *thread* is named by its `thread_id`, any text of 1 to 1000 characters. Its state is a chain of versions: version 0 is
"nothing yet", each write makes the next one, and a write says which version it was made from.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

from sennit.errors import SettingsError
from sennit.model.lock import Fence

OnBusy = Literal["enqueue", "reject", "interrupt", "rollback"]
OnExpire = Literal["fail", "default", "escalate"]
AskKind = Literal["ask", "event"]
AskState = Literal["open", "answered", "denied", "expired", "void"]

THREAD_ID_CHARS_MAX: Final = 1000

# The two chains of versions of a thread. Writing one never touches the other.
STATE: Final = "state"
CONFIG: Final = "config"


def checked_thread_id(thread_id: object) -> str:
    """Return `thread_id`.

    Raises:
        SettingsError: it is not text, empty, too long, or not Unicode that can be stored.
    """
    what = ""
    if not isinstance(thread_id, str):
        what = f"thread_id must be text, not {thread_id!r}"
    elif not thread_id:
        what = "thread_id is empty"
    elif len(thread_id) > THREAD_ID_CHARS_MAX:
        what = f"thread_id has {len(thread_id)} characters, and {THREAD_ID_CHARS_MAX} are the most"
    elif "\0" in thread_id or any("\ud800" <= c <= "\udfff" for c in thread_id):
        what = f"thread_id {thread_id!r} has a NUL or half of a surrogate pair"
    if what:
        raise SettingsError(
            what,
            why="it names one conversation in the store, in the CLI and in files",
            fix="use a short name or a UUID; leave it out for a task that belongs to no conversation",
        )
    return str(thread_id)


# ---------------------------------------------------------------- state


class StateWrite(msgspec.Struct, kw_only=True, frozen=True):
    """One new version of a thread's state or config.

    Attributes:
        expected: the version it was made from; 0 for the first.
        data: JSON.
        operation_id: a repeat of an operation that is known to the thread writes nothing and is no conflict.
        fences: of the locks it was made under; refused when one of them is old.
    """

    thread_id: str
    name: str = STATE
    expected: int
    data: bytes
    operation_id: str | None = None
    fences: tuple[Fence, ...] = ()


class StateView(msgspec.Struct, kw_only=True, frozen=True):
    """One version of a thread's state or config.

    Attributes:
        version: 0 when there is none yet; then `data` is None, as for a version whose data retention has dropped.
        task_id: the task whose attempt wrote it; None for a write from outside.
    """

    thread_id: str
    name: str = STATE
    version: int = 0
    data: bytes | None = None
    at_us: int = 0
    task_id: int | None = None
    operation_id: str | None = None


class ThreadView(msgspec.Struct, kw_only=True, frozen=True):
    """One thread at a glance.

    Attributes:
        holder_id: the task whose turn it is; None when no task is open.
        open_tasks: the holder and those behind it.
        asks: open questions of its tasks.
        version: of its state.  changed_us: when that was written, 0 for never.
    """

    thread_id: str
    holder_id: int | None = None
    open_tasks: int = 0
    asks: int = 0
    version: int = 0
    changed_us: int = 0


# ---------------------------------------------------------------- questions

# JSON that is not there; tests false. (A field of msgspec can be Raw, but not Raw or None.)
NOTHING: Final = msgspec.Raw(b"")


class AskSpec(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """A question, or a wait for an event, as a body hands it to the store.

    Attributes:
        key: the call site; one ask per task and key, however often the body runs.
        name, event_key: of an event; signals with the same pair answer it.
        schema: JSON schema of the answer, for forms and to check answers.
        context: JSON, shown with the question.
        proposal: JSON of what is to be approved.
        expires_us: from when it is stored; 0 is never.
        default: JSON of the answer when it expires and `on_expire` is `default`.
        escalate_to: who is asked next when it expires and `on_expire` is `escalate`; after that it fails.
    """

    key: str
    kind: AskKind = "ask"
    question: str = ""
    name: str = ""
    event_key: str = ""
    schema: dict[str, Any] | None = None
    context: msgspec.Raw = NOTHING
    proposal: msgspec.Raw = NOTHING
    allow_edit: bool = False
    expires_us: int = 0
    on_expire: OnExpire = "fail"
    default: msgspec.Raw = NOTHING
    assignee: str = ""
    escalate_to: str = ""

    @property
    def title(self) -> str:
        """What it is about, for people: the question, or the event that is waited for."""
        return f"event {self.name!r} {self.event_key}".rstrip() if self.kind == "event" else self.question


class Answer(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """What became of an ask, as its body finds it: kept with the finished steps of the task, under the ask's key.

    Attributes:
        value: JSON; of an expired ask its default, if `on_expire` was `default`.
        by: who decided, as they said.
    """

    state: Literal["answered", "denied", "expired"]
    value: msgspec.Raw = NOTHING
    by: str = ""
    reason: str = ""


class AskView(msgspec.Struct, kw_only=True, frozen=True):
    """One ask as the inbox shows it. Times are store clock, µs.

    Attributes:
        version: grows with every change; a decision that names an older one is refused as stale.
        level: how often it was escalated.
        assignee: who is asked now.
    """

    id: int
    task_id: int
    handler: str
    thread_id: str | None = None
    spec: AskSpec
    state: AskState = "open"
    version: int = 1
    level: int = 0
    assignee: str = ""
    created_us: int
    expires_us: int | None = None
    closed_us: int | None = None
    answer: Answer | None = None


class Decision(msgspec.Struct, kw_only=True, frozen=True):
    """What somebody says to one ask.

    Attributes:
        version: of the ask they looked at; None decides whatever it is now.
    """

    ask_id: int
    answer: Answer
    version: int | None = None
