"""kitsseg verify and kitsseg manifest on the command line; the manifest travels with the package."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import kitsseg
from kitsseg.cli import main
from kitsseg.commands.findings_table import fold_alike
from kitsseg.data.formats.nifti import write_image
from kitsseg.data.kits19.findings import Finding
from kitsseg.data.kits19.trusted_hashes import HASHES_FILE
from kitsseg.data.phantoms.synthesize import synthesize_cases

LABELS = "segmentation.nii.gz"


@pytest.fixture
def call(capsys):
    def run(*arguments):
        return main([str(argument) for argument in arguments]), *capsys.readouterr()

    return run


def test_verify_says_that_all_is_well(call, tmp_path):
    synthesize_cases(tmp_path / "data", 3, (20, 48, 48))
    code, out, err = call("verify", tmp_path / "data")
    assert (code, err) == (0, "")
    assert "a phantom" in out
    assert "and 2 more" in out
    assert "checked 3 cases, no errors, 0 warnings" in out


def test_verify_exits_with_1_and_a_table_of_what_is_wrong(call, real_data, tmp_path):
    for case in ("case_00023", "case_00061"):
        shutil.copytree(real_data / "kits19" / case, tmp_path / "data" / case)
    assert call("verify", tmp_path / "data", "--labels-only")[::2] == (0, "")
    path = tmp_path / "data" / "case_00061" / LABELS
    labels = np.array(nib.load(path).dataobj)
    labels[0, 0, :5] = 3
    write_image(path, labels, (5, 0.976562, 0.976562))
    code, out, err = call("verify", tmp_path / "data", "--labels-only")
    assert code == 1
    assert "case_00061" in out
    assert "case_00023" not in out
    assert "hash of the labels" in out
    assert err.count("\n") == 1
    assert "found 2 in 1 of them" in err
    assert call("verify", tmp_path / "data", "--labels-only", "--cases", "23")[0] == 0


def test_not_kits19_checks_a_folder_without_the_manifest(call, data):
    """The nine tiny cases are called as those of KiTS19: --not-kits19 says that they are not."""
    code, out, _ = call("verify", data, "--not-kits19")
    assert code == 0
    assert "no case of KiTS19" in out
    assert len(json.loads((data / HASHES_FILE).read_text())) == 9
    code, _, err = call("verify", data)
    assert code == 1
    assert "in 9 of them" in err


def test_bad_arguments_give_one_line(call, tmp_path):
    for arguments in ((tmp_path / "nothing",), (tmp_path, "--cases", "all"), (tmp_path, "--cases", "300")):
        code, out, err = call("verify", *arguments)
        assert (code, out, err.count("\n")) == (1, "", 1), arguments


def test_manifest_is_computed_and_written(call, real_data, tmp_path):
    folder = tmp_path / "labels"
    shutil.copytree(real_data / "kits19" / "case_00061", folder / "case_00061")
    code, out, _ = call("manifest", folder, "--out", tmp_path / "m.csv")
    assert code == 0
    assert "computed 1 of 300 cases: 0 differ" in out
    rows = list(csv.DictReader((tmp_path / "m.csv").read_text().splitlines()))
    # figures of the label map: 29 slices of 512 x 512, 26 with kidney, 13 with tumor
    row = rows[61]
    assert (len(rows), row["case"], row["slices"], row["kidney_slices"], row["tumor_slices"]) == (
        300, "case_00061", "29", "26", "13",
    )  # fmt: skip
    assert int(row["background_voxels"]) == 29 * 512 * 512 - int(row["kidney_voxels"]) - int(
        row["tumor_voxels"]
    )


def test_alike_warnings_fold_and_errors_never_do():
    def finding(level, number):
        return Finding(level, f"case_{number:05d}", "check", f"found {number}", "expected", "advice")

    findings = [finding("warning", 0), finding("error", 0), finding("warning", 1), finding("error", 1)]
    findings += [finding("warning", 2), finding("note", 3)]
    folded = fold_alike(findings)
    assert [f.level for f in folded] == ["error", "error", "warning", "warning", "note"]
    assert (folded[3].case, folded[3].found) == ("and 2 more", "to case_00002")
    assert folded[4] == finding("note", 3)


def test_what_a_wheel_is_made_of_holds_the_manifest(tmp_path):
    pytest.importorskip("setuptools")
    root = Path(kitsseg.__file__).parent.parent
    if not (root / "setup.cfg").is_file():
        pytest.skip("not a source tree")
    own = root / "kitsseg" / "data_manifest.csv"
    assert not own.is_symlink()  # a clone on Windows would hold the name of its target
    assert own.read_bytes() == (root / "data_manifest.csv").read_bytes()
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, tmp_path)
    ignore = shutil.ignore_patterns("__pycache__", "models", "recipes")
    shutil.copytree(root / "kitsseg", tmp_path / "kitsseg", symlinks=True, ignore=ignore)
    command = [sys.executable, "-c", "import setuptools; setuptools.setup()", "-q", "build_py", "-d", "out"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    built = tmp_path / "out" / "kitsseg"
    assert (built / "data_manifest.csv").read_bytes() == own.read_bytes()
    assert (built / "data" / "splits" / "mlperf42.json").is_file()
