"""`sennit profile` and `sennit doctor --workload`, as somebody runs them."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

import pytest

from sennit.cli import doctor_workload
from sennit.cli.doctor_workload import examine_workload
from sennit.cli.profile import python_words
from sennit.errors import UsageError
from tests.cli.processes import Sennit

JOB = """
import asyncio
import multiprocessing
import sys
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from time import perf_counter, sleep

lock = threading.Lock()


def spin(_):
    return sum(n * n for n in range(30_000))


def nap(_):
    sleep(0.03)


def behind_a_lock(_):
    with lock:
        sleep(0.004)


async def rude():
    sleep(0.08)


def main():
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(spin, range(40)))
        list(pool.map(nap, range(30)))
        list(pool.map(behind_a_lock, range(40)))
    asyncio.run(rude())
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        print(list(pool.map(abs, [-1])), sys.argv[1:])
    sys.exit(3)


if __name__ == "__main__":
    main()
"""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A program that does what one should not."""
    path = tmp_path / "job.py"
    path.write_text(JOB)
    return path


def test_a_program_is_run_as_python_runs_it_and_its_faults_are_named(sennit: Sennit, job: Path) -> None:
    done = sennit("profile", "--json", "--", "python", str(job), "one", "--two")

    assert done.returncode == 3, done.stderr
    output, *lines = done.stdout.splitlines()
    assert output == "[1] ['one', '--two']"
    *found, facts = map(json.loads, lines)
    assert {line["schema"] for line in found} == {"sennit.finding/1"}
    assert [line["share"] for line in found] == sorted((line["share"] for line in found), reverse=True)
    assert any("rude blocks the event loop" in line["what"] for line in found)
    assert facts["schema"] == "sennit.profile/1"
    kinds = {f["name"]: f["kind"] for f in facts["functions"]}
    assert kinds["__main__:nap"] == "io"
    assert kinds["__main__:spin"] in {"cpu", "mixed"}
    (lock,) = [lock for lock in facts["locks"] if "job.py:9 " in lock["where"]]
    assert lock["acquisitions"] == 40


FLEET = """
from time import sleep

from sennit import App

app = App("sqlite:///fleet.db")


@app.task
def rest(n: int) -> int:
    sleep(0.05)
    return n


if __name__ == "__main__":
    with app:
        print(sum(rest.map(range(30)).result()))
"""


def test_sync_bodies_of_sennit_count_by_their_handler(sennit: Sennit, tmp_path: Path) -> None:
    path = tmp_path / "fleet.py"
    path.write_text(FLEET)

    done = sennit("profile", "--json", "--", "python", str(path))

    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    (rest,) = [f for f in facts["functions"] if f["name"] == "__main__:rest"]
    assert (rest["calls"], rest["kind"]) == (30, "io")


def test_what_people_read_has_the_findings_the_curve_and_the_stack(sennit: Sennit, job: Path) -> None:
    done = sennit("profile", "--stacks", "--", "python", str(job))

    assert done.returncode == 3, done.stderr
    assert "1. " in done.stdout
    assert "calls per second that a pool of n OS threads can do" in done.stdout
    assert "blocked the event loop: task rude" in done.stdout
    assert "job.py" in done.stdout
    assert "main  job.py" in done.stdout  # as pyinstrument draws it


def test_a_program_that_is_killed_leaves_nothing_to_judge_and_that_is_said(sennit: Sennit) -> None:
    done = sennit("profile", "--", "python", "-c", "import os; os.kill(os.getpid(), 9)")

    assert done.returncode == 137
    assert "exit code 137" in done.stderr
    assert "left no measurements" in done.stderr


ENDINGS = """
import os
import sys
import threading

lock = threading.Lock()
turns = threading.Barrier(2)


def take_turns():
    for _ in range(3):
        turns.wait()
        with lock:
            pass


pid = os.fork()
if pid == 0:
    sys.exit(5)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
for _ in range(2):
    threading.Thread(target=take_turns).start()
raise ValueError("on purpose")
"""


def test_a_program_ends_as_without_us_and_is_watched_until_its_last_os_thread_has_ended(
    sennit: Sennit, tmp_path: Path
) -> None:
    path = tmp_path / "endings.py"
    path.write_text(ENDINGS)

    done = sennit("profile", "--json", "--", "python", str(path))

    assert done.returncode == 1
    forked, *_, facts = done.stdout.splitlines()
    assert forked == "5"
    assert json.loads(facts)["exit_code"] == 1
    (lock,) = [lock for lock in json.loads(facts)["locks"] if "endings.py:6 " in lock["where"]]
    assert lock["acquisitions"] == 6
    expected = f'Traceback (most recent call last):\n  File "{path}", line 23, in <module>\n    raise ValueError'
    assert done.stderr.startswith(expected), done.stderr


