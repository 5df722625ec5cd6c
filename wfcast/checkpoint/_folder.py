"""Folders: which file in them holds the weights, what belongs to them, and runs of checkpoints."""

from __future__ import annotations

import json
import re
from pathlib import Path

from .._errors import CheckpointError, warn
from ._dcp import METADATA
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
"""The file names that Hugging Face's libraries give to weights; the first that is there counts."""

SHARDED = "pytorch_model_fsdp_0"
"""The folder of torch.distributed.checkpoint in which Accelerate keeps the weights of FSDP."""

_CARRIED = {".json", ".txt", ".model", ".md", ".py", ".jinja", ".yaml"}
_CARRIED |= {".tiktoken", ".spm", ".codes", ".tokenizer"}  # further vocabularies
_TRAINING = {"trainer_state.json", "training_args.json"}
_STEP_FOLDER = re.compile(r"(?:.*\D)?(\d+)")
_STEP_FILE = re.compile(r"(?:.*\D)?(\d+)\.(?:safetensors|pt|pth|bin|ckpt)")


_STEP_NAME = re.compile(r"(?:.*[-_.])?(?:checkpoint|step)[-_]?(\d+)")


def step_named(path: Path) -> int | None:
    """The step that the name of a checkpoint speaks of, or its folder's: checkpoint-500."""
    for name in (path.name.split(".")[0], path.parent.name):
        match = _STEP_NAME.fullmatch(name)
        if match:
            return int(match[1])
    return None


def weights_in(folder: Path) -> Path | None:
    """What holds the weights of a checkpoint folder: the folder itself for a distributed one."""
    if (folder / METADATA).is_file():
        return folder
    found = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if found is None and (folder / SHARDED / METADATA).is_file():
        return folder / SHARDED
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
        plain = path.is_file() and path.suffix in _CARRIED and path.name not in _TRAINING
        if plain and not path.name.endswith(INDEX):
            carried.append(path)
        else:
            left.append(path.name)
    return tuple(carried), tuple(left)


def adapts(folder: Path, what: str) -> tuple[str | None, bool]:
    """What a PEFT adapter adapts, if the folder holds one.

    Returns
    -------
    base : str or None
        The base model.
    stacked : bool
        Whether single parameters are among it, those of all experts of a layer for example.
    """
    path = folder / "adapter_config.json"
    if not path.is_file():
        return None, False
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
    return found, bool(config.get("target_parameters"))


def holds_run(folder: Path) -> bool:
    """Whether there are checkpoints in it by name and content, whatever else there is."""
    return any(
        _STEP_NAME.fullmatch(path.name) and path.is_dir() and weights_in(path) is not None
        for path in folder.iterdir()
    )


def steps_in(folder: Path) -> dict[int, Path]:
    """What looks like a checkpoint in a run folder, by step: the last number of its name.

    Of two with the same step, a folder without weights is left out with a warning.
    """
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        match = (_STEP_FOLDER if path.is_dir() else _STEP_FILE).fullmatch(path.name)
        if match is None or (path.is_dir() and not any(path.iterdir())):
            continue
        step = int(match[1])
        pair = [p for p in (found.get(step), path) if p is not None]
        whole = [p for p in pair if p.is_file() or weights_in(p) is not None]
        if len(pair) > 1 and len(whole) != 1:
            raise CheckpointError(
                f"{str(folder)!r} has step {step} twice: {pair[0].name} and {pair[1].name}"
            )
        found[step] = whole[0] if len(pair) > 1 else path
        for one in pair:
            if one != found[step]:
                warn(
                    f"left out, as if it were not there: {str(one)!r} holds no finished checkpoint"
                )
    return dict(sorted(found.items()))
