"""Fits against optima that others found: linear programs, and certificates checked in NumPy."""

import functools
from fractions import Fraction
from pathlib import Path

import fits
import lp
import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

import wfcast

CASES = sorted((Path(__file__).parent / "cases").glob("*.npz"))


@pytest.mark.parametrize("path", CASES, ids=lambda p: p.stem)
def test_stored_cases(path):
    """Every case whose optimum an independent solver found, with and without the hinge."""
    case = np.load(path)
    X, Y = case["X"], case["Y"]
    for beta, optimum in (
        (float(case["beta"]), float(case["optimum"])),
        (0.0, float(case["optimum_unregularised"])),
    ):
        f = wfcast.Farcaster(beta=beta, fit_intercept=bool(case["fit_intercept"]))
        f.fit(X, Y, groups=case["groups"], first_update=case["first_update"])
        value = reference.objective(
            X, Y, f.coef_, f.intercept_, case["groups"], case["first_update"], beta
        )
        assert value <= optimum * (1 + 1e-7) + 1e-12
        np.testing.assert_allclose(f.objective_, value, rtol=1e-10, atol=1e-15)
        assert 0 <= f.dual_gap_ <= f.tol
        smallest = np.abs(Y).mean() * np.finfo(float).eps
        assert (value - optimum) / max(optimum, smallest) <= f.dual_gap_ + 1e-9 or value < 1e-15


def test_a_bias_of_the_demo():
    """Three runs of one bias tensor, many weights near zero: once ended without a certificate."""
    case = np.load(Path(__file__).parent / "data" / "bias.npz")
    got = fits.fit(case["X"], case["Y"], case["groups"], case["first_update"], 1e-6)
    assert got["converged"]
    value = reference.objective(
        case["X"],
        case["Y"],
        got["coef"],
        got["intercept"],
        case["groups"],
        case["first_update"],
        1e-6,
    )
    np.testing.assert_allclose(got["objective"], value, rtol=1e-10)


def test_the_cases_are_all_there():
    assert len(CASES) == 12


def spoil(rng, kind, X, Y):
    """One of the things that weights do to a solver."""
    n, p = X.shape
    if kind == "frozen":
        still = rng.random(n) < 0.5
        X[still] = X[still, :1]
        Y[still] = X[still, :1]
    elif kind == "lattice":
        X, Y = np.round(X * 4) / 4, np.round(Y * 4) / 4
    elif kind == "scales":
        size = 10.0 ** rng.uniform(-3, 3, (n, 1))
        X, Y = X * size, Y * size
    elif kind == "dependent":
        X[:, -1] = 0.3 * X[:, 0] + 0.7 * X[:, 1 % p]
    elif kind == "columns":
        X = X * 10.0 ** rng.uniform(-5, 5, p)
    elif kind == "offset":
        X, Y = X + 50, Y + 50
    elif kind == "float16":
        X, Y = X.astype(np.float16).astype(float), Y.astype(np.float16).astype(float)
    elif kind == "outliers":
        few = rng.random(n) < 0.02
        X[few] *= 1000
        Y[few] *= -500
    elif kind == "exact":
        Y = X @ rng.normal(size=(p, Y.shape[1]))
    return X, Y


KINDS = [
    "plain",
    "frozen",
    "lattice",
    "scales",
    "dependent",
    "columns",
    "offset",
    "float16",
    "outliers",
    "exact",
]


