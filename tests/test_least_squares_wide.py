"""squared_error with as many unknowns as rows, fewer and more, held to numpy.linalg.lstsq."""

import operator
from fractions import Fraction

import fits
import numpy as np
import pytest

import wfcast
from wfcast import _core

SHAPES = [(90, 40), (41, 40), (40, 40), (39, 40), (12, 40), (1, 40)]


def lstsq(X, Y, alpha=0.0, fit_intercept=False):
    """Coefficients (m, p) and intercept (m,) of least norm, and the rank of the centred X."""
    X, Y = np.asarray(X, float), np.asarray(Y, float)
    mean_x, mean_y = (X.mean(0), Y.mean(0)) if fit_intercept else (0 * X[0], 0 * Y[0])
    p, m = X.shape[1], Y.shape[1]
    rows = np.vstack([X - mean_x, np.sqrt(alpha) * np.eye(p)[: p if alpha else 0]])
    right = np.vstack([Y - mean_y, np.zeros((len(rows) - len(X), m))])
    coef, _, rank, _ = np.linalg.lstsq(rows, right, rcond=1e-10)
    return coef.T, mean_y - mean_x @ coef, rank


def hold(got, X, Y, alpha=0.0, fit_intercept=False, rtol=1e-8):
    """`got` is the solution of numpy.linalg.lstsq, its objective F there, its gap within tol."""
    coef, intercept, rank = lstsq(X, Y, alpha, fit_intercept)
    size = np.abs(coef).max()
    np.testing.assert_allclose(got["coef"], coef, rtol=0, atol=rtol * size)
    np.testing.assert_allclose(got["intercept"], intercept, rtol=0, atol=rtol * (1 + size))
    residual = np.asarray(Y, float) - X @ got["coef"].T - got["intercept"]
    value = ((residual**2).sum() + alpha * (got["coef"] ** 2).sum()) / np.size(Y)
    noise = 64 * np.finfo(float).eps * np.mean(np.asarray(Y, float) ** 2)
    np.testing.assert_allclose(got["objective"], value, rtol=1e-9, atol=noise)
    assert got["rank"] == rank
    assert got["converged"]
    assert 0 <= got["dual_gap"] <= 1e-9


@pytest.mark.parametrize("alpha", [0.0, 0.3])
@pytest.mark.parametrize("fit_intercept", [False, True])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(("n", "p"), SHAPES)
def test_solution_of_lstsq(n, p, dtype, fit_intercept, alpha):
    rng = np.random.default_rng(n)
    X = (rng.normal(size=(n, p)) + 2).astype(dtype)
    Y = (rng.normal(size=(n, 3)) - 5).astype(dtype)
    options = {"alpha": alpha, "fit_intercept": fit_intercept}
    hold(fits.fit(X, Y, loss="squared_error", **options), X, Y, **options, rtol=1e-6)


@pytest.mark.parametrize("fit_intercept", [False, True])
@pytest.mark.parametrize(("n", "p", "rank"), [(90, 40, 7), (40, 40, 20), (30, 40, 20), (9, 40, 3)])
def test_solution_of_least_norm_where_rank_is_missing(n, p, rank, fit_intercept):
    rng = np.random.default_rng(n)
    X = rng.normal(size=(n, rank)) @ rng.normal(size=(rank, p))
    Y = rng.normal(size=(n, 2))
    got = fits.fit(X, Y, loss="squared_error", fit_intercept=fit_intercept)
    hold(got, X, Y, fit_intercept=fit_intercept)
    assert got["rank"] == rank


def test_null_space_of_columns_of_many_scales():
    """Twice the same columns, from 1e-2 to 1e2: the norm is least, so twins share their weight."""
    rng = np.random.default_rng(0)
    Z = rng.normal(size=(60, 5))
    X = np.hstack([Z, Z]) * 10.0 ** np.tile([-2, -1, 0, 1, 2], 2)
    Y = Z @ rng.normal(size=(5, 2)) + rng.normal(size=(60, 2))
    got = fits.fit(X, Y, loss="squared_error", fit_intercept=False)
    assert got["rank"] == 5
    np.testing.assert_allclose(got["coef"][:, :5], got["coef"][:, 5:], rtol=1e-6)
    best = Y - Z @ np.linalg.lstsq(Z, Y, rcond=None)[0]
    np.testing.assert_allclose(got["objective"], np.mean(best**2), rtol=1e-9)


