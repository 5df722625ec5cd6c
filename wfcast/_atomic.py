"""Files and folders that appear complete or not at all.

Both are made under a temporary name beside the target, ``.NAME.<12 hex digits>.tmp``, and hold a
lock while they are being made. Who finds such a name without a lock has found what a killed process
left behind, and removes it.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from ._errors import CheckpointError

_TAKEN = (errno.ENOTEMPTY, errno.EEXIST)  # what rename says of a folder with something in it


def check_target(target: Path, *, folder: bool = False) -> None:
    """Raise CheckpointError where `target` cannot be written: to know before long work."""
    if not target.parent.is_dir():
        raise CheckpointError(
            f"cannot write {str(target)!r}: there is no folder {str(target.parent)!r}"
        )
    try:
        mode = target.stat().st_mode  # one look: another process may take it away meanwhile
    except OSError:
        return  # nothing is there, or what is there leads nowhere
    if folder and not stat.S_ISDIR(mode):
        raise CheckpointError(f"cannot write {str(target)!r}: it is a file, expected a folder name")
    if not folder and stat.S_ISDIR(mode):
        raise CheckpointError(f"cannot write {str(target)!r}: it is a folder, expected a file name")
    if not folder and not stat.S_ISREG(mode):
        # a device or a pipe, which the finished file would take the place of
        raise CheckpointError(f"cannot write {str(target)!r}: it is no regular file")


@contextmanager
def atomic_file(target: Path) -> Iterator[BinaryIO]:
    """A binary file that takes the place of `target` when the block ends without an error.

    It is written under a temporary name in the same folder, synced, renamed over `target`, and
    the folder is synced. Whatever goes wrong before, Ctrl-C included, removes it and leaves
    `target` as it was. The file has the mode of the target it replaces, or the usual one. A
    symbolic link stays, and what it leads to is replaced.

    Raises
    ------
    CheckpointError
        The folder is not there, or `target` is a folder itself.
    OSError
        The disk is full, the folder read-only, or the like.
    """
    target = Path(os.path.realpath(target))
    check_target(target)
    with _temporary(target, _new_file) as (temporary, descriptor):
        with suppress(FileNotFoundError):
            os.chmod(temporary, target.stat().st_mode & 0o777)
        with os.fdopen(descriptor, "w+b", closefd=False) as file:
            yield file
            file.flush()
            _sync(descriptor)
        os.replace(temporary, target)
    sync_folder(target.parent)


@contextmanager
def atomic_folder(target: Path, *, replace: bool = True) -> Iterator[Path]:
    """A new folder that takes the place of `target`, and of all in it, when the block ends.

    Without `replace` it takes a name that is free or that of an empty folder, at that moment too.
    Yields its temporary path; what is written there is to be synced (`synced_file` does). Where
    the system can exchange two names, `target` is at every moment the old folder or the new one;
    elsewhere there is a moment at which it is missing. Whatever goes wrong before removes the new
    folder and leaves `target` as it was.

    Raises
    ------
    CheckpointError
        The folder that is to hold it is not there, `target` is a file, or it is not to be replaced.
    OSError
        The disk is full, the folder read-only, or the like.
    """
    target = Path(os.path.realpath(target))
    check_target(target, folder=True)
    with _temporary(target, _new_folder) as (temporary, _):
        with suppress(FileNotFoundError):
            os.chmod(temporary, target.stat().st_mode & 0o777)
        yield temporary
        sync_folder(temporary)
        _replace_folder(temporary, target, replace)
        sync_folder(target.parent)  # before the old folder, which has the other name now, goes


@contextmanager
def scratch_folder(target: Path) -> Iterator[Path]:
    """A new folder beside `target` for what may become it (`put_in_place`), gone at the end.

    Raises
    ------
    OSError
        The folder is read-only, or the like.
    """
    with _temporary(Path(os.path.realpath(target)), _new_folder) as (temporary, _):
        yield temporary


def put_in_place(made: Path, target: Path, *, replace: bool = True) -> None:
    """Give what lies complete and synced under another name the name `target`, at once.

    As at the end of `atomic_file` and `atomic_folder`: what was there is gone then, or has the
    name `made`.
    """
    target = Path(os.path.realpath(target))
    check_target(target, folder=made.is_dir())
    with suppress(FileNotFoundError):
        os.chmod(made, target.stat().st_mode & 0o777)
    if made.is_dir():
        _replace_folder(made, target, replace)
    else:
        os.replace(made, target)
    sync_folder(target.parent)


@contextmanager
def synced_file(path: Path) -> Iterator[BinaryIO]:
    """A new binary file that is on the disk when the block ends."""
    with open(path, "xb") as file:
        yield file
        file.flush()
        _sync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Put the names in a folder on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _sync(descriptor)
    finally:
        os.close(descriptor)


def _sync(descriptor: int) -> None:
    """Put a file on the disk, not only into the disk's own memory, as ``fsync`` does on macOS."""
    full_sync = getattr(fcntl, "F_FULLFSYNC", None)
    if full_sync is not None:
        with suppress(OSError):  # not every file system has it
            fcntl.fcntl(descriptor, full_sync)
            return
    os.fsync(descriptor)


