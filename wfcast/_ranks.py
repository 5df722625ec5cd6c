"""The processes that fit together, and which rows each of them holds.

A fit in one process is a fit of one process: `Ranks` itself. Where there are several, they are the
ranks of a torch process group, `wfcast._live.ranks.GroupRanks`; torch is imported for that only.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ._columns import is_module, is_sharded
from ._errors import CheckpointError, WfcastError
from ._process import Ranks
from ._runs import check_alike, forecastable
from .checkpoint import Checkpoint, Tensor


def ranks_of(runs: Any, process_group: Any) -> Ranks:
    """The processes that a fit to these runs takes.

    Raises
    ------
    WfcastError
        There is no such process group.
    """
    sharded = "torch" in sys.modules and any(map(is_sharded, _values(runs)))
    if process_group is None and not sharded:
        return Ranks()
    from ._live.ranks import GroupRanks

    return GroupRanks(process_group, sharded)


def _values(runs: Any) -> Iterator[Any]:
    """All tensors of runs in memory; whatever else there may be is left to the checks."""
    for run in runs if isinstance(runs, Sequence) and not isinstance(runs, str) else ():
        for checkpoint in run.values() if isinstance(run, Mapping) else ():
            if is_module(checkpoint):
                yield from checkpoint.parameters()
            elif isinstance(checkpoint, Mapping):
                yield from checkpoint.values()


@dataclass(slots=True)
class Held:
    """What one process says of its runs, so that another can compare."""

    what: str
    tensors: dict[str, Tensor]
    base: str | None


@dataclass(frozen=True, slots=True)
class Survey:
    """The rows of a fit, over all processes.

    The order of all rows is that of the runs, then of the tensors, then of the processes.

    Attributes
    ----------
    tensors : list of Tensor
        All that are forecast, those without elements included.
    counts : (processes, runs, tensors) int64 array
        How many rows of each run and tensor a process holds.
    rank, first : int
        This process, and the number of its first run.
    """

    tensors: list[Tensor]
    counts: npt.NDArray[np.int64]
    rank: int
    first: int
    _place: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._place.update({t.name: i for i, t in enumerate(self.tensors)})

    @property
    def n_runs(self) -> int:
        """The number of runs S."""
        return int(self.counts.shape[1])

    def starts(self, members: Sequence[str]) -> tuple[int, npt.NDArray[np.int64]]:
        """The number of rows of a fit to some tensors, and where this process's begin in it.

        Returns
        -------
        n_rows : int
        starts : (runs, members) int64 array
        """
        counts = self.counts[:, :, [self._place[n] for n in members]].transpose(1, 2, 0)
        ends = np.cumsum(counts).reshape(counts.shape)
        return int(counts.sum()), (ends - counts)[:, :, self.rank]


def survey(
    ranks: Ranks, opened: list[dict[int, Checkpoint]], settings: Mapping[str, Any]
) -> Survey:
    """Look at the runs of all processes, which hold the same tensors and fit the same thing.

    Parameters
    ----------
    ranks : Ranks
    opened : list of dict
        The runs of this process; none where others have some.
    settings : mapping
        What must be the same for all processes.

    Raises
    ------
    CheckpointError
        The tensors differ, or there are no runs at all.
    WfcastError
        The settings differ.
    """
    first = [next(iter(run.values())) for run in opened]
    tensors = forecastable(first[0]) if first else []
    if ranks.size > 1:
        tensors, found = _compare(ranks, first, tensors, settings)
    counts = np.array(
        [[math.prod(c.local_shape(t.name)) for t in tensors] for c in first], dtype=np.int64
    ).reshape(len(first), len(tensors))
    if ranks.size == 1:
        return Survey(tensors, counts[None], 0, 0)
    parts = [np.frombuffer(b, np.int64) for b in ranks.gather(counts.tobytes())]
    tables = [p.reshape(n, len(tensors)) for p, n in zip(parts, found, strict=True)]
    if ranks.sharded:
        return Survey(tensors, np.stack(tables), ranks.rank, 0)
    offsets = np.cumsum([0, *found])
    every = np.zeros((ranks.size, offsets[-1], len(tensors)), np.int64)
    for r, table in enumerate(tables):
        every[r, offsets[r] : offsets[r + 1]] = table
    return Survey(tensors, every, ranks.rank, int(offsets[ranks.rank]))


def _compare(
    ranks: Ranks, first: list[Checkpoint], tensors: list[Tensor], settings: Mapping[str, Any]
) -> tuple[list[Tensor], list[int]]:
    """The tensors of the fit, and how many runs each process has."""
    own = {
        "settings": {k: repr(v) for k, v in {**settings, "sharded": ranks.sharded}.items()},
        "runs": len(first),
        "what": first[0].what if first else "",
        "base": first[0].base if first else None,
        "tensors": [(t.name, t.shape, t.dtype) for t in tensors],
        "tied": sorted({name for c in first for name in c.tied}),
    }
    every = [json.loads(b) for b in ranks.gather(json.dumps(own).encode())]
    for r, other in enumerate(every):
        for key, value in every[0]["settings"].items():
            if other["settings"][key] != value:
                raise WfcastError(
                    f"{key} is {other['settings'][key]} on rank {r}, {value} on rank 0: expected "
                    "the same on all ranks"
                )
    # a rank whose shards are empty can't see that they are tied
    tied = {n for other in every for n in other["tied"]} if ranks.sharded else set()
    held = [
        Held(
            f"{other['what']} on rank {r}",
            {n: Tensor(n, tuple(s), d) for n, s, d in other["tensors"] if n not in tied},
            other["base"],
        )
        for r, other in enumerate(every)
        if other["runs"]
    ]
    found = [int(other["runs"]) for other in every]
    if not held:
        raise CheckpointError(
            "runs is empty on all ranks, expected at least one {step: checkpoint}"
        )
    if ranks.sharded and len(set(found)) > 1:
        raise CheckpointError(
            f"the ranks have {found} runs, expected the same sharded ones on each"
        )
    for other in held:
        check_alike(held[0], other)
    return list(held[0].tensors.values()), found
