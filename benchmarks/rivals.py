"""What Farcasting is measured against in `bench_farcasting.py`, each in its usual form.

Lookahead changes the run; EMA, LAWA and the line only look at it, and give weights to export. The
jumps along a line and of the weight nowcaster are `Farcasting` with a fixed horizon and no judge.
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
    def step(self) -> None:
        """After each optimizer step."""
        self._step += 1
        if self._step % self._k == 0:
            torch._foreach_lerp_(self._slow, self._parameters, self._alpha)
            torch._foreach_copy_(self._parameters, self._slow)


class Ema:
    """The exponential moving average of the weights, as `torch.optim.swa_utils` keeps it."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._average = torch.optim.swa_utils.AveragedModel(
            model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(decay)
        )

    def step(self, model: nn.Module) -> None:
        """After each optimizer step."""
        self._average.update_parameters(model)

    @property
    def weights(self) -> Weights:
        """The average so far."""
        return weights_of(self._average.module)


def mean(states: Sequence[Mapping[str, Tensor]]) -> Weights:
    """LAWA (Kaddour 2022): the mean of the latest states."""
    return {name: torch.stack([s[name] for s in states]).mean(0) for name in states[-1]}


def line(states: Sequence[Mapping[str, Tensor]], back: int, reach: float) -> Weights:
    """``w_n + reach (w_n - w_{n - back})``."""
    first, last = states[-1 - back], states[-1]
    return {name: last[name] + reach * (last[name] - first[name]) for name in last}


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
