"""The command line, driven as a user drives it: in a process of its own."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import wfcast

SHAPES = {
    "embeddings.word_embeddings.weight": (40, 6),
    "layer.0.attention.q_lin.weight": (6, 6),
    "layer.0.ffn.lin1.bias": (17,),
    "layer.0.output_layer_norm.weight": (15,),
}
STEPS = (0, 10, 20, 30, 40)


def wf(*args: object, cwd: Path | str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "wfcast", *map(str, args)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def ok(*args: object, cwd: Path) -> Any:
    done = wf(*args, "--json", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def failed(*args: object, cwd: Path) -> str:
    """The one line that a failure prints."""
    done = wf(*args, cwd=cwd)
    assert done.returncode == 1, (done.returncode, done.stdout, done.stderr)
    assert done.stdout == ""
    last = done.stderr.splitlines()[-1]
    assert last.startswith("wfcast: error: ")
    assert "Traceback" not in done.stderr
    return last


def misused(*args: object, cwd: Path) -> str:
    done = wf(*args, cwd=cwd)
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    assert done.stdout == ""
    assert "usage: wfcast" in done.stderr
    return done.stderr


def drifting(seed: int) -> dict[int, dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    start = {n: rng.normal(size=s) for n, s in SHAPES.items()}
    drift = {n: rng.normal(size=s) / 40 for n, s in SHAPES.items()}
    return {t: {n: (start[n] + t * drift[n]).astype(np.float32) for n in SHAPES} for t in STEPS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    for k in range(3):
        (root / f"run-{k}").mkdir()
        for step, tensors in drifting(k).items():
            save_file(tensors, root / f"run-{k}" / f"step-{step:06d}.safetensors")
    (root / "hf").mkdir()
    for step, tensors in drifting(1).items():
        (root / "hf" / f"checkpoint-{step}").mkdir()
        save_file(tensors, root / "hf" / f"checkpoint-{step}" / "model.safetensors")
    return root


@pytest.fixture(scope="module")
def farcaster(folder: Path) -> Path:
    path = folder / "farcaster.safetensors"
    ok("fit", "run-0", "run-1", "--inputs", "0,20", "--targets", "30,40", "-o", path, cwd=folder)
    return path


def test_fit_writes_what_python_fits(folder: Path, farcaster: Path) -> None:
    loaded = wfcast.load(farcaster)
    runs = [{t: folder / f"run-{k}" / f"step-{t:06d}.safetensors" for t in STEPS} for k in (0, 1)]
    fitted = wfcast.ModelFarcaster(inputs=(0, 20), targets=(30, 40)).fit(runs)
    assert loaded.fingerprint() == fitted.fingerprint()
    assert loaded.info["beta"] == 1e-6


@pytest.mark.parametrize(
    "second",
    [("hf",), ("--run", *(f"{t}=run-1/step-{t:06d}.safetensors" for t in STEPS))],
    ids=["trainer-folders", "single-files"],
)
def test_fit_takes_runs_in_every_form(
    folder: Path, farcaster: Path, tmp_path: Path, second: tuple[str, ...]
) -> None:
    out = tmp_path / "f.safetensors"
    document = ok(
        "fit", "--inputs", "0,20", "--targets", "30,40", "-o", out, "run-0", *second, cwd=folder
    )
    assert document["runs"] == 2
    assert document["fingerprint"] == wfcast.load(farcaster).fingerprint()


def test_fit_passes_its_options_on(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "f.safetensors"
    document = ok(
        "fit",
        "run-0",
        "--inputs",
        "0,10,20",
        "--targets",
        "40",
        "--by",
        "all",
        "--loss",
        "squared_error",
        "--alpha",
        "0.5",
        "--no-intercept",
        "--threads",
        "1",
        "-o",
        out,
        cwd=folder,
    )
    assert list(document["coefficients"]) == ["*"]
    assert document["coefficients"]["*"]["intercept"] == [0.0]
    assert (document["beta"], document["inputs"]) == (0.0, [0, 10, 20])
    info = wfcast.load(out).info
    assert (info["alpha"], info["fit_intercept"]) == (0.5, False)


def test_forecast_is_predict(folder: Path, farcaster: Path, tmp_path: Path) -> None:
    out = tmp_path / "future.safetensors"
    files = {t: folder / "run-2" / f"step-{t:06d}.safetensors" for t in (0, 20)}
    document = ok(
        "forecast",
        *(f"{t}={p}" for t, p in files.items()),
        "--farcaster",
        farcaster,
        "--step",
        40,
        "-o",
        out,
        cwd=folder,
    )
    assert document["step"] == 40
    assert sorted(document["forecast"]) == sorted(SHAPES)
    expected = wfcast.load(farcaster).predict(files, step=40)
    written = load_file(out)
    for name in SHAPES:
        np.testing.assert_array_equal(written[name], expected[name])
        np.testing.assert_allclose(written[name], drifting(2)[40][name], atol=1e-4)


def test_compare_adds_up(folder: Path) -> None:
    a, b = (drifting(k)[40] for k in (0, 1))
    document = ok(
        "compare", "run-0/step-000040.safetensors", "run-1/step-000040.safetensors", cwd=folder
    )
    for name in SHAPES:
        difference = a[name].astype(np.float64) - b[name]
        entry = document["tensors"][name]
        assert entry["n"] == difference.size
        assert entry["mae"] == pytest.approx(np.abs(difference).mean(), rel=1e-6)
        assert entry["rmse"] == pytest.approx(np.sqrt((difference**2).mean()), rel=1e-6)
        assert entry["max_abs"] == pytest.approx(np.abs(difference).max(), rel=1e-6)
    assert set(document["kinds"]) == {"embedding", "attention", "layer norm", "bias"}
    for key in ("n", "sum_abs"):
        for parts in ("kinds", "tensors"):
            summed = sum(entry[key] for entry in document[parts].values())
            assert summed == pytest.approx(document["total"][key], rel=1e-12)


def test_inspect_tells_a_farcaster_from_a_checkpoint(folder: Path, farcaster: Path) -> None:
    document = ok("inspect", farcaster, cwd=folder)
    assert document["what"] == "farcaster"
    assert document["targets"] == [30, 40]
    document = ok("inspect", "run-0/step-000020.safetensors", cwd=folder)
    assert document["what"] == "checkpoint"
    assert {t["name"]: tuple(t["shape"]) for t in document["tensors"]} == SHAPES
    assert document["parameters"] == sum(int(np.prod(s)) for s in SHAPES.values())


def test_text_output(folder: Path, farcaster: Path) -> None:
    for args, word in (
        (("inspect", farcaster), "coefficients for step 40"),
        (("inspect", "run-0/step-000000.safetensors"), "4 tensors"),
        (("compare", *("run-0/step-000000.safetensors",) * 2), "embedding"),
    ):
        done = wf(*args, cwd=folder)
        assert done.returncode == 0
        assert word in done.stdout


def test_inspect_shows_a_run(folder: Path) -> None:
    document = ok("inspect", "hf", cwd=folder)
    assert document["what"] == "run"
    assert document["steps"] == list(STEPS)
    assert "a run of 5 checkpoints" in wf("inspect", "hf", cwd=folder).stdout


@pytest.mark.parametrize("name", ["line", "persistence"])
def test_baselines_need_no_file(folder: Path, tmp_path: Path, name: str) -> None:
    observed = [f"{t}=hf/checkpoint-{t}" for t in (0, 20)]
    out = tmp_path / "out.safetensors"
    ok("forecast", *observed, "--farcaster", name, "--step", 50, "-o", out, cwd=folder)
    make = {"line": wfcast.linear_trend, "persistence": wfcast.persistence}[name]
    run = {t: folder / "hf" / f"checkpoint-{t}" for t in (0, 20)}
    for tensor, value in make((0, 20), (50,)).predict(run).items():
        np.testing.assert_array_equal(load_file(out)[tensor], value)
    error = failed("forecast", "hf/checkpoint-0", "--farcaster", name, "-o", out, cwd=folder)
    assert "give --step, and the checkpoints as STEP=PATH" in error


def test_the_names_of_baselines_are_no_files(folder: Path, tmp_path: Path) -> None:
    run = {t: folder / "hf" / f"checkpoint-{t}" for t in (0, 20)}
    pair = [f"{t}={path}" for t, path in run.items()]
    for name, make in {"line": wfcast.linear_trend, "persistence": wfcast.persistence}.items():
        want = make((0, 20), (40,)).predict(run)
        for out in (name, "other"):  # the second time there is a folder of that name
            ok("forecast", *pair, "--farcaster", name, "--step", 40, "-o", out, cwd=tmp_path)
            got = load_file(tmp_path / out / "model.safetensors")
            assert all(np.array_equal(got[tensor], value) for tensor, value in want.items())
        shutil.rmtree(tmp_path / "other")


def test_a_farcaster_is_not_replaced_by_a_forecast(
    folder: Path, farcaster: Path, tmp_path: Path
) -> None:
    own = tmp_path / "farcaster.safetensors"
    own.write_bytes(farcaster.read_bytes())
    pair = (folder / "hf" / "checkpoint-0", folder / "hf" / "checkpoint-20")
    rest = ("--farcaster", own, "--step", 40, "-o", "farcaster.safetensors")
    assert "it is the farcaster" in failed("forecast", *pair, *rest, cwd=tmp_path)
    assert own.read_bytes() == farcaster.read_bytes()
    rest = ("--farcaster", "Line", "--step", 40, "-o", "x.safetensors")
    message = failed("forecast", *pair, *rest, cwd=tmp_path)
    assert "--farcaster: there is no file 'Line'; 'line' and 'persistence' need none" in message


def test_torch_formats_name_their_extra(folder: Path, tmp_path: Path) -> None:
    for more in (["-o", "x", "--format", "dcp"], ["-o", "x.pt"]):
        code = (
            "import sys; from wfcast.cli import main\n"
            "sys.modules['torch'] = None\n"
            f"sys.exit(main({['forecast', *_pair(folder), *more]!r}))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert "needs torch, which is not installed (the extra 'torch'" in done.stderr
        assert not list(tmp_path.iterdir())


def _pair(folder: Path) -> list[str]:
    steps = [f"{step}={folder}/hf/checkpoint-{step}" for step in (0, 20)]
    return [*steps, "--farcaster", "line", "--step", "40"]


def test_inspect_shows_a_checkpoint_without_weights(tmp_path: Path) -> None:
    save_file({"ids": np.arange(3)}, tmp_path / "x.safetensors")
    (tensor,) = ok("inspect", "x.safetensors", cwd=tmp_path)["tensors"]
    assert (tensor["name"], tensor["rms"]) == ("ids", None)


def test_fit_looks_at_its_output_before_it_reads_the_runs(folder: Path, tmp_path: Path) -> None:
    done = wf("fit", "run-0", "--inputs", "0,20", "--targets", "30,40", "-o", "no/f", cwd=folder)
    assert done.returncode == 1
    assert "there is no folder 'no'" in done.stderr


def test_inspect_counts_what_is_not_finite(tmp_path: Path) -> None:
    save_file(
        {"w": np.array([1, np.nan, -np.inf, 2], np.float32), "i": np.arange(3)},
        tmp_path / "x.safetensors",
    )
    document = ok("inspect", "x.safetensors", cwd=tmp_path)
    assert [(t["name"], t["n_nonfinite"]) for t in document["tensors"]] == [("i", 0), ("w", 2)]


@pytest.mark.parametrize(
    "args",
    [
        (),
        ("nonsense",),
        ("fit",),
        ("fit", "--inputs", "0,20", "--targets", "30"),
        ("fit", "run-0", "--inputs", "20,0", "--targets", "30"),
        ("fit", "run-0", "--inputs", "zero", "--targets", "30"),
        ("fit", "run-0", "--inputs", "20", "0", "--targets", "30"),
        ("fit", "--inputs", "run-0", "--targets", "30"),
        ("fit", "run-0", "--inputs", "0", "--targets", "30", "--by", "layer"),
        ("fit", "--run", "no-step.safetensors", "--inputs", "0", "--targets", "30"),
        ("forecast", "20=", "--farcaster", "f", "-o", "x"),
        ("forecast", "a", "b", "--farcaster", "f", "-o", "x", "--shard-size", "5 apples"),
        ("forecast", "0=a"),
        ("compare", "only-one"),
        ("inspect",),
        ("demo", "--size", "huge"),
        ("demo", "--threads", "0"),
        ("demo", "--seed", "-1"),
    ],
    ids=" ".join,
)
def test_bad_usage_exits_2(folder: Path, args: tuple[str, ...]) -> None:
    before = sorted(folder.rglob("*"))
    said = misused(*args, cwd=folder)
    assert ": error: " in said.splitlines()[-1]
    assert sorted(folder.rglob("*")) == before


def test_failures_exit_1_with_one_line(folder: Path, farcaster: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.safetensors"
    steps = ("--inputs", "0,20", "--targets", "30,40", "-o", out)
    assert "nowhere" in failed("fit", "nowhere", *steps, cwd=folder)
    assert "holds no checkpoints" in failed("fit", tmp_path, *steps, cwd=folder)
    assert "lacks step 50" in failed(
        "fit", "run-0", "--inputs", "0,20", "--targets", "50", "-o", out, cwd=folder
    )
    assert "step 0 twice" in failed("fit", "--run", "0=a", "0=b", *steps, cwd=folder)
    pairs = ("0=run-2/step-000000.safetensors", "20=run-2/step-000020.safetensors")
    assert "expected one of the targets 30, 40" in failed(
        "forecast", *pairs, "--farcaster", farcaster, "--step", 35, "-o", out, cwd=folder
    )
    assert "holds no forecaster" in failed(
        "forecast", *pairs, "--farcaster", "run-0/step-000000.safetensors", "-o", out, cwd=folder
    )
    assert "there is no file" in failed("inspect", "missing.safetensors", cwd=folder)
    (tmp_path / "broken.safetensors").write_bytes(b"abc")
    assert "broken.safetensors" in failed("inspect", tmp_path / "broken.safetensors", cwd=folder)
    assert "only in" in failed("compare", farcaster, "run-0/step-000000.safetensors", cwd=folder)
    assert not out.exists()


def test_help_and_version(tmp_path: Path) -> None:
    for command in ((), ("fit",), ("forecast",), ("inspect",), ("compare",), ("demo",)):
        done = wf(*command, "--help", cwd=tmp_path)
        assert done.returncode == 0
        assert done.stdout.startswith("usage: wfcast")
    assert wf("--version", cwd=tmp_path).stdout.split() == ["wfcast", wfcast.__version__]


@pytest.mark.skipif(os.name != "posix", reason="a pipe whose reader has gone")
def test_closed_stdout_is_quiet(folder: Path, farcaster: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "wfcast", "inspect", str(farcaster)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=folder,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == b""
    assert process.wait(timeout=60) == 1


def test_the_demo_names_its_extra(tmp_path: Path) -> None:
    code = (
        "import sys; from wfcast.cli import main\n"
        "sys.modules['torch'] = sys.modules['matplotlib'] = None\n"
        "sys.exit(main(['demo', '--out', 'x']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith("wfcast: error: the demo needs torch")
    assert "matplotlib" in line
    assert "the extra 'demo' of wfcast" in line
    assert not (tmp_path / "x").exists()


# ---- as scripts use it ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "steps",
    [
        ("run-0", "run-1", "--inputs", 0, 20, "--targets", 30, 40),
        ("--inputs", 0, "20", "--targets", "30,40", "run-0", "run-1"),
        ("run-0", "--inputs", "0,20", "run-1", "--targets", "30,", 40),
    ],
)
def test_steps_of_a_fit_in_every_form(folder, farcaster, tmp_path, steps):
    if "30," in steps:
        misused("fit", *steps, "-o", tmp_path / "f", cwd=folder)
        return
    document = ok("fit", *steps, "-o", tmp_path / "f", cwd=folder)
    assert document["runs"] == 2
    assert document["fingerprint"] == wfcast.load(farcaster).fingerprint()


def test_fit_prints_a_summary(folder, tmp_path):
    arguments = ("fit", "run-0", "--inputs", "0,20", "--targets", "30,40", "-o", tmp_path / "f")
    done = wf(*arguments, "-q", cwd=folder)
    assert done.returncode == 0
    assert done.stderr == ""
    assert "4 fits, the largest certified gap " in done.stdout
    assert "fitted to 1 run; wfcast inspect " in done.stdout
    assert "intercept" not in done.stdout


def test_a_whole_run_to_forecast_from(folder, farcaster, tmp_path):
    run = {t: folder / "hf" / f"checkpoint-{t}" for t in STEPS}
    for name, make, inputs in (
        ("line", wfcast.linear_trend, (30, 40)),
        ("persistence", wfcast.persistence, (40,)),
    ):
        out = tmp_path / f"{name}.safetensors"
        ok("forecast", "hf", "--farcaster", name, "--step", 50, "-o", out, cwd=folder)
        for tensor, value in make(inputs, (50,)).predict(run).items():
            np.testing.assert_array_equal(load_file(out)[tensor], value)
    out = tmp_path / "fitted.safetensors"
    ok("forecast", "hf", "--farcaster", farcaster, "--step", 40, "-o", out, cwd=folder)
    for tensor, value in wfcast.load(farcaster).predict(run, 40).items():
        np.testing.assert_array_equal(load_file(out)[tensor], value)
    out = tmp_path / "early.safetensors"
    error = failed("forecast", "hf", "--farcaster", "line", "--step", 10, "-o", out, cwd=folder)
    assert "the run has 1 checkpoints before step 10, expected 2 for --farcaster line" in error
    assert not out.exists()


def test_names_say_the_steps_of_a_baseline(folder, tmp_path):
    run = {t: folder / "hf" / f"checkpoint-{t}" for t in (10, 30)}
    want = wfcast.linear_trend((10, 30), (50,)).predict(run)
    rest = ("--farcaster", "line", "--step", 50, "-o")
    for given in (
        ("hf/checkpoint-30", "hf/checkpoint-10"),
        ("hf/checkpoint-10/model.safetensors", "30=hf/checkpoint-30"),
        ("run-1/step-000010.safetensors", "run-1/step-000030.safetensors"),
    ):
        out = tmp_path / "out.safetensors"
        ok("forecast", *given, *rest, out, cwd=folder)
        for tensor, value in want.items():
            np.testing.assert_array_equal(load_file(out)[tensor], value)
    for name in ("epoch=1.safetensors", "last.safetensors", "1-2.safetensors"):
        shutil.copy(run[30] / "model.safetensors", tmp_path / name)
        error = failed("forecast", run[10], name, *rest, "out", cwd=tmp_path)
        assert f"the name of {name!r} says no step, or not which: give it as STEP=PATH" in error


def test_swapped_inputs(folder, farcaster, tmp_path):
    first, second = "hf/checkpoint-0", "hf/checkpoint-20"
    out = tmp_path / "out.safetensors"
    rest = ("--farcaster", farcaster, "--step", 40, "-o", out)
    assert "give them in order" in failed("forecast", second, first, *rest, cwd=folder)
    swapped = (f"0={second}", f"20={first}")
    for command in (
        ("forecast", *swapped, *rest),
        ("forecast", *swapped, "--farcaster", "line", *rest[2:]),
        ("anneal", *swapped, "-o", out),
        ("extrapolate", *swapped, "-o", out),
        ("fit", "--run", *swapped, "--inputs", 0, "--targets", 20, "-o", tmp_path / "f"),
    ):
        error = failed(*command, cwd=folder)
        assert "'hf/checkpoint-20' is given as step 0, but its name says 20" in error
    assert not list(tmp_path.iterdir())


def test_what_is_left_out_is_said_at_the_end(tmp_path):
    run = step_folders(tmp_path / "run", (10, 20, 30, 40))
    (run / "checkpoint-40" / "model.safetensors").write_bytes(b"torn")
    for command in (
        ("inspect", run),
        ("fit", run, "--inputs", 10, "--targets", 20, "-o", tmp_path / "f"),
        ("forecast", run, "--farcaster", "line", "--step", 50, "-o", tmp_path / "a"),
        ("anneal", run, "-o", tmp_path / "b"),
        ("extrapolate", run, "-o", tmp_path / "c"),
    ):
        done = wf(*command, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "warning: left out" in done.stderr
        last = done.stdout.splitlines()[-1]
        assert last.startswith("left out, as if it were not there: ")
        assert "checkpoint-40" in last
        assert "cannot be read as a safetensors file" in last


def test_layers_are_in_the_order_of_their_numbers(tmp_path):
    names = [f"layer.{k}.weight" for k in (0, 1, 2, 9, 10, 11)]
    for step in (0, 10):
        tensors = {name: np.full(3, step, np.float32) for name in names}
        save_file(tensors, tmp_path / f"step-{step}.safetensors")
    pair = ("step-0.safetensors", "step-10.safetensors")
    fit = ("fit", ".", "--inputs", 0, "--targets", 10, "-o", "f")
    assert wf(*fit, cwd=tmp_path).returncode == 0
    for command in (("inspect", pair[0]), ("compare", *pair), ("inspect", "f")):
        shown = wf(*command, cwd=tmp_path).stdout
        assert re.findall(r"^layer\.\d+\.weight", shown, re.MULTILINE) == names


# ---- what a new user's hand may slip on ---------------------------------------------------------


def step_folders(path, steps=(10, 20)):
    for step in steps:
        (path / f"checkpoint-{step}").mkdir(parents=True)
        tensors = {
            "a.weight": np.full((3, 2), float(step), np.float32),
            "a.bias": np.full(3, float(step), np.float32),
        }
        save_file(tensors, path / f"checkpoint-{step}" / "model.safetensors")
    return path


def line(path, *more):
    inputs = [f"{s}={path / f'checkpoint-{s}'}" for s in (10, 20)]
    return wf("forecast", *inputs, "--farcaster", "line", "--step", 40, *more, cwd="/")


def test_a_run_is_not_replaced_by_a_forecast(tmp_path):
    folder = step_folders(tmp_path / "run")
    for out, reason in [
        (folder, "an input is in one of its folders"),
        (tmp_path, "an input is in one of its folders"),
        (step_folders(tmp_path / "other"), "it holds other checkpoints, such as checkpoint-10"),
    ]:
        result = line(folder, "-o", str(out), "--overwrite")
        assert result.returncode == 1
        assert reason in result.stderr
    assert (folder / "checkpoint-10" / "model.safetensors").exists()
    result = wf(
        *("forecast", f"10={folder / 'checkpoint-10'}", f"20={folder / 'checkpoint-20'}"),
        *("--farcaster", "line", "--step", "40", "-o", ".", "--overwrite"),
        cwd=tmp_path / "other" / "checkpoint-10",
    )
    assert "it is the current folder" in result.stderr
    assert line(folder, "-o", str(folder / "checkpoint-20"), "--overwrite").returncode == 0


def test_fit_replaces_nothing_but_a_farcaster(tmp_path):
    folder = step_folders(tmp_path / "run", (0, 20, 60))
    target = folder / "checkpoint-60" / "model.safetensors"
    before = target.read_bytes()
    arguments = ("fit", str(folder), "--inputs", "0,20", "--targets", "60", "-o")
    result = wf(*arguments, target, cwd=tmp_path)
    assert result.returncode == 1
    assert "it is there and is no farcaster" in result.stderr
    assert target.read_bytes() == before
    for _ in range(2):
        assert wf(*arguments, "fc.safetensors", cwd=tmp_path).returncode == 0


def test_checkpoints_that_no_step_asks_for_do_not_matter(tmp_path):
    folder = step_folders(tmp_path / "run", (10, 20, 30))
    save_file({"other": np.zeros(2)}, tmp_path / "other.safetensors")
    (tmp_path / "0.safetensors").touch()
    pairs = [f"{step}={folder / f'checkpoint-{step}'}" for step in (10, 20, 30)]
    fitted = tmp_path / "fc.safetensors"
    steps = ("--inputs", "10,20", "--targets", "30", "-o", fitted)
    ok("fit", "--run", "0=0.safetensors", *pairs, *steps, cwd=tmp_path)
    given = (*pairs[:2], "40=other.safetensors", "50=nowhere", "--farcaster", fitted)
    assert ok("forecast", *given, "-o", "out", cwd=tmp_path)["step"] == 30


def test_patterns_that_match_nothing(tmp_path):
    folder = step_folders(tmp_path / "run")
    for option in ("--include", "--exclude"):
        result = line(folder, "-o", str(tmp_path / "out"), option, "*.bias", "typo*")
        assert result.returncode == 1
        assert f"{option[2:]}: the pattern 'typo*' matches none of the 2 tensors" in result.stderr
    assert not (tmp_path / "out").exists()


def test_patterns_of_a_repeated_option_add_up(tmp_path):
    folder = step_folders(tmp_path / "run")
    more = ("--exclude", "*.bias", "--exclude", "*.weight", "--json")
    result = line(folder, "-o", str(tmp_path / "out"), *more)
    assert json.loads(result.stdout)["forecast"] == []
    assert "no tensor is forecast: the output is a copy of" in result.stderr


def on_a_terminal(command: list[str], cwd: Path) -> bytes:
    """What a command says on a stderr that is a terminal."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 40, 120, 0, 0))
    subprocess.run(
        command, cwd=cwd, stdout=subprocess.DEVNULL, stderr=theirs, check=True, timeout=120
    )
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # the end, once nobody writes to it
        while piece := os.read(ours, 1 << 16):
            shown += piece
    os.close(ours)
    return shown


def test_a_terminal_shows_bytes_their_rate_and_the_time_left(tmp_path: Path) -> None:
    run = {step: tmp_path / f"{step}.safetensors" for step in (0, 10)}
    for step, path in run.items():
        tensors = {f"w{i}": np.full(1 << 18, step + i, np.float32) for i in range(6)}
        save_file(tensors, path)
    command = [sys.executable, "-m", "wfcast", "forecast"]
    command += [f"{step}={path}" for step, path in run.items()]
    command += ["--farcaster", "line", "--step", "30", "-o", str(tmp_path / "out.safetensors")]
    bars = on_a_terminal(command, tmp_path).decode().split("\r")
    assert re.search(r"forecast: +0%.* 0\.00/6\.29M \[00:00<\?", bars[1])
    assert re.search(r"forecast: 100%.* 6\.29M/6\.29M \[\d\d:\d\d<00:00, .*B/s\]", bars[-2])
    assert on_a_terminal([*command, "-q"], tmp_path) == b""
