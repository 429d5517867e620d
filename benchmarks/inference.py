"""What a slice costs on one CPU core, engine by engine: python benchmarks/inference.py [--dense RUN] [--shrunk RUN ...]

All rows run in turn, in one process with one thread; the figures are medians of CPU time. Without runs the network is
WP-UNet with random weights: its speed is real, its labels mean nothing. Runs must have been trained on the same cases;
each is given as RUN or RUN,scores.csv. The dense run is measured on every engine, the other runs in LiteRT, with sizes
and Dice. The rows "own" compute as kitsseg predict does with a run, at the stated batch size. Some lines compare the
figures with the targets. benchmarks/predict_process.py measures a whole process of kitsseg predict.
"""

import argparse
import gzip
import importlib.util
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-1:])  # before any engine counts the CPUs

import keras
import numpy as np
import tensorflow as tf

from kitsseg import open_cache
from kitsseg.data.cache.windows import cached_images
from kitsseg.export.writers import ExportOptions, write_network
from kitsseg.inference.engines import open_network
from kitsseg.models import build_wp_unet, count_macs, read_network
from kitsseg.records.networks import finished_run, read_exported
from kitsseg.scoring import read_scores

TABLE_2 = {"unet": 5_680_353, "dw_unet": 2_601_921, "wp_unet": 1_297_441}  # the paper's parameters
PACKAGES = {"onnxruntime": ("onnxruntime", "tf2onnx"), "openvino": ("openvino", "tf2onnx")}
BATCHES = (1, 4, 8)
# the CPU time of keras predict divided by that of the engine; "labels": the share of labels that equal those of Keras
TARGETS = {"own": 1.3, "own at any batch": 1.0, "litert int8": 3.5, "labels": 0.9999}


def main():
    arguments = parse()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    keras.utils.set_random_seed(0)
    networks = {}
    for kind in ("dense", "masked", "blocked", "shrunk"):
        for text in getattr(arguments, kind):
            folder, _, scores = text.partition(",")
            networks[f"{kind}: {'/'.join(Path(folder).parts[-2:])}"] = from_run(folder, scores, arguments)
    if not arguments.dense:
        network = random_statistics(build_wp_unet((arguments.size, arguments.size, 1)))
        networks = {"dense: random weights": (network, noise(arguments, 1), None)} | networks
    with tempfile.TemporaryDirectory() as scratch:
        compare_engines(networks, arguments, Path(scratch))
        table_2(arguments, Path(scratch))


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for kind in ("dense", "masked", "blocked", "shrunk"):
        parser.add_argument(
            f"--{kind}", nargs="*" if kind != "dense" else 1, default=[], metavar="RUN[,SCORES]"
        )
    parser.add_argument("--size", type=int, default=256, help="rows and columns of the slice (default: 256)")
    parser.add_argument("--rounds", type=int, default=15)
    return parser.parse_args()


def noise(arguments, channels, count=8):
    shape = (1, arguments.size, arguments.size, channels)
    return list(np.random.default_rng(0).uniform(size=(count, *shape)).astype("float32"))


def random_statistics(network):
    """Give normalizations statistics as after a training: some engines leave out a new one, which changes nothing."""
    rng = np.random.default_rng(0)
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            n = layer.gamma.shape[0]
            draws = rng.uniform(0.5, 1.5, n), rng.normal(size=n), rng.normal(size=n), rng.uniform(0.5, 1.5, n)
            layer.set_weights(draws)
    return network


def from_run(folder, scores, arguments):
    """(network, images of the run's training cases, {"tk_dice": ..., "tu_dice": ...} or None)."""
    trained = finished_run(folder)
    record, spec = trained.record, trained.preprocess
    network = read_network(trained.source)
    network = keras.Model(network.input, network.outputs[-1], name=network.name)
    cases = open_cache(record.cache, spec)
    train = [cases[name] for name in record.split.cases.train if name in cases]
    shape = (arguments.size, arguments.size, spec.channels)
    images = list(cached_images(train, shape, spec, 32))
    dice = None
    if scores:
        rows, _ = read_scores(Path(scores))
        dice = {key: float(np.mean([row[key] for row in rows])) for key in ("tk_dice", "tu_dice")}
    return network, images, dice


