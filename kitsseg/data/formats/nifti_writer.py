"""Writing NIfTI: label maps on the grid of their scan, and synthetic scans in KiTS19 layout."""

import math
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np

from kitsseg.errors import InputError
from kitsseg.files.atomic import atomic_path

__all__ = ["write_image", "write_labels"]

_BLOCK_BYTES = 16 << 20


def write_labels(path, labels, grid):
    """Write labels (slices, rows, columns) uint8 on the grid of the scan they belong to.

    The file has the scan's shape, affine, orientation and units; only data type and scaling differ.
    It appears whole or not at all.

    Raises: ValueError if ``labels`` does not have the grid's shape.
    """
    if labels.shape != grid.shape:
        raise ValueError(f"{path}: labels have shape {labels.shape}, the scan's grid is {grid.shape}.")
    header = grid.header.copy()
    header.set_data_dtype(np.uint8)
    header.set_slope_inter(1.0, 0.0)
    header["cal_max"] = header["cal_min"] = 0
    _write(Path(path), header, grid.file_view(labels))


def write_image(path, array, spacing_mm, description=""):
    """Write a volume (slices, rows, columns) in KiTS19 layout: its axes, affine and no origin.

    Args:
        description: at most 79 characters for the header's ``descrip``.
    """
    affine = np.zeros((4, 4))
    affine[[2, 1, 0], [0, 1, 2]] = -np.asarray(spacing_mm, float)
    affine[3, 3] = 1
    header = nib.Nifti1Header()
    header.set_data_shape(array.shape)
    header.set_data_dtype(array.dtype)
    header.set_zooms(spacing_mm)
    header.set_sform(affine, code="aligned")
    header.set_xyzt_units("mm")
    header["descrip"] = description.encode()
    header.set_slope_inter(1.0, 0.0)
    _write(Path(path), header, array)


def _write(path, header, view):
    """Stream ``view`` (file axes) to ``path`` plane by plane."""
    if not path.name.endswith((".nii", ".nii.gz")):
        raise InputError(f"{path}: expected a name that ends in .nii.gz or .nii.")
    size = header.sizeof_hdr
    header.set_data_offset(math.ceil((size + 4) / 16) * 16)
    n2 = view.shape[2]
    step = max(1, _BLOCK_BYTES // max(view[:, :, 0].nbytes, 1))
    # zlib's own gzip container holds no name and no time: the same labels give the same bytes. Unlike GzipFile it has
    # nothing left to write, and to complain about, when a full disk has ended the writing
    packer = zlib.compressobj(3, zlib.DEFLATED, 31) if path.name.endswith(".gz") else None
    with atomic_path(path) as temporary, temporary.open("wb") as file:

        def put(data):
            file.write(packer.compress(data) if packer else data)

        put(header.binaryblock.ljust(int(header["vox_offset"]), b"\0"))
        for start in range(0, n2, step):
            block = view[:, :, start : start + step]
            put(np.ascontiguousarray(block.transpose(2, 1, 0)).astype(header.get_data_dtype()).data)
        if packer:
            file.write(packer.flush())
