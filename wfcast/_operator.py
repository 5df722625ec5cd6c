"""The linear operator in time: what every strategy makes, and every forecast applies."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _persist, _plot
from ._columns import new_like
from ._errors import DtypeError, WfcastError
from ._parameters import ALL, threads
from ._plan import Plan, plan
from ._runs import steps

__all__ = ["Learner", "Operator", "load", "operator_of"]

Vector = npt.NDArray[np.float64]

SHOWN = 6
"""The most steps that a repr shows."""


class Operator:
    r"""A forecast that is linear in time: ``w_target_j = sum_k A_jk w_input_k + b_j``.

    Every weight of a tensor goes through the same small matrix A and vector b. Where they come from
    is the strategy's affair: `linear_trend`, `persistence` and `average` write them down from the
    steps alone, `ModelFarcaster` learns them from earlier runs, `wfcast.torch.fit_to_loss` from the
    loss. Any other is made by hand, as below.

    Parameters
    ----------
    inputs : iterable of int
        The p steps that a forecast starts from, increasing.
    targets : iterable of int
        The m steps that it gives, increasing.
    coef : array of shape (m, p), or dict of str to such an array
        A: one for all tensors, or one by tensor name (``"*"`` stands for all).
    intercept : array of shape (m,), or dict of str to such an array, optional
        b, by the same names; zeros by default.
    strategy : str, default="custom"
        What made it.
    tensors : dict of str to (shape, dtype), optional
        The tensors that a fit saw; a forecast of others warns.
    base : str, optional
        The model that the fitted checkpoints adapt.
    info : dict, optional
        What else is known of how it was made, as JSON can hold it.
    n_threads : int, optional
        None: all CPUs that this process may use.

    Attributes
    ----------
    inputs, targets : tuple of int
    coef : dict of str to ndarray of shape (m, p)
        By tensor name; the single key ``"*"`` serves every tensor.
    intercept : dict of str to ndarray of shape (m,)
    strategy, tensors, base, info, n_threads
        As given. Of a fit, `info` holds its parameters, and objective, dual_gap and n_passes by the
        names of `coef`.

    Raises
    ------
    WfcastError
        Steps that do not increase, coefficients of another shape or that are not finite.

    See Also
    --------
    wfcast.persistence, wfcast.linear_trend, wfcast.average : operators from the steps alone.
    wfcast.ModelFarcaster : learns one from earlier runs.
    wfcast.forecast_checkpoint : applies one from disk to disk.
    wfcast.load : reads one from a file.

    Examples
    --------
    The weights of step 20 and half of what they moved since step 10, on top:

    >>> import numpy as np, wfcast
    >>> ahead = wfcast.Operator((10, 20), (25,), [[-0.5, 1.5]])
    >>> ahead
    Operator(strategy='custom', inputs=(10, 20), targets=(25,))
    >>> ahead.predict({10: {"w": np.array([1.0, 2.0])}, 20: {"w": np.array([3.0, 2.0])}})
    {'w': array([4., 2.])}
    """

    def __init__(
        self,
        inputs: Iterable[int],
        targets: Iterable[int],
        coef: Any,
        intercept: Any = None,
        *,
        strategy: str = "custom",
        tensors: Mapping[str, tuple[tuple[int, ...], str]] | None = None,
        base: str | None = None,
        info: Mapping[str, Any] | None = None,
        n_threads: int | None = None,
    ) -> None:
        self.inputs = steps(inputs, "inputs")
        self.targets = steps(targets, "targets")
        m, p = len(self.targets), len(self.inputs)
        self.coef = _by_name(coef, "coef", (m, p))
        if intercept is None:
            intercept = {name: np.zeros(m) for name in self.coef}
        self.intercept = _by_name(intercept, "intercept", (m,))
        if self.intercept.keys() != self.coef.keys():
            raise WfcastError(
                f"intercept has the names {sorted(self.intercept)}, coef has {sorted(self.coef)}: "
                "expected the same"
            )
        threads(n_threads)
        for name, value in (("strategy", strategy), ("base", base or "")):
            if not isinstance(value, str):
                raise DtypeError(f"{name} is a {type(value).__name__}, expected text")
        self.strategy = strategy
        self.tensors = dict(tensors or {})
        self.base = base
        self.info = dict(info or {})
        self.n_threads = n_threads

    def __repr__(self) -> str:
        by = "" if ALL in self.coef else f", tensors={len(self.coef)}"
        return (
            f"Operator(strategy={self.strategy!r}, inputs={_short(self.inputs)}, "
            f"targets={_short(self.targets)}{by})"
        )

    # ---- looking ------------------------------------------------------------------------------

    def knows(self, name: str) -> bool:
        """Whether there are coefficients for a tensor of that name."""
        return ALL in self.coef or name in self.coef

    def coefficients(self, name: str) -> tuple[Vector, Vector]:
        """A (m, p) and b (m,) of a tensor."""
        key = ALL if ALL in self.coef else name
        return self.coef[key], self.intercept[key]

    def horizon(self, step: int | None = None) -> int:
        """The index of the target `step`, which may be left out where there is but one.

        Raises
        ------
        WfcastError
            `step` is no target.
        """
        if step is None and len(self.targets) == 1:
            return 0
        if step not in self.targets:
            given = "no step is given" if step is None else f"step is {step!r}"
            raise WfcastError(
                f"{given}, expected one of the targets {', '.join(map(str, self.targets))}"
            )
        return self.targets.index(step)

    def fingerprint(self) -> str:
        """SHA-256 over steps, names and coefficients: the same for the same operator."""
        digest = hashlib.sha256(repr((self.inputs, self.targets)).encode())
        for name in sorted(self.coef):
            digest.update(name.encode(errors="surrogatepass") + b"\0")
            for array in (self.coef[name], self.intercept[name]):
                digest.update(np.ascontiguousarray(array, dtype="<f8").tobytes())
        return digest.hexdigest()

    # ---- forecasting --------------------------------------------------------------------------

    def predict(
        self,
        run: Any,
        step: int | None = None,
        check_finite: bool = True,
        *,
        key: str | None = None,
    ) -> dict[str, Any]:
        """The weights at `step`, from the weights at the input steps.

        LoRA's factors A and B are tensors as any others here; by their product they are forecast
        from file to file (`forecast_checkpoint`).

        Parameters
        ----------
        run : {step: checkpoint}
            Holds the inputs; other steps are ignored. A checkpoint is a mapping of names to arrays
            or tensors, a module, or a path.
        step : int, optional
            One of the targets; may be left out where there is but one.
        check_finite : bool, default=True
            Whether NaN and infinity, in the inputs or by overflow, are an error.
        key : str, optional
            As of `forecast_checkpoint`.

        Returns
        -------
        dict of str to array or tensor
            With the names, shapes, dtypes and kind (NumPy or torch) of the last input. Integer
            and bool tensors are copies of the last input's.

        Raises
        ------
        CheckpointError
            A step or a tensor is missing, or checkpoints differ.
        WfcastError
            A step that is no target, or a value at fault; tensor and step are named.
        """
        made = self._plan(run, step, key=key)
        forecast = {t.name for t in made.forecast}
        result: dict[str, Any] = {}
        for name in made.latest.tensors:
            if name not in forecast:
                result[name] = made.latest.value(name)
                continue
            columns = [c.column(name) for c in made.inputs.values()]
            fresh = new_like(columns[-1], made.latest.label(name))
            made.apply(name, [c.array for c in columns], fresh.array, check_finite)
            result[name] = fresh.owner
        result.update({alias: result[name] for alias, name in made.latest.tied.items()})
        return result

    def applied(self, model: Any, run: Any, step: int | None = None) -> AbstractContextManager[Any]:
        """A context in which a torch model has the forecast weights.

        ::

            with operator.applied(model, states):
                evaluate(model)
                model.save_pretrained("forecast")

        Parameters
        ----------
        model : torch.nn.Module
            Its parameters are written in place, and get their own values back, to the bit, however
            the block ends. Buffers, and parameters without coefficients, stay as they are.
        run : {step: state_dict, module or path}
            Holds the inputs; other steps are ignored.
        step : int, optional
            One of the targets; may be left out where there is but one.

        Raises
        ------
        CheckpointError
            A step or a parameter is missing, or a shape differs.
        WfcastError
            A step that is no target, or a value at fault.
        """
        from ._live.span import applied  # needs torch

        j = self.horizon(step)

        def coefficients(name: str) -> tuple[Vector, float]:
            coef, intercept = self.coefficients(name)
            return coef[j], float(intercept[j])

        names = None if ALL in self.coef else self.coef.keys()
        return applied(model, run, self.inputs, names, coefficients)

    def _plan(
        self,
        run: Any,
        step: int | None = None,
        *,
        partial: bool = False,
        key: str | None = None,
    ) -> Plan:
        """The inputs opened and checked, nothing computed: what `forecast_checkpoint` goes by."""
        return plan(self, run, step, partial, key)

    # ---- keeping and showing ------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to a safetensors file that `wfcast.load` reads; it appears complete or not at all.

        Raises
        ------
        CheckpointError
            The folder is not there.
        """
        _persist.save(self, path)

    def plot(self, ax: Any = None) -> Any:
        """Draw the coefficients of the last target by layer; needs Matplotlib (the extra "plot").

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Where; a new figure by default.

        Returns
        -------
        matplotlib.axes.Axes
        """
        ax = _plot.axes(ax)
        last = {name: [float(a) for a in coef[-1]] for name, coef in self.coef.items()}
        _plot.by_input(ax, last, self.inputs)
        ax.set_ylabel(f"coefficient for step {self.targets[-1]}")
        ax.set_title("Coefficients by layer", loc="left")
        return ax


