"""What a `Farcasting` is made with, checked, and what follows from it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch

from .._columns import FLOATS
from .._errors import WfcastError
from ._rule import Rule

OPTIMIZER_STATES = ("keep", "reset", "scale")
LEAST = {"spacing": 1, "n_states": 2, "period": 1, "recovery": 0, "start": 0}
LASTING = ("spacing", "n_states", "period", "horizon", "recovery", "maximize", "start")
FIRST = 10  # no jump in the first such part of a run of known length
CALIBRATED = 4  # windows without a jump before the first one that is judged,
LATEST = 3  # but no more than such a part of a run of known length
PARTS = 6  # a window is at most such a part of it


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Parameters of `Farcasting`, by their names there.

    Raises
    ------
    WfcastError
        One of them is of another kind or out of its range.
    """

    spacing: int
    n_states: int
    period: int
    horizon: float | str
    recovery: int
    maximize: bool
    optimizer_state: str
    start: int
    stop: int | None

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            value = getattr(self, name)
            if not _is_integer(value) or value < least:
                raise WfcastError(f"{name} is {value!r}, expected an integer not below {least}")
        if self.stop is not None and (not _is_integer(self.stop) or self.stop <= self.start):
            raise WfcastError(
                f"stop is {self.stop!r}, expected None or an integer above start={self.start}"
            )
        if not isinstance(self.maximize, bool):
            raise WfcastError(f"maximize is {self.maximize!r}, expected True or False")
        if not self.adaptive and not (_is_number(self.horizon) and 0 < float(self.horizon) < 1e9):
            raise WfcastError(
                f"horizon is {self.horizon!r}, expected 'adaptive' or a number of steps above 0"
            )
        if self.optimizer_state not in OPTIMIZER_STATES:
            raise WfcastError(
                f"optimizer_state is {self.optimizer_state!r}, expected one of {OPTIMIZER_STATES}"
            )

    @property
    def adaptive(self) -> bool:
        """Whether the horizon goes by the movement of the run."""
        return isinstance(self.horizon, str) and self.horizon == "adaptive"

    @property
    def window(self) -> int:
        """Steps from a jump to its verdict: no more than a short run has room for."""
        if self.stop is None or not self.recovery:
            return self.recovery
        return max(1, min(self.recovery, (self.stop - self.start) // PARTS))

    @property
    def apart(self) -> int:
        """Steps from a jump to the next: two windows at least, the second one undisturbed."""
        return max(self.period, 2 * self.window)

    @property
    def first_jump(self) -> int:
        """The first step at which there may be a jump."""
        quiet = CALIBRATED * self.window
        if self.stop is not None:
            length = self.stop - self.start
            quiet = max(length // FIRST, min(quiet, length // LATEST))
        return self.start + max(self.apart, quiet)

    @property
    def lasting(self) -> dict[str, Any]:
        """Those that a saved state is bound to, in plain numbers and text."""
        return {
            name: value if isinstance(value, str | bool) else float(value)
            for name in LASTING
            for value in [getattr(self, name)]
        }

    def check_saved(self, saved: dict[str, Any]) -> None:
        """Raise WfcastError where a state was saved with others of those."""
        own = self.lasting
        odd = [name for name in LASTING if saved.get(name) != own[name]]
        if odd:
            then, now = (
                ", ".join(f"{name}={_shown(values.get(name))}" for name in odd)
                for values in (saved, own)
            )
            raise WfcastError(
                f"the state was saved with {then}, and this Farcasting has {now}: make it with the "
                "saved ones, or begin a new one at this step"
            )

    def rule(self, longest: float) -> Rule:
        """What gives the horizons; the forecaster's are at most `longest`."""
        fixed = None if self.adaptive else float(self.horizon)
        return Rule(fixed, longest, self.start, self.stop)


def check_kinds(model: Any, optimizer: Any, scheduler: Any, state_dtype: Any) -> None:
    """Raise WfcastError for what is no model, optimizer, scheduler or dtype of states."""
    if not isinstance(model, torch.nn.Module):
        raise WfcastError(f"model is a {type(model).__name__}, expected a torch.nn.Module")
    if not hasattr(optimizer, "param_groups"):
        raise WfcastError(
            f"optimizer is a {type(optimizer).__name__}, expected a torch.optim.Optimizer"
        )
    if scheduler is not None and not all(
        callable(getattr(scheduler, name, None)) for name in ("state_dict", "load_state_dict")
    ):
        raise WfcastError(
            f"scheduler is {scheduler!r:.80}, expected an object with state_dict and "
            "load_state_dict, or None"
        )
    dtypes = [getattr(torch, name) for name in FLOATS]
    if state_dtype is not None and state_dtype not in dtypes:
        expected = ", ".join(map(str, dtypes))
        raise WfcastError(f"state_dtype is {state_dtype!r}, expected one of {expected}, or None")


def check_function(name: str, function: Callable[..., Any] | None, *given: str) -> None:
    """Raise WfcastError for what is neither None nor can be called with so many arguments."""
    if function is None:
        return
    if not callable(function):
        raise WfcastError(f"{name} is {function!r:.80}, expected a function or None")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some written in C do not tell
        return
    try:
        signature.bind(*given)
    except TypeError as reason:
        arguments = f"as {name}({', '.join(given)})" if given else "without arguments"
        raise WfcastError(
            f"{name} is called {arguments}, and its signature is {signature}: wrap it, as in "
            f"{name}=lambda{' ' * bool(given)}{', '.join(given)}: f({', '.join(given) or 'model'})"
        ) from reason


def check_room(room: Any) -> None:
    """Raise WfcastError for what is no number of steps."""
    if room is None or (_is_integer(room) and room >= 0):
        return
    raise WfcastError(
        f"room is {room!r}, expected None or the steps that are left until the weights are looked "
        "at, an integer not below 0"
    )


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else repr(value)


def _is_integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
