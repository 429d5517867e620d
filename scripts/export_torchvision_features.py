"""Compute the features of torchvision's encoders with random weights, as references for the Keras encoders.

    python scripts/export_torchvision_features.py --out FOLDER [--network resnet34] [--size 256 256]
    python scripts/export_torchvision_features.py --fixture tests/models/fixtures

The first writes NETWORK.pth (state dict) and NETWORK.npz (``image``, ``features``; channels last). The second
writes what the tests keep: the features at small sizes, the logits of fastai's U-Net on SqueezeNet (this part
needs fastai), and one tiny state dict in each of torch's two formats.
Weights and images come from :func:`seeded_tensor`, which needs NumPy only, so that tests can make them again.
Needs torch, and uses torchvision's networks where that is installed, otherwise the definitions below.
"""

import argparse
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np

FIXTURE_SIZES = ((64, 64), (44, 82))  # at the second size every ceil-mode pooling of SqueezeNet rounds up
FASTAI_SIZES = {(47, 64): True, (33, 36): False}  # (rows, columns): with skip connections or without
FIRE = {3: (64, 16, 64), 4: (128, 16, 64), 6: (128, 32, 128), 7: (256, 32, 128),
        9: (256, 48, 192), 10: (384, 48, 192), 11: (384, 64, 256), 12: (512, 64, 256)}  # fmt: skip


def seeded_tensor(name, shape):
    """Random float32 values that depend on ``name`` and ``shape`` alone, the same with every NumPy.

    Convolution kernels are scaled so that the signal keeps its size. Variances lie in 0.5..1.5. Gains lie in
    0.25..0.75, because with larger gains the values of a ResNet of random weights would grow without bound. All other
    tensors lie in -0.1..0.1. ``name="image"`` gives values in -2..2, about the range of normalized images.
    """
    count = math.prod(shape)
    raw = np.random.PCG64(zlib.crc32(name.encode())).random_raw(
        count
    )  # raw bits: a stream NumPy never changes
    uniform = (raw >> np.uint64(40)).astype("float32").reshape(shape) / 2**23 - 1  # in -1..1
    if name == "image":
        return 2 * uniform
    if len(shape) == 4:
        return uniform * np.float32(math.sqrt(4.5 / math.prod(shape[1:])))
    if name.endswith("running_var"):
        return 1 + uniform / 2
    if name.endswith("weight"):
        return (2 + uniform) / 4
    return uniform / 10


def squeezenet(nn, torch):
    """torchvision's ``squeezenet1_1().features``, its parameter names included."""

    module: Any = nn.Module

    class Fire(module):
        def __init__(self, n_in, squeeze, expand):
            super().__init__()
            self.squeeze = nn.Conv2d(n_in, squeeze, 1)
            self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
            self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)

        def forward(self, x):
            x = self.squeeze(x).relu()
            return torch.cat([self.expand1x1(x).relu(), self.expand3x3(x).relu()], 1)

    children = [nn.Conv2d(3, 64, 3, stride=2), nn.ReLU()]
    for index in range(2, 13):
        children.append(Fire(*FIRE[index]) if index in FIRE else nn.MaxPool2d(3, 2, ceil_mode=True))
    network = nn.Module()
    network.features = nn.Sequential(*children)
    network.forward = network.features.forward
    return network


def resnet(nn, n_blocks):
    """torchvision's ``resnet34()`` (blocks 3, 4, 6, 3) up to ``layer4``, its parameter names included."""

    module: Any = nn.Module

    class BasicBlock(module):
        def __init__(self, n_in, n_out, stride):
            super().__init__()
            self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False)
            self.bn1 = nn.BatchNorm2d(n_out)
            self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
            self.bn2 = nn.BatchNorm2d(n_out)
            self.downsample = None
            if stride > 1:
                convolution = nn.Conv2d(n_in, n_out, 1, stride, bias=False)
                self.downsample = nn.Sequential(convolution, nn.BatchNorm2d(n_out))

        def forward(self, x):
            shortcut = x if self.downsample is None else self.downsample(x)
            x = self.bn1(self.conv1(x)).relu()
            return (self.bn2(self.conv2(x)) + shortcut).relu()

    children = {"conv1": nn.Conv2d(3, 64, 7, 2, padding=3, bias=False), "bn1": nn.BatchNorm2d(64),
                "relu": nn.ReLU(), "maxpool": nn.MaxPool2d(3, 2, padding=1)}  # fmt: skip
    n_in = 64
    for stage, count in enumerate(n_blocks):
        blocks = []
        for index in range(count):
            blocks.append(BasicBlock(n_in, 64 * 2**stage, 2 if stage > 0 and index == 0 else 1))
            n_in = 64 * 2**stage
        children[f"layer{stage + 1}"] = nn.Sequential(*blocks)
    network = nn.Sequential()
    for name, child in children.items():
        network.add_module(name, child)
    return network


