"""From scan to label map: geometry, header, and what is refused. The network is a known function of HU here."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import zoom
from support.cases import make_case, read_json

from kitsseg.data.formats.nifti import read_image, read_labels, write_labels
from kitsseg.data.geometry.geometry import plan_geometry
from kitsseg.data.geometry.planes import network_planes, normalize
from kitsseg.data.layouts.search import find_scans
from kitsseg.errors import InputError
from kitsseg.inference import ensemble
from kitsseg.inference.cohort import predict_cases, predict_cohort
from kitsseg.inference.engines import Network, open_network, softmax
from kitsseg.inference.options import PredictOptions
from kitsseg.inference.outcome import Outcome, failures
from kitsseg.inference.scan import Member, predict_labels
from kitsseg.inference.windows2d import slice_probabilities
from kitsseg.recipe import InferenceSpec
from kitsseg.records.networks import finished_run
from kitsseg.records.predictions import read_predictions
from kitsseg.scoring.dice import score_case

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
    found = predict_labels(image, (3.0, 0.8, 0.8), Member(by_hu(spec, 80, 230), spec, inference))
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
    from kitsseg.scoring.evaluate import evaluate_folders

    folder = real_data / "real_ct"
    scan, truth = read_image(folder / "abdomen_ct.nii.gz"), read_labels(folder / "abdomen_kidneys.nii.gz")
    # the network is told the answer: HU 200 where the kidneys are
    image = np.where(truth.array > 0, 200, 0).astype(np.int16)
    found = predict_labels(image, scan.grid.spacing_mm, Member(by_hu(spec, 80, 900), spec, WHOLE))
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
    assert (tmp_path / summary["run"]).samefile(trained.run)
    assert summary["phantom"] is False
    done = [call[1] for call in calls]
    assert done == sorted(done)
    assert done[-1] == calls[-1][2] == 1
    assert len(list(tmp_path.iterdir())) == 2
    truth = read_labels(trained.data / case / "segmentation.nii.gz").array
    assert read_labels(written[0]).array.shape == truth.shape


def test_mirroring_and_whole_slices_override_the_recipe(trained, tmp_path):
    case = trained.data / "case_00000"
    predict_cases(trained.run, [case], tmp_path / "a", options=PredictOptions(mirror=True))
    assert read_json(tmp_path / "a" / "predictions.json")["inference"]["mirror_axes"] == [0, 1]
    predict_cases(trained.run, [case], tmp_path / "b", options=PredictOptions(whole_slices=True))
    assert read_json(tmp_path / "b" / "predictions.json")["inference"]["tile"] is None


def test_probabilities_sum_to_one(trained):
    predict = open_network(trained.run / "model.keras")
    probabilities = predict(np.random.default_rng(0).normal(size=(2, 32, 48, 1)).astype("float32"))
    assert probabilities.shape == (2, 32, 48, 3)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1, atol=1e-5)


def test_names_of_scans(tmp_path):
    for name in ("case_00000", "case_00001"):
        make_case(tmp_path / "data" / name)
    shutil.copy(tmp_path / "data" / "case_00000" / "imaging.nii.gz", tmp_path / "patient.nii.gz")
    scans = find_scans([tmp_path / "data", tmp_path / "patient.nii.gz"]).scans
    assert list(scans) == ["case_00000", "case_00001", "patient"]
    assert list(find_scans([tmp_path / "data" / "case_00001" / "imaging.nii.gz"]).scans) == ["case_00001"]
    assert list(find_scans([tmp_path / "data" / "case_00001"]).scans) == ["case_00001"]
    # the same scan twice is one scan; a copy of it is another
    assert list(find_scans([tmp_path / "data", tmp_path / "data" / "case_00001"]).scans) == [
        "case_00000",
        "case_00001",
    ]
    shutil.copytree(tmp_path / "data" / "case_00001", tmp_path / "more" / "case_00001")
    found = find_scans([tmp_path / "data", tmp_path / "more"])
    assert list(found.scans) == ["case_00000"]
    assert all("--images '*/*/imaging" in str(why) for *_, why in found.clashes())
    with pytest.raises(InputError, match=r"nowhere\.nii\.gz: .*scan.*folder.*found nothing"):
        find_scans([tmp_path / "nowhere.nii.gz"])


def test_runs_that_cannot_predict(trained, tmp_path):
    with pytest.raises(InputError, match=r"folder of a run.*no run\.json"):
        predict_cases(tmp_path, [trained.data], tmp_path / "out")
    run = shutil.copytree(trained.run, tmp_path / "run")
    (run / "model.keras").write_bytes(b"PK nonsense")
    with pytest.raises(InputError, match=r"model\.keras: .*weights.*training.*found"):
        predict_cases(run, [trained.data], tmp_path / "out")
    (run / "model.keras").unlink()
    with pytest.raises(InputError, match=r"model\.keras: missing.*status.* --resume"):
        predict_cases(run, [trained.data], tmp_path / "out")
    (run / "run.json").write_text("{")
    with pytest.raises(InputError, match=r"run\.json: .*record of a run"):
        predict_cases(run, [trained.data], tmp_path / "out")
    with pytest.raises(InputError, match="--part test: .* 1 test cases"):
        predict_cases(trained.run, [trained.data / trained.split.train[0]], tmp_path / "out", part="test")


# cohorts, with networks that are known functions


@pytest.fixture
def runs(trained, tmp_path, monkeypatch):
    """Four runs whose networks are known functions of HU: three of one recipe, one with another grid and tiles."""

    def network_of(number):
        def predict(batch):
            x = batch[..., 0] * (number + 1) / 3
            logits = np.stack([np.cos(x * 5), np.sin(x * 7 + number), x - number / 2], axis=-1)
            return softmax(2 * logits).astype(np.float32)

        return predict

    folders = []
    for number in range(4):
        run = shutil.copytree(trained.run, tmp_path / f"run{number}")
        (run / "model.keras").write_bytes(bytes([number]))
        record = read_json(run / "run.json") | {"model_sha256": None}
        if number == 3:
            record["settings"]["preprocess"]["spacing_mm"] = [2.0, 1.1, 0.7]
            record["settings"]["inference"] |= {"tile": [24, 20], "gaussian": True, "mirror_axes": [1]}
        (run / "run.json").write_text(json.dumps(record))
        folders.append(run)

    def open_known(source, engine, output, shape, *, precision):
        predict = network_of(source.read_bytes()[0])
        return Network("keras", predict, predict)

    monkeypatch.setattr(ensemble, "open_network", open_known)
    return folders, network_of


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.nii.gz")}


def test_a_bad_scan_is_listed_and_the_others_are_done(runs, trained, tmp_path):
    run = runs[0][0]
    data = shutil.copytree(trained.data, tmp_path / "data")
    bad = data / "case_00001" / "imaging.nii.gz"
    whole = bad.read_bytes()
    os.truncate(bad, len(whole) // 2)
    message = r"^1 of 9 scans failed, .*: case_00001 \(.*imaging\.nii\.gz: damaged "
    with pytest.raises(InputError, match=message):
        predict_cases(run, [data], tmp_path / "out")
    record = read_json(tmp_path / "out" / "predictions.json")
    assert list(record["failed"]) == ["case_00001"]
    assert "damaged or not NIfTI" in record["failed"]["case_00001"]["reason"]
    assert sorted(record["cases"]) == [f"case_{i:05d}" for i in range(9) if i != 1]
    assert len(files_of(tmp_path / "out")) == 8
    # if the bad scan is the only scan, the command ends with the error of this scan
    with pytest.raises(InputError, match=r"^/.*case_00001/imaging.nii.gz: damaged or not NIfTI"):
        predict_cases(run, [data / "case_00001"], tmp_path / "out")
    # after the bad scan is mended, the next call has only this scan to segment
    bad.write_bytes(whole)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.nii.gz")}
    outcome = predict_cohort(run, [data], tmp_path / "out")
    assert (outcome.kept, outcome.failed, len(outcome.written)) == (8, {}, 9)
    assert times.items() <= {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*.nii.gz")}.items()
    assert read_json(tmp_path / "out" / "predictions.json")["failed"] == {}


def test_whatever_a_network_raises_is_the_reason(trained, tmp_path, monkeypatch):
    """An error of the network is the reason why this scan failed; its traceback is in predictions.json."""

    def network(source, engine, output, shape, *, precision):
        def predict(batch):
            raise FloatingPointError("too hot")

        return Network("keras", predict, predict)

    monkeypatch.setattr(ensemble, "open_network", network)
    outcome = predict_cohort(trained.run, [trained.data], tmp_path / "out")
    assert len(outcome.failed) == 9
    assert outcome.failed["case_00000"].endswith("imaging.nii.gz: FloatingPointError: too hot")
    record = read_json(tmp_path / "out" / "predictions.json")
    assert "in predict\n" in record["failed"]["case_00000"]["traceback"]
    assert failures(outcome, "out").count("too hot") == 3
    assert "; and 6 more. out/predictions.json lists them" in failures(outcome, "out")


def test_what_is_there_is_left_out_and_needs_no_network(runs, trained, tmp_path, monkeypatch):
    [run, other, *_], _ = runs
    arguments = run, [trained.data], tmp_path / "out"
    first = predict_cases(*arguments)
    before, record = files_of(tmp_path / "out"), read_json(tmp_path / "out" / "predictions.json")
    with monkeypatch.context() as patch:
        patch.setattr(ensemble, "open_network", None)
        again = predict_cohort(*arguments)
    assert (again.written, again.kept) == (first, 9)
    assert read_json(tmp_path / "out" / "predictions.json") == record
    # a damaged one is made again, byte for byte
    first[3].write_bytes(first[3].read_bytes()[:-20])
    assert predict_cohort(*arguments).kept == 8
    assert files_of(tmp_path / "out") == before
    # the same folder is refused to other settings, and to another network
    with pytest.raises(
        InputError, match=r"predictions of this run.*made with --no-mirror, now with --mirror. Choose"
    ):
        predict_cases(*arguments, options=PredictOptions(mirror=True))
    with pytest.raises(
        InputError, match=rf"found others: .*/{run.name}, now with .*/{other.name}\. Choose another folder"
    ):
        predict_cases(other, *arguments[1:])
    moved = shutil.move(run, tmp_path / "moved")
    assert predict_cohort(moved, *arguments[1:]).kept == 9  # the same weights elsewhere
    # a corrected label map is not overwritten, and the others are
    labels = read_labels(first[0])
    labels.array[0] = 1
    write_labels(first[0], labels.array, labels.grid)
    corrected = first[0].read_bytes()
    outcome = predict_cohort(moved, *arguments[1:])
    assert (outcome.kept, list(outcome.failed)) == (8, ["case_00000"])
    assert "has changed since" in outcome.failed["case_00000"]
    assert first[0].read_bytes() == corrected


def test_a_replaced_scan_is_predicted_anew_and_another_cohort_is_not_mixed_in(runs, trained, tmp_path):
    run, first, second = runs[0][0], tmp_path / "first", tmp_path / "second"
    for number in range(3):
        shutil.copytree(trained.data / f"case_0000{number}", first / f"case_9000{number}")
    for number in (1, 2, 3):
        shutil.copytree(trained.data / f"case_0000{number + 4}", second / f"case_9000{number}")
    predict_cases(run, [first], tmp_path / "out")
    before = files_of(tmp_path / "out")
    outcome = predict_cohort(run, [second], tmp_path / "out")
    assert list(outcome.failed) == ["case_90001", "case_90002"]
    assert str(second / "case_90001") in outcome.failed["case_90001"]
    assert str(first / "case_90001") in outcome.failed["case_90001"]
    assert before.items() <= files_of(tmp_path / "out").items()
    # the same place, another scan
    shutil.copy(second / "case_90002" / "imaging.nii.gz", first / "case_90002" / "imaging.nii.gz")
    outcome = predict_cohort(run, [first], tmp_path / "out")
    assert (outcome.kept, outcome.renewed, outcome.failed) == (2, ["case_90002"], {})
    predict_cases(run, [second], tmp_path / "fresh")
    name = "prediction_90002.nii.gz"
    assert files_of(tmp_path / "out")[name] == files_of(tmp_path / "fresh")[name] != before[name]


def test_label_maps_never_replace_the_scans(runs, trained, tmp_path):
    """The folder of the scans is given for the label maps, which would have the same names."""
    shutil.copy(trained.data / "case_00000" / "imaging.nii.gz", tmp_path / "anna.nii.gz")
    whole = (tmp_path / "anna.nii.gz").read_bytes()
    with pytest.raises(InputError, match=r"anna.nii.gz: its label map would replace the scan itself"):
        predict_cases(runs[0][0], [tmp_path / "anna.nii.gz"], tmp_path)
    assert (tmp_path / "anna.nii.gz").read_bytes() == whole


def test_one_odd_name_does_not_end_the_others(runs, trained, tmp_path):
    """Too long for a label map of its name; as long as can be; with a tab, a newline, quotes, letters of all kinds."""
    names = ["a_first", "b" * 250, "c" * 248, "d\te\nf", "Größe '\" 患者", "=1+1", "z_last"]
    for name in names:
        shutil.copytree(trained.data / "case_00000", tmp_path / "data" / name)
    outcome = predict_cohort(runs[0][0], [tmp_path / "data"], tmp_path / "out")
    assert list(outcome.failed) == ["b" * 250]
    assert "fewer letters" in outcome.failed["b" * 250]
    assert {path.name for path in outcome.written} == {f"{name}.nii.gz" for name in names if name[0] != "b"}
    record = read_json(tmp_path / "out" / "predictions.json")
    assert (len(record["cases"]), list(record["failed"])) == (6, ["b" * 250])
    assert predict_cohort(runs[0][0], [tmp_path / "data"], tmp_path / "out").kept == 6


PREDICT = """
import sys, time
import numpy as np
from kitsseg.inference import ensemble
from kitsseg.inference.engines import Network
from kitsseg.inference.cohort import predict_cases
def predict(batch):
    time.sleep(0.02)
    return np.eye(3, dtype=np.float32)[(batch[..., 0] > 0).astype(int) + (batch[..., 0] > 1)]
