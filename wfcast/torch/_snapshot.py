"""What taking back a jump needs: the weights, buffers and states before it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from .._errors import WfcastError
from .._live.buffers import (
    Buffers,
    buffers_of,
    check_buffers,
    persistent_buffers,
    put_buffers,
)
from .._live.tensors import local
from ._history import Jump
from ._optimizer import OptimizerSnapshot
from ._store import Kept, Store
from ._training import Training
from ._verdict import Point


@dataclass(slots=True, eq=False)
class Named:
    """Copies that are put back by name.

    Attributes
    ----------
    names : list of str
    kept : Kept
        The copies, in the order of the names.
    """

    names: list[str]
    kept: Kept

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The copies by name, complete."""
        return dict(zip(self.names, self.kept.settled(), strict=True))


@dataclass(slots=True, eq=False)
class Snapshot:
    """A training run at one time.

    Attributes
    ----------
    weights : Kept
        Of what is forecast, exact.
    others : Named
        What is trained beside them.
    buffers : Named
        Of the model.
    empty : list of str
        Buffers that are registered and have no value.
    persistent : set of str
        The buffers that are persistent.
    optimizer : OptimizerSnapshot or None
    scheduler : dict or None
        Its state; None without a scheduler. Neither is there where nothing will be taken back.
    """

    weights: Kept
    others: Named
    buffers: Named
    empty: list[str]
    persistent: set[str]
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
        model, scheduler = training.model, None
        if whole and training.scheduler is not None:
            scheduler = copy.deepcopy(training.scheduler.state_dict())
        found = buffers_of(model)
        there = {name: buffer for name, buffer in found.items() if buffer is not None}
        with ExitStack() as undo:

            def keep(tensors: Iterable[torch.Tensor]) -> Kept:
                kept = store.keep(list(tensors))
                undo.callback(store.release, kept)
                return kept

            weights = keep(training.parameters)
            names = training.others if whole else []
            others = Named(names, keep(training.named[name] for name in names))
            kept = Named(list(there), keep(there.values()))
            optimizer = OptimizerSnapshot.take(training.optimizer, store) if whole else None
            undo.pop_all()
        empty = sorted(found.keys() - there.keys())
        lasting = persistent_buffers(model)
        return cls(weights, others, kept, empty, lasting, optimizer, scheduler)

    @property
    def _buffers(self) -> Buffers:
        return {**self.buffers.tensors, **dict.fromkeys(self.empty)}

    def check(self, training: Training) -> None:
        """Raise WfcastError where the run has changed so that it cannot be put back."""
        training.check_unchanged()
        training.check_named(self.others.tensors)
        check_buffers(training.model, self._buffers)
        if self.optimizer is not None:
            self.optimizer.check(training.optimizer)

    def put_back(self, training: Training) -> None:
        """Give the model its weights and buffers again."""
        training.write(self.weights.settled())
        named = training.named
        with torch.no_grad():
            for name, values in self.others.tensors.items():
                local(named[name]).copy_(values)
        put_buffers(training.model, self._buffers, self.persistent)

    def restore(
        self, training: Training, together: Callable[[], AbstractContextManager[Any]] = nullcontext
    ) -> None:
        """`put_back`, and the optimizer's and the scheduler's state.

        Parameters
        ----------
        training : Training
        together : callable
            A context for what may fail; nothing has changed where it does.
        """
        assert self.optimizer is not None
        scheduler, before = training.scheduler, None
        try:
            with together():
                self.check(training)
                if scheduler is not None:
                    before = copy.deepcopy(scheduler.state_dict())
                    scheduler.load_state_dict(copy.deepcopy(self.scheduler))
                write = self.optimizer.restoring(training.optimizer, settings=scheduler is not None)
        except BaseException:
            if before is not None:
                scheduler.load_state_dict(before)
            raise
        write()
        self.put_back(training)

    def release(self, store: Store) -> None:
        """Give the memory back."""
        store.release(self.weights)
        store.release(self.others.kept)
        store.release(self.buffers.kept)
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

    def state_dict(self, training: Training) -> dict[str, Any]:
        """Everything, in plain containers, numbers and tensors."""
        then = self.snapshot
        assert then.optimizer is not None
        return {
            "clock": self.clock,
            "step": self.jump.step,
            "before": self.before,
            "horizon": self.jump.horizon,
            "weights": [t.clone() for t in then.weights.settled()],
            "others": {name: t.clone() for name, t in then.others.tensors.items()},
            "buffers": {name: t.clone() for name, t in then.buffers.tensors.items()},
            "empty": list(then.empty),
            "persistent": sorted(then.persistent),
            "stepped": training.stepped,
            "optimizer": then.optimizer.state_dict(),
            "scheduler": then.scheduler,
        }

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
        _check_scheduler(state["scheduler"], training.scheduler)
        saved, own = state["stepped"], training.stepped
        if saved != own:
            odd = {name for group in saved for name in group} ^ {n for group in own for n in group}
            what = f"{min(odd)!r} is among those that differ" if odd else "their order differs"
            raise WfcastError(
                f"the optimizer of the saved state steps {sum(map(len, saved))} parameters in "
                f"{len(saved)} groups, expected {sum(map(len, own))} in {len(own)}; {what}"
            )
        OptimizerSnapshot.check_saved(state["optimizer"], training.optimizer)
        training.check_named(state["others"])
        check_buffers(training.model, {**state["buffers"], **dict.fromkeys(state["empty"])})

    @classmethod
    def load(cls, state: dict[str, Any], jump: Jump, training: Training, store: Store) -> Pending:
        """From what `state_dict` gave and `check_saved` let pass, and its row of the history."""
        named = training.named
        others, kept = state["others"], state["buffers"]
        snapshot = Snapshot(
            store.keep_beside(state["weights"], training.parameters),
            Named(
                list(others), store.keep_beside(list(others.values()), [named[n] for n in others])
            ),
            Named(list(kept), store.keep(list(kept.values()))),
            list(state["empty"]),
            set(state["persistent"]),
            OptimizerSnapshot.load(state["optimizer"], training.optimizer, store),
            state["scheduler"],
        )
        return cls(jump, state["clock"], [(c, v) for c, v in state["before"]], snapshot)


def _check_scheduler(saved: dict[str, Any] | None, scheduler: Any) -> None:
    """Raise WfcastError where a jump under way was saved with another scheduler, or with none."""
    what = "the state was saved in the middle of a jump and"
    if saved is None and scheduler is not None:
        raise WfcastError(
            f"{what} without a scheduler, which is needed to take that back: expected one saved "
            "with a scheduler"
        )
    if saved is not None and scheduler is None:
        raise WfcastError(
            f"{what} with a scheduler, which is needed to take that back: make Farcasting with one"
        )
    odd = sorted(scheduler.state_dict().keys() - saved.keys()) if saved is not None else []
    if odd:
        raise WfcastError(
            f"{what} with another scheduler than this {type(scheduler).__name__}: it lacks "
            f"{', '.join(map(repr, odd))}"
        )
