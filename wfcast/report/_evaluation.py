"""How well a farcaster forecasts a run whose future is known."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from .. import _core
from .._apply import Progress
from .._columns import blocks
from .._errors import CheckpointError
from .._operator import operator_of
from .._parameters import threads
from .._runs import check_alike, check_run, check_state, open_run
from ..operators import linear_trend, persistence
from ._base import Grid, Report
from ._comparison import Comparison, Errors

__all__ = ["Evaluation", "evaluate"]

BLOCK_BYTES = 1 << 24


class Evaluation(Report):
    """Weight errors of a forecast, of persistence and of the line, by horizon.

    Attributes
    ----------
    inputs : tuple of int
        The observed steps.
    errors : dict of int to dict of str to Comparison
        Target step -> method ("forecast", "persistence", "line") -> errors by tensor. With one
        input there is no line.

    See Also
    --------
    evaluate : Returns one.
    Comparison : The errors of one method at one step.

    Examples
    --------
    >>> import numpy as np, wfcast
    >>> run = {t: {"w": np.array([1.0, t**0.5])} for t in (0, 100, 400)}
    >>> found = wfcast.evaluate(wfcast.Operator((0, 100), (400,), [[-1.0, 2.0]]), run)
    >>> found.relative(400, "forecast"), found.relative(400, "line")
    (0.0, 2.0)
    >>> found.errors[400]["line"].total.max_abs
    20.0
    """

    def __init__(self, inputs: tuple[int, ...], errors: dict[int, dict[str, Comparison]]) -> None:
        self.inputs, self.errors = inputs, errors

    def relative(self, step: int, method: str, kind: str | None = None) -> float:
        """The sum of absolute errors over that of persistence; below 1 is better than it."""
        mine, base = self.errors[step][method], self.errors[step]["persistence"]
        a, b = (mine.total, base.total) if kind is None else (mine.kinds[kind], base.kinds[kind])
        if b.sum_abs:
            return a.sum_abs / b.sum_abs
        return float("inf") if a.sum_abs else 1.0

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON can hold it: None for NaN and infinity."""
        return {
            "inputs": list(self.inputs),
            "horizons": [
                {
                    "step": step,
                    "ahead": step - self.inputs[-1],
                    "methods": {name: found.to_dict() for name, found in methods.items()},
                }
                for step, methods in self.errors.items()
            ],
        }

    @property
    def _methods(self) -> list[str]:
        return [m for m in next(iter(self.errors.values())) if m != "persistence"]

    def _parts(self) -> Iterable[str | Grid]:
        methods = self._methods
        yield (
            f"Weights forecast from steps {', '.join(map(str, self.inputs))}: mean absolute error, "
            "and its change against persistence"
        )
        rows = []
        for step, found in self.errors.items():
            maes = [f"{found[m].total.mae:.4g}" for m in (*methods, "persistence")]
            changes = [_percent(self.relative(step, m)) for m in methods]
            rows.append((str(step), f"+{step - self.inputs[-1]}", *maes, *changes))
        against = [f"{m} / persist." for m in methods]
        yield Grid(("step", "ahead", *methods, "persistence", *against), rows, 2)
        last = list(self.errors)[-1]
        kinds = self.errors[last]["persistence"].kinds
        yield f"By kind of tensor at step {last}, against persistence:"
        yield Grid(
            ("tensors", "weights", *methods),
            [
                (k, f"{e.n:,}", *(_percent(self.relative(last, m, k)) for m in methods))
                for k, e in kinds.items()
            ],
        )

    def _draw(self, ax: Any) -> None:
        from .._plot import COLOURS, MARKERS, legend

        ahead = [step - self.inputs[-1] for step in self.errors]
        for k, method in enumerate(self._methods):
            change = [100 * (self.relative(step, method) - 1) for step in self.errors]
            ax.plot(ahead, change, marker=MARKERS[k], color=COLOURS[k + 1], label=method)
        ax.axhline(0, color=COLOURS[0], linestyle="--", label="persistence")
        ax.set_xlabel("steps ahead of the last observed one")
        ax.set_ylabel("weight error against persistence, %")
        ax.set_title("Weight error by horizon (lower is better)", loc="left")
        legend(ax)


