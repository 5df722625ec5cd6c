"""Files that are damaged, or made to do harm: each is an error that names what is at fault.

Nothing is written or left behind, and no memory is asked for that only the file's numbers speak of.
"""

import collections
import io
import itertools
import json
import os
import pickle
import pickletools
import resource
import struct
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import fuzz_checkpoints
import numpy as np
import pytest
from fuzz_checkpoints import contents
from safetensors.numpy import save_file

import wfcast
from wfcast.checkpoint import open_checkpoint

try:
    import torch  # an extra: wfcast itself does without
except ImportError:
    torch = None

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(wfcast.__file__).parents[1])}
HUGE = 10**15
LINE = wfcast.linear_trend((0, 4), (8,))


def good():
    return {"a": np.arange(4, dtype=np.float32), "b": np.ones((2, 3), np.float32)}


class Case(NamedTuple):
    """A later checkpoint, made by `make(folder)`, and what its error says."""

    make: Callable[[Path], Path]
    says: tuple[str, ...]
    needs_torch: bool = False


CASES: dict[str, Case] = {}


def case(name, *says, needs_torch=False):
    def keep(make):
        assert name not in CASES
        CASES[name] = Case(make, says, needs_torch)
        return make

    return keep


# ---- safetensors files --------------------------------------------------------------------------


