"""Damage files in every way a disk, a copy or an export can, and see what the command line makes of them.

    python scripts/fuzz.py                                  # 300 of each kind, a few minutes
    python scripts/fuzz.py --count 5000 --seed 7 nifti1 dicom
    python scripts/fuzz.py --keep FOLDER                    # keeps the inputs of trials that ended as "other"

Every trial writes whole inputs, damages some of them, and calls one command. Two endings are right. Either the command
refuses the input in one line that names the input, and leaves no temporary file. Or the command succeeds, and its
result passes a check; for scans and label maps this check uses an independent reader (nibabel, pydicom). Every other
ending is counted as "other" and printed: a traceback, a second line, a crash, more than ``--seconds``, a wrong result.
The exit code is 1 if any trial ended as "other". The same seed gives the same damage.

A kind of input is a ``Kind``: it says how whole inputs are made, damaged, used and confirmed. Add one to ``KINDS``.
"""

import argparse
import contextlib
import csv
import functools
import gzip
import io
import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.affines import voxel_sizes

from kitsseg.cli import main as kitsseg

__all__ = ["KINDS", "Kind", "damaged_bytes", "run"]

MEMORY_BYTES = 6 << 30
SPECIAL = (0, 1, 2, 3, 8, 16, 127, 128, 255, 256, 32767, 32768, 65535, 2**31 - 1, 2**31, 2**63 - 1)
SPECIAL_FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-3, 1e3, 1e-30, 1e30, 352.0, 1 << 30, np.nan, np.inf, -np.inf)


@dataclass(frozen=True)
class Kind:
    """One kind of input.

    Attributes:
        make: writes whole inputs into an empty folder.
        damage: damages some of these inputs; returns a description of the damage.
        command: arguments of ``kitsseg`` for the folder.
        confirm: raises AssertionError if the result is wrong; called after the command has succeeded.
        names: paths of inputs, or beginnings of such paths; the line of an error has to hold one of them.
    """

    make: Callable[[Path], None]
    damage: Callable[[Path, np.random.Generator], str]
    command: Callable[[Path, np.random.Generator], list[str]]
    confirm: Callable[[Path], None]
    names: tuple[str, ...]


# ---- damage that any file may take ----------------------------------------------------------------------------------


def damaged_bytes(
    content: bytes, rng: np.random.Generator, start: int = 0, stop: int | None = None
) -> tuple[bytes, str]:
    """Change bytes from ``start`` to ``stop``, cut the content or lengthen it; returns (new content, description)."""
    data = bytearray(content)
    stop = len(data) if stop is None else min(stop, len(data))
    if stop <= start:
        return b"x", "one byte"
    how = rng.choice(
        ["bit", "byte", "special", "block", "cut", "longer", "swap"], p=[0.3, 0.2, 0.2, 0.1, 0.1, 0.05, 0.05]
    )
    place = int(rng.integers(start, stop))
    if how == "bit":
        data[place] ^= 1 << int(rng.integers(8))
    elif how == "byte":
        for k in rng.integers(start, stop, int(rng.integers(1, 5))):
            data[k] = int(rng.integers(256))
    elif how == "special":
        size = int(rng.choice([1, 2, 4, 8]))
        value = int(rng.choice(np.array(SPECIAL, np.uint64))) % (1 << 8 * size)
        data[place : place + size] = value.to_bytes(size, str(rng.choice(["little", "big"])))
    elif how == "block":
        size = int(rng.integers(1, 200))
        data[place : place + size] = rng.choice([b"\0", b"\xff", b"A"]) * size
    elif how == "cut":
        del data[place if rng.random() < 0.7 else int(rng.integers(len(data))) :]
    elif how == "longer":
        data += bytes(int(rng.integers(1, 5000)))
    else:
        size = int(rng.integers(1, 60))
        data[place : place + size], data[start : start + size] = (
            data[start : start + size],
            data[place : place + size],
        )
    return bytes(data), f"{how} at {place}"


# ---- NIfTI ----------------------------------------------------------------------------------------------------------

SHAPE = (20, 24, 12)
AFFINE = np.diag([-6.0, -6.0, 8.0, 1.0])


def body() -> tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8]]:
    """HU and labels in the axes of the file: air, fat, a body, a kidney with a tumor."""
    rng = np.random.default_rng(0)
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij")
    radius = x**2 + y**2
    hu = np.where(radius < 0.5, 40.0, np.where(radius < 0.7, -100.0, -1000.0))
    labels = np.zeros(SHAPE, np.uint8)
    labels[(x - 0.3) ** 2 + y**2 + z**2 < 0.1] = 1
    labels[(x - 0.3) ** 2 + y**2 + z**2 < 0.03] = 2
    hu[labels > 0] += 120
    return (hu + rng.normal(0, 12, SHAPE)).round().clip(-1024, 3000).astype(np.int16), labels


def save(path: Path, array: npt.NDArray, kind: type, forms: str = "sq") -> None:
    image = kind(array, None)
    image.header["pixdim"][1:4] = np.abs(np.diag(AFFINE)[:3])
    if "q" in forms:
        image.set_qform(AFFINE, 1)
    if "s" in forms:
        image.set_sform(AFFINE, 1)
    image.header.set_xyzt_units("mm")
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)


