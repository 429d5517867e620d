"""One training on several devices and machines, each of which computes a part of every batch.

TensorFlow: the GPUs of one machine, by ``tf.distribute.MirroredStrategy``. Keras 3 refuses
    ``MultiWorkerMirroredStrategy``, so that several machines need the JAX backend.
JAX: the devices of one machine or of several, by ``keras.distribution``; a process for each machine.

The batch is always as large as the recipe says and is divided into parts of equal size. The sums of the loss and, in
training, the statistics of batch normalization go over the whole batch, so that the losses equal those of one device.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np

from kitsseg.errors import InputError

__all__ = ["ONE_DEVICE", "Devices", "use_devices"]


@dataclass(frozen=True)
class Devices:
    """Where a network is trained.

    Attributes:
        count: number of devices, in all processes together.
        process, processes: the number of this process, from 0, and the number of processes.
        strategy: of TensorFlow or of Keras; None for one device.
    """

    count: int = 1
    process: int = 0
    processes: int = 1
    strategy: Any = None

    @property
    def mirrored(self) -> bool:
        """Whether ``tf.distribute.MirroredStrategy`` divides the batches. Keras supports fewer options with it."""
        return keras.config.backend() == "tensorflow" and self.count > 1

    def scope(self) -> AbstractContextManager[Any]:
        """Networks built, loaded and trained in this context use all devices."""
        return contextlib.nullcontext() if self.strategy is None else self.strategy.scope()

    def check(self, batch_size: int, accumulate: int = 1) -> None:
        """Raise InputError unless a batch can be divided evenly."""
        if accumulate < 1:
            raise InputError(f"--accumulate: expected at least 1, found {accumulate}.")
        if batch_size % (self.count * accumulate):
            among = [f"{self.count} devices"] * (self.count > 1) + [f"{accumulate} parts"] * (accumulate > 1)
            options = ["--devices"] * (self.count > 1) + ["--accumulate"] * (accumulate > 1)
            raise InputError(
                f"a batch of {batch_size} cannot be divided evenly among {' x '.join(among)}. Choose numbers that "
                f"divide {batch_size} with {' and '.join(options)}."
            )

    def shard(self, part: int = 0, parts: int = 1) -> tuple[int, int] | None:
        """``Draws.shard`` of this process, for whole batches or for part ``part`` of batches in ``parts`` parts."""
        index, count = part * self.processes + self.process, parts * self.processes
        return None if count == 1 else (index, count)

    def agreed(self, scores: Mapping[str, float]) -> Mapping[str, float]:
        """The numbers of the first process, given to all processes, so that all of them decide alike."""
        if self.processes == 1:
            return scores
        from jax.experimental import multihost_utils

        values = np.array(list(scores.values()), np.float64).view(np.uint32)  # JAX would round float64
        values = np.asarray(multihost_utils.broadcast_one_to_all(values)).view(np.float64)
        return dict(zip(scores, values.tolist(), strict=True))

    @contextlib.contextmanager
    def own_run(self, run: str | os.PathLike[str], resume: bool) -> Iterator[Path]:
        """The folder that this process writes to: the run itself for the first process, else a temporary folder.

        Raises: InputError if this process does not see the run to resume.
        """
        if self.process == 0:
            yield Path(run)
            return
        with tempfile.TemporaryDirectory(prefix="kitsseg-") as folder:
            own = Path(folder) / "run"
            if resume:
                if not (Path(run) / "run.json").is_file():
                    raise InputError(
                        f"{run}: process {self.process} finds no run to resume there. All processes read it at the "
                        "start: keep it in a folder that all machines share, or copy it to each of them."
                    )
                shutil.copytree(run, own)
            yield own


ONE_DEVICE = Devices()


def use_devices(
    devices: int | Literal["all"] | None = None,
    coordinator: str | None = None,
    process: tuple[int, int] | None = None,
) -> Devices:
    """Prepare the devices of this process, before it computes anything.

    Args:
        devices: number of the devices of this machine, or "all"; GPUs where there are some, else (logical) CPUs.
            One by default, all with a coordinator.
        coordinator: "host:port" of the first process, for several processes.
        process: (number of this process, number of processes).

    Returns: Devices.
    Raises: InputError for more devices than there are, and for several processes on the TensorFlow backend.
    """
    backend = keras.config.backend()
    if (coordinator is None) != (process is None):
        raise InputError(
            "--coordinator and --process go together, such as --coordinator node1:1234 --process 0/2."
        )
    if process is not None:
        if backend != "jax":
            raise InputError(
                f"several processes need the JAX backend, found {backend}: Keras 3 does not train with "
                "tf.distribute.MultiWorkerMirroredStrategy. Set KERAS_BACKEND=jax."
            )
        number, count = process
        if not 0 <= number < count:
            raise InputError(f"--process: expected I/N with 0 <= I < N, found {number}/{count}.")
        keras.utils.set_random_seed(0)  # or Keras would agree on a seed by a computation on all CPUs
        keras.distribution.initialize(coordinator, count, number)
    wanted = devices if devices is not None else 1 if process is None else "all"
    if backend == "tensorflow":
        return _mirrored(wanted)
    if backend == "jax":
        return _data_parallel(wanted)
    if wanted in (1, "all"):
        return ONE_DEVICE
    raise InputError(f"--devices {wanted}: expected the TensorFlow or the JAX backend, found {backend}.")


def _mirrored(wanted: int | Literal["all"]) -> Devices:
    import tensorflow as tf

    found = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    names = [device.name for device in _first(found, wanted)]
    if len(names) == 1:
        return ONE_DEVICE
    return Devices(len(names), strategy=tf.distribute.MirroredStrategy(names))


def _data_parallel(wanted: int | Literal["all"]) -> Devices:
    import jax
    import tensorflow as tf

    with contextlib.suppress(RuntimeError):  # it has computed already
        tf.config.set_visible_devices(
            [], "GPU"
        )  # or it, who only reads the batches, takes most of their memory
    own = [device for device in jax.devices() if device.process_index == jax.process_index()]
    n = len(_first(own, wanted))
    if n * jax.process_count() == 1:
        return ONE_DEVICE
    # the parts of a batch lie on the devices in this order, as the samplers divide it
    chosen = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    chosen = [[d for d in chosen if d.process_index == i][:n] for i in range(jax.process_count())]
    names = [f"{device.platform}:{device.id}" for part in chosen for device in part]
    return Devices(
        len(names),
        jax.process_index(),
        jax.process_count(),
        keras.distribution.DataParallel(devices=names, auto_shard_dataset=False),
    )


def _first(found: Sequence[Any], wanted: int | Literal["all"]) -> Sequence[Any]:
    n = len(found) if wanted == "all" else wanted
    if not 1 <= n <= len(found):
        raise InputError(
            f"--devices {wanted}: expected 1 to {len(found)}, as many as this machine has "
            f"({', '.join(str(getattr(d, 'name', d)) for d in found)})."
        )
    return found[:n]
