"""Training with jumps beside the same training without: Farcasting and its rivals.

    python benchmarks/bench_farcasting.py [digits | characters | distilbert-mlm | ...]
    python benchmarks/bench_farcasting.py --sweep [...]
    python benchmarks/bench_farcasting.py --overhead

See `README.md` in this folder for what is compared and how to read the tables.
"""

from __future__ import annotations

import itertools
import math
import multiprocessing
import os
import statistics
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
from common import RESULTS, Target, machine, parser, print_machine, print_targets, table, write_json
from farcasting_overhead import overhead
from farcasting_runs import (
    JUDGED,
    JUMPING,
    METHODS,
    Spec,
    lowest,
    reached,
    run_all,
    saved,
    task_named,
)
from training_tasks import TASKS, Task

NAME = "bench_farcasting"
LINES = ("line, 1 spacing", "line, 3 spacings")
SWEPT = ("constant", "linear", "tail")
PER_GPU = 5  # runs at a time


def spread(values: Sequence[float], form: str) -> str:
    """Median and range."""
    middle = statistics.median(values)
    return f"{middle:{form}} ({min(values):{form}} to {max(values):{form}})"


def compare(method: str, runs: Sequence[Any], controls: Sequence[Any]) -> dict[str, Any]:
    """A method beside its controls, seed by seed."""
    pairs = [(c["curve"], r["curve"]) for c, r in zip(controls, runs, strict=True)]
    row: dict[str, Any] = {
        "method": method,
        "lowest": [lowest(its) for _, its in pairs],
        "loss_ratio": [lowest(its) / lowest(own) for own, its in pairs],
        "steps_ratio": [
            reached(its, lowest(own)) / reached(own, lowest(own)) for own, its in pairs
        ],
        "paired": [saved(own, its) for own, its in pairs],
    }
    if method in JUMPING:
        logs = [run["farcasting"] for run in runs]
        row["jumps"] = sum(int(log["farcasting/jumps"]) for log in logs)
        row["taken_back"] = sum(int(log["farcasting/rolled_back"]) for log in logs)
        if method in JUDGED:
            claims = [run["saved"] for run in runs]
            row["claimed"] = [claim[0] for claim in claims]
            row["within"] = math.hypot(*((high - low) / 2 for _, low, high in claims))
        row["stopped"] = [log["stopped"] for log in logs]
    return row


def study(task: Task, args: Any, steps: int, pool: ProcessPoolExecutor) -> dict[str, Any]:
    """All runs of a task, at its untuned and at its best recipe."""
    recipes = {"untuned": ("constant", task.untuned), "best": task.best}
    methods = [m for m in METHODS if m == "control" or m in args.methods]
    if task.device != "cpu" and "nowcaster" in methods:
        methods.remove("nowcaster")  # its states are too much to keep on a GPU
    specs = {
        (recipe, method): [Spec(task.name, k, *cell, method, steps) for k in range(args.seeds)]
        for recipe, cell in recipes.items()
        for method in methods
    }
    found = run_all(itertools.chain(*specs.values()), pool)
    runs = {key: [found[spec] for spec in group] for key, group in specs.items()}
    rows = {
        recipe: [compare(m, runs[recipe, m], runs[recipe, "control"]) for m in methods]
        for recipe in recipes
    }
    names = {recipe: f"{kind} {rate:g}" for recipe, (kind, rate) in recipes.items()}
    draw(task.name, {(names[r], m): group for (r, m), group in runs.items()})
    return {
        "task": task.name,
        "steps": steps,
        "recipes": names,
        "rows": rows,
        "runs": [
            {**run["spec"], "curve": run["curve"]} for group in runs.values() for run in group
        ],
    }


