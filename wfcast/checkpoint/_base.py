"""What every checkpoint format offers: names, shapes, dtypes, and one tensor at a time."""

from __future__ import annotations

import copy
import os
from abc import ABC, abstractmethod
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from .._columns import (
    FLOATS,
    Array,
    Column,
    as_ndarray,
    check_memory,
    column,
    dtype_name,
    is_sharded,
    is_tensor,
)
from .._direct import BLOCK_BYTES
from .._errors import CheckpointError, DtypeError, WfcastError
from .._kinds import is_buffer

BITS = {
    "complex128": 128,
    "complex64": 64,
    "complex32": 32,
    "float64": 64,
    "float32": 32,
    "float16": 16,
    "bfloat16": 16,
    "int64": 64,
    "int32": 32,
    "int16": 16,
    "int8": 8,
    "uint64": 64,
    "uint32": 32,
    "uint16": 16,
    "uint8": 8,
    "bool": 8,
    "bits8": 8,
    "bits16": 16,
    "qint8": 8,
    "quint8": 8,
    "qint32": 32,
    "float8_e4m3fn": 8,
    "float8_e5m2": 8,
    "float8_e4m3fnuz": 8,
    "float8_e5m2fnuz": 8,
    "float8_e8m0fnu": 8,
    "float6_e2m3fn": 6,
    "float6_e3m2fn": 6,
    "float4_e2m1fn": 4,
    "float4_e2m1fn_x2": 8,
}
"""Bits per element of dtypes, by torch's name of them; of others, torch says how many bytes."""

PROVENANCE = "wfcast.forecast"
"""The key of a forecast's provenance in its metadata."""


def is_forecast(tensor: Tensor) -> bool:
    """Whether a tensor is forecast; integers, bools, float8 and buffers are copied.

    Where no module says which tensors are buffers, they are told by name.
    """
    return tensor.dtype in FLOATS and not tensor.buffer and not is_buffer(tensor.name)


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor's name, shape and dtype (torch's name of it).

    A quantized one also has what its integers stand for: scale and zero point, and the axis where
    there is one of each per channel. `buffer` is whether a module says that it is one.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    quantizer: tuple[Any, ...] | None = field(default=None, compare=False)
    buffer: bool = field(default=False, compare=False)

    @property
    def size(self) -> int:
        """The number of elements."""
        return count_of(self.shape)

    @property
    def nbytes(self) -> int:
        """Its bytes on disk."""
        return self.size * self.bits // 8

    @property
    def bits(self) -> int:
        """The bits of an element."""
        if self.dtype in BITS:
            return BITS[self.dtype]
        import torch  # which the tensor is of

        return 8 * int(getattr(torch, self.dtype).itemsize)


