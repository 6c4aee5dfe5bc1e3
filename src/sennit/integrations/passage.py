"""One call on its way through a slot: what passes is read, and the report is made once, whichever way it ends.

    request ─► permit ─► answered(status, headers) ─► feed(bytes) … ─► ended(complete) ──► CallReport
                  └────────── an exception anywhere ────────────────► ended(error)  ──┘

The bytes go on as they came, compressed or not; only what a report needs is kept of them.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Final

import msgspec

from sennit.limit.feedback import StreamReader, read_exception, read_response
from sennit.limit.feedback_values import lower_names
from sennit.model.provider import CallReport
from sennit.sync.clock import monotonic_s, wall_us

# What can be decompressed here; a request that offers more is made to offer these.
ENCODINGS: Final = ("gzip", "deflate", "identity")
# An answer that is longer is passed on all the same, and its usage is not known.
BODY_BYTES_MAX: Final = 8 * 1024 * 1024
_PIECE_BYTES: Final = 256 * 1024
_GZIP_OR_ZLIB: Final = 32 + zlib.MAX_WBITS


def offered_encodings(accepted: str) -> str:
    """Return an Accept-Encoding with those alone that can be read in passing."""
    names = [part.strip() for part in accepted.split(",")]
    return ", ".join(name for name in names if name.partition(";")[0].strip().lower() in ENCODINGS) or "identity"


class Passage:
    """Reads one call as it passes. `report` is None until it has ended."""

    def __init__(self) -> None:
        self.report: CallReport | None = None
        self._begun_s = monotonic_s()
        self._status = 0
        self._headers: Mapping[str, str] = {}
        self._reader: StreamReader | None = None
        self._body: bytearray | None = None
        self._unzip: zlib._Decompress | None = None

    def answered(self, status: int, headers: Mapping[str, str]) -> None:
        """The head of the response is here."""
        self._status, self._headers = status, lower_names(headers)
        encoding = self._headers.get("content-encoding", "identity").lower()
        kind = self._headers.get("content-type", "")
        if encoding not in ENCODINGS:
            return  # we did not ask for it, and cannot read it: the headers have to do
        self._unzip = None if encoding == "identity" else zlib.decompressobj(_GZIP_OR_ZLIB)
        if status < 400 and kind.startswith("text/event-stream"):
            self._reader = StreamReader()
        elif status >= 400 or "json" in kind:
            self._body = bytearray()

    def feed(self, chunk: bytes) -> None:
        """The next bytes of the response, as they came."""
        if self._reader is None and self._body is None:
            return
        if self._unzip is None:
            self._take(chunk)
            return
        try:
            while chunk:
                self._take(self._unzip.decompress(chunk, _PIECE_BYTES))
                chunk = self._unzip.unconsumed_tail
        except zlib.error:
            self._reader = self._body = None  # whoever reads it will complain

    def _take(self, data: bytes) -> None:
        if self._reader is not None:
            self._reader.feed(data)
        elif self._body is not None:
            self._body += data
            if len(self._body) > BODY_BYTES_MAX:
                self._body = None

    def ended(self, *, complete: bool = True, error: BaseException | None = None) -> CallReport:
        """Return how the call went; the first end counts.

        Args:
            complete: all bytes have passed. False: who reads them has stopped.
            error: what ended it, or None.
        """
        if self.report is None:
            report = self._read(complete=complete and error is None)
            if error is not None and report.outcome in {"ok", "cancelled"}:
                report = msgspec.structs.replace(
                    _of_error(error), usage=report.usage, model=report.model, status=self._status
                )
            self.report = msgspec.structs.replace(report, duration_us=round((monotonic_s() - self._begun_s) * 1e6))
        return self.report

    def _read(self, *, complete: bool) -> CallReport:
        now_s = wall_us() / 1e6
        if self._reader is not None:
            return self._reader.report(self._status, self._headers, now_wall_s=now_s, complete=complete)
        body = None if self._body is None else bytes(self._body)
        report = read_response(self._status, self._headers, body, now_wall_s=now_s)
        if report.outcome == "ok" and not complete:
            return msgspec.structs.replace(report, outcome="cancelled")
        return report


def _of_error(error: BaseException) -> CallReport:
    if not isinstance(error, Exception):
        return CallReport(outcome="cancelled")
    return read_exception(error) or CallReport(outcome="refused")  # our own mistake: nothing is learnt of the provider
