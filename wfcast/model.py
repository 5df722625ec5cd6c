"""A whole model: one linear operator in time per tensor, or one for all of them."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from . import _core
from ._columns import new_like
from ._errors import CheckpointError, DtypeError, WfcastError
from ._fit import (
    PARAMETERS,
    Progress,
    Segment,
    Solving,
    apply,
    check_parameters,
    set_fitted,
    solve_all,
    solving,
    threads,
)
from ._process import Ranks
from ._ranks import Survey, ranks_of, survey
from ._runs import check_alike, check_bases, check_run, forecastable, has, open_run, steps
from .checkpoint import Checkpoint, FileCheckpoint, Tensor, open_checkpoint, step_named

ALL = "*"
"""The name of the coefficient set that serves every tensor."""

Vector = npt.NDArray[np.float64]


class Plan(NamedTuple):
    """A checked forecast that has yet to be computed.

    Attributes
    ----------
    inputs : dict of int to Checkpoint
        The opened inputs, in the order of steps; the last of them lends form and dtypes.
    forecast : list of Tensor
        All others are to be taken from the last input.
    horizon : int
        The index of the target.
    beyond : tuple of str
        Where it goes beyond what was fitted.
    """

    inputs: dict[int, Checkpoint]
    forecast: list[Tensor]
    horizon: int
    beyond: tuple[str, ...]

    @property
    def latest(self) -> Checkpoint:
        """The last input."""
        return list(self.inputs.values())[-1]


class ModelFarcaster(BaseEstimator):  # type: ignore[misc]
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
    beta : float, default=1e-6
        Weight of the update-norm hinge (the paper's value). It needs two targets: pass 0 with
        one. The norm c_s of a run's first update is the L1 distance between its first two
        recorded checkpoints d_0 steps apart, times d_m / d_0 with the last two targets d_m apart.
    alpha : float, default=0.0
        Ridge penalty, with the squared error.
    fit_intercept : bool, default=True
    tol : float, default=1e-9
    n_threads : int or None, default=None

    Attributes
    ----------
    coef_ : dict of str to ndarray of shape (m, p)
        By tensor name; the single key ``"*"`` serves every tensor.
    intercept_ : dict of str to ndarray of shape (m,)
    objective_, dual_gap_, n_passes_ : dict of str to number
        As in `Farcaster`, by the same keys; not set where nothing was fitted.
    inputs_, targets_ : tuple of int
        The steps of the fit.
    tensors_ : dict of str to tuple
        Shape and dtype of each tensor that was fitted; empty where nothing was.
    base_ : str or None
        The model that the fitted checkpoints adapt; None where they are no adapters.

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

    inputs_: tuple[int, ...]
    targets_: tuple[int, ...]
    coef_: dict[str, Vector]
    intercept_: dict[str, Vector]
    tensors_: dict[str, tuple[tuple[int, ...], str]]
    base_: str | None
    objective_: dict[str, float]
    dual_gap_: dict[str, float]
    n_passes_: dict[str, int]

    def __init__(
        self,
        inputs: Sequence[int],
        targets: Sequence[int],
        by: str = "tensor",
        loss: str = "absolute_error",
        beta: float = 1e-6,
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
            inputs, targets = self._check()
            opened, firsts = self._open(runs, (*inputs, *targets), ranks)
            for run in opened:
                for checkpoint in run.values():
                    check_alike(opened[0][inputs[0]], checkpoint)
            settings = {
                "inputs": inputs,
                "targets": targets,
                "by": self.by,
                "loss": self.loss,
                **{k: float(getattr(self, k)) for k in ("beta", "alpha", "tol")},
                "fit_intercept": bool(self.fit_intercept),
            }
            found = survey(ranks, opened, settings)
            names = [t.name for t in found.tensors if t.size]
            if not names:
                what = opened[0][inputs[0]].what if opened else "each run"
                raise CheckpointError(f"{what} holds no floating tensors to fit")
            parts = {ALL: names} if self.by == "all" else {n: [n] for n in names}
            fits = {
                key: self._solving(key, members, opened, firsts, found, ranks, progress)
                for key, members in parts.items()
            }
            results = solve_all(fits, self.n_threads)
        self._set(
            inputs,
            targets,
            {k: r["coef"] for k, r in results.items()},
            {k: r["intercept"] for k, r in results.items()},
            {t.name: (t.shape, t.dtype) for t in found.tensors},
            next((run[inputs[0]].base for run in opened), None),
            objective_={k: float(r["objective"]) for k, r in results.items()},
            dual_gap_={k: float(r["dual_gap"]) for k, r in results.items()},
            n_passes_={k: int(r["n_passes"]) for k, r in results.items()},
        )
        return self

    def _solving(
        self,
        key: str,
        members: list[str],
        opened: list[dict[int, Checkpoint]],
        firsts: list[tuple[Checkpoint, Checkpoint, int]],
        found: Survey,
        ranks: Ranks,
        progress: Progress | None,
    ) -> Solving:
        """One coefficient set, for the tensors `members`."""
        inputs, targets = steps(self.inputs, "inputs"), steps(self.targets, "targets")
        norms = None
        if self.beta > 0:
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
                group=found.first + s if self.beta > 0 else None,
                start=int(starts[found.first + s, k]),
            )
            for s, run in enumerate(opened)
            for k, name in enumerate(members)
        ]
        result: dict[str, Any] = yield from solving(
            segments,
            len(inputs),
            len(targets),
            params={k: getattr(self, k) for k in PARAMETERS},
            first_update=norms,
            n_rows=n_rows,
            gather=ranks.gather if ranks.size > 1 else None,
            name=key,
            what="" if key == ALL else f"tensor {key!r}",
            progress=progress,
        )
        return result

    def _check(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        inputs, targets = steps(self.inputs, "inputs"), steps(self.targets, "targets")
        if self.by not in ("tensor", "all"):
            raise WfcastError(f"by is {self.by!r}, expected 'tensor' or 'all'")
        check_parameters(**{k: getattr(self, k) for k in PARAMETERS})
        if self.beta > 0 and len(targets) < 2:
            raise WfcastError(
                f"beta is {self.beta!r} with the single target {targets[0]}; the "
                "update-norm hinge needs two: pass beta=0"
            )
        return inputs, targets

    def _open(
        self, runs: Any, needed: tuple[int, ...], ranks: Ranks
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
            run = ranks.local(check_run(run, needed, f"run {i}"), needed, f"run {i}")
            here = open_run(run, needed, f"run {i}")
            opened.append(here)
            if self.beta > 0:
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

    def _set(
        self,
        inputs: tuple[int, ...],
        targets: tuple[int, ...],
        coef: dict[str, Vector],
        intercept: dict[str, Vector],
        tensors: dict[str, tuple[tuple[int, ...], str]],
        base: str | None = None,
        **numbers: dict[str, float],
    ) -> None:
        set_fitted(
            self,
            inputs_=inputs,
            targets_=targets,
            coef_=coef,
            intercept_=intercept,
            tensors_=tensors,
            base_=base,
            **numbers,
        )

    # ---- forecasting --------------------------------------------------------------------------

    def predict(
        self, run: Any, step: int | None = None, check_finite: bool = True
    ) -> dict[str, Any]:
        """The weights at `step`, from the weights at the input steps.

        Parameters
        ----------
        run : {step: checkpoint}
            Holds the inputs; other steps are ignored.
        step : int, optional
            One of the targets; may be left out where there is but one.
        check_finite : bool, default=True
            Whether NaN and infinity, in the inputs or by overflow, are an error.

        Returns
        -------
        dict of str to array or tensor
            With the names, shapes, dtypes and kind (NumPy or torch) of the last input. Integer
            and bool tensors are copies of the last input's.

        Raises
        ------
        NotFittedError
            Neither fitted nor ready-made.
        CheckpointError
            A step or a tensor is missing, or checkpoints differ.
        WfcastError
            A step that is no target, or a value at fault; tensor and step are named.
        """
        plan = self._plan(run, step)
        result: dict[str, Any] = {}
        forecast = {t.name for t in plan.forecast}
        for name in plan.latest.tensors:
            if name not in forecast:
                result[name] = plan.latest.value(name)
                continue
            columns = [c.column(name) for c in plan.inputs.values()]
            fresh = new_like(columns[-1], plan.latest.label(name))
            self._apply(plan, name, [c.array for c in columns], fresh.array, check_finite)
            result[name] = fresh.owner
        result.update({alias: result[name] for alias, name in plan.latest.tied.items()})
        return result

    def applied(self, model: Any, run: Any, step: int | None = None) -> AbstractContextManager[Any]:
        """A context in which a torch model has the forecast weights.

        ::

            with mf.applied(model, states):
                evaluate(model)
                model.save_pretrained("forecast")

        Parameters
        ----------
        model : torch.nn.Module
            Its parameters are written in place, and get their own values back, to the bit, however
            the block ends. Buffers and parameters that were not fitted stay as they are.
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
        from ._live.span import applied

        horizon = self._horizon(step)

        def coefficients(name: str) -> tuple[Vector, float]:
            key = ALL if ALL in self.coef_ else name
            return self.coef_[key][horizon], float(self.intercept_[key][horizon])

        names = None if ALL in self.coef_ else self.coef_
        return applied(model, run, self.inputs_, names, coefficients)

    def _horizon(self, step: int | None) -> int:
        """The index of the target `step`."""
        check_is_fitted(self)
        if step is None and len(self.targets_) == 1:
            step = self.targets_[0]
        if step not in self.targets_:
            given = "no step is given" if step is None else f"step is {step!r}"
            raise WfcastError(
                f"{given}, expected one of the targets {', '.join(map(str, self.targets_))}"
            )
        return self.targets_.index(step)

    def _plan(self, run: Any, step: int | None, partial: bool = False) -> Plan:
        horizon = self._horizon(step)
        inputs = open_run(run, self.inputs_, "the run")
        latest = list(inputs.values())[-1]
        wanted = forecastable(latest)
        if partial:
            for checkpoint in inputs.values():
                check_bases(latest, checkpoint)
            wanted = [
                t for t in wanted if self._knows(t) and all(has(c, t) for c in inputs.values())
            ]
        else:
            for checkpoint in inputs.values():
                check_alike(latest, checkpoint)
            self._check_known(latest, wanted)
        beyond = (*self._steps_beyond(inputs), *self._tensors_beyond(latest, wanted))
        for text in beyond:
            warnings.warn(text, UserWarning, stacklevel=3)
        return Plan(inputs, [t for t in wanted if t.size], horizon, beyond)

    def _knows(self, tensor: Tensor) -> bool:
        return ALL in self.coef_ or tensor.name in self.coef_

    def _check_known(self, latest: Checkpoint, wanted: list[Tensor]) -> None:
        if ALL not in self.coef_:
            new = sorted(t.name for t in wanted if t.size and t.name not in self.coef_)
            buffers = {t.name for t in latest.tensors.values() if t.buffer}
            lost = sorted(self.coef_.keys() - {t.name for t in wanted} - buffers)
            if new or lost:
                lines = [f"only in {latest.what}: {', '.join(map(repr, new[:5]))}"] if new else []
                if lost:
                    lines.append(f"only in the fit: {', '.join(map(repr, lost[:5]))}")
                raise CheckpointError(
                    "the fit, which is by tensor, does not have the tensors of "
                    "the checkpoint:\n  " + ";\n  ".join(lines)
                )

    def _steps_beyond(self, inputs: Mapping[int, Checkpoint]) -> Iterator[str]:
        """What is to be said of inputs of other steps than those of the fit."""
        for at, checkpoint in inputs.items():
            if not isinstance(checkpoint, FileCheckpoint):
                continue
            named = step_named(checkpoint.path)
            if named not in (None, at):
                yield (
                    f"{str(checkpoint.path)!r} is taken as step {at}, but its name says {named}: "
                    "the forecast goes beyond what was fitted unless the steps count differently"
                )

    def _tensors_beyond(self, latest: Checkpoint, wanted: list[Tensor]) -> Iterator[str]:
        """What is to be said of tensors, dtypes or adapted models that the fit did not see."""
        if not self.tensors_:
            return
        if None not in (self.base_, latest.base) and self.base_ != latest.base:
            yield (
                f"{latest.what} adapts {latest.base!r}, and the fit saw adapters of "
                f"{self.base_!r}: the forecast goes beyond what was fitted"
            )
        seen = {name: (tuple(shape), dtype) for name, (shape, dtype) in self.tensors_.items()}
        new = [t for t in wanted if seen.get(t.name, (None, ""))[0] != t.shape]
        known = [t for t in wanted if seen.get(t.name, (None, ""))[0] == t.shape]
        other = [t for t in known if seen[t.name][1] != t.dtype]
        for tensors, text in (
            (new, "have a name or shape that the fit did not see"),
            (other, "have another dtype than in the fit"),
        ):
            if tensors:
                yield (
                    f"{len(tensors)} tensors of {latest.what} {text}, {tensors[0].name!r} first: "
                    "the forecast goes beyond what was fitted"
                )

    def _apply(
        self, plan: Plan, name: str, x: list[Any], y: Any, check_finite: bool, start: int = 0
    ) -> None:
        """Forecast one tensor, or the block of its rows that begins at `start`."""
        key = ALL if ALL in self.coef_ else name
        coef = np.ascontiguousarray(self.coef_[key][plan.horizon : plan.horizon + 1])
        intercept = np.ascontiguousarray(self.intercept_[key][plan.horizon : plan.horizon + 1])
        apply(
            x,
            [y],
            coef,
            intercept,
            check_finite=check_finite,
            n_threads=self.n_threads,
            inputs=[c.label(name) for c in plan.inputs.values()],
            outputs=[f"tensor {name!r} at step {self.targets_[plan.horizon]}"],
            shape=plan.latest.tensors[name].shape,
            start=start,
        )

    # ---- keeping and showing ------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to a safetensors file that `wfcast.load` reads; it appears complete or not at all.

        Raises
        ------
        NotFittedError
            Neither fitted nor ready-made.
        CheckpointError
            The folder is not there.
        """
        from ._persist import save

        check_is_fitted(self)
        save(self, path)

    def plot(self, ax: Any = None) -> Any:
        """Draw the coefficients by layer; needs Matplotlib (``wfcast[plot]``).

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Where; a new figure by default.

        Returns
        -------
        matplotlib.axes.Axes
        """
        from ._inspect import FarcasterReport

        check_is_fitted(self)
        return FarcasterReport(self, "farcaster").plot(ax)

    def fingerprint(self) -> str:
        """SHA-256 over steps, names and coefficients: the same for the same operator."""
        check_is_fitted(self)
        digest = hashlib.sha256(repr((self.inputs_, self.targets_)).encode())
        for name in sorted(self.coef_):
            digest.update(name.encode(errors="surrogatepass") + b"\0")
            for array in (self.coef_[name], self.intercept_[name]):
                digest.update(np.ascontiguousarray(array, dtype="<f8").tobytes())
        return digest.hexdigest()


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

    labels = [run[s].label(name) for s in (*inputs, *targets)]
    return Segment(run[inputs[0]].local_shape(name), load, group, labels, start)
