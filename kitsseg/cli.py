"""The command line: its parser, and what becomes of errors."""

import argparse
import contextlib
import errno
import signal
import sys

from kitsseg.commands import cross_validation, data, demo, prediction, recipes, scoring, training
from kitsseg.errors import InputError
from kitsseg.version import __version__

__all__ = ["build_parser", "main"]

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
    parser = build_parser()
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
        return _complain(
            "interrupted; what was finished is kept, nothing unfinished is taken for whole.", 130
        )
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


def build_parser():
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

    for group in (recipes, demo, data, training, cross_validation, prediction, scoring):
        group.add(command)
    return parser
