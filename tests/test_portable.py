"""What is done where Linux has a call of its own, on Linux and without it."""

import contextlib
import errno
import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from portable import forget_linux

import wfcast
from wfcast import _atomic, _forecast
from wfcast.checkpoint import Layout, _dcp, open_checkpoint

LINE = wfcast.linear_trend((0, 500), (1000, 1500))
RUN = {step: {"w": np.full((40, 3), step, np.float32)} for step in (0, 500)}


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("out", {"shard_size": 10**9}),
        ("out.safetensors", {}),
        ("out.pt", {}),
        ("out", {"format": "dcp"}),
    ],
    ids=["shards", "safetensors", "torch", "dcp"],
)
def test_a_forecast_takes_the_place_of_another(tmp_path, system, name, form):
    if name == "out.pt" or "format" in form:
        pytest.importorskip("torch")
    out = tmp_path / name
    for step in (1000, 1500):
        wfcast.forecast_checkpoint(LINE, RUN, step, out, overwrite=True, **form)
        assert (np.asarray(open_checkpoint(out).value("w")) == step).all()
    assert [p.name for p in tmp_path.iterdir()] == [name]


def replace(target):
    with _atomic.atomic_folder(target) as folder:
        (folder / "new").touch()


def make_old(target):
    target.mkdir()
    (target / "old").touch()


@pytest.mark.parametrize("failing", [1, 2])
def test_a_rename_that_fails_leaves_the_old_folder(tmp_path, monkeypatch, failing):
    """Its name is given to the new one by two renames, after one that finds it taken."""
    forget_linux(monkeypatch)
    make_old(tmp_path / "out")
    calls, rename = [], os.rename

    def fails_once(a, b):
        calls.append((a, b))
        if len(calls) == 1 + failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        rename(a, b)

    monkeypatch.setattr(os, "rename", fails_once)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        replace(tmp_path / "out")
    assert len(calls) > failing
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "old"]


DIES = """
import os, pathlib, sys
import pytest
from portable import forget_linux
from wfcast import _atomic, _forecast
forget_linux(pytest.MonkeyPatch())
rename, target = os.rename, pathlib.Path(sys.argv[1])
def dies(a, b):
    if b == target and not target.exists():
        os._exit(9)
    rename(a, b)
os.rename = dies
with _atomic.atomic_folder(target) as folder:
    (folder / "new").touch()
"""


def test_death_between_the_renames_loses_no_folder(tmp_path, monkeypatch):
    """The name that the old one has then is not taken for left behind."""
    make_old(tmp_path / "out")
    package, tests = Path(wfcast.__file__).parents[1], Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": f"{package}{os.pathsep}{tests}"}
    command = [sys.executable, "-c", DIES, str(tmp_path / "out")]
    assert subprocess.run(command, env=environment, check=False).returncode == 9
    assert not (tmp_path / "out").exists()
    forget_linux(monkeypatch)
    replace(tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["new"]
    (aside,) = (p for p in tmp_path.iterdir() if p.name != "out")
    assert [p.name for p in aside.iterdir()] == ["old"]


def test_room_for_a_large_tensor(system):
    room = _dcp._room(_dcp.LARGE)
    assert (room.nbytes, room.dtype) == (_dcp.LARGE, np.uint8)
    room[:] = 1


@pytest.mark.parametrize("works", [True, False])
def test_macos_is_asked_to_sync_the_disk_itself(tmp_path, monkeypatch, works):
    asked, synced = [], []

    def control(descriptor, command):
        asked.append(command)
        if not works:
            raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))

    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", control)
    monkeypatch.setattr(os, "fsync", synced.append)
    with _atomic.atomic_file(tmp_path / "out") as file:
        file.write(b"new")
    assert asked == [51, 51]  # the file, and its folder
    assert len(synced) == (0 if works else 2)


def test_other_processes_come_between_every_two_renames(tmp_path, monkeypatch):
    """Another's folder is there, is gone again, and a third has come before the old one is back."""
    forget_linux(monkeypatch)
    target = tmp_path / "out"
    make_old(target)
    rename, events = os.rename, []

    def raced(a, b):
        back = Path(a).suffix == ".old"
        aside = Path(b).suffix == ".old"
        if not aside and not back and events == ["aside"]:
            events.append("taken and gone")
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
        if back:
            events.append("taken")
            make_old(target)
        if aside:
            events.append("aside")
        rename(a, b)

    monkeypatch.setattr(os, "rename", raced)
    replace(target)
    assert events[:3] == ["aside", "taken and gone", "taken"]
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["new", "out"]


def test_a_folder_that_is_exchanged_by_renames_is_never_taken_for_a_file(tmp_path):
    target, aside = tmp_path / "out", tmp_path / "aside"
    make_old(target)
    over = threading.Event()

    def exchange():
        while not over.is_set():
            os.rename(target, aside)
            os.rename(aside, target)

    other = threading.Thread(target=exchange)
    other.start()
    try:
        for _ in range(3000):
            _atomic.check_target(target, folder=True)
            with contextlib.suppress(wfcast.CheckpointError):  # it is there, and not empty
                _forecast._check_target(target, Layout(folder=True), False, None)
    finally:
        over.set()
        other.join()
