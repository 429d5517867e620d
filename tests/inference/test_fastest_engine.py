"""``--engine auto``: the fastest engine, only with the labels of the default, measured once for a machine."""

import importlib.util
import shutil
from dataclasses import replace
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from support.cases import make_case, read_json, spec_of_tests

from kitsseg.data.formats.nifti import read_labels
from kitsseg.errors import InputError
from kitsseg.inference import fastest
from kitsseg.inference.cohort import predict_cohort
from kitsseg.inference.ensemble import Ensemble
from kitsseg.inference.fastest import as_known, choices_of, measure
from kitsseg.inference.options import PredictOptions
from kitsseg.inference.same_labels import View
from kitsseg.inference.scan import Member
from kitsseg.recipe import InferenceSpec
from kitsseg.records import engine_choice
from kitsseg.records.engine_choice import EngineChoice, keep_choice, kept_choice

AUTO = PredictOptions(engine="auto")
IMAGE = np.zeros((9, 24, 32), np.int16)
IMAGE[:, 2:22, 4:24] = 200
IMAGE[:, 5:9, 5:10] = 300
VERSIONS = {"onnxruntime": "1"}


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch):
    monkeypatch.setattr(fastest, "_choices", {})


@pytest.fixture
def engines(monkeypatch):
    """Engines by name: (seconds an image, HU above which it finds kidney). The first is the default."""
    known, clock = {}, SimpleNamespace(now=0.0)

    def opened(ensemble):
        name = ensemble.engine
        if known[name] is None:
            raise InputError(f"--engine {name}: its package is missing.")
        seconds, low = known[name]

        def predict(batch):
            clock.now += seconds
            hu = batch[..., 0] * 76.9 + 101
            return np.eye(3, dtype=np.float32)[(hu > low).astype(int) + (hu > 250)]

        return [Member(predict, spec_of_tests(), InferenceSpec(tile=None))], None, name

    monkeypatch.setattr(fastest, "open_ensemble", opened)
    monkeypatch.setattr(fastest, "_candidates", lambda network: [(name, network) for name in known])
    monkeypatch.setattr(fastest, "_versions", lambda network: VERSIONS)
    monkeypatch.setattr(fastest.time, "perf_counter", lambda: clock.now)
    return known


def measured(run, image=IMAGE):
    ensemble = Ensemble((str(run),), (None,), ("ab",), engine="auto")
    measure(ensemble, [View(image, (3.0, 1.0, 1.0))])
    return as_known(ensemble).engines


def test_the_fastest_engine_with_equal_labels_is_kept(engines, tmp_path):
    engines.update(slow=(0.5, 100), quick=(0.125, 150), middle=(0.25, 120))
    assert measured(tmp_path) == ("quick",)
    [kept] = read_json(tmp_path / "engines.json")["choices"]
    assert kept["milliseconds"] == {"slow": 500.0, "quick": 125.0, "middle": 250.0}
    assert (kept["engine"], kept["refused"]) == ("quick", {})


def test_other_labels_are_never_taken(engines, tmp_path):
    engines.update(slow=(0.5, 100), quick=(0.125, 250), broken=None)
    assert measured(tmp_path) == ("slow",)
    [kept] = read_json(tmp_path / "engines.json")["choices"]
    # of 400 pixels of each slice the 20 of the tumor are found: 2 * 20 / 420
    assert kept["refused"]["quick"].startswith(
        f"Dice {2 * 20 / 420:.4f} of kidney with tumor, 1.0000 of tumor"
    )
    assert "package is missing" in kept["refused"]["broken"]
    [told] = choices_of(Ensemble((str(tmp_path),), (None,), ("ab",)))
    assert "fastest here is slow (slow 500 ms, quick 125 ms a slice or tile); quick is left out: Dice" in told


def test_where_nothing_is_found_the_default_is_taken_and_nothing_kept(engines, tmp_path):
    engines.update(slow=(0.5, 100), quick=(0.125, 100))
    assert measured(tmp_path, np.zeros_like(IMAGE)) == ("slow",)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_takes_no_file_does_not_hinder(engines, tmp_path):
    engines.update(slow=(0.5, 100), quick=(0.125, 100))
    (tmp_path / "file").write_text("")
    assert measured(tmp_path / "file" / "run") == ("quick",)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def choice(**changes):
    values = {
        "machine": engine_choice.this_machine(),
        "versions": VERSIONS,
        "weights_sha256": "ab",
        "engine": "openvino",
        "milliseconds": {"openvino": 1.0},
        "refused": {},
    }
    return EngineChoice(**values | changes)


