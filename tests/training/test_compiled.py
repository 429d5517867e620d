"""Gradient accumulation: a batch that is computed in parts gives the same step as the whole batch."""

from dataclasses import replace

import keras
import numpy as np
import pytest
from keras import layers
from support.cases import read_json
from support.recipes import StopAt, micro, split_of_cases

from kitsseg.data.cache.cases import open_cache
from kitsseg.errors import InputError
from kitsseg.recipe import PatchSampler, SliceSampler
from kitsseg.records.run import read_history
from kitsseg.runtime.devices import Devices
from kitsseg.training.options import TrainOptions
from kitsseg.training.phase_setup import batches_of, compiled_network
from kitsseg.training.train import Training, train_recipe


def training_of(recipe, source, **options):
    cases = open_cache(source / "cache", recipe.preprocess)
    return Training(recipe=recipe, cases=cases, options=TrainOptions(**options))


@pytest.mark.parametrize("name", ["unet2d", "unet3d"])
@pytest.mark.parametrize("processes", [1, 2])
def test_the_parts_of_all_processes_are_the_batch(name, processes, source):
    recipe = micro(name)
    phase, split = recipe.phases[0], split_of_cases()
    sampler = phase.sampler
    sampler = (
        replace(sampler, cases_per_batch=4)
        if name == "unet3d"
        else replace(sampler, batch_size=12, positive=5)
    )
    phase = replace(phase, sampler=sampler)
    whole, _ = batches_of(training_of(recipe, source), phase, split, 0)
    drawn = []
    for process in range(processes):
        devices = Devices(processes, process, processes)
        drawn.append(
            batches_of(training_of(recipe, source, accumulate=3, devices=devices), phase, split, 0)[0]
        )
    assert {batches.form.batch_size for batches in drawn} == {12 // 3 // processes}
    for index in (0, 5):
        parts = [batches.batch(3 * index + i) for i in range(3) for batches in drawn]
        for ours, theirs in zip(zip(*parts), whole.batch(index), strict=True):
            np.testing.assert_array_equal(np.concatenate(ours), theirs)


@pytest.mark.parametrize("accumulate", [2, 4])
@pytest.mark.parametrize("build", [keras.optimizers.SGD, keras.optimizers.Adam])
def test_one_step_in_parts_is_one_step(accumulate, build, eager, source):
    """A network without batch normalization and a loss that is a mean: within 1e-5 after three steps."""
    recipe = micro("unet2d")

    def build_model():
        keras.utils.set_random_seed(0)
        inputs = keras.Input((32, 32, 1), name="image")
        x = layers.Conv2D(4, 3, padding="same", activation="relu", name="hidden")(inputs)
        return keras.Model(inputs, layers.Conv2D(3, 1, name="logits")(x))

    recipe = replace(
        recipe,
        model={},
        loss={},
        build_model=build_model,
        build_loss=lambda: keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        build_optimizer=lambda phase: build(0.01),
    )
    phase = replace(recipe.phases[0], sampler=SliceSampler(batch_size=4, positive=2, patch_size=(32, 32)))
    ends = []
    for parts in (1, accumulate):
        training = training_of(recipe, source, accumulate=parts)
        model = compiled_network(training, phase, [], None)
        batches, _ = batches_of(training, phase, split_of_cases(), 0)
        for index in range(3 * parts):
            model.train_on_batch(*batches.batch(index))
        assert int(model.optimizer.iterations) == 3
        ends.append(model.get_weights())
    for one, other in zip(*ends, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)
    assert not np.allclose(ends[0][0], build_model().get_weights()[0], atol=1e-3)


def test_steps_rates_and_masks_count_whole_batches(eager, source, tmp_path):
    """One-cycle and pruning, in parts and not: the same progress, rates and sparsities."""
    recipe = micro("wp_unet")
    cycle = micro("squeeze_unet").phases[1]
    # pruned with the optimizer and the schedule of the other recipe
    phase = replace(
        cycle, pruning=recipe.phases[1].pruning, sampler=recipe.phases[0].sampler, rate_factors=()
    )
    recipe = replace(recipe, phases=(phase,), build_optimizer=micro("squeeze_unet").build_optimizer)
    seen = []
    for parts in (1, 2):
        progress = StopAt()
        arguments = (recipe, source / "cache", split_of_cases(), tmp_path / f"run{parts}")
        run = train_recipe(*arguments, TrainOptions(progress=progress, accumulate=parts))
        rows = [(row["learning_rate"], row["sparsity"]) for row in read_history(run)]
        seen.append((progress.seen, progress.totals, rows))
        assert read_json(run / "run.json")["accumulate"] == parts
    assert seen[0] == seen[1]
    assert seen[0][0] == [1, 2, 3, 4, 5, 6]
    assert len({rate for rate, _ in seen[0][2]}) == 2


def test_a_batch_that_cannot_be_divided_is_refused_before_anything_is_written(source, tmp_path):
    recipe = micro("unet2d")
    arguments = (recipe, source / "cache", split_of_cases(), tmp_path / "run")
    with pytest.raises(InputError, match=r"batch of 2 .*divided.* 3 parts\. .*--accumulate"):
        train_recipe(*arguments, TrainOptions(accumulate=3))
    with pytest.raises(InputError, match=r"batch of 2 .*divided.* 4 devices\. .*--devices"):
        train_recipe(*arguments, TrainOptions(devices=Devices(4)))
    patches = replace(
        recipe.phases[0], sampler=PatchSampler(cases_per_batch=2, patch_size=(8, 8, 8))
    )  # six in a batch
    with pytest.raises(InputError, match="batch of 6 .*divided.* 2 devices x 2 parts"):
        train_recipe(
            replace(recipe, phases=(patches,), inference=replace(recipe.inference, tile=(8, 8, 8))),
            *arguments[1:],
            TrainOptions(accumulate=2, devices=Devices(2)),
        )
    assert not (tmp_path / "run").exists()
