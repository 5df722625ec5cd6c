"""What a run at a constant rate would be if training ended now, beside real decays and schedules.

    python benchmarks/bench_readout.py [digits | characters | distilbert-mlm | ...]

See `README.md` in this folder for what is compared and how to read the tables. Every run is kept in
`results` as soon as it is done, and is not trained again: an interrupted program goes on.
"""

from __future__ import annotations

import copy
import hashlib
import json
import multiprocessing
import os
import statistics
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, Target, machine, parser, print_machine, print_targets, table, write_json
from rivals import weights_of
from tqdm import tqdm
from training_tasks import (
    SCHEDULES,
    Characters,
    Classes,
    Decoder,
    Digits,
    MaskedWords,
    Task,
    factor,
)

import wfcast
from wfcast.torch import Annealed

NAME = "bench_readout"
TENTHS = 10
PROFILES = (1, 2, 5, 10, 20, 40)
DECAYS = (0.1, 0.2, 0.4)  # over so large a share of the steps so far a branch's rate falls to 0
STORED = (5, 10, 20)  # checkpoints, evenly over the steps so far
OF_STORED = (2, 5, 10, 20)  # profiles that are tried of them
STATES = 200  # of a run, that stored checkpoints are picked from
EMAS = (0.99,)
JUDGED = 16  # training batches of a judge
N_EVALS = 40  # gradients of a fit
EDGE = 3  # times that a sweep may go beyond its grid
FORWARD = 1 / 3  # of a step's cost
LENGTHS = {
    "digits": 600,
    "characters": 400,
    "decoder": 400,
    "distilbert-mlm": 800,
    "distilbert-classes": 300,
}
RATES = {
    "digits": (2e-3, 4e-3, 8e-3),
    "characters": (4e-3, 8e-3),
    "decoder": (4e-3, 8e-3),
    "distilbert-mlm": (3e-3, 6e-3),
    "distilbert-classes": (1e-4, 3e-4, 1e-3),
}
VERSION = 2  # of what a kept run means
KINDS: tuple[type[Task], ...] = (Digits, Characters, MaskedWords, Classes, Decoder)


@dataclass(frozen=True)
class Spec:
    """One run: a schedule, or the readouts at each tenth of a constant rate."""

    task: str
    seed: int
    schedule: str
    rate: float
    steps: int
    readouts: bool = False
    apart: bool = False  # whether half of the held-out rows is for the judge, the rest for losses

    @property
    def path(self) -> Path:
        """Where it is kept."""
        text = json.dumps([asdict(self), VERSION])
        return RESULTS / NAME / f"{self.task}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"


@cache
def task_named(name: str) -> Task:
    """The task, with its data loaded once per process."""
    return next(kind() for kind in KINDS if kind.name == name)


def length_of(task: Task, quick: bool) -> int:
    """The steps of its runs, a multiple of ten tenths."""
    return 100 if quick else LENGTHS[task.name]


# ---- one run ----------------------------------------------------------------------------------


