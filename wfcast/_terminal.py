"""What the command line shows: log lines and progress bars on stderr, tables for stdout."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

from tqdm import tqdm

__all__ = ["FitBar", "bar", "log", "table"]


def log(message: str) -> None:
    """One line on stderr, above any bar that is running."""
    tqdm.write(message, file=sys.stderr)


def bar(total: int | None, what: str, unit: str, *, scale: bool = False) -> Any:
    """A progress bar on stderr; where that is no terminal it is redrawn every few seconds only.

    `scale` shows thousands and millions of the unit. Without a `total` it shows the rate alone,
    and nothing where that is done within a second.
    """
    interval = 0.1 if sys.stderr.isatty() else 5.0
    return tqdm(
        total=total,
        desc=what,
        unit=unit,
        file=sys.stderr,
        mininterval=interval,
        maxinterval=max(10.0, interval),
        dynamic_ncols=True,
        smoothing=0.1,
        unit_scale=scale,
        delay=0 if total is not None else 1,
        leave=total is not None,
    )


class FitBar:
    """A bar over tensors, fed by the `progress` callback of a fit or of a forecast.

    The number of passes over the data is not known beforehand, so tensors are counted, not rows.
    """

    def __init__(self, total: int, what: str) -> None:
        self._bar = bar(total, what, "tensor")
        self._current: str | None = None

    def __call__(self, name: str, rows: int) -> None:
        if name != self._current:
            if self._current is not None:
                self._bar.update()
            self._current = name

    def __enter__(self) -> FitBar:
        return self

    def __exit__(self, kind: Any, value: Any, trace: Any) -> None:
        if kind is None:
            self._bar.update(self._bar.total - self._bar.n)
        self._bar.close()


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> str:
    """Columns as wide as their widest cell; the first `left` of them flush left, the rest right."""
    cells = [list(header), *(list(row) for row in rows)]
    widths = [max(len(row[k]) for row in cells) for k in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(width) if k < left else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)
