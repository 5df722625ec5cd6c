"""One process of a distributed run with Farcasting: `torchrun`-like environment, gloo, CPU.

    python farcast_ranks.py single|ddp|fsdp|tensor OUT
    python farcast_ranks.py trouble|faults|moments|lightning|replicated OUT

Every process of a replicated or sharded run sees the same batches, so that all kinds are the same
run but for rounding. In trouble and faults one process alone has an error, and OUT is what each
came to; in moments a jump that dropped them is taken back at once. Lightning resumes a sharded run.
"""

import datetime
import itertools
import json
import os
import sys
import time
import warnings
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import loops
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

from wfcast import WfcastError
from wfcast.torch import (
    Farcasting,
    _line,
    _recording,
    _snapshot,
    _store,
    _training,
    fit_to_loss,
)

SETTINGS = {"spacing": 5, "period": 10, "recovery": 5}


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def main(kind, out):
    model = loops.mlp(width=15)  # 15 rows over two or four processes: shards of unequal size
    if kind != "single":
        distributed.init_process_group("gloo")
        world = distributed.get_world_size()
    if kind == "ddp":
        model = torch.nn.parallel.DistributedDataParallel(model)
    elif kind == "fsdp":
        fully_shard(model, mesh=init_device_mesh("cpu", (world,)))
    elif kind == "tensor":
        plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
        parallelize_module(model, init_device_mesh("cpu", (world,)), plan)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    farcasting = Farcasting(model, optimizer, **SETTINGS)
    states = {}
    for step in range(1, 41):
        farcasting.step(loops.optimize(model, optimizer, step))
        if step > 30 and step % 3 == 0:
            states[step] = loops.weights(model)
    batches = (loops.batch(step) for step in range(100, 200))
    mf = fit_to_loss(model, states, loops.loss_of, batches, n_evals=8, rank=2)
    weights = {n.removeprefix("module."): whole(p.detach()) for n, p in model.named_parameters()}
    result = {
        "history": [[e["step"], e["outcome"], e["horizon"]] for e in farcasting.history],
        "coef": mf.coef["*"].tolist(),
        "weights": {n: w.flatten().tolist() for n, w in weights.items()},
    }
    if kind == "single" or distributed.get_rank() == 0:
        with open(out, "w") as file:
            json.dump(result, file)
    if kind != "single":
        agreed = [None] * world
        distributed.all_gather_object(agreed, result)
        assert all(one == agreed[0] for one in agreed)  # to the bit, on every rank
        distributed.barrier()
        if distributed.get_rank() == 0:
            time.sleep(1)  # it serves the others
        os._exit(0)  # threads of gloo now and then abort an interpreter that ends


def trouble(out):
    """The last process has NaN in its shard, or a judge, loss or state that fails."""
    distributed.init_process_group("gloo")
    rank, world = distributed.get_rank(), distributed.get_world_size()
    at_fault = rank == world - 1
    told = {}

    def sharded():
        model = loops.mlp(width=15)
        fully_shard(model, mesh=init_device_mesh("cpu", (world,)))
        return model, torch.optim.Adam(model.parameters(), lr=1e-3)

    def poison(tensor):
        if at_fault:
            tensor.to_local().fill_(torch.nan)

    model, optimizer = sharded()
    farcasting = Farcasting(model, optimizer, **SETTINGS)
    for step in range(1, 21):
        loops.optimize(model, optimizer, step)
        if step == 20:
            poison(next(model.parameters()).detach())
        assert not farcasting.step(1 / step)
    told["NaN in a shard"] = farcasting.history[-1]["reason"]
    farcasting.close()

    model, optimizer = sharded()
    farcasting = Farcasting(model, optimizer, horizon=2, **SETTINGS)
    for step in range(1, 43):  # the last process has NaN after the first jump and before the second
        loops.optimize(model, optimizer, step)
        farcasting.step(torch.tensor(torch.nan if at_fault and step in (22, 40) else 1 / step))
    shown = ("step", "outcome", "verdict", "reason", "loss_before")
    told["losses that differ"] = [{k: row[k] for k in shown} for row in farcasting.history]
    farcasting.close()

    model, optimizer = sharded()
    farcasting = Farcasting(model, optimizer, horizon=1e8, **SETTINGS)
    for step in range(1, 21):
        loops.optimize(model, optimizer, step)
        with torch.no_grad():
            if at_fault and step > 15:  # a float32 holds it, and not where it leads
                next(model.parameters()).to_local().add_(1e32 * step)
        farcasting.step(1 / step)
    told["a forecast that overflows"] = farcasting.history[-1]["reason"]
    farcasting.close()

    def fails(*_):
        if at_fault:
            raise RuntimeError("no held-out data")
        return 1.0

    model, optimizer = sharded()
    farcasting = Farcasting(model, optimizer, judge=fails, **SETTINGS)
    try:
        for step in range(1, 11):
            loops.optimize(model, optimizer, step)
            farcasting.step()
    except Exception as error:
        told["a judge"] = f"{type(error).__name__}: {error}"

    states = {}
    for step in (1, 2, 3):
        loops.optimize(model, optimizer, step)
        states[step] = loops.weights(model)

    def attempt(case, states=states, judge=lambda: 1.0, loss_fn=loops.loss_of):
        batches = (loops.batch(step) for step in range(100, 200))
        try:
            fit_to_loss(model, states, loss_fn, batches, n_evals=2, judge=judge)
        except Exception as error:
            told[case] = f"{type(error).__name__}: {error}"

    def poisoned(model, pair):
        loss = loops.loss_of(model, pair)
        if at_fault:
            next(model.parameters()).register_hook(lambda gradient: gradient * torch.nan)
        return loss

    attempt("a judge of fit_to_loss", judge=fails)
    lacking = {3: dict(list(states[3].items())[:2])} if at_fault else {}
    attempt("a state that lacks a tensor", {**states, **lacking})
    attempt("NaN in a gradient", loss_fn=poisoned)
    poison(states[1]["0.weight"])
    attempt("NaN in a state", states)
    finish(told, out)


