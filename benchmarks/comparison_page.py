"""The tables and the plot of comparison.py, and their places in the pages of the documentation."""

import numpy as np

from kitsseg import compare_scores
from kitsseg.files.atomic import atomic_path
from kitsseg.scoring import read_scores

__all__ = ["write_tables"]

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
        facts: what it found, by the name of the network.
        scripts: names of the tables that other scripts have written already.
        pages: files with the marks ``<!-- table NAME -->`` and ``<!-- end of table -->`` around where each goes.
    """
    tables = {name: (out / "tables" / f"{name}.md").read_text().strip() for name in scripts}
    scores = {name: out / name / "scores.csv" for name in facts}
    papers = {name: file for name, file in scores.items() if "-" not in name}  # as their recipes train them
    if len(papers) > 1:  # one alone is compared with nothing
        tables |= network_tables(facts, scores, papers)
        plot(out / "comparison.png", scores)
    (out / "tables").mkdir(exist_ok=True)
    for name, text in tables.items():
        print(f"{name}\n\n{text}\n")
        with atomic_path(out / "tables" / f"{name}.md") as temporary:
            temporary.write_text(text + "\n")
    for page in pages:
        put_tables(page, tables)


def network_tables(facts, scores, papers):
    """The table of the networks, with the clear differences between the papers."""
    found = compare_scores(scores)
    rows = [
        "| network | TK Dice (95 %) | TU Dice (95 %) | parameters | multiply-adds a pixel or voxel | training | CPU a "
        "slice of the scan | file |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, fact in facts.items():
        label = LABELS.get(name, f"`{name}`")
        dice = ["{:.3f} ({:.3f} to {:.3f})".format(*found.means[name][key]) for key in ("tk_dice", "tu_dice")]
        rows.append(
            f"| {label} | {dice[0]} | {dice[1]} | {fact['parameters']:,} | {fact['macs'] / 1e3:.1f} k | "
            f"{fact['steps']:,} steps, {fact['train_s'] / 60:.1f} min | {fact['predict_ms']:.0f} ms | "
            f"{fact['megabytes']:.2f} MB |"
        )
    empty = read_scores(next(iter(scores.values())))[1]["beside_all_background"]["all_background"]
    rows.append(f"| all background | {empty['tk_dice']:.3f} | {empty['tu_dice']:.3f} |" + " |" * 5)
    pairs = [row for row in compare_scores(papers).differences if row["metric"] != "composite"]
    clear = [
        f"{row['second']} against {row['first']}: {row['metric'].split('_')[0].upper()} {row['difference']:+.3f}"
        for row in pairs
        if row["p"] < 0.05
    ]
    text = f"{len(found.cases)} test patients: {', '.join(found.cases)}. Of {len(pairs)} differences among the papers, "
    text += "TK and TU, these have p below 0.05 by Wilcoxon's test, not corrected for their number: "
    text += f"{'; '.join(clear) or 'none'}."
    return {"networks": "\n".join([*rows, "", text])}


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


def plot(path, scores):
    """A dot for each patient and network."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(8, 3.1), sharey=True, layout="constrained")
    for axis, key, title in zip(
        axes, ("tk_dice", "tu_dice"), ("kidney with tumor (TK)", "tumor (TU)"), strict=True
    ):
        for y, file in enumerate(scores.values()):
            values = [row[key] for row in read_scores(file)[0]]
            axis.plot(values, [y] * len(values), "o", color="#1769aa", alpha=0.5, markeredgewidth=0)
            axis.plot([np.mean(values)], [y], "|", color="black", markersize=16)
        axis.set_yticks(range(len(scores)), [name.replace("-", ", ") for name in scores])
        axis.set(xlim=(-0.03, 1.03), title=f"Dice of {title}")
        axis.grid(axis="x", alpha=0.3)
    axes[0].invert_yaxis()
    figure.suptitle(
        "phantoms: real label maps, synthesized CT; a dot is a test patient, a line the mean", fontsize=9
    )
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
