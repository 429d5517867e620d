"""Settings in a run.json that somebody has changed: one line that names the record and the setting."""

import json

import pytest
from support.cases import read_json

from kitsseg.errors import InputError
from kitsseg.records.networks import finished_run


def changed_run(run, folder, group, values):
    """A copy of a run's record with other settings of a group, beside weights that nobody reads."""
    record = read_json(run / "run.json")
    record["settings"][group] = {**(record["settings"][group] or {}), **values}
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "model.keras").touch()
    return folder


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("preprocess.hu_std", 0),
        ("preprocess.hu_std", "76.9"),
        ("preprocess.spacing_mm", [None, 3, -3]),
        ("preprocess.spacing_mm", [None, 3]),
        ("preprocess.spacing_mm", [None, 1e-9, 3]),
        ("preprocess.spacing_mm", 3),
        ("preprocess.hu_window", [300, -100]),
        ("preprocess.slice_size", [0, 0]),
        ("inference.output", "foo"),
        ("inference.output", ["softmax"]),
        ("inference.multiple", 0),
        ("inference.multiple", None),
        ("inference.overlap", 2),
        ("inference.tile", [0, 0]),
        ("inference.tile", [32]),
        ("inference.mirror_axes", [9]),
        ("inference.mirror_axes", [1, 1]),
    ],
)
def test_a_setting_outside_its_range_is_named_with_its_record(trained, tmp_path, name, value):
    group, _, last = name.partition(".")
    run = changed_run(trained.run, tmp_path, group, {last: value})
    with pytest.raises(InputError) as error:
        finished_run(run)
    assert str(error.value).startswith(f"{tmp_path}/run.json: {name}: expected ")
    assert ", found " in str(error.value)
    assert "\n" not in str(error.value)


def test_settings_of_postprocessing_are_named_too(trained, tmp_path):
    values = {"kind": "ReassignSmall", "background_mm3": 100.0, "kidney_mm3": -1, "tumor_mm3": 200.0}
    run = changed_run(trained.run, tmp_path, "postprocess", values)
    with pytest.raises(
        InputError, match=r"run\.json: postprocess\.kidney_mm3: expected a number from 0 .*, found -1"
    ):
        finished_run(run)


def test_settings_that_do_not_go_together_name_the_record(trained, tmp_path):
    run = changed_run(trained.run, tmp_path, "preprocess", {"hu_mean": None})
    with pytest.raises(InputError, match=r"run\.json: PreprocessSpec: give hu_window, hu_mean and hu_std"):
        finished_run(run)
