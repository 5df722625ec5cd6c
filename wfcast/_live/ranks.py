"""The processes of a torch process group that fit together.

They only ever meet in `GroupRanks._exchange`. There each says first whether it came to an error, so
that none waits for one that is gone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import distributed

from .. import _errors
from .._columns import Column, as_ndarray, column, is_module, is_sharded, is_tensor
from .._errors import CheckpointError, DtypeError, WfcastError
from .._process import Ranks
from ..checkpoint import MappingCheckpoint
from . import distributed as processes


class GroupRanks(Ranks):
    """The ranks of a process group; the default one where it is None."""

    def __init__(self, group: Any, sharded: bool) -> None:
        if not processes.active():
            raise WfcastError(
                "the runs hold DTensors, or process_group is given, but torch.distributed is not "
                "initialised: call torch.distributed.init_process_group() first"
            )
        group = distributed.group.WORLD if group is None else group
        if not isinstance(group, distributed.ProcessGroup):
            raise DtypeError(
                f"process_group is a {type(group).__name__}, expected a "
                "torch.distributed.ProcessGroup that this process is in, or None"
            )
        self.group = group
        self.rank = distributed.get_rank(group)
        self.size = distributed.get_world_size(group)
        self.sharded = sharded
        self._device = processes.device(group)
        self._parted = False  # in or after an exchange that did not come to its end

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None:
            self.gather(b"")
        elif not self._parted:
            text = json.dumps([type(error).__name__, str(error)])
            with suppress(RuntimeError):  # the group is broken: the error at hand says more
                self._exchange(text.encode(), failed=True)

    def gather(self, data: bytes) -> list[bytes]:
        return self._exchange(data, failed=False)

    def _exchange(self, data: bytes, failed: bool) -> list[bytes]:
        if self._parted:
            raise WfcastError("the ranks have parted: an earlier exchange was broken off")
        self._parted = True
        own = torch.tensor([-1 - len(data) if failed else len(data)], device=self._device)
        sizes = [torch.zeros_like(own) for _ in range(self.size)]
        distributed.all_gather(sizes, own, group=self.group)
        lengths = [int(size) for size in sizes]
        bad = next((r for r, length in enumerate(lengths) if length < 0), None)
        if bad is None:
            parts = [self._broadcast(r, data, length) for r, length in enumerate(lengths)]
            self._parted = False
            return parts
        name, text = json.loads(self._broadcast(bad, data, -1 - lengths[bad]))
        if failed:
            return []
        known = getattr(_errors, name, None)
        if known is None:
            raise WfcastError(f"rank {bad}: {name}: {text}")
        raise known(f"rank {bad}: {text}")

    def _broadcast(self, rank: int, data: bytes, length: int) -> bytes:
        if length == 0:
            return b""
        if rank == self.rank:
            buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8).to(self._device)
        else:
            buffer = torch.empty(length, dtype=torch.uint8, device=self._device)
        source = distributed.get_global_rank(self.group, rank)
        distributed.broadcast(buffer, source, group=self.group)
        return data if rank == self.rank else buffer.cpu().numpy().tobytes()

    def local(self, run: dict[int, Any], needed: Sequence[int], what: str) -> dict[int, Any]:
        if not self.sharded:
            return run
        steps = {*needed, *list(run)[:2]}
        parts = {
            step: LocalCheckpoint(checkpoint, f"{what}, step {step}", self)
            for step, checkpoint in run.items()
            if step in steps
        }
        reference = next(iter(parts.values()))
        for other in parts.values():
            for name, spread in other.spread.items():
                expected = reference.spread.get(name, spread)
                if spread != expected:
                    raise CheckpointError(
                        f"{other.label(name)}, is {spread}, but {expected} in {reference.what}: "
                        "expected the same in all checkpoints of a run"
                    )
        return {**run, **parts}


class LocalCheckpoint(MappingCheckpoint):
    """A checkpoint of DTensors: its columns are what this process holds.

    What several processes hold alike counts on one of them only: a replicated DTensor on the first
    of its replicas, anything else on rank 0. It has no rows on the others.

    Attributes
    ----------
    spread : dict of str to str
        How each tensor lies over the processes.
    """

    def __init__(self, source: Any, what: str, ranks: GroupRanks) -> None:
        source = source.state_dict() if is_module(source) else source
        if not isinstance(source, Mapping):
            raise DtypeError(
                f"{what} is a {type(source).__name__}, expected a mapping of names to DTensors "
                "or a module, as other checkpoints of the runs are"
            )
        super().__init__(source, what)
        self._ranks = ranks
        self._members = sorted(distributed.get_process_group_ranks(ranks.group))
        self.spread = {name: self._spread(name) for name in self.tensors}

    def label(self, name: str) -> str:
        return f"{super().label(name)}, shard of rank {self._ranks.rank}"

    def column(self, name: str) -> Column:
        return column(self._local(name), self.label(name))

    def local_shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._local(name).shape)

    def _local(self, name: str) -> Any:
        value = self._source[name]
        if not is_sharded(value):
            counts, part = self._ranks.rank == 0, value
        else:
            with torch.no_grad():
                part = value.to_local().detach()
            where = value.device_mesh.get_coordinate()
            copies = [d for d, p in enumerate(value.placements) if p.is_replicate()]
            counts = all(where[d] == 0 for d in copies)
        if counts:
            return part
        return part.new_empty(0) if is_tensor(part) else np.empty(0, as_ndarray(part, name).dtype)

    def _spread(self, name: str) -> str:
        value = self._source[name]
        if not is_sharded(value):
            return "no DTensor"
        mesh = value.device_mesh
        if any(p.is_partial() for p in value.placements):
            raise DtypeError(
                f"{self.label(name)}, holds sums that are still to be added up "
                f"({value.placements}), expected Shard or Replicate"
            )
        members = sorted(mesh.mesh.flatten().tolist())
        if members != self._members:
            raise WfcastError(
                f"{self.label(name)}, lies on the ranks {members}, the process group has "
                f"{self._members}: pass the group of its mesh as process_group"
            )
        return f"{value.placements} on the mesh {mesh.mesh.tolist()}"
