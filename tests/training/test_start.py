"""Starting from another run's weights: what is taken over, what is recorded, what is refused."""

import json
import shutil
from dataclasses import replace

import keras
import numpy as np
import pytest
from support.cases import read_json
from support.recipes import micro

from kitsseg.data.splits import make_split
from kitsseg.errors import InputError
from kitsseg.files.json_records import converted
from kitsseg.recipe import changed
from kitsseg.records.networks import finished_run
from kitsseg.records.run import RunRecord, seen_patients
from kitsseg.training.options import TrainOptions
from kitsseg.training.start import start_from_run
from kitsseg.training.train import train_recipe
from kitsseg.workflows.fine_tune import FromRun
from kitsseg.workflows.prune import prune_run

pytestmark = pytest.mark.usefixtures("eagerly")

TOO_LOW = 1e-60  # a learning rate that is 0 in float32, so that nothing is learned


def still(recipe, **changes):
    """The recipe with one epoch in which nothing is learned: the final weights are the weights at the start."""
    phase = replace(recipe.phases[0], epochs=1, learning_rate=TOO_LOW, schedule=None)
    return replace(recipe, phases=(phase,), **changes)


@pytest.fixture(scope="module")
def started(trained, tmp_path_factory):
    run = tmp_path_factory.mktemp("started") / "run"
    return train_recipe(
        still(trained.recipe),
        trained.cache,
        trained.split,
        run,
        TrainOptions(seed=77, start_from=trained.run),
    )


def trainable(run):
    model = keras.models.load_model(run / "model.keras", compile=False)
    return [np.asarray(variable) for variable in model.trainable_weights]


