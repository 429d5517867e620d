"""Count the operations of a recipe's training, to estimate its time on a device where it was never run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kitsseg.models.macs import count_macs
from kitsseg.recipe import SliceSampler
from kitsseg.training.epochs import steps_of

if TYPE_CHECKING:
    from kitsseg.recipe import Recipe

__all__ = ["T4_FLOPS", "TrainingWork", "training_work"]

T4_FLOPS = 8.1e12  # float32, from the data sheet of NVIDIA's T4
# the least and the most of its peak that a step of one of the five networks reached where it was measured
# (docs/speed.md, "A step of training")
REACHED = (0.13, 0.61)


@dataclass(frozen=True)
class TrainingWork:
    """The amount of work of a training.

    Attributes:
        steps: number of steps in all phases and rounds.
        images: number of slices or patches in all these steps; one that is used twice counts twice.
        what: "slices" or "patches".
        flops: floating-point operations; the backward pass counts as twice the forward pass.
    """

    steps: int
    images: int
    what: str
    flops: float

    def hours(self, peak: float = T4_FLOPS) -> tuple[float, ...]:
        """(least, most) hours on a device with ``peak`` floating-point operations a second, by computation only.

        The time for reading and validation is not included.
        """
        return tuple(self.flops / (peak * share) / 3600 for share in reversed(REACHED))


def training_work(recipe: Recipe) -> TrainingWork:
    """TrainingWork of a recipe's own phases, with all rounds of progressive phases and without an early stop.

    Args:
        recipe: Recipe. Its network is built.
    """
    # pretrained weights change no figure, and would be downloaded
    options = {key: None if key == "weights" else value for key, value in recipe.model.items()}
    model = recipe.build_model(**options)
    sizes = {tuple(phase.sampler.patch_size) for phase in recipe.phases}
    macs = {size: count_macs(model, (*size, model.input_shape[-1])) for size in sizes}
    steps, images, flops = 0, 0, 0.0
    for phase in recipe.phases:
        sampler = phase.sampler
        of_phase = steps_of(phase)
        steps, images = steps + of_phase, images + of_phase * sampler.images
        flops += of_phase * sampler.images * macs[tuple(sampler.patch_size)] * 2 * 3
    what = "slices" if isinstance(sampler, SliceSampler) else "patches"
    return TrainingWork(steps, images, what, flops)
