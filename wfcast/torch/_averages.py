"""Averages of the weights, kept beside them: one sweep moves all of them towards the weights."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
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

__all__ = ["Averages", "Sums"]

TOGETHER = 16  # averages that one sweep of the core moves
PIECE = 1 << 15  # elements that are worked on at once where the core does not do it


class Averages:
    """k averages of each tensor, in float32 or float64, or all but one as differences in bfloat16.

    An average in bfloat16 would stand still: what a look at the weights adds to it is less than
    half of its last digit. So differences from the slowest average are kept, which are small, and
    they are rounded at random, up or down with the chances that make it right on average. For an
    average a with share c, and the slowest one r with share q,
    ``a - r += (c - q) (w - r) - c (a - r)``.

    Parameters
    ----------
    count : int
        k.
    slowest : int
        Which of them has the smallest shares.
    store : {"auto", "device", "cpu", "disk"} or path
    dtype : torch.dtype or None
        None: float64 for tensors in float64, else float32. bfloat16: the slowest average in
        float32, the others' differences from it in bfloat16.

    Attributes
    ----------
    spoilt : str
        The first tensor found to hold NaN or infinity, which its averages hold from then on; empty
        for none. Those of a GPU are not looked at: that would make it wait.
    """

    def __init__(
        self,
        count: int,
        slowest: int,
        store: str | os.PathLike[str],
        dtype: torch.dtype | None,
    ) -> None:
        if dtype not in (None, torch.float32, torch.float64, torch.bfloat16):
            raise WfcastError(
                f"state_dtype is {dtype}, expected torch.float32, torch.float64, torch.bfloat16 or "
                "None"
            )
        self.narrow = dtype == torch.bfloat16
        Store(store if store != "auto" else "cpu")  # whether there is such a place
        self.spoilt = ""
        self._count, self._slowest, self._dtype = count, slowest, dtype
        self._store: Any = store
        self._kept: dict[str, list[torch.Tensor]] = {}
        self._folder: Path | None = None
        self._fetching: Store | None = None
        self._coming: tuple[list[Slot], Kept, Sequence[float], int] | None = None

    @property
    def names(self) -> frozenset[str]:
        """The tensors of which there are averages."""
        return frozenset(self._kept)

    def raw(self) -> dict[str, list[torch.Tensor]]:
        """The averages by name as they are kept, complete."""
        self._finish()
        return self._kept

    def tensors(self) -> Mapping[str, list[torch.Tensor]]:
        """The averages by name, complete; from differences they are made when asked for."""
        return Sums(self.raw(), self._slowest) if self.narrow else self.raw()

    def load(
        self, saved: Mapping[str, list[torch.Tensor]], slots: Sequence[Slot], *, raw: bool
    ) -> None:
        """Take averages that were saved; `raw` ones as they were kept."""
        self._coming, self._kept, self.spoilt = None, {}, ""
        if slots:
            self._make(slots)
        with torch.no_grad():
            for name, kept in self._kept.items():
                averages = saved[name]
                if self.narrow and not raw:
                    slowest = averages[self._slowest].float()
                    averages = [a.float() - slowest for a in averages]
                    averages[self._slowest] = slowest
                torch._foreach_copy_(kept, averages)

    def take(self, slots: Sequence[Slot], shares: Sequence[float], step: int) -> None:
        """``avg_j += share_j (w - avg_j)``; a tensor that is new starts as it is."""
        self._finish()
        new = [s for s in slots if s.name not in self._kept]
        if new:
            self._make(new)
            for slot in new:
                for j, average in enumerate(self._kept[slot.name]):
                    if self.narrow and j != self._slowest:
                        average.zero_()
                    else:
                        average.copy_(slot.local)
        begun = {s.name for s in new}
        here: list[Slot] = []
        away: list[Slot] = []
        for slot in slots:
            if slot.local.numel() and slot.name not in begun:
                beside = slot.local.device == self._kept[slot.name][0].device
                (here if beside else away).append(slot)
        if here:
            self._blend(here, [s.local for s in here], shares, step)
        if away:  # of a GPU: fetched while the training goes on
            self._fetching = self._fetching or Store("cpu")
            kept = self._fetching.keep([s.local for s in away])
            self._coming = (away, kept, shares, step)

    def proceed(self) -> None:
        """Go on with what was waited for, if it is there."""
        if self._coming and all(event.query() for event in self._coming[1].copying):
            self._finish()

    def _finish(self) -> None:
        if self._coming is not None:
            slots, kept, shares, step = self._coming
            self._coming = None
            self._blend(slots, kept.settled(), shares, step)
            assert self._fetching is not None
            self._fetching.release(kept)

    def _blend(
        self,
        slots: Sequence[Slot],
        weights: Sequence[torch.Tensor],
        shares: Sequence[float],
        step: int,
    ) -> None:
        if self.narrow:
            chances: dict[torch.device, torch.Generator] = {}
            for slot, weight in zip(slots, weights, strict=True):
                if weight.device not in chances:  # the same in a run that was resumed
                    chances[weight.device] = torch.Generator(weight.device).manual_seed(step)
                kept = self._kept[slot.name]
                self._blend_narrow(kept, weight, shares, chances[weight.device])
            return
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

    def _blend_narrow(
        self,
        kept: Sequence[torch.Tensor],
        weight: torch.Tensor,
        shares: Sequence[float],
        chance: torch.Generator,
    ) -> None:
        """By pieces that a cache holds."""
        flat = [a.view(-1) for a in kept]
        weights, least = weight.reshape(-1), shares[self._slowest]
        size = PIECE if weight.device.type == "cpu" else weight.numel()
        for begin in range(0, weight.numel(), size):
            piece = slice(begin, begin + size)
            slowest = flat[self._slowest][piece]
            apart = weights[piece].to(slowest.dtype) - slowest
            # uniform over what rounding takes away: added to the bits, it carries as often as is
            # right
            dither = torch.empty(apart.shape, dtype=torch.int32, device=apart.device)
            dither.random_(0, 1 << 16, generator=chance)
            for j, share in enumerate(shares):
                if j != self._slowest:
                    wide = torch.mul(apart, share - least).add_(flat[j][piece], alpha=1 - share)
                    wide.view(torch.int32).add_(dither).bitwise_and_(-1 << 16)
                    flat[j][piece].copy_(wide)
            slowest.add_(apart, alpha=least)

    def _make(self, slots: Sequence[Slot]) -> None:
        """Room for the averages of tensors that are new."""
        if self._store == "auto":
            self._store = where_to_keep("auto", [s.parameter for s in slots], 2 * self._count)
        for slot in slots:
            like = slot.local
            dtype = self._dtype or (torch.float64 if like.dtype == torch.float64 else torch.float32)
            dtypes = [dtype] * self._count
            if self.narrow:
                dtypes[self._slowest] = torch.float32
            self._kept[slot.name] = [self._room(like, dtype) for dtype in dtypes]

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


class Sums(Mapping[str, list[torch.Tensor]]):
    """Averages of which one is kept and the others' differences from it; made when asked for."""

    def __init__(self, kept: Mapping[str, list[torch.Tensor]], slowest: int) -> None:
        self._kept, self._slowest = kept, slowest

    def __getitem__(self, name: str) -> list[torch.Tensor]:
        kept = self._kept[name]
        slowest = kept[self._slowest]
        return [slowest if j == self._slowest else slowest + d for j, d in enumerate(kept)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)
