"""What people see: inspect, evaluate, compare, and the plots and HTML of every report."""

import json
import re
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from sklearn.exceptions import NotFittedError

import wfcast
from wfcast.report import Errors, look, nbytes_read

# some tensors here are as small as tensors get
pytestmark = pytest.mark.filterwarnings("ignore:forecast to stay as they are")

STEPS = (0, 10, 20, 30, 40)
SHAPES = {
    "embeddings.weight": (40, 6),
    "layer.2.attention.q_lin.weight": (6, 6),
    "layer.10.ffn.lin1.bias": (7,),
    "layer.10.output_layer_norm.weight": (5,),
}


def run_of(seed):
    rng = np.random.default_rng(seed)
    start = {n: rng.normal(size=s) for n, s in SHAPES.items()}
    drift = {n: rng.normal(size=s) / 40 for n, s in SHAPES.items()}
    noise = {t: {n: rng.normal(size=s) / 50 for n, s in SHAPES.items()} for t in STEPS}
    return {
        t: {n: (start[n] + t * drift[n] + noise[t][n]).astype(np.float32) for n in SHAPES}
        for t in STEPS
    }


@pytest.fixture
def folder(tmp_path):
    run = tmp_path / "run"
    for step, tensors in run_of(3).items():
        (run / f"checkpoint-{step}").mkdir(parents=True)
        save_file(tensors, run / f"checkpoint-{step}" / "model.safetensors")
    return run


@pytest.fixture(scope="module")
def mf():
    return wfcast.ModelFarcaster((0, 20), (30, 40)).fit([run_of(1), run_of(2)])


def test_a_run_folder(folder):
    (folder / "checkpoint-50").mkdir()
    (folder / "checkpoint-50" / "optimizer.pt").write_bytes(b"not yet")
    with pytest.warns(UserWarning, match=r"left out.*checkpoint-50' holds no finished checkpoint"):
        report = wfcast.inspect(folder)
    run = run_of(3)
    assert report.steps == STEPS
    assert [c["name"] for c in report.checkpoints] == [f"checkpoint-{t}" for t in STEPS]
    assert {c["parameters"] for c in report.checkpoints} == {240 + 36 + 7 + 5}
    flat = {t: np.concatenate([run[t][n].ravel() for n in SHAPES]) for t in STEPS}
    move = np.linalg.norm(flat[20] - flat[10]) / np.linalg.norm(flat[10])
    assert report.checkpoints[2]["move"] == pytest.approx(move, rel=1e-6)
    assert report.checkpoints[0]["move"] is None
    for (name, position), values in report.samples.items():
        assert values == [float(run[t][name].ravel()[position]) for t in STEPS]
    assert "a run of 5 checkpoints" in str(report)
    for path in (folder / "checkpoint-40").iterdir():  # as the Trainer's save_model leaves it
        (folder / path.name).write_bytes(path.read_bytes())
    with pytest.warns(UserWarning, match="left out"):
        assert wfcast.inspect(folder).steps == STEPS
    final = wfcast.inspect(folder / "model.safetensors")
    assert {t["name"] for t in final.to_dict()["tensors"]} == set(SHAPES)
    (folder / "model.safetensors").unlink()
    mapped = wfcast.inspect(run)
    assert mapped.samples == report.samples
    with pytest.raises(wfcast.CheckpointError, match="a folder of checkpoints"):
        wfcast.compare_checkpoints(folder, folder)


def test_an_unfinished_checkpoint_beside_a_whole_one_of_its_step(folder):
    (folder / "tmp-checkpoint-20").mkdir()
    (folder / "tmp-checkpoint-20" / "config.json").write_text("{}")
    with pytest.warns(UserWarning, match=r"tmp-checkpoint-20' holds no finished"):
        assert wfcast.inspect(folder).steps == STEPS
    (folder / "tmp-checkpoint-20").rename(folder / "a-checkpoint-20")  # before the whole one
    with pytest.warns(UserWarning, match=r"a-checkpoint-20' holds no finished"):
        assert wfcast.inspect(folder).steps == STEPS
    (folder / "a-checkpoint-20").rename(folder / "tmp-checkpoint-20")
    whole = (folder / "checkpoint-20" / "model.safetensors").read_bytes()
    (folder / "tmp-checkpoint-20" / "model.safetensors").write_bytes(whole)
    with pytest.raises(wfcast.CheckpointError, match="step 20 twice: checkpoint-20 and tmp-check"):
        wfcast.inspect(folder)


