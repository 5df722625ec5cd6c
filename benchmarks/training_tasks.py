"""What is trained in `bench_farcasting.py` and `bench_readout.py`, on data of installed packages.

A run is a pure function of its seed: step t of it draws its batch from ``(seed, t)`` alone, so that
runs with and without jumps see the same batches. On the CPU everything is trained on one thread.
"""

from __future__ import annotations

import math
import sysconfig
import zlib
from abc import ABC, abstractmethod
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

HELD_OUT_CHUNK = 256


class Task(ABC):
    """One model and its data.

    Attributes
    ----------
    steps : int
        The length of a run.
    every : int
        Steps between measurements of the held-out loss.
    rates : tuple of float
        The learning rates swept, the optimizer's own default or the recipe's usual among them.
    untuned : float
        That usual rate.
    betas, weight_decay
        Of AdamW.
    device : {"cpu", "cuda"}
        Where it is trained.
    """

    name: str
    steps: int
    every: int
    rates: tuple[float, ...]
    untuned: float
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    device: str = "cpu"

    @abstractmethod
    def model(self, seed: int) -> nn.Module:
        """A new model."""

    @abstractmethod
    def batch(self, seed: int, step: int) -> Any:
        """The batch of one step."""

    @abstractmethod
    def loss(self, model: Any, batch: Any) -> Tensor:
        """The mean loss over a batch."""

    @property
    @abstractmethod
    def held_out(self) -> list[Any]:
        """Batches of equal size, the same for every run."""

    def held_out_loss(self, model: nn.Module) -> float:
        """The mean loss over the held-out batches, in eval mode."""
        training = model.training
        model.eval()
        with torch.no_grad():
            total = sum(float(self.loss(model, batch)) for batch in self.held_out)
        model.train(training)
        return total / len(self.held_out)

    def optimizer(self, model: nn.Module, rate: float) -> torch.optim.Optimizer:
        """AdamW, which without weight decay is Adam."""
        return torch.optim.AdamW(
            model.parameters(), lr=rate, betas=self.betas, weight_decay=self.weight_decay
        )


def generator(seed: int, step: int) -> torch.Generator:
    """Random numbers of one step of one run."""
    return torch.Generator().manual_seed((seed + 1) * 1_000_003 + step)


# ---- (a) digits -------------------------------------------------------------------------------


