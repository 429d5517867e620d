"""Rows of CSV files: what is written comes back, spreadsheets compute nothing, and damage names line and column."""

import csv
import random
import re

import pytest

from kitsseg.errors import InputError
from kitsseg.files.tables import read_columns, read_rows, write_rows

KINDS = {"case": str, "dice": float}
NAMES = [
    "case_00001",
    "=1+1",
    "+a",
    "-b",
    "@c",
    "'=d",
    "''+e",
    "\tf",
    "\rh",
    "i\rj",
    "k\r\nl",
    'Zoë, "quoted"',
    "two\nlines",
    "",
    "'g",
]


def read(path):
    return read_rows(path, KINDS, int, "scores", "Score again.")


def test_every_name_comes_back(tmp_path):
    rows = [{"case": name, "dice": -0.5 - i} for i, name in enumerate(NAMES)]
    write_rows(tmp_path / "a.csv", rows)
    assert read(tmp_path / "a.csv") == rows


def test_whatever_is_written_comes_back(tmp_path):
    """Two thousand random cells of characters that are special in CSV files or spreadsheets.

    In a table of one column an empty cell is a row too.
    """
    letters, draw = "=+-@'\"\t\r\n,; aé患\U0001f600\\|", random.Random(0)
    values = ["".join(draw.choices(letters, k=draw.randrange(7))) for _ in range(2000)]
    for columns in (["case"], ["dice", "case"]):
        write_rows(
            tmp_path / "a.csv", [{"case": value} | dict.fromkeys(columns[:-1], 1.0) for value in values]
        )
        found = read_rows(tmp_path / "a.csv", {"case": str}, float, "scores", "Score again.")
        assert [row["case"] for row in found] == values


def test_text_is_inert_for_spreadsheets_and_numbers_are_numbers(tmp_path):
    rows = [{"case": name, "dice": -1e-7} for name in NAMES]
    write_rows(tmp_path / "a.csv", rows)
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        cells = list(csv.reader(file))[1:]
    assert all(not name.startswith(("=", "+", "-", "@", "\t", "\r")) for name, _ in cells)
    assert {number for _, number in cells} == {"-1e-07"}
    assert [name for name, _ in cells][:3] == ["case_00001", "'=1+1", "'+a"]


def test_always_utf_8_with_the_same_line_ends(tmp_path):
    write_rows(tmp_path / "a.csv", [{"case": "Zoë", "dice": 1.0}], ["dice", "case"])
    assert (tmp_path / "a.csv").read_bytes() == "dice,case\n1.0,Zoë\n".encode()


def test_empty_cells(tmp_path):
    write_rows(tmp_path / "a.csv", [{"case": "a", "dice": 1.0}, {"case": "b", "dice": 2.0, "n": 3}])
    assert [row["n"] for row in read(tmp_path / "a.csv")] == [None, 3]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (b"case\na\n", "no column dice"),
        (b"", "no column case"),
        (b"case,dice\na,one\n", "line 2, dice: .*'one'"),
        (b"case,dice\na,1\nb,\n", "line 3: dice is empty"),
        (b"case,dice\na\n", "line 2 .*number of cells"),
        (b"case,dice\na,1,2\n", "line 2 .*number of cells"),
        (b"case,dice\na,1", "last line .*cut off"),
        (b'case,dice\n"a,1\n', "unexpected end of data"),
        (b"case,dice\n\xff,1\n", "utf-8"),
        (b"case,dice,n\na,1,2.5\n", "line 2, n: .*2.5"),
    ],
)
def test_damage_is_one_line_that_names_the_place(text, what, tmp_path):
    path = tmp_path / "scores.csv"
    path.write_bytes(text)
    with pytest.raises(
        InputError, match=rf"scores.csv: expected scores, found others \(.*{what}.*\). Score again"
    ) as error:
        read(path)
    assert "\n" not in str(error.value)


def test_tables_that_people_write_need_no_last_line_end(tmp_path):
    (tmp_path / "a.csv").write_bytes("\ufefffile,patient\r\na.png,p\r\nb.png,".encode())
    found = read_rows(tmp_path / "a.csv", {"file": str}, str, "a table", "Correct it.", by_hand=True)
    assert found == [{"file": "a.png", "patient": "p"}, {"file": "b.png", "patient": ""}]
    assert read_columns(tmp_path / "a.csv") == ["file", "patient"]
    with pytest.raises(InputError, match="last line .*cut off"):
        read_rows(tmp_path / "a.csv", {"file": str}, str, "a table", "Correct it.")


def test_columns_of_what_is_no_table_are_none(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe")
    assert read_columns(tmp_path / "a.csv") == read_columns(tmp_path / "b.csv") == []


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("case;dice\na;0,5\n", "no column case: .*separated by semicolons, commas"),
        ("case;dice;a,b\na;1;2,5\n", "no column case: .*separated by semicolons"),
        ("case\tdice\na\t1\n", "no column case: .*separated by tabs, commas"),
        ("case|dice\na|1\n", "no column case: .*separated by bars"),
        ("Case,Dice\na,1\n", "no column case, but 'Case'"),
        ("case, dice\na, 1\n", "no column dice, but ' dice'"),
        ("case,dice,case\na,1,b\n", "two columns case"),
        ("case,dice\na,1\nb\0,1\n", "line 3 holds a NUL character"),
        ("case\0,dice\na,1\n", "line 1 holds a NUL character"),
    ],
)
def test_a_table_that_another_program_saved_is_told_by_what_differs(text, what, tmp_path):
    path = tmp_path / "scores.csv"
    path.write_text(text, newline="")
    with pytest.raises(InputError) as caught:
        read(path)
    assert re.search(what, str(caught.value))
    assert "\n" not in str(caught.value)
    assert "\0" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
def test_a_table_in_another_encoding_is_one_line(encoding, tmp_path):
    path = tmp_path / "scores.csv"
    path.write_text("case,dice\na,1\n", encoding=encoding)
    with pytest.raises(InputError, match=r"expected scores, found others \(.*(utf-8|UTF-8)"):
        read(path)


@pytest.mark.parametrize(
    "text",
    [
        "file,patient,mm\na.png,P 1,5\n",
        "File,PATIENT,Mm\na.png,P 1,5\n",
        "file, patient , mm\na.png, P 1 , 5\n",
        'file, "patient", mm\n"a.png", "P 1", 5\n',
        "\ufeffFile , patient,mm\r\na.png ,P 1,5",
        "file,patient,mm,,\na.png,P 1,5,,\n",
    ],
)
def test_spaces_and_capital_letters_of_tables_that_people_write_do_not_matter(text, tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(text, newline="", encoding="utf-8")
    [row] = read_rows(path, {"file": str}, str, "a table", "Correct it.", by_hand=True)
    row.pop("", None)
    assert row == {"file": "a.png", "patient": "P 1", "mm": "5"}


def test_spaces_of_tables_that_kitsseg_writes_are_kept(tmp_path):
    write_rows(tmp_path / "a.csv", [{"case": " a ", "dice": 1.0}])
    assert read(tmp_path / "a.csv") == [{"case": " a ", "dice": 1.0}]