def damage_nifti(path: Path, rng: np.random.Generator) -> str:
    """Damage a .nii.gz: a field of its header, any byte of the header or of the numbers, or the packed stream."""
    packed = path.read_bytes()
    content = gzip.decompress(packed)
    header = nib.Nifti1Header if content[:2] == b"\x5c\x01" else nib.Nifti2Header
    size = header.sizeof_hdr
    where = rng.choice(["field", "header", "body", "packed"], p=[0.5, 0.3, 0.1, 0.1])
    if where == "packed":
        content, how = damaged_bytes(packed, rng)
        path.write_bytes(content)
        return f"packed: {how}"
    if where == "field":
        changed = header(content[:size], check=False).structarr.copy()
        name = str(rng.choice([name for name in changed.dtype.names if name != "sizeof_hdr"]))
        values = changed[name] if changed[name].ndim else changed[name].reshape(1)
        k = int(rng.integers(values.size))
        if values.dtype.kind == "S":
            changed[name] = rng.bytes(int(rng.integers(0, 5)))
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                choices = SPECIAL_FLOATS if values.dtype.kind == "f" else SPECIAL
                value = choices[int(rng.integers(len(choices)))]
                old = float(values.flat[k])
                value = rng.choice([value, -value, old * 2, old * 0.99, old + 1, -old])
                if values.dtype.kind in "iu":
                    info = np.iinfo(values.dtype)
                    value = min(max(int(np.nan_to_num(float(value))), int(info.min)), int(info.max))
                values.flat[k] = value
                if not changed[name].ndim:
                    changed[name] = values[0]
        content = changed.tobytes() + content[size:]
        how = f"field {name}[{k}]"
    else:
        limits = (4, size) if where == "header" else (size, len(content))
        content, how = damaged_bytes(content, rng, *limits)
        how = f"{where}: {how}"
    path.write_bytes(gzip.compress(content, 1))
    return how


def same_as_nibabel(path: Path) -> None:
    """What kitsseg reads as an image is what nibabel reads: every value, the affine, the voxel sizes."""
    from kitsseg.data.formats.nifti import read_image

    ours, theirs = read_image(path), nib.load(path)
    values = np.clip(np.rint(theirs.get_fdata()), -32768, 32767)
    values = values.reshape(values.shape[:3])
    assert np.array_equal(ours.grid.file_view(ours.array), values), "other values than nibabel"
    assert np.array_equal(ours.grid.header.get_best_affine(), theirs.affine), "another affine than nibabel"
    sizes = np.array(ours.grid.spacing_mm)[list(ours.grid.axes)]
    assert np.allclose(sizes, voxel_sizes(theirs.affine), rtol=1e-6), "other voxel sizes than nibabel"
    axes = nib.orientations.aff2axcodes(theirs.affine)
    for code, axis, target in zip(
        axes, ours.grid.axes, (ours.grid.flipped[axis] for axis in ours.grid.axes), strict=True
    ):
        assert code in (("I", "S"), ("P", "A"), ("L", "R"))[axis], "an axis where nibabel has another"
        assert target == (code in "SAR"), "an axis in the other direction than nibabel's"


IMAGE, LABELS = "case_90000/imaging.nii.gz", "case_90000/segmentation.nii.gz"


def image_kind(kind: type) -> Kind:
    def make(folder: Path) -> None:
        hu, labels = body()
        forms = "sq"
        save(folder / "data" / IMAGE, hu, kind, forms)
        save(folder / "data" / LABELS, labels, kind, forms)

    def damage(folder: Path, rng: np.random.Generator) -> str:
        if rng.random() < 0.4:  # a header with only one of sform and qform
            save(folder / "data" / IMAGE, body()[0], kind, str(rng.choice(["s", "q"])))
        return damage_nifti(folder / "data" / IMAGE, rng)

    def command(folder: Path, rng: np.random.Generator) -> list[str]:
        if rng.random() < 0.5:
            return ["verify", str(folder / "data"), "--not-kits19"]
        return ["preprocess", "unet2d:tiny", str(folder / "data"), str(folder / "cache")]

    return Kind(make, damage, command, lambda folder: same_as_nibabel(folder / "data" / IMAGE), ("data",))


def dice_of(prediction: Path, truth: Path) -> tuple[float, float]:
    """Dice of kidney with tumor and of tumor, of the arrays that nibabel reads, after both have the same order of axes.

    A header may state four axes, the last of length one. nibabel then returns an array of four axes, which is reshaped
    to three here, because the product of an array of three axes and an array of four would be wrong.
    """
    turned = (nib.as_closest_canonical(nib.load(path)).get_fdata() for path in (prediction, truth))
    one, other = (np.rint(values.reshape(values.shape[:3])) for values in turned)
    scores = []
    for low in (1, 2):
        a, b = one >= low, other >= low
        total = a.sum() + b.sum()
        scores.append(2 * float((a & b).sum()) / total if total else 1.0)
    return scores[0], scores[1]


