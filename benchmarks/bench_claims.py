"""What Farcasting says it saved, beside paired runs that were trained on for as long as it took.

    python benchmarks/bench_claims.py

Digits from scratch at low rates, and the trained network fine-tuned to digits moved by a pixel.
"""

from __future__ import annotations

import copy
from functools import cached_property
from typing import Any

import torch
from common import Target, machine, parser, print_machine, print_targets, table, write_json
from torch import nn
from training_tasks import Digits

from wfcast.torch import Farcasting

NAME = "bench_claims"
EVERY = 10  # steps between measurements of the held-out loss
LONGEST = 10_000
FACTOR = 1.5  # claimed over true in sum, or the other way round


class Moved(Digits):
    """The same digits, moved by a pixel, for a network that was trained on them as they are."""

    name = "moved digits"

    @cached_property
    def _trained(self) -> nn.Module:
        task = Digits()
        model = task.model(0)
        optimizer = task.optimizer(model, 1e-3)
        for step in range(1, 601):
            optimizer.zero_grad()
            task.loss(model, task.batch(0, step)).backward()
            optimizer.step()
        return model

    def model(self, seed: int) -> nn.Module:
        """A copy of the trained one."""
        return copy.deepcopy(self._trained)

    def loss(self, model: Any, batch: Any) -> torch.Tensor:
        """The mean loss, of the images moved."""
        images = torch.roll(batch[0].view(-1, 8, 8), 1, 2).reshape(-1, 64)
        return super().loss(model, (images, batch[1]))


CASES = (
    (Digits(), 1e-5, 1000),
    (Digits(), 3e-5, 1000),
    (Moved(), 1e-5, 2000),
    (Moved(), 3e-5, 1000),
    (Moved(), 1e-4, 1000),
)


def train(
    task: Digits, rate: float, seed: int, steps: int, goal: float | None = None
) -> tuple[int, float, Farcasting | None]:
    """Steps taken, the held-out loss then, and the jumps; with a goal, none and until it is met."""
    model = task.model(seed)
    optimizer = task.optimizer(model, rate)

    def held_out() -> float:
        return task.held_out_loss(model)

    farcasting = None
    if goal is None:
        farcasting = Farcasting(model, optimizer, judge=held_out, stop=steps)
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        task.loss(model, task.batch(seed + 1, step)).backward()
        optimizer.step()
        if farcasting is not None:
            farcasting.step()
        elif step % EVERY == 0 and held_out() <= goal:
            break
    return step, held_out(), farcasting


def main() -> None:
    """Run the cases, print the table and the targets, write the JSON."""
    options = parser(NAME, __doc__.splitlines()[0])
    options.add_argument("--seeds", type=int, default=4)
    args = options.parse_args()
    torch.set_num_threads(1)
    info = machine()
    print_machine(info, args.threads)
    rows, found = [], []
    for task, rate, steps in CASES[-1:] if args.quick else CASES:
        for seed in range(1 if args.quick else args.seeds):
            _, goal, farcasting = train(task, rate, seed, steps)
            took, _, _ = train(task, rate, seed, LONGEST, goal)
            assert farcasting is not None
            farcasting.close()
            saved, low, high = farcasting.steps_saved
            kept = [row for row in farcasting.history if row["outcome"] == "kept"]
            ahead = sum(row["horizon"] for row in kept)
            true = took - steps
            within = low <= true <= high
            found.append(
                {
                    "task": task.name,
                    "rate": rate,
                    "seed": seed,
                    "claimed": [saved, low, high],
                    "true": true,
                    "horizons": ahead,
                    "within": within,
                }
            )
            interval = f"{saved:.0f} ({low:.0f} to {high:.0f})"
            mark = "" if within else "outside"
            rows.append(
                (task.name, f"{rate:g}", str(seed), interval, str(true), mark, f"{ahead:.0f}")
            )
    print(table(("task", "rate", "seed", "claimed", "true", "", "horizons"), rows))
    claimed, true = sum(f["claimed"][0] for f in found), sum(f["true"] for f in found)
    apart = max(claimed, true) / max(min(claimed, true), 1)
    inside = sum(f["within"] for f in found) / len(found)
    targets = [
        Target(
            f"claimed {claimed:.0f}, true {true}: the larger over the other",
            apart,
            FACTOR,
            at_most=True,
        ),
        Target(f"true within the interval, of {len(found)} runs", inside, 0.9),
    ]
    print_targets(targets)
    write_json(
        args, NAME, {"machine": info, "runs": found, "targets": [t.as_dict() for t in targets]}
    )


if __name__ == "__main__":
    main()
