"""ACP from a program that is broken or means harm: nothing raises, nothing is believed twice, nothing outside is touched."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sennit.execute.adapters.acp_files import FILE_BYTES_MAX, FileRefused, Folder
from sennit.execute.adapters.acp_leave import ASKS_MAX, fingerprint
from sennit.execute.adapters.acp_lines import CALLS_MAX, FILE_REQUESTS_MAX, TEXT_CHARS_MAX, AcpReader
from sennit.execute.adapters.acp_values import cut_request
from sennit.execute.adapters.base import AgentRun, Exit
from sennit.execute.agent_output import CHUNK_BYTES, LINE_BYTES_MAX, Lines
from sennit.model.agent import AgentEvent

HELLO = {"protocolVersion": 1, "agentCapabilities": {"loadSession": True}}


class Wire:
    """A reader, and what it says."""

    def __init__(self, cwd: Path, **options: Any) -> None:
        run = AgentRun(prompt="go", session_id="", is_resume=False, cwd=cwd, folder=cwd)
        self.reader = AcpReader(run, **options)

    def said(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.reader.to_say().splitlines()]

    def tell(self, message: Any) -> list[AgentEvent]:
        return self.reader.feed(json.dumps({"jsonrpc": "2.0", **message}).encode())

    def update(self, **update: Any) -> list[AgentEvent]:
        return self.tell({"method": "session/update", "params": {"sessionId": "s", "update": update}})

    def request(self, method: str, request_id: Any = 7, **params: Any) -> dict[str, Any]:
        """Request something; return the answer."""
        self.tell({"id": request_id, "method": method, "params": {"sessionId": "s", **params}})
        return self.said()[-1]

    def prompted(self) -> Wire:
        """Go on until the prompt was sent."""
        self.tell({"id": 0, "result": HELLO})
        self.tell({"id": 1, "result": {"sessionId": "s"}})
        assert [said["method"] for said in self.said()] == ["initialize", "session/new", "session/prompt"]
        return self


# ---------------------------------------------------------------- messages

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
WORDS = st.sampled_from(
    ["s", "update", "tool_call", "agent_message_chunk", "session/update", "allow_once", "fs/read_text_file"]
)
NAMES = """jsonrpc id method params result error code message data update sessionUpdate sessionId content text type toolCallId
toolCall title kind status rawInput options optionId stopReason usage cost amount currency entries path limit line"""
KEYS = st.sampled_from(sorted(NAMES.split()))
VALUES = st.recursive(
    SCALARS | WORDS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5)
)
METHODS = st.sampled_from(
    ["session/update", "session/request_permission", "fs/read_text_file", "fs/write_text_file", "terminal/create", "x"]
)
MESSAGES = st.fixed_dictionaries(
    {}, optional={"id": SCALARS, "method": METHODS, "params": VALUES, "result": VALUES, "error": VALUES}
)


@settings(max_examples=50)
@given(st.lists(MESSAGES, max_size=6), st.booleans())
def test_no_message_makes_a_reader_raise(messages: list[Any], prompted: bool) -> None:  # noqa: FBT001 - drawn
    wire = Wire(Path("/nowhere/at/all"))
    if prompted:
        wire.prompted()
    for message in messages:
        line = json.dumps(message).encode()
        events = wire.reader.feed(line)
        msgspec.json.encode(events)
        wire.reader.to_say()
    msgspec.json.encode(wire.reader.end(Exit(code=0)))


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"\xff\xfe",
        b"Loading model ...",
        b'{"id": 0}',
        b"{}",
    ],
)
def test_a_line_that_is_no_message_is_none(tmp_path: Path, line: bytes) -> None:
    wire = Wire(tmp_path)
    wire.said()

    if line != b'{"id": 0}':  # an answer without anything in it
        assert wire.reader.feed(line) == []
        assert wire.said() == []


@pytest.mark.parametrize("wrong", [True, 1.0, "1", None, 2, -1, [1], {"a": 1}])
def test_an_answer_to_another_request_is_no_answer_to_ours(tmp_path: Path, wrong: Any) -> None:
    wire = Wire(tmp_path)
    wire.tell({"id": 0, "result": HELLO})
    wire.said()

    if wrong == 1.0 and not isinstance(wrong, bool):
        wrong = 1.5
    assert wire.tell({"id": wrong, "result": {"sessionId": "stolen"}}) == []
    assert wire.said() == []


def test_what_was_answered_is_not_answered_again(tmp_path: Path) -> None:
    wire = Wire(tmp_path).prompted()

    [*_, result] = wire.tell({"id": 2, "result": {"stopReason": "end_turn"}})
    again = wire.tell({"id": 2, "result": {"stopReason": "refusal"}})
    after = wire.update(sessionUpdate="agent_message_chunk", content={"type": "text", "text": "more"})

    assert (result.kind, again, after) == ("result", [], [])
    assert wire.reader.end(Exit(code=0)).outcome == "success"


@pytest.mark.parametrize("request_id", [10**30, True, None, 1.5, [1], "\ud800", "x" * 10_000])
def test_a_request_whose_id_cannot_be_said_back_is_not_answered(tmp_path: Path, request_id: Any) -> None:
    wire = Wire(tmp_path).prompted()

    wire.tell({"id": request_id, "method": "terminal/create", "params": {}})

    assert wire.said() == []


def test_updates_and_requests_of_another_session_are_not_ours(tmp_path: Path) -> None:
    wire = Wire(tmp_path).prompted()
    (tmp_path / "a").write_text("a")
    chunk = {"sessionUpdate": "agent_message_chunk", "content": {"type": "text", "text": "hi"}}

    assert wire.tell({"method": "session/update", "params": {"sessionId": "t", "update": chunk}}) == []
    for method in ("fs/read_text_file", "session/request_permission"):
        assert wire.request(method, sessionId="t", path=f"{tmp_path}/a")["error"]["code"] == -32602


def test_a_request_longer_than_a_line_is_refused_and_not_left_without_an_answer(tmp_path: Path) -> None:
    wire = Wire(tmp_path).prompted()
    params = {"sessionId": "s", "path": f"{tmp_path}/a", "content": "x" * LINE_BYTES_MAX}
    message = {"jsonrpc": "2.0", "id": "w1", "method": "fs/write_text_file", "params": params}
    data, lines = json.dumps(message).encode() + b"\n", Lines()
    [line] = [line for at in range(0, len(data), CHUNK_BYTES) for line in lines.feed(data[at : at + CHUNK_BYTES])]

    wire.reader.feed(line)

    assert [(said["id"], "1 MiB" in said["error"]["message"]) for said in wire.said()] == [("w1", True)]
    assert cut_request(b'{"jsonrpc": "2.0", "id": 3, "method": "x"}') is None


def test_memory_is_bounded_whatever_comes(tmp_path: Path) -> None:
    wire = Wire(tmp_path).prompted()
    for n in range(CALLS_MAX + 50):
        wire.update(sessionUpdate="tool_call", toolCallId=f"c{n}", title="t")
    for _ in range(3):
        wire.update(sessionUpdate="agent_message_chunk", content={"type": "text", "text": "x" * (TEXT_CHARS_MAX // 2)})
    for n in range(FILE_REQUESTS_MAX + 50):  # nobody asks what is to be said
        wire.tell({"id": n, "method": "fs/read_text_file", "params": {"sessionId": "s", "path": f"{tmp_path}/a"}})

    assert len(wire.reader._calls) == CALLS_MAX
    assert len(wire.reader._message) == TEXT_CHARS_MAX
    assert len(wire.said()) == FILE_REQUESTS_MAX


def test_a_reader_that_only_reads_writes_no_file(tmp_path: Path) -> None:
    wire = Wire(tmp_path).prompted()

    wire.tell(
        {"id": 1, "method": "fs/write_text_file", "params": {"sessionId": "s", "path": f"{tmp_path}/a", "content": "a"}}
    )

    assert not (tmp_path / "a").exists()
    wire.reader.to_say()
    assert (tmp_path / "a").read_text() == "a"


# ---------------------------------------------------------------- permission


def test_a_flood_of_requests_for_leave_is_cut(tmp_path: Path) -> None:
    wire = Wire(tmp_path).prompted()
    for n in range(ASKS_MAX + 20):
        answer = wire.request("session/request_permission", toolCall={"toolCallId": f"c{n}", "rawInput": {"n": n}})
        assert answer["result"]["outcome"] == {"outcome": "cancelled"}

    assert len(wire.reader.end(Exit(code=0)).asks) == ASKS_MAX


def test_leave_of_a_person_is_never_leave_for_always(tmp_path: Path) -> None:
    call = {"toolCallId": "c", "kind": "edit", "rawInput": {"path": "a"}}
    run = AgentRun(
        prompt="",
        session_id="s",
        is_resume=True,
        cwd=tmp_path,
        folder=tmp_path,
        decisions={f"{fingerprint(call)}#0": True},
    )
    wire = Wire(tmp_path)
    wire.reader = AcpReader(run)
    wire.tell({"id": 0, "result": HELLO})
    wire.tell({"id": 1, "result": None})
    options = [{"optionId": "a", "kind": "allow_always", "name": "Always"}]

    answer = wire.request("session/request_permission", toolCall=call, options=options)
    wire.tell({"id": 2, "result": {"stopReason": "cancelled"}})

    assert answer["result"]["outcome"] == {"outcome": "cancelled"}
    end = wire.reader.end(Exit(code=0))
    assert (end.outcome, "no option to allow once" in end.text) == ("error", True)


def test_leave_is_bound_to_the_kind_and_the_input_and_not_to_words_or_ids() -> None:
    call = {"toolCallId": "1", "kind": "execute", "title": "Tidy up", "rawInput": {"command": "rm x", "in": "/w"}}
    same = {**call, "toolCallId": "2", "title": "Clean", "rawInput": {"in": "/w", "command": "rm x"}}
    others: list[dict[str, Any]] = [
        {**call, "rawInput": {"command": "rm y", "in": "/w"}},
        {**call, "kind": "delete"},
        {**call, "kind": "other"},
        {**call, "kind": "other", "title": "Clean"},
        {
            "toolCallId": "1",
            "kind": "edit",
            "title": "Edit",
            "content": [{"type": "diff", "path": "a", "newText": "b"}],
        },
        {
            "toolCallId": "1",
            "kind": "edit",
            "title": "Edit",
            "content": [{"type": "diff", "path": "a", "newText": "c"}],
        },
        {"toolCallId": "1", "kind": "edit", "title": "Edit"},
        {"toolCallId": "2", "kind": "edit", "title": "Edit"},
    ]

    assert fingerprint(call) == fingerprint(same)
    assert len({fingerprint(call), *map(fingerprint, others)}) == 1 + len(others)


def test_an_agent_that_never_ends_its_cancelled_turn_has_asked_all_the_same(tmp_path: Path) -> None:
    wire = Wire(tmp_path).prompted()
    wire.tell(
        {"id": 5, "method": "session/request_permission", "params": {"sessionId": "s", "toolCall": {"title": "t"}}}
    )
    methods = [said.get("method") for said in wire.said()]

    end = wire.reader.end(Exit(signal=9, cause="idle"))

    assert methods == ["session/cancel", None]
    assert (end.outcome, len(end.asks)) == ("asks", 1)


# ---------------------------------------------------------------- files


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def refused(folder: Folder, path: str) -> bool:
    """Return whether neither reading nor writing goes through."""
    for act in (folder.read, lambda at: folder.write(at, "harm")):
        try:
            act(path)
        except FileRefused:
            continue
        return False
    return True


def test_no_path_leads_out_of_the_folder(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "in").mkdir(parents=True)
    outside.write_text("kept")
    (root / "link").symlink_to(outside)
    (root / "up").symlink_to(tmp_path)
    (root / "loop").symlink_to("loop")
    os.mkfifo(root / "pipe")
    folder = Folder(root)

    for path in (
        str(outside), f"{root}/../outside", f"{root}/in/../../outside", f"{root}/link", f"{root}/up/outside", f"{root}/loop",
        f"{root}/loop/a", f"{root}/pipe", f"{root}/in", str(root), "outside", "", "/", f"/{root}/a", f"{root}/a\0b",
        f"{root}x/a", f"{root}/{'a' * 300}", f"{root}/{'a/' * 4000}b", "/dev/zero", "/proc/self/environ",
    ):  # fmt: skip
        assert refused(folder, path), path
    with pytest.raises(FileRefused, match="git"):
        folder.write(f"{root}/.git/hooks/pre-commit", "harm")
    assert outside.read_text() == "kept"
    assert names(root) == ["in", "link", "loop", "pipe", "up"]
    assert names(tmp_path) == ["outside", "root"]


def test_a_folder_that_lies_behind_a_link_is_known_by_both_names(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "name").symlink_to("real")
    folder = Folder(tmp_path / "name")

    folder.write(f"{tmp_path}/name/a", "one")
    folder.write(f"{tmp_path}/real/b", "two")

    assert (folder.read(f"{tmp_path}/real/a"), folder.read(f"{tmp_path}/name/b")) == ("one", "two")


def test_a_link_that_takes_the_place_of_a_folder_is_not_followed(tmp_path: Path) -> None:
    """Somebody exchanges the two without a pause while we read."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    for place in (root / "x", outside):
        place.mkdir(parents=True)
        (place / "file").write_text(place.name)
    (root / "trap").symlink_to(outside)
    over = threading.Event()

    def exchange() -> None:
        while not over.is_set():
            for source, target in (("x", "y"), ("trap", "x"), ("x", "trap"), ("y", "x")):
                (root / source).rename(root / target)

    folder, other, found = Folder(root), threading.Thread(target=exchange), set()
    other.start()
    try:
        for _ in range(500):
            try:
                found.add(folder.read(f"{root}/x/file"))
            except FileRefused:
                continue
    finally:
        over.set()
        other.join()

    assert found <= {"x"}