def packed(header, data=bytes(40), length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape, start, stop, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def two(a=None, b=None, **more):
    """A header of two tensors of 16 and 24 bytes, or of others in their place."""
    return {"a": a or entry([4], 0, 16), "b": b or entry([2, 3], 16, 40), **more}


VALID = packed(two())
ENTRY_A = json.dumps(entry([4], 0, 16)).encode()
TENSOR_A, TENSOR_B = "tensor 'a'", "tensor 'b'"
FILES = {
    "empty": (b"", ("0 bytes",)),
    "short": (b"short", ("5 bytes",)),
    "eight-bytes": (bytes(8), ()),
    "header-beyond-the-file": (
        packed(two(), length=1 << 40),
        ("it begins with", "none of torch.save"),
    ),
    "header-of-2^64": (packed(two(), length=(1 << 64) - 1), ("it begins with",)),
    "header-cut-short": (packed(two(), length=50), ()),
    "no-json": (packed(b"{nothing"), ()),
    "no-utf-8": (packed(b'{"\xff": 1}'), ()),
    "a-list": (packed([1, 2]), ()),
    "deep-json": (packed(b'{"a":' * 100_000 + b"1" + b"}" * 100_000), ()),
    "long-integer": (packed(b'{"a": ' + b"9" * 10_000 + b"}"), ()),
    "twice": (
        packed(b'{"a":%b,"a":%b}' % ((json.dumps(entry([4], 0, 16)).encode(),) * 2)),
        ("'a'",),
    ),
    "twice-inside": (
        packed(b'{"a":{"dtype":"F32","shape":[4],"shape":[10],"data_offsets":[0,40]}}'),
        ("'shape'",),
    ),
    "overlap": (packed(two(b=entry([2, 3], 8, 32)), bytes(32)), ("b",)),
    "gap": (packed(two(b=entry([2, 3], 20, 44)), bytes(44)), ("b",)),
    "negative-offset": (packed(two(a=entry([4], -16, 0))), (TENSOR_A,)),
    "reversed": (packed(two(a=entry([4], 16, 0))), (TENSOR_A,)),
    "out-of-range": (packed(two(b=entry([2, 3], 16, 4000))), (TENSOR_B,)),
    "offset-of-2^64": (packed(two(b=entry([2, 3], 16, 1 << 64))), (TENSOR_B,)),
    "three-offsets": (
        packed(two(b={**entry([6], 0, 0), "data_offsets": [16, 40, 40]})),
        (TENSOR_B,),
    ),
    "bytes-do-not-match": (packed(two(b=entry([2, 4], 16, 40))), (TENSOR_B, "expected 32")),
    "dtype-does-not-match": (packed(two(b=entry([2, 3], 16, 40, "F64"))), (TENSOR_B, "48")),
    "shape-overflows": (packed(two(b=entry([1 << 62, 16], 16, 40))), (TENSOR_B,)),
    "shape-wraps-round": (packed(two(b=entry([(1 << 62) + 3, 2], 16, 40))), (TENSOR_B,)),
    "shape-is-huge": (packed(two(b=entry([HUGE], 16, 16 + 4 * HUGE))), (TENSOR_B,)),
    "negative-shape": (packed(two(b=entry([-2, -3], 16, 40))), (TENSOR_B,)),
    "shape-of-text": (packed(two(b=entry(["6"], 16, 40))), (TENSOR_B,)),
    "shape-of-fractions": (packed(two(b=entry([6.0], 16, 40))), (TENSOR_B,)),
    "unknown-dtype": (packed(two(b=entry([2, 3], 16, 40, "F99"))), (TENSOR_B, "F99")),
    "70-dimensions": (packed(two(a=entry([1] * 69 + [4], 0, 16))), ("'a'",)),
    "metadata-of-numbers": (packed(two(__metadata__={"step": 4})), ()),
    "trailing-bytes": (VALID + b"\0", ("1 bytes before the file",)),
    "truncated": (VALID[:-1], (TENSOR_B,)),
    "nan": (VALID[:-4] + struct.pack("<f", np.nan), (TENSOR_B, "nan")),
    "infinity": (VALID[:-4] + struct.pack("<f", -np.inf), (TENSOR_B, "-inf")),
    "overflow": (VALID[:-4] + struct.pack("<f", 3e38), (TENSOR_B, "step 8")),
    "other-names": (packed({"a": entry([4], 0, 16), "c": entry([2, 3], 16, 40)}), ("'b'", "'c'")),
    "other-shape": (packed(two(b=entry([3, 2], 16, 40))), ("'b'", "[3, 2]")),
    "other-dtype": (packed(two(b=entry([2, 3], 16, 40, "I32"))), (TENSOR_B, "int32")),
    "other-float": (
        packed(two(b=entry([2, 3], 16, 28, "BF16")), bytes(28)),
        (TENSOR_B, "bfloat16", "float32"),
    ),
}


def file_of(content):
    def make(folder):
        path = folder / "model.safetensors"
        path.write_bytes(content)
        return path

    return make


for name, (content, says) in FILES.items():
    one = () if name == "overflow" else ("model.safetensors",)
    CASES[f"safetensors-{name}"] = Case(file_of(content), (*one, *says))


@case("safetensors-header-over-100-MB", "model.safetensors", "100 MB")
def _(folder):
    path = file_of(packed(b"{" + b" " * 100, length=150_000_000))(folder)
    os.truncate(path, 200_000_000)  # a hole
    return path


@case("a-pipe", "model.safetensors", "no regular file")
def _(folder):
    os.mkfifo(folder / "model.safetensors")
    return folder / "model.safetensors"


# ---- shards -------------------------------------------------------------------------------------

FIRST, SECOND = "model-1.safetensors", "model-2.safetensors"
INDEX = "model.safetensors.index.json"


def shards(folder, index=None, **weight_map):
    """Two good shards, and an index of them with changes, or another one."""
    for file, name in ((FIRST, "a"), (SECOND, "b")):
        save_file({name: good()[name]}, folder / file)
    if index is None:
        index = json.dumps({"weight_map": {"a": FIRST, "b": SECOND, **weight_map}}).encode()
    (folder / INDEX).write_bytes(index)
    return folder / INDEX


INDEXES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "empty": ({"index": b""}, ()),
    "no-json": ({"index": b'{"weight_map": '}, ()),
    "no-utf-8": ({"index": b'{"weight_map": {"\xff": "x"}}'}, ()),
    "deep": ({"index": b"[" * 200_000}, ()),
    "long-integer": ({"index": b'{"weight_map": ' + b"9" * 10_000 + b"}"}, ()),
    "a-list": ({"index": b"[]"}, ("weight_map",)),
    "no-map": ({"index": b'{"metadata": {}}'}, ("weight_map",)),
    "empty-map": ({"index": b'{"weight_map": {}}'}, ("weight_map",)),
    "twice": ({"index": b'{"weight_map": {"a": "x", "a": "y"}}'}, ("'a' twice",)),
    "two-maps": ({"index": b'{"weight_map": {"a": "x"}, "weight_map": {}}'}, ("twice",)),
    "no-name": ({"a": 5}, ("weight_map",)),
    "missing-shard": ({"a": "gone.safetensors"}, ("'gone.safetensors'", "not there")),
    "missing-tensor": ({"c": SECOND}, ("'c'", SECOND)),
    "tensor-elsewhere": ({"a": SECOND}, ("'a'", SECOND)),
    "above": ({"a": "../secret.safetensors"}, ("own folder", "../secret")),
    "absolute": ({"a": "/etc/passwd"}, ("own folder", "/etc/passwd")),
    "below": ({"a": "link/model.safetensors"}, ("own folder", "link/model")),
    "backslash": ({"a": "..\\secret.safetensors"}, ("own folder", "secret")),
    "itself": ({"a": INDEX}, ("own folder", INDEX)),
    "dot": ({"a": "."}, ("own folder",)),
    "nul": ({"a": "a\0b"}, ("own folder",)),
    "surrogate": ({"a": "\ud800"}, ("not there",)),
    "long-name": ({"a": "x" * 5000}, ("not there",)),
}


