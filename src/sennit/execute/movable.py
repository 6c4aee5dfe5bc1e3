"""Can a body be run in another process and mean the same? What can be known without running it.

    found there    its reference leads to this very function, in a module that a worker process imports
    safe to import the main script starts its work under `if __name__ == "__main__":`, and the modules of its functions
                   only define and import, since worker processes import them
    no state       it and the functions and classes of its program that it reaches use nothing that can change: a list,
                   a lock, a connection, a logger would be another one in each process (`sync.meaning`)

Only asked before a body is moved without being told (`cpu=True` is the word of its author). In doubt the answer is no.
A worker process is asked, too: there every part of its meaning must have the value it has here (`submit.moved`).
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sennit.sync.meaning import Meaning, NoMeaning, meaning_of

__all__ = ["movable", "why_not_movable"]


def movable(function: Callable[..., Any]) -> Meaning | str:
    """Return what a body means, or why it must stay in this process."""
    why = _not_found(function) or _main_is_unsafe()
    if why:
        return why
    try:
        meaning = meaning_of(function)
    except NoMeaning as no:
        return str(no)
    return next((why for name in sorted(meaning.modules) if (why := _import_is_unsafe(name))), "") or meaning


def why_not_movable(function: Callable[..., Any]) -> str:
    """Return why a body must stay in this process, "" when nothing speaks against moving it."""
    found = movable(function)
    return found if isinstance(found, str) else ""


def _not_found(function: Callable[..., Any]) -> str:
    """A worker process imports the module and walks the qualified name; that must lead to this function."""
    module, qualname = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    if "<" in qualname or not module:
        return "it is defined inside another function"
    if module == "__main__" and not hasattr(sys.modules["__main__"], "__file__"):
        return "it is defined at a prompt or in a notebook"
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    if getattr(found, "function", found) is not function:
        return f"{module}:{qualname} is not this function"
    return ""


# ---------------------------------------------------------------- the main script


def _main_is_unsafe() -> str:
    """Worker processes import the main script, wherever the handler is from, as `multiprocessing` has it."""
    main = sys.modules.get("__main__")
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    if spec is not None and (spec.name == "__main__" or spec.name.endswith(".__main__")):
        return ""  # `python -m package`: not imported again
    if file is None:
        return ""  # a prompt or a notebook: nothing to import
    try:
        tree = ast.parse(Path(file).read_bytes())
    except (OSError, SyntaxError, ValueError):
        return "the main script cannot be read, and worker processes would import it"
    if not any(_is_guard(node) for node in tree.body):
        return 'the main script has no `if __name__ == "__main__":`, and worker processes would import it'
    for node in tree.body:
        if not _only_defines(node):
            return (
                f"line {node.lineno} of the main script would run again in each worker process; "
                'it belongs under `if __name__ == "__main__":`'
            )
    return ""


def _import_is_unsafe(name: str) -> str:
    """A worker process imports the modules of the body: what they do besides would be done once more."""
    file = getattr(sys.modules.get(name), "__file__", None)
    if file is None or name == "__main__":  # not from a file; looked at already
        return ""
    try:
        tree = ast.parse(Path(file).read_bytes())
    except (OSError, SyntaxError, ValueError):
        return f"the source of {name} cannot be read, and worker processes would import it"
    line = next((node.lineno for node in tree.body if not _only_defines(node)), 0)
    return f"line {line} of {name} would run again in each worker process" if line else ""


def _is_guard(node: ast.stmt) -> bool:
    match node:
        case ast.If(test=ast.Compare(left=ast.Name(id="__name__"), ops=[ast.Eq()], comparators=[ast.Constant(value)])):
            return value == "__main__"
        case _:
            return False


def _only_defines(node: ast.stmt) -> bool:
    """Imports, definitions and assignments; a name may be assigned from a call (`app = App(…)`)."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)  # a docstring
    if isinstance(node, ast.If):
        return _is_guard(node) or all(_only_defines(inner) for inner in (*node.body, *node.orelse))
    if isinstance(node, ast.Try):
        inner = (*node.body, *node.orelse, *node.finalbody, *(n for h in node.handlers for n in h.body))
        return all(_only_defines(statement) for statement in inner)
    defines = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return isinstance(node, (*defines, ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Pass, ast.Raise))
