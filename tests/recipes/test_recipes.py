"""Recipes: every setting says where its value comes from, and the settings build the network that they describe."""

import dataclasses
import importlib
import inspect
import math
import re
from pathlib import Path

import pytest

from kitsseg import recipes
from kitsseg.errors import InputError
from kitsseg.recipe import PreprocessSpec, SliceSampler, Variant, changed, settings

NAMES = [f"{name}{variant}" for name in recipes.names() for variant in ("", ":practical", ":tiny")]
VARIANTS = [(name, variant) for name in recipes.names() for variant in recipes.variants(name)]
VARIANT_NAMES = [f"{name}:{variant.name}" for name, variant in VARIANTS]


@pytest.mark.parametrize("name", NAMES + VARIANT_NAMES)
def test_every_setting_has_evidence_and_every_evidence_a_setting(name):
    recipe = recipes.get(name)
    values = dict(settings(recipe))
    stated = {key for key, value in values.items() if value is not None and value != ()}
    assert not stated - set(recipe.evidence)
    assert not set(recipe.evidence) - set(values)
    kinds = ("paper", "code", "ours", "inferred", "architecture")
    assert all(re.split("[: ]", text)[0] in kinds for text in recipe.evidence.values())
    named = (
        "postprocess",
        "split",
        "metrics",
        "inference.mirror_axes",
    )  # for these settings, None has evidence too
    assert {key for key in named if key in values} <= set(recipe.evidence)


@pytest.mark.parametrize("name", NAMES + VARIANT_NAMES)
def test_what_is_called_the_papers_is_a_numbered_sentence_of_its_page(name):
    recipe = recipes.get(name)
    for key, text in recipe.evidence.items():
        if text.startswith("paper"):
            found = re.match(r"paper \[(\d+(?:, \d+)*)\]: ", text)
            assert found, (key, text)
            numbers = [int(number) for number in found[1].split(", ")]
            assert all(1 <= number <= len(recipe.statements) for number in numbers), (key, text)
    for text in recipe.evidence.values():  # sentences named within a sentence
        for number in re.findall(r"\((\d{1,2})\)", text):
            assert 1 <= int(number) <= len(recipe.statements)


@pytest.mark.parametrize("name", recipes.names())
def test_every_option_of_builder_and_loss_is_a_setting(name):
    recipe = recipes.get(name)
    builder = getattr(importlib.import_module("kitsseg.models"), f"build_{name}")
    options = {*inspect.signature(builder).parameters, *inspect.signature(recipe.build_model).parameters}
    options -= {"options", "block"}  # a block of unet2d has two settings
    assert options == set(recipe.model)
    losses = recipe.build_loss(**recipe.loss)
    loss = losses[0][0] if isinstance(losses, tuple) else losses
    if type(loss).__module__.startswith("kitsseg"):
        named = {*inspect.signature(recipe.build_loss).parameters} - {"options"}
        assert set(loss.get_config()) - {"name", "reduction", "dtype"} | named == set(recipe.loss)
    # and what no option changes
    stated = {"dropout", "normalization", "initializers", "optimizer", "validation"}
    stated |= set() if all(phase.kept_epoch for phase in recipe.phases) else {"best_epoch"}
    assert stated <= set(recipe.fixed)


@pytest.mark.parametrize("name", recipes.names())
def test_the_default_of_a_loss_is_not_used_in_silence(name):
    """A loss that is built from the options of a recipe holds exactly these options."""
    recipe = recipes.get(name)
    losses = recipe.build_loss(**recipe.loss)
    loss = losses[0][0] if isinstance(losses, tuple) else losses
    for key, value in recipe.loss.items():
        if key != "heads":
            assert loss.get_config()[key] == value


def test_a_papers_page_holds_its_sentences():
    folder = Path(__file__).parents[2] / "docs" / "papers"
    for name in recipes.names():
        page = (folder / f"{name}.md").read_text(encoding="utf-8")
        for number, each in enumerate(recipes.get(name).statements, 1):
            assert f"| {number} | {each.says.replace('|', chr(92) + '|')} |" in page
        assert recipes.get(name).link in page


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
        }  # without a download
        model = recipe.build_model(**options)
        assert model.outputs[-1].shape[-1] == recipe.model["n_classes"]
    assert recipe.reported


