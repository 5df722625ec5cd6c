"""What an optimizer holds: copied, put back, and changed by a jump."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from .._live.tensors import Slot, local
from ._store import Kept, Store


def _map(value: Any, change: Callable[[torch.Tensor], Any]) -> Any:
    """`value` with every tensor in it replaced, in dicts, lists and tuples of any depth."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, dict):
        return {k: _map(v, change) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_map(v, change) for v in value)
    return value


def tensors_in(value: Any) -> list[torch.Tensor]:
    """Every tensor in dicts, lists and tuples of any depth, in their order."""
    found: list[torch.Tensor] = []
    _map(value, found.append)
    return found


def _replace(value: Any, tensors: Sequence[Any]) -> Any:
    left = iter(tensors)
    return _map(value, lambda _: next(left))


def parameters_of(optimizer: Any) -> list[torch.Tensor]:
    """What the optimizer steps, in its own order."""
    return [p for group in optimizer.param_groups for p in group["params"]]


class OptimizerSnapshot:
    """A copy of an optimizer's state and settings, whatever the layout of the state.

    Attributes
    ----------
    state : list
        One entry per parameter, None where it had no state. Plain containers, numbers and tensors.
    groups : list of dict
        The settings of the parameter groups.
    """

    def __init__(self, state: list[Any], groups: list[dict[str, Any]], store: Store) -> None:
        self._kept: Kept = store.keep(tensors_in(state))
        self.state: list[Any] = _replace(state, self._kept.tensors)
        self.groups: list[dict[str, Any]] = _map(groups, lambda t: t.detach().clone())

    @classmethod
    def take(cls, optimizer: Any, store: Store) -> OptimizerSnapshot:
        """Copy it."""
        state = [
            dict(optimizer.state[p]) if p in optimizer.state else None
            for p in parameters_of(optimizer)
        ]
        groups = [
            {k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups
        ]
        return cls(state, groups, store)

    def restore(self, optimizer: Any, *, settings: bool) -> None:
        """Write it back, in place wherever a tensor is still there; `settings` of groups, too."""
        self._kept.settled()
        for parameter, then in zip(parameters_of(optimizer), self.state, strict=True):
            if then is None:
                optimizer.state.pop(parameter, None)
                continue
            now = optimizer.state[parameter]
            for key in now.keys() - then.keys():
                del now[key]
            for key, value in then.items():
                now[key] = _restored(now.get(key), value)
        for group, then in zip(optimizer.param_groups, self.groups, strict=True):
            for key, value in then.items() if settings else ():
                group[key] = _restored(group.get(key), value)

    def release(self, store: Store) -> None:
        """Give the memory back."""
        store.release(self._kept)

    def state_dict(self) -> dict[str, Any]:
        """A copy in plain containers."""
        self._kept.settled()
        return {"state": _map(self.state, torch.clone), "groups": _map(self.groups, torch.clone)}

    @classmethod
    def load(cls, state: dict[str, Any], store: Store) -> OptimizerSnapshot:
        """From what `state_dict` gave."""
        return cls(state["state"], state["groups"], store)


def _restored(now: Any, then: Any) -> Any:
    """`then`, written into the tensors of `now` where they fit."""
    if isinstance(then, torch.Tensor):
        if isinstance(now, torch.Tensor) and local(now).shape == then.shape:
            local(now).copy_(then)
            return now
        return then.clone()
    if isinstance(then, dict):
        old = now if isinstance(now, dict) else {}
        return {k: _restored(old.get(k), v) for k, v in then.items()}
    if isinstance(then, list | tuple):
        fits = isinstance(now, list | tuple) and len(now) == len(then)
        before = now if fits else [None] * len(then)
        return type(then)(_restored(a, b) for a, b in zip(before, then, strict=True))
    return then


FIRST_MOMENTS = ("exp_avg", "momentum_buffer")


def soften(optimizer: Any, slots: Sequence[Slot], how: str, factor: float) -> None:
    """What happens to the moments after a jump: kept, forgotten, or the first ones scaled."""
    for slot in slots:
        if how == "reset":
            optimizer.state.pop(slot.parameter, None)
        elif how == "scale" and slot.parameter in optimizer.state:
            for key in FIRST_MOMENTS:
                moment = optimizer.state[slot.parameter].get(key)
                if isinstance(moment, torch.Tensor):
                    local(moment).mul_(factor)
