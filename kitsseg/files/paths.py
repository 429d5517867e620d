"""How JSON files of runs, predictions and scores name other files: relative to their own folder.

So a folder that holds all of them can be moved, mounted elsewhere or sent to somebody else as a whole, and no record
tells the name of a user or of a machine. A path on another drive of Windows has no relative form and stays absolute.
"""

import os
from pathlib import Path

__all__ = ["absolute_paths", "relative_path", "relative_paths"]

OF_A_CASE = ("prediction", "truth", "image")


def relative_path(path, folder):
    """``path`` as a file in ``folder`` is to name it, with ``/`` on every system."""
    path = Path(path).resolve()
    try:
        return Path(os.path.relpath(path, Path(folder).resolve())).as_posix()
    except ValueError:
        return str(path)


def relative_paths(record, folder):
    """A record of ``kitsseg predict`` or ``evaluate`` as it is written to ``folder``; the argument is not changed."""
    return _changed(record, lambda path: relative_path(path, folder))


def absolute_paths(record, folder):
    """The same with absolute paths, after it was read from ``folder``."""
    folder = Path(folder).resolve()
    return _changed(record, lambda path: os.path.normpath(folder / path))


def _changed(record, change):
    record = {**record}
    if record.get("run"):
        record["run"] = change(record["run"])
    if record.get("also"):
        record["also"] = [change(path) for path in record["also"]]
    for part in ("cases", "failed"):
        if record.get(part):
            record[part] = {
                case: entry | {key: change(entry[key]) for key in OF_A_CASE if entry.get(key)}
                for case, entry in record[part].items()
            }
    return record
