"""One process of several that fit a ModelFarcaster together: `torchrun`-like environment, gloo.

    python fit_ranks.py OUT

Writes what every case came to on every rank: coefficients and numbers, or the error.
"""

import json
import os
import sys
import time

import numpy as np
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

import wfcast

STEPS = (0, 1, 3, 4)
SHAPES = {
    "first": (37, 5),  # over four processes 10, 10, 10 and 7 rows
    "second": (37, 5),
    "large": (301, 67),  # more rows than are solved at once
    "tall": (1, 8),  # none on the last processes
    "replicated": (11,),
    "plain": (3, 4),
}
SETTINGS = {
    "absolute": {"beta": 0.0},
    "hinge": {"beta": 1e-6},
    "active hinge": {"beta": 0.05},
    "squared": {"beta": 0.0, "loss": "squared_error"},
    "ridge": {"beta": 0.0, "loss": "squared_error", "alpha": 0.1, "fit_intercept": False},
    "deficient": {"beta": 0.0, "inputs": (0, 1, 2)},
}


def runs(count=3, shapes=SHAPES):
    """Weights that drift and diffuse, a few of which stay where they are; step 2 is step 1."""
    made = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        run = {step: {} for step in STEPS}
        for name, shape in shapes.items():
            start, drift = rng.normal(size=shape) + 0.3, 0.1 * rng.standard_t(3, size=shape)
            for step in STEPS:
                moved = start + drift * step + 0.02 * rng.normal(size=shape)
                still = np.arange(start.size).reshape(shape) % 10 == 9
                value = np.where(still, start, moved).astype(np.float32)
                run[step][name] = torch.from_numpy(value)
        run[2] = {name: value.clone() for name, value in run[1].items()}
        made.append(dict(sorted(run.items())))
    return made


def farcaster(settings, by):
    return wfcast.ModelFarcaster(
        **{"inputs": (0, 1), "targets": (3, 4), "by": by, "n_threads": 1} | SETTINGS[settings]
    )


def numbers(mf):
    return {
        key: {
            "coef": mf.coef_[key].tolist(),
            "intercept": mf.intercept_[key].tolist(),
            "objective": mf.objective_[key],
            "gap": mf.dual_gap_[key],
            "passes": mf.n_passes_[key],
        }
        for key in mf.coef_
    } | {"tensors": {n: [list(shape), dtype] for n, (shape, dtype) in mf.tensors_.items()}}


def outcome(fit):
    try:
        return numbers(fit())
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def sharded(found, mesh, placements):
    """The runs with their tensors over the mesh; the replicated and the plain ones on all."""
    everywhere = [Replicate()] * mesh.ndim

    def spread(name, value):
        if name == "plain":
            return value
        return distribute_tensor(value, mesh, everywhere if name == "replicated" else placements)

    return [{s: {n: spread(n, v) for n, v in c.items()} for s, c in r.items()} for r in found]


def mine(found):
    """Run after run to rank after rank: with three runs the last of four has none."""
    return found[distributed.get_rank() :: distributed.get_world_size()]


def in_rank_order(found, world):
    """The runs in the order that `mine` gives them."""
    return [run for rank in range(world) for run in found[rank::world]]


def fits(mesh, group):
    cases = {}
    for settings in SETTINGS:
        for by in ("tensor", "all"):
            mf = farcaster(settings, by)
            spread = sharded(runs(), mesh, [Shard(0)])
            cases[f"shards, {settings}, {by}"] = outcome(lambda mf=mf, r=spread: mf.fit(r))
            mf = farcaster(settings, by)
            cases[f"runs, {settings}, {by}"] = outcome(
                lambda mf=mf: mf.fit(mine(runs()), process_group=group)
            )
    mf = farcaster("hinge", "tensor")
    columns = {"columns": (12, 9), "replicated": (11,)}
    cases["columns"] = outcome(lambda: mf.fit(sharded(runs(2, columns), mesh, [Shard(1)])))
    if distributed.get_world_size() == 4:
        two = init_device_mesh("cpu", (2, 2))
        for what, placements in {
            "hybrid": [Replicate(), Shard(0)],
            "two": [Shard(0), Shard(1)],
        }.items():
            mf = farcaster("absolute", "all")
            cases[what] = outcome(lambda mf=mf, p=placements: mf.fit(sharded(runs(2), two, p)))
    cases["module"] = outcome(lambda: farcaster("hinge", "all").fit([modules(mesh)]))
    return cases


