"""drift: the moves of a run's halves, against NumPy, and what it warns of."""

import json
import warnings

import numpy as np
import pytest
from reference import float32_to_bfloat16, widen
from safetensors.numpy import save_file

import wfcast

STEPS = (0, 10, 20, 40, 45, 60, 70, 80, 100)
SHAPES = {"layer.0.weight": (30, 20), "layer.0.bias": (20,), "layer.10.weight": (7,)}


def run_of(drift=1.0, seed=0, steps=STEPS, dtype=np.float64):
    """A run whose moves have `drift` and noise of 1 per step."""
    rng = np.random.default_rng(seed)
    found = {t: {} for t in steps}
    for name, shape in SHAPES.items():
        lead = drift * rng.normal(size=shape)
        w = rng.normal(size=shape)
        for t in steps:
            found[t][name] = w.astype(dtype)
            w = w + lead + rng.normal(size=shape)
    return found


def quiet(run):
    with warnings.catch_warnings(action="ignore"):
        return wfcast.drift(run)


def moves_of(run, names):
    flat = [np.concatenate([widen(state[n]).ravel() for n in names]) for state in run.values()]
    return np.diff(flat, axis=0)


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def check(found, e, middle):
    """Every number of `found` from the moves e, (moves, weights)."""
    a, b = e[:middle].sum(axis=0), e[middle:].sum(axis=0)
    assert found["weights"] == e.shape[1]
    assert found["cosine"] == pytest.approx(cosine(a, b), abs=1e-9)
    left_a = [cosine(a - row, b) for row in e[:middle]]
    left_b = [cosine(a, b - row) for row in e[middle:]]
    variance = sum((len(one) - 1) * np.var(one) for one in (left_a, left_b))
    assert found["standard_error"] == pytest.approx(np.sqrt(variance), rel=1e-7)
    assert found["path_length"] == pytest.approx(np.linalg.norm(e, axis=1).sum())
    assert found["net_move"] == pytest.approx(np.linalg.norm(e.sum(axis=0)))
    assert found["moved"] == np.mean(e.sum(axis=0) != 0)
    assert found["moved_between"] == pytest.approx((e != 0).mean())


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_every_number_against_numpy(dtype, tmp_path):
    run = run_of(dtype=dtype)
    for t, state in run.items():
        save_file(state, tmp_path / f"step-{t}.safetensors")
    found = wfcast.drift(tmp_path)
    assert (found.steps, found.middle, found.warnings) == (STEPS, 45, ())
    assert found.tensors.keys() == SHAPES.keys()
    check(found.total, moves_of(run, SHAPES), 4)
    for name in SHAPES:
        check(found.tensors[name], moves_of(run, [name]), 4)
    assert wfcast.drift(run).to_dict() == found.to_dict()


@pytest.mark.parametrize(
    ("steps", "middle"),
    [((0, 1, 2), 1), ((0, 10, 30, 40), 10), ((0, 1, 2, 3, 100), 3), ((0, 98, 99, 100), 98)],
)
def test_the_middle_is_that_of_the_steps(steps, middle):
    run = run_of(steps=steps)
    found = quiet(run)
    assert found.middle == middle
    e, at = moves_of(run, SHAPES), steps.index(middle)
    want = cosine(e[:at].sum(axis=0), e[at:].sum(axis=0))
    assert found.total["cosine"] == pytest.approx(want)
    single = at == 1 or at == len(steps) - 2
    assert np.isnan(found.total["standard_error"]) == single


@pytest.mark.parametrize("lead", [0.0, 0.3, 1.0])
def test_the_error_is_what_repetition_shows_or_a_little_more(lead):
    """Runs of one drift and other noise: how their cosines spread, and what each says of it."""
    rng = np.random.default_rng(1)
    drift = lead * rng.normal(size=500)
    found = []
    for _ in range(300):
        e = drift + rng.normal(size=(10, 500))
        run = {t: {"w": w} for t, w in enumerate(np.vstack([np.zeros(500), e.cumsum(axis=0)]))}
        total = quiet(run).total
        found.append((total["cosine"], total["standard_error"]))
    cosines, errors = np.array(found).T
    assert 1.0 <= np.sqrt((errors**2).mean()) / cosines.std() <= 1.6


def test_it_warns_where_lines_lead_nowhere():
    with pytest.warns(UserWarning, match="do not lead anywhere.*cosine -?0.0., expected at least"):
        found = wfcast.drift(run_of(drift=0.0))
    assert len(found.warnings) == 1
    assert found.warnings[0] in str(found)
    assert found.to_dict()["warnings"] == list(found.warnings)


