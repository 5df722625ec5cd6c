"""Record training runs of a DistilBERT as safetensors checkpoints.

A run is a pure function of its seed: batch and dropout of step t depend on ``(seed, t)`` only, so a
run that jumped sees the same batches in the same order as the one that did not.
"""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from .._errors import WfcastError
from .._progress import bar
from .text import IGNORE, Corpus, masked_batch

__all__ = [
    "SIZES",
    "Run",
    "Size",
    "Trainer",
    "checkpoint_path",
    "load_weights",
    "record",
    "save_weights",
]


@dataclass(frozen=True)
class Size:
    """One size of the demo: the model's configuration, its training and what is recorded."""

    dim: int
    n_layers: int
    n_heads: int
    hidden_dim: int
    vocab_size: int
    length: int  # tokens per sequence
    positions: int
    dropout: float
    batch: int  # sequences per step
    lr: float
    warmup: int  # steps of linear warm-up; the rate is constant afterwards
    first: int  # the first recorded step after 0
    observed: int  # n: the last observed step
    targets: tuple[int, ...]
    jump_to: int  # the target that the jump loads
    after_jump: int  # optimizer steps after the jump
    siblings: int
    evaluate_every: int
    average_every: int  # steps between two looks of the averages that the readout is made of
    held_out_rows: int
    docstrings: bool
    threads: int  # CPU threads; 0: all CPUs that the process may use

    @property
    def recorded(self) -> tuple[int, ...]:
        """The steps of which every run keeps a checkpoint."""
        return tuple(sorted({0, self.first, self.observed, *self.targets}))

    @property
    def last(self) -> int:
        """The last step of the fresh run."""
        return max(self.targets[-1], self.observed + self.after_jump)

    def evaluates(self, step: int) -> bool:
        """Whether the held-out loss is measured at `step`."""
        return (
            step % self.evaluate_every == 0
            or step in self.recorded
            or step == self.observed + self.after_jump
        )

    def scaled(self, length: int) -> Size:
        """The same with runs of `length` steps: every number of steps is scaled.

        Raises
        ------
        WfcastError
            So few steps that two of the recorded ones would fall together.
        """
        factor = length / self.targets[-1]
        targets = tuple(round(step * factor) for step in self.targets)
        result = replace(
            self,
            warmup=max(1, round(self.warmup * factor)),
            first=round(self.first * factor),
            observed=round(self.observed * factor),
            targets=targets,
            jump_to=targets[self.targets.index(self.jump_to)],
            after_jump=max(1, round(self.after_jump * factor)),
            evaluate_every=max(1, round(self.evaluate_every * factor)),
            average_every=max(1, round(self.average_every * factor)),
        )
        if len(result.recorded) < 3 + len(targets):
            raise WfcastError(
                f"{length} steps are too few: the recorded steps "
                f"{', '.join(map(str, self.recorded))} of this size would fall together"
            )
        return result

    def asdict(self) -> dict[str, Any]:
        """The fields for the report."""
        return asdict(self)


SIZES: dict[str, Size] = {
    # The suite's: every part of the flow, but too short a training to learn from.
    "tiny": Size(
        dim=32,
        n_layers=1,
        n_heads=2,
        hidden_dim=64,
        vocab_size=400,
        length=16,
        positions=16,
        dropout=0.0,
        batch=16,
        lr=3e-3,
        warmup=10,
        first=10,
        observed=40,
        targets=(50, 60, 80),
        jump_to=80,
        after_jump=60,
        siblings=2,
        evaluate_every=20,
        average_every=2,
        held_out_rows=128,
        docstrings=False,
        threads=1,
    ),
    # Learning rate and horizons were chosen on other seeds than the default ones: 3e-3 ended
    # lowest of 2e-3, 3e-3, 4e-3 and 6e-3. Short sequences leave the plateau of masked language
    # models (the frequencies of single tokens) soonest. One thread: operations this small gain
    # little from a second one, and lose much where another process has the second core. Two
    # siblings: a third one changed the forecast's weight errors by less than 0.1%.
    "small": Size(
        dim=64,
        n_layers=2,
        n_heads=2,
        hidden_dim=256,
        vocab_size=1000,
        length=16,
        positions=16,
        dropout=0.0,
        batch=64,
        lr=3e-3,
        warmup=50,
        first=50,
        observed=600,
        targets=(700, 800, 1000, 1200),
        jump_to=1200,
        after_jump=600,
        siblings=2,
        evaluate_every=50,
        average_every=10,
        held_out_rows=1024,
        docstrings=True,
        threads=1,
    ),
    # distilbert-base's own configuration: 67.0M parameters.
    "base": Size(
        dim=768,
        n_layers=6,
        n_heads=12,
        hidden_dim=3072,
        vocab_size=30522,
        length=64,
        positions=512,
        dropout=0.1,
        batch=64,
        lr=1e-4,
        warmup=200,
        first=100,
        observed=1000,
        targets=(1100, 1250, 1500, 2000),
        jump_to=1500,
        after_jump=1000,
        siblings=2,
        evaluate_every=100,
        average_every=10,
        held_out_rows=512,
        docstrings=True,
        threads=0,
    ),
}


