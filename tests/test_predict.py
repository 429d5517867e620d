"""From scan to label map: geometry, header, and what is refused. The network is a known function of HU here."""

import os
import shutil

import nibabel as nib
import numpy as np
import pytest
from conftest import make_case, read_json

from kitsseg.data.nifti import read_image, read_labels
from kitsseg.errors import InputError
from kitsseg.predict import find_scans, load_network, predict_cases, predict_labels
from kitsseg.recipe import InferenceSpec
from kitsseg.scores import score_case

WHOLE = InferenceSpec(tile=None, multiple=4)


def by_hu(spec, low, high):
    """A network that calls everything above ``low`` HU kidney and above ``high`` HU tumor, pixel by pixel."""

    def predict(batch):
        hu = batch[..., 0] * spec.hu_std + spec.hu_mean
        labels = (hu > low).astype(int) + (hu > high)
        return np.eye(3, dtype=np.float32)[labels]

    return predict


@pytest.mark.parametrize(
    "inference", [WHOLE, InferenceSpec(tile=(24, 24), gaussian=True, mirror_axes=(0, 1))]
)
def test_a_perfect_network_scores_one(tmp_path, spec, inference):
    image, labels = make_case(tmp_path)
    found = predict_labels(image, (3.0, 0.8, 0.8), by_hu(spec, 80, 230), spec, inference)
    np.testing.assert_array_equal(found, labels)
    assert score_case(found, labels, (3.0, 0.8, 0.8))["composite"] == 1.0


def test_real_ct_keeps_shape_affine_and_orientation(real_data, tmp_path, trained):
    """RAS axes, 3 mm, 122 x 101 x 30 voxels; the labels lie where the bright voxels are."""
    path = real_data / "real_ct" / "abdomen_ct.nii.gz"
    [written] = predict_cases(trained.run, [path], tmp_path)
    assert written.name == "abdomen_ct.nii.gz"
    ours, theirs = nib.load(written), nib.load(path)
    assert ours.shape == theirs.shape
    assert ours.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(ours.affine, theirs.affine)
    assert nib.aff2axcodes(ours.affine) == ("R", "A", "S")
    for key in ("pixdim", "dim", "qform_code", "sform_code", "srow_x", "srow_y", "srow_z", "xyzt_units"):
        np.testing.assert_array_equal(ours.header[key], theirs.header[key])


def test_real_truth_through_the_same_path_scores_one(real_data, tmp_path, spec):
    """A prediction equal to the truth, written on the real CT's grid, scores 1.0."""
    from kitsseg.data.nifti_writer import write_labels
    from kitsseg.evaluate import evaluate_folders

    folder = real_data / "real_ct"
    scan, truth = read_image(folder / "abdomen_ct.nii.gz"), read_labels(folder / "abdomen_kidneys.nii.gz")
    # the network is told the answer: HU 200 where the kidneys are
    image = np.where(truth.array > 0, 200, 0).astype(np.int16)
    found = predict_labels(image, scan.grid.spacing_mm, by_hu(spec, 80, 900), spec, WHOLE)
    write_labels(tmp_path / "found.nii.gz", found, scan.grid)
    result = evaluate_folders(
        tmp_path / "found.nii.gz", folder / "abdomen_kidneys.nii.gz", tmp_path / "scores.csv"
    )
    assert result.rows[0]["tk_dice"] == 1.0


def test_a_trained_run_predicts_a_folder(trained, tmp_path):
    calls = []
    written = predict_cases(
        trained.run, [trained.data], tmp_path, part="test", progress=lambda *call: calls.append(call)
    )
    [case] = trained.split.test
    assert [path.name for path in written] == [f"prediction_{case.removeprefix('case_')}.nii.gz"]
    summary = read_json(tmp_path / "predictions.json")
    assert summary["split"] == {"name": trained.split.name, "hash": trained.split.hash, "part": "test"}
    assert summary["cases"][case]["file"] == written[0].name
    assert summary["run"] == str(trained.run.resolve())
    assert summary["phantom"] is False
    done = [call[1] for call in calls]
    assert done == sorted(done)
    assert done[-1] == calls[-1][2] == 1
    assert len(list(tmp_path.iterdir())) == 2
    truth = read_labels(trained.data / case / "segmentation.nii.gz").array
    assert read_labels(written[0]).array.shape == truth.shape


def test_mirroring_and_whole_slices_override_the_recipe(trained, tmp_path):
    case = trained.data / "case_00000"
    predict_cases(trained.run, [case], tmp_path / "a", mirror=True)
    assert read_json(tmp_path / "a" / "predictions.json")["inference"]["mirror_axes"] == [0, 1]
    predict_cases(trained.run, [case], tmp_path / "b", whole_slices=True)
    assert read_json(tmp_path / "b" / "predictions.json")["inference"]["tile"] is None


def test_probabilities_sum_to_one(trained):
    predict = load_network(trained.run / "model.keras")
    probabilities = predict(np.random.default_rng(0).normal(size=(2, 32, 48, 1)).astype("float32"))
    assert probabilities.shape == (2, 32, 48, 3)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1, atol=1e-5)


def test_names_of_scans(tmp_path):
    for name in ("case_00000", "case_00001"):
        make_case(tmp_path / "data" / name)
    shutil.copy(tmp_path / "data" / "case_00000" / "imaging.nii.gz", tmp_path / "patient.nii.gz")
    scans = find_scans([tmp_path / "data", tmp_path / "patient.nii.gz"])
    assert list(scans) == ["case_00000", "case_00001", "patient"]
    assert list(find_scans([tmp_path / "data" / "case_00001" / "imaging.nii.gz"])) == ["case_00001"]
    assert list(find_scans([tmp_path / "data" / "case_00001"])) == ["case_00001"]
    with pytest.raises(InputError, match=r"a second scan called case_00001 beside .* Rename one of them"):
        find_scans([tmp_path / "data", tmp_path / "data" / "case_00001"])
    with pytest.raises(
        InputError, match=r"nowhere.nii.gz: expected a scan or a folder of cases, found nothing"
    ):
        find_scans([tmp_path / "nowhere.nii.gz"])


def test_runs_that_cannot_predict(trained, tmp_path):
    with pytest.raises(InputError, match="expected the folder of a run, found no run.json"):
        predict_cases(tmp_path, [trained.data], tmp_path / "out")
    run = shutil.copytree(trained.run, tmp_path / "run")
    (run / "model.keras").write_bytes(b"PK nonsense")
    with pytest.raises(InputError, match=r"model.keras: not a network that this version can read"):
        predict_cases(run, [trained.data], tmp_path / "out")
    (run / "model.keras").unlink()
    with pytest.raises(InputError, match=r"model.keras: missing; the run's status is .* --resume"):
        predict_cases(run, [trained.data], tmp_path / "out")
    (run / "run.json").write_text("{")
    with pytest.raises(InputError, match=r"run.json: damaged"):
        predict_cases(run, [trained.data], tmp_path / "out")
    with pytest.raises(InputError, match="--part test: expected some of the 1 test cases"):
        predict_cases(trained.run, [trained.data / trained.split.train[0]], tmp_path / "out", part="test")


def test_a_bad_scan_leaves_the_good_ones(trained, tmp_path):
    data = shutil.copytree(trained.data, tmp_path / "data")
    bad = data / "case_00001" / "imaging.nii.gz"
    os.truncate(bad, bad.stat().st_size // 2)
    with pytest.raises(InputError, match=r"case_00001/imaging.nii.gz: damaged or not NIfTI"):
        predict_cases(trained.run, [data], tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "prediction_00000.nii.gz",
        "predictions.json",
    ]
