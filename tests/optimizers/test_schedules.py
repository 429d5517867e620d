"""Learning rates: plateau with an end (3D DeepLab §10 line 10), one-cycle (SqueezeNet U-Net §7 line 8)."""

import math
import time
from dataclasses import replace
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from support.records import run_record

from kitsseg import recipes
from kitsseg.data.splits import make_split
from kitsseg.optimizers.group_adamw import GroupAdamW
from kitsseg.optimizers.schedules import one_cycle, plateau_learning_rate, plateau_stops
from kitsseg.recipe import OneCycle, Plateau
from kitsseg.records.run import read_history
from kitsseg.training.epoch_log import EpochLog
from kitsseg.training.epochs import phase_finished
from kitsseg.training.options import TrainOptions
from kitsseg.training.train import train_recipe

PAPER_CYCLE = OneCycle(rise=0.25, start_divisor=25.0, end_divisor=1e5, momentum=(0.95, 0.85))


@pytest.mark.parametrize("name", ["deeplab3d", "deeplab3d:practical"])
def test_deeplab3d_stops_after_the_sixth_plateau(name):
    """1e-3, a flat loss: epoch 1 is the best, then a plateau each 20 epochs; the fifth gives 1e-8, the sixth 1e-9."""
    phase = recipes.get(name).phases[0]
    assert (phase.learning_rate, phase.schedule.patience, phase.schedule.factor) == (1e-3, 20, 0.1)
    for plateaus in range(7):
        losses = [1.0] * (1 + 20 * plateaus)
        rate = plateau_learning_rate(1e-3, losses, phase.schedule)
        assert rate == pytest.approx(10.0 ** (-3 - plateaus), rel=1e-9)
        assert plateau_stops(1e-3, losses, phase.schedule) == (plateaus == 6)
    assert not plateau_stops(1e-3, [1.0] * 120, phase.schedule)
    rows = [{"val_loss": 1.0}] * 121
    assert phase_finished(phase, rows)
    assert not phase_finished(phase, rows[:120])
    assert phase_finished(replace(phase, schedule=None), [{"val_loss": 1.0}] * 300)


