"""Every kernel against its NumPy twin: dtypes, instruction sets, lengths, strides, offsets."""

import mmap

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st

from wfcast import _core

LENGTHS = [*range(66), 130, 257]
NAMES = {np.float64: "f64", np.float32: "f32", np.float16: "f16", np.uint16: "bf16"}


def ids(dtype):
    return NAMES[dtype]


def column(rng, n, dtype, scale=1.0):
    """n finite values of a dtype, small and large among them."""
    values = rng.normal(size=n) * scale * 10.0 ** rng.integers(-3, 2, n)
    return reference.narrow(values, dtype)


def operator(rng, m, p):
    return rng.normal(size=(m, p)), rng.normal(size=m)


def run(x, outs, coef, intercept, **kwargs):
    _core.apply(x, outs, coef, intercept, kwargs.get("check", True), kwargs.get("threads", 1))
    return outs


def same(got, want, dtype):
    """Equal bits; in float64 equal within the rounding of a fused sum."""
    if dtype == np.float64:
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)
    else:
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("dtype", reference.DTYPES, ids=ids)
@pytest.mark.parametrize("step", [1, 2, -1, 3])
def test_apply_every_length(isa, dtype, step):
    rng = np.random.default_rng(1)
    for n in LENGTHS:
        for p, m in [(1, 1), (2, 1), (3, 2), (2, 5), (5, 3), (7, 4)]:
            coef, intercept = operator(rng, m, p)
            offset = int(rng.integers(0, 9)) if n % 3 == 0 else 0
            x = [reference.placed(column(rng, n, dtype), step, offset) for _ in range(p)]
            outs = [reference.placed(np.zeros(n, dtype), step, offset) for _ in range(m)]
            run(x, outs, coef, intercept)
            for got, want in zip(
                outs, reference.apply(x, coef, intercept, [dtype] * m), strict=True
            ):
                same(got, want, dtype)
                got[...] = 0
                assert not got.base.any()  # nothing was written beside the elements


@pytest.mark.parametrize("first", reference.DTYPES, ids=ids)
@pytest.mark.parametrize("second", reference.DTYPES, ids=ids)
@pytest.mark.parametrize("to", reference.DTYPES, ids=ids)
def test_apply_mixes_dtypes(isa, first, second, to):
    rng = np.random.default_rng(2)
    coef, intercept = operator(rng, 2, 2)
    for n in (0, 1, 31, 700):
        x = [column(rng, n, first), column(rng, n, second)]
        outs = run(x, [np.zeros(n, to), np.zeros(n, np.float32)], coef, intercept)
        for got, want, dtype in zip(
            outs,
            reference.apply(x, coef, intercept, [to, np.float32]),
            (to, np.float32),
            strict=True,
        ):
            if np.float64 in (first, second, to):  # float64 sums may differ in their last bit
                np.testing.assert_allclose(
                    reference.widen(got),
                    reference.widen(want),
                    rtol=2.0**-7 if dtype == np.uint16 else 1e-3 if dtype == np.float16 else 1e-6,
                    atol=1e-7,
                )
            else:
                np.testing.assert_array_equal(got, want)


def test_float64_gives_the_same_bits_on_every_set(isa):
    rng = np.random.default_rng(11)
    for n in LENGTHS:
        coef, intercept = operator(rng, 3, 4)
        x = [column(rng, n, np.float64) for _ in range(4)]
        got = run(x, [np.zeros(n) for _ in range(3)], coef, intercept)
        _core.set_isa("scalar")
        want = run(x, [np.zeros(n) for _ in range(3)], coef, intercept)
        _core.set_isa(isa)
        np.testing.assert_array_equal(got, want)


def layouts():
    """Names, and functions that give a C-ordered array another layout."""

    def sliced(a):
        room = np.zeros([2 * s + 1 for s in a.shape], a.dtype)
        view = room[tuple(slice(1, None, 2) for _ in a.shape)]
        view[...] = a
        return view

    return {
        "C": np.ascontiguousarray,
        "Fortran": np.asfortranarray,
        "negative": lambda a: np.ascontiguousarray(a[::-1, :, ::-1])[::-1, :, ::-1],
        "sliced": sliced,
        "transposed": lambda a: np.ascontiguousarray(a.transpose(2, 0, 1)).transpose(1, 2, 0),
    }


