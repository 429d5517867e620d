"""The report page: complete in itself, right numbers, outlines where the labels are."""

import base64
import csv
import html.parser
import io
import json
import re
import shutil
import xml.etree.ElementTree as ET

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from skimage.draw import polygon2mask

from kitsseg import recipes
from kitsseg.data.formats.nifti import read_labels, write_image
from kitsseg.errors import InputError
from kitsseg.labels.outlines import COLORS, contours
from kitsseg.report.charts import dice_plot, training_chart
from kitsseg.report.pictures import case_picture, show_plane
from kitsseg.report.report import PICTURES_BYTES, write_preview, write_report
from kitsseg.report.sections import CLAIMS, claims, tumors
from kitsseg.report.views import ShownCase, View, case_views, choose_point, choose_slices
from kitsseg.scoring.evaluate import evaluate_folders
from kitsseg.scoring.ladder import RUNGS
from kitsseg.scoring.scores_file import read_scores

MM = (4.0, 2.0, 1.5)
SHAPE = (8, 60, 72)
VOID = {"meta", "link", "br", "img", "input"}


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
        recipe="unet2d",
        split=split,
        phantom=True,
    )
    seen = []
    write_report(project / "scores.csv", project / "report.html", lambda *step: seen.append(step))
    assert seen == [("draw", i, 2) for i in range(3)]
    page = Page(project / "report.html")
    for text in (
        "unet2d",
        "A <paper> & more",
        "kidney Dice <i>",
        "0.91",
        "80-10-10",
        "cafe01",
        "2 train, 1 test",
        "keras 3.12.0",
        "Phantom results: ",
        "not a medical device",
        "predicting nothing at all",
        f"{found.summary.beside_all_background.all_background['pixel_accuracy']:.4f}",
        f"{found.summary.composite_interval_95[0]:.3f} to {found.summary.composite_interval_95[1]:.3f}",
        "axial, slice 5 of 8",
        "coronal, row 26 of 60",
        "sagittal, column 13 of 72",
        "true tumor is largest",
        *(rung.name for rung in RUNGS.values()),
        *(rung.definition for rung in RUNGS.values()),
        "lr 0.0005",
    ):
        assert text in page.text, text
    for name in ("tk_dice", "tu_dice", "composite"):
        assert f" {getattr(found.summary.scores, name).mean:.3f} " in page.text
    assert page.count("svg", **{"class": "chart"}) == 1
    assert page.count("svg", **{"class": "chart spread"}) == 1
    # all 8 slices of each case, and two more planes
    assert page.count("svg", **{"class": "slice"}) == 2 * (8 + 2)
    # worst composite first, in table and pictures
    assert found.rows[1]["composite"] < found.rows[0]["composite"]
    assert re.findall(r"<figcaption><b>(.*?)</b>", page.source) == ["case_00001", "case_00000"]
    assert re.findall(r'<th scope="row" data-v="(.*?)"', page.source) == ["case_00001", "case_00000"]
    cells = re.search(r'data-v="case_00001">.*?</tr>', page.source).group()
    assert [float(value) for value in re.findall(r'<td data-v="(.*?)"', cells)] == pytest.approx(
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
            assert attributes.get(key, "data:").startswith(("data:", "#"))
    assert "http" not in page.source
    assert "url(" not in page.source
    assert "@import" not in page.source
    assert page.count("script") == 1
    assert (project / "report.html").stat().st_size < 100_000


def test_run_folder_without_scores_says_how_to_get_them(project):
    write_report(project / "run", project / "report.html")
    page = Page(project / "report.html")
    assert re.search(rf"No scores.* {project / 'run' / 'scores.csv'}", page.text)
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
    assert re.search(rf"No training curves: .* {project / 'run'} is no longer there", page.text)
    assert page.count("svg", **{"class": "chart"}) == 0
    (project / "predictions" / "predictions.json").unlink()
    evaluate(project, project / "scores.csv")
    write_report(project / "scores.csv", project / "report.html")
    assert re.search("not made by .*predict", Page(project / "report.html").text)


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
    assert "No picture: no CT" in text
    assert f"No picture: {image}: damaged" in text
    image.unlink()
    write_report(project / "scores.csv", project / "report.html")
    assert f"No picture: {image} is no longer there." in Page(project / "report.html").text


def test_bad_sources(project):
    evaluate(project, project / "scores.csv")
    with pytest.raises(InputError, match=r"report\.txt: .*\.html file"):
        write_report(project / "scores.csv", project / "report.txt")
    with pytest.raises(InputError, match="found nothing"):
        write_report(project / "absent", project / "report.html")
    with pytest.raises(InputError, match=r"predictions: expected .* neither run\.json nor predictions\.json"):
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
    with pytest.raises(InputError, match=r"scores\.csv: .*scores of kitsseg evaluate"):
        read_scores(project / "scores.csv")
    (project / "scores.json").unlink()
    with pytest.raises(InputError, match=r"scores\.json: expected the summary"):
        read_scores(project / "scores.csv")
    assert not (project / "report.html").exists()


def parse_path(path):
    """Closed polygons (x, y) in half pixels, from a first corner and the steps to the next ones."""
    number = r"-?\d+ ?"
    assert re.fullmatch(rf"(M({number}){{2}}l(({number}){{2}})+z)*", path)
    parts = re.findall(r"M([^l]*)l([^z]*)z", path)
    return [
        np.cumsum(
            np.array([int(n) for part in pair for n in re.findall(r"-?\d+", part)]).reshape(-1, 2), axis=0
        )
        for pair in parts
    ]


def decoded(image):
    """Gray values of an embedded picture."""
    with Image.open(io.BytesIO(base64.b64decode(image.get("href").split(",")[1]))) as picture:
        return np.asarray(picture.convert("L")).astype(int)


@pytest.mark.parametrize("seed", range(4))
def test_outline_goes_between_inside_and_outside(seed):
    rng = np.random.default_rng(seed)
    mask = np.kron(rng.random((5, 6)) > 0.5, np.ones((2, 3), bool))  # with holes and touching the border
    filled = np.zeros(mask.shape, bool)
    for polygon in contours(mask):
        # pixel centers in half pixels are 1, 3, 5, ...: in units of pixels x / 2 - 0.5
        filled ^= polygon2mask(mask.shape, polygon[:, ::-1] / 2 - 0.5)
    np.testing.assert_array_equal(filled, mask)


def test_outline_of_one_pixel_and_of_nothing():
    mask = np.zeros((3, 4), bool)
    assert contours(mask) == []
    mask[1, 2] = True  # center x = 2.5, y = 1.5 pixels; the outline passes half a pixel away on each side
    (polygon,) = contours(mask)
    assert {tuple(point) for point in polygon} == {(4, 3), (6, 3), (5, 2), (5, 4)}


def test_picture_geometry_and_gray_values():
    image = np.full((40, 64), -160)
    image[8:24, 16:48] = 240
    image[24:, :] = 40  # the middle of the window
    image[32:, 32:] = 3000
    truth = np.zeros((40, 64), np.uint8)
    truth[2:8, 4:9] = 1
    truth[3:5, 5:7] = 2
    view = View("axial", "slice 1 of 2", image, truth, truth * (truth == 1), (2.0, 0.5))
    svg = ET.fromstring(show_plane(view))
    assert [float(v) for v in svg.get("viewBox").split()] == [0, 0, 64 * 0.5, 40 * 2.0]
    picture, group = svg
    assert picture.get("transform") == "scale(0.5 2)"  # columns, rows
    assert group.get("transform") == "scale(0.25 1)"  # half of it: outlines count in half pixels
    gray = decoded(picture)
    assert gray.shape == (40, 64)
    for at, expected in (((12, 30), 255), ((36, 50), 255), ((2, 2), 0), ((28, 8), 127)):
        assert abs(gray[at] - expected) <= 6  # WebP
    assert [path.get("class") for path in group] == ["truth kidney", "truth tumor", "prediction kidney"]
    (kidney,) = parse_path(group[0].get("d"))
    assert (kidney.min(axis=0).tolist(), kidney.max(axis=0).tolist()) == ([8, 4], [18, 16])


def test_choice_of_planes():
    labels = np.zeros((6, 4, 5), np.uint8)
    nothing = labels.copy()
    assert choose_point(nothing, nothing) == ((3, 2, 2), "empty truth and prediction: in the middle")
    labels[1] = 1
    assert choose_point(nothing, labels)[0][0] == 1
    labels[4, :2] = 1
    assert choose_point(labels, nothing)[0][0] == 1  # 20 of kidney against 10
    labels[4, 1, 2:5] = 2
    labels[3:5, 1, 4] = 2
    # tumor: slice 4 holds 3 of 4 voxels, row 1 all, column 4 two
    assert choose_point(labels, nothing) == ((4, 1, 4), "where the true tumor is largest")
    labels[labels == 2] = 3  # a cyst is no tumor
    assert choose_point(labels, nothing)[0][0] == 1


def test_planes_show_the_right_voxels(project):
    evaluate(project, project / "scores.csv")
    _, summary = read_scores(project / "scores.csv")
    files = summary.cases["case_00000"]
    found = case_views(ShownCase(files.image, files.prediction, files.truth))
    truth = read_labels(files.truth).array
    # the tumor: slice 4, rows 25 to 29, columns 12 to 21
    assert [view.where for view in found.planes] == ["slice 5 of 8", "row 26 of 60", "column 13 of 72"]
    for view, plane, spacing in zip(
        found.planes, (truth[4], truth[:, 25], truth[:, :, 12]), ((2.0, 1.5), (4.0, 1.5), (4.0, 2.0))
    ):
        # all foreground of the plane is in the picture, and voxels keep their size
        assert [np.sum(view.truth == label) for label in (1, 2)] == [
            np.sum(plane == label) for label in (1, 2)
        ]
        assert view.hu.shape == view.truth.shape == view.prediction.shape
        assert view.spacing_mm == pytest.approx(spacing)
        assert (view.hu[view.truth == 0] < 0).all()
    assert found.outside_ml == 0.0


def test_slices_go_through_both_kidneys_and_densely_through_the_tumor():
    # kidneys in slices 20 to 99, tumor in 40 to 51: 6 of 18 slices for the tumor
    slices = choose_slices((20, 99), (40, 51), 45, 18, 150)
    assert (slices[0], slices[-1], len(slices)) == (20, 99, 18)
    assert 45 in slices and sum(40 <= k <= 51 for k in slices) >= 6
    assert max(np.diff(slices)) <= 10
    # a kidney of 4 slices: those above and below as well, nine in all; at the edge of a scan as many as there are
    assert choose_slices((30, 33), None, 31, 9, 60) == [*range(27, 36)]
    assert choose_slices((0, 3), (1, 1), 1, 3, 60) == [*range(9)]
    assert choose_slices((56, 59), (57, 58), 57, 9, 60) == [*range(51, 60)]
    assert choose_slices((2, 5), (4, 4), 4, 9, 8) == [*range(8)]
    # never fewer than nine, always in order, always the slice that was asked for
    for point in range(40):
        slices = choose_slices((0, 39), (point, point), point, 1, 40)
        assert len(slices) == 9 and slices == sorted(set(slices)) and point in slices


@pytest.mark.parametrize("axes", ["RAS", "LAS", "LPS", "RPS", "IPL", "SAR"])
def test_the_right_of_the_patient_lies_at_the_left_of_the_picture(tmp_path, axes):
    """Of files with left- and right-handed axes: a bright kidney at the patient's right, all else dark."""
    ras = np.full((24, 20, 12), -90, np.int16)  # axes to right, anterior, superior
    ras[16:22, 4:9, 3:9] = 200  # the right
    labels = (ras == 200).astype(np.uint8)
    codes = nib.orientations.axcodes2ornt(axes)
    for name, array in (("image", ras), ("prediction", labels)):
        file = nib.Nifti1Image(array, np.diag([4.0, 4, 4, 1]))
        there = nib.orientations.ornt_transform(nib.io_orientation(file.affine), codes)
        nib.save(file.as_reoriented(there), tmp_path / f"{name}.nii.gz")
    case = ShownCase(str(tmp_path / "image.nii.gz"), str(tmp_path / "prediction.nii.gz"))
    found = case_views(case, 12)
    for view in (found.axial[found.start], found.coronal):
        assert view.sides == ("R", "L")
        columns = np.flatnonzero((view.hu > 0).any(axis=0))
        assert columns.max() < view.hu.shape[1] / 2
    assert found.sagittal.sides == ("A", "P")
    rows = np.flatnonzero((found.axial[found.start].hu > 0).any(axis=1))
    assert (
        rows.min() > found.axial[found.start].hu.shape[0] / 2
    )  # rows 4 to 8 of 20 from posterior: the lower half
    html = case_picture(case, "one", 1 << 20).html
    marks = re.findall(r'<span class="side (\w+)">(\w)</span>', html)
    axial = 2 * len(found.axial)
    assert marks[:axial] == [("left", "R"), ("right", "L")] * len(found.axial)
    assert marks[axial:] == [("left", "R"), ("right", "L"), ("left", "A"), ("right", "P")]


def write_noise(tmp_path, shape=(12, 96, 80)):
    """A case of noise, which no coding makes small, with a kidney in every slice."""
    rng = np.random.default_rng(0)
    labels = np.zeros(shape, np.uint8)
    labels[:, 20:70, 10:60] = 1 + (rng.random((shape[0], 50, 50)) > 0.7)
    write_image(tmp_path / "image.nii.gz", rng.integers(-160, 240, shape).astype(np.int16), MM)
    write_image(tmp_path / "labels.nii.gz", labels, MM)
    labels_file = str(tmp_path / "labels.nii.gz")
    return ShownCase(str(tmp_path / "image.nii.gz"), labels_file, labels_file)


def test_pictures_keep_within_their_bytes(tmp_path):
    case = write_noise(tmp_path)
    whole = case_picture(case, "noise", 10 << 20).html
    assert whole.count('class="one') == 12
    for limit in (150_000, 60_000):
        html = case_picture(case, "noise", limit).html
        assert len(html) < limit + 10_000 < len(whole)
        slices = html.count('class="one')
        assert 1 <= slices <= 12 and html.count('class="one start"') == 1
        assert f'max="{slices - 1}"' in html
    assert PICTURES_BYTES < 4_500_000  # of 5 MB: the rest is for tables and charts


def test_every_picture_says_what_it_shows_and_hostile_names_stay_text(tmp_path):
    name = "\"><img src=x onerror='alert(1)'>{{ 7 * 7 }}"
    path = tmp_path / "page.html"
    path.write_text(case_picture(write_noise(tmp_path), name, 1 << 20).html, encoding="utf-8")
    page = Page(path)
    assert page.count("img") == 0
    pictures = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(pictures) == 12 + 2
    for attributes in pictures:
        assert attributes["role"] == "img"
        assert name in attributes["aria-label"] and "truth tumor" in attributes["aria-label"]
    assert (
        "axial CT of" in pictures[0]["aria-label"]
        and "slice 1 of 12; R at the left" in pictures[0]["aria-label"]
    )


def test_found_means_a_tenth_of_the_volume(project):
    """78 ml of which 5.7 ml are labeled: missed, although its Dice is not 0. 7.8 of 78 ml: found."""
    evaluate(project, project / "scores.csv")
    rows, summary = read_scores(project / "scores.csv")
    first, second = (dict(row) for row in rows)
    first |= {"truth_tumor_ml": 78.0, "tumor_recall": 5.7 / 78, "tu_dice": 0.13}
    second |= {"truth_tumor_ml": 78.0, "tumor_recall": 0.1}
    found = tumors([first, second], summary)
    assert [(row.case, row.found) for row in found.rows] == [("case_00000", False), ("case_00001", True)]
    assert (found.found, found.missed_cases) == (1, ["case_00000"])
    assert (found.ml, found.labeled_ml) == pytest.approx((156, 5.7 + 7.8))
    assert "10 %" in found.rule
    # a case without tumor has none to be missed
    assert tumors([first | {"truth_tumor_ml": 0.0, "tumor_recall": 1.0}], summary).rows == []


def test_a_page_with_a_missed_tumor_says_so_wherever_it_speaks_of_it(project):
    labels = read_labels(project / "truth" / "case_00001" / "segmentation.nii.gz").array.copy()
    tumor = np.argwhere(labels == 2)  # of 50 voxels 4 are labeled, less than a tenth
    labels[tuple(tumor[4:].T)] = 1
    write_image(project / "predictions" / "prediction_00001.nii.gz", labels, MM)
    for surface in (False, True):
        evaluate_folders(project / "predictions", project / "truth", project / "scores.csv", surface=surface)
        write_report(project / "scores.csv", project / "report.html")
        page = Page(project / "report.html")
        assert "1 of 2 tumors were found" in page.text
        assert "Tumor missed: 1 case_00001" in page.text
        assert "tumor 0.6 ml, 0.0 ml of it labeled" in page.text  # 50 voxels of 12 mm3, and 4 of them
        assert page.count("figure", **{"class": "missed"}) == 1
        assert page.text.count("at least 10 % of") == 1  # defined once
        assert "no tumor was missed" not in page.text and "tumor was found" not in page.text


def test_predictions_without_truth_are_shown(project):
    files = {
        name: {
            "file": f"prediction_{name[-5:]}.nii.gz",
            "image": f"../truth/{name}/imaging.nii.gz",
            "source": {"bytes": 1, "modified_ns": 1, "ends_sha256": ""},
            "crc32": "0",
            "phantom": False,
            "doubts": ["The slices are 4 mm <apart>."] if name == "case_00001" else [],
        }
        for name in ("case_00000", "case_00001")
    }
    record = {
        "kitsseg": "0.1.0",
        "run": "../run",
        "networks": [{"sha256": "0", "inference": {}}],
        "engine": "litert",
        "inference": {"tile": None, "mirror_axes": []},
        "postprocess": None,
        "recipe": "unet2d",
        "split": {"name": None, "hash": None, "part": None},
        "phantom": False,
        "cases": files,
        "failed": {"case_00009": {"image": "x", "reason": "x: <damaged>"}},
    }
    folder = project / "predictions"
    (folder / "predictions.json").write_text(json.dumps(record))
    write_report(folder, project / "report.html")
    page = Page(project / "report.html")
    for text in (
        "predicted tumor is largest",
        "2 scans segmented, 1 failed",
        "The slices are 4 mm <apart>.",
        "failed: x: <damaged>",
        "trained on synthetic patients",
        "kidney with tumor 19.2 ml",  # 4 x 20 x 20 voxels of 12 mm3
        "engine litert",
        "not a medical device",
    ):
        assert text in page.text, text
    assert page.count("figure") == 2
    assert re.findall(r"<figcaption><b>(.*?)</b>", page.source) == [
        "case_00001",
        "case_00000",
    ]  # doubts first
    assert not re.search(r'class="truth', page.source)
    assert "Scores" not in page.text and page.count("input", id="show-truth") == 0


def test_figures_of_a_paper_stand_beside_its_own_recipe_only():
    reported = {"leaderboard TU Dice": 0.8}
    for recipe, networks, shown in (
        ("unet2d", ["unet2d", "unet2d"], True),
        ("wp_unet:squeeze", [], True),  # a row of the paper's tables, with its own figures
        ("unet2d:tiny", ["unet2d:tiny"], False),
        ("unet2d:practical", [], False),
        ("unet2d", ["unet2d", "wp_unet"], False),
    ):
        found = claims(reported, None, recipe, networks)
        assert bool(found.rows) is shown and bool(found.why_not) is not shown
    assert claims({}, None, "unet2d", []) is None


def test_plot_of_scores():
    rows = [{"case": f"<{i}>", "tk_dice": 0.9, "tu_dice": i / 4, "composite": 0.5} for i in range(5)]
    root = ET.fromstring(dice_plot(rows))
    circles = root.findall("circle")
    assert len(circles) == 3 * 5
    places = {(circle.get("cx"), circle.get("cy")) for circle in circles}
    assert len(places) == 15  # equal values do not hide one another
    # TU from 0 to 1: 110 to 740 of the width; the median 0.5 between them, the box from 0.25 to 0.75
    tumor = sorted(float(circle.get("cx")) for circle in circles[5:10])
    assert tumor == pytest.approx([110, 267.5, 425, 582.5, 740], abs=0.06)
    box = root.findall("rect")[1]
    assert (float(box.get("x")), float(box.get("width"))) == pytest.approx((267.5, 315), abs=0.06)
    assert circles[5].find("title").text == "<0>: 0.000"
    assert len(ET.fromstring(dice_plot(rows[:1])).findall("circle")) == 3


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
        assert re.fullmatch("<p>No epoch .*finite loss.*</p>", training_chart(history))


def test_claims_of_the_papers_stand_beside_ours_where_the_definition_is_the_same(project):
    reported = {"leaderboard TK Dice": 0.858, "validation Dice": 0.9599, "parameters": 560000}
    found = evaluate(project, project / "scores.csv", reported=reported, phantom=True)
    write_report(project / "scores.csv", project / "report.html")
    section = re.search(
        r"<h2>What the paper reports.*?</section>", Page(project / "report.html").source, re.S
    ).group()
    rows = dict(re.findall(r'<th scope="row">(.*?)</th>(.*?)</tr>', section))
    ours = f"{found.summary.scores.tk_dice.mean:.3f}"
    assert re.findall(r">([\d.-]+)<", rows["leaderboard TK Dice"]) == ["0.858", ours, "0.000"]
    assert "not defined in" in rows["validation Dice"]
    assert "no score of" in rows["parameters"]
    assert "on phantoms: not comparable" in section
    evaluate(project, project / "scores.csv", reported=reported, phantom=False)
    assert "here, same definition" in Page(write_report(project / "scores.csv", project / "real.html")).source


def test_how_scans_were_predicted_in_words(project):
    for how, words in (
        ({"tile": None, "mirror_axes": []}, "whole slices, no mirrored .*"),
        (
            {"tile": [224, 224], "mirror_axes": [0, 1]},
            "tiles of 224 x 224, mean .*mirrored along 2 axes",
        ),
        ({"tile": None, "mirror_axes": [], "coarse": False}, "whole slices, no mirrored [^,]*"),
        (
            {"tile": None, "mirror_axes": [], "coarse": True},
            "whole slices, no mirrored .*, .*region .*coarse pass.*",
        ),
        ({"tile": None, "mirror_axes": [], "later": 3}, "whole slices, no mirrored .*, later 3"),
    ):
        evaluate(project, project / "scores.csv", inference=how)
        page = Page(write_report(project / "scores.csv", project / "report.html")).source
        assert re.search(f"<dt>inference</dt><dd>{words}</dd>", page)


@pytest.mark.parametrize("name", ["wp_unet", "squeeze_unet", "enhanced_unet", "deeplab3d", "unet2d"])
def test_claims_are_what_the_recipes_report(name):
    reported = recipes.get(name).reported
    named = [key for key in reported if key in CLAIMS]
    assert named
    assert {CLAIMS[key] for key in named} <= set(RUNGS)
    # a figure per label or of a leaderboard has a counterpart; only WP-UNet does not say which Dice it means
    without = {key for key in reported if "Dice" in key and key not in CLAIMS}
    assert without == ({"training Dice", "validation Dice"} if name == "wp_unet" else set())


def test_failures_are_listed(project):
    shutil.copytree(project / "truth" / "case_00001", project / "truth" / "case_00002")
    empty = np.zeros(SHAPE, np.uint8)
    empty[2:6, 20:40, 10:30] = 1
    write_image(project / "predictions" / "prediction_00001.nii.gz", empty, MM)
    evaluate(
        project, project / "scores.csv", failed={"case_00009": {"reason": "case_00009.nii.gz: <damaged>"}}
    )
    write_report(project / "scores.csv", project / "report.html")
    page = Page(project / "report.html")
    for text in (
        "Prediction failed: 1 case_00009: case_00009.nii.gz: <damaged>",
        "1 of the cases with a truth: case_00002",
        "case_00001: predicted tumor",
        "Tumor missed: 1 case_00001",
    ):
        assert text in page.text, text


def test_surfaces_and_lesions_are_shown_where_they_were_asked_for(project):
    found = evaluate_folders(project / "predictions", project / "truth", project / "scores.csv", surface=True)
    write_report(project / "scores.csv", project / "report.html")
    text = Page(project / "report.html").text
    values = found.summary.surface.classes["tumor"]
    assert f"tumor {values.surface_dice.mean:.3f} 1.150 {values.hd95_mm.mean:.2f} 2 of 2" in text
    assert "2 of 2 tumors were found; 0 of 2 predicted ones are false." in text
    evaluate(project, project / "scores.csv")
    write_report(project / "scores.csv", project / "report.html")
    assert "Surface Dice" not in Page(project / "report.html").text


def test_pruned_runs_show_their_zeros(project):
    evaluate(project, project / "scores.csv", run=str(project / "run"))
    lines = [
        "weights,shape,pruned,size,zeros,sparsity",
        "a/kernel,3x3x1x8,yes,72,36,0.5",
        "b/kernel,8x3,no,24,0,0.0",
    ]
    (project / "run" / "sparsity.csv").write_text("\n".join(lines) + "\n")
    write_report(project / "scores.csv", project / "report.html")
    text = Page(project / "report.html").text
    assert "1 of 2 weight matrices are pruned: 36 of their 72 weights are zero (50.0 %)." in text
    assert "a/kernel 3x3x1x8 72 36 0.5000 yes" in text
    for damaged in (lines[0] + "\na,3,yes,72,73,0.5", "layer,sparsity\na,0.5", lines[0] + "\na,3,yes"):
        (project / "run" / "sparsity.csv").write_text(damaged + "\n")
        with pytest.raises(InputError, match=r"sparsity\.csv: .*row.* weight matrix"):
            write_report(project / "scores.csv", project / "report.html")


def test_many_cases_show_the_worst_and_the_best(project):
    for i in range(2, 12):
        shutil.copytree(project / "truth" / "case_00000", project / "truth" / f"case_{i:05d}")
        labels = read_labels(project / "truth" / "case_00000" / "segmentation.nii.gz").array
        write_image(project / "predictions" / f"prediction_{i:05d}.nii.gz", np.roll(labels, i, axis=1), MM)
    found = evaluate(project, project / "scores.csv")
    write_report(project / "scores.csv", project / "report.html")
    page = Page(project / "report.html")
    ordered = [row["case"] for row in sorted(found.rows, key=lambda row: (row["composite"], row["case"]))]
    assert re.findall(r"<figcaption><b>(.*?)</b>", page.source) == ordered[:6] + ordered[-3:]
    assert re.search("worst .*best of 12 by composite", page.text)
    assert (project / "report.html").stat().st_size < 5 << 20


def test_preview_of_one_case(project):
    evaluate(project, project / "scores.csv")
    assert write_preview(project / "scores.csv", project / "worst.png") == "case_00001"
    assert write_preview(project / "scores.csv", project / "one.png", "case_00000") == "case_00000"
    with Image.open(project / "one.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    # 8 slices of 4 mm, 60 rows of 2 mm, 72 columns of 1.5 mm are smaller than the window: everything is shown,
    # (72 * 1.5 + 72 * 1.5 + 60 * 2) mm wide at 2 pixels, with four gaps of 12
    assert picture.size[0] == 2 * (108 + 108 + 120) + 4 * 12
    colors = {"#" + bytes(color).hex().upper() for color in np.unique(pixels, axis=0)}
    assert set(COLORS.values()) <= colors
    with pytest.raises(InputError, match=r"expected case_9 among its 2 cases, found case_00000, case_00001"):
        write_preview(project / "scores.csv", project / "one.png", "case_9")
    with pytest.raises(InputError, match=r"\.png file"):
        write_preview(project / "scores.csv", project / "one.jpg")
    (project / "truth" / "case_00000" / "imaging.nii.gz").unlink()
    with pytest.raises(InputError, match=r"imaging\.nii\.gz is no longer"):
        write_preview(project / "scores.csv", project / "two.png", "case_00000")
    assert not (project / "two.png").exists()


def leaves(value, path=()):
    """(path, value) of everything inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key), item
        yield from leaves(item, (*path, key))


def changed(value, path, new):
    value = json.loads(json.dumps(value))
    inner = value
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = new
    return value


def test_edited_summaries_are_refused_in_one_line_or_shown(project):
    """Every entry of scores.json and run.json replaced by other things: a page, or one InputError naming the file."""
    evaluate_folders(project / "predictions", project / "truth", project / "plain.csv")
    record = {"run": str(project / "run"), "split": {"name": "s", "hash": "h"}, "reported": {"x": 1.0}}
    record |= {"failed": {"case_1": {"reason": "why"}}, "inference": {"tile": None}}
    (project / "predictions" / "predictions.json").write_text(json.dumps(record))
    for row in ("case_00000", "case_00001"):  # without pictures the page is quick
        (project / "truth" / row / "imaging.nii.gz").unlink()
    scores = project / "scores.csv"
    evaluate_folders(project / "predictions", project / "truth", scores, surface=True)
    refused = shown = 0
    for file in (scores.with_suffix(".json"), project / "run" / "run.json"):
        whole = json.loads(file.read_text())
        for path, value in leaves(whole):
            if path[0] == "beside_all_background" and path[-1] in list(RUNGS)[1:-1]:
                continue  # as the others
            for new in (None, {"a": [1]}, *([[]] if isinstance(value, list) else [])):
                file.write_text(json.dumps(changed(whole, path, new)))
                try:
                    write_report(scores, project / "report.html")
                    shown += 1
                except InputError as error:
                    assert file.name in str(error) or scores.name in str(error)
                    refused += 1
        file.write_text(json.dumps(whole))
    assert refused > 100 and shown > 50
