"""Driving _core.Fit directly, whole or in segments."""

from itertools import pairwise

import numpy as np

from wfcast import _core


def fit(X, Y, groups=None, first_update=None, beta=0.0, cuts=(), **options):
    """Fit columns of X and Y, cut into segments at the given rows."""
    X, Y = np.asarray(X), np.asarray(Y)
    n = len(X)
    solver = _core.Fit(
        X.shape[1],
        Y.shape[1],
        n_rows=n,
        beta=beta,
        first_update=None if first_update is None else np.asarray(first_update, float),
        **options,
    )
    edges = [0, *cuts, n]
    while solver.needs_pass():
        for start, stop in pairwise(edges):
            solver.accumulate(
                [X[start:stop, k] for k in range(X.shape[1])],
                [Y[start:stop, j] for j in range(Y.shape[1])],
                None if groups is None else np.asarray(groups, np.int64)[start:stop],
            )
        solver.advance()
    return solver.result()


def parted(X, Y, edges, groups=None, first_update=None, beta=0.0, order=None, **options):
    """The same by one solver for the rows between each two edges: what each of them comes to.

    In every pass they hand their statistics to each other, as processes would. `order` is that in
    which the solvers accumulate.
    """
    X, Y = np.asarray(X), np.asarray(Y)
    bounds = list(pairwise(edges))
    solvers = [
        _core.Fit(
            X.shape[1],
            Y.shape[1],
            n_rows=len(X),
            n_here=stop - start,
            beta=beta,
            first_update=None if first_update is None else np.asarray(first_update, float),
            **options,
        )
        for start, stop in bounds
    ]
    while solvers[0].needs_pass():
        for i in order or range(len(solvers)):
            start, stop = bounds[i]
            solvers[i].accumulate(
                list(X[start:stop].T),
                list(Y[start:stop].T),
                None if groups is None else np.asarray(groups, np.int64)[start:stop],
                start,
            )
        parts = [solver.export() for solver in solvers]
        for solver in solvers:
            solver.absorb(parts)
            solver.advance()
    return [solver.result() for solver in solvers]


def trajectories(rng, n, p=2, m=1, dtype=np.float32):
    """Weights that drift and diffuse, of several scales, as a run's tensors hold them."""
    scale = rng.choice([0.02, 0.05, 1.0], n)
    start = rng.normal(size=n) * scale
    drift = rng.standard_t(3, size=n) * 0.1 * scale
    steps = np.concatenate([np.linspace(0, 1, p), 1 + 0.5 * np.arange(1, m + 1)])
    noise = rng.normal(size=(n, p + m)) * 0.02 * scale[:, None]
    W = (start[:, None] + drift[:, None] * steps + noise).astype(dtype)
    return np.asfortranarray(W[:, :p]), np.asfortranarray(W[:, p:])
