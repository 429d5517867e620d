"""The report page: complete in itself, right numbers, outlines where the labels are."""

import base64
import csv
import html.parser
import io
import json
import re
import shutil
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image
from skimage.draw import polygon2mask

from kitsseg.data.nifti_writer import write_image
from kitsseg.errors import InputError
from kitsseg.evaluate import evaluate_folders
from kitsseg.report import read_scores, write_report
from kitsseg.report_chart import training_chart
from kitsseg.report_pictures import choose_slice, outline, show_slice

MM = (4.0, 2.0, 1.5)
SHAPE = (8, 60, 72)
VOID = {"meta", "link", "br", "img"}


class Page(html.parser.HTMLParser):
    """Collects text and tags; fails on a tag that is not closed."""

    def __init__(self, path):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += " " + " ".join(data.split())

    def count(self, tag, **attributes):
        return sum(name == tag and attributes.items() <= found.items() for name, found in self.tags)


def make_cases(tmp):
    """Two cases whose kidney is a box; case_00001 is predicted worse."""
    rng = np.random.default_rng(0)
    (tmp / "predictions").mkdir()
    for i, name in enumerate(("case_00000", "case_00001")):
        labels = np.zeros(SHAPE, np.uint8)
        labels[2:6, 20:40, 10:30] = 1
        labels[4, 25:30, 12:22] = 2
        image = (labels * 80 + rng.integers(-100, -60, SHAPE)).astype(np.int16)
        (tmp / "truth" / name).mkdir(parents=True)
        write_image(tmp / "truth" / name / "segmentation.nii.gz", labels, MM)
        write_image(tmp / "truth" / name / "imaging.nii.gz", image, MM)
        predicted = np.roll(labels, 1 + 3 * i, axis=1)
        write_image(tmp / "predictions" / f"prediction_{name[-5:]}.nii.gz", predicted, MM)


