"""Statistics of a pass in parts: several solvers with some of the rows each are one with all."""

import fits
import numpy as np
import pytest

from wfcast import _core

LOSSES = ["absolute_error", "squared_error"]
NUMBERS = ("coef", "intercept", "objective", "dual_gap")


def problem(kind, n):
    """X, Y and the options of a fit that takes its own way through the solver."""
    rng = np.random.default_rng(3)
    X, Y = fits.trajectories(rng, n, 2, 3, np.float64)
    options = {}
    if kind == "unmoved":  # gathered in cells
        still = rng.random(n) < 0.6
        X[still, 1] = X[still, 0]
        Y[still] = X[still, :1]
    elif kind == "strays":  # a column that the sample holds for dependent
        extra = np.zeros(n)
        extra[[n // 3, n // 2, -5]] = 1.0, 2.0, -1.0
        X = np.column_stack([X, extra])
    elif kind in ("squared", "refined"):  # the means of the parts are apart, or that by much
        apart = (3 if kind == "squared" else 50) * np.sign(np.arange(n) - n / 3)[:, None]
        X, Y, options = X + apart, Y + apart, {"loss": "squared_error"}
    elif kind in ("hinge", "active hinge"):
        groups = np.sort(rng.integers(0, 4, n))
        norms = np.array([np.abs(np.diff(X[groups == s])).sum() for s in range(4)])
        scale = 0.2 if kind == "active hinge" else 1.0
        options = {"groups": groups, "first_update": scale * norms, "beta": 1e-3}
    elif kind == "ties":
        X, Y = np.round(X, 1), np.round(Y, 1)
    return X, Y, options


KINDS = ["plain", "unmoved", "strays", "ties", "hinge", "active hinge", "squared", "refined"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [700, 60_000])
def test_parts_are_the_whole(kind, n):
    X, Y, options = problem(kind, n)
    whole = fits.fit(X, Y, **options)
    for edges in ([0, n // 2, n], [0, 3, 3, n // 7, n // 2, n - 1, n, n]):
        results = fits.parted(X, Y, edges, **options)
        for key in NUMBERS:  # the same on all, to the bit
            for one in results[1:]:
                np.testing.assert_array_equal(one[key], results[0][key])
        found = results[0]
        assert found["converged"]
        assert found["rank"] == whole["rank"]
        assert found["n_passes"] == whole["n_passes"]
        noise = 8 * np.finfo(float).eps * np.mean(Y**2)
        np.testing.assert_allclose(found["objective"], whole["objective"], rtol=1e-9, atol=noise)
        np.testing.assert_allclose(found["coef"], whole["coef"], rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(found["intercept"], whole["intercept"], rtol=1e-6, atol=1e-8)


def test_rows_solved_at_once_give_the_same_bits():
    X, Y, options = problem("hinge", 4000)
    whole = fits.fit(X, Y, **options)
    found = fits.parted(X, Y, [0, 1000, 1001, 4000], order=[2, 0, 1], **options)[0]
    for key in NUMBERS:
        np.testing.assert_array_equal(found[key], whole[key])


def test_many_more_parts_than_lanes():
    X, Y, options = problem("strays", 9000)
    found = fits.parted(X, Y, list(range(0, 9001, 30)), **options)[0]
    np.testing.assert_allclose(found["objective"], fits.fit(X, Y)["objective"], rtol=1e-9)
    assert found["converged"]
    assert found["rank"] == 3


def two(loss="absolute_error", n_rows=6, **options):
    """Two solvers with half of the rows each, and columns for one of them."""
    x = [np.arange(3.0)]
    pair = [_core.Fit(1, 1, n_rows=n_rows, n_here=3, loss=loss, **options) for _ in range(2)]
    for i, solver in enumerate(pair):
        solver.accumulate(x, [2 * x[0] + i], None, 3 * i)
    return pair, x


@pytest.mark.parametrize("loss", LOSSES)
def test_parts_of_another_fit_are_refused(loss):
    (a, b), x = two(loss)
    good = [a.export(), b.export()]
    (other, _), _ = two(loss, n_rows=7)
    bad = {
        "one is missing": good[:1],
        "one comes twice": [good[0], *good],
        "another fit": [good[0], other.export()],
        "cut off": [good[0], good[1][:-1]],
        "too long": [good[0], good[1] + b"0"],
        "empty": [good[0], b""],
        "nothing": [],
    }
    if loss == "absolute_error":
        bad["the same rows twice"] = [good[0], good[0]]
    for what, parts in bad.items():
        (solver, _), _ = two(loss)
        with pytest.raises(ValueError, match="parts are not those of one pass"):
            solver.absorb(parts)
        with pytest.raises(RuntimeError, match="has failed"):  # whatever was changed already
            solver.advance()
        assert what
    with pytest.raises(ValueError, match="do not add up to n_rows"):
        a.advance()  # not without the rows of the others
    for solver in (a, b):
        solver.absorb(good)
        solver.advance()
    np.testing.assert_array_equal(a.result()["coef"], b.result()["coef"])
    for call in (a.export, lambda: a.absorb(good)):
        with pytest.raises(RuntimeError, match="needs no further pass"):
            call()
    assert len(x) == 1


@pytest.mark.parametrize(
    ("loss", "one", "other"),
    [
        ("squared_error", {"alpha": 0.0}, {"alpha": 5.0}),
        ("squared_error", {"fit_intercept": True}, {"fit_intercept": False}),
        ("absolute_error", {"fit_intercept": True}, {"fit_intercept": False}),
        ("absolute_error", {"tol": 1e-9}, {"tol": 1e-6}),
    ],
)
def test_parts_of_a_fit_with_other_settings_are_refused(loss, one, other):
    (a, _), _ = two(loss, **one)
    (_, b), _ = two(loss, **other)
    with pytest.raises(ValueError, match="parts are not those of one pass"):
        a.absorb([a.export(), b.export()])


def test_parts_with_other_limits_of_the_hinge_are_refused():
    made = []
    for first in ([1.0], [2.0]):
        solver = _core.Fit(1, 2, n_rows=4, n_here=2, beta=0.1, first_update=np.array(first))
        solver.accumulate([np.arange(2.0)], [np.ones(2), np.zeros(2)], 0, 2 * len(made))
        made.append(solver)
    with pytest.raises(ValueError, match="parts are not those of one pass"):
        made[0].absorb([solver.export() for solver in made])


def test_a_pass_that_brings_rows_twice_is_refused():
    solver = _core.Fit(1, 1, n_rows=6)
    for _ in range(2):
        solver.accumulate([np.arange(3.0)], [np.arange(3.0)], None, 0)
    with pytest.raises(ValueError, match="do not add up to n_rows"):
        solver.advance()


def test_parts_of_another_pass_are_refused():
    X, Y, options = problem("plain", 60_000)
    columns = list(X.T), list(Y.T)
    solver = _core.Fit(2, 3, n_rows=len(X), **options)
    solver.accumulate(*columns)
    first = solver.export()
    solver.advance()
    solver.accumulate(*columns)
    with pytest.raises(ValueError, match="parts are not those of one pass"):
        solver.absorb([first])


def test_what_is_no_part():
    (solver, _), _ = two()
    with pytest.raises(TypeError, match="sequence of what export gave"):
        solver.absorb(3)
    with pytest.raises(TypeError, match="bytes-like"):
        solver.absorb([b"", "text"])
    fresh = _core.Fit(1, 1, n_rows=6, n_here=3)
    with pytest.raises(ValueError, match="do not add up to n_rows"):
        fresh.export()
    with pytest.raises(ValueError, match="do not add up to n_rows"):
        fresh.accumulate([np.zeros(3)], [np.zeros(3)], None, 4)
    with pytest.raises(ValueError, match="n_here must be at most n_rows, got 7 of 6"):
        _core.Fit(1, 1, n_rows=6, n_here=7)
