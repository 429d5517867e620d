"""The phantom's HU: each tissue in its range, noise and partial volume as in CT."""

from functools import partial

import numpy as np
import pytest
from scipy import ndimage

from kitsseg.data.formats.nifti import read_labels
from kitsseg.data.phantoms.anatomy import (
    Canvas,
    Enhancement,
    Patient,
    draw_enhancement,
    ellipsoid_distance,
    paint_body,
    random_field,
)
from kitsseg.data.phantoms.render import kidney_texture, noise_maker, place_patient, render_ct, upsample
from kitsseg.data.phantoms.synthesize import draw_labels
from kitsseg.errors import InputError

SPACING_MM = (4.5, 3.0, 3.0)
SHAPE = (40, 128, 128)
ARTERIAL = Enhancement(
    aorta=300.0,
    veins=110.0,
    cortex=200.0,
    medulla=90.0,
    urine=10.0,
    liver=80.0,
    spleen=120.0,
    pancreas=95.0,
    bowel=80.0,
    muscle=58.0,
    marrow=180.0,
    oral=None,
)


@pytest.fixture(scope="module")
def patients():
    """Labels and image of twelve patients."""
    made = []
    for seed in range(12):
        rng = np.random.default_rng((7, seed))
        labels = draw_labels(SHAPE, SPACING_MM, rng)
        made.append((labels, render_ct(labels, SPACING_MM, rng)))
    return made


def test_image_is_finite_int16_and_deterministic(patients):
    rng = np.random.default_rng((7, 0))
    labels = draw_labels(SHAPE, SPACING_MM, rng)
    image = render_ct(labels, SPACING_MM, rng)
    assert image.dtype == np.int16
    assert image.shape == SHAPE
    assert -1024 <= image.min() < -990
    assert 300 < image.max() <= 3071
    np.testing.assert_array_equal(labels, patients[0][0])
    np.testing.assert_array_equal(image, patients[0][1])


def test_patients_differ_as_real_ones_do(patients):
    """In real contrast CT, clipped to 0..255, the patients' kidneys have 66 to 158 HU and tumors 31 to 122."""
    kidneys = np.array([np.clip(image, 0, 255)[labels == 1].mean() for labels, image in patients])
    tumors = np.array([np.clip(image, 0, 255)[labels == 2].mean() for labels, image in patients])
    assert 80 < kidneys.mean() < 150
    assert kidneys.std() > 15
    assert kidneys.min() < 95
    assert kidneys.max() > 115
    assert 40 < tumors.mean() < 105
    assert tumors.std() > 15
    below = np.array([(image[labels == 1] < 10).mean() for labels, image in patients])
    assert 0.02 < below.mean() < 0.2  # borders, sinus, cysts; real: 0.08


def test_fat_lies_around_the_kidneys_of_most_patients(patients):
    """Real: three quarters of the pixels within a centimeter are fat, in the thinnest patients a fifth."""
    shares = []
    for labels, image in patients:
        outside = ndimage.distance_transform_edt(labels == 0, SPACING_MM)
        shares.append((image[(outside > 3) & (outside < 10)] < 10).mean())
    assert 0.5 < np.mean(shares) < 0.9
    assert max(shares) - min(shares) > 0.2


def test_cortex_is_brighter_than_medulla_in_the_arterial_phase():
    """A ball of kidney: 200 HU below its surface, 90 HU deep inside, with what else lies there."""
    z, y, x = np.ogrid[-20:21, -20:21, -20:21]
    depth = 32 - 2 * np.sqrt(z**2 + y**2 + x**2)  # mm, on voxels of 2 mm
    labels = (depth > 0).astype(np.uint8)
    axes = [np.arange(41, dtype=np.float32) * 2] * 3
    for seed in range(3):
        rng = np.random.default_rng(seed)
        hu = kidney_texture(labels, (2.0, 2.0, 2.0), ARTERIAL, partial(random_field, axes, rng=rng), rng)
        assert np.median(hu[(depth > 0) & (depth < 3)]) == pytest.approx(200, rel=0.12)
        assert -110 < np.median(hu[(depth > 15) & (depth < 25)]) < 120


def test_tissue_ends_inside_the_label():
    """As KiTS19 is labeled: a label's outermost half millimeter is fat, two millimeters below is tissue."""
    labels = np.zeros((8, 160, 160), np.uint8)
    labels[:, 60:110, 40:90] = 1
    for seed in range(3):
        image = render_ct(labels, (3.0, 0.5, 0.5), np.random.default_rng(seed))
        flat = image[1:7, 70:100]
        outermost, deeper = flat[:, :, [40, 89]].mean(), flat[:, :, [45, 46, 47, 82, 83, 84]].mean()
        fat = flat[:, :, [36, 37, 92, 93]].mean()
        assert outermost < (deeper + fat) / 2


