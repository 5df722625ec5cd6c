"""Language models of characters and bytes."""

from __future__ import annotations

import sysconfig
import zlib
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tasks.base import HELD_OUT_CHUNK, Task, generator


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
    best = ("tail", 8e-3)
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


class SourceBytes(Task):
    """Language models on the bytes of the library's sources; one source file in ten is held out."""

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

    def _windows(self, ids: Tensor, starts: Tensor) -> Tensor:
        return ids[starts[:, None] + torch.arange(self.context)]

    def batch(self, seed: int, step: int) -> Tensor:
        ids, draw = self._data[0], generator(seed, step)
        return self._windows(ids, torch.randint(len(ids) - self.context, (32,), generator=draw))

    @cached_property
    def held_out(self) -> list[Any]:
        ids = self._data[1]
        starts = torch.linspace(0, len(ids) - self.context, HELD_OUT_CHUNK).long()
        return [self._windows(ids, starts)]


class Decoder(SourceBytes):
    """A small Llama (rotary positions, RMSNorm, SwiGLU)."""

    name = "decoder"
    steps, every = 1000, 25
    rates = (1e-3, 2e-3, 4e-3, 8e-3)
    untuned = 1e-3
    best = ("tail", 8e-3)
    betas, weight_decay = (0.9, 0.95), 0.1

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

    def loss(self, model: Any, batch: Tensor) -> Tensor:
        loss: Tensor = model(input_ids=batch, labels=batch).loss
        return loss


class ByteLSTM(nn.Module):
    """An embedding of width 64, one LSTM layer of 192 cells, a linear head: 0.23M weights."""

    def __init__(self, vocab: int = 128, width: int = 64, cells: int = 192) -> None:
        super().__init__()
        self.token = nn.Embedding(vocab, width)
        self.lstm = nn.LSTM(width, cells, batch_first=True)
        self.head = nn.Linear(cells, vocab)

    def forward(self, ids: Tensor) -> Tensor:
        hidden, _ = self.lstm(self.token(ids))
        return self.head(hidden)


class Recurrent(SourceBytes):
    """A small LSTM."""

    name = "lstm"
    steps, every = 800, 25
    rates = (1e-3, 4e-3, 8e-3, 1.6e-2)
    untuned = 1e-3  # torch.optim.Adam's default
    best = ("tail", 8e-3)

    def model(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return ByteLSTM()

    def loss(self, model: Any, batch: Tensor) -> Tensor:
        return cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
