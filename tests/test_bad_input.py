"""Bad input: each gets an error that names the thing at fault, and changes nothing."""

import sys

import numpy as np
import pytest
import scipy.sparse

import wfcast

X = np.random.default_rng(0).normal(size=(20, 2))
Y = np.random.default_rng(1).normal(size=(20, 3))
GROUPS = np.repeat([0, 1], 10)
FIRST = np.array([1.0, 2.0])
RECORD = np.zeros((20,), dtype=[("a", float), ("b", float)])


def with_value(array, row, column, value):
    array = array.copy()
    array[row, column] = value
    return array


BAD_DATA = [
    (X[:, 0], Y, "Expected 2D array, got 1D array instead: X has shape (20,)"),
    (X[None], Y, "Expected 2D array, got 3D array instead: X has shape (1, 20, 2)"),
    (np.float64(3), Y, "Expected 2D array, got 0D"),
    (X, Y[:19], "X has 20 rows, Y has 19 rows"),
    (X, Y[None], "got 3D array instead: Y"),
    (X[:0], Y[:0], "X holds no rows: Found array with 0 sample(s)"),
    (X[:, :0], Y, "X holds no columns: Found array with 0 feature(s)"),
    (X, Y[:, :0], "Y holds no columns"),
    ([], Y, "X has shape (0,)"),
    ([X[:, 0], X[:19, 1]], Y, "X: column 1 has shape (19,), but column 0 has (20,)"),
    ([X[:, 0], 3.0], Y, "X: column 1 is a float, but column 0 is an array"),
    ([X[:, 0], None], Y, "X: column 1 is a NoneType"),
    ([X[:, 0].reshape(4, 5)], Y, "X has columns of shape (4, 5), Y has 20 rows"),
    (X, None, "requires y to be passed, but the target y is None"),
    (None, Y, "got None for X"),
    ("text", Y, "X is a str, expected a 2-D array"),
    ({0: X}, Y, "X is a dict, expected a 2-D array"),
    ({0: X[:, 0]}.values(), Y, "X is a dict_values, expected a 2-D array"),
    (iter([X[:, 0]]), Y, "X is a list_iterator, expected a 2-D array or a sequence of arrays"),
    (frozenset([1.0]), Y, "X is a frozenset, expected a 2-D array"),
    ([[1.0, 2.0], [3.0]], Y, "X is no array"),
    (X, with_value(Y, 7, 2, np.nan), "Y contains NaN or infinity: column 2, row 7 (value nan)"),
    (with_value(X, 5, 1, np.nan), Y, "Input X contains NaN or infinity: column 1, row 5 (value"),
    (X, with_value(Y, 7, 0, np.inf)[:, 0], "Input Y contains NaN or infinity: column 0, row 7"),
    (with_value(X, 3, 0, -np.inf), Y, "column 0, row 3 (value -inf)"),
    (X.astype(int), Y, "X has dtype int64, expected float64, float32, float16 or bfloat16"),
    ([X[:, 0], np.abs(X[:, 1]).astype(np.uint16)], Y, "X: column 1 has dtype uint16"),
    (X > 0, Y, "X has dtype bool"),
    (X, Y.astype(np.int8), "Y has dtype int8"),
    (X + 1j, Y, "Complex data not supported: X has dtype complex128"),
    (X, Y.astype(np.complex64), "Complex data not supported: Y has dtype complex64"),
    (X.astype(object), Y, "X holds Python objects (dtype object)"),
    (X.astype(str), Y, "X holds no numbers (dtype str"),
    (np.stack([RECORD, RECORD], 1), Y, "X holds no numbers (dtype structured)"),
    (X.astype("datetime64[s]"), Y, "X holds no numbers (dtype datetime64[s])"),
    (scipy.sparse.csr_matrix(X), Y, "Sparse data is not supported: X is a csr_matrix"),
    (scipy.sparse.dok_array(X), Y, "Sparse data is not supported: X is a dok_array"),
    ([scipy.sparse.coo_array(X)], Y, "X: column 0 is a coo_array"),
    (X, scipy.sparse.csr_array(Y), "Y is a csr_array, expected a dense array: call .toarray()"),
    (X.astype(X.dtype.newbyteorder()), Y, "X has the byte order of another machine"),
    (
        [X[:, 0], X[:, 1].astype(">f4" if sys.byteorder == "little" else "<f4")],
        Y,
        "X: column 1 has the byte order",
    ),
    (np.ma.masked_array(X, X > 0), Y, "X is a masked array"),
]


