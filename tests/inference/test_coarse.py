"""The coarse pass: nothing of a kidney is lost, and where that is doubtful the whole scan is taken."""

from dataclasses import replace

import numpy as np
import pytest
from support.cases import read_json, spec_of_tests

from kitsseg.data.formats.nifti import read_image, read_labels, write_image
from kitsseg.data.geometry.geometry import Geometry, plan_geometry
from kitsseg.data.layouts.scans import Scan
from kitsseg.data.phantoms.synthesize import synthesize_cases
from kitsseg.files.json_records import as_builtins, converted
from kitsseg.inference import one_scan
from kitsseg.inference import region as region_module
from kitsseg.inference.coarse import MARGIN_MM, find_region
from kitsseg.inference.cohort import predict_cohort
from kitsseg.inference.ensemble import Ensemble
from kitsseg.inference.options import PredictOptions
from kitsseg.inference.region import Face, inside_region, labels_at_border, parts_inside, wider_region
from kitsseg.inference.scan import Member, ensemble_labels, prepare_scan
from kitsseg.recipe import InferenceSpec, PreprocessSpec
from kitsseg.records.predictions import Box, CoarsePass

SHAPE, SPACING = (56, 72, 96), (4.0, 3.1, 3.1)
LEFT, RIGHT = (26, 40, 30), (28, 40, 66)  # centers of the kidneys, in voxels
FINE = spec_of_tests()
COARSE = PreprocessSpec(spacing_mm=(None, 6.0, 6.0), hu_window=(-79.0, 304.0), hu_mean=101.0, hu_std=76.9)
MODES = {
    "whole slices": InferenceSpec(tile=None, multiple=8, coarse=True),
    "mirrored": InferenceSpec(tile=None, multiple=8, mirror_axes=(0, 1), coarse=True),
    "2D tiles, mirrored": InferenceSpec(tile=(40, 48), gaussian=True, mirror_axes=(0,), coarse=True),
    "many tiles": InferenceSpec(tile=(32, 32), coarse=True),
    "3D cores": InferenceSpec(tile=(28, 32, 32), margin=4, coarse=True),
    "many 3D cores": InferenceSpec(tile=(20, 24, 24), margin=4, coarse=True),
    "3D tiles, mirrored": InferenceSpec(tile=(28, 36, 48), gaussian=True, mirror_axes=(2,), coarse=True),
}


def ball(shape, center, radius):
    axes = np.ogrid[tuple(slice(n) for n in shape)]
    return sum(((x - c) / r) ** 2 for x, c, r in zip(axes, center, radius, strict=True)) < 1


def patient(*kidneys, tumors=(), arms=False):
    """(scan, truth): an elliptic body of 40 HU, kidneys of 180 and tumors of 280 HU, each (center, radius)."""
    rng = np.random.default_rng(0)
    image = np.full(SHAPE, -1000, np.int16)
    rows, columns = np.ogrid[: SHAPE[1], : SHAPE[2]]
    image[:, ((rows - 36) / 30) ** 2 + ((columns - 48) / 40) ** 2 < 1] = 40
    if arms:
        image[:, 30:40, 1:6] = image[:, 30:40, 90:95] = 60
    image += rng.integers(-20, 20, SHAPE).astype(np.int16)
    truth = np.zeros(SHAPE, np.uint8)
    for label, hu, bodies in ((1, 180, kidneys), (2, 280, tumors)):
        for center, radius in bodies:
            truth[ball(SHAPE, center, radius)] = label
            image[ball(SHAPE, center, radius)] = hu
    return image, truth


def by_hu(batch):
    """A network that calls everything above 110 HU kidney and above 230 HU tumor, voxel by voxel."""
    hu = batch[..., 0] * 76.9 + 101
    return np.eye(3, dtype=np.float32)[(hu > 110).astype(int) + (hu > 230)]


