"""NumPy's files: whatever a changed byte makes of their headers is one error."""

import zipfile

import numpy as np
import pytest

from kitsseg.errors import InputError
from kitsseg.files.arrays import mapped_array, read_arrays
from kitsseg.pruning.callback import PruneLowMagnitude
from kitsseg.pruning.schedules import constant_sparsity

ARRAY = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
# {damage: (text in a header, its replacement)}; each damage raises another kind of error inside NumPy
HEADERS = {
    "a bracket that is not closed": (b"4), }", b"4(, }"),
    "no syntax": (b"'<i2'", b"',i2'"),
    "bytes for a name": (b"'shape'", b"b'hape'"),
    "a name": (b"(2, 3, 4)", b"(2, a, 4)"),
    "a negative size": (b"(2, 3, 4)", b"(2,-3, 4)"),
    "more than the file": (b"(2, 3, 4)", b"(2,3,99)"),
    "an object": (b"'<i2'", b"'|O' "),
    "another beginning": (b"\x93NUMPY", b"\x93NUMPE"),
    "a version to come": (b"NUMPY\x01", b"NUMPY\x09"),
    "nothing": (None, b""),
}


@pytest.mark.parametrize("what", HEADERS)
def test_damaged_headers(what, tmp_path):
    path = tmp_path / "image.npy"
    np.save(path, ARRAY)
    assert np.array_equal(mapped_array(path), ARRAY)
    old, new = HEADERS[what]
    content = path.read_bytes()
    path.write_bytes(new if old is None else content.replace(old, new, 1))
    assert path.read_bytes() != content
    with pytest.raises(ValueError, match=r"."):
        mapped_array(path)


def test_an_archive_and_an_entry_that_was_changed(tmp_path):
    np.savez(tmp_path / "a.npz", one=ARRAY, other=ARRAY.T)
    read = read_arrays(tmp_path / "a.npz")
    assert read.keys() == {"one", "other"}
    assert np.array_equal(read["other"], ARRAY.T)
    content = (tmp_path / "a.npz").read_bytes()
    for damaged in (b"", content[:-30], content.replace(b"(2, 3, 4)", b"(2, 3(4)")):
        (tmp_path / "b.npz").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"."):
            read_arrays(tmp_path / "b.npz")
    with pytest.raises(FileNotFoundError):
        read_arrays(tmp_path / "none.npz")


@pytest.mark.parametrize(
    "state",
    [
        {"step": np.int64(3)},
        {"step": np.arange(2), "tensors": np.int64(0)},
        {"step": np.int64(3), "tensors": np.int64(1)},
        {"step": np.int64(3), "tensors": np.int64(1), "shape_0": np.array(4), "mask_0": np.uint8([1])},
        {"step": np.int64(3), "tensors": np.int64(1), "shape_0": np.array([4]), "mask_0": np.float32([1])},
        {"step": np.int64(3), "tensors": np.int64(1), "shape_0": np.array([-4]), "mask_0": np.uint8([1])},
    ],
)
def test_archives_that_hold_no_state_of_pruning(state, tmp_path):
    np.savez(tmp_path / "pruning.npz", **state)
    with pytest.raises(InputError, match=r"pruning\.npz: .*damaged state of pruning"):
        PruneLowMagnitude(constant_sparsity(0.5)).load(tmp_path / "pruning.npz")


@pytest.mark.parametrize("count", [10**17, 10**10, 41])
def test_a_header_that_tells_of_more_numbers_than_there_are_asks_for_no_memory(count, tmp_path):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive, archive.open("mask.npy", "w") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "|u1", "fortran_order": False, "shape": (count,)}
        )
        file.write(bytes(40 if count > 1000 else 0))
    if count > 1000:
        with pytest.raises(ValueError, match=r"mask\.npy.*more numbers than"):
            read_arrays(path)
    else:
        with pytest.raises(ValueError, match="."):
            read_arrays(path)
