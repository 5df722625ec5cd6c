"""Farcasting and fitting in several processes: what a single one comes to."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")  # an extra: wfcast itself does without

import fit_ranks

HERE = Path(__file__).parent


def run(program, *arguments, world=1):
    """What the processes of a program beside this one wrote to the last of its arguments."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")])),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(world),
        "OMP_NUM_THREADS": "1",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, str(HERE / program), *map(str, arguments)],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]
    texts = [process.communicate(timeout=300)[0] for process in processes]
    assert [p.returncode for p in processes] == [0] * world, "\n".join(texts)
    return json.loads(Path(arguments[-1]).read_text())


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return run("farcast_ranks.py", "single", tmp_path_factory.mktemp("single") / "out.json")


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "world"), [("ddp", 2), ("ddp", 4), ("fsdp", 2), ("tensor", 3)])
def test_as_in_one_process(kind, world, alone, tmp_path):
    result = run("farcast_ranks.py", kind, tmp_path / "out.json", world=world)
    assert [e[:2] for e in result["history"]] == [e[:2] for e in alone["history"]]
    np.testing.assert_allclose(result["coef"], alone["coef"], rtol=2e-2, atol=2e-2)
    for name, weights in alone["weights"].items():
        np.testing.assert_allclose(result["weights"][name], weights, rtol=2e-3, atol=2e-4)


@pytest.mark.slow
def test_trouble_of_one_process_is_that_of_all(tmp_path):
    """One that left alone would keep the others waiting."""
    first, last = run("farcast_ranks.py", "trouble", tmp_path / "out.json", world=2)
    assert re.match(r"rank 1: .*'0\.weight': NaN", first["NaN in a shard"])
    assert [h["outcome"] for h in first["losses that differ"]] == ["rolled back", "refused"]
    for case in ("NaN in a shard", "losses that differ", "a forecast that overflows"):
        assert first[case] == last[case]  # what is decided, and why
    for case, message in {
        "a judge": "RuntimeError: no held-out data",
        "a judge of fit_to_loss": "RuntimeError: no held-out data",
        "a state that lacks a tensor": "CheckpointError: the state at step 3 lacks 2 of",
        "NaN in a gradient": "WfcastError: a gradient of the loss holds NaN or infinity",
        "NaN in a state": "WfcastError: .*NaN or infinity",
    }.items():
        assert re.match(message, last[case])
        everywhere = case == "NaN in a gradient"  # the reduction spreads it
        named = "" if everywhere else "WfcastError: rank 1 failed: "
        assert re.match(named + message, first[case])


@pytest.mark.slow
def test_faults_of_one_process_end_all_or_none(tmp_path):
    """Within the step: another process would wait until the one that failed is gone."""
    first, last = run("farcast_ranks.py", "faults", tmp_path / "out.json", world=2)
    errors = {
        "refresh": "RuntimeError: no batch",
        "the scheduler's state": "RuntimeError: no schedule",
        "the scheduler's way back": "RuntimeError: no schedule",
        "memory for a state": "MemoryError: no memory",
        "memory for sums": "MemoryError: no memory",
        "memory for a snapshot": "MemoryError: no memory",
        "memory for a forecast": "RuntimeError: CUDA error: out of memory",
        "memory for the movement": "RuntimeError: CUDA error: out of memory",
        "parameters": "WfcastError: gone",
    }
    for case, message in errors.items():
        assert last[case] == message
        assert first[case] == f"WfcastError: rank 1 failed: {message}"
    for case in ("disk for a state", "disk for a snapshot"):
        assert first[case] == last[case] == "no error"
    rows = {case for case in first if case.endswith(", rows")}
    assert len(rows) == len(errors) + 2
    for case in rows:
        assert first[case] == last[case]
    refused = first["disk for a state, rows"][0]
    assert refused[:2] == [15, "refused"]
    assert "no state could be kept at step 15: rank 1: [Errno 28]" in refused[2]
    for told in (first, last):
        assert "handed over [" in told["losses of some steps"]
        assert "store is 'nowhere'" in told["a folder that is missing"]


