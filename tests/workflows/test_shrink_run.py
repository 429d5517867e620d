"""A finished run made smaller: what is left behind is an ordinary run."""

from dataclasses import replace

import numpy as np
import pytest

from kitsseg import cli, recipes
from kitsseg.errors import InputError
from kitsseg.inference.cohort import predict_cases
from kitsseg.models.loading import read_network
from kitsseg.pruning.shrink import channel_scores, choose_channels, shrink_model
from kitsseg.records.networks import finished_run
from kitsseg.records.run import Shrunk, read_history, read_run
from kitsseg.training.options import TrainOptions
from kitsseg.workflows import shrink
from kitsseg.workflows.fine_tune import FromRun
from kitsseg.workflows.shrink import shrink_run

pytestmark = pytest.mark.usefixtures("eagerly")


@pytest.fixture(scope="module")
def shrunk(trained, tmp_path_factory):
    """Half of the channels of the micro run, fine-tuned for two epochs by the command itself."""
    out = tmp_path_factory.mktemp("shrunk") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipes, "get", {"unet2d:micro": trained.recipe}.__getitem__)
        patch.setattr("sys.stdout.isatty", lambda: False)
        options = ["--keep", "0.5", "--multiple", "1", "--epochs", "2"]
        assert cli.main(["shrink", str(trained.run), str(trained.cache), str(out), *options]) in (None, 0)
    return out


def test_the_new_run_is_finished_smaller_and_names_its_parent(shrunk, trained):
    network = finished_run(shrunk)
    record, weights = network.record, network.source
    before, after = read_network(trained.run / "model.keras"), read_network(weights)
    assert record.status == "finished"
    assert (shrunk / record.parent.run).samefile(trained.run)
    assert record.split == replace(read_run(trained.run).split, source=record.split.source)
    assert record.shrink == Shrunk(
        keep=0.5,
        by="magnitude",
        multiple=1,
        parameters_before=before.count_params(),
        parameters=after.count_params(),
    )
    # filters 4, 8 and 16 become 2, 4 and 8
    assert [after.get_layer(f"{name}_conv").filters for name in ("down0_1", "down1_2", "bottom_1")] == [
        2,
        4,
        8,
    ]
    assert [row["phase"] for row in read_history(shrunk)] == ["shrink"] * 2
    assert read_history(shrunk)[0]["learning_rate"] == pytest.approx(trained.recipe.phases[0].learning_rate)


def test_it_has_been_trained_on_and_predicts(shrunk, trained, tmp_path):
    model = read_network(trained.run / "model.keras")
    start = shrink_model(model, choose_channels(channel_scores(model), 0.5))
    end = read_network(shrunk / "model.keras")
    moved = [not np.array_equal(a, b) for a, b in zip(start.get_weights(), end.get_weights(), strict=True)]
    assert np.mean(moved) > 0.9
    assert len(predict_cases(shrunk, [trained.data / "case_00000"], tmp_path)) == 1


@pytest.mark.parametrize(("given", "seed"), [(None, 5), (3, 3)])
def test_random_channels_have_the_seed_of_the_options_or_of_the_run(
    trained, tmp_path, monkeypatch, given, seed
):
    assert read_run(trained.run).seed == 5
    asked = []

    def scores(model, by, seed):
        asked.append((by, seed))
        return channel_scores(model, by, seed)

    monkeypatch.setattr(shrink, "channel_scores", scores)
    origin = FromRun(trained.recipe, trained.run, trained.cache)
    out = shrink_run(
        origin, tmp_path / "run", 0.5, TrainOptions(epochs=1, seed=given), by="random", multiple=1
    )
    assert asked == [("random", seed)]
    record = read_run(out)
    assert (record.shrink.by, record.seed) == ("random", seed)
    assert read_network(out / "model.keras").get_layer("bottom_1_conv").filters == 8


@pytest.mark.slow
def test_a_shrunk_run_can_be_shrunk_again_and_resumed(shrunk, trained, tmp_path):
    origin = FromRun(trained.recipe, shrunk, trained.cache)

    def again(out, keep=0.5, **options):
        return shrink_run(origin, out, keep, TrainOptions(epochs=2, **options), multiple=2)

    class Stop(Exception):
        pass

    def stop(description, done, total):
        if done > total * 0.6:
            raise Stop

    out = tmp_path / "again"
    with pytest.raises(Stop):
        again(out, progress=stop)
    with pytest.raises(InputError, match="another shrink .*given"):
        again(out, keep=0.75, resume=True)
    again(out, resume=True)
    assert read_network(out / "model.keras").get_layer("bottom_1_conv").filters == 4
    whole = again(tmp_path / "whole")
    for a, b in zip(
        read_network(out / "model.keras").get_weights(), read_network(whole / "model.keras").get_weights()
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"keep": 0.5, "epochs": 0}, "epochs: expected at least 1, found 0"),
        ({"keep": 1.5}, "--keep: .* found 1.5"),
        ({"keep": 1.0}, r"no channel .*removed \(keeping 1 in multiples of 8\)"),
        ({}, r"no channel .*removed \(.*all weights 0\)"),
    ],
)
def test_a_choice_that_makes_no_sense_is_refused(trained, tmp_path, options, words):
    with pytest.raises(InputError, match=words):
        origin = FromRun(trained.recipe, trained.run, trained.cache)
        training = TrainOptions(epochs=options.get("epochs"))
        shrink_run(origin, tmp_path / "out", options.get("keep"), training)
    assert not (tmp_path / "out").exists()


def test_another_recipe_is_refused(trained, tmp_path):
    other = replace(trained.recipe, model={**trained.recipe.model, "start_filters": 8})
    with pytest.raises(InputError, match="other model settings.* unet2d:micro"):
        shrink_run(FromRun(other, trained.run, trained.cache), tmp_path / "out", 0.5, multiple=1)
