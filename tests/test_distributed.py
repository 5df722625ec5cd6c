"""Farcasting in several processes: the same decisions, and the weights of a single one."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")  # an extra: wfcast itself does without

PROGRAM = Path(__file__).with_name("farcast_ranks.py")


def run(kind, out, world=1):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        **os.environ,
        "PYTHONPATH": str(PROGRAM.parent),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(world),
        "OMP_NUM_THREADS": "1",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), kind, str(out)],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]
    texts = [process.communicate(timeout=300)[0] for process in processes]
    assert [p.returncode for p in processes] == [0] * world, "\n".join(texts)
    return json.loads(Path(out).read_text())


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return run("single", tmp_path_factory.mktemp("single") / "out.json")


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "world"), [("ddp", 2), ("ddp", 4), ("fsdp", 2), ("tensor", 3)])
def test_as_in_one_process(kind, world, alone, tmp_path):
    result = run(kind, tmp_path / "out.json", world)
    assert [e[:2] for e in result["history"]] == [e[:2] for e in alone["history"]]
    np.testing.assert_allclose(result["coef"], alone["coef"], rtol=2e-2, atol=2e-2)
    for name, weights in alone["weights"].items():
        np.testing.assert_allclose(result["weights"][name], weights, rtol=2e-3, atol=2e-4)