@pytest.mark.parametrize("dtype", reference.DTYPES, ids=ids)
@pytest.mark.parametrize("left", list(layouts()))
@pytest.mark.parametrize("right", list(layouts()))
def test_apply_any_layout(dtype, left, right):
    rng = np.random.default_rng(3)
    shape = (5, 6, 7)
    a, b = (column(rng, 210, dtype).reshape(shape) for _ in range(2))
    x = [layouts()[left](a), layouts()[right](b)]
    coef, intercept = operator(rng, 3, 2)
    outs = [layouts()[right](np.zeros(shape, dtype)) for _ in range(3)]
    run(x, outs, coef, intercept)
    for got, want in zip(outs, reference.apply([a, b], coef, intercept, [dtype] * 3), strict=True):
        same(got, want, dtype)
    for inputs, values in zip(x, (a, b), strict=True):
        np.testing.assert_array_equal(inputs, values)  # inputs are as they were


def averaging(rng, m, p, centre):
    """Coefficients that sum to 1, the largest of each output at `centre`."""
    coef = rng.normal(size=(m, p)) / p
    coef[:, centre] = 0
    coef[:, centre] = 1 - coef.sum(axis=1)
    return coef


@pytest.mark.parametrize("dtype", reference.DTYPES, ids=ids)
@pytest.mark.parametrize("p", [1, 2, 3, 4, 9, 40])
def test_apply_of_averages(isa, dtype, p):
    """Each is summed from the input of its largest coefficient on, wherever that stands."""
    rng = np.random.default_rng(21)
    for n in (1, 7, 64, 1000, 5003):
        for m in (1, 2, 3, 4, 6):
            centre = int(rng.integers(p))
            coef = averaging(rng, m, p, centre)
            x = [column(rng, n, dtype) for _ in range(p)]
            want = reference.apply(x, coef, np.zeros(m), [dtype] * m)
            got = run(x, [np.zeros(n, dtype) for _ in range(m)], coef, np.zeros(m))
            for one, expected in zip(got, want, strict=True):
                same(one, expected, dtype)
            if m == 1:
                y = np.zeros(n, dtype)
                sums = _core.apply(x, [y], coef, np.zeros(1), True, 1, True)
                same(y, want[0], dtype)
                np.testing.assert_allclose(sums, reference.moves(y, x[-1]), rtol=1e-6)


@pytest.mark.parametrize("dtype", reference.DTYPES, ids=ids)
def test_equal_inputs_give_themselves(isa, dtype):
    """To the bit, as frozen weights must, whatever the coefficients that sum to 1."""
    rng = np.random.default_rng(22)
    lines = [np.array([[-6.0, 7.0]]), np.array([[1.0, 0.0]]), np.full((1, 49), 1 / 49)]
    steps = np.arange(1, 31) * 0.1
    lines.append((steps**10 / (steps**10).sum())[None])
    lines += [averaging(rng, m, p, p - 1) for m, p in ((1, 3), (3, 7), (4, 200))]
    for coef in lines:
        m, p = coef.shape
        for n in (1, 9, 5003):
            x = column(rng, n, dtype)
            for moves in {False, m == 1}:
                room = [np.zeros(n, dtype) for _ in range(m)]
                _core.apply([x.copy() for _ in range(p)], room, coef, np.zeros(m), True, 1, moves)
                for y in room:
                    np.testing.assert_array_equal(y, x)


def test_apply_broadcast_read_only_and_mapped(tmp_path):
    rng = np.random.default_rng(4)
    coef, intercept = operator(rng, 1, 3)
    a = column(rng, 4000, np.float32)
    a.setflags(write=False)
    wide = np.broadcast_to(np.float32(1.5), 4000)
    path = tmp_path / "column"
    column(rng, 4000, np.float32).tofile(path)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        b = np.frombuffer(mapped, np.float32)
        (got,) = run([a, wide, b], [np.zeros(4000, np.float32)], coef, intercept)
        np.testing.assert_array_equal(
            got, reference.apply([a, wide, b], coef, intercept, [np.float32])[0]
        )
        del b


