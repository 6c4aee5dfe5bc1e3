"""What a fake agent can do besides tools: talk, wait, report usage and limits, and misbehave in every way that was ever seen.

A fault is written down in the transcript before it happens and all else after, so that a resumed session does not run into
the same fault again, unless it is to happen in several runs (`times`).
"""

from __future__ import annotations

import os
import signal
import time

from sennit.testing.fakeagent_parts import Ended
from sennit.testing.fakeagent_shape import Run, Usage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

WAIT_S = 0.005
WORDS: dict[str, tuple[str, ...]] = {
    "say": ("text",),
    "think": ("text",),
    "append": ("path", "line"),
    "write": ("path", "content"),
    "commit": ("path", "content", "message"),
    "shell": ("command",),
    "tool": ("tool", "output"),
    "read": ("path",),
    "pause": ("seconds",),
    "wait": ("path",),
    "touch": ("path",),
    "usage": ("input_tokens", "output_tokens"),
    "retry": ("times", "status"),
    "limit": ("status", "text"),
    "window": ("resets_in_s",),
    "fail": ("text",),
    "result": ("text",),
    "exit": ("code",),
    "refuse": ("code", "text"),
    "raw": ("text",),
    "die_at_line": ("line",),
    "flood": ("bytes",),
    "long_line": ("bytes",),
    "leak": ("name",),
    "memory": ("bytes",),
    "die": (),
    "hang": (),
    "daemon": (),
    "child": (),
}
FAULTS = frozenset(
    {"die", "exit", "hang", "limit", "window", "fail", "die_at_line", "mute", "ignore_term", "forget", "stop", "refuse"}
)


