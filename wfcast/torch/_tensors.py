"""The parameters that are forecast, and sums over them: in the core on the CPU, in torch elsewhere.

Only the part of a parameter that this process holds is ever touched: the whole of it, or its shard
of a DTensor (FSDP2, tensor parallel).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
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

# On a device, in elements: what is worked on at once, of one tensor and of several, and how much of
# a tensor one row of a product holds.
PIECE, BATCH, CHUNK = 1 << 22, 1 << 26, 1 << 10


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
    if shard is None:
        return tensor.detach()
    with torch.no_grad():
        part: torch.Tensor = shard().detach()
        return part


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
    rows: Iterable[tuple[str, Sequence[torch.Tensor], Sequence[torch.Tensor] | None]],
) -> Vector:
    """``sum_i a_i b_i`` of each pair of tensors, for each of several parameters.

    Parameters
    ----------
    rows : iterable of (name, p tensors, m tensors or None)
        Of one parameter each, taken one at a time; None stands for the p tensors again.

    Returns
    -------
    (n, p, m) array of float64

    Raises
    ------
    ValueError
        NaN or infinity.
    """
    names: list[str] = []
    results: list[Vector] = []
    elsewhere: dict[torch.device, list[tuple[int, torch.Tensor]]] = {}
    for name, left, right in rows:
        every = [*left, *(right or ())]
        sums = np.zeros((len(left), len(left if right is None else right)))
        if left[0].numel() == 0:
            pass
        elif on_cpu(every):
            y = None if right is None else [_array(t) for t in right]
            try:
                sums = _core.gram([_array(t) for t in left], y, threads(None))
            except _core.NonFinite:
                sums[:] = np.nan
        else:
            device = next((t.device for t in every if t.device.type != "cpu"), left[0].device)
            elsewhere.setdefault(device, []).append((len(names), _gram(device, left, right)))
        names.append(name)
        results.append(sums)
    for found in elsewhere.values():  # one wait per device
        there = torch.stack([gram for _, gram in found]).cpu().numpy()
        for (i, _), gram in zip(found, there, strict=True):
            results[i] = gram
    for name, sums in zip(names, results, strict=True):
        if not np.isfinite(sums).all():
            raise ValueError(f"{name}: NaN or infinity in a tensor")
    return np.array(results)


def _gram(
    device: torch.device, left: Sequence[torch.Tensor], right: Sequence[torch.Tensor] | None
) -> torch.Tensor:
    """What `_core.gram` gives, left on a device; in float64, by chunks that keep all of it busy."""
    there: dict[int, torch.Tensor] = {}

    def flat(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        for t in tensors:
            if id(t) not in there:
                there[id(t)] = t.to(device, non_blocking=True).flatten()
        return [there[id(t)] for t in tensors]

    a = flat(left)
    b = None if right is None else flat(right)
    sums = []
    for begin in range(0, a[0].numel(), PIECE):
        x = torch.stack([t[begin : begin + PIECE] for t in a]).double()
        y = x if b is None else torch.stack([t[begin : begin + PIECE] for t in b]).double()
        tail = x.shape[1] % CHUNK
        whole = x.shape[1] - tail
        if whole:
            rows = x[:, :whole].view(len(x), -1, CHUNK).transpose(0, 1)
            others = y[:, :whole].view(len(y), -1, CHUNK).permute(1, 2, 0)
            sums.append(torch.bmm(rows, others).sum(0))
        if tail:
            sums.append(x[:, whole:] @ y[:, whole:].T)
    return torch.stack(sums).sum(0) if len(sums) > 1 else sums[0]


Row = tuple[str, torch.Tensor, Sequence[torch.Tensor], tuple[Vector, float]]


def combine(rows: Iterable[Row]) -> None:
    """``out = sum_k a_k states_k + b`` in place for each of several parameters, rounded once.

    Parameters
    ----------
    rows : iterable of (name, out, p states, (a, b))
        Taken one at a time; `out` may be one of its own states, a is an array (p,).

    Raises
    ------
    WfcastError
        NaN or infinity in a state, or a result beyond the dtype of its `out`; others may have been
        written by then.
    """
    waiting: list[Row] = []  # for one device
    largest: dict[torch.device, list[tuple[str, torch.Tensor]]] = {}

    def flush() -> None:
        if waiting:
            found = largest.setdefault(waiting[0][1].device, [])
            found += zip([name for name, *_ in waiting], _combined(waiting), strict=True)
            waiting.clear()

    for row in rows:
        name, out, states, (a, b) = row
        if out.numel() == 0:
            continue
        if on_cpu([out, *states]):
            apply(
                [_array(s) for s in states],
                [_array(out)],
                np.ascontiguousarray(a, dtype=np.float64).reshape(1, -1),
                np.array([b], dtype=np.float64),
                check_finite=True,
                n_threads=None,
                inputs=[name] * len(states),
                outputs=[name],
            )
            continue
        if waiting and (
            out.device != waiting[0][1].device
            or sum(r[1].numel() for r in waiting) + out.numel() > BATCH
        ):
            flush()
        waiting.append(row)
    flush()
    for found in largest.values():  # one wait per device
        finite = torch.stack([value for _, value in found]).isfinite().tolist()
        for (name, value), fine in zip(found, finite, strict=True):
            if not fine:
                raise WfcastError(
                    f"{name}: the forecast holds NaN or infinity, or overflows {value.dtype}"
                )


def _combined(rows: Sequence[Row]) -> Sequence[torch.Tensor]:
    """`combine` on a device, a few operations for all of them; the largest magnitude of each."""
    outs = [out for _, out, _, _ in rows]
    dtypes = [
        torch.float64 if torch.float64 in (out.dtype, states[-1].dtype) else torch.float32
        for _, out, states, _ in rows
    ]
    total: tuple[torch.Tensor, ...] = ()
    for k in range(len(rows[0][2])):
        moved = [
            states[k].to(out.device, dtype, non_blocking=True)
            for (_, out, states, _), dtype in zip(rows, dtypes, strict=True)
        ]
        scaled = torch._foreach_mul(moved, [float(a[k]) for *_, (a, _) in rows])
        if total:
            torch._foreach_add_(total, scaled)
        else:
            total = scaled
    if any(b for *_, (_, b) in rows):
        torch._foreach_add_(total, [b for *_, (_, b) in rows])
    rounded = [t.to(out.dtype) for t, out in zip(total, outs, strict=True)]
    torch._foreach_copy_(outs, rounded)
    return torch._foreach_norm(rounded, math.inf)


def _array(tensor: torch.Tensor) -> Any:
    return column(tensor, "a parameter").array
