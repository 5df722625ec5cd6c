"""Folders: which file in them holds the weights, what belongs to them, and runs of checkpoints."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from .._errors import CheckpointError
from ._dcp import METADATA
from ._names import SUFFIXES, said_by
from ._safetensors import MAX_HEADER
from ._sharded import INDEX

WEIGHTS = (
    *(
        name
        for stem, torch_stem in (
            ("model", "pytorch_model"),
            ("adapter_model", "adapter_model"),
            ("diffusion_pytorch_model", "diffusion_pytorch_model"),
        )
        for name in (
            f"{stem}.safetensors{INDEX}",
            f"{stem}.safetensors",
            f"{torch_stem}.bin{INDEX}",
            f"{torch_stem}.bin",
        )
    ),
    "pytorch_model_fsdp.bin",
)
"""The file names that Hugging Face's libraries give to weights."""

SHARDED = "pytorch_model_fsdp_0"
"""The folder of torch.distributed.checkpoint in which Accelerate keeps the weights of FSDP."""

_CARRIED = {".json", ".txt", ".model", ".md", ".py", ".jinja", ".yaml"}
_CARRIED |= {".tiktoken", ".spm", ".codes", ".tokenizer"}  # further vocabularies
_TRAINING = {"trainer_state.json", "training_args.json"}
_SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})(\.safetensors|\.bin)")


def weights_in(folder: Path, what: str) -> Path | None:
    """What holds the weights of a checkpoint folder: the folder itself for a distributed one.

    Raises
    ------
    CheckpointError
        There are two such things, of which one is a leftover.
    """
    found = _weights_in(folder)
    shards: dict[str, dict[str, str]] = {}
    for name in sorted(path.name for path in folder.iterdir()):
        if (match := _SHARD.fullmatch(name)) and match[1] + match[3] in WEIGHTS:
            shards.setdefault(match[1] + match[3], {}).setdefault(match[2], name)
    saves = [path.name for path in found]
    for counts in shards.values():
        if len(counts) > 1:
            saves = list(counts.values())
    if len(saves) > 1:
        raise CheckpointError(
            f"{what}: {str(folder)!r} holds both {saves[0]!r} and {saves[1]!r}, and one of them is "
            "left from another save: remove it, or name the file of the weights that count (of "
            "shards their index)"
        )
    if found and found[0].name == METADATA:
        return folder
    return found[0] if found else None


def _weights_in(folder: Path) -> list[Path]:
    """All that may hold the weights of a checkpoint folder."""
    found = [folder / METADATA] if (folder / METADATA).is_file() else []
    found += [folder / name for name in WEIGHTS if (folder / name).is_file()]
    if (folder / SHARDED / METADATA).is_file():
        found.append(folder / SHARDED)
    return found


def companions(folder: Path, own: set[str]) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """The files beside the weights that belong to the model, and the names of all others.

    Configuration, tokenizer, model card and code belong to the model, told by their endings;
    optimizer, scheduler, random state and what else a trainer keeps do not.

    Parameters
    ----------
    folder : Path
    own : set of str
        The weights' own file names.
    """
    carried, left = [], []
    for path in sorted(folder.iterdir()):
        if path.name in own:
            continue
        plain = _is_inside(path) and path.suffix in _CARRIED and path.name not in _TRAINING
        if plain and not path.name.endswith(INDEX):
            carried.append(path)
        else:
            left.append(path.name)
    return tuple(carried), tuple(left)


def _is_inside(path: Path) -> bool:
    """Whether it is a file of its folder, and no link out of it.

    Except into the "blobs" of the folder's own repository: so the hub's cache keeps all files.
    """
    if not path.is_symlink():
        return path.is_file()
    to = path.resolve()
    blobs = path.parent.resolve().parent.parent / "blobs"
    return to.is_file() and (to.parent == blobs or to.is_relative_to(path.parent.resolve()))


