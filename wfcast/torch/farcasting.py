"""Jumps in a training loop: when, how far, and whether they are kept."""

from __future__ import annotations

import logging
import math
import os
import time
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from numbers import Real
from typing import Any

import torch

from .._errors import WfcastError
from .._live import distributed
from .._live.tensors import select
from .._patterns import Patterns
from . import _coefficients
from ._factors import places_of
from ._history import FarcastingReport, Jump, last_made, numbers
from ._judging import Judging, Ruling
from ._jumping import Jumper, NoForecast, NoJump
from ._loop import Bound, StepCounter
from ._losses import NOTHING, Losses
from ._onlookers import Onlookers
from ._optimizer import soften
from ._recording import NoMovement, Recording
from ._rule import rates_of
from ._settings import Settings, check_function, check_kinds, check_room
from ._snapshot import Pending
from ._store import Store, where_to_keep
from ._training import Training
from ._verdict import Point, total

__all__ = ["Farcasting"]

logger = logging.getLogger("wfcast")

ADAPTERS = ("product", "factors")
LOOKS = 8  # between which a jump must not have fitted, for them to be blamed
VERSION = 4  # of what `state_dict` gives

_controllers: weakref.WeakSet[Farcasting] = weakref.WeakSet()


class Farcasting(Bound):
    """Jump ahead where a run drifts, train on from there, and take clear harm back.

    Every `period` steps the weights are replaced by a forecast of what they will be `horizon` steps
    later, ``w <- sum_k A_k w_k + b`` over states of the run, and training goes on:

    1. A jump goes along the least-squares line of each weight through the history since the last
       jump, four such histories ahead times the drift, at most two and a half, times the learning
       rate over its highest so far, times the share of the run that is left. The drift is the
       cosine c between the moves of the history's two halves, less its standard error e and what
       the optimizer's momentum m gives to a random walk, (c - e - m) / (1 - m); where a history
       is short, the mean over it and those before it, 6 / (1 - momentum) steps together.
    2. None is made before a tenth of the run, or where the drift is below 0.2, 0.65 once the
       weights have come further than a fifth of their norm, as in training from scratch; and none
       goes further than what moves them by 3 % of their norm at the history's mean speed.
    3. It stays unless, `recovery` steps later, the loss is not finite or beyond what the losses
       before it let expect by three spreads of what such expectations miss in stretches of the
       same run without jumps. What it saved is asked again after as many steps more, for
       recovery is often slow.

    A jump that is taken back costs `recovery` steps, and leaves the run as if it had not been: its
    weights, buffers, optimizer and scheduler. After two of them there are no more; one whose loss
    is behind at the second look halves those after it, and one that is ahead doubles them again.
    So it pays where weights drift, as at low rates in fine-tuning and reinforcement learning, and
    does next to nothing elsewhere: where the learning rate can be raised, raise it, and read
    weights out by `Annealed`.

    Parameters
    ----------
    model : torch.nn.Module
        Plain, compiled, DistributedDataParallel or FSDP2; weights are written in place.
    optimizer : torch.optim.Optimizer
        What steps the model's parameters, or float32 master copies, in the same order, of those of
        a model in lower precision.
    forecaster : Operator, ModelFarcaster, callable or None, default=None
        A fitted ModelFarcaster or any Operator says by its inputs and targets which states it needs
        and how far it goes; shorter horizons lie on straight lines between its targets. A function
        of ``(inputs, targets)`` such as `wfcast.linear_trend` is asked for each horizon. None: the
        line through all states since the last jump, of which only two sums are kept.
    spacing : int, default=50
        Steps between the states of the history.
    n_states : int, default=2
        States that a function's forecast starts from.
    period : int, default=100
        Steps from a jump to the next, at least two windows of `recovery`: where that is 50, a
        period of 10 is one of 100. The first comes no earlier than after a tenth of the steps to
        `stop`, and four windows or a third of those steps, whichever is less. Where a run does not
        drift it is looked at again when the history is twice as long.
    horizon : "adaptive" or number, default="adaptive"
        How many steps ahead; a number is for all jumps, whatever the drift. A fitted forecaster
        goes no further than its last target, and the row of such a jump says so.
    recovery : int, default=50
        Steps from a jump to its verdict, at most a sixth of those to `stop`; 0 keeps every jump
        unseen. A jump that pays is often behind for 25 steps and more, in reinforcement learning
        above all, so fewer than 50 find harm where there is none.
    judge : callable, optional
        ``judge() -> float``, the held-out loss; called in eval mode, without gradients, the random
        state and the modes kept: some five times in `recovery` steps. None judges by the losses
        that `step` is given; a callable given to `step` is a judge, too.
    maximize : bool, default=False
        Whether the losses are rewards, of which more is better.
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
    adapters : {"product", "factors"}, default="product"
        LoRA's factors A and B jump by their product B A, which is factored again to its rank, or
        each by itself, which measured as harmful.
    start, stop : int, default=0 and None
        The steps between which states are recorded and jumps may be under way, counted by the
        calls of `step` of this object, whatever the run did before it was made. Give what is left
        of the run then as `stop` where it is known: 500 for a Farcasting made at step 500 of 1000.
        A state that is loaded brings its count along: there it is 1000, as when that was saved.
    scheduler : object with state_dict and load_state_dict, optional
        Rolled back with the weights.
    refresh : callable, optional
        Called after each jump, before it is judged, to bring running statistics (BatchNorm) up to
        date, as ``lambda: torch.optim.swa_utils.update_bn(loader, model)`` does; the random state
        and the modes are kept. Without it they catch up in the recovery window.
    state_dtype : torch.dtype, optional
        The dtype of the recorded states (``torch.bfloat16`` halves them); the parameter's own by
        default. Sums, and what a rollback needs, are always exact.

    Attributes
    ----------
    history : list of dict
        One row per jump so far, and one per look at the run that led to none: those that found it
        not drifting ("waited", of several in a row the last), and those that something was in the
        way of ("refused"). With the fields ``step``, ``horizon``, ``outcome`` ("pending", "kept",
        "rolled back", "refused", "waited"), ``verdict`` (how the loss compares with what it was
        heading for: "better", "even" within a spread, "worse", "harm" beyond three, "unknown"
        where there is too little to compare with), ``cosine``, ``cosine_error``, ``drift``,
        ``loss_before``, ``loss_right_after``, ``loss_after``, ``loss_expected``, ``judged_at``,
        ``steps_saved``, ``steps_low``, ``steps_high``, ``seconds``, ``reason``.
    settled : bool
        Whether no jump is under judgement, so that the weights are fit to be kept or evaluated.
    steps_saved : (float, float, float)
        Steps saved by all jumps, the sum over the history's rows, and its 95 % interval; 0 instead
        where the interval holds 0. No jump is said to save more than its horizon; what all saved
        may be more, and from scratch often is, so the interval has no such bound.
    cosines : dict of str to float
        The cosine of each tensor at the last look; empty before the first.
    stopped : str
        Why there are no more jumps; empty while there may be.
    hindrance : str
        Why no jump fits between two looks at the weights, as far as `room` has told; empty where
        one does.
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
    are added up over the processes, each forecasts its own shards. Whatever fails in one of them, a
    judge or for want of memory, is an error of all.

    Buffers that change their shapes, come or go while a jump is under way are those before it where
    it is taken back.

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
        maximize: bool = False,
        optimizer_state: str = "keep",
        store: str | os.PathLike[str] = "auto",
        include: Patterns | None = None,
        exclude: Patterns | None = None,
        adapters: str = "product",
        start: int = 0,
        stop: int | None = None,
        scheduler: Any = None,
        refresh: Callable[[], Any] | None = None,
        state_dtype: torch.dtype | None = None,
    ) -> None:
        with distributed.together():
            check_kinds(model, optimizer, scheduler, state_dtype)
            check_function("judge", judge)
            check_function("refresh", refresh)
            _check_alone(model)
            self._settings = settings = Settings(
                spacing=spacing,
                n_states=n_states,
                period=period,
                horizon=horizon,
                recovery=recovery,
                maximize=maximize,
                optimizer_state=optimizer_state,
                start=start,
                stop=stop,
            )
            slots = select(model, optimizer, include, exclude)
            source = _coefficients.source(forecaster, spacing, n_states, slots)
            if adapters not in ADAPTERS:
                raise WfcastError(f"adapters is {adapters!r}, expected one of {ADAPTERS}")
            pairs = places_of(slots) if adapters == "product" else []
            self._training = Training(model, optimizer, scheduler, slots, pairs)
            # the first and the middle one, or sums; before the jump
            n_kept = len(source.offsets) + 3
            self._store = Store(where_to_keep(store, self._training.parameters, n_kept))
            self._recording = Recording(
                self._training,
                source,
                self._store,
                spacing=spacing,
                since=start,
                dtype=state_dtype,
                moves=settings.adaptive,
            )
            self._losses = Losses(model, judge, settings.window, maximize)
            self._judging = Judging(self._losses, settings.window)
            self._rule = settings.rule(source.longest)
            self._rule.watch(rates_of(optimizer))
            self._jumper = Jumper(
                self._training, self._recording, self._store, refresh, settings.window > 0
            )
        self.seconds = 0.0
        self.hindrance = ""
        self.cosines: dict[str, float] = {}
        self._jumps: list[Jump] = []
        self._step = 0  # calls of step()
        self._clock = 0  # steps of the trajectory: those that were rolled back do not count
        self._pending: Pending | None = None
        self._look = 0  # the next step at which the weights are looked at, as told
        self._gaps: list[int] = []  # steps between the last looks
        self._onlookers = Onlookers(model)
        self._next = self._recording.earliest(settings.first_jump)
        self._said = ""
        self._ending = ""  # why the run leaves no room for more jumps, whatever the rule says
        self._ended: int | None = None  # the stop that ended them, 0 for close()
        self._closed = False
        self._steps = StepCounter(optimizer)
        _controllers.add(self)
        if start == 0:
            self._record()

    # ---- the loop -----------------------------------------------------------------------------

    def step(self, loss: Any = None, *, room: int | None = None) -> bool:
        """To be called after every ``optimizer.step()``.

        Parameters
        ----------
        loss : float, tensor or callable, optional
            The training loss of the step, or a function that gives a held-out loss when asked. Not
            needed with a `judge`. A tensor is not waited for until a jump is near.
        room : int, optional
            After how many more steps the weights will be looked at, by a save, an evaluation or
            the end of training, counting down to 0: a jump is made only where its verdict comes
            before. Where none fits between two looks, `hindrance` and `summary` say so.

        Returns
        -------
        bool
            True where the weights were changed: by a jump, or by taking one back.

        Raises
        ------
        WfcastError
            The optimizer took several steps; the loss, or what the judge returned, is no single
            number, or comes after losses of another kind; another process failed; or the parameters
            of the model or the optimizer are others than before, or have other shapes, which is
            found when a state is recorded, at the next jump at the latest.

        Warns
        -----
        UserWarning
            Once, where there is neither a judge nor any loss in as many steps as to a verdict, and
            no jump is made; and where the optimizer takes no step in a hundred calls, as one does
            that another has replaced.
        """
        if self._closed:
            raise WfcastError("this Farcasting was closed")
        check_room(room)
        if not self._steps.one_more():
            return self._skipped(loss)
        begun = time.perf_counter()
        self._step += 1
        self._clock += 1
        self._losses.take(loss, self._clock, self._step)
        try:
            with self._onlookers.own():
                changed = self._advance(room)
        finally:
            spent = time.perf_counter() - begun
            self.seconds += spent
            if self._pending is not None:
                self._pending.jump.seconds += spent
        return changed

    def _skipped(self, loss: Any) -> bool:
        """The optimizer took no step: a gradient scaler may have left it out after a jump."""
        pending = self._pending
        if pending is None or not isinstance(loss, torch.Tensor | Real):
            return False
        value = distributed.mean([float(loss)])[0]
        if math.isfinite(value):
            return False
        with self._onlookers.own():
            blown = self._losses.shown(value)
            return self._roll_back(pending, Ruling("the loss is not finite", blown=blown))

    def _advance(self, room: int | None) -> bool:
        """Watch the jump that is under way; record, and jump where that is due."""
        settings, clock = self._settings, self._clock
        if self._pending is not None:
            changed = self._watch(self._pending)
            if changed or self._pending is not None:
                return changed
        if self._judging.due(clock, self._next):
            self._look_again()
        if self._over():
            self._recording.forget()
            return False
        if room is not None:
            self._make_way(room)
        if clock >= settings.start:
            self._record()
            if (clock - self._recording.since) % self._losses.every == 0:
                self._losses.measure(clock, self._step)
        if clock < self._next:
            return False
        return self._jump()

    def _make_way(self, room: int) -> None:
        """Put the next jump off until after a look at the weights that would come under it.

        The states that it starts from then must be there or still to come. If they are not, it is
        put off until after a later look, and these come as regularly as the last two.
        """
        look = self._step + room
        if look != self._look:
            self._gaps = [*self._gaps, max(1, look - self._look)][-LOOKS:]
            self._look = look
        ahead, window, widest = self._clock + room, self._settings.window, max(self._gaps)
        if widest > window:
            self.hindrance = ""
        if self._next <= ahead < self._next + window:
            if widest <= window and not self.hindrance:
                often = "step" if widest == 1 else f"{widest} steps"
                self.hindrance = (
                    f"no jump is possible: the weights are looked at every {often}, as room tells, "
                    f"which counts down to the next look, and its verdict takes {window} steps: "
                    f"save and evaluate every {window + 1} steps or less often, or lower recovery"
                )
            wanted = self._recording.earliest(ahead + 1)
            while not self._obtainable(wanted):
                wanted += self._gaps[-1]
            self._next = wanted

    def _obtainable(self, jump: int) -> bool:
        """Whether the states that a jump at this clock starts from are there or still to come."""
        clocks = [jump - offset for offset in self._recording.source.offsets[:-1]]
        return all(clock >= self._clock or clock in self._recording.kept for clock in clocks)

    def _over(self) -> bool:
        """Whether there will be no more jumps."""
        stop, window = self._settings.stop, self._settings.window
        if stop is not None and not self.stopped:
            due = self._step + max(0, self._next - self._clock)
            if stop - due < max(window, 1):
                later = f", its verdict {window} steps later" if window else ""
                which = "next" if self._made else "first"
                remedy = "" if self._jumps else "; lower period, spacing or recovery"
                self._ended = int(stop)
                self._ending = self.hindrance or (
                    f"too few steps are left before step {stop}, where jumps end: the {which} one "
                    f"could come at step {due}{later}{remedy}"
                )
        self._say_stop()
        return bool(self.stopped)

    def _record(self) -> None:
        """Keep what the next jump needs of this step, if anything."""
        if not self._recording.due(self._clock, self._next):
            return
        self._rule.watch(rates_of(self._training.optimizer))
        problem = self._recording.record(self._clock, self._next, self._step)
        if not problem:
            self._recording.prune(self._clock, self._next)
            return
        # a state that one process lacks is in the sums of another: a new history for all of them
        self._recording.begin(self._clock + 1)
        self._refuse(problem)

    # ---- jumping ------------------------------------------------------------------------------

    def _jump(self) -> bool:
        """Replace the weights; the run goes on as it was where something is in the way."""
        clock, window = self._clock, self._settings.window
        self._losses.measure(clock, self._step)
        quiet = self._recording.since + (window if self._made else 0)
        found = self._losses.between(quiet, clock) if window else []
        gone = [point for point in found if not math.isfinite(point[1])]
        before = [point for point in found if not gone or point[0] > gone[-1][0]]
        if window:
            lacking = self._lacking(before, gone)
            if lacking:
                return self._refuse(lacking)
            self._judging.learn(before)
        if not self._recording.complete(clock):
            self._begin_again()  # a state could not be kept
            return False
        rates = rates_of(self._training.optimizer)
        try:
            movement = self._recording.movement(clock)
        except NoMovement as problem:
            return self._refuse(str(problem), anew=True)
        horizon, reason = self._rule.horizon(self._step, rates, movement)
        longest = self._recording.source.longest
        if horizon == longest != self._settings.horizon:
            reason = f"its horizon was cut to {longest:g} steps, as far as the forecaster reaches"
        jump = Jump(self._step, horizon, "pending" if window else "kept", reason=reason)
        if movement is not None:
            jump.cosine, jump.cosine_error = movement.cosine, movement.error
            jump.drift = self._rule.drift(movement)
            names = [slot.name for slot in self._training.slots]
            self.cosines = dict(zip(names, movement.by_tensor.tolist(), strict=True))
        if not horizon:
            return self._wait(jump)
        jump.loss_before = self._losses.shown(before[-1][1]) if before else None
        try:
            pending = self._jumper.take_off(jump, clock, before)
        except NoJump as problem:
            return self._refuse(str(problem), anew=isinstance(problem, NoForecast))
        self._rule.jumped(movement, horizon)
        self._jumps.append(jump)
        if window:
            self._pending = pending  # before all that may fail, so that close() can take it back
            self._onlookers.watch()
        else:
            pending.snapshot.release(self._store)
        factor = self._settings.spacing / (self._settings.spacing + jump.horizon)
        soften(
            self._training.optimizer, self._training.slots, self._settings.optimizer_state, factor
        )
        self._begin_again()
        return True

    def _lacking(self, before: list[Point], gone: list[Point]) -> str:
        """Why the losses before a jump do not do to judge it by; empty where they do.

        Parameters
        ----------
        before : list of (clock, loss)
            Those after the last one that is not finite.
        gone : list of (clock, loss)
            All that are not finite.
        """
        clock, window = self._clock, self._settings.window
        if gone and gone[-1][0] >= clock - 2 * window:
            return self._lost(*gone[0])
        return self._judging.lacking(before, clock)

    def _lost(self, clock: int, loss: float) -> str:
        """What to say of a loss that is not finite: for later ones the same as for the first."""
        value = "NaN" if math.isnan(loss) else f"{self._losses.shown(loss)}"
        what = f"the judge gave {value}" if self._losses.judged else f"a loss was {value}"
        said = self._jumps[-1].reason if self._jumps else ""
        if said.startswith(f"{what}, at step "):
            return said
        step = clock + self._step - self._clock
        return f"{what}, at step {step} first, and a jump could not be judged by that"

    @property
    def _made(self) -> bool:
        """Whether there was a jump yet."""
        return last_made(self._jumps) is not None

    def _refuse(self, problem: str, *, anew: bool = False) -> bool:
        """No jump this time; the run goes on as it was, its history where `anew` does not say so.

        That holds NaN or infinity, which would stay in the sums of a line.
        """
        told = problem == NOTHING and self._losses.warned
        if not told and (not self._jumps or self._jumps[-1].reason != problem):
            logger.warning("no jump at step %d: %s", self._step, problem)
        self._jumps.append(Jump(self._step, 0.0, "refused", reason=problem))
        if anew:
            self._begin_again()
        else:
            later = max(self._next, self._clock + self._settings.apart)
            self._next = self._recording.earliest(later)
        return False

    def _wait(self, row: Jump) -> bool:
        """The run leads nowhere yet: look again when its history is twice as long."""
        row.outcome = "waited"
        if self._jumps and self._jumps[-1].outcome == "waited":
            self._jumps[-1] = row  # the latest says enough
        else:
            self._jumps.append(row)
        clock, since = self._clock, self._recording.since
        self._next = self._recording.earliest(clock + max(self._settings.apart, clock - since))
        self._record()
        self._over()
        return False

    def _begin_again(self) -> None:
        """A history begins here."""
        clock = self._clock
        self._recording.begin(clock)
        pause = self._settings.apart * 2**self._rule.harms
        self._next = self._recording.earliest(clock + pause)
        self._record()

    # ---- judging ------------------------------------------------------------------------------

    def _watch(self, pending: Pending) -> bool:
        """A jump is under way: keep it, take it back, or wait."""
        ruling = self._judging.rule(pending, self._clock, self._step)
        if ruling.reason:
            return self._roll_back(pending, ruling)
        if ruling.verdict is None:
            self._record()
            return False
        self._judging.tell(pending.jump, ruling.verdict, self._step)
        self._judging.keep(pending, ruling.verdict)
        pending.jump.outcome = "kept"
        self._settle(pending)
        return False

    def _look_again(self) -> None:
        """What the last jump saved, as it shows later."""
        jump = last_made(self._jumps)
        assert jump is not None
        self._rule.learn(self._judging.again(jump, self._clock, self._step))
        self._say_stop()

    def _roll_back(self, pending: Pending, ruling: Ruling) -> bool:
        """Take the jump that is under way back, and learn of it where it did harm."""
        self._put_back(pending, ruling.reason, distributed.together)
        if ruling.verdict is not None:
            self._rule.learn(ruling.verdict)
        elif ruling.blown is not None:
            self._rule.blame()
        if ruling.verdict is not None or ruling.blown is not None:
            self._judging.tell_harm(pending.jump, ruling, self._step)
        self._begin_again()
        self._say_stop()
        return True

    def _put_back(self, pending: Pending, reason: str, together: Any = nullcontext) -> None:
        """The run is as it was before the jump, and the jump's row says why."""
        pending.snapshot.restore(self._training, together)
        jump = pending.jump
        jump.outcome, jump.reason = "rolled back", reason
        jump.steps_saved = -float(self._clock - pending.clock)
        jump.steps_low = jump.steps_high = jump.steps_saved
        self._rule.taken_back()
        self._clock = pending.clock
        self._losses.cut(last=self._clock)
        self._settle(pending)

    def _settle(self, pending: Pending) -> None:
        pending.snapshot.release(self._store)
        self._pending = None
        self._onlookers.rest()

    def _say_stop(self) -> None:
        if self.stopped and self._said != self.stopped:
            self._said = self.stopped
            logger.info("no more jumps after step %d: %s", self._step, self.stopped)

    # ---- showing and keeping --------------------------------------------------------------------

    @property
    def history(self) -> list[dict[str, Any]]:
        """One row per jump so far, and per look that led to none."""
        return [asdict(jump) for jump in self._jumps]

    @property
    def settled(self) -> bool:
        """Whether no jump is under judgement: the weights are fit to be kept or evaluated."""
        return self._pending is None

    @property
    def window(self) -> int:
        """Steps from a jump to its verdict."""
        return self._settings.window

    @property
    def stopped(self) -> str:
        """Why there are no more jumps; empty while there may be."""
        return self._ending or self._rule.stopped

    @property
    def steps_saved(self) -> tuple[float, float, float]:
        """Steps that the jumps saved, less those lost, and their 95 % interval: 0 where unknown."""
        return total(self._judging.verdicts, self.steps_lost)

    @property
    def steps_lost(self) -> float:
        """Steps that were taken back."""
        back = [jump for jump in self._jumps if jump.outcome == "rolled back"]
        return sum((-(jump.steps_saved or 0.0) for jump in back), 0.0)

    def log(self) -> dict[str, float]:
        """Numbers for TensorBoard, W&B and their like, by names that begin with "farcasting/"."""
        return numbers(self._jumps, self.steps_saved, self.seconds)

    def summary(self) -> FarcastingReport:
        """Every jump and what came of it: ``print`` it, show it in a notebook, or plot it."""
        return FarcastingReport(
            self.history,
            self.log(),
            self.stopped,
            self._losses.curve,
            self._steps.problem or self.hindrance,
        )

    def plot(self, ax: Any = None) -> Any:
        """Draw the run's losses and every jump; needs Matplotlib (the extra ``plot``).

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

    def settle(self) -> bool:
        """Take a jump back that is under judgement, for the weights are kept or evaluated now.

        Returns
        -------
        bool
            True where that changed the weights; the run goes on in either case.
        """
        pending = self._pending
        if pending is None:
            return False
        return self._roll_back(pending, Ruling("the weights were looked at before its verdict"))

    def close(self, *, undo: bool = True) -> None:
        """End: the memory and files are given back, the model may get another Farcasting.

        Parameters
        ----------
        undo : bool, default=True
            Take a jump back that is under judgement. False where the weights have been replaced
            since: they are left as they are.
        """
        if self._closed:
            return
        pending, reason = self._pending, "the run ended before its verdict"
        if pending is not None and undo:
            self._put_back(pending, reason)
        elif pending is not None:
            pending.jump.outcome, pending.jump.reason = "kept", reason
            self._settle(pending)
        if not self.stopped:
            self._ending = self._steps.problem or self.hindrance or "it was closed"
            self._ended = 0
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
            "version": VERSION,
            "settings": self._settings.lasting,
            "names": [s.name for s in self._training.slots],
            "step": self._step,
            "clock": self._clock,
            "next": self._next,
            "look": [self._look, *self._gaps],
            "said": self._said,
            "ending": self._ending,
            "ended": self._ended,
            "seconds": self.seconds,
            "recording": self._recording.state_dict(),
            "losses": self._losses.state_dict(),
            "judging": self._judging.state_dict(),
            "history": self.history,
            "cosines": dict(self.cosines),
            "rule": self._rule.state_dict(),
            "pending": None if self._pending is None else self._pending.state_dict(self._training),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken; the model and the optimizer are loaded by the user.

        Raises
        ------
        WfcastError
            The state of other parameters, settings (all but `stop`, `optimizer_state` and where
            states are kept) or another kind of forecaster or judge, one that lacks what taking back
            its jump needs, or one of an older version; nothing has changed then.
        """
        if not isinstance(state, dict) or "clock" not in state:
            raise WfcastError("the state is none that state_dict() of a Farcasting gave")
        if state.get("version") != VERSION:
            raise WfcastError(
                f"the state was saved by another version of Farcasting ({state.get('version', 1)}, "
                f"expected {VERSION}): begin a new one at this step"
            )
        if self._closed:
            raise WfcastError("this Farcasting was closed: make a new one to load a state into")
        then = state["pending"]
        self._settings.check_saved(state["settings"])
        self._losses.check_saved(state["losses"])
        states = state["recording"]["states"].values()
        self._training.check_saved(state["names"], [*states, *([then["weights"]] if then else [])])
        self._recording.check_saved(state["recording"])
        jumps = [Jump(**row) for row in state["history"]]
        last = last_made(jumps)
        if then is not None:
            Pending.check_saved(then, last, self._training)
        if self._pending is not None:
            self._settle(self._pending)
        self._recording.load_state_dict(state["recording"])
        self._losses.load_state_dict(state["losses"])
        self._judging.load_state_dict(state["judging"])
        self._rule.load_state_dict(state["rule"])
        self._step, self._clock, self._next = state["step"], state["clock"], state["next"]
        self._look, *self._gaps = state["look"]
        self._said, self.seconds = state["said"], state["seconds"]
        self._ending, self._ended = state["ending"], state["ended"]
        if self._ended not in (None, self._settings.stop):  # this run goes further than that one
            self._ending, self._ended, self._said = "", None, ""
        self.cosines = dict(state["cosines"])
        self._jumps = jumps
        if then is not None and last is not None:
            self._pending = Pending.load(then, last, self._training, self._store)
            self._onlookers.watch()
        self._steps.catch_up()


def _check_alone(model: torch.nn.Module) -> None:
    """Raise WfcastError where another controller has parameters of the model."""
    own = {id(p) for p in model.parameters()}
    if any(id(p) in own for other in _controllers for p in other._training.model.parameters()):
        raise WfcastError(
            "this model has a Farcasting already: close() that one before making another"
        )