@pytest.mark.parametrize("dtype", reference.DTYPES, ids=ids)
@pytest.mark.parametrize("m", [1, 2, 3, 4, 9])
def test_apply_in_place(isa, dtype, m):
    rng = np.random.default_rng(5)
    p = 9
    coef, intercept = operator(rng, m, p)
    x = [column(rng, 1000, dtype) for _ in range(p)]
    want = reference.apply(x, coef, intercept, [dtype] * m)
    others = [column.copy() for column in x[m:]]
    run(x, x[:m], coef, intercept)
    for got, expected in zip(x[:m], want, strict=True):
        same(got, expected, dtype)
    for got, expected in zip(x[m:], others, strict=True):
        np.testing.assert_array_equal(got, expected)  # inputs that are no outputs


@pytest.mark.parametrize("dtype", reference.DTYPES, ids=ids)
def test_large_outputs_and_threads_give_the_same_bits(isa, dtype):
    """Past the last-level cache stores go around it; no result may tell."""
    rng = np.random.default_rng(6)
    n = (33 << 20) // np.dtype(dtype).itemsize + 37
    x = [np.resize(column(rng, 10_007, dtype), n), np.resize(column(rng, 9_973, dtype), n)]
    coef, intercept = operator(rng, 1, 2)
    small = run([c[:20_000] for c in x], [np.zeros(20_000, dtype)], coef, intercept)[0]
    first = None
    for threads in (1, 2, 3, 7):
        room = np.zeros(n + 1, dtype)
        got = run(x, [room[1:]], coef, intercept, threads=threads)[0]
        np.testing.assert_array_equal(got[:20_000], small)
        first = got if first is None else first
        np.testing.assert_array_equal(got, first)
        assert room[0] == 0


@pytest.mark.parametrize("dtype", reference.DTYPES, ids=ids)
@pytest.mark.parametrize("step", [1, 2, -1])
def test_moves_ride_along(isa, dtype, step):
    """They are those of the rounded output, which is what it is without them."""
    rng = np.random.default_rng(13)
    for n in [*range(0, 70, 3), 511, 512, 545, 4096, 9001]:
        for p in (1, 2, 5, 10):
            coef, intercept = operator(rng, 1, p)
            x = [reference.placed(column(rng, n, dtype), step, 2 * (n % 2)) for _ in range(p)]
            y = reference.placed(np.zeros(n, dtype), step, 6)
            got = _core.apply(x, [y], coef, intercept, True, 1, True)
            same(y, reference.apply(x, coef, intercept, [dtype])[0], dtype)
            np.testing.assert_allclose(got, reference.moves(y, x[-1]), rtol=1e-6, atol=0)
            y[...] = 0
            assert not y.base.any()


@pytest.mark.parametrize("dtype", reference.DTYPES, ids=ids)
@pytest.mark.parametrize("last", [False, True])
def test_moves_in_place(isa, dtype, last):
    rng = np.random.default_rng(14)
    for check in (False, True):
        coef, intercept = operator(rng, 1, 3)
        x = [column(rng, 20_001, dtype) for _ in range(3)]
        (want,) = reference.apply(x, coef, intercept, [dtype])
        sums = reference.moves(want, x[-1])
        got = _core.apply(x, [x[-1 if last else 0]], coef, intercept, check, 1, True)
        same(x[-1 if last else 0], want, dtype)
        np.testing.assert_allclose(got, sums, rtol=1e-6)


@pytest.mark.parametrize("dtype", reference.DTYPES, ids=ids)
def test_moves_mix_dtypes(isa, dtype):
    rng = np.random.default_rng(15)
    coef, intercept = operator(rng, 1, 2)
    for other in reference.DTYPES:
        x = [column(rng, 5000, other), column(rng, 5000, dtype)]
        y = np.zeros(5000, other)
        got = _core.apply(x, [y], coef, intercept, True, 1, True)
        np.testing.assert_allclose(got, reference.moves(y, x[-1]), rtol=1e-6)


