"""The buffers of a live model, kept and put back by name."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch

from .._errors import WfcastError
from .tensors import bare, local

Buffers = Mapping[str, torch.Tensor | None]
"""By bare name; None for one that is registered without a value."""


Place = tuple[torch.nn.Module, str]
"""A module, and the name of a buffer there."""


def _places(model: torch.nn.Module) -> dict[str, Place]:
    """Where its buffers are, those without a value included."""
    return {
        bare(f"{name}.{key}" if name else key): (module, key)
        for name, module in model.named_modules()
        for key in module._buffers.keys()  # noqa: SIM118  torch.jit's have nothing else
    }


def _places_for(model: torch.nn.Module, names: Iterable[str]) -> dict[str, Place | None]:
    """Where buffers are, or would be; None where there is no such module."""
    present = _places(model)
    modules = {bare(f"{path}.")[:-1]: module for path, module in model.named_modules() if path}
    modules[""] = model
    found: dict[str, Place | None] = {}
    for name in names:
        parent, _, key = name.rpartition(".")
        there = (modules[parent], key) if parent in modules else None
        found[name] = present.get(name, there)
    return found


def buffers_of(model: torch.nn.Module) -> dict[str, torch.Tensor | None]:
    """What it has now."""
    return {name: module._buffers[key] for name, (module, key) in _places(model).items()}


def persistent_buffers(model: torch.nn.Module) -> set[str]:
    """Those that a state dict of the model holds."""
    return {
        name
        for name, (module, key) in _places(model).items()
        if key not in module._non_persistent_buffers_set
    }


def check_buffers(model: torch.nn.Module, then: Buffers) -> None:
    """Raise WfcastError where `put_buffers` could not give the model these buffers again."""
    for name, place in _places_for(model, then).items():
        values, (module, key) = then[name], place or (None, "")
        if module is None or (key not in module._buffers and hasattr(module, key)):
            raise WfcastError(
                f"buffer {name!r} cannot be put back: its module is gone, or something else has "
                "its name"
            )
        now = module._buffers.get(key)
        if now is not None and hasattr(now, "to_local") and not _fits(now, values):
            raise WfcastError(
                f"buffer {name!r} is spread over processes and has another shape than before, so "
                "it cannot be put back"
            )


def put_buffers(model: torch.nn.Module, then: Buffers, lasting: Container[str]) -> None:
    """Give the model these buffers again, and no others.

    Parameters
    ----------
    model : torch.nn.Module
    then : mapping
        The parts that this process holds. Of one that has its shape it gets the values; one that
        has another by now, or is gone, is registered again.
    lasting : container of str
        Those that are persistent.
    """
    present = _places(model)
    for name in present.keys() - then.keys():
        delattr(*present[name])
    device = next((local(p).device for p in model.parameters()), None)
    for name, place in _places_for(model, then).items():
        assert place is not None
        values, (module, key) = then[name], place
        now = module._buffers.get(key)
        if now is not None and values is not None and _fits(now, values):
            with torch.no_grad():
                local(now).copy_(values)
        elif now is not None or values is not None:
            at = device if now is None else now.device
            fresh = None if values is None else values.to(at, copy=True)
            module.register_buffer(key, fresh, persistent=name in lasting)


def copies_of_buffers(model: torch.nn.Module) -> dict[str, torch.Tensor | None]:
    """Copies of the parts of them that this process holds, to put back."""
    return {name: None if b is None else local(b).clone() for name, b in buffers_of(model).items()}


@contextmanager
def buffers_restored(model: torch.nn.Module) -> Iterator[None]:
    """The buffers afterwards are those before, whatever becomes of them."""
    lasting = persistent_buffers(model)
    then = copies_of_buffers(model)
    try:
        yield
    finally:
        put_buffers(model, then, lasting)


def _fits(now: torch.Tensor | None, values: torch.Tensor | None) -> bool:
    return now is not None and values is not None and local(now).shape == values.shape
