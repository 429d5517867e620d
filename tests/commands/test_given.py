"""--set: settings by name, of the right type, recorded as the user's."""

import json
import re
from dataclasses import replace

import pytest
from support.records import run_record

from kitsseg import recipes
from kitsseg.commands.given import spoken_settings, with_given
from kitsseg.errors import InputError
from kitsseg.recipe import GIVEN, RandomAppearance, given_settings, settings, value_of


@pytest.mark.parametrize(
    ("recipe", "text", "expected"),
    [
        ("unet2d", "phases.train.epochs=3", 3),
        ("unet2d", "phases.train.learning_rate=3e-4", 3e-4),
        ("unet2d", "phases.train.learning_rate=1", 1.0),
        ("unet2d", "phases.train.schedule=none", None),
        ("unet2d", "phases.train.sampler.patch_size=64,96", (64, 96)),
        ("unet2d", "phases.train.sampler.positive_weights=uniform", "uniform"),
        ("unet2d", "phases.train.validate_cases_every=none", None),
        ("unet2d", "model.n_pools=4", 4),
        ("unet2d", "model.use_bias=off", False),
        ("unet2d", "model.input_shape=none,none,1", (None, None, 1)),
        ("unet2d", "inference.tile=none", None),
        ("unet2d", "inference.mirror_axes=1", (1,)),
        ("unet2d", "preprocess.spacing_mm=none,1.5,2", (None, 1.5, 2.0)),
        ("unet2d", "preprocess.crop_to_body=on", True),
        ("deeplab3d", "postprocess=none", None),
        ("deeplab3d", "postprocess.tumor_mm3=50", 50.0),
        ("squeeze_unet", "model.weights=none", None),
        ("squeeze_unet", "model.weights=/some/where/squeezenet1_1.pth", "/some/where/squeezenet1_1.pth"),
        ("squeeze_unet", "preprocess.windows=(150,30),(400,40)", ((150.0, 30.0), (400.0, 40.0))),
        ("squeeze_unet:practical", "phases.frozen.rate_factors=(encoder_,0.5),", (("encoder_", 0.5),)),
        ("wp_unet", "model.filters=8,8,16,16,16", (8, 8, 16, 16, 16)),
    ],
)
def test_a_value_becomes_what_its_setting_holds(recipe, text, expected):
    name = text.partition("=")[0]
    found = with_given(recipes.get(recipe), [text])
    value = value_of(found, name)
    assert (value, type(value)) == (expected, type(expected))
    assert found.evidence[name] == GIVEN
    others = dict(settings(recipes.get(recipe)))
    assert {key for key, after in settings(found) if others.get(key, after) != after} <= {name}


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("phases.train.epochs", ["expected NAME=VALUE", "phases.train.epochs=80"]),
        ("=3", ["expected NAME=VALUE"]),
        ("epochs=3", ["--set epochs", "no such setting", "kitsseg recipes show unet2d"]),
        ("phases.train.epoch=3", ["Did you mean phases.train.epochs?"]),
        ("phases.trian.epochs=3", ["Did you mean phases.train.epochs?"]),
        ("Phases.Train.Epochs=3", ["Did you mean phases.train.epochs?"]),
        ("phases.train.learning-rate=3", ["Did you mean phases.train.learning_rate?"]),
        ("phases.train.name=x", ["no such setting"]),
        ("phases.train.epochs=3.5", ["a whole number", "80", "'3.5'"]),
        ("phases.train.epochs=many", ["a whole number", "'many'"]),
        ("phases.train.epochs=true", ["a whole number"]),
        ("phases.train.epochs=0", ["--set phases.train.epochs: ", "a whole number from 1", "found 0"]),
        ("phases.train.learning_rate=-1", ["learning_rate: expected a number above 0", "-1"]),
        ("phases.train.learning_rate=1e999", ["a number"]),
        ("phases.train.learning_rate=nan", ["a number", "'nan'"]),
        ("phases.train.sampler.patch_size=64", ["2 values", "224,224"]),
        ("phases.train.sampler.positive=9", ["sampler.positive: ", "a whole number from 0 to 7", "found 9"]),
        ("phases.train.sampler.unit=volume", ["case, slice", "'volume'"]),
        ("phases.train.schedule=fast", ["phases.train.schedule is", "set to none", "'fast'"]),
        ("model.n_pools=two", ["a whole number"]),
        ("model.use_bias=3", ["on or off"]),
        ("preprocess.crop_to_body=1", ["on or off", "True"]),
        ("preprocess.hu_window=none", ["give hu_window"]),
        ("preprocess.hu_window=300,-100", ["hu_window: expected 2 values", "the lower one first", "300.0"]),
        ("preprocess.hu_std=0", ["--set preprocess.hu_std: expected a number from 0.001", "0.0"]),
        ("preprocess.spacing_mm=3,-1,1", ["spacing_mm: ", "3 values", "a number from 0.01", "-1.0"]),
        (
            "phases.train.augmentation.appearance=on",
            [
                "augmentation.appearance is",
                "set to none;",
                "'on'",
                "Its values are",
                "appearance.probability and",
            ],
        ),
        ("phases.train.augmentation.appearance.strength=2", ["appearance.probability: expected a value too"]),
        (
            "phases.train.augmentation.appearance.probability=5",
            ["--set phases.train.augmentation.appearance.probability: ", "a number from 0 to 1", "found 5"],
        ),
        ("phases.train.augmentation.appearance.probability=often", ["is a number", "'often'"]),
        (
            "phases.train.augmentation.appearance.strengths=1",
            ["Did you mean phases.train.augmentation.appearance.st"],
        ),
        (
            "phases.train.progressive.rounds=3",
            ["no such setting"],
        ),  # a group of which half a dozen values are needed
        ("fixed.dropout=0.2", ["--set fixed.dropout: the code fixes it"]),
        ("__class__=3", ["no such setting"]),
        ("evidence=3", ["no such setting"]),
    ],
)
def test_what_does_not_fit_is_refused_by_name(text, parts):
    with pytest.raises(InputError) as error:
        with_given(recipes.get("unet2d"), [text])
    for part in parts:
        assert part in str(error.value)
    assert "\n" not in str(error.value)


