"""Whole validation cases while a network is trained: scores, files, what they must not change, and resuming."""

import csv
import math
import random
import re
from dataclasses import replace

import keras
import numpy as np
import pytest
from support.cases import StopAfter, make_case, read_json
from support.records import run_record

from kitsseg import recipes
from kitsseg.data.cache.build import preprocess_cases
from kitsseg.data.cache.cases import open_cache
from kitsseg.errors import InputError
from kitsseg.inference.scan import Member, label_cached_case, mean_scores
from kitsseg.recipe import InferenceSpec, Phase, RemoveFar, SliceSampler
from kitsseg.records.run import WholeCases, read_history
from kitsseg.training.case_validation import (
    CaseLog,
    cheap_inference,
    chosen_cases,
    is_due,
)
from kitsseg.training.monitor import Monitor
from kitsseg.training.options import TrainOptions
from kitsseg.training.train import train_recipe

pytestmark = pytest.mark.usefixtures("eagerly")
CASES = tuple(f"case_{i:05d}" for i in range(3))
WHOLE = InferenceSpec(tile=None)


def by_hu(images, tumor_from=230):
    """Probabilities from HU (``make_case``: kidney 100 to 220, tumor from 240); images are (HU - 101) / 76.9."""
    hu = np.asarray(images)[..., 0] * 76.9 + 101
    return np.eye(3, dtype=np.float32)[(hu > 80).astype(int) + (hu > tumor_from)]


def all_kidney(images):
    return np.eye(3, dtype=np.float32)[np.ones(images.shape[:3], int)]


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_scores_by_hand(cached, spec, tmp_path):
    """Epoch 1: perfect labels. Epoch 2: tumor is called kidney. Epoch 3: all voxels are called kidney.

    With F foreground voxels of N, the TK Dice of epoch 3 is 2 F / (F + N).
    """
    record, seen = run_record(), []
    log = CaseLog(tmp_path, cached, record)

    def score(epoch, predict):
        return log.score(
            "train", epoch, CASES, Member(predict, spec, WHOLE), None, look=lambda *a: seen.append(a)
        )

    assert [(row["case"], row["tk_dice"], row["tu_dice"]) for row in score(1, by_hu)] == [
        (name, 1.0, 1.0) for name in CASES
    ]
    rows = score(2, lambda x: by_hu(x, 9999))
    assert mean_scores(rows) == {"tk": 1.0, "tu": 0.0, "composite": 0.5}
    rows = score(3, all_kidney)
    for row, name in zip(rows, CASES, strict=True):
        case = cached[name]
        foreground = int(case.kidney_area.sum() + case.tumor_area.sum())
        assert row["tk_dice"] == pytest.approx(2 * foreground / (foreground + math.prod(case.geometry.shape)))
    written = rows_of(tmp_path / "validation_cases.csv")
    assert [(row["phase"], row["epoch"], row["case"]) for row in written] == [
        ("train", str(epoch), name) for epoch in (1, 2, 3) for name in CASES
    ]
    assert record.whole_case_validation.seconds > 0
    assert [case.name for case, _ in seen] == list(CASES) * 3
    truth = np.stack([cached[CASES[0]].labels(k) for k in range(8)])
    np.testing.assert_array_equal(seen[0][1], truth)


def test_the_mean_is_that_of_cases():
    rows = [{"tk_dice": 1.0, "tu_dice": 0.5}, {"tk_dice": 0.5, "tu_dice": 0.0}]
    # (1 + 0.5) / 2, (0.5 + 0) / 2, and the mean of 0.75 and 0.25
    assert mean_scores(rows) == {"tk": 0.75, "tu": 0.25, "composite": 0.5}


