"""Where copies of tensors live: in memory of the CPU or of the device, or in files."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .._errors import WfcastError
from .._live.tensors import local

STORES = ("auto", "cpu", "device", "disk")
ALIGN = 64
PIECE = 1 << 26  # elements that are worked on at once
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
        if (
            not isinstance(where, str | os.PathLike)
            or not os.fspath(where)
            or not (where in STORES or Path(where).is_dir())
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
            return self._write(t.to(dtype or t.dtype) for t in here)
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

    def _write(self, tensors: Iterable[torch.Tensor]) -> Kept:
        """One file for all of them, mapped after writing, so that a full disk is an error."""
        if self._folder is None:
            root = None if self.where == "disk" else self.where
            self._folder = Path(tempfile.mkdtemp(prefix="wfcast-states-", dir=root))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        path = self._folder / f"{self._files}.bin"
        self._files += 1
        parts: list[tuple[int, torch.Size, torch.dtype]] = []
        try:
            with open(path, "xb") as file:
                for tensor in tensors:
                    file.write(bytes(-file.tell() % ALIGN))
                    parts.append((file.tell(), tensor.shape, tensor.dtype))
                    file.write(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
            size = os.path.getsize(path)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        # a private mapping: nobody is to write, but torch wants memory that can be written
        whole = torch.from_numpy(
            np.memmap(path, np.uint8, "c", shape=(max(size, 1),)) if size else np.zeros(0, np.uint8)
        )
        kept = Kept([], file=path)
        for start, shape, dtype in parts:
            length = shape.numel() * dtype.itemsize
            kept.tensors.append(whole[start : start + length].view(dtype).view(shape))
        return kept

    # ---- sums ---------------------------------------------------------------------------------

    def zeros(self, tensors: Sequence[torch.Tensor]) -> Kept:
        """Zeros of their shapes where copies of them would be kept: float32, or float64 of that.

        Raises
        ------
        OSError
            The disk is full or fails.
        """
        here = [local(t) for t in tensors]
        dtypes = [torch.float64 if t.dtype == torch.float64 else torch.float32 for t in here]
        pairs = zip(here, dtypes, strict=True)
        if self.where not in ("cpu", "device"):
            return self._write(torch.zeros(t.shape, dtype=dtype) for t, dtype in pairs)
        rooms = [self._room(t, dtype) for t, dtype in pairs]
        kept = Kept([self._taken(room) for room in rooms], rooms)
        torch._foreach_zero_(kept.tensors)
        return kept

    def changed(self, kept: Kept, change: Callable[[range, list[torch.Tensor]], None]) -> Kept:
        """Copies after a change in place, a few tensors at a time; the old ones are gone.

        Parameters
        ----------
        kept : Kept
        change : callable
            ``change(places, tensors)`` changes those at these places of the list.

        Raises
        ------
        OSError
            The disk is full or fails; what was kept is as it was.
        """
        tensors = kept.settled()
        if kept.file is None:
            for places in runs_of([t.numel() for t in tensors]):
                change(places, tensors[places.start : places.stop])
            return kept

        def made() -> Iterator[torch.Tensor]:
            for i, tensor in enumerate(tensors):
                fresh = [tensor.clone()]
                change(range(i, i + 1), fresh)
                yield fresh[0]

        after = self._write(made())
        self.release(kept)
        return after


def runs_of(sizes: Sequence[int]) -> Iterator[range]:
    """Neighbours that hold at most `PIECE` elements together, or one by one."""
    begin = held = 0
    for i, size in enumerate(sizes):
        if i > begin and held + size > PIECE:
            yield range(begin, i)
            begin, held = i, 0
        held += size
    yield range(begin, len(sizes))
