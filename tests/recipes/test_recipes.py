"""Recipes: every setting says where its value comes from, and the words build what they say."""

import dataclasses

import pytest

from kitsseg import recipes
from kitsseg.errors import InputError
from kitsseg.recipe import PreprocessSpec, SliceSampler, settings

NAMES = [f"{name}{variant}" for name in recipes.names() for variant in ("", ":practical", ":tiny")]


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_has_evidence_and_every_evidence_a_setting(name):
    recipe = recipes.get(name)
    values = dict(settings(recipe))
    stated = {key for key, value in values.items() if value is not None and value != ()}
    assert not stated - set(recipe.evidence)
    assert not set(recipe.evidence) - set(values)
    kinds = ("paper", "code", "ours", "inferred", "architecture")
    assert all(text.split(":")[0] in kinds for text in recipe.evidence.values())


@pytest.mark.parametrize("name", NAMES)
def test_words_build_model_loss_and_optimizer(name):
    recipe = recipes.get(name)
    assert recipe.name == name
    assert recipe.build_loss(**recipe.loss)
    for phase in recipe.phases:
        assert float(recipe.build_optimizer(phase).learning_rate) == pytest.approx(phase.learning_rate)
    if not name.endswith(":practical"):  # large, and the same builder
        options = {
            key: None if value == "imagenet" else value for key, value in recipe.model.items()
        }  # no network
        model = recipe.build_model(**options)
        assert model.outputs[-1].shape[-1] == recipe.model["n_classes"]
    assert recipe.reported


def test_the_paper_of_chen_and_jin():
    recipe = recipes.get("unet2d")
    assert recipe.build_model(**recipe.model).count_params() == 12_298_643
    phase = recipe.phases[0]
    assert phase.epochs * phase.steps_per_epoch == 1920
    assert (phase.sampler.batch_size, phase.sampler.positive) == (7, 5)


def test_a_misspelt_field_is_an_error():
    with pytest.raises(TypeError, match="hu_windows"):
        PreprocessSpec(hu_windows=(0, 1))
    with pytest.raises(ValueError, match=r"positive must lie in 0..7, found 8"):
        SliceSampler(batch_size=7, positive=8, positive_weights="area", patch_size=(8, 8))
    with pytest.raises(ValueError, match="positive_weights is one of uniform, area; found 'size'"):
        SliceSampler(batch_size=7, positive=5, positive_weights="size", patch_size=(8, 8))


@pytest.mark.parametrize("name", ["vnet", "unet2d:small", "unet2d:", "", ":tiny", "unet2d:tiny:tiny"])
def test_unknown_recipes(name):
    with pytest.raises(InputError, match=r"expected one of .*unet2d.* found no such recipe"):
        recipes.get(name)


def test_recipes_are_values():
    recipe = recipes.get("unet2d")
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.name = "other"
    assert recipes.get("unet2d").as_dict() == recipe.as_dict()
