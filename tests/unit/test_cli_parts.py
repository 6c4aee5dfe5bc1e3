"""The small parts of the command line: words to calls, numbers to words, progress, the live line."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sennit.cli.calls import call_of_line, call_of_words
from sennit.cli.console import CLEAR, LogLines
from sennit.cli.output import clipped, columns, moment, padded, pretty, rfc3339, safe, safe_lines, size, span, table
from sennit.cli.progress import Progress
from sennit.errors import PayloadError
from sennit.submit.registry import Handler, Registry


@pytest.fixture
def handler() -> Handler:
    def review(path: str, depth: int = 1) -> None: ...

    return Registry().register(review, name="review")


@pytest.mark.parametrize(
    ("words", "args", "kwargs"),
    [
        (["a.py", "2"], ["a.py", 2], {}),
        (["path=a.py", "depth=2"], [], {"path": "a.py", "depth": 2}),
        (["a.py", "depth=2"], ["a.py"], {"depth": 2}),
        (['{"path": "a.py"}'], [], {"path": "a.py"}),
        (['path={"x": 1}'], [], {"path": {"x": 1}}),
        (['"2"', "null"], ["2", None], {}),
        (["path=a=b"], [], {"path": "a=b"}),
        (["https://host/?q=1"], ["https://host/?q=1"], {}),
        ([], [], {}),
    ],
)
def test_words_become_arguments(handler: Handler, words: list[str], args: list[Any], kwargs: dict[str, Any]) -> None:
    call = call_of_words(handler, words, {})

    assert (list(call.args), call.kwargs) == (args, kwargs)


@pytest.mark.parametrize(
    ("line", "args", "kwargs"),
    [('{"path": "a.py"}', [], {"path": "a.py"}), ('["a.py", 2]', ["a.py", 2], {}), ('"a.py"', ["a.py"], {})],
)
def test_a_line_becomes_arguments(handler: Handler, line: str, args: list[Any], kwargs: dict[str, Any]) -> None:
    call = call_of_line(handler, line, 1, {})

    assert (list(call.args), call.kwargs) == (args, kwargs)


def test_a_line_that_is_not_json_is_named_by_its_number(handler: Handler) -> None:
    with pytest.raises(PayloadError, match="line 7 is not JSON"):
        call_of_line(handler, "{path: 1}", 7, {})


def test_options_of_the_command_replace_those_of_the_handler(handler: Handler) -> None:
    call = call_of_words(handler, ["a.py"], {"queue": "llm", "delay_s": 1.5})

    assert (call.options.queue, call.options.delay_us) == ("llm", 1_500_000)


def test_times_are_rfc_3339_in_utc_to_the_microsecond() -> None:
    assert rfc3339(1_700_000_000_000_001) == "2023-11-14T22:13:20.000001Z"
    assert rfc3339(None) is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0s"), (0.44, "0.4s"), (12.3, "12s"), (252, "4m12s"), (11_220, "3h07m"), (190_800, "2d05h"), (-1, "0.0s")],
)
def test_a_duration_is_short(seconds: float, text: str) -> None:
    assert span(seconds) == text


@given(st.floats(0, 1e9))
def test_a_duration_has_at_most_two_units(seconds: float) -> None:
    assert sum(character.isalpha() for character in span(seconds)) <= 2


@pytest.mark.parametrize(("n_bytes", "text"), [(0, "0 B"), (1536, "1.5 KiB"), (400 * 1024**2, "400 MiB")])
def test_a_size_is_short(n_bytes: int, text: str) -> None:
    assert size(n_bytes) == text


def test_a_table_is_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    table(["id", "state"], [[7, "ready"], [1000, "running"]], right=frozenset({"id"}))

    assert capsys.readouterr().out == "  id  state\n   7  ready\n1000  running\n"


def test_a_table_is_aligned_on_a_terminal_that_draws_east_asian_text_wide(capsys: pytest.CaptureFixture[str]) -> None:
    table(["id", "thread", "state"], [[1, "会话", "ready"], [2, "ｆｕｌｌ", "running"], [3, "e\u0301te", "ready"]])

    lines = capsys.readouterr().out.splitlines()
    assert lines[1:] == ["1   会话      ready", "2   ｆｕｌｌ  running", "3   e\u0301te       ready"]
    assert len({columns(line.rpartition(" ")[0]) for line in lines}) == 1


@pytest.mark.parametrize(
    ("text", "width", "cut"),
    [
        ("abc", 3, "abc"),
        ("abcd", 3, "ab…"),
        ("abc\nd", 3, "ab…"),
        ("ab\nd", 3, "ab…"),
        ("会话", 4, "会话"),
        ("会话录", 5, "会话…"),
        ("会话录", 4, "会…"),
        ("e\u0301e\u0301e\u0301", 3, "e\u0301e\u0301e\u0301"),
        ("e\u0301e\u0301e\u0301", 2, "e\u0301…"),
        ("", 1, ""),
    ],
)
def test_text_is_clipped_to_columns_of_the_terminal(text: str, width: int, cut: str) -> None:
    assert clipped(text, width) == cut


@given(st.text(st.characters(exclude_categories=["Cs", "Cc", "Cf", "Zl", "Zp"])), st.integers(1, 12))
def test_clipped_text_never_takes_more_columns_than_it_may(text: str, width: int) -> None:
    shown = clipped(text, width)

    assert columns(shown) <= width
    assert columns(padded(shown, width)) == columns(padded(shown, width, right=True)) == width


@given(st.text())
def test_text_that_is_safe_has_one_line_and_nothing_that_moves_the_cursor(text: str) -> None:
    assert safe(text).isprintable()


def test_safe_text_keeps_letters_of_all_languages_and_shows_what_it_escapes() -> None:
    assert safe("Grüße, 世界 ✓") == "Grüße, 世界 ✓"
    assert safe("a\nb\x1b[2J\x9b\u202e\ud800") == "a\\nb\\x1b[2J\\x9b\\u202e\\ud800"
    assert safe_lines("a\nb\x1b") == "a\nb\\x1b"


def test_a_cell_cannot_break_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    table(["thread"], [["a\nb"]])

    assert capsys.readouterr().out == "thread\na\\nb\n"


@pytest.mark.parametrize(
    ("text", "short"), [("", ""), ("abcdef", "abcdef"), ("abcdefg", "abcde…"), ("a\nb", "a…"), ("\n", "")]
)
def test_a_clipped_text_says_that_it_was_cut(text: str, short: str) -> None:
    assert clipped(text, 6) == short


def test_json_is_indented_and_safe() -> None:
    assert pretty(b'{"a":[1,"\xc2\x9b"]}') == '{\n  "a": [\n    1,\n    "\\x9b"\n  ]\n}'


def test_a_moment_has_its_date_unless_it_is_today() -> None:
    now_us = 1_700_000_000_000_000

    assert len(moment(now_us, now_us)) == len("22:13:20")
    assert len(moment(now_us - 40 * 3_600_000_000, now_us)) == len("2023-11-14 22:13")
    assert moment(None, now_us) == ""


# ---------------------------------------------------------------- progress


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_without_a_terminal_progress_is_one_line_per_tenth() -> None:
    said: list[str] = []
    clock = Clock()
    progress = Progress(1000, clock_s=clock, live=None, say=said.append)

    for _ in range(1000):
        clock.now_s += 0.01
        progress.advance(ok=True)

    assert len(said) == 10
    assert said[4] == " 50 %  500/1,000  100.0/s  eta 5.0s"
    assert said[-1] == "100 %  1,000/1,000  100.0/s  in 10s"


def test_on_a_terminal_the_bar_is_drawn_at_most_ten_times_a_second() -> None:
    drawn: list[str] = []
    clock = Clock()
    progress = Progress(10_000, clock_s=clock, live=drawn.append, say=lambda _: None)

    for _ in range(10_000):
        clock.now_s += 0.0001
        progress.advance(ok=False)

    assert 10 <= len(drawn) <= 12
    assert "✕ 10,000" in drawn[-1]


def test_the_bar_stays_behind_as_a_line() -> None:
    said: list[str] = []
    drawn: list[str] = []
    progress = Progress(1, clock_s=Clock(), live=drawn.append, say=said.append)

    progress.advance(ok=True)
    progress.close()

    assert drawn[-1] == ""
    assert said == ["▓" * 20 + "  100 %  1/1  0.0/s  in 0.0s"]


# ---------------------------------------------------------------- the console


@pytest.fixture
def log() -> Iterator[LogLines]:
    lines = LogLines(verbosity=0, works=True)
    lines.start()
    yield lines
    lines.stop()


def test_a_log_line_scrolls_above_the_live_line(log: LogLines, capsys: pytest.CaptureFixture[str]) -> None:
    log.live("3 running")
    logging.getLogger("sennit").warning("task %d waits", 12)

    err = capsys.readouterr().err

    assert err.startswith(f"{CLEAR}3 running{CLEAR}")
    assert err.endswith("Z WARNING sennit: task 12 waits\n3 running")


def test_logging_is_left_as_it_was_found() -> None:
    root = logging.getLogger()
    before = (root.level, list(root.handlers))

    lines = LogLines(verbosity=1, works=False)
    lines.start()
    lines.stop()

    assert (root.level, root.handlers) == before


@pytest.mark.parametrize(
    ("verbosity", "works", "shown"),
    [(-1, True, {"error"}), (0, False, {"error", "warning"}), (0, True, {"error", "warning", "info"})],
)
def test_how_much_is_shown_depends_on_q_v_and_the_command(
    capsys: pytest.CaptureFixture[str], *, verbosity: int, works: bool, shown: set[str]
) -> None:
    lines = LogLines(verbosity=verbosity, works=works)
    lines.start()
    for level in ("debug", "info", "warning", "error"):
        getattr(logging.getLogger("sennit.test"), level)("said %s", level)
    lines.stop()

    assert {line.split()[-1] for line in capsys.readouterr().err.splitlines()} == shown
