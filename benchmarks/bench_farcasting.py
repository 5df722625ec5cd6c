"""Steps to the same held-out loss, with and without Farcasting, beside its rivals.

    python benchmarks/bench_farcasting.py [digits | characters | distilbert-mlm | ...]
    python benchmarks/bench_farcasting.py --overhead

See `README.md` in this folder for what is compared and how to read the tables.
"""

from __future__ import annotations

import itertools
import math
import multiprocessing
import os
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from common import RESULTS, Target, machine, parser, print_machine, print_targets, table, write_json
from rivals import Ema, Lookahead, line, mean, nowcaster, weights_of
from tqdm import tqdm
from training_tasks import TASKS, Task, factor

import wfcast
from wfcast.torch import Farcasting, fit_to_loss

NAME = "bench_farcasting"
LONGER = 1.03  # the share of steps that jumps may cost
TENTHS = 10
N_STATES = 12  # of the loss-fitted export, and of LAWA at most
N_EVALS, SHARE = 40, 20  # gradients of the export: at most, and at most that part of the steps
DECAYS = (0.98, 0.995)
REACHES = (0.5, 1.0, 2.0)
LINE_HORIZONS = (1, 3)  # in spacings
SIBLINGS = (100, 101)
PER_GPU = 5  # runs at a time
JUMPS, WARM = 5, 150  # that the overhead is measured over; steps of these to get warm


@dataclass(frozen=True)
class Cell:
    """A learning rate and a schedule."""

    schedule: str
    rate: float

    def __str__(self) -> str:
        return f"{self.schedule} {self.rate:g}"


@dataclass(frozen=True)
class Spec:
    """One run."""

    task: str
    seed: int
    cell: Cell
    method: str
    steps: int
    horizon: int = 0  # of jumps along a line, in spacings
    exports: bool = False


@cache
def task_named(name: str) -> Task:
    """The task, with its data loaded once per process."""
    return next(kind() for kind in TASKS if kind.name == name)


