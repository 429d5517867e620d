"""Preprocessing of every recipe against a plain reference in float64: dense matrices, whole volumes, no streaming."""

import math
from dataclasses import replace

import numpy as np
import pytest

from kitsseg import recipes
from kitsseg.data.cache.build import preprocess_cases
from kitsseg.data.cache.cases import open_cache
from kitsseg.data.formats.nifti import write_image

VARIANTS = [name + variant for name in recipes.names() for variant in ("", ":practical", ":tiny")]
SCANS = [((7, 37, 45), (5.0, 0.8, 0.94)), ((13, 64, 33), (1.25, 1.7, 1.7)), ((31, 21, 30), (0.5, 2.3, 1.1))]


def linear_matrix(n_in, n_out):
    """(n_out, n_in): hat functions around half-pixel centers; beyond the first and last center the edge goes on."""
    position = np.clip((np.arange(n_out) + 0.5) * n_in / n_out - 0.5, 0, n_in - 1)
    return np.maximum(0, 1 - np.abs(position[:, None] - np.arange(n_in)))


def area_matrix(n_in, n_out):
    """(n_out, n_in): the share of each output pixel that an input pixel covers."""
    low = np.arange(n_out)[:, None] / n_out
    high = (np.arange(n_out)[:, None] + 1) / n_out
    a, b = np.arange(n_in) / n_in, (np.arange(n_in) + 1) / n_in
    return np.clip(np.minimum(high, b) - np.maximum(low, a), 0, None) * n_out


def nearest(n_in, n_out):
    return np.array([min(int((2 * i + 1) * n_in // (2 * n_out)), n_in - 1) for i in range(n_out)])


def grid_shape(shape, spacing, spec):
    grid = [n if t is None else round(n * s / t) for n, s, t in zip(shape, spacing, spec.spacing_mm)]
    if spec.in_plane_factor:
        grid[1:] = [round(n * spec.in_plane_factor) for n in grid[1:]]
    return tuple(grid[:1]) + tuple(spec.slice_size) if spec.slice_size else tuple(grid)


def histogram_scaled(plane):
    """fastai's: break points at quantiles of the pixels, values in between linear."""
    pixels = np.sort(plane.astype(np.float64).ravel())
    shares = [0.001, *((i + 0.5) / 100 for i in range(100)), 0.999]
    breaks = sorted({pixels[int(share * pixels.size)] for share in shares})
    if len(breaks) == 1:
        return np.zeros(plane.shape)
    return np.interp(plane, breaks, np.linspace(0, 1, len(breaks)))


def reference(image, labels, spacing, spec):
    """(image in float64 before it is rounded, labels) of a case as the recipe's sheet describes them."""
    grid = grid_shape(image.shape, spacing, spec)
    if spec.slice_size or spec.windows:
        y, x = (area_matrix(n, m) for n, m in zip(image.shape[1:], grid[1:]))
        if spec.windows:
            channels = []
            for width, level in spec.windows:
                low, high = level - width / 2, level + width / 2
                channels.append((np.clip(image.astype(np.float64), low, high) - low) / (high - low))
            channels.append(np.stack([histogram_scaled(plane) for plane in image]))
            stored = np.floor(np.stack(channels, -1) * 255 + 1e-6)  # 8 bit, as the public notebook saves them
        else:
            stored = image.astype(np.float64)[..., None]
        prepared = np.einsum("Yy,zyxc,Xx->zYXc", y, stored, x, optimize=True)
        prepared = prepared if spec.windows else prepared[..., 0]
    else:
        z, y, x = (linear_matrix(n, m) for n, m in zip(image.shape, grid))
        prepared = np.einsum("Zz,Yy,zyx,Xx->ZYX", z, y, image.astype(np.float64), x, optimize=True)
    truth = labels[np.ix_(*(nearest(n, m) for n, m in zip(labels.shape, grid)))]
    box = [slice(0, m) for m in grid]
    if spec.crop_to_body:
        body = np.argwhere(image > spec.hu_window[0])
        low, high = body.min(0), body.max(0) + 1
        box = [
            slice(math.floor(a * m / n), math.ceil(b * m / n))
            for a, b, n, m in zip(low, high, image.shape, grid)
        ]
    n = len(image)
    if spec.longest_scan and n > spec.longest_scan:
        slices = np.flatnonzero((labels > 0).any((1, 2)))
        zmin, zmax = max(slices[0] - spec.cut_margin, 0), min(slices[-1] + 1 + spec.cut_margin, n)
        if zmax - zmin < spec.longest_scan:
            zmin = min(max(zmin + (zmax - zmin) // 2 - spec.longest_scan // 2, 0), n - spec.longest_scan)
            zmax = zmin + spec.longest_scan
        box[0] = slice(math.floor(zmin * grid[0] / n), math.ceil(zmax * grid[0] / n))
    return prepared[tuple(box)], truth[tuple(box)]


def make_scan(folder, shape, spacing, seed):
    """Noise in air and in a body; a kidney with a tumor off its middle."""
    rng = np.random.default_rng(seed)
    image = rng.normal(-1000, 20, shape)
    body = tuple(slice(n // 6, n - n // 7) for n in shape)
    image[body] = rng.normal(40, 120, image[body].shape)
    labels = np.zeros(shape, np.uint8)
    labels[tuple(slice(n // 3, n // 3 + n // 4 + 1) for n in shape)] = 1
    labels[tuple(slice(n // 2 - 1, n // 2 + 2) for n in shape)] = 2
    image = np.rint(image).astype(np.int16)
    write_image(folder / "imaging.nii.gz", image, spacing)
    write_image(folder / "segmentation.nii.gz", labels, spacing)
    return image, labels


def assert_equal_to_reference(case, image, labels, spacing, spec):
    expected, truth = reference(image, labels, spacing, spec)
    found = np.asarray(case.image).astype(np.float64)
    assert found.shape == expected.shape
    # rounded to whole HU or 8-bit levels, from float32: half a level and what float32 leaves of a thousand
    assert np.abs(found - expected).max() <= 0.5 + 1e-3
    found_labels = np.array([case.labels(k) for k in range(len(found))])
    np.testing.assert_array_equal(found_labels, truth)
    for value, area in ((1, case.kidney_area), (2, case.tumor_area)):
        np.testing.assert_array_equal(area, (truth == value).sum((1, 2)))


@pytest.mark.parametrize("name", VARIANTS)
def test_every_recipe_on_small_odd_scans(name, tmp_path):
    spec = recipes.get(name).preprocess
    made = [make_scan(tmp_path / "data" / str(i), *scan, seed=i) for i, scan in enumerate(SCANS)]
    preprocess_cases(tmp_path / "data", tmp_path / "cache", spec)
    cases = open_cache(tmp_path / "cache", spec)
    for i, (_, spacing) in enumerate(SCANS):
        assert_equal_to_reference(cases[str(i)], *made[i], spacing, spec)


def test_a_long_scan_cut_for_training(tmp_path):
    """deeplab3d cuts scans of more than 200 slices; 20 keeps the test small."""
    spec = replace(recipes.get("deeplab3d").preprocess, longest_scan=20, cut_margin=3)
    made = make_scan(tmp_path / "data" / "a", (41, 23, 26), (2.0, 1.4, 1.4), seed=5)
    preprocess_cases(tmp_path / "data", tmp_path / "cache", spec)
    case = open_cache(tmp_path / "cache", spec)["a"]
    assert case.geometry.shape[0] < case.geometry.grid_shape[0]
    assert_equal_to_reference(case, *made, (2.0, 1.4, 1.4), spec)
