"""What a shape of the fake agent is: how it reads its command line, where its sessions are, and what its events look like.

claude, codex and gemini derive from it. What the real programs do not tell is told by nothing here either.
"""

from __future__ import annotations

from sennit.testing.fakeagent_parts import Journal, Output, Wanted
from sennit.testing.fakeagent_transcript import Transcript

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, ClassVar

Usage = dict[str, "int | float | None"]


class Shape:
    """One program's manners.

    Attributes:
        version: what --version prints.
        config: the environment variable of its folder of sessions.
        tools: its names for ours: append, write, read, commit, shell.
        has_hooks: PreToolUse hooks and leave for tools.
        says_result: its last event holds the text of the result; else that is the last thing said.
        dies_of_term: a TERM ends it as a signal and not with exit code 143.
    """

    version: ClassVar[str]
    config: ClassVar[str]
    tools: ClassVar[dict[str, str]]
    has_hooks: ClassVar[bool] = False
    says_result: ClassVar[bool] = False
    dies_of_term: ClassVar[bool] = False

    def __init__(self, output: Output) -> None:
        self.out = output
        self.session_id = ""
        self.model = "fake-1"

    # ---------------------------------------------------------------- before the first event

    def parse(self, argv: list[str]) -> Wanted:
        """Read the command line, and stdin where the prompt is there.

        Raises:
            Refused: as the real one refuses.
        """
        raise NotImplementedError

    def find(self, wanted: Wanted) -> Transcript:
        """Return the transcript of the session that is wanted, new or to go on with.

        Raises:
            Refused: it is in use, or unknown.
        """
        raise NotImplementedError

    def without_prompt(self, transcript: Transcript) -> None:
        """Go on without a prompt.

        Raises:
            Refused: it cannot.
        """

    def retries_max(self) -> int:
        """Return how often a refused call is repeated."""
        return 1

    # ---------------------------------------------------------------- events; what returns a dict returns it for the transcript

    def begin(self, transcript: Transcript, prompt: str | None) -> None:
        """Say which session this is."""
        raise NotImplementedError

    def say(self, text: str, *, is_thinking: bool = False) -> dict[str, Any]:
        """Say something."""
        raise NotImplementedError

    def tool_begin(self, call_id: str, tool: str, arguments: dict[str, Any]) -> None:
        """Begin to use a tool."""
        raise NotImplementedError

    def tool_end(self, call_id: str, tool: str, arguments: dict[str, Any], *, output: str, code: int) -> None:
        """End the use of a tool; a `code` other than 0 is an error."""
        raise NotImplementedError

    def denied(self, call_id: str, tool: str, arguments: dict[str, Any]) -> None:
        """Remember that leave was refused."""

    def retry(self, attempt: int, delay_s: float, status: int) -> None:
        """Say that a call was refused and will be repeated."""
        raise NotImplementedError

    def refused_call(self, status: int, text: str) -> str:
        """Say that the provider refuses for good; return the words of the result."""
        raise NotImplementedError

    def window(self, resets_at_s: int, *, is_rejected: bool, kind: str) -> str:
        """Tell of the quota of a window; return the words of the result."""
        raise NotImplementedError

    def result(
        self,
        text: str,
        *,
        is_error: bool,
        usage: Usage,
        before: list[int],
        status: int = 0,
        structured: object = None,
        deferred: dict[str, Any] | None = None,
        duration_s: float = 0.0,
    ) -> None:
        """Say the last word.

        Args:
            usage: of this run.  before: input, cached and output tokens of the session's runs before it.
            status: of HTTP, 0 for none.  deferred: the tool that waits for leave.
        """
        raise NotImplementedError

    def error_code(self, status: int) -> int:  # noqa: ARG002 - gemini's depends on it
        """Return the exit code after an error result."""
        return 1


class Run:
    """One process of a fake agent: what it is told, and where it writes."""

    def __init__(self, script: dict[str, Any], shape: Shape, journal: Journal, output: Output) -> None:
        self.script = script
        self.shape = shape
        self.journal = journal
        self.output = output
        self.wanted = Wanted()
        self.transcript = Transcript("", "")
