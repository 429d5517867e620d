"""Write the named splits of the 210 KiTS19 training cases: python scripts/make_splits.py

Membership that a paper states is taken from it; where it states sizes only, the cases are drawn with seed 0.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from kitsseg.data.splits import CaseSplit, make_split, save_split

FOLDER = Path(__file__).parent.parent / "kitsseg" / "data" / "splits"
CASES = [f"case_{i:05d}" for i in range(210)]
# mlcommons/inference, vision/medical_imaging/3d-unet-kits19/meta/inference_cases.json
MLPERF = [0, 3, 5, 6, 12, 24, 34, 41, 44, 49, 52, 56, 61, 65, 66, 70, 76, 78, 80, 84, 86, 87, 92, 111, 112, 125, 128,
          138, 157, 160, 161, 162, 169, 171, 176, 185, 187, 189, 198, 203, 206, 207]  # fmt: skip
# owkin/FLamby, flamby/datasets/fed_kits19/metadata/anony_sites.csv: the anonymous number of the hospital of each case;
# here the six hospitals that have ten or more of the 210 training cases
HOSPITALS = {
    67: [1, 2, 5, 16, 22, 26, 30, 47, 49, 52, 59, 63, 68, 71, 76, 89, 91, 93, 96, 110, 114, 115, 118, 132, 144, 146,
         147, 148, 151, 158],
    57: [11, 20, 39, 56, 69, 73, 77, 80, 119, 122, 136, 152, 153, 177, 184, 209],
    13: [0, 27, 51, 86, 101, 108, 116, 139, 141, 142, 155, 161, 165, 198],
    14: [3, 14, 33, 42, 98, 100, 102, 103, 120, 154, 156, 157],
    7: [21, 38, 55, 62, 74, 129, 164, 173, 175, 181, 195, 208],
    55: [53, 67, 70, 75, 78, 87, 113, 126, 135, 140, 159, 188],
}  # fmt: skip


def main():
    sizes_only = "sizes as the paper states them; it names no cases, these are drawn with seed 0"
    splits = [
        make_split(CASES, (0.8, 0.1, 0.1), name="80-10-10"),
        make_split(CASES, (0.7, 0.3, 0.0), name="deeplab3d"),
        make_split(CASES, (0.8, 0.2, 0.0), name="squeeze_unet"),
        CaseSplit("wp_unet", tuple(CASES[:158]), tuple(CASES[158:]), (),
                  "by case, as close as possible to the paper's 35,865 + 10,158 slices: 35,826 + 9,598"),
    ]  # fmt: skip
    splits[0] = replace(splits[0], source=f"168/21/21 of Chen and Jin (unet2d): {sizes_only}")
    splits[1] = replace(splits[1], source=f"147/63 of Daza et al.: {sizes_only}")
    splits[2] = replace(splits[2], source="ours: 80/20 by case, the paper states none; seed 0")
    held_out = {f"case_{i:05d}" for i in MLPERF}
    rest = [case for case in CASES if case not in held_out]
    inner = make_split(rest, (0.9, 0.1, 0.0))
    splits.append(
        CaseSplit("mlperf42", inner.train, inner.validation, tuple(sorted(held_out)),
                  "test: the 42 cases of MLPerf Inference 3D-UNet; train and validation drawn with seed 0")
    )  # fmt: skip
    for number, cases in HOSPITALS.items():
        tested = tuple(f"case_{i:05d}" for i in cases)
        inner = make_split([case for case in CASES if case not in tested], (0.9, 0.1, 0.0))
        splits.append(
            CaseSplit(f"hospital-{number}", inner.train, inner.validation, tested,
                      f"test: hospital {number} of FLamby's Fed-KiTS19; train and validation, drawn with seed 0: "
                      "the other 76 hospitals")
        )  # fmt: skip
    order = [CASES[i] for i in np.random.Generator(np.random.Philox(key=[0, 1])).permutation(210)]
    folds = [sorted(order[i::5]) for i in range(5)]
    for i, fold in enumerate(folds):
        others = tuple(case for case in CASES if case not in fold)
        splits.append(
            CaseSplit(f"5-fold-{i}", others, tuple(fold), (), "5 folds of 42 cases, drawn with seed 0")
        )
    for split in splits:
        save_split(split, FOLDER / f"{split.name}.json")
        print(
            split.name, split.hash, *(len(getattr(split, part)) for part in ("train", "validation", "test"))
        )


if __name__ == "__main__":
    main()
