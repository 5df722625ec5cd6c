"""Runs: {step: checkpoint}, opened and checked to go together."""

from __future__ import annotations

import json
import operator
import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from numbers import Integral
from pathlib import Path
from typing import Any, Protocol

from ._errors import CheckpointError, DtypeError, WfcastError, warn
from ._plot import natural
from .checkpoint import (
    PROVENANCE,
    Checkpoint,
    FileCheckpoint,
    MappingCheckpoint,
    Tensor,
    holds_run,
    is_forecast,
    open_checkpoint,
    said_of,
    steps_in,
)

SHOWN = 5


def steps(values: Any, name: str) -> tuple[int, ...]:
    """`values` as a tuple of increasing steps; `name` is the parameter's.

    Raises
    ------
    WfcastError
        Not integers, none at all, not increasing, or beyond 64 bits.
    """
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise WfcastError(f"{name} is {values!r}, expected a sequence of steps such as (0, 500)")
    try:
        found = tuple(operator.index(v) for v in values)
    except TypeError as error:
        raise WfcastError(f"{name} is {values!r}, expected integer steps") from error
    if not found:
        raise WfcastError(f"{name} is empty, expected at least one step")
    if any(abs(step) >= 2**63 for step in found):
        raise WfcastError(f"{name} is {found}, expected steps below 2^63")
    if any(a >= b for a, b in pairwise(found)):
        raise WfcastError(f"{name} is {found}, expected increasing steps without repeats")
    return found


class Run(dict[int, Any]):
    """The checkpoints of a run by step, in the order of steps.

    Attributes
    ----------
    left_out : tuple of str
        What else there is in its folder, and why it does not count.
    """

    left_out: tuple[str, ...] = ()


def check_run(run: Any, needed: Sequence[int], what: str, key: str | None = None) -> Run:
    """The checkpoints of a run by step, in the order of steps; `needed` are among them.

    A path leads to a folder of checkpoints, of which those that cannot be opened are left out with
    a warning, and so are forecasts: what wfcast has written beside the checkpoints of a run is no
    state that the run was in. `key` chooses a set of weights in files that have several.
    """
    if isinstance(run, str | os.PathLike):
        run = _run_in(Path(run), what, key)
    if not isinstance(run, Mapping):
        raise DtypeError(f"{what} is a {type(run).__name__}, expected {{step: checkpoint}}")
    found = Run()
    for step, value in run.items():
        try:
            found[operator.index(step)] = value
        except TypeError as error:
            raise CheckpointError(
                f"{what} has the key {step!r}, expected integer steps: a run is "
                "{step: checkpoint}"
            ) from error
    left_out = run.left_out if isinstance(run, Run) else ()
    missing = [s for s in needed if s not in found]
    if missing:
        raise CheckpointError(
            f"{what} lacks step{'s' * (len(missing) > 1)} "
            f"{', '.join(map(str, missing))}; it has "
            f"{', '.join(map(str, sorted(found))) or 'none'}{_beside(left_out)}"
        )
    if key is not None:
        for step in found:
            found[step] = open_checkpoint(found[step], f"{what}, step {step}", key)
    found = Run({s: found[s] for s in sorted(found)})
    found.left_out = left_out
    _check_order(found, what)
    return found


def _check_order(run: Run, what: str) -> None:
    """Raise CheckpointError where the names of files say that states are swapped."""
    latest: dict[str, tuple[int, int, Path]] = {}
    for step, source in run.items():
        path = source.path if isinstance(source, FileCheckpoint) else source
        said = said_of(Path(path)) if isinstance(path, str | os.PathLike) else None
        if said is None or not said.kind or len(said.numbers) > 1:
            continue
        number = said.numbers[0]
        if said.kind in latest and number < latest[said.kind][0]:
            before, at, other = latest[said.kind]
            raise CheckpointError(
                f"{what} has {str(other)!r} at step {at} and {str(path)!r} at step {step}, but by "
                f"their names it is {said.kind} {before} before {said.kind} {number}: give them in "
                "order"
            )
        latest[said.kind] = number, step, Path(path)


def is_run(source: Any, key: str | None = None) -> bool:
    """Whether it is a run, or the path of a folder of checkpoints, and no checkpoint itself."""
    if isinstance(source, Mapping):
        return bool(source) and all(isinstance(step, Integral) for step in source)
    if not isinstance(source, str | os.PathLike) or not Path(source).is_dir():
        return False
    if holds_run(Path(source)):
        return True
    try:
        open_checkpoint(source, key=key, needed=False)
    except CheckpointError:
        return bool(steps_in(Path(source))[0])
    return False


