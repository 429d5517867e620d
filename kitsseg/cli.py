"""The command line. TensorFlow is imported inside the commands that need it, so that --help is instant."""

import argparse
import contextlib
import errno
import os
import signal
import sys
import tempfile
from pathlib import Path

from kitsseg import __version__
from kitsseg.errors import InputError

__all__ = ["main"]

SPACE = "Free some space, or choose another folder."
PERMISSION = "Check its permissions, or choose another folder."
HINTS = {
    errno.ENOSPC: SPACE,
    errno.EDQUOT: SPACE,
    errno.EFBIG: "Raise the limit on the size of files (ulimit -f), or choose another disk.",
    errno.EACCES: PERMISSION,
    errno.EPERM: PERMISSION,
    errno.EROFS: PERMISSION,
    errno.ENOTDIR: "A part of this path is a file: choose another folder.",
    errno.ENOENT: "Check the path.",
}


def main(argv=None):
    """Run one command; returns the exit code: 0 done, 1 bad input or a full disk, 130 interrupted."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if not hasattr(arguments, "run_command"):
        parser.print_help()
        return 0
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGTERM, _interrupt)  # a stopped job cleans up as after Ctrl-C
    try:
        arguments.run_command(arguments)
    except InputError as error:
        return _complain(str(error), 1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        text = error.strerror or str(error)
        hint = HINTS.get(error.errno, "Check the path, the disk and its permissions.")
        return _complain(f"{where}{text[:1].lower()}{text[1:]}. {hint}", 1)
    except MemoryError as error:
        return _complain(f"not enough memory ({error}). Close other programs, or use a larger machine.", 1)
    except KeyboardInterrupt:
        return _complain("interrupted; what was finished is kept, nothing half-written stays.", 130)
    return 0


def _interrupt(signum, frame):
    raise KeyboardInterrupt


def _complain(message, code):
    print(f"kitsseg: {' '.join(message.split())}", file=sys.stderr)  # noqa: T201
    return code


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong, as all other errors do, instead of printing the usage first."""

    def error(self, message):
        sys.exit(_complain(f"{message}. Try: {self.prog} --help", 2))


