"""Farcasting and readouts in Lightning."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import torch

try:
    from lightning import Callback, LightningModule, Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy
    from lightning.pytorch.utilities import rank_zero_warn
except ModuleNotFoundError as error:
    if error.name != "lightning":
        raise
    raise ModuleNotFoundError(
        "wfcast.torch.lightning needs lightning, which is not installed (the extra 'lightning' of "
        "wfcast)",
        name="lightning",
    ) from error

from .._errors import WfcastError
from ._callback import Jumping, check_names, guard
from ._schedule import Looks, Schedule
from .annealed import Annealed
from .farcasting import Farcasting

__all__ = ["AnnealedCallback", "FarcastingCallback"]

OWN = "current_model_state"  # as Lightning's WeightAveraging calls the run's own weights


class FarcastingCallback(Jumping, Callback):
    """`Farcasting` as a callback: ``Trainer(callbacks=[FarcastingCallback()])``.

    Jumps are made only where their verdict comes before the next validation or checkpoint and
    before the end of training; where that leaves no room at all, a warning says so when training
    begins. A jump that has no verdict when training stops early, when something else validates or
    saves a checkpoint, or when training breaks off, by Ctrl-C or any error, is taken back at once:
    the weights, the optimizer and the scheduler are those of before it.

    Jumps are judged by `judge`, or by the training losses. The state is part of Lightning's
    checkpoints, unless the model is sharded over several processes: Lightning keeps what rank 0
    has, which is only its own shards then, so Farcasting begins anew where such a run resumes.

    Parameters
    ----------
    **parameters
        Those of `Farcasting`, but for model, optimizer and scheduler. `start` and `stop` are steps
        of the training, however often it was resumed; `stop` is its last one by default.

    Attributes
    ----------
    farcasting : Farcasting or None
        Made when training begins; its `history` and `summary` stay after the end.

    See Also
    --------
    wfcast.torch.Farcasting : Parameters, and what happens at a jump.
    wfcast.torch.FarcastingCallback : The same in the Hugging Face Trainer.

    Examples
    --------
    >>> import lightning, torch
    >>> from wfcast.torch.lightning import FarcastingCallback
    >>> class Sums(lightning.LightningModule):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.layer = torch.nn.Linear(4, 1)
    ...     def training_step(self, batch):
    ...         return (self.layer(batch) - batch.sum(1, keepdim=True)).square().mean()
    ...     def configure_optimizers(self):
    ...         return torch.optim.SGD(self.parameters(), lr=0.01)
    >>> callback = FarcastingCallback(spacing=5, period=10, recovery=5, horizon=10)
    >>> trainer = lightning.Trainer(
    ...     accelerator="cpu",
    ...     max_steps=30,
    ...     callbacks=[callback],
    ...     logger=False,
    ...     enable_checkpointing=False,
    ...     enable_progress_bar=False,
    ...     enable_model_summary=False,
    ... )
    >>> trainer.fit(Sums(), torch.utils.data.DataLoader(torch.randn(256, 4), batch_size=8))
    >>> callback.summary().to_dict()["jumps"][0]["step"]
    10
    """

    def __init__(self, **parameters: Any) -> None:
        super().__init__(parameters)
        self._saved: dict[str, Any] | None = None
        self._kept = True
        self._losses: list[torch.Tensor] = []
        self._stepped = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin, or go on from a checkpoint."""
        if len(trainer.optimizers) != 1:
            raise WfcastError(
                f"the module has {len(trainer.optimizers)} optimizers, expected one: drive "
                "wfcast.torch.Farcasting from the module itself"
            )
        guard(trainer, ("save_checkpoint",), self, before=self._before_save)
        schedule = _schedule(trainer)
        self._kept = _kept(trainer, "are without the state of Farcasting, which begins anew")
        saved = self._saved if self._kept else None
        self._saved = None
        span = self._span(schedule.last, trainer.global_step, saved)
        configs = trainer.lr_scheduler_configs
        self._losses.clear()
        self.farcasting = Farcasting(
            pl_module,
            trainer.optimizers[0],
            scheduler=configs[0].scheduler if configs else None,
            **{**self.parameters, **span},
        )
        self._stepped = trainer.global_step
        if saved is not None:
            self.farcasting.load_state_dict(saved)
        self._follow(schedule, trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """One batch is done; only those that end with an optimizer step count."""
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, torch.Tensor):  # Lightning's share of an accumulated step
            self._losses.append(loss.detach() * trainer.accumulate_grad_batches)
        if self._stepped == trainer.global_step:
            return
        self._stepped = trainer.global_step
        mean = torch.stack(self._losses).mean() if self._losses else None
        self._losses.clear()
        self._advance(mean, trainer.global_step, trainer.should_stop)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show a validation that no setting announced the weights of before a jump."""
        if trainer.state.fn == "fit":
            self._settle()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Give the memory back; the model may be trained again."""
        self._break_off()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the memory back."""
        self._break_off()

    def _before_save(self) -> None:
        """Every rank calls this; the state of rank 0 is what all of them resume from."""
        self._settle()
        if self.farcasting is not None and self._kept and not self.farcasting._closed:
            self.farcasting._losses.share()

    def state_dict(self) -> dict[str, Any]:
        """For Lightning's checkpoints."""
        return self._state() if self.farcasting is not None and self._kept else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From one of Lightning's checkpoints."""
        self._saved = state_dict or None


