"""The workspace: values come back, names are safe, changes are whole, and nothing is written outside of the root."""

from __future__ import annotations

import asyncio
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sennit.errors import LockTimeout, PayloadError, UsageError, WorkspaceTooLarge
from sennit.sync.filelocks import FileLock
from sennit.threads.names import safe_name
from sennit.threads.workspace import Workspace, WorkspaceStatistics

STRANGE_IDS = [
    "release-9",
    "A",
    "a",
    "..",
    ".",
    "../../etc/passwd",
    "/absolute",
    "nul\0inside",
    "x" * 10_000,
    "x" * 9_999 + "y",
    "Grüße, 世界 🧵",
    "e\u0301",
    "é",
    "\ud800",
    " ",
    "a~b",
    "new~new",
    "x.lock",
    "x",
]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "root" / "workspace")


# ---------------------------------------------------------------- values


@dataclass
class Finding:
    file: str
    line: int


@pytest.mark.parametrize(
    ("value", "comes_back"),
    [
        ("text\nwith lines\n", None),
        ('{"kind":"bytes"}\n', None),
        ("", None),
        ("half \ud800", None),
        (b"\x00\xff\n", None),
        (b"", None),
        ({"a": [1, 2.5, None, True]}, None),
        (None, None),
        (0, None),
        ((1, 2), [1, 2]),
        (Finding("a.py", 3), {"file": "a.py", "line": 3}),
        (Path("a/b"), "a/b"),
    ],
)
def test_values_come_back(workspace: Workspace, value: Any, comes_back: Any) -> None:
    expected = value if comes_back is None else comes_back
    workspace.set_context("t", "k", value)
    workspace.share("k", value)
    workspace.add_output("t", "k", value)

    assert workspace.get_context("t", "k", "default") == expected
    assert workspace.shared("k", "default") == expected
    assert workspace.output("t", 1) == expected


@pytest.mark.parametrize("value", [object(), {"a": object()}, "".join, {(1, 2): 3}, ["half \ud800"]])
def test_what_does_not_serialise_is_refused(workspace: Workspace, value: Any) -> None:
    for write in (workspace.set_context, workspace.add_output):
        with pytest.raises(PayloadError):
            write("t", "k", value)
    with pytest.raises(PayloadError):
        workspace.broadcast(value)

    assert workspace.statistics() == WorkspaceStatistics(0, 0, 0)


def test_what_is_missing_is_the_default(workspace: Workspace) -> None:
    assert workspace.get_context("t", "k") is None
    assert workspace.get_context("t", "k", 3) == 3
    assert workspace.shared("k", 3) == 3
    assert workspace.contexts("t") == {}
    assert workspace.outputs("t") == []
    assert workspace.messages("t") == []
    assert not workspace.delete_context("t", "k")
    assert not workspace.delete_shared("k")
    assert not workspace.delete("t")


def test_contexts_are_by_key_and_those_of_a_task_are_its_own(workspace: Workspace) -> None:
    workspace.set_context("t", "A", 1)
    workspace.set_context("t", "a", 2)
    workspace.set_context("t", "a", 3, task_id=7)
    workspace.set_context("other", "a", 4)

    assert workspace.contexts("t") == {"A": 1, "a": 2}
    assert workspace.contexts("t", task_id=7) == {"a": 3}
    assert workspace.get_context("t", "a", task_id=8) is None


def test_a_value_may_change_its_kind(workspace: Workspace) -> None:
    for value in ("text", b"bytes", {"json": 1}, "text again"):
        workspace.set_context("t", "k", value)
        assert workspace.contexts("t") == {"k": value}


def test_an_update_gets_the_value_and_returns_the_new_one(workspace: Workspace) -> None:
    assert workspace.update_context("t", "n", lambda n: n + 1, default=0) == 1
    assert workspace.update_context("t", "n", lambda n: n + 1) == 2
    assert workspace.update_shared("n", lambda n: [*n, 1], default=[]) == [1]
    assert (workspace.get_context("t", "n"), workspace.shared("n")) == (2, [1])


