"""From any scan to its label map: every window mode, mirroring and grid, read back from the written file.

What is expected is computed in plain NumPy and SciPy, in double precision, with the whole volume in memory: nibabel
turns the file's axes, SciPy zooms, tiles are cut by their definition. Nothing of the package takes part in it.
"""

import itertools

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform
from scipy.ndimage import gaussian_filter, zoom

from kitsseg.data.layouts.scans import Scan
from kitsseg.inference import one_scan
from kitsseg.inference.ensemble import Ensemble
from kitsseg.inference.scan import Member
from kitsseg.recipe import InferenceSpec, PreprocessSpec
from kitsseg.records.predictions import PredictedScan

AIR = -79.0
MODES = {
    "whole slices": InferenceSpec(tile=None, multiple=8),
    "whole slices, mirrored": InferenceSpec(tile=None, multiple=8, mirror_axes=(0, 1)),
    "2D tiles": InferenceSpec(tile=(16, 12)),
    "2D tiles, a quarter shared, mirrored rows": InferenceSpec(tile=(12, 16), overlap=0.25, mirror_axes=(0,)),
    "2D tiles, Gaussian, mirrored": InferenceSpec(tile=(16, 16), gaussian=True, mirror_axes=(0, 1)),
    "3D cores": InferenceSpec(tile=(10, 12, 14), margin=3),
    "3D cores, mirrored": InferenceSpec(tile=(12, 12, 10), margin=2, mirror_axes=(1, 2)),
    "3D tiles": InferenceSpec(tile=(8, 12, 16)),
    "3D tiles, three quarters shared, Gaussian": InferenceSpec(tile=(8, 16, 16), overlap=0.75, gaussian=True),
    "3D tiles, Gaussian, mirrored": InferenceSpec(tile=(8, 12, 12), gaussian=True, mirror_axes=(1, 2)),
}


def random_affine(rng, spacing_mm):
    """A random axis order and direction; two in three are turned by up to 25 degrees about each axis."""
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[rng.permutation(3)] * rng.choice([-1, 1], 3)
    for (i, j), angle in zip(((0, 1), (0, 2), (1, 2)), np.radians(rng.uniform(-25, 25, 3)), strict=True):
        turn = np.eye(4)
        turn[[i, j], [i, j]], turn[i, j], turn[j, i] = np.cos(angle), -np.sin(angle), np.sin(angle)
        if rng.random() < 0.67:
            affine = turn @ affine
    affine[:3, :3] *= spacing_mm
    affine[:3, 3] = rng.uniform(-300, 300, 3)
    return affine


