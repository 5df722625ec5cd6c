"""The command line: ``wfcast fit | forecast | inspect | compare | demo``.

Results go to stdout, as a table or (``--json``) as one JSON document; log lines and progress bars
go to stderr. Exit code 0: done, 1: failed, 2: bad usage, 130: interrupted.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._errors import CheckpointError, WfcastError
from ._progress import FitBar, bar, log
from ._terminal import printable
from ._version import __version__

if TYPE_CHECKING:
    from ._operator import Operator

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments; those of the process by default.

    Returns
    -------
    int
        The exit code. Bad usage raises ``SystemExit(2)``, as argparse does, and Ctrl-C
        KeyboardInterrupt, which `wfcast.__main__` turns into 130.
    """
    for stream in (sys.stdout, sys.stderr):  # names of files may be no text
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    args = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], tuple[dict[str, Any], str]] = args.command
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *where: log(f"wfcast: warning: {_line(message)}")
            document, text = command(args)
        print(json.dumps(document, indent=2, allow_nan=False) if args.json else text, flush=True)
    except BrokenPipeError:  # the reader of stdout went away: nothing more to say to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (WfcastError, OSError, MemoryError) as error:
        reason = _line(error) or type(error).__name__
        print(f"wfcast: error: {reason}", file=sys.stderr)
        return 1
    return 0


def _line(message: object) -> str:
    return printable(" ".join(str(message).split()))


# ---- arguments ----------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="wfcast",
        description="Forecast the weights of a neural network in the middle of its training.",
    )
    parser.add_argument("--version", action="version", version=f"wfcast {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, command: Any, summary: str) -> argparse.ArgumentParser:
        sub: argparse.ArgumentParser = commands.add_parser(name, help=summary, description=summary)
        sub.set_defaults(command=command, usage_error=sub.error)
        sub.add_argument("--json", action="store_true", help="print JSON on stdout")
        return sub

    fit = add("fit", _fit, "Fit a farcaster to recorded runs and save it.")
    fit.add_argument(
        "folders",
        nargs="*",
        type=Path,
        metavar="FOLDER",
        help="a run: a folder of checkpoint-0, checkpoint-500, ... or step-500.safetensors, ...",
    )
    fit.add_argument(
        "--run",
        nargs="+",
        action="append",
        type=_step_and_path,
        default=[],
        metavar="STEP=PATH",
        help="a run, checkpoint by checkpoint; may be given several times",
    )
    fit.add_argument("--inputs", type=_steps, required=True, help="observed steps, such as 0,500")
    fit.add_argument("--targets", type=_steps, required=True, help="steps ahead, as 1000,1500")
    fit.add_argument(
        "--by",
        choices=("tensor", "all"),
        default="tensor",
        help="coefficients for each tensor, or one set for all of them (tensor)",
    )
    fit.add_argument(
        "--loss",
        choices=("absolute_error", "squared_error"),
        default="absolute_error",
        help="(absolute_error)",
    )
    fit.add_argument(
        "--beta",
        type=float,
        help="weight of the update-norm hinge (1e-6; 0 with one target or squared_error)",
    )
    fit.add_argument("--alpha", type=float, default=0.0, help="ridge penalty, with squared_error")
    fit.add_argument("--no-intercept", action="store_true", help="fit no intercept")
    fit.add_argument("--tol", type=float, default=1e-9, help="certified relative gap (1e-9)")
    fit.add_argument("--threads", type=_positive, help="threads (all CPUs)")
    fit.add_argument(
        "-o",
        "--out",
        type=Path,
        default=Path("farcaster.safetensors"),
        help="file to write (farcaster.safetensors)",
    )

    forecast = add("forecast", _forecast, "Forecast a checkpoint from observed ones, file to file.")
    forecast.add_argument(
        "checkpoints",
        nargs="+",
        type=_step_path,
        metavar="[STEP=]PATH",
        help="file or folder; without STEP they are the farcaster's inputs in order",
    )
    forecast.add_argument(
        "--farcaster",
        type=Path,
        required=True,
        metavar="FILE",
        help="what fit has saved; or 'line' or 'persistence', which need no fit (./line: a file)",
    )
    forecast.add_argument("--step", type=int, help="one of the targets of the fit")
    forecast.add_argument(
        "-o", "--out", type=Path, required=True, help="checkpoint to write; a file is replaced"
    )
    forecast.add_argument(
        "--include",
        nargs="+",
        action="extend",
        metavar="PATTERN",
        help="tensors to forecast (all); * for anything",
    )
    forecast.add_argument(
        "--exclude",
        nargs="+",
        action="extend",
        metavar="PATTERN",
        default=[],
        help="tensors to copy",
    )
    forecast.add_argument(
        "--norms", choices=("forecast", "copy"), default="forecast", help="layer norms (forecast)"
    )
    forecast.add_argument(
        "--nonfinite",
        choices=("error", "copy"),
        default="error",
        help="tensors with NaN or infinity (error)",
    )
    forecast.add_argument(
        "--partial", action="store_true", help="copy tensors that not all checkpoints have alike"
    )
    forecast.add_argument(
        "--format", choices=("safetensors", "torch", "dcp"), help="(the last checkpoint's)"
    )
    forecast.add_argument(
        "--shard-size", type=_size, metavar="SIZE", help="such as 5GB: write shards of that size"
    )
    forecast.add_argument(
        "--overwrite", action="store_true", help="replace OUT, a folder, and all that is in it"
    )
    forecast.add_argument("--threads", type=_positive, help="threads (all CPUs)")

    inspect = add("inspect", _inspect, "Show what a farcaster, a checkpoint or a run holds.")
    inspect.add_argument("path", type=Path, metavar="PATH", help="file or folder")
    inspect.add_argument("--threads", type=_positive, help="threads (all CPUs)")

    compare = add("compare", _compare, "Errors of checkpoint A against checkpoint B.")
    compare.add_argument("predicted", type=Path, metavar="A", help="file or folder: a forecast")
    compare.add_argument("true", type=Path, metavar="B", help="file or folder: what really came")
    compare.add_argument("--threads", type=_positive, help="threads (all CPUs)")

    demo = add(
        "demo",
        _demo,
        'Forecast DistilBERT in mid-training; needs the extra "demo".',
    )
    demo.add_argument(
        "--size",
        choices=("tiny", "small", "base"),
        default="small",
        help="small: minutes on two cores; base: the 66M DistilBERT",
    )
    demo.add_argument("--out", type=Path, default=Path("wfcast-demo"), help="folder (wfcast-demo)")
    demo.add_argument(
        "--steps",
        type=_positive,
        help="length of the recorded runs; all of the size's steps are scaled to it",
    )
    demo.add_argument("--seed", type=_seed, default=0, help="of the fresh run; siblings follow (0)")
    demo.add_argument("--threads", type=_positive, help="CPU threads (by size)")
    demo.add_argument(
        "--overwrite", action="store_true", help="replace the results of an earlier demo"
    )
    return parser


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return value


def _seed(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) < 2**31):
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer from 0 to 2^31 - 1")
    return int(text)


