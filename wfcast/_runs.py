"""Runs: {step: checkpoint}, opened and checked to go together."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from ._errors import CheckpointError, DtypeError, WfcastError
from .checkpoint import Checkpoint, Tensor, open_checkpoint, role

SHOWN = 5


def steps(values: Any, name: str) -> tuple[int, ...]:
    """`values` as a tuple of increasing steps; `name` is the parameter's.

    Raises
    ------
    WfcastError
        Not integers, none at all, or not increasing.
    """
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise WfcastError(f"{name} is {values!r}, expected a sequence of steps such as (0, 500)")
    try:
        found = tuple(operator.index(v) for v in values)
    except TypeError as error:
        raise WfcastError(f"{name} is {values!r}, expected integer steps") from error
    if not found:
        raise WfcastError(f"{name} is empty, expected at least one step")
    if any(a >= b for a, b in pairwise(found)):
        raise WfcastError(f"{name} is {found}, expected increasing steps without repeats")
    return found


def check_run(run: Any, needed: Sequence[int], what: str) -> dict[int, Any]:
    """The checkpoints of a run by step, in the order of steps; `needed` are among them."""
    if not isinstance(run, Mapping):
        raise DtypeError(f"{what} is a {type(run).__name__}, expected {{step: checkpoint}}")
    found: dict[int, Any] = {}
    for key, value in run.items():
        try:
            found[operator.index(key)] = value
        except TypeError as error:
            raise CheckpointError(
                f"{what} has the key {key!r}, expected integer steps: a run is {{step: checkpoint}}"
            ) from error
    missing = [s for s in needed if s not in found]
    if missing:
        raise CheckpointError(
            f"{what} lacks step{'s' * (len(missing) > 1)} "
            f"{', '.join(map(str, missing))}; it has "
            f"{', '.join(map(str, sorted(found))) or 'none'}"
        )
    return {s: found[s] for s in sorted(found)}


def open_run(run: Any, needed: Sequence[int], what: str) -> dict[int, Checkpoint]:
    """Open the needed checkpoints of a run."""
    run = check_run(run, needed, what)
    prefix = f"{what}, " if what != "the run" else ""
    return {s: open_checkpoint(run[s], f"{prefix}step {s}") for s in needed}


def check_alike(reference: Checkpoint, other: Checkpoint) -> None:
    """Raise CheckpointError, with a diff, where two checkpoints do not hold the same tensors."""
    a, b = reference.tensors, other.tensors
    lines = []
    for here, names in ((reference, a.keys() - b.keys()), (other, b.keys() - a.keys())):
        if names:
            lines.append(f"only in {here.what}: {_few(names)}")
    differ = [n for n in a if n in b and not _same(a[n], b[n])]
    for name in differ[:SHOWN]:
        lines.append(
            f"{name!r} is {_form(a[name])} in {reference.what}, {_form(b[name])} in {other.what}"
        )
    if len(differ) > SHOWN:
        lines.append(f"and {len(differ) - SHOWN} more tensors that differ")
    if lines:
        raise CheckpointError("checkpoints do not hold the same tensors:\n  " + "\n  ".join(lines))


def forecastable(checkpoint: Checkpoint) -> list[Tensor]:
    """The tensors to forecast; integers and bools are left out.

    Raises
    ------
    DtypeError
        A tensor of a dtype that can neither be forecast nor copied.
    """
    for tensor in checkpoint.tensors.values():
        if role(tensor.dtype) == "refuse":
            raise DtypeError(
                f"{checkpoint.label(tensor.name)} has dtype {tensor.dtype}; wfcast "
                "forecasts float64, float32, float16 and bfloat16, and copies "
                "integers and bools"
            )
    return [t for t in checkpoint.tensors.values() if role(t.dtype) == "forecast"]


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and (
        a.dtype == b.dtype or role(a.dtype) == role(b.dtype) == "forecast"
    )


def _form(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"


def _few(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - SHOWN} more" if len(ordered) > SHOWN else ""
    return ", ".join(map(repr, ordered[:SHOWN])) + more