@pytest.mark.parametrize(
    ("code", "exit_code", "said"),
    [
        ("def f(:", 1, '  File "<string>", line 1\n'),
        ("import sys; sys.exit('enough')", 1, "enough\n"),
        ("import os; os._exit(3)", 3, "error[S101]"),
    ],
)
def test_what_a_program_says_at_its_end_is_what_it_says_alone(
    sennit: Sennit, code: str, exit_code: int, said: str
) -> None:
    done = sennit("profile", "--", "python", "-c", code)

    assert done.returncode == exit_code
    assert done.stderr.startswith(said)


def test_a_flame_graph_in_a_folder_that_is_not_there_is_refused_before_the_program_runs(sennit: Sennit) -> None:
    done = sennit("profile", "--flame", "/no/such/folder/f.svg", "--", "python", "-c", "print('ran')")

    assert done.returncode == 2
    assert "there is no folder" in done.stderr or "py-spy is not installed" in done.stderr
    assert "ran" not in done.stdout


@pytest.mark.parametrize(
    ("words", "interpreter", "program"),
    [
        (("python", "-c", "pass"), [sys.executable], ["-c", "pass"]),
        (("python3", "-X", "dev", "-u", "-m", "job", "-v"), [sys.executable, "-X", "dev", "-u"], ["-m", "job", "-v"]),
        (("job.py", "x"), [sys.executable], ["job.py", "x"]),
    ],
)
def test_the_interpreter_keeps_its_options_and_the_program_its_own(
    words: tuple[str, ...], interpreter: list[str], program: list[str]
) -> None:
    split = python_words(words)

    assert (split.interpreter, split.program) == (interpreter, program)


def test_a_script_that_pip_installed_runs_under_the_python_of_its_first_line(tmp_path: Path) -> None:
    script = tmp_path / "tool"
    script.write_text(f"#!{sys.executable}\nprint('hello')\n")
    script.chmod(0o755)

    split = python_words((str(script), "--fast"))

    assert (split.interpreter, split.program) == ([sys.executable], [str(script), "--fast"])


@pytest.mark.parametrize("words", [("ls",), ("python",), ("python", "-m"), ("python", "no_such_file.py"), ("no-such",)])
def test_what_is_no_python_program_is_refused_with_a_way_out(words: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as refused:
        python_words(words)

    assert refused.value.fix


def test_one_function_is_tried_in_os_threads_and_in_processes(sennit: Sennit, job: Path) -> None:
    job.write_text(JOB + "\n\ndef nap_alone():\n    nap(0)\n")

    done = sennit("doctor", "--workload", f"{job}:nap_alone", "--seconds", "0.05", "--json")

    assert done.returncode == 0, done.stderr
    verdict = json.loads(done.stdout)
    assert verdict["kind"] == "io"
    places = {(place["where"], place["workers"]): place["calls_per_s"] for place in verdict["places"]}
    assert {n for where, n in places if where == "OS threads"} == {1, 2, 4, 8, 16, 32}
    assert any(where == "processes" for where, _ in places)
    assert places["OS threads", 8] > places["OS threads", 1]
    assert verdict["best"]["workers"] > 2


def test_a_function_that_is_not_there_is_an_error_with_a_way_out(sennit: Sennit, job: Path) -> None:
    done = sennit("doctor", "--workload", f"{job}:nothing")

    assert done.returncode != 0
    assert "cannot be loaded" in done.stderr
    assert "module:function" in done.stderr


def raises() -> None:
    """Raise at once."""
    raise ValueError("on purpose")


def leaves() -> None:
    """End the process."""
    sys.exit(3)


def needs(argument: int) -> int:
    """Want what nobody gives."""
    return argument


async def waits() -> None:
    """Belong to an event loop."""


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("raises", "raised ValueError: on purpose"),
        ("leaves", "raised SystemExit: 3"),
        ("needs", "raised TypeError"),
        ("waits", "is a coroutine function"),
    ],
)
def test_a_function_that_cannot_be_tried_is_an_error_of_its_own_and_none_of_sennit(function: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as refused:
        examine_workload(f"{__name__}:{function}", seconds=0.05, is_json=True)

    assert refused.value.fix


def test_a_function_that_does_not_return_is_given_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_workload, "CALL_S_MAX", 0.01)
    monkeypatch.setattr(sys.modules[__name__], "raises", threading.Event().wait)

    with pytest.raises(UsageError, match="has not returned"):
        examine_workload(f"{__name__}:raises", seconds=0.05, is_json=True)
