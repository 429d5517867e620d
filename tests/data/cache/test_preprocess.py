"""From case to cache: what is stored, what is refused, what a crash leaves."""

import json
import os
import shutil
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from support.cases import make_case, read_json

from kitsseg.data.cache import build as preprocess
from kitsseg.data.cache import one_case
from kitsseg.data.cache.build import preprocess_cases
from kitsseg.data.cache.case_file import read_case
from kitsseg.data.cache.cases import cache_folder, open_cache
from kitsseg.data.formats.nifti import PHANTOM, write_image
from kitsseg.data.geometry.planes import normalize
from kitsseg.errors import InputError


def test_without_resampling_the_cache_holds_the_scan(tmp_path, spec):
    image, labels = make_case(tmp_path / "data" / "case_00000")
    folder, done, kept = preprocess_cases(tmp_path / "data", tmp_path / "cache", spec)
    assert (folder, done, kept) == (cache_folder(tmp_path / "cache", spec), ["case_00000"], [])
    case = open_cache(tmp_path / "cache", spec)["case_00000"]
    np.testing.assert_array_equal(case.image, image)
    assert case.image.flags.c_contiguous
    assert isinstance(case.image.base, np.memmap)
    np.testing.assert_array_equal([case.labels(k) for k in range(8)], labels)
    assert case.boxed_labels.shape == (4, 15, 12)  # slices 2..5, rows 10..24, columns 8..19
    np.testing.assert_array_equal(case.kidney_area, (labels == 1).sum(axis=(1, 2)))
    np.testing.assert_array_equal(case.tumor_area, (labels == 2).sum(axis=(1, 2)))
    assert not case.phantom


def test_windows_of_labels_equal_the_whole_slice(cached):
    rng = np.random.default_rng(0)
    for case in cached.values():
        for _ in range(20):
            k = rng.integers(8)
            a, b = sorted(rng.integers(0, 41, 2))
            c, d = sorted(rng.integers(0, 49, 2))
            window = case.labels(k, slice(a, b), slice(c, d))
            np.testing.assert_array_equal(window, case.labels(k)[a:b, c:d])


@pytest.mark.filterwarnings(
    "ignore:.*expected slices of a CT", "ignore:.*expected kidneys"
)  # a block, little kidney
def test_resampled_and_cropped(tmp_path, spec):
    spec = replace(spec, spacing_mm=(3.0, 1.6, 1.6), crop_to_body=True)
    image = np.full((8, 40, 48), -1000, np.int16)
    image[:, 10:30, 12:40] = 40  # the body
    labels = np.zeros(image.shape, np.uint8)
    labels[3, 14:18, 16:20] = 1
    write_image(tmp_path / "data" / "a" / "imaging.nii.gz", image, (6.0, 0.8, 0.8), PHANTOM)
    write_image(tmp_path / "data" / "a" / "segmentation.nii.gz", labels, (6.0, 0.8, 0.8))
    preprocess_cases(tmp_path / "data", tmp_path / "cache", spec)
    case = open_cache(tmp_path / "cache", spec)["a"]
    # 8 slices of 6 mm are 16 of 3 mm; 40 and 48 pixels of 0.8 mm are 20 and 24 of 1.6 mm; the body is a half of it
    assert case.geometry.grid_shape == (16, 20, 24)
    assert (case.geometry.start, case.geometry.stop) == ((0, 5, 6), (16, 15, 20))
    assert (np.asarray(case.image) == 40).all()
    assert case.phantom
    np.testing.assert_allclose(case.geometry.spacing_mm, (3.0, 1.6, 1.6))
    # nearest: slice 3 becomes slices 6 and 7; rows 14..17 of the scan are 7 and 8 of the grid, 2 and 3 of the box
    expected = np.zeros((16, 10, 14), np.uint8)
    expected[6:8, 2:4, 2:4] = 1
    np.testing.assert_array_equal([case.labels(k) for k in range(16)], expected)


def test_a_second_call_does_only_what_is_missing(data, tmp_path, spec):
    folder, done, _ = preprocess_cases(data, tmp_path / "cache", spec)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.npy")}
    shutil.rmtree(folder / "case_00003")
    assert preprocess_cases(data, tmp_path / "cache", spec)[1:] == (
        ["case_00003"],
        [name for name in done if name != "case_00003"],
    )
    assert all(path.stat().st_mtime_ns == t for path, t in before.items() if "case_00003" not in str(path))