LOOKS = Member(by_hu, COARSE, InferenceSpec(tile=(64, 64)))
KIDNEY, HUGE = (9, 8, 8), (16, 18, 16)
PATIENTS = {
    "two kidneys": patient((LEFT, KIDNEY), (RIGHT, KIDNEY), tumors=[((24, 36, 28), (3, 3, 3))]),
    "a kidney low in the pelvis": patient((LEFT, KIDNEY), (RIGHT, KIDNEY), ((48, 30, 44), (5, 6, 6))),
    "a horseshoe": patient((LEFT, KIDNEY), (RIGHT, KIDNEY), ((34, 38, 48), (3, 3, 22))),
    "a huge tumor": patient((LEFT, KIDNEY), (RIGHT, KIDNEY), tumors=[((28, 36, 62), HUGE)]),
    "cut through a kidney": patient((LEFT, KIDNEY), ((2, 40, 66), KIDNEY)),
    "cut through both": patient(((54, 40, 30), KIDNEY), ((55, 42, 66), (12, 8, 8))),
    "arms": patient((LEFT, KIDNEY), (RIGHT, KIDNEY), arms=True),
}
DOUBTFUL = {
    "one kidney": (patient((LEFT, KIDNEY)), "in the right half"),
    "a transplant alone": (patient(((46, 30, 62), KIDNEY)), "in the left half"),
    "beyond a row": (patient(((26, 2, 30), KIDNEY), (RIGHT, KIDNEY)), "reaches the first row"),
    "beyond a column": (patient((LEFT, KIDNEY), ((28, 40, 93), KIDNEY)), "reaches the last column"),
    "nothing": (patient(), "no kidney was found"),
    "specks": (patient((LEFT, (1, 1, 1)), (RIGHT, (1, 1, 1))), "no kidney was found"),
}


@pytest.fixture
def no_context(monkeypatch):
    """The patients of these tests are hardly larger than what a network of whole slices sees beside the region."""
    monkeypatch.setattr(region_module, "CONTEXT_MM", 0.0)


@pytest.mark.parametrize("name", PATIENTS)
def test_the_region_holds_all_kidneys_and_a_margin(name):
    image, truth = PATIENTS[name]
    region = find_region(image, SPACING, LOOKS)
    assert region.whole is None
    for axis, mm in enumerate(SPACING):
        at = np.flatnonzero(truth.any(axis=tuple(o for o in range(3) if o != axis)))
        assert region.start[axis] <= max(at[0] - (MARGIN_MM - 6) / mm, 0)  # 6 mm: a voxel of the coarse copy
        assert region.stop[axis] >= min(at[-1] + 1 + (MARGIN_MM - 6) / mm, SHAPE[axis])


APART = {"two kidneys": 2, "cut through a kidney": 2, "cut through both": 2, "arms": 2}


@pytest.mark.parametrize("name", PATIENTS)
def test_each_kidney_has_a_box_of_its_own_where_they_lie_apart(name):
    image, truth = PATIENTS[name]
    region = find_region(image, SPACING, LOOKS)
    assert len(region.parts) == APART.get(name, 0)
    taken = np.zeros(SHAPE, int)
    for part in region.parts:
        inside = tuple(map(slice, part.start, part.stop))
        taken[inside] += 1
        margin = [max(round((MARGIN_MM - 6) / mm), 1) for mm in SPACING]
        for axis, wide in enumerate(margin):  # of the part's own kidney
            at = np.flatnonzero(truth[inside].any(axis=tuple(o for o in range(3) if o != axis)))
            assert at[0] >= wide or part.start[axis] == 0
            assert at[-1] < part.stop[axis] - part.start[axis] - wide or part.stop[axis] == SHAPE[axis]
    if region.parts:
        assert taken.max() == 1
        assert taken[truth > 0].all()
        at = np.argwhere(taken)
        assert (tuple(at.min(axis=0)), tuple(at.max(axis=0) + 1)) == (region.start, region.stop)
    assert converted(as_builtins(region), CoarsePass) == region


def test_a_kidney_of_which_one_end_alone_was_found_is_not_cut():
    """Both parts have all slices and rows of the region: the other kidney tells how far the region goes."""
    whole, truth = patient((LEFT, KIDNEY), (RIGHT, KIDNEY))
    seen = whole.copy()
    seen[LEFT[0] :, :, :48] = 40  # the lower half of the left kidney is not found
    region = find_region(seen, SPACING, LOOKS)
    assert len(region.parts) == 2
    inside = np.zeros(SHAPE, bool)
    for part in region.parts:
        assert (part.start[:2], part.stop[:2]) == (region.start[:2], region.stop[:2])
        inside[tuple(map(slice, part.start, part.stop))] = True
    assert inside[truth > 0].all()