def test_an_update_that_raises_changes_nothing(workspace: Workspace) -> None:
    workspace.set_context("t", "n", 1)

    with pytest.raises(ZeroDivisionError):
        workspace.update_context("t", "n", lambda n: n / 0)
    with pytest.raises(PayloadError):
        workspace.update_context("t", "n", lambda _: object())

    assert workspace.get_context("t", "n") == 1
    workspace.set_context("t", "n", 2)  # and the lock is free


def test_a_deleted_value_is_gone(workspace: Workspace) -> None:
    workspace.set_context("t", "k", 1)
    workspace.share("d", 1)

    assert workspace.delete_context("t", "k")
    assert workspace.delete_shared("d")
    assert (workspace.contexts("t"), workspace.shared("d")) == ({}, None)


# ---------------------------------------------------------------- ceilings


def test_values_up_to_the_ceiling_are_stored_and_above_it_refused(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path, context_bytes_max=100, document_bytes_max=200)

    workspace.set_context("t", "k", "x" * 100)
    workspace.share("k", "x" * 200)
    workspace.add_output("t", "k", "x" * 200)
    for write in (
        lambda: workspace.set_context("t", "k", "x" * 101),
        lambda: workspace.update_context("t", "k", lambda _: "x" * 101),
        lambda: workspace.share("k", "x" * 201),
        lambda: workspace.add_output("t", "k", "x" * 201),
        lambda: workspace.broadcast("x" * 101),
    ):
        with pytest.raises(WorkspaceTooLarge, match=r"raise (context|document)_bytes_max"):
            write()

    assert workspace.get_context("t", "k") == "x" * 100
    assert len(workspace.outputs("t")) == 1


def test_the_ceilings_are_one_and_ten_megabytes(workspace: Workspace) -> None:
    workspace.set_context("t", "k", b"x" * 1024 * 1024)
    workspace.share("k", b"x" * 10 * 1024 * 1024)

    with pytest.raises(WorkspaceTooLarge) as caught:
        workspace.set_context("t", "k", b"x" * (1024 * 1024 + 1))

    assert (caught.value.size_bytes, caught.value.size_bytes_max) == (1_048_577, 1_048_576)


# ---------------------------------------------------------------- outputs, broadcasts


def test_outputs_are_a_list_of_plain_files(workspace: Workspace) -> None:
    first = workspace.add_output("t", "Report.md", "# Done", task_id=7)
    second = workspace.add_output("t", "../Report.md\n", b"\x89PNG")

    assert workspace.outputs("t") == [first, second]
    assert [(o.sequence, o.name, o.kind, o.size_bytes, o.task_id) for o in (first, second)] == [
        (1, "Report.md", "text", 6, 7),
        (2, "../Report.md\n", "bytes", 4, None),
    ]
    assert first.path.name == "00000001-Report.md"
    assert (first.path.read_text(), second.path.read_bytes()) == ("# Done", b"\x89PNG")
    assert (workspace.output("t", 1), workspace.output("t", 2)) == ("# Done", b"\x89PNG")
    with pytest.raises(UsageError, match="no output 3"):
        workspace.output("t", 3)


def test_data_that_a_killed_writer_has_left_is_no_output(workspace: Workspace) -> None:
    workspace.add_output("t", "a", "1")
    left = workspace.outputs("t")[0].path.with_name("00000002-b")
    left.write_text("half done")

    assert [o.name for o in workspace.outputs("t")] == ["a"]
    assert workspace.add_output("t", "c", "2").sequence == 2
    assert not left.exists()


def test_every_thread_sees_a_broadcast_once(workspace: Workspace) -> None:
    workspace.broadcast("one")
    assert [m.value for m in workspace.messages("a")] == ["one"]
    workspace.broadcast({"two": "\r\n\u2028"})

    assert [m.value for m in workspace.messages("a", advance=False)] == [{"two": "\r\n\u2028"}]
    assert [m.value for m in workspace.messages("a")] == [{"two": "\r\n\u2028"}]
    assert workspace.messages("a") == []
    assert [m.value for m in workspace.messages("b")] == ["one", {"two": "\r\n\u2028"}]


