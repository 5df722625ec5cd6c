"""A program that test_crashes.py runs: forecasts that are killed, fail, or race each other.

``crashes.py MODE KIND FOLDER COUNT [portable]``, the last for the forms of what only Linux has that
other systems take. Everything is imported once, and each trial is a fork of this
process, so that a hundred of them take seconds and the moments of death lie in the work itself.
Prints what it counted as JSON; an AssertionError is a failed test.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import random
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from portable import forget_linux

import wfcast
from wfcast.checkpoint import (
    Checkpoint,
    Layout,
    Tensor,
    create_checkpoint,
    open_checkpoint,
    output_layout,
)

STEPS = (1000, 1500, 2000)
LINE = wfcast.linear_trend((0, 500), STEPS)
TENSORS = [Tensor(f"layer.{i}.weight", (128, 256), "float32") for i in range(12)]


# ---- what is written ----------------------------------------------------------------------------


def make_inputs(folder: Path, sharded: bool) -> dict[int, Path]:
    rng = np.random.default_rng(0)
    run = {}
    for step in (0, 500):
        path = folder / f"in-{step}"
        layout = output_layout(
            Layout(folder=True), path, TENSORS, shard_size=400_000 if sharded else None
        )
        with create_checkpoint(path, layout, TENSORS, {}, {}) as writer:
            for name in writer.order:
                writer.write(name, rng.normal(size=(128, 256)).astype(np.float32))
        run[step] = path
    return run


class Job:
    """Forecasts of one kind: the output's name and form."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.folder = kind, folder
        inputs = folder / "inputs"
        inputs.mkdir()
        self.run = make_inputs(inputs, kind == "shards")
        (folder / "outputs").mkdir()
        name = {"file": "out.safetensors", "torch": "out.pt", "farcaster": "f.safetensors"}
        self.target = folder / "outputs" / name.get(kind, "out")
        self.wanted = {step: self.expected(step) for step in STEPS}

    def expected(self, step: int) -> dict[str, np.ndarray]:
        if self.kind == "farcaster":
            return {"coef": np.full((1, 1), float(step))}
        return {n: np.asarray(v) for n, v in LINE.predict(self.run, step).items()}

    def write(self, step: int) -> None:
        if self.kind == "farcaster":
            wfcast.Operator((0,), (1,), [[float(step)]]).save(self.target)
            return
        if self.kind == "readout":
            ahead = {s: (s - 500) / 500 for s in STEPS}
            wfcast.extrapolate_run(
                self.run,
                self.target,
                list(ahead.values()),
                judge=lambda path: float(path.parent.name != f"ahead-{ahead[step]:g}"),
                overwrite=True,
            )
            return
        form = {"format": "dcp"} if self.kind == "dcp" else {}
        wfcast.forecast_checkpoint(LINE, self.run, step, self.target, overwrite=True, **form)

    def read(self) -> int | None:
        """The step that the output wholly is; None where there is none."""
        if not self.target.exists():
            return None
        if self.kind == "farcaster":
            found = {"coef": wfcast.load(self.target).coef["*"]}
        else:
            checkpoint: Checkpoint = open_checkpoint(self.target)
            found = {n: np.asarray(checkpoint.value(n)) for n in checkpoint.tensors}
        for step, tensors in self.wanted.items():
            if found.keys() == tensors.keys() and all(
                np.array_equal(found[n], tensors[n]) for n in tensors
            ):
                return step
        raise AssertionError(f"{self.target} is none of the forecasts whole")

    def litter(self) -> list[str]:
        return sorted(p.name for p in self.target.parent.iterdir() if p != self.target)


NONE_FAILED = 4
"""How a child leaves whose calls all went through."""

# ---- forks --------------------------------------------------------------------------------------


