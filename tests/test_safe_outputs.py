"""What an output may take the place of, and inputs that change while it is made."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import wfcast
from wfcast import CheckpointError

LINE = wfcast.linear_trend((0, 1), (2,))
SHARDS = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}


def state(k):
    return {"a": np.full(40, k, np.float32), "b": np.full(40, 10 + k, np.float32)}


def sharded(folder):
    folder.mkdir()
    k = int(folder.name[-1])
    for name, file in SHARDS.items():
        save_file({name: state(k)[name]}, folder / file)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": SHARDS})
    )
    (folder / "config.json").write_text("{}")
    return folder


@pytest.mark.parametrize("name", [*SHARDS.values(), "config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_no_part_of_an_input_is_replaced(tmp_path, name, overwrite):
    run = {k: sharded(tmp_path / f"c{k}") for k in (0, 1)}
    before = {p.name: p.read_bytes() for p in run[1].iterdir()}
    calls = (
        lambda out: wfcast.forecast_checkpoint(LINE, run, 2, out, overwrite=overwrite),
        lambda out: wfcast.anneal_run(run, out, overwrite=overwrite),
        lambda out: wfcast.extrapolate_run(run, out, 1.0, overwrite=overwrite),
    )
    for call in calls:
        with pytest.raises((CheckpointError, OSError)):
            call(run[1] / name)
    assert {p.name: p.read_bytes() for p in run[1].iterdir()} == before


def test_an_input_is_replaced_only_where_asked_for(tmp_path):
    run = {k: tmp_path / f"{k}.safetensors" for k in (0, 1)}
    for k, path in run.items():
        save_file(state(k), path)
    with pytest.raises(CheckpointError, match=r"cannot write .*1\.safetensors'.*--overwrite"):
        wfcast.forecast_checkpoint(LINE, run, 2, run[1])
    assert load_file(run[1])["a"][0] == 1
    wfcast.forecast_checkpoint(LINE, run, 2, run[1], overwrite=True)
    assert load_file(run[1])["a"][0] == 2
    save_file(state(7), tmp_path / "old.safetensors")
    wfcast.forecast_checkpoint(LINE, run, 2, tmp_path / "old.safetensors")  # no input: as always


def test_a_checkpoint_with_its_optimizer_is_replaced_only_where_asked_for(tmp_path):
    torch = pytest.importorskip("torch")  # an extra
    run = {k: {n: torch.from_numpy(v) for n, v in state(k).items()} for k in (0, 1)}
    out = tmp_path / "last.pt"
    torch.save({"model": run[1], "optimizer": {"state": {}, "param_groups": []}}, out)
    with pytest.raises(CheckpointError, match="it holds what trains the model, optimizer, which"):
        wfcast.forecast_checkpoint(LINE, run, 2, out)
    assert "optimizer" in torch.load(out, weights_only=True)
    wfcast.forecast_checkpoint(LINE, run, 2, out, overwrite=True)
    assert list(torch.load(out, weights_only=True)) == ["a", "b"]


@pytest.mark.parametrize("name", ["m.gguf", "m.npz", "m.safetensor", "m.onnx", "m.h5", "m.pkl"])
def test_an_output_of_an_unknown_format_is_refused(tmp_path, name):
    run = {k: state(k) for k in (0, 1)}
    with pytest.raises(CheckpointError, match="is no format that wfcast writes; files end in"):
        wfcast.forecast_checkpoint(LINE, run, 2, tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["model-v1.5", "step-100", "distilbert.epoch-3"])
def test_a_name_with_a_dot_may_be_a_folder(tmp_path, name):
    run = {k: sharded(tmp_path / f"c{k}") for k in (0, 1)}
    wfcast.forecast_checkpoint(LINE, run, 2, tmp_path / name)
    assert (tmp_path / name / "config.json").is_file()


def test_links_out_of_a_checkpoint_are_not_copied(tmp_path):
    """Those of the hub's cache lead to its own blobs, and are what the folder holds."""
    (tmp_path / "secret.txt").write_text("not of the model")
    snapshots = tmp_path / "models--org--name" / "snapshots"
    blobs = tmp_path / "models--org--name" / "blobs"
    blobs.mkdir(parents=True)
    run = {}
    for k in (0, 1):
        run[k] = snapshots / f"rev{k}"
        run[k].mkdir(parents=True)
        save_file(state(k), blobs / f"weights{k}")
        (blobs / f"config{k}").write_text(f"{k}")
        (run[k] / "model.safetensors").symlink_to(f"../../blobs/weights{k}")
        (run[k] / "config.json").symlink_to(f"../../blobs/config{k}")
        (run[k] / "notes.txt").symlink_to(tmp_path / "secret.txt")
    report = wfcast.forecast_checkpoint(LINE, run, 2, tmp_path / "out")
    assert report.carried == ("config.json",)
    assert report.left == ("notes.txt",)
    assert (tmp_path / "out" / "config.json").read_text() == "1"