@pytest.mark.slow
def test_moments_that_were_dropped_come_back_as_shards(tmp_path):
    for told in run("farcast_ranks.py", "moments", tmp_path / "out.json", world=2):
        assert told["back"] == told["resumed"] == told["before"]
        assert told["before"][0]["exp_avg"][:2] == ["DTensor", "(Shard(dim=0),)"]


@pytest.mark.slow
def test_lightning_resumes_a_sharded_run_anew(tmp_path):
    """Lightning keeps the state that a callback has on rank 0, which is none of the others."""
    pytest.importorskip("lightning")
    first, last = run("farcast_ranks.py", "lightning", tmp_path / "out.json", world=2)
    assert [re.search("checkpoints .*", text)[0] for text in first.pop("said")] == [
        "checkpoints are without the state of Farcasting, which begins anew where training resumes",
        "checkpoints hold no readout, and its averages begin anew where training resumes",
    ]
    assert last.pop("said") == []
    assert first == last == {"jumps": [1, 0], "averaged": 2}


@pytest.mark.slow
def test_lightning_resumes_a_replicated_run_to_the_bit(tmp_path):
    """Its ranks see other losses each, and all resume from what rank 0 keeps."""
    pytest.importorskip("lightning")
    for told in run("farcast_ranks.py", "replicated", tmp_path / "out.json", world=2):
        assert told["equal"]
        whole, resumed = told["rows"]
        assert whole == resumed
        assert whole[-1][0] > 25


# ---- fits ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[2, 4])
def together(request, tmp_path_factory):
    out = tmp_path_factory.mktemp("fits") / "out.json"
    return request.param, run("fit_ranks.py", out, world=request.param)


