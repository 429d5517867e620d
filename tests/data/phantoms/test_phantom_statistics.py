"""The measure of phantoms against real slices: values by hand, and patients set aside once."""

import csv
import importlib.util
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def statistics():
    spec = importlib.util.spec_from_file_location(
        "phantom_statistics", ROOT / "benchmarks" / "phantom_statistics.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def disc(radius_mm, spacing_mm, size=160):
    y, x = (np.arange(size) - size / 2) * spacing_mm, (np.arange(size) - size / 2) * spacing_mm
    return np.hypot(y[:, None], x) < radius_mm


@pytest.mark.parametrize("spacing_mm", [0.5, 0.8, 1.0])
@pytest.mark.parametrize("inside_mm", [0.0, 2.0])
def test_a_disc_of_kidney_is_measured_as_it_was_made(statistics, spacing_mm, inside_mm):
    """120 HU in fat, ending on the label's border or 2 mm inside it: intensities, half level, noise."""
    labels = disc(30, spacing_mm).astype(np.uint8)
    tissue = ndimage.gaussian_filter(120.0 * disc(30 - inside_mm, spacing_mm), 0.5 / spacing_mm)
    rng = np.random.default_rng(0)
    image = np.clip(np.rint(tissue + rng.normal(0, 10, labels.shape)), 0, 255).astype(np.int16)
    found = statistics.measure(statistics.RealSlice("a", "a", image, labels, (spacing_mm, spacing_mm)))
    assert found["kidney: percentile 50"] == pytest.approx(120, abs=3)
    assert found["kidney, deeper than 9 mm: mean"] == pytest.approx(120, abs=1)
    # a ring of 2 mm of the disc of 30 is 1 - (28 / 30)**2 = 13 % of its area
    share = 1 - ((30 - inside_mm) / 30) ** 2
    assert found["kidney: share below 10 HU"] == pytest.approx(0.75 * share, abs=0.35 * share + 0.01)
    assert found["edge: half level at mm outside the label"] == pytest.approx(-inside_mm, abs=0.5)
    assert 0.2 < found["edge: width in mm (75 % to 25 %)"] < 1.6
    assert 6 < found["noise: deviation"] < 10  # the quietest tenth of windows of 25 pixels
    assert "tumor: mean" not in found


def test_the_patients_kept_aside_are_those_drawn_once(statistics, real_data):
    with (real_data / "kits19_slices" / "slices.csv").open(newline="") as file:
        patients = sorted({row["case"] for row in csv.DictReader(file)})
    assert len(patients) == 28
    drawn = np.random.default_rng(0).choice(patients, 7, replace=False)
    assert tuple(sorted(drawn)) == statistics.ASIDE
    tuning, aside = (
        {item.case for item in statistics.read_slices(real_data / "kits19_slices", which)}
        for which in (False, True)
    )
    assert aside == set(statistics.ASIDE)
    assert tuning == set(patients) - aside


def test_maps_of_the_same_patients_are_not_rendered(statistics, real_data):
    """The slices and the label maps come from different patients, except for the patients in OVERLAP."""
    with (real_data / "kits19_slices" / "slices.csv").open(newline="") as file:
        patients = {row["case"] for row in csv.DictReader(file)}
    maps = {folder.name for folder in (real_data / "kits19").glob("case_*")}
    assert maps & patients <= set(statistics.OVERLAP)
