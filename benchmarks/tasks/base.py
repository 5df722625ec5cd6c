"""What every task has."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

HELD_OUT_CHUNK = 256


class Task(ABC):
    """One model and its data.

    Attributes
    ----------
    steps : int
        The length of a run.
    every : int
        Steps between measurements of the held-out loss.
    rates : tuple of float
        The learning rates swept, the optimizer's own default or the recipe's usual among them.
    untuned : float
        That usual rate.
    best : (str, float)
        The schedule and the rate of the sweep's lowest held-out loss.
    fine_tuning : bool
        Whether it goes on from a trained model.
    recovery : int
        Steps before which no verdict on a jump is to be trusted.
    betas, weight_decay
        Of AdamW.
    device : {"cpu", "cuda"}
        Where it is trained.
    """

    name: str
    steps: int
    every: int
    rates: tuple[float, ...]
    untuned: float
    best: tuple[str, float]
    fine_tuning: bool = False
    recovery: int = 0
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    device: str = "cpu"

    @abstractmethod
    def model(self, seed: int) -> nn.Module:
        """A new model."""

    @abstractmethod
    def batch(self, seed: int, step: int) -> Any:
        """The batch of one step."""

    @abstractmethod
    def loss(self, model: Any, batch: Any) -> Tensor:
        """The mean loss over a batch."""

    @property
    @abstractmethod
    def held_out(self) -> list[Any]:
        """Batches of equal size, the same for every run."""

    def held_out_loss(self, model: nn.Module) -> float:
        """The mean loss over the held-out batches, in eval mode."""
        training = model.training
        model.eval()
        with torch.no_grad():
            total = sum(float(self.loss(model, batch)) for batch in self.held_out)
        model.train(training)
        return total / len(self.held_out)

    def optimizer(self, model: nn.Module, rate: float) -> torch.optim.Optimizer:
        """AdamW, which without weight decay is Adam."""
        return torch.optim.AdamW(
            model.parameters(), lr=rate, betas=self.betas, weight_decay=self.weight_decay
        )


def generator(seed: int, step: int) -> torch.Generator:
    """Random numbers of one step of one run."""
    return torch.Generator().manual_seed((seed + 1) * 1_000_003 + step)
