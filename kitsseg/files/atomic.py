"""Files and folders that appear whole or not at all."""

import re
import secrets
import shutil
from contextlib import contextmanager
from pathlib import Path

__all__ = ["atomic_folder", "atomic_path", "unfinished_folders"]


@contextmanager
def atomic_path(path):
    """A temporary path beside ``path`` that becomes ``path`` if the block ends well, and vanishes if not."""
    path = Path(path)
    suffix = "".join(path.suffixes[-2:])  # writers look at it
    with _errors_naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.parent / f"{_hidden(path)}{secrets.token_hex(4)}{suffix}"
        try:
            yield temporary
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path):
    """As ``atomic_path``, for a folder: ``path`` must not exist yet, or be an empty folder."""
    path = Path(path)
    with _errors_naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.parent / f"{_hidden(path)}{secrets.token_hex(4)}"
        try:
            temporary.mkdir()  # inside: an interruption from here on finds the way out below
            yield temporary
            temporary.rename(path)
        finally:
            if temporary.exists():
                shutil.rmtree(temporary)


def unfinished_folders(folder):
    """The temporary folders of ``atomic_folder`` in a folder: of processes at work, or killed at it."""
    return sorted(
        path
        for path in Path(folder).iterdir()
        if re.fullmatch(r"\.[^.]+-[0-9a-f]{8}", path.name) and path.is_dir() and not path.is_symlink()
    )


def _hidden(path):
    """How the name of what is not finished begins; what begins with a dot is never taken for a case."""
    return f".{path.name.split('.')[0]}-"


@contextmanager
def _errors_naming(path):
    """Make errors of the block name ``path``: those of a write name no file, others the temporary one."""
    try:
        yield
    except OSError as error:
        if error.filename is None or _hidden(path) in str(error.filename):
            error.filename = str(path)
        raise