@pytest.mark.parametrize("dtype", reference.DTYPES, ids=ids)
def test_moves_depend_on_nothing_but_the_values(isa, dtype):
    """Past the last-level cache and not, on a cache line and off it, by any number of threads."""
    rng = np.random.default_rng(16)
    size = np.dtype(dtype).itemsize
    coef, intercept = operator(rng, 1, 2)
    for n in ((33 << 20) // size + 37, 100_003):
        x = [np.resize(column(rng, k, dtype), n) for k in (10_007, 9_973)]
        room = np.zeros(n + 128 // size, dtype)
        line = -room.ctypes.data % 64 // size
        (want,) = run(x, [np.zeros(n, dtype)], coef, intercept)
        first = None
        for isa_now in (isa, "scalar") if n < 1 << 20 else (isa,):
            _core.set_isa(isa_now)
            for threads, at in ((1, line), (2, line + 1), (3, line)):
                got = _core.apply(x, [room[at : at + n]], coef, intercept, True, threads, True)
                np.testing.assert_array_equal(room[at : at + n], want)
                assert got == (first or got)
                first = got
        _core.set_isa(isa)
        np.testing.assert_allclose(first, reference.moves(want, x[-1]), rtol=1e-6)


@pytest.mark.parametrize("dtype", reference.DTYPES, ids=ids)
def test_moves_of_extreme_weights(isa, dtype):
    """Squares beyond float32's range, nothing moved, rows that are not finite."""
    rng = np.random.default_rng(17)
    scales = (1.0,) if dtype == np.float16 else (1.0, 1e-25, 1e25)
    with np.errstate(over="ignore"):
        for scale in scales:
            x = [column(rng, 5000, dtype, scale) for _ in range(2)]
            y = np.zeros(5000, dtype)
            got = _core.apply(x, [y], np.array([[0.5, 0.6]]), np.zeros(1), True, 1, True)
            np.testing.assert_allclose(got, reference.moves(y, x[-1]), rtol=1e-6, atol=0)
            got = _core.apply(x, [y], np.array([[0.0, 1.0]]), np.zeros(1), True, 1, True)
            np.testing.assert_allclose(got, reference.moves(x[-1], x[-1]), rtol=1e-6, atol=0)
    x[1][[3, 4999]] = reference.narrow(np.array([np.nan, -np.inf]), dtype)
    got = _core.apply(x, [y], np.array([[0.5, 0.6]]), np.zeros(1), False, 1, True)
    np.testing.assert_allclose(got, reference.moves(y, x[-1]), rtol=1e-6)
    assert np.isfinite(got).all()


def test_moves_are_those_of_one_output():
    x = [np.ones(5, np.float32)]
    with pytest.raises(ValueError, match="one output, not of 2"):
        _core.apply(x, [np.ones(5), np.ones(5)], np.ones((2, 1)), np.zeros(2), True, 1, True)
    assert _core.apply(x, [np.ones(5)], np.ones((1, 1)), np.zeros(1)) is None
    empty = np.ones(0)
    assert _core.apply([empty], [empty.copy()], np.ones((1, 1)), np.zeros(1), True, 1, True) == (
        0,
        0,
    )


def test_position_does_not_matter(isa):
    """An element's result is the same wherever it lies in its column."""
    rng = np.random.default_rng(7)
    coef, intercept = operator(rng, 2, 4)
    x = [column(rng, 300, np.float32) for _ in range(4)]
    whole = run(x, [np.zeros(300, np.float32) for _ in range(2)], coef, intercept)
    for start in range(0, 300, 7):
        part = [c[start:].copy() for c in x]
        outs = run(part, [np.zeros(300 - start, np.float32) for _ in range(2)], coef, intercept)
        for got, want in zip(outs, whole, strict=True):
            np.testing.assert_array_equal(got, want[start:])


@pytest.mark.parametrize("dtype", reference.DTYPES, ids=ids)
@pytest.mark.parametrize("place", [0, 5, 15, 16, 17, 998, 999])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("in_place", [False, True])
def test_nonfinite_inputs_are_found(isa, dtype, place, value, in_place):
    rng = np.random.default_rng(8)
    x = [column(rng, 1000, dtype) for _ in range(2)]
    x[1][place] = reference.narrow(np.array([value]), dtype)[0]
    before = x[1].copy()
    out = x[1] if in_place else np.zeros(1000, dtype)
    with pytest.raises(_core.NonFinite) as caught:
        run([x[0], x[1]], [out], np.ones((1, 2)), np.zeros(1))
    assert caught.value.args == ("input", 1, place)
    np.testing.assert_array_equal(x[1], before)
    run([x[0], x[1]], [out], np.ones((1, 2)), np.zeros(1), check=False)


@pytest.mark.parametrize(
    ("dtype", "largest"),
    [
        (np.float16, 65504.0),
        (np.uint16, 3.3895313892515355e38),
        (np.float32, 3.4028234663852886e38),
    ],
)
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("step", [1, 2])
def test_overflow_is_found(isa, dtype, largest, in_place, step):
    x = np.zeros(200, np.float64)
    x[77] = largest
    room = np.zeros(200 * step, dtype)
    a = room[::step]
    a[...] = reference.narrow(x, dtype)
    out = a if in_place else np.zeros(200 * step, dtype)[::step]
    run([a], [out], np.array([[1.0]]), np.zeros(1))  # as large as can be, and fine
    before = a.copy()
    with pytest.raises(_core.NonFinite) as caught:
        run([a], [out], np.array([[1.01]]), np.zeros(1))
    assert caught.value.args == ("output", 0, 77)
    np.testing.assert_array_equal(a, before)


def test_an_unused_lane_raises_no_alarm(isa):
    """An intercept beyond float16 is fine when every sum is back in range."""
    x = [np.full(3, 60000, np.float16)]
    (got,) = run(x, [np.zeros(3, np.float16)], np.array([[-2.0]]), np.array([1e5]))
    np.testing.assert_array_equal(got, np.float16(-20000))


@given(st.integers(0, 2**16 - 1), st.integers(0, 2**16 - 1))
def test_half_conversions_round_trip(low, high):
    bits = np.arange(min(low, high), max(low, high) + 1, 97, dtype=np.uint16)
    for dtype in (np.float16, np.uint16):
        values = bits.view(dtype)
        wide = reference.widen(values)
        good = np.isfinite(wide)
        x = np.ascontiguousarray(values[good])
        (got,) = run([x], [np.zeros(len(x), np.float32)], np.ones((1, 1)), np.zeros(1))
        np.testing.assert_array_equal(got, wide[good])
        (back,) = run([got], [np.zeros(len(x), dtype)], np.ones((1, 1)), np.zeros(1))
        np.testing.assert_array_equal(back[back != 0], x[back != 0])


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=40))
def test_float64_rounds_once(values):
    x = np.array(values)
    for dtype in (np.float32, np.float16, np.uint16):
        (got,) = run([x], [np.zeros(len(x), dtype)], np.ones((1, 1)), np.zeros(1), check=False)
        np.testing.assert_array_equal(got, reference.narrow(x + 0.0, dtype))  # no -0


