"""Files beside the label maps: tables of volumes, DICOM SEG, and color tables for viewers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from kitsseg.data.formats.nifti import read_labels
from kitsseg.errors import InputError
from kitsseg.files.atomic import atomic_path
from kitsseg.files.json_records import read_record, write_record
from kitsseg.files.tables import write_rows
from kitsseg.labels.volumes import Volumes, volumes_of
from kitsseg.records.predictions import PredictedScan

if TYPE_CHECKING:
    from kitsseg.data.layouts.scans import Scan

__all__ = [
    "COLOR_TABLES",
    "STATISTICS",
    "CaseVolumes",
    "Statistics",
    "check_products",
    "check_statistics",
    "seg_name",
    "with_volumes",
    "write_color_tables",
    "write_dicom_seg",
    "write_statistics",
]

STATISTICS = ("statistics.csv", "statistics.json")
COLOR_TABLES = ("colors_3d_slicer.ctbl", "colors_itk_snap.txt")
_SIZES = ("left_kidney_ml", "right_kidney_ml", "left_tumor_ml", "right_tumor_ml")  # of Volumes
_COLUMNS = ("case", *_SIZES, "tumors", "tumor_ml", "tumor_sides", "tumors_on_kidneys", "sides_by")
# of the palette of Okabe and Ito, which color-blind people can tell apart
_COLORS = {"kidney": (86, 180, 233), "tumor": (230, 159, 0)}


@dataclass(frozen=True, kw_only=True)
class CaseVolumes:
    """The name of a label map, and its volumes."""

    file: str
    volumes: Volumes


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Content of ``statistics.json``: the volumes of all label maps of a folder, by case, in ml."""

    cases: dict[str, CaseVolumes] = field(default_factory=dict)
    version: int = 1


def check_products(
    scans: Mapping[str, Scan], single_slices: bool, *, dicom_seg: bool, others: Mapping[str, object]
) -> None:
    """Check that the files that the user asked for can be made of these scans, before anything is computed.

    Args:
        scans: name -> Scan.
        single_slices: whether the scans are single slices.
        dicom_seg: whether DICOM SEG was asked for.
        others: option that needs whole scans -> whether it was given.

    Raises: InputError.
    """
    if single_slices:
        asked = [name for name, wanted in {"--dicom-seg": dicom_seg, **others}.items() if wanted]
        if asked:
            raise InputError(f"{asked[0]}: expected whole scans, found single slices. Leave the option out.")
    if not dicom_seg:
        return
    from kitsseg.data.formats.dicom_seg import check_highdicom

    check_highdicom()
    if scans and not any(scan.is_dicom for scan in scans.values()):
        raise InputError(
            f"--dicom-seg: expected DICOM series, found none among {len(scans)} scans, such as "
            f"{next(iter(scans.values())).place}. Leave the option out: a NIfTI file does not name the DICOM study."
        )


def with_volumes(out: Path, entry: PredictedScan) -> PredictedScan:
    """The entry of a scan with the volumes of its label map."""
    if entry.volumes is not None:
        return entry
    labels = read_labels(out / entry.file)
    return replace(entry, volumes=volumes_of(labels.array, labels.grid.spacing_mm))


def check_statistics(out: Path) -> None:
    """Check that statistics.csv and statistics.json, if they are there, are those of an earlier call.

    Raises: InputError for a file of another origin.
    """
    table, record = (out / name for name in STATISTICS)
    advice = "--statistics would replace it. Move it, or choose another folder for --out."
    if table.is_file() and not table.read_bytes().startswith(",".join(_COLUMNS).encode()):
        raise InputError(f"{table}: expected the table of an earlier call, found another file. {advice}")
    if record.is_file():
        read_record(record, Statistics, "the volumes of an earlier call", advice)


def write_statistics(out: Path, cases: Mapping[str, PredictedScan]) -> None:
    """Write ``statistics.csv``, a row for each case, and ``statistics.json`` of all that have volumes."""
    rows, record = [], {}
    for name, entry in sorted(cases.items()):
        if entry.volumes is None:
            continue
        volumes = entry.volumes.rounded()
        rows.append(
            {
                "case": name,
                **{key: getattr(volumes, key) for key in _SIZES},
                "tumors": len(volumes.tumors),
                "tumor_ml": ";".join(f"{one.ml:.3f}" for one in volumes.tumors),
                "tumor_sides": ";".join(one.side for one in volumes.tumors),
                "tumors_on_kidneys": sum(one.touches_kidney for one in volumes.tumors),
                "sides_by": volumes.sides_by,
            }
        )
        record[name] = CaseVolumes(file=entry.file, volumes=volumes)
    write_rows(out / STATISTICS[0], rows, _COLUMNS)
    write_record(out / STATISTICS[1], Statistics(cases=record))


def seg_name(label_map: str) -> str:
    """The name of the DICOM SEG of a label map."""
    return f"{label_map.removesuffix('.gz').removesuffix('.nii')}.dcm"


def write_dicom_seg(out: Path, entry: PredictedScan, scan: Scan, made_by: str) -> None:
    """Write the DICOM SEG of a label map, unless there is one that is younger than the label map.

    Args:
        out: folder of the label maps.
        entry: of the scan in ``predictions.json``.
        scan: Scan, a DICOM series.
        made_by: text for the header.

    Raises: InputError as ``write_segmentation``.
    """
    from kitsseg.data.formats.dicom import slice_files
    from kitsseg.data.formats.dicom_seg import is_segmentation, write_segmentation

    label_map, target = out / entry.file, out / seg_name(entry.file)
    if target.is_file():
        if not is_segmentation(target):
            raise InputError(
                f"{target}: is there, and is no DICOM SEG of kitsseg. Choose another folder for --out, or move "
                "that file."
            )
        if target.stat().st_mtime_ns >= label_map.stat().st_mtime_ns:
            return
    labels = read_labels(label_map)
    # the file's axes are columns, rows, slices
    slices = labels.grid.file_view(labels.array).transpose(2, 1, 0)
    write_segmentation(target, slices, slice_files(scan.path, scan.series), made_by)


def write_color_tables(out: Path) -> None:
    """Write the names and colors of the labels for 3D Slicer and for ITK-SNAP, unless the files exist."""
    numbered = list(enumerate(_COLORS.items(), 1))
    slicer = ["# 3D Slicer color table: Add Data, then choose it for the label map", "0 background 0 0 0 0"]
    slicer += [f"{k} {name} {red} {green} {blue} 255" for k, (name, (red, green, blue)) in numbered]
    snap = ["# ITK-SNAP label descriptions: Segmentation, Import Label Descriptions"]
    snap += ["# IDX   R   G   B   A  VIS MSH  LABEL", '0 0 0 0 0 0 0 "background"']
    snap += [f'{k} {red} {green} {blue} 1 1 1 "{name}"' for k, (name, (red, green, blue)) in numbered]
    for name, lines in zip(COLOR_TABLES, (slicer, snap), strict=True):
        if not (out / name).exists():
            with atomic_path(out / name) as temporary:
                temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
