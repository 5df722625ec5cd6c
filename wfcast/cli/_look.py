"""``wfcast inspect`` and ``wfcast compare``."""

from __future__ import annotations

import argparse
from pathlib import Path

from .._progress import bar
from ._arguments import Add, Result, add_key, positive


def add_inspect(add: Add) -> None:
    """The arguments of ``inspect``."""
    inspect = add("inspect", _inspect, "Show what a farcaster, a checkpoint or a run holds.")
    inspect.add_argument("path", type=Path, metavar="PATH", help="file or folder")
    add_key(inspect)
    inspect.add_argument("--threads", type=positive, help="threads (all CPUs)")


def add_compare(add: Add) -> None:
    """The arguments of ``compare``."""
    compare = add("compare", _compare, "Errors of checkpoint A against checkpoint B.")
    compare.add_argument("predicted", type=Path, metavar="A", help="file or folder: a forecast")
    compare.add_argument("true", type=Path, metavar="B", help="file or folder: what really came")
    add_key(compare)
    compare.add_argument("--threads", type=positive, help="threads (all CPUs)")


def _inspect(args: argparse.Namespace) -> Result:
    from ..report import look, nbytes_read, report_on

    found = look(args.path, args.key)
    total, of_weight = nbytes_read(found)
    with bar(total, "inspect", "B", scale=True) as shown:
        report = report_on(
            found,
            str(args.path),
            n_threads=args.threads,
            progress=lambda name, n: shown.update(n * of_weight[name]),
        )
    return report.to_dict(), str(report)


def _compare(args: argparse.Namespace) -> Result:
    from ..checkpoint import open_checkpoint
    from ..report import compare_checkpoints, floating

    a = open_checkpoint(args.predicted, "the first checkpoint", args.key, needed=False)
    b = open_checkpoint(args.true, "the second checkpoint", args.key, needed=False)
    both = [name for name in floating(a) if name in b.tensors]
    of_weight = {name: (a.tensors[name].bits + b.tensors[name].bits) // 8 for name in both}
    total = sum(a.tensors[name].size * of_weight[name] for name in both)
    with bar(total, "compare", "B", scale=True) as shown:
        report = compare_checkpoints(
            args.predicted,
            args.true,
            key=args.key,
            n_threads=args.threads,
            progress=lambda name, n: shown.update(n * of_weight[name]),
        )
    return report.to_dict(), str(report)