def indexed(change):
    def make(folder):
        inner = folder / "inner"
        inner.mkdir()
        save_file(good(), folder / "secret.safetensors")
        (inner / "link").symlink_to(folder)
        return shards(inner, **change)

    return make


for name, (change, says) in INDEXES.items():
    CASES[f"index-{name}"] = Case(indexed(change), (INDEX, *says))


@case("index-over-100-MB", INDEX, "100 MB")
def _(folder):
    path = shards(folder)
    os.truncate(path, 1 << 40)  # a hole
    return path


@case("shard-truncated", SECOND, TENSOR_B)
def _(folder):
    path = shards(folder)
    os.truncate(folder / SECOND, os.path.getsize(folder / SECOND) - 4)
    return path


@case("shard-with-more", SECOND, "'c'")
def _(folder):
    path = shards(folder)
    save_file({"b": good()["b"], "c": good()["a"]}, folder / SECOND)
    return path


@case("shard-is-a-folder", INDEX, SECOND, "not there")
def _(folder):
    path = shards(folder)
    (folder / SECOND).unlink()
    (folder / SECOND).mkdir()
    return path


# ---- folders ------------------------------------------------------------------------------------


@case("folder-empty", "holds no finished checkpoint")
def _(folder):
    (folder / "checkpoint-4").mkdir()
    return folder / "checkpoint-4"


@case("folder-unfinished", "checkpoint-4", "holds no finished checkpoint")
def _(folder):
    here = folder / "checkpoint-4"
    here.mkdir()
    (here / "config.json").write_text("{}")
    (here / "optimizer.pt").write_bytes(b"PK")
    save_file(good(), here / ".model.safetensors.0123456789ab.tmp")
    return here


@case("folder-without-its-last-shard", SECOND, "not there")
def _(folder):
    shards(folder)
    (folder / SECOND).unlink()
    return folder


ADAPTERS = {
    "empty": b"",
    "no-json": b"{",
    "no-utf-8": b'{"\xff": 1}',
    "deep": b'{"base_model_name_or_path":' + b"[" * 100_000,
    "deep-but-whole": b'{"base_model_name_or_path":' + b"[" * 400 + b"]" * 400 + b"}",
    "long-integer": b'{"base_model_name_or_path": ' + b"9" * 10_000 + b"}",
    "a-list": b"[1]",
    "no-base": b"{}",
    "base-is-a-number": b'{"base_model_name_or_path": 5}',
}


def adapter(text, size=None):
    def make(folder):
        here = folder / "adapter"
        here.mkdir()
        save_file(good(), here / "adapter_model.safetensors")
        (here / "adapter_config.json").write_bytes(text)
        if size is not None:
            os.truncate(here / "adapter_config.json", size)
        return here

    return make


for name, text in ADAPTERS.items():
    CASES[f"adapter-{name}"] = Case(adapter(text), ("adapter_config.json",))
CASES["adapter-huge"] = Case(adapter(b"{", 1 << 40), ("adapter_config.json", "100 MB"))


# ---- files of torch.save ------------------------------------------------------------------------


class Name(NamedTuple):
    """A class or function in a pickle."""

    module: str
    name: str


class Call(NamedTuple):
    """A call in a pickle, by an opcode."""

    what: Name
    args: tuple[Any, ...]
    opcode: bytes = b"R"


class Kept(NamedTuple):
    """A persistent id in a pickle."""

    args: tuple[Any, ...]


def opcodes(value):
    """The pickle of a value, without its beginning and end."""
    if isinstance(value, Name):
        return f"c{value.module}\n{value.name}\n".encode()
    if isinstance(value, Call):
        return opcodes(value.what) + opcodes(tuple(value.args)) + value.opcode
    if isinstance(value, Kept):
        return opcodes(value.args) + b"Q"
    if isinstance(value, dict):
        return b"}(" + b"".join(opcodes(k) + opcodes(v) for k, v in value.items()) + b"u"
    if isinstance(value, tuple):
        return b"(" + b"".join(map(opcodes, value)) + b"t"
    if isinstance(value, bytes):  # opcodes
        return value
    return pickle.dumps(value, 2)[2:-1].replace(b"q\0", b"")


def stored(shape=(4,), strides=(1,), offset=0, count=4, key="0", kind="FloatStorage", more=()):
    storage = Kept(("storage", Name("torch", kind), key, "cpu", count))
    what = Name("torch._utils", "_rebuild_tensor_v3" if more else "_rebuild_tensor_v2")
    hooks = Call(Name("collections", "OrderedDict"), ())
    return Call(what, (storage, offset, shape, strides, False, hooks, *more))


PLACE_B = {"shape": (2, 3), "strides": (3, 1), "count": 6, "key": "1"}


