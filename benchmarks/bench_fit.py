"""The exact L1 fit against scikit-learn, statsmodels, pyfixest and Adam, and alone to 66M rows.

    python benchmarks/bench_fit.py

Against the others all fits of one size run in turn in one process on the same float64 columns.
Alone, wfcast fits memory-mapped float32 files in a fresh process each, whose anonymous memory is
watched from outside.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import numpy as np
import optimiser_runs
from common import Target, median, number, seconds

NAME = "bench_fit"
STEPS = (0, 1, 500, 1000, 1500)
INPUTS, TARGETS = (0, 500), (1000, 1500)
PEER_ROWS = (30_000, 100_000, 1_000_000)
QUANTILE_REGRESSOR_ROWS = 100_000  # the largest size that it is given: minutes already
BETA = 1e-6


# ---- against the others -----------------------------------------------------------------------


def total_error(x: Any, y: Any, coef: Any, intercept: float) -> float:
    """sum |x.a + b - y| / N in float64."""
    return float(np.abs(np.asarray(x) @ coef + intercept - y).mean())


def peers(x: Any, y: Any, threads: int) -> dict[str, Callable[[], tuple[Any, float]]]:
    """Each fits and gives (coefficients, intercept); x (N, p) in Fortran order, y (N,)."""
    import pandas as pd
    import pyfixest
    import statsmodels.api as sm
    from sklearn.linear_model import QuantileRegressor

    import wfcast

    columns, target = list(x.T), [y]
    design = np.column_stack([x, np.ones(len(x))])
    names = [f"x{k}" for k in range(x.shape[1])]
    frame = pd.DataFrame({**{n: x[:, k] for k, n in enumerate(names)}, "y": y})
    formula = "y ~ " + " + ".join(names)

    def exact() -> tuple[Any, float]:
        f = wfcast.Farcaster(n_threads=threads).fit(columns, target)
        return f.coef_[0], float(f.intercept_[0])

    def scikit() -> tuple[Any, float]:
        q = QuantileRegressor(quantile=0.5, alpha=0, solver="highs").fit(x, y)
        return q.coef_, float(q.intercept_)

    def irls() -> tuple[Any, float]:
        q = sm.QuantReg(y, design).fit(q=0.5)
        return q.params[:-1], float(q.params[-1])

    def frisch_newton(method: str) -> Callable[[], tuple[Any, float]]:
        def call() -> tuple[Any, float]:
            q = pyfixest.quantreg(
                formula, frame, vcov="iid", quantile=0.5, method=method, store_data=False, seed=1
            )
            c = q.coef()
            return c[names].to_numpy(), float(c["Intercept"])

        return call

    found = {
        "wfcast": exact,
        "statsmodels QuantReg": irls,
        "pyfixest quantreg fn": frisch_newton("fn"),
        "pyfixest quantreg pfn": frisch_newton("pfn"),
    }
    if len(x) <= QUANTILE_REGRESSOR_ROWS:
        found["QuantileRegressor"] = scikit
    return found


def by_adam(x: Any, y: Any, epochs: int) -> tuple[Any, float]:
    """The paper's way; a tenth of the rows is the validation split, which F is not taken over."""
    import adam

    length = 100
    runs = len(x) // length
    order = np.random.default_rng(0).permutation(runs * length)
    limit = runs // 10 * length
    held, used = order[:limit], order[limit:]
    got = adam.train(
        x[used],
        y[used, None],
        np.repeat(np.arange(len(used) // length), length),
        np.zeros(len(used) // length),
        0.0,
        (x[held], y[held, None]),
        epochs=epochs,
        patience=10,
    )
    return got.coef[0], float(got.intercept[0])


def compare(rows: int, threads: int, repeats: int, epochs: int) -> dict[str, Any]:
    """All fits of one size."""
    import wfcast

    data = optimiser_runs.arrays(1, rows, (0, 500, 1000)).astype(np.float64)
    x, y = data[:2].T, data[2]
    f = wfcast.Farcaster(n_threads=threads).fit(list(data[:2]), [y])
    optimum = total_error(x, y, f.coef_[0], float(f.intercept_[0]))
    contestants = peers(x, y, threads)
    answers = {}
    firsts = {}
    for name, call in contestants.items():
        start = time.perf_counter()
        answers[name] = call()
        firsts[name] = time.perf_counter() - start
    slow = {k: v for k, v in firsts.items() if v > 20}
    times = common.interleaved(
        {k: v for k, v in contestants.items() if k not in slow}, repeats=repeats, budget=60
    )
    start = time.perf_counter()
    answers["Adam (torch)"] = by_adam(x, y, epochs)
    slow["Adam (torch)"] = time.perf_counter() - start
    base = median(times["wfcast"])
    lines = {
        name: {
            "seconds": median(times[name]) if name in times else slow[name],
            "times": len(times.get(name, [0])),
            "wfcast_faster_by": common.ratio(times, name, "wfcast")
            if name in times
            else slow[name] / base,
            "excess": total_error(x, y, *answer) / optimum - 1,
        }
        for name, answer in answers.items()
    }
    return {
        "rows": rows,
        "optimum": optimum,
        "dual_gap": f.dual_gap_,
        "n_passes": f.n_passes_,
        "fits": lines,
    }


# ---- alone, from files ------------------------------------------------------------------------


def child(task: dict[str, Any]) -> None:
    """In a fresh process: fit mapped files, and print what came of it as JSON."""
    import wfcast
    from wfcast import _core

    threads = task["threads"]
    runs = [
        {int(s): np.load(path, mmap_mode="r") for s, path in run.items()} for run in task["runs"]
    ]
    common_arguments = {"n_threads": threads}
    print("ready", anonymous_mib(os.getpid()), flush=True)
    sys.stdin.readline()
    took = []
    result: dict[str, Any] = {}
    for _ in range(task["repeats"]):
        start = time.perf_counter()
        if task["kind"] == "hinge":
            mf = wfcast.ModelFarcaster(INPUTS, TARGETS, by="all", beta=BETA, **common_arguments)
            mf.fit([{s: {"w": a} for s, a in run.items()} for run in runs])
            result = {
                "objective": mf.objective_["*"],
                "dual_gap": mf.dual_gap_["*"],
                "n_passes": mf.n_passes_["*"],
            }
        else:
            run = runs[0]
            x = [run[s] for s in INPUTS]
            y = [run[s] for s in TARGETS[: task["targets"]]]
            f = wfcast.Farcaster(**common_arguments).fit(x, y)
            result = {
                "objective": f.objective_,
                "dual_gap": f.dual_gap_,
                "n_passes": f.n_passes_,
                "coef": f.coef_.tolist(),
            }
        took.append(time.perf_counter() - start)
    print("done", flush=True)
    sys.stdin.readline()
    size = 16 << 20
    floor = [np.ones(size, np.float32) for _ in range(3)]
    triads = common.interleaved({"triad": lambda: _core.triad(*floor, 2.0, threads)}, repeats=9)
    print(json.dumps({**result, "seconds": took, "bandwidth": 12 * size / median(triads["triad"])}))


def anonymous_mib(pid: int) -> float:
    """Resident memory of a process that no file backs, in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    return 0.0


def alone(
    folder: Path, kind: str, rows: int, targets: int, threads: int, repeats: int
) -> dict[str, Any]:
    """Fit `rows` weights from files in a fresh process; watch its memory every 2 ms."""
    n_runs = 2 if kind == "hinge" else 1
    runs = [
        {
            str(s): str(p)
            for s, p in optimiser_runs.files(folder, seed, rows // n_runs, STEPS).items()
        }
        for seed in range(1, n_runs + 1)
    ]
    task = {"kind": kind, "runs": runs, "targets": targets, "threads": threads, "repeats": repeats}
    command = [sys.executable, __file__, "--child", json.dumps(task)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    base = float(process.stdout.readline().split()[1])
    process.stdin.write("go\n")
    process.stdin.flush()
    peak = base
    while not select.select([process.stdout], [], [], 0.002)[0]:
        peak = max(peak, anonymous_mib(process.pid))
    process.stdout.readline()
    answer, _ = process.communicate("go\n")
    for run in runs:
        for path in run.values():
            Path(path).unlink()
    if process.returncode:
        raise SystemExit(f"the fit of {rows} rows ({kind}) failed")
    result: dict[str, Any] = json.loads(answer)
    mapped = 4 * rows * (len(INPUTS) + targets)
    took = median(result["seconds"])
    return {
        "kind": kind,
        "rows": rows,
        "p": len(INPUTS),
        "m": targets,
        "mapped_mib": mapped / 2**20,
        "anonymous_before_mib": base,
        "anonymous_peak_mib": peak,
        "of_floor": took / (result["n_passes"] * mapped / result["bandwidth"]),
        **result,
        "seconds": took,
        "all_seconds": result["seconds"],
    }


# ---- the whole --------------------------------------------------------------------------------


def compare_table(results: list[dict[str, Any]]) -> str:
    """One line per size and method."""
    lines = []
    for r in results:
        for name, fit in r["fits"].items():
            lines.append(
                [
                    name,
                    f"{r['rows']:,}",
                    seconds(fit["seconds"]),
                    number(fit["wfcast_faster_by"], ".1f"),
                    f"{fit['excess']:+.1e}",
                    f"{r['dual_gap']:.1e}" if name == "wfcast" else "-",
                    str(r["n_passes"]) if name == "wfcast" else "-",
                    str(fit["times"]),
                ]
            )
    header = ["fit", "rows", "time", "x wfcast", "F/F* - 1", "dual_gap_", "passes", "times"]
    return common.table(header, lines)


def alone_table(results: list[dict[str, Any]]) -> str:
    """One line per size and kind."""
    lines = [
        [
            r["kind"],
            f"{r['rows']:,}",
            str(r["m"]),
            seconds(r["seconds"]),
            number(r["of_floor"], ".1f"),
            f"{r['dual_gap']:.1e}",
            str(r["n_passes"]),
            number(r["mapped_mib"], ".0f"),
            number(r["anonymous_before_mib"], ".0f"),
            number(r["anonymous_peak_mib"], ".0f"),
        ]
        for r in results
    ]
    header = [
        "wfcast from files",
        "rows",
        "m",
        "time",
        "x floor",
        "dual_gap_",
        "passes",
        "mapped MiB",
        "before",
        "peak MiB",
    ]
    return common.table(header, lines)


def goals(compared: list[dict[str, Any]], alones: list[dict[str, Any]]) -> list[Target]:
    """What is wanted."""
    found = []
    for r in compared:
        fits, size = r["fits"], f"{r['rows']:,} rows"
        others = {k: v for k, v in fits.items() if k != "wfcast"}
        found.append(Target(f"dual_gap_ at {size}", r["dual_gap"], 1e-9, at_most=True))
        if r["rows"] == PEER_ROWS[0]:
            value = fits["QuantileRegressor"]["wfcast_faster_by"]
            found.append(Target(f"faster than QuantileRegressor, {size}", value, 100, unit="x"))
        if r["rows"] == PEER_ROWS[-1]:
            best = min(others, key=lambda k: others[k]["wfcast_faster_by"])
            value = others[best]["wfcast_faster_by"]
            found.append(
                Target(f"faster than the best other ({best}), {size}", value, 10, unit="x")
            )
    passes = [r["n_passes"] for r in compared + alones]
    found.append(Target("passes over the data, most of all fits", max(passes), 4, at_most=True))
    if alones:
        gap = max(r["dual_gap"] for r in alones)
        found.append(Target("dual_gap_ from files, largest", gap, 1e-9, at_most=True))
        largest = max(r["rows"] for r in alones)
        for r in alones:
            if r["rows"] == largest:
                name = f"peak anonymous memory, {largest:,} rows, {r['kind']}, m={r['m']}"
                found.append(Target(name, r["anonymous_peak_mib"], 512, at_most=True, unit="MiB"))
    return found


def main() -> None:
    """Run both parts, print the tables and the targets, write the JSON."""
    parser = common.parser(NAME, __doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7, help="rounds of each comparison")
    parser.add_argument("--part", choices=("all", "peers", "files"), default="all")
    parser.add_argument("--folder", type=Path, default=None, help="where temporary files go (4 GB)")
    parser.add_argument("--child", default=None, help="used by the benchmark itself")
    options = parser.parse_args()
    if options.child:
        child(json.loads(options.child))
        return
    common.limit_threads(options.threads)
    warnings.simplefilter("ignore", FutureWarning)  # pyfixest calls its quantreg experimental
    info = common.machine()
    common.print_machine(info, options.threads)
    compared: list[dict[str, Any]] = []
    alones: list[dict[str, Any]] = []
    if options.part != "files":
        for rows in (3_000,) if options.quick else PEER_ROWS:
            epochs = 3 if options.quick else 200
            compared.append(compare(rows, options.threads, options.repeats, epochs))
        print(compare_table(compared) + "\n", flush=True)
    if options.part != "peers":
        sizes = (100_000,) if options.quick else (1_000_000, 10_000_000, 66_000_000)
        for rows in sizes:
            for kind, targets in (("plain", 1), ("plain", 2), ("hinge", 2)):
                with tempfile.TemporaryDirectory(dir=options.folder) as folder:
                    where = Path(folder)
                    alones.append(alone(where, kind, rows, targets, options.threads, 3))
        print(alone_table(alones), flush=True)
    wanted = goals(compared, alones)
    common.print_targets(wanted)
    common.write_json(
        options,
        NAME,
        {
            "machine": info,
            "threads": options.threads,
            "peers": compared,
            "files": alones,
            "targets": [t.as_dict() for t in wanted],
        },
    )


if __name__ == "__main__":
    main()