def test_another_machine_version_or_network_measures_again(tmp_path):
    keep_choice(tmp_path, choice())
    assert kept_choice(tmp_path, "ab", VERSIONS) == choice()
    assert kept_choice(tmp_path, "cd", VERSIONS) is None
    assert kept_choice(tmp_path, "ab", {"onnxruntime": "2"}) is None
    keep_choice(tmp_path, choice(machine="another"))
    assert kept_choice(tmp_path, "ab", VERSIONS) == choice()
    keep_choice(tmp_path, choice(engine="onnxruntime"))
    assert kept_choice(tmp_path, "ab", VERSIONS).engine == "onnxruntime"
    assert [one["machine"] for one in read_json(tmp_path / "engines.json")["choices"]] == [
        "another",
        engine_choice.this_machine(),
    ]
    (tmp_path / "engines.json").write_text("{")
    with pytest.raises(InputError, match=r"engines.json: expected the fastest engines.*Remove that file"):
        kept_choice(tmp_path, "ab", VERSIONS)


def test_the_choice_for_a_file_lies_beside_it(tmp_path):
    file = tmp_path / "a.onnx"
    file.write_bytes(b"")
    keep_choice(file, choice())
    assert (tmp_path / "a.onnx.engines.json").is_file()
    assert kept_choice(file, "ab", VERSIONS) == choice()


@pytest.mark.parametrize(
    "options", [replace(AUTO, precision="bfloat16"), replace(AUTO, scheduler="tcp://localhost:1")]
)
def test_options_that_leave_no_choice_are_refused(trained, tmp_path, options):
    with pytest.raises(InputError, match="--engine auto: "):
        predict_cohort("starter", [trained.data], tmp_path / "out", options=options)


def test_a_network_of_one_engine_is_not_measured(trained, tmp_path):
    pytest.importorskip("ai_edge_litert")
    outcome = predict_cohort("starter", [trained.data / "case_00000"], tmp_path / "out", options=AUTO)
    assert outcome.engine == "litert"
    assert "only one of the installed engines" in outcome.choices[0]


@pytest.mark.skipif(
    keras.config.backend() != "tensorflow"
    or not all(importlib.util.find_spec(name) for name in ("onnx", "tf2onnx", "onnxruntime")),
    reason="needs TensorFlow and what the extra export installs",
)
def test_a_run_is_computed_by_the_chosen_engine_and_its_folder_goes_on_with_it(trained, tmp_path):
    from kitsseg.export.export import write_quick_start

    run = shutil.copytree(trained.run, tmp_path / "run")
    write_quick_start(run)
    first, second = (trained.data / name for name in ("case_00000", "case_00001"))
    outcome = predict_cohort(run, [first], tmp_path / "out", options=AUTO)
    [kept] = read_json(run / "engines.json")["choices"]
    assert kept["engine"] == outcome.engine
    assert {"tensorflow", "onnxruntime"} <= set(kept["milliseconds"])
    assert f"fastest here is {outcome.engine}" in outcome.choices[0]
    again = predict_cohort(run, [first], tmp_path / "weights", options=PredictOptions(engine="tensorflow"))
    np.testing.assert_array_equal(*(read_labels(path).array for path in (*outcome.written, *again.written)))
    other = next(name for name in ("onnxruntime", "tensorflow") if name != outcome.engine)
    predict_cohort(run, [first], tmp_path / "other", options=PredictOptions(engine=other))
    on = predict_cohort(run, [first, second], tmp_path / "other", options=AUTO)
    assert (on.engine, len(on.written)) == (other, 2)


def test_a_scan_that_cannot_be_read_leaves_the_choice_to_the_next(trained, tmp_path, engines):
    engines.update(slow=(0.5, 100))
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "bad.nii.gz").write_bytes(b"nothing")
    make_case(tmp_path / "scans" / "case_00001")
    outcome = predict_cohort("starter", [tmp_path / "scans"], tmp_path / "out", options=AUTO)
    assert list(outcome.failed) == ["bad"]
    assert len(outcome.written) == 1
