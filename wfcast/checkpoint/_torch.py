"""Files of ``torch.save``, mapped by torch's own safe loader: ``weights_only=True, mmap=True``.

`_sets` says which of the mappings in it holds the weights. What is no tensor among the weights,
such as the parameters of a quantized layer, goes along to another torch file; a mapping does not,
unless it is a module's extra state. Beside the weights plain values go along, such as the
hyperparameters and the version that Lightning asks for; an optimizer's state does not.
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
from contextlib import suppress
from pathlib import Path
from types import NoneType
from typing import Any, BinaryIO

import numpy as np

from .._columns import Array, Column, is_tensor
from .._direct import DirectWriter, fill
from .._errors import CheckpointError
from ._archive import examine
from ._base import PROVENANCE, CheckpointWriter, FileCheckpoint, Layout, Tensor, TensorCheckpoint
from ._sets import DEPTH, beside, chosen_set, of_training, sets_in

ALIGNMENT = 64
"""Where a tensor may begin in the file from which it is written: a cache line."""


class TorchCheckpoint(TensorCheckpoint, FileCheckpoint):
    """A single file of ``torch.save``."""

    def __init__(self, path: Path, what: str, key: str | None = None) -> None:
        super().__init__(path, what)
        self._watch(path)
        whole = self._load()
        self.check_same()
        sets = sets_in(whole, is_tensor, _is_weight)
        found = chosen_set(sets, key, whole, self.what)
        self.sets = tuple(one.name for one in sets)
        state, keys = found.state, found.keys
        source = {name: value for name, value in state.items() if is_tensor(value)}
        self._take(source)
        plain = {k: v for k, v in state.items() if isinstance(k, str) and k not in source}
        others = {k: v for k, v in plain.items() if _goes_along(k, v)}
        versions = getattr(state, "_metadata", None)
        if not isinstance(versions, Mapping):
            versions = {}
        if PROVENANCE in versions:
            with suppress(TypeError, ValueError, RecursionError):  # it may be anything
                self.metadata[PROVENANCE] = json.dumps(versions[PROVENANCE])
        there = beside(whole, keys)
        around = tuple(
            {k: v for k, v in one.items() if not of_training(k) and _is_plain(v)} for one in there
        )
        left = (k for one, kept in zip(there, around, strict=True) for k in one if k not in kept)
        self.layout = Layout(
            "torch",
            weights=path.name,
            keys=keys,
            around=around,
            others=others,
            versions=versions,
            left=(*left, *(k for k in plain if k not in others)),
        )

    # What is mapped of a file that was cut short meanwhile is no memory any more.

    def column(self, name: str) -> Column:
        self.check_same()
        return super().column(name)

    def value(self, name: str) -> Any:
        self.check_same()
        return super().value(name)

    def raw(self, name: str) -> Array:
        self.check_same()
        return super().raw(name)

    def _load(self) -> Any:
        torch = import_torch(self.what)
        try:
            with open(self.path, "rb") as file:
                is_zip = file.read(2) == b"PK"
                if is_zip:
                    examine(file, 0, os.fstat(file.fileno()).st_size, self.what)
        except OSError as error:
            raise CheckpointError(f"{self.what} cannot be read: {error}") from error
        if not is_zip:
            raise CheckpointError(
                f"{self.what} is a pickle, or a file of torch before 1.6, which cannot be mapped: "
                "torch.save its state_dict() again"
            )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about what is in the file
                return torch.load(self.path, map_location="cpu", weights_only=True, mmap=True)
        except pickle.UnpicklingError as error:
            if "Unsupported operand" in str(error):
                raise CheckpointError(
                    f"{self.what} is refused by torch.load(weights_only=True), which does not know "
                    f"its pickle protocol: {_operand(error)}. Save it with pickle_protocol=2, as "
                    "torch.save does by itself"
                ) from error
            raise CheckpointError(
                f"{self.what} is refused by torch.load(weights_only=True), because it holds more "
                f"than tensors and plain values: {_cause(error)}. Save the state_dict() instead"
            ) from error
        except Exception as error:  # of many kinds, as the bytes may be anything
            raise CheckpointError(
                f"{self.what} cannot be mapped by torch.load: {_first_line(error)}"
            ) from error


def _is_weight(value: Any) -> bool:
    return bool(value.is_floating_point() or value.is_quantized) and value.numel() > 1


def _is_plain(value: Any, depth: int = 0) -> bool:
    """Whether a value is made of numbers, texts and containers of them only."""
    if isinstance(value, Mapping):
        parts: Iterable[Any] = (*value, *value.values())
    elif isinstance(value, list | tuple | set | frozenset):
        parts = value
    else:
        return isinstance(value, bool | int | float | complex | str | bytes | NoneType)
    return depth < DEPTH and all(_is_plain(part, depth + 1) for part in parts)


def _goes_along(name: str, value: Any) -> bool:
    """Whether what is no tensor belongs to the model: a mapping may be an optimizer's state."""
    return name.endswith("_extra_state") or not isinstance(value, Mapping)


