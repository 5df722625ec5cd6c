"""Who looks at the weights while a jump is under judgement: other code that saves or evaluates."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_watched: weakref.WeakKeyDictionary[torch.nn.Module, Onlookers] = weakref.WeakKeyDictionary()


class Onlookers:
    """Warns once where a model is saved or evaluated while it is watched.

    Parameters
    ----------
    model : torch.nn.Module
        Watched with the models inside it where it is compiled or DistributedDataParallel.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._models = list(_unwrapped(model))
        self._hooks: list[Any] = []
        self._own = False
        self._warned = False

    def watch(self) -> None:
        """A jump is under judgement."""
        for model in self._models:
            _watched[model] = self
            self._hooks.append(model.register_state_dict_pre_hook(_saved))
            self._hooks.append(model.register_forward_pre_hook(_evaluated))

    def rest(self) -> None:
        """None is."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        for model in self._models:
            _watched.pop(model, None)

    @contextmanager
    def own(self) -> Iterator[None]:
        """What looks at the weights inside belongs to Farcasting itself."""
        before, self._own = self._own, True
        try:
            yield
        finally:
            self._own = before

    def seen(self, what: str, depth: int) -> None:
        """Warn of it where the code is that is `depth` calls away."""
        if self._own or self._warned:
            return
        self._warned = True
        warnings.warn(
            f"the model is being {what} while a jump of Farcasting is under judgement, and may be "
            "worse than it was before: look at it where `settled` is True, or pass step() the room "
            "until then",
            stacklevel=depth + 1,
        )


# Hooks that belong to no object: a model may be pickled with them, and its copies are not watched.


def _saved(model: torch.nn.Module, *_: Any) -> None:
    if model in _watched:
        _watched[model].seen("saved", depth=3)


def _evaluated(model: torch.nn.Module, _: Any) -> None:
    if torch.compiler.is_compiling():  # a warning would break the graph
        return
    if model in _watched and not model.training and not torch.is_grad_enabled():
        _watched[model].seen("evaluated", depth=5)


def _unwrapped(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """The model, and what is inside it where that is a wrapper."""
    parallel = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)
    inside: Any = model
    while inside is not None:
        yield inside
        inner = inside.module if isinstance(inside, parallel) else None
        inside = getattr(inside, "_orig_mod", inner)
