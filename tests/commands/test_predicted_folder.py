"""A folder of mixed scans: what predict says that it will do, and what report says and shows afterwards."""

import html
import json
import re
import shutil
import tempfile
import zipfile

import numpy as np
import pytest
from support.dicom_files import write_series

from kitsseg.cli import main
from kitsseg.data.formats.nifti import PHANTOM, write_image
from kitsseg.records.starter import NO_PAPER, STARTER_NOTE

SHAPE, MM = (12, 48, 48), (4.0, 3.0, 3.0)


def body(seed=0):
    """Soft tissue in air, so that nothing is doubtful but the extent, which is not like that of KiTS19."""
    image = np.random.default_rng(seed).integers(-20, 80, SHAPE).astype(np.int16)
    image[:, :8], image[:, 8:11] = -1000, -100
    return image


def series(folder, uid, localizer=False):
    def change(_, dataset):
        dataset.SeriesInstanceUID, dataset.PatientID, dataset.SeriesNumber = uid, "anna", uid[-1]
        dataset.SeriesDescription = "scout" if localizer else "abdomen"
        if localizer:
            dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]

    stored = (body(int(uid[-1])) + 1024)[: 1 if localizer else None]
    new = write_series(folder / "new", stored, spacing=(3.0, 3.0), step=4.0, change=change)
    for path in new.iterdir():
        path.rename(folder / f"{uid}-{path.name}")
    new.rmdir()


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixed") / "in"
    (folder / "sub").mkdir(parents=True)
    series(folder / "ct", "1.2")
    series(folder / "ct", "1.9", localizer=True)
    series(folder / "made", "1.3")
    with zipfile.ZipFile(folder / "b.zip", "w") as archive:
        for path in (folder / "made").iterdir():
            archive.write(path, f"SE 1/{path.name}")
    shutil.rmtree(folder / "made")
    write_image(folder / "sub" / "real.nii.gz", body(4), MM)
    write_image(folder / "sub" / "phantom.nii.gz", body(5), MM, PHANTOM)
    return folder


@pytest.fixture
def here(mixed, tmp_path, monkeypatch):
    shutil.copytree(mixed, tmp_path / "in")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    yield tmp_path
    assert not any((tmp_path / "temporary").iterdir())


@pytest.fixture
def kitsseg(capsys):
    def run(line):
        code = main(line.split())
        out, err = capsys.readouterr()
        return code, out, err

    return run


def damage(folder, count):
    for i in range(count):
        (folder / f"bad{i}.nii.gz").write_bytes(b"")


def test_every_scan_of_a_mixed_folder_has_a_picture_and_its_remarks(here, kitsseg):
    assert kitsseg("predict starter in --out pred")[0] == 0
    code, out, _ = kitsseg("report pred --out r.html")
    assert (code, out.splitlines()[0]) == (0, "wrote r.html: open it in a browser")
    page = (here / "r.html").read_text()
    assert page.count("<figure") == 4
    assert "No picture" not in page
    table = page[page.index("<h2>Scans") :]
    remarks = dict(re.findall(r'row">(.*?)</th>.*?class="words">(.*?)</td>', table))
    assert sorted(remarks) == ["anna_2_abdomen", "anna_3_abdomen", "phantom", "real"]
    # of a synthetic scan predict does not say that it is unlike KiTS19
    assert {name: "those of KiTS19" in text for name, text in remarks.items()} == {
        "anna_2_abdomen": True,
        "anna_3_abdomen": True,
        "phantom": False,
        "real": True,
    }
    assert remarks["phantom"] == "-"


def test_the_record_says_how_each_scan_was_read_and_an_older_one_without_that_is_read(here, kitsseg):
    assert kitsseg("predict starter in --out pred")[0] == 0
    file = here / "pred" / "predictions.json"
    record = json.loads(file.read_text())
    assert {name: entry.get("part") for name, entry in record["cases"].items()} == {
        "anna_2_abdomen": {"series": "1.2"},
        "anna_3_abdomen": {"inside": "SE 1"},
        "phantom": None,
        "real": None,
    }
    for entry in record["cases"].values():
        entry.pop("part", None)
    file.write_text(json.dumps(record))
    code, out, _ = kitsseg("report pred --out r.html")
    assert code == 0
    assert out.startswith("warning: 1 of 4 pictures missing: anna_2_abdomen: ")  # which series is not known


