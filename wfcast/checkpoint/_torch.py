"""Files of ``torch.save``, mapped by torch's own safe loader: ``weights_only=True, mmap=True``.

The weights are the first mapping of names to tensors on the way down from the top: the object
itself where it holds tensors, else the value of the first of the keys "state_dict",
"model_state_dict", "model", "module" and "weights" that is there, and so on inside that. What all
names begin with of "module." (DataParallel) and "_orig_mod." (torch.compile) is left out of the
names, and put back when a torch file is written like it.
"""

from __future__ import annotations

import json
import mmap
import os
import pickle
import re
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .._columns import Array, is_tensor
from .._errors import CheckpointError
from ._archive import look
from ._base import FileCheckpoint, Layout, Tensor, TensorCheckpoint

KEYS = ("state_dict", "model_state_dict", "model", "module", "weights")
PREFIXES = ("module.", "_orig_mod.")
DEPTH = 20
"""How far down a state dict is looked for: one that holds itself has no end."""

MAPPED = 10_000
"""The most tensors of one file that are mapped one by one when it is written."""


class TorchCheckpoint(TensorCheckpoint, FileCheckpoint):
    """A single file of ``torch.save``."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(path, what)
        whole = self._load()
        source, keys = self._find(whole)
        prefix = _prefix(source)
        self._take({name.removeprefix(prefix): value for name, value in source.items()})
        outer = _at(whole, keys[:-1])
        left = tuple(k for k in outer if isinstance(k, str) and k != keys[-1]) if keys else ()
        self.layout = Layout("torch", weights=path.name, keys=keys, prefix=prefix, left=left)

    def _load(self) -> Any:
        torch = import_torch(self.what)
        try:
            with open(self.path, "rb") as file:
                is_zip = file.read(2) == b"PK"
                if is_zip:
                    look(file, 0, os.fstat(file.fileno()).st_size, self.what)
        except OSError as error:
            raise CheckpointError(f"{self.what} cannot be read: {error}") from error
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about what is in the file
                return torch.load(self.path, map_location="cpu", weights_only=True, mmap=True)
        except pickle.UnpicklingError as error:
            raise CheckpointError(
                f"{self.what} is refused by torch.load(weights_only=True), because it holds more "
                f"than tensors and plain values: {_cause(error)}. Save the state_dict() instead"
            ) from error
        except Exception as error:  # of many kinds, as the bytes may be anything
            hint = "" if is_zip else "; a file of torch before 1.6 is to be saved again"
            raise CheckpointError(
                f"{self.what} cannot be mapped by torch.load: {_first_line(error)}{hint}"
            ) from error

    def _find(self, whole: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
        keys: tuple[str, ...] = ()
        here = whole
        while isinstance(here, Mapping) and len(keys) < DEPTH:
            found = {k: v for k, v in here.items() if is_tensor(v)}
            if found and all(isinstance(k, str) for k in found):
                return found, keys
            key = next((k for k in KEYS if isinstance(here.get(k), Mapping)), None)
            if key is None:
                break
            here, keys = here[key], (*keys, key)
        shown: Any = type(whole).__name__
        if isinstance(whole, Mapping):
            shown = [k[:40] if isinstance(k, str) else type(k).__name__ for k in list(whole)[:8]]
        raise CheckpointError(
            f"{self.what} holds no state dict at its top or under one of {', '.join(KEYS)}; "
            f"it holds {shown}"
        )


def _prefix(source: Mapping[str, Any]) -> str:
    prefix = ""
    while True:
        more = next((p for p in PREFIXES if all(n.startswith(prefix + p) for n in source)), None)
        if more is None:
            return prefix
        prefix += more


def _at(whole: Any, keys: Iterable[str]) -> Any:
    for key in keys:
        whole = whole[key]
    return whole


def _cause(error: Exception) -> str:
    """What torch's unpickler met, of a message that goes on with advice and escape codes."""
    found = re.search(r"WeightsUnpickler error: ([^\n]+?)\.?(?: Please|\n|$)", str(error))
    return found[1] if found else _first_line(error).split(". ")[0]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def import_torch(what: str) -> Any:
    """The module torch, or an error that says what needs it."""
    try:
        import torch
    except ImportError:
        raise CheckpointError(f"{what} needs torch: install wfcast[torch]") from None
    return torch


