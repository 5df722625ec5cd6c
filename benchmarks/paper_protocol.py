"""The paper's synthetic protocol: test error by step of every variant, and exact fit against Adam.

    python benchmarks/paper_protocol.py

200 runs per data set, split 100 / 50 / 50 into training, validation and test; steps 0..20 are
observed, 21..200 forecast at once; five data sets of each kind (seeds 1..5). The data sets are
described in ``paper_data.py``.
"""

from __future__ import annotations

import time
import warnings
from typing import Any

import adam
import common
import numpy as np
import numpy.typing as npt
from common import Target
from paper_data import DATA_SETS, trajectories

import wfcast

Array = npt.NDArray[Any]

NAME = "paper_protocol"
LAST, END = 20, 200
REPORTED = tuple(range(40, END + 1, 20))
BETA = 1e-6
SPLIT = (100, 150, 200)
VARIANTS = {
    "LFD-2": (0, LAST),
    "LFL": (LAST,),
    "LFS": (0, 8, 14, LAST),
    "LFN": tuple(range(LAST + 1)),
}
TARGETS = tuple(range(LAST + 1, END + 1))


def rows(runs: Array, steps: tuple[int, ...]) -> Array:
    """(runs, weights, steps) -> (rows, chosen steps), one row per scalar weight."""
    return np.ascontiguousarray(runs[:, :, list(steps)].reshape(-1, len(steps)))


def ready_made(mf: wfcast.ModelFarcaster, runs: Array, steps: tuple[int, ...]) -> Array:
    """A ready-made operator's forecast of all targets, (rows, m)."""
    given = {s: {"w": rows(runs, (s,))[:, 0]} for s in steps}
    return np.stack([mf.predict(given, step=t)["w"] for t in TARGETS], axis=1)


def run(name: str, seed: int, with_adam: bool, epochs: int, threads: int) -> dict[str, Any]:
    """One data set: every variant's test error by step, and the objectives."""
    paths = trajectories(name, seed)
    train, validation, test = (paths[a:b] for a, b in zip((0, *SPLIT[:-1]), SPLIT, strict=True))
    truth = rows(test, TARGETS)
    y = rows(train, TARGETS)
    groups = np.repeat(np.arange(len(train)), train.shape[1])
    limits = np.abs(train[:, :, 1] - train[:, :, 0]).sum(axis=1)
    errors: dict[str, list[float]] = {}
    fits: dict[str, dict[str, float]] = {}

    def note(method: str, forecast: Array) -> None:
        at = [TARGETS.index(s) for s in REPORTED]
        errors[method] = ((forecast - truth)[:, at] ** 2).mean(axis=0).tolist()

    for method, steps in VARIANTS.items():
        x = rows(train, steps)
        f = wfcast.Farcaster(beta=BETA, n_threads=threads)
        start = time.perf_counter()
        f.fit(x, y, groups=groups, first_update=limits)
        fits[method] = {
            "seconds": time.perf_counter() - start,
            "objective": adam.objective(x, y, f.coef_, f.intercept_, groups, limits, BETA),
            "dual_gap": f.dual_gap_,
            "passes": f.n_passes_,
        }
        note(method, f.predict(rows(test, steps)))
    steps = VARIANTS["LFD-2"]
    f = wfcast.Farcaster(loss="squared_error", n_threads=threads).fit(rows(train, steps), y)
    note("LFD-2, least squares", f.predict(rows(test, steps)))
    for method, steps in (("line (0, n)", (0, LAST)), ("line (0..n)", VARIANTS["LFN"])):
        note(method, ready_made(wfcast.linear_trend(steps, TARGETS), test, steps))
    note("persistence", ready_made(wfcast.persistence((LAST,), TARGETS), test, (LAST,)))

    result: dict[str, Any] = {"data_set": name, "seed": seed, "mse": errors, "fits": fits}
    if with_adam:
        steps = VARIANTS["LFD-2"]
        x = rows(train, steps)
        held_out = (rows(validation, steps), rows(validation, TARGETS))
        start = time.perf_counter()
        got = adam.train(x, y, groups, limits, BETA, held_out, epochs=epochs, seed=seed)
        result["adam"] = {
            "seconds": time.perf_counter() - start,
            "objective": adam.objective(x, y, got.coef, got.intercept, groups, limits, BETA),
            "least_objective": got.least,
            "epochs": got.epochs,
        }
        note("LFD-2 by Adam", rows(test, steps) @ got.coef.T + got.intercept)
    return result


