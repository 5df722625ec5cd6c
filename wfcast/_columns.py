"""User input -> columns: what the C core reads, without a copy.

A *column* is one checkpoint of all rows: an array of any shape and strides of float64, float32,
float16 or bfloat16. The core sees a `numpy.ndarray` and, for bfloat16, its bits as uint16. This
module is the only place that knows NumPy, ml_dtypes, pandas and torch objects apart. It imports
neither torch nor ml_dtypes: an object of theirs can only reach us when they are loaded already.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, MappingView, Sequence, Set
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ._errors import DtypeError, WfcastError

Array = npt.NDArray[Any]

FLOATS = ("float64", "float32", "float16", "bfloat16")
EXPECTED = "float64, float32, float16 or bfloat16"


class Label(NamedTuple):
    """What a message calls a column: the argument that holds it ("X"; "" for none), and which."""

    argument: str
    column: str

    def __str__(self) -> str:
        return f"{self.argument}: {self.column}" if self.argument else self.column


@dataclass(frozen=True, slots=True)
class Column:
    """One checkpoint of all rows.

    Attributes
    ----------
    array : ndarray
        What the core reads or writes; uint16 where `dtype` is ``"bfloat16"``.
    dtype : str
        One of `FLOATS`.
    owner : ndarray or torch.Tensor
        The object that the user would recognise; new columns are made like it.
    """

    array: Array
    dtype: str
    owner: Any


@dataclass(frozen=True, slots=True)
class Columns:
    """Columns of one shape, and the form in which they came.

    Attributes
    ----------
    columns : list of Column
    shape : tuple of int
        The shape of every column; rows are its elements in C order.
    matrix : ndarray, torch.Tensor or None
        The 2-D (or 1-D) object that the columns are views of; None where they came one by one.
    flat : bool
        Whether `matrix` was 1-D: a single target, as scikit-learn's estimators take it.
    labels : list of Label
        What a message calls each column.
    """

    columns: list[Column]
    shape: tuple[int, ...]
    matrix: Any
    flat: bool
    labels: list[Label]

    @property
    def arrays(self) -> list[Array]:
        """The arrays that the core reads or writes."""
        return [c.array for c in self.columns]

    @property
    def rows(self) -> int:
        """The number of rows N."""
        return math.prod(self.shape)


# ---- one column -------------------------------------------------------------------------------


def is_tensor(value: object) -> bool:
    """Whether `value` is a torch tensor (without importing torch)."""
    tensor = getattr(sys.modules.get("torch"), "Tensor", None)
    return tensor is not None and isinstance(value, tensor)


def is_sharded(value: object) -> bool:
    """Whether `value` is a DTensor, of which this process may hold but a part."""
    return is_tensor(value) and hasattr(value, "device_mesh") and hasattr(value, "to_local")


def is_module(value: object) -> bool:
    """Whether `value` is a torch module (without importing torch)."""
    nn = getattr(sys.modules.get("torch"), "nn", None)
    return nn is not None and isinstance(value, nn.Module)


def is_arraylike(value: object) -> bool:
    """Whether `value` is an array of its own: a column when it stands in a sequence."""
    if isinstance(value, np.ndarray) or is_tensor(value):
        return True
    if isinstance(value, np.generic | type):
        return False
    return hasattr(value, "__array__") or _is_sparse(value)


def column(value: Any, what: str) -> Column:
    """`value` as one column; `what` is its name in messages ("X: column 1").

    Raises
    ------
    DtypeError
        For anything but a dense CPU array of float64, float32, float16 or bfloat16.
    """
    return _tensor_column(value, what) if is_tensor(value) else _array_column(value, what)


def _tensor_column(tensor: Any, what: str) -> Column:
    torch = sys.modules["torch"]
    if is_sharded(tensor):
        raise DtypeError(
            f"{what} is a DTensor, of which a process may hold but a part: call .full_tensor()"
        )
    kind = tensor.device.type
    if kind == "meta":
        raise DtypeError(
            f"{what} is a tensor on the meta device, which holds no values: "
            "load its weights on the CPU first"
        )
    if tensor.is_quantized:
        raise DtypeError(
            f"{what} is a quantized tensor ({tensor.dtype}); expected {EXPECTED}: "
            "call .dequantize()"
        )
    if tensor.layout is not torch.strided:
        raise DtypeError(
            f"{what} is a sparse tensor ({tensor.layout}), expected a dense one: call .to_dense()"
        )
    if kind != "cpu":
        raise DtypeError(
            f"{what} is on the device '{tensor.device}', expected the CPU: call .cpu()"
        )
    name = str(tensor.dtype).removeprefix("torch.")
    if name not in FLOATS:
        raise _dtype_error(name, what, ".to(torch.float32)")
    owner = tensor.detach()
    try:
        plain = owner.view(torch.int16) if name == "bfloat16" else owner
        array = plain.numpy()
    except (RuntimeError, TypeError) as error:
        raise DtypeError(f"{what} has no plain memory that NumPy can see: {error}") from error
    check_memory(owner, what)
    return Column(array.view(np.uint16) if name == "bfloat16" else array, name, owner)


def check_memory(tensor: Any, what: str) -> None:
    """Raise DtypeError for a dense tensor that is larger than what is left of its storage."""
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    end = (tensor.storage_offset() + last + 1) * tensor.element_size()
    held = tensor.untyped_storage().nbytes()
    if tensor.numel() and end > held:
        raise DtypeError(
            f"{what} has lost its memory: its storage holds {held} bytes, expected {end}; "
            "gather the weights of a sharded model first"
        )


def _array_column(value: Any, what: str) -> Column:
    array = as_ndarray(value, what)
    name = dtype_name(array.dtype)
    if name not in FLOATS:
        raise _dtype_error(name, what, ".astype(numpy.float32)")
    if not array.dtype.isnative:
        raise DtypeError(
            f"{what} has the byte order of another machine ({array.dtype.str}): "
            "convert it with a.astype(a.dtype.newbyteorder('='))"
        )
    return Column(array.view(np.uint16) if name == "bfloat16" else array, name, array)


def as_ndarray(value: Any, what: str) -> Array:
    """`value` as a plain ndarray over the same memory, or a clear error."""
    if _is_sparse(value):
        raise DtypeError(
            f"Sparse data is not supported: {what} is a {type(value).__name__}, "
            "expected a dense array: call .toarray()"
        )
    if isinstance(value, np.ma.MaskedArray):
        raise DtypeError(f"{what} is a masked array, expected a plain one: call .filled()")
    try:
        return np.asarray(value)
    except (TypeError, ValueError) as error:
        raise DtypeError(f"{what} is no array: {error}") from error


def dtype_name(dtype: np.dtype[Any]) -> str:
    """The name of a dtype as torch and safetensors users know it; "structured" for records."""
    return "structured" if dtype.names is not None else dtype.name


def _is_sparse(value: object) -> bool:
    module = type(value).__module__ or ""
    return module.startswith("scipy.sparse") or (
        hasattr(value, "tocsr") and hasattr(value, "toarray")
    )


def _dtype_error(name: str, what: str, convert: str) -> DtypeError:
    if name.startswith("complex"):
        return DtypeError(
            f"Complex data not supported: {what} has dtype {name}, expected {EXPECTED}"
        )
    if name.startswith(("object", "str", "bytes", "structured", "void", "datetime", "timedelta")):
        kind = "no numbers" if name != "object" else "Python objects"
        return DtypeError(f"{what} holds {kind} (dtype {name}), expected {EXPECTED}")
    return DtypeError(
        f"{what} has dtype {name}, expected {EXPECTED}; where that is meant, "
        f"convert it with {convert}"
    )


# ---- many columns -----------------------------------------------------------------------------


_NO_SEQUENCE = (str, bytes, Mapping, Set, MappingView, Iterator)


def acquire(data: Any, name: str, *, flat: bool = False) -> Columns:
    """A 2-D array, a DataFrame or a sequence of equally shaped arrays as columns.

    Parameters
    ----------
    data : array of shape (N, k), or sequence of k equally shaped arrays
        A plain nested list of floats is a 2-D array.
    name : str
        What a message calls it ("X").
    flat : bool
        Whether a 1-D array is a single column. Integers are taken there, and there alone, as
        scikit-learn's regressors take them.
    """
    if data is None:
        raise WfcastError(
            f"Expected array-like (array or non-string sequence), got None for {name}"
        )
    if isinstance(data, _NO_SEQUENCE) and not _is_sparse(data):
        raise DtypeError(
            f"{name} is a {type(data).__name__}, expected a 2-D array or a sequence of arrays"
        )
    if isinstance(data, Sequence) and not isinstance(data, memoryview):
        values = list(data)
        alike = [is_arraylike(value) for value in values]
        if any(alike):
            return _sequence(values, alike, name)
    if hasattr(data, "iloc") and hasattr(data, "columns"):
        return _frame(data, name)
    whole = data if is_tensor(data) else as_ndarray(data, name)
    if flat and whole.ndim == 1:
        if not is_tensor(whole) and whole.dtype.kind in "iu":
            whole = whole.astype(np.float64)
        one = column(whole, name)
        labels = [Label(name, "column 0")]
        return _checked(Columns([one], tuple(one.array.shape), one.owner, True, labels), name)
    if whole.ndim != 2:
        raise WfcastError(
            f"Expected 2D array, got {whole.ndim}D array instead: {name} has shape "
            f"{tuple(whole.shape)}. Reshape your data to (rows, columns), or pass a list of "
            "arrays, one per checkpoint."
        )
    both = column(whole, name)
    views = [Column(both.array[:, k], both.dtype, both.owner) for k in range(whole.shape[1])]
    labels = [Label(name, f"column {k}") for k in range(len(views))]
    return _checked(Columns(views, (whole.shape[0],), both.owner, False, labels), name)


def _sequence(data: list[Any], alike: list[bool], name: str) -> Columns:
    if not all(alike):
        k = alike.index(False)
        raise DtypeError(
            f"{name}: column {k} is a {type(data[k]).__name__}, but column "
            f"{alike.index(True)} is an array; expected one array per checkpoint"
        )
    labels = [Label(name, f"column {k}") for k in range(len(data))]
    columns = [column(value, str(label)) for value, label in zip(data, labels, strict=True)]
    shape = columns[0].array.shape
    for one, label in zip(columns, labels, strict=True):
        if one.array.shape != shape:
            raise WfcastError(
                f"{label} has shape {one.array.shape}, but column 0 has {shape}; "
                "all columns of one call have one shape"
            )
    return _checked(Columns(columns, shape, None, False, labels), name)


def _frame(data: Any, name: str) -> Columns:
    labels = [Label(name, f"column {k} ({title!r})") for k, title in enumerate(data.columns)]
    columns = [column(data.iloc[:, k].to_numpy(), str(label)) for k, label in enumerate(labels)]
    matrix = columns[-1].owner if columns else np.empty(data.shape)
    return _checked(Columns(columns, (len(data),), matrix, False, labels), name)


def _checked(columns: Columns, name: str) -> Columns:
    k, n = len(columns.columns), columns.rows
    shape = (n, k)
    if k == 0:
        raise WfcastError(
            f"{name} holds no columns: Found array with 0 feature(s) (shape={shape}) "
            "while a minimum of 1 is required."
        )
    if n == 0:
        raise WfcastError(
            f"{name} holds no rows: Found array with 0 sample(s) (shape={shape}) "
            "while a minimum of 1 is required."
        )
    return columns


def shape_text(columns: Columns) -> str:
    """The shape of columns as a message puts it."""
    if columns.matrix is not None:
        return f"{columns.rows} rows"
    return f"columns of shape {columns.shape}"


# ---- new columns ------------------------------------------------------------------------------


def new_like(like: Column, what: str) -> Column:
    """An uninitialised column with the shape, dtype and kind of `like`."""
    if is_tensor(like.owner):
        return column(sys.modules["torch"].empty_like(like.owner), what)
    owner = like.owner
    if like.dtype == "bfloat16" and owner.dtype == np.uint16:
        return column(empty_bfloat16(owner.shape, what), what)
    return column(np.empty_like(owner, subok=False), what)


def empty_bfloat16(shape: tuple[int, ...], what: str) -> Any:
    """An uninitialised bfloat16 array: NumPy's with ml_dtypes, else torch's."""
    try:
        import ml_dtypes
    except ImportError:
        pass
    else:
        return np.empty(shape, dtype=ml_dtypes.bfloat16)
    try:
        import torch
    except ImportError:
        raise WfcastError(
            f"{what} is bfloat16, which NumPy has no dtype for: install ml_dtypes "
            "or torch, or forecast file to file"
        ) from None
    return torch.empty(shape, dtype=torch.bfloat16, device="cpu")


def outputs(like: Columns, m: int, out: Any, flat: bool) -> tuple[Any, list[Array]]:
    """Where predict writes: the object to return, and its m columns.

    Parameters
    ----------
    like : Columns
        The inputs: without `out`, the result has their form, and the dtype of the last of them.
    m : int
        The number of targets.
    out : None, array or sequence of arrays
    flat : bool
        Whether the fit saw a 1-D Y, so that a matrix in gives a 1-D array out.
    """
    if out is not None:
        return out, _given(like, m, out, flat)
    if like.matrix is None:
        fresh = [new_like(like.columns[-1], f"output column {j}") for j in range(m)]
        return [c.owner for c in fresh], [c.array for c in fresh]
    shape = (like.rows,) if flat else (like.rows, m)
    matrix: Any
    if is_tensor(like.matrix):
        matrix = sys.modules["torch"].empty(shape, dtype=like.matrix.dtype, device="cpu")
    else:
        flags = like.matrix.flags
        order = "F" if flags.f_contiguous and not flags.c_contiguous else "C"
        matrix = np.empty(shape, dtype=like.matrix.dtype, order=order)  # type: ignore[call-overload]
    whole = column(matrix, "the output").array
    return matrix, [whole] if flat else [whole[:, j] for j in range(m)]


def _given(like: Columns, m: int, out: Any, flat: bool) -> list[Array]:
    if isinstance(out, list | tuple):
        if len(out) != m:
            raise WfcastError(f"out holds {len(out)} arrays, expected {m}, one per target")
        return [_writable(value, f"out: column {j}", (like.shape,)) for j, value in enumerate(out)]
    accepted: list[tuple[int, ...]] = []
    if len(like.shape) == 1 and not (flat and like.matrix is not None):
        accepted.append((like.rows, m))
    if m == 1 and (flat or like.matrix is None):
        accepted.insert(0, like.shape)
    if not accepted:
        raise WfcastError(
            f"out is a single {type(out).__name__}, expected a list of {m} arrays "
            f"of shape {like.shape}, one per target"
        )
    whole = _writable(out, "out", tuple(accepted))
    return [whole] if whole.shape == like.shape else [whole[:, j] for j in range(m)]


def _writable(value: Any, what: str, shapes: tuple[tuple[int, ...], ...]) -> Array:
    if not (isinstance(value, np.ndarray) or is_tensor(value)):
        raise DtypeError(
            f"{what} is a {type(value).__name__}, expected an array or tensor to write into"
        )
    array = column(value, what).array
    if array.shape not in shapes:
        wanted = " or ".join(str(s) for s in shapes)
        raise WfcastError(f"{what} has shape {array.shape}, expected {wanted}")
    if not array.flags.writeable:
        raise WfcastError(f"{what} is read-only, expected an array to write into")
    return array


# ---- slices and values ------------------------------------------------------------------------


def blocks(shape: tuple[int, ...], limit: int) -> Iterator[tuple[tuple[Any, ...], int, int]]:
    """Cut an array of `shape` into views of at most `limit` elements, in C order.

    Yields
    ------
    index : tuple
        Indexes the view; it keeps the number of dimensions.
    start : int
        The C-order position of the view's first element in the whole array. The elements of a
        view follow each other in the whole array's C order.
    size : int
        The number of elements of the view.
    """
    yield from _blocks(shape, limit, (), 0)


def _blocks(
    shape: tuple[int, ...], limit: int, prefix: tuple[slice, ...], start: int
) -> Iterator[tuple[tuple[Any, ...], int, int]]:
    total = math.prod(shape)
    if total <= limit:
        if total:
            yield (*prefix, ...), start, total
        return
    inner = math.prod(shape[1:])
    step = max(1, limit // inner)
    for i in range(0, shape[0], step):
        stop = min(i + step, shape[0])
        here, at = (*prefix, slice(i, stop)), start + i * inner
        if stop - i == 1 and inner > limit:
            yield from _blocks(shape[1:], limit, here, at)
        else:
            yield (*here, ...), at, (stop - i) * inner


def value_at(array: Array, row: int) -> float:
    """The element of a column at a C-order position, for a message."""
    value = array[np.unravel_index(row, array.shape)]
    if array.dtype == np.uint16:
        return float(np.uint32(int(value) << 16).view(np.float32))
    return float(value)


def row_text(shape: tuple[int, ...], row: int) -> str:
    """Which row, and where it lies in columns of more than one dimension."""
    if len(shape) < 2:
        return f"row {row}"
    return f"row {row} at index {tuple(int(i) for i in np.unravel_index(row, shape))}"
