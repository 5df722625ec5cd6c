"""File to file: forecast a checkpoint on disk into a new one, in bounded memory."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Container, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from . import _core
from ._adapters import Pair, Product
from ._apply import Progress
from ._columns import FLOATS, blocks
from ._direct import BLOCK_BYTES
from ._errors import CheckpointError, WfcastError, warn
from ._kinds import is_norm
from ._operator import Operator, operator_of
from ._parameters import threads
from ._patterns import Patterns, chosen
from ._plan import Plan, factors_of, pairs_of
from ._plot import natural
from ._version import __version__
from .checkpoint import (
    PROVENANCE,
    Checkpoint,
    CheckpointWriter,
    FileCheckpoint,
    Layout,
    create_checkpoint,
    is_forecast,
    of_training,
    open_checkpoint,
    output_layout,
    said_of,
)
from .report import Grid, Report, finite

__all__ = ["ForecastReport", "forecast_checkpoint"]

INPUT_BYTES = 1 << 27
"""The most bytes of all inputs that are mapped for one piece of the output."""

SHOWN = 8
"""The most names that are printed of each sort."""


@dataclass(frozen=True, slots=True, repr=False)
class ForecastReport(Report):
    """What `forecast_checkpoint` did.

    Attributes
    ----------
    path : Path
        The file or folder that was written.
    step : int
    forecast : tuple of str
        The names of the tensors that were forecast.
    copied : dict of str to str
        The names of those that were copied from the last input -> why: their dtype, or "buffer",
        "no elements", "not chosen", "normalization", "not finite", or "not alike" in all inputs
        and the fit.
    skipped : tuple of str
        The names of those that the last input lacks and another one has.
    carried, left : tuple of str
        The names beside the weights that went along, and those that did not, such as the
        optimizer's.
    moves : dict of str to float
        ``|forecast - last| / |last|`` (L2 norms) of each tensor that was forecast; of LoRA's
        factors that of their product.
    rank_cut : dict of str to float
        LoRA's pairs of factors that were forecast by their product -> the share of its squared
        norm that does not fit in their rank.
    beyond : tuple of str
        Where the forecast goes beyond what was fitted, which was warned of.

    See Also
    --------
    forecast_checkpoint : Returns one.
    inspect : Shows what was written, and by what.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np, wfcast
    >>> run = {0: {"w": np.array([3.0, 0.0])}, 100: {"w": np.array([3.0, 4.0])}}
    >>> out = f"{tempfile.mkdtemp()}/step-200.safetensors"
    >>> report = wfcast.forecast_checkpoint(wfcast.linear_trend((0, 100), (200,)), run, 200, out)
    >>> report.step, report.forecast, report.moves
    (200, ('w',), {'w': 0.8})
    """

    path: Path
    step: int
    forecast: tuple[str, ...]
    copied: dict[str, str]
    skipped: tuple[str, ...]
    carried: tuple[str, ...]
    left: tuple[str, ...]
    moves: dict[str, float]
    rank_cut: dict[str, float]
    beyond: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON can hold it: None for NaN and infinity."""
        return {
            "path": str(self.path),
            "step": self.step,
            "forecast": list(self.forecast),
            "copied": self.copied,
            "skipped": list(self.skipped),
            "carried": list(self.carried),
            "left": list(self.left),
            "moves": {name: finite(move) for name, move in self.moves.items()},
            "rank_cut": {name: finite(share) for name, share in self.rank_cut.items()},
            "beyond": list(self.beyond),
        }

    def _rows(self) -> Iterable[dict[str, Any]]:
        for name in sorted((*self.forecast, *self.copied), key=natural):
            yield {"tensor": name, "copied": self.copied.get(name), "move": self.moves.get(name)}

    def _parts(self) -> Iterable[str | Grid]:
        lines = [
            f"wrote {self.path}: step {self.step}, {len(self.forecast)} tensors forecast, "
            f"{len(self.copied)} copied, {len(self.skipped)} skipped"
        ]
        lines += [
            f"copied, {why}: {_few([n for n, w in self.copied.items() if w == why])}"
            for why in dict.fromkeys(self.copied.values())
        ]
        lines += [
            f"{title}: {_few(names)}"
            for title, names in (
                ("skipped, as the last input lacks them", self.skipped),
                ("carried along", self.carried),
                ("not carried along", self.left),
            )
            if names
        ]
        if self.rank_cut:
            name, share = max(self.rank_cut.items(), key=lambda pair: pair[1])
            lines.append(
                f"LoRA's products forecast: {len(self.rank_cut)}; their rank cuts off "
                f"{share:.2g} of the squared norm at most ({name})"
            )
        yield "\n".join(lines)
        largest = sorted(self.moves.items(), key=lambda move: -move[1])[:SHOWN]
        if largest:
            rows = [(name, f"{move:.3g}") for name, move in largest]
            yield Grid(("largest moves", "|forecast - last| / |last|"), rows)
        if self.beyond:
            yield "\n".join(f"warning: {text}" for text in self.beyond)

    def _draw(self, ax: Any) -> None:
        from ._plot import by_layer

        by_layer(ax, self.moves)
        ax.set_ylabel("|forecast - last| / |last|")
        ax.set_title(f"Relative move by layer, step {self.step}", loc="left")