class Learner(ABC):
    """An estimator that learns an operator."""

    operator_: Operator

    @abstractmethod
    def _learned(self) -> Operator:
        """What it has learned, or a NotFittedError."""


def load(path: str | os.PathLike[str]) -> Operator:
    """Read an operator that `Operator.save` or `ModelFarcaster.save` wrote.

    Parameters
    ----------
    path : path
        A safetensors file. Nothing in it is executed.

    Returns
    -------
    Operator
        As it was saved. Files of wfcast 0.1 do not say which strategy they are of: with the numbers
        of a fit it is taken for "ModelFarcaster", else for "custom".

    Raises
    ------
    CheckpointError
        No such file, no forecaster in it, one of a later format, or one that contradicts itself.

    See Also
    --------
    Operator.save : Writes such a file.
    inspect : Shows what a file holds.

    Examples
    --------
    >>> import os, tempfile, wfcast
    >>> path = os.path.join(tempfile.mkdtemp(), "line.safetensors")
    >>> wfcast.linear_trend((0, 10), (20,)).save(path)
    >>> wfcast.load(path)
    Operator(strategy='linear_trend', inputs=(0, 10), targets=(20,))
    """
    return _persist.load(path, Operator)


def operator_of(given: Any, name: str) -> Operator:
    """The operator that an argument is, or has learned: `given` is an Operator or an estimator.

    Raises
    ------
    DtypeError
        It is neither.
    NotFittedError
        An estimator that has not learned one yet.
    """
    if isinstance(given, Learner):
        return given._learned()
    if not isinstance(given, Operator):
        raise DtypeError(
            f"{name} is a {type(given).__name__}, expected an Operator or a fitted ModelFarcaster: "
            "wfcast.load(path) reads one"
        )
    return given


