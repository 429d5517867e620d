"""Fill an encoder with torchvision's ImageNet weights, without torch.

Code: torchvision's tensor and file names; the last 8 hexadecimal digits of a file's name begin its SHA-256.
"""

import hashlib
import http.client
import os
import tempfile
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from kitsseg.errors import InputError
from kitsseg.models.pretrained.encoders import encoder_layers
from kitsseg.models.pretrained.torch_files import read_state_dict

__all__ = ["TORCHVISION_URLS", "assign_state_dict", "download_weights", "load_torchvision_weights"]

HOST = "https://download.pytorch.org/models"
MOST_BYTES = 256 << 20  # of a file; the largest here has 87 MB
TORCHVISION_URLS = {
    "squeezenet1_1": f"{HOST}/squeezenet1_1-b8a52dc0.pth",
    "resnet18": f"{HOST}/resnet18-f37072fd.pth",
    "resnet34": f"{HOST}/resnet34-b627a593.pth",
}


def load_torchvision_weights(model: keras.Model, weights: str | os.PathLike[str]) -> None:
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
        raise InputError(
            f"{model.name}: torchvision weights fit the encoders {', '.join(TORCHVISION_URLS)} only; this "
            "model has another one."
        )
    if weights == "imagenet":
        cache = os.environ.get("KITSSEG_CACHE") or "~/.cache/kitsseg"
        weights = download_weights(TORCHVISION_URLS[network], Path(cache).expanduser())
    assign_state_dict(model, read_state_dict(weights), f"{weights} (wanted: {network})")


def assign_state_dict(
    model: keras.Model, state: Mapping[str, npt.NDArray[Any]], source: str = "state dict"
) -> None:
    """Copy the tensors of ``state`` (torch name to array) into the encoder of ``model``.

    Kernels go from (out, in, rows, columns) to (rows, columns, in, out). A first kernel of three input
    channels is summed over them for a model with one, as fastai does. The classifier (``classifier.*``,
    ``fc.*``) and ``num_batches_tracked`` are left out. Nothing is changed unless everything fits.

    Args:
        model: from ``build_squeeze_unet``.
        state: dict from torch's names to arrays.
        source: where the state comes from, for the message.

    Raises: InputError naming the tensors that are missing, left over, or of another shape.
    """
    variables = _torch_variables(model)
    first, arrays, problems = next(iter(variables)), {}, []
    for name, variable in variables.items():
        if name not in state:
            problems.append(f"{name} is missing")
            continue
        array, wanted = np.asarray(state[name]), tuple(variable.shape)
        if len(wanted) == 4:
            wanted = (wanted[3], wanted[2], wanted[0], wanted[1])
        if name == first and wanted[1] == 1 and array.shape == (wanted[0], 3, *wanted[2:]):
            array = array.sum(axis=1, keepdims=True)
        if array.shape != wanted:
            problems.append(f"{name} has shape {array.shape} instead of {wanted}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            problems.append(f"{name} is not finite")
        arrays[name] = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
    ignored = ("classifier.", "fc.")
    problems += [
        f"{name} is not part of this encoder"
        for name in state.keys() - variables.keys()
        if not name.startswith(ignored) and not name.endswith("num_batches_tracked")
    ]
    if problems:
        more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise InputError(
            f"{source}: the weights do not fit the encoder: {'; '.join(problems[:3])}{more}. "
            "Give the state dict of the encoder's own torchvision network."
        )
    for name, array in arrays.items():
        variables[name].assign(array)


def _torch_variables(model: keras.Model) -> dict[str, keras.Variable]:
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


def download_weights(url: str, folder: str | os.PathLike[str]) -> Path:
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
            content = response.read(MOST_BYTES + 1)
    except (OSError, http.client.HTTPException) as error:
        raise InputError(
            f"{path.name}: the ImageNet weights could not be downloaded from {url} ({error}). Without "
            f"internet: fetch that file elsewhere and put it at {path}, or give its path (kitsseg train: --set "
            "model.weights=PATH); or use no pretrained weights (--set model.weights=none)."
        ) from error
    if len(content) > MOST_BYTES:
        raise InputError(
            f"{path.name}: {url} sent more than the {MOST_BYTES:,} bytes that such a file can have; nothing was kept. "
            f"Fetch it elsewhere and put it at {path}."
        )
    _check_hash(content, path, f"What {url} sent was not kept; start again.")
    path.parent.mkdir(parents=True, exist_ok=True)
    # written under another name first: an interrupted write must not look like a cached file
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as part:
        part.write(content)
    Path(part.name).replace(path)
    return path


def _check_hash(content: bytes, path: Path, advice: str) -> None:
    wanted = path.stem.rpartition("-")[2]
    found = hashlib.sha256(content).hexdigest()
    if not found.startswith(wanted):
        raise InputError(
            f"{path}: damaged or another file: its SHA-256 must begin with {wanted}, found {found[:8]}. "
            f"{advice}"
        )
