"""PgBouncer in front of a server, for tests: a connection of the server belongs to a client for one transaction at a time."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from tests.faults.tools import until

# Debian puts it where an ordinary user's PATH does not lead.
PROGRAM = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin")

CONFIG = """
[databases]
* = host={host} port={target}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = trust
auth_file = {folder}/users
pool_mode = transaction
default_pool_size = {pool_size}
max_client_conn = 200
"""


@contextmanager
def pooler(url: str, *, pool_size: int = 10) -> Iterator[str]:
    """Yield the URL of a database by way of a transaction pooler; `url` is that of the database itself."""
    if PROGRAM is None:
        pytest.skip("pgbouncer is not installed (apt install pgbouncer)")
    parts = psycopg.conninfo.conninfo_to_dict(url)
    with tempfile.TemporaryDirectory(prefix="sennit-pooler-") as made:
        folder = Path(made)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        config = CONFIG.format(
            host=parts["host"], target=parts.get("port", 5432), port=port, folder=folder, pool_size=pool_size
        )
        (folder / "users").write_text(f'"{parts["user"]}" ""\n', encoding="utf-8")
        (folder / "config").write_text(config, encoding="utf-8")
        command = [PROGRAM, str(folder / "config")]
        # It does not run as root, and must read its files.
        user = pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else None
        if user is not None:
            for path in (folder, folder / "users", folder / "config"):
                os.chown(path, user, -1)
        with subprocess.Popen(command, user=user, stderr=subprocess.DEVNULL) as process:
            try:
                until(lambda: process.poll() is not None or listens(port), "a pooler that listens")
                assert process.poll() is None, "pgbouncer has ended"
                yield f"postgresql://{parts['user']}@127.0.0.1:{port}/{parts['dbname']}"
            finally:
                process.terminate()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
