"""Ray clusters for the tests: each node a machine of its own, which is a set of namespaces, joined by a cable.

    Machine "a" 10.77.0.1 ══ veth ══ 10.77.0.2 Machine "b"        no other network: Ray listens where it likes
      ray start --head                  ray start --address

Ray binds the interface of its host even when told otherwise, finds "its" node by looking through all processes and notes
its address in its temporary folder; so network, process ids and that folder are each machine's own. A machine is switched
off by SIGKILL to its first process: the kernel ends all others with it. Making namespaces needs root.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

RAY: Final = Path(sys.executable).with_name("ray")
PORT: Final = 6379
START_S: Final = 60.0
OBJECT_STORE_BYTES: Final = 300_000_000

_PIPES: Final[Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}

# Ray takes 13 s to see that a node is dead and a minute that its head is, by default; tests do not wait for that.
QUICK: Final = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "4000",
    "RAY_health_check_failure_threshold": "2",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
}


class Machine:
    """Namespaces, and what runs in them. Switched off at first.

    Attributes:
        folder: seen by this machine only, at the place of `shared`.
    """

    def __init__(self, name: str, address: str, *, shared: Path, folder: Path) -> None:
        self.name, self.address = name, address
        # The shell stays: it is the first process, and buries what others leave behind.
        self._first = f"mount --bind {folder} {shared} && echo on && cat; true"
        folder.mkdir()
        # The network outlives a switching off. It is held until its line is closed, by us or by our death.
        self._network = subprocess.Popen(["unshare", "-n", "sh", "-c", "echo on && exec cat"], **_PIPES)
        _wait_for_first_line(self._network)
        self._power: subprocess.Popen[bytes] | None = None
        self._init_pid = 0

    @property
    def network_pid(self) -> int:
        """Of a process that is always in its network."""
        return self._network.pid

    def switch_on(self) -> None:
        """Give it processes: a first one, which ends with this test and takes all others with it."""
        own = ["unshare", "-m", "-p", "--fork", "--mount-proc", "--kill-child", "sh", "-c", self._first]
        self._power = subprocess.Popen(["nsenter", f"--net=/proc/{self.network_pid}/ns/net", *own], **_PIPES)
        _wait_for_first_line(self._power)
        pid = self._power.pid
        self._init_pid = int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])

    def switch_off(self) -> None:
        """SIGKILL to all that runs in it, at once."""
        if self._power is not None:
            os.kill(self._init_pid, signal.SIGKILL)
            self._power.communicate()
            self._power = None

    def argv(self, argv: Sequence[str]) -> list[str]:
        """Return the command line that runs `argv` in it."""
        return ["nsenter", f"--target={self._init_pid}", "--net", "--mount", "--pid", f"--wd={Path.cwd()}", *argv]

    def call(self, argv: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        """Run a command in it to its end."""
        env = None if environment is None else {**os.environ, **environment}
        subprocess.run(self.argv(argv), check=True, timeout=START_S, stdout=subprocess.DEVNULL, env=env)

    def runs(self, name: str) -> bool:
        """Return whether a process of this name runs in it."""
        return not subprocess.run(self.argv(["pgrep", "-x", name]), stdout=subprocess.DEVNULL, check=False).returncode

    def call_network(self, *argv: str) -> None:
        """Run `ip` in its network; it may be switched off."""
        subprocess.run(["nsenter", f"--net=/proc/{self.network_pid}/ns/net", "ip", *argv], check=True)

    def close(self) -> None:
        """Switch off, and let the network go."""
        self.switch_off()
        self._network.communicate()


def _wait_for_first_line(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line == b"on\n", "making namespaces needs root (or CAP_SYS_ADMIN)"


@dataclass
class Cluster:
    """Two machines, a token, and Ray on them when it is started.

    Attributes:
        environment: of everything that talks to this Ray.
    """

    head: Machine
    second: Machine
    folder: Path
    environment: dict[str, str]

    @property
    def gcs(self) -> str:
        """Where Ray's head listens."""
        return f"{self.head.address}:{PORT}"

    def start_head(self, *, cpus: int = 1) -> None:
        """Start a new cluster: its head."""
        self._start(
            self.head,
            cpus,
            "--head",
            f"--port={PORT}",
            "--include-dashboard=false",
            f"--temp-dir={self.folder / 'ray'}",
        )

    def start_second(self, *, cpus: int = 1) -> None:
        """Have the second machine join."""
        self._start(self.second, cpus, f"--address={self.gcs}")

    def _start(self, machine: Machine, cpus: int, *how: str) -> None:
        argv = [str(RAY), "start", f"--node-ip-address={machine.address}", f"--num-cpus={cpus}", *how]
        argv += ["--disable-usage-stats", f"--object-store-memory={OBJECT_STORE_BYTES}"]
        machine.call(argv, self.environment)


@contextmanager
def machines(*, quick: bool = True) -> Iterator[Cluster]:
    """Make two joined machines without Ray; switch them off at the end.

    Args:
        quick: have Ray see deaths soon.
    """
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # a short path: Ray puts sockets below it
    (folder / "ray").mkdir()
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    environment = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        # The machine's own, too: processes that share it take each other for neighbours, and ring by sockets.
        "TMPDIR": str(folder / "ray"),
        **(QUICK if quick else {}),
    }
    head = Machine("a", "10.77.0.1", shared=folder / "ray", folder=folder / "a")
    second = Machine("b", "10.77.0.2", shared=folder / "ray", folder=folder / "b")
    try:
        head.call_network("link", "add", "cable0", "type", "veth", "peer", "name", "cable1")
        head.call_network("link", "set", "cable1", "netns", str(second.network_pid))
        for machine, end in ((head, "cable0"), (second, "cable1")):
            machine.call_network("link", "set", "lo", "up")
            machine.call_network("addr", "add", f"{machine.address}/24", "dev", end)
            machine.call_network("link", "set", end, "up")
            # To nowhere: but Ray asks the kernel which address it would use for the world, and waits when there is none.
            machine.call_network("route", "add", "default", "dev", end)
            machine.switch_on()
        yield Cluster(head, second, folder, environment)
    finally:
        head.close()
        second.close()
        shutil.rmtree(folder, ignore_errors=True)
