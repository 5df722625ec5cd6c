"""What the benchmarks share: the machine in words, interleaved timing, targets, tables, JSON.

Every ratio is taken in one process: the contestants run in turn (A B C A B C ...), so that whatever
else the machine does meets all of them, and a ratio is the median over the rounds of the ratio
within one round.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from wfcast._terminal import table  # noqa: F401  for the programs that import this module

RESULTS = Path(__file__).resolve().parent / "results"

PACKAGES = (
    "numpy",
    "torch",
    "ml_dtypes",
    "scikit-learn",
    "scipy",
    "statsmodels",
    "pyfixest",
)


# ---- the machine ------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """Processor, memory and versions: what a figure has to be quoted with, and nothing else."""
    import wfcast
    from wfcast import _core

    config = _core.config()
    versions = {"python": platform.python_version(), "wfcast": wfcast.__version__}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": _gpu_name(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "last_level_cache_mib": _cache_mib(),
        "system": f"{platform.system()} {platform.machine()}",
        "isa": config["isa"],
        "blas": config["blas"],
        "versions": versions,
        "load_before": round(os.getloadavg()[0], 2),
    }


def _cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or "unknown"
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.machine()


def _gpu_name() -> str | None:
    try:
        import torch
    except ModuleNotFoundError:
        return None
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _cache_mib() -> float | None:
    try:
        size = os.sysconf("SC_LEVEL3_CACHE_SIZE")
    except (ValueError, OSError):
        return None
    return round(size / 2**20, 1) if size > 0 else None


def print_machine(info: Mapping[str, Any], threads: int) -> None:
    """The machine, in a few lines."""
    cache = (
        f", {info['last_level_cache_mib']:g} MiB last cache" if info["last_level_cache_mib"] else ""
    )
    print(
        f"{info['cpu']}, {info['cores']} cores ({threads} threads used), "
        f"{info['memory_gib']:g} GiB{cache}, {info['isa']}, load {info['load_before']:g}"
        + (f", {info['gpu']}" if info["gpu"] else "")
    )
    print(", ".join(f"{name} {version}" for name, version in info["versions"].items()))
    if info["load_before"] > 0.5:
        print("NOTE: something else is running on this machine; figures may suffer from it.")
    print(flush=True)


# ---- timing -----------------------------------------------------------------------------------


Times = dict[str, list[float]]


def interleaved(
    contestants: Mapping[str, Callable[[], object]],
    *,
    repeats: int,
    least: int = 3,
    budget: float = float("inf"),
    warm_up: bool = True,
    twice: bool = False,
) -> Times:
    """Seconds of each contestant, round by round: A B C A B C ...

    Parameters
    ----------
    contestants : mapping of name to callable
    repeats : int
        Rounds.
    least : int
        Rounds that are run whatever they cost.
    budget : float
        Seconds after which no further round is begun.
    warm_up : bool
        Whether a round that is not counted comes first.
    twice : bool
        Whether each call that counts follows one of its own kind that does not: then nobody pays
        for what another one left in the caches, still to be written.

    Returns
    -------
    dict of name to list of float
    """
    times: Times = {name: [] for name in contestants}
    begun = time.perf_counter()
    if warm_up:
        for call in contestants.values():
            call()
    for done in range(repeats):
        if done >= least and time.perf_counter() - begun > budget:
            break
        for name, call in contestants.items():
            if twice:
                call()
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return times


def median(values: Sequence[float]) -> float:
    """The median."""
    return statistics.median(values)


def ratio(times: Times, over: str, under: str) -> float:
    """How much faster `under` is than `over`: the median over the rounds of their times' ratio."""
    return statistics.median(a / b for a, b in zip(times[over], times[under], strict=True))


# ---- targets ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Target:
    """A figure with what it is wanted to be.

    Attributes
    ----------
    name : str
    value : float
        What was measured.
    wanted : float
    at_most : bool
        Whether less is better.
    unit : str
    """

    name: str
    value: float
    wanted: float
    at_most: bool = False
    unit: str = ""

    @property
    def reached(self) -> bool:
        """Whether the figure is as wanted."""
        return self.value <= self.wanted if self.at_most else self.value >= self.wanted

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "reached": self.reached}

    def __str__(self) -> str:
        sign = "<=" if self.at_most else ">="
        unit = f" {self.unit}" if self.unit else ""
        if self.wanted and self.value and math.isfinite(self.value):
            better = self.wanted / self.value if self.at_most else self.value / self.wanted
            margin = f" by a factor of {better if self.reached else 1 / better:.4g}"
        else:
            margin = ""
        verdict = ("reached" if self.reached else "MISSED") + margin
        return (
            f"{self.name}: {self.value:.5g}{unit} (wanted {sign} {self.wanted:g}{unit}): {verdict}"
        )


def print_targets(targets: Iterable[Target]) -> None:
    """One line each."""
    print("\nTargets")
    for target in targets:
        print("  " + str(target))


# ---- output -----------------------------------------------------------------------------------


def number(value: float | None, form: str = ".3g", missing: str = "-") -> str:
    """A number for a table; `missing` for None."""
    return missing if value is None else format(value, form)


def seconds(value: float | None) -> str:
    """A duration for a table."""
    if value is None:
        return "-"
    return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    options = argparse.ArgumentParser(prog=f"{name}.py", description=description)
    options.add_argument("--quick", action="store_true", help="small sizes: does it run at all")
    options.add_argument(
        "--threads",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="threads for wfcast, torch and BLAS alike (default: all CPUs)",
    )
    options.add_argument(
        "--out",
        type=Path,
        default=None,
        help=f"where to write the JSON (default: benchmarks/results/{name}.json, "
        f"with --quick {name}-quick.json)",
    )
    return options


def limit_threads(n: int) -> None:
    """Let torch and every BLAS and OpenMP library that is loaded use `n` threads."""
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(n)
    threadpool_limits(n)


def finite(value: Any) -> Any:
    """The same with None for what JSON has no number for."""
    if isinstance(value, Mapping):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(options: argparse.Namespace, name: str, payload: Mapping[str, Any]) -> None:
    """Write the results, and say where."""
    path = options.out or RESULTS / f"{name}{'-quick' if options.quick else ''}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(finite(payload), indent=1, allow_nan=False)
    text = re.sub(
        r"\[[^][{}]*\]", lambda found: " ".join(found[0].split()), text
    )  # rows of numbers
    path.write_text(text + "\n", encoding="utf-8")
    shown = path if options.out else path.relative_to(RESULTS.parent.parent)
    print(f"\nwritten: {shown}", file=sys.stderr)