def clock(device: str) -> float:
    """Seconds, when everything before is done on the device, too."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def spacing_of(steps: int) -> int:
    """A fortieth of the run, so that the defaults (50, 100 and 50) belong to 2000 steps."""
    return max(1, steps // 40)


# ---- one run ----------------------------------------------------------------------------------


def train(spec: Spec, siblings: Any = None) -> dict[str, Any]:
    """Held-out losses as (step, loss), what was exported on the way, and what Farcasting says."""
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("high")  # TF32 on a GPU
    task, steps = task_named(spec.task), spec.steps
    # Other runs than plain ones may go on a little, to show when they are where the plain one
    # ended if that is later; a schedule is stretched.
    if spec.method != "plain":
        steps = round(LONGER * steps)
    model = task.model(spec.seed)
    optimizer = task.optimizer(model, spec.cell.rate)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda done: factor(spec.cell.schedule, done + 1, steps)
    )
    farcasting = controller(spec, task, model, optimizer, siblings)
    lookahead = Lookahead(model) if spec.method == "Lookahead" else None
    jumping = next((thing for thing in (farcasting, lookahead) if thing is not None), None)
    exporter = Exporter(spec, task, model) if spec.exports else None
    curve, states = [(0, task.held_out_loss(model))], {0: weights_of(model)}
    seconds = own_seconds = 0.0
    for step in range(1, steps + 1):
        begun = clock(task.device)
        loss = task.loss(model, task.batch(spec.seed, step))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        trained = clock(task.device)
        if jumping is not None:
            jumping.step()
        seconds += trained - begun
        own_seconds += clock(task.device) - trained
        if exporter is not None:
            exporter.step(step)
        if step % task.every == 0 or step == steps:
            curve.append((step, task.held_out_loss(model)))
        if spec.method == "sibling" and step % spacing_of(spec.steps) == 0:
            states[step] = weights_of(model)
    result: dict[str, Any] = {"curve": curve, "seconds": seconds, "own_seconds": own_seconds}
    if exporter is not None:
        result["exports"] = exporter.losses
    if farcasting is not None:
        result["farcasting"] = farcasting.summary().to_dict()
        farcasting.close()
    if spec.method == "sibling":
        result["states"] = states
    return result


def controller(
    spec: Spec, task: Task, model: Any, optimizer: Any, siblings: Any
) -> Farcasting | None:
    """The Farcasting of a method; None for the others."""
    spacing = spacing_of(spec.steps)
    common: dict[str, Any] = {"spacing": spacing, "stop": round(LONGER * spec.steps)}
    if spec.method == "Farcasting":
        return Farcasting(
            model,
            optimizer,
            period=2 * spacing,
            recovery=spacing,
            judge=lambda: task.held_out_loss(model),
            **common,
        )
    if spec.method == "line jumps":
        horizon = spec.horizon * spacing
        return Farcasting(
            model,
            optimizer,
            wfcast.linear_trend,
            horizon=horizon,
            period=2 * spacing,
            recovery=0,
            **common,
        )
    if spec.method == "nowcaster jumps":
        mf = nowcaster(siblings, spacing, 5)
        return Farcasting(
            model, optimizer, mf, horizon=5 * spacing, period=10 * spacing, recovery=0, **common
        )
    return None


def n_evals(step: int) -> int:
    """Gradients of an export at that step."""
    return max(1, min(N_EVALS, step // SHARE))


class Exporter:
    """At every tenth of a run, the held-out loss of weights made from what it passed through.

    The states lie a sixtieth of the run apart. The gradients of the loss-fitted export, a twentieth
    of the steps and at most `N_EVALS`, count as steps: it begins so many earlier.
    """

    def __init__(self, spec: Spec, task: Task, model: Any) -> None:
        self._spec, self._task, self._model = spec, task, model
        self._apart = max(1, spec.steps // 60)
        self._states: deque[tuple[int, Any]] = deque(maxlen=N_STATES)
        self._emas = {decay: Ema(model, decay) for decay in DECAYS}
        tenths = [spec.steps * k // TENTHS for k in range(1, TENTHS + 1)]
        self._at = set(tenths)
        self._early = {t - n_evals(t): t for t in tenths}
        self._scratch = task.model(spec.seed)
        self.losses: dict[str, dict[int, float]] = {}

    def step(self, step: int) -> None:
        """After each optimizer step."""
        for ema in self._emas.values():
            ema.step(self._model)
        if step % self._apart == 0:
            self._states.append((step, weights_of(self._model)))
        if step in self._early:
            self._fit(step, self._early[step])
        if step in self._at:
            states = [weights for _, weights in self._states]
            for decay, ema in self._emas.items():
                self._take(f"EMA {decay:g}", step, ema.weights)
            for k in (4, N_STATES):
                self._take(f"LAWA {k}", step, mean(states[-k:]))
            for reach in REACHES:
                back = min(3, len(states) - 1)
                self._take(f"line {reach:g}", step, line(states, back, reach))

    def _take(self, name: str, step: int, weights: Any) -> None:
        self._scratch.load_state_dict(weights)
        loss = self._task.held_out_loss(self._scratch)
        self.losses.setdefault(name, {})[step] = loss

    def _batches(self, step: int) -> Iterator[Any]:
        while True:
            step += 1
            yield self._task.batch(self._spec.seed + 10_000, step)

    def _fit(self, step: int, tenth: int) -> None:
        states = {at: weights for at, weights in self._states if at < step}
        states[step] = weights_of(self._model)
        self._scratch.load_state_dict(states[step])
        mf = fit_to_loss(
            self._scratch,
            states,
            self._task.loss,
            self._batches(step),
            n_evals=n_evals(tenth),
            judge=lambda: self._task.held_out_loss(self._scratch),
        )
        with mf.applied(self._scratch, states):
            loss = self._task.held_out_loss(self._scratch)
        self.losses.setdefault("fitted to the loss", {})[tenth] = loss


# ---- all runs of a task -----------------------------------------------------------------------


class Study:
    """The runs of one task; `ask` collects, `run` does them on all CPUs."""

    def __init__(self, name: str, seeds: int, steps: int, pool: ProcessPoolExecutor) -> None:
        self.name, self.seeds, self.steps, self._pool = name, range(seeds), steps, pool
        self.results: dict[Spec, dict[str, Any]] = {}

    def specs(self, cell: Cell, method: str, **extra: Any) -> list[Spec]:
        """One per seed."""
        return [Spec(self.name, seed, cell, method, self.steps, **extra) for seed in self.seeds]

    def run(self, wanted: Sequence[Spec], label: str, siblings: Any = None) -> None:
        """Do those that were not done."""
        fresh = [spec for spec in dict.fromkeys(wanted) if spec not in self.results]
        jobs = {spec: self._pool.submit(train, spec, siblings) for spec in fresh}
        for spec in tqdm(fresh, desc=f"{self.name}: {label}", unit="run"):
            self.results[spec] = jobs[spec].result()

    def curves(self, specs: Sequence[Spec]) -> list[list[tuple[int, float]]]:
        """Held-out losses, seed by seed."""
        return [self.results[spec]["curve"] for spec in specs]


def losses_by_step(curves: Sequence[Sequence[tuple[int, float]]]) -> list[tuple[float, ...]]:
    """The losses of several curves, step by step."""
    return [*zip(*([loss for _, loss in curve] for curve in curves), strict=True)]


def smooth(curve: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Means of three measurements in a row, at the last one's step."""
    return [
        (curve[i][0], statistics.mean(loss for _, loss in curve[i - 2 : i + 1]))
        for i in range(2, len(curve))
    ]