def make_run(run, **changes):
    run.mkdir()
    record = {
        "kitsseg": "0.1.0",
        "recipe": "unet2d:tiny",
        "paper": "A <paper> & more",
        "reported": {"kidney Dice <i>": 0.91},
        "seed": 7,
        "versions": {"keras": "3.12.0"},
        "split": {"name": "80-10-10", "hash": "cafe01", "cases": {"train": ["a", "b"], "test": ["c"]}},
        "status": "finished",
        "seconds": 90.0,
        "phantom": True,
    }
    (run / "run.json").write_text(json.dumps(record | changes))
    with (run / "history.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["phase", "epoch", "learning_rate", "loss", "val_loss"])
        writer.writerows(
            ["train", i + 1, 1e-3 if i < 4 else 5e-4, 1 / (i + 1), 1.5 / (i + 1)] for i in range(6)
        )


def evaluate(tmp, out, **record):
    if record:
        (tmp / "predictions" / "predictions.json").write_text(json.dumps(record))
    return evaluate_folders(tmp / "predictions", tmp / "truth", out)


@pytest.fixture
def project(tmp_path):
    make_cases(tmp_path)
    make_run(tmp_path / "run")
    return tmp_path


def test_page_of_scores_and_run_has_everything(project):
    split = {"name": "80-10-10", "hash": "cafe01", "part": "test"}
    found = evaluate(
        project,
        project / "scores.csv",
        run=str(project / "run"),
        recipe="unet2d:tiny",
        split=split,
        phantom=True,
    )
    seen = []
    write_report(project / "scores.csv", project / "report.html", lambda *step: seen.append(step))
    assert seen == [("draw", i, 2) for i in range(3)]
    page = Page(project / "report.html")
    for text in (
        "unet2d:tiny",
        "A <paper> & more",
        "kidney Dice <i>",
        "0.91",
        "80-10-10",
        "cafe01",
        "2 train, 1 test",
        "keras 3.12.0",
        "Phantom results: the patients are synthetic",
        "not a medical device",
        "predicting nothing at all",
        f"{found.summary['beside_all_background']['all_background']['pixel_accuracy']:.4f}",
        f"{found.summary['composite_interval_95'][0]:.3f} to {found.summary['composite_interval_95'][1]:.3f}",
        "slice 5 of 8, largest tumor",
        "lr 0.0005",
    ):
        assert text in page.text, text
    for name in ("tk_dice", "tu_dice", "composite"):
        assert f" {found.summary['scores'][name]['mean']:.3f} " in page.text
    assert page.count("svg", **{"class": "chart"}) == 1
    assert page.count("svg", **{"class": "slice"}) == 2
    # worst composite first, in table and pictures
    assert found.rows[1]["composite"] < found.rows[0]["composite"]
    assert re.findall(r"<figcaption><b>(.*?)</b>", page.source) == ["case_00001", "case_00000"]
    assert re.findall(r"<th scope='row' data-v='(.*?)'", page.source) == ["case_00001", "case_00000"]
    cells = re.search(r"data-v='case_00001'>.*?</tr>", page.source).group()
    assert [float(value) for value in re.findall(r"<td data-v='(.*?)'", cells)] == pytest.approx(
        [value for key, value in sorted_as_page(found.rows[1])], rel=1e-6
    )


def sorted_as_page(row):
    order = "composite tk_dice tu_dice kidney_label_dice kidney_precision kidney_recall truth_kidney_ml"
    order += " predicted_kidney_ml tumor_precision tumor_recall truth_tumor_ml predicted_tumor_ml"
    return [(key, row[key]) for key in order.split()]


def test_page_loads_nothing(project):
    evaluate(project, project / "scores.csv", run=str(project / "run"))
    write_report(project / "scores.csv", project / "report.html")
    page = Page(project / "report.html")
    for _, attributes in page.tags:
        for key in ("src", "href", "action", "data", "poster"):
            assert attributes.get(key, "data:").startswith("data:")
    assert "http" not in page.source
    assert "url(" not in page.source
    assert "@import" not in page.source
    assert page.count("script") == 1
    assert (project / "report.html").stat().st_size < 100_000


def test_run_folder_without_scores_says_how_to_get_them(project):
    write_report(project / "run", project / "report.html")
    page = Page(project / "report.html")
    assert f"No scores yet: there is no {project / 'run' / 'scores.csv'}" in page.text
    assert "kitsseg evaluate" in page.text
    assert page.count("svg", **{"class": "chart"}) == 1
    assert page.count("figure") == 0
    assert "Phantom results" in page.text


def test_run_folder_with_scores_shows_them(project):
    evaluate(project, project / "run" / "scores.csv")
    write_report(project / "run", project / "report.html")
    page = Page(project / "report.html")
    assert page.count("figure") == 2
    assert page.count("svg", **{"class": "chart"}) == 1


def test_missing_run_is_said(project):
    evaluate(project, project / "scores.csv", run=str(project / "run"))
    shutil.rmtree(project / "run")
    write_report(project / "scores.csv", project / "report.html")
    page = Page(project / "report.html")
    assert f"No training curves: the run folder {project / 'run'} is no longer there." in page.text
    assert page.count("svg", **{"class": "chart"}) == 0
    (project / "predictions" / "predictions.json").unlink()
    evaluate(project, project / "scores.csv")
    write_report(project / "scores.csv", project / "report.html")
    assert "the predictions were not made by kitsseg predict" in Page(project / "report.html").text


def test_real_data_carry_no_phantom_sentence(project):
    shutil.rmtree(project / "run")
    make_run(project / "run", phantom=False)
    evaluate(project, project / "scores.csv", run=str(project / "run"), phantom=False)
    write_report(project / "scores.csv", project / "report.html")
    text = Page(project / "report.html").text
    assert "hantom" not in text
    assert "not a medical device" in text


def test_missing_and_damaged_pictures_are_said(project):
    (project / "truth" / "case_00000" / "imaging.nii.gz").unlink()
    evaluate(project, project / "scores.csv")
    image = project / "truth" / "case_00001" / "imaging.nii.gz"
    image.write_bytes(image.read_bytes()[:-30])
    write_report(project / "scores.csv", project / "report.html")
    text = Page(project / "report.html").text
    assert "No picture: no CT lies beside" in text
    assert f"No picture: {image}: damaged" in text
    image.unlink()
    write_report(project / "scores.csv", project / "report.html")
    assert f"No picture: {image} is no longer there." in Page(project / "report.html").text


def test_bad_sources(project):
    evaluate(project, project / "scores.csv")
    with pytest.raises(InputError, match=r"expected the name of an \.html file"):
        write_report(project / "scores.csv", project / "report.txt")
    with pytest.raises(InputError, match="found nothing"):
        write_report(project / "absent", project / "report.html")
    with pytest.raises(InputError, match=r"no run\.json"):
        write_report(project / "predictions", project / "report.html")
    text = (project / "scores.csv").read_text()
    value = text.splitlines()[1].split(",")[1]
    (project / "scores.csv").write_text(text.replace(value, "0.5", 1))
    with pytest.raises(InputError, match="mean of tk_dice"):
        read_scores(project / "scores.csv")
    (project / "scores.csv").write_text(text.splitlines()[0] + "\n")
    with pytest.raises(InputError, match="0 cases"):
        read_scores(project / "scores.csv")
    (project / "scores.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="expected the scores of kitsseg evaluate"):
        read_scores(project / "scores.csv")
    (project / "scores.json").unlink()
    with pytest.raises(InputError, match=r"scores\.json: expected the summary"):
        read_scores(project / "scores.csv")
    assert not (project / "report.html").exists()


def parse_path(path):
    """Closed polygons (x, y) in half pixels."""
    assert re.fullmatch(r"(M-?\d+ -?\d+(L-?\d+ -?\d+)+Z)*", path)
    return [
        np.array([point.split() for point in part.split("L")], int) for part in re.findall(r"M([^Z]*)Z", path)
    ]


@pytest.mark.parametrize("seed", range(4))
def test_outline_goes_between_inside_and_outside(seed):
    rng = np.random.default_rng(seed)
    mask = np.kron(rng.random((5, 6)) > 0.5, np.ones((2, 3), bool))  # with holes and touching the border
    filled = np.zeros(mask.shape, bool)
    for polygon in parse_path(outline(mask)):
        # pixel centers in half pixels are 1, 3, 5, ...: in units of pixels x / 2 - 0.5
        filled ^= polygon2mask(mask.shape, polygon[:, ::-1] / 2 - 0.5)
    np.testing.assert_array_equal(filled, mask)


def test_outline_of_one_pixel_and_of_nothing():
    mask = np.zeros((3, 4), bool)
    assert outline(mask) == ""
    mask[1, 2] = True  # center x = 2.5, y = 1.5 pixels; the outline passes half a pixel away on each side
    (polygon,) = parse_path(outline(mask))
    assert {tuple(point) for point in polygon} == {(4, 3), (6, 3), (5, 2), (5, 4)}


def test_slice_picture_geometry_and_gray_values():
    image = np.full((10, 20), -160)
    image[5, 7] = 240
    image[0, 0] = 40  # the middle of the window
    image[9, 19] = 3000
    truth = np.zeros((10, 20), np.uint8)
    truth[2:8, 4:9] = 1
    truth[3:5, 5:7] = 2
    svg = ET.fromstring(show_slice(image, truth, truth * (truth == 1), (2.0, 0.5)))
    assert [float(v) for v in svg.get("viewBox").split()] == [0, 0, 20 * 0.5, 10 * 2.0]
    picture, group = svg
    assert picture.get("transform") == "scale(0.5 2)"  # columns, rows
    assert group.get("transform") == "scale(0.25 1)"  # half of it: outlines count in half pixels
    with Image.open(io.BytesIO(base64.b64decode(picture.get("href").split(",")[1]))) as png:
        gray = np.asarray(png)
    assert gray.shape == (10, 20)
    assert (gray[5, 7], gray[9, 19], gray[1, 1]) == (255, 255, 0)
    assert gray[0, 0] in (127, 128)
    assert [path.get("class") for path in group] == ["truth kidney", "truth tumor", "prediction kidney"]
    (kidney,) = parse_path(group[0].get("d"))
    assert (kidney.min(axis=0).tolist(), kidney.max(axis=0).tolist()) == ([8, 4], [18, 16])


def test_choice_of_slice():
    labels = np.zeros((6, 4, 4), np.uint8)
    nothing = labels.copy()
    assert choose_slice(nothing, nothing) == (3, "empty truth and prediction: the middle")
    labels[1] = 1
    assert choose_slice(nothing, labels)[0] == 1
    labels[4, :2] = 1
    assert choose_slice(labels, nothing)[0] == 1  # 16 of kidney against 8
    labels[4, 0, 0] = 2
    assert choose_slice(labels, nothing) == (4, "largest tumor")


def epoch(loss, val_loss=None, rate=1e-3, phase="train"):
    row = {"phase": phase, "epoch": 1, "learning_rate": rate, "loss": loss}
    return row if val_loss is None else row | {"val_loss": val_loss}


def line_points(svg, style):
    path = ET.fromstring(svg).find(f"path[@class='line {style}']")
    return np.array([point.split() for point in path.get("d")[1:].split("L")], float)


def test_chart_is_linear_for_a_small_range():
    svg = training_chart([epoch(1.0, 2.0), epoch(0.5, 1.5), epoch(0.25)])
    points = line_points(svg, "a")
    # equal steps to the right; the drop 1 -> 0.5 is twice the drop 0.5 -> 0.25, and down is larger y
    assert points[2, 0] - points[1, 0] == pytest.approx(points[1, 0] - points[0, 0], abs=0.11)
    assert points[1, 1] - points[0, 1] == pytest.approx(2 * (points[2, 1] - points[1, 1]), abs=0.31)
    assert points[1, 1] > points[0, 1]
    assert len(line_points(svg, "b")) == 2  # the epoch without a value is no point
    assert "(log)" not in svg


def test_chart_is_logarithmic_for_a_large_range():
    svg = training_chart([epoch(10.0), epoch(1.0), epoch(0.1)])
    points = line_points(svg, "a")
    assert points[1, 1] - points[0, 1] == pytest.approx(points[2, 1] - points[1, 1], abs=0.21)
    assert "(log)" in svg
    assert "line b" not in svg


def test_chart_marks_drops_and_phases():
    history = [
        epoch(1.0),
        epoch(0.9),
        epoch(0.8, rate=5e-4),
        epoch(0.7, rate=1e-3),
        epoch(0.6, phase="prune <1>"),
    ]
    svg = training_chart(history)
    root = ET.fromstring(svg)
    assert len(root.findall("path[@class='drop']")) == 1  # a rise is no drop
    assert len(root.findall("path[@class='phase']")) == 1
    assert {"train, lr 0.001", "prune <1>, lr 0.001", "lr 0.0005"} <= {
        text.text for text in root.findall("text")
    }
    cosine = training_chart([epoch(1.0, rate=1e-3 / (i + 1)) for i in range(50)])
    assert 'path class="drop"' not in cosine
    assert "learning rate 0.001 to 2e-05, 49 drops" in cosine


def test_chart_of_one_epoch_and_of_none():
    assert len(line_points(training_chart([epoch(0.5)]), "a")) == 1
    for history in ([], [epoch(float("nan"))]):
        assert training_chart(history) == "<p>No epoch with a finite loss has been recorded.</p>"
