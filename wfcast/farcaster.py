"""The estimator: one linear operator in time, shared by all rows."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from . import _core
from ._apply import apply
from ._columns import Array, Columns, acquire, outputs, shape_text
from ._errors import DtypeError, RankWarning, WfcastError, warn
from ._fit import Segment, set_fitted, solve, solving
from ._parameters import PARAMETERS, check_parameters, threads

__all__ = ["Farcaster"]


class Farcaster(RegressorMixin, MultiOutputMixin, BaseEstimator):  # type: ignore[misc]
    r"""Forecast every row by one linear operator in time: ``yhat = x A + b``.

    A row is one scalar weight: its values at p observed checkpoints are ``x`` (p,), its values at
    m later ones ``y`` (m,). With N rows in S trajectories (training runs), the fit minimises ::

        F(A, b) = 1/(N m) sum_ij |yhat_ij - y_ij|
                  + beta/S sum_s max(0, sum_{i in s} |yhat_im - yhat_i,m-1| - c_s)

    which is convex and piecewise linear. It is solved to a certified relative gap of at most
    `tol`. With ``loss="squared_error"`` the objective is
    ``1/(N m) (sum_ij (yhat_ij - y_ij)^2 + alpha sum_jk A_kj^2)``.

    Parameters
    ----------
    loss : {"absolute_error", "squared_error"}, default="absolute_error"
        The loss of a residual.
    beta : float, default=0.0
        Weight of the update-norm hinge, in units of one over the weights' unit. Above 0, `fit`
        needs `groups` and `first_update`, at least two targets, and the absolute error.
    alpha : float, default=0.0
        Ridge penalty on the coefficients (not on the intercept), of the size that it has in
        scikit-learn's Ridge; squared error only.
    fit_intercept : bool, default=True
        Whether to fit b; False fixes it at 0.
    tol : float, default=1e-9
        The largest certified relative gap ``(F - F*) / F*`` that a fit may end with.
    n_threads : int or None, default=None
        Threads of the core; None takes all CPUs that this process may use. Results do not depend
        on it.

    Attributes
    ----------
    coef_ : ndarray of shape (m, p), or (p,) after a fit on a 1-D Y
        A transposed, float64: scikit-learn's orientation.
    intercept_ : ndarray of shape (m,), or float after a fit on a 1-D Y
        b.
    objective_ : float
        F at the solution.
    dual_gap_ : float
        A certified upper bound on ``(F - F*) / max(F*, R / tol)``, where F* is the least F and R
        what double precision resolves of F: 8 eps times the mean size of the terms of a residual.
    n_passes_ : int
        Full passes over the data that the fit took.
    n_features_in_ : int
        p.
    feature_names_in_ : ndarray of str
        The names of X's columns, where it was a DataFrame with names that are all strings.

    See Also
    --------
    ModelFarcaster : Fits whole models, tensor by tensor.
    wfcast.torch.fit_to_loss : Coefficients fitted to the loss instead of the weights.

    Notes
    -----
    X and Y are 2-D arrays of any strides, or sequences of equally shaped arrays ("columns"), one
    per checkpoint, of float64, float32, float16 or bfloat16 (ml_dtypes, or torch CPU tensors).
    Nothing is copied or cast: integers are refused, but for a 1-D Y, which is taken as
    scikit-learn's regressors take it.

    References
    ----------
    Shou, Bhattacharjya, Ding, Zhao, Li, Gao, "Less is More: Efficient Weight Farcasting with
    1-Layer Neural Network", DASFAA 2025, arXiv 2505.02714.

    Examples
    --------
    >>> import numpy as np, wfcast
    >>> w0, w1 = np.random.default_rng(0).normal(size=(2, 1000))
    >>> f = wfcast.Farcaster().fit([w0, w1], [w1 + 2 * (w1 - w0)])
    >>> np.round(f.coef_, 6)
    array([[-2.,  3.]])
    """

    n_features_in_: int
    feature_names_in_: Array
    coef_: Array
    intercept_: Any
    objective_: float
    dual_gap_: float
    n_passes_: int

    def __init__(
        self,
        loss: str = "absolute_error",
        *,
        beta: float = 0.0,
        alpha: float = 0.0,
        fit_intercept: bool = True,
        tol: float = 1e-9,
        n_threads: int | None = None,
    ) -> None:
        self.loss = loss
        self.beta = beta
        self.alpha = alpha
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.n_threads = n_threads

    def fit(self, X: Any, Y: Any, groups: Any = None, first_update: Any = None) -> Farcaster:
        """Find the A and b that minimise F.

        Parameters
        ----------
        X : array of shape (N, p), or sequence of p equally shaped arrays
            The weights at the input checkpoints.
        Y : array of shape (N, m) or (N,), or sequence of m arrays
            The weights at the target checkpoints, in time order.
        groups : int array of N ids, or None
            The trajectory of each row, 0..S-1. Only with beta above 0.
        first_update : float array of shape (S,), or None
            c_s: the L1 norm of each trajectory's first update, in the weights' unit. Only with
            beta above 0.

        Returns
        -------
        Farcaster
            Itself. A fit that fails or is interrupted leaves it as it was.

        Raises
        ------
        WfcastError
            A parameter, shape, dtype or value at fault.
        ConvergenceError
            The certified gap is above `tol`.
        MemoryError
            No memory for the statistics of the fit.
        """
        params = {name: getattr(self, name) for name in PARAMETERS}
        check_parameters(**params)
        if Y is None:
            raise WfcastError(
                "This Farcaster estimator requires y to be passed, but the target y is None."
            )
        x = acquire(X, "X")
        y = acquire(Y, "Y", flat=True)
        if x.shape != y.shape:
            hint = "" if y.matrix is None or len(x.shape) < 2 else "; pass N-d targets as a list"
            raise WfcastError(
                f"X has {shape_text(x)}, Y has {shape_text(y)}: expected the same{hint}"
            )
        p, m = len(x.columns), len(y.columns)
        ids, norms = None, None
        if self.beta > 0:
            ids, norms = _check_hinge(groups, first_update, x, m)
        segment = Segment(x.shape, lambda: (x.arrays, y.arrays), ids, x.labels + y.labels)
        names = _feature_names(X)
        result = solve(solving([segment], p, m, params=params, first_update=norms))
        if self.loss == "squared_error" and self.alpha == 0:
            _warn_rank(result["rank"], p, x)
        set_fitted(
            self,
            n_features_in_=p,
            coef_=result["coef"][0] if y.flat else result["coef"],
            intercept_=float(result["intercept"][0]) if y.flat else result["intercept"],
            objective_=float(result["objective"]),
            dual_gap_=float(result["dual_gap"]),
            n_passes_=int(result["n_passes"]),
            **({} if names is None else {"feature_names_in_": names}),
        )
        return self

    def predict(self, X: Any, out: Any = None, check_finite: bool = True) -> Any:
        """Forecast every row: ``yhat = x A + b``, in one sweep over the data.

        Parameters
        ----------
        X : array of shape (N, p), or sequence of p equally shaped arrays
        out : array of shape (N, m), or sequence of m arrays of the columns' shape, optional
            Where to write, in any of the four dtypes. An array may be one of the inputs itself;
            it may not overlap one in part. It may hold a partial result after an error, unless it
            is one of the inputs.
        check_finite : bool, default=True
            Whether NaN and infinity, in the inputs or by overflow of the output's dtype, are an
            error.

        Returns
        -------
        array of shape (N, m), or list of m arrays
            `out` where given. Else in X's form: for columns a list of arrays or tensors of their
            shape, with the dtype of the last of them; (N,) after a fit on a 1-D Y.

        Raises
        ------
        NotFittedError
            `fit` has not been called.
        WfcastError
            A shape, dtype or value at fault.
        """
        check_is_fitted(self)
        # a fit in another thread takes a new dict: what is read of one is of one fit
        fitted = vars(self)
        x = acquire(X, "X")
        if len(x.columns) != fitted["n_features_in_"]:
            raise WfcastError(
                f"X has {len(x.columns)} features, but {type(self).__name__} is "
                f"expecting {fitted['n_features_in_']} features as input"
            )
        try:
            validate_data(self, _named(X), reset=False, skip_check_array=True, ensure_2d=False)
        except ValueError as error:
            raise WfcastError(str(error)) from error
        flat = fitted["coef_"].ndim == 1
        coef = np.ascontiguousarray(np.atleast_2d(fitted["coef_"]), dtype=np.float64)
        intercept = np.atleast_1d(np.asarray(fitted["intercept_"], dtype=np.float64))
        result, y = outputs(x, len(coef), out, flat)
        apply(
            x.arrays,
            y,
            coef,
            intercept,
            check_finite=bool(check_finite),
            n_threads=self.n_threads,
            inputs=x.labels,
            outputs=[f"target {j}" for j in range(len(y))],
        )
        return result

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """R^2, averaged over the targets: ``1 - sum (y - yhat)^2 / sum (y - mean y)^2``.

        Parameters
        ----------
        X, y : as in `fit`
        sample_weight : array of shape (N,), optional
            Only where X and y are 2-D arrays.

        Returns
        -------
        float
            1 for a perfect forecast, 0 for that of the mean.
        """
        check_is_fitted(self)
        if _plain(X) and _plain(y):
            return float(super().score(X, y, sample_weight))
        if sample_weight is not None:
            raise WfcastError("sample_weight goes with 2-D arrays only, not with columns")
        truth = acquire(y, "Y", flat=True)
        forecast = acquire(self.predict(X), "the forecast", flat=True)
        if (forecast.shape, len(forecast.columns)) != (truth.shape, len(truth.columns)):
            raise WfcastError(
                f"Y has {len(truth.columns)} columns of shape {truth.shape}, "
                f"expected {len(forecast.columns)} of shape {forecast.shape}"
            )
        scores = [
            _r2(a, b, threads(self.n_threads))
            for a, b in zip(forecast.arrays, truth.arrays, strict=True)
        ]
        return float(np.mean(scores))


def _feature_names(X: Any) -> Array | None:
    """The names that scikit-learn would remember; looked up on a scratch estimator."""
    scratch = Farcaster()
    try:
        validate_data(scratch, _named(X), skip_check_array=True, ensure_2d=False)
    except TypeError as error:
        raise DtypeError(f"X: {error}") from error
    except ValueError as error:
        raise WfcastError(f"X: {error}") from error
    return getattr(scratch, "feature_names_in_", None)


def _named(X: Any) -> Any:
    """X where it can carry feature names, else nothing that scikit-learn would look into."""
    return X if hasattr(X, "columns") else None


def _plain(data: Any) -> bool:
    """Whether scikit-learn's own R^2 takes it as it is."""
    if isinstance(data, np.ndarray):
        return data.dtype.kind in "iu" or data.dtype in (np.float32, np.float64)
    if hasattr(data, "iloc"):
        return True
    return isinstance(data, list | tuple) and not any(
        isinstance(v, np.ndarray) or hasattr(v, "__array__") for v in data
    )


