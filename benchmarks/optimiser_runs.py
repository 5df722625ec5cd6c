"""Weights of simulated training runs, of any size, as files.

Every weight is trained by SGD on a quadratic of its own: ``w += -rate h (w - w*) + noise``, an
autoregression whose state after k steps has a closed form, so that the recorded steps are drawn
exactly without walking through all of them. Layers differ by orders of magnitude in the scale of
their weights, their curvature and their noise; within a layer curvatures are log-normal and the
ways to go, ``w* - w_0``, heavy-tailed. In every eighth layer 3 % of the weights never move, as the
embeddings of tokens that never occur.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

LAYER_ROWS = 600_000


def layer(rng: np.random.Generator, rows: int, steps: Sequence[int], frozen: bool) -> Array:
    """One layer's weights at `steps` (the first is 0), float32 of shape (len(steps), rows)."""
    scale = np.float32(10 ** rng.uniform(-2.2, -0.8))
    rate = np.float32(10 ** rng.uniform(-4.0, -2.5))
    noise = scale * np.float32(10 ** rng.uniform(-3.3, -2.3))
    speed = rate * np.exp(rng.standard_normal(rows, np.float32))
    speed = np.minimum(speed, np.float32(0.5))
    start = scale * rng.standard_normal(rows, np.float32)
    way = np.float32(0.3) * scale * rng.standard_exponential(rows, np.float32)
    way *= np.where(rng.random(rows, np.float32) < 0.5, np.float32(-1), np.float32(1))
    still = rng.random(rows, np.float32) < 0.03 if frozen else None
    out = np.empty((len(steps), rows), np.float32)
    out[0] = start
    offset = -way  # w - w*
    for i in range(1, len(steps)):
        k = np.float32(steps[i] - steps[i - 1])
        spread = np.sqrt(np.expm1(-2 * k * speed) / np.expm1(-2 * speed))
        offset = offset * np.exp(-k * speed)
        offset += noise * spread * rng.standard_normal(rows, np.float32)
        out[i] = start + way + offset
        if still is not None:
            out[i, still] = start[still]
    return out


def layers(seed: int, rows: int, steps: Sequence[int]) -> Iterator[Array]:
    """Layers of different sizes, `rows` weights in all."""
    rng = np.random.default_rng(seed)
    done = index = 0
    mean = min(LAYER_ROWS, max(rows // 12, 1))
    while done < rows:
        size = min(int(mean * rng.uniform(0.2, 2.0)) + 1, rows - done)
        yield layer(rng, size, steps, frozen=index % 8 == 0)
        done, index = done + size, index + 1


def arrays(seed: int, rows: int, steps: Sequence[int]) -> Array:
    """All weights at all steps, in memory, shape (len(steps), rows)."""
    return np.concatenate(list(layers(seed, rows, steps)), axis=1)


def files(folder: Path, seed: int, rows: int, steps: Sequence[int]) -> dict[int, Path]:
    """The same as one .npy file per step; gives their paths."""
    paths = {step: folder / f"run{seed}-step{step}.npy" for step in steps}
    maps: list[Any] = [
        np.lib.format.open_memmap(path, "w+", np.float32, (rows,)) for path in paths.values()
    ]
    done = 0
    for part in layers(seed, rows, steps):
        for target, values in zip(maps, part, strict=True):
            target[done : done + part.shape[1]] = values
        done += part.shape[1]
    return paths
