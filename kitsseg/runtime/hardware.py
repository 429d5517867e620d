"""A line that names the devices in use, and a warning about an unused GPU. Imports neither Keras nor a backend."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

__all__ = ["computing_line", "gpus_of_backend", "may_have_gpu", "nvidia_devices", "unused_gpu_warning"]

_ANSWERS_WITHIN = 20  # seconds


def nvidia_devices() -> list[str]:
    """Names of the NVIDIA devices of this machine, as its driver tells them; empty where there are none."""
    if command := shutil.which("nvidia-smi"):
        try:
            found = subprocess.run(
                [command, "--query-gpu=name", "--format=csv,noheader"],
                capture_output=True,
                text=True,
                timeout=_ANSWERS_WITHIN,
                check=True,
            )
        except (OSError, subprocess.SubprocessError):
            pass
        else:
            if names := [line.strip() for line in found.stdout.splitlines() if line.strip()]:
                return names
    return _device_files()


def may_have_gpu() -> bool:
    """Whether this machine shows an NVIDIA device that this process may use. It takes no time: no program is asked."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    # the second one stands for all devices of a Linux inside of Windows
    return bool(_device_files()) or Path("/dev/dxg").exists()


def _device_files() -> list[str]:
    return [f"{path}" for path in sorted(Path("/dev").glob("nvidia[0-9]*"))]


def gpus_of_backend() -> list[str]:
    """The GPUs that the backend of Keras sees, such as gpu:0; empty where it computes on something else."""
    import keras

    # asked for its GPUs where there are none, JAX raises RuntimeError instead of giving an empty list
    return [name for name in keras.distribution.list_devices() if name.lower().startswith("gpu")]


def computing_line(precision: str, devices: int = 1) -> str:
    """What this process computes with, once Keras is there.

    Args:
        precision: of the networks. devices: how many share a batch.
    """
    import keras

    gpus = len(gpus_of_backend())
    what = f"{min(devices, gpus) or gpus} of {gpus} GPU{'s' if gpus > 1 else ''}" if gpus else "the CPU"
    return f"computes on {what}, {precision}, Keras {keras.version()} on {keras.config.backend()}"


def unused_gpu_warning() -> str | None:
    """A warning where the backend of Keras sees the CPU only, though the machine has NVIDIA devices; else None."""
    import keras

    if gpus_of_backend() or os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return None
    names = nvidia_devices()
    if not names:
        return None
    backend = keras.config.backend()
    package = "jax[cuda12]" if backend == "jax" else "tensorflow[and-cuda]"
    return (
        f"warning: ONLY THE CPU IS USED, although this machine has {len(names)} NVIDIA device"
        f"{'s' if len(names) > 1 else ''} ({names[0]}): {backend} was installed without CUDA, or does not find it. "
        f'Run: {sys.executable} -m pip install "{package}"; or set CUDA_VISIBLE_DEVICES=-1 if the CPU is meant'
    )
