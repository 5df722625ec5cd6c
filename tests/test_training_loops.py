"""Farcasting left on in loops of every kind: what it holds on to, and what it refuses."""

import copy
import io
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import wfcast
from wfcast import WfcastError

torch = pytest.importorskip("torch")  # an extra: wfcast itself does without
pytest.importorskip("transformers")  # the same: models imports it
peft = pytest.importorskip("peft")  # only the tests use it

import loops  # noqa: E402  only with them
from models import small  # noqa: E402
from torch.optim import lr_scheduler  # noqa: E402

from wfcast._live import tensors  # noqa: E402
from wfcast.torch import Farcasting, fit_to_loss  # noqa: E402

FAST = {"spacing": 5, "period": 10, "recovery": 5}
FIRST = 20  # the step of the first jump then: four windows without one come before it
HARM = {**FAST, "horizon": 100_000}


def setup(optimizer="adam", norm=False, **parameters):
    model = loops.mlp(norm=norm)
    made = loops.OPTIMIZERS[optimizer](model.parameters())
    return model, made, Farcasting(model, made, **{**FAST, **parameters})


def lost(farcasting):
    """Steps that were taken back."""
    return farcasting.log()["farcasting/steps_lost"]


def train(model, optimizer, farcasting, steps):
    for step in steps:
        farcasting.step(loops.optimize(model, optimizer, step))


def first_error(model, optimizer, farcasting, steps):
    """What `step` says; it has changed no weights."""
    for step in steps:
        loss = loops.optimize(model, optimizer, step)
        before = loops.weights(model)
        try:
            farcasting.step(loss)
        except WfcastError as error:
            assert loops.equal(loops.weights(model), before)
            return str(error)
    raise AssertionError("no error")


# ---- memory -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_core_reads_and_writes_the_tensors_themselves(dtype, monkeypatch):
    """On the CPU a jump copies nothing: the core is given the parameters and the states."""
    model = loops.mlp().to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    farcasting = Farcasting(model, optimizer, horizon=3, **FAST)
    seen = []
    core = tensors.apply

    def spy(x, y, *args, **kwargs):
        seen.append([array.__array_interface__["data"][0] for array in (*x, *y)])
        return core(x, y, *args, **kwargs)

    monkeypatch.setattr(tensors, "apply", spy)
    for step in range(1, FIRST + 1):
        x, y = loops.batch(step)
        loss = loops.loss_of(model, (x.to(dtype), y))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step == FIRST:
            begin = farcasting._recording.kept[0].tensors
            sums = farcasting._recording._line._sums.tensors
        jumped = farcasting.step(loss)
    assert jumped
    here = [p.data_ptr() for p in model.parameters()]
    first, *both = (
        [t.data_ptr() for t in part] for part in (begin, sums[: len(here)], sums[len(here) :])
    )
    assert seen == [[*parts, p, p] for *parts, p in zip(first, *both, here, strict=True)]


@pytest.mark.parametrize("optimizer", loops.OPTIMIZERS)
def test_a_rollback_writes_into_the_optimizer_s_own_memory(optimizer):
    """As captured graphs and fused kernels, which hold addresses, expect."""
    model, made, farcasting = setup(optimizer, **HARM)
    train(model, made, farcasting, range(1, FIRST + 1))

    def addresses():
        state = [made.state[p] for p in model.parameters() if p in made.state]
        return [v.data_ptr() for s in state for v in s.values() if isinstance(v, torch.Tensor)]

    before = addresses()
    train(model, made, farcasting, range(FIRST + 1, FIRST + 6))
    assert lost(farcasting)
    assert addresses() == before


def test_a_loss_may_be_written_over_after_the_call():
    """A running sum that is set to zero, the output of a captured graph."""
    model, optimizer, farcasting = setup()
    total = torch.zeros(())
    for step in range(1, FIRST + 1):
        total += loops.optimize(model, optimizer, step).detach()
        farcasting.step(total)
        total.zero_()
    assert farcasting.history[0]["loss_before"] > 0.5


