"""The inside of a worker process: take a token, read its job, call the function, answer; until the tokens end.

    parent ── tokens: serial, serial ──► main OS thread        whoever reads a token owns its job: this process, which
    parent ══ jobs and answers ═════════►     │                begins it, or the parent, which takes it back
                                              └──► runner(function, payload) -> bytes
    parent ── life: serial ──► watcher OS thread ──► the body of that job is interrupted, as one in an OS thread would be
                    end    ──►                   ──► end of the parent = end of this process group

Several jobs may be on their way at once. The kernel gives a token to one reader only, so there is no doubt about which
of them has begun, also when this process is killed at any moment. A job whose token the parent took back is skipped.

The answer to a job is always one of `Answer` and `Failure`; whatever a body raises becomes a `Failure`, also
`SystemExit`. A process that ends without an answer has crashed, and its parent says so. This module imports little: it
is loaded by every worker process.
"""

from __future__ import annotations

import importlib
import os
import pickle
import signal
import struct
import threading
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from sennit.errors import AttemptCancelled, UnknownHandler
from sennit.sync import array_files
from sennit.sync.forks import end_forked_child

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from multiprocessing.connection import Connection

__all__ = [
    "HEADER",
    "JOB",
    "REPLY",
    "TOKEN",
    "Answer",
    "Failure",
    "Ready",
    "Request",
    "Terms",
    "call_json",
    "main",
    "serve",
]

HEADER: Final = struct.Struct("!Q")
"""Before a message: its length in bytes."""

TOKEN: Final = struct.Struct("!Q")
"""The serial number of a job that may begin. They rise."""

JOB: Final = struct.Struct("!QQ")
"""Before every job: its length in bytes, its serial number."""

REPLY: Final = struct.Struct("!QQ?")
"""Before every answer: its length in bytes, the serial number of its job, whether this process ends now."""

_JOINED_BYTES_MAX: Final = 1 << 16
"""A message up to this goes out with its header in one call, and wakes the other side once."""

_PICKLE_BYTES_MAX: Final = 1 << 20
"""An exception that drags more than this along travels without its object."""

_MEMORY_RESERVE_BYTES: Final = 4 << 20
"""Address space given back when a body has used up its own, so that there is room to say so."""


