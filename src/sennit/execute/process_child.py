"""The inside of a worker process: read a job, call the function, answer; over and over, until the pipe ends.

    parent ══ jobs and answers ══► main OS thread ──► runner(function, payload) -> bytes
    parent ── life (never written) ──► watcher OS thread ──► end of the parent = end of this process group

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
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from sennit.errors import UnknownHandler
from sennit.sync import arrays
from sennit.sync.forks import end_forked_child

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from multiprocessing.connection import Connection

__all__ = ["HEADER", "Answer", "Failure", "Ready", "Request", "call_json", "main", "serve"]

HEADER: Final = struct.Struct("!Q")
"""Before every message: its length in bytes."""

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
    """One job. `array_folder` is where large numpy arrays of its result go, "" for inside the result."""

    handler_ref: str
    payload: bytes
    array_folder: str = ""


_LAST_WORDS: Final = msgspec.msgpack.encode(
    Failure("MemoryError", "out of memory, and too little of it left to say where", "", None)
)


def main(jobs: socket.socket, life: Connection, runner_ref: str, memory_bytes_max: int | None) -> None:
    """Serve jobs until the parent closes the pipe.

    Args:
        jobs: requests come in here, answers go out.
        life: ends when the parent does.
        runner_ref: `module:qualname` of `runner(function, payload) -> bytes`.
        memory_bytes_max: limit of the address space, None for none.
    """
    os.setpgid(0, 0)  # Ctrl-C in the terminal is for the parent; and a kill reaches what the body has started.
    threading.Thread(target=_die_with_parent, args=(life,), name="sennit-life", daemon=True).start()
    pipe = _Pipe(jobs)
    if memory_bytes_max is not None:
        _limit_memory(memory_bytes_max)
    pipe.send(msgspec.msgpack.encode(Ready()))
    functions: dict[str, Callable[..., object]] = {}
    requests = msgspec.msgpack.Decoder(Request)
    while (message := pipe.receive()) is not None:
        request = requests.decode(message)
        arrays.keep_in(Path(request.array_folder) if request.array_folder else None)
        pipe.send(serve(request, runner_ref, functions))


def call_json(function: Callable[..., object], payload: bytes) -> bytes:
    """Call with JSON: `payload` is `[args, kwargs]`, the result is the encoded return value. The simplest runner."""
    args, kwargs = msgspec.json.decode(payload, type=tuple[list[Any], dict[str, Any]])
    return msgspec.json.encode(function(*args, **kwargs))


class _Pipe:
    """Whole messages over the job socket."""

    def __init__(self, jobs: socket.socket) -> None:
        self._jobs = jobs

    def send(self, message: bytes) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # The parent is gone: `receive` sees it next.
            self._jobs.sendall(HEADER.pack(len(message)))
            self._jobs.sendall(message)

    def receive(self) -> bytearray | None:
        """Return the next message, None at the end."""
        header = self._read(HEADER.size)
        return None if header is None else self._read(HEADER.unpack(header)[0])

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
    except (ImportError, AttributeError) as error:
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


def _die_with_parent(life: Connection) -> None:
    """Sleep until the parent is gone, then end this process and what its body has started, whatever it is doing.

    The parent-death signal of Linux would not do: it fires when the *OS thread* that forked ends, and here that is the
    fork server.
    """
    with suppress(EOFError, OSError):
        life.recv_bytes()
    os.killpg(os.getpid(), signal.SIGKILL)  # By our own id: never the group of somebody else.