def _cause(error: Exception) -> str:
    """What torch's unpickler met, of a message that goes on with advice and escape codes."""
    text = str(error)
    found = re.search(
        r"(?:WeightsUnpickler error: |\n(?=Trying ))([^\n]+?)\.?(?: Please|\n|$)", text
    )
    return found[1] if found else _first_line(error).split(". ")[0]


def _operand(error: Exception) -> str:
    found = re.search(r"Unsupported operand \d+", str(error))
    return found[0] if found else _first_line(error)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def import_torch(what: str) -> Any:
    """The module torch, or an error that says what needs it."""
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise CheckpointError(
            f"{what} needs torch, which is not installed (the extra 'torch' of wfcast)"
        ) from None
    return torch


# ---- writing ------------------------------------------------------------------------------------


class Stage(CheckpointWriter):
    """Tensors written one after the other to a nameless file, to be had as mapped torch tensors.

    torch writes only tensors that are there all at once; so they are on the disk, not in memory.

    Parameters
    ----------
    file : binary file
        Empty, to read and to write, and gone when it is closed.
    tensors : iterable of Tensor

    Attributes
    ----------
    size : int
        The bytes of the file.
    """

    def __init__(self, file: BinaryIO, tensors: Iterable[Tensor]) -> None:
        self._tensors = {t.name: t for t in tensors}
        self.order = tuple(self._tensors)
        self._starts: dict[str, int] = {}
        self._taken = dict.fromkeys(self.order, 0)
        self.size = 0
        for tensor in self._tensors.values():
            self._starts[tensor.name] = self.size
            self.size += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
        # shared: torch wants memory that may be written, and private memory is accounted; one map,
        # since each would hold a descriptor, of which there are not many
        self._whole: Any = b""
        if self.size:
            fill(file.fileno(), self.size)
            self._whole = mmap.mmap(file.fileno(), self.size, access=mmap.ACCESS_WRITE)

    def room(self, name: str, nbytes: int) -> Array:
        """Memory for the next bytes of a tensor."""
        start = self._starts[name] + self._taken[name]
        self._taken[name] += nbytes
        assert self._taken[name] <= self._tensors[name].nbytes
        return np.frombuffer(self._whole, np.uint8, nbytes, start)

    def tensors(self) -> Iterator[tuple[str, Any]]:
        """The tensors in the order of their names as given, each with a storage of its own."""
        torch = import_torch("a torch file")
        for name, tensor in self._tensors.items():
            dtype = getattr(torch, tensor.dtype)
            if tensor.nbytes == 0:
                yield name, torch.empty(tensor.shape, dtype=dtype)
                continue
            start, length = self._starts[name], tensor.nbytes
            assert self._taken[name] == length, f"tensor {name!r} was not written"
            flat = torch.frombuffer(self._whole, dtype=torch.uint8, count=length, offset=start)
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

    `note` is kept in the state dict's own ``_metadata``, beside the versions of the modules that
    `load_state_dict` reads there.
    """
    state: Any = OrderedDict(named(stage, layout, tied))
    state.update(layout.others)
    state._metadata = OrderedDict({**layout.versions, PROVENANCE: json.loads(note)})
    return nested(state, layout)


def named(stage: Stage, layout: Layout, tied: Mapping[str, str]) -> dict[str, Any]:
    """The staged tensors by all of their names, tied ones and the prefix included."""
    found = dict(stage.tensors())
    found.update({alias: found[name] for alias, name in tied.items()})
    return {layout.prefix + name: value for name, value in found.items()}


def nested(state: Any, layout: Layout) -> Any:
    """The object in which the layout's keys lead to `state`, and what goes along stands beside."""
    around = layout.around or ({},) * len(layout.keys)
    for key, there in zip(reversed(layout.keys), reversed(around), strict=True):
        state = {**there, key: state}
    return state


def save(state: Any, file: DirectWriter) -> None:
    """``torch.save``; what breaks it off, Ctrl-C or the file, is raised as it is."""
    torch = import_torch("a torch file")
    try:
        torch.save(state, file)
    except RuntimeError as error:  # of the zip file's end, which torch writes in any case
        if error.__context__ is not None:
            raise error.__context__ from None
        raise
