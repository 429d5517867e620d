"""XLA and several steps in one call: the same training; what does not go together is refused before it starts."""

from dataclasses import replace

import numpy as np
import pytest
from support.recipes import MODELS, STEPS, StopAt, check_alike, micro, split_of_cases

from kitsseg.errors import InputError
from kitsseg.records.run import read_history
from kitsseg.runtime.devices import ONE_DEVICE, Devices
from kitsseg.runtime.execution import check_execution
from kitsseg.training import train
from kitsseg.training.options import TrainOptions
from kitsseg.training.phase_setup import load_checkpoint


@pytest.mark.parametrize("name", sorted(MODELS))
def test_which_phases_may_take_several_steps(name):
    recipe = micro(name)
    assert check_execution(recipe, ONE_DEVICE, "auto", 1) is None
    if name == "squeeze_unet":
        with pytest.raises(InputError, match="squeeze_unet:micro"):
            check_execution(recipe, ONE_DEVICE, "auto", STEPS)
        return
    said = check_execution(recipe, ONE_DEVICE, "auto", STEPS)
    assert said.startswith("prune: one step") if name == "wp_unet" else said is None
    with pytest.raises(InputError, match="--steps-per-execution 2: .* divides the 3 steps"):
        check_execution(recipe, ONE_DEVICE, "auto", 2)


def test_what_cannot_be_is_refused():
    recipe = micro("unet2d")
    with pytest.raises(InputError, match="--steps-per-execution: expected at least 1, found 0"):
        check_execution(recipe, ONE_DEVICE, "auto", 0)
    with pytest.raises(InputError, match="--xla: .*auto, on, off; found 'yes'"):
        check_execution(recipe, ONE_DEVICE, "yes", 1)
    with pytest.raises(InputError, match="several devices.* KERAS_BACKEND=jax"):
        check_execution(recipe, Devices(2), "on", 1)
    assert check_execution(recipe, Devices(2), "auto", STEPS) is None


class Settings:
    """Notes what each phase's network is set to, as training begins."""

    def __init__(self, monkeypatch):
        self.seen, compiled = [], train.compiled_network

        def network(training, phase, rows, weights):
            model = compiled(training, phase, rows, weights)
            self.seen.append((phase.name, model.jit_compile, model.steps_per_execution))
            return model

        monkeypatch.setattr(train, "compiled_network", network)


def small():
    """A recipe with a phase that may take several steps in a call, a phase that prunes, and a network built fast."""
    first, second = micro("wp_unet").phases
    return replace(micro("unet2d"), phases=(first, replace(second, epochs=2)))


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_several_steps_in_one_call_are_as_many_single_ones(accumulate, source, tmp_path, monkeypatch):
    """Weights and history equal those of single steps, also for a run that begins with single steps and is resumed."""
    settings, said, options = Settings(monkeypatch), [], {"accumulate": accumulate}
    runs = [tmp_path / "one", tmp_path / "three", tmp_path / "both"]
    one, three, both = ((small(), source / "cache", split_of_cases(), run) for run in runs)
    train.train_recipe(*one, TrainOptions(seed=3, **options))
    progress = StopAt()
    train.train_recipe(
        *three, TrainOptions(seed=3, steps_per_execution=STEPS, progress=progress, say=said.append, **options)
    )
    assert progress.seen == [3, 6, *range(7, 13)]
    assert said[0].startswith("prune: one step")
    with pytest.raises(KeyboardInterrupt):
        train.train_recipe(*both, TrainOptions(seed=3, progress=StopAt(4), **options))
    train.train_recipe(*both, TrainOptions(seed=3, resume=True, steps_per_execution=STEPS, **options))
    n = STEPS * accumulate
    assert settings.seen == [
        *[("train", False, 1), ("prune", False, 1)],
        *[("train", False, n), ("prune", False, 1)],
        *[("train", False, 1), ("train", False, n), ("prune", False, 1)],
    ]
    weights = [load_checkpoint(run / "model.keras").get_weights() for run in runs]
    for other in weights[1:]:
        for ours, theirs in zip(other, weights[0], strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)
    histories = [read_history(run) for run in runs]
    for other in histories[1:]:
        for ours, theirs in zip(other, histories[0], strict=True):
            check_alike(ours, theirs)


@pytest.mark.slow
def test_steps_compiled_by_xla_have_the_same_losses(source, tmp_path, monkeypatch):
    settings = Settings(monkeypatch)
    recipe = micro("unet2d")
    histories = []
    for choice in ("off", "on"):
        arguments = (recipe, source / "cache", split_of_cases(), tmp_path / choice)
        histories.append(read_history(train.train_recipe(*arguments, TrainOptions(xla=choice))))
    assert settings.seen == [("train", False, 1), ("train", True, 1)]
    for plain, compiled in zip(*histories, strict=True):
        check_alike(compiled, plain, rel=1e-3, abs=1e-4)


def test_an_option_that_cannot_be_leaves_nothing_behind(source, tmp_path):
    arguments = (micro("unet2d"), source / "cache", split_of_cases(), tmp_path / "run")
    with pytest.raises(InputError, match="--steps-per-execution 2"):
        train.train_recipe(*arguments, TrainOptions(steps_per_execution=2))
    assert not (tmp_path / "run").exists()
