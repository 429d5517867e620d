"""The training loop: what a run folder holds, resuming, the plateau schedule."""

import csv
import json
import multiprocessing
from dataclasses import replace
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from support.cases import StopAfter, read_json

from kitsseg import recipes
from kitsseg.data.cache.cases import open_cache
from kitsseg.data.sampling.slices import SliceBatches, ValidationSlices
from kitsseg.data.splits import make_split
from kitsseg.errors import InputError
from kitsseg.losses import CrossEntropySoftDice
from kitsseg.models import build_unet2d
from kitsseg.optimizers.schedules import plateau_learning_rate
from kitsseg.recipe import Plateau, changed
from kitsseg.records.run import read_history, read_run
from kitsseg.training import epochs
from kitsseg.training.epochs import best_epoch, kept_epoch
from kitsseg.training.monitor import Monitor
from kitsseg.training.options import TrainOptions
from kitsseg.training.state import differences
from kitsseg.training.train import train_recipe

NAMES = [f"case_{i:05d}" for i in range(9)]
TOO_LOW = 1e-60  # a learning rate that is 0 in float32, so that nothing is learned


def rows_of(run):
    with (run / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_folder_holds_what_the_other_commands_need(trained):
    run = trained.run
    assert sorted(path.name for path in run.iterdir()) == [
        "history.csv",
        "model.keras",
        "model_card.md",
        "run.json",
        "split.json",
    ]
    record = read_json(run / "run.json")
    assert record["status"] == "finished"
    card = (run / "model_card.md").read_text()  # written last: it tells of the finished run
    assert card.startswith("# unet2d:micro\n") and f"{record['seconds']:.0f} s, seed 5." in card
    assert "| train | 3 |" in card
    assert record["recipe"] == "unet2d:micro"
    assert record["split"]["hash"] == trained.split.hash
    assert record["split"]["cases"]["test"] == list(trained.split.test)
    assert record["seed"] == 5
    assert record["phantom"] is False
    assert record["settings"]["preprocess"]["hu_window"] == [-79.0, 304.0]
    assert {"python", "keras", "numpy", "kitsseg"} <= set(record["versions"])
    rows = rows_of(run)
    assert [(row["phase"], int(row["epoch"])) for row in rows] == [("train", 1), ("train", 2), ("train", 3)]
    # patience 1 and min_delta 10: the rate drops by 0.8 after every epoch but the first
    rates = [float(row["learning_rate"]) for row in rows]
    np.testing.assert_allclose(rates, [3e-3, 3e-3, 3e-3 * 0.8])
    assert [call[1:] for call in trained.calls] == [(i, 18) for i in range(1, 19)]
    assert trained.calls[-1][0].startswith("train, epoch 3 of 3, loss ")


def test_the_best_epoch_is_what_is_kept(trained):
    """The saved network reproduces the lowest validation loss of the history."""
    again = validation_loss(trained.recipe, trained, trained.run)
    np.testing.assert_allclose(again, min(row["val_loss"] for row in read_history(trained.run)), rtol=1e-4)


def validation_loss(recipe, trained, run):
    cases = open_cache(trained.cache, recipe.preprocess)
    validation = ValidationSlices(
        cases, trained.split, "validation", recipe.phases[0].sampler, recipe.preprocess
    )
    model = keras.models.load_model(run / "model.keras", compile=False)
    loss = recipe.build_loss(**recipe.loss)
    return np.mean(
        [float(loss(y, model(x, training=False))) for x, y in map(validation.batch, range(len(validation)))]
    )


def test_an_interrupted_run_goes_on_and_ends_as_the_uninterrupted_one(trained, tmp_path):
    arguments = (trained.recipe, trained.cache, trained.split, tmp_path / "run")
    for calls in (8, 9):  # in the middle of the second epoch, then of the third
        with pytest.raises(KeyboardInterrupt):
            train_recipe(*arguments, TrainOptions(seed=5, resume=calls == 9, progress=StopAfter(calls)))
        assert not (tmp_path / "run" / "model.keras").exists()
        assert len(list((tmp_path / "run" / "checkpoint").glob("*.keras"))) <= 2
    run = train_recipe(*arguments, TrainOptions(seed=5, resume=True))
    ours, theirs = read_history(run), read_history(trained.run)
    assert [row["epoch"] for row in ours] == [1, 2, 3]
    assert [row["learning_rate"] for row in ours] == [row["learning_rate"] for row in theirs]
    np.testing.assert_allclose([r["val_loss"] for r in ours], [r["val_loss"] for r in theirs], rtol=1e-3)
    assert not (run / "checkpoint").exists()


def test_the_finished_run_is_handed_on(trained, tmp_path, eager):
    seen = []

    def look(run):
        seen.append((run, read_json(run / "run.json")["status"], (run / "checkpoint").exists()))

    options = TrainOptions(epochs=1, when_finished=look)
    run = train_recipe(trained.recipe, trained.cache, trained.split, tmp_path / "run", options)
    assert seen == [(run, "finished", False)]


def test_phases_hand_their_best_weights_on(trained, tmp_path):
    """A second phase that cannot learn ends with the best weights of the first."""
    second = replace(trained.recipe.phases[0], name="rest", epochs=1, learning_rate=TOO_LOW, schedule=None)
    recipe = replace(trained.recipe, phases=(trained.recipe.phases[0], second))
    run = train_recipe(recipe, trained.cache, trained.split, tmp_path / "run", TrainOptions(seed=5))
    history = read_history(run)
    assert [row["phase"] for row in history] == ["train"] * 3 + ["rest"]
    models = [keras.models.load_model(folder / "model.keras", compile=False) for folder in (run, trained.run)]
    for a, b in zip(*(model.trainable_weights for model in models), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("phases.train.sampler.patch_size", (1, 2), r"patch_size=\(1, 2\): .* cannot compute them"),
        ("phases.train.sampler.patch_size", (7, 7), r"patch_size=\(7, 7\): "),
        ("phases.train.sampler.patch_size", (17, 33), r"patch_size=\(17, 33\): .*found \(16, 32, 3\)"),
        ("model.n_pools", 6, r"patch_size=\(32, 32\): .* cannot compute them"),
        ("model.n_pools", 9, r"n_pools must be from 1 to 8; got 9"),
        ("model.n_pools", 0, r"n_pools must be from 1 to 8; got 0"),
        ("model.sub_blocks", 0, r"sub_blocks must be at least 1; got 0"),
        ("model.input_shape", (32, 32, 3), r"patch_size=\(32, 32\): expected .*\(32, 32, 1\), found one for"),
        ("model.input_shape", (64, 64, 1), r"patch_size=\(32, 32\): expected .* found one for \(64, 64, 1\)"),
        ("model.input_shape", (), r"input_shape must be \(rows, columns, channels\)"),
        ("inference.multiple", 3, r"inference\.multiple=3: "),
        ("inference.multiple", 2, r"inference\.multiple=2: "),
        ("inference.tile", (17, 17), r"inference\.tile=\(17, 17\): .*found \(16, 16, 3\)"),
        ("inference.tile", (1, 2), r"inference\.tile=\(1, 2\): "),
    ],
)
def test_a_network_that_does_not_fit_its_images_is_refused_before_a_folder_is_made(
    trained, tmp_path, name, value, said
):
    recipe = changed(trained.recipe, {name: value}, {name: "ours"})
    with pytest.raises(InputError, match=rf"^unet2d:micro.*{said}") as error:
        train_recipe(recipe, trained.cache, trained.split, tmp_path / "run")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 700
    assert not (tmp_path / "run").exists()


