"""Judges: what gives a number for a checkpoint on disk, a function or a command."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Self

from .._errors import WfcastError
from .._parameters import is_finite

__all__ = ["CommandJudge", "Judge", "number_by"]

Judge = Callable[[Path], Any]

SHOWN_LINES = 3
"""The lines of what a command printed on stderr that its failure is reported with."""

SHOWN_BYTES = 1 << 12

LISTENS = 1.0
"""Seconds after which a signal is heard at the latest."""

_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_NUMBER = re.compile(
    r"(?<![\w.])(?<!\w-)[-+]?(?:(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?|nan|inf(?:inity)?)(?!\w|\.\d)",
    re.IGNORECASE,
)


class CommandJudge:
    """A command that prints a number: the last one on its stdout counts.

    Parameters
    ----------
    command : str
        Split as a shell does, but run without one; ``{}`` in it stands for the path.
    timeout : float, optional
        Seconds, after which it is killed with all that it has started.

    Raises
    ------
    WfcastError
        It is no command, has no ``{}``, or there is no such program.
    """

    def __init__(self, command: str, timeout: float | None = None) -> None:
        try:
            self._words = shlex.split(command)
        except ValueError as error:
            raise WfcastError(f"the judge {command!r} is no command: {error}") from error
        if not any("{}" in word for word in self._words):
            raise WfcastError(
                f"the judge {command!r} has no {{}}, which stands for the path of a candidate: "
                "expected a command such as 'python eval.py {}'"
            )
        if shutil.which(self._words[0]) is None:
            raise WfcastError(f"the judge {command!r}: there is no program {self._words[0]!r}")
        if timeout is not None and (not is_finite(timeout) or timeout <= 0):
            raise WfcastError(f"judge_timeout is {timeout!r}, expected seconds above 0")
        self._timeout = timeout

    def __call__(self, path: Path) -> float:
        words = [word.replace("{}", os.fspath(path)) for word in self._words]
        # files, not pipes: what the command leaves running may hold them open as long as it likes
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            code = self._run(words, out, err)
            if code is None:
                raise WfcastError(f"the judge was killed after {self._timeout:g} s{_said(err)}")
            if code:
                ended = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
                raise WfcastError(f"the judge {ended}{_said(err)}")
            return _last_number(out, err)

    def _run(self, words: list[str], out: IO[bytes], err: IO[bytes]) -> int | None:
        """The exit code; None where it was killed for taking too long."""
        with (
            _Signals() as signals,
            subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
            ) as process,
        ):
            try:
                signals.let_in()
                return self._wait(process)
            except subprocess.TimeoutExpired:
                _kill(process)
                return None
            except BaseException:  # Ctrl-C, which a session of its own does not hear
                _kill(process)
                raise

    def _wait(self, process: subprocess.Popen[bytes]) -> int:
        """Its exit code; TimeoutExpired where it takes too long."""
        if self._timeout is not None:
            return process.wait(self._timeout)
        # Without a timeout the system waits, and a signal that came just before, or to another
        # thread, would be heard at the end of the process only.
        while True:
            with suppress(subprocess.TimeoutExpired):
                return process.wait(LISTENS)


def number_by(judge: Judge, path: Path) -> float:
    """What a judge says of a path.

    Raises
    ------
    WfcastError
        It fails, whatever it raises, or gives no finite number.
    """
    try:
        value = judge(path)
    except WfcastError:
        raise
    except Exception as error:
        raise WfcastError(f"the judge raised {type(error).__name__}: {error}") from error
    try:
        if isinstance(value, str | bytes | bool):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise WfcastError(f"the judge gave {value!r}, expected a number") from error
    if not is_finite(number):
        raise WfcastError(f"the judge gave {number}, expected a finite number")
    return number


def _last_number(out: IO[bytes], err: IO[bytes]) -> float:
    out.seek(0)
    last = None
    for line in out:
        for match in _NUMBER.finditer(_COLOUR.sub("", line.decode(errors="replace"))):
            last = match[0]
    if last is None:
        raise WfcastError(f"the judge printed no number on stdout{_said(err)}")
    return float(last)


def _said(err: IO[bytes]) -> str:
    """The end of what it printed on stderr, in one line."""
    err.seek(max(0, err.seek(0, os.SEEK_END) - SHOWN_BYTES))
    lines = [line.strip() for line in err.read().decode(errors="replace").splitlines()]
    lines = [_COLOUR.sub("", line) for line in lines if line][-SHOWN_LINES:]
    return f"; its last words: {' | '.join(lines)}" if lines else ""


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End it and what it has started: it leads a group of its own."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()  # Popen itself does not after Ctrl-C


class _Signals:
    """Ctrl-C and SIGTERM while a process is started, and then as long as it runs.

    What comes before its number is known waits until then, so that it can be ended. SIGTERM, where
    it would end this process at once, ends it as Ctrl-C does: with all cleaned up.
    """

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}
        self._came: int | None = None
        self._open = False

    def let_in(self) -> None:
        """Act on what has come, and from now on at once."""
        self._open = True
        if self._came is not None:
            self._act(self._came, None)

    def _hear(self, number: int, frame: Any) -> None:
        if self._open:
            self._act(number, frame)
        self._came = number

    def _act(self, number: int, frame: Any) -> None:
        if number == signal.SIGTERM:
            raise SystemExit(128 + number)
        self._before[number](number, frame)

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # others set no handlers
            interrupt, end = (signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM))
            if callable(interrupt):
                self._before[signal.SIGINT] = interrupt
            if end is signal.SIG_DFL:
                self._before[signal.SIGTERM] = end
            for number in self._before:
                signal.signal(number, self._hear)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
