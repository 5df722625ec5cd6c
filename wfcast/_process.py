"""A process that fits: by itself, or, in `wfcast._live.ranks`, as one of several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class Ranks:
    """A process by itself.

    As a context, it lets no process leave the block before all of them do: with an error where one
    of them has one.

    Attributes
    ----------
    rank, size : int
        Which process this is, of how many.
    sharded : bool
        Whether all processes have the same runs, each with its shards of their tensors; else each
        has runs of its own.
    """

    rank = 0
    size = 1
    sharded = False

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        return None

    def gather(self, data: bytes) -> list[bytes]:
        """What each process gives, in their order, on all of them."""
        return [data]

    def local(self, run: dict[int, Any], needed: Sequence[int], what: str) -> dict[int, Any]:
        """The needed checkpoints of a run, such that their columns are the rows of this process."""
        return run
