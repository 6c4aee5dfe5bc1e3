"""Arguments and results go out as JSON and come back as what the annotations say, or are refused with a reason."""

from __future__ import annotations

import dataclasses
import enum
import functools
import uuid
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sennit.errors import PayloadError, PayloadTooLarge
from sennit.model.task import Ref
from sennit.submit.codec import PARENT, Codec, encode_value, result_decoder, run_in_process

SIZE_BYTES_MAX = 100_000


@dataclasses.dataclass(frozen=True)
class Point:
    x: int
    y: float = 0.5


class Review(msgspec.Struct, frozen=True):
    path: str
    points: list[Point] = []


class User(pydantic.BaseModel):
    name: str
    born: date
    tags: set[str] = set()


class Mood(enum.Enum):
    GOOD = "good"
    BAD = "bad"


class FakeHandle:
    """What the codec sees of a handle: its ref."""

    def __init__(self, task_id: int) -> None:
        self.ref = Ref(task_id)


def there_and_back(function: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, ...]:
    """Return the arguments as the running side gets them."""
    codec = Codec(function, "h")
    payload, parents = codec.encode(args, kwargs, SIZE_BYTES_MAX)
    assert parents == []
    positional, named = codec.decode(payload, ())
    bound = codec._signature.bind(*positional, **named)
    bound.apply_defaults()
    return tuple(bound.arguments.values())


# ---------------------------------------------------------------- there and back

VALUES: dict[str, tuple[Any, Any]] = {
    "int": (int, 2**53),
    "big int": (int, 10**400),
    "float": (float, 0.1),
    "text": (str, "naïve 🪢 \x00"),
    "none": (None, None),
    "optional": (int | None, None),
    "bytes": (bytes, b"\x00\xff"),
    "datetime": (datetime, datetime(2025, 3, 30, 2, 30, 0, 123456, tzinfo=UTC)),
    "date": (date, date(2024, 2, 29)),
    "timedelta": (timedelta, timedelta(days=1, microseconds=7)),
    "uuid": (uuid.UUID, uuid.UUID(int=7)),
    "decimal": (Decimal, Decimal("0.10")),
    "enum": (Mood, Mood.BAD),
    "tuple": (tuple[int, str], (1, "b")),
    "set": (frozenset[int], frozenset({1, 2})),
    "numbered": (dict[int, str], {1: "one"}),
    "dataclass": (Point, Point(1, 2.0)),
    "struct": (Review, Review("a.py", [Point(1), Point(2)])),
    "pydantic": (User, User(name="Ada", born=date(1815, 12, 10), tags={"a"})),
    "nested": (dict[str, list[User]], {"all": [User(name="Bo", born=date(2000, 1, 1))]}),
}


@pytest.mark.parametrize("case", VALUES)
def test_an_argument_comes_back_as_its_annotation_says(case: str) -> None:
    annotation, value = VALUES[case]

    def handler(value: Any) -> None: ...

    handler.__annotations__ = {"value": annotation}

    assert there_and_back(handler, value) == (value,)


@pytest.mark.parametrize("case", VALUES)
def test_an_argument_beside_a_parents_result_comes_back_alike(case: str) -> None:
    annotation, value = VALUES[case]

    def handler(value: Any, parent: Any) -> None: ...

    handler.__annotations__ = {"value": annotation, "parent": int}
    codec = Codec(handler, "h")

    payload, parents = codec.encode((value, FakeHandle(5)), {}, SIZE_BYTES_MAX)
    _, named = codec.decode(payload, [b"41"])

    assert [ref.id for ref in parents] == [5]
    assert named == {"value": value, "parent": 41}


@pytest.mark.parametrize("case", VALUES)
def test_a_result_comes_back_as_the_annotation_says(case: str) -> None:
    annotation, value = VALUES[case]

    def handler() -> Any: ...

    handler.__annotations__ = {"return": annotation}
    codec = Codec(handler, "h")

    assert codec.decode_result(codec.encode_result(value, SIZE_BYTES_MAX)) == value
    assert result_decoder(handler)(encode_value(value, "a step", SIZE_BYTES_MAX)) == value


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(value=json_values)
def test_plain_data_needs_no_annotations(value: Any) -> None:
    def handler(value): ...  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 - that is the test

    assert there_and_back(handler, value) == (value,)


def test_arguments_may_be_given_by_place_by_name_and_not_at_all() -> None:
    def handler(a: int, /, b: int, c: int = 3, *, d: int, e: int | None = None) -> None: ...

    assert there_and_back(handler, 1, 2, d=4) == (1, 2, 3, 4, None)
    assert there_and_back(handler, 1, b=2, c=5, d=4, e=6) == (1, 2, 5, 4, 6)


def test_a_default_that_is_not_given_is_not_stored() -> None:
    """So that a change of the default reaches tasks that were submitted before."""

    def handler(a: int, b: int = 2) -> None: ...

    payload, _ = Codec(handler, "h").encode((1,), {}, SIZE_BYTES_MAX)

    assert msgspec.json.decode(payload) == {"a": 1}


def test_an_annotation_for_type_checkers_only_means_anything_goes() -> None:
    def handler(value: "NotImported") -> None: ...  # type: ignore[name-defined]  # noqa: F821, UP037 - that is the test

    assert there_and_back(handler, {"any": ["thing"]}) == ({"any": ["thing"]},)


# ---------------------------------------------------------------- handles