@dataclass(frozen=True, slots=True)
class Layout:
    """How a checkpoint lies on disk, so that another one can be written like it.

    Attributes
    ----------
    format : str
        "safetensors", "torch" or "dcp" (torch.distributed.checkpoint).
    folder : bool
        Whether it is a folder, with the weights and what is carried along.
    weights : str
        The name of the weights in the folder: a file, the index of the shards, or a folder of
        torch.distributed.checkpoint; "" where the folder is such a one itself.
    shards : dict of str to str, or None
        Tensor name -> file name; None where there is but one file.
    index : dict
        Shards: what the index holds in its "metadata".
    keys : tuple of str
        Torch's formats: the keys that lead to the state dict.
    around : tuple of mappings
        Torch files: what goes along beside each of the keys.
    prefix : str
        What all names begin with there ("module."), which `tensors` leaves out.
    others : dict of str to object
        Torch files: what is no tensor in the state dict and belongs to the model.
    versions : dict
        Torch files: the state dict's ``_metadata``.
    parts : dict of str to Layout
        A folder of several modules: what the names of a part begin with -> its layout. It is a
        folder of that name, with or without weights, or a file in this one.
    carried : tuple of Path
        Files beside the weights that belong to the model: configuration, tokenizer.
    left : tuple of str
        Names beside the weights that belong to the training: optimizer, scheduler, random state.
    """

    format: str = "safetensors"
    folder: bool = False
    weights: str = "model.safetensors"
    shards: Mapping[str, str] | None = None
    index: Mapping[str, Any] = field(default_factory=dict)
    keys: tuple[str, ...] = ()
    around: tuple[Mapping[str, Any], ...] = ()
    prefix: str = ""
    others: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=dict)
    parts: Mapping[str, Layout] = field(default_factory=dict)
    carried: tuple[Path, ...] = ()
    left: tuple[str, ...] = ()

    @property
    def carried_names(self) -> tuple[str, ...]:
        """What goes along: files, what stands beside the weights, and that of the parts."""
        parts = (part + name for part, one in self.parts.items() for name in one.carried_names)
        return (*(path.name for path in self.carried), *self.values, *parts)

    @property
    def values(self) -> tuple[str, ...]:
        """Of what goes along, the names of what only a torch file holds."""
        return (*(key for one in self.around for key in one), *self.others)

    @property
    def left_names(self) -> tuple[str, ...]:
        """What does not go along, that of the parts included."""
        parts = (part + name for part, one in self.parts.items() for name in one.left_names)
        return (*self.left, *parts)

    def of_format(self, format: str) -> Layout:
        """The same in another format, without what only this one can hold."""
        if format == self.format:
            return self
        return replace(
            self,
            format=format,
            shards=None,
            index={},
            keys=(),
            around=(),
            others={},
            versions={},
            left=(*self.left, *self.values),
        )


class Checkpoint(ABC):
    """Names -> tensors, of which at most one is touched at a time.

    Attributes
    ----------
    what : str
        What a message calls it.
    tensors : dict of str to Tensor
        In the order in which reading them is cheapest.
    metadata : dict of str to str
        Free text that the format keeps beside the tensors.
    tied : dict of str to str
        Names that share the memory of another tensor -> that tensor's name, the first of them.
        They are not in `tensors`.
    layout : Layout
    sets : tuple of str
        The names of the sets of weights in a file that may have several; `key` chooses one.
    base : str or None
        Adapters: the model that they adapt.
    stacked : bool
        Adapters: whether some of their pairs of factors may hold several products side by side.
    meaning : dict
        Adapters: what of their configuration says what the weights mean, such as lora_alpha.
    """

    what: str
    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    tied: dict[str, str]
    layout: Layout
    sets: tuple[str, ...]
    base: str | None
    stacked: bool
    meaning: dict[str, Any]

    def __init__(self, what: str) -> None:
        self.what = what
        self.tensors, self.metadata, self.tied = {}, {}, {}
        self.layout, self.sets, self.base, self.stacked = Layout(), (), None, False
        self.meaning = {}

    @property
    def names(self) -> dict[str, list[str]]:
        """All names of each tensor, its own first, the tied ones after it."""
        found = {name: [name] for name in self.tensors}
        for alias, name in self.tied.items():
            found[name].append(alias)
        return found

    @abstractmethod
    def column(self, name: str) -> Column:
        """A floating tensor as the core reads it."""

    @abstractmethod
    def value(self, name: str) -> Any:
        """A copy of any tensor, as the kind of object that the checkpoint is made of."""

    @abstractmethod
    def raw(self, name: str) -> Array:
        """The bytes of any tensor in C order, as a 1-D uint8 array."""

    def unwrap(self) -> None:
        """Leave what a wrapper puts before all names out of them, and in the layout.

        So a model has the same names in all formats, whether it was saved inside of its wrapper or
        not, and a network whose only module is called "module" gets its names back when written.
        """
        prefix = common_prefix((*self.tensors, *self.tied))
        if not prefix:
            return
        n = len(prefix)
        self.tensors = {k[n:]: replace(t, name=k[n:]) for k, t in self.tensors.items()}
        self.tied = {k[n:]: name[n:] for k, name in self.tied.items()}
        shards = self.layout.shards
        if shards is not None:
            shards = {k[n:]: file for k, file in shards.items()}
        self.layout = replace(self.layout, prefix=prefix, shards=shards)

    def _stored(self, name: str) -> str:
        """The name of a tensor where it is stored."""
        return self.layout.prefix + name

    def local_shape(self, name: str) -> tuple[int, ...]:
        """The shape of `column`: that of the tensor, or of the shard that this process holds."""
        return self.tensors[name].shape

    def label(self, name: str) -> str:
        """What a message calls a tensor of this checkpoint."""
        return f"tensor {name!r} of {self.what}"


