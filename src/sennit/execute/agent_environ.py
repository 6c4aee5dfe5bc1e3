"""What of our environment an agent may see, and which values of it are secrets.

    ours ──allow-list + passes──► + added ──► the agent's        secrets: values that are blotted out of its output

A coding agent runs what a model tells it: the database URL, the cloud keys and the other agents' tokens of this process are none of
its business. So nothing passes unless it is named.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final
from urllib.parse import unquote, urlsplit

__all__ = ["USUAL", "environment", "secrets_in"]

# Who and where one is, the language, the way out, and whom to trust there. `PREFIX_*` is all that begin so. SSH_AUTH_SOCK and
# XDG_RUNTIME_DIR are doors to other programs of the user and are not among them: pass them by name where they are wanted.
USUAL: Final = (
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "TMPDIR", "TZ"),
    *("LANG", "LANGUAGE", "LC_*", "TERM", "COLORTERM", "NO_COLOR"),
    *("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME"),
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"),
)

# A variable whose name ends so holds a secret, whoever set it.
_TELLING: Final = ("_API_KEY", "_TOKEN", "_SECRET", "_PASSWORD")


def environment(environ: Mapping[str, str], *, passes: Sequence[str], added: Mapping[str, str]) -> dict[str, str]:
    """Return the whole environment of an agent.

    Args:
        environ: ours.
        passes: names that may pass besides USUAL; `PREFIX_*` is all that begin so.
        added: set whatever ours is; it wins.
    """
    allowed = {name: value for name, value in environ.items() if _is_among(name, USUAL) or _is_among(name, passes)}
    return {"PATH": os.defpath, **allowed, **added}


def secrets_in(environ: Mapping[str, str], names: Sequence[str]) -> tuple[str, ...]:
    """Return the values in `environ` that must not be written down, longest first, each once.

    They are those of `names` (`PREFIX_*` too), of names that say so themselves (`…_TOKEN`), and passwords in URLs of proxies.
    """
    found = {value for name, value in environ.items() if _is_among(name, names) or name.upper().endswith(_TELLING)}
    for name, value in environ.items():
        if name.upper().endswith("_PROXY"):
            found.update(_passwords(value))
    return tuple(sorted(found - {""}, key=lambda value: (-len(value), value)))


def _is_among(name: str, names: Iterable[str]) -> bool:
    return any(name.startswith(one[:-1]) if one.endswith("*") else name == one for one in names)


def _passwords(url: str) -> Iterator[str]:
    """Yield the password in a URL, as it stands there and as it is meant."""
    try:
        password = urlsplit(url).password
    except ValueError:  # no URL: nothing to find in it
        return
    if password:
        yield password
        yield unquote(password)
