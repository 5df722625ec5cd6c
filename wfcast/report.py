"""Errors between two checkpoints, tensor by tensor, and added up over kinds of tensors.

The sums are the core's (one sweep over both tensors); here they only get names and are added.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from . import _core
from ._columns import FLOATS
from ._errors import CheckpointError
from ._fit import threads
from .checkpoint import Checkpoint, open_checkpoint

__all__ = [
    "KINDS",
    "Errors",
    "by_kind",
    "compare_checkpoints",
    "describe",
    "is_norm",
    "kind_of",
    "sums_of",
    "total",
]

KINDS = ("embedding", "attention", "feed-forward", "layer norm", "bias", "head", "other")
"""The kinds of tensors that a report tells apart, in the order in which it shows them."""

# The first match decides: the head's own layer norm and bias belong to the head, the bias of a
# layer norm to the layer norm.
_PATTERNS = tuple(
    (kind, re.compile(pattern, re.IGNORECASE))
    for kind, pattern in (
        ("head", r"(^|\.)(vocab_|lm_head|cls\.|classifier|pre_classifier|score\.|predictions\.)"),
        ("layer norm", r"norm|(^|[._])ln(_|\d)"),
        ("bias", r"(^|[._])bias$"),
        ("embedding", r"embed|(^|\.)w[tp]e\."),
        ("attention", r"attention|attn|(^|\.)[qkvo](_|_?proj|_lin)"),
        ("feed-forward", r"ffn|mlp|feed_?forward|intermediate|(^|\.)(fc|lin|dense)\d?\.|output"),
    )
)


def kind_of(name: str) -> str:
    """The kind of a tensor, guessed from the name that common Transformers give it."""
    return next((kind for kind, pattern in _PATTERNS if pattern.search(name)), "other")


def is_norm(name: str) -> bool:
    """Whether a tensor belongs to a normalization layer, the head's own included."""
    return dict(_PATTERNS)["layer norm"].search(name) is not None


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

    def asdict(self) -> dict[str, float]:
        """For JSON."""
        return {
            "n": self.n,
            "sum_abs": self.sum_abs,
            "mae": self.mae,
            "rmse": self.rmse,
            "max_abs": self.max_abs,
            "rms_true": self.rms_true,
            "n_nonfinite": self.n_nonfinite,
        }


def compare_checkpoints(
    predicted: Any,
    true: Any,
    *,
    n_threads: int | None = None,
    progress: Callable[[str, int], None] | None = None,
) -> dict[str, Errors]:
    """Errors of the floating tensors of two checkpoints, by name.

    Parameters
    ----------
    predicted, true : path, or mapping of names to arrays or tensors
    n_threads : int or None
        None: all CPUs that this process may use.
    progress : callable, optional
        Called as ``progress(name, rows)`` after each tensor.

    Returns
    -------
    dict of str to Errors
        In the order of the names in `true`.

    Raises
    ------
    CheckpointError
        A file cannot be read, or the two differ in the names or shapes of floating tensors.
    """
    a, b = (
        open_checkpoint(predicted, "the first checkpoint"),
        open_checkpoint(true, "the second checkpoint"),
    )
    shapes_a, shapes_b = ({n: c.tensors[n].shape for n in _floating(c)} for c in (a, b))
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
    return result


def sums_of(checkpoint: Checkpoint) -> dict[str, Errors]:
    """The sums over the weights of every floating tensor: its errors against itself, by name."""
    result = {}
    for name in _floating(checkpoint):
        array = checkpoint.column(name).array
        result[name] = Errors(**_core.error_sums(array, array))
    return result


def _floating(checkpoint: Checkpoint) -> list[str]:
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


def describe(farcaster: Any) -> dict[str, Any]:
    """A fitted or ready-made ModelFarcaster for JSON; what was not fitted is None."""

    def of(attribute: str, name: str) -> Any:
        values = getattr(farcaster, attribute, None)
        return None if values is None else values[name]

    return {
        "inputs": list(farcaster.inputs_),
        "targets": list(farcaster.targets_),
        "by": farcaster.by,
        "loss": farcaster.loss,
        "beta": farcaster.beta,
        "coefficients": {
            name: {
                "coef": coef.tolist(),
                "intercept": farcaster.intercept_[name].tolist(),
                "objective": of("objective_", name),
                "dual_gap": of("dual_gap_", name),
                "n_passes": of("n_passes_", name),
            }
            for name, coef in farcaster.coef_.items()
        },
        "fingerprint": farcaster.fingerprint(),
    }
