"""What predictions.json says, when processes write at once or are killed, and which label maps are left as they are."""

import gzip
import json
import os
import shutil
import threading
from dataclasses import fields, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from support.cases import make_case, read_json

from kitsseg.data.cache.sources import Source, source_of
from kitsseg.data.formats.nifti import read_image, read_labels, write_image, write_labels
from kitsseg.errors import InputError
from kitsseg.files import locks
from kitsseg.files.checksums import crc32_of
from kitsseg.files.json_records import as_builtins, converted
from kitsseg.records.made_by import MadeBy, NetworkUsed
from kitsseg.records.predictions import (
    FailedScan,
    PredictedScan,
    Predictions,
    read_predictions,
)

HEADER = {
    "kitsseg": "1",
    "run": "/runs/a",
    "networks": [{"sha256": "00", "inference": {"tile": (224, 224)}}],
    "engine": None,
    "inference": {"tile": (224, 224)},
    "postprocess": None,
    "split": {"name": "80-10-10", "hash": "ab", "part": None},
}
MADE = PredictedScan(
    file="x", image="/y", source=Source(bytes=1, modified_ns=2, ends_sha256="0"), crc32="0", phantom=False
)
DAMAGED = FailedScan(image="/b", reason="damaged")


@pytest.fixture(autouse=True)
def closed_in_the_end(monkeypatch):
    """Close all records after a test, because a test may leave records open, as a killed process does."""
    records, make = [], Predictions.__init__

    def remembered(self, *arguments):
        records.append(self)
        make(self, *arguments)

    monkeypatch.setattr(Predictions, "__init__", remembered)
    yield
    for record in records:
        if hasattr(record, "journal"):
            record.close()


def header(**changes):
    return converted(HEADER | changes, MadeBy)


@pytest.fixture
def out(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


ONE = HEADER["networks"][0]
WEIGHTS = r"runs/a \(weights 00\), now with runs/a \(weights 01\)"
LARGE = {"remove_small_mm3": 500.0, "tumors_on_kidneys": False}
TOUCHING = {"remove_small_mm3": 0.0, "tumors_on_kidneys": True}


def one_network(**changes):
    return {"networks": [ONE | changes]}


def how(**changes):
    """A setting of inference, as both fields record it."""
    return one_network(inference=ONE["inference"] | changes) | {"inference": HEADER["inference"] | changes}


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        ({}, {"kitsseg": "2"}, "kitsseg 1, now with kitsseg 2"),
        ({}, one_network(sha256="01"), WEIGHTS),
        ({"run": "/x/kitsseg/records/starter.tflite"}, one_network(sha256="01"), "starter, now with runs/a"),
        (
            {},
            {"also": ["/runs/b"], "networks": [ONE, ONE | {"sha256": "01"}]},
            "with runs/a, now with runs/a, runs/b",
        ),
        ({}, one_network(precision="bfloat16"), "--precision float32, now with --precision bfloat16"),
        ({}, one_network(recipe="unet2d"), "recipe None, now as recipe unet2d"),
        ({}, one_network(preprocess="ab"), "preprocessing None, now with preprocessing ab"),
        ({"engine": "litert"}, {"engine": "keras"}, "--engine litert, now with --engine keras"),
        ({"engine": "litert, keras"}, {"engine": "keras"}, "with litert, keras, now with --engine keras"),
        ({}, how(tile=None), "in tiles of 224 x 224, now with --whole-slices"),
        ({}, how(tile=[9, 8]), "in tiles of 224 x 224, now in tiles of 9 x 8"),
        (how(mirror_axes=[0, 1]), how(mirror_axes=[]), "--mirror, now with --no-mirror"),
        (how(mirror_axes=[0, 1]), how(mirror_axes=[1, 2]), r"axes \[0, 1\], now with mirror_axes \[1, 2\]"),
        (how(coarse=False), how(coarse=True), "--coarse off, now with --coarse on"),
        ({}, how(coarse=False), "without a setting coarse, now with coarse False"),
        (how(overlap=0.5), how(overlap=0.25), "overlap 0.5, now with overlap 0.25"),
        ({"postprocess": {"keep": 2}}, {}, "--postprocess on, now with --postprocess off"),
        (
            {"postprocess": {"keep": 2}},
            {"postprocess": {"keep": 1}},
            "processing {'keep': 2}, now .*'keep': 1}",
        ),
        ({}, {"cleanup": LARGE}, "without --remove-small, now with --remove-small 500"),
        (
            {"cleanup": LARGE},
            {"cleanup": LARGE | {"remove_small_mm3": 0.5}},
            "-small 500, now .*--remove-small 0.5",
        ),
        ({"cleanup": TOUCHING}, {}, "with --tumors-on-kidneys, now without --tumors-on-kidneys"),
        (
            {"kitsseg": "0"},
            {"cleanup": LARGE},
            "with kitsseg 0 and without --remove-small, now with kitsseg 1 and with --remove-small 500",
        ),
    ],
)
def test_a_difference_is_told_in_words_of_the_options(out, before, now, said):
    Predictions(out, header(**before)).begin("a", out / "a.nii.gz")
    with pytest.raises(InputError, match=rf"{said}\. Choose another folder") as caught:
        Predictions(out, header(**now))
    assert str(caught.value).startswith(str(out / "predictions-"))
    assert "null" not in str(caught.value)


