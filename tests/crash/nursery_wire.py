"""What is said to a nursery and answered: a line of JSON, with descriptors. Imports next to nothing: see page_client.py."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from typing import Any

DESCRIPTORS_MAX = 8


def send(to: socket.socket, message: Mapping[str, Any], descriptors: list[int]) -> None:
    line = json.dumps(message).encode() + b"\n"
    sent = socket.send_fds(to, [line], descriptors) if descriptors else 0
    to.sendall(line[sent:])


def receive(of: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Return the next message and its descriptors; an empty one when the other side has gone."""
    line, descriptors = b"", list[int]()
    while not line.endswith(b"\n"):
        part, received, _, _ = socket.recv_fds(of, 1 << 16, DESCRIPTORS_MAX)
        if not part:
            return {}, []
        line += part
        descriptors += received
    return json.loads(line), descriptors
