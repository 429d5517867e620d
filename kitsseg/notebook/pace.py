"""How long a training takes on this machine, said once it has been measured, and what to do if that is too long."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kitsseg.interfaces import Progress
    from kitsseg.recipe import Recipe

__all__ = ["SESSION_HOURS", "Pace", "advice"]

SESSION_HOURS = 12.0  # of a free Colab machine, at most


class Pace:
    """A progress of a training that says, after one whole epoch, what the rest takes at the measured rate.

    The first step is not counted: in it the network is compiled. What is counted ends with the first step of the next
    epoch, so that the validation of one epoch is in it.

    Args:
        recipe: whose training it is.
        progress: told of every step. say: called with the line. clock: seconds, from any moment on.
    """

    def __init__(
        self,
        recipe: Recipe,
        progress: Progress,
        say: Callable[[str], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.recipe, self.progress, self.say, self.clock = recipe, progress, say, clock
        self.begun: tuple[float, float, str] | None = None  # when, step, epoch
        self.said = False

    def __call__(self, description: str, done: float, total: int) -> None:
        self.progress(description, done, total)
        if self.said:
            return
        epoch = description.partition(", loss")[0]
        if self.begun is None:
            self.begun = self.clock(), done, epoch
            return
        started, first, at = self.begun
        if epoch == at:
            return
        self.said = True
        rate = (self.clock() - started) / (done - first)
        hours = rate * (total - done) / 3600
        left = f"{hours:.1f} hours" if hours >= 1 else f"{math.ceil(60 * hours)} minutes"
        text = (
            f"Measured: {rate:.3g} s a step with validation, about {left} left for {total - done:,.0f} steps."
        )
        if hours > SESSION_HOURS:
            text = f"{text} That is longer than a free session. {advice(self.recipe, hours)}"
        self.say(text)


def advice(recipe: Recipe, hours: float) -> str:
    """What to choose where a training takes longer than a session."""
    from kitsseg import recipes
    from kitsseg.training.work import training_work

    sessions = math.ceil(hours / SESSION_HOURS)
    said = [f"with USE_DRIVE it goes on in the next session, {sessions} in all"]
    name = recipe.name.split(":")[0]
    if recipe.name == name:
        of_practical = training_work(recipes.get(f"{name}:practical")).flops / training_work(recipe).flops
        if of_practical < 1:
            said.append(f'VARIANT = "practical" is {100 * of_practical:.0f} % of the arithmetic')
    if any(phase.steps_from for phase in recipe.phases):
        said.append("fewer CASES are fewer steps")
    said.append('PRECISION = "mixed_float16" uses what a T4 is made for')
    return f"What helps: {'; '.join(said)}."
