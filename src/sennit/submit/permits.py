"""The permit that came with the claim: it is for the attempt's first call, or for all of a body that never asks for one.

claimed with it ──first slot()──► used, returned when that call has ended
     │  │  └──of another provider or model, and it has to wait──► given back: who holds one never waits for one
     │  └──waits for other tasks──► lent: given back, taken again in line before the body goes on (before its next step,
     │                              if it gives that wait up)
     └──the body ends without a slot()──► returned; how the body ended is how the call went
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Protocol

from sennit.errors import BodyFailed, Interrupted, StoreError, StoreFull, StoreLocked
from sennit.limit.feedback import read_exception
from sennit.model.provider import CallReport, Permit, PermitRequest, split_name
from sennit.model.retry import NotRetryable
from sennit.model.task import Claimed
from sennit.store.protocol_providers import ProviderStore
from sennit.sync.ack import Ack, call_in
from sennit.sync.clock import monotonic_s
from sennit.sync.pending import Flow, got

_log = logging.getLogger("sennit")

# Refusals are kept so long that the one a body ends with is among them; each holds its traceback.
_REFUSALS_MAX: Final = 100
_CAUSES_MAX: Final = 50  # chains of causes may be circles
_OVERLOADED: Final = 529  # Anthropic's own status for it: the service as a whole is short of capacity

# When the store cannot take a permit back: until the next try, doubled by each.
RETRY_S: Final = 1.0
# One line about a pause in so long, however many calls were refused.
PAUSE_NOTICE_S: Final = 1.0
RETRY_S_MAX: Final = 60.0


class PermitStore(ProviderStore, Protocol):
    """What permits need of the store."""

    def take_ids(self, n: int) -> Sequence[int]:
        """Return new ids."""


class HeldPermit:
    """What one attempt has of permits, beside those of its calls. A body may run in any OS thread; one at a time."""

    def __init__(self, task: Claimed, store: PermitStore) -> None:
        self._task = task
        self._store = store
        self._asked = "" if task.permit is None else _name_of(task.permit)
        self._permit = task.permit  # until it is used or given back
        self._is_lent = False
        self._is_over = False
        self._throttled: deque[tuple[BaseException | None, str]] = deque(maxlen=_REFUSALS_MAX)

    def is_for(self, provider: str) -> bool:
        """True when the task was claimed for calls to this provider: given back, it waits for it without a slot."""
        return bool(self._asked) and split_name(self._asked)[0] == split_name(provider)[0]

    @property
    def is_from_fallback(self) -> bool:
        """True when another provider stood in at the claim: given back, the task would be claimed for that one at once."""
        return self._task.permit is not None and bool(self._task.permit.fallback_for)

    def use(self, provider: str) -> Permit | None:
        """Return the permit for a call to `provider` (`name` or `name/model`) and forget it; None when there is none.

        A fallback that stood in at the claim stands in for this call as well.
        """
        permit = self._permit
        if permit is None or not self.is_for(provider):
            return None
        asked_model = split_name(provider)[1]
        if asked_model and not permit.fallback_for and permit.model != asked_model:
            self.let_go()  # the sub-limits of that model have not been asked; and this one may be all there is
            return None
        self._permit = None
        return permit

    def let_go(self) -> None:
        """Give it back unused: the body waits for another one, and others may wait for this."""
        permit, self._permit = self._permit, None
        if permit is not None:
            self.give_back(permit, None)

    def lend(self) -> None:
        """The body waits for other tasks; they may need this very permit."""
        if self._permit is not None:
            self._is_lent = True
            self.let_go()

    @property
    def is_lent(self) -> bool:
        """True when it was lent, and is to be taken back before the body does anything more."""
        return self._is_lent

    def lent(self) -> str:
        """Return which provider's permit was lent and is to be taken back now, "" for none."""
        is_lent, self._is_lent = self._is_lent, False
        return self._asked if is_lent else ""

    def stay_lent(self) -> None:
        """It could not be taken back: the body has given that up, and is to try again."""
        self._is_lent = True

    def hold(self, permit: Permit) -> None:
        """Hold this one in place of the one that was lent."""
        self._permit = permit

    def end(self, error: BaseException | None) -> None:
        """The body has ended. If it never asked for a slot, the whole of it was the call."""
        permit, self._permit = self._permit, None
        was_over, self._is_over = self._is_over, True
        if permit is None or was_over:
            return
        report = None if isinstance(error, Interrupted) else how_it_went(error)
        if report is not None and error is not None:
            self.note_throttled(error, permit.provider, report)
        self._return(permit, report)

    def is_gone(self) -> None:
        """The attempt is over though its body still runs: the permit went with it, and is none of the body's."""
        self._is_over = True

    def give_back(self, permit: Permit, report: CallReport | None) -> None:
        """Return a permit of this attempt, without waiting for it."""
        if not self._is_over or permit.id != self._task.id:
            self._return(permit, report)
        elif report is not None:  # a coroutine or an OS thread that was left behind: it has called, and holds nothing
            model = report.model or permit.model
            lane = f"{permit.provider}/{model}" if model else permit.provider
            told(
                self._store.report_call(lane, report, task_id=self._task.id),
                f"reporting a call of {permit.provider}",
            )

    def _return(self, permit: Permit, report: CallReport | None) -> None:
        # The one that came with the claim goes with the attempt; the next one's has the same id, and is none of ours.
        gone = (lambda: self._is_over) if permit.id == self._task.id else None
        returned(self._store, permit.id, report, permit.provider, gone=gone)

    # ------------------------------------------------------------ refusals

    def note_throttled(self, error: BaseException | None, provider: str, report: CallReport) -> None:
        """Remember that `error` is a provider's refusal, if it is one: the attempt is not to blame.

        None when it is not there yet: under a transport the client raises it after the call has ended.
        """
        if is_not_to_blame(report):
            self._throttled.append((error, f"{provider} answered {report.status or report.outcome}"))

    def throttled_by(self, error: BaseException) -> str:
        """Return who refused the call that `error` is from, or was raised because of; "" when nobody did."""
        if not self._throttled or isinstance(error, NotRetryable):  # then the body has decided
            return ""
        blamed = [self._refused_by(leaf) for leaf in _leaves(error)]
        return blamed[0] if blamed and all(blamed) else ""  # one that failed by itself fails the attempt

    def _refused_by(self, error: BaseException) -> str:
        seen: BaseException | None = error
        for _ in range(_CAUSES_MAX):
            if seen is None:
                break
            for refusal, why in self._throttled:
                if refusal is seen or (refusal is None and _is_refusal(seen)):
                    return why
            seen = seen.__cause__ if seen.__suppress_context__ else seen.__context__
        return ""


