"""Runs in folders: which step a name says, and what in them is no state of the run."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import wfcast
from wfcast.checkpoint import open_checkpoint, said_of
from wfcast.checkpoint._names import said_by

torch = pytest.importorskip("torch")  # an extra: wfcast itself does without


def state(step: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    start, move = rng.normal(size=(2, 30))
    return {"w": (start + step**0.5 * move).astype(np.float32)}


def save(path: Path, step: int) -> Path:
    """A checkpoint, in the form that its name asks for."""
    if path.suffix in (".ckpt", ".pt", ".pth"):
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"state_dict": {"w": torch.from_numpy(state(step)["w"])}}, path)
        return path
    file = path if path.suffix == ".safetensors" else path / "model.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(state(step), file)
    return path


def run_in(folder: Path, *names: str) -> Path:
    for name in names:
        save(folder / name, int(said_by(name).numbers[0]))
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return run_in(tmp_path / "run", *(f"checkpoint-{step}" for step in (0, 100, 200, 300)))


# ---- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind", "numbers"),
    [
        ("checkpoint-500", "checkpoint", (500,)),
        ("tmp-checkpoint-20", "checkpoint", (20,)),
        ("step-000600.safetensors", "step", (600,)),
        ("Step500.pt", "step", (500,)),
        ("global_step1000", "step", (1000,)),
        ("iter_0000100", "iter", (100,)),
        ("epoch=3-step=400.ckpt", "step", (400,)),
        ("epoch=3-step=400-v1.ckpt", "step", (400,)),
        ("epoch=1-step=16-loss=0.26.ckpt", "step", (16,)),
        ("epoch=3-val_loss=1.ckpt", "epoch", (3,)),
        ("checkpoint-100_acc0.91.pth", "checkpoint", (100,)),
        ("model-step100-rank0.pt", "step", (100,)),
        ("llama-3-step-500", "step", (500,)),
        ("500.safetensors", "", (500,)),
        ("model.500.pt", "", (500,)),
        ("model-500-v2.pt", "", (500,)),
        ("checkpoint_1_500.pt", "checkpoint", (1, 500)),  # an epoch and its step, or what?
        ("step-100-step-200", "step", (100, 200)),
        ("llama-3-500", "", (3, 500)),
        ("2024-05-01", "", (2024, 5, 1)),
    ],
)
def test_what_a_name_says(name, kind, numbers):
    assert said_by(name) == (kind, numbers)


@pytest.mark.parametrize(
    "name",
    [
        *("last.ckpt", "last-v1.ckpt", "model.fp16.safetensors", "model_v2", "llama-7b"),
        *("val_loss=1.ckpt", "loss-0.25.pt", "checkpoint-0.5", "step-10k.pt", "step=1e5.pt"),
        *("model-00001-of-00002.safetensors", "rank_0.pt", "rng_state_0.pth", "substep3"),
    ],
)
def test_names_that_say_no_step(name):
    assert said_by(name) is None


def test_a_file_is_called_as_its_folder_in_words_only():
    assert said_of(Path("run-3/checkpoint-500/model.safetensors")).numbers == (500,)
    assert said_of(Path("seeds/run-3/model.safetensors")) is None


LIGHTNING = ("epoch=0-step=100-loss=0.52.ckpt", "epoch=1-step=200-loss=0.26.ckpt")


@pytest.mark.parametrize(
    ("names", "steps"),
    [
        (LIGHTNING, (100, 200)),
        (("epoch=0.ckpt", "epoch=1.ckpt"), (0, 1)),
        (("checkpoint-100_acc0.91.pth", "checkpoint-200_acc0.95.pth"), (100, 200)),
        (("0.safetensors", "50.safetensors"), (0, 50)),
        (("global_step5", "global_step10"), (5, 10)),
    ],
)
def test_the_steps_of_a_run(tmp_path, names, steps):
    run_in(tmp_path, *names)
    save(tmp_path / "last.ckpt", 7)
    with warnings.catch_warnings(action="error"):
        assert wfcast.inspect(tmp_path).steps == steps


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((*LIGHTNING, "epoch=1-step=200-v1.ckpt"), "step 200 twice: epoch=1-step=200-loss.* and"),
        (("model-step100-rank0.pt", "model-step100-rank1.pt"), "step 100 twice"),
        (("checkpoint_1_500.pt", "checkpoint_2_900.pt"), "which may be step 1 or 500: name it"),
        (("llama-3-500", "llama-3-900"), "which may be step 3 or 500"),
        (
            ("epoch=2.ckpt", "epoch=1-step=200.ckpt"),
            "'epoch=1-step=200.ckpt' by its step and 'epoch=2.ckpt' by its epoch",
        ),
    ],
)
def test_names_of_a_run_with_two_readings(tmp_path, names, message):
    run_in(tmp_path, *names)
    for look in (wfcast.inspect, wfcast.extrapolate):
        with pytest.raises(wfcast.CheckpointError, match=message):
            look(tmp_path)


def test_folders_that_end_in_ckpt(tmp_path):
    import torch.distributed.checkpoint as dcp

    for step in (100, 200):
        sharded = {"state_dict": {"w": torch.from_numpy(state(step)["w"])}}
        with warnings.catch_warnings(action="ignore"):  # that no process group is there
            dcp.save(sharded, checkpoint_id=tmp_path / f"epoch=0-step={step}.ckpt", no_dist=True)
    assert wfcast.inspect(tmp_path).steps == (100, 200)


def test_what_has_no_step_beside_those_that_have(run):
    save(run / "best-7.safetensors", 7)
    with pytest.warns(UserWarning, match=r"its name says no step as .*checkpoint-0.*best-7"):
        report = wfcast.inspect(run)
    assert report.steps == (0, 100, 200, 300)
    assert "best-7.safetensors" in str(report).splitlines()[-1]


def test_swapped_states_are_refused(run, tmp_path):
    swapped = {0: run / "checkpoint-100", 100: run / "checkpoint-0"}
    line = wfcast.linear_trend((0, 100), (200,))
    message = r"at step 0 and .* at step 100, but by .* checkpoint 100 before checkpoint 0: give"
    for use in (
        lambda: line.predict(swapped),
        lambda: wfcast.forecast_checkpoint(line, swapped, 200, tmp_path / "out"),
        lambda: wfcast.evaluate(line, {**swapped, 200: run / "checkpoint-200"}),
        lambda: wfcast.anneal_run(swapped, tmp_path / "out.safetensors"),
    ):
        with pytest.raises(wfcast.CheckpointError, match=message):
            use()
    assert not (tmp_path / "out").exists()


# ---- what wfcast has made, and what cannot be read -----------------------------------------------


@pytest.mark.parametrize("name", ["forecast-400", "step-400.safetensors", "checkpoint-400"])
def test_forecasts_in_a_run_do_not_count(run, name):
    line = wfcast.linear_trend((200, 300), (400,))
    wfcast.forecast_checkpoint(line, run, 400, run / name)
    if name == "step-400.safetensors":
        for step in (0, 100, 200, 300):
            save(run / f"step-{step}.safetensors", step)
            (run / f"checkpoint-{step}" / "model.safetensors").unlink()
    made = rf"left out, as a forecast .*{name}.* is a forecast of step 400 by linear_trend"
    mf = wfcast.ModelFarcaster((200, 300), (400,))
    for use in (
        lambda: mf.fit([run]),
        lambda: wfcast.evaluate(line, run),
    ):
        with (
            pytest.warns(UserWarning, match=made),
            pytest.raises(wfcast.CheckpointError, match=r"lacks step 400|none of the targets"),
        ):
            use()
    with pytest.warns(UserWarning, match=made):
        report = wfcast.inspect(run)
    assert report.steps == (0, 100, 200, 300)
    assert f"{name}" in report.left_out[0]
    assert report.to_dict()["left_out"] == list(report.left_out)


@pytest.mark.parametrize("name", ["f.safetensors", "f.pt", "f"])
def test_forecasts_are_no_targets(run, tmp_path, name):
    line = wfcast.linear_trend((100, 200), (300,))
    made = {"format": "dcp"} if name == "f" else {}
    report = wfcast.forecast_checkpoint(line, run, 300, tmp_path / name, **made)
    given = {step: run / f"checkpoint-{step}" for step in (0, 100, 200)} | {300: report.path}
    message = "is a forecast of step 300 by linear_trend, expected a state"
    for use in (
        lambda: wfcast.ModelFarcaster((100, 200), (300,)).fit([given]),
        lambda: wfcast.evaluate(line, given),
    ):
        with pytest.raises(wfcast.CheckpointError, match=message):
            use()
    assert "f (a forecast of step 300 by linear_trend)" in str(wfcast.inspect(given)).replace(
        name, "f"
    )
    assert "; a forecast of step 300 by linear_trend" in str(wfcast.inspect(report.path))
    as_input = {0: report.path, 100: run / "checkpoint-100", 200: run / "checkpoint-200"}
    assert wfcast.ModelFarcaster((0, 100), (200,), by="all").fit([as_input]).coef_


def test_odd_provenance_is_still_a_forecast(tmp_path):
    for text in ("", "[]", "{}", json.dumps({"step": "x"}), "[" * 10**5):
        path = tmp_path / "x.safetensors"
        save_file(state(0), path, metadata={"wfcast.forecast": text})
        assert "; a forecast\n" in str(wfcast.inspect(path))


def test_what_is_lacking_says_why(run):
    (run / "checkpoint-300" / "model.safetensors").write_bytes(b"torn")
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(wfcast.CheckpointError, match=r"lacks step 300; .*left out, .*cannot be"),
    ):
        wfcast.ModelFarcaster((100, 200), (300,)).fit([run])
    with pytest.warns(UserWarning, match="left out"):
        report = wfcast.inspect(run)
    assert "cannot be read as a safetensors file" in str(report).splitlines()[-1]


def test_a_run_of_which_nothing_can_be_read(run, tmp_path):
    for step in (0, 100, 200, 300):
        (run / f"checkpoint-{step}" / "pytorch_model.bin").touch()
    mf, out = wfcast.ModelFarcaster((100, 200), (300,)), tmp_path / "out.safetensors"
    for use in (
        lambda: mf.fit([run]),
        lambda: wfcast.inspect(run),
        lambda: wfcast.drift(run),
        lambda: wfcast.anneal_run(run, out),
        lambda: wfcast.extrapolate_run(run, out),
    ):
        with (
            pytest.warns(UserWarning, match="left out"),
            pytest.raises(wfcast.CheckpointError, match="holds no finished checkpoint; left out,"),
        ):
            use()


# ---- two saves in one folder ---------------------------------------------------------------------


def sharded(folder: Path, count: int, value: float) -> None:
    files = [f"model-{k:05d}-of-{count:05d}.safetensors" for k in range(1, count + 1)]
    for k, file in enumerate(files):
        save_file({f"w{k}": np.full(3, value, np.float32)}, folder / file)
    index = {"weight_map": {f"w{k}": file for k, file in enumerate(files)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_leftovers_of_another_save(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    sharded(tmp_path, 2, 1.0)
    assert len(open_checkpoint(tmp_path).tensors) == 2
    whole = tmp_path / "model.safetensors"
    save_file({"w": np.zeros(3, np.float32)}, whole)
    for other in ("model.safetensors", "pytorch_model.bin", "adapter_model.safetensors"):
        whole = whole.rename(tmp_path / other)
        with pytest.raises(
            wfcast.CheckpointError, match=f"holds both 'model.safetensors.index.json' and '{other}'"
        ):
            open_checkpoint(tmp_path)
    # naming the file, or the index, chooses; with an index its folder goes along
    assert list(open_checkpoint(whole).tensors) == ["w"]
    chosen = open_checkpoint(tmp_path / "model.safetensors.index.json")
    assert list(chosen.tensors) == ["w0", "w1"]
    assert [path.name for path in chosen.layout.carried] == ["config.json"]
    whole.unlink()
    for old in tmp_path.glob("model-*"):
        old.rename(tmp_path / old.name.replace("of-00002", "of-00003"))
    sharded(tmp_path, 2, 2.0)
    match = "both 'model-00001-of-00002.safetensors' and 'model-00001-of-00003.safetensors'"
    with pytest.raises(wfcast.CheckpointError, match=match):
        open_checkpoint(tmp_path)
    index = open_checkpoint(tmp_path / "model.safetensors.index.json")
    assert index.column("w0").array[0] == 2


def test_two_formats_of_the_same_weights(tmp_path):
    save(tmp_path, 0)
    torch.save({"w": torch.ones(30)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(wfcast.CheckpointError, match=r"'model.safetensors' and 'pytorch_"):
        open_checkpoint(tmp_path)
    assert open_checkpoint(tmp_path / "pytorch_model.bin").column("w").array[0] == 1
