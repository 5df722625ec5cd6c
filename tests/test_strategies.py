"""Operators from the steps and states of a run: annealed, extrapolate, low_rank."""

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import float32_to_bfloat16, widen
from safetensors.numpy import save_file

import wfcast

EVEN = (100, 200, 300, 400, 500)
UNEVEN = (3, 10, 11, 40, 2000)
INCREASING = st.lists(st.integers(1, 10**6), min_size=2, max_size=12, unique=True).map(sorted)


def power(inputs, gamma, start=0):
    """The integral of s^gamma over the stretch that each input stands for, as shares of all."""
    upto = [Fraction(s) ** (gamma + 1) for s in (start, *inputs)]
    return [(b - a) / (upto[-1] - upto[0]) for a, b in pairwise(upto)]


def weights(*args, **kwargs):
    op = wfcast.annealed(*args, **kwargs)
    assert op.targets == op.inputs[-1:]
    assert not op.intercept["*"].any()
    return op.coef["*"][0]


# ---- annealed -----------------------------------------------------------------------------------


@pytest.mark.parametrize("inputs", [EVEN, UNEVEN, (0, 10, 20), (7, 8)])
@pytest.mark.parametrize("gamma", [0, 1, 2, 10, 40])
def test_powers_are_integrals_over_stretches(inputs, gamma):
    exact = [float(w) for w in power(inputs, gamma)]
    np.testing.assert_allclose(weights(inputs, gamma), exact, rtol=1e-13)


def test_a_power_between_whole_ones():
    got = weights(UNEVEN, 1.5)
    edges = np.array([0, *UNEVEN]) / UNEVEN[-1]
    for a, b, w in zip(edges, edges[1:], got, strict=False):
        s = np.linspace(a, b, 20001)
        middle = (s[:-1] + s[1:]) / 2
        assert w == pytest.approx(2.5 * (middle**1.5).sum() * (s[1] - s[0]), rel=1e-6)


def test_neighbours_far_from_the_start_keep_their_digits():
    inputs = (2**53, 2**53 + 1, 2**53 + 3)
    got = weights(inputs, 2, start=2**53 - 1)
    exact = [float(w) for w in power(inputs, 2, start=2**53 - 1)]
    np.testing.assert_allclose(got, exact, rtol=1e-12)


@given(INCREASING, st.floats(0, 60), st.data())
def test_a_window_is_the_end_of_the_run(inputs, gamma, data):
    whole = weights(inputs, gamma)
    assert whole.min() >= 0
    assert whole.sum() == pytest.approx(1)
    k = data.draw(st.integers(1, len(inputs))) - 1
    if len(inputs) - k < 2 or not whole[k:].sum():
        return
    window = weights(inputs[k:], gamma, start=inputs[k - 1] if k else 0)
    np.testing.assert_allclose(window, whole[k:] / whole[k:].sum(), rtol=1e-9, atol=1e-300)


def test_a_huge_power_is_the_last_checkpoint():
    np.testing.assert_array_equal(weights(EVEN, 1e6), [0, 0, 0, 0, 1])


def wsm(f, n):
    """c_j of a decay f, as the paper has it for n evenly spaced checkpoints."""
    return [f(j / n) - f((j + 1) / n) for j in range(n - 1)] + [f((n - 1) / n)]


DECAYS = {
    "linear": lambda x: 1 - x,
    "minus-sqrt": lambda x: 1 - math.sqrt(x),
    "cosine": lambda x: 0.5 * (1 + math.cos(math.pi * x)),
    "late": lambda x: 1.0 if x < 0.5 else 2 - 2 * x,
}


