"""Which reader takes what is there: a mapping, a module, a file, an index of shards, a folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from .._columns import is_module
from .._errors import CheckpointError, DtypeError
from ._base import Checkpoint, FileCheckpoint, MappingCheckpoint
from ._dcp import METADATA, DistributedCheckpoint
from ._folder import adapts, companions, steps_in, weights_in
from ._safetensors import SafetensorsCheckpoint
from ._sharded import INDEX, ShardedCheckpoint
from ._torch import TorchCheckpoint

__all__ = ["open_checkpoint"]


def open_checkpoint(source: Any, what: str = "checkpoint") -> Checkpoint:
    """Open a checkpoint for reading tensor by tensor.

    Parameters
    ----------
    source : mapping of names to arrays or tensors, torch.nn.Module, path, or Checkpoint
        A path leads to a safetensors file, a file of ``torch.save``, an index of shards, or a
        folder with one of them or of torch.distributed.checkpoint.
    what : str
        What a message calls it ("run 0, step 500").

    Raises
    ------
    CheckpointError
        Nothing there, or nothing that wfcast can read.
    """
    if isinstance(source, Checkpoint):
        return source
    if is_module(source):
        return MappingCheckpoint(source.state_dict(), what, {n for n, _ in source.named_buffers()})
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
    if path.is_dir():
        return _open_folder(path, what)
    if not path.is_file():
        raise CheckpointError(f"{what}: {str(path)!r} is no regular file")
    if path.name.endswith(INDEX):
        return _open_weights(path.parent, path, what)
    return _open_file(path, what)


def _open_file(path: Path, what: str) -> FileCheckpoint:
    if path.name.endswith(INDEX):
        return ShardedCheckpoint(path, what, _open_file)
    try:
        with open(path, "rb") as file:
            start = file.read(9)
    except OSError as error:
        raise CheckpointError(f"{what}: {str(path)!r} cannot be read: {error}") from error
    # a zip file, as of torch.save, or a pickle, as of the torch before 1.6; but the length of a
    # safetensors header can begin with the same bytes, and a brace follows it
    named = path.suffix == ".safetensors" or start[8:] == b"{"
    if not named and (start[:2] == b"PK" or start[:1] == b"\x80"):
        return TorchCheckpoint(path, what)
    return SafetensorsCheckpoint(path, what)


def _open_folder(folder: Path, what: str) -> FileCheckpoint:
    weights = weights_in(folder, what)
    if weights is None:
        try:
            run, _ = steps_in(folder)
        except CheckpointError:
            run = []
        if run:
            raise CheckpointError(
                f"{what}: {str(folder)!r} is a folder of checkpoints "
                f"({', '.join(path.name for _, path in run[:3])}, ...), expected one of them"
            )
        raise CheckpointError(
            f"{what}: {str(folder)!r} holds no finished checkpoint: no weights are there, such as "
            "model.safetensors or pytorch_model.bin"
        )
    return _open_weights(folder, weights, what)


def _open_weights(folder: Path, weights: Path, what: str) -> FileCheckpoint:
    """The weights of a folder, and what stands beside them."""
    checkpoint = (
        DistributedCheckpoint(weights, what) if weights.is_dir() else _open_file(weights, what)
    )
    own = {weights.name, *(checkpoint.layout.shards or {}).values()}
    if weights == folder:
        own = {p.name for p in folder.iterdir() if p.name == METADATA or p.suffix == ".distcp"}
    carried, left = companions(folder, own)
    checkpoint.layout = replace(
        checkpoint.layout,
        folder=True,
        weights="" if weights == folder else weights.name,
        carried=carried,
        left=(*checkpoint.layout.left, *left),
    )
    checkpoint.base, checkpoint.stacked = adapts(folder, what)
    return checkpoint