def modules(mesh=None):
    """A run of live models, sharded over the mesh by FSDP2; a weight is tied."""
    run = {}
    for step in STEPS:
        torch.manual_seed(step)
        model = torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.Linear(5, 7), torch.nn.Tanh())
        model.append(torch.nn.Linear(7, 5))
        model[3].weight = model[0].weight
        if mesh is not None:
            fully_shard(model, mesh=mesh)
        run[step] = model
    return run


def errors(mesh, group):
    rank, cases = distributed.get_rank(), {}
    for name in ("large", "replicated", "plain"):
        spoiled = runs()
        spoiled[1][3][name].view(-1)[-1] = np.nan
        spread = sharded(spoiled, mesh, [Shard(0)])
        mf = farcaster("hinge", "tensor")
        cases[f"NaN in {name}"] = outcome(lambda mf=mf, r=spread: mf.fit(r))
    spoiled = runs()
    spoiled[0][0]["first"][0, 0] = np.inf  # the norm of the first update already
    cases["infinity in a run"] = outcome(
        lambda: farcaster("hinge", "all").fit(mine(spoiled), process_group=group)
    )
    others = mine(runs())
    if rank == 1:
        del others[0][3]
    cases["a step is missing"] = outcome(
        lambda: farcaster("absolute", "all").fit(others, process_group=group)
    )
    others = mine(runs(4, {"w": (5, 3) if rank else (5, 2)}))
    cases["other shapes"] = outcome(
        lambda: farcaster("absolute", "all").fit(others, process_group=group)
    )
    cases["other settings"] = outcome(
        lambda: farcaster("hinge" if rank else "absolute", "all").fit(
            mine(runs()), process_group=group
        )
    )
    cases["no runs"] = outcome(lambda: farcaster("absolute", "all").fit([], process_group=group))
    huge = [{s: {"w": 1e200 * c["first"].double()} for s, c in r.items()} for r in runs()]
    cases["beyond float64"] = outcome(
        lambda: farcaster("squared", "all").fit(mine(huge), process_group=group)
    )

    def stop(name, rows):
        if rank == 1:
            raise OSError("the disk is full")

    cases["an error of another kind"] = outcome(
        lambda: farcaster("absolute", "all").fit(mine(runs()), process_group=group, progress=stop)
    )
    part = init_device_mesh("cpu", (distributed.get_world_size(),))
    sums = [{s: {"w": DTensor.from_local(torch.ones(3), part, [Partial()])} for s in STEPS}]
    cases["partial sums"] = outcome(lambda: farcaster("absolute", "all").fit(sums))
    turned = sharded(runs(1), mesh, [Shard(0)])
    turned[0][3] = sharded(runs(1), mesh, [Shard(1)])[0][3]
    cases["spread in two ways"] = outcome(lambda: farcaster("absolute", "all").fit(turned))
    turned[0][3] = "somewhere"
    cases["a path among shards"] = outcome(lambda: farcaster("absolute", "all").fit(turned))
    cases["no group"] = outcome(
        lambda: farcaster("absolute", "all").fit(mine(runs()), process_group="all")
    )
    fitted = farcaster("absolute", "all").fit(runs(1))
    cases["predict"] = outcome(lambda: fitted.predict(sharded(runs(1), mesh, [Shard(0)])[0], 3))
    return cases


def main(out):
    distributed.init_process_group("gloo")
    world = distributed.get_world_size()
    mesh, group = init_device_mesh("cpu", (world,)), distributed.group.WORLD
    agreed, told = [None] * world, [None] * world
    distributed.all_gather_object(agreed, fits(mesh, group))
    distributed.all_gather_object(told, errors(mesh, group))
    assert all(one == agreed[0] for one in agreed)  # to the bit, on every rank
    if distributed.get_rank() == 0:
        with open(out, "w") as file:
            json.dump({"fits": agreed[0], "errors": told}, file)
    distributed.barrier()
    if distributed.get_rank() == 0:
        time.sleep(1)  # it serves the others
    os._exit(0)  # threads of gloo now and then abort an interpreter that ends


if __name__ == "__main__":
    main(*sys.argv[1:])
