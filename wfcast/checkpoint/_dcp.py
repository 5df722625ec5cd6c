"""Folders of torch.distributed.checkpoint, read and written by torch itself.

torch reads the folder's ``.metadata`` with pickle. Here it is read by an unpickler that knows the
classes of such metadata and nothing else, and torch is handed the result, once the chunks that it
names are known to make up the tensors and to lie in the folder's files.
"""

from __future__ import annotations

import importlib
import itertools
import math
import mmap
import os
import pickle
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import numpy as np

from .._columns import FLOATS, Array, Column
from .._errors import CheckpointError
from ._archive import MAX_PICKLE, StoredTensor, examine, ordered, read_pickle
from ._base import (
    MOST,
    PROVENANCE,
    FileCheckpoint,
    Layout,
    MappingCheckpoint,
    Tensor,
    count_of,
    is_plain,
)
from ._sets import beside, chosen_set, of_training, sets_in
from ._torch import Stage, import_torch, named, nested

METADATA = ".metadata"
LARGE = 1 << 24
"""From how many bytes on a tensor in pieces is put together in a file."""


class _Place(NamedTuple):
    """Where a chunk of a tensor lies in the data files, and in the tensor."""

    file: str
    offset: int
    length: int
    starts: tuple[int, ...]
    sizes: tuple[int, ...]


