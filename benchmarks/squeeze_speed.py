"""ResNet-34 against SqueezeNet in fastai's U-Net: python benchmarks/squeeze_speed.py [--size 96]

The paper says the ResNet took longer, its own log says the opposite. One process, the networks in turn, median
milliseconds of a forward pass of one image.
"""

import argparse
import os
import statistics
import time
from pathlib import Path

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from kitsseg.files.atomic import atomic_path
from kitsseg.models import build_squeeze_unet, count_macs


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="file for the table")
    arguments = parser.parse_args()
    shape = (arguments.size, arguments.size, 3)
    networks = {
        "ResNet-34": build_squeeze_unet(shape, encoder="resnet34"),
        "SqueezeNet 1.1 with skips": build_squeeze_unet(shape, encoder="squeezenet1_1", skips=True),
        "SqueezeNet 1.1 as fastai builds it, without skips": build_squeeze_unet(
            shape, encoder="squeezenet1_1", skips=False
        ),
    }
    image = np.random.default_rng(0).normal(size=(1, *shape)).astype("float32")
    times = {name: [] for name in networks}
    for round_number in range(arguments.rounds + 1):
        for name, network in networks.items():
            started = time.perf_counter()
            network.predict_on_batch(image)
            if round_number:  # the first compiles
                times[name].append(1000 * (time.perf_counter() - started))
    base = statistics.median(times["ResNet-34"])
    rows = ["| network | G multiply-adds | ms | beside ResNet-34 |", "|---|---|---|---|"]
    for name, network in networks.items():
        median = statistics.median(times[name])
        rows.append(f"| {name} | {count_macs(network) / 1e9:.2f} | {median:.0f} | {median / base:.2f} |")
    print(*rows, sep="\n")
    if arguments.out:
        with atomic_path(arguments.out) as temporary:
            temporary.write_text("\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
