"""A callback for litellm: each of its calls takes a permit first, and reports how it went.

    litellm.callbacks = [limits_callback(app.limits, {"openai": "openai", "anthropic": "claude-team"})]

    acompletion ─► async_pre_call_deployment_hook: waits here ─► the call ─┬─► success: usage, rates of the headers
                                                                           ├─► failure: the exception, with its headers
                                                                           └─► nothing said: when the calling task ends

What it governs, as of litellm 1.83:

- Async calls (`acompletion`, `aresponses`, `aembedding`, the Router's): the hook is awaited before the call, its refusal
  (LimitError) reaches the caller, and failures are reported before the caller sees them.
- Sync calls (`completion`, …): the permit is waited for in `log_pre_api_call`. litellm logs what that raises and goes on:
  a refusal does not stop a sync call. Use the async ones where budgets must hold, or `sennit proxy`.
- Not governed: the further tries of litellm's own `num_retries` (no hook runs for them: leave it at 0 and let the task be
  retried), calls answered from litellm's cache hold a permit for a moment, and `max_retries` of the SDK below are part of one
  call, so that they hold one permit (also: 0).
- A stream holds its permit until its last chunk. One that is left in the middle is reported by nobody: its permit comes back when
  the asyncio task that began it ends.

Where every request must count exactly, put `sennit proxy` in front of litellm instead (`api_base=`).
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from sennit.errors import UsageError
from sennit.integrations.slots import Call, Slot, Slots
from sennit.limit.feedback import read_exception, read_request, read_response, usage_of
from sennit.model.provider import CallReport
from sennit.sync.clock import monotonic_s, wall_us

if TYPE_CHECKING:
    from litellm.integrations.custom_logger import CustomLogger

Providers = Mapping[str, str] | str

# litellm hands the headers of a provider on under names of its own.
_PREFIX: Final = "llm_provider-"


def limits_callback(slots: Slots, providers: Providers) -> CustomLogger:
    """Return a callback for `litellm.callbacks`.

    Args:
        slots: `app.limits`.
        providers: whose limits hold for a call: one name for all calls, or by litellm's name of the provider (`openai`,
            `anthropic`, `vertex_ai`, …); what is not named is not governed.

    Raises:
        UsageError: litellm is not installed.
    """
    try:
        from litellm.integrations.custom_logger import CustomLogger  # noqa: PLC0415 - seconds, and only here
    except ImportError as error:
        raise UsageError("litellm is not installed", fix="pip install litellm") from error

    calls = _Calls(slots, providers)

    class LimitsCallback(CustomLogger):
        """Passes litellm's events on; `calls` knows what they mean."""

        async def async_pre_call_deployment_hook(
            self, kwargs: dict[str, Any], call_type: object
        ) -> dict[str, Any] | None:
            del call_type
            await calls.begin(kwargs)
            return None

        async def async_post_call_success_deployment_hook(
            self, request_data: dict[str, Any], response: Any, call_type: object
        ) -> Any:
            del call_type
            calls.succeeded(str(request_data.get("litellm_call_id")), response)

        async def async_log_success_event(
            self, kwargs: dict[str, Any], response_obj: Any, start_time: object, end_time: object
        ) -> None:
            del start_time, end_time
            calls.succeeded(str(kwargs.get("litellm_call_id")), response_obj)

        async def async_log_failure_event(
            self, kwargs: dict[str, Any], response_obj: Any, start_time: object, end_time: object
        ) -> None:
            del response_obj, start_time, end_time
            calls.failed(str(kwargs.get("litellm_call_id")), kwargs.get("exception"))

        def log_pre_api_call(self, model: str, messages: Any, kwargs: dict[str, Any]) -> None:
            calls.begin_blocking({"model": model, "messages": messages, **kwargs})

        def log_success_event(
            self, kwargs: dict[str, Any], response_obj: Any, start_time: object, end_time: object
        ) -> None:
            del start_time, end_time
            calls.succeeded(str(kwargs.get("litellm_call_id")), response_obj)

        def log_failure_event(
            self, kwargs: dict[str, Any], response_obj: Any, start_time: object, end_time: object
        ) -> None:
            del response_obj, start_time, end_time
            calls.failed(str(kwargs.get("litellm_call_id")), kwargs.get("exception"))

    return LimitsCallback()