def test_bytes_are_no_broadcast(workspace: Workspace) -> None:
    with pytest.raises(PayloadError, match="share"):
        workspace.broadcast(b"x")


def test_a_broadcast_that_was_cut_off_is_seen_by_nobody(workspace: Workspace) -> None:
    workspace.broadcast("one")
    with (workspace.root / "broadcasts").open("ab") as log:
        log.write(b'{"at_us":1,"va')
    assert [m.value for m in workspace.messages("a")] == ["one"]

    workspace.broadcast("two")

    assert [m.value for m in workspace.messages("a")] == ["two"]


def test_the_oldest_broadcasts_are_dropped_and_nobody_reads_one_twice(tmp_path: Path) -> None:
    bytes_max = 1000
    workspace = Workspace(tmp_path, broadcasts_bytes_max=bytes_max)
    told: dict[str, list[Any]] = {"always": [], "often": []}

    for n in range(200):
        workspace.broadcast(n)
        assert (tmp_path / "broadcasts").stat().st_size <= bytes_max
        told["always"] += [m.value for m in workspace.messages("always")]
        if n % 3 == 0:
            told["often"] += [m.value for m in workspace.messages("often")]
    late = [m.value for m in workspace.messages("late")]

    assert told["always"] == list(range(200))
    assert told["often"] == list(range(199))
    assert late == list(range(late[0], 200))
    assert bytes_max // 2 // 50 <= len(late) < 200
    assert workspace.messages("late") == []


def test_who_was_behind_what_was_dropped_goes_on_with_what_is_left(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path, broadcasts_bytes_max=400)
    workspace.broadcast("first")
    assert [m.value for m in workspace.messages("a")] == ["first"]
    for n in range(50):
        workspace.broadcast(n)

    missed = [m.value for m in workspace.messages("a")]

    assert 0 < len(missed) < 50
    assert missed == list(range(50 - len(missed), 50))


def test_the_newest_broadcast_stays_however_large_it_is(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path, broadcasts_bytes_max=100)
    for text in ("a" * 10, "b" * 300, "c" * 300):
        workspace.broadcast(text)
        assert [m.value for m in workspace.messages(text[:1])][-1:] == [text]

    assert [m.value for m in workspace.messages("late")] == ["c" * 300]


def test_broadcasts_that_somebody_has_deleted_begin_anew(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path, broadcasts_bytes_max=300)
    for n in range(20):
        workspace.broadcast(n)
    workspace.messages("a")
    (tmp_path / "broadcasts").unlink()

    assert workspace.messages("a") == []
    for n in range(8):
        workspace.broadcast(f"anew {n}")

    assert [m.value for m in workspace.messages("a")][-1] == "anew 7"


# ---------------------------------------------------------------- names


@pytest.mark.parametrize("what", ["thread", "key", "shared", "output"])
def test_strange_names_are_stored_apart_and_inside(tmp_path: Path, what: str) -> None:
    workspace = Workspace(tmp_path / "root")
    before = set(tmp_path.iterdir())
    for n, name in enumerate(STRANGE_IDS):
        match what:
            case "thread":
                workspace.set_context(name, "k", n)
            case "key":
                workspace.set_context("t", name, n)
            case "shared":
                workspace.share(name, n)
            case "output":
                workspace.add_output("t", name, n)

    match what:
        case "thread":
            assert [workspace.get_context(name, "k") for name in STRANGE_IDS] == list(range(len(STRANGE_IDS)))
        case "key":
            assert workspace.contexts("t") == {name: n for n, name in enumerate(STRANGE_IDS)}
        case "shared":
            assert [workspace.shared(name) for name in STRANGE_IDS] == list(range(len(STRANGE_IDS)))
        case "output":
            assert [o.name for o in workspace.outputs("t")] == STRANGE_IDS
    assert set(tmp_path.iterdir()) - before == {tmp_path / "root"}