def labels_kind(kind: type) -> Kind:
    def make(folder: Path) -> None:
        _, labels = body()
        save(folder / "truth" / LABELS, labels, kind)
        save(folder / "predicted" / "prediction_90000.nii.gz", np.roll(labels, 1, axis=0), kind)

    def damage(folder: Path, rng: np.random.Generator) -> str:
        chosen = ("truth/" + LABELS, "predicted/prediction_90000.nii.gz")[int(rng.integers(2))]
        return f"{chosen}: {damage_nifti(folder / chosen, rng)}"

    def command(folder: Path, rng: np.random.Generator) -> list[str]:
        more = ["--surface"] if rng.random() < 0.2 else []
        return [
            "evaluate",
            str(folder / "predicted"),
            str(folder / "truth"),
            "--out",
            str(folder / "s.csv"),
            *more,
        ]

    def confirm(folder: Path) -> None:
        with (folder / "s.csv").open(newline="", encoding="utf-8") as file:
            [row] = csv.DictReader(file)
        expected = dice_of(folder / "predicted" / "prediction_90000.nii.gz", folder / "truth" / LABELS)
        found = float(row["tk_dice"]), float(row["tu_dice"])
        assert np.allclose(found, expected, atol=1e-6), f"expected Dice {expected}, found {found}"

    return Kind(make, damage, command, confirm, ("truth", "predicted"))


# ---- DICOM ----------------------------------------------------------------------------------------------------------

SLICES = 6


def make_series(folder: Path) -> None:
    import pydicom
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    series = folder / "data" / "90000"
    series.mkdir(parents=True)
    hu = body()[0]
    for k in range(SLICES):
        d = pydicom.Dataset()
        d.file_meta = FileMetaDataset()
        d.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        d.file_meta.MediaStorageSOPClassUID = d.SOPClassUID = CTImageStorage
        d.file_meta.MediaStorageSOPInstanceUID = d.SOPInstanceUID = f"1.2.826.0.1.3680043.8.498.9.{k}"
        d.SeriesInstanceUID, d.Modality, d.InstanceNumber = "1.2.826.0.1.3680043.8.498.8", "CT", k + 1
        d.StudyInstanceUID, d.PatientID, d.AcquisitionNumber = "1.2.826.0.1.3680043.8.498.7", "p", 1
        d.ImageType, d.SliceThickness = ["ORIGINAL", "PRIMARY", "AXIAL"], 8
        d.ImageOrientationPatient, d.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [-60, -72, 8.0 * k]
        d.PixelSpacing, d.Rows, d.Columns = [6, 6], SHAPE[1], SHAPE[0]
        d.BitsAllocated = d.BitsStored = 16
        d.HighBit, d.SamplesPerPixel, d.PixelRepresentation = 15, 1, 0
        d.PhotometricInterpretation = "MONOCHROME2"
        d.RescaleSlope, d.RescaleIntercept, d.RescaleType = 1, -1024, "HU"
        d.PixelData = (hu[:, :, k].T.astype(np.int32) + 1024).astype("<u2").tobytes()
        d["PixelData"].VR = "OW"
        d.save_as(series / f"IM{k:04d}", enforce_file_format=True)


def damage_series(folder: Path, rng: np.random.Generator) -> str:
    import pydicom

    files = sorted((folder / "data" / "90000").iterdir())
    chosen = [files[k] for k in rng.permutation(len(files))[: int(rng.choice([1, 1, 2, 3]))]]
    how = str(rng.choice(["header", "any", "element", "preamble", "empty", "link", "gone", "twice", "packed"],
                         p=[0.35, 0.15, 0.25, 0.05, 0.04, 0.04, 0.04, 0.04, 0.04]))  # fmt: skip
    for path in chosen:
        content = path.read_bytes()
        if how in ("header", "any"):
            end = len(content) - 2 * SHAPE[0] * SHAPE[1] if how == "header" else None
            content, _ = damaged_bytes(content, rng, 0, end)
            path.write_bytes(content)
        elif how == "element":
            dataset = pydicom.dcmread(path)
            element = dataset[list(dataset.keys())[int(rng.integers(len(dataset) - 1))]]
            values = [
                "",
                None,
                "0",
                "1",
                "-1",
                "1e9",
                "1e-9",
                "nan",
                "inf",
                "9" * 16,
                "a",
                ["1", "2"],
                ["0"] * 6,
            ]
            value = values[int(rng.integers(len(values)))]
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    dataset[element.tag] = pydicom.DataElement(element.tag, element.VR, value)
                    dataset.save_as(path)
            except Exception:  # a value that pydicom does not write
                path.write_bytes(content)
        elif how == "preamble":
            path.write_bytes(content[132:])
        elif how == "empty":
            path.write_bytes(b"")
        elif how == "packed":
            path.write_bytes(gzip.compress(content))
        elif how == "twice":
            path.with_name(f"{path.name}b").write_bytes(content)
        else:
            path.unlink()
            if how == "link":
                path.symlink_to("nowhere")
    return f"{how} of {', '.join(path.name for path in chosen)}"


