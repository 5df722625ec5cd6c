"""What a jump changes: the weights of a model, beside what trains it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from .._errors import WfcastError
from .._live.tensors import Slot, Vector, bare, combine, local, reshard
from ._adapters import product
from ._optimizer import parameters_of


class Training:
    """A model with its optimizer and scheduler, and the parameters of it that are forecast.

    Attributes
    ----------
    model : torch.nn.Module
    optimizer : torch.optim.Optimizer
    scheduler : object or None
    slots : list of Slot
    pairs : list of (int, int)
        Where among the slots LoRA's factors A and B are whose product is forecast.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: Any,
        scheduler: Any,
        slots: list[Slot],
        pairs: list[tuple[int, int]] | None = None,
    ) -> None:
        self.model, self.optimizer, self.scheduler = model, optimizer, scheduler
        self.slots, self.pairs = slots, pairs or []
        self._stepped = {id(p) for p in parameters_of(optimizer)}
        self._shapes = {s.name: tuple(s.parameter.shape) for s in slots}

    @property
    def parameters(self) -> list[torch.Tensor]:
        """What is forecast: the optimizer's tensors."""
        return [slot.parameter for slot in self.slots]

    @property
    def weights(self) -> list[torch.Tensor]:
        """The parts of them that this process holds, in their own memory."""
        return [slot.local for slot in self.slots]

    @property
    def named(self) -> dict[str, torch.Tensor]:
        """All parameters of the model, and what else the optimizer steps, by name."""
        found = {bare(name): p for name, p in self.model.named_parameters()}
        known = {id(p) for p in found.values()}
        stepped = enumerate(parameters_of(self.optimizer))
        return found | {f"the optimizer's tensor {i}": p for i, p in stepped if id(p) not in known}

    @property
    def stepped(self) -> list[list[str]]:
        """The names of what the optimizer steps, by parameter group."""
        names = {id(p): name for name, p in self.named.items()}
        return [[names[id(p)] for p in group["params"]] for group in self.optimizer.param_groups]

    @property
    def others(self) -> list[str]:
        """What else is trained, and does not jump: a jump that is taken back takes it back, too."""
        own = {id(t) for slot in self.slots for t in (slot.parameter, *slot.copies)}
        stepped = {id(p) for p in parameters_of(self.optimizer)}
        return [
            name
            for name, p in self.named.items()
            if id(p) not in own and (p.requires_grad or id(p) in stepped)
        ]

    def check_named(self, saved: Mapping[str, torch.Tensor]) -> None:
        """Raise WfcastError where these are values of other parameters, by name or shape."""
        named = self.named
        for name, values in saved.items():
            if name not in named:
                raise WfcastError(f"parameter {name!r} is gone, and its values cannot be put back")
            shape = local(named[name]).shape
            if values.shape != shape:
                raise WfcastError(
                    f"parameter {name!r} is {list(shape)}, and was {list(values.shape)} when its "
                    "values were kept"
                )

    def check_unchanged(self) -> None:
        """Raise WfcastError where parameters came, went, were replaced or changed their shapes."""
        present = {id(p) for p in parameters_of(self.optimizer)}
        fresh = len(present - self._stepped)
        gone = [s.name for s in self.slots if id(s.parameter) not in present]
        if gone:
            raise WfcastError(
                f"{len(gone)} parameters, {gone[0]!r} first, are no longer in the optimizer: make "
                "a new Farcasting after changing them"
            )
        if fresh:
            raise WfcastError(
                f"{fresh} parameters that were not there came to the optimizer: close() this "
                "Farcasting before add_param_group, and make a new one after it; now close() by "
                "close(undo=False)"
            )
        replaced = self._replaced()
        if replaced:
            reshard(self.model)  # gathered weights stand in for their shards
            replaced = self._replaced()
        if replaced:
            raise WfcastError(
                f"parameter {replaced[0]!r} of the model is another tensor than the one that "
                "Farcasting was made with: make a new optimizer and a new Farcasting after "
                "replacing layers"
            )
        for slot in self.slots:
            shape = tuple(slot.parameter.shape)
            if shape != self._shapes[slot.name]:
                raise WfcastError(
                    f"parameter {slot.name!r} is {list(shape)} now and was "
                    f"{list(self._shapes[slot.name])}: make a new Farcasting after resizing"
                )

    def _replaced(self) -> list[str]:
        """The slots that the model has other tensors for by now, or none."""
        present = {id(p) for p in self.model.parameters()}
        return [
            slot.name
            for slot in self.slots
            if not all(id(p) in present for p in slot.copies or (slot.parameter,))
        ]

    def check_saved(self, names: Sequence[str], states: Iterable[Sequence[torch.Tensor]]) -> None:
        """Raise WfcastError where saved states are of parameters of other names or shapes."""
        own = [slot.name for slot in self.slots]
        if list(names) != own:
            odd = sorted(set(own) ^ set(names)) or own
            raise WfcastError(
                f"the state was saved for {len(names)} parameters, expected {len(own)}; "
                f"{odd[0]!r} is among those that differ"
            )
        for state in states:
            for slot, tensor in zip(self.slots, state, strict=True):
                if tensor.shape != slot.local.shape:
                    raise WfcastError(
                        f"the saved state of {slot.name!r} is {list(tensor.shape)}, expected "
                        f"{list(slot.local.shape)}"
                    )

    def write(self, weights: Sequence[torch.Tensor]) -> None:
        """Replace the weights."""
        reshard(self.model)
        with torch.no_grad():
            torch._foreach_copy_(self.weights, list(weights))
            for slot in self.slots:
                slot.spread()

    def jump(
        self,
        before: Sequence[Sequence[torch.Tensor]],
        coefficients: Callable[[str], tuple[Vector, float]],
    ) -> None:
        """Replace the weights by ``sum_k a_k w_k + b`` over the states `before` and themselves.

        Those of `pairs` are left to `jump_product`.

        Parameters
        ----------
        before : sequence of states
            Oldest first, each one tensor per slot.
        coefficients : callable
            ``coefficients(name) -> (a, b)``.

        Raises
        ------
        WfcastError
            NaN, infinity or overflow; some weights may have been replaced by then.
        """
        reshard(self.model)
        apart = {place for pair in self.pairs for place in pair}
        moving = [
            (slot, [*(state[i] for state in before), slot.local])
            for i, slot in enumerate(self.slots)
            if i not in apart and _trained(slot)
        ]
        with torch.no_grad():
            combine((f"parameter {s.name!r}", s.local, w, coefficients(s.name)) for s, w in moving)
            for slot, _ in moving:
                slot.spread()

    def jump_product(
        self,
        pair: tuple[int, int],
        states: Sequence[tuple[torch.Tensor, torch.Tensor]],
        coefficients: Sequence[float],
    ) -> None:
        """Replace the factors A and B by those of ``sum_k c_k B_k A_k``, of their own rank.

        Raises
        ------
        WfcastError
            NaN, infinity or overflow.
        """
        slots = [self.slots[place] for place in pair]
        if not all(_trained(slot) for slot in slots):
            return
        whole = all(bool(factor.isfinite().all()) for state in states for factor in state)
        made = product([*states, (slots[0].local, slots[1].local)], [*coefficients, 0.0])
        with torch.no_grad():
            for slot, factor in zip(slots, made, strict=True):
                if not whole or not bool(factor.isfinite().all()):
                    raise WfcastError(
                        f"parameter {slot.name!r}: the forecast holds NaN or infinity, or overflows"
                    )
                slot.local.copy_(factor)
                slot.spread()


def _trained(slot: Slot) -> bool:
    """Whether it was not frozen since."""
    return all(p.requires_grad for p in slot.copies or (slot.parameter,))
