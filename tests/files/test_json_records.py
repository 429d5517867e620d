"""Records in JSON: what is written comes back, and everything else is one line with the file and the field."""

import json
import os
import re
from dataclasses import dataclass, field

import pytest

from kitsseg.errors import InputError
from kitsseg.files.json_records import as_builtins, converted, read_record, write_record


@dataclass(frozen=True, kw_only=True)
class Inner:
    size: tuple[int, ...]
    share: float | None


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    parts: dict[str, Inner] = field(default_factory=dict)
    note: str | None = None
    version: int = 1


RECORD = Outer(name="Zoë", parts={"a": Inner(size=(1, 2), share=None)})
WHOLE = {"name": "Zoë", "parts": {"a": {"size": [1, 2], "share": None}}, "version": 1}


def read(path):
    return read_record(path, Outer, "a record", "Write it again.")


def test_there_and_back(tmp_path):
    write_record(tmp_path / "r.json", RECORD)
    assert json.loads((tmp_path / "r.json").read_text(encoding="ascii")) == WHOLE
    assert read(tmp_path / "r.json") == RECORD
    assert converted(as_builtins(RECORD), Outer) == RECORD


def test_a_file_without_a_version_or_with_further_fields_is_read(tmp_path):
    values = {key: value for key, value in WHOLE.items() if key != "version"} | {"later": [1]}
    (tmp_path / "r.json").write_text(json.dumps(values))
    assert read(tmp_path / "r.json") == RECORD


def test_a_newer_version_is_told(tmp_path):
    (tmp_path / "r.json").write_text(json.dumps({"version": 2}))
    with pytest.raises(InputError, match=r"r\.json: .*version 1, found version 2: .*newer kitsseg"):
        read(tmp_path / "r.json")


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("", "truncated"),
        ("{", "truncated"),
        ("[]", "object"),
        ("null", "object"),
        ("{}", "name"),
        ('{"name": 1}', r"\$.name"),
        ('{"name": null}', r"\$.name"),
        ('{"name": "a", "note": {}}', r"\$.note"),
        ('{"name": "a", "parts": []}', r"\$.parts"),
        ('{"name": "a", "parts": {"x": {"size": [1], "share": NaN}}}', "malformed"),
        ('{"name": "a", "parts": {"x": {"size": [1], "share": 1e999}}}', r"\$.parts\[...\].share"),
        ('{"name": "a", "parts": {"x": {"size": [1.5], "share": 1}}}', r"\$.parts\[...\].size\[0\]"),
        ('{"name": "a", "parts": {"x": {"size": [true], "share": 1}}}', r"\$.parts\[...\].size\[0\]"),
        ('{"name": "a", "version": "1"}', r"\$.version"),
        ('{"name": "a", "other": ' + "[" * 100_000 + "]" * 100_000 + "}", "recursion"),
        ('{"name": "\\ud800"}', ""),
        ('{"name": "a"} {', "trailing"),
    ],
)
def test_anything_else_is_one_line_that_names_file_and_field(text, field, tmp_path):
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(
        InputError, match=rf"r\.json: .*record, found something else \(.*{field}.*\)\. Write it"
    ) as error:
        read(path)
    assert "\n" not in str(error.value)


def test_no_number_that_is_none_is_written(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_record(tmp_path / "r.json", Outer(name="a", parts={"a": Inner(size=(), share=float("nan"))}))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [b"M\xfcller", b"/data/\xff/scan.nii", b"\xe9\xe8"])
def test_names_that_nobody_could_read_again_are_not_written(name, tmp_path):
    record = Outer(name=os.fsdecode(name), note="Größe")
    with pytest.raises(InputError, match=re.escape(f"UTF-8, found {name!r}")):
        write_record(tmp_path / "r.json", record)
    assert not list(tmp_path.iterdir())


def test_a_byte_order_mark_is_left_out(tmp_path):
    path = tmp_path / "r.json"
    path.write_text(json.dumps(WHOLE, ensure_ascii=False), encoding="utf-8-sig")
    assert read(path) == RECORD
    path.write_text("{", encoding="utf-8-sig")
    with pytest.raises(InputError, match=r"r\.json: .*record, found something else \(.*truncated"):
        read(path)
