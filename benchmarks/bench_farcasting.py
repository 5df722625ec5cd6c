"""Steps to the same held-out loss, with and without Farcasting: a digits MLP, rates and schedules.

    python benchmarks/bench_farcasting.py [--seeds 3] [--steps 2000] [--json PATH]

The plain run is swept over learning rates and schedules (constant, linear decay, decay in the last
fifth). For each of them: the loss that it ends with (the mean of its last three evaluations), and
the first step at which the run with Farcasting is at or below that loss, as a ratio of the plain
run's first such step. Both see the same batches. Then the overhead: seconds in Farcasting as a
share of all, on this tiny model an upper bound.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, machine, table
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy

from wfcast.torch import Farcasting

RATES = (1e-4, 3e-4, 1e-3, 3e-3)
SCHEDULES = ("constant", "linear", "tail")
EVERY = 25


def factor(schedule: str, step: int, steps: int) -> float:
    if schedule == "linear":
        return 1 - (step - 1) / steps
    return min(1.0, (steps - step + 1) / (steps / 5)) if schedule == "tail" else 1.0


def train(seed: int, rate: float, schedule: str, steps: int, jump: bool) -> dict[str, Any]:
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train_rows, held = order[:1200], order[1200:]
    torch.manual_seed(seed)
    model = torch.nn.Sequential(
        torch.nn.Linear(64, 128),
        torch.nn.ReLU(),
        torch.nn.Linear(128, 128),
        torch.nn.ReLU(),
        torch.nn.Linear(128, 10),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda done: factor(schedule, done + 1, steps)
    )

    @torch.no_grad()
    def held_out() -> float:
        return float(cross_entropy(model(x[held]), y[held]))

    farcasting = Farcasting(model, optimizer, judge=held_out, stop=steps) if jump else None
    draw = torch.Generator().manual_seed(seed + 1000)
    curve, begun = [], time.perf_counter()
    for step in range(1, steps + 1):
        rows = train_rows[torch.randint(1200, (64,), generator=draw)]
        loss = cross_entropy(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        if farcasting is not None:
            farcasting.step()
        if step % EVERY == 0:
            curve.append((step, held_out()))
    result: dict[str, Any] = {"curve": curve, "seconds": time.perf_counter() - begun}
    if farcasting is not None:
        result["farcasting"] = farcasting.summary().to_dict()
        farcasting.close()
    return result


def final(curve: list[tuple[int, float]]) -> float:
    return statistics.mean(loss for _, loss in curve[-3:])


def first_below(curve: list[tuple[int, float]], loss: float) -> int | None:
    return next((step for step, value in curve if value <= loss), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--json", type=Path, default=RESULTS / "bench_farcasting.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    runs, rows = [], []
    for schedule in SCHEDULES:
        for rate in RATES:
            ratios, ends, jumped_ends, shares, lost = [], [], [], [], []
            for seed in range(args.seeds):
                plain = train(seed, rate, schedule, args.steps, jump=False)
                jumped = train(seed, rate, schedule, args.steps, jump=True)
                runs.append(
                    {
                        "rate": rate,
                        "schedule": schedule,
                        "seed": seed,
                        "plain": plain,
                        "jumped": jumped,
                    }
                )
                goal = final(plain["curve"])
                reached = first_below(jumped["curve"], goal)
                own = first_below(plain["curve"], goal)
                assert own is not None
                ratios.append(reached / own if reached else float("inf"))
                ends.append(goal)
                jumped_ends.append(final(jumped["curve"]))
                log = jumped["farcasting"]
                shares.append(log["farcasting/seconds"] / jumped["seconds"])
                lost.append(log["farcasting/steps_lost"])
            rows.append(
                [
                    schedule,
                    f"{rate:g}",
                    f"{statistics.median(ends):.4f}",
                    f"{statistics.median(jumped_ends):.4f}",
                    f"{statistics.median(ratios):.2f}",
                    f"{min(ratios):.2f} to {max(ratios):.2f}",
                    f"{statistics.median(lost):.0f}",
                    f"{100 * statistics.median(shares):.1f} %",
                ]
            )
            print(*rows[-1], sep="  ", flush=True)
    header = (
        "schedule",
        "rate",
        "plain ends at",
        "with jumps",
        "steps, ratio",
        "range",
        "lost",
        "time in it",
    )
    print(table(header, rows))
    args.json.parent.mkdir(exist_ok=True)
    args.json.write_text(
        json.dumps({"machine": machine(), "header": header, "rows": rows, "runs": runs})
    )


if __name__ == "__main__":
    main()
