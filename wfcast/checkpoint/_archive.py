"""A look at what torch.save wrote, before torch sees it: nothing of it is made or called.

torch believes the sizes that a zip file and the pickle in it state, and makes what they ask for.
Here the directory is held to the file, and the pickle is read with stand-ins for all classes and
functions: tensors must lie in their storages, storages in their records.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, BinaryIO, ClassVar

from .._errors import CheckpointError
from ._base import BITS, MOST

MAX_PICKLE = 100_000_000
"""The most bytes of a pickle, or of another record that is read whole."""

_DTYPES = {
    "ComplexDoubleStorage": "complex128",
    "ComplexFloatStorage": "complex64",
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "UntypedStorage": "uint8",
    "BoolStorage": "bool",
    "QInt32Storage": "qint32",
}
"""The dtype of torch's storages; others have one byte per element."""


class Window(io.RawIOBase):
    """Part of a file, of which no more than `MAX_PICKLE` bytes are read at once."""

    def __init__(self, file: BinaryIO, start: int, length: int) -> None:
        self._file, self._start, self._length, self._at = file, start, length, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence]
        if base + offset < 0:
            raise ValueError(f"a place {base + offset} before its start")
        self._at = base + offset
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        left = max(self._length - self._at, 0)
        wanted = left if size is None or size < 0 else min(size, left)
        if wanted > MAX_PICKLE:
            raise ValueError(f"it asks for {wanted} bytes at once, more than 100 MB")
        self._file.seek(self._start + self._at)
        data = self._file.read(wanted)
        self._at += len(data)
        return data


# ---- stand-ins ----------------------------------------------------------------------------------