def confirm_series(folder: Path) -> None:
    """Check that every file has become a slice at the file's position, with the values that pydicom reads."""
    import pydicom
    from pydicom.uid import ExplicitVRLittleEndian

    from kitsseg.data.formats.dicom import read_series

    files = sorted((folder / "data" / "90000").iterdir())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        volume = read_series(folder / "data" / "90000")
        slices = []
        for path in files:
            d = pydicom.dcmread(path, force=True)
            if "TransferSyntaxUID" not in d.file_meta:
                d.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            hu = np.clip(
                np.rint(d.pixel_array * float(d.RescaleSlope) + float(d.RescaleIntercept)), -32768, 32767
            )
            slices.append((np.array(d.ImagePositionPatient, float), hu.astype(np.int16)))
    assert len(slices) == volume.array.shape[0] >= SLICES - 3, (
        f"{len(slices)} files, {volume.array.shape[0]} slices"
    )
    affine = volume.grid.header.get_best_affine()
    view = volume.grid.file_view(volume.array)
    for position, hu in slices:
        k = np.rint((np.linalg.inv(affine) @ (*(position * (-1, -1, 1)), 1))[:3]).astype(int)
        assert (k[:2] == 0).all(), f"the slice at {position} begins at voxel {k}"
        assert np.array_equal(view[:, :, k[2]], hu.T), f"other values than pydicom at {position}"


