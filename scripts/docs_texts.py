"""What docs/commands says about each command beside its arguments: a paragraph and an example."""

__all__ = ["COMMANDS"]

COMMANDS = {
    "recipes": (
        "A recipe is one paper as the authors state it, with `NAME:practical` for what one would run today and `NAME:tiny` "
        "for a demo; further rows of its tables are variants, such as `deeplab3d:bigger-encoder`, which change what their "
        "pages name and nothing else. `show` prints the evidence of every setting: stated by the paper, read in the authors' code, or ours "
        "and why.",
        "kitsseg recipes\nkitsseg recipes show unet2d:practical\nkitsseg recipes --json",
    ),
    "info": (
        "What to send with a question: versions of Python and of the packages that decide about results, the engines and "
        "extras that are installed, and the NVIDIA devices that the driver names. TensorFlow is imported with `--devices` "
        "only, which then says how long that took and whether a GPU goes unused.",
        "kitsseg info\nkitsseg info --devices",
    ),
    "completion": (
        "A script for bash, zsh or tcsh, made once from all commands and options (needs the extra `completion`); nothing of "
        "kitsseg runs while you type. For bash:",
        "kitsseg completion bash > ~/.local/share/bash-completion/completions/kitsseg",
    ),
    "demo": (
        "Everything in one go on a laptop: synthetic patients, preprocessing, training, prediction on patients that were "
        "not trained on, scores and a report. The figures are phantom results.",
        "kitsseg demo --recipe wp_unet --out demo",
    ),
    "synthesize": (
        "Procedural patients for demos and tests; or, with `--labels`, a rendered CT for each real label map. The files "
        "say in their headers that they are phantoms, and every report made from them repeats it.",
        "kitsseg synthesize DATA --cases 12\nkitsseg synthesize DATA --labels KITS19_LABELS",
    ),
    "download": (
        "Label maps come from the official repository, images from the host it names today. Files are resumed where they "
        "broke off, retried, checked against the manifest (size and SHA-256) and appear under their names only when whole. "
        "The images' host re-encoded the files of 2019: a new hash is a warning once, then recorded and held to. "
        "The data are CC BY-NC-SA 4.0.",
        "kitsseg download DATA --cases 0,3-7\nkitsseg download DATA --from /mnt/kits19",
    ),
    "verify": (
        "Reads every file to its end. Errors are what makes a case unfit (damaged, swapped, another grid, other labels, "
        "NaN); warnings are worth knowing (an image hash other than that of 2019, a known label problem). Exit code 1 with "
        "errors, 0 with warnings only.",
        "kitsseg verify DATA",
    ),
    "manifest": (
        "For maintainers: what `data_manifest.csv` says about each case, computed anew from the files.",
        "kitsseg manifest DATA --out data_manifest.csv",
    ),
    "preprocess": (
        "Resamples as the recipe states and writes a cache of whole slices that training reads by random access. One case "
        "at a time, without TensorFlow; cases that are there already are kept, so an interrupted run goes on. With `--from-host` "
        "KiTS19 is fetched, prepared and forgotten, a case at a time: label maps stay in `DATA`, scans do not, and what a scan "
        "was is recorded in `DATA/hashes.json`.",
        "kitsseg preprocess unet2d DATA CACHE --workers 2\nkitsseg preprocess unet2d DATA CACHE --from-host --cases 0-19",
    ),
    "statistics": (
        "Mean, standard deviation and percentiles of HU in kidney and tumor over the *training* part of a split, beside "
        "the recipe's stated values. It changes nothing: the recipe's values stay in force.",
        "kitsseg statistics unet2d CACHE --split mlperf42",
    ),
    "train": (
        "Splits by patient, runs the recipe's phases in order, keeps the best weights of each, and writes a run folder. "
        "`--resume` goes on exactly where the last finished epoch ended. With `--ema` each step also averages the weights; "
        "the averages are validated, pruned, handed from phase to phase and kept, while training goes on with the weights "
        "themselves. Statistics of batch normalization are not averaged. [Splits](../splits.md) lists the named splits.",
        "kitsseg train unet2d CACHE RUN --split 80-10-10\nkitsseg train unet2d CACHE RUN --split 80-10-10 --resume",
    ),
    "cross-validate": (
        "Divides the patients into folds and trains one run for each; every patient is then segmented by the one run that "
        "was neither trained on it nor chosen by it, which is checked before anything is scored. Folds that are done are "
        "left out and unfinished ones go on, so that the same command does the rest; jobs of an array share the folder by "
        "`--shard`. `OUT/folds.csv` holds the means of each fold and of all patients, `OUT/scores.csv` a row for each "
        "patient, `OUT/report.html` one page; each `OUT/fold-I` is an ordinary run. The best epoch of a fold is chosen by "
        "a tenth of the other patients, not by the fold itself. The folds of all 210 patients are those of the splits "
        "`5-fold-0` to `5-fold-4`, so that figures can be compared patient by patient.",
        "kitsseg cross-validate unet2d CACHE OUT --data DATA\n"
        "kitsseg cross-validate unet2d CACHE OUT --data DATA --shard $SLURM_ARRAY_TASK_ID/5   # in each job of an array 0-4\n"
        "kitsseg cross-validate unet2d CACHE OUT --data DATA                                  # after them: scores",
    ),
    "prune": (
        "Zeroes the smallest weights of a finished run of any recipe and trains the others on, by the schedules of "
        "tensorflow-model-optimization. Zeros make a compressed file smaller; nothing gets faster by them alone: see "
        "`shrink` and `export`.",
        "kitsseg prune RUN CACHE PRUNED --sparsity 0.8\nkitsseg prune RUN CACHE PRUNED --preset paper",
    ),
    "shrink": (
        "Removes whole channels, which leaves a smaller ordinary network, and trains it on.",
        "kitsseg shrink RUN CACHE SMALL --keep 0.5",
    ),
    "export": (
        "One file for other software, batch norm folded, checked after writing against the network it came from: largest "
        "difference and share of equal labels are printed, and a file that fails is not kept. Labels, preprocessing and the "
        "note that this is no medical device travel inside.",
        "kitsseg export RUN --out kidney.tflite --precision int8\nkitsseg export RUN --out kidney.onnx",
    ),
    "predict": (
        "Labels on the scan's own voxels with its header, from a run or an exported network. INPUT may be a NIfTI file, a "
        "`.zip` archive (unpacked into a temporary folder, never beyond it), or a folder, in which everything is looked "
        "through: NIfTI files, KiTS cases, nnU-Net's `imagesTr` and `imagesTs`, and DICOM. Each CT series is a scan, however "
        "many lie in a folder; folders of one series each, directly in INPUT, keep their names, other series are called "
        "`PATIENT_NUMBER_DESCRIPTION`. A series with a gap in it is refused; slices that lack at its first or last end leave "
        "an even series, and are warned of only where the headers count them (`ImagesInAcquisition`, "
        "`NumberOfSeriesRelatedInstances`). A table says first what was found, what will be done, and what is left out and why; "
        "`--dry-run` stops there. A damaged scan stops no other: the exit code is then 1, and the same command tries it "
        "again. Beside the label maps lie `colors_3d_slicer.ctbl` and `colors_itk_snap.txt`; with `--statistics` also "
        "`statistics.csv` and `statistics.json`, in ml, left and right being the patient's and found from the scan's "
        "affine (`sides_by` says how); with `--dicom-seg` a DICOM Segmentation object of each series, with the segments "
        "kidney (SNOMED CT 64033007) and neoplasm (108369006). Nothing of this is for use on patients.",
        "kitsseg predict RUN DATA --part test --out PREDICTIONS\nkitsseg predict kidney.tflite scan.nii.gz --out PREDICTIONS\n"
        "kitsseg predict RUN EXPORT.zip STUDIES --out PREDICTIONS --dry-run\n"
        "kitsseg predict RUN STUDIES --out PREDICTIONS --dicom-seg --statistics --remove-small 500",
    ),
    "evaluate": (
        "The official KiTS19 scores per case and their mean, and beside them what other definitions in use make of the same "
        "predictions, and of predicting nothing.",
        "kitsseg evaluate PREDICTIONS DATA --out scores.csv",
    ),
    "compare": (
        "Patient by patient, on the patients that all runs were scored on and none was trained on or chosen by: mean "
        "differences with bootstrap intervals and Wilcoxon's signed-rank test.",
        "kitsseg compare unet2d=A/scores.csv wp_unet=B/scores.csv --out compare.csv",
    ),
    "report": (
        "One HTML file, without external resources and below 5 MB. Pictures come first: slices through both kidneys and the "
        "largest tumor, to be gone through with wheel and arrow keys, with the outlines of truth and prediction; the worst "
        "case first. Then scores, which tumors were found and by what rule, the paper's figures beside the run that follows "
        "its recipe, and training curves. Of a folder of predictions without truth it shows the pictures and volumes.",
        "kitsseg report scores.csv --out report.html",
    ),
}
