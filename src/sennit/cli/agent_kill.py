"""Ending the process of an agent, and surely that one: a pid alone may name somebody else by now.

pidfd_open ─► who is it? (host, boot, start time) ─► SIGKILL through the descriptor, which cannot change hands
"""

from __future__ import annotations

import os
import select
import signal
from contextlib import closing
from typing import Literal

from sennit.cli.agent_view import is_here, process_of
from sennit.errors import AgentError
from sennit.model.agent import AgentView

Killed = Literal["killed", "dying", "none"]


def kill_process(view: AgentView, *, gone_s: float) -> Killed:
    """Kill the process of the last run of an agent, and wait until it is gone, so long at most.

    Raises:
        AgentError: it runs on another host, or belongs to another user.
    """
    if not view.is_live or not view.pid:
        return "none"
    if not is_here(view):
        raise AgentError(
            f"the agent of task {view.task_id} runs on {view.host}, and not here",
            agent=view.agent,
            why="a process can be ended only on its own host",
            fix=f"there: sennit agents kill {view.task_id}; or from here `sennit agents stop {view.task_id}`",
        )
    try:
        descriptor = os.pidfd_open(view.pid)
    except ProcessLookupError:
        return "none"
    with closing(os.fdopen(descriptor)) as process:
        if process_of(view) != "runs":  # looked at now: while the descriptor is open its pid is nobody else's
            return "none"
        try:
            signal.pidfd_send_signal(process.fileno(), signal.SIGKILL)
        except ProcessLookupError:
            return "none"
        except PermissionError as error:
            raise AgentError(
                f"process {view.pid} of the agent of task {view.task_id} may not be killed by this user",
                agent=view.agent,
                fix=f"as the user of its worker; or `sennit agents stop {view.task_id}`",
            ) from error
        poll = select.poll()
        poll.register(process.fileno(), select.POLLIN)
        return "killed" if poll.poll(round(gone_s * 1000)) else "dying"
