"""One process of a distributed run with Farcasting: `torchrun`-like environment, gloo, CPU.

    python farcast_ranks.py single|ddp|fsdp|tensor OUT

Every process of a replicated or sharded run sees the same batches, so that all kinds are the same
run but for rounding.
"""

import json
import os
import sys
import time

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

from wfcast.torch import Farcasting, fit_to_loss


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
    settings = {"spacing": 5, "period": 10, "recovery": 5, "max_loss": 0.9}
    farcasting = Farcasting(model, optimizer, **settings)
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
        "coef": mf.coef_["*"].tolist(),
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


if __name__ == "__main__":
    main(*sys.argv[1:])
