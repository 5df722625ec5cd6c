"""Files with more than the weights of a model, and with several sets of them: which is taken."""

import json

import numpy as np
import pytest

import wfcast
from wfcast import CheckpointError
from wfcast.checkpoint import open_checkpoint
from wfcast.cli import main

torch = pytest.importorskip("torch")  # an extra: wfcast itself does without

from torch.distributed.checkpoint import (  # noqa: E402  only with it
    state_dict_loader,
    state_dict_saver,
)

LINE = wfcast.linear_trend((100, 200), (400,))
OPTIMIZER = {"state": {0: {"exp_avg": torch.ones(8, 8)}}, "param_groups": [{"lr": 0.1}]}


def weights(k):
    return {"weight": torch.full((8, 8), float(k)), "bias": torch.full((8,), 10.0 + k)}


def saved(folder, kind, make):
    """The files, or folders of torch.distributed.checkpoint, of a run of two states."""
    run = {}
    for step in (100, 200):
        run[step] = folder / (f"{step}.pt" if kind == "torch" else str(step))
        if kind == "torch":
            torch.save(make(step / 100), run[step])
        else:
            with pytest.warns(UserWarning, match="single process"):
                state_dict_saver.save(make(step / 100), checkpoint_id=run[step], no_dist=True)
    return run


def forecast(run, out, **options):
    report = wfcast.forecast_checkpoint(LINE, run, 400, out, **options)
    assert sorted(report.forecast) == ["bias", "weight"]
    return report


UNKNOWN = {
    "net": lambda k: {"net": weights(k), "opt": OPTIMIZER, "loss": torch.tensor(1 / k)},
    "counts": lambda k: {"net": weights(k), "steps": torch.arange(5), "lr": torch.tensor([0.1])},
    "deep": lambda k: {"a": {"b": {"generator": weights(k)}, "best": torch.tensor(k)}},
    "averaging": lambda k: {"ema": weights(k), "state": {"n_averaged": torch.tensor(3)}},
}


@pytest.mark.parametrize("kind", ["torch", "dcp"])
@pytest.mark.parametrize("name", UNKNOWN)
def test_the_only_weights_are_found_under_any_key(tmp_path, name, kind):
    run = saved(tmp_path, kind, UNKNOWN[name])
    out = tmp_path / ("out.pt" if kind == "torch" else "out")
    report = forecast(run, out)
    assert {"net": "opt", "counts": "steps", "deep": "best", "averaging": "state"}[
        name
    ] in report.left
    found = open_checkpoint(out)
    assert found.sets == ({"deep": "a.b.generator", "averaging": "ema"}.get(name, "net"),)
    np.testing.assert_array_equal(found.value("weight"), np.full((8, 8), 4.0))


SEVERAL = {
    "student and teacher": lambda k: {"student": weights(k), "teacher": weights(k + 50)},
    "raw and ema": lambda k: {"model": {"raw": weights(k), "ema": weights(k + 50)}},
    "at the top, too": lambda k: {**weights(k), "ema": weights(k + 50)},
    "parts of a model": lambda k: {"model": {"embedding": weights(k), "encoder": weights(k)}},
}


@pytest.mark.parametrize("kind", ["torch", "dcp"])
@pytest.mark.parametrize("name", SEVERAL)
def test_several_sets_are_refused_with_their_names(tmp_path, name, kind):
    run = saved(tmp_path, kind, SEVERAL[name])
    names = {
        "student and teacher": "'student', 'teacher'",
        "raw and ema": "'model.raw', 'model.ema'",
        "at the top, too": "'.', 'ema'",
        "parts of a model": "'model.embedding', 'model.encoder'",
    }[name]
    want = rf"step 100 .* holds several sets of weights: {names}; say which one is meant: key= "
    with pytest.raises(CheckpointError, match=want):
        forecast(run, tmp_path / "out")
    with pytest.raises(CheckpointError, match=rf"holds no set of weights named 'emma': {names}"):
        forecast(run, tmp_path / "out", key="emma")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["torch", "dcp"])
def test_the_models_set_is_taken_and_the_others_are_named(tmp_path, kind):
    run = saved(tmp_path, kind, lambda k: {"state_dict": weights(k), "ema": weights(k + 50)})
    out = tmp_path / ("out.pt" if kind == "torch" else "out")
    want = "'state_dict' is taken, and other sets of weights in the file are not: 'ema'; key="
    with pytest.warns(UserWarning, match=want):
        report = forecast(run, out)
    assert report.left == ("ema",)
    assert open_checkpoint(out).sets == ("state_dict",)
    forecast(run, out, key="ema", overwrite=True)  # asked for: no warning
    found = open_checkpoint(out)
    assert found.sets == ("ema",)
    assert found.value("bias")[0] == 64