def test_missing_pictures_are_told_in_one_line_with_the_reasons(here, kitsseg):
    assert kitsseg("predict starter in --out pred")[0] == 0
    (here / "in" / "b.zip").unlink()
    (here / "in" / "sub" / "real.nii.gz").write_bytes(b"")
    code, out, _ = kitsseg("report pred --out r.html")
    assert code == 0
    assert re.match(
        rf"warning: 2 of 4 pictures missing: anna_3_abdomen: {here}/in/b\.zip is no longer.*; "
        rf"real: {here}/in/sub/real\.nii\.gz: damaged .*\(.*empty\)",
        out.splitlines()[0],
    )
    assert (here / "r.html").read_text().count("No picture: ") == 2


def test_synthetic_scans_among_others_are_named_and_the_caution_about_the_network_stays(here, kitsseg):
    assert kitsseg("predict starter in --out pred")[0] == 0
    assert kitsseg("report pred --out r.html")[0] == 0
    page = (here / "r.html").read_text()
    assert "1 of 4 scans are synthetic: phantom." in page
    assert "the patients are synthetic" not in page
    assert "trained on synthetic patients" in page
    assert json.loads((here / "pred" / "predictions.json").read_text())["phantom"] is False


def test_a_folder_of_synthetic_scans_alone_or_of_none_says_so_as_before(here, kitsseg):
    assert kitsseg("predict starter in/sub/phantom.nii.gz --out a")[0] == 0
    assert kitsseg("report a --out a.html")[0] == 0
    page = (here / "a.html").read_text()
    assert "Phantom results: " in page and "patients are synthetic" in page
    assert "scans are synthetic" not in page
    assert kitsseg("predict starter in/sub/real.nii.gz --out b")[0] == 0
    assert kitsseg("report b --out b.html")[0] == 0
    page = (here / "b.html").read_text()
    assert "scans are synthetic" not in page and "patients are synthetic" not in page
    assert "trained on synthetic patients" in page


def test_scores_of_synthetic_and_other_scans_name_the_synthetic_ones(here, kitsseg):
    assert kitsseg("predict starter in --out pred")[0] == 0
    for name in ("real", "phantom", "anna_2_abdomen", "anna_3_abdomen"):
        (here / "truth" / name).mkdir(parents=True)
        shutil.copyfile(here / "pred" / f"{name}.nii.gz", here / "truth" / name / "segmentation.nii.gz")
    code, out, _ = kitsseg("evaluate pred truth --out s.csv")
    assert code == 0
    assert "1 of 4 scans are synthetic: phantom." in out
    summary = json.loads((here / "s.json").read_text())
    assert summary["phantom"] is False
    assert [name for name, case in summary["cases"].items() if case.get("phantom")] == ["phantom"]
    # no CT lies beside the truth: the pictures are of the scans that were segmented, also of a part of a folder
    code, out, _ = kitsseg("report s.csv --out s.html")
    assert (code, out.splitlines()[0]) == (0, "wrote s.html: open it in a browser")
    page = (here / "s.html").read_text()
    assert "1 of 4 scans are synthetic: phantom." in page and "patients are synthetic" not in page
    shutil.copyfile(here / "s.csv", here / "t.csv")
    shutil.copyfile(here / "s.json", here / "t.json")
    code, out, _ = kitsseg("compare s.csv t.csv")
    assert code == 0
    assert "mean over 4 patients, 1 of them synthetic" in " ".join(out.split())


def test_a_picture_of_a_scan_without_scores(here, kitsseg):
    damage(here / "in", 1)
    assert kitsseg("predict starter in --out pred")[0] == 1
    code, out, _ = kitsseg("report pred --preview p.png")
    assert (code, out) == (0, "wrote p.png: anna_2_abdomen\n")
    assert (here / "p.png").stat().st_size > 1000
    assert kitsseg("report pred --preview p.png --case anna_3_abdomen")[:2] == (
        0,
        "wrote p.png: anna_3_abdomen\n",
    )
    for case, words in (
        ("nobody", "expected nobody among its 4 cases, found anna_2_abdomen, anna_3_abdomen, phantom, real."),
        ("bad0", "pred: bad0 has no label map: "),
    ):
        code, _, err = kitsseg(f"report pred --preview p.png --case {case}")
        assert code == 1 and words in err and len(err.splitlines()) == 1
    code, _, err = kitsseg("report in --preview p.png")
    assert code == 1 and re.search(r"scores of kitsseg evaluate.*nothing.*no label maps", err)