@pytest.mark.parametrize("name", DECAYS)
@pytest.mark.parametrize("n", [2, 5, 64])
def test_decays_of_evenly_spaced_checkpoints(name, n):
    f = DECAYS[name]
    inputs = range(1000, 1000 + 10 * n, 10)
    want = wsm(f, n)
    np.testing.assert_allclose(weights(inputs, f), want, rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(weights(inputs, lambda x: 3e-4 * f(x)), want, rtol=1e-9, atol=1e-15)
    if name in ("linear", "minus-sqrt"):
        np.testing.assert_array_equal(weights(inputs, name), weights(inputs, f))


def test_a_decay_weighs_updates_by_the_rate():
    """The average has each update at the rate that the decay has when the update begins."""
    rng = np.random.default_rng(0)
    updates = rng.normal(size=(len(UNEVEN), 3))
    states = updates.cumsum(axis=0)  # the first update leads to the first checkpoint
    first = 2 * UNEVEN[0] - UNEVEN[1]
    rates = [1 - (s - first) / (UNEVEN[-1] - first) for s in (first, *UNEVEN[:-1])]
    decayed = sum(r * u for r, u in zip(rates, updates, strict=True))
    np.testing.assert_allclose(weights(UNEVEN, "linear") @ states, decayed, rtol=1e-12)


@pytest.mark.parametrize("gamma", [0, 2, 10])
def test_a_power_is_a_decay_over_the_whole_run(gamma):
    inputs = range(100, 1300, 100)
    decay = weights(inputs, lambda x: 1 - x ** (gamma + 1))
    np.testing.assert_allclose(weights(inputs, gamma), decay, rtol=1e-12, atol=1e-15)


def test_the_mean_is_the_average():
    np.testing.assert_array_equal(weights(UNEVEN, "mean")[None], wfcast.average(UNEVEN).coef["*"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((100,),), r"inputs is \(100,\), expected at least two steps to average"),
        (((200, 100),), "expected increasing steps"),
        (((100, 200), "cosine"), "profile is 'cosine', expected a power such as 10.0, 'mean'"),
        (((100, 200), True), "profile is True, expected a power"),
        (((100, 200), None), "profile is None, expected a power"),
        (((100, 200), -1), "profile is -1, expected a finite power not below 0"),
        (((100, 200), math.nan), "profile is nan, expected a finite power"),
        (((100, 200), math.inf), "profile is inf, expected a finite power"),
        (((100, 200), 10**400), "profile is 1000.*, expected a finite power"),
        (
            ((100, 200), 2.0, 101),
            "start is 101, expected an integer from 0 to the first input, 100",
        ),
        (((100, 200), 2.0, -1), "start is -1, expected an integer from 0"),
        (((100, 200), 2.0, 1.0), r"start is 1\.0, expected an integer"),
        (((100, 200), 2.0, True), "start is True, expected an integer"),
        (((-1, 200), 2.0), r"inputs is \(-1, 200\), expected steps from 0 on for powers of them"),
        (((1, 2, 3), lambda x: 1 + x), "the decay rises from 1 at 0 to 1.33333 at 0.333, expected"),
        (((1, 2, 3), lambda x: 0.0), "the decay is 0 at 0, expected a rate above 0"),
        (
            ((1, 2, 3), lambda x: 1 - 2 * x),
            "the decay is -0.333333 at 0.667, expected no rate below",
        ),
        (((1, 2, 3), lambda x: math.nan), "the decay is nan at 0, expected a finite number"),
        (((1, 2, 3), lambda x: None), "the decay gives None at 0, expected a number"),
    ],
)
def test_annealed_refuses(arguments, message):
    with pytest.raises(wfcast.WfcastError, match=message):
        wfcast.annealed(*arguments)


def test_annealed_takes_numpys_numbers_and_says_what_it_was(tmp_path):
    op = wfcast.annealed(np.array(EVEN), np.float32(2), np.int64(50))
    assert op.strategy == "annealed"
    assert op.info == {"profile": 2.0, "start": 50}
    op.save(tmp_path / "op.safetensors")
    assert wfcast.load(tmp_path / "op.safetensors").info == op.info
    assert wfcast.annealed(EVEN, DECAYS["late"]).info["profile"] == "<lambda>"
    strange = wfcast.Operator((1,), (1,), [[1.0]], info={"a": "x\n" * 99, "b": math.nan, "c": [1]})
    assert "by all, a 'x\\nx" in str(wfcast.inspect(strange))
    assert wfcast.inspect(strange).to_dict()["info"] == {"a": "x\n" * 99, "b": None}


# ---- extrapolate --------------------------------------------------------------------------------


def states(shapes, n, seed=0):
    """n states that drift, and jitter."""
    rng = np.random.default_rng(seed)
    found = []
    for name, shape in shapes.items():
        jitter = rng.normal(size=(n, *shape))
        found.append(
            (
                name,
                1
                + rng.normal(size=shape) * np.arange(n)[(...,) + (None,) * len(shape)] / n
                + jitter / 9,
            )
        )
    return [{name: walk[k] for name, walk in found} for k in range(n)]