@pytest.mark.parametrize("shape", [(8, 40, 48), (6, 37, 45)])
def test_slices_in_batches_are_labeled_as_one_by_one(shape, spec, tmp_path):
    """Whole slices go in batches of a fixed size, padded to the network's stride; tiles and mirrored slices do not."""
    make_case(tmp_path / "data" / "case_00000", shape)
    preprocess_cases(tmp_path / "data", tmp_path / "cache", spec)
    case, sizes = open_cache(tmp_path / "cache", spec)["case_00000"], []

    def predict(images):
        sizes.append(images.shape[:3])
        return by_hu(images)

    batches = label_cached_case(case, Member(predict, spec, replace(WHOLE, multiple=16)), at_once=4)
    assert set(sizes) == {(4, 48, 48)} and len(sizes) == 2
    sizes.clear()
    one_by_one = label_cached_case(
        case, Member(predict, spec, replace(WHOLE, multiple=16, mirror_axes=(1,))), at_once=4
    )
    assert set(sizes) == {(1, 48, 48)} and len(sizes) == 2 * shape[0]
    np.testing.assert_array_equal(batches, one_by_one)
    np.testing.assert_array_equal(batches, np.stack([case.labels(k) for k in range(shape[0])]))


def test_labels_of_a_cached_case_are_post_processed(cached, spec):
    """RemoveFar removes a speck of kidney that is 20 mm away from the kidney. Without RemoveFar the speck stays."""
    case = cached[CASES[0]]

    def with_a_speck(images):
        labels = by_hu(images).argmax(-1)
        labels[:, 39, 47] = 1
        return np.eye(3, dtype=np.float32)[labels]

    member = Member(with_a_speck, spec, WHOLE)
    assert label_cached_case(case, member, at_once=4)[:, 39, 47].all()
    clean = label_cached_case(case, member, RemoveFar(max_distance_mm=5.0, min_ratio=0.3, n_main=2))
    assert not clean[:, 39, 47].any() and clean.any()


def test_rows_go_on_and_an_epoch_done_twice_stands_once(cached, spec, tmp_path):
    first = CaseLog(tmp_path, cached, run_record())
    for epoch in (1, 2):
        first.score("train", epoch, CASES[:2], Member(all_kidney, spec, WHOLE), None)
    again = CaseLog(tmp_path, cached, run_record(whole_case_validation=WholeCases(seconds=100.0)))
    assert again.rows == first.rows
    again.score("train", 2, CASES[:2], Member(by_hu, spec, WHOLE), None)
    rows = rows_of(tmp_path / "validation_cases.csv")
    assert [(row["epoch"], row["case"]) for row in rows] == [(e, c) for e in "12" for c in CASES[:2]]
    assert [float(row["tk_dice"]) for row in rows[2:]] == [1.0, 1.0]
    assert again.record.whole_case_validation.seconds > 100
    (tmp_path / "validation_cases.csv").write_text("phase,epoch,case\ntrain,1,case_00000\n")
    with pytest.raises(
        InputError, match=r"validation_cases.csv: expected .*, found others \(no column tk_dice"
    ):
        CaseLog(tmp_path, cached, run_record())


def test_which_cases_and_epochs():
    assert chosen_cases("abcdefgh", 2) == ("c", "g")  # int(0.5 * 4) and int(1.5 * 4)
    assert chosen_cases("abc", None) == chosen_cases("abc", 9) == ("a", "b", "c")
    phase = Phase(
        name="p",
        sampler=SliceSampler(batch_size=1, patch_size=(8, 8)),
        epochs=9,
        steps_per_epoch=1,
        learning_rate=1,
    )
    assert not any(is_due(phase, epoch) for epoch in range(1, 10))
    every = replace(phase, validate_cases_every=4)
    assert [epoch for epoch in range(1, 10) if is_due(every, epoch)] == [4, 8]
    for name in ("validate_cases_every", "validate_cases"):
        with pytest.raises(ValueError, match=f"{name}: .*whole number from 1 .*, or none, found 0"):
            replace(phase, **{name: 0})


def test_slices_are_labeled_cheaply_and_patches_as_the_recipe_says():
    paper = recipes.get("unet2d").inference
    assert (paper.tile, paper.mirror_axes) == ((224, 224), (0, 1))
    cheap = cheap_inference(paper)
    assert cheap == replace(paper, tile=None, mirror_axes=())
    assert cheap_inference(recipes.get("deeplab3d").inference) == recipes.get("deeplab3d").inference


