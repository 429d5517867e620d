"""Read a torch state dict without torch, and without running code from the file.

Code: torch's two file formats: a zip file since version 1.6, several pickles in a row before.
Ours: the unpickler allows only the names that a dict of tensors needs and refuses all others.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from kitsseg.errors import InputError, one_line

__all__ = ["read_state_dict"]

DTYPES = {"FloatStorage": "<f4", "DoubleStorage": "<f8", "HalfStorage": "<f2", "LongStorage": "<i8"}
LEGACY_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # the pickle of 0x1950a86a20f9469cfc6c
MOST_BYTES = 4 << 30  # of a file; the largest encoder has 90 MB


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, npt.NDArray[Any]]:
    """Read a file that ``torch.save(module.state_dict(), path)`` wrote, in either of torch's formats.

    Returns: dict of torch's names to NumPy arrays (float16, float32, float64 or int64).
    Raises: InputError if the file is not a torch file, is damaged, needs any other Python object than tensors
        in a dict, or holds anything but named tensors; FileNotFoundError.
    """
    path = Path(path)
    if (size := path.stat().st_size) > MOST_BYTES:
        raise InputError(
            f"{path}: expected a torch state dict, found a file of {size:,} bytes. Check the path."
        )
    content = path.read_bytes()
    try:
        if content.startswith(b"PK"):
            state = _read_zip(content)
        elif content.startswith(LEGACY_MAGIC):
            state = _read_legacy(content)
        else:
            raise ValueError("neither a zip file nor torch's older format")
        if not isinstance(state, dict) or not all(isinstance(tensor, _Tensor) for tensor in state.values()):
            raise ValueError("it holds something else than named tensors; save module.state_dict() alone")
        _check_size(state.values(), len(content))
        return {str(name): tensor.array() for name, tensor in state.items()}
    except Exception as error:  # what the pickle in a damaged file makes of it can be anything
        raise InputError(
            f"{path}: not a readable torch state dict ({one_line(error)}). Expected a .pth file of torchvision, or one "
            "written by torch.save(module.state_dict(), path)."
        ) from error


def _check_size(tensors: Iterable[_Tensor], n_bytes: int) -> None:
    """Refuse tensors that are larger together than the file.

    With strides of 0, or with tensors that share their values, a small file could fill any memory. A state dict has
    neither.
    """
    total = 0
    for tensor in tensors:
        if not all(isinstance(n, int) and n >= 0 for n in (*tensor.shape, *tensor.strides, tensor.offset)):
            raise ValueError("a shape, a stride or an offset is no number from 0")
        if len(tensor.shape) > 32:
            raise ValueError(f"a tensor of {len(tensor.shape)} axes")
        total += math.prod(tensor.shape) * np.dtype(tensor.storage.dtype).itemsize
        if total > n_bytes:
            raise ValueError(f"its tensors have more than the {n_bytes:,} bytes of the file")


def _loaded(unpickler: _TensorUnpickler, file: io.BytesIO) -> Any:
    """The object of the pickle that begins here. A pickle that would reserve memory for too many objects is refused.

    Raises: ValueError, or any error that a damaged pickle can cause.
    """
    start = file.tell()
    for position, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if "PUT" in opcode.name and argument is not None and int(argument) > position:
            raise ValueError(f"its pickle numbers an object {argument} after {position} operations")
    file.seek(start)
    return unpickler.load()


def _read_zip(content: bytes) -> object:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > len(content):
            raise ValueError("its contents are larger than the file: torch compresses nothing")
        (pickled,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        folder = pickled.removesuffix("data.pkl")
        if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
            raise ValueError("big-endian data")
        file = io.BytesIO(archive.read(pickled))
        unpickler = _TensorUnpickler(file)
        state = _loaded(unpickler, file)
        for key, storage in unpickler.storages.items():
            storage.content = archive.read(f"{folder}data/{key}")
    return state


def _read_legacy(content: bytes) -> object:
    """Three header pickles, the object, the storages' keys, then per storage its length and its values."""
    file = io.BytesIO(content)
    _magic, _version, system = (_loaded(_TensorUnpickler(file), file) for _ in range(3))
    if not system["little_endian"]:
        raise ValueError("big-endian data")
    unpickler = _TensorUnpickler(file)
    state = _loaded(unpickler, file)
    for key in _loaded(_TensorUnpickler(file), file):
        storage = unpickler.storages[key]
        length = int.from_bytes(file.read(8), "little") * np.dtype(storage.dtype).itemsize
        storage.content = file.read(length)
        if len(storage.content) != length:
            raise EOFError("the file ends too early")
    return state


class _Storage:
    """The flat values behind one or more tensors; read after the object that refers to them."""

    def __init__(self, dtype: str) -> None:
        self.dtype, self.content = dtype, b""


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self) -> npt.NDArray[Any]:
        size = np.dtype(self.storage.dtype).itemsize
        strides = [size * stride for stride in self.strides]
        # this constructor refuses shapes and strides that leave the buffer
        return np.ndarray(
            self.shape, self.storage.dtype, self.storage.content, size * self.offset, strides
        ).copy()


class _TensorUnpickler(pickle.Unpickler):
    """Unpickles dicts of tensors and refuses every other name: an unrestricted pickle may run any code."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="utf-8")
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._rebuild_tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return self._rebuild_parameter
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no state dict needs")

    def _rebuild_tensor(
        self, storage: _Storage, offset: int, shape: Iterable[int], strides: Iterable[int], *_gradient: object
    ) -> _Tensor:
        return _Tensor(storage, offset, tuple(shape), tuple(strides))

    def _rebuild_parameter(self, tensor: _Tensor, *_gradient: object) -> _Tensor:
        return tensor

    def persistent_load(self, identifier: Any) -> _Storage:
        kind, dtype, key, *_rest = identifier
        if kind != "storage" or dtype not in DTYPES.values():
            raise pickle.UnpicklingError("it refers to something else than a storage")
        return self.storages.setdefault(key, _Storage(dtype))