MOST = 1 << 63
"""What no tensor has as many elements or bytes as."""


def count_of(shape: Iterable[int]) -> int:
    """The number of elements, of a shape that a file states; a ValueError from `MOST` on.

    The product of very many numbers would take hours, and one of 0 is 0.
    """
    shape = tuple(shape)
    if 0 in shape:
        return 0
    count = 1
    for n in shape:
        count *= n
        if count >= MOST:
            raise ValueError("has 2^63 elements or more")
    return count


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object of these pairs, or a ValueError where a key stands twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(k for k, _ in pairs if k in seen or seen.add(k))  # type: ignore[func-returns-value]
        raise ValueError(f"it has the key {twice!r} twice")
    return found


PREFIXES = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before all names of the model in them."""


def common_prefix(names: Iterable[str]) -> str:
    """What all names begin with of `PREFIXES`, and have more behind it."""
    names = list(names)
    prefix = ""
    while names:
        longer = (prefix + p for p in PREFIXES)
        more = next((p for p in longer if all(n.startswith(p) and n != p for n in names)), None)
        if more is None:
            break
        prefix = more
    return prefix


def is_plain(name: str) -> bool:
    """Whether a name is that of a file in a folder, on this system and on others."""
    return name not in ("", ".", "..") and not any(c in name for c in "/\\\0")


Identity = tuple[int, int, int, int]
"""What tells a file from another one, and from itself when it was written to."""


def identity_of(status: os.stat_result) -> Identity:
    """The device, the inode, the size and the time of the last change."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


class FileCheckpoint(Checkpoint):
    """A checkpoint on disk, opened as ``Reader(path, what)``.

    Attributes
    ----------
    path : Path
    """

    path: Path

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(f"{what} ({str(path)!r})")
        self.path = path
        self._seen: dict[Path, Identity] = {}

    def _watch(self, path: Path) -> None:
        """Remember a file as it is, before anything of it is read."""
        try:
            self._seen[path] = identity_of(os.stat(path))
        except OSError as error:
            raise CheckpointError(f"{self.what} cannot be read: {error}") from error

    def check_same(self) -> None:
        """Raise CheckpointError where a file is not what it was when it was opened.

        What was read of it may then be of two states, and what is read may be gone.
        """
        self._check_same(self._seen)

    def _check_same(self, paths: Iterable[Path]) -> None:
        for path in paths:
            try:
                same = identity_of(os.stat(path)) == self._seen[path]
            except OSError:
                same = False
            if not same:
                raise CheckpointError(f"{self.what} changed while it was being read")


class CheckpointWriter(ABC):
    """Writes tensors one after the other.

    Attributes
    ----------
    order : tuple of str
        The order in which the tensors are to be written.
    """

    order: tuple[str, ...]

    @abstractmethod
    def room(self, name: str, nbytes: int) -> Array:
        """Memory for the next bytes, in C order, of the tensor whose turn it is.

        They are to be filled before the next call, and no more than `BLOCK_BYTES` at a time.
        """

    def write(self, name: str, data: Array) -> None:
        """Write a copy of one tensor, or of the next part of it in C order."""
        flat = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        for start in range(0, flat.size, BLOCK_BYTES):
            piece = flat[start : start + BLOCK_BYTES]
            self.room(name, piece.size)[...] = piece


