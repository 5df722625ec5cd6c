"""Farcasting in the Hugging Face Trainer, and in what is built on it (TRL)."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import torch

try:
    from transformers import TrainerCallback, TrainerState
    from transformers.trainer import TRAINER_STATE_NAME
except ModuleNotFoundError as error:
    if error.name != "transformers":
        raise
    raise ModuleNotFoundError(
        "FarcastingCallback needs transformers, which is not installed (the extra 'transformers' "
        "of wfcast)",
        name="transformers",
    ) from error

from .._atomic import atomic_file
from .._live import distributed
from ._callback import check_names
from .farcasting import Farcasting

__all__ = ["FarcastingCallback"]


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
        check_names(parameters, ("model", "optimizer", "scheduler"))
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
            given = getattr(args, "resume_from_checkpoint", None)
            name = f"checkpoint-{state.global_step}"
            folder = Path(given) if isinstance(given, str) else Path(args.output_dir) / name
            self._load(folder / _file_name(), state)

    def _load(self, path: Path, state: Any) -> None:
        assert self.farcasting is not None
        if path.is_file() and _is_of(path.parent, state):
            saved = torch.load(path, map_location="cpu", weights_only=True)
            self.farcasting.load_state_dict(saved)
        else:
            warnings.warn(
                f"there is no {str(path)!r} of this run: Farcasting begins anew at this step; a "
                "checkpoint that lies elsewhere is to be given as resume_from_checkpoint of the "
                "TrainingArguments",
                stacklevel=2,
            )

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
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if args.save_only_model:  # nobody can resume from it
            return
        if self.farcasting is not None and folder.is_dir():
            with atomic_file(folder / _file_name()) as file:
                torch.save(self.farcasting.state_dict(), file)

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


def _is_of(folder: Path, state: Any) -> bool:
    """Whether the trainer's state was loaded from this folder, and not from one of its name."""
    path = folder / TRAINER_STATE_NAME
    if not path.is_file():
        return False
    there = TrainerState.load_from_json(str(path))
    return json.dumps(there.log_history) == json.dumps(state.log_history)


def _file_name() -> str:
    rank = os.environ.get("RANK", "0")
    return f"farcasting-{rank}.pt" if distributed.size() > 1 else "farcasting.pt"
