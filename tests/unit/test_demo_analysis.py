"""What the demo says of a Python file is true, and no file makes it raise."""

from __future__ import annotations

import textwrap
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sennit.cli.demo.analysis import analyse, analyse_file, fingerprints
from sennit.cli.demo.clones import duplicates
from sennit.cli.demo.records import FileReport, Place


def report_of(source: str, *, path: str = "pkg/module.py") -> FileReport:
    return analyse(path, textwrap.dedent(source))


def kinds(report: FileReport) -> list[str]:
    return [finding.kind for finding in report.findings]


def block(lines: int, *, name: str = "value") -> str:
    return "".join(f"{name}_{line} = compute({line}, {name})\n" for line in range(lines))


@pytest.mark.parametrize(
    ("body", "complexity"),
    [
        ("return 1", 1),
        ("if a:\n    return 1\nelif b:\n    return 2\nelse:\n    return 3", 3),
        ("return a and b or c", 3),
        ("return 1 if a else 2", 2),
        ("for x in a:\n    while b:\n        pass\nelse:\n    pass", 3),
        ("try:\n    a()\nexcept ValueError:\n    pass\nexcept KeyError:\n    pass\nfinally:\n    b()", 3),
        ("return [x for x in a if x if b for y in x]", 5),
        ("match a:\n    case 1:\n        pass\n    case [x] if x:\n        pass\n    case _:\n        pass", 4),
        ("with a:\n    assert b", 1),
        ("def inner():\n    if a:\n        pass\nreturn inner", 1),
        ("return lambda: a if b else c", 2),
    ],
)
def test_complexity_is_the_number_of_simple_predicates_plus_one(body: str, complexity: int) -> None:
    source = "def f(a, b, c):\n" + textwrap.indent(body, "    ")

    functions = {function.name: function for function in analyse("m.py", source).functions}

    assert functions["f"].complexity == complexity


def test_lines_code_lines_and_what_the_module_says_of_itself_are_counted() -> None:
    report = report_of('''\
        """Keeps the books. More words
        on a second line."""

        # a comment
        X = """
        text
        """

        def f():
            """Say nothing."""
            return (1,
                    2)
        ''')

    assert (report.lines, report.code_lines) == (12, 6)
    assert report.about == "Keeps the books."
    assert [(function.name, function.line, function.lines) for function in report.functions] == [("f", 9, 4)]


def test_public_names_without_a_docstring_are_found_and_private_ones_are_not() -> None:
    report = report_of('''\
        class Open:
            def shown(self): pass
            def _hidden(self): pass
            @property
            def size(self):
                """Tell the size."""
            @size.setter
            def size(self, value): pass

        class _Shut:
            def shown(self): pass

        def outer():
            """Return inner."""
            def inner(): pass
            return inner
        ''')

    assert [(finding.line, finding.message) for finding in report.findings] == [
        (1, "the module has no docstring"),
        (1, "class `Open` has no docstring"),
        (2, "`Open.shown` has no docstring"),
    ]


@pytest.mark.parametrize("path", ["pkg/_private.py", "tests/test_thing.py"])
def test_private_modules_and_tests_need_no_docstrings(path: str) -> None:
    assert report_of("def f(): pass\n", path=path).findings == ()


def test_a_long_function_and_one_with_many_parameters_are_found() -> None:
    source = "class _A:\n    def f(self, a, b, c, d, /, e, *args, g, **more):\n" + "        a()\n" * 60

    report = analyse("m/_x.py", source)

    assert kinds(report) == ["long-function", "many-parameters"]
    assert (report.functions[0].parameters, report.functions[0].lines) == (8, 61)


def test_the_largest_inner_block_of_a_function_is_its_seam() -> None:
    source = "def _f(a):\n" + "    a()\n" * 10 + "    for x in a:\n" + "        a()\n" * 6 + "    if a:\n        a()\n"

    function = analyse("m.py", source).functions[0]

    assert (function.seam_line, function.seam_lines) == (12, 7)


def test_a_bare_except_is_found_unless_it_raises_again() -> None:
    report = report_of(
        """\
        try:
            pass
        except:
            pass
        try:
            pass
        except:
            cleanup()
            raise
        """,
        path="_m.py",
    )

    assert [(finding.kind, finding.line) for finding in report.findings] == [("bare-except", 3)]


@pytest.mark.parametrize("default", ["[]", "{}", "{1}", "[x for x in y]", "list()", "collections.defaultdict(int)"])
def test_a_mutable_default_is_found(default: str) -> None:
    report = analyse("_m.py", f"def f(a=1, *, b={default}): pass")

    assert [(finding.kind, finding.severity) for finding in report.findings] == [("mutable-default", "warning")]
    assert default in report.findings[0].message


def test_to_do_comments_are_counted_and_strings_that_look_like_them_are_not() -> None:
    word = "TO" + "DO"
    report = analyse("_m.py", f"x = '# {word}: no'  # {word}: yes\n# FIXME\n")

    assert report.todos == 2
    assert [finding.message for finding in report.findings] == [f"{word}: yes", "FIXME: (no text)"]


