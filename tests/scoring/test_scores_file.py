"""scores.csv and scores.json are read back only if they belong together."""

import csv
import json

import numpy as np
import pytest

from kitsseg.data.formats.nifti import write_image
from kitsseg.errors import InputError
from kitsseg.scoring.evaluate import evaluate_folders
from kitsseg.scoring.ladder import RUNGS
from kitsseg.scoring.scores_file import read_scores

WITHOUT_VALUE = ("skipped", "pooled_tk", "pooled_tu")


@pytest.fixture
def scores(tmp_path):
    """Two cases; half of the kidney is found in the second one."""
    kidney = np.zeros((3, 6, 6), np.uint8)
    kidney[1, 1:5, 1:5] = 1
    half = kidney.copy()
    half[1, 1:3] = 0
    for case, found in (("case_00000", kidney), ("case_00001", half)):
        write_image(tmp_path / "truth" / case / "segmentation.nii.gz", kidney, (3.0, 1.0, 1.0))
        write_image(tmp_path / "found" / f"{case}.nii.gz", found, (3.0, 1.0, 1.0))
    evaluate_folders(tmp_path / "found", tmp_path / "truth", tmp_path / "scores.csv")
    return tmp_path / "scores.csv"


def altered(scores, change):
    beside = scores.with_suffix(".json")
    summary = json.loads(beside.read_text())
    change(summary)
    beside.write_text(json.dumps(summary))


def test_both_files_give_the_cases_back(scores):
    rows, summary = read_scores(scores)
    assert [row["tk_dice"] for row in rows] == pytest.approx([1, 2 / 3])
    assert sorted(summary.cases) == ["case_00000", "case_00001"]
    # no tumor anywhere: a mean over nothing
    assert summary.beside_all_background.prediction["pooled_tu_dice"] is None


@pytest.mark.parametrize("which", ["prediction", "all_background"])
@pytest.mark.parametrize("key", RUNGS)
def test_a_definition_may_be_null_only_where_a_mean_over_nothing_is_possible(key, which, scores):
    altered(scores, lambda summary: summary["beside_all_background"][which].update({key: None}))
    if any(word in key for word in WITHOUT_VALUE):
        assert getattr(read_scores(scores)[1].beside_all_background, which)[key] is None
    else:
        with pytest.raises(InputError, match=rf"scores\.json: .*{which}\.{key}, found null"):
            read_scores(scores)


@pytest.mark.parametrize("key", RUNGS)
def test_no_definition_may_be_missing(key, scores):
    altered(scores, lambda summary: summary["beside_all_background"]["prediction"].pop(key))
    with pytest.raises(InputError, match=rf"scores\.json: .*prediction\.{key}, found nothing"):
        read_scores(scores)


@pytest.mark.parametrize(
    ("change", "same"), [(5e-10, True), (-5e-10, True), (1.2e-9, False), (-1.2e-9, False)]
)
def test_the_means_are_those_of_the_rows(change, same, scores):
    def moved(summary):
        summary["scores"]["tk_dice"]["mean"] += change

    altered(scores, moved)
    if same:
        assert len(read_scores(scores)[0]) == 2
    else:
        with pytest.raises(InputError, match=r"scores\.csv: .*tk_dice"):
            read_scores(scores)


def test_the_cases_of_both_files_are_the_same(scores):
    def renamed(summary):
        summary["cases"]["case_00002"] = summary["cases"].pop("case_00001")

    altered(scores, renamed)
    with pytest.raises(InputError, match=r"scores\.csv: has 2 cases, scores\.json"):
        read_scores(scores)


def test_a_table_without_rows_is_refused(scores):
    with scores.open(newline="") as file:
        head = next(csv.reader(file))
    scores.write_text(",".join(head) + "\n")
    altered(scores, lambda summary: summary.update(cases={}))
    with pytest.raises(InputError, match=r"scores\.csv"):
        read_scores(scores)
