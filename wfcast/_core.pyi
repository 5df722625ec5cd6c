"""The compiled core. Columns are float64, float32, float16, or uint16 (bits of bfloat16) arrays."""

from collections.abc import Sequence
from typing import Any, TypedDict, final

import numpy as np
from numpy.typing import NDArray

Column = NDArray[Any]

class NonFinite(ValueError):
    """(kind, column, row) of the first value that is not finite; kind is "input" or "output"."""

class FitResult(TypedDict):
    coef: NDArray[np.float64]
    intercept: NDArray[np.float64]
    null: NDArray[np.float64]
    objective: float
    dual_gap: float
    n_passes: int
    rank: int
    converged: bool

class ErrorSums(TypedDict):
    n: int
    sum_abs: float
    sum_sq: float
    max_abs: float
    sum_true: float
    sum_true_sq: float
    n_nonfinite: int

class Config(TypedDict):
    isa: str
    available: list[str]
    disabled: str
    blas: str
    n_threads: int

@final
class Fit:
    def __new__(
        cls,
        p: int,
        m: int,
        *,
        n_rows: int,
        loss: str = "absolute_error",
        fit_intercept: bool = True,
        beta: float = 0.0,
        alpha: float = 0.0,
        tol: float = 1e-9,
        first_update: NDArray[np.float64] | None = None,
        n_threads: int = 0,
        n_here: int = -1,
    ) -> Fit: ...
    def needs_pass(self) -> bool: ...
    def accumulate(
        self,
        x: Sequence[Column],
        y: Sequence[Column],
        group: int | NDArray[np.int64] | None = None,
        start: int = -1,
        /,
    ) -> None: ...
    def export(self) -> bytes: ...
    def absorb(self, messages: Sequence[bytes], /) -> None: ...
    def advance(self) -> None: ...
    def result(self) -> FitResult: ...

def apply(
    x: Sequence[Column],
    y: Sequence[Column],
    coef: NDArray[np.float64],
    intercept: NDArray[np.float64],
    check_finite: bool = True,
    n_threads: int = 0,
    moves: bool = False,
    /,
) -> tuple[float, float] | None: ...
def blend(
    tensors: Sequence[Column],
    averages: Sequence[Sequence[Column]],
    c: NDArray[np.float64],
    n_threads: int = 0,
    /,
) -> int:
    """``average_j += c_j (w - average_j)`` in place: k averages of each tensor, in one sweep.

    Dtypes may differ; computed in float32, or in float64 where a tensor or one of its averages is.
    c_j = 1 sets an average to w whatever it held. The first tensor that holds NaN or infinity, or
    -1; its averages then hold them, too. Averages of different tensors must not share memory.
    """

def error_sums(pred: Column, true: Column, n_threads: int = 0, /) -> ErrorSums: ...
def update_norm(a: Column, b: Column, n_threads: int = 0, /) -> float: ...
def gram(
    x: Sequence[Column],
    y: Sequence[Column] | None = None,
    n_threads: int = 0,
    less: Column | None = None,
    /,
) -> NDArray[np.float64]:
    """Sums of products of the columns x with the columns y, or with themselves; float64.

    All less the column `less` where it is given. The products of long columns without float64 with
    themselves are then of float32: off by at most 3e-6 of the norms' product, by 1e-7 as a rule.
    """

def halves(x: Sequence[Column], middle: int, n_threads: int = 0, /) -> NDArray[np.float64]: ...
def triad(
    out: NDArray[np.float32],
    a: NDArray[np.float32],
    b: NDArray[np.float32],
    scalar: float,
    n_threads: int = 0,
    /,
) -> None: ...
def config() -> Config: ...
def set_isa(name: str, /) -> None: ...
