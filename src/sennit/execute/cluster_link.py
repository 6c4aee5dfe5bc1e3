"""A broker as its parent sees it: a process with a pipe, requests with answers, and one word about its end.

Link.open ──► python -c … cluster_broker ──► Joined            the broker is a driver of the cluster
                                        └──► Refused | end     ClusterUnavailable, and the process is gone
ask(n) ──► answer | ClusterUnavailable, when the broker has ended meanwhile: cluster lost, or killed
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, Final, Self

import msgspec

from sennit.errors import ClusterUnavailable, SettingsError
from sennit.execute import cluster_wire as wire
from sennit.sync.forks import drop_after_fork

__all__ = ["Link", "checked_address", "ray_environment"]

JOIN_S: Final = 30.0
"""How long Ray may take to let a driver in: it asks a head that is gone for longer than that."""

_BROKER: Final = "import socket, sys; from sennit.execute.cluster_broker import main; main(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]))"
_REPLIES: Final = msgspec.msgpack.Decoder(wire.Reply)


def checked_address(cluster: str) -> str:
    """Return Ray's own name for the setting `cluster`: `auto` or `ray://HOST:PORT`; "" for this machine's processes.

    Raises:
        SettingsError: it is none of these, or Ray is not installed.
    """
    if cluster in {"", "local"}:
        return ""
    host, _, port = cluster.removeprefix("ray://").rpartition(":")
    if cluster not in {"ray", "auto"} and not (cluster.startswith("ray://") and host and port.isdecimal()):
        raise SettingsError(
            f"cluster={cluster!r} names no cluster",
            fix='use "ray" for the cluster that this machine is a node of, "ray://HOST:10001", or "" for none',
        )
    needed = {"ray": "CPU bodies and node agents are placed by it"}
    if cluster.startswith("ray://"):
        needed["grpc"] = "Ray's client speaks it"
    for module, why in needed.items():
        if importlib.util.find_spec(module) is None:
            raise SettingsError(
                f"cluster={cluster!r} needs {module}, which is not installed for {sys.executable}",
                why=f"{why}; it is large and therefore an extra",
                fix="pip install 'sennit[cluster]', or leave the setting `cluster` empty",
            )
    return "auto" if cluster in {"ray", "auto"} else cluster


def ray_environment(token_path: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a Ray driver: authentication always on, nothing sent home.

    A driver and a cluster that were started under different homes choose different modes by default and refuse each
    other, so mode and path are always said. Source: Ray 2.52, token authentication.

    Args:
        token_path: of the file with the cluster's token; "" is RAY_AUTH_TOKEN_PATH, else Ray's own place.

    Raises:
        SettingsError: there is no such file.
    """
    path = token_path or environ.get("RAY_AUTH_TOKEN_PATH") or str(Path.home() / ".ray" / "auth_token")
    if not Path(path).is_file():
        raise SettingsError(
            f"there is no Ray token in {path}",
            why="a cluster without authentication runs whatever anybody sends it, so sennit always uses the token",
            fix="copy the file from the head (`ray get-auth-token --generate` makes one), or set cluster_token_path",
        )
    return {
        **environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(Path(path).absolute()),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # or it warns of what a later Ray will do with GPUs
    }