def faults(out):
    """The last process fails in a function of the user's, or for want of memory or room on disk."""
    distributed.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
    at_fault = distributed.get_rank() == distributed.get_world_size() - 1
    told = {}

    def fails(error):
        def fail(*_, **__):
            raise error

        return fail

    class Scheduler:
        def __init__(self, broken=""):
            if at_fault and broken:
                setattr(self, broken, fails(RuntimeError("no schedule")))

        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            pass

    def attempt(case, where=None, error=None, *, at=20, lose=False, **parameters):
        """Go on to step 60; what fails does so from step `at` on."""
        model = loops.mlp()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        settings = {"horizon": 3, **SETTINGS, **parameters}
        farcasting = Farcasting(model, optimizer, **settings)
        try:
            with ExitStack() as patched:
                for step in range(1, 61):
                    if step == at and at_fault and where is not None:
                        patched.enter_context(mock.patch.object(*where, fails(error)))
                    loss = loops.optimize(model, optimizer, step)
                    farcasting.step(1e9 * loss if lose and not farcasting.settled else loss)
            told[case] = "no error"
        except Exception as error:
            told[case] = f"{type(error).__name__}: {error}"
        rows = [[row["step"], row["outcome"], row["reason"]] for row in farcasting.history]
        told[f"{case}, rows"] = rows
        farcasting.close(undo=farcasting.settled)

    def refresh():
        if at_fault:
            raise RuntimeError("no batch")

    attempt("refresh", refresh=refresh)
    attempt("the scheduler's state", scheduler=Scheduler("state_dict"))
    attempt("the scheduler's way back", scheduler=Scheduler("load_state_dict"), lose=True)
    memory = MemoryError("no memory")
    attempt("memory for a state", (_store.Store, "keep"), memory, at=6, horizon="adaptive")
    attempt("memory for sums", (_line.Line, "add"), memory, at=15)
    attempt("memory for a snapshot", (_snapshot.Snapshot, "take"), memory)
    gpu = RuntimeError("CUDA error: out of memory")
    attempt("memory for a forecast", (_training.Training, "jump"), gpu)
    attempt("memory for the movement", (_recording, "movements"), gpu, horizon="adaptive")
    disk = OSError(28, "No space left on device")
    attempt("disk for a state", (_line.Line, "add"), disk, at=15)
    attempt("disk for a snapshot", (_snapshot.Snapshot, "take"), disk)
    attempt("parameters", (_training.Training, "check_unchanged"), WfcastError("gone"), at=15)

    model = loops.mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    farcasting = Farcasting(model, optimizer, **SETTINGS)
    try:
        for step in range(1, 61):
            loss = loops.optimize(model, optimizer, step)
            farcasting.step(None if at_fault and step % 2 else loss)
    except Exception as error:
        told["losses of some steps"] = f"{type(error).__name__}: {error}"
    farcasting.close()
    try:
        Farcasting(model, optimizer, store="nowhere" if at_fault else "cpu")
    except Exception as error:
        told["a folder that is missing"] = f"{type(error).__name__}: {error}"
    finish(told, out)


