"""Where a body runs, and how that is learnt when nobody has said it.

    async def ─► the event loop
    cpu=True  ─► worker processes;  OS threads on a build without a GIL
    def       ─► OS threads ─ 5 ms of CPU time and more ─► on trial ─► computes in Python ─► worker processes,
                      ▲                                       │                              or a lane, if it must stay
                      └──────────────── waits ────────────────┴─► computes, leaves the GIL ─► a wide lane

On trial bodies go one after the other: of fifty that compute side by side each only seems to wait. Twenty are enough,
and five in a row that block end it. Less than 5 ms is not tried: the way to a process costs 0.2 ms, and nobody could tell who held
the GIL. Before one is moved a worker process is asked whether it finds the same function with the same values. A moved body
that needs its attempt's context after all goes back, and that attempt with it; so it does when what it means is changed here.

Everything here belongs to the worker's event loop; only the measuring is done in the body's OS thread.
"""

from __future__ import annotations

import asyncio
import enum
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from sennit.errors import BodyFailed, SennitError, UnknownHandler, WorkerCrashed
from sennit.execute.body import Body
from sennit.execute.cluster import CpuPool
from sennit.execute.lane import Lane
from sennit.execute.movable import movable
from sennit.execute.processes import Job
from sennit.execute.verdict import options_of
from sennit.execute.workload import SAMPLES_MIN, Kind, Meter, Sample, WorkloadDetector, gil_enabled
from sennit.model.task import Claimed
from sennit.sync.gilprobe import GilProbe
from sennit.sync.meaning import Meaning

__all__ = ["CpuHome", "Learnt", "Place", "Placement", "cpu_home"]

_log = logging.getLogger("sennit")

HEAVY_S: Final = 0.005  # of CPU time per body, on average: from here on the GIL probe can tell who held it
HEAVY_CALLS: Final = 5  # so many are measured before a trial
WAITS_RATIO: Final = 200  # wall time over CPU time from which a body surely waits, however many compute beside it
SELDOM: Final = 16  # one of so many bodies of a handler that is light, or has failed a trial, is measured
TRIAL_CALLS_MAX: Final = 64
TRIAL_BLOCKED_MAX: Final = 5  # in a row
TRIAL_LAPSE_S: Final = 0.05  # and three times the usual CPU time: who is not done by then waits for something
TRIAL_AGAIN: Final = 50  # times as many calls as before the last trial
CROWD_S: Final = 0.010  # a wait for the GIL behind at least two that compute; behind one it is 5 ms
PROBE_IDLE_S: Final = 1.0  # the probe wakes 200 times a second: it ends when it was not needed for so long
PROBE_EXTRA_S: Final = 0.002
PROBE_WINDOW_S_MAX: Final = 1.0

REHEARSAL_S: Final = 5.0  # a worker process that takes longer to import a body costs more than it brings
_REHEARSAL: Final = "sennit.submit.moved:rehearse"

CpuHome = Literal["processes", "os_threads", "cluster"]


class Place(enum.Enum):
    """Where an attempt runs."""

    LOOP = "loop"
    OS_THREAD = "os_thread"
    TRIAL = "trial"  # OS threads, one at a time, until it is known what it does
    LANE = "lane"  # OS threads, one at a time: holds the GIL
    WIDE_LANE = "wide_lane"  # OS threads, as many as there are cores: leaves the GIL to others
    PROCESS = "process"
    MOVED = "moved"  # a worker process, though nobody declared it


def cpu_home(*, has_cluster: bool, has_gil: bool) -> CpuHome:
    """Return where bodies with cpu=True run. The one place that decides it."""
    if has_cluster:
        return "cluster"
    return "processes" if has_gil else "os_threads"


@dataclass(frozen=True, slots=True)
class Learnt:
    """What was found out about one handler that nobody had placed.

    Attributes:
        calls: that were measured.  cpu_s: mean CPU time of one.
        why: it is where it is; "" while nothing is decided.
    """

    handler: str
    place: Place
    calls: int
    cpu_s: float
    why: str


