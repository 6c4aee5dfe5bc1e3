"""What an app offers about coding agents: `app.agent(…)` makes a handler of a program; the part of `App` about them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar, Unpack, cast, overload

from sennit.errors import SettingsError
from sennit.execute.adapters.base import Adapter
from sennit.execute.adapters.checks import checked_texts
from sennit.execute.adapters.command import Command
from sennit.model.agent import AgentResult, Ceilings
from sennit.model.retry import RetryPolicy
from sennit.runtime.agent_body import AgentKind, work
from sennit.runtime.agent_crew import AGENTS_QUEUE, AgentStatistics, Crew
from sennit.runtime.agent_places import OnSuccess, Workplaces
from sennit.runtime.agent_words import Prompt
from sennit.runtime.lock_face import LockFace
from sennit.runtime.places import agents_in
from sennit.store.protocol import Store
from sennit.submit.handle import Handle
from sennit.submit.limits import Provider
from sennit.submit.options import SubmitOptions
from sennit.submit.registry import Call, Task

__all__ = ["AgentFace", "AgentTask"]

P = ParamSpec("P")
T = TypeVar("T")
_CEILINGS = Ceilings()


class AgentTask(Task[..., AgentResult]):
    """A coding agent as a handler: `submit` takes the prompt and where to work. All else is as for any task."""

    def submit(
        self, prompt: str, *, context: Any = None, cwd: str | None = None, resume: AgentResult | str | None = None
    ) -> Handle[AgentResult]:
        """Hand in one task for the agent.

        Args:
            context: results of other tasks, shown below the prompt: handles of them make this task wait for them.
            cwd: the folder to work in; default: that of `app.agent`.
            resume: go on with the session of another task: its id, its result, or a handle of that.

        Raises:
            PayloadError, QueueFull, ThreadBusy, SubmitError: as for any task.
        """
        return super().submit(prompt, context=context, cwd=cwd, resume=resume)

    def call(
        self, prompt: str, *, context: Any = None, cwd: str | None = None, resume: AgentResult | str | None = None
    ) -> Call:
        """Return the call without handing it in, for `app.submit_many`."""
        return super().call(prompt, context=context, cwd=cwd, resume=resume)

    def options(self, **changes: Unpack[SubmitOptions]) -> AgentTask:
        """Return this agent with other options.

        Raises:
            SettingsError: an unknown option or a value out of its bounds.
        """
        return AgentTask(self._client, self.handler, self._options.replaced(changes))


class AgentFace(LockFace):
    """Declares coding agents."""

    url: str
    _store: Store | None
    _queues: dict[str, int]
    _register: Callable[[Callable[..., Any], Mapping[str, Any]], Task[Any, Any]]

    def _new_crew(self) -> Crew:
        return Crew(lambda: self.settings, lambda: agents_in(self.url, self.settings), lambda: self._store)

    _crew: Crew

    @overload
    def agent(
        self,
        name: str,
        adapter: Adapter | Sequence[str],
        *,
        cwd: str | Path | None = ...,
        at_once: int | None = ...,
        retries: int | RetryPolicy = ...,
        provider: Provider | str | None = ...,
        ceilings: Ceilings = ...,
        timeout_s: float | None = ...,
        isolate: Literal["", "worktree"] = ...,
        base: str = ...,
        on_success: OnSuccess = ...,
        on_retry: Literal["resume", "restart"] = ...,
        approve_s: float | None = ...,
        environ: Mapping[str, str] | None = ...,
        passes: Sequence[str] = ...,
        secrets: Sequence[str] = ...,
        options: SubmitOptions | None = ...,
    ) -> AgentTask: ...
    @overload
    def agent(
        self,
        name: str,
        adapter: Adapter | Sequence[str],
        *,
        prompt: Callable[P, str | Prompt],
        cwd: str | Path | None = ...,
        at_once: int | None = ...,
        retries: int | RetryPolicy = ...,
        provider: Provider | str | None = ...,
        ceilings: Ceilings = ...,
        timeout_s: float | None = ...,
        isolate: Literal["", "worktree"] = ...,
        base: str = ...,
        on_success: OnSuccess = ...,
        on_retry: Literal["resume", "restart"] = ...,
        approve_s: float | None = ...,
        environ: Mapping[str, str] | None = ...,
        passes: Sequence[str] = ...,
        secrets: Sequence[str] = ...,
        options: SubmitOptions | None = ...,
    ) -> Task[P, AgentResult]: ...
    def agent(
        self,
        name: str,
        adapter: Adapter | Sequence[str],
        *,
        prompt: Callable[..., str | Prompt] | None = None,
        cwd: str | Path | None = None,
        at_once: int | None = None,
        retries: int | RetryPolicy = 2,
        provider: Provider | str | None = None,
        ceilings: Ceilings = _CEILINGS,
        timeout_s: float | None = None,
        isolate: Literal["", "worktree"] = "",
        base: str = "HEAD",
        on_success: OnSuccess = "leave",
        on_retry: Literal["resume", "restart"] = "resume",
        approve_s: float | None = None,
        environ: Mapping[str, str] | None = None,
        passes: Sequence[str] = (),
        secrets: Sequence[str] = (),
        options: SubmitOptions | None = None,
    ) -> Task[..., AgentResult]:
        """Make a handler of a coding agent's program; its tasks are submitted like those of any other.

            coder = app.agent("coder", Claude(), provider=claude, isolate="worktree", on_success="merge")
            done = coder.submit("make the tests pass")

        The program is supervised: its whole tree of processes ends when the attempt does, also after kill -9 of this
        process. A later attempt goes on with the program's own session.

        Args:
            name: of the handler.
            adapter: `Claude()`, `Codex()`, `Gemini()`, `Acp([…])`, `Command([…])`, or simply a command line.
            prompt: a function that makes the prompt; then `submit` takes its parameters. Without it `submit` takes the text.
            cwd: the folder to work in; default: that of the worker.
            at_once: how many of it each process runs; the agent then has a queue of its own, `agents.NAME`. Default: it
                shares the queue `agents` with the others, which has as many slots as the setting `agents_max` says.
            retries: after a failed run; a provider's limit is none.
            provider: whose limits and budgets hold; what the program tells of refused calls is passed on to it.
            ceilings: of one run: time, silence, memory, output.
            timeout_s: per attempt, waiting for a place included.
            isolate: `worktree` gives each task a git worktree and a branch of its own, made from `base`.
            on_success: what becomes of that branch: it is left, merged, or made a pull request. A failed task's worktree is
                kept until somebody releases it.
            on_retry: `resume` goes on with the session, `restart` begins a new one.
            approve_s: how long a person may take to give leave for a tool; None is for ever.
            environ: set for the program.  passes: variables of this process that it may see, beside those of its adapter.
            secrets: values that are never written down.
            options: defaults for everything else a submit can say.

        Raises:
            SettingsError: the name is taken, or an option is wrong.
        """
        if not name:
            raise SettingsError(f"an agent cannot be called {name!r}", fix="give it a name")
        if not isinstance(ceilings, Ceilings):
            raise SettingsError(f"agent {name!r} has ceilings={ceilings!r}", fix="give Ceilings(wall_s=…, idle_s=…)")
        if approve_s is not None and not approve_s > 0:
            raise SettingsError(f"agent {name!r} has approve_s={approve_s!r}", fix="give seconds above 0, or None")
        kind = AgentKind(
            name=name,
            adapter=_adapter(name, adapter),
            ceilings=ceilings,
            cwd=None if cwd is None else Path(cwd).expanduser().absolute(),
            environ=dict(environ or {}),
            passes=checked_texts("passes", passes),
            secrets=checked_texts("secrets", secrets),
            provider="" if provider is None else getattr(provider, "name", str(provider)),
            isolate=_one_of(name, "isolate", isolate, ("", "worktree")),
            on_success=_one_of(name, "on_success", on_success, ("leave", "merge", "pull-request")),
            base=base,
            on_retry=_one_of(name, "on_retry", on_retry, ("resume", "restart")),
            approve_s=approve_s,
        )
        if kind.on_success != "leave" and not kind.isolate:
            raise SettingsError(
                f"agent {name!r} has on_success={on_success!r} and no worktree",
                fix='add isolate="worktree", or leave on_success out',
            )
        known = self._crew.adapters.get(name)
        if known is not None and known != kind.adapter:
            raise SettingsError(f"two agents are called {name!r}", fix="give one of them another name")
        queue = AGENTS_QUEUE
        if at_once is not None:
            if at_once < 1:
                raise SettingsError(f"agent {name!r} has at_once={at_once}", fix="give a number of at least 1")
            queue = f"{AGENTS_QUEUE}.{name}"
            self._queues[queue] = at_once
        function = self._body(kind) if prompt is None else self._body_from(kind, prompt)
        how: dict[str, Any] = {
            "name": name, "queue": queue, "retries": retries, "timeout_s": timeout_s, "provider": provider, "options": options,
        }  # fmt: skip
        task = self._register(function, how)
        self._crew.adapters[name] = kind.adapter
        if prompt is not None:
            return task
        return AgentTask(task._client, task.handler, task.options_in_force)  # noqa: SLF001 - one house

    async def land(self, result: AgentResult, on_success: OnSuccess = "merge") -> AgentResult:
        """Merge the branch that a task's agent left, or make a pull request of it, when that was to be decided first.

        Return the result as it is then: `merged`, or `note` says why not; nothing is lost. Repeating it is harmless.

        Raises:
            AgentError: the task had no worktree, or it is gone.
            WorktreeError: git could not look.
        """
        landed = await Workplaces(self._crew.folder / "worktrees").land(result, on_success)
        if not landed.worktree:
            await self.store.release_agent(result.task_id)
        return landed

    def agent_statistics(self) -> AgentStatistics:
        """Return what the agents of this process do now."""
        return self._crew.statistics()

    def _body(self, kind: AgentKind) -> Callable[..., Any]:
        async def agent(
            prompt: str, context: Any = None, cwd: str | None = None, resume: AgentResult | str | None = None
        ) -> Any:
            return await self._work(kind, Prompt(text=prompt, context=context, cwd=cwd, resume=resume))

        agent.__name__ = agent.__qualname__ = kind.name
        agent.__annotations__["return"] = AgentResult  # a Snooze is no result
        return agent

    def _body_from(self, kind: AgentKind, make: Callable[..., str | Prompt]) -> Callable[..., Any]:
        @functools.wraps(make)
        async def agent(*args: Any, **kwargs: Any) -> Any:
            said = make(*args, **kwargs)
            if inspect.isawaitable(said):
                said = await said
            return await self._work(kind, said if isinstance(said, Prompt) else Prompt(text=str(said)))

        agent.__annotations__ = {**make.__annotations__, "return": AgentResult}
        signature = inspect.signature(make)
        agent.__signature__ = signature.replace(return_annotation=AgentResult)  # type: ignore[attr-defined]
        return agent

    async def _work(self, kind: AgentKind, prompt: Prompt) -> Any:
        return await work(
            kind,
            prompt,
            crew=self._crew,
            store=lambda: self.store,
            limits=self._providers.limits,
            workplaces=Workplaces(self._crew.folder / "worktrees"),
        )


def _adapter(name: str, given: Adapter | Sequence[str]) -> Adapter:
    if isinstance(given, str):
        raise SettingsError(
            f"agent {name!r} has {given!r} for an adapter", fix="give Claude(), Command([…]) or a list of words"
        )
    if isinstance(given, (list, tuple)):
        return Command(tuple(given))
    if isinstance(given, type) or not callable(getattr(given, "launch", None)):
        raise SettingsError(f"agent {name!r} has {given!r} for an adapter", fix="give Claude(), Codex(), Command([…])")
    return cast("Adapter", given)


def _one_of(name: str, option: str, value: T, known: tuple[T, ...]) -> T:
    if value not in known:
        raise SettingsError(f"agent {name!r} has {option}={value!r}", fix=f"it is one of {', '.join(map(repr, known))}")
    return value
