"""A route: what a task needs of the worker that runs it, as one text that a store can compare and index.

    needs=("gpu", "eu")                 ─► "eu,gpu"
    needs=("gpu",), pinned to version 7 ─► "gpu,=7"        "" is a plain task: any worker may run it

Labels are in order and none is twice, so equal needs are equal texts, and the tasks of one route are one range of an index.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from functools import lru_cache
from typing import Final

from sennit.errors import SettingsError

LABELS_MAX: Final = 32

# As a label of a worker: it has all that a task may need. For development, and for tests.
EVERYTHING: Final = "*"

_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,62}")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/+-]{0,99}")


def checked_labels(labels: object, *, of_worker: bool = False) -> tuple[str, ...]:
    """Return labels in order, each once. One may be given alone; text with commas is several.

    Args:
        of_worker: `EVERYTHING` is allowed.

    Raises:
        SettingsError: something that is no label, or more than `LABELS_MAX`.
    """
    if isinstance(labels, str):
        labels = [part.strip() for part in labels.split(",") if part.strip()]
    if not isinstance(labels, (list, tuple, set, frozenset)):
        raise _refused_label(labels)
    for label in labels:
        allowed = isinstance(label, str) and (_LABEL.fullmatch(label) or (of_worker and label == EVERYTHING))
        if not allowed:
            raise _refused_label(label)
    if len(labels) > LABELS_MAX:
        raise SettingsError(
            f"{len(labels)} labels are more than {LABELS_MAX}", fix="one label per kind of machine is enough"
        )
    return tuple(sorted(set(labels)))


def _refused_label(label: object) -> SettingsError:
    return SettingsError(
        f"a label cannot be {label!r}",
        why="it is text of 1 to 63 letters, digits and ._:/- that begins with a letter or a digit",
        fix="for example gpu, eu or zone:eu-west-1",
    )


def checked_version(version: object) -> str:
    """Return the version of code if it can be called so; "" is none.

    Raises:
        SettingsError: it cannot.
    """
    if version != "" and not (isinstance(version, str) and _VERSION.fullmatch(version)):
        raise SettingsError(
            f"a version cannot be {version!r}",
            why="it is text of 1 to 100 letters, digits and ._:/+- that begins with a letter or a digit",
            fix="for example a date, 2026-11-21.1, or the first figures of a commit",
        )
    return str(version)


def route_of(needs: Iterable[str], version: str = "") -> str:
    """Return the route of a task that needs these labels, all checked, and this version of the code; "" is any."""
    return ",".join([*needs, *([f"={version}"] if version else [])])


@lru_cache(maxsize=1024)
def parts_of(route: str) -> tuple[tuple[str, ...], str]:
    """Return (labels, version) of a route."""
    parts = route.split(",") if route else []
    version = parts.pop()[1:] if parts and parts[-1].startswith("=") else ""
    return tuple(parts), version


def fits(route: str, labels: Collection[str], version: str) -> bool:
    """Return whether a worker with these labels and this version of the code may run a task of this route."""
    if not route:
        return True
    needs, pinned = parts_of(route)
    return (not pinned or pinned == version) and (EVERYTHING in labels or all(label in labels for label in needs))


def route_words(route: str) -> str:
    """Return a route for people: `eu, gpu and version 7`."""
    needs, version = parts_of(route)
    return " and ".join(filter(None, [", ".join(needs), version and f"version {version}"]))
