"""The history of a run with jumps, for people to look at."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..report import Grid, Report, finite
from ._trust import TrustRegion


@dataclass(slots=True)
class Jump:
    """One row of `Farcasting.history`, by whose names its fields go.

    Attributes
    ----------
    step : int
        The call of ``step()`` that made it.
    horizon : float
        Steps ahead.
    outcome : {"pending", "kept", "rolled back", "refused"}
    verdict : {"better", "even", "worse", "harm"} or None
    loss_before, loss_right_after, loss_after, loss_expected : float or None
        None where there is no such loss, or not yet.
    steps_saved : float or None
    seconds : float
        From the jump to its judgement.
    reason : str
        Why it was refused.
    """

    step: int
    horizon: float
    outcome: str = "pending"
    verdict: str | None = None
    loss_before: float | None = None
    loss_right_after: float | None = None
    loss_after: float | None = None
    loss_expected: float | None = None
    steps_saved: float | None = None
    seconds: float = 0.0
    reason: str = ""


def numbers(jumps: Sequence[Jump], trust: TrustRegion, seconds: float) -> dict[str, float]:
    """What `Farcasting.log` gives."""
    kept = sum(jump.outcome == "kept" for jump in jumps)
    back = sum(jump.outcome == "rolled back" for jump in jumps)
    return {
        "farcasting/horizon": float(trust.horizon),
        "farcasting/jumps": float(kept + back),
        "farcasting/kept": float(kept),
        "farcasting/rolled_back": float(back),
        "farcasting/steps_saved": float(trust.saved),
        "farcasting/steps_lost": float(trust.lost),
        "farcasting/seconds": seconds,
    }


class FarcastingReport(Report):
    """Every jump of a `Farcasting`, and what came of it.

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
    0 jumps, 0 kept: about 0 steps saved, in ... s
    >>> report.to_dict()["jumps"]
    []
    """

    __slots__ = ("history", "log", "recovery", "stopped")

    def __init__(
        self, history: list[dict[str, Any]], log: dict[str, float], stopped: str, recovery: int
    ) -> None:
        self.history, self.log = history, log
        self.stopped, self.recovery = stopped, recovery

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON can hold it: None for NaN and infinity."""
        jumps = [
            {k: finite(v) if isinstance(v, float) else v for k, v in entry.items()}
            for entry in self.history
        ]
        return {"jumps": jumps, "stopped": self.stopped, **self.log}

    def _parts(self) -> Iterable[str | Grid]:
        def text(value: Any) -> str:
            return "" if value is None else f"{value:.4g}"

        log = self.log
        lost = f", {log['farcasting/steps_lost']:.0f} lost" if log["farcasting/steps_lost"] else ""
        yield (
            f"{log['farcasting/jumps']:.0f} jumps, {log['farcasting/kept']:.0f} kept: about "
            f"{log['farcasting/steps_saved']:.0f} steps saved{lost}, in "
            f"{log['farcasting/seconds']:.2f} s"
        )
        columns = ("horizon", "loss_before", "loss_right_after", "loss_after", "loss_expected")
        rows = [
            [
                str(e["step"]),
                e["outcome"],
                e["verdict"] or "",
                *(text(e[c]) for c in (*columns, "steps_saved", "seconds")),
            ]
            for e in self.history
        ]
        header = ("step", "outcome", "verdict", "horizon", "before", "right after")
        rest = ("after recovery", "heading for", "steps saved", "seconds")
        yield Grid((*header, *rest), rows, 3)
        if self.stopped:
            yield f"stopped: {self.stopped}"

    def _draw(self, ax: Any) -> None:
        from .._plot import COLOURS, MARKERS, legend

        kinds = ("kept", "rolled back")
        for kind, colour, marker in zip(kinds, COLOURS, MARKERS, strict=False):
            jumps = [e for e in self.history if e["outcome"] == kind]
            for e in jumps:
                at = [e["step"], e["step"], e["step"] + self.recovery]
                losses = [e["loss_before"], e["loss_right_after"], e["loss_after"]]
                known = [(t, x) for t, x in zip(at, losses, strict=True) if x is not None]
                ax.plot(*zip(*known, strict=True), "-", color=colour, linewidth=1)
            ends = [(e["step"] + self.recovery, e["loss_after"]) for e in jumps if e["loss_after"]]
            if ends:
                ax.plot(*zip(*ends, strict=True), marker, color=colour, label=f"{kind}, recovered")
        heading = [
            (e["step"] + self.recovery, e["loss_expected"])
            for e in self.history
            if e["loss_expected"] is not None
        ]
        if heading:
            ax.plot(
                *zip(*heading, strict=True), "o", color="#000000", mfc="none", label="heading for"
            )
        ax.set_xlabel("step")
        ax.set_ylabel("loss")
        ax.set_title("jumps: before, right after, after recovery", loc="left")
        if ax.get_legend_handles_labels()[0]:
            legend(ax)