_MEANING = (
    "peft_type",
    "r",
    "lora_alpha",
    "use_rslora",
    "use_dora",
    "rank_pattern",
    "alpha_pattern",
    "target_modules",
    "target_parameters",
    "fan_in_fan_out",
)
"""What of an adapter's configuration says what its weights mean."""


def adapts(folder: Path, what: str) -> tuple[str | None, bool, dict[str, Any]]:
    """What a PEFT adapter adapts, if the folder holds one.

    Returns
    -------
    base : str or None
        The base model.
    stacked : bool
        Whether single parameters are among it, those of all experts of a layer for example.
    meaning : dict
        What of its configuration says what its weights mean, such as lora_alpha.
    """
    path = folder / "adapter_config.json"
    if not path.is_file():
        return None, False, {}
    try:
        if path.stat().st_size > MAX_HEADER:
            raise ValueError("it is larger than 100 MB")
        config = json.loads(path.read_bytes())
        found = config["base_model_name_or_path"]
        if not isinstance(found, str | None):
            raise ValueError(f"it is a {type(found).__name__}, expected text")
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        raise CheckpointError(
            f"{what}: {str(path)!r} names no base_model_name_or_path: {error!r}"
        ) from error
    meaning = {name: config[name] for name in _MEANING if name in config}
    for name, value in meaning.items():  # sets, whose order says nothing
        if isinstance(value, list) and all(isinstance(v, str) for v in value):
            meaning[name] = sorted(value)
    return found, bool(config.get("target_parameters")), meaning


def holds_run(folder: Path) -> bool:
    """Whether there are checkpoints in it by name and content, whatever else there is."""
    return any(
        (said := said_by(path.name)) is not None
        and said.kind != ""
        and path.is_dir()
        and bool(_weights_in(path))
        for path in folder.iterdir()
    )


def steps_in(folder: Path) -> tuple[list[tuple[int, Path]], list[Path]]:
    """What looks like a checkpoint in a run folder.

    All of a run count in the same: in what a word in their names says, or, where no name has such a
    word, in the numbers at the end.

    Returns
    -------
    found : list of (int, Path)
        In the order of their steps, of which one may come twice.
    others : list of Path
        Those whose names say no step, while those of `found` do.

    Raises
    ------
    CheckpointError
        A name with two readings, or names that count in different things.
    """
    said = {
        path: words
        for path in sorted(folder.iterdir())
        if not path.name.startswith(".") and _may_be_checkpoint(path)
        if (words := said_by(path.name)) is not None
    }
    worded = {path: words for path, words in said.items() if words.kind}
    counted = worded or said
    first: dict[str, Path] = {}
    for path, words in counted.items():
        if not _holds_weights(path):
            continue
        if len(words.numbers) > 1:
            raise CheckpointError(
                f"{str(folder)!r} has {path.name!r}, which may be step "
                f"{' or '.join(map(str, words.numbers))}: {_RENAME}"
            )
        first.setdefault(words.kind, path)
    if len(first) > 1:
        (word, one), (other_word, other) = list(first.items())[:2]
        raise CheckpointError(
            f"{str(folder)!r} counts in two ways, {one.name!r} by its {word} and {other.name!r} by "
            f"its {other_word}: {_RENAME}"
        )
    kind = next(iter(first), None)
    found = [
        (words.numbers[0], path)
        for path, words in counted.items()
        if kind in (None, words.kind) and len(words.numbers) == 1
    ]
    others = [path for path in said if path not in counted and _holds_weights(path)]
    return sorted(found), others


_RENAME = "name it step-STEP, or pass the run as {step: path} (STEP=PATH)"


def _may_be_checkpoint(path: Path) -> bool:
    if path.is_dir():
        return any(path.iterdir())
    return path.suffix.lower() in SUFFIXES


def _holds_weights(path: Path) -> bool:
    return not path.is_dir() or bool(_weights_in(path))