def _percent(relative: float) -> str:
    return f"{100 * (relative - 1):+.1f}%"


def evaluate(
    mf: Any, run: Any, *, key: str | None = None, progress: Progress | None = None
) -> Evaluation:
    """Forecast a run at every target that it has, and compare with what really happened.

    Persistence and, with two inputs or more, the straight line are measured beside it. Forecasts
    are made block by block in the dtype of the last input, and not kept.

    Parameters
    ----------
    mf : Operator or ModelFarcaster
        A ModelFarcaster has been fitted.
    run : {step: checkpoint}, or path of a run folder
        Holds the inputs and at least one of the targets. It should not be one of the runs that
        `mf` was fitted to.
    key : str, optional
        As of `forecast_checkpoint`.
    progress : callable, optional
        Called as ``progress(name, rows)`` after each block of each target.

    Returns
    -------
    Evaluation

    Raises
    ------
    NotFittedError, CheckpointError, WfcastError
        As `ModelFarcaster.predict`; or the run has none of the targets.

    See Also
    --------
    Evaluation : What is returned.
    compare_checkpoints : Two checkpoints, whatever made them.

    Examples
    --------
    >>> import numpy as np, wfcast
    >>> rng = np.random.default_rng(0)
    >>> def run():
    ...     w, v = rng.normal(size=(2, 50))
    ...     return {t: {"w": w + v * t**0.5} for t in (0, 100, 400)}
    >>> mf = wfcast.ModelFarcaster(inputs=(0, 100), targets=(400,)).fit([run(), run()])
    >>> found = wfcast.evaluate(mf, run())
    >>> print(f"{found.relative(400, 'forecast'):.2f} {found.relative(400, 'line'):.2f}")
    0.00 2.00
    """
    operator = operator_of(mf, "mf")
    given = check_run(run, operator.inputs, "the run", key)
    targets = tuple(t for t in operator.targets if t in given)
    if not targets:
        raise CheckpointError(
            f"the run has none of the targets {', '.join(map(str, operator.targets))}; it has "
            f"{', '.join(map(str, given))}"
        )
    opened = open_run(given, (*operator.inputs, *targets), "the run")
    methods = {"forecast": operator, "persistence": persistence(operator.inputs, targets)}
    if len(operator.inputs) > 1:
        methods["line"] = linear_trend(operator.inputs, targets)
    found: dict[int, dict[str, Comparison]] = {}
    room = np.empty(BLOCK_BYTES, np.uint8)
    for step in targets:
        true = opened[step]
        check_alike(opened[operator.inputs[-1]], true)
        check_state(true)
        plans = {name: method._plan(opened, step) for name, method in methods.items()}
        errors: dict[str, dict[str, Errors]] = {name: {} for name in methods}
        for tensor in plans["forecast"].forecast:
            name = tensor.name
            columns = [opened[s].column(name).array for s in operator.inputs]
            truth = true.column(name).array
            last = columns[-1]
            for index, start, size in blocks(last.shape, BLOCK_BYTES // last.itemsize):
                x = [c[index] for c in columns]
                y = room[: size * last.itemsize].view(last.dtype).reshape(x[-1].shape)
                for method, plan in plans.items():
                    plan.apply(name, x, y, True, start)
                    sums = _core.error_sums(y, truth[index], threads(operator.n_threads))
                    so_far = errors[method].get(name, Errors())
                    errors[method][name] = so_far + Errors(**sums)
                if progress is not None:
                    progress(name, size)
        found[step] = {
            method: Comparison(sums, f"{method} of step {step}", true.what)
            for method, sums in errors.items()
        }
    return Evaluation(operator.inputs, found)
