"""The line through a run's history from two running sums: what np.polyfit gives for the states."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")  # an extra: the module lies in wfcast.torch

import loops  # noqa: E402  only with it

from wfcast._live.tensors import combine  # noqa: E402  only with it
from wfcast.torch._line import Line  # noqa: E402
from wfcast.torch._store import Store, runs_of  # noqa: E402

SHAPES = ((7, 5), (11,), (), (2, 3, 4), (0, 3))
# of a weight of size 1; sums are kept in float32, those of float64 weights in float64
TOLERANCES = {torch.float32: 1e-6, torch.bfloat16: 1e-6, torch.float64: 1e-12}


def walk(n, dtype=torch.float32, seed=0, drift=0.01):
    """States of a run that drifts and jitters, each a list of tensors."""
    random = torch.Generator().manual_seed(seed)
    state = [torch.randn(s, generator=random, dtype=torch.float64) for s in SHAPES]
    towards = [drift * torch.randn(s, generator=random, dtype=torch.float64) for s in SHAPES]
    states = []
    for _ in range(n):
        states.append([w.to(dtype) for w in state])
        jitter = [0.01 * torch.randn(s, generator=random, dtype=torch.float64) for s in SHAPES]
        state = [w + t + j for w, t, j in zip(state, towards, jitter, strict=True)]
    return states


def laid(states, at, store):
    """The Line through states and the first of them, kept."""
    line = Line(store)
    first = store.keep(states[0])
    for state, x in zip(states[1:], at[1:], strict=True):
        line.add(first, state, x)
    return line, first


def value(line, first, x):
    """What the line is, x steps after its first state; in float64."""
    coefficients = line.coefficients(x)
    parts = zip(*line.states(first), strict=True)
    return [sum(c * t.double() for c, t in zip(coefficients, part, strict=True)) for part in parts]


def fitted(states, at, x):
    """The same by np.polyfit in float64."""
    found = []
    for tensors in zip(*states, strict=True):
        rows = np.array([t.double().numpy().ravel() for t in tensors])
        slope, level = np.polyfit(at, rows, 1) if rows.size else np.zeros((2, 0))
        found.append((level + slope * x).reshape(tensors[0].shape))
    return found


def check(got, want, tolerance):
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(
            a.numpy(), b, rtol=0, atol=tolerance * max(1, np.abs(b).max(initial=0))
        )


@pytest.fixture(params=["cpu", "device", "disk", "folder"])
def store(request, tmp_path):
    return Store(tmp_path if request.param == "folder" else request.param)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("n", [2, 3, 17])
def test_it_is_the_least_squares_line(n, dtype, store):
    states, at = walk(n, dtype), [5.0 * k for k in range(n)]
    line, first = laid(states, at, store)
    assert (line.n_states, line.last) == (n, at[-1])
    for x in (0, at[-1] / 2, at[-1], 2 * at[-1]):
        check(value(line, first, x), fitted(states, at, x), TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_sums_over_a_long_history(dtype):
    """Rounding does not add up: a line through a thousand states is as good as one through ten."""
    states, at = walk(1000, dtype, drift=0.001), list(range(0, 50_000, 50))
    line, first = laid(states, at, Store("cpu"))
    check(value(line, first, 100_000), fitted(states, at, 100_000), 10 * TOLERANCES[dtype])


def test_states_at_any_time_but_in_their_order():
    """The last one lies where a jump is made, however far from the one before."""
    states, at = walk(6), [0, 5, 10, 15, 20, 22]
    line, first = laid(states, at, Store("cpu"))
    check(value(line, first, 40), fitted(states, at, 40), 1e-6)
    straight = [[torch.full((3,), 2.0 + 0.5 * t)] for t in at]
    line, first = laid(straight, at, Store("cpu"))
    torch.testing.assert_close(value(line, first, 40)[0], torch.full((3,), 22.0).double())


def test_a_constant_offset_costs_no_precision():
    """The sums are of movements: weights of size 1000 that move by a thousandth keep their line."""
    at = list(range(50))
    states = [[torch.tensor([1000 + k * 2.0**-10, -1000 + k * 2.0**-10])] for k in at]
    line, first = laid(states, at, Store("cpu"))
    (found,) = value(line, first, 100)
    torch.testing.assert_close(found - states[0][0], torch.full((2,), 100 * 2.0**-10).double())


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_its_coefficients_go_into_the_core(dtype):
    """One rounding to the dtype of the weights, at the very end."""
    states, at = walk(9, dtype), [3.0 * k for k in range(9)]
    line, first = laid(states, at, Store("cpu"))
    coefficients, parts = line.coefficients(40), line.states(first)
    out = [t.clone() for t in states[-1]]
    combine(("w", o, [part[i] for part in parts], (coefficients, 0.0)) for i, o in enumerate(out))
    for got, want in zip(out, fitted(states, at, 40), strict=True):
        wide = torch.tensor(want)
        torch.testing.assert_close(
            got.double(), wide, rtol=torch.finfo(dtype).eps, atol=TOLERANCES[dtype]
        )


def test_a_first_state_that_was_rounded():
    """It counts as it is kept; the sums are of movements away from that."""
    states, at = walk(9), list(range(9))
    store = Store("cpu")
    first = store.keep(states[0], torch.bfloat16)
    line = Line(store)
    for state, x in zip(states[1:], at[1:], strict=True):
        line.add(first, state, x)
    states[0] = [t.bfloat16() for t in states[0]]
    check(value(line, first, 20), fitted(states, at, 20), 1e-6)


@pytest.mark.parametrize("split", [1, 2, 5, 9])
def test_it_goes_on_from_its_state_to_the_bit(split, store):
    states, at = walk(9), list(range(9))
    whole, first = laid(states, at, store)
    part, begun = laid(states[:split], at[:split], store)
    again = Line(store)
    again.load_state_dict(part.state_dict(begun), states[0])
    for state, x in zip(states[split:], at[split:], strict=True):
        again.add(begun, state, x)
    assert (again.n_states, again.last) == (whole.n_states, whole.last)
    for a, b in zip(again.states(begun), whole.states(first), strict=True):
        assert all(map(torch.equal, a, b))
    assert (again.coefficients(20) == whole.coefficients(20)).all()


def test_a_state_dict_is_a_copy(store):
    states, at = walk(4), list(range(4))
    line, first = laid(states[:3], at[:3], store)
    state = line.state_dict(first)
    before = [t.clone() for t in state["sums"]]
    line.add(first, states[3], at[3])
    assert all(map(torch.equal, state["sums"], before))


def test_it_begins_anew(store):
    states, at = walk(12), list(range(12))
    line, first = laid(states[:6], at[:6], store)
    line.clear()
    assert (line.n_states, line.last) == (1, 0)
    first = store.keep(states[6])
    for state, x in zip(states[7:], range(1, 6), strict=True):
        line.add(first, state, x)
    check(value(line, first, 10), fitted(states[6:], range(6), 10), 1e-6)


def test_files_do_not_pile_up(tmp_path):
    store = Store(tmp_path)
    line, first = laid(walk(9), range(9), store)
    (folder,) = tmp_path.iterdir()
    assert len(list(folder.iterdir())) == 2  # the first state and the sums
    line.clear()
    store.release(first)
    assert not list(folder.iterdir())


@pytest.mark.parametrize("when", [1, 4])
def test_a_disk_that_is_full(when, tmp_path):
    """The line is what it was: the state may be given again, or left out."""
    states, at = walk(6), list(range(6))
    store = Store(tmp_path)
    line, first = laid(states[:when], at[:when], store)
    with loops.files_of_at_most(300), pytest.raises(OSError, match="File too large"):
        line.add(first, states[when], at[when])
    assert (line.n_states, line.last) == (when, at[when - 1])
    for k in range(when + 1, 6):
        line.add(first, states[k], at[k])
    left = [k for k in range(6) if k != when]
    want = fitted([states[k] for k in left], [at[k] for k in left], 10)
    check(value(line, first, 10), want, 1e-6)


def test_memory_is_used_again():
    """Every history after the first one lies where that did."""
    store = Store("cpu")
    places = []
    for seed in range(3):
        line, first = laid(walk(5, seed=seed), range(5), store)
        places.append({t.data_ptr() for part in line.states(first) for t in part if t.numel()})
        line.clear()
        store.release(first)
    assert places[0] == places[1] == places[2]


@pytest.mark.parametrize(
    ("sizes", "runs"),
    [
        ([], [range(0)]),
        ([3, 3, 3], [range(3)]),
        ([6, 6, 6], [range(1), range(1, 2), range(2, 3)]),
        ([99, 1, 9, 1, 99], [range(1), range(1, 3), range(3, 4), range(4, 5)]),
    ],
)
def test_pieces_of_bounded_size(sizes, runs, monkeypatch):
    monkeypatch.setattr("wfcast.torch._store.PIECE", 10)
    assert list(runs_of(sizes)) == runs


def test_pieces_do_not_change_the_line(monkeypatch):
    states, at = walk(5), list(range(5))
    whole, first = laid(states, at, Store("cpu"))
    monkeypatch.setattr("wfcast.torch._store.PIECE", 10)
    pieces, begun = laid(states, at, Store("cpu"))
    for a, b in zip(whole.states(first), pieces.states(begun), strict=True):
        assert all(map(torch.equal, a, b))
