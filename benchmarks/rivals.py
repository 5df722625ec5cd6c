"""What Farcasting is measured against in `bench_farcasting.py`, each in its usual form.

The jumps along lines and of the weight nowcaster are `Farcasting` with a fixed horizon, unjudged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from wfcast import ModelFarcaster

Weights = dict[str, Tensor]


def weights_of(model: nn.Module) -> Weights:
    """A copy."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


class Lookahead:
    """Zhang et al. (2019): every k steps the slow weights go a share alpha of the way, and the fast
    ones begin again from there.
    """

    def __init__(self, model: nn.Module, k: int = 5, alpha: float = 0.5) -> None:
        self._parameters = list(model.parameters())
        self._slow = [p.detach().clone() for p in self._parameters]
        self._k, self._alpha, self._step = k, alpha, 0

    @torch.no_grad()
    def step(self, loss: object = None) -> None:
        """After each optimizer step; the loss says nothing here."""
        self._step += 1
        if self._step % self._k == 0:
            torch._foreach_lerp_(self._slow, self._parameters, self._alpha)
            torch._foreach_copy_(self._parameters, self._slow)


def nowcaster(
    runs: Sequence[Mapping[int, Mapping[str, Tensor]]], spacing: int, ahead: int
) -> ModelFarcaster:
    """The weight nowcaster's task (Jang et al. 2023) as a linear operator: from five states one
    spacing apart to the state `ahead` spacings later, per tensor, least absolute deviations over
    all stretches of the sibling runs.
    """
    steps = [k * spacing for k in range(5)]
    target = steps[-1] + ahead * spacing
    stretches = [
        {s: run[begin + s] for s in (*steps, target)}
        for run in runs
        for begin in sorted(run)
        if begin > 0 and begin + target in run
    ]
    mf = ModelFarcaster(inputs=steps, targets=[target], by="tensor", beta=0.0, n_threads=1)
    return mf.fit(stretches)