SHAPES = {"a.weight": (7, 5), "b": (3,)}
STEPS = (100, 150, 160, 300, 500)
RUN = dict(zip(STEPS, states(SHAPES, len(STEPS)), strict=True))


def test_extrapolate_is_the_line_some_histories_further():
    for ahead, target in ((0.5, 700), (1, 900), (0.001, None), (0.00126, 501), (1e6, 400000500)):
        if target is None:
            with pytest.raises(wfcast.WfcastError, match="rounds to step 500, the last one"):
                wfcast.extrapolate(RUN, ahead)
            continue
        line = wfcast.extrapolate(RUN, ahead)
        np.testing.assert_array_equal(
            line.coef["*"], wfcast.linear_trend(STEPS, (target,)).coef["*"]
        )
        assert (line.inputs, line.targets) == (STEPS, (target,))
    two = wfcast.extrapolate(RUN, 0.5, "two-point")
    assert (two.inputs, two.targets) == ((100, 500), (700,))
    np.testing.assert_array_equal(two.coef["*"], [[-0.5, 1.5]])
    low = wfcast.extrapolate(RUN, 0.5, "low-rank")
    same = wfcast.low_rank(RUN, (700,), rank=2)
    assert low.coef.keys() == SHAPES.keys()
    for name in SHAPES:
        np.testing.assert_array_equal(low.coef[name], same.coef[name])
    assert low.tensors == same.tensors


def test_extrapolate_reads_no_states_for_a_line_and_says_how_it_was_made(tmp_path):
    op = wfcast.extrapolate(dict.fromkeys(STEPS), np.float32(0.25))
    assert op.strategy == "extrapolate"
    assert op.info == {"ahead": 0.25, "strategy": "line"}
    for step in STEPS:
        save_file(RUN[step], tmp_path / f"step-{step}.safetensors")
    low = wfcast.extrapolate(tmp_path, 0.25, "low-rank")
    assert low.info == {"rank": 2, "ahead": 0.25, "strategy": "low-rank"}
    low.save(tmp_path / "low.op")
    again = wfcast.load(tmp_path / "low.op")
    assert (again.info, again.fingerprint()) == (low.info, low.fingerprint())
    shown = wfcast.inspect(tmp_path / "low.op")
    assert "by tensor, rank 2, ahead 0.25, strategy low-rank\n" in str(shown)
    assert shown.to_dict()["info"] == low.info
    out = wfcast.forecast_checkpoint(low, tmp_path, None, tmp_path / "out.safetensors")
    assert (out.step, out.beyond) == (600, ())


def test_a_forecast_beside_the_states_is_none_of_them(tmp_path):
    for step in STEPS:
        save_file(RUN[step], tmp_path / f"step-{step}.safetensors")
    written = wfcast.forecast_checkpoint(
        wfcast.extrapolate(tmp_path), tmp_path, None, tmp_path / "step-700.safetensors"
    )
    for find in (
        wfcast.extrapolate,
        lambda run: wfcast.low_rank(run, (700,)),
        lambda run: wfcast.extrapolate(run, 0.5, "low-rank"),
    ):
        with pytest.warns(UserWarning, match=r"left out, as a forecast .*step-700\.safetensors"):
            assert find(tmp_path).inputs == STEPS
    named = {**RUN, 700: written.path}
    assert wfcast.extrapolate(named).inputs == (*STEPS, 700)
    for step in STEPS:
        (tmp_path / f"step-{step}.safetensors").unlink()
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(wfcast.CheckpointError, match="holds forecasts only, and no states"),
    ):
        wfcast.extrapolate(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((RUN, 0), "ahead is 0, expected a finite number of histories above 0"),
        ((RUN, -0.5), "ahead is -0.5, expected a finite number"),
        ((RUN, math.inf), "ahead is inf, expected a finite number"),
        ((RUN, math.nan), "ahead is nan, expected a finite number"),
        ((RUN, 10**400), "ahead is 1000.*, expected a finite number"),
        ((RUN, True), "ahead is True, expected a finite number"),
        ((RUN, "1"), "ahead is '1', expected a finite number"),
        ((RUN, 1e300), r"expected steps below 2\^63"),
        (
            (RUN, 0.5, "cubic"),
            "strategy is 'cubic', expected one of 'line', 'low-rank', 'two-point'",
        ),
        (({100: RUN[100]},), "the run has one state, step 100, expected two at least"),
        (({},), "the run is empty"),
        (("nowhere",), "there is no folder 'nowhere'"),
        (([1, 2],), r"the run is a list, expected \{step: checkpoint\}"),
    ],
)
def test_extrapolate_refuses(arguments, message):
    with pytest.raises(wfcast.WfcastError, match=message):
        wfcast.extrapolate(*arguments)


