"""URLs of stores as people may see them."""

from __future__ import annotations

import re

_PASSWORD = re.compile(r"([?&](?:password|sslpassword)=)[^&]*")


def without_password(url: str) -> str:
    """Return a URL as it may be shown."""
    head, at, tail = url.rpartition("@")
    scheme, _, user = head.partition("://")
    return _PASSWORD.sub(r"\1***", f"{scheme}://{user.partition(':')[0]}@{tail}" if at else url)
