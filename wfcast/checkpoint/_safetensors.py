"""A single safetensors file.

Reading: the library checks and parses the header. It gives names in the order of their offsets,
shapes and dtypes, and refuses gaps and overlaps, so the offsets follow, and every tensor can be
mapped by itself without a copy, bfloat16 included. Nothing stays open between two tensors.

Writing: the library wants all tensors in memory at once, so the header is written here, and then
tensor after tensor.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, Self, TypeGuard

import numpy as np
from safetensors import SafetensorError, safe_open

from .._columns import Array, Column, empty_bfloat16
from .._direct import DirectWriter
from .._errors import CheckpointError, DtypeError
from ._base import (
    BITS,
    CheckpointWriter,
    FileCheckpoint,
    Tensor,
    count_of,
    identity_of,
    unique,
)

# the format's name of a dtype -> torch's
DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "F6_E2M3": "float6_e2m3fn",
    "F6_E3M2": "float6_e3m2fn",
    "F4": "float4_e2m1fn",
}
METADATA = "__metadata__"  # the header's entry that is no tensor
_CODES = {name: code for code, name in DTYPES.items()}
MAX_HEADER = 100_000_000
"""The library's limit for the bytes of a header."""


class SafetensorsCheckpoint(FileCheckpoint):
    """A single safetensors file, mapped tensor by tensor."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(path, what)
        try:
            with open(path, "rb") as file:
                self._identity = identity_of(os.fstat(file.fileno()))
                self._seen[path] = self._identity
                size = os.fstat(file.fileno()).st_size
                _check_header(file, size)
            with safe_open(path, framework="numpy") as header:
                self.metadata = dict(header.metadata() or {})
                entries = [(name, header.get_slice(name)) for name in header.offset_keys()]
                described = [(n, tuple(s.get_shape()), str(s.get_dtype())) for n, s in entries]
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(
                f"{self.what} cannot be read as a safetensors file: {error}"
            ) from error
        self._spans: dict[str, tuple[int, int]] = {}
        start = 0
        for name, shape, code in described:
            tensor = Tensor(name, shape, DTYPES[code])
            self.tensors[name] = tensor
            self._spans[name] = (start, tensor.nbytes)
            start += tensor.nbytes
        self._base = size - start  # the library allows no gap: the data end with the file
        if self._base < 8:
            raise CheckpointError(f"{self.what} changed while its header was read")

    def raw(self, name: str) -> Array:
        start, length = self._spans[self._stored(name)]
        if length == 0:
            return np.empty(0, np.uint8)
        try:
            found = self._mapped(self._base + start, length)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.label(name)} cannot be read: {error}") from error
        if found is None:
            raise CheckpointError(f"{self.what} changed while it was being read")
        return found

    def _mapped(self, start: int, length: int) -> Array | None:
        """Bytes of the file; None where it is another one by now."""
        slack = start % mmap.ALLOCATIONGRANULARITY
        descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if identity_of(os.fstat(descriptor)) != self._identity:
                return None
            mapped = mmap.mmap(
                descriptor, length + slack, access=mmap.ACCESS_READ, offset=start - slack
            )
        finally:
            os.close(descriptor)
        return np.frombuffer(mapped, np.uint8, length, slack)

    def column(self, name: str) -> Column:
        tensor = self.tensors[name]
        array = self._typed(tensor, "uint16" if tensor.dtype == "bfloat16" else tensor.dtype)
        return Column(array, tensor.dtype, array)

    def value(self, name: str) -> Any:
        tensor = self.tensors[name]
        if tensor.dtype == "bfloat16":
            stored = self._typed(tensor, "uint16")
            fresh = empty_bfloat16(tensor.shape, self.label(name))
            bits = (
                np.asarray(fresh).view(np.uint16)
                if isinstance(fresh, np.ndarray)
                else _torch_bits(fresh)
            )
            bits[...] = stored
            return fresh
        try:
            np.dtype(tensor.dtype)
        except TypeError:
            raise DtypeError(
                f"{self.label(name)} has dtype {tensor.dtype}, which NumPy does not have"
            ) from None
        return self._typed(tensor, tensor.dtype).copy()

    def _typed(self, tensor: Tensor, dtype: str) -> Array:
        # a span may start at any byte: frombuffer then gives a misaligned array, which is fine
        flat = self.raw(tensor.name).view(np.dtype(dtype).newbyteorder("<"))
        try:
            return flat.reshape(tensor.shape)
        except ValueError as error:  # too many dimensions, or too long beside one of length 0
            raise CheckpointError(
                f"{self.label(tensor.name)} has a shape that NumPy cannot hold: {error}"
            ) from error


def _torch_bits(tensor: Any) -> Array:
    import torch

    bits: Array = tensor.view(torch.int16).numpy().view(np.uint16)
    return bits


def _check_header(file: BinaryIO, size: int) -> None:
    """Raise ValueError where a header contradicts itself, and name the tensor.

    What is no such header at all is left to the library.
    """
    if size < 8:
        raise ValueError(f"it has {size} bytes, expected at least 8")
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if length > max(MAX_HEADER, size):
        raise ValueError(f"it begins with {start!r}, and is none of torch.save either")
    if length > size - 8:
        raise ValueError(f"it claims a header of {length} bytes, and has {size} bytes")
    if length > MAX_HEADER:
        raise ValueError(f"its header has {length} bytes, expected at most 100 MB")
    try:
        header = json.loads(file.read(length), object_pairs_hook=unique)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        return
    if not isinstance(header, dict):
        return
    present = size - 8 - length
    named = 0
    for name, entry in header.items():
        if name != METADATA:
            _check_entry(name, entry, present)
            named = max(named, entry["data_offsets"][1])
    if named < present:
        raise ValueError(f"its tensors end {present - named} bytes before the file does")


def _check_entry(name: str, entry: Any, size: int) -> None:
    fields = entry if isinstance(entry, dict) else {}
    dtype, shape, span = (fields.get(k) for k in ("dtype", "shape", "data_offsets"))
    if (
        not isinstance(dtype, str)
        or not _are_counts(shape)
        or not _are_counts(span)
        or len(span) != 2
    ):
        raise ValueError(
            f"tensor {name!r} needs a dtype, a shape and two data_offsets, integers not below 0"
        )
    start, stop = span
    if not start <= stop <= size:
        raise ValueError(f"tensor {name!r} has the offsets {span} in data of {size} bytes")
    if dtype not in DTYPES:
        raise ValueError(
            f"tensor {name!r} has the dtype {dtype!r}, which this version of wfcast does not know"
        )
    bits = BITS[DTYPES[dtype]]
    try:
        count = count_of(shape)
    except ValueError as error:
        raise ValueError(f"tensor {name!r} {error}") from None
    if count * bits != 8 * (stop - start):
        raise ValueError(
            f"tensor {name!r}, {dtype} {shape}, has {stop - start} bytes, expected "
            f"{count * bits // 8}"
        )


def _are_counts(values: Any) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(v) is int and v >= 0 for v in values)


def ordered(tensors: Iterable[Tensor]) -> list[Tensor]:
    """In the order that the library writes: wide dtypes first, so that every tensor is aligned."""
    return sorted(tensors, key=lambda t: (-t.bits, t.name))


class SafetensorsWriter(CheckpointWriter):
    """Writes tensors to a single safetensors file, in constant memory; `create` makes one."""

    def __init__(self, file: DirectWriter, tensors: Sequence[Tensor]) -> None:
        self.order = tuple(t.name for t in tensors)
        self._file = file
        self._left = {t.name: t.nbytes for t in tensors if t.nbytes}

    @classmethod
    @contextmanager
    def create(
        cls,
        file: BinaryIO,
        tensors: Iterable[Tensor],
        metadata: Mapping[str, str],
        prefix: str = "",
    ) -> Iterator[Self]:
        """The writer of an empty file, which is neither synced nor closed.

        `prefix` is put before the names in the file.

        Raises
        ------
        CheckpointError
            The format cannot hold a tensor of that name or dtype.
        """
        tensors = ordered(tensors)
        header = _header([replace(t, name=prefix + t.name) for t in tensors], metadata)
        size = len(header) + sum(t.nbytes for t in tensors)
        with DirectWriter(file.fileno(), size) as direct:
            direct.write(header)
            writer = cls(direct, tensors)
            yield writer
            left = next(iter(writer._left), None)
            assert left is None, f"tensor {left!r} was not written"

    def room(self, name: str, nbytes: int) -> Array:
        """Memory for the next bytes of the tensor whose turn it is."""
        assert name == next(iter(self._left)), "tensors are written in `order`"
        assert nbytes <= self._left[name], f"tensor {name!r} has no more bytes"
        self._left[name] -= nbytes
        if not self._left[name]:
            del self._left[name]
        return self._file.room(nbytes)


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _header(tensors: Sequence[Tensor], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, Any] = {METADATA: dict(sorted(metadata.items()))} if metadata else {}
    start = 0
    for tensor in tensors:
        if tensor.name == METADATA or not _is_utf8(tensor.name):
            raise CheckpointError(
                f"{tensor.name!r} cannot be the name of a tensor in a safetensors file"
            )
        if tensor.dtype not in _CODES:
            raise CheckpointError(
                f"tensor {tensor.name!r} has dtype {tensor.dtype}, which safetensors does not have"
            )
        stop = start + tensor.nbytes
        header[tensor.name] = {
            "dtype": _CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, stop],
        }
        start = stop
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