# ---- low_rank -----------------------------------------------------------------------------------


def projected(run, targets, rank):
    """What low_rank is to forecast, by the SVD in float64: target -> name -> weights."""
    line = wfcast.linear_trend(run, targets).coef["*"]
    found = {t: {} for t in targets}
    for name in next(iter(run.values())):
        stack = np.stack([widen(state[name]).ravel() for state in run.values()])
        delta = stack - stack[0]
        basis = np.linalg.svd(delta, full_matrices=False)[2][:rank]
        for t, coef in zip(targets, line, strict=True):
            ahead = stack[0] + coef @ delta @ basis.T @ basis
            found[t][name] = ahead.reshape(np.shape(next(iter(run.values()))[name]))
    return found


def combined(op, run, target):
    """The forecast in float64."""
    row = op.targets.index(target)
    return {
        name: np.tensordot(op.coef[name][row], [widen(run[s][name]) for s in op.inputs], 1)
        for name in op.coef
    }


@pytest.mark.parametrize("rank", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, "bfloat16"])
def test_low_rank_is_the_line_in_the_leading_directions(rank, dtype):
    as_given = (
        (lambda w: float32_to_bfloat16(w)) if dtype == "bfloat16" else (lambda w: w.astype(dtype))
    )
    bits = {s: {name: as_given(w) for name, w in state.items()} for s, state in RUN.items()}
    given = bits
    if dtype == "bfloat16":
        ml_dtypes = pytest.importorskip("ml_dtypes")
        given = {
            s: {name: w.view(ml_dtypes.bfloat16) for name, w in state.items()}
            for s, state in bits.items()
        }
    targets = (400, 700)
    op = wfcast.low_rank(given, targets, rank=rank)
    want = projected(bits, targets, rank)
    for t in targets:
        got = combined(op, bits, t)
        for name in SHAPES:
            np.testing.assert_allclose(
                got[name], want[t][name], rtol=0, atol=1e-5 if dtype != np.float64 else 1e-11
            )
    for name, coef in op.coef.items():
        np.testing.assert_allclose(coef.sum(axis=1), 1, rtol=1e-12)
        assert op.tensors[name] == (
            SHAPES[name],
            str(dtype if dtype == "bfloat16" else np.dtype(dtype)),
        )
    np.testing.assert_allclose(
        np.asarray(op.predict(given, 700)["b"], np.float64), want[700]["b"], rtol=2e-2
    )


def test_low_rank_of_all_states_is_the_line():
    op = wfcast.low_rank(RUN, (700,), rank=len(STEPS))
    for coef in op.coef.values():
        np.testing.assert_array_equal(coef, wfcast.linear_trend(STEPS, (700,)).coef["*"])


def test_small_moves_of_large_weights():
    """A Gram matrix of the weights themselves would hold the moves below its rounding."""
    moves = states({"w": (400,)}, 6)
    run = {t: {"w": 1e6 + 1e-4 * state["w"]} for t, state in enumerate(moves)}
    op = wfcast.low_rank(run, (9,), rank=2)
    want = projected(run, (9,), 2)[9]["w"]
    np.testing.assert_allclose(combined(op, run, 9)["w"] - 1e6, want - 1e6, rtol=0, atol=1e-8)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_a_large_tensor_as_a_small_one(dtype):
    walk = states({"w": (230, 100)}, 8)
    run = {t: {"w": (1 + state["w"] / 50).astype(dtype)} for t, state in enumerate(walk)}
    for rank in (1, 2, 7):
        got = combined(wfcast.low_rank(run, (11,), rank), run, 11)["w"]
        want = projected(run, (11,), rank)[11]["w"]
        moved = want - widen(run[0]["w"])
        assert np.linalg.norm(got - want) < 1e-5 * np.linalg.norm(moved)


