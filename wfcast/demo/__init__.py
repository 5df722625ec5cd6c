"""``wfcast demo``: forecast a DistilBERT in the middle of its training, on any machine.

The model is the real ``transformers`` one, the text is what CPython carries, and nothing is
downloaded. Modules: `text` (corpus, tokenizer, masks), `train` (recorded runs), `readout` (what the
model would be if training ended now), `evaluate` (forecast against what happened), `jump` (go on
from a forecast), `plots`, `words` (tables and verdict), `run` (the flow).
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

from .._errors import WfcastError
from .._progress import log

__all__ = ["run_demo"]

_NEEDED = ("torch", "transformers", "tokenizers", "matplotlib")


def run_demo(
    size: str = "small",
    out: str | os.PathLike[str] = "wfcast-demo",
    *,
    steps: int | None = None,
    seed: int = 0,
    threads: int | None = None,
    overwrite: bool = False,
) -> tuple[dict[str, Any], str]:
    """Run the demo.

    Parameters
    ----------
    size : {"tiny", "small", "base"}
        tiny: seconds; small: about two minutes on two cores; base: the 66M DistilBERT, for a GPU.
    out : path
        The folder to fill: ``run-*/step-*.safetensors``, ``forecasts/``, ``report.json``,
        ``readout.png``, ``forecast.png``. It must be new, empty, or filled by an earlier demo.
    steps : int, optional
        The length of the recorded runs; the size's own by default.
    seed : int
        The fresh run's; the siblings take the numbers that follow.
    threads : int, optional
        CPU threads, by default what suits the size.
    overwrite : bool
        Whether the results of an earlier demo in that folder are replaced.

    Returns
    -------
    report : dict
        What ``report.json`` holds.
    text : str
        The tables and the verdict.

    Raises
    ------
    WfcastError
        A package of the extra "demo" is missing, `steps` is too small, or the folder
        holds other things, or results that `overwrite` does not give up.
    """
    # before transformers is imported: it reads these once
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    missing = []
    for name in _NEEDED:
        try:
            importlib.import_module(name)
        except ImportError:
            missing.append(name)
    if missing:
        raise WfcastError(
            f"the demo needs {', '.join(missing)}, which this Python cannot import "
            "(the extra 'demo' of wfcast)"
        )
    log("loading torch and transformers, and training a tokenizer on Python's own text")
    from .run import run

    return run(size, Path(out), steps=steps, seed=seed, threads=threads, overwrite=overwrite)
