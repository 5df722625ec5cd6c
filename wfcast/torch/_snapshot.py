"""What taking back a jump needs: the weights, buffers and states before it."""

from __future__ import annotations

import copy
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from .._errors import WfcastError
from .._live.tensors import local
from ._history import Jump
from ._optimizer import OptimizerSnapshot, parameters_of
from ._store import Kept, Store
from ._training import Training
from ._verdict import Point


@dataclass(slots=True, eq=False)
class Snapshot:
    """A training run at one time.

    Attributes
    ----------
    weights : Kept
        Of what is forecast, exact.
    others : Kept
        What is trained beside them.
    buffers : Kept
        Of the model.
    optimizer : OptimizerSnapshot or None
    scheduler : dict or None
        Its state; None without a scheduler. Neither is there where nothing will be taken back.
    """

    weights: Kept
    others: Kept
    buffers: Kept
    optimizer: OptimizerSnapshot | None
    scheduler: dict[str, Any] | None

    @classmethod
    def take(cls, training: Training, store: Store, *, whole: bool) -> Snapshot:
        """Copy what is there now, the optimizer's and the scheduler's state where `whole` says so.

        Raises
        ------
        OSError
            The disk is full or fails; nothing is left of the copies.
        """
        with ExitStack() as undo:
            weights = store.keep(training.parameters)
            undo.callback(store.release, weights)
            others = store.keep(training.others if whole else [])
            undo.callback(store.release, others)
            buffers = store.keep(list(training.model.buffers()))
            undo.callback(store.release, buffers)
            optimizer = OptimizerSnapshot.take(training.optimizer, store) if whole else None
            undo.pop_all()
        scheduler = None
        if whole and training.scheduler is not None:
            scheduler = copy.deepcopy(training.scheduler.state_dict())
        return cls(weights, others, buffers, optimizer, scheduler)

    def put_back(self, training: Training) -> None:
        """Give the model its weights and buffers again."""
        training.write(self.weights.settled())
        with torch.no_grad():
            for other, value in zip(training.others, self.others.settled(), strict=False):
                other.copy_(value)
            for buffer, value in zip(training.model.buffers(), self.buffers.settled(), strict=True):
                local(buffer).copy_(value)

    def restore(self, training: Training) -> None:
        """`put_back`, and the optimizer's and the scheduler's state."""
        assert self.optimizer is not None
        self.put_back(training)
        self.optimizer.restore(training.optimizer, settings=training.scheduler is not None)
        if training.scheduler is not None:
            training.scheduler.load_state_dict(self.scheduler)

    def release(self, store: Store) -> None:
        """Give the memory back."""
        store.release(self.weights)
        store.release(self.others)
        store.release(self.buffers)
        if self.optimizer is not None:
            self.optimizer.release(store)


@dataclass(slots=True, eq=False)
class Pending:
    """A jump that is under way.

    Attributes
    ----------
    jump : Jump
        Its row of the history.
    clock : int
        The step of the trajectory at which it took place.
    before : list of (clock, loss)
        Losses before it.
    snapshot : Snapshot
        The run before it.
    """

    jump: Jump
    clock: int
    before: list[Point]
    snapshot: Snapshot

    def state_dict(self) -> dict[str, Any]:
        """Everything, in plain containers, numbers and tensors."""
        then = self.snapshot
        assert then.optimizer is not None
        state = {
            "clock": self.clock,
            "step": self.jump.step,
            "before": self.before,
            "horizon": self.jump.horizon,
            "weights": [t.clone() for t in then.weights.settled()],
            "others": [t.clone() for t in then.others.settled()],
            "buffers": [t.clone() for t in then.buffers.settled()],
            "optimizer": then.optimizer.state_dict(),
        }
        return state if then.scheduler is None else {**state, "scheduler": then.scheduler}

    @staticmethod
    def check_saved(state: dict[str, Any], last: Jump | None, training: Training) -> None:
        """Raise WfcastError where what `state_dict` gave does not go with the rest of a run.

        Parameters
        ----------
        state : dict
        last : Jump or None
            The last jump of the history that was saved with it: the one under way.
        training : Training
        """
        if last is None or (last.outcome, last.step) != ("pending", state["step"]):
            found = "there is none" if last is None else f"{last.outcome} at step {last.step}"
            raise WfcastError(
                f"the state has the jump of step {state['step']} under way, expected that as the "
                f"last one of its history: {found}"
            )
        if training.scheduler is not None and "scheduler" not in state:
            raise WfcastError(
                "the state was saved in the middle of a jump and without a scheduler, which is "
                "needed to take that back: expected one saved with a scheduler"
            )
        saved, own = len(state["optimizer"]["state"]), len(parameters_of(training.optimizer))
        if saved != own:
            raise WfcastError(
                f"the optimizer of the saved state steps {saved} parameters, expected {own}"
            )

    @classmethod
    def load(cls, state: dict[str, Any], jump: Jump, training: Training, store: Store) -> Pending:
        """From what `state_dict` gave and `check_saved` let pass, and its row of the history."""
        snapshot = Snapshot(
            store.keep_beside(state["weights"], training.parameters),
            store.keep_beside(state.get("others", []), training.others),
            store.keep(state["buffers"]),
            OptimizerSnapshot.load(state["optimizer"], training.optimizer, store),
            state.get("scheduler"),
        )
        return cls(jump, state["clock"], [(c, v) for c, v in state["before"]], snapshot)