def show(found: dict[str, Any], seeds: int) -> str:
    """The table of a task."""
    rows = []
    for recipe, label in found["recipes"].items():
        for row in found["rows"][recipe]:
            jumps = f"{row['jumps']}, {row['taken_back']}" if "jumps" in row else ""
            claim = f"{sum(row['claimed']):.0f} +- {row['within']:.0f}" if "claimed" in row else ""
            rows.append(
                [
                    f"{recipe}, {label}",
                    row["method"],
                    spread(row["lowest"], ".4f"),
                    spread(row["loss_ratio"], ".3f"),
                    spread(row["steps_ratio"], ".2f"),
                    jumps,
                    claim,
                    f"{sum(row['paired']):.0f}",
                ]
            )
    header = (
        "recipe",
        "",
        "lowest held-out loss",
        "over the control's",
        "steps over the control's",
        "jumps, back",
        "claimed",
        "paired",
    )
    title = f"{found['task']}: {found['steps']} steps, {seeds} seeds; medians (ranges), sums"
    return f"{title}\n{table(header, rows)}\n"


def targets(task: Task, rows: dict[str, list[dict[str, Any]]]) -> list[Target]:
    """What was to be reached on a task, of the methods that were run."""
    of = {(recipe, row["method"]): row for recipe, group in rows.items() for row in group}
    steps = {key: statistics.median(row["steps_ratio"]) for key, row in of.items()}
    result: list[Target] = []

    def want(label: str, value: float, limit: float) -> None:
        result.append(Target(f"{task.name}, {label}", value, limit, at_most=True))

    for method in ("Farcasting", "Farcasting, held-out judge", "Farcasting, unjudged"):
        if ("untuned", method) not in of:
            continue
        usual, best = of["untuned", method], of["best", method]
        limit = 0.65 if task.fine_tuning else 0.75
        want(f"{method}: steps, untuned", steps["untuned", method], limit)
        lines = [steps["untuned", line] for line in LINES if ("untuned", line) in of]
        if lines:
            want(
                f"{method}: steps, beside the lines', untuned", steps["untuned", method], min(lines)
            )
        if task.fine_tuning:
            want(f"{method}: steps, best", steps["best", method], 0.85)
        else:
            want(f"{method}: loss, best, median", statistics.median(best["loss_ratio"]), 1.005)
            want(f"{method}: loss, best, worst seed", max(best["loss_ratio"]), 1.015)
    if ("untuned", "persistence") in of:
        usual, best = of["untuned", "persistence"], of["best", "persistence"]
        jumps = usual["jumps"] + best["jumps"]
        back = usual["taken_back"] + best["taken_back"]
        want(f"persistence: taken back of {jumps} jumps", back / max(jumps, 1), 0.05)
        claimed = sum(usual["claimed"]) + sum(best["claimed"])
        within = math.hypot(usual["within"], best["within"])
        want(f"persistence: steps claimed, {claimed:.0f}, off 0", abs(claimed), within)
    return result


def claims(studies: Sequence[dict[str, Any]]) -> Target | None:
    """Steps said to be saved, by held-out losses, beside those of paired runs, over all of them."""
    rows = [row for found in studies for group in found["rows"].values() for row in group]
    rows = [row for row in rows if row["method"] == "Farcasting, held-out judge"]
    claimed, paired = (sum(sum(row[key]) for row in rows) for key in ("claimed", "paired"))
    if not rows:
        return None
    off = max(claimed / paired, paired / claimed) if claimed * paired > 0 else math.inf
    label = f"steps saved, claimed {claimed:.0f} and paired {paired:.0f}: the larger over the other"
    return Target(label, off, 1.5, at_most=True)


