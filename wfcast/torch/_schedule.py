"""When a training loop looks at the weights next: at saves, at evaluations, at its end."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class Looks:
    """The steps after which one setting of a trainer has the weights looked at.

    They are ``k * period + offset`` for all k >= 0 and all offsets.

    Parameters
    ----------
    setting : str
        As its user wrote it, such as ``"save_steps=500"``.
    period : int
        Above 0.
    offsets : tuple of int, optional
        From 1 to `period`, ascending; `period` alone by default.
    first : int, default=0
        Looks before this step are left out.

    Examples
    --------
    >>> Looks("eval_steps=20", 20, first=50).after(0)
    60
    """

    setting: str
    period: int
    offsets: tuple[int, ...] = ()
    first: int = 0

    def after(self, step: int) -> int:
        """The first of them after a step."""
        offsets = self.offsets or (self.period,)
        turns, within = divmod(max(step, self.first - 1), self.period)
        i = bisect_right(offsets, within)
        if i == len(offsets):
            turns, i = turns + 1, 0
        return turns * self.period + offsets[i]

    @property
    def apart(self) -> int:
        """The most steps from one to the next."""
        offsets = self.offsets or (self.period,)
        ends = (*offsets, offsets[0] + self.period)
        return max(b - a for a, b in pairwise(ends))


@dataclass(frozen=True, slots=True)
class Schedule:
    """All looks of a run that are known when it begins.

    Parameters
    ----------
    looks : tuple of Looks
    last : int or None
        The last step of the run, where it is known.
    unknown : tuple of str, optional
        The settings that look at steps which nobody can tell beforehand.
    """

    looks: tuple[Looks, ...]
    last: int | None
    unknown: tuple[str, ...] = ()

    def room(self, step: int) -> int | None:
        """How many steps lie between a step and the next look, 0 at a look; None without any."""
        ends = [looks.after(step - 1) for looks in self.looks]
        if self.last is not None:
            ends.append(max(self.last, step))
        return min(ends) - step if ends else None

    def longest(self, begin: int) -> int | None:
        """The most room that any step after `begin` has; None where there is no end to it."""
        bound = min((s.apart - 1 for s in self.looks if s.first <= begin), default=math.inf)
        longest, step, end = 0, begin + 1, self._repeats_after(begin)
        while longest < bound and step <= end:
            room = self.room(step)
            if room is None:
                return None
            longest = max(longest, room)
            step += room + 1
        return longest

    def _repeats_after(self, begin: int) -> int:
        """The step after which there is nothing new."""
        if self.last is not None:
            return self.last
        first = max([begin, *(looks.first for looks in self.looks)])
        return first + math.lcm(*(looks.period for looks in self.looks))

    def complaint(self, window: int, begin: int) -> str | None:
        """What to tell the user of a run in which no jump fits; None where one does.

        Parameters
        ----------
        window : int
            The steps from a jump to its verdict.
        begin : int
            The steps that were taken before.
        """
        longest = self.longest(begin)
        if longest is None or longest >= window:
            return None
        verdict = f"no jump is possible: its verdict takes {window} steps"
        if not self.looks:
            return f"{verdict}, and {longest} are left of the run: train for longer"
        close = [s for s in self.looks if s.apart <= window] or self.looks
        names = " and ".join(s.setting for s in close)
        return (
            f"{verdict}, but with {names} there are {longest} at most until the weights are saved "
            f"or evaluated: do that every {window + 1} steps or less often, or lower recovery"
        )
