"""Which files a cached case was made from, so that others in their place are noticed without reading them whole."""

import hashlib

__all__ = ["source_record", "unchanged"]

_END_BYTES = 1 << 16


def source_record(path):
    """Size, time, and SHA-256 of the first and the last 64 KiB of a file.

    The first hold the header, and the last eight bytes of a ``.gz`` are checksum and length of all its contents. Of a
    folder (a DICOM series): names and sizes of its files, and the latest time.
    """
    if path.is_dir():
        files = sorted(item for item in path.iterdir() if item.is_file())
        stats = [item.stat() for item in files]
        text = "".join(f"{item.name}\0{stat.st_size}\0" for item, stat in zip(files, stats, strict=True))
        size, modified = sum(s.st_size for s in stats), max((s.st_mtime_ns for s in stats), default=0)
        return {"bytes": size, "modified_ns": modified, "ends_sha256": _sha256(text.encode())}
    with path.open("rb") as file:
        size = path.stat().st_size
        ends = file.read(_END_BYTES)
        file.seek(max(size - _END_BYTES, 0))
        ends += file.read(_END_BYTES)
    return {"bytes": size, "modified_ns": path.stat().st_mtime_ns, "ends_sha256": _sha256(ends)}


def unchanged(record, path):
    """Whether a file is still what ``source_record`` described.

    A ``.gz`` may have another time, as after copying: its checksum tells. Anything else may not.
    """
    now = source_record(path)
    if path.is_file() and path.suffix == ".gz":
        now["modified_ns"] = record["modified_ns"]
    return now == record


def _sha256(data):
    return hashlib.sha256(data).hexdigest()
