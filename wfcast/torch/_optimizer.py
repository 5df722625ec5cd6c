"""What an optimizer holds: copied, put back, and changed by a jump."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch

from .._errors import WfcastError
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


def _settings(optimizer: Any) -> list[dict[str, Any]]:
    """Of the parameter groups."""
    return [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]


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
        self,
        parameters: list[list[torch.Tensor]],
        state: list[Any],
        places: list[Any],
        groups: list[dict[str, Any]],
        store: Store,
    ) -> None:
        self._parameters = parameters
        self._kept: Kept = store.keep(tensors_in(state))
        self._places = places  # as `state`, with a `Placing` for every tensor
        self.state: list[Any] = _replace(state, self._kept.tensors)
        self.groups: list[dict[str, Any]] = _map(groups, lambda t: t.detach().clone())

    @classmethod
    def take(cls, optimizer: Any, store: Store) -> OptimizerSnapshot:
        """Copy it."""
        parameters = [list(group["params"]) for group in optimizer.param_groups]
        state = [
            dict(optimizer.state[p]) if p in optimizer.state else None
            for p in parameters_of(optimizer)
        ]
        return cls(parameters, state, _map(state, _beside), _settings(optimizer), store)

    def check(self, optimizer: Any) -> None:
        """Raise WfcastError where it has other parameter groups by now."""
        now = [[id(p) for p in group["params"]] for group in optimizer.param_groups]
        if now != [[id(p) for p in group] for group in self._parameters]:
            raise WfcastError(
                "the optimizer has other parameter groups than before the jump that is under way, "
                "which cannot be taken back: change them where `settled` is True"
            )

    def restoring(self, optimizer: Any, *, settings: bool) -> Callable[[], None]:
        """What writes it back, in place wherever a tensor is there; `settings` of groups, too.

        All that may fail, as memory does, has been done by then, and nothing was written.
        """
        self._kept.settled()
        copies: list[tuple[torch.Tensor, torch.Tensor]] = []
        parameters = parameters_of(optimizer)
        states: list[dict[str, Any] | None] = []
        for parameter, then, places in zip(parameters, self.state, self._places, strict=True):
            now = optimizer.state.get(parameter, {})
            states.append(None if then is None else _restored(now, then, places, copies))
        groups: list[dict[str, Any]] = [
            _restored(group, then, _map(then, _beside), copies) if settings else {}
            for group, then in zip(optimizer.param_groups, self.groups, strict=True)
        ]

        def write() -> None:
            with torch.no_grad():
                for tensor, values in copies:
                    tensor.copy_(values)
            for parameter, state in zip(parameters, states, strict=True):
                if state is None:
                    optimizer.state.pop(parameter, None)
                    continue
                optimizer.state[parameter].clear()
                optimizer.state[parameter].update(state)
            for group, then in zip(optimizer.param_groups, groups, strict=True):
                group.update(then)

        return write

    def release(self, store: Store) -> None:
        """Give the memory back."""
        store.release(self._kept)

    def state_dict(self) -> dict[str, Any]:
        """A copy in plain containers."""
        self._kept.settled()
        return {"state": _map(self.state, torch.clone), "groups": _map(self.groups, torch.clone)}

    @staticmethod
    def check_saved(state: dict[str, Any], optimizer: Any) -> None:
        """Raise WfcastError where what `state_dict` gave is of another kind of optimizer."""
        saved, own = len(state["state"]), len(parameters_of(optimizer))
        if saved != own:
            raise WfcastError(
                f"the optimizer of the saved state steps {saved} parameters, expected {own}"
            )
        odd = {
            key
            for then, now in zip(state["groups"], _settings(optimizer), strict=True)
            for key in then.keys() ^ now.keys()
        }
        if odd:
            raise WfcastError(
                f"the state was saved with another kind of optimizer than this "
                f"{type(optimizer).__name__}: only one of both has {min(odd)!r}"
            )

    @classmethod
    def load(cls, state: dict[str, Any], optimizer: Any, store: Store) -> OptimizerSnapshot:
        """From what `state_dict` gave, for an optimizer of as many parameters."""
        owners = [(p, group) for group in optimizer.param_groups for p in group["params"]]
        places = [
            None if of_one is None else _places_of(of_one, *owner)
            for of_one, owner in zip(state["state"], owners, strict=True)
        ]
        parameters = [list(group["params"]) for group in optimizer.param_groups]
        return cls(parameters, state["state"], places, state["groups"], store)


def _restored(
    now: Any, then: Any, place: Any, copies: list[tuple[torch.Tensor, torch.Tensor]]
) -> Any:
    """`then` in the tensors of `now` where they fit, to be copied yet, or placed by `place`."""
    if isinstance(then, torch.Tensor):
        if isinstance(now, torch.Tensor) and local(now).shape == then.shape:
            copies.append((local(now), then))
            return now
        return place(then)
    if isinstance(then, dict):
        old = now if isinstance(now, dict) else {}
        return {k: _restored(old.get(k), v, place[k], copies) for k, v in then.items()}
    if isinstance(then, list | tuple):
        fits = isinstance(now, list | tuple) and len(now) == len(then)
        before = now if fits else [None] * len(then)
        parts = zip(before, then, place, strict=True)
        return type(then)(_restored(*part, copies) for part in parts)
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
