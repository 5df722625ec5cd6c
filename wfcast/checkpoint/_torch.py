"""Files of ``torch.save``, mapped by torch's own safe loader: ``weights_only=True, mmap=True``.

The weights are what stands under the first of the keys "state_dict", "model_state_dict", "model",
"module" and "weights" that leads to tensors, and so on inside that; else the mapping itself where
it holds tensors, else the only mapping in it. What all names begin with of "module."
(DataParallel) and "_orig_mod." (torch.compile) is left out of the names, and put back when a torch
file is written like it. What is no tensor among the weights, such as the parameters of a quantized
layer, goes along to another torch file; a mapping does not, unless it is a module's extra state.
"""

from __future__ import annotations

import json
import mmap
import os
import pickle
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .._columns import Array, is_tensor
from .._direct import DirectWriter, fill
from .._errors import CheckpointError
from ._archive import examine
from ._base import PROVENANCE, CheckpointWriter, FileCheckpoint, Layout, Tensor, TensorCheckpoint

KEYS = ("state_dict", "model_state_dict", "model", "module", "weights")
PREFIXES = ("module.", "_orig_mod.")
DEPTH = 20
"""How far down a state dict is looked for: one that holds itself has no end."""

ALIGNMENT = 64
"""Where a tensor may begin in the file from which it is written: a cache line."""


class TorchCheckpoint(TensorCheckpoint, FileCheckpoint):
    """A single file of ``torch.save``."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(path, what)
        whole = self._load()
        found = state_in(whole, is_tensor)
        if found is None:
            raise CheckpointError(f"{self.what} holds {no_state(whole)}")
        state, keys = found
        source = {name: value for name, value in state.items() if is_tensor(value)}
        prefix = common_prefix(source)
        self._take({name.removeprefix(prefix): value for name, value in source.items()})
        plain = {k: v for k, v in state.items() if isinstance(k, str) and k not in source}
        others = {k: v for k, v in plain.items() if _goes_along(k, v)}
        versions = getattr(state, "_metadata", None)
        if not isinstance(versions, Mapping):
            versions = {}
        if PROVENANCE in versions:
            with suppress(TypeError, ValueError, RecursionError):  # it may be anything
                self.metadata[PROVENANCE] = json.dumps(versions[PROVENANCE])
        self.layout = Layout(
            "torch",
            weights=path.name,
            keys=keys,
            prefix=prefix,
            others=others,
            versions=versions,
            left=(*beside(whole, keys), *(k for k in plain if k not in others)),
        )

    def _load(self) -> Any:
        torch = import_torch(self.what)
        try:
            with open(self.path, "rb") as file:
                is_zip = file.read(2) == b"PK"
                if is_zip:
                    examine(file, 0, os.fstat(file.fileno()).st_size, self.what)
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


def state_in(
    whole: Any, holds: Callable[[Any], bool]
) -> tuple[Mapping[Any, Any], tuple[str, ...]] | None:
    """The mapping of names to tensors in nested mappings, and the keys that lead to it.

    Parameters
    ----------
    whole : object
    holds : callable
        Whether a value is a tensor.
    """
    seen: set[int] = set()

    def find(here: Any, keys: tuple[str, ...]) -> tuple[Mapping[Any, Any], tuple[str, ...]] | None:
        if not isinstance(here, Mapping) or id(here) in seen or len(keys) > DEPTH:
            return None
        seen.add(id(here))
        for key in KEYS:
            found = find(here.get(key), (*keys, key))
            if found is not None:
                return found
        tensors = [k for k, v in here.items() if holds(v)]
        if tensors:
            return (here, keys) if all(isinstance(k, str) for k in tensors) else None
        inner = [k for k, v in here.items() if isinstance(v, Mapping)]
        if len(inner) == 1 and isinstance(inner[0], str):
            return find(here[inner[0]], (*keys, inner[0]))
        return None

    return find(whole, ())


def no_state(whole: Any) -> str:
    """What a message says of an object without a state dict."""
    shown: Any = type(whole).__name__
    if isinstance(whole, Mapping):
        shown = [k[:40] if isinstance(k, str) else type(k).__name__ for k in list(whole)[:8]]
    return f"no state dict at its top or under one of {', '.join(KEYS)}; it holds {shown}"


def beside(whole: Any, keys: Iterable[str]) -> list[str]:
    """The names of what stands beside the keys that lead to the weights."""
    names = []
    for key in keys:
        names += [k for k in whole if isinstance(k, str) and k != key]
        whole = whole[key]
    return names


def _goes_along(name: str, value: Any) -> bool:
    """Whether what is no tensor belongs to the model: a mapping may be an optimizer's state."""
    return name.endswith("_extra_state") or not isinstance(value, Mapping)


def common_prefix(source: Iterable[str]) -> str:
    """What all names begin with of `PREFIXES`."""
    source = list(source)
    prefix = ""
    while True:
        more = next((p for p in PREFIXES if all(n.startswith(prefix + p) for n in source)), None)
        if more is None:
            return prefix
        prefix += more


def _cause(error: Exception) -> str:
    """What torch's unpickler met, of a message that goes on with advice and escape codes."""
    text = str(error)
    found = re.search(
        r"(?:WeightsUnpickler error: |\n(?=Trying ))([^\n]+?)\.?(?: Please|\n|$)", text
    )
    return found[1] if found else _first_line(error).split(". ")[0]


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
    return nested(state, layout.keys)


def named(stage: Stage, layout: Layout, tied: Mapping[str, str]) -> dict[str, Any]:
    """The staged tensors by all of their names, tied ones and the prefix included."""
    found = dict(stage.tensors())
    found.update({alias: found[name] for alias, name in tied.items()})
    return {layout.prefix + name: value for name, value in found.items()}


def nested(state: Any, keys: Sequence[str]) -> Any:
    """The object in which `keys` lead to `state`."""
    for key in reversed(keys):
        state = {key: state}
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
