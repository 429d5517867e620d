"""Single slices in the cache: a stack for each patient, clipped HU, and what is refused before anything is cached."""

import csv
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from support.cases import make_case, read_json, spec_of_tests
from support.recipes import micro, micro_recipe_of_tests
from support.slices import WINDOW, make_slices, slice_of_tests, write_table

from kitsseg import recipes
from kitsseg.cli import main
from kitsseg.data.cache.build import preprocess_cases
from kitsseg.data.cache.cases import open_cache
from kitsseg.data.formats.slices import read_slices
from kitsseg.data.geometry.planes import network_planes
from kitsseg.data.layouts.find import Layout, find_cases
from kitsseg.data.sampling.slices import SliceBatches
from kitsseg.data.splits import CaseSplit, make_split
from kitsseg.errors import InputError
from kitsseg.recipe import Augmentation, PreprocessSpec, SliceSampler
from kitsseg.training.options import TrainOptions
from kitsseg.training.train import train_recipe

CLIPPED = (-79.0, 304.0)


@pytest.fixture
def folder(tmp_path):
    make_slices(tmp_path / "slices")
    return tmp_path / "slices"


def narrower(folder, low=0, high=255):
    """Say of all images that their HU were clipped to this window."""
    with (folder / "slices.csv").open(newline="") as file:
        rows = [row | {"hu_low": low, "hu_high": high} for row in csv.DictReader(file)]
    write_table(folder, rows)


def test_a_stack_is_cached_slice_by_slice(folder, tmp_path, spec):
    _, made, _ = preprocess_cases(folder, tmp_path / "cache", spec)
    cases = open_cache(tmp_path / "cache", spec)
    assert made == list(cases) == [f"patient_{i}" for i in range(9)]
    for number, case in enumerate(cases.values()):
        assert case.slices == (f"p{number}_0", f"p{number}_1")
        for k in (0, 1):
            gray, labels = slice_of_tests(2 * number + k)
            np.testing.assert_array_equal(case.image[k], -100 + 2 * gray.astype(int))
            np.testing.assert_array_equal(case.labels(k), labels)


def test_slices_are_resampled_within_themselves_only(folder, tmp_path, spec):
    """Single slices are no neighbors: the slice spacing of 3 mm and the cut of long scans do not apply to them."""
    spec = replace(spec, spacing_mm=(3.0, 1.6, 1.6), longest_scan=1, cut_margin=0)
    preprocess_cases(folder, tmp_path / "cache", spec)
    case = open_cache(tmp_path / "cache", spec)["patient_3"]
    assert case.geometry.shape == (2, 20, 24)
    assert case.geometry.spacing_mm[1:] == pytest.approx((1.6, 1.6))


def test_no_split_puts_a_patient_on_two_sides(folder, tmp_path, spec):
    preprocess_cases(folder, tmp_path / "cache", spec)
    cases = open_cache(tmp_path / "cache", spec)
    split = make_split(cases)
    sampler = SliceSampler(batch_size=4, positive=3, patch_size=(32, 32))
    batches = SliceBatches(cases, split, "train", sampler, Augmentation(), spec)
    drawn = {batches.cases[case].name for i in range(20) for case, _ in batches.draw(i)}
    assert drawn == set(split.train)
    with pytest.raises(InputError, match="patient_0.*train.*test"):
        CaseSplit("two sides", ("patient_0",), ("patient_1",), ("patient_0",))


def test_a_cached_stack_is_kept_and_other_files_are_noticed(folder, tmp_path, spec):
    preprocess_cases(folder, tmp_path / "cache", spec)
    assert preprocess_cases(folder, tmp_path / "cache", spec)[1] == []
    Image.fromarray(slice_of_tests(50)[0]).save(folder / "images" / "p2_1.png")
    with pytest.raises(InputError, match="patient_2: made from other files"):
        preprocess_cases(folder, tmp_path / "cache", spec)


def test_images_clipped_to_less_than_the_recipe_sees_have_to_be_said_so(folder, tmp_path, spec):
    narrower(folder)
    with pytest.raises(
        InputError, match=r"clipped to 0 to 255, .* HU -79 to 304.*--set preprocess.clip_hu=0,255"
    ):
        preprocess_cases(folder, tmp_path / "cache", spec)
    preprocess_cases(folder, tmp_path / "cache", replace(spec, clip_hu=(0.0, 255.0)))
    preprocess_cases(folder, tmp_path / "cache", replace(spec, hu_window=(10.0, 200.0)))
    histogram = recipes.get("squeeze_unet:tiny").preprocess  # one of its channels depends on all HU
    with pytest.raises(InputError, match="recipe sees all HU"):
        preprocess_cases(folder, tmp_path / "cache", histogram)


