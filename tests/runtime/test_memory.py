"""Errors of every library that say that the memory does not suffice, raised by the libraries themselves."""

import errno
import os
import re

import numpy as np
import pytest

from kitsseg.errors import InputError
from kitsseg.runtime.memory import too_little_memory

HUGE = (1 << 20, 1 << 20, 4)


def of_python():
    raise MemoryError


def of_numpy():
    np.empty(HUGE)


def of_tensorflow():
    import tensorflow as tf

    tf.random.normal(HUGE)


def of_a_graph_of_tensorflow():
    import tensorflow as tf

    tf.function(lambda: tf.random.normal(HUGE), autograph=False)()


def of_a_constant_in_a_graph_of_tensorflow():
    import tensorflow as tf

    tf.function(lambda: tf.fill(HUGE, 0.0), autograph=False)()


def of_a_thread_of_tensorflow():
    import tensorflow as tf

    def batch(_):
        return np.empty(HUGE)

    def one(index):
        return tf.numpy_function(batch, [index], tf.float64)

    next(iter(tf.data.Dataset.range(1).map(one)))


def of_jax():
    import jax.numpy as jnp

    jnp.zeros(HUGE).block_until_ready()


def of_the_system():
    raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))


def of_onnxruntime():
    raise RuntimeError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Exception during run: std::bad_alloc")


def of_cuda():
    raise RuntimeError("failed to allocate 2.1G: CUDA_ERROR_OUT_OF_MEMORY: out of memory")


@pytest.mark.parametrize(
    ("compute", "words"),
    [
        (of_python, "MemoryError"),
        (of_numpy, "Unable to allocate 32.0 TiB .*"),
        # TensorFlow waits ten seconds for memory
        pytest.param(
            of_tensorflow,
            r"OOM when allocating tensor with shape\[1048576,1048576,4\] and type float",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            of_a_graph_of_tensorflow,
            r"OOM when allocating tensor with shape\[1048576,1048576,4\] and type float",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            of_a_constant_in_a_graph_of_tensorflow,
            "no room for a tensor|OOM when allocating .*",
            marks=pytest.mark.slow,
        ),
        (of_a_thread_of_tensorflow, "MemoryError: Unable to allocate 32.0 TiB .*"),
        (of_jax, "RESOURCE_EXHAUSTED: Out of memory allocating 17592186044416 bytes"),
        (of_the_system, "Cannot allocate memory"),
        (of_onnxruntime, "bad_alloc"),
        (of_cuda, "OUT_OF_MEMORY: out of memory"),
    ],
)
def test_what_a_library_says_about_too_little_memory_is_understood(compute, words):
    with pytest.raises(Exception) as caught:
        compute()
    assert re.fullmatch(words, too_little_memory(caught.value)), str(caught.value)


def test_an_error_without_words_is_known_by_its_type():
    class ResourceExhaustedError(Exception):
        pass

    assert too_little_memory(ResourceExhaustedError()) == "no room for a tensor"


@pytest.mark.parametrize(
    "error",
    [
        ValueError("expected 3 tensors, found 2"),
        RuntimeError("allocate_tensors was not called"),
        OSError(errno.ENOSPC, "No space left on device"),
        InputError("a.nii: too large for the memory (MemoryError)"),
        RuntimeError("memory format not supported"),
    ],
    ids=repr,
)
def test_other_errors_are_not_taken_for_it(error):
    assert too_little_memory(error) is None
