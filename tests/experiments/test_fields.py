"""The annotation of an option: type, range and role; values from Python, JSON and text."""

import math
from typing import Annotated, Literal

import pytest

from experiments.fields import (
    Count,
    Input,
    Probability,
    Range,
    Role,
    convert,
    describe,
    literal,
    plain,
    read_option,
    suggest,
)


def test_an_annotation_holds_type_range_and_roles():
    assert read_option(int) == read_option(Annotated[int, "anything"])
    count = read_option(Annotated[Count, Role.FREE], section_roles=[Role.OUTPUT])
    assert (count.kind, count.range, count.roles) == (int, Range(1, 2**31 - 1), {Role.FREE, Role.OUTPUT})
    assert read_option(Input).is_path and not read_option(Probability).is_path


@pytest.mark.parametrize(
    ("limits", "good", "bad", "text"),
    [
        (Range(0), (0, 1e30), (-1, math.inf, math.nan), "must be finite and at least 0"),
        (Range(0, above=True), (1e-30,), (0, -0.0, math.inf), "must be finite and above 0"),
        (Range(0, 1, above=True, below=True), (0.5,), (0, 1, math.nan), "must be above 0 and below 1"),
        (Range(1, 2**31 - 1), (1, 2**31 - 1), (0, 2**31), "must be at least 1 and at most 2147483647"),
    ],
)
def test_a_range_says_what_it_allows(limits, good, bad, text):
    assert [limits.problem(value) for value in good] == [None] * len(good)
    assert {limits.problem(value) for value in bad} == {text}


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (1, float, 1.0),
        ([1, 2.5, 3], tuple[float, float, float] | None, (1.0, 2.5, 3.0)),
        (None, int | None, None),
        (["a"], tuple[str, ...], ("a",)),
        ({"a": [1, 2]}, dict[str, object], {"a": (1, 2)}),
        ("b", Literal["a", "b"], "b"),
    ],
)
def test_a_value_of_python_or_json_becomes_its_type(value, kind, expected):
    found = convert(value, kind)
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (True, int),
        (1, bool),
        (1.0, int),
        ("c", Literal["a", "b"]),
        (["a"], tuple[str, str]),
        (None, float),
        ("1", float),
    ],
)
def test_a_value_of_another_type_is_refused_with_a_description(value, kind):
    with pytest.raises(ValueError) as caught:
        convert(value, kind)
    assert str(caught.value) == describe(kind)


def test_only_plain_values_are_stored():
    assert plain([1, "a", None]) == (1, "a", None)
    for value in ([[1]], {"a": 1}, b"x", 2**64):
        with pytest.raises(ValueError):
            plain(value)


def test_text_is_read_as_a_literal_and_never_run():
    assert literal(" (1, 'a') ") == (1, "a")
    with pytest.raises(ValueError, match="a Python literal such as"):
        literal("__import__('os')")


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("train.epocs", "; did you mean --train.epochs?"),
        ("epochs", "; did you mean --train.epochs?"),
        ("batch_size", "; did you mean --train.batch_size or --eval.batch_size?"),
        ("model.batchsize", "; did you mean --eval.batch_size?"),
        ("zzz", ""),
    ],
)
def test_the_nearest_names_are_suggested(key, expected):
    assert suggest(key, ["train.epochs", "train.batch_size", "eval.batch_size"], "--") == expected
