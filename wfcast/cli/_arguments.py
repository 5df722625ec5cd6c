"""What the commands have in common: kinds of arguments, and groups of options."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .._errors import CheckpointError

Result = tuple[dict[str, Any], str]
"""What a command returns: its JSON document and its text."""

Add = Callable[[str, Callable[[argparse.Namespace], Result], str], argparse.ArgumentParser]
"""Called as add(name, command, summary): a parser for the arguments of a command."""


def positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return value


def seed(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) < 2**31):
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer from 0 to 2^31 - 1")
    return int(text)


def step_list(text: str) -> tuple[int, ...]:
    try:
        steps = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of steps such as 0,500") from None
    if any(a >= b for a, b in zip((-1, *steps), steps, strict=False)):
        raise argparse.ArgumentTypeError(f"steps must increase from 0 on, {text!r} does not")
    return steps


class Steps(argparse.Action):
    """Steps, as 0,500 or as 0 500; what follows them and is no step is one more FOLDER."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        ends = (k for k, text in enumerate(values) if not re.fullmatch("[0-9,]+", text))
        end = max(1, next(ends, len(values)))
        try:
            setattr(namespace, self.dest, step_list(",".join(values[:end])))
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentError(self, str(error)) from None
        namespace.folders_behind = [*namespace.folders_behind, *map(Path, values[end:])]


def step_path(text: str) -> tuple[int | None, Path]:
    step, equals, path = text.partition("=")
    if equals and step.isascii() and step.isdigit() and len(step) < 19 and path:
        return int(step), Path(os.path.expanduser(path))  # in which no shell puts a home for ~
    if not text or (equals and not Path(text).exists()):
        raise argparse.ArgumentTypeError(f"{text!r} is not STEP=PATH, such as 500=run/model.st")
    return None, Path(text)


def step_and_path(text: str) -> tuple[int, Path]:
    step, path = step_path(text)
    if step is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not STEP=PATH, such as 500=run/model.st")
    return step, path


_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def size(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,18}(?:\.[0-9]+)?) ?([kKmMgG]?[bB]?)", text)
    unit = _UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None or float(match[1]) * unit < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 500MB or 5GB")
    return int(float(match[1]) * unit)


def run_of(pairs: Sequence[tuple[int, Path]], what: str) -> dict[int, Path]:
    """The checkpoints by step, none of which has a name that says another step."""
    from ..checkpoint import step_named

    run: dict[int, Path] = {}
    for step, path in pairs:
        named = step_named(path)
        if named not in (None, step):
            raise CheckpointError(
                f"{what}: {str(path)!r} is given as step {step}, but its name says {named}: give "
                f"it as {named}={path}"
            )
        if step in run:
            raise CheckpointError(f"{what} has step {step} twice: {run[step]} and {path}")
        run[step] = path
    return dict(sorted(run.items()))


def with_left_out(document: dict[str, Any], text: str, left_out: Sequence[str]) -> Result:
    """A result, and at its end what of the folders of runs does not count, and why."""
    if left_out:
        text += "\n\n" + "\n".join(f"left out, {reason}" for reason in left_out)
    return {**document, "left_out": list(left_out)}, text


# ---- the output of a forecast -------------------------------------------------------------------


def add_key(parser: argparse.ArgumentParser) -> None:
    """The option that chooses among the sets of weights in a file."""
    parser.add_argument(
        "--key", help="the set of weights to take from files that hold several, such as ema"
    )


def add_output(parser: argparse.ArgumentParser) -> None:
    """The options of what is written, and how."""
    parser.add_argument(
        "-o", "--out", type=Path, required=True, help="checkpoint to write; a file is replaced"
    )
    parser.add_argument(
        "--include",
        nargs="+",
        action="extend",
        metavar="PATTERN",
        help="tensors to forecast (all); * for anything",
    )
    parser.add_argument(
        "--exclude",
        nargs="+",
        action="extend",
        metavar="PATTERN",
        default=[],
        help="tensors to copy",
    )
    parser.add_argument(
        "--adapters",
        choices=("product", "factors"),
        default="product",
        help="LoRA: forecast the product B A, or A and B each by itself (product)",
    )
    parser.add_argument(
        "--norms", choices=("forecast", "copy"), default="forecast", help="layer norms (forecast)"
    )
    parser.add_argument(
        "--nonfinite",
        choices=("error", "copy"),
        default="error",
        help="tensors with NaN or infinity (error)",
    )
    parser.add_argument(
        "--partial", action="store_true", help="copy tensors that not all checkpoints have alike"
    )
    add_key(parser)
    parser.add_argument(
        "--format", choices=("safetensors", "torch", "dcp"), help="(the last checkpoint's)"
    )
    parser.add_argument(
        "--shard-size", type=size, metavar="SIZE", help="such as 5GB: write shards of that size"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace OUT, a folder, and all that is in it"
    )
    parser.add_argument("--threads", type=positive, help="threads (all CPUs)")


def output_of(args: argparse.Namespace) -> dict[str, Any]:
    """Their values, by the parameters of `forecast_checkpoint` and its like."""
    what = ("include", "exclude", "adapters", "norms", "nonfinite", "partial", "key")
    how = ("format", "shard_size", "overwrite")
    return {name: getattr(args, name) for name in (*what, *how)}
