"""Checkpoint files: read by the library's rules, written whole or not at all."""

import errno
import json
import os
import re
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

import wfcast
from wfcast import _atomic
from wfcast.checkpoint import (
    Layout,
    SafetensorsWriter,
    Tensor,
    create_checkpoint,
    open_checkpoint,
)
from wfcast.checkpoint._base import BITS
from wfcast.checkpoint._safetensors import DTYPES

ml_dtypes = pytest.importorskip("ml_dtypes")  # an extra: wfcast itself does without


def tensors(t, dtype=np.float32):
    rng = np.random.default_rng(7)
    a, b = rng.normal(size=(2, 6, 5))
    return {
        "layer.weight": (a + t * b).astype(dtype),
        "layer.bias": (a[0] + t).astype(np.float16),
        "half": (b + t * a).astype(ml_dtypes.bfloat16),
        "scalar": np.array(1.5 * t),
        "none": np.zeros((0, 3), np.float32),
        "ids": np.arange(5) + t,
        "mask": np.array([True, False]),
    }


@pytest.fixture
def pair(tmp_path):
    paths = {t: tmp_path / f"step{t}.safetensors" for t in (0, 4)}
    for t, path in paths.items():
        save_file(tensors(t), path, metadata={"format": "pt", "step": str(t)})
    return paths


# a subprocess imports the wfcast that is tested here
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(wfcast.__file__).parents[1])}

LINE = wfcast.linear_trend((0, 4), (8,))


def run_apart(code, *arguments):
    """Run code in a process of its own and return what it prints."""
    return subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(code), *map(str, arguments)],
        text=True,
        capture_output=True,
        check=True,
        env=ENVIRONMENT,
    ).stdout


def files(folder):
    return sorted(p.name for p in folder.iterdir())


def test_reads_what_was_written(pair):
    checkpoint = open_checkpoint(pair[4])
    truth = tensors(4)
    assert checkpoint.metadata == {"format": "pt", "step": "4"}
    assert checkpoint.tensors.keys() == truth.keys()
    for name, value in truth.items():
        assert checkpoint.tensors[name] == Tensor(name, value.shape, value.dtype.name)
        got = checkpoint.value(name)
        assert got.dtype == value.dtype
        np.testing.assert_array_equal(got, value)
        assert checkpoint.raw(name).tobytes() == value.tobytes()
    column = checkpoint.column("half")
    assert column.dtype == "bfloat16"
    assert not column.array.flags.writeable
    np.testing.assert_array_equal(column.array, truth["half"].view(np.uint16))


def known(dtype, path):
    """Whether the installed library knows a dtype; earlier ones lack some float8 kinds."""
    path.write_bytes(packed({"a": entry([0], 0, 0, dtype)}))
    try:
        with safe_open(path, framework="numpy") as f:
            return f.offset_keys() == ["a"]
    except SafetensorError:
        return False


def test_every_dtype_of_the_library_has_its_size(tmp_path):
    """The offsets follow from shapes and dtypes: each is compared with the library's own bytes."""
    names = [d for d, t in DTYPES.items() if BITS[t] % 8 == 0 and known(d, tmp_path / "one")]
    assert len(names) >= 16
    header, start = {}, 0
    for name in names:
        length = 3 * BITS[DTYPES[name]] // 8
        header[name] = {"dtype": name, "shape": [3], "data_offsets": [start, start + length]}
        start += length
    text = json.dumps(header).encode()
    data = np.random.default_rng(0).integers(0, 2, start, dtype=np.uint8).tobytes()
    path = tmp_path / "all.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)  # header of odd length
    checkpoint = open_checkpoint(path)
    for name in names:
        begin, end = header[name]["data_offsets"]
        assert checkpoint.raw(name).tobytes() == data[begin:end]
    assert not checkpoint.column("F64").array.flags.aligned or len(text) % 8 == 0


def test_float8_is_copied_and_listed(tmp_path):
    path, out = tmp_path / "f8.safetensors", tmp_path / "out.safetensors"
    path.write_bytes(packed({"w": entry([4], 0, 4, "F8_E4M3")}, b"abcd"))
    report = wfcast.forecast_checkpoint(wfcast.persistence((0,), (1,)), {0: path}, 1, out)
    assert report.copied == {"w": "float8_e4m3fn"}
    assert "copied, float8_e4m3fn: w" in str(report)
    assert out.read_bytes().endswith(b"abcd")
    assert open_checkpoint(out).tensors["w"].dtype == "float8_e4m3fn"