@settings(max_examples=150)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(KINDS),
    st.integers(1, 150),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 5),
    st.booleans(),
    st.sampled_from([0, 1e-4, 1e-2, 1.0]),
    st.sampled_from([0.0, 0.1, 1.0, 5.0]),
)
def test_against_the_linear_program(seed, kind, n, p, m, s, fit_intercept, beta, slack):
    rng = np.random.default_rng(seed)
    w, d = rng.normal(size=(n, 1)), rng.standard_t(2, size=(n, 1)) * 0.2
    X = w + d * np.sort(rng.random(p)) + rng.normal(size=(n, p)) * 0.02
    Y = w + d * (1 + np.sort(rng.random(m))) + rng.standard_t(3, size=(n, m)) * 0.05
    X, Y = spoil(rng, kind, X, Y)
    groups = first_update = None
    beta = beta if m > 1 else 0
    if beta:
        groups = rng.integers(0, s, n)
        first_update = slack * np.bincount(groups, np.abs(Y[:, -1] - Y[:, -2]), minlength=s)
    optimum = lp.optimum(X, Y, groups, first_update, beta, fit_intercept)
    got = fits.fit(X, Y, groups, first_update, beta, fit_intercept=fit_intercept)
    value = reference.objective(X, Y, got["coef"], got["intercept"], groups, first_update, beta)
    size = np.abs(Y).mean() + (np.abs(X) @ np.abs(got["coef"]).T).mean()
    noise = 1e-14 * (1 + beta * n) * size
    assert value <= optimum * (1 + 1e-7) + 1e-12 + noise
    assert got["converged"]
    assert 0 <= got["dual_gap"] <= 1e-9
    np.testing.assert_allclose(got["objective"], value, rtol=1e-8, atol=noise)


def certify(X, Y, coef, intercept):
    """The lower bound a'y that multipliers a in [-1, 1] of the rows with a'[X, 1] = 0 prove.

    Signs of rows off the fit are known; those on it take what balances them best.
    """
    rows = np.column_stack([X, np.ones(len(X))]).astype(float)
    bounds = []
    for j in range(Y.shape[1]):
        r = Y[:, j].astype(float) - X @ coef[j] - intercept[j]
        on = np.abs(r) <= 1e-13 * (np.abs(rows) @ np.append(np.abs(coef[j]), 1)) + 1e-300
        a = np.where(on, 0.0, np.sign(r))
        missing = rows.T @ a
        a[on] = -np.linalg.lstsq(rows[on].T, missing, rcond=None)[0]
        assert np.abs(a).max() <= 1 + 1e-9
        assert np.abs(rows.T @ a).max() <= 1e-9 * np.abs(rows).sum(0).max()
        bounds.append(a @ Y[:, j])
    return sum(bounds) / Y.size


@pytest.mark.parametrize("n", [9_000, 200_000])
@pytest.mark.parametrize("m", [1, 3])
def test_large_fits_carry_a_certificate(n, m):
    rng = np.random.default_rng(n + m)
    X, Y = fits.trajectories(rng, n, 2, m)
    got = fits.fit(X, Y)
    value = reference.objective(X, Y, got["coef"], got["intercept"])
    np.testing.assert_allclose(got["objective"], value, rtol=1e-11)
    assert value - certify(X, Y, got["coef"], got["intercept"]) <= 1e-9 * value
    assert got["n_passes"] <= 4
    assert got["converged"]


