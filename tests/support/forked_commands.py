"""Commands of kitsseg as forks of one process, which imports everything and computes nothing: for scripts/kills.py.

Reads commands from standard input, a line of JSON each: ``[arguments, log file]``. Answers with the number of the
process and, when it has ended, with its exit code. Importing Keras takes longer than most of these commands do, and a
signal during the import meets nothing; here every signal meets a command at its work.

The recipe ``unet2d:micro`` is known here: the tiny one cut down until it trains in a second.
"""

import json
import os
import signal
import sys

import h5py  # noqa: F401  # with all that follows: what commands import when they start
import tensorflow as tf

import kitsseg.export.export
import kitsseg.inference.cohort
import kitsseg.workflows.cross_validate
import kitsseg.workflows.prune
import kitsseg.workflows.shrink  # noqa: F401
from kitsseg import recipes
from kitsseg.cli import main
from support.recipes import micro

NAME = "unet2d:micro"
_known = recipes.get
recipes.get = lambda name: micro("unet2d") if name == NAME else _known(name)


def run(arguments: list[str], log: str) -> int:
    """What a process of its own does that was started with these arguments."""
    os.setsid()
    for stream, flags in ((0, os.O_RDONLY), (1, os.O_WRONLY | os.O_CREAT), (2, os.O_WRONLY | os.O_CREAT)):
        descriptor = os.open(os.devnull if stream == 0 else log, flags | os.O_APPEND)
        os.dup2(descriptor, stream)
        os.close(descriptor)
    sys.argv = ["kitsseg", *arguments]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.config.threading.set_intra_op_parallelism_threads(1)
    return main(arguments)


def serve() -> None:
    for line in sys.stdin:
        process = os.fork()
        if not process:
            arguments, log = json.loads(line)
            sys.exit(run(arguments, log))  # as a process ends that ran nothing else
        print(process, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()
