"""Folders of torch.distributed.checkpoint, read and written by torch itself.

torch reads the folder's ``.metadata`` with pickle. Here it is read by an unpickler that knows the
classes of such metadata and nothing else, and torch is handed the result.
"""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .._columns import Array, Column
from .._errors import CheckpointError
from ._base import FileCheckpoint, Layout, MappingCheckpoint, Tensor
from ._torch import Stage, import_torch

METADATA = ".metadata"


class DistributedCheckpoint(FileCheckpoint):
    """A folder of torch.distributed.checkpoint; one tensor at a time is in memory."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(path, what)
        import_torch(self.what)
        from torch.distributed.checkpoint.metadata import TensorStorageMetadata

        self._identity = self._look()
        self._found = self._read_metadata()
        for name, entry in self._found.state_dict_metadata.items():
            if isinstance(entry, TensorStorageMetadata):
                dtype = str(entry.properties.dtype).removeprefix("torch.")
                self.tensors[name] = Tensor(name, tuple(entry.size), dtype)
        if not self.tensors:
            raise CheckpointError(f"{self.what} holds no tensors")
        self.layout = Layout("dcp", folder=True)

    def _read_metadata(self) -> Any:
        from torch.distributed.checkpoint.metadata import Metadata

        try:
            with open(self.path / METADATA, "rb") as file:
                found = _MetadataUnpickler(file).load()
        except (pickle.UnpicklingError, OSError, EOFError, AttributeError, ValueError) as error:
            raise CheckpointError(
                f"{self.what} cannot be read as a torch.distributed.checkpoint: {error}"
            ) from error
        if not isinstance(found, Metadata):
            raise CheckpointError(
                f"{self.what} cannot be read as a torch.distributed.checkpoint: its {METADATA} "
                f"holds a {type(found).__name__}"
            )
        return found

    def _look(self) -> tuple[int, int, int, int]:
        try:
            s = os.stat(self.path / METADATA)
        except OSError as error:
            raise CheckpointError(f"{self.what} cannot be read: {error}") from error
        return s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns

    def _load(self, name: str) -> MappingCheckpoint:
        import torch
        from torch.distributed.checkpoint import filesystem, state_dict_loader
        from torch.distributed.checkpoint.api import CheckpointException

        found = self._found

        class Reader(filesystem.FileSystemReader):
            def read_metadata(self, *args: Any, **kwargs: Any) -> Any:
                return found

        tensor = self.tensors[name]
        into = {name: torch.empty(tensor.shape, dtype=getattr(torch, tensor.dtype))}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that there is but one process
                state_dict_loader.load(into, storage_reader=Reader(str(self.path)), no_dist=True)
        except (Exception, CheckpointException) as error:  # of many kinds
            reason = _first_cause(error)
            raise CheckpointError(f"{self.label(name)} cannot be read: {reason}") from error
        if self._look() != self._identity:  # torch opens the data by name each time
            raise CheckpointError(f"{self.what} changed while it was being read")
        return MappingCheckpoint(into, self.what)

    def column(self, name: str) -> Column:
        return self._load(name).column(name)

    def value(self, name: str) -> Any:
        return self._load(name).value(name)

    def raw(self, name: str) -> Array:
        return self._load(name).raw(name)


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
    "collections": {"OrderedDict"},
}


class _MetadataUnpickler(pickle.Unpickler):
    """Knows what the metadata of torch.distributed.checkpoint are made of, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        import torch

        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if name in _KNOWN.get(module, ()):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"its {METADATA} asks for {module}.{name}, which is refused")


def save(folder: Path, stage: Stage, tied: Mapping[str, str], note: str) -> None:
    """Write staged tensors to a new folder, synced."""
    from torch.distributed.checkpoint import filesystem, state_dict_saver
    from torch.distributed.checkpoint.api import CheckpointException

    state: dict[str, Any] = dict(stage.tensors())
    state.update({alias: state[name] for alias, name in tied.items()})
    state["wfcast.forecast"] = note
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
