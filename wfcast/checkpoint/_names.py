"""The step that the name of a checkpoint says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

__all__ = ["SUFFIXES", "Said", "said_by", "said_of", "step_named"]

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
"""What files of checkpoints end in; Lightning's folders of shards end in .ckpt, too."""

_KINDS = {
    "step": "step",
    "iteration": "iter",
    "iter": "iter",
    "checkpoint": "checkpoint",
    "ckpt": "checkpoint",
    "epoch": "epoch",
}
_ORDER = ("step", "iter", "checkpoint", "epoch", "")
# A number that is one: no part of 0.52, 10k or 7b.
_NUMBER = r"[0-9]+(?![a-z0-9]|\.[0-9])"
_WORDED = re.compile(rf"(?<![a-z])({'|'.join(_KINDS)})[-_=. ]?({_NUMBER})(?:[-_]({_NUMBER}))?")
_ALONE = re.compile(rf"(?:^|(?<=[-_ ])|(?<=[^0-9]\.))({_NUMBER})")
_OF_SHARDS = re.compile(r"[0-9]+-of-[0-9]+")
_VERSION = re.compile(r"[-_.]v[0-9]+$")
_NO_STEP = re.compile(
    r"(?:^|[^a-z])(?:loss|acc|accuracy|rank|seed|fold|version|part|shard"
    r"|optim|optimizer|scheduler|states?)[-_. ]$"
)


class Said(NamedTuple):
    """What a name says.

    Attributes
    ----------
    kind : str
        "step", "iter", "checkpoint" or "epoch", whatever counts; "" of a number without a word.
    numbers : tuple of int
        More than one where the name does not tell which of them counts.
    """

    kind: str
    numbers: tuple[int, ...]


def said_by(name: str) -> Said | None:
    """What the name of a file or folder says of its step; None where that is nothing.

    A number after "step" (or "global_step") counts before one after "iter", that before one after
    "checkpoint", and that before one after "epoch". Without such a word it is the number at the
    end. Losses, versions ("-v1") and parts of words ("fp16", "rank0") are no steps.
    """
    stem = name.lower()
    stem = next((stem.removesuffix(end) for end in SUFFIXES if stem.endswith(end)), stem)
    if _OF_SHARDS.search(stem):
        return None
    found: dict[str, list[int]] = {}
    for word, *numbers in _WORDED.findall(stem):
        found.setdefault(_KINDS[word], []).extend(int(number) for number in numbers if number)
    if not found:
        stem = _VERSION.sub("", stem)
        alone = list(_ALONE.finditer(stem))
        if (
            alone
            and alone[-1].end() == len(stem)
            and not _NO_STEP.search(stem[: alone[-1].start()])
        ):
            found[""] = [int(match[1]) for match in alone]
    kind = next((kind for kind in _ORDER if kind in found), None)
    return None if kind is None else Said(kind, tuple(dict.fromkeys(found[kind])))


def step_named(path: Path) -> int | None:
    """The step that the name of a checkpoint says in words, or its folder's: checkpoint-500.

    Epochs are none.
    """
    said = said_of(path)
    if said is None or said.kind in ("", "epoch") or len(said.numbers) > 1:
        return None
    return said.numbers[0]


def said_of(path: Path) -> Said | None:
    """What the name of a checkpoint says, or else, in words, that of its folder."""
    if own := said_by(path.name):
        return own
    of_folder = said_by(path.parent.name)
    return of_folder if of_folder and of_folder.kind else None