def archive(folder, state=None, records=(bytes(16), bytes(24)), change=None, **changed):
    """A zip file as of torch.save, of the tensors a and b, or of other things."""
    if state is None:
        state = {"a": stored(), "b": stored(**{**PLACE_B, **changed})}
    path = folder / "model.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a name is there twice
        with zipfile.ZipFile(path, "w") as target:
            target.writestr("m/data.pkl", b"\x80\x02" + opcodes(state) + b".")
            target.writestr("m/byteorder", "little")
            target.writestr("m/version", "3\n")
            for key, record in enumerate(records):
                target.writestr(f"m/data/{key}", record)
            if change is not None:
                change(target)
    return path


def torch_case(name, *says, **options):
    CASES[f"torch-{name}"] = Case(lambda folder: archive(folder, **options), says, True)


def with_a(**more):
    return {"a": stored(), **more}


RUN = Call(Name("os", "system"), ("touch ran",))
UNTYPED = Name("torch.storage", "UntypedStorage")
B = "'b'"
torch_case("shape-is-huge", B, "model.pt", shape=(HUGE, 3))
torch_case("shape-overflows", B, "model.pt", shape=(1 << 62, 3), strides=(4, 1))
torch_case("shape-and-storage-are-huge", B, "model.pt", shape=(HUGE, 3), count=3 * HUGE)
torch_case("storage-larger-than-its-record", B, "model.pt", count=7)
torch_case("tensor-larger-than-its-storage", B, "model.pt", shape=(3, 3))
torch_case("strides-beyond-the-storage", B, "model.pt", strides=(4, 1))
torch_case("offset-beyond-the-storage", B, "model.pt", offset=1)
torch_case("negative-offset", "model.pt", offset=-1)
torch_case("negative-stride", "model.pt", strides=(-3, 1))
torch_case("negative-shape", "model.pt", shape=(-2, -3))
torch_case("negative-count", "model.pt", count=-6)
torch_case("strides-too-few", "model.pt", strides=(1,))
torch_case("repeats-its-elements", B, "model.pt", shape=(HUGE, 3), strides=(0, 1))
torch_case("wider-dtype", B, "model.pt", more=(Name("torch", "float64"),))
torch_case("missing-record", B, "data/7", "model.pt", key="7")
torch_case("record-is-short", B, "model.pt", records=(bytes(16), bytes(20)))
torch_case("no-storage", "model.pt", kind="Size")
torch_case("no-tensors", "model.pt", "holds no state dict", state={"step": 4})
torch_case("no-mapping", "model.pt", "holds no state dict", state=(1, 2))
torch_case("holds-itself", "model.pt", "holds no state dict", state=b"}q\0X\5\0\0\0modelh\0s")
torch_case("empty-pickle", "model.pt", state=b"")
torch_case("pops-nothing", "model.pt", state=b"}0000")
torch_case("memo-is-huge", "model.pt", state=b"}r\xff\xff\xff\x7f0")
torch_case("text-is-huge", "model.pt", state=b"}X\xff\xff\xff\x7f")
torch_case("bytes-are-huge", "model.pt", state=b"}\x8e" + struct.pack("<Q", HUGE))
torch_case("bytearray-is-huge", "model.pt", state=b"}\x96" + struct.pack("<Q", HUGE))
torch_case(
    "calls-bytearray",
    "model.pt",
    "bytearray, which is refused",
    state=with_a(b=Call(Name("builtins", "bytearray"), (HUGE,))),
)
torch_case(
    "calls-FloatTensor",
    "model.pt",
    "FloatTensor, which is refused",
    state=with_a(b=Call(Name("torch", "FloatTensor"), (HUGE,))),
)
torch_case(
    "makes-a-Tensor",
    "model.pt",
    "Tensor, which is refused",
    state=with_a(b=Call(Name("torch", "Tensor"), (HUGE,), b"\x81")),
)
torch_case(
    "calls-UntypedStorage",
    "model.pt",
    "UntypedStorage, which is refused",
    state=with_a(b=Call(UNTYPED, (HUGE,))),
)
torch_case(
    "code",
    "model.pt",
    "refused",
    "os.system",
    state=with_a(c=Call(Name("os", "system"), ("touch ran",))),
)
torch_case(
    "twice", "twice", "model.pt", change=lambda target: target.writestr("m/data/1", bytes(24))
)
torch_case(
    "compressed",
    "model.pt",
    "compressed",
    change=lambda target: target.writestr("m/x", bytes(10**6), zipfile.ZIP_DEFLATED),
)
torch_case(
    "torchscript", "model.pt", "code", change=lambda target: target.writestr("m/constants.pkl", b"")
)


def edited(edit):
    def make(folder):
        path = archive(folder)
        path.write_bytes(edit(path.read_bytes()))
        return path

    return make