def test_leftovers_of_any_target_go_and_a_pipe_does_not_hang(tmp_path):
    dead = tmp_path / ".other.safetensors.0123456789ab.tmp"
    dead.write_bytes(b"half")
    pipe = tmp_path / ".out.safetensors.0123456789ac.tmp"
    os.mkfifo(pipe)
    run = {k: state(k) for k in (0, 1)}
    wfcast.forecast_checkpoint(LINE, run, 2, tmp_path / "out.safetensors")
    assert sorted(p.name for p in tmp_path.iterdir()) == [pipe.name, "out.safetensors"]


KINDS = ["safetensors", "pt", "cut short", "bin folder", "shards", "dcp", "one large tensor"]


@pytest.mark.filterwarnings("ignore:.*single process")
@pytest.mark.parametrize("kind", KINDS)
def test_inputs_that_change_meanwhile(tmp_path, kind):
    """Written over in place while the first tensor is made: an error, and the output as it was."""
    torch = pytest.importorskip("torch")  # an extra
    from torch.distributed.checkpoint import state_dict_saver

    def put(k, path):
        values = {f"w{i}": np.full(1 << 15, k, np.float32) for i in range(4)}
        tensors = {n: torch.from_numpy(v) for n, v in values.items()}
        if kind == "safetensors":
            save_file(values, path)
        elif kind == "one large tensor":
            save_file({"w": np.full(1 << 24, k, np.float32)}, path)  # several blocks
        elif kind in ("pt", "cut short"):
            torch.save(tensors, path)
        elif kind == "dcp":
            state_dict_saver.save(tensors, checkpoint_id=path, no_dist=True)
        elif kind == "bin folder":
            path.mkdir(exist_ok=True)
            torch.save(tensors, path / "pytorch_model.bin")
        else:
            path.mkdir(exist_ok=True)
            files = {n: f"{n}.safetensors" for n in values}
            for n, file in files.items():
                save_file({n: values[n]}, path / file)
            index = json.dumps({"weight_map": files})
            (path / "model.safetensors.index.json").write_text(index)

    run = {k: tmp_path / f"in{k}" for k in (0, 1)}
    for k, path in run.items():
        put(k, path)
    put(100, tmp_path / "other")
    out = tmp_path / "out.safetensors"
    save_file(state(5), out)
    done = []

    def progress(*_):
        if done:
            return
        done.append(True)
        pairs = [(tmp_path / "other", run[1])]
        if run[1].is_dir():
            pairs = [(p, run[1] / p.name) for p in (tmp_path / "other").iterdir()]
            pairs = [pair for pair in pairs if not pair[0].name.startswith(".")]  # not .metadata
        for source, target in pairs:
            if kind == "cut short":
                os.truncate(target, 1000)
                continue
            with open(source, "rb") as new, open(target, "r+b") as old:
                shutil.copyfileobj(new, old)

    with pytest.raises(CheckpointError, match="changed while it was being read"):
        wfcast.forecast_checkpoint(
            wfcast.persistence((0, 1), (2,)), run, 2, out, overwrite=True, progress=progress
        )
    assert load_file(out)["a"][0] == 5
    assert not list(tmp_path.glob(".*.tmp"))


@pytest.mark.slow
def test_sigterm_ends_a_command_as_ctrl_c_does(tmp_path):
    for k in (0, 1):
        save_file({"w": np.zeros(1 << 26, np.float32)}, tmp_path / f"step-{k}.safetensors")
    command = [sys.executable, "-m", "wfcast", "forecast", "step-0.safetensors"]
    command += ["step-1.safetensors", "--farcaster", "line", "--step", "2", "-o", "out.safetensors"]
    child = subprocess.Popen(
        command,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(wfcast.__file__).parents[1])},
    )
    while child.poll() is None and not list(tmp_path.glob(".out.safetensors.*.tmp")):
        time.sleep(0.001)
    child.send_signal(signal.SIGTERM)
    _, said = child.communicate()
    if child.returncode == 0:
        pytest.skip("the forecast was there before the signal")
    assert child.returncode == 128 + signal.SIGTERM, said
    assert "wfcast: terminated" in said
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "step-0.safetensors",
        "step-1.safetensors",
    ]
