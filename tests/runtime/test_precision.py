"""Mixed precision: every recipe learns in it, a run in it resumes exactly, and nothing of it is left afterwards."""

import keras
import numpy as np
import pytest
from support.cases import read_json
from support.recipes import StopAt, micro, split_of_cases

from kitsseg.data.cache.cases import open_cache
from kitsseg.errors import InputError
from kitsseg.runtime.execution import PRECISIONS, computing_in
from kitsseg.training import train
from kitsseg.training.options import TrainOptions
from kitsseg.training.phase_setup import batches_of, compiled_network, load_checkpoint

HALF = PRECISIONS[1:]
PAPERS = ("deeplab3d", "enhanced_unet", "squeeze_unet", "unet2d", "wp_unet")


def training_of(recipe, source, precision, accumulate=1):
    """What ``train_recipe`` gives to each phase."""
    cases = open_cache(source / "cache", recipe.preprocess)
    options = TrainOptions(precision=precision, accumulate=accumulate)
    return train.Training(recipe=recipe, cases=cases, options=options)


def test_the_policy_of_the_process_is_as_before_whatever_happens():
    before = keras.config.dtype_policy()
    with pytest.raises(KeyboardInterrupt), computing_in("mixed_float16"):
        assert keras.layers.Conv2D(1, 1).compute_dtype == "float16"
        raise KeyboardInterrupt
    assert keras.config.dtype_policy() is before
    with pytest.raises(InputError, match="one of float32, mixed_bfloat16, mixed_float16; found 'float16'"):
        computing_in("float16").__enter__()
    assert keras.config.dtype_policy() is before


@pytest.mark.slow
@pytest.mark.parametrize("precision", HALF)
@pytest.mark.parametrize("name", PAPERS)
def test_twenty_steps_have_a_finite_falling_loss(name, precision, source):
    """One batch of each recipe's first phase, 20 steps with its own optimizer, loss and rate."""
    recipe = micro(name)
    with computing_in(precision):
        training = training_of(recipe, source, precision)
        keras.utils.set_random_seed(0)
        model = compiled_network(training, recipe.phases[0], [], None)
    half = precision.removeprefix("mixed_")
    assert {layer.compute_dtype for layer in model.layers} >= {half, "float32"}
    assert {variable.dtype for variable in model.trainable_variables} == {"float32"}
    assert {output.dtype for output in model.outputs} == {"float32"}
    scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert scaled == (precision == "mixed_float16")
    images, labels = batches_of(training, recipe.phases[0], split_of_cases(), 0)[0].batch(0)
    targets = recipe.build_targets(labels) if recipe.build_targets else labels
    losses = [float(model.train_on_batch(images, targets, return_dict=True)["loss"])]
    for _ in range(19):
        model.reset_metrics()
        losses.append(float(model.train_on_batch(images, targets, return_dict=True)["loss"]))
    assert np.isfinite(losses).all()
    assert np.mean(losses[-3:]) < 0.98 * np.mean(losses[:3])


# squeeze_unet: two phases, one-cycle (which sets beta_1 through the wrapped optimizer), a frozen encoder; CPUs compute
# its wide layers slowly in float16
@pytest.mark.parametrize("name", ["unet2d", pytest.param("squeeze_unet", marks=pytest.mark.slow)])
def test_a_run_in_float16_resumes_and_leaves_a_network_of_float32(name, eager, source, tmp_path):
    recipe, before = micro(name), keras.config.dtype_policy()
    arguments = (recipe, source / "cache", split_of_cases(), tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        train.train_recipe(*arguments, TrainOptions(seed=7, progress=StopAt(5), precision="mixed_float16"))
    assert keras.config.dtype_policy() is before
    with pytest.raises(InputError, match="started with another precision"):
        train.train_recipe(*arguments, TrainOptions(seed=7, resume=True))
    run = train.train_recipe(*arguments, TrainOptions(seed=7, resume=True, precision="mixed_float16"))
    assert keras.config.dtype_policy() is before
    record = read_json(run / "run.json")
    assert (record["precision"], record["accumulate"], record["devices"]) == ("mixed_float16", 1, 1)
    model = keras.models.load_model(run / "model.keras", compile=False)
    assert {layer.dtype_policy.name for layer in model.layers} == {"float32"}


def test_a_checkpoint_holds_the_state_of_the_loss_scale(eager, source, tmp_path):
    """Six steps, and three, saving, loading, three more: the same weights, scale and count, bit for bit."""
    recipe = micro("unet2d")
    with computing_in("mixed_float16"):
        training = training_of(recipe, source, "mixed_float16")
    batches = batches_of(training, recipe.phases[0], split_of_cases(), 0)[0]

    def start():
        keras.utils.set_random_seed(0)
        with computing_in("mixed_float16"):
            model = compiled_network(training, recipe.phases[0], [], None)
        model.optimizer.dynamic_growth_steps = (
            4  # the scale doubles after 4 steps, so a checkpoint must hold the count
        )
        return model

    straight = start()
    for i in range(6):
        straight.train_on_batch(*batches.batch(i))
    resumed = start()
    for i in range(3):
        resumed.train_on_batch(*batches.batch(i))
    resumed.save(tmp_path / "model.keras")
    with computing_in("mixed_float16"):  # or Keras would not scale the loss again
        resumed = load_checkpoint(tmp_path / "model.keras", compile=True)
    resumed.optimizer.dynamic_growth_steps = 4
    assert resumed.optimizer.step_counter == 3
    for i in range(3, 6):
        resumed.train_on_batch(*batches.batch(i))
    assert float(straight.optimizer.dynamic_scale) == 2.0**16
    pairs = (
        *zip(straight.weights, resumed.weights, strict=True),
        *zip(straight.optimizer.variables, resumed.optimizer.variables, strict=True),
    )
    for a, b in pairs:
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(a), keras.ops.convert_to_numpy(b))
