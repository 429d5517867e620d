"""The phantom's HU: each tissue in its range, noise and partial volume as in CT."""

import numpy as np
import pytest
from scipy import ndimage

from kitsseg.data.formats.nifti import read_labels
from kitsseg.data.phantoms.anatomy import Canvas, Patient, ellipsoid_distance, paint_body
from kitsseg.data.phantoms.render import noise_maker, place_patient, render_ct, smooth_noise, upsample
from kitsseg.data.phantoms.synthesize import draw_labels
from kitsseg.errors import InputError

SPACING_MM = (4.5, 3.0, 3.0)
SHAPE = (40, 128, 128)


@pytest.fixture(scope="module")
def patients():
    """Labels and image of six patients."""
    made = []
    for seed in range(6):
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


def test_hu_of_kidneys_and_tumors(patients):
    """Cortex 150-220, deep parenchyma darker, fat around it; tumors from 15 (necrosis) to 160."""
    for labels, image in patients:
        kidney = labels == 1
        depth = ndimage.distance_transform_edt(labels > 0, SPACING_MM)
        # 3-5 mm below the surface: no partial volume any more, no medulla yet
        cortex = image[kidney & (depth > 3) & (depth < 5)].mean()
        medulla = image[kidney & (depth > 11)].mean()
        assert 140 < cortex < 215
        assert medulla < cortex - 30
        assert 55 < medulla < 130  # some columns of cortex among it
        outside = ndimage.distance_transform_edt(labels == 0, SPACING_MM)
        assert np.median(image[(outside > 3) & (outside < 5)]) < -60  # perirenal fat
        tumor = ndimage.distance_transform_edt(labels == 2, SPACING_MM)
        assert 15 < image[tumor > 3].mean() < 160


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
    patient = Patient((90.0, 200.0, 190.0), 160.0, -160.0, 75.0, 12.0, ())
    rng = np.random.default_rng(0)
    canvas = Canvas((90, 190, 190), (2.0, 2.0, 2.0), patient.origin_mm, rng)
    aorta = paint_body(canvas, patient, rng)
    z, y, x = np.ix_(*canvas.axes)

    def inside(center, radii):
        return canvas.hu[ellipsoid_distance((z - center[0], y - center[1], x - center[2]), radii) < 0]

    assert 250 <= aorta <= 340
    assert abs(np.median(inside((20, -34, 8), (60, 3, 3))) - aorta) < 15
    assert 70 <= np.median(inside((-70, -48, -95), (10, 10, 10))) <= 90  # liver, at low columns
    assert 100 <= inside((-70, -2, 103), (8, 6, 6)).mean() <= 150  # spleen, at high columns
    assert inside((-70, -2, 103), (8, 6, 6)).std() > 5  # mottled
    assert 55 <= np.median(inside((20, 43, 30), (10, 4, 4))) <= 65  # back muscle
    assert np.percentile(inside((0, -2, 0), (80, 16, 20)), 50) > 80  # spine
    assert np.percentile(inside((0, -2, 0), (80, 16, 20)), 95) > 400
    assert canvas.hu[:, 0].max() == -1000  # air
    column = canvas.hu[45, :, 95]
    assert column[: np.searchsorted(canvas.axes[1], -175)].max() == -1000
    front = column[slice(*np.searchsorted(canvas.axes[1], (-170, -140)))]
    assert -120 < front[front > -500].min() < -60  # fat between skin and muscle
    assert 40 < front[-3:].max() < 70


def test_noise_is_that_of_ct():
    """Deviation 10-20 HU at 3-5 mm, more in thin slices; neighbors correlate in plane, not across slices."""
    for spacing, low, high in ((5.0, 6, 16), (3.0, 7, 20), (0.5, 12, 30)):
        noise = noise_maker((200, 200), (spacing, 0.8, 0.8), np.random.default_rng(1))
        planes = np.stack([noise() for _ in range(12)])
        assert planes.dtype == np.float32
        assert low < planes.std() < high
        middle = planes[:, 70:130, 70:130]
        assert middle.std() > 1.2 * planes[:, :30, :30].std()
        shifted = np.corrcoef(middle[:, :, 1:].ravel(), middle[:, :, :-1].ravel())[0, 1]
        far = np.corrcoef(middle[:, :, 6:].ravel(), middle[:, :, :-6].ravel())[0, 1]
        # a Gaussian of 0.6 mm correlates points 0.8 mm apart by exp(-0.8**2 / (4 * 0.6**2)) = 0.64
        assert 0.5 < shifted < 0.75
        assert abs(far) < 0.1
        across = np.corrcoef(middle[1:].ravel(), middle[:-1].ravel())[0, 1]
        assert abs(across) < 0.3


def test_smooth_noise_is_standardized():
    values = smooth_noise((20, 30, 40), (3.0, 2.0, 2.0), 8, np.random.default_rng(0))
    assert values.std() == pytest.approx(1, abs=1e-3)
    assert abs(values.mean()) < 0.4
    assert np.abs(np.diff(values, axis=2)).mean() < 0.5


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
    # a border is a border, not a staircase of the thinned grid: within two voxels HU change from fat to organ
    inside = ndimage.binary_erosion(labels == 1, iterations=2) & ~ndimage.binary_erosion(
        labels == 1, iterations=3
    )
    around = ndimage.binary_dilation(labels > 0, iterations=3) & ~ndimage.binary_dilation(
        labels > 0, iterations=2
    )
    assert np.median(image[inside]) - np.median(image[around]) > 150
