"""``wfcast forecast``."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .._errors import CheckpointError, WfcastError
from .._progress import bar, log
from ._arguments import Add, Result, add_output, output_of, run_of, step_path, with_left_out

if TYPE_CHECKING:
    from .._operator import Operator
    from .._runs import Run


def add_forecast(add: Add) -> None:
    """Its arguments."""
    forecast = add("forecast", _forecast, "Forecast a checkpoint from observed ones, file to file.")
    forecast.add_argument(
        "checkpoints",
        nargs="+",
        type=step_path,
        metavar="[STEP=]PATH",
        help="file or folder; without STEP they are the farcaster's inputs in order (of line and "
        "persistence their names say it); or one folder of checkpoints, a run",
    )
    forecast.add_argument(
        "--farcaster",
        type=Path,
        required=True,
        metavar="FILE",
        help="what fit has saved; or 'line' or 'persistence', which need no fit (./line: a file)",
    )
    forecast.add_argument("--step", type=int, help="one of the targets of the fit")
    add_output(forecast)


def _forecast(args: argparse.Namespace) -> Result:
    from .. import forecast_checkpoint
    from ..checkpoint import open_checkpoint

    operator, run = _operator_and_run(args)
    if args.threads is not None:
        operator.n_threads = args.threads
    last = next((s for s in reversed(operator.inputs) if s in run), max(run))
    tensors = open_checkpoint(run[last], f"the run, step {last}", args.key).tensors
    with bar(sum(t.nbytes for t in tensors.values()), "forecast", "B", scale=True) as shown:

        def progress(name: str, rows: int) -> None:
            shown.update(rows * tensors[name].nbytes // tensors[name].size if rows else 0)

        done = forecast_checkpoint(
            operator,
            run,
            args.step,
            out=args.out,
            **output_of(args),
            progress=progress,
        )
    return with_left_out(done.to_dict(), str(done), run.left_out)


def _operator_and_run(args: argparse.Namespace) -> tuple[Operator, Run]:
    """The saved farcaster, or a baseline made for the steps at hand; the checkpoints by step."""
    from .. import linear_trend, load, persistence
    from .._runs import Run, check_run, is_run

    (given, first), *others = args.checkpoints
    alone = given is None and not others
    folder = first if alone and is_run(first, args.key) else None
    make, least = {"line": (linear_trend, 2), "persistence": (persistence, 1)}.get(
        str(args.farcaster), (None, 0)
    )
    if make is None:
        if not args.farcaster.exists():
            raise CheckpointError(
                f"--farcaster: there is no file {str(args.farcaster)!r}; 'line' and 'persistence' "
                "need none"
            )
        if args.out.exists() and args.out.samefile(args.farcaster):
            raise CheckpointError(f"cannot write {str(args.out)!r}: it is the farcaster")
        operator = load(args.farcaster)
        if folder is not None:
            return operator, check_run(folder, operator.inputs, "the run", args.key)
        return operator, Run(_observed(args.checkpoints, operator.inputs))
    if args.step is None:
        raise WfcastError(
            f"--farcaster {args.farcaster} is made from the steps: give --step, and the "
            "checkpoints as STEP=PATH, by names that say their steps, or as one folder"
        )
    if folder is None:
        run = Run(run_of([_with_step(*one) for one in args.checkpoints], "the run"))
        return make(tuple(run), (args.step,)), run
    run = check_run(folder, (), "the run", args.key)
    before = [step for step in run if step < args.step]
    if len(before) < least:
        raise CheckpointError(
            f"the run has {len(before)} checkpoints before step {args.step}, expected {least} for "
            f"--farcaster {args.farcaster}; it has {', '.join(map(str, run))}"
        )
    inputs = before[-least:]
    log(f"forecast from step{'s' * (least > 1)} {', '.join(map(str, inputs))} of {folder}")
    return make(inputs, (args.step,)), run


def _observed(given: Sequence[tuple[int | None, Path]], inputs: Sequence[int]) -> dict[int, Path]:
    """The checkpoints by step; those without one are the inputs in order."""
    named = [(step, path) for step, path in given if step is not None]
    if len(named) == len(given):
        return run_of(named, "the run")
    if named:
        raise CheckpointError("give all checkpoints as STEP=PATH, or none of them")
    if len(given) != len(inputs):
        raise CheckpointError(
            f"checkpoints given: {len(given)}, expected one for each of the farcaster's "
            f"{len(inputs)} input steps, {', '.join(map(str, inputs))}"
        )
    return dict(zip(inputs, (path for _, path in given), strict=True))


def _with_step(step: int | None, path: Path) -> tuple[int, Path]:
    """A checkpoint, by the step that its name says where none is given."""
    from ..checkpoint import said_of

    if step is not None:
        return step, path
    said = said_of(Path(os.path.abspath(path)))
    if said is None or said.kind == "epoch" or len(said.numbers) > 1:
        raise CheckpointError(
            f"the name of {str(path)!r} says no step, or not which: give it as STEP=PATH"
        )
    return said.numbers[0], path
