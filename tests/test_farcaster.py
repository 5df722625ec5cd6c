"""Farcaster: forms of input and output, what a fit leaves behind."""

import collections
import pickle
import signal
import sys
import threading
import time
from functools import partial

import numpy as np
import pandas
import pytest
from sklearn.exceptions import NotFittedError

import wfcast
from wfcast import _fit, farcaster, model
from wfcast._columns import acquire, blocks

FLOATS = ["float64", "float32", "float16"]


def exact(seed=0, n=120, p=2, m=3, scale=1.0):
    """Rows that one operator explains exactly, and that operator."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, p)) * scale
    A, b = rng.normal(size=(p, m)), rng.normal(size=m)
    return X, X @ A + b, A, b


@pytest.fixture
def fitted():
    X, Y, _A, _b = exact()
    return wfcast.Farcaster().fit(X, Y)


def test_finds_the_operator():
    X, Y, A, b = exact()
    for loss in ("absolute_error", "squared_error"):
        f = wfcast.Farcaster(loss=loss)
        assert f.fit(X, Y) is f
        assert f.coef_.shape == (3, 2)
        assert f.coef_.dtype == np.float64
        np.testing.assert_allclose(f.coef_, A.T, atol=1e-9)
        np.testing.assert_allclose(f.intercept_, b, atol=1e-9)
        assert f.objective_ < 1e-8
        assert 0 <= f.dual_gap_ <= f.tol
        assert isinstance(f.n_passes_, int)
        assert f.n_passes_ >= 1
        assert f.n_features_in_ == 2
        assert f.score(X, Y) == pytest.approx(1)


def test_without_intercept():
    X, Y, A, b = exact()
    f = wfcast.Farcaster(fit_intercept=False).fit(X, Y - b)
    np.testing.assert_allclose(f.coef_, A.T, atol=1e-9)
    np.testing.assert_array_equal(f.intercept_, 0)


def test_one_dimensional_target():
    X, Y, _A, _b = exact(m=1)
    f = wfcast.Farcaster().fit(X, Y[:, 0])
    assert f.coef_.shape == (2,)
    assert isinstance(f.intercept_, float)
    assert f.predict(X).shape == (120,)
    out = np.empty(120)
    assert f.predict(X, out=out) is out
    np.testing.assert_allclose(out, Y[:, 0])
    assert f.score(X, Y[:, 0]) == pytest.approx(1)
    columns = f.predict([X[:, 0], X[:, 1]])
    assert isinstance(columns, list)
    assert columns[0].shape == (120,)
    labels = wfcast.Farcaster().fit(X, np.arange(120) % 3)  # as scikit-learn's regressors
    assert labels.coef_.shape == (2,)


@pytest.mark.parametrize("kind", [collections.deque, collections.UserList, tuple])
def test_any_sequence_holds_columns(kind):
    """NumPy would take a deque of columns for a list of rows."""
    X, Y, A, _b = exact(n=2, m=2)
    f = wfcast.Farcaster().fit(kind(X.T), kind(Y.T))
    np.testing.assert_array_equal(f.coef_, wfcast.Farcaster().fit(list(X.T), list(Y.T)).coef_)
    assert isinstance(f.predict(kind(X.T)), list)
    assert f.n_features_in_ == len(A)


def test_a_sequence_that_grows_while_it_is_read():
    class Growing(list):
        def __iter__(self):
            yield from [self[0], self[0], self[0]]

    X, Y, *_ = exact()
    assert wfcast.Farcaster().fit(Growing([X[:, 0]]), Y).n_features_in_ == 3


@pytest.mark.parametrize("loss", ["absolute_error", "squared_error"])
def test_columns_and_matrix_are_the_same_fit(loss):
    X, Y, *_ = exact()
    rng = np.random.default_rng(1)
    Y = Y + rng.normal(size=Y.shape)
    a = wfcast.Farcaster(loss).fit(X, Y)
    b = wfcast.Farcaster(loss).fit(
        [X[:, 0].reshape(8, 15), X[:, 1].reshape(8, 15)], [y.reshape(8, 15) for y in Y.T]
    )
    c = wfcast.Farcaster(loss).fit(np.asfortranarray(X)[::-1], Y[::-1])
    d = wfcast.Farcaster(loss).fit((X[:, 0], X[:, 1]), Y)
    for other in (b, c, d):
        np.testing.assert_allclose(other.objective_, a.objective_, rtol=1e-8)
    np.testing.assert_allclose(b.coef_, a.coef_, rtol=1e-6)
    assert b.score([X[:, 0], X[:, 1]], list(Y.T)) == pytest.approx(a.score(X, Y))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("order", ["C", "F"])
def test_predict_keeps_dtype_and_form(fitted, dtype, order):
    X = np.asarray(exact(5)[0], dtype, order=order)
    got = fitted.predict(X)
    assert got.dtype == dtype
    assert got.shape == (120, 3)
    assert got.flags[f"{order}_CONTIGUOUS"]
    rtol = {"float64": 1e-12, "float32": 1e-5, "float16": 2e-3}[dtype]
    np.testing.assert_allclose(
        got, X.astype(float) @ fitted.coef_.T + fitted.intercept_, rtol=rtol, atol=rtol
    )
    columns = [X[:, 0].astype(float).reshape(10, 12), X[:, 1].reshape(10, 12)]
    got = fitted.predict(columns)
    assert isinstance(got, list)
    assert len(got) == 3
    assert all(y.shape == (10, 12) and y.dtype == dtype for y in got)


def test_bfloat16(fitted):
    ml_dtypes = pytest.importorskip("ml_dtypes")  # an extra: wfcast itself does without
    X = exact(5)[0].astype(ml_dtypes.bfloat16)
    truth = X.astype(float) @ fitted.coef_.T + fitted.intercept_
    got = fitted.predict(X)
    assert got.dtype == ml_dtypes.bfloat16
    assert got.shape == (120, 3)
    np.testing.assert_allclose(got.astype(float), truth, rtol=2**-8, atol=1e-6)
    got = fitted.predict([X[:, 0], X[:, 1]])
    assert got[0].dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(got[1].view(np.uint16), fitted.predict(X)[:, 1].view(np.uint16))
    wide = fitted.predict(X, out=np.empty((120, 3), np.float32))
    np.testing.assert_allclose(wide, truth, rtol=1e-5, atol=1e-5)
    again = wfcast.Farcaster().fit(X, wide.astype(ml_dtypes.bfloat16))
    np.testing.assert_allclose(again.coef_, fitted.coef_, atol=0.02)
    assert again.score(X, wide) > 0.999


def test_torch(fitted):
    torch = pytest.importorskip("torch")  # an extra: wfcast itself does without
    X = torch.tensor(exact(5)[0])
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        x = X.to(dtype).requires_grad_()
        matrix = fitted.predict(x)
        assert isinstance(matrix, torch.Tensor)
        assert matrix.dtype == dtype
        assert not matrix.requires_grad
        assert matrix.shape == (120, 3)
        columns = fitted.predict([x[:, 0].reshape(8, 15), x[:, 1].reshape(8, 15)])
        assert all(c.dtype == dtype and c.shape == (8, 15) for c in columns)
        assert torch.equal(columns[2].reshape(-1), matrix[:, 2])
        out = torch.empty(120, 3, dtype=dtype)
        assert fitted.predict(x, out=out) is out
        assert torch.equal(out, matrix)
    f = wfcast.Farcaster().fit([torch.nn.Parameter(X[:, 0]), X[:, 1]], torch.tensor(exact(5)[1]))
    assert f.coef_.shape == (3, 2)
    assert isinstance(f.coef_, np.ndarray)


def test_out(fitted):
    X = exact(5)[0]
    expected = fitted.predict(X)
    out = np.empty((3, 120)).T
    assert fitted.predict(X, out=out) is out
    np.testing.assert_array_equal(out, expected)
    arrays = [np.empty(120) for _ in range(3)]
    assert fitted.predict(X, out=arrays) is arrays
    np.testing.assert_array_equal(np.stack(arrays, 1), expected)
    columns = [X[:, 0].copy(), X[:, 1].copy()]
    got = fitted.predict(columns, out=out * 0)
    np.testing.assert_array_equal(got, expected)
    cube = [c.reshape(2, 3, 20) for c in columns]
    strided = [np.zeros((2, 6, 20))[:, ::2] for _ in range(3)]
    fitted.predict(cube, out=strided)
    np.testing.assert_array_equal(strided[1].ravel(), expected[:, 1])


def test_columns_without_dimensions():
    f = wfcast.Farcaster(fit_intercept=False).fit([np.array(2.0)], [np.array(3.0), np.array(1.0)])
    got = f.predict([np.array(4.0)])
    np.testing.assert_allclose(got, [6.0, 2.0])
    assert got[0].shape == ()
    x = np.arange(24.0, dtype=np.float32).reshape((1, 2, 3, 1, 2, 1, 2))
    (deep,) = wfcast.Farcaster().fit([x], [2 * x]).predict([x.transpose()])
    np.testing.assert_allclose(deep, 2 * x.transpose(), rtol=1e-6, atol=1e-5)


def test_in_place():
    X, Y, _A, _b = exact(m=2)
    f = wfcast.Farcaster().fit(X, Y)
    columns = [X[:, 0].copy(), X[:, 1].copy()]
    assert f.predict(columns, out=columns) is columns
    np.testing.assert_array_equal(np.stack(columns, 1), f.predict(X))
    Z = X.copy()
    assert f.predict(Z, out=Z) is Z
    np.testing.assert_array_equal(Z, f.predict(X))


def test_single_array_as_out_of_columns():
    X, Y, *_ = exact(m=1)
    f = wfcast.Farcaster().fit(X, Y)
    columns = [X[:, k].reshape(10, 12).copy() for k in range(2)]
    out = np.empty((10, 12))
    assert f.predict(columns, out=out) is out
    np.testing.assert_array_equal(out.reshape(-1), f.predict(X)[:, 0])


def test_slices_do_not_change_a_fit(monkeypatch):
    X, Y, *_ = exact(n=1000)
    Y = Y + np.random.default_rng(2).normal(size=Y.shape)
    groups = np.arange(1000) % 4
    whole = wfcast.Farcaster(beta=1e-3).fit(X, Y, groups=groups, first_update=np.ones(4))
    monkeypatch.setattr(_fit, "SLICE_ROWS", 77)
    cut = wfcast.Farcaster(beta=1e-3).fit(X, Y, groups=groups, first_update=np.ones(4))
    np.testing.assert_allclose(cut.objective_, whole.objective_, rtol=1e-8)
    bad = Y.copy()
    bad[900, 1] = np.inf
    with pytest.raises(wfcast.WfcastError, match=r"Y contains .*: column 1, row 900 \(value inf\)"):
        wfcast.Farcaster().fit(X, bad)


@pytest.mark.parametrize(
    ("shape", "limit"),
    [
        ((), 1),
        ((7,), 3),
        ((3, 5), 4),
        ((3, 5), 10),
        ((1, 1, 9), 2),
        ((2, 3, 4), 5),
        ((2, 0), 3),
        ((4, 4), 99),
    ],
)
def test_blocks_cover_everything_in_order(shape, limit):
    whole = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    seen = []
    for index, start, size in blocks(shape, limit):
        part = whole[index]
        assert isinstance(part, np.ndarray)
        assert part.ndim == len(shape)
        assert part.size == size <= limit
        np.testing.assert_array_equal(part.ravel(), np.arange(start, start + size))
        seen.append(size)
    assert sum(seen) == whole.size


def test_failed_or_interrupted_fit_changes_nothing(fitted, monkeypatch):
    X, Y, *_ = exact(3, p=4)
    before = pickle.dumps(fitted)
    bad = Y.copy()
    bad[5, 1] = np.nan
    with pytest.raises(wfcast.WfcastError):
        fitted.fit(X, bad)
    assert pickle.dumps(fitted) == before

    accumulate, left = _fit._accumulate, [1]

    def stop(*args):
        if not left.pop():
            raise KeyboardInterrupt
        accumulate(*args)

    monkeypatch.setattr(_fit, "_accumulate", stop)
    fresh = wfcast.Farcaster()
    for f in (fitted, fresh):
        left[:] = [0, 1]  # one segment is read, the next one is not
        with pytest.raises(KeyboardInterrupt):
            f.fit(*exact(3, n=20_000)[:2])
    assert pickle.dumps(fitted) == before
    assert vars(fresh) == vars(wfcast.Farcaster())


def state(estimator):
    return repr(sorted(vars(estimator).items()))


def cut_at(line, call):
    """Ctrl-C at the given line of the estimators that `call` comes to; whether it came so far."""
    traced = {module.__file__ for module in (farcaster, model, _fit)}
    left = line

    def trace(frame, event, arg):
        nonlocal left
        if frame.f_code.co_filename not in traced:
            return None
        if event == "line":
            left -= 1
            if left < 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def test_an_interrupt_at_any_line_leaves_the_old_fit_or_the_new_one():
    X, Y, *_ = exact()
    frame = pandas.DataFrame(X, columns=["first", "last"])
    runs = [{t: {"w": X[:, t % 2] * t, "v": Y[:, 0] + t} for t in range(4)}]
    for make, old, new in (
        (partial(wfcast.Farcaster, "squared_error"), (frame, Y), (X, Y[:, 0])),
        (partial(wfcast.ModelFarcaster, (0, 1), (2, 3), beta=0), (runs,), (runs[:1] * 2,)),
    ):
        states = [state(make().fit(*data)) for data in (old, new)]
        assert states[0] != states[1]
        line, seen, going = 0, set(), True
        while going:
            f = make().fit(*old)
            going = cut_at(line, partial(f.fit, *new))
            seen.add(states.index(state(f)))
            line += 1
        assert seen == {0, 1}
        assert line > 50


def test_no_convergence(monkeypatch, fitted):
    real = _fit._core.Fit

    class Short:
        def __init__(self, *args, **options):
            self._fit = real(*args, **options)

        def __getattr__(self, name):
            return getattr(self._fit, name)

        def result(self):
            return {**self._fit.result(), "dual_gap": 0.25, "converged": False}

    monkeypatch.setattr(_fit._core, "Fit", Short)
    before = pickle.dumps(fitted)
    with pytest.raises(wfcast.ConvergenceError, match=r"gap of 0.25, above tol=1e-09"):
        fitted.fit(*exact(3)[:2])
    assert pickle.dumps(fitted) == before


def test_rank_deficient_squares_warn():
    X, Y, *_ = exact()
    X = np.column_stack([X, X[:, 0] + X[:, 1]])
    with pytest.warns(wfcast.RankWarning, match="3 columns of rank 2") as caught:
        f = wfcast.Farcaster(loss="squared_error").fit(X, Y)
    assert caught[0].filename == __file__  # it points at the call
    np.testing.assert_allclose(f.predict(X), Y, atol=1e-9)


def test_r2_of_columns_far_from_zero():
    """The spread of weights may be tiny beside their size: R^2 is that of the 2-D arrays."""
    rng = np.random.default_rng(6)
    X = 1e8 + rng.normal(size=(1000, 1))
    Y = X + 0.3 * rng.normal(size=(1000, 1))
    f = wfcast.Farcaster().fit(X, Y)
    assert f.score([X[:, 0]], [Y[:, 0]]) == pytest.approx(f.score(X, Y), abs=1e-6)
    still = [np.full(1000, 0.1)]
    assert wfcast.Farcaster().fit([X[:, 0]], still).score([X[:, 0]], still) in (0.0, 1.0)


def test_trajectories_of_a_broadcast_view_are_not_copied():
    X, Y, *_ = exact()
    groups = np.broadcast_to(np.int64(0), 120)
    ids, _norms = farcaster._check_hinge(groups, [1.0], acquire(X, "X"), 3)
    assert ids.strides == (0,)
    want = wfcast.Farcaster(beta=1.0).fit(X, Y, groups=np.zeros(120, int), first_update=[1.0])
    for kind in (groups, groups.astype(np.longlong), groups.astype(">u2"), [0] * 120):
        f = wfcast.Farcaster(beta=1.0).fit(X, Y, groups=kind, first_update=[1.0])
        np.testing.assert_array_equal(f.coef_, want.coef_)


def test_many_rows_in_a_broadcast_view():
    """More than 2^31 rows fit in no memory here, but in a view of one row they do."""
    n = 2**31 + 11
    X = [np.broadcast_to(np.float32(w), (n,)) for w in (1, 2)]
    with pytest.raises(wfcast.WfcastError, match=rf"groups has shape \(3,\), expected \({n},\)"):
        wfcast.Farcaster(beta=1.0).fit(X, X, groups=[0, 0, 0], first_update=[1.0])
    with pytest.raises(wfcast.WfcastError, match=r"contains NaN or infinity: column 1, row 0"):
        wfcast.Farcaster().fit([X[0], np.broadcast_to(np.float32(np.nan), (n,))], X)


@pytest.mark.slow
def test_ctrl_c_is_answered_within_a_second():
    """A fit of a view that would take many seconds more."""
    x = [np.broadcast_to(np.float32(w), (2**33,)) for w in (1, 2)]
    f = wfcast.Farcaster(loss="squared_error", n_threads=2)
    sent = []

    def interrupt():
        sent.append(time.monotonic())
        signal.raise_signal(signal.SIGINT)

    timer = threading.Timer(0.5, interrupt)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        f.fit(x, x)
    assert time.monotonic() - sent[0] < 1
    assert vars(f) == vars(wfcast.Farcaster(loss="squared_error", n_threads=2))


def test_predict_before_fit():
    with pytest.raises(NotFittedError):
        wfcast.Farcaster().predict(np.ones((3, 2)))


def test_show_config(capsys):
    config = wfcast.show_config(mode="dicts")
    assert config["isa"] in config["available"]
    assert config["wfcast"] == wfcast.__version__
    assert wfcast.show_config() is None
    assert f"isa:        {config['isa']}" in capsys.readouterr().out
