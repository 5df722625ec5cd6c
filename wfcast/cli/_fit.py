"""``wfcast fit``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .._errors import CheckpointError
from .._progress import FitBar, log
from ._arguments import Add, Result, Steps, add_key, positive, run_of, step_and_path, with_left_out


def add_fit(add: Add) -> None:
    """Its arguments."""
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
        type=step_and_path,
        default=[],
        metavar="STEP=PATH",
        help="a run, checkpoint by checkpoint; may be given several times",
    )
    fit.add_argument(
        "--inputs",
        nargs="+",
        action=Steps,
        required=True,
        metavar="STEP",
        help="observed steps, such as 0,500",
    )
    fit.add_argument(
        "--targets",
        nargs="+",
        action=Steps,
        required=True,
        metavar="STEP",
        help="steps ahead, as 1000,1500",
    )
    fit.set_defaults(folders_behind=())
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
    add_key(fit)
    fit.add_argument("--threads", type=positive, help="threads (all CPUs)")
    fit.add_argument(
        "-o",
        "--out",
        type=Path,
        help="file to write (farcaster.safetensors)",
    )


def _fit(args: argparse.Namespace) -> Result:
    from .._atomic import check_target
    from .._runs import check_run
    from ..checkpoint import open_checkpoint
    from ..model import ModelFarcaster, pass_sizes
    from ..report import FarcasterReport

    folders = [*args.folders, *args.folders_behind]
    if not (folders or args.run):
        args.usage_error("no run given: name folders, or --run STEP=PATH ...")
    if args.out is None:
        args.out = Path("farcaster.safetensors")
        if args.out.exists():
            raise CheckpointError(f"{str(args.out)!r} is there: name it with -o to replace it")
    check_target(args.out)
    if args.out.exists():
        _check_is_farcaster(args.out)
    given: list[Any] = list(folders)
    given += [run_of(pairs, f"--run number {i}") for i, pairs in enumerate(args.run, 1)]
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
    runs = [check_run(run, (), f"run {i}", args.key) for i, run in enumerate(given)]
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
    return with_left_out(
        {**report.to_dict(), "runs": len(runs)},
        f"{report.summary()}\nfitted to {len(runs)} run{'s' * (len(runs) > 1)}; "
        f"wfcast inspect {args.out} shows each tensor",
        [reason for run in runs for reason in run.left_out],
    )


def _check_is_farcaster(out: Path) -> None:
    """A fit may replace what a fit has written, and nothing else."""
    from .. import load

    try:
        load(out)
    except CheckpointError as error:
        raise CheckpointError(
            f"cannot write {str(out)!r}: it is there and is no farcaster; remove it first"
        ) from error
