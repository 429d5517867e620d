"""Read a torch state dict without torch, and without running what a file says.

Code: torch's two file formats: the zip file since version 1.6, a chain of pickles before.
Ours: the unpickler allows exactly the names that a dict of tensors needs; every other one is refused.
"""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from kitsseg.errors import InputError

__all__ = ["read_state_dict"]

DTYPES = {"FloatStorage": "<f4", "DoubleStorage": "<f8", "HalfStorage": "<f2", "LongStorage": "<i8"}
LEGACY_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # the pickle of 0x1950a86a20f9469cfc6c
UNREADABLE = (AttributeError, EOFError, IndexError, KeyError, MemoryError, OverflowError, TypeError,
              ValueError, pickle.UnpicklingError, zipfile.BadZipFile)  # fmt: skip


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, npt.NDArray[Any]]:
    """Read a file that ``torch.save(module.state_dict(), path)`` wrote, in either of torch's formats.

    Returns: dict of torch's names to NumPy arrays (float16, float32, float64 or int64).
    Raises: InputError if the file is not a torch file, is damaged, needs any other Python object than tensors
        in a dict, or holds anything but named tensors; FileNotFoundError.
    """
    path = Path(path)
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
        return {str(name): tensor.array() for name, tensor in state.items()}
    except UNREADABLE as error:
        raise InputError(
            f"{path}: not a readable torch state dict ({error}). Expected a .pth file of torchvision, or one "
            "written by torch.save(module.state_dict(), path)."
        ) from error


def _read_zip(content: bytes) -> object:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        (pickled,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        folder = pickled.removesuffix("data.pkl")
        if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
            raise ValueError("big-endian data")
        unpickler = _TensorUnpickler(io.BytesIO(archive.read(pickled)))
        state = unpickler.load()
        for key, storage in unpickler.storages.items():
            storage.content = archive.read(f"{folder}data/{key}")
    return state


def _read_legacy(content: bytes) -> object:
    """Three header pickles, the object, the storages' keys, then per storage its length and its values."""
    file = io.BytesIO(content)
    _magic, _version, system = (_TensorUnpickler(file).load() for _ in range(3))
    if not system["little_endian"]:
        raise ValueError("big-endian data")
    unpickler = _TensorUnpickler(file)
    state = unpickler.load()
    for key in _TensorUnpickler(file).load():
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
