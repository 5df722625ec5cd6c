"""The parameters that are forecast, and sums over them: in the core on the CPU, in torch elsewhere.

Only the part of a parameter that this process holds is ever touched: the whole of it, or its shard
of a DTensor (FSDP2, tensor parallel).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from .. import _core
from .._apply import apply
from .._columns import EXPECTED, FLOATS, Label, column
from .._errors import DtypeError, WfcastError
from .._parameters import threads
from .._patterns import Patterns, chosen
from . import distributed

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


def all_names(model: torch.nn.Module) -> dict[str, list[str]]:
    """Every parameter's bare names by its first one; a tied parameter has several."""
    names: dict[str, list[str]] = {}
    first: dict[int, str] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        names.setdefault(first.setdefault(id(p), bare(name)), []).append(bare(name))
    return names


def share(tensor: torch.Tensor) -> float:
    """One over the number of processes that hold the same elements: sums count them once."""
    if not distributed.active():
        return 1.0
    pieces = 1
    mesh: Any = getattr(tensor, "device_mesh", None)
    for dim, placement in enumerate(getattr(tensor, "placements", ())):
        if placement.is_shard():
            pieces *= mesh.size(dim)
    return pieces / distributed.size()


def select(
    model: torch.nn.Module,
    optimizer: Any,
    include: Patterns | None,
    exclude: Patterns | None,
) -> list[Slot]:
    """The trainable parameters of a model that the optimizer steps and the patterns allow.

    Raises
    ------
    WfcastError
        None is left, a pattern matches no parameter, or the optimizer steps something else.
    DtypeError
        A parameter without values, sparse, quantized, or of an unknown dtype.
    """
    allowed = chosen(all_names(model), include, exclude, "parameters of the model")
    named = {bare(name): p for name, p in model.named_parameters() if p.requires_grad}
    stepped = [p for group in optimizer.param_groups for p in group["params"]]
    ids = {id(p) for p in stepped}
    if any(id(p) in ids for p in named.values()):
        slots = [Slot(n, p) for n, p in named.items() if id(p) in ids]
        still = {n: p for n, p in named.items() if id(p) not in ids and n in allowed}
        _check_no_masters(model, still, stepped)
    else:
        slots = _masters(named, stepped)
    left = [s for s in slots if s.name in allowed]
    if not left:
        raise WfcastError(
            f"no parameter is left to forecast: the optimizer steps {len(slots)}, include is "
            f"{include!r} and exclude is {exclude!r}"
        )
    for slot in left:
        check_slot(slot)
    return left


def _masters(named: Mapping[str, torch.Tensor], stepped: list[torch.Tensor]) -> list[Slot]:
    """Master copies in the optimizer are told by order, shape, and precision or place."""
    shapes = [tuple(p.shape) for p in named.values()]
    if shapes != [tuple(p.shape) for p in stepped]:
        raise WfcastError(
            "the optimizer steps none of the model's parameters, nor master copies of them: "
            f"it holds {len(stepped)} tensors, the model {len(named)} trainable parameters"
        )
    slots = [Slot(n, m, (p,)) for (n, p), m in zip(named.items(), stepped, strict=True)]
    pairs = [(slot.parameter, slot.copies[0]) for slot in slots]
    if not any(m.itemsize > p.itemsize or m.device != p.device for m, p in pairs):
        raise WfcastError(
            "the optimizer steps other tensors than the model's, of the same shapes and no more "
            "precise: make it from the parameters of this model, not of a copy"
        )
    for slot in slots:
        with torch.no_grad():
            rounded = local(slot.parameter).to(local(slot.copies[0]))
            if not rounded.equal(local(slot.copies[0])):
                raise WfcastError(
                    f"the optimizer steps other tensors than the model's, and that in the place of "
                    f"{slot.name!r} has other values, so it is no master copy of it: make it from "
                    "the parameters of this model"
                )
    return slots


def _check_no_masters(
    model: torch.nn.Module, still: Mapping[str, torch.Tensor], stepped: list[torch.Tensor]
) -> None:
    """Raise WfcastError where parameters that are not stepped seem to have master copies that are.

    They would stand still while the others jump.
    """
    own = {id(p) for p in model.parameters()}
    foreign = [p for p in stepped if id(p) not in own]
    found = [
        name
        for name, p in still.items()
        if any(m.shape == p.shape and m.itemsize > p.itemsize for m in foreign)
    ]
    if found:
        raise WfcastError(
            f"the optimizer steps some parameters of the model and master copies of others, it "
            f"seems, of {found[0]!r} first: make it with master copies of all, or exclude the "
            f"{len(found)} that have them, which then do not jump"
        )


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