@pytest.mark.parametrize(("x", "y", "message"), BAD_DATA, ids=[m for *_, m in BAD_DATA])
def test_fit_refuses(x, y, message):
    f = wfcast.Farcaster()
    with pytest.raises(wfcast.WfcastError) as caught:
        f.fit(x, y)
    assert message in str(caught.value)
    assert vars(f) == vars(wfcast.Farcaster())
    if y is Y and x is not None and not isinstance(x, list) and "rows" not in message:
        with pytest.raises(wfcast.WfcastError) as caught:
            wfcast.Farcaster().fit(X, Y).predict(x)
        assert message in str(caught.value)


@pytest.mark.skipif(np.dtype(np.longdouble).itemsize == 8, reason="it is float64 there")
def test_longdouble():
    with pytest.raises(wfcast.DtypeError, match=r"X has dtype (float|longdouble)"):
        wfcast.Farcaster().fit(X.astype(np.longdouble), Y)


def test_dtype_errors_are_type_errors_and_value_errors():
    for kind in (TypeError, ValueError, wfcast.WfcastError):
        with pytest.raises(kind):
            wfcast.Farcaster().fit(X.astype(int), Y)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"loss": "huber"}, "loss is 'huber', expected one of 'absolute_error', 'squared_error'"),
        ({"loss": None}, "loss is None"),
        ({"beta": -1e-6}, "beta is -1e-06, expected a finite number not below 0"),
        ({"beta": np.nan}, "beta is nan"),
        ({"beta": "1"}, "beta is '1'"),
        ({"beta": None}, "beta is None"),
        ({"alpha": -1}, "alpha is -1"),
        ({"alpha": 1.0}, "goes with loss='squared_error' only: pass alpha=0"),
        (
            {"beta": 1.0, "loss": "squared_error"},
            "goes with loss='absolute_error' only: pass beta=0",
        ),
        ({"tol": 0}, "tol is 0, expected a finite number above 0"),
        ({"tol": -1.0}, "tol is -1.0"),
        ({"tol": 1e-20}, "tol is 1e-20, expected at least 2.22e-16"),
        ({"tol": np.inf}, "tol is inf"),
        ({"fit_intercept": "yes"}, "fit_intercept is 'yes'"),
        ({"n_threads": 0}, "n_threads is 0"),
        ({"n_threads": -1}, "n_threads is -1"),
        ({"n_threads": 1.5}, "n_threads is 1.5"),
        ({"n_threads": True}, "n_threads is True"),
        ({"n_threads": 2**31}, "n_threads is 2147483648, expected None or an integer from 1 to"),
        ({"beta": 10**400}, "expected a finite number not below 0"),
        ({"tol": 10**400}, "expected a finite number above 0"),
    ],
)
def test_parameters(params, message):
    with pytest.raises(wfcast.WfcastError) as caught:
        wfcast.Farcaster(**params).fit(X, Y, groups=GROUPS, first_update=FIRST)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("groups", "first", "message"),
    [
        (None, FIRST, "groups is missing, expected an array of 20 trajectory ids"),
        (GROUPS, None, "first_update is missing"),
        (GROUPS[:19], FIRST, "groups has shape (19,), expected (20,)"),
        (GROUPS[:, None], FIRST, "groups has shape (20, 1), expected (20,)"),
        (GROUPS.astype(float), FIRST, "groups has dtype float64, expected integers"),
        (GROUPS > 0, FIRST, "groups has dtype bool"),
        (GROUPS - 1, FIRST, "groups holds -1 (row 0), expected ids 0..1"),
        (GROUPS + 1, FIRST, "groups holds 2 (row 10), expected ids 0..1: first_update has 2"),
        (3, FIRST, "groups is the number 3, expected an array"),
        (GROUPS, FIRST[:1], "groups holds 1 (row 10), expected ids 0..0"),
        (GROUPS, FIRST[None], "first_update has shape (1, 2), expected (S,)"),
        (GROUPS, [], "first_update has shape (0,)"),
        (GROUPS, [1.0, -1.0], "first_update[1] is -1.0, expected a finite number not below 0"),
        (GROUPS, [np.nan, 1.0], "first_update[0] is nan"),
        (GROUPS, ["a", "b"], "first_update has dtype"),
        (GROUPS, [1j, 1j], "first_update has dtype complex128"),
    ],
)
def test_hinge(groups, first, message):
    with pytest.raises(wfcast.WfcastError) as caught:
        wfcast.Farcaster(beta=1e-6).fit(X, Y, groups=groups, first_update=first)
    assert message in str(caught.value)