def finish(result, out):
    """Write what all processes came to."""
    everything = [None] * distributed.get_world_size()
    distributed.all_gather_object(everything, result)
    if distributed.get_rank() == 0:
        with open(out, "w") as file:
            json.dump(everything, file)
        time.sleep(1)  # it serves the others
    os._exit(0)  # threads of gloo now and then abort an interpreter that ends


def moments(out):
    """DTensors again once they are back, from the snapshot and from one that was saved."""
    distributed.init_process_group("gloo")
    settings = {**SETTINGS, "optimizer_state": "reset", "horizon": 15}

    def begin():
        model = loops.mlp(width=15)
        fully_shard(model, mesh=init_device_mesh("cpu", (distributed.get_world_size(),)))
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        return model, optimizer, Farcasting(model, optimizer, **settings)

    def state_of(model, optimizer):
        return [
            {
                key: (type(v).__name__, str(getattr(v, "placements", "")), whole(v).tolist())
                for key, v in optimizer.state[p].items()
            }
            for p in model.parameters()
            if p in optimizer.state
        ]

    def back(model, optimizer, farcasting):
        assert not state_of(model, optimizer)
        assert farcasting.settle()
        found = state_of(model, optimizer)
        loops.optimize(model, optimizer, 1)
        return found

    model, optimizer, farcasting = begin()
    for step in itertools.count(1):
        loss = loops.optimize(model, optimizer, step)
        before = state_of(model, optimizer)
        if farcasting.step(loss):
            break
    with loops.in_a_window():
        saved = [model.state_dict(), farcasting.state_dict()]
    other, unused, again = begin()
    other.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    told = {"before": before, "back": back(model, optimizer, farcasting)}
    told["resumed"] = back(other, unused, again)
    finish(told, out)


def lightning(out):
    from lightning.pytorch.strategies import ModelParallelStrategy
    from trainers import Module, fit

    from wfcast.torch.lightning import AnnealedCallback, FarcastingCallback

    class Sharded(Module):
        def configure_model(self):
            if not hasattr(next(self.net.parameters()), "to_local"):
                fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

    def go(steps, checkpoint=None):
        callbacks = [FarcastingCallback(**SETTINGS), AnnealedCallback(every=1)]
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
            trainer = fit(
                Sharded(),
                *callbacks,
                steps=steps,
                checkpoint=checkpoint,
                strategy=strategy,
                devices=2,
            )
        return trainer, callbacks, [str(w.message) for w in said]

    folder = Path(out).parent / "checkpoint"
    trainer, (jumping, _), said = go(20)
    trainer.save_checkpoint(folder)
    _, (begun, annealed), _ = go(22, folder)
    told = {
        "said": [text for text in said if text.startswith("Lightning keeps")],
        "jumps": [len(jumping.farcasting.history), len(begun.farcasting.history)],
        "averaged": annealed.annealed.n_steps,
    }
    finish(told, out)


def replicated(out):
    """Lightning's DDP, whose ranks see other losses: all in one go, and resumed in the middle."""
    from lightning.pytorch import Callback
    from trainers import Module, fit

    from wfcast.torch.lightning import FarcastingCallback

    class Uneven(Module):
        def training_step(self, batch, index):
            loss = super().training_step(batch, index)
            return loss * (1 + distributed.get_rank())

    class Save(Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 25:
                trainer.save_checkpoint(path)

    def go(module, checkpoint=None):
        callback = FarcastingCallback(**{**SETTINGS, "horizon": 5})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Lightning's own, of many kinds
            fit(module, callback, Save(), checkpoint=checkpoint, strategy="ddp", devices=2)
        return callback.farcasting

    path = Path(out).parent / "part.ckpt"
    module, other = Uneven(), Uneven()
    whole_run, resumed = go(module), go(other, path)
    keys = ("step", "outcome", "verdict", "loss_before", "loss_after", "steps_saved")
    told = {
        "rows": [[[e[k] for k in keys] for e in f.history] for f in (whole_run, resumed)],
        "equal": loops.equal(module.state_dict(), other.state_dict()),
    }
    finish(told, out)


if __name__ == "__main__":
    if sys.argv[1] == "replicated":
        replicated(sys.argv[2])
    if sys.argv[1] == "lightning":
        lightning(sys.argv[2])
    if sys.argv[1] == "moments":
        moments(sys.argv[2])
    if sys.argv[1] == "faults":
        faults(sys.argv[2])
    if sys.argv[1] == "trouble":
        trouble(sys.argv[2])
    main(*sys.argv[1:])
