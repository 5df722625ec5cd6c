"""What a run holds, and how far its weights moved."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import numpy as np

from .. import _core
from .._apply import Progress
from .._columns import value_at
from .._errors import CheckpointError, WfcastError
from .._moves import Moves, middle_of, moves
from .._operator import Operator, operator_of
from .._runs import Run, forecastable, has, made_by
from ..checkpoint import PROVENANCE, Checkpoint, FileCheckpoint, Tensor
from ._base import Grid, Report, finite
from ._comparison import Errors
from ._drift import Drift

__all__ = ["RunReport"]

SAMPLED = 12
"""The weights of a run whose trajectories are kept."""


class RunReport(Report):
    """The checkpoints of a run, how far each moved, and the trajectories of some weights.

    Attributes
    ----------
    path : str
        What it is called.
    steps : tuple of int
    checkpoints : list of dict
        Of each: step, name, format, tensors, parameters, bytes, dtypes, alike (the same tensors as
        the one before), and move: ``|w - previous| / |previous|`` over all weights that are
        forecast and in both. `forecast` says what made one that is a forecast of wfcast.
    samples : dict of (str, int) to list of float
        (Tensor name, position in C order) -> values at the steps; NaN where there is none.
    left_out : tuple of str
        What else the folder holds, and why it does not count: unreadable, or a forecast.
    drift : Drift or None
        Of the tensors that are finite and alike in all checkpoints, where there are three or more.

    See Also
    --------
    inspect : Returns one.
    evaluate : How well a farcaster forecasts a run.

    Examples
    --------
    >>> import numpy as np, wfcast
    >>> run = {t: {"w": np.array([1.0, 1.0 + t])} for t in (0, 1)}
    >>> found = wfcast.inspect(run)
    >>> found.steps, [c["move"] for c in found.checkpoints]
    ((0, 1), [None, 0.7071067811865476])
    """

    def __init__(self, run: Run, path: str, n_threads: int, progress: Progress | None) -> None:
        self.path, self.steps, self.left_out = path, tuple(run), run.left_out
        if not run:
            raise CheckpointError(f"{path} holds no finished checkpoint")
        found = _moves(run, n_threads, progress)
        self.drift = Drift(self.steps, found) if found and len(run) > 2 else None
        self.checkpoints: list[dict[str, Any]] = []
        first = next(iter(run.values()))
        self.samples: dict[tuple[str, int], list[float]] = {k: [] for k in _some_weights(first)}
        previous: Checkpoint | None = None
        for k, (step, checkpoint) in enumerate(run.items()):
            summary = _summary(step, checkpoint, previous)
            if previous is not None:
                summary["move"] = _move(k, checkpoint, previous, found, n_threads, progress)
            self.checkpoints.append(summary)
            for (name, position), values in self.samples.items():
                there = has(checkpoint, first.tensors[name])
                values.append(
                    value_at(checkpoint.column(name).array, position) if there else math.nan
                )
            previous = checkpoint

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON can hold it: None for NaN and infinity."""
        return {
            "path": self.path,
            "what": "run",
            "steps": list(self.steps),
            "checkpoints": [
                {**c, "move": None if c["move"] is None else finite(c["move"])}
                for c in self.checkpoints
            ],
            "samples": [
                {"tensor": name, "position": position, "values": [finite(v) for v in values]}
                for (name, position), values in self.samples.items()
            ],
            "drift": None if self.drift is None else self.drift.to_dict(),
            "left_out": list(self.left_out),
        }

    def _rows(self) -> Iterable[dict[str, Any]]:
        yield from self.checkpoints

    def _parts(self) -> Iterable[str | Grid]:
        header = ("step", "checkpoint", "format", "dtypes", "tensors", "parameters", "bytes")
        rows = [
            (
                str(c["step"]),
                c["name"]
                + ("" if c["alike"] else " (other tensors)")
                + (f" ({c['forecast']})" if c["forecast"] else ""),
                c["format"],
                ", ".join(c["dtypes"]),
                f"{c['tensors']:,}",
                f"{c['parameters']:,}",
                f"{c['bytes']:,}",
                "-" if c["move"] is None else f"{c['move']:.4g}",
            )
            for c in self.checkpoints
        ]
        yield Grid((*header, "move since the last"), rows, 4)
        yield f"{self.path}: a run of {len(rows)} checkpoints"
        if self.drift is not None:
            yield self.drift.summary()
        if self.left_out:
            yield "\n".join(f"left out, {reason}" for reason in self.left_out)

    def plot(self, ax: Any = None, *, farcaster: Any = None) -> Any:
        """Draw the sampled trajectories, as changes from the first step.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Where; a new figure by default.
        farcaster : Operator or ModelFarcaster, optional
            Its forecasts of these weights are drawn beside what happened.

        Returns
        -------
        matplotlib.axes.Axes
        """
        ax = super().plot(ax)
        if farcaster is not None:
            self._draw_forecasts(ax, operator_of(farcaster, "farcaster"))
        return ax

    def _draw(self, ax: Any) -> None:
        from .._plot import COLOURS

        for i, values in enumerate(self.samples.values()):
            change = [v - values[0] for v in values]
            ax.plot(self.steps, change, ".-", color=COLOURS[i % len(COLOURS)], linewidth=1)
        ax.set_xlabel("step")
        ax.set_ylabel(f"change of a weight since step {self.steps[0]}")
        ax.set_title(
            f"{len(self.samples)} weights of {os.path.basename(self.path) or self.path}", loc="left"
        )

    def _draw_forecasts(self, ax: Any, operator: Operator) -> None:
        from .._plot import COLOURS, legend

        lacking = [s for s in operator.inputs if s not in self.steps]
        if lacking:
            raise CheckpointError(
                f"{self.path} lacks step {', '.join(map(str, lacking))}, which the farcaster reads"
            )
        at = [self.steps.index(s) for s in operator.inputs]
        label: str | None = "forecast"
        for i, ((name, _), values) in enumerate(self.samples.items()):
            if not operator.knows(name):
                continue
            coef, intercept = operator.coefficients(name)
            ahead = coef @ np.array([values[k] for k in at]) + intercept
            ax.plot(
                (operator.inputs[-1], *operator.targets),
                np.append(values[at[-1]], ahead) - values[0],
                "--x",
                color=COLOURS[i % len(COLOURS)],
                linewidth=1,
                label=label,
            )
            label = None
        ax.axvline(operator.inputs[-1], color="#999999", linewidth=0.8)
        if label is None:
            legend(ax)