def _is_refusal(error: BaseException) -> bool:
    report = read_exception(error) if isinstance(error, Exception) else None
    return report is not None and is_not_to_blame(report)


def is_not_to_blame(report: CallReport) -> bool:
    """True when the provider said "later", so that an attempt that ends in it has used up nothing.

    A 503 that does not say when to come back may be the end of that server: it is a failure like others, or a task would
    be given back for ever.
    """
    if report.outcome == "overloaded":
        return report.status == _OVERLOADED or report.retry_after_s is not None
    return report.outcome == "throttled"


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """Yield what a group is made of: a `TaskGroup` wraps what its children raise."""
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from _leaves(part)
    else:
        yield error


def take(store: PermitStore, request: PermitRequest) -> Flow[Permit]:
    """Wait for a permit; one that comes when nobody waits any more is given back."""
    asked = store.take_permit(request)
    try:
        return (yield from got(asked))
    except BaseException:  # a cancellation too: it may have been granted in this very moment
        if not asked.done or asked.succeeded:
            returned(store, request.id, None, request.provider)
        raise


def _name_of(permit: Permit) -> str:
    """Return what was asked for: a fallback stands in for its provider at this claim only."""
    if permit.fallback_for:
        return permit.fallback_for
    return f"{permit.provider}/{permit.model}" if permit.model else permit.provider


def how_it_went(error: BaseException | None) -> CallReport:
    """Return what the end of a call, or of a body that was one, says of the provider."""
    if error is None:
        return CallReport()
    if isinstance(error, BodyFailed):
        error = error.original or error  # what a worker process has raised
    if isinstance(error, Exception):
        return read_exception(error) or CallReport(outcome="refused")  # the caller's own mistake: nothing is learnt
    return CallReport(outcome="cancelled")


_paused_s: dict[str, float] = {}  # provider → when this process said so last


def _note_pause(provider: str, report: CallReport) -> None:
    """Say that the fleet holds back, in one line for a volley of refusals."""
    now_s = monotonic_s()
    if now_s - _paused_s.get(provider, -PAUSE_NOTICE_S) >= PAUSE_NOTICE_S:
        _paused_s[provider] = now_s
        until = "" if report.retry_after_s is None else f" for {report.retry_after_s:g} s"
        _log.warning("%s is used up (%s, %s): the fleet holds back%s", provider, report.status, report.pause, until)


def returned(
    store: ProviderStore,
    permit_id: int,
    report: CallReport | None,
    provider: str,
    *,
    gone: Callable[[], bool] | None = None,
    retry_s: float = RETRY_S,
) -> None:
    """Return a permit without waiting for it. While the store cannot take it (disk full, locked) it is tried again.

    As long as this process lives nobody else would take it back: a permit that is lost is one call less for ever.

    Args:
        gone: whether it is not ours any more, and not to be tried again.
    """
    loop = asyncio._get_running_loop()  # noqa: SLF001 - documented for this use; get_running_loop raises
    if report is not None and report.pause in {"minute", "window"} and retry_s == RETRY_S:
        _note_pause(provider, report)

    def again() -> None:
        if gone is None or not gone():
            returned(store, permit_id, report, provider, gone=gone, retry_s=min(2 * retry_s, RETRY_S_MAX))

    def said(done: Ack[bool]) -> None:
        try:
            done.wait()
        except (StoreFull, StoreLocked) as error:
            _log.warning("returning a permit of %s failed, next try in %g s: %s", provider, retry_s, error)
            if loop is None or not call_in(loop, loop.call_later, retry_s, again):
                timer = threading.Timer(retry_s, again)
                timer.daemon = True
                timer.start()
        except Exception as error:  # noqa: BLE001 - of whatever kind, it is told
            _log.error("returning a permit of %s failed: %s", provider, error)
            if report is not None and not isinstance(error, StoreError):  # what is reported of it cannot be stored
                returned(store, permit_id, None, provider, gone=gone)

    store.return_permit(permit_id, report).add_done_callback(said)


def told(ack: Ack[Any], what: str) -> None:
    """Nobody waits for this; when it fails the log has it."""

    def said(done: Ack[Any]) -> None:
        try:
            done.wait()
        except Exception as error:  # noqa: BLE001 - of whatever kind, it is told
            _log.error("%s failed: %s", what, error)

    ack.add_done_callback(said)