def in_directory(name, at, fields):
    """Overwrite bytes of a record's entry in the directory."""

    def edit(data):
        data = bytearray(data)
        start = data.rindex(name) - 46
        assert data[start : start + 4] == b"PK\1\2"
        data[start + at : start + at + len(fields)] = fields
        return bytes(data)

    return edit


EDITS = {
    "truncated": lambda data: data[:-1],
    "half": lambda data: data[: len(data) // 2],
    "two-bytes": lambda data: b"PK",
    "garbage": lambda data: b"PK\3\4" + bytes(1000),
    "size-lies": in_directory(b"m/data/1", 24, struct.pack("<L", 2**31)),
    "both-sizes-lie": in_directory(b"m/data/1", 20, struct.pack("<LL", 2**31, 2**31)),
    "pickle-size-lies": in_directory(b"m/data.pkl", 20, struct.pack("<LL", 2**31, 2**31)),
    "place-lies": in_directory(b"m/data/1", 42, struct.pack("<L", 2**31)),
    "encrypted": in_directory(b"m/data/1", 8, b"\1\0"),
    "later-version": in_directory(b"m/data/1", 6, struct.pack("<H", 999)),
    "directory-is-huge": lambda data: data[:-10] + struct.pack("<L", 2**31) + data[-6:],
}
for name, edit in EDITS.items():
    CASES[f"zip-{name}"] = Case(edited(edit), ("model.pt",), True)


@case("torch-of-before-1.6", "model.pt", "before 1.6", needs_torch=True)
def _(folder):
    path = folder / "model.pt"
    state = {name: torch.from_numpy(value) for name, value in good().items()}
    torch.save(state, path, _use_new_zipfile_serialization=False)
    return path


@case("torch-plain-pickle-with-code", "model.pt", needs_torch=True)
def _(folder):
    path = folder / "model.pt"
    path.write_bytes(b"\x80\x02" + opcodes(RUN) + b".")
    return path


@case("torch-pickle-over-100-MB", "model.pt", "100 MB", needs_torch=True)
def _(folder):
    path, name, size = folder / "model.pt", b"m/data.pkl", 200_000_000
    local = struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 0, 0, 0, 0, size, size, len(name), 0) + name
    numbers = (b"PK\1\2", 20, 20, 0, 0, 0, 0, 0, size, size, len(name), 0, 0, 0, 0, 0, 0)
    directory = struct.pack("<4s6H3L5H2L", *numbers) + name
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, len(directory), len(local) + size, 0)
    with open(path, "wb") as file:
        file.write(local)
        file.seek(size, io.SEEK_CUR)  # a hole
        file.write(directory + end)
    return path


@case("torch-nan", TENSOR_B, "nan", "model.pt", needs_torch=True)
def _(folder):
    return archive(folder, records=(bytes(16), bytes(20) + struct.pack("<f", np.nan)))


