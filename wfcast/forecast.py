"""File to file: forecast a checkpoint on disk into a new one, in bounded memory."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ._columns import Array, blocks
from ._fit import Progress
from ._version import __version__
from .checkpoint import FileCheckpoint, create_checkpoint
from .model import ModelFarcaster, Plan

BLOCK_ROWS = 1 << 23
PROVENANCE = "wfcast.forecast"


@dataclass(frozen=True, slots=True)
class ForecastReport:
    """What `forecast_checkpoint` did.

    Attributes
    ----------
    path : Path
        The file that was written.
    step : int
    forecast, copied : tuple of str
        The names of the tensors.
    """

    path: Path
    step: int
    forecast: tuple[str, ...]
    copied: tuple[str, ...]


def forecast_checkpoint(
    mf: ModelFarcaster,
    run: Any,
    step: int | None,
    out: str | os.PathLike[str],
    check_finite: bool = True,
    *,
    progress: Progress | None = None,
) -> ForecastReport:
    """Forecast checkpoint files into a new one: `ModelFarcaster.predict` from disk to disk.

    The inputs are mapped and the output is written tensor by tensor, a large one in blocks of
    rows: memory beyond the page cache does not grow with the model.

    Parameters
    ----------
    mf : ModelFarcaster
        Fitted or ready-made.
    run : {step: path}
        The inputs: single safetensors files, or mappings.
    step : int or None
        One of the targets; None where there is but one.
    out : path
        The safetensors file to write. It appears complete or not at all, and may be one of the
        inputs. Names, shapes, dtypes and metadata are the last input's; the forecast's provenance
        is added to the metadata.
    check_finite : bool, default=True
        Whether NaN and infinity, in the inputs or by overflow, are an error.
    progress : callable, optional
        Called as ``progress(name, rows)`` after each block.

    Returns
    -------
    ForecastReport

    Raises
    ------
    CheckpointError, WfcastError
        As `ModelFarcaster.predict`; nothing is written then.
    OSError
        The output cannot be written; nothing is left behind then.
    """
    plan = mf._plan(run, step)
    latest = plan.latest
    metadata = {**latest.metadata, PROVENANCE: json.dumps(_provenance(mf, plan))}
    forecast = {t.name for t in plan.forecast}
    with create_checkpoint(Path(out), latest.tensors.values(), metadata) as writer:
        for name in writer.order:
            if name in forecast:
                writer.write(name, _blocks(mf, plan, name, check_finite, progress))
            else:
                writer.write(name, iter([latest.raw(name)]))
    names = [tuple(t.name for t in part) for part in (plan.forecast, plan.copied)]
    return ForecastReport(Path(out), mf.targets_[plan.horizon], *names)


def _blocks(
    mf: ModelFarcaster, plan: Plan, name: str, check_finite: bool, progress: Progress | None
) -> Iterator[Array]:
    columns = [c.column(name) for c in plan.inputs.values()]
    last = columns[-1].array
    for index, start, size in blocks(last.shape, BLOCK_ROWS):
        x = [c.array[index] for c in columns]
        y = np.empty(x[-1].shape, last.dtype)
        mf._apply(plan, name, x, y, check_finite, start)
        yield y
        if progress is not None:
            progress(name, size)


def _provenance(mf: ModelFarcaster, plan: Plan) -> dict[str, Any]:
    files = {
        step: "/".join(c.path.parts[-2:]) if isinstance(c, FileCheckpoint) else None
        for step, c in plan.inputs.items()
    }
    return {
        "inputs": files,
        "step": mf.targets_[plan.horizon],
        "forecaster": mf.fingerprint(),
        "wfcast": __version__,
        "numpy": np.__version__,
    }
