"""What a farcaster, a checkpoint or a run folder holds."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from itertools import pairwise
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np

from .. import _core
from .._apply import Progress
from .._columns import value_at
from .._errors import CheckpointError
from .._kinds import kind_of
from .._operator import Learner, Operator, load, operator_of
from .._parameters import ALL, threads
from .._persist import KEY
from .._runs import check_run, forecastable, has
from ..checkpoint import (
    Checkpoint,
    FileCheckpoint,
    holds_run,
    is_forecast,
    open_checkpoint,
    steps_in,
)
from ._base import Grid, Report, finite
from ._comparison import Errors, floating

__all__ = [
    "CheckpointReport",
    "FarcasterReport",
    "RunReport",
    "inspect",
    "look",
    "nbytes_read",
    "report_on",
]

LONGEST = 500
"""The most letters that are shown of an entry of a checkpoint's metadata."""

SAMPLED = 12
"""The weights of a run whose trajectories are kept."""


def inspect(
    source: Any, *, n_threads: int | None = None, progress: Progress | None = None
) -> FarcasterReport | CheckpointReport | RunReport:
    """Look at a farcaster, a checkpoint or a run.

    Parameters
    ----------
    source : path, Operator, ModelFarcaster, mapping, module, or {step: checkpoint}
        A folder of checkpoints is a run, also where a trainer has put the final model beside
        them: of that, name the file.
    n_threads : int or None
        None: all CPUs that this process may use.
    progress : callable, optional
        Called as ``progress(name, rows)`` after each tensor that was read.

    Returns
    -------
    FarcasterReport, CheckpointReport or RunReport

    Raises
    ------
    CheckpointError
        Nothing there, or nothing that wfcast can read.
    NotFittedError
        A ModelFarcaster that was not fitted.

    See Also
    --------
    evaluate : How well a farcaster forecasts.
    compare_checkpoints : Errors between two checkpoints.
    load : Reads an operator, to use it.

    Examples
    --------
    >>> import numpy as np, wfcast
    >>> print(wfcast.inspect({"w": np.ones((2, 3), np.float32)}))
    tensor  kind   dtype    shape  rms  not finite
    ------  -----  -------  -----  ---  ----------
    w       other  float32    2x3    1           0
    <BLANKLINE>
    checkpoint: safetensors, 1 tensors, 6 parameters
    """
    found = look(source)
    kinds = ((Operator, "farcaster"), (Checkpoint, "checkpoint"), (dict, "run"))
    what = next(name for kind, name in kinds if isinstance(found, kind))
    if isinstance(source, str | os.PathLike):
        what = os.fspath(source)
    return report_on(found, what, n_threads=n_threads, progress=progress)


Found = Operator | Checkpoint | dict[int, Checkpoint]


def look(source: Any) -> Found:
    """What `inspect` is to report on: opened, and nothing read yet."""
    if isinstance(source, Operator | Learner):
        return operator_of(source, "source")
    if _is_run(source):
        run = check_run(source, (), "the run")
        return {step: open_checkpoint(one, f"step {step}") for step, one in run.items()}
    checkpoint = open_checkpoint(source)
    if KEY in checkpoint.metadata and isinstance(checkpoint, FileCheckpoint):
        return load(checkpoint.path)
    return checkpoint


def report_on(
    found: Found, what: str, *, n_threads: int | None = None, progress: Progress | None = None
) -> FarcasterReport | CheckpointReport | RunReport:
    """The report on what `look` found; `what` is what it is called."""
    if isinstance(found, Operator):
        return FarcasterReport(found, what)
    if isinstance(found, Checkpoint):
        return CheckpointReport(found, what, threads(n_threads), progress)
    return RunReport(found, what, threads(n_threads), progress)


