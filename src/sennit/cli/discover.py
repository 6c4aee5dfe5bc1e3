"""`MODULE:APP` becomes an App: imported from the working directory, as uvicorn does, or from a path to a file."""

from __future__ import annotations

import importlib
import sys
import traceback
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Final

from sennit.errors import UsageError
from sennit.runtime.app import App

# Where `sennit up` looks when it is given no target, in this order.
USUAL_FILES: Final = ("app.py", "fleet.py", "main.py", "tasks.py")


def load_app(target: str) -> App:
    """Import the app that `target` names: `module`, `module:app`, `package.module:app` or `path/to/file.py:app`.

    Without `:app` it is the module's `app`, or its only App.

    Raises:
        UsageError: it cannot be found or imported; says what is there instead.
    """
    place, _, attribute = target.partition(":")
    if not place:
        raise UsageError(f"{target!r} names no module", fix="write MODULE:APP, for example fleet:app")
    return _app_in(_module(place), place, attribute)


def usual_target() -> str:
    """Return the target that `sennit up` means when it is given none.

    Raises:
        UsageError: none of the usual files is here.
    """
    found = next((name for name in USUAL_FILES if Path(name).is_file()), None)
    if found is None:
        raise UsageError(
            f"there is no {', '.join(USUAL_FILES[:-1])} or {USUAL_FILES[-1]} in {Path.cwd()}",
            fix="say where the app is: sennit up MODULE:APP",
        )
    return found


def _module(place: str) -> ModuleType:
    if place.endswith(".py") or "/" in place:
        name, folder = _module_of_file(place)
    else:
        name, folder = place, Path.cwd()
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    module = _import(name, place)
    if place.endswith(".py") and not _is_file_of(module, Path(place)):
        raise UsageError(
            f"{place} cannot be imported as {name!r}",
            why=f"another module of this name is imported already: {getattr(module, '__file__', 'built in')}",
            fix="give the file another name",
        )
    return module


def _module_of_file(place: str) -> tuple[str, Path]:
    """Return the name under which a file is imported, and the folder to import it from.

    It is the name that its handlers have when the file is run as a script, and inside a package the full one, so that
    tasks submitted either way find their handlers.
    """
    path = Path(place).resolve()
    if not path.is_file():
        raise UsageError(f"there is no file {place}", fix=_near_files(place))
    name, folder = path.stem, path.parent
    while (folder / "__init__.py").is_file():
        name, folder = f"{folder.name}.{name}", folder.parent
    return name, folder


def _import(name: str, place: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise UsageError(
                f"there is no module {error.name!r}",
                why=f"it is neither in {Path.cwd()} nor installed for {sys.executable}",
                fix=_near_files(place),
            ) from error
        raise UsageError(
            f"importing {place} failed: no module named {error.name!r}",
            why=_where(error),
            fix=f"install it for {sys.executable}, or correct the import",
        ) from error
    except (Exception, SystemExit) as error:
        raise UsageError(
            f"importing {place} failed: {type(error).__name__}: {error}",
            why=_where(error),
            fix="mend it; code that does work belongs under `if __name__ == '__main__':` (-v shows the traceback)",
        ) from error


def _where(error: BaseException) -> str:
    """Return the last line of the user's own code in a traceback."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "importlib" not in f.filename]
    if isinstance(error, SyntaxError) and error.filename:
        return f"at {error.filename}:{error.lineno}"
    return f"at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""


def _is_file_of(module: ModuleType, path: Path) -> bool:
    file = module.__file__
    return file is not None and Path(file).exists() and Path(file).samefile(path)


def _near_files(place: str) -> str:
    """Suggest a module of the working directory."""
    here = sorted(p.stem for p in Path.cwd().glob("*.py"))
    near = get_close_matches(Path(place).stem, here, n=1)
    if near:
        return f"did you mean {near[0]}:app?"
    return f"modules here: {', '.join(here[:10])}" if here else "run this in the folder that holds your module"


def _app_in(module: ModuleType, place: str, attribute: str) -> App:
    apps = [name for name, value in vars(module).items() if isinstance(value, App)]
    if not attribute:
        if "app" in apps or len(apps) == 1:
            attribute = "app" if "app" in apps else apps[0]
        else:
            raise UsageError(
                f"{place} has {'no App' if not apps else 'several Apps'}",
                fix="make one: app = App()" if not apps else f"choose one: {', '.join(f'{place}:{a}' for a in apps)}",
            )
    value: object = module
    for part in attribute.split("."):
        value = getattr(value, part, None)
    if isinstance(value, App):
        return value
    what = f"{place} has no {attribute!r}" if value is None else f"{place}:{attribute} is a {type(value).__name__}"
    near = get_close_matches(attribute, apps, n=1) or apps
    raise UsageError(
        what if value is None else f"{what}, not an App",
        fix=f"did you mean {place}:{near[0]}?" if near else "make one there: app = App()",
    )