class _Open:
    """One call that holds a permit."""

    def __init__(self, slot: Slot, call: Call) -> None:
        self.slot = slot
        self.call = call
        self.begun_s = monotonic_s()


class _Calls:
    """The calls under way, by litellm's id. Its events come in any order and from any OS thread; the first end counts."""

    def __init__(self, slots: Slots, providers: Providers) -> None:
        self._slots = slots
        self._providers = providers
        self._open: dict[str, _Open | None] = {}
        self._lock = threading.Lock()

    async def begin(self, kwargs: dict[str, Any]) -> None:
        """Wait for a permit.

        Raises:
            LimitError: there is none to be had.
        """
        key, slot = self._asked(kwargs)
        if slot is None:
            return
        try:
            call = await slot.__aenter__()
        except BaseException:
            self._forget(key)
            raise
        with self._lock:
            self._open[key] = _Open(slot, call)
        task = asyncio.current_task()
        if task is not None:
            task.add_done_callback(lambda done: self._left(key, done))

    def begin_blocking(self, kwargs: dict[str, Any]) -> None:
        """Wait for a permit in this OS thread, unless it is one of an event loop, or the call has its permit.

        Raises:
            LimitError: there is none to be had.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            pass
        else:
            return
        key, slot = self._asked(kwargs)
        if slot is None:
            return
        try:
            call = slot.__enter__()
        except BaseException:
            self._forget(key)
            raise
        with self._lock:
            self._open[key] = _Open(slot, call)

    def succeeded(self, key: str, response: Any) -> None:
        """The call has an answer, all of it."""
        found = self._forget(key)
        if found is None:
            return
        hidden = getattr(response, "_hidden_params", None)
        named = hidden.get("additional_headers") if isinstance(hidden, Mapping) else None
        headers = {
            str(name).removeprefix(_PREFIX): str(value)
            for name, value in (named.items() if isinstance(named, Mapping) else ())
        }
        dumped = response.model_dump() if hasattr(response, "model_dump") else {}
        report = read_response(200, headers, None, now_wall_s=wall_us() / 1e6)
        self._end(found, report, usage=usage_of(dumped), model=str(dumped.get("model") or ""))

    def failed(self, key: str, error: object) -> None:
        """The call has failed."""
        found = self._forget(key)
        if found is not None:
            report = read_exception(error) if isinstance(error, BaseException) else None
            self._end(found, report or CallReport(outcome="refused"))

    def _left(self, key: str, task: asyncio.Task[Any]) -> None:
        """The task that began the call has ended, and nobody has said how it went."""
        found = self._forget(key)
        if found is not None:
            went_well = not task.cancelled() and task.exception() is None
            self._end(found, CallReport(outcome="ok" if went_well else "cancelled"))

    def _end(self, found: _Open, report: CallReport, **more: Any) -> None:
        duration_us = round((monotonic_s() - found.begun_s) * 1e6)
        fields = {name: getattr(report, name) for name in report.__struct_fields__}
        found.call.report(CallReport(**(fields | more | {"duration_us": duration_us})))
        found.slot.__exit__(None, None, None)

    def _asked(self, kwargs: dict[str, Any]) -> tuple[str, Slot | None]:
        """Return the id of a call and the slot to enter for it; none when it has one, or is not governed."""
        key, provider = str(kwargs.get("litellm_call_id")), self._provider(kwargs)
        with self._lock:
            if not provider or key in self._open:
                return key, None
            self._open[key] = None
        return key, self._slots.slot(provider, tokens=read_request(kwargs).tokens)

    def _provider(self, kwargs: dict[str, Any]) -> str:
        if isinstance(self._providers, str):
            return self._providers
        named = kwargs.get("custom_llm_provider")
        return self._providers.get(str(named) if named else _provider_of_model(str(kwargs.get("model"))), "")

    def _forget(self, key: str) -> _Open | None:
        with self._lock:
            return self._open.pop(key, None)


def _provider_of_model(model: str) -> str:
    """Return litellm's name of the provider of a model, "" when it knows none."""
    import litellm  # noqa: PLC0415 - it is calling us: it is loaded

    head = model.partition("/")[0]
    if head in litellm.provider_list:
        return head  # asking litellm about a model it does not know prints advice
    try:
        return str(litellm.get_llm_provider(model)[1])
    except Exception:  # noqa: BLE001 - litellm raises BadRequestError and others, and the call will fail by itself
        return ""
