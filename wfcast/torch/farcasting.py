"""Jumps in a training loop: when, how far, and whether they are kept."""

from __future__ import annotations

import copy
import inspect
import logging
import math
import os
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from .._errors import WfcastError
from . import _coefficients, _distributed
from ._history import FarcastingReport
from ._loop import StepCounter, aside, check_horizon, check_numbers, evaluating
from ._states import OptimizerSnapshot, Store, chosen, parameters_of, settled, soften
from ._tensors import combine, local, reshard, select
from ._trust import HARM, TrustRegion, Verdict, verdict_on

__all__ = ["Farcasting", "check_names"]

logger = logging.getLogger("wfcast")

OPTIMIZER_STATES = ("keep", "reset", "scale")
HIGHEST = 20  # the longest horizon, in spacings: further than that a line is a guess
LOWEST = 0.25  # the shortest, in spacings
EARLY = 5  # a fifth of the recovery window shows whether a jump blew up
RISE = 0.1  # a jump that raises the judge's loss by more than this share at once is shortened
MOST = 16  # by no more than this factor
FIRST = 10  # no jump in the first such part of a run of known length
PARTS = 5  # held-out losses in the window before a jump; the last two such parts after it count

_live: weakref.WeakSet[Farcasting] = weakref.WeakSet()


def _copied(loss: torch.Tensor) -> torch.Tensor:
    """A float32 of its own: the loop may write over the loss, and a file holds it exactly."""
    return loss.detach().to(torch.float32, copy=True)


