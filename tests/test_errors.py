"""Texts that many messages share."""

import pytest

from kitsseg.errors import one_line, some_of


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


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("three\n  lines\r\nand\ta tab "), "three lines and a tab"),
        (ValueError(""), "ValueError"),
        (ValueError(" \n"), "ValueError"),
        (MemoryError(), "MemoryError"),
        (ConnectionResetError(104, "Connection reset by peer"), "Connection reset by peer"),
        (FileNotFoundError(2, "No such file or directory", "a.nii"), "No such file or directory: a.nii"),
        (OSError("no number"), "no number"),
        (KeyError("units"), "'units'"),
        (
            ValueError("\x1b[2J\udcff\x00"),
            "\ufffd[2J\ufffd\ufffd",
        ),
        (ValueError("Größe 患者"), "Größe 患者"),
        (ValueError("n" * 300), "n" * 300),
        (ValueError("n" * 301), "n" * 297 + "..."),
    ],
    ids=repr,
)
def test_any_error_becomes_one_short_line_that_is_never_empty(error, expected):
    assert one_line(error) == expected