def test_it_warns_of_few_states():
    with pytest.warns(UserWarning, match="the run has 7 states, expected 8 at least"):
        wfcast.drift(run_of(steps=STEPS[:7]))
    with warnings.catch_warnings(action="error"):
        wfcast.drift(run_of(steps=STEPS[:8]))


def rounded(run, digits_below_one):
    """The run in bfloat16 after shrinking its moves, and a tensor that hardly any step touches."""
    first = run[0]
    ml_dtypes = pytest.importorskip("ml_dtypes")
    small = {
        t: {n: first[n] + (w - first[n]) * 2.0**-digits_below_one for n, w in state.items()}
        for t, state in run.items()
    }
    return {
        t: {
            **{n: float32_to_bfloat16(w).view(ml_dtypes.bfloat16) for n, w in state.items()},
            "frozen": np.ones(5000, ml_dtypes.bfloat16),
            "rare": np.r_[np.ones(90), np.full(10, t)].astype(ml_dtypes.bfloat16),
        }
        for t, state in small.items()
    }


def test_it_warns_of_updates_that_rounding_hides():
    with pytest.warns(UserWarning, match="of the 16-bit weights .* % moved between .*float32"):
        found = wfcast.drift(rounded(run_of(), 9))
    assert found.total["moved_between"] < found.total["moved"]
    with warnings.catch_warnings(action="error"):  # no rounding to speak of, though much is frozen
        wfcast.drift(rounded(run_of(), 0))


def test_what_does_not_move_has_no_cosine():
    run = {t: {"w": np.array([t, 1.0]), "still": np.ones(3)} for t in range(9)}
    found = wfcast.drift(run)
    assert found.total["cosine"] == pytest.approx(1)
    assert np.isnan(found.tensors["still"]["cosine"])
    assert found.to_dict()["tensors"][0]["cosine"] is None
    back = {t: {"w": np.full(3, 0.1 * min(t, 4 - t if t < 5 else 0))} for t in range(9)}
    with pytest.warns(UserWarning, match="have no cosine, as one is 0"):
        wfcast.drift(back)  # out and home again in the first half, up to rounding


def test_text_json_and_plot(tmp_path):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("Agg")
    found = quiet(run_of(drift=0.0, steps=STEPS[:4]))
    text = str(found)
    assert text.index("layer.0.weight") < text.index("layer.10.weight") < text.index("\nall ")
    assert "the moves up to step 20 and from there on have the cosine" in text
    assert text.count("warning: ") == 2
    assert "<table>" in found._repr_html_()
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["middle"] == 20
    ax = found.plot()
    assert "Drift by layer" in ax.get_title(loc="left")
    drawn = sorted(y for line in ax.lines[:-1] for y in line.get_ydata())
    assert drawn == sorted(t["cosine"] for t in found.tensors.values())
    ax.figure.savefig(tmp_path / "drift.png")
    pyplot.close("all")


ONES = {t: {"w": np.ones(2)} for t in range(3)}


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ({0: {"w": np.ones(2)}, 1: {"w": np.ones(2)}}, r"the run has 2 states, \(0, 1\), expected"),
        ({t: {"i": np.arange(3)} for t in range(3)}, "step 2 holds no tensors to forecast"),
        ({**ONES, 3: {}}, "step 3 holds no tensors"),
        (
            {**ONES, 3: {"w": np.ones(3)}},
            "do not hold the same tensors",
        ),
        (
            {**ONES, 3: {"w": np.array([0, np.nan])}},
            r"tensor 'w' of step 3, row 1 \(value nan\)",
        ),
    ],
)
def test_refuses(run, message):
    with pytest.raises(wfcast.WfcastError, match=message):
        wfcast.drift(run)


def test_a_network_drifts_at_a_low_rate_and_wanders_at_a_high_one():
    torch = pytest.importorskip("torch")
    from sklearn.datasets import load_digits

    images, digits = (torch.from_numpy(a) for a in load_digits(return_X_y=True))
    images = images.float() / 16

    def trained(rate):
        torch.manual_seed(0)
        layers = torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10)
        model = torch.nn.Sequential(*layers)
        optimizer = torch.optim.Adam(model.parameters(), rate)
        run = {}
        for step in range(361):
            if step >= 200 and step % 20 == 0:
                run[step] = {name: w.clone() for name, w in model.state_dict().items()}
            batch = torch.randint(0, len(digits), (32,))
            loss = torch.nn.functional.cross_entropy(model(images[batch]), digits[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return quiet(run)

    low, high = trained(1e-3), trained(0.1)
    assert low.total["cosine"] - 4 * low.total["standard_error"] > 0.35
    assert high.total["cosine"] + 2 * high.total["standard_error"] < 0.35
    assert (len(low.warnings), len(high.warnings)) == (0, 1)
