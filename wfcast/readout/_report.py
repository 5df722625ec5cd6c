"""What a readout did."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._forecast import ForecastReport
from ..report import Grid, Report

__all__ = ["LATEST", "ReadoutReport"]

LATEST = "latest"
"""What the last checkpoint is called among the candidates."""

SHOWN = 40
"""The most weights that are printed."""


@dataclass(frozen=True, slots=True, repr=False)
class ReadoutReport(Report):
    """What `anneal_run` or `extrapolate_run` did.

    Attributes
    ----------
    path : Path
        The file or folder that was written.
    step : int
        Of what was written: the run's last for an average, one beyond it for an extrapolation.
    chosen : str
        Which candidate it is, such as "profile 10", or "latest": the last checkpoint as it is.
    weights : dict of int to float
        Step -> its coefficient; empty where each tensor has its own.
    candidates : list of dict
        Of each: name, number (what the judge gave; None without a judge or where it failed) and
        failed (why; "" where it did not).
    maximize : bool
        Whether the largest number won.
    written : ForecastReport
        What became of each tensor.

    See Also
    --------
    anneal_run, extrapolate_run : Return one.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np, wfcast
    >>> run = {t: {"w": np.array([1.0, t])} for t in (100, 200, 300)}
    >>> report = wfcast.anneal_run(run, f"{tempfile.mkdtemp()}/out.safetensors", "mean")
    >>> report.chosen, report.step, {t: round(w, 3) for t, w in report.weights.items()}
    ('profile mean', 300, {100: 0.333, 200: 0.333, 300: 0.333})
    """

    path: Path
    step: int
    chosen: str
    weights: dict[int, float]
    candidates: list[dict[str, Any]]
    maximize: bool
    written: ForecastReport

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON can hold it: None for NaN and infinity."""
        return {
            **self.written.to_dict(),
            "path": str(self.path),
            "step": self.step,
            "chosen": self.chosen,
            "weights": {str(step): weight for step, weight in self.weights.items()},
            "candidates": self.candidates,
            "maximize": self.maximize,
        }

    def _rows(self) -> Iterable[dict[str, Any]]:
        for one in self.candidates:
            yield {**one, "chosen": one["name"] == self.chosen}

    def _parts(self) -> Iterable[str | Grid]:
        if self._judged:
            rows = [
                (
                    c["name"],
                    c["failed"] or ("chosen" if c["name"] == self.chosen else ""),
                    "-" if c["number"] is None else f"{c['number']:.6g}",
                )
                for c in self.candidates
            ]
            best = "the largest is best" if self.maximize else "the least is best"
            yield Grid(("candidate", "", f"judged, {best}"), rows, 2)
        if self.chosen == LATEST:
            yield "the latest checkpoint is the best: the output is a copy of it"
        elif self.weights:
            items = list(self.weights.items())
            weights = [(str(step), f"{weight:.4g}") for step, weight in items[-SHOWN:]]
            if len(items) > SHOWN:
                rest = sum(weight for _, weight in items[:-SHOWN])
                weights.insert(0, (f"{len(items) - SHOWN} before", f"{rest:.4g}"))
            yield Grid(("step", f"weight, {self.chosen}"), weights)
        yield from self.written._parts()

    @property
    def _judged(self) -> bool:
        return any(c["name"] == LATEST for c in self.candidates)

    def _draw(self, ax: Any) -> None:
        from .._plot import COLOURS

        if self._judged:
            judged = [c for c in self.candidates if c["number"] is not None]
            ax.bar(
                [c["name"] for c in judged],
                [c["number"] for c in judged],
                color=[COLOURS[c["name"] == self.chosen] for c in judged],
            )
            numbers = [c["number"] for c in judged]
            room = (max(numbers) - min(numbers)) or abs(numbers[0]) or 1.0
            ax.set_ylim(min(numbers) - room / 4, max(numbers) + room / 4)
            ax.set_ylabel("the judge's number")
            ax.set_title(f"Chosen: {self.chosen}", loc="left")
        elif self.weights:
            ax.plot(list(self.weights), list(self.weights.values()), "o-", color=COLOURS[0])
            ax.set_xlabel("step")
            ax.set_ylabel("weight")
            ax.set_title(f"Weights of the checkpoints, {self.chosen}", loc="left")
        else:
            self.written._draw(ax)