def test_every_field_of_a_network_is_compared():
    compared = {"recipe", "sha256", "preprocess", "inference", "precision"}
    assert {each.name for each in fields(NetworkUsed)} == compared


def entry_of(out, image, name="prediction_00000.nii.gz"):
    return PredictedScan(
        file=name,
        image=str(image),
        source=source_of(image),
        crc32=crc32_of(out / name),
        phantom=False,
    )


def made(name):
    return replace(MADE, file=f"{name}.nii.gz")


def add(record, name, entry):
    record.begin(name, entry.image)
    record.add(name, entry)


@pytest.fixture
def written(out, tmp_path):
    """A scan, its label map and its entry."""
    make_case(tmp_path / "case_00000")
    image = tmp_path / "case_00000" / "imaging.nii.gz"
    labels = read_labels(tmp_path / "case_00000" / "segmentation.nii.gz").array
    write_labels(out / "prediction_00000.nii.gz", labels, read_image(image).grid)
    record = Predictions(out, header())
    add(record, "case_00000", entry_of(out, image))
    record.finish()
    return image, out / "prediction_00000.nii.gz"


def is_whole(out, image, **changes):
    return Predictions(out, header(**changes)).is_whole("case_00000", image)


def journals(out):
    return sorted(out.glob("predictions-*.jsonl"))


# which label maps are whole, and of this scan


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
    """It may be a correction by hand: it is neither taken for a prediction nor overwritten, even for a new scan."""
    image, file = written
    labels = read_labels(file)
    labels.array[0, 0, 0] = 2
    write_labels(file, labels.array, labels.grid)
    words = r"prediction_00000\.nii\.gz: has changed since .*Keep it"
    with pytest.raises(InputError, match=words):
        is_whole(out, image)
    image.write_bytes(gzip.compress(gzip.decompress(image.read_bytes()), 1))
    with pytest.raises(InputError, match=words):
        is_whole(out, image)