@pytest.mark.parametrize("thread_id", ["", None, 7, b"t"])
def test_what_is_no_name_is_refused(workspace: Workspace, thread_id: Any) -> None:
    with pytest.raises(UsageError, match="thread_id is"):
        workspace.set_context(thread_id, "k", 1)
    with pytest.raises(UsageError, match="context is"):
        workspace.set_context("t", thread_id, 1)
    with pytest.raises(UsageError, match="name is"):
        workspace.add_output("t", thread_id, 1)


@pytest.mark.parametrize("task_id", ["../x", -1, 1.5])
def test_what_is_no_task_id_is_refused(workspace: Workspace, task_id: Any) -> None:
    with pytest.raises(UsageError, match="task_id is"):
        workspace.set_context("t", "k", 1, task_id=task_id)


def test_plain_names_stay_as_they_are() -> None:
    assert [safe_name(name, "") for name in ("notes", "release-9", "a.b_c", "42")] == [
        "notes",
        "release-9",
        "a.b_c",
        "42",
    ]
    assert safe_name("Über uns/../A", "").startswith("uber-uns-..-a~")


names = st.text(st.characters(codec=None), min_size=1, max_size=120) | st.text("aA.-~/_ ", min_size=1, max_size=90)


@given(st.lists(names, min_size=2, max_size=20, unique=True))
@example(STRANGE_IDS)
def test_property_different_names_are_different_files(texts: list[str]) -> None:
    safe = [safe_name(text, "name") for text in texts]

    assert len({name.casefold() for name in safe}) == len(texts)
    assert all(name.isascii() and 0 < len(name) <= 80 and "/" not in name and "\0" not in name for name in safe)
    assert not any(name.startswith(".") or name.endswith("~new") for name in safe)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(names, min_size=2, max_size=5, unique=True))
def test_property_threads_have_folders_of_their_own_inside_the_root(tmp_path: Path, ids: list[str]) -> None:
    root = (tmp_path / "root").resolve()
    workspace = Workspace(root)
    for thread_id in ids:
        workspace.set_context(thread_id, "k", [thread_id.encode("utf-8", "surrogatepass").hex()])

    folders = {thread_id: (root / "threads" / safe_name(thread_id, "")).resolve() for thread_id in ids}
    assert len(set(folders.values())) == len(ids)
    assert all(folder.parent == root / "threads" and folder.is_dir() for folder in folders.values())
    for thread_id in ids:
        assert workspace.get_context(thread_id, "k") == [thread_id.encode("utf-8", "surrogatepass").hex()]
        assert workspace.delete(thread_id)


# ---------------------------------------------------------------- links and strangers


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret").write_text('{"kind":"text","key":"k"}\nsecret')
    return folder


@pytest.mark.parametrize("link", ["threads", "threads/t", "threads/t/context", "threads/t/outputs", "shared", "locks"])
def test_a_folder_that_is_a_link_is_not_followed(workspace: Workspace, outside: Path, link: str) -> None:
    place = workspace.root / link
    place.parent.mkdir(parents=True)
    place.symlink_to(outside, target_is_directory=True)

    refusals = []
    for act in (
        lambda: workspace.set_context("t", "secret", 1),
        lambda: workspace.get_context("t", "secret"),
        lambda: workspace.contexts("t"),
        lambda: workspace.add_output("t", "secret", 1),
        lambda: workspace.share("secret", 1),
        lambda: workspace.shared("secret"),
    ):
        try:
            act()
        except UsageError as error:
            refusals.append(str(error))

    assert refusals
    assert all("is a symbolic link" in refusal for refusal in refusals)
    assert [path.name for path in outside.iterdir()] == ["secret"]
    assert (outside / "secret").read_text().endswith("secret")


def test_a_value_that_is_a_link_is_not_read_and_is_replaced_itself(workspace: Workspace, outside: Path) -> None:
    workspace.set_context("t", "k", 1)
    file = workspace.root / "threads" / "t" / "context" / "k"
    file.unlink()
    file.symlink_to(outside / "secret")

    with pytest.raises(UsageError, match="symbolic link"):
        workspace.get_context("t", "k")
    workspace.set_context("t", "k", 2)

    assert workspace.get_context("t", "k") == 2
    assert (outside / "secret").read_text().endswith("secret")


