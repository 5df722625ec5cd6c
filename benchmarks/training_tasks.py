"""What is trained in `bench_farcasting.py` and `bench_readout.py`, on data of installed packages.

A run is a pure function of its seed: step t of it draws its batch from ``(seed, t)`` alone, so that
runs with and without jumps see the same batches. On the CPU everything is trained on one thread.
"""

from __future__ import annotations

import math

from tasks.arithmetic import Arithmetic
from tasks.base import Task
from tasks.distilbert import BaseMaskedWords, Classes, MaskedWords
from tasks.images import Digits, Patches
from tasks.text import Characters, Decoder, Recurrent

__all__ = [
    "SCHEDULES",
    "TASKS",
    "Arithmetic",
    "BaseMaskedWords",
    "Characters",
    "Classes",
    "Decoder",
    "Digits",
    "MaskedWords",
    "Patches",
    "Recurrent",
    "Task",
    "factor",
]

TASKS: tuple[type[Task], ...] = (
    Digits,
    Characters,
    MaskedWords,
    Classes,
    Recurrent,
    Patches,
    Arithmetic,
    BaseMaskedWords,
)

SCHEDULES = ("constant", "linear", "cosine", "tail")


def factor(schedule: str, step: int, steps: int) -> float:
    """What the rate of step 1, 2, ..., `steps` is multiplied by; a fiftieth of them warms up.

    "linear" and "cosine" fall to 0 from there, "tail" in the last fifth.
    """
    warm = min(1.0, step / max(1, steps // 50))
    if schedule == "linear":
        return warm * (1 - (step - 1) / steps)
    if schedule == "cosine":
        return warm * (1 + math.cos(math.pi * (step - 1) / steps)) / 2
    return warm * min(1.0, (steps - step + 1) / (steps / 5)) if schedule == "tail" else warm
