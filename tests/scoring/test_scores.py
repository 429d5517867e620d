"""Scores of label arrays, by hand and against the KiTS19 rules as set algebra."""

import math
import tracemalloc

import numpy as np
import pytest

from kitsseg.scoring import dice as scores
from kitsseg.scoring.dice import count_labels, count_slices, score_case, summarize_scores

MM = (3.0, 0.5, 0.5)  # 0.75 mm3: 0.00075 ml a voxel


def official_kitsscores(prediction, truth):
    """The KiTS19 rules written as set algebra, with whole-volume temporaries: the oracle."""
    if prediction.ndim == 4:
        prediction = np.argmax(prediction, axis=-1)
    prediction = np.round(prediction).astype(np.uint8)
    values = []
    for label in (0, 1):
        one, other = prediction > label, truth > label
        values.append(2 * np.logical_and(one, other).sum() / (one.sum() + other.sum()))
    return values


def random_case(seed, shape=(5, 7, 6)):
    rng = np.random.default_rng(seed)
    return rng.integers(3, size=shape, dtype=np.uint8), rng.integers(3, size=shape, dtype=np.uint8)


def test_hand_computed_scores():
    found = score_case([0, 1, 2, 2, 0, 0], [0, 1, 1, 2, 2, 0], MM)
    # TK: truth 4, prediction 3, common 3 -> 6/7. TU: truth 2, prediction 2, common 1 -> 2/4.
    # Label 1: truth 2, prediction 1, common 1 -> 2/3, precision 1/1, recall 1/2.
    expected = {
        "tk_dice": 6 / 7,
        "tu_dice": 0.5,
        "composite": (6 / 7 + 0.5) / 2,
        "kidney_label_dice": 2 / 3,
        "kidney_precision": 1.0,
        "kidney_recall": 0.5,
        "tumor_precision": 0.5,
        "tumor_recall": 0.5,
        "truth_kidney_ml": 2 * 0.00075,
        "predicted_kidney_ml": 1 * 0.00075,
        "truth_tumor_ml": 2 * 0.00075,
        "predicted_tumor_ml": 2 * 0.00075,
    }
    assert found.pop("empty") == []
    assert found == pytest.approx(expected, abs=1e-12)
    assert found["composite"] == pytest.approx(0.678571, abs=5e-7)


def test_two_empty_masks_score_one_or_nan():
    nothing = np.zeros((2, 3, 3), np.uint8)
    found = score_case(nothing, nothing, MM)
    assert [found[name] for name in scores.SCORES] == [1.0] * len(scores.SCORES)
    assert found["empty"] == ["truth_kidney", "predicted_kidney", "truth_tumor", "predicted_tumor"]
    as_starter_code = score_case(nothing, nothing, MM, empty="nan")
    assert all(math.isnan(as_starter_code[name]) for name in scores.SCORES)
    with pytest.raises(ValueError, match="zero"):
        score_case(nothing, nothing, MM, empty="zero")


@pytest.mark.parametrize("empty", ["one", "nan"])
def test_exactly_one_empty_is_zero(empty):
    truth = np.array([[[0, 1, 2]]])
    found = score_case(np.zeros_like(truth), truth, MM, empty)
    assert [found[name] for name in scores.SCORES] == [0.0] * len(scores.SCORES)
    assert found["empty"] == ["predicted_kidney", "predicted_tumor"]
    swapped = score_case(truth, np.zeros_like(truth), MM, empty)
    assert [swapped[name] for name in scores.SCORES] == [0.0] * len(scores.SCORES)


def test_tumor_predicted_where_there_is_none():
    found = score_case([1, 1, 2, 0], [1, 1, 1, 0], MM)
    assert (found["tk_dice"], found["tu_dice"]) == (1.0, 0.0)
    assert (found["tumor_precision"], found["tumor_recall"]) == (0.0, 0.0)
    assert found["empty"] == ["truth_tumor"]


def test_softmax_input_is_arg_maxed_over_the_last_axis():
    labels, truth = random_case(0)
    one_hot = np.eye(3)[labels]
    softmax = 0.6 * one_hot + 0.4 / 3
    assert score_case(softmax, truth, MM) == score_case(labels, truth, MM)
    with pytest.raises(ValueError, match="shape"):  # classes first is not that layout
        score_case(np.moveaxis(softmax, -1, 0), truth, MM)


