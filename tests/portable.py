"""What only Linux has, taken away, so that the tests run what other systems do instead."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import pytest

from wfcast import _atomic


def _no_such_call(a: Path, b: Path) -> None:
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


def forget_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_atomic, "_exchange_at_once", _no_such_call)  # renameat2
    monkeypatch.setattr(tempfile, "_O_TMPFILE_WORKS", False)  # nameless files get a name first
    monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
