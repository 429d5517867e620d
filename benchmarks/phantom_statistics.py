"""How far synthetic CT is from real CT, in numbers: python benchmarks/phantom_statistics.py SHARED --out FOLDER

SHARED is the folder that holds ``kits19_slices`` (79 real slices of 28 KiTS19 patients, chosen by somebody else, HU
clipped to 0..255) and ``kits19`` (label maps). The same statistics are taken of the real slices, of CT rendered on
the label maps and of procedural patients, all clipped to 0..255: intensities inside kidney and tumor and around them,
noise, edges, and how bright each place around the kidneys is on average. FOLDER gets ``statistics.csv``, a row for
each source and statistic; ``statistics.json``, the same with curves and maps; and ``statistics.png``. To compare with
an earlier generator, give its ``statistics.json`` as ``--before``.

Seven of the 28 patients are set aside (ASIDE): they never tune the generator, and are measured here only if asked for.
"""

import argparse
import csv
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from kitsseg.data.formats.nifti import read_labels
from kitsseg.data.phantoms.render import render_ct
from kitsseg.data.phantoms.synthesize import draw_labels
from kitsseg.files.atomic import atomic_path

__all__ = ["ASIDE", "OVERLAP", "RealSlice", "read_slices"]

# numpy.random.default_rng(0).choice(sorted names of the 28 patients, 7, replace=False): a quarter, drawn once. They
# decide whether the generator carries over, so nothing of the generator may be chosen with them in view.
ASIDE = ("case_00026", "case_00030", "case_00067", "case_00078", "case_00107", "case_00114", "case_00137")
# these patients are among the real slices too, so their label maps are not rendered where the slices are the test
OVERLAP = ("case_00030", "case_00113")

DEPTHS = np.arange(-10.0, 15.0)  # mm from the border of the kidneys and tumors, inside negative
MAP_MM, MAP_HALF = 6.0, 168.0


@dataclass(frozen=True)
class RealSlice:
    """One real slice: HU clipped to 0..255 and labels (rows, columns), spacing in mm."""

    case: str
    file: str
    image: npt.NDArray[np.int16]
    labels: npt.NDArray[np.uint8]
    spacing_mm: tuple[float, float]