def test_forecast_file_to_file(pair, tmp_path):
    out = tmp_path / "out.safetensors"
    report = wfcast.forecast_checkpoint(LINE, pair, step=8, out=out)
    assert report.path == out
    assert report.step == 8
    assert set(report.copied) == {"ids", "mask", "none"}
    got, expected = load_file(out), LINE.predict(pair, 8)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert got[name].dtype == value.dtype
        np.testing.assert_array_equal(got[name], value)
    np.testing.assert_array_equal(got["scalar"], 12.0)
    with safe_open(out, framework="numpy") as f:
        metadata = f.metadata()
    assert metadata["format"] == "pt"
    assert metadata["step"] == "4"
    provenance = json.loads(metadata["wfcast.forecast"])
    folder = tmp_path.name
    assert provenance["inputs"] == {str(t): f"{folder}/step{t}.safetensors" for t in (0, 4)}
    assert provenance["step"] == 8
    assert provenance["forecaster"] == LINE.fingerprint()
    assert files(tmp_path) == ["out.safetensors", "step0.safetensors", "step4.safetensors"]
    (tmp_path / "usual").touch()
    assert os.stat(out).st_mode == os.stat(tmp_path / "usual").st_mode


def test_large_tensors_go_in_blocks(pair, tmp_path, monkeypatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    wfcast.forecast_checkpoint(LINE, pair, 8, whole)
    monkeypatch.setattr("wfcast._forecast.BLOCK_BYTES", 28)
    seen = []
    wfcast.forecast_checkpoint(LINE, pair, 8, cut, progress=lambda n, r: seen.append(r))
    assert max(seen) <= 14
    assert sum(seen) == 30 + 5 + 30 + 1 + 5 + 2
    assert cut.read_bytes() == whole.read_bytes()
    bad = tensors(4)
    bad["layer.weight"][4, 2] = np.nan
    save_file(bad, pair[4])
    with pytest.raises(wfcast.WfcastError, match=r"row 22 at index \(4, 2\) \(value nan\)"):
        wfcast.forecast_checkpoint(LINE, pair, 8, cut)


def test_output_over_an_input(pair, tmp_path):
    expected = LINE.predict(pair)
    wfcast.forecast_checkpoint(LINE, pair, 8, pair[4], overwrite=True)
    got = load_file(pair[4])
    for name, value in expected.items():
        np.testing.assert_array_equal(got[name], value)
    assert files(tmp_path) == ["step0.safetensors", "step4.safetensors"]


def test_mappings_to_file(tmp_path):
    torch = pytest.importorskip("torch")  # an extra: wfcast itself does without
    run = {
        t: {"w": torch.arange(6.0).reshape(2, 3).T.bfloat16() * t, "n": torch.tensor([t])}
        for t in (0, 4)
    }
    out = tmp_path / "out.safetensors"
    wfcast.forecast_checkpoint(LINE, run, None, out)
    from safetensors.torch import load_file as load_torch

    got = load_torch(out)
    assert got["w"].dtype == torch.bfloat16
    assert torch.equal(got["w"], run[4]["w"] * 2)
    assert got["n"].tolist() == [4]


def test_overwrites_with_the_mode_of_the_target(pair, tmp_path):
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"old")
    out.chmod(0o600)
    wfcast.forecast_checkpoint(LINE, pair, 8, out)
    assert os.stat(out).st_mode & 0o777 == 0o600
    assert len(load_file(out)) == 7


# ---- nothing is left behind -------------------------------------------------------------------


def test_bad_values_write_nothing(pair, tmp_path):
    bad = tensors(4)
    bad["scalar"] = np.array(np.inf)
    save_file(bad, pair[4])
    before = pair[4].read_bytes()
    with pytest.raises(wfcast.WfcastError, match=r"'scalar' of step 4.*inf"):
        wfcast.forecast_checkpoint(LINE, pair, 8, pair[4], overwrite=True)
    assert pair[4].read_bytes() == before
    assert files(tmp_path) == ["step0.safetensors", "step4.safetensors"]
    wfcast.forecast_checkpoint(LINE, pair, 8, tmp_path / "out", check_finite=False)
    assert np.isinf(load_file(tmp_path / "out")["scalar"])


