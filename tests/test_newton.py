"""The derivations of docs/solver.md, held to what they are derived from, and to the solver."""

from itertools import pairwise

import fits
import numpy as np
import pytest
from scipy.optimize import linprog

RNG = np.random.default_rng


def selections(parts, q):
    """T_kind with v_kind = T_kind z: part 0, part 1, their difference; for one part, itself."""
    own, none = np.eye(q), np.zeros((q, q))
    if parts == 1:
        return {0: own, 2: own}
    return {0: np.hstack([own, own]), 1: np.hstack([own, none]), 2: np.hstack([none, own])}


class Point:
    """A problem and a point inside its bounds, all at random; nothing of it is near a solution."""

    def __init__(self, seed, parts, q=3, rows=12, hinges=2):
        rng = RNG(seed)
        self.q, self.hinges, self.T = q, hinges, selections(parts, q)
        self.kind = np.repeat(sorted(self.T), rows)
        n = len(self.kind)
        self.x, self.y = rng.normal(size=(n, q)), rng.normal(size=n)
        self.group = np.where(self.kind == 2, rng.integers(0, hinges, n), -1)
        self.u, self.c = rng.normal(size=(hinges, q)), rng.normal(size=hinges)
        self.g = rng.normal(size=parts * q)
        self.eta, self.mu = 0.7, rng.uniform(0.1, 1)
        self.weight = rng.uniform(0.2, 3, n)
        self.z = rng.normal(size=parts * q)
        self.rp, self.rm = rng.uniform(0.1, 2, (2, n))
        self.t, self.sigma = rng.uniform(0.1, 2, (2, hinges))
        self.lam = self.eta * rng.uniform(0.2, 0.8, hinges)
        self.rest = self.eta - self.lam
        limit = self.limit(self.lam, 1.0)
        self.a = limit * rng.uniform(-0.8, 0.8, n)
        self.sp, self.sm = limit - self.a, limit + self.a
        # second-order terms of Mehrotra's corrector
        self.cp, self.cm = rng.normal(size=(2, n)) * 0.1
        self.ct, self.cs = rng.normal(size=(2, hinges)) * 0.1

    def limit(self, of_hinge, else_):
        """Of every row: its hinge's number, or that of the others."""
        return np.where(self.kind == 2, of_hinge[self.group], else_)

    def over_rows(self, v=None):
        """X with rows T_kind' x_i over all unknowns, or the products with v."""
        X = np.array([self.x[i] @ self.T[k] for i, k in enumerate(self.kind)])
        return X if v is None else X @ v

    def member(self):
        """hinges x rows: 1 where a difference row belongs to a hinge."""
        return (self.group == np.arange(self.hinges)[:, None]).astype(float)

    def misses(self):
        """rho, pi, zeta: what the three equations miss."""
        X, U = self.over_rows(), self.u @ self.T[2]
        rho = self.y - X @ self.z + self.rp - self.rm
        sums = self.member() @ (self.rp + self.rm)
        pi = sums + U @ self.z - self.c + self.sigma - self.t
        return rho, pi, self.g + X.T @ self.a + U.T @ self.lam


