"""Where copies of tensors live: in memory of the CPU or of the device, or in files."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .._errors import WfcastError
from .._live.tensors import local

STORES = ("auto", "cpu", "device", "disk")
ALIGN = 64
FEW = 0.1  # the share of a device's memory that "auto" takes


def where_to_keep(where: Any, parameters: Sequence[torch.Tensor], n_states: int) -> Any:
    """`where`, or what "auto" stands for: beside the parameters while that takes little memory.

    Expects `n_states` states at a time, and an optimizer that holds two tensors per parameter.
    """
    if where != "auto":
        return where
    sizes: dict[torch.device, int] = {}
    for tensor in map(local, parameters):
        sizes[tensor.device] = sizes.get(tensor.device, 0) + tensor.nbytes
    for device, size in sizes.items():
        if device.type != "cuda":
            return "cpu"
        memory = torch.cuda.get_device_properties(device).total_memory
        if (n_states + 2) * size > FEW * memory:
            return "cpu"
    return "device"


Room = tuple[torch.Size, torch.dtype, torch.device, bool]
"""What memory can hold: a tensor of this shape and dtype, there, pinned or not."""


@dataclass(slots=True, eq=False)
class Kept:
    """Copies that a `Store` keeps.

    Attributes
    ----------
    tensors : list of torch.Tensor
        The copies, in the order of the originals. They may still be filled: `settled` waits.
    rooms : list of Room
        What each of them can be used for again; empty where they lie in a file.
    file : Path or None
        The file that all of them lie in.
    copying : list of torch.cuda.Event
        The ends of what still goes on.
    """

    tensors: list[torch.Tensor]
    rooms: list[Room] = field(default_factory=list)
    file: Path | None = None
    copying: list[torch.cuda.Event] = field(default_factory=list)

    def settled(self) -> list[torch.Tensor]:
        """The copies, once they are complete; to be asked before any is read."""
        while self.copying:
            self.copying[-1].synchronize()
            self.copying.pop()
        return self.tensors

    def alike(self, tensors: Sequence[torch.Tensor]) -> bool:
        """Whether the copies have the dtypes of these tensors, so that they are exact."""
        return all(k.dtype == t.dtype for k, t in zip(self.tensors, tensors, strict=True))


class Store:
    """Keeps copies of tensors until they are released.

    Parameters
    ----------
    where : {"cpu", "device", "disk"} or path
        ``"cpu"``: memory of the CPU, pinned for tensors of a GPU and filled while that goes on.
        ``"device"``: beside each tensor. ``"disk"``: files in a temporary folder; a path: files in
        that folder.
    """

    def __init__(self, where: str | os.PathLike[str]) -> None:
        if not isinstance(where, str | os.PathLike) or not (
            where in STORES or Path(where).is_dir()
        ):
            raise WfcastError(f"store is {where!r}, expected one of {STORES} or a folder")
        self.where = where
        self._streams: dict[torch.device, Any] = {}
        self._spare: dict[Room, list[torch.Tensor]] = {}
        self._folder: Path | None = None
        self._files = 0

    def keep(self, tensors: Sequence[torch.Tensor], dtype: torch.dtype | None = None) -> Kept:
        """Copies of the parts that this process holds, in `dtype` or each tensor's own.

        Raises
        ------
        OSError
            The disk is full or fails; nothing is left of the copies.
        """
        here = [local(t) for t in tensors]
        if self.where not in ("cpu", "device"):
            return self._write(here, dtype)
        rooms = [self._room(tensor, dtype or tensor.dtype) for tensor in here]
        kept = Kept([self._taken(room) for room in rooms], rooms)
        apart: dict[torch.device, list[int]] = {}
        for i, tensor in enumerate(here):
            away = tensor.is_cuda and self.where == "cpu"
            apart.setdefault(tensor.device if away else torch.device("cpu"), []).append(i)
        for device, places in apart.items():
            copies, originals = [kept.tensors[i] for i in places], [here[i] for i in places]
            if device.type == "cpu":
                torch._foreach_copy_(copies, originals)
            else:
                kept.copying.append(self._fetch(device, copies, originals))
        return kept

    def keep_beside(self, saved: Sequence[torch.Tensor], tensors: Sequence[torch.Tensor]) -> Kept:
        """Copies of what was saved of these tensors, where copies of themselves would be kept."""
        if self.where == "device":
            saved = [s.to(local(t).device) for s, t in zip(saved, tensors, strict=True)]
        return self.keep(saved)

    def _fetch(
        self, device: torch.device, copies: list[torch.Tensor], tensors: list[torch.Tensor]
    ) -> torch.cuda.Event:
        """From a GPU to pinned memory, while it goes on; the event is the end of it."""
        stream = self._streams.setdefault(device, torch.cuda.Stream(device))
        try:
            staged = [torch.empty(c.shape, dtype=c.dtype, device=device) for c in copies]
        except torch.cuda.OutOfMemoryError:  # then it has to wait
            stream, staged = torch.cuda.current_stream(device), tensors
        else:
            torch._foreach_copy_(staged, tensors)
            stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for copy, tensor in zip(copies, staged, strict=True):
                copy.copy_(tensor, non_blocking=True)
                tensor.record_stream(stream)
            event: torch.cuda.Event = stream.record_event()
        if staged is tensors:
            event.synchronize()
        return event

    def release(self, kept: Kept) -> None:
        """Copies that are not needed any more: their memory is used again."""
        if kept.file is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(kept.file)
            return
        for room, tensor in zip(kept.rooms, kept.tensors, strict=True):
            self._spare.setdefault(room, []).append(tensor)

    def clear(self) -> None:
        """Let go of the memory that was released."""
        self._spare.clear()

    def _room(self, like: torch.Tensor, dtype: torch.dtype) -> Room:
        device = like.device if self.where == "device" else torch.device("cpu")
        return like.shape, dtype, device, device.type == "cpu" and like.is_cuda

    def _taken(self, room: Room) -> torch.Tensor:
        spare = self._spare.get(room)
        if spare:
            return spare.pop()
        shape, dtype, device, pinned = room
        return torch.empty(shape, dtype=dtype, device=device, pin_memory=pinned)

    def _write(self, tensors: Sequence[torch.Tensor], dtype: torch.dtype | None) -> Kept:
        """One file for all of them, mapped after writing, so that a full disk is an error."""
        if self._folder is None:
            root = None if self.where == "disk" else self.where
            self._folder = Path(tempfile.mkdtemp(prefix="wfcast-states-", dir=root))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        path = self._folder / f"{self._files}.bin"
        self._files += 1
        starts = []
        try:
            with open(path, "xb") as file:
                for tensor in tensors:
                    file.write(bytes(-file.tell() % ALIGN))
                    starts.append(file.tell())
                    plain = tensor.to("cpu", dtype or tensor.dtype).contiguous()
                    file.write(plain.view(-1).view(torch.uint8).numpy().data)
            size = os.path.getsize(path)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        # a private mapping: nobody is to write, but torch wants memory that can be written
        whole = torch.from_numpy(
            np.memmap(path, np.uint8, "c", shape=(max(size, 1),)) if size else np.zeros(0, np.uint8)
        )
        kept = Kept([], file=path)
        for tensor, start in zip(tensors, starts, strict=True):
            kind = dtype or tensor.dtype
            length = tensor.numel() * kind.itemsize
            kept.tensors.append(whole[start : start + length].view(kind).view(tensor.shape))
        return kept