def test_shape_mismatch_raises():
    with pytest.raises(ValueError, match=r"\(2, 3, 4\).*\(2, 4, 3\)"):
        score_case(np.zeros((2, 3, 4)), np.zeros((2, 4, 3)), MM)


def test_floats_round_half_to_even():
    # 0.5 -> 0, 1.5 -> 2, 1.4 -> 1, 0.51 -> 1, 2.5 -> 2
    counts = count_labels(np.array([0.5, 1.5, 1.4, 0.51, 2.5]), np.array([0, 2, 1, 1, 2]))
    assert counts.tolist() == [[1, 0, 0], [0, 2, 0], [0, 0, 2]]


@pytest.mark.parametrize("wrong", [-1, 3, 256, np.nan, np.inf])
def test_other_labels_raise(wrong):
    good = np.zeros((2, 2, 2))
    bad = good.copy()
    bad[1, 0, 1] = wrong
    with pytest.raises(ValueError, match=r"prediction: labels must be 0\.\.2"):
        score_case(bad, good, MM)
    with pytest.raises(ValueError, match=r"truth: labels must be 0\.\.2"):
        score_case(good, bad, MM)


@pytest.mark.parametrize("seed", range(5))
def test_scores_agree_with_set_algebra(seed):
    prediction, truth = random_case(seed)
    found = score_case(prediction, truth, MM)
    assert [found["tk_dice"], found["tu_dice"]] == pytest.approx(
        official_kitsscores(prediction, truth), abs=1e-12
    )
    # exchanging truth and prediction exchanges precision and recall; Dice is their harmonic mean
    swapped = score_case(truth, prediction, MM)
    assert found["kidney_precision"] == swapped["kidney_recall"]
    precision, recall = found["tumor_precision"], found["tumor_recall"]
    assert found["tu_dice"] == pytest.approx(2 * precision * recall / (precision + recall), abs=1e-12)
    for view in (np.s_[::-1], np.s_[:, :, ::-1], np.s_[:, ::2]):  # views, in any memory order
        counts = count_labels(prediction[view].transpose(2, 0, 1), truth[view].transpose(2, 0, 1))
        assert counts.sum() == truth[view].size
        assert counts[2, 1] == np.sum((truth[view] == 2) & (prediction[view] == 1))


def test_the_composite_is_the_mean_of_tk_and_tu():
    rows = [score_case(*random_case(seed), MM) for seed in range(7)]
    summary = summarize_scores(rows)
    by_hand = sum(row["composite"] for row in rows) / 7
    identity = summary["composite_identity"]
    assert identity["mean_of_composites"] == pytest.approx(by_hand, abs=1e-12)
    assert identity["mean_of_mean_tk_and_mean_tu"] == pytest.approx(by_hand, abs=1e-12)
    assert abs(identity["difference"]) < 1e-12


def test_tables_of_slices_add_up():
    prediction, truth = random_case(4)
    tables = count_slices(prediction, truth)
    assert tables.shape == (5, 3, 3)
    np.testing.assert_array_equal(tables.sum(axis=0), count_labels(prediction, truth))
    for k in range(5):
        np.testing.assert_array_equal(tables[k], count_labels(prediction[k], truth[k]))


@pytest.mark.parametrize("shape", [(6,), (4, 6)])
def test_an_array_of_fewer_than_three_axes_is_one_slice(shape):
    prediction, truth = random_case(5, shape)
    (table,) = count_slices(prediction, truth)
    assert table.tolist() == [
        [int(np.sum((truth == true) & (prediction == found))) for found in range(3)] for true in range(3)
    ]


def test_cysts_count_as_the_kidney_that_kits19_calls_them():
    rng = np.random.default_rng(7)
    prediction, truth = rng.integers(4, size=(2, 3, 5, 6), dtype=np.uint8)
    found = scores.cysts_as_kidney(count_slices(prediction, truth, n_labels=4))
    as_kidney = [np.where(labels == 3, 1, labels) for labels in (prediction, truth)]
    np.testing.assert_array_equal(found, count_slices(*as_kidney))


