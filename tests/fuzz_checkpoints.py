"""Mutated checkpoint files: each is forecast, or refused by one of wfcast's own errors.

By hand: ``python tests/fuzz_checkpoints.py SECONDS [SEED]``; ``tests/test_hostile_files.py`` runs a
bounded number. A mutant is made by a generator seeded with the seed and its number, so that a
finding can be made again: ``python tests/fuzz_checkpoints.py --one SEED NUMBER [FOLDER]``.

The mutants are opened in child processes, with a limit of memory, file size and time: a crash ends
the child, is reported with its number, and the next child goes on behind it.
"""

import io
import json
import os
import pickle
import pickletools
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

import wfcast
from wfcast.checkpoint import open_checkpoint

try:
    import torch
except ImportError:
    torch = None

ROOM = 512 << 20  # bytes of address space that a mutant may add
LARGEST = 64 << 20  # bytes of a file that a mutant may write
SECONDS = 20  # that a mutant may take

LINE = wfcast.linear_trend((0, 4), (8,))
LINE.n_threads = 1


# ---- what is mutated ----------------------------------------------------------------------------


def _arrays(step):
    rng = np.random.default_rng(3)
    a = rng.normal(size=(6, 5)).astype(np.float32)
    return {
        "layer.weight": a + step,
        "layer.bias": (a[0] + step).astype(np.float16),
        "none": np.zeros((0, 3), np.float32),
        "ids": np.arange(5),
    }


def _tensors(step):
    state = {name: torch.from_numpy(value.copy()) for name, value in _arrays(step).items()}
    state["half"] = torch.arange(12.0).reshape(3, 4).bfloat16() + step
    state["turned"] = torch.arange(12.0).reshape(3, 4).T + step
    state["alias"] = state["layer.weight"]
    return state


def _sharded(folder, weights, save):
    names = sorted(weights)
    parts = {"model-1": names[::2], "model-2": names[1::2]}
    ending = ".safetensors" if save is save_file else ".bin"
    stem = "model" if save is save_file else "pytorch_model"
    for part, members in parts.items():
        save({n: weights[n] for n in members}, folder / (part + ending))
    index = {n: part + ending for part, members in parts.items() for n in members}
    document = {"metadata": {"total_size": 1}, "weight_map": index}
    (folder / f"{stem}{ending}.index.json").write_text(json.dumps(document))


def build(folder):
    """Valid checkpoints of every format: {format: (earlier, later)}, each a folder of files."""
    found = {}
    for kind in FORMATS if torch is not None else FORMATS[:3]:
        for step in (0, 4):
            here = folder / kind / str(step)
            here.mkdir(parents=True)
            _build_one(kind, here, step)
        found[kind] = folder / kind / "0", folder / kind / "4"
    return found


FORMATS = ("safetensors", "shards", "adapter", "torch", "nested", "torch-shards", "dcp")


def _build_one(kind, here, step):
    if kind == "safetensors":
        save_file(_arrays(step), here / "model.safetensors", metadata={"format": "pt"})
    elif kind == "shards":
        _sharded(here, _arrays(step), save_file)
        (here / "config.json").write_text('{"model_type": "bert"}')
    elif kind == "adapter":
        save_file(_arrays(step), here / "adapter_model.safetensors")
        (here / "adapter_config.json").write_text(
            json.dumps({"base_model_name_or_path": "base", "r": 8, "target_modules": ["q", "v"]})
        )
    elif kind == "torch":
        torch.save(_tensors(step), here / "pytorch_model.bin")
    elif kind == "nested":
        state = {f"module.{n}": v for n, v in _tensors(step).items()}
        outer = {"state_dict": state, "optimizer": {"lr": 0.1, "steps": [1, 2]}, "epoch": step}
        torch.save(outer, here / "pytorch_model.bin")
    elif kind == "torch-shards":
        _sharded(here, {n: v for n, v in _tensors(step).items() if n != "alias"}, torch.save)
    else:
        from torch.distributed.checkpoint import state_dict_saver

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state_dict_saver.save(_tensors(step), checkpoint_id=here, no_dist=True)


# ---- how it is mutated --------------------------------------------------------------------------

