"""Names chosen by shell patterns."""

import pytest

from wfcast import WfcastError
from wfcast._patterns import chosen

NAMES = {"head.weight": ["head.weight"], "body.weight": ["body.weight", "tail.weight"]}


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        (None, None, {"head.weight", "body.weight"}),
        ([], None, set()),
        (None, [], {"head.weight", "body.weight"}),
        ("head.*", None, {"head.weight"}),
        (["head.*"], None, {"head.weight"}),
        (("head.*", "tail.*"), None, {"head.weight", "body.weight"}),
        ("tail.weight", None, {"body.weight"}),
        (None, "tail.weight", {"head.weight"}),
        ("*", "head.?eight", {"body.weight"}),
        ("[bh]*", "*", set()),
    ],
)
def test_chosen(include, exclude, expected):
    assert chosen(NAMES, include, exclude, "tensors") == expected


@pytest.mark.parametrize("argument", ["include", "exclude"])
@pytest.mark.parametrize("pattern", ["HEAD.*", "head", ""])
def test_a_pattern_that_matches_nothing(argument, pattern):
    patterns = {"include": None, "exclude": None, argument: ["*.weight", pattern]}
    message = (
        f"^{argument}: the pattern {pattern!r} matches none of the 3 tensors of a file, such as "
        r"'head\.weight'; \* stands for anything$"
    ).replace("HEAD.*", r"HEAD\.\*")
    with pytest.raises(WfcastError, match=message):
        chosen(NAMES, **patterns, what="tensors of a file")


@pytest.mark.parametrize("patterns", [3, ["head.*", 3], b"head.*"])
def test_no_patterns(patterns):
    with pytest.raises(TypeError, match=r"exclude is .*, expected a pattern or a list of patterns"):
        chosen(NAMES, None, patterns, "tensors")


def test_no_names():
    assert chosen({}, None, None, "tensors") == set()
    with pytest.raises(WfcastError, match=r"matches none of the 0 tensors; \* stands for anything"):
        chosen({}, "*", None, "tensors")


def test_patterns_may_come_one_by_one():
    names = {name: [name] for name in ("a", "b")}
    assert chosen(names, (p for p in ["a"]), None, "tensors") == {"a"}
    assert chosen(names, None, map(str, ["a"]), "tensors") == {"b"}
    with pytest.raises(WfcastError, match="the pattern 'c' matches none"):
        chosen(names, None, iter(["c"]), "tensors")


def test_a_name_matches_itself_whatever_is_in_it():
    names = {name: [name] for name in ("layers[0].w", "layers0.w")}
    assert chosen(names, "layers[0].w", None, "tensors") == set(names)
    assert chosen({"layers[0].w": ["layers[0].w"]}, "layers[0].w", None, "t") == {"layers[0].w"}
