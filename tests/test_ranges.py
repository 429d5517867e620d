"""Ranges of fields: what fits, what is said about what does not, and a table of all of them."""

import pickle
import re
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import pytest

from kitsseg.errors import InputError
from kitsseg.ranges import (
    Lengths,
    NotEmpty,
    OneOf,
    Range,
    Rising,
    SettingError,
    check_ranges,
    ranges_of,
    told_of,
)

Share = Annotated[float, Range(0, 1)]


@dataclass(frozen=True, kw_only=True)
class Settings:
    share: Share = 0.5
    positive: Annotated[float, Range(0, 1, open_low=True)] = 0.5
    below: Annotated[float, Range(0, 1, open_high=True)] = 0.5
    count: Annotated[int, Range(1)] | None = None
    window: Annotated[tuple[float, float], Rising()] = (0.0, 1.0)
    scales: Annotated[tuple[float, float], Rising(equal=True)] = (1.0, 1.0)
    spacing: tuple[Share | None, Share | None] = (None, None)
    tile: Annotated[tuple[int, ...], Lengths(2, 3)] | None = None
    pairs: tuple[tuple[str, Share], ...] = ()
    kind: Annotated[str, OneOf("a", "b")] = "a"
    name: Annotated[str, NotEmpty()] | None = None
    free: object = None

    def __post_init__(self):
        check_ranges(self)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("share", 0),
        ("share", 1),
        ("share", np.float32(0.25)),
        ("positive", 1.0),
        ("below", 0.0),
        ("count", None),
        ("count", np.int64(3)),
        ("count", 10**30),
        ("window", [0, 1]),
        ("scales", (2.0, 2.0)),
        ("spacing", (None, 1)),
        ("tile", None),
        ("tile", (4, 5)),
        ("tile", (4, 5, 6)),
        ("pairs", ()),
        ("pairs", (("x", 0.5), ("y", 1))),
        ("kind", "b"),
        ("name", "x"),
        ("free", [[]]),
    ],
)
def test_what_lies_within_its_range_is_taken(name, value):
    assert getattr(Settings(**{name: value}), name) is value


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("share", -1e-9, r"a number from 0 to 1, found -1e-09\."),
        ("share", 1.5, r"a number from 0 to 1, found 1\.5\."),
        ("share", float("nan"), r"a number from 0 to 1, found nan\."),
        ("share", float("inf"), r"a number from 0 to 1, found inf\."),
        ("share", 10**400, r"a number from 0 to 1, found 1000000000000"),
        ("share", True, r"a number from 0 to 1, found True\."),
        ("share", "0.5", r"a number from 0 to 1, found '0\.5'\."),
        ("share", None, r"a number from 0 to 1, found None\."),
        ("share", [0.5], r"a number from 0 to 1, found \[0\.5\]\."),
        ("positive", 0, r"a number above 0 and up to 1, found 0\."),
        ("below", 1, r"a number from 0 and below 1, found 1\."),
        ("count", 0, r"a whole number from 1, or none, found 0\."),
        ("count", 2.0, r"a whole number from 1, or none, found 2\.0\."),
        ("count", "many", r"a whole number from 1, or none, found 'many'\."),
        (
            "window",
            (1, 1),
            r"2 values, .*number, .*lower .*first, found \(1, 1\)\.",
        ),
        (
            "window",
            (0, "x"),
            r"2 values, .*number, .*lower .*first, found \(0, 'x'\)\.",
        ),
        ("window", (0,), r"2 values, .*number, .*lower .*first, found \(0,\)\."),
        ("scales", (2, 1), r"2 values, .*number, .*lower .*first, found \(2, 1\)\."),
        (
            "spacing",
            (None, 2),
            r"2 values, .*number from 0 to 1, or none, found \(None, 2\)\.",
        ),
        (
            "spacing",
            (None,),
            r"2 values, .*number from 0 to 1, or none, found \(None,\)\.",
        ),
        ("tile", (4,), r"2 or 3 values, .*whole number, or none, found \(4,\)\."),
        ("tile", 4, r"2 or 3 values, .*whole number, or none, found 4\."),
        (
            "pairs",
            (("x", 2),),
            r"values, .*\(.*word; .*number from 0 to 1\), found \(\('x', 2\),\)\.",
        ),
        ("kind", "c", r"one of a, b, found 'c'\."),
        ("kind", [], r"one of a, b, found \[\]\."),
        ("name", "", r"a name, or none, found ''\."),
        ("name", " ", r"a name, or none, found ' '\."),
    ],
)
def test_what_lies_outside_its_range_is_refused_by_name(name, value, said):
    with pytest.raises(SettingError) as error:
        Settings(**{name: value})
    assert re.match(f"Settings: {name}: expected {said}", str(error.value))
    assert len(str(error.value)) < 200


def test_the_name_grows_with_the_groups_around_it():
    with pytest.raises(InputError, match=r"^--set phases\.train\.share: expected .* to 1, found 2\.$"):  # noqa: SIM117
        with told_of("--set ", "phases."):
            try:
                Settings(share=2)
            except SettingError as error:
                raise error.within("train.") from error
    with pytest.raises(ZeroDivisionError), told_of("--set "):
        _ = 1 / 0


def test_the_error_comes_back_from_a_worker_process_as_it_was():
    error = SettingError("share", "a number", 3, "Settings")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.name, again.found) == (str(error), "share", 3)
    assert re.match(r"Settings: share: .*number, found 3\.$", str(again))


def test_the_ranges_are_a_table():
    table = ranges_of(Settings)
    assert list(table) == [name for name in Settings.__annotations__ if name != "free"]
    assert table["share"] == "a number from 0 to 1"
    assert table["count"] == "a whole number from 1, or none"
