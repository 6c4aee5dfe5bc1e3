"""Leave for an ACP agent's tools: what to answer when it requests permission, and what people decided before.

A request has an id that means nothing in another process, so leave is bound to *what* was requested: the kind of tool and its
input, as a fingerprint. `3f2a…#1764…22.0` is the first request for that, of the run that began at that time.

Decisions are handed in again with every later run, those that were used too: only the ones of the last run that asked count,
each once in a run.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from sennit.execute.adapters.acp_values import storable
from sennit.execute.adapters.lines import parts, text
from sennit.model.agent import ToolAsk
from sennit.sync.clock import wall_us

__all__ = ["Answer", "Leave", "fingerprint"]

ASKS_MAX: Final = 100  # in one run

_ALLOWED: Final = "allow_once", "allow_always"
_REJECTED: Final = "reject_once", "reject_always"


class Answer(msgspec.Struct, frozen=True):
    """What to answer: an option of the agent's, or "" for `cancelled`.

    Attributes:
        is_allowed: the option is leave.  cancels: the turn is to be cancelled.  ask: a person is to be asked.
    """

    option: str = ""
    is_allowed: bool = False
    cancels: bool = False
    ask: ToolAsk | None = None


class Leave:
    """The requests of one run.

    Args:
        approve: `ask`, `allow` or `deny` what nobody has decided.
        decisions: of people, by `ToolAsk.call_id`.

    Attributes:
        asks: what people are to be asked.  trouble: why a request could not be answered as it was decided.
    """

    def __init__(self, approve: str, decisions: Mapping[str, bool]) -> None:
        self._approve = approve
        self._run = wall_us()
        runs = [_run_of(call_id) for call_id in decisions]
        newest = [call_id for call_id in sorted(decisions) if _run_of(call_id) == max(runs)]
        self._decided: dict[str, list[bool]] = {}
        for call_id in newest:
            self._decided.setdefault(call_id.partition("#")[0], []).append(decisions[call_id])
        self._given, self._allowed = len(newest), sum(decisions[call_id] for call_id in newest)
        self._met: Counter[str] = Counter()
        self.asks: tuple[ToolAsk, ...] = ()
        self.trouble = ""

    def words(self) -> str:
        """Return what the agent is told of the decisions, "" when there are none."""
        if not self._given:
            return ""
        refused = self._given - self._allowed
        said = [f"allowed {self._allowed}" if self._allowed else "", f"refused {refused}" if refused else ""]
        return (
            f"You asked for permission, and your turn was cancelled. Now a person has {' and '.join(filter(None, said))} of "
            f"your {self._given} request{'s' * (self._given > 1)}. Go on with what you were doing: request the same tool use "
            "again, unchanged, and it is answered as was decided. Do not work around what was refused."
        )

    def asked(self, call: dict[str, Any], options: list[dict[str, Any]]) -> Answer:
        """Answer one request for permission; a decision is good for one."""
        print_ = fingerprint(call)
        decided = self._decided.get(print_)
        if decided:
            # For this one call: `always` would be leave that nobody gave.
            return self._chosen(options, _ALLOWED[:1] if decided.pop(0) else _REJECTED)
        if self._approve != "ask":
            return self._chosen(options, _ALLOWED if self._approve == "allow" else _REJECTED)
        return self._noted(print_, call)

    def _noted(self, print_: str, call: dict[str, Any]) -> Answer:
        is_first = not self.asks
        if len(self.asks) >= ASKS_MAX:
            return Answer()
        ask = ToolAsk(
            call_id=f"{print_}#{self._run}.{self._met[print_]}",
            tool=text(call.get("title")) or text(call.get("kind")),
            input=_shown(call),
        )
        self._met[print_] += 1
        self.asks += (ask,)
        return Answer(cancels=is_first, ask=ask)

    def _chosen(self, options: list[dict[str, Any]], kinds: tuple[str, ...]) -> Answer:
        for kind in kinds:
            for option in options:
                if option.get("kind") == kind and (option_id := text(option.get("optionId"))):
                    return Answer(option_id, is_allowed=kind in _ALLOWED)
        self.trouble = f"it requested permission and offered no option to {kinds[0].replace('_', ' ')}"
        return Answer(cancels=True)


def _run_of(call_id: str) -> int:
    """Return when the run began that asked, 0 for an id that is not ours."""
    began = call_id.partition("#")[2].partition(".")[0]
    return int(began) if began.isascii() and began.isdigit() else 0


def fingerprint(call: dict[str, Any]) -> str:
    """Return what tells uses of tools apart by what they would do.

    That is the kind of tool and its raw input; without input the diffs and places it shows; without these its id, which no
    later request has. A title is the model's own words and may change, so it counts only where the kind says nothing.
    """
    call = {name: storable(value) for name, value in call.items()}
    kind = text(call.get("kind"))
    what: list[Any] = [kind if kind not in {"", "other"} else f"{kind}|{text(call.get('title'))}"]
    if call.get("rawInput") not in (None, {}, [], ""):
        what.append(call["rawInput"])
    elif shows := [part for part in parts(call.get("content")) if part.get("type") == "diff"]:
        what += [text(call.get("title")), shows, call.get("locations")]
    else:
        what += [text(call.get("title")), call.get("locations"), text(call.get("toolCallId"))]
    return hashlib.blake2b(msgspec.json.encode(what, order="deterministic"), digest_size=16).hexdigest()


def _shown(call: dict[str, Any]) -> Any:
    """Return what people see of the input."""
    call = {name: storable(value) for name, value in call.items()}
    given = call.get("rawInput")
    return given if given not in (None, {}, [], "") else {n: call[n] for n in ("content", "locations") if call.get(n)}
