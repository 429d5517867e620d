"""NumPy's files, ``.npy`` and ``.npz``. Any damage of a file becomes a ValueError.

NumPy parses the header of an array as Python code. A changed byte in a file can therefore end in an error of Python's
tokenizer, a syntax error, a type error, or an error of the archive around the array.
"""

import math
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kitsseg.errors import one_line
from kitsseg.files.archives import damage_named

__all__ = ["mapped_array", "read_arrays"]


def mapped_array(path: str | os.PathLike[str]) -> np.memmap[Any, Any]:
    """The array in a ``.npy`` file, memory-mapped.

    Raises: ValueError, saying what is wrong. OSError if the file cannot be read.
    """
    try:
        array: np.memmap[Any, Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, MemoryError):
        raise
    except Exception as error:
        raise ValueError(one_line(error)) from error
    return array


def read_arrays(path: str | os.PathLike[str]) -> dict[str, npt.NDArray[Any]]:
    """All arrays of a ``.npz`` file, by name.

    Raises: ValueError, saying what is wrong. OSError if the file cannot be read.
    """
    try:
        with Path(path).open("rb") as file, damage_named(), np.load(file, allow_pickle=False) as archive:
            _check_sizes(archive.zip)
            return {name: archive[name] for name in archive.files}
    except (OSError, MemoryError):
        raise
    except Exception as error:
        raise ValueError(one_line(error)) from error


def _check_sizes(archive: zipfile.ZipFile) -> None:
    """Before memory is asked for: does each array hold as many bytes as its header says?"""
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    for entry in archive.infolist():
        with archive.open(entry) as file:
            if read_header := readers.get(np.lib.format.read_magic(file)):
                shape, _, dtype = read_header(file)
                if math.prod(shape) * dtype.itemsize > entry.file_size:
                    raise ValueError(f"{entry.filename} tells of more numbers than it holds")