@pytest.mark.parametrize("dtype", reference.DTYPES, ids=ids)
@pytest.mark.parametrize("of", reference.DTYPES, ids=ids)
def test_blend(isa, dtype, of):
    """Every tensor with averages of its own, of any length, layout and dtype."""
    rng = np.random.default_rng(18)
    for k in (1, 3, 16):
        c = np.where(np.arange(k) % 3 == 2, np.arange(k) % 2, rng.random(k))
        w = [reference.placed(column(rng, n, dtype), 1 + n % 2, n % 7) for n in (*range(70), 3000)]
        averages = [
            [reference.placed(column(rng, len(v), of), 1 + (n + j) % 2, j % 5) for j in range(k)]
            for n, v in enumerate(w)
        ]
        wanted = [
            [reference.blend(v, a, c[j]) for j, a in enumerate(own)]
            for v, own in zip(w, averages, strict=True)
        ]
        before = [v.copy() for v in w]
        assert _core.blend(w, averages, c, 1) == -1
        for own, wants in zip(averages, wanted, strict=True):
            for got, want in zip(own, wants, strict=True):
                if np.float64 in (dtype, of):
                    close = {np.float64: 1e-12, np.float32: 1e-6, np.float16: 1e-3}
                    np.testing.assert_allclose(
                        reference.widen(got),
                        reference.widen(want),
                        rtol=close.get(of, 2.0**-7),
                        atol=1e-15,
                    )
                else:
                    np.testing.assert_array_equal(got, want)
        for got, want in zip(w, before, strict=True):
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("dtype", reference.DTYPES, ids=ids)
def test_blend_by_any_number_of_threads(isa, dtype):
    rng = np.random.default_rng(19)
    c = np.array([0.3, 0.0, 1.0, 0.7])
    w = [column(rng, n, dtype).reshape(-1, 1) for n in (100_001, 1, 0, 70_000, 1000)]
    first = None
    for threads in (1, 2, 5):
        averages = [[np.full(v.shape, j, np.float32) for j in range(4)] for v in w]
        assert _core.blend(w, averages, c, threads) == -1
        first = first or averages
        for got, want in zip(averages, first, strict=True):
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("dtype", reference.DTYPES, ids=ids)
def test_blend_to_the_bit(isa, dtype):
    """The first state is taken as it is, equal ones stay equal, a weight of 0 changes nothing."""
    rng = np.random.default_rng(20)
    for of in {np.float32, dtype}:
        w = column(rng, 1003, dtype)
        wide = reference.narrow(reference.widen(w), of)
        fresh = reference.narrow(np.full(1003, np.nan), of)
        equal, left = wide.copy(), column(rng, 1003, of)
        before = left.copy()
        assert _core.blend([w], [[fresh, equal, left]], np.array([1.0, 0.37, 0.0])) == -1
        np.testing.assert_array_equal(fresh, wide)
        np.testing.assert_array_equal(equal, wide)
        np.testing.assert_array_equal(left, before)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", reference.DTYPES, ids=ids)