def test_a_checkpoint_that_lacks_what_the_others_have(folder):
    tensors = run_of(3)[20]
    del tensors["embeddings.weight"]
    save_file(tensors, folder / "checkpoint-20" / "model.safetensors")
    report = wfcast.inspect(folder)
    assert [c["alike"] for c in report.checkpoints] == [True, True, False, False, True]
    assert "checkpoint-20 (other tensors)" in str(report)
    lost = [v for (name, _), v in report.samples.items() if name == "embeddings.weight"]
    assert lost
    assert all(np.isnan(values[2]) for values in lost)
    json.dumps(report.to_dict(), allow_nan=False)


def test_a_run_shows_its_drift(folder):
    with pytest.warns(UserWarning, match="the run has 5 states"):
        drift = wfcast.drift(folder)
    with warnings.catch_warnings(action="error"):
        report = wfcast.inspect(folder)
    assert report.drift.to_dict() == drift.to_dict() == report.to_dict()["drift"]
    assert f"have the cosine {drift.total['cosine']:.2f}" in str(report)
    assert f"warning: {drift.warnings[0]}" in str(report)
    two = wfcast.inspect({t: run_of(3)[t] for t in STEPS[:2]})
    assert two.drift is two.to_dict()["drift"] is None
    assert "drift" not in str(two)


def test_a_run_shows_the_drift_of_what_all_of_it_has(folder):
    run = run_of(3)
    whole = wfcast.inspect(run)
    del run[20]["embeddings.weight"]
    run[30]["layer.2.attention.q_lin.weight"][2, 3] = np.nan
    run[40]["layer.10.ffn.lin1.bias"] = run[40]["layer.10.ffn.lin1.bias"].astype(np.float64)
    report = wfcast.inspect(run)
    norm = "layer.10.output_layer_norm.weight"
    assert report.drift.to_dict()["tensors"] == [
        t for t in whole.drift.to_dict()["tensors"] if t["name"] == norm
    ]
    left = [n for n in SHAPES if n != "embeddings.weight"]
    finite = {
        t: np.concatenate([run[t][n].ravel() for n in left])[run_mask(left)] for t in (20, 30)
    }
    move = np.linalg.norm(finite[30] - finite[20]) / np.linalg.norm(finite[20])
    assert report.checkpoints[3]["move"] == pytest.approx(move, rel=1e-6)
    for name in left:
        run[30][name][:] = np.nan
    nothing = wfcast.inspect(run)
    assert nothing.drift is None
    json.dumps(nothing.to_dict(), allow_nan=False)


def run_mask(names):
    """All weights of `names` but the one that is not finite in step 30."""
    marks = {n: np.ones(SHAPES[n], bool) for n in names}
    marks["layer.2.attention.q_lin.weight"][2, 3] = False
    return np.concatenate([marks[n].ravel() for n in names])


def test_what_inspect_says_it_reads_is_what_it_reads(folder):
    run = run_of(3)
    del run[20]["embeddings.weight"]
    found = look(run)
    total, of_weight = nbytes_read(found)
    read = []
    wfcast.inspect(run, progress=lambda name, n: read.append(n * of_weight[name]))
    assert sum(read) == total
    others = 36 + 7 + 5  # read once at each of five steps; the embeddings in two pairs of steps
    assert total == 4 * (5 * others + 2 * 2 * 240)


def test_evaluate_is_predict_and_numpy(folder, mf):
    run = run_of(3)
    found = wfcast.evaluate(mf, folder)
    assert list(found.errors) == [30, 40]
    line = wfcast.linear_trend((0, 20), (30, 40))
    for step, methods in found.errors.items():
        expected = {
            "forecast": mf.predict(run, step),
            "persistence": run[20],
            "line": line.predict(run, step),
        }
        assert methods.keys() == expected.keys()
        for method, weights in expected.items():
            for name in SHAPES:
                d = np.abs(weights[name].astype(float) - run[step][name])
                assert methods[method][name].mae == pytest.approx(d.mean(), rel=1e-6)
                assert methods[method][name].max_abs == pytest.approx(d.max(), rel=1e-6)
        sums = {m: methods[m].total.sum_abs for m in methods}
        assert found.relative(step, "line") == sums["line"] / sums["persistence"]
    partly = wfcast.evaluate(mf, {s: run[s] for s in (0, 20, 30)})
    assert list(partly.errors) == [30]
    with pytest.raises(wfcast.CheckpointError, match="none of the targets 30, 40; it has 0, 20"):
        wfcast.evaluate(mf, {s: run[s] for s in (0, 20)})
    alone = wfcast.ModelFarcaster((0,), (30, 40)).fit([run_of(1)])
    assert list(wfcast.evaluate(alone, run).errors[30]) == ["forecast", "persistence"]