@case("torch-shard-truncated", "model-2.bin", needs_torch=True)
def _(folder):
    for name, file in (("a", "model-1.bin"), ("b", "model-2.bin")):
        torch.save({name: torch.from_numpy(good()[name])}, folder / file)
    os.truncate(folder / "model-2.bin", os.path.getsize(folder / "model-2.bin") - 30)
    index = {"weight_map": {"a": "model-1.bin", "b": "model-2.bin"}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder


# ---- folders of torch.distributed.checkpoint ----------------------------------------------------


def distributed(folder, change=None, edit=None):
    """A distributed checkpoint whose metadata are changed: as an object, or as bytes."""
    from torch.distributed.checkpoint import state_dict_saver

    here = folder / "dcp"
    state = {name: torch.from_numpy(value) for name, value in good().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state_dict_saver.save(state, checkpoint_id=here, no_dist=True)
    data = (here / ".metadata").read_bytes()
    if change is not None:
        found = pickle.loads(data)
        infos = {index.fqn: info for index, info in found.storage_data.items()}
        change(found, found.state_dict_metadata["b"], infos["b"])
        data = pickle.dumps(found)
    (here / ".metadata").write_bytes(edit(data) if edit else data)
    return here


def put(name, value):
    def change(found, tensor, info):
        setattr(
            info if hasattr(info, name) else tensor if hasattr(tensor, name) else found, name, value
        )

    return change


def chunk(offsets, sizes, twice=False):
    def change(found, tensor, info):
        here = tensor.chunks[0]
        here.offsets, here.sizes = torch.Size(offsets), torch.Size(sizes)
        tensor.chunks *= 1 + twice

    return change


def size(*numbers, chunks=False):
    def change(found, tensor, info):
        tensor.size = torch.Size(numbers)
        if chunks:
            tensor.chunks[0].sizes = tensor.size

    return change


def lose_place(found, tensor, info):
    found.storage_data = {i: v for i, v in found.storage_data.items() if i.fqn != "b"}


def no_dtype(found, tensor, info):
    tensor.properties.dtype = "float32"


def double_dtype(found, tensor, info):
    tensor.properties.dtype = torch.float64


EVIL = b"\x80\x02" + opcodes(RUN) + b"."
DISTRIBUTED = {
    "size-is-huge": (size(HUGE, 3), None, (TENSOR_B,)),
    "size-and-chunk-are-huge": (size(HUGE, 3, chunks=True), None, (TENSOR_B,)),
    "size-overflows": (size(1 << 62, 16, chunks=True), None, (TENSOR_B,)),
    "size-is-negative": (put("size", (-2, -3)), None, (TENSOR_B,)),
    "size-is-none": (put("size", None), None, (TENSOR_B,)),
    "size-is-less": (size(1, 3), None, (TENSOR_B,)),
    "chunk-is-less": (chunk((0, 0), (1, 3)), None, (TENSOR_B, "make up")),
    "chunk-is-outside": (chunk((0, 0), (3, 2)), None, (TENSOR_B, "make up")),
    "chunk-twice": (chunk((0, 0), (1, 3), twice=True), None, (TENSOR_B, "make up")),
    "chunk-has-no-place": (lose_place, None, (TENSOR_B,)),
    "no-chunks": (put("chunks", None), None, (TENSOR_B,)),
    "no-dtype": (no_dtype, None, (TENSOR_B,)),
    "dtype-lies": (double_dtype, None, (TENSOR_B,)),
    "missing-file": (put("relative_path", "gone.distcp"), None, (TENSOR_B, "gone.distcp")),
    "above": (put("relative_path", "../secret"), None, (TENSOR_B, "own folder")),
    "absolute": (put("relative_path", "/etc/passwd"), None, (TENSOR_B, "own folder")),
    "backslash": (put("relative_path", "..\\secret"), None, (TENSOR_B, "own folder")),
    "no-file": (put("relative_path", 5), None, (TENSOR_B,)),
    "offset-is-huge": (put("offset", HUGE), None, (TENSOR_B,)),
    "offset-is-negative": (put("offset", -1), None, (TENSOR_B,)),
    "offset-is-elsewhere": (put("offset", 1), None, (TENSOR_B,)),
    "length-is-huge": (put("length", HUGE), None, (TENSOR_B,)),
    "length-is-short": (put("length", 20), None, (TENSOR_B,)),
    "compressed": (put("transform_descriptors", ["zstd"]), None, (TENSOR_B, "compressed")),
    "no-storage-data": (put("storage_data", None), None, (".metadata", "storage_data")),
    "no-tensors": (put("state_dict_metadata", {}), None, ("holds no tensors",)),
    "empty": (None, lambda data: b"", (".metadata",)),
    "truncated": (None, lambda data: data[:-10], (".metadata",)),
    "garbage": (None, lambda data: b"\xff" * 100, (".metadata",)),
    "code": (None, lambda data: EVIL, (".metadata", "os.system", "refused")),
    "something-else": (None, lambda data: pickle.dumps({}), (".metadata", "dict")),
    "memo-is-huge": (None, lambda data: b"\x80\x02}r\xff\xff\xff\x7f.", (".metadata",)),
    "bytes-are-huge": (
        None,
        lambda data: b"\x80\x05\x96" + struct.pack("<Q", HUGE) + b".",
        (".metadata",),
    ),
}


def distributed_case(change, edit):
    return lambda folder: distributed(folder, change, edit)


for name, (change, edit, says) in DISTRIBUTED.items():
    CASES[f"dcp-{name}"] = Case(distributed_case(change, edit), ("dcp", *says), True)


@case("dcp-metadata-over-100-MB", "dcp", "100 MB", needs_torch=True)
def _(folder):
    here = distributed(folder)
    os.truncate(here / ".metadata", 1 << 40)
    return here


@case("dcp-data-cut-off", "dcp", TENSOR_B, needs_torch=True)
def _(folder):
    here = distributed(folder)
    (data,) = here.glob("*.distcp")
    os.truncate(data, os.path.getsize(data) - 1)
    return here


def _chunk_of(*args, **options):
    """A folder in which the chunk of b is another file than its metadata say."""

    def make(folder):
        chunk = archive(folder, *args, **options).read_bytes()

        def change(found, tensor, info):
            info.relative_path, info.offset, info.length = "b.distcp", 0, len(chunk)

        here = distributed(folder, change)
        (here / "b.distcp").write_bytes(chunk)
        return here

    return make


CASES["dcp-chunk-is-no-tensor"] = Case(_chunk_of(), ("b.distcp", TENSOR_B), True)
CASES["dcp-chunk-of-another-shape"] = Case(
    _chunk_of(stored((3, 2), (2, 1), count=6), (bytes(24),)), ("b.distcp", TENSOR_B), True
)
CASES["dcp-chunk-larger-than-its-storage"] = Case(
    _chunk_of(stored((2, 3), (HUGE, 1), count=6), (bytes(24),)), ("b.distcp", TENSOR_B), True
)
CASES["dcp-chunk-with-code"] = Case(_chunk_of(RUN), ("b.distcp", TENSOR_B), True)


# ---- all of them --------------------------------------------------------------------------------


def tried(name, folder):
    """Forecast from a good checkpoint and that of a case: what its error says."""
    earlier = folder / "earlier.safetensors"
    # at step 8 it is 2 b_4 - b_0
    save_file({n: v if n == "a" else -v * np.float32(1e38) for n, v in good().items()}, earlier)
    (folder / "case").mkdir()
    later = CASES[name].make(folder / "case")
    before = names(folder)
    for out in ("out.safetensors", "out"):
        try:
            wfcast.forecast_checkpoint(LINE, {0: earlier, 4: later}, 8, folder / out)
        except wfcast.WfcastError as error:
            said = str(error)
        else:
            raise AssertionError(f"{name} was forecast")
        assert names(folder) == before, name
        assert not Path("ran").exists()
        for part in CASES[name].says:
            assert part in said, (name, part, said)
        assert len(said) < 8000, name
    return said


def names(folder):
    return {str(p.relative_to(folder)): p.lstat().st_mtime_ns for p in folder.rglob("*")}


@pytest.mark.parametrize("name", CASES)
def test_is_refused_and_nothing_is_written(tmp_path, monkeypatch, name):
    if CASES[name].needs_torch and torch is None:
        pytest.skip("torch is not installed")
    monkeypatch.chdir(tmp_path)
    said = tried(name, tmp_path)
    assert all(part in said for part in CASES[name].says)
    assert not list(tmp_path.glob("out*"))


def all_tried(folder):
    """All cases in this process, with little memory to spare for each."""
    warnings.simplefilter("error")
    sound = [name for name, one in CASES.items() if torch is not None or not one.needs_torch]
    first = True
    for name in sound if torch is None else ["dcp-no-tensors", "torch-nan", *sound]:
        here = Path(folder) / f"{name}-{first}"
        if here.exists():
            continue
        here.mkdir()
        os.chdir(here)
        tried(name, here)
        if first and name in (sound[0], "torch-nan"):  # all that is needed is imported by now
            first = False
            held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (held + (400 << 20), held + (400 << 20)))
    print("tried", len(sound))


@pytest.mark.memory
def test_no_memory_is_asked_for_by_numbers_in_a_file(tmp_path):
    code = "import sys; sys.path.insert(0, sys.argv[1]); import test_hostile_files as t; "
    code += "t.all_tried(sys.argv[2])"
    tests = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, str(tests), str(tmp_path)],
        text=True,
        capture_output=True,
        env=ENVIRONMENT,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.split()[1]) >= 70