def _steps(text: str) -> tuple[int, ...]:
    try:
        steps = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of steps such as 0,500") from None
    if any(a >= b for a, b in zip((-1, *steps), steps, strict=False)):
        raise argparse.ArgumentTypeError(f"steps must increase from 0 on, {text!r} does not")
    return steps


def _step_path(text: str) -> tuple[int | None, Path]:
    step, equals, path = text.partition("=")
    if equals and step.isascii() and step.isdigit() and len(step) < 19 and path:
        return int(step), Path(os.path.expanduser(path))  # in which no shell puts a home for ~
    if not text or (equals and not Path(text).exists()):
        raise argparse.ArgumentTypeError(f"{text!r} is not STEP=PATH, such as 500=run/model.st")
    return None, Path(text)


def _step_and_path(text: str) -> tuple[int, Path]:
    step, path = _step_path(text)
    if step is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not STEP=PATH, such as 500=run/model.st")
    return step, path


_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def _size(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,18}(?:\.[0-9]+)?) ?([kKmMgG]?[bB]?)", text)
    unit = _UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None or float(match[1]) * unit < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 500MB or 5GB")
    return int(float(match[1]) * unit)


def _run_of(pairs: Sequence[tuple[int, Path]], what: str) -> dict[int, Path]:
    run: dict[int, Path] = {}
    for step, path in pairs:
        if step in run:
            raise CheckpointError(f"{what} has step {step} twice: {run[step]} and {path}")
        run[step] = path
    return dict(sorted(run.items()))


def _observed(given: Sequence[tuple[int | None, Path]], inputs: Sequence[int]) -> dict[int, Path]:
    """The checkpoints by step; those without one are the inputs in order."""
    named = [(step, path) for step, path in given if step is not None]
    if len(named) == len(given):
        return _run_of(named, "the run")
    if named:
        raise CheckpointError("give all checkpoints as STEP=PATH, or none of them")
    if len(given) != len(inputs):
        raise CheckpointError(
            f"checkpoints given: {len(given)}, expected one for each of the farcaster's "
            f"{len(inputs)} input steps, {', '.join(map(str, inputs))}"
        )
    return dict(zip(inputs, (path for _, path in given), strict=True))


# ---- commands: each returns its JSON document and its text --------------------------------------

_Result = tuple[dict[str, Any], str]