def _parser():
    parser = _Parser(
        prog="kitsseg",
        description="Kidney and kidney tumor segmentation in CT: five KiTS19 papers, from NIfTI to scores. "
        "Research software, not a medical device.",
    )
    parser.add_argument("--version", action="version", version=f"kitsseg {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    def command(name, function, help, **options):
        sub = commands.add_parser(name, help=help, description=help, **options)
        sub.set_defaults(run_command=function)
        return sub

    sub = command("recipes", _recipes, "list the papers, or show one with the evidence of each setting")
    sub.add_argument("action", nargs="?", choices=["show"], help="show one recipe")
    sub.add_argument("name", nargs="?", help="NAME, NAME:practical or NAME:tiny")

    sub = command("demo", _demo, "synthetic patients, training, prediction, scores and report in one go")
    sub.add_argument("--recipe", default="unet2d", help="NAME; its tiny variant is used (default: unet2d)")
    sub.add_argument("--out", default="demo", type=Path, help="new folder for everything (default: demo)")
    sub.add_argument("--cases", default=16, type=_at_least(5), help="number of patients (default: 16)")
    sub.add_argument("--seed", default=0, type=_at_least(0))

    sub = command("synthesize", _synthesize, "make synthetic patients in KiTS19 layout")
    sub.add_argument("out", type=Path, help="folder for the cases")
    sub.add_argument("--cases", default=12, type=_at_least(1), help="number of patients (default: 12)")
    sub.add_argument(
        "--size", default=(40, 128, 128), type=_size, help="slices,rows,columns (default: 40,128,128)"
    )
    sub.add_argument("--seed", default=0, type=_at_least(0))
    sub.add_argument("--labels", type=Path, help="folder of real label maps: render a CT for each instead")

    sub = command("preprocess", _preprocess, "resample cases and cache them for training")
    sub.add_argument("recipe", help="recipe whose preprocessing is used")
    sub.add_argument("data", type=Path, help="folder of cases in KiTS19 layout")
    sub.add_argument("cache", type=Path, help="folder for the cache")

    sub = command("train", _train, "train a recipe on cached cases")
    sub.add_argument("recipe", help="NAME, NAME:practical or NAME:tiny")
    sub.add_argument("cache", type=Path, help="folder given to kitsseg preprocess")
    sub.add_argument("run", type=Path, help="new folder for the run")
    sub.add_argument("--epochs", type=_at_least(1), help="epochs of every phase, instead of the recipe's")
    sub.add_argument("--split", help="a split file or a named split (default: 80/10/10 of the cases at hand)")
    sub.add_argument("--seed", default=0, type=_at_least(0))
    sub.add_argument("--resume", action="store_true", help="go on with an unfinished run")

    sub = command("predict", _predict, "segment scans with a trained run")
    sub.add_argument("run", type=Path, help="folder of a finished run")
    sub.add_argument("inputs", nargs="+", metavar="INPUT", help="scans, case folders or folders of cases")
    sub.add_argument("--out", required=True, type=Path, help="folder for the label maps")
    sub.add_argument(
        "--part", choices=["train", "validation", "test"], help="only this part of the run's split"
    )
    sub.add_argument(
        "--whole-slices", action="store_true", help="no overlapping tiles: about three times faster"
    )
    sub.add_argument(
        "--mirror", action=argparse.BooleanOptionalAction, help="override the recipe's mirroring"
    )

    sub = command("evaluate", _evaluate, "score label maps against the truth with the KiTS19 metric")
    sub.add_argument("prediction", type=Path, help="label map or folder of them")
    sub.add_argument("truth", type=Path, help="label map or folder of cases")
    sub.add_argument("--out", required=True, type=Path, help="scores.csv; a summary goes beside it as .json")

    sub = command("report", _report, "one self-contained HTML page about a run or about scores")
    sub.add_argument("source", type=Path, help="a run folder, or the scores.csv of kitsseg evaluate")
    sub.add_argument("--out", required=True, type=Path, help="the HTML file")
    return parser


def _recipes(arguments):
    from kitsseg import recipes
    from kitsseg.commands import show_recipe, show_recipes

    if arguments.action and not arguments.name:
        raise InputError(f"recipes show: expected the name of a recipe: {', '.join(recipes.names())}.")
    if arguments.action:
        show_recipe(recipes.get(arguments.name))
    else:
        show_recipes([recipes.get(name) for name in recipes.names()])


def _synthesize(arguments):
    from kitsseg import commands

    commands.synthesize(arguments.out, arguments.cases, arguments.size, arguments.seed, arguments.labels)


def _preprocess(arguments):
    from kitsseg import commands, recipes

    commands.preprocess(recipes.get(arguments.recipe), arguments.data, arguments.cache)


def _train(arguments):
    from kitsseg import commands, recipes

    _start_keras()
    a = arguments
    commands.train(recipes.get(a.recipe), a.cache, a.run, a.split, a.seed, a.epochs, a.resume)


def _predict(arguments):
    from kitsseg import commands

    _start_keras()
    a = arguments
    commands.predict(a.run, a.inputs, a.out, a.part, a.whole_slices, a.mirror)


def _evaluate(arguments):
    from kitsseg import commands

    commands.evaluate(arguments.prediction, arguments.truth, arguments.out)


def _report(arguments):
    from kitsseg import commands

    commands.report(arguments.source, arguments.out)


def _demo(arguments):
    from kitsseg import commands, recipes

    _start_keras()
    commands.demo(recipes.get(f"{arguments.recipe}:tiny"), arguments.out, arguments.cases, arguments.seed)


def _start_keras():
    """Import Keras and its backend without their start-up notices; if the import fails, they are shown."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with tempfile.TemporaryFile() as notices:
        sys.stderr.flush()
        stderr = os.dup(2)
        os.dup2(notices.fileno(), 2)  # they come from C++, past sys.stderr
        try:
            import keras  # noqa: F401
        except Exception:
            notices.seek(0)
            os.write(stderr, notices.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def _at_least(smallest):
    def convert(text):
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or value < smallest:
            raise argparse.ArgumentTypeError(f"expected a whole number from {smallest}, found {text}")
        return value

    return convert


def _size(text):
    try:
        size = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        size = ()
    if len(size) != 3:
        raise argparse.ArgumentTypeError(f"expected slices,rows,columns such as 40,128,128, found {text}")
    return size
