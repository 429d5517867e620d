"""Commands about data: kitsseg synthesize, preprocess."""

from pathlib import Path

from kitsseg.commands.arguments import at_least, volume_size

__all__ = ["add", "preprocess", "synthesize"]


def add(command):
    sub = command("synthesize", _synthesize, "make synthetic patients in KiTS19 layout")
    sub.add_argument("out", type=Path, help="folder for the cases")
    sub.add_argument("--cases", default=12, type=at_least(1), help="number of patients (default: 12)")
    sub.add_argument(
        "--size", default=(40, 128, 128), type=volume_size, help="slices,rows,columns (default: 40,128,128)"
    )
    sub.add_argument("--seed", default=0, type=at_least(0))
    sub.add_argument("--labels", type=Path, help="folder of real label maps: render a CT for each instead")

    sub = command("preprocess", _preprocess, "resample cases and cache them for training")
    sub.add_argument("recipe", help="recipe whose preprocessing is used")
    sub.add_argument("data", type=Path, help="folder of cases in KiTS19 layout")
    sub.add_argument("cache", type=Path, help="folder for the cache")


def _synthesize(arguments):
    synthesize(arguments.out, arguments.cases, arguments.size, arguments.seed, arguments.labels)


def synthesize(out, n_cases, size, seed, labels):
    from kitsseg.commands.console import done, progress_bar
    from kitsseg.data.synthesize import render_cases, synthesize_cases

    with progress_bar() as progress:
        if labels is None:
            written = synthesize_cases(out, n_cases, size, seed, progress)
        else:
            written = render_cases(labels, out, seed, progress=progress)
    done(f"wrote {len(written)} synthetic patients to {out}", f"kitsseg preprocess unet2d:tiny {out} CACHE")


def _preprocess(arguments):
    from kitsseg import recipes

    preprocess(recipes.get(arguments.recipe), arguments.data, arguments.cache)


def preprocess(recipe, data, cache):
    from kitsseg.commands.console import done, progress_bar
    from kitsseg.data.preprocess import preprocess_cases

    with progress_bar() as progress:
        folder, made, kept = preprocess_cases(data, cache, recipe.preprocess, progress)
    there = f" ({len(kept)} were there already)" if kept else ""
    done(f"preprocessed {len(made)} cases into {folder}{there}", f"kitsseg train {recipe.name} {cache} RUN")
