"""How much arithmetic a training is."""

from dataclasses import replace

import pytest

from kitsseg import recipes
from kitsseg.training.work import T4_FLOPS, training_work


def test_a_recipe_of_slices_by_hand():
    # 1,920 steps of 7 crops of 224 x 224, 5.16 G multiply-adds each (the sheet's figure), two operations each,
    # forward once and backward twice
    work = training_work(recipes.get("unet2d"))
    assert (work.steps, work.images, work.what) == (1920, 1920 * 7, "slices")
    assert work.flops == pytest.approx(1920 * 7 * 5.16e9 * 6, rel=2e-3)
    least, most = work.hours(peak=1e12)
    assert least == pytest.approx(work.flops / 0.61e12 / 3600)
    assert most == pytest.approx(work.flops / 0.13e12 / 3600)
    assert work.hours() == work.hours(T4_FLOPS)


def test_patches_and_rounds():
    recipe = recipes.get("deeplab3d:tiny")
    work = training_work(recipe)
    batch = 3 * recipe.phases[0].sampler.cases_per_batch  # one patch for each class
    assert (work.images, work.what) == (batch * work.steps, "patches")
    rounds = recipes.get("enhanced_unet:tiny")
    [progressive] = [phase for phase in rounds.phases if phase.progressive]
    once = replace(rounds, phases=tuple(replace(phase, progressive=None) for phase in rounds.phases))
    more = (progressive.progressive.rounds - 1) * progressive.epochs * progressive.steps_per_epoch
    assert training_work(rounds).steps - training_work(once).steps == more > 0


def test_what_a_notebook_says_of_it(capsys):
    from kitsseg.notebook.steps import describe_training

    describe_training(recipes.get("unet2d"))
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith(
        "1,920 steps, 13,440 slices, 416 Tflop. On a T4 that is 1 minutes to 7 minutes: arithmetic"
    )
    describe_training(recipes.get("enhanced_unet"))
    assert "On a T4 that is 1.3 hours to 6.1 hours" in " ".join(capsys.readouterr().out.split())


def test_pretrained_weights_are_not_downloaded():
    assert recipes.get("squeeze_unet").model["weights"] == "imagenet"
    assert training_work(recipes.get("squeeze_unet")).flops > 1e15
