"""Text for a terminal: names that may hold anything, and tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["printable", "table"]


def printable(text: str) -> str:
    """With escapes for what would steer a terminal or break a line: names may be anything."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> str:
    """Columns as wide as their widest cell; the first `left` of them flush left, the rest right."""
    cells = [[printable(cell) for cell in row] for row in (header, *rows)]
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
