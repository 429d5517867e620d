"""Commands about data: kitsseg synthesize, download, verify, manifest, preprocess."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from kitsseg.commands.arguments import (
    AddCommand,
    add_given,
    add_layout,
    at_least,
    layout_of,
    layout_options,
    volume_size,
)
from kitsseg.errors import command_line

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from kitsseg.data.layouts.kits import Layout
    from kitsseg.interfaces import Progress
    from kitsseg.recipe import Recipe

__all__ = [
    "add",
    "download",
    "from_host",
    "preprocess",
    "statistics",
    "synthesize",
    "verify",
    "write_manifest",
]


def add(command: AddCommand) -> None:
    sub = command("synthesize", _synthesize, "make synthetic patients in KiTS19 layout")
    sub.add_argument("out", type=Path, help="folder for the cases")
    sub.add_argument(
        "--cases",
        type=at_least(1),
        help="number of patients (default: 12); with --labels the first so many label maps by name (default: all)",
    )
    sub.add_argument(
        "--size", default=(40, 128, 128), type=volume_size, help="slices,rows,columns (default: 40,128,128)"
    )
    sub.add_argument("--seed", default=0, type=at_least(0), help="of the patients (default: 0)")
    sub.add_argument("--labels", type=Path, help="folder of real label maps: render a CT for each instead")

    sub = command("download", _download, "fetch KiTS19, checked and resumable, or take it from a folder")
    sub.add_argument("dest", type=Path, help="folder for the cases")
    sub.add_argument(
        "--cases",
        help="numbers such as 0,3-7, or all-training (default: all-training, or with --from all cases of that folder)",
    )
    sub.add_argument("--labels-only", action="store_true", help="label maps only: 65 MB for all")
    sub.add_argument(
        "--from", dest="source", type=Path, help="folder to take the files from instead of the network"
    )
    sub.add_argument("--jobs", default=4, type=at_least(1), help="files at once (default: 4)")
    sub.add_argument(
        "--images-url",
        help="another address of the imaging, with {case} in it (default: its repository on Hugging Face, for which "
        "HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE hold)",
    )
    sub.add_argument("--labels-url", help="another address of the label maps, with {case} in it")

    sub = command("verify", _verify, "check files, hashes, grids, labels and HU of every case")
    sub.add_argument("data", type=Path, help="folder of cases: KiTS19, 21 or 23, nnU-Net raw, or by pattern")
    sub.add_argument(
        "--cases", help="numbers such as 0,3-7, or all-training (default: all cases of the folder)"
    )
    sub.add_argument("--labels-only", action="store_true", help="neither expect nor read images")
    sub.add_argument(
        "--not-kits19",
        action="store_true",
        help="the cases are your own, although they have names of KiTS19 cases",
    )
    add_layout(sub)

    sub = command("manifest", _manifest, "compute what the manifest says about cases of KiTS19 anew")
    sub.add_argument(
        "data", type=Path, help="folder of the label maps of some or all of the 210 training cases"
    )
    sub.add_argument("--out", type=Path, default=Path("data_manifest.csv"), help="default: data_manifest.csv")
    sub.add_argument("--images-2019", action="store_true", help="its images are those of 2019: hash them too")

    sub = command("preprocess", _preprocess, "resample cases and cache them for training")
    sub.add_argument("recipe", help="recipe whose preprocessing is used")
    sub.add_argument("data", type=Path, help="folder of cases: KiTS19, 21 or 23, nnU-Net raw, or by pattern")
    sub.add_argument("cache", type=Path, help="folder for the cache")
    sub.add_argument(
        "--from-host",
        action="store_true",
        help="fetch KiTS19, prepare and forget it, as many cases at a time as --workers: DATA gets the label maps, and "
        "20 GB of scans never lie on the disk",
    )
    sub.add_argument(
        "--cases", help="with --from-host: numbers such as 0,3-7, or all-training (default: these 210)"
    )
    sub.add_argument("--images-url", help="with --from-host: as for kitsseg download")
    sub.add_argument("--labels-url", help="with --from-host: as for kitsseg download")
    add_layout(sub)
    add_given(
        sub,
        "another value of a preprocessing setting, such as preprocess.spacing_mm=3,1,1: give it to train, too",
    )
    where = sub.add_mutually_exclusive_group()
    where.add_argument("--workers", default=1, type=at_least(1), help="processes, 0.6 GiB each (default: 1)")
    where.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="a Dask scheduler, such as tcp://host:8786, whose workers preprocess; they must see DATA and CACHE",
    )
    sub.add_argument(
        "--compress", action="store_true", help="about half the disk, read several times as slowly"
    )

    sub = command(
        "statistics", _statistics, "HU of kidney and tumor in the training cases, beside the recipe's"
    )
    sub.add_argument("recipe", help="NAME, NAME:practical, NAME:tiny or NAME:VARIANT")
    sub.add_argument("cache", type=Path, help="folder given to kitsseg preprocess")
    sub.add_argument(
        "--split",
        help="a split file or a named split (default: as kitsseg train)",
    )
    add_given(
        sub, "a preprocessing setting that the cache was made with, such as preprocess.spacing_mm=3,1,1"
    )


def _synthesize(arguments: argparse.Namespace) -> None:
    synthesize(arguments.out, arguments.cases, arguments.size, arguments.seed, arguments.labels)


def synthesize(
    out: Path, n_cases: int | None, size: tuple[int, int, int], seed: int, labels: Path | None
) -> None:
    from kitsseg.data.phantoms.synthesize import render_cases, synthesize_cases
    from kitsseg.runtime.console import done, progress_bar

    with progress_bar() as progress:
        if labels is None:
            written = synthesize_cases(out, n_cases or 12, size, seed, progress)
        else:
            written = render_cases(labels, out, seed, n_cases, progress)
    done(
        f"wrote {len(written)} synthetic patients to {out}",
        command_line("preprocess", "unet2d:tiny", out, "CACHE"),
    )


def _download(arguments: argparse.Namespace) -> None:
    a = arguments
    download(a.dest, a.cases, a.labels_only, a.source, a.jobs, a.images_url, a.labels_url)


def download(
    dest: Path,
    cases: str | None = None,
    labels_only: bool = False,
    source: Path | None = None,
    jobs: int = 4,
    images_url: str | None = None,
    labels_url: str | None = None,
) -> None:
    from kitsseg.data.download.download import choose_files, download_files
    from kitsseg.runtime.console import console, done, progress_bar

    both = {"images_url": images_url, "labels_url": labels_url}
    urls: dict[str, Any] = {name: url for name, url in both.items() if url}
    files = choose_files(cases, labels_only, source, **urls)
    try:
        with progress_bar() as progress:
            shown = progress if console.is_terminal or console.is_jupyter else _lines()
            result = download_files(dest, files, source, jobs, say=done, progress=shown)
    except KeyboardInterrupt:
        console.print("what has arrived is kept (.part): the same command goes on from there")
        raise
    there = f" ({len(result.kept)} there already)" if result.kept else ""
    done(
        f"{len(result.fetched)} files came to {dest}{there}; checked and recorded",
        command_line("verify", dest),
    )


def _verify(arguments: argparse.Namespace) -> None:
    a = arguments
    verify(a.data, a.cases, a.labels_only, a.not_kits19, layout_of(a))


def verify(
    data: Path,
    cases: str | None = None,
    labels_only: bool = False,
    not_kits19: bool = False,
    layout: Layout | None = None,
) -> None:
    from kitsseg.commands.findings_table import show_findings
    from kitsseg.data.download.catalog import parse_cases
    from kitsseg.data.kits19.manifest import read_manifest
    from kitsseg.data.kits19.verify import verify_data
    from kitsseg.errors import InputError
    from kitsseg.runtime.console import done, progress_bar

    manifest = read_manifest()
    names = None if cases is None else parse_cases(cases, manifest)
    compared = {} if not_kits19 else manifest
    with progress_bar() as progress:
        findings, checked = verify_data(data, names, compared, labels_only, layout, progress)
    show_findings(findings)
    wrong = [finding for finding in findings if finding.level == "error"]
    if wrong:
        of_cases = len({finding.case for finding in wrong})
        raise InputError(
            f"{data}: checked {len(checked)} cases, expected no errors, found {len(wrong)} in {of_cases} of them. "
            "The table says what to do."
        )
    warnings = sum(finding.level == "warning" for finding in findings)
    next_command = command_line("preprocess", "unet2d", data, "CACHE", *layout_options(layout))
    done(
        f"{data}: checked {len(checked)} cases, no errors, {warnings} warnings",
        None if labels_only else next_command,
    )


def _manifest(arguments: argparse.Namespace) -> None:
    write_manifest(arguments.data, arguments.out, arguments.images_2019)


def write_manifest(data: Path, out: Path, images_2019: bool = False) -> None:
    from kitsseg.data.kits19 import manifest
    from kitsseg.data.kits19.make_manifest import make_manifest
    from kitsseg.runtime.console import done, progress_bar

    before = manifest.read_manifest()
    with progress_bar() as progress:
        made, computed = make_manifest(data, before, images_2019, progress)
    manifest.write_manifest(made, out)
    changed = [case for case in computed if made[case] != before[case]]
    done(
        f"computed {len(computed)} of {len(made)} cases: {len(changed)} differ from the manifest of the package"
    )
    for case in changed[:10]:
        done(f"  {case}")
    done(f"wrote {out}")


def _lines() -> Progress:
    """A progress function that prints a line at every tenth, because a download takes hours and a log has no bar."""
    from kitsseg.runtime.console import done

    said = [0]

    def progress(description: str, arrived: float, total: int) -> None:
        tenths = int(10 * arrived // max(total, 1))
        if tenths > said[0]:
            said[0] = tenths
            done(f"{description} ({10 * tenths} %)")

    return progress


def _preprocess(arguments: argparse.Namespace) -> None:
    from kitsseg import recipes
    from kitsseg.commands.given import with_given
    from kitsseg.data.layouts.kits import Layout
    from kitsseg.errors import InputError

    a = arguments
    recipe = with_given(recipes.get(a.recipe), a.given, "preprocess")
    layout = layout_of(a)
    of_host = {"--cases": a.cases, "--images-url": a.images_url, "--labels-url": a.labels_url}
    given = [option for option, value in of_host.items() if value is not None]
    if given and not a.from_host:
        raise InputError(
            f"{given[0]}: expected --from-host as well, found none. Add --from-host, or leave this option out."
        )
    if not a.from_host:
        preprocess(recipe, a.data, a.cache, layout, a.workers, a.compress, a.scheduler)
        return
    if a.scheduler:
        raise InputError(
            "--scheduler: its workers read scans of DATA, found --from-host. Use --workers instead."
        )
    if layout != Layout():
        raise InputError(
            "--from-host: expected no options about the layout of a folder, as KiTS19 has its own layout; found some. "
            "Leave these options out."
        )
    urls = {"images_url": a.images_url, "labels_url": a.labels_url}
    from_host(recipe, a.data, a.cache, a.cases, a.workers, a.compress, {k: v for k, v in urls.items() if v})


def preprocess(
    recipe: Recipe,
    data: Path,
    cache: Path,
    layout: Layout | None = None,
    workers: int = 1,
    compress: bool = False,
    scheduler: str | None = None,
) -> None:
    from kitsseg.data.cache.build import fill_cache, plan_cache
    from kitsseg.data.layouts.slices import has_slices
    from kitsseg.errors import InputError
    from kitsseg.runtime.console import done, progress_bar

    if recipe.is_3d and has_slices(Path(data)):
        raise InputError(
            f"{data}: expected scans for {recipe.name}, a 3D network; found single slices (slices.csv). "
            "Use a 2D recipe."
        )
    plan = plan_cache(data, cache, recipe.preprocess, layout=layout, compress=compress)
    if plan.bytes > 100e6:  # less is not worth a word
        done(f"{plan} in {cache}")
    with progress_bar() as progress:
        folder, made, kept = fill_cache(plan, progress=progress, workers=workers, scheduler=scheduler)
    there = f" ({len(kept)} there already)" if kept else ""
    done(f"preprocessed {len(made)} cases into {folder}{there}", _training(recipe, cache))


def from_host(
    recipe: Recipe,
    data: Path,
    cache: Path,
    cases: str | None = None,
    workers: int = 1,
    compress: bool = False,
    urls: Mapping[str, str] | None = None,
) -> None:
    from kitsseg.data.download.catalog import parse_cases
    from kitsseg.data.download.passing import FromHost, preprocess_from_host
    from kitsseg.data.kits19.manifest import read_manifest
    from kitsseg.runtime.console import done, progress_bar

    names = parse_cases(cases or "all-training", read_manifest())
    options: dict[str, Any] = dict(urls or {})
    wanted = FromHost(names=names, say=done, **options)
    with progress_bar("cases") as progress:
        folder, made, kept = preprocess_from_host(
            data, cache, recipe.preprocess, wanted, workers=workers, compress=compress, progress=progress
        )
    there = f" ({len(kept)} there already)" if kept else ""
    done(
        f"preprocessed {len(made)} cases into {folder}{there}; their label maps are in {data}, their scans are gone",
        _training(recipe, cache),
        f"{command_line('download', data, '--cases', 'NUMBERS')}, for the scans that are to be segmented",
    )


def _training(recipe: Recipe, cache: Path) -> str:
    """The command that trains the recipe as it was preprocessed, with the settings that the user gave."""
    from kitsseg.commands.given import spoken_settings

    given = [word for name, value in spoken_settings(recipe).items() for word in ("--set", f"{name}={value}")]
    return command_line("train", recipe.name, cache, "RUN", *given)


def _statistics(arguments: argparse.Namespace) -> None:
    from kitsseg import recipes
    from kitsseg.commands.given import with_given

    a = arguments
    statistics(with_given(recipes.get(a.recipe), a.given, "preprocess"), a.cache, a.split)


def statistics(recipe: Recipe, cache: Path, split: str | None) -> None:
    from kitsseg.commands.training import choose_split
    from kitsseg.data.cache.cases import open_cache
    from kitsseg.data.cache.parts import training_counts
    from kitsseg.runtime.console import console

    chosen = choose_split(cache, recipe, split)
    hu = training_counts(open_cache(cache, recipe.preprocess), chosen)
    spec = recipe.preprocess
    console.print(f"HU of {hu.voxels} voxels of kidney and tumor in {len(chosen.train)} training cases")
    console.print(f"{'':24}{'measured':>10}{recipe.name:>24}")
    for name, measured, stated in (
        ("percentile 0.5", hu.percentile(0.5), spec.hu_window and spec.hu_window[0]),
        ("percentile 99.5", hu.percentile(99.5), spec.hu_window and spec.hu_window[1]),
        ("mean", hu.mean, spec.hu_mean),
        ("standard deviation", hu.std, spec.hu_std),
    ):
        shown = "none" if stated is None else f"{stated:.2f}"
        console.print(f"{name:24}{measured:10.2f}{shown:>24}")
    console.print("training and prediction use the recipe's values")
