"""What a controller knows of the loop around it: the optimizer's steps, modes, random state."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


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
def modes_kept(model: torch.nn.Module) -> Iterator[None]:
    """Afterwards every module trains or evaluates as before."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def aside(model: torch.nn.Module) -> Iterator[None]:
    """Afterwards modes and random state are as they were."""
    devices = {p.device.index for p in model.parameters() if p.is_cuda}
    with (
        torch.random.fork_rng(devices=sorted(d for d in devices if d is not None)),
        modes_kept(model),
    ):
        yield


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """`aside`, in eval mode without gradients."""
    with aside(model), torch.no_grad():
        model.eval()
        yield