def _r2(forecast: Array, truth: Array, n_threads: int) -> float:
    sums = _core.error_sums(forecast, truth, n_threads)
    if sums["n_nonfinite"]:
        raise WfcastError("the forecast or Y contains NaN or infinity: there is no R^2")
    n, mean = sums["n"], sums["sum_true"] / sums["n"]
    total = _core.error_sums(truth, np.broadcast_to(mean, truth.shape), n_threads)["sum_sq"]
    if total <= n * (n * np.finfo(float).eps * mean) ** 2:  # constant, as far as the mean can tell
        return 1.0 if sums["sum_sq"] == 0 else 0.0
    return float(1 - sums["sum_sq"] / total)


def _check_hinge(
    groups: Any, first_update: Any, x: Columns, m: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """The trajectory of each row, in the columns' shape, and the c_s; all checked."""
    if m < 2:
        raise WfcastError(
            "beta is above 0 with a single target; the hinge needs the last two "
            "targets: pass beta=0"
        )
    for name, value, expected in (
        ("groups", groups, f"an array of {x.rows} trajectory ids 0..S-1"),
        ("first_update", first_update, "an array of the S trajectories' first update norms"),
    ):
        if value is None:
            raise WfcastError(f"beta is above 0 but {name} is missing, expected {expected}")
    norms = _plain_array(first_update, "first_update")
    if norms.ndim != 1 or norms.size == 0:
        raise WfcastError(
            f"first_update has shape {norms.shape}, expected (S,), one number per trajectory"
        )
    if norms.dtype.kind not in "fiu":
        raise DtypeError(f"first_update has dtype {norms.dtype}, expected float64")
    norms = np.ascontiguousarray(norms, dtype=np.float64)
    bad = np.flatnonzero(~(np.isfinite(norms) & (norms >= 0)))
    if bad.size:
        raise WfcastError(
            f"first_update[{bad[0]}] is {norms[bad[0]]}, expected a finite number not below 0"
        )
    ids = _plain_array(groups, "groups")
    if ids.dtype.kind not in "iu":
        raise DtypeError(f"groups has dtype {ids.dtype}, expected integers 0..S-1")
    if ids.shape not in ((x.rows,), x.shape):
        raise WfcastError(f"groups has shape {ids.shape}, expected ({x.rows},), one id per row")
    for row in (int(ids.argmin()), int(ids.argmax())):
        one = int(ids.flat[row])
        if not 0 <= one < norms.size:
            raise WfcastError(
                f"groups holds {one} (row {row}), expected ids 0..{norms.size - 1}: "
                f"first_update has {norms.size} trajectories"
            )
    return ids.astype(np.int64, copy=False).reshape(x.shape), norms


def _plain_array(value: Any, name: str) -> npt.NDArray[Any]:
    if isinstance(value, Integral):
        raise DtypeError(f"{name} is the number {value}, expected an array")
    try:
        return np.asarray(value)
    except (TypeError, ValueError) as error:
        raise DtypeError(f"{name} is no array: {error}") from error


def _warn_rank(rank: int, p: int, x: Columns) -> None:
    if rank < min(p, x.rows):
        warn(
            f"X has {p} columns of rank {rank} (after centring, with an intercept): "
            "the solution of minimum norm was taken",
            RankWarning,
        )