NONSENSE = {
    "unet2d": (
        "phases.train.augmentation.scale_probability=-1",
        "phases.train.augmentation.scale_probability=7",
        "phases.train.augmentation.flip_probability=5",
        "phases.train.augmentation.scale_range=2,1",
        "phases.train.augmentation.scale_range=-5,-5",
        "phases.train.augmentation.scale_range=0,0",
        "phases.train.augmentation.scale_range=1e-9,1e-9",
        "phases.train.augmentation.scale_range=1e9,1e9",
        "phases.train.schedule.factor=-1",
        "phases.train.schedule.factor=2",
        "phases.train.schedule.patience=-1",
        "phases.train.schedule.min_delta=-1",
        "phases.train.schedule.min_learning_rate=-1",
        "phases.train.learning_rate=0",
        "phases.train.learning_rate=1e300",
        "phases.train.sampler.batch_size=99999999999",
        "phases.train.sampler.positive=-1",
        "phases.train.sampler.patch_size=0,0",
        "phases.train.sampler.patch_size=-5,-5",
        "phases.train.steps_from=foo",
        "inference.overlap=1",
        "inference.overlap=1.5",
        "inference.overlap=-0.5",
        "inference.margin=-1",
        "inference.margin=4",
        "inference.margin=99999",
        "inference.mirror_axes=-1",
        "inference.mirror_axes=2",
        "inference.mirror_axes=7",
        "inference.mirror_axes=1,1",
        "inference.multiple=0",
        "inference.multiple=-16",
        "inference.tile=0",
        "inference.tile=-5,-5",
        "inference.tile=32,32,32",
        "inference.output=foo",
        "preprocess.spacing_mm=none,1e9,3",
        "preprocess.spacing_mm=none,1e-9,3",
        "preprocess.in_plane_factor=1e-9",
        "preprocess.in_plane_factor=1e300",
        "preprocess.hu_std=1e-300",
        "preprocess.hu_mean=1e300",
        "preprocess.clip_hu=5,5",
        "preprocess.cut_margin=-99",
        "preprocess.longest_scan=0",
        "preprocess.longest_scan=-1",
        "preprocess.slice_size=0,0",
        "split=",
        "metrics=foo",
        "metrics=mean_iou,foo",
    ),
    "deeplab3d": (
        "phases.scratch.sampler.cases_per_batch=0",
        "phases.scratch.sampler.cases_per_batch=-1",
        "phases.finetune.sampler.patch_size=44,44,0",
        "phases.scratch.schedule.stop_below=-1",
        "postprocess.background_mm3=-1",
        "postprocess.kidney_mm3=-1",
        "postprocess.tumor_mm3=-1",
        "preprocess.cut_margin=none",
        "inference.margin=24",
        "inference.mirror_axes=3",
        "inference.tile=none",
        "inference.tile=48,48",
    ),
    "unet3d": ("phases.train.sampler.cases_per_batch=0", "phases.warmup.sampler.mode=foo"),
    "squeeze_unet": (
        "preprocess.channel_std=1,1",
        "preprocess.channel_std=1,1,0",
        "preprocess.channel_mean=1,1,1,1",
        "preprocess.windows=(0,30),(200,60)",
        "phases.train.schedule.rise=0",
        "phases.train.schedule.start_divisor=0",
        "phases.train.schedule.momentum=1,0.9",
    ),
    "enhanced_unet": (
        "phases.progressive.progressive.rounds=0",
        "phases.progressive.progressive.subset=1.5",
        "phases.progressive.progressive.round_decay=0",
        "postprocess.min_ratio=2",
        "postprocess.max_distance_mm=-1",
        "postprocess.n_main=0",
    ),
    "wp_unet": (
        "phases.prune.pruning.sparsity=1",
        "phases.prune.pruning.initial_sparsity=0.9",
        "phases.prune.pruning.until=0",
        "phases.prune.pruning.frequency=0",
        "phases.prune.pruning.block=1",
        "phases.prune.pruning.scope=foo",
    ),
}


