"""``wfcast anneal`` and ``wfcast extrapolate``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._progress import bar, log
from ._arguments import (
    Add,
    Result,
    add_output,
    output_of,
    positive,
    run_of,
    step_path,
    with_left_out,
)

if TYPE_CHECKING:
    from .._runs import Run


def add_anneal(add: Add) -> None:
    """The arguments of ``anneal``."""
    parser = add("anneal", _anneal, "Average a run: about what a decay of its rate would make.")
    _add_run(parser)
    parser.add_argument(
        "--profile",
        nargs="+",
        type=_profile,
        default=[10.0],
        help="a power of the step, mean, linear or minus-sqrt (10); several with --judge",
    )
    _add_choice(parser)
    add_output(parser)


def add_extrapolate(add: Add) -> None:
    """The arguments of ``extrapolate``."""
    parser = add("extrapolate", _extrapolate, "Draw the line through a run on.")
    _add_run(parser)
    parser.add_argument(
        "--ahead",
        nargs="+",
        type=float,
        default=[0.5],
        metavar="HISTORIES",
        help="how far beyond the last one, in lengths of the run (0.5); several with --judge",
    )
    parser.add_argument(
        "--strategy",
        choices=("line", "low-rank", "two-point"),
        default="line",
        help="line through all checkpoints, in the main directions, or through two (line)",
    )
    parser.add_argument("--rank", type=positive, help="of low-rank (2)")
    _add_choice(parser)
    add_output(parser)


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run",
        nargs="+",
        type=step_path,
        metavar="RUN",
        help="a folder of checkpoint-500, ... or step-500.safetensors, ...; or STEP=PATH ...",
    )
    parser.add_argument(
        "--window", type=float, metavar="SHARE", help="use the last share of the steps, such as 0.5"
    )
    parser.add_argument("--last", type=positive, metavar="N", help="use the last N checkpoints")
    parser.add_argument(
        "--every", type=positive, metavar="STEPS", help="use checkpoints so many steps apart"
    )


def _add_choice(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--judge",
        metavar="COMMAND",
        help="such as 'python eval.py {}': its last number counts, the least is the best, also "
        "beside that of the latest checkpoint",
    )
    parser.add_argument("--maximize", action="store_true", help="the largest number is the best")
    parser.add_argument(
        "--judge-timeout", type=float, metavar="SECONDS", help="kill a judge that takes longer"
    )


def _profile(text: str) -> float | str:
    if text in ("mean", "linear", "minus-sqrt"):
        return text
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no power such as 10, and not mean, linear or minus-sqrt"
        ) from None


def _anneal(args: argparse.Namespace) -> Result:
    from ..readout import anneal_run

    return _readout(args, anneal_run, profile=args.profile)


def _extrapolate(args: argparse.Namespace) -> Result:
    from ..readout import extrapolate_run

    if args.rank is not None and args.strategy != "low-rank":
        args.usage_error("--rank goes with --strategy low-rank")
    rank = 2 if args.rank is None else args.rank
    return _readout(args, extrapolate_run, ahead=args.ahead, strategy=args.strategy, rank=rank)


def _readout(args: argparse.Namespace, function: Callable[..., Any], **options: Any) -> Result:
    from ..checkpoint import open_checkpoint
    from ..readout import CommandJudge

    if args.window is not None and args.last is not None:
        args.usage_error("--window and --last exclude each other")
    if args.judge is None and (args.maximize or args.judge_timeout is not None):
        args.usage_error("--maximize and --judge-timeout go with --judge")
    given = next(value for name, value in options.items() if name in ("profile", "ahead"))
    if args.judge is None and len(given) > 1:
        args.usage_error("several values need a judge to choose by: --judge 'python eval.py {}'")
    judge = None
    if args.judge is not None:
        command = CommandJudge(args.judge, args.judge_timeout)

        def judge(path: Path) -> float:
            log(f"judging {path.parent.name}")
            number = command(path)
            log(f"judged {path.parent.name}: {number:g}")
            return number

    run = _run_of(args)
    tensors = open_checkpoint(run[max(run)], f"the run, step {max(run)}", args.key).tensors
    with bar(
        sum(t.nbytes for t in tensors.values()),
        function.__name__.removesuffix("_run"),
        "B",
        scale=True,
    ) as shown:

        def progress(name: str, rows: int) -> None:
            shown.update(rows * tensors[name].nbytes // tensors[name].size if rows else 0)

        done = function(
            run,
            args.out,
            window=args.window,
            last=args.last,
            every=args.every,
            judge=judge,
            maximize=args.maximize,
            n_threads=args.threads,
            progress=progress,
            **options,
            **output_of(args),
        )
    return with_left_out(done.to_dict(), str(done), run.left_out)


def _run_of(args: argparse.Namespace) -> Run:
    from .._runs import check_run

    named = [(step, path) for step, path in args.run if step is not None]
    if len(named) == len(args.run):
        return check_run(run_of(named, "the run"), (), "the run")
    if len(args.run) > 1:
        args.usage_error("give one folder, or all checkpoints as STEP=PATH")
    return check_run(args.run[0][1], (), "the run", args.key)
