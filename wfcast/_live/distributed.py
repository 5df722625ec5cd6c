"""What all processes of a distributed run must agree on; a single process agrees with itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import distributed

from .._errors import WfcastError


def active() -> bool:
    """Whether this process is one of several."""
    return distributed.is_available() and distributed.is_initialized()


def size() -> int:
    """The number of processes."""
    return distributed.get_world_size() if active() else 1


def add_up(values: npt.NDArray[np.float64] | Sequence[float]) -> npt.NDArray[np.float64]:
    """The sums over all processes, the same to the bit on every one of them."""
    array = np.asarray(values, dtype=np.float64)
    if not active() or array.size == 0:
        return array
    tensor = torch.from_numpy(array.copy()).to(device())
    distributed.all_reduce(tensor)
    return tensor.cpu().numpy()


def mean(values: Sequence[float]) -> list[float]:
    """The means over all processes; NaN where one of them has NaN."""
    return [float(v) for v in add_up(values) / size()]


def first_problem(problem: str) -> str:
    """The message of the first process that has one, on all of them; empty where none has."""
    if not active():
        return problem
    if add_up([float(bool(problem))])[0] == 0:
        return ""
    found: list[Any] = [None] * size()
    distributed.all_gather_object(found, problem)
    return next(str(text) for text in found if text)


@dataclass(slots=True)
class Outcome:
    """What the processes came to.

    Attributes
    ----------
    problem : str
        The first error of a kind that was expected, in the same words on all; empty for none.
    """

    problem: str = ""


@contextmanager
def together(*expected: type[Exception]) -> Iterator[Outcome]:
    """An error of one process is one of all: a process that left alone would keep others waiting.

    Parameters
    ----------
    *expected : types of errors
        Those that are not raised, but told by the outcome.

    Raises
    ------
    WfcastError
        Where another process failed, with its message.
    """
    outcome, cause = Outcome(), None
    try:
        yield outcome
    except Exception as error:
        cause = error
    told = isinstance(cause, expected)
    failed = cause is not None and not told
    if not active():
        if failed and cause is not None:
            raise cause
        outcome.problem = str(cause) if told else ""
        return
    if not add_up([told or failed])[0]:
        return
    rank = distributed.get_rank()
    text = f"rank {rank} failed: {type(cause).__name__}: {cause}" if failed else ""
    found: list[Any] = [None] * size()
    distributed.all_gather_object(found, (text, f"rank {rank}: {cause}" if told else ""))
    if failed and cause is not None:
        raise cause
    for text, _ in found:
        if text:
            raise WfcastError(text)
    outcome.problem = next(text for _, text in found if text)


def by_rank(value: int) -> list[int]:
    """What each of the processes has."""
    if not active():
        return [value]
    own = np.zeros(size())
    own[distributed.get_rank()] = value
    return [int(v) for v in add_up(own)]


def device(group: Any = None) -> torch.device:
    """Where tensors must live that a process group is to carry."""
    backend = distributed.get_backend(group)
    return torch.device("cuda" if backend == "nccl" else "cpu")
