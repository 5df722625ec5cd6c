"""The trajectories of the paper's synthetic protocol, all runs of a data set at once.

Six families, each of 200 training runs recorded at steps 0, 1, ..., 200. Every run draws its own
problem and its own start:

* ``Least_Squares_{1d,3d}_{GD,SGD}``: X (100, d) and w* from N(0, 1), y = X w*, w_0 from U(0, 1)^d.
  The gradient is X'Xw - X'y; gradient descent at rate 0.01 / lambda_max(X'X), or SGD on 8 of the
  100 points, drawn anew at every step, at rate 0.001.
* ``Neural_Network_1d_{SGD,Adam}``: a 1-10-1 ReLU network (31 parameters) on 100 points of the same
  kind (d = 1), mean squared error, batches of 64 from a new shuffle every epoch (so 64 and 36),
  rate 0.002, PyTorch's initialisation of linear layers, every optimizer step recorded.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

DATA_SETS = (
    "Least_Squares_1d_GD",
    "Least_Squares_1d_SGD",
    "Least_Squares_3d_GD",
    "Least_Squares_3d_SGD",
    "Neural_Network_1d_SGD",
    "Neural_Network_1d_Adam",
)
RUNS, STEPS, POINTS = 200, 200, 100
HIDDEN = 10


def trajectories(name: str, seed: int) -> Array:
    """All runs of one data set, float64 of shape (runs, weights, steps + 1)."""
    family, size, optimizer = name.rsplit("_", 2)
    rng = np.random.default_rng([seed, DATA_SETS.index(name)])
    d = int(size[0])
    x = rng.standard_normal((RUNS, POINTS, d))
    y = x @ rng.standard_normal((RUNS, d, 1))
    if family == "Least_Squares":
        return _least_squares(x, y, optimizer, rng)
    return _network(x, y, optimizer, rng)


def _least_squares(x: Array, y: Array, optimizer: str, rng: np.random.Generator) -> Array:
    runs, _, d = x.shape
    w = rng.random((runs, d, 1))
    path = [w]
    hessian, moment = x.transpose(0, 2, 1) @ x, x.transpose(0, 2, 1) @ y
    rate = 0.01 / np.linalg.eigvalsh(hessian)[:, -1, None, None]
    rows = np.arange(runs)[:, None]
    for _ in range(STEPS):
        if optimizer == "GD":
            w = w - rate * (hessian @ w - moment)
        else:
            batch = np.argpartition(rng.random((runs, POINTS)), 8, axis=1)[:, :8]
            xb, yb = x[rows, batch], y[rows, batch]
            w = w - 0.001 * (xb.transpose(0, 2, 1) @ (xb @ w - yb))
        path.append(w)
    return np.concatenate(path, axis=2)


def _network(x: Array, y: Array, optimizer: str, rng: np.random.Generator) -> Array:
    runs = len(x)
    narrow = 1 / np.sqrt(HIDDEN)
    # w1, b1 from U(-1, 1); w2, b2 from U(-1/sqrt(10), 1/sqrt(10))
    scale = np.concatenate([np.ones(2 * HIDDEN), np.full(HIDDEN + 1, narrow)])
    w = rng.uniform(-1, 1, (runs, 3 * HIDDEN + 1)) * scale
    first, second = np.zeros_like(w), np.zeros_like(w)
    path, rows = [w], np.arange(runs)[:, None]
    order = np.empty((runs, 0), np.intp)
    for step in range(1, STEPS + 1):
        if order.shape[1] == 0:
            order = np.argsort(rng.random((runs, POINTS)), axis=1)
        batch, order = order[:, :64], order[:, 64:]
        gradient = network_gradient(w, x[rows, batch, 0], y[rows, batch, 0])
        if optimizer == "SGD":
            w = w - 0.002 * gradient
        else:
            first = 0.9 * first + 0.1 * gradient
            second = 0.999 * second + 0.001 * gradient**2
            m, v = first / (1 - 0.9**step), second / (1 - 0.999**step)
            w = w - 0.002 * m / (np.sqrt(v) + 1e-8)
        path.append(w)
    return np.stack(path, axis=2)


def network_gradient(w: Array, x: Array, y: Array) -> Array:
    """The gradient of each run's mean squared error; w (runs, 31), x and y (runs, batch)."""
    w1, b1, w2, b2 = np.split(w, [HIDDEN, 2 * HIDDEN, 3 * HIDDEN], axis=1)
    before = x[:, :, None] * w1[:, None] + b1[:, None]
    hidden = np.maximum(before, 0)
    error = (hidden @ w2[:, :, None])[:, :, 0] + b2 - y
    slope = 2 * error / x.shape[1]
    back = slope[:, :, None] * w2[:, None] * (before > 0)
    return np.concatenate(
        [
            np.einsum("rb,rbh->rh", x, back),
            back.sum(axis=1),
            np.einsum("rb,rbh->rh", slope, hidden),
            slope.sum(axis=1, keepdims=True),
        ],
        axis=1,
    )