# ---- temporary names ----------------------------------------------------------------------------


def _new_file(path: Path) -> int:
    return os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)


def _new_folder(path: Path) -> int | None:
    os.mkdir(path)
    try:
        return os.open(path, os.O_RDONLY)
    except FileNotFoundError:  # someone has taken it for left behind
        return None


@contextmanager
def _temporary(target: Path, create: Callable[[Path], int | None]) -> Iterator[tuple[Path, int]]:
    """A new, locked temporary beside `target`, and what was left behind there removed.

    Yields its path and its descriptor. At the end whatever has that name is removed: the new one
    after an error, or the old one that it was exchanged with. It is made inside the ``try``, so
    that Ctrl-C finds no moment at which nobody would remove it.
    """
    stem = f".{_short(target)}."
    _sweep(target.parent)
    done = False
    while not done:
        path = target.parent / f"{stem}{os.urandom(6).hex()}.tmp"
        descriptor = None
        try:
            descriptor = create(path)
            # someone may take it for left behind, between its making and its lock: then once more
            if descriptor is None:
                continue
            if _lock(descriptor) is not False and _is_at(descriptor, path):
                done = True
                yield path, descriptor
        except OSError as error:
            if error.filename is None:  # the system speaks of a descriptor
                error.filename = str(target)
            raise
        finally:
            try:
                _remove(path)
            except KeyboardInterrupt:
                _remove(path)  # what was begun is finished
                raise
            finally:
                if descriptor is not None:
                    os.close(descriptor)


def _short(target: Path) -> str:
    """Its name, cut so that a temporary's is no longer than names of files may be."""
    return os.fsdecode(os.fsencode(target.name)[:200])


def _remove(path: Path) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError:
        shutil.rmtree(path, ignore_errors=True)


_LEFT = re.compile(r"\..+\.[0-9a-f]{12}\.tmp", re.DOTALL)


def _sweep(folder: Path) -> None:
    """Remove what killed processes have left in a folder, whatever they were writing there."""
    with os.scandir(folder) as entries:
        left = [Path(e.path) for e in entries if _LEFT.fullmatch(e.name) and _is_plain(e)]
    for path in left:
        with suppress(OSError):  # gone, or not ours to remove
            # a pipe may have come in its place: it is not waited for
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
            try:
                if _lock(descriptor) is True and _is_at(descriptor, path):
                    if path.is_dir():
                        shutil.rmtree(path)
                    else:
                        os.unlink(path)
            finally:
                os.close(descriptor)


def _is_plain(entry: os.DirEntry[str]) -> bool:
    return entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False)


def _lock(descriptor: int) -> bool | None:
    """Whether the lock was free and is ours now; None where the file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        here = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(descriptor), here)


# ---- putting a folder in place ------------------------------------------------------------------


def _replace_folder(new: Path, target: Path, replace: bool) -> None:
    """Give `new` the name of `target`; what was there has that of `new`, or is gone."""
    while True:
        try:
            os.rename(new, target)
            return
        except OSError as error:  # something is there
            if error.errno not in _TAKEN:
                raise
        if not replace:
            raise CheckpointError(
                f"cannot write {str(target)!r}: something was put there meanwhile, which is kept"
            )
        try:
            _exchange(new, target)
            return
        except OSError as error:  # it went, or another came, meanwhile
            if error.errno not in (errno.ENOENT, *_TAKEN):
                raise


def _exchange(new: Path, target: Path) -> None:
    """Swap two names in one step; where the system cannot, `new` takes the place of `target`."""
    try:
        _exchange_at_once(new, target)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EINVAL):
            raise
        _exchange_by_renames(new, target)


def _exchange_by_renames(new: Path, target: Path) -> None:
    """Put `new` in the place of `target`, which goes by a name that is never swept meanwhile."""
    aside = new.with_name(f".{_short(target)}.{os.urandom(6).hex()}.old")
    try:
        os.rename(target, aside)
        os.rename(new, target)
    finally:
        if os.path.lexists(aside) and (os.path.lexists(target) or not _is_back(aside, target)):
            # the new one is there, or another process's
            try:
                sync_folder(target.parent)  # before the old folder goes
            finally:
                shutil.rmtree(aside, ignore_errors=True)


def _is_back(aside: Path, target: Path) -> bool:
    """Give a folder its name again; False where another process has put something there."""
    try:
        os.rename(aside, target)
    except OSError as error:
        if error.errno not in _TAKEN:
            raise
        return False
    return True


def _exchange_at_once(a: Path, b: Path) -> None:
    """Swap two names in one step (Linux: renameat2 with RENAME_EXCHANGE)."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from None
    at_cwd, exchange = -100, 2
    paths = os.fsencode(a), os.fsencode(b)
    if renameat2(at_cwd, paths[0], at_cwd, paths[1], exchange) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(a), None, str(b))