def test_phases_are_told_apart():
    """Over 200 patients: the aorta from 35 to 420 HU, medulla never much above cortex, urine rarely bright."""
    drawn = [draw_enhancement(np.random.default_rng(seed)) for seed in range(200)]
    aorta = np.array([hu.aorta for hu in drawn])
    assert aorta.min() < 50
    assert aorta.max() > 350
    assert all(0.4 < hu.medulla / hu.cortex < 1.1 for hu in drawn)
    assert 0.02 < np.mean([hu.urine > 100 for hu in drawn]) < 0.16
    assert 0.2 < np.mean([hu.oral is not None for hu in drawn]) < 0.4


def test_labels_cannot_be_had_by_a_threshold(patients):
    """The best HU window finds kidneys and tumors at a Dice far below a network's: other organs overlap."""
    for labels, image in patients:
        truth = labels > 0
        best = 0
        for low in range(0, 200, 20):
            for high in range(low + 40, 320, 40):
                found = (image >= low) & (image <= high)
                best = max(best, 2 * np.count_nonzero(found & truth) / (found.sum() + truth.sum()))
        assert best < 0.7


def test_hu_of_the_body():
    """Without kidneys and noise: HU at the known places of the plan, bent by some millimeters."""
    patient = Patient((90.0, 200.0, 190.0), 160.0, -160.0, 75.0, 12.0, 13.0, 0.0, ())
    rng = np.random.default_rng(0)
    canvas = Canvas((90, 190, 190), (2.0, 2.0, 2.0), patient.origin_mm, rng)
    paint_body(canvas, patient, ARTERIAL, rng)
    z, y, x = np.ix_(*canvas.axes)

    def inside(center, radii):
        return canvas.hu[ellipsoid_distance((z - center[0], y - center[1], x - center[2]), radii) < 0]

    assert np.median(inside((20, -32, 8), (60, 3, 3))) == pytest.approx(300, abs=20)  # aorta
    assert np.median(inside((-70, -48, -95), (10, 10, 10))) == pytest.approx(
        80, abs=5
    )  # liver, at low columns
    flank = canvas.hu[(z < 0) & (y > -60) & (x > 60)]
    assert np.count_nonzero((flank > 100) & (flank < 140)) * 0.008 > 10  # ml of spleen, at high columns
    assert 50 <= np.median(inside((20, 43, 33), (10, 4, 4))) <= 65  # back muscle
    assert np.percentile(inside((0, 0, 0), (80, 14, 18)), 50) > 80  # spine
    assert np.percentile(inside((0, 0, 0), (80, 18, 24)), 95) > 300
    assert canvas.hu[:, 0].max() == -1000  # air
    column = canvas.hu[45, :, 95]
    assert column[: np.searchsorted(canvas.axes[1], -175)].max() == -1000
    front = column[slice(*np.searchsorted(canvas.axes[1], (-170, -140)))]
    assert -125 < front[front > -500].min() < -60  # fat between skin and muscle
    assert 40 < front[-3:].max() < 70


def test_noise_is_that_of_ct():
    """More in thin slices, in the middle of the body and in some scans; correlated in plane, not across slices."""
    deviations = {}
    for spacing in (5.0, 0.5):
        deviations[spacing] = []
        for seed in range(6):
            noise = noise_maker((200, 200), (spacing, 0.8, 0.8), np.random.default_rng(seed))
            planes = np.stack([noise() for _ in range(8)])
            assert planes.dtype == np.float32
            deviations[spacing].append(planes.std())
            middle = planes[:, 70:130, 70:130]
            assert middle.std() > 1.15 * planes[:, :30, :30].std()
            shifted = np.corrcoef(middle[:, :, 1:].ravel(), middle[:, :, :-1].ravel())[0, 1]
            far = np.corrcoef(middle[:, :, 8:].ravel(), middle[:, :, :-8].ravel())[0, 1]
            # a Gaussian of s mm correlates points 0.8 mm apart by exp(-0.8**2 / (4 * s**2)): 0.27 for 0.35, sampled
            # finer, to 0.80 for 0.85
            assert 0.15 < shifted < 0.85
            assert abs(far) < 0.15
            across = np.corrcoef(middle[1:].ravel(), middle[:-1].ravel())[0, 1]
            assert abs(across) < 0.4
    # the same seeds: thinner slices by 10 times are noisier by 10**0.35 = 2.2
    ratio = np.array(deviations[0.5]) / deviations[5.0]
    assert np.median(ratio) == pytest.approx(10**0.35, rel=0.15)
    assert max(deviations[5.0]) > 1.3 * min(deviations[5.0])
    assert 8 < np.median(deviations[5.0]) < 25