def test_an_interruption_leaves_whole_cases_only(data, tmp_path, spec, monkeypatch):
    calls = []

    def stop_in_the_second(path, dtype, shape, planes):
        calls.append(path)
        path.write_bytes(b"half")
        if len(calls) == 4:  # two arrays a case
            raise KeyboardInterrupt

    monkeypatch.setattr(one_case, "_write_stream", stop_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        preprocess_cases(data, tmp_path / "cache", spec)
    names = sorted(path.name for path in cache_folder(tmp_path / "cache", spec).iterdir())
    assert names == ["case_00000", "spec.json"]


@pytest.mark.parametrize("same", [True, False])
def test_another_process_may_be_quicker_with_the_same_files_only(same, data, tmp_path, spec, monkeypatch):
    """Two jobs that fill one cache: both find a case missing, and the other one has it done first."""
    write_case, called = preprocess.preprocess_case, []

    def slow(case, *others):
        write_case(case, *others)
        if not called:
            called.append(case.name)
            preprocess_cases(data, tmp_path / "cache", spec)  # the other job, as a whole
            if not same:  # it saw other labels of this case
                labels = case.labels.read_bytes()
                case.labels.write_bytes(labels + b" ")

    monkeypatch.setattr(preprocess, "preprocess_case", slow)
    if same:
        folder, made, _ = preprocess_cases(data, tmp_path / "cache", spec)
        assert called[0] in made and open_cache(folder, spec).keys() == {path.name for path in data.iterdir()}
        assert not list(folder.glob(".*"))
    else:
        with pytest.raises(InputError, match="made from other files") as error:
            preprocess_cases(data, tmp_path / "cache", spec)
        assert called[0] in str(error.value)


def test_a_changed_source_is_refused(data, tmp_path, spec):
    preprocess_cases(data, tmp_path / "cache", spec)
    make_case(data / "case_00002", seed=77)
    with pytest.raises(InputError, match=r"case_00002: made from other files .* Remove this folder"):
        preprocess_cases(data, tmp_path / "cache", spec)


def test_the_same_files_copied_or_touched_are_the_same(data, tmp_path, spec):
    preprocess_cases(data, tmp_path / "cache", spec)
    for path in data.rglob("*.nii.gz"):
        path.touch()
    shutil.copytree(data, tmp_path / "copy", copy_function=shutil.copyfile)
    for folder in (data, tmp_path / "copy"):
        assert preprocess_cases(folder, tmp_path / "cache", spec)[1] == []


def test_one_voxel_changed_is_noticed(tmp_path, spec):
    """The changed file has the same size. The checksum at the end of a .gz shows the change, even at the same time.

    A file without a checksum is recognized by its time.
    """
    for name in ("imaging.nii.gz", "imaging.nii"):
        case = tmp_path / name / "case_00000"
        make_case(case)
        path, cache = case / name, tmp_path / f"cache-{name}"
        scan = nib.load(case / "imaging.nii.gz")
        voxels = np.asanyarray(scan.dataobj).copy()
        if name == "imaging.nii":
            (case / "imaging.nii.gz").unlink()
            nib.save(nib.Nifti1Image(voxels, scan.affine, scan.header), path)
        preprocess_cases(case.parent, cache, spec)
        stat, stored = path.stat(), path.read_bytes()
        voxels[4, 20, 20] ^= 1
        nib.save(nib.Nifti1Image(voxels, scan.affine, scan.header), path)
        if name == "imaging.nii.gz":
            # nibabel writes a file of another size; the old stream with the new checksum has the same size
            new = path.read_bytes()[-8:]
            path.write_bytes(stored[:-8] + new)
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert path.stat().st_size == stat.st_size
        with pytest.raises(
            InputError, match=r"made from other files .*\(contents or meaning of labels differ\)"
        ):
            preprocess_cases(case.parent, cache, spec)


def spoil(data, *numbers):
    for number in numbers:
        path = data / f"case_{number:05d}" / "imaging.nii.gz"
        path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("workers", [1, 2])
def test_bad_cases_are_named_and_the_others_are_done(workers, data, tmp_path, spec):
    spoil(data, 3)
    with pytest.raises(InputError, match=r"case_00003/imaging.nii.gz: damaged"):
        preprocess_cases(data, tmp_path / "cache", spec, workers=workers)
    folder = cache_folder(tmp_path / "cache", spec)
    good = [f"case_{i:05d}" for i in range(9) if i != 3]
    assert sorted(path.name for path in folder.iterdir()) == [*good, "spec.json"]

    shutil.rmtree(folder)
    spoil(data, 5)
    with pytest.raises(InputError) as caught:
        preprocess_cases(data, tmp_path / "cache", spec, workers=workers)
    message = str(caught.value)
    assert message.startswith("2 of 9 cases ")
    assert message.index("case_00003/imaging.nii.gz: damaged") < message.index(
        "case_00005/imaging.nii.gz: dam"
    )
    assert len(list(folder.glob("case_*"))) == 7
    for number in (3, 5):
        make_case(data / f"case_{number:05d}", seed=number)
    assert preprocess_cases(data, tmp_path / "cache", spec)[1] == ["case_00003", "case_00005"]


def test_workers_make_the_same_files(data, tmp_path, spec):
    one, done, _ = preprocess_cases(data, tmp_path / "one", spec)
    calls = []
    two, names, _ = preprocess_cases(
        data, tmp_path / "two", spec, progress=lambda *call: calls.append(call), workers=2
    )
    assert names == done
    files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(two) for path in two.rglob("*") if path.is_file())
    for path in files:
        if path.name == "case.json":
            # but for the stamp of a source, which is not taken in the first two seconds of a file
            assert read_case(one / path.parent) == read_case(two / path.parent)
        else:
            assert (one / path).read_bytes() == (two / path).read_bytes()
    assert [(done, total) for _, done, total in calls] == [(i, 9) for i in range(10)]
    assert {text for text, _, _ in calls[1:]} == {f"preprocessed {name}" for name in names}


