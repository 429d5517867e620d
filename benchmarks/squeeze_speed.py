"""ResNet-34 against SqueezeNet in fastai's U-Net: python benchmarks/squeeze_speed.py [--size 96]

The paper says the ResNet took longer, its own log says the opposite. One process, the networks in turn, median
milliseconds of a forward pass of one image.
"""

import argparse
import os
import statistics
import time

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from kitsseg.macs import count_macs
from kitsseg.models import build_squeeze_unet


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    shape = (arguments.size, arguments.size, 3)
    networks = {
        "resnet34": build_squeeze_unet(shape, encoder="resnet34"),
        "squeezenet1_1, skips": build_squeeze_unet(shape, encoder="squeezenet1_1", skips=True),
        "squeezenet1_1, as unet_learner builds it": build_squeeze_unet(
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
    base = statistics.median(times["resnet34"])
    for name, network in networks.items():
        median = statistics.median(times[name])
        print(
            f"{name:42} {count_macs(network) / 1e9:7.2f} GMAC {median:8.1f} ms {median / base:6.2f} x resnet34"
        )


if __name__ == "__main__":
    main()