def lowest(curve: Sequence[tuple[int, float]]) -> float:
    """The loss that early stopping would have kept."""
    return min(loss for _, loss in smooth(curve))


def reached(curve: Sequence[tuple[int, float]], goal: float) -> float:
    """The step at which a loss is reached, on lines between measurements; infinity if never."""
    points = smooth(curve)
    if points[0][1] <= goal:
        return points[0][0]
    for (step, loss), (after, lower) in itertools.pairwise(points):
        if lower <= goal:
            return step + (after - step) * (loss - goal) / (loss - lower)
    return math.inf


def ratios(plain: Sequence[Any], other: Sequence[Any]) -> list[float]:
    """Steps to the loss that every plain run reaches, over those of the plain run, by seed."""
    goal = max(map(lowest, plain))
    return [reached(its, goal) / reached(own, goal) for own, its in zip(plain, other, strict=True)]


def spread(values: Sequence[float], form: str = ".3g") -> str:
    """Median and range."""
    middle = statistics.median(values)
    return f"{middle:{form}} ({min(values):{form}} to {max(values):{form}})"


def study(name: str, seeds: int, steps: int, pool: ProcessPoolExecutor) -> dict[str, Any]:
    """All runs of a task, its tables on the way, and what goes into the JSON."""
    task = task_named(name)
    runs = Study(name, seeds, steps, pool)

    # the plain runs, swept; those of constant rate export on the way
    untuned = Cell("constant", task.untuned)
    cells = [Cell("constant", rate) for rate in task.rates]
    cells += [Cell(kind, rate) for kind in ("linear", "tail") for rate in task.rates[-2:]]
    plain = {
        c: runs.specs(c, "plain", exports=c.schedule == "constant" and c.rate >= task.untuned)
        for c in cells
    }
    runs.run([spec for specs in plain.values() for spec in specs], "plain")

    def median_lowest(cell: Cell) -> float:
        return statistics.median(map(lowest, runs.curves(plain[cell])))

    best = min(cells, key=median_lowest)
    print(f"\n{name}: plain runs of {steps} steps, {seeds} seeds; held-out loss, median (range)")
    rows = []
    for cell in cells:
        curves = runs.curves(plain[cell])
        ends = [smooth(curve)[-1][1] for curve in curves]
        note = "untuned" if cell == untuned else "best" if cell == best else ""
        rows.append([str(cell), spread([*map(lowest, curves)], ".4f"), spread(ends, ".4f"), note])
    print(table(("schedule, rate", "lowest", "at the end", ""), rows))

    # jumps, at the untuned recipe and at the best
    payload: dict[str, Any] = {"steps": steps, "best": str(best), "untuned": str(untuned)}
    jumps: list[dict[str, Any]] = []
    compared = list(dict.fromkeys((untuned, best)))
    farcasting = {c: runs.specs(c, "Farcasting") for c in dict.fromkeys((cells[0], *compared))}
    lookahead = {c: runs.specs(c, "Lookahead") for c in compared}
    lines = {
        (c, h): runs.specs(c, "line jumps", horizon=h) for c in compared for h in LINE_HORIZONS
    }
    # forty states of a large model are too much to hand from process to process
    known = {
        c: [Spec(name, seed, c, "sibling", steps) for seed in SIBLINGS]
        for c in (compared if task.device == "cpu" else ())
    }
    groups = (farcasting, lookahead, lines, known)
    runs.run([spec for group in groups for specs in group.values() for spec in specs], "jumps")
    kept: dict[tuple[Cell, str], list[Spec]] = {}
    for cell, specs in farcasting.items():
        kept[cell, "Farcasting"] = specs
        if cell not in compared:
            continue
        kept[cell, "Lookahead"] = lookahead[cell]
        tuned = min(
            LINE_HORIZONS,
            key=lambda h, c=cell: statistics.median(map(lowest, runs.curves(lines[c, h]))),
        )
        kept[cell, f"line jumps, {tuned} spacings"] = lines[cell, tuned]
        if cell in known:
            states = [runs.results[spec].pop("states") for spec in known[cell]]
            kept[cell, "nowcaster jumps"] = runs.specs(cell, "nowcaster jumps")
            runs.run(kept[cell, "nowcaster jumps"], f"{cell}, nowcaster", states)
    for (cell, method), specs in kept.items():
        own, its = runs.curves(plain[cell]), runs.curves(specs)
        steps_ratio = ratios(own, its)
        done = [runs.results[spec] for spec in specs]
        shares = [r["own_seconds"] / r["seconds"] for r in done]
        jumps.append(
            {
                "cell": str(cell),
                "method": method,
                "plain_lowest": [lowest(c) for c in own],
                "lowest": [lowest(c) for c in its],
                "end": [smooth(c)[-1][1] for c in its],
                "steps_ratio": steps_ratio,
                "time_ratio": [r * (1 + s) for r, s in zip(steps_ratio, shares, strict=True)],
                "own_time": shares,
                "farcasting": [
                    {k: v for k, v in runs.results[s]["farcasting"].items() if k != "jumps"}
                    for s in specs
                    if method == "Farcasting"
                ],
            }
        )
    print(f"\n{name}: jumps; steps and time over the plain run's, median (range)")
    rows = [
        [
            j["cell"],
            j["method"],
            spread(j["plain_lowest"], ".4f"),
            spread(j["lowest"], ".4f"),
            spread(j["steps_ratio"], ".2f"),
            spread(j["time_ratio"], ".2f"),
            f"{statistics.median(j['own_time']):.1%}",
        ]
        for j in jumps
    ]
    header = ("schedule, rate", "", "plain, lowest", "lowest", "steps", "time", "its own time")
    print(table(header, rows))

    # exports of constant-rate runs beside the best schedule
    exports, tenths = export_table(runs, plain, best)
    print(f"\n{name}: exports at every tenth of a run, beside the best plain run ({best}); medians")
    rows = [[label, *(f"{x:.4f}" for x in losses)] for label, losses in exports.items()]
    print(table(("", *(str(t) for t in tenths)), rows))
    payload |= {"jumps": jumps, "exports": exports, "tenths": tenths}
    payload["runs"] = [
        {
            "cell": str(spec.cell),
            "method": spec.method,
            "horizon": spec.horizon,
            "seed": spec.seed,
            "steps": [step for step, _ in result["curve"]],
            "losses": [round(loss, 5) for _, loss in result["curve"]],
            "exports": result.get("exports"),
        }
        for spec, result in runs.results.items()
    ]
    payload["targets"] = targets(name, jumps, str(cells[0]), str(untuned), str(best), exports)
    draw(name, runs, plain, kept, best, untuned, exports, tenths)
    return payload


