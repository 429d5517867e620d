"""Import Keras without its start-up notices, and without packages that it imports but kitsseg does not need."""

import json
import os
import platform
import sys
from pathlib import Path

from kitsseg.errors import InputError
from kitsseg.runtime.quiet import quiet_stderr

__all__ = ["start_keras"]

BACKENDS = ("tensorflow", "jax")  # that kitsseg can use
# Keras imports these where they are installed, for functions that kitsseg does not use: together they double the time
# of the import and take 200 MiB
UNUSED = ("IPython", "jax", "matplotlib", "pandas", "sklearn", "torch")


def start_keras(trains: bool = False) -> None:
    """Import Keras and its backend without their start-up notices; if the import fails, they are shown.

    Args:
        trains: whether this process is going to train: TensorFlow then uses oneDNN on every x86-64 CPU, unless
            TF_ENABLE_ONEDNN_OPTS says otherwise. By itself TensorFlow leaves oneDNN out on Linux where a CPU has no
            AVX-512 instructions for neural networks, and a step takes 0.9 to 2.3 times as long then
            (``benchmarks/training.py``). A prediction leaves the choice to TensorFlow: on such a CPU oneDNN is slower
            for plain convolutions of a single slice.

    Raises: InputError, naming what chose the backend, for one that kitsseg cannot use or that is not installed.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if trains and platform.machine() in ("x86_64", "AMD64"):
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    backend, chosen_by = _backend()
    if backend not in BACKENDS:
        raise InputError(
            f"{chosen_by}: expected the backend {' or '.join(BACKENDS)}, found {backend!r}. Correct it, or take it "
            "out: tensorflow is the default."
        )
    hidden = [name for name in UNUSED if name not in sys.modules and name != backend]
    failed = None
    with quiet_stderr():
        try:
            # None: as if it were not installed
            sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # typeshed knows modules only
            import keras  # noqa: F401
        except (ImportError, ValueError) as error:  # ValueError: of another setting in keras.json
            failed = error  # said below, without the notices
        finally:
            for name in hidden:
                if sys.modules.get(name, name) is None:
                    del sys.modules[name]  # whoever imports it later gets it
    if isinstance(failed, ValueError):
        raise InputError(
            f"{_configuration()}: Keras cannot use it ({' '.join(str(failed).split())}). Correct it, or remove it: "
            "Keras writes it anew."
        ) from failed
    if failed is not None:
        other = next(name for name in BACKENDS if name != backend)
        raise InputError(
            f"{chosen_by}: the backend {backend} cannot be imported ({' '.join(str(failed).split())}). Install it "
            f"with: pip install {backend}; or choose {other}."
        ) from failed


def _backend() -> tuple[str, str]:
    """The backend that Keras is going to take, and what says so."""
    if name := os.environ.get("KERAS_BACKEND"):
        return name, f"KERAS_BACKEND={name}"
    path = _configuration()
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # Keras goes by its default then
        return "tensorflow", "Keras"
    except RecursionError:
        settings = None
    if not isinstance(settings, dict):
        raise InputError(
            f"{path}: expected the settings of Keras, found something else. Correct it, or remove it: Keras writes it "
            "anew."
        )
    return str(settings.get("backend", "tensorflow")), f"{path} (KERAS_BACKEND overrides it)"


def _configuration() -> Path:
    return Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras") / "keras.json"
