"""Jump: load a forecast at the last observed step and train on, beside the run that did not."""

from __future__ import annotations

import bisect
import time
from pathlib import Path
from typing import Any

from .._terminal import bar
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
        "steps_ahead": _steps_ahead(jumped[-1], fresh.curve),
        "seconds": time.perf_counter() - begun,
    }


def _steps_ahead(end: tuple[int, float], curve: list[tuple[int, float]]) -> float | None:
    """How many steps sooner the jumped run got to its last loss; None if the other never did.

    The other run's curve is made falling (the lowest loss so far) and read off linearly. Negative:
    the jumped run got there later.
    """
    step, loss = end
    best: list[tuple[float, int]] = []
    for s, value in curve:
        if not best or value < best[-1][0]:
            best.append((value, s))
    k = bisect.bisect_left([-value for value, _ in best], -loss)
    if k == len(best) or k == 0:
        return None
    (v0, s0), (v1, s1) = best[k - 1], best[k]
    return s0 + (s1 - s0) * (v0 - loss) / (v0 - v1) - step
