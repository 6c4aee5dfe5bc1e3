"""A package's thread counts each file once, whatever the order, and the stocktaking sees when it has not."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sennit.cli.demo.analysis import analyse
from sennit.cli.demo.records import FileReport, PackageState, PackageSummary, Tally, Worst
from sennit.cli.demo.tally import Accepted, compare, tally_of, with_summary

BRANCHES = "".join(f"    if a == {n}:\n        return {n}\n" for n in range(13))
FILES = (
    analyse("shop/a.py", '"""Sells."""\ndef sell(a, b):\n    return a if a and b else b\n'),
    analyse("shop/b.py", f"def knot(a):\n{BRANCHES}    return a\n"),
    analyse("shop/c.py", f"def other(a):\n{BRANCHES}    return a\n"),
    analyse("shop/d.py", "# TODO: write it\n"),
)
TEXT = "Four files."


def state(*files: FileReport, version: int = 0, text: str = TEXT, **changes: object) -> PackageState:
    tally = msgspec.structs.replace(with_summary(text, tally_of(files)), **changes)
    return PackageState("shop", version or len(files) + 1, tally)


def accepted(*, reviewed: int = 4) -> Accepted:
    return Accepted(
        reviews={file.path: 10 + n for n, file in enumerate(FILES)},
        summarised=True,
        files={file.path: file for file in FILES},
        summary=PackageSummary("shop", 4, 1, 1, TEXT, reviewed=reviewed),
    )


@given(st.permutations(FILES))
def test_property_the_order_of_the_reviews_changes_nothing_but_the_order_of_the_files(order: list[FileReport]) -> None:
    one, other = tally_of(FILES), tally_of(order)

    assert (one.findings, one.worst) == (other.findings, other.worst)
    assert sorted(one.files) == sorted(other.files)
    assert one.worst == Worst("shop/b.py", 1, "knot", 14)


def test_a_thread_that_counted_everything_once_is_right() -> None:
    found = compare(state(*FILES), accepted())

    assert (found.lost, found.twice, found.wrong) == ((), (), ())


def test_an_update_that_was_lost_is_named_with_its_task() -> None:
    found = compare(state(*FILES[1:]), accepted())

    assert found.lost == ("lost: thread package:shop does not count shop/a.py, whose review (task 10) was accepted",)


def test_an_update_that_was_done_twice_is_named() -> None:
    found = compare(state(*FILES, FILES[0]), accepted())

    assert found.twice == ("duplicated: thread package:shop counts shop/a.py 2 times",)
    assert found.wrong == ("thread package:shop is at version 6, and 5 attempts changed it",)


def test_an_update_of_a_review_that_was_not_accepted_is_one_too_many() -> None:
    others = accepted()
    others = others._replace(reviews={path: n for path, n in others.reviews.items() if path != "shop/a.py"})

    found = compare(state(*FILES), others)

    assert found.twice == ("duplicated: thread package:shop counts shop/a.py, whose review was not accepted",)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (state(*FILES, findings={"todo": 2}), "counts the findings {'todo': 2}, and the report"),
        (state(*FILES, worst=None), "says None is the most complex function, and the report Worst("),
        (state(*FILES, version=7), "is at version 7, and 5 attempts changed it"),
        (state(*FILES, text="Five files."), "keeps is not the one in the report"),
    ],
)
def test_a_state_that_differs_from_the_report_is_a_contradiction(wrong: PackageState, says: str) -> None:
    found = compare(wrong, accepted())

    assert len(found.wrong) == 1
    assert says in found.wrong[0]


def test_a_summary_that_came_too_early_is_a_contradiction() -> None:
    found = compare(state(*FILES), accepted(reviewed=3))

    assert found.wrong == ("the summary of thread package:shop saw 3 reviews, and 4 were accepted",)


def test_a_thread_nobody_has_written_to_is_right_when_no_review_was_accepted() -> None:
    nothing = Accepted(reviews={}, summarised=False, files=None, summary=None)

    assert compare(PackageState("shop", 0, Tally()), nothing).wrong == ()
