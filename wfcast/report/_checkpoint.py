"""What a checkpoint holds."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from .. import _core
from .._apply import Progress
from .._kinds import kind_of
from .._plot import natural
from .._runs import made_by
from ..checkpoint import PROVENANCE, Checkpoint
from ._base import Grid, Report, finite
from ._comparison import Errors, floating

__all__ = ["CheckpointReport"]

LONGEST = 500
"""The most letters that are shown of an entry of a checkpoint's metadata."""


class CheckpointReport(Report):
    """The tensors of a checkpoint.

    Attributes
    ----------
    path : str
        What it is called.
    checkpoint : Checkpoint
    sums : dict of str to Errors
        Of each floating tensor's values.

    See Also
    --------
    inspect : Returns one.
    RunReport : Several checkpoints of a run.

    Examples
    --------
    >>> import numpy as np, wfcast
    >>> found = wfcast.inspect({"fc.weight": np.array([[3.0, 4.0]]), "steps": np.array(7)})
    >>> found.to_dict()["parameters"], found.sums["fc.weight"].sum_true
    (3, 7.0)
    """

    def __init__(
        self, checkpoint: Checkpoint, path: str, n_threads: int, progress: Progress | None
    ) -> None:
        self.checkpoint, self.path = checkpoint, path
        self.sums: dict[str, Errors] = {}
        for name in floating(checkpoint):
            array = checkpoint.column(name).array
            self.sums[name] = Errors(**_core.error_sums(array, array, n_threads))
            if progress is not None:
                progress(name, checkpoint.tensors[name].size)

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON can hold it: None for NaN and infinity."""
        tensors = sorted(self.checkpoint.tensors.values(), key=lambda t: natural(t.name))
        return {
            "path": self.path,
            "what": "checkpoint",
            "format": self.checkpoint.layout.format,
            "tensors": [
                {
                    "name": t.name,
                    "shape": list(t.shape),
                    "dtype": t.dtype,
                    "size": t.size,
                    "kind": kind_of(t.name) if t.name in self.sums else None,
                    "rms": finite(self.sums[t.name].rms_true) if t.name in self.sums else None,
                    "n_nonfinite": self.sums[t.name].n_nonfinite if t.name in self.sums else 0,
                }
                for t in tensors
            ],
            "parameters": sum(t.size for t in tensors),
            "sets": list(self.checkpoint.sets),
            "tied": dict(self.checkpoint.tied),
            "metadata": dict(self.checkpoint.metadata),
        }

    def _rows(self) -> Iterable[dict[str, Any]]:
        yield from self.to_dict()["tensors"]

    def _parts(self) -> Iterable[str | Grid]:
        document = self.to_dict()
        rows = [
            (
                t["name"],
                t["kind"] or "-",
                t["dtype"],
                "x".join(map(str, t["shape"])) or "scalar",
                "-" if t["rms"] is None else f"{t['rms']:.4g}",
                str(t["n_nonfinite"]),
            )
            for t in document["tensors"]
        ]
        yield Grid(("tensor", "kind", "dtype", "shape", "rms", "not finite"), rows, 3)
        tied = f", and {len(document['tied'])} tied names" if document["tied"] else ""
        lines = [
            f"{self.path}: {document['format']}, {len(rows)} tensors, "
            f"{document['parameters']:,} parameters{tied}"
        ]
        if PROVENANCE in document["metadata"]:
            lines[0] += f"; {made_by(self.checkpoint)}"
        if len(document["sets"]) > 1:
            lines.append(f"sets of weights (key=, --key): {', '.join(document['sets'])}")
        for key, value in document["metadata"].items():
            lines.append(f"{key}: {value if len(value) <= LONGEST else value[:LONGEST] + ' ...'}")
        yield "\n".join(lines)

    def _draw(self, ax: Any) -> None:
        from .._plot import by_layer

        by_layer(ax, {name: sums.rms_true for name, sums in self.sums.items() if sums.n})
        ax.set_ylabel("rms of the weights")
        ax.set_title(os.path.basename(self.path) or self.path, loc="left")
