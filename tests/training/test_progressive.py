"""Progressive training: subsets, when it stops, what it keeps (enhanced attention U-Net §6, §9 line 7)."""

import csv
import math
from dataclasses import replace

import keras
import numpy as np
import pytest

from kitsseg import recipes
from kitsseg.data.splits import make_split
from kitsseg.inference.scan import Member, mean_scores, score_cached_cases
from kitsseg.recipe import InferenceSpec, Progressive
from kitsseg.records.run import read_history
from kitsseg.training import train
from kitsseg.training.monitor import Monitor
from kitsseg.training.progressive import best_round, draw_subset, read_rounds, rounds_finished, run_rounds

SCORES = [0.50, 0.60, 0.60, 0.59, 0.70]
CASES = tuple(f"case_{i:05d}" for i in range(9))


def progressive(**changes):
    values = {"rounds": 10, "subset": 0.5, "round_decay": 0.5, "min_delta": 0.001, "patience": 1}
    return Progressive(**values | changes)


class Rounds:
    """Training and scoring that only take notes; ``fail_at`` stops in the middle of a round."""

    def __init__(self, scores=SCORES, fail_at=None):
        self.scores, self.fail_at, self.trained, self.kept = scores, fail_at, [], []

    def train(self, number, subset):
        if self.fail_at == ("train", number):
            raise KeyboardInterrupt
        self.trained.append((number, subset))
        return {"loss": 1 / (1 + number)}

    def score(self, number):
        if self.fail_at == ("score", number):
            raise KeyboardInterrupt
        return {"tk": 0.9, "tu": 0.3, "composite": self.scores[number]}

    def keep(self, number):
        self.kept.append(number)
        if self.fail_at == ("keep", number):
            raise KeyboardInterrupt

    def run(self, folder, rule, seed=3):
        return run_rounds(rule, folder, CASES, seed, self.train, self.score, self.keep)


@pytest.mark.parametrize(("patience", "rounds"), [(1, 3), (2, 4)])
def test_enhanced_unet_stops_and_keeps(patience, rounds, tmp_path):
    """0.50, 0.60, 0.60, 0.59, 0.70: patience 1 stops after the third round, 2 after the fourth; the second is kept."""
    fake = Rounds()
    rows = fake.run(tmp_path, progressive(patience=patience))
    assert [number for number, _ in fake.trained] == list(range(rounds))
    assert fake.kept == [0, 1]
    assert [row["composite"] for row in rows] == SCORES[:rounds]
    assert [row["kept"] for row in rows] == [1, 1, 0, 0][:rounds]
    assert read_rounds(tmp_path) == rows
    with (tmp_path / "rounds.csv").open(newline="") as file:
        assert next(csv.reader(file)) == ["round", "subset", "loss", "tk", "tu", "composite", "kept"]


def test_the_recipe_s_patience_is_1_and_the_practical_one_s_2():
    assert recipes.get("enhanced_unet").phases[0].progressive == progressive()
    assert recipes.get("enhanced_unet:practical").phases[0].progressive == progressive(patience=2)


def test_never_more_rounds_than_stated(tmp_path):
    rows = Rounds([0.1, 0.2, 0.3, 0.4]).run(tmp_path, progressive(rounds=3))
    assert [row["round"] for row in rows] == [0, 1, 2]
    assert not rounds_finished([], progressive(rounds=1))
    assert rounds_finished([0.1], progressive(rounds=1))


def test_a_rise_of_min_delta_or_less_is_none():
    """And counted from the last kept score: 0.500, 0.5008, 0.5016 rises by 0.0016 in two steps."""
    assert best_round([], 0.001) is None
    assert best_round([0.0], 0.001) == 0
    assert best_round([0.5, 0.5005], 0.001) == 0
    assert best_round([0.5, 0.502], 0.001) == 1
    assert best_round([0.500, 0.5008, 0.5016], 0.001) == 2
    assert rounds_finished([0.500, 0.5008], progressive())
    assert not rounds_finished([0.500, 0.5008, 0.5016], progressive(patience=2))


def test_enhanced_unet_same_seed_same_subsets():
    subsets = [draw_subset(CASES, 0.5, 3, number) for number in range(8)]
    assert subsets == [draw_subset(CASES, 0.5, 3, number) for number in range(8)]
    assert len(set(subsets)) > 1 and subsets != [draw_subset(CASES, 0.5, 4, number) for number in range(8)]
    for subset in subsets:
        assert len(set(subset)) == len(subset) == 5  # 0.5 * 9 = 4.5, rounded up
        assert set(subset) <= set(CASES) and list(subset) == sorted(subset)
    assert set().union(*subsets) == set(CASES)


@pytest.mark.parametrize(
    ("share", "n", "expected"), [(0.5, 168, 84), (0.8, 15, 12), (0.1, 3, 1), (1.0, 7, 7)]
)
def test_the_share_is_rounded_up(share, n, expected):
    assert len(draw_subset(range(n), share, 0, 0)) == expected


def test_every_case_is_drawn_equally_often():
    """1000 draws of 5 from 9: 555.6 each, three standard deviations are 3 * sqrt(1000 * 5/9 * 4/9) = 47."""
    counts = np.bincount([case for i in range(1000) for case in draw_subset(range(9), 0.5, 11, i)])
    assert np.abs(counts - 1000 * 5 / 9).max() < 3 * math.sqrt(1000 * 5 / 9 * 4 / 9)


