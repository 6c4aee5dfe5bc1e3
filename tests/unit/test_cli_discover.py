"""`MODULE:APP`: what is found, and what is said when nothing is."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sennit.cli.discover import load_app, usual_target
from sennit.errors import UsageError

APP = "from sennit import App\napp = App()\n@app.task\ndef hello() -> str: return 'x'\n"

Write = Callable[[str, str], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write modules into the working directory; what they import is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)

    def put(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    yield put
    for name in set(sys.modules) - before:
        del sys.modules[name]


def refusal(target: str) -> UsageError:
    with pytest.raises(UsageError) as caught:
        load_app(target)
    return caught.value


@pytest.mark.parametrize(
    "target", ["crew_a:app", "crew_a", "crew_a.py:app", "./crew_a.py", "pack.crew_b:app", "pack/crew_b.py"]
)
def test_a_target_is_a_module_or_a_file_with_or_without_the_name(write: Write, target: str) -> None:
    write("crew_a.py", APP)
    write("pack/__init__.py", "")
    write("pack/crew_b.py", APP)

    app = load_app(target)

    name = "pack.crew_b.hello" if "crew_b" in target else "crew_a.hello"
    assert [handler.name for handler in app.registry.all()] == [name]


def test_the_only_app_of_a_module_needs_no_name(write: Write) -> None:
    write("crew_c.py", APP.replace("app", "fleet"))

    assert load_app("crew_c").registry.all()


def test_an_app_may_be_an_attribute_of_something(write: Write) -> None:
    write("crew_d.py", "from sennit import App\nclass Box:\n    app = App()\n")

    assert load_app("crew_d:Box.app").registry.all() == []


def test_an_unknown_module_names_the_nearest_file(write: Write) -> None:
    write("fleet_x.py", APP)

    error = refusal("flet_x:app")

    assert error.what == "there is no module 'flet_x'"
    assert error.fix == "did you mean fleet_x:app?"


def test_an_unknown_file_is_said_to_be_missing(write: Write) -> None:
    assert refusal("nowhere/crew.py:app").what == "there is no file nowhere/crew.py"


def test_a_missing_import_inside_the_module_is_told_from_a_missing_module(write: Write) -> None:
    path = write("crew_e.py", "\nimport no_such_library\n")

    error = refusal("crew_e:app")

    assert error.what == "importing crew_e failed: no module named 'no_such_library'"
    assert error.why == f"at {path}:2"


@pytest.mark.parametrize("text", ["\n1 / 0\n", "import sys\nsys.exit(3)\n", "x = 1\ndef f(:\n"])
def test_a_module_that_does_not_import_says_where(write: Write, text: str) -> None:
    path = write("crew_f.py", text)

    error = refusal("crew_f:app")

    assert error.what.startswith("importing crew_f failed: ")
    assert error.why == f"at {path}:2"


def test_an_unknown_name_suggests_an_app(write: Write) -> None:
    write("crew_g.py", APP)

    assert refusal("crew_g:ap").fix == "did you mean crew_g:app?"


def test_something_else_than_an_app_is_refused(write: Write) -> None:
    write("crew_h.py", "app = 3\n")

    assert refusal("crew_h:app").what == "crew_h:app is a int, not an App"


def test_several_apps_without_a_name_are_listed(write: Write) -> None:
    write("crew_i.py", "from sennit import App\none = App()\ntwo = App()\n")

    assert refusal("crew_i").fix == "choose one: crew_i:one, crew_i:two"


def test_a_module_without_an_app_says_how_to_make_one(write: Write) -> None:
    write("crew_j.py", "")

    assert refusal("crew_j").fix == "make one: app = App()"


def test_a_file_hidden_by_another_module_is_refused(write: Write) -> None:
    write("json.py", APP)

    assert "another module of this name" in refusal("json.py:app").why


def test_up_finds_the_usual_file_or_says_where_it_looked(write: Write) -> None:
    with pytest.raises(UsageError, match=r"there is no app\.py, fleet.py, main.py or tasks.py"):
        usual_target()
    write("main.py", APP)

    assert usual_target() == "main.py"
