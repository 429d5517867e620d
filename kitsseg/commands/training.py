"""Commands that make networks: kitsseg train."""

from pathlib import Path

from kitsseg.commands.arguments import at_least

__all__ = ["add", "choose_split", "train_on"]


def add(command):
    sub = command("train", _train, "train a recipe on cached cases")
    sub.add_argument("recipe", help="NAME, NAME:practical or NAME:tiny")
    sub.add_argument("cache", type=Path, help="folder given to kitsseg preprocess")
    sub.add_argument("run", type=Path, help="new folder for the run")
    sub.add_argument("--epochs", type=at_least(1), help="epochs of every phase, instead of the recipe's")
    sub.add_argument("--split", help="a split file or a named split (default: 80/10/10 of the cases at hand)")
    sub.add_argument("--seed", default=0, type=at_least(0))
    sub.add_argument("--resume", action="store_true", help="go on with an unfinished run")


def _train(arguments):
    from kitsseg import recipes
    from kitsseg.commands.quiet_keras import start_keras

    start_keras()
    a = arguments
    recipe = recipes.get(a.recipe)
    train_on(choose_split(a.cache, recipe, a.split), recipe, a.cache, a.run, a.seed, a.epochs, a.resume)


def choose_split(cache, recipe, name, fractions=(0.8, 0.1, 0.1)):
    """The split of a training: a named one or a file, or one drawn from the cases at hand.

    It never depends on the seed of the training, so that runs with other seeds stay comparable.
    """
    from kitsseg.commands.console import console
    from kitsseg.data.cache import open_cache
    from kitsseg.data.splits import load_split, make_split

    cases = open_cache(cache, recipe.preprocess)
    split, missing = load_split(name).among(cases) if name else (make_split(cases, fractions), 0)
    counts = "/".join(str(len(part)) for part in (split.train, split.validation, split.test))
    console.print(f"split {split.name}, {counts} cases to train, validate and test, hash {split.hash}")
    if missing:
        console.print(
            f"[yellow]{missing} cases of this split are not in the cache: figures will differ.[/yellow]"
        )
    return split


def train_on(split, recipe, cache, run, seed, epochs=None, resume=False):
    from kitsseg.commands.console import done, progress_bar
    from kitsseg.train import train_recipe

    with progress_bar() as progress:
        train_recipe(recipe, cache, split, run, seed, epochs, resume, progress)
    part = " --part test" if split.test else " --part validation"
    done(f"trained {recipe.name}: {run}", f"kitsseg predict {run} DATA --out PREDICTIONS{part}")