def random_scan(path, rng):
    """A body of smooth HU in air, in a file of random axes, form and spacing."""
    shape = tuple(int(n) for n in rng.integers(9, 27, 3))
    hu = gaussian_filter(rng.normal(size=shape), 1.2)
    hu = np.rint(120 + 130 * hu / hu.std()).astype(np.int16)
    body = tuple(slice(int(rng.integers(0, n // 3)), n - int(rng.integers(0, n // 3))) for n in shape)
    stored = np.full(shape, -1000, np.int16)
    stored[body] = hu[body]
    affine = random_affine(rng, rng.uniform(0.5, 4, 3))
    image = nib.Nifti1Image(stored, affine if rng.random() < 0.7 else None)
    if image.header["sform_code"] == 0 or rng.random() < 0.5:
        image.header.set_qform(affine, code=1)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
    return path


def written(scan, member, out, monkeypatch):
    """The label map of a scan, written by what the command runs for each, as nibabel reads it."""
    monkeypatch.setattr(one_scan, "opened", lambda ensemble: ([member], None, "known"))
    out.mkdir(exist_ok=True)
    entry, _ = one_scan.predict_scan(Ensemble((), (), ()), "case_00000", Scan(scan), out)
    assert isinstance(entry, PredictedScan), entry
    found, source = nib.load(out / entry.file), nib.load(scan)
    assert found.shape == source.shape
    assert found.get_data_dtype() == np.uint8
    for field in ("pixdim", "qform_code", "sform_code", "srow_x", "srow_y", "srow_z", "quatern_b"):
        assert found.header[field].tobytes() == source.header[field].tobytes(), field
    return np.asanyarray(found.dataobj)


# the oracle


def in_kits_axes(scan):
    """(slices to inferior, rows to posterior, columns to left), spacing, and the way back to the file's axes."""
    image = nib.load(scan)
    own, kits = io_orientation(image.affine), axcodes2ornt(("I", "P", "L"))
    turn = ornt_transform(own, kits)
    spacing = np.empty(3)
    spacing[turn[:, 0].astype(int)] = np.linalg.norm(image.affine[:3, :3], axis=0)
    array = apply_orientation(np.asanyarray(image.dataobj), turn).astype(float)
    return array, spacing, lambda labels: apply_orientation(labels, ornt_transform(kits, own))


def zoomed(volume, shape):
    factors = [m / n for n, m in zip(volume.shape, shape, strict=True)]
    return zoom(volume, factors, order=1, mode="nearest", grid_mode=True)


def box_of_body(hu, grid_shape):
    """The box of everything but air, as slices of the grid: all grid voxels that the box touches."""
    found = np.argwhere(hu > AIR)
    ratio = np.array(grid_shape) / hu.shape
    low, high = np.floor(found.min(axis=0) * ratio), np.ceil((found.max(axis=0) + 1) * ratio)
    return tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))


def starts_of(n, tile, overlap):
    if n <= tile:
        return [0]
    count = int(np.ceil((n - tile) / (tile * (1 - overlap)))) + 1
    return [int(start) for start in np.rint(np.linspace(0, n - tile, count))]


def in_one_piece(hu, network, inference):
    """(slices, rows, columns, classes) float64 of a volume, tile by tile into whole volumes."""
    tile, axes = inference.tile, inference.mirror_axes
    if tile is None or len(tile) == 2:
        return np.stack([_mean_of_tiles(plane, network, inference) for plane in hu])
    if inference.margin is None:
        return _mean_of_tiles(hu, network, inference)
    core = [t - 2 * inference.margin for t in tile]
    counts = [-(-n // q) for n, q in zip(hu.shape, core, strict=True)]
    widths = [
        (inference.margin, inference.margin + c * q - n)
        for n, q, c in zip(hu.shape, core, counts, strict=True)
    ]
    padded, result = np.pad(hu, widths, mode="edge"), np.empty([*np.multiply(counts, core), 3])
    for first in itertools.product(*(range(0, c * q, q) for c, q in zip(counts, core, strict=True))):
        patch = padded[tuple(slice(a, a + t) for a, t in zip(first, tile, strict=True))]
        inner = tuple(slice(inference.margin, inference.margin + q) for q in core)
        window = tuple(slice(a, a + q) for a, q in zip(first, core, strict=True))
        result[window] = _mirrored(patch, network, axes)[inner]
    return result[tuple(slice(n) for n in hu.shape)]


def _mean_of_tiles(hu, network, inference):
    shape = hu.shape
    if inference.tile is None:
        tile = [-(-n // inference.multiple) * inference.multiple for n in shape]
    else:
        tile = inference.tile
    size = [max(n, t) for n, t in zip(shape, tile, strict=True)]
    hu = np.pad(hu, [(0, m - n) for n, m in zip(shape, size, strict=True)], mode="edge")
    weights = np.ones((*tile, 1))
    if inference.gaussian:
        for axis, t in enumerate(tile):
            along = np.exp(-(((np.arange(t) - t // 2) / (t / 8)) ** 2) / 2)
            weights = weights * along.reshape([-1 if a == axis else 1 for a in range(len(tile) + 1)])
    total, summed = np.zeros((*size, 3)), np.zeros((*size, 1))
    for first in itertools.product(
        *(starts_of(n, t, inference.overlap) for n, t in zip(size, tile, strict=True))
    ):
        window = tuple(slice(a, a + t) for a, t in zip(first, tile, strict=True))
        total[window] += weights * _mirrored(hu[window], network, inference.mirror_axes)
        summed[window] += weights
    return (total / summed)[tuple(slice(n) for n in shape)]


def _mirrored(tile, network, axes):
    if tile.ndim == 3 and not (tile > AIR).any():  # 3D tiles of air are background
        return np.eye(3)[np.zeros(tile.shape, int)]
    copies = [chosen for n in range(len(axes) + 1) for chosen in itertools.combinations(axes, n)]
    return sum(np.flip(network(np.flip(tile, chosen)), chosen) for chosen in copies) / len(copies)


def lopsided(hu):
    """Probabilities of a tile of HU: each voxel less its neighbors to the left and above, around the tile's border.

    A mirrored tile or another tile gives other probabilities, so that a wrong cut or a wrong flip is noticed.
    """
    x = np.clip(hu, AIR, 304) / 100
    x = x + (x - np.roll(x, 1, axis=-1)) / 2 + (x - np.roll(x, 1, axis=-2)) / 4
    scores = np.stack([1.2 - 0 * x, 2.5 * x - 1, 4 * x - 5.5], axis=-1)
    odds = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return odds / odds.sum(axis=-1, keepdims=True)


def spec_of(spacing_mm=(None, None, None), crop=False):
    return PreprocessSpec(
        spacing_mm=spacing_mm, crop_to_body=crop, hu_window=(AIR, 304.0), hu_mean=101.0, hu_std=76.9
    )


def as_network(function, spec):
    """A function of HU as the package calls networks: a batch of normalized tiles to float32."""

    def predict_batch(batch):
        hu = batch[..., 0] * spec.hu_std + spec.hu_mean
        return np.stack([function(tile) for tile in hu]).astype(np.float32)

    return predict_batch


def expected_probabilities(hu, spacing_mm, spec, inference):
    """Probabilities on the scan's voxels: resample HU to the grid, predict tiles there, zoom each class back."""
    grid_shape = [
        n if target is None else max(1, round(n * old / target))
        for n, old, target in zip(hu.shape, spacing_mm, spec.spacing_mm, strict=True)
    ]
    box = box_of_body(hu, grid_shape) if spec.crop_to_body else (slice(None),) * 3
    grid = np.zeros((*grid_shape, 3))
    grid[..., 0] = 1
    grid[box] = in_one_piece(np.rint(zoomed(hu, grid_shape))[box], lopsided, inference)
    return np.stack([zoomed(grid[..., c], hu.shape) for c in range(3)], axis=-1)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("mode", MODES)
def test_the_written_file_equals_brute_force(mode, seed, tmp_path, monkeypatch):
    """Random affines, sizes, spacings and target spacings, with the body cut out or not.

    Voxels at which two classes differ by less than 0.02 are not compared: HU are rounded on the grid, and a half may be
    rounded up or down.
    """
    rng = np.random.default_rng([seed, list(MODES).index(mode)])
    scan = random_scan(tmp_path / "scan.nii.gz", rng)
    hu, spacing_mm, to_file = in_kits_axes(scan)
    targets = spacing_mm * rng.uniform(0.6, 1.8, 3)
    spec = spec_of(
        tuple(None if rng.random() < 0.25 else float(t) for t in targets), crop=bool(rng.random() < 0.5)
    )
    member = Member(as_network(lopsided, spec), spec, MODES[mode])
    found = written(scan, member, tmp_path / "out", monkeypatch)
    mean = expected_probabilities(hu, spacing_mm, spec, MODES[mode])
    top = np.sort(mean, axis=-1)
    clear = to_file(top[..., 2] - top[..., 1] > 0.02)
    assert clear.mean() > 0.9
    labels = to_file(mean.argmax(axis=-1))
    np.testing.assert_array_equal(found[clear], labels[clear])
    assert len(np.unique(found[clear])) > 1


@pytest.mark.parametrize("same", ["kept", "named"])
@pytest.mark.parametrize("mode", MODES)
def test_identity_at_equal_spacing(mode, same, tmp_path, monkeypatch):
    """A network that says what a voxel is by its HU gives the labels of all voxels, to the last one.

    "named": the target is the scan's own spacing in mm, so that the way through the resampling is taken.
    """
    for seed in range(3):
        rng = np.random.default_rng([seed, 7])
        scan = random_scan(tmp_path / f"scan{seed}.nii.gz", rng)
        _, spacing_mm, _ = in_kits_axes(scan)
        targets = tuple(map(float, spacing_mm)) if same == "named" else (None, None, None)
        spec = spec_of(targets, crop=seed == 1)

        def by_hu(hu):
            return np.eye(3)[(hu > 100.5).astype(int) + (hu > 200.5)]

        network = as_network(by_hu, spec)
        member = Member(network, spec, MODES[mode], scores=network)
        found = written(scan, member, tmp_path / "out", monkeypatch)
        stored = np.asanyarray(nib.load(scan).dataobj)
        np.testing.assert_array_equal(found, (stored > 100).astype(int) + (stored > 200))
        assert set(np.unique(found)) == {0, 1, 2}


@pytest.mark.parametrize("mode", ["2D tiles, Gaussian, mirrored", "3D cores, mirrored", "3D tiles"])
def test_the_brute_force_tells_modes_apart(mode):
    """The test above can fail: with other overlap, margin or mirroring the labels of many voxels are others."""
    rng = np.random.default_rng(0)
    hu = 120 + 130 * gaussian_filter(rng.normal(size=(14, 22, 24)), 1) * 5
    own = in_one_piece(hu, lopsided, MODES[mode])
    for other in MODES:
        if other != mode:
            changed = in_one_piece(hu, lopsided, MODES[other]).argmax(-1) != own.argmax(-1)
            assert changed.mean() > 0.005, other
