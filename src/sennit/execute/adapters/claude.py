"""Claude Code as a task: how its program is started, so that its sessions survive it and people can be asked.

    new session      claude -p --session-id UUID (ours)   < prompt
    after a crash    claude -p --resume UUID              < what it is to be told
    after leave      claude -p --resume UUID              < nothing: it asks its hook again, and goes on from there

A tool of `approve` needs a person. The hook (`claude_hook`) defers such a call: the program ends with exit 0, and nothing
of it runs until a person has said yes or no, be it a week later on another machine with the same session files.

All facts here and in `claude_lines` were seen with claude 2.1.197:

- A call that is deferred ends the turn, and the last deferred one is named in the result. On `--resume` without a prompt the
  hook is asked about it once more. Earlier deferred calls of that turn are dropped from the conversation; and when a call
  after it in the same turn had a result, its own result is lost on the way to the model. So leave for these is bound to
  tool and input and not to the call, and the model is brought to make them again.
- A hook that fails in any way but exit 2 lets the tool run, a project's `disableAllHooks` turns off all hooks, and so do
  `--bare` and CLAUDE_CODE_SIMPLE. Our settings file and `|| exit 2` shut these doors.
- A deferred call inside a subagent only ends the subagent, with nothing to report: the hook refuses there, in words.
- `--session-id` of a session that exists is refused ("already in use"), `--resume` of one that does not too ("No
  conversation found"); several `--resume` of one session at once are not refused: the lock is ours to hold.
- CLAUDE_CODE_MAX_RETRIES is obeyed; without it a 429 is tried 10 times over minutes.
- Its session file is behind what it says: after kill -9 in the first call the prompt was lost in 6 of 6 sessions, and kept
  in 6 of 6 with CLAUDE_CODE_EAGER_FLUSH, which we set. Tool uses of the last tenth of a second may still be missing.
"""

from __future__ import annotations

import re
import shlex
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from sennit.errors import SettingsError
from sennit.execute.adapters import claude_hook
from sennit.execute.adapters.base import AgentRun, Launch
from sennit.execute.adapters.checks import refuse_text_for_texts
from sennit.execute.adapters.claude_lines import ClaudeReader
from sennit.execute.adapters.lines import ARGUMENT_BYTES_MAX, write_private

PermissionMode = Literal["", "acceptEdits", "auto", "bypassPermissions", "default", "dontAsk", "plan"]

PASSES: Final = (
    "ANTHROPIC_*",
    "CLAUDE_CODE_OAUTH_TOKEN",
    "CLAUDE_CODE_USE_*",
    "CLAUDE_CONFIG_DIR",
    "NODE_EXTRA_CA_CERTS",
)
SECRETS: Final = ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_CUSTOM_HEADERS", "CLAUDE_CODE_OAUTH_TOKEN")

# What sennit says itself, or what would undo what it says.
_OURS: Final = frozenset(
    [
        "--bg",
        "--background",
        "--continue",
        "-c",
        "--fork-session",
        "--input-format",
        "--no-session-persistence",
        "--output-format",
        "--print",
        "-p",
        "--resume",
        "-r",
        "--session-id",
        "--verbose",
    ]
)
# These turn off hooks, or take the place of the settings that name ours.
_AGAINST_HOOKS: Final = frozenset({"--bare", "--safe-mode", "--settings"})

# The hook takes 30 ms; on a machine that is so busy that it takes minutes it must still be waited for.
HOOK_TIMEOUT_S: Final = 600


