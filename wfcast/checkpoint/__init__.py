"""Checkpoints: names -> tensors, read lazily and written safely. No forecasting here.

A format is one module with a reader (a `FileCheckpoint`) and, where wfcast writes it, a writer (a
`CheckpointWriter`). To add one, write its module, put its reader into `_READERS`, from which
`open_checkpoint` takes the first that recognizes what is there, and choose its writer in
`create_checkpoint`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .._errors import CheckpointError, DtypeError
from ._base import Checkpoint, CheckpointWriter, FileCheckpoint, MappingCheckpoint, Tensor, role
from ._safetensors import SafetensorsCheckpoint, SafetensorsWriter

__all__ = [
    "Checkpoint",
    "CheckpointWriter",
    "FileCheckpoint",
    "MappingCheckpoint",
    "SafetensorsCheckpoint",
    "SafetensorsWriter",
    "Tensor",
    "create_checkpoint",
    "open_checkpoint",
    "role",
]

_READERS: tuple[type[FileCheckpoint], ...] = (SafetensorsCheckpoint,)


def open_checkpoint(source: Any, what: str = "checkpoint") -> Checkpoint:
    """Open a checkpoint for reading tensor by tensor.

    Parameters
    ----------
    source : mapping of names to arrays or tensors, path, or Checkpoint
        A path leads to a single safetensors file.
    what : str
        What a message calls it ("run 0, step 500").

    Raises
    ------
    CheckpointError
        Nothing there, or nothing that wfcast can read.
    """
    if isinstance(source, Checkpoint):
        return source
    if isinstance(source, Mapping):
        return MappingCheckpoint(source, what)
    if not isinstance(source, str | os.PathLike):
        raise DtypeError(
            f"{what} is a {type(source).__name__}, expected a mapping of names to "
            "arrays or tensors (such as model.state_dict()), or a path"
        )
    path = Path(source)
    if not path.exists():
        raise CheckpointError(f"{what}: there is no file {str(path)!r}")
    for reader in _READERS:
        if reader.recognizes(path):
            return reader(path, what)
    kind = "a folder" if path.is_dir() else "no regular file"
    raise CheckpointError(f"{what}: {str(path)!r} is {kind}, expected a .safetensors file")


def create_checkpoint(
    target: Path, tensors: Iterable[Tensor], metadata: Mapping[str, str]
) -> CheckpointWriter:
    """A writer for `target`, which appears when the writer's ``with`` block ends without an error.

    Parameters
    ----------
    target : Path
        A single safetensors file, in a folder that is there.
    tensors : iterable of Tensor
        What will be written, in any order; the writer's `order` says in which.
    metadata : mapping of str to str
    """
    return SafetensorsWriter(target, tensors, metadata)
