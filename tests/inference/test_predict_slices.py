"""Single slices from prediction to slice scores: what is written, what is kept, what is never mixed."""

import csv
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from support.cases import make_case, read_json, spec_of_tests
from support.recipes import micro_recipe_of_tests
from support.slices import make_slices, write_table

from kitsseg.cli import main
from kitsseg.data.cache.build import preprocess_cases
from kitsseg.data.cache.cases import open_cache
from kitsseg.data.layouts.find import Layout
from kitsseg.data.splits import make_split
from kitsseg.errors import InputError
from kitsseg.inference import one_scan
from kitsseg.inference.cohort import predict_cases, predict_cohort
from kitsseg.inference.options import PredictOptions
from kitsseg.report.report import write_report
from kitsseg.scoring.compare import compare_scores
from kitsseg.scoring.dice import score_case
from kitsseg.scoring.evaluate import evaluate_folders
from kitsseg.scoring.slices import evaluate_slices, read_slice_scores
from kitsseg.training.options import TrainOptions
from kitsseg.training.train import train_recipe
from kitsseg.workflows.cross_validate import Scans, score_folds


@pytest.fixture(scope="module")
def sliced(tmp_path_factory, eagerly):
    """(folder of nine patients with two slices each, a run trained on them for an epoch)."""
    folder = tmp_path_factory.mktemp("sliced")
    recipe = micro_recipe_of_tests(spec_of_tests())
    make_slices(folder / "slices")
    preprocess_cases(folder / "slices", folder / "cache", recipe.preprocess)
    split = make_split(open_cache(folder / "cache", recipe.preprocess))
    return folder / "slices", train_recipe(
        recipe, folder / "cache", split, folder / "run", TrainOptions(epochs=1)
    )


@pytest.fixture
def truth_as_prediction(sliced, tmp_path):
    """Label maps that are the truth but for slice p0_0, which is empty."""
    shutil.copytree(sliced[0] / "labels", tmp_path / "predicted")
    Image.fromarray(np.zeros((40, 48), np.uint8)).save(tmp_path / "predicted" / "p0_0.png")
    return tmp_path / "predicted"


def hu_of(path):
    return 2 * np.array(Image.open(path)).astype(np.int16) - 100  # WINDOW


def read(path):
    return np.array(Image.open(path))


@pytest.mark.parametrize(
    ("slices", "compared"), [(1, [0]), (3, [0, 1, 2]), (18, [1, 3, 5, 7, 10, 12, 14, 16])]
)
def test_a_lower_precision_is_compared_on_slices_of_the_whole_call(
    sliced, tmp_path, monkeypatch, slices, compared
):
    folder, run = sliced
    seen = []

    def asked(alone, engine, views):
        seen.append(views)
        return None, True  # so that it is asked for every slice

    monkeypatch.setattr(one_scan, "agreement", asked)
    monkeypatch.setattr(one_scan, "_sampled", set())
    images = sorted((folder / "images").iterdir())[:slices]
    predict_cohort(run, images, tmp_path / "out", options=PredictOptions(precision="bfloat16"))
    expected = [compared, *([number] for number in range(1, slices))]  # then each slice by itself
    for views, numbers in zip(seen, expected, strict=True):
        for view, number in zip(views, numbers, strict=True):
            np.testing.assert_array_equal(view.image, hu_of(images[number])[None])


def test_a_damaged_slice_is_not_compared(sliced, tmp_path, monkeypatch):
    folder, run = sliced
    shutil.copytree(folder, tmp_path / "slices")
    images = sorted((tmp_path / "slices" / "images").iterdir())
    images[3].write_bytes(images[3].read_bytes()[:60])
    seen = []
    monkeypatch.setattr(one_scan, "agreement", lambda *asked: (None, bool(seen.append(asked[2]))))
    monkeypatch.setattr(one_scan, "_sampled", set())
    options = PredictOptions(precision="bfloat16")
    outcome = predict_cohort(run, [tmp_path / "slices"], tmp_path / "out", options=options)
    assert len(outcome.failed) == 1
    assert len(seen[0]) == 7