# ---- optimizers, schedulers, scalers ------------------------------------------------------------


@pytest.mark.parametrize("how", ["keep", "reset", "scale"])
@pytest.mark.parametrize("optimizer", loops.OPTIMIZERS)
def test_moments_of_every_layout(optimizer, how):
    """What the jump does to them, that training goes on, and that a resumed run is the same."""

    def begin():
        return setup(optimizer, norm=True, horizon=15, optimizer_state=how)

    model, made, farcasting = begin()
    train(model, made, farcasting, range(1, FIRST))
    loss = loops.optimize(model, made, FIRST)
    before = [copy.deepcopy(dict(made.state.get(p, {}))) for p in model.parameters()]
    assert farcasting.step(loss)
    for parameter, then in zip(model.parameters(), before, strict=True):
        now = made.state.get(parameter, {})
        if how == "reset":
            assert not now
            continue
        assert now.keys() == then.keys()
        for key, value in then.items():
            if how == "scale" and key in ("exp_avg", "momentum_buffer"):
                value = value * 0.25
            assert loops.equal(now[key], value), key
    file = io.BytesIO()
    train(model, made, farcasting, range(FIRST + 1, FIRST + 3))
    parts = (model, made, farcasting)
    with loops.in_a_window():
        torch.save([part.state_dict() for part in parts], file)
    train(*parts, range(FIRST + 3, 40))
    file.seek(0)
    again = begin()
    for part, state in zip(again, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    train(*again, range(FIRST + 3, 40))
    assert loops.equal(loops.weights(again[0]), loops.weights(model))
    assert loops.equal(again[1].state_dict(), made.state_dict())
    assert len(farcasting.history) >= 2


SCHEDULERS = {
    "step": lambda o: lr_scheduler.MultiStepLR(o, [12, 25]),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step / 10)),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 1e-2, total_steps=99),
    "warm-up and decay": lambda o: lr_scheduler.SequentialLR(
        o,
        [lr_scheduler.LinearLR(o, 0.1, total_iters=12), lr_scheduler.CosineAnnealingLR(o, 50)],
        [12],
    ),
}


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_schedulers_are_rolled_back_and_resumed(kind):
    """Two parameter groups with rates of their own."""

    def begin():
        model = loops.mlp()
        groups = [{"params": model[0].parameters(), "lr": 3e-3}, {"params": model[2].parameters()}]
        optimizer = torch.optim.AdamW(groups, lr=1e-3)
        scheduler = SCHEDULERS[kind](optimizer)
        farcasting = Farcasting(model, optimizer, scheduler=scheduler, **HARM)
        return model, optimizer, scheduler, farcasting

    def go(parts, steps):
        model, optimizer, scheduler, farcasting = parts
        loops.run(farcasting, model, optimizer, steps, scheduler)

    parts = begin()
    go(parts, range(1, FIRST))
    loss = loops.optimize(parts[0], parts[1], FIRST, parts[2])
    rates = [group["lr"] for group in parts[1].param_groups]
    schedule = copy.deepcopy(parts[2].state_dict())
    assert rates[0] != rates[1] or kind == "one cycle"
    assert parts[3].step(loss)
    loops.run(parts[3], *parts[:2], [FIRST + 1], parts[2])
    file = io.BytesIO()
    with loops.in_a_window():
        torch.save([part.state_dict() for part in parts], file)
    again = begin()
    file.seek(0)
    for part, state in zip(again, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    for some in (parts, again):
        for step in range(FIRST + 2, FIRST + 6):
            go(some, [step])
            if lost(some[3]):
                break
        assert lost(some[3])
        assert [group["lr"] for group in some[1].param_groups] == rates
        assert loops.equal(some[2].state_dict(), schedule)


def test_a_parameter_without_optimizer_state_yet():
    """A branch that gets its first gradient after the jump has no state after a rollback."""
    model = loops.mlp()
    late = torch.nn.Linear(3, 1)
    whole = torch.nn.ModuleDict({"net": model, "late": late})
    optimizer = torch.optim.Adam(whole.parameters(), lr=1e-3)
    farcasting = Farcasting(whole, optimizer, **HARM)
    before = loops.weights(whole)
    for step in range(1, FIRST + 6):
        loss = loops.loss_of(model, loops.batch(step))
        if step > FIRST:
            loss = loss + late(torch.ones(1, 3)).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        farcasting.step(loss)
        if step == FIRST + 1:
            assert late.weight in optimizer.state
        if lost(farcasting):
            break
    assert lost(farcasting)
    assert late.weight not in optimizer.state
    assert torch.equal(late.weight, before["late.weight"])


def test_scaler_of_a_fused_optimizer():
    """Its skipped steps are steps of the optimizer all the same; an infinite loss among the last
    before a jump means none.
    """
    model = loops.mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4)
    farcasting = Farcasting(model, optimizer, **FAST)
    for step in range(1, 61):
        loss = loops.loss_of(model, loops.batch(step)) * (math.inf if step in (3, 18, 27) else 1)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        farcasting.step(loss)
    assert farcasting._step == 60
    rows = [(row["step"], row["outcome"]) for row in farcasting.history]
    assert rows == [(20, "refused"), (30, "refused"), (40, "kept"), (50, "kept"), (60, "pending")]
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_run_is_the_plain_one(backend):
    """Jumps, kept and rolled back, are seen by compiled code: it reads the same memory."""
    results = []
    for compiled in (False, True):
        model = loops.mlp()
        shown = torch.compile(model, backend=backend) if compiled else model
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        farcasting = Farcasting(shown, optimizer, **FAST)
        train(shown, optimizer, farcasting, range(1, 60))
        results.append((loops.weights(model), [e["outcome"] for e in farcasting.history]))
        farcasting.close()
    for name, value in results[0][0].items():
        torch.testing.assert_close(results[1][0][name], value, rtol=1e-4, atol=1e-5)
    assert results[0][1] == results[1][1]
    assert "kept" in results[0][1]


