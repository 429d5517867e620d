"""Early warnings: labels without kidneys, epochs without a positive slice, a loss that is no number; the time left."""

import re
import shutil
import time
from dataclasses import replace
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from support.cases import make_case, read_json
from support.records import run_record

from kitsseg.data.cache.build import preprocess_cases
from kitsseg.data.cache.cases import cache_folder, open_cache
from kitsseg.data.sampling.batches import BatchForm, Draws
from kitsseg.data.sampling.slices import SliceBatches
from kitsseg.data.splits import make_split
from kitsseg.errors import InputError
from kitsseg.recipe import Augmentation, SliceSampler
from kitsseg.records.run import WholeCases, read_history
from kitsseg.training.monitor import Monitor, WatchedBatches, check_training_labels
from kitsseg.training.options import TrainOptions
from kitsseg.training.state import Training
from kitsseg.training.train import train_recipe

# preprocess warns of label maps without kidney, which are what these tests are about
pytestmark = pytest.mark.filterwarnings("ignore:.*only background:UserWarning")
NAMES = [f"case_{i:05d}" for i in range(5)]


def cases_of(tmp_path, spec, empty, tumor=True):
    """A cache of five cases; those named in ``empty`` hold background only."""
    for i, name in enumerate(NAMES):
        positive = (0, 0) if name in empty else (2, 6)
        make_case(tmp_path / "data" / name, seed=i, positive=positive, tumor=tumor and name not in empty)
    preprocess_cases(tmp_path / "data", tmp_path / "cache", spec)
    return open_cache(tmp_path / "cache", spec)


def split_of_cases():
    return replace(
        make_split(NAMES), train=tuple(NAMES[:3]), validation=tuple(NAMES[3:4]), test=tuple(NAMES[4:])
    )