def test_frozen_tied_empty_and_integer_tensors(tmp_path):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    run = {}
    for t in range(5):
        shared = torch.from_numpy(rng.normal(size=(4, 3)))
        run[t] = {
            "embed": shared,
            "head": shared,
            "frozen": torch.full((5,), 3.25),
            "scalar": torch.tensor(2.0 + t, dtype=torch.float64),
            "none": torch.zeros(0, 3),
            "ids": torch.arange(3) + t,
            "norm.running_mean": torch.full((2,), float(t)),
        }
    op = wfcast.low_rank(run, (7,), rank=2)
    assert op.coef.keys() == {"embed", "frozen", "scalar"}
    np.testing.assert_array_equal(op.coef["frozen"], [[1, 0, 0, 0, 0]])
    ahead = op.predict(run)
    assert ahead["head"] is ahead["embed"]
    assert torch.equal(ahead["frozen"], run[0]["frozen"])
    assert torch.equal(ahead["ids"], run[4]["ids"])
    assert torch.equal(ahead["norm.running_mean"], run[4]["norm.running_mean"])
    assert ahead["scalar"].item() == pytest.approx(9)  # fewer weights than directions
    plain = {t: {"embed": state["embed"].numpy()} for t, state in run.items()}
    want = projected(plain, (7,), 2)[7]["embed"]
    np.testing.assert_allclose(ahead["embed"].numpy(), want, rtol=1e-10)


def test_of_equal_directions_any_will_do():
    """Moves at right angles and of one length: what is kept is the line in one direction of two."""
    delta = np.zeros((3, 6))
    delta[1, 0] = delta[2, 1] = 2.0
    run = {t: {"w": 5 + row} for t, row in enumerate(delta)}
    op = wfcast.low_rank(run, (4,), rank=1)
    got = combined(op, run, 4)["w"] - 5
    line = wfcast.linear_trend(run, (4,)).coef["*"][0] @ delta
    assert got @ got == pytest.approx(got @ line)  # a projection of the line on some direction,
    np.testing.assert_array_equal(got[2:], 0)  # which lies among those of the run
    np.testing.assert_allclose(op.coef["w"].sum(), 1)


@given(st.integers(2, 6), st.integers(1, 40), st.integers(0, 10**6), st.data())
def test_any_run_against_the_svd(n, size, seed, data):
    rank = data.draw(st.integers(1, n))
    rng = np.random.default_rng(seed)
    run = {3 * t * t: {"w": w} for t, w in enumerate(rng.normal(size=(n, size)))}
    target = 3 * n * n
    got = combined(wfcast.low_rank(run, (target,), rank), run, target)["w"]
    np.testing.assert_allclose(got, projected(run, (target,), rank)[target]["w"], atol=1e-6)


@pytest.mark.parametrize(
    ("run", "rank", "message"),
    [
        (RUN, 0, "rank is 0, expected an integer from 1 to 5, the number of states"),
        (RUN, 6, "rank is 6, expected an integer from 1 to 5"),
        (RUN, 1.0, r"rank is 1\.0, expected an integer"),
        (RUN, True, "rank is True, expected an integer"),
        ({100: RUN[100]}, 1, "expected at least two steps for a line"),
        (
            {0: {"i": np.arange(3)}, 1: {"i": np.arange(3)}},
            1,
            "step 1 holds no tensors to forecast",
        ),
        ({0: RUN[100], 1: {"b": RUN[100]["b"]}}, 1, "checkpoints do not hold the same tensors"),
    ],
)
def test_low_rank_refuses(run, rank, message):
    with pytest.raises(wfcast.WfcastError, match=message):
        wfcast.low_rank(run, (10**6,), rank=rank)


def test_low_rank_names_what_is_not_finite():
    run = {t: {"w": np.zeros((4, 3)), "v": np.zeros(2)} for t in range(4)}
    run[2]["w"][3, 1] = np.inf
    with pytest.raises(
        wfcast.WfcastError, match=r"tensor 'w' of step 2, row 10 at index \(3, 1\) \(value inf\)"
    ):
        wfcast.low_rank(run, (7,))