class Digits(Task):
    """A 64-128-128-10 network on scikit-learn's 1797 digits, a third of them held out."""

    name = "digits"
    steps, every = 2000, 25
    rates = (1e-4, 3e-4, 1e-3, 3e-3)
    untuned = 1e-3  # torch.optim.Adam's default

    @cached_property
    def _data(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
        order = torch.randperm(len(x), generator=generator(0, 0))
        train, held = order[:1200], order[1200:]
        return x[train], y[train], x[held], y[held]

    def model(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(64, 128),
            nn.ReLU(),
            nn.Linear(128, 128),
            nn.ReLU(),
            nn.Linear(128, 10),
        )

    def batch(self, seed: int, step: int) -> tuple[Tensor, Tensor]:
        x, y, _, _ = self._data
        rows = torch.randint(len(x), (64,), generator=generator(seed, step))
        return x[rows], y[rows]

    def loss(self, model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
        return cross_entropy(model(batch[0]), batch[1])

    @property
    def held_out(self) -> list[Any]:
        return [self._data[2:]]


# ---- (b) characters ---------------------------------------------------------------------------


class CharacterTransformer(nn.Module):
    """Two pre-norm decoder layers, width 48, 4 heads, context 64."""

    def __init__(self, vocab: int, width: int = 48, heads: int = 4, context: int = 64) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(vocab, width), nn.Embedding(context, width)
        nn.init.normal_(self.token.weight, std=0.02)
        nn.init.normal_(self.position.weight, std=0.02)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, 2, nn.LayerNorm(width), False)
        self.head = nn.Linear(width, vocab)
        mask = nn.Transformer.generate_square_subsequent_mask(context)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.token(ids) + self.position.weight[: ids.shape[1]]
        mask: Any = self.mask
        return self.head(self.layers(hidden, mask=mask, is_causal=True))


class Characters(Task):
    """A character transformer on CPython's reference text, its last tenth held out."""

    name = "characters"
    steps, every = 1500, 25
    rates = (1e-3, 4e-3, 8e-3, 1.2e-2)
    untuned = 1e-3  # torch.optim.Adam's default
    context = 64

    @cached_property
    def _data(self) -> tuple[Tensor, Tensor, int]:
        from pydoc_data.topics import topics

        text = "\n".join(topics[name] for name in sorted(topics))
        alphabet = {c: i for i, c in enumerate(sorted(set(text)))}
        ids = torch.tensor([alphabet[c] for c in text])
        cut = len(ids) * 9 // 10
        return ids[:cut], ids[cut:], len(alphabet)

    def model(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return CharacterTransformer(self._data[2])

    def _windows(self, ids: Tensor, starts: Tensor) -> Tensor:
        return ids[starts[:, None] + torch.arange(self.context + 1)]

    def batch(self, seed: int, step: int) -> Tensor:
        ids = self._data[0]
        draw = generator(seed, step)
        return self._windows(ids, torch.randint(len(ids) - self.context, (32,), generator=draw))

    def loss(self, model: Any, batch: Tensor) -> Tensor:
        return cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())

    @cached_property
    def held_out(self) -> list[Any]:
        ids = self._data[1]
        starts = torch.linspace(0, len(ids) - self.context - 1, HELD_OUT_CHUNK).long()
        return [self._windows(ids, starts)]


# ---- (c) DistilBERT ---------------------------------------------------------------------------


class MaskedWords(Task):
    """DistilBERT's masked-LM training in the small configuration of `wfcast demo`, from scratch."""

    name = "distilbert-mlm"
    steps, every = 1200, 40
    rates = (1e-3, 3e-3, 6e-3)
    untuned = 1e-3
    betas, weight_decay = (0.9, 0.98), 0.01

    @property
    def _size(self) -> Any:
        from wfcast.demo.train import SIZES

        return SIZES["small"]

    @cached_property
    def _trainer(self) -> Any:
        from wfcast.demo.text import build_corpus
        from wfcast.demo.train import Trainer

        size = self._size
        corpus, _ = build_corpus(
            size.vocab_size,
            size.length,
            docstrings=size.docstrings,
            held_out_rows=size.held_out_rows,
        )
        return Trainer(size, corpus, 0)

    def model(self, seed: int) -> nn.Module:
        from wfcast.demo.train import Trainer

        trainer = self._trainer
        model: nn.Module = Trainer(trainer.size, trainer.corpus, seed, self.device).model
        return model

    def batch(self, seed: int, step: int) -> Any:
        from wfcast.demo.text import masked_batch

        corpus, draw = self._trainer.corpus, generator(seed, step)
        rows = torch.randint(len(corpus.train), (self._trainer.size.batch,), generator=draw)
        return self._there(masked_batch(corpus.train[rows], draw, corpus.vocab_size))

    def _there(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.to(self.device) for name, tensor in batch.items()}

    def loss(self, model: Any, batch: Any) -> Tensor:
        loss: Tensor = model(**batch).loss
        return loss

    @cached_property
    def held_out(self) -> list[Any]:
        from wfcast.demo.text import masked_batch

        corpus = self._trainer.corpus
        whole = self._there(masked_batch(corpus.held_out, generator(0, 0), corpus.vocab_size))
        parts = {name: tensor.split(HELD_OUT_CHUNK) for name, tensor in whole.items()}
        return [dict(zip(parts, part, strict=True)) for part in zip(*parts.values(), strict=True)]


class BaseMaskedWords(MaskedWords):
    """The same of DistilBERT's own size, 67 million parameters, with its dropout, on a GPU.

    The weights are float32, the operations bfloat16 (autocast).
    """

    name = "distilbert-base"
    steps, every = 400, 20
    rates = (1e-4, 3e-4)
    untuned = 1e-4
    device = "cuda"

    @property
    def _size(self) -> Any:
        from wfcast.demo.train import SIZES

        return replace(SIZES["base"], batch=32)

    def loss(self, model: Any, batch: Any) -> Tensor:
        with torch.autocast(self.device, torch.bfloat16):
            return super().loss(model, batch).float()


class Classes(Task):
    """Fine-tuning of that DistilBERT: from which of eight parts of the library does a row come?

    It starts from a masked-LM run of 1200 steps at 3e-3; a new head is drawn for every seed. The
    classes are the eight top-level names with the most text; the last fifth of each one's rows is
    held out.
    """

    name = "distilbert-classes"
    steps, every = 600, 20
    rates = (1e-4, 3e-4, 1e-3, 3e-3)
    untuned = 1e-4
    weight_decay = 0.01
    n_classes, per_class = 8, 400

    def __init__(self) -> None:
        self._words = MaskedWords()

    @cached_property
    def _pretrained(self) -> dict[str, Tensor]:
        words = self._words
        model = words.model(1000)
        optimizer = words.optimizer(model, 3e-3)
        for step in range(1, words.steps + 1):
            loss = words.loss(model, words.batch(1000, step))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        return model.distilbert.state_dict()  # type: ignore[union-attr, operator]

    @cached_property
    def _data(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        from wfcast.demo.text import build_corpus, collect

        size = self._words._trainer.size
        _, tokenizer = build_corpus(size.vocab_size, size.length, docstrings=size.docstrings)
        texts: dict[str, str] = {}
        for document in collect(size.docstrings):
            top = document.name.partition(":")[2].partition(".")[0]
            top = "reference" if document.name.startswith("topic:") else top
            texts[top] = texts.get(top, "") + "\n" + document.text
        largest = sorted(texts, key=lambda name: (-len(texts[name]), name))[: self.n_classes]
        train, held = [], []
        for label, name in enumerate(largest):
            ids = torch.tensor(tokenizer.encode(texts[name], add_special_tokens=False).ids)
            body = size.length - 2
            rows = ids[: len(ids) // body * body].view(-1, body)
            marks = torch.tensor([2, 3]).expand(len(rows), 2)  # [CLS], [SEP]
            rows = torch.cat([marks[:, :1], rows, marks[:, 1:]], 1)
            cut = len(rows) * 4 // 5
            for part, chosen in ((train, rows[:cut]), (held, rows[cut:])):
                chosen = chosen[: self.per_class]
                part.append((chosen, torch.full((len(chosen),), label)))
        return (*map(torch.cat, zip(*train, strict=True)), *map(torch.cat, zip(*held, strict=True)))  # type: ignore[return-value]

    def model(self, seed: int) -> nn.Module:
        from transformers import DistilBertForSequenceClassification

        pretrained = self._pretrained
        torch.manual_seed(seed)
        config = self._words._trainer.model.config
        config = type(config)(**{**config.to_dict(), "num_labels": self.n_classes})
        model = DistilBertForSequenceClassification(config)
        model.distilbert.load_state_dict(pretrained)
        return model

    def batch(self, seed: int, step: int) -> Any:
        x, y, _, _ = self._data
        rows = torch.randint(len(x), (32,), generator=generator(seed, step))
        return {"input_ids": x[rows], "labels": y[rows]}

    def loss(self, model: Any, batch: Any) -> Tensor:
        loss: Tensor = model(**batch).loss
        return loss

    @cached_property
    def held_out(self) -> list[Any]:
        _, _, x, y = self._data
        usable = len(x) // HELD_OUT_CHUNK * HELD_OUT_CHUNK
        order = torch.randperm(len(x), generator=generator(0, 0))[:usable]
        return [{"input_ids": x[rows], "labels": y[rows]} for rows in order.split(HELD_OUT_CHUNK)]


# ---- (e) a decoder ----------------------------------------------------------------------------


class Decoder(Task):
    """A small Llama (rotary positions, RMSNorm, SwiGLU) on the bytes of the library's sources.

    One source file in ten is held out.
    """

    name = "decoder"
    steps, every = 1000, 25
    rates = (1e-3, 2e-3, 4e-3, 8e-3)
    untuned = 1e-3
    betas, weight_decay = (0.9, 0.95), 0.1
    context = 64

    @cached_property
    def _data(self) -> tuple[Tensor, Tensor]:
        parts: tuple[list[bytes], list[bytes]] = ([], [])
        library = Path(sysconfig.get_path("stdlib"))
        for path in sorted(library.glob("*.py")):
            text = path.read_text(encoding="utf-8", errors="ignore").encode("ascii", "ignore")
            parts[zlib.crc32(path.name.encode()) % 10 == 0].append(text)
        train, held = (torch.frombuffer(bytearray(b"".join(p)), dtype=torch.uint8) for p in parts)
        return train.long(), held.long()

    def model(self, seed: int) -> nn.Module:
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=128,
            hidden_size=48,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=self.context,
            initializer_range=0.05,
            use_cache=False,
        )
        model: nn.Module = LlamaForCausalLM(config)
        return model

    def _windows(self, ids: Tensor, starts: Tensor) -> Tensor:
        return ids[starts[:, None] + torch.arange(self.context)]

    def batch(self, seed: int, step: int) -> Tensor:
        ids, draw = self._data[0], generator(seed, step)
        return self._windows(ids, torch.randint(len(ids) - self.context, (32,), generator=draw))

    def loss(self, model: Any, batch: Tensor) -> Tensor:
        loss: Tensor = model(input_ids=batch, labels=batch).loss
        return loss

    @cached_property
    def held_out(self) -> list[Any]:
        ids = self._data[1]
        starts = torch.linspace(0, len(ids) - self.context, HELD_OUT_CHUNK).long()
        return [self._windows(ids, starts)]


TASKS: tuple[type[Task], ...] = (Digits, Characters, MaskedWords, Classes, BaseMaskedWords)


# ---- schedules --------------------------------------------------------------------------------

SCHEDULES = ("constant", "linear", "cosine", "tail")


def factor(schedule: str, step: int, steps: int) -> float:
    """What the rate of step 1, 2, ..., `steps` is multiplied by; a fiftieth of them warms up.

    "linear" and "cosine" fall to 0 from there, "tail" in the last fifth.
    """
    warm = min(1.0, step / max(1, steps // 50))
    if schedule == "linear":
        return warm * (1 - (step - 1) / steps)
    if schedule == "cosine":
        return warm * (1 + math.cos(math.pi * (step - 1) / steps)) / 2
    return warm * min(1.0, (steps - step + 1) / (steps / 5)) if schedule == "tail" else warm
