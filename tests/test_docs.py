"""The pages in docs/: their commands are real, their code compiles, what they name is there."""

from __future__ import annotations

import ast
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from markers import marked
from safetensors.numpy import load_file, save_file

import wfcast
from wfcast.cli import _parser

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROGRAMS = re.compile(r"\b((?:benchmarks|examples|tests)/\w+\.py)")


def blocks(page: Path, language: str) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


def commands() -> list[str]:
    """The lines that call wfcast, with the shell variables of their block filled in."""
    found = []
    for block in (block for page in PAGES for block in blocks(page, "sh")):
        values = dict(re.findall(r'^(\w+)="(.*)"$', block, re.M))
        for line in re.findall(r"^wfcast .*$", block, re.M):
            found.append(re.sub(r"\$(\w+)", lambda name, values=values: values[name[1]], line))
    return found


@pytest.mark.parametrize("command", commands())
def test_commands_are_understood(command: str) -> None:
    arguments = _parser().parse_args(shlex.split(command, comments=True)[1:])
    assert callable(arguments.command)


def test_commands_are_found() -> None:
    shown = {command.split()[1] for command in commands()}
    assert {"fit", "forecast", "anneal", "extrapolate", "inspect", "compare"} <= shown


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_compiles_and_programs_exist(page: Path) -> None:
    for block in blocks(page, "python"):
        ast.parse(block)
    programs = PROGRAMS.findall(page.read_text(encoding="utf-8"))
    assert not [program for program in programs if not (ROOT / program).is_file()]


def test_every_section_of_results_names_its_command() -> None:
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    first, *sections = re.split(r"^## ", text, flags=re.M)
    assert len(sections) == len(re.findall(r"^\| \[", first, re.M))  # each stands in the overview
    for section in sections:
        command = r"`(python benchmarks/\w+\.py|wfcast demo)[^`]*`"
        assert re.search(command, section.split("\n|")[0]), section.splitlines()[0]


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the code of the guide takes as given, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return {"wfcast": wfcast}


def run(name: str, page: str, names: dict[str, Any]) -> None:
    exec(compile(marked(name, ROOT / "docs" / "guide" / page), page, "exec"), names)


def test_operator_by_hand(names: dict[str, Any]) -> None:
    run("by-hand", "index.md", names)
    again = wfcast.load("ahead.safetensors")
    assert again.fingerprint() == names["ahead"].fingerprint()
    moved = again.predict({0: {"w": np.zeros(2)}, 500: {"w": np.ones(2)}})
    np.testing.assert_array_equal(moved["w"], [1.5, 1.5])


def test_from_file_to_file(names: dict[str, Any]) -> None:
    for step in (0, 500):
        save_file({"w": np.full(3, step, np.float32)}, f"step-{step}.safetensors")
    run("files", "notebooks.md", {**names, "mf": wfcast.linear_trend((0, 500), (1500,))})
    np.testing.assert_array_equal(load_file("forecast-1500.safetensors")["w"], np.full(3, 1500))


def test_a_judge_of_readouts(
    names: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from models import small

    for step in (10, 20, 30):
        model = small("gpt2", seed=step)
        model.save_pretrained(f"runs/a/checkpoint-{step}")
    torch.save(list(torch.arange(48).reshape(3, 2, 8)), "held-out.pt")

    def held_out_loss(path: Path) -> float:
        monkeypatch.setattr(sys, "argv", ["judge.py", str(path)])
        with redirect_stdout(StringIO()) as printed:
            run("judge", "readouts.md", {})
        return float(printed.getvalue())

    monkeypatch.setattr(wfcast.ReadoutReport, "plot", lambda self: None)
    run("anneal", "readouts.md", {**names, "held_out_loss": held_out_loss})
    assert held_out_loss(Path("annealed")) <= held_out_loss(Path("runs/a/checkpoint-30"))


@pytest.mark.filterwarnings("ignore:forecast to stay as they are")  # the least model there is
def test_learning_from_a_sibling() -> None:
    torch = pytest.importorskip("torch")

    def begin() -> tuple[Any, Any]:
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 1)
        return model, torch.optim.Adam(model.parameters(), lr=1e-2)

    def train(model: Any, optimizer: Any, seed: int, steps: int) -> Iterator[dict[str, Any]]:
        picks = torch.Generator().manual_seed(seed)
        for step in range(steps + 1):
            yield {name: w.clone() for name, w in model.state_dict().items()}
            if step < steps:
                batch = torch.randn(16, 4, generator=picks)
                optimizer.zero_grad()
                (model(batch) - batch.sum(1, keepdim=True)).square().mean().backward()
                optimizer.step()

    names: dict[str, Any] = {"sibling": dict(enumerate(train(*begin(), 1, 240)))}
    names["model"], names["optimizer"] = begin()
    run("sibling", "training-loops.md", names)
    farcasting = names["farcasting"]
    states = []
    for state in train(names["model"], names["optimizer"], 2, 200):
        if states and farcasting.step():
            assert len(states) == names["n"]
            wanted = names["mf"].predict({0: states[0], names["n"]: state})
            for name, w in names["model"].state_dict().items():
                torch.testing.assert_close(w, wanted[name])
        states.append(state)
    (jump,) = farcasting.history
    assert (jump["step"], jump["horizon"], jump["outcome"]) == (80, 160, "kept")


def test_training_loop(names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    saved: list[str] = []

    class Sums(torch.nn.Linear):
        def save_pretrained(self, folder: str) -> None:
            saved.append(folder)

    def loss_of(model: Any, batch: Any) -> Any:
        return (model(batch) - batch.sum(1, keepdim=True)).square().mean()

    model, held = Sums(4, 1), torch.randn(64, 4)
    names |= {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=1e-3),
        "batches": [torch.randn(16, 4) for _ in range(400)],
        "loss_of": loss_of,
        "loss_fn": loss_of,
        "held_out_loss": lambda: loss_of(model, held).detach(),
    }
    run("loop", "training-loops.md", names)
    assert "3 jumps, 3 kept" in capsys.readouterr().out
    run("annealed", "training-loops.md", names)
    before = {name: w.clone() for name, w in model.state_dict().items()}
    states = {step: {k: w * (1 + 0.01 * step) for k, w in before.items()} for step in range(4)}
    run("export", "training-loops.md", {**names, "states": states})
    assert saved == 2 * ["if-training-ended-now"]
    assert all(torch.equal(w, before[name]) for name, w in model.state_dict().items())