def error_table(results: list[dict[str, Any]]) -> str:
    """Mean and standard deviation of the test error over the seeds, by step."""
    methods = list(results[0]["mse"])
    found = np.array([[r["mse"][k] for r in results] for k in methods])
    best = found.mean(axis=1).argmin(axis=0)
    lines = []
    for i, method in enumerate(methods):
        mean, deviation = found[i].mean(axis=0), found[i].std(axis=0)
        cells = [
            f"{a:.2e}±{b:.0e}{'*' if best[j] == i else ' '}"
            for j, (a, b) in enumerate(zip(mean, deviation, strict=True))
        ]
        lines.append([method, *cells])
    return common.table(["test MSE at step", *map(str, REPORTED)], lines)


def objective_table(results: list[dict[str, Any]]) -> str:
    """The training objective of LFD-2: exact, and by Adam."""
    lines = []
    for name in dict.fromkeys(r["data_set"] for r in results):
        group = [r for r in results if r["data_set"] == name]
        exact = np.array([r["fits"]["LFD-2"]["objective"] for r in group])
        kept = np.array([r["adam"]["objective"] for r in group])
        least = np.array([r["adam"]["least_objective"] for r in group])
        lines.append(
            [
                name,
                f"{exact.mean():.6e}",
                f"{kept.mean():.6e}",
                f"{(kept / exact).min():.6g}",
                f"{(kept / exact).max():.6g}",
                f"{(least / exact).min():.6g}",
                f"{max(r['fits']['LFD-2']['dual_gap'] for r in group):.1e}",
                common.seconds(common.median([r["fits"]["LFD-2"]["seconds"] for r in group])),
                common.seconds(common.median([r["adam"]["seconds"] for r in group])),
                f"{common.median([r['adam']['epochs'] for r in group]):g}",
            ]
        )
    header = [
        "training objective of LFD-2",
        "exact",
        "Adam",
        "least ratio",
        "most",
        "least, any epoch",
        "gap",
        "exact time",
        "Adam time",
        "epochs",
    ]
    return common.table(header, lines)


def targets(results: list[dict[str, Any]]) -> list[Target]:
    """Adam's objective over the exact one must be at least 1 everywhere."""
    kept = [r["adam"]["objective"] / r["fits"]["LFD-2"]["objective"] for r in results]
    least = [r["adam"]["least_objective"] / r["fits"]["LFD-2"]["objective"] for r in results]
    gaps = [f["dual_gap"] for r in results for f in r["fits"].values()]
    return [
        Target("training objective, least Adam / exact", min(kept), 1.0),
        Target("the same with the best epoch on training data", min(least), 1.0),
        Target("largest dual_gap_ of all fits", max(gaps), 1e-9, at_most=True),
    ]


def main() -> None:
    """Run all data sets, print the tables and the targets, write the JSON."""
    parser = common.parser(NAME, __doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=None, help="data sets of each kind (5)")
    parser.add_argument("--no-adam", action="store_true", help="leave out the Adam-trained LFD-2")
    parser.add_argument("--epochs", type=int, default=None, help="most epochs of Adam (2000)")
    options = parser.parse_args()
    seeds = options.seeds or (1 if options.quick else 5)
    epochs = options.epochs or (20 if options.quick else 2000)
    common.limit_threads(options.threads)
    info = common.machine()
    common.print_machine(info, options.threads)
    # The chosen columns may well be collinear: noiseless runs repeat themselves in time.
    warnings.simplefilter("ignore", wfcast.RankWarning)
    results = []
    for name in DATA_SETS:
        group = [
            run(name, seed, not options.no_adam, epochs, options.threads)
            for seed in range(1, seeds + 1)
        ]
        results += group
        print(f"{name}, mean±deviation over {seeds} data sets, * the least\n")
        print(error_table(group) + "\n", flush=True)
    goals = []
    if not options.no_adam:
        print(objective_table(results))
        goals = targets(results)
        common.print_targets(goals)
    common.write_json(
        options,
        NAME,
        {
            "machine": info,
            "beta": BETA,
            "steps": REPORTED,
            "results": results,
            "targets": [t.as_dict() for t in goals],
        },
    )


if __name__ == "__main__":
    main()
