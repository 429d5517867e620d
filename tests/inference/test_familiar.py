"""Which scans are unlike KiTS19's, and which networks have seen synthetic patients only."""

import shutil

import nibabel as nib
import numpy as np
import pytest
from support.cases import make_case, read_json

from kitsseg.data.formats.grid import grid_of
from kitsseg.files.json_records import write_record
from kitsseg.inference.cohort import predict_cohort
from kitsseg.inference.familiar import unlike_kits19
from kitsseg.recipe import PreprocessSpec
from kitsseg.records.run import read_run


def grid(shape, spacing_mm):
    header = nib.Nifti1Header()
    header.set_data_shape(shape)
    header.set_zooms(spacing_mm)
    affine = np.zeros((4, 4))
    affine[[2, 1, 0], [0, 1, 2]] = -np.array(spacing_mm)
    affine[3, 3] = 1
    header.set_sform(affine, code=1)
    return grid_of(header, "x")


WINDOW = {"hu_window": (-79.0, 304.0), "hu_mean": 101.0, "hu_std": 76.9}
AS_IT_IS, RESAMPLED = PreprocessSpec(**WINDOW), PreprocessSpec(spacing_mm=(3.0, 1.6, 1.6), **WINDOW)


@pytest.mark.parametrize(
    ("shape", "spacing_mm", "spec", "words"),
    [
        ((100, 512, 512), (3.0, 0.8, 0.8), AS_IT_IS, []),
        ((60, 512, 512), (8.0, 0.8, 0.8), RESAMPLED, ["slices are 8 mm apart"]),
        ((900, 512, 512), (0.3, 0.8, 0.8), AS_IT_IS, ["slices are 0.3 mm apart"]),
        ((900, 512, 512), (0.3, 0.8, 0.8), RESAMPLED, []),
        ((100, 200, 200), (3.0, 2.0, 2.0), RESAMPLED, ["pixels are 2 mm apart"]),
        ((20, 512, 512), (3.0, 0.8, 0.8), RESAMPLED, ["slices cover 60 mm"]),
        ((400, 512, 512), (3.0, 0.8, 0.8), RESAMPLED, ["slices cover 1200 mm"]),
        ((100, 100, 150), (3.0, 0.8, 0.8), RESAMPLED, ["pictures are 80 x 120 mm"]),
    ],
)
def test_what_no_case_of_kits19_is_like_is_said(shape, spacing_mm, spec, words):
    said = unlike_kits19(grid(shape, spacing_mm), [spec])
    assert len(said) == len(words)
    for text, word in zip(said, words, strict=True):
        assert word in text


def test_a_network_of_synthetic_patients_is_named_where_scans_are_real(trained, tmp_path):
    run = shutil.copytree(trained.run, tmp_path / "run")
    record = read_run(run)
    record.phantom = None
    write_record(run / "run.json", record)
    make_case(tmp_path / "case_1")
    assert not [
        t
        for t in predict_cohort(run, [tmp_path / "case_1"], tmp_path / "a").notes
        if "synthetic patients" in t
    ]
    record.phantom = True
    write_record(run / "run.json", record)
    outcome = predict_cohort(run, [tmp_path / "case_1"], tmp_path / "b")
    [note] = [text for text in outcome.notes if "synthetic patients" in text]
    assert str(run) in note
    assert "case_1" in note
    [entry] = read_json(tmp_path / "b" / "predictions.json")["cases"].values()
    assert entry["unlike"]