class _Handler:
    """One handler whose author has said nothing."""

    __slots__ = (
        "blocked",
        "body",
        "calls",
        "cpu_s",
        "is_touched",
        "lapse_s",
        "meaning",
        "measured",
        "place",
        "trial",
        "tried",
        "try_at",
        "wall_s",
        "why",
    )

    def __init__(self, body: Body) -> None:
        self.body = body
        self.place = Place.OS_THREAD
        self.why = ""
        self.calls = 0
        self.measured = 0
        self.cpu_s = 0.0  # mean of the last ones, about twenty
        self.wall_s = 0.0
        self.is_touched = False
        self.trial: Lane | None = None
        self.lapse_s = 0.0
        self.blocked = 0  # in a row, of the present trial
        self.tried = 0
        self.try_at = HEAVY_CALLS  # calls
        self.meaning: Meaning | None = None  # once it is to be moved

    def note(self, sample: Sample) -> None:
        self.measured += 1
        weight = min(self.measured, SAMPLES_MIN)
        self.cpu_s += (sample.cpu_s - self.cpu_s) / weight
        self.wall_s += (sample.wall_s - self.wall_s) / weight

    @property
    def wants_trial(self) -> bool:
        heavy = self.measured >= HEAVY_CALLS and self.cpu_s >= HEAVY_S and self.wall_s < WAITS_RATIO * self.cpu_s
        return heavy and self.calls >= self.try_at and self.place is Place.OS_THREAD and not self.why


