"""Jump: load a forecast at the last observed step and train on, beside the run that did not."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from .._progress import bar
from .train import Run, Trainer

__all__ = ["jump"]


def jump(trainer: Trainer, fresh: Run, forecast: Path, state: dict[str, Any]) -> dict[str, Any]:
    """Train on from `forecast` with the optimizer's state of the last observed step.

    Both runs see the same batches at the same step numbers. Steps count optimizer steps, so a
    jumped run at step t has cost as much as the other one.

    Returns
    -------
    dict
        ``from``, ``to``, ``jumped`` and ``plain`` (lists of ``[step, held-out loss]``),
        ``difference`` (jumped minus plain at the same steps), ``rise`` (right after the jump),
        ``below_since`` (the first step from which the jumped run stays below, or None),
        ``final_difference``, ``mean_difference`` (after the jump itself) and ``steps_ahead``.
    """
    size, begun = trainer.size, time.perf_counter()
    until = size.observed + size.after_jump
    trainer.resume(size.observed, forecast, state)
    with bar(size.after_jump, "train on after the jump", "step") as progress:
        jumped = trainer.train(until, progress)
    losses = dict(fresh.curve)
    plain = [(step, losses[step]) for step, _ in jumped]
    difference = [(step, loss - losses[step]) for step, loss in jumped]
    later = [value for _, value in difference[1:]]
    below = None
    for step, value in reversed(difference):
        if value >= 0:
            break
        below = step
    return {
        "from": size.observed,
        "to": size.jump_to,
        "optimizer_state": "kept",
        "jumped": [list(point) for point in jumped],
        "plain": [list(point) for point in plain],
        "difference": [list(point) for point in difference],
        "rise": difference[0][1],
        "below_since": below,
        "final_difference": later[-1],
        "mean_difference": sum(later) / len(later),
        "steps_ahead": _steps_ahead(jumped, plain),
        "seconds": time.perf_counter() - begun,
    }


def _steps_ahead(jumped: list[tuple[int, float]], plain: list[tuple[int, float]]) -> float:
    """How many steps sooner the run that ends better got to the other one's last loss.

    Positive where that is the jumped run, negative where it is the other one.
    """
    until = jumped[-1][0]
    if jumped[-1][1] <= plain[-1][1]:
        return until - _reaches(jumped, plain[-1][1])
    return _reaches(plain, jumped[-1][1]) - until


def _reaches(curve: list[tuple[int, float]], loss: float) -> float:
    """The step from which on a curve, read linearly, stays at or below `loss`, its end included."""
    for (s0, v0), (s1, v1) in zip(curve[-2::-1], curve[:0:-1], strict=True):
        if v0 > loss:
            return s0 + (s1 - s0) * (v0 - loss) / (v0 - v1)
    return curve[0][0]
