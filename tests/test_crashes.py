"""Never a broken file: killed, interrupted, failing at any call, or racing another process."""

import errno
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import wfcast

KINDS = ("file", "shards", "torch", "dcp", "farcaster", "readout")
DRIVER = Path(__file__).with_name("crashes.py")


def driven(mode, kind, folder, count, *words, **environment):
    if kind in ("torch", "dcp"):
        pytest.importorskip("torch")  # an extra
    package = os.pathsep.join((str(Path(wfcast.__file__).parents[1]), str(DRIVER.parent)))
    temporary = folder / "tmp"
    temporary.mkdir()
    environment = {**os.environ, "PYTHONPATH": package, "TMPDIR": str(temporary), **environment}
    command = [sys.executable, str(DRIVER), mode, kind, str(folder), str(count), *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(temporary.iterdir()) == []
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_random_moments(tmp_path, kind):
    """Twenty times for each kind of output: the old one or the new one, whole."""
    found = driven("kill", kind, tmp_path, 20)
    assert sum(found.values()) == 20


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_interrupted_at_random_moments(tmp_path, kind):
    assert sum(driven("interrupt", kind, tmp_path, 10).values()) == 10


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_racing_processes(tmp_path, kind):
    assert sum(driven("race", kind, tmp_path, 10).values()) == 10


@pytest.mark.parametrize("kind", ["shards", "dcp"])  # folders
def test_racing_processes_elsewhere_than_on_linux(tmp_path, kind):
    assert sum(driven("race", kind, tmp_path, 5, "portable").values()) == 5


SHIM = r"""
    #define _GNU_SOURCE
    #include <dlfcn.h>
    #include <errno.h>
    #include <fcntl.h>
    #include <stdarg.h>
    #include <stdio.h>
    #include <stdlib.h>
    #include <string.h>
    #include <sys/stat.h>
    #include <sys/uio.h>
    #include <unistd.h>

    static long left = -1;
    static int code;
    long shim_arm(long count, int error) {
        const long before = left;
        left = count;
        code = error;
        return before;
    }

    static int fails(const char *path) {
        const char *folder = getenv("WFCAST_SHIM_FOLDER");
        if (left < 0 || !folder || strncmp(path, folder, strlen(folder)) != 0 || left-- > 0) {
            return 0;
        }
        errno = code;
        return 1;
    }
    static int fd_fails(int fd) {
        char link[64], path[4096];
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        const ssize_t n = readlink(link, path, sizeof path - 1);
        path[n < 0 ? 0 : n] = 0;
        return n > 0 && fails(path);
    }
    #define REAL(type, name, ...) ((type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name))
    ssize_t write(int fd, const void *b, size_t n) {
        return fd_fails(fd) ? -1 : REAL(ssize_t, write, int, const void *, size_t)(fd, b, n);
    }
    ssize_t writev(int fd, const struct iovec *v, int n) {
        return fd_fails(fd) ? -1 : REAL(ssize_t, writev, int, const struct iovec *, int)(fd, v, n);
    }
    ssize_t pwrite64(int fd, const void *b, size_t n, off_t at) {
        return fd_fails(fd)
                   ? -1
                   : REAL(ssize_t, pwrite64, int, const void *, size_t, off_t)(fd, b, n, at);
    }
    int fallocate64(int fd, int mode, off_t at, off_t n) {
        return fd_fails(fd) ? -1
                            : REAL(int, fallocate64, int, int, off_t, off_t)(fd, mode, at, n);
    }
    int fsync(int fd) { return fd_fails(fd) ? -1 : REAL(int, fsync, int)(fd); }
    int rename(const char *a, const char *b) {
        return fails(b) ? -1 : REAL(int, rename, const char *, const char *)(a, b);
    }
    int mkdir(const char *path, mode_t mode) {
        return fails(path) ? -1 : REAL(int, mkdir, const char *, mode_t)(path, mode);
    }
    int open64(const char *path, int flags, ...) {
        va_list rest;
        va_start(rest, flags);
        const mode_t mode = va_arg(rest, mode_t);
        va_end(rest);
        return (flags & O_CREAT) && fails(path)
                   ? -1 : REAL(int, open64, const char *, int, ...)(path, flags, mode);
    }
    int renameat2(int i, const char *a, int j, const char *b, unsigned flags) {
        return fails(b)
                   ? -1
                   : REAL(int, renameat2, int, const char *, int, const char *, unsigned)(
                         i, a, j, b, flags);
    }
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    source = tmp_path_factory.mktemp("shim") / "shim.c"
    source.write_text(textwrap.dedent(SHIM))
    built = source.with_suffix(".so")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", built, source, "-ldl"], check=True)
    return built


@pytest.mark.skipif("WFCAST_SANITIZED" in os.environ, reason="preloads a library of its own")
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize(
    ("kind", "words"), [*((kind, ()) for kind in KINDS), ("shards", ("portable",))]
)
def test_every_call_fails_once(tmp_path, kind, words, code, shim):
    """Each write, sync, rename and creation below the output's folder, one after the other."""
    places = {"LD_PRELOAD": str(shim), "WFCAST_SHIM_FOLDER": str(tmp_path / "outputs")}
    found = driven("fail", kind, tmp_path, int(code), *words, **places)
    # torch makes a folder that is there, and looks no further where it cannot
    assert found["errors"] == found["calls"] - (kind == "dcp") > 3
