"""Fill an encoder with torchvision's ImageNet weights, without torch.

Code: torch's two file formats (the zip file since version 1.6, the pickles before); torchvision's file names,
      whose last 8 hexadecimal digits begin the file's SHA-256.
Ours: the reader allows exactly the names that a state dict needs, so a file cannot run code.
"""

import hashlib
import http.client
import io
import os
import pickle
import tempfile
import urllib.request
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np

from kitsseg.errors import InputError
from kitsseg.models.encoders import encoder_layers

__all__ = ["TORCHVISION_URLS", "assign_state_dict", "download_weights", "load_torchvision_weights",
           "read_state_dict"]  # fmt: skip

HOST = "https://download.pytorch.org/models"
TORCHVISION_URLS = {
    "squeezenet1_1": f"{HOST}/squeezenet1_1-b8a52dc0.pth",
    "resnet18": f"{HOST}/resnet18-f37072fd.pth",
    "resnet34": f"{HOST}/resnet34-b627a593.pth",
}
DTYPES = {"FloatStorage": "<f4", "DoubleStorage": "<f8", "HalfStorage": "<f2", "LongStorage": "<i8"}
LEGACY_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # the pickle of 0x1950a86a20f9469cfc6c
UNREADABLE = (AttributeError, EOFError, IndexError, KeyError, MemoryError, OverflowError, TypeError, ValueError,
              pickle.UnpicklingError, zipfile.BadZipFile)  # fmt: skip


def load_torchvision_weights(model, weights):
    """Fill the encoder of ``model`` (from ``build_squeeze_unet``) with a torchvision state dict.

    Args:
        weights: the path of a ``.pth`` file of the encoder's network, or ``"imagenet"``: torchvision's file,
            downloaded once into ``$KITSSEG_CACHE`` or ``~/.cache/kitsseg``.
    Raises: InputError if the file cannot be downloaded, read, or does not fit; FileNotFoundError.
    """
    names = {layer.name for layer in encoder_layers(model)}
    if "encoder_features_0" in names:
        network = "squeezenet1_1"
    elif "encoder_layer1_0_conv1" in names:
        network = "resnet34" if "encoder_layer1_2_conv1" in names else "resnet18"
    else:
        raise InputError(f"{model.name}: torchvision weights fit the encoders {', '.join(TORCHVISION_URLS)} only; "
                         "this model has another one.")  # fmt: skip
    if weights == "imagenet":
        cache = os.environ.get("KITSSEG_CACHE") or "~/.cache/kitsseg"
        weights = download_weights(TORCHVISION_URLS[network], Path(cache).expanduser())
    assign_state_dict(model, read_state_dict(weights), f"{weights} (wanted: {network})")


def assign_state_dict(model, state, source="state dict"):
    """Copy the tensors of ``state`` (torch name to array) into the encoder of ``model``.

    Kernels go from (out, in, rows, columns) to (rows, columns, in, out). A first kernel of three input channels
    is summed over them for a model with one, as fastai does. The classifier (``classifier.*``, ``fc.*``) and
    ``num_batches_tracked`` are left out. Nothing is changed unless everything fits.

    Raises: InputError naming the tensors that are missing, left over, or of another shape.
    """
    variables = _torch_variables(model)
    arrays, problems = {}, []
    for name, variable in variables.items():
        if name not in state:
            problems.append(f"{name} is missing")
            continue
        array = np.asarray(state[name])
        if array.ndim == 4:
            array = array.transpose(2, 3, 1, 0)
            if name == next(iter(variables)) and array.shape[2] == 3 and variable.shape[2] == 1:
                array = array.sum(axis=2, keepdims=True)
        if array.shape != tuple(variable.shape):
            wanted = (
                np.transpose(np.empty(variable.shape), (3, 2, 0, 1)).shape
                if array.ndim == 4
                else variable.shape
            )
            problems.append(f"{name} has shape {np.shape(state[name])} instead of {tuple(wanted)}")
        arrays[name] = array
    problems += [
        f"{name} is not part of this encoder"
        for name in state
        if name not in variables
        and not name.startswith(("classifier.", "fc."))
        and not name.endswith("num_batches_tracked")
    ]
    if problems:
        more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise InputError(f"{source}: the weights do not fit the encoder: {'; '.join(problems[:3])}{more}. "
                         "Give the state dict of the encoder's own torchvision network.")  # fmt: skip
    for name, array in arrays.items():
        variables[name].assign(array)


