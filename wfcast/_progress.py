"""Log lines and progress bars on stderr."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from functools import cache
from typing import Any, Self

__all__ = ["FitBar", "bar", "log", "quiet", "say"]

quiet: ContextVar[bool] = ContextVar("quiet", default=False)
"""Whether log lines and bars are left out."""


def log(message: str) -> None:
    """One line on stderr of what is being done, above any bar that is running."""
    if not quiet.get():
        say(message)


def say(message: str) -> None:
    """The same of what is to be known in any case."""
    if "tqdm" in sys.modules:  # else there is no bar
        sys.modules["tqdm"].tqdm.write(message, file=sys.stderr)
    else:
        print(message, file=sys.stderr)


@cache
def _shown_bar() -> Any:
    """The class of bars that are shown; tqdm takes as long to import as a small forecast."""
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[misc]
        """Shown from the first update on, so that an error before it stands alone."""

        def __init__(self, **options: Any) -> None:
            super().__init__(delay=math.inf, **options)
            self._shown = False

        def update(self, n: float = 1) -> None:
            if not self._shown:
                self._shown, self.delay = True, 0
                self.refresh()
            super().update(n)

    return Bar


class _NoBar:
    """What is used of a bar, where none is shown."""

    def __init__(self, total: int) -> None:
        self.total, self.n = total, 0.0

    def update(self, n: float = 1) -> None:
        self.n += n

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        pass

    def close(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass


def bar(total: int, what: str, unit: str, *, scale: bool = False) -> Any:
    """A progress bar on stderr, where that is a terminal.

    `scale` shows thousands and millions of the unit.
    """
    if quiet.get() or not sys.stderr.isatty():
        return _NoBar(total)
    return _shown_bar()(
        total=total,
        desc=what,
        unit=unit,
        file=sys.stderr,
        dynamic_ncols=True,
        smoothing=0.1,
        unit_scale=scale,
    )


class FitBar:
    """A bar over the bytes that a fit reads, fed by its `progress` callback.

    The number of passes over the data is not known beforehand: `PASSES` are expected of each
    coefficient set, and the total is corrected where it takes more, or fewer by when `OTHERS` were
    read since.

    Parameters
    ----------
    sizes : dict of str to (int, int)
        The rows and the bytes of a pass, by the name that is reported.
    what : str
    """

    PASSES = 2
    OTHERS = 3

    def __init__(self, sizes: Mapping[str, tuple[int, int]], what: str) -> None:
        self._sizes = sizes
        total = self.PASSES * sum(nbytes for _, nbytes in sizes.values())
        self._bar = bar(total, what, "B", scale=True)
        self._left = {name: self.PASSES * nbytes for name, (_, nbytes) in sizes.items()}
        self._recent: list[str] = []

    def __call__(self, name: str, rows: int) -> None:
        self._recent = [*(n for n in self._recent if n != name), name]
        if len(self._recent) > self.OTHERS:
            self._expect(self._recent.pop(0), 0)
        of_pass, nbytes = self._sizes[name]
        read = rows * nbytes // of_pass
        self._expect(name, max(self._left[name], read))
        self._left[name] -= read
        self._bar.update(read)

    def _expect(self, name: str, left: int) -> None:
        self._bar.total += left - self._left[name]
        self._left[name] = left

    def __enter__(self) -> FitBar:
        return self

    def __exit__(self, kind: Any, value: Any, trace: Any) -> None:
        if kind is None:
            self._bar.total = self._bar.n
        self._bar.close()