def test_image_and_labels_of_different_grids(tmp_path, spec):
    case = tmp_path / "data" / "case_00000"
    make_case(case)
    write_image(case / "segmentation.nii.gz", np.zeros((7, 40, 48), np.uint8), (3.0, 0.8, 0.8))
    with pytest.raises(
        InputError, match=r"segmentation.nii.gz: expected shape \(8, 40, 48\).* found \(7, 40, 48\)"
    ):
        preprocess_cases(tmp_path / "data", tmp_path / "cache", spec)
    write_image(case / "segmentation.nii.gz", np.zeros((8, 40, 48), np.uint8), (2.5, 0.8, 0.8))
    with pytest.raises(InputError, match=r"segmentation.nii.gz: expected the affine .* Resample the labels"):
        preprocess_cases(tmp_path / "data", tmp_path / "cache", spec)
    assert not list(cache_folder(tmp_path / "cache", spec).glob("*case*"))


@pytest.mark.parametrize("axes", ["LPS", "RAS", "SAL", "PIR", "ASR"])
def test_labels_in_other_axes_of_the_file_are_those_of_the_same_voxels(axes, tmp_path, spec):
    """Another program has written the label map, on the same voxels, in its own order and directions."""
    for name in ("one", "two"):
        make_case(tmp_path / name / "case_00000")
    path = tmp_path / "two" / "case_00000" / "segmentation.nii.gz"
    labels = nib.load(path)
    here, there = nib.orientations.io_orientation(labels.affine), nib.orientations.axcodes2ornt(axes)
    nib.save(labels.as_reoriented(nib.orientations.ornt_transform(here, there)), path)
    for name in ("one", "two"):
        preprocess_cases(tmp_path / name, tmp_path / f"cache_{name}", spec)
    one, two = (open_cache(tmp_path / f"cache_{name}", spec)["case_00000"] for name in ("one", "two"))
    for k in range(8):
        np.testing.assert_array_equal(one.labels(k), two.labels(k))
        np.testing.assert_array_equal(one.image[k], two.image[k])


@pytest.mark.parametrize(("shift_mm", "refused"), [(0.07, False), (0.09, True)])
def test_labels_a_tenth_of_a_pixel_away_are_those_of_another_place(shift_mm, refused, tmp_path, spec):
    """The pixels are 0.8 mm wide."""
    make_case(tmp_path / "data" / "case_00000")
    path = tmp_path / "data" / "case_00000" / "segmentation.nii.gz"
    labels = nib.load(path)
    affine = labels.affine.copy()
    affine[1, 3] += shift_mm
    nib.save(nib.Nifti1Image(np.asanyarray(labels.dataobj), affine, labels.header), path)
    if refused:
        with pytest.raises(InputError, match=r"segmentation.nii.gz: expected the affine"):
            preprocess_cases(tmp_path / "data", tmp_path / "cache", spec)
    else:
        assert preprocess_cases(tmp_path / "data", tmp_path / "cache", spec)[1] == ["case_00000"]