def test_hinge_with_a_single_target():
    for y in (Y[:, :1], Y[:, 0]):
        with pytest.raises(wfcast.WfcastError, match=r"single target.*pass beta=0"):
            wfcast.Farcaster(beta=1e-6).fit(X, y, groups=GROUPS, first_update=FIRST)


# ---- tensors ----------------------------------------------------------------------------------


def bad_tensors():
    torch = pytest.importorskip("torch")  # an extra: wfcast itself does without
    x = torch.tensor(X, dtype=torch.float32)
    yield x.to("meta"), "X is a tensor on the meta device, which holds no values"
    yield x.to_sparse(), "X is a sparse tensor (torch.sparse_coo), expected a dense one: call .to_d"
    yield x.to_sparse_csr(), "X is a sparse tensor (torch.sparse_csr)"
    yield torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), "quantized tensor (torch.qint8)"
    yield x.to(torch.float8_e4m3fn), "X has dtype float8_e4m3fn, expected float64"
    yield x.to(torch.int32), "X has dtype int32"
    yield x.to(torch.complex64), "Complex data not supported: X has dtype complex64"
    yield x > 0, "X has dtype bool"
    yield torch.view_as_complex(x.reshape(20, 1, 2)).conj().imag, "has no plain memory"


@pytest.mark.filterwarnings(
    "ignore::UserWarning:torch",
    "ignore:Sparse CSR",
    "ignore:torch.quant",
    "ignore:quantize_per_tensor",
    "ignore::DeprecationWarning",
)
def test_tensors():
    for tensor, message in bad_tensors():
        with pytest.raises(wfcast.WfcastError) as caught:
            wfcast.Farcaster().fit(tensor, Y)
        assert message in str(caught.value)


def test_cuda_tensor():
    torch = pytest.importorskip("torch")  # an extra: wfcast itself does without
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    with pytest.raises(wfcast.DtypeError, match=r"device 'cuda:0', expected the CPU: call .cpu()"):
        wfcast.Farcaster().fit(torch.tensor(X).cuda(), Y)


def test_other_device_than_the_cpu():
    """What a CUDA tensor meets, shown with a stand-in that says it is on one."""
    torch = pytest.importorskip("torch")  # an extra: wfcast itself does without

    class Away(torch.Tensor):
        device = torch.device("cuda:0")

    with pytest.raises(wfcast.DtypeError, match=r"X: column 1 is on the device 'cuda:0'.*\.cpu"):
        wfcast.Farcaster().fit([torch.ones(20), torch.ones(20).as_subclass(Away)], Y)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("left", [0, 8])
def test_tensor_whose_storage_was_freed(fitted, dtype, left):
    """As sharded training frees it: what the tensor covers is no longer its own memory."""
    torch = pytest.importorskip("torch")  # an extra: wfcast itself does without
    good, freed = torch.zeros(2, 20, dtype=getattr(torch, dtype))
    freed = freed.clone()
    freed.untyped_storage().resize_(left)
    want = f"has lost its memory: its storage holds {left} bytes, expected {20 * freed.itemsize};"
    with pytest.raises(wfcast.DtypeError, match=f"X: column 1 {want}"):
        wfcast.Farcaster().fit([good, freed], Y)
    with pytest.raises(wfcast.DtypeError, match=f"out: column 0 {want}"):
        fitted.predict([good, good], out=[freed, good, good])


def test_counter_whose_storage_was_freed(tmp_path):
    torch = pytest.importorskip("torch")  # an extra: wfcast itself does without
    state = {"w": torch.ones(3), "counter": torch.ones(20, dtype=torch.int64)}
    state["counter"].untyped_storage().resize_(0)
    out = tmp_path / "out.safetensors"
    with pytest.raises(wfcast.DtypeError, match="tensor 'counter' of step 0 has lost its memory"):
        wfcast.forecast_checkpoint(wfcast.average((0,)), {0: state}, None, out)
    assert not list(tmp_path.iterdir())


def test_fp8_of_ml_dtypes():
    ml_dtypes = pytest.importorskip("ml_dtypes")  # an extra: wfcast itself does without
    for name in ("float8_e4m3fn", "float8_e5m2", "int4"):
        with pytest.raises(wfcast.DtypeError, match=f"X has dtype {name}, expected float64"):
            wfcast.Farcaster().fit(X.astype(getattr(ml_dtypes, name)), Y)