def test_every_report_is_text_html_json_and_a_plot(folder, mf, tmp_path):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("Agg")
    run = {s: folder / f"checkpoint-{s}" for s in (0, 20)}
    out = tmp_path / "forecast.safetensors"
    reports = {
        "Relative move by layer": wfcast.forecast_checkpoint(mf, run, 40, out),
        "forecast.safetensors against": wfcast.compare_checkpoints(out, folder / "checkpoint-40"),
        "Weight error by horizon": wfcast.evaluate(mf, folder),
        "weights of run": wfcast.inspect(folder),
        "forecast.safetensors": wfcast.inspect(out),
        "Coefficients by layer": wfcast.inspect(mf),
    }
    for title, report in reports.items():
        assert "\n---" in str(report)
        assert report._repr_html_().count("<table>") >= 1
        assert not re.search(r"<p>[^<]*\n", report._repr_html_())  # which HTML shows as a space
        assert json.loads(json.dumps(report.to_dict(), allow_nan=False))
        ax = report.plot()
        assert title in ax.get_title(loc="left")
        assert ax.lines
        ax.figure.savefig(tmp_path / "plot.png")
        given = pyplot.subplots()[1]
        assert report.plot(given) is given
    ax = wfcast.inspect(folder).plot(farcaster=mf)
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["forecast"]
    with pytest.raises(wfcast.CheckpointError, match="lacks step 20, which the farcaster reads"):
        wfcast.inspect({0: run_of(1)[0]}).plot(farcaster=mf)
    assert mf.plot().get_title(loc="left") == "Coefficients by layer"
    pyplot.close("all")


def test_layers_stand_in_their_own_order():
    from wfcast._plot import natural

    names = ["layer.10.w", "layer.9.w", "embed", "layer.9.10", "layer.9.b"]
    assert sorted(names, key=natural) == [
        "embed",
        "layer.9.10",
        "layer.9.b",
        "layer.9.w",
        "layer.10.w",
    ]


def test_what_was_not_fitted_has_nothing_to_show():
    unfitted = wfcast.ModelFarcaster((0, 20), (30, 40))
    for call in (lambda: wfcast.evaluate(unfitted, run_of(1)), lambda: wfcast.inspect(unfitted)):
        with pytest.raises(NotFittedError):
            call()
    with pytest.raises(NotFittedError):
        unfitted.plot()


def test_html_is_escaped():
    report = wfcast.inspect({"<b>&": np.ones(3, np.float32)})
    assert "<b>" not in report._repr_html_()
    assert "&lt;b&gt;&amp;" in report._repr_html_()


def test_names_do_not_steer_a_terminal(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"red\x1b[31m\nname": np.ones(3, np.float32)}, path, {"\x1b[2J": "a\nb\x07"})
    text = str(wfcast.inspect(path))
    assert "red\\x1b[31m\\nname" in text
    assert "\\x1b[2J: a\nb\\x07" in text
    out = tmp_path / "b.safetensors"
    text += str(wfcast.forecast_checkpoint(wfcast.persistence((0,), (1,)), {0: path}, 1, out))
    assert text.replace("\n", "").isprintable()


def test_the_steps_of_a_run_may_be_numpys():
    run = {step: {"w": np.full(3, step, np.float32)} for step in np.arange(0, 20, 10)}
    assert wfcast.inspect(run).steps == (0, 10)


def test_nothing_against_nothing():
    assert np.isnan(Errors(n=2).relative)
    assert Errors(n=2, sum_sq=1.0).relative == np.inf
    assert Errors(n=2).to_dict()["relative"] is None


# ---- where a forecast goes beyond what was fitted ------------------------------------------------


def test_another_dtype_is_told(mf, tmp_path):
    run = {s: {n: a.astype(np.float16) for n, a in run_of(5)[s].items()} for s in (0, 20)}
    with pytest.warns(UserWarning, match=r"4 tensors of step 20 have another dtype"):
        mf.predict(run, 40)
    with pytest.warns(UserWarning, match=r"another dtype"):
        report = wfcast.forecast_checkpoint(mf, run, 40, tmp_path / "out.safetensors")
    assert "\n\nwarning: 4 tensors of step 20 have another dtype" in str(report)
    assert len(report.to_dict()["beyond"]) == 1


