"""Averages of the weights, kept beside them: one sweep moves all of them towards the weights."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import _core
from .._columns import column
from .._errors import WfcastError
from .._live.tensors import Slot
from .._parameters import threads
from ._store import Kept, Store, where_to_keep

__all__ = ["Averages"]

TOGETHER = 16  # averages that one sweep of the core moves


class Averages:
    """k averages of each tensor, in float32 or float64.

    Parameters
    ----------
    count : int
        k.
    store : {"auto", "device", "cpu", "disk"} or path
    dtype : torch.dtype or None
        None: float64 for tensors in float64, else float32.

    Attributes
    ----------
    spoilt : str
        The first tensor found to hold NaN or infinity, which its averages hold from then on; empty
        for none. Those of a GPU are not looked at: that would make it wait.
    """

    def __init__(
        self, count: int, store: str | os.PathLike[str], dtype: torch.dtype | None
    ) -> None:
        if dtype not in (None, torch.float32, torch.float64):
            raise WfcastError(
                f"state_dtype is {dtype}, expected torch.float32, torch.float64 or None"
            )
        Store(store if store != "auto" else "cpu")  # whether there is such a place
        self.spoilt = ""
        self._count, self._dtype = count, dtype
        self._store: Any = store
        self._kept: dict[str, list[torch.Tensor]] = {}
        self._folder: Path | None = None
        self._fetching: Store | None = None
        self._coming: tuple[list[Slot], Kept, Sequence[float]] | None = None

    @property
    def names(self) -> frozenset[str]:
        """The tensors of which there are averages."""
        return frozenset(self._kept)

    def tensors(self) -> dict[str, list[torch.Tensor]]:
        """The averages by name, complete."""
        self._finish()
        return self._kept

    def load(self, kept: Mapping[str, list[torch.Tensor]], slots: Sequence[Slot]) -> None:
        """Take averages that were saved."""
        self._coming, self._kept, self.spoilt = None, {}, ""
        if slots:
            self._make(slots)
        with torch.no_grad():
            for name, averages in self._kept.items():
                torch._foreach_copy_(averages, kept[name])

    def take(self, slots: Sequence[Slot], shares: Sequence[float]) -> None:
        """``avg_j += share_j (w - avg_j)``; a tensor that is new starts as it is."""
        self._finish()
        new = [s for s in slots if s.name not in self._kept]
        if new:
            self._make(new)
            for slot in new:
                for average in self._kept[slot.name]:
                    average.copy_(slot.local)
        begun = {s.name for s in new}
        here: list[Slot] = []
        away: list[Slot] = []
        for slot in slots:
            if slot.local.numel() and slot.name not in begun:
                beside = slot.local.device == self._kept[slot.name][0].device
                (here if beside else away).append(slot)
        if here:
            self._blend(here, [s.local for s in here], shares)
        if away:  # of a GPU: fetched while the training goes on
            self._fetching = self._fetching or Store("cpu")
            kept = self._fetching.keep([s.local for s in away])
            self._coming = (away, kept, shares)

    def proceed(self) -> None:
        """Go on with what was waited for, if it is there."""
        if self._coming and all(event.query() for event in self._coming[1].copying):
            self._finish()

    def _finish(self) -> None:
        if self._coming is not None:
            slots, kept, shares = self._coming
            self._coming = None
            self._blend(slots, kept.settled(), shares)
            assert self._fetching is not None
            self._fetching.release(kept)

    def _blend(
        self, slots: Sequence[Slot], weights: Sequence[torch.Tensor], shares: Sequence[float]
    ) -> None:
        on_device = [i for i, w in enumerate(weights) if w.device.type != "cpu"]
        if on_device:
            wide = [weights[i].to(self._kept[slots[i].name][0].dtype) for i in on_device]
            for j, share in enumerate(shares):
                averages = [self._kept[slots[i].name][j] for i in on_device]
                torch._foreach_lerp_(averages, wide, share)
        here = [i for i, w in enumerate(weights) if w.device.type == "cpu"]
        if here:
            names = [slots[i].name for i in here]
            self._blend_here(names, [weights[i] for i in here], shares)

    def _blend_here(
        self, names: Sequence[str], weights: Sequence[torch.Tensor], shares: Sequence[float]
    ) -> None:
        """In the core, without a copy."""
        columns = [column(w, name).array for name, w in zip(names, weights, strict=True)]
        for begin in range(0, self._count, TOGETHER):
            part = slice(begin, begin + TOGETHER)
            averages = [[column(a, name).array for a in self._kept[name][part]] for name in names]
            spoilt = _core.blend(columns, averages, np.array(shares[part]), threads(None))
            if spoilt >= 0:
                self.spoilt = self.spoilt or names[spoilt]

    def _make(self, slots: Sequence[Slot]) -> None:
        """Room for the averages of tensors that are new."""
        if self._store == "auto":
            self._store = where_to_keep("auto", [s.parameter for s in slots], 2 * self._count)
        for slot in slots:
            like = slot.local
            dtype = self._dtype or (torch.float64 if like.dtype == torch.float64 else torch.float32)
            self._kept[slot.name] = [self._room(like, dtype) for _ in range(self._count)]

    def _room(self, like: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        if self._store == "device" or (self._store == "cpu" and not like.is_cuda):
            return torch.empty(like.shape, dtype=dtype, device=like.device)
        if self._store == "cpu":
            return torch.empty(like.shape, dtype=dtype)
        return self._mapped(like.shape, dtype)

    def _mapped(self, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
        """A tensor over a file of its own, which goes with this object."""
        if self._folder is None:
            root = None if self._store == "disk" else self._store
            self._folder = Path(tempfile.mkdtemp(prefix="wfcast-averages-", dir=root))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        number = sum(len(averages) for averages in self._kept.values())
        handle, path = tempfile.mkstemp(prefix=f"{number}-", suffix=".bin", dir=self._folder)
        size = max(1, shape.numel() * dtype.itemsize)
        with os.fdopen(handle, "wb") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)  # a full disk is an error here
            else:
                file.truncate(size)
        whole = torch.from_numpy(np.memmap(path, np.uint8, "r+", shape=(size,)))
        return whole[: shape.numel() * dtype.itemsize].view(dtype).view(shape)