def other_values(image):
    """The same file with other voxels in it, not a byte longer or shorter, its time as before."""
    times, data = image.stat(), bytearray(image.read_bytes())
    data[len(data) // 2] ^= 1
    image.write_bytes(data)
    os.utime(image, ns=(times.st_atime_ns, times.st_mtime_ns))


def scan(path, shape=(20, 64, 64)):
    """An uncompressed scan of more than twice 64 KiB."""
    array = np.random.default_rng(0).integers(-50, 50, shape).astype(np.int16)
    write_image(path, array, (3.0, 0.8, 0.8))
    return path


def test_a_scan_that_was_replaced_is_predicted_again(out, written, tmp_path):
    """This is noticed even if the size, the time, both, or the name and the grid stay the same."""
    image, file = written
    # the same voxels in another size: no longer the file that was predicted
    raw = gzip.decompress(image.read_bytes())
    image.write_bytes(gzip.compress(raw, 1))
    assert not is_whole(out, image)

    plain = scan(tmp_path / "case_00000" / "scan.nii")
    shutil.copy(file, out / "plain.nii.gz")

    def predicted(path):
        record = Predictions(out, header())
        add(record, "plain", entry_of(out, path, "plain.nii.gz"))
        record.finish()

    def kept(path):
        return Predictions(out, header()).is_whole("plain", path)

    predicted(plain)
    assert kept(plain)
    times = plain.stat()
    os.utime(plain, ns=(0, times.st_mtime_ns + 1))  # a copy, for one: the contents are the same
    assert kept(plain)
    other_values(plain)
    os.utime(
        plain, ns=(0, times.st_mtime_ns + 1)
    )  # an export of the same size, with another voxel in its middle
    assert not kept(plain)
    predicted(plain)
    nifti = nib.load(plain, mmap=False)
    moved = nifti.affine.copy()
    moved[0, 3] += 5
    times = plain.stat()
    nib.Nifti1Image(np.asarray(nifti.dataobj), moved, nifti.header).to_filename(plain)
    os.utime(plain, ns=(times.st_atime_ns, times.st_mtime_ns))  # a corrected affine, size and time as before
    assert plain.stat().st_size == times.st_size
    assert not kept(plain)
    # a compressed file of the same size (by chance) and time: the checksum at its end shows the change
    stored = tmp_path / "case_00000" / "stored.nii.gz"
    stored.write_bytes(gzip.compress(plain.read_bytes(), 0, mtime=0))
    predicted(stored)
    times = stored.stat()
    data = bytearray(plain.read_bytes())
    data[len(data) // 2] ^= 1
    stored.write_bytes(gzip.compress(data, 0, mtime=0))
    os.utime(stored, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert stored.stat().st_size == times.st_size
    assert not kept(stored)
    # not compressed in spite of its name: no checksum of its own, so that all of it is compared
    wrong = tmp_path / "case_00000" / "wrong.nii.gz"
    shutil.copy(plain, wrong)
    predicted(wrong)
    assert kept(wrong)
    other_values(wrong)
    os.utime(wrong, ns=(0, wrong.stat().st_mtime_ns + 1))
    assert not kept(wrong)


def test_a_series_with_one_other_slice_is_predicted_again(out, written, tmp_path):
    _, file = written
    series = tmp_path / "series"
    series.mkdir()
    for k in range(3):
        (series / f"IM{k}").write_bytes(bytes([k]) * 200)
        os.utime(series / f"IM{k}", ns=(0, 1000 + k))
    shutil.copy(file, out / "series.nii.gz")
    record = Predictions(out, header())
    add(record, "series", entry_of(out, series, "series.nii.gz"))
    assert record.is_whole("series", series)
    (series / "IM0").write_bytes(b"x" * 200)  # of the same size, and older than the newest
    os.utime(series / "IM0", ns=(0, 999))
    assert not record.is_whole("series", series)


def test_the_same_scan_elsewhere_is_the_same_scan(out, written, tmp_path):
    image, _ = written
    copied = tmp_path / "copy" / "case_00000" / "imaging.nii.gz"
    copied.parent.mkdir(parents=True)
    shutil.copy(image, copied)
    assert is_whole(out, copied)
    copied.unlink()
    copied.symlink_to(image)
    assert is_whole(out, copied)


def test_a_label_map_of_another_scan_of_this_name_is_not_replaced(out, written, tmp_path):
    """Another cohort; whether it is compressed, on the same grid or not, or no scan at all."""
    image, file = written
    before = file.read_bytes()
    make_case(tmp_path / "second" / "case_00000", seed=7)
    make_case(tmp_path / "third" / "case_00000", shape=(6, 40, 48))
    plain = scan(tmp_path / "fourth" / "case_00000" / "imaging.nii")
    series = tmp_path / "fifth" / "case_00000"
    series.mkdir(parents=True)
    (series / "IM1").write_bytes(b"\0" * 128 + b"DICM")
    others = [tmp_path / name / "case_00000" / "imaging.nii.gz" for name in ("second", "third")]
    for other in [*others, plain, series]:
        record = Predictions(out, header())
        with pytest.raises(InputError, match=r"prediction_00000.nii.gz: .* another") as caught:
            record.is_whole("case_00000", other)
        assert str(other) in str(caught.value)
        assert str(image) in str(caught.value)
    assert file.read_bytes() == before
    file.unlink()  # as advised
    assert not is_whole(out, others[0])


def test_a_file_that_nobody_has_recorded_is_not_replaced(out, written, tmp_path):
    """The file may be the scan itself, if the folder of the scans is given as the folder for the label maps."""
    mine = scan(out / "mine.nii.gz")
    with pytest.raises(InputError, match=r"out/mine.nii.gz: is there, and predictions.json does not say"):
        Predictions(out, header()).is_whole("mine", mine)
    # a process that was killed after it wrote a label map had recorded before that it began with the scan
    record = Predictions(out, header())
    assert record.begin("theirs", mine)
    shutil.copy(mine, out / "theirs.nii.gz")
    record.close()
    later = Predictions(out, header())
    assert not later.is_whole("theirs", mine)
    later.finish()
    assert read_json(out / "predictions.json")["begun"].keys() == {"theirs"}
    again = Predictions(out, header())
    assert not again.is_whole("theirs", mine)
    add(again, "theirs", entry_of(out, mine, "theirs.nii.gz"))
    again.finish()
    assert "begun" not in read_json(out / "predictions.json")
    assert again.is_whole("theirs", mine)


# what made them


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"networks": [{"sha256": "01", "inference": {"tile": [224, 224]}}]}, "weights 00"),
        ({"inference": {"tile": None}}, "with --whole-slices"),
        ({"postprocess": {"n_main": 2}}, "with --postprocess on"),
        ({"kitsseg": "2"}, "with kitsseg 2"),
        ({"engine": "keras"}, "with --engine keras"),
    ],
    ids=str,
)
def test_predictions_made_in_another_way_are_an_error(out, written, changes, said):
    record = Predictions(out, header())
    record.made_by("tensorflow")
    record.add("case_00001", DAMAGED)
    # in the journal, and later, when it is gathered, in predictions.json
    for name in (r"predictions-\w+\.jsonl|predictions\.json", r"predictions\.json"):
        with pytest.raises(InputError, match=rf"({name}): expected predictions .*{said}"):
            Predictions(out, header(**changes))
        record.finish()
    # where the run lies, and what it was asked for, is no setting
    Predictions(out, header(run="/elsewhere", split={"name": "x", "hash": "y", "part": "test"}))