@pytest.mark.parametrize("length", [8, 30])
def test_a_random_field_is_standardized_and_as_coarse_as_asked(length):
    """Points farther apart than the structures are long have little to do with each other."""
    axes = [np.float32(np.arange(n) * s) for n, s in zip((40, 120, 120), (3.0, 2.0, 2.0))]
    values = random_field(axes, length, np.random.default_rng(0))
    assert values.shape == (40, 120, 120)
    assert values.dtype == np.float32
    assert 0.6 < values.std() < 1.1
    near = np.corrcoef(values[:, :, 1:].ravel(), values[:, :, :-1].ravel())[0, 1]
    steps = int(1.5 * length / 2)
    far = np.corrcoef(values[:, :, steps:].ravel(), values[:, :, :-steps].ravel())[0, 1]
    assert near > 0.8
    assert abs(far) < 0.35


def test_a_random_field_is_the_same_on_a_finer_grid():
    """At shared points, to rounding: structures are in millimeters, not in voxels."""
    coarse = [np.float32(np.arange(n) * 4) for n in (10, 20, 20)]
    fine = [np.float32(np.arange(2 * n - 1) * 2) for n in (10, 20, 20)]
    one, other = (random_field(axes, 15, np.random.default_rng(3)) for axes in (coarse, fine))
    np.testing.assert_allclose(other[::2, ::2, ::2], one, atol=1e-4)


def test_upsample_gives_linear_fields_back():
    """A field linear in all axes, thinned by (2, 3, 4), comes back exactly where the thinned grid reaches."""
    z, y, x = np.ogrid[:7, :10, :13]
    field = (2 * z + 3 * y - x).astype(np.float32)
    again = upsample(field[::2, ::3, ::4], range(7), (10, 13), (2, 3, 4))
    np.testing.assert_allclose(again, field, atol=1e-5)
    # 8 rows thinned by 3 end at row 6: the last value goes on
    short = upsample(field[::2, :8:3, ::4], range(2, 4), (8, 13), (2, 3, 4))
    np.testing.assert_allclose(short[:, :7], field[2:4, :7], atol=1e-5)
    np.testing.assert_allclose(short[:, 7], field[2:4, 6], atol=1e-5)


def test_patient_is_placed_around_the_labels():
    """Two kidneys 140 mm apart: the midline between them, all labels inside the skin."""
    labels = np.zeros((20, 100, 100), np.uint8)
    labels[5:15, 55:65, 20:30] = 1  # center (9.5, 59.5, 24.5) times (5, 4, 4) mm
    labels[5:15, 55:65, 55:65] = 1
    labels[8:12, 40:56, 55:70] = 2
    patient = place_patient(labels, (5.0, 4.0, 4.0), np.random.default_rng(0))
    # midline: (24.5 + 59.5) / 2 * 4 = 168 mm; some kidney voxels are tumor now, which shifts it slightly
    assert patient.origin_mm[2] == pytest.approx(168, abs=2)
    _, y, x = (i * s - o for i, s, o in zip(np.nonzero(labels), (5.0, 4.0, 4.0), patient.origin_mm))
    assert patient.skin(y, x).max() < -8
    assert patient.front < y.min() < 0 < y.max() < patient.back
    assert [round(kidney[2]) for kidney in patient.kidneys] == pytest.approx([-70, 70], abs=3)


@pytest.mark.parametrize("label", [1, 2])
def test_a_single_blob_renders(label):
    """One kidney, or a tumor alone: the image's middle is the patient's."""
    labels = np.zeros((12, 64, 64), np.uint8)
    labels[4:8, 30:40, 40:50] = label
    image = render_ct(labels, (5.0, 5.0, 5.0), np.random.default_rng(0))
    assert image[5, 33:37, 43:47].mean() > 0
    assert image[5, 0, 0] < -900
    with pytest.raises(InputError, match="found only background"):
        render_ct(np.zeros((12, 64, 64), np.uint8), (5.0, 5.0, 5.0), np.random.default_rng(0))


@pytest.mark.parametrize("name", ["case_00004", "case_00160", "case_00030"])
def test_a_crop_of_a_real_map_renders(name, real_data):
    """Full resolution around the kidneys of case_00004, of the wide case_00160, of the largest tumor."""
    volume = read_labels(real_data / "kits19" / name / "segmentation.nii.gz")
    z, y, x = (np.median(i).astype(int) for i in np.nonzero(volume.array))
    labels = volume.array[max(0, z - 8) : z + 8, y - 60 : y + 60, max(0, x - 170) : x + 170]
    image = render_ct(labels, volume.grid.spacing_mm, np.random.default_rng(0))
    assert image.shape == labels.shape
    foreground = ndimage.binary_erosion(labels > 0, iterations=3)
    assert 15 < image[foreground].mean() < 230
    # a border is a border, not a staircase of the thinned grid: within a few voxels HU change from fat to organ
    inside = foreground & ndimage.binary_erosion(labels > 0, iterations=4)
    inside &= ~ndimage.binary_erosion(labels > 0, iterations=5)
    around = ndimage.binary_dilation(labels > 0, iterations=3) & ~ndimage.binary_dilation(
        labels > 0, iterations=2
    )
    assert np.median(image[inside]) - np.median(image[around]) > 60
