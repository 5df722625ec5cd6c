"""What the callbacks of all training libraries share."""

from __future__ import annotations

import functools
import inspect
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .._errors import WfcastError
from ._history import FarcastingReport
from ._schedule import Schedule
from .farcasting import Farcasting

logger = logging.getLogger("wfcast")


def check_names(parameters: Mapping[str, Any], made: type, given: Sequence[str]) -> None:
    """Raise TypeError for what is no parameter of a class, or one of those `given` to it."""
    known = [name for name in inspect.signature(made).parameters if name not in given]
    odd = [name for name in parameters if name not in known]
    if odd:
        raise TypeError(f"there is no parameter {odd[0]!r}, expected some of {', '.join(known)}")


class Jumping:
    """A callback's `Farcasting`, and its duty to show nobody the weights of an unjudged jump.

    Attributes
    ----------
    farcasting : Farcasting or None
        Made when training begins; its `history` and `summary` stay after the end.
    """

    def __init__(self, parameters: dict[str, Any]) -> None:
        check_names(parameters, Farcasting, ("model", "optimizer", "scheduler"))
        self.parameters = parameters
        self.farcasting: Farcasting | None = None
        self._schedule = Schedule((), None)
        self._said = False
        self._begun = 0  # the step of the training at which the controller's own count begins

    def summary(self) -> FarcastingReport:
        """Every jump and what came of it, as `Farcasting.summary` has it.

        Raises
        ------
        WfcastError
            Training has not begun.
        """
        if self.farcasting is None:
            raise WfcastError("there are no jumps to sum up: training has not begun")
        return self.farcasting.summary()

    def _span(self, last: int | None, step: int, saved: dict[str, Any] | None) -> dict[str, int]:
        """`start` and `stop` as a `Farcasting` that is made now counts them, from 0.

        Parameters
        ----------
        last : int or None
            The last step of the training, where it is known.
        step : int
            That at which training begins or goes on.
        saved : dict or None
            The state that the jumps go on from; without one they begin anew.
        """
        self._begun = step if saved is None else saved.get("begun", 0)
        start = max(0, self.parameters.get("start", 0) - self._begun)
        stop = self.parameters.get("stop", last)
        return (
            {"start": start}
            if stop is None
            else {"start": start, "stop": max(start + 1, stop - self._begun)}
        )

    def _state(self) -> dict[str, Any]:
        """What a resumed training needs."""
        assert self.farcasting is not None
        return {**self.farcasting.state_dict(), "begun": self._begun}

    def _follow(self, schedule: Schedule, begin: int) -> None:
        """Jump between the looks of a schedule; say once where that cannot be."""
        assert self.farcasting is not None
        self._schedule, self._said = schedule, False
        begin = max(begin, self.parameters.get("start", 0))
        complaint = schedule.complaint(self.farcasting.window, begin)
        if complaint:
            self.farcasting.hindrance = complaint
            warnings.warn(f"Farcasting: {complaint}", stacklevel=3)
        elif schedule.unknown:
            warnings.warn(
                f"Farcasting: {' and '.join(schedule.unknown)} may save or evaluate at any step: a "
                "jump that has no verdict by then is taken back",
                stacklevel=3,
            )

    def _advance(self, loss: Any, step: int, look: bool) -> None:
        """One optimizer step is done; whether the weights are looked at next."""
        assert self.farcasting is not None
        self.farcasting.step(loss, room=0 if look else self._schedule.room(step))

    def _settle(self) -> None:
        """Take a jump that has no verdict back, since the weights are looked at now."""
        if self.farcasting is None or self.farcasting.settled:
            return
        self.farcasting.settle()
        if not self._said:
            self._said = True
            logger.warning(
                "a jump was taken back before its verdict: the weights are saved, evaluated or "
                "final at a step that no setting announces"
            )

    def _break_off(self) -> None:
        """Leave the weights of before a jump that has no verdict."""
        if self.farcasting is not None:
            self.farcasting.close(undo=True)


class Guarded:
    """A method of one object, with something done before it, and after it raised.

    It stands in the object's ``__dict__``: for what a library's hooks tell no callback.
    """

    def __init__(
        self,
        method: Callable[..., Any],
        callback: Any,
        before: Callable[[], None] | None,
        broken: Callable[[], None] | None,
    ) -> None:
        functools.update_wrapper(self, method)
        self.method, self.callback = method, callback
        self.before, self.broken = before, broken

    def __call__(self, *args: Any, **named: Any) -> Any:
        """Call the method."""
        if self.before is not None:
            self.before()
        try:
            return self.method(*args, **named)
        except BaseException:  # Ctrl-C, too
            if self.broken is not None:
                self.broken()
            raise


def guard(
    owner: Any,
    names: Sequence[str],
    callback: Any,
    *,
    before: Callable[[], None] | None = None,
    broken: Callable[[], None] | None = None,
) -> None:
    """Put a `Guarded` in place of those methods that an object has, once for each callback."""
    for name in names:
        method = getattr(owner, name, None)
        there = isinstance(method, Guarded) and method.callback is callback
        if method is not None and not there:
            setattr(owner, name, Guarded(method, callback, before, broken))
