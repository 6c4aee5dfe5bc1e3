"""dev.py decides from a stamp whether the environment fits; nothing here touches the network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import dev

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    (tmp_path / "constraints.txt").write_text("click==8.0.0\n")
    return tmp_path


def stamp(project: Path, *, folder: str = ".venv", extras: str = "dev") -> dev.Stamp:
    return dev.wanted_stamp(dev.Environment(project / folder, extras), project)


# ---------------------------------------------------------------- the stamp


def test_the_same_inputs_give_the_same_stamp(project: Path) -> None:
    assert stamp(project) == stamp(project)


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_a_changed_file_changes_the_inputs_and_not_the_place(project: Path, name: str) -> None:
    before = stamp(project)

    (project / name).write_text("something else\n")

    assert stamp(project).inputs != before.inputs
    assert stamp(project).place == before.place


def test_a_line_moved_from_one_file_to_the_other_changes_the_inputs(project: Path) -> None:
    before = stamp(project)

    (project / "pyproject.toml").write_text("[project]\nclick==8.0.0\n")
    (project / "constraints.txt").write_text("")

    assert stamp(project).inputs != before.inputs


def test_other_extras_change_the_inputs(project: Path) -> None:
    assert stamp(project, extras="bench").inputs != stamp(project).inputs


def test_another_folder_is_another_place(project: Path) -> None:
    assert stamp(project, folder="moved").place != stamp(project).place


def test_another_python_is_another_place(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = stamp(project)

    monkeypatch.setattr(sys, "version_info", (3, 99, 0, "final", 0))

    assert stamp(project).place != before.place


# ---------------------------------------------------------------- what it decides


WANTED = dev.Stamp("cpython 3.11.0 /usr /project/.venv", "abc")


def test_a_fitting_stamp_is_used_as_it_is() -> None:
    assert dev.decide(WANTED.text(), WANTED, usable=True) == dev.USE


def test_changed_inputs_are_installed_into_the_same_environment() -> None:
    assert dev.decide(WANTED._replace(inputs="old").text(), WANTED, usable=True) == dev.UPDATE


def test_changed_inputs_with_a_broken_interpreter_make_it_anew() -> None:
    assert dev.decide(WANTED._replace(inputs="old").text(), WANTED, usable=False) == dev.REBUILD


@pytest.mark.parametrize("found", [dev.INSTALLING, "", WANTED._replace(place="cpython 3.12.0").text()])
def test_an_interrupted_install_or_another_place_makes_it_anew(found: str) -> None:
    assert dev.decide(found, WANTED, usable=True) == dev.REBUILD


def test_an_environment_somebody_else_made_is_kept_if_pip_works_there() -> None:
    assert dev.decide(None, WANTED, usable=True) == dev.UPDATE
    assert dev.decide(None, WANTED, usable=False) == dev.REBUILD


def test_a_folder_without_interpreter_is_not_usable(tmp_path: Path) -> None:
    assert not dev.is_usable(dev.Environment(tmp_path, "dev"))


# ---------------------------------------------------------------- what it says


def test_an_old_python_is_refused_with_what_why_and_fix() -> None:
    with pytest.raises(dev.Stop, match=r"this is Python 3\.10, sennit needs 3\.11") as caught:
        dev.require_python((3, 10, 4))

    assert "\n  why: " in str(caught.value)
    assert "\n  fix: " in str(caught.value)


def test_a_missing_network_is_told_apart_from_a_failed_build() -> None:
    offline = dev.install_failed("WARNING: Retrying … [Errno -3] Temporary failure in name resolution")
    broken = dev.install_failed("error: subprocess-exited-with-error")

    assert "could not be downloaded" in str(offline)
    assert "could not be installed" in str(broken)


def test_the_outcome_says_what_was_skipped_and_why() -> None:
    xml = """<testsuites><testsuite>
        <testcase name="a"/><testcase name="b"><failure message="no"/></testcase>
        <testcase name="c"><skipped message="needs root"/></testcase>
        <testcase name="d"><skipped message="needs root"/></testcase>
    </testsuite></testsuites>"""

    assert dev.outcome(xml) == ["  1 tests passed, 1 failed, 2 skipped", "    2 × skipped: needs root"]


def test_every_stage_runs_whatever_failed_and_one_runs_beside_them(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The one beside them ends only when the second has begun: one after the other they would wait for ever."""
    os.mkfifo(tmp_path / "second has begun")
    fifo = f"open({str(tmp_path / 'second has begun')!r}, "
    program = [sys.executable, "-c"]

    code = dev.run_stages(
        [("first", [*program, "raise SystemExit(3)"]), ("second", [*program, fifo + "'w')"])],
        beside=("beside", [*program, fifo + "'r').read(); print('its words')"]),
    )

    assert code == 1
    said = capfd.readouterr().out
    assert [line.split()[:2] for line in said.splitlines()[-3:]] == [
        ["FAIL", "first"],
        ["ok", "second"],
        ["ok", "beside"],
    ]
    assert said.index("── second ") < said.index("── beside ") < said.index("its words")


def test_an_unknown_command_shows_the_commands_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert dev.main(["tets"]) == 2
    assert "dev.py test" in capsys.readouterr().err


# ---------------------------------------------------------------- as a program


def test_an_up_to_date_environment_is_ready_at_once(project: Path) -> None:
    """Only the stamp and the interpreter are looked at: no pip, no import of sennit."""
    for name in ("dev.py", "dev_servers.py"):
        shutil.copy(ROOT / name, project)
    python = project / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    (project / ".venv" / dev.STAMP_FILE).write_text(stamp(project, extras=dev.MAIN.extras).text())

    done = subprocess.run([sys.executable, "dev.py", "setup"], cwd=project, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"dev.py: environment {python}\n"
