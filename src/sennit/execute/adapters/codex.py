"""Codex as a task: how its program is started, so that it fails quickly and its sessions survive it.

    new session      codex exec --json … -            < prompt       the first line names the thread: keep it at once
    after a crash    codex exec --json … resume ID -  < what it is to be told

All facts here were seen with codex 0.169.0:

- The options of `exec` also hold for `exec resume` when they stand before the word `resume`, where half of them are unknown.
- `stream_max_retries` of 1 or more makes it sleep for all of a 429's Retry-After inside the process, be it hours, without an
  event. `request_max_retries` repeats 5xx and broken connections, never a 429.
- The built-in provider `openai` takes neither ("Built-in providers cannot be overridden"), so we name one of our own that is
  the same but for them: `requires_openai_auth` uses the program's login or CODEX_API_KEY. It does not try WebSockets.
- Nobody can be asked while `exec` runs: what the sandbox forbids fails. There is no bound of turns or money.
- An unreachable provider is waited for without end ("waiting for network"), with an event now and then: bound the wall time.
- Besides its provider it calls chatgpt.com and github.com for plug-ins at its start; without a way there it goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from sennit.errors import SettingsError
from sennit.execute.adapters.base import AgentRun, Launch
from sennit.execute.adapters.checks import refuse_text_for_texts
from sennit.execute.adapters.codex_lines import CodexReader
from sennit.execute.adapters.lines import ARGUMENT_BYTES_MAX, write_private

Sandbox = Literal["read-only", "workspace-write", "danger-full-access"]

PASSES: Final = ("CODEX_API_KEY", "CODEX_HOME", "CODEX_CA_CERTIFICATE", "OPENAI_*", "SSL_CERT_FILE")
SECRETS: Final = ("CODEX_API_KEY", "OPENAI_API_KEY")

# What sennit says itself, or what would undo what it says: without its session files there is no way to go on.
_OURS: Final = frozenset(
    ["--cd", "--ephemeral", "--json", "--last", "--output-schema", "--skip-git-repo-check", "-C", "fork", "resume"]
)
OWN_PROVIDER: Final = "openai-sennit"


class Codex(msgspec.Struct, frozen=True, kw_only=True):
    """OpenAI's Codex, `codex`, from the npm package @openai/codex.

    Attributes:
        program: the file to run, or the name that is looked for on PATH.
        model: its name; "" is the program's own choice.
        effort: of reasoning, `minimal` … `high`; "" is the program's own.
        system_prompt: added to the program's own, as developer instructions. At most 100 KB.
        sandbox: what its commands may do. `danger-full-access` allows everything; keep it to sandboxes of your own.
        network: its commands may use the network in `workspace-write`.
        folders: it may write in besides its own.
        schema: JSON schema of the result (strict: all properties required, no others); the result is then `structured`.
        provider: an id out of its config.toml. "openai" is OpenAI, by the program's login or key, with few retries; None leaves
            provider and retries to the configuration.
        base_url: of a provider that speaks OpenAI's responses; instead of `provider`.
        key: the environment variable with the key for `base_url`; "" sends none.
        request_retries: of a request that failed with 5xx or a broken connection, in the process.
        stream_retries: of an answer that broke off, or was refused. From 1 on the program sleeps for all of a Retry-After.
        home: its folder of sessions, settings and login; None is what CODEX_HOME says, or ~/.codex. Its SQLite files have been
            seen to fail when many begin at once with one home (openai/codex 31184, 35555); each home needs a login, or a key.
        config: settings as in config.toml, dotted names; they win over its files.
        environ: set for the program.  environ_passes: let through from our own environment, besides `PASSES`.
        args: any other arguments of `codex exec`.

    Raises:
        SettingsError: `args` holds what sennit says itself, a number is below 0, or a text is too long for an argument.
    """

    program: str = "codex"
    model: str = ""
    effort: str = ""
    system_prompt: str = ""
    sandbox: Sandbox = "workspace-write"
    network: bool = False
    folders: tuple[str, ...] = ()
    schema: Mapping[str, Any] | None = None
    provider: str | None = "openai"
    base_url: str = ""
    key: str = ""
    request_retries: int = 1
    stream_retries: int = 0
    home: str | None = None
    config: Mapping[str, Any] = {}
    environ: Mapping[str, str] = {}
    environ_passes: tuple[str, ...] = ()
    args: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        refuse_text_for_texts(self)
        for name in ("request_retries", "stream_retries"):
            if getattr(self, name) < 0:
                raise SettingsError(f"{name} is {getattr(self, name)}; it must be at least 0", fix="0 is none")
        if said := sorted({arg.partition("=")[0] for arg in self.args} & _OURS):
            raise SettingsError(f"args holds {', '.join(said)}, which sennit says itself", fix="leave it out")
        longest = max(self._settings(), key=len, default="")
        if len(longest.encode("utf-8", "replace")) > ARGUMENT_BYTES_MAX:
            raise SettingsError(
                f"{longest.partition('=')[0]} is longer than {ARGUMENT_BYTES_MAX} bytes",
                why="the program takes it as an argument",
                fix="put it into AGENTS.md or config.toml",
            )

    @property
    def name(self) -> str:
        """Of the kind of program."""
        return "codex"

    @property
    def passes(self) -> tuple[str, ...]:
        """Environment variables that it needs besides the usual ones."""
        return PASSES + self.environ_passes + ((self.key,) if self.key else ())

    @property
    def secrets(self) -> tuple[str, ...]:
        """Environment variables among them whose values are never written down."""
        return SECRETS + ((self.key,) if self.key else ())

    def new_session_id(self) -> str:
        """Return "": the program chooses, and names it in its first line."""
        return ""

    def launch(self, run: AgentRun) -> Launch:
        """Return what to start; writes the schema into `run.folder`. The prompt goes in by stdin, as `-` says.

        Raises:
            SettingsError: it is to go on with a session without an id, or there is no prompt, which the program refuses.
            OSError: the file could not be written.
        """
        if run.is_resume and not run.session_id:
            raise SettingsError("codex cannot go on with a session without its id", fix="begin a new session")
        if not run.prompt:
            raise SettingsError(
                "codex needs a prompt in every run", why="nobody gives it leave while it has no process"
            )
        argv = [self.program, "exec", "--json", "--skip-git-repo-check", "-C", str(run.cwd), "-s", self.sandbox]
        if self.model:
            argv += ["-m", self.model]
        for folder in self.folders:
            argv += ["--add-dir", folder]
        if self.schema is not None:
            file = write_private(run.folder / "schema.json", msgspec.json.encode(self.schema).decode())
            argv += ["--output-schema", str(file)]
        for setting in self._settings():
            argv += ["-c", setting]
        argv += self.args
        if run.is_resume:
            argv += ["resume", run.session_id]
        return Launch(argv=(*argv, "-"), environ=self._environ(), stdin=run.prompt.encode("utf-8", "replace"))

    def reader(self, run: AgentRun) -> CodexReader:
        """Return a reader for this run."""
        return CodexReader(run, wants_structured=self.schema is not None)

    def _environ(self) -> dict[str, str]:
        home = {} if self.home is None else {"CODEX_HOME": str(Path(self.home).absolute())}
        return home | dict(self.environ)

    def _settings(self) -> list[str]:
        """Return the values of `-c`."""
        told: dict[str, Any] = {}
        if self.effort:
            told["model_reasoning_effort"] = self.effort
        if self.system_prompt:
            told["developer_instructions"] = self.system_prompt
        if self.network:
            told["sandbox_workspace_write.network_access"] = True
        told |= self._provider()
        return [f"{name}={toml(value)}" for name, value in (told | dict(self.config)).items()]

    def _provider(self) -> dict[str, Any]:
        name, table = OWN_PROVIDER, dict[str, Any]()
        if self.base_url:
            table |= {"name": OWN_PROVIDER, "base_url": self.base_url, "wire_api": "responses"}
            table |= {"env_key": self.key} if self.key else {}
        elif self.provider == "openai":
            table |= {"name": "OpenAI", "wire_api": "responses", "requires_openai_auth": True}
        elif self.provider is None:
            return {}
        else:
            name = self.provider
        table |= {"request_max_retries": self.request_retries, "stream_max_retries": self.stream_retries}
        return {"model_provider": name} | {f"model_providers.{name}.{key}": value for key, value in table.items()}


def toml(value: object) -> str:
    """Return a value as TOML writes it: JSON but for tables.

    Raises:
        SettingsError: TOML has no such value.
    """
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{toml(str(key))} = {toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml(inner) for inner in value) + "]"
    if isinstance(value, str):
        clean = value.encode("utf-8", "replace").decode()
        return msgspec.json.encode(clean).decode().replace("\x7f", "\\u007F")
    if isinstance(value, bool | int | float):
        return msgspec.json.encode(value).decode()
    raise SettingsError(f"config holds {value!r}, and TOML has no such value", fix="leave the setting out")