def check_fit(found, alone):
    """The same fit, to rounding."""
    assert found.keys() == alone.keys(), found
    assert found.pop("tensors") == alone.pop("tensors")
    for key, expected in alone.items():
        one = found[key]
        assert one["gap"] <= 1e-9
        np.testing.assert_allclose(one["objective"], expected["objective"], rtol=1e-11)
        np.testing.assert_allclose(one["coef"], expected["coef"], rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(one["intercept"], expected["intercept"], rtol=1e-8, atol=1e-10)
        assert one["passes"] == expected["passes"]


@pytest.mark.slow
@pytest.mark.parametrize("by", ["tensor", "all"])
@pytest.mark.parametrize("settings", fit_ranks.SETTINGS)
@pytest.mark.parametrize("rows", ["shards", "runs"])
def test_fit_as_in_one_process(rows, settings, by, together):
    world, result = together
    found = result["fits"][f"{rows}, {settings}, {by}"]
    runs = fit_ranks.runs()
    if rows == "runs":
        runs = fit_ranks.in_rank_order(runs, world)
    alone = fit_ranks.numbers(fit_ranks.farcaster(settings, by).fit(runs))
    if by == "tensor" and settings == "absolute":
        assert found["first"] == alone["first"]  # all rows are solved at once: to the bit
    check_fit(found, alone)


@pytest.mark.slow
def test_fit_of_other_shardings(together):
    world, result = together
    others = result["fits"].keys() & {"columns", "module", "hybrid", "two"}
    assert others == {"columns", "module"} | ({"hybrid", "two"} if world == 4 else set())
    columns = fit_ranks.runs(2, {"columns": (12, 9), "replicated": (11,)})
    alone = fit_ranks.farcaster("hinge", "tensor").fit(columns)
    check_fit(result["fits"]["columns"], fit_ranks.numbers(alone))
    alone = fit_ranks.farcaster("hinge", "all").fit([fit_ranks.modules()])
    check_fit(result["fits"]["module"], fit_ranks.numbers(alone))
    alone = fit_ranks.farcaster("absolute", "all").fit(fit_ranks.runs(2))
    for case in ("hybrid", "two") if world == 4 else ():
        check_fit(result["fits"][case], fit_ranks.numbers(alone))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "rank", "message"),
    [
        (
            "NaN in large",
            -1,
            "WfcastError: .*NaN or infinity: tensor 'large' of run 1, step 3, shard",
        ),
        (
            "NaN in replicated",
            0,
            "WfcastError: .*tensor 'replicated' of run 1, step 3, shard of rank 0",
        ),
        ("NaN in plain", 0, "WfcastError: .*tensor 'plain' of run 1, step 3, shard of rank 0"),
        (
            "infinity in a run",
            0,
            "WfcastError: .*tensor 'first' of run 0, step 0, or of run 0, step 1",
        ),
        ("a step is missing", 1, "CheckpointError: .*run 0 lacks step 3"),
        (
            "other shapes",
            None,
            r"CheckpointError: .*\n.*\[5, 2\] in .* rank 0, .*\[5, 3\] in .* rank 1",
        ),
        ("other settings", None, "WfcastError: beta is 1e-06 on rank 1, 0.0 on rank 0"),
        ("no runs", None, "CheckpointError: runs is empty on all ranks"),
        ("beyond float64", None, "ConvergenceError: the data or their squares leave the range"),
        ("an error of another kind", 1, "(WfcastError: rank 1: )?OSError: the disk is full"),
        ("partial sums", None, "DtypeError: tensor 'w' of run 0, step 0, .* still to be added up"),
        ("spread in two ways", None, "CheckpointError: tensor 'first' of run 0, step 3, .*Shard"),
        ("a path among shards", None, "DtypeError: run 0, step 3 is a str, expected a mapping"),
        ("no group", None, "DtypeError: process_group is a str"),
        ("predict", None, "DtypeError: tensor 'first' of step 0 is a DTensor"),
    ],
)
def test_fit_fails_on_all_ranks(case, rank, message, together):
    """The others name the rank at fault; where all are at fault, each says so itself."""
    world, result = together
    told = [errors[case] for errors in result["errors"]]
    for r, text in enumerate(told):
        assert re.match(message, text), text
        at_fault = rank is None or r == rank % world
        assert at_fault == (f": rank {(rank or 0) % world}: " not in text), text


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "world"), [("ddp", 2), ("fsdp", 4)])
def test_readouts_as_in_one_process(kind, world, tmp_path):
    """Of shards of unequal size, too, one of them empty: each process has its own."""
    (alone,) = run("annealed_ranks.py", "single", tmp_path / "alone.json")
    first, *others = run("annealed_ranks.py", kind, tmp_path / "out.json", world=world)
    assert all(other == first for other in others)  # to the bit
    assert first["chosen"] == alone["chosen"]
    np.testing.assert_allclose(first["coef"], alone["coef"], rtol=2e-2, atol=2e-2)
    for name, weights in alone["readout"].items():
        np.testing.assert_allclose(first["readout"][name], weights, rtol=2e-3, atol=2e-4)


@pytest.mark.slow
def test_trouble_with_readouts_of_one_process_is_that_of_all(tmp_path):
    first, last = run("annealed_ranks.py", "trouble", tmp_path / "out.json", world=2)
    for case, message in {
        "a judge": "RuntimeError: no held-out data",
        "a judge of fit": "RuntimeError: no held-out data",
        "a loss of fit": "RuntimeError: no held-out data",
        "a batch of fit": "RuntimeError: no held-out data",
        "a judge without a number": "WfcastError: the judge returned None, expected one number",
        "memory": "RuntimeError: no held-out data",
        "a refresh": "RuntimeError: no held-out data",
        "NaN in a shard": "WfcastError: Input contains NaN or infinity: parameter '2.bias'",
    }.items():
        assert last[case].startswith(message)
        assert first[case].startswith("WfcastError: rank 1 failed: " + message)


@pytest.mark.slow
def test_readouts_in_a_trainer_of_several_processes(tmp_path):
    pytest.importorskip("accelerate")
    first, last = run("annealed_ranks.py", "trainer", tmp_path / "out.json", world=2)
    assert first == last
    assert len(first["losses"]) == 2
    assert "annealed-1.pt' of this run: its averages begin anew" in first["said"][0]
    assert first["averaged"] == 3