def rows_of(out):
    """Name -> (found as, what will be done) of each row of a table in one line a scan."""
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line[:1] == "│"]
    return {row[0]: (row[1], row[4]) for row in cells}


def test_the_last_line_counts_what_the_table_shows(here, kitsseg):
    assert kitsseg("predict starter in/sub/real.nii.gz --out pred")[0] == 0
    damage(here / "in" / "sub", 2)
    code, out, err = kitsseg("predict starter in --out pred --dry-run")
    assert code == 1
    assert "2 of 6 scans" in err
    rows = rows_of(out)
    found_as, planned = rows.pop("real")
    assert found_as == "NIfTI: sub/real.nii.gz" and planned.startswith("nothing: its label map")
    assert rows == {
        "anna_2_abdomen": ("DICOM series: ct", "predict"),
        "anna_3_abdomen": ("DICOM series: b.zip/SE 1", "predict"),
        "bad0": ("NIfTI: sub/bad0.nii.gz", "fail"),
        "bad1": ("NIfTI: sub/bad1.nii.gz", "fail"),
        "phantom": ("NIfTI: sub/phantom.nii.gz", "predict"),
    }
    assert re.match(
        r"6 scans found \(2 DICOM series, 4 NIfTI\): 3 .*predict into pred, 2 .*fail, 1 there already, "
        r"0 refused; 1 left out, 0 \D*$",
        out.splitlines()[-1],
    )
    assert re.search(r"\nbad0: damaged or not NIfTI \(.*empty\)", out)
    assert "left out: ct: scout (1 file): localizer images, no CT\n" in out
    (here / "pred" / "phantom.nii.gz").write_text("of the user")
    out = kitsseg("predict starter in --out pred --dry-run")[1]
    assert rows_of(out)["phantom"][1] == "nothing: refused"
    assert "\nphantom: pred/phantom.nii.gz: is there, and predictions.json does not say" in out
    assert "2 to predict into pred, 2 that will fail, 1 there already, 1 refused;" in out.splitlines()[-1]


def test_clashing_scans_are_rows_of_the_table_and_lines_of_the_error_and_all_others_are_done(here, kitsseg):
    shutil.copy(here / "in" / "sub" / "real.nii.gz", here / "in" / "ct.nii.gz")
    write_image(here / "in" / "ct.nii", body(8), MM)
    code, out, err = kitsseg("predict starter in --out pred --dry-run")
    assert code == 1
    assert "2 of 6 scans" in err
    [rows, reasons] = [
        [
            line
            for line in out.splitlines()
            if line.startswith(start) and ": refused" in line + ": refused" * (start == "ct: ")
        ]
        for start in ("│ ct ", "ct: ")
    ]
    assert [("ct.nii.gz" in row, "nothing: refused" in row) for row in rows] == [(False, True), (True, True)]
    assert len(reasons) == 2
    assert reasons[0].startswith("ct: ct.nii: ") and "in/ct.nii.gz too" in reasons[0]
    assert (
        "6 scans found (2 DICOM series, 4 NIfTI): 4 to predict into pred, 0 that will fail, 0 there already, 2 refused"
        in out
    )
    code, out, err = kitsseg("predict starter in --out pred")
    assert code == 1
    [line] = err.splitlines()
    assert "2 of 6 scans failed, the others are done: " in line
    assert str(here / "in" / "ct.nii") + ": " in line and str(here / "in" / "ct.nii.gz") + ": " in line
    assert "predictions.json" not in line  # which holds scans that were begun
    assert {path.name for path in (here / "pred").glob("*.nii.gz")} == {
        *("anna_2_abdomen.nii.gz", "anna_3_abdomen.nii.gz", "phantom.nii.gz", "real.nii.gz"),
    }
    # of a job array one job tells it
    told = [
        kitsseg(f"predict starter in --out pred --shard {i}/5 --dry-run")[1].count("nothing: refused")
        for i in range(5)
    ]
    assert sorted(told) == [0, 0, 0, 0, 2]


