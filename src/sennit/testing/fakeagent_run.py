"""One run of a fake agent: from its command line to its exit.

    argv ─shape.parse─► Wanted ─shape.find─► Transcript ─► steps that the transcript does not hold yet ─► result, exit
                                                             (what a step does: fakeagent_steps, fakeagent_tools)

A prompt is a turn. Its steps are the lines `fake: …` in it, else `turns[n]` of the script, else `otherwise`. A turn without a
successful result is gone on with by the next run, whatever prompt that brings: each step is done once per session.
"""

from __future__ import annotations

import json
import os
import signal
import sys

from sennit.testing.fakeagent_claude import Claude
from sennit.testing.fakeagent_parts import SIGTERM_CODE, Ended, Journal, Output, Refused
from sennit.testing.fakeagent_shape import Run, Shape
from sennit.testing.fakeagent_steps import Steps
from sennit.testing.fakeagent_transcript import Transcript

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import Any, NoReturn

DIRECTIVE = "fake: "
EARLY = frozenset(
    {"mute", "ignore_term", "die_at_line", "slow_start", "refuse"}
)  # at the head of a turn they come before the first event


def main(folder: str, argv: list[str]) -> NoReturn:
    """Run, and end the process without the interpreter's own farewell."""
    code = 70
    try:
        code = _run(folder, argv)
    except BrokenPipeError:
        code = 1  # nobody reads any more
    except Exception:  # noqa: BLE001 - whatever it is, it is told and ends the process
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


def _run(folder: str, argv: list[str]) -> int:
    script = _script(folder)
    journal = Journal(os.environ.get("SENNIT_FAKE_LOG") or f"{folder}/log.jsonl")
    journal.note("start", argv=argv, cwd=os.getcwd(), ppid=os.getppid(), environ=sorted(os.environ))  # noqa: PTH109
    output = Output()
    shape = _shape(script.get("shape", "claude"), output)
    if argv[:1] in (["--version"], ["-V"], ["-v"]):
        output.raw(f"{script.get('version') or shape.version}\n".encode())
        return 0
    os.environ.setdefault(shape.config, f"{folder}/config")  # never in the folder of the user's own sessions
    if not shape.dies_of_term:
        _answer_term(journal)
    run = Run(script, shape, journal, output)
    try:
        wanted = run.wanted = shape.parse(argv)
        output.is_json = wanted.is_json
        transcript = run.transcript = shape.find(wanted)
        if wanted.is_resume:
            transcript.load()
            if wanted.prompt is None:
                shape.without_prompt(transcript)
    except Refused as refused:
        for event in refused.out:
            output.event(event)
        output.raw(refused.err.encode(), fd=2)
        journal.note("refused", code=refused.code, text=refused.err)
        return refused.code
    code = _work(run)
    journal.note("end", code=code)
    return code


def _answer_term(journal: Journal) -> None:
    def on_term(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature of a handler
        journal.note("signal", signal=number)
        os._exit(SIGTERM_CODE)

    signal.signal(signal.SIGTERM, on_term)


def _work(run: Run) -> int:
    """Do the steps of this run; return the exit code."""
    prompt, transcript, journal = run.wanted.prompt, run.transcript, run.journal
    journal.session_id = transcript.session_id
    transcript.note("run", pid=os.getpid())
    journal.run = transcript.runs
    if prompt is not None:
        beside = {"type": "user", "message": {"role": "user", "content": prompt}, "sessionId": transcript.session_id}
        transcript.note("user", beside, text=prompt, is_turn=transcript.is_finished or not transcript.turns)
    journal.note("prompt", text=prompt, turn=len(transcript.turns) - 1)
    todo = _plan(run.script, transcript)
    steps = Steps(run, todo)
    early = 0
    try:
        while early < len(todo) and todo[early]["do"] in EARLY:
            steps.do(early, todo[early])
            early += 1
        steps.use_deferred()  # the real one does so before its first event
        run.shape.begin(transcript, prompt)
        steps.look_back()
        for number, step in enumerate(todo[early:], early):
            steps.do(number, step)
        steps.finish()
    except Ended as ended:
        return ended.code
    return steps.code


def _plan(script: dict[str, Any], transcript: Transcript) -> list[dict[str, Any]]:
    """Return the steps of the current turn."""
    prompt = transcript.turns[-1] if transcript.turns else ""
    directed = [
        _directive(line.strip()[len(DIRECTIVE) :]) for line in prompt.splitlines() if line.strip().startswith(DIRECTIVE)
    ]
    if directed:
        return directed
    turns = script.get("turns") or []
    number = len(transcript.turns) - 1
    chosen = turns[number] if 0 <= number < len(turns) else script.get("otherwise") or [{"do": "say", "text": "done"}]
    return [dict(step) for step in chosen]


def _directive(text: str) -> dict[str, Any]:
    """Read `{"do": …}` or `verb word word key=value`, quoted as in a shell."""
    if text.startswith("{"):
        step: dict[str, Any] = json.loads(text)
        return step
    import shlex  # noqa: PLC0415 - 3 ms of start, seldom needed

    from sennit.testing.fakeagent_steps import WORDS  # noqa: PLC0415

    verb, *words = shlex.split(text)
    step = {"do": verb}
    names = list(WORDS.get(verb, ()))
    for word in words:
        name, is_named, value = word.partition("=")
        if not (is_named and name.isidentifier()):
            name, value = (names.pop(0) if names else "text"), word
        elif name in names:
            names.remove(name)
        number = value.lstrip("-").replace(".", "", 1).isdigit()
        step[name] = (
            (float(value) if "." in value else int(value))
            if number and name not in {"text", "line", "content"}
            else value
        )
    return step


def _script(folder: str) -> dict[str, Any]:
    """Read what to do: SENNIT_FAKE_AGENT (JSON, or @FILE) before FOLDER/script.json."""
    text = os.environ.get("SENNIT_FAKE_AGENT", "")
    path = text[1:] if text.startswith("@") else f"{folder}/script.json"
    if not text or text.startswith("@"):
        try:
            with open(path, encoding="utf-8") as file:  # noqa: PTH123 - pathlib costs 5 ms of start
                text = file.read()
        except FileNotFoundError:
            text = "{}"
    script: dict[str, Any] = json.loads(text)
    return script


def _shape(name: str, output: Output) -> Shape:
    if name == "claude":
        return Claude(output)
    if name == "codex":
        from sennit.testing.fakeagent_codex import Codex  # noqa: PLC0415 - a run needs one shape

        return Codex(output)
    from sennit.testing.fakeagent_gemini import Gemini  # noqa: PLC0415 - a run needs one shape

    return Gemini(output)