def full_newton(d):
    """The Newton step on all variables at once: z, rp, rm, t, sigma, a, lambda.

    Every equation is linearised as it stands; nothing is eliminated.
    """
    n, h, Q = len(d.y), d.hinges, len(d.z)
    X, U, E = d.over_rows(), d.u @ d.T[2], d.member()
    rho, pi, zeta = d.misses()
    sizes = {"z": Q, "rp": n, "rm": n, "t": h, "sigma": h, "a": n, "lam": h}
    edges = np.cumsum([0, *sizes.values()])
    at = {name: slice(*ends) for name, ends in zip(sizes, pairwise(edges), strict=True)}
    blocks, right = [], []

    def equation(value, **terms):
        row = np.zeros((len(value), edges[-1]))
        for name, matrix in terms.items():
            row[:, at[name]] = matrix
        blocks.append(row)
        right.append(value)

    diag = np.diag
    equation(rho, z=X, rp=-np.eye(n), rm=np.eye(n))
    equation(-pi, z=U, rp=E, rm=E, t=-np.eye(h), sigma=np.eye(h))
    equation(-zeta, a=X.T, lam=U.T)
    mu = d.mu * d.weight
    # sp = limit - a and sm = limit + a, where the limit of difference rows moves with lambda
    equation(mu - d.cp - d.rp * d.sp, rp=diag(d.sp), a=-diag(d.rp), lam=d.rp[:, None] * E.T)
    equation(mu - d.cm - d.rm * d.sm, rm=diag(d.sm), a=diag(d.rm), lam=d.rm[:, None] * E.T)
    equation(d.mu - d.ct - d.t * d.rest, t=diag(d.rest), lam=-diag(d.t))
    equation(d.mu - d.cs - d.sigma * d.lam, sigma=diag(d.lam), lam=diag(d.sigma))
    step = np.linalg.solve(np.vstack(blocks), np.concatenate(right))
    return {name: step[where] for name, where in at.items()}


def reduced_newton(d, cross=1.0):
    """The same step by the formulas of docs/solver.md, which are those of csrc/solve/ipm.

    Rows stay with the q unknowns of their kind; `cross` scales 4 alpha gamma w, to break it.
    """
    rho, pi, zeta = d.misses()
    E, mu = d.member(), d.mu * d.weight
    alpha, gamma = d.rp / d.sp, d.rm / d.sm
    w = 1 / (alpha + gamma)
    kp, km = (mu - d.cp) / d.sp - d.rp, (mu - d.cm) / d.sm - d.rm
    kt, ks = (d.mu - d.ct) / d.rest - d.t, (d.mu - d.cs) / d.lam - d.sigma
    e = w * (rho + kp - km)
    omega = d.t / d.rest + d.sigma / d.lam + E @ (cross * 4 * alpha * gamma * w)
    uhat = d.u + E @ (((alpha - gamma) * w)[:, None] * d.x)
    phi = ks - kt + E @ (kp + km - (alpha - gamma) * e) + pi
    M, rhs = np.zeros((len(d.z), len(d.z))), -zeta
    for kind, T in d.T.items():
        rows = d.kind == kind
        M += T.T @ (d.x[rows].T * w[rows]) @ d.x[rows] @ T
        rhs = rhs + T.T @ (d.x[rows].T @ e[rows])
    M += d.T[2].T @ (uhat.T / omega) @ uhat @ d.T[2]
    rhs = rhs - d.T[2].T @ (uhat.T @ (phi / omega))
    dz = np.linalg.solve(M, rhs)
    dlam = (phi + uhat @ d.T[2] @ dz) / omega
    of_row = d.limit(dlam, 0.0)
    da = w * (d.over_rows(dz) - rho - kp + km + (alpha - gamma) * of_row)
    return {
        "z": dz,
        "rp": kp - alpha * (of_row - da),
        "rm": km - gamma * (of_row + da),
        "t": kt + d.t / d.rest * dlam,
        "sigma": ks - d.sigma / d.lam * dlam,
        "a": da,
        "lam": dlam,
    }


def distance(one, other):
    size = max(np.abs(v).max() for v in other.values())
    return max(np.abs(one[k] - other[k]).max() for k in other) / size


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("seed", range(10))
def test_reduced_system_is_newtons(parts, seed):
    d = Point(seed, parts)
    full = full_newton(d)
    assert distance(reduced_newton(d), full) < 1e-12
    assert distance(reduced_newton(d, cross=0.5), full) > 1e-4  # the comparison can fail