# ---- predict ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted():
    return wfcast.Farcaster().fit(X, Y)


def read_only(array):
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (np.empty((20, 2)), "out has shape (20, 2), expected (20, 3)"),
        (np.empty((19, 3)), "out has shape (19, 3), expected (20, 3)"),
        (np.empty(20), "out has shape (20,), expected (20, 3)"),
        (np.empty((20, 3), int), "out has dtype int64, expected float64"),
        (
            np.empty((20, 3), ">f8" if sys.byteorder == "little" else "<f8"),
            "out has the byte order",
        ),
        (read_only(np.empty((20, 3))), "out is read-only"),
        ([np.empty(20)] * 2, "out holds 2 arrays, expected 3"),
        (
            [np.empty(20), np.empty(20), np.empty(19)],
            "out: column 2 has shape (19,), expected (20,)",
        ),
        ([np.empty(20), np.empty(20), [0.0] * 20], "out: column 2 is a list"),
        ("text", "out is a str, expected an array or tensor"),
    ],
)
def test_out(fitted, out, message):
    with pytest.raises(wfcast.WfcastError) as caught:
        fitted.predict(X, out=out)
    assert message in str(caught.value)


def test_out_of_columns(fitted):
    columns = [X[:, k].reshape(4, 5) for k in range(2)]
    for out, message in (
        (np.empty((20, 3)), "expected a list of 3 arrays of shape (4, 5)"),
        ([np.empty(20)] * 3, "out: column 0 has shape (20,), expected (4, 5)"),
    ):
        with pytest.raises(wfcast.WfcastError) as caught:
            fitted.predict(columns, out=out)
        assert message in str(caught.value)


def test_out_that_overlaps_in_part(fitted):
    memory = np.arange(100.0)
    before = memory.copy()
    x = [memory[:20], memory[30:50]]
    for shifted in (memory[10:30], memory[1:21], memory[:40:2], memory[19::-1]):
        with pytest.raises(wfcast.WfcastError, match="overlap"):
            fitted.predict(x, out=[shifted, np.empty(20), np.empty(20)])
        np.testing.assert_array_equal(memory, before)
    same = np.empty(20)
    with pytest.raises(wfcast.WfcastError, match="overlap"):
        fitted.predict(x, out=[same, same, np.empty(20)])
    with pytest.raises(wfcast.WfcastError, match=r"out 2 .* share memory"):
        fitted.predict(
            x, out=[np.empty(20), np.empty(20), np.lib.stride_tricks.as_strided(same, (20,), (0,))]
        )


def test_out_that_overlaps_itself(fitted):
    memory = np.arange(100.0)
    before = memory.copy()
    for shape, strides in (
        ((4, 5), (8, 8)),
        ((4, 5), (-8, 16)),
        ((4, 5), (32, 8)),
        ((20,), (4,)),
        ((2, 2, 5), (16, 80, -16)),
    ):
        view = np.lib.stride_tricks.as_strided(memory[40:], shape, strides)
        x = [X[:, k].reshape(shape) for k in range(2)]
        with pytest.raises(wfcast.WfcastError, match=r"out 1 .* sliding view: its rows"):
            fitted.predict(x, out=[np.empty(shape), view, np.empty(shape)])
        np.testing.assert_array_equal(memory, before)


def test_out_of_any_layout_that_does_not(fitted):
    memory = np.zeros((20, 20, 20))
    for view in (memory[::-2, 3:5, 7], memory.T[1, ::5, ::-4], memory.reshape(20, -1)[:4, 4::95]):
        x = [X[:, k].reshape(view.shape) for k in range(2)]
        out = [view, np.empty(view.shape), np.empty(view.shape)]
        for got, want in zip(fitted.predict(x, out=out), fitted.predict(x), strict=True):
            np.testing.assert_array_equal(got, want)


def test_wrong_number_of_columns(fitted):
    with pytest.raises(wfcast.WfcastError, match="X has 3 features, but Farcaster is expecting 2"):
        fitted.predict(Y)


def test_nan_in_predict(fitted):
    bad = with_value(X, 6, 1, np.nan)
    with pytest.raises(wfcast.WfcastError, match=r"X contains .*: column 1, row 6 \(value nan\)"):
        fitted.predict(bad)
    loose = fitted.predict(bad, check_finite=False)
    assert np.isnan(loose[6]).all()
    assert np.isfinite(np.delete(loose, 6, 0)).all()