def _kept(trainer: Trainer, otherwise: str) -> bool:
    """Whether rank 0's state, all that Lightning keeps of a callback's, is that of every rank."""
    strategy = trainer.strategy
    replicated = isinstance(strategy, DDPStrategy) and not isinstance(strategy, DeepSpeedStrategy)
    if trainer.world_size == 1 or replicated:
        return True
    rank_zero_warn(
        f"Lightning keeps the state that callbacks have on rank 0, and {type(strategy).__name__} "
        f"gives each rank its own: checkpoints {otherwise} where training resumes"
    )
    return False


def _schedule(trainer: Trainer) -> Schedule:
    """When the weights are looked at, by the settings of a trainer whose data are set up."""
    looks, unknown = [], []
    for found in (_validations(trainer), *_checkpoints(trainer)):
        if isinstance(found, Looks):
            looks.append(found)
        elif found is not None:
            unknown.append(found)
    last = trainer.estimated_stepping_batches
    known = last > 0 and not math.isinf(last)  # it is -1 or infinite where nobody knows
    return Schedule(tuple(looks), int(last) if known else None, tuple(unknown))


def _validations(trainer: Trainer) -> Looks | str | None:
    """The validations of a training; the setting alone where their steps are not known."""
    if not trainer.enable_validation:
        return None
    setting = f"val_check_interval={trainer.val_check_interval!r}"
    interval, epochs = trainer.val_check_batch, trainer.check_val_every_n_epoch
    share, batches = trainer.accumulate_grad_batches, _batches(trainer)
    if interval is None or (math.isinf(interval) and batches is None):
        return setting  # by time, or at ends of epochs that nobody knows
    every = int(interval)
    if batches is None:
        batches, epochs = math.lcm(every, share), 1  # the pattern repeats as epochs would
    first, whole = 0, math.lcm(every, batches)
    if epochs is not None:
        first, whole = (epochs - 1) * batches, epochs * batches
    epoch = math.ceil(batches / share)
    period = whole // batches * epoch
    seen = range(first + every, whole + 1, every)
    steps = {n // batches * epoch + n % batches // share or period for n in seen}
    return Looks(f"{setting} (epochs of {epoch} steps)", period, tuple(sorted(steps)))


def _checkpoints(trainer: Trainer) -> Iterator[Looks | str]:
    """What each of the trainer's `ModelCheckpoint` saves, by itself and not at a validation."""
    batches = _batches(trainer)
    for callback in trainer.checkpoint_callbacks:
        if not isinstance(callback, ModelCheckpoint):
            continue
        if callback.save_top_k == 0 and not callback.save_last:
            continue
        steps, epochs = callback._every_n_train_steps, callback.every_n_epochs
        if callback._train_time_interval is not None:
            yield f"ModelCheckpoint(train_time_interval={callback._train_time_interval!r})"
        elif steps:
            yield Looks(f"ModelCheckpoint(every_n_train_steps={steps})", steps)
        elif epochs and callback._should_save_on_train_epoch_end(trainer):
            setting = f"ModelCheckpoint(every_n_epochs={epochs})"
            if batches is None:
                yield setting
            else:
                epoch = math.ceil(batches / trainer.accumulate_grad_batches)
                yield Looks(f"{setting} (epochs of {epoch} steps)", epochs * epoch)


def _batches(trainer: Trainer) -> int | None:
    """The batches of an epoch, where that is known."""
    for number in (trainer.num_training_batches, trainer.limit_train_batches):
        if isinstance(number, int):
            return number
    return None


class AnnealedCallback(Callback):
    """`Annealed` as a callback: ``Trainer(callbacks=[AnnealedCallback()])``.

    As with Lightning's own `WeightAveraging`, the model is validated with the weights of the
    readout, and the ``state_dict`` of a checkpoint is the readout's, which
    ``load_from_checkpoint`` gives; the run's own weights lie beside it, and training resumes from
    them to the bit. The run itself is not touched. Checkpoints of a model that is sharded over
    several processes hold the run's own weights alone, since Lightning keeps what rank 0 has.

    Parameters
    ----------
    validate : bool, default=True
        Whether validation sees the readout.
    save : bool, default=True
        Whether checkpoints hold the readout.
    final : bool, default=False
        Whether the model has the weights of the readout at the end.
    **parameters
        Those of `Annealed`, but for the model.

    Attributes
    ----------
    annealed : Annealed or None
        Made when training begins; ``annealed.choose(judge)`` picks a profile, which is the one
        nearest to 10 by default.

    See Also
    --------
    wfcast.torch.Annealed : Parameters, and what a readout is.
    wfcast.torch.AnnealedCallback : The same in the Hugging Face Trainer.

    Examples
    --------
    >>> import lightning, torch
    >>> from wfcast.torch.lightning import AnnealedCallback
    >>> class Sums(lightning.LightningModule):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.layer = torch.nn.Linear(4, 1)
    ...     def training_step(self, batch):
    ...         return (self.layer(batch) - batch.sum(1, keepdim=True)).square().mean()
    ...     def configure_optimizers(self):
    ...         return torch.optim.SGD(self.parameters(), lr=0.01)
    >>> callback = AnnealedCallback(final=True)
    >>> trainer = lightning.Trainer(
    ...     accelerator="cpu",
    ...     max_steps=30,
    ...     callbacks=[callback],
    ...     logger=False,
    ...     enable_checkpointing=False,
    ...     enable_progress_bar=False,
    ...     enable_model_summary=False,
    ... )
    >>> trainer.fit(Sums(), torch.utils.data.DataLoader(torch.randn(256, 4), batch_size=8))
    >>> callback.annealed.n_steps
    30
    """

    def __init__(
        self, *, validate: bool = True, save: bool = True, final: bool = False, **parameters: Any
    ) -> None:
        check_names(parameters, Annealed, ("model",))
        self.validate, self.save, self.final = validate, save, final
        self.parameters = parameters
        self.annealed: Annealed | None = None
        self._saved: dict[str, Any] | None = None
        self._kept = True
        self._stepped = 0
        self._within = ExitStack()  # a validation

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave what belonged to an earlier fit, before a checkpoint is loaded."""
        if stage == "fit":
            self.annealed = self._saved = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin, or go on from a checkpoint."""
        self.annealed = Annealed(pl_module, **self.parameters)
        self._stepped = trainer.global_step
        self._kept = _kept(trainer, "hold no readout, and its averages begin anew")
        if self._saved is not None and self._kept:
            self.annealed.load_state_dict(self._saved)
        self._saved = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """One batch is done; only those that end with an optimizer step count."""
        assert self.annealed is not None
        if self._stepped != trainer.global_step:  # several optimizers count each of their own
            self._stepped = trainer.global_step
            self.annealed.step()

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the readout into the model."""
        annealed = self._readout(trainer)
        if annealed is not None and self.validate:
            self._within.enter_context(annealed.applied())

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the run's own weights back."""
        self._within.close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Put the run's own weights back, if a validation broke off."""
        self._within.close()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace the weights by the readout, if so wished: after the last checkpoint."""
        annealed = self._readout(trainer)
        if annealed is not None and self.final:
            annealed.write()

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """The readout as the checkpoint's weights, the run's own beside it."""
        annealed = self._readout(trainer)
        if annealed is None or not self.save or not self._kept:
            return
        with annealed.applied():
            readout = trainer.strategy.lightning_module_state_dict()
            readout = {name: value.clone() for name, value in readout.items()}
        checkpoint[OWN], checkpoint["state_dict"] = checkpoint["state_dict"], readout

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Go on training from the run's own weights; all else is done with the readout."""
        if OWN in checkpoint and trainer.state.fn == "fit":
            pl_module.load_state_dict(checkpoint[OWN])

    def _readout(self, trainer: Trainer) -> Annealed | None:
        """The averages, where there are any and a run is going on."""
        there = self.annealed is not None and self.annealed.ready and trainer.state.fn == "fit"
        return self.annealed if there else None

    def state_dict(self) -> dict[str, Any]:
        """For Lightning's checkpoints."""
        there = self.annealed if self._kept else None
        return {} if there is None else there.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From one of Lightning's checkpoints."""
        self._saved = state_dict or None