def test_blend_tells_of_nan_and_infinity(isa, dtype, value):
    rng = np.random.default_rng(21)
    for place in (0, 5, 998, 1002):
        w = [column(rng, 1003, dtype) for _ in range(4)]
        for bad in (1, 3):
            w[bad][place] = reference.narrow(np.array([value]), dtype)[0]
        for c in (0.5, 1.0, 0.0):
            averages = [[np.zeros(1003, np.float32)] for _ in w]
            assert _core.blend(w, averages, np.array([c])) == 1
            assert np.isfinite(averages[0][0]).all()
    w = [np.zeros(100_000, np.float32) for _ in range(4)]
    w[2][-1] = w[3][7] = value
    assert _core.blend(w, [[v.copy()] for v in w], np.array([0.5]), 4) == 2


def test_blend_refuses():
    w, a = np.ones(9, np.float32), np.ones(9, np.float32)
    half = np.array([0.5])
    for match, tensors, averages, c in (
        ("shares memory with its tensor", [w], [[w]], half),
        ("shares memory with its tensor", [w[:5]], [[w[4:]]], half),
        ("overlaps out 0", [w], [[a, a]], np.array([0.5, 0.5])),
        ("1 averages with 2", [w], [[a]], np.array([0.5, 0.5])),
        ("a sequence of them for each tensor", [w, w], [[a]], half),
        ("up to 16", [w], [[a] * 17], np.ones(17)),
        ("shape", [w], [[a[:3]]], half),
        ("c must be", [w], [[a]], half.astype(np.float32)),
        ("read-only", [w], [[np.broadcast_to(np.float32(0), 9)]], half),
    ):
        with pytest.raises(ValueError, match=match):
            _core.blend(tensors, averages, c)
    with pytest.raises(TypeError, match="numpy"):
        _core.blend([w], [[[1.0] * 9]], half)
    np.testing.assert_array_equal(a, 1)
    assert _core.blend([], [], half) == -1
    assert _core.blend([np.array(3.0)], [[b := np.array(1.0)]], half) == -1
    assert b == 2


@pytest.mark.parametrize("dtype", reference.DTYPES, ids=ids)
def test_error_sums_and_update_norm(isa, dtype):
    rng = np.random.default_rng(9)
    for n in [*range(0, 66, 5), 1000, 50_001]:
        a, b = column(rng, n, dtype), column(rng, n, np.float32)
        if n > 10:
            a[3] = reference.narrow(np.array([np.nan]), dtype)[0]
        want = reference.error_sums(a, b)
        for threads in (1, 3):
            got = _core.error_sums(a, b, threads)
            assert got.keys() == want.keys()
            for key, value in want.items():
                np.testing.assert_allclose(got[key], value, rtol=1e-12, atol=1e-9, err_msg=key)
        if n <= 10:
            np.testing.assert_allclose(_core.update_norm(a, b), want["sum_abs"], rtol=1e-12)
        _core.set_isa("scalar")
        assert _core.error_sums(a, b, 2) == got  # the same bits
        _core.set_isa(isa)
    huge = np.array([1.5e308, 1.0, -np.inf])
    got = _core.error_sums(huge, np.array([-1.5e308, 3.0, 1.0]))
    assert (got["n"], got["n_nonfinite"], got["max_abs"]) == (1, 2, 2.0)


