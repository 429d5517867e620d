"""Prediction in bfloat16: what computes in it, what is compared with float32, what is kept, what is refused."""

from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
from support.cases import read_json, spec_of_tests

from kitsseg.errors import InputError
from kitsseg.inference import one_scan, precision
from kitsseg.inference.cohort import plan_cohort, predict_cohort
from kitsseg.inference.engines import open_network
from kitsseg.inference.ensemble import Ensemble
from kitsseg.inference.options import PredictOptions
from kitsseg.inference.precision import agreement
from kitsseg.inference.same_labels import View
from kitsseg.inference.scan import Member
from kitsseg.models.fold import fold_batch_norm
from kitsseg.models.loading import read_network
from kitsseg.recipe import InferenceSpec
from kitsseg.records.networks import read_exported
from kitsseg.records.precision import PrecisionCheck
from kitsseg.records.starter import network_path
from kitsseg.runtime.start_keras import start_keras

SHAPE, SPACING = (9, 24, 32), (3.0, 1.0, 1.0)
WHOLE = InferenceSpec(tile=None)
ENGINE = "tensorflow in bfloat16"
KEPT = PrecisionCheck(
    precision="bfloat16", weights_sha256="ab", engine=ENGINE, slices=8, tk_dice=0.9991, tu_dice=None
)


@pytest.fixture(autouse=True)
def _nothing_checked(monkeypatch):
    monkeypatch.setattr(one_scan, "_agreeing", set())


def scan(*bodies):
    """HU of 0, with (rows, columns) boxes of an HU each, through all slices."""
    image = np.zeros(SHAPE, np.int16)
    for rows, columns, hu in bodies:
        image[:, rows, columns] = hu
    return image


def above(low, high=250, inference=WHOLE):
    """A network that calls everything above ``low`` HU kidney and above ``high`` HU tumor."""

    def predict(batch):
        hu = batch[..., 0] * 76.9 + 101
        return np.eye(3, dtype=np.float32)[(hu > low).astype(int) + (hu > high)]

    return Member(predict, spec_of_tests(), inference)


def compared(monkeypatch, run, ours, theirs, image, region=None):
    """The agreement of a network that computes as ``ours`` in bfloat16 and as ``theirs`` in float32."""
    members = {"bfloat16": ours, "float32": theirs}
    monkeypatch.setattr(
        precision, "open_ensemble", lambda ensemble: ([members[ensemble.precision]], None, "known")
    )
    alone = Ensemble((str(run),), (None,), ("ab",), precision="bfloat16")
    views = image if isinstance(image, list) else [View(image, SPACING, region)]
    return agreement(alone, ENGINE, views)


@pytest.mark.parametrize(
    ("inference", "slices"),
    [
        (InferenceSpec(tile=None), 8),
        (InferenceSpec(tile=(8, 16)), 8),
        (InferenceSpec(tile=(4, 24, 32)), 4),
    ],
)
def test_dice_between_both_is_that_of_their_voxels(monkeypatch, tmp_path, inference, slices):
    """20 x 20 pixels of a slice in both, 2 only in one."""
    image = scan((slice(2, 22), slice(4, 24), 200), (slice(0, 1), slice(0, 2), 120))
    found, now = compared(
        monkeypatch, tmp_path, above(100, inference=inference), above(150, inference=inference), image
    )
    assert now
    assert found.tk_dice == pytest.approx(2 * 400 / 802)
    assert found.tu_dice is None
    assert "neither finds tumor" in str(found)
    assert found.slices == slices


def test_the_pixels_of_several_single_slices_count_together(monkeypatch, tmp_path):
    """20 x 20 pixels of one slice and 5 x 4 of a smaller one in both, 6 of the latter in one only."""
    large = scan((slice(2, 22), slice(4, 24), 200))[:1]
    small = np.zeros((1, 16, 24), np.int16)
    small[0, 3:8, 4:8], small[0, 10:12, 10:13] = 200, 120
    empty = np.zeros((1, 24, 24), np.int16)
    views = [View(image, SPACING) for image in (small, empty, large)]
    with pytest.raises(InputError, match=r"0\.8696 of kidney.* on 1 slice;"):  # 40 / 46
        compared(monkeypatch, tmp_path, above(100), above(150), views[:1])
    monkeypatch.setattr(precision, "LEAST", 0.99)
    found, now = compared(monkeypatch, tmp_path, above(100), above(150), views)
    assert (found.slices, now) == (3, True)
    assert found.tk_dice == pytest.approx(2 * 420 / (420 + 426))


