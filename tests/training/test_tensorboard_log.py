"""Event files for TensorBoard: read back record by record, without TensorBoard."""

import io
import sys

import numpy as np
import pytest
from PIL import Image

from kitsseg.errors import InputError
from kitsseg.training.tensorboard import PICTURES, TensorBoardLog, case_slice, check_folder

tf = pytest.importorskip("tensorflow")
BLUE, ORANGE = (0x56, 0xB4, 0xE9), (0xD5, 0x5E, 0x00)  # true and predicted kidney


def points_of(folder):
    """(tag, epoch) -> (plugin, value) of all event files of a folder."""
    points = {}
    for path in sorted(folder.glob("events.*")):
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                plugin = value.metadata.plugin_data.plugin_name
                points[value.tag, event.step] = plugin, tf.make_ndarray(value.tensor)
    return points


def truth_of(case):
    return np.stack([case.labels(k) for k in range(case.geometry.shape[0])])


def test_scalars_have_the_names_of_the_history(tmp_path):
    history = [
        {"phase": "train", "epoch": 1, "loss": 1.5, "val_loss": 1.25, "learning_rate": 0.5},
        {"phase": "prune", "epoch": 1, "loss": 0.5, "val_loss": 0.75, "learning_rate": 0.25, "sparsity": 0.5},
    ]
    log = TensorBoardLog(tmp_path / "new" / "folder", history)
    cases = [{"phase": "prune", "epoch": 2, "case": "case_00007", "tk_dice": 0.875, "tu_dice": 0.125}]
    log.epoch(3, {"phase": "prune", "epoch": 2, "loss": 0.25, "val_case_tk_dice": 0.875}, cases)
    log.close()
    points = points_of(tmp_path / "new" / "folder")
    assert {plugin for plugin, _ in points.values()} == {"scalars"}
    # the second phase's first epoch is the second of all
    assert {key: float(value) for key, (_, value) in points.items()} == {
        ("loss", 1): 1.5,
        ("val_loss", 1): 1.25,
        ("learning_rate", 1): 0.5,
        ("loss", 2): 0.5,
        ("val_loss", 2): 0.75,
        ("learning_rate", 2): 0.25,
        ("sparsity", 2): 0.5,
        ("loss", 3): 0.25,
        ("val_case_tk_dice", 3): 0.875,
        ("whole_case_tk_dice/case_00007", 3): 0.875,
        ("whole_case_tu_dice/case_00007", 3): 0.125,
    }


def test_a_few_cases_are_drawn_once(cached, tmp_path):
    log = TensorBoardLog(tmp_path)
    for case in cached.values():
        log.look(case, truth_of(case))
    log.epoch(1, {"loss": 1.0})
    log.epoch(2, {"loss": 1.0})
    log.close()
    images = {key: value for key, (plugin, value) in points_of(tmp_path).items() if plugin == "images"}
    assert sorted(images) == [(f"whole_case/case_{i:05d}", 1) for i in range(PICTURES)]
    width, height, png = images["whole_case/case_00000", 1]
    # slices of 40 x 48 pixels of 0.8 mm: the longer side becomes 512, the other 512 * 40 / 48 = 427
    assert (width, height) == (b"512", b"427")
    assert Image.open(io.BytesIO(png)).size == (512, 427)


def test_outlines_are_where_truth_and_prediction_end(cached):
    """Kidney in rows 10..24 and columns 8..19: the edges lie at 8 / 48 and 20 / 48 of the width."""
    case = cached["case_00000"]
    truth = truth_of(case)
    k = int(case.tumor_area.argmax())
    assert (truth[k] > 0).any(axis=0).nonzero()[0].tolist() == list(range(8, 20))
    moved = np.roll(truth, 4, axis=2)
    picture = np.asarray(case_slice(case, moved))
    row = round(12.5 / 40 * len(picture))  # above the tumor, in the middle of a pixel
    for color, first, last in ((BLUE, 8, 20), (ORANGE, 12, 24)):
        columns = (picture[row] == color).all(axis=-1).nonzero()[0]
        edges = [edge / 48 * 512 for edge in (first, last)]
        assert [columns.min(), columns.max()] == pytest.approx(edges, abs=2)
        assert all(min(abs(column - edge) for edge in edges) <= 2 for column in columns)
    # nothing predicted: no orange anywhere
    assert not (np.asarray(case_slice(case, np.zeros_like(truth))) == ORANGE).all(axis=-1).any()


def test_folders_that_cannot_be_written_to_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "new"):
        with pytest.raises(
            InputError, match=r"--tensorboard .*: expected a new folder .* found a file: .*/file"
        ):
            check_folder(folder)
    check_folder(tmp_path / "new" / "folder")
    assert not (tmp_path / "new").exists()


def test_it_needs_no_tensorboard(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    log = TensorBoardLog(tmp_path, [{"loss": 1.0}])
    log.close()
    assert float(points_of(tmp_path)["loss", 1][1]) == 1.0