def test_boxes_on_both_sides_that_overlap_are_no_parts():
    """Two kidneys that lie near the spine: 20 mm around each reach across it."""
    image, _ = patient(((26, 40, 38), (9, 8, 6)), ((28, 40, 54), (9, 8, 6)))
    region = find_region(image, SPACING, LOOKS)
    assert region.start is not None
    assert region.parts == ()


@pytest.mark.parametrize("name", DOUBTFUL)
def test_the_whole_scan_is_taken_where_something_may_be_missing(name):
    (image, _), reason = DOUBTFUL[name]
    region = find_region(image, SPACING, LOOKS)
    assert (region.start, region.stop) == (None, None)
    assert reason in region.whole


def test_a_kidney_that_the_coarse_network_misses_is_not_lost():
    image, truth = PATIENTS["two kidneys"]
    seen = np.where(truth.astype(bool) & (np.arange(SHAPE[2]) > 48), 40, image).astype(np.int16)
    assert "in the right half" in find_region(seen, SPACING, LOOKS).whole


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("resampled", [False, True])
def test_labels_are_those_of_the_whole_scan(mode, resampled):
    """The network looks at single voxels, so that all labels are the same with the region and without it."""
    spec = replace(FINE, spacing_mm=(5.0, 2.3, 2.3)) if resampled else FINE
    for image, truth in PATIENTS.values():
        region = find_region(image, SPACING, LOOKS)
        member = Member(by_hu, spec, MODES[mode])
        whole, [cropped] = (prepare_scan(image, SPACING, [member], part) for part in (None, region))
        assert np.prod(cropped.geometry.shape) < np.prod(whole[0].geometry.shape)
        expected, found = (ensemble_labels(item, SPACING) for item in (whole, [cropped]))
        assert (found > 0)[truth > 0].mean() > 0.9
        np.testing.assert_array_equal(found, expected)


def by_hu_inside(batch):
    """As ``by_hu``, but blind in the outer four voxels of what it sees, as a network with zero padding nearly is."""
    found = by_hu(batch)
    seen = np.zeros(batch.shape[:-1], bool)
    seen[(slice(None), *(slice(4, -4) if n > 8 else slice(None) for n in batch.shape[1:-1]))] = True
    return np.where(seen[..., None], found, np.eye(3, dtype=np.float32)[0])


@pytest.mark.parametrize("tile", [(48, 48), (40, 48, 48)])
def test_where_grown_parts_overlap_the_one_that_was_wanted_there_counts(tile):
    """Each tile is larger than a kidney's box, and reaches into the box of the other kidney with its blind border."""
    image, _ = PATIENTS["two kidneys"]
    region = find_region(image, SPACING, LOOKS)
    member = Member(by_hu_inside, FINE, InferenceSpec(tile=tile, overlap=0.75, coarse=True))
    [item] = prepare_scan(image, SPACING, [member], region)
    one, other = item.parts
    assert one.computed[2].stop > other.wanted[2].start
    assert other.computed[2].start < one.wanted[2].stop
    found = ensemble_labels([item], SPACING)
    np.testing.assert_array_equal(found, by_hu((image[..., None] - 101) / 76.9).argmax(axis=-1))


@pytest.mark.usefixtures("no_context")
@pytest.mark.parametrize("mode", MODES)
def test_parts_are_computed_where_that_is_less_work(mode):
    """Counted are the voxels that reach the network."""
    image, _ = PATIENTS["two kidneys"]
    region, seen = find_region(image, SPACING, LOOKS), []

    def counted(batch):
        seen.append(batch[..., 0].size)
        return by_hu(batch)

    work, parts = [], []
    for taken in (region, replace(region, parts=())):
        seen.clear()
        [item] = prepare_scan(image, SPACING, [Member(counted, FINE, MODES[mode])], taken)
        ensemble_labels([item], SPACING)
        work.append(sum(seen))
        parts.append(item.parts)
    assert parts[1] == ()
    assert work[0] < 0.95 * work[1] if parts[0] else work[0] == work[1]
    assert bool(parts[0]) == (mode in ("whole slices", "mirrored", "many tiles", "many 3D cores"))


