"""A folder with the weights of several modules, each in files of its own.

Sentence-transformers keeps the modules of a model in folders that modules.json lists, and
Accelerate's save_state the models of a training as model.safetensors, model_1.safetensors and so
on. The names of the first have the part before them: "2_Dense/linear.weight".
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from .._columns import Array, Column
from .._errors import CheckpointError
from ._base import FileCheckpoint, Layout, is_plain
from ._safetensors import MAX_HEADER

MODULES = "modules.json"
"""The file in which sentence-transformers lists the modules of a model."""

_FURTHER = re.compile(r"(?:model|pytorch_model)_[1-9]\d*\.(?:safetensors|bin)(?:\.index\.json)?")


def further_models(folder: Path) -> list[str]:
    """The files that hold the second and further models of Accelerate's save_state."""
    found = sorted(path.name for path in folder.iterdir() if _FURTHER.fullmatch(path.name))
    indices = {name.removesuffix(".index.json") for name in found if name.endswith(".json")}
    return [name for name in found if name not in indices]


def module_folders(folder: Path, what: str) -> list[str]:
    """The folders of sentence-transformers' modules; that of one may be the folder itself, ""."""
    path = folder / MODULES
    if not path.is_file():
        return []
    try:
        if path.stat().st_size > MAX_HEADER:
            raise ValueError("it is larger than 100 MB")
        listed = json.loads(path.read_bytes())
        found = [module["path"] for module in listed]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{what}: {str(path)!r} lists no modules: {error!r}") from error
    for name in found:
        if name != "" and not (isinstance(name, str) and is_plain(name)):
            raise CheckpointError(f"{what}: {str(path)!r} names {name!r}, expected a folder in it")
    return list(dict.fromkeys(found))


class PartsCheckpoint(FileCheckpoint):
    """The checkpoints of several parts, as one.

    Parameters
    ----------
    path : Path
        The folder.
    what : str
    parts : dict of str to FileCheckpoint
        What the names of a part begin with -> the part: "" for the folder's own weights.
    layout : Layout
        Of the folder, with the layouts of the parts in `parts`.
    """

    def __init__(
        self, path: Path, what: str, parts: Mapping[str, FileCheckpoint], layout: Layout
    ) -> None:
        super().__init__(path, what)
        self._parts = tuple(parts.values())
        self._part_of: dict[str, tuple[FileCheckpoint, str]] = {}
        for before, part in parts.items():
            self.metadata = {**part.metadata, **self.metadata}
            self.tied.update({before + k: before + name for k, name in part.tied.items()})
            for name, tensor in part.tensors.items():
                if before + name in self.tensors:
                    raise CheckpointError(f"{self.what} has the tensor {before + name!r} twice")
                self.tensors[before + name] = replace(tensor, name=before + name)
                self._part_of[before + name] = part, name
        self.layout = layout

    def check_same(self) -> None:
        for part in self._parts:
            part.check_same()

    def column(self, name: str) -> Column:
        part, name = self._part_of[name]
        return part.column(name)

    def value(self, name: str) -> Any:
        part, name = self._part_of[name]
        return part.value(name)

    def raw(self, name: str) -> Array:
        part, name = self._part_of[name]
        return part.raw(name)
