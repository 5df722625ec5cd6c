"""What results have in common: one list of parts, shown as text, as HTML, as JSON and as a plot.

A `Report` is read in a terminal (``print``), in a notebook (HTML, `plot`) and by programs
(`to_dict`, `to_frame`).
"""

from __future__ import annotations

import html
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from .._errors import WfcastError
from .._terminal import printable, table

__all__ = ["Grid", "Report", "finite"]


class Grid(NamedTuple):
    """A table: the first `left` columns hold text, the others numbers."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1


class Report(ABC):
    """A result: ``print`` shows it in a terminal, a notebook as HTML; `plot` draws it."""

    __slots__ = ()

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON can hold it: None for NaN and infinity."""

    def to_frame(self) -> Any:
        """The rows of the report as a `pandas.DataFrame`; needs pandas.

        Returns
        -------
        pandas.DataFrame
            Numbers as they are, not as they are printed.
        """
        try:
            from pandas import DataFrame
        except ImportError:
            raise WfcastError("to_frame needs pandas, which is not installed") from None
        return DataFrame(list(self._rows()))

    @abstractmethod
    def _rows(self) -> Iterable[dict[str, Any]]:
        """The rows of `to_frame`."""

    @abstractmethod
    def _parts(self) -> Iterable[str | Grid]:
        """What is shown, one below the other."""

    @abstractmethod
    def _draw(self, ax: Any) -> None: ...

    def plot(self, ax: Any = None) -> Any:
        """Draw the report; needs Matplotlib (the extra "plot").

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Where; a new figure by default.

        Returns
        -------
        matplotlib.axes.Axes
        """
        from .._plot import axes

        ax = axes(ax)
        self._draw(ax)
        return ax

    def __str__(self) -> str:
        return "\n\n".join(
            "\n".join(map(printable, part.split("\n")))
            if isinstance(part, str)
            else table(part.header, part.rows, left=part.left)
            for part in self._parts()
        )

    __repr__ = __str__  # as a DataFrame: a session shows what print does

    def _repr_html_(self) -> str:
        shown = (
            f"<p>{html.escape(part).replace(chr(10), '<br>')}</p>"
            if isinstance(part, str)
            else _html_table(part)
            for part in self._parts()
        )
        return f"<div>{''.join(shown)}</div>"


def _html_table(grid: Grid) -> str:
    def row(tag: str, cells: Sequence[str]) -> str:
        aligned = (
            f'<{tag} style="text-align:{"left" if k < grid.left else "right"}">'
            f"{html.escape(cell)}</{tag}>"
            for k, cell in enumerate(cells)
        )
        return f"<tr>{''.join(aligned)}</tr>"

    body = "".join(row("td", cells) for cells in grid.rows)
    return (
        '<div style="max-height:30em;overflow:auto"><table>'
        f"<thead>{row('th', grid.header)}</thead><tbody>{body}</tbody></table></div>"
    )


def finite(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if math.isfinite(value) else None