def test_a_dry_run_counts_what_cannot_be_looked_at_beside_the_scans(here, kitsseg):
    (here / "odd").mkdir()
    (here / "odd" / "a.nii.gz").symlink_to(here / "nowhere")
    code, out, err = kitsseg("predict starter odd --out pred --dry-run")
    assert code == 1
    assert "0 scans found (none)" in out and "1 that cannot be looked at" in out
    assert err == "kitsseg: 1 file or folder cannot be looked at; the lines above say why.\n"
    # beside scans, of which some fail and one remains
    shutil.copy(here / "in" / "sub" / "real.nii.gz", here / "odd")
    (here / "odd" / "b.nii.gz").symlink_to(here / "nowhere")
    damage(here / "odd", 1)
    err = kitsseg("predict starter odd --out pred --dry-run")[2]
    assert "1 of 2 scans would fail and 2 files or folders cannot be looked at; " in err
    assert "Without --dry-run the others are predicted" in err
    # nothing remains where the only good scan has its label map
    assert kitsseg("predict starter odd/real.nii.gz --out pred")[0] == 0
    err = kitsseg("predict starter odd --out pred --dry-run")[2]
    assert "1 of 2 scans would fail" in err and "others" not in err


def test_evaluate_is_named_last_and_for_those_with_reference_label_maps(here, kitsseg):
    lines = kitsseg("predict starter in/sub/real.nii.gz --out pred")[1].splitlines()
    evaluate = "with reference label maps: kitsseg evaluate pred TRUTH --out scores.csv"
    assert lines[-2:] == ["next: kitsseg report pred --out report.html", evaluate]
    assert kitsseg("report pred --out r.html")[1].splitlines()[-2:] == [
        "wrote r.html: open it in a browser",
        evaluate,
    ]


def test_a_page_about_the_starter_names_no_paper_and_gives_its_dice(here, kitsseg):
    """Also where the scans are synthetic, and where an older version recorded the paper of the architecture."""
    for name in ("real", "phantom"):
        assert kitsseg(f"predict starter in/sub/{name}.nii.gz --out {name}")[0] == 0
        record = json.loads((here / name / "predictions.json").read_text())
        assert record.get("paper") is None and record.get("reported") is None
        old = record | {"paper": "Chen and Jin, 2019", "reported": {"TK Dice": 0.9}}
        for content in (record, old):
            (here / name / "predictions.json").write_text(json.dumps(content))
            assert kitsseg(f"report {name} --out r.html")[0] == 0
            page = html.unescape((here / "r.html").read_text())
            assert f'<p class="paper">{NO_PAPER}</p>' in page and STARTER_NOTE in page
            assert "After the paper" not in page and "Chen and Jin" not in page


def test_scores_of_the_starter_are_beside_no_figures_of_a_paper(here, kitsseg):
    assert kitsseg("predict starter in/sub/real.nii.gz --out pred")[0] == 0
    assert kitsseg("evaluate pred/real.nii.gz pred/real.nii.gz --out s.csv")[0] == 0
    scores = json.loads((here / "s.json").read_text())
    figures = {"paper": "Chen and Jin, 2019", "reported": {"TK Dice": 0.9}}
    (here / "s.json").write_text(json.dumps(scores | figures))
    assert kitsseg("report s.csv --out r.html")[0] == 0
    page = html.unescape((here / "r.html").read_text())
    assert NO_PAPER in page and STARTER_NOTE in page
    assert "Chen and Jin" not in page and "What the paper reports" not in page
    # of a folder that holds nothing but the scores, the file is to be given
    (here / "lone").mkdir()
    for ending in ("csv", "json"):
        shutil.copy(here / f"s.{ending}", here / "lone" / f"scores.{ending}")
    code, _, err = kitsseg("report lone")
    assert code == 1
    assert "lone: expected a run" in err and err.endswith("Give the file: kitsseg report lone/scores.csv\n")


def test_report_of_a_folder_of_scans_says_what_it_takes(here, kitsseg):
    code, _, err = kitsseg("report in")
    assert code == 1
    assert re.match(
        r"kitsseg: in: expected a run, a scores\.csv or a folder of kitsseg predict; found neither", err
    )
    assert "run.json nor predictions.json" in err and "run kitsseg predict first" in err


def test_where_nothing_is_computed_no_engine_is_named(here, kitsseg):
    scan = "predict starter in/sub/real.nii.gz --out pred"
    code, out, _ = kitsseg(f"{scan} --shard 1/2")
    assert (code, out.splitlines()[-1]) == (0, "nothing to do: this shard has no scans")
    assert kitsseg(scan)[1].count("computed by litert") == 1
    code, out, _ = kitsseg(scan)
    assert code == 0
    assert "1 label map is there already in pred, nothing was computed\n" in out
    assert "litert" not in out and "wrote" not in out and "colors" not in out
    assert (
        "nothing was computed; wrote statistics.csv and statistics.json" in kitsseg(f"{scan} --statistics")[1]
    )