def test_missing_files_and_folders(tmp_path, spec):
    with pytest.raises(InputError, match="data: .*folder.*found nothing"):
        preprocess_cases(tmp_path / "data", tmp_path / "cache", spec)
    (tmp_path / "data").mkdir()
    with pytest.raises(InputError, match=r"cases.* data/case_00000/imaging\.nii\.gz, found none"):
        preprocess_cases(tmp_path / "data", tmp_path / "cache", spec)
    make_case(tmp_path / "data" / "case_00000")
    (tmp_path / "data" / "case_00000" / "segmentation.nii.gz").unlink()
    with pytest.raises(InputError, match=r"segmentation\.nii\.gz: missing.*imaging\.nii\.gz"):
        preprocess_cases(tmp_path / "data", tmp_path / "cache", spec)


def test_the_cache_of_another_recipe_is_refused(data, tmp_path, spec):
    folder, _, _ = preprocess_cases(data, tmp_path / "cache", spec)
    other = replace(spec, hu_std=50.0)
    with pytest.raises(InputError, match=rf"other recipes: {folder.name}\..*kitsseg preprocess"):
        open_cache(tmp_path / "cache", other)
    with pytest.raises(InputError, match="cache of version 2 made by"):
        open_cache(folder, other)
    assert open_cache(folder, spec).keys() == open_cache(tmp_path / "cache", spec).keys()
    with pytest.raises(InputError, match="found none. Run kitsseg preprocess"):
        open_cache(tmp_path / "nowhere", spec)


def test_a_damaged_cache_is_refused(data, tmp_path, spec):
    folder, _, _ = preprocess_cases(data, tmp_path / "cache", spec)
    (folder / "case_00000" / "image.npy").write_bytes(b"\x93NUMPY")
    np.save(folder / "case_00001" / "image.npy", np.zeros((2, 2), np.int16))
    (folder / "case_00002" / "image.npy").unlink()
    cases = open_cache(tmp_path / "cache", spec)
    for name, words in (
        ("case_00000", "damaged"),
        ("case_00001", r"found int16 \(2, 2\)"),
        ("case_00002", "missing"),
    ):
        with pytest.raises(InputError, match=words):
            _ = cases[name].image
    record = read_json(folder / "case_00003" / "case.json")
    del record["geometry"]
    (folder / "case_00003" / "case.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"case.json: damaged"):
        open_cache(tmp_path / "cache", spec)


def test_normalization_by_hand(spec):
    # (-79 - 101) / 76.9, (101 - 101) / 76.9, (304 - 101) / 76.9
    values = normalize(np.array([-1000, 101, 2000], np.int16), spec)
    np.testing.assert_allclose(values[:, 0], [-180 / 76.9, 0, 203 / 76.9], rtol=1e-6)
    assert values.dtype == np.float32


def test_the_digest_names_the_values(spec):
    assert spec.digest() == replace(spec).digest()
    assert (
        len({spec.digest(), replace(spec, hu_std=77.0).digest(), replace(spec, crop_to_body=True).digest()})
        == 3
    )


def test_real_label_maps_keep_their_area(real_data, tmp_path, spec):
    """The 512 x 796 case: areas per slice in the cache equal those of the file."""
    source = real_data / "kits19" / "case_00160" / "segmentation.nii.gz"
    labels = np.asanyarray(nib.load(source).dataobj)
    case = tmp_path / "data" / "case_00160"
    case.mkdir(parents=True)
    shutil.copy(source, case)
    image = np.zeros(labels.shape, np.int16)
    image[:, 0, 0] = 1
    nib.save(nib.Nifti1Image(image, nib.load(source).affine), case / "imaging.nii.gz")
    with pytest.warns(UserWarning, match="imaging.nii.gz"):  # next to nothing in it
        preprocess_cases(tmp_path / "data", tmp_path / "cache", spec)
    cached = open_cache(tmp_path / "cache", spec)["case_00160"]
    np.testing.assert_array_equal(cached.tumor_area, (labels == 2).sum(axis=(1, 2)))
    np.testing.assert_array_equal(cached.labels(120), labels[120])