def test_what_does_not_fit_is_refused(trained, tmp_path):
    recipe, cache, split, run = trained.recipe, trained.cache, trained.split, tmp_path / "run"
    run.mkdir()
    record = read_json(trained.run / "run.json") | {"status": "training"}
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=rf"^{run}: .*new or empty folder"):
        train_recipe(recipe, cache, split, run)
    other = make_split(NAMES, seed=1)
    assert other.hash != split.hash
    with pytest.raises(InputError, match="started with another split"):
        train_recipe(recipe, cache, other, run, TrainOptions(seed=5, resume=True))
    with pytest.raises(InputError, match="started with another seed"):
        train_recipe(recipe, cache, split, run, TrainOptions(seed=6, resume=True))
    with pytest.raises(InputError, match="started with another recipe"):
        train_recipe(recipe, cache, split, run, TrainOptions(seed=5, epochs=9, resume=True))
    for changes, said in (
        ({"name": "wp_unet:micro", "model": recipe.model | {"start_filters": 8}}, r"unet2d:micro"),
        ({"model": recipe.model | {"start_filters": 8}}, r"model.start_filters was 4, is 8"),
        ({"loss": recipe.loss | {"smooth": 0.5}}, r"loss.smooth was 1e-05, is 0.5"),
    ):
        with pytest.raises(InputError, match=rf"{run}: .*started with another recipe .*\({said}"):
            train_recipe(replace(recipe, **changes), cache, split, run, TrainOptions(seed=5, resume=True))
    assert sorted(path.name for path in run.iterdir()) == ["run.json"]
    with pytest.raises(InputError, match="found no run.json"):
        train_recipe(recipe, cache, split, tmp_path / "new", TrainOptions(resume=True))
    with pytest.raises(InputError, match="--epochs: expected at least 1, found 0"):
        train_recipe(recipe, cache, split, tmp_path / "new", TrainOptions(epochs=0))
    with pytest.raises(InputError, match="nothing to resume"):
        train_recipe(recipe, cache, split, trained.run, TrainOptions(seed=5, resume=True))


