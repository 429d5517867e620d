"""Steps of training a second, engine beside engine: python benchmarks/training.py [--recipes NAME,...]

    pip install "kitsseg[bench]" jax torch

Each paper's network, as the paper states it, is trained on one fixed batch again and again, with the paper's loss and
Adam. The engines are Keras on TensorFlow (as in ``kitsseg train``), on TensorFlow without oneDNN (its own choice on
Linux for a CPU without AVX-512 instructions for neural networks), on TensorFlow with XLA and on JAX, each in float32
and mixed_bfloat16, and an equal PyTorch network (training_torch.py) in both of its memory layouts. Reading data is not
measured here, but in benchmarks/data.py. Each engine has a process of its own; the engines run in turn within a round.
Printed are medians over the rounds (of processor time on a CPU, of the clock on a GPU), the peak of the process'
memory, and the arithmetic rate as a share of the rate that a large matrix product reaches on the same engine and
precision. A training step counts as three passes of the network's multiply-adds, two operations each.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

from process_memory import status_mib

ENGINES = (
    ("tensorflow", "float32"),
    ("tensorflow-no-onednn", "float32"),
    ("tensorflow-xla", "float32"),
    ("jax", "float32"),
    ("torch", "float32"),
    ("torch-channels-last", "float32"),
    ("tensorflow", "mixed_bfloat16"),
    ("tensorflow-xla", "mixed_bfloat16"),
    ("jax", "mixed_bfloat16"),
    ("torch", "mixed_bfloat16"),
)
HEADS = ("ms a step", "steps/s", "times ours", "GFLOP/s", "of peak", "MiB", "first loss", "last loss")
SIZES = {
    "unet2d": (224, 224, 1),
    "wp_unet": (256, 256, 1),
    "squeeze_unet": (128, 128, 3),
    "enhanced_unet": (256, 256, 1),
    "deeplab3d": (48, 48, 48, 1),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipes", default=",".join(SIZES))
    parser.add_argument("--engines", help="such as tensorflow:float32,jax:mixed_bfloat16; all by default")
    parser.add_argument("--batch", type=int, default=4, help="images or patches in a batch")
    parser.add_argument("--steps", type=int, default=3, help="of training in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", help=argparse.SUPPRESS)  # a worker: recipe, engine, precision, batch
    arguments = parser.parse_args()
    if arguments.one:
        serve(*arguments.one.split(","))
        return
    engines = ENGINES
    if arguments.engines:
        engines = [tuple(name.split(":")) for name in arguments.engines.split(",")]
    for recipe in arguments.recipes.split(","):
        compare(recipe, engines, arguments.batch, arguments.steps, arguments.rounds)


def compare(recipe, engines, batch, steps, rounds):
    workers, missing = [], []
    for engine, precision in engines:
        worker = Worker(recipe, engine, precision, batch)
        (missing if worker.facts is None else workers).append(worker)
    times = {worker: [] for worker in workers}
    for worker in workers:
        worker.ask(1)  # traces and compiles
    for _ in range(rounds):
        for worker in workers:
            times[worker].append(worker.ask(steps)["seconds"] / steps)
    first, ours = workers[0].facts, times[workers[0]]
    print(
        f"\n{recipe}: {first['parameters']:,} parameters, {first['macs'] / 1e9:.2f} G multiply-adds an image, batches "
        f"of {batch} x {' x '.join(map(str, SIZES[recipe]))}, {rounds} rounds of {steps} steps, {first['device']}"
    )
    print(("{:<22}{:<16}" + "{:>11}" * len(HEADS)).format("engine", "precision", *HEADS))
    for worker in workers:
        end, median = worker.ask(0), statistics.median(times[worker])
        ratio = statistics.median(b / a for a, b in zip(ours, times[worker], strict=True))
        rate = 6 * first["macs"] * batch / median / 1e9
        values = (
            1e3 * median,
            1 / median,
            ratio,
            rate,
            rate / worker.facts["peak"],
            end["mib"],
            worker.facts["loss"],
        )
        row = "{:<22}{:<16}{:>11.0f}{:>11.2f}{:>11.2f}{:>11.0f}{:>11.0%}{:>11.0f}{:>11.6f}{:>11.6f}"
        print(row.format(worker.engine, worker.precision, *values, end["loss"]))
        if "difference" in worker.facts:
            print(f"{'':<22}largest difference from Keras' logits {worker.facts['difference']:.1e}")
    for worker in missing:
        print(f"{worker.engine} {worker.precision}: not compared ({worker.problem})")
    sys.stdout.flush()


class Worker:
    """An engine in a process of its own, which does as many steps as it is told."""

    def __init__(self, recipe, engine, precision, batch):
        self.engine, self.precision, self.facts, self.problem = engine, precision, None, ""
        backend = "jax" if engine == "jax" else "tensorflow"
        onednn = "0" if engine.endswith("no-onednn") else "1"
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--one", f"{recipe},{engine},{precision},{batch}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ
            | {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": onednn},
        )
        line = self._process.stdout.readline()
        if line:
            self.facts = json.loads(line)
        else:
            self.problem = (self._process.stderr.read().strip().splitlines() or ["it ended"])[-1]

    def ask(self, steps):
        """Train so many steps, or end; returns what the worker says."""
        try:
            self._process.stdin.write(f"{steps}\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())
        except (ValueError, OSError) as error:
            raise SystemExit(f"{self.engine}: {self._process.stderr.read()[-2000:]}") from error


def serve(name, engine, precision, batch):
    """The worker's side: a line of facts, then a line for each number of steps; 0 ends it."""
    import numpy as np

    batch = int(batch)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(batch, *SIZES[name])).astype(np.float32)
    labels = rng.integers(0, 3, (batch, *SIZES[name][:-1])).astype(np.int32)
    start = start_torch if engine.startswith("torch") else start_keras
    facts, train = start(name, engine, precision, images, labels)
    print(json.dumps(facts), flush=True)
    loss = facts["loss"]
    clock = time.process_time if facts["device"].startswith("CPU") else time.perf_counter
    for line in sys.stdin:
        if not (steps := int(line)):
            break
        begin = clock()
        loss = train(steps)
        print(json.dumps({"seconds": clock() - begin}), flush=True)
    print(json.dumps({"mib": status_mib("VmHWM") or float("nan"), "loss": loss}), flush=True)


