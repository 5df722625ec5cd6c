"""The losses that jumps are judged by: those of the loop, or held-out ones of a judge."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .._errors import WfcastError
from .._live import distributed
from ._loop import evaluating, judged
from ._trust import Point

PARTS = 5  # held-out losses in the window before a jump; the last two such parts after it count


class Losses:
    """Losses by clock, the steps of a run's trajectory.

    Parameters
    ----------
    model : torch.nn.Module
    judge : callable or None
        ``judge() -> float``, the held-out loss.
    window : int
        The recovery window; 0 where nothing is judged.
    """

    def __init__(
        self, model: torch.nn.Module, judge: Callable[[], Any] | None, window: int
    ) -> None:
        self._model, self._judge, self._window = model, judge, window
        self._points: list[tuple[int, float | torch.Tensor]] = []

    @property
    def judged(self) -> bool:
        """Whether there is a judge."""
        return self._judge is not None

    def take(self, loss: Any, clock: int) -> None:
        """What the loop handed over: a loss, a judge or nothing.

        Raises
        ------
        WfcastError
            The loss is no single number, or there is nothing to judge by.
        """
        if callable(loss) and not isinstance(loss, torch.Tensor):
            if self._judge is None:
                self._judge = loss
        elif loss is not None:
            value = _copied(loss) if isinstance(loss, torch.Tensor) else float(loss)
            if isinstance(value, torch.Tensor) and value.numel() != 1:
                raise WfcastError(f"loss has shape {list(value.shape)}, expected one number")
            if self._judge is None:
                self._points.append((clock, value))
                del self._points[: -4 * self._window - 1]
        elif self._judge is None and self._window and not self._points:
            raise WfcastError(
                "there is nothing to judge a jump by: call step(loss), give Farcasting a judge, or "
                "pass recovery=0 to keep every jump unseen"
            )

    def due(self, jump: int) -> set[int]:
        """The clocks of the held-out losses before a jump."""
        return {jump - self._window * i // PARTS for i in range(PARTS + 1)}

    def measure(self, clock: int) -> None:
        """Take the held-out loss now, where there is a judge and something to judge."""
        if self._judge is None or not self._window:
            return
        if self._points and self._points[-1][0] == clock:
            return
        self._points.append((clock, self.held_out()))
        del self._points[: -4 * PARTS]

    def held_out(self) -> float:
        """What the judge says, the mean over the processes."""
        assert self._judge is not None
        with distributed.together(), evaluating(self._model):
            value = judged(self._judge)
        return distributed.mean([value])[0]

    def between(self, first: int, last: int) -> list[Point]:
        """Losses with ``first <= clock <= last``, the means over the processes."""
        chosen = [(c, v) for c, v in self._points if first <= c <= last]
        tensors = [v.float().reshape(()) for _, v in chosen if isinstance(v, torch.Tensor)]
        moved = iter(torch.stack(tensors).tolist() if tensors else [])
        values = [next(moved) if isinstance(v, torch.Tensor) else v for _, v in chosen]
        if self._judge is None:
            values = distributed.mean(values)
        return [(c, v) for (c, _), v in zip(chosen, values, strict=True)]

    def cut(self, first: int | None = None, last: int | None = None) -> None:
        """Forget what is before the clock `first`, and what is after `last`."""
        self._points = [
            (c, v)
            for c, v in self._points
            if (first is None or first <= c) and (last is None or c <= last)
        ]

    def state_dict(self) -> list[tuple[int, float]]:
        """All of them, waited for."""
        return [(c, float(v)) for c, v in self._points]

    def load_state_dict(self, state: list[tuple[int, float]]) -> None:
        """Go on from there."""
        self._points = [(c, v) for c, v in state]


def _copied(loss: torch.Tensor) -> torch.Tensor:
    """A float32 of its own: the loop may write over the loss, and a file holds it exactly."""
    return loss.detach().to(torch.float32, copy=True)