def test_whole_slices_of_all_parts_have_one_size():
    """For a second size TensorFlow would compile the network anew."""
    geometry = Geometry((50, 400, 400), (2.0, 1.0, 1.0), (50, 400, 400), (0, 0, 0), (50, 400, 400))
    boxes = Box(start=(10, 100, 20), stop=(30, 140, 60)), Box(start=(20, 100, 300), stop=(40, 190, 360))
    region = CoarsePass(start=(10, 100, 20), stop=(40, 190, 360), parts=boxes)
    together, parts = parts_inside(geometry, region, FINE, InferenceSpec(tile=None))
    assert [tuple(s.stop - s.start for s in part.computed) for part in parts] == [
        (22, 192, 160),
        (22, 192, 160),
    ]
    assert [tuple(s.stop - s.start for s in part.wanted) for part in parts] == [(22, 42, 42), (22, 92, 62)]
    assert together.shape[0] == 32
    for part in parts:  # 48 mm beside it, unless the scan ends before
        for axis in (1, 2):
            before = part.wanted[axis].start - part.computed[axis].start
            behind = part.computed[axis].stop - part.wanted[axis].stop
            assert before >= 48 or part.computed[axis].start + together.start[axis] == 0
            assert behind >= 48 or part.computed[axis].stop + together.start[axis] == 400
    # twice 160 columns are more than 224
    near = Box(start=(10, 100, 61), stop=(30, 190, 121))
    region = CoarsePass(start=(10, 100, 20), stop=(30, 190, 121), parts=(boxes[0], near))
    one, none = parts_inside(geometry, region, FINE, InferenceSpec(tile=None))
    assert none == ()
    assert one == inside_region(geometry, region, FINE, InferenceSpec(tile=None))


def test_members_without_a_coarse_pass_see_the_whole_scan():
    image, _ = PATIENTS["two kidneys"]
    region = find_region(image, SPACING, LOOKS)
    members = [Member(by_hu, FINE, InferenceSpec(tile=None, coarse=coarse)) for coarse in (True, False)]
    with_region, without = prepare_scan(image, SPACING, members, region)
    assert without.geometry.shape == SHAPE
    assert with_region.geometry.shape < SHAPE
    alone = ensemble_labels(prepare_scan(image, SPACING, members[1:]), SPACING)
    np.testing.assert_array_equal(ensemble_labels([with_region, without], SPACING), alone)


def test_a_region_grows_to_what_is_computed_anyway():
    geometry = Geometry((50, 300, 300), (2.0, 1.0, 1.0), (50, 300, 300), (0, 10, 20), (50, 290, 280))
    region = CoarsePass(start=(20, 100, 100), stop=(30, 140, 160))
    whole = CoarsePass(whole="no kidney was found")
    for inference, shape in (
        (InferenceSpec(tile=None), (12, 160, 160)),  # 42 and 62 voxels, 48 at each side, as multiples of 32
        (InferenceSpec(tile=None, multiple=48), (12, 192, 192)),
        (InferenceSpec(tile=(96, 48)), (12, 96, 62)),
        (InferenceSpec(tile=(512, 512)), (12, 280, 260)),  # no more than the box has
        (InferenceSpec(tile=(20, 48, 48), margin=4), (12, 80, 80)),  # cores of 12, 40, 40
        (InferenceSpec(tile=(20, 48, 48)), (20, 48, 62)),
    ):
        part = inside_region(geometry, region, FINE, inference)
        assert part.shape == shape
        for axis in range(3):
            assert (
                geometry.start[axis] <= part.start[axis] <= max(region.start[axis] - 1, geometry.start[axis])
            )
            assert part.stop[axis] >= min(region.stop[axis] + 1, geometry.stop[axis])
        assert inside_region(geometry, whole, FINE, inference) == geometry


def test_a_network_of_one_size_sees_fewer_slices_and_all_of_each():
    """A recipe that brings every slice to one size has a network for no other."""
    spec = PreprocessSpec(slice_size=(48, 64), hu_window=(-79.0, 304.0), hu_mean=101.0, hu_std=76.9)
    image, truth = PATIENTS["two kidneys"]
    region, shapes = find_region(image, SPACING, LOOKS), []

    def of_one_size(batch):
        shapes.append(batch.shape)
        return by_hu(batch)

    member = Member(of_one_size, spec, InferenceSpec(tile=None, coarse=True))
    whole, cropped = (
        ensemble_labels(prepare_scan(image, SPACING, [member], part), SPACING) for part in (None, region)
    )
    assert set(shapes) == {(1, 48, 64, 1)}
    assert SHAPE[0] < len(shapes) < 2 * SHAPE[0]
    np.testing.assert_array_equal(cropped, whole)
    assert (cropped > 0)[truth > 0].mean() > 0.9