def test_a_loss_that_is_no_number_stops_the_run(trained, tmp_path):
    phase = replace(trained.recipe.phases[0], learning_rate=1e30)
    recipe = replace(trained.recipe, phases=(phase,))
    told = r"loss is (nan|inf) .*epoch 1 of phase train.* step [2-6] of 6\. No epoch .*Start again"
    with pytest.raises(InputError, match=told):
        train_recipe(recipe, trained.cache, trained.split, tmp_path / "run")


def test_plateau_equals_keras():
    """Our schedule, a function of the history, sets the rates that Keras' callback sets."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        losses = np.cumsum(rng.normal(-0.01, 0.05, 40)) + 3
        plateau = Plateau(factor=0.5, patience=3, min_delta=0.02, min_learning_rate=1e-3)
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        model.compile(keras.optimizers.SGD(0.1), "mse")
        callback = keras.callbacks.ReduceLROnPlateau(factor=0.5, patience=3, min_delta=0.02, min_lr=1e-3)
        callback.set_model(model)
        callback.on_train_begin()
        for epoch, loss in enumerate(losses):
            callback.on_epoch_end(epoch, {"val_loss": loss})
            ours = plateau_learning_rate(0.1, losses[: epoch + 1], plateau)
            np.testing.assert_allclose(ours, float(model.optimizer.learning_rate), rtol=1e-5)


def test_unet2d_the_paper_s_schedule():
    """A flat loss: first drop after epoch 31, two drops in 80 epochs, 1e-4 -> 8e-5 -> 6.4e-5."""
    plateau = Plateau(factor=0.8, patience=30, min_delta=0.005, min_learning_rate=1e-6)
    rates = [plateau_learning_rate(1e-4, [1.0] * epochs, plateau) for epochs in range(80)]
    assert rates[30] == 1e-4  # the rate of epoch 31, after 30 epochs
    np.testing.assert_allclose(rates[31], 8e-5)
    np.testing.assert_allclose(sorted(set(rates)), [6.4e-5, 8e-5, 1e-4])
    assert plateau_learning_rate(1e-4, [1.0] * 5000, plateau) == 1e-6
    # a loss that falls by 0.005 or less is no improvement; a loss that falls by more is one
    assert plateau_learning_rate(1e-4, [1 - 0.004 * (i > 0) for i in range(31)], plateau) < 1e-4
    assert plateau_learning_rate(1e-4, [1 - 0.006 * (i > 0) for i in range(31)], plateau) == 1e-4


def test_best_epoch_takes_the_first_of_equals():
    assert (
        best_epoch(
            [{"epoch": 1, "val_loss": 2.0}, {"epoch": 2, "val_loss": 1.0}, {"epoch": 3, "val_loss": 1.0}]
        )
        == 2
    )


def test_a_phase_keeps_its_last_epoch_if_told_so(micro_recipe):
    phase = micro_recipe.phases[0]
    rows = [{"epoch": i, "val_loss": loss} for i, loss in enumerate((3.0, 1.0, 2.0), 1)]
    assert kept_epoch(phase, rows) == 2
    assert kept_epoch(replace(phase, kept_epoch="last"), rows) == 3
    assert kept_epoch(replace(phase, kept_epoch="last"), rows[:1]) == 1
    with pytest.raises(ValueError, match="kept_epoch.*last.*first"):
        replace(phase, kept_epoch="first")
    progressive = recipes.get("enhanced_unet").phases[0]
    with pytest.raises(ValueError, match="the best round is kept"):
        replace(progressive, kept_epoch="last")


@pytest.mark.parametrize("kept", [None, "last"])
def test_the_kept_epoch_is_the_run_s_network(trained, tmp_path, eager, monkeypatch, kept):
    monkeypatch.setattr(epochs, "best_epoch", lambda rows, first=1: 1)  # as if its loss were the lowest
    phase = replace(trained.recipe.phases[0], epochs=2, kept_epoch=kept)
    recipe = replace(trained.recipe, phases=(phase,))
    run = train_recipe(recipe, trained.cache, trained.split, tmp_path / "run", TrainOptions(seed=5))
    first, last = (row["val_loss"] for row in read_history(run))
    assert abs(first - last) > 1e-2
    np.testing.assert_allclose(validation_loss(recipe, trained, run), last if kept else first, rtol=1e-4)


@pytest.mark.parametrize(
    ("kept", "of", "warned"), [(2, 8, True), (3, 8, False), (1, 7, False), (5, 20, True), (6, 20, False)]
)
def test_an_early_epoch_that_is_kept_is_told(micro_recipe, kept, of, warned):
    said = []
    Monitor.early_epoch(SimpleNamespace(warn=said.append), micro_recipe.phases[0], kept, of)
    assert bool(said) == warned
    if warned:
        assert f"epoch {kept} of {of} are kept" in said[0]
        assert "--set phases.train.kept_epoch=last" in said[0]


def test_a_schedule_that_the_optimizer_cannot_follow_is_refused_before_a_folder_is_made(trained, tmp_path):
    cycle = recipes.get("squeeze_unet").phases[0].schedule
    recipe = replace(trained.recipe, phases=(replace(trained.recipe.phases[0], schedule=cycle),))
    with pytest.raises(InputError, match="phase train: the schedule OneCycle sets beta_1 .* Adam keeps it"):
        train_recipe(recipe, trained.cache, trained.split, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_of_an_older_version_is_the_same_run(trained):
    record = read_run(trained.run)
    for phase in record.settings["phases"]:
        del phase["kept_epoch"]
    assert differences(record, trained.recipe, trained.split, 5, {}) is None
    last = replace(trained.recipe, phases=(replace(trained.recipe.phases[0], kept_epoch="last"),))
    assert "kept_epoch was None, is last" in differences(record, last, trained.split, 5, {})


def test_unet2d_the_loss_of_one_batch_falls(cached, spec, micro_recipe, eager):
    """Four starting filters, 64 x 64, Adam 3e-3, one batch of seven, 15 steps."""
    sampler = replace(micro_recipe.phases[0].sampler, patch_size=(64, 64))
    batches = SliceBatches(
        cached, make_split(NAMES), "train", sampler, micro_recipe.phases[0].augmentation, spec
    )
    images, labels = batches.batch(0)
    keras.utils.set_random_seed(0)
    model = build_unet2d((64, 64, 1), start_filters=4)
    model.compile(keras.optimizers.Adam(3e-3), CrossEntropySoftDice())
    losses = [float(model.train_on_batch(images, labels)) for _ in range(15)]
    assert min(losses[-5:]) < 0.75 * losses[0]


def test_batches_of_other_processes_train_the_same_network(trained, tmp_path, eager):
    """The network of the run whose batches one process made, to the last bit."""
    options = TrainOptions(seed=5, loaders=2)
    run = train_recipe(trained.recipe, trained.cache, trained.split, tmp_path / "run", options)
    found, expected = (
        keras.models.load_model(each / "model.keras", compile=False) for each in (run, trained.run)
    )
    for one, other in zip(found.weights, expected.weights, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not multiprocessing.active_children()
