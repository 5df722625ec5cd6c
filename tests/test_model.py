"""ModelFarcaster: runs in, coefficient sets per tensor, forecasts out, files."""

import doctest
import json
import pickle

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from sklearn.exceptions import NotFittedError

import wfcast
from wfcast._fit import solve_all

# some tensors here are as small as tensors get
pytestmark = pytest.mark.filterwarnings("ignore:forecast to stay as they are")

STEPS = (0, 1, 2, 3, 5)
SHAPES = {"embed.weight": (7, 4), "norm.weight": (4,), "head.bias": ()}


def make_run(seed, dtype=np.float32, noise=0.01, steps=STEPS):
    """A run whose weights move along lines, with a counter beside them."""
    rng = np.random.default_rng(seed)
    base = {n: rng.normal(size=s) for n, s in SHAPES.items()}
    drift = {n: rng.normal(size=s) for n, s in SHAPES.items()}
    return {
        t: {
            **{
                n: np.asarray(base[n] + t * drift[n] + noise * rng.normal(size=s), dtype)
                for n, s in SHAPES.items()
            },
            "counter": np.array(t, np.int64),
        }
        for t in steps
    }


@pytest.fixture(scope="module")
def runs():
    return [make_run(s) for s in range(3)]


@pytest.mark.parametrize("by", ["tensor", "all"])
@pytest.mark.parametrize("loss", ["absolute_error", "squared_error"])
def test_forecasts_lines(runs, by, loss):
    mf = wfcast.ModelFarcaster(
        (0, 2), (3, 5), by=by, loss=loss, beta=1e-6 if loss == "absolute_error" else 0.0
    )
    assert mf.fit(runs) is mf
    assert set(mf.coef_) == ({"*"} if by == "all" else set(SHAPES))
    assert all(c.shape == (2, 2) for c in mf.coef_.values())
    assert all(0 <= g <= mf.tol for g in mf.dual_gap_.values())
    new = make_run(9)
    got = mf.predict(new, step=5)
    assert list(got) == list(new[0])
    assert got["counter"] == 2
    for name, shape in SHAPES.items():
        assert got[name].dtype == np.float32
        assert got[name].shape == shape
    if by == "all":
        np.testing.assert_allclose(got["embed.weight"], new[5]["embed.weight"], atol=0.2)


def test_the_default_beta_goes_with_every_loss_and_number_of_targets(runs):
    """It is the paper's where there is a hinge, and none is refused."""
    for params, beta in (
        ({"targets": (3, 5)}, 1e-6),
        ({"targets": (3,)}, 0.0),
        ({"targets": (3, 5), "loss": "squared_error"}, 0.0),
    ):
        mf = wfcast.ModelFarcaster((0, 2), **params).fit(runs)
        assert mf.beta is None
        assert mf.operator_.info["beta"] == beta
        same = wfcast.ModelFarcaster((0, 2), **params, beta=beta).fit(runs)
        assert mf.fingerprint() == same.fingerprint()


