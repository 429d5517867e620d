"""The command line: its parser, and what becomes of errors."""

from __future__ import annotations

import argparse
import codecs
import contextlib
import errno
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from kitsseg.commands import (
    cross_validation,
    data,
    demo,
    information,
    prediction,
    recipes,
    scoring,
    training,
)
from kitsseg.errors import InputError, did_you_mean
from kitsseg.files.paths import check_utf8
from kitsseg.runtime.warning_lines import warnings_as_lines
from kitsseg.version import __version__

if TYPE_CHECKING:
    from typing import NoReturn

__all__ = ["build_parser", "main"]

ANSWERS = ("recipes", "info", "completion")  # commands that only print an answer
EMPTY = re.compile(r"--[a-z][a-z-]*=")
SPACE = "Free some space, or choose another folder."
PERMISSION = "Check its permissions, or choose another folder."
HINTS = {
    errno.ENOSPC: SPACE,
    errno.EDQUOT: SPACE,
    errno.EFBIG: "Raise the limit on the size of files (ulimit -f), or choose another disk.",
    errno.EMFILE: "Raise the limit on the number of open files, as with ulimit -n 1024.",
    errno.EACCES: PERMISSION,
    errno.EPERM: PERMISSION,
    errno.EROFS: PERMISSION,
    errno.ENOTDIR: "A part of this path is a file: choose another folder.",
    errno.ENOENT: "Check the path.",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 bad input or a full disk, 130 interrupted.

    Args:
        argv: the words after ``kitsseg``. None: the arguments of this process, which is then started anew in UTF-8
            mode where the system has another encoding.
    """
    if argv is None:
        _use_utf8()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a name that cannot be shown ends no command
    words = sys.argv[1:] if argv is None else [*argv]
    parser = build_parser()
    if complaint := _empty(words):
        return _complain(complaint, 2)
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        advice = _pattern_advice(words, unknown)
        getattr(arguments, "parser", parser).error(f"unrecognized arguments: {' '.join(unknown)}{advice}")
    if not hasattr(arguments, "run_command"):
        parser.print_help()
        return 0
    try:
        _check_names(arguments)
        with _stoppable(), _said_by(arguments), warnings_as_lines():
            arguments.run_command(arguments)
    except InputError as error:
        return _complain(str(error), 1)
    except Exception as error:
        from kitsseg.runtime.memory import too_little_memory  # ctypes: a tenth of the start of every command

        if text := too_little_memory(error):
            advice = "Close other programs, or use a larger machine."
            return _complain(f"not enough memory ({text}). {advice}{_how_to_go_on(arguments)}", 1)
        if not isinstance(error, OSError):
            raise
        where = f"{error.filename}: " if error.filename else ""
        text = error.strerror or str(error)
        hint = HINTS.get(error.errno or 0, "Check the path, the disk and its permissions.")
        return _complain(f"{where}{text[:1].lower()}{text[1:]}. {hint}", 1)
    except KeyboardInterrupt:
        text = "interrupted; what was finished is kept, nothing unfinished is taken for whole."
        return _complain(text + _how_to_go_on(arguments), 130)
    return 0


def _empty(words: Sequence[str]) -> str | None:
    """The complaint about an empty word, which an unset variable of a shell leaves. As a path it means this folder."""
    at = next((n for n, word in enumerate(words) if word == "" or EMPTY.fullmatch(word)), None)
    if at is None:
        return None
    before = words[at].rstrip("=") or (words[at - 1] if at and words[at - 1].startswith("--") else "")
    where = f"{before}: " if before else f"argument {at + 1}: "
    return f'{where}expected a value, found an empty word. Check the variable behind it, as in "$SCAN".'


def _pattern_advice(words: Sequence[str], unknown: Sequence[str]) -> str:
    """The advice to quote a pattern, if files are left over that a shell has put in the place of one."""
    if {"--images", "--labels"}.isdisjoint(words) or not any(map(os.path.exists, unknown)):
        return ""
    return ". A pattern needs quotes, as in --images '*.nii.gz': else the shell replaces the pattern by names of files."


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """In this block SIGTERM interrupts as Ctrl-C does, so that a stopped job cleans up.

    A library that is at work in C when the signal comes may raise another error instead (TensorFlow: SystemError).

    Raises: KeyboardInterrupt, after a signal in the place of any error.
    """
    stopped, before = False, {}

    def stop(signum: int, frame: FrameType | None) -> NoReturn:
        nonlocal stopped
        stopped = True
        raise KeyboardInterrupt

    with contextlib.suppress(ValueError):  # not in the main thread
        before[signal.SIGTERM] = signal.signal(signal.SIGTERM, stop)
        # a job in the background ignores Ctrl-C, and goes on ignoring it
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            before[signal.SIGINT] = signal.signal(signal.SIGINT, stop)
    try:
        yield
    except Exception as error:
        if stopped:
            raise KeyboardInterrupt from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _said_by(arguments: argparse.Namespace) -> contextlib.AbstractContextManager[object]:
    """With --quiet nothing but warnings, to stderr."""
    if not getattr(arguments, "quiet", False):
        return contextlib.nullcontext()
    from kitsseg.runtime.console import quieted

    return quieted()


def _check_names(arguments: argparse.Namespace) -> None:
    """Check that records can name the folders that the user gives, and the current folder.

    Raises: InputError for bytes that are no UTF-8.
    """
    advice = "Rename that file or folder: records of kitsseg could not name it."
    for value in vars(arguments).values():
        for name in value if isinstance(value, list) else [value]:
            if isinstance(name, str | Path):
                check_utf8(str(name), name, advice)
    with contextlib.suppress(FileNotFoundError):  # removed in the meantime: absolute paths need none
        check_utf8(str(Path.cwd()), Path.cwd(), advice)


def _use_utf8() -> None:
    """Start this process anew with Python's UTF-8 mode, unless names of files are UTF-8 already.

    Under LC_ALL=C, or in an old encoding, Python would read the name of a case as other letters than those that other
    machines, HDF5 and TensorFlow see. Nothing but a new start changes that.
    """
    if os.name == "nt" or sys.flags.utf8_mode or codecs.lookup(sys.getfilesystemencoding()).name == "utf-8":
        return
    os.environ["PYTHONUTF8"] = "1"  # for the processes it starts
    os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def _how_to_go_on(arguments: argparse.Namespace) -> str:
    """After an interruption: --resume, if the command has it and a run has begun."""
    if not hasattr(arguments, "resume"):
        return ""
    run = Path(getattr(arguments, "out", None) or arguments.run)
    return " Go on: the same command with --resume." if (run / "run.json").is_file() else ""


def _complain(message: str, code: int) -> int:
    print(f"kitsseg: {' '.join(message.split())}", file=sys.stderr)  # noqa: T201
    return code


class _Parser(argparse.ArgumentParser):
    """A parser that says in one line what is wrong, as all other errors do, without printing the usage first."""

    given: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        self.given = sys.argv[1:] if args is None else list(args)
        return super().parse_known_args(args, namespace)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            error.message += "." + did_you_mean(str(value), map(str, action.choices or ()))
            raise

    def error(self, message: str) -> NoReturn:
        options = [option for action in self._actions for option in action.option_strings]
        near = ""
        for word in self.given:
            option = word.split("=")[0]
            if option.startswith("--") and len(option) > 2 and not any(o.startswith(option) for o in options):
                found = did_you_mean(option[2:], [known[2:] for known in options if known.startswith("--")])
                near = near or found.replace("mean ", "mean --").replace("?", f" for {option}?")
        end = "" if message[-1] in ".?" else "."
        sys.exit(_complain(f"{message}{end}{near} Try: {self.prog} --help", 2))


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="kitsseg",
        description="Kidney and kidney tumor segmentation in CT: five KiTS19 papers, from NIfTI to scores. "
        "Research software, not a medical device.",
    )
    parser.add_argument("--version", action="version", version=f"kitsseg {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    def command(
        name: str, function: Callable[[argparse.Namespace], object], help: str, **options: Any
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help, **options)
        if name not in ANSWERS:
            sub.add_argument("--quiet", "-q", action="store_true", help="print only warnings and errors")
        sub.set_defaults(run_command=function, parser=sub, root_parser=parser)
        return sub

    for group in (recipes, demo, data, training, cross_validation, prediction, scoring, information):
        group.add(command)
    return parser