class TensorCheckpoint(Checkpoint):
    """Names -> arrays or tensors in memory, or mapped by the library that read them."""

    _source: dict[str, Any]

    def _take(self, source: Mapping[str, Any]) -> None:
        self._source = {}
        first: dict[Any, str] = {}
        for name, value in source.items():
            if not isinstance(name, str):
                raise CheckpointError(f"{self.what} has the key {name!r}, expected tensor names")
            tensor = self._describe(name, value)
            place = _place(value)
            if place is not None and first.setdefault(place, name) != name:
                self.tied[name] = first[place]
                continue
            self.tensors[name], self._source[name] = tensor, value
        if not self.tensors:
            raise CheckpointError(f"{self.what} holds no tensors")

    def _describe(self, name: str, value: Any) -> Tensor:
        if is_tensor(value):
            if value.is_nested:
                raise DtypeError(f"{self.label(name)} is a nested tensor, expected a dense one")
            dtype = str(value.dtype).removeprefix("torch.")
            if value.is_quantized and dtype not in BITS:  # several elements to a byte
                raise DtypeError(
                    f"{self.label(name)} has dtype {dtype}, which this version of wfcast does not "
                    "know"
                )
            try:
                quantizer = _quantizer(value) if value.is_quantized else None
            except RuntimeError as error:
                raise DtypeError(
                    f"{self.label(name)} has dtype {dtype}, but nothing says how it was quantized"
                ) from error
            return Tensor(name, tuple(value.shape), dtype, quantizer)
        if isinstance(value, np.ndarray | np.generic) or hasattr(value, "__array__"):
            array = as_ndarray(value, self.label(name))
            return Tensor(name, array.shape, dtype_name(array.dtype))
        raise DtypeError(
            f"{self.label(name)} is a {type(value).__name__}, expected an array or a tensor"
        )

    def places(self) -> dict[str, Any]:
        """Where each floating tensor lies in memory, for what two states have in common."""
        found = {}
        for tensor in self.tensors.values():
            value = self._source[self._stored(tensor.name)]
            if tensor.size and tensor.dtype in FLOATS:
                found[tensor.name] = _place(value) if is_tensor(value) else _array_place(value)
        return found

    def column(self, name: str) -> Column:
        return column(self._source[self._stored(name)], self.label(name))

    def value(self, name: str) -> Any:
        value = self._source[self._stored(name)]
        return value.detach().clone() if is_tensor(value) else copy.copy(np.asarray(value))

    def raw(self, name: str) -> Array:
        value = self._source[self._stored(name)]
        if is_tensor(value):
            import torch

            if value.layout is torch.strided and value.device.type == "cpu":
                check_memory(value, self.label(name))
            value = value.int_repr() if value.is_quantized else value.detach().resolve_conj()
            try:
                value = value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            except (RuntimeError, TypeError) as error:
                raise WfcastError(f"{self.label(name)} cannot be read: {error}") from error
            return np.asarray(value)
        array = np.asarray(value)
        array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        return array.reshape(-1).view(np.uint8)


def _quantizer(tensor: Any) -> tuple[Any, ...]:
    import torch

    if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        return tensor.q_scale(), tensor.q_zero_point()
    axis = tensor.q_per_channel_axis()
    return tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points(), axis


def _place(value: Any) -> Any:
    """What two tied tensors have in common; None where it cannot be told, as on no real device."""
    if not is_tensor(value) or value.device.type == "meta" or value.numel() == 0:
        return None
    try:
        part = value.detach().to_local() if is_sharded(value) else value
        if part.numel() == 0:
            return None
        where = part.data_ptr()
    except RuntimeError:
        return None
    return value.device, where, value.dtype, tuple(value.shape), tuple(value.stride())


def _array_place(value: Any) -> Any:
    array = np.asarray(value)
    return array.__array_interface__["data"][0], array.dtype.str, array.shape, array.strides


class MappingCheckpoint(TensorCheckpoint):
    """A mapping of names to arrays or tensors, such as a state_dict; `buffers` are no weights."""

    def __init__(
        self, source: Mapping[str, Any], what: str, buffers: Container[str] = frozenset()
    ) -> None:
        super().__init__(what)
        self._take(source)
        for name in self.tensors:
            if name in buffers:
                self.tensors[name] = replace(self.tensors[name], buffer=True)