def test_a_write_is_whole_keeps_the_mode_and_breaks_no_hard_link(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    root.mkdir()
    elsewhere.write_text("kept")
    (root / "hard").hardlink_to(elsewhere)
    (root / "run.sh").write_text("old")
    (root / "run.sh").chmod(0o754)
    folder = Folder(root)

    folder.write(f"{root}/run.sh", "new")
    folder.write(f"{root}/hard", "mine")

    assert ((root / "run.sh").read_text(), (root / "run.sh").stat().st_mode & 0o777) == ("new", 0o754)
    assert ((root / "hard").read_text(), elsewhere.read_text()) == ("mine", "kept")
    assert names(root) == ["hard", "run.sh"]


def test_what_is_no_text_or_too_large_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\x00")
    with (tmp_path / "large").open("wb") as large:
        large.truncate(FILE_BYTES_MAX + 1)
    folder = Folder(tmp_path)

    for name in ("bytes", "large"):
        with pytest.raises(FileRefused):
            folder.read(f"{tmp_path}/{name}")
    with pytest.raises(FileRefused):
        folder.write(f"{tmp_path}/new", "\ud800")


def test_lines_are_those_between_newlines(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1\r\n2\x0c\u2028two\n3", newline="")
    folder, path = Folder(tmp_path), f"{tmp_path}/a"

    assert folder.read(path, line=2, limit=1) == "2\x0c\u2028two\n"
    assert folder.read(path, line=3) == "3"
    assert folder.read(path, line=9) == ""
    assert folder.read(path, line=0, limit=1) == "1\r\n"
