"""Redaction: what is written does not depend on where the reads were cut."""

from __future__ import annotations

import json
import re

from hypothesis import given
from hypothesis import strategies as st

from sennit.execute.agent_redact import LENGTH_MIN, MASK, Redactor, forms

# Two letters only: secrets overlap, repeat and begin in each other all the time.
secrets = st.lists(st.text("ab", min_size=LENGTH_MIN, max_size=12), min_size=1, max_size=3)


@given(secrets, st.data())
def test_any_cut_of_the_stream_gives_what_the_whole_of_it_gives(values: list[str], data: st.DataObject) -> None:
    pieces = data.draw(st.lists(st.sampled_from([*values, "a", "b", "aab", "\n"]), max_size=12))
    text = ("".join(pieces) + "\n").encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=10)))
    longest_first = sorted(values, key=len, reverse=True)

    redactor = Redactor(values)
    written = [redactor.feed(text[begin:end]) for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]

    assert b"".join(written) + redactor.end() == re.sub("|".join(longest_first).encode(), MASK, text)


@given(st.text(min_size=LENGTH_MIN, max_size=20), st.booleans())
def test_a_secret_inside_json_is_found_however_it_is_escaped(secret: str, is_ascii: bool) -> None:  # noqa: FBT001
    once = json.dumps({"a": secret}, ensure_ascii=is_ascii)
    redactor = Redactor([secret])

    for text in (once, json.dumps({"b": once}, ensure_ascii=is_ascii), once.replace("/", "\\/")):
        written = redactor.feed((text + "\n").encode("utf-8", "surrogatepass")) + redactor.end()
        assert MASK in written
        assert json.dumps(secret, ensure_ascii=is_ascii)[1:-1].encode("utf-8", "surrogatepass") not in written


def test_a_line_without_a_secret_is_not_held_back() -> None:
    redactor = Redactor(["0123456789"])

    assert redactor.feed(b"a line\n") == b"a line\n"
    assert redactor.feed(b"and 0123") == b"and "
    assert redactor.feed(b"4!\n") == b"01234!\n"


def test_the_first_half_of_a_secret_at_the_very_end_is_not_given_away() -> None:
    redactor = Redactor(["0123456789abcdef"])

    assert redactor.feed(b"key 0123456789abc") == b"key "
    assert redactor.end() == MASK


def test_of_two_secrets_the_longer_one_is_taken() -> None:
    redactor = Redactor(["secret-1", "secret-1-and-more"])

    assert redactor.feed(b"secret-1-and-mo") == b""
    assert redactor.feed(b"re. secret-1-an") == b"***. "
    assert redactor.end() == b"***-an"


def test_a_short_value_is_no_secret() -> None:
    assert forms("1234567") == set()
    assert Redactor(["main", ""]).feed(b"on main") == b"on main"