def test_every_row_of_every_table_has_a_name():
    assert VARIANT_NAMES == [
        "deeplab3d:proposed",
        "deeplab3d:bigger-encoder",
        "deeplab3d:bigger-aspp",
        "deeplab3d:decoder-every-stage-1-conv",
        "deeplab3d:decoder-every-stage-2-convs",
        "deeplab3d:focal-5",
        "deeplab3d:focal-2",
        "deeplab3d:focal-0.5",
        "deeplab3d:focal-0.2",
        "deeplab3d:without-refinement",
        "enhanced_unet:without-gates",
        "enhanced_unet:without-pyramid",
        "enhanced_unet:without-deep-supervision",
        "squeeze_unet:resnet34",
        "squeeze_unet:without-skips",
        "unet2d:filters-30",
        "unet2d:sigmoid",
        "unet2d:sigmoid-regions",
        "unet2d:binary-tumor",
        "wp_unet:unet",
        "wp_unet:dw_unet",
        "wp_unet:dw_unet-pruned",
    ]


@pytest.mark.parametrize(("name", "variant"), VARIANTS, ids=VARIANT_NAMES)
def test_a_variant_is_the_papers_recipe_with_its_changes_and_no_others(name, variant):
    paper, found = recipes.get(name), recipes.get(f"{name}:{variant.name}")
    assert found.name == f"{name}:{variant.name}"
    assert found.reported == variant.reported
    before, after = dict(settings(paper)), dict(settings(found))
    different = {key for key in before | after if before.get(key) != after.get(key)}
    groups = tuple(f"{key}." for key, value in variant.changes.items() if value is None)
    assert {key for key in different if not key.startswith(groups)} <= set(variant.changes)
    for key, value in variant.changes.items():
        assert after.get(key) == value
        assert (
            value == before.get(key)
            or found.evidence.get(key, variant.evidence[key]) == variant.evidence[key]
        )
    assert {key: paper.evidence[key] for key in found.evidence if key not in variant.evidence} == {
        key: text for key, text in found.evidence.items() if key not in variant.evidence
    }


COUNTED = {"wp_unet": 1}  # channels of the head as its paper counts


@pytest.mark.parametrize(
    ("name", "variant"),
    [pair for pair in VARIANTS if pair[1].parameters],
    ids=[name for name, pair in zip(VARIANT_NAMES, VARIANTS, strict=True) if pair[1].parameters],
)
def test_a_row_has_as_many_trainable_parameters_as_its_network(name, variant):
    recipe = recipes.get(f"{name}:{variant.name}")
    options = {**recipe.model, "n_classes": COUNTED.get(name, 3)}
    if "weights" in options:
        options["weights"] = None
    model = recipe.build_model(**options)
    assert sum(math.prod(v.shape) for v in model.trainable_variables) == variant.parameters
    # if the paper counts another network than the one that is trained, the row says so
    assert bool(variant.counted) == (options["n_classes"] != recipe.model["n_classes"])


def test_a_change_of_a_setting_that_is_none_is_an_error():
    with pytest.raises(KeyError, match=r"model\.filter"):
        changed(recipes.get("unet2d"), {"model.filter": 3}, {"model.filter": "ours"})
    with pytest.raises(KeyError, match=r"phases\.trian"):
        changed(recipes.get("unet2d"), {"phases.trian.epochs": 3}, {"phases.trian.epochs": "ours"})
    with pytest.raises(ValueError, match=r"needs its evidence"):
        Variant(name="x", row="x", changes={"model.n_pools": 3}, evidence={})


def test_the_paper_of_chen_and_jin():
    recipe = recipes.get("unet2d")
    assert recipe.build_model(**recipe.model).count_params() == 12_298_643
    phase = recipe.phases[0]
    assert phase.epochs * phase.steps_per_epoch == 1920
    assert (phase.sampler.batch_size, phase.sampler.positive) == (7, 5)


def test_a_misspelt_field_is_an_error():
    with pytest.raises(TypeError, match="hu_windows"):
        PreprocessSpec(hu_windows=(0, 1))
    with pytest.raises(ValueError, match=r"positive: .*whole number from 0 to 7 .*, found 8"):
        SliceSampler(batch_size=7, positive=8, positive_weights="area", patch_size=(8, 8))
    with pytest.raises(ValueError, match="positive_weights: .* uniform, area, found 'size'"):
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
