"""Errors between two checkpoints.

Errors are sums that the core takes in one sweep over both tensors; here they only get names and are
added up over kinds of tensors.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .. import _core
from .._apply import Progress
from .._columns import FLOATS
from .._errors import CheckpointError
from .._kinds import KINDS, kind_of
from .._parameters import threads
from .._plot import natural
from ..checkpoint import Checkpoint, open_checkpoint
from ._base import Grid, Report, finite

__all__ = ["Comparison", "Errors", "by_kind", "compare_checkpoints", "floating", "total"]


@dataclass(frozen=True, slots=True)
class Errors:
    """Sums over n weights of a prediction p and the truth t; they add up over tensors.

    Attributes
    ----------
    n : int
    sum_abs, sum_sq, max_abs : float
        Of p - t.
    sum_true, sum_true_sq : float
        Of t.
    n_nonfinite : int
        Pairs with NaN or infinity, which the sums leave out.

    See Also
    --------
    Comparison : Holds one for each tensor.

    Examples
    --------
    >>> import wfcast
    >>> both = wfcast.Errors(n=2, sum_abs=3.0) + wfcast.Errors(n=4, sum_abs=1.5)
    >>> both.n, both.mae
    (6, 0.75)
    """

    n: int = 0
    sum_abs: float = 0.0
    sum_sq: float = 0.0
    max_abs: float = 0.0
    sum_true: float = 0.0
    sum_true_sq: float = 0.0
    n_nonfinite: int = 0

    def __add__(self, other: Errors) -> Errors:
        return Errors(
            self.n + other.n,
            self.sum_abs + other.sum_abs,
            self.sum_sq + other.sum_sq,
            max(self.max_abs, other.max_abs),
            self.sum_true + other.sum_true,
            self.sum_true_sq + other.sum_true_sq,
            self.n_nonfinite + other.n_nonfinite,
        )

    @property
    def mae(self) -> float:
        """``sum |p - t| / n``; NaN where n is 0."""
        return self.sum_abs / self.n if self.n else math.nan

    @property
    def rmse(self) -> float:
        """``sqrt(sum (p - t)^2 / n)``; NaN where n is 0."""
        return math.sqrt(self.sum_sq / self.n) if self.n else math.nan

    @property
    def rms_true(self) -> float:
        """``sqrt(sum t^2 / n)``; NaN where n is 0."""
        return math.sqrt(self.sum_true_sq / self.n) if self.n else math.nan

    @property
    def relative(self) -> float:
        """``|p - t| / |t|`` (L2 norms); NaN where both are 0."""
        if self.sum_true_sq:
            return math.sqrt(self.sum_sq / self.sum_true_sq)
        return math.inf if self.sum_sq else math.nan

    def to_dict(self) -> dict[str, float | None]:
        """For JSON."""
        return {
            "n": self.n,
            "sum_abs": finite(self.sum_abs),
            "mae": finite(self.mae),
            "rmse": finite(self.rmse),
            "max_abs": finite(self.max_abs),
            "rms_true": finite(self.rms_true),
            "relative": finite(self.relative),
            "n_nonfinite": self.n_nonfinite,
        }


class Comparison(Report, Mapping[str, Errors]):
    """The errors of a prediction against the truth: tensor name -> `Errors`.

    Attributes
    ----------
    predicted, true : str
        What is compared with what.
    tensors : dict of str to Errors

    See Also
    --------
    compare_checkpoints : Returns one.
    Evaluation : Comparisons by step and method.

    Examples
    --------
    >>> import numpy as np, wfcast
    >>> forecast = {"head.bias": np.array([3.0, 0.0]), "fc.weight": np.array([[1.0, 1.0]])}
    >>> true = {"head.bias": np.array([3.0, 4.0]), "fc.weight": np.array([[1.0, 1.0]])}
    >>> found = wfcast.compare_checkpoints(forecast, true)
    >>> {name: errors.mae for name, errors in found.items()}
    {'fc.weight': 0.0, 'head.bias': 2.0}
    >>> found.total.n, found.total.max_abs
    (4, 4.0)
    >>> list(found.kinds)
    ['feed-forward', 'bias']
    """

    def __init__(self, tensors: dict[str, Errors], predicted: str, true: str) -> None:
        self.tensors, self.predicted, self.true = tensors, predicted, true

    def __getitem__(self, name: str) -> Errors:
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    @property
    def kinds(self) -> dict[str, Errors]:
        """Added up over the tensors of each kind."""
        return by_kind(self.tensors)

    @property
    def total(self) -> Errors:
        """Added up over all tensors."""
        return total(self.tensors.values())

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON can hold it: None for NaN and infinity."""
        return {
            "predicted": self.predicted,
            "true": self.true,
            "total": self.total.to_dict(),
            "kinds": {name: errors.to_dict() for name, errors in self.kinds.items()},
            "tensors": {name: errors.to_dict() for name, errors in self.tensors.items()},
        }

    def _rows(self) -> Iterable[dict[str, Any]]:
        for name, errors in self.tensors.items():
            yield {"tensor": name, "kind": kind_of(name), **errors.to_dict()}

    def _parts(self) -> Iterable[str | Grid]:
        def row(name: str, e: Errors) -> tuple[str, ...]:
            numbers = (e.mae, e.rmse, e.max_abs, e.rms_true, e.relative)
            return name, f"{e.n:,}", *(f"{x:.4g}" for x in numbers), str(e.n_nonfinite)

        header = ("weights", "MAE", "RMSE", "largest", "rms of B", "|A-B| / |B|", "not finite")
        yield f"A: {self.predicted}\nB: {self.true}"
        yield Grid(("tensor", *header), [row(n, e) for n, e in self.tensors.items()])
        yield Grid(
            ("kind", *header), [row(n, e) for n, e in (*self.kinds.items(), ("all", self.total))]
        )

    def _draw(self, ax: Any) -> None:
        from .._plot import by_layer

        by_layer(ax, {n: e.relative for n, e in self.tensors.items()})
        ax.set_ylabel("error: |A - B| / |B|")
        names = (os.path.basename(text) or text for text in (self.predicted, self.true))
        ax.set_title(" against ".join(names), loc="left")