@pytest.mark.parametrize(
    ("recipe", "text"), [(name, text) for name, texts in NONSENSE.items() for text in texts]
)
def test_what_cannot_be_meant_is_refused_by_its_name(recipe, text):
    name = text.partition("=")[0]
    with pytest.raises(
        InputError, match=rf"(^--set {re.escape(name)}\b.*found)|{name} is .*; found"
    ) as error:
        with_given(recipes.get(recipe), [text])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("recipe", "text"),
    [
        ("unet2d", "phases.train.augmentation.scale_range=1,1"),
        ("unet2d", "phases.train.augmentation.scale_range=0.5,2"),
        ("unet2d", "phases.train.augmentation.flip_probability=1"),
        ("unet2d", "phases.train.schedule.factor=1"),
        ("unet2d", "phases.train.schedule.patience=0"),
        ("unet2d", "phases.train.learning_rate=1e-8"),
        ("unet2d", "phases.train.learning_rate=10"),
        ("unet2d", "phases.train.sampler.batch_size=4096"),
        ("unet2d", "phases.train.sampler.patch_size=512,512"),
        ("unet2d", "inference.overlap=0"),
        ("unet2d", "inference.overlap=0.9"),
        ("unet2d", "inference.mirror_axes=0"),
        ("unet2d", "inference.mirror_axes=()"),
        ("unet2d", "preprocess.spacing_mm=10,0.1,0.1"),
        ("unet2d", "preprocess.in_plane_factor=2"),
        ("unet2d", "preprocess.hu_window=-1024,3071"),
        ("unet2d", "preprocess.hu_std=1"),
        ("unet2d", "preprocess.clip_hu=-200,300"),
        ("deeplab3d", "preprocess.longest_scan=none"),
        ("deeplab3d", "inference.margin=none"),
        ("deeplab3d", "inference.mirror_axes=0,1,2"),
        ("deeplab3d", "postprocess.tumor_mm3=0"),
        ("deeplab3d", "metrics=pixel_accuracy,mean_iou,dice_multi"),
        ("squeeze_unet", "metrics=none"),
        ("wp_unet", "phases.prune.pruning.until=1"),
    ],
)
def test_what_is_unusual_is_taken(recipe, text):
    assert with_given(recipes.get(recipe), [text])


def test_a_recorded_setting_outside_its_range_names_the_record():
    record = {
        "recipe": "unet2d:tiny",
        "given": {"phases.train.augmentation.flip_probability": 5},
        "settings": {"phases": [{"name": "train", "steps_per_epoch": 2}]},
    }
    with pytest.raises(
        InputError, match=r"^RUN/run\.json: phases\.train\.augmentation\.flip_prob.*, found 5\.$"
    ):
        recipes.of_record(run_record(**record), "RUN/run.json")
    record |= {"given": {}, "settings": {"phases": [{"name": "train", "steps_per_epoch": 0}]}}
    with pytest.raises(
        InputError, match=r"^RUN/run\.json: phases\.train\.steps_per_epoch: expected .*, found 0\.$"
    ):
        recipes.of_record(run_record(**record), "RUN/run.json")


def test_twice_the_same_and_both_ways_are_refused():
    recipe = recipes.get("unet2d")
    with pytest.raises(InputError, match=r"model\.n_pools is given twice"):
        with_given(recipe, ["model.n_pools=4", "model.n_pools=3"])
    with pytest.raises(InputError, match=r"--steps 2 gives it already"):
        with_given(recipe, ["phases.train.steps_per_epoch=4"], steps=2)
    with pytest.raises(InputError, match=r"settings of preprocess only"):
        with_given(recipe, ["model.n_pools=4"], "preprocess")


def test_a_group_that_is_left_out_has_no_settings():
    both = ["phases.train.schedule.patience=3", "phases.train.schedule=none"]
    for texts in (both, both[::-1]):
        with pytest.raises(
            InputError, match=r"schedule\.patience: --set phases\.train\.schedule leaves it out"
        ):
            with_given(recipes.get("unet2d"), texts)