def _few(names: Sequence[str]) -> str:
    names = sorted(names, key=natural)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def forecast_checkpoint(
    mf: Any,
    run: Any,
    step: int | None,
    out: str | os.PathLike[str],
    check_finite: bool = True,
    *,
    include: Patterns | None = None,
    exclude: Patterns | None = None,
    adapters: str = "product",
    norms: str = "forecast",
    nonfinite: str = "error",
    partial: bool = False,
    key: str | None = None,
    format: str | None = None,
    shard_size: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ForecastReport:
    """Forecast checkpoint files into a new one: `Operator.predict` from disk to disk.

    The inputs are mapped and the output is written tensor by tensor, a large one in blocks of
    rows: memory beyond the page cache does not grow with the model.

    Parameters
    ----------
    mf : Operator or ModelFarcaster
        A ModelFarcaster has been fitted.
    run : {step: path}
        The inputs: safetensors files, files of ``torch.save``, indexes of shards, folders of a
        Hugging Face trainer or of torch.distributed.checkpoint; or mappings, or modules.
    step : int or None
        One of the targets; None where there is but one.
    out : path
        The file or folder to write, with the names, shapes, dtypes, metadata, format and sharding
        of the last input; the forecast's provenance is added to the metadata. It appears complete
        or not at all, and may be one of the inputs.
    check_finite : bool, default=True
        Whether NaN and infinity, in the inputs or by overflow, are an error.
    include, exclude : str or sequence of str
        Patterns of tensor names (``*`` stands for anything): what to forecast, all by default,
        and what not. The rest is copied from the last input. Each pattern must match a tensor; a
        tied one by any of its names.
    adapters : {"product", "factors"}, default="product"
        How LoRA's factors A and B are forecast: by what they add to a layer, which is their product
        B A, factored again in their rank; or each by itself, which does harm. Both need the same
        coefficients, and no intercept, for "product".
    norms : {"forecast", "copy"}, default="forecast"
        What to do with the tensors of normalization layers.
    nonfinite : {"error", "copy"}, default="error"
        What to do with a tensor that holds NaN or infinity in one of the inputs.
    partial : bool, default=False
        Whether tensors that not all inputs have alike, or that the fit does not know, are copied
        from the last input instead of being an error.
    key : str, optional
        The set of weights to take from files of torch.save and torch.distributed.checkpoint that
        hold several, such as "ema"; None for the model's. `inspect` lists them.
    format : {"safetensors", "torch", "dcp"}, optional
        Another format than the last input's, or than its name asks for in a file of that name.
    shard_size : int, optional
        Write a folder of shards of at most so many bytes: safetensors files, unless `format` says
        "torch".
    overwrite : bool, default=False
        Whether a folder that is there, and not empty, is replaced and everything in it removed; of
        files, whether an input is, or one with the state of an optimizer. Other files are replaced
        anyway.
    progress : callable, optional
        Called as ``progress(name, rows)`` after each block.

    Returns
    -------
    ForecastReport

    Raises
    ------
    CheckpointError, WfcastError
        As `Operator.predict`; nothing is written then.
    OSError
        The output cannot be written; nothing is left behind then.

    See Also
    --------
    Operator.predict : The same in memory.
    compare_checkpoints : How far two checkpoints are apart.
    ForecastReport : What is returned.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np, wfcast
    >>> from safetensors.numpy import load_file, save_file
    >>> folder = tempfile.mkdtemp()
    >>> run = {step: f"{folder}/step-{step}.safetensors" for step in (0, 100)}
    >>> for step, path in run.items():
    ...     save_file({"w": np.array([1, step], np.float32)}, path)
    >>> line = wfcast.linear_trend((0, 100), (300,))
    >>> report = wfcast.forecast_checkpoint(line, run, 300, f"{folder}/step-300.safetensors")
    >>> load_file(report.path)
    {'w': array([  1., 300.], dtype=float32)}
    """
    job = prepare(
        mf,
        run,
        step,
        out,
        include=include,
        exclude=exclude,
        adapters=adapters,
        norms=norms,
        nonfinite=nonfinite,
        partial=partial,
        key=key,
        format=format,
        shard_size=shard_size,
        overwrite=overwrite,
    )
    return write([job], check_finite, progress)[0]


# ---- several outputs of the same inputs ---------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Job:
    """A checked forecast and where it is to go.

    Attributes
    ----------
    plan : Plan
    target : Path
    layout : Layout
    copied : dict of str to str
        The names of the tensors that are copied from the last input -> why.
    skipped : tuple of str
        The names that the last input lacks.
    pairs : dict of str to Pair
        The names of LoRA's factors that are forecast by their product.
    overwrite : bool
        Whether a folder that is there, and not empty, is replaced.
    """

    plan: Plan
    target: Path
    layout: Layout
    copied: dict[str, str]
    skipped: tuple[str, ...]
    pairs: dict[str, Pair]
    overwrite: bool

    def other(self, operator: Operator, step: int, target: Path) -> Job:
        """The same with other coefficients for the same inputs."""
        plan = replace(self.plan, operator=operator, horizon=operator.horizon(step))
        return replace(self, plan=plan, target=target)

    def latest(self, operator: Operator, target: Path) -> Job:
        """A copy of the last input in the form of the output; `operator` says so elsewhere."""
        step = operator.inputs[-1]
        plan = Plan(operator, {step: self.plan.latest}, [], operator.horizon(step), ())
        copied = {**dict.fromkeys(self.plan.latest.tensors, "latest"), **self.copied}
        return replace(self, plan=plan, target=target, copied=copied, pairs={})

    @property
    def nbytes(self) -> int:
        """What it takes on the disk while it is written: torch's formats go by way of a copy."""
        once = sum(t.nbytes for t in self.plan.latest.tensors.values())
        return once if self.layout.format == "safetensors" else 2 * once


def prepare(
    mf: Any,
    run: Any,
    step: int | None,
    out: str | os.PathLike[str],
    *,
    include: Patterns | None,
    exclude: Patterns | None,
    adapters: str,
    norms: str,
    nonfinite: str,
    partial: bool,
    format: str | None,
    shard_size: int | None,
    overwrite: bool,
    key: str | None = None,
) -> Job:
    """Check everything and write nothing: as `forecast_checkpoint`, which says what is what."""
    for name, value, known in (
        ("adapters", adapters, ("product", "factors")),
        ("norms", norms, ("forecast", "copy")),
        ("nonfinite", nonfinite, ("error", "copy")),
    ):
        if value not in known:
            raise WfcastError(f"{name} is {value!r}, expected {known[0]!r} or {known[1]!r}")
    if format not in (None, "safetensors", "torch", "dcp"):
        raise WfcastError(f"format is {format!r}, expected 'safetensors', 'torch' or 'dcp'")
    if shard_size is not None and (type(shard_size) is not int or shard_size < 1):
        raise WfcastError(f"shard_size is {shard_size!r}, expected a number of bytes")
    plan = operator_of(mf, "mf")._plan(run, step, partial=partial, key=key)
    latest = plan.latest
    among = chosen(latest.names, include, exclude, f"tensors of {latest.what}")
    copied = _copied(plan, among, norms == "copy", nonfinite == "copy")
    pairs = pairs_of(plan, copied) if adapters == "product" else {}
    skipped = sorted(
        {n for c in plan.inputs.values() for n in c.tensors} - {*latest.tensors, *latest.tied}
    )
    _warn_of_less(latest, copied, skipped)
    target = Path(out)
    layout = output_layout(latest.layout, target, latest.tensors.values(), format, shard_size)
    _check_target(target, layout, overwrite, plan)
    return Job(plan, target, layout, copied, tuple(skipped), pairs, overwrite)


def write(
    jobs: Sequence[Job], check_finite: bool, progress: Progress | None
) -> list[ForecastReport]:
    """Write outputs that have the same inputs and layout, in one sweep over the inputs."""
    latest = jobs[0].plan.latest
    moves: list[dict[str, float]] = [{} for _ in jobs]
    rank_cut: list[dict[str, float]] = [{} for _ in jobs]
    products = _Products(check_finite)
    with ExitStack() as stack:
        writers = [stack.enter_context(_writer(job)) for job in jobs]
        for name in writers[0].order:
            moving = [k for k, job in enumerate(jobs) if name not in job.copied]
            for k, writer in enumerate(writers):
                if k not in moving:
                    writer.write(name, latest.raw(name))
            outputs = [(jobs[k].plan, writers[k]) for k in moving]
            if moving and (pair := jobs[moving[0]].pairs.get(name)):
                made = products.write(outputs, pair, name, progress)
                for k, product in zip(moving, made, strict=True):
                    moves[k][name], rank_cut[k][str(pair)] = product.moved, product.cut
            elif moving:
                found = _forecast(outputs, name, check_finite, progress)
                for k, moved in zip(moving, found, strict=True):
                    moves[k][name] = moved
            elif progress is not None:
                progress(name, latest.tensors[name].size)
        for checkpoint in jobs[0].plan.inputs.values():
            if isinstance(checkpoint, FileCheckpoint):
                checkpoint.check_same()  # before anything that was made of it has its name
    return [_report(*one) for one in zip(jobs, moves, rank_cut, strict=True)]


def _writer(job: Job) -> AbstractContextManager[CheckpointWriter]:
    latest = job.plan.latest
    return create_checkpoint(
        job.target,
        job.layout,
        latest.tensors.values(),
        _metadata(job),
        latest.tied,
        job.overwrite,
    )


def _report(job: Job, moves: dict[str, float], rank_cut: dict[str, float]) -> ForecastReport:
    return ForecastReport(
        job.target,
        job.plan.step,
        tuple(name for name in job.plan.latest.tensors if name not in job.copied),
        job.copied,
        job.skipped,
        job.layout.carried_names,
        job.layout.left_names,
        moves,
        rank_cut,
        job.plan.beyond,
    )


# ---- what ---------------------------------------------------------------------------------------


def _copied(
    plan: Plan, among: Container[str], without_norms: bool, only_finite: bool
) -> dict[str, str]:
    """The tensors of the last input that are copied -> why."""
    latest = plan.latest
    ahead = {t.name for t in plan.forecast}
    why = {}
    for name, tensor in latest.tensors.items():
        if tensor.dtype not in FLOATS:
            why[name] = tensor.dtype
        elif not is_forecast(tensor):
            why[name] = "buffer"
        elif not tensor.size:
            why[name] = "no elements"
        elif name not in ahead:
            why[name] = "not alike"
        elif name not in among:
            why[name] = "not chosen"
        elif without_norms and is_norm(name, latest.tensors):
            why[name] = "normalization"
        elif only_finite and not _is_finite(plan, name):
            why[name] = "not finite"
    return why


def _is_finite(plan: Plan, name: str) -> bool:
    arrays = (c.column(name).array for c in plan.inputs.values())
    return all(
        not _core.error_sums(a, a, threads(plan.operator.n_threads))["n_nonfinite"] for a in arrays
    )


def _warn_of_less(latest: Checkpoint, copied: Container[str], skipped: Sequence[str]) -> None:
    """Say what is not in the output, and that nothing is forecast."""
    if skipped:
        warn(f"left out, as {latest.what} lacks them: {_few(skipped)}")
    there = [t for t in latest.tensors.values() if t.dtype in FLOATS and t.size]
    if there and all(name in copied for name in latest.tensors):
        warn(f"no tensor is forecast: the output is a copy of {latest.what}")


def _check_target(target: Path, layout: Layout, overwrite: bool, plan: Plan) -> None:
    if not layout.folder and target.is_file():
        _check_file(target, overwrite, plan)
    try:
        there = list(target.iterdir()) if layout.folder else []
    except (FileNotFoundError, NotADirectoryError):
        there = []  # another process may take it away meanwhile
    if not there:
        return
    if not overwrite:
        raise CheckpointError(
            f"cannot write {str(target)!r}: it is a folder with something in it; overwrite=True "
            "(--overwrite) removes everything in it"
        )
    inside = target.resolve()
    files = [c.path.resolve() for c in plan.inputs.values() if isinstance(c, FileCheckpoint)]
    reason = ""
    if Path.cwd().is_relative_to(inside):
        reason = "it is the current folder, or holds it"
    elif any(len(path.relative_to(inside).parts) > 1 for path in files if inside in path.parents):
        reason = "an input is in one of its folders"
    elif steps := sorted(p.name for p in there if p.is_dir() and _is_step(p.name)):
        reason = f"it holds other checkpoints, such as {steps[0]}"
    if reason:
        raise CheckpointError(f"cannot replace {str(target)!r} and all that is in it: {reason}")


def _check_file(target: Path, overwrite: bool, plan: Plan) -> None:
    """Refuse to replace part of an input, and, unless asked to, what cannot be made again."""
    inputs = [c for c in plan.inputs.values() if isinstance(c, FileCheckpoint)]
    own = target.resolve()
    reason = ""
    for one in inputs:
        path, layout = one.path.resolve(), one.layout
        folder = path if path.is_dir() else path.parent
        if not layout.folder and own == path:
            reason = f"it is {one.what}"
        elif layout.folder and own.parent == folder:
            shards = set((layout.shards or {}).values())
            if own == path or path == folder or own.name in {*shards, *layout.carried_names}:
                raise CheckpointError(f"cannot write {str(target)!r}: it is part of {one.what}")
            reason = f"it lies beside the weights of {one.what}"
    if overwrite:
        return
    try:
        left = open_checkpoint(target).layout.left if not reason else ()
    except CheckpointError:
        left = ()  # no checkpoint, or one that nothing can be made of
    if kept := [name for name in left if of_training(name)]:
        reason = f"it holds what trains the model, {kept[0]}, which the forecast does not"
    if reason:
        raise CheckpointError(
            f"cannot write {str(target)!r}: {reason}; overwrite=True (--overwrite) replaces it"
        )


def _is_step(name: str) -> bool:
    said = said_of(Path(name))
    return said is not None and said.kind != ""


def _metadata(job: Job) -> dict[str, str]:
    latest, layout = job.plan.latest, job.layout
    metadata = {**latest.metadata, PROVENANCE: json.dumps(_provenance(job))}
    as_it_was = isinstance(latest, FileCheckpoint) and latest.layout.format == "safetensors"
    if layout.format == "safetensors" and not as_it_was:
        # what safetensors.torch writes: who made it, and tied names by the name that is kept
        tied = {layout.prefix + alias: layout.prefix + name for alias, name in latest.tied.items()}
        metadata = {**tied, **metadata}
    if layout.format == "safetensors":
        metadata.setdefault("format", "pt")  # without which Accelerate and others refuse a file
    return metadata


def _provenance(job: Job) -> dict[str, Any]:
    plan = job.plan
    files = {
        step: "/".join(c.path.parts[-2:]) if isinstance(c, FileCheckpoint) else None
        for step, c in plan.inputs.items()
    }
    return {
        "inputs": files,
        "step": plan.step,
        "forecaster": plan.operator.fingerprint(),
        "strategy": plan.operator.strategy,
        **{k: v for k, v in plan.operator.info.items() if k in ("profile", "rank")},
        **({"adapters": "product"} if job.pairs else {}),
        "wfcast": __version__,
        "numpy": np.__version__,
    }


# ---- computing ----------------------------------------------------------------------------------


def _forecast(
    outputs: Sequence[tuple[Plan, CheckpointWriter]],
    name: str,
    check_finite: bool,
    progress: Progress | None,
) -> list[float]:
    """Write the forecasts of one tensor; gives how far each moves."""
    inputs = outputs[0][0].inputs.values()
    tensor = outputs[0][0].latest.tensors[name]
    width = tensor.bits // 8
    sums = np.zeros((len(outputs), 2))
    limit = min(BLOCK_BYTES, INPUT_BYTES // len(inputs)) // width
    for index, start, size in blocks(tensor.shape, max(1, limit)):
        # mapped anew for each block, so that no more than it is resident
        x = [c.column(name).array[index] for c in inputs]
        for (plan, writer), moves in zip(outputs, sums, strict=True):
            y = writer.room(name, size * width).view(x[-1].dtype).reshape(x[-1].shape)
            plan.apply(name, x, y, check_finite, start, moves)
        if progress is not None:
            progress(name, size)
    return [math.sqrt(s / of) if of else math.inf if s else 0.0 for s, of in sums]


class _Products:
    """Writes LoRA's factors: those of a pair are made together, when the first of them comes.

    One pair is kept, which is enough where the two follow each other, as they do in most files.
    """

    def __init__(self, check_finite: bool) -> None:
        self._check_finite = check_finite
        self._pair: Pair | None = None
        self._made: list[Product] = []

    def write(
        self,
        outputs: Sequence[tuple[Plan, CheckpointWriter]],
        pair: Pair,
        name: str,
        progress: Progress | None,
    ) -> list[Product]:
        """Write the factor `name` of a pair; gives the products."""
        first = outputs[0][0]
        if pair != self._pair:
            n_threads = first.operator.n_threads
            factors = factors_of(first.inputs.values(), pair, self._check_finite, n_threads)
            self._made = [plan.product(pair, factors) for plan, _ in outputs]
            self._pair = pair
        tensor, dtype = first.latest.tensors[name], first.latest.column(name).array.dtype
        for (plan, writer), made in zip(outputs, self._made, strict=True):
            factor = (made.a if name == pair.a else made.b).reshape(tensor.shape)
            for index, start, size in blocks(tensor.shape, BLOCK_BYTES // dtype.itemsize):
                x = factor[index]
                y = writer.room(name, size * dtype.itemsize).view(dtype).reshape(x.shape)
                plan.round(name, x, y, self._check_finite, start)
        if progress is not None:
            progress(name, tensor.size)
        return self._made
