"""A process that supervises five agents, to be killed. Each has a child, one in a session of its own, and a daemon."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import termios
from pathlib import Path

from sennit.execute.supervisor import Supervisor
from tests.agents.programs import Runs

AGENTS = 5
LINES = 4 * AGENTS

# A daemon as the books have it: two forks, a session of its own, deaf to goodbyes; with $WIPE without its environment.
DAEMON = r"""(setsid $WIPE sh -c 'trap "" TERM HUP INT; sh -c "echo \$\$ >$SAID; exec sleep 1000" &' &); """

# How $WIPE is set: PATH and SAID are all that is left.
WIPE = 'WIPE="env -i SAID=$SAID PATH=$PATH"; '

AGENT = f"""{DAEMON}
sleep 1000 &
echo $! >$SAID
setsid sh -c 'echo $$ >$SAID; exec sleep 1000' &
echo $$ >$SAID
wait
"""


def run(folder: str, before: str = WIPE) -> int:
    """Spawn the agents one after the other, and stand over them; each does `before` first."""

    async def main() -> None:
        supervisor, runs = Supervisor(), Runs(Path(folder))
        for _ in range(AGENTS):
            await supervisor.spawn(runs.shell(before + AGENT))
        await asyncio.Event().wait()

    asyncio.run(main())
    return 0


def run_in_terminal(folder: str) -> int:
    """Supervise an agent in the foreground of the terminal that is our stdin; at a ctrl-C say how it is."""
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    async def main() -> None:
        supervisor, runs = Supervisor(), Runs(Path(folder))
        interrupted = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, interrupted.set)
        agent = await supervisor.spawn(
            runs.shell("trap 'echo interrupted' INT; echo up >$SAID; read _; echo done", talks=True)
        )
        await interrupted.wait()
        agent.write(b"go on\n")
        ended = await agent.exited
        runs.fifo.write_text(f"{ended.code} {(agent.folder / 'stdout.log').read_text()}")
        await supervisor.close()

    asyncio.run(main())
    return 0
