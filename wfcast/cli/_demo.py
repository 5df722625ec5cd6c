"""``wfcast demo``."""

from __future__ import annotations

import argparse
from pathlib import Path

from ._arguments import Add, Result, positive, seed


def add_demo(add: Add) -> None:
    """Its arguments."""
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
        type=positive,
        help="length of the recorded runs; all of the size's steps are scaled to it",
    )
    demo.add_argument("--seed", type=seed, default=0, help="of the fresh run; siblings follow (0)")
    demo.add_argument("--threads", type=positive, help="CPU threads (by size)")
    demo.add_argument(
        "--overwrite", action="store_true", help="replace the results of an earlier demo"
    )


def _demo(args: argparse.Namespace) -> Result:
    from ..demo import run_demo

    return run_demo(
        args.size,
        args.out,
        steps=args.steps,
        seed=args.seed,
        threads=args.threads,
        overwrite=args.overwrite,
    )
