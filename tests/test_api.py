"""Every public object: listed on the API page, with an example that runs and with neighbours."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).resolve().parents[1] / "docs" / "api.md"
MODULES = {  # public module -> what it needs beside wfcast itself
    "wfcast": (),
    "wfcast.torch": ("torch", "transformers"),
    "wfcast.torch.lightning": ("torch", "lightning"),
}


def listed() -> list[str]:
    """The objects of the API page: the lines below its autosummary directives."""
    found, module = [], ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith(".. currentmodule:: "):
            module = line.split()[-1]
        elif re.fullmatch(r" {3}[\w.]+", line):
            found.append(f"{module}.{line.strip()}")
    return found


def public(module: str) -> list[str]:
    for package in MODULES[module]:
        pytest.importorskip(package)
    names = importlib.import_module(module).__all__
    return [f"{module}.{name}" for name in names if name != "__version__"]


def resolve(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    for package in MODULES[module]:
        pytest.importorskip(package)
    return getattr(importlib.import_module(module), attribute)


def section(docstring: str, title: str) -> str:
    """The text below a heading of a NumPy-style docstring."""
    found = re.search(rf"^( *){title}\n\1-+\n(.*?)(?=^\1\w[\w ]*\n\1--|\Z)", docstring, re.M | re.S)
    return found[2] if found else ""


@pytest.mark.parametrize("module", MODULES)
def test_the_page_lists_what_is_public(module: str) -> None:
    names = [name for name in listed() if name.rpartition(".")[0] == module]
    assert sorted(names) == sorted(public(module))


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # inside Lightning
@pytest.mark.parametrize("name", listed())
def test_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = resolve(name)
    assert ">>> " in section(found.__doc__, "Examples")
    monkeypatch.chdir(tmp_path)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    report: list[str] = []
    for test in doctest.DocTestFinder(recurse=False).find(found, name, globs={}):
        runner.run(test, out=report.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(report)


@pytest.mark.parametrize("name", listed())
def test_neighbours_exist(name: str) -> None:
    text = section(resolve(name).__doc__, "See Also")
    entries = re.findall(r"^ *([\w.]+(?:, [\w.]+)*) : ", text, re.M)
    assert entries
    for neighbour in (n for entry in entries for n in entry.split(", ")):
        module = "" if neighbour.startswith("wfcast.") else name.rpartition(".")[0] + "."
        full = module + neighbour
        owner, _, method = full.rpartition(".")
        known = full in listed() or (owner in listed() and hasattr(resolve(owner), method))
        assert known, f"{name} names {neighbour}, which is not on the page"
