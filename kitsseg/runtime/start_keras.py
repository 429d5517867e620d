"""Keras without its start-up notices, and without what it would import beside its backend."""

import json
import os
import sys
from pathlib import Path

from kitsseg.runtime.quiet import quiet_stderr

__all__ = ["start_keras"]

# Keras imports these where they are installed, for functions that kitsseg does not use: together they double the time
# of the import and take 200 MiB
UNUSED = ("IPython", "jax", "matplotlib", "pandas", "sklearn", "torch")


def start_keras() -> None:
    """Import Keras and its backend without their start-up notices; if the import fails, they are shown."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    hidden = [name for name in UNUSED if name not in sys.modules and name != _backend()]
    with quiet_stderr():
        try:
            # None: as if it were not installed
            sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # typeshed knows modules only
            import keras  # noqa: F401
        finally:
            for name in hidden:
                if sys.modules.get(name, name) is None:
                    del sys.modules[name]  # whoever imports it later gets it


def _backend() -> str:
    """The backend that Keras is going to take: "tensorflow", "jax" or "torch"."""
    if name := os.environ.get("KERAS_BACKEND"):
        return name
    home = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras")
    try:
        backend: str = json.loads((home / "keras.json").read_text()).get("backend", "tensorflow")
        return backend
    except (OSError, ValueError, AttributeError):
        return "tensorflow"
