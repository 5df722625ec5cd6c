"""What wfcast does not read: which format it is, and what to do instead."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

from ._dcp import METADATA
from ._names import SUFFIXES

START = 512
"""The bytes at the start of a file that tell its format."""

_CONVERTED = "forecast the checkpoints that it was made from"
_FLAX = "a file of Flax, which is not read: save its weights with safetensors.flax"
_TENSORFLOW = "of TensorFlow, which is not read: save its weights as a safetensors file"
_MAGIC = {
    b"GGUF": f"a GGUF file, which is not read: {_CONVERTED}",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file (Keras), which is not read: save its weights as a "
    "safetensors file",
    b"\x93NUMPY": "a NumPy file of one array: pass {name: numpy.load(path)} in its place",
    b"version https://git-lfs": "a pointer of git-lfs: fetch the file by 'git lfs pull'",
    b"\x1f\x8b": "compressed by gzip: unpack it",
    b"\x28\xb5\x2f\xfd": "compressed by zstd: unpack it",
    b"\xfd7zXZ": "compressed by xz: unpack it",
    b"BZh": "compressed by bzip2: unpack it",
    b"<!DOCTYPE": "a web page, and no checkpoint: download the file itself",
    b"<html": "a web page, and no checkpoint: download the file itself",
}
_ENDINGS = {
    ".msgpack": _FLAX,
    ".onnx": f"an ONNX file, which is not read: {_CONVERTED}",
    ".pb": f"a file {_TENSORFLOW}",
    ".index": f"a file {_TENSORFLOW}",
    ".tflite": f"a file {_TENSORFLOW}",
    ".distcp": f"a part of torch.distributed.checkpoint: name its folder, the one with {METADATA}",
    ".json": "a JSON file, and holds no weights: name the folder that it is in",
}
FOREIGN = {*_ENDINGS, ".gguf", ".npz", ".npy", ".h5", ".hdf5", ".keras", ".nemo", ".mlmodel"}
FOREIGN |= {".zip", ".tar", ".gz", ".pkl", ".pickle", ".ptl"}
"""What files of other formats end in."""

_TAR = "a tar archive, such as NeMo's: unpack it, and name the file of torch.save in it"
_SPECIAL = {
    "constants.pkl": "a TorchScript archive, which holds code: torch.save the state_dict() of "
    "torch.jit.load(path)",
    "model.weights.h5": "a Keras archive, which is not read: save its weights as safetensors",
}


def foreign_file(path: Path, start: bytes) -> str | None:
    """What a file is, and what to do instead; None where it may be one that wfcast reads.

    Parameters
    ----------
    path : Path
    start : bytes
        Its first `START` bytes.
    """
    if start[8:9] == b"{":  # behind the length of a safetensors header, which may be any bytes
        return None
    for magic, text in _MAGIC.items():
        if start.startswith(magic):
            return text
    if start[257:262] == b"ustar":
        return _TAR
    if start[:2] == b"PK":  # torch.save's, unless its reader finds that it is not
        return None
    if re.fullmatch(r".*\.data-\d{5}-of-\d{5}", path.name):
        return _ENDINGS[".index"]
    return _ENDINGS.get(path.suffix)


def foreign_archive(path: Path) -> str | None:
    """What a zip file is that is none of torch.save; None where nothing tells."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return None  # the reader says what is wrong with it
    for name in names[:100]:
        if name.rpartition("/")[2] in _SPECIAL:
            return _SPECIAL[name.rpartition("/")[2]]
    if names and all(name.endswith(".npy") for name in names):
        return "a NumPy file of several arrays: pass dict(numpy.load(path)) in its place"
    return None


def foreign_folder(folder: Path) -> str | None:
    """What a folder without weights is, and what to do instead; None where nothing tells."""
    names = sorted(path.name for path in folder.iterdir())
    if "model_index.json" in names:
        return f"a pipeline of diffusers: name one of its components, {_components(folder)}"
    if "pytorch_lora_weights.safetensors" in names:
        return (
            "a folder of LoRA weights of diffusers: name the file, pytorch_lora_weights.safetensors"
        )
    if any(re.fullmatch(r"consolidated\.\d+\.pth", name) for name in names):
        return (
            "a checkpoint of Llama's own format (consolidated.*.pth): convert it to a Hugging Face "
            "folder"
        )
    if "latest" in names and any(re.fullmatch(r"global_step\d+", name) for name in names):
        return _DEEPSPEED
    if any(re.fullmatch(r".*mp_rank_\d+_model_states\.pt", name) for name in names):
        return _DEEPSPEED
    if "latest_checkpointed_iteration.txt" in names or any(
        re.fullmatch(r"mp_rank_\d+(_\d+)*", name) for name in names
    ):
        return "a checkpoint of Megatron: convert it to a Hugging Face folder"
    if "saved_model.pb" in names or "checkpoint" in names:
        return f"a folder {_TENSORFLOW}"
    if "manifest.ocdbt" in names or "_CHECKPOINT_METADATA" in names:
        return (
            "a checkpoint of Orbax (JAX), which is not read: save its weights as a safetensors file"
        )
    if shards := [n for n in names if re.fullmatch(r".*-\d{5}-of-\d{5}\.(safetensors|bin)", n)]:
        return f"a folder of shards such as {shards[0]} without their index, *.index.json"
    return None


def inside(folder: Path) -> str:
    """What of a folder without weights of a known name may be meant, as a message ends."""
    files = [p.name for p in sorted(folder.iterdir()) if p.is_file() and p.suffix in SUFFIXES]
    found = files or components(folder)
    if not found:
        return ""
    return f"; name the {'file' if files else 'folder in it'} that is meant: {', '.join(found[:8])}"


_DEEPSPEED = (
    "a checkpoint of DeepSpeed, in partitions: join them by its own zero_to_fp32.py, with "
    "--safe_serialization, and name that folder"
)


def components(folder: Path) -> list[str]:
    """The folders in it that hold weights by a name that is usual, and so may be meant."""
    return [
        path.name
        for path in sorted(folder.iterdir())
        if path.is_dir()
        and (
            any(path.glob("*.safetensors")) or any(path.glob("*.bin")) or (path / METADATA).exists()
        )
    ]


def _components(folder: Path) -> str:
    try:
        index = json.loads((folder / "model_index.json").read_bytes())
        named = [n for n in index if isinstance(n, str) and (folder / n).is_dir()]
    except (OSError, ValueError, TypeError):
        named = []
    found = [n for n in components(folder) if not named or n in named]
    return ", ".join(found) or "none of which holds weights"


def not_here(source: str) -> str:
    """What to do where there is no such file: a name on the hub, or a URL, is none."""
    if re.match(r"[a-z][a-z0-9+.-]+://", source):
        return "; only local paths are read: download it first"
    named = Path(source).suffix in SUFFIXES
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source) and not named and not Path(source).parent.exists():
        return (
            "; only local paths are read: where it is a name on the Hugging Face hub, pass what "
            "huggingface_hub.snapshot_download returns"
        )
    return ""