def test_nan_in_place_changes_nothing():
    f = wfcast.Farcaster().fit(X, Y[:, :2])
    columns = [X[:, 0].copy(), with_value(X, 19, 1, np.inf)[:, 1]]
    before = [c.copy() for c in columns]
    with pytest.raises(wfcast.WfcastError, match=r"column 1, row 19 \(value inf\)"):
        f.predict(columns, out=columns)
    np.testing.assert_array_equal(columns, before)


def test_overflow_in_place_changes_nothing():
    f = wfcast.Farcaster().fit(X, X * [1, 64])
    columns = [np.ones(9, np.float16), np.ones(9, np.float16)]
    columns[1][8] = 6e4
    before = [c.copy() for c in columns]
    with pytest.raises(wfcast.WfcastError, match="overflows float16 in target 1, row 8"):
        f.predict(columns, out=columns)
    np.testing.assert_array_equal(columns, before)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_overflow(dtype):
    # ml_dtypes is an extra: wfcast itself does without
    module = pytest.importorskip("ml_dtypes") if dtype == "bfloat16" else np
    kind = getattr(module, dtype)
    f = wfcast.Farcaster().fit(X, X * [1, 64])
    big = {"float16": 6e4, "bfloat16": 3e38, "float32": 3e38, "float64": 1e308}[dtype]
    x = np.ones((9, 2), kind)
    x[4, 1] = big
    with pytest.raises(
        wfcast.WfcastError, match=f"overflows {dtype} in target 1, row 4: {dtype} ends at"
    ):
        f.predict(x)
    assert np.isinf(f.predict(x, check_finite=False)[4, 1].astype(float))
    bad = [x[:, 0], x[:, 1]]
    with pytest.raises(wfcast.WfcastError, match="target 1, row 4"):
        f.predict(bad)


def test_score_of_columns_refuses(fitted):
    columns = [X[:, 0], X[:, 1]]
    with pytest.raises(wfcast.WfcastError, match="sample_weight goes with 2-D arrays only"):
        fitted.score(columns, Y, sample_weight=np.ones(20))
    with pytest.raises(wfcast.WfcastError, match="Y contains NaN"):
        fitted.score(columns, list(with_value(Y, 3, 1, np.nan).T))
    with pytest.raises(wfcast.WfcastError, match="Y has 2 columns of shape"):
        fitted.score(columns, [Y[:, 0], Y[:, 1]])


def test_misaligned_arrays_work():
    raw = np.zeros(20 * 2 * 8 + 1, np.uint8)
    x = raw[1:].view(np.float64).reshape(20, 2)
    x[...] = X
    assert not x.flags.aligned
    a, b = wfcast.Farcaster().fit(x, Y), wfcast.Farcaster().fit(X, Y)
    np.testing.assert_array_equal(a.coef_, b.coef_)
    np.testing.assert_array_equal(a.predict(x), b.predict(X))


def test_show_config_mode():
    with pytest.raises(ValueError, match="mode is 'json'"):
        wfcast.show_config(mode="json")


@pytest.mark.parametrize(
    ("x", "alpha"),
    [
        (np.full((5, 2), 0.1), 5e-324),
        (np.outer(np.arange(5.0), [1e-160, 1e-160]), 0),
    ],
)
def test_a_solution_that_is_no_number(x, alpha):
    f = wfcast.Farcaster("squared_error", alpha=alpha)
    with pytest.raises(wfcast.ConvergenceError, match="leave the range of float64"):
        f.fit(x, Y[:5])
    assert not hasattr(f, "coef_")


@pytest.mark.parametrize(("loss", "scale"), [("squared_error", 1e200), ("absolute_error", 1e-310)])
def test_data_beyond_the_range_of_float64(loss, scale):
    rng = np.random.default_rng(0)
    f = wfcast.Farcaster(loss=loss)
    with pytest.raises(wfcast.ConvergenceError, match="leave the range of float64: scale X and Y"):
        f.fit(rng.normal(size=(50, 2)) * scale, rng.normal(size=(50, 2)) * scale)
    assert not hasattr(f, "coef_")


def test_squares_beyond_the_range_of_float64_certify_nothing():
    rng = np.random.default_rng(0)
    f = wfcast.Farcaster("squared_error")
    with pytest.raises(wfcast.ConvergenceError):
        f.fit(rng.normal(size=(20, 2)) * 1e300, rng.normal(size=(20, 2)))