def test_values_that_only_fit_together_are_given_together():
    both = ["phases.train.sampler.positive=0", "phases.train.sampler.unit=slice"]
    with pytest.raises(InputError, match=r"sampler\.positive: .*whole number from 0 to 0 \(unit \"slice\""):
        with_given(recipes.get("unet2d"), both[1:])
    found = with_given(recipes.get("unet2d"), both)
    assert (found.phases[0].sampler.unit, found.phases[0].sampler.positive) == ("slice", 0)


def test_steps_are_those_of_every_phase():
    found = with_given(recipes.get("deeplab3d"), [], steps=3)
    assert [phase.steps_per_epoch for phase in found.phases] == [3, 3]
    assert found.evidence["phases.finetune.steps_per_epoch"] == GIVEN


def test_what_is_recorded_gives_the_same_recipe_again():
    texts = ["model.n_pools=4", "preprocess.spacing_mm=none,1.5,1.5", "postprocess=none"]
    recipe = with_given(recipes.get("deeplab3d:focal-2"), texts[1:], steps=2)
    record = {
        "recipe": recipe.name,
        "given": {name: value_of(recipe, name) for name in spoken_settings(recipe)},
        "settings": recipe.as_dict(),
    }
    found = recipes.of_record(run_record(**json.loads(json.dumps(record))))
    assert replace(found, phases=recipe.phases) == recipe
    for phase, expected in zip(found.phases, recipe.phases, strict=True):
        # however many cases are at hand then, the steps are those of the run
        assert phase == replace(expected, steps_from=None)
    again = [f"{name}={value}" for name, value in spoken_settings(recipe).items()]
    assert with_given(recipes.get("deeplab3d:focal-2"), again) == recipe


def test_of_a_pruned_run_the_settings_are_those_of_the_phase_it_repeats():
    record = {
        "recipe": "unet2d:tiny",
        "given": {"phases.prune.steps_per_epoch": 2, "model.n_pools": 3},
        "settings": {"phases": [{"name": "prune", "steps_per_epoch": 2}]},
    }
    recipe = recipes.of_record(run_record(**record))
    assert recipe.phases[0].steps_per_epoch == 2
    assert recipe.model["n_pools"] == 3


def test_another_batch_size_keeps_the_share_of_slices_with_kidney():
    paper = recipes.get("unet2d")
    found = with_given(paper, [], batch_size=2 * paper.phases[0].sampler.batch_size)
    for before, phase in zip(paper.phases, found.phases, strict=True):
        assert phase.sampler.batch_size == 2 * before.sampler.batch_size
        assert phase.sampler.positive == 2 * before.sampler.positive
    assert with_given(paper, [], batch_size=1).phases[0].sampler.positive == 1
    name = f"phases.{paper.phases[0].name}.sampler.batch_size"
    assert set(spoken_settings(found)) >= {name}
    with pytest.raises(InputError, match="--batch-size 3 gives it already"):
        with_given(paper, [f"{name}=4"], batch_size=3)
    with pytest.raises(InputError, match="--batch-size 3: deeplab3d draws three patches .*cases_per_batch"):
        with_given(recipes.get("deeplab3d"), [], batch_size=3)


def test_a_random_appearance_can_be_given_to_a_recipe_without_one():
    recipe = recipes.get("unet2d:tiny")
    name = "phases.train.augmentation.appearance"
    found = with_given(recipe, [f"{name}.probability=0.5"])
    assert found.phases[0].augmentation.appearance == RandomAppearance(probability=0.5, strength=1.0)
    assert given_settings(found) == {f"{name}.probability": 0.5}
    assert recipe.phases[0].augmentation.appearance is None
    both = with_given(recipe, [f"{name}.probability=0.5", f"{name}.strength=2"])
    assert both.phases[0].augmentation.appearance == RandomAppearance(probability=0.5, strength=2.0)
    # a run that is read again has the same recipe
    assert recipes.given(recipe, given_settings(both)) == both
    with pytest.raises(InputError, match="leaves it out. Give one of them"):
        with_given(recipe, [f"{name}=none", f"{name}.probability=0.5"])


@pytest.mark.parametrize(
    ("recipe", "phase", "why"),
    [("deeplab3d:tiny", "scratch", "3D network"), ("squeeze_unet:tiny", "train", "8-bit")],
)
def test_a_random_appearance_of_what_is_no_slice_in_hu_is_refused_before_anything_is_read(recipe, phase, why):
    with pytest.raises(
        InputError, match=rf"phases\.{phase}\.augmentation\.appearance: expected none .*{why}"
    ):
        with_given(recipes.get(recipe), [f"phases.{phase}.augmentation.appearance.probability=0.5"])