@pytest.mark.parametrize("stage", ["train", "score", "keep"])
def test_rounds_go_on_where_they_were_interrupted(stage, tmp_path):
    """Rows that are written are never trained again; the interrupted round is, on the same subset."""
    whole = Rounds()
    expected = whole.run(tmp_path / ".", progressive(patience=2))
    text = (tmp_path / "rounds.csv").read_bytes()
    folder = tmp_path / "again"
    folder.mkdir()
    with pytest.raises(KeyboardInterrupt):
        Rounds(fail_at=(stage, 1)).run(folder, progressive(patience=2))
    assert [row["round"] for row in read_rounds(folder)] == [0]
    rest = Rounds()
    assert rest.run(folder, progressive(patience=2)) == expected
    assert rest.trained == whole.trained[1:]
    assert rest.kept == [1]
    assert (folder / "rounds.csv").read_bytes() == text
    assert Rounds(fail_at=("train", 4)).run(folder, progressive(patience=2)) == expected  # nothing is left


class Spy(dict):
    """The cases of a cache, and which of them were asked for."""

    def __init__(self, cases):
        super().__init__(cases)
        self.read = set()

    def __getitem__(self, name):
        self.read.add(name)
        return super().__getitem__(name)


@pytest.mark.slow
def test_enhanced_unet_in_real_training(cached, micro_recipe, tmp_path, monkeypatch):
    """Each round starts from the best weights so far, not the last. The best are the result; no test case is read."""
    phase = replace(
        micro_recipe.phases[0],
        epochs=1,
        steps_per_epoch=2,
        learning_rate=0.01,
        schedule=None,
        progressive=progressive(patience=2),
    )
    split = make_split(CASES)
    assert split.test
    for (
        name
    ) in split.test:  # no array of a test case may be read; names and HU counts may be, to compare patients
        (cached[name].folder / "image.npy").unlink()
        (cached[name].folder / "labels.npy").unlink()
    starts, ends, spies = [], [], []

    def spied_cache(*arguments):
        spies.append(Spy(train_open(*arguments)))
        return spies[-1]

    def spied_start(*arguments):
        model = train_compiled(*arguments)
        starts.append((model.get_weights(), int(model.optimizer.iterations)))
        return model

    def fake_scores(monitor, name, epoch, weights):
        assert (monitor.names, name, epoch) == (split.validation, f"{phase.name}-{len(ends)}", phase.epochs)
        ends.append(weights)
        return {"tk": 1.0, "tu": 0.0, "composite": SCORES[len(ends) - 1]}

    train_open, train_compiled = train.open_cache, train.compiled_network
    monkeypatch.setattr(train, "open_cache", spied_cache)
    monkeypatch.setattr(train, "compiled_network", spied_start)
    monkeypatch.setattr(Monitor, "round_scores", fake_scores)
    recipe = replace(micro_recipe, phases=(phase,))
    run = train.train_recipe(recipe, tmp_path / "cache", split, tmp_path / "run")

    assert len(starts) == len(ends) == 4
    same = [[all(map(np.array_equal, start, end)) for end in ends] for start, _ in [*starts, (final(run), 0)]]
    assert [row.index(True) if True in row else None for row in same] == [None, 0, 1, 1, 1]
    assert {iterations for _, iterations in starts} == {0}  # a new optimizer for each
    assert set(split.validation) <= spies[0].read
    history = read_history(run)
    assert [row["phase"] for row in history] == [f"{phase.name}-{number}" for number in range(4)]
    np.testing.assert_allclose([row["learning_rate"] for row in history], [0.01, 0.005, 0.0025, 0.00125])
    assert [row["kept"] for row in read_rounds(run)] == [1, 1, 0, 0]


def final(run):
    return keras.models.load_model(run / "model.keras", compile=False).get_weights()


def probabilities(labels):
    return np.eye(3, dtype=np.float32)[labels]


def by_hu(images, tumor_from=230):
    """Labels from HU (``make_case``: kidney 100 to 220, tumor from 240); images are (HU - 101) / 76.9."""
    hu = np.asarray(images)[..., 0] * 76.9 + 101
    return probabilities((hu > 80).astype(int) + (hu > tumor_from))


def test_scores_of_cached_cases_by_hand(cached, spec):
    """Whole slices, several cases: the mean over them of the TK Dice, the TU Dice and their mean."""
    inference = InferenceSpec(tile=None)
    cases = [cached[name] for name in CASES[:3]]
    assert all(case.tumor_area.any() for case in cases)

    def score(predict):
        return mean_scores(score_cached_cases(cases, Member(predict, spec, inference)))

    perfect = score(by_hu)
    assert perfect == {"tk": 1.0, "tu": 1.0, "composite": 1.0}
    # tumor called kidney: TK does not notice, TU is 0
    no_tumor = score(lambda x: by_hu(x, 9999))
    assert no_tumor == {"tk": 1.0, "tu": 0.0, "composite": 0.5}
    # everything kidney: TK Dice = 2 F / (N + F) of F foreground voxels in N
    everything = score(lambda x: probabilities(np.ones(x.shape[:3], int)))
    shares = [
        (case.kidney_area.sum() + case.tumor_area.sum()) / math.prod(case.geometry.shape) for case in cases
    ]
    tk = np.mean([2 * share / (1 + share) for share in shares])
    assert everything == {"tk": pytest.approx(tk), "tu": 0.0, "composite": pytest.approx(tk / 2)}
