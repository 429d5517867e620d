"""The rows of the table of real_slices.py, and which of them are compared."""

from dataclasses import dataclass

WHAT = "79 slices of 28 patients, chosen by somebody else, HU clipped to 0..255"
SETTINGS = {
    "a": "rendered CT only",
    "b": "real, by patient",
    "c": "rendered, then real",
    "d": "real, by slice (leak)",
}
HALF = (8, 16, 24, 48, 48)  # filters of what kitsseg shrink leaves of wp_unet:tiny


@dataclass(frozen=True)
class Row:
    """A row of the table: a network, or what is made of another row's network.

    Attributes:
        label: what the table calls it.
        recipe: whose tiny variant is trained.
        model: changes of its model.
        parent: the row whose network is pruned, shrunk, exported, trained on or averaged; None: it is trained.
        length: how many times as long as the others it is trained.
        ours: whether it has what works best here: averaged weights, random appearance of real slices too, and
            predictions that are means over mirrored slices.
        seeds: how many seeds of the parent predict together (``kitsseg predict RUN --also RUN``); 0: it is a network.
        settings: those in which it is trained.
        precision: of the file that ``kitsseg export`` makes of the parent; None: it is no exported file.
        unchecked: whether the file is kept, whatever its labels are.
    """

    label: str
    recipe: str
    model: tuple[tuple[str, object], ...] = ()
    parent: str | None = None
    length: int = 1
    ours: bool = False
    seeds: int = 0
    settings: str = "abcd"
    precision: str | None = None
    unchecked: bool = False


ROWS = {
    "unet2d": Row("`unet2d`, 12 filters", "unet2d", (("start_filters", 12),)),
    "unet2d-ours": Row(
        "`unet2d`, 12 filters, our settings", "unet2d", (("start_filters", 12),), ours=True, settings="abc"
    ),
    "unet2d-ours-together": Row(
        "`unet2d`, our settings, three seeds together", "unet2d", parent="unet2d-ours", seeds=3, settings="bc"
    ),
    "wp_unet": Row("`wp_unet`", "wp_unet"),
    "wp_unet-unet": Row("`wp_unet`, its ordinary U-Net", "wp_unet", (("variant", "unet"),)),
    "wp_unet-dw_unet": Row("`wp_unet`, its depth-wise U-Net", "wp_unet", (("variant", "dw_unet"),)),
    "wp_unet-pruned-50": Row("`wp_unet`, pruned to 50 %", "wp_unet", parent="wp_unet", settings="b"),
    "wp_unet-pruned-80": Row("`wp_unet`, pruned to 80 %", "wp_unet", parent="wp_unet", settings="b"),
    "wp_unet-shrunk": Row(
        "`wp_unet`, shrunk to half its channels", "wp_unet", parent="wp_unet", settings="b"
    ),
    "wp_unet-shrunk-int8-weights": Row(
        "the same, its weights as int8",
        "wp_unet",
        parent="wp_unet-shrunk",
        settings="b",
        precision="int8-weights",
    ),
    "wp_unet-shrunk-int8": Row(
        "the same as int8", "wp_unet", parent="wp_unet-shrunk", settings="b", precision="int8"
    ),
    "wp_unet-shrunk-int8-unchecked": Row(
        "the same as int8, kept although refused",
        "wp_unet",
        parent="wp_unet-shrunk",
        settings="b",
        precision="int8",
        unchecked=True,
    ),
    "wp_unet-longer": Row("`wp_unet`, trained twice as long", "wp_unet", parent="wp_unet", settings="b"),
    "wp_unet-half": Row(
        "`wp_unet`, with half of its channels from the start, trained twice as long",
        "wp_unet",
        (("filters", HALF),),
        length=2,
        settings="b",
    ),
    "wp_unet-shrunk-random": Row(
        "`wp_unet`, shrunk to half its channels at random", "wp_unet", parent="wp_unet", settings="b"
    ),
    "squeeze_unet": Row("`squeeze_unet`, with skips", "squeeze_unet"),
    "squeeze_unet-no-skips": Row("`squeeze_unet`, without skips", "squeeze_unet", (("skips", False),)),
    "enhanced_unet": Row("`enhanced_unet`", "enhanced_unet"),
}
FIRST = "unet2d"
# what the second is to be compared with, in each setting of both
BESIDE = (
    ("unet2d", "unet2d-ours"),
    ("unet2d-ours", "unet2d-ours-together"),
    ("wp_unet-unet", "wp_unet"),
    ("wp_unet-dw_unet", "wp_unet"),
    ("wp_unet-unet", "wp_unet-dw_unet"),
    ("squeeze_unet-no-skips", "squeeze_unet"),
    ("wp_unet-longer", "wp_unet-pruned-50"),
    ("wp_unet-longer", "wp_unet-pruned-80"),
    ("wp_unet-longer", "wp_unet-shrunk"),
    ("wp_unet-half", "wp_unet-shrunk"),
    ("wp_unet-shrunk-random", "wp_unet-shrunk"),
    ("wp_unet-shrunk", "wp_unet-shrunk-int8-weights"),
    ("wp_unet-shrunk", "wp_unet-shrunk-int8-unchecked"),
)
