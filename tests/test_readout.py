"""Averages and extrapolations of runs, file to file, and judges that choose among them."""

from __future__ import annotations

import json
import os
import select
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import wfcast
from wfcast.readout import CommandJudge

STEPS = tuple(range(100, 1100, 100))
PROFILES = (1, 10.0, "mean", "minus-sqrt")


def states(steps: tuple[int, ...] = STEPS) -> dict[int, dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    w, v = rng.normal(size=(2, 50, 7))
    return {
        t: {"a.weight": (w + v * np.sqrt(t) / 30).astype(np.float32), "ids": np.arange(3)}
        for t in steps
    }


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    for step, tensors in states().items():
        save_file(tensors, folder / f"step-{step}.safetensors")
    return folder


def distance(to: np.ndarray) -> Callable[[Path], float]:
    """A judge that likes what is near some weights."""
    return lambda path: float(np.abs(load_file(path)["a.weight"] - to).mean())


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def wf(*args: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "wfcast", *map(str, args)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


# ---- what is written ----------------------------------------------------------------------------


def torch_state(step: int) -> dict[str, Any]:
    torch = pytest.importorskip("torch")
    made = torch.Generator().manual_seed(step)
    wide = torch.randn(64, 33, generator=made)
    return {
        "wide": wide,
        "half": wide.bfloat16(),
        "layer.bias": torch.randn(5, generator=made),
        "count": torch.tensor([step]),
    }


def save_as(kind: str, state: dict[str, Any], path: Path) -> None:
    import safetensors.torch
    import torch

    if kind == "file":
        safetensors.torch.save_file(state, path)
    elif kind == "shards":
        path.mkdir()
        safetensors.torch.save_file({"wide": state["wide"]}, path / "model-1-of-2.safetensors")
        rest = {name: value for name, value in state.items() if name != "wide"}
        safetensors.torch.save_file(rest, path / "model-2-of-2.safetensors")
        where = {n: f"model-{1 if n == 'wide' else 2}-of-2.safetensors" for n in state}
        index = {"metadata": {}, "weight_map": where}
        (path / "model.safetensors.index.json").write_text(json.dumps(index))
        (path / "config.json").write_text("{}")
    elif kind == "torch":
        torch.save({"model": state, "epoch": 3}, path)
    else:
        from torch.distributed.checkpoint import state_dict_saver

        state_dict_saver.save(state, checkpoint_id=path, no_dist=True)


def load_as(kind: str, path: Path) -> dict[str, Any]:
    import safetensors.torch
    import torch

    if kind == "file":
        return dict(safetensors.torch.load_file(path))
    if kind == "shards":
        where = json.loads((path / "model.safetensors.index.json").read_text())["weight_map"]
        return {n: safetensors.torch.load_file(path / file)[n] for n, file in where.items()}
    if kind == "torch":
        return dict(torch.load(path, weights_only=True)["model"])
    from torch.distributed.checkpoint import state_dict_loader

    state = {name: torch.empty_like(value) for name, value in torch_state(100).items()}
    state_dict_loader.load(state, checkpoint_id=path, no_dist=True)
    return state


@pytest.mark.filterwarnings("ignore:.*single process:UserWarning")
@pytest.mark.parametrize("kind", ["file", "shards", "torch", "dcp"])
def test_every_format_against_float64(tmp_path: Path, kind: str) -> None:
    torch = pytest.importorskip("torch")
    suffix = {"file": ".safetensors", "torch": ".pt"}.get(kind, "")
    (tmp_path / "run").mkdir()
    for step in STEPS:
        save_as(kind, torch_state(step), tmp_path / "run" / f"checkpoint-{step}{suffix}")
    out = tmp_path / f"out{suffix}"
    seen = {}

    def judge(path: Path) -> float:
        seen[path.parent.name] = load_as(kind, path)
        return float(path.parent.name != "profile-minus-sqrt")

    report = wfcast.anneal_run(tmp_path / "run", out, PROFILES, judge=judge)
    assert report.chosen == "profile minus-sqrt"
    assert names(tmp_path) == sorted([out.name, "run"])
    kept = load_as(kind, out)
    assert all(torch.equal(kept[name], seen["profile-minus-sqrt"][name]) for name in kept)
    assert all(torch.equal(seen["latest"][name], v) for name, v in torch_state(1000).items())
    for profile in PROFILES:
        coef = wfcast.annealed(STEPS, profile).coef["*"][0]
        got = seen[f"profile-{str(profile).removesuffix('.0')}"]
        assert torch.equal(got["count"], torch_state(1000)["count"])
        for name in ("wide", "half", "layer.bias"):
            inputs = [torch_state(step)[name] for step in STEPS]
            wanted = sum(a * x.double() for a, x in zip(coef, inputs, strict=True))
            assert got[name].dtype == inputs[0].dtype
            largest = max(x.abs().max() for x in inputs).item()
            eps = torch.finfo(inputs[0].dtype).eps
            error = (got[name].double() - wanted).abs()
            assert (error <= eps * wanted.abs() + 1e-6 * largest).all()


def test_one_profile_is_the_operator(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    report = wfcast.anneal_run(run, out)
    expected = wfcast.annealed(STEPS, 10.0).predict(states())
    np.testing.assert_array_equal(load_file(out)["a.weight"], expected["a.weight"])
    assert (report.step, report.chosen, report.candidates[0]["number"]) == (
        1000,
        "profile 10",
        None,
    )
    assert sum(report.weights.values()) == pytest.approx(1)
    with safe_open(out, "np") as file:
        said = json.loads(file.metadata()["wfcast.forecast"])
    assert (said["step"], said["strategy"], said["profile"]) == (1000, "annealed", 10)
    assert tuple(map(int, said["inputs"])) == STEPS
    for one in (np.array(10.0), np.float32(10)):
        assert wfcast.anneal_run(run, out, one).weights == report.weights


def test_any_decay_and_states_in_memory(tmp_path: Path) -> None:
    def half(x: float) -> float:
        return 1 - x / 2

    report = wfcast.anneal_run(states(), tmp_path / "x.safetensors", half)
    assert report.chosen == "profile half"
    expected = wfcast.annealed(STEPS, half).predict(states())
    got = load_file(tmp_path / "x.safetensors")
    np.testing.assert_array_equal(got["a.weight"], expected["a.weight"])


@pytest.mark.parametrize("strategy", ["line", "two-point", "low-rank"])
def test_extrapolations_are_those_of_the_operator(run: Path, tmp_path: Path, strategy: str) -> None:
    distances = (1.0, 0.5, 0.25)
    expected = {a: wfcast.extrapolate(states(), a, strategy).predict(states()) for a in distances}
    seen = {}

    def judge(path: Path) -> float:
        seen[path.parent.name] = load_file(path)["a.weight"]
        return len(seen) % 2  # the second is the first with the least

    out = tmp_path / "out.safetensors"
    report = wfcast.extrapolate_run(run, out, distances, strategy=strategy, judge=judge)
    assert (report.chosen, report.step) == ("ahead 0.5", 1450)
    for ahead, weights in expected.items():
        np.testing.assert_allclose(
            seen[f"ahead-{ahead:g}"], weights["a.weight"], rtol=1e-6, atol=1e-6
        )
    np.testing.assert_array_equal(load_file(out)["a.weight"], seen["ahead-0.5"])
    assert bool(report.weights) == (strategy != "low-rank")


def test_a_rank_of_its_own(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    wfcast.extrapolate_run(run, out, 1.0, strategy="low-rank", rank=1)
    expected = wfcast.low_rank(states(), (1900,), rank=1).predict(states())
    np.testing.assert_array_equal(load_file(out)["a.weight"], expected["a.weight"])


def test_options_of_the_output(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = wfcast.anneal_run(
        run, out, shard_size=1000, exclude="ids", judge=lambda path: len(names(path))
    )
    assert report.written.copied == {"ids": "int64"}
    assert "model.safetensors.index.json" in names(out)
    with pytest.raises(wfcast.CheckpointError, match="overwrite=True"):
        wfcast.anneal_run(run, out, shard_size=1000, judge=lambda path: 0)
    report = wfcast.anneal_run(
        run, out, shard_size=10**9, overwrite=True, judge=lambda path: len(names(path))
    )
    assert names(out) == ["model.safetensors"]
    assert names(tmp_path) == ["out", "run"]


def test_adapters_stay_adapters(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        folder = tmp_path / "run" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        save_file(
            {
                "q.lora_A.weight": np.full((2, 3), step, np.float32),
                "q.lora_B.weight": np.ones((3, 2), np.float32),
            },
            folder / "adapter_model.safetensors",
        )
        (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "base"}')
    wfcast.anneal_run(tmp_path / "run", tmp_path / "out", "mean")
    assert names(tmp_path / "out") == ["adapter_config.json", "adapter_model.safetensors"]
    made = load_file(tmp_path / "out" / "adapter_model.safetensors")
    product = made["q.lora_B.weight"] @ made["q.lora_A.weight"]
    np.testing.assert_allclose(product, np.full((3, 3), 40), rtol=1e-6)


# ---- which checkpoints --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "kept", "start"),
    [
        ({}, STEPS, 0),
        ({"window": 1}, STEPS, 0),
        ({"window": 0.5}, (500, 600, 700, 800, 900, 1000), 400),
        ({"window": 0.1}, (900, 1000), 800),
        ({"last": 3}, (800, 900, 1000), 700),
        ({"last": 99}, STEPS, 0),
        ({"every": 250}, (100, 400, 700, 1000), 0),
        ({"every": 300, "window": 0.7}, (400, 700, 1000), 200),
        ({"every": 200, "last": 4}, (800, 1000), 600),
    ],
    ids=str,
)
def test_a_selection(tmp_path: Path, options: dict[str, Any], kept: Any, start: int) -> None:
    report = wfcast.anneal_run(states(), tmp_path / "x.safetensors", 2.0, **options)
    coef = wfcast.annealed(kept, 2.0, start=start).coef["*"][0]
    assert report.weights == pytest.approx(dict(zip(kept, coef, strict=True)), rel=1e-12)


def test_what_weighs_nothing_is_not_read(tmp_path: Path) -> None:
    run = states((0, *STEPS))
    for step in (0, 100, 200, 300):
        run[step]["a.weight"][...] = np.nan
    out = tmp_path / "out.safetensors"
    report = wfcast.anneal_run(run, out, (40, 60), judge=lambda path: 0.0)
    assert list(report.weights) == [s for s in STEPS if s > 400]
    assert sum(report.weights.values()) == pytest.approx(1, abs=1e-15)
    with pytest.raises(wfcast.WfcastError, match="NaN"):
        wfcast.anneal_run(run, out, (40, "mean"), judge=lambda path: 0.0)


def test_forecasts_in_the_folder_of_a_run_are_left_out(run: Path, tmp_path: Path) -> None:
    wfcast.anneal_run(run, run / "annealed-1500.safetensors")
    with pytest.warns(UserWarning, match="a forecast is no state of a run: .*annealed-1500"):
        report = wfcast.anneal_run(run, tmp_path / "out.safetensors", "mean")
    assert tuple(report.weights) == STEPS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0.5, "last": 3}, "window and last are both given"),
        ({"window": 0}, "window is 0, expected a share of the steps"),
        ({"window": 1.5}, "window is 1.5"),
        ({"window": 0.01}, "one checkpoint with window=0.01 of its 10, step 1000, expected two"),
        ({"last": 1}, "one checkpoint with last=1 of its 10"),
        ({"last": 0}, "last is 0, expected an integer above 0"),
        ({"every": 2.5}, "every is 2.5"),
        ({"every": 5000, "window": 0.5}, "with window=0.5 and every=5000 of its 10"),
        ({"profile": []}, r"profile is \[\], expected one value at least"),
        ({"profile": "cosine"}, "profile is 'cosine'"),
        ({"profile": (1, "mean")}, "2 values of profile are given and no judge"),
        ({"profile": (1, 1.0), "judge": len}, "profile 1 is given twice"),
        ({"maximize": True}, "maximize is given without a judge"),
        ({"judge_timeout": 3}, "judge_timeout is given without a judge"),
        ({"judge": len, "judge_timeout": 3}, "judge_timeout goes with a command"),
        ({"judge": "echo {}", "judge_timeout": 0}, "judge_timeout is 0, expected seconds above 0"),
        ({"judge": 3}, "judge is a int, expected a function of a path, or a command"),
        ({"judge": "python eval.py"}, r"has no \{\}, which stands for the path"),
        ({"judge": "python 'eval.py {}"}, "is no command: No closing quotation"),
        ({"judge": "no-such-program {}"}, "there is no program 'no-such-program'"),
        ({"n_threads": 0}, "n_threads is 0"),
    ],
    ids=str,
)
def test_parameters_without_meaning(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(wfcast.WfcastError, match=message):
        wfcast.anneal_run(states(), tmp_path / "x.safetensors", **options)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ahead": -1}, "ahead is -1, expected a finite number of histories above 0"),
        ({"ahead": (0.5, 0.5001), "judge": len}, "both lead to step 1450, expected different"),
        ({"strategy": "cubic"}, "strategy is 'cubic'"),
        ({"strategy": "low-rank", "rank": 11}, "rank is 11"),
        ({"last": 1}, "one checkpoint with last=1"),
    ],
    ids=str,
)
def test_extrapolations_without_meaning(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(wfcast.WfcastError, match=message):
        wfcast.extrapolate_run(states(), tmp_path / "x.safetensors", **options)
    assert names(tmp_path) == []


def test_runs_that_do_not_go_together(tmp_path: Path) -> None:
    run: Any = states()
    run[500]["b.weight"] = run[500]["a.weight"]
    with pytest.raises(wfcast.CheckpointError, match=r"only in step 500: 'b\.weight'"):
        wfcast.anneal_run(run, tmp_path / "x.safetensors", judge=len)
    with pytest.warns(UserWarning, match=r"b\.weight"):
        report = wfcast.anneal_run(run, tmp_path / "x.safetensors", partial=True)
    assert (report.written.forecast, report.written.skipped) == (("a.weight",), ("b.weight",))
    with pytest.raises(wfcast.WfcastError, match="the run has one checkpoint, step 100"):
        wfcast.anneal_run({100: run[100]}, tmp_path / "y.safetensors")
    with pytest.raises(wfcast.CheckpointError, match="there is no folder"):
        wfcast.anneal_run(states(), tmp_path / "no" / "y.safetensors", judge=len)


def test_a_disk_too_small_for_all_candidates(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = sum(a.nbytes for a in states()[100].values())
    free = [3 * size]
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=free[0]))
    out = tmp_path / "out.safetensors"
    wfcast.anneal_run(run, out, (1, 2), judge=lambda path: 0)
    for free[0], profiles, message in (
        (3 * size - 1, (1, 2), f"3 candidates.* take {3 * size:,} bytes .* {3 * size - 1:,} are"),
        (size - 1, 1, f"it takes {size:,} bytes"),
    ):
        with pytest.raises(wfcast.CheckpointError, match=message):
            wfcast.anneal_run(run, out, profiles, judge=len if profiles != 1 else None)