def movements(rows: Iterable[tuple[str, Sequence[torch.Tensor]]]) -> Vector:
    """``sum_i d_i e_i`` of each pair of movements, for each of several parameters.

    Parameters
    ----------
    rows : iterable of (name, 2 k tensors)
        The states before and after each of k movements.

    Returns
    -------
    (n, k, k) array of float64

    Raises
    ------
    ValueError
        NaN or infinity.
    """
    rows = list(rows)
    k = len(rows[0][1]) // 2
    step = np.zeros((k, 2 * k))
    step[np.arange(k), 2 * np.arange(k)] = -1
    step[np.arange(k), 2 * np.arange(k) + 1] = 1
    result = np.zeros((len(rows), k, k))
    pairs = [(i, j) for i in range(k) for j in range(i, k)]
    elsewhere: dict[torch.device, list[tuple[list[int], torch.Tensor]]] = {}
    for device, batch in _batches(enumerate(rows), lambda row: row[1][1]):
        places = [i for i, _ in batch]
        if device is None:
            sums = products((name, states, None) for _, (name, states) in batch)
            result[places] = step @ sums @ step.T
        else:
            norms = _norms([states for _, (_, states) in batch], device, pairs)
            elsewhere.setdefault(device, []).append((places, norms))
    for found in elsewhere.values():  # one wait per device
        squares = torch.cat([norms for _, norms in found], 1).cpu().double().numpy() ** 2
        places = [i for some, _ in found for i in some]
        for (i, j), values in zip(pairs, squares, strict=True):
            result[places, i, j] = result[places, j, i] = values
        for i, j in pairs:  # 2 d e = |d + e|^2 - |d|^2 - |e|^2
            if i != j:
                result[places, i, j] -= result[places, i, i] + result[places, j, j]
                result[places, i, j] /= 2
                result[places, j, i] = result[places, i, j]
    for (name, _), sums in zip(rows, result, strict=True):
        if not np.isfinite(sums).all():
            raise ValueError(f"{name}: NaN or infinity in a tensor")
    return result


def _norms(
    rows: Sequence[Sequence[torch.Tensor]], device: torch.device, pairs: Sequence[tuple[int, int]]
) -> torch.Tensor:
    """The norms of the movements and of their sums, (pairs, rows), by a few operations for all."""
    there: dict[int, torch.Tensor] = {}  # one movement ends where the next begins

    def wide(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in there:
            there[id(tensor)] = _widened(tensor, device)
        return there[id(tensor)]

    ends = [[wide(states[e]) for states in rows] for e in range(len(rows[0]))]
    moves = [
        torch._foreach_sub(after, before)
        for before, after in zip(ends[::2], ends[1::2], strict=True)
    ]
    sums = [moves[i] if i == j else torch._foreach_add(moves[i], moves[j]) for i, j in pairs]
    return torch.stack([torch.stack(torch._foreach_norm(part)) for part in sums])


def _widened(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """On a device, in float32 or float64."""
    dtype = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    return tensor.to(device, dtype, non_blocking=True)


R = TypeVar("R")


def _batches(
    rows: Iterable[R], tensors: Callable[[R], Sequence[torch.Tensor]]
) -> Iterator[tuple[torch.device | None, list[R]]]:
    """Rows with elements: one by one for the core, and for another device as many in a row as hold
    `BATCH` elements.
    """
    batch: list[R] = []
    device: torch.device | None = None
    size = 0
    for row in rows:
        held = tensors(row)
        n = held[0].numel()
        if n == 0:
            continue
        here = None
        if not on_cpu(held):
            here = next((t.device for t in held if t.device.type != "cpu"), held[0].device)
        if batch and (here is None or here != device or size + n > BATCH):
            yield device, batch
            batch, size = [], 0
        device = here
        batch.append(row)
        size += n
    if batch:
        yield device, batch


Row = tuple[str, torch.Tensor, Sequence[torch.Tensor], tuple[Vector, float]]


def combine(rows: Iterable[Row]) -> None:
    """``out = sum_k a_k states_k + b`` in place for each of several parameters, rounded once.

    Parameters
    ----------
    rows : iterable of (name, out, p states, (a, b))
        `out` may be one of its own states; a is an array (p,).

    Raises
    ------
    WfcastError
        NaN or infinity in a state, or a result beyond the dtype of its `out`; others may have been
        written by then.
    """
    elsewhere: dict[torch.device, list[tuple[str, torch.Tensor]]] = {}
    for device, batch in _batches(rows, lambda row: (row[1], *row[2])):
        if device is not None:
            largest = zip([name for name, *_ in batch], _combined(batch, device), strict=True)
            elsewhere.setdefault(device, []).extend(largest)
            continue
        for name, out, states, (a, b) in batch:
            apply(
                [_array(s) for s in states],
                [_array(out)],
                np.ascontiguousarray(a, dtype=np.float64).reshape(1, -1),
                np.array([b], dtype=np.float64),
                check_finite=True,
                n_threads=None,
                inputs=[Label("", name)] * len(states),
                outputs=[name],
            )
    for found in elsewhere.values():  # one wait per device
        finite = torch.stack([value for _, value in found]).isfinite().tolist()
        for (name, value), fine in zip(found, finite, strict=True):
            if not fine:
                raise WfcastError(
                    f"{name}: the forecast holds NaN or infinity, or overflows {value.dtype}"
                )


def _combined(rows: Sequence[Row], device: torch.device) -> Sequence[torch.Tensor]:
    """`combine` on a device, a few operations for all of them; the largest magnitude of each."""
    outs = [out for _, out, _, _ in rows]
    total: tuple[torch.Tensor, ...] = ()
    for k in range(len(rows[0][2])):
        moved = [_widened(states[k], device) for _, _, states, _ in rows]
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
