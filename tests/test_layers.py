"""csrc is built in layers: includes and calls lead downwards only, and never in a circle."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parent.parent / "csrc"

# From the top. A file may include, and call what is defined in, the layers below its own; files of
# a layer that is a whole folder also each other.
LAYERS = (
    ("python/*",),
    ("solve/fit.c", "solve/exchange.c", "solve/errors.c", "solve/gram.c", "solve/halves.c"),
    ("solve/differences.*",),
    ("solve/least_squares/least_squares.*", "solve/lad/lad.*"),
    (
        "solve/least_squares/exchange.*",
        "solve/least_squares/inverse.*",
        "solve/least_squares/rows.*",
        *(f"solve/lad/{name}.*" for name in ("sample", "band", "join", "solve", "exchange")),
    ),
    ("solve/least_squares/intercept.*",),
    ("solve/least_squares/state.h", "solve/lad/whiten.*"),
    ("solve/lad/unit.*",),
    ("solve/ipm/ipm.*",),
    ("solve/ipm/start.*", "solve/ipm/newton.*", "solve/ipm/finish.*"),
    ("solve/ipm/normal.*",),
    ("solve/ipm/state.h",),
    ("solve/ipm/problem.h",),
    ("solve/method.h",),
    ("solve/wire.*", "solve/scan.*", "solve/blas.*"),
    ("kernels/*",),
    ("core/*",),
    ("include/wfcast.h",),
)

COMMENT_OR_STRING = re.compile(r'/\*.*?\*/|//[^\n]*|(?<!include )"(?:\\.|[^"\\\n])*"', re.DOTALL)
INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]+([<"])([^>"]+)[>"]', re.MULTILINE)
# What begins in the first column is no statement; ``static`` is private to its file.
FUNCTION = re.compile(
    r"^(?!static\b|typedef\b)\w[^;{}=()]*\b(wf_\w+)\([^;{}]*\)\s*\{", re.MULTILINE
)
VARIABLE = re.compile(r"^(?!static\b|typedef\b|extern\b)\w[^;{}=()]*\b(wf_\w+)\s*=", re.MULTILINE)
NAME = re.compile(r"\bwf_\w+")


class Tree:
    """The C files below ``root``: what each includes, defines and names."""

    def __init__(self, root: Path) -> None:
        self.root = root
        paths = sorted(path for path in root.rglob("*") if path.suffix in (".c", ".h"))
        self.files = [path.relative_to(root).as_posix() for path in paths]
        self.includes: dict[str, list[str]] = {}
        self.system: dict[str, list[str]] = {}
        self.names: dict[str, set[str]] = {}
        self.definer: dict[str, str] = {}
        for file in self.files:
            text = COMMENT_OR_STRING.sub(" ", (root / file).read_text(encoding="utf-8"))
            found = INCLUDE.findall(text)
            self.includes[file] = [self.find(name) for quote, name in found if quote == '"']
            self.system[file] = [name for quote, name in found if quote == "<"]
            self.names[file] = set(NAME.findall(text))
            if file.endswith(".c"):
                for pattern in (FUNCTION, VARIABLE):
                    self.definer.update(dict.fromkeys(pattern.findall(text), file))

    def find(self, name: str) -> str:
        """The file that ``#include "name"`` means: csrc and csrc/include are searched."""
        return f"include/{name}" if f"include/{name}" in self.files else name

    def seen_from(self, file: str) -> set[str]:
        """The headers that a file includes, and those that they include."""
        seen: set[str] = set()
        todo = list(self.includes[file])
        while todo:
            header = todo.pop()
            if header not in seen:
                seen.add(header)
                todo += self.includes.get(header, [])
        return seen

    def uses(self) -> Iterator[tuple[str, str, str]]:
        """File, name and where that name is defined, for all that another .c file defines."""
        for file in self.files:
            for name in sorted(self.names[file] & self.definer.keys()):
                if file.endswith(".c") and self.definer[name] != file:
                    yield file, name, self.definer[name]


def unit_of(file: str) -> str:
    """A .c file and the header of its name are one."""
    return file.rpartition(".")[0]


def may_use(file: str, other: str, layers: Sequence[Sequence[str]]) -> bool:
    """Whether ``file`` may build on ``other``."""
    above, below = layer_of(file, layers), layer_of(other, layers)
    if above != below:
        return above < below
    whole = any(pattern.endswith("*") and "." not in pattern for pattern in layers[above])
    return whole or unit_of(file) == unit_of(other)


def layer_of(file: str, layers: Sequence[Sequence[str]]) -> int:
    """Its number from the top, -1 where it has none."""
    for i, patterns in enumerate(layers):
        if any(fnmatch(file, pattern) for pattern in patterns):
            return i
    return -1


