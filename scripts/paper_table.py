"""Print the table of docs/networks.md: python scripts/paper_table.py

Our parameters and multiply-adds are counted on the built networks. Authors and links come from the recipes, all other
columns from ROWS.
"""

import math
import re

from kitsseg import recipes
from kitsseg.models import (
    build_deeplab3d,
    build_enhanced_unet,
    build_squeeze_unet,
    build_unet2d,
    build_unet3d,
    build_wp_unet,
)
from kitsseg.models.macs import count_macs

PAGES = "papers"
# network, parameters in the paper, what is scored and open
ROWS = [
    (
        "unet2d",
        build_unet2d((224, 224, 1)),
        "12M",
        "TK 0.858, TU 0.224",
        "KiTS19 leaderboard",
        "window and normalization: ours; epochs inferred",
    ),
    (
        "wp_unet",
        build_wp_unet((256, 256, 1)),
        "1,297,441",
        "Dice 0.96, mean IoU 0.428",
        "class unclear, pooled slices",
        "the paper counts one output channel, 1,297,441 here too; the two figures exclude each other",
    ),
    (
        "squeeze_unet",
        build_squeeze_unet((128, 128, 3)),
        "not given",
        "0.976 (ResNet: 0.991)",
        "fastai DiceMulti, background counted",
        "ImageNet weights are downloaded or given; split by slice is not offered",
    ),
    (
        "enhanced_unet",
        build_enhanced_unet((256, 256, 1)),
        "not given",
        "kidney 0.953, tumor 0.572",
        "40 of 90 test cases",
        "subset size, rounds, rates: ours",
    ),
    (
        "deeplab3d",
        build_deeplab3d((48, 48, 48, 1)),
        "< 560k",
        "kidney label 0.872, tumor label 0.384",
        "own 63 validation cases",
        "thresholds and margins: ours",
    ),
    (
        "unet3d",
        build_unet3d((128, 128, 128, 1)),
        "not given",
        "kidney label 0.934, tumor label 0.792",
        "42 named cases (split mlperf42)",
        "overlapping windows, warm-up, two augmentations left out",
    ),
]


def main():
    print(
        "| recipe | paper | parameters: paper | ours (trainable) | multiply-adds | reported | metric | open |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name, model, parameters, reported, metric, still_open in ROWS:
        recipe = recipes.get(name)
        authors = recipe.paper.split(', "')[0].split(" (")[0]
        paper = f"[{authors}]({PAGES}/{name}.md)"
        if doi := re.search(r"https://doi\.org/[^\s,]+", recipe.link):
            paper += f" ([DOI]({doi[0]}))"
        shape = "x".join(str(n) for n in model.inputs[0].shape[1:-1])
        trainable = sum(math.prod(variable.shape) for variable in model.trainable_weights)
        macs = f"{count_macs(model) / 1e9:.2f} G at {shape}"
        print(
            f"| `{name}` | {paper} | {parameters} | {trainable:,} | {macs} | {reported} | {metric} | {still_open} |"
        )


if __name__ == "__main__":
    main()
