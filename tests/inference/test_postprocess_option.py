"""predict --postprocess: the labels before and after, and the paper's figures of the same."""

import shutil
from dataclasses import replace

import pytest
from support.cases import read_json

from kitsseg.cli import main
from kitsseg.data.formats.nifti import read_labels
from kitsseg.labels.postprocess import refine
from kitsseg.recipe import ReassignSmall
from kitsseg.records.run import create_run, read_run, update_run
from kitsseg.report.report import write_report

SMALL = ReassignSmall(background_mm3=50.0, kidney_mm3=5000.0, tumor_mm3=500.0)


@pytest.fixture(scope="module")
def refining(trained, tmp_path_factory):
    """A finished run with post-processing, whose paper gives figures before and after it."""
    recipe = replace(
        trained.recipe,
        postprocess=SMALL,
        reported={"after": 0.8},
        reported_unrefined={"before": 0.7},
        evidence={**trained.recipe.evidence, "model.n_pools": "given: by the user"},
    )
    where = {"cache": str(trained.cache), "phantom": False, "seconds": 0}
    run = create_run(tmp_path_factory.mktemp("refining") / "run", recipe, trained.split, 0, where)
    shutil.copy(trained.run / "model.keras", run / "model.keras")
    update_run(run, replace(read_run(run), status="finished"))
    return run


def test_off_leaves_the_labels_as_they_were_before(refining, trained, tmp_path):
    case = str(trained.data / "case_00000")
    for name, option in (("default", []), ("on", ["--postprocess", "on"]), ("off", ["--postprocess", "off"])):
        assert main(["predict", str(refining), case, "--out", str(tmp_path / name), *option]) == 0
    default, on, off = (
        read_labels(tmp_path / name / "prediction_00000.nii.gz") for name in ("default", "on", "off")
    )
    assert (default.array == on.array).all()
    assert (refine(off.array, off.grid.spacing_mm, SMALL) == on.array).all()
    records = [read_json(tmp_path / name / "predictions.json") for name in ("on", "off")]
    assert [record["reported"] for record in records] == [{"after": 0.8}, {"before": 0.7}]
    assert [record["postprocess"] is None for record in records] == [False, True]


def test_on_is_refused_where_the_recipe_has_none(trained, tmp_path, capsys):
    arguments = ["predict", str(trained.run), str(trained.data), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--postprocess", "on"]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "--postprocess on" in err
    assert not (tmp_path / "out").exists()


def test_report_and_card_name_what_the_user_gave(refining, tmp_path):
    assert read_run(refining).given == {"model.n_pools": 2}
    page = write_report(refining, tmp_path / "report.html").read_text()
    assert "given by the user" in page
    assert "model.n_pools = 2" in page
