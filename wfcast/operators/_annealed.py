"""Averages that stand in for a decay of the learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import pairwise
from numbers import Integral, Real
from typing import Any

import numpy as np
import numpy.typing as npt

from .._errors import WfcastError
from .._operator import Operator
from .._parameters import is_finite
from .._runs import steps

__all__ = ["Decay", "annealed"]

Decay = Callable[[float], float]
"""A learning rate on [0, 1], the share of the decay that is over; its value at 0 is the unit."""

ROUNDING = 8 * float(np.finfo(np.float64).eps)
"""What a decay may rise by, of its value at 0, for being computed."""

_DECAYS: dict[str, Decay] = {"linear": lambda x: 1 - x, "minus-sqrt": lambda x: 1 - math.sqrt(x)}


def annealed(
    inputs: Iterable[int], profile: float | str | Decay = 10.0, start: int = 0
) -> Operator:
    r"""The average of a run that its learning rate, decayed, would have come to.

    With a number :math:`\gamma` as `profile`, weights that grow as a power of the step s, each
    checkpoint standing for the steps since the one before it:

    .. math:: A_k \propto \int_{s_{k-1}}^{s_k} s^\gamma ds
              = \frac{s_k^{\gamma + 1} - s_{k-1}^{\gamma + 1}}{\gamma + 1}, \quad s_0 = start

    With a decay f of the learning rate, what gives every update between two checkpoints the weight
    that the decay would have given it: :math:`A_k = f(x_{k-1}) - f(x_k)`, and the last
    :math:`f(x_{n-1})`, with x the share of the steps that is over. The first checkpoint stands for
    as many steps as the second, so that :math:`x_k = k/n` where they are evenly spaced.

    Parameters
    ----------
    inputs : iterable of int
        Increasing steps, two at least, of a run at a constant rate.
    profile : float, {"mean", "linear", "minus-sqrt"} or callable, default=10.0
        :math:`\gamma \ge 0`, whose average lags about :math:`s_n / \gamma` steps behind; "mean",
        all alike; "linear" and "minus-sqrt", the decays :math:`1 - x` and
        :math:`1 - \sqrt x`; or another decay, ``f(x) -> float`` on [0, 1], which does not rise
        and of whose value at 0 the others are shares.
    start : int, default=0
        Where the steps begin for which the first input of a power stands: of a window of a run, the
        step of the last checkpoint before it.

    Returns
    -------
    Operator
        Its single target is the last input's step; for any tensor names. The weights sum to 1.

    Raises
    ------
    WfcastError
        Fewer than two inputs; steps that do not increase or, for a power, lie before `start`;
        another profile, or a decay that rises, is negative or not finite.

    See Also
    --------
    average : The mean, of one input at least.
    anneal_run : The same from disk to disk, with the choice of a profile.
    wfcast.torch.Annealed : The same beside a training loop.

    References
    ----------
    Power profiles: Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion
    Models", arXiv 2312.02696. Decays as averages: "WSM: Decay-Free Learning Rate Schedule via
    Checkpoint Merging", arXiv 2507.17634. The mean: "Model Merging in Pre-training of Large
    Language Models", arXiv 2505.12082.

    Examples
    --------
    >>> import wfcast
    >>> wfcast.annealed((100, 200, 300, 400), profile=1.0).coef["*"]
    array([[0.0625, 0.1875, 0.3125, 0.4375]])
    >>> wfcast.annealed((100, 200, 300, 400), profile="minus-sqrt").coef["*"].round(3)
    array([[0.5  , 0.207, 0.159, 0.134]])
    """
    observed = steps(inputs, "inputs")
    if len(observed) < 2:
        raise WfcastError(f"inputs is {observed}, expected at least two steps to average")
    weights, name = _weights(observed, profile, start)
    return Operator(
        observed,
        observed[-1:],
        weights[None, :],
        strategy="annealed",
        info={"profile": name, "start": start},
    )


def _weights(
    observed: tuple[int, ...], profile: Any, start: int
) -> tuple[npt.NDArray[np.float64], float | str]:
    """The coefficients, and what the operator's `info` calls the profile."""
    n = len(observed)
    if isinstance(profile, str) and profile == "mean":
        return np.full(n, 1 / n), profile
    if isinstance(profile, str) and profile in _DECAYS:
        return _of_decay(observed, _DECAYS[profile]), profile
    if callable(profile):
        return _of_decay(observed, profile), getattr(profile, "__name__", "decay")
    if not isinstance(profile, Real) or isinstance(profile, bool):
        raise WfcastError(
            f"profile is {profile!r}, expected a power such as 10.0, 'mean', 'linear', "
            "'minus-sqrt' or a decay function"
        )
    if not is_finite(profile) or profile < 0:
        raise WfcastError(f"profile is {profile!r}, expected a finite power not below 0")
    return _of_power(observed, float(profile), start), float(profile)


def _of_power(observed: tuple[int, ...], gamma: float, start: Any) -> npt.NDArray[np.float64]:
    if observed[0] < 0:
        raise WfcastError(f"inputs is {observed}, expected steps from 0 on for powers of them")
    begin = int(start) if isinstance(start, Integral) and not isinstance(start, bool) else -1
    if not 0 <= begin <= observed[0]:
        raise WfcastError(
            f"start is {start!r}, expected an integer from 0 to the first input, {observed[0]}"
        )
    last = observed[-1]
    weights = [
        (s / last) ** (gamma + 1) * _grown(before, s, gamma + 1)
        for before, s in pairwise((begin, *observed))
    ]
    return np.array(weights) / _grown(begin, last, gamma + 1)


def _grown(a: int, b: int, power: float) -> float:
    """``1 - (a / b)^power``, to the last digits also where a is close to b."""
    return 1.0 if a == 0 else -math.expm1(power * math.log1p((a - b) / b))


def _of_decay(observed: tuple[int, ...], decay: Decay) -> npt.NDArray[np.float64]:
    begin = 2 * observed[0] - observed[1]
    over = [(s - begin) / (observed[-1] - begin) for s in (begin, *observed[:-1])]
    rate = np.array([_rate(decay, x) for x in over])
    if rate[0] <= 0:
        raise WfcastError(f"the decay is {rate[0]:g} at 0, expected a rate above 0")
    rises = np.diff(rate) > ROUNDING * rate[0]
    if rises.any():
        k = int(np.argmax(rises))
        raise WfcastError(
            f"the decay rises from {rate[k]:g} at {over[k]:.3g} to {rate[k + 1]:g} at "
            f"{over[k + 1]:.3g}, expected one that does not rise"
        )
    if rate[-1] < 0:
        raise WfcastError(f"the decay is {rate[-1]:g} at {over[-1]:.3g}, expected no rate below 0")
    return np.asarray(-np.diff(rate, append=0) / rate[0])


def _rate(decay: Decay, x: float) -> float:
    value: Any = decay(x)
    try:
        rate = float(value)
    except (TypeError, ValueError) as error:
        raise WfcastError(f"the decay gives {value!r} at {x:.3g}, expected a number") from error
    if not math.isfinite(rate):
        raise WfcastError(f"the decay is {rate} at {x:.3g}, expected a finite number")
    return rate
