"""Writes one value in many places of a workspace, over and over, and says which it has finished, until it is killed.

The value is large and of one letter, so half of one shows.
"""

from __future__ import annotations

import os

from sennit.threads.workspace import Workspace


def main(folder: str, last: str) -> None:
    """Write the values after the `last`; the number of each goes to stdout when it is everywhere."""
    workspace, n = Workspace(folder, broadcasts_bytes_max=2_500_000), int(last)
    while True:
        n += 1
        value = {"n": n, "text": chr(97 + n % 26) * 50_000}
        workspace.set_context("t", "k", value)
        workspace.share("d", value)
        workspace.add_output("t", "o", value)
        workspace.broadcast(value)
        workspace.set_context("gone", "k", value)
        workspace.delete("gone")
        os.write(1, b"%d\n" % n)
