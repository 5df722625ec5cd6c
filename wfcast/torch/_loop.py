"""What a controller knows of the loop around it: the optimizer's steps, modes, random state."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from .._errors import WfcastError

IDLE = 100  # calls in a row without a step: far more than a gradient scaler leaves out


class StepCounter:
    """Counts the steps of an optimizer; `value` is None where it cannot be asked."""

    def __init__(self, optimizer: Any) -> None:
        self.value: int | None = None
        self._seen = 0
        self._idle, self._told = 0, False  # calls in a row without a step
        self._hook: Any = None
        while not hasattr(optimizer, "register_step_post_hook") or hasattr(optimizer, "optimizer"):
            optimizer = getattr(optimizer, "optimizer", None)
            if optimizer is None:
                return
        self.value, self._name = 0, type(optimizer).__name__
        count = weakref.ref(self)

        def hook(*_: Any) -> None:
            here = count()
            if here is not None and here.value is not None:
                here.value += 1

        self._hook = optimizer.register_step_post_hook(hook)

    def one_more(self) -> bool:
        """Whether the optimizer took its one step since it was asked last.

        Raises
        ------
        WfcastError
            It took several.

        Warns
        -----
        UserWarning
            It has taken none for so long that another one may have taken its place.
        """
        if self.value is None:
            return True
        fresh, self._seen = self.value - self._seen, self.value
        if fresh > 1:
            raise WfcastError(
                f"the optimizer took {fresh} steps since the last call: call step() after every "
                "optimizer.step()"
            )
        self._idle = 0 if fresh else self._idle + 1
        if self._idle == IDLE and not self._told:
            self._told = True  # accumulation over more batches comes here again and again
            warnings.warn(self.problem, stacklevel=3)
        return fresh == 1  # a gradient scaler leaves out steps, and a second call is none

    @property
    def problem(self) -> str:
        """What to tell where the optimizer has stood still for long; empty where it has not."""
        if self._idle < IDLE:
            return ""
        return (
            f"the {self._name} that Farcasting was made with took no step in {IDLE} calls of "
            "step() in a row: where another optimizer has taken its place, close() this "
            "Farcasting and make a new Farcasting with that one"
        )

    def catch_up(self) -> None:
        """Steps so far are none of the loop's."""
        self._seen = self.value or 0

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


def number(value: Any) -> float:
    """A loss as a number, whatever library's it is.

    Raises
    ------
    ValueError
        It is none, or a text that reads like one.
    """
    if isinstance(value, str | bytes):
        raise ValueError("a text")
    try:
        return float(value)
    except (TypeError, RuntimeError) as reason:  # of several numbers, by NumPy and by torch
        raise ValueError(str(reason)) from reason


def judged(judge: Callable[[], Any]) -> float:
    """The judge's number.

    Raises
    ------
    WfcastError
        It returned something else, such as None.
    """
    return returned(judge(), "the judge")


def returned(found: Any, what: str) -> float:
    """The number that a function of the user's returned.

    Raises
    ------
    WfcastError
        It is none.
    """
    try:
        return number(found)
    except ValueError as reason:
        raise WfcastError(
            f"{what} returned {found!r:.80}, expected one number, such as a held-out loss"
        ) from reason


class Bound:
    """What goes with one live model, and is no use in a copy."""

    def __reduce_ex__(self, _: Any) -> Any:
        name = type(self).__name__
        raise WfcastError(
            f"{name} cannot be copied or pickled, as it goes with a live model: keep its "
            f"state_dict(), and load_state_dict() that into a new {name} of the other model"
        )
