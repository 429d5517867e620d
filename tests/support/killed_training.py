"""Train cut-down recipes in processes of their own, some of which kill themselves. Run by test_sigkill_resume.py.

This process reads jobs from standard input, each as one line of JSON, and answers with the exit code of the job's
process. This process imports everything once and computes nothing. Each job is a fork, which may be killed by a real
SIGKILL. The training is then resumed by another fork, which knows only the files on disk.
"""

import fnmatch
import json
import os
import signal
import sys
import traceback
from dataclasses import replace
from pathlib import Path

from kitsseg.recipe import PatchSampler, Plateau
from kitsseg.training.options import TrainOptions
from kitsseg.training.train import train_recipe
from support.recipes import micro, split_of_cases, uncut

SEED = 7
# epochs of each phase or round, and their steps
SIZES = {
    "deeplab3d": ((1, 3), 1),
    "enhanced_unet": ((2,), 1),
    "squeeze_unet": ((1, 2), 2),
    "unet2d": ((3,), 2),
    "wp_unet": ((1, 3), 2),
}


def cut_down(name):
    """The recipe with its augmentation, schedules, pruning and rounds, but few epochs of one or two steps."""
    small = micro(name)
    phases, (epochs, steps) = [], SIZES[name]
    for full, phase, n in zip(uncut(name).phases, small.phases, epochs, strict=True):
        changes = {"augmentation": full.augmentation, "epochs": n, "steps_per_epoch": steps}
        changes["validate_cases_every"] = 2 if name == "unet2d" else None
        if isinstance(phase.schedule, Plateau):  # the rate drops after every epoch but the first
            changes["schedule"] = replace(phase.schedule, patience=1, min_delta=10.0, stop_below=None)
        if phase.pruning:  # masks are drawn anew with steps 1 to 4, which end its second epoch
            changes["pruning"] = replace(phase.pruning, schedule="polynomial", until=0.7, frequency=1)
        if phase.progressive:
            changes["progressive"] = replace(phase.progressive, min_delta=-1.0)  # each round is kept
        if isinstance(phase.sampler, PatchSampler):
            changes["sampler"] = replace(phase.sampler, patch_size=(8, 8, 8))
        phases.append(replace(phase, **changes))
    # rounds are scored with whole cases, here without mirrored copies
    return replace(small, phases=tuple(phases), inference=replace(small.inference, mirror_axes=()))


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def train(job):
    """Train a run or resume it, and kill this process at the moment that ``job["when"]`` states, if it states one.

    "step": kill when this number of steps of the run is done. "file" and "nth": kill when a file of this name appears
    in the run folder for the nth time. If "before" is true, kill while the complete file still has its temporary name,
    otherwise just after the file has got its own name.
    """
    import tensorflow as tf

    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.experimental.enable_op_determinism()
    # building the graphs of the larger networks would take most of the time
    tf.config.run_functions_eagerly(job["recipe"] != "unet2d")
    run, when = Path(job["run"]), job["when"] or {}
    seen, move = [], Path.replace

    def replace_and_count(path, target):
        if fnmatch.fnmatch(Path(target).name, when["file"]):
            seen.append(target)
        last = len(seen) == when["nth"]
        if last and when["before"]:
            kill()
        result = move(path, target)
        if last:
            kill()
        return result

    if "file" in when:
        Path.replace = replace_and_count

    def progress(_, done, total):
        if done == when.get("step"):
            kill()

    resume = (run / "run.json").is_file()
    recipe = cut_down(job["recipe"])
    train_recipe(
        recipe, job["cache"], split_of_cases(), run, TrainOptions(seed=SEED, resume=resume, progress=progress)
    )


def main():
    for line in sys.stdin:
        child = os.fork()
        if not child:
            try:
                train(json.loads(line))
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        _, status, used = os.wait4(child, 0)
        print(f"{line.strip()}: {used.ru_utime:.1f} s of CPU", file=sys.stderr, flush=True)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