def assert_no_step_improves(rng, got, X, Y, *hinge):
    """A local minimum of a convex function is its minimum."""
    value = reference.objective(X, Y, got["coef"], got["intercept"], *hinge)
    for _ in range(max(10, 2_000_000 // len(X))):
        step = rng.normal(size=(Y.shape[1], X.shape[1] + 1)) * 10.0 ** rng.uniform(-8, -2)
        coef, intercept = got["coef"] + step[:, :-1], got["intercept"] + step[:, -1]
        assert reference.objective(X, Y, coef, intercept, *hinge) >= value * (1 - 1e-9)


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_frozen_weights_are_no_trouble(share):
    rng = np.random.default_rng(3)
    X, Y = fits.trajectories(rng, 300_000, 2, 2)
    still = rng.random(len(X)) < share
    X[still, 1] = X[still, 0]
    Y[still] = X[still, :1]
    got = fits.fit(X, Y)
    assert got["converged"]
    assert_no_step_improves(rng, got, X, Y)


def test_rows_outside_the_span_of_the_sample():
    """A column that lives on three rows of a hundred thousand is still fitted."""
    rng = np.random.default_rng(4)
    X, Y = fits.trajectories(rng, 100_000, 2, 1, np.float64)
    rare = np.zeros((len(X), 1))
    rare[[17, 40_000, 99_999]] = [[1.0], [2.0], [3.0]]
    Y = Y + 5 * rare
    got = fits.fit(np.hstack([X, rare]), Y)
    np.testing.assert_allclose(got["coef"][0, 2], 5, atol=0.5)
    assert got["rank"] == 3
    assert got["converged"]


@pytest.mark.parametrize("beta", [1e-6, 1e-2])
def test_a_large_hinge_solution_cannot_be_improved(beta):
    """Not by any of many small steps, of all the sizes that could matter."""
    rng = np.random.default_rng(5)
    X, Y = fits.trajectories(rng, 20_000, 2, 2, np.float64)
    groups = rng.integers(0, 4, len(X))
    plain = fits.fit(X, Y)
    move = np.abs((X @ (plain["coef"][1] - plain["coef"][0])) + np.diff(plain["intercept"]))
    first_update = 0.5 * np.bincount(groups, move)
    got = fits.fit(X, Y, groups, first_update, beta)
    value = reference.objective(X, Y, got["coef"], got["intercept"], groups, first_update, beta)
    np.testing.assert_allclose(got["objective"], value, rtol=1e-10)
    assert got["converged"]
    assert_no_step_improves(rng, got, X, Y, groups, first_update, beta)


@pytest.mark.parametrize(("seed", "share"), [(0, 0.1), (0, 0.6), (0, 0.9), (4, 0.9)])
def test_hinge_on_rows_of_many_orders_of_magnitude(seed, share):
    """A few rows decide; the others must not hold up the interior point method."""
    rng = np.random.default_rng(seed)
    X, Y = fits.trajectories(rng, 20_000, 2, 2, np.float64)
    size = 10.0 ** rng.uniform(-8, 8, (len(X), 1))
    X, Y = X * size, Y * size
    groups, first_update = np.zeros(len(X), int), np.array([np.abs(np.diff(Y)).sum() * share])
    got = fits.fit(X, Y, groups, first_update, 1e-2)
    value = reference.objective(X, Y, got["coef"], got["intercept"], groups, first_update, 1e-2)
    np.testing.assert_allclose(got["objective"], value, rtol=1e-9)
    assert got["converged"]
    assert got["dual_gap"] <= 1e-9


@settings(max_examples=60)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 200),
    st.integers(1, 6),
    st.integers(1, 3),
    st.booleans(),
    st.sampled_from([0.0, 1e-3, 10.0]),
)
def test_least_squares(seed, n, p, m, fit_intercept, alpha):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, p)) + rng.choice([0.0, 30.0])
    Y = rng.normal(size=(n, m))
    got = fits.fit(X, Y, loss="squared_error", alpha=alpha, fit_intercept=fit_intercept)
    coef, intercept = reference.least_squares(X, Y, alpha, fit_intercept)
    fitted, want = (X @ c.T + i for c, i in ((got["coef"], got["intercept"]), (coef, intercept)))
    np.testing.assert_allclose(fitted, want, rtol=1e-6, atol=1e-6)
    value = (((Y - fitted) ** 2).sum() + alpha * (got["coef"] ** 2).sum()) / Y.size
    np.testing.assert_allclose(got["objective"], value, rtol=1e-9, atol=1e-11)
    assert 0 <= got["dual_gap"] <= 1e-9


@pytest.mark.parametrize("n", [500, 50_000])
def test_limits_out_of_reach_and_hinges_of_no_weight(n):
    """A limit that nothing can exceed is none, however large; a hinge that weighs nothing too."""
    rng = np.random.default_rng(0)
    X, Y, groups = rng.normal(size=(n, 2)), rng.normal(size=(n, 3)), np.arange(n) % 2

    def objective(beta, first_update):
        f = wfcast.Farcaster(beta=beta).fit(X, Y, groups=groups, first_update=first_update)
        assert f.dual_gap_ <= f.tol
        return f.objective_

    bound = objective(1e-2, [10.0 * n, 1.0])
    assert bound > objective(0, None)
    for limit in (1e10, 1e100, 1e300, 1.7e308):
        assert objective(1e-2, [limit, 1.0]) == pytest.approx(bound, rel=2e-9)
    for beta in (5e-324, 1e-300, 1e-100, 1e-20):
        assert objective(beta, [1.0, 1e300]) == pytest.approx(objective(0, None), rel=2e-9)


