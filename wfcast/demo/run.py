"""The demo's flow: text, recorded runs with a readout, fit, forecasts, jump, report."""

from __future__ import annotations

import datetime
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from .. import ModelFarcaster, __version__, _core
from .._atomic import atomic_file
from .._errors import WfcastError
from .._kinds import kind_of
from .._progress import FitBar, log
from ..checkpoint import open_checkpoint
from ..model import pass_sizes
from ..report import FarcasterReport
from .evaluate import evaluate, forecast_file
from .jump import jump
from .plots import plot_forecast, plot_readout
from .readout import Readout
from .text import build_corpus
from .train import SIZES, Run, Size, Trainer, record
from .words import tables, verdict

__all__ = ["run"]

BETA = 1e-6  # the paper's
MARK = ".wfcast-demo"
REPORT = "report.json"


class _Clock:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.begun = time.perf_counter()
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - begun

    def total(self) -> float:
        return time.perf_counter() - self.begun


def run(
    size_name: str,
    out: Path,
    *,
    steps: int | None,
    seed: int,
    threads: int | None,
    overwrite: bool,
) -> tuple[dict[str, Any], str]:
    """See :func:`wfcast.demo.run_demo`."""
    size = SIZES[size_name] if steps is None else SIZES[size_name].scaled(steps)
    _prepare(out, overwrite)
    device = "cuda" if size_name == "base" and torch.cuda.is_available() else "cpu"
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    n_threads = threads or min(size.threads or cpus, cpus)
    torch.set_num_threads(n_threads)
    if size_name == "base" and device == "cpu":
        log("size base trains 66M parameters; without a CUDA device that takes many hours")
    if device == "cuda":
        torch.set_float32_matmul_precision("high")
    clock = _Clock()

    with clock.phase("text and tokenizer"):
        corpus, tokenizer = build_corpus(
            size.vocab_size,
            size.length,
            docstrings=size.docstrings,
            held_out_rows=size.held_out_rows,
        )
        with atomic_file(out / "tokenizer.json") as file:
            file.write(tokenizer.to_str().encode())
    log(
        f"text: {sum(corpus.n_documents)} documents, {len(corpus.train):,} training and "
        f"{len(corpus.held_out):,} held-out sequences of {size.length} tokens"
    )

    with clock.phase("recording"):
        siblings = []
        for k in range(1, size.siblings + 1):
            sibling = Trainer(size, corpus, seed + k, device)
            siblings.append(record(sibling, f"run-{k}", out, size.targets[-1], sparse=True)[0])
        trainer = Trainer(size, corpus, seed, device)
        readout = Readout(trainer, size.targets[-1])
        fresh, state = record(trainer, "run-fresh", out, size.last, after_step=readout.after_step)

    with clock.phase("fit"):
        farcaster = _fit(size, siblings, n_threads)
        farcaster.save(out / "farcaster.safetensors")
    with clock.phase("forecast and compare"):
        horizons = evaluate(farcaster, fresh, trainer, out, n_threads)
    with clock.phase("jump"):
        jumped = jump(trainer, fresh, forecast_file(out, "forecast", size.jump_to), state)

    report: dict[str, Any] = {
        "wfcast": __version__,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "size": size_name,
        "settings": size.asdict(),
        "seeds": {"fresh": seed, "siblings": [run.seed for run in siblings]},
        "machine": _machine(n_threads, device),
        "model": _model(trainer),
        "text": corpus.summary(),
        "runs": [_run(r, "sibling", out) for r in siblings] + [_run(fresh, "fresh", out)],
        "fit": {
            **FarcasterReport(farcaster.operator_, "farcaster.safetensors").to_dict(),
            "file": "farcaster.safetensors",
            "largest_dual_gap": max(farcaster.dual_gap_.values()),
        },
        "readout": readout.report(),
        "observed_loss": dict(fresh.curve)[size.observed],
        "horizons": horizons,
        "jump": jumped,
    }
    report["verdict"] = verdict(report)
    with clock.phase("plot"):
        plot_readout(report, out / "readout.png")
        plot_forecast(report, out / "forecast.png")
    report["seconds"] = {**clock.seconds, "total": clock.total()}
    report["out"] = str(out)
    with atomic_file(out / REPORT) as file:
        file.write(json.dumps(report, indent=1, allow_nan=False).encode() + b"\n")
    return report, tables(report)


def _prepare(out: Path, overwrite: bool) -> None:
    """Make the folder; refuse one that holds anything but an earlier demo, or its results."""
    if out.exists() and not out.is_dir():
        raise WfcastError(f"{str(out)!r} is a file, expected a folder to write to")
    if out.is_dir() and any(out.iterdir()) and not (out / MARK).exists():
        raise WfcastError(
            f"the folder {str(out)!r} holds other things than a demo; name a new one with --out"
        )
    if (out / REPORT).exists() and not overwrite:
        raise WfcastError(
            f"the folder {str(out)!r} holds the results of an earlier demo; --overwrite replaces "
            "them, --out names another folder"
        )
    out.mkdir(parents=True, exist_ok=True)
    (out / MARK).touch()
    for pattern in ("run-*/step-*.safetensors", "forecasts/*.safetensors", "*.safetensors"):
        for old in out.glob(pattern):
            old.unlink()
    for name in (REPORT, "readout.png", "forecast.png", "tokenizer.json"):
        (out / name).unlink(missing_ok=True)


def _fit(size: Size, siblings: list[Run], n_threads: int) -> ModelFarcaster:
    farcaster = ModelFarcaster(
        inputs=(0, size.observed),
        targets=size.targets,
        by="tensor",
        loss="absolute_error",
        beta=BETA,
        n_threads=n_threads,
    )
    columns = 1 + 1 + len(size.targets)
    reference = open_checkpoint(siblings[0].files[0])
    with FitBar(pass_sizes(reference, "tensor", columns, len(siblings)), "fit") as progress:
        return farcaster.fit([run.files for run in siblings], progress=progress)


def _run(run: Run, role: str, out: Path) -> dict[str, Any]:
    return {
        "name": run.name,
        "role": role,
        "seed": run.seed,
        "files": {str(step): str(path.relative_to(out)) for step, path in run.files.items()},
        "held_out_loss": [list(point) for point in run.curve],
        "seconds": run.seconds,
    }


def _machine(n_threads: int, device: str) -> dict[str, Any]:
    return {
        "platform": platform.platform(),
        "processor": platform.machine(),
        "cpus": os.cpu_count(),
        "threads": n_threads,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "core": _core.config(),
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def _model(trainer: Trainer) -> dict[str, Any]:
    kinds: dict[str, int] = {}
    for name, parameter in trainer.model.named_parameters():
        kinds[kind_of(name)] = kinds.get(kind_of(name), 0) + parameter.numel()
    return {
        "class": type(trainer.model).__name__,
        "parameters": sum(kinds.values()),
        "kinds": kinds,
        "config": {
            k: v
            for k, v in trainer.model.config.to_dict().items()
            if isinstance(v, int | float | str | bool | None)
        },
    }
