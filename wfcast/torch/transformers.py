"""Farcasting and readouts in the Hugging Face Trainer, and in what is built on it (TRL)."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

try:
    from transformers import Trainer, TrainerCallback, TrainerState
    from transformers.trainer import TRAINER_STATE_NAME
    from transformers.trainer_utils import has_length
except ModuleNotFoundError as error:
    if error.name != "transformers":
        raise
    raise ModuleNotFoundError(
        "callbacks of the Trainer need transformers, which is not installed (the extra "
        "'transformers' of wfcast)",
        name="transformers",
    ) from error

from .._atomic import atomic_file
from .._errors import WfcastError
from .._live import distributed
from ._callback import Jumping, check_names, guard
from ._loop import aside
from ._schedule import Looks, Schedule
from ._settings import check_function
from .annealed import Annealed
from .farcasting import Farcasting

__all__ = ["AnnealedCallback", "FarcastingCallback"]


class FarcastingCallback(Jumping, TrainerCallback):
    """`Farcasting` as a callback: ``Trainer(..., callbacks=[FarcastingCallback()])``.

    Jumps are made only where their verdict comes before the next save or evaluation and before the
    end of training; where that leaves no room at all, a warning says so when training begins. A
    jump that has no verdict when training stops early, when something else has the weights saved
    or evaluated, or when training breaks off, by Ctrl-C or any error, is taken back at once: the
    weights, the optimizer and the scheduler are those of before it.

    Jumps are judged by `judge`, or by the training losses that the model returns; a trainer that
    computes the loss outside the model needs a judge. The trainers of TRL with reward functions,
    such as ``GRPOTrainer``, have losses that say nothing: there the mean reward of each batch of
    completions takes their place, as ``judge="reward"`` would.

    The state is saved beside each checkpoint, as ``farcasting.pt`` (one file per process where
    there are several), and found again when training resumes from a ``checkpoint-N`` in the output
    folder, or from the one that ``TrainingArguments(resume_from_checkpoint=...)`` names.

    Parameters
    ----------
    judge : callable or str, optional
        As for `Farcasting`; or the name of a number that a trainer of TRL logs in training, such as
        ``"rewards/accuracy_reward/mean"`` or ``"rewards/margins"``.
    **parameters
        Those of `Farcasting`, but for model, optimizer and scheduler. `start` and `stop` are steps
        of the training, however often it was resumed; `stop` is its last one by default, and
        `maximize` is True by default for names that begin with "reward".

    Raises
    ------
    WfcastError
        After the first step: the trainer logs no number of that name.

    See Also
    --------
    Farcasting : Parameters, and what happens at a jump.
    wfcast.torch.lightning.FarcastingCallback : The same in Lightning.

    Notes
    -----
    A judge should not call ``trainer.evaluate()``: that logs, counts for `EarlyStoppingCallback`
    and takes the place of an evaluation that is due at that step. The evaluation loop does not::

        def judge():
            loader = trainer.get_eval_dataloader()
            return trainer.evaluation_loop(loader, "judge").metrics["eval_loss"]

    A callback hears of no error, so this one wraps the trainer's ``train``, what runs an epoch,
    saves and evaluates in it, and what calls the callbacks, on that one object.

    Attributes
    ----------
    farcasting : Farcasting or None
        Made when training begins; its `history` and `summary` stay after the end.

    Examples
    --------
    >>> import tempfile
    >>> import torch
    >>> from transformers import Trainer, TrainingArguments
    >>> from wfcast.torch import FarcastingCallback
    >>> class Sums(torch.nn.Linear):
    ...     def forward(self, x, labels):
    ...         return {"loss": (super().forward(x) - labels).square().mean()}
    >>> data = [{"x": x, "labels": x.sum(0, keepdim=True)} for x in torch.randn(64, 4)]
    >>> callback = FarcastingCallback(spacing=5, period=10, recovery=5, horizon=10)
    >>> trainer = Trainer(
    ...     Sums(4, 1),
    ...     TrainingArguments(
    ...         tempfile.mkdtemp(), max_steps=30, report_to="none", use_cpu=True, disable_tqdm=True
    ...     ),
    ...     train_dataset=data,
    ...     callbacks=[callback],
    ... )
    >>> result = trainer.train()
    {'train_runtime': ...}
    >>> callback.summary().to_dict()["jumps"][0]["step"]
    10
    """

    def __init__(self, **parameters: Any) -> None:
        super().__init__(parameters)
        self._losses: list[torch.Tensor] = []
        self._shares = False  # whether the losses of an accumulated step add up to its loss
        self._hook: Any = None
        self._noted: _Noted | None = None

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See to it that no training of this trainer breaks off under a jump."""
        self._watch_over(_caller(self))

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin, or go on from a checkpoint."""
        trainer = _caller(self)
        self._watch_over(trainer)
        if self.farcasting is not None:  # of a training that broke off; a checkpoint was loaded?
            self.farcasting.close(undo=not state.global_step)
        name = _metric(self.parameters.get("judge"), trainer)
        self._noted = None if name is None else _Noted(name, trainer)
        saved = None
        if state.global_step:
            saved = _resumed(args, state, "farcasting", "Farcasting begins anew at this step")
        span = self._span(state.max_steps, state.global_step, saved)
        parameters = {**self.parameters, **span}
        if name is not None:
            parameters = {"maximize": name.startswith("reward"), **parameters, "judge": None}
        model = kwargs["model"]
        self.farcasting = Farcasting(
            model, kwargs["optimizer"], scheduler=kwargs["lr_scheduler"], **parameters
        )
        self._losses.clear()
        self._release()
        if self._noted is None:
            self._hook = model.register_forward_hook(self._take, with_kwargs=True)
        if saved is not None:
            self.farcasting.load_state_dict(saved)
        self._follow(_schedule(args, state, kwargs.get("train_dataloader")), state.global_step)

    def _watch_over(self, trainer: Any) -> None:
        """Guard what a trainer tells its callbacks nothing of."""
        guard(trainer, ("train", "_run_epoch"), self, broken=self._break_off)
        # Where `train` runs already, the callbacks are all there is between epochs.
        guard(trainer.callback_handler, ("call_event",), self, broken=self._break_off)
        guard(trainer, ("_evaluate", "_save_checkpoint"), self, before=self._settle)

    def _take(self, model: Any, inputs: Any, named: dict[str, Any], output: Any) -> None:
        loss = output.get("loss") if isinstance(output, dict) else getattr(output, "loss", None)
        if model.training and torch.is_grad_enabled() and isinstance(loss, torch.Tensor):
            self._losses.append(loss.detach().float().mean())
            self._shares = named.get("num_items_in_batch") is not None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One optimizer step is done."""
        loss: Any = None if self._noted is None else self._noted.latest()
        if self._losses:
            losses = torch.stack(self._losses)
            loss = losses.sum() if self._shares else losses.mean()
        self._losses.clear()
        look = control.should_save or control.should_evaluate or control.should_training_stop
        self._advance(loss, state.global_step, look)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Training may be over: what other callbacks keep at its end is settled."""
        if control.should_training_stop:
            self._settle()

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Add the numbers of the jumps to the log, for later callbacks and `log_history`."""
        if logs is not None and self.farcasting is not None and "loss" in logs:
            numbers = self.farcasting.log()
            logs.update(numbers)
            if state.log_history:
                state.log_history[-1].update(numbers)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save what a resumed run needs."""
        if self.farcasting is not None:
            _save(args, state, "farcasting", self._state)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Give the memory back."""
        self._release()
        if self.farcasting is not None:
            best = args.load_best_model_at_end and state.best_model_checkpoint is not None
            self.farcasting.close(undo=not best)  # the best weights are in the model by now

    def _break_off(self) -> None:
        self._release()
        super()._break_off()

    def _release(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None


def _schedule(args: Any, state: Any, loader: Any) -> Schedule:
    """When the weights are looked at, by the settings of a training that begins at a step."""
    looks, unknown = [], []
    epoch = _steps_per_epoch(args, loader)
    evaluate = getattr(args, "eval_strategy", None) or args.evaluation_strategy  # before 4.41
    for kind, strategy, delay in (
        ("save", args.save_strategy, 0),
        ("eval", evaluate, args.eval_delay or 0),
    ):
        steps = getattr(state, f"{kind}_steps")
        if strategy == "steps" and steps > 0:
            looks.append(Looks(f"{kind}_steps={steps}", int(steps), first=math.ceil(delay)))
        elif strategy == "epoch":
            setting, first = f"{kind}_strategy='epoch'", math.ceil(delay)
            if epoch is None:
                unknown.append(setting)
                continue
            begun = state.global_step % epoch if args.ignore_data_skip else 0
            ends = f"{setting} (epochs of {epoch} steps)"
            looks.append(Looks(ends, epoch, (begun or epoch,), first * epoch))
    if getattr(args, "sync_ref_model", False):  # the reference model of TRL mixes them in
        steps = args.ref_model_sync_steps
        looks.append(Looks(f"ref_model_sync_steps={steps}", steps))
    return Schedule(tuple(looks), state.max_steps, tuple(unknown))


def _steps_per_epoch(args: Any, loader: Any) -> int | None:
    """As the trainer counts them; None where the data have no length."""
    if not has_length(loader):
        return None
    return max(1, math.ceil(len(loader) / int(args.gradient_accumulation_steps)))


def _metric(judge: Any, trainer: Any) -> str | None:
    """The name of the number that jumps are judged by, where it is no loss."""
    if isinstance(judge, str):
        return judge
    rewarded = hasattr(trainer, "reward_funcs") and hasattr(trainer, "_metrics")
    return "reward" if judge is None and rewarded else None


class _Noted:
    """A number that a trainer of TRL notes now and then, under a name, and logs the mean of."""

    def __init__(self, name: str, trainer: Any) -> None:
        metrics = getattr(trainer, "_metrics", None)
        if not isinstance(metrics, dict):
            raise WfcastError(
                f"judge={name!r} names a number that a trainer of TRL logs, and "
                f"{type(trainer).__name__} is none: give a function that returns a held-out loss"
            )
        self._name, self._all = name, metrics
        self._seen: list[float] = []
        self._n, self._found = 0, False

    def latest(self) -> float | None:
        """The mean of what was noted since the last call; None without any.

        Raises
        ------
        WfcastError
            The first step noted none.
        """
        noted = self._all["train"].get(self._name, [])
        fresh = noted[self._n :] if noted is self._seen else noted  # a log begins a list anew
        self._seen, self._n = noted, len(noted)
        numbers = [float(x) for x in fresh if not math.isnan(x)]
        if not numbers and not self._found:
            known = ", ".join(sorted(self._all["train"]))
            raise WfcastError(
                f"judge={self._name!r} is no number that the first step noted, expected one of "
                f"{known}"
            )
        self._found = True
        return sum(numbers) / len(numbers) if numbers else None


class AnnealedCallback(TrainerCallback):
    """`Annealed` as a callback: ``Trainer(..., callbacks=[AnnealedCallback()])``.

    Every evaluation is done for the readout, too: what the trainer calls ``eval_loss`` of the run's
    own weights is ``eval_annealed_loss`` of the readout, and the same goes for `compute_metrics`,
    in what ``evaluate()`` returns, in the logs, and for ``metric_for_best_model``. Every checkpoint
    gets a folder ``annealed`` with the readout as the trainer saves a model, for
    ``from_pretrained``, and a file ``annealed.pt`` (one per process where there are several), from
    which training resumes to the bit, as with `FarcastingCallback`. The run itself is not touched.

    Parameters
    ----------
    judge : callable, optional
        ``judge() -> float``, the held-out loss of the weights that are in the model: asked for
        every profile before each evaluation, or at the end of a run without any, as by
        `Annealed.choose`. By default the readout is that of the profile nearest to 10.
    evaluate : bool, default=True
        Whether evaluations are done for the readout; they take twice their time then.
    save : bool, default=True
        Whether checkpoints get a readout.
    final : bool, default=False
        Whether the model has the weights of the readout at the end, when the checkpoints are saved.
    **parameters
        Those of `Annealed`, but for the model.

    Attributes
    ----------
    annealed : Annealed or None
        Made when training begins.

    Raises
    ------
    WfcastError
        When training begins: `final` together with ``load_best_model_at_end``.

    See Also
    --------
    Annealed : Parameters, and what a readout is.
    wfcast.torch.lightning.AnnealedCallback : The same in Lightning.

    Examples
    --------
    >>> import tempfile
    >>> import torch
    >>> from transformers import Trainer, TrainingArguments
    >>> from wfcast.torch import AnnealedCallback
    >>> class Sums(torch.nn.Linear):
    ...     def forward(self, x, labels):
    ...         return {"loss": (super().forward(x) - labels).square().mean()}
    >>> data = [{"x": x, "labels": x.sum(0, keepdim=True)} for x in torch.randn(64, 4)]
    >>> trainer = Trainer(
    ...     Sums(4, 1),
    ...     TrainingArguments(
    ...         tempfile.mkdtemp(), max_steps=30, report_to="none", use_cpu=True, disable_tqdm=True
    ...     ),
    ...     train_dataset=data,
    ...     eval_dataset=data,
    ...     callbacks=[AnnealedCallback(every=1)],
    ... )
    >>> result = trainer.train()
    {'train_runtime': ...}
    >>> metrics = trainer.evaluate()
    {'eval_loss': ...}
    {'eval_annealed_loss': ...}
    >>> "eval_annealed_loss" in metrics
    True
    """

    def __init__(
        self,
        *,
        judge: Callable[[], Any] | None = None,
        evaluate: bool = True,
        save: bool = True,
        final: bool = False,
        **parameters: Any,
    ) -> None:
        check_names(parameters, Annealed, ("model",))
        check_function("judge", judge)
        self.judge, self.evaluate, self.save, self.final = judge, evaluate, save, final
        self.parameters = parameters
        self.annealed: Annealed | None = None
        self._chosen_at: int | None = None
        self._busy = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin, or go on from a checkpoint."""
        if self.final and args.load_best_model_at_end:
            raise WfcastError(
                "final=True and load_best_model_at_end would both decide which weights the model "
                "has at the end: leave one of them out"
            )
        self.annealed = Annealed(kwargs["model"], **self.parameters)
        self._chosen_at = None
        if state.global_step:
            saved = _resumed(args, state, "annealed", "its averages begin anew at this step")
            if saved is not None:
                self.annealed.load_state_dict(saved)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One optimizer step is done."""
        assert self.annealed is not None
        self.annealed.step()

    def on_evaluate(
        self,
        args: Any,
        state: Any,
        control: Any,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Evaluate the readout, too."""
        loader, prefix = kwargs.get("eval_dataloader"), _prefix(metrics)
        if metrics is None or loader is None or prefix is None or self._readout() is None:
            return
        trainer = _caller(self)
        with self._undisturbed() as annealed:
            self._choose(state)
            if not self.evaluate:
                return
            with annealed.applied():
                numbers = trainer.evaluation_loop(
                    loader,
                    description="Evaluation of the readout",
                    prediction_loss_only=True if trainer.compute_metrics is None else None,
                    metric_key_prefix=f"{prefix}_annealed",
                ).metrics
        numbers = {**numbers, **_numbers_of_trl(trainer, f"{prefix}_annealed")}
        trainer.log({**numbers, **annealed.log()})
        metrics.update(numbers)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save the readout, and what a resumed run needs."""
        if self._readout() is not None and self.save:
            self._save_readout(args, state)
        if self.annealed is not None:
            _save(args, state, "annealed", self.annealed.state_dict)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Replace the weights by the readout, if so wished."""
        annealed = self._readout()
        if annealed is not None and self.final:
            with self._undisturbed():
                self._choose(state)
            annealed.write()
            self.annealed = None  # the model is the readout

    def _readout(self) -> Annealed | None:
        """The averages, where there are any and they are not in use."""
        there = self.annealed is not None and self.annealed.ready and not self._busy
        return self.annealed if there else None

    @contextmanager
    def _undisturbed(self) -> Iterator[Annealed]:
        """A context that leaves the run alone, and in which a judge may evaluate."""
        assert self.annealed is not None
        self._busy = True
        try:
            with aside(self.annealed.model):
                yield self.annealed
        finally:
            self._busy = False

    def _choose(self, state: Any) -> None:
        assert self.annealed is not None
        if self.judge is not None and self._chosen_at != state.global_step:
            self.annealed.choose(self.judge)
            self._chosen_at = state.global_step

    def _save_readout(self, args: Any, state: Any) -> None:
        """As the trainer saves a model, in a folder that is there whole or not at all."""
        trainer, folder = _caller(self), _checkpoint(args, state)
        part = folder / "annealed.part"
        try:
            with self._undisturbed() as annealed, annealed.applied(), distributed.together():
                trainer.save_model(str(part), _internal_call=True)
            if args.should_save:
                shutil.rmtree(folder / "annealed", ignore_errors=True)
                part.rename(folder / "annealed")
        finally:
            if args.should_save:
                shutil.rmtree(part, ignore_errors=True)


def _caller(callback: TrainerCallback) -> Any:
    """The trainer that called: transformers hands callbacks all of it but itself."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        found = frame.f_locals.get("self")
        if isinstance(found, Trainer) and callback in found.callback_handler.callbacks:
            return found
    raise WfcastError(f"{type(callback).__name__} was called by no Trainer that it belongs to")


def _prefix(metrics: dict[str, float] | None) -> str | None:
    """What the names of an evaluation's metrics begin with, such as ``eval``."""
    names = [name for name in metrics or () if name.endswith("_runtime")]
    return names[0].removesuffix("_runtime") if names else None


def _numbers_of_trl(trainer: Any, prefix: str) -> dict[str, float]:
    """What a trainer of TRL has counted by itself in an evaluation, and would log with the next."""
    counted = getattr(trainer, "_metrics", None)
    own = counted.get("eval") if isinstance(counted, dict) else None
    if not own:
        return {}
    numbers = {f"{prefix}_{name}": sum(values) / len(values) for name, values in own.items()}
    own.clear()
    return numbers


def _checkpoint(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


def _save(args: Any, state: Any, name: str, make: Callable[[], dict[str, Any]]) -> None:
    """What a resumed run needs, beside the checkpoint, unless nobody can resume from that."""
    folder = _checkpoint(args, state)
    if not args.save_only_model and folder.is_dir():
        with atomic_file(folder / _file_name(name)) as file:
            torch.save(make(), file)


def _resumed(args: Any, state: Any, name: str, otherwise: str) -> dict[str, Any] | None:
    """What was saved beside the checkpoint that training resumes from; a warning without it.

    Where one process has none, none resumes: those that did would not decide as it does.
    """
    given = getattr(args, "resume_from_checkpoint", None)
    folder = Path(given) if isinstance(given, str) else _checkpoint(args, state)
    path = folder / _file_name(name)
    there = path.is_file() and _is_of(folder, state)
    missing = distributed.first_problem("" if there else f"there is no {str(path)!r} of this run")
    if not missing:
        saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return saved
    warnings.warn(
        f"{missing}: {otherwise}; a checkpoint that lies elsewhere is to be given as "
        "resume_from_checkpoint of the TrainingArguments",
        stacklevel=3,
    )
    return None


def _is_of(folder: Path, state: Any) -> bool:
    """Whether the trainer's state was loaded from this folder, and not from one of its name."""
    path = folder / TRAINER_STATE_NAME
    if not path.is_file():
        return False
    there = TrainerState.load_from_json(str(path))
    return json.dumps(there.log_history) == json.dumps(state.log_history)


def _file_name(name: str) -> str:
    rank = os.environ.get("RANK", "0")
    return f"{name}-{rank}.pt" if distributed.size() > 1 else f"{name}.pt"