def make_labelled_series(folder: Path) -> None:
    make_series(folder)
    labels = body()[1][:, :, :SLICES]
    path = folder / "labels" / "90000.nii.gz"
    path.parent.mkdir()
    affine = np.array([[-6.0, 0, 0, 60], [0, -6, 0, 72], [0, 0, 8, 0], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(labels, affine), path)


def preprocess_series(folder: Path, rng: np.random.Generator) -> list[str]:
    return ["preprocess", "unet2d:tiny", str(folder), str(folder / "cache"), "--images", "data/*", "--labels",
            "labels/*.nii.gz"]  # fmt: skip


# ---- records, networks, exported files ------------------------------------------------------------------------------

STRANGE = (None, True, 0, -1, 1.5, 1e999, float("nan"), "", "a", "../x", [], [1], {}, 10**400, "9" * 5000)


def damage_text(path: Path, rng: np.random.Generator) -> str:
    """Damage a JSON or CSV file: a value of it, a cell of it, its nesting, or its bytes."""
    content = path.read_bytes()
    how = str(rng.choice(["value", "bytes", "deep", "empty", "gone"], p=[0.55, 0.35, 0.04, 0.03, 0.03]))
    if how == "bytes":
        content, how = damaged_bytes(content, rng)
    elif how == "deep":
        content = rng.choice([b"[", b'{"a":']) * 60_000
    elif how == "empty":
        content = b""
    elif how == "gone":
        path.unlink()
        return "gone"
    elif path.suffix == ".json":
        record = json.loads(content)
        holder, key = record, None
        while isinstance(holder, dict | list) and holder:
            keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
            before, key = holder, keys[int(rng.integers(len(keys)))]
            holder = holder[key]
            if rng.random() < 0.25:
                break
        value = STRANGE[int(rng.integers(len(STRANGE)))]
        if rng.random() < 0.2:
            before.pop(key)
        else:
            before[key] = value
        how, content = f"{key} = {str(value)[:20]}", json.dumps(record).encode()
    else:
        rows = list(csv.reader(content.decode().splitlines()))
        row = rows[int(rng.integers(len(rows)))]
        k = int(rng.integers(len(row)))
        row[k] = str(rng.choice(["", "nan", "inf", "-1", "a", "1e999", "9" * 50, "=1+1", "\x00"]))
        how = f"cell {k} = {row[k][:20]}"
        content = ("\n".join(",".join(row) for row in rows) + "\n").encode()
    path.write_bytes(content)
    return how


def damage_one_of(*patterns: str) -> Callable[[Path, np.random.Generator], str]:
    def damage(folder: Path, rng: np.random.Generator) -> str:
        files = [path for pattern in patterns for path in sorted(folder.glob(pattern))]
        path = files[int(rng.integers(len(files)))]
        if path.suffix in (".json", ".csv"):
            return f"{path.name}: {damage_text(path, rng)}"
        content, how = damaged_bytes(path.read_bytes(), rng)
        path.write_bytes(content)
        return f"{path.name}: {how}"

    return damage


def damage_archive(path: Path, rng: np.random.Generator) -> str:
    """Damage one entry of a zip archive and write it anew: all its checksums are right."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    name = sorted(entries)[int(rng.integers(len(entries)))]
    if name.endswith(".json"):
        beside = path.with_name("entry.json")
        beside.write_bytes(entries[name])
        how = damage_text(beside, rng)
        changed = beside.read_bytes() if beside.exists() else None
        beside.unlink(missing_ok=True)
    else:
        # Most bytes of an entry belong to numbers, and any number is valid. The first bytes say what the numbers are,
        # so these bytes are damaged more often.
        stop = 300 if rng.random() < 0.7 else None
        changed, how = damaged_bytes(entries[name], rng, 0, stop)
    with zipfile.ZipFile(path, "w") as archive:
        for other, content in entries.items():
            if (content := changed if other == name else content) is not None:
                archive.writestr(other, content)
    return f"{path.name}, {name}: {how}"


def damage_inside(*patterns: str) -> Callable[[Path, np.random.Generator], str]:
    """As ``damage_one_of``, for archives; three of four are written anew around the damage."""
    whole = damage_one_of(*patterns)

    def damage(folder: Path, rng: np.random.Generator) -> str:
        if rng.random() < 0.25:
            return whole(folder, rng)
        files = [path for pattern in patterns for path in sorted(folder.glob(pattern))]
        return damage_archive(files[int(rng.integers(len(files)))], rng)

    return damage


def small_recipe() -> Any:
    from kitsseg import recipes

    values = {"model.start_filters": 4, "model.n_pools": 2, "phases.train.steps_per_epoch": 1}
    return recipes.given(recipes.get("unet2d:tiny"), values)


def make_run(folder: Path) -> None:
    """Copy what ``_run_made`` has made; several kinds damage parts of it."""
    shutil.copytree(_run_made().name, folder, dirs_exist_ok=True)


@functools.cache
def _run_made() -> "tempfile.TemporaryDirectory[str]":
    made = tempfile.TemporaryDirectory(prefix="kitsseg-fuzz-run-")
    _make_run(Path(made.name))
    return made


def _make_run(folder: Path) -> None:
    """Scans and their labels, their cache, a run of a small network of random weights, and what it predicts."""
    import keras

    from kitsseg.data.splits import CaseSplit
    from kitsseg.records.run import create_run, read_run, update_run, write_history

    hu, labels = body()
    for k in range(3):
        save(
            folder / "data" / f"case_9000{k}" / "imaging.nii.gz",
            np.roll(hu, k, axis=1) + 9 * k,
            nib.Nifti1Image,
        )
        save(
            folder / "data" / f"case_9000{k}" / "segmentation.nii.gz",
            np.roll(labels, k, axis=1),
            nib.Nifti1Image,
        )
    with contextlib.redirect_stdout(io.StringIO()):
        assert kitsseg(["preprocess", "unet2d:tiny", str(folder / "data"), str(folder / "cache")]) == 0
        assert kitsseg(["verify", str(folder / "data"), "--not-kits19"]) == 0
    recipe = small_recipe()
    split = CaseSplit("three", ("case_90000",), ("case_90001",), ("case_90002",))
    run = create_run(folder / "run", recipe, split, 0, {"seconds": 1.0, "cache": str(folder / "cache")})
    keras.utils.set_random_seed(0)
    recipe.build_model(**recipe.model).save(run / "model.keras")
    write_history(run, [{"phase": "train", "epoch": 1, "learning_rate": 1e-3, "loss": 0.5, "val_loss": 0.6}])
    record = read_run(run)
    record.status = "finished"
    update_run(run, record)
    with contextlib.redirect_stdout(io.StringIO()):
        for name in ("net.tflite", "net.onnx"):
            command = ["export", str(run), "--out", str(folder / name), "--size", "32,32"]
            code = kitsseg([*command, "--cache", str(folder / "cache")])
            assert code == 0, name
        out, table = str(folder / "maps"), str(folder / "scores.csv")
        assert kitsseg(["predict", str(folder / "net.tflite"), str(folder / "data"), "--out", out]) == 0
        scan, by_run = str(folder / "data" / "case_90000"), str(folder / "by_run")
        assert kitsseg(["predict", str(folder / "run"), scan, "--out", by_run]) == 0
        assert kitsseg(["evaluate", out, str(folder / "data"), "--out", table]) == 0


def use_run(folder: Path, rng: np.random.Generator) -> list[str]:
    page = ["report", str(folder / "run"), "--out", str(folder / "page.html")]
    model = [
        "predict",
        str(folder / "run"),
        str(folder / "data" / "case_90000"),
        "--out",
        str(folder / "new"),
    ]
    return page if rng.random() < 0.7 else model


def use_cache(folder: Path, rng: np.random.Generator) -> list[str]:
    split = ["--split", str(folder / "run" / "split.json")]
    return ["statistics", "unet2d:tiny", str(folder / "cache"), *split]


def use_scores(folder: Path, rng: np.random.Generator) -> list[str]:
    if rng.random() < 0.5:
        return ["report", str(folder / "scores.csv"), "--out", str(folder / "page.html")]
    return ["evaluate", str(folder / "maps"), str(folder / "data"), "--out", str(folder / "new.csv")]


def predict_with(name: str) -> Callable[[Path, np.random.Generator], list[str]]:
    def command(folder: Path, rng: np.random.Generator) -> list[str]:
        return [
            "predict",
            str(folder / name),
            str(folder / "data" / "case_90000"),
            "--out",
            str(folder / "new"),
        ]

    return command


def same_label_map(by: str) -> Callable[[Path], None]:
    """Return a check that a damaged network which can still be read gives the labels of the undamaged network."""

    def confirm(folder: Path) -> None:
        path = folder / "new" / "prediction_90000.nii.gz"
        expected = folder / by / "prediction_90000.nii.gz"
        found, wanted = (np.asarray(nib.load(file).dataobj) for file in (path, expected))
        assert np.mean(found != wanted) < 1e-3, "other labels than the whole network gives"

    return confirm


def written(folder: Path) -> None:
    """Check that the command has written its result: the page, the table or the label map."""
    made = [folder / name for name in ("page.html", "new.csv", "new/prediction_90000.nii.gz")]
    assert any(path.is_file() and path.stat().st_size for path in made), "nothing was written"


def nothing_to_see(folder: Path) -> None:
    """Check nothing, because the command only prints numbers."""


# ---- what trainings read --------------------------------------------------------------------------------------------

SMALL = ["--set", "model.start_filters=4", "--set", "model.n_pools=2", "--steps", "1", "--epochs", "1"]


def train_again(folder: Path, rng: np.random.Generator) -> list[str]:
    split = ["--split", str(folder / "run" / "split.json")]
    return ["train", "unet2d:tiny", str(folder / "cache"), str(folder / "new"), *SMALL, *split]


def finished(folder: Path) -> None:
    record = json.loads((folder / "new" / "run.json").read_text(encoding="utf-8"))
    assert record["status"] == "finished", f"a run that is {record['status']}"


def make_pruning(folder: Path) -> None:
    """As ``make_run``, with a pruning that was interrupted in its third epoch."""
    from kitsseg.recipes import of_record
    from kitsseg.records.run import read_run
    from kitsseg.training.options import TrainOptions
    from kitsseg.workflows.fine_tune import FromRun
    from kitsseg.workflows.prune import prune_run

    def stop(description: str, done: int, total: int) -> None:
        if "epoch 3 of" in description:
            raise KeyboardInterrupt

    make_run(folder)
    origin = FromRun(of_record(read_run(folder / "run")), folder / "run", folder / "cache")
    with contextlib.suppress(KeyboardInterrupt):
        prune_run(origin, folder / "new", 0.5, TrainOptions(epochs=3, progress=stop))


def prune_on(folder: Path, rng: np.random.Generator) -> list[str]:
    folders = [str(folder / name) for name in ("run", "cache", "new")]
    return ["prune", *folders, "--sparsity", "0.5", "--epochs", "3", "--resume"]


def half_is_zero(folder: Path) -> None:
    finished(folder)
    record = json.loads((folder / "new" / "run.json").read_text(encoding="utf-8"))
    assert abs(record["sparsity"]["sparsity"] - 0.5) < 0.01, f"a sparsity of {record['sparsity']}"


FIRES = {3: (64, 16, 64), 4: (128, 16, 64), 6: (128, 32, 128), 7: (256, 32, 128), 9: (256, 48, 192),
         10: (384, 48, 192), 11: (384, 64, 256), 12: (512, 64, 256)}  # fmt: skip


def encoder_state() -> dict[str, npt.NDArray[np.float16]]:
    """Tensors of torchvision's SqueezeNet 1.1 without its classifier: random, small."""
    shapes: dict[str, tuple[int, ...]] = {"features.0": (64, 3, 3, 3)}
    for number, (inputs, squeezed, expanded) in FIRES.items():
        shapes[f"features.{number}.squeeze"] = (squeezed, inputs, 1, 1)
        shapes[f"features.{number}.expand1x1"] = (expanded, squeezed, 1, 1)
        shapes[f"features.{number}.expand3x3"] = (expanded, squeezed, 3, 3)
    rng = np.random.default_rng(0)
    state = {}
    for name, shape in shapes.items():
        state[f"{name}.weight"] = (rng.normal(size=shape) * 0.05).astype(np.float16)
        state[f"{name}.bias"] = np.zeros(shape[0], np.float16)
    return state


def torch_pickle(state: dict[str, npt.NDArray[np.float16]], more: tuple[object, ...]) -> bytes:
    """The pickle of a state dict as torch writes it, made without torch: its names stand in for its functions."""

    def named(module: str, name: str) -> Any:
        return type(name, (), {"__module__": module, "__qualname__": name})

    def stride(shape: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(int(np.prod(shape[k + 1 :])) for k in range(len(shape)))

    half, rebuild = named("torch", "HalfStorage"), named("torch._utils", "_rebuild_tensor_v2")

    class Storage:
        def __init__(self, key: str, size: int) -> None:
            self.key, self.size = key, size

    class Tensor:
        def __init__(self, key: str, shape: tuple[int, ...]) -> None:
            self.key, self.shape = key, shape

        def __reduce__(self) -> tuple[Any, ...]:
            storage = Storage(self.key, int(np.prod(self.shape)))
            return rebuild, (storage, 0, self.shape, stride(self.shape), False, OrderedDict())

    python_pickler: Any = pickle._Pickler  # its methods are no part of the declared class

    class Pickler(python_pickler):
        def persistent_id(self, thing: object) -> object:
            if isinstance(thing, Storage):
                return ("storage", half, thing.key, "cpu", thing.size, *more)
            return None

        def save_global(self, thing: Any, name: str | None = None) -> None:
            if thing not in (half, rebuild):
                return super().save_global(thing, name)
            self.write(b"c" + f"{thing.__module__}\n{thing.__qualname__}\n".encode())
            return self.memoize(thing)

        dispatch = pickle._Pickler.dispatch | {type: save_global}

    file = io.BytesIO()
    tensors = {name: Tensor(str(k), array.shape) for k, (name, array) in enumerate(state.items())}
    Pickler(file, 2).dump(OrderedDict(tensors))
    return file.getvalue()


def make_torch(folder: Path) -> None:
    """As ``make_run``, with a cache for SqueezeNet and files of its encoder's weights, in both of torch's formats."""
    make_run(folder)
    with contextlib.redirect_stdout(io.StringIO()):
        assert kitsseg(["preprocess", "squeeze_unet:tiny", str(folder / "data"), str(folder / "cache")]) == 0
    state = encoder_state()
    weights = folder / "weights"
    weights.mkdir()
    with zipfile.ZipFile(weights / "zip.pth", "w") as archive:
        archive.writestr("archive/data.pkl", torch_pickle(state, ()))
        archive.writestr("archive/byteorder", "little")
        for k, array in enumerate(state.values()):
            archive.writestr(f"archive/data/{k}", array.tobytes())
        archive.writestr("archive/version", "3\n")
    system = {
        "protocol_version": 1001,
        "little_endian": True,
        "type_sizes": {"short": 2, "int": 4, "long": 4},
    }
    parts = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, system)]
    parts += [torch_pickle(state, (None,)), pickle.dumps([str(k) for k in range(len(state))], 2)]
    (weights / "head").write_text(str(sum(map(len, parts))), encoding="utf-8")
    parts += [array.size.to_bytes(8, "little") + array.tobytes() for array in state.values()]
    (weights / "legacy.pth").write_bytes(b"".join(parts))


