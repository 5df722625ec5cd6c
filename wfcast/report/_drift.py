"""Whether a run leads anywhere: what its two halves have in common."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import reduce
from operator import add
from typing import Any

from .._apply import Progress
from .._errors import WfcastError, warn
from .._moves import Moves, middle_of, moves
from .._parameters import threads
from .._plot import natural
from .._runs import check_run, open_alike, steps
from ..checkpoint import Tensor
from ._base import Grid, Report, finite

__all__ = ["Drift", "drift", "leads_nowhere"]

LEAST_COSINE = 0.35
LEAST_STATES = 8
LEAST_MOVED = 0.75
SHORT = ("bfloat16", "float16")


class Drift(Report):
    """The cosine of the moves of a run's halves, by tensor and for all weights.

    Attributes
    ----------
    steps : tuple of int
    middle : int
        The step where the first half ends: that of the state nearest to the middle of the run, the
        earlier of two.
    total : dict of str to float
        Of all weights that are forecast:

        - `weights`, how many there are;
        - `cosine` of the move of the first half and the move of the second, NaN where one is 0;
        - `standard_error` of it, from leaving out one move between neighbours after the other; it
          is rather too large than too small, and NaN where a half has but one move;
        - `path_length`, the sum of ``|w_k - w_{k-1}|``, and `net_move`, ``|w_last - w_first|``;
        - `moved`, the share of weights that differ between the first and the last state, and
          `moved_between`, the same between neighbours, on average.
    tensors : dict of str to dict of str to float
        The same of each tensor, in the order of the layers.
    warnings : tuple of str
        What speaks against a line through this run.

    See Also
    --------
    drift : Returns one.
    extrapolate : What the run is good for where it drifts.

    Examples
    --------
    >>> import numpy as np, wfcast
    >>> rng = np.random.default_rng(0)
    >>> moves = 1 + rng.normal(size=(8, 1000))
    >>> run = {t: {"w": w} for t, w in enumerate(moves.cumsum(axis=0))}
    >>> found = wfcast.drift(run)
    >>> found.middle, round(found.total["cosine"], 2), round(found.total["standard_error"], 2)
    (3, 0.78, 0.01)
    """

    def __init__(self, observed: tuple[int, ...], tensors: Mapping[Tensor, Moves]) -> None:
        self.steps = observed
        self.middle = observed[middle_of(observed)]
        tensors = dict(sorted(tensors.items(), key=lambda pair: natural(pair[0].name)))
        self.total = _numbers(reduce(add, tensors.values()))
        self.tensors = {t.name: _numbers(found) for t, found in tensors.items()}
        rounded = [found for t, found in tensors.items() if t.dtype in SHORT and found.path_length]
        self.warnings = tuple(_against(self, reduce(add, rounded) if rounded else None))

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON can hold it: None for NaN and infinity."""
        return {
            "steps": list(self.steps),
            "middle": self.middle,
            **_plain(self.total),
            "tensors": [{"name": name, **_plain(found)} for name, found in self.tensors.items()],
            "warnings": list(self.warnings),
        }

    def _rows(self) -> Iterable[dict[str, Any]]:
        for name, found in self.tensors.items():
            yield {"tensor": name, **found}

    def _parts(self) -> Iterable[str | Grid]:
        header = ("tensor", "weights", "cosine", "std. error", "net move", "path", "moved")
        rows = [_row(name, found) for name, found in self.tensors.items()]
        yield Grid(header, [*rows, _row("all", self.total)])
        yield self.summary()

    def summary(self) -> str:
        """The cosine of all weights, and the warnings, as text."""
        return "\n".join(
            (
                f"drift: the moves up to step {self.middle} and from there on have the cosine "
                f"{self.total['cosine']:.2f} (standard error {self.total['standard_error']:.2f})",
                *(f"warning: {text}" for text in self.warnings),
            )
        )

    def _draw(self, ax: Any) -> None:
        from .._plot import by_layer

        by_layer(
            ax, {name: found["cosine"] for name, found in self.tensors.items()}, scale="linear"
        )
        ax.axhline(LEAST_COSINE, color="#999999", linewidth=0.8)
        ax.set_ylabel("cosine of the halves' moves")
        ax.set_title(
            f"Drift by layer, steps {self.steps[0]} to {self.steps[-1]}: "
            f"{self.total['cosine']:.2f} for all weights",
            loc="left",
        )


def _numbers(found: Moves) -> dict[str, float]:
    cosine, error = found.cosine()
    return {
        "weights": found.size,
        "cosine": cosine,
        "standard_error": error,
        "path_length": found.path_length,
        "net_move": found.net_move,
        "moved": found.moved,
        "moved_between": found.moved_between,
    }


