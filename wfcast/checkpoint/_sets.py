"""Which of the nested mappings in a file holds the weights, where there may be several such sets.

A set is a mapping of names to tensors, and its name the keys that lead to it, joined by dots. An
optimizer's state is none, and neither is what stands under a key that is no text or a module's
extra state. Losses, counts and the like, tensors of one element or of integers, make no set where
another one has weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .._errors import CheckpointError, warn

KEYS = ("state_dict", "model_state_dict", "model", "module", "weights")
"""Where libraries keep the weights of the model; of several sets the first of these is taken."""

TOP = "."
"""The name of the set that is the file's own mapping."""

DEPTH = 20
"""How far down sets are looked for: a mapping that holds itself has no end."""

SHOWN = 8

_OPTIMIZERS = {"opt", "optim", "optims", "scheduler", "schedulers", "lr_scheduler", "lr_schedulers"}
_OPTIMIZERS |= {"scaler", "grad_scaler", "loops", "callbacks", "rng", "rng_state", "rng_states"}


def of_training(key: str) -> bool:
    """Whether a key is that of an optimizer's state, or of what else trains the model."""
    return key in _OPTIMIZERS or key.startswith("optimizer")


@dataclass(frozen=True, slots=True)
class StateSet:
    """A mapping of names to tensors, and the keys that lead to it."""

    keys: tuple[str, ...]
    state: Mapping[Any, Any]

    @property
    def name(self) -> str:
        """The keys, joined by dots."""
        return ".".join(self.keys) or TOP


def beside(whole: Any, keys: tuple[str, ...]) -> list[dict[str, Any]]:
    """What stands beside each of the keys that lead to a set."""
    found = []
    for key in keys:
        found.append({k: v for k, v in whole.items() if isinstance(k, str) and k != key})
        whole = whole[key]
    return found


def sets_in(
    whole: Any, is_tensor: Callable[[Any], bool], is_weight: Callable[[Any], bool]
) -> list[StateSet]:
    """The sets of weights in nested mappings, in their order there.

    Parameters
    ----------
    whole : object
    is_tensor, is_weight : callable
        Whether a value is a tensor, and one that can be a weight: floating, of several elements.
    """
    seen: set[int] = set()
    found: list[tuple[StateSet, bool]] = []

    def look(here: Any, keys: tuple[str, ...]) -> None:
        if not isinstance(here, Mapping) or id(here) in seen or len(keys) > DEPTH:
            return
        seen.add(id(here))
        if "param_groups" in here:
            return
        own = {k: v for k, v in here.items() if is_tensor(v)}
        if own and all(isinstance(k, str) for k in own):
            found.append((StateSet(keys, here), any(map(is_weight, own.values()))))
        for key, value in here.items():
            if isinstance(key, str) and not of_training(key) and not key.endswith("_extra_state"):
                look(value, (*keys, key))

    look(whole, ())
    with_weights = [one for one, weighty in found if weighty]
    return with_weights or [one for one, _ in found]


def chosen_set(sets: list[StateSet], key: str | None, whole: Any, what: str) -> StateSet:
    """The set of a name, or the one that holds the model.

    Raises
    ------
    CheckpointError
        There is none, none of that name, or several and nothing that tells the model's.
    """
    if not sets:
        raise CheckpointError(f"{what} holds {_no_state(whole)}")
    if key is not None:
        return _named(sets, key, what)
    if len(sets) == 1:
        return sets[0]
    found = next(_preferred(sets), None)
    if found is None:
        raise CheckpointError(
            f"{what} holds several sets of weights: {listed(sets)}; say which one is meant: key= "
            "(--key)"
        )
    others = [one for one in sets if one is not found]
    warn(
        f"{found.name!r} is taken, and other sets of weights in the file are not: "
        f"{listed(others)}; key= (--key) takes another one"
    )
    return found


def _named(sets: list[StateSet], key: str, what: str) -> StateSet:
    found = [one for one in sets if one.name == key]
    found = found or [one for one in sets if one.keys and one.keys[-1] == key]
    if len(found) != 1:
        none = "no set" if not found else f"{len(found)} sets"
        raise CheckpointError(f"{what} holds {none} of weights named {key!r}: {listed(sets)}")
    return found[0]


def _preferred(sets: list[StateSet], depth: int = 0) -> Iterator[StateSet]:
    """The only set under the first of `KEYS`, and so on inside that."""
    for key in KEYS:
        under = [one for one in sets if one.keys[depth : depth + 1] == (key,)]
        if len(under) == 1:
            yield under[0]
        elif under:
            here = [one for one in under if len(one.keys) == depth + 1]
            yield from here or _preferred(under, depth + 1)
        if under:
            return


def listed(sets: list[StateSet]) -> str:
    """Their names, as a message has them."""
    more = f" and {len(sets) - SHOWN} more" if len(sets) > SHOWN else ""
    return ", ".join(repr(one.name) for one in sets[:SHOWN]) + more


def _no_state(whole: Any) -> str:
    """What a message says of an object without a state dict."""
    shown: Any = type(whole).__name__
    if isinstance(whole, Mapping):
        shown = [k[:40] if isinstance(k, str) else type(k).__name__ for k in list(whole)[:8]]
    return f"no state dict, a mapping of names to tensors; it holds {shown}"