def torch_network(name):
    """The encoder ``name`` from torchvision, or from above; in evaluation mode with seeded weights."""
    import torch
    from torch import nn

    try:
        import torchvision
    except (ImportError, RuntimeError):  # RuntimeError: a torchvision that does not belong to this torch
        print("torchvision: not usable here, its networks are defined by this script")
        depths = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}
        network = squeezenet(nn, torch) if name == "squeezenet1_1" else resnet(nn, depths[name])
    else:
        print(f"torchvision {torchvision.__version__}")
        network = getattr(torchvision.models, name)(weights=None)
        if name == "squeezenet1_1":
            network.forward = network.features.forward
        else:
            network.forward = nn.Sequential(*list(network.children())[:-2]).forward
    state = {
        key: torch.from_numpy(seeded_tensor(key, tuple(tensor.shape)))
        for key, tensor in network.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    network.load_state_dict(state, strict=False)
    return network.eval()


def features_of(network, size):
    """What ``network`` makes of the seeded image of ``size``, and the image, channels last."""
    import torch

    image = seeded_tensor("image", (*size, 3))
    with torch.no_grad():
        features = network.forward(torch.from_numpy(image.transpose(2, 0, 1)[None].copy()))
    return features.numpy()[0].transpose(1, 2, 0), image


def fastai_unet(name, size, skips):
    """fastai's ``DynamicUnet`` with three classes; both its encoder and its decoder have seeded weights.

    Each tensor of the decoder is seeded with the name of the equal Keras layer; ``names`` and ``modules`` are both in
    the order in which the layers run. Without ``skips`` SqueezeNet is wrapped as ``unet_learner`` wraps it, so that
    fastai finds no skip connection.
    """
    import torch
    from fastai.vision.models.unet import DynamicUnet
    from torch import nn

    network = torch_network(name)
    children = network.features if name == "squeezenet1_1" else nn.Sequential(*list(network.children())[:-2])
    unet = DynamicUnet(children if skips else nn.Sequential(children), 3, size).eval()
    names = ["middle_bn", "middle_conv1", "middle_conv2"]
    for level in range(1, len(unet.sfs) + 1):
        names += [f"up{level}_{part}" for part in ("expand", "bn", "conv1", "conv2")]
    names += ["full_expand", "full_conv1", "full_conv2", "logits"]
    modules = [module for layer in list(unet.layers)[1:] for module in layer.modules()
               if isinstance(module, nn.Conv2d | nn.BatchNorm2d)]  # fmt: skip
    with torch.no_grad():
        for layer, module in zip(names, modules, strict=True):
            for key, tensor in module.state_dict().items():
                if key != "num_batches_tracked":
                    tensor.copy_(torch.from_numpy(seeded_tensor(f"{layer}.{key}", tuple(tensor.shape))))
    return unet


def write_fixture(folder):
    import torch
    from torch import nn

    features = {}
    for name in ("squeezenet1_1", "resnet34"):
        network = torch_network(name)
        for size in FIXTURE_SIZES:
            features[f"{name}_{size[0]}x{size[1]}"] = features_of(network, size)[0]
    np.savez_compressed(folder / "torchvision_features.npz", **features)
    logits = {}
    for (rows, columns), skips in FASTAI_SIZES.items():
        unet = fastai_unet("squeezenet1_1", (rows, columns), skips)
        logits[f"squeezenet1_1_{rows}x{columns}_{'skips' if skips else 'no_skips'}"] = features_of(
            unet, (rows, columns)
        )[0]
    np.savez_compressed(folder / "fastai_logits.npz", **logits)
    tiny = nn.Module()
    tiny.features = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))
    state = tiny.state_dict()
    for name, tensor in state.items():
        if tensor.is_floating_point():
            tensor.copy_(torch.from_numpy(seeded_tensor(name, tuple(tensor.shape))))
    # shares the kernel's storage, at an offset, not contiguous
    state["classifier.view"] = state["features.0.weight"].transpose(0, 1)[1:]
    torch.save(state, folder / "tiny_zip.pth")
    torch.save(state, folder / "tiny_legacy.pth", _use_new_zipfile_serialization=False)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", default="resnet34", choices=("squeezenet1_1", "resnet18", "resnet34"))
    parser.add_argument("--size", type=int, nargs=2, default=(256, 256), metavar=("ROWS", "COLUMNS"))
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--out", type=Path, help="folder for NETWORK.pth and NETWORK.npz")
    group.add_argument("--fixture", type=Path, help="folder for the files of the tests")
    args = parser.parse_args()
    if args.fixture:
        write_fixture(args.fixture)
        return
    import torch

    args.out.mkdir(parents=True, exist_ok=True)
    network = torch_network(args.network)
    features, image = features_of(network, args.size)
    torch.save(network.state_dict(), args.out / f"{args.network}.pth")
    np.savez(args.out / f"{args.network}.npz", image=image, features=features)
    print(f"{args.out / args.network}: features {features.shape}, largest {features.max():.3g}")


if __name__ == "__main__":
    main()