def _plain(numbers: Mapping[str, float]) -> dict[str, float | None]:
    return {name: finite(value) for name, value in numbers.items()}


def _row(name: str, found: Mapping[str, float]) -> tuple[str, ...]:
    return (
        name,
        f"{found['weights']:,}",
        f"{found['cosine']:.3f}",
        f"{found['standard_error']:.3f}",
        f"{found['net_move']:.4g}",
        f"{found['path_length']:.4g}",
        f"{100 * found['moved']:.1f} %",
    )


def leads_nowhere(cosine: float) -> str:
    """What a cosine of the halves says against a line; empty where it says nothing."""
    if cosine >= LEAST_COSINE:
        return ""
    what = "have no cosine, as one is 0" if cosine != cosine else f"have the cosine {cosine:.2f}"
    return (
        f"lines through this run do not lead anywhere: the moves of its halves {what}, expected at "
        f"least {LEAST_COSINE}"
    )


def _against(found: Drift, rounded: Moves | None) -> Iterable[str]:
    """What speaks against a line; `rounded` are the moves of 16-bit weights that moved."""
    if wandering := leads_nowhere(found.total["cosine"]):
        yield wandering
    # what never moves, as the embeddings of words that do not occur, is no fault of rounding
    if rounded and rounded.moved_between < min(LEAST_MOVED, 0.9 * rounded.moved):
        yield (
            f"of the 16-bit weights {100 * rounded.moved_between:.0f} % moved between neighbouring "
            f"states, {100 * rounded.moved:.0f} % over the run: rounding hides small updates, so "
            "keep float32 checkpoints to forecast from"
        )
    if len(found.steps) < LEAST_STATES:
        yield (
            f"the run has {len(found.steps)} states, expected {LEAST_STATES} at least for a line "
            "to be good for something"
        )


def drift(
    run: Any,
    *,
    key: str | None = None,
    n_threads: int | None = None,
    progress: Progress | None = None,
) -> Drift:
    r"""Whether a run drifts: the cosine between the moves of its two halves.

    .. math:: \cos(w_{middle} - w_{first},\, w_{last} - w_{middle})

    A random walk has 0, up to its error; runs where lines paid had 0.4 to 0.8. It tells whether to
    `extrapolate` this run, and is no gauge of its learning rate: after a fifth of a run at the best
    rate it was 0.07 for one task and 0.40 for another.

    Parameters
    ----------
    run : {step: checkpoint} or path
        Three states at least, better eight; a path leads to a folder of checkpoints, of which
        forecasts do not count. A checkpoint is a mapping of names to arrays or tensors, a module,
        or a path. Each tensor is read once.
    key : str, optional
        As of `forecast_checkpoint`.
    n_threads : int or None
        None: all CPUs that this process may use.
    progress : callable, optional
        Called as ``progress(name, rows)`` after each tensor.

    Returns
    -------
    Drift

    Warns
    -----
    UserWarning
        A cosine below 0.35, where lines lead nowhere; 16-bit weights of which rounding hides
        updates; fewer than eight states. `Drift.warnings` has the same.

    Raises
    ------
    WfcastError
        Fewer than three states, NaN or infinity in one.
    CheckpointError
        Checkpoints that cannot be read or do not hold the same tensors.

    See Also
    --------
    extrapolate : What to do with a run that drifts.
    annealed : What to do with one that does not.
    inspect : What a run holds.

    Examples
    --------
    >>> import warnings
    >>> import numpy as np, wfcast
    >>> walk = np.random.default_rng(0).normal(size=(9, 1000)).cumsum(axis=0)
    >>> with warnings.catch_warnings(action="ignore"):
    ...     found = wfcast.drift({t: {"w": w} for t, w in enumerate(walk)})
    >>> print(found)
    tensor  weights  cosine  std. error  net move   path    moved
    ------  -------  ------  ----------  --------  -----  -------
    w         1,000   0.006       0.038     93.78  253.7  100.0 %
    all       1,000   0.006       0.038     93.78  253.7  100.0 %
    <BLANKLINE>
    drift: the moves up to step 4 and from there on have the cosine 0.01 (standard error 0.04)
    warning: lines through this run do not lead anywhere: ...
    """
    found = check_run(run, (), "the run", key)
    observed = steps(found, "the run")
    if len(observed) < 3:
        raise WfcastError(
            f"the run has {len(observed)} states, {observed}, expected three at least: two halves "
            "to compare"
        )
    states, tensors = open_alike(found, "the run")
    moved: dict[Tensor, Moves] = {}
    for tensor in tensors:
        moved[tensor] = moves(states, tensor.name, middle_of(observed), threads(n_threads))
        if progress is not None:
            progress(tensor.name, tensor.size)
    result = Drift(observed, moved)
    for text in result.warnings:
        warn(text)
    return result
