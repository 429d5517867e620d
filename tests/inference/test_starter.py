"""The network in the package finds kidneys right after the installation, and says what it is."""

import re
import subprocess
import sys

import numpy as np
import pytest
from support.cases import make_case

from kitsseg import cli
from kitsseg.data import read_image, read_labels
from kitsseg.errors import InputError
from kitsseg.inference.ensemble import ensemble_of
from kitsseg.records.starter import STARTER_NOTE, network_path


def test_the_starter_finds_kidneys_in_a_real_ct_it_was_not_made_for(real_data, tmp_path, capsys):
    """A plain CT; the reference outlines the kidneys alone."""
    ct = real_data / "real_ct" / "abdomen_ct.nii.gz"
    cli.main(["predict", "starter", str(ct), "--out", str(tmp_path / "out")])
    assert " ".join(STARTER_NOTE.split()) in " ".join(capsys.readouterr().out.split())
    found = read_labels(tmp_path / "out" / "abdomen_ct.nii.gz").array > 0
    truth = read_labels(real_data / "real_ct" / "abdomen_kidneys.nii.gz").array > 0
    assert 2 * np.sum(found & truth) / (found.sum() + truth.sum()) > 0.6


def test_a_label_map_lies_on_the_grid_of_its_scan_and_tensorflow_is_not_imported(tmp_path):
    make_case(tmp_path / "case_00000", shape=(3, 64, 72), spacing_mm=(3.0, 3.0, 3.0))
    script = (
        "import sys; from kitsseg.cli import main; main(sys.argv[1:]);"
        "assert not {'tensorflow', 'keras', 'jax'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "predict", "starter", "case_00000", "--out", "out"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "synthetic patients only" in done.stdout
    (written,) = (tmp_path / "out").glob("*.nii.gz")
    scan = read_image(tmp_path / "case_00000" / "imaging.nii.gz")
    np.testing.assert_array_equal(
        read_labels(written).grid.header.get_best_affine(), scan.grid.header.get_best_affine()
    )


def test_a_file_or_folder_called_starter_is_taken_before_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert network_path("starter").name == "starter.tflite"
    (tmp_path / "starter").mkdir()
    assert str(network_path("starter")) == "starter"
    (tmp_path / "elsewhere").mkdir()
    assert str(network_path("elsewhere")) == "elsewhere"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("startr", " Did you mean starter?"),
        ("Starter", " Did you mean starter?"),
        ("starter.tflite", " Did you mean starter?"),
        ("elsewhere/run", ""),
        ("net.onnx", ""),
    ],
)
def test_a_network_that_is_not_there_is_told_before_the_scans_are_searched(
    name, hint, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["predict", name, "scan.nii.gz", "--out", "out"]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert re.fullmatch(
        rf"kitsseg: {name}: .*network or starter.*nothing there\. Check [^.]*\.{re.escape(hint)}", line
    )
    with pytest.raises(InputError, match="found nothing there"):
        ensemble_of([name])
