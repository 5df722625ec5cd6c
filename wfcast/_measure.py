"""How far forecasts of a run are from what really came: sums over its weights, block by block."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from . import _core
from ._apply import Progress
from ._columns import blocks
from ._errors import CheckpointError
from ._operator import Operator
from ._parameters import threads
from ._runs import check_alike, check_run, check_state, open_run
from .checkpoint import Checkpoint
from .operators import persistence

__all__ = ["mean_score", "measure", "runs_of", "with_truth"]

BLOCK_BYTES = 1 << 24


def runs_of(given: Any) -> list[tuple[str, Any]]:
    """One run, or several in a list, each with what a message calls it."""
    if isinstance(given, Sequence) and not isinstance(given, str | os.PathLike):
        if not given:
            raise CheckpointError("runs is empty, expected at least one {step: checkpoint}")
        return [(f"run {i}", run) for i, run in enumerate(given)]
    return [("the run", given)]


def with_truth(
    operator: Operator, run: Any, what: str, key: str | None = None
) -> tuple[dict[int, Checkpoint], tuple[int, ...]]:
    """The inputs and targets of a run, opened, and those targets that it has."""
    given = check_run(run, operator.inputs, what, key)
    targets = tuple(t for t in operator.targets if t in given)
    if not targets:
        raise CheckpointError(
            f"{what} has none of the targets {', '.join(map(str, operator.targets))}; it has "
            f"{', '.join(map(str, given))}"
        )
    opened = open_run(given, (*operator.inputs, *targets), what)
    for step in targets:
        check_alike(opened[operator.inputs[-1]], opened[step])
        check_state(opened[step])
    return opened, targets


def measure(
    methods: Mapping[str, Operator],
    opened: dict[int, Checkpoint],
    step: int,
    n_threads: int | None,
    progress: Progress | None = None,
) -> Iterator[tuple[str, str, _core.ErrorSums]]:
    """The errors of several operators at one target of a run, in the dtype of the last input.

    Yields
    ------
    method, tensor : str
    sums : dict
        Of a block of it, as `_core.error_sums` has them.
    """
    plans = {name: method._plan(opened, step) for name, method in methods.items()}
    first = next(iter(plans.values()))
    room = np.empty(BLOCK_BYTES, np.uint8)
    for tensor in first.forecast:
        name = tensor.name
        columns = [c.column(name).array for c in first.inputs.values()]
        truth = opened[step].column(name).array
        last = columns[-1]
        for index, start, size in blocks(last.shape, BLOCK_BYTES // last.itemsize):
            x = [c[index] for c in columns]
            y = room[: size * last.itemsize].view(last.dtype).reshape(x[-1].shape)
            for method, plan in plans.items():
                plan.apply(name, x, y, True, start)
                yield method, name, _core.error_sums(y, truth[index], threads(n_threads))
            if progress is not None:
                progress(name, size)


def mean_score(operator: Operator, runs: Any) -> float:
    """``1 - sum |forecast - w| / sum |last - w|`` over all runs, on average over the targets."""
    sums: dict[int, dict[str, float]] = {}
    for what, run in runs_of(runs):
        opened, targets = with_truth(operator, run, what)
        methods = {"forecast": operator, "last": persistence(operator.inputs, targets)}
        for step in targets:
            of_step = sums.setdefault(step, dict.fromkeys(methods, 0.0))
            for method, _, found in measure(methods, opened, step, operator.n_threads):
                of_step[method] += found["sum_abs"]
    return float(np.mean([_gain(found["forecast"], found["last"]) for found in sums.values()]))


def _gain(error: float, of_last: float) -> float:
    if of_last:
        return 1 - error / of_last
    return -np.inf if error else 0.0