class Farcasting:
    r"""Jump ahead now and then while training, and take back what does not pay.

    Every `period` steps the weights are replaced by a forecast of what they will be `horizon` steps
    later, ``w <- sum_k A_k w_k + b`` over the last recorded states, and training goes on. The loss
    usually rises at first, so a jump is judged `recovery` steps later, against the loss that the
    run was heading for: the least-squares line of the losses before it over log(step). A better
    loss doubles the next horizon; one as good keeps it; one that is worse, but within noise, halves
    it. Else the jump is taken back: the weights, the optimizer's state, the scheduler's and the
    model's buffers are those before it again, and the next horizon is a quarter. With a judge, a
    jump that raises the held-out loss by a tenth at once is halved on the spot, and refused where
    that does not help. Farcasting stops by itself after `patience` jumps in a row that did not pay,
    and logs that.

    What is taken back is lost: `recovery` steps each. A jump is tried only while those steps, with
    the next window, are at most `max_loss` of the steps plus half of what kept jumps saved: of the
    `stop` steps of the run where that is given, else of the steps so far, the first jump being
    free. So a run of known length loses at most ``max_loss * stop`` steps beyond that half.

    Parameters
    ----------
    model : torch.nn.Module
        Plain, compiled, DistributedDataParallel or FSDP2; weights are written in place.
    optimizer : torch.optim.Optimizer
        What steps the model's parameters, or float32 master copies of them in the same order.
    forecaster : ModelFarcaster, callable or None, default=None
        A fitted ModelFarcaster says by its inputs and targets which states it needs and how far it
        goes; shorter horizons lie on straight lines between its targets. A function of
        ``(inputs, targets)`` such as `wfcast.linear_trend` is asked for each horizon. None learns
        from the run itself: each tensor's line, with the slope that least squares over the
        movements so far gives it.
    spacing : int, default=50
        Steps between the recorded states.
    n_states : int, default=2
        States that a forecast starts from; with a fitted forecaster, its inputs count.
    period : int, default=100
        Steps between jumps. The first comes no earlier than after a tenth of the steps to `stop`:
        before that most runs bend too much for a line.
    horizon : "adaptive" or number, default="adaptive"
        How many steps ahead. "adaptive" begins at `period`.
    recovery : int, default=50
        Steps from a jump to its judgement; 0 keeps every jump unseen (with a number as horizon). At
        most ``max_loss * stop`` where `stop` is given, so that a jump can be tried.
    judge : callable, optional
        ``judge() -> float``, the held-out loss; called in eval mode, without gradients, the random
        state and the modes kept: about ten times per jump. None judges by the losses that `step` is
        given; a callable given to `step` is a judge, too.
    optimizer_state : {"keep", "reset", "scale"}, default="keep"
        What becomes of the moments after a jump. "reset" forgets the state of the parameters that
        jumped; "scale" multiplies first moments by ``spacing / (spacing + horizon)``.
    store : {"auto", "cpu", "device", "disk"} or path, default="auto"
        Where states and what a rollback needs are kept: the CPU's memory, pinned for a GPU; beside
        the parameters; files in a temporary folder, or in the folder given. "auto" is the GPU where
        that takes at most a tenth of its memory, else the CPU.
    include, exclude : sequence of str, optional
        Shell patterns of parameter names. Frozen parameters never jump.
    start, stop : int, default=0 and None
        The steps between which states are recorded and jumps may be under way; give the length of
        the run as `stop` where it is known.
    scheduler : object with state_dict and load_state_dict, optional
        Rolled back with the weights.
    refresh : callable, optional
        Called after each jump, before it is judged, to bring running statistics (BatchNorm) up to
        date, as ``lambda: torch.optim.swa_utils.update_bn(loader, model)`` does; the random state
        and the modes are kept. Without it they catch up in the recovery window.
    state_dtype : torch.dtype, optional
        The dtype of the recorded states (``torch.bfloat16`` halves them); the parameter's own by
        default. What a rollback needs is always exact.
    max_loss : float, default=0.03
        The share of steps that jumps may cost, see above.
    patience : int, default=4
        Jumps in a row that did not pay until it stops.

    Attributes
    ----------
    history : list of dict
        One per jump: ``step``, ``horizon``, ``outcome`` ("pending", "kept", "rolled back",
        "refused"), ``verdict``, ``loss_before``, ``loss_right_after``, ``loss_after``,
        ``loss_expected``, ``steps_saved``, ``seconds``, ``reason``.
    stopped : str
        Why it stopped; empty while it goes on.
    seconds : float
        Time spent, judges included.

    Raises
    ------
    WfcastError
        A parameter at fault; a forecaster that does not fit the model; a second controller.

    Notes
    -----
    Under torch.distributed every process calls `step`, and all decide alike: losses and statistics
    are added up over the processes, each forecasts its own shards.

    Examples
    --------
    >>> import torch
    >>> from wfcast.torch import Farcasting
    >>> model = torch.nn.Linear(4, 1)
    >>> optimizer = torch.optim.Adam(model.parameters())
    >>> farcasting = Farcasting(model, optimizer)
    >>> for _ in range(300):
    ...     x = torch.randn(32, 4)
    ...     loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
    ...     optimizer.zero_grad()
    ...     loss.backward()
    ...     optimizer.step()
    ...     changed = farcasting.step(loss)
    """

    _closed: bool
    _model: torch.nn.Module

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: Any,
        forecaster: Any = None,
        spacing: int = 50,
        n_states: int = 2,
        period: int = 100,
        horizon: float | str = "adaptive",
        recovery: int = 50,
        judge: Callable[[], Any] | None = None,
        optimizer_state: str = "keep",
        store: str | os.PathLike[str] = "auto",
        include: Sequence[str] | None = None,
        exclude: Sequence[str] | None = None,
        start: int = 0,
        stop: int | None = None,
        *,
        scheduler: Any = None,
        refresh: Callable[[], Any] | None = None,
        state_dtype: torch.dtype | None = None,
        max_loss: float = 0.03,
        patience: int = 4,
    ) -> None:
        if not isinstance(model, torch.nn.Module):
            raise WfcastError(f"model is a {type(model).__name__}, expected a torch.nn.Module")
        if not hasattr(optimizer, "param_groups"):
            raise WfcastError(
                f"optimizer is a {type(optimizer).__name__}, expected a torch.optim.Optimizer"
            )
        check_numbers(spacing, n_states, period, recovery, start, stop, max_loss, patience)
        adaptive = check_horizon(horizon, recovery)
        if optimizer_state not in OPTIMIZER_STATES:
            raise WfcastError(
                f"optimizer_state is {optimizer_state!r}, expected one of {OPTIMIZER_STATES}"
            )
        for name, function in (("judge", judge), ("refresh", refresh)):
            if function is not None and not callable(function):
                raise WfcastError(f"{name} is {function!r}, expected a function or None")
        own = {id(p) for p in model.parameters()}
        if any(id(p) in own for other in _live for p in other._model.parameters()):
            raise WfcastError(
                "this model has a Farcasting already: close() that one before making another"
            )
        self._closed = False
        self._model, self._optimizer, self._scheduler = model, optimizer, scheduler
        self._slots = select(model, optimizer, include, exclude)
        self._stepped = {id(p) for p in parameters_of(optimizer)}
        self._shapes = {s.name: tuple(s.parameter.shape) for s in self._slots}
        self._source = _coefficients.source(forecaster, spacing, n_states, self._slots)
        self._spacing, self._period = spacing, period
        self._recovery = self._window(recovery, stop, max_loss)
        self._judge, self._refresh = judge, refresh
        self._optimizer_state, self._state_dtype = optimizer_state, state_dtype
        self._start, self._stop = start, stop
        n_kept = max(len(self._source.offsets), self._source.learns) + 1
        self._store = Store(chosen(store, [s.parameter for s in self._slots], n_kept))
        self._trust = TrustRegion(
            period if adaptive else float(horizon),
            LOWEST * spacing if adaptive else 0.0,
            min(self._source.longest, HIGHEST * spacing if adaptive else math.inf),
            adaptive=adaptive,
            window=self._recovery,
            stop=stop,
            max_loss=max_loss,
            patience=patience,
        )
        self.history: list[dict[str, Any]] = []
        self.seconds = 0.0
        self._step = 0  # calls of step()
        self._clock = 0  # steps of the trajectory: those that were rolled back do not count
        self._since = start  # the clock from which states follow each other without a jump
        self._states: dict[int, list[torch.Tensor]] = {}
        self._moves: list[tuple[int, int]] = []  # recorded pairs one spacing apart
        self._losses: list[tuple[int, Any]] = []  # by clock
        self._pending: dict[str, Any] | None = None
        self._harms = 0
        self._next = self._schedule(start + max(period, ((stop or start) - start) // FIRST))
        self._said = ""
        self._steps_taken = StepCounter(optimizer)
        self._seen = self._steps_taken.value
        _live.add(self)
        self._say_stop()
        if start == 0 and not self.stopped:
            self._record()

    # ---- the loop -----------------------------------------------------------------------------

    def step(self, loss: Any = None) -> bool:
        """To be called after every ``optimizer.step()``.

        Parameters
        ----------
        loss : float, tensor or callable, optional
            The training loss of the step, or a function that gives a held-out loss when asked. Not
            needed with a `judge`. A tensor is not waited for until a jump is judged.

        Returns
        -------
        bool
            True where the weights were changed: by a jump, or by taking one back.

        Raises
        ------
        WfcastError
            The model's parameters changed their names or shapes, the optimizer took several steps,
            or no loss is there to judge by.
        """
        if self._closed:
            raise WfcastError("this Farcasting was closed")
        if not self._has_stepped():
            return False
        begun = time.perf_counter()
        self._step += 1
        self._clock += 1
        self._take_loss(loss)
        try:
            changed = self._advance()
        finally:
            spent = time.perf_counter() - begun
            self.seconds += spent
            if self.history and self.history[-1]["outcome"] in ("pending", "kept", "rolled back"):
                self.history[-1]["seconds"] += spent
        return changed

    def _advance(self) -> bool:
        if self._pending is not None:
            return self._watch()
        if self.stopped or (self._stop is not None and self._step > self._stop):
            self._forget()
            return False
        if self._clock >= self._start and self._clock in self._due():
            self._record()
        if self._clock == self._since or self._clock in self._measured():
            self._measure()
        if self._clock < self._next:
            return False
        if self._stop is not None and self._step + self._recovery > self._stop:
            return False
        if not self._trust.affords(self._step):
            self._next += self._period
            return False
        return self._jump()

    def _has_stepped(self) -> bool:
        """Whether the optimizer took its one step since the last call."""
        taken = self._steps_taken.value
        if taken is None:
            return True  # not an optimizer that can be asked
        fresh, self._seen = taken - (self._seen or 0), taken
        if fresh > 1:
            raise WfcastError(
                f"the optimizer took {fresh} steps since the last call: call step() after every "
                "optimizer.step()"
            )
        return fresh == 1  # a gradient scaler leaves out steps, and a second call is none

    def _take_loss(self, loss: Any) -> None:
        if callable(loss) and not isinstance(loss, torch.Tensor):
            if self._judge is None:
                self._judge = loss
        elif loss is not None:
            value = _copied(loss) if isinstance(loss, torch.Tensor) else float(loss)
            if isinstance(value, torch.Tensor) and value.numel() != 1:
                raise WfcastError(f"loss has shape {list(value.shape)}, expected one number")
            if self._judge is None:
                self._losses.append((self._clock, value))
                del self._losses[: -4 * self._recovery - 1]
        elif self._judge is None and self._recovery and not self._losses:
            raise WfcastError(
                "there is nothing to judge a jump by: call step(loss), give Farcasting a judge, or "
                "pass recovery=0 to keep every jump unseen"
            )

    # ---- states -------------------------------------------------------------------------------

    def _schedule(self, wanted: int) -> int:
        """The first clock from `wanted` on at which all states of a jump can be there."""
        source = self._source
        enough = source.offsets[0]
        if source.learns and not self._moves:
            enough = max(enough, (source.learns - 1) * self._spacing)
        return max(wanted, self._since + enough)

    def _due(self) -> set[int]:
        """The clocks of the states that the next jump needs."""
        offsets = {*self._source.offsets, *(k * self._spacing for k in range(self._source.learns))}
        return {self._next - o for o in offsets if self._next - o >= self._since}

    def _record(self) -> None:
        problem = ""
        try:
            self._check_parameters()
            self._states[self._clock] = self._store.keep(
                [s.parameter for s in self._slots], self._state_dtype
            )
        except OSError as error:
            problem = f"no state could be kept at step {self._step}: {error}"
        problem = _distributed.first_problem(problem)
        if problem:
            self._drop(self._clock)
            self._refuse(problem)
            return
        before = self._clock - self._spacing
        if self._source.learns and before >= self._since and before in self._states:
            self._moves.append((before, self._clock))
            del self._moves[: 1 - self._source.learns]
        self._prune()

    def _prune(self) -> None:
        wanted = {clock for move in self._moves for clock in move}
        if self._pending is not None:
            wanted.add(self._pending["clock"])
        for clock in [c for c in self._states if c < self._since and c not in wanted]:
            self._drop(clock)
        due = self._due() if self._pending is None else set()
        for clock in [c for c in self._states if c < self._clock and c not in wanted | due]:
            self._drop(clock)

    def _drop(self, clock: int) -> None:
        self._store.release(self._states.pop(clock, []))

    def _forget(self) -> None:
        """No jump will follow: the memory is given back."""
        for clock in list(self._states):
            self._drop(clock)
        self._moves.clear()
        self._store.clear()

    def _check_parameters(self) -> None:
        present = {id(p) for p in parameters_of(self._optimizer)}
        fresh = len(present - self._stepped)
        gone = [s.name for s in self._slots if id(s.parameter) not in present]
        if gone:
            raise WfcastError(
                f"{len(gone)} parameters, {gone[0]!r} first, are no longer in the optimizer: make "
                "a new Farcasting after changing them"
            )
        if fresh:
            raise WfcastError(
                f"{fresh} parameters that were not there came to the optimizer: make a new "
                "Farcasting after adding them"
            )
        for slot in self._slots:
            shape = tuple(slot.parameter.shape)
            if shape != self._shapes[slot.name]:
                raise WfcastError(
                    f"parameter {slot.name!r} is {list(shape)} now and was "
                    f"{list(self._shapes[slot.name])}: make a new Farcasting after resizing"
                )

    # ---- the loss -----------------------------------------------------------------------------

    @staticmethod
    def _window(recovery: int, stop: int | None, max_loss: float) -> int:
        """The recovery window: no longer than what a run of known length may lose."""
        if stop is None or not recovery:
            return recovery
        return max(1, min(recovery, int(max_loss * stop)))

    def _measured(self) -> set[int]:
        """The clocks of the held-out losses before the next jump."""
        return {self._next - self._recovery * i // PARTS for i in range(PARTS + 1)}

    def _measure(self) -> float | None:
        """The held-out loss now, where there is a judge; kept with the clock."""
        if self._judge is None or not self._recovery:
            return None
        if self._losses and self._losses[-1][0] == self._clock:
            return float(self._losses[-1][1])
        value = self._held_out()
        if self._clock > 0:
            self._losses.append((self._clock, value))
            del self._losses[: -4 * PARTS]
        return value

    def _held_out(self) -> float:
        assert self._judge is not None
        with _distributed.together(), evaluating(self._model):
            value = float(self._judge())
        return _distributed.mean([value])[0]

    def _points(self, first: int, last: int) -> list[tuple[int, float]]:
        """Losses with ``first <= clock <= last``, the means over the processes."""
        chosen = [(c, v) for c, v in self._losses if first <= c <= last]
        tensors = [v.float().reshape(()) for _, v in chosen if isinstance(v, torch.Tensor)]
        moved = iter(torch.stack(tensors).tolist() if tensors else [])
        values = [next(moved) if isinstance(v, torch.Tensor) else v for _, v in chosen]
        if self._judge is None:
            values = _distributed.mean(values)
        return [(c, v) for (c, _), v in zip(chosen, values, strict=True)]

    # ---- jumping ------------------------------------------------------------------------------

    def _jump(self) -> bool:
        clock, horizon = self._clock, self._trust.horizon
        self._measure()
        before = self._points(max(self._since, clock - 2 * self._recovery), clock)
        if self._recovery and (len(before) < 2 or not all(math.isfinite(v) for _, v in before)):
            missing = "a loss before the jump is not finite" if len(before) > 1 else "losses lack"
            return self._refuse(f"{missing}: nothing to judge a jump by")
        if clock not in self._states or not self._complete():
            self._since = clock  # a state could not be kept: begin again from here
            self._next = self._schedule(clock + self._period)
            self._record()
            return False
        entry: dict[str, Any] = {
            "step": self._step,
            "horizon": horizon,
            "outcome": "pending" if self._recovery else "kept",
            "verdict": None,
            "loss_before": before[-1][1] if before else None,
            "loss_right_after": None,
            "loss_after": None,
            "loss_expected": None,
            "steps_saved": None,
            "seconds": 0.0,
            "reason": "",
        }
        pending = None
        problem = ""
        try:
            if self._source.learns:
                self._learn()
            pending = self._snapshot(before, horizon)
        except (OSError, ValueError) as error:
            problem = str(error)
        problem = _distributed.first_problem(problem)
        if not problem:
            assert pending is not None
            try:
                problem = self._move(pending, entry)
            except BaseException:  # Ctrl-C: weights of which some have jumped are no weights
                self._put_back(pending)
                raise
            if problem:
                self._put_back(pending)
        if problem:
            if pending is not None:
                self._release(pending)
            return self._refuse(problem)
        factor = self._spacing / (self._spacing + entry["horizon"])
        soften(self._optimizer, self._slots, self._optimizer_state, factor)
        self.history.append(entry)
        if self._recovery:
            self._pending = pending
        else:
            assert pending is not None
            self._release(pending)
            self._begin_again()
        return True

    def _complete(self) -> bool:
        return all(self._clock - o in self._states for o in self._source.offsets)

    def _learn(self) -> None:
        moves = self._moves[1 - self._source.learns :]
        if len(moves) == self._source.learns - 1:
            states = {clock: self._state(clock) for move in moves for clock in move}
            self._source.learn(self._slots, [(states[a], states[b]) for a, b in moves])

    def _state(self, clock: int) -> Sequence[torch.Tensor]:
        """The state recorded then, from the parameters themselves while they are just that."""
        kept = self._states[clock]
        if clock == self._clock:
            here = [slot.local for slot in self._slots]
            if all(k.dtype == p.dtype for k, p in zip(kept, here, strict=True)):
                return here
        return settled(kept)

    def _move(self, pending: dict[str, Any], entry: dict[str, Any]) -> str:
        """Replace the weights, and shorten a jump that raises the judge's loss by too much.

        Returns what was in the way.
        """
        horizon = self._trust.horizon
        judged = self._recovery and self._judge is not None
        before = entry["loss_before"] if judged else 0.0
        limit = before + RISE * abs(before)
        while True:
            entry["horizon"] = pending["horizon"] = horizon
            problem = _distributed.first_problem(self._combine(horizon))
            if problem:
                return problem
            if self._refresh is not None:
                with aside(self._model):
                    self._refresh()
            if not judged:
                return ""
            entry["loss_right_after"] = loss = self._held_out()
            if loss <= limit or not self._trust.adaptive:
                self._trust.shorten(horizon)
                return ""
            if horizon / 2 < max(self._trust.lowest, self._trust.horizon / MOST):
                self._trust.refuse(horizon / 2)
                return f"even {horizon:.3g} steps take the held-out loss beyond {limit:.4g}"
            horizon /= 2
            self._write_weights(pending["weights"])

    def _combine(self, horizon: float) -> str:
        """Replace the weights; returns what was in the way."""
        reshard(self._model)
        coefficients = self._source.coefficients
        before = [settled(self._states[self._clock - o]) for o in self._source.offsets[:-1]]
        moving = [
            (slot, [*(state[i] for state in before), slot.local])
            for i, slot in enumerate(self._slots)
            if all(p.requires_grad for p in slot.copies or (slot.parameter,))  # else frozen since
        ]
        try:
            with torch.no_grad():
                combine(
                    (f"parameter {s.name!r}", s.local, states, coefficients(s.name, horizon))
                    for s, states in moving
                )
                for slot, _ in moving:
                    slot.spread()
        except WfcastError as error:
            return str(error)
        return ""

    def _snapshot(self, before: list[tuple[int, float]], horizon: float) -> dict[str, Any]:
        """All that a rollback needs."""
        here = [s.parameter for s in self._slots]
        recorded = self._states[self._clock]
        exact = all(k.dtype == p.dtype for k, p in zip(recorded, here, strict=True))
        result: dict[str, Any] = {
            "clock": self._clock,
            "step": self._step,
            "before": before,
            "horizon": horizon,
            "weights": recorded if exact else self._store.keep(here),
            "shared": exact,
        }
        try:
            result["buffers"] = self._store.keep(list(self._model.buffers()))
            if self._recovery:
                result["optimizer"] = OptimizerSnapshot.take(self._optimizer, self._store)
        except OSError:
            self._release(result)
            raise
        if self._recovery and self._scheduler is not None:
            result["scheduler"] = copy.deepcopy(self._scheduler.state_dict())
        return result

    def _release(self, snapshot: dict[str, Any]) -> None:
        if not snapshot["shared"]:
            self._store.release(snapshot["weights"])
        self._store.release(snapshot.get("buffers", []))
        if "optimizer" in snapshot:
            snapshot["optimizer"].release(self._store)

    def _write_weights(self, kept: Sequence[torch.Tensor]) -> None:
        reshard(self._model)
        with torch.no_grad():
            torch._foreach_copy_([slot.local for slot in self._slots], list(settled(kept)))
            for slot in self._slots:
                slot.spread()

    def _put_back(self, snapshot: dict[str, Any]) -> None:
        """The model as it was before the jump."""
        self._write_weights(snapshot["weights"])
        with torch.no_grad():
            kept = settled(snapshot["buffers"])
            for buffer, value in zip(self._model.buffers(), kept, strict=True):
                local(buffer).copy_(value)

    def _refuse(self, problem: str) -> bool:
        """No jump this time; the run goes on as it was."""
        logger.warning("no jump at step %d: %s", self._step, problem)
        self.history.append(
            {
                "step": self._step,
                "horizon": self._trust.horizon,
                "outcome": "refused",
                "verdict": None,
                "loss_before": None,
                "loss_right_after": None,
                "loss_after": None,
                "loss_expected": None,
                "steps_saved": None,
                "seconds": 0.0,
                "reason": problem,
            }
        )
        self._next = self._schedule(self._clock + self._period)
        self._say_stop()
        return False

    # ---- judging ------------------------------------------------------------------------------

    def _watch(self) -> bool:
        """A jump is under way: look whether it blew up, and judge it at the end of its window."""
        assert self._pending is not None
        jumped, entry = self._pending["clock"], self.history[-1]
        passed = self._clock - jumped
        if self._judge is None and entry["loss_right_after"] is None:
            first = self._points(jumped + 1, self._clock)
            entry["loss_right_after"] = first[0][1] if first else None
        if passed < self._recovery:
            if passed == self._recovery - self._recovery // PARTS:
                self._measure()
            early = max(1, self._recovery // EARLY)
            return passed == early and self._blew_up() and self._roll_back(None)
        return self._decide()

    def _decide(self) -> bool:
        """Keep the jump that is under way, or take it back."""
        assert self._pending is not None
        jumped, entry = self._pending["clock"], self.history[-1]
        if self._judge is not None:
            self._measure()
        after = self._points(jumped + (self._clock - jumped + 1) // 2, self._clock)
        if not after:  # losses are no longer handed over
            verdict = None
        else:
            horizon = self._pending["horizon"]
            verdict = verdict_on(self._pending["before"], after, self._recovery, horizon)
            entry.update(
                verdict=verdict.kind,
                loss_after=verdict.after,
                loss_expected=verdict.expected,
                steps_saved=verdict.steps_saved,
            )
        if verdict is None or verdict.kind == HARM:
            return self._roll_back(verdict)
        entry["outcome"] = "kept"
        self._harms = 0
        self._trust.learn(verdict, self._recovery)
        self._release(self._pending)
        self._pending = None
        self._begin_again()
        self._say_stop()
        return False

    def _blew_up(self) -> bool:
        """Whether the loss is gone, or worse by far than any before the jump."""
        assert self._pending is not None
        if self._judge is not None:
            return False
        recent = self._points(self._clock, self._clock)
        if not recent:
            return False
        worst = max(loss for _, loss in self._pending["before"])
        least = min(loss for _, loss in self._pending["before"])
        return not recent[-1][1] <= worst + 4 * (worst - least) + abs(worst)

    def _roll_back(self, verdict: Verdict | None) -> bool:
        then, entry = self._pending, self.history[-1]
        assert then is not None
        lost = self._clock - then["clock"]
        self._check_parameters()
        if verdict is None:
            entry["verdict"] = HARM
            verdict = Verdict(HARM, math.nan, math.nan, 0.0, -float(lost))
        entry.update(outcome="rolled back", steps_saved=-float(lost))
        self._put_back(then)
        then["optimizer"].restore(self._optimizer, settings=self._scheduler is not None)
        if self._scheduler is not None:
            self._scheduler.load_state_dict(then["scheduler"])
        self._release(then)
        self._pending = None
        self._clock = then["clock"]
        self._losses = [(c, v) for c, v in self._losses if c <= self._clock]
        self._trust.learn(verdict, lost)
        self._harms += 1
        self._next = self._schedule(self._clock + self._period * 2 ** min(self._harms, 6))
        self._prune()
        self._say_stop()
        return True

    def _begin_again(self) -> None:
        """After a jump that stays: states and losses follow each other from here."""
        self._since = self._clock
        self._losses = [(c, v) for c, v in self._losses if c >= self._clock]
        jumped = self._clock - self._recovery
        self._next = self._schedule(max(jumped + self._period, self._clock + 1))
        if self._clock in self._due():
            self._record()
        self._prune()

    def _say_stop(self) -> None:
        if self.stopped and self._said != self.stopped:
            self._said = self.stopped
            logger.warning("Farcasting stopped at step %d: %s", self._step, self.stopped)

    # ---- showing and keeping --------------------------------------------------------------------

    @property
    def stopped(self) -> str:
        """Why it stopped; empty while it goes on."""
        return self._trust.stopped

    @property
    def horizon(self) -> float:
        """The horizon of the next jump, in steps."""
        return self._trust.horizon

    @property
    def steps_lost(self) -> float:
        """Steps that jumps cost: those taken back, and how far others that stayed fell behind."""
        return self._trust.lost

    @property
    def steps_saved(self) -> float:
        """Estimate of the steps that kept jumps saved."""
        return self._trust.saved

    def log(self) -> dict[str, float]:
        """Numbers for TensorBoard, W&B and their like, by names that begin with "farcasting/"."""
        kept = sum(e["outcome"] == "kept" for e in self.history)
        back = sum(e["outcome"] == "rolled back" for e in self.history)
        return {
            "farcasting/horizon": float(self.horizon),
            "farcasting/jumps": float(kept + back),
            "farcasting/kept": float(kept),
            "farcasting/rolled_back": float(back),
            "farcasting/steps_saved": float(self.steps_saved),
            "farcasting/steps_lost": float(self.steps_lost),
            "farcasting/seconds": self.seconds,
        }

    def summary(self) -> FarcastingReport:
        """Every jump and what came of it: ``print`` it, show it in a notebook, or plot it."""
        history = copy.deepcopy(self.history)
        return FarcastingReport(history, self.log(), self.stopped, self._recovery)

    def plot(self, ax: Any = None) -> Any:
        """Draw the losses around every jump; needs Matplotlib (``wfcast[plot]``).

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Where; a new figure by default.

        Returns
        -------
        matplotlib.axes.Axes
        """
        return self.summary().plot(ax)

    def _repr_html_(self) -> str:
        return self.summary()._repr_html_()

    def close(self, *, undo: bool = True) -> None:
        """End: the memory and files are given back, the model may get another Farcasting.

        Parameters
        ----------
        undo : bool, default=True
            Judge a jump that is under way by the losses so far, and take it back after harm. False
            where the weights have been replaced since: they are left as they are.
        """
        if self._closed:
            return
        if self._pending is not None and undo:
            self._decide()
        if self._pending is not None:
            self._release(self._pending)
        self._pending = None
        self._forget()
        self._closed = True
        _live.discard(self)
        self._steps_taken.remove()

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes, in plain containers, numbers and tensors.

        With the model's, the optimizer's and the scheduler's it makes a run that was killed go on
        to the bit as if it had not been. Each process of a distributed run saves its own.
        """
        pending = None
        if self._pending is not None:
            then = self._pending
            pending = {k: then[k] for k in then if k not in ("optimizer", "shared")}
            pending["weights"] = [t.clone() for t in settled(then["weights"])]
            pending["buffers"] = [t.clone() for t in settled(then["buffers"])]
            pending["optimizer"] = then["optimizer"].state_dict()
        return {
            "names": [s.name for s in self._slots],
            "step": self._step,
            "clock": self._clock,
            "since": self._since,
            "next": self._next,
            "harms": self._harms,
            "said": self._said,
            "seconds": self.seconds,
            "states": {c: [t.clone() for t in settled(k)] for c, k in self._states.items()},
            "moves": [list(move) for move in self._moves],
            "losses": [(c, float(v)) for c, v in self._losses],
            "history": copy.deepcopy(self.history),
            "trust": self._trust.state_dict(),
            "source": self._source.state_dict(),
            "pending": pending,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken; the model and the optimizer are loaded by the user.

        Raises
        ------
        WfcastError
            The state of other parameters.
        """
        names = [s.name for s in self._slots]
        if state["names"] != names:
            odd = sorted(set(names) ^ set(state["names"])) or names
            raise WfcastError(
                f"the state was saved for {len(state['names'])} parameters, expected {len(names)}; "
                f"{odd[0]!r} is among those that differ"
            )
        for kept in state["states"].values():
            self._check_kept(kept)
        self._forget()
        self._source.load_state_dict(state["source"])
        self._trust.load_state_dict(state["trust"])
        self._step, self._clock = state["step"], state["clock"]
        self._since, self._next = state["since"], state["next"]
        self._harms, self._said, self.seconds = state["harms"], state["said"], state["seconds"]
        self._moves = [(a, b) for a, b in state["moves"]]
        self._losses = [(c, v) for c, v in state["losses"]]
        self.history = copy.deepcopy(state["history"])
        self._states = {int(c): self._place(kept) for c, kept in state["states"].items()}
        then = state["pending"]
        self._pending = None
        if then is not None:
            self._check_kept(then["weights"])
            self._pending = {
                **then,
                "before": [(c, v) for c, v in then["before"]],
                "shared": False,
                "weights": self._place(then["weights"]),
                "buffers": self._store.keep(then["buffers"]),
                "optimizer": OptimizerSnapshot.load(then["optimizer"], self._store),
            }
        self._seen = self._steps_taken.value

    def _check_kept(self, kept: Sequence[torch.Tensor]) -> None:
        for slot, tensor in zip(self._slots, kept, strict=True):
            if tensor.shape != slot.local.shape:
                raise WfcastError(
                    f"the saved state of {slot.name!r} is {list(tensor.shape)}, expected "
                    f"{list(slot.local.shape)}"
                )

    def _place(self, kept: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Copies where the store keeps them."""
        if self._store.where == "device":
            kept = [t.to(s.local.device) for s, t in zip(self._slots, kept, strict=True)]
        return self._store.keep(kept)


def check_names(parameters: Mapping[str, Any], given: Sequence[str]) -> None:
    """Raise TypeError for what is no parameter of `Farcasting`, or one of those `given` to it."""
    known = [name for name in inspect.signature(Farcasting).parameters if name not in given]
    odd = [name for name in parameters if name not in known]
    if odd:
        raise TypeError(f"there is no parameter {odd[0]!r}, expected some of {', '.join(known)}")