@pytest.mark.parametrize("seed", range(5))
def test_change_of_variables_changes_nothing(seed):
    """z = (v_1, v_0 - v_1): the step and the value are those in (v_0, v_1)."""
    d, plain = Point(seed, 2), Point(seed, 2)
    q = d.q
    own, none = np.eye(q), np.zeros((q, q))
    change = np.block([[none, own], [own, -own]])  # (v_0, v_1) -> z
    plain.T = {0: np.hstack([own, none]), 1: np.hstack([none, own]), 2: np.hstack([own, -own])}
    np.testing.assert_allclose(d.T[2] @ change, plain.T[2])
    plain.z, plain.g = np.linalg.solve(change, d.z), change.T @ d.g
    for kind, T in d.T.items():
        np.testing.assert_allclose(T @ d.z, plain.T[kind] @ plain.z)
    np.testing.assert_allclose(plain.g @ plain.z, d.g @ d.z)
    g0, g1 = plain.g[:q], plain.g[q:]
    np.testing.assert_allclose(d.g, np.concatenate([g0 + g1, g0]))
    want, got = reduced_newton(plain), reduced_newton(d)
    want["z"] = change @ want["z"]
    assert distance(got, want) < 1e-12


def value(d, z):
    r = d.over_rows(z) - d.y
    excess = d.member() @ np.abs(r) + d.u @ d.T[2] @ z - d.c
    return d.g @ z + np.abs(r[d.kind != 2]).sum() + d.eta * np.maximum(excess, 0).sum()


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("seed", range(5))
def test_multipliers_bound_the_objective(parts, seed):
    """F(z) >= zeta'z - a'y - lambda'c at any z, for any multipliers within their limits."""
    d = Point(seed, parts)
    zeta = d.misses()[2]
    for z in RNG(seed).normal(size=(50, len(d.z))) * 3:
        assert value(d, z) >= zeta @ z - d.a @ d.y - d.lam @ d.c


def imbalance(X, r, kinds, group, c, eta):
    """Least max |zeta| that multipliers of the KKT conditions leave, by a linear program; they too.

    X: rows over all unknowns, r: their residuals. A row off zero has a = sign(r), a difference row
    lambda times that; a row at zero has any a in between.
    """
    n, h = len(X), len(c)
    off = np.abs(r) > 1e-9 * np.abs(r).max()
    moved = np.bincount(group[kinds == 2], np.abs(r[kinds == 2]), minlength=h)
    tie = 1e-9 * (1 + np.abs(c))
    lam_bounds = [
        (eta, eta) if m > k + s else (0, 0) if m < k - s else (0, eta)
        for m, k, s in zip(moved, c, tie, strict=True)
    ]
    fixed = off & (kinds != 2)
    bounds = [(s, s) if known else (None, None) for s, known in zip(np.sign(r), fixed, strict=True)]
    A_ub, b_ub, A_eq, b_eq = [], [], [], []
    for i in np.flatnonzero(~fixed):
        row = np.zeros(n + h + 1)
        row[i] = 1
        if kinds[i] != 2:
            bounds[i] = (-1, 1)
        elif off[i]:
            row[n + group[i]] = -np.sign(r[i])
            A_eq.append(row)
            b_eq.append(0.0)
        else:
            for sign in (1, -1):
                both = sign * row
                both[n + group[i]] = -1
                A_ub.append(both)
                b_ub.append(0.0)
    for k in range(X.shape[1]):
        for sign in (1, -1):
            A_ub.append(np.concatenate([sign * X[:, k], np.zeros(h), [-1]]))
            b_ub.append(0.0)
    cost = np.concatenate([np.zeros(n + h), [1.0]])
    result = linprog(
        cost,
        A_ub=np.array(A_ub),
        b_ub=b_ub,
        A_eq=np.array(A_eq) if A_eq else None,
        b_eq=b_eq or None,
        bounds=[*bounds, *lam_bounds, (0, None)],
    )
    assert result.status == 0, result.message
    a, lam = result.x[:n], result.x[n : n + h]
    return result.fun, a, lam


