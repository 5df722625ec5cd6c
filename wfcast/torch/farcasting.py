"""Jumps in a training loop: when, how far, and whether they are kept."""

from __future__ import annotations

import logging
import math
import os
import time
import weakref
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from .._errors import WfcastError
from .._live.tensors import select
from .._patterns import Patterns
from . import _coefficients
from ._history import FarcastingReport, Jump, numbers
from ._jumping import Jumper, NoJump
from ._loop import StepCounter
from ._losses import PARTS, Losses
from ._optimizer import soften
from ._recording import Recording
from ._settings import Settings, check_kinds
from ._snapshot import Pending
from ._store import Store, where_to_keep
from ._training import Training
from ._trust import HARM, Verdict, blew_up, verdict_on

__all__ = ["Farcasting"]

logger = logging.getLogger("wfcast")

EARLY = 5  # a fifth of the recovery window shows whether a jump blew up

_controllers: weakref.WeakSet[Farcasting] = weakref.WeakSet()


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
    include, exclude : str or sequence of str, optional
        Shell patterns of parameter names, each of which must match one; a tied parameter goes by
        any of its names. Frozen parameters never jump.
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
        One per jump so far: ``step``, ``horizon``, ``outcome`` ("pending", "kept", "rolled back",
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

    See Also
    --------
    FarcastingCallback : In the Hugging Face Trainer.
    wfcast.torch.lightning.FarcastingCallback : In Lightning.
    FarcastingReport : The jumps, to look at.
    fit_to_loss : What the model would be if training ended now.

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

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: Any,
        forecaster: Any = None,
        *,
        spacing: int = 50,
        n_states: int = 2,
        period: int = 100,
        horizon: float | str = "adaptive",
        recovery: int = 50,
        judge: Callable[[], Any] | None = None,
        optimizer_state: str = "keep",
        store: str | os.PathLike[str] = "auto",
        include: Patterns | None = None,
        exclude: Patterns | None = None,
        start: int = 0,
        stop: int | None = None,
        scheduler: Any = None,
        refresh: Callable[[], Any] | None = None,
        state_dtype: torch.dtype | None = None,
        max_loss: float = 0.03,
        patience: int = 4,
    ) -> None:
        check_kinds(model, optimizer, judge=judge, refresh=refresh)
        _check_alone(model)
        self._settings = settings = Settings(
            spacing=spacing,
            n_states=n_states,
            period=period,
            horizon=horizon,
            recovery=recovery,
            optimizer_state=optimizer_state,
            start=start,
            stop=stop,
            max_loss=max_loss,
            patience=patience,
        )
        slots = select(model, optimizer, include, exclude)
        source = _coefficients.source(forecaster, spacing, n_states, slots)
        self._training = Training(model, optimizer, scheduler, slots)
        n_kept = max(len(source.offsets), source.learns) + 1
        self._store = Store(where_to_keep(store, self._training.parameters, n_kept))
        self._recording = Recording(
            self._training, source, self._store, spacing=spacing, since=start, dtype=state_dtype
        )
        self._losses = Losses(model, judge, settings.window)
        self._trust = settings.trust_region(source.longest)
        self._jumper = Jumper(
            self._training, self._recording, self._losses, self._trust, self._store, refresh
        )
        self.seconds = 0.0
        self._jumps: list[Jump] = []
        self._step = 0  # calls of step()
        self._clock = 0  # steps of the trajectory: those that were rolled back do not count
        self._pending: Pending | None = None
        self._harms = 0
        self._next = self._recording.earliest(settings.first_jump)
        self._said = ""
        self._closed = False
        self._steps = StepCounter(optimizer)
        _controllers.add(self)
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
        if not self._steps.one_more():
            return False
        begun = time.perf_counter()
        self._step += 1
        self._clock += 1
        self._losses.take(loss, self._clock)
        try:
            changed = self._advance()
        finally:
            spent = time.perf_counter() - begun
            self.seconds += spent
            if self._jumps and self._jumps[-1].outcome != "refused":
                self._jumps[-1].seconds += spent
        return changed

    def _advance(self) -> bool:
        """Watch the jump that is under way, or record, measure and jump where that is due."""
        settings, clock = self._settings, self._clock
        if self._pending is not None:
            return self._watch(self._pending)
        if self.stopped or (settings.stop is not None and self._step > settings.stop):
            self._recording.forget()
            return False
        if clock >= settings.start and clock in self._recording.due(self._next):
            self._record()
        if clock == self._recording.since or clock in self._losses.due(self._next):
            self._losses.measure(clock)
        if clock < self._next:
            return False
        if settings.stop is not None and self._step + settings.window > settings.stop:
            return False
        if not self._trust.affords(self._step):
            self._next += settings.period
            return False
        return self._jump()

    def _record(self) -> None:
        problem = self._recording.record(self._clock, self._step)
        if problem:
            self._refuse(problem)
        else:
            self._recording.prune(self._clock, self._next)

    # ---- jumping ------------------------------------------------------------------------------

    def _jump(self) -> bool:
        """Replace the weights; the run goes on as it was where something is in the way."""
        clock, window = self._clock, self._settings.window
        self._losses.measure(clock)
        before = self._losses.between(max(self._recording.since, clock - 2 * window), clock)
        if window and (len(before) < 2 or not all(math.isfinite(v) for _, v in before)):
            missing = "a loss before the jump is not finite" if len(before) > 1 else "losses lack"
            return self._refuse(f"{missing}: nothing to judge a jump by")
        if not self._recording.complete(clock):
            self._recording.since = clock  # a state could not be kept: begin again from here
            self._next = self._recording.earliest(clock + self._settings.period)
            self._record()
            return False
        jump = Jump(self._step, self._trust.horizon, "pending" if window else "kept")
        jump.loss_before = before[-1][1] if before else None
        try:
            pending = self._jumper.take_off(jump, clock, before)
        except NoJump as problem:
            return self._refuse(str(problem))
        factor = self._settings.spacing / (self._settings.spacing + jump.horizon)
        soften(
            self._training.optimizer, self._training.slots, self._settings.optimizer_state, factor
        )
        self._jumps.append(jump)
        if window:
            self._pending = pending
        else:
            pending.snapshot.release(self._store)
            self._begin_again()
        return True

    def _refuse(self, problem: str) -> bool:
        """No jump this time; the run goes on as it was."""
        logger.warning("no jump at step %d: %s", self._step, problem)
        self._jumps.append(Jump(self._step, self._trust.horizon, "refused", reason=problem))
        self._next = self._recording.earliest(self._clock + self._settings.period)
        self._say_stop()
        return False

    # ---- judging ------------------------------------------------------------------------------

    def _watch(self, pending: Pending) -> bool:
        """A jump is under way: look whether it blew up, and judge it at the end of its window."""
        clock, window = self._clock, self._settings.window
        passed = clock - pending.clock
        if not self._losses.judged and pending.jump.loss_right_after is None:
            first = self._losses.between(pending.clock + 1, clock)
            pending.jump.loss_right_after = first[0][1] if first else None
        if passed >= window:
            return self._decide(pending)
        if passed == window - window // PARTS:
            self._losses.measure(clock)
        if passed == max(1, window // EARLY) and not self._losses.judged:
            recent = self._losses.between(clock, clock)
            if recent and blew_up(pending.before, recent[-1][1]):
                return self._roll_back(pending, None)
        return False

    def _decide(self, pending: Pending) -> bool:
        """Keep the jump that is under way, or take it back."""
        jump, window = pending.jump, self._settings.window
        self._losses.measure(self._clock)
        half = (self._clock - pending.clock + 1) // 2
        after = self._losses.between(pending.clock + half, self._clock)
        verdict = None
        if after:  # else losses are no longer handed over
            verdict = verdict_on(pending.before, after, window, jump.horizon)
            jump.verdict, jump.steps_saved = verdict.kind, verdict.steps_saved
            jump.loss_after, jump.loss_expected = verdict.after, verdict.expected
        if verdict is None or verdict.kind == HARM:
            return self._roll_back(pending, verdict)
        jump.outcome = "kept"
        self._harms = 0
        self._trust.learn(verdict, window)
        pending.snapshot.release(self._store)
        self._pending = None
        self._begin_again()
        self._say_stop()
        return False

    def _roll_back(self, pending: Pending, verdict: Verdict | None) -> bool:
        """Take the jump that is under way back; without a verdict its loss was beyond any."""
        jump = pending.jump
        lost = self._clock - pending.clock
        self._training.check_unchanged()
        if verdict is None:
            jump.verdict = HARM
            verdict = Verdict(HARM, math.nan, math.nan, 0.0, -float(lost))
        jump.outcome, jump.steps_saved = "rolled back", -float(lost)
        pending.snapshot.restore(self._training)
        pending.snapshot.release(self._store)
        self._pending = None
        self._clock = pending.clock
        self._losses.cut(last=self._clock)
        self._trust.learn(verdict, lost)
        self._harms += 1
        pause = self._settings.period * 2 ** min(self._harms, 6)
        self._next = self._recording.earliest(self._clock + pause)
        self._recording.prune(self._clock, self._next)
        self._say_stop()
        return True

    def _begin_again(self) -> None:
        """After a jump that stays: states and losses follow each other from here."""
        clock, settings = self._clock, self._settings
        self._recording.since = clock
        self._losses.cut(first=clock)
        jumped = clock - settings.window
        self._next = self._recording.earliest(max(jumped + settings.period, clock + 1))
        if clock in self._recording.due(self._next):
            self._record()
        self._recording.prune(clock, self._next)

    def _say_stop(self) -> None:
        if self.stopped and self._said != self.stopped:
            self._said = self.stopped
            logger.warning("Farcasting stopped at step %d: %s", self._step, self.stopped)

    # ---- showing and keeping --------------------------------------------------------------------

    @property
    def history(self) -> list[dict[str, Any]]:
        """One row per jump so far."""
        return [asdict(jump) for jump in self._jumps]

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
        return numbers(self._jumps, self._trust, self.seconds)

    def summary(self) -> FarcastingReport:
        """Every jump and what came of it: ``print`` it, show it in a notebook, or plot it."""
        return FarcastingReport(self.history, self.log(), self.stopped, self._settings.window)

    def plot(self, ax: Any = None) -> Any:
        """Draw the losses around every jump; needs Matplotlib (the extra ``plot``).

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
            self._decide(self._pending)
        if self._pending is not None:
            self._pending.snapshot.release(self._store)
        self._pending = None
        self._recording.forget()
        self._closed = True
        _controllers.discard(self)
        self._steps.remove()

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes, in plain containers, numbers and tensors.

        With the model's, the optimizer's and the scheduler's it makes a run that was killed go on
        to the bit as if it had not been. Each process of a distributed run saves its own.
        """
        return {
            "names": [s.name for s in self._training.slots],
            "step": self._step,
            "clock": self._clock,
            "next": self._next,
            "harms": self._harms,
            "said": self._said,
            "seconds": self.seconds,
            **self._recording.state_dict(),
            "losses": self._losses.state_dict(),
            "history": self.history,
            "trust": self._trust.state_dict(),
            "pending": None if self._pending is None else self._pending.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken; the model and the optimizer are loaded by the user.

        Raises
        ------
        WfcastError
            The state of other parameters or another kind of forecaster, or one that lacks what
            taking back its jump needs; nothing has changed then.
        """
        then = state["pending"]
        saved = [*state["states"].values(), *([then["weights"]] if then else [])]
        self._training.check_saved(state["names"], saved)
        self._recording.source.check_saved(state["source"])
        jumps = [Jump(**row) for row in state["history"]]
        if then is not None:
            Pending.check_saved(then, jumps, self._training)
        self._recording.load_state_dict(state)
        self._losses.load_state_dict(state["losses"])
        self._trust.load_state_dict(state["trust"])
        self._step, self._clock, self._next = state["step"], state["clock"], state["next"]
        self._harms, self._said, self.seconds = state["harms"], state["said"], state["seconds"]
        self._jumps = jumps
        self._pending = None
        if then is not None:
            self._pending = Pending.load(then, jumps[-1], self._training, self._store)
        self._steps.catch_up()


def _check_alone(model: torch.nn.Module) -> None:
    """Raise WfcastError where another controller has parameters of the model."""
    own = {id(p) for p in model.parameters()}
    if any(id(p) in own for other in _controllers for p in other._training.model.parameters()):
        raise WfcastError(
            "this model has a Farcasting already: close() that one before making another"
        )