@pytest.mark.parametrize("rows", [20, 20_000])
@pytest.mark.parametrize("beta", [0.0, 1e-3])
def test_nothing_to_choose(rows, beta, capfd):
    """Inputs that are all zero, without intercept: no unknowns, and no word from LAPACK."""
    y = np.random.default_rng(0).normal(size=(rows, 3))
    hinge = {"groups": np.arange(rows) % 2, "first_update": np.ones(2)} if beta else {}
    f = wfcast.Farcaster(fit_intercept=False, beta=beta).fit(np.zeros((rows, 2)), y, **hinge)
    np.testing.assert_array_equal(f.coef_, 0)
    np.testing.assert_allclose(f.objective_, np.abs(y).mean(), rtol=1e-12)
    assert f.dual_gap_ <= 1e-9
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("seed", range(20))
def test_gap_of_data_that_are_explained_exactly(seed):
    """F* = 0; F at the solution, in exact arithmetic, is within what dual_gap_ certifies."""
    rng = np.random.default_rng(seed)
    rows, p = int(rng.integers(3, 50)), int(rng.integers(1, 4))
    x = rng.integers(-64, 64, (rows, p)) / 8
    a = rng.integers(-8, 8, p) / 4
    y = x @ a  # without rounding
    f = wfcast.Farcaster().fit(x, y)
    coef, intercept = map(Fraction, f.coef_.tolist()), Fraction(float(f.intercept_))
    coef = list(coef)
    error = sum(
        abs(sum(c * Fraction(v) for c, v in zip(coef, row, strict=True)) + intercept - Fraction(t))
        for row, t in zip(x.tolist(), y.tolist(), strict=True)
    )
    terms = np.abs(y).mean() + np.abs(f.coef_) @ np.abs(x).mean(axis=0) + abs(f.intercept_)
    resolved = 8 * np.finfo(float).eps * terms
    assert float(error / rows) <= f.dual_gap_ * resolved / f.tol * (1 + 1e-6)
    assert f.dual_gap_ <= f.tol


@pytest.mark.parametrize("exponent", [-150, -158, -165, -200, -300, 160, 200])
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_squares_out_of_range_are_refused_or_right(exponent, fit_intercept):
    """Inputs whose squares vanish look the same, and a gap of 0 would be certified."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 2))
    y = x @ [[1.0, 2], [3, 4]] + 0.1 * rng.normal(size=(50, 2))
    make = functools.partial(wfcast.Farcaster, loss="squared_error", fit_intercept=fit_intercept)
    best = make().fit(x, y).objective_
    scaled = x * 10.0**exponent
    if abs(exponent) > 150:
        with pytest.raises(wfcast.WfcastError, match="leave the range of float64"):
            make().fit(scaled, y)
        return
    found = make().fit(scaled, y)
    assert ((found.predict(scaled) - y) ** 2).mean() == pytest.approx(best, rel=1e-6)


@pytest.mark.filterwarnings("ignore::wfcast.RankWarning")  # to rounding they are one
@pytest.mark.parametrize("loss", ["absolute_error", "squared_error"])
@pytest.mark.parametrize("apart", [1e-5, 1e-7, 1e-9, 1e-11])
def test_columns_that_are_nearly_one_converge_by_default(loss, apart):
    rng = np.random.default_rng(1)
    a = rng.normal(size=5000)
    x = np.column_stack([a, a + apart * rng.normal(size=a.size)])
    found = wfcast.Farcaster(loss=loss).fit(x, a + 0.1 * rng.normal(size=a.size))
    assert found.dual_gap_ <= found.tol