def row_with(composite):
    return dict.fromkeys(scores.SCORES, composite) | {"empty": []}


def test_summary_by_hand():
    rows = [row_with(value) for value in (0.2, 0.4, 0.9)]
    rows[2]["empty"] = ["truth_tumor"]
    summary = summarize_scores(rows)
    # mean 0.5; deviations -0.3, -0.1, 0.4: squares 0.09 + 0.01 + 0.16 = 0.26, / 2 = 0.13
    found = summary["scores"]["tu_dice"]
    interval = found.pop("interval_95")
    assert found == pytest.approx({"mean": 0.5, "sd": math.sqrt(0.13), "median": 0.4})
    assert (summary["n_cases"], summary["empty_cases"]) == (3, 1)
    # the lowest mean, three times 0.2, has probability 1/27 = 3.7 % > 2.5 %; so has the highest, of 0.9
    assert interval == summary["composite_interval_95"] == pytest.approx([0.2, 0.9])
    assert summary["resamples"] == 10_000
    again = summarize_scores(rows)
    assert again["composite_interval_95"] == interval  # the seed is fixed


def test_bootstrap_interval_is_near_the_normal_one():
    values = np.random.default_rng(3).uniform(size=200)
    low, high = summarize_scores([row_with(value) for value in values])["composite_interval_95"]
    half = 1.96 * values.std() / math.sqrt(200)
    assert [low, high] == pytest.approx([values.mean() - half, values.mean() + half], abs=0.1 * half)


@pytest.mark.parametrize("at_once", [1, 500, 2_003, 10**6])
def test_resamples_are_the_same_however_many_are_drawn_at_once(monkeypatch, at_once):
    columns = np.random.default_rng(0).uniform(size=(3, 37))
    drawn = np.random.default_rng(0).integers(37, size=(10_000, 37))  # all at once, as the seed defines them
    expected = [np.percentile(column[drawn].mean(axis=1), [2.5, 97.5]) for column in columns]
    monkeypatch.setattr(scores, "DRAWN_AT_ONCE", at_once)
    np.testing.assert_array_equal(scores.bootstrap_intervals(list(columns)), expected)


def test_intervals_of_many_cases_take_little_memory():
    values = np.random.default_rng(0).uniform(size=3_000)
    tracemalloc.start()
    scores.bootstrap_intervals([values, values])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 32 * 2**20  # the draws of all resamples alone are 229 MiB


def test_two_cases_have_a_standard_deviation():
    found = summarize_scores([row_with(0.2), row_with(0.6)])["scores"]["tk_dice"]
    assert found["sd"] == pytest.approx(math.sqrt(0.08))  # 0.2² + 0.2², over n - 1 = 1


def test_summary_of_one_case_and_of_none():
    summary = summarize_scores([row_with(0.3)])
    assert summary["scores"]["composite"] == {
        "mean": 0.3,
        "sd": None,
        "median": 0.3,
        "interval_95": [0.3, 0.3],
    }
    assert summary["composite_interval_95"] == pytest.approx([0.3, 0.3])
    with pytest.raises(ValueError, match="at least one case"):
        summarize_scores([])


def test_a_nan_is_not_dropped_from_the_mean():
    summary = summarize_scores([row_with(0.5), row_with(float("nan"))])
    assert math.isnan(summary["scores"]["tu_dice"]["mean"])


def test_truth_against_itself_is_one_everywhere():
    for seed in range(3):
        _, truth = random_case(seed)
        found = score_case(truth, truth, MM)
        assert [found[name] for name in scores.SCORES] == [1.0] * len(scores.SCORES)


def test_a_case_of_100_slices_takes_the_memory_of_a_few_slices():
    truth = np.zeros((100, 512, 512), np.uint8)
    truth[20:70, 200:300, 100:200] = 1
    truth[40:60, 250:290, 150:190] = 2
    prediction = np.roll(truth, 3, axis=1)
    found = score_case(prediction, truth, MM)
    # every column shifted by 3 rows of 100: 97 of 100 stay
    assert found["tk_dice"] == pytest.approx(0.97)
    tracemalloc.start()
    score_case(prediction, truth, MM)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 512 * 512  # a few slices
