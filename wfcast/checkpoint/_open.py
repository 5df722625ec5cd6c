"""Which reader takes what is there: a mapping, a module, a file, an index of shards, a folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from .._columns import is_module
from .._errors import CheckpointError, DtypeError
from ._base import Checkpoint, FileCheckpoint, Layout, MappingCheckpoint
from ._dcp import METADATA, DistributedCheckpoint
from ._folder import adapts, companions, steps_in, weights_in
from ._foreign import (
    START,
    components,
    foreign_archive,
    foreign_file,
    foreign_folder,
    inside,
    not_here,
)
from ._parts import MODULES, PartsCheckpoint, further_models, module_folders
from ._safetensors import SafetensorsCheckpoint
from ._sharded import INDEX, ShardedCheckpoint
from ._torch import TorchCheckpoint

__all__ = ["open_checkpoint"]


def open_checkpoint(
    source: Any, what: str = "checkpoint", key: str | None = None, needed: bool = True
) -> Checkpoint:
    """Open a checkpoint for reading tensor by tensor.

    Parameters
    ----------
    source : mapping of names to arrays or tensors, torch.nn.Module, path, or Checkpoint
        A path leads to a safetensors file, a file of ``torch.save``, an index of shards, or a
        folder with one of them or of torch.distributed.checkpoint.
    what : str
        What a message calls it ("run 0, step 500").
    key : str, optional
        The name of a set of weights in a file that may have several; None for the model's.
    needed : bool
        Whether a file of a format that holds one set only is refused where there is a key.

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
        raise CheckpointError(f"{what}: there is no file {str(path)!r}{not_here(str(source))}")
    if path.is_dir():
        checkpoint = _open_folder(path, what, key)
    elif path.is_file() and path.name.endswith(INDEX):
        checkpoint = _open_weights(path.parent, path, what, key)
    elif path.is_file():
        checkpoint = _open_alone(path, what, key)
    else:
        raise CheckpointError(f"{what}: {str(path)!r} is no regular file")
    if key is not None and needed and not checkpoint.sets:
        raise CheckpointError(
            f"{checkpoint.what} holds one set of weights, and none named {key!r}: key= (--key) is "
            "for files of torch.save and folders of torch.distributed.checkpoint"
        )
    return checkpoint


def _open_alone(path: Path, what: str, key: str | None) -> FileCheckpoint:
    """A file that is no shard: what all of its names begin with says nothing."""
    checkpoint = _open_file(path, what, key)
    checkpoint.unwrap()
    return checkpoint


def _open_file(path: Path, what: str, key: str | None = None) -> FileCheckpoint:
    if path.name.endswith(INDEX):
        return ShardedCheckpoint(path, what, _open_file)
    try:
        with open(path, "rb") as file:
            start = file.read(START)
    except OSError as error:
        raise CheckpointError(f"{what}: {str(path)!r} cannot be read: {error}") from error
    if (found := foreign_file(path, start)) is not None:
        raise CheckpointError(f"{what}: {str(path)!r} is {found}")
    # a zip file, as of torch.save, or a pickle, as of the torch before 1.6; but the length of a
    # safetensors header can begin with the same bytes, and a brace follows it
    named = path.suffix == ".safetensors" or start[8:9] == b"{"
    if not named and (start[:2] == b"PK" or start[:1] == b"\x80"):
        try:
            return TorchCheckpoint(path, what, key)
        except CheckpointError:
            if start[:2] != b"PK" or (found := foreign_archive(path)) is None:
                raise
        raise CheckpointError(f"{what}: {str(path)!r} is {found}")
    return SafetensorsCheckpoint(path, what)


def _open_folder(folder: Path, what: str, key: str | None) -> FileCheckpoint:
    weights, modules = weights_in(folder, what), module_folders(folder, what)
    inner = {f"{name}/": folder / name for name in modules if name}
    own = {before: weights_in(path, what) for before, path in inner.items() if path.is_dir()}
    if weights is None and not any(own.values()):
        raise CheckpointError(f"{what}: {str(folder)!r} {_no_weights(folder)}")
    further = further_models(folder)
    if weights is not None and not inner and not further:
        return _open_weights(folder, weights, what, key)
    parts: dict[str, FileCheckpoint] = {}
    layouts: dict[str, Layout] = {}
    if weights is not None:
        parts[""] = _open_weights(folder, weights, what, key)
        layouts[""] = replace(parts[""].layout, carried=(), left=())
    for before, path in inner.items():
        if before not in own:
            raise CheckpointError(f"{what}: {MODULES} names {str(path)!r}, which is not there")
        of_module = own[before]
        if of_module is None:
            layouts[before] = _without_weights(path, what)
        else:
            parts[before] = _open_weights(path, of_module, what, key)
            layouts[before] = parts[before].layout
    for name in further:
        before = f"{name.partition('.')[0]}/"
        parts[before] = _open_alone(folder / name, what, key)
        layouts[before] = replace(parts[before].layout, folder=False, weights=name)
    files = {*further, *(name for name in modules if name), weights.name if weights else ""}
    files.update(f for one in layouts.values() for f in (one.shards or {}).values())
    carried, left = companions(folder, files)
    format = next(one.format for one in layouts.values() if one.format)
    layout = Layout(format, True, "", parts=layouts, carried=carried, left=left)
    return PartsCheckpoint(weights or folder / MODULES, what, parts, layout)


def _without_weights(folder: Path, what: str) -> Layout:
    """The layout of a module that has none, such as a pooling, and goes along whole."""
    if others := components(folder):
        raise CheckpointError(
            f"{what}: {str(folder)!r} keeps weights in folders of its own, such as {others[0]}, "
            "which is not read"
        )
    carried, left = companions(folder, set())
    return Layout("", True, "", carried=carried, left=left)


def _open_weights(folder: Path, weights: Path, what: str, key: str | None) -> FileCheckpoint:
    """The checkpoint of the weights in a folder, with what is beside them."""
    checkpoint = (
        DistributedCheckpoint(weights, what, key)
        if weights.is_dir()
        else _open_file(weights, what, key)
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
    checkpoint.base, checkpoint.stacked, checkpoint.meaning = adapts(folder, what)
    checkpoint.unwrap()
    return checkpoint


def _no_weights(folder: Path) -> str:
    """What a message says of a folder in which nothing is known by its name."""
    if (other := foreign_folder(folder)) is not None:
        return f"is {other}"
    try:
        run, _ = steps_in(folder)
    except CheckpointError:
        run = []
    if run:
        shown = ", ".join(path.name for _, path in run[:3])
        return f"is a folder of checkpoints ({shown}, ...), expected one of them"
    return (
        "holds no finished checkpoint: no weights are there, such as model.safetensors or "
        f"pytorch_model.bin{inside(folder)}"
    )