# ---- killed -------------------------------------------------------------------------------------

PROGRAM = """
import os, signal, sys
import loops, torch
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts
from wfcast.torch import Farcasting

def go(folder, kill_at):
    model = loops.mlp(norm=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scheduler = CosineAnnealingWarmRestarts(optimizer, 17)
    farcasting = Farcasting(
        model, optimizer, scheduler=scheduler, store=store, spacing=5, period=10, recovery=5,
    )
    parts = dict(model=model, optimizer=optimizer, scheduler=scheduler, farcasting=farcasting)
    path, first = os.path.join(folder, "saved.pt"), 1
    if os.path.exists(path):
        saved = torch.load(path, weights_only=True)
        first = saved.pop("step") + 1
        for name, state in saved.items():
            parts[name].load_state_dict(state)
    for step in range(first, 61):
        loops.run(farcasting, model, optimizer, [step], scheduler)
        if kill_at and step % 3 == 0:
            with loops.in_a_window():
                saved = {"step": step, **{n: p.state_dict() for n, p in parts.items()}}
            torch.save(saved, path + ".new")
            os.replace(path + ".new", path)
        if step == kill_at:
            assert farcasting.history[-1]["outcome"] == "pending"
            os.kill(os.getpid(), signal.SIGKILL)
    history = [{k: v for k, v in e.items() if k != "seconds"} for e in farcasting.history]
    assert len(history) > 3
    torch.save([model.state_dict(), optimizer.state_dict(), scheduler.state_dict(), history],
               os.path.join(folder, "end.pt"))

whole, killed, store = sys.argv[1:]
# two steps into the first jump's window; and again, a jump later
for folder, kill_at in ((whole, 0), (killed, 22), (killed, 32), (killed, 0)):
    child = os.fork()  # a process of its own, without importing torch anew
    if not child:
        go(folder, kill_at)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code == (-signal.SIGKILL if kill_at else 0), (folder, kill_at, code)
"""


