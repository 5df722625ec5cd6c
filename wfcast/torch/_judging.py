"""Judging jumps: whether one that is under way stays, and what those that stayed have saved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

from ._history import Jump
from ._losses import NOTHING, Losses
from ._snapshot import Pending
from ._verdict import HARM, UNKNOWN, WORSE, Calibration, Point, Verdict, blew_up


@dataclass(frozen=True, slots=True)
class Ruling:
    """What becomes of a jump that is under way.

    Attributes
    ----------
    reason : str
        Why it is to be taken back; empty where it goes on or is kept.
    verdict : Verdict or None
        None where it has none yet, or never will.
    blown : float or None
        The loss at which it blew up before the step of its verdict.
    """

    reason: str = ""
    verdict: Verdict | None = None
    blown: float | None = None


class Judging:
    """The verdicts on the jumps of a run.

    Parameters
    ----------
    losses : Losses
    window : int
        Steps from a jump to its verdict.

    Attributes
    ----------
    verdicts : list of Verdict
        On the jumps that were kept.
    """

    def __init__(self, losses: Losses, window: int) -> None:
        self.verdicts: list[Verdict] = []
        self._losses, self._window = losses, window
        self._calibration = Calibration(window)
        # the clock of a jump that was kept, and the losses before it, until it is looked at again
        self._recovering: tuple[int, list[Point]] | None = None

    # ---- before a jump ------------------------------------------------------------------------

    def lacking(self, before: Sequence[Point], clock: int) -> str:
        """Why finite losses before a jump do not do to judge it by; empty where they do."""
        if len(before) < 2:
            return NOTHING
        latest = [*(c for c, _ in before[-3:]), clock]
        apart = max(b - a for a, b in pairwise(latest))
        if apart > self._window:
            return (
                f"losses come {apart} steps apart, and one is needed within the {self._window} to "
                "a verdict: hand them over more often, or raise recovery"
            )
        return ""

    def learn(self, before: Sequence[Point]) -> None:
        """Take in a stretch of the run that no jump has touched."""
        self._calibration.learn(before, sum(v.steps_saved for v in self.verdicts))

    # ---- after it -----------------------------------------------------------------------------

    def rule(self, pending: Pending, clock: int, step: int) -> Ruling:
        """Look whether a jump blew up, and judge it at the end of its window."""
        losses, window, jump = self._losses, self._window, pending.jump
        passed = clock - pending.clock
        if passed % losses.every and passed < window and passed > 1:
            return Ruling()
        losses.measure(clock, step)
        recent = [loss for _, loss in losses.between(clock, clock)]
        if recent and jump.loss_right_after is None:
            jump.loss_right_after = losses.shown(recent[0])
        if recent and not math.isfinite(recent[0]):
            return Ruling("the loss is not finite", blown=recent[0])
        if passed >= window:
            return self._decide(pending, clock)
        if recent and 2 * passed >= window and blew_up(pending.before, recent[0]):
            return Ruling("the loss is far beyond any before the jump", blown=recent[0])
        return Ruling()

    def _decide(self, pending: Pending, clock: int) -> Ruling:
        after = self._losses.between(clock - self._window // 2, clock)
        after = after or self._losses.between(pending.clock + 1, clock)
        if not after:
            return Ruling("no loss was handed over in the steps to its verdict")
        verdict = self._calibration.verdict(pending.before, after, cap=pending.jump.horizon)
        harm = verdict.kind == HARM
        return Ruling("the loss is beyond what chance explains" if harm else "", verdict)

    def keep(self, pending: Pending, verdict: Verdict) -> None:
        """A jump stays, and will be looked at again."""
        self.verdicts.append(verdict)
        self._recovering = (pending.clock, pending.before)

    def due(self, clock: int, jump: int) -> bool:
        """Whether that is now; the next jump, at the clock `jump`, may be nearer after a resume."""
        if self._recovering is None:
            return False
        return clock >= min(self._recovering[0] + 2 * self._window, jump)

    def again(self, jump: Jump, clock: int, step: int) -> Verdict:
        """What the last jump saved, after a second window: recovery may take longer than one."""
        assert self._recovering is not None
        then, before = self._recovering
        self._recovering = None
        self._losses.measure(clock, step)
        after = self._losses.between(max(clock - self._window // 2, then + 1), clock)
        if after and all(math.isfinite(loss) for _, loss in after):
            verdict = self._calibration.verdict(before, after, cap=jump.horizon)
            if verdict.kind == HARM:  # it is too late to take it back
                verdict = replace(verdict, kind=WORSE)
            if verdict.kind != UNKNOWN:  # else the first look said more
                self.verdicts[-1] = verdict
                self.tell(jump, verdict, step)
        return self.verdicts[-1]

    def tell(self, jump: Jump, verdict: Verdict, step: int) -> None:
        """In its row."""
        jump.verdict, jump.judged_at = verdict.kind, step
        jump.steps_saved = verdict.steps_saved
        jump.steps_low, jump.steps_high = verdict.steps_low, verdict.steps_high
        jump.loss_after = self._losses.shown(verdict.after)
        jump.loss_expected = self._losses.shown(verdict.expected)

    def tell_harm(self, jump: Jump, ruling: Ruling, step: int) -> None:
        """In the row of a jump that was taken back."""
        jump.verdict, jump.judged_at = HARM, step
        if ruling.verdict is not None:
            jump.loss_after = self._losses.shown(ruling.verdict.after)
            jump.loss_expected = self._losses.shown(ruling.verdict.expected)
        elif ruling.blown is not None:
            jump.loss_after = self._losses.shown(ruling.blown)

    # ---- keeping ------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes, in plain containers."""
        return {
            "calibration": self._calibration.state_dict(),
            "verdicts": [asdict(verdict) for verdict in self.verdicts],
            "recovering": self._recovering,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._calibration.load_state_dict(state["calibration"])
        self.verdicts = [Verdict(**row) for row in state["verdicts"]]
        self._recovering = state["recovering"]