def forked(work: Callable[[], None]) -> int:
    """A child that does `work` and leaves with 0, or 1 after a clean error, or 3 after another."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # until the child can answer it
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        return pid
    code = 3
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        work()
        code = 0
    except (wfcast.WfcastError, OSError, KeyboardInterrupt):
        code = 1
    except BaseException:
        traceback.print_exc()
    finally:
        gc.collect()  # as an interpreter that ends: a context left in a cycle is left behind else
        sys.stderr.flush()
        os._exit(code)


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill(job: Job, count: int, how: int) -> dict[str, int]:
    """Killed at random moments: the old or the new one, and no litter after the next run."""
    rng = random.Random(1)
    start = time.perf_counter()
    assert ended(forked(lambda: job.write(STEPS[0]))) == 0
    took = time.perf_counter() - start
    found: dict[str, int] = {}
    for trial in range(count):
        before, step = job.read(), STEPS[1 + trial % 2]

        def work(step: int = step) -> None:
            job.write(step)
            time.sleep(5)

        pid = forked(work)
        time.sleep(rng.uniform(0, 1.3 * took))
        os.kill(pid, how)
        assert ended(pid) in (-how, 1), "the child ended otherwise"
        after = job.read()
        assert after in (before, step), (before, step, after)
        if how == signal.SIGINT:
            assert job.litter() == [], job.litter()
        key = "new" if after == step else "litter" if job.litter() else "old"
        found[key] = found.get(key, 0) + 1
        if trial % 5 == 4:
            assert ended(forked(lambda: job.write(STEPS[0]))) == 0
            assert job.read() == STEPS[0]
            assert job.litter() == [], job.litter()
    return found


def fail(job: Job, code: int) -> dict[str, int]:
    """Every call that touches the output's folder fails once: the old one or none, no litter."""
    shim = ctypes.CDLL(None)
    shim.shim_arm.restype = ctypes.c_long
    assert ended(forked(lambda: job.write(STEPS[0]))) == 0
    before = job.read()
    errors = number = 0
    while True:

        def work(number: int = number) -> None:
            shim.shim_arm(ctypes.c_long(number), ctypes.c_int(code))
            job.write(STEPS[1])
            if shim.shim_arm(ctypes.c_long(-1), ctypes.c_int(0)) >= 0:
                os._exit(NONE_FAILED)

        status = ended(forked(work))
        assert status in (0, 1, NONE_FAILED), f"call {number}: not a clean error"
        after = job.read()
        assert job.litter() == [], (number, job.litter())
        if status == NONE_FAILED:
            assert after == STEPS[1]
            return {"calls": number, "errors": errors}
        # the sync of the folder comes after the exchange: then the new one stands already
        assert after in (before, STEPS[1]) if status else after == STEPS[1], (number, after)
        if after == STEPS[1]:
            assert ended(forked(lambda: job.write(STEPS[0]))) == 0
        errors += status
        number += 1


def race(job: Job, count: int, gaps: bool = False) -> dict[str, int]:
    """Several at once: one wins, none is mixed, whoever reads meanwhile sees a whole one.

    With `gaps`, or none at all.
    """
    expected = (*STEPS, None) if gaps else STEPS
    errors = (wfcast.CheckpointError, *([FileNotFoundError] if gaps else []))
    assert ended(forked(lambda: job.write(STEPS[0]))) == 0
    won: dict[str, int] = {}
    for _ in range(count):

        def look() -> None:
            until = time.monotonic() + 0.2
            while time.monotonic() < until:
                # where the folder was exchanged between two files: an error, and no mixture
                with suppress(*errors):
                    assert job.read() in expected

        reader = forked(look)
        writers = [forked(lambda step=step: job.write(step)) for step in STEPS]
        assert [ended(pid) for pid in writers] == [0] * len(writers)
        assert ended(reader) == 0, "a reader saw a mixture"
        won[str(job.read())] = won.get(str(job.read()), 0) + 1
        assert job.litter() == [], job.litter()
    return won


def main() -> None:
    mode, kind, folder, count, *portable = sys.argv[1:]
    if portable:
        forget_linux(pytest.MonkeyPatch())  # for good
    warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads
    if kind in ("torch", "dcp"):  # here, and not in each fork
        from torch.distributed.checkpoint import (  # noqa: F401  loaded for the forks
            state_dict_loader,
            state_dict_saver,
        )
    job = Job(kind, Path(folder))
    if mode == "fail":
        found = fail(job, int(count))
    elif mode == "race":
        found = race(job, int(count), gaps=bool(portable))
    else:
        found = kill(job, int(count), signal.SIGKILL if mode == "kill" else signal.SIGINT)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