def test_a_tumor_that_differs_is_refused_and_not_kept(monkeypatch, tmp_path):
    image = scan((slice(2, 22), slice(4, 24), 200), (slice(5, 9), slice(5, 10), 300))
    refusal = r"--precision bfloat16: .*1\.0000 of kidney.*0\.0000 of tumor.*0\.995"
    with pytest.raises(InputError, match=refusal):
        compared(monkeypatch, tmp_path, above(100, 400), above(100, 250), image)
    assert list(tmp_path.iterdir()) == []


def test_nothing_found_is_no_agreement(monkeypatch, tmp_path):
    assert compared(monkeypatch, tmp_path, above(100), above(100), scan()) == (None, True)
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_compared_once(monkeypatch, tmp_path):
    image = scan((slice(2, 22), slice(4, 24), 200))
    first, now = compared(monkeypatch, tmp_path, above(100), above(100), image)
    assert now
    # the result of the first comparison is used; a comparison of these networks would be refused
    again, now = compared(monkeypatch, tmp_path, above(100), above(500), image)
    assert (again, now) == (first, False)


def test_the_convolutions_compute_in_bfloat16_and_the_logits_in_float32(trained):
    network = read_network(trained.run / "model.keras")
    folded = fold_batch_norm(keras.Model(network.input, network.outputs[-1]), precision="mixed_bfloat16")
    for layer in (layer for layer in folded.layers if layer.weights):
        assert layer.compute_dtype == ("float32" if layer.name == "logits" else "bfloat16")
        assert all(variable.dtype == "float32" for variable in layer.weights)
    image = np.random.default_rng(0).normal(size=(1, 32, 32, 1)).astype(np.float32)
    half, full = (
        open_network(trained.run / "model.keras", precision=name) for name in ("bfloat16", "float32")
    )
    assert (half.engine, full.engine) == (f"{full.engine} in bfloat16", full.engine)
    a, b = half.scores(image), full.scores(image)
    assert a.dtype == b.dtype == np.float32
    assert 1e-6 < np.abs(a - b).max() < 0.1 * np.abs(b).max()  # three digits, through a few layers


def test_a_call_says_how_far_both_agree_and_its_folder_takes_no_float32(trained, tmp_path, monkeypatch):
    start_keras()
    seen = []

    def once(alone, engine, views):
        seen.append((alone.precision, engine))
        return replace(KEPT, weights_sha256=alone.sha256[0]), True

    monkeypatch.setattr(one_scan, "agreement", once)
    inputs, options = [trained.data], PredictOptions(precision="bfloat16")
    outcome = predict_cohort(trained.run, inputs, tmp_path, "test", options)
    assert seen == [("bfloat16", outcome.engine)]
    assert outcome.engine.endswith("in bfloat16")
    [told] = outcome.agreement
    assert Path(told.split(": ")[0]) == trained.run.resolve()
    assert "0.9991" in told
    cases = read_json(tmp_path / "predictions.json")["cases"].values()
    assert [case["precision"][0]["tk_dice"] for case in cases if "precision" in case] == [0.9991]
    with pytest.raises(InputError, match="--precision bfloat16.* --precision float32"):
        predict_cohort(trained.run, inputs, tmp_path, "test", replace(options, precision="float32"))


def test_a_refusal_concerns_all_scans(trained, tmp_path, monkeypatch):
    def refuse(*_):
        raise InputError("other labels")

    monkeypatch.setattr(one_scan, "agreement", refuse)
    with pytest.raises(InputError, match="other labels"):
        predict_cohort(
            trained.run, [trained.data], tmp_path / "out", options=PredictOptions(precision="bfloat16")
        )
    assert not (tmp_path / "out").exists()


def test_an_exported_network_has_its_precision(tmp_path, trained):
    options, starter = PredictOptions(precision="bfloat16"), network_path("starter")
    with (
        pytest.raises(InputError, match=r"--precision bfloat16: .*starter\.tflite .*exported network"),
        plan_cohort(starter, [trained.data], tmp_path / "out", options=options),
    ):
        pass
    with pytest.raises(InputError, match="--precision bfloat16: litert .*starter.* in float32 only"):
        open_network(read_exported(starter).source, precision="bfloat16")
