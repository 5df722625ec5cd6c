"""The sweep ``y = x A + b``: the call into the core, with its errors in the user's words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import _core
from ._columns import Array, Label, row_text, value_at
from ._errors import WfcastError
from ._parameters import threads

__all__ = ["Progress", "apply", "convert", "nonfinite_error"]

Progress = Callable[[str, int], None]
"""Called as progress(name, rows) after each slice: the tensor ("*" for all), rows just read."""


def nonfinite_error(label: Label, value: float, shape: tuple[int, ...], row: int) -> WfcastError:
    """NaN or infinity at a row of the column that `label` names."""
    given = f"Input {label.argument}" if label.argument else "Input"
    return WfcastError(
        f"{given} contains NaN or infinity: {label.column}, {row_text(shape, row)} (value {value})"
    )


def apply(
    x: list[Array],
    y: list[Array],
    coef: Array,
    intercept: Array,
    *,
    check_finite: bool,
    n_threads: Any,
    inputs: Sequence[Label],
    outputs: Sequence[str],
    shape: tuple[int, ...] | None = None,
    start: int = 0,
    moves: Array | None = None,
) -> None:
    """``y_j = sum_k coef[j, k] x_k + intercept[j]``, with errors that name the column.

    Parameters
    ----------
    x, y : list of ndarray
        p columns to read and m to write.
    coef : (m, p) float64 array
    intercept : (m,) float64 array
    inputs : sequence of Label
    outputs : sequence of str
        What a message calls each column.
    shape, start
        Where the columns are a block of larger ones: the shape of those, and the C-order position
        of the block's first element.
    moves : (2,) float64 array, optional
        Of one output: ``sum (y - x_last)^2`` and ``sum x_last^2`` are added to it, of rows where
        y - x_last is finite.
    """
    try:
        sums = _core.apply(
            x, y, coef, intercept, check_finite, threads(n_threads), moves is not None
        )
    except _core.NonFinite as error:
        side, k, row = error.args
        whole = x[0].shape if shape is None else shape
        if side == "input":
            raise nonfinite_error(inputs[k], value_at(x[k], row), whole, start + row) from None
        raise _overflow(outputs[k], y[k].dtype.name, whole, start + row) from None
    except ValueError as error:
        raise WfcastError(str(error)) from error
    if moves is not None and sums is not None:
        moves += sums


def convert(
    x: Array,
    y: Array,
    check_finite: bool,
    n_threads: Any,
    *,
    shape: tuple[int, ...],
    start: int = 0,
    input: str = "",
    output: str = "",
) -> None:
    """``y = x``, widened or rounded once to the dtype of y; the rest is as of `apply`."""
    apply(
        [x],
        [y],
        np.ones((1, 1)),
        np.zeros(1),
        check_finite=check_finite,
        n_threads=n_threads,
        inputs=[Label("", input)],
        outputs=[output],
        shape=shape,
        start=start,
    )


_LARGEST = {
    "float16": 65504.0,
    "uint16": 3.3895313892515355e38,
    "float32": 3.4028234663852886e38,
    "float64": 1.7976931348623157e308,
}


def _overflow(label: str, dtype: str, shape: tuple[int, ...], row: int) -> WfcastError:
    name = "bfloat16" if dtype == "uint16" else dtype
    return WfcastError(
        f"the forecast overflows {name} in {label}, {row_text(shape, row)}: "
        f"{name} ends at {_LARGEST[dtype]:.6g}; give inputs or an `out` of a wider "
        "dtype"
    )