def damage_torch(folder: Path, rng: np.random.Generator) -> str:
    if rng.random() < 0.5:
        return damage_inside("weights/zip.pth")(folder, rng)
    path = folder / "weights" / "legacy.pth"
    head = int((folder / "weights" / "head").read_text(encoding="utf-8"))
    content, how = damaged_bytes(path.read_bytes(), rng, 0, head + 8 if rng.random() < 0.9 else None)
    path.write_bytes(content)
    return f"{path.name}: {how}"


def train_from_torch(folder: Path, rng: np.random.Generator) -> list[str]:
    sizes = {path: path.stat().st_mtime_ns for path in (folder / "weights").glob("*.pth")}
    damaged = max(sizes, key=lambda path: sizes[path])
    split = ["--split", str(folder / "run" / "split.json")]
    return ["train", "squeeze_unet:tiny", str(folder / "cache"), str(folder / "new"), *split, "--steps", "1",
            "--epochs", "1", "--set", f"model.weights={damaged}"]  # fmt: skip


# ---- what is known of downloads -------------------------------------------------------------------------------------


def make_downloaded(folder: Path) -> None:
    """Scans of KiTS19's test cases, made up, and a folder they were taken to, with their hashes."""
    hu, _ = body()
    for k in range(3):
        save(folder / "source" / f"case_0021{k}" / "imaging.nii.gz", hu + k, nib.Nifti1Image)
    with contextlib.redirect_stdout(io.StringIO()):
        assert kitsseg(["download", str(folder / "data"), "--from", str(folder / "source")]) == 0
    (folder / "data" / "case_00210" / "imaging.nii.gz").unlink()  # the trial has to fetch this image again
    (folder / "data" / "hashes.json").chmod(0o644)


