"""Kinds of tensors, told by the names that common models give them."""

from __future__ import annotations

import re
from collections.abc import Container

__all__ = ["KINDS", "is_buffer", "is_norm", "kind_of"]

KINDS = ("embedding", "attention", "feed-forward", "layer norm", "bias", "head", "other")
"""The kinds of tensors that a report tells apart, in the order in which it shows them."""

# The first match decides: the head's own layer norm and bias belong to the head, the bias of a
# layer norm to the layer norm.
_PATTERNS = {
    kind: re.compile(pattern, re.IGNORECASE)
    for kind, pattern in (
        ("head", r"(^|\.)(vocab_|lm_head|cls\.|classifier|pre_classifier|score\.|predictions\.)"),
        ("layer norm", r"norm|(^|[._])(ln|bn)(_|\d|\.)"),
        ("bias", r"(^|[._])bias$"),
        ("embedding", r"embed|(^|\.)w[tp]e\."),
        ("attention", r"attention|attn|(^|\.)[qkvo](_|_?proj|_lin)"),
        ("feed-forward", r"ffn|mlp|feed_?forward|intermediate|(^|\.)(fc|lin|dense)\d?\.|output"),
    )
}

_BUFFER = re.compile(
    r"(^|\.)(running_(mean|var)|num_batches_tracked|(original_)?inv_freq|masked_bias|_extra_state)$"
)


def kind_of(name: str) -> str:
    """The kind of a tensor, guessed from the name that common Transformers give it."""
    return next((kind for kind, pattern in _PATTERNS.items() if pattern.search(name)), "other")


def is_norm(name: str, names: Container[str]) -> bool:
    """Whether a tensor belongs to a normalization layer, the head's own included.

    It is told by its name, or among `names`, all those of the model, by statistics that stand
    beside it.
    """
    beside = name.rpartition(".")[0] + ".running_var"
    return _PATTERNS["layer norm"].search(name) is not None or beside in names


def is_buffer(name: str) -> bool:
    """Whether a tensor is no parameter: what BatchNorm counts, the tables of rotary embeddings."""
    return _BUFFER.search(name) is not None
