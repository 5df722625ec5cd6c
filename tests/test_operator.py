"""Operator: one value for every strategy, without scikit-learn."""

import copy
import json
import pickle
import warnings

import numpy as np
import pytest
from safetensors.numpy import save_file
from sklearn.exceptions import NotFittedError

import wfcast

# some tensors here are as small as tensors get
pytestmark = pytest.mark.filterwarnings("ignore:forecast to stay as they are")


@pytest.fixture
def run():
    rng = np.random.default_rng(0)
    return {t: {"a": rng.normal(size=(3, 4)), "b": rng.normal(size=5)} for t in (0, 10, 20)}


def test_any_coefficients_by_hand(run):
    rng = np.random.default_rng(1)
    coef = {name: rng.normal(size=(2, 3)) for name in "ab"}
    intercept = {name: rng.normal(size=2) for name in "ab"}
    op = wfcast.Operator((0, 10, 20), (30, 50), coef, intercept)
    for name in "ab":
        want = sum(coef[name][1, k] * w[name] for k, w in enumerate(run.values()))
        got = op.predict(run, step=50)[name]
        np.testing.assert_allclose(got, want + intercept[name][1], rtol=1e-12)
    assert repr(op) == (
        "Operator(strategy='custom', inputs=(0, 10, 20), targets=(30, 50), tensors=2)"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((0, 1), (2,), [[1.0]]), r"coef of '\*' has shape \(1, 1\), expected \(1, 2\)"),
        (((1, 0), (2,), [[1.0, 1.0]]), "inputs is .*increasing"),
        (((0, 1), (), [[1.0, 1.0]]), "targets is empty"),
        (((0, 1), (2,), [[1.0, np.inf]]), "NaN or infinity"),
        (((0, 1), (2,), {}), r"names \[\]"),
        (((0, 1), (2,), {3: [[1.0, 1.0]]}), r"names \[3\], expected those of tensors"),
        (((0, 1), (2,), {"*": [[1.0, 1.0]], "a": [[1.0, 1.0]]}), "stands beside"),
        (((0, 1), (2,), [["a", "b"]]), "expected real numbers"),
        (((0, 1), (2,), [["1", "2"]]), "expected real numbers"),
        (((0, 1), (2,), [[1j, 2]]), "dtype complex128, expected real numbers"),
        (((0, 1), (2,), [[1.0], [1.0, 2.0]]), "no array of numbers"),
        (((0, 1), (2,), {"a": [[1.0, 1.0]]}, {"b": [0.0]}), "intercept has the names"),
        (((0, 1), (2,), [[1.0, 1.0]], [0.0, 0.0]), r"intercept of '\*' has shape \(2,\)"),
    ],
)
def test_refuses_what_is_no_operator(arguments, message):
    with pytest.raises(wfcast.WfcastError, match=message):
        wfcast.Operator(*arguments)


def test_takes_a_copy_of_its_coefficients():
    coef = np.array([[1.0, 2.0]])
    given = {"a": coef}
    op = wfcast.Operator((0, 1), (2,), given)
    coef[:] = 0
    given["b"] = coef
    np.testing.assert_array_equal(op.coef["a"], [[1, 2]])
    assert list(op.coef) == ["a"]


@pytest.mark.parametrize(
    ("op", "strategy"),
    [
        (wfcast.persistence((0, 10), (20,)), "persistence"),
        (wfcast.linear_trend((0, 10), (20,)), "linear_trend"),
        (wfcast.average((0, 10)), "average"),
    ],
)
def test_a_strategy_is_an_operator_that_says_so(op, strategy, tmp_path):
    assert type(op) is wfcast.Operator
    assert f"strategy={strategy!r}" in repr(op)
    op.save(tmp_path / "op.safetensors")
    for same in (
        wfcast.load(tmp_path / "op.safetensors"),
        copy.deepcopy(op),
        pickle.loads(pickle.dumps(op)),
    ):
        assert repr(same) == repr(op)
        assert same.fingerprint() == op.fingerprint()


def test_many_steps_are_shown_shortened():
    assert "inputs=(0, 5, 10, ..., 495)" in repr(wfcast.average(range(0, 500, 5)))


def test_a_model_farcaster_learns_one(run, tmp_path):
    mf = wfcast.ModelFarcaster((0, 10), (20,))
    with pytest.raises(NotFittedError):
        mf.save(tmp_path / "f")
    for use in (
        lambda: wfcast.forecast_checkpoint(mf, run, 20, tmp_path / "f"),
        lambda: wfcast.evaluate(mf, run),
        lambda: wfcast.inspect(mf),
    ):
        with pytest.raises(NotFittedError):
            use()
    mf.fit([run])
    op = mf.operator_
    assert type(op) is wfcast.Operator
    assert repr(op) == (
        "Operator(strategy='ModelFarcaster', inputs=(0, 10), targets=(20,), tensors=2)"
    )
    assert mf.coef_ is op.coef
    assert mf.intercept_ is op.intercept
    assert (mf.inputs_, mf.targets_) == (op.inputs, op.targets)
    assert (mf.tensors_, mf.base_) == (op.tensors, op.base)
    assert mf.fingerprint() == op.fingerprint()
    for name, value in mf.predict(run).items():
        np.testing.assert_array_equal(value, op.predict(run)[name])
    for name in ("objective", "dual_gap", "n_passes"):
        assert op.info[name] == getattr(mf, f"{name}_")


