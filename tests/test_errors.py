"""Texts that many messages share."""

import pytest

from kitsseg.errors import some_of


@pytest.mark.parametrize(
    ("items", "separator", "expected"),
    [
        ([], ", ", ""),
        (["a"], ", ", "a"),
        (["a", "b", "c"], ", ", "a, b, c"),
        (["a", "b", "c", "d"], ", ", "a, b, c, d"),
        (["a", "b", "c", "d", "e"], ", ", "a, b, c and 2 more"),
        (["a", "b", "c", "d", "e"], "; ", "a; b; c; and 2 more"),
        ([1, 2], ", ", "1, 2"),
    ],
)
def test_a_single_other_one_is_named_and_several_are_counted(items, separator, expected):
    assert some_of(items, 3, separator) == expected
