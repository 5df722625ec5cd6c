"""The demo in its smallest form, for real; its report is held to the files it left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

pytestmark = pytest.mark.slow

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("tokenizers")
pytest.importorskip("matplotlib")

METHODS = ("forecast", "persistence", "line")


def start(out: Path, *args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "wfcast", "demo", "--size", "tiny", "--out", str(out), *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=out.parent,
    )


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    out = tmp_path_factory.mktemp("demo") / "out"
    process = start(out, "--json", "--threads", "1")
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    return out, json.loads(stdout), stderr


@pytest.fixture(scope="module")
def out(done: tuple[Path, dict[str, Any], str]) -> Path:
    return done[0]


@pytest.fixture(scope="module")
def report(done: tuple[Path, dict[str, Any], str]) -> dict[str, Any]:
    return done[1]


def fresh_files(report: dict[str, Any], out: Path) -> dict[int, dict[str, np.ndarray]]:
    run = next(r for r in report["runs"] if r["role"] == "fresh")
    return {int(step): load_file(out / name) for step, name in run["files"].items()}


def sum_abs(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
    assert a.keys() == b.keys()
    return float(sum(np.abs(a[n].astype(np.float64) - b[n]).sum() for n in a))


def test_what_it_leaves(done: tuple[Path, dict[str, Any], str]) -> None:
    out, report, stderr = done
    assert json.loads((out / "report.json").read_text()) == report
    for picture in ("readout.png", "forecast.png"):
        assert (out / picture).read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        assert (out / picture).stat().st_size > 20_000
    assert "%" not in stderr  # bars are for a terminal
    assert {
        "wfcast",
        "size",
        "settings",
        "seeds",
        "machine",
        "model",
        "text",
        "runs",
        "fit",
        "readout",
        "observed_loss",
        "horizons",
        "jump",
        "verdict",
        "seconds",
    } <= report.keys()
    assert report["seconds"]["total"] < 60
    assert not list(out.rglob("*.tmp")) + list(out.rglob("*.partial"))
    tokenizer = json.loads((out / "tokenizer.json").read_text())
    assert tokenizer["model"]["type"] == "WordPiece"


def test_model_is_the_real_one(report: dict[str, Any], out: Path) -> None:
    model = report["model"]
    assert model["class"] == "DistilBertForMaskedLM"
    assert sum(model["kinds"].values()) == model["parameters"]
    first = fresh_files(report, out)[0]
    assert sum(t.size for t in first.values()) == model["parameters"]  # tied weights once
    assert "distilbert.transformer.layer.0.attention.q_lin.weight" in first


def test_runs_learn_and_differ(report: dict[str, Any], out: Path) -> None:
    settings, starts = report["settings"], []
    assert len(report["runs"]) == settings["siblings"] + 1
    for run in report["runs"]:
        curve = run["held_out_loss"]
        assert curve[-1][1] < curve[0][1] - 0.3
        assert [int(s) for s in run["files"]] == sorted(
            {0, settings["first"], settings["observed"], *settings["targets"]}
        )
        starts.append(load_file(out / run["files"]["0"]))
    assert sum_abs(starts[0], starts[1]) > 0
    assert sum_abs(starts[0], starts[-1]) > 0


def test_readouts_leave_the_run_as_it_was(report: dict[str, Any]) -> None:
    from wfcast.demo.readout import Readout
    from wfcast.demo.text import build_corpus
    from wfcast.demo.train import SIZES, Trainer

    torch.set_num_threads(1)
    size, seen = SIZES["tiny"], report["readout"]
    rows, length = seen["rows"], size.targets[-1]
    assert [row["step"] for row in rows] == [length * k // 5 for k in range(1, 6)]
    corpus, _ = build_corpus(
        size.vocab_size, size.length, docstrings=False, held_out_rows=size.held_out_rows
    )
    watched, alone = (Trainer(size, corpus, report["seeds"]["fresh"]) for _ in range(2))
    readout = Readout(watched, length)
    for _ in range(length):
        watched.train_step()
        readout.after_step()
        alone.train_step()
    for a, b in zip(watched.model.parameters(), alone.model.parameters(), strict=True):
        assert torch.equal(a, b)
    for row, again in zip(rows, readout.rows, strict=True):
        assert row["decays"].keys() == again["decays"].keys() == {"0.1", "0.2"}
        assert row["latest"] == pytest.approx(again["latest"], rel=1e-4)
        assert row["decays"] == pytest.approx(again["decays"], rel=1e-4)
    assert rows[-1]["latest"] == pytest.approx(alone.held_out_loss(), rel=1e-4)


def test_errors_are_those_of_the_files(report: dict[str, Any], out: Path) -> None:
    files = fresh_files(report, out)
    n = report["settings"]["observed"]
    assert [h["step"] for h in report["horizons"]] == report["settings"]["targets"]
    for h in report["horizons"]:
        step = h["step"]
        assert h["ahead"] == step - n
        line = {
            k: files[0][k] + (files[n][k].astype(np.float64) - files[0][k]) * step / n
            for k in files[0]
        }
        expected = {
            "persistence": files[n],
            "line": line,
            "forecast": load_file(out / h["methods"]["forecast"]["file"]),
        }
        baseline = sum_abs(files[n], files[step])
        for method in METHODS:
            error = h["methods"][method]["error"]
            recomputed = sum_abs(expected[method], files[step])
            assert error["sum_abs"] == pytest.approx(recomputed, rel=1e-5)
            assert error["n"] == report["model"]["parameters"]
            assert error["mae"] == pytest.approx(error["sum_abs"] / error["n"], rel=1e-12)
            assert error["relative"] == pytest.approx(error["sum_abs"] / baseline, rel=1e-5)
            kinds = h["methods"][method]["kinds"]
            assert set(kinds) == set(report["model"]["kinds"])
            assert sum(k["n"] for k in kinds.values()) == error["n"]
            assert sum(k["sum_abs"] for k in kinds.values()) == pytest.approx(
                error["sum_abs"], rel=1e-9
            )
            for kind, size in report["model"]["kinds"].items():
                assert kinds[kind]["n"] == size


def test_forecast_file_is_the_operator(report: dict[str, Any], out: Path) -> None:
    files = fresh_files(report, out)
    fit = report["fit"]
    assert fit["inputs"] == [0, report["settings"]["observed"]]
    assert fit["largest_dual_gap"] <= 1e-9
    for j, h in enumerate(report["horizons"]):
        written = load_file(out / h["methods"]["forecast"]["file"])
        for name, c in fit["coefficients"].items():
            columns = [files[step][name].astype(np.float64) for step in fit["inputs"]]
            expected = sum(a * x for a, x in zip(c["coef"][j], columns, strict=True))
            expected = expected + c["intercept"][j]
            np.testing.assert_allclose(written[name], expected, rtol=2e-6, atol=2e-6)


def test_losses_agree_with_each_other(report: dict[str, Any]) -> None:
    curve = dict(map(tuple, report["runs"][-1]["held_out_loss"]))
    assert report["observed_loss"] == curve[report["settings"]["observed"]]
    for h in report["horizons"]:
        assert h["true_loss"] == curve[h["step"]]
        persistence = h["methods"]["persistence"]
        assert persistence["loss"] == pytest.approx(report["observed_loss"], abs=1e-6)
        for kind in persistence["kinds"].values():
            assert kind["loss"] == pytest.approx(report["observed_loss"], abs=1e-6)


def test_jump_starts_at_the_forecast(report: dict[str, Any]) -> None:
    jump, settings = report["jump"], report["settings"]
    assert (jump["from"], jump["to"]) == (settings["observed"], settings["jump_to"])
    at = next(h for h in report["horizons"] if h["step"] == jump["to"])
    assert jump["jumped"][0] == [
        jump["from"],
        pytest.approx(at["methods"]["forecast"]["loss"], abs=1e-6),
    ]
    curve = dict(map(tuple, report["runs"][-1]["held_out_loss"]))
    for (s, a), (t, b), (u, d) in zip(
        jump["jumped"], jump["plain"], jump["difference"], strict=True
    ):
        assert s == t == u
        assert b == curve[s]
        assert d == pytest.approx(a - b, abs=1e-12)
    assert jump["jumped"][-1][0] == settings["observed"] + settings["after_jump"]
    assert jump["rise"] == jump["difference"][0][1]
    later = [d for _, d in jump["difference"][1:]]
    assert jump["mean_difference"] == pytest.approx(sum(later) / len(later))


def test_verdict_follows_the_numbers() -> None:
    from wfcast.demo.words import verdict

    def horizon(step: int, relative: float, loss: float) -> dict[str, Any]:
        def method(r: float, v: float) -> dict[str, Any]:
            return {"loss": v, "error": {"relative": r}, "kinds": {"bias": {"relative": r}}}

        return {
            "step": step,
            "ahead": step - 10,
            "true_loss": 1.0,
            "methods": {
                "forecast": method(relative, loss),
                "persistence": method(1.0, 2.0),
                "line": method(1.5, 3.0),
            },
        }

    jump = {
        "from": 10,
        "to": 20,
        "rise": 0.1,
        "below_since": None,
        "final_difference": 0.05,
        "mean_difference": 0.06,
        "steps_ahead": -3.0,
        "jumped": [[10, 2.1], [30, 1.5]],
    }
    ends = ((10, 2.2, 2.1, 2.0), (20, 2.0, 1.9, 1.92))
    rows = [
        {"step": step, "latest": latest, "readout": readout, "decays": {"0.1": real, "0.2": 2.3}}
        for step, latest, readout, real in ends
    ]
    report = {
        "readout": {"rows": rows, "decay_steps": 9},
        "horizons": [horizon(20, 1.2, 2.1), horizon(30, 0.9, 1.9)],
        "jump": jump,
    }
    readout, weights, kinds, losses, first, second = verdict(report)
    assert "-5.0 to -4.5 % against the latest weights" in readout
    assert "-1.0 to +5.0 % against the better of two real decays" in readout
    assert "level with it or below at 1 of 2 steps. The decays cost 9 further steps" in readout
    assert "wins at +20, loses at +10 against persistence" in weights
    assert "the line loses at every horizon (+50.0% at +20)" in weights
    assert "behind persistence on: bias" in kinds
    assert "wins at +20, loses at +10 against persistence" in losses
    assert "rises by 0.100" in first
    assert "20 steps later it is +0.050 against the run that did not jump" in first
    assert "not jumping wins" in second
    jump |= {
        "below_since": 20,
        "final_difference": -0.05,
        "mean_difference": -0.04,
        "steps_ahead": 4.0,
    }
    first, second = verdict(report)[-2:]
    assert "from step 20 on, 10 steps later, it stays below" in first
    assert "4 steps ahead: the jump wins" in second


def test_steps_ahead() -> None:
    from wfcast.demo.jump import _steps_ahead

    slow, fast = [(0, 4.0), (10, 3.0), (20, 2.0)], [(0, 4.5), (10, 2.5), (20, 1.5)]
    assert _steps_ahead(fast, slow) == pytest.approx(5.0)
    assert _steps_ahead(slow, fast) == pytest.approx(-5.0)
    assert _steps_ahead(slow, slow) == 0.0


def trainer(seed: int = 0) -> Any:
    from wfcast.demo.text import build_corpus
    from wfcast.demo.train import SIZES, Trainer

    size = SIZES["tiny"]
    corpus, _ = build_corpus(
        size.vocab_size, size.length, docstrings=False, held_out_rows=size.held_out_rows
    )
    return Trainer(size, corpus, seed)


def test_a_resumed_run_is_the_same_run(tmp_path: Path) -> None:
    from wfcast.demo.train import save_weights

    torch.set_num_threads(1)
    one, other = trainer(), trainer()
    for _ in range(3):
        one.train_step()
    save_weights(one.model, tmp_path / "w.safetensors")
    state = one.optimizer_state()
    ahead = [one.train_step() for _ in range(3)]
    other.resume(3, tmp_path / "w.safetensors", state)
    assert [other.train_step() for _ in range(3)] == ahead


def test_loss_is_the_models_own() -> None:
    one = trainer()
    batch = one._batch(1)
    one.model.eval()
    with torch.no_grad():
        assert float(one._loss(batch)) == pytest.approx(float(one.model(**batch).loss), rel=1e-6)
    masked = batch["labels"] != -100
    assert 0.08 < float(masked.float().mean()) < 0.2


def test_text_is_split_by_document() -> None:
    from wfcast.demo.text import collect

    documents = collect()
    assert len(documents) > 200
    held_out = [d for d in documents if d.held_out]
    assert 0.05 < len(held_out) / len(documents) < 0.2
    assert {d.name.split(":")[0] for d in held_out} == {"topic", "module"}
    texts = {d.text for d in documents}
    assert len(texts) == len(documents)


def test_tokenizer_is_the_same_in_every_process(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom wfcast.demo.text import build_corpus\n"
        "open(sys.argv[1], 'w').write(build_corpus(400, 16, docstrings=False)[1].to_str())"
    )
    files = [tmp_path / name for name in ("a.json", "b.json")]
    for file in files:
        subprocess.run([sys.executable, "-c", code, str(file)], check=True, timeout=120)
    assert files[0].read_text() == files[1].read_text()
    tokens = json.loads(files[0].read_text())["model"]["vocab"]
    assert len(tokens) == 400
    assert [tokens[t] for t in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")] == [0, 1, 2, 3, 4]


def test_masks_follow_bert() -> None:
    from wfcast.demo.text import masked_batch

    rows = torch.randint(5, 1000, (400, 64), generator=torch.Generator().manual_seed(1))
    rows[:, 0] = 2
    batch = masked_batch(rows, torch.Generator().manual_seed(2), 1000)
    again = masked_batch(rows, torch.Generator().manual_seed(2), 1000)
    assert all(torch.equal(batch[k], again[k]) for k in batch)
    asked = batch["labels"] != -100
    assert not asked[:, 0].any()
    assert float(asked[:, 1:].float().mean()) == pytest.approx(0.15, abs=0.01)
    shown, wanted = batch["input_ids"][asked], batch["labels"][asked]
    assert torch.equal(wanted, rows[asked])
    assert torch.equal(batch["input_ids"][~asked], rows[~asked])
    assert float((shown == 4).float().mean()) == pytest.approx(0.8, abs=0.03)
    assert float((shown == wanted).float().mean()) == pytest.approx(0.1, abs=0.03)


def test_steps_are_scaled_or_refused(tmp_path: Path) -> None:
    from wfcast.demo.train import SIZES

    for name, size in SIZES.items():
        half = size.scaled(size.targets[-1] // 2)
        assert half.targets[-1] == size.targets[-1] // 2, name
        assert half.jump_to in half.targets
        assert size.scaled(size.targets[-1]) == size
    process = start(tmp_path / "x", "--steps", "3")
    stdout, stderr = process.communicate(timeout=120)
    assert (process.returncode, stdout) == (1, "")
    assert "wfcast: error: 3 steps are too few" in stderr
    assert not (tmp_path / "x").exists()


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    process = start(out)
    stdout, stderr = process.communicate(timeout=120)
    assert (process.returncode, stdout) == (1, "")
    assert "holds other things than a demo" in stderr
    assert [p.name for p in out.iterdir()] == ["thesis.txt"]


def test_the_results_of_an_earlier_demo_are_replaced_only_when_asked(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in (".wfcast-demo", "report.json", "farcaster.safetensors"):
        (out / name).write_bytes(b"old")
    process = start(out)
    stdout, stderr = process.communicate(timeout=120)
    assert (process.returncode, stdout) == (1, "")
    assert "holds the results of an earlier demo; --overwrite replaces them" in stderr
    assert all(path.read_bytes() == b"old" for path in out.iterdir())
    process = start(out, "--overwrite", "--json", "--threads", "1")
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    assert json.loads((out / "report.json").read_text()) == json.loads(stdout)


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_interrupt_leaves_whole_files_only(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start(out, "--steps", "2000")
    deadline = time.monotonic() + 120
    while not list(out.glob("run-1/*.safetensors")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (130, "")
    assert stderr.splitlines()[-1] == "wfcast: interrupted"
    assert "Traceback" not in stderr
    left = [p for p in out.rglob("*") if p.is_file()]
    assert {p.suffix for p in left} <= {".safetensors", ".json", ""}
    for path in left:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="numpy") as file:
                assert len(list(file.keys())) > 10
    assert not (out / "report.json").exists()
