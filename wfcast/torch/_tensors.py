"""The parameters that are forecast, and sums over them: in the core on the CPU, in torch elsewhere.

Only the part of a parameter that this process holds is ever touched: the whole of it, or its shard
of a DTensor (FSDP2, tensor parallel).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .. import _core
from .._columns import EXPECTED, FLOATS, column
from .._errors import DtypeError, WfcastError
from .._fit import apply, threads
from . import _distributed

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Slot:
    """One parameter that is forecast.

    Attributes
    ----------
    name : str
        As in the state dict of the bare model.
    parameter : torch.Tensor
        What the optimizer steps.
    copies : tuple of torch.Tensor
        The model's own parameter in lower precision, where the optimizer steps a master copy.
    """

    name: str
    parameter: torch.Tensor
    copies: tuple[torch.Tensor, ...] = ()

    @property
    def local(self) -> torch.Tensor:
        """The part that this process holds, sharing memory with the parameter."""
        return local(self.parameter)

    def spread(self) -> None:
        """Round the master copy into the model's own parameter."""
        for copy in self.copies:
            local(copy).copy_(self.local)


def local(tensor: torch.Tensor) -> torch.Tensor:
    """A detached tensor over the same memory; of a DTensor, the shard."""
    shard: Any = getattr(tensor, "to_local", None)
    with torch.no_grad():
        return (tensor if shard is None else shard()).detach()


_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def bare(name: str) -> str:
    """A parameter's name without what compiling, sharding or replicating the model put into it."""
    return ".".join(p for p in name.split(".") if p not in _WRAPPERS).removeprefix("module.")


def share(tensor: torch.Tensor) -> float:
    """One over the number of processes that hold the same elements: sums count them once."""
    if not _distributed.active():
        return 1.0
    pieces = 1
    mesh: Any = getattr(tensor, "device_mesh", None)
    for dim, placement in enumerate(getattr(tensor, "placements", ())):
        if placement.is_shard():
            pieces *= mesh.size(dim)
    return pieces / _distributed.size()


def matches(name: str, include: Sequence[str] | None, exclude: Sequence[str] | None) -> bool:
    """Whether shell patterns include a name and none excludes it."""
    if include is not None and not any(fnmatchcase(name, pattern) for pattern in include):
        return False
    return not any(fnmatchcase(name, pattern) for pattern in exclude or ())


def select(
    model: torch.nn.Module,
    optimizer: Any,
    include: Sequence[str] | None,
    exclude: Sequence[str] | None,
) -> list[Slot]:
    """The trainable parameters of a model that the optimizer steps and the patterns allow.

    Raises
    ------
    WfcastError
        None is left, or the optimizer steps something else.
    DtypeError
        A parameter without values, sparse, quantized, or of an unknown dtype.
    """
    named = {
        bare(name): p for name, p in model.named_parameters() if p.requires_grad
    }  # a tied parameter comes once
    stepped = [p for group in optimizer.param_groups for p in group["params"]]
    ids = {id(p) for p in stepped}
    if any(id(p) in ids for p in named.values()):
        slots = [Slot(n, p) for n, p in named.items() if id(p) in ids]
    else:
        slots = _masters(named, stepped)
    chosen = [s for s in slots if matches(s.name, include, exclude)]
    if not chosen:
        raise WfcastError(
            f"no parameter is left to forecast: the optimizer steps {len(slots)}, include is "
            f"{include!r} and exclude is {exclude!r}"
        )
    for slot in chosen:
        check_slot(slot)
    return chosen


def _masters(named: Mapping[str, torch.Tensor], stepped: list[torch.Tensor]) -> list[Slot]:
    """Master copies in the optimizer are told by order and shape."""
    shapes = [tuple(p.shape) for p in named.values()]
    if shapes != [tuple(p.shape) for p in stepped]:
        raise WfcastError(
            "the optimizer steps none of the model's parameters, nor master copies of them: "
            f"it holds {len(stepped)} tensors, the model {len(named)} trainable parameters"
        )
    return [Slot(n, m, (p,)) for (n, p), m in zip(named.items(), stepped, strict=True)]