def _by_name(given: Any, what: str, shape: tuple[int, ...]) -> dict[str, Vector]:
    found = dict(given) if isinstance(given, Mapping) else {ALL: given}
    if not found or not all(isinstance(name, str) for name in found):
        raise WfcastError(f"{what} has the names {list(found)}, expected those of tensors")
    if ALL in found and len(found) > 1:
        raise WfcastError(f"{ALL!r} stands beside names of tensors in {what}")
    for name, value in found.items():
        try:
            given = np.asarray(value)
        except (RuntimeError, TypeError, ValueError) as error:
            raise WfcastError(f"{what} of {name!r} is no array of numbers: {error}") from error
        if given.dtype.kind not in "fiu":
            raise DtypeError(f"{what} of {name!r} has dtype {given.dtype}, expected real numbers")
        array = given.astype(np.float64)
        if array.shape != shape:
            raise WfcastError(
                f"{what} of {name!r} has shape {array.shape}, expected {shape}: one row per target"
            )
        if not np.isfinite(array).all():
            raise WfcastError(f"{what} of {name!r} contains NaN or infinity")
        found[name] = array
    return found


def _short(values: tuple[int, ...]) -> str:
    if len(values) <= SHOWN:
        return str(values)
    return f"({', '.join(map(str, values[:3]))}, ..., {values[-1]})"