def test_two_processes_with_other_settings_do_not_both_begin(out):
    """Both found an empty folder. The second process to write finds the journal of the first, and writes nothing."""
    first, second = Predictions(out, header()), Predictions(out, header(postprocess={"n_main": 2}))
    first.begin("a", "/y")
    with pytest.raises(InputError, match=r"predictions-\w+\.jsonl: expected predictions"):
        second.begin("b", "/y")
    assert len(journals(out)) == 1


def test_another_engine_is_noticed_when_it_is_known(out, written):
    record = Predictions(out, header())
    record.made_by("tensorflow")
    record.add("case_00001", DAMAGED)
    later = Predictions(out, header())
    later.finish()
    assert read_json(out / "predictions.json")["engine"] == "tensorflow"
    later.made_by("tensorflow")
    with pytest.raises(InputError, match="with --engine tensorflow, now with --engine keras"):
        later.made_by("keras")


def test_parts(out, written):
    """A folder with the test cases and then all others is of no single part."""
    split = HEADER["split"]
    (out / "predictions.json").unlink()
    (out / "prediction_00000.nii.gz").unlink()
    first = Predictions(out, header(split=split | {"part": "test"}))
    first.add("case_00000", FailedScan(image="a", reason="b"))
    first.finish()
    again = Predictions(out, header(split=split | {"part": "test"}))
    again.finish()
    assert read_json(out / "predictions.json")["split"]["part"] == "test"
    more = Predictions(out, header(split=split | {"part": "validation"}))
    more.finish()
    assert read_json(out / "predictions.json")["split"]["part"] is None


