"""What results have in common, and errors between two checkpoints.

A `Report` is read in a terminal (``print``), in a notebook (HTML, `plot`) and by programs
(`to_dict`). Errors are sums that the core takes in one sweep over both tensors; here they only get
names and are added up over kinds of tensors.
"""

from __future__ import annotations

import html
import math
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from . import _core
from ._columns import FLOATS
from ._errors import CheckpointError
from ._fit import Progress, threads
from ._terminal import printable, table
from .checkpoint import Checkpoint, open_checkpoint

__all__ = [
    "KINDS",
    "Comparison",
    "Errors",
    "Grid",
    "Report",
    "by_kind",
    "compare_checkpoints",
    "finite",
    "is_norm",
    "kind_of",
    "total",
]


# ---- reports ------------------------------------------------------------------------------------


class Grid(NamedTuple):
    """A table: the first `left` columns hold text, the others numbers."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1


class Report(ABC):
    """A result: ``print`` shows it in a terminal, a notebook as HTML; `plot` draws it."""

    __slots__ = ()

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON can hold it: None for NaN and infinity."""

    @abstractmethod
    def _parts(self) -> Iterable[str | Grid]:
        """What is shown, one below the other."""

    @abstractmethod
    def _draw(self, ax: Any) -> None: ...

    def plot(self, ax: Any = None) -> Any:
        """Draw the report; needs Matplotlib (``wfcast[plot]``).

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Where; a new figure by default.

        Returns
        -------
        matplotlib.axes.Axes
        """
        from ._plot import axes

        ax = axes(ax)
        self._draw(ax)
        return ax

    def __str__(self) -> str:
        return "\n\n".join(
            "\n".join(map(printable, part.split("\n")))
            if isinstance(part, str)
            else table(part.header, part.rows, left=part.left)
            for part in self._parts()
        )

    def _repr_html_(self) -> str:
        shown = (
            f"<p>{html.escape(part).replace(chr(10), '<br>')}</p>"
            if isinstance(part, str)
            else _html_table(part)
            for part in self._parts()
        )
        return f"<div>{''.join(shown)}</div>"


def _html_table(grid: Grid) -> str:
    def row(tag: str, cells: Sequence[str]) -> str:
        aligned = (
            f'<{tag} style="text-align:{"left" if k < grid.left else "right"}">'
            f"{html.escape(cell)}</{tag}>"
            for k, cell in enumerate(cells)
        )
        return f"<tr>{''.join(aligned)}</tr>"

    body = "".join(row("td", cells) for cells in grid.rows)
    return (
        '<div style="max-height:30em;overflow:auto"><table>'
        f"<thead>{row('th', grid.header)}</thead><tbody>{body}</tbody></table></div>"
    )


def finite(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if math.isfinite(value) else None


# ---- kinds of tensors ---------------------------------------------------------------------------

KINDS = ("embedding", "attention", "feed-forward", "layer norm", "bias", "head", "other")
"""The kinds of tensors that a report tells apart, in the order in which it shows them."""

# The first match decides: the head's own layer norm and bias belong to the head, the bias of a
# layer norm to the layer norm.
_PATTERNS = tuple(
    (kind, re.compile(pattern, re.IGNORECASE))
    for kind, pattern in (
        ("head", r"(^|\.)(vocab_|lm_head|cls\.|classifier|pre_classifier|score\.|predictions\.)"),
        ("layer norm", r"norm|(^|[._])(ln|bn)(_|\d|\.)"),
        ("bias", r"(^|[._])bias$"),
        ("embedding", r"embed|(^|\.)w[tp]e\."),
        ("attention", r"attention|attn|(^|\.)[qkvo](_|_?proj|_lin)"),
        ("feed-forward", r"ffn|mlp|feed_?forward|intermediate|(^|\.)(fc|lin|dense)\d?\.|output"),
    )
)


def kind_of(name: str) -> str:
    """The kind of a tensor, guessed from the name that common Transformers give it."""
    return next((kind for kind, pattern in _PATTERNS if pattern.search(name)), "other")


def is_norm(name: str, names: Container[str]) -> bool:
    """Whether a tensor belongs to a normalization layer, the head's own included.

    It is told by its name, or among `names`, all those of the model, by statistics that stand
    beside it.
    """
    beside = name.rpartition(".")[0] + ".running_var"
    return dict(_PATTERNS)["layer norm"].search(name) is not None or beside in names


# ---- errors -------------------------------------------------------------------------------------


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
        from ._plot import by_layer

        by_layer(ax, {n: e.relative for n, e in self.tensors.items()})
        ax.set_ylabel("error: |A - B| / |B|")
        names = (os.path.basename(text) or text for text in (self.predicted, self.true))
        ax.set_title(" against ".join(names), loc="left")


def compare_checkpoints(
    predicted: Any,
    true: Any,
    *,
    n_threads: int | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Errors of the floating tensors of two checkpoints.

    Parameters
    ----------
    predicted, true : path, mapping of names to arrays or tensors, or module
        Of any format.
    n_threads : int or None
        None: all CPUs that this process may use.
    progress : callable, optional
        Called as ``progress(name, rows)`` after each tensor.

    Returns
    -------
    Comparison
        In the order of the names.

    Raises
    ------
    CheckpointError
        A file cannot be read, or the two differ in the names or shapes of floating tensors.
    """
    a, b = (
        open_checkpoint(predicted, "the first checkpoint"),
        open_checkpoint(true, "the second checkpoint"),
    )
    shapes_a, shapes_b = ({n: c.tensors[n].shape for n in floating(c)} for c in (a, b))
    for one, other, where in ((shapes_a, shapes_b, a.what), (shapes_b, shapes_a, b.what)):
        only = sorted(one.keys() - other.keys())
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
    for name in sorted(shapes_b):
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
