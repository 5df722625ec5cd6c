"""Several files and an index: ``{"metadata": {...}, "weight_map": {tensor: file}}``.

The layout of Hugging Face, for safetensors and for torch files alike.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Self

from .._atomic import synced_file
from .._columns import Array, Column
from .._errors import CheckpointError
from ._base import CheckpointWriter, FileCheckpoint, Layout, Tensor, is_plain, unique
from ._safetensors import MAX_HEADER, ordered

INDEX = ".index.json"


class ShardedCheckpoint(FileCheckpoint):
    """The shards that an index names, each opened by the reader of its format.

    Parameters
    ----------
    path : Path
        The index.
    what : str
    open_shard : callable
        Opens one file as ``open_shard(path, what)``.
    """

    def __init__(
        self, path: Path, what: str, open_shard: Callable[[Path, str], FileCheckpoint]
    ) -> None:
        super().__init__(path, what)
        self._watch(path)
        folder = _inode(path.parent)
        self._file_of, index = self._read_index()
        self._shards: dict[str, FileCheckpoint] = {}
        for file in dict.fromkeys(self._file_of.values()):
            shard = open_shard(self._inside(file), what)
            self._shards[file] = shard
            self._check(file, shard)
            self.metadata = {**shard.metadata, **self.metadata}
            self.tensors.update(shard.tensors)
            self.tied.update(shard.tied)
        if _inode(path.parent) != folder:  # each shard looks after itself from here on
            raise CheckpointError(f"{self.what} was replaced while it was opened")
        formats = {shard.layout.format for shard in self._shards.values()}
        if len(formats) > 1:
            raise CheckpointError(f"{self.what} names shards of different formats")
        layouts = [shard.layout for shard in self._shards.values()]
        self.layout = Layout(
            format=formats.pop(),
            folder=True,
            weights=path.name,
            shards=self._file_of,
            index=index,
            left=tuple(name for one in layouts for name in (*one.left, *one.values)),
        )

    def _read_index(self) -> tuple[dict[str, str], dict[str, Any]]:
        """Its weight_map and its metadata."""
        try:
            if self.path.stat().st_size > MAX_HEADER:
                raise ValueError("it is larger than 100 MB")
            index = json.loads(self.path.read_bytes(), object_pairs_hook=unique)
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{self.what} cannot be read as an index: {error}") from error
        found = index.get("weight_map") if isinstance(index, dict) else None
        if (
            not isinstance(found, dict)
            or not found
            or not all(isinstance(file, str) for file in found.values())
        ):
            raise CheckpointError(
                f"{self.what} is no index of shards: it has no weight_map of names to files"
            )
        metadata = index.get("metadata")
        return found, metadata if isinstance(metadata, dict) else {}

    def _inside(self, file: str) -> Path:
        if not is_plain(file) or file.endswith(INDEX):
            raise CheckpointError(
                f"{self.what} names the shard {file!r}, expected a file name in its own folder"
            )
        path = self.path.parent / file
        try:
            there = path.is_file()
        except OSError:  # a name that is too long
            there = False
        if not there:
            raise CheckpointError(f"{self.what} names the shard {file!r}, which is not there")
        return path

    def _check(self, file: str, shard: FileCheckpoint) -> None:
        named = {name for name, where in self._file_of.items() if where == file}
        present = shard.tensors.keys() | shard.tied.keys()
        lost, extra = sorted(named - present), sorted(present - named)
        if lost:
            raise CheckpointError(
                f"{self.what} names {len(lost)} tensors, {lost[0]!r} first, that are not in "
                f"{file!r}"
            )
        if extra:
            raise CheckpointError(
                f"{shard.what} holds {len(extra)} tensors, {extra[0]!r} first, that the index "
                f"{self.path.name!r} does not name there"
            )

    def check_same(self) -> None:
        super().check_same()
        for shard in self._shards.values():
            shard.check_same()

    def column(self, name: str) -> Column:
        name = self._stored(name)
        return self._shards[self._file_of[name]].column(name)

    def value(self, name: str) -> Any:
        name = self._stored(name)
        return self._shards[self._file_of[name]].value(name)

    def raw(self, name: str) -> Array:
        name = self._stored(name)
        return self._shards[self._file_of[name]].raw(name)


def _inode(folder: Path) -> tuple[int, int]:
    s = folder.stat()
    return s.st_dev, s.st_ino


class ShardedWriter(CheckpointWriter):
    """Writes shards one after the other, and the index at the end; `create` makes one.

    Parameters
    ----------
    folder : Path
        A new folder.
    layout : Layout
        With the file name of the index, what it holds beside the sizes, and the shards.
    tensors : iterable of Tensor
    tied : mapping of str to str
        Further names of tensors, where the format keeps them: they are in the index too.
    open_shard : callable
        ``open_shard(file, tensors)`` gives a context manager of the writer of one file.
    """

    def __init__(
        self,
        folder: Path,
        layout: Layout,
        tensors: Iterable[Tensor],
        tied: Mapping[str, str],
        open_shard: Callable[[BinaryIO, list[Tensor]], AbstractContextManager[CheckpointWriter]],
    ) -> None:
        assert layout.shards is not None
        self._folder, self._layout, self._tied = folder, layout, tied
        self._file_of, self._open_shard = layout.shards, open_shard
        self._shards: dict[str, list[Tensor]] = {}
        for tensor in tensors:
            self._shards.setdefault(self._file_of[tensor.name], []).append(tensor)
        self._shards = {file: ordered(self._shards[file]) for file in sorted(self._shards)}
        self.order = tuple(t.name for shard in self._shards.values() for t in shard)
        self._coming: Iterator[str] = iter(self._shards)
        self._open = ExitStack()
        self._here, self._last = "", max(self._shards)

    def room(self, name: str, nbytes: int) -> Array:
        """Memory for the next bytes of the tensor whose turn it is."""
        while self._here != self._file_of[name]:
            self._next_shard()
        return self._writer.room(name, nbytes)

    def _next_shard(self) -> None:
        self._open.close()
        self._here = next(self._coming)
        file = self._open.enter_context(synced_file(self._folder / self._here))
        self._writer = self._open.enter_context(self._open_shard(file, self._shards[self._here]))

    @classmethod
    @contextmanager
    def create(cls, *parameters: Any) -> Iterator[Self]:
        """A writer of the class's parameters, in a ``with`` block."""
        writer = cls(*parameters)
        with writer._open:
            yield writer
            while writer._here != writer._last:
                writer._next_shard()
        writer._write_index()

    def _write_index(self) -> None:
        total = sum(t.nbytes for shard in self._shards.values() for t in shard)
        names = {name: self._file_of[name] for name in self.order}
        names.update({alias: names[name] for alias, name in self._tied.items()})
        document = {
            "metadata": {**self._layout.index, "total_size": total},
            "weight_map": {self._layout.prefix + n: file for n, file in sorted(names.items())},
        }
        with synced_file(self._folder / self._layout.weights) as file:
            file.write((json.dumps(document, indent=2) + "\n").encode())


def split(tensors: Iterable[Tensor], limit: int, stem: str, suffix: str) -> dict[str, str]:
    """Tensor name -> shard, filled one after the other up to `limit` bytes, as Hugging Face does.

    A tensor larger than `limit` has a shard of its own.
    """
    shards: list[list[str]] = [[]]
    room = limit
    for tensor in tensors:
        if shards[-1] and tensor.nbytes > room:
            shards.append([])
            room = limit
        shards[-1].append(tensor.name)
        room -= tensor.nbytes
    return {
        name: f"{stem}-{i:05d}-of-{len(shards):05d}{suffix}"
        for i, shard in enumerate(shards, 1)
        for name in shard
    }
