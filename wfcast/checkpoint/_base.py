"""What every checkpoint format offers: names, shapes, dtypes, and one tensor at a time."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .._columns import (
    FLOATS,
    Array,
    Column,
    as_ndarray,
    check_memory,
    column,
    dtype_name,
    is_tensor,
)
from .._errors import CheckpointError, DtypeError, WfcastError

COPIED = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


def role(dtype: str) -> str:
    """What becomes of a tensor: "forecast", "copy" (integers, bools) or "refuse" (the rest)."""
    return "forecast" if dtype in FLOATS else "copy" if dtype in COPIED else "refuse"


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor's name, shape and dtype (torch's name of it)."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)


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
    """

    what: str
    tensors: dict[str, Tensor]
    metadata: dict[str, str]

    @abstractmethod
    def column(self, name: str) -> Column:
        """A floating tensor as the core reads it."""

    @abstractmethod
    def value(self, name: str) -> Any:
        """A copy of any tensor, as the kind of object that the checkpoint is made of."""

    @abstractmethod
    def raw(self, name: str) -> Array:
        """The bytes of any tensor in C order, as a 1-D uint8 array."""

    def label(self, name: str) -> str:
        """What a message calls a tensor of this checkpoint."""
        return f"tensor {name!r} of {self.what}"


class FileCheckpoint(Checkpoint):
    """A checkpoint on disk, opened as ``Reader(path, what)``.

    Attributes
    ----------
    path : Path
    """

    path: Path

    def __init__(self, path: Path, what: str) -> None:
        self.path = path
        self.what = f"{what} ({str(path)!r})"

    @staticmethod
    @abstractmethod
    def recognizes(path: Path) -> bool:
        """Whether `path`, which exists, may be a checkpoint of this format."""


class CheckpointWriter(Protocol):
    """Writes tensors one after the other; the target appears complete or not at all."""

    order: tuple[str, ...]
    """The order in which the tensors are to be written."""

    def __enter__(self) -> CheckpointWriter: ...

    def __exit__(self, kind: Any, value: Any, trace: Any) -> None: ...

    def write(self, name: str, pieces: Iterable[Array]) -> None:
        """Write one tensor: C-contiguous pieces that follow each other in C order."""


class MappingCheckpoint(Checkpoint):
    """A mapping of names to arrays or tensors, such as a state_dict."""

    def __init__(self, source: Mapping[str, Any], what: str) -> None:
        self.what = what
        self.metadata = {}
        self.tensors = {}
        self._source = source
        for name, value in source.items():
            if not isinstance(name, str):
                raise CheckpointError(f"{what} has the key {name!r}, expected tensor names")
            self.tensors[name] = self._describe(name, value)
        if not self.tensors:
            raise CheckpointError(f"{what} holds no tensors")

    def _describe(self, name: str, value: Any) -> Tensor:
        if is_tensor(value):
            return Tensor(name, tuple(value.shape), str(value.dtype).removeprefix("torch."))
        if isinstance(value, np.ndarray | np.generic) or hasattr(value, "__array__"):
            array = as_ndarray(value, self.label(name))
            return Tensor(name, array.shape, dtype_name(array.dtype))
        raise DtypeError(
            f"{self.label(name)} is a {type(value).__name__}, expected an array or a tensor"
        )

    def column(self, name: str) -> Column:
        return column(self._source[name], self.label(name))

    def value(self, name: str) -> Any:
        value = self._source[name]
        return value.detach().clone() if is_tensor(value) else copy.copy(np.asarray(value))

    def raw(self, name: str) -> Array:
        value = self._source[name]
        if is_tensor(value):
            try:
                value = (
                    value.detach().cpu().numpy()
                    if role(self.tensors[name].dtype) == "copy"
                    else self.column(name).array
                )
            except (RuntimeError, TypeError) as error:
                raise WfcastError(f"{self.label(name)} cannot be read: {error}") from error
            check_memory(self._source[name], self.label(name))
        array = np.asarray(value)
        array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        return array.reshape(-1).view(np.uint8)