class Inert:
    """What stands for an object of another class; everything can be done to it, nothing happens."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __call__(self, *args: Any) -> Any:
        return Inert(self.text)

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        """Take an item of a list."""

    def extend(self, values: Any) -> None:
        """Take items of a list."""


class Storage:
    """A storage: the key of its record, its bytes, the dtype of its elements.

    `place` is where its bytes begin in what was looked at; None until they were found.
    """

    def __init__(self, key: Any, count: Any, dtype: str) -> None:
        if type(count) is not int or not 0 <= count < MOST:
            raise ValueError("a storage without a number of elements below 2^63")
        self.key, self.nbytes, self.dtype = str(key), count * _width(dtype), dtype
        self.place: int | None = None


class StoredTensor(Inert):
    """A tensor that is a view of a storage.

    Attributes
    ----------
    storage : Storage
    shape : tuple of int
    dtype : str
        Torch's name of it.
    start, end : int
        The bytes of the storage that the view spans.
    contiguous : bool
        Whether they are its elements in C order and nothing else.
    nbytes : int
        The bytes of its elements.
    """

    def __init__(
        self, storage: Storage, offset: Any, shape: Any, strides: Any, dtype: str | None = None
    ) -> None:
        super().__init__("tensor")
        shape, strides = tuple(shape), tuple(strides)
        numbers = (offset, *shape, *strides)
        if len(shape) != len(strides) or any(type(n) is not int or n < 0 for n in numbers):
            raise ValueError(f"a tensor of shape {shape}, strides {strides} and offset {offset}")
        self.dtype = dtype or storage.dtype
        width = _width(self.dtype)
        count, last = 1, offset
        self.contiguous = True
        for n, s in reversed(tuple(zip(shape, strides, strict=True))):
            self.contiguous = self.contiguous and (s == count or n == 1)
            # no file holds `MOST` bytes: whatever is more need not be known
            count, last = min(count * n, MOST), min(last + (n - 1) * s, MOST)
        self.storage, self.shape = storage, shape
        self.nbytes = count * width
        self.start, self.end = offset * width, (last + 1) * width if count else 0


class Callee(Inert):
    """What stands for a class or function."""

    def __init__(self, module: str, name: str) -> None:
        super().__init__(f"{module}.{name}")
        self.module, self.name = module, name

    def __call__(self, *args: Any) -> Any:
        name = self.name
        if self.module == "torch._utils":
            if name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_qtensor"):
                return StoredTensor(*args[:4])
            if name == "_rebuild_tensor_v3":
                storage, offset, shape, strides, _, _, dtype = args[:7]
                return StoredTensor(storage, offset, shape, strides, dtype.name)
            if name in ("_rebuild_parameter", "_rebuild_parameter_with_state"):
                return args[0]
        elif self.text == "torch._tensor._rebuild_from_type_v2":
            return args[0](*args[2])
        elif self.module in ("builtins", "__builtin__") and name in ("set", "frozenset"):
            for key in args[0] if args else ():
                check_key(key)
        elif self.text == "torch.Size":
            return tuple(*args)
        elif (
            name.endswith("Tensor")
            or self.text == "builtins.bytearray"
            or self.module == "torch.storage"
        ) and not all(isinstance(a, str | bytes) or type(a) is Inert for a in args):
            # each makes as much memory as it is told to
            raise pickle.UnpicklingError(f"a call of {self.text}, which is refused")
        return Inert(self.text)


def _width(dtype: str) -> int:
    return 4 if dtype == "qint32" else max(1, BITS.get(dtype, 8) // 8)


# Python's own, in Python: the memory of the one in C grows with the numbers in the pickle
class _Reader(pickle._Unpickler):  # type: ignore[misc, name-defined, unused-ignore]
    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)  # type: ignore[attr-defined, unused-ignore]
    # reserves what the pickle asks for before it reads
    dispatch.pop(pickle.BYTEARRAY8[0], None)
    stack: list[Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]

    # Keys are hashed, and a tuple that holds another twice, and so on, takes for ever.

    def load_setitem(self) -> None:
        """Set one item of a dictionary."""
        value, key = self.stack.pop(), self.stack.pop()
        check_key(key)
        self.stack[-1][key] = value

    dispatch[pickle.SETITEM[0]] = load_setitem

    def load_setitems(self) -> None:
        """Set items of a dictionary."""
        items = self.pop_mark()
        for key, value in zip(items[::2], items[1::2], strict=True):
            check_key(key)
            self.stack[-1][key] = value

    dispatch[pickle.SETITEMS[0]] = load_setitems

    def load_dict(self) -> None:
        """Make a dictionary."""
        items = self.pop_mark()
        for key in items[::2]:
            check_key(key)
        self.append(dict(zip(items[::2], items[1::2], strict=True)))

    dispatch[pickle.DICT[0]] = load_dict

    def load_frozenset(self) -> None:
        """Make a frozen set."""
        items = self.pop_mark()
        for key in items:
            check_key(key)
        self.append(frozenset(items))

    dispatch[pickle.FROZENSET[0]] = load_frozenset

    def load_additems(self) -> None:
        """Add items to a set."""
        items = self.pop_mark()
        for key in items:
            check_key(key)
        self.stack[-1].update(items)

    dispatch[pickle.ADDITEMS[0]] = load_additems


LARGEST_KEY = 1000
"""The most parts of a key that is a tuple, those of the tuples in it included."""


def check_key(key: Any) -> None:
    """Raise UnpicklingError where a key would take long to hash."""
    todo, n = [key], 0
    while todo:
        here = todo.pop()
        n += 1
        if n > LARGEST_KEY:
            raise pickle.UnpicklingError("a key of nested tuples, which is refused")
        if isinstance(here, tuple | frozenset):
            todo.extend(here)
        elif hasattr(here, "__dict__") and not isinstance(here, type | Inert):
            todo.extend(vars(here).values())


def ordered(pairs: Any = ()) -> OrderedDict[Any, Any]:
    """An OrderedDict, as a pickle makes it of nothing, of pairs or of a dictionary."""
    made: OrderedDict[Any, Any] = OrderedDict()
    for key, value in pairs.items() if isinstance(pairs, dict) else pairs:
        check_key(key)
        made[key] = value
    return made


class _Symbolic(_Reader):
    dispatch: ClassVar[dict[int, Any]] = dict(_Reader.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in (("collections", "OrderedDict"), ("collections", "Counter")):
            return ordered
        return Callee(module, name)

    def persistent_load(self, saved: Any) -> Storage:
        _, kind, key, _, count = saved
        return Storage(key, count, _DTYPES.get(kind.name, kind.name))

    def load_newobj(self) -> None:
        """Call the stand-in: it is no class that could make an object."""
        args = self.stack.pop()
        self.stack[-1] = self.stack[-1](*args)

    dispatch[pickle.NEWOBJ[0]] = load_newobj


def read_pickle(data: bytes, find: Callable[[str, str], Any]) -> Any:
    """What a pickle holds, where `find` gives the class of (module, name)."""
    unpickler = _Reader(io.BytesIO(data))
    unpickler.find_class = find  # type: ignore[method-assign, assignment]
    return unpickler.load()


# ---- looking ------------------------------------------------------------------------------------


def examine(file: BinaryIO, start: int, length: int, what: str) -> Any:
    """What ``torch.save`` wrote at a place of a file, with stand-ins for what is no plain value.

    Raises
    ------
    CheckpointError
        It is no such zip file, its directory or its pickle contradict it, or it asks for more
        than there is.
    """
    try:
        return _examine(file, start, length)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{what} is refused, it holds {error}") from error
    except Exception as error:  # of many kinds, as the bytes may be anything
        text = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(
            f"{what} cannot be read as a zip file of torch.save: {text[0]}"
        ) from error


def _examine(file: BinaryIO, start: int, length: int) -> Any:
    window = Window(file, start, length)
    with zipfile.ZipFile(window) as archive:
        records = archive.infolist()
        sizes: dict[str, int] = {}
        starts: dict[str, int] = {}
        for record in records:
            name = record.filename
            if record.compress_type != zipfile.ZIP_STORED or record.flag_bits & 1:
                raise ValueError(f"its record {name!r} is compressed, which torch does not write")
            if record.file_size != record.compress_size:
                raise ValueError(f"its record {name!r} has two sizes")
            if name in sizes:
                raise ValueError(f"it has the record {name!r} twice")
            if record.header_offset + record.file_size > length:
                raise ValueError(f"its record {name!r} has more bytes than the file")
            if "/data/" not in name and record.file_size > MAX_PICKLE:
                raise ValueError(f"its record {name!r} is larger than 100 MB")
            sizes[name], starts[name] = record.file_size, record.header_offset
        folder = records[0].filename.partition("/")[0] if records else ""
        if f"{folder}/constants.pkl" in sizes:
            raise ValueError("it is a TorchScript archive, which holds code")
        if f"{folder}/data.pkl" not in sizes:
            raise ValueError("it has no record data.pkl")
    # not by zipfile, which refuses a wrong checksum: torch can be told to write none
    window.seek(_begin(window, starts[f"{folder}/data.pkl"], "data.pkl"))
    data = window.read(sizes[f"{folder}/data.pkl"])
    whole = _Symbolic(io.BytesIO(data), encoding="utf-8").load()
    for key, place in _tensors(whole):
        held = sizes.get(f"{folder}/data/{place.storage.key}")
        if held is None:
            raise ValueError(f"tensor {key!r} has no record data/{place.storage.key}")
        if place.storage.nbytes > held or place.end > place.storage.nbytes:
            raise ValueError(
                f"tensor {key!r}, of shape {list(place.shape)}, needs "
                f"{max(place.end, place.storage.nbytes)} bytes of the record "
                f"data/{place.storage.key}, which holds {held}"
            )
        if place.nbytes > length:
            raise ValueError(
                f"tensor {key!r}, of shape {list(place.shape)}, repeats its elements: it has "
                f"{place.nbytes} bytes, the file {length}"
            )
        if place.storage.place is None:
            name = f"data/{place.storage.key}"
            place.storage.place = _begin(window, starts[f"{folder}/{name}"], name)
            if place.storage.place + held > length:
                raise ValueError(f"its record {name!r} has more bytes than the file")
    return whole


def _begin(window: Window, header: int, name: str) -> int:
    """Where the bytes of a record begin, behind its own header."""
    window.seek(header)
    head = window.read(30)
    if head[:4] != b"PK\3\4":
        raise ValueError(f"it has no record {name} where its directory says")
    name_length, extra_length = struct.unpack("<2H", head[26:30])
    return int(header + 30 + name_length + extra_length)


def _tensors(whole: Any) -> list[tuple[Any, StoredTensor]]:
    found: list[tuple[Any, StoredTensor]] = []
    seen: set[int] = set()
    todo: list[tuple[Any, Any]] = [("", whole)]
    while todo:
        key, here = todo.pop()
        if isinstance(here, StoredTensor):
            found.append((key, here))
        elif isinstance(here, dict | list | tuple) and id(here) not in seen:
            seen.add(id(here))
            items = here.items() if isinstance(here, dict) else ((key, v) for v in here)
            todo += [(k if isinstance(k, str) else key, v) for k, v in items]
    return found