def _run_in(folder: Path, what: str, key: str | None) -> Run:
    if not folder.is_dir():
        raise CheckpointError(f"{what}: there is no folder {str(folder)!r}")
    found, left_out, forecasts = Run(), [], 0
    checkpoints, others = steps_in(folder)
    if not checkpoints:
        raise CheckpointError(
            f"{what}: {str(folder)!r} holds no checkpoints, expected names that end in a step, "
            "such as checkpoint-500 or step-500.safetensors"
        )
    paths: dict[int, Path] = {}
    for step, path in [*checkpoints, *((None, path) for path in others)]:
        try:
            here = what if step is None else f"{what}, step {step}"
            checkpoint = open_checkpoint(path, here, key)
        except CheckpointError as error:
            left_out.append(f"as if it were not there: {error}")
            continue
        if PROVENANCE in checkpoint.metadata:
            forecasts += 1
            left_out.append(
                f"as a forecast is no state of a run: {checkpoint.what} is "
                f"{made_by(checkpoint)}; pass {{step: path}} to count it"
            )
        elif step is None:
            left_out.append(
                f"as its name says no step as the others' do ({checkpoints[0][1].name}): "
                f"{checkpoint.what}; pass {{step: path}} to count it"
            )
        elif step in found:
            raise CheckpointError(
                f"{what}: {str(folder)!r} has step {step} twice: {paths[step].name} and "
                f"{path.name}; remove one, or pass {{step: path}} (STEP=PATH)"
            )
        else:
            found[step], paths[step] = checkpoint, path
    for reason in left_out:
        warn(f"left out, {reason}")
    if not found:
        if forecasts == len(left_out):
            raise CheckpointError(f"{what}: {str(folder)!r} holds forecasts only, and no states")
        raise CheckpointError(
            f"{what}: {str(folder)!r} holds no finished checkpoint{_beside(left_out)}"
        )
    found.left_out = tuple(left_out)
    return found


def _beside(left_out: Sequence[str]) -> str:
    more = f"; and {len(left_out) - SHOWN} more" if len(left_out) > SHOWN else ""
    return "".join(f"; left out, {reason}" for reason in left_out[:SHOWN]) + more


def made_by(checkpoint: Checkpoint) -> str:
    """What a forecast says of itself: "a forecast of step 300 by linear_trend"."""
    try:
        said = json.loads(checkpoint.metadata[PROVENANCE])
        return f"a forecast of step {int(said['step'])} by {said['strategy']}"
    except (ValueError, KeyError, TypeError, RecursionError):
        return "a forecast"


def check_state(checkpoint: Checkpoint) -> None:
    """Raise CheckpointError where a target is a forecast, and so no truth to learn from."""
    if PROVENANCE in checkpoint.metadata:
        raise CheckpointError(
            f"{checkpoint.what} is {made_by(checkpoint)}, expected a state that the run was in as "
            "the target"
        )


def open_run(
    run: Any, needed: Sequence[int], what: str, key: str | None = None
) -> dict[int, Checkpoint]:
    """Open the needed checkpoints of a run."""
    run = check_run(run, needed, what, key)
    prefix = f"{what}, " if what != "the run" else ""
    opened = {s: open_checkpoint(run[s], f"{prefix}step {s}") for s in needed}
    if any(isinstance(one, FileCheckpoint) for one in opened.values()):
        for one in opened.values():
            one.unwrap()  # of files it is done, and mappings beside them have the same names then
    check_apart(opened)
    return opened


COPY = "keep copies, {name: w.clone() for name, w in model.state_dict().items()}"
"""What to do about states that are no copies, as a message has it."""


def check_apart(run: Mapping[int, Checkpoint]) -> None:
    """Raise CheckpointError where two states of a run are one: the same memory, or one file."""
    seen: dict[Any, Checkpoint] = {}
    for checkpoint in run.values():
        if isinstance(checkpoint, FileCheckpoint):
            try:
                status = os.stat(checkpoint.path)
            except OSError:  # it is gone: who reads it says so
                continue
            other = seen.setdefault(
                (status.st_dev, status.st_ino, checkpoint.layout.keys), checkpoint
            )
            why = "the same file under two names: name two states of the run"
        elif isinstance(checkpoint, MappingCheckpoint):
            places = checkpoint.places()
            if not places or None in places.values():
                continue
            other = seen.setdefault(frozenset(places.items()), checkpoint)
            why = f"the same tensors in memory: {COPY}"
        else:
            continue
        if other is not checkpoint:
            raise CheckpointError(f"{other.what} and {checkpoint.what} are {why}")


