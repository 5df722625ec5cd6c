"""An operator as a safetensors file: the numbers as tensors, the rest as JSON metadata."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as serialize

from ._atomic import atomic_file
from ._errors import CheckpointError, WfcastError
from ._parameters import ALL, PARAMETERS, check_by, check_parameters
from ._version import __version__

if TYPE_CHECKING:
    from ._operator import Operator

__all__ = ["KEY", "load", "save"]

KEY = "wfcast"
FORMAT = "wfcast.farcaster"
VERSION = 1
_NUMBERS = ("objective", "dual_gap", "n_passes")  # tensors in the files of wfcast 0.1
_UNREAD = {
    "loss": "absolute_error",
    "beta": 0.0,
    "alpha": 0.0,
    "fit_intercept": True,
    "tol": 1e-9,
}  # wfcast 0.1 looks for these; what is known of a fit stands in "info"

T = TypeVar("T")


def save(operator: Operator, path: str | os.PathLike[str]) -> None:
    """Write an operator."""
    names = list(operator.coef)
    tensors = {
        "coef": np.stack([operator.coef[n] for n in names]),
        "intercept": np.stack([operator.intercept[n] for n in names]),
    }
    by = "all" if ALL in operator.coef else "tensor"
    document = {
        "format": FORMAT,
        "version": VERSION,
        "wfcast": __version__,
        "strategy": operator.strategy,
        "names": names,
        "inputs": list(operator.inputs),
        "targets": list(operator.targets),
        "tensors": {n: [list(shape), dtype] for n, (shape, dtype) in operator.tensors.items()},
        "base": operator.base,
        "info": {name: _plain(value, name) for name, value in operator.info.items()},
        "params": {"by": by, "n_threads": operator.n_threads, **_UNREAD},
    }
    data = serialize(tensors, metadata={KEY: json.dumps(document)})
    with atomic_file(Path(path)) as file:
        file.write(data)


def _plain(value: Any, name: str) -> Any:
    """`value` as JSON gives it back."""
    try:
        return json.loads(json.dumps(value, default=_scalar))
    except (TypeError, ValueError, RecursionError) as error:
        raise WfcastError(
            f"info[{name!r}] is a {type(value).__name__}, expected what JSON can hold"
        ) from error


def _scalar(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(type(value).__name__)


def load(path: str | os.PathLike[str], make: Callable[..., T]) -> T:
    """Read what `save` wrote; `make` is called as the constructor of `Operator` is."""
    where = repr(str(path))
    if Path(path).is_dir():
        raise CheckpointError(f"{where} is a folder, expected the file of a forecaster")
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
        _check(document, tensors)
        return make(**_arguments(document, tensors))
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


def _check(document: dict[str, Any], tensors: dict[str, Any]) -> None:
    if document["format"] != FORMAT:
        raise WfcastError(f"its format is {document['format']!r}, expected {FORMAT!r}")
    if document["version"] != VERSION:
        raise WfcastError(
            f"its format has version {document['version']}, this wfcast "
            f"({__version__}) reads version {VERSION}"
        )
    names = document["names"]
    if not names or len(set(names)) != len(names) or not all(isinstance(n, str) for n in names):
        raise WfcastError("names are not distinct strings")
    t, m, p = len(names), len(document["targets"]), len(document["inputs"])
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
    for key in ("base", "strategy"):  # which the first files do not have
        if not isinstance(document.get(key), str | None):
            raise WfcastError(f"{key} is no text")
    if not isinstance(document.get("info", {}), dict):
        raise WfcastError("info is no mapping")
    params = dict(document["params"])
    unknown = params.keys() - {"by", *PARAMETERS}
    if unknown:
        raise WfcastError(f"unknown parameters {sorted(unknown)}")
    check_by(params["by"])
    check_parameters(**{k: params[k] for k in PARAMETERS})


def _arguments(document: dict[str, Any], tensors: dict[str, Any]) -> dict[str, Any]:
    """What the constructor of `Operator` takes."""
    names = document["names"]
    params = dict(document["params"])
    n_threads = params.pop("n_threads")
    numbers = [key for key in _NUMBERS if key in tensors]
    info = document.get("info")
    if info is None:  # written by wfcast 0.1
        info = params if numbers else {}
        for key in numbers:
            kind = int if key == "n_passes" else float
            info[key] = {n: kind(v) for n, v in zip(names, tensors[key], strict=True)}
    return {
        "inputs": document["inputs"],
        "targets": document["targets"],
        "coef": dict(zip(names, tensors["coef"], strict=True)),
        "intercept": dict(zip(names, tensors["intercept"], strict=True)),
        "strategy": document.get("strategy") or ("ModelFarcaster" if numbers else "custom"),
        "tensors": {
            n: (tuple(int(d) for d in shape), str(dtype))
            for n, (shape, dtype) in document["tensors"].items()
        },
        "base": document.get("base"),
        "info": info,
        "n_threads": n_threads,
    }
