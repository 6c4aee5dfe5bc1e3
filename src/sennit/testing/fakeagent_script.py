"""The steps that a fake agent can take, as functions: what reads as a sentence in a test is a dict in its script.

    FakeAgent(folder).does(say("I begin"), append("notes.txt", "one"), dies(), say("done"))

Take them from `sennit.testing.fakeagent`. A step is done once per session, also a fault, unless it says in how many runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

Step = dict[str, Any]

# ---------------------------------------------------------------- steps: talk


def say(text: str) -> Step:
    """Say something; the last thing said is the result."""
    return {"do": "say", "text": text}


def think(text: str) -> Step:
    """Think aloud."""
    return {"do": "think", "text": text}


def usage(
    *, input_tokens: int = 0, output_tokens: int = 0, cached_input_tokens: int = 0, cost_usd: float | None = None
) -> Step:
    """Set what the result reports for this run; without it a call of the model counts as 10 tokens in and 5 out."""
    counts = {"input_tokens": input_tokens, "output_tokens": output_tokens, "cached_input_tokens": cached_input_tokens}
    return {"do": "usage", **counts, "cost_usd": cost_usd}


def ends(text: str = "", *, is_error: bool = False) -> Step:
    """Give the result here and not at the end of the steps, so that steps can follow: `ends("done"), hangs()`."""
    return {"do": "result", "text": text, "is_error": is_error}


def fails(text: str = "it did not work", *, status: int = 0) -> Step:
    """Give an error result; `status` is the HTTP status it reports. With `exits(0)` after it: exit 0 with an error result."""
    return {"do": "fail", "text": text, "status": status}


def calls_model(prompt: str = "hello", *, max_tokens: int = 64) -> Step:
    """Call the real endpoint that the environment names (ANTHROPIC_BASE_URL and so on), and say its answer.

    A 429 or 5xx is reported and repeated as often as the environment allows, then it is an error result.
    """
    return {"do": "call", "text": prompt, "max_tokens": max_tokens}


# ---------------------------------------------------------------- steps: tools, each done once per session


def append(path: str | Path, line: str) -> Step:
    """Append a line to a file, in one write. Let the lines of a test differ: that is how a resumed agent knows its own."""
    return {"do": "append", "path": str(path), "line": line}


def write(path: str | Path, content: str) -> Step:
    """Write a file, with its folders."""
    return {"do": "write", "path": str(path), "content": content}


def read(path: str | Path) -> Step:
    """Read a file; a missing one is a tool error."""
    return {"do": "read", "path": str(path)}


def commit(path: str | Path, content: str, message: str) -> Step:
    """Write a file and commit it with git, in the folder the agent works in."""
    return {"do": "commit", "path": str(path), "content": content, "message": message}


def shell(command: str) -> Step:
    """Run a shell command; its exit code decides whether the tool failed."""
    return {"do": "shell", "command": command}


def uses(tool: str, arguments: Mapping[str, object] | None = None, *, output: str = "", is_error: bool = False) -> Step:
    """Use a tool of any name, without an effect."""
    return {"do": "tool", "tool": tool, "input": dict(arguments or {}), "output": output, "is_error": is_error}


# ---------------------------------------------------------------- steps: time


def pause(seconds: float) -> Step:
    """Do nothing for a while."""
    return {"do": "pause", "seconds": seconds}


def wait_for(path: str | Path) -> Step:
    """Wait until a file is there: the test decides when it goes on."""
    return {"do": "wait", "path": str(path)}


def touch(path: str | Path) -> Step:
    """Make an empty file, without using a tool: the test learns that it got here."""
    return {"do": "touch", "path": str(path)}


def starts_slowly(seconds: float) -> Step:
    """As the first step: wait before the first event."""
    return {"do": "slow_start", "seconds": seconds}


# ---------------------------------------------------------------- steps: limits


def retries(times: int = 1, *, status: int = 429, delay_s: float = 0.0) -> Step:
    """Report calls that the provider refused and that were repeated, then go on. gemini does so on stderr only."""
    return {"do": "retry", "times": times, "status": status, "delay_s": delay_s}


def is_limited(status: int = 429, text: str = "slow down", *, delay_s: float = 0.001, times: int = 1) -> Step:
    """Meet a limit: repeat the call as often as the environment allows, then end with an error result.

    Args:
        status: 429, 529 or 401 and so on.
        times: in how many runs of the session it happens; the next goes on with what follows.
    """
    return {"do": "limit", "status": status, "text": text, "delay_s": delay_s, "times": times}


def reaches_window(
    *, resets_in_s: int = 3600, resets_at_s: int = 0, kind: str = "five_hour", is_rejected: bool = True, times: int = 1
) -> Step:
    """Reach the quota of a window: end with an error result that says when it resets.

    Args:
        resets_at_s: wall clock, s since the epoch; 0 is `resets_in_s` from now.
        kind: of the window: `five_hour`, `seven_day`.
        is_rejected: False only warns, and the agent goes on.
        times: in how many runs of the session it happens.
    """
    facts = {"resets_in_s": resets_in_s, "resets_at_s": resets_at_s, "kind": kind}
    return {"do": "window", **facts, "is_rejected": is_rejected, "times": times}


# ---------------------------------------------------------------- steps: misbehaviour


def dies(*, times: int = 1) -> Step:
    """Kill itself with SIGKILL here, in the first `times` runs of the session."""
    return {"do": "die", "times": times}


def dies_at_line(line: int) -> Step:
    """As the first step: kill itself before it writes this line of its output (1 is the first); in the first run only."""
    return {"do": "die_at_line", "line": line}


def exits(code: int = 0) -> Step:
    """Exit here, without a result unless `ends` or `fails` came before."""
    return {"do": "exit", "code": code}


def refuses(code: int, text: str) -> Step:
    """As the first step: write `text` to stderr and exit before the first event, as without a credential (gemini: 41)."""
    return {"do": "refuse", "code": code, "text": text}


def hangs(*, times: int = 1_000_000) -> Step:
    """Never go on."""
    return {"do": "hang", "times": times}


def stops_itself() -> Step:
    """Stop with SIGSTOP; a SIGCONT lets it go on."""
    return {"do": "stop"}


def prints_nothing() -> Step:
    """As the first step: write no output at all in this run."""
    return {"do": "mute"}


def ignores_term() -> Step:
    """Ignore SIGTERM from here on."""
    return {"do": "ignore_term", "times": 1_000_000}


def forgets_session() -> Step:
    """Lose the transcript: the next resume does not know the session."""
    return {"do": "forget"}


def leaves_child(*, ignore_term: bool = True, holds_output: bool = True) -> Step:
    """Start a child that never ends by itself; with `holds_output` stdout stays open after the agent's own end."""
    return {"do": "child", "ignore_term": ignore_term, "holds_output": holds_output}


