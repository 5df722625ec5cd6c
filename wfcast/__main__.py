"""``wfcast`` and ``python -m wfcast``: the command line, whose imports Ctrl-C may end, too."""

import signal
import sys
from typing import NoReturn

__all__ = ["main"]


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does: nothing half-written is left behind."""


def main() -> int:
    """Run one command; the exit code."""
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminate)
    try:
        from .cli import main as run

        return run()
    except Terminated:
        print("wfcast: terminated", file=sys.stderr)
        return 128 + signal.SIGTERM
    except KeyboardInterrupt:
        print("wfcast: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT


def _terminate(signum: int, frame: object) -> NoReturn:
    raise Terminated


if __name__ == "__main__":
    sys.exit(main())
