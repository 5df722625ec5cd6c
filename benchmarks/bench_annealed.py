"""What averages beside a run cost: a sweep of them, and its share of the training's time.

    python benchmarks/bench_annealed.py

See `README.md` in this folder for how to read it.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from common import (
    Target,
    interleaved,
    limit_threads,
    machine,
    parser,
    print_machine,
    print_targets,
    ratio,
    write_json,
)
from transformers import DistilBertConfig, DistilBertForMaskedLM

from wfcast import _core
from wfcast.torch import Annealed

NAME = "bench_annealed"
EVERY = 10


def clock(device: str) -> float:
    """Seconds, when everything before is done on the device, too."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def step_seconds(model: Any, device: str) -> float:
    """Of a real training step: masked LM, batch 16 x 128, AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    ids = torch.randint(5, model.config.vocab_size, (16, 128), device=device)
    taken = []
    for _ in range(4 if device == "cpu" else 40):
        begun = clock(device)
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        taken.append(clock(device) - begun)
    return statistics.median(taken[1:])


def main() -> None:
    options = parser(NAME, __doc__.splitlines()[0]).parse_args()
    limit_threads(options.threads)
    info = machine()
    print_machine(info, options.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    small = {"n_layers": 1, "dim": 64, "hidden_dim": 64, "n_heads": 2} if options.quick else {}
    model = DistilBertForMaskedLM(DistilBertConfig(**small)).to(device)
    n = sum(p.numel() for p in model.parameters())
    a, b, out = (torch.rand(n, device=device) for _ in range(3))
    annealed = Annealed(model, every=1)
    moved = 4 + 8 * len(annealed.profiles)  # bytes a weight: it, and its averages in and out

    def triad() -> None:
        if device == "cuda":
            torch.add(a, b, alpha=2.0, out=out)
        else:
            _core.triad(out.numpy(), a.numpy(), b.numpy(), 2.0, options.threads)
        clock(device)

    def sweep() -> None:
        annealed.step()
        clock(device)

    sweep()  # the first one makes the averages
    times = interleaved({"sweep": sweep, "triad": triad}, repeats=15)
    bandwidth = 12 * n / statistics.median(times["triad"])
    over = ratio(times, "sweep", "triad") * 12 / moved
    step = step_seconds(model, device)
    seconds = statistics.median(times["sweep"])
    print(
        f"\n{n / 1e6:.1f}M parameters on {device}, averages {annealed.profiles}: a sweep takes "
        f"{seconds:.4f} s, a training step {step:.4f} s, triad {bandwidth / 1e9:.1f} GB/s"
    )
    targets = [
        Target("a sweep, over its bytes at triad's bandwidth", over, 1.2, at_most=True),
        Target(
            f"share of step time, a sweep every {EVERY} steps",
            seconds / (EVERY * step),
            0.005 if device == "cpu" else 0.01,
            at_most=True,
        ),
    ]
    print_targets(targets)
    found = {"parameters": n, "device": device, "step_seconds": step, "sweep_seconds": seconds}
    payload = {"machine": info, **found, "targets": [t.as_dict() for t in targets]}
    write_json(options, NAME, payload)


if __name__ == "__main__":
    main()
