"""Fixtures of the whole suite."""

import os
import signal

if "PYTEST_XDIST_WORKER" in os.environ:
    # Before torch or a BLAS is loaded: their threads, one per core in every worker, would spend
    # their time in waiting for those of the other workers. Ours do not heed it.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

# Subprocesses that tests start must import the installed package, not the checkout they run in.
os.environ["PYTHONSAFEPATH"] = "1"
# A shell starts what it runs in the background deaf to Ctrl-C, and so the processes of the tests.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ["HF_HUB_OFFLINE"] = "1"  # no test may download anything

from portable import forget_linux

from wfcast import _core

settings.register_profile("suite", deadline=None, derandomize=True)
settings.load_profile("suite")


@pytest.fixture(params=["here", "portable"])
def system(request, monkeypatch):
    """This system, and then what it would be without what only Linux has."""
    if request.param == "portable":
        forget_linux(monkeypatch)
    return request.param


@pytest.fixture(params=_core.config()["available"])
def isa(request):
    """Every instruction set that this machine runs, one after the other."""
    before = _core.config()["isa"]
    _core.set_isa(request.param)
    yield request.param
    _core.set_isa(before)
