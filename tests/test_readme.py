"""README.md: short, its links lead somewhere, and its examples run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from markers import marked

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"


def run(code: str, folder: Path) -> str:
    """What a program prints that was pasted into an empty folder, offline; warnings are errors."""
    (folder / "pasted.py").write_text(code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", "pasted.py"],
        cwd=folder,
        # one thread: models this small gain nothing from several, and lose much on a busy machine
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").split()) < 900


@pytest.mark.parametrize("name", ["demo-command", "test-command"])
def test_commands_are_one_line_each(name: str) -> None:
    command = marked(name, README)
    assert "\n" not in command
    assert "-c constraints.txt" in command


def test_it_names_what_exists() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", README.read_text(encoding="utf-8"))
    assert links
    assert not [link for link in links if not (ROOT / link).exists()]


@pytest.mark.slow
def test_notebook_example(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    code, _, last = marked("notebook-example", README).rpartition("\n")
    assert last.startswith("wfcast.evaluate(")  # a notebook shows what the last line gives
    shown = run(f"{code}\nprint({last.partition('  #')[0]})", tmp_path)
    changes = re.findall(r"^(200|300) .* ([-+][\d.]+)% +([-+][\d.]+)%$", shown, re.M)
    assert [step for step, _, _ in changes] == ["200", "300"]
    for _, forecast, line in changes:
        assert float(forecast) < min(0, float(line))


@pytest.mark.slow
def test_trainer_example(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    shown = run(marked("trainer-example", README), tmp_path)
    assert re.search(r"^[1-9]\d* jumps, \d+ kept; steps saved: (about|unclear)", shown, re.M)
    assert re.search(r"^100 +kept ", shown, re.M)
