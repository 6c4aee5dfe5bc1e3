"""Where what is too large for the store is kept, arrays and what agents write: beside a SQLite file, or as the settings say."""

from __future__ import annotations

import hashlib
from pathlib import Path

from sennit.model.settings import Settings
from sennit.sync import array_files


def keep_arrays(url: str, settings: Settings) -> None:
    """Have this process keep large numpy arrays where everybody finds them who works on the store at `url`.

    On several machines that is `array_folder`, on a disk that all of them mount. Without one, and without a SQLite file to
    keep them beside, arrays travel inside the payload, up to `payload_bytes_max`.
    """
    if settings.array_folder:
        array_files.keep_in(Path(settings.array_folder).expanduser())
    elif url.startswith("sqlite:///"):
        array_files.keep_in(Path(url.removeprefix("sqlite:///") + ".arrays"))
    else:
        array_files.keep_in(None)


def agents_in(url: str, settings: Settings) -> Path:
    """Return the folder in which this process keeps the runs of agents. Each store has its own: ids are of one store."""
    if url.startswith("sqlite:///") and not settings.agent_folder:
        return Path(url.removeprefix("sqlite:///") + ".agents").absolute()
    root = Path(settings.agent_folder or ".sennit/agents").expanduser().absolute()
    where = str(Path(url.removeprefix("sqlite:///")).absolute()) if url.startswith("sqlite:///") else url
    return root / hashlib.blake2b(where.encode(), digest_size=6).hexdigest()
