"""A new checkpoint: how it is to lie on disk, and the writer that makes it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, Self

from .._atomic import atomic_file, atomic_folder, sync_folder, synced_file
from .._columns import Array
from .._direct import DirectWriter
from .._errors import CheckpointError
from . import _dcp, _torch
from ._base import PROVENANCE, CheckpointWriter, Layout, Tensor
from ._foreign import FOREIGN
from ._safetensors import SafetensorsWriter
from ._sharded import INDEX, ShardedWriter, split
from ._torch import Stage

__all__ = ["create_checkpoint", "output_layout"]

_ENDINGS = {"safetensors": ".safetensors", "torch": ".bin"}
ADAPTER = "adapter_model"
_STEMS = {"safetensors": "model", "torch": "pytorch_model"}
_SUFFIXES = {
    ".safetensors": "safetensors",
    ".pt": "torch",
    ".pth": "torch",
    ".bin": "torch",
    ".ckpt": "torch",
}


_MISTYPED = {".safetensor", ".savetensors", ".st", ".tensors", ".torch", ".weights", ".bins"}
"""What is written for one of these, and meant for no folder."""


def output_layout(
    like: Layout,
    target: Path,
    tensors: Iterable[Tensor],
    format: str | None = None,
    shard_size: int | None = None,
) -> Layout:
    """The layout of an output: that of the last input, unless something else is asked for.

    Parameters
    ----------
    like : Layout
    target : Path
        A name that ends in .safetensors, .pt, .pth, .bin or .ckpt asks for a single file of that
        format, unless it is that of a folder or shards are asked for.
    tensors : iterable of Tensor
    format : {"safetensors", "torch", "dcp"}, optional
    shard_size : int, optional
        Bytes; asks for a folder of shards no larger than that: safetensors, unless `format` says
        "torch".
    """
    asked = None if target.is_dir() else _SUFFIXES.get(target.suffix)
    ending = target.suffix.lower()
    if asked is None and ending in FOREIGN | _MISTYPED and not target.is_dir():
        raise CheckpointError(
            f"cannot write {str(target)!r}: {target.suffix} is no format that wfcast writes; files "
            f"end in {', '.join(_SUFFIXES)}, and a folder in none of them"
        )
    if None not in (format, asked) and format != asked:
        raise CheckpointError(
            f"cannot write {str(target)!r} in the format {format!r}: a name that ends in "
            f"{target.suffix} asks for a file of {asked!r}"
        )
    if like.parts:
        if asked is not None or shard_size is not None or format not in (None, like.format):
            raise CheckpointError(
                f"cannot write {str(target)!r} in another form: the input is a folder of several "
                f"modules ({', '.join(repr(part) for part in like.parts)}), which is written as one"
            )
        return like
    if shard_size is not None:
        if format == "dcp":
            raise CheckpointError("shards are written as safetensors or torch files, not as dcp")
        format = "safetensors" if format is None else format
    if shard_size is None and asked is not None:
        like = like.of_format(asked)
        left = (*like.left, *(path.name for path in like.carried))
        return replace(like, folder=False, shards=None, carried=(), left=left)
    adapter = like.folder and like.weights.startswith(ADAPTER)
    if adapter and (shard_size is not None or format == "dcp"):
        raise CheckpointError("an adapter is one file for PEFT: shards and dcp cannot be loaded")
    if format is not None and format != like.format:
        folder = format == "dcp" or like.folder
        stems = {name: ADAPTER if adapter else stem for name, stem in _STEMS.items()}
        weights = {name: stems[name] + ending for name, ending in _ENDINGS.items()}
        like = replace(like.of_format(format), folder=folder, weights=weights.get(format, ""))
    if shard_size is not None:
        suffix = _ENDINGS[like.format]
        stem = like.weights.removesuffix(INDEX).removesuffix(suffix)
        stem = stem if like.folder else _STEMS[like.format]
        shards = split(tensors, shard_size, stem, suffix)
        several = len(set(shards.values())) > 1
        like = replace(
            like,
            folder=True,
            weights=f"{stem}{suffix}{INDEX}" if several else f"{stem}{suffix}",
            shards=shards if several else None,
        )
    return like


@contextmanager
def create_checkpoint(
    target: Path,
    layout: Layout,
    tensors: Iterable[Tensor],
    metadata: Mapping[str, str],
    tied: Mapping[str, str],
    overwrite: bool = True,
) -> Iterator[CheckpointWriter]:
    """A writer for `target`, which appears when the ``with`` block ends without an error.

    Parameters
    ----------
    target : Path
        A file or a folder, in a folder that is there.
    layout : Layout
        How it is to lie on disk.
    tensors : iterable of Tensor
        What will be written, in any order; the writer's `order` says in which.
    metadata : mapping of str to str
        Kept in safetensors; of torch's formats only the entry `PROVENANCE` is.
    tied : mapping of str to str
        Further names of tensors -> the name among `tensors`.
    overwrite : bool, default=True
        Whether a folder that is there, and not empty, is replaced.
    """
    tensors = list(tensors)
    if not layout.folder:
        with (
            atomic_file(target) as file,
            _file_writer(file, target.parent, layout, tensors, metadata, tied) as writer,
        ):
            yield writer
        return
    with (
        atomic_folder(target, replace=overwrite) as folder,
        _folder_writer(folder, layout, tensors, metadata, tied) as writer,
    ):
        yield writer


@contextmanager
def _folder_writer(
    folder: Path,
    layout: Layout,
    tensors: list[Tensor],
    metadata: Mapping[str, str],
    tied: Mapping[str, str],
) -> Iterator[CheckpointWriter]:
    """The writer of a folder that is there, and what is carried along into it."""
    _carry(layout, folder)
    if layout.parts:
        with PartsWriter.create(folder, layout, tensors, metadata, tied) as parts:
            yield parts
    elif layout.shards is not None:

        def shard(file: BinaryIO, own: list[Tensor]) -> AbstractContextManager[CheckpointWriter]:
            names = {t.name for t in own}
            there = {alias: name for alias, name in kept.items() if name in names}
            return _file_writer(file, folder.parent, layout, own, metadata, there)

        kept = tied if layout.format == "torch" else {}
        with ShardedWriter.create(folder, layout, tensors, kept, shard) as writer:
            yield writer
    elif layout.format == "dcp":
        _torch.import_torch("torch.distributed.checkpoint")
        with _stage(folder.parent, tensors) as stage:
            yield stage
            inner = folder / layout.weights
            if inner != folder:
                inner.mkdir()
            _dcp.save(inner, stage, layout, tied, metadata[PROVENANCE])
            sync_folder(inner)
    else:
        with (
            synced_file(folder / layout.weights) as file,
            _file_writer(file, folder.parent, layout, tensors, metadata, tied) as one,
        ):
            yield one


class PartsWriter(CheckpointWriter):
    """Writes the parts of a folder, part after part; `create` makes one."""

    def __init__(self, writers: Mapping[str, CheckpointWriter]) -> None:
        self._writer_of = {
            before + name: (writer, name)
            for before, writer in writers.items()
            for name in writer.order
        }
        self.order = tuple(self._writer_of)

    def room(self, name: str, nbytes: int) -> Array:
        """Memory for the next bytes of the tensor whose turn it is."""
        writer, name = self._writer_of[name]
        return writer.room(name, nbytes)

    @classmethod
    @contextmanager
    def create(
        cls,
        folder: Path,
        layout: Layout,
        tensors: Iterable[Tensor],
        metadata: Mapping[str, str],
        tied: Mapping[str, str],
    ) -> Iterator[Self]:
        """The writer of the parts that a layout names."""
        own: dict[str, list[Tensor]] = {before: [] for before in layout.parts}
        for tensor in tensors:
            before = _part(tensor.name, layout)
            own[before].append(replace(tensor, name=tensor.name.removeprefix(before)))
        with ExitStack() as stack:
            writers: dict[str, CheckpointWriter] = {}
            for before, part in layout.parts.items():
                there = folder / before if part.folder else folder
                if there != folder:
                    there.mkdir()
                    stack.callback(sync_folder, there)
                if not part.format:
                    _carry(part, there)
                    continue
                kept = {
                    alias.removeprefix(before): name.removeprefix(before)
                    for alias, name in tied.items()
                    if _part(name, layout) == before
                }
                writers[before] = stack.enter_context(
                    _folder_writer(there, part, own[before], metadata, kept)
                )
            yield cls(writers)


def _part(name: str, layout: Layout) -> str:
    """What the name of a tensor begins with of the parts of a layout."""
    return max((before for before in layout.parts if name.startswith(before)), key=len)


def _carry(layout: Layout, folder: Path) -> None:
    """Copy what belongs to the model into its folder."""
    for path in layout.carried:
        with open(path, "rb") as source, synced_file(folder / path.name) as copy:
            shutil.copyfileobj(source, copy, 1 << 20)


@contextmanager
def _file_writer(
    file: Any,
    folder: Path,
    layout: Layout,
    tensors: list[Tensor],
    metadata: Mapping[str, str],
    tied: Mapping[str, str],
) -> Iterator[CheckpointWriter]:
    if layout.format == "torch":
        with _stage(folder, tensors) as stage:
            yield stage
            state = _torch.state_dict(stage, layout, tied, metadata[PROVENANCE])
            with DirectWriter(file.fileno(), stage.size) as direct:
                _torch.save(state, direct)
        return
    with SafetensorsWriter.create(file, tensors, metadata, layout.prefix) as writer:
        yield writer


@contextmanager
def _stage(folder: Path, tensors: list[Tensor]) -> Iterator[Stage]:
    with tempfile.TemporaryFile(dir=folder) as file:
        yield Stage(file, tensors)
