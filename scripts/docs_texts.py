"""The paragraph and the example of each command in docs/commands, where its arguments are listed as well."""

__all__ = ["COMMANDS"]

COMMANDS = {
    "recipes": (
        "A recipe is one paper as its authors state it. `NAME:practical` is the recipe that we would run today, "
        "`NAME:tiny` a small one for a demo. Variants are further networks, most of them rows of the paper's tables, "
        "such as `deeplab3d:bigger-encoder`; the paper's page names the settings that a variant changes. `show` prints "
        "the evidence of every setting: stated by the paper, read in the authors' code, inferred, or our choice with "
        "the reason.",
        "kitsseg recipes\nkitsseg recipes show unet2d:practical\nkitsseg recipes --json",
    ),
    "info": (
        "Prints the information to send with a question: versions of Python and of the packages that influence "
        "results, the engines (libraries that compute a network) and extras that are installed, and the NVIDIA devices "
        "that the driver names. Only `--devices` imports the backend of Keras (TensorFlow or JAX); it then also prints "
        "how long the import took, and whether a GPU stays unused.",
        "kitsseg info\nkitsseg info --devices",
    ),
    "completion": (
        "Prints a script for bash, zsh or tcsh, made from all commands and options (needs the extra `completion`). The "
        "script does not start kitsseg while you type. For bash:",
        "kitsseg completion bash > ~/.local/share/bash-completion/completions/kitsseg",
    ),
    "demo": (
        "Everything in one go on a laptop: synthetic patients, preprocessing, training, prediction on patients that were "
        "not trained on, scores and a report. The figures are phantom results.",
        "kitsseg demo --recipe wp_unet --out demo",
    ),
    "synthesize": (
        "Makes procedural (computed) patients for demos and tests; or, with `--labels`, a rendered CT for each real "
        "label map. The headers of the files say that they are phantoms, and every report made from them says so too.",
        "kitsseg synthesize DATA --cases 12\nkitsseg synthesize DATA --labels KITS19_LABELS",
    ),
    "download": (
        "Label maps come from the official repository, images from the host that it names today. A download goes on "
        "where it broke off, and is tried again after an error. A file gets its name only when it is whole and its "
        "size and SHA-256 agree with the manifest (`data_manifest.csv`, part of the package). The host of the images "
        "re-encoded the files of 2019: an image with a new hash causes one warning; its hash is then recorded, and the "
        "file must not change any more. The data are CC BY-NC-SA 4.0.",
        "kitsseg download DATA --cases 0,3-7\nkitsseg download DATA --from /mnt/kits19",
    ),
    "verify": (
        "Reads every file to its end. An error means that a case cannot be used (damaged, swapped, another grid, other labels, "
        "NaN). A warning is for your information (an image hash other than that of 2019, a known label problem). The exit "
        "code is 1 if there are errors, else 0.",
        "kitsseg verify DATA",
    ),
    "manifest": (
        "For maintainers: computes the values of `data_manifest.csv` anew from the files.",
        "kitsseg manifest DATA --out data_manifest.csv",
    ),
    "preprocess": (
        "Resamples as the recipe states and writes a cache of whole slices that training reads by random access. The "
        "command prepares one case at a time (or as many as `--workers` says), without TensorFlow. Cases that are in "
        "the cache already are kept, so that the same command goes on after an interruption. With `--from-host` KiTS19 "
        "is fetched, prepared and forgotten, a case at a time: label maps stay in `DATA`, scans do not, and the hash "
        "of each scan is recorded in `DATA/hashes.json`.",
        "kitsseg preprocess unet2d DATA CACHE --workers 2\nkitsseg preprocess unet2d DATA CACHE --from-host --cases 0-19",
    ),
    "statistics": (
        "Mean, standard deviation and percentiles of HU in kidney and tumor over the *training* part of a split, "
        "beside the recipe's stated values. The command changes nothing: training uses the recipe's values.",
        "kitsseg statistics unet2d CACHE --split mlperf42",
    ),
    "train": (
        "Splits by patient, runs the recipe's phases in order, and writes a run folder. Of each phase the weights of the epoch "
        "with the lowest validation loss are kept; `--set phases.PHASE.kept_epoch=last` keeps those of the last one. "
        "`--resume` goes on exactly where the last finished epoch ended. With `--ema` each step also averages the weights; "
        "the averages are validated, pruned, handed from phase to phase and kept, while training goes on with the weights "
        "themselves. Statistics of batch normalization are not averaged. [Splits](../splits.md) lists the named splits.",
        "kitsseg train unet2d CACHE RUN --split 80-10-10\nkitsseg train unet2d CACHE RUN --split 80-10-10 --resume",
    ),
    "cross-validate": (
        "Divides the patients into folds and trains one run for each; every patient is then segmented by the one run "
        "that used this patient neither for training nor for choosing the best epoch. The command checks this before "
        "it scores anything. The same command goes on after an interruption: finished folds are left out. Jobs of an "
        "array share the folder by `--shard`. `OUT/folds.csv` holds the means of each fold and of all patients, "
        "`OUT/scores.csv` a row for each patient, `OUT/report.html` one page; each `OUT/fold-I` is an ordinary run. "
        "The best epoch of a fold is chosen by a tenth of the other patients, not by the fold itself. With all 210 "
        "patients the folds are those of the splits `5-fold-0` to `5-fold-4`, so that figures can be compared patient "
        "by patient.",
        "kitsseg cross-validate unet2d CACHE OUT --data DATA\n"
        "kitsseg cross-validate unet2d CACHE OUT --data DATA --shard $SLURM_ARRAY_TASK_ID/5   # in each job of an array 0-4\n"
        "kitsseg cross-validate unet2d CACHE OUT --data DATA                                  # after them: scores",
    ),
    "prune": (
        "Sets the smallest weights of a finished run of any recipe to zero and trains the other weights further, by "
        "the schedules of tensorflow-model-optimization. Zeros make a compressed file smaller, but they alone make no "
        "network faster: see `shrink` and `export`.",
        "kitsseg prune RUN CACHE PRUNED --sparsity 0.8\nkitsseg prune RUN CACHE PRUNED --preset paper",
    ),
    "shrink": (
        "Removes whole channels of a finished run, which leaves a smaller ordinary network, and trains this network "
        "further.",
        "kitsseg shrink RUN CACHE SMALL --keep 0.5",
    ),
    "export": (
        "Writes one file for other software, with batch normalization folded. The file is compared with the network that it "
        "came from: the largest difference and the share of equal labels are printed, and a file that differs too much is not "
        "kept. The file also holds the meaning of the labels, the preprocessing, and the note that it is no medical device.",
        "kitsseg export RUN --out kidney.tflite --precision int8\nkitsseg export RUN --out kidney.onnx",
    ),
    "predict": (
        "Writes label maps on the scan's own voxels, with the scan's header, from a run or an exported network.\n\n"
        "- **Input.** INPUT is a NIfTI file, a `.zip` archive (unpacked into a temporary folder, never beyond it), or "
        "a folder. In a folder the command looks through everything: NIfTI files, KiTS cases, nnU-Net's `imagesTr` and "
        "`imagesTs`, PNG and JPEG slices, and DICOM. Each CT series is a scan, however many lie in a folder. NIfTI files "
        "that are named as label maps (`mask`, `seg`, `labels` and the like), or lie in a folder called so (`masks`, `labels`), are left out "
        "unless you give the file or that folder itself.\n"
        "- **Names.** If every series has a folder of its own, at most one level below INPUT, and INPUT is no archive, "
        "the folders name the scans. Otherwise all series are called `PATIENT_NUMBER_DESCRIPTION`: PATIENT is the "
        "PatientID, or, where there is none, the uppermost folder. Equal names get eight digits of a hash. A NIfTI "
        "file or a folder gives its name as it is, blanks and other letters included, because you will look for it "
        "again: `Patient 7 CT.nii.gz` is segmented into `Patient 7 CT.nii.gz`, and the KiTS case `case_00005` into "
        "`prediction_00005.nii.gz`, as KiTS19 asks for. All commands take such names (quote them in a shell). Names "
        "from DICOM headers, and the name of an archive, are cleaned to letters, digits, `-` and `_`. NIfTI files of "
        "one name in several folders are called by their paths. Equal names in several archives get the name of their "
        "archive. A scan that has a label map in OUT keeps its name there when other scans come to INPUT.\n"
        "- **What is refused.** A series with a gap in it is refused. Slices missing at either end of a series leave "
        "no gap: kitsseg notices them only where the headers count the slices (`ImagesInAcquisition`, "
        "`NumberOfSeriesRelatedInstances`), and then prints a warning. Scans whose label maps would have one name "
        "(`ct.nii` beside `ct.nii.gz`, or cases of one name in two inputs) are refused, each with a line of its own. No label map replaces a scan, not even with `--overwrite`: a folder for "
        "OUT that holds the scans under the names of their label maps is refused.\n"
        "- **Before anything is computed** a table says what was found, what will be done, and what is left out and "
        "why; `--dry-run` stops there, with exit code 1 if a scan would fail. A damaged or refused scan stops no other "
        "scan: the exit code is then 1, and the same command tries that scan again. Scans that have a whole label map "
        "of the same networks are left out.\n"
        "- **Output.** Beside the label maps lie `colors_3d_slicer.ctbl` and `colors_itk_snap.txt`. With "
        "`--statistics` the command also writes `statistics.csv` and `statistics.json`, in ml; left and right are the "
        "patient's, found from the scan's affine (`sides_by` says how). With `--dicom-seg` it also writes a DICOM "
        "Segmentation object of each series, with the segments kidney (SNOMED CT 64033007) and neoplasm (108369006).\n\n"
        "No label map and no volume is for use on patients.",
        "kitsseg predict RUN DATA --part test --out PREDICTIONS\nkitsseg predict kidney.tflite scan.nii.gz --out PREDICTIONS\n"
        "kitsseg predict RUN EXPORT.zip STUDIES --out PREDICTIONS --dry-run\n"
        "kitsseg predict FOLD0 DATA --out PREDICTIONS --also FOLD1 FOLD2 FOLD3 FOLD4\n"
        "kitsseg predict RUN DATA --out PREDICTIONS --shard 3/20\n"
        "kitsseg predict RUN STUDIES --out PREDICTIONS --dicom-seg --statistics --remove-small 500",
    ),
    "evaluate": (
        "Computes the official KiTS19 scores of each case and their mean. TK is the Dice of kidney with tumor (labels "
        "1 and 2), TU that of tumor (label 2); the composite is their mean. If truth and prediction are both empty, "
        "the score is 1; if exactly one of them is empty, the score is 0 (the rule of KiTS21 and KiTS23; the KiTS19 "
        "starter code gives NaN where both are empty). A second table scores the same predictions, and an empty label "
        "map, by other definitions of Dice that are in use.\n\n"
        "With `--surface` there are also surface Dice (tolerance 1.03 mm for kidney with tumor, 1.15 mm for tumor), "
        "HD95 (the 95th percentile of the distances between the surfaces, in mm), and the tumors that were found: a "
        "tumor is found if at least a tenth of its volume is predicted as tumor.",
        "kitsseg evaluate PREDICTIONS DATA --out scores.csv",
    ),
    "compare": (
        "Compares runs patient by patient: mean differences with bootstrap intervals and Wilcoxon's signed-rank test. It uses "
        "the patients on whom all runs were scored, and whom no run used for training or for choosing its best epoch.",
        "kitsseg compare unet2d=A/scores.csv wp_unet=B/scores.csv --out compare.csv",
    ),
    "report": (
        "Writes one HTML file without external resources, below 5 MB. It begins with pictures, the worst case first: slices "
        "through both kidneys and the largest tumor, with the outlines of truth and prediction; mouse wheel and arrow keys "
        "change the slice. Scores follow, then the tumors that were found and the rule for it, the paper's figures beside a run "
        "of its recipe, and training curves. For a folder of predictions without truth it shows pictures and volumes.",
        "kitsseg report scores.csv --out report.html",
    ),
}
