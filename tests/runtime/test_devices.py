"""Training on several devices or in several processes has the losses of training on one device.

Each backend runs in processes of its own, which divide a CPU into two devices.
"""

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.cases import read_json
from support.recipes import micro

from kitsseg.errors import InputError
from kitsseg.recipe import PatchSampler
from kitsseg.records.run import read_history
from kitsseg.runtime.devices import ONE_DEVICE, Devices, use_devices

TESTS = str(Path(__file__).parent)
# two GPUs are seldom at hand; two parts of a CPU are the same to TensorFlow and JAX
TRAIN = """
import sys
from pathlib import Path
import keras
sys.path[:0] = [sys.argv[1], str(Path(sys.argv[1]).parent)]
from support.recipes import split_of_cases
from test_devices import ten_steps
if keras.config.backend() == "tensorflow":
    import tensorflow as tf
    halves = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], halves)
from kitsseg.runtime.devices import use_devices
from kitsseg.training.options import TrainOptions
from kitsseg.training.train import train_recipe
_, _, cache, names, counts, *process = sys.argv
if process:
    process = process[0], (int(process[1]), 2)
for count in counts.split(","):
    devices = use_devices(int(count), *process)
    for name in names.split(","):
        run = Path(f"{name}-{devices.count}-{devices.processes}")
        ema = 0.8 if name == "unet3d" else None  # validation then is that of averages
        train_recipe(ten_steps(name), cache, split_of_cases(), run, TrainOptions(seed=3, ema=ema, devices=devices))
"""


def ten_steps(name):
    """Ten steps of a first phase, in two epochs; batches of an even number."""
    recipe = micro(name)
    phase = recipe.phases[0]
    if isinstance(phase.sampler, PatchSampler):
        phase = replace(phase, sampler=replace(phase.sampler, cases_per_batch=2, patch_size=(8, 8, 8)))
    # Adam divides by gradients that are zero except for rounding; a large rate shows it in the fifth digit
    phase = replace(phase, epochs=2, steps_per_epoch=5, learning_rate=min(phase.learning_rate, 1e-3))
    model = recipe.model | ({"n_pools": 1} if name == "unet2d" else {"filters": (4, 8)})
    return replace(recipe, model=model, phases=(phase,))


def start(folder, source, backend, names, counts, *process):
    environment = os.environ | {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    if backend == "jax" and not process:
        environment["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
    environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # compiling takes most of the time
    return subprocess.Popen(
        [sys.executable, "-c", TRAIN, TESTS, str(source / "cache"), names, counts, *process],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(*processes):
    for process in processes:
        said, _ = process.communicate(timeout=600)
        assert process.returncode == 0, said


def check_equal(folder, *others):
    """Losses of ten steps and of both validations, to 1e-5."""
    for name in ("unet2d", "unet3d"):
        one = read_history(folder / f"{name}-1-1")
        assert [row["epoch"] for row in one] == [1, 2]
        assert one[1]["loss"] < one[0]["loss"]
        for other in others:
            run = folder / f"{name}-{other}"
            assert read_json(run / "run.json")["devices"] == 2
            assert (run / "model.keras").is_file()
            for ours, theirs in zip(read_history(run), one, strict=True):
                for key in ("loss", "val_loss"):
                    assert ours[key] == pytest.approx(theirs[key], rel=0, abs=1e-5), (name, other, key)


@pytest.mark.slow
def test_two_replicas_of_tensorflow_are_as_one(source, tmp_path):
    finish(start(tmp_path, source, "tensorflow", "unet2d,unet3d", "1,2"))
    check_equal(tmp_path, "2-1")


@pytest.mark.slow
def test_two_devices_and_two_processes_of_jax_are_as_one(source, tmp_path):
    pytest.importorskip("jax")
    finish(start(tmp_path, source, "jax", "unet2d,unet3d", "1,2"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    finish(*(start(tmp_path, source, "jax", "unet2d,unet3d", "1", address, str(i)) for i in range(2)))
    check_equal(tmp_path, "2-1", "2-2")


def test_what_cannot_be_used_is_refused():
    with pytest.raises(InputError, match="--devices 99: expected 1 to 1, .*CPU"):
        use_devices(99)
    with pytest.raises(InputError, match="--devices 0: expected 1 to"):
        use_devices(0)
    with pytest.raises(InputError, match="--coordinator and --process go together"):
        use_devices(coordinator="localhost:1234")
    with pytest.raises(InputError, match="JAX backend, found tensorflow: .*KERAS_BACKEND=jax"):
        use_devices(coordinator="localhost:1234", process=(0, 2))
    assert use_devices() is use_devices("all") is ONE_DEVICE


def test_other_processes_write_to_a_copy_that_is_thrown_away(tmp_path):
    run = tmp_path / "run"
    second = Devices(2, 1, 2)
    with pytest.raises(InputError, match="process 1 .*no run to resume"), second.own_run(run, True):
        pass
    (run / "checkpoint").mkdir(parents=True)
    (run / "run.json").write_text("{}")
    (run / "checkpoint" / "a.keras").write_text("weights")
    with second.own_run(run, True) as own:
        assert (own / "checkpoint" / "a.keras").read_text() == "weights"
        (own / "run.json").write_text("changed")
    assert not own.exists()
    assert (run / "run.json").read_text() == "{}"
    with Devices(2, 0, 2).own_run(run, True) as own:
        assert own == run
    with second.own_run(run, False) as own:
        assert not own.exists()


def test_shards_of_parts():
    """Of 12 images in 2 parts and 3 processes, process 1 draws the second and the fifth sixth."""
    devices = Devices(3, 1, 3)
    assert [devices.shard(part, 2) for part in (0, 1)] == [(1, 6), (4, 6)]
    assert devices.shard() == (1, 3)
    assert ONE_DEVICE.shard() is None
    assert np.isclose(ONE_DEVICE.agreed({"composite": 0.1})["composite"], 0.1, rtol=0, atol=0)
