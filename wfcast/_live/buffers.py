"""The buffers of a live model, kept and put back by name."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager

import torch

from .._errors import WfcastError
from .tensors import bare, local

Buffers = Mapping[str, torch.Tensor | None]
"""By bare name; None for one that is registered without a value."""


def _modules(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    return {bare(f"{name}."): module for name, module in model.named_modules()}


def buffers(model: torch.nn.Module) -> dict[str, torch.Tensor | None]:
    """What it has now."""
    return {
        prefix + key: buffer
        for prefix, module in _modules(model).items()
        for key, buffer in module._buffers.items()
    }


def persistent(model: torch.nn.Module) -> set[str]:
    """Those that a state dict of the model holds."""
    return {
        prefix + key
        for prefix, module in _modules(model).items()
        for key in module._buffers.keys() - module._non_persistent_buffers_set
    }


def check(model: torch.nn.Module, then: Buffers) -> None:
    """Raise WfcastError where `put_back` could not give the model these buffers again."""
    modules = _modules(model)
    for name, values in then.items():
        prefix, key = _split(name)
        module = modules.get(prefix)
        if module is None or (key not in module._buffers and hasattr(module, key)):
            raise WfcastError(
                f"buffer {name!r} cannot be put back: the model has no such module any more, or "
                "something else by that name"
            )
        now = module._buffers.get(key)
        if hasattr(now, "to_local") and not _fits(now, values):
            raise WfcastError(
                f"buffer {name!r} is spread over processes and has another shape now, so it cannot "
                "be put back"
            )


def put_back(model: torch.nn.Module, then: Buffers, lasting: Container[str]) -> None:
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
    modules = _modules(model)
    for name in buffers(model).keys() - then.keys():
        prefix, key = _split(name)
        delattr(modules[prefix], key)
    device = next((local(p).device for p in model.parameters()), None)
    for name, values in then.items():
        prefix, key = _split(name)
        module = modules[prefix]
        now = module._buffers.get(key)
        if now is not None and values is not None and _fits(now, values):
            with torch.no_grad():
                local(now).copy_(values)
        elif now is not None or values is not None:
            place = device if now is None else now.device
            fresh = None if values is None else values.to(place, copy=True)
            module.register_buffer(key, fresh, persistent=name in lasting)


@contextmanager
def restored(model: torch.nn.Module) -> Iterator[None]:
    """The buffers afterwards are those before, whatever becomes of them."""
    lasting = persistent(model)
    then = {name: None if b is None else local(b).clone() for name, b in buffers(model).items()}
    try:
        yield
    finally:
        put_back(model, then, lasting)


def _split(name: str) -> tuple[str, str]:
    """The module, with a dot behind it, and the buffer's name there."""
    prefix, dot, key = name.rpartition(".")
    return prefix + dot, key


def _fits(now: torch.Tensor | None, values: torch.Tensor | None) -> bool:
    return now is not None and values is not None and local(now).shape == values.shape
