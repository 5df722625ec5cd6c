"""What an operator holds, and what is known of the fit that it is from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

from .._operator import Operator
from .._parameters import ALL
from .._plot import natural
from ._base import Grid, Report, finite

__all__ = ["FarcasterReport"]

LONGEST = 40
"""The most characters that are shown of a text in `Operator.info`."""


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
            "info": _plain_info(op),
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
                for name, coef in sorted(op.coef.items(), key=lambda pair: natural(pair[0]))
            },
            "fingerprint": op.fingerprint(),
        }

    def summary(self) -> str:
        """What made it, from which steps to which, and the largest gap, as text."""
        op, fit = self.operator, _fit_of(self.operator)
        shown = {key: fit[key] for key in ("loss", "beta")} if fit else _plain_info(op)
        how = "".join(f", {key} {_short(value)}" for key, value in shown.items())
        text = (
            f"{self.path}: {op.strategy}, from steps {', '.join(map(str, op.inputs))} to "
            f"{', '.join(map(str, op.targets))}; "
            f"by {'all' if ALL in op.coef else 'tensor'}{how}"
        )
        if not fit:
            return text
        name, gap = max(fit["dual_gap"].items(), key=lambda pair: pair[1])
        of = f" ({name})" if len(op.coef) > 1 else ""
        return f"{text}\n{len(op.coef)} fits, the largest certified gap {gap:.1e}{of}"

    def _rows(self) -> Iterable[dict[str, Any]]:
        op = self.operator
        for name in sorted(op.coef, key=natural):
            pairs = zip(op.targets, op.coef[name], op.intercept[name], strict=True)
            for step, coef, intercept in pairs:
                named = {f"w_{t}": float(c) for t, c in zip(op.inputs, coef, strict=True)}
                yield {"tensor": name, "step": step, **named, "intercept": float(intercept)}

    def _parts(self) -> Iterable[str | Grid]:
        op, fit = self.operator, _fit_of(self.operator)
        yield f"{self.summary()}\ncoefficients for step {op.targets[-1]}:"
        rows = [
            (
                name,
                *(f"{value:.5f}" for value in coef[-1]),
                f"{op.intercept[name][-1]:.3g}",
                f"{fit['dual_gap'][name]:.1e}" if fit else "-",
            )
            for name, coef in sorted(op.coef.items(), key=lambda pair: natural(pair[0]))
        ]
        yield Grid(("tensor", *(f"w_{step}" for step in op.inputs), "intercept", "gap"), rows)

    def _draw(self, ax: Any) -> None:
        self.operator.plot(ax)


def _plain_info(operator: Operator) -> dict[str, Any]:
    """What of `info` is text or a number."""
    return {
        key: finite(float(value)) if isinstance(value, float) else value
        for key, value in operator.info.items()
        if isinstance(key, str) and isinstance(value, str | int | float)
    }


def _short(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if text.isprintable() and len(text) <= LONGEST else f"{text[:LONGEST]!r}..."


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