@pytest.mark.parametrize("name", ["write", "fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_failing_disk_leaves_the_old_file(pair, tmp_path, monkeypatch, name, code):
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"old")
    before = files(tmp_path)

    def fail(*args):
        raise OSError(code, os.strerror(code))

    if name == "write":
        monkeypatch.setattr(SafetensorsWriter, "room", fail)
    else:
        monkeypatch.setattr(_atomic.os, name, fail)
    with pytest.raises(OSError, match=re.escape(os.strerror(code))) as caught:
        wfcast.forecast_checkpoint(LINE, pair, 8, out)
    assert caught.value.errno == code
    assert caught.value.filename == str(out)
    monkeypatch.undo()
    assert out.read_bytes() == b"old"
    assert files(tmp_path) == before


def test_full_disk_for_real(pair, tmp_path):
    """A file size limit makes the system refuse to write in the middle of the file."""
    code = """
        import resource, signal, sys, wfcast
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
        line = wfcast.linear_trend((0, 4), (8,))
        try:
            run = {0: sys.argv[1], 4: sys.argv[2]}
            wfcast.forecast_checkpoint(line, run, 8, sys.argv[2], overwrite=True)
        except OSError as error:
            print(error.errno, error.filename)
    """
    before = pair[4].read_bytes()
    assert run_apart(code, pair[0], pair[4]).split() == [str(errno.EFBIG), str(pair[4])]
    assert pair[4].read_bytes() == before
    assert files(tmp_path) == ["step0.safetensors", "step4.safetensors"]


def test_interrupt_leaves_nothing(pair, tmp_path):
    def stop(name, rows):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        wfcast.forecast_checkpoint(LINE, pair, 8, tmp_path / "out", progress=stop)
    assert files(tmp_path) == ["step0.safetensors", "step4.safetensors"]


def test_writer_wants_every_tensor(tmp_path):
    tensors = [Tensor(n, (1,), "float32") for n in "ab"]
    with (
        pytest.raises(AssertionError, match="'b' was not written"),
        create_checkpoint(tmp_path / "x", Layout(), tensors, {}, {}) as writer,
    ):
        writer.write("a", np.zeros(1, np.float32))
    assert files(tmp_path) == []


@pytest.mark.parametrize("name", ["__metadata__", "lone \ud800 surrogate"])
def test_names_that_the_format_cannot_hold(tmp_path, name):
    run = {t: {name: np.ones(3)} for t in (0, 4)}
    with pytest.raises(wfcast.CheckpointError, match="cannot be the name of a tensor"):
        wfcast.forecast_checkpoint(LINE, run, 8, tmp_path / "out")
    assert files(tmp_path) == []


def test_a_device_or_pipe_is_not_replaced(pair, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(wfcast.CheckpointError, match="it is no regular file"):
        wfcast.forecast_checkpoint(LINE, pair, 8, pipe)
    with pytest.raises(wfcast.CheckpointError, match="it is no regular file"):
        LINE.save(pipe)
    assert pipe.is_fifo()


def test_output_that_cannot_be(pair, tmp_path):
    with pytest.raises(wfcast.CheckpointError, match="there is no folder"):
        wfcast.forecast_checkpoint(LINE, pair, 8, tmp_path / "nowhere" / "x.safetensors")
    with pytest.raises(wfcast.CheckpointError, match="it is a folder"):
        wfcast.forecast_checkpoint(LINE, pair, 8, tmp_path)


# ---- files that are wrong ---------------------------------------------------------------------


def packed(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(shape, start, stop, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"short",
        struct.pack("<Q", 1 << 60) + b"{}",
        packed(b"not json"),
        packed(b"[]"),
        packed({"a": entry([2], 0, 8)}, b"\0" * 4),
        packed({"a": entry([2], 0, 8)}, b"\0" * 12),
        packed({"a": entry([3], 0, 8)}, b"\0" * 8),
        packed({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, b"\0" * 12),
        packed({"a": entry([2], 0, 8), "b": entry([2], 12, 20)}, b"\0" * 20),
        packed({"a": entry([2], 8, 16)}, b"\0" * 16),
        packed({"a": entry([2], 8, 0)}, b"\0" * 8),
        packed({"a": entry([1 << 62, 16], 0, 8)}, b"\0" * 8),
        packed({"a": entry([2], 0, 8, "F99")}, b"\0" * 8),
        packed({"a": entry([-2], 0, 8)}, b"\0" * 8),
    ],
    ids=[
        "empty",
        "short",
        "header-beyond",
        "no-json",
        "list",
        "truncated",
        "trailing",
        "bytes",
        "overlap",
        "gap",
        "gap-first",
        "reversed",
        "overflow",
        "dtype",
        "negative",
    ],
)
def test_bad_files(tmp_path, content):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(wfcast.CheckpointError, match=r"step 0 \('.*bad.safetensors'\) cannot be"):
        wfcast.persistence((0,), (1,)).predict({0: path})


@pytest.mark.parametrize("shape", [[1] * 70, [0, 1 << 62], [1 << 63, 0]])
@pytest.mark.parametrize("dtype", ["F32", "BF16", "I64"])
def test_shapes_that_numpy_cannot_hold(tmp_path, shape, dtype):
    size = 0 if 0 in shape else BITS[DTYPES[dtype]] // 8
    path = tmp_path / "odd.safetensors"
    path.write_bytes(packed({"a": entry(shape, 0, size, dtype)}, b"\0" * size))
    with pytest.raises(wfcast.CheckpointError, match=r"tensor 'a' of step 0 .* NumPy cannot hold"):
        wfcast.persistence((0,), (1,)).predict({0: path})


def test_things_that_are_no_checkpoint(tmp_path):
    keep = wfcast.persistence((0,), (1,))
    with pytest.raises(wfcast.CheckpointError, match=r"holds no finished checkpoint"):
        keep.predict({0: tmp_path})
    with pytest.raises(wfcast.DtypeError, match="step 0 is a ndarray, expected a mapping"):
        keep.predict({0: np.ones(3)})
    with pytest.raises(wfcast.CheckpointError, match="has the key 1, expected tensor names"):
        keep.predict({0: {1: np.ones(3)}})


def test_a_file_that_changes_while_it_is_read(pair):
    checkpoint = open_checkpoint(pair[4], "it")
    save_file({"other": np.ones(3)}, pair[4])
    with pytest.raises(wfcast.CheckpointError, match="changed while it was being read"):
        checkpoint.column("half")
    pair[4].unlink()
    with pytest.raises(wfcast.CheckpointError, match=r"'half' of it .* cannot be read"):
        checkpoint.column("half")


def test_bfloat16_needs_neither_torch_nor_ml_dtypes(pair, tmp_path):
    code = """
        import sys
        import wfcast
        sys.modules["torch"] = sys.modules["ml_dtypes"] = None    # importing them fails
        line = wfcast.linear_trend((0, 4), (8,))
        run = {0: sys.argv[1], 4: sys.argv[2]}
        wfcast.forecast_checkpoint(line, run, 8, sys.argv[3])
        try:
            line.predict(run)
        except wfcast.WfcastError as error:
            print(error)
    """
    out = tmp_path / "out.safetensors"
    printed = run_apart(code, pair[0], pair[4], out)
    assert "tensor 'half' of step 4" in printed
    assert "install ml_dtypes or torch, or forecast file to file" in printed
    np.testing.assert_array_equal(load_file(out)["half"], LINE.predict(pair)["half"])


@pytest.mark.memory
@pytest.mark.parametrize("out", ["c.safetensors", "c.pt", "c"])
def test_memory_is_bounded(tmp_path, out):
    """A forecast of 2 x 192 MB, in a process whose own memory may not grow by 100 MB."""
    pytest.importorskip("psutil")  # only measures
    if out != "c.safetensors":
        pytest.importorskip("torch")  # an extra
    code = """
        import sys, threading, time, psutil, wfcast
        if not sys.argv[3].endswith(".safetensors"):
            import torch.distributed.checkpoint
        me, peak, done = psutil.Process(), [0], threading.Event()

        def own():
            memory = me.memory_info()
            return memory.rss - memory.shared

        def watch():
            while not done.wait(0.002):
                peak[0] = max(peak[0], own())

        line = wfcast.linear_trend((0, 4), (8,))
        start = own()
        watcher = threading.Thread(target=watch)
        watcher.start()
        form = None if "." in sys.argv[3] else "dcp"
        run = {0: sys.argv[1], 4: sys.argv[2]}
        wfcast.forecast_checkpoint(line, run, 8, sys.argv[3], format=form)
        done.set()
        watcher.join()
        print((peak[0] - start) >> 20)
    """
    for t in (0, 4):
        save_file({"big": np.full((48, 1 << 20), t, np.float32)}, tmp_path / f"{t}")
    assert 0 <= int(run_apart(code, tmp_path / "0", tmp_path / "4", tmp_path / out)) < 100
    written = open_checkpoint(tmp_path / out).column("big").array
    assert (written[-1, -1], written.shape) == (8, (48, 1 << 20))