def _fit(args: argparse.Namespace) -> _Result:
    from ._atomic import check_target
    from ._runs import check_run
    from .checkpoint import open_checkpoint
    from .model import ModelFarcaster, pass_sizes
    from .report import FarcasterReport

    if not (args.folders or args.run):
        args.usage_error("no run given: name folders, or --run STEP=PATH ...")
    check_target(args.out)
    if args.out.exists():
        _check_is_farcaster(args.out)
    runs: list[Any] = list(args.folders)
    runs += [_run_of(pairs, f"--run number {i}") for i, pairs in enumerate(args.run, 1)]
    farcaster = ModelFarcaster(
        inputs=args.inputs,
        targets=args.targets,
        by=args.by,
        loss=args.loss,
        beta=args.beta,
        alpha=args.alpha,
        fit_intercept=not args.no_intercept,
        tol=args.tol,
        n_threads=args.threads,
    )
    runs = [check_run(run, (), f"run {i}") for i, run in enumerate(runs)]
    columns = len(args.inputs) + len(args.targets)
    first: Any = next((run[s] for run in runs for s in args.inputs if s in run), None)
    sizes = {}
    if first is not None:
        sizes = pass_sizes(open_checkpoint(first, "run 0"), args.by, columns, len(runs))
    with FitBar(sizes, "fit") as progress:
        farcaster.fit(runs, progress=progress)
    farcaster.save(args.out)
    log(f"wrote {args.out}")
    report = FarcasterReport(farcaster.operator_, str(args.out))
    return {**report.to_dict(), "runs": len(runs)}, str(report)


def _check_is_farcaster(out: Path) -> None:
    """A fit may replace what a fit has written, and nothing else."""
    from . import load

    try:
        load(out)
    except CheckpointError as error:
        raise CheckpointError(
            f"cannot write {str(out)!r}: it is there and is no farcaster; remove it first"
        ) from error


def _forecast(args: argparse.Namespace) -> _Result:
    from . import forecast_checkpoint
    from .checkpoint import open_checkpoint

    operator, run = _operator_and_run(args)
    if args.threads is not None:
        operator.n_threads = args.threads
    last = next((s for s in reversed(operator.inputs) if s in run), max(run))
    tensors = open_checkpoint(run[last], f"the run, step {last}").tensors
    with bar(sum(t.nbytes for t in tensors.values()), "forecast", "B", scale=True) as shown:

        def progress(name: str, rows: int) -> None:
            shown.update(rows * tensors[name].nbytes // tensors[name].size if rows else 0)

        done = forecast_checkpoint(
            operator,
            run,
            args.step,
            out=args.out,
            include=args.include,
            exclude=args.exclude,
            norms=args.norms,
            nonfinite=args.nonfinite,
            partial=args.partial,
            format=args.format,
            shard_size=args.shard_size,
            overwrite=args.overwrite,
            progress=progress,
        )
    return done.to_dict(), str(done)


def _operator_and_run(args: argparse.Namespace) -> tuple[Operator, dict[int, Path]]:
    """The saved farcaster, or a baseline made for the steps at hand; the checkpoints by step."""
    from . import linear_trend, load, persistence

    make = {"line": linear_trend, "persistence": persistence}.get(str(args.farcaster))
    if make is None:
        if not args.farcaster.exists():
            raise CheckpointError(
                f"--farcaster: there is no file {str(args.farcaster)!r}; 'line' and 'persistence' "
                "need none"
            )
        if args.out.exists() and args.out.samefile(args.farcaster):
            raise CheckpointError(f"cannot write {str(args.out)!r}: it is the farcaster")
        operator = load(args.farcaster)
        return operator, _observed(args.checkpoints, operator.inputs)
    if args.step is None or any(step is None for step, _ in args.checkpoints):
        raise WfcastError(
            f"--farcaster {args.farcaster} is made from the steps: give --step, and the "
            "checkpoints as STEP=PATH"
        )
    run = _observed(args.checkpoints, ())
    return make(tuple(run), (args.step,)), run


def _inspect(args: argparse.Namespace) -> _Result:
    from .report import look, nbytes_read, report_on

    found = look(args.path)
    total, of_weight = nbytes_read(found)
    with bar(total, "inspect", "B", scale=True) as shown:
        report = report_on(
            found,
            str(args.path),
            n_threads=args.threads,
            progress=lambda name, n: shown.update(n * of_weight[name]),
        )
    return report.to_dict(), str(report)


def _compare(args: argparse.Namespace) -> _Result:
    from .checkpoint import open_checkpoint
    from .report import compare_checkpoints, floating

    a = open_checkpoint(args.predicted, "the first checkpoint")
    b = open_checkpoint(args.true, "the second checkpoint")
    both = [name for name in floating(a) if name in b.tensors]
    of_weight = {name: (a.tensors[name].bits + b.tensors[name].bits) // 8 for name in both}
    total = sum(a.tensors[name].size * of_weight[name] for name in both)
    with bar(total, "compare", "B", scale=True) as shown:
        report = compare_checkpoints(
            args.predicted,
            args.true,
            n_threads=args.threads,
            progress=lambda name, n: shown.update(n * of_weight[name]),
        )
    return report.to_dict(), str(report)


def _demo(args: argparse.Namespace) -> _Result:
    from .demo import run_demo

    return run_demo(
        args.size,
        args.out,
        steps=args.steps,
        seed=args.seed,
        threads=args.threads,
        overwrite=args.overwrite,
    )