def use_hashes(folder: Path, rng: np.random.Generator) -> list[str]:
    return ["download", str(folder / "data"), "--from", str(folder / "source")]


def all_there(folder: Path) -> None:
    recorded = json.loads((folder / "data" / "hashes.json").read_text(encoding="utf-8"))
    for k in range(3):
        name = f"case_0021{k}/imaging.nii.gz"
        content = (folder / "data" / name).read_bytes()
        assert content == (folder / "source" / name).read_bytes(), f"other bytes in {name}"
        assert recorded[name]["bytes"] == len(content), f"{name} is recorded with another size"


KINDS = {
    "nifti1": image_kind(nib.Nifti1Image),
    "nifti2": image_kind(nib.Nifti2Image),
    "labels1": labels_kind(nib.Nifti1Image),
    "labels2": labels_kind(nib.Nifti2Image),
    "dicom": Kind(make_labelled_series, damage_series, preprocess_series, confirm_series, ("data", "labels")),
    "run": Kind(make_run, damage_one_of("run/run.json", "run/history.csv"), use_run, written, ("run",)),
    "cache": Kind(
        make_run,
        damage_one_of("run/split.json", "cache/*/spec.json", "cache/*/case_90000/case.json"),
        use_cache,
        nothing_to_see,
        ("run", "cache"),
    ),
    "scores": Kind(
        make_run,
        damage_one_of("scores.csv", "scores.json", "maps/predictions.json"),
        use_scores,
        written,
        ("scores", "maps"),
    ),
    "keras": Kind(
        make_run, damage_one_of("run/model.keras"), predict_with("run"), same_label_map("by_run"), ("run",)
    ),
    "keras-inside": Kind(make_run, damage_inside("run/model.keras"), predict_with("run"), written, ("run",)),
    "npy": Kind(
        make_run, damage_one_of("cache/*/case_90000/*.npy"), train_again, finished, ("cache", "run", "new")
    ),
    "npz": Kind(make_pruning, damage_inside("new/checkpoint/*.npz"), prune_on, half_is_zero, ("new",)),
    "torch": Kind(make_torch, damage_torch, train_from_torch, finished, ("weights",)),
    "hashes": Kind(make_downloaded, damage_one_of("data/hashes.json"), use_hashes, all_there, ("data",)),
    "tflite": Kind(
        make_run,
        damage_one_of("*.tflite"),
        predict_with("net.tflite"),
        same_label_map("maps"),
        ("net",),
    ),
    "onnx": Kind(
        make_run, damage_one_of("*.onnx"), predict_with("net.onnx"), same_label_map("maps"), ("net",)
    ),
}