@pytest.mark.parametrize("key", ["student", "teacher"])
def test_every_function_takes_a_key(tmp_path, key):
    run = saved(tmp_path, "torch", lambda k: {"student": weights(k), "teacher": weights(k + 50)})
    more = 50 if key == "teacher" else 0
    torch.save({"student": weights(3), "teacher": weights(53)}, tmp_path / "300.pt")
    three = {**run, 300: tmp_path / "300.pt"}
    assert LINE.predict(run, key=key)["bias"][0] == 14 + more
    mf = wfcast.ModelFarcaster(inputs=(100, 200), targets=(300,), by="all", beta=0)
    mf.fit([three], key=key)
    assert float(mf.predict(run, key=key)["bias"][0]) == pytest.approx(13 + more)
    assert list(wfcast.evaluate(mf, three, key=key).errors) == [300]
    assert wfcast.inspect(run[100], key=key).checkpoint.value("bias")[0] == 11 + more
    assert wfcast.extrapolate(three, 1.0, "low-rank", key=key).targets == (500,)
    with pytest.warns(UserWarning, match="3 states, expected 8"):
        wfcast.drift(three, key=key)
    wfcast.anneal_run(three, tmp_path / "a.pt", "mean", key=key)
    assert open_checkpoint(tmp_path / "a.pt").value("bias")[0] == 12 + more
    wfcast.extrapolate_run(three, tmp_path / "e.pt", 0.5, key=key)
    assert open_checkpoint(tmp_path / "e.pt").value("bias")[0] == 14 + more
    same = wfcast.compare_checkpoints(tmp_path / "e.pt", tmp_path / "300.pt", key=key)
    assert same["bias"].max_abs == 1


def test_a_run_folder_with_a_key(tmp_path):
    saved(tmp_path, "torch", lambda k: {"student": weights(k), "teacher": weights(k + 50)})
    for step in (100, 200):
        (tmp_path / f"{step}.pt").rename(tmp_path / f"step-{step}.pt")
    assert wfcast.inspect(tmp_path, key="teacher").steps == (100, 200)
    with (
        pytest.warns(UserWarning, match="left out.*several sets of weights: 'student', 'teacher'"),
        pytest.raises(CheckpointError),
    ):
        wfcast.inspect(tmp_path)


def test_a_key_is_refused_where_there_is_one_set(tmp_path):
    from safetensors.torch import save_file

    save_file(weights(1), tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"holds one set of weights, and none named 'ema'"):
        wfcast.inspect(tmp_path / "a.safetensors", key="ema")


def test_inspect_lists_the_sets(tmp_path):
    run = saved(tmp_path, "torch", lambda k: {"params": weights(k), "params_ema": weights(k)})
    report = wfcast.inspect(run[100], key="params")
    assert "sets of weights (key=, --key): params, params_ema" in str(report)
    assert report.to_dict()["sets"] == ["params", "params_ema"]


def test_a_flat_checkpoint_of_model_and_optimizer(tmp_path):
    """Names as "model.w" and "optim.w.exp_avg", which only their beginnings tell apart."""

    def flat(k):
        model = {f"model.{n}": v for n, v in weights(k).items()}
        return {**model, **{f"optim.{n}.exp_avg": v for n, v in weights(k).items()}}

    run = saved(tmp_path, "dcp", flat)
    report = forecast(run, tmp_path / "out")
    assert report.left == ("optim",)
    got = {"model.weight": torch.zeros(8, 8)}
    with pytest.warns(UserWarning, match="single process"):
        state_dict_loader.load(got, checkpoint_id=tmp_path / "out", no_dist=True)
    assert got["model.weight"][0, 0] == 4


# ---- what goes along -----------------------------------------------------------------------------


def test_plain_values_beside_the_weights_go_along(tmp_path):
    """As nanoGPT needs its model_args; what trains the model does not, and is named."""
    args = {"n_layer": 1, "bias": False, "names": ["a", ("b", None)]}
    run = saved(
        tmp_path,
        "torch",
        lambda k: {
            "model": {f"_orig_mod.{n}": v for n, v in weights(k).items()},
            "optimizer": OPTIMIZER,
            "lr_schedulers": [{"last_epoch": 3}],
            "model_args": args,
            "iter_num": 5,
            "best": torch.tensor(2.0),
        },
    )
    report = forecast(run, tmp_path / "out.pt")
    assert set(report.carried) == {"model_args", "iter_num"}
    assert set(report.left) == {"optimizer", "lr_schedulers", "best"}
    got = torch.load(tmp_path / "out.pt", weights_only=True)
    assert (got["model_args"], got["iter_num"]) == (args, 5)
    assert list(got["model"]) == ["_orig_mod.weight", "_orig_mod.bias"]
    report = forecast(run, tmp_path / "out.safetensors")
    assert {"model_args", "iter_num"} <= set(report.left)


# ---- wrappers ------------------------------------------------------------------------------------