def test_handles_at_any_depth_become_their_results() -> None:
    def handler(parts: dict[str, list[Review]], extra: Any = None) -> None: ...

    codec = Codec(handler, "h")
    one, two = FakeHandle(11), FakeHandle(22)

    payload, parents = codec.encode(({"all": [one, Review("plain"), two, one]},), {"extra": two}, SIZE_BYTES_MAX)
    results = [msgspec.json.encode(Review("one")), msgspec.json.encode(Review("two"))]
    _, named = codec.decode(payload, results)

    assert [ref.id for ref in parents] == [11, 22]
    assert named["parts"] == {"all": [Review("one"), Review("plain"), Review("two"), Review("one")]}
    assert named["extra"] == {"path": "two", "points": []}
    assert codec.decode(codec.filled(payload, results), ()) == ([], named)


def test_a_parent_that_did_not_succeed_is_none() -> None:
    def handler(part: str | None) -> None: ...

    codec = Codec(handler, "h")
    payload, _ = codec.encode((FakeHandle(1),), {}, SIZE_BYTES_MAX)

    assert codec.decode(payload, [None]) == ([], {"part": None})


def test_a_parent_that_returned_another_type_is_refused_where_it_runs() -> None:
    def handler(part: int) -> None: ...

    codec = Codec(handler, "h")
    payload, _ = codec.encode((FakeHandle(1),), {}, SIZE_BYTES_MAX)

    with pytest.raises(PayloadError, match="Expected `int`, got `str`") as refused:
        codec.decode(payload, [b'"text"'])
    assert "a parent returned another type" in refused.value.why


def test_data_that_looks_like_a_placeholder_stays_data_without_parents() -> None:
    def handler(value: dict[str, int]) -> None: ...

    assert there_and_back(handler, {PARENT: 0}) == ({PARENT: 0},)


# ---------------------------------------------------------------- refusals


def test_a_function_with_unnamed_parameters_is_refused() -> None:
    def stars(*args: int) -> None: ...

    def named(**kwargs: int) -> None: ...

    for function, what in ((stars, r"\*args"), (named, r"\*\*kwargs")):
        with pytest.raises(PayloadError, match=what) as refused:
            Codec(function, "h")
        assert refused.value.fix


@pytest.mark.parametrize(
    ("args", "kwargs", "says"),
    [
        ((), {}, "missing a required argument"),
        ((1, 2, 3), {}, "too many positional"),
        ((1,), {"c": 2}, "unexpected keyword"),
        ((1,), {"a": 2}, "multiple values"),
        (("one",), {}, "Expected `int`, got `str`"),
        ((None,), {}, "Expected `int`, got `null`"),
        ((object(),), {}, "object do not serialise"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_at_submit(args: Any, kwargs: Any, says: str) -> None:
    def handler(a: int, b: int = 1) -> None: ...

    with pytest.raises(PayloadError, match=says):
        Codec(handler, "h").encode(args, kwargs, SIZE_BYTES_MAX)


def test_a_payload_over_the_limit_is_refused_with_both_sizes() -> None:
    def handler(text: str) -> None: ...

    codec = Codec(handler, "h")
    for refused_by in (
        functools.partial(codec.encode, ("x" * 100,), {}, 50),
        functools.partial(codec.encode_result, "x" * 100, 50),
    ):
        with pytest.raises(PayloadTooLarge) as refused:
            refused_by()
        assert refused.value.size_bytes > refused.value.size_bytes_max == 50


@pytest.mark.parametrize("value", [object(), {1, object()}, lambda: None, {("a", 1): 2}])
def test_a_result_that_is_no_data_is_refused(value: Any) -> None:
    def handler() -> Any: ...

    with pytest.raises(PayloadError, match="the result of handler 'h' cannot be stored") as refused:
        Codec(handler, "h").encode_result(value, SIZE_BYTES_MAX)
    assert refused.value.fix


def test_a_parameter_that_the_handler_has_no_more_is_refused_where_it_runs() -> None:
    def old(a: int, gone: int) -> None: ...

    def new(a: int) -> None: ...

    payload, _ = Codec(old, "h").encode((1, 2), {}, SIZE_BYTES_MAX)

    with pytest.raises(PayloadError, match="gone") as refused:
        Codec(new, "h").decode(payload, ())
    assert "changed after this task was submitted" in refused.value.why


def test_a_new_parameter_with_a_default_reads_old_tasks() -> None:
    def old(a: int) -> None: ...

    def new(a: int, added: str = "x") -> None: ...

    payload, _ = Codec(old, "h").encode((1,), {}, SIZE_BYTES_MAX)

    assert Codec(new, "h").decode(payload, ()) == ([], {"a": 1})


def test_a_stored_result_that_does_not_fit_is_refused() -> None:
    def handler() -> Review:
        raise NotImplementedError

    with pytest.raises(PayloadError, match="does not fit its annotation"):
        Codec(handler, "h").decode_result(b'{"points": 3}')


# ---------------------------------------------------------------- in a worker process


def total(review: Review, scale: int = 2) -> Point:
    return Point(sum(point.x for point in review.points) * scale)


def test_a_cpu_body_gets_types_and_gives_bytes() -> None:
    payload, _ = Codec(total, "h").encode((Review("a", [Point(1), Point(2)]),), {}, SIZE_BYTES_MAX)

    assert msgspec.json.decode(run_in_process(total, payload), type=Point) == Point(6)