ensemble.open_network = lambda source, engine, output, shape, *, precision: Network("keras", predict, predict)
predict_cases(sys.argv[1], [sys.argv[2]], sys.argv[3])
"""


def test_killed_in_the_middle_the_second_call_does_the_rest(runs, trained, tmp_path):
    """SIGKILL while the fourth of nine scans is predicted; in the end the files are those of one call."""
    run, out = runs[0][0], tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-c", PREDICT, str(run), str(trained.data), str(out)])
    last = time.monotonic() + 60
    while not (out / "prediction_00002.nii.gz").exists():
        assert process.poll() is None, "it ended before it got that far"
        assert time.monotonic() < last, "it never got that far"
        time.sleep(0.001)
    process.kill()
    process.wait()
    done = len(read_predictions(out).cases)
    assert 2 <= done < 9
    times = {path: path.stat().st_mtime_ns for path in out.glob("prediction_0000[01].nii.gz")}

    def predict(batch):
        return np.eye(3, dtype=np.float32)[(batch[..., 0] > 0).astype(int) + (batch[..., 0] > 1)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ensemble, "open_network", lambda *_, **__: Network("keras", predict, predict))
        outcome = predict_cohort(run, [trained.data], out)
        predict_cases(run, [trained.data], tmp_path / "one")
    assert outcome.kept == done
    assert files_of(out) == files_of(tmp_path / "one")
    assert times.items() <= {path: path.stat().st_mtime_ns for path in out.glob("*.nii.gz")}.items()
    assert sorted(read_json(out / "predictions.json")["cases"]) == [f"case_{i:05d}" for i in range(9)]


def test_shards_together_do_everything_once(runs, trained, tmp_path):
    run = runs[0][0]
    predict_cases(run, [trained.data], tmp_path / "one")
    written = [
        predict_cases(run, [trained.data], tmp_path / "out", options=PredictOptions(shard=(number, 4)))
        for number in (2, 0, 1)
    ]
    # nine names, in order: 1, 5, 9; 2, 6; 3, 7 and 4, 8
    assert [len(paths) for paths in written] == [2, 3, 2]
    assert [path.name for path in written[2]] == ["prediction_00001.nii.gz", "prediction_00005.nii.gz"]
    assert not list((tmp_path / "out").glob("predictions-*"))
    assert predict_cohort(run, [trained.data], tmp_path / "out").kept == 7
    assert files_of(tmp_path / "out") == files_of(tmp_path / "one")
    assert len(read_json(tmp_path / "out" / "predictions.json")["cases"]) == 9
    assert predict_cases(run, [trained.data], tmp_path / "out", options=PredictOptions(shard=(11, 12))) == []
    with pytest.raises(InputError, match=r"--shard 4/4: expected a number from 0 to 3"):
        predict_cases(run, [trained.data], tmp_path / "out", options=PredictOptions(shard=(4, 4)))


# several runs


def whole_probabilities(image, spacing_mm, predict, run):
    """Probabilities of one run for the whole scan: its planes and tiles, then SciPy zooms each class as a volume."""
    network = finished_run(run)
    spec, inference = network.preprocess, network.inference
    geometry = plan_geometry(image, spacing_mm, spec)
    planes = network_planes(image, geometry, spec)
    grid = np.stack([slice_probabilities(normalize(plane, spec), predict, inference) for plane in planes])
    factors = [n / m for n, m in zip(image.shape, grid.shape, strict=False)]
    return np.stack(
        [zoom(grid[..., c], factors, order=1, mode="nearest", grid_mode=True) for c in range(3)], axis=-1
    )


@pytest.mark.parametrize("chosen", [[0, 1], [0, 1, 2], [0, 3], [3, 0, 1]], ids=str)
def test_an_ensemble_equals_the_mean_of_whole_volumes(runs, trained, tmp_path, chosen):
    """Folds of one recipe, and different recipes; every run counts the same."""
    folders, network_of = runs
    case = trained.data / "case_00002"
    first, *others = (folders[number] for number in chosen)
    [path] = predict_cases(first, [case], tmp_path / "out", options=PredictOptions(also=others))
    scan = read_image(case / "imaging.nii.gz")
    each = [
        whole_probabilities(scan.array, scan.grid.spacing_mm, network_of(number), folders[number])
        for number in chosen
    ]
    mean = np.mean(each, axis=0)
    top = np.sort(mean, axis=-1)
    clear = top[..., 2] - top[..., 1] > 1e-5
    assert clear.mean() > 0.99
    found = read_labels(path).array
    np.testing.assert_array_equal(found[clear], mean.argmax(-1)[clear])
    assert set(np.unique(found)) == {0, 1, 2}
    for one in each:  # no run alone says the same
        assert (one.argmax(-1) != found).any()
    record = read_json(tmp_path / "out" / "predictions.json")
    assert (tmp_path / "out" / record["run"]).samefile(first)
    assert all(
        (tmp_path / "out" / also).samefile(run) for also, run in zip(record["also"], others, strict=True)
    )
    assert len({network["sha256"] for network in record["networks"]}) == len(chosen)


def test_ensembles_that_make_no_sense(runs, trained, tmp_path):
    folders, _ = runs
    with pytest.raises(InputError, match="run0: .*given twice"):
        predict_cases(folders[0], [trained.data], tmp_path / "out", options=PredictOptions(also=[folders[0]]))
    # the other run has been trained on the case that this one is tested on
    record = read_json(folders[1] / "run.json")
    cases = record["split"]["cases"]
    cases["train"], cases["test"] = cases["train"] + cases["test"], []
    (folders[1] / "run.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"--part test: .*runs.*training.* 1 cases.*found"):
        predict_cases(
            folders[0],
            [trained.data],
            tmp_path / "out",
            part="test",
            options=PredictOptions(also=[folders[1]]),
        )
    assert (
        len(
            predict_cases(
                folders[0],
                [trained.data],
                tmp_path / "out",
                part="train",
                options=PredictOptions(also=[folders[1]]),
            )
        )
        == 7
    )


@pytest.mark.parametrize("lacks", ["model.keras", "run.json", "folder"])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_an_ensemble_that_lacks_a_network_predicts_nothing(runs, trained, tmp_path, which, lacks):
    """For example, one fold was not copied from the cluster. The mean of the other folds is another ensemble."""
    folders, _ = runs
    path = folders[which] if lacks == "folder" else folders[which] / lacks
    path.rename(tmp_path / "gone")
    with pytest.raises((InputError, FileNotFoundError), match=re.escape(str(folders[which]))):
        predict_cases(
            folders[0], [trained.data], tmp_path / "out", options=PredictOptions(also=list(folders[1:3]))
        )
    assert not (tmp_path / "out").exists()


# 3D: --mirror, and tiles that overlap


def test_3d_networks_have_tensorflow_give_memory_back(runs, monkeypatch):
    """TensorFlow reads the variable at its first tensor. Only 3D networks set it, and a value of the user stays."""
    [run, *_], _ = runs
    name = "TF_ONEDNN_USE_SYSTEM_ALLOCATOR"
    monkeypatch.setenv(name, "false")  # so that it is as before in the end
    monkeypatch.delenv(name)
    ensemble.open_ensemble(ensemble.ensemble_of([run]))
    assert name not in os.environ
    record = read_json(run / "run.json")
    record["settings"]["inference"] |= {"tile": [8, 16, 16], "mirror_axes": []}
    (run / "run.json").write_text(json.dumps(record))
    ensemble.open_ensemble(ensemble.ensemble_of([run]))
    assert os.environ[name] == "1"
    monkeypatch.setenv(name, "false")
    ensemble.open_ensemble(ensemble.ensemble_of([run]))
    assert os.environ[name] == "false"


def test_3d_tiles_are_mirrored_in_plane_and_overlap(spec):
    """A network that looks at its left neighbor; brute force over mirrored copies and tiles."""

    def predict(batch):
        x = batch[..., 0] / 4 + (batch - np.roll(batch, 1, axis=3))[..., 0]
        return softmax(np.stack([x, -x, 0.3 + x / 2], axis=-1)).astype(np.float32)

    def mirrored(batch):
        flips = [(), (2,), (3,), (2, 3)]
        return sum(np.flip(predict(np.flip(batch, axes)), axes) for axes in flips) / 4

    image = np.random.default_rng(0).integers(-200, 300, (9, 20, 24)).astype(np.int16)
    inference = InferenceSpec(tile=(8, 16, 16), gaussian=True, mirror_axes=(1, 2))
    labels = predict_labels(image, (3.0, 0.8, 0.8), Member(predict, spec, inference))
    total, summed = np.zeros((*image.shape, 3)), np.zeros((*image.shape, 1))
    axes = [np.exp(-(((np.arange(t) - t // 2) / (t / 8)) ** 2) / 2) for t in inference.tile]
    weights = (axes[0][:, None, None] * axes[1][:, None] * axes[2])[..., None]
    # ceil(1 / 4) + 1 = 2 tiles along slices; ceil(4 / 8) + 1 = 2 along rows; ceil(8 / 8) + 1 = 2 along columns
    for z in (0, 1):
        for y in (0, 4):
            for x in (0, 8):
                window = np.s_[z : z + 8, y : y + 16, x : x + 16]
                total[window] += weights * mirrored(normalize(image[window], spec)[None])[0]
                summed[window] += weights
    mean = total / summed
    top = np.sort(mean, axis=-1)
    clear = top[..., 2] - top[..., 1] > 1e-5
    np.testing.assert_array_equal(labels[clear], mean.argmax(-1)[clear])
    assert clear.mean() > 0.99
    assert set(np.unique(labels)) == {0, 1, 2}


def test_the_line_about_failed_scans_ends_each_reason_once(tmp_path):
    reasons = {"a": "a: missing. Complete it.", "b": "damaged."}
    outcome = Outcome([], 0, reasons, record=SimpleNamespace(failed={"b": None}))
    line = failures(outcome, tmp_path)
    assert line.startswith("2 of 2 scans failed: a: missing. Complete it; b (damaged). ")
    assert ".." not in line.replace(str(tmp_path), "")
    assert "predictions.json lists 1 of them" in line