def check_slot(slot: Slot) -> None:
    """Raise DtypeError for a parameter without values, sparse, quantized, or of an odd dtype."""
    for tensor in (slot.parameter, *slot.copies):
        _check(tensor, f"parameter {slot.name!r}")


def known(tensor: torch.Tensor) -> bool:
    """Whether its dtype can be forecast."""
    return not tensor.is_quantized and str(tensor.dtype).removeprefix("torch.") in FLOATS


def _check(tensor: torch.Tensor, what: str) -> None:
    name = str(tensor.dtype).removeprefix("torch.")
    if tensor.is_meta:
        raise DtypeError(f"{what} is on the meta device, which holds no values: load it first")
    if not known(tensor):
        raise DtypeError(f"{what} has dtype {name}, expected {EXPECTED}: pass exclude=[name]")
    if tensor.layout is not torch.strided:
        raise DtypeError(f"{what} is sparse ({tensor.layout}), expected a dense one")


def reshard(model: torch.nn.Module) -> None:
    """Let FSDP2 forget gathered weights, as a forward pass without a backward one leaves them.

    Else the next forward pass would not see what is written into the shards.
    """
    for module in model.modules():
        gathered: Any = module
        if hasattr(module, "set_reshard_after_forward"):
            gathered.reshard()


# ---- sums ---------------------------------------------------------------------------------------


def on_cpu(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether the core can see all of them."""
    return all(t.device.type == "cpu" for t in tensors)


def products(
    tensors: Sequence[torch.Tensor], others: Sequence[torch.Tensor] | None = None
) -> Vector:
    """``sum_i a_i b_i`` of each pair, (p, m) in float64; of `tensors` among themselves by default.

    Raises
    ------
    ValueError
        NaN or infinity.
    """
    every = [*tensors, *(others or ())]
    if on_cpu(every):
        x = [_array(t) for t in tensors]
        y = None if others is None else [_array(t) for t in others]
        try:
            return _core.gram(x, y, threads(None))
        except _core.NonFinite:
            raise ValueError("NaN or infinity in a tensor") from None
    device = next((t.device for t in every if t.device.type != "cpu"), every[0].device)
    left = [t.to(device, wide(t.dtype), non_blocking=True).flatten() for t in tensors]
    right = (
        left
        if others is None
        else [t.to(device, wide(t.dtype), non_blocking=True).flatten() for t in others]
    )
    sums = torch.stack(
        [torch.stack([(a * b).sum(dtype=torch.float64) for b in right]) for a in left]
    )
    result: Vector = sums.cpu().numpy()
    if not np.isfinite(result).all():
        raise ValueError("NaN or infinity in a tensor")
    return result


def combine(
    out: torch.Tensor,
    states: Sequence[torch.Tensor],
    coef: Vector,
    intercept: float,
    what: str,
) -> None:
    """``out = sum_k coef_k states_k + intercept`` in place, rounded once; `out` may be a state.

    Raises
    ------
    WfcastError
        NaN or infinity in a state, or a result beyond the dtype of `out`; then `out` is unchanged
        where it is one of the states.
    """
    if out.numel() == 0:
        return
    if on_cpu([out, *states]):
        apply(
            [_array(s) for s in states],
            [_array(out)],
            np.ascontiguousarray(coef, dtype=np.float64).reshape(1, -1),
            np.array([intercept], dtype=np.float64),
            check_finite=True,
            n_threads=None,
            inputs=[what] * len(states),
            outputs=[what],
        )
        return
    dtype = torch.float64 if torch.float64 in (out.dtype, states[-1].dtype) else torch.float32
    total = torch.full_like(out, intercept, dtype=dtype)
    for state, c in zip(states, coef, strict=True):
        total.add_(state.to(out.device, dtype, non_blocking=True), alpha=float(c))
    rounded = total.to(out.dtype)
    if not bool(torch.isfinite(rounded).all()):
        raise WfcastError(f"{what}: the forecast holds NaN or infinity, or overflows {out.dtype}")
    out.copy_(rounded)


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype to add up in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _array(tensor: torch.Tensor) -> Any:
    return column(tensor, "a parameter").array