class DistributedCheckpoint(FileCheckpoint):
    """A folder of torch.distributed.checkpoint.

    A tensor that lies in one piece is mapped, and one in several is put together, one at a time, in
    memory that the system can write out. What is stored otherwise is left to torch.
    """

    def __init__(self, path: Path, what: str, key: str | None = None) -> None:
        super().__init__(path, what)
        import_torch(self.what)
        self._watch(path / METADATA)
        self._found = self._read_metadata()
        self._places: dict[str, list[_Place]] = {}
        self._files: dict[str, int] = {}
        self._latest: tuple[str, Column] | None = None
        stored = self._records()
        tree = self._tree()
        if not tree:
            raise CheckpointError(f"{self.what} holds no tensors")
        sets = sets_in(tree, lambda leaf: isinstance(leaf, str), self._is_weight)
        found = chosen_set(sets, key, tree, self.what)
        self.sets = tuple(one.name for one in sets)
        state, keys = found.state, found.keys
        self._stored_as = {name: leaf for name, leaf in state.items() if isinstance(leaf, str)}
        for name in self._stored_as:
            try:
                self.tensors[name], self._places[name] = self._check(name, stored)
            except (ValueError, OSError) as error:
                raise CheckpointError(
                    f"{self.label(name)} cannot be read: {METADATA} {error}"
                ) from error
        others = [n for n in state if isinstance(n, str) and n not in self._stored_as]
        around = (n for one in beside(tree, keys) for n in one)
        left = tuple(n for n in (*others, *around) if n != PROVENANCE)
        self.layout = Layout("dcp", True, "", keys=keys, left=left)
        self._read_note()

    def _read_metadata(self) -> Any:
        from torch.distributed.checkpoint.metadata import Metadata

        failed = f"{self.what} cannot be read as a torch.distributed.checkpoint: its {METADATA}"
        try:
            with open(self.path / METADATA, "rb") as file:
                data = file.read(MAX_PICKLE + 1)
            if len(data) > MAX_PICKLE:
                raise ValueError("is larger than 100 MB")
            found = read_pickle(data, _known_class)
        except Exception as error:  # of many kinds, as the bytes may be anything
            raise CheckpointError(f"{failed}: {str(error) or type(error).__name__}") from error
        if not isinstance(found, Metadata):
            raise CheckpointError(f"{failed} holds a {type(found).__name__}")
        for part in ("state_dict_metadata", "storage_data"):
            if not isinstance(vars(found).get(part), dict):
                raise CheckpointError(f"{failed} has no {part}")
        return found

    def _tree(self) -> dict[Any, Any]:
        """The nested mappings that were saved: a tensor's name in the metadata, None for others."""
        from torch.distributed.checkpoint.metadata import TensorStorageMetadata

        paths = vars(self._found).get("planner_data")
        tree: dict[Any, Any] = {}
        names = [n for n in self._found.state_dict_metadata if isinstance(n, str)]
        trains = any(of_training(n.partition(".")[0]) for n in names)
        for name, entry in self._found.state_dict_metadata.items():
            if not isinstance(name, str):
                raise CheckpointError(f"{self.what}: its {METADATA} has a name that is no text")
            path = paths.get(name) if isinstance(paths, dict) else None
            if not isinstance(path, tuple) or not path or {type(p) for p in path} - {str, int}:
                path = (name,)
            first, _, rest = name.partition(".")
            if trains and path == (name,) and rest and (first == "model" or of_training(first)):
                path = (first, rest)  # saved flat, by names that say what is whose
            here = tree
            for part in path[:-1]:
                here = here.setdefault(part, {}) if isinstance(here, dict) else {}
            if not isinstance(here, dict) or path[-1] in here:
                raise CheckpointError(f"{self.what}: its {METADATA} has {name!r} in two places")
            here[path[-1]] = name if isinstance(entry, TensorStorageMetadata) else None
        return tree

    def _is_weight(self, leaf: str) -> bool:
        fields = vars(self._found.state_dict_metadata[leaf])
        dtype, shape = getattr(fields.get("properties"), "dtype", None), fields.get("size")
        floating = getattr(dtype, "is_floating_point", False)
        return floating and _are_sizes(shape) and any(n > 1 for n in shape)

    def _records(self) -> dict[tuple[str, tuple[int, ...]], Any]:
        """Torch's record of each chunk, by the tensor's name and the offsets in it."""
        found = {}
        for index, info in self._found.storage_data.items():
            name, offset = _fqn(index), getattr(index, "offset", None)
            if isinstance(name, str) and _are_sizes(offset):
                found[name, tuple(offset)] = info
        return found

    def _check(
        self, name: str, stored: Mapping[tuple[str, tuple[int, ...]], Any]
    ) -> tuple[Tensor, list[_Place]]:
        """A tensor whose chunks make it up and lie in files of the folder, or a ValueError."""
        import torch
        from torch.distributed.checkpoint.metadata import ChunkStorageMetadata

        stored_as = self._stored_as[name]
        fields = vars(self._found.state_dict_metadata[stored_as])
        dtype = getattr(fields.get("properties"), "dtype", None)
        shape, chunks = fields.get("size"), fields.get("chunks")
        if not isinstance(dtype, torch.dtype) or not _are_sizes(shape):
            raise ValueError("gives no dtype or no shape")
        if not isinstance(chunks, list) or not all(
            isinstance(c, ChunkStorageMetadata) for c in chunks
        ):
            raise ValueError("gives no chunks")
        count_of(shape)
        shape, places, boxes = tuple(shape), [], []
        for chunk in chunks:
            starts, sizes = vars(chunk).get("offsets"), vars(chunk).get("sizes")
            if not _are_sizes(starts) or not _are_sizes(sizes):
                raise ValueError("gives a chunk without offsets or sizes")
            boxes.append((tuple(starts), tuple(sizes)))
            info = stored.get((stored_as, tuple(starts)))
            if info is None:
                raise ValueError(f"does not say where its chunk at {list(starts)} lies")
            nbytes = count_of(sizes) * dtype.itemsize
            places.append(self._place(info, tuple(starts), tuple(sizes), nbytes))
        if not _make_up(boxes, shape):
            raise ValueError(f"gives chunks that do not make up the shape {list(shape)}")
        if sum(p.length for p in places) > sum(self._files.values()):
            raise ValueError("gives chunks that share their bytes")
        return Tensor(name, shape, str(dtype).removeprefix("torch.")), places

    def _read_note(self) -> None:
        """The provenance of a forecast, which is saved as a text beside the weights."""
        infos = (i for index, i in self._found.storage_data.items() if _fqn(index) == PROVENANCE)
        what = f"{PROVENANCE!r} of {self.what}"
        for info in infos:
            try:
                place = self._place(info, (), (), 0)
                with open(self.path / place.file, "rb") as file:
                    note = examine(file, place.offset, place.length, what)
            except (ValueError, OSError) as error:
                raise CheckpointError(f"{what} cannot be read: {METADATA} {error}") from error
            if isinstance(note, str):
                self.metadata[PROVENANCE] = note

    def _place(
        self, info: Any, starts: tuple[int, ...], sizes: tuple[int, ...], nbytes: int
    ) -> _Place:
        fields = vars(info) if hasattr(info, "__dict__") else {}
        file, offset, length = (fields.get(k) for k in ("relative_path", "offset", "length"))
        if not isinstance(file, str) or type(offset) is not int or type(length) is not int:
            raise ValueError("does not say where it lies")
        if fields.get("transform_descriptors"):
            raise ValueError(f"says that {file!r} is compressed, which wfcast does not read")
        if not is_plain(file):
            raise ValueError(f"names the file {file!r}, expected a file name in its own folder")
        if file not in self._files:
            path = self.path / file
            if not path.is_file():
                raise ValueError(f"names the file {file!r}, which is not there")
            self._watch(path)
            self._files[file] = self._seen[path][2]
        if offset < 0 or offset + length > self._files[file] or length < nbytes:
            raise ValueError(
                f"gives {length} bytes at {offset} of {file!r} for a chunk of {nbytes} bytes; the "
                f"file has {self._files[file]}"
            )
        return _Place(file, offset, length, starts, sizes)

    def _load(self, name: str) -> MappingCheckpoint:
        import torch
        from torch.distributed.checkpoint import filesystem, state_dict_loader
        from torch.distributed.checkpoint.api import CheckpointException

        found = self._found

        class Reader(filesystem.FileSystemReader):
            def read_metadata(self, *args: Any, **kwargs: Any) -> Any:
                return found

        tensor = self.tensors[name]
        try:
            for place in self._places[self._stored(name)]:
                self._examine(name, place)
            whole = torch.empty(tensor.shape, dtype=getattr(torch, tensor.dtype))
            into = {self._stored_as[self._stored(name)]: whole}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that there is but one process
                state_dict_loader.load(into, storage_reader=Reader(str(self.path)), no_dist=True)
        except CheckpointError:
            raise
        except (Exception, CheckpointException) as error:  # of many kinds
            reason = _first_cause(error)
            raise CheckpointError(f"{self.label(name)} cannot be read: {reason}") from error
        self._check_read(name)
        return MappingCheckpoint({name: whole}, self.what)

    def _map(self, name: str) -> Array | None:
        """The bytes of a tensor; None for one that torch is to read.

        In one piece it is mapped; several are put together from their maps.
        """
        tensor, places = self.tensors[name], self._places[self._stored(name)]
        self._check_read(name)
        quantized = tensor.dtype.startswith("q")  # whose bytes say nothing without a scale
        if not tensor.nbytes or quantized:
            return None
        try:
            held = [self._examine(name, place) for place in places]
            if not all(one.contiguous for one in held):
                return None
            pieces = (self._mapped(p, h) for p, h in zip(places, held, strict=True))
            if len(places) == 1:
                found = next(pieces)
            else:
                found = _room(tensor.nbytes)
                width = tensor.bits // 8
                whole = found.reshape(*tensor.shape, width)
                for place, piece in zip(places, pieces, strict=True):
                    box = (slice(o, o + n) for o, n in zip(place.starts, place.sizes, strict=True))
                    whole[tuple(box)] = piece.reshape(*place.sizes, width)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.label(name)} cannot be read: {error}") from error
        self._check_read(name)
        return found

    def _mapped(self, place: _Place, held: StoredTensor) -> Array:
        """The bytes of a chunk."""
        if not held.nbytes:
            return np.empty(0, np.uint8)
        assert held.storage.place is not None
        start = place.offset + held.storage.place + held.start
        slack = start % mmap.ALLOCATIONGRANULARITY
        with open(self.path / place.file, "rb") as file:
            mapped = mmap.mmap(
                file.fileno(), held.nbytes + slack, access=mmap.ACCESS_READ, offset=start - slack
            )
        return np.frombuffer(mapped, np.uint8, held.nbytes, slack)

    def _check_read(self, name: str) -> None:
        """The files are opened by name each time: they must be those that the metadata are of."""
        files = dict.fromkeys(place.file for place in self._places[self._stored(name)])
        self._check_same([self.path / METADATA, *(self.path / file for file in files)])

    def _examine(self, name: str, place: _Place) -> StoredTensor:
        what = f"{self.label(name)}, in {place.file!r},"
        with open(self.path / place.file, "rb") as file:
            held = examine(file, place.offset, place.length, what)
        dtype, sizes = self.tensors[name].dtype, place.sizes
        if not isinstance(held, StoredTensor) or (held.dtype, held.shape) != (dtype, sizes):
            raise CheckpointError(f"{what} cannot be read: no {dtype} tensor of {list(sizes)}")
        return held

    def column(self, name: str) -> Column:
        if self._latest is None or self._latest[0] != name:
            self._latest = None  # one tensor at a time
            self._latest = name, self._column(name)
        return self._latest[1]

    def _column(self, name: str) -> Column:
        tensor = self.tensors[name]
        mapped = self._map(name) if tensor.dtype in FLOATS else None
        if mapped is None:
            return self._load(name).column(name)
        import torch

        array = mapped.view("uint16" if tensor.dtype == "bfloat16" else tensor.dtype)
        # what a result is made like: a tensor of that form, without memory of its own
        like = torch.empty((), dtype=getattr(torch, tensor.dtype)).expand(tensor.shape)
        return Column(array.reshape(tensor.shape), tensor.dtype, like)

    def value(self, name: str) -> Any:
        return self._load(name).value(name)

    def raw(self, name: str) -> Array:
        mapped = self._map(name)
        return self._load(name).raw(name) if mapped is None else mapped


