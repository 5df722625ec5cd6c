"""What the first page and the guide promise, what the package carries, and what is pinned."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from markers import marked
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import wfcast
from wfcast import _core

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGE = Path(wfcast.__file__).parent


def record_run(seed: int) -> dict[int, dict[str, Any]]:
    rng = np.random.default_rng(seed)
    w, v = rng.normal(size=(2, 40, 8)).astype(np.float32)
    return {
        step: {"layer.weight": w + v * np.float32(np.sqrt(step)), "layer.bias": w[0] - v[0] * step}
        for step in (0, 500, 1000, 1500)
    }


def test_notebook_of_the_guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = record_run(2)
    names: dict[str, Any] = {
        "run_a": record_run(0),
        "run_b": record_run(1),
        "w0": run[0],
        "w500": run[500],
    }
    code = marked("notebook", ROOT / "docs/guide/notebooks.md")
    exec(compile(code, "notebooks.md", "exec"), names)
    error = max(np.abs(names["future"][n] - w).max() for n, w in run[1500].items())
    assert error < 1e-2
    assert set(names["other"]) == set(run[0])
    loaded = wfcast.load("farcaster.safetensors").predict({0: run[0], 500: run[500]}, step=1500)
    for name, weights in names["future"].items():
        np.testing.assert_array_equal(loaded[name], weights)
    statements = [s for s in code.splitlines() if s and not s.startswith("#")]
    assert len(statements) <= 10


def test_no_module_bears_the_name_of_what_one_would_call() -> None:
    assert wfcast.forecast_checkpoint.__module__ == "wfcast._forecast"
    assert not hasattr(wfcast, "forecast")


def test_version() -> None:
    assert importlib.metadata.version("wfcast") == wfcast.__version__


def test_type_information_is_installed() -> None:
    assert (PACKAGE / "py.typed").is_file()
    assert (PACKAGE / "_core.pyi").is_file()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_bundled_openblas_is_the_one_in_use() -> None:
    library = Path(_core.__file__).parent / "_lib" / "libscipy_openblas.so"
    if not library.exists():
        pytest.skip("built with WFCAST_OPENBLAS=system")
    assert library.with_name("LICENSE.openblas.txt").is_file()
    assert str(library.resolve()) in Path("/proc/self/maps").read_text()


def test_the_source_folder_says_that_it_is_not_built(tmp_path: Path) -> None:
    here = Path(wfcast.__file__).parent
    shutil.copytree(here, tmp_path / "wfcast", ignore=shutil.ignore_patterns("_core.*", "_lib"))
    done = subprocess.run(
        [sys.executable, "-S", "-c", "import wfcast"],  # no editable install's finder
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"},
        capture_output=True,
        text=True,
        check=False,
    )
    last = done.stderr.splitlines()[-1]
    assert "ImportError: the C core of wfcast is not in" in last
    assert str(tmp_path) in last


def test_a_build_without_a_compiler_ends_with_one_line(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77")
    command = [sys.executable, "setup.py", "-q", "build_ext"]
    done = subprocess.run(
        [*command, "--build-temp", str(tmp_path), "--build-lib", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "CC": "/nonexistent/cc", "WFCAST_OPENBLAS": "system"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    what = "wfcast needs a C compiler: /nonexistent/cc not found"
    assert done.stderr == f"error: {what}; install one, or name it in CC\n"


def test_constraints_pin_every_requirement() -> None:
    pins: dict[str, str] = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")  # nothing but == pins
            assert canonicalize_name(name) not in pins
            pins[canonicalize_name(name)] = version
    project = PROJECT["project"]
    lists = [PROJECT["build-system"]["requires"], project["dependencies"]]
    for text in (
        text for each in (*lists, *project["optional-dependencies"].values()) for text in each
    ):
        requirement = Requirement(text)
        if requirement.name != "wfcast":
            version = pins[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version), text
