"""Where large arrays are kept: beside a SQLite file, or in the folder that the settings name."""

from __future__ import annotations

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