def _room(nbytes: int) -> Array:
    """Bytes of memory; many of them are those of a nameless file, which can be written out."""
    if nbytes >= LARGE and hasattr(os, "posix_fallocate"):  # macOS lacks it
        with suppress(OSError), tempfile.TemporaryFile() as file:  # the disk may be full
            os.posix_fallocate(file.fileno(), 0, nbytes)
            return np.frombuffer(mmap.mmap(file.fileno(), nbytes), np.uint8)
    return np.empty(nbytes, np.uint8)


def _fqn(index: Any) -> Any:
    """The name of what an entry of the storage data is of."""
    from torch.distributed.checkpoint.metadata import MetadataIndex

    return vars(index).get("fqn") if isinstance(index, MetadataIndex) else None


def _first_cause(error: BaseException) -> BaseException:
    """What went wrong in the one process that there is; torch wraps it."""
    failures = getattr(error, "failures", None)
    return next(iter(failures.values()))[0] if failures else error


_KNOWN: dict[str, set[str]] = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},
    "pathlib": {"PosixPath", "PurePosixPath"},
    "pathlib._local": {"PosixPath", "PurePosixPath"},
}


def _known_class(module: str, name: str) -> Any:
    """What the metadata of torch.distributed.checkpoint are made of, and nothing else."""
    import torch

    if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
        return getattr(torch, name)
    if (module, name) == ("collections", "OrderedDict"):
        return ordered
    if name in _KNOWN.get(module, ()):
        return getattr(importlib.import_module(module), name)
    raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is refused")


