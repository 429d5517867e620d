"""Synthetic cases on disk: layout, labels, determinism, refusals."""

import shutil

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from kitsseg.cli import main
from kitsseg.data.formats.nifti import read_image, read_labels, write_image, write_labels
from kitsseg.data.layouts.find import find_cases
from kitsseg.data.phantoms.synthesize import draw_labels, render_cases, synthesize_cases
from kitsseg.errors import InputError

SMALL = (12, 48, 48)


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*.nii.gz"))}


def test_kits_layout_and_axes(tmp_path):
    folders = synthesize_cases(tmp_path, n_cases=2, size=SMALL)
    assert [folder.name for folder in folders] == ["case_00000", "case_00001"]
    assert sorted(path.name for path in folders[0].iterdir()) == ["imaging.nii.gz", "segmentation.nii.gz"]
    assert [case.name for case in find_cases(tmp_path)] == ["case_00000", "case_00001"]
    spacings = set()
    for folder in folders:
        image, labels = (nib.load(folder / f"{name}.nii.gz") for name in ("imaging", "segmentation"))
        assert nib.aff2axcodes(image.affine) == nib.aff2axcodes(labels.affine) == ("I", "P", "L")
        np.testing.assert_array_equal(image.affine, labels.affine)
        assert image.shape == labels.shape == SMALL
        assert (image.get_data_dtype(), labels.get_data_dtype()) == (np.int16, np.uint8)
        assert set(np.unique(labels.dataobj)) == {0, 1, 2}
        slices, rows, columns = (float(z) * n for z, n in zip(image.header.get_zooms(), SMALL))
        assert 169 < slices < 191
        assert 369 < rows == columns < 401
        spacings.add(image.header.get_zooms())
    assert len(spacings) == 2  # they vary from case to case


def test_a_case_depends_on_seed_and_number_alone(tmp_path):
    synthesize_cases(tmp_path / "two", n_cases=2, size=SMALL, seed=3)
    synthesize_cases(tmp_path / "three", n_cases=3, size=SMALL, seed=3)
    synthesize_cases(tmp_path / "other", n_cases=2, size=SMALL, seed=4)
    two, three, other = (contents(tmp_path / name) for name in ("two", "three", "other"))
    assert len(two) == 4
    assert two == {name: data for name, data in three.items() if "case_00002" not in name.parts}
    assert len(set(three.values())) == 6
    assert not set(two.values()) & set(other.values())


def test_labels_are_like_those_of_kits19():
    """Kidneys 91-765 ml, tumors 0.8-1464 ml in KiTS19; two kidneys in most patients, one tumor."""
    spacing_mm = (4.5, 3.0, 3.0)
    tumors, parts = [], []
    for seed in range(40):
        labels = draw_labels((40, 128, 128), spacing_mm, np.random.default_rng(seed))
        kidney, tumor = (np.count_nonzero(labels == k) * np.prod(spacing_mm) / 1000 for k in (1, 2))
        assert 70 < kidney < 765
        assert 0.8 < tumor < 710
        tumors.append(tumor)
        parts.append(ndimage.label(labels > 0)[1])
        edges = [np.take(labels, at, axis) for axis in range(3) for at in (0, -1)]
        assert not any(edge.any() for edge in edges[2:])  # not cut off by the field of view
        assert ndimage.label(labels == 2)[1] == 1
        assert (ndimage.binary_dilation(labels == 1) & (labels == 2)).any()  # it grows from a kidney
        rows = np.nonzero(labels == 1)[1]
        assert 0.45 < rows.mean() / 128 < 0.68  # KiTS19: 0.49 to 0.74, behind the middle
    assert 15 < np.median(tumors) < 60
    assert min(tumors) < 6
    assert max(tumors) > 100
    assert 34 <= parts.count(2) < 40  # one patient in twenty has a single kidney
    assert set(parts) <= {1, 2, 3, 4}  # a large tumor may leave two pieces of its kidney