@pytest.mark.parametrize("dtype", reference.DTYPES, ids=ids)
def test_gram(isa, dtype):
    rng = np.random.default_rng(11)
    for n in [*range(66), 1000, 40_001]:
        for step, offset in [(1, 0), (-2, 3)]:
            x = [reference.placed(column(rng, n, dtype), step, offset) for _ in range(3)]
            y = [reference.placed(column(rng, n, np.float32), 1, 0) for _ in range(2)]
            size = max(1.0, reference.gram(x).max(initial=0.0), reference.gram(y).max(initial=0.0))
            for threads in (1, 3):
                got = _core.gram(x, None, threads)
                np.testing.assert_allclose(got, reference.gram(x), atol=1e-13 * size)
                np.testing.assert_array_equal(got, got.T)
                got = _core.gram(x, y, threads)
                np.testing.assert_allclose(got, reference.gram(x, y), atol=1e-13 * size)


def test_gram_does_not_depend_on_threads():
    rng = np.random.default_rng(12)
    x = [rng.normal(size=300_001).astype(np.float32) for _ in range(3)]
    np.testing.assert_array_equal(_core.gram(x, None, 1), _core.gram(x, None, 4))
    np.testing.assert_array_equal(_core.gram(x[:1], x, 1), _core.gram(x[:1], x, 3))


@pytest.mark.parametrize("dtype", reference.DTYPES, ids=ids)
def test_gram_of_differences(isa, dtype):
    """Of states that lie close together, also where nothing moved."""
    rng = np.random.default_rng(22)
    for n in (0, 1, 500, 8191, 8192, 8192 + 515, 40_001):
        for step, offset in ((1, 0), (1, 1), (-2, 0)):
            base = rng.normal(size=n)
            states = [base * (1 + 0.1 * rng.random(n)) for _ in range(5)]
            base, *x = (
                reference.placed(reference.narrow(c, dtype), step, offset) for c in (base, *states)
            )
            x[3] = base
            wide = [reference.widen(c) - reference.widen(base) for c in x]
            want = reference.gram(wide)
            norms = np.sqrt(np.diag(want))
            got = _core.gram(x, None, 1, base)
            assert (np.abs(got - want) <= 3e-7 * np.outer(norms, norms)).all()
            np.testing.assert_array_equal(got, got.T)
            np.testing.assert_array_equal(got, _core.gram(x, None, 3, base))
            want = reference.gram(wide[:2], wide[2:])
            got = _core.gram(x[:2], x[2:], 2, base)
            np.testing.assert_allclose(got, want, atol=1e-12 * max(1.0, np.abs(want).max()))


def test_gram_of_differences_gives_the_same_bits_on_every_set(isa):
    rng = np.random.default_rng(23)
    for n in (8192, 10_007):
        base, *x = (rng.normal(size=n).astype(np.float32) for _ in range(7))
        got = _core.gram(x, None, 2, base)
        _core.set_isa("scalar")
        want = _core.gram(x, None, 2, base)
        _core.set_isa(isa)
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e25])
def test_gram_of_differences_beyond_the_squares_of_float32(scale):
    rng = np.random.default_rng(24)
    base, *x = ((rng.normal(size=9000) * scale).astype(np.float32) for _ in range(4))
    want = reference.gram([reference.widen(c) - reference.widen(base) for c in x])
    got = _core.gram(x, None, 1, base)
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12 * np.abs(want).max())


def test_gram_of_differences_refuses():
    for n in (20, 9000):
        x = [np.ones(n, np.float32) for _ in range(3)]
        x[1][n - 1] = np.nan
        for k, args in ((1, (x[:2], None, 1, x[2])), (1, (x[2:], None, 1, x[1]))):
            with pytest.raises(_core.NonFinite) as info:
                _core.gram(*args)
            assert info.value.args == ("input", k, n - 1)
        with pytest.raises(ValueError, match="base 0 has another shape"):
            _core.gram(x[:1], None, 1, x[0][1:])