def _are_sizes(values: Any) -> TypeGuard[tuple[int, ...]]:
    return isinstance(values, tuple) and all(type(v) is int and 0 <= v < MOST for v in values)


def _make_up(boxes: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], shape: Any) -> bool:
    """Whether boxes of (offsets, sizes) fill a shape without a gap or an overlap.

    The corners that belong to an odd number of boxes tell which points lie in an odd number of
    them: where they are those of the whole, all points do, and by the volume in just one.
    """
    whole = ((0,) * len(shape), tuple(shape))
    if any(len(o) != len(shape) or len(n) != len(shape) for o, n in boxes):
        return False
    if len(boxes) == 1:
        return boxes[0] == whole
    if len(shape) > 8 or sum(math.prod(n) for _, n in boxes) != math.prod(shape):
        return False
    odd: set[tuple[int, ...]] = set()
    for offsets, sizes in (*boxes, whole):
        if 0 not in sizes:
            odd ^= set(
                itertools.product(*((o, o + n) for o, n in zip(offsets, sizes, strict=True)))
            )
    return not odd


def save(folder: Path, stage: Stage, layout: Layout, tied: Mapping[str, str], note: str) -> None:
    """Write staged tensors to a new folder, synced."""
    from torch.distributed.checkpoint import filesystem, state_dict_saver
    from torch.distributed.checkpoint.api import CheckpointException

    state = {**nested(named(stage, layout, tied), layout), PROVENANCE: note}
    writer = filesystem.FileSystemWriter(folder, single_file_per_rank=True, sync_files=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is but one process
        try:
            state_dict_saver.save(state, storage_writer=writer, no_dist=True)
        except CheckpointException as wrapped:
            error = _first_cause(wrapped)
            if isinstance(error, OSError | MemoryError):
                raise error from None
            raise CheckpointError(
                f"torch.distributed.checkpoint cannot write such tensors: {error}"
            ) from wrapped