def test_the_first_phase_starts_from_the_weights_of_the_run(trained, started):
    for ours, theirs in zip(trainable(started), trainable(trained.run), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_averages_of_the_weights_start_there_too(trained, tmp_path):
    run = train_recipe(
        still(trained.recipe),
        trained.cache,
        trained.split,
        tmp_path / "run",
        TrainOptions(ema=0.5, start_from=trained.run),
    )
    for ours, theirs in zip(trainable(run), trainable(trained.run), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_run_and_model_card_name_the_run_and_whom_it_has_seen(trained, started):
    parent = read_json(started / "run.json")["parent"]
    seen = {part: sorted(getattr(trained.split, part)) for part in ("train", "validation")}
    n = len(trained.split.train) + len(trained.split.validation)
    assert (started / parent["run"]).resolve() == trained.run.resolve()
    assert parent["recipe"] == trained.recipe.name and parent["patients"] == seen
    card = (started / "model_card.md").read_text()
    assert parent["model_sha256"] in card and parent["run"] in card and f"{n} patients" in card


def test_patients_seen_are_handed_on_from_run_to_run(trained, started):
    other = make_split([f"other_{i}" for i in range(10)])
    record = read_json(started / "run.json")
    record["split"]["cases"] = {part: list(getattr(other, part)) for part in ("train", "validation", "test")}
    assert seen_patients(converted(record, RunRecord)) == {
        part: {*getattr(trained.split, part), *getattr(other, part)} for part in ("train", "validation")
    }


def test_a_pruned_run_knows_whom_the_start_of_its_run_has_seen(trained, started, tmp_path):
    shutil.copytree(started, tmp_path / "run")
    record = read_json(started / "run.json")
    record["parent"]["patients"]["train"].append("somebody_else")
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    origin = FromRun(trained.recipe, tmp_path / "run", trained.cache)
    out = prune_run(origin, tmp_path / "out", 0.5, TrainOptions(epochs=1), schedule="one-shot")
    assert seen_patients(finished_run(out).record)["train"] == {*trained.split.train, "somebody_else"}


def test_a_split_that_tests_on_patients_the_run_has_seen_is_refused(trained, tmp_path):
    first = trained.split.train[0]
    swapped = replace(
        trained.split, train=(*trained.split.train[1:], *trained.split.test), test=(first,), name="swapped"
    )
    with pytest.raises(InputError, match=rf"seen 1 of the test patients .*{first}.*--split .*split.json"):
        train_recipe(
            trained.recipe,
            trained.cache,
            swapped,
            tmp_path / "run",
            TrainOptions(start_from=trained.run, epochs=1),
        )
    chosen_by = replace(trained.split, validation=trained.split.test, test=trained.split.validation)
    with pytest.raises(InputError, match=rf"test patients .*{trained.split.validation[0]}"):
        start_from_run(trained.run, trained.recipe, chosen_by, tmp_path / "run")
    learned = replace(trained.split, train=trained.split.train[1:], validation=(first,))
    with pytest.raises(InputError, match=rf"validation patients .*{first}"):
        start_from_run(trained.run, trained.recipe, learned, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_another_network_is_refused_with_its_first_other_weight(trained, tmp_path):
    sizes, heads, deeper = (
        changed(trained.recipe, changes, dict.fromkeys(changes, "ours"))
        for changes in (
            {"model.start_filters": 6},
            {"model.n_classes": 2, "loss.activation": "sigmoid", "inference.output": "sigmoid"},
            {"model.n_pools": 1},
        )
    )
    for recipe, words in (
        (sizes, r"down0_1_conv/kernel \(3, 3, 1, 6\).*down0_1_conv/kernel \(3, 3, 1, 4\)"),
        (heads, r"logits/kernel \(1, 1, 4, 2\).*logits/kernel \(1, 1, 4, 3\)"),
        (deeper, r"bottom_1_conv/kernel \(3, 3, 4, 8\).*bottom_1_conv/kernel \(3, 3, 8, 16\)"),
    ):
        with pytest.raises(InputError, match=f"--from .*{words}"):
            start_from_run(trained.run, recipe, trained.split, tmp_path / "run")
    with pytest.raises(InputError, match="wp_unet:micro.*unet2d"):
        start_from_run(trained.run, micro("wp_unet"), trained.split, tmp_path / "run")


def test_an_unfinished_run_is_refused(trained, tmp_path):
    shutil.copytree(trained.run, tmp_path / "half")
    (tmp_path / "half" / "model.keras").unlink()
    with pytest.raises(InputError, match="model.keras: missing"):
        start_from_run(tmp_path / "half", trained.recipe, trained.split, tmp_path / "run")


def test_other_preprocessing_and_loss_are_said_once_each(trained, tmp_path):
    recipe = still(
        trained.recipe,
        loss={**trained.recipe.loss, "smooth": 0.5},
        preprocess=replace(trained.recipe.preprocess, hu_mean=100.0),
    )
    start = start_from_run(trained.run, recipe, trained.split, tmp_path / "run")
    first, second = start.warnings
    assert "preprocess" in first and "hu_mean 101.0, now 100.0" in first
    assert "loss" in second and "now 0.5" in second
    assert start_from_run(trained.run, trained.recipe, trained.split, tmp_path / "run").warnings == ()


def test_resuming_needs_the_same_start_and_its_command_names_it(trained, tmp_path):
    recipe, run = still(trained.recipe), tmp_path / "run"

    def stop(description, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_recipe(
            recipe,
            trained.cache,
            trained.split,
            run,
            TrainOptions(seed=3, progress=stop, start_from=trained.run),
        )
    with pytest.raises(InputError, match=rf"kitsseg train {recipe.name} CACHE .* --from .*run --resume"):
        finished_run(run)
    shutil.copytree(trained.run, tmp_path / "other")
    with pytest.raises(InputError, match="another parent"):
        train_recipe(
            recipe,
            trained.cache,
            trained.split,
            run,
            TrainOptions(seed=3, resume=True, start_from=tmp_path / "other"),
        )
    train_recipe(
        recipe, trained.cache, trained.split, run, TrainOptions(seed=3, resume=True, start_from=trained.run)
    )
    for ours, theirs in zip(trainable(run), trainable(trained.run), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", ["wp_unet", "squeeze_unet", "enhanced_unet"])
def test_every_2d_recipe_finds_its_own_network_again(name, trained, tmp_path):
    """Names and shapes of the weights are the same in a saved and in a new network."""
    recipe, run = micro(name), tmp_path / "run"
    shutil.copytree(trained.run, run)
    recipe.build_model(**recipe.model).save(run / "model.keras")
    record = read_json(run / "run.json")
    record |= {
        "settings": json.loads(json.dumps(recipe.as_dict())),
        "recipe": recipe.name,
        "model_sha256": None,
    }
    (run / "run.json").write_text(json.dumps(record))
    start = start_from_run(run, recipe, trained.split, tmp_path / "new")
    assert start.weights == run / "model.keras" and start.warnings == ()
