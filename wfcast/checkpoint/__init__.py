"""Checkpoints: names -> tensors, read lazily and written safely. No forecasting here.

A format is one module with a reader (a `Checkpoint`) and, where wfcast writes it, a writer (a
`CheckpointWriter`). `open_checkpoint` finds the reader by looking at what is there. To add a
format: write its module, and add its reader to `_READERS`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .._errors import CheckpointError, DtypeError
from ._base import Checkpoint, CheckpointWriter, MappingCheckpoint, Tensor, role
from ._safetensors import SafetensorsCheckpoint, SafetensorsWriter

__all__ = [
    "Checkpoint",
    "CheckpointWriter",
    "MappingCheckpoint",
    "SafetensorsCheckpoint",
    "SafetensorsWriter",
    "Tensor",
    "open_checkpoint",
    "role",
]

_READERS: tuple[type[SafetensorsCheckpoint], ...] = (SafetensorsCheckpoint,)


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
