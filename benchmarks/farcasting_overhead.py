"""What Farcasting takes of the time of a training step, for `bench_farcasting.py --overhead`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from common import Target

from wfcast.torch import Farcasting

STEPS, WARM = 550, 250  # that Farcasting follows; of these to get warm, with the first jump
JUMPS = 4  # in them, at 200, 300, 400 and 500


def clock(device: str) -> float:
    """Seconds, when everything before is done on the device, too."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


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
                walls.append((clock(device) - begun) / (STEPS - WARM if with_it else 200))
            plain = (walls[0] + walls[2]) / 2
            print(f"    per step {walls[0]:.5f} s without, {walls[1]:.5f} s with, {walls[2]:.5f} s")
            found[store]["seconds_per_step"] = walls
            target(f"states on the {store}, beside the training", walls[1] / plain - 1)
    return found


def follow(
    model: Any, optimizer: Any, train: Callable[[], Any], store: str, device: str
) -> list[float]:
    """Seconds in Farcasting of every step; without a device to wait for, when step `WARM` began."""
    farcasting = Farcasting(model, optimizer, store=store)
    losses = (5.0 / (1 + 0.01 * t) for t in range(1, 10_000))
    spent = []
    for step in range(STEPS):
        if step == WARM and not device:
            spent = [clock("cuda")]
        train()
        begun = clock(device)
        farcasting.step(next(losses))
        if device:
            spent.append(clock(device) - begun)
    jumps = int(farcasting.log()["farcasting/jumps"])
    assert jumps == JUMPS, farcasting.summary()
    farcasting.close()
    return spent
