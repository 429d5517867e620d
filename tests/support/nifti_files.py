"""Write NIfTI files whose header may hold several grids that contradict each other: sform, qform and pixdim."""

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt

__all__ = ["oblique", "turned_grid", "write_nifti"]


def write_nifti(
    path: Path,
    stored: npt.NDArray,
    sform: npt.ArrayLike | None = None,
    qform: npt.ArrayLike | None = None,
    pixdim: tuple[float, ...] | None = None,
    kind: type = nib.Nifti1Header,
    units: int = 2,
    scaling: tuple[float, float] = (1, 0),
    **fields: object,
) -> Path:
    """Write ``stored``, whose axes are the file's, with a header that holds these forms; a form of None has code 0.

    Args:
        pixdim: voxel sizes of the three axes. None takes the sizes of the qform; if there is no qform, of the sform.
        fields: further fields of the header, set last.
    """
    header = kind()
    header.set_data_shape(stored.shape)
    header.set_data_dtype(stored.dtype)
    if qform is not None:
        header.set_qform(np.asarray(qform, float), code=1, strip_shears=True)
    elif sform is not None:
        header["pixdim"][1:4] = np.linalg.norm(np.asarray(sform, float)[:3, :3], axis=0)
    if sform is not None:
        header.set_sform(np.asarray(sform, float), code=2)
    if pixdim is not None:
        header["pixdim"][1:4] = pixdim
    header["xyzt_units"] = units
    header["scl_slope"], header["scl_inter"] = scaling
    start = -(-(header.sizeof_hdr + 4) // 16) * 16
    header["vox_offset"] = start
    for name, value in fields.items():
        header[name] = value
    content = header.binaryblock.ljust(start, b"\0") + stored.tobytes(order="F")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content, 1) if path.name.endswith(".gz") else content)
    return path


def turned_grid(
    order: tuple[int, int, int], signs: tuple[int, int, int], sizes: npt.ArrayLike
) -> npt.NDArray:
    """Affine of a file whose axis k runs along patient axis ``order[k]``, in the direction of ``signs[k]``."""
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3)[list(order)] * np.array(signs)[:, None]).T * sizes
    return affine


def oblique(degrees: tuple[float, float, float]) -> npt.NDArray:
    """A turn about the three patient axes, one after the other."""
    turn = np.eye(4)
    for (i, j), angle in zip(((1, 2), (0, 2), (0, 1)), np.radians(degrees), strict=True):
        one = np.eye(4)
        one[[i, j], [i, j]] = np.cos(angle)
        one[i, j], one[j, i] = -np.sin(angle), np.sin(angle)
        turn = one @ turn
    return turn