def told(faces):
    """The only face, in words; None if there is none."""
    assert len(faces) <= 1
    return str(faces[0]) if faces else None


@pytest.mark.parametrize(
    ("first", "last", "border"),
    [
        ((10, 20, 30), (12, 30, 40), "first slice of the region"),
        ((19, 20, 30), (20, 30, 40), "last slice of the region"),
        ((12, 10, 30), (18, 11, 40), "first row of the region"),
        ((12, 39, 30), (18, 40, 40), "last row of the region"),
        ((12, 20, 10), (18, 30, 11), "first column of the region"),
        ((12, 20, 49), (18, 30, 50), "last column of the region"),
        ((11, 11, 11), (19, 39, 49), None),
        ((10, 20, 30), (12, 29, 31), None),  # 9 voxels of 9 mm2
        ((5, 5, 5), (9, 40, 60), None),  # beyond it
    ],
)
def test_labels_at_the_border_of_a_region_are_found(first, last, border):
    labels = np.zeros((30, 50, 60), np.uint8)
    labels[tuple(map(slice, first, last))] = 2
    region = CoarsePass(start=(10, 10, 10), stop=(20, 40, 50))
    assert told(labels_at_border(labels, (3.0, 3.0, 3.0), region)) == border


@pytest.mark.parametrize(
    ("first", "last", "border"),
    [
        ((12, 20, 28), (18, 30, 32), "last column of a part of the region"),  # of the isthmus between both
        ((15, 20, 34), (18, 30, 36), "first column of a part of the region"),
        ((14, 20, 40), (15, 30, 46), "first slice of a part of the region"),
        ((11, 20, 40), (13, 30, 46), None),  # in front of the second part
    ],
)
def test_labels_at_the_border_of_a_part_are_found(first, last, border):
    labels = np.zeros((30, 50, 60), np.uint8)
    labels[tuple(map(slice, first, last))] = 1
    boxes = Box(start=(10, 10, 10), stop=(20, 40, 30)), Box(start=(14, 10, 34), stop=(20, 40, 50))
    region = CoarsePass(start=(10, 10, 10), stop=(20, 40, 50), parts=boxes)
    assert told(labels_at_border(labels, (3.0, 3.0, 3.0), region, in_parts=True)) == border
    assert labels_at_border(labels, (3.0, 3.0, 3.0), region) == ()


def test_a_network_that_sees_whole_slices_has_no_border_in_them():
    labels = np.zeros((30, 50, 60), np.uint8)
    labels[12:18, 5:45, 5:55] = 1  # beyond all rows and columns
    region = CoarsePass(start=(10, 10, 10), stop=(20, 40, 50))
    assert len(labels_at_border(labels, (3.0, 3.0, 3.0), region)) == 4
    assert labels_at_border(labels, (3.0, 3.0, 3.0), region, in_plane=False) == ()
    labels[19, 5:45, 5:55] = 1
    assert labels_at_border(labels, (3.0, 3.0, 3.0), region, in_plane=False) == (Face(0, last=True),)


FOUND = CoarsePass(
    start=(20, 20, 10),
    stop=(30, 40, 50),
    parts=(Box(start=(20, 20, 10), stop=(30, 40, 24)), Box(start=(20, 20, 34), stop=(30, 40, 50))),
    seconds=1.5,
)


@pytest.mark.parametrize(
    ("faces", "start", "stop"),
    [
        ([Face(0, last=False)], (12, 20, 10), (30, 40, 50)),  # 40 mm are 8 slices
        ([Face(0, last=True)], (20, 20, 10), (38, 40, 50)),
        (
            [Face(1, last=True), Face(2, last=False)],
            (20, 20, 0),
            (30, 60, 50),
        ),  # 20 voxels; the scan ends at 0
        ([Face(2, last=True, of_part=True)], (20, 20, 10), (30, 40, 70)),
        ([Face(2, last=True, of_part=True, within=True)], (20, 20, 10), (30, 40, 50)),
    ],
)
def test_a_region_is_made_wider_behind_the_faces_that_labels_reach(faces, start, stop):
    wider = wider_region(FOUND, faces, (5.0, 2.0, 2.0), (60, 80, 100))
    assert (wider.start, wider.stop, wider.parts, wider.seconds) == (start, stop, (), 1.5)
    assert wider.widened == f"labels reached the {faces[0]}" and wider.whole is None