def compare_engines(networks, arguments, scratch):
    rows, facts, agreements = {}, [], {}
    for number, (name, (network, images, dice)) in enumerate(networks.items()):
        files = write_files(network, images, scratch / str(number), first=number == 0)
        expected = [network.predict_on_batch(image) for image in images[:8]]
        for n in BATCHES if number == 0 else ():
            batch = np.concatenate(images[:n])
            # a new engine for each batch size, because the engine keeps only the graph of the last size
            own = open_network(files / "model.keras", "tensorflow")
            rows[name, f"keras predict, batch {n}"] = lambda m=network, x=batch: m.predict(x, verbose=0), n
            rows[name, f"own (tensorflow), batch {n}"] = lambda c=own.scores, x=batch: c(x), n
            difference = max(np.abs(a - b).max() for a, b in zip(expected, own.scores(batch)[:, None]))
            equal = np.mean(
                [a.argmax(-1) == b.argmax(-1) for a, b in zip(expected, own.scores(batch)[:, None])]
            )
            agreements[name, f"own (tensorflow), batch {n}"] = difference, equal
        for engine, compute in engines_of(files, first=number == 0).items():
            rows[name, engine] = lambda c=compute.scores, x=images[0]: c(x), 1
            found = [compute.scores(image) for image in images[:8]]
            equal = np.mean([(a.argmax(-1) == b.argmax(-1)) for a, b in zip(expected, found)])
            agreements[name, engine] = (max(np.abs(a - b).max() for a, b in zip(expected, found)), equal)
        facts.append((name, network, files, dice))
    times = measure(rows, arguments.rounds)
    print(
        f"\n{arguments.size} x {arguments.size}, one thread, median of {arguments.rounds} rounds, CPU ms a slice"
    )
    print(
        f"{'network':34}{'engine':26}{'ms':>8}{'wall':>8}{'x predict':>11}{'x LiteRT':>10}{'diff':>10}{'labels':>11}"
    )
    first = next(iter(networks))
    predict, litert = times[first, "keras predict, batch 1"][0], times[first, "litert float32"][0]
    for (name, engine), (cpu, wall) in times.items():
        difference, equal = agreements.get((name, engine), (0.0, 1.0))
        print(
            f"{name:34}{engine:26}{cpu:8.1f}{wall:8.1f}{predict / cpu:11.2f}{litert / cpu:10.2f}"
            f"{difference:10.1e}{equal:11.4%}"
        )
    print_targets(first, times, agreements)
    print_facts(facts, arguments)


def print_targets(name, times, agreements):
    """The first network's figures beside the targets."""
    cpu = {engine: milliseconds for (network, engine), (milliseconds, _) in times.items() if network == name}
    own = {n: cpu[f"keras predict, batch {n}"] / cpu[f"own (tensorflow), batch {n}"] for n in BATCHES}
    exact = {engine: equal for (network, engine), (_, equal) in agreements.items() if "int8" not in engine}
    found = {
        "own": own[1],
        "own at any batch": min(own.values()),
        "litert int8": cpu["keras predict, batch 1"] / cpu["litert int8"],
        "labels": min(exact.values()),
    }
    print(
        f"\nown, times less CPU than keras predict at batch {', '.join(f'{n}: {r:.2f}' for n, r in own.items())}"
    )
    for key, target in TARGETS.items():
        verdict = "met" if found[key] >= target else "missed"
        print(f"target {key}: at least {target:g}, found {found[key]:.4f}: {verdict}")


def write_files(network, images, folder, first):
    """The network in every format that is measured."""
    folder.mkdir()
    network.save(folder / "model.keras")
    shape = images[0].shape[1:]
    metadata = {
        "settings": {
            "preprocess": {"hu_window": (0, 1), "hu_mean": 0, "hu_std": 1},
            "inference": {"tile": None},
            "postprocess": None,
        },
        "input": {"shape": (1, *shape)},
        "output": {"softmax": False},
    }
    write_network(network, folder / "float32.tflite", shape, metadata, ExportOptions(format="litert"))
    int8 = ExportOptions(format="litert", precision="int8")
    write_network(network, folder / "int8.tflite", shape, metadata, int8, images)
    if first and installed(PACKAGES["onnxruntime"]):
        write_network(network, folder / "float32.onnx", shape, metadata, ExportOptions(format="onnx"))
    return folder


