"""The same on a GPU: what torch computes there is held to what the core computes on the CPU."""

import copy
import io
import itertools

import numpy as np
import pytest

import wfcast
from wfcast import WfcastError

torch = pytest.importorskip("torch")  # an extra: wfcast itself does without

import loops  # noqa: E402  only with it

from wfcast._live import tensors  # noqa: E402
from wfcast.torch import Annealed, Farcasting, fit_to_loss  # noqa: E402

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

FAST = {"spacing": 5, "period": 10, "recovery": 5}
FIRST = 20  # the step of the first jump then
STORES = ("auto", "cpu", "device", "disk")


def batch(step):
    return tuple(t.cuda() for t in loops.batch(step))


def optimize(model, optimizer, step):
    loss = loops.loss_of(model, batch(step))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss


def held_out(model):
    with torch.no_grad():
        return float(loops.loss_of(model, (loops.X[loops.HELD].cuda(), loops.Y[loops.HELD].cuda())))


def close(got, want, **tolerances):
    assert got.keys() == want.keys()
    for name, value in got.items():
        torch.testing.assert_close(value.cpu(), want[name].cpu(), **tolerances)


@pytest.mark.parametrize("store", STORES)
def test_a_jump_is_that_of_the_core(store):
    start = loops.mlp()
    states = [loops.weights(loops.mlp(seed=s)) for s in range(1, 5)]
    results = []
    for device in ("cpu", "cuda"):
        model = copy.deepcopy(start).to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        farcasting = Farcasting(model, optimizer, horizon=20, **FAST, store=store)
        for step in range(1, FIRST + 1):
            if step % 5 == 0:
                model.load_state_dict(states[step // 5 - 1])
            loss = loops.loss_of(model, (t.to(device) for t in loops.batch(step)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            changed = farcasting.step(loss)
        assert changed
        results.append(loops.weights(model))
    close(*results, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(33, 65), (), (0, 3), (3001, 1501)])
@pytest.mark.parametrize("strided", [False, True])
def test_the_kernels_of_torch_are_those_of_the_core(dtype, shape, strided):
    torch.manual_seed(0)
    states = [torch.randn(shape, dtype=torch.float64).to(dtype) for _ in range(3)]
    if strided and len(shape) == 2:
        states = [s.t() for s in states]
    there = [s.cuda() for s in states]
    coef, intercept = np.array([0.5, -1.25, 1.75]), 0.125
    for some in (states, there):
        tensors.combine([("w", some[2], some, (coef, intercept))])
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(there[2].cpu(), states[2], rtol=2 * eps, atol=16 * eps)
    np.testing.assert_allclose(
        tensors.products([("w", there, there[:1])]),
        tensors.products([("w", [t.cpu() for t in there], [there[0].cpu()])]),
        rtol=1e-6,
        atol=1e-4,
    )
    moved = [*states[:2], *states[1:]]
    np.testing.assert_allclose(
        tensors.movements([("w", [t.cuda() for t in moved])]),
        tensors.movements([("w", moved)]),
        rtol=1e-5,
        atol=1e-3,
    )


def test_a_forecast_that_overflows_is_an_error():
    states = [torch.full((7,), x, dtype=torch.float16, device="cuda") for x in (0.0, 60_000.0)]
    with pytest.raises(WfcastError, match=r"w: the forecast .* overflows torch.float16"):
        tensors.combine([("w", states[1], states, (np.array([-1.0, 2.0]), 0.0))])
    states[0][3] = torch.nan
    with pytest.raises(ValueError, match="w: NaN"):
        tensors.products([("w", states, None)])


@pytest.mark.parametrize("store", STORES)
def test_states_lie_where_they_are_wanted(store):
    model = loops.mlp().cuda()
    optimizer = torch.optim.Adam(model.parameters())
    farcasting = Farcasting(model, optimizer, **FAST, store=store)
    (state,) = farcasting._recording.kept.values()
    for kept, parameter in zip(state.settled(), model.parameters(), strict=True):
        assert torch.equal(kept.cpu(), parameter.cpu())
        assert kept.is_cuda == (store in ("auto", "device"))
        assert kept.is_pinned() == (store == "cpu")


def test_without_memory_for_a_copy_on_the_gpu(monkeypatch):
    """The copy to the CPU then waits, instead of going on beside the training."""
    model = loops.mlp().cuda()
    optimizer = torch.optim.Adam(model.parameters())
    real = torch.empty

    def full(*args, device=None, **kwargs):
        if device is not None and torch.device(device).type == "cuda":
            raise torch.cuda.OutOfMemoryError
        return real(*args, device=device, **kwargs)

    monkeypatch.setattr(torch, "empty", full)
    farcasting = Farcasting(model, optimizer, **FAST, store="cpu")
    (state,) = farcasting._recording.kept.values()
    for kept, parameter in zip(state.settled(), model.parameters(), strict=True):
        assert torch.equal(kept, parameter.cpu())
        assert kept.is_pinned()


CUDA_OPTIMIZERS = {
    **loops.OPTIMIZERS,
    "adam capturable": lambda p: torch.optim.Adam(p, lr=1e-3, capturable=True),
}


@pytest.mark.parametrize("optimizer", CUDA_OPTIMIZERS)
@pytest.mark.parametrize("store", STORES)
def test_harm_is_taken_back_to_the_bit(optimizer, store):
    model = loops.mlp(norm=True).cuda()
    made = CUDA_OPTIMIZERS[optimizer](model.parameters())
    farcasting = Farcasting(model, made, horizon=100_000, **FAST, store=store)
    for step in range(1, FIRST + 6):
        loss = optimize(model, made, step)
        if step == FIRST:
            kept, state = loops.weights(model), copy.deepcopy(made.state_dict())
            addresses = [p.data_ptr() for p in model.parameters()]
        farcasting.step(loss)
        if farcasting.history and farcasting.history[-1]["outcome"] == "rolled back":
            break
    assert farcasting.history[-1]["outcome"] == "rolled back"
    assert loops.equal(loops.weights(model), kept)
    assert loops.equal(made.state_dict(), state)
    assert [p.data_ptr() for p in model.parameters()] == addresses


@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize("optimizer", CUDA_OPTIMIZERS)
@pytest.mark.parametrize("store", STORES)
def test_moments_that_were_dropped_come_back_where_they_were(store, optimizer, resumed):
    def begin():
        model = loops.mlp().cuda()
        made = CUDA_OPTIMIZERS[optimizer](model.parameters())
        settings = {"horizon": 15, "optimizer_state": "reset", "store": store, **FAST}
        return model, made, Farcasting(model, made, **settings)

    def state_of(model, made):
        return [dict(made.state.get(p, {})) for p in model.parameters()]

    model, made, farcasting = begin()
    for step in itertools.count(1):
        loss = optimize(model, made, step)
        before = copy.deepcopy(state_of(model, made))
        if farcasting.step(loss):
            break
    if resumed:
        with loops.in_a_window():
            states = [part.state_dict() for part in (model, farcasting)]
        model, made, farcasting = begin()
        for part, state in zip((model, farcasting), states, strict=True):
            part.load_state_dict(state)
    assert farcasting.settle()
    after = state_of(model, made)
    assert loops.equal(after, before)  # which fails where devices differ
    optimize(model, made, step + 1)


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler")  # a first step is left out
@pytest.mark.parametrize("store", STORES)
def test_a_mixed_precision_run_goes_on_to_the_bit(store):
    """Half precision under a gradient scaler with clipping, saved in mid-jump."""

    def go(steps, state=None):
        model = loops.mlp(norm=True).cuda()
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, fused=True)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 60)
        scaler = torch.amp.GradScaler("cuda", init_scale=2.0**20, growth_interval=7)
        farcasting = Farcasting(
            model, optimizer, **FAST, horizon=3, scheduler=scheduler, store=store
        )
        parts = {
            "model": model,
            "optimizer": optimizer,
            "scheduler": scheduler,
            "scaler": scaler,
            "farcasting": farcasting,
        }
        for name, part in parts.items() if state else ():
            part.load_state_dict(state[name])
        for step in steps:
            with torch.autocast("cuda", torch.float16):
                loss = loops.loss_of(model, batch(step))
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            scheduler.step()
            farcasting.step(loss)
        held = io.BytesIO()
        with loops.in_a_window():
            torch.save({name: part.state_dict() for name, part in parts.items()}, held)
        history = [{k: v for k, v in e.items() if k != "seconds"} for e in farcasting.history]
        held.seek(0)
        return torch.load(held, weights_only=True), history

    whole, history = go(range(1, 60))
    assert any(e["outcome"] == "kept" for e in history)
    for cut in (18, 23, 33, 48):  # the first before a jump, the second and third in windows
        first, _ = go(range(1, cut))
        rest, again = go(range(cut, 60), first)
        assert again == history
        for name in ("model", "optimizer", "scheduler", "scaler"):
            assert loops.equal(rest[name], whole[name])


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_a_compiled_model_sees_the_jump():
    model = loops.mlp().cuda()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    compiled = torch.compile(model)
    farcasting = Farcasting(compiled, optimizer, horizon=20, **FAST)
    for step in range(1, FIRST + 1):
        changed = farcasting.step(optimize(compiled, optimizer, step))
    assert changed
    assert held_out(compiled) == pytest.approx(held_out(model), rel=1e-4)


@pytest.mark.parametrize("how", ["ddp", "fsdp2"])
def test_wrapped_models_jump_as_the_plain_one(how, tmp_path):
    """One process, and NCCL between it and itself."""
    from torch import distributed
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    def go(wrap):
        model = wrap(loops.mlp().cuda())
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        farcasting = Farcasting(model, optimizer, horizon=20, **FAST)
        for step in range(1, FIRST + 1):
            farcasting.step(optimize(model, optimizer, step))
        assert [e["step"] for e in farcasting.history] == [FIRST]
        farcasting.close(undo=False)
        return [getattr(p, "full_tensor", p.detach)() for p in model.parameters()]

    plain = go(lambda model: model)
    torch.cuda.set_device(0)
    distributed.init_process_group(
        "nccl", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1
    )
    try:
        wrapped = go({"ddp": DistributedDataParallel, "fsdp2": fully_shard}[how])
    finally:
        distributed.destroy_process_group()
    for got, want in zip(wrapped, plain, strict=True):
        torch.testing.assert_close(got.detach(), want, rtol=1e-5, atol=1e-6)


def test_fit_to_loss_is_that_on_the_cpu():
    model = loops.mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    states = {}
    for step in range(1, 121):
        loops.optimize(model, optimizer, step)
        if step % 10 == 0:
            states[step] = loops.weights(model)
    states = dict(list(states.items())[-4:])
    fits = []
    for device in ("cpu", "cuda"):
        moved = copy.deepcopy(model).to(device)
        there = {k: {n: t.to(device) for n, t in s.items()} for k, s in states.items() if k % 20}
        there = {**states, **there}  # some of them stay on the CPU
        source = (tuple(t.to(device) for t in loops.batch(s)) for s in itertools.count(10_000))
        mf = fit_to_loss(moved, there, loops.loss_of, source)
        with mf.applied(moved, there):
            fits.append((mf, loops.weights(moved)))
        close(loops.weights(moved), loops.weights(model), rtol=0, atol=0)
    assert fits[1][0].info["loss_after"] < fits[1][0].info["loss_before"]
    np.testing.assert_allclose(fits[1][0].coef["*"], fits[0][0].coef["*"], atol=0.02)
    close(fits[1][1], fits[0][1], rtol=0.02, atol=0.02)


def test_checkpoints_saved_on_the_gpu(tmp_path):
    states = {step: loops.weights(loops.mlp(seed=step)) for step in (0, 5)}
    paths = {step: tmp_path / f"{step}.pt" for step in states}
    for step, state in states.items():
        torch.save({name: t.cuda() for name, t in state.items()}, paths[step])
    line = wfcast.linear_trend((0, 5), (10,))
    wfcast.forecast_checkpoint(line, paths, 10, tmp_path / "out.pt")
    got = torch.load(tmp_path / "out.pt", weights_only=True)
    want = {n: 2 * states[5][n].double() - states[0][n].double() for n in got}
    close({n: t.double() for n, t in got.items()}, want, rtol=1e-6, atol=1e-6)
    assert got.keys() == states[5].keys()


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_averages_are_those_of_the_core(store, dtype):
    """Of the same weights, and resumed to the bit; the run gets its own back."""
    torch.manual_seed(0)
    moves = [torch.randn(64, 33) for _ in range(20)]

    def follow(annealed, moves):
        for move in moves:
            with torch.no_grad():
                annealed.model.weight += 0.01 * move.to(annealed.model.weight.device)
            annealed.step()
        return annealed

    start = torch.nn.Linear(33, 64)
    made = {"every": 2, "state_dtype": dtype}
    here = follow(Annealed(copy.deepcopy(start), **made), moves)
    model = copy.deepcopy(start).cuda()
    there = follow(Annealed(model, store=store, **made), moves[:11])
    file = io.BytesIO()
    torch.save(there.state_dict(), file)
    file.seek(0)
    again = Annealed(copy.deepcopy(model), store=store, **made)
    again.load_state_dict(torch.load(file, weights_only=True))
    follow(there, moves[11:])
    follow(again, moves[11:])
    own = loops.weights(model)
    for gamma in (2, 40):
        with here.applied(gamma), there.applied(gamma), again.applied(gamma):
            readout = loops.weights(model)
            close(readout, loops.weights(here.model), rtol=1e-5, atol=1e-3 if dtype else 1e-6)
            assert loops.equal(readout, loops.weights(again.model))
    assert loops.equal(loops.weights(model), own)
