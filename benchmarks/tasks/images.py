"""Classifiers of images."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tasks.base import Task, generator


class Digits(Task):
    """A 64-128-128-10 network on scikit-learn's 1797 digits, a third of them held out."""

    name = "digits"
    steps, every = 2000, 25
    rates = (1e-4, 3e-4, 1e-3, 3e-3)
    untuned = 1e-3  # torch.optim.Adam's default
    best = ("linear", 3e-3)

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


def oriented(patches: Tensor) -> Tensor:
    """How much of each patch's gradient points in each of eight directions, (n, 8), nearly unit.

    Flat patches are near 0, where the direction of a gradient is noise.
    """
    grey = patches.mean(1)
    right = grey[:, 1:-1, 2:] - grey[:, 1:-1, :-2]
    down = grey[:, 2:, 1:-1] - grey[:, :-2, 1:-1]
    length, angle = torch.hypot(right, down), torch.atan2(down, right) % torch.pi
    sector = (angle * 8 / torch.pi).long() % 8
    shares = torch.stack([(length * (sector == k)).mean((1, 2)) for k in range(8)], 1)
    return shares / (shares.norm(dim=1, keepdim=True) + 0.02)


def convolution(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """3 x 3, with batch normalization."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class Patches(Task):
    """Three convolutions with batch normalization tell which way a patch of a photograph runs.

    Patches are cut from scikit-learn's two sample images. The classes are twelve clusters of their
    `oriented`, before contrast, tint and pixels are disturbed at random. Both images are split into
    ten stripes, three of which are held out.
    """

    name = "patches"
    steps, every = 1000, 25
    rates = (1e-3, 3e-3, 1e-2, 3e-2)
    untuned = 1e-3  # torch.optim.Adam's default
    best = ("tail", 1e-2)
    size, stripe = 16, 64
    classes = 12

    @cached_property
    def _images(self) -> Tensor:
        from sklearn.datasets import load_sample_images

        images = [torch.tensor(image) for image in load_sample_images().images]
        return torch.stack(images).float() / 255  # (2, 427, 640, 3)

    @cached_property
    def _centres(self) -> Tensor:
        from sklearn.cluster import KMeans

        found = oriented(self._cut(4000, False, generator(0, 0)))
        means = KMeans(self.classes, n_init=1, random_state=0).fit(found.numpy())
        return torch.tensor(means.cluster_centers_)

    def _cut(self, n: int, held: bool, draw: torch.Generator) -> Tensor:
        """Patches (n, 3, size, size) from the stripes that are held out, or from the others."""
        images, size = self._images, self.size
        stripes = torch.tensor([k for k in range(10) if (k % 3 == 1) == held])

        def below(bound: int) -> Tensor:
            return torch.randint(bound, (n,), generator=draw)

        image, top = below(len(images)), below(images.shape[1] - size + 1)
        left = stripes[below(len(stripes))] * self.stripe + below(self.stripe - size + 1)
        rows, columns = (start[:, None] + torch.arange(size) for start in (top, left))
        patches = images[image[:, None, None], rows[:, :, None], columns[:, None, :]]
        return patches.permute(0, 3, 1, 2)

    def _drawn(self, n: int, held: bool, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        patches = self._cut(n, held, draw)
        labels = torch.cdist(oriented(patches), self._centres).argmin(1)
        # To one mean and nearly one deviation: a few patches of strong contrast among many of sky
        # would make the running statistics of small batches jump.
        spread, centre = torch.std_mean(patches, (1, 2, 3), keepdim=True)
        contrast = 0.3 + 0.3 * torch.rand(n, 1, 1, 1, generator=draw)
        tint = 0.3 * torch.rand(n, 3, 1, 1, generator=draw) - 0.15
        noise = 0.1 * torch.randn(patches.shape, generator=draw)
        return (patches - centre) / (spread + 0.1) * contrast + tint + noise, labels

    def model(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(
            convolution(3, 24, 1),
            convolution(24, 48, 2),
            convolution(48, 96, 2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(96, self.classes),
        )

    def batch(self, seed: int, step: int) -> tuple[Tensor, Tensor]:
        return self._drawn(64, False, generator(seed, step))

    def loss(self, model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
        return cross_entropy(model(batch[0]), batch[1])

    @cached_property
    def held_out(self) -> list[Any]:
        return [self._drawn(1000, True, generator(0, 0))]
