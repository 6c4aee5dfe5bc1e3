"""Why a server did not let us in: before there is a connection there is no SQLSTATE, only libpq's text.

What is not recognised (another language, another version) is still shown as it is, by `postgres_server.explain`.
Source of the texts: PostgreSQL, src/backend/libpq/auth.c, src/backend/utils/init/{postinit,miscinit}.c; libpq/fe-connect.c.
"""

from __future__ import annotations

from typing import Final

from sennit.errors import StoreUnavailable

# What the text has, why that is, what to do.
_DOORS: Final = (
    (
        ("password authentication failed", "no password supplied", "empty password returned"),
        "the server does not accept this user and password",
        "put the password into ~/.pgpass or PGPASSWORD; a URL is seen in the list of processes",
    ),
    (
        ("no pg_hba.conf entry", "pg_hba.conf rejects"),
        "the server's pg_hba.conf does not let this user in from this machine",
        "add a line for it there, and reload: SELECT pg_reload_conf()",
    ),
    (
        ('" does not exist', "database does not exist"),
        "the server runs, and has no database or role of this name",
        "createdb NAME, or createuser NAME; or mend the URL: postgresql://user@host:port/database",
    ),
    (
        ("too many clients already", "remaining connection slots", "too many connections for"),
        "all connections of the server are taken; each process of sennit needs three (writing, reading, listening)",
        "raise max_connections, or put a transaction pooler in front of the server",
    ),
    (
        ("could not translate host name", "name or service not known"),
        "no machine of this name is known here",
        "mend the host in the URL, or the name service of this machine",
    ),
    (
        ("connection refused", "no such file or directory"),
        "nothing listens there: the server is down, or has another port",
        "start it, or mend host and port in the URL",
    ),
    (
        ("timeout expired", "timed out", "no route to host", "network is unreachable"),
        "nothing answers: a firewall, another network, or a machine that is down",
        "try it by hand: pg_isready -d URL",
    ),
    (
        ("invalid connection option", "invalid port", "invalid uri", 'missing "=" after', "invalid integer value"),
        "libpq does not understand it",
        "write it as postgresql://user@host:port/database?option=value",
    ),
)


def refused_at_the_door(text: str, name: str) -> StoreUnavailable | None:
    """Return the error for what libpq said while it connected, or None when it says nothing we know.

    Args:
        text: on one line.
        name: the URL without a password.
    """
    low = text.lower()
    for marks, why, fix in _DOORS:
        if any(mark in low for mark in marks):
            return StoreUnavailable(f"cannot connect to {name}: {text}", why=why, fix=fix)
    return None
