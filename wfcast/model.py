"""ModelFarcaster: the estimator that learns an operator from earlier runs of a whole model."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from . import _core
from ._apply import Progress
from ._columns import Label
from ._errors import CheckpointError, DtypeError, WfcastError, warn
from ._fit import Segment, Solving, nearest, set_fitted, solve_all, solving
from ._measure import mean_score
from ._operator import Learner, Operator
from ._parameters import ALL, PARAMETERS, check_by, check_parameters, threads
from ._process import Ranks
from ._ranks import Survey, ranks_of, survey
from ._runs import check_alike, check_run, check_state, few, forecastable, open_run, steps
from .checkpoint import Checkpoint, open_checkpoint
from .operators import persistence

__all__ = ["ModelFarcaster", "pass_sizes"]

PAPERS_BETA = 1e-6

LEAST_ROWS = 5
"""Rows for each coefficient from which on a tensor by itself says something of another run."""

Vector = npt.NDArray[np.float64]


class ModelFarcaster(BaseEstimator, Learner):  # type: ignore[misc]
    r"""Forecast a model's weights: ``what_{step} = sum_k A_k w_{inputs[k]} + b`` for every weight.

    A *run* is ``{step: checkpoint}``, or the path of a folder of checkpoints whose names end in
    their steps; a *checkpoint* is a mapping of names to arrays or tensors, such as a
    ``state_dict()``, a module, or the path of a file or folder, which is read tensor by tensor:
    safetensors or ``torch.save``, single or in shards, or torch.distributed.checkpoint.

    Parameters
    ----------
    inputs : sequence of int
        The observed steps that a forecast starts from, increasing. ``(0, n)`` is the LFD-2 of the
        paper, ``(n,)`` its LFL.
    targets : sequence of int
        The steps to forecast, increasing.
    by : {"tensor", "all"}, default="tensor"
        One coefficient set per tensor name, or one for the whole model.
    loss : {"absolute_error", "squared_error"}, default="absolute_error"
        As in `Farcaster`, as are the parameters below.
    beta : float, optional
        Weight of the update-norm hinge, which bounds the last of two forecast updates. None: the
        paper's 1e-6 where there is one, with the absolute error and two targets or more, else 0.
        The norm c_s of a run's first update is the L1 distance between its first two recorded
        checkpoints d_0 steps apart, times d_m / d_0 with the last two targets d_m apart.
    alpha : float, default=0.0
        Ridge penalty, with the squared error.
    fit_intercept : bool, default=True
    tol : float, default=1e-9
    n_threads : int or None, default=None

    Attributes
    ----------
    operator_ : Operator
        What was learned, without scikit-learn; `wfcast.load` gives it back.
    coef_, intercept_, inputs_, targets_, tensors_, base_
        Those of `operator_`.
    objective_, dual_gap_, n_passes_ : dict of str to number
        As in `Farcaster`, by the names of `coef_`; without tensors too small to be fitted.

    See Also
    --------
    Operator : What it learns, without scikit-learn.
    Farcaster : The same fit for arrays.
    evaluate : The forecast of a run beside persistence and the line.
    forecast_checkpoint : From disk to disk.
    linear_trend, average, persistence : Operators that need no earlier runs.

    Notes
    -----
    Where the runs leave it open which input counts, as of weights that were frozen in them, the
    coefficients are those nearest to persistence. A tensor with fewer than five rows for each
    coefficient, such as a bias of two in a few runs, is forecast to stay as it is, with a warning.

    References
    ----------
    Shou et al., "Less is More: Efficient Weight Farcasting with 1-Layer Neural Network",
    DASFAA 2025, arXiv 2505.02714.

    Examples
    --------
    >>> import numpy as np, wfcast
    >>> rng = np.random.default_rng(0)
    >>> def run():
    ...     w, v = rng.normal(size=(2, 50))
    ...     return {t: {"w": w + t * v} for t in (0, 1, 2, 3)}
    >>> mf = wfcast.ModelFarcaster(inputs=(0, 1), targets=(2, 3)).fit([run(), run()])
    >>> new = run()
    >>> bool(np.allclose(mf.predict(new, step=3)["w"], new[3]["w"]))
    True
    """

    operator_: Operator
    objective_: dict[str, float]
    dual_gap_: dict[str, float]
    n_passes_: dict[str, int]

    def __init__(
        self,
        inputs: Sequence[int],
        targets: Sequence[int],
        *,
        by: str = "tensor",
        loss: str = "absolute_error",
        beta: float | None = None,
        alpha: float = 0.0,
        fit_intercept: bool = True,
        tol: float = 1e-9,
        n_threads: int | None = None,
    ) -> None:
        self.inputs = inputs
        self.targets = targets
        self.by = by
        self.loss = loss
        self.beta = beta
        self.alpha = alpha
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.n_threads = n_threads

    # ---- fitting ------------------------------------------------------------------------------

    def fit(
        self,
        runs: Sequence[Any],
        *,
        key: str | None = None,
        progress: Progress | None = None,
        process_group: Any = None,
    ) -> ModelFarcaster:
        """Fit to whole runs; each of them is one trajectory.

        Several processes of torch.distributed can fit together. Each reads rows of its own, in
        every pass they hand each other the statistics, and all end with the coefficients of a
        single process that has all the rows. What fails on one of them fails on all. Either

        - the runs hold DTensors (FSDP2, tensor parallel): every rank passes the same runs, and
          counts its own shards. What is replicated counts once, a tensor that is no DTensor on
          rank 0. Or
        - they hold none, and `process_group` is given: every rank passes runs of its own, or an
          empty list. Their order is that of the ranks.

        Parameters
        ----------
        runs : sequence of {step: checkpoint}, or of paths
            Each holds the inputs and the targets, and may hold more steps.
        key : str, optional
            As of `forecast_checkpoint`.
        progress : callable, optional
            Called as ``progress(name, rows)`` after each slice of rows is read, of this process.
        process_group : torch.distributed.ProcessGroup, optional
            The ranks that fit together; all of them call `fit`. By default, a process fits by
            itself, and runs of DTensors are fitted by the ranks of the default group.

        Returns
        -------
        ModelFarcaster
            Itself. A fit that fails or is interrupted leaves it as it was.

        Raises
        ------
        CheckpointError
            A step is missing, a file cannot be read, or checkpoints differ in names or shapes.
        WfcastError
            A parameter or value at fault; the tensor, run and step are named.
        ConvergenceError
            The certified gap of a tensor is above `tol`.
        """
        with ranks_of(runs, process_group) as ranks:
            inputs, targets, params = self._check()
            hinge = params["beta"] > 0
            opened, firsts = self._open(runs, (*inputs, *targets), ranks, hinge, key)
            for run in opened:
                for checkpoint in run.values():
                    check_alike(opened[0][inputs[0]], checkpoint)
                for step in targets:
                    check_state(run[step])
            settings = {
                "inputs": inputs,
                "targets": targets,
                "by": self.by,
                "loss": self.loss,
                **{k: float(params[k]) for k in ("beta", "alpha", "tol")},
                "fit_intercept": bool(self.fit_intercept),
            }
            found = survey(ranks, opened, settings)
            names = [t.name for t in found.tensors if t.size]
            if not names:
                what = opened[0][inputs[0]].what if opened else "each run"
                raise CheckpointError(f"{what} holds no floating tensors to fit")
            parts = {ALL: names} if self.by == "all" else {n: [n] for n in names}
            small = self._too_small(parts, found)
            fits = {
                key: self._solving(
                    key, members, opened, firsts, found, ranks, inputs, targets, params, progress
                )
                for key, members in parts.items()
            }
            results = solve_all(fits, self.n_threads)
        for name in small:
            results[name]["coef"] = persistence(inputs, targets).coef[ALL]
            results[name]["intercept"] = np.zeros(len(targets))
        told = {k: r for k, r in results.items() if k not in small}
        numbers = {
            "objective": {k: float(r["objective"]) for k, r in told.items()},
            "dual_gap": {k: float(r["dual_gap"]) for k, r in told.items()},
            "n_passes": {k: int(r["n_passes"]) for k, r in told.items()},
        }
        operator = Operator(
            inputs,
            targets,
            {k: r["coef"] for k, r in results.items()},
            {k: r["intercept"] for k, r in results.items()},
            strategy=type(self).__name__,
            tensors={t.name: (t.shape, t.dtype) for t in found.tensors},
            base=next((run[inputs[0]].base for run in opened), None),
            info={k: v for k, v in settings.items() if k not in ("inputs", "targets")} | numbers,
            n_threads=self.n_threads,
        )
        set_fitted(self, operator_=operator, **{f"{k}_": v for k, v in numbers.items()})
        return self

    def _too_small(self, parts: Mapping[str, list[str]], found: Survey) -> list[str]:
        """Tensors with too few rows to learn from, which are forecast to stay as they are."""
        least = LEAST_ROWS * (len(self.inputs) + bool(self.fit_intercept))
        small = [k for k, members in parts.items() if k != ALL and found.starts(members)[0] < least]
        if small:
            warn(
                f"forecast to stay as they are, with fewer than {least} rows to fit "
                f"{least // LEAST_ROWS} coefficients to: {few(small)}; give more runs, or by='all'"
            )
        return small

    def _solving(
        self,
        key: str,
        members: list[str],
        opened: list[dict[int, Checkpoint]],
        firsts: list[tuple[Checkpoint, Checkpoint, int]],
        found: Survey,
        ranks: Ranks,
        inputs: tuple[int, ...],
        targets: tuple[int, ...],
        params: Mapping[str, Any],
        progress: Progress | None,
    ) -> Solving:
        """One coefficient set, for the tensors `members`."""
        norms = None
        hinge = params["beta"] > 0
        if hinge:
            scale = targets[-1] - targets[-2]
            own = np.zeros(found.n_runs)
            for s, first in enumerate(firsts):
                own[found.first + s] = self._first_update(first, members) * scale / first[2]
            norms = np.zeros(found.n_runs)
            for part in ranks.gather(own.tobytes()):
                norms += np.frombuffer(part)
        n_rows, starts = found.starts(members)
        segments = [
            _segment(
                run,
                inputs,
                targets,
                name,
                group=found.first + s if hinge else None,
                start=int(starts[found.first + s, k]),
            )
            for s, run in enumerate(opened)
            for k, name in enumerate(members)
        ]
        result: dict[str, Any] = yield from solving(
            segments,
            len(inputs),
            len(targets),
            params=params,
            first_update=norms,
            n_rows=n_rows,
            gather=ranks.gather if ranks.size > 1 else None,
            name=key,
            what="" if key == ALL else f"tensor {key!r}",
            progress=progress,
        )
        result["coef"], result["intercept"] = nearest(
            result, persistence(inputs, targets).coef[ALL]
        )
        return result

    def _check(self) -> tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]:
        """The inputs, the targets, and the parameters of the fits."""
        inputs, targets = steps(self.inputs, "inputs"), steps(self.targets, "targets")
        check_by(self.by)
        params = {k: getattr(self, k) for k in PARAMETERS}
        if self.beta is None:
            hinge = self.loss == "absolute_error" and len(targets) > 1
            params["beta"] = PAPERS_BETA if hinge else 0.0
        check_parameters(**params)
        if params["beta"] > 0 and len(targets) < 2:
            raise WfcastError(
                f"beta is {self.beta!r} with the single target {targets[0]}; the "
                "update-norm hinge needs two: pass beta=0"
            )
        return inputs, targets, params

    def _open(
        self, runs: Any, needed: tuple[int, ...], ranks: Ranks, hinge: bool, key: str | None
    ) -> tuple[list[dict[int, Checkpoint]], list[tuple[Checkpoint, Checkpoint, int]]]:
        if isinstance(runs, Mapping) or not isinstance(runs, Sequence) or isinstance(runs, str):
            raise DtypeError(
                f"runs is a {type(runs).__name__}, expected a list of "
                "{step: checkpoint}; wrap a single run in a list"
            )
        if not runs and ranks.size == 1:
            raise CheckpointError("runs is empty, expected at least one {step: checkpoint}")
        opened, firsts = [], []
        for i, run in enumerate(runs):
            run = ranks.local(check_run(run, needed, f"run {i}", key), needed, f"run {i}")
            here = open_run(run, needed, f"run {i}")
            opened.append(here)
            if hinge:
                (a, first), (b, second) = list(run.items())[:2]
                pair = [
                    here.get(s) or open_checkpoint(c, f"run {i}, step {s}")
                    for s, c in ((a, first), (b, second))
                ]
                for one in pair:
                    check_alike(here[needed[0]], one)
                firsts.append((pair[0], pair[1], b - a))
        return opened, firsts

    def _first_update(self, first: tuple[Checkpoint, Checkpoint, int], names: list[str]) -> float:
        a, b, _ = first
        total = 0.0
        for name in names:
            columns = a.column(name).array, b.column(name).array
            try:
                total += _core.update_norm(*columns, threads(self.n_threads))
            except ValueError as error:
                raise WfcastError(
                    f"{a.label(name)}, or of {b.what}, contains NaN or infinity: the run's first "
                    "update has no norm"
                ) from error
        return total

    # ---- what was learned ---------------------------------------------------------------------

    def _learned(self) -> Operator:
        """The operator, to be computed with this estimator's threads."""
        check_is_fitted(self)
        threads(self.n_threads)
        operator = copy.copy(self.operator_)
        operator.n_threads = self.n_threads
        return operator

    @property
    def inputs_(self) -> tuple[int, ...]:
        """The observed steps of the fit."""
        return self.operator_.inputs

    @property
    def targets_(self) -> tuple[int, ...]:
        """The steps ahead of the fit."""
        return self.operator_.targets

    @property
    def coef_(self) -> dict[str, Vector]:
        """A, of shape (m, p), by tensor name; the single key ``"*"`` serves every tensor."""
        return self.operator_.coef

    @property
    def intercept_(self) -> dict[str, Vector]:
        """b, of shape (m,), by the same names."""
        return self.operator_.intercept

    @property
    def tensors_(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and dtype of each tensor that was fitted."""
        return self.operator_.tensors

    @property
    def base_(self) -> str | None:
        """The model that the fitted checkpoints adapt; None where they are no adapters."""
        return self.operator_.base

    def predict(
        self,
        run: Any,
        step: int | None = None,
        check_finite: bool = True,
        *,
        key: str | None = None,
    ) -> dict[str, Any]:
        """The weights at `step`, from the weights at the input steps: `Operator.predict`.

        Raises
        ------
        NotFittedError
            `fit` has not been called.
        CheckpointError, WfcastError
            As `Operator.predict`.
        """
        return self._learned().predict(run, step, check_finite, key=key)

    def score(self, runs: Any) -> float:
        r"""How much better than persistence it forecasts runs that it was not fitted to.

        .. math:: 1 - \sum |forecast - w_{step}| \,/\, \sum |w_{last} - w_{step}|

        The sums are over all weights of all runs; the score is the mean over the targets.

        Parameters
        ----------
        runs : as in `fit`
            Each holds the inputs and one target at least.

        Returns
        -------
        float
            1 for a perfect forecast, 0 for one that is as good as the last input, below 0 for a
            worse one. `wfcast.evaluate` has the parts.
        """
        return mean_score(self._learned(), runs)

    def applied(self, model: Any, run: Any, step: int | None = None) -> AbstractContextManager[Any]:
        """A context in which a torch model has the forecast weights: `Operator.applied`."""
        return self._learned().applied(model, run, step)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the operator to a file that `wfcast.load` reads: `Operator.save`."""
        self._learned().save(path)

    def plot(self, ax: Any = None) -> Any:
        """Draw the coefficients by layer: `Operator.plot`."""
        return self._learned().plot(ax)

    def fingerprint(self) -> str:
        """SHA-256 over steps, names and coefficients: `Operator.fingerprint`."""
        return self._learned().fingerprint()


def pass_sizes(
    reference: Checkpoint, by: str, columns: int, runs: int
) -> dict[str, tuple[int, int]]:
    """The rows and bytes that a pass of a fit reads, by coefficient set, as a progress bar needs.

    Parameters
    ----------
    reference : Checkpoint
        One of the checkpoints, which are all alike.
    by : {"tensor", "all"}
    columns, runs : int
        The checkpoints that are read of each run, and the runs.
    """
    sizes = {
        t.name: (t.size * runs, t.nbytes * columns * runs)
        for t in forecastable(reference)
        if t.size
    }
    if by == "all":
        return {ALL: (sum(n for n, _ in sizes.values()), sum(b for _, b in sizes.values()))}
    return sizes


def _segment(
    run: dict[int, Checkpoint],
    inputs: tuple[int, ...],
    targets: tuple[int, ...],
    name: str,
    *,
    group: int | None,
    start: int,
) -> Segment:
    def load() -> tuple[list[Any], list[Any]]:
        return (
            [run[s].column(name).array for s in inputs],
            [run[s].column(name).array for s in targets],
        )

    labels = [Label("", run[s].label(name)) for s in (*inputs, *targets)]
    return Segment(run[inputs[0]].local_shape(name), load, group, labels, start)