@pytest.mark.parametrize("alpha", [0.0, 1e-3])
@pytest.mark.parametrize("n", [4, 12, 30])
def test_few_rows_with_columns_of_many_scales(n, alpha):
    rng = np.random.default_rng(n)
    X = rng.normal(size=(n, 40)) * 10.0 ** rng.uniform(-5, 5, 40)
    got = fits.fit(X, Y := rng.normal(size=(n, 2)), loss="squared_error", alpha=alpha)
    assert got["converged"]
    assert got["rank"] == (40 if alpha else n - 1)
    if not alpha:  # explained by what n - 1 directions can
        assert got["objective"] <= 1e-12 * np.mean(Y**2)


@pytest.mark.parametrize("n", [25, 41, 70])
def test_segments_and_threads_change_no_bit(n):
    rng = np.random.default_rng(n)
    X, Y = rng.normal(size=(n, 40)), rng.normal(size=(n, 2))
    whole = fits.fit(X, Y, loss="squared_error", n_threads=1)
    for cuts, threads in (((), 2), ((3, 3, 20), 1), ((1, 24), 2)):
        found = fits.fit(X, Y, loss="squared_error", cuts=cuts, n_threads=threads)
        exact = n < 41 or not cuts  # sums over segments are sums in another order
        for key in ("coef", "intercept", "objective"):
            if exact:
                np.testing.assert_array_equal(found[key], whole[key])
            else:
                np.testing.assert_allclose(found[key], whole[key], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("options", [{}, {"alpha": 0.5}, {"fit_intercept": False}])
@pytest.mark.parametrize("edges", [[0, 13, 30], [0, 0, 1, 29, 30, 30]])
def test_parts_are_the_whole_to_the_bit(edges, options):
    rng = np.random.default_rng(1)
    X, Y = rng.normal(size=(30, 40)), rng.normal(size=(30, 2)) + 7
    whole = fits.fit(X, Y, loss="squared_error", **options)
    for found in fits.parted(X, Y, edges, loss="squared_error", **options):
        for key in ("coef", "intercept", "objective", "dual_gap", "rank", "n_passes"):
            np.testing.assert_array_equal(found[key], whole[key])


def test_parts_of_few_rows_that_do_not_belong_together():
    def two(p):
        pair = [_core.Fit(p, 1, n_rows=6, n_here=3, loss="squared_error") for _ in range(2)]
        for i, solver in enumerate(pair):
            solver.accumulate(list(np.eye(p, 3)), [np.arange(3.0)], None, 3 * i)
        return pair

    a, b = two(9)
    good = [a.export(), b.export()]
    other = two(8)[0].export()
    for parts in (good[:1], [good[0], other], [good[0], good[1][:-1]], [good[0], good[1] + b"0"]):
        with pytest.raises(ValueError, match="parts are not those of one pass"):
            two(9)[0].absorb(parts)
    for solver in (a, b):
        solver.absorb(good)
        solver.advance()
    np.testing.assert_array_equal(a.result()["coef"], b.result()["coef"])


def test_columns_of_any_layout():
    rng = np.random.default_rng(2)
    W = rng.normal(size=(4, 6, 60))
    x, y = [W[:, ::-2, k] for k in range(50)], [W[:, ::-2, 50].T.copy().T]
    with pytest.warns(UserWarning, match="50 columns of rank 11"):  # 12 rows, less their mean
        f = wfcast.Farcaster("squared_error").fit(x, y)
    flat = np.stack([c.ravel() for c in x], axis=1)
    coef, intercept, _ = lstsq(flat, y[0].reshape(-1, 1), fit_intercept=True)
    np.testing.assert_allclose(f.coef_, coef, rtol=0, atol=1e-8)
    np.testing.assert_allclose(f.intercept_, intercept, rtol=0, atol=1e-8)


def test_missing_rank_is_a_warning():
    rng = np.random.default_rng(3)
    X, Y = rng.normal(size=(20, 40)), rng.normal(size=(20, 2))
    wfcast.Farcaster("squared_error", fit_intercept=False).fit(X, Y)  # all that 20 rows can have
    X[7] = X[3]
    with pytest.warns(UserWarning, match="40 columns of rank 19"):
        wfcast.Farcaster("squared_error", fit_intercept=False).fit(X, Y)


@pytest.mark.parametrize("X", [np.full((5, 9), 0.1), np.zeros((5, 9)), np.ones((1, 9))])
def test_constant_columns_leave_the_mean(X):
    Y = np.arange(5.0)[: len(X), None]
    got = fits.fit(X, Y, loss="squared_error")
    np.testing.assert_array_equal(got["coef"], 0)
    np.testing.assert_allclose(got["intercept"], Y.mean(0))
    np.testing.assert_allclose(got["objective"], Y.var())
    assert got["rank"] == 0
    assert got["converged"]


@pytest.mark.parametrize("scale", [1e200, 1e300])
def test_data_beyond_the_range_of_float64(scale):
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=(8, 20)) * scale, rng.normal(size=(8, 2))
    with pytest.raises(wfcast.ConvergenceError, match="leave the range of float64"):
        wfcast.Farcaster("squared_error").fit(X, Y)