# records that are damaged, or from somebody else


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"cases": {}}', '{"cases": {"a": {}}, "failed": {}}', "[" * 100_000]
)
def test_a_damaged_record_is_an_error(out, text):
    (out / "predictions.json").write_text(text)
    with pytest.raises(InputError, match=r"predictions.json: expected .*, found something"):
        Predictions(out, header())


@pytest.mark.parametrize(
    "change",
    [
        {"file": "../notes.txt"},
        {"file": "x/../../notes.txt"},
        {"file": "/etc/hostname"},
        {"file": "other.nii.gz"},
        {"file": ".."},
        {"file": ""},
        {"file": "a\0.nii.gz"},
        {"file": "..\\notes.txt"},
        {"file": 7},
        {"file": None},
        {"image": 7},
        {"image": "a\0b"},
        {"crc32": 7},
        {"finished": 7},
        {"source": {"bytes": 1}},
        {"source": {"bytes": 1, "modified_ns": 1e400, "ends_sha256": "0"}},
        {"source": None},
    ],
    ids=str,
)
def test_an_entry_that_names_something_else_is_refused(out, written, change):
    """Nothing outside the folder is read, removed or overwritten, and no other file in it."""
    (out.parent / "notes.txt").write_text("of the user")
    path = out / "predictions.json"
    record = read_json(path)
    record["cases"]["case_00000"] |= change
    path.write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"predictions.json: expected the record"):
        Predictions(out, header())
    assert (out.parent / "notes.txt").read_text() == "of the user"


@pytest.mark.parametrize("name", ["../notes", "a/b", "x/../../notes", "/etc/hostname", "a\0"])
@pytest.mark.parametrize("part", ["cases", "failed", "begun"])
def test_a_case_whose_name_leads_elsewhere_is_refused(out, written, name, part):
    path = out / "predictions.json"
    record = read_json(path)
    entry = as_builtins(replace(made(name), finished="2026"))
    entries = {
        "cases": entry,
        "failed": {"image": "/y", "reason": "why", "finished": "2026"},
        "begun": "2026",
    }
    record[part] = record.get(part, {}) | {name: entries[part]}
    path.write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"predictions.json: expected the record"):
        Predictions(out, header())


# processes at once, and killed ones


def test_a_failure_is_put_down_and_forgotten_when_it_is_mended(out, written):
    record = Predictions(out, header())
    record.add("case_00001", DAMAGED)
    record.finish()
    found = read_json(out / "predictions.json")
    assert found["failed"]["case_00001"]["reason"] == "damaged"
    assert list(found["cases"]) == ["case_00000"]
    assert not record.is_whole("case_00001", written[0])
    record = Predictions(out, header())
    record.add("case_00001", replace(MADE, file="prediction_00001.nii.gz"))
    record.finish()
    found = read_json(out / "predictions.json")
    assert (found["failed"], list(found["cases"])) == ({}, ["case_00000", "case_00001"])


