"""A cache kept on another disk, such as Google Drive, so that a lost machine is back in minutes.

    ARCHIVE/preprocess-<digest>-v<version>/cases-<SHA-256>.zip     a volume: some cases, all files of each, deflated

The name of a volume tells its contents, and whether they are whole. It is made on the disk of the cache, copied, and
appears whole or not at all. A call that was stopped loses one volume at most, and cases that come later get volumes of
their own.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from kitsseg.data.cache.case_file import CACHE_VERSION, check_specification, read_case, write_specification
from kitsseg.data.cache.cases import cache_folder, open_case
from kitsseg.data.cache.plan import free_bytes
from kitsseg.data.cache.sources import unchanged
from kitsseg.errors import InputError
from kitsseg.files.archives import damage_named, unpack
from kitsseg.files.atomic import atomic_path, remove_unfinished
from kitsseg.files.checksums import sha256_of
from kitsseg.files.locks import folder_lock

if TYPE_CHECKING:
    from kitsseg.interfaces import Progress
    from kitsseg.recipe import PreprocessSpec

__all__ = ["archive_folder", "bring_back", "keep_cases"]

Say = Callable[[str], object]
VOLUME_BYTES, VOLUME_CASES = 1 << 30, 32  # of the cases in it, before they are packed
_LEVEL = 1  # of deflate: noise hardly packs better with more, and takes several times as long
_BLOCK = 8 << 20


def archive_folder(archive: str | os.PathLike[str], spec: PreprocessSpec) -> Path:
    """The folder inside ``archive`` for caches of a specification, as this version of the package makes them."""
    return Path(archive) / f"{cache_folder('', spec).name}-v{CACHE_VERSION}"


def keep_cases(
    cache: str | os.PathLike[str],
    spec: PreprocessSpec,
    archive: str | os.PathLike[str],
    names: Iterable[str],
    *,
    progress: Progress | None = None,
    say: Say | None = None,
) -> list[str]:
    """Copy cases of a cache to an archive, packed; those that are there already are left alone.

    Args:
        cache: folder given to ``preprocess_cases``. spec: PreprocessSpec.
        archive: folder on another disk.
        names: of the cases.
        progress: called as progress(description, bytes done, bytes in total).
        say: called as say(text) with a line for each volume that is damaged, which is removed.

    Returns: names of the cases kept now.
    Raises: InputError if a case is not in the cache, or the archive's disk is too small; the volumes before are kept.
    """
    folder, target = cache_folder(cache, spec), archive_folder(archive, spec)
    names = list(names)
    there = {name for held in _volumes(target, say).values() for name in held}
    missing = [name for name in names if name not in there]
    for name in missing:
        read_case(folder / name)
    sizes = {name: sum(path.stat().st_size for path in (folder / name).iterdir()) for name in missing}
    done, total = 0, sum(sizes.values())
    for group in _groups(sizes):
        if progress:
            progress(f"keep {group[0]} to {group[-1]}", done, total)
        with _temporary(folder) as temporary:
            packed = temporary / "cases.zip"
            with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=_LEVEL) as volume:
                for name in group:
                    for path in sorted((folder / name).iterdir()):
                        volume.write(path, f"{name}/{path.name}")
            size, free = packed.stat().st_size, free_bytes(target)
            if size > free:
                raise InputError(
                    f"{target}: the next {len(group)} of {len(missing)} cases take {size / 1e9:.2f} GB, found "
                    f"{free / 1e9:.2f} GB free. Free some space there; the cases before are kept."
                )
            with atomic_path(target / f"cases-{sha256_of(packed)}.zip") as path:
                shutil.copyfile(packed, path)
        done += sum(sizes[name] for name in group)
    if progress and missing:
        progress("kept", total, total)
    return missing


def bring_back(
    archive: str | os.PathLike[str],
    cache: str | os.PathLike[str],
    spec: PreprocessSpec,
    names: Iterable[str],
    *,
    data: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    say: Say | None = None,
) -> list[str]:
    """Copy cases from an archive into a cache; those that are in the cache already are left alone.

    Each volume is compared with its hash before anything of it is used, and each case opened as training opens it. A
    volume that fails, or holds a case made from another label map, gives what is good in it and is removed: its cases
    are then to be prepared, and kept, again.

    Args:
        archive, cache, spec, names: as for ``keep_cases``; names that no volume holds are no error.
        data: folder of label maps in KiTS19 layout that the cases must have been made from.
        progress: called as progress(description, bytes done, bytes in total).
        say: called as say(text) with a line for each volume that is removed.

    Returns: names of the cases brought back.
    Raises: InputError if the cache's disk is too small, or the cache is another one's.
    """
    folder = cache_folder(cache, spec)
    wanted = {name for name in names if not (folder / name).exists()}
    chosen = {
        path: held for path, held in _volumes(archive_folder(archive, spec), say).items() if wanted & {*held}
    }
    back: list[str] = []
    if not chosen:
        return back
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "spec.json").exists():
        check_specification(folder, spec)
    else:
        write_specification(folder, spec)
    sizes = {path: path.stat().st_size for path in chosen}
    done, total = 0, sum(sizes.values())
    for path, held in chosen.items():
        if progress:
            progress(f"bring back {held[0]} to {held[-1]}", done, total)
        with _temporary(folder) as temporary:
            try:
                _take(path, temporary)
                bad: list[str] = []
            except InputError:
                raise
            except ValueError as error:
                bad = [f"{path}: damaged ({error})"]
            for name in sorted(wanted & {*held}) if not bad else ():
                if why := _unfit(temporary / name, data):
                    bad.append(f"{path}: {name} {why}")
                elif not (folder / name).exists():
                    (temporary / name).rename(folder / name)
                    back.append(name)
        if bad:
            path.unlink(missing_ok=True)
            if say:
                say(
                    f"warning: {bad[0]}. This part of the archive is removed; what it lacks is prepared again."
                )
        done += sizes[path]
    if progress:
        progress("brought back", total, total)
    return sorted(back)


def _volumes(folder: Path, say: Say | None) -> dict[Path, list[str]]:
    """The cases of each volume; one without a directory, as of a copy that was cut off, is removed."""
    found: dict[Path, list[str]] = {}
    if not folder.is_dir():
        return found
    remove_unfinished(folder)
    for path in sorted(folder.glob("cases-*.zip")):
        try:
            with damage_named(), zipfile.ZipFile(path) as volume:
                found[path] = sorted({_case_of(name) for name in volume.namelist()})
        except ValueError as error:
            path.unlink(missing_ok=True)
            if say:
                say(f"warning: {path}: damaged ({error}). It is removed; what it held is prepared again.")
    return found


def _case_of(entry: str) -> str:
    """The case of a file in a volume. Raises: ValueError for a name without one."""
    if not (parts := PurePosixPath(entry).parts):
        raise ValueError(f"a file is called {entry!r}")
    return parts[0]


def _groups(sizes: dict[str, int]) -> Iterator[list[str]]:
    """Names in order, as many as a volume may hold."""
    group: list[str] = []
    for name in sizes:
        if group and (
            len(group) == VOLUME_CASES or sum(sizes[other] for other in [*group, name]) > VOLUME_BYTES
        ):
            yield group
            group = []
        group.append(name)
    if group:
        yield group


def _take(volume: Path, temporary: Path) -> None:
    """Copy a volume, see that it is what its name says, and unpack it.

    Raises: ValueError, saying what is wrong. InputError if the disk is too small.
    """
    local, digest = temporary / "cases.zip", hashlib.sha256()
    with volume.open("rb") as source, local.open("wb") as file:
        while block := source.read(_BLOCK):
            digest.update(block)
            file.write(block)
    if volume.stem != f"cases-{digest.hexdigest()}":
        raise ValueError("its SHA-256 is not the one in its name")
    with zipfile.ZipFile(local) as opened:
        needed = sum(entry.file_size for entry in opened.infolist())
    if needed > (free := free_bytes(temporary)):
        raise InputError(
            f"{temporary.parent}: the cases of {volume.name} take {needed / 1e9:.2f} GB, found {free / 1e9:.2f} GB "
            "free. Free some space, or use another cache folder."
        )
    unpack(local, temporary)
    local.unlink()


def _unfit(case: Path, data: str | os.PathLike[str] | None) -> str | None:
    """Why a case that was unpacked is not to be used; None if it is."""
    try:
        sources = read_case(case).sources
        opened = open_case(case)
        _ = opened.image, opened.boxed_labels
    except (InputError, OSError, KeyError, TypeError, ValueError) as error:
        return f"cannot be read ({error})"
    if data is None:
        return None
    labels = Path(data) / case.name / "segmentation.nii.gz"
    if not labels.is_file() or sources.labels is None:
        return f"was made from a label map that is not at {labels}"
    return None if unchanged(sources.labels, labels) else f"was made from another {labels}"


@contextmanager
def _temporary(folder: Path) -> Iterator[Path]:
    """A folder on the disk of the cache, for one process at a time; what a killed one left there is removed."""
    path = folder / ".archive"
    with folder_lock(folder, "archive", doing="packing or unpacking cases"):
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)