def read_slices(folder: Path, aside: bool) -> list[RealSlice]:
    """Read the real slices of the patients set aside, or of all others."""
    from PIL import Image

    with (folder / "slices.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if (row["case"] in ASIDE) == aside]
    return [
        RealSlice(
            row["case"],
            row["file"],
            np.asarray(Image.open(folder / "images" / row["file"])).astype(np.int16),
            np.asarray(Image.open(folder / "labels" / row["file"])),
            (float(row["spacing_mm_rows"]), float(row["spacing_mm_columns"])),
        )
        for row in rows
    ]


def rendered(folder: Path, seed: int) -> Iterator[RealSlice]:
    """Three slices of each label map, rendered: chosen among those with tumor, as somebody chose the real ones."""
    for case in sorted(folder.glob("case_*")):
        if case.name in OVERLAP:
            continue
        volume = read_labels(case / "segmentation.nii.gz")
        spacing, labels = np.array(volume.grid.spacing_mm), volume.array
        step = max(1, round(4 / spacing[0]))
        where = np.flatnonzero(labels.any(axis=(1, 2)))
        labels = np.ascontiguousarray(labels[max(0, where[0] - 10) : where[-1] + 10 : step])
        rng = np.random.default_rng((seed, zlib.crc32(case.name.encode())))
        image = render_ct(labels, (spacing[0] * step, *spacing[1:]), rng)
        yield from _chosen(case.name, image, labels, spacing[1:], rng)


def procedural(n_cases: int, seed: int) -> Iterator[RealSlice]:
    """Three slices of each procedural patient, at a real scan's resolution in plane."""
    for number in range(n_cases):
        rng = np.random.default_rng((seed, number))
        across = rng.uniform(370, 400) / 448
        spacing = (rng.uniform(170, 190) / 40, across, across)
        labels = draw_labels((40, 448, 448), spacing, rng)
        image = render_ct(labels, spacing, rng)
        yield from _chosen(f"patient {number}", image, labels, spacing[1:], rng)


def _chosen(name, image, labels, spacing, rng):
    pool = np.flatnonzero((labels == 2).any(axis=(1, 2)))
    if not len(pool):
        pool = np.flatnonzero(labels.any(axis=(1, 2)))
    for k in rng.choice(pool, min(3, len(pool)), replace=False):
        yield RealSlice(
            name, f"{name} {k}", np.clip(image[k], 0, 255), labels[k], tuple(float(s) for s in spacing)
        )


def measure(item: RealSlice) -> dict[str, float]:
    """Statistics of one slice; a label that does not occur has none."""
    image, labels = item.image, item.labels
    foreground = labels > 0
    outside = ndimage.distance_transform_edt(~foreground, item.spacing_mm)
    inside = ndimage.distance_transform_edt(foreground, item.spacing_mm)
    regions = {"kidney": labels == 1, "tumor": labels == 2, "ring 2-10 mm": (outside > 2) & (outside < 10)}
    result = {}
    for name, mask in regions.items():
        if np.count_nonzero(mask) < 40:
            continue
        values = image[mask]
        result[f"{name}: mean"] = float(values.mean())
        result[f"{name}: deviation"] = float(values.std())
        for percent in (5, 50, 95):
            result[f"{name}: percentile {percent}"] = float(np.percentile(values, percent))
        result[f"{name}: share below 10 HU"] = float((values < 10).mean())
    for name, mask in {
        "cortex, 1.5-4 mm deep": (labels == 1) & (inside > 1.5) & (inside < 4),
        "kidney, deeper than 9 mm": (labels == 1) & (inside > 9),
    }.items():
        if np.count_nonzero(mask) > 40:
            result[f"{name}: mean"] = float(image[mask].mean())
    soft = regions["ring 2-10 mm"]
    result["ring 2-10 mm: share above 120 HU"] = float((image[soft] > 120).mean())
    # local deviation where nothing is clipped; its 10th percentile is that of even tissue: noise
    pixels = image.astype(np.float64)
    mean = ndimage.uniform_filter(pixels, 5)
    spread = np.sqrt(np.maximum(ndimage.uniform_filter(pixels**2, 5) - mean**2, 0))
    even = (ndimage.minimum_filter(image, 5) > 5) & (mean > 40) & (mean < 200)
    if np.count_nonzero(even) > 100:
        result["noise: deviation"] = float(np.percentile(spread[even], 10))
    profile = border_profile(item)
    # millimeters from 75 % to 25 % of the step between parenchyma and fat
    across = slice(6, 14)  # 4 mm inside to 3 mm outside
    if not np.isnan(profile[across]).any():
        falling = np.minimum.accumulate(profile[across])
        low, high = falling[-1], falling[0]
        at = [
            float(np.interp(-(low + share * (high - low)), -falling, DEPTHS[across]))
            for share in (0.75, 0.5, 0.25)
        ]
        result["edge: width in mm (75 % to 25 %)"] = at[2] - at[0]
        result["edge: half level at mm outside the label"] = at[1]
    return result


def border_profile(item: RealSlice) -> npt.NDArray[np.float64]:
    """Mean HU at each of DEPTHS; NaN where the labels are not that deep."""
    foreground, half = item.labels > 0, np.mean(item.spacing_mm) / 2
    outside = ndimage.distance_transform_edt(~foreground, item.spacing_mm) - half
    inside = ndimage.distance_transform_edt(foreground, item.spacing_mm) - half
    depth = np.where(foreground, -inside, outside)
    bins = [item.image[np.abs(depth - d) <= 0.5] for d in DEPTHS]
    return np.array([values.mean() if values.size else np.nan for values in bins])


def profile_and_map(item: RealSlice) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """HU against depth, and HU on a coarse map around the middle of the image's kidneys and tumors."""
    profile, foreground = border_profile(item), item.labels > 0
    rows = np.nonzero(foreground)[0]
    # The map is centered on the kidneys along the rows, and on the body along the columns. Bone and soft tissue tell
    # where the body is.
    body = np.flatnonzero((item.image > 20).sum(axis=0) > 20)
    center = (rows.mean(), (body[0] + body[-1]) / 2)
    offsets = np.arange(-MAP_HALF, MAP_HALF + 1, MAP_MM)
    at = [c + offsets / s for c, s in zip(center, item.spacing_mm)]
    smooth = ndimage.uniform_filter(item.image.astype(np.float32), [MAP_MM / s for s in item.spacing_mm])
    grid = np.meshgrid(*at, indexing="ij")
    return profile, ndimage.map_coordinates(smooth, grid, order=1, mode="constant")


def summary(slices: list[RealSlice]) -> dict:
    """Means over patients of the means over each patient's slices, and the spread between patients."""
    by_case: dict[str, list] = {}
    for item in slices:
        by_case.setdefault(item.case, []).append(item)
    names = list(dict.fromkeys(name for item in slices for name in measure(item)))
    rows = []
    for items in by_case.values():
        measured = [measure(item) for item in items]
        rows.append(
            {
                name: float(np.mean([m[name] for m in measured if name in m]))
                for name in names
                if any(name in m for m in measured)
            }
        )
    table = {}
    for name in names:
        values = np.array([row[name] for row in rows if name in row])
        low, middle, high = np.percentile(values, (5, 50, 95))
        table[name] = {
            "mean": float(values.mean()),
            "between patients": float(values.std()),
            "5 %": float(low),
            "50 %": float(middle),
            "95 %": float(high),
            "patients": len(values),
        }
    curves = [profile_and_map(items[len(items) // 2]) for items in by_case.values()]
    histograms = {}
    for label, name in ((1, "kidney"), (2, "tumor")):
        each = [
            np.histogram(np.concatenate(values), bins=64, range=(0, 256), density=True)[0]
            for items in by_case.values()
            if (values := [i.image[i.labels == label] for i in items if (i.labels == label).any()])
        ]
        histograms[name] = np.mean(each, axis=0).tolist()
    return {
        "table": table,
        "profile": np.nanmean([profile for profile, _ in curves], axis=0).tolist(),
        "map": np.mean([plane for _, plane in curves], axis=0).tolist(),
        "histograms": histograms,
    }


def draw(found: dict[str, dict], path: Path) -> None:
    """One figure: histograms, the profile across the border and the mean maps of all sources."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, max(3, len(found)), figsize=(3.2 * max(3, len(found)), 6.4), squeeze=False)
    for ax in axes[0, 3:]:
        ax.axis("off")
    centers = np.arange(64) * 4 + 2
    for name, item in found.items():
        style = {"color": "black", "lw": 2} if name == "real" else {"ls": "--" if "before" in name else "-"}
        for ax, label in zip(axes[0], ("kidney", "tumor")):
            # the first and the last bin also hold all clipped values and would dwarf the others, so they are not drawn
            ax.plot(centers[1:-1], item["histograms"][label][1:-1], label=name, **style)
            ax.set(title=label, xlabel="HU", yticks=[])
        axes[0, 2].plot(DEPTHS, item["profile"], label=name, **style)
    axes[0, 2].set(title="across the label's border", xlabel="mm outside", ylabel="HU, clipped to 0..255")
    axes[0, 2].legend(fontsize=7)
    for ax in axes[1]:
        ax.axis("off")
    for ax, (name, item) in zip(axes[1], found.items()):
        ax.imshow(item["map"], vmin=0, vmax=200, cmap="gray")
        ax.set_title(f"{name}: mean of patients", fontsize=8)
    figure.tight_layout()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=90, format="png")
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shared", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--before", type=Path, help="statistics.json of an earlier generator")
    parser.add_argument(
        "--aside", action="store_true", help="the seven patients set aside instead of the others"
    )
    parser.add_argument("--cases", type=int, default=24, help="procedural patients (default: 24)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    found = {
        "real": summary(read_slices(arguments.shared / "kits19_slices", arguments.aside)),
        "rendered": summary(list(rendered(arguments.shared / "kits19", arguments.seed))),
        "procedural": summary(list(procedural(arguments.cases, arguments.seed))),
    }
    shown = dict(found)
    if arguments.before:
        before = json.loads(arguments.before.read_text())
        shown |= {f"{name}, before": before[name] for name in ("rendered", "procedural")}
    arguments.out.mkdir(parents=True, exist_ok=True)
    with atomic_path(arguments.out / "statistics.json") as temporary:
        temporary.write_text(json.dumps(found))
    columns = ("mean", "between patients", "5 %", "50 %", "95 %", "patients")
    with (
        atomic_path(arguments.out / "statistics.csv") as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("statistic", "source", *columns))
        for name in found["real"]["table"]:
            for source, item in shown.items():
                if (row := item["table"].get(name)) is not None:
                    writer.writerow((name, source, *(f"{row[column]:.4g}" for column in columns)))
    draw(shown, arguments.out / "statistics.png")
    for name in found["real"]["table"]:
        each = ", ".join(
            f"{source} {item['table'][name]['mean']:.3g} ({item['table'][name]['between patients']:.2g})"
            for source, item in shown.items()
            if name in item["table"]
        )
        print(f"{name}: {each}")


if __name__ == "__main__":
    main()