@pytest.mark.parametrize(
    "source",
    ["def f(:\n    pass\n", "x = 1\n\0y = 2\n", "if x:\n\tpass\n        pass\n", "'open", "(" * 5000, "\ud800"],
    ids=["grammar", "null byte", "tabs and blanks", "open string", "deep nesting", "lone surrogate"],
)
def test_source_that_does_not_parse_is_a_finding_and_not_an_exception(source: str) -> None:
    report = analyse("m.py", source)

    assert kinds(report) == ["syntax-error"]
    assert report.findings[0].severity == "error"
    assert report.findings[0].message
    assert report.lines > 0


def test_a_very_long_expression_is_read_without_recursion() -> None:
    report = analyse("_m.py", "def f(a):\n    return " + " + ".join(["a"] * 900) + "\n")

    assert [function.complexity for function in report.functions] == [1]


def test_an_odd_escape_in_somebody_elses_code_warns_nobody() -> None:
    assert kinds(analyse("_m.py", r"x = '\d'")) == []  # warnings are errors in this test run


@pytest.mark.parametrize("data", [b"x = '\xff\xfe'\n", b"# coding: no-such-codec\nx = 1\n"])
def test_a_file_that_cannot_be_decoded_is_a_finding(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "m.py"
    file.write_bytes(data)

    report = analyse_file(file, path="m.py")

    assert kinds(report) == ["undecodable"]
    assert report.lines == data.count(b"\n")


def test_a_file_is_decoded_as_the_interpreter_would(tmp_path: Path) -> None:
    latin, marked = tmp_path / "latin.py", tmp_path / "marked.py"
    latin.write_bytes("# coding: latin-1\r\n'''Grüße.'''\r\n".encode("latin-1"))
    marked.write_bytes(b"\xef\xbb\xbf'''Marked.'''\n")

    abouts = [analyse_file(file, path=file.name).about for file in (latin, marked)]

    assert abouts == ["Grüße.", "Marked."]


@given(st.text())
def test_no_text_makes_the_analysis_raise(source: str) -> None:
    report = analyse("m.py", source)

    assert msgspec.json.decode(msgspec.json.encode(report), type=FileReport) == report


# ---------------------------------------------------------------- duplicate blocks


def test_a_block_in_two_files_is_one_duplicate_of_its_whole_length() -> None:
    first = analyse("a.py", "import os\n\nstart = other(1)\n" + block(10))
    second = analyse("b.py", block(10) + "end = other(2)\n")

    found = duplicates([first, second])

    assert [(duplicate.code_lines, duplicate.places) for duplicate in found] == [
        (10, (Place("a.py", 4, 13), Place("b.py", 1, 10)))
    ]


def test_blanks_comments_docstrings_imports_and_thin_lines_do_not_hide_a_duplicate() -> None:
    plain = "def f(a):\n" + textwrap.indent(block(6), "    ")
    dressed = 'def f( a ):\n    """Words."""\n    import os\n\n' + textwrap.indent(
        block(6).replace("\n", "  # why\n\npass\n"), "    "
    )

    found = duplicates([analyse("a.py", plain), analyse("b.py", dressed)])

    assert [duplicate.code_lines for duplicate in found] == [7]


def test_five_equal_lines_are_no_duplicate() -> None:
    assert duplicates([analyse("a.py", block(5)), analyse("b.py", block(5))]) == []


def test_three_copies_are_one_duplicate_and_a_longer_pair_keeps_its_length() -> None:
    whole, short = block(20), block(8)

    found = duplicates([analyse("a.py", whole), analyse("b.py", short), analyse("c.py", whole)])

    assert [(duplicate.code_lines, [place.path for place in duplicate.places]) for duplicate in found] == [
        (20, ["a.py", "c.py"]),
        (8, ["a.py", "b.py", "c.py"]),
    ]


def test_two_copies_in_one_file_do_not_overlap() -> None:
    twice = analyse("a.py", block(8) + block(8))
    alike = analyse("b.py", "call(value, 1)\n" * 13)

    assert [place for duplicate in duplicates([twice]) for place in duplicate.places] == [
        Place("a.py", 1, 8),
        Place("a.py", 9, 16),
    ]
    for duplicate in duplicates([alike]):
        spans = [(place.line, place.line_end) for place in duplicate.places]
        assert all(earlier[1] < later[0] for earlier, later in pairwise(spans))


@given(st.integers(6, 30), st.integers(0, 12), st.integers(0, 12))
def test_a_copied_block_is_found_wherever_it_stands(lines: int, before_a: int, before_b: int) -> None:
    shared = block(lines, name="shared")

    found = duplicates(
        [
            analyse("a.py", block(before_a, name="a") + shared + block(3, name="x")),
            analyse("b.py", block(before_b, name="b") + shared + block(3, name="y")),
        ]
    )

    assert [duplicate.places for duplicate in found] == [
        (Place("a.py", before_a + 1, before_a + lines), Place("b.py", before_b + 1, before_b + lines))
    ]


def test_fingerprints_are_small_and_none_for_text_that_does_not_parse() -> None:
    prints = fingerprints(block(10))

    assert [(print_.line, print_.line_end) for print_ in prints] == [(line, line + 5) for line in range(1, 6)]
    assert len(msgspec.json.encode(prints)) <= 32 * len(prints)
    assert fingerprints("def (") == ()
