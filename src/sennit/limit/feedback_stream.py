r"""Usage, errors and the proper end of a streamed answer, read from its bytes as they pass.

    bytes, in any pieces ─► lines ─► events ─┬─► usage so far        message_start, message_delta, the last chunk
                                             ├─► it has ended        [DONE], response.completed, message_stop, finishReason
                                             └─► an error in it      event: error, response.failed, {"error": …}

Only the line that is not whole yet is held, never the answer. Server-sent events end their lines with \n or \r\n here; a
lone \r, which the standard allows and nobody sends, is no end of line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import msgspec

from sennit.limit.feedback_response import read_answer
from sennit.limit.feedback_usage import latest, usage_in
from sennit.model.provider import CallReport, Usage

# The last event of OpenAI's Responses holds the whole answer in one line. A longer one is skipped, not held.
LINE_BYTES_MAX: Final = 8 * 1024 * 1024

_ENDS: Final = frozenset({"message_stop", "response.completed", "response.incomplete", "response.cancelled"})
_FAILS: Final = frozenset({"error", "response.failed"})
# Inside a JSON text these quotes would be escaped: the model cannot write an end into its answer.
_FINISHED: Final = re.compile(rb'"finish_?[rR]eason"\s*:\s*"')


class _Event(msgspec.Struct, frozen=True):
    """The fields of an event that matter; what the model says is skipped without being built."""

    type: msgspec.Raw = msgspec.Raw()
    usage: msgspec.Raw = msgspec.Raw()
    usageMetadata: msgspec.Raw = msgspec.Raw()  # noqa: N815 - Gemini spells it so
    message: msgspec.Raw = msgspec.Raw()
    response: msgspec.Raw = msgspec.Raw()
    choices: msgspec.Raw = msgspec.Raw()
    candidates: msgspec.Raw = msgspec.Raw()
    model: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()


class _Inner(msgspec.Struct, frozen=True):
    """What `message` and `response` hold of interest."""

    usage: msgspec.Raw = msgspec.Raw()
    model: msgspec.Raw = msgspec.Raw()


_EVENT: Final = msgspec.json.Decoder(_Event)
_INNER: Final = msgspec.json.Decoder(_Inner)


class StreamReader:
    """Reads one streamed answer. Not shared between OS threads.

    Attributes:
        usage: what the stream has said so far, or None.
        model: that answers, "" when it was not said.
        ended: it has come to its proper end.
        error: the decoded event that told of an error, or None.
        known: it is the stream of a model, so that one without a proper end is cut off.
    """

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self.model = ""
        self.ended = False
        self.error: object = None
        self.known = False
        self._rest = bytearray()
        self._skipping = False
        self._data: list[bytes] = []
        self._name = ""

    @property
    def truncated(self) -> bool:
        """True when the bytes have stopped before a proper end, and no error told why."""
        return self.known and not self.ended and self.error is None

    def feed(self, chunk: bytes) -> None:
        """Read the next bytes, in pieces of any size."""
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            self._rest += chunk[start:end]
            start = end + 1
            line, self._rest = bytes(self._rest), bytearray()
            if self._skipping or len(line) > LINE_BYTES_MAX:
                self._skipping = False
            else:
                self._line(line.rstrip(b"\r"))
        if self._skipping:
            return
        self._rest += chunk[start:]
        if len(self._rest) > LINE_BYTES_MAX:
            self._rest.clear()
            self._skipping = True

    def close(self) -> None:
        """There are no more bytes: what came without the empty line that ends an event still counts."""
        if self._rest and not self._skipping:
            self._line(bytes(self._rest).rstrip(b"\r"))
        self._rest.clear()
        self._dispatch()

    def report(
        self, status: int, headers: Mapping[str, str], *, now_wall_s: float, duration_us: int = 0, complete: bool = True
    ) -> CallReport:
        """Return the report of the call, after the last byte.

        An error that came in the stream, and a stream that was cut off, are what the call came to, though its status is
        200. Its headers were sent when it began, so that their limits are what was left then.

        Args:
            complete: the bytes have come to their end. False: the caller has stopped reading; that is no failure of the
                provider, and its report is `cancelled` unless the proper end had come.
        """
        self.close()
        report = read_answer(
            status,
            headers,
            self.error,
            now_wall_s=now_wall_s,
            duration_us=duration_us,
            usage=self.usage,
            model=self.model,
        )
        if report.outcome != "ok" or self.ended:
            return report
        if not complete:
            return msgspec.structs.replace(report, outcome="cancelled", message="the stream was closed by its reader")
        if self.truncated:
            return msgspec.structs.replace(report, outcome="error", message="the stream was cut off before its end")
        return report

    # ------------------------------------------------------------ lines and events

    def _line(self, line: bytes) -> None:
        if not line:
            self._dispatch()
            return
        field, _, value = line.partition(b":")
        if field == b"data":
            self._data.append(value.removeprefix(b" "))
        elif field == b"event":
            self._name = value.strip().decode("ascii", "replace")

    def _dispatch(self) -> None:
        data, name = b"\n".join(self._data), self._name
        self._data, self._name = [], ""
        if not data:
            return
        if data.strip() == b"[DONE]":
            self.known = self.ended = True
            return
        try:
            self._event(data, name)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return  # somebody else's event; the stream goes on

    def _event(self, data: bytes, name: str) -> None:
        event = _EVENT.decode(data)
        kind = _text(event.type) or name
        if kind in _FAILS or _is_set(event.error):
            self.known = True
            self.error = msgspec.json.decode(data)
            return
        inner = _inner(event.message) if kind == "message_start" else _inner(event.response)
        if event.choices or event.candidates or kind in {"message_start", "response.created"}:
            self.known = True
        for raw in (inner.usage, event.usage, event.usageMetadata):
            if raw:
                self.usage = latest(self.usage, usage_in(msgspec.json.decode(raw)))
        self.model = (_text(event.model) or _text(inner.model) or self.model)[:200]
        if kind in _ENDS or any(_FINISHED.search(raw) for raw in (event.choices, event.candidates) if raw):
            self.known = self.ended = True


def _inner(raw: msgspec.Raw) -> _Inner:
    return _INNER.decode(raw) if bytes(raw).startswith(b"{") else _Inner()


def _is_set(raw: msgspec.Raw) -> bool:
    return bytes(raw) not in {b"", b"null"}


def _text(raw: msgspec.Raw) -> str:
    found = msgspec.json.decode(raw) if raw else ""
    return found if isinstance(found, str) else ""
