"""DICOM series of CT, written file by file, and the NIfTI file of the same volume."""

import nibabel as nib
import numpy as np
import pydicom
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRBigEndian, ExplicitVRLittleEndian, generate_uid

__all__ = ["AXIAL", "ORIENTATIONS", "nifti_of", "noise", "plane", "turned", "write_series", "write_slices"]

SLICE_SHAPE = (12, 10)  # rows, columns
AXIAL = ((1, 0, 0), (0, 1, 0))


def turned(degrees, axes=(0, 1, 2)):
    """Two perpendicular directions: axial ones turned about all axes, then permuted."""
    a, b, c = np.radians(degrees)
    about = [
        [[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]],
        [[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]],
        [[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]],
    ]
    matrix = (np.array(about[0]) @ about[1] @ about[2])[list(axes)]
    return matrix[:, 0], matrix[:, 1]


def write_series(
    folder, stored, orientation=AXIAL, spacing=(0.8, 0.7), step=2.5, origin=(-120.5, -98.25, 33.0), **extra
):
    """Write one file for each slice of ``stored`` (slices, rows, columns), int16 or uint16; names are in random order.

    Args:
        spacing: mm between (rows, columns). step: mm between slices along the normal.
        extra: ``change``, a function called with (k, dataset) before slice k is written; ``syntax``, a transfer syntax.
    """
    folder.mkdir(parents=True, exist_ok=True)
    along, down = np.array(orientation, float)
    normal, series = np.cross(along, down), generate_uid()
    names = np.random.default_rng(len(stored)).permutation(len(stored))
    for k, plane in enumerate(stored):
        dataset = pydicom.Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = CTImageStorage
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.SeriesInstanceUID, dataset.Modality, dataset.ImageType = (
            series,
            "CT",
            ["ORIGINAL", "PRIMARY", "AXIAL"],
        )
        dataset.InstanceNumber = int(names[k]) + 1  # misleading, as some scanners' are
        dataset.ImageOrientationPatient = [f"{x:.10f}"[:16] for x in (*along, *down)]
        dataset.ImagePositionPatient = [f"{x:.8f}"[:16] for x in np.array(origin) + k * step * normal]
        dataset.PixelSpacing = list(spacing)
        dataset.Rows, dataset.Columns = plane.shape
        dataset.BitsAllocated = dataset.BitsStored = 16
        dataset.HighBit, dataset.SamplesPerPixel = 15, 1
        dataset.PixelRepresentation = int(plane.dtype.kind == "i")
        dataset.PhotometricInterpretation = "MONOCHROME2"
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
        dataset.PixelData = plane.tobytes()
        if "change" in extra:
            extra["change"](k, dataset)
        if "syntax" in extra:
            dataset.compress(extra["syntax"])
        dataset.save_as(folder / f"IM{names[k]:04d}", enforce_file_format=True)
    return folder


def plane(k):
    """The stored numbers of slice ``k`` of ``write_slices``."""
    return np.random.default_rng(k).integers(0, 3000, SLICE_SHAPE).astype(np.uint16)


def write_slices(
    folder, positions, syntax=ExplicitVRLittleEndian, first=0, series="1.2.3.4", end="", **elements
):
    """One file a slice, in order; an element may be a function of the number of the slice. Returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for k, z in enumerate(positions):
        d = pydicom.Dataset()
        d.file_meta = FileMetaDataset()
        d.file_meta.TransferSyntaxUID = syntax
        d.file_meta.MediaStorageSOPClassUID = d.SOPClassUID = CTImageStorage
        d.file_meta.MediaStorageSOPInstanceUID = d.SOPInstanceUID = generate_uid()
        d.SeriesInstanceUID, d.Modality, d.InstanceNumber = series, "CT", first + k + 1
        d.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        d.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        d.ImagePositionPatient = list(z) if np.ndim(z) else [-5, -6, z]
        d.PixelSpacing, (d.Rows, d.Columns) = [4, 5], SLICE_SHAPE
        d.BitsAllocated = d.BitsStored = 16
        d.HighBit, d.SamplesPerPixel, d.PixelRepresentation = 15, 1, 0
        d.PhotometricInterpretation = "MONOCHROME2"
        d.RescaleSlope, d.RescaleIntercept = 1, -1024
        for name, value in elements.items():
            setattr(d, name, value(k) if callable(value) else value)
        little = syntax != ExplicitVRBigEndian
        d.PixelData = plane(first + k).astype("<u2" if little else ">u2").tobytes()
        d["PixelData"].VR = "OW"
        files.append(folder / f"IM{first + k:04d}{end}")
        d.save_as(files[-1], enforce_file_format=True)
    return files


def noise(shape=(7, 12, 10), dtype=np.int16, seed=0):
    return np.random.default_rng(seed).integers(0, 3000, shape).astype(dtype)


def nifti_of(path, stored, orientation, spacing, step, origin):
    """The NIfTI file of the same volume, from the definitions: voxel (i, j, k) lies at
    origin + i column_mm along + j row_mm down + k step normal in LPS; RAS has the first two negated."""
    along, down = np.array(orientation, float)
    columns = [along * spacing[1], down * spacing[0], np.cross(along, down) * step, np.array(origin, float)]
    affine = np.eye(4)
    affine[:3] = (np.array(columns) * (-1, -1, 1)).T
    nib.save(nib.Nifti1Image((stored.astype(np.int16) - 1024).transpose(2, 1, 0), affine), path)
    return path


ORIENTATIONS = {
    "axial": AXIAL,
    "prone, feet first": ((-1, 0, 0), (0, 1, 0)),
    "coronal": ((1, 0, 0), (0, 0, -1)),
    "sagittal": ((0, 1, 0), (0, 0, -1)),
    "oblique": turned((20, -15, 30)),
    "oblique coronal": turned((7, 12, -9), axes=(0, 2, 1)),
}