def _torch_variables(model):
    """torch's name to Keras' variable, for all layers of the encoder, first to last."""
    variables = {}
    for layer in encoder_layers(model):
        name = layer.name.removeprefix("encoder_").replace("_", ".")
        if isinstance(layer, keras.layers.Conv2D):
            variables[f"{name}.weight"] = layer.kernel
            if layer.use_bias:
                variables[f"{name}.bias"] = layer.bias
        elif isinstance(layer, keras.layers.BatchNormalization):
            variables[f"{name}.weight"], variables[f"{name}.bias"] = layer.gamma, layer.beta
            variables[f"{name}.running_mean"] = layer.moving_mean
            variables[f"{name}.running_var"] = layer.moving_variance
    return variables


def download_weights(url, folder):
    """Return the file of ``url`` in ``folder``, downloading it unless it is there.

    Args:
        url: ends in ``NAME-XXXXXXXX.pth``, the X the first digits of the file's SHA-256, which is checked.
    Raises: InputError if it cannot be downloaded or is not the file it should be.
    """
    path = Path(folder) / url.rpartition("/")[2]
    if path.exists():
        _check_hash(path.read_bytes(), path, "Delete it and start again.")
        return path
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "kitsseg"})
        with urllib.request.urlopen(request, timeout=60) as response:
            content = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise InputError(f"{path.name}: the ImageNet weights could not be downloaded from {url} ({error}). Without "
                         f"internet: fetch that file elsewhere and put it at {path}, or give its path as the "
                         "weights; or use no pretrained weights.") from error  # fmt: skip
    _check_hash(content, path, f"What {url} sent was not kept; start again.")
    path.parent.mkdir(parents=True, exist_ok=True)
    # written under another name first: an interrupted write must not look like a cached file
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as part:
        part.write(content)
    Path(part.name).replace(path)
    return path


def _check_hash(content, path, advice):
    wanted = path.stem.rpartition("-")[2]
    found = hashlib.sha256(content).hexdigest()
    if not found.startswith(wanted):
        raise InputError(f"{path}: damaged or another file: its SHA-256 must begin with {wanted}, found {found[:8]}. "
                         f"{advice}")  # fmt: skip


def read_state_dict(path):
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
        raise InputError(f"{path}: not a readable torch state dict ({error}). Expected a .pth file of torchvision, or "
                         "one written by torch.save(module.state_dict(), path).") from error  # fmt: skip


def _read_zip(content):
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


def _read_legacy(content):
    """Three header pickles, the object, the storages' keys, then per storage its length (int64) and values."""
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

    def __init__(self, dtype):
        self.dtype, self.content = dtype, b""


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple
    strides: tuple

    def array(self):
        size = np.dtype(self.storage.dtype).itemsize
        strides = [size * stride for stride in self.strides]
        # this constructor refuses shapes and strides that leave the buffer
        return np.ndarray(
            self.shape, self.storage.dtype, self.storage.content, size * self.offset, strides
        ).copy()


class _TensorUnpickler(pickle.Unpickler):
    """Unpickles dicts of tensors and refuses every other name: an unrestricted pickle may run any code."""

    def __init__(self, file):
        super().__init__(file, encoding="utf-8")
        self.storages = {}

    def find_class(self, module, name):
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._rebuild_tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return self._rebuild_parameter
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no state dict needs")

    def _rebuild_tensor(self, storage, offset, shape, strides, *_gradient):
        return _Tensor(storage, offset, tuple(shape), tuple(strides))

    def _rebuild_parameter(self, tensor, *_gradient):
        return tensor

    def persistent_load(self, identifier):
        kind, dtype, key, *_rest = identifier
        if kind != "storage" or dtype not in DTYPES.values():
            raise pickle.UnpicklingError("it refers to something else than a storage")
        return self.storages.setdefault(key, _Storage(dtype))
