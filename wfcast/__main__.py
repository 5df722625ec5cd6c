"""``wfcast`` and ``python -m wfcast``: the command line, whose imports Ctrl-C may end, too."""

import sys

__all__ = ["main"]


def main() -> int:
    """Run one command; the exit code."""
    try:
        from .cli import main as run

        return run()
    except KeyboardInterrupt:
        print("wfcast: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
