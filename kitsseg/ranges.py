"""Ranges of settings: declared as annotations of a dataclass' fields, and checked by one function.

    Share = Annotated[float, Range(0, 1)]

    @dataclass(frozen=True)
    class Flips:
        probability: Share = 0.0

        def __post_init__(self) -> None:
            check_ranges(self)

    Flips(probability=5)    SettingError: Flips: probability: expected a number from 0 to 1, found 5

Types are checked together with ranges, because records are read from files that anybody can change.
"""

import functools
import math
import numbers
import reprlib
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Annotated, Any, Protocol, Union, get_args, get_origin, get_type_hints

from kitsseg.errors import InputError

__all__ = [
    "Lengths",
    "NotEmpty",
    "OneOf",
    "Range",
    "Rising",
    "SettingError",
    "check_ranges",
    "ranges_of",
    "told_of",
]

_REPR = reprlib.Repr()
_REPR.maxtuple = _REPR.maxlist = _REPR.maxstring = _REPR.maxother = 100
_REPR.maxlong = 40


class _Rule(Protocol):
    """What an annotation demands of a value that has the annotated type."""

    def holds(self, value: Any) -> bool: ...

    def expected(self, kind: str) -> str: ...


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included unless the range is open there.

    Attributes:
        low, high: the ends; ``high`` may be infinite.
        open_low, open_high: leave this end out.
    """

    low: float
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def holds(self, value: float) -> bool:
        """Whether a number lies in the range."""
        above = self.low < value if self.open_low else self.low <= value
        return above and (value < self.high if self.open_high else value <= self.high)

    def expected(self, kind: str) -> str:
        """The range in words, such as "a number from 0 to 1". ``kind``: "a number" or "a whole number"."""
        text = f"{kind} {'above' if self.open_low else 'from'} {self.low:.10g}"
        if math.isinf(self.high):
            return text
        if self.open_high:
            return f"{text} and below {self.high:.10g}"
        return f"{text} {'and up to' if self.open_low else 'to'} {self.high:.10g}"


@dataclass(frozen=True)
class Rising:
    """Two numbers, the lower one first. ``equal``: they may be equal."""

    equal: bool = False

    def holds(self, value: Sequence[float]) -> bool:
        """Whether the two numbers rise."""
        return value[0] <= value[1] if self.equal else value[0] < value[1]

    def expected(self, kind: str) -> str:
        """The rule in words, after the words for the two numbers."""
        return f"{kind}, the lower one first"


class Lengths:
    """As many values as one of these numbers."""

    def __init__(self, *counts: int) -> None:
        self.counts = counts

    def holds(self, value: Sequence[object]) -> bool:
        """Whether there are so many values."""
        return len(value) in self.counts

    def expected(self, kind: str) -> str:
        """The numbers in front of the words for the values."""
        return f"{' or '.join(map(str, self.counts))} {kind}"


class OneOf:
    """One of a few values."""

    def __init__(self, *allowed: object) -> None:
        self.allowed = allowed

    def holds(self, value: object) -> bool:
        """Whether this is one of the values."""
        return value in self.allowed

    def expected(self, kind: str) -> str:
        """The values."""
        return f"one of {', '.join(map(str, self.allowed))}"


class NotEmpty:
    """Any text but the empty one."""

    def holds(self, value: str) -> bool:
        """Whether there is any text."""
        return bool(value.strip())

    def expected(self, kind: str) -> str:
        """The rule in words."""
        return "a name"


class SettingError(ValueError):
    """A setting that lies outside its range.

    Attributes:
        name: of the setting; dotted, as far as the place that raised the error knows the groups around the setting.
        expected: the range in words.
        found: the value, or words for it.
        owner: the class whose field the setting is; shown only while the groups around it are unknown.
    """

    def __init__(self, name: str, expected: str, found: object, owner: str = "") -> None:
        super().__init__(name, expected, found, owner)  # all of them: errors of worker processes are pickled
        self.name, self.expected, self.found, self.owner = name, expected, found, owner

    def __str__(self) -> str:
        found = self.found if isinstance(self.found, str) else _REPR.repr(self.found)
        end = "" if found.endswith(".") else "."
        return f"{f'{self.owner}: ' if self.owner else ''}{self.name}: expected {self.expected}, found {found}{end}"

    def within(self, group: str) -> "SettingError":
        """The same error with the name of the group in front of the name. ``group``: such as "phases.train."."""
        return SettingError(f"{group}{self.name}", self.expected, self.found)


@contextmanager
def told_of(start: str, group: str = "") -> Iterator[None]:
    """Turn a SettingError of this block into the InputError that a user reads.

    Args:
        start: of the message: "--set " for the command line, "RUN/run.json: " for a record.
        group: in front of the setting's name, such as "preprocess."; empty if the name is whole.
    """
    try:
        yield
    except SettingError as error:
        raise InputError(f"{start}{error.within(group)}") from error


def check_ranges(owner: Any) -> None:
    """Check each field of a dataclass whose annotation states a range.

    Args:
        owner: an object whose class is a dataclass.

    Raises: SettingError for the first value that lies outside its range or is of another type.
    """
    for name, hint in _declared(owner.__class__):
        if not _fits(value := getattr(owner, name), hint):
            found = repr(value) if isinstance(value, str) else value
            raise SettingError(name, _expected(hint), found, type(owner).__name__)


def ranges_of(kind: type) -> dict[str, str]:
    """The ranges that a dataclass declares, as a table: name of a field -> its range in words."""
    return {name: _expected(hint) for name, hint in _declared(kind)}


@functools.cache
def _declared(kind: type) -> tuple[tuple[str, Any], ...]:
    hints = get_type_hints(kind, include_extras=True)
    return tuple((each.name, hints[each.name]) for each in fields(kind) if _states(hints[each.name]))


def _states(hint: Any) -> bool:
    """Whether an annotation states a range somewhere."""
    return get_origin(hint) is Annotated or any(map(_states, get_args(hint)))


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, types.UnionType)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value has the annotated type and lies within all ranges of the annotation."""
    if get_origin(hint) is Annotated:
        base, *rules = get_args(hint)
        return _fits(value, base) and all(rule.holds(value) for rule in rules)
    if _is_union(hint):
        return any(_fits(value, each) for each in get_args(hint))
    if hint is type(None):
        return value is None
    if get_origin(hint) is tuple:
        return isinstance(value, tuple | list) and _items_fit(value, get_args(hint))
    if hint in (float, int):
        number = isinstance(value, numbers.Integral if hint is int else numbers.Real)
        return number and not isinstance(value, bool) and (hint is int or _is_finite(value))
    return isinstance(value, hint) if hint in (str, bool) else True


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # of a whole number beyond all floats
        return False


def _items_fit(values: Sequence[Any], kinds: tuple[Any, ...]) -> bool:
    if kinds[-1] is Ellipsis:
        kinds = kinds[:1] * len(values)
    return len(values) == len(kinds) and all(map(_fits, values, kinds))


def _expected(hint: Any) -> str:
    """An annotation in words."""
    if get_origin(hint) is Annotated:
        base, *rules = get_args(hint)
        words = _expected(base)
        for rule in rules:
            words = rule.expected(words)
        return words
    if _is_union(hint):
        return ", or ".join(dict.fromkeys(map(_expected, get_args(hint))))
    if get_origin(hint) is tuple:
        kinds = get_args(hint)
        each = dict.fromkeys(_expected(kind) for kind in kinds if kind is not Ellipsis)
        if len(each) > 1:
            return f"({'; '.join(_expected(kind) for kind in kinds)})"
        count = "values" if kinds[-1] is Ellipsis else f"{len(kinds)} values"
        return f"{count}, each {next(iter(each))}"
    return {float: "a number", int: "a whole number", str: "a word", type(None): "none"}.get(hint, "a value")
