"""Farcasting and readouts in the Hugging Face Trainer, and in what is built on it (TRL)."""

from __future__ import annotations

import json
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
from ._callback import check_names
from ._loop import aside
from .annealed import Annealed
from .farcasting import Farcasting

__all__ = ["AnnealedCallback", "FarcastingCallback"]


class FarcastingCallback(TrainerCallback):
    """`Farcasting` as a callback: ``Trainer(..., callbacks=[FarcastingCallback()])``.

    Jumps are judged by `judge`, or by the training losses that the model returns; a trainer that
    computes the loss outside the model needs a judge. The scheduler is rolled back with the
    weights. Its state is saved beside each checkpoint, as ``farcasting.pt`` (one file per process
    where there are several), and found again when training resumes from a ``checkpoint-N`` in the
    output folder, or from the one that ``TrainingArguments(resume_from_checkpoint=...)`` names.

    Parameters
    ----------
    **parameters
        Those of `Farcasting`, but for model, optimizer and scheduler; `stop` is the last step of
        training by default.

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
    >>> callback = FarcastingCallback(spacing=5, period=10, recovery=5, max_loss=0.5)
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
    >>> callback.farcasting.history[0]["step"]
    10
    """

    def __init__(self, **parameters: Any) -> None:
        check_names(parameters, Farcasting, ("model", "optimizer", "scheduler"))
        self.parameters = parameters
        self.farcasting: Farcasting | None = None
        self._losses: list[torch.Tensor] = []
        self._shares = False  # whether the losses of an accumulated step add up to its loss
        self._hook: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin, or go on from a checkpoint."""
        model, scheduler = kwargs["model"], kwargs["lr_scheduler"]
        if self.farcasting is not None:  # of a training that was broken off
            self.farcasting.close(undo=False)
        self.farcasting = Farcasting(
            model,
            kwargs["optimizer"],
            scheduler=scheduler,
            **{"stop": state.max_steps, **self.parameters},
        )
        self._losses.clear()
        self._release()
        self._hook = model.register_forward_hook(self._take, with_kwargs=True)
        if state.global_step:
            saved = _resumed(args, state, "farcasting", "Farcasting begins anew at this step")
            if saved is not None:
                self.farcasting.load_state_dict(saved)

    def _take(self, model: Any, inputs: Any, named: dict[str, Any], output: Any) -> None:
        loss = output.get("loss") if isinstance(output, dict) else getattr(output, "loss", None)
        if model.training and torch.is_grad_enabled() and isinstance(loss, torch.Tensor):
            self._losses.append(loss.detach().float().mean())
            self._shares = named.get("num_items_in_batch") is not None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One optimizer step is done."""
        assert self.farcasting is not None
        loss = None
        if self._losses:
            losses = torch.stack(self._losses)
            loss = losses.sum() if self._shares else losses.mean()
        self._losses.clear()
        self.farcasting.step(loss)

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
            _save(args, state, "farcasting", self.farcasting.state_dict)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Give the memory back."""
        self._release()
        if self.farcasting is not None:
            best = args.load_best_model_at_end and state.best_model_checkpoint is not None
            self.farcasting.close(undo=not best)  # the best weights are in the model by now

    def _release(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None


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
    """What was saved beside the checkpoint that training resumes from; a warning without it."""
    given = getattr(args, "resume_from_checkpoint", None)
    folder = Path(given) if isinstance(given, str) else _checkpoint(args, state)
    path = folder / _file_name(name)
    if path.is_file() and _is_of(folder, state):
        saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return saved
    warnings.warn(
        f"there is no {str(path)!r} of this run: {otherwise}; a checkpoint that lies elsewhere is "
        "to be given as resume_from_checkpoint of the TrainingArguments",
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
