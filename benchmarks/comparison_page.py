"""The tables and the plot of comparison.py, and their places in the pages of the documentation."""

import numpy as np

from kitsseg.files.atomic import atomic_path
from kitsseg.scoring import read_scores
from kitsseg.scoring.dice import bootstrap_intervals

__all__ = ["in_words", "put_tables", "write_tables"]

DICE = ("tk_dice", "tu_dice")
# what the tables call a network
LABELS = {
    "wp_unet": "`wp_unet`, pruned to 50 %",
    "wp_unet-dense": "`wp_unet`, without masks",
    "wp_unet-shrunk": "`wp_unet`, without masks, then shrunk to half",
}


def write_tables(out, facts, scripts, pages):
    """Write OUT/tables/*.md and OUT/comparison.png, then the tables into the pages.

    Args:
        out: folder of ``comparison.py``.
        facts: what it found, by the name of the network: one dict of each seed, whose "scores" is a scores.csv.
        scripts: names of the tables that other scripts have written already.
        pages: files with the marks ``<!-- table NAME -->`` and ``<!-- end of table -->`` around where each goes.
    """
    tables = {name: (out / "tables" / f"{name}.md").read_text().strip() for name in scripts}
    if facts:
        dice = {name: dice_of([fact["scores"] for fact in seeds]) for name, seeds in facts.items()}
        tables |= {"networks": network_table(facts, dice)}
        plot(out / "comparison.png", dice)
    (out / "tables").mkdir(exist_ok=True)
    for name, text in tables.items():
        print(f"{name}\n\n{text}\n")
        with atomic_path(out / "tables" / f"{name}.md") as temporary:
            temporary.write_text(text + "\n")
    for page in pages:
        put_tables(page, tables)


def dice_of(files):
    """Dice as an array (seeds, patients, (TK, TU)) of the scores.csv of each seed."""
    rows = [sorted(read_scores(file)[0], key=lambda row: row["case"]) for file in files]
    cases = [[row["case"] for row in one] for one in rows]
    if any(names != cases[0] for names in cases):
        raise SystemExit(f"{', '.join(map(str, files))}: expected scores of the same patients.")
    return np.array([[[row[key] for key in DICE] for row in one] for one in rows], float)


def in_words(mean, interval, seeds):
    """A mean, its interval over patients, and the range of the means of the seeds; None: of what has no seeds."""
    spread = ""
    if seeds is not None:
        spread = f"; seeds {min(seeds):.3f} to {max(seeds):.3f}" if len(seeds) > 1 else "; one seed"
    return f"{mean:.3f} ({interval[0]:.3f} to {interval[1]:.3f}{spread})"


def written(values):
    """What the table says of an array (seeds, patients)."""
    return in_words(values.mean(), bootstrap_intervals([values.mean(axis=0)])[0], values.mean(axis=1))


def network_table(facts, dice):
    rows = [
        "| network | TK Dice (95 % over patients; seeds) | TU Dice | parameters | multiply-adds a pixel or voxel | "
        "training of a seed | CPU a slice of the scan | file |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, seeds in facts.items():
        minutes, ms = (np.mean([fact[key] for fact in seeds]) for key in ("train_s", "predict_ms"))
        fact, (tk, tu) = seeds[0], (written(dice[name][..., i]) for i in range(len(DICE)))
        rows.append(
            f"| {LABELS.get(name, f'`{name}`')} | {tk} | {tu} | "
            f"{fact['parameters']:,} | {fact['macs'] / 1e3:.1f} k | {fact['steps']:,} steps, {minutes / 60:.1f} min | "
            f"{ms:.0f} ms | {fact['megabytes']:.2f} MB |"
        )
    scored, summary = read_scores(next(iter(facts.values()))[0]["scores"])
    empty = summary.beside_all_background.all_background
    rows.append(f"| all background | {empty['tk_dice']:.3f} | {empty['tu_dice']:.3f} |" + " |" * 5)
    cases = ", ".join(sorted(row["case"] for row in scored))
    return "\n".join([*rows, "", f"{len(scored)} test patients: {cases}."])


def put_tables(page, tables):
    """Put each table between its marks; a page without a mark of any of them is an error."""
    text, put = page.read_text(encoding="utf-8"), 0
    for name, table in tables.items():
        begin, end = f"<!-- table {name} -->\n", "<!-- end of table -->"
        before, found, after = text.partition(begin)
        if found:
            if end not in after:
                raise SystemExit(f"{page}: expected {end} after {begin.strip()}.")
            text, put = f"{before}{begin}{table}\n{after[after.index(end) :]}", put + 1
    if not put:
        raise SystemExit(f"{page}: expected a line <!-- table NAME --> with NAME one of {', '.join(tables)}.")
    with atomic_path(page) as temporary:
        temporary.write_text(text, encoding="utf-8")


def plot(path, dice):
    """A dot for each patient (the mean of the seeds) and network, a line for each seed's mean."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(8, 3.1), sharey=True, layout="constrained")
    for i, (axis, title) in enumerate(zip(axes, ("kidney with tumor (TK)", "tumor (TU)"), strict=True)):
        for y, values in enumerate(dice.values()):
            dots, means = values[..., i].mean(axis=0), values[..., i].mean(axis=1)
            axis.plot(dots, [y] * len(dots), "o", color="#1769aa", alpha=0.5, markeredgewidth=0)
            axis.plot(means, [y] * len(means), "|", color="black", markersize=16)
        axis.set_yticks(range(len(dice)), [name.replace("-", ", ") for name in dice])
        axis.set(xlim=(-0.03, 1.03), title=f"Dice of {title}")
        axis.grid(axis="x", alpha=0.3)
    axes[0].invert_yaxis()
    figure.suptitle(
        "phantoms: real label maps, synthesized CT; a dot is a test patient, a line the mean of a seed",
        fontsize=9,
    )
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
