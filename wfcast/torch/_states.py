"""Where copies of tensors live: in memory of the CPU or of the device, or in files."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .._errors import WfcastError
from .._live.tensors import local

STORES = ("auto", "cpu", "device", "disk")
ALIGN = 64
FEW = 0.1  # the share of a device's memory that "auto" takes


def chosen(where: Any, parameters: Sequence[torch.Tensor], n_states: int) -> Any:
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
        self._spare: dict[Any, list[torch.Tensor]] = {}
        self._folder: Path | None = None
        self._files = 0

    def keep(
        self, tensors: Sequence[torch.Tensor], dtype: torch.dtype | None = None
    ) -> list[torch.Tensor]:
        """Copies of the parts that this process holds, in `dtype` or each tensor's own.

        Raises
        ------
        OSError
            The disk is full or fails; nothing is left of the copies.
        """
        here = [local(t) for t in tensors]
        if self.where not in ("cpu", "device"):
            return self._write(here, dtype)
        kept = [self._room(tensor, dtype or tensor.dtype) for tensor in here]
        apart: dict[torch.device, list[int]] = {}
        for i, tensor in enumerate(here):
            away = tensor.is_cuda and self.where == "cpu"
            apart.setdefault(tensor.device if away else torch.device("cpu"), []).append(i)
        for device, places in apart.items():
            copies, tensors = [kept[i] for i in places], [here[i] for i in places]
            if device.type == "cpu":
                torch._foreach_copy_(copies, tensors)
            else:
                self._fetch(device, copies, tensors)
        return kept

    def _fetch(
        self, device: torch.device, copies: list[torch.Tensor], tensors: list[torch.Tensor]
    ) -> None:
        """From a GPU to pinned memory, while it goes on: `settled` waits for the end."""
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
            event = stream.record_event()
        if staged is tensors:
            event.synchronize()
        for copy in copies:
            copy._wfcast_copied = event  # type: ignore[attr-defined]

    def release(self, kept: Sequence[torch.Tensor]) -> None:
        """Copies that are not needed any more: their memory is used again."""
        for tensor in kept:
            path = getattr(tensor, "_wfcast_file", None)
            if path is not None:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
            elif self.where in ("cpu", "device"):
                self._spare.setdefault(tensor._wfcast_key, []).append(tensor)  # type: ignore[attr-defined]

    def clear(self) -> None:
        """Let go of the memory that was released."""
        self._spare.clear()

    def _room(self, like: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        device = like.device if self.where == "device" else torch.device("cpu")
        pinned = device.type == "cpu" and like.is_cuda
        key = like.shape, dtype, device, pinned
        spare = self._spare.get(key)
        if spare:
            return spare.pop()
        room = torch.empty(like.shape, dtype=dtype, device=device, pin_memory=pinned)
        room._wfcast_key = key  # type: ignore[attr-defined]
        return room

    def _write(
        self, tensors: Sequence[torch.Tensor], dtype: torch.dtype | None
    ) -> list[torch.Tensor]:
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
        kept = []
        for tensor, start in zip(tensors, starts, strict=True):
            kind = dtype or tensor.dtype
            length = tensor.numel() * kind.itemsize
            part = whole[start : start + length].view(kind).view(tensor.shape)
            part._wfcast_file = path  # type: ignore[attr-defined]
            kept.append(part)
        return kept


def settled(kept: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
    """The same copies, once they are complete; to be asked before any is read."""
    events = {id(e): e for t in kept if (e := getattr(t, "_wfcast_copied", None)) is not None}
    for event in events.values():
        event.synchronize()
    return kept


# ---- what an optimizer holds --------------------------------------------------------------------


def _map(value: Any, change: Callable[[torch.Tensor], Any]) -> Any:
    """`value` with every tensor in it replaced, in dicts, lists and tuples of any depth."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, dict):
        return {k: _map(v, change) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_map(v, change) for v in value)
    return value


