"""Classes and ranking of KiTS21 and KiTS23."""

import math

import numpy as np
import pytest

from kitsseg.scoring.compare import rank_runs
from kitsseg.scoring.dice import count_labels, hec_dice
from kitsseg.scoring.surface import TOLERANCES_MM, surface_scores


def dice(prediction, truth, **options):
    return hec_dice(count_labels(prediction, truth, n_labels=4), **options)


def test_dice_of_the_hierarchical_classes():
    # kidney_and_mass: truth 4, prediction 5, common 4 -> 8/9. mass: voxels 2, 3, 4 in both.
    # tumor: truth 1, prediction 2, common 1 -> 2/3
    found = dice([0, 1, 2, 2, 3, 1], [0, 1, 2, 3, 3, 0])
    assert found == pytest.approx({"kidney_and_mass": 8 / 9, "mass": 1.0, "tumor": 2 / 3}, abs=1e-12)


def test_background_belongs_to_no_hierarchical_class():
    # kidney_and_mass: truth 3, prediction 1, common 1. mass: 2, 1 and 1. tumor: truth 1, none found
    found = dice([0, 0, 0, 0, 0, 3], [0, 0, 0, 1, 2, 3])
    assert found == pytest.approx({"kidney_and_mass": 2 / 4, "mass": 2 / 3, "tumor": 0.0}, abs=1e-12)


def test_empty_masks_of_the_hierarchical_classes():
    assert dice([0, 1], [0, 1]) == {"kidney_and_mass": 1.0, "mass": 1.0, "tumor": 1.0}
    found = dice([0, 1], [0, 1], empty="nan")
    assert found["kidney_and_mass"] == 1.0
    assert math.isnan(found["mass"])
    assert dice([0, 1], [3, 1])["mass"] == 0.0


def test_runs_are_ranked_by_their_mean_rank_and_then_by_tumor_dice():
    # Dice: .92 .90 .88 -> b 1, a 2, c 3; surface Dice: .86 .85 .80 -> c 1, a 2, b 3; all means 2: tumor Dice decides
    entries = {"a": (0.90, 0.85, 0.5), "b": (0.92, 0.80, 0.4), "c": (0.88, 0.86, 0.6)}
    assert rank_runs(entries) == [("c", 3, 1, 2.0), ("a", 2, 2, 2.0), ("b", 1, 3, 2.0)]


def test_equal_values_share_the_best_rank():
    entries = {"a": (0.9, 0.8, 0.1), "b": (0.9, 0.7, 0.1), "c": (0.5, 0.7, 0.1)}
    assert rank_runs(entries) == [("a", 1, 1, 1.0), ("b", 1, 2, 1.5), ("c", 3, 2, 2.5)]


def test_surface_scores_use_the_tolerance_of_their_class():
    """A box with a tumor in it; kidney moved by 1 mm: within 1.033 mm; tumor moved by 1.1 mm: within 1.150 only."""
    truth = np.zeros((8, 16, 16), np.uint8)
    truth[2:6, 4:12, 4:12] = 1
    moved = np.roll(truth, 1, axis=1)
    found = surface_scores(moved, truth, (3, 1, 1))
    assert found["kidney_and_mass_surface_dice"] == 1.0
    assert found["kidney_and_mass_hd95_mm"] == pytest.approx(1.0)
    assert (found["tumor_surface_dice"], found["tumor_hd95_mm"]) == (1.0, None)  # both empty
    step = (3.0, 1.1, 1.1)
    assert surface_scores(2 * moved, 2 * truth, step)["tumor_surface_dice"] == 1.0
    assert surface_scores(moved, truth, step)["kidney_and_mass_surface_dice"] < 1.0
    assert TOLERANCES_MM["kidney_and_mass"] < 1.1 < TOLERANCES_MM["tumor"]
    assert set(surface_scores(moved, truth, (3, 1, 1), ("tumor",))) == {"tumor_surface_dice", "tumor_hd95_mm"}
