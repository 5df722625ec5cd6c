"""Files that appear complete or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from .._errors import CheckpointError


def check_target(target: Path) -> None:
    """Raise CheckpointError where `target` cannot be a file: to know before long work."""
    if not target.parent.is_dir():
        raise CheckpointError(
            f"cannot write {str(target)!r}: there is no folder {str(target.parent)!r}"
        )
    if target.is_dir():
        raise CheckpointError(f"cannot write {str(target)!r}: it is a folder, expected a file name")


@contextmanager
def atomic_file(target: Path) -> Iterator[BinaryIO]:
    """A binary file that takes the place of `target` when the block ends without an error.

    It is written under a temporary name in the same folder, synced, renamed over `target`, and
    the folder is synced. Whatever goes wrong before, Ctrl-C included, removes it and leaves
    `target` as it was. The file has the mode of the target it replaces, or the usual one.

    Raises
    ------
    CheckpointError
        The folder is not there, or `target` is a folder itself.
    OSError
        The disk is full, the folder read-only, or the like.
    """
    check_target(target)
    folder = target.parent
    temporary = folder / f".{target.name[:200]}.{secrets.token_hex(6)}.tmp"
    descriptor = os.open(
        temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_BINARY", 0), 0o666
    )
    try:
        with os.fdopen(descriptor, "wb") as file:
            with suppress(FileNotFoundError):
                os.chmod(temporary, target.stat().st_mode & 0o777)
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