def nbytes_read(found: Found) -> tuple[int, dict[str, int]]:
    """The bytes that `report_on` reads, of all and of a weight of each tensor."""
    if isinstance(found, Operator):
        return 0, {}
    if isinstance(found, Checkpoint):
        tensors = [found.tensors[name] for name in floating(found)]
        return sum(t.nbytes for t in tensors), {t.name: t.bits // 8 for t in tensors}
    pairs = [
        t
        for previous, one in pairwise(found.values())
        for t in forecastable(one)
        if has(previous, t)
    ]
    return 2 * sum(t.nbytes for t in pairs), {t.name: 2 * t.bits // 8 for t in pairs}


def _is_run(source: Any) -> bool:
    if isinstance(source, Mapping):
        return bool(source) and all(isinstance(step, Integral) for step in source)
    if not isinstance(source, str | os.PathLike) or not Path(source).is_dir():
        return False
    if holds_run(Path(source)):
        return True
    try:
        open_checkpoint(source)
    except CheckpointError:
        return bool(steps_in(Path(source)))
    return False


class FarcasterReport(Report):
    """An operator: what made it, its coefficients and, of a fit, its certificates.

    Attributes
    ----------
    operator : Operator
    path : str
        What it is called.

    See Also
    --------
    inspect : Returns one.
    Operator : What is shown.

    Examples
    --------
    >>> import wfcast
    >>> print(wfcast.inspect(wfcast.linear_trend((0, 500), (1000,))))
    farcaster: linear_trend, from steps 0, 500 to 1000; by all
    coefficients for step 1000:
    <BLANKLINE>
    tensor       w_0    w_500  intercept  gap
    ------  --------  -------  ---------  ---
    *       -1.00000  2.00000          0    -
    """

    def __init__(self, operator: Operator, path: str) -> None:
        self.operator, self.path = operator, path

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON can hold it; what was not fitted is None."""
        op, fit = self.operator, _fit_of(self.operator)

        def of(number: str, name: str) -> Any:
            return fit[number][name] if fit else None

        return {
            "path": self.path,
            "what": "farcaster",
            "strategy": op.strategy,
            "inputs": list(op.inputs),
            "targets": list(op.targets),
            "by": "all" if ALL in op.coef else "tensor",
            "loss": fit["loss"] if fit else None,
            "beta": fit["beta"] if fit else None,
            "coefficients": {
                name: {
                    "coef": coef.tolist(),
                    "intercept": op.intercept[name].tolist(),
                    "objective": of("objective", name),
                    "dual_gap": of("dual_gap", name),
                    "n_passes": of("n_passes", name),
                }
                for name, coef in op.coef.items()
            },
            "fingerprint": op.fingerprint(),
        }

    def _parts(self) -> Iterable[str | Grid]:
        op, fit = self.operator, _fit_of(self.operator)
        how = f", loss {fit['loss']}, beta {fit['beta']:g}" if fit else ""
        yield (
            f"{self.path}: {op.strategy}, from steps {', '.join(map(str, op.inputs))} to "
            f"{', '.join(map(str, op.targets))}; "
            f"by {'all' if ALL in op.coef else 'tensor'}{how}\n"
            f"coefficients for step {op.targets[-1]}:"
        )
        rows = [
            (
                name,
                *(f"{value:.5f}" for value in coef[-1]),
                f"{op.intercept[name][-1]:.3g}",
                f"{fit['dual_gap'][name]:.1e}" if fit else "-",
            )
            for name, coef in op.coef.items()
        ]
        yield Grid(("tensor", *(f"w_{step}" for step in op.inputs), "intercept", "gap"), rows)

    def _draw(self, ax: Any) -> None:
        self.operator.plot(ax)


def _fit_of(operator: Operator) -> dict[str, Any] | None:
    """What `info` says of a fit; None where it says less, or something else."""
    info = operator.info
    numbers = [info.get(name) for name in ("objective", "dual_gap", "n_passes")]
    whole = (
        isinstance(info.get("loss"), str)
        and isinstance(info.get("beta"), Real)
        and all(isinstance(of, Mapping) and of.keys() == operator.coef.keys() for of in numbers)
        and all(isinstance(value, Real) for of in numbers for value in of.values())  # type: ignore[union-attr]
    )
    return info if whole else None


class CheckpointReport(Report):
    """The tensors of a checkpoint.

    Attributes
    ----------
    path : str
        What it is called.
    checkpoint : Checkpoint
    sums : dict of str to Errors
        Of each floating tensor's values.

    See Also
    --------
    inspect : Returns one.
    RunReport : Several checkpoints of a run.

    Examples
    --------
    >>> import numpy as np, wfcast
    >>> found = wfcast.inspect({"fc.weight": np.array([[3.0, 4.0]]), "steps": np.array(7)})
    >>> found.to_dict()["parameters"], found.sums["fc.weight"].sum_true
    (3, 7.0)
    """

    def __init__(
        self, checkpoint: Checkpoint, path: str, n_threads: int, progress: Progress | None
    ) -> None:
        self.checkpoint, self.path = checkpoint, path
        self.sums: dict[str, Errors] = {}
        for name in floating(checkpoint):
            array = checkpoint.column(name).array
            self.sums[name] = Errors(**_core.error_sums(array, array, n_threads))
            if progress is not None:
                progress(name, checkpoint.tensors[name].size)

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON can hold it: None for NaN and infinity."""
        tensors = sorted(self.checkpoint.tensors.values(), key=lambda t: t.name)
        return {
            "path": self.path,
            "what": "checkpoint",
            "format": self.checkpoint.layout.format,
            "tensors": [
                {
                    "name": t.name,
                    "shape": list(t.shape),
                    "dtype": t.dtype,
                    "size": t.size,
                    "kind": kind_of(t.name) if t.name in self.sums else None,
                    "rms": finite(self.sums[t.name].rms_true) if t.name in self.sums else None,
                    "n_nonfinite": self.sums[t.name].n_nonfinite if t.name in self.sums else 0,
                }
                for t in tensors
            ],
            "parameters": sum(t.size for t in tensors),
            "tied": dict(self.checkpoint.tied),
            "metadata": dict(self.checkpoint.metadata),
        }

    def _parts(self) -> Iterable[str | Grid]:
        document = self.to_dict()
        rows = [
            (
                t["name"],
                t["kind"] or "-",
                t["dtype"],
                "x".join(map(str, t["shape"])) or "scalar",
                "-" if t["rms"] is None else f"{t['rms']:.4g}",
                str(t["n_nonfinite"]),
            )
            for t in document["tensors"]
        ]
        yield Grid(("tensor", "kind", "dtype", "shape", "rms", "not finite"), rows, 3)
        tied = f", and {len(document['tied'])} tied names" if document["tied"] else ""
        lines = [
            f"{self.path}: {document['format']}, {len(rows)} tensors, "
            f"{document['parameters']:,} parameters{tied}"
        ]
        for key, value in document["metadata"].items():
            lines.append(f"{key}: {value if len(value) <= LONGEST else value[:LONGEST] + ' ...'}")
        yield "\n".join(lines)

    def _draw(self, ax: Any) -> None:
        from .._plot import by_layer

        by_layer(ax, {name: sums.rms_true for name, sums in self.sums.items() if sums.n})
        ax.set_ylabel("rms of the weights")
        ax.set_title(os.path.basename(self.path) or self.path, loc="left")


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
        forecast and in both.
    samples : dict of (str, int) to list of float
        (Tensor name, position in C order) -> values at the steps; NaN where there is none.

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

    def __init__(
        self, run: dict[int, Checkpoint], path: str, n_threads: int, progress: Progress | None
    ) -> None:
        self.path, self.steps = path, tuple(run)
        if not run:
            raise CheckpointError(f"{path} holds no finished checkpoint")
        self.checkpoints: list[dict[str, Any]] = []
        first = next(iter(run.values()))
        self.samples: dict[tuple[str, int], list[float]] = {k: [] for k in _some_weights(first)}
        previous: Checkpoint | None = None
        for step, checkpoint in run.items():
            self.checkpoints.append(_summary(step, checkpoint, previous, n_threads, progress))
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
        }

    def _parts(self) -> Iterable[str | Grid]:
        header = ("step", "checkpoint", "format", "dtypes", "tensors", "parameters", "bytes")
        rows = [
            (
                str(c["step"]),
                c["name"] + ("" if c["alike"] else " (other tensors)"),
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


def _summary(
    step: int,
    checkpoint: Checkpoint,
    previous: Checkpoint | None,
    n_threads: int,
    progress: Progress | None,
) -> dict[str, Any]:
    tensors = checkpoint.tensors
    move = None
    if previous is not None:
        sums = Errors()
        for name, tensor in tensors.items():
            if is_forecast(tensor) and tensor.size and has(previous, tensor):
                pair = checkpoint.column(name).array, previous.column(name).array
                sums += Errors(**_core.error_sums(*pair, n_threads))
                if progress is not None:
                    progress(name, tensor.size)
        move = sums.relative
    return {
        "step": step,
        "name": _name(checkpoint),
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
        "move": move,
    }
