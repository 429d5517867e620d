"""Types of what is handed from one part of the package to another. They describe; nothing here computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["Progress", "Tensor"]

# progress(description, done, total): how far a long command is; called again and again while it runs
Progress = Callable[[str, int, int], object]

# What keras.ops computes with: a KerasTensor while a network is built, a tensor of the backend (or a NumPy array) while
# it runs. Keras ships no types, so a checker knows no more than this.
Tensor = Any