class Claude(msgspec.Struct, frozen=True, kw_only=True):
    """Claude Code, `claude`, from the npm package @anthropic-ai/claude-code.

    Attributes:
        program: the file to run, or the name that is looked for on PATH.
        model: an alias or a full name; "" is the program's own choice.  model_fallback: when that is overloaded.
        effort: `low` … `max`; "" is the program's own.
        system_prompt: added to the program's own.
        permission_mode: what it may do unasked; "" is what its settings say. Nobody can be asked while it runs: without leave
            a tool is refused. `bypassPermissions` allows everything; keep it to sandboxes. `approve` holds in each of them.
        tools: the built-in tools that there are; None is all, () is none.
        tools_allowed, tools_denied: patterns such as `Bash(git log:*)`, allowed or denied without asking.
        approve: tools that need a person, each time: `Bash`, `Write(deploy/*)`, `Bash(git push*)`, `mcp__server__*`. The agent
            ends and waits without a process. A glob in parentheses is matched with the command (and with each command of a
            line), the path (also relative to the folder), or the input as JSON. A model can write a command in ways that no
            glob foresees: where it matters name the tool, not the command.
        turns_max: of the model, in one run; 0 is no bound.
        budget_usd: what one run may spend; 0 is no bound. The program looks after each answer, so the last one may exceed it.
        schema: JSON schema of the result; the result is then `structured`, and a run without one is no success.
        folders: it may work in besides its own.
        mcp_config: files or JSON of MCP servers.
        settings: of the program, besides those of its files, over which they win.
        retries: of a call that the provider refuses, in the process. Few, for the fleet does the waiting.
        config_folder: of the program: its sessions, settings, login; None is what CLAUDE_CONFIG_DIR says, or ~/.claude.
        environ: set for the program.  environ_passes: let through from our own environment, besides `PASSES`.
        args: any other arguments.

    Raises:
        SettingsError: `args` holds what sennit says itself, a number is below 0, or a pattern is none.
    """

    program: str = "claude"
    model: str = ""
    model_fallback: str = ""
    effort: str = ""
    system_prompt: str = ""
    permission_mode: PermissionMode = ""
    tools: tuple[str, ...] | None = None
    tools_allowed: tuple[str, ...] = ()
    tools_denied: tuple[str, ...] = ()
    approve: tuple[str, ...] = ()
    turns_max: int = 0
    budget_usd: float = 0.0
    schema: Mapping[str, Any] | None = None
    folders: tuple[str, ...] = ()
    mcp_config: tuple[str, ...] = ()
    settings: Mapping[str, Any] = {}
    retries: int = 1
    config_folder: str | None = None
    environ: Mapping[str, str] = {}
    environ_passes: tuple[str, ...] = ()
    args: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        refuse_text_for_texts(self)
        for name in ("turns_max", "budget_usd", "retries"):
            if getattr(self, name) < 0:
                raise SettingsError(f"{name} is {getattr(self, name)}; it must be at least 0", fix="0 is no bound")
        flags = {arg.partition("=")[0] for arg in self.args}
        if said := sorted(flags & _OURS):
            raise SettingsError(f"args holds {', '.join(said)}, which sennit says itself", fix="leave it out")
        if self.approve and (said := sorted(flags & _AGAINST_HOOKS)):
            raise SettingsError(
                f"args holds {', '.join(said)}, and approve= needs a hook",
                why="it would turn off the hook, and all tools would run unasked",
                fix="give settings= instead of --settings, and leave out the others",
            )
        if wrong := [pattern for pattern in self.approve if claude_hook.split_pattern(pattern) is None]:
            raise SettingsError(
                f"approve holds {wrong[0]!r}, which is no pattern", fix="write `Tool` or `Tool(glob)`, such as `Bash`"
            )
        if self.schema is not None and len(msgspec.json.encode(self.schema)) > ARGUMENT_BYTES_MAX:
            raise SettingsError(
                f"schema is longer than {ARGUMENT_BYTES_MAX} bytes of JSON", why="the program takes it as an argument"
            )

    @property
    def name(self) -> str:
        """Of the kind of program."""
        return "claude"

    @property
    def passes(self) -> tuple[str, ...]:
        """Environment variables that it needs besides the usual ones."""
        return PASSES + self.environ_passes

    @property
    def secrets(self) -> tuple[str, ...]:
        """Environment variables among them whose values are never written down."""
        return SECRETS

    def new_session_id(self) -> str:
        """Return an id for a new session: the program takes a UUID."""
        return str(uuid.uuid4())

    def launch(self, run: AgentRun) -> Launch:
        """Return what to start; writes the settings, the approvals and a long system prompt into `run.folder`.

        The prompt goes in by stdin: an argument may have 128 KiB at most, and every user of the machine can read it.

        Raises:
            SettingsError: there is no session id.
            OSError: a file could not be written.
        """
        if not run.session_id:
            raise SettingsError("a run of claude needs a session id", fix="take one from new_session_id()")
        session = ("--resume" if run.is_resume else "--session-id", run.session_id)
        argv = (self.program, "-p", "--output-format", "stream-json", "--verbose", *session)
        return Launch(
            argv=(*argv, *self._options(run), *self.args),
            environ=self._environ(),
            stdin=run.prompt.encode("utf-8", "replace") if run.prompt else None,
        )

    def reader(self, run: AgentRun) -> ClaudeReader:
        """Return a reader for this run."""
        return ClaudeReader(run, wants_structured=self.schema is not None)

    def _environ(self) -> dict[str, str]:
        environ = {
            "CLAUDE_CODE_EAGER_FLUSH": "1",
            "CLAUDE_CODE_MAX_RETRIES": str(self.retries),
            "DISABLE_AUTOUPDATER": "1",  # not while others run from the same files
        }
        if self.config_folder is not None:
            environ["CLAUDE_CONFIG_DIR"] = self.config_folder
        environ |= self.environ
        if self.approve:  # both turn off hooks
            environ |= {"CLAUDE_CODE_SIMPLE": "", "CLAUDE_CODE_SAFE_MODE": ""}
        return environ

    def _options(self, run: AgentRun) -> list[str]:
        options = []
        for flag, value in (
            ("--model", self.model),
            ("--fallback-model", self.model_fallback),
            ("--effort", self.effort),
            ("--permission-mode", self.permission_mode),
            ("--max-turns", str(self.turns_max or "")),
            ("--max-budget-usd", str(self.budget_usd or "")),
            ("--json-schema", "" if self.schema is None else msgspec.json.encode(self.schema).decode()),
        ):
            if value:
                options += [flag, value]
        for flag, values in (
            ("--allowedTools", self.tools_allowed),
            ("--disallowedTools", self.tools_denied),
            ("--add-dir", self.folders),
            ("--mcp-config", self.mcp_config),
        ):
            if values:
                options += [flag, *values]
        if self.tools is not None:
            options += ["--tools", ",".join(self.tools)]
        if self.system_prompt:
            # As a file, for the same reasons as the prompt.
            options += [
                "--append-system-prompt-file",
                str(write_private(run.folder / "system.txt", self.system_prompt)),
            ]
        settings = self._settings(run)
        if settings:
            text = msgspec.json.encode(settings).decode()
            options += ["--settings", str(write_private(run.folder / "settings.json", text))]
        return options

    def _settings(self, run: AgentRun) -> dict[str, Any]:
        """Return the settings for one run, with the hook in them where people are to be asked; writes what it reads."""
        settings = dict(self.settings)
        if not self.approve:
            return settings
        approvals = {"approve": self.approve, "decisions": run.decisions}
        write_private(run.folder / claude_hook.APPROVALS, msgspec.json.encode(approvals).decode())
        program = [sys.executable, "-I", "-S", str(Path(claude_hook.__file__).absolute()), str(run.folder.absolute())]
        hook = {"type": "command", "command": f"{shlex.join(program)} || exit 2", "timeout": HOOK_TIMEOUT_S}
        hooks = dict(settings.get("hooks") or {})
        hooks["PreToolUse"] = [*hooks.get("PreToolUse", []), {"matcher": self._matcher(), "hooks": [hook]}]
        return settings | {"hooks": hooks, "disableAllHooks": False}

    def _matcher(self) -> str:
        """Return the tools that the hook is asked about: all, where a name is a glob."""
        names = [split[0] for pattern in self.approve if (split := claude_hook.split_pattern(pattern))]
        return "|".join(names) if all(re.fullmatch(r"\w+", name) for name in names) else "*"