class Run:
    """Model, optimizer and place in the schedule of one run; it can be left and gone back to."""

    def __init__(self, spec: Spec) -> None:
        self.spec, self.task = spec, task_named(spec.task)
        self.model = self.task.model(spec.seed)
        self.optimizer = self.task.optimizer(self.model, spec.rate)
        self.step = 0

    def train_step(self, share: float = 1.0) -> None:
        """One step, at a share of what the schedule says."""
        spec = self.spec
        self.step += 1
        torch.manual_seed(spec.seed * 1_000_003 + self.step)  # of dropout: the same in a branch
        self.model.train()
        rate = share * spec.rate * factor(spec.schedule, self.step, spec.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self.task.loss(self.model, self.task.batch(spec.seed, self.step))
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """Of the held-out rows, or of those that the judge does not see."""
        if not self.spec.apart:
            return self.task.held_out_loss(self.model)
        self.model.eval()
        return statistics.fmean(
            float(self.task.loss(self.model, every_other(batch, 1))) for batch in self.task.held_out
        )

    def decayed(self, until: int) -> float:
        """The held-out loss of a branch whose rate falls to 0 by step `until`."""
        fork, model = self.step, copy.deepcopy(self.model.state_dict())
        optimizer = copy.deepcopy(self.optimizer.state_dict())
        while self.step < until:
            self.train_step((until - self.step) / (until - fork))
        loss = self.held_out_loss()
        self.step = fork
        self.model.load_state_dict(model)
        self.optimizer.load_state_dict(optimizer)
        return loss

    @torch.no_grad()
    def judge(self) -> float:
        """The mean loss over some training batches, or half of the held-out rows."""
        self.model.eval()
        if self.spec.apart:
            batches = [every_other(batch, 0) for batch in self.task.held_out]
        else:
            batches = [self.task.batch(90_000 + self.spec.seed, k) for k in range(JUDGED)]
        return statistics.fmean(float(self.task.loss(self.model, batch)) for batch in batches)

    def fit_batches(self) -> Iterator[Any]:
        """Training batches for the gradients of a fit."""
        return (self.task.batch(80_000 + self.spec.seed, k) for k in range(N_EVALS))


def every_other(batch: Any, first: int) -> Any:
    """Half of the rows of a batch."""
    if isinstance(batch, dict):
        return {name: every_other(rows, first) for name, rows in batch.items()}
    if isinstance(batch, tuple | list):
        return tuple(every_other(rows, first) for rows in batch)
    return batch[first::2]


class Ema:
    """The exponential moving average with its usual warm-up, decay min(d, (1 + t) / (10 + t))."""

    def __init__(self, model: torch.nn.Module, decay: float) -> None:
        self._model, self._decay, self._step = model, decay, 0
        self.weights = weights_of(model)

    def step(self) -> None:
        """After each optimizer step."""
        self._step += 1
        decay = min(self._decay, (1 + self._step) / (10 + self._step))
        own = {name: w for name, w in self._model.state_dict().items() if w.is_floating_point()}
        torch._foreach_lerp_([self.weights[name] for name in own], [*own.values()], 1 - decay)


def train(spec: Spec) -> dict[str, Any]:
    """Train one run and say what came of it."""
    torch.set_num_threads(1)
    run = Run(spec)
    tenth = spec.steps // TENTHS
    ends = [k * tenth for k in range(1, TENTHS + 1)]
    annealed = Annealed(run.model, profiles=PROFILES, every=max(1, spec.steps // STATES))
    emas = {decay: Ema(run.model, decay) for decay in EMAS}
    branches = [(end - round(share * end), end, share) for end in ends for share in DECAYS]
    decayed: dict[int, dict[str, float]] = {end: {} for end in ends}
    states: dict[int, dict[str, torch.Tensor]] = {}
    rows = []
    while run.step < spec.steps:
        run.train_step()
        if spec.schedule == "constant":
            annealed.step()
        if spec.readouts:
            for ema in emas.values():
                ema.step()
            if run.step % annealed.every == 0:
                states[run.step] = weights_of(run.model)
            for fork, end, share in branches:
                if fork == run.step:
                    decayed[end][f"{share:g}"] = run.decayed(end)
            if run.step in ends:
                row = readouts(run, annealed, emas, states)
                rows.append({**row, "decays": decayed[run.step]})
    result: dict[str, Any] = {"spec": asdict(spec), "loss": run.held_out_loss()}
    if spec.schedule == "constant":
        annealed.choose(run.judge)
        with annealed.applied():
            result["readout"] = run.held_out_loss()
    return {**result, "rows": rows}


def readouts(
    run: Run, annealed: Annealed, emas: dict[float, Ema], states: dict[int, Any]
) -> dict[str, Any]:
    """All held-out losses at one step."""
    task, model = run.task, run.model

    loss = run.held_out_loss
    row: dict[str, Any] = {"step": run.step, "latest": loss(), "profiles": {}}
    for gamma in PROFILES:
        with annealed.applied(gamma):
            row["profiles"][f"{gamma:g}"] = loss()
    row["choice"] = annealed.choose(run.judge)
    with annealed.applied():
        row["chosen"] = loss()
    fitted = annealed.fit(task.loss, run.fit_batches(), n_evals=N_EVALS, judge=run.judge)
    with annealed.applied(fitted):
        row["fitted"] = loss()
    row["fit"] = {"coef": fitted.coef["*"][0].tolist(), **fitted.info}
    steps = sorted(states)
    row["stored"] = {}
    for n in STORED:
        picked = spread(steps, n)
        row["stored"][str(n)] = from_disk(run, states, picked, OF_STORED)
    late = [s for s in steps if s > 0.75 * run.step]
    quarter = spread(late, 10)
    half = [s for s in picked if s > run.step / 2]
    for name, chosen, profile in (
        ("mean of the last quarter", quarter, "mean"),
        ("minus-sqrt of the last half", half, "minus-sqrt"),
        ("mean of the last half", half, "mean"),
    ):
        if len(chosen) > 1:
            row["stored"][name] = from_disk(run, states, chosen, (profile,))
    row["ema"] = {}
    own = weights_of(model)
    for decay, ema in emas.items():
        model.load_state_dict(ema.weights)
        row["ema"][f"{decay:g}"] = loss()
    model.load_state_dict(own)
    return row


def spread(steps: Sequence[int], n: int) -> list[int]:
    """So many of them, evenly, the last one included; all where there are fewer."""
    return sorted({steps[max(1, len(steps) * k // n) - 1] for k in range(1, n + 1)})


def from_disk(
    run: Run, states: dict[int, Any], steps: Sequence[int], profiles: Sequence[Any]
) -> dict[str, Any]:
    """The profile that the judge likes best, of some stored states alone."""
    operators = {str(p): wfcast.annealed(steps, p) for p in profiles}
    judged = {}
    for name, operator in operators.items():
        with operator.applied(run.model, states):
            judged[name] = run.judge()
    best = min(judged, key=judged.__getitem__)
    with operators[best].applied(run.model, states):
        return {"profile": best, "loss": run.held_out_loss()}


# ---- all of them ------------------------------------------------------------------------------


def done(spec: Spec) -> dict[str, Any]:
    """The run's result, trained now or before."""
    if spec.path.exists():
        kept: dict[str, Any] = json.loads(spec.path.read_text())
        return kept
    result = train(spec)
    spec.path.parent.mkdir(parents=True, exist_ok=True)
    partial = spec.path.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(result))
    partial.replace(spec.path)
    return result


class Bench:
    """Runs of one task, several at a time."""

    def __init__(self, task: str, steps: int, apart: bool, pool: ProcessPoolExecutor) -> None:
        self.task, self.steps, self._apart, self._pool = task, steps, apart, pool

    def all(self, specs: Iterable[Spec], what: str) -> dict[Spec, dict[str, Any]]:
        """Their results."""
        coming = {self._pool.submit(done, spec): spec for spec in specs}
        found = {}
        for future in tqdm(as_completed(coming), f"{self.task}: {what}", len(coming)):
            found[coming[future]] = future.result()
        return found

    def spec(self, seed: int, schedule: str, rate: float, readouts: bool = False) -> Spec:
        return Spec(self.task, seed, schedule, rate, self.steps, readouts, self._apart)

    def sweep(self, rates: Sequence[float]) -> dict[tuple[str, float], dict[str, Any]]:
        """Every schedule at every rate, with rates added until the best is inside of them.

        A constant rate is judged by its readout.
        """
        found: dict[tuple[str, float], dict[str, Any]] = {}
        grids = {schedule: sorted(rates) for schedule in SCHEDULES}
        for _ in range(EDGE + 1):
            wanted = [(s, r) for s, grid in grids.items() for r in grid if (s, r) not in found]
            if not wanted:
                break
            runs = self.all((self.spec(0, *cell) for cell in wanted), "schedules")
            found |= {(spec.schedule, spec.rate): run for spec, run in runs.items()}
            for schedule, grid in grids.items():
                best = min(grid, key=lambda rate: end(found[schedule, rate]))
                if best == grid[0]:
                    grid.insert(0, best / 2)
                if best == grid[-1]:
                    grid.append(best * 2)
        return found


def end(run: dict[str, Any]) -> float:
    """What counts of a run's end."""
    loss: float = run.get("readout", run["loss"])
    return loss


def bench(task: Task, options: Any, pool: ProcessPoolExecutor) -> dict[str, Any]:
    """All of one task: the sweep, the best schedules on all seeds, the readouts."""
    steps = length_of(task, options.quick)
    work = Bench(task.name, steps, options.apart, pool)
    seeds = range(options.seeds)
    sweep = work.sweep(RATES[task.name])
    real = {cell: run["loss"] for cell, run in sweep.items()}
    best = sorted(real, key=real.__getitem__)[:2]
    constant = min((c for c in sweep if c[0] == "constant"), key=lambda c: end(sweep[c]))
    runs = work.all(
        [work.spec(seed, *cell) for seed in seeds for cell in best]
        + [work.spec(seed, *constant, readouts=True) for seed in seeds],
        "seeds",
    )
    schedules = {
        f"{s} {r:g}": [runs[work.spec(seed, s, r)]["loss"] for seed in seeds] for s, r in best
    }
    rows = [runs[work.spec(seed, *constant, readouts=True)]["rows"] for seed in seeds]
    return {
        "task": task.name,
        "steps": steps,
        "rate": constant[1],
        "sweep": [
            {"schedule": s, "rate": r, "loss": run["loss"], "readout": run.get("readout")}
            for (s, r), run in sorted(sweep.items())
        ],
        "schedules": schedules,
        "seeds": rows,
    }


# ---- words ------------------------------------------------------------------------------------


def relative(rows: Sequence[Sequence[dict[str, Any]]], k: int, value: Any) -> float:
    """The mean over the seeds of a loss at tenth k over that of the best real decay, less 1."""
    return statistics.fmean(value(seed[k]) / min(seed[k]["decays"].values()) - 1 for seed in rows)


COLUMNS = {
    "latest": lambda row: row["latest"],
    "best profile": lambda row: min(row["profiles"].values()),
    "chosen": lambda row: row["chosen"],
    "fitted": lambda row: row["fitted"],
    "20 stored": lambda row: row["stored"]["20"]["loss"],
    "10 stored": lambda row: row["stored"]["10"]["loss"],
    "5 stored": lambda row: row["stored"]["5"]["loss"],
    "EMA 0.99": lambda row: row["ema"]["0.99"],
}


def tell(found: dict[str, Any]) -> None:
    """The tables of one task."""
    rows, steps = found["seeds"], found["steps"]
    print(f"\n{found['task']}: constant {found['rate']:g}, {steps} steps, {len(rows)} seeds")
    print("held-out loss against the best real decay that ends at the same step, %")
    body = []
    for k in range(TENTHS):
        best = statistics.fmean(min(seed[k]["decays"].values()) for seed in rows)
        body.append(
            (
                str(rows[0][k]["step"]),
                f"{best:.4f}",
                *(f"{100 * relative(rows, k, value):+.2f}" for value in COLUMNS.values()),
            )
        )
    print(table(("step", "decay", *COLUMNS), body, left=0))
    last = [seed[-1] for seed in rows]
    ends = {name: statistics.fmean(map(value, last)) for name, value in COLUMNS.items()}
    for name in (
        "mean of the last quarter",
        "mean of the last half",
        "minus-sqrt of the last half",
    ):
        ends[name] = statistics.fmean(row["stored"][name]["loss"] for row in last)
    for share in DECAYS:
        ends[f"real decay, last {share:.0%}"] = statistics.fmean(
            row["decays"][f"{share:g}"] for row in last
        )
    ends |= {
        f"schedule {name}": statistics.fmean(losses) for name, losses in found["schedules"].items()
    }
    least = min(v for name, v in ends.items() if name.startswith("schedule"))
    print(f"\nat the end, step {steps}")
    print(
        table(
            ("", "held-out loss", "against the best schedule"),
            [(n, f"{v:.4f}", f"{100 * (v / least - 1):+.2f} %") for n, v in ends.items()],
        )
    )


def costs() -> str:
    """What a reading costs, in steps of training."""
    judged = (len(PROFILES) + 1) * JUDGED * FORWARD
    rows = [
        ("averages", "0"),
        ("choice", f"{judged:.0f}"),
        ("fit", f"{N_EVALS + judged + JUDGED * FORWARD:.0f}"),
        *((f"real decay, last {share:.0%} of n steps", f"{share:g} n") for share in DECAYS),
    ]
    return table(("what one reading costs", "steps"), rows)


def reached(found: Sequence[dict[str, Any]]) -> list[Target]:
    """The targets."""
    every = [(task, k) for task in found for k in range(TENTHS)]
    chosen = [relative(t["seeds"], k, COLUMNS["chosen"]) for t, k in every]
    at_end = []
    for task in found:
        best = min(statistics.fmean(losses) for losses in task["schedules"].values())
        fitted = statistics.fmean(seed[-1]["fitted"] for seed in task["seeds"])
        at_end.append(fitted / best - 1)
    fitted = [
        sum(relative(t["seeds"], k, COLUMNS["fitted"]) <= 0 for k in range(TENTHS)) for t in found
    ]
    return [
        Target("chosen readout against the best real decay, worst tenth", max(chosen), 0.002, True),
        Target("tenths at which the fitted readout is at or below it, worst task", min(fitted), 8),
        Target(
            "tasks whose fitted readout ends at or below the best schedule",
            sum(change <= 0 for change in at_end),
            min(4, len(found)),
        ),
    ]


def plot(found: Sequence[dict[str, Any]], path: Path) -> None:
    """A panel for each task."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4 * len(found), 3.8), layout="constrained")
    styles = {
        "latest": ("0.6", ":"),
        "20 stored": ("#009E73", "--"),
        "chosen": ("#D55E00", "-"),
        "fitted": ("#CC79A7", "-"),
    }
    for axes, task in zip(figure.subplots(1, len(found), squeeze=False)[0], found, strict=True):
        steps = [row["step"] for row in task["seeds"][0]]
        for name, (colour, line) in styles.items():
            change = [100 * relative(task["seeds"], k, COLUMNS[name]) for k in range(TENTHS)]
            axes.plot(steps, change, line, color=colour, label=name)
        axes.axhline(0, color="#0072B2", label="best real decay")
        axes.set(title=task["task"], xlabel="step")
        axes.set_ylim(-2.5, 6)
        axes.grid(color="#e6e6e6", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("held-out loss against the best real decay, %")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Run the tasks that are asked for."""
    options = parser(NAME, (__doc__ or "").splitlines()[0])
    names = [kind.name for kind in KINDS]
    options.add_argument("tasks", nargs="*", help=f"of {', '.join(names)} (default: all)")
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument(
        "--apart", action="store_true", help="judge by half of the held-out rows, score by the rest"
    )
    args = options.parse_args()
    unknown = sorted(set(args.tasks) - set(names))
    if unknown:
        options.error(f"no task {unknown[0]!r}: expected {', '.join(names)}")
    os.environ["HF_HUB_OFFLINE"] = "1"
    info = machine()
    print_machine(info, 1)
    found: list[dict[str, Any]] = []
    suffix = "-apart" if args.apart else ""
    for name in args.tasks or names:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(args.threads, context) as pool:
            found.append(bench(task_named(name), args, pool))
        tell(found[-1])
        write_json(args, f"{NAME}{suffix}-{name}", {"machine": info, **found[-1]})
    print(f"\n{costs()}")
    print_targets(reached(found))
    plot(found, RESULTS / f"{NAME}{suffix}{'-quick' if args.quick else ''}.png")


if __name__ == "__main__":
    main()