# ---- judges -------------------------------------------------------------------------------------


@pytest.mark.parametrize("maximize", [False, True])
def test_the_best_is_kept(run: Path, tmp_path: Path, maximize: bool) -> None:
    mean = wfcast.annealed(STEPS, "mean").predict(states())["a.weight"]
    sign = -1 if maximize else 1
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"old")
    out.chmod(0o640)
    report = wfcast.anneal_run(
        run,
        out,
        PROFILES,
        judge=lambda path: np.float32(sign * distance(mean)(path)),
        maximize=maximize,
    )
    assert report.chosen == "profile mean"
    assert [c["name"] for c in report.candidates] == [
        *("profile 1", "profile 10", "profile mean", "profile minus-sqrt", "latest")
    ]
    best = (max if maximize else min)(report.candidates, key=lambda c: c["number"])
    assert best["name"] == "profile mean"
    np.testing.assert_array_equal(load_file(out)["a.weight"], mean)
    assert out.stat().st_mode & 0o777 == 0o640
    assert names(tmp_path) == ["out.safetensors", "run"]


def test_the_latest_may_be_the_best(tmp_path: Path) -> None:
    run = states()
    run[1000]["a.weight"][0, 0] = -0.0  # which sums would lose
    out = tmp_path / "out.safetensors"
    report = wfcast.anneal_run(run, out, (1, 5), judge=distance(run[1000]["a.weight"]))
    assert (report.chosen, report.step) == ("latest", 1000)
    assert load_file(out)["a.weight"].tobytes() == run[1000]["a.weight"].tobytes()
    assert "the latest checkpoint is the best: the output is a copy of it" in str(report)
    equal = wfcast.anneal_run(run, out, (1, 5), judge=lambda path: 3)
    assert equal.chosen == "profile 1"