class Wrapped(torch.nn.Module):
    """Whose only module really is called "module"."""

    def __init__(self, k):
        super().__init__()
        self.module = torch.nn.Linear(8, 8)
        self.module.load_state_dict(weights(k))


@pytest.mark.parametrize("first", ["a.pt", "a.safetensors", "a"])
@pytest.mark.parametrize("last", ["b.pt", "b.safetensors", "b"])
def test_a_wrappers_prefix_in_every_format(tmp_path, first, last):
    from safetensors.torch import load_file, save_file

    run = {}
    for step, name in ((100, first), (200, last)):
        run[step], state = tmp_path / name, Wrapped(step / 100).state_dict()
        if name.endswith(".pt"):
            torch.save(state, run[step])
        elif name.endswith(".safetensors"):
            save_file(state, run[step])
        else:
            run[step].mkdir()
            files = {n: f"{n}.safetensors" for n in state}
            for n, file in files.items():
                save_file({n: state[n]}, run[step] / file)
            (run[step] / "model.safetensors.index.json").write_text(
                json.dumps({"metadata": {}, "weight_map": files})
            )
    for out in ("out.pt", "out.safetensors", "out"):
        if out == "out" and last != "b":
            continue
        forecast(run, tmp_path / out)
        if out == "out":
            parts = (load_file(p) for p in (tmp_path / out).glob("*.safetensors"))
            state = {n: v for part in parts for n, v in part.items()}
        else:
            load = torch.load if out == "out.pt" else load_file
            state = load(tmp_path / out)
        Wrapped(0).load_state_dict(state)
        assert state["module.bias"][0] == 14
        assert sorted(open_checkpoint(tmp_path / out).tensors) == ["bias", "weight"]


def test_a_mapping_and_a_file_of_one_run(tmp_path):
    torch.save(Wrapped(2).state_dict(), tmp_path / "b.pt")
    got = LINE.predict({100: Wrapped(1).state_dict(), 200: tmp_path / "b.pt"})
    assert got["bias"][0] == 14
    got = LINE.predict({100: tmp_path / "b.pt", 200: Wrapped(1).state_dict()})
    assert got["bias"][0] == 9


@pytest.mark.filterwarnings("default")  # as a command prints them
@pytest.mark.parametrize("key", [None, "ema"])
@pytest.mark.parametrize("command", ["forecast", "anneal", "extrapolate", "fit"])
def test_the_command_line_takes_the_key_to_a_run_folder(tmp_path, capsys, command, key):
    run = saved(tmp_path, "torch", lambda k: {"model": weights(k), "ema": weights(k + 50)})
    for step, path in run.items():
        path.rename(tmp_path / f"step-{step}.pt")
    out = tmp_path / ("out.safetensors" if command == "fit" else "out.pt")
    more = {
        "forecast": ["--farcaster", "line", "--step", "400"],
        "anneal": ["--profile", "mean"],
        "extrapolate": ["--ahead", "2"],
        "fit": ["--inputs", "100", "--targets", "200", "--no-intercept"],
    }[command]
    arguments = [command, str(tmp_path), *more, "-o", str(out), *(["--key", key] if key else [])]
    assert main(arguments) == 0
    assert ("'model' is taken" in capsys.readouterr().err) == (key is None)
    if command == "fit":
        found = wfcast.load(out).coef["bias"]
        np.testing.assert_allclose(found, [[12 / 11 if key is None else 62 / 61]], rtol=1e-6)
        return
    wanted = {"forecast": 14, "anneal": 11.5, "extrapolate": 14}[command]
    assert open_checkpoint(out).value("bias")[0] == wanted + 50 * (key == "ema")


@pytest.mark.parametrize("second", ["model_1.safetensors", "1_Pooling/config.json"])
def test_a_wrappers_prefix_in_a_folder_of_parts(tmp_path, second):
    """Each part has its own: left out of its names, and put back into its file."""
    from safetensors.torch import load_file, save_file

    run = {step: tmp_path / f"step-{step}" for step in (100, 200)}
    for step, folder in run.items():
        folder.mkdir()
        state = {f"module.{n}": v for n, v in weights(step / 100).items()}
        save_file(state, folder / "model.safetensors")
        if second.endswith(".json"):
            (folder / second).parent.mkdir()
            (folder / second).write_text("{}")
            modules = [{"path": ""}, {"path": "1_Pooling"}]
            (folder / "modules.json").write_text(json.dumps(modules))
        else:
            save_file(state, folder / second)
    report = wfcast.forecast_checkpoint(LINE, run, 400, tmp_path / "out")
    names = {"bias", "weight"}
    if not second.endswith(".json"):
        names |= {f"model_1/{name}" for name in names}
    assert set(report.forecast) == names
    for path in (tmp_path / "out").glob("*.safetensors"):
        state = load_file(path)
        assert sorted(state) == ["module.bias", "module.weight"]
        assert state["module.bias"][0] == 14