def test_scans_without_a_row_in_the_table_of_a_run_are_counted_as_not_opened(here, kitsseg, monkeypatch):
    monkeypatch.setattr("kitsseg.commands.plan_table.SHOWN", 3)
    damage(here / "in", 1)
    code, out, err = kitsseg("predict starter in --out pred")
    assert code == 1
    assert re.search(
        r"5 scans found \(2 DICOM series, 3 NIfTI\): 4 .*predict into pred \(2 .*without a row.*\), "
        r"1 .*fail \(--dry-run.*\), 0 there already",
        out,
    )
    assert "empty" not in out  # one scan is told in the error alone
    assert re.match(r"kitsseg: 1 of 5 scans failed, .*: bad0 \(", err)


@pytest.mark.parametrize("count", [2, 4, 6])
def test_each_failed_scan_is_told_once_and_all_are_named(here, kitsseg, count):
    damage(here / "in", count)
    code, out, err = kitsseg("predict starter in --out pred")
    assert code == 1
    assert (out + err).count("the file is empty") == count
    assert len(err.splitlines()) == 1
    assert all(f"bad{i}" in err for i in range(count))
    assert "more" not in err


def test_warnings_name_scans_and_not_more_than_a_few(here, kitsseg):
    for i in range(4):
        write_image(here / "in" / "sub" / f"small{i}.nii.gz", body(i)[:, :, :10], MM)
    write_image(here / "in" / "sub" / "gray.nii.gz", np.full(SHAPE, 7, np.int16) + body() % 3, MM)
    code, out, _ = kitsseg("predict starter in --out pred")
    assert code == 0
    told = [line for line in out.splitlines() if line.startswith("warning: ")]
    assert len(told) == 5
    assert re.match(r"warning: gray: .*CT in HU", told[0])
    assert told[1].startswith("warning: anna_2_abdomen: its pixels are 3 mm apart, those of KiTS19")
    assert re.match(r"warning: and 5 more .*predictions\.json", told[4])
    assert not any(str(here) in line for line in told)


def test_a_changed_scan_is_told_also_where_another_scan_fails(here, kitsseg):
    kitsseg("predict starter in/sub --out pred")
    damage(here / "in" / "sub", 1)
    write_image(here / "in" / "sub" / "real.nii.gz", body(6), MM)
    code, out, err = kitsseg("predict starter in/sub --out pred")
    assert code == 1
    assert "bad0" in err
    assert "a scan has changed since its label map was made, and was predicted anew: real" in out
    write_image(here / "in" / "sub" / "real.nii.gz", body(7), MM)
    write_image(here / "in" / "sub" / "phantom.nii.gz", body(8), MM, PHANTOM)
    _, out, _ = kitsseg("predict starter in/sub --out pred")
    assert "2 scans have changed since their label maps were made, and were predicted anew: " in out


def test_paths_are_relative_to_their_input_however_it_is_given(here, kitsseg, monkeypatch):
    where = {"real": "real.nii.gz"}
    for given in ("in/sub", f"{here}/in/sub", "in/../in/sub", "./in/sub/", "in/sub/real.nii.gz"):
        rows = rows_of(kitsseg(f"predict starter {given} --out pred --dry-run")[1])
        assert {name: rows[name][0] for name in where} == {"real": "NIfTI: real.nii.gz"}, given
    rows = rows_of(kitsseg("predict starter in/b.zip --out pred --dry-run")[1])
    assert [found for found, _ in rows.values()] == ["DICOM series: b.zip/SE 1"]
    rows = rows_of(kitsseg("predict starter in/sub in/ct --out pred --dry-run")[1])
    assert rows["real"][0] == "NIfTI: sub/real.nii.gz"
    shutil.copytree(here / "in" / "ct", here / "other" / "sub")
    rows = rows_of(kitsseg("predict starter in/sub other/sub --out pred --dry-run")[1])
    assert rows["real"][0] == f"NIfTI: {here}/in/sub/real.nii.gz"  # two folders of one name
    monkeypatch.chdir(here / "in" / "sub")
    rows = rows_of(kitsseg("predict starter . --out pred --dry-run")[1])
    assert rows["real"][0] == "NIfTI: real.nii.gz"