def test_scans_are_clipped_as_the_images_were(tmp_path, spec):
    """If the specification clips HU, a cached scan equals an image whose HU were clipped to the same window."""
    image, _ = make_case(tmp_path / "data" / "case_00000")
    clipped = replace(spec, clip_hu=(-20.0, 150.0))
    preprocess_cases(tmp_path / "data", tmp_path / "cache", clipped)
    case = open_cache(tmp_path / "cache", clipped)["case_00000"]
    np.testing.assert_array_equal(case.image, np.clip(image, -20, 150))
    assert case.hu_counts.first + len(case.hu_counts.counts) - 1 == 150


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"spacing_mm": (None, 1.3, 1.3)},
        {"slice_size": (20, 24)},
        {"in_plane_factor": 0.5},
        {"windows": True},
    ],
)
def test_hu_are_clipped_before_anything_else(changes, spec):
    rng = np.random.default_rng(0)
    image = rng.integers(-1000, 1000, (3, 40, 48)).astype(np.int16)
    if changes.get("windows"):
        spec = replace(recipes.get("squeeze_unet:tiny").preprocess, slice_size=(20, 24))
    else:
        spec = replace(spec, **changes)
    from kitsseg.data.geometry.geometry import plan_geometry

    geometry = plan_geometry(image, (3.0, 0.8, 0.8), spec)
    clipped = network_planes(image, geometry, replace(spec, clip_hu=(0.0, 255.0)))
    expected = network_planes(np.clip(image, 0, 255), geometry, spec)
    for ours, theirs in zip(clipped, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_clip_that_is_none_is_refused():
    for clip in ((255.0, 0.0), (0.0, 0.0), (0.0,)):
        with pytest.raises(ValueError, match="clip_hu: expected 2 values, .*, the lower one first"):
            replace(spec_of_tests(), clip_hu=clip)


def test_pixels_of_unknown_size_cannot_be_resampled(folder, tmp_path, spec):
    with (folder / "slices.csv").open(newline="") as file:
        rows = [
            {key: row[key] for key in ("file", "patient", "hu_low", "hu_high")}
            for row in csv.DictReader(file)
        ]
    write_table(folder, rows)
    with pytest.raises(InputError, match=r"p0_0.png: expected its pixel spacing, .*1.5 x 1.5 mm"):
        preprocess_cases(folder, tmp_path / "cache", replace(spec, spacing_mm=(None, 1.5, 1.5)))
    preprocess_cases(folder, tmp_path / "cache", replace(spec, slice_size=(32, 32)))


def test_one_file_cannot_be_the_slice_of_two_patients(folder, tmp_path, spec):
    shutil.copy(folder / "images" / "p0_0.png", folder / "images" / "p4_1.png")
    with pytest.raises(
        InputError, match=r"p4_1.png: the same file as p0_0.png, slices of patients patient_4 and pati"
    ):
        preprocess_cases(folder, tmp_path / "cache", spec)


def test_mirrored_masks_stop_the_preprocessing(folder, tmp_path, spec):
    for path in (folder / "labels").iterdir():
        Image.fromarray(np.array(Image.open(path))[:, ::-1]).save(path)
    with pytest.raises(InputError, match=r"masks.*mirrored \(left and right\)"):
        preprocess_cases(folder, tmp_path / "cache", spec)
    assert not list((tmp_path / "cache").glob("*/patient_*"))


def test_a_compressed_cache_of_slices_reads_the_same(folder, tmp_path, spec):
    pytest.importorskip("blosc2")
    for compress in (False, True):
        preprocess_cases(folder, tmp_path / f"cache{compress}", spec, compress=compress)
    plain, packed = (
        open_cache(tmp_path / f"cache{compress}", spec)["patient_5"] for compress in (False, True)
    )
    np.testing.assert_array_equal(plain.image, packed.image)
    assert packed.slices == plain.slices


def test_a_network_trains_on_slices_and_says_so(folder, tmp_path, eager):
    recipe = micro_recipe_of_tests(spec_of_tests())
    recipe = replace(recipe, preprocess=replace(recipe.preprocess, clip_hu=CLIPPED))
    preprocess_cases(folder, tmp_path / "cache", recipe.preprocess)
    split = make_split(open_cache(tmp_path / "cache", recipe.preprocess))
    run = train_recipe(
        recipe, tmp_path / "cache", split, tmp_path / "run", TrainOptions(epochs=1, validate_cases_every=1)
    )
    record = read_json(run / "run.json")
    assert record["single_slices"] and record["split"]["cases"]["test"] == list(split.test)
    card = (run / "model_card.md").read_text()
    assert "single slices" in card and "clipped to -79 to 304" in card


def test_scans_and_slices_are_not_trained_on_together(folder, tmp_path, eager):
    recipe = micro_recipe_of_tests(spec_of_tests())
    make_case(tmp_path / "data" / "case_00000")
    preprocess_cases(folder, tmp_path / "cache", recipe.preprocess)
    preprocess_cases(tmp_path / "data", tmp_path / "cache", recipe.preprocess)
    split = CaseSplit("both", ("case_00000", "patient_1"), ("patient_2",), ())
    with pytest.raises(InputError, match=r"found both \(case_00000 and patient_1\)"):
        train_recipe(recipe, tmp_path / "cache", split, tmp_path / "run")


def test_3d_recipes_refuse_slices(folder, tmp_path, monkeypatch, capsys):
    recipe = micro("deeplab3d")
    preprocess_cases(folder, tmp_path / "cache", recipe.preprocess)
    split = make_split(open_cache(tmp_path / "cache", recipe.preprocess))
    with pytest.raises(InputError, match="deeplab3d:micro.*3D network.*single slices of 8 patients"):
        train_recipe(recipe, tmp_path / "cache", split, tmp_path / "run")
    assert main(["preprocess", "deeplab3d:tiny", str(folder), str(tmp_path / "other")]) != 0
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and "deeplab3d:tiny, a 3D network" in lines[0] and str(folder) in lines[0]


def test_what_a_specification_sees():
    one = PreprocessSpec(hu_window=(-79.0, 304.0), hu_mean=0.0, hu_std=1.0)
    assert (one.seen_hu, one.lowest_hu) == ((-79.0, 304.0), -79.0)
    assert replace(one, clip_hu=(0.0, 500.0)).seen_hu == (0.0, 304.0)
    assert replace(one, clip_hu=(-200.0, 100.0)).seen_hu == (-79.0, 100.0)
    assert replace(one, clip_hu=(-200.0, 100.0)).lowest_hu == -79.0


def test_layout_options_reach_the_cache(folder, tmp_path, capsys):
    with (folder / "slices.csv").open(newline="") as file:
        rows = [{key: row[key] for key in ("file", "patient")} for row in csv.DictReader(file)]
    write_table(folder, rows)
    for path in (folder / "labels").iterdir():
        Image.fromarray(np.array([0, 128, 255], np.uint8)[np.array(Image.open(path))]).save(path)
    command = ["preprocess", "wp_unet:tiny", str(folder), str(tmp_path / "cache"), "--hu-window=-1024,1271"]
    assert main(command) != 0
    assert "--mask-values 0,128,255" in capsys.readouterr().err
    assert main([*command, "--mask-values", "0,128,255"]) == 0
    case = open_cache(tmp_path / "cache", recipes.get("wp_unet:tiny").preprocess)["patient_0"]
    # nine HU for each gray value
    assert case.kidney_area.all() and case.tumor_area.all() and case.image.min() >= -1024 + 9 * 20
    first = find_cases(folder, slices=True, layout=Layout(hu_window=WINDOW, mask_values=(0, 128, 255)))[0]
    assert read_slices(first.slices).array.min() >= -100 + 2 * 20


@pytest.mark.parametrize("value", [0, 128, 255])
@pytest.mark.parametrize("flat", [("p3_0",), ("p3_0", "p3_1")])
def test_an_image_of_one_value_is_warned_of_once_for_each_patient(folder, tmp_path, spec, value, flat):
    for name in flat:
        Image.fromarray(np.full((40, 48), value, np.uint8)).save(folder / "images" / f"{name}.png")
    named = "p3_0.png and 1 more" if len(flat) > 1 else "p3_0.png"
    for _ in range(2):  # what is cached is still doubtful
        with pytest.warns(UserWarning, match="same value in every") as caught:
            preprocess_cases(folder, tmp_path / "cache", spec)
        assert len(caught) == 1
        assert f"every pixel of {named}. " in str(caught[0].message)


def test_an_image_longer_than_a_patient_is_told_before_its_place_on_the_disk_is_counted(
    folder, tmp_path, spec
):
    for kind in ("images", "labels"):
        Image.fromarray(np.zeros((40, 9000), np.uint8)).save(folder / kind / "p0_0.png")
    with pytest.raises(InputError, match=r"images.p0_0.png: .* an image of 32 x 7200 mm"):
        preprocess_cases(folder, tmp_path / "cache", spec)
    assert not (tmp_path / "cache").exists()
