"""Recorded states of a model, parameter by parameter, and weights made of them in place."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from .._columns import is_tensor
from .._errors import CheckpointError, WfcastError
from .._runs import COPY, check_run
from ..checkpoint import open_checkpoint
from .tensors import Slot, Vector, all_names, bare, check_slot, combine, known, local, reshard


def parameters(model: torch.nn.Module) -> list[Slot]:
    """Every parameter of a model to forecast: frozen ones, too, unless they are quantised."""
    slots = [Slot(bare(name), p) for name, p in model.named_parameters()]
    return [s for s in slots if s.parameter.requires_grad or known(s.parameter)]


class States:
    """The states of a run, opened, for some parameters.

    Parameters
    ----------
    run : {step: state_dict, module or path}
    steps : sequence of int
        Which of them, in order.
    slots : sequence of Slot
        The parameters; names that begin with "module." or the like are found, too. Frozen ones may
        lack in all states, as the base of an adapter does: then `slots` is without them.
    """

    def __init__(self, run: Any, steps: Sequence[int], slots: Sequence[Slot]) -> None:
        found = check_run(run, tuple(steps), "states")
        self.steps = tuple(steps)
        self._there: dict[str, list[torch.Tensor]] = {}
        self._sources = [self._open(found[s], s) for s in self.steps]
        slots = [
            s
            for s in slots
            if s.parameter.requires_grad or any(s.name in source for source in self._sources)
        ]
        self.slots = slots
        for step, source in zip(self.steps, self._sources, strict=True):
            missing = [s.name for s in slots if s.name not in source]
            if missing:
                raise CheckpointError(
                    f"the state at step {step} lacks {len(missing)} of the model's "
                    f"{len(slots)} parameters, {missing[0]!r} first"
                )
        for slot in slots:
            check_slot(slot)
            for step, state in zip(self.steps, self.of(slot), strict=True):
                if state.shape != slot.local.shape:
                    raise CheckpointError(
                        f"parameter {slot.name!r} is {list(slot.local.shape)} in the model, "
                        f"{list(state.shape)} in the state at step {step}"
                    )
        self._check_apart()
        self._move()

    def _check_apart(self) -> None:
        """No state is another one, or the model itself, whose weights are written."""
        held = [s for s in self.slots if s.local.numel()]
        places: dict[tuple[int, ...], int] = {}
        for k, step in enumerate(self.steps):
            own = [self.of(slot)[k] for slot in held]
            for slot, state in zip(held, own, strict=True):
                if state.device == slot.local.device and _share_memory(state, slot.local):
                    raise CheckpointError(
                        f"the state at step {step} shares the memory of parameter {slot.name!r}, "
                        f"which is written: {COPY}"
                    )
            other = places.setdefault(tuple(state.data_ptr() for state in own), step)
            if other != step and own:
                raise CheckpointError(
                    f"the states at steps {other} and {step} are the same tensors in memory: {COPY}"
                )

    @staticmethod
    def _open(source: Any, step: int) -> Mapping[str, Any]:
        if isinstance(source, torch.nn.Module):
            source = source.state_dict()
        if isinstance(source, Mapping) and all(is_tensor(v) for v in source.values()):
            return {bare(name): value for name, value in source.items()}
        return _Opened(open_checkpoint(source, f"states, step {step}"))

    def _move(self) -> None:
        """To the GPU that the parameters are on, if half of what is free there is enough."""
        sizes: dict[torch.device, int] = {}
        for slot in self.slots:
            device, size = slot.local.device, len(self.steps) * slot.local.nbytes
            sizes[device] = sizes.get(device, 0) + size
        for device, size in sizes.items():
            if device.type == "cuda" and 2 * size <= torch.cuda.mem_get_info(device)[0]:
                for slot in self.slots:
                    if slot.local.device == device:
                        self._there[slot.name] = [t.to(device) for t in self.of(slot)]

    def of(self, slot: Slot) -> list[torch.Tensor]:
        """One parameter at every step: the part that this process holds."""
        there = self._there.get(slot.name)
        return there or [local(source[slot.name]) for source in self._sources]


def _share_memory(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr() != 0


class _Opened(Mapping[str, torch.Tensor]):
    """A checkpoint's tensors over its own memory."""

    def __init__(self, checkpoint: Any) -> None:
        self._checkpoint = checkpoint

    def __getitem__(self, name: str) -> torch.Tensor:
        column = self._checkpoint.column(self._checkpoint.tied.get(name, name))
        if is_tensor(column.owner):
            return column.owner  # type: ignore[no-any-return]
        array = column.array if column.array.flags.writeable else column.array.copy()
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        return tensor.view(torch.bfloat16) if column.dtype == "bfloat16" else tensor

    def __iter__(self) -> Iterator[str]:
        yield from self._checkpoint.tensors
        yield from self._checkpoint.tied

    def __len__(self) -> int:
        return len(self._checkpoint.tensors) + len(self._checkpoint.tied)


def write(
    model: torch.nn.Module,
    slots: Sequence[Slot],
    states: States,
    coefficients: Callable[[str], tuple[Vector, float]],
) -> None:
    """Replace the weights by ``sum_k a_k states_k + b``; `coefficients(name)` gives a and b."""
    reshard(model)
    with torch.no_grad():
        combine(
            (f"parameter {s.name!r}", s.local, states.of(s), coefficients(s.name)) for s in slots
        )


@contextmanager
def restored(model: torch.nn.Module, slots: Sequence[Slot]) -> Iterator[None]:
    """The weights afterwards are those before, to the bit and in the same memory."""
    reshard(model)
    kept = [slot.local.clone() for slot in slots]
    try:
        yield
    finally:
        reshard(model)
        with torch.no_grad():
            for slot, then in zip(slots, kept, strict=True):
                slot.local.copy_(then)


@contextmanager
def applied(
    model: torch.nn.Module,
    run: Any,
    inputs: Sequence[int],
    names: Container[str] | None,
    coefficients: Callable[[str], tuple[Vector, float]],
) -> Iterator[torch.nn.Module]:
    """A context in which the model has the weights ``sum_k a_k w_k + b``, w_k those of a run.

    Parameters
    ----------
    model : torch.nn.Module
        Its parameters get their own values back, to the bit, however the block ends.
    run : {step: state_dict, module or path}
    inputs : sequence of int
        The steps k.
    names : container of str or None
        The parameters to replace, a tied one by any of its names; None stands for all of them.
    coefficients : callable
        ``coefficients(name) -> (a, b)``.

    Raises
    ------
    CheckpointError
        A step or a parameter is missing, or a shape differs.
    WfcastError
        No module, none of its parameters among `names`, or a value at fault.
    """
    if not isinstance(model, torch.nn.Module):
        raise WfcastError(f"model is a {type(model).__name__}, expected a torch.nn.Module")
    slots = parameters(model)
    if names is not None:
        slots = _by_names(slots, names, all_names(model))
    if not slots:
        raise WfcastError("the forecaster has coefficients for none of the model's parameters")
    states = States(run, inputs, slots)
    with restored(model, states.slots):
        write(model, states.slots, states, coefficients)
        yield model


def _by_names(
    slots: Sequence[Slot], names: Container[str], known_as: Mapping[str, Sequence[str]]
) -> list[Slot]:
    """The parameters among `names`, each under the first of its own names that is there."""
    found = ((s, next((n for n in known_as[s.name] if n in names), None)) for s in slots)
    return [replace(slot, name=name) for slot, name in found if name is not None]