def draw(name: str, runs: dict[tuple[str, str], list[Any]]) -> None:
    """Both recipes beside each other, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    recipes = list(dict.fromkeys(recipe for recipe, _ in runs))
    figure, axes = plt.subplots(1, len(recipes), figsize=(13, 5.2), layout="constrained")
    for ax, recipe in zip(axes, recipes, strict=True):
        ends = []
        for (of, method), group in runs.items():
            if of != recipe or method == "persistence":
                continue
            steps, _ = zip(*group[0]["curve"], strict=True)
            losses = zip(*([loss for _, loss in run["curve"]] for run in group), strict=True)
            middle = [statistics.median(points) for points in losses]
            wide = 2.2 if method in ("control", "Farcasting") else 1.1
            ax.plot(steps, middle, label=method, linewidth=wide)
            if method == "control":
                ends = middle[len(middle) // 6 :]
        low, high = min(ends), max(ends)
        ax.set_ylim(low - 0.3 * (high - low), high + 0.5 * (high - low))
        ax.set_title(recipe, loc="left")
        ax.set_xlabel("step")
        ax.set_ylabel("held-out loss")
        ax.legend(fontsize=8, frameon=False, ncol=2)
    figure.suptitle(f"{name}, medians", x=0.01, ha="left")
    RESULTS.mkdir(parents=True, exist_ok=True)
    figure.savefig(RESULTS / f"{NAME}-{name}.png", dpi=110)
    plt.close(figure)


def sweep(task: Task, args: Any, steps: int, pool: ProcessPoolExecutor) -> None:
    """Runs without jumps over schedules and rates: is the best inside of them, and the task's?"""
    cells = list(itertools.product(SWEPT, task.rates))
    specs = {
        cell: [Spec(task.name, k, *cell, "control", steps) for k in range(args.seeds)]
        for cell in cells
    }
    found = run_all(itertools.chain(*specs.values()), pool)
    losses = {c: [lowest(found[s]["curve"]) for s in group] for c, group in specs.items()}
    best = min(cells, key=lambda cell: statistics.median(losses[cell]))
    rows = [[f"{kind} {rate:g}", spread(losses[kind, rate], ".4f")] for kind, rate in cells]
    print(f"\n{task.name}: {steps} steps, {args.seeds} seeds\n{table(('', 'lowest'), rows)}")
    inside = "inside" if best[1] in task.rates[1:-1] else "at the edge"
    print(f"best: {best[0]} {best[1]:g}, {inside} of the rates; the task says {task.best}")


def main() -> None:
    options = parser(NAME, __doc__.splitlines()[0])
    known = [kind.name for kind in TASKS]
    usable = [k.name for k in TASKS if k.device == "cpu" or torch.cuda.is_available()]
    options.add_argument(
        "tasks", nargs="*", help=f"of {', '.join(known)} (default: all that this machine can do)"
    )
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, metavar="METHOD")
    options.add_argument("--workers", type=int, help="runs at a time (default: one per thread)")
    options.add_argument("--sweep", action="store_true", help="schedules and rates, without jumps")
    options.add_argument("--overhead", action="store_true", help="only the cost per step")
    args = options.parse_args()
    unknown = sorted(set(args.tasks) - set(known))
    if unknown:
        options.error(f"no task {unknown[0]!r}: expected {', '.join(known)}")
    if not set(args.tasks) <= set(usable):
        options.error(f"{', '.join(set(args.tasks) - set(usable))} needs a GPU")
    os.environ["HF_HUB_OFFLINE"] = "1"
    info = machine()
    print_machine(info, args.threads)
    if args.overhead:
        found = overhead(args.quick)
        finish(args, f"{NAME}-overhead", info, found)
        return
    context = multiprocessing.get_context("spawn")
    studies = []
    for name in args.tasks or usable:
        task = task_named(name)
        steps = 120 if args.quick else task.steps
        workers = args.workers or args.threads
        workers = min(workers, PER_GPU) if task.device == "cuda" else workers
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            if args.sweep:
                sweep(task, args, steps, pool)
                continue
            found = study(task, args, steps, pool)
        print(show(found, args.seeds))
        found["targets"] = targets(task, found["rows"])
        studies.append(found)
        finish(args, f"{NAME}-{name}", info, found)
    overall = claims(studies)
    if overall is not None:
        print_targets([overall])


def finish(args: Any, name: str, info: dict[str, Any], found: dict[str, Any]) -> None:
    """Targets, and the JSON."""
    print_targets(found["targets"])
    found["targets"] = [target.as_dict() for target in found["targets"]]
    write_json(args, name, {"machine": info, **found})


if __name__ == "__main__":
    main()
