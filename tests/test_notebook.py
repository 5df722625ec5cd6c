"""The notebooks, executed for real. Run as a program, this file writes their outputs anew."""

from __future__ import annotations

import base64
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")  # extras: wfcast itself does without
pytest.importorskip("matplotlib")
pytest.importorskip("ipykernel")  # only the tests use these
nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")

from jupyter_client.kernelspec import KernelSpec  # noqa: E402  only with them
from jupyter_client.manager import AsyncKernelManager  # noqa: E402

DOCS = Path(__file__).resolve().parents[1] / "docs"
FARCASTING, READOUTS = DOCS / "farcasting.ipynb", DOCS / "readouts.ipynb"
SIBLINGS = DOCS / "siblings.ipynb"
TABLES = {FARCASTING: 2, READOUTS: 2, SIBLINGS: 1}  # of HTML
PYTHON = {"display_name": "Python 3", "language": "python", "name": "python3"}


class ThisPython(AsyncKernelManager):
    """Kernels of the interpreter that runs the tests, whatever others are installed."""

    @property
    def kernel_spec(self) -> KernelSpec:
        launch = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=launch, display_name="Python 3", language="python")


def execute(notebook: Path, folder: Path) -> Any:
    """The notebook with the outputs of a fresh kernel that runs in `folder`."""
    client = nbclient.NotebookClient(
        nbformat.read(notebook, as_version=4),
        kernel_manager_class=ThisPython,
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
        timeout=300,
    )
    env = {k: v for k, v in os.environ.items() if k != "MPLBACKEND"}  # figures go to the notebook
    return client.execute(env={**env, "IPYTHONDIR": str(folder / "ipython")})


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def check_outputs(path: Path, notebook: Any) -> None:
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    shown = [output.data for output in outputs if "data" in output]
    figures = [data["image/png"] for data in shown if "image/png" in data]
    drawn = ("plot()", "\ncompare(", "plt.subplots")
    if path == FARCASTING:
        drawn = drawn[:2]  # there the function that compares has the subplots
    assert len(figures) == sum(any(d in c.source for d in drawn) for c in cells)
    assert all(base64.b64decode(figure).startswith(b"\x89PNG") for figure in figures)
    tables = [data["text/html"] for data in shown if "text/html" in data]
    assert len(tables) == TABLES[path]
    assert all("<table" in html for html in tables)


@pytest.mark.slow
def test_jumps_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    done = execute(FARCASTING, tmp_path)
    check_outputs(FARCASTING, done)
    latest, average, fitted, again = re.findall(
        r"^[a-z ]+? +(\d+\.\d+)", code_cells(done)[-1].outputs[0].text, re.M
    )
    assert latest == again  # `applied` gives the weights back
    assert len({latest, average, fitted}) > 1


@pytest.mark.slow
def test_readouts_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    done = execute(READOUTS, tmp_path)
    check_outputs(READOUTS, done)
    losses = next(c.outputs[0].text for c in code_cells(done) if c.source.startswith("model.load"))
    latest, beside, stored, decayed = map(float, re.findall(r" (\d+\.\d+)$", losses, re.M))
    assert max(beside, stored) < latest
    assert max(beside, stored) < 1.1 * decayed


@pytest.mark.slow
def test_siblings_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    done = execute(SIBLINGS, tmp_path)
    check_outputs(SIBLINGS, done)
    table = next(c.outputs[0].text for c in code_cells(done) if c.source.startswith("def mean"))
    rows = re.findall(r"^(.+?)  +(\d+) +(\S+) +(\S+)   \[(.+)\]$", table, re.M)
    found = {(name, int(target)): row for name, target, *row in rows}
    assert len(found) == 12
    for (name, target), (at_once, _, ahead) in found.items():
        if name == "line":
            continue
        assert all(int(steps) > 0 for steps in ahead.split(","))  # every seed is ahead
        assert float(at_once) < float(found["line", target][0])


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_what_is_committed(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    check_outputs(path, notebook)
    assert notebook.metadata == {"kernelspec": PYTHON, "language_info": {"name": "python"}}
    text = path.read_text(encoding="utf-8")
    assert len(text) < 300_000
    assert not re.search(r"site-packages|/(home|root|tmp|Users)/| at 0x", text)
    prose = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    assert not [p for p in prose if re.search(r"\d", p)]  # it must hold whatever comes out


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:] or TABLES):
        with tempfile.TemporaryDirectory() as folder:
            notebook = execute(path, Path(folder))
        notebook.metadata = {"kernelspec": PYTHON, "language_info": {"name": "python"}}
        for data in (o.data for cell in code_cells(notebook) for o in cell.outputs if "data" in o):
            data["text/plain"] = re.sub(r" at 0x\w+", "", data["text/plain"])
        nbformat.write(notebook, path)
