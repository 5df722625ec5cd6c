"""The examples, run as programs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

pytest.importorskip("torch")  # an extra: wfcast itself does without
pytest.importorskip("accelerate")  # only the tests use it

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"

# Runs a script that is killed at the end of its third save, before that is given its name.
KILLED = """
import os, runpy, signal, sys
from accelerate import Accelerator

saves, save = 0, Accelerator.save_state

def save_state(*args, **kwargs):
    global saves
    saves += 1
    save(*args, **kwargs)
    if saves == 3:
        os.kill(os.getpid(), signal.SIGKILL)

Accelerator.save_state = save_state
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(*args: str, code: str | None = None) -> subprocess.CompletedProcess[str]:
    program = ["-c", code] if code else []
    options = ["--steps", "280", "--save-every", "50", "--cpu"]
    return subprocess.run(
        [sys.executable, *program, str(EXAMPLES / "accelerate_farcasting.py"), *args, *options],
        capture_output=True,
        text=True,
        timeout=300,
    )


def jumps(out: Path) -> list[dict[str, Any]]:
    history = json.loads((out / "history.json").read_text())
    return [{k: v for k, v in entry.items() if k != "seconds"} for entry in history]


def test_accelerate_killed_and_resumed(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    done = run("--out", str(whole))
    assert done.returncode == 0, done.stderr
    assert "steps saved" in done.stdout
    steps = [jump["step"] for jump in jumps(whole)]
    assert steps[0] == 100  # counted in steps, not in batches: the save there is in mid-jump
    assert len(steps) > 1
    assert jumps(whole)[0]["outcome"] == "kept"

    killed = run("--out", str(parts), code=KILLED)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert max(parts.glob("step-*")).name == "step-000100"
    assert (parts / "partial").is_dir()
    assert not (parts / "history.json").exists()

    resumed = run("--out", str(parts), "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed from step-000100" in resumed.stdout
    assert jumps(parts) == jumps(whole)
    ends = [load_file(out / "model.safetensors") for out in (whole, parts)]
    assert ends[0].keys() == ends[1].keys()
    assert all((ends[0][name] == ends[1][name]).all() for name in ends[0])
