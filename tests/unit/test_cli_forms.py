"""JSON schemas as forms: what is said about them, and what typed words become."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import pytest

from sennit.cli.forms import asked, described, phrase, value_of, with_changes
from sennit.errors import UsageError
from sennit.sync.plain import typed


class Person(msgspec.Struct):
    name: str
    mail: str | None = None


class Mail(msgspec.Struct):
    to: Person
    subject: str
    kind: Literal["plain", "html"] = "plain"
    copies: int = 1
    urgent: bool = False
    tags: list[str] = []


class Tree(msgspec.Struct):
    value: int
    below: Tree | None = None


def schema_of(kind: Any) -> dict[str, Any]:
    schema = typed(kind).schema()
    assert schema is not None
    return schema


# ---------------------------------------------------------------- describing


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (bool, "yes or no"),
        (str, "text"),
        (int, "a whole number"),
        (str | None, "text, or nothing"),
        (Literal["a", "b"], 'one of "a", "b"'),
        (int | str, "a whole number or text"),
        (list[int], "a list, each a whole number"),
        (Person, "Person (name, mail)"),
    ],
)
def test_a_schema_in_a_few_words(kind: Any, words: str) -> None:
    assert phrase(schema_of(kind)) == words


def test_no_schema_is_anything() -> None:
    assert phrase(None) == "anything"
    assert described(None) == [("", "anything")]


def test_limits_are_said() -> None:
    assert phrase({"type": "integer", "minimum": 1, "maximum": 5}) == "a whole number, at least 1, at most 5"


def test_every_field_of_a_form_has_a_row() -> None:
    assert described(schema_of(Mail)) == [
        ("to", "Person (name, mail)"),
        ("to.name", "text"),
        ("to.mail", "text, or nothing; default null"),
        ("subject", "text"),
        ("kind", 'one of "html", "plain"; default "plain"'),
        ("copies", "a whole number; default 1"),
        ("urgent", "yes or no; default false"),
        ("tags", "a list, each text; default []"),
    ]


def test_a_type_that_holds_itself_is_described_once() -> None:
    assert [field for field, _ in described(schema_of(Tree))] == ["value", "below", "below.value", "below.below"]


def test_a_circle_of_references_describes_nothing_and_ends() -> None:
    assert phrase({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}) == "anything"


def test_a_schema_that_names_no_known_type_is_anything() -> None:
    assert phrase({"title": "Thing"}) == "anything"


# ---------------------------------------------------------------- words to values


@pytest.mark.parametrize(
    ("kind", "word", "value"),
    [
        (str, "hello there", "hello there"),
        (str, "12", "12"),
        (str, '"quoted"', '"quoted"'),
        (bool, "y", True),
        (bool, "No", False),
        (bool, "true", True),
        (bool, "perhaps", "perhaps"),
        (int, "12", 12),
        (Literal["1", "b"], "1", "1"),
        (str | None, "12", "12"),
        (str | None, "null", None),
        (str | None, "hello", "hello"),
        (Person, '{"name": "ann"}', {"name": "ann"}),
        (int, "many", "many"),
    ],
)
def test_a_word_becomes_what_the_schema_wants_or_stays_text(kind: Any, word: str, value: Any) -> None:
    assert value_of(word, schema_of(kind)) == value


def test_without_a_schema_a_word_is_json_or_else_text() -> None:
    assert [value_of(word, None) for word in ('{"a": 1}', "1", "hello")] == [{"a": 1}, 1, "hello"]


PROPOSAL = {"to": {"name": "ann", "mail": None}, "subject": "hi", "tags": ["a", "b"], "copies": 1}


def test_set_changes_fields_below_fields_and_leaves_the_proposal_alone() -> None:
    changes = ["to.name=bob", "subject=12", "copies=3", "tags.1=c", "urgent=y", "kind=html"]

    found = with_changes(PROPOSAL, changes, schema_of(Mail))

    assert found == {
        "to": {"name": "bob", "mail": None}, "subject": "12", "tags": ["a", "c"], "copies": 3, "urgent": True,
        "kind": "html",
    }  # fmt: skip
    assert PROPOSAL["subject"] == "hi"


def test_a_value_may_have_an_equals_sign() -> None:
    assert with_changes({"q": ""}, ["q=a=b"], None) == {"q": "a=b"}


@pytest.mark.parametrize("change", ["subject", "=1", "subject.x=1", "tags.7=x", "tags.x=1"])
def test_a_change_that_has_no_place_says_so(change: str) -> None:
    with pytest.raises(UsageError, match="--set"):
        with_changes(PROPOSAL, [change], schema_of(Mail))


# ---------------------------------------------------------------- asking


class Typist:
    """Types lines; the prompts it was shown are kept."""

    def __init__(self, *lines: str) -> None:
        self.lines = list(lines)
        self.prompts: list[str] = []

    def __call__(self, prompt: str) -> str:
        self.prompts.append(prompt)
        return self.lines.pop(0)


@pytest.mark.parametrize(
    ("kind", "lines", "value"),
    [
        (bool, ["y"], True),
        (bool, ["", "n"], False),
        (int, ["", "7"], 7),
        (str, ["hello"], "hello"),
        (str, [""], ""),
        (str | None, [""], None),
        (Literal["a", "b"], ["b"], "b"),
    ],
)
def test_a_plain_value_is_asked_for_until_there_is_one(kind: Any, lines: Sequence[str], value: Any) -> None:
    typist = Typist(*lines)

    assert asked(schema_of(kind), typist) == value
    assert typist.lines == []


def test_an_object_is_asked_for_field_by_field_and_defaults_are_kept() -> None:
    typist = Typist("ann", "", "hi", "html", "", "y", '["x"]')

    found = asked(schema_of(Mail), typist)

    assert found == {
        "to": {"name": "ann"}, "subject": "hi", "kind": "html", "copies": 1, "urgent": True, "tags": ["x"],
    }  # fmt: skip
    assert typist.prompts[0] == "to.name (text): "
    assert typist.prompts[4] == "copies (a whole number) [1]: "


def test_an_empty_line_keeps_what_is_proposed() -> None:
    typist = Typist("", "", "new", "", "", "", "")

    found = asked(schema_of(Mail), typist, proposal=PROPOSAL)

    assert found == {**PROPOSAL, "subject": "new", "kind": "plain", "urgent": False}


def test_what_does_not_fit_is_left_to_who_takes_the_answer() -> None:
    assert asked(schema_of(int), Typist("many")) == "many"