# shape of a typical scan of KiTS19 (216 slices, the mean number, over 420 mm) in the cache of each recipe
SCANS = {
    "unet2d": (140, 420, 512),  # slices of 3 mm, cropped to the body
    "wp_unet": (216, 256, 256),
    "squeeze_unet": (216, 128, 128),
    "squeeze_unet:practical": (216, 256, 256),
    "enhanced_unet": (216, 256, 256),
    "deeplab3d": (140, 512, 512),
    "unet3d": (262, 333, 333),  # 1.6 x 1.2 x 1.2 mm
}
CASES_OF_SPLIT = 42  # a fifth of 210


@pytest.mark.parametrize("variant", ["", ":practical"])
@pytest.mark.parametrize(
    "name", ["unet2d", "wp_unet", "squeeze_unet", "enhanced_unet", "deeplab3d", "unet3d"]
)
def test_whole_cases_cost_less_than_a_tenth(name, variant):
    """The cost is the number of voxels that pass the network. Training counts three times: forward and backward."""
    recipe = recipes.get(name + variant)
    scan = SCANS.get(name + variant, SCANS[name])
    for phase in recipe.phases:
        patches = getattr(phase.sampler, "cases_per_batch", 0)
        images = 3 * patches if patches else phase.sampler.batch_size
        epoch = 3 * phase.steps_per_epoch * images * math.prod(phase.sampler.patch_size)
        if phase.progressive:  # all cases after each round, labeled as the recipe labels a scan
            every, count, inference = phase.epochs, CASES_OF_SPLIT, recipe.inference
            assert phase.validate_cases_every is None
        else:
            every, count = phase.validate_cases_every, phase.validate_cases or CASES_OF_SPLIT
            inference = cheap_inference(recipe.inference)
            assert every <= phase.epochs
        if inference.tile is None:
            case = math.prod(scan)
        else:
            cores = [n - 2 * inference.margin for n in inference.tile]
            tiles = math.prod(math.ceil(n / core) for n, core in zip(scan, cores, strict=True))
            case = tiles * math.prod(inference.tile)
        share = count * case / (every * epoch)
        assert 0.001 < share < 0.1, phase.name


@pytest.fixture(scope="module")
def quick(trained):
    """The micro recipe with three epochs of two steps."""
    return replace(trained.recipe, phases=(replace(trained.recipe.phases[0], steps_per_epoch=2),))


@pytest.fixture(scope="module")
def unwatched(quick, trained, tmp_path_factory):
    """The micro run without any scores."""
    run = tmp_path_factory.mktemp("unwatched") / "run"
    return train_recipe(
        quick, trained.cache, trained.split, run, TrainOptions(seed=5, validate_cases_every=0)
    )


@pytest.fixture(scope="module")
def watched(quick, trained, tmp_path_factory):
    """The same, scored after every epoch."""
    said = []
    run = train_recipe(
        quick,
        trained.cache,
        trained.split,
        tmp_path_factory.mktemp("watched") / "run",
        TrainOptions(seed=5, validate_cases_every=1, say=said.append),
    )
    return run, said


def test_a_run_shows_whole_cases_in_three_places(trained, watched):
    run, said = watched
    history, cases = read_history(run), rows_of(run / "validation_cases.csv")
    (name,) = trained.split.validation
    assert [(row["phase"], row["epoch"], row["case"]) for row in cases] == [
        ("train", str(i), name) for i in (1, 2, 3)
    ]
    for row, case in zip(history, cases, strict=True):
        assert (row["val_case_tk_dice"], row["val_case_tu_dice"]) == (
            float(case["tk_dice"]),
            float(case["tu_dice"]),
        )
        shown = f"train, epoch {row['epoch']} of 3: loss {row['loss']:.3f}, validation loss {row['val_loss']:.3f} "
        line = said[row["epoch"] - 1]
        assert line.startswith(shown)
        assert re.search(rf"1 whole .*TK Dice {row['val_case_tk_dice']:.3f}, ", line)
    record = read_json(run / "run.json")
    spent = record["whole_case_validation"]
    assert 0 < spent["seconds"] < record["seconds"]
    assert f"{spent['share']:.1%} of the" in said[3]
    # the same settings as JSON hold what was asked for, and say so
    assert record["settings"]["phases"][0]["validate_cases_every"] == 1
    assert record["settings"]["evidence"]["phases.train.validate_cases_every"] == "given: by the user"


