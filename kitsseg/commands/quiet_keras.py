"""Keras without its start-up notices."""

import os
import sys
import tempfile

__all__ = ["start_keras"]


def start_keras():
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