# ---- the trials -----------------------------------------------------------------------------------------------------


def run(name: str, kind: Kind, count: int, seed: int, seconds: float, keep: Path | None) -> Counter[str]:
    """Do ``count`` trials of a kind; Counter of "clean line", "right result" and "other"."""
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="kitsseg-fuzz-") as temporary:
        whole = Path(temporary) / "whole"
        whole.mkdir()
        kind.make(whole)
        for number in range(count):
            rng = np.random.default_rng([seed, number])
            folder = Path(temporary) / f"{name}-{seed}-{number}"
            shutil.copytree(whole, folder, symlinks=True)
            how = kind.damage(folder, rng)
            arguments = kind.command(folder, rng)
            ending, why = _ending(kind, folder, arguments, seconds)
            counts[ending] += 1
            if ending == "other":
                print(f"OTHER {folder.name} ({how}): kitsseg {arguments[0]}: {why}", flush=True)
                if keep:
                    shutil.copytree(folder, keep / folder.name, symlinks=True, dirs_exist_ok=True)
            shutil.rmtree(folder)
    return counts


def _ending(kind: Kind, folder: Path, arguments: list[str], seconds: float) -> tuple[str, str]:
    out, err = io.StringIO(), io.StringIO()
    before = set(folder.rglob("*"))
    try:
        with (
            _time_limit(seconds),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)  # Keras' own
            code = kitsseg(arguments)
    except SystemExit as error:
        return "other", f"exit {error.code}: {err.getvalue()[-300:]}"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return "other", "".join(traceback.format_exception(error)[-3:])
    lines = err.getvalue().splitlines()
    if code:
        clean = (
            code == 1
            and len(lines) == 1
            and lines[0].startswith("kitsseg: ")
            and "Traceback" not in out.getvalue()
        )
        named = any(str(folder / one) in lines[0] for one in kind.names) if lines else False
        left = [path.name for path in set(folder.rglob("*")) - before if path.name.startswith(".")]
        if clean and named and not left:
            return "clean line", ""
        return "other", f"code {code}, left {left}: {err.getvalue()[-400:]}"
    if lines:
        return "other", f"code 0 and on stderr: {err.getvalue()[-400:]}"
    try:
        kind.confirm(folder)
    except Exception as error:
        return "other", f"wrong result: {type(error).__name__}: {error}"
    return "right result", ""


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError(f"took more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(KINDS)} (default: all)")
    parser.add_argument("--count", type=int, default=300, help="trials of each kind (default: 300)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=30, help="that a trial may take (default: 30)")
    parser.add_argument("--keep", type=Path, help="folder for what ended in neither way")
    arguments = parser.parse_args()
    if unknown := set(arguments.kinds) - set(KINDS):
        parser.error(f"expected kinds of {', '.join(KINDS)}; found {', '.join(sorted(unknown))}")
    names = arguments.kinds or list(KINDS)
    if len(names) > 1:
        # each in a process of its own: what trainings leave in memory counts against its limit
        options = [text for text in sys.argv[1:] if text not in arguments.kinds]
        return max(subprocess.run([sys.executable, __file__, name, *options]).returncode for name in names)
    [name] = names
    os.environ["COLUMNS"] = "400"
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, hard))
    started = time.monotonic()
    counts = run(name, KINDS[name], arguments.count, arguments.seed, arguments.seconds, arguments.keep)
    shown = ", ".join(f"{counts[ending]} {ending}" for ending in ("clean line", "right result", "other"))
    print(f"{name:10} {arguments.count} trials: {shown} ({time.monotonic() - started:.0f} s)", flush=True)
    return int(counts["other"] > 0)


if __name__ == "__main__":
    sys.exit(main())
