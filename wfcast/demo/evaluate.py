"""The forecast, persistence and the line against what really happened.

Everything goes through files, as a user would do it: the two observed checkpoints in, one forecast
checkpoint out per method and target, and that file is then compared and loaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from .. import ModelFarcaster, forecast_checkpoint, linear_trend, persistence
from .._kinds import kind_of
from .._progress import bar
from ..report import Comparison, Errors, compare_checkpoints
from .train import Run, Trainer, load_weights

__all__ = ["METHODS", "evaluate", "forecast_file"]

METHODS = ("forecast", "persistence", "line")


def forecast_file(out: Path, method: str, step: int) -> Path:
    """Where the forecast of one method for one step is kept."""
    return out / "forecasts" / f"{method}-step-{step:06d}.safetensors"


def _sums(errors: Errors, reference: Errors) -> dict[str, Any]:
    return {
        "n": errors.n,
        "sum_abs": errors.sum_abs,
        "mae": errors.mae,
        "rmse": errors.rmse,
        "relative": errors.sum_abs / reference.sum_abs if reference.sum_abs else None,
    }


@torch.no_grad()
def _loss_of_kind(trainer: Trainer, observed: Path, forecast: Path, kind: str) -> float:
    """Held-out loss where only the tensors of one kind are forecast, the rest is last observed."""
    load_weights(trainer.model, observed)
    own = dict(trainer.model.named_parameters())
    for name, tensor in load_file(forecast).items():
        if kind_of(name) == kind:
            own[name].copy_(tensor)
    return trainer.held_out_loss()


def evaluate(
    farcaster: ModelFarcaster, fresh: Run, trainer: Trainer, out: Path, n_threads: int | None
) -> list[dict[str, Any]]:
    """Forecast `fresh` at every target with every method, and measure each forecast.

    Returns
    -------
    list of dict
        One entry per target: ``step``, ``ahead``, ``true_loss`` and, under ``methods``, for each of
        `METHODS` the file, the held-out ``loss``, the ``error`` over all weights and, under
        ``kinds``, the same by kind of tensor. ``relative`` is the sum of absolute errors over that
        of persistence; a kind's ``loss`` is that of the observed model in which only the tensors
        of this kind are forecast.
    """
    size = trainer.size
    inputs, n = (0, size.observed), size.observed
    makers = {
        "forecast": farcaster,
        "persistence": persistence(inputs, size.targets),
        "line": linear_trend(inputs, size.targets),
    }
    observed = {step: fresh.files[step] for step in inputs}
    losses = dict(fresh.curve)
    result = []
    (out / "forecasts").mkdir(exist_ok=True)
    with bar(len(size.targets) * len(METHODS), "forecast and compare", "forecast") as progress:
        for step in size.targets:
            errors: dict[str, Comparison] = {}
            methods: dict[str, Any] = {}
            for method in METHODS:
                path = forecast_file(out, method, step)
                forecast_checkpoint(makers[method], observed, step, out=path)
                errors[method] = compare_checkpoints(path, fresh.files[step], n_threads=n_threads)
            baseline = errors["persistence"]
            kinds = baseline.kinds
            for method in METHODS:
                path = forecast_file(out, method, step)
                load_weights(trainer.model, path)
                mine = errors[method].kinds
                methods[method] = {
                    "file": str(path.relative_to(out)),
                    "loss": trainer.held_out_loss(),
                    "error": _sums(errors[method].total, baseline.total),
                    "kinds": {
                        kind: {
                            **_sums(mine[kind], kinds[kind]),
                            "loss": losses[n]
                            if method == "persistence"
                            else _loss_of_kind(trainer, fresh.files[n], path, kind),
                        }
                        for kind in kinds
                    },
                }
                progress.update()
            result.append(
                {"step": step, "ahead": step - n, "true_loss": losses[step], "methods": methods}
            )
    return result