class Ready(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """First message of a worker process: it leads its own process group and waits for a job."""


class Answer(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """The body returned."""

    payload: bytes


class Failure(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """The body raised. `pickled` is the exception itself, None when it does not survive a round trip."""

    kind: str
    message: str
    traceback: str
    pickled: bytes | None


class Request(msgspec.Struct, array_like=True, frozen=True):
    """One job. `array_folder` is where large numpy arrays of its result go, "" for inside the result.

    `runner_ref` is its own runner, "" for that of the process.
    """

    handler_ref: str
    payload: bytes
    array_folder: str = ""
    runner_ref: str = ""


@dataclass(frozen=True, slots=True)
class Terms:
    """How a worker process works.

    Attributes:
        runner_ref: `module:qualname` of `runner(function, payload) -> bytes`.
        memory_bytes_max: limit of the address space; 0 is none.
        recycle_tasks: the process ends after this many jobs; 0 is never.
        recycle_bytes: it ends after a job that leaves it with more resident memory than this; 0 is never.
        cpus: the cores it may use; empty is those of its parent.
    """

    runner_ref: str
    memory_bytes_max: int = 0
    recycle_tasks: int = 0
    recycle_bytes: int = 0
    cpus: frozenset[int] = frozenset()


_LAST_WORDS: Final = msgspec.msgpack.encode(
    Failure("MemoryError", "out of memory, and too little of it left to say where", "", None)
)


def main(jobs: socket.socket, tokens: socket.socket, life: Connection, terms: Terms) -> None:
    """Serve jobs until the parent closes the pipe, or the terms say that it is enough.

    Args:
        jobs: requests come in here, answers go out.
        tokens: the serial number of each job that may begin.
        life: ends when the parent does.
        terms: how.
    """
    if terms.cpus:
        with suppress(OSError):  # These cores were taken from us meanwhile: any other is better than none.
            os.sched_setaffinity(0, terms.cpus)  # First: memory comes from the node that touches it first.
    os.setpgid(0, 0)  # Ctrl-C in the terminal is for the parent; and a kill reaches what the body has started.
    interrupts = _Interrupts()
    threading.Thread(target=_die_with_parent, args=(life, interrupts), name="sennit-life", daemon=True).start()
    pipe = _Pipe(jobs, tokens)
    if terms.memory_bytes_max:
        _limit_memory(terms.memory_bytes_max)
    pipe.send(0, msgspec.msgpack.encode(Ready()), is_last=False)
    functions: dict[str, Callable[..., object]] = {}
    requests = msgspec.msgpack.Decoder(Request)
    is_enough = _Enough(terms)
    while (received := pipe.receive()) is not None:
        serial, message = received
        request = requests.decode(message)
        array_files.keep_in(Path(request.array_folder) if request.array_folder else None)
        reply = interrupts.around(serial, lambda: serve(request, request.runner_ref or terms.runner_ref, functions))  # noqa: B023
        is_last = is_enough()
        pipe.send(serial, reply, is_last=is_last)
        if is_last:  # Tokens that are left are read by the parent.
            return


def call_json(function: Callable[..., object], payload: bytes) -> bytes:
    """Call with JSON: `payload` is `[args, kwargs]`, the result is the encoded return value. The simplest runner."""
    args, kwargs = msgspec.json.decode(payload, type=tuple[list[Any], dict[str, Any]])
    return msgspec.json.encode(function(*args, **kwargs))


class _Interrupts:
    """Raises `AttemptCancelled` in the main OS thread while it runs the job that is meant, and at no other time.

    As in `execute.pool`, the lock is what makes that exact: a job runs from `_running` being set until it is 0 again.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._os_thread_id = threading.get_ident()
        self._running = 0
        self._struck = 0

    def around(self, serial: int, call: Callable[[], bytes]) -> bytes:
        """Return what `call` returns. An interrupt that meets no body, just before or after it, is told as its failure."""
        reply = b""
        try:
            try:
                with self._lock:
                    self._running = serial
                    is_early = self._struck == serial
                reply = _describe(AttemptCancelled()) if is_early else call()
            finally:
                self._over()
        except AttemptCancelled as late:
            self._over()
            reply = reply or _describe(late)
        return reply

    def _over(self) -> None:
        with self._lock:
            if self._running and self._struck == self._running:
                _raise_in(self._os_thread_id, None)
            self._running = 0

    def strike(self, serial: int) -> None:
        """Interrupt this job, once, whether it runs or is about to. In another OS thread."""
        with self._lock:
            self._struck = serial
            if self._running == serial:
                _raise_in(self._os_thread_id, AttemptCancelled)


def _raise_in(os_thread_id: int, kind: type[BaseException] | None) -> None:
    """Raise in an OS thread at its next Python instruction; None, in that one itself, withdraws what was to be raised."""
    from sennit.sync.strikes import strike, withdraw  # noqa: PLC0415  only where a body was moved

    if kind is None:
        withdraw(os_thread_id)
    else:
        strike(os_thread_id, kind)


class _Enough:
    """Says after each job whether this process has done what its terms allow."""

    def __init__(self, terms: Terms) -> None:
        self._tasks_left = terms.recycle_tasks or -1
        self._bytes_max = terms.recycle_bytes

    def __call__(self) -> bool:
        self._tasks_left -= 1
        return self._tasks_left == 0 or (self._bytes_max > 0 and _resident_bytes() > self._bytes_max)


def _resident_bytes() -> int:
    """Return the resident memory of this process, without files and shared memory: those are not its own. 5 µs on Linux."""
    try:
        _, resident, shared, *_ = Path("/proc/self/statm").read_bytes().split()
        pages = int(resident) - int(shared)
    except OSError:
        import psutil  # noqa: PLC0415  no /proc here

        return int(psutil.Process().memory_info().rss)
    return pages * os.sysconf("SC_PAGE_SIZE")


class _Pipe:
    """Whole messages over the job socket, one for each token."""

    def __init__(self, jobs: socket.socket, tokens: socket.socket) -> None:
        self._jobs = jobs
        self._tokens = tokens

    def send(self, serial: int, message: bytes, *, is_last: bool) -> None:
        header = REPLY.pack(len(message), serial, is_last)
        with suppress(BrokenPipeError, ConnectionResetError):  # The parent is gone: `receive` sees it next.
            if len(message) <= _JOINED_BYTES_MAX:
                self._jobs.sendall(header + message)
            else:
                self._jobs.sendall(header)
                self._jobs.sendall(message)

    def receive(self) -> tuple[int, bytearray] | None:
        """Take the next token, which begins its job, and return its number and the job; None at the end."""
        try:
            token = self._tokens.recv(TOKEN.size)
        except ConnectionResetError:
            return None
        if len(token) < TOKEN.size:
            return None
        (serial,) = TOKEN.unpack(token)
        while (header := self._read(JOB.size)) is not None:
            size_bytes, number = JOB.unpack(header)
            message = self._read(size_bytes)
            if message is None or number == serial:
                return None if message is None else (serial, message)
        return None

    def _read(self, size_bytes: int) -> bytearray | None:
        message = bytearray(size_bytes)
        rest = memoryview(message)
        while rest:
            try:
                received = self._jobs.recv_into(rest)
            except ConnectionResetError:
                return None
            if not received:
                return None
            rest = rest[received:]
        return message


def serve(request: Request, runner_ref: str, functions: dict[str, Callable[..., object]]) -> bytes:
    """Call the function and return the encoded `Answer` or `Failure`; `functions` keeps those found before."""
    pid = os.getpid()
    reserve = bytearray(_MEMORY_RESERVE_BYTES)
    error: BaseException | None = None
    answer = b""
    try:
        if request.handler_ref not in functions:
            target = _resolve(request.handler_ref)
            functions[request.handler_ref] = getattr(target, "function", target)
        answer = _answer(_resolve(runner_ref)(functions[request.handler_ref], request.payload))
    except BaseException as raised:  # noqa: BLE001  whatever a body raises is its failure, not ours
        error = raised
    if os.getpid() != pid:
        end_forked_child(error)
    if error is None:
        return answer
    del reserve
    try:
        return _describe(error)
    except MemoryError:
        return _LAST_WORDS


def _answer(payload: object) -> bytes:
    if not isinstance(payload, bytes):
        raise TypeError(f"a runner must return bytes, not {type(payload).__name__}")
    return msgspec.msgpack.encode(Answer(payload))


def _describe(error: BaseException) -> bytes:
    if isinstance(error, MemoryError):
        traceback.clear_frames(error.__traceback__)  # The frames hold what did not fit.
    trace = error.__traceback__.tb_next if error.__traceback__ is not None else None  # Without our own frame.
    lines = traceback.format_exception(type(error), error, trace)
    return msgspec.msgpack.encode(Failure(type(error).__name__, _text(error), "".join(lines), _pickle(error)))


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as failure:  # noqa: BLE001  a broken __str__ must not hide which exception it was
        return f"<its text cannot be made: {type(failure).__name__}>"


def _pickle(error: BaseException) -> bytes | None:
    """Return the exception pickled, if it comes back as what it was."""
    try:
        pickled = pickle.dumps(error)
        copy = pickle.loads(pickled)  # noqa: S301  our own bytes; many exceptions fail only here
    except Exception:  # noqa: BLE001  pickling runs code of the exception's author, which may raise anything
        return None
    return pickled if type(copy) is type(error) and len(pickled) <= _PICKLE_BYTES_MAX else None


def _resolve(ref: str) -> Any:
    """Import `module:qualname`. In a worker process `__main__` is the parent's script, imported and not run."""
    module_name, _, qualname = ref.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
        for part in qualname.split("."):
            found = getattr(found, part)
    except Exception as error:  # importing runs code of its author, which may raise anything
        raise UnknownHandler(
            f"{ref!r} cannot be found in a worker process",
            why=f"{type(error).__name__}: {error}",
            fix="define it at the top level of a module that can be imported, not in a function or a notebook cell",
        ) from error
    return found


def _limit_memory(memory_bytes_max: int) -> None:
    import resource  # noqa: PLC0415  not on every system, and only needed with a limit

    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes_max, hard))


def _die_with_parent(life: Connection, interrupts: _Interrupts) -> None:
    """Interrupt what the parent says; when the parent is gone, end this process and what its body has started, whatever it is doing.

    The parent-death signal of Linux would not do: it fires when the *OS thread* that forked ends, and here that is the
    fork server.
    """
    with suppress(EOFError, OSError):
        while True:
            interrupts.strike(TOKEN.unpack(life.recv_bytes())[0])
    os.killpg(os.getpid(), signal.SIGKILL)  # By our own id: never the group of somebody else.
