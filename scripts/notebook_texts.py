"""What each paper's notebook says in its own words. Facts about the papers stand in kitsseg/recipes with their evidence."""

from typing import Any

__all__ = ["TEXTS"]

# For each paper: title; about: a paragraph on the method; demo_epochs: epochs of each phase of the demo, about a minute
# and a half on 2 CPU cores; precision and accumulate: settings that fit the 15 GB of a T4, given if float32 and a whole
# batch do not fit; look: whether the notebook shows how far the network looks; fair: what does not add up in the paper.
TEXTS: dict[str, dict[str, Any]] = {
    "unet2d": {
        "title": "A recursive 2D U-Net (Chen and Jin)",
        "about": "A plain 2D U-Net, six levels deep and 20 filters wide at the top, cross-entropy with soft Dice, "
        "batches of 7 slices of which 5 hold kidney or tumor, overlapping tiles and mirroring at test time. It is the "
        "baseline of the five: whatever else claims to be better should beat it on the same patients.",
        "demo_epochs": 12,
        "look": True,
        "fair": [
            "The abstract gives 0.85 and 0.22, the text 0.858 and 0.224: rounding.",
            "The equations add the Dice term to the loss, which would maximize the error; the authors' code subtracts "
            "it, and so does this recipe.",
            "The authors' public code sums its soft Dice over the batch only, a Dice per pixel position. The equation "
            "is followed here: sums over batch and pixels together.",
            "0.91 on 21 test cases of their own and 0.858 on the leaderboard are different patients, not a mistake.",
        ],
    },
    "wp_unet": {
        "title": "WP-UNet: depthwise separable convolutions and weight pruning (Rao, Chatterjee and Sharma)",
        "about": "A U-Net whose convolutions after the first are depthwise separable, trained, then pruned: in each "
        "weight matrix the smallest weights are set to zero and the rest is trained on. The schedules are those of "
        "tensorflow-model-optimization (tfmot); the masks are kitsseg's own, since tfmot cannot wrap Keras 3 layers.",
        "demo_epochs": 12,
        "fair": [
            "The three parameter counts of the paper's Table 2 are reproduced exactly by U-Nets of 32-64-128-256-256 "
            "filters. That 1,297,441 is an architecture's count is an inference: pruning the 2,601,921 weights by half leaves 1,311,521.",
            "Zeroed weights do not change a parameter count, do not shrink a file until it is compressed, and make "
            "nothing faster in TensorFlow. See `kitsseg shrink` and `kitsseg export` for what does.",
            "A Dice of 0.96 means an IoU of at least 0.923; the mean IoU of 0.43 cannot belong to the same predictions.",
            "The FLOPs column fits other networks (a 31.0M U-Net and SD-UNet), not the ones of the same rows: an inference.",
            "The plain U-Net has the higher mean IoU, 0.435 against 0.428 of WP-UNet.",
            "The abstract speaks of 300 patients, the text of 210; the labels of 90 are not public.",
            '"Three times" smaller: by the paper\'s own table it is 4.4 times in parameters and 8.7 times in FLOPs.',
            "35,865 + 10,158 slices are more than the 45,424 that KiTS19 has today.",
            "Predicting nothing at all is 99 % accurate (on the 210 label maps of KiTS19: 99.15 %).",
        ],
    },
    "squeeze_unet": {
        "title": "SqueezeNet and ResNet encoders in fastai's U-Net (Ashlin Deepa et al.)",
        "about": "ImageNet encoders in the decoder of fastai's `unet_learner`, three channels per slice (two windows and "
        "a histogram-scaled image). Networks and weights agree with torchvision's and fastai's to rounding.",
        "demo_epochs": 3,
        "fair": [
            "fastai's `unet_learner(dls, squeezenet1_1)` builds no U-Net: it finds no change of size to skip from and "
            "adds no skip connection. `skips=False` builds that network; this recipe has the skips the paper describes.",
            "The text says the ResNet takes longer; the paper's own log says 380 s per epoch against 2,670 s for "
            "SqueezeNet. The log is right: without skips the decoder works at full resolution with 515 channels.",
            "0.976 and 0.991 are fastai's DiceMulti, which counts background as a class: predicting nothing scores 0.33 "
            "in it, since background alone is nearly perfect.",
            "Slices were very probably split at random, so that neighbors of a scored slice were trained on. Splits "
            "are by patient here; `benchmarks/slice_leak.py` shows what the other way is worth.",
            "The ResNet trained 20 epochs, SqueezeNet 5.",
            "Its table sets 0.97 beside the Dice of other methods, some for other organs; by these the proposal outdoes "
            "all but the paper's own ResNet.",
        ],
    },
    "enhanced_unet": {
        "title": "An enhanced attention U-Net, trained progressively (He, Leung and Wang)",
        "about": "An attention U-Net with an input pyramid, deep supervision on four scales and focal Tversky loss, "
        "fine-tuned round after round on random subsets of the patients until the score no longer improves; then what "
        "lies far from the two kidneys is removed.",
        "demo_epochs": 3,
        "look": True,
        "fair": [
            "The paper stops its rounds on the test set, which is selection on test data. Rounds stop on validation "
            "patients here.",
            "40 of the 90 test patients were drawn at random; the figures are not comparable with the leaderboard.",
            "Subset size, rounds, rates, filters and distances are not given; each choice is named as ours in the recipe.",
            "Whether the kidney figure counts tumor as kidney is not said; it is compared with TK here.",
        ],
    },
    "deeplab3d": {
        "title": "3D DeepLab v3+ with fewer than 560k parameters (Daza, Gomez and Arbelaez)",
        "about": "A small 3D network on patches of 48 voxels whose center is equally often background, kidney and tumor, "
        "trained from scratch, then fine-tuned on patches of 44; the borders of predicted tiles are discarded and small "
        "components are given to the closest class.",
        "demo_epochs": 2,
        "look": True,
        "fair": [
            "The text calls a focal weight of 0.5 best; in the paper's own table a weight of 2 is best (mean Dice 56.11 against 55.58).",
            '"Decoder every stage, 1 convolution" beats the proposed decoder in both Dice values of the paper\'s table.',
            'The tables of architectures and of losses cannot be one protocol: "proposed" has a kidney Dice of 75.6 in one '
            "and 86.7 in the other.",
            "The abstract's scores were left as XX and YY.",
            "The kidney figure is the Dice of the kidney label without tumor, not the challenge's TK.",
        ],
    },
    "unet3d": {
        "title": "MLPerf's reference: a plain 3D U-Net",
        "about": "Not one of the five papers, but the public benchmark beside them: five strided levels and a "
        "bottleneck, instance normalization, 31M parameters, cross-entropy with Dice, patches of 128 voxels of "
        "1.6 x 1.2 x 1.2 mm. The 42 patients of the reported figures are the test part of the split `mlperf42` "
        "(`kitsseg train unet3d CACHE RUN --split mlperf42`).",
        "precision": "mixed_float16",
        "accumulate": 3,
        "demo_epochs": 8,
        "look": True,
        "fair": [
            "0.9347 and 0.7887, the figures MLPerf Inference shows today, count case_00185 twice, as case_00185 and as "
            "a copy named case_00400 with the same checksum: 43 scores. The same weights on the 42 different patients "
            "gave 0.9342 and 0.7924 before the copy was added.",
            "The kidney figure is the Dice of the kidney label without tumor, not the challenge's TK.",
            "Scores are taken on the resampled grid, against labels resampled to it, with up to 31 voxels cut from "
            "the ends of each axis. Here they are taken on the scan's own grid.",
            "Training stops as soon as these 42 patients score 0.908, so the weights were chosen on the patients for whom "
            "they are reported. In the Inference benchmark the public weights score 0.863 on these patients; no reason for "
            "the lower score is given.",
            "The brightness augmentation multiplies by one plus a factor around one: it doubles the normalized HU "
            "instead of changing them by up to 30 %. It is left out.",
        ],
    },
}
