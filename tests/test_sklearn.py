"""Farcaster as a scikit-learn estimator."""

import pickle

import numpy as np
import pytest
import sklearn
from sklearn.base import clone
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import wfcast

EXPECTED = {
    "check_estimators_dtypes": "integer X is refused by design: no silent cast of weights",
    "check_dtype_object": "arrays of Python objects are refused by design",
    "check_supervised_y_2d": "a 2-D integer Y is refused by design (a 1-D integer y is taken)",
}
ALPHA = {
    "check_regressors_train": "sets alpha=0.01, which is refused with the absolute error; "
    "test_trains_like_a_regressor does the rest of it"
}


def expected_failures(estimator):
    """The checks of scikit-learn that cannot pass, each with its reason."""
    return EXPECTED | (ALPHA if estimator.loss == "absolute_error" else {})


@parametrize_with_checks(
    [wfcast.Farcaster(), wfcast.Farcaster(loss="squared_error")],
    expected_failed_checks=expected_failures,
)
def test_estimator_checks(estimator, check):
    before = estimator.get_params()
    check(estimator)
    assert estimator.get_params() == before  # clones are fitted and set, never the original


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 3))
    return X, X @ rng.normal(size=(3, 2)) + 0.1 * rng.normal(size=(200, 2)) + 1


@pytest.mark.parametrize("alpha", [1e-3, 30.0])
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_alpha_is_that_of_ridge(data, alpha, fit_intercept):
    X, Y = data
    f = wfcast.Farcaster("squared_error", alpha=alpha, fit_intercept=fit_intercept).fit(X, Y)
    ridge = Ridge(alpha=alpha, fit_intercept=fit_intercept).fit(X, Y)
    np.testing.assert_allclose(f.coef_, ridge.coef_, rtol=1e-9)
    np.testing.assert_allclose(f.intercept_, ridge.intercept_, rtol=1e-9)
    documented = (((f.predict(X) - Y) ** 2).sum() + alpha * (f.coef_**2).sum()) / Y.size
    np.testing.assert_allclose(f.objective_, documented, rtol=1e-9)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_trains_like_a_regressor(data, dtype, tmp_path):
    X, Y = (a.astype(dtype) for a in data)
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    f = wfcast.Farcaster()
    with pytest.raises(ValueError, match="X has 200 rows, Y has 199 rows"):
        f.fit(X, Y[:-1])
    assert f.fit(mapped, Y).score(mapped, Y) > 0.95
    again = wfcast.Farcaster().fit(X.tolist(), Y.tolist())
    np.testing.assert_allclose(again.coef_, f.coef_, rtol=1e-6)
    assert f.fit(X, Y[:, 0]).predict(X).shape == (200,)


def test_clone_and_pickle(data):
    f = wfcast.Farcaster(tol=1e-8, n_threads=1).fit(*data)
    fresh = clone(f)
    assert fresh.get_params() == f.get_params()
    assert not hasattr(fresh, "coef_")
    same = pickle.loads(pickle.dumps(f))
    np.testing.assert_array_equal(same.predict(data[0]), f.predict(data[0]))
    model = wfcast.ModelFarcaster((0, 1), (2, 3), by="all", beta=0.0)
    assert clone(model).get_params() == model.get_params()
    assert "ModelFarcaster(" in repr(model)


def test_grid_search(data):
    search = GridSearchCV(wfcast.Farcaster(loss="squared_error"), {"alpha": [0.0, 100.0]}, cv=3)
    assert search.fit(*data).best_params_ == {"alpha": 0.0}


def test_grid_search_with_the_hinge(data):
    X, Y = data
    groups = np.repeat(np.arange(4), 50)
    with sklearn.config_context(enable_metadata_routing=True):
        f = wfcast.Farcaster().set_fit_request(groups=True, first_update=True)
        search = GridSearchCV(f, {"beta": [0.0, 1e-6]}, cv=GroupKFold(2), error_score="raise")
        search.fit(X, Y, groups=groups, first_update=np.full(4, 50.0))
    assert search.best_estimator_.coef_.shape == (2, 3)


def test_grid_search_over_whole_runs():
    rng = np.random.default_rng(0)

    def run():
        w, v = rng.normal(size=(2, 50))
        return {t: {"a": w + v * t**0.5, "b": w - v * t} for t in (0, 100, 400)}

    mf = wfcast.ModelFarcaster((0, 100), (400,))
    runs = [run() for _ in range(4)]
    search = GridSearchCV(mf, {"by": ["all", "tensor"]}, cv=2, error_score="raise").fit(runs)
    assert search.best_params_ == {"by": "tensor"}
    assert search.best_score_ == pytest.approx(1)


def test_pipeline(data):
    X, Y = data
    pipe = make_pipeline(StandardScaler(), wfcast.Farcaster()).fit(X, Y)
    np.testing.assert_allclose(pipe.predict(X), wfcast.Farcaster().fit(X, Y).predict(X), atol=0.05)
    assert cross_val_predict(pipe, X, Y).shape == Y.shape


def test_feature_names(data):
    pd = pytest.importorskip("pandas")  # scikit-learn's own checks skip without it as well
    X, Y = data
    frame = pd.DataFrame(X.astype(np.float32), columns=["w0", "w5", "w9"])
    f = wfcast.Farcaster().fit(frame, Y)
    assert list(f.feature_names_in_) == ["w0", "w5", "w9"]
    assert f.predict(frame).dtype == np.float32
    with pytest.raises(wfcast.WfcastError, match="feature names"):
        f.predict(frame[["w5", "w0", "w9"]])
    f.fit(X, Y)
    assert not hasattr(f, "feature_names_in_")
    with pytest.raises(wfcast.WfcastError, match=r"column 1 \('w5'\) has dtype int64"):
        f.fit(frame.astype({"w5": "int64"}), Y)
