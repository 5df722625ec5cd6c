"""Checkpoints: names -> tensors, read lazily and written safely. No forecasting here.

Reading: `open_checkpoint` looks at what is there (a mapping, a module, a file, an index, a folder)
and returns a `Checkpoint`, whose `layout` says how it lies on disk. A format is one module with a
reader, and `_open` chooses it.

Writing: `create_checkpoint` writes tensor after tensor in a given layout; what it makes appears
complete or not at all.
"""

from ._base import (
    PROVENANCE,
    Checkpoint,
    CheckpointWriter,
    FileCheckpoint,
    Layout,
    MappingCheckpoint,
    Tensor,
    is_forecast,
)
from ._create import create_checkpoint, output_layout
from ._dcp import DistributedCheckpoint
from ._folder import holds_run, steps_in
from ._names import said_of, step_named
from ._open import open_checkpoint
from ._safetensors import SafetensorsCheckpoint, SafetensorsWriter
from ._sets import of_training
from ._sharded import ShardedCheckpoint
from ._torch import TorchCheckpoint

__all__ = [
    "PROVENANCE",
    "Checkpoint",
    "CheckpointWriter",
    "DistributedCheckpoint",
    "FileCheckpoint",
    "Layout",
    "MappingCheckpoint",
    "SafetensorsCheckpoint",
    "SafetensorsWriter",
    "ShardedCheckpoint",
    "Tensor",
    "TorchCheckpoint",
    "create_checkpoint",
    "holds_run",
    "is_forecast",
    "of_training",
    "open_checkpoint",
    "output_layout",
    "said_of",
    "step_named",
    "steps_in",
]
