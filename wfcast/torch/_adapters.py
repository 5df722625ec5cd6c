"""Linear combinations of LoRA's products, in torch: the tall factors stay on their device."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from .._adapters import recombined, without_zeros

__all__ = ["product"]


@torch.no_grad()
def product(
    states: Sequence[tuple[torch.Tensor, torch.Tensor]], coefficients: Sequence[float]
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""The factors of a linear combination of products: `combine_product` of tensors.

    .. math:: B A \approx \sum_k c_k B_k A_k

    Parameters
    ----------
    states : sequence of (A, B)
        Of shape (rank, in, ...) and (out, rank, ...), on one device; what follows the first two
        dimensions of B is 1. Earlier states may have other ranks.
    coefficients : sequence of float

    Returns
    -------
    A, B : Tensor
        New ones with the shapes and dtypes of the last state, computed in float64 where one of the
        tensors is, else in float32: but for the small matrices, which are of float64 on the CPU.
    """
    states, coefficients = without_zeros(states, coefficients)
    last = states[-1]
    if coefficients == [1]:
        return last[0].clone(), last[1].clone()
    wide = any(factor.dtype == torch.float64 for pair in states for factor in pair)
    dtype = torch.float64 if wide else torch.float32
    right, a = _basis([a.flatten(1).to(dtype).T for a, _ in states])
    left, b = _basis([b.flatten(1).to(dtype) for _, b in states])
    small = recombined(a, b, coefficients)
    new_a, new_b = right(torch.from_numpy(small.a)).T, left(torch.from_numpy(small.b))
    return new_a.reshape(last[0].shape).to(last[0]), new_b.reshape(last[1].shape).to(last[1])


def _basis(
    factors: Sequence[torch.Tensor],
) -> tuple[Callable[[torch.Tensor], torch.Tensor], list[npt.NDArray[np.float64]]]:
    """Orthonormal columns, as what multiplies by them, and coordinates: `wfcast._adapters`."""
    reflectors, scales = torch.geqrf(torch.cat(list(factors), dim=1))
    rank = len(scales)

    def times(small: torch.Tensor) -> torch.Tensor:
        padded = reflectors.new_zeros(len(reflectors), small.shape[1])
        padded[:rank] = small.to(padded)
        return torch.ormqr(reflectors[:, :rank], scales, padded)

    coordinates = reflectors[:rank].triu().double().cpu()
    widths = [factor.shape[1] for factor in factors]
    return times, [part.numpy() for part in coordinates.split(widths, dim=1)]