# ---- writing ------------------------------------------------------------------------------------


class Stage:
    """Tensors written one after the other to a nameless file, to be had as mapped torch tensors.

    torch writes only tensors that are there all at once; so they are on the disk, not in memory.

    Parameters
    ----------
    file : binary file
        Empty, to read and to write, and gone when it is closed.
    tensors : iterable of Tensor
    """

    def __init__(self, file: BinaryIO, tensors: Iterable[Tensor]) -> None:
        self._file = file
        self._tensors = {t.name: t for t in tensors}
        self.order = tuple(self._tensors)
        self._starts: dict[str, int] = {}

    def write(self, name: str, pieces: Iterable[Array]) -> None:
        """Write one tensor: C-contiguous pieces in C order."""
        page = mmap.ALLOCATIONGRANULARITY
        start = -(-self._file.tell() // page) * page
        self._file.seek(start)
        self._starts[name] = start
        for piece in pieces:
            self._file.write(piece.reshape(-1).view(np.uint8).data)

    def tensors(self) -> Iterator[tuple[str, Any]]:
        """The tensors in the order of their names as given, each with a storage of its own."""
        torch = import_torch("a torch file")
        self._file.flush()
        large = sorted(self._tensors.values(), key=lambda t: -t.nbytes)[:MAPPED]
        mapped = {t.name for t in large}
        for name, tensor in self._tensors.items():
            dtype = getattr(torch, tensor.dtype)
            if tensor.nbytes == 0:
                yield name, torch.empty(tensor.shape, dtype=dtype)
                continue
            start, length = self._starts[name], tensor.nbytes
            if name in mapped:
                # private pages: torch wants memory that may be written
                whole: Any = mmap.mmap(
                    self._file.fileno(), length, access=mmap.ACCESS_COPY, offset=start
                )
            else:
                self._file.seek(start)
                whole = bytearray(self._file.read(length))
            flat = torch.frombuffer(whole, dtype=torch.uint8, count=length)
            if tensor.quantizer is None:
                yield name, flat.view(dtype).reshape(tensor.shape)
            else:
                yield name, _quantized(flat, tensor)


def _quantized(flat: Any, tensor: Tensor) -> Any:
    import torch

    assert tensor.quantizer is not None
    integers = {"qint8": torch.int8, "quint8": torch.uint8, "qint32": torch.int32}[tensor.dtype]
    plain = flat.view(integers).reshape(tensor.shape)
    if len(tensor.quantizer) == 2:
        return torch._make_per_tensor_quantized_tensor(plain, *tensor.quantizer)
    return torch._make_per_channel_quantized_tensor(plain, *tensor.quantizer)


def state_dict(stage: Stage, layout: Layout, tied: Mapping[str, str], note: str) -> Any:
    """What ``torch.save`` is given: the staged tensors in the nesting of `layout`.

    `note` is kept in the state dict's own ``_metadata``, which `load_state_dict` ignores.
    """
    found = dict(stage.tensors())
    found.update({alias: found[name] for alias, name in tied.items()})
    state: Any = OrderedDict((layout.prefix + name, value) for name, value in found.items())
    state._metadata = OrderedDict({"wfcast.forecast": json.loads(note)})
    for key in reversed(layout.keys):
        state = {key: state}
    return state


def save(state: Any, file: BinaryIO) -> None:
    """``torch.save``; what breaks it off, Ctrl-C or the file, is raised as it is."""
    torch = import_torch("a torch file")
    try:
        torch.save(state, file)
    except RuntimeError as error:  # of the zip file's end, which torch writes in any case
        if error.__context__ is not None:
            raise error.__context__ from None
        raise
