"""What predictions.json says, when jobs write at once, and which label maps count as whole."""

import gzip
import json
import threading

import nibabel as nib
import numpy as np
import pytest
from support.cases import make_case, read_json

from kitsseg.data.formats.nifti import read_image, read_labels, write_image, write_labels
from kitsseg.errors import InputError
from kitsseg.files.checksums import crc32_of
from kitsseg.records.predictions import Predictions, size_of

HEADER = {
    "kitsseg": "1",
    "run": "/runs/a",
    "networks": [{"sha256": "00", "inference": {"tile": (224, 224)}}],
    "engine": None,
    "inference": {"tile": (224, 224)},
    "postprocess": None,
    "split": {"name": "80-10-10", "hash": "ab", "part": None},
}


def header(**changes):
    return json.loads(json.dumps(HEADER | changes))


@pytest.fixture
def out(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def entry_of(out, image, name="prediction_00000.nii.gz"):
    return {
        "file": name,
        "image": str(image),
        "image_bytes": size_of(image),
        "crc32": crc32_of(out / name),
        "phantom": False,
    }


@pytest.fixture
def written(out, tmp_path):
    """A scan, its label map and its entry."""
    make_case(tmp_path / "case_00000")
    image = tmp_path / "case_00000" / "imaging.nii.gz"
    labels = read_labels(tmp_path / "case_00000" / "segmentation.nii.gz").array
    write_labels(out / "prediction_00000.nii.gz", labels, read_image(image).grid)
    record = Predictions(out, header())
    record.add("case_00000", entry_of(out, image))
    return image, out / "prediction_00000.nii.gz"


def is_whole(out, image, **changes):
    return Predictions(out, header(**changes)).is_whole("case_00000", image)


def test_a_label_map_that_is_there_is_whole(out, written):
    image, _ = written
    assert is_whole(out, image)
    assert not Predictions(out, header()).is_whole("case_00001", image)


def test_a_damaged_or_missing_label_map_is_not_whole(out, written):
    image, file = written
    whole = file.read_bytes()
    for spoiled in (whole[: len(whole) // 2], whole[:-9] + bytes(9), b"", b"nonsense"):
        file.write_bytes(spoiled)
        assert not is_whole(out, image)
    file.unlink()
    assert not is_whole(out, image)


def test_a_label_map_that_was_edited_is_an_error(out, written):
    """It may be a correction by hand: it is neither taken for a prediction nor overwritten."""
    image, file = written
    labels = read_labels(file)
    labels.array[0, 0, 0] = 2
    write_labels(file, labels.array, labels.grid)
    with pytest.raises(
        InputError, match=r"prediction_00000.nii.gz: has changed since it was predicted\. Keep it"
    ):
        is_whole(out, image)


def test_a_scan_that_has_changed_is_predicted_again(out, written, tmp_path):
    image, _ = written
    raw = bytearray(gzip.decompress(image.read_bytes()))
    image.write_bytes(gzip.compress(bytes(raw), 1))  # the same scan, in another size
    assert not is_whole(out, image)


def test_a_scan_on_another_grid_of_the_same_size_is_predicted_again(out, tmp_path):
    """Uncompressed, so that the affine changes no size."""
    image = tmp_path / "scan.nii"
    array = np.random.default_rng(0).integers(-50, 50, (4, 8, 8)).astype(np.int16)
    write_image(image, array, (3.0, 0.8, 0.8))
    write_labels(out / "scan.nii.gz", np.zeros((4, 8, 8), np.uint8), read_image(image).grid)
    Predictions(out, header()).add("case_00000", entry_of(out, image, "scan.nii.gz"))
    assert is_whole(out, image)
    nifti = nib.load(image)
    moved = nifti.affine.copy()
    moved[0, 3] += 5
    nib.Nifti1Image(np.asarray(nifti.dataobj), moved, nifti.header).to_filename(tmp_path / "moved.nii")
    assert size_of(tmp_path / "moved.nii") == size_of(image)
    assert not is_whole(out, tmp_path / "moved.nii")


@pytest.mark.parametrize(
    "changes",
    [
        {"networks": [{"sha256": "01", "inference": {"tile": [224, 224]}}]},
        {"inference": {"tile": None}},
        {"postprocess": {"n_main": 2}},
        {"kitsseg": "2"},
        {"engine": "keras"},
    ],
    ids=str,
)
def test_predictions_made_in_another_way_are_an_error(out, written, changes):
    record = Predictions(out, header())
    record.made_by("tensorflow")
    record.add("case_00001", record.entries["case_00000"])
    with pytest.raises(
        InputError, match=rf"predictions.json: expected predictions of this run .*\({next(iter(changes))} "
    ):
        Predictions(out, header(**changes))
    # where the run lies, and what it was asked for, is no setting
    Predictions(out, header(run="/elsewhere", split={"name": "x", "hash": "y", "part": "test"}))


def test_another_engine_is_noticed_when_it_is_known(out, written):
    record = Predictions(out, header())
    record.made_by("tensorflow")
    record.add("case_00001", record.entries["case_00000"])
    later = Predictions(out, header())
    later.finish()
    assert read_json(out / "predictions.json")["engine"] == "tensorflow"
    later.made_by("tensorflow")
    with pytest.raises(InputError, match=r'\(engine "tensorflow", now "keras"\)'):
        later.made_by("keras")


def test_parts(out, written):
    """A folder with the test cases and then all others is of no single part."""
    split = HEADER["split"]
    (out / "predictions.json").unlink()
    Predictions(out, header(split=split | {"part": "test"})).add("case_00000", {"image": "a", "reason": "b"})
    again = Predictions(out, header(split=split | {"part": "test"}))
    again.finish()
    assert read_json(out / "predictions.json")["split"]["part"] == "test"
    more = Predictions(out, header(split=split | {"part": "validation"}))
    more.finish()
    assert read_json(out / "predictions.json")["split"]["part"] is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"cases": {}}', '{"cases": {"a": {}}, "failed": {}}'])
def test_a_damaged_record_is_an_error(out, text):
    (out / "predictions.json").write_text(text)
    with pytest.raises(
        InputError, match=r"predictions.json: expected the record of kitsseg predict, found something"
    ):
        Predictions(out, header())


def test_a_failure_is_put_down_and_forgotten_when_it_is_mended(out, written):
    record = Predictions(out, header())
    record.add("case_00001", {"image": "/b", "reason": "damaged"})
    found = read_json(out / "predictions.json")
    assert found["failed"]["case_00001"]["reason"] == "damaged"
    assert list(found["cases"]) == ["case_00000"]
    assert not record.is_whole("case_00001", written[0])
    record.add("case_00001", record.entries["case_00000"])
    found = read_json(out / "predictions.json")
    assert (found["failed"], list(found["cases"])) == ({}, ["case_00000", "case_00001"])


def test_jobs_that_write_at_once_lose_nothing(out):
    """Eight jobs of ten scans each, in threads: all eighty are in predictions.json when the last has ended."""
    made = {"file": "x", "image": "y", "image_bytes": 1, "crc32": "0", "phantom": False}
    start = threading.Barrier(8)

    def job(number):
        start.wait()
        record = Predictions(out, header(), (number, 8))
        for k in range(10):
            record.add(f"case_{number}_{k}", made)
        record.finish()

    threads = [threading.Thread(target=job, args=(number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read_json(out / "predictions.json")["cases"]) == 80
    assert not list(out.glob(".*"))


def test_what_a_killed_job_has_done_is_known_to_the_next(out, written):
    """It has not come to the end: only its own file names its scans."""
    entry = Predictions(out, header()).entries["case_00000"]
    Predictions(out, header(), (2, 3)).add("case_00007", entry)
    assert "case_00007" not in read_json(out / "predictions.json")["cases"]
    next_call = Predictions(out, header())
    assert set(next_call.entries) == {"case_00000", "case_00007"}
    # and of two entries the newest counts, wherever it stands
    next_call.add("case_00007", {"image": "/b", "reason": "damaged"})
    assert "reason" in Predictions(out, header()).entries["case_00007"]


def test_the_file_of_a_scan_that_fails_now_is_removed(out, written):
    record = Predictions(out, header())
    record.forget_file("case_00001")
    assert written[1].exists()
    record.forget_file("case_00000")
    assert not written[1].exists()