def violations(root: Path, layers: Sequence[Sequence[str]]) -> list[str]:
    """Every include and every call that the layers forbid, in words."""
    tree = Tree(root)
    found = [f"{file} belongs to no layer" for file in tree.files if layer_of(file, layers) < 0]
    if found:
        return found
    below: dict[str, set[str]] = {unit_of(file): set() for file in tree.files}
    for file in tree.files:
        for other in tree.includes[file]:
            if other not in tree.files:
                found.append(f"{file} includes {other}, which is not there")
                continue
            if not may_use(file, other, layers):
                found.append(f"{file} includes {other}, which is not below it")
            below[unit_of(file)].add(unit_of(other))
        if not file.startswith("python/"):
            named = [name for name in tree.system[file] if name.startswith(("Python.h", "numpy/"))]
            found += [f"{file} includes {name} outside python/" for name in named]
    for file, name, definer in tree.uses():
        if not may_use(file, definer, layers):
            found.append(f"{file} uses {name} of {definer}, which is not below it")
        if not any(name in tree.names[header] for header in tree.seen_from(file)):
            found.append(f"{file} uses {name} of {definer} without a header that declares it")
        below[unit_of(file)].add(unit_of(definer))
    try:
        TopologicalSorter({unit: to - {unit} for unit, to in below.items()}).prepare()
    except CycleError as error:
        found.append(f"a circle: {' < '.join(error.args[1])}")
    return found


def test_csrc_keeps_its_layers() -> None:
    assert violations(CSRC, LAYERS) == []


def test_the_exchange_calls_tables_only() -> None:
    """What differs between the methods is below method.h's table; fit.c alone names them."""
    tree = Tree(CSRC)
    assert set(tree.includes["solve/exchange.c"]) == {
        "solve/method.h",
        "solve/wire.h",
    }
    folders = ("solve/least_squares/", "solve/lad/", "solve/ipm/")
    used = {
        name for file, name, at in tree.uses() if file == "solve/fit.c" and at.startswith(folders)
    }
    assert used == {"wf_least_squares_method", "wf_lad_method"}


def test_csrc_is_read_at_all() -> None:
    tree = Tree(CSRC)
    assert tree.definer["wf_fit_new"] == "solve/fit.c"
    assert tree.definer["wf_lad_method"] == "solve/lad/lad.c"
    assert ("solve/lad/sample.c", "wf_ipm_solve", "solve/ipm/ipm.c") in set(tree.uses())
    assert len(tree.definer) > 80


TOP = '#include "low/low.h"\nint wf_top(void)\n{\n    return wf_low();\n}\n'
LOW_HEADER = "/* wf_top */\nint wf_low(void);\n"
LOW = '#include "low/low.h"\nint wf_low(void)\n{\n    return 1;\n}\n'


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("top/top.h", "int wf_top(void);\n", []),
        ("other/new.c", "", ["other/new.c belongs to no layer"]),
        (
            "low/new.c",
            '#include "top/top.c"\n',
            ["low/new.c includes top/top.c, which is not below it"],
        ),
        ("low/new.c", '#include "none.h"\n', ["low/new.c includes none.h, which is not there"]),
        ("low/new.c", "#include <Python.h>\n", ["low/new.c includes Python.h outside python/"]),
        (
            "low/new.c",
            "int wf_top(void);\nint wf_new(void)\n{\n    return wf_top();\n}\n",
            [
                "low/new.c uses wf_top of top/top.c, which is not below it",
                "low/new.c uses wf_top of top/top.c without a header that declares it",
            ],
        ),
        (
            "top/new.c",
            "int wf_new(void)\n{\n    return wf_low();\n}\n",
            ["top/new.c uses wf_low of low/low.c without a header that declares it"],
        ),
        ("top/new.c", 'static int n; /* wf_low() */\nconst char *s = "wf_low()";\n', []),
        (
            "mid/b.h",
            '#include "mid/a.h"\n#include "low/low.h"\n',
            ["mid/b.h includes mid/a.h, which is not below it"],
        ),
        ("low/low.h", f'#include "low/a.h"\n{LOW_HEADER}', ["a circle: low/a < low/low < low/a"]),
    ],
)
def test_what_breaks_the_layers_is_found(
    tmp_path: Path, file: str, text: str, expected: list[str]
) -> None:
    files = {"top/top.c": TOP, "low/low.h": LOW_HEADER, "low/low.c": LOW}
    files |= {"low/a.h": '#include "low/low.h"\n', "mid/a.h": ""}
    for name, content in (files | {file: text}).items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content, encoding="utf-8")
    layers = (("top/*",), ("mid/a.h", "mid/b.h"), ("low/*",))
    assert violations(tmp_path, layers) == expected


def test_a_circle_of_calls_is_found(tmp_path: Path) -> None:
    (tmp_path / "all.h").write_text("int wf_a(void);\nint wf_b(void);\n", encoding="utf-8")
    for one, other in ("ab", "ba"):
        text = f'#include "all.h"\nint wf_{one}(void)\n{{\n    return wf_{other}();\n}}\n'
        (tmp_path / f"{one}.c").write_text(text, encoding="utf-8")
    (found,) = violations(tmp_path, (("*",),))
    assert found in ("a circle: a < b < a", "a circle: b < a < b")