@pytest.mark.parametrize("length", [0x4B50, 0x14B50, 0x80, 0x1080])
@pytest.mark.parametrize("name", ["model", "model.safetensors", "model.pt"])
def test_a_header_whose_length_looks_like_another_format(tmp_path, length, name):
    """The length can begin like a zip file ("PK") or a pickle."""
    path = tmp_path / name
    text = json.dumps(two()).encode()
    path.write_bytes(packed(text.ljust(length) if len(text) < length else _short(length)))
    assert path.read_bytes()[:2] in (b"PK", b"\x80\0", b"\x80\x10")
    assert {"a"} <= open_checkpoint(path).tensors.keys()


def _short(length):
    return json.dumps({"a": entry([10], 0, 40)}).encode().ljust(length)


def test_sound_files_are_read(tmp_path):
    """What the cases are made from is not refused."""
    save_file(good(), tmp_path / "earlier.safetensors")
    made = [file_of(VALID)(tmp_path), shards(tmp_path)]
    if torch is not None:
        made += [archive(tmp_path), distributed(tmp_path)]
    for path in made:
        run = {0: tmp_path / "earlier.safetensors", 4: path}
        (tmp_path / "out").mkdir(exist_ok=True)
        report = wfcast.forecast_checkpoint(LINE, run, 8, tmp_path / "out" / "o.safetensors")
        assert set(report.forecast) == {"a", "b"}