def compare_checkpoints(
    predicted: Any,
    true: Any,
    *,
    key: str | None = None,
    n_threads: int | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Errors of the floating tensors of two checkpoints.

    Parameters
    ----------
    predicted, true : path, mapping of names to arrays or tensors, or module
        Of any format.
    key : str, optional
        As of `forecast_checkpoint`; where one of the two holds no several sets, of the other.
    n_threads : int or None
        None: all CPUs that this process may use.
    progress : callable, optional
        Called as ``progress(name, rows)`` after each tensor.

    Returns
    -------
    Comparison
        In the order of the layers.

    Raises
    ------
    CheckpointError
        A file cannot be read, or the two differ in the names or shapes of floating tensors.

    See Also
    --------
    Comparison : What is returned.
    evaluate : A forecast against what really came.

    Examples
    --------
    >>> import numpy as np, wfcast
    >>> forecast, true = {"w": np.array([1.0, 2.0])}, {"w": np.array([1.0, 4.0])}
    >>> found = wfcast.compare_checkpoints(forecast, true)
    >>> found["w"].mae, found["w"].max_abs
    (1.0, 2.0)
    """
    a, b = (
        open_checkpoint(source, f"the {which} checkpoint", key, needed=False)
        for source, which in ((predicted, "first"), (true, "second"))
    )
    shapes_a, shapes_b = ({n: c.tensors[n].shape for n in floating(c)} for c in (a, b))
    for one, other, where in ((shapes_a, shapes_b, a.what), (shapes_b, shapes_a, b.what)):
        only = sorted(one.keys() - other.keys(), key=natural)
        if only:
            raise CheckpointError(
                f"{len(only)} floating tensors, {only[0]!r} first, are only in {where}"
            )
    for name, shape in shapes_b.items():
        if shapes_a[name] != shape:
            raise CheckpointError(
                f"tensor {name!r} is {list(shapes_a[name])} in {a.what}, {list(shape)} in {b.what}"
            )
    if not shapes_b:
        raise CheckpointError(f"{b.what} holds no floating tensors to compare")
    result = {}
    for name in sorted(shapes_b, key=natural):
        pair = a.column(name).array, b.column(name).array
        result[name] = Errors(**_core.error_sums(*pair, threads(n_threads)))
        if progress is not None:
            progress(name, result[name].n)
    return Comparison(result, _text(predicted, a), _text(true, b))


def _text(source: Any, checkpoint: Checkpoint) -> str:
    return os.fspath(source) if isinstance(source, str | os.PathLike) else checkpoint.what


def floating(checkpoint: Checkpoint) -> list[str]:
    """The names of its floating tensors, buffers included."""
    return [n for n, t in checkpoint.tensors.items() if t.dtype in FLOATS]


def total(errors: Iterable[Errors]) -> Errors:
    """The sum of all."""
    return sum(errors, Errors())


def by_kind(errors: Mapping[str, Errors]) -> dict[str, Errors]:
    """Added up over the tensors of each kind that occurs, in the order of `KINDS`."""
    sums: dict[str, Errors] = {}
    for name, one in errors.items():
        kind = kind_of(name)
        sums[kind] = sums.get(kind, Errors()) + one
    return {kind: sums[kind] for kind in KINDS if kind in sums}
