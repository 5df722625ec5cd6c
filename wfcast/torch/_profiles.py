"""Power profiles: which there are, and how others are put together from them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any

import numpy as np

from .._errors import WfcastError
from .._live.tensors import Vector

__all__ = ["checked", "coefficients", "error", "nearest"]


def checked(profiles: Any) -> tuple[float, ...]:
    """The powers, as they were given, or a WfcastError."""
    if isinstance(profiles, str) or not isinstance(profiles, Iterable):
        raise WfcastError(f"profiles is {profiles!r}, expected powers such as (2, 5, 10)")
    found = tuple(profiles)
    for gamma in found:
        power(gamma)
    if not found or len(set(found)) < len(found):
        raise WfcastError(f"profiles is {found}, expected at least one power, none of them twice")
    return found


def power(gamma: Any) -> float:
    """A power as a float, or a WfcastError."""
    if not isinstance(gamma, Real) or isinstance(gamma, bool) or not 0 <= float(gamma) < math.inf:
        raise WfcastError(f"{gamma!r} is no profile, expected a finite power not below 0")
    return float(gamma)


def nearest(profiles: Sequence[float], wanted: float) -> float:
    """The profile whose ratio to a wanted one is nearest to 1, the first of several."""
    return min(profiles, key=lambda gamma: abs(math.log((gamma + 1) / (wanted + 1))))


def coefficients(profiles: Sequence[float], wanted: Any) -> Vector:
    """By profile, and last a 0 for the latest weights: the average of a power from those kept.

    Least squares between the weights over the steps, ``(g + 1) s^g`` on (0, 1], whose products are
    ``(g + 1) (h + 1) / (g + h + 1)``, among the combinations that sum to 1.
    """
    gamma = power(wanted)
    coef = np.zeros(len(profiles) + 1)
    if gamma in profiles:
        coef[list(profiles).index(gamma)] = 1
        return coef
    kept = [float(g) for g in profiles]
    n = len(kept)
    system = np.zeros((n + 1, n + 1))
    system[:n, :n] = [[_product(g, h) for h in kept] for g in kept]
    system[:n, n] = system[n, :n] = 1
    right = np.array([*(_product(g, gamma) for g in kept), 1.0])
    coef[:n] = np.linalg.lstsq(system, right, rcond=1e-12)[0][:n]
    return coef


def error(profiles: Sequence[float], wanted: float) -> float:
    """How far what `coefficients` makes is from that power's weights, relative to them (L2)."""
    coef = coefficients(profiles, wanted)
    gammas = [*map(float, profiles), power(wanted)]
    off = np.append(coef[:-1], -1.0)
    gram = np.array([[_product(g, h) for h in gammas] for g in gammas])
    return math.sqrt(max(float(off @ gram @ off), 0.0) / _product(gammas[-1], gammas[-1]))


def _product(g: float, h: float) -> float:
    return (g + 1) * (h + 1) / (g + h + 1)