def test_a_link_where_a_new_file_is_written_is_not_followed(workspace: Workspace, outside: Path) -> None:
    workspace.set_context("t", "k", 1)
    folder = workspace.root / "threads" / "t" / "context"
    (folder / "k~new").symlink_to(outside / "secret")

    workspace.set_context("t", "k", 2)
    os.link(outside / "secret", folder / "k~new")
    workspace.set_context("t", "k", 3)

    assert workspace.contexts("t") == {"k": 3}
    assert (outside / "secret").read_text().endswith("secret")


def test_a_delete_removes_links_and_not_what_they_lead_to(workspace: Workspace, outside: Path) -> None:
    workspace.set_context("t", "k", 1)
    (workspace.root / "threads" / "t" / "away").symlink_to(outside, target_is_directory=True)

    assert workspace.delete("t")

    assert (outside / "secret").exists()
    assert not list((workspace.root / "trash").iterdir())


def test_a_named_pipe_does_not_hold_a_reader_up(workspace: Workspace) -> None:
    workspace.set_context("t", "k", 1)
    file = workspace.root / "threads" / "t" / "context" / "k"
    file.unlink()
    os.mkfifo(file)

    with pytest.raises(UsageError, match="no regular file"):
        workspace.get_context("t", "k")


@pytest.mark.parametrize("content", [b"", b"\n", b"[]\n", b"{}\n", b'{"kind":"x","key":"k"}\n1', b"\xff\xfe", b"null"])
def test_a_file_of_somebody_else_is_named_in_the_error(workspace: Workspace, content: bytes) -> None:
    workspace.set_context("t", "k", 1)
    (workspace.root / "threads" / "t" / "context" / "k").write_bytes(content)

    with pytest.raises(PayloadError, match="context/k is no document"):
        workspace.get_context("t", "k")


def test_the_root_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real", target_is_directory=True)

    Workspace(tmp_path / "link").set_context("t", "k", 1)

    assert Workspace(tmp_path / "real").get_context("t", "k") == 1


# ---------------------------------------------------------------- the whole


def test_statistics_count_threads_files_and_bytes(workspace: Workspace) -> None:
    workspace.set_context("a", "k", "x")
    workspace.set_context("b", "k", "x", task_id=1)
    workspace.share("k", "x")

    statistics = workspace.statistics()

    assert (statistics.threads, statistics.files) == (2, 3)
    assert statistics.size_bytes == 3 * len(b'{"kind":"text","key":"k"}\nx')


def test_a_deleted_thread_has_nothing_and_begins_anew(workspace: Workspace) -> None:
    workspace.broadcast("hello")
    workspace.set_context("t", "k", 1, task_id=1)
    workspace.add_output("t", "o", 1)
    workspace.messages("t")

    assert workspace.delete("t")

    assert workspace.statistics().threads == 0
    assert (workspace.contexts("t", task_id=1), workspace.outputs("t")) == ({}, [])
    assert [m.value for m in workspace.messages("t")] == ["hello"]
    assert workspace.add_output("t", "o", 1).sequence == 1
    assert not [path for path in (workspace.root / "locks" / "threads").iterdir() if not path.name.startswith("t.")]


def test_a_writer_that_waited_for_a_deletion_writes_into_the_new_thread(workspace: Workspace) -> None:
    workspace.set_context("t", "k", 1)
    waiting = threading.Event()
    go_on = threading.Event()

    def slow(value: Any) -> Any:
        waiting.set()
        go_on.wait(30)
        return value

    threads = [threading.Thread(target=lambda: workspace.update_context("t", "k", slow))]
    threads[0].start()
    waiting.wait(30)
    threads += [
        threading.Thread(target=lambda: workspace.delete("t")),
        threading.Thread(target=lambda: workspace.set_context("t", "new", 2)),
    ]
    for thread in threads[1:]:
        thread.start()
    go_on.set()
    for thread in threads:
        thread.join()

    assert workspace.contexts("t") in ({"new": 2}, {})  # whoever came first; never a value of a deleted thread
    workspace.set_context("t", "k", 3)
    assert workspace.get_context("t", "k") == 3