def test_processes_that_write_at_once_lose_nothing(out):
    """Eight of ten scans each, in threads: all eighty are in predictions.json when the last has ended."""
    start = threading.Barrier(8)

    def job(number):
        start.wait()
        record = Predictions(out, header())
        for k in range(10):
            add(record, f"job_{number}_{k}", made(f"job_{number}_{k}"))
        record.finish()

    threads = [threading.Thread(target=job, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read_predictions(out).cases) == 80
    Predictions(out, header()).finish()  # gathers journals of processes that ended at the same moment
    assert len(read_json(out / "predictions.json")["cases"]) == 80
    assert [path.name for path in out.iterdir()] == ["predictions.json"]


@pytest.mark.parametrize("released", [False, True], ids=["while it is looked at", "after it was removed"])
def test_a_journal_that_is_taken_for_a_dead_one_as_it_is_made_is_made_anew(out, monkeypatch, released):
    """The process that gathers comes between the other's two steps: a file is made, and its lock is taken."""
    gathering, claimed = Predictions(out, header()), locks.claim
    add(gathering, "a", made("a"))
    held = []

    def late(file):
        if not held and file.name != str(gathering.path):
            held.append(Path(file.name).open("r+b"))  # noqa: SIM115
            assert claimed(held[0])
            if released:
                Path(file.name).unlink()
                held[0].close()
        return claimed(file)

    monkeypatch.setattr(locks, "claim", late)
    record = Predictions(out, header())
    add(record, "b", made("b"))
    if not released:
        Path(held[0].name).unlink()
        held[0].close()
    gathering.finish()
    record.finish()
    assert len(held) == 1
    assert read_json(out / "predictions.json")["cases"].keys() == {"a", "b"}
    assert journals(out) == []


def test_a_process_that_ends_leaves_the_file_of_one_at_work(out):
    first, second = Predictions(out, header()), Predictions(out, header())
    add(first, "a", made("a"))
    add(second, "b", made("b"))
    first.finish()
    assert read_json(out / "predictions.json")["cases"].keys() == {"a", "b"}
    add(second, "c", made("c"))
    second.finish()
    assert read_json(out / "predictions.json")["cases"].keys() == {"a", "b", "c"}
    assert journals(out) == []


def test_without_locks_nothing_is_lost_and_no_file_of_others_is_removed(out, monkeypatch):
    for module in ("files.locks", "records.predictions"):
        monkeypatch.setattr(f"kitsseg.{module}.claim", lambda file: None)
    records = [Predictions(out, header()) for _ in range(3)]
    for number, record in enumerate(records):
        add(record, f"s{number}", made(f"s{number}"))
    for record in records:
        record.finish()
    assert read_json(out / "predictions.json")["cases"].keys() == {"s0", "s1", "s2"}
    alone = Predictions(out, header())
    add(alone, "s3", made("s3"))
    alone.finish()
    assert read_json(out / "predictions.json")["cases"].keys() == {"s0", "s1", "s2", "s3"}


def test_what_a_killed_process_has_done_is_known_to_the_next(out, written):
    """A killed process gathers nothing: only its journal names its scans, and the last line may be cut off."""
    killed = Predictions(out, header())
    entry = replace(MADE, file="prediction_00007.nii.gz")
    add(killed, "case_00007", entry)
    killed.begin("case_00008", "/y")
    [journal] = journals(out)
    with journal.open("ab") as file:
        file.write(b'{"done": "case_00008", "entry": {"im')
    killed.close()
    assert "case_00007" not in read_json(out / "predictions.json")["cases"]
    assert read_predictions(out).cases.keys() == {"case_00000", "case_00007"}
    next_call = Predictions(out, header())
    assert set(next_call.entries) == {"case_00000", "case_00007"}
    assert set(next_call.begun) == {"case_00008"}
    # and of two entries the newest counts, wherever it stands
    next_call.add("case_00007", DAMAGED)
    assert isinstance(Predictions(out, header()).entries["case_00007"], FailedScan)
    assert "case_00007" in read_predictions(out).failed
    assert "case_00007" not in read_predictions(out).cases
    next_call.finish()
    assert journals(out) == []
    # a process killed at its very first line
    (out / "predictions-00000000.jsonl").write_bytes(b'{"head')
    assert set(Predictions(out, header()).entries) == {"case_00000", "case_00007"}
    (out / "predictions-00000000.jsonl").write_bytes(b"\0\0\0\n")
    with pytest.raises(InputError, match="predictions-00000000.jsonl: expected the record"):
        Predictions(out, header())


@pytest.mark.parametrize(
    "change",
    [
        lambda line: line | {"done": "../notes"},
        lambda line: line | {"done": "/etc/hostname"},
        lambda line: line | {"case": line["case"] | {"file": "../notes.txt"}},
        lambda line: line | {"case": line["case"] | {"image": "a\0b"}},
        lambda line: {"begun": "../notes", "time": "2026-01-01T00:00:00"},
    ],
    ids=["done above", "done elsewhere", "file above", "image", "begun above"],
)
def test_the_journal_of_a_killed_process_leads_nowhere_else_either(out, written, change):
    (out.parent / "notes.txt").write_text("of the user")
    shutil.copy(written[1], out / "prediction_00007.nii.gz")
    killed = Predictions(out, header())
    add(killed, "case_00007", entry_of(out, written[0], "prediction_00007.nii.gz"))
    [path] = journals(out)
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    changed = [change(line) if "case" in line else line for line in lines]
    assert changed != lines
    killed.finish()
    path = out / "predictions-00000000.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in changed))
    with pytest.raises(InputError, match="predictions-00000000.jsonl: expected the record"):
        Predictions(out, header())
    assert (out.parent / "notes.txt").read_text() == "of the user"


def test_two_cohorts_of_equal_names_at_once(out, written, tmp_path):
    """Both cohorts begin with an empty folder. The process that comes second to a name finds the other label map."""
    image, file = written
    kept = file.read_bytes()
    make_case(tmp_path / "second" / "case_00000", seed=7)
    other = tmp_path / "second" / "case_00000" / "imaging.nii.gz"
    for path in out.iterdir():
        path.unlink()
    first, second = Predictions(out, header()), Predictions(out, header())
    assert not first.is_whole("case_00000", image)
    assert not second.is_whole("case_00000", other)
    first.begin("case_00000", image)
    file.write_bytes(kept)
    first.add("case_00000", entry_of(out, image))
    with pytest.raises(InputError, match="prediction_00000.nii.gz: .*another scan"):
        second.begin("case_00000", other)
    # both write at the same moment: the process whose label map was replaced reports it when it finishes
    file.unlink()
    third, fourth = Predictions(out, header()), Predictions(out, header())
    third.begin("case_00000", image)
    fourth.begin("case_00000", other)
    file.write_bytes(kept)
    third.add("case_00000", entry_of(out, image))
    fourth.add("case_00000", entry_of(out, other))
    assert fourth.finish() == {}
    assert "at the same time" in third.finish()["case_00000"]
    first.finish()


def test_a_scan_done_by_another_process_is_not_done_twice(out, written):
    image, file = written
    kept = file.read_bytes()
    for path in out.iterdir():
        path.unlink()
    first, second = Predictions(out, header()), Predictions(out, header())
    assert not second.is_whole("case_00000", image)
    first.begin("case_00000", image)
    file.write_bytes(kept)
    first.add("case_00000", entry_of(out, image))
    assert not second.begin("case_00000", image)


def test_the_file_of_a_scan_that_fails_now_is_removed(out, written):
    record = Predictions(out, header())
    record.forget_file("case_00001")
    assert written[1].exists()
    record.forget_file("case_00000")
    assert not written[1].exists()


def test_every_scan_costs_one_line(out):
    """The file of a process grows by one entry a scan, and nothing else is written before the end."""
    record = Predictions(out, header())
    sizes = []
    for number in range(300):
        add(record, f"s{number:03d}", made(f"s{number:03d}"))
        sizes.append(journals(out)[0].stat().st_size)
    steps = set(np.diff(sizes).tolist())
    assert max(steps) < 600
    assert not (out / "predictions.json").exists()
    record.finish()
    assert len(read_json(out / "predictions.json")["cases"]) == 300
