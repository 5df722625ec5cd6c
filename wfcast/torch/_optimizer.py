"""What an optimizer holds: copied, put back, and changed by a jump."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

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


Placing = Callable[[torch.Tensor], torch.Tensor]
"""Makes of a copy of this process's part a tensor of its own, on a device and of a kind."""


def _beside(tensor: torch.Tensor) -> Placing:
    """As this one lies: a DTensor over the same mesh where it is one."""
    device, sharded = local(tensor).device, cast(Any, tensor)
    if not hasattr(tensor, "to_local"):
        return lambda part: part.to(device, copy=True)
    make, mesh, placements = type(sharded).from_local, sharded.device_mesh, sharded.placements
    shape, stride = tensor.shape, tensor.stride()
    return lambda part: make(
        part.to(device, copy=True), mesh, placements, run_check=False, shape=shape, stride=stride
    )


def _places_of(
    state: dict[str, Any], parameter: torch.Tensor, group: dict[str, Any]
) -> dict[str, Any]:
    """Where a parameter's saved state goes: as torch loads it, what has its shape as its shard."""
    here = local(parameter)
    on_cpu = not (group.get("capturable") or group.get("fused"))

    def place(key: str, part: torch.Tensor) -> Placing:
        if key == "step":
            return torch.clone if on_cpu else _beside(here)
        return _beside(parameter if part.shape == here.shape else here)

    return {key: _map(value, partial(place, key)) for key, value in state.items()}


class OptimizerSnapshot:
    """A copy of an optimizer's state and settings, whatever the layout of the state.

    Attributes
    ----------
    state : list
        One entry per parameter, None where it had no state. Plain containers, numbers and tensors.
    groups : list of dict
        The settings of the parameter groups.
    """

    def __init__(
        self, state: list[Any], places: list[Any], groups: list[dict[str, Any]], store: Store
    ) -> None:
        self._kept: Kept = store.keep(tensors_in(state))
        self._places = places  # as `state`, with a `Placing` for every tensor
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
        return cls(state, _map(state, _beside), groups, store)

    def restore(self, optimizer: Any, *, settings: bool) -> None:
        """Write it back, in place wherever a tensor is still there; `settings` of groups, too."""
        self._kept.settled()
        parameters = parameters_of(optimizer)
        for parameter, then, places in zip(parameters, self.state, self._places, strict=True):
            if then is None:
                optimizer.state.pop(parameter, None)
                continue
            now = optimizer.state[parameter]
            for key in now.keys() - then.keys():
                del now[key]
            for key, value in then.items():
                now[key] = _restored(now.get(key), value, places[key])
        for group, then in zip(optimizer.param_groups, self.groups, strict=True):
            for key, value in then.items() if settings else ():
                group[key] = _restored(group.get(key), value, _map(value, _beside))

    def release(self, store: Store) -> None:
        """Give the memory back."""
        store.release(self._kept)

    def state_dict(self) -> dict[str, Any]:
        """A copy in plain containers."""
        self._kept.settled()
        return {"state": _map(self.state, torch.clone), "groups": _map(self.groups, torch.clone)}

    @classmethod
    def load(cls, state: dict[str, Any], optimizer: Any, store: Store) -> OptimizerSnapshot:
        """From what `state_dict` gave, for an optimizer of as many parameters."""
        owners = [(p, group) for group in optimizer.param_groups for p in group["params"]]
        places = [
            None if of_one is None else _places_of(of_one, *owner)
            for of_one, owner in zip(state["state"], owners, strict=True)
        ]
        return cls(state["state"], places, state["groups"], store)


def _restored(now: Any, then: Any, place: Any) -> Any:
    """`then`, written into the tensors of `now` where they fit, or placed as `place` has it."""
    if isinstance(then, torch.Tensor):
        if isinstance(now, torch.Tensor) and local(now).shape == then.shape:
            local(now).copy_(then)
            return now
        return place(then)
    if isinstance(then, dict):
        old = now if isinstance(now, dict) else {}
        return {k: _restored(old.get(k), v, place[k]) for k, v in then.items()}
    if isinstance(then, list | tuple):
        fits = isinstance(now, list | tuple) and len(now) == len(then)
        before = now if fits else [None] * len(then)
        return type(then)(map(_restored, before, then, place))
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