def test_by_tensor_is_a_farcaster_per_tensor(runs):
    mf = wfcast.ModelFarcaster((0, 2), (3, 5), beta=1e-3).fit(runs)
    name = "embed.weight"

    def stack(t):
        return np.concatenate([r[t][name].ravel() for r in runs])

    norms = [np.abs(r[1][name].astype(float) - r[0][name]).sum() * 2 for r in runs]  # d_m / d_0
    f = wfcast.Farcaster(beta=1e-3).fit(
        [stack(0), stack(2)],
        [stack(3), stack(5)],
        groups=np.repeat([0, 1, 2], 28),
        first_update=norms,
    )
    np.testing.assert_allclose(mf.coef_[name], f.coef_, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(mf.objective_[name], f.objective_, rtol=1e-7)


def test_tensors_are_solved_beside_each_other():
    """With more than one thread; the result is that of one."""
    rng = np.random.default_rng(0)
    sizes = {"a": 30_000, "b": 5, "c": 40_000, "d": 20_000}
    run = {t: {name: rng.normal(size=n) for name, n in sizes.items()} for t in STEPS}
    alone = wfcast.ModelFarcaster((0, 2), (3, 5), n_threads=1).fit([run])
    order = []
    beside = wfcast.ModelFarcaster((0, 2), (3, 5), n_threads=3)
    beside.fit([run], progress=lambda name, rows: order.append(name))
    assert beside.set_params(n_threads=1).fingerprint() == alone.fingerprint()
    assert list(beside.coef_) == list(sizes)
    assert beside.n_passes_ == alone.n_passes_
    assert order[:4] == ["a", "b", "c", "a"]  # a's second pass comes after the others' first

    fitted = pickle.dumps(beside)
    run[3]["d"][7] = np.inf
    with pytest.raises(wfcast.WfcastError, match=r"'d'.*inf"):
        beside.fit([run])
    assert pickle.dumps(beside) == fitted


@pytest.mark.parametrize("n_threads", [1, 3])
def test_what_goes_wrong_in_a_solver_is_its_own_fits_error(n_threads):
    def fit(name, fails):
        def work():
            if fails:
                raise MemoryError

        for _ in range(2):
            try:
                yield work
            except MemoryError:
                raise wfcast.WfcastError(name) from None
        return {}

    fits = {name: fit(name, name == "b") for name in "abc"}
    with pytest.raises(wfcast.WfcastError, match=r"^b$"):
        solve_all(fits, n_threads)
    assert solve_all({name: fit(name, False) for name in "abc"}, n_threads).keys() == set("abc")


def test_paths_and_mappings_agree(runs, tmp_path):
    on_disk = []
    for i, run in enumerate(runs):
        on_disk.append({t: tmp_path / f"{i}-{t}.safetensors" for t in run})
        for t, path in on_disk[-1].items():
            save_file(run[t], path)
    a = wfcast.ModelFarcaster((0, 2), (3, 5)).fit(runs)
    b = wfcast.ModelFarcaster((0, 2), (3, 5)).fit(on_disk)
    assert a.fingerprint() == b.fingerprint()
    x, y = a.predict(runs[0], 3), b.predict({t: str(p) for t, p in on_disk[0].items()}, 3)
    for name in x:
        np.testing.assert_array_equal(x[name], y[name])


def test_ready_made_operators():
    rng = np.random.default_rng(0)
    w = {t: {"any.name": rng.normal(size=(3, 5))} for t in (0, 10, 40)}
    stack = np.stack([w[t]["any.name"].ravel() for t in w])
    keep = wfcast.persistence((0, 10, 40), (80,))
    np.testing.assert_array_equal(keep.predict(w, 80)["any.name"], w[40]["any.name"])
    line = wfcast.linear_trend((0, 10, 40), (60, 80)).predict(w, step=80)["any.name"]
    expected = np.polyval(np.polyfit([0, 10, 40], stack, 1), 80).reshape(3, 5)
    np.testing.assert_allclose(line, expected, rtol=1e-12)
    mean = wfcast.average((0, 10, 40)).predict(w)["any.name"]
    np.testing.assert_allclose(mean, stack.mean(0).reshape(3, 5), rtol=1e-14)
    assert keep.fingerprint() != wfcast.persistence((0, 10), (80,)).fingerprint()


def test_predict_returns_the_kind_that_came_in(runs):
    torch = pytest.importorskip("torch")  # an extra: wfcast itself does without
    mf = wfcast.linear_trend((0, 2), (5,))
    run = {
        t: {
            "w": torch.full((2, 3), float(t), dtype=torch.bfloat16, requires_grad=True),
            "n": torch.tensor(t),
        }
        for t in (0, 2)
    }
    got = mf.predict(run)
    assert got["w"].dtype == torch.bfloat16
    assert not got["w"].requires_grad
    assert got["w"].tolist() == [[5.0] * 3] * 2
    assert got["n"].item() == 2
    assert got["n"] is not run[2]["n"]


def test_predict_copies_what_it_does_not_forecast():
    run = {
        t: {
            "w": np.ones(3),
            "ids": np.arange(3),
            "mask": np.array([True]),
            "none": np.zeros((0, 4), np.float32),
        }
        for t in (0, 1)
    }
    got = wfcast.persistence((0, 1), (2,)).predict(run)
    assert got["none"].shape == (0, 4)
    got["ids"][0] = 9
    assert run[1]["ids"][0] == 0
    assert got["mask"].dtype == bool


def test_empty_tensors_are_left_out_of_a_fit():
    runs = [{t: {"w": np.arange(4.0) * (t + 1), "none": np.zeros((0, 2))} for t in range(4)}]
    mf = wfcast.ModelFarcaster((0, 1), (2, 3)).fit(runs)
    assert set(mf.coef_) == {"w"}
    assert mf.predict(runs[0], 3)["none"].shape == (0, 2)


def test_save_and_load(runs, tmp_path):
    path = tmp_path / "farcaster.safetensors"
    mf = wfcast.ModelFarcaster((0, 2), (3, 5), tol=1e-8).fit(runs)
    mf.save(path)
    back = wfcast.load(path)
    assert isinstance(back, wfcast.Operator)
    assert (back.inputs, back.targets, back.n_threads) == ((0, 2), (3, 5), None)
    params = {k: back.info[k] for k in ("by", "loss", "beta", "alpha", "fit_intercept", "tol")}
    assert params == {k: getattr(mf, k) for k in params} | {"beta": 1e-6}
    assert back.fingerprint() == mf.fingerprint()
    for name in ("coef", "intercept"):
        for key, value in getattr(mf, name + "_").items():
            np.testing.assert_array_equal(getattr(back, name)[key], value)
    numbers = (back.info["objective"], back.info["dual_gap"], back.info["n_passes"])
    assert (*numbers, back.tensors) == (
        mf.objective_,
        mf.dual_gap_,
        mf.n_passes_,
        mf.tensors_,
    )
    np.testing.assert_array_equal(
        back.predict(runs[0], 5)["norm.weight"], mf.predict(runs[0], 5)["norm.weight"]
    )
    assert [p.name for p in tmp_path.iterdir()] == ["farcaster.safetensors"]
    wfcast.persistence((0, 1), (2,)).save(path)
    assert wfcast.load(path).predict({0: {"w": np.ones(2)}, 1: {"w": np.zeros(2)}})["w"][0] == 0


@pytest.mark.parametrize("module", [wfcast.farcaster, wfcast.model])
def test_examples_in_the_docs(module):
    assert doctest.testmod(module).failed == 0


def test_pickle(runs):
    mf = wfcast.ModelFarcaster((0, 2), (3, 5)).fit(runs)
    assert pickle.loads(pickle.dumps(mf)).fingerprint() == mf.fingerprint()


def rewrite(path, change):
    """Write the saved forecaster again with other metadata or tensors."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as f:
        document = json.loads(f.metadata()["wfcast"])
    tensors = load_file(path)
    change(document, tensors)
    save_file(tensors, path, metadata={"wfcast": json.dumps(document)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d, t: d.update(version=2), "version 2, this wfcast"),
        (lambda d, t: d.update(format="other"), "format is 'other'"),
        (lambda d, t: d.pop("names"), "'names' is missing"),
        (lambda d, t: d.update(names=["a", "a", "b"]), "distinct"),
        (lambda d, t: d.update(names=["*", "a", "b"]), "stands beside"),
        (
            lambda d, t: d.update(inputs=[0]),
            r"coef is float64 \[3, 2, 2\], expected float64 \[3, 2, 1\]",
        ),
        (lambda d, t: d.update(inputs=[3, 0]), "increasing"),
        (lambda d, t: t.update(coef=t["coef"].astype(np.float32)), "coef is float32"),
        (lambda d, t: t.update(coef=t["coef"] * np.nan), "coef contains NaN"),
        (lambda d, t: t.pop("intercept"), "'intercept' is missing"),
        (lambda d, t: d["params"].update(evil=1), "unknown parameters"),
        (lambda d, t: d["params"].update(beta="much"), "beta is 'much'"),
        (lambda d, t: d["params"].update(by=3), "by is 3"),
        (lambda d, t: d.update(tensors=[]), "cannot be used"),
        (lambda d, t: d.update(tensors={"a": [[np.inf], "float32"]}), "cannot be used"),
    ],
)
def test_load_refuses(runs, tmp_path, change, message):
    path = tmp_path / "f.safetensors"
    wfcast.ModelFarcaster((0, 2), (3, 5)).fit(runs).save(path)
    rewrite(path, change)
    with pytest.raises(wfcast.CheckpointError, match=message):
        wfcast.load(path)


def test_load_refuses_other_files(tmp_path):
    with pytest.raises(wfcast.CheckpointError, match="no file"):
        wfcast.load(tmp_path / "none.safetensors")
    save_file({"w": np.ones(2)}, tmp_path / "w.safetensors")
    with pytest.raises(wfcast.CheckpointError, match="holds no forecaster"):
        wfcast.load(tmp_path / "w.safetensors")
    with pytest.raises(wfcast.CheckpointError, match="is a folder, expected the file"):
        wfcast.load(tmp_path)
    (tmp_path / "bad").write_bytes(b"short")
    with pytest.raises(wfcast.CheckpointError, match="cannot be read"):
        wfcast.load(tmp_path / "bad")
    save_file({"coef": np.ones(1)}, tmp_path / "deep", metadata={"wfcast": "[" * 200_000})
    with pytest.raises(wfcast.CheckpointError, match="cannot be used"):
        wfcast.load(tmp_path / "deep")


# ---- bad runs ---------------------------------------------------------------------------------


def changed(runs, step, **tensors):
    """The runs, with some tensors of one step of the second one replaced or (None) removed."""
    checkpoint = {**runs[1][step], **tensors}
    checkpoint = {k: v for k, v in checkpoint.items() if v is not None}
    return [runs[0], {**runs[1], step: checkpoint}, *runs[2:]]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda r: r[0], "list of {step: checkpoint}"),
        (lambda r: [], "runs is empty"),
        (lambda r: [r[0], 3], "run 1 is a int"),
        (lambda r: [r[0], {t: r[1][t] for t in (0, 2, 5)}], "run 1 lacks step 3; it has 0, 2, 5"),
        (lambda r: [{"zero": r[0][0]}], "has the key 'zero'"),
        (lambda r: [{**r[0], 2: 7}], "run 0, step 2 is a int"),
        (lambda r: [{**r[0], 2: {}}], "run 0, step 2 holds no tensors"),
        (lambda r: [{**r[0], 2: "nowhere.safetensors"}], "run 0, step 2: there is no file"),
        (lambda r: changed(r, 3, extra=np.ones(2)), "only in run 1, step 3: 'extra'"),
        (lambda r: changed(r, 3, counter=None), "only in run 0, step 0: 'counter'"),
        (
            lambda r: changed(r, 5, **{"norm.weight": np.ones(3, np.float32)}),
            r"'norm.weight' is float32 \[4\] in run 0, step 0, float32 \[3\] in run 1, step 5",
        ),
        (
            lambda r: changed(r, 5, **{"norm.weight": np.ones(4, int)}),
            r"int64 \[4\] in run 1, step 5",
        ),
        (
            lambda r: changed(r, 3, **{"norm.weight": np.array([1, np.nan, 1, 1], np.float32)}),
            r"tensor 'norm.weight' of run 1, step 3, row 1 \(value nan\)",
        ),
        (
            lambda r: changed(r, 1, **{"norm.weight": np.array([1, np.inf, 1, 1], np.float32)}),
            "tensor 'norm.weight' of run 1, step 0, or of run 1, step 1, contains NaN or infinity",
        ),
        (lambda r: changed(r, 1, counter=None), "only in run 1, step 0: 'counter'"),
        (lambda r: [{t: {"w": np.ones(2, complex)} for t in STEPS}], "no floating tensors"),
        (lambda r: [{t: {"n": np.ones(2, int)} for t in STEPS}], "no floating tensors"),
        (lambda r: [{t: {"w": "text"} for t in STEPS}], "tensor 'w' of run 0, step 0 is a str"),
    ],
)
def test_bad_runs(runs, broken, message):
    mf = wfcast.ModelFarcaster((0, 2), (3, 5)).fit(runs)
    before = pickle.dumps(mf)
    with pytest.raises(wfcast.WfcastError, match=message):
        mf.fit(broken(runs))
    assert pickle.dumps(mf) == before


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"inputs": ()}, "inputs is empty"),
        ({"inputs": (2, 0)}, "expected increasing steps"),
        ({"inputs": (0, 0)}, "without repeats"),
        ({"inputs": "02"}, "expected a sequence of steps"),
        ({"inputs": (0, 1.5)}, "expected integer steps"),
        ({"targets": 3}, "targets is 3"),
        ({"targets": (3,), "beta": 1e-6}, "single target 3.*pass beta=0"),
        ({"by": "layer"}, "expected 'tensor' or 'all'"),
        ({"loss": "huber"}, "loss is 'huber'"),
        ({"loss": "squared_error", "beta": 1e-6}, "pass beta=0"),
        ({"beta": -1.0}, "beta is -1.0"),
        ({"alpha": 1.0}, "pass alpha=0"),
        ({"n_threads": 0}, "n_threads is 0"),
    ],
)
def test_bad_parameters(runs, params, message):
    mf = wfcast.ModelFarcaster(**{"inputs": (0, 2), "targets": (3, 5), **params})
    with pytest.raises(wfcast.WfcastError, match=message):
        mf.fit(runs)
    assert not hasattr(mf, "coef_")


def test_bad_predictions(runs):
    mf = wfcast.ModelFarcaster((0, 2), (3, 5))
    with pytest.raises(NotFittedError):
        mf.predict(runs[0], 3)
    mf.fit(runs)
    with pytest.raises(wfcast.WfcastError, match="step is 4, expected one of the targets 3, 5"):
        mf.predict(runs[0], 4)
    with pytest.raises(wfcast.WfcastError, match="no step is given, expected one of"):
        mf.predict(runs[0])
    with pytest.raises(wfcast.CheckpointError, match="the run lacks step 2; it has 0"):
        mf.predict({0: runs[0][0]}, 3)
    bad = {**runs[0][2], "norm.weight": np.array([1, 1, -np.inf, 1], np.float32)}
    with pytest.raises(
        wfcast.WfcastError, match=r"tensor 'norm.weight' of step 2, row 2 \(value -inf\)"
    ):
        mf.predict({0: runs[0][0], 2: bad}, 3)
    loose = mf.predict({0: runs[0][0], 2: bad}, 3, check_finite=False)
    assert not np.isfinite(loose["norm.weight"][2])
    assert np.isfinite(loose["norm.weight"][:2]).all()
    other = {t: {"w": np.ones(2, np.float32)} for t in (0, 2)}
    with pytest.raises(wfcast.CheckpointError, match=r"only in the fit: 'embed.weight'"):
        mf.predict(other, 3)
    run = {t: {"w": np.full(3, 6e4 * t, np.float16)} for t in (0, 1)}
    with pytest.raises(
        wfcast.WfcastError, match="overflows float16 in tensor 'w' at step 9, row 0"
    ):
        wfcast.linear_trend((0, 1), (9,)).predict(run)


def test_other_shapes_than_fitted_are_a_warning(runs):
    mf = wfcast.ModelFarcaster((0, 2), (3, 5), by="all").fit(runs)
    with pytest.warns(UserWarning, match="'w' first: the forecast goes beyond"):
        mf.predict({t: {"w": np.ones(2)} for t in (0, 2)}, 3)


def test_operators_take_any_iterable_of_steps():
    w = {t: {"w": np.arange(3.0) * t} for t in (0, 1)}
    for made in (
        wfcast.linear_trend(iter((0, 1)), iter((2,))),
        wfcast.linear_trend(range(2), [2]),
    ):
        np.testing.assert_allclose(made.predict(w)["w"], [0, 2, 4])
    assert wfcast.average(iter((0, 1))).inputs == (0, 1)


def test_a_line_through_steps_that_float64_does_not_tell_apart():
    far = wfcast.linear_trend((2**60, 2**60 + 1), (2**60 + 3,))
    np.testing.assert_array_equal(far.coef["*"], [[-2, 3]])
    with pytest.raises(wfcast.WfcastError, match="expected steps below 2\\^63"):
        wfcast.linear_trend((0, 1), (2**63,))


def test_operators_refuse_bad_steps():
    with pytest.raises(wfcast.WfcastError, match="two steps for a line"):
        wfcast.linear_trend((0,), (5,))
    with pytest.raises(wfcast.WfcastError, match="targets is empty"):
        wfcast.persistence((0,), ())


def test_progress_and_interrupt(runs):
    seen = []
    mf = wfcast.ModelFarcaster((0, 2), (3, 5)).fit(runs, progress=lambda n, r: seen.append((n, r)))
    assert ("embed.weight", 28) in seen
    before = pickle.dumps(mf)

    def stop(name, rows):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mf.fit(runs, progress=stop)
    assert pickle.dumps(mf) == before


# ---- what runs leave open, and what is too little to learn from --------------------------------


@pytest.mark.parametrize("loss", ["absolute_error", "squared_error"])
@pytest.mark.parametrize("value", ["any", "ones"])
def test_frozen_weights_are_forecast_from_the_latest_state(loss, value):
    """Runs in which they never moved do not say which of the states counts."""
    rng = np.random.default_rng(0)
    frozen = rng.normal(size=200).astype(np.float32) if value == "any" else np.ones(200, np.float32)
    run = {t: {"w": frozen.copy()} for t in (0, 5, 9, 12, 15)}
    mf = wfcast.ModelFarcaster((0, 5, 9), (12, 15), loss=loss, beta=0).fit([run])
    np.testing.assert_array_equal(mf.coef_["w"], [[0, 0, 1], [0, 0, 1]])
    states = {t: {"w": rng.normal(size=200).astype(np.float32)} for t in (0, 5, 9)}
    np.testing.assert_allclose(mf.predict(states, 15)["w"], states[9]["w"], rtol=1e-6)
    states = {t: {"w": frozen.copy()} for t in (0, 5, 9)}
    np.testing.assert_array_equal(mf.predict(states, 15)["w"], frozen)


@pytest.mark.parametrize("loss", ["absolute_error", "squared_error"])
def test_of_inputs_that_depend_on_each_other_the_latest_counts(loss):
    """Two of three are the same: the third keeps its coefficient, the later one has the rest."""
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 300))
    run = {0: {"w": a}, 1: {"w": b.copy()}, 2: {"w": b}, 3: {"w": 2 * b - a}}
    mf = wfcast.ModelFarcaster((0, 1, 2), (3,), loss=loss, beta=0).fit([run])
    np.testing.assert_allclose(mf.coef_["w"], [[-1, 0.5, 1.5]], atol=1e-9)
    assert mf.dual_gap_["w"] <= mf.tol


@pytest.mark.filterwarnings("default:forecast to stay as they are")
@pytest.mark.parametrize("by", ["tensor", "all"])
def test_a_tensor_too_small_to_learn_from_stays_as_it_is(by):
    rng = np.random.default_rng(2)

    def run():
        sizes = {"w": 40, "bias": 2, "scale": ()}
        return {t: {n: rng.normal(size=s) for n, s in sizes.items()} for t in (0, 1, 2)}

    mf = wfcast.ModelFarcaster((0, 1), (2,), by=by, beta=0)
    if by == "all":
        mf.fit([run(), run()])
        return
    want = (
        r"fewer than 15 rows to fit 3 coefficients to: 'bias', 'scale'; give more runs, or by='all'"
    )
    with pytest.warns(UserWarning, match=want):
        mf.fit([run(), run()])
    assert list(mf.objective_) == list(mf.dual_gap_) == list(mf.n_passes_) == ["w"]
    assert list(mf.coef_) == ["w", "bias", "scale"]
    new = run()
    got = mf.predict(new)
    for name in ("bias", "scale"):
        np.testing.assert_array_equal(got[name], new[1][name])


def test_states_that_are_one_are_refused(tmp_path):
    """A state_dict() without a copy is the model itself, at every step."""
    torch = pytest.importorskip("torch")
    model = torch.nn.Linear(8, 8)
    aliases = {t: model.state_dict() for t in (0, 1, 2)}
    want = r"step [01] and .*step [12] are the same tensors in memory: keep copies, \{name: w.clone"
    line = wfcast.linear_trend((0, 1), (2,))
    for call in (
        lambda: wfcast.ModelFarcaster((0, 1), (2,), beta=0).fit([aliases]),
        lambda: line.predict(aliases),
        lambda: wfcast.evaluate(line, aliases),
        lambda: wfcast.drift(aliases),
        lambda: wfcast.low_rank(aliases, (5,)),
        lambda: wfcast.anneal_run(aliases, tmp_path / "a.safetensors"),
        lambda: wfcast.extrapolate_run(aliases, tmp_path / "a.safetensors"),
        lambda: wfcast.forecast_checkpoint(line, aliases, 2, tmp_path / "a.safetensors"),
    ):
        with pytest.raises(wfcast.CheckpointError, match=want):
            call()
    array = np.ones(50)
    with pytest.raises(wfcast.CheckpointError, match="the same tensors in memory"):
        line.predict({0: {"w": array}, 1: {"w": array}})
    shared = {t: {"frozen": array, "w": np.full(50, t)} for t in (0.0, 1.0)}
    line.predict({int(t): state for t, state in shared.items()})  # one of two may be shared
    from safetensors.numpy import save_file

    save_file({"w": array}, tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").symlink_to(tmp_path / "a.safetensors")
    with pytest.raises(wfcast.CheckpointError, match="are the same file under two names"):
        line.predict({0: tmp_path / "a.safetensors", 1: tmp_path / "b.safetensors"})
