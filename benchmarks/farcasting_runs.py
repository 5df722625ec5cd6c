"""The runs of `bench_farcasting.py`: one recipe with what changes its weights beside the optimizer.

Every run is kept in `results/bench_farcasting` and not trained again: where Farcasting decides
until its code changes, where it only does what a rival says until VERSION does.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import statistics
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from common import RESULTS
from rivals import Lookahead, Weights, nowcaster
from tqdm import tqdm
from training_tasks import TASKS, Task, factor

import wfcast
import wfcast.torch
from wfcast import Operator
from wfcast.torch import Farcasting

VERSION = 1  # of what a kept run means
METHODS = (
    "control",
    "Farcasting",
    "Farcasting, held-out judge",
    "Farcasting, unjudged",
    "line, 1 spacing",
    "line, 3 spacings",
    "line over the history",
    "nowcaster",
    "Lookahead",
    "persistence",
)
JUMPING = frozenset(METHODS) - {"control", "Lookahead"}
JUDGED = ("Farcasting", "Farcasting, held-out judge", "persistence")
DECIDED = (*JUDGED, "Farcasting, unjudged")  # by the rule or the verdict
SIBLINGS = (100, 101)


@dataclass(frozen=True)
class Spec:
    """One run."""

    task: str
    seed: int
    schedule: str
    rate: float
    method: str
    steps: int

    @property
    def path(self) -> Path:
        """Where it is kept."""
        text = json.dumps([asdict(self), VERSION, self.method in DECIDED and code()])
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        return RESULTS / "bench_farcasting" / f"{self.task}-{digest}.json"


@cache
def code() -> str:
    """A digest of what makes the jumps."""
    files = sorted(Path(wfcast.torch.__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


@cache
def task_named(name: str) -> Task:
    """The task, with its data loaded once per process."""
    return next(kind() for kind in TASKS if kind.name == name)


def spacing_of(steps: int) -> int:
    """A fortieth of the run, so that the defaults (50, 100 and 50) belong to 2000 steps."""
    return max(1, steps // 40)


def period_of(steps: int) -> int:
    """Two of them, but no less than two memories of the optimizer."""
    return max(2 * spacing_of(steps), 20)


# ---- one run ----------------------------------------------------------------------------------


def jumper(spec: Spec, model: Any, optimizer: Any, learned: Operator | None) -> Any:
    """What changes the weights of a run beside the optimizer; None for the control."""
    if spec.method == "control":
        return None
    if spec.method == "Lookahead":
        return Lookahead(model)
    spacing, fifth = spacing_of(spec.steps), spec.steps // 5
    options: dict[str, Any] = {
        "spacing": spacing,
        "period": 2 * spacing,
        "recovery": 0,
        "stop": spec.steps,
    }
    period = period_of(spec.steps)
    own = {"spacing": max(1, period // 8), "period": period}
    recovery = max(period // 2, task_named(spec.task).recovery)
    options |= {
        "Farcasting": {**own, "recovery": recovery},
        "Farcasting, held-out judge": {
            **own,
            "recovery": recovery,
            "judge": lambda: task_named(spec.task).held_out_loss(model),
        },
        "Farcasting, unjudged": own,
        "line, 1 spacing": {"forecaster": wfcast.linear_trend, "horizon": spacing},
        "line, 3 spacings": {"forecaster": wfcast.linear_trend, "horizon": 3 * spacing},
        # at a fifth of the run and at two, through sixteen states each
        "line over the history": {
            "spacing": max(1, fifth // 16),
            "period": fifth,
            "horizon": fifth,
            "stop": spec.steps // 2,
        },
        "nowcaster": {"forecaster": learned, "horizon": 5 * spacing, "period": 10 * spacing},
        "persistence": {
            "forecaster": wfcast.persistence,
            "horizon": spacing,
            "period": period,
            "recovery": period // 2,
        },
    }[spec.method]
    return Farcasting(model, optimizer, **options)


def train(
    spec: Spec, learned: Operator | None = None, states: dict[int, Weights] | None = None
) -> dict[str, Any]:
    """Held-out losses as (step, loss), and what Farcasting says; `states` is filled on the way."""
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("high")  # TF32 on a GPU
    task, steps = task_named(spec.task), spec.steps
    model = task.model(spec.seed)
    optimizer = task.optimizer(model, spec.rate)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda done: factor(spec.schedule, done + 1, steps)
    )
    jumping = jumper(spec, model, optimizer, learned)
    curve = [(0, task.held_out_loss(model))]
    for step in range(1, steps + 1):
        loss = task.loss(model, task.batch(spec.seed, step))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        if jumping is not None:
            jumping.step(loss.detach())
        if step % task.every == 0 or step == steps:
            with warnings.catch_warnings():  # windows are looked at, too
                warnings.filterwarnings("ignore", "the model is being evaluated")
                curve.append((step, task.held_out_loss(model)))
        if states is not None and step % spacing_of(steps) == 0:
            states[step] = {n: p.detach().clone() for n, p in model.named_parameters()}
    result: dict[str, Any] = {"spec": asdict(spec), "curve": curve}
    if isinstance(jumping, Farcasting):
        jumping.close()
        result["saved"] = jumping.steps_saved
        result["farcasting"] = jumping.summary().to_dict()
    return result


def kept(spec: Spec, learned: Operator | None = None) -> dict[str, Any]:
    """The same from the disk, or else written there."""
    if not spec.path.exists():
        result = train(spec, learned)
        spec.path.parent.mkdir(parents=True, exist_ok=True)
        spec.path.write_text(json.dumps(result))
    found: dict[str, Any] = json.loads(spec.path.read_text())
    return found


def learn(task: str, schedule: str, rate: float, steps: int) -> Operator:
    """The nowcaster of a recipe, from its sibling runs."""
    runs: list[dict[int, Weights]] = [{} for _ in SIBLINGS]
    for seed, states in zip(SIBLINGS, runs, strict=True):
        train(Spec(task, seed, schedule, rate, "control", steps), states=states)
    return nowcaster(runs, spacing_of(steps), 5).operator_


def run_all(specs: Iterable[Spec], pool: ProcessPoolExecutor) -> dict[Spec, dict[str, Any]]:
    """Every run, in parallel."""
    specs = list(specs)
    learned: dict[tuple[Any, ...], Future[Operator]] = {}
    for s in specs:
        recipe = (s.task, s.schedule, s.rate, s.steps)
        if s.method == "nowcaster" and recipe not in learned and not s.path.exists():
            learned[recipe] = pool.submit(learn, *recipe)
    # those last that wait for what is learned
    jobs = {s: pool.submit(kept, s) for s in specs if s.method != "nowcaster" or s.path.exists()}
    for s in specs:
        if s not in jobs:
            operator = learned[s.task, s.schedule, s.rate, s.steps].result()
            jobs[s] = pool.submit(kept, s, operator)
    return {s: jobs[s].result() for s in tqdm(specs, desc=specs[0].task, unit="run")}


# ---- what a curve says ------------------------------------------------------------------------

Curve = Sequence[tuple[int, float]]


def smooth(curve: Curve) -> list[tuple[int, float]]:
    """Means of three measurements in a row, at the last one's step."""
    return [
        (curve[i][0], statistics.mean(loss for _, loss in curve[i - 2 : i + 1]))
        for i in range(2, len(curve))
    ]


def lowest(curve: Curve) -> float:
    """The loss that early stopping would have kept."""
    return min(loss for _, loss in smooth(curve))


def reached(curve: Curve, goal: float) -> float:
    """The step at which a loss is reached, on lines between measurements; infinity if never."""
    points = smooth(curve)
    if points[0][1] <= goal:
        return points[0][0]
    for (step, loss), (after, lower) in itertools.pairwise(points):
        if lower <= goal:
            return step + (after - step) * (loss - goal) / (loss - lower)
    return math.inf


def saved(own: Curve, its: Curve) -> float:
    """Steps that a run with jumps was ahead of its control at the last loss that both reach."""
    goal = max(lowest(own), lowest(its))
    return reached(own, goal) - reached(its, goal)