def worst_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The largest of the ratios in pairs."""
    return max(a / b for a, b in zip(ours, theirs, strict=True))


def export_table(
    runs: Study, plain: dict[Cell, list[Spec]], best: Cell
) -> tuple[dict[str, list[float]], list[int]]:
    """Median loss by tenth: the best plain run, and each export from the rate that suits it.

    That is one rate for the whole run, the one whose worst tenth compares best.
    """
    tenths = [runs.steps * k // TENTHS for k in range(1, TENTHS + 1)]

    def at(curve: Sequence[tuple[int, float]], step: int) -> float:
        return float(np.interp(step, *zip(*curve, strict=True)))

    curves = runs.curves(plain[best])
    own = [statistics.median(at(c, t) for c in curves) for t in tenths]
    result = {f"plain, {best}": own}
    exporting = [specs for specs in plain.values() if specs[0].exports]
    for name in runs.results[exporting[0][0]]["exports"]:
        rows = {}
        for specs in exporting:
            found = [runs.results[spec]["exports"][name] for spec in specs]
            rows[specs[0].cell] = [statistics.median(f[t] for f in found) for t in tenths]
        cell = min(rows, key=lambda c: worst_ratio(rows[c], own))
        result[f"{name}, {cell}"] = rows[cell]
    return result, tenths


def targets(
    name: str,
    jumps: Sequence[dict[str, Any]],
    slow: str,
    untuned: str,
    best: str,
    exports: dict[str, list[float]],
) -> list[Target]:
    """What was to be reached."""

    def ratio(cell: str) -> float:
        return next(
            statistics.median(j["steps_ratio"])
            for j in jumps
            if j["cell"] == cell and j["method"] == "Farcasting"
        )

    found = [
        Target(f"{name}: steps at {untuned}", ratio(untuned), 0.5, at_most=True),
        Target(f"{name}: steps at {best}, the best plain run", ratio(best), LONGER, at_most=True),
    ]
    if slow != untuned:
        found.append(Target(f"{name}: steps at {slow}", ratio(slow), 0.5, at_most=True))
    ours = next(v for k, v in exports.items() if k.startswith("fitted to the loss"))
    theirs = next(v for k, v in exports.items() if k.startswith("plain"))
    found.append(
        Target(
            f"{name}: loss of the loss-fitted export over the best plain run's, worst tenth",
            worst_ratio(ours, theirs),
            1.0,
            at_most=True,
        )
    )
    return found


def draw(
    name: str,
    runs: Study,
    plain: dict[Cell, list[Spec]],
    kept: dict[tuple[Cell, str], list[Spec]],
    best: Cell,
    untuned: Cell,
    exports: dict[str, list[float]],
    tenths: Sequence[int],
) -> None:
    """The untuned recipe, the best one, and the exports, beside each other, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(15, 5.2), layout="constrained")
    for ax, cell in zip(axes, (untuned, best), strict=False):
        chosen = {"plain": plain[cell]}
        chosen |= {method: specs for (c, method), specs in kept.items() if c == cell}
        for label, specs in chosen.items():
            curves = runs.curves(specs)
            steps = [step for step, _ in curves[0]]
            middle = [statistics.median(points) for points in losses_by_step(curves)]
            ax.plot(
                steps,
                middle,
                label=label,
                linewidth=2.2 if label in ("plain", "Farcasting") else 1.1,
            )
        which = "the best plain run" if cell == best else "an untuned recipe"
        ax.set_title(f"{cell}: {which}", loc="left")
    for label, losses in exports.items():
        wide = label.startswith(("plain", "fitted"))
        axes[2].plot(
            tenths,
            losses,
            "o-",
            markersize=3,
            label=label,
            linewidth=2.2 if wide else 1.1,
        )
    axes[2].set_title("exports at every tenth", loc="left")
    low = min(lowest(c) for specs in (*plain.values(), *kept.values()) for c in runs.curves(specs))
    for ax in axes:
        shown = [float(loss) for loss in ax.get_lines()[0].get_ydata()]
        high = statistics.median(shown[len(shown) // 6 :])
        ax.set_ylim(low - 0.05 * (high - low), high + 1.2 * (high - low))
        ax.set_xlabel("step")
        ax.set_ylabel("held-out loss")
        ax.legend(
            fontsize=8, frameon=False, ncol=2, loc="upper center", bbox_to_anchor=(0.5, -0.13)
        )
    figure.suptitle(f"{name}, medians of {len(runs.seeds)} seeds", x=0.01, ha="left")
    RESULTS.mkdir(parents=True, exist_ok=True)
    figure.savefig(RESULTS / f"{NAME}-{name}.png", dpi=110)
    plt.close(figure)


# ---- overhead ---------------------------------------------------------------------------------


def overhead(quick: bool) -> dict[str, Any]:
    """Seconds in Farcasting as a share of all, for DistilBERT's 66M parameters and AdamW.

    A real training step is timed; then Farcasting follows an optimizer that steps with the last
    gradients, over several jumps, since its own time does not depend on what the gradients are. On
    a GPU, which is waited for before and after, that leaves out what runs beside the training; so
    there real steps are timed with and without it, too.
    """
    from transformers import DistilBertConfig, DistilBertForMaskedLM

    config = (
        DistilBertConfig(n_layers=1, dim=64, hidden_dim=64, n_heads=2)
        if quick
        else DistilBertConfig()
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")
    model = DistilBertForMaskedLM(config).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    ids = torch.randint(5, config.vocab_size, (16, 128), device=device)
    n = sum(p.numel() for p in model.parameters())

    def train() -> None:
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    taken, idle = [], []
    for _ in range(4 if device == "cpu" else 40):
        begun = clock(device)
        train()
        taken.append(clock(device) - begun)
        begun = clock(device)
        idle.append(clock(device) - begun)
    step_seconds = statistics.median(taken[1:])
    found: dict[str, Any] = {"device": device, "parameters": n, "step_seconds": step_seconds}
    print(f"\n{n / 1e6:.1f}M parameters on {device}, batch 16 x 128: {step_seconds:.4f} s per step")
    found["targets"] = []

    def target(label: str, share: float) -> None:
        label = f"overhead, share of step time, {label}"
        found["targets"].append(Target(label, share, 0.01, at_most=True))

    for store in ("cpu",) if device == "cpu" else ("device", "cpu"):
        spent = follow(model, optimizer, optimizer.step, store, device)
        # the first jump takes memory for all of them, which a GPU's driver is slow to pin
        first = sum(spent[:WARM])
        later = sum(spent[WARM:]) - len(spent[WARM:]) * statistics.median(idle)
        found[store] = {"first_seconds": first, "later_seconds": later}
        print(
            f"states on the {store}: {first:.3f} s in Farcasting over the first {WARM} steps, "
            f"{later:.3f} s over the {len(spent) - WARM} after them"
        )
        target(f"states on the {store}", later / (len(spent[WARM:]) * step_seconds))
        if device == "cuda":
            walls = []
            for with_it in (False, True, False):
                begun = clock(device)
                for _ in range(0 if with_it else 200):
                    train()
                if with_it:
                    begun = follow(model, optimizer, train, store, "")[0]
                walls.append((clock(device) - begun) / (JUMPS * 100 - WARM if with_it else 200))
            plain = (walls[0] + walls[2]) / 2
            print(f"    per step {walls[0]:.5f} s without, {walls[1]:.5f} s with, {walls[2]:.5f} s")
            found[store]["seconds_per_step"] = walls
            target(f"states on the {store}, beside the training", walls[1] / plain - 1)
    return found


def follow(
    model: Any, optimizer: Any, train: Callable[[], Any], store: str, device: str
) -> list[float]:
    """Seconds in Farcasting of every step; without a device to wait for, when step `WARM` began."""
    farcasting = Farcasting(model, optimizer, store=store, horizon=20)
    losses = (5.0 / (1 + 0.01 * t) for t in range(1, 10_000))
    spent = []
    for step in range(JUMPS * 100):
        if step == WARM and not device:
            spent = [clock("cuda")]
        train()
        begun = clock(device)
        farcasting.step(next(losses))
        if device:
            spent.append(clock(device) - begun)
    jumps = sum(e["outcome"] != "refused" for e in farcasting.history)
    assert jumps == JUMPS, farcasting.summary()
    farcasting.close()
    return spent


def main() -> None:
    options = parser(NAME, __doc__.splitlines()[0])
    known = [kind.name for kind in TASKS]
    usable = [k.name for k in TASKS if k.device == "cpu" or torch.cuda.is_available()]
    options.add_argument(
        "tasks", nargs="*", help=f"of {', '.join(known)} (default: all that this machine can do)"
    )
    options.add_argument("--seeds", type=int, default=3)
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
    for name in args.tasks or usable:
        steps = 120 if args.quick else task_named(name).steps
        workers = min(args.threads, PER_GPU) if task_named(name).device == "cuda" else args.threads
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            found = study(name, 2 if args.quick else args.seeds, steps, pool)
        finish(args, f"{NAME}-{name}", info, found)


def finish(args: Any, name: str, info: dict[str, Any], found: dict[str, Any]) -> None:
    """Targets, and the JSON."""
    print_targets(found["targets"])
    found["targets"] = [target.as_dict() for target in found["targets"]]
    write_json(args, name, {"machine": info, **found})


if __name__ == "__main__":
    main()