def test_gram_refuses():
    x = np.ones(20)
    with pytest.raises(ValueError, match="at least one column on each side"):
        _core.gram([])
    with pytest.raises(ValueError, match="at least one column on each side"):
        _core.gram([x], [])
    with pytest.raises(ValueError, match="shape"):
        _core.gram([x, np.ones(21)])
    for bad in (np.nan, np.inf):
        y = x.copy()
        y[7] = bad
        with pytest.raises(_core.NonFinite) as info:
            _core.gram([x], [x, y])
        assert info.value.args == ("input", 2, 7)


@pytest.mark.parametrize("dtype", reference.DTYPES, ids=ids)
def test_halves(isa, dtype):
    rng = np.random.default_rng(13)
    for n in [*range(0, 66, 5), 1000, 40_001]:
        for step, offset in [(1, 0), (-2, 3)]:
            x = [reference.placed(column(rng, n, dtype), step, offset) for _ in range(4)]
            x.insert(1, x[0].copy())
            for middle in (0, 2, 4):
                want = reference.halves(x, middle)
                size = max(1.0, np.abs(want).max())
                for threads in (1, 3):
                    got = _core.halves(x, middle, threads)
                    np.testing.assert_allclose(got, want, rtol=0, atol=1e-13 * size)
                    np.testing.assert_array_equal(got[:, 4], want[:, 4])
                    np.testing.assert_array_equal(got, _core.halves(x, middle, 1))
    np.testing.assert_array_equal(_core.halves([x[0]], 0)[0, 1:], 0)


def test_halves_refuses():
    x = np.ones((4, 5))
    with pytest.raises(ValueError, match="middle is 2, expected one of 2 columns"):
        _core.halves([x, x], 2)
    with pytest.raises(ValueError, match="middle is -1, expected one of 2 columns"):
        _core.halves([x, x], -1)
    with pytest.raises(ValueError, match="middle is 0, expected one of 0 columns"):
        _core.halves([], 0)
    with pytest.raises(ValueError, match="shape"):
        _core.halves([x, x[1:]], 1)
    bad = x.copy()
    bad[2, 3] = np.nan
    with pytest.raises(_core.NonFinite) as info:
        _core.halves([x, x, bad], 1)
    assert info.value.args == ("input", 2, 13)


def test_triad(isa):
    rng = np.random.default_rng(10)
    a, b, out = (rng.normal(size=1003).astype(np.float32) for _ in range(3))
    for start in range(5):
        _core.triad(out[start:], a[start:], b[start:], 2.0, 2)
        np.testing.assert_allclose(out[start:], a[start:] + 2 * b[start:], rtol=1e-6)


def refused(match, x, outs, p=1, m=1):
    with pytest.raises((ValueError, TypeError), match=match):
        _core.apply(x, outs, np.ones((m, p)), np.zeros(m))


def test_refuses_what_it_cannot_do():
    a = np.zeros(100, np.float32)
    refused("overlaps input 0 in part", [a[:-1]], [a[1:]])
    refused("overlaps input 0 in part", [a[::2][:25]], [a[:25]])
    refused("overlaps input 0 in part", [a.view(np.float16)[:50]], [a[:50]])
    refused("overlaps out 0", [np.zeros(10)], [a[:10], a[:10]], m=2)
    refused("broadcast", [np.zeros(10)], [np.lib.stride_tricks.as_strided(a, (10,), (0,))])
    refused("read-only", [a], [np.broadcast_to(np.float32(0), 100)])
    refused("dtype", [a.astype(np.int32)], [a.copy()])
    refused("byte order", [a.astype(">f4")], [a.copy()])
    refused("shape", [a], [np.zeros(99, np.float32)])
    refused("expected a numpy.ndarray", [[1.0, 2.0]], [a])
    refused("coef must be", [a], [a.copy()], p=2)
    refused("at least one", [], [a])
    interleaved = np.zeros((50, 4), np.float32)
    _core.apply([interleaved[:, 0]], [interleaved[:, 1]], np.ones((1, 1)), np.ones(1))
    np.testing.assert_array_equal(interleaved[:, :3], np.tile(np.float32([0, 1, 0]), (50, 1)))


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,) * 32, (2,) * 12])
def test_odd_shapes(shape):
    a, out = np.full(shape, 2.0), np.zeros(shape)
    _core.apply([a], [out], np.array([[3.0]]), np.array([1.0]))
    np.testing.assert_array_equal(out, np.full(shape, 7.0))
