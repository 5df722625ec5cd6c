"""Text that every CPython carries, a WordPiece tokenizer trained on it, and masked batches.

Nothing is downloaded and no module of the standard library is run: its sources are parsed with
`ast`, and only docstrings are kept. The one import is `pydoc_data.topics`, a dictionary of the
language reference's chapters.
"""

from __future__ import annotations

import ast
import sys
import sysconfig
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

__all__ = [
    "IGNORE",
    "Corpus",
    "Document",
    "build_corpus",
    "collect",
    "masked_batch",
    "train_tokenizer",
]

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # ids 0..4; DistilBERT pads with 0
_CLS, _SEP, _MASK = 2, 3, 4
IGNORE = -100  # the label transformers leaves out of the loss
_SKIPPED_FOLDERS = frozenset({"site-packages", "dist-packages", "test", "tests", "__pycache__"})
_RARE = 50  # a character seen less often becomes [UNK]
_SHORTEST_DOCSTRING = 60  # characters; shorter ones are mostly one repeated phrase


@dataclass(frozen=True)
class Document:
    """One chapter of the language reference, or all docstrings of one source file."""

    name: str
    text: str

    @property
    def held_out(self) -> bool:
        """One document in ten, chosen by a checksum of the name: the same in every run."""
        return zlib.crc32(self.name.encode()) % 10 == 0


@dataclass(frozen=True)
class Corpus:
    """Token ids in rows of one length: ``train`` (N, L) and ``held_out`` (M, L), int64.

    Every row is ``[CLS] tokens [SEP]`` from one document, without padding.
    """

    train: torch.Tensor
    held_out: torch.Tensor
    vocab_size: int
    n_documents: tuple[int, int]
    n_characters: tuple[int, int]

    def summary(self) -> dict[str, Any]:
        """Sizes for the report."""
        return {
            "source": "pydoc_data.topics and docstrings of the standard library",
            "documents": dict(zip(("train", "held_out"), self.n_documents, strict=True)),
            "characters": dict(zip(("train", "held_out"), self.n_characters, strict=True)),
            "sequences": {"train": len(self.train), "held_out": len(self.held_out)},
            "sequence_length": self.train.shape[1],
            "tokenizer": "WordPiece",
            "tokenizer_vocab": self.vocab_size,
        }


def _docstrings(path: Path) -> Iterator[str]:
    """Docstrings of one source file, in file order; none where the file cannot be read."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text is not None and len(text) >= _SHORTEST_DOCSTRING:
                yield text


def _stdlib_files() -> Iterator[tuple[str, Path]]:
    """(module name, source file) of the standard library, sorted, tests left out."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if _SKIPPED_FOLDERS.isdisjoint(parts) and parts[0].removesuffix(".py") in (
            sys.stdlib_module_names
        ):
            yield ".".join(parts).removesuffix(".py"), path


def collect(docstrings: bool = True) -> list[Document]:
    """Read the documents: the language reference, and the docstrings unless switched off.

    A text that occurs twice is kept once, so that none is both trained on and held out.
    """
    from pydoc_data.topics import topics

    chapters = {text: name for name, text in sorted(topics.items(), reverse=True)}
    documents = [Document(f"topic:{name}", text) for text, name in chapters.items()]
    documents.sort(key=lambda d: d.name)
    if docstrings:
        seen: set[str] = set()
        for name, path in _stdlib_files():
            if name.startswith("pydoc_data."):
                continue
            fresh = [text for text in dict.fromkeys(_docstrings(path)) if text not in seen]
            seen.update(fresh)
            if fresh:
                documents.append(Document(f"module:{name}", "\n\n".join(fresh)))
    return documents


def train_tokenizer(texts: list[str], vocab_size: int) -> Any:
    """Train an uncased WordPiece tokenizer, as BERT's, with at most `vocab_size` entries.

    Left alone, the trainer numbers the characters inside of words in the order of a hash table,
    which differs from run to run, and breaks ties by these numbers. So the alphabet is counted
    here, and its inner forms get their numbers by being passed as special tokens.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    normalizer = normalizers.BertNormalizer(lowercase=True)
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(normalizer.normalize_str(text))
    alphabet = sorted(c for c, n in counts.items() if n >= _RARE and not c.isspace())

    def blank(vocab: dict[str, int] | None = None) -> Any:
        tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
        tokenizer.normalizer = normalizer
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        return tokenizer

    learner = blank()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL, *(f"##{c}" for c in alphabet)],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    return blank(learner.get_vocab())


def _rows(ids: list[list[int]], length: int) -> torch.Tensor:
    """Cut every document into full rows of `length` tokens; what is left over is dropped."""
    body = length - 2
    rows = [
        [_CLS, *document[start : start + body], _SEP]
        for document in ids
        for start in range(0, len(document) - body + 1, body)
    ]
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, length)


def build_corpus(
    vocab_size: int, length: int, *, docstrings: bool = True, held_out_rows: int = 256
) -> tuple[Corpus, Any]:
    """Collect the text, train the tokenizer on the training part, and cut both parts into rows.

    Returns the corpus and the tokenizer. At most `held_out_rows` rows are held out, spread evenly
    over the held-out documents.
    """
    documents = collect(docstrings)
    parts = [[d.text for d in documents if d.held_out is flag] for flag in (False, True)]
    tokenizer = train_tokenizer(parts[0], vocab_size)
    train, held_out = (
        _rows([e.ids for e in tokenizer.encode_batch(texts, add_special_tokens=False)], length)
        for texts in parts
    )
    if len(held_out) > held_out_rows:
        picked = np.linspace(0, len(held_out) - 1, held_out_rows).round().astype(np.int64)
        held_out = held_out[torch.from_numpy(picked)]
    corpus = Corpus(
        train=train,
        held_out=held_out,
        vocab_size=tokenizer.get_vocab_size(),
        n_documents=(len(parts[0]), len(parts[1])),
        n_characters=(sum(map(len, parts[0])), sum(map(len, parts[1]))),
    )
    return corpus, tokenizer


def masked_batch(
    rows: torch.Tensor, generator: torch.Generator, vocab_size: int
) -> dict[str, torch.Tensor]:
    """BERT's masking: 15% of the tokens are asked for.

    Of these 80% show [MASK], 10% a random token and 10% themselves. `rows` is (B, L). Returns
    ``input_ids`` and ``labels`` of that shape; labels are -100 where nothing is asked. The result
    depends on `rows` and the generator's state alone.
    """
    chance = torch.rand(rows.shape, generator=generator)
    kind = torch.rand(rows.shape, generator=generator)
    noise = torch.randint(len(SPECIAL), vocab_size, rows.shape, generator=generator)
    asked = (chance < 0.15) & (rows >= len(SPECIAL))
    inputs = torch.where(asked & (kind < 0.8), _MASK, rows)
    inputs = torch.where(asked & (kind >= 0.9), noise, inputs)
    return {"input_ids": inputs, "labels": torch.where(asked, rows, IGNORE)}
