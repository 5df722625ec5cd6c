"""The command line: ``wfcast fit | forecast | anneal | extrapolate | inspect | compare | demo``.

Results go to stdout, as a table or (``--json``) as one JSON document; log lines and progress bars
go to stderr. Exit code 0: done, 1: failed, 2: bad usage, 130: interrupted. A module for each
command, or for two that are alike.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from .._errors import WfcastError
from .._progress import quiet, say
from .._terminal import printable
from .._version import __version__
from ._arguments import Result
from ._demo import add_demo
from ._fit import add_fit
from ._forecast import add_forecast
from ._look import add_compare, add_inspect
from ._readout import add_anneal, add_extrapolate

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
    loud = quiet.set(args.quiet)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *where: say(f"wfcast: warning: {_line(message)}")
            document, text = command(args)
        print(json.dumps(document, indent=2, allow_nan=False) if args.json else text, flush=True)
    except BrokenPipeError:  # the reader of stdout went away: nothing more to say to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (WfcastError, OSError, MemoryError) as error:
        reason = _line(error) or type(error).__name__
        print(f"wfcast: error: {reason}", file=sys.stderr)
        return 1
    finally:
        quiet.reset(loud)
    return 0


def _line(message: object) -> str:
    return printable(" ".join(str(message).split()))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="wfcast",
        description="Forecast the weights of a neural network in the middle of its training.",
    )
    parser.add_argument("--version", action="version", version=f"wfcast {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(
        name: str, command: Callable[[argparse.Namespace], Result], summary: str
    ) -> argparse.ArgumentParser:
        sub: argparse.ArgumentParser = commands.add_parser(name, help=summary, description=summary)
        sub.set_defaults(command=command, usage_error=sub.error)
        sub.add_argument("--json", action="store_true", help="print JSON on stdout")
        sub.add_argument("-q", "--quiet", action="store_true", help="no log lines and no bars")
        return sub

    for add_command in (
        add_fit,
        add_forecast,
        add_anneal,
        add_extrapolate,
        add_inspect,
        add_compare,
        add_demo,
    ):
        add_command(add)
    return parser