@pytest.mark.parametrize("store", ["cpu", "disk"])
def test_a_run_killed_in_a_recovery_window_goes_on_to_the_bit(store, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    if "PYTHONPATH" in os.environ:
        environment["PYTHONPATH"] += os.pathsep + os.environ["PYTHONPATH"]
    folders = [tmp_path / name for name in ("whole", "killed")]
    for folder in folders:
        folder.mkdir()
    command = [sys.executable, "-c", PROGRAM, *folders, store]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    want, got = (torch.load(folder / "end.pt", weights_only=True) for folder in folders)
    assert loops.equal(got, want)


def test_a_resumed_run_with_losses_in_double_precision():
    """What is saved of a loss is what the run itself judges by."""
    histories = []
    for resumed in (False, True):
        model, optimizer, farcasting = setup()
        for step in range(1, 31):
            if resumed and step == 18:
                state = farcasting.state_dict()
                farcasting.close()
                farcasting = Farcasting(model, optimizer, **FAST)
                farcasting.load_state_dict(state)
            loss = loops.optimize(model, optimizer, step)
            farcasting.step(loss.double() * math.pi)
        histories.append([{**e, "seconds": 0} for e in farcasting.history])
    assert histories[0][0]["loss_expected"] is not None
    assert histories[0] == histories[1]


# ---- bad use ------------------------------------------------------------------------------------


def test_two_controllers_of_one_model_in_different_wrappings():
    model = loops.mlp()
    optimizer = torch.optim.Adam(model.parameters())
    first = Farcasting(torch.compile(model, backend="eager"), optimizer)
    with pytest.raises(WfcastError, match="has a Farcasting already"):
        Farcasting(model, optimizer)
    with pytest.raises(WfcastError, match="has a Farcasting already"):
        Farcasting(model, optimizer, include=["0.*"])
    other = loops.mlp(seed=1)
    Farcasting(other, torch.optim.Adam(other.parameters()))  # another model may have its own
    first.close()
    Farcasting(model, optimizer)


@pytest.mark.parametrize("when", [3, FIRST + 1])
def test_parameters_that_are_added(when):
    """Before a jump, and while one is under way; nothing has been changed by the error."""
    model, optimizer, farcasting = setup(**HARM)
    train(model, optimizer, farcasting, range(1, when + 1))
    extra = torch.nn.Parameter(torch.zeros(3))
    model.register_parameter("extra", extra)
    optimizer.add_param_group({"params": [extra]})
    error = first_error(model, optimizer, farcasting, range(when + 1, FIRST + 6))
    assert re.search("1 parameters that were not there came to the optimizer", error)


def test_parameters_that_are_removed_while_a_jump_is_under_way():
    model, optimizer, farcasting = setup(**HARM)
    train(model, optimizer, farcasting, range(1, FIRST + 2))
    optimizer.param_groups[0]["params"].pop()
    error = first_error(model, optimizer, farcasting, range(FIRST + 2, FIRST + 6))
    assert re.search(r"'2\.bias' first, are no longer in the optimizer", error)


def test_parameters_frozen_meanwhile_do_not_jump():
    model, optimizer, farcasting = setup(horizon=20)
    train(model, optimizer, farcasting, range(1, 8))
    model[0].requires_grad_(False)
    train(model, optimizer, farcasting, range(8, FIRST))
    loss = loops.optimize(model, optimizer, FIRST)
    before = loops.weights(model)
    assert farcasting.step(loss)
    now = loops.weights(model)
    changed = {n for n in before if not torch.equal(before[n], now[n])}
    assert changed == {"2.weight", "2.bias"}


def test_frozen_quantised_weights_are_left_alone():
    """As under LoRA; a trainable one of a dtype that cannot be forecast is named."""
    model = loops.mlp()
    model.register_parameter(
        "codes", torch.nn.Parameter(torch.ones(4, dtype=torch.int8), requires_grad=False)
    )
    model.register_parameter(
        "scaled",
        torch.nn.Parameter(torch.ones(4).to(torch.float8_e4m3fn), requires_grad=False),
    )
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=1e-3)
    farcasting = Farcasting(model, optimizer, **FAST)
    net = model[:]
    states = {}
    for step in range(1, FIRST + 1):
        loss = loops.optimize(net, optimizer, step)
        states[step] = loops.weights(model)
        jumped = farcasting.step(loss)
    assert jumped
    farcasting.close()
    with wfcast.average((17, 18, 19)).applied(model, states):
        mean = torch.stack([states[s]["2.bias"] for s in (17, 18, 19)]).mean(0)
        torch.testing.assert_close(model[2].bias.detach(), mean)
    model.scaled = torch.nn.Parameter(model.scaled.float().to(torch.float8_e5m2))
    with pytest.raises(WfcastError, match="'scaled' has dtype float8_e5m2"):
        Farcasting(model, torch.optim.SGD(model.parameters(), lr=0.1))