def test_scores_of_whole_cases_change_nothing_that_is_trained(unwatched, watched):
    run, _ = watched
    ours, theirs = read_history(run), read_history(unwatched)
    assert not (unwatched / "validation_cases.csv").exists()
    assert [set(a) - set(b) for a, b in zip(ours, theirs, strict=True)] == [
        {"val_case_tk_dice", "val_case_tu_dice"}
    ] * 3
    for key in ("learning_rate", "loss", "val_loss"):
        np.testing.assert_allclose([r[key] for r in ours], [r[key] for r in theirs], rtol=1e-6)
    models = [keras.models.load_model(path / "model.keras", compile=False) for path in (run, unwatched)]
    for a, b in zip(*(model.get_weights() for model in models), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_no_random_number_is_drawn(trained, cached, tmp_path):
    """Scores draw no random number of Python, NumPy or Keras; weights that are built later would change."""
    from kitsseg.training.state import Training

    phase = replace(trained.recipe.phases[0], validate_cases_every=1)
    recipe = replace(trained.recipe, phases=(phase,))
    record = run_record()
    training = Training(recipe=recipe, cases=cached, run=tmp_path, record=record)
    monitor = Monitor(training, CASES[:1])
    model = recipe.build_model(**recipe.model)

    def drawn(between):
        keras.utils.set_random_seed(1)
        between()
        kernel = keras.layers.Dense(4)
        kernel.build((None, 4))
        return random.random(), np.random.random(), np.array(kernel.kernel)  # noqa: NPY002

    scores = []
    with_scores = drawn(lambda: scores.append(monitor.epoch_scores(model, phase, 1)))
    without = drawn(lambda: None)
    assert 0 <= scores[0]["val_case_tk_dice"] <= 1
    for a, b in zip(with_scores, without, strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_interrupted_run_ends_with_the_rows_of_the_uninterrupted_one(quick, trained, watched, tmp_path):
    """Stopped at step 4, the last step of epoch 2, and again while the line with the scores of epoch 2 is printed."""
    arguments = (quick, trained.cache, trained.split, tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        train_recipe(*arguments, TrainOptions(seed=5, progress=StopAfter(4), validate_cases_every=1))
    with pytest.raises(InputError, match="started with another recipe"):
        train_recipe(*arguments, TrainOptions(seed=5, resume=True))
    with pytest.raises(KeyboardInterrupt):
        train_recipe(*arguments, TrainOptions(seed=5, resume=True, validate_cases_every=1, say=StopAfter(1)))
    run = train_recipe(*arguments, TrainOptions(seed=5, resume=True, validate_cases_every=1))
    history, whole = read_history(run), read_history(watched[0])
    assert [row["epoch"] for row in history] == [1, 2, 3]
    for key in whole[0].keys() - {"phase"}:
        np.testing.assert_allclose([r[key] for r in history], [r[key] for r in whole], rtol=1e-5, err_msg=key)
    rows = [rows_of(folder / "validation_cases.csv") for folder in (run, watched[0])]
    assert [(r["epoch"], r["case"]) for r in rows[0]] == [(r["epoch"], r["case"]) for r in rows[1]]


def test_a_wrong_number_is_refused(trained, tmp_path):
    with pytest.raises(InputError, match="--validate-cases-every: expected at least 0, found -1"):
        train_recipe(
            trained.recipe,
            trained.cache,
            trained.split,
            tmp_path / "run",
            TrainOptions(validate_cases_every=-1),
        )
    assert not (tmp_path / "run").exists()
