"""The pages in docs/: their commands are real, their code compiles, what they name is there."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest

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
    assert {"fit", "forecast", "inspect", "compare"} <= shown


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
