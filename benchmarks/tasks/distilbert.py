"""DistilBERT: masked-LM training and fine-tuning."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from tasks.base import HELD_OUT_CHUNK, Task, generator


class MaskedWords(Task):
    """DistilBERT's masked-LM training in the small configuration of `wfcast demo`, from scratch."""

    name = "distilbert-mlm"
    steps, every = 1200, 40
    rates = (1e-3, 3e-3, 6e-3)
    untuned = 1e-3
    best = ("tail", 3e-3)
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
    best = ("tail", 1e-4)
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
    best = ("constant", 3e-4)
    fine_tuning = True
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