def test_a_label_map_for_each_slice_is_written_once(sliced, tmp_path):
    folder, run = sliced
    outcome = predict_cohort(run, [folder], tmp_path / "out")
    assert [path.name for path in outcome.written] == sorted(
        path.name for path in (folder / "images").iterdir()
    )
    assert all(
        read(path).shape == (40, 48) and set(np.unique(read(path))) <= {0, 1, 2} for path in outcome.written
    )
    record = read_json(tmp_path / "out" / "predictions.json")
    assert record["cases"]["p3_1.png"]["patient"] == "patient_3"
    again = predict_cohort(run, [folder], tmp_path / "out")
    assert (again.kept, again.failed, again.warnings) == (18, {}, ())
    Image.fromarray(np.zeros((40, 48), np.uint8)).save(outcome.written[0])
    assert "has changed since" in predict_cohort(run, [folder], tmp_path / "out").failed["p0_0.png"]


def test_the_next_command_after_slices_is_no_report_which_shows_whole_scans(sliced, tmp_path, capsys):
    folder, run = sliced
    command = ["predict", str(run), str(folder / "images" / "p2_1.png"), "--out", str(tmp_path / "alone")]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "kitsseg report" not in out and "next: " not in out
    assert "\nwith reference label maps: kitsseg evaluate " in out


def test_a_slice_is_labeled_by_itself(sliced, tmp_path):
    """Its neighbor in the table changes nothing."""
    folder, run = sliced
    [alone] = predict_cases(run, [folder / "images" / "p2_1.png"], tmp_path / "alone")
    predict_cases(run, [folder], tmp_path / "all")
    np.testing.assert_array_equal(read(alone), read(tmp_path / "all" / "p2_1.png"))


def test_a_part_of_the_split_is_chosen_by_patient(sliced, tmp_path):
    folder, run = sliced
    written = predict_cases(run, [folder], tmp_path / "out", "test")
    [patient] = read_json(run / "split.json")["test"]
    assert [path.stem for path in written] == [f"p{patient[-1]}_0", f"p{patient[-1]}_1"]


def test_jobs_share_the_slices(sliced, tmp_path):
    folder, run = sliced
    for number in (0, 1):
        predict_cases(run, [folder], tmp_path / "out", options=PredictOptions(shard=(number, 2)))
    assert len(read_json(tmp_path / "out" / "predictions.json")["cases"]) == 18


def test_label_maps_have_the_values_of_the_masks(sliced, tmp_path):
    folder, run = sliced
    shutil.copytree(folder, tmp_path / "slices")
    for path in (tmp_path / "slices" / "labels").iterdir():
        Image.fromarray(np.array([0, 128, 255], np.uint8)[read(path)]).save(path)
    layout = Layout(mask_values=(0, 128, 255))
    predict_cases(run, [tmp_path / "slices"], tmp_path / "out")  # with 0, 1, 2: made anew below
    written = predict_cases(run, [tmp_path / "slices"], tmp_path / "out", layout=layout)
    plain = predict_cases(run, [folder], tmp_path / "plain")
    for ours, theirs in zip(written, plain, strict=True):
        np.testing.assert_array_equal(read(ours), np.array([0, 128, 255], np.uint8)[read(theirs)])
    scores = [
        evaluate_slices(tmp_path / name, truth, tmp_path / f"{name}.csv", layout=each).rows
        for name, truth, each in (("out", tmp_path / "slices", layout), ("plain", folder, None))
    ]
    assert scores[0] == scores[1]


def test_what_cannot_be_predicted_is_one_line(sliced, trained, tmp_path):
    folder, run = sliced
    make_case(tmp_path / "scans" / "case_00000")
    with pytest.raises(InputError, match="case_00000.*expected slices"):
        predict_cases(run, [folder, tmp_path / "scans" / "case_00000"], tmp_path / "out")
    shutil.copytree(folder, tmp_path / "slices")
    lonely = tmp_path / "lonely.png"
    shutil.copy(folder / "images" / "p0_0.png", lonely)
    with pytest.raises(InputError, match="slices.csv: missing"):
        predict_cases(run, [lonely], tmp_path / "out")
    with pytest.raises(InputError, match=r"second slice called p0_0"):
        predict_cases(run, [folder, tmp_path / "slices"], tmp_path / "out")
    (tmp_path / "slices" / "images" / "p1_0.png").write_bytes(b"\x89PNG\r\n")
    outcome = predict_cohort(run, [tmp_path / "slices"], tmp_path / "damaged")
    assert list(outcome.failed) == ["p1_0.png"] and len(outcome.written) == 17
    assert "images/p1_0.png: damaged" in outcome.failed["p1_0.png"]


