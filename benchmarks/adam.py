"""The paper's way to fit: Adam on the L1 loss with the hinge, early stopping on validation data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[Any]


def objective(
    x: Array, y: Array, coef: Array, intercept: Array, groups: Any, limits: Any, beta: float
) -> float:
    """F in float64: rows x (N, p), y (N, m); groups (N,); limits are the c_s (S,)."""
    forecast = np.asarray(x, float) @ coef.T + intercept
    value = float(np.abs(forecast - y).mean())
    if beta:
        last = np.abs(forecast[:, -1] - forecast[:, -2])
        norms = np.bincount(groups, last, minlength=len(limits))
        value += beta * float(np.maximum(norms - limits, 0).mean())
    return value


@dataclass(frozen=True, slots=True)
class Trained:
    """What Adam ended with.

    Attributes
    ----------
    coef : (m, p) float64 array
    intercept : (m,) float64 array
        Both from the epoch with the best validation loss, as early stopping keeps them.
    least : float
        The least training objective met at the end of any epoch, also after the kept one.
    epochs : int
    """

    coef: Array
    intercept: Array
    least: float
    epochs: int


def train(
    x: Array,
    y: Array,
    groups: Array,
    limits: Array,
    beta: float,
    validation: tuple[Array, Array],
    *,
    rate: float = 1e-3,
    runs_per_batch: int = 10,
    epochs: int = 2000,
    patience: int = 50,
    seed: int = 0,
) -> Trained:
    """Train ``torch.nn.Linear(p, m)`` on batches of whole trajectories.

    Parameters
    ----------
    x, y : (N, p) and (N, m) arrays
        Rows in the order of their trajectories, all of one length.
    groups, limits : (N,) ids, (S,) c_s
    beta : float
    validation : x and y of other trajectories
        Training stops once the L1 loss on them has not improved for `patience` epochs.
    """
    torch.manual_seed(seed)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # steps of microseconds: more threads only wait for each other
    try:
        return _train(
            x, y, groups, limits, beta, validation, rate, runs_per_batch, epochs, patience
        )
    finally:
        torch.set_num_threads(threads)


def _train(
    x: Array,
    y: Array,
    groups: Array,
    limits: Array,
    beta: float,
    validation: tuple[Array, Array],
    rate: float,
    runs_per_batch: int,
    epochs: int,
    patience: int,
) -> Trained:
    runs = len(limits)
    length = len(x) // runs
    tx = torch.from_numpy(x.astype(np.float32)).reshape(runs, length, -1)
    ty = torch.from_numpy(y.astype(np.float32)).reshape(runs, length, -1)
    tc = torch.from_numpy(limits.astype(np.float32))
    vx, vy = (torch.from_numpy(v.astype(np.float32)) for v in validation)
    model = torch.nn.Linear(x.shape[1], y.shape[1])
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)

    def loss_on(chosen: torch.Tensor | slice) -> torch.Tensor:
        forecast = model(tx[chosen])
        loss = (forecast - ty[chosen]).abs().mean()
        if beta:
            norms = (forecast[..., -1] - forecast[..., -2]).abs().sum(1)
            loss = loss + beta * (norms - tc[chosen]).clamp(min=0).mean()
        return loss

    def snapshot() -> tuple[Array, Array]:
        return tuple(v.detach().double().numpy() for v in (model.weight, model.bias))

    best, best_epoch, least = float("inf"), 0, float("inf")
    kept = lowest = snapshot()
    epoch = 0
    for epoch in range(1, epochs + 1):
        for batch in torch.randperm(runs).split(runs_per_batch):
            optimizer.zero_grad(set_to_none=True)
            loss_on(batch).backward()
            optimizer.step()
        with torch.no_grad():
            value = float(loss_on(slice(None)))
            score = float((model(vx) - vy).abs().mean())
        if value < least:
            least, lowest = value, snapshot()
        if score < best:
            best, best_epoch, kept = score, epoch, snapshot()
        elif epoch - best_epoch >= patience:
            break
    return Trained(*kept, objective(x, y, *lowest, groups, limits, beta), epoch)