def test_where_labels_reach_the_border_again_or_the_region_is_large_the_whole_scan_is_taken():
    once = wider_region(FOUND, [Face(0, last=True)], (5.0, 2.0, 2.0), (60, 80, 100))
    # 24 x 30 x 46 voxels of 32 x 40 x 50 are more than half
    large = CoarsePass(start=(14, 10, 4), stop=(30, 40, 50), seconds=1.5)
    for region, shape in ((once, (60, 80, 100)), (large, (32, 40, 50))):
        whole = wider_region(region, [Face(0, last=False)], (5.0, 2.0, 2.0), shape)
        assert whole == CoarsePass(whole="labels reach the first slice of the region", seconds=1.5)


@pytest.mark.usefixtures("no_context")
def test_an_isthmus_between_the_kidneys_that_the_coarse_network_misses_is_labeled(tmp_path, monkeypatch):
    image, truth = PATIENTS["a horseshoe"]
    region = find_region(PATIENTS["two kidneys"][0], SPACING, LOOKS)
    member = Member(by_hu, FINE, MODES["whole slices"])
    [item] = prepare_scan(image, SPACING, [member], region)
    assert item.parts
    write_image(tmp_path / "scan.nii.gz", image, SPACING)
    monkeypatch.setattr(one_scan, "opened", lambda ensemble: ([member], None, "known"))
    monkeypatch.setattr(one_scan, "find_region", lambda *seen: region)
    (tmp_path / "out").mkdir()
    entry, _ = one_scan.predict_scan(
        Ensemble((), (), ()), "case", Scan(tmp_path / "scan.nii.gz"), tmp_path / "out"
    )
    assert "column of a part" in entry.coarse.widened
    assert entry.coarse.whole is None and not entry.coarse.parts
    np.testing.assert_array_equal(read_labels(tmp_path / "out" / entry.file).array > 0, truth > 0)


def test_labels_may_reach_the_border_of_the_scan():
    labels = np.ones((30, 50, 60), np.uint8)
    assert labels_at_border(labels, (3.0, 3.0, 3.0), CoarsePass(start=(0, 0, 0), stop=(30, 50, 60))) == ()
    assert labels_at_border(labels, (3.0, 3.0, 3.0), CoarsePass(whole="no kidney was found")) == ()


@pytest.mark.usefixtures("no_context")
def test_a_tumor_that_reaches_beyond_the_region_is_labeled_in_a_wider_one(tmp_path, monkeypatch):
    """The coarse network, which finds the kidneys alone, knows nothing of a tumor that goes on far beyond 20 mm."""
    image, truth = patient((LEFT, KIDNEY), (RIGHT, KIDNEY), tumors=[((38, 40, 66), (11, 8, 8))])
    region = find_region(patient((LEFT, KIDNEY), (RIGHT, KIDNEY))[0], SPACING, LOOKS)
    assert region.stop[0] <= np.flatnonzero(truth.any(axis=(1, 2)))[-1]
    write_image(tmp_path / "scan.nii.gz", image, SPACING)
    member = Member(by_hu, FINE, MODES["whole slices"])
    monkeypatch.setattr(one_scan, "opened", lambda ensemble: ([member], None, "known"))
    monkeypatch.setattr(one_scan, "find_region", lambda *seen: region)
    (tmp_path / "out").mkdir()
    entry, _ = one_scan.predict_scan(
        Ensemble((), (), ()), "case", Scan(tmp_path / "scan.nii.gz"), tmp_path / "out"
    )
    assert "last slice of a part" in entry.coarse.widened
    assert entry.coarse.whole is None
    assert entry.coarse.stop[0] == region.stop[0] + 10  # 40 mm in slices of 4 mm
    found = read_labels(tmp_path / "out" / entry.file).array
    whole = ensemble_labels(prepare_scan(image, SPACING, [member]), SPACING)
    np.testing.assert_array_equal(found, whole)
    assert (found == 2)[truth == 2].mean() > 0.9