def test_torch_files_without_checksums_are_read(tmp_path):
    if not hasattr(getattr(torch, "serialization", None), "set_crc32_options"):
        pytest.skip("torch is not installed, or always writes them")
    before = torch.serialization.get_crc32_options()
    try:
        torch.serialization.set_crc32_options(False)
        torch.save({"a": torch.ones(4)}, tmp_path / "a.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    with zipfile.ZipFile(tmp_path / "a.pt") as archive, pytest.raises(zipfile.BadZipFile):
        archive.read("a/data.pkl")
    assert open_checkpoint(tmp_path / "a.pt").raw("a").tobytes() == np.ones(4, "f4").tobytes()


def test_a_forecaster_of_a_shape_that_numpy_cannot_hold(tmp_path):
    LINE.save(tmp_path / "line.safetensors")
    data = (tmp_path / "line.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header["coef"]["shape"] = [1] * 69 + [2]
    (tmp_path / "line.safetensors").write_bytes(packed(header, data[8 + length :]))
    with pytest.raises(wfcast.CheckpointError, match=r"line.safetensors' cannot be read"):
        wfcast.load(tmp_path / "line.safetensors")


def test_a_fingerprint_of_names_that_are_no_text():
    runs = [{t: {"\ud800": np.arange(20.0) * t} for t in (0, 4, 8)}]
    mf = wfcast.ModelFarcaster((0, 4), (8,), beta=0.0).fit(runs)
    assert len(mf.fingerprint()) == 64


# ---- by chance ----------------------------------------------------------------------------------


@pytest.mark.memory
def test_mutants_are_forecast_or_refused():
    """A bounded number; `python tests/fuzz_checkpoints.py SECONDS` goes on for longer."""
    tried, forecast, findings = fuzz_checkpoints.fuzz(1000, 15)
    assert not findings, "\n\n".join(findings[:3])
    assert tried >= 100
    assert forecast >= tried // 20


def test_mutants_can_be_made_again(tmp_path):
    seeds = fuzz_checkpoints.build(tmp_path / "seeds")
    for number in range(10):
        made = []
        for again in ("one", "two"):
            work = tmp_path / f"{number}-{again}"
            work.mkdir()
            fuzz_checkpoints.make(seeds, 5, number, work)
            made.append(contents(work))
        assert made[0] == made[1]


# ---- numbers and keys without bounds ------------------------------------------------------------


def nested(depth=40):
    """A tuple that holds another one twice, and so on: hashing it takes 2^depth steps."""
    key = ("x",)
    for _ in range(depth):
        key = (key, key)
    return key


@pytest.mark.parametrize("zero", [False, True])
def test_a_shape_of_very_many_numbers(tmp_path, zero):
    """Their product has millions of digits: nobody needs to know it."""
    shape = [2**60] * 100_000 + [0] * zero
    header = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(wfcast.CheckpointError, match=r"cannot be read as a safetensors file"):
        wfcast.inspect(path)


@pytest.mark.skipif(torch is None, reason="torch is not installed")
@pytest.mark.parametrize("kind", ["dict", "set", "frozenset", "ordered", "wide"])
def test_keys_that_take_for_ever_to_hash(tmp_path, kind):
    """They are refused before anything hashes them, torch included."""
    key = {"wide": tuple(range(2000))}.get(kind, "KEY")
    value = {"dict": {key: 1}, "set": {key}, "frozenset": frozenset([key]), "wide": {key: 1}}
    made = value.get(kind, collections.OrderedDict({key: 1}))
    torch.save({"model": {"w": torch.ones(4)}, "more": made}, tmp_path / "a.pt")
    if kind != "wide":  # no program could write it: the key is put into what was written
        replace_pickled(tmp_path / "a.pt", "KEY", nested())
    with pytest.raises(wfcast.CheckpointError, match="a key of nested tuples, which is refused"):
        wfcast.inspect(tmp_path / "a.pt")


def replace_pickled(path, text, value):
    """Put the pickle of a value in the place of that of a text, in a file of torch.save."""
    with zipfile.ZipFile(path) as archive:
        records = {i.filename: archive.read(i) for i in archive.infolist()}
    name = next(n for n in records if n.endswith("/data.pkl"))
    opcodes = b"X" + len(text).to_bytes(4, "little") + text.encode()
    assert opcodes in records[name]
    fresh = pickle.dumps(value, 2)[2:-1]  # without PROTO and STOP
    memo = 1000  # its own memo numbers must not meet those of the file
    fresh = renumbered(fresh, memo)
    records[name] = records[name].replace(opcodes, fresh, 1)
    with zipfile.ZipFile(path, "w") as archive:
        for n, data in records.items():
            archive.writestr(n, data)


def renumbered(data, offset):
    """A pickle's opcodes with other places in the memo."""
    made = bytearray()
    positions = [*pickletools.genops(data + b".")]
    for (code, number, at), (_, _, end) in itertools.pairwise(positions):
        if code.name in ("BINPUT", "LONG_BINPUT"):
            made += b"r" + (number + offset).to_bytes(4, "little")
        elif code.name in ("BINGET", "LONG_BINGET"):
            made += b"j" + (number + offset).to_bytes(4, "little")
        else:
            made += data[at:end]
    return bytes(made)
