"""A new file written from aligned memory, past the page cache where the file system lets it.

Whoever writes a large file through the page cache pays for every page of it: it is found, filled,
marked and written out. Here what is to be written is made in place, in one of a few blocks, and
whole blocks go to the disk (O_DIRECT) on a thread, while the next one is being filled.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Self

import numpy as np

from ._columns import Array

__all__ = ["BLOCK_BYTES", "DirectWriter", "fill"]

BLOCK_BYTES = 1 << 24
"""The most bytes of a file that are filled in one piece."""

BLOCKS = 3
"""One is filled, one is written, and one waits, so that the disk never does."""

PAGE = 4096
"""What the offsets, the lengths and the addresses of direct writes are multiples of."""

LARGE = 1 << 20
"""Smaller files are written at their end, in one go, as any file is."""

_NO_RESERVING = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV)


class DirectWriter:
    """Writes a new file from its beginning to its end, which is that of the ``with`` block.

    What was written is then handed to the system; syncing and closing are left to the owner of the
    descriptor. After an error nothing more is written.

    Parameters
    ----------
    descriptor : int
        Of an empty file.
    size : int
        The bytes that it will have, or a guess. They are reserved at once, so that a full disk is
        known before the work.

    Raises
    ------
    OSError
        The disk is full, or the like: it may come later than the bytes it is about.
    """

    def __init__(self, descriptor: int, size: int) -> None:
        self._reserved = size if size >= LARGE else 0
        self._direct = False
        if self._reserved:
            reserve(descriptor, size)
        self._room, self._spare = self._block(), deque[Array]()
        self._start = self._used = 0  # where in the file the room begins; what of it is taken
        self._pool: ThreadPoolExecutor | None = None
        self._coming = deque[tuple[Future[None], Array]]()
        # the thread has a descriptor of its own, which no one closes while it writes
        self._descriptor = os.dup(descriptor)

    @property
    def position(self) -> int:
        """The bytes that were written or taken."""
        return self._start + self._used

    def room(self, nbytes: int) -> Array:
        """The memory of the next bytes of the file, to be filled before the next call."""
        if self._used + nbytes > self._room.size:
            self._hand_over()
        start, self._used = self._used, self._used + nbytes
        assert self._used <= self._room.size, "no piece is larger than a block"
        return self._room[start : self._used]

    def write(self, data: Any) -> int:
        """Write a copy of any bytes."""
        flat = np.frombuffer(data, np.uint8)
        for start in range(0, flat.size, BLOCK_BYTES):
            piece = flat[start : start + BLOCK_BYTES]
            self.room(piece.size)[...] = piece
        return flat.size

    def flush(self) -> None:
        """Do nothing: whoever is given a file may ask for it."""

    def _block(self) -> Array:
        """Memory that begins with a page, for a piece after what is carried over of a page."""
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        memory = mmap.mmap(-1, PAGE + BLOCK_BYTES, flags=private)
        if self._reserved:
            with suppress(AttributeError, OSError):  # not everywhere
                memory.madvise(mmap.MADV_HUGEPAGE)
        return np.frombuffer(memory, np.uint8)

    def _hand_over(self) -> None:
        """Let the thread write the whole pages of the room; the rest moves to the next one."""
        whole = self._used // PAGE * PAGE
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="wfcast")
            self._spare.extend(self._block() for _ in range(BLOCKS - 1))
            if self._reserved:
                self._set_direct(True)
        if not self._spare:
            written, block = self._coming.popleft()
            written.result()
            self._spare.append(block)
        full, self._room = self._room, self._spare.popleft()
        self._room[: self._used - whole] = full[whole : self._used]
        self._coming.append((self._pool.submit(self._put, full[:whole], self._start), full))
        self._start, self._used = self._start + whole, self._used - whole

    def _put(self, data: Array, offset: int) -> None:
        view, done = data.data, 0
        while done < len(view):
            try:
                done += os.pwrite(self._descriptor, view[done:], offset + done)
            except OSError as error:
                # some file systems take the flag and refuse the write
                if error.errno != errno.EINVAL or not self._direct:
                    raise
                self._set_direct(False)

    def _set_direct(self, on: bool) -> None:
        flag: int = getattr(os, "O_DIRECT", 0)  # macOS has none
        flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL) & ~flag
        try:
            fcntl.fcntl(self._descriptor, fcntl.F_SETFL, flags | flag if on else flags)
            self._direct = on
        except OSError:  # the file system has no such way
            self._direct = False

    def _finish(self) -> None:
        while self._coming:
            self._coming.popleft()[0].result()
        whole = self._used // PAGE * PAGE if self._direct else 0
        self._put(self._room[:whole], self._start)
        if self._direct:
            self._set_direct(False)
        self._put(self._room[whole : self._used], self._start + whole)
        if self.position < self._reserved:
            os.ftruncate(self._descriptor, self.position)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            if self._pool is None:
                os.close(self._descriptor)
            else:
                for written, _ in self._coming:
                    written.cancel()
                self._pool.submit(os.close, self._descriptor)  # after the write that is under way
                self._pool.shutdown()


def fill(descriptor: int, size: int) -> None:
    """Give an empty file its size and its place on the disk, so that it may be mapped and written.

    Raises
    ------
    OSError
        The disk is full, or the file would be too large.
    """
    if not reserve(descriptor, size):
        with DirectWriter(descriptor, 0) as file:
            for start in range(0, size, BLOCK_BYTES):
                file.room(min(BLOCK_BYTES, size - start))[...] = 0


def reserve(descriptor: int, size: int) -> bool:
    """Do the same where the file system can do it at once, and say whether it could.

    As ``posix_fallocate``, which fills the file byte by byte where the file system cannot.
    """
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        fallocate = getattr(libc, "fallocate64", None) or libc.fallocate
    except (AttributeError, OSError, TypeError):  # not on macOS
        return False
    while fallocate(descriptor, 0, ctypes.c_int64(0), ctypes.c_int64(size)) != 0:
        code = ctypes.get_errno()
        if code in _NO_RESERVING:
            return False
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))
    return True
