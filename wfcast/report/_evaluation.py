"""How well a farcaster forecasts a run whose future is known."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .._apply import Progress
from .._measure import measure, runs_of, with_truth
from .._operator import Operator, operator_of
from ..operators import linear_trend, persistence
from ._base import Grid, Report
from ._comparison import Comparison, Errors

__all__ = ["Evaluation", "evaluate"]


class Evaluation(Report):
    """Weight errors of a forecast, of persistence and of the line, by horizon.

    Attributes
    ----------
    inputs : tuple of int
        The observed steps.
    errors : dict of int to dict of str to Comparison
        Target step -> method ("forecast", "persistence", "line") -> errors by tensor. With one
        input there is no line. Of several runs the sums over all of them.
    runs : tuple of Evaluation
        Of several runs, each by itself, in their order; else empty.

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

    def __init__(
        self,
        inputs: tuple[int, ...],
        errors: dict[int, dict[str, Comparison]],
        runs: tuple[Evaluation, ...] = (),
    ) -> None:
        self.inputs, self.errors, self.runs = inputs, errors, runs

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
            "runs": [one.to_dict() for one in self.runs],
        }

    @property
    def _methods(self) -> list[str]:
        return [m for m in next(iter(self.errors.values())) if m != "persistence"]

    def _rows(self) -> Iterable[dict[str, Any]]:
        for k, one in enumerate(self.runs or (self,)):
            for step, methods in one.errors.items():
                for method, found in methods.items():
                    for row in found._rows():
                        yield {"run": k, "step": step, "method": method, **row}

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
        if self.runs:
            yield f"By run at step {last}, against persistence:"
            there = [(str(k), one) for k, one in enumerate(self.runs) if last in one.errors]
            yield Grid(
                ("run", *methods),
                [(k, *(_percent(one.relative(last, m)) for m in methods)) for k, one in there],
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
    """Forecast runs at every target that they have, and compare with what really happened.

    Persistence and, with two inputs or more, the straight line are measured beside it. Forecasts
    are made block by block in the dtype of the last input, and not kept.

    Parameters
    ----------
    mf : Operator or ModelFarcaster
        A ModelFarcaster has been fitted.
    run : {step: checkpoint}, or path of a run folder, or a list of such runs
        Holds the inputs and at least one of the targets. It should not be one of the runs that
        `mf` was fitted to. Of several runs the errors are summed.
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
    found = [_evaluate(operator, one, what, key, progress) for what, one in runs_of(run)]
    return found[0] if len(found) == 1 else _pooled(found)


def _evaluate(
    operator: Operator, run: Any, what: str, key: str | None, progress: Progress | None
) -> Evaluation:
    opened, targets = with_truth(operator, run, what, key)
    methods = {"forecast": operator, "persistence": persistence(operator.inputs, targets)}
    if len(operator.inputs) > 1:
        methods["line"] = linear_trend(operator.inputs, targets)
    found: dict[int, dict[str, Comparison]] = {}
    for step in targets:
        errors: dict[str, dict[str, Errors]] = {name: {} for name in methods}
        for method, name, sums in measure(methods, opened, step, operator.n_threads, progress):
            errors[method][name] = errors[method].get(name, Errors()) + Errors(**sums)
        found[step] = {
            method: Comparison(sums, f"{method} of step {step}", opened[step].what)
            for method, sums in errors.items()
        }
    return Evaluation(operator.inputs, found)


def _pooled(runs: list[Evaluation]) -> Evaluation:
    """Several runs as one, at each step those that have it."""
    found: dict[int, dict[str, Comparison]] = {}
    for step in sorted({step for one in runs for step in one.errors}):
        there = [one.errors[step] for one in runs if step in one.errors]
        found[step] = {}
        for method in there[0]:
            sums: dict[str, Errors] = {}
            for name, errors in (pair for one in there for pair in one[method].items()):
                sums[name] = sums.get(name, Errors()) + errors
            found[step][method] = Comparison(
                sums, f"{method} of step {step}", f"step {step} of {len(there)} runs"
            )
    return Evaluation(runs[0].inputs, found, tuple(runs))