@pytest.mark.parametrize("shape", [(8, 32, 32), (9, 40, 61)])
def test_all_labels_in_the_coarsest_volumes(shape):
    for seed in range(20):
        labels = draw_labels(
            shape, (180 / shape[0], 380 / shape[2], 380 / shape[2]), np.random.default_rng(seed)
        )
        assert set(np.unique(labels)) == {0, 1, 2}


@pytest.mark.parametrize("command", [synthesize_cases, render_cases])
def test_nothing_is_overwritten(tmp_path, command):
    """A folder that holds anything is refused before anything is written."""
    source = tmp_path / "labels"
    synthesize_cases(source, n_cases=2, size=SMALL)
    out = tmp_path / "out"
    (out / "case_00001").mkdir(parents=True)
    arguments = (2, SMALL) if command is synthesize_cases else ()
    (out / "case_00001" / "segmentation.nii.gz").write_bytes(b"precious")
    with pytest.raises(InputError, match="case_00001: .*no such case"):
        command(*([source] if command is render_cases else []), out, *arguments)
    assert contents(out) == {(out / "case_00001" / "segmentation.nii.gz").relative_to(out): b"precious"}
    (out / "case_00001" / "segmentation.nii.gz").unlink()
    command(*([source] if command is render_cases else []), out, *arguments)  # an empty folder is no case
    assert len(contents(out)) == 4


def test_a_call_that_was_stopped_goes_on(tmp_path):
    synthesize_cases(tmp_path / "whole", n_cases=4, size=SMALL, seed=3)
    synthesize_cases(tmp_path / "out", n_cases=2, size=SMALL, seed=3)
    (tmp_path / "out" / "case_00003").mkdir()
    left = tmp_path / "out" / ".case_00002-kitsseg-0123abcd"
    left.mkdir()
    (left / "segmentation.nii.gz").write_bytes(b"half")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("case_*/*")}
    folders = synthesize_cases(tmp_path / "out", n_cases=4, size=SMALL, seed=3)
    assert [folder.name for folder in folders] == [f"case_{i:05d}" for i in range(4)]
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert not left.exists()
    assert {path: path.stat().st_mtime_ns for path in before} == before  # the finished cases were left alone