def test_another_step_in_the_name_is_told(folder, mf, tmp_path):
    run = {0: folder / "checkpoint-0", 20: folder / "checkpoint-30"}
    with pytest.warns(UserWarning, match=r"taken as step 20, but its name says 30"):
        wfcast.forecast_checkpoint(mf, run, 40, tmp_path / "out.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no step in the name: nothing to say
        for step in (0, 20):
            save_file(run_of(3)[step], tmp_path / f"llama-{step + 1}.safetensors")
        run = {s: tmp_path / f"llama-{s + 1}.safetensors" for s in (0, 20)}
        wfcast.forecast_checkpoint(mf, run, 40, tmp_path / "out.safetensors")


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("checkpoint-500/model.safetensors", 500),
        ("step-000600.safetensors", 600),
        ("run/global_step1000/model.pt", 1000),
        ("epoch=3-step=70.ckpt", 70),
        ("epoch=3.ckpt", None),
        ("llama-3/model-00001-of-00002.safetensors", None),
    ],
)
def test_steps_in_names(name, step):
    from wfcast.checkpoint import step_named

    assert step_named(Path(name)) == step


# ---- several runs, and data frames ---------------------------------------------------------------


def test_several_runs_are_summed(folder, mf):
    runs = [run_of(5), folder, {step: run_of(6)[step] for step in (0, 20, 40)}]
    found = wfcast.evaluate(mf, runs)
    each = [wfcast.evaluate(mf, run) for run in runs]
    assert [str(one) for one in found.runs] == [str(one) for one in each]
    for step, there in ((30, each[:2]), (40, each)):
        for method in ("forecast", "persistence", "line"):
            total = found.errors[step][method].total
            parts = [one.errors[step][method].total for one in there]
            assert total.n == sum(part.n for part in parts)
            assert total.sum_abs == pytest.approx(sum(part.sum_abs for part in parts))
    assert "By run at step 40, against persistence:" in str(found)
    assert len(found.to_dict()["runs"]) == 3
    json.dumps(found.to_dict(), allow_nan=False)
    with pytest.raises(wfcast.CheckpointError, match="runs is empty"):
        wfcast.evaluate(mf, [])
    with pytest.raises(wfcast.CheckpointError, match="run 1 lacks step"):
        wfcast.evaluate(mf, [folder, {0: run_of(5)[0]}])


def test_the_score_is_the_gain_on_persistence(folder, mf):
    for runs in ([run_of(5), folder], [folder], folder):
        found = wfcast.evaluate(mf, runs)
        want = np.mean([1 - found.relative(step, "forecast") for step in found.errors])
        assert mf.score(runs) == pytest.approx(want)
    still = {step: {"w": np.ones(3)} for step in (0, 20, 40)}
    last = wfcast.ModelFarcaster((20,), (40,), fit_intercept=False).fit([still])
    assert last.score([still]) == 0
    with pytest.raises(NotFittedError):
        wfcast.ModelFarcaster((0, 20), (40,)).score([still])


def test_reports_as_data_frames(folder, mf, tmp_path):
    frame = wfcast.evaluate(mf, [folder, run_of(5)]).to_frame()
    assert set(frame["run"]) == {0, 1}
    assert set(frame["method"]) == {"forecast", "persistence", "line"}
    assert len(frame) == 2 * 2 * 3 * len(SHAPES)
    compared = wfcast.compare_checkpoints(folder / "checkpoint-0", folder / "checkpoint-40")
    assert compared.to_frame()["n"].sum() == compared.total.n
    assert list(wfcast.inspect(folder).to_frame()["step"]) == list(STEPS)
    assert set(wfcast.inspect(folder / "checkpoint-0").to_frame()["name"]) == set(SHAPES)
    coefficients = wfcast.inspect(mf).to_frame().set_index(["tensor", "step"])
    name = next(iter(SHAPES))
    assert coefficients.loc[(name, 40), "w_20"] == mf.coef_[name][1, 1]
    with pytest.warns(UserWarning, match="5 states"):
        assert set(wfcast.drift(folder).to_frame()["tensor"]) == set(SHAPES)
    written = wfcast.forecast_checkpoint(
        mf, folder, 40, tmp_path / "out.safetensors", include=name
    ).to_frame()
    assert set(written["copied"].dropna()) == {"not chosen"}
    readout = wfcast.anneal_run(folder, tmp_path / "mean.safetensors", "mean")
    assert list(readout.to_frame()["chosen"]) == [True]


def test_without_pandas(mf, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(wfcast.WfcastError, match="to_frame needs pandas, which is not installed"):
        wfcast.inspect(mf).to_frame()


def test_a_session_shows_what_print_does(folder, mf):
    for report in (wfcast.evaluate(mf, folder), wfcast.inspect(mf)):
        assert repr(report) == str(report)
        assert "<wfcast" not in repr(report)