class Link:
    """One broker process. All methods belong to one event loop."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        life: int,
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self.cpus = 0.0
        self.nodes = 0
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Why the broker is gone; done when it is."""
        self._process = process
        self._life = life
        self._reader, self._writer = streams
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._numbers = count(1)
        self._reading: asyncio.Task[None] | None = None
        drop_after_fork(self)

    @classmethod
    async def open(cls, brief: wire.Brief, environment: Mapping[str, str]) -> Self:
        """Start a broker and wait until it has joined the cluster.

        Raises:
            ClusterUnavailable: it could not, in `JOIN_S`.
        """
        ours, theirs = socket.socketpair()
        life_theirs, life_ours = os.pipe()
        try:
            # A group of its own: Ctrl-C in the terminal is for us, who stop it in order.
            process = subprocess.Popen(  # noqa: ASYNC220 - a vfork, well below a millisecond
                [sys.executable, "-c", _BROKER, str(theirs.fileno()), str(life_theirs)],
                env=dict(environment), pass_fds=(theirs.fileno(), life_theirs),
                stdin=subprocess.DEVNULL, stdout=sys.stderr.fileno() if _has_stderr() else subprocess.DEVNULL,
                process_group=0,
            )  # fmt: skip
        finally:
            theirs.close()
            os.close(life_theirs)
        ours.setblocking(False)
        link = cls(process, life_ours, await asyncio.open_connection(sock=ours))
        link._writer.write(wire.frame(brief))
        try:
            await asyncio.wait_for(link._join(brief.address), JOIN_S)
        except TimeoutError:
            await link.close(grace_s=0.0)
            raise ClusterUnavailable(brief.address, f"no answer in {JOIN_S:g} s") from None
        except BaseException:
            await link.close(grace_s=0.0)
            raise
        link._reading = asyncio.create_task(link._read(), name="sennit-cluster-link")
        return link

    async def _join(self, address: str) -> None:
        try:
            first = await self._receive()
        except (asyncio.IncompleteReadError, ConnectionError):
            code = await asyncio.to_thread(self._process.wait)
            raise ClusterUnavailable(address, f"its driver ended while joining (exit code {code})") from None
        if isinstance(first, wire.Joined):
            self.cpus, self.nodes = first.cpus, first.nodes
        else:
            raise ClusterUnavailable(address, first.what if isinstance(first, wire.Refused) else "a strange answer")

    @property
    def pid(self) -> int:
        """Of the broker."""
        return self._process.pid

    def send(self, message: wire.Request) -> None:
        """Say something that has no answer."""
        self._writer.write(wire.frame(message))

    async def ask(self, make: Callable[[int], wire.Request], *, number: Callable[[int], object] = id) -> Any:
        """Send the request that `make` makes of its number; return the answer.

        Args:
            number: told of the number, before anything is sent.

        Raises:
            ClusterUnavailable: the broker has ended.
        """
        if self.ended.done():
            raise ClusterUnavailable("", self.ended.result())
        n = next(self._numbers)
        number(n)
        answer = self._answers[n] = asyncio.get_running_loop().create_future()
        self.send(make(n))
        try:
            return await answer
        finally:
            self._answers.pop(n, None)

    async def _receive(self) -> wire.Reply:
        (size,) = wire.HEADER.unpack(await self._reader.readexactly(wire.HEADER.size))
        reply: wire.Reply = _REPLIES.decode(await self._reader.readexactly(size))
        return reply

    async def _read(self) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                reply = await self._receive()
                answer = self._answers.get(getattr(reply, "n", 0))
                if answer is not None and not answer.done():
                    answer.set_result(reply)
        self.kill()
        code = await asyncio.to_thread(self._process.wait)
        self.ended.set_result(f"the Ray driver has ended (exit code {code})")
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(ClusterUnavailable("", self.ended.result()))

    async def close(self, *, grace_s: float = 5.0) -> None:
        """Have the broker leave the cluster, by force after `grace_s`; return when it has ended."""
        self._writer.close()
        try:
            await asyncio.wait_for(asyncio.to_thread(self._process.wait, grace_s), None)
        except subprocess.TimeoutExpired:
            self.kill()
            await asyncio.to_thread(self._process.wait)
        if self._reading is not None:
            await self._reading
        if self._life >= 0:
            os.close(self._life)
            self._life = -1

    def kill(self) -> None:
        """Kill the broker. Harmless when it has ended; any OS thread may call this."""
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGKILL)

    def drop_after_fork(self) -> None:
        """In a forked child: drop the line of life, or the broker would outlive its parent."""
        if self._life >= 0:
            os.close(self._life)


def _has_stderr() -> bool:
    try:
        sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):
        return False
    return True