def start(x, Y, group, c, eta):
    """The first point of two coupled parts, as docs/solver.md has it (without its scaling)."""
    d, n, q = Point(0, 2), *x.shape
    d.q, d.hinges, d.eta, d.T = q, len(c), eta, selections(2, q)
    d.kind, d.x, d.y = np.repeat([0, 1, 2], n), np.tile(x, (3, 1)), np.append(Y.T, np.zeros(n))
    d.group, d.c = np.append(np.full(2 * n, -1), group), c
    d.u, d.g = np.zeros((len(c), q)), np.zeros(2 * q)
    parts = d.kind != 2
    d.z = np.linalg.lstsq(d.over_rows()[parts], d.y[parts], rcond=None)[0]
    d.weight = np.sqrt((d.x**2).mean(1))
    r = d.over_rows(d.z) - d.y
    means = np.array([np.abs(r[d.kind == k]).mean() for k in range(3)])
    more = (0.1 * means[d.kind] + 1e-3) * d.weight + 0.1 * np.abs(r)
    d.rp, d.rm = np.maximum(r, 0) + more, np.maximum(-r, 0) + more
    d.lam = d.rest = np.full(len(c), eta / 2)
    d.a = np.zeros(3 * n)
    d.sp = d.sm = d.limit(d.lam, 1.0)
    excess = d.member() @ (d.rp + d.rm) - c
    d.t = np.maximum(excess, 0) + 0.1 * (excess + 2 * c) + 1e-3
    d.sigma = d.t - excess
    return d


def longest(d, step, names, keep):
    """The length of a step that leaves `keep` of the way to the nearest bound."""
    most = max((-step[k] / getattr(d, k)).max() for k in names)
    return min(1.0, keep / most) if most > 0 else 1.0


def iterate(d):
    """One predictor and corrector; what all products then add up to."""
    primal, dual = ("rp", "rm", "t", "sigma"), ("sp", "sm", "rest", "lam")
    products = sum(getattr(d, a) @ getattr(d, b) for a, b in zip(primal, dual, strict=True))
    pairs = 2 * d.weight.sum() + 2 * d.hinges
    d.mu = d.cp = d.cm = d.ct = d.cs = 0.0
    for keep in (1.0, 0.99):
        step = reduced_newton(d)
        of_row = d.limit(step["lam"], 0.0)
        step |= {"sp": of_row - step["a"], "sm": of_row + step["a"], "rest": -step["lam"]}
        lengths = longest(d, step, primal, keep), longest(d, step, dual, keep)
        after = sum(
            (getattr(d, a) + lengths[0] * step[a]) @ (getattr(d, b) + lengths[1] * step[b])
            for a, b in zip(primal, dual, strict=True)
        )
        if keep == 1.0:
            d.mu = max((after / products) ** 3, 1e-4) * products / pairs
            d.cp, d.cm = step["rp"] * step["sp"], step["rm"] * step["sm"]
            d.ct, d.cs = step["t"] * step["rest"], step["sigma"] * step["lam"]
    for name in ("z", *primal):
        setattr(d, name, getattr(d, name) + lengths[0] * step[name])
    for name in ("a", *dual):
        setattr(d, name, getattr(d, name) + lengths[1] * step[name])
    return after


@pytest.mark.parametrize("share", [0.05, 0.5, 2.0])
def test_the_method_as_written_finds_what_the_core_finds(share):
    rng = RNG(7)
    n, beta = 80, 3e-2
    x = np.column_stack([rng.normal(size=(n, 2)), np.ones(n)])
    Y = x @ rng.normal(size=(3, 2)) + rng.standard_t(3, size=(n, 2))
    group = np.arange(n) % 3
    c = share * np.bincount(group, np.abs(np.diff(Y)[:, 0]))
    got = fits.fit(x[:, :2], Y, group, c, beta)
    d = start(x, Y, group, c, beta / 3 * n * 2)
    for _ in range(60):
        if iterate(d) < 1e-10:
            break
    rho, pi, zeta = d.misses()
    assert max(np.abs(rho).max(), np.abs(pi).max(), np.abs(zeta).max()) < 1e-8
    np.testing.assert_allclose(value(d, d.z) / (n * 2), got["objective"], rtol=1e-9)