def checkpoint_path(folder: Path, step: int) -> Path:
    """``folder/step-000500.safetensors``."""
    return folder / f"step-{step:06d}.safetensors"


def save_weights(model: torch.nn.Module, path: Path) -> None:
    """Write the weights with safetensors; tied weights once. Either the whole file or none."""
    from safetensors.torch import save_model

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        save_model(model, str(partial))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def load_weights(model: torch.nn.Module, path: Path) -> None:
    """Read the weights of `path` into `model`; every one must be there."""
    from safetensors.torch import load_model

    load_model(model, path, strict=True)


class Trainer:
    """One run: model, optimizer, step counter.

    Parameters
    ----------
    size : Size
        Model and training settings.
    corpus : Corpus
        Training and held-out rows.
    seed : int
        Draws the initial weights, the batches and the dropout.
    device : str
        Where the model is trained.
    """

    def __init__(self, size: Size, corpus: Corpus, seed: int, device: str = "cpu") -> None:
        from transformers import DistilBertConfig, DistilBertForMaskedLM

        self.size, self.corpus, self.seed, self.device = size, corpus, seed, device
        torch.manual_seed(self._seed_of(0))
        config = DistilBertConfig(
            vocab_size=size.vocab_size,
            dim=size.dim,
            n_layers=size.n_layers,
            n_heads=size.n_heads,
            hidden_dim=size.hidden_dim,
            max_position_embeddings=size.positions,
            dropout=size.dropout,
            attention_dropout=size.dropout,
            initializer_range=0.02 * (768 / size.dim) ** 0.5,
        )
        model: Any = DistilBertForMaskedLM(config)
        self.model = model.to(device)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=size.lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True
        )
        self.step = 0
        generator = torch.Generator().manual_seed(0)  # the same held-out masks for every run
        self._held_out = masked_batch(corpus.held_out, generator, corpus.vocab_size)

    def _seed_of(self, step: int) -> int:
        return (self.seed + 1) * 1_000_003 + step

    def _batch(self, step: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(self._seed_of(step))
        picked = torch.randint(len(self.corpus.train), (self.size.batch,), generator=generator)
        return masked_batch(self.corpus.train[picked], generator, self.corpus.vocab_size)

    def _loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """What ``model(**batch).loss`` is, with the head run on the asked tokens only."""
        model, asked = self.model, batch["labels"] != IGNORE
        hidden = model.distilbert(input_ids=batch["input_ids"]).last_hidden_state[asked]
        hidden = model.vocab_layer_norm(model.activation(model.vocab_transform(hidden)))
        return cross_entropy(model.vocab_projector(hidden), batch["labels"][asked])

    def train_step(self, share: float = 1.0) -> float:
        """One optimizer step, at a share of the usual rate; the training loss before it."""
        self.step += 1
        torch.manual_seed(self._seed_of(self.step))
        self.model.train()
        rate = share * self.size.lr * min(1.0, self.step / self.size.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        batch = {name: t.to(self.device) for name, t in self._batch(self.step).items()}
        loss = self._loss(batch)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return float(loss.detach())

    def held_out_loss(self) -> float:
        """Mean cross-entropy, in nats, of the masked held-out tokens (always the same masks)."""
        loss = self._mean_loss(self._held_out)
        if not math.isfinite(loss):
            raise WfcastError(
                f"the held-out loss of seed {self.seed} is {loss} at step {self.step}"
            )
        return loss

    def training_loss(self, batches: int) -> float:
        """The mean over so many batches of the training text (always the same ones)."""
        generator = torch.Generator().manual_seed(0)
        rows = self.size.batch * batches
        picked = torch.randint(len(self.corpus.train), (rows,), generator=generator)
        return self._mean_loss(
            masked_batch(self.corpus.train[picked], generator, self.corpus.vocab_size)
        )

    @torch.no_grad()
    def _mean_loss(self, rows: dict[str, torch.Tensor]) -> float:
        self.model.eval()
        total, count = 0.0, 0
        for start in range(0, len(rows["labels"]), 256):
            batch = {k: t[start : start + 256].to(self.device) for k, t in rows.items()}
            asked = int((batch["labels"] != IGNORE).sum())
            total += float(self._loss(batch)) * asked
            count += asked
        return total / count

    def optimizer_state(self) -> dict[str, Any]:
        """A copy of the optimizer's state."""
        return copy.deepcopy(self.optimizer.state_dict())

    @contextmanager
    def branch(self) -> Iterator[None]:
        """A context to train on in; at its end the run stands where it stood."""
        step, optimizer = self.step, self.optimizer_state()
        weights = copy.deepcopy(self.model.state_dict())
        try:
            yield
        finally:
            self.step = step
            self.model.load_state_dict(weights)
            self.optimizer.load_state_dict(optimizer)

    def resume(self, step: int, weights: Path, optimizer_state: dict[str, Any]) -> None:
        """Go on after `step` with the weights of a file and a kept optimizer state."""
        load_weights(self.model, weights)
        self.optimizer.load_state_dict(copy.deepcopy(optimizer_state))
        self.step = step

    def train(
        self,
        until: int,
        progress: Any,
        *,
        folder: Path | None = None,
        sparse: bool = False,
        after_step: Callable[[], None] | None = None,
    ) -> list[tuple[int, float]]:
        """Train until step `until`; with a `folder`, save the size's recorded steps to it.

        Returns held-out losses as (step, loss): at every step that the size evaluates, or, if
        `sparse`, at the recorded ones only.
        """
        curve: list[tuple[int, float]] = []
        while True:
            recorded = self.step in self.size.recorded
            if recorded and folder is not None:
                save_weights(self.model, checkpoint_path(folder, self.step))
            if recorded or (self.size.evaluates(self.step) and not sparse):
                curve.append((self.step, self.held_out_loss()))
                step, loss = curve[-1]
                progress.set_postfix_str(f"held-out loss at {step}: {loss:.3f}", refresh=False)
            if self.step == until:
                return curve
            self.train_step()
            if after_step is not None:
                after_step()
            progress.update()


@dataclass(frozen=True)
class Run:
    """A recorded run.

    Attributes
    ----------
    name, seed
    files : dict of int to Path
        The checkpoints by step.
    curve : list of (int, float)
        Held-out loss by step.
    seconds : float
    """

    name: str
    seed: int
    files: dict[int, Path]
    curve: list[tuple[int, float]]
    seconds: float


def record(
    trainer: Trainer,
    name: str,
    out: Path,
    until: int,
    *,
    sparse: bool = False,
    after_step: Callable[[], None] | None = None,
) -> tuple[Run, dict[str, Any]]:
    """Train a run from its initial weights and keep its checkpoints; the rest as in `train`.

    Returns the run, and the optimizer's state at the last observed step.
    """
    size, folder, begun = trainer.size, out / name, time.perf_counter()
    with bar(until, f"record {name}", "step") as progress:

        def train(until: int) -> list[tuple[int, float]]:
            return trainer.train(
                until, progress, folder=folder, sparse=sparse, after_step=after_step
            )

        curve = train(size.observed)
        state = trainer.optimizer_state()
        curve += train(until)[1:]
    files = {step: checkpoint_path(folder, step) for step in size.recorded}
    return Run(name, trainer.seed, files, curve, time.perf_counter() - begun), state