def test_synthesize_that_renders_label_maps_goes_on_too(tmp_path):
    synthesize_cases(tmp_path / "labels", n_cases=3, size=SMALL)
    render_cases(tmp_path / "labels", tmp_path / "whole", seed=5)
    render_cases(tmp_path / "labels", tmp_path / "out", seed=5, cases=["case_00001"])
    render_cases(tmp_path / "labels", tmp_path / "out", seed=5)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    with pytest.raises(InputError, match="case_00000: .*no such case"):
        render_cases(tmp_path / "labels", tmp_path / "out", seed=6)
    shutil.copy(
        tmp_path / "labels" / "case_00001" / "segmentation.nii.gz", tmp_path / "labels" / "case_00002"
    )
    with pytest.raises(InputError, match="case_00002: .*no such case"):
        render_cases(tmp_path / "labels", tmp_path / "out", seed=5)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 4},
        {"size": (12, 48, 52)},
        "no labels",
        "no image",
        "a real image",
        "a damaged image",
        "a file instead",
    ],
)
def test_a_case_that_this_call_would_not_make_is_refused(change, tmp_path):
    synthesize_cases(tmp_path, n_cases=1, size=SMALL, seed=3)
    case, arguments = tmp_path / "case_00000", {"size": SMALL, "seed": 3}
    image = case / "imaging.nii.gz"
    if isinstance(change, dict):
        arguments |= change
    elif change == "no labels":
        (case / "segmentation.nii.gz").unlink()
    elif change == "no image":
        image.unlink()
    elif change == "a real image":
        write_image(image, np.zeros(SMALL, np.int16), (1, 1, 1))
    elif change == "a damaged image":
        image.write_bytes(image.read_bytes()[:200])
    else:
        shutil.rmtree(case)
        case.write_text("precious")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="case_00000: .*no such case"):
        synthesize_cases(tmp_path, n_cases=2, **arguments)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, "seed of 0 or more, got -1"),
        ({"n_cases": 0}, "one case, got 0"),
    ],
)
def test_bad_arguments(tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        synthesize_cases(tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_render_copies_labels_and_depends_on_the_name(tmp_path):
    synthesize_cases(tmp_path / "labels", n_cases=2, size=SMALL)
    for folder in (tmp_path / "labels").iterdir():
        (folder / "imaging.nii.gz").unlink()
    calls = []
    render_cases(tmp_path / "labels", tmp_path / "all", progress=lambda *call: calls.append(call))
    render_cases(tmp_path / "labels", tmp_path / "one", cases=["case_00001"])
    assert calls == [("render", 1, 2), ("render", 2, 2)]
    every, one = contents(tmp_path / "all"), contents(tmp_path / "one")
    assert one == {name: data for name, data in every.items() if "case_00001" in name.parts}
    for name, data in contents(tmp_path / "labels").items():
        assert every[name] == data
    with pytest.raises(InputError, match="expected case_7, found only case_00000, case_00001"):
        render_cases(tmp_path / "labels", tmp_path / "none", cases=["case_7"])


def test_render_takes_the_first_cases_by_name(tmp_path):
    synthesize_cases(tmp_path / "labels", n_cases=3, size=SMALL)
    out = tmp_path / "out"
    assert main(["synthesize", str(out), "--labels", str(tmp_path / "labels"), "--cases", "2"]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["case_00000", "case_00001"]
    with pytest.raises(InputError, match="labels: expected 4 label maps, found 3"):
        render_cases(tmp_path / "labels", tmp_path / "more", cases=4)
    assert not (tmp_path / "more").exists()


def test_render_refuses_other_axes_and_empty_maps(tmp_path):
    synthesize_cases(tmp_path / "labels", n_cases=1, size=SMALL)
    path = tmp_path / "labels" / "case_00000" / "segmentation.nii.gz"
    volume = read_labels(path)
    write_labels(path, np.zeros_like(volume.array), volume.grid)
    with pytest.raises(InputError, match=r"segmentation.nii.gz: expected kidneys .* only background"):
        render_cases(tmp_path / "labels", tmp_path / "out")
    affine = np.diag((0.8, 0.8, 3.0, 1.0))
    nib.Nifti1Image(volume.array.T, affine).to_filename(path)
    with pytest.raises(InputError, match="expected the axes of KiTS19"):
        render_cases(tmp_path / "labels", tmp_path / "out")
    assert not (tmp_path / "out" / "case_00000" / "imaging.nii.gz").exists()


def test_render_a_real_label_map(tmp_path, real_data):
    """case_00061: 29 slices of 5 mm; the labels are copied byte for byte, the image lies on the same grid."""
    source = real_data / "kits19" / "case_00061"
    (folder,) = render_cases(source.parent, tmp_path, cases=["case_00061"])
    assert (folder / "segmentation.nii.gz").read_bytes() == (source / "segmentation.nii.gz").read_bytes()
    image, labels = nib.load(folder / "imaging.nii.gz"), nib.load(folder / "segmentation.nii.gz")
    assert image.shape == labels.shape == (29, 512, 512)
    np.testing.assert_allclose(image.affine, labels.affine, atol=1e-6)
    hu, mask = read_image(folder / "imaging.nii.gz").array, read_labels(folder / "segmentation.nii.gz").array
    assert 110 < hu[mask == 1].mean() < 210
    assert 15 < hu[mask == 2].mean() < 160
    rows = np.nonzero(mask)[1]
    assert hu[:, int(rows.mean()) - 200, 256].max() < -900  # air before the patient


@pytest.mark.parametrize(
    "size", [(0, 0, 0), (7, 32, 32), (8, 32, 31), (99999999, 999999, 99999), (8, 32, 1501), (8, 32)]
)
def test_a_size_that_no_scan_has_is_refused_before_anything_is_written(tmp_path, size):
    named = ",".join(map(str, size))
    with pytest.raises(InputError, match=rf"^--size {named}: expected .* at least 8,32,32, and at most 1500"):
        synthesize_cases(tmp_path / "out", n_cases=1, size=size)
    assert not (tmp_path / "out").exists()