def leaves_daemon(*, ignore_term: bool = True, holds_output: bool = False) -> Step:
    """Start a daemon: out of the agent's process group and session, its parent gone."""
    return {"do": "daemon", "ignore_term": ignore_term, "holds_output": holds_output}


def floods(n_bytes: int, *, stderr: bool = False) -> Step:
    """Write `n_bytes` of JSON lines of 4 kB each that mean nothing."""
    return {"do": "flood", "bytes": n_bytes, "fd": 2 if stderr else 1}


def prints_garbage(data: str | None = None) -> Step:
    """Write lines that are no JSON, no objects, no UTF-8, or cut off; or `data`, as Latin-1."""
    return {"do": "garbage", "data": data}


def prints_half_line(text: str = '{"type":"result","subtype":"succ') -> Step:
    """Write a line without its end."""
    return {"do": "half_line", "text": text}


def prints_long_line(n_bytes: int = 10_000_000) -> Step:
    """Write one JSON line of this length."""
    return {"do": "long_line", "bytes": n_bytes}


def prints_raw(line: str, *, stderr: bool = False) -> Step:
    """Write a line as it stands."""
    return {"do": "raw", "text": line, "fd": 2 if stderr else 1}


def leaks(name: str) -> Step:
    """Print an environment variable of its own: in an event, on stderr, and on stderr again cut into two writes."""
    return {"do": "leak", "name": name}


def eats_memory(n_bytes: int) -> Step:
    """Take memory and keep it."""
    return {"do": "memory", "bytes": n_bytes}
