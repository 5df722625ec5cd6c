"""What the model would be if training ended now: averages of the run, beside real decays."""

from __future__ import annotations

import time
from typing import Any

from ..torch import Annealed
from .train import Trainer

__all__ = ["Readout"]

PROFILES = (2, 5, 10, 20, 40)
DECAYS = (0.1, 0.2)  # over so large a share of the steps so far the rate falls to 0
JUDGED = 16  # training batches that choose the profile
PARTS = 5  # of the run, at the end of each of which the readout is measured


class Readout:
    """Watches a run at a constant rate, and measures its readout at each fifth of its length.

    Beside it the rate is really decayed, linearly to 0 over the last tenth and the last fifth of
    the steps so far, in branches that leave the run as it was.

    Parameters
    ----------
    trainer : Trainer
        At its step 0.
    length : int
        Steps of the run.

    Attributes
    ----------
    rows : list of dict
        One for each fifth: ``step``, the held-out losses ``latest``, ``readout`` and, under
        ``decays``, by their share of the steps, the real ones; ``profile`` that was chosen.
    """

    def __init__(self, trainer: Trainer, length: int) -> None:
        self._trainer = trainer
        self._annealed = Annealed(
            trainer.model, profiles=PROFILES, every=trainer.size.average_every
        )
        self.ends = sorted({round(k * length / PARTS) for k in range(1, PARTS + 1)} - {0})
        self._branches = [
            (end - max(1, round(share * end)), end, share) for end in self.ends for share in DECAYS
        ]
        self._decayed: dict[int, dict[str, float]] = {end: {} for end in self.ends}
        self._seconds = 0.0
        self.rows: list[dict[str, Any]] = []

    def after_step(self) -> None:
        """To be called after each step of the run."""
        self._annealed.step()
        begun = time.perf_counter()
        step = self._trainer.step
        for fork, end, share in self._branches:
            if fork == step:
                self._decayed[end][f"{share:g}"] = self._decay(end)
        if step in self.ends:
            self.rows.append(self._read())
        self._seconds += time.perf_counter() - begun

    def _decay(self, end: int) -> float:
        trainer, fork = self._trainer, self._trainer.step
        with trainer.branch():
            while trainer.step < end:
                trainer.train_step((end - trainer.step) / (end - fork))
            return trainer.held_out_loss()

    def _read(self) -> dict[str, Any]:
        trainer = self._trainer
        latest = trainer.held_out_loss()
        profile = self._annealed.choose(lambda: trainer.training_loss(JUDGED))
        with self._annealed.applied():
            readout = trainer.held_out_loss()
        return {
            "step": trainer.step,
            "latest": latest,
            "readout": readout,
            "profile": profile,
            "decays": {f"{share:g}": self._decayed[trainer.step][f"{share:g}"] for share in DECAYS},
        }

    def report(self) -> dict[str, Any]:
        """The rows, and how they came about."""
        return {
            "profiles": list(PROFILES),
            "every": self._trainer.size.average_every,
            "judged_batches": JUDGED,
            "decay_steps": sum(end - fork for fork, end, _ in self._branches),
            "rows": self.rows,
            "seconds": self._seconds,
        }