def test_background_only_is_refused_before_anything_is_written(micro_recipe, spec, tmp_path):
    cases, split = cases_of(tmp_path, spec, NAMES), split_of_cases()
    with pytest.raises(InputError, match="all 3 training cases .*background; expected 1 for kidney"):
        check_training_labels(cases, split)
    with pytest.raises(InputError, match="are background.*kitsseg verify"):
        train_recipe(micro_recipe, tmp_path / "cache", split, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_is_missing_is_said(spec, tmp_path):
    cases = cases_of(tmp_path, spec, NAMES[3:], tumor=False)
    training, validation = check_training_labels(cases, split_of_cases())
    assert re.match(r"none of the 3 training cases .*tumor \(label 2\)", training)
    assert re.search(r"all validation cases .*background", validation)


def test_an_empty_training_case_is_named_with_what_to_do(micro_recipe, spec, tmp_path):
    """A recipe that draws slices with kidney from every case refuses an empty case; other recipes only name it."""
    cases, split = cases_of(tmp_path, spec, NAMES[1:2]), split_of_cases()
    [told] = check_training_labels(cases, split)
    assert re.match(rf"1 of 3 training cases .*neither kidney nor tumor: {NAMES[1]}\.$", told)
    message = f"{NAMES[1]}: 1 of 3 training cases .*neither kidney nor tumor .{NAMES[1]}.*--split"
    with pytest.raises(InputError, match=message):
        check_training_labels(cases, split, positive=True)
    assert all(phase.sampler.positive for phase in micro_recipe.phases)
    with pytest.raises(InputError, match=message):
        train_recipe(micro_recipe, tmp_path / "cache", split, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_several_empty_training_cases_are_counted_and_three_are_named(number, spec, tmp_path):
    cases = cases_of(tmp_path, spec, NAMES[:number])
    split = replace(split_of_cases(), train=tuple(NAMES), validation=(), test=())
    named = ", ".join(NAMES[: min(number, 3)]) + (" and others" if number > 3 else "")
    text = f"{number} of 5 training cases .*neither kidney nor tumor"
    [told] = check_training_labels(cases, split)
    assert re.match(rf"{text}: {named}\.$", told)
    with pytest.raises(InputError, match=rf"{text} \({named}\), and this recipe draws"):
        check_training_labels(cases, split, positive=True)


@pytest.mark.parametrize("how", ["--split", "out of the cache"])
def test_the_advice_about_an_empty_case_is_right(micro_recipe, spec, tmp_path, how):
    cases_of(tmp_path, spec, NAMES[1:2])
    split = split_of_cases()
    if how == "--split":
        split = replace(split, train=(NAMES[0], NAMES[2]))
    else:
        shutil.move(cache_folder(tmp_path / "cache", spec) / NAMES[1], tmp_path / NAMES[1])
        split = replace(split, train=tuple(name for name in split.train if name != NAMES[1]))
    run = train_recipe(micro_recipe, tmp_path / "cache", split, tmp_path / "run", TrainOptions(epochs=1))
    assert (run / "model.keras").is_file()


def test_an_empty_case_that_no_training_uses_is_not_mentioned(spec, tmp_path):
    cases = cases_of(tmp_path, spec, NAMES[4:])
    assert check_training_labels(cases, split_of_cases(), positive=True) == []


def test_nothing_is_said_of_good_labels(cached):
    assert check_training_labels(cached, make_split(list(cached))) == []
    # a case that is not in the cache is found by the sampler, which names it
    assert check_training_labels({}, make_split(list(cached))) == []


class Batches:
    """Batches whose labels are all background but those of some numbers."""

    form = BatchForm(batch_size=2, image_shape=(4, 4, 1), label_shape=(4, 4))

    def __init__(self, positive):
        self.positive = positive

    def batch(self, index):
        labels = np.zeros((2, 4, 4), np.int32)
        labels[1, 3, 3] = index in self.positive
        return np.zeros((2, 4, 4, 1), np.float32), labels


def test_watched_batches_are_the_same_and_remember():
    batches = WatchedBatches(Batches({3}))
    assert batches.form == BatchForm(batch_size=2, image_shape=(4, 4, 1), label_shape=(4, 4), shard=None)
    for index in np.arange(5):  # tf.data draws the fourth of the second epoch ahead
        assert batches.batch(index)[1].sum() == (index == 3)
    assert not batches.any_positive(0, 3)
    assert batches.any_positive(3, 5)
    assert batches.found == {}


def test_an_epoch_without_kidney_is_told(trained, eager, tmp_path):
    """Two crops of 4 x 4 pixels an epoch, anywhere in slices of which a tenth is kidney; most epochs see none."""
    sampler = SliceSampler(batch_size=1, unit="slice", patch_size=(4, 4))
    phase = replace(
        trained.recipe.phases[0], sampler=sampler, augmentation=Augmentation(), epochs=6, steps_per_epoch=2
    )
    recipe, said = replace(trained.recipe, phases=(phase,)), []
    split = trained.split
    cases = open_cache(trained.cache, recipe.preprocess)
    batches = SliceBatches(
        cases, split, "train", sampler, phase.augmentation, recipe.preprocess, Draws(seed=3)
    )
    empty = [
        epoch
        for epoch in range(1, 7)
        if not any(batches.batch(i)[1].any() for i in (2 * epoch - 2, 2 * epoch - 1))
    ]
    assert 0 < len(empty) < 6
    train_recipe(
        recipe,
        trained.cache,
        split,
        tmp_path / "run",
        TrainOptions(seed=3, validate_cases_every=0, say=said.append),
    )
    for text, epoch in zip(said, empty, strict=True):
        assert re.match(rf"warning: no kidney .*drawn in epoch {epoch} of phase train: ", text)


def test_without_a_listener_warnings_are_warnings(tmp_path):
    training = Training(recipe=SimpleNamespace(phases=()), run=tmp_path, record=run_record())
    with pytest.warns(UserWarning, match="^so it is$"):
        Monitor(training, ()).warn("so it is")
    said = []
    Monitor(replace(training, options=TrainOptions(say=said.append)), ()).warn("so it is")
    assert said == ["warning: so it is"]


def test_a_loss_that_is_no_number_names_epoch_and_step_and_keeps_what_was(
    trained, eager, tmp_path, monkeypatch
):
    """After step 3 the weights become NaN, so that the second step of the second epoch has a loss of NaN."""
    run, recipe = tmp_path / "run", trained.recipe
    recipe = replace(recipe, phases=(replace(recipe.phases[0], epochs=2, steps_per_epoch=2),))

    class Spoil:
        def __init__(self, model):
            self.model, self.steps = model, 0

        def __call__(self, *_):
            self.steps += 1
            if self.steps == 3:  # after step 3, so that step 4 has the first loss of NaN
                self.model.weights[0].assign(np.full(self.model.weights[0].shape, np.nan))

    from kitsseg.training import train

    spoil, compiled = None, train.compiled_network

    def compiled_and_seen(*arguments):
        nonlocal spoil
        spoil = Spoil(compiled(*arguments))
        return spoil.model

    monkeypatch.setattr(train, "compiled_network", compiled_and_seen)
    told = r"loss is nan .*epoch 2 of phase train.* step 2 of 2\. .*kept: .*-00001\.keras"
    with pytest.raises(InputError, match=told):
        train_recipe(
            recipe,
            trained.cache,
            trained.split,
            run,
            TrainOptions(seed=5, progress=lambda *call: spoil(*call)),
        )
    assert [row["epoch"] for row in read_history(run)] == [1]
    assert read_json(run / "run.json")["status"] == "training"
    kept = keras.models.load_model(run / "checkpoint" / "train-00001.keras", compile=False)
    assert all(np.isfinite(weight).all() for weight in kept.get_weights())
    # and what was kept goes on
    monkeypatch.setattr(train, "compiled_network", compiled)
    train_recipe(recipe, trained.cache, trained.split, run, TrainOptions(seed=5, resume=True))
    assert [row["epoch"] for row in read_history(run)] == [1, 2]


def monitor_of(tmp_path, said, seconds, scored, progressive=None):
    """A Monitor of a run that took ``seconds``, of which scoring whole cases took ``scored``."""
    phase = SimpleNamespace(name="p", epochs=4, validate_cases_every=None, progressive=progressive)
    training = SimpleNamespace(
        run=tmp_path,
        cases={},
        history=[],
        begun=run_record(whole_case_validation=WholeCases(seconds=scored)),
        recipe=SimpleNamespace(phases=(phase,)),
        started=time.monotonic() - seconds,
        total_steps=100,
        options=TrainOptions(say=said.append),
    )
    return Monitor(training, ())


def finished(monitor):
    monitor.finish()
    return monitor.training.begun.whole_case_validation


def test_the_share_is_that_of_the_time_spent_training(tmp_path):
    """10 s of 210 s: 10 / 200 = 5 %. 30 s of 210 s: 30 / 180 = 16.7 %, more than a tenth."""
    said = []
    assert finished(monitor_of(tmp_path, said, 210, 10.0)) == WholeCases(seconds=10.0, share=0.05)
    assert said == ["whole validation cases took 10.0 s, 5.0% of the 200.0 s of training"]
    found = finished(monitor_of(tmp_path, said, 210, 30.0))
    assert found.share == pytest.approx(1 / 6, abs=1e-4)
    assert re.match(r"warning: whole validation cases.* 30\.0 s, 16\.7% of the 180\.0 s of training", said[1])
    assert said[1].endswith("Give a larger --validate-cases-every.")


def test_the_time_left_by_the_pace_of_this_process(tmp_path):
    """30 steps in 60 s, 60 of 100 left: 2 min; a resumed run counts from where it went on."""
    monitor = monitor_of(tmp_path, [], 0, 0.0)
    assert monitor._left(40) == ""
    monitor.pace = time.monotonic() - 60, 10
    assert monitor._left(40) == "; about 0:02:00 left"
    assert monitor._left(10) == ""
    assert monitor._left(100) == ""
