"""The model of a run: the demo's own, a fake provider that answers from the prompt itself, or the user's.

    OPENAI_BASE_URL ─┬─ set ──► that endpoint, under the same provider, with its own limits and prices
                     └─ not ──► FakeProvider(answer=compose): bears so many calls at once and does not say how many;
                                once, on the way, it answers that its quota is used up, for a second

The fleet knows neither number. That it kept to both is what `use` tells at the end, by the server's own count.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import msgspec

from sennit.cli.demo import fleet
from sennit.cli.demo.client import endpoint_from
from sennit.cli.demo.records import ModelUse, Pause, Record
from sennit.cli.demo.review import compose
from sennit.errors import SennitError
from sennit.model.provider import NANO, ProviderView
from sennit.model.task import TaskView
from sennit.testing.provider import FakeProvider, Lognormal

# Half of what the workers have places for: the provider's limit is what holds calls back, not theirs.
CALLS_PER_WORKER = fleet.REVIEWS_PER_WORKER // 2
# It takes so long that all reviews together fill about this time, and a single one never seems stuck.
REVIEWS_S, REVIEW_S_MAX = 8.0, 0.8
REVIEWS_FAST_S, REVIEW_FAST_S_MAX = 1.2, 0.2
# How long the quota is used up when it is, and with which share of the reviews at the latest.
RESET_S, RESET_FAST_S = 1.2, 0.6
EXHAUST_BY = 0.8
# What one call too many at once is asked to wait.
BURST_S = 0.1


class Model:
    """Who answers the fleet's calls.

    Attributes:
        environ: what workers need to know.
        says: who reviews, for the report.
    """

    def __init__(
        self, environ: Mapping[str, str], says: str, server: FakeProvider | None = None, reset_s: float = 0.0
    ) -> None:
        self.environ = environ
        self.says = says
        self._server = server
        self._reset_s = reset_s

    async def exhaust(self) -> str:
        """Use up the quota of our own model with the next call, unless it has been; return it in words.

        "" where it is not ours.
        """
        if self._server is None:
            return ""
        is_next = await asyncio.to_thread(self._server.hasten)
        return f"the model's quota {'is' if is_next else 'has been'} used up for {self._reset_s:g} s"

    def use(self, view: ProviderView, rows: Sequence[TaskView]) -> ModelUse:
        """Return what the fleet has used; of our own server, also what that has seen."""
        seen = None if self._server is None else self._server.statistics(log=False)
        pauses = () if seen is None else seen.pauses
        return ModelUse(
            name=view.spec.name,
            limit=view.limit,
            ceiling=view.spec.parallel,
            calls=view.granted,
            throttled=view.throttled,
            too_many=0 if seen is None else seen.refused.get("burst", 0),
            attempts_lost=sum(row.failures for row in rows if row.handler == fleet.review.name),
            input_tokens=view.input_tokens,
            output_tokens=view.output_tokens,
            cost_usd=view.cost_nano / NANO,
            highest=None if seen is None else seen.max_concurrency,
            pauses=tuple(Pause(pause.until_s - pause.announced_s, pause.requests) for pause in pauses),
        )


@contextmanager
def model_of(*, workers: int, n_files: int, seed: int, fast: bool) -> Iterator[Model]:
    """Yield the model of a run: the endpoint of OPENAI_BASE_URL, or our own, which is served until the end.

    Raises:
        SennitError: no loopback port can be opened.
    """
    endpoint = endpoint_from(os.environ)
    if endpoint is not None:
        yield Model({}, f"{endpoint.model} at {urlsplit(endpoint.base_url).hostname}")
        return
    at_once = workers * CALLS_PER_WORKER
    all_s, one_s_max = (REVIEWS_FAST_S, REVIEW_FAST_S_MAX) if fast else (REVIEWS_S, REVIEW_S_MAX)
    server = FakeProvider(
        answer=_answer,
        models=(fleet.MODEL,),
        seed=seed,
        latency=Lognormal(min(one_s_max, all_s * at_once / n_files), 0.5),
        max_concurrency=at_once,
        overload_retry_after_s=BURST_S,
        retry_after="ms",
        log_max=0,
    )
    reset_s = RESET_FAST_S if fast else RESET_S
    try:
        server.start()
    except OSError as error:
        raise SennitError(
            "the demo's model server could not open a port",
            why=str(error),
            fix="allow listening on 127.0.0.1, or set OPENAI_BASE_URL to a model endpoint",
        ) from error
    try:
        # Whoever directs the run may find a better moment. On a machine that is too busy to let it, this one comes.
        server.exhaust(reset_s, at_call=max(1, int(n_files * EXHAUST_BY)))
        environ = {"OPENAI_BASE_URL": f"{server.url}/v1", "OPENAI_API_KEY": "", "OPENAI_MODEL": fleet.MODEL}
        yield Model(environ, "the demo's own model server", server, reset_s)
    finally:
        server.stop()


class _Asked(Record, frozen=True):
    messages: tuple[dict[str, str], ...]


def _answer(request: dict[str, Any]) -> str:
    return compose(msgspec.convert(request, _Asked).messages)