def test_not_enough_history_means_no_jump_yet():
    """A forecaster whose inputs reach further back than the run."""
    line = wfcast.linear_trend((0, 30, 40), (50,))
    model, optimizer, farcasting = setup(forecaster=line, start=7)
    train(model, optimizer, farcasting, range(1, 47))
    assert farcasting.history == []
    train(model, optimizer, farcasting, [47])  # 7 and 40 steps more
    assert [e["step"] for e in farcasting.history] == [47]


@pytest.mark.parametrize("limit", [3_000, 9_000])
def test_a_disk_that_is_full_at_a_jump(limit, tmp_path):
    """Room for the weights and not for what else a rollback needs: no jump, and nothing is left."""
    model, optimizer, farcasting = setup(norm=True, store=tmp_path, state_dtype=torch.bfloat16)
    train(model, optimizer, farcasting, range(1, FIRST))
    loss = loops.optimize(model, optimizer, FIRST)
    weights = loops.weights(model)
    with loops.files_of_at_most(limit):
        assert not farcasting.step(loss)
    assert farcasting.history[-1]["outcome"] == "refused"
    assert loops.equal(loops.weights(model), weights)
    (folder,) = tmp_path.iterdir()
    kept = farcasting._recording.kept  # none where the sums had no room: a new history begins
    assert len(list(folder.iterdir())) == len(kept) + bool(kept)  # and the sums


def test_ctrl_c_in_the_middle_of_a_jump(monkeypatch):
    """Weights of which some have jumped are no weights: they are those before the jump again."""
    model, optimizer, farcasting = setup(horizon=20)
    train(model, optimizer, farcasting, range(1, FIRST))
    loss = loops.optimize(model, optimizer, FIRST)
    before = loops.weights(model)
    from wfcast._live import tensors

    real, calls = tensors.apply, []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        real(*args, **kwargs)

    monkeypatch.setattr(tensors, "apply", interrupted)
    with pytest.raises(KeyboardInterrupt):
        farcasting.step(loss)
    assert loops.equal(loops.weights(model), before)
    monkeypatch.setattr(tensors, "apply", real)
    train(model, optimizer, farcasting, range(FIRST + 1, 40))
    assert any(e["outcome"] == "kept" for e in farcasting.history)


def test_close_may_leave_the_weights_alone():
    """Where they have been replaced since the jump, as by the best checkpoint."""
    model, optimizer, farcasting = setup(**HARM)
    train(model, optimizer, farcasting, range(1, FIRST + 3))
    best = loops.mlp(seed=9).state_dict()
    model.load_state_dict(best)
    farcasting.close(undo=False)
    assert loops.equal(loops.weights(model), dict(best))
    (row,) = farcasting.history
    assert (row["outcome"], row["verdict"]) == ("kept", None)
    assert row["reason"] == "the run ended before its verdict"