class Placement:
    """Places bodies, and learns. No method blocks, but a first check of a module's source."""

    def __init__(
        self,
        mode: str = "auto",
        *,
        home: CpuHome,
        cores: int = 1,
        has_gil: bool | None = None,
        detector: WorkloadDetector | None = None,
        processes: CpuPool | None = None,
        no_room: Callable[[], str] = lambda: "",
    ) -> None:
        """Know nothing yet.

        Args:
            mode: the setting `placement`.
            cores: how many bodies that leave the GIL to others compute at once.
            has_gil: of this interpreter; asked by default.
            processes: where a body is rehearsed before it is moved; None does without.
            no_room: why there can be no more processes, "" if there can.
        """
        self.home = home
        self._has_gil = gil_enabled() if has_gil is None else has_gil
        # Elsewhere there is nothing to learn for: without a GIL OS threads are the place, and a cluster is not for guesses.
        self._learns = mode == "auto" and home == "processes" and self._has_gil
        self._detector = detector or WorkloadDetector()
        self._processes = processes
        self._no_room = no_room
        self._rehearsals: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._handlers: dict[str, _Handler] = {}
        self._lanes = {Place.LANE: Lane(1), Place.WIDE_LANE: Lane(max(1, cores))}
        self._probe = GilProbe()
        self._probed = 0  # attempts on trial
        self._probe_end: asyncio.TimerHandle | None = None

    def place(self, body: Body) -> Place:
        """Return where the next attempt of a body runs."""
        match body.kind:
            case "async":
                return Place.LOOP
            case "cpu":
                return Place.OS_THREAD if self.home == "os_threads" else Place.PROCESS
            case _:
                known = self._handlers.get(body.reference)
                return Place.OS_THREAD if known is None or known.body is not body else known.place

    def place_of(self, task: Claimed, body: Body) -> Place:
        """Return where an attempt runs: where its handler does, but a task that needs its context is not moved."""
        place = self.place(body)
        if place is Place.MOVED and (
            task.steps or task.permit is not None or options_of(task).idle_timeout_s is not None
        ):
            return Place.OS_THREAD
        if place is Place.MOVED and (changed := self._meaning(body).changed()):
            self.move_back(body, f"{changed} was changed in this process")
            return Place.LANE
        return place

    def stamp(self, body: Body) -> bytes:
        """Return what goes before the payload of a moved body: the digest of what it means."""
        return self._meaning(body).digest()

    def _meaning(self, body: Body) -> Meaning:
        return self._handlers[body.reference].meaning or Meaning()

    def lane(self, body: Body, place: Place) -> Lane | None:
        """Return the lane of a place, None where there is none."""
        return self._handlers[body.reference].trial if place is Place.TRIAL else self._lanes.get(place)

    # ------------------------------------------------------------ learning

    def begins(self, body: Body) -> Place | None:
        """An attempt begins in an OS thread. A place if it is to be measured; then `ended` must follow with it."""
        if not self._learns or not body.is_movable:
            return None
        known = self._handlers.get(body.reference)
        if known is None or known.body is not body:  # new, or defined anew at a prompt
            known = self._handlers[body.reference] = _Handler(body)
        known.calls += 1
        if known.place is Place.TRIAL:
            self._want_probe(1)
        elif known.why or (known.measured >= SAMPLES_MIN and known.calls % SELDOM):
            return None
        return known.place

    def ended(self, body: Body, sample: Sample | None, began: Place, *, is_touched: bool) -> None:
        """A measured attempt has ended.

        Args:
            sample: None if it never began.
            began: what `begins` said.
            is_touched: it has used its attempt's context.
        """
        known = self._handlers.get(body.reference)
        if known is not None and known.body is body:
            known.is_touched |= is_touched
            if sample is not None:
                known.note(sample)
                if began is Place.TRIAL is known.place:
                    self._detector.note(body.reference, sample, gil_wait_s=self._gil_wait_s(sample))
                    known.tried += 1
                    known.blocked = 0 if sample.wall_s < known.lapse_s else known.blocked
                    self._decide(known)
                elif known.wants_trial:
                    self._try(known)
        if began is Place.TRIAL:
            self._want_probe(-1)

    def _try(self, known: _Handler) -> None:
        known.place, known.blocked = Place.TRIAL, 0
        known.tried = 0
        lapse_s = TRIAL_LAPSE_S + 3 * known.cpu_s
        known.lapse_s = lapse_s
        known.trial = Lane(1, lapse_s=lapse_s, on_lapse=lambda: self._has_blocked(known))
        self._probe.start()

    def _has_blocked(self, known: _Handler) -> None:
        """One on trial was not done in time. Unless many wait for the GIL (those that began before the trial), it waits."""
        reading = self._probe.reading(TRIAL_LAPSE_S)
        known.blocked += reading.readings > 0 and reading.p50_s < CROWD_S
        if known.place is Place.TRIAL and known.blocked >= TRIAL_BLOCKED_MAX:
            self._settle(known, Place.OS_THREAD, "")

    def _settle(self, known: _Handler, place: Place, why: str) -> None:
        """The trial is over; who is in line is placed anew."""
        known.place, known.why = place, why
        known.try_at = known.calls * TRIAL_AGAIN
        if known.trial is not None:
            known.trial.open()

    def meter(self, body: Body) -> Meter:
        """Return what measures one attempt. In the body's OS thread."""
        return Meter(runq=self._detector.is_long(body.reference))

    def _gil_wait_s(self, sample: Sample) -> float | None:
        reading = self._probe.reading(min(sample.wall_s + PROBE_EXTRA_S, PROBE_WINDOW_S_MAX))
        return reading.p50_s if reading.readings else None

    def _decide(self, known: _Handler) -> None:
        reference = known.body.reference
        holds_gil = self._detector.holds_gil(reference)
        if self._detector.kind(reference) is not Kind.CPU or holds_gil is None:
            if known.tried >= TRIAL_CALLS_MAX:
                self._settle(known, Place.OS_THREAD, "")
            return
        if not holds_gil:  # Nothing changes for it, so nothing is said.
            self._settle(known, Place.WIDE_LANE, "it computes and leaves the GIL to others")
            return
        found: Meaning | str = (
            "it uses its attempt (a step, a submit, a thread, a log line)" if known.is_touched else ""
        )
        found = found or movable(known.body.function)
        found = found if isinstance(found, str) else self._no_room() or found
        if isinstance(found, str):
            self._stays(known, found)
        elif self._processes is None:
            self._moves(known, found)
        else:
            self._settle(known, Place.LANE, "")
            rehearsal = self._loop.create_task(self._rehearse(known, found, self._processes))
            self._rehearsals.add(rehearsal)
            rehearsal.add_done_callback(self._rehearsals.discard)

    async def _rehearse(self, known: _Handler, meaning: Meaning, processes: CpuPool) -> None:
        """Ask a worker process whether it has the same body. No task of the user depends on the answer."""
        job = Job(known.body.reference, json.dumps(meaning.parts).encode(), _REHEARSAL)
        try:
            async with asyncio.timeout(REHEARSAL_S):
                await processes.run(job)
        except TimeoutError:
            self._stays(known, f"no worker process could import it within {REHEARSAL_S:g} s")
        except (SennitError, OSError) as error:
            self._stays(known, _why_misplaced(error) or str(error))
        else:
            self._moves(known, meaning)

    def _stays(self, known: _Handler, why: str) -> None:
        self._settle(known, Place.LANE, why)
        _log.warning(
            "handler %s computes in Python (%s) and stays in OS threads, one at a time: %s. "
            "Mend that, or say cpu=False to end this check",
            known.body.reference, _figures(known), why,
        )  # fmt: skip

    def _moves(self, known: _Handler, meaning: Meaning) -> None:
        known.meaning = meaning
        self._settle(known, Place.MOVED, f"it computes in Python: {_figures(known)}")
        _log.warning(
            "handler %s computes in Python (%s): it runs in worker processes from now on. "
            "cpu=True says so at once, cpu=False keeps it here, placement=declared (SENNIT_PLACEMENT) all of them",
            known.body.reference, _figures(known),
        )  # fmt: skip

    def move_back(self, body: Body, why: str) -> None:
        """A moved body cannot run there: it, and those to come, run here again."""
        known = self._handlers.get(body.reference)
        if known is not None and known.place is Place.MOVED:
            known.place, known.why = Place.LANE, why
            _log.warning(
                "handler %s is back in OS threads, one at a time: %s. cpu=False keeps it there", body.reference, why
            )

    def is_misplaced(self, body: Body, error: BaseException) -> bool:
        """A moved body has failed: because it was moved? Then it runs here again, from this attempt on."""
        why = _why_misplaced(error)
        if why:
            self.move_back(body, why)
        return bool(why)

    def learnt(self) -> list[Learnt]:
        """Return what is known, the handlers that compute most first."""
        handlers = sorted(self._handlers.values(), key=lambda known: (-known.cpu_s, known.body.reference))
        return [Learnt(k.body.reference, k.place, k.measured, k.cpu_s, k.why) for k in handlers]

    # ------------------------------------------------------------ the probe runs while somebody wants it

    def _want_probe(self, more: int) -> None:
        self._probed += more
        if self._probed > 0:
            if self._probe_end is not None:
                self._probe_end.cancel()
                self._probe_end = None
            self._probe.start()
        elif self._probe.running and self._probe_end is None:
            self._probe_end = self._loop.call_later(PROBE_IDLE_S, self._end_probe)

    def close(self) -> None:
        """End the probe, and what is being rehearsed."""
        for rehearsal in self._rehearsals:
            rehearsal.cancel()
        self._end_probe()

    def _end_probe(self) -> None:
        if self._probe_end is not None:
            self._probe_end.cancel()
            self._probe_end = None
        self._probe.stop()


def _figures(known: _Handler) -> str:
    return f"{known.cpu_s * 1000:.1f} ms of CPU time each, {known.measured} measured"


def _why_misplaced(error: BaseException) -> str:
    """Return why a moved body cannot run in a worker process, "" if it has failed as it would have here."""
    match error:
        case BodyFailed(kind="ContextOutOfReach", message=why):
            return why or "it needs its attempt (a step, a submit, a thread, a log line)"
        case BodyFailed(kind="UnknownHandler", original=UnknownHandler()):
            return "a worker process does not find it"
        case BodyFailed(kind="MemoryError"):
            return "a worker process has too little memory for it"
        case BodyFailed(original=None, kind=kind):  # retries and rules look at the exception itself
            return f"what it raises ({kind}) does not survive the way from a worker process"
        case WorkerCrashed(starting=True) | OSError():
            return "no worker process can be started"
        case _:
            return ""
