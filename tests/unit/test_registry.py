"""Handlers by name: two functions never share one, but a function that is typed anew takes the place of the former."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sennit.errors import SettingsError
from sennit.submit.registry import Registry

SOURCE = "def half(x):\n    return x // {by}\n"


def defined(file: str | Path, *, by: int, module: str = "__main__", line: int = 1) -> Callable[..., Any]:
    """Return the function that code from `file` defines in `module`."""
    namespace: dict[str, Any] = {"__name__": module}
    exec(compile("\n" * (line - 1) + SOURCE.format(by=by), str(file), "exec"), namespace)
    function: Callable[..., Any] = namespace["half"]
    return function


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("<stdin>", "<stdin>"),
        ("<python-input-3>", "<python-input-7>"),
        ("<ipython-input-1-6a>", "<ipython-input-2-f0>"),
    ],
)
def test_a_function_that_is_typed_anew_takes_the_place_of_the_former(first: str, second: str) -> None:
    registry = Registry()
    registry.register(defined(first, by=2), name="half")

    registry.register(defined(second, by=3, line=2), name="half")

    (handler,) = registry.all()
    assert handler.function(12) == 4


def test_an_edited_cell_takes_the_place_of_the_former(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)  # as in a kernel
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    registry = Registry()
    registry.register(defined(tmp_path / "ipykernel_71" / "1083.py", by=2))

    registry.register(defined(tmp_path / "ipykernel_71" / "2910.py", by=3))

    (handler,) = registry.all()
    assert handler.name == "__main__.half"
    assert handler.function(12) == 4


def test_two_functions_of_one_name_are_refused_in_a_file_that_is_run_in_a_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)
    (script := tmp_path / "script.py").touch()
    registry = Registry()
    registry.register(defined(script, by=2))

    with pytest.raises(SettingsError, match="two handlers are called"):
        registry.register(defined(script, by=3, line=5))


def test_two_functions_of_one_name_are_refused_in_a_program_without_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = tmp_path / "program.pyz" / "__main__.py"
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(inside), raising=False)
    registry = Registry()
    registry.register(defined(inside, by=2), name="half")

    with pytest.raises(SettingsError, match="two handlers are called"):
        registry.register(defined(inside, by=3, line=5), name="half")


@pytest.mark.parametrize(("first", "second"), [("<stdin>", "<stdin>"), ("one.py", "other.py")])
def test_two_functions_of_one_name_are_refused_in_a_module(first: str, second: str) -> None:
    registry = Registry()
    registry.register(defined(first, by=2, module="reviews"))

    with pytest.raises(SettingsError, match=r"two handlers are called 'reviews\.half'"):
        registry.register(defined(second, by=3, module="reviews", line=2))


def test_two_typed_functions_cannot_share_a_given_name() -> None:
    registry = Registry()
    registry.register(defined("<stdin>", by=2), name="half")

    def other(x: int) -> int:
        return x

    other.__module__ = "__main__"
    with pytest.raises(SettingsError, match="two handlers are called 'half'"):
        registry.register(other, name="half")