def test_3d_networks_refuse_slices(sliced, tmp_path):
    folder, run = sliced
    shutil.copytree(run, tmp_path / "run3d")
    record = read_json(run / "run.json")
    record["settings"]["inference"] |= {"tile": [16, 16, 16], "margin": 4}
    record["recipe"] = record["settings"]["name"] = "deeplab3d:tiny"
    (tmp_path / "run3d" / "run.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="run3d: expected a 2D network .*3D .*deeplab3d:tiny"):
        predict_cases(tmp_path / "run3d", [folder], tmp_path / "out")


def test_images_clipped_to_less_than_the_network_saw_are_warned_of(sliced, tmp_path):
    folder, run = sliced
    shutil.copytree(folder, tmp_path / "slices")
    with (folder / "slices.csv").open(newline="") as file:
        rows = [row | {"hu_low": 0, "hu_high": 255} for row in csv.DictReader(file)]
    write_table(tmp_path / "slices", rows)
    [warning] = predict_cohort(run, [tmp_path / "slices"], tmp_path / "out").warnings
    assert "clipped to 0 to 255" in warning and "HU -79 to 304" in warning


def test_slice_scores_are_dice_of_slices_and_means_over_patients(sliced, truth_as_prediction, tmp_path):
    folder, _ = sliced
    found = evaluate_slices(truth_as_prediction, folder, tmp_path / "scores.csv")
    rows = {row["slice"]: row for row in found.rows}
    for name, row in rows.items():
        labels = read(folder / "labels" / f"{name}.png")[None]
        expected = score_case(read(truth_as_prediction / f"{name}.png")[None], labels, (1.0, 1.0, 1.0))
        assert row["slice_tk_dice"] == expected["tk_dice"] == (0 if name == "p0_0" else 1)
        assert row["slice_tu_dice"] == expected["tu_dice"]
        assert row["truth_tumor_pixels"] == (labels == 2).sum()
    # eight of nine patients score 1, the ninth patient 0.5
    means = found.summary.patient_means
    assert means["slice_tk_dice"].mean == means["slice_tu_dice"].mean == pytest.approx(8.5 / 9)
    assert found.summary.slice_means["slice_tk_dice"] == pytest.approx(17 / 18)
    assert found.summary.beside_all_background["slice_tk_dice"].mean == 0
    assert (found.summary.n_slices, found.summary.n_patients) == (18, 9)
    with (tmp_path / "scores.csv").open(newline="") as file:
        header = next(csv.reader(file))
    assert header[:3] == ["slice", "patient", "slice_tk_dice"] and not {"case", "tk_dice"} & set(header)
    patients, _ = read_slice_scores(tmp_path / "scores.csv")
    assert patients[0]["case"] == "patient_0" and patients[0]["tk_dice"] == 0.5


def test_slice_scores_are_compared_with_slice_scores_only(sliced, truth_as_prediction, tmp_path):
    folder, _ = sliced
    files = {"one": tmp_path / "one.csv", "whole": tmp_path / "whole.csv"}
    evaluate_slices(truth_as_prediction, folder, files["one"])
    evaluate_slices(folder / "labels", folder, files["whole"])
    found = compare_scores(files)
    assert found.of_slices and found.cases == tuple(f"patient_{i}" for i in range(9))
    assert found.means["whole"]["tk_dice"] == pytest.approx((1, 1, 1))
    assert found.differences[0]["difference"] == pytest.approx(0.5 / 9)
    make_case(tmp_path / "cases" / "case_00000")
    evaluate_folders(
        tmp_path / "cases" / "case_00000" / "segmentation.nii.gz",
        tmp_path / "cases" / "case_00000" / "segmentation.nii.gz",
        tmp_path / "case.csv",
    )
    with pytest.raises(InputError, match=r"slice scores \(.*one.csv\) and case scores \(.*case.csv\)"):
        compare_scores({"one": files["one"], "case": tmp_path / "case.csv"})
    with pytest.raises(InputError, match="one.csv: .*found slice scores"):
        write_report(files["one"], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_patients_that_a_run_has_seen_are_left_out_of_a_comparison_of_slices(sliced, tmp_path):
    folder, run = sliced
    predict_cases(run, [folder], tmp_path / "out")
    files = {"run": tmp_path / "run.csv", "truth": tmp_path / "truth.csv"}
    evaluate_slices(tmp_path / "out", folder, files["run"])
    evaluate_slices(folder / "labels", folder, files["truth"])
    split = read_json(run / "split.json")
    with pytest.raises(InputError, match="two patients .*found 1"):
        compare_scores(files)
    assert len(split["test"]) == 1


def test_a_wrong_label_map_names_what_is_wrong(sliced, truth_as_prediction, tmp_path):
    folder, _ = sliced
    out = tmp_path / "scores.csv"
    Image.fromarray(np.zeros((41, 48), np.uint8)).save(truth_as_prediction / "p1_0.png")
    with pytest.raises(InputError, match="predicted.p1_0.png: expected 40 x 48 pixels .*found 41 x 48"):
        evaluate_slices(truth_as_prediction, folder, out)
    Image.fromarray(np.full((40, 48), 255, np.uint8)).save(truth_as_prediction / "p1_0.png")
    with pytest.raises(InputError, match="predicted.p1_0.png: expected the mask values .*found 255"):
        evaluate_slices(truth_as_prediction, folder, out)
    (truth_as_prediction / "p1_0.png").rename(truth_as_prediction / "p9_0.png")
    with pytest.raises(InputError, match=r"p9_0.png: no image"):
        evaluate_slices(truth_as_prediction, folder, out)
    with pytest.raises(InputError, match="--surface .*found single slices"):
        evaluate_folders(truth_as_prediction, folder, out, surface=True)
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match=r"none: expected label maps"):
        evaluate_slices(tmp_path / "none", folder, out)
    with pytest.raises(InputError, match="slices: expected scans, found"):
        score_folds(tmp_path, Scans(folder))
    assert not out.exists()


def test_the_command_line_goes_from_images_to_slice_scores(sliced, tmp_path, capsys):
    folder, run = sliced
    out, scores = tmp_path / "out", tmp_path / "scores.csv"
    assert main(["predict", str(run), str(folder), "--out", str(out), "--part", "test"]) == 0
    assert main(["evaluate", str(out), str(folder), "--out", str(scores)]) == 0
    shown = capsys.readouterr().out
    assert "slice TK" in shown and "no case scores" in shown and "16 slices with a mask" in shown
    assert main(["report", str(scores), "--out", str(tmp_path / "report.html")]) != 0
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and "slice scores" in lines[0]


def test_real_slices_are_labeled_and_scored(sliced, real_data, tmp_path):
    """The network knows nothing; the scores of the truth itself are 1."""
    folder, (_, run) = real_data / "kits19_slices", sliced
    layout = Layout(hu_window=(0.0, 255.0))
    image = next(path for path in sorted((folder / "images").iterdir()))
    with pytest.warns(UserWarning, match="clipped to 0 to 255"):
        [written] = predict_cases(run, [image], tmp_path / "out", layout=layout)
    assert read(written).shape == (512, 512)
    found = evaluate_slices(folder / "labels" / image.name, folder, tmp_path / "scores.csv", layout=layout)
    assert found.summary.patient_means["slice_composite"].mean == 1


def test_a_black_image_is_warned_of_and_an_animation_is_refused(sliced, tmp_path):
    folder, run = sliced
    shutil.copytree(folder, tmp_path / "slices")
    images = tmp_path / "slices" / "images"
    Image.fromarray(np.zeros((40, 48), np.uint8)).save(images / "p2_0.png")
    first = Image.open(images / "p3_1.png")
    first.load()
    first.save(images / "p3_1.png", save_all=True, append_images=[first.rotate(90)])
    outcome = predict_cohort(run, [tmp_path / "slices"], tmp_path / "out")
    assert list(outcome.failed) == ["p3_1.png"]
    assert "images/p3_1.png: expected one image, found 2 in one file" in outcome.failed["p3_1.png"]
    [warning] = outcome.warnings
    assert warning.startswith("p2_0.png: ")
    assert "every pixel of p2_0.png" in warning
