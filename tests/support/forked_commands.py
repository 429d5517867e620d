"""Run commands of kitsseg as forks of one process, which imports everything and computes nothing. For scripts/kills.py.

This process reads commands from standard input, each as one line of JSON: ``[arguments, log file]``. It answers with
the number of the forked process and, when the forked process has ended, with its exit code. Commands are forked because
importing Keras takes longer than most of these commands, and a signal during the import would test nothing. In a fork
every signal meets a command at its work.

The recipe ``unet2d:micro`` is known only here: it is ``unet2d:tiny``, cut down until it trains in a second.
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
    """Run kitsseg with these arguments as a newly started process would, with its output in the file ``log``."""
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
            sys.exit(run(arguments, log))  # end like an ordinary process, with its exit handlers
        print(process, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()
