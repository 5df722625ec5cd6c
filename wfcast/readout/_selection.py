"""Which checkpoints of a run are used."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from numbers import Integral
from typing import Any

from .._errors import WfcastError
from .._parameters import is_finite
from .._runs import steps

__all__ = ["selected", "several"]


def several(given: Any, name: str) -> list[Any]:
    """The values of a parameter that takes one or more."""
    alone = isinstance(given, str) or callable(given) or not isinstance(given, Iterable)
    if getattr(given, "ndim", None) == 0:  # an array or a tensor of one number
        alone, given = True, given.item()
    found = [given] if alone else list(given)
    if not found:
        raise WfcastError(f"{name} is {given!r}, expected one value at least")
    return found


def selected(
    observed: list[int], window: float | None, last: int | None, every: int | None
) -> tuple[tuple[int, ...], int]:
    """The steps that are used, two at least, and the step from which on the first one counts."""
    if window is not None and last is not None:
        raise WfcastError("window and last are both given, expected one of them")
    if window is not None and (not is_finite(window) or not 0 < window <= 1):
        raise WfcastError(f"window is {window!r}, expected a share of the steps, above 0 up to 1")
    for name, value in (("last", last), ("every", every)):
        good = isinstance(value, Integral) and not isinstance(value, bool) and value > 0
        if value is not None and not good:
            raise WfcastError(f"{name} is {value!r}, expected an integer above 0")
    kept = list(steps(observed, "the run"))
    if window is not None:
        # by its decimal digits: a tenth of 1000 steps begins at 900
        begin = (1 - Fraction(str(window))) * kept[-1]
        kept = [step for step in kept if step >= begin]
    elif last is not None:
        kept = kept[-last:]
    start = 0 if len(kept) == len(observed) else observed[len(observed) - len(kept) - 1]
    if every is not None:
        thinned = [kept[-1]]
        for step in reversed(kept):
            if thinned[-1] - step >= every:
                thinned.append(step)
        kept = thinned[::-1]
    if len(kept) < 2:
        asked = [
            f"{name}={value}"
            for name, value in (("window", window), ("last", last), ("every", every))
            if value is not None
        ]
        of = f" with {' and '.join(asked)} of its {len(observed)}" if asked else ""
        raise WfcastError(f"the run has one checkpoint{of}, step {kept[0]}, expected two at least")
    return tuple(kept), start
