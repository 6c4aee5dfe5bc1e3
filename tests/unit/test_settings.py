"""Every setting has bounds that hold, and a refusal says what, why and what is near."""

from __future__ import annotations

from dataclasses import Field, fields
from typing import Any

import pytest

from sennit.errors import SettingsError
from sennit.model.settings import Settings

KNOBS = {knob.name: knob for knob in fields(Settings)}
NUMBERS = [knob for knob in KNOBS.values() if knob.metadata["low"] is not None or knob.metadata["high"] is not None]
WORDS = [knob for knob in KNOBS.values() if knob.metadata["one_of"]]


def name_of(knob: Field[Any]) -> str:
    return knob.name


def number(knob: Field[Any], value: float) -> float:
    """Return the value as the setting's own type of number."""
    return int(value) if isinstance(knob.default, int) else float(value)


@pytest.mark.parametrize("knob", KNOBS.values(), ids=name_of)
def test_every_knob_says_why_its_default_is_what_it_is(knob: Field[Any]) -> None:
    assert len(knob.metadata["reason"]) > 20
    assert knob.metadata["unit"] or isinstance(knob.default, (bool, str))


@pytest.mark.parametrize("knob", KNOBS.values(), ids=name_of)
def test_a_unit_in_the_name_is_the_unit(knob: Field[Any]) -> None:
    if knob.name.endswith("_s"):
        assert knob.metadata["unit"] == "s"
    if "_bytes" in knob.name:
        assert knob.metadata["unit"] == "bytes"


@pytest.mark.parametrize("knob", NUMBERS, ids=name_of)
def test_the_bounds_themselves_are_allowed(knob: Field[Any]) -> None:
    for bound in (knob.metadata["low"], knob.metadata["high"]):
        value = number(knob, bound)
        assert getattr(Settings.of({knob.name: value}), knob.name) == value


@pytest.mark.parametrize("knob", NUMBERS, ids=name_of)
def test_beyond_a_bound_is_refused_with_both_bounds_and_the_reason(knob: Field[Any]) -> None:
    low, high = knob.metadata["low"], knob.metadata["high"]
    for value in (low - 1, high + 1):
        with pytest.raises(SettingsError) as refused:
            Settings.of({knob.name: number(knob, value)})
        assert knob.name in refused.value.what
        assert f"between {low} and {high}" in refused.value.what
        assert refused.value.why == knob.metadata["reason"]


@pytest.mark.parametrize("knob", [k for k in NUMBERS if isinstance(k.default, float)], ids=name_of)
def test_not_a_number_is_not_a_number_of_seconds(knob: Field[Any]) -> None:
    with pytest.raises(SettingsError, match=knob.name):
        Settings.of({knob.name: float("nan")})


@pytest.mark.parametrize("knob", KNOBS.values(), ids=name_of)
def test_the_wrong_type_is_refused(knob: Field[Any]) -> None:
    wrong = 1 if isinstance(knob.default, (bool, str)) else "many"

    with pytest.raises(SettingsError, match=f"{knob.name} must be {type(knob.default).__name__}"):
        Settings.of({knob.name: wrong})


@pytest.mark.parametrize("knob", NUMBERS, ids=name_of)
def test_true_is_not_one(knob: Field[Any]) -> None:
    with pytest.raises(SettingsError, match="not True"):
        Settings.of({knob.name: True})


@pytest.mark.parametrize("knob", WORDS, ids=name_of)
def test_a_word_must_be_one_of_those_there_are(knob: Field[Any]) -> None:
    for word in knob.metadata["one_of"]:
        Settings.of({knob.name: word})
    with pytest.raises(SettingsError, match=", ".join(word or "''" for word in knob.metadata["one_of"])):
        Settings.of({knob.name: "sometimes"})


def test_a_whole_number_does_for_seconds() -> None:
    assert Settings.of({"lease_s": 5}).lease_s == 5


def test_an_unknown_name_is_refused_with_the_nearest_known_one() -> None:
    with pytest.raises(SettingsError) as refused:
        Settings.of({"lease": 5})
    assert refused.value.fix == "did you mean 'lease_s'?"

    with pytest.raises(SettingsError) as refused:
        Settings.of({"xyzzy": 5})
    assert "config show" in refused.value.fix
