"""The history of a run with jumps, for people to look at."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from ..report import Grid, Report, finite


@dataclass(slots=True)
class Jump:
    """One row of `Farcasting.history`, by whose names its fields go.

    Attributes
    ----------
    step : int
        The call of ``step()`` that made it; where no jump was made, the last that looked.
    horizon : float
        Steps ahead.
    outcome : {"pending", "kept", "rolled back", "refused", "waited"}
    verdict : {"better", "even", "worse", "harm", "unknown"} or None
        None where a jump is not judged.
    cosine, cosine_error : float or None
        Of the movements of the halves of the history, with its standard error.
    drift : float or None
        What of that is not the optimizer's momentum, over this history and those just before it.
    loss_before, loss_right_after, loss_after, loss_expected : float or None
        None where there is no such loss, or not yet.
    judged_at : int or None
        The step of the verdict, of the second one where there were two.
    steps_saved, steps_low, steps_high : float or None
        Steps saved, with their 95 % interval.
    seconds : float
        From the jump to its judgement.
    reason : str
        Why there was no jump, why it was taken back, or why it goes less far.
    """

    step: int
    horizon: float
    outcome: str = "pending"
    verdict: str | None = None
    cosine: float | None = None
    cosine_error: float | None = None
    drift: float | None = None
    loss_before: float | None = None
    loss_right_after: float | None = None
    loss_after: float | None = None
    loss_expected: float | None = None
    judged_at: int | None = None
    steps_saved: float | None = None
    steps_low: float | None = None
    steps_high: float | None = None
    seconds: float = 0.0
    reason: str = ""

    @property
    def made(self) -> bool:
        """Whether the weights were replaced."""
        return self.outcome not in ("refused", "waited")


def last_made(jumps: Sequence[Jump]) -> Jump | None:
    """The row of the last jump; None where there was none."""
    return next((jump for jump in reversed(jumps) if jump.made), None)


def numbers(
    jumps: Sequence[Jump], saved: tuple[float, float, float], seconds: float
) -> dict[str, float]:
    """What `Farcasting.log` gives; `saved` are the steps saved and their interval."""
    made = [jump for jump in jumps if jump.made]
    back = [jump for jump in made if jump.outcome == "rolled back"]
    drifts = [jump.drift for jump in jumps if jump.drift is not None]
    found = {
        "horizon": made[-1].horizon if made else 0.0,
        "jumps": float(len(made)),
        "kept": float(sum(jump.outcome == "kept" for jump in made)),
        "rolled_back": float(len(back)),
        "steps_saved": saved[0],
        "steps_low": saved[1],
        "steps_high": saved[2],
        "steps_lost": sum((-(jump.steps_saved or 0.0) for jump in back), 0.0),
        "seconds": seconds,
    }
    if drifts:
        found["drift"] = drifts[-1]
    return {f"farcasting/{name}": value for name, value in found.items()}


WIDTH = 80  # of a terminal, that reasons are wrapped to


class FarcastingReport(Report):
    """Every jump of a `Farcasting`, what came of it, and why there were not more.

    See Also
    --------
    Farcasting.summary : Returns one.

    Examples
    --------
    >>> import torch
    >>> from wfcast.torch import Farcasting
    >>> model = torch.nn.Linear(4, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> report = Farcasting(model, optimizer).summary()
    >>> print(str(report).splitlines()[0])
    0 jumps, 0 kept; steps saved: 0; in ... s
    >>> report.to_dict()["jumps"]
    []
    """

    __slots__ = ("curve", "hindrance", "history", "log", "stopped")

    def __init__(
        self,
        history: list[dict[str, Any]],
        log: dict[str, float],
        stopped: str,
        curve: Sequence[tuple[int, float]] = (),
        hindrance: str = "",
    ) -> None:
        self.history, self.log = history, log
        self.stopped, self.hindrance, self.curve = stopped, hindrance, curve

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON can hold it: None for NaN and infinity."""
        jumps = [
            {k: finite(v) if isinstance(v, float) else v for k, v in entry.items()}
            for entry in self.history
        ]
        why = {"stopped": self.stopped, "hindrance": self.hindrance}
        return {"jumps": jumps, **why, **self.log}

    def _rows(self) -> Iterable[dict[str, Any]]:
        yield from self.history

    def _parts(self) -> Iterable[str | Grid]:
        log = self.log
        lost = f", {log['farcasting/steps_lost']:.0f} lost" if log["farcasting/steps_lost"] else ""
        bounds = f"{log['farcasting/steps_low']:.0f} to {log['farcasting/steps_high']:.0f}"
        saved, jumps = log["farcasting/steps_saved"], log["farcasting/jumps"]
        if not jumps:
            told = "0"
        elif log["farcasting/steps_low"] == log["farcasting/steps_high"] == 0:
            told = "not judged"
        else:
            told = f"{f'about {saved:.0f}' if saved else 'unclear'} (95 %: {bounds})"
        yield (
            f"{jumps:.0f} jumps, {log['farcasting/kept']:.0f} kept; steps saved: {told}{lost}; in "
            f"{log['farcasting/seconds']:.2f} s"
        )
        losses = ("loss_before", "loss_right_after", "loss_after", "loss_expected")
        looks = _looks(self.history)
        rows = [
            [
                steps,
                e["outcome"],
                e["verdict"] or "",
                _text(e["drift"], ".2f"),
                _text(e["horizon"] or None),
                *(_text(e[name]) for name in losses),
                _saved(e),
                _text(e["seconds"]),
            ]
            for steps, e in looks
        ]
        header = ("step", "outcome", "verdict", "drift", "horizon", "before", "right after")
        rest = ("after recovery", "heading for", "steps saved", "seconds")
        yield Grid((*header, *rest), rows, 3)
        reasons = [f"{steps}, {e['outcome']}: {e['reason']}" for steps, e in looks if e["reason"]]
        if reasons:
            yield "\n".join(_wrapped(reason) for reason in reasons)
        if self.stopped:
            yield _wrapped(f"stopped: {self.stopped}")
        elif self.hindrance:
            yield _wrapped(self.hindrance)

    def _draw(self, ax: Any) -> None:
        from .._plot import COLOURS, MARKERS, legend

        if self.curve:
            ax.plot(*zip(*self.curve, strict=True), "-", color="#bbbbbb", linewidth=1, label="run")
        kinds = ("kept", "rolled back")
        for kind, colour, marker in zip(kinds, COLOURS, MARKERS, strict=False):
            label: str | None = kind
            for e in (e for e in self.history if e["outcome"] == kind):
                at = [e["step"], e["step"], e["judged_at"]]
                losses = [e["loss_before"], e["loss_right_after"], e["loss_after"]]
                known = [(t, x) for t, x in zip(at, losses, strict=True) if x is not None]
                if known:
                    form = {"color": colour, "linewidth": 1, "markevery": [-1]}  # at its end
                    ax.plot(*zip(*known, strict=True), f"-{marker}", label=label, **form)
                    label = None
        heading = [
            (e["judged_at"], e["loss_expected"])
            for e in self.history
            if e["loss_expected"] is not None
        ]
        if heading:
            ax.plot(
                *zip(*heading, strict=True), "o", color="#000000", mfc="none", label="heading for"
            )
        ax.set_xlabel("step")
        ax.set_ylabel("loss")
        made = self.log["farcasting/jumps"] > 0
        title = "jumps: before, right after, after recovery" if made else "no jumps"
        ax.set_title(title, loc="left")
        if ax.get_legend_handles_labels()[0]:
            legend(ax)


def _looks(history: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """Rows and their steps; refusals that follow each other for one reason are one."""
    found = []
    for _, some in groupby(
        history, lambda row: row["reason"] if row["outcome"] == "refused" else row["step"]
    ):
        first, *others = some
        last = f" to {others[-1]['step']}" if others else ""
        found.append((f"{first['step']}{last}", first))
    return found


def _wrapped(line: str) -> str:
    return textwrap.fill(line, WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def _text(value: float | None, form: str = ".4g") -> str:
    return "" if value is None else f"{value:{form}}"


def _saved(row: dict[str, Any]) -> str:
    if row["steps_saved"] is None:
        return ""
    if row["steps_low"] is None:
        return f"{row['steps_saved']:.0f}"
    return f"{row['steps_saved']:.0f} ({row['steps_low']:.0f} to {row['steps_high']:.0f})"