def test_a_thousand_columns_and_more():
    """Wide problems as they come: what took from a second to for ever takes milliseconds."""
    rng = np.random.default_rng(4)
    for n, p in ((40, 1000), (40, 2000), (300, 300)):
        X, Y = rng.normal(size=(n, p)), rng.normal(size=(n, 1))
        for fit_intercept in (False, True):
            got = fits.fit(X, Y, loss="squared_error", fit_intercept=fit_intercept)
            hold(got, X, Y, fit_intercept=fit_intercept, rtol=1e-6)


def spectrum(n, p, values, seed=0):
    """A matrix with these singular values."""
    rng = np.random.default_rng(seed)
    u, v = (np.linalg.qr(rng.normal(size=(size, len(values))))[0] for size in (n, p))
    return np.asfortranarray((u * values) @ v.T)


@pytest.mark.parametrize(("n", "p"), [(40, 60), (40, 300)])
@pytest.mark.parametrize("least", [1e-5, 1e-7, 1e-9])
def test_small_singular_values_of_few_rows_are_no_rounding(n, p, least):
    """As numpy.linalg.lstsq tells rank; squares of them would be lost."""
    X = spectrum(n, p, [1.0] * (n - 1) + [least])
    y = np.random.default_rng(1).normal(size=(n, 1))
    got = fits.fit(X, y, loss="squared_error", fit_intercept=False)
    assert got["rank"] == n
    assert got["converged"]
    assert ((X @ got["coef"].T - y) ** 2).mean() <= 1e-14 * (y**2).mean() / least


def test_few_rows_of_columns_of_many_scales():
    rng = np.random.default_rng(2)
    X = np.asfortranarray(rng.normal(size=(40, 60)) * np.where(np.arange(60) < 40, 1e-8, 1))
    y = rng.normal(size=(40, 1))
    got = fits.fit(X, y, loss="squared_error", fit_intercept=False)
    assert got["rank"] == 40
    assert ((X @ got["coef"].T - y) ** 2).mean() < 1e-20


def test_a_ridge_on_a_large_singular_value_keeps_the_small_ones():
    X = spectrum(20, 60, [1e8] + [1.0] * 19)
    y = np.random.default_rng(3).normal(size=(20, 1))
    got = fits.fit(X, y, loss="squared_error", fit_intercept=False, alpha=1.0)
    rows, right = np.vstack([X, np.eye(60)]), np.vstack([y, np.zeros((60, 1))])
    coef = np.linalg.lstsq(rows, right, rcond=None)[0]
    best = ((X @ coef - y) ** 2).sum() + (coef**2).sum()
    np.testing.assert_allclose(got["objective"], best / 20, rtol=1e-6)


@pytest.mark.parametrize(("n", "p"), [(61, 60), (400, 40)])
def test_what_sums_do_not_certify_is_looked_at_by_row(n, p):
    """A second pass, as where the residual is small."""
    X = spectrum(n, p, [1.0] * (p - 1) + [1e-6])
    y = np.random.default_rng(4).normal(size=(n, 1))
    got = fits.fit(X, y, loss="squared_error", fit_intercept=False)
    assert got["converged"]
    coef = np.linalg.lstsq(X, y, rcond=None)[0]
    np.testing.assert_allclose(got["objective"], ((X @ coef - y) ** 2).mean(), rtol=1e-8)


def test_the_intercept_is_exact_where_its_terms_are_large():
    rng = np.random.default_rng(5)
    X = 1e3 + 1e-6 * rng.normal(size=(30, 60))
    y = rng.normal(size=(30, 1))
    got = fits.fit(X, y, loss="squared_error")
    a, b = got["coef"][0], got["intercept"][0]
    exact = [
        float(
            Fraction(v) - Fraction(b) - sum(map(operator.mul, map(Fraction, x), map(Fraction, a)))
        )
        for x, v in zip(X, y[:, 0], strict=True)
    ]
    assert np.abs(exact).max() <= np.spacing(abs(b))  # no more than its own last digit