def test_what_is_kept_of_its_making_comes_back(tmp_path):
    info = {"n_evals": 40, "losses": [np.float64(2.5), 2.25], "why": "once"}
    op = wfcast.Operator((0, 1), (1,), [[0.5, 0.5]], strategy="mine", info=info, n_threads=2)
    op.save(tmp_path / "op")
    back = wfcast.load(tmp_path / "op")
    assert (back.info, back.strategy, back.n_threads) == (info, "mine", 2)
    op.info["model"] = object()
    with pytest.raises(wfcast.WfcastError, match=r"info\['model'\] is a object"):
        op.save(tmp_path / "other")
    assert [p.name for p in tmp_path.iterdir()] == ["op"]


def test_other_things_are_no_operators(run, tmp_path):
    for wrong in (3, "farcaster.safetensors", wfcast.ModelFarcaster, wfcast.Farcaster()):
        with pytest.raises(wfcast.DtypeError, match="expected an Operator or a fitted"):
            wfcast.forecast_checkpoint(wrong, run, 20, tmp_path / "out")


def test_a_warning_points_at_the_line_of_the_user(run, tmp_path):
    """However deep in wfcast it arises, and however wfcast was called."""
    op = wfcast.Operator((0, 10), (20,), [[0.0, 1.0]], tensors={"a": ((1,), "float64")})
    mf = wfcast.ModelFarcaster((0, 10), (20,)).fit([run])
    mf.operator_.tensors["a"] = ((1,), "float64")
    for use in (
        lambda: op.predict(run),
        lambda: mf.predict(run),
        lambda: wfcast.forecast_checkpoint(op, run, 20, tmp_path / "out"),
    ):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            use()
        assert [w.filename for w in caught] == [__file__]


@pytest.mark.parametrize(
    "info",
    [
        {"loss": 0.25},
        {"tol": 1e-3, "by": "hand", "n_threads": 4},
        {"dual_gap": {"*": 0.0}},
        {"objective": 0.5},
        {"loss": "mine", "beta": "none", "objective": {"*": "?"}},
        {"loss": "x", "beta": 0.0, "objective": 1, "dual_gap": 3, "n_passes": None},
    ],
)
def test_info_may_hold_anything(info, tmp_path):
    op = wfcast.Operator((0, 1), (2,), [[0.0, 1.0]], info=info)
    op.save(tmp_path / "op")
    assert wfcast.load(tmp_path / "op").info == info
    report = wfcast.inspect(tmp_path / "op")
    assert "custom, from steps 0, 1 to 2" in str(report)
    assert report.to_dict()["loss"] is None


def test_what_cannot_be_loaded_is_not_made():
    for wrong, message in (
        ({"n_threads": 0}, "n_threads is 0"),
        ({"strategy": 3}, "strategy is a int, expected text"),
        ({"base": 3}, "base is a int, expected text"),
    ):
        with pytest.raises(wfcast.WfcastError, match=message):
            wfcast.Operator((0, 1), (2,), [[0.0, 1.0]], **wrong)


def test_forecasting_leaves_the_operator_of_an_estimator_alone(run, tmp_path):
    mf = wfcast.ModelFarcaster((0, 10), (20,)).fit([run])
    mf.operator_.n_threads = 1
    mf.predict(run)
    mf.save(tmp_path / "f")
    assert mf.operator_.n_threads == 1
    mf.set_params(n_threads=0)
    with pytest.raises(wfcast.WfcastError, match="n_threads is 0"):
        mf.save(tmp_path / "g")


def test_a_file_of_the_first_version(tmp_path):
    """Its numbers are tensors, and it says nothing of a strategy."""
    params = {"by": "tensor", "loss": "absolute_error", "beta": 1e-6, "alpha": 0.0}
    params |= {"fit_intercept": True, "tol": 1e-9, "n_threads": None}
    document = {"format": "wfcast.farcaster", "version": 1, "names": ["w"], "base": None}
    document |= {"inputs": [0, 1], "targets": [2, 3], "tensors": {"w": [[5], "float32"]}}
    tensors = {"coef": np.ones((1, 2, 2)), "intercept": np.zeros((1, 2))}
    numbers = {"objective": 0.5, "dual_gap": 1e-10, "n_passes": 2.0}
    tensors |= {name: np.array([value]) for name, value in numbers.items()}
    metadata = {"wfcast": json.dumps(document | {"params": params})}
    save_file(tensors, tmp_path / "old.safetensors", metadata=metadata)
    op = wfcast.load(tmp_path / "old.safetensors")
    assert op.strategy == "ModelFarcaster"
    assert op.info["n_passes"] == {"w": 2}
    assert (op.info["objective"], op.info["beta"]) == ({"w": 0.5}, 1e-6)
    assert "loss absolute_error, beta 1e-06" in str(wfcast.inspect(op))
