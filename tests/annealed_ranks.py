"""One process of a distributed run with Annealed: `torchrun`-like environment, gloo, CPU.

    python annealed_ranks.py single|ddp|fsdp OUT
    python annealed_ranks.py trouble OUT
    python annealed_ranks.py trainer OUT

Every process of a replicated or sharded run sees the same batches, so that all kinds are the same
run but for rounding. In trouble one process alone has an error, and OUT is what each came to. The
trainer is that of transformers, in as many processes as there are.
"""

import json
import os
import sys
import time
import warnings
from pathlib import Path
from unittest import mock

import loops
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from wfcast.torch import Annealed


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def weights_of(model):
    named = {n.removeprefix("module."): whole(p.detach()) for n, p in model.named_parameters()}
    return {name: p.flatten().tolist() for name, p in named.items()}


def made(kind):
    model = loops.mlp(width=9)  # over four processes 3, 3, 3 and 0 rows
    if kind == "ddp":
        model = torch.nn.parallel.DistributedDataParallel(model)
    elif kind == "fsdp":
        fully_shard(model, mesh=init_device_mesh("cpu", (distributed.get_world_size(),)))
    return model


def train(model, steps):
    annealed = Annealed(model, every=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    for step in range(1, steps + 1):
        loops.optimize(model, optimizer, step)
        annealed.step()
    return annealed


def finish(result, out):
    """The results of all processes, by the first of them."""
    everything = [result]
    if distributed.is_initialized():
        everything = [None] * distributed.get_world_size()
        distributed.all_gather_object(everything, result)
    if not distributed.is_initialized() or distributed.get_rank() == 0:
        Path(out).write_text(json.dumps(everything))
        time.sleep(1)  # it serves the others
    os._exit(0)  # threads of gloo now and then abort an interpreter that ends


def main(kind, out):
    if kind != "single":
        distributed.init_process_group("gloo")
    model = made(kind)
    annealed = train(model, 40)
    result = {"latest": weights_of(model)}
    batches = [loops.batch(step) for step in range(100, 120)]
    result["chosen"] = str(annealed.choose(lambda: loops.held_out(model)))
    operator = annealed.fit(loops.loss_of, batches, n_evals=8)
    result["coef"] = operator.coef["*"].tolist()
    with annealed.applied(5):
        result["readout"] = weights_of(model)
        result["loss"] = loops.held_out(model)
    assert weights_of(model) == result["latest"]
    again = Annealed(model, every=2)
    again.load_state_dict(annealed.state_dict())
    with again.applied(5):
        assert weights_of(model) == result["readout"]
    again.write(5)
    assert loops.held_out(model) == result["loss"]
    finish(result, out)


def trouble(out):
    """The last process has a judge or a refresh that fails, or NaN in its part of an average."""
    distributed.init_process_group("gloo")
    at_fault = distributed.get_rank() == distributed.get_world_size() - 1
    told = {}
    model = made("fsdp")
    annealed = train(model, 10)
    before = weights_of(model)

    def fails(*_):
        if at_fault:
            raise RuntimeError("no held-out data")
        return 1.0

    def attempt(case, action):
        try:
            action()
        except Exception as error:
            told[case] = f"{type(error).__name__}: {error}"
        assert weights_of(model) == before

    batches = [loops.batch(step) for step in range(100, 120)]
    attempt("a judge", lambda: annealed.choose(fails))
    attempt("a judge of fit", lambda: annealed.fit(loops.loss_of, batches, 2, fails))
    attempt("a loss of fit", lambda: annealed.fit(lambda *_: fails(), batches, 2))

    def broken():
        yield from batches[:9]
        fails()

    attempt("a batch of fit", lambda: annealed.fit(loops.loss_of, broken(), 4))
    attempt("a judge without a number", lambda: annealed.choose(lambda: None if at_fault else 1.0))
    with mock.patch.object(torch.Tensor, "clone", fails if at_fault else torch.Tensor.clone):
        attempt("memory", annealed.write)
    annealed.refresh = fails
    attempt("a refresh", annealed.write)
    annealed.refresh = None
    if at_fault:
        annealed.state_dict()["averages"]["2.bias"][2].fill_(torch.nan)
    attempt("NaN in a shard", annealed.write)
    finish(told, out)


def trainer(out):
    from trainers import make
    from transformers import AutoModelForMaskedLM

    from wfcast.torch import AnnealedCallback

    folder = Path(out).parent / "run"
    callback = AnnealedCallback(every=1, final=True)
    run = make(
        folder,
        callback,
        steps=6,
        save_steps=3,
        eval_strategy="steps",
        eval_steps=3,
        ddp_backend="gloo",
    )
    run.train()
    again = make(folder, AnnealedCallback(every=1, final=True), steps=6, save_steps=3)
    again.train(resume_from_checkpoint=str(folder / "checkpoint-3"))
    assert loops.equal(loops.weights(run.model), loops.weights(again.model))
    saved = AutoModelForMaskedLM.from_pretrained(folder / "checkpoint-6" / "annealed")
    assert loops.equal(saved.state_dict(), loops.weights(run.model))
    logs = [e for e in run.state.log_history if "eval_annealed_loss" in e]
    result = {"losses": [e["eval_annealed_loss"] for e in logs]}

    distributed.barrier()
    if distributed.get_rank() == 1:  # it alone has lost its file
        (folder / "checkpoint-3" / "annealed-1.pt").unlink()
    callback = AnnealedCallback(every=1)
    anew = make(folder, callback, steps=6, save_strategy="no")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        anew.train(resume_from_checkpoint=str(folder / "checkpoint-3"))
    result["said"] = [str(w.message) for w in said if "begin anew" in str(w.message)]
    result["averaged"] = callback.annealed.n_steps
    finish(result, out)


if __name__ == "__main__":
    if sys.argv[1] == "trouble":
        trouble(sys.argv[2])
    if sys.argv[1] == "trainer":
        trainer(sys.argv[2])
    main(*sys.argv[1:])