@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_gap_of_few_rows(alpha):
    """N m (F - F*) of squared_error from singular values and residuals, at any c."""
    rng = RNG(1)
    X, Y, c = rng.normal(size=(5, 9)), rng.normal(size=(5, 2)), rng.normal(size=(5, 2))
    U, s, Wt = np.linalg.svd(X, full_matrices=False)

    def total(A):
        return ((Y - X @ A) ** 2).sum() + alpha * (A**2).sum()

    best = X.T @ np.linalg.solve(X @ X.T + alpha * np.eye(5), Y)
    h = s[:, None] * (U.T @ (Y - X @ Wt.T @ c)) - alpha * c
    gap = (1 / (s**2 + alpha)) @ (h**2).sum(1)
    np.testing.assert_allclose(gap, total(Wt.T @ c) - total(best), rtol=1e-10)


@pytest.mark.parametrize("seed", range(5))
def test_a_band_bounds_and_is_exact_within(seed):
    """F_g <= F everywhere, with equality where |z| <= kappa."""
    rng = RNG(seed)
    u, r, kappa = rng.normal(size=(200, 3)), rng.normal(size=200), 0.3
    kept = np.abs(r) <= kappa * np.linalg.norm(u, axis=1)
    sign = np.sign(r[~kept])
    g, dropped = -sign @ u[~kept], np.abs(r[~kept]).sum()
    for z in rng.normal(size=(50, 3)):
        for length in (0.1 * kappa, 0.999 * kappa, 2 * kappa, 10 * kappa):
            at = z / np.linalg.norm(z) * length
            bound = np.abs(u[kept] @ at - r[kept]).sum() + g @ at + dropped
            whole = np.abs(u @ at - r).sum()
            assert bound <= whole * (1 + 1e-14)
            if length <= kappa:
                np.testing.assert_allclose(bound, whole, rtol=1e-13)
    assert bound < 0.9 * whole  # far out signs do change


@pytest.mark.parametrize("share", [0.0, 0.3, 0.8, 10.0])
@pytest.mark.parametrize("seed", range(3))
def test_solution_of_the_core_meets_the_conditions(share, seed):
    """At what _core finds there are multipliers that balance, and they prove its objective.

    A limit of no size presses all differences to zero, a large one leaves its hinge slack.
    """
    rng = RNG(seed)
    n, p, beta = 60, 2, 3e-2
    x = rng.normal(size=(n, p))
    Y = x @ rng.normal(size=(p, 2)) + rng.standard_t(3, size=(n, 2))
    groups = np.arange(n) % 3
    free = fits.fit(x, Y)
    rows = np.column_stack([x, np.ones(n)])
    v = np.column_stack([free["coef"], free["intercept"]])
    first_update = share * np.bincount(groups, np.abs(rows @ (v[0] - v[1])))
    got = fits.fit(x, Y, groups, first_update, beta)
    v = np.column_stack([got["coef"], got["intercept"]])
    T = selections(2, p + 1)
    z = np.concatenate([v[1], v[0] - v[1]])
    X = np.vstack([rows @ T[0], rows @ T[1], rows @ T[2]])
    y = np.concatenate([Y[:, 0], Y[:, 1], np.zeros(n)])
    kinds = np.repeat([0, 1, 2], n)
    eta = beta / 3 * n * 2  # in units of N m F
    zeta, a, lam = imbalance(X, X @ z - y, kinds, np.tile(groups, 3), first_update, eta)
    assert zeta < 1e-9 * n
    proven = -(a @ y) - lam @ first_update
    np.testing.assert_allclose(proven / (n * 2), got["objective"], rtol=1e-8)
    wrong = z + 1e-3
    zeta, _, _ = imbalance(X, X @ wrong - y, kinds, np.tile(groups, 3), first_update, eta)
    assert zeta > 1e-2  # the conditions tell a neighbour of the solution
