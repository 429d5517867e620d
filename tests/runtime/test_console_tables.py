"""How wide a table is: as the terminal; in a log as wide as it needs to be, up to 200 columns."""

import pytest
from rich.table import Table

from kitsseg.runtime.console import LOG_WIDTH, print_table, quieted


def printed(capsys, cell):
    table = Table("name", "what")
    table.add_row("a", cell)
    print_table(table)
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("columns", "letters", "expected"),
    [
        (None, 10, 21),
        (None, 150, 161),
        (None, 500, LOG_WIDTH),
        ("90", 150, 90),
        ("", 150, 161),
        ("wide", 150, 161),
    ],
)
def test_a_table_in_a_log_is_as_wide_as_it_needs(monkeypatch, capsys, columns, letters, expected):
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    assert {len(line) for line in printed(capsys, "x" * letters)} == {expected}


def test_where_only_warnings_are_told_there_is_no_table(capsys):
    with quieted():
        assert printed(capsys, "x") == []
