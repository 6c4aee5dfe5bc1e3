"""The structural diff: its operations, done in order, make the second value of the first."""

from __future__ import annotations

import copy
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sennit.cli.jsondiff import MATCHED_ITEMS_MAX, Op, diff, summary

SCALARS = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([1.0, 0.5]) | st.text("ab/~", max_size=3)
JSON = st.recursive(
    SCALARS,
    lambda x: st.lists(x, max_size=6) | st.dictionaries(st.text("ab/~0", max_size=3), x, max_size=5),
    max_leaves=20,
)


def applied(value: Any, ops: list[Op]) -> Any:
    """Do what RFC 6902 says, on the JSON that is printed."""
    whole = [copy.deepcopy(value)]
    for op in (one.as_json() for one in ops):
        parts = [part.replace("~1", "/").replace("~0", "~") for part in op["path"].split("/")[1:]]
        inside: Any = whole
        keys: list[Any] = [0, *parts]
        for n, key in enumerate(keys):
            keys[n] = int(key) if isinstance(inside, list) else key
            if n < len(keys) - 1:
                inside = inside[keys[n]]
        last = keys[-1]
        if op["op"] != "add":
            assert inside[last] == op["old"]
        match op["op"]:
            case "remove":
                del inside[last]
            case "replace":
                inside[last] = op["value"]
            case "add" if isinstance(inside, list):
                assert last <= len(inside)
                inside.insert(last, op["value"])
            case "add":
                assert last not in inside
                inside[last] = op["value"]
    return whole[0]


def text(value: Any) -> bytes:
    """Compare as JSON: for Python, 1 is True."""
    return msgspec.json.encode(value, order="sorted")


@given(JSON, JSON)
def test_the_operations_in_order_make_the_second_value(old: Any, new: Any) -> None:
    assert text(applied(old, list(diff(old, new)))) == text(new)


@given(JSON)
def test_equal_values_have_no_difference(value: Any) -> None:
    assert list(diff(value, copy.deepcopy(value))) == []


def test_an_item_put_in_front_is_one_operation() -> None:
    assert [op.line(40) for op in diff({"m": ["b", "c"]}, {"m": ["a", "b", "c"]})] == ['+ /m/0  "a"']


def test_a_change_inside_an_item_is_shown_inside_it() -> None:
    assert [op.line(40) for op in diff([{"n": 1, "x": 0}], [{"n": 2, "x": 0}])] == ["~ /0/n  1 → 2"]


def test_a_long_list_is_compared_item_by_item_and_still_right() -> None:
    old = list(range(MATCHED_ITEMS_MAX))
    new = [-1, *old[1:-1], -2, -3]

    ops = list(diff(old, new))

    assert applied(old, ops) == new
    assert len(ops) == 3


@pytest.mark.parametrize(("old", "new"), [(1, True), (1, 1.0), (None, 0), ({}, []), ("", None)])
def test_values_that_python_takes_for_equal_differ_as_json(old: Any, new: Any) -> None:
    assert [op.op for op in diff(old, new)] == ["replace"]


def test_the_summary_counts_each_kind() -> None:
    ops = list(diff({"a": 1, "b": 1, "c": 1}, {"a": 2, "d": 1, "e": 1, "c": 1}))

    assert summary(ops) == "+2 -1 ~1"
    assert summary([]) == ""


def test_a_long_value_is_cut_and_says_so() -> None:
    assert Op("add", "/a", new="x" * 500).line(10) == '+ /a  "xxxxxxxx… (502 characters)'
