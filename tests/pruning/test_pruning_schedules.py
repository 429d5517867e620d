"""tfmot's schedules and its import, each claim about the import in a fresh process."""

import os
import subprocess
import sys

import numpy as np
import pytest

from kitsseg.pruning.schedules import at_step, constant_sparsity, polynomial_decay, schedule_of
from kitsseg.recipe import Phase, Pruning

pytest.importorskip("tensorflow_model_optimization")


def test_the_polynomial_schedule_rises_as_tfmots_does():
    """PolynomialDecay(0, 0.5, 0, 10, frequency=2): s = 0.5 - 0.5 (1 - step / 10)^3 at 2, 4, 6, 8, 10."""
    schedule = polynomial_decay(0.5, 10, 2)
    drawn = {step: sparsity for step in range(1, 30) for due, sparsity in [at_step(schedule, step)] if due}
    assert list(drawn) == [2, 4, 6, 8, 10]
    np.testing.assert_allclose(list(drawn.values()), [0.244, 0.392, 0.468, 0.496, 0.5], atol=1e-6)
    assert all(sparsity.dtype == np.float32 for sparsity in drawn.values())


def test_one_shot_draws_once():
    schedule = constant_sparsity(0.75)
    assert [step for step in range(1, 300) if at_step(schedule, step)[0]] == [1]
    assert at_step(schedule, 1)[1] == np.float32(0.75)


def test_a_schedule_that_would_miss_its_target_is_refused():
    with pytest.raises(ValueError, match="end_step .*multiple of frequency.* found 10 and 3"):
        polynomial_decay(0.5, 10, 3)


def drawn_in(pruning):
    """The steps of a phase of 2 epochs, 10 steps each, at which masks are drawn, and their sparsity."""
    words = {"name": "prune", "sampler": None, "learning_rate": 1e-3, "steps_per_epoch": 10, "epochs": 2}
    schedule = schedule_of(Phase(**words, pruning=pruning))
    found = {step: at_step(schedule, step) for step in range(1, 40)}
    return {step: float(sparsity) for step, (due, sparsity) in found.items() if due}


def test_the_schedule_of_a_phase_is_the_one_that_it_names():
    """0.5 from 0 until 60 % of 20 steps, every 4: 4, 8, 12; from 0.2 it is 0.5 - 0.3 (1 - step / 12)^3."""
    assert drawn_in(Pruning(sparsity=0.75, schedule="one-shot")) == {1: 0.75}
    rising = drawn_in(Pruning(sparsity=0.5, until=0.6, frequency=4, initial_sparsity=0.2))
    assert rising == pytest.approx({4: 0.5 - 0.3 * (2 / 3) ** 3, 8: 0.5 - 0.3 / 27, 12: 0.5})


def test_a_phase_without_pruning_has_no_schedule():
    with pytest.raises(ValueError, match="Phase prune: expected one with pruning"):
        drawn_in(None)


KERAS_3 = """
assert tf.keras.layers.Dense.__module__.startswith("keras."), tf.keras.layers.Dense.__module__
assert tf.compat.v1.keras.layers.Dense.__module__.startswith("keras.")
assert issubclass(tf.keras.Model, keras.Model)
"""
USE = """
import keras
from kitsseg.pruning.callback import PruneLowMagnitude
from kitsseg.pruning.schedules import polynomial_decay
before = dict(os.environ)
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)])
model.compile("sgd", "mse")
model.fit(np.ones((8, 4)), np.ones((8, 4)), batch_size=2, verbose=0,
          callbacks=[PruneLowMagnitude(polynomial_decay(0.5, 4, 2))])
assert np.count_nonzero(model.get_weights()[0]) == 8
assert "tensorflow_model_optimization" in sys.modules
assert dict(os.environ) == before
"""


@pytest.mark.parametrize(("first", "given"), [("tensorflow", None), ("kitsseg", "0")])
def test_tf_keras_and_the_environment_are_unchanged(first, given):
    parts = ["import tensorflow as tf", USE] if first == "tensorflow" else [USE, "import tensorflow as tf"]
    check = f"assert os.environ.get('TF_USE_LEGACY_KERAS') == {given!r}"
    code = "\n".join(["import os, sys", "import numpy as np", *parts, KERAS_3, check])
    environment = {k: v for k, v in os.environ.items() if k != "TF_USE_LEGACY_KERAS"}
    if given is not None:
        environment["TF_USE_LEGACY_KERAS"] = given
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