def _some_weights(checkpoint: Checkpoint) -> list[tuple[str, int]]:
    """Weights drawn evenly from all that are forecast; the same ones each time."""
    tensors = sorted((t for t in forecastable(checkpoint) if t.size), key=lambda t: t.name)
    if not tensors:
        return []
    ends = np.cumsum([t.size for t in tensors])
    rng = np.random.default_rng(0)
    drawn = np.unique(rng.integers(0, int(ends[-1]), SAMPLED))
    which = np.searchsorted(ends, drawn, side="right")
    return [
        (tensors[i].name, int(at - (ends[i] - tensors[i].size)))
        for i, at in zip(which, drawn, strict=True)
    ]


def _name(checkpoint: Checkpoint) -> str:
    if not isinstance(checkpoint, FileCheckpoint):
        return "in memory"
    path, layout = checkpoint.path, checkpoint.layout
    # of the weights: in a folder, that is what people call it by
    return path.parent.name if layout.folder and layout.weights else path.name


def alike(run: dict[int, Checkpoint]) -> list[Tensor]:
    """The tensors to forecast that all checkpoints, two or more, hold in one form."""
    if len(run) < 2:
        return []
    first, *others = run.values()
    return [t for t in forecastable(first) if t.size and all(has(c, t) for c in others)]


def _moves(
    run: dict[int, Checkpoint], n_threads: int, progress: Progress | None
) -> dict[Tensor, Moves]:
    found: dict[Tensor, Moves] = {}
    for tensor in alike(run):
        # what is not finite is left to the comparison of neighbours, which leaves out no more
        with suppress(WfcastError):
            found[tensor] = moves([*run.values()], tensor.name, middle_of([*run]), n_threads)
            if progress is not None:
                progress(tensor.name, len(run) * tensor.size)
    return found


def _move(
    k: int,
    checkpoint: Checkpoint,
    previous: Checkpoint,
    found: dict[Tensor, Moves],
    n_threads: int,
    progress: Progress | None,
) -> float:
    """``|w - previous| / |previous|`` of checkpoint k over what both have alike."""
    total = Errors()
    for tensor in forecastable(checkpoint):
        name = tensor.name
        if tensor in found:
            sums = found[tensor].sums
            total += Errors(tensor.size, sum_sq=sums[k, 1], sum_true_sq=sums[k - 1, 0])
        elif tensor.size and has(previous, tensor):
            pair = checkpoint.column(name).array, previous.column(name).array
            total += Errors(**_core.error_sums(*pair, n_threads))
            if progress is not None:
                progress(name, 2 * tensor.size)
    return total.relative


def _summary(step: int, checkpoint: Checkpoint, previous: Checkpoint | None) -> dict[str, Any]:
    tensors = checkpoint.tensors
    return {
        "step": step,
        "name": _name(checkpoint),
        "forecast": made_by(checkpoint) if PROVENANCE in checkpoint.metadata else None,
        "format": checkpoint.layout.format,
        "dtypes": sorted({t.dtype for t in tensors.values()}),
        "tensors": len(tensors),
        "parameters": sum(t.size for t in tensors.values()),
        "bytes": sum(t.nbytes for t in tensors.values()),
        "alike": previous is None
        or (
            tensors.keys() == previous.tensors.keys()
            and all(has(previous, t) for t in tensors.values())
        ),
        "move": None,
    }