def test_an_input_may_be_the_output(run: Path) -> None:
    last = run / "step-1000.safetensors"
    expected = wfcast.annealed(STEPS, 1).predict(states())["a.weight"]
    wfcast.anneal_run(run, last, (1, 20), judge=distance(expected), overwrite=True)
    np.testing.assert_array_equal(load_file(last)["a.weight"], expected)
    assert names(run) == sorted(f"step-{step}.safetensors" for step in STEPS)


@pytest.mark.parametrize(
    ("printed", "number"),
    [
        ("0.25", 0.25),
        ("step 3 of 3\nloss: -1.5e-3\n", -1.5e-3),
        ("loss 2.5, in 12ms on cuda:0x1f", 2.5),
        ("acc=.75", 0.75),
        ("perplexity 12.", 12.0),
        ("| 7 | checkpoint-500", 7.0),
        ("\x1b[32;1m4.5\x1b[0m done in v1.2.3", 4.5),
        ('{"loss": 1E+2}', 100.0),
        ("3 \xff", 3.0),
    ],
)
def test_the_last_number_that_is_printed(tmp_path: Path, printed: str, number: float) -> None:
    (tmp_path / "printed").write_bytes(printed.encode("latin-1"))
    command = shlex.join(["sh", "-c", 'echo 99 >&2; cat "$1/printed"', "sh", "{}"])
    assert CommandJudge(command)(tmp_path) == number