def tensors_in(value: Any) -> list[torch.Tensor]:
    """Every tensor in dicts, lists and tuples of any depth, in their order."""
    found: list[torch.Tensor] = []
    _map(value, found.append)
    return found


def _replace(value: Any, tensors: Sequence[Any]) -> Any:
    left = iter(tensors)
    return _map(value, lambda _: next(left))


def parameters_of(optimizer: Any) -> list[torch.Tensor]:
    """What the optimizer steps, in its own order."""
    return [p for group in optimizer.param_groups for p in group["params"]]


class OptimizerSnapshot:
    """A copy of an optimizer's state and settings, whatever the layout of the state.

    ``state`` is a list of one entry per parameter (None where it had no state), ``groups`` the
    settings of the parameter groups; both hold nothing but plain containers, numbers and tensors.
    """

    def __init__(self, state: list[Any], groups: list[dict[str, Any]]) -> None:
        self.state, self.groups = state, groups

    @classmethod
    def take(cls, optimizer: Any, store: Store) -> OptimizerSnapshot:
        """Copy it."""
        state = [
            dict(optimizer.state[p]) if p in optimizer.state else None
            for p in parameters_of(optimizer)
        ]
        groups = [
            {k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups
        ]
        tensors = tensors_in(state)
        groups = _map(groups, lambda t: t.detach().clone())
        return cls(_replace(state, store.keep(tensors)), groups)

    def restore(self, optimizer: Any, *, settings: bool) -> None:
        """Write it back, in place wherever a tensor is still there; `settings` of groups, too."""
        settled(tensors_in(self.state))
        for parameter, then in zip(parameters_of(optimizer), self.state, strict=True):
            if then is None:
                optimizer.state.pop(parameter, None)
                continue
            now = optimizer.state[parameter]
            for key in now.keys() - then.keys():
                del now[key]
            for key, value in then.items():
                now[key] = _restored(now.get(key), value)
        for group, then in zip(optimizer.param_groups, self.groups, strict=True):
            for key, value in then.items() if settings else ():
                group[key] = _restored(group.get(key), value)

    def release(self, store: Store) -> None:
        """Give the memory back."""
        store.release(tensors_in(self.state))

    def state_dict(self) -> dict[str, Any]:
        """A copy in plain containers."""
        settled(tensors_in(self.state))
        return {"state": _map(self.state, torch.clone), "groups": _map(self.groups, torch.clone)}

    @classmethod
    def load(cls, state: dict[str, Any], store: Store) -> OptimizerSnapshot:
        """From what `state_dict` gave."""
        tensors = store.keep(tensors_in(state["state"]))
        return cls(_replace(state["state"], tensors), _map(state["groups"], torch.clone))


def _restored(now: Any, then: Any) -> Any:
    """`then`, written into the tensors of `now` where they fit."""
    if isinstance(then, torch.Tensor):
        if isinstance(now, torch.Tensor) and local(now).shape == then.shape:
            local(now).copy_(then)
            return now
        return then.clone()
    if isinstance(then, dict):
        old = now if isinstance(now, dict) else {}
        return {k: _restored(old.get(k), v) for k, v in then.items()}
    if isinstance(then, list | tuple):
        fits = isinstance(now, list | tuple) and len(now) == len(then)
        before = now if fits else [None] * len(then)
        return type(then)(_restored(a, b) for a, b in zip(before, then, strict=True))
    return then


FIRST_MOMENTS = ("exp_avg", "momentum_buffer")


def soften(optimizer: Any, slots: Sequence[Any], how: str, factor: float) -> None:
    """What happens to the moments after a jump: kept, forgotten, or the first ones scaled."""
    for slot in slots:
        if how == "reset":
            optimizer.state.pop(slot.parameter, None)
        elif how == "scale" and slot.parameter in optimizer.state:
            for key in FIRST_MOMENTS:
                moment = optimizer.state[slot.parameter].get(key)
                if isinstance(moment, torch.Tensor):
                    local(moment).mul_(factor)
