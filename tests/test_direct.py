"""Files written from aligned memory, past the page cache or as the file system lets them be."""

import ctypes
import errno
import fcntl
import os
import resource
import threading

import numpy as np
import pytest

import wfcast
from wfcast import _direct
from wfcast._direct import DirectWriter, fill

BLOCK = 1 << 16


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(_direct, "BLOCK_BYTES", BLOCK)
    monkeypatch.setattr(_direct, "LARGE", BLOCK)


@pytest.fixture
def file(tmp_path):
    """An empty file; nothing that was opened for it stays open, no thread goes on."""
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    with open(tmp_path / "out", "w+b") as opened:
        yield opened
    assert not [t for t in threading.enumerate() if t.name.startswith("wfcast")]
    assert not before or len(os.listdir("/proc/self/fd")) == before


def takes_direct(file):
    flags = fcntl.fcntl(file, fcntl.F_GETFL)
    try:
        fcntl.fcntl(file, fcntl.F_SETFL, flags | os.O_DIRECT)
    except (AttributeError, OSError):
        return False
    fcntl.fcntl(file, fcntl.F_SETFL, flags)
    return True


def written(file, size, said=None, seed=0):
    """Pieces of any length, taken or copied; gives what they were."""
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, size, np.uint8)
    start = 0
    with DirectWriter(file.fileno(), size if said is None else said) as writer:
        while start < size:
            stop = min(size, start + int(rng.integers(1, BLOCK + 1)))
            if rng.random() < 0.5:
                writer.room(stop - start)[...] = data[start:stop]
            else:
                assert writer.write(data[start:stop].tobytes()) == stop - start
            start = stop
            assert writer.position == start
    return data.tobytes()


def content(file):
    with open(file.name, "rb") as again:
        return again.read()


@pytest.mark.parametrize(
    "size", [0, 1, 4095, 4096, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK, 9 * BLOCK + 4097]
)
def test_what_is_written_is_there(file, size):
    assert written(file, size) == content(file)
    assert fcntl.fcntl(file, fcntl.F_GETFL) & getattr(os, "O_DIRECT", 0) == 0


@pytest.mark.parametrize("said", [0, 4 * BLOCK, 20 * BLOCK])
def test_a_size_may_be_a_guess(file, said):
    assert written(file, 9 * BLOCK + 5, said) == content(file)


@pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="asks Linux what is in the page cache")
def test_the_page_cache_is_left_alone(file):
    if not takes_direct(file):
        pytest.skip("the file system has no direct writes")
    assert any(not cached(file) for _ in range(20))  # the system may fall back to it, or read ahead


def cached(file):
    """Whether a block that has just been written lies in the page cache."""
    written(file, 4 * BLOCK)
    try:
        os.preadv(file.fileno(), [bytearray(4096)], BLOCK, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    return True


@pytest.mark.parametrize("lacking", ["flag", "write", "reserving", "function"])
def test_file_systems_that_can_do_less(file, monkeypatch, lacking):
    real_fcntl, real_pwrite, refused = fcntl.fcntl, os.pwrite, []

    def no_flag(descriptor, command, value=0):
        if command == fcntl.F_SETFL and value & os.O_DIRECT:
            refused.append("flag")
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real_fcntl(descriptor, command, value)

    def no_write(descriptor, data, offset):
        if real_fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            refused.append("write")
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real_pwrite(descriptor, data, offset)

    class Library:
        def __init__(self, *names, **options):
            refused.append(lacking)
            if lacking == "reserving":
                self.fallocate = self.fallocate64 = lambda *a: (
                    ctypes.set_errno(errno.EOPNOTSUPP) or -1
                )

    if lacking == "flag":
        monkeypatch.setattr(fcntl, "fcntl", no_flag)
    elif lacking == "write":
        if not takes_direct(file):
            pytest.skip("the file system has no direct writes")
        monkeypatch.setattr(os, "pwrite", no_write)
    else:
        monkeypatch.setattr(ctypes, "CDLL", Library)
    assert written(file, 7 * BLOCK + 11) == content(file)
    assert refused
    file.truncate(0)
    fill(file.fileno(), 3 * BLOCK + 1)
    assert content(file) == bytes(3 * BLOCK + 1)


@pytest.mark.parametrize("at", [0, 1, 5, 8])
def test_a_failing_write_is_raised_and_the_last(file, monkeypatch, at):
    real, calls = os.pwrite, []

    def pwrite(*args):
        calls.append(args[2])
        if len(calls) == at + 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args)

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(OSError, match="No space left"):
        written(file, 9 * BLOCK)
    assert len(calls) <= at + 1 + _direct.BLOCKS


def test_nothing_is_written_after_an_error(file, monkeypatch):
    real, calls, go = os.pwrite, [], threading.Event()

    def pwrite(*args):
        calls.append(args[2])
        go.wait()
        return real(*args)

    monkeypatch.setattr(os, "pwrite", pwrite)

    def interrupted():
        with DirectWriter(file.fileno(), 9 * BLOCK) as writer:
            for _ in range(_direct.BLOCKS):
                writer.room(BLOCK)[...] = 1
            raise KeyboardInterrupt

    shutdown = _direct.ThreadPoolExecutor.shutdown
    monkeypatch.setattr(
        _direct.ThreadPoolExecutor, "shutdown", lambda pool: (go.set(), shutdown(pool))
    )
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert calls in ([], [0])


def test_a_full_disk_is_known_before_the_work(tmp_path):
    run = {t: {"w": np.full(BLOCK, float(t))} for t in (0, 4)}
    rows = []
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (BLOCK, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            wfcast.forecast_checkpoint(
                wfcast.linear_trend((0, 4), (8,)),
                run,
                8,
                tmp_path / "out",
                progress=lambda name, n: rows.append(n),
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.filename == str(tmp_path / "out")
    assert rows == []
    assert list(tmp_path.iterdir()) == []