def raises(path: Path) -> float:
    raise RuntimeError("out of memory")


def judge_that(script: str) -> str:
    """A command that runs a line of Python unless it is about profile 1."""
    line = f"import sys, os, signal\nif 'profile-1/' in sys.argv[1]: print(5); sys.exit()\n{script}"
    return shlex.join([sys.executable, "-S", "-c", line, "{}"])


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        (judge_that("print('no', 'number')"), "the judge printed no number on stdout"),
        (judge_that("print('loss nan')"), "the judge gave nan, expected a finite number"),
        (judge_that("sys.exit('no \\x1b[31mdata')"), "ended with code 1; its last words: no data"),
        (judge_that("os.kill(os.getpid(), 9)"), "the judge was killed by signal 9"),
        (raises, "the judge raised RuntimeError: out of memory"),
        (lambda path: None, "the judge gave None, expected a number"),
        (lambda path: "0.5", "the judge gave '0.5', expected a number"),
        (lambda path: float("inf"), "the judge gave inf, expected a finite number"),
    ],
    ids=["nothing", "nan", "exit", "killed", "raises", "None", "text", "inf"],
)
def test_a_judge_that_fails(run: Path, tmp_path: Path, judge: Any, message: str) -> None:
    some = judge
    if callable(judge):

        def some(path: Path) -> float:
            return 5 if path.parent.name == "profile-1" else judge(path)

    out = tmp_path / "out.safetensors"
    with pytest.warns(UserWarning, match=message) as caught:
        report = wfcast.anneal_run(run, out, (1, 2), judge=some)
    assert [str(w.message).partition(" is out: ")[0] for w in caught] == ["profile 2", "latest"]
    assert report.chosen == "profile 1"
    assert [c["number"] for c in report.candidates] == [5, None, None]
    assert message in report.candidates[1]["failed"]
    before = out.read_bytes()
    with pytest.raises(wfcast.WfcastError, match=f"no candidate could be judged.*{message}"):
        wfcast.anneal_run(run, out, (2, 3), judge=judge)
    assert out.read_bytes() == before
    assert names(tmp_path) == ["out.safetensors", "run"]