def test_a_held_lock_is_a_clear_error(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path, lock_timeout_s=0.01)
    errors: list[LockTimeout] = []

    def write() -> None:
        try:
            workspace.set_context("t", "k", 2)
        except LockTimeout as error:
            errors.append(error)

    def fn(_: Any) -> int:
        other = threading.Thread(target=write)
        other.start()
        other.join()
        return 1

    workspace.update_context("t", "k", fn)

    assert "update context 'k'" in errors[0].owner
    assert workspace.get_context("t", "k") == 1


@pytest.mark.parametrize("face", ["sync", "async"])
def test_a_change_within_a_change_is_an_error_and_not_a_deadlock(workspace: Workspace, face: str) -> None:
    def fn(_: Any) -> int:
        workspace.update_context("other thread", "k", lambda _: 1)
        workspace.set_context("t", "other", 1)
        return 1

    def change() -> None:
        if face == "sync":
            workspace.update_context("t", "k", fn)
        else:
            asyncio.run(workspace.update_context.aio("t", "k", fn))

    with pytest.raises(UsageError, match="wants to change more"):
        change()

    assert workspace.contexts("t") == {}
    assert workspace.contexts("other thread") == {"k": 1}


# ---------------------------------------------------------------- async


def test_the_async_face_does_the_same(workspace: Workspace) -> None:
    async def scenario() -> None:
        await workspace.set_context.aio("t", "k", 0)
        await asyncio.gather(*[workspace.update_context.aio("t", "k", lambda n: n + 1) for _ in range(20)])
        assert await workspace.get_context.aio("t", "k") == 20
        assert await workspace.contexts.aio("t") == {"k": 20}
        await workspace.broadcast.aio("hello")
        assert [m.value for m in await workspace.messages.aio("t")] == ["hello"]
        assert (await workspace.add_output.aio("t", "o", "x")).sequence == 1
        assert await workspace.delete.aio("t")

    asyncio.run(scenario())

    assert not list((workspace.root / "locks" / "threads").iterdir())


def test_the_event_loop_runs_while_a_file_is_written(workspace: Workspace) -> None:
    async def scenario() -> None:
        ran = threading.Event()
        asyncio.get_running_loop().call_later(0.01, ran.set)

        assert await workspace.update_context.aio("t", "k", lambda _: ran.wait(30)) is True

    asyncio.run(scenario())


def test_a_cancelled_change_keeps_the_lock_until_its_file_is_written(workspace: Workspace) -> None:
    started, go_on = threading.Event(), threading.Event()

    def slow(_: Any) -> int:
        started.set()
        go_on.wait(30)
        return 1

    async def scenario() -> None:
        change = asyncio.create_task(workspace.update_context.aio("t", "k", slow))
        await asyncio.to_thread(started.wait, 30)
        for _ in range(3):
            change.cancel()
            await asyncio.sleep(0)
        lock = workspace.root.resolve() / "locks" / "threads" / "t.lock"
        assert FileLock(lock).owner() is not None
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await change
        assert FileLock(lock).owner() is None

    asyncio.run(scenario())

    assert workspace.get_context("t", "k") == 1


def test_a_cancelled_wait_for_the_lock_changes_nothing(workspace: Workspace) -> None:
    async def scenario() -> None:
        (workspace.root / "locks" / "threads").mkdir(parents=True)
        async with FileLock(workspace.root / "locks" / "threads" / "t.lock"):
            change = asyncio.create_task(workspace.set_context.aio("t", "k", 1))
            await asyncio.sleep(0)
            change.cancel()
            with pytest.raises(asyncio.CancelledError):
                await change

    asyncio.run(scenario())

    assert workspace.contexts("t") == {}