def test_an_improvement_puts_the_end_off():
    schedule = Plateau(factor=0.1, patience=20, stop_below=1e-8)
    # 19 epochs without, one with: no drop ever
    losses = [1 - 0.01 * (epoch // 20) for epoch in range(200)]
    assert plateau_learning_rate(1e-3, losses, schedule) == 1e-3
    # the last drop waits for 20 epochs after the better one at epoch 110
    losses = [1.0] * 110 + [0.9] * 20
    assert not plateau_stops(1e-3, losses, schedule)
    assert plateau_stops(1e-3, losses + [0.9], schedule)


def test_fine_tuning_from_1e_4_stops_after_the_fifth():
    phase = recipes.get("deeplab3d").phases[1]
    assert phase.learning_rate == 1e-4
    assert not plateau_stops(1e-4, [1.0] * 100, phase.schedule)
    assert plateau_stops(1e-4, [1.0] * 101, phase.schedule)


def test_without_a_lower_end_nothing_stops():
    assert not plateau_stops(1e-3, [1.0] * 999, Plateau(factor=0.1, patience=1))
    floor = Plateau(factor=0.1, patience=1, min_learning_rate=1e-6)
    assert plateau_learning_rate(1e-3, [1.0] * 999, floor) == 1e-6
    assert not plateau_stops(1e-3, [1.0] * 999, floor)


@pytest.mark.slow
def test_a_phase_that_stops_early_hands_over_to_the_next(cached, micro_recipe, tmp_path):
    """Patience 1 and a min_delta no loss reaches: six drops after epoch 7 of 20, then the second phase."""
    first = replace(
        micro_recipe.phases[0],
        epochs=20,
        steps_per_epoch=1,
        learning_rate=1e-3,
        schedule=Plateau(factor=0.1, patience=1, min_delta=1e6, stop_below=1e-8),
    )
    second = replace(first, name="second", epochs=1, schedule=None)
    calls = []
    run = train_recipe(
        replace(micro_recipe, phases=(first, second)),
        tmp_path / "cache",
        make_split(list(cached)),
        tmp_path / "run",
        TrainOptions(progress=lambda _, done, total: calls.append((done, total))),
    )
    history = read_history(run)
    assert [(row["phase"], row["epoch"]) for row in history] == [
        *(("train", epoch) for epoch in range(1, 8)),
        ("second", 1),
    ]
    rates = [row["learning_rate"] for row in history]
    np.testing.assert_allclose(rates, [1e-3, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-3], rtol=1e-6)
    # the steps that were left out count as done
    assert calls == [(step, 21) for step in (1, 2, 3, 4, 5, 6, 7, 21)]
    assert (run / "model.keras").is_file()


def test_squeeze_unet_one_cycle():
    """1e-3 / 25 = 4e-5 at the start, 1e-3 at a quarter, 1e-3 / 1e5 = 1e-8 at the end; beta_1 0.95, 0.85, 0.95."""
    assert recipes.get("squeeze_unet").phases[0].schedule == PAPER_CYCLE
    at = {step: one_cycle(step, 400, 1e-3, PAPER_CYCLE) for step in (0, 50, 100, 250, 400)}
    np.testing.assert_allclose(at[0], (4e-5, 0.95), rtol=1e-9)
    np.testing.assert_allclose(at[50], ((4e-5 + 1e-3) / 2, 0.9), rtol=1e-9)  # halfway up
    np.testing.assert_allclose(at[100], (1e-3, 0.85), rtol=1e-9)
    np.testing.assert_allclose(at[250], ((1e-3 + 1e-8) / 2, 0.9), rtol=1e-9)  # halfway down
    np.testing.assert_allclose(at[400], (1e-8, 0.95), rtol=1e-6)
    # a third of the way up: (1 - cos 60 degrees) / 2 = 1/4; a third down: 3/4 of the way are left
    np.testing.assert_allclose(one_cycle(1, 12, 1e-3, PAPER_CYCLE)[0], 4e-5 + 0.25 * 96e-5, rtol=1e-9)
    np.testing.assert_allclose(one_cycle(6, 12, 1e-3, PAPER_CYCLE)[0], 1e-8 + 0.75 * (1e-3 - 1e-8), rtol=1e-9)


def test_one_cycle_rises_once_and_falls_once():
    rates, momenta = zip(*(one_cycle(step, 97, 1e-3, PAPER_CYCLE) for step in range(98)), strict=True)
    top = int(np.argmax(rates))
    assert top == math.floor(97 * 0.25)  # 0.25 of 97 steps lies nearer to step 24 than to 25
    assert (np.diff(rates[: top + 1]) > 0).all() and (np.diff(rates[top + 1 :]) < 0).all()
    assert (np.diff(momenta[: top + 1]) < 0).all() and (np.diff(momenta[top + 1 :]) > 0).all()


@pytest.mark.parametrize(("name", "peak"), [("frozen", 2e-3), ("unfrozen", 1e-3)])
def test_fine_tune_s_two_cycles(name, peak):
    """fastai's fine_tune: 99 % rise from 1/25 while frozen, then half the rate, 30 % rise from 1/5."""
    (phase,) = (p for p in recipes.get("squeeze_unet:practical").phases if p.name == name)
    cycle, rise, divisor = phase.schedule, *{"frozen": (0.99, 25), "unfrozen": (0.3, 5)}[name]
    assert phase.learning_rate == peak
    np.testing.assert_allclose(one_cycle(0, 1000, peak, cycle), (peak / divisor, 0.95))
    np.testing.assert_allclose(one_cycle(rise * 1000, 1000, peak, cycle), (peak, 0.85))
    np.testing.assert_allclose(one_cycle(1000, 1000, peak, cycle), (peak / 1e5, 0.95))


def log_of(folder, phase, rows, seen, model):
    """An EpochLog that trains for no recipe; ``seen`` collects what the optimizer holds after each step."""
    (folder / "checkpoint").mkdir(parents=True, exist_ok=True)
    (folder / "run.json").touch()

    def look(_, done, total):
        seen.append((float(model.optimizer.learning_rate), float(model.optimizer.beta_1)))

    training = SimpleNamespace(
        seed=0,
        run=folder,
        checkpoints=folder / "checkpoint",
        history=list(rows),
        begun=run_record(),
        started=time.monotonic(),
        options=TrainOptions(progress=look),
        total_steps=12,
    )
    return EpochLog(training, phase, rows)


def test_one_cycle_reaches_rate_and_beta_1_of_every_step_and_goes_on_after_resuming(micro_recipe, tmp_path):
    """Three epochs of four steps; the second run starts from the first's checkpoint after epoch 1."""
    phase = replace(
        micro_recipe.phases[0], epochs=3, steps_per_epoch=4, learning_rate=1e-2, schedule=PAPER_CYCLE
    )
    x = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(GroupAdamW(phase.learning_rate), "mse")
    model.optimizer.build(model.trainable_variables)

    def fit(model, rows, epochs):
        seen = []
        model.fit(
            np.tile(x, (4, 1)),
            np.ones((8, 1)),
            batch_size=2,
            validation_data=(x, np.ones((2, 1))),
            initial_epoch=len(rows),
            epochs=epochs,
            shuffle=False,
            verbose=0,
            callbacks=[log_of(tmp_path / "run", phase, rows, seen, model)],
        )
        return seen

    rows = []
    seen = fit(model, rows, 1)
    seen += fit(keras.models.load_model(tmp_path / "run" / "checkpoint" / "train-00001.keras"), rows, 3)
    expected = [one_cycle(step, 12, 1e-2, PAPER_CYCLE) for step in range(12)]
    np.testing.assert_allclose(seen, expected, rtol=1e-6)
    # the history holds the rate of the last step of each epoch
    np.testing.assert_allclose([row["learning_rate"] for row in rows], [expected[i][0] for i in (3, 7, 11)])