NUMBERS = (0, 1, -1, 2, 3, 5, 7, 8, 127, 128, 255, 65535, 65536, 10**6, 2**31 - 1, 2**31, 2**32 - 1)
NUMBERS += (
    2**32,
    10**10,
    10**15,
    2**61,
    2**62,
    2**63 - 1,
    2**63,
    2**64 - 1,
    2**64,
    -(2**63),
    10**30,
)
STRINGS = (
    "",
    ".",
    "..",
    "../secret",
    "/etc/passwd",
    "a\\b",
    "..\\a",
    "a/b",
    "\0",
    "\ud800",
    "x" * 300,
)
STRINGS += ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin.index.json")
STRINGS += ("__metadata__", "F32", "F64", "BF16", "F4", "U8", "C64", "F99", "layer.weight", "ids")
STRINGS += ("model", "state_dict", "module.", "_orig_mod.", "storage", "cpu", "cuda:0", "meta", "1")
GLOBALS = (
    ("builtins", "bytearray"),
    ("builtins", "complex"),
    ("builtins", "eval"),
    ("builtins", "set"),
    ("collections", "Counter"),
    ("collections", "OrderedDict"),
    ("os", "system"),
    ("pathlib", "PosixPath"),
    ("torch", "BFloat16Storage"),
    ("torch", "DoubleStorage"),
    ("torch", "FloatTensor"),
    ("torch", "QInt8Storage"),
    ("torch", "Size"),
    ("torch", "Tensor"),
    ("torch", "float64"),
    ("torch", "qint8"),
    ("torch", "complex32"),
    ("torch.storage", "UntypedStorage"),
    ("torch._utils", "_rebuild_meta_tensor_no_storage"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch._utils", "_rebuild_qtensor"),
    ("torch._utils", "_rebuild_sparse_tensor"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_tensor_v3"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.distributed.checkpoint.metadata", "BytesStorageMetadata"),
    ("torch.distributed.checkpoint.metadata", "ChunkStorageMetadata"),
    ("torch.distributed.checkpoint.metadata", "Metadata"),
    ("torch.distributed.checkpoint.metadata", "TensorStorageMetadata"),
    ("torch.nn.parameter", "Parameter"),
)


def mutate_bytes(rng, data):
    """Flip, overwrite, cut, double, move or cut off bytes, more often near both ends."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if not data:
            break
        size = len(data)
        near = rng.choice((size, size, min(size, 64), min(size, 512)))
        at = rng.randrange(near) if rng.random() < 0.6 else size - 1 - rng.randrange(near)
        length = rng.choice((1, 2, 4, 8, 16, 64))
        kind = rng.randrange(7)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            width = rng.choice((1, 2, 4, 8))
            value = rng.choice((*NUMBERS, size, size - 1, size + 1)) % (1 << (8 * width))
            data[at : at + width] = value.to_bytes(width, "little")
        elif kind == 2:
            del data[at : at + length]
        elif kind == 3:
            data[at:at] = data[at : at + length]
        elif kind == 4:
            data[at : at + length] = rng.randbytes(length)
        elif kind == 5:
            del data[at:]
        else:
            data += rng.choice((b"\0", b"PK\5\6", data[-22:], rng.randbytes(length)))
    return bytes(data)


def _odd(rng, old):
    if type(old) is int and rng.random() < 0.7:
        return rng.choice((*NUMBERS, old + 1, old - 1, old * 2, -old, old + 0.0))
    if isinstance(old, str) and rng.random() < 0.7:
        return rng.choice((*STRINGS, old + "x", old[1:], old + "\0"))
    if isinstance(old, list) and rng.random() < 0.7:
        return rng.choice(([], old * 2, old[1:], old[::-1], [*old, 1], [*old, 0], [1] * 70, [old]))
    return rng.choice(
        (None, True, 1.5, float("nan"), [], {}, [[]], rng.choice(NUMBERS), rng.choice(STRINGS))
    )


def mutate_json(rng, text):
    """Change, drop, add, double or rename entries anywhere, or the text itself."""
    if rng.random() < 0.15:
        return mutate_bytes(rng, text)
    if rng.random() < 0.03:
        depth = rng.choice((50, 130, 900, 5000, 100_000))
        return b'{"a":' * depth + b"1" + b"}" * depth
    document = json.loads(text)
    twice = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = []
        todo = [document]
        while todo:
            here = todo.pop()
            keys = here if isinstance(here, dict) else range(len(here))
            places += [(here, k) for k in keys]
            todo += [here[k] for k in keys if isinstance(here[k], dict | list)]
        if not places:
            break
        here, key = rng.choice(places)
        kind = rng.randrange(8)
        if kind < 4:
            here[key] = _odd(rng, here[key])
        elif kind == 4:
            del here[key]
        elif kind == 5:
            other, name = rng.choice(places)
            here[key] = other[name] if not isinstance(other[name], dict | list) else 0
        elif kind == 6 and isinstance(here, dict):
            here[rng.choice(STRINGS)] = here[key]
        elif isinstance(here, dict):
            twice.append(key)
    try:
        text = json.dumps(document).encode(errors="surrogatepass")
    except ValueError:  # a value that is in itself
        return b"{}"
    for key in twice:
        quoted = json.dumps(key).encode() + b": "
        text = text.replace(quoted, quoted + b'"twice", ' + quoted, 1)
    return text


def mutate_safetensors(rng, data):
    if rng.random() < 0.2:
        return mutate_bytes(rng, data)
    (length,) = struct.unpack("<Q", data[:8])
    text = mutate_json(rng, data[8 : 8 + length])
    rest = data[8 + length :]
    if rng.random() < 0.2:
        rest = rng.choice((rest[:-1], rest + b"\0", rest[:-8], rest + bytes(8), b"", rest * 2))
    length = len(text)
    if rng.random() < 0.05:
        length = rng.choice((0, length - 1, length + 1, 2**63, 2**64 - 1, 100_000_001))
    return struct.pack("<Q", length) + text + rest


def mutate_pickle(rng, data):
    """Change the numbers, words and names that a pickle holds, or the order of what it does."""
    if rng.random() < 0.1:
        return mutate_bytes(rng, data)
    places = [(op.name, value, at) for op, value, at in pickletools.genops(data)]
    ends = [at for *_, at in places[1:]] + [len(data)]
    parts = [data[at:end] for (*_, at), end in zip(places, ends, strict=True)]
    names = [name for name, *_ in places]
    parts = [b"" if name == "FRAME" else part for name, part in zip(names, parts, strict=True)]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        at = rng.randrange(len(parts))
        kind = rng.randrange(10)
        if kind < 4:
            at = rng.choice([k for k, n in enumerate(names) if "INT" in n or "LONG" in n] or [at])
            parts[at] = _plain(rng.choice(NUMBERS))
        elif kind == 4:
            at = rng.choice([k for k, n in enumerate(names) if "UNICODE" in n] or [at])
            parts[at] = _plain(rng.choice(STRINGS))
        elif kind == 5:
            at = rng.choice([k for k, n in enumerate(names) if "GLOBAL" in n] or [at])
            module, name = rng.choice(GLOBALS)
            parts[at] = f"c{module}\n{name}\n".encode()
        elif kind == 6:
            other = rng.randrange(len(parts))
            parts[at], parts[other] = parts[other], parts[at]
        elif kind == 7:
            parts[at] = rng.choice((b"", parts[at] * 2, b"N", b"}", b")", b"(", b"t", b"0", b"2"))
        elif kind == 8:
            parts[at] += rng.choice(
                (b"h\0", b"h\1", b"j\5\0\0\0", b"r\xff\xff\xff\x7f", b"R", b"b")
            )
        else:
            module, name = rng.choice(GLOBALS)
            arguments = b"".join(_plain(rng.choice(NUMBERS)) for _ in range(rng.randrange(3)))
            call = f"c{module}\n{name}\n(".encode() + arguments + b"t" + rng.choice((b"R", b"\x81"))
            parts[at] += call + rng.choice((b"", b"0"))
    return b"".join(parts)


def _plain(value):
    return pickle.dumps(value, 2)[2:-1].replace(b"q\0", b"")


def mutate_zip(rng, data):
    """Change bytes, the numbers of the directory, or whole records, the pickle most of all."""
    kind = rng.random()
    if kind < 0.15:
        return mutate_bytes(rng, data)
    if kind < 0.35:
        return _mutate_directory(rng, data)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as source:
            records = [(i.filename, source.read(i)) for i in source.infolist()]
    except (zipfile.BadZipFile, ValueError):
        return mutate_bytes(rng, data)
    method = zipfile.ZIP_STORED
    at = next(k for k, (name, _) in enumerate(records) if name.endswith("data.pkl"))
    if kind < 0.85:
        records[at] = records[at][0], mutate_pickle(rng, records[at][1])
    else:
        at = rng.randrange(len(records))
        name, held = records[at]
        what = rng.randrange(6)
        if what == 0:
            del records[at]
        elif what == 1:
            records[at] = name, mutate_bytes(rng, held)
        elif what == 2:
            records[at] = name, held[: rng.randrange(len(held) + 1)]
        elif what == 3:
            records[at] = rng.choice(("x", name + "x", "../x/data.pkl", "a/constants.pkl")), held
        elif what == 4:
            records.append((name, held[::-1]))
        else:
            method = zipfile.ZIP_DEFLATED
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a name is there twice
        with zipfile.ZipFile(out, "w", method) as target:
            for name, held in records:
                target.writestr(zipfile.ZipInfo(name), held, method)  # without the time of day
    return out.getvalue()


def _mutate_directory(rng, data):
    """Overwrite a field of a record's header, of the directory or of its end."""
    data = bytearray(data)
    marks = {b"PK\3\4": 30, b"PK\1\2": 46, b"PK\5\6": 22, b"PK\6\6": 56, b"PK\6\7": 20}
    found = []
    for mark, length in marks.items():
        at = data.find(mark)
        while at >= 0:
            found.append((at, length))
            at = data.find(mark, at + 1)
    for _ in range(rng.choice((1, 1, 2))):
        at, length = rng.choice(found)
        width = rng.choice((2, 4, 4, 8))
        begin = at + 4 + 2 * rng.randrange((length - 4) // 2)
        value = rng.choice((*NUMBERS, len(data), len(data) - 1)) % (1 << (8 * width))
        data[begin : begin + width] = value.to_bytes(width, "little")
    return bytes(data)


def mutate_distributed(rng, folder):
    """Change the metadata of a distributed checkpoint, or one of its data files."""
    from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, TensorStorageMetadata

    path = folder / ".metadata"
    if rng.random() < 0.3:
        path.write_bytes(mutate_pickle(rng, path.read_bytes()))
        return
    if rng.random() < 0.4:
        with open(path, "rb") as file:
            found = pickle.load(file)
        data = rng.choice(list(folder.glob("*.distcp")))
        held = data.read_bytes()
        info = rng.choice(list(found.storage_data.values()))
        begin, end = info.offset, info.offset + info.length
        changed = mutate_zip(rng, held[begin:end])
        changed = changed[: end - begin].ljust(end - begin, b"\0")
        data.write_bytes(rng.choice((held[:begin] + changed + held[end:], mutate_bytes(rng, held))))
        return
    with open(path, "rb") as file:
        found = pickle.load(file)
    for _ in range(rng.choice((1, 1, 2))):
        entries = list(found.state_dict_metadata.values())
        tensors = [e for e in entries if isinstance(e, TensorStorageMetadata)]
        entry = rng.choice(tensors)
        info = rng.choice(list(found.storage_data.values()))
        number = rng.choice(NUMBERS)
        sizes = tuple(n for n in NUMBERS if abs(n) < 2**63)
        size = torch.Size(rng.choice(sizes) for _ in range(rng.randrange(4)))
        kind = rng.randrange(12)
        if kind == 0:
            entry.size = size
        elif kind == 1:
            entry.size = rng.choice((None, (1, 2), [3], "x", 5, (1.5,), ("a",), (-1,)))
        elif kind == 2:
            entry.properties.dtype = rng.choice(
                (torch.float64, torch.uint8, torch.qint8, torch.complex32, None, "x")
            )
        elif kind == 3:
            entry.chunks = rng.choice(([], None, entry.chunks * 2, entry.chunks[:-1], [1]))
        elif kind == 4 and entry.chunks:
            entry.chunks[0] = ChunkStorageMetadata(rng.choice((size, torch.Size([0, 0]))), size)
        elif kind == 5:
            info.relative_path = rng.choice((*STRINGS, None, 5, b"x", "..", "__0_0.distcp/x"))
        elif kind == 6:
            info.offset = rng.choice((number, info.offset + 1, None, 1.5))
        elif kind == 7:
            info.length = rng.choice((number, info.length - 1, info.length + 1, None))
        elif kind == 8:
            found.state_dict_metadata[rng.choice((5, None, "", "new", "layer.weight"))] = entry
        elif kind == 9:
            found.storage_data.pop(rng.choice(list(found.storage_data)))
            if not found.storage_data:
                break
        elif kind == 10:
            field = rng.choice(("storage_data", "planner_data", "version", "storage_meta"))
            value = rng.choice((None, [], 5, "x", {}))
            if field == "storage_data":
                setattr(found, field, value)
                break
            setattr(found, field, value)
        else:
            entry.properties = rng.choice((None, 5, entry.properties))
            if entry.properties is None or entry.properties == 5:
                break
    path.write_bytes(pickle.dumps(found, rng.choice((2, 4, 5))))


def mutate(rng, kind, folder):
    """Change one of the files of a checkpoint of this kind."""
    if rng.random() < 0.03:
        path = rng.choice(sorted(folder.iterdir()))
        held = path.read_bytes()
        path.unlink()
        if rng.random() < 0.5:
            path.with_name(rng.choice(("model.safetensors", "pytorch_model.bin"))).write_bytes(held)
        elif rng.random() < 0.5:
            path.mkdir()
        return
    if kind == "dcp":
        try:
            mutate_distributed(rng, folder)
        except Exception:  # of what is mutated already
            path = folder / ".metadata"
            path.write_bytes(mutate_bytes(rng, path.read_bytes()))
        return
    for _ in range(rng.choice((1, 1, 1, 2))):
        path = rng.choice([p for p in sorted(folder.iterdir()) if p.suffix])
        change = {".json": mutate_json, ".safetensors": mutate_safetensors, ".bin": mutate_zip}
        try:
            path.write_bytes(change[path.suffix](rng, path.read_bytes()))
        except Exception:  # of a file that is mutated already
            path.write_bytes(mutate_bytes(rng, path.read_bytes()))


# ---- what may come of it ------------------------------------------------------------------------


def contents(folder):
    """All files below a folder with what they hold."""
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None
        for p in folder.rglob("*")
    }


def generator(seed, number):
    return random.Random(f"{seed}-{number}")


def make(seeds, seed, number, work):
    """Make one mutant in `work`; its format, and the run to forecast."""
    rng = generator(seed, number)
    kind = rng.choice(sorted(seeds))
    earlier, later = work / "earlier", work / "later"
    for source, target in zip(seeds[kind], (earlier, later), strict=True):
        shutil.copytree(source, target)
    which = rng.choice((earlier, later, later, later))
    mutate(rng, kind, which)
    return kind, {0: earlier, 4: later}


def attempt(run, work):
    """Forecast a run; what is wrong with what happens, or how it ended."""
    before = contents(work)
    out = work / "out"
    try:
        wfcast.forecast_checkpoint(LINE, run, 8, out)
    except wfcast.WfcastError as error:
        if contents(work) != before:
            return False, f"wrote or left something behind: {contents(work).keys() - before.keys()}"
        return True, f"{type(error).__name__}: {error}"
    except (Exception, BaseException) as error:  # Rust's panics are no Exceptions
        if isinstance(error, KeyboardInterrupt):
            raise
        return False, traceback.format_exc()
    after = contents(work)
    if {k: v for k, v in after.items() if k.partition("/")[0] != "out"} != before:
        return False, "a forecast changed its inputs"
    try:
        checkpoint = open_checkpoint(out)
        for name in checkpoint.tensors:
            checkpoint.raw(name)
    except Exception:
        return False, "a forecast that cannot be read:\n" + traceback.format_exc()
    return True, "forecast"


def limit():
    """Limit memory and file size of this process."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + ROOM, size + ROOM))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST, LARGEST))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def child(seed, first, last, seconds):
    """Try mutants; one line of JSON each, before and after it."""
    os.fsync = lambda descriptor: None  # much faster, and no test of disks
    warnings.simplefilter("ignore")
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory(prefix="wfcast-fuzz-") as folder:
        seeds = build(Path(folder) / "seeds")
        warm = Path(folder) / "warm"
        for kind, (earlier, later) in seeds.items():
            warm.mkdir()
            good, text = attempt({0: earlier, 4: later}, warm)
            if text != "forecast":
                raise SystemExit(f"{kind}: the seed itself: {text}")
            shutil.rmtree(warm)
        limit()
        for number in range(first, last):
            if time.monotonic() > end:
                break
            work = Path(folder) / "work"
            work.mkdir()
            print(json.dumps({"begin": number}), flush=True)
            kind, run = make(seeds, seed, number, work)
            signal.alarm(SECONDS)
            good, text = attempt(run, work)
            signal.alarm(0)
            if not good or text == "forecast":
                text = text.replace(folder, "")
            print(json.dumps({"kind": kind, "good": good, "text": text[-3000:]}), flush=True)
            shutil.rmtree(work)


def fuzz(count, seconds, seed=0, log=None):
    """Try mutants in child processes, until there were so many or the time is over.

    Returns
    -------
    tried, forecast : int
    findings : list of str
    """
    end = time.monotonic() + seconds
    number, forecast, findings = 0, 0, []
    environment = {**os.environ, "PYTHONPATH": str(Path(wfcast.__file__).parents[1])}
    with tempfile.TemporaryDirectory(prefix="wfcast-fuzz-") as folder:
        while number < count and time.monotonic() < end:
            left = end - time.monotonic()
            command = [sys.executable, "-P", __file__, "--child"]
            command += [str(seed), str(number), str(count), str(left)]
            process = subprocess.Popen(
                command,
                env={**environment, "TMPDIR": folder},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE if log is None else None,
                text=True,
            )
            began = None
            for line in process.stdout:
                told = json.loads(line)
                if "begin" in told:
                    began = told["begin"]
                    continue
                number, began = began + 1, None
                forecast += told["text"] == "forecast"
                if not told["good"]:
                    which = f"seed {seed}, number {number - 1}, {told['kind']}"
                    findings.append(f"{which}:\n{told['text']}")
                    if log:
                        log(findings[-1])
            stderr = process.communicate()[1] or ""
            if began is not None:
                findings.append(f"seed {seed}, number {began}: ended with {process.returncode}")
                if log:
                    log(findings[-1])
                number = began + 1
            elif process.returncode:
                raise RuntimeError(f"a child ended with {process.returncode}: {stderr[-2000:]}")
            else:
                break
    return number, forecast, findings


def one(seed, number, folder):
    """Make one mutant again, leave it in a folder, and try it here."""
    folder = Path(folder or tempfile.mkdtemp(prefix="wfcast-mutant-"))
    seeds = build(folder / "seeds")
    (folder / "work").mkdir()
    kind, run = make(seeds, seed, number, folder / "work")
    print(f"{kind} in {folder / 'work'}", flush=True)
    print(*attempt(run, folder / "work"))


def main(arguments):
    if arguments[:1] == ["--child"]:
        seed, first, last, seconds = arguments[1:]
        child(int(seed), int(first), int(last), float(seconds))
        return
    if arguments[:1] == ["--one"]:
        one(int(arguments[1]), int(arguments[2]), arguments[3] if len(arguments) > 3 else None)
        return
    seed = int(arguments[1]) if len(arguments) > 1 else random.randrange(1 << 32)
    print(f"seed {seed}", flush=True)
    tried, forecast, findings = fuzz(1 << 60, float(arguments[0]), seed, print)
    print(f"{tried} mutants, {forecast} of them forecast, {len(findings)} findings")
    raise SystemExit(bool(findings))


if __name__ == "__main__":
    main(sys.argv[1:])