class Steps:
    """Does the steps of one run.

    Attributes:
        code: of the exit, when nothing ends the run before.
    """

    def __init__(self, run: Run, todo: list[dict[str, Any]]) -> None:
        self.run = run
        self.todo = todo
        self.code = 0
        self.text = run.transcript.said
        self.usage: Usage = {"input_tokens": 0, "output_tokens": 0, "cached_input_tokens": 0, "cost_usd": None}
        self.has_result = False
        self.status = 0
        self._is_set = False
        self._started_s = time.monotonic()

    def key(self, number: int) -> str:
        """Return what the transcript calls a step of this turn."""
        return f"{self.run.transcript.key_prefix}{number}"

    def do(self, number: int, step: dict[str, Any]) -> None:
        """Do a step, unless the session has.

        Raises:
            Ended: with it the run is over.
        """
        verb = step["do"]
        key = self.key(number)
        if verb in self.run.shape.tools or verb == "tool":
            if not self.run.transcript.done.get(key):
                from sennit.testing.fakeagent_tools import use  # noqa: PLC0415 - only agents that use tools pay for it

                use(self, key, step)
                self.count()
            return
        times = 1 if verb == "retry" else step.get("times", 1)
        if self.run.transcript.done.get(key, 0) >= times:
            return
        action = getattr(self, f"_do_{verb}", None)
        if action is None:
            raise LookupError(f"the fake agent knows no step {verb!r}")
        if verb in FAULTS:
            self.run.transcript.note("step", key=key, do=verb)
            self.run.journal.note("step", key=key, do=verb)
            action(step)
            return
        beside = action(step)
        self.run.transcript.note("step", beside if isinstance(beside, dict) else None, key=key, do=verb, text=self.text)
        self.run.journal.note("step", key=key, do=verb)

    def use_deferred(self) -> None:
        """Use the tool that waited for leave, if this run is to."""
        if self.run.transcript.deferred and self.run.wanted.prompt is None:
            from sennit.testing.fakeagent_tools import use_deferred  # noqa: PLC0415

            use_deferred(self)

    def look_back(self) -> None:
        """Look at the tool uses that a run before this one began and left without an answer."""
        if self.run.transcript.begun:
            from sennit.testing.fakeagent_tools import look_back  # noqa: PLC0415

            look_back(self)

    def finish(self) -> None:
        """Give a successful result, if nobody gave one."""
        if not self.has_result:
            self.result(self.text, is_error=False)

    # ---------------------------------------------------------------- talk

    def _do_say(self, step: dict[str, Any]) -> dict[str, Any]:
        self.text = step["text"]
        self.count()
        return self.run.shape.say(self.text)

    def _do_think(self, step: dict[str, Any]) -> dict[str, Any]:
        return self.run.shape.say(step["text"], is_thinking=True)

    def _do_usage(self, step: dict[str, Any]) -> None:
        self._is_set = True
        self.usage.update({name: step[name] for name in self.usage if name in step})

    def _do_result(self, step: dict[str, Any]) -> None:
        self.result(step.get("text") or self.text, is_error=bool(step.get("is_error")))

    def _do_fail(self, step: dict[str, Any]) -> None:
        self.status = int(step.get("status", 0))
        self.result(step.get("text", "it did not work"), is_error=True)

    def _do_call(self, step: dict[str, Any]) -> dict[str, Any]:
        from sennit.testing.fakeagent_model import call  # noqa: PLC0415 - HTTP costs 40 ms of start

        return call(self, step)

    def answered(self, text: str, input_tokens: int, output_tokens: int) -> dict[str, Any]:
        """Say what a model answered, and count its tokens; return what the transcript keeps."""
        self.text = text
        self.count(input_tokens, output_tokens)
        return self.run.shape.say(text)

    def count(self, input_tokens: int = 10, output_tokens: int = 5) -> None:
        """Count a call of the model."""
        if not self._is_set:
            self.usage["input_tokens"] = int(self.usage["input_tokens"] or 0) + input_tokens
            self.usage["output_tokens"] = int(self.usage["output_tokens"] or 0) + output_tokens

    def result(self, text: str, *, is_error: bool = False, deferred: dict[str, Any] | None = None) -> None:
        """Give the result, or (`deferred`) say which tool waits for leave."""
        run = self.run
        self.has_result = True
        if not (is_error or run.shape.says_result or text == self.text):
            run.shape.say(text)
        before = list(run.transcript.usage)
        counted = [int(self.usage[name] or 0) for name in ("input_tokens", "cached_input_tokens", "output_tokens")]
        run.transcript.note("usage", usage=counted)
        if deferred is None:
            run.transcript.note("result", is_error=is_error, text=text)
            run.journal.note("result", text=text, is_error=is_error)
        if run.wanted.last_message:
            with open(run.wanted.last_message, "w", encoding="utf-8") as file:  # noqa: PTH123
                file.write(text)
        if run.wanted.is_json:
            run.shape.result(
                text,
                is_error=is_error,
                usage=self.usage,
                before=before,
                status=self.status,
                structured=run.script.get("structured") if run.wanted.has_schema and not is_error else None,
                deferred=deferred,
                duration_s=time.monotonic() - self._started_s,
            )
        else:
            run.output.raw(text.encode() + b"\n")
        self.code = run.shape.error_code(self.status) if is_error else 0

    # ---------------------------------------------------------------- wait

    def _do_pause(self, step: dict[str, Any]) -> None:
        # sleep: this program stands for a slow one
        time.sleep(float(step["seconds"]))

    def _do_slow_start(self, step: dict[str, Any]) -> None:
        self._do_pause(step)

    def _do_wait(self, step: dict[str, Any]) -> None:
        while not os.path.exists(step["path"]):  # noqa: PTH110 - pathlib costs 5 ms of start
            # sleep: the file comes from a test, and inotify would cost this small program more than a look every 5 ms
            time.sleep(WAIT_S)

    def _do_touch(self, step: dict[str, Any]) -> None:
        with open(step["path"], "a", encoding="utf-8"):  # noqa: PTH123
            pass

    # ---------------------------------------------------------------- limits

    def _do_retry(self, step: dict[str, Any]) -> None:
        for attempt in range(1, int(step.get("times", 1)) + 1):
            self.run.shape.retry(attempt, float(step.get("delay_s", 0.0)), int(step.get("status", 429)))
            self._do_pause({"seconds": step.get("delay_s", 0.0)})

    def _do_limit(self, step: dict[str, Any]) -> None:
        """Meet a limit, try again as often as the environment allows, then give up."""
        status = int(step.get("status", 429))
        delay_s = float(step.get("delay_s", 0.001))
        for attempt in range(1, self.run.shape.retries_max() + 1):
            self.run.shape.retry(attempt, delay_s, status)
            self._do_pause({"seconds": delay_s})
        self.give_up(status, step.get("text", "slow down"))

    def _do_window(self, step: dict[str, Any]) -> None:
        """Meet the quota of a window, or come near it (`is_rejected` false)."""
        resets_at_s = int(step.get("resets_at_s", 0)) or time.clock_gettime_ns(time.CLOCK_REALTIME) // 10**9 + int(
            step.get("resets_in_s", 3600)
        )
        is_rejected = bool(step.get("is_rejected", True))
        words = self.run.shape.window(resets_at_s, is_rejected=is_rejected, kind=step.get("kind", "five_hour"))
        if is_rejected:
            self.status = 429
            self.result(words, is_error=True)
            raise Ended(self.code)

    def give_up(self, status: int, text: str) -> None:
        """End the run because the provider refuses.

        Raises:
            Ended: always.
        """
        words = self.run.shape.refused_call(status, text)
        self.status = status
        self.result(words, is_error=True)
        raise Ended(self.code)

    # ---------------------------------------------------------------- misbehaviour

    def _do_die(self, step: dict[str, Any]) -> None:  # noqa: ARG002 - all steps are called alike
        os.kill(os.getpid(), signal.SIGKILL)

    def _do_stop(self, step: dict[str, Any]) -> None:  # noqa: ARG002 - all steps are called alike
        os.kill(os.getpid(), signal.SIGSTOP)

    def _do_refuse(self, step: dict[str, Any]) -> None:
        self.run.output.raw(str(step["text"]).encode() + b"\n", fd=2)
        raise Ended(int(step.get("code", 1)))

    def _do_die_at_line(self, step: dict[str, Any]) -> None:
        self.run.output.die_at_line = int(step["line"])

    def _do_exit(self, step: dict[str, Any]) -> None:
        raise Ended(int(step.get("code", 0)))

    def _do_hang(self, step: dict[str, Any]) -> None:  # noqa: ARG002 - all steps are called alike
        while True:
            signal.pause()

    def _do_mute(self, step: dict[str, Any]) -> None:  # noqa: ARG002 - all steps are called alike
        self.run.output.is_mute = True

    def _do_ignore_term(self, step: dict[str, Any]) -> None:  # noqa: ARG002 - all steps are called alike
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def _do_forget(self, step: dict[str, Any]) -> None:  # noqa: ARG002 - all steps are called alike
        self.run.transcript.forget()

    def _do_child(self, step: dict[str, Any]) -> None:
        self._leave(step, is_daemon=False)

    def _do_daemon(self, step: dict[str, Any]) -> None:
        self._leave(step, is_daemon=True)

    def _leave(self, step: dict[str, Any], *, is_daemon: bool) -> None:
        """Leave a process behind: a child, or a daemon in a session of its own whose parent is gone."""
        read, write = os.pipe()
        if pid := os.fork():
            os.close(write)
            told = b""
            while chunk := os.read(read, 64):
                told += chunk
            os.close(read)
            if is_daemon:
                os.waitpid(pid, 0)
            self.run.journal.note("spawned", child=int(told), is_daemon=is_daemon)
            return
        if is_daemon:
            os.setsid()
            if os.fork():
                os._exit(0)
        signal.signal(signal.SIGTERM, signal.SIG_IGN if step.get("ignore_term", True) else signal.SIG_DFL)
        os.write(write, str(os.getpid()).encode())
        os.close(write)
        if not step.get("holds_output", True):
            for fd in (0, 1, 2):
                os.close(fd)
        while True:
            signal.pause()

    def _do_flood(self, step: dict[str, Any]) -> None:
        head, tail = b'{"type":"noise","text":"', b'"}\n'
        line = head + b"x" * (4000 - len(head) - len(tail)) + tail
        block, left, fd = line * 16, int(step["bytes"]), int(step.get("fd", 1))
        while left >= len(line):
            some = block[: left // len(line) * len(line)]
            self.run.output.raw(some, fd=fd)
            left -= len(some)
        self.run.output.raw(b"x" * (left - 1) + b"\n" * bool(left), fd=fd)

    def _do_garbage(self, step: dict[str, Any]) -> None:
        data = step.get("data")
        default = b'\xff\xfe not utf-8 \x00\n{"type": "assist\n[1, 2]\n"text"\nnull\n{"type": 3}\n\n{"type":"result"\n'
        self.run.output.raw(default if data is None else data.encode("latin-1"))

    def _do_half_line(self, step: dict[str, Any]) -> None:
        self.run.output.raw(step.get("text", '{"type":"result","subtype":"succ').encode())

    def _do_long_line(self, step: dict[str, Any]) -> None:
        head, tail = b'{"type":"noise","text":"', b'"}\n'
        self.run.output.raw(head + b"x" * max(0, int(step["bytes"]) - len(head) - len(tail)) + tail)

    def _do_raw(self, step: dict[str, Any]) -> None:
        self.run.output.raw(step["text"].encode() + b"\n", fd=int(step.get("fd", 1)))

    def _do_leak(self, step: dict[str, Any]) -> None:
        """Print a variable of the environment: on stdout, on stderr, and cut in two writes."""
        value = os.environ.get(step["name"], "")
        self.text = f"the secret is {value}."
        self.run.shape.say(self.text)
        self.run.output.raw(f"the secret is {value}.\n".encode(), fd=2)
        half = len(value) // 2
        for part in (f"cut: {value[:half]}", f"{value[half:]}.\n"):
            self.run.output.raw(part.encode(), fd=2)
            # sleep: two writes that the reader does not see as one
            time.sleep(0.02)

    def _do_memory(self, step: dict[str, Any]) -> None:
        size = int(step["bytes"])
        block = bytearray(size)
        for page in range(0, size, 4096):
            block[page] = 1
        self._kept = block
