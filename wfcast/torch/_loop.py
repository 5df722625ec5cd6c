"""What a controller knows of the loop around it: parameters that make sense, steps, modes."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from .._errors import WfcastError


def check_numbers(
    spacing: Any,
    n_states: Any,
    period: Any,
    recovery: Any,
    start: Any,
    stop: Any,
    max_loss: Any,
    patience: Any,
) -> None:
    lowest = {"spacing": 1, "n_states": 2, "period": 1, "recovery": 0, "start": 0, "patience": 1}
    given = dict(zip(lowest, (spacing, n_states, period, recovery, start, patience), strict=True))
    for name, value in given.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < lowest[name]:
            raise WfcastError(f"{name} is {value!r}, expected an integer not below {lowest[name]}")
    if stop is not None and (not isinstance(stop, int) or isinstance(stop, bool) or stop < start):
        raise WfcastError(f"stop is {stop!r}, expected None or a step not before start={start}")
    if isinstance(max_loss, bool) or not isinstance(max_loss, int | float) or not 0 <= max_loss < 1:
        raise WfcastError(f"max_loss is {max_loss!r}, expected a share from 0 to below 1")


def check_horizon(horizon: Any, recovery: int) -> bool:
    """Whether it is adaptive."""
    if isinstance(horizon, str):
        if horizon != "adaptive":
            raise WfcastError(f"horizon is {horizon!r}, expected 'adaptive' or a number of steps")
        if recovery == 0:
            raise WfcastError(
                "horizon='adaptive' needs a recovery window to judge jumps by: pass recovery above "
                "0, or a number as horizon"
            )
        return True
    if isinstance(horizon, bool) or not isinstance(horizon, int | float) or not 0 < horizon < 1e9:
        raise WfcastError(f"horizon is {horizon!r}, expected 'adaptive' or a number of steps")
    return False


class StepCounter:
    """Counts the steps of an optimizer; `value` is None where it cannot be asked."""

    def __init__(self, optimizer: Any) -> None:
        self.value: int | None = None
        self._hook: Any = None
        while not hasattr(optimizer, "register_step_post_hook") or hasattr(optimizer, "optimizer"):
            optimizer = getattr(optimizer, "optimizer", None)
            if optimizer is None:
                return
        self.value = 0
        count = weakref.ref(self)

        def hook(*_: Any) -> None:
            here = count()
            if here is not None and here.value is not None:
                here.value += 1

        self._hook = optimizer.register_step_post_hook(hook)

    def remove(self) -> None:
        """Stop counting."""
        if self._hook is not None:
            self._hook.remove()


@contextmanager
def aside(model: torch.nn.Module) -> Iterator[None]:
    """Afterwards modes and random state are as they were."""
    modes = [(m, m.training) for m in model.modules()]
    devices = {p.device.index for p in model.parameters() if p.is_cuda}
    with torch.random.fork_rng(devices=sorted(d for d in devices if d is not None)):
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """`aside`, in eval mode without gradients."""
    with aside(model), torch.no_grad():
        model.eval()
        yield