class Fifo:
    """What a judge and all that it starts hold open: its end is theirs."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self._reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)

    def read(self, end: bytes | None) -> bytes:
        """What was written up to `end`, or until nobody holds it any more."""
        found = b""
        while end is None or not found.endswith(end):
            ready, _, _ = select.select([self._reader], [], [], 60)
            assert ready, "the judge, or a process that it started, goes on"
            piece = os.read(self._reader, 100)
            if not piece and (found or end is None):
                assert end is None
                break
            found += piece
        return found


HANGS = 'exec 3>fifo; sleep 1000 & echo $$ >&3; echo 1; wait; echo "$1"'


@pytest.fixture
def fifo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fifo]:
    monkeypatch.chdir(tmp_path)
    yield Fifo(tmp_path / "fifo")
    (tmp_path / "fifo").unlink()


def test_a_judge_that_hangs_is_killed_with_what_it_started(
    run: Path, tmp_path: Path, fifo: Fifo
) -> None:
    command = shlex.join(["sh", "-c", HANGS, "sh", "{}"])
    with pytest.raises(wfcast.WfcastError, match=r"the judge was killed after 0\.5 s"):
        wfcast.anneal_run(run, "out.safetensors", judge=command, judge_timeout=0.5)
    fifo.read(None)
    assert names(tmp_path) == ["fifo", "run"]


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_a_signal_while_it_is_judged(
    run: Path, tmp_path: Path, fifo: Fifo, number: int, code: int
) -> None:
    command = shlex.join(["sh", "-c", HANGS, "sh", "{}"])
    words = ["anneal", "run", "-o", "out.safetensors", "--judge", command]
    with subprocess.Popen(
        [sys.executable, "-m", "wfcast", *words], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    ) as process:
        judge = int(fifo.read(b"\n"))
        process.send_signal(number)
        try:
            _, said = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            os.killpg(judge, signal.SIGKILL)
            raise
    assert process.returncode == code
    if number == signal.SIGKILL:  # nobody is left to end the judge, or to clean up
        os.killpg(judge, signal.SIGKILL)
        assert any(name.startswith(".out.safetensors.") for name in names(tmp_path))
        wfcast.anneal_run(run, "out.safetensors")
        (tmp_path / "out.safetensors").unlink()
    assert "Traceback" not in said
    fifo.read(None)
    assert names(tmp_path) == ["fifo", "run"]


def test_a_signal_that_another_thread_takes(run: Path, tmp_path: Path, fifo: Fifo) -> None:
    """The system may give a signal to any thread: the one that waits for the judge sleeps on."""
    command = shlex.join(["sh", "-c", HANGS, "sh", "{}"])
    judges: list[int] = []

    def interrupt() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        judges.append(int(fifo.read(b"\n")))
        time.sleep(0.5)  # by now it waits; if not, this test tells nothing, and passes
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    # were it not heard, the end of the judge would end the test
    guard = threading.Timer(60, lambda: os.killpg(judges[0], signal.SIGKILL))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        thread.start()
        guard.start()
        with pytest.raises(KeyboardInterrupt):
            wfcast.anneal_run(run, "out.safetensors", judge=command)
        assert guard.is_alive()
    finally:
        guard.cancel()
        thread.join()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    fifo.read(None)
    assert names(tmp_path) == ["fifo", "run"]


# ---- the command line, and what is shown --------------------------------------------------------


def test_the_command_line(run: Path, tmp_path: Path) -> None:
    judge = shlex.join(["sh", "-c", 'echo "$1"; stat -c %s "$1"', "sh", "{}"])
    options = ["--window", "0.5", "--every", "200", "--judge", judge, "--maximize"]
    done = wf(
        "anneal",
        "run",
        "-o",
        "a.safetensors",
        "--json",
        "--profile",
        "5",
        "mean",
        *options,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "judging profile-mean" in done.stderr
    document = json.loads(done.stdout)
    assert document["chosen"] in ("profile 5", "profile mean", "latest")
    report = wfcast.anneal_run(
        run,
        tmp_path / "b.safetensors",
        (5, "mean"),
        window=0.5,
        every=200,
        judge=judge,
        maximize=True,
    )
    assert document == {**report.to_dict(), "path": "a.safetensors", "left_out": []}
    pairs = [f"{step}=run/step-{step}.safetensors" for step in STEPS]
    more = ["--ahead", "0.25", "--strategy", "two-point", "-q", "--exclude", "ids"]
    done = wf("extrapolate", *pairs, "-o", "c.safetensors", *more, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    expected = wfcast.extrapolate(states(), 0.25, "two-point").predict(states())
    got = load_file(tmp_path / "c.safetensors")
    np.testing.assert_array_equal(got["a.weight"], expected["a.weight"])


@pytest.mark.parametrize(
    "words",
    [
        ["anneal", "run"],
        ["anneal", "-o", "x"],
        ["anneal", "run", "run", "-o", "x"],
        ["anneal", "run", "500=x", "-o", "x"],
        ["anneal", "run", "-o", "x", "--profile", "cosine"],
        ["anneal", "run", "-o", "x", "--window", "0.5", "--last", "3"],
        ["anneal", "run", "-o", "x", "--last", "0"],
        ["anneal", "run", "-o", "x", "--maximize"],
        ["anneal", "run", "-o", "x", "--profile", "1", "2"],
        ["extrapolate", "run", "-o", "x", "--ahead", "1", "2"],
        ["extrapolate", "run", "-o", "x", "--judge-timeout", "3"],
        ["extrapolate", "run", "-o", "x", "--strategy", "cubic"],
        ["extrapolate", "run", "-o", "x", "--strategy", "line", "--rank", "3"],
    ],
    ids=" ".join,
)
def test_bad_usage_exits_2(run: Path, words: list[str]) -> None:
    done = wf(*words, cwd=run.parent)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"usage: wfcast {words[0]}" in done.stderr


def test_a_failure_is_one_line(run: Path, tmp_path: Path) -> None:
    done = wf("anneal", "run", "-o", "x", "--profile", "1", "1", "--judge", "true {}", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("wfcast: error: profile 1 is given twice")
    assert done.stderr.count("\n") == 1


def test_low_rank_looks_at_what_it_forecasts_only(tmp_path: Path) -> None:
    run = {t: {"a": np.array([1.0, t, 2 * t]), "b": np.array([t, np.nan])} for t in (0, 10, 20)}
    out = tmp_path / "out.safetensors"
    with pytest.raises(wfcast.WfcastError, match=r"NaN.* 'b'"):
        wfcast.extrapolate_run(run, out, strategy="low-rank")
    for options in ({"exclude": "b"}, {"nonfinite": "copy"}):
        wfcast.extrapolate_run(run, out, strategy="low-rank", **options)
        got = load_file(out)
        np.testing.assert_allclose(got["a"], [1, 30, 60], rtol=1e-12)
        np.testing.assert_array_equal(got["b"], [20, np.nan])
    run[0]["b"] = np.zeros(3)
    with pytest.raises(wfcast.CheckpointError, match="do not hold the same tensors"):
        wfcast.extrapolate_run(run, out, strategy="low-rank", exclude="b")
    wfcast.extrapolate_run(run, out, strategy="low-rank", partial=True)
    np.testing.assert_allclose(load_file(out)["a"], [1, 30, 60], rtol=1e-12)


def test_a_run_that_wanders_is_told_so(tmp_path: Path) -> None:
    """Without a judge, who would say so."""
    walk = np.random.default_rng(0).normal(size=(9, 40, 50)).cumsum(axis=0)
    drifting = np.linspace(0, 9, 9)[:, None, None] + walk
    out = tmp_path / "out.safetensors"
    wandering = {t: {"w": w} for t, w in enumerate(walk)}
    with pytest.warns(UserWarning, match="do not lead anywhere: .* have the cosine"):
        wfcast.extrapolate_run(wandering, out)
    wfcast.extrapolate_run(wandering, out, (0.5, 1.0), judge=lambda path: 1.0)
    wfcast.extrapolate_run({t: {"w": w} for t, w in enumerate(drifting)}, out)


def test_reports(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    alone = wfcast.anneal_run(run, out, 2)
    assert "step  weight, profile 2" in str(alone)
    judged = wfcast.anneal_run(run, out, (2, 3), judge=lambda path: len(path.parent.name) / 3)
    assert "latest     chosen" in str(judged)
    assert "<td" in judged._repr_html_()
    ranked = wfcast.extrapolate_run(run, out, strategy="low-rank")
    json.dumps([report.to_dict() for report in (alone, judged, ranked)], allow_nan=False)
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    assert [t.get_text() for t in judged.plot().get_xticklabels()] == [
        "profile 2",
        "profile 3",
        "latest",
    ]
    assert alone.plot().get_xlabel() == "step"
    assert ranked.plot().get_ylabel() == "|forecast - last| / |last|"
