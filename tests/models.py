"""Small real models, and a pickle that must not be opened."""

from pathlib import Path

import torch
import transformers


def small(kind, seed=0):
    """A model of the library's, as small as it goes."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": 64, "intermediate_size": 32, "max_position_embeddings": 16, **sizes}
    torch.manual_seed(seed)
    if kind == "distilbert":
        config = transformers.DistilBertConfig(
            vocab_size=64, dim=16, n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=16
        )
        return transformers.DistilBertForMaskedLM(config)
    if kind == "bert":
        return transformers.BertForMaskedLM(transformers.BertConfig(**text))
    if kind == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=64, n_positions=16, n_embd=16, n_layer=2, n_head=2
        )
        return transformers.GPT2LMHeadModel(config)
    if kind == "llama":
        return transformers.LlamaForCausalLM(
            transformers.LlamaConfig(**text, tie_word_embeddings=False)
        )
    assert kind == "vit"
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(**sizes, intermediate_size=32, image_size=8, patch_size=4)
    )


class ConvNet(torch.nn.Module):
    """As torchvision's are built, with BatchNorm."""

    def __init__(self):
        super().__init__()
        self.features = torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU()
        )
        self.head = torch.nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))


class Opened:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)
