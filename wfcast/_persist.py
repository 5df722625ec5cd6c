"""A ModelFarcaster as a safetensors file: the numbers as tensors, the rest as JSON metadata."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as serialize

from ._errors import CheckpointError, WfcastError
from ._runs import steps
from ._version import __version__
from .checkpoint._atomic import atomic_file
from .model import ALL, ModelFarcaster

KEY = "wfcast"
FORMAT = "wfcast.farcaster"
VERSION = 1
_NUMBERS = ("objective", "dual_gap", "n_passes")


def save(mf: ModelFarcaster, path: str | os.PathLike[str]) -> None:
    """Write a fitted or ready-made ModelFarcaster."""
    names = list(mf.coef_)
    tensors = {
        "coef": np.stack([mf.coef_[n] for n in names]).astype(np.float64),
        "intercept": np.stack([mf.intercept_[n] for n in names]).astype(np.float64),
    }
    for key in _NUMBERS:
        values = getattr(mf, key + "_", None)
        if values is not None:
            tensors[key] = np.array([values[n] for n in names], dtype=np.float64)
    params = mf.get_params(deep=False)
    document = {
        "format": FORMAT,
        "version": VERSION,
        "wfcast": __version__,
        "names": names,
        "inputs": list(mf.inputs_),
        "targets": list(mf.targets_),
        "tensors": {n: [list(shape), dtype] for n, (shape, dtype) in mf.tensors_.items()},
        "base": mf.base_,
        "params": {k: _plain(v) for k, v in params.items() if k not in ("inputs", "targets")},
    }
    data = serialize(tensors, metadata={KEY: json.dumps(document)})
    with atomic_file(Path(path)) as file:
        file.write(data)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def load(path: str | os.PathLike[str]) -> ModelFarcaster:
    """Read a ModelFarcaster that `ModelFarcaster.save` wrote.

    Parameters
    ----------
    path : path
        A safetensors file. Nothing in it is executed.

    Returns
    -------
    ModelFarcaster
        Fitted as it was saved.

    Raises
    ------
    CheckpointError
        No such file, no forecaster in it, one of a later format, or one that contradicts itself.
    """
    where = repr(str(path))
    try:
        with safe_open(path, framework="numpy") as file:
            text = (file.metadata() or {}).get(KEY)
            if text is None:
                raise CheckpointError(
                    f"{where} is a safetensors file but holds no forecaster: "
                    f"its metadata have no {KEY!r} entry"
                )
            present = set(file.offset_keys())
            tensors = {
                k: file.get_tensor(k) for k in ("coef", "intercept", *_NUMBERS) if k in present
            }
    except FileNotFoundError as error:  # which the library says of files that it may not read, too
        reason = f"{where} cannot be read" if Path(path).exists() else f"there is no file {where}"
        raise CheckpointError(reason) from error
    except CheckpointError:
        raise
    except (SafetensorError, OSError, TypeError, ValueError) as error:
        raise CheckpointError(f"{where} cannot be read as a safetensors file: {error}") from error
    try:
        document = json.loads(text)
        return _build(document, tensors)
    except (
        KeyError,
        TypeError,
        AttributeError,
        ValueError,
        OverflowError,
        RecursionError,
    ) as error:
        reason = f"{error.args[0]!r} is missing" if type(error) is KeyError else str(error)
        message = f"{where} holds a forecaster that cannot be used: {reason}"
        raise CheckpointError(message) from error


def _build(document: dict[str, Any], tensors: dict[str, Any]) -> ModelFarcaster:
    if document["format"] != FORMAT:
        raise WfcastError(f"its format is {document['format']!r}, expected {FORMAT!r}")
    if document["version"] != VERSION:
        raise WfcastError(
            f"its format has version {document['version']}, this wfcast "
            f"({__version__}) reads version {VERSION}"
        )
    inputs, targets = steps(document["inputs"], "inputs"), steps(document["targets"], "targets")
    names = document["names"]
    if not names or len(set(names)) != len(names) or not all(isinstance(n, str) for n in names):
        raise WfcastError("names are not distinct strings")
    if ALL in names and len(names) > 1:
        raise WfcastError(f"{ALL!r} stands beside names of tensors")
    t, m, p = len(names), len(targets), len(inputs)
    for key, shape in {
        "coef": (t, m, p),
        "intercept": (t, m),
        **{k: (t,) for k in _NUMBERS if k in tensors},
    }.items():
        array = tensors[key]
        if array.shape != shape or array.dtype != np.float64:
            raise WfcastError(
                f"{key} is {array.dtype} {list(array.shape)}, expected float64 {list(shape)}"
            )
        if not np.isfinite(array).all():
            raise WfcastError(f"{key} contains NaN or infinity")
    base = document.get("base")  # which the first files do not have
    if not isinstance(base, str | None):
        raise WfcastError("base is no text")
    mf = ModelFarcaster(inputs, targets)
    params = dict(document["params"])
    unknown = params.keys() - mf.get_params().keys()
    if unknown:
        raise WfcastError(f"unknown parameters {sorted(unknown)}")
    mf.set_params(**params)
    mf._check()
    numbers: dict[str, Any] = {}
    for key in _NUMBERS:
        if key in tensors:
            kind = int if key == "n_passes" else float
            numbers[key + "_"] = {n: kind(v) for n, v in zip(names, tensors[key], strict=True)}
    mf._set(
        inputs,
        targets,
        {n: tensors["coef"][i].copy() for i, n in enumerate(names)},
        {n: tensors["intercept"][i].copy() for i, n in enumerate(names)},
        {
            n: (tuple(int(d) for d in shape), str(dtype))
            for n, (shape, dtype) in document["tensors"].items()
        },
        base,
        **numbers,
    )
    return mf
