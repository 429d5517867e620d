"""Reading JSON that other programs write, or that no class describes, gives an object or one ValueError."""

import errno
import zipfile

import pytest

from kitsseg.files.archives import check_archive, is_whole
from kitsseg.files.json_records import read_object

DAMAGED = {
    "nested lists": b"[" * 100_000,
    "nested objects": b'{"a":' * 100_000,
    "not UTF-8": b'{"a": "\xff"}',
    "NaN": b'{"a": NaN}',
    "infinite": b'{"a": 1e999}',
    "a list": b"[1]",
    "null": b"null",
    "a number": b"7",
    "text": b'"a"',
    "nothing": b"",
    "cut off": b'{"a": 1',
    "two": b'{"a": 1} {"b": 2}',
    "zeros": bytes(100),
}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED)
def test_anything_but_an_object_is_one_error(data, tmp_path):
    (tmp_path / "x.json").write_bytes(data)
    with pytest.raises(ValueError, match=".") as caught:
        read_object(tmp_path / "x.json")
    assert "\n" not in str(caught.value)


def test_an_object_is_read_as_it_is(tmp_path):
    (tmp_path / "x.json").write_text('{"a": [1, 2.5, null, "\\u00e4"], "b": {"c": true}}')
    assert read_object(tmp_path / "x.json") == {"a": [1, 2.5, None, "ä"], "b": {"c": True}}
    with pytest.raises(FileNotFoundError):
        read_object(tmp_path / "none.json")
    with pytest.raises(IsADirectoryError):
        read_object(tmp_path)


def test_a_directory_of_an_archive_that_leads_nowhere_is_damage(tmp_path):
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", bytes(500))
    whole = path.read_bytes()
    check_archive(path)
    for start in (len(whole) - 6, len(whole) - 10):  # where the directory begins, and its length
        for value in (0, 0x41414141, 0xFFFFFFFF):
            path.write_bytes(whole[:start] + value.to_bytes(4, "little") + whole[start + 4 :])
            with pytest.raises(ValueError, match="."):
                check_archive(path)
            assert not is_whole(path)


def test_a_file_that_cannot_be_read_stays_an_error_of_the_system(tmp_path, monkeypatch):
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", bytes(500))

    def broken(_):
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr("kitsseg.files.archives._check", broken)
    with pytest.raises(OSError, match="Input/output"):
        check_archive(path)


def test_a_byte_order_mark_is_left_out(tmp_path):
    (tmp_path / "x.json").write_text('{"a": "ä"}', encoding="utf-8-sig")
    assert read_object(tmp_path / "x.json") == {"a": "ä"}
    for data in ("\ufeff", "\ufeff\ufeff{}", "{}\ufeff"):
        (tmp_path / "x.json").write_text(data, encoding="utf-8")
        with pytest.raises(ValueError, match="."):
            read_object(tmp_path / "x.json")