def network_of(name):
    """Recipe, its network in the sizes measured, its loss and the weights of its outputs."""
    import keras

    from kitsseg import recipes

    recipe = recipes.get(name)
    keras.utils.set_random_seed(0)
    words = {"weights": None} if "weights" in recipe.model else {}
    model = recipe.build_model(**recipe.model | words | {"input_shape": SIZES[name]})
    loss, weights = recipe.build_loss(**recipe.loss), None
    if isinstance(loss, tuple):
        loss, weights = loss
    return recipe, model, loss, weights


def start_keras(name, engine, precision, images, labels):
    import keras
    import tensorflow as tf

    from kitsseg.models import count_macs
    from kitsseg.runtime.execution import computing_in

    with computing_in(precision):
        recipe, model, loss, weights = network_of(name)
    if engine == "jax":
        import jax

        device = "CPU" if jax.default_backend() == "cpu" else jax.devices()[0].device_kind
        jit = "auto"
    else:
        gpus = tf.config.list_physical_devices("GPU")
        device, jit = gpus[0].name if gpus else "CPU", engine == "tensorflow-xla"
    model.compile(keras.optimizers.Adam(1e-4), loss, loss_weights=weights, jit_compile=jit)
    targets = recipe.build_targets(labels) if recipe.build_targets else labels
    first = model.evaluate(images, targets, batch_size=len(images), verbose=0, return_dict=True)["loss"]
    data = tf.data.Dataset.from_tensors((images, targets)).repeat()

    def train(steps):
        return model.fit(data, steps_per_epoch=steps, verbose=0).history["loss"][-1]

    facts = {
        "parameters": model.count_params(),
        "macs": count_macs(model),
        "device": f"{device} ({cores()} cores)",
        "loss": first,
        "peak": keras_peak(precision),
    }
    return facts, train


def start_torch(name, engine, precision, images, labels):
    import numpy as np

    # PyTorch's GPU build brings triton, and triton brings a second LLVM; two LLVMs, with TensorFlow's, end the process
    sys.modules["triton"] = None
    import torch
    from training_torch import TorchTwin, loss_of, to_torch

    torch.manual_seed(0)
    torch.set_num_threads(cores())
    recipe, model, losses, weights = network_of(name)
    twin, loss = TorchTwin(model), loss_of(losses, weights)
    x = to_torch(images)
    if engine == "torch-channels-last":
        form = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
        twin, x = twin.to(memory_format=form), x.to(memory_format=form)
    targets = recipe.build_targets(labels) if recipe.build_targets else labels
    if isinstance(targets, tuple):
        targets = [torch.from_numpy(np.ascontiguousarray(t)).long() for t in targets]
    else:
        targets = torch.from_numpy(targets).long()
    half = torch.autocast("cpu", torch.bfloat16, enabled=precision == "mixed_bfloat16")
    twin.eval()
    with torch.no_grad(), half:
        outputs, expected = twin(x[:1]), model.predict(images[:1], verbose=0)
        outputs, expected = ([o] if torch.is_tensor(o) else o for o in (outputs, expected))
        expected = expected if isinstance(expected, list | tuple) else [expected]
        difference = max(
            (o.float() - to_torch(e)).abs().max().item() for o, e in zip(outputs, expected, strict=True)
        )
        first = loss(twin(x), targets).item()
    del model
    twin.train()
    optimizer = torch.optim.Adam(twin.parameters(), 1e-4, eps=1e-7)

    def train(steps):
        for _ in range(steps):
            optimizer.zero_grad()
            with half:
                value = loss(twin(x), targets)
            value.backward()
            optimizer.step()
        return value.item()

    facts = {"device": f"CPU ({cores()} cores)", "loss": first, "difference": difference}
    return facts | {"peak": torch_peak(precision)}, train


def keras_peak(precision):
    """G operations a second of a matrix product."""
    from keras import ops

    dtype = "float32" if precision == "float32" else precision.removeprefix("mixed_")
    a = ops.ones((4096, 4096), dtype)
    return fastest(lambda: float(ops.sum(ops.cast(ops.matmul(a, a)[:1, :1], "float32"))))


def torch_peak(precision):
    import torch

    a = torch.ones((4096, 4096), dtype=torch.float32 if precision == "float32" else torch.bfloat16)
    return fastest(lambda: float((a @ a)[0, 0]))


def fastest(product):
    product()
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        product()
        seconds.append(time.perf_counter() - begin)
    return 2 * 4096**3 / min(seconds) / 1e9


def cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


if __name__ == "__main__":
    main()
