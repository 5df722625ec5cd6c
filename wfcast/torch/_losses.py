"""The losses that jumps are judged by: those of the loop, or held-out ones of a judge."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch

from .._errors import WfcastError
from .._live import distributed
from ._loop import evaluating, judged, number
from ._settings import check_function
from ._verdict import LONGEST, Point

PARTS = 4  # held-out losses in a window
CURVE = 500  # losses that are kept of a whole run, to be drawn
JUDGED, GIVEN = "a judge", "the losses that step() is given"
NOTHING = (
    "there are too few losses to judge a jump by: call step(loss) more often, give Farcasting a "
    "judge, or pass recovery=0 to keep every jump unseen"
)


class Losses:
    """Losses by clock, the steps of a run's trajectory.

    Parameters
    ----------
    model : torch.nn.Module
    judge : callable or None
        ``judge() -> float``, the held-out loss.
    window : int
        The recovery window; 0 where nothing is judged.
    maximize : bool
        Whether they are rewards, which are kept with the other sign.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        judge: Callable[[], Any] | None,
        window: int,
        maximize: bool = False,
    ) -> None:
        self._model, self._judge, self._window = model, judge, window
        self._sign = -1.0 if maximize else 1.0
        self._points: list[tuple[int, float | torch.Tensor]] = []
        self._curve: list[tuple[int, float | torch.Tensor]] = []
        self._apart = 1  # steps between losses of the curve at least
        self._kind = None if judge is None else JUDGED  # what all of the losses are
        self.warned = False
        self._shared = -1  # up to this clock they are means over the processes already

    @property
    def judged(self) -> bool:
        """Whether there is a judge."""
        return self._judge is not None

    @property
    def every(self) -> int:
        """Steps between two looks at the losses."""
        return max(1, math.ceil(self._window / PARTS))

    def shown(self, value: float) -> float:
        """As the user knows it."""
        return self._sign * value

    def take(self, loss: Any, clock: int, step: int) -> None:
        """What the loop handed over: a loss, a judge or nothing.

        Raises
        ------
        WfcastError
            The loss is no single number, or losses of another kind came before it.

        Warns
        -----
        UserWarning
            Once, where no loss came in a whole window.
        """
        if callable(loss) and not isinstance(loss, torch.Tensor):
            if self._judge is None:
                check_function("loss", loss)
                self._be(JUDGED)
                self._judge = loss
        elif loss is not None:
            value = _taken(loss)
            if self._judge is None:
                self._be(GIVEN)
                self._points.append((clock, self._sign * value))
                self._draw(step, self._sign * value)
                del self._points[: -LONGEST * self._window - 1]
        elif self._judge is None and not self._points and step == self._window:
            self.warned = True
            warnings.warn(NOTHING, stacklevel=3)

    def _be(self, kind: str) -> None:
        """Raise WfcastError where losses of another kind are there already."""
        self._kind = self._kind or kind
        if self._kind != kind:
            raise WfcastError(
                f"jumps are judged by {self._kind} so far, and now there is {kind}, which do not "
                "compare: go on with the former, or make a new Farcasting"
            )

    def measure(self, clock: int, step: int) -> None:
        """Take the held-out loss now, where there is a judge and something to judge."""
        if self._judge is None or not self._window:
            return
        if self._points and self._points[-1][0] == clock:
            return
        self._points.append((clock, self.held_out()))
        self._draw(step, self._points[-1][1])
        del self._points[: -LONGEST * PARTS - 1]

    def _draw(self, step: int, loss: float | torch.Tensor) -> None:
        """Keep it for the curve, every other one where there are too many."""
        if self._curve and step < self._curve[-1][0] + self._apart:
            return
        self._curve.append((step, loss))
        if len(self._curve) > CURVE:
            self._apart = 2 * max(self._apart, self._curve[1][0] - self._curve[0][0])
            self._curve = self._curve[::2]

    @property
    def curve(self) -> list[Point]:
        """Losses of the whole run by the calls of ``step()``, as the user knows them."""
        return [(step, self.shown(float(loss))) for step, loss in self._curve]

    def held_out(self) -> float:
        """The judge's loss, the mean over the processes; modes and random state are kept.

        Raises
        ------
        WfcastError
            The judge returned no number.
        """
        assert self._judge is not None
        with distributed.together(), evaluating(self._model):
            value = judged(self._judge)
        return self._sign * distributed.mean([value])[0]

    def between(self, first: int, last: int) -> list[Point]:
        """Losses with ``first <= clock <= last``, the means over the processes.

        Raises
        ------
        WfcastError
            Some processes handed over more of them than others.
        """
        chosen = [(c, v) for c, v in self._points if first <= c <= last]
        with distributed.together():
            tensors = [v.float().reshape(()) for _, v in chosen if isinstance(v, torch.Tensor)]
            moved = iter(torch.stack(tensors).tolist() if tensors else [])
            values = [next(moved) if isinstance(v, torch.Tensor) else v for _, v in chosen]
        if self._judge is None:
            known = sum(c <= self._shared for c, _ in chosen)
            counts = distributed.by_rank(len(values) - known)
            if len(set(counts)) > 1:
                raise WfcastError(
                    f"the processes handed over {counts} losses, by rank, expected the same number "
                    "from each: call step(loss) alike in all of them"
                )
            values[known:] = distributed.mean(values[known:])
        return [(c, v) for (c, _), v in zip(chosen, values, strict=True)]

    def share(self) -> None:
        """Make all of them the means over the processes, so that the state of one serves all."""
        if self._points and self._judge is None and distributed.active():
            last = self._points[-1][0]
            self._points, self._shared = [*self.between(0, last)], last

    def cut(self, last: int) -> None:
        """Forget what is after the clock `last`."""
        self._points = [(c, v) for c, v in self._points if c <= last]
        self._shared = min(self._shared, last)

    def state_dict(self) -> dict[str, Any]:
        """All of them, waited for."""
        return {
            "points": [(c, float(v)) for c, v in self._points],
            "curve": [(s, float(v)) for s, v in self._curve],
            "apart": self._apart,
            "shared": self._shared,
            "kind": self._kind,
        }

    def check_saved(self, state: dict[str, Any]) -> None:
        """Raise WfcastError where a state was saved with losses of another kind."""
        if self._judge is not None and state["kind"] == GIVEN:
            raise WfcastError(
                f"the state was saved in a run judged by {GIVEN}, and this Farcasting has a judge: "
                "make it without one, or begin a new one at this step"
            )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._points = [(c, v) for c, v in state["points"]]
        self._curve = [(s, v) for s, v in state["curve"]]
        self._apart, self._shared = state["apart"], state["shared"]
        self._kind = JUDGED if self._judge is not None else state["kind"]


def _taken(loss: Any) -> float | torch.Tensor:
    """A number, or a float32 of its own: the loop may write over the loss, and a file holds it.

    Raises
    ------
    WfcastError
        It is no single number.
    """
    if isinstance(loss, torch.Tensor):
        if loss.numel() != 1:
            raise WfcastError(f"loss has shape {list(loss.shape)}, expected one number")
        return loss.detach().to(torch.float32, copy=True)
    try:
        return number(loss)
    except ValueError as reason:
        raise WfcastError(
            f"loss is {loss!r:.80}, expected one number, a tensor of one, a function or None"
        ) from reason