def engines_of(folder, first):
    """The network by name of its engine; those that are not installed are named."""
    found = {
        f"litert {precision}": open_network(read_exported(folder / f"{precision}.tflite").source)
        for precision in ("float32", "int8")
    }
    for engine, packages in PACKAGES.items():
        if first and not installed(packages):
            missing = [name for name in packages if not installed([name])]
            print(f"{engine}: left out, not installed: {', '.join(missing)}")
        elif first:
            found[engine] = open_network(read_exported(folder / "float32.onnx").source, engine)
    return found


def installed(packages):
    return all(importlib.util.find_spec(name) for name in packages)


def measure(rows, rounds):
    """Median (CPU, wall) milliseconds a slice of each; two rounds warm up."""
    times = {key: [] for key in rows}
    for number in range(rounds + 2):
        for key, (compute, slices) in rows.items():
            cpu, wall = time.process_time(), time.perf_counter()
            compute()
            spent = time.process_time() - cpu, time.perf_counter() - wall
            if number > 1:
                times[key].append([1000 * seconds / slices for seconds in spent])
    return {key: np.median(values, axis=0) for key, values in times.items()}


def print_facts(facts, arguments):
    print(f"\n{'network':34}{'parameters':>12}{'not zero':>10}{'GMAC':>7}{'effective':>10}"
          f"{'f32 MB':>8}{'gzip':>7}{'int8 MB':>9}{'gzip':>7}{'kidney':>8}{'tumor':>7}")  # fmt: skip
    for name, network, folder, dice in facts:
        shape = (arguments.size, arguments.size, network.input_shape[-1])
        nonzero = sum(np.count_nonzero(value) for value in network.get_weights())
        macs = [count_macs(network, shape, nonzero_only=only) / 1e9 for only in (False, True)]
        sizes = []
        for precision in ("float32", "int8"):
            content = (folder / f"{precision}.tflite").read_bytes()
            sizes += [len(content) / 1e6, len(gzip.compress(content, 9, mtime=0)) / 1e6]
        scores = [f"{dice[key]:.3f}" if dice else "-" for key in ("tk_dice", "tu_dice")]
        print(f"{name:34}{network.count_params():12,}{nonzero:10,}{macs[0]:7.2f}{macs[1]:10.2f}"
              f"{sizes[0]:8.2f}{sizes[1]:7.2f}{sizes[2]:9.2f}{sizes[3]:7.2f}{scores[0]:>8}{scores[1]:>7}")  # fmt: skip


def table_2(arguments, scratch):
    """The paper's three networks, with its single output channel and random weights."""
    rows, networks, shape = {}, {}, (arguments.size, arguments.size, 1)
    for variant in TABLE_2:
        networks[variant] = network = random_statistics(build_wp_unet(shape, n_classes=1, variant=variant))
        images = noise(arguments, 1)
        computes = engines_of(write_files(network, images, scratch / variant, first=False), first=False)
        for engine, compute in computes.items():
            rows[variant, engine] = lambda c=compute.scores, x=images[0]: c(x), 1
        rows[variant, "keras predict"] = lambda n=network, x=images[0]: n.predict(x, verbose=0), 1
    times = measure(rows, arguments.rounds)
    print(
        f"\n{'table 2':10}{'parameters':>12}{'paper':>12}{'GMAC':>7}{'predict ms':>12}{'litert f32':>12}{'int8':>8}"
    )
    for variant, network in networks.items():
        trainable = sum(int(np.prod(weight.shape)) for weight in network.trainable_weights)
        milliseconds = [
            times[variant, engine][0] for engine in ("keras predict", "litert float32", "litert int8")
        ]
        print(
            f"{variant:10}{trainable:12,}{TABLE_2[variant]:12,}{count_macs(network, shape) / 1e9:7.2f}"
            f"{milliseconds[0]:12.1f}{milliseconds[1]:12.1f}{milliseconds[2]:8.1f}"
        )


if __name__ == "__main__":
    main()