@pytest.mark.usefixtures("no_context")
def test_a_tumor_that_reaches_beyond_the_wider_region_too_is_labeled_whole(tmp_path, monkeypatch):
    """The region of a few slices is made wider by 40 mm, and the tumor goes on behind them."""
    image, truth = patient((LEFT, KIDNEY), (RIGHT, KIDNEY), tumors=[((36, 40, 66), (18, 8, 8))])
    region = CoarsePass(start=(20, 24, 14), stop=(34, 56, 82))
    assert np.flatnonzero(truth.any(axis=(1, 2)))[-1] > 34 + 10
    write_image(tmp_path / "scan.nii.gz", image, SPACING)
    member, seen = Member(by_hu, FINE, MODES["whole slices"]), []
    monkeypatch.setattr(one_scan, "opened", lambda ensemble: ([member], None, "known"))
    monkeypatch.setattr(one_scan, "find_region", lambda *looked_at: region)
    monkeypatch.setattr(
        one_scan,
        "prepare_scan",
        lambda image, spacing_mm, members, region: (
            seen.append(region) or prepare_scan(image, spacing_mm, members, region)
        ),
    )
    (tmp_path / "out").mkdir()
    entry, _ = one_scan.predict_scan(
        Ensemble((), (), ()), "case", Scan(tmp_path / "scan.nii.gz"), tmp_path / "out"
    )
    assert [one.widened is not None for one in seen] == [False, True, False]
    assert "slice of the region" in entry.coarse.whole and entry.coarse.start is None
    found = read_labels(tmp_path / "out" / entry.file).array
    np.testing.assert_array_equal(found, ensemble_labels(prepare_scan(image, SPACING, [member]), SPACING))


def test_the_networks_box_and_the_region_have_to_meet():
    """If the region lies outside the box of the body, to which the recipe crops, the box stays as it is."""
    geometry = Geometry((50, 300, 300), (2.0, 1.0, 1.0), (50, 300, 300), (0, 200, 0), (50, 300, 300))
    elsewhere = CoarsePass(start=(0, 0, 0), stop=(9, 9, 9))
    assert inside_region(geometry, elsewhere, FINE, MODES["mirrored"]) == geometry


def test_the_starter_holds_the_kidneys_of_a_phantom(tmp_path):
    [case] = synthesize_cases(tmp_path, 1, (48, 128, 128), seed=1002)
    scan, labels = (
        read(case / f"{name}.nii.gz")
        for read, name in ((read_image, "imaging"), (read_labels, "segmentation"))
    )
    region = find_region(scan.array, scan.grid.spacing_mm)
    inside = np.zeros(labels.array.shape, bool)
    inside[tuple(map(slice, region.start or (0, 0, 0), region.stop or labels.array.shape))] = True
    assert inside[labels.array > 0].all()


def test_the_note_says_where_the_networks_saw_the_whole_scan(trained, tmp_path):
    """Tiny cases of 30 mm: no kidney fits into them."""
    case = trained.data / "case_00000"
    outcomes = {
        on: predict_cohort(trained.run, [case], tmp_path / str(on), options=PredictOptions(coarse=on))
        for on in (True, None)
    }
    [note] = set(outcomes[True].notes) - set(outcomes[None].notes)
    assert "saw the whole scan" in note
    assert "case_00000" in note
    maps = [read_labels(outcome.written[0]).array for outcome in outcomes.values()]
    np.testing.assert_array_equal(*maps)
    record = read_json(tmp_path / "True" / "predictions.json")
    assert record["inference"]["coarse"] is True
    assert record["cases"]["case_00000"]["coarse"]["whole"] in note
    assert "coarse" not in read_json(tmp_path / "None" / "predictions.json")["cases"]["case_00000"]


@pytest.mark.usefixtures("no_context")
def test_planes_outside_the_region_are_not_made():
    image, _ = PATIENTS["two kidneys"]
    region = find_region(image, SPACING, LOOKS)
    seen = []

    def counted(batch):
        seen.append(batch.shape)
        return by_hu(batch)

    member = Member(counted, FINE, MODES["whole slices"])
    [item] = prepare_scan(image, SPACING, [member], region)
    ensemble_labels([item], SPACING)
    # one more at either end, for the interpolation
    assert len(seen) == sum(part.stop[0] - part.start[0] + 2 for part in region.parts)
    assert plan_geometry(image, SPACING, FINE).shape[0] == SHAPE[0] > len(seen) / len(region.parts)