# ---- LoRA ---------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")  # PEFT's own
def test_lora_states_hold_the_adapter_alone():
    """Recorded without the frozen base, they are combined and put in; the base stays."""
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
    model = peft.get_peft_model(small("llama"), config)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=5e-2)
    tokens = (torch.arange(16) + torch.arange(64)[:, None]) % 64

    def loss_of(model, picked):
        return model(input_ids=tokens[picked], labels=tokens[picked]).loss

    states = {}
    for step in range(1, 31):
        loss = loss_of(model, slice(step % 8 * 8, step % 8 * 8 + 8))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 5 == 0:
            states[step] = {n: v for n, v in loops.weights(model).items() if "lora_" in n}
    picked = [slice(i, i + 8) for i in range(0, 64, 8)]
    mf = fit_to_loss(model, states, loss_of, picked, n_evals=10, rank=3, n_judge=2)
    assert mf.info["loss_after"] <= mf.info["loss_before"]
    mf = wfcast.average(states)
    before = loops.weights(model)
    with mf.applied(model, states):
        inside = loops.weights(model)
    assert {n for n in before if not torch.equal(before[n], inside[n])} == set(states[30])
    del states[30]["base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"]
    with pytest.raises(WfcastError, match="lacks 1 of the model's"), mf.applied(model, states):
        pass


# ---- a loss-fitted jump -------------------------------------------------------------------------


def test_a_jump_to_loss_fitted_weights():
    """What `applied` shows is what `predict` gives to go on from."""
    model = loops.mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    states = {}
    for step in range(1, 81):
        loops.optimize(model, optimizer, step)
        if step % 10 == 0:
            states[step] = loops.weights(model)
    batches = [loops.batch(step) for step in range(1000, 1060)]
    mf = fit_to_loss(model, states, loops.loss_of, batches, n_evals=20)
    with mf.applied(model, states):
        shown = loops.weights(model)
    future = mf.predict(states, 80)
    for name, value in shown.items():
        torch.testing.assert_close(future[name], value, rtol=1e-5, atol=1e-6)
    model.load_state_dict(future)


# ---- showing ------------------------------------------------------------------------------------


def test_summaries_of_every_history():
    """Without a jump, with refused ones, with NaN: text, HTML, JSON and a plot each."""
    import matplotlib.pyplot as plt

    def nothing():
        return setup()[2]

    def refused():
        model, optimizer, farcasting = setup()
        for step in range(1, FIRST + 1):
            loops.optimize(model, optimizer, step)
            farcasting.step(math.nan)
        return farcasting

    def undone():
        model, optimizer, farcasting = setup(**HARM)
        for step in range(1, FIRST + 6):
            loss = loops.optimize(model, optimizer, step)
            farcasting.step(loss if step <= FIRST else math.nan)
        return farcasting

    for make, jumps, outcome in (
        (nothing, 0, None),
        (refused, 0, "refused"),
        (undone, 1, "rolled back"),
    ):
        farcasting = make()
        assert str(farcasting.summary()).startswith(f"{jumps} jumps, 0 kept")
        assert "<table>" in farcasting._repr_html_()
        document = json.loads(json.dumps(farcasting.summary().to_dict(), allow_nan=False))
        assert [j["outcome"] for j in document["jumps"]] == ([outcome] if outcome else [])
        ax = farcasting.plot()
        ax.figure.canvas.draw()
        plt.close(ax.figure)
        row = farcasting.log()
        assert all(type(v) is float and math.isfinite(v) for v in row.values())
        assert row["farcasting/jumps"] == jumps
    assert row["farcasting/steps_lost"] == 1