def open_alike(run: Mapping[int, Any], what: str) -> tuple[list[Checkpoint], list[Tensor]]:
    """All checkpoints of a run, which hold the same tensors, and those with weights to forecast."""
    opened = list(open_run(run, tuple(run), what).values())
    for checkpoint in opened:
        check_alike(opened[-1], checkpoint)
    tensors = [t for t in forecastable(opened[-1]) if t.size]
    if not tensors:
        raise CheckpointError(f"{opened[-1].what} holds no tensors to forecast")
    return opened, tensors


class Described(Protocol):
    """What is compared of a checkpoint."""

    what: str
    tensors: dict[str, Tensor]
    base: str | None


def check_alike(reference: Described, other: Described) -> None:
    """Raise CheckpointError, with a diff, where two checkpoints do not hold the same tensors."""
    check_bases(reference, other)
    a, b = reference.tensors, other.tensors
    lines = []
    for here, names in ((reference, a.keys() - b.keys()), (other, b.keys() - a.keys())):
        if names:
            lines.append(f"only in {here.what}: {few(names)}")
    differ = [n for n in a if n in b and not _same(a[n], b[n])]
    for name in differ[:SHOWN]:
        one, two = _form(a[name]), _form(b[name])
        lines.append(f"tensor {name!r} is {one} in {reference.what}, {two} in {other.what}")
    if len(differ) > SHOWN:
        lines.append(f"and {len(differ) - SHOWN} more tensors that differ")
    if lines:
        raise CheckpointError("checkpoints do not hold the same tensors:\n  " + ";\n  ".join(lines))


def check_bases(reference: Described, other: Described) -> None:
    """Raise CheckpointError where two checkpoints are adapters of different models."""
    if None not in (reference.base, other.base) and reference.base != other.base:
        raise CheckpointError(
            f"adapters of different base models do not go together: {reference.what} adapts "
            f"{reference.base!r}, {other.what} adapts {other.base!r}"
        )
    a, b = (one.meaning if isinstance(one, Checkpoint) else {} for one in (reference, other))
    differ = sorted(k for k in a.keys() & b.keys() if a[k] != b[k])
    if differ:
        lines = [f"{k} is {a[k]!r} in {reference.what}, {b[k]!r} in {other.what}" for k in differ]
        raise CheckpointError(
            "adapters whose weights mean different things do not go together: " + "; ".join(lines)
        )


def check_filled(checkpoint: Checkpoint) -> None:
    """Raise CheckpointError where weights are empty shells: their values are somewhere else."""
    tensors = forecastable(checkpoint)
    shells = [t.name for t in tensors if t.shape == (0,)]
    if shells:
        raise CheckpointError(
            f"{checkpoint.label(shells[0])} has shape [0], and so have {len(shells)} of "
            f"{len(tensors)}, as DeepSpeed's ZeRO-3 leaves them: save with "
            "stage3_gather_16bit_weights_on_model_save, or join the partitions by zero_to_fp32.py"
        )


def forecastable(checkpoint: Checkpoint) -> list[Tensor]:
    """The tensors to forecast; integers, bools, float8 and buffers are left out."""
    return [t for t in checkpoint.tensors.values() if is_forecast(t)]


def has(checkpoint: Checkpoint, tensor: Tensor) -> bool:
    """Whether a checkpoint has a tensor of that name, shape and dtype."""
    found = checkpoint.tensors.get(tensor.name)
    return found is not None and _same(found, tensor)


def _same(a: Tensor, b: Tensor) -> bool:
    return (a.shape, a.dtype) == (b.shape, b.dtype)


def _form(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"


def few(names: Iterable[str]) -> str:
    """The first of some tensors in the order of the layers, and how many more there are."""
    ordered = sorted(names, key=natural)
    more = f" and {len(ordered) - SHOWN} more" if len(ordered) > SHOWN else ""
    return ", ".join(map(repr, ordered[:SHOWN])) + more
