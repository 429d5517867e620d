"""What a paper reports of its training is logged, is right, and changes nothing else."""

from dataclasses import replace

import numpy as np
import pytest
from support.recipes import micro, split_of_cases

from kitsseg.data.cache.cases import open_cache
from kitsseg.data.sampling.slices import ValidationSlices
from kitsseg.models.loading import read_network
from kitsseg.records.run import read_history
from kitsseg.training.options import TrainOptions
from kitsseg.training.train import train_recipe

LOGGED = {"squeeze_unet": ("dice_multi",), "wp_unet": ("pixel_accuracy", "mean_iou")}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(LOGGED))
def test_every_epoch_has_the_papers_metrics_and_trains_as_without_them(name, source, tmp_path):
    recipe, split = micro(name), split_of_cases()
    assert recipe.metrics == LOGGED[name]
    runs = [
        train_recipe(each, source / "cache", split, tmp_path / str(i), TrainOptions(seed=3))
        for i, each in enumerate((recipe, replace(recipe, metrics=())))
    ]
    rows, plain = map(read_history, runs)
    columns = {prefix + metric for metric in LOGGED[name] for prefix in ("", "val_")}
    for row, other in zip(rows, plain, strict=True):
        assert set(row) - set(other) == columns
        assert all(0 <= row[column] <= 1 for column in columns)
        assert {key: row[key] for key in other} == other
    ours, theirs = (read_network(run / "model.keras").get_weights() for run in runs)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", list(LOGGED))
def test_the_logged_metrics_are_those_of_the_validation_slices(name, source, tmp_path, eager):
    recipe, split = micro(name), split_of_cases()
    phase = replace(recipe.phases[0], epochs=1, steps_per_epoch=1)
    recipe = replace(recipe, phases=(phase,))
    run = train_recipe(recipe, source / "cache", split, tmp_path / "run", TrainOptions(seed=3))
    network = read_network(run / "model.keras")
    cases = open_cache(source / "cache", recipe.preprocess)
    batches = ValidationSlices(cases, split, "validation", phase.sampler, recipe.preprocess)
    table = np.zeros((3, 3), int)
    for i in range(len(batches)):
        images, labels = batches.batch(i)
        found = network.predict_on_batch(images).argmax(axis=-1)
        np.add.at(table, (labels.reshape(-1).astype(int), found.reshape(-1)), 1)
    hits, rest = np.diag(table), table.sum(axis=0) + table.sum(axis=1) - 2 * np.diag(table)
    there = hits + rest > 0
    expected = {
        "dice_multi": (2 * hits / np.maximum(2 * hits + rest, 1))[there].mean(),
        "mean_iou": (hits / np.maximum(hits + rest, 1))[there].mean(),
        "pixel_accuracy": hits.sum() / table.sum(),
    }
    [row] = read_history(run)
    for metric in LOGGED[name]:
        assert row[f"val_{metric}"] == pytest.approx(expected[metric], rel=1e-5)
