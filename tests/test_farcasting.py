"""Jumps in a training loop: the weights they give, and what a rollback gives back."""

import copy
import gc
import io
import math
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import reference

import wfcast
from wfcast import WfcastError

torch = pytest.importorskip("torch")  # an extra: wfcast itself does without
pytest.importorskip("transformers")  # the same
peft = pytest.importorskip("peft")  # only the tests use it

import loops  # noqa: E402  only with them
from models import ConvNet, small  # noqa: E402
from torch.optim.lr_scheduler import CosineAnnealingLR, CosineAnnealingWarmRestarts, StepLR  # noqa: E402

from wfcast._live import tensors  # noqa: E402
from wfcast.torch import Farcasting, _rule, fit_to_loss  # noqa: E402

STORED = Path(__file__).parent / "data" / "farcasting.pt"
FAST = {"spacing": 5, "period": 10, "recovery": 5}
FIRST = 20  # the step of the first jump then: four windows without one come before it


def setup(optimizer="adam", norm=False, **parameters):
    model = loops.mlp(norm=norm)
    made = loops.OPTIMIZERS[optimizer](model.parameters())
    return model, made, Farcasting(model, made, **{**FAST, **parameters})


def lost(farcasting):
    """Steps that were taken back."""
    return farcasting.log()["farcasting/steps_lost"]


def parameters_of(model):
    return {name: p.detach().double().numpy().copy() for name, p in model.named_parameters()}


# ---- the weights of a jump ----------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam", "adafactor", "rmsprop"])
def test_jumps_are_those_of_the_twin(optimizer, monkeypatch):
    """Their horizons and weights, and that there is none; two groups with rates that fall."""
    bounds = {  # by which each of them counts
        "REACH": 3.0,
        "FARTHEST": 1.2,
        "LEAST_NEAR": -0.2,
        "LEAST_FAR": 0.1,
        "NEAR": 0.2,
        "MEMORIES": 2,
        "LARGEST": 0.1,
    }
    for name, value in bounds.items():
        monkeypatch.setattr(_rule, name, value)
    momentum = {"momentum": 0.9, "adam": 0.9, "rmsprop": 0.5}.get(optimizer, 0.0)
    model = loops.mlp(norm=True)
    made = loops.OPTIMIZERS[optimizer](
        [{"params": model[0].parameters()}, {"params": list(model.parameters())[2:], "lr": 2e-3}]
    )
    highest = [group["lr"] for group in made.param_groups]
    scheduler = CosineAnnealingLR(made, 90)
    farcasting = Farcasting(model, made, stop=100, **FAST)
    seen = {0: parameters_of(model)}
    looked, past = [], []
    for step in range(1, 81):
        loss = loops.optimize(model, made, step, scheduler)
        seen[step] = parameters_of(model)
        share = farcasting._rule.share
        changed = farcasting.step(loss)
        if farcasting.history[-1:] and farcasting.history[-1]["step"] == step:
            rates = [(top, g["lr"]) for top, g in zip(highest, made.param_groups, strict=True)]
            left = (100 - step) / 100
            horizon, weights = reference.farcast(
                seen, 5, rates, left, share, momentum, past, bounds
            )
            assert farcasting.history[-1]["horizon"] == pytest.approx(horizon, rel=1e-4)
            assert changed == (horizon > 0)
            looked.append(changed)
            for name, now in parameters_of(model).items():
                np.testing.assert_allclose(now, weights[name], rtol=1e-5, atol=1e-6)
        if changed:
            seen = {step: parameters_of(model)}
    assert sum(looked) >= 3


def test_a_jump_writes_into_the_parameters_own_memory():
    model, optimizer, farcasting = setup(horizon=20)
    addresses = [p.data_ptr() for p in model.parameters()]
    assert loops.run(farcasting, model, optimizer, range(1, 24)) == [FIRST]
    assert [p.data_ptr() for p in model.parameters()] == addresses
    assert farcasting.history[-1]["horizon"] == 20


def test_line_given_as_a_function():
    model, optimizer, farcasting = setup(forecaster=wfcast.linear_trend, n_states=3, horizon=7.5)
    seen = {}
    for step in range(1, FIRST + 1):
        loss = loops.optimize(model, optimizer, step)
        seen[step] = loops.weights(model)
        farcasting.step(loss)
    for name, now in loops.weights(model).items():
        w = np.array([seen[step][name].double().numpy().ravel() for step in (10, 15, 20)])
        t = np.array([0.0, 5, 10])
        slope, level = np.polyfit(t, w, 1)
        line = level + slope * 18  # the forecast of a whole step, and then in proportion
        want = w[-1] + 7.5 / 8 * (line - w[-1])
        np.testing.assert_allclose(now.numpy().ravel(), want, rtol=1e-5, atol=1e-6)


def siblings(inputs, targets):
    runs = []
    for seed in (1, 2):
        model = loops.mlp(seed=seed)
        optimizer = loops.OPTIMIZERS["adam"](model.parameters())
        run = {0: loops.weights(model)}
        for step in range(1, targets[-1] + 1):
            loops.optimize(model, optimizer, 1000 * seed + step)
            run[step] = loops.weights(model)
        runs.append(run)
    mf = wfcast.ModelFarcaster(inputs, targets, loss="squared_error", beta=0.0)
    return mf.fit(runs)


def test_fitted_forecaster_and_horizons_between_its_targets():
    mf = siblings((0, 6, 10), (14, 20))
    for horizon, expected in ((10, 20), (4, 14), (7, None), (2, None)):
        model, optimizer, farcasting = setup(forecaster=mf, horizon=horizon)
        run = {}
        for step in range(1, FIRST + 1):
            loss = loops.optimize(model, optimizer, step)
            run[step - 10] = loops.weights(model)
            farcasting.step(loss)
        if expected is None:
            near, far = (
                (run[10], mf.predict(run, 14))
                if horizon < 4
                else [mf.predict(run, s) for s in (14, 20)]
            )
            share = horizon / 4 if horizon < 4 else (horizon - 4) / 6
            want = {n: near[n] + share * (far[n] - near[n]) for n in near}
        else:
            want = mf.predict(run, expected)
        for name, now in loops.weights(model).items():
            torch.testing.assert_close(now, want[name], rtol=1e-5, atol=1e-6)
        farcasting.close()


@pytest.mark.parametrize("horizon", [500, "adaptive"])
def test_horizon_stays_within_the_fit(horizon, monkeypatch):
    monkeypatch.setattr(_rule, "LARGEST", 1.0)
    mf = siblings((0, 5), (10, 12))
    model, optimizer, farcasting = setup(forecaster=mf, horizon=horizon)
    loops.run(farcasting, model, optimizer, range(1, FIRST + 1))
    assert farcasting.history[0]["horizon"] == 7


@pytest.mark.parametrize("apart", [6, 7, 9])
@pytest.mark.parametrize("horizon", [2, "adaptive"])
def test_a_fitted_forecaster_jumps_between_looks_that_are_close(apart, horizon, monkeypatch):
    """Its states lie further back than the look at the weights that moves a jump."""
    for bound in ("LEAST_NEAR", "LEAST_FAR"):
        monkeypatch.setattr(_rule, bound, -2.0)
    mf = siblings((0, 5, 10), (11, 13))
    model, optimizer, farcasting = setup(forecaster=mf, horizon=horizon)
    for step in range(1, 121):
        loss = loops.optimize(model, optimizer, step)
        farcasting.step(loss, room=-step % apart)
        assert farcasting.settled or step % apart, "looked at under a jump"
    made = [row["step"] for row in farcasting.history if row["outcome"] == "kept"]
    assert len(made) >= 3


def test_torch_path_gives_what_the_core_gives(monkeypatch):
    """The code for other devices, run on the CPU."""
    results = []
    for elsewhere in (False, True):
        if elsewhere:
            monkeypatch.setattr(tensors, "on_cpu", lambda tensors: False)
        model, optimizer, farcasting = setup(norm=True)
        assert loops.run(farcasting, model, optimizer, range(1, FIRST + 1)) == [FIRST]
        results.append(loops.weights(model))
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name], rtol=1e-5, atol=1e-6)


# ---- keeping and rolling back -------------------------------------------------------------------


def test_jumps_pay_at_an_untuned_rate():
    """Adam at a tenth of its default rate, held-out loss of real digits."""
    plain = loops.mlp(width=64)
    optimizer = torch.optim.Adam(plain.parameters(), lr=1e-4)
    for step in range(1, 451):
        loops.optimize(plain, optimizer, step)
    model = loops.mlp(width=64)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    farcasting = Farcasting(model, optimizer, judge=lambda: loops.held_out(model))
    loops.run(farcasting, model, optimizer, range(1, 401), judged=True)
    assert loops.held_out(model) < loops.held_out(plain)
    saved, low, high = farcasting.steps_saved
    assert low <= saved <= high


@pytest.mark.parametrize("optimizer", loops.OPTIMIZERS)
@pytest.mark.parametrize("judged", [False, True])
def test_harm_is_taken_back(optimizer, judged):
    model = loops.mlp(norm=True)
    made = loops.OPTIMIZERS[optimizer](model.parameters())
    scheduler = CosineAnnealingWarmRestarts(made, 7)
    judge = (lambda: loops.held_out(model)) if judged else None
    farcasting = Farcasting(model, made, horizon=1e5, scheduler=scheduler, judge=judge, **FAST)
    for step in range(1, FIRST + 6):
        loss = loops.optimize(model, made, step, scheduler)
        if step == FIRST:
            kept = loops.weights(model)
            state = copy.deepcopy(made.state_dict())
            schedule = copy.deepcopy(scheduler.state_dict())
            addresses = [p.data_ptr() for p in model.parameters()]
        changed = farcasting.step(None if judged else loss)
        assert farcasting.settled == (step < FIRST or (changed and step > FIRST))
        if step == FIRST:
            assert changed
            assert not loops.equal(loops.weights(model), kept)
        if farcasting.history and farcasting.history[-1]["outcome"] == "rolled back":
            break
    assert changed
    entry = farcasting.history[-1]
    assert entry["reason"] == "the loss is far beyond any before the jump"
    assert entry["steps_saved"] == FIRST - step
    assert lost(farcasting) == step - FIRST
    assert loops.equal(loops.weights(model), kept)
    assert loops.equal(made.state_dict(), state)
    assert loops.equal(scheduler.state_dict(), schedule)
    assert [p.data_ptr() for p in model.parameters()] == addresses


def test_a_rolled_back_run_is_the_run_from_before_the_jump():
    """Trained on the same batches, it goes where a run without the jump goes."""
    model, optimizer, farcasting = setup(norm=True, horizon=100_000)
    twin = loops.mlp(norm=True)
    other = loops.OPTIMIZERS["adam"](twin.parameters())
    for step in range(1, FIRST + 1):
        loops.optimize(twin, other, step)
    jumped, back = loops.run(farcasting, model, optimizer, range(1, 38))
    assert jumped == FIRST
    assert back == FIRST + lost(farcasting)
    for later in range(back + 1, 38):
        loops.optimize(twin, other, later)
    assert farcasting.history[0]["outcome"] == "rolled back"
    assert loops.equal(loops.weights(model), loops.weights(twin))


def test_without_a_scheduler_the_rate_is_left_alone():
    model, optimizer, farcasting = setup(horizon=100_000)
    for step in range(1, FIRST + 6):
        optimizer.param_groups[0]["lr"] = 1e-3 / step
        farcasting.step(loops.optimize(model, optimizer, step))
        if lost(farcasting):
            break
    assert lost(farcasting)
    assert optimizer.param_groups[0]["lr"] == 1e-3 / step


@pytest.mark.parametrize(("gone", "seen"), [(1, 1), (2, 2), (3, 4), (7, 8)])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_gone_after_a_jump_takes_it_back_at_once(gone, seen, value):
    """At the next of the looks, which are a quarter of a window apart."""
    model, optimizer, farcasting = setup(recovery=8, horizon=5)
    for step in range(1, 42):
        loss = loops.optimize(model, optimizer, step)
        if step == 32:
            kept = loops.weights(model)
        changed = farcasting.step(torch.tensor(value) if step >= 32 + gone else loss)
        assert changed == (step in (32, 32 + seen))
        if changed and step > 32:
            break
    assert loops.equal(loops.weights(model), kept)
    row = farcasting.history[-1]
    assert (row["outcome"], row["reason"]) == ("rolled back", "the loss is not finite")
    assert (row["verdict"], row["judged_at"]) == ("harm", step)
    assert not math.isfinite(row["loss_after"])
    assert row["steps_saved"] == -seen


def test_nan_before_a_jump_means_no_jump(caplog):
    model, optimizer, farcasting = setup()
    for step in range(1, FIRST + 1):
        loss = loops.optimize(model, optimizer, step)
        assert not farcasting.step(torch.tensor(math.nan) if step == FIRST - 2 else loss)
    assert farcasting.history[-1]["outcome"] == "refused"
    assert "a loss was NaN" in farcasting.history[-1]["reason"]
    assert f"no jump at step {FIRST}" in caplog.text


def test_a_loss_that_was_gone_long_ago_is_forgotten():
    """One overflow of a scaled run must not end the jumps."""
    model, optimizer, farcasting = setup()
    for step in range(1, FIRST + 1):
        loss = loops.optimize(model, optimizer, step)
        changed = farcasting.step(loss if step != 7 else torch.tensor(math.inf))
    assert changed
    ((_, stretch),) = farcasting.state_dict()["judging"]["calibration"]["stretches"]
    assert [step for step, _ in stretch] == list(range(8, FIRST + 1))


def outcomes(loss_at, steps=400, **parameters):
    """Those of jumps so short that they change next to nothing, judged by losses made up."""
    settings = {"spacing": 5, "period": 10, "recovery": 10, "horizon": 0.1, **parameters}
    model, optimizer, farcasting = setup(**settings)
    for step in range(1, steps + 1):
        loops.optimize(model, optimizer, step)
        farcasting.step(loss_at(step))
    assert farcasting.history
    return farcasting


def noisy(step):
    return step**-0.3 * math.exp(0.1 * np.random.default_rng(step).standard_normal())


@pytest.mark.parametrize("every", [3, 5, 9, 10])
def test_losses_of_every_few_steps(every):
    farcasting = outcomes(lambda step: noisy(step) if step % every == 0 else None)
    kinds = [row["verdict"] for row in farcasting.history if row["outcome"] == "kept"]
    assert len(kinds) >= 6
    assert lost(farcasting) == 0
    assert {"even", "better", "worse"} & set(kinds)


@pytest.mark.filterwarnings("ignore:there are too few losses")  # none comes in the first ten steps
@pytest.mark.parametrize("every", [11, 15, 50])
def test_losses_too_rare_for_a_verdict_mean_no_jump(every):
    """A jump would be over, and nobody would know how it went."""
    farcasting = outcomes(lambda step: noisy(step) if step % every == 0 else None)
    assert {row["outcome"] for row in farcasting.history} == {"refused"}
    assert f"come {every} steps apart, and one is needed" in farcasting.history[-1]["reason"]


def test_losses_that_end_take_a_jump_back_without_blame():
    farcasting = outcomes(lambda step: noisy(step) if step <= 60 else None)
    back = [row for row in farcasting.history if row["outcome"] == "rolled back"]
    assert [row["reason"] for row in back] == [
        "no loss was handed over in the steps to its verdict"
    ]
    assert farcasting.history[-1]["outcome"] == "refused"
    assert not farcasting.stopped
    assert farcasting.state_dict()["rule"]["harms"] == 0


CONSTANT = {
    "rewards that are all equal": (lambda step: 0.5, True),
    "negative rewards": (lambda step: -2 * noisy(step), True),
    "rewards of now and then": (lambda step: float(step % 37 == 0), True),
    "losses that are all 0": (lambda step: 0.0, False),
    "losses that reach 0": (lambda step: max(0.0, noisy(step) - 0.3), False),
}


@pytest.mark.parametrize("recovery", [1, 2, 10])
@pytest.mark.parametrize(("loss_at", "maximize"), CONSTANT.values(), ids=list(CONSTANT))
def test_odd_losses_are_no_harm(loss_at, maximize, recovery):
    farcasting = outcomes(loss_at, maximize=maximize, recovery=recovery)
    assert {row["outcome"] for row in farcasting.history} <= {"kept", "pending"}
    assert math.isfinite(sum(farcasting.steps_saved))


def test_a_jump_makes_the_run_older():
    """By the steps that it saved, which later losses are judged with."""

    def loss_at(step):
        return (step + 60 * (step > 80)) ** -0.5

    farcasting = outcomes(loss_at, 130, horizon=60, spacing=5, recovery=20)
    first, second = farcasting.state_dict()["judging"]["calibration"]["stretches"]
    assert first[0] == 0
    assert second[0] == pytest.approx(60, rel=0.1)


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("horizon", [5, "adaptive"])
def test_nan_in_weights_means_no_jump(elsewhere, horizon, monkeypatch):
    if elsewhere:
        monkeypatch.setattr(tensors, "on_cpu", lambda tensors: False)
    model, optimizer, farcasting = setup(horizon=horizon)
    for step in range(1, FIRST + 1):
        loss = loops.optimize(model, optimizer, step)
        if step == FIRST:
            with torch.no_grad():
                model[2].weight[3, 4] = math.nan
            before = loops.weights(model)
        assert not farcasting.step(loss)
    assert farcasting.history[-1]["outcome"] == "refused"
    assert "NaN" in farcasting.history[-1]["reason"]
    for name, now in loops.weights(model).items():
        assert torch.equal(now.nan_to_num(), before[name].nan_to_num())


@pytest.mark.parametrize("horizon", [5, "adaptive"])
def test_weights_that_are_mended_jump_again(horizon):
    """NaN must not stay in the sums of the line."""
    model, optimizer, farcasting = setup(horizon=horizon)
    for step in range(1, 2 * FIRST + 1):
        loss = loops.optimize(model, optimizer, step)
        if step == FIRST - 1:
            sound = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
        if step == FIRST:
            with torch.no_grad():
                model[2].weight[3, 4] = math.nan
        farcasting.step(loss)
        if step == FIRST:
            model.load_state_dict(sound[0])
            optimizer.load_state_dict(sound[1])
    assert [e["outcome"] for e in farcasting.history] == ["refused", "refused", "pending"]


@pytest.mark.parametrize("elsewhere", [False, True])
def test_overflow_means_no_jump_and_nothing_changed(elsewhere, monkeypatch):
    if elsewhere:
        monkeypatch.setattr(tensors, "on_cpu", lambda tensors: False)
    model = loops.mlp().half()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    farcasting = Farcasting(model, optimizer, forecaster=wfcast.linear_trend, horizon=1e8, **FAST)
    for step in range(1, FIRST + 1):
        x, y = loops.batch(step)
        loss = loops.loss_of(model, (x.half(), y))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        before = loops.weights(model)
        assert not farcasting.step(loss)
    assert "overflow" in farcasting.history[-1]["reason"]
    assert loops.equal(loops.weights(model), before)


@pytest.mark.parametrize("horizon", [5, "adaptive"])
def test_recovery_0_keeps_every_jump(horizon, monkeypatch):
    monkeypatch.setattr(_rule, "LEAST_FAR", 0.1)
    model, optimizer, farcasting = setup("sgd", recovery=0, horizon=horizon)
    for step in range(1, 31):
        loops.optimize(model, optimizer, step)
        assert farcasting.step() == (step % 10 == 0)
        assert farcasting.settled
    assert [e["outcome"] for e in farcasting.history] == ["kept"] * 3
    assert farcasting.steps_saved == (0, 0, 0)


def test_a_callable_given_to_step_is_a_judge():
    model, optimizer, farcasting = setup(recovery=8)
    calls = []

    def judge():
        calls.append(farcasting._step)
        assert not model.training
        return loops.held_out(model)

    model.train()
    for step in range(1, 45):
        loops.optimize(model, optimizer, step)
        farcasting.step(judge)
        assert model.training
    # four times a window, and right after the jump
    assert calls == [*range(2, 33, 2), 33, *range(34, 45, 2)]


def test_a_judge_does_not_change_the_random_numbers():
    drawn = []
    for judge in (None, lambda: float(torch.rand(()))):
        model, optimizer, farcasting = setup(judge=judge, horizon=3, stop=30)
        torch.manual_seed(5)
        loops.run(farcasting, model, optimizer, range(1, 32))
        assert farcasting.history
        drawn.append(torch.rand(4))
    assert torch.equal(*drawn)


def test_start_and_stop():
    model, optimizer, farcasting = setup(start=20, stop=84, horizon=2)
    loops.run(farcasting, model, optimizer, range(1, 90))
    assert [e["step"] for e in farcasting.history] == [40, 50, 60, 70]
    assert all(e["outcome"] != "pending" for e in farcasting.history)


def test_the_first_jump_comes_after_a_tenth_of_the_run():
    model, optimizer, farcasting = setup(start=10, stop=410)
    assert loops.run(farcasting, model, optimizer, range(1, 52)) == [50]


@pytest.mark.parametrize(
    ("stop", "window", "first"),
    [
        (None, 50, 200),
        (3000, 50, 300),
        (1500, 50, 200),
        (450, 50, 150),
        (300, 50, 100),
        (60, 10, 20),
    ],
)
def test_a_short_run_has_room_for_windows(stop, window, first):
    """A sixth of it at most, and no jump before four of them or a third of it."""
    model = loops.mlp()
    farcasting = Farcasting(
        model, loops.OPTIMIZERS["adam"](model.parameters()), period=10, stop=stop
    )
    assert farcasting.window == window
    assert farcasting._settings.first_jump == first


@pytest.mark.parametrize("harm", [False, True])
def test_close_takes_the_jump_under_judgement_back(harm):
    """To the bit, with the optimizer's and the scheduler's state: it had no verdict."""
    model = loops.mlp(norm=True)
    optimizer = loops.OPTIMIZERS["adam"](model.parameters())
    scheduler = CosineAnnealingWarmRestarts(optimizer, 7)
    farcasting = Farcasting(
        model, optimizer, scheduler=scheduler, horizon=1e5 if harm else 2, **FAST
    )
    parts = model, optimizer, scheduler
    loops.run(farcasting, model, optimizer, range(1, FIRST), scheduler)
    loss = loops.optimize(model, optimizer, FIRST, scheduler)
    kept = copy.deepcopy([part.state_dict() for part in parts])
    assert farcasting.step(loss)
    loops.run(farcasting, model, optimizer, [FIRST + 1, FIRST + 2], scheduler)
    assert not farcasting.settled
    farcasting.close()
    assert farcasting.settled
    (row,) = farcasting.history
    assert (row["outcome"], row["steps_saved"]) == ("rolled back", -2)
    assert row["reason"] == "the run ended before its verdict"
    assert loops.equal([part.state_dict() for part in parts], kept)
    Farcasting(model, optimizer)


def test_moments():
    factors = {}
    for how in ("keep", "reset", "scale"):
        model, optimizer, farcasting = setup(optimizer_state=how, horizon=15, exclude=["2.bias"])
        loops.run(farcasting, model, optimizer, range(1, FIRST))
        loss = loops.optimize(model, optimizer, FIRST)
        before = copy.deepcopy(optimizer.state_dict())["state"]
        farcasting.step(loss)
        after = optimizer.state_dict()["state"]
        factors[how] = [
            float((after[i]["exp_avg"] / before[i]["exp_avg"]).nanmedian()) if i in after else None
            for i in range(4)
        ]
        if how != "reset":
            assert loops.equal(
                [after[i]["exp_avg_sq"] for i in after], [before[i]["exp_avg_sq"] for i in before]
            )
        loops.run(farcasting, model, optimizer, range(FIRST + 1, 30))
    assert factors["keep"] == [1.0] * 4
    assert factors["reset"] == [None, None, None, 1.0]
    np.testing.assert_allclose(factors["scale"], [0.25, 0.25, 0.25, 1.0], rtol=1e-5)


# ---- models and loops of every kind -------------------------------------------------------------


def changed_by_first_jump(model, optimizer, farcasting, train):
    """Names of the state dict that the jump changed."""
    for _ in range(40):
        loss = train()
        before = loops.weights(model)
        if farcasting.step(loss):
            after = loops.weights(model)
            return {n for n in before if not torch.equal(before[n], after[n])}
    raise AssertionError("no jump")


def test_include_exclude_and_frozen():
    model = loops.mlp(norm=True)
    model[3].bias.requires_grad_(False)
    optimizer = torch.optim.Adam(model.parameters())
    farcasting = Farcasting(model, optimizer, include=["*weight", "3.*"], exclude=["1.*"], **FAST)
    steps = iter(range(1, 100))
    train = lambda: loops.optimize(model, optimizer, next(steps))  # noqa: E731
    names = changed_by_first_jump(model, optimizer, farcasting, train)
    assert names == {"0.weight", "3.weight"}


def test_a_single_pattern_is_a_pattern():
    """And no list of characters, of which * would select everything."""
    jumping = {}
    for name, parameters in {"include": {"include": "0.*"}, "exclude": {"exclude": "0.*"}}.items():
        _, _, farcasting = setup(**parameters)
        jumping[name] = [slot.name for slot in farcasting._training.slots]
    assert jumping == {"include": ["0.weight", "0.bias"], "exclude": ["2.weight", "2.bias"]}


def test_a_tied_parameter_is_selected_by_any_of_its_names():
    for parameters in ({"include": "lm_head.*"}, {"include": "*.wte.weight"}):
        model = small("gpt2")
        farcasting = Farcasting(model, torch.optim.AdamW(model.parameters()), **parameters)
        assert [slot.name for slot in farcasting._training.slots] == ["transformer.wte.weight"]
    farcasting.close()
    farcasting = Farcasting(model, torch.optim.AdamW(model.parameters()), exclude="lm_head.*")
    assert "transformer.wte.weight" not in {slot.name for slot in farcasting._training.slots}


def test_a_pattern_of_frozen_parameters_alone_is_no_typo():
    model = loops.mlp()
    model[0].requires_grad_(False)
    optimizer = torch.optim.Adam(p for p in model.parameters() if p.requires_grad)
    farcasting = Farcasting(model, optimizer, exclude="0.*")
    assert [slot.name for slot in farcasting._training.slots] == ["2.weight", "2.bias"]
    farcasting.close()
    with pytest.raises(WfcastError, match=r"no parameter is left .* steps 2, include is '0\.\*'"):
        Farcasting(model, optimizer, include="0.*")


def test_tied_weights_jump_once():
    model = small("gpt2")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    farcasting = Farcasting(model, optimizer, horizon=3, **FAST)
    tokens = torch.arange(16).repeat(4, 1)

    def train():
        loss = model(input_ids=tokens, labels=tokens).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    names = changed_by_first_jump(model, optimizer, farcasting, train)
    assert {"lm_head.weight", "transformer.wte.weight"} <= names
    assert model.lm_head.weight is model.transformer.wte.weight


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")  # PEFT's own
def test_lora():
    model = peft.get_peft_model(
        small("llama"), peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    farcasting = Farcasting(model, optimizer, horizon=3, **FAST)
    tokens = torch.arange(16).repeat(4, 1)

    def train():
        loss = model(input_ids=tokens, labels=tokens).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    names = changed_by_first_jump(model, optimizer, farcasting, train)
    assert names
    assert all("lora_" in name for name in names)


def test_lora_with_a_trained_head_is_near_where_it_began():
    """The head alone would say that the model, most of which is frozen, moves fast and far."""

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.lora_A = torch.nn.Linear(3, 2, bias=False)
            self.lora_B = torch.nn.Linear(2, 3, bias=False)
            self.head = torch.nn.Linear(3, 1)
            torch.nn.init.zeros_(self.head.weight)

        def forward(self, x):
            return self.head(x + self.lora_B(self.lora_A(x)))

    model = Model()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    farcasting = Farcasting(model, optimizer, spacing=5, period=20, recovery=0)
    x = torch.randn(32, 3, generator=torch.Generator().manual_seed(0))
    horizons = []
    for _ in range(60):
        loss = (model(x)[:, 0] - x.sum(1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if farcasting.step(loss):
            horizons.append(farcasting.history[-1]["horizon"])
    assert len(horizons) == 3
    assert min(horizons) > 20  # the head moves by far more than 3 % of itself in so many steps


def test_batch_norm_statistics_are_refreshed():
    model = ConvNet()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    images = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    loader = [(images[:32],), (images[32:],)]
    refreshed = []

    def refresh():
        torch.optim.swa_utils.update_bn(loader, model)
        refreshed.append(loops.weights(model))

    farcasting = Farcasting(model, optimizer, refresh=refresh, horizon=5, **FAST)
    for step in range(1, FIRST + 1):
        loss = (model(images)[:, 0] - images.mean((1, 2, 3))).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert farcasting.step(loss) == (step == FIRST)
        assert len(refreshed) == (step == FIRST)
    expected = model.features[0](images).mean((0, 2, 3))
    torch.testing.assert_close(model.features[1].running_mean, expected, rtol=1e-4, atol=1e-5)


def test_a_jump_that_is_taken_back_gives_the_old_statistics_back():
    """The judge saw refreshed ones; the random state is that of before, too."""
    model = ConvNet()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    images = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    def refresh():
        torch.rand(1)
        torch.optim.swa_utils.update_bn([(images,)], model)

    judge = lambda: 1.0 if farcasting.settled else math.nan  # noqa: E731
    farcasting = Farcasting(model, optimizer, judge=judge, refresh=refresh, horizon=5, **FAST)
    for step in range(1, FIRST + 2):
        loss = (model(images)[:, 0] - images.mean((1, 2, 3))).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        random = torch.get_rng_state()
        if step == FIRST:
            before = loops.weights(model)
        assert farcasting.step() == (step >= FIRST)
        assert torch.equal(torch.get_rng_state(), random)
        if step == FIRST:
            expected = model.features[0](images).mean((0, 2, 3))
            found = model.features[1].running_mean
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert farcasting.history[-1]["outcome"] == "rolled back"
    assert loops.equal(loops.weights(model), before)


def test_compiled_model():
    model = loops.mlp()
    compiled = torch.compile(model, backend="eager")
    optimizer = torch.optim.Adam(compiled.parameters(), lr=1e-3)
    mf = siblings((0, 10), (15, 20))
    farcasting = Farcasting(compiled, optimizer, forecaster=mf, horizon=5, **FAST)
    assert [s.name for s in farcasting._training.slots] == list(model.state_dict())
    assert loops.run(farcasting, compiled, optimizer, range(1, FIRST + 1)) == [FIRST]


def test_accumulation_and_clipping():
    model, optimizer, farcasting = setup()
    jumped = 0
    for step in range(1, FIRST + 1):
        optimizer.zero_grad()
        for part in range(2):
            loss = loops.loss_of(model, loops.batch(10 * step + part)) / 2
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        jumped += farcasting.step(loss * 2)
    assert jumped == 1


def test_gradient_scaler_that_leaves_out_steps():
    model, optimizer, farcasting = setup()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4)
    taken = 0
    for step in range(1, FIRST + 3):
        loss = loops.loss_of(model, loops.batch(step))
        optimizer.zero_grad()
        scaler.scale(loss * (math.inf if step in (3, 7) else 1)).backward()
        scaler.step(optimizer)
        scaler.update()
        farcasting.step(loss)
        taken += step not in (3, 7)
        assert farcasting._step == taken
    assert [e["step"] for e in farcasting.history] == [FIRST]


def test_float32_masters_of_a_bfloat16_model():
    model = loops.mlp().bfloat16()
    masters = [p.detach().clone().float().requires_grad_() for p in model.parameters()]
    optimizer = torch.optim.Adam(masters, lr=1e-3)
    farcasting = Farcasting(model, optimizer, horizon=10, **FAST)

    def spread():
        with torch.no_grad():
            for p, m in zip(model.parameters(), masters, strict=True):
                p.copy_(m)

    for step in range(1, FIRST + 1):
        x, y = loops.batch(step)
        loss = loops.loss_of(model, (x.bfloat16(), y))
        model.zero_grad()
        loss.backward()
        for p, m in zip(model.parameters(), masters, strict=True):
            m.grad = p.grad.float()
        optimizer.step()
        spread()
        before = [m.detach().clone() for m in masters]
        jumped = farcasting.step(loss)
    assert jumped
    for p, m, old in zip(model.parameters(), masters, before, strict=True):
        assert not torch.equal(m, old)
        assert torch.equal(p, m.bfloat16())


@pytest.mark.parametrize("store", ["cpu", "device", "disk", "folder"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_stores_give_the_same_jumps(store, dtype, tmp_path):
    """bfloat16 states change the forecast, never what a rollback restores."""
    where = tmp_path if store == "folder" else store
    model, optimizer, farcasting = setup(norm=True, store=where, state_dtype=dtype)
    plain, other, reference_run = setup(norm=True, state_dtype=dtype)
    for step in range(1, 41):
        farcasting.step(loops.optimize(model, optimizer, step))
        reference_run.step(loops.optimize(plain, other, step))
    assert loops.equal(loops.weights(model), loops.weights(plain))
    assert any(e["outcome"] == "kept" for e in farcasting.history)
    if store == "folder":
        (folder,) = tmp_path.iterdir()
        # states, sums, and what a jump under way may take back; nothing that was let go
        assert 0 < len(list(folder.iterdir())) <= len(farcasting._recording.kept) + 4
        del farcasting
        gc.collect()
        assert not folder.exists()


def test_exact_rollback_from_bfloat16_states():
    model, optimizer, farcasting = setup(state_dtype=torch.bfloat16, store="disk", horizon=100_000)
    for step in range(1, FIRST + 6):
        loss = loops.optimize(model, optimizer, step)
        if step == FIRST:
            kept = loops.weights(model)
        if farcasting.step(loss) and step > FIRST:
            break
    assert lost(farcasting)
    assert loops.equal(loops.weights(model), kept)


def test_full_disk_means_no_jump(tmp_path, caplog):
    """The limit on file sizes makes the write fail as a full disk does."""
    model, optimizer, farcasting = setup(store=tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        for step in range(1, 26):
            loss = loops.optimize(model, optimizer, step)
            if step == 5:
                resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
            if step == 6:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            changed = farcasting.step(loss)
            assert changed == (step == FIRST)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert "no state could be kept at step 5" in farcasting.history[0]["reason"]
    assert "no jump" in caplog.text
    assert farcasting.history[-1]["outcome"] != "refused"  # and later it could


# ---- killed and resumed -------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["momentum", "adamw fused", "adafactor"])
@pytest.mark.parametrize("store", ["cpu", "disk"])
@pytest.mark.parametrize("judged", [False, True])
def test_resumed_run_is_the_other_run(optimizer, store, judged, tmp_path):
    """Saved at every step of two periods: before, in and after jumps, kept and rolled back."""

    def begin():
        model = loops.mlp(norm=True)
        made = loops.OPTIMIZERS[optimizer](model.parameters())
        scheduler = CosineAnnealingWarmRestarts(made, 17)
        judge = (lambda: loops.held_out(model)) if judged else None
        farcasting = Farcasting(model, made, judge=judge, scheduler=scheduler, store=store, **FAST)
        return model, made, scheduler, farcasting

    def finish(parts, steps):
        model, made, scheduler, farcasting = parts
        loops.run(farcasting, model, made, steps, scheduler, judged)
        history = [{k: v for k, v in e.items() if k != "seconds"} for e in farcasting.history]
        states = made.state_dict(), scheduler.state_dict()
        return loops.weights(model), *states, history, farcasting.cosines

    parts = begin()
    saved = {}
    for step in range(1, 48):
        loops.run(parts[3], parts[0], parts[1], [step], parts[2], judged)
        if step >= 17 and step % 3 == 0:
            file = io.BytesIO()
            with loops.in_a_window():
                torch.save([part.state_dict() for part in parts], file)
            saved[step] = file.getvalue()
    want = finish(parts, range(48, 58))
    assert want[-1]
    for step, data in saved.items():
        states = torch.load(io.BytesIO(data), weights_only=True)
        again = begin()
        for part, state in zip(again, states, strict=True):
            part.load_state_dict(state)
        assert loops.equal(finish(again, range(step + 1, 58)), want), step


@pytest.mark.parametrize("close", [False, True])
def test_a_run_that_is_extended_jumps_on(close):
    """The end of the first one is none of the second's; in the same one it stays."""
    model, optimizer, farcasting = setup(stop=60, horizon=2)
    loops.run(farcasting, model, optimizer, range(1, 61))
    if close:
        farcasting.close()
    assert farcasting.stopped
    state, before = farcasting.state_dict(), len(farcasting.history)
    farcasting.close()
    again = Farcasting(model, optimizer, stop=60, horizon=2, **FAST)
    again.load_state_dict(state)
    assert again.stopped == farcasting.stopped
    again.close()
    again = Farcasting(model, optimizer, stop=120, horizon=2, **FAST)
    again.load_state_dict(state)
    assert not again.stopped
    loops.run(again, model, optimizer, range(61, 121))
    steps = [row["step"] for row in again.history[before:] if row["outcome"] == "kept"]
    assert len(steps) >= 4
    assert "before step 120" in again.stopped


def test_a_resume_with_a_longer_window_judges_each_jump_in_its_row():
    """The next jump may then be due before the last one would be looked at again."""
    model, optimizer, farcasting = setup(stop=60, horizon=2, recovery=16, period=20)
    loops.run(farcasting, model, optimizer, range(1, 31))
    assert [row["outcome"] for row in farcasting.history] == ["kept"]
    state = farcasting.state_dict()
    farcasting.close()
    again = Farcasting(model, optimizer, stop=600, horizon=2, spacing=5, recovery=16, period=20)
    again.load_state_dict(state)
    assert again.window > farcasting.window
    loops.run(again, model, optimizer, range(31, 60))
    first, second = again.history
    assert first["judged_at"] == second["step"] == 40
    assert second["judged_at"] == second["step"] + again.window


def stored_run():
    """The run of tests/data/farcasting.pt, as it was when the first version of this format saved it
    after 32 steps of `go_on`: the jump of step 30 is under way.
    """
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    scheduler = StepLR(optimizer, 7, 0.9)
    farcasting = Farcasting(model, optimizer, horizon=2, scheduler=scheduler, **FAST)
    parts = model, optimizer, scheduler, farcasting
    saved = torch.load(STORED, weights_only=True)
    for part, state in zip(parts, saved, strict=True):
        part.load_state_dict(state)
    return parts, saved


def go_on(model, optimizer, scheduler, farcasting, loss):
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    scheduler.step()
    return farcasting.step(loss)


def test_a_state_that_an_older_version_saved():
    parts, saved = stored_run()
    model, optimizer, scheduler, farcasting = parts
    assert loops.equal(farcasting.state_dict(), saved[3])
    assert [e["outcome"] for e in farcasting.history] == ["kept", "pending"]
    then = saved[3]["pending"]
    while not farcasting.settled:
        go_on(*parts, 1e9)
    assert farcasting.history[-1]["outcome"] == "rolled back"
    assert loops.equal([p.detach() for p in model.parameters()], then["weights"])
    assert loops.equal(list(optimizer.state_dict()["state"].values()), then["optimizer"]["state"])
    assert scheduler.state_dict() == then["scheduler"]
    while farcasting.settled:  # and it jumps again
        go_on(*parts, 0.1)
    assert farcasting.history[-1]["outcome"] == "pending"


def refused(farcasting, state, message):
    """Whether a state is refused, and the controller is afterwards what it was."""
    before = farcasting.state_dict()
    with pytest.raises(WfcastError, match=message):
        farcasting.load_state_dict(state)
    return loops.equal(farcasting.state_dict(), before)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda state: state.pop("version"), r"another version of Farcasting \(1, expected 4\)"),
        (lambda state: state.update(version=5), r"another version .* \(5, expected 4\)"),
        (lambda state: state["pending"].update(scheduler=None), "without a scheduler"),
        (lambda state: state["pending"]["scheduler"].pop("gamma"), "this StepLR: it lacks 'gamma'"),
        (lambda state: state["settings"].update(spacing=7.0), "with spacing=7, .* has spacing=5: "),
        (lambda state: state["settings"].update(maximize=True), "maximize=True, .*maximize=False"),
        (
            lambda state: state["settings"].update(horizon="adaptive", start=3.0),
            "with horizon='adaptive', start=3, .* has horizon=2, start=0: make it with",
        ),
        (
            lambda state: state["recording"].update(offsets=[5, 0]),
            r"states \[5, 0\] steps before",
        ),
        (lambda state: state["pending"]["stepped"][0].reverse(), "their order differs"),
        (lambda state: state["pending"]["optimizer"]["groups"][0].pop("betas"), "Adam: .*'betas'"),
        (
            lambda state: state["pending"]["others"].update({"bias": torch.ones(2)}),
            r"parameter 'bias' is \[1\], and was \[2\] when",
        ),
        (lambda state: state["pending"]["others"].update(w=torch.ones(2)), "'w' is gone, and"),
        (lambda state: state["pending"]["buffers"].update({"0.b": torch.ones(2)}), "'0.b' cannot"),
        (lambda state: state["history"].clear(), "jump of step 30 under way, .*: there is none"),
        (lambda state: state["history"].pop(), "jump of step 30 under way, .*: kept at step 20"),
        (lambda state: state["pending"].update(step=19), "jump of step 19 .*: pending at step 30"),
        (lambda state: state["pending"]["optimizer"]["state"].pop(), "steps 1 .*, expected 2"),
        (
            lambda state: state["pending"]["weights"].reverse(),
            r"'weight' is \[1\], expected \[1, 3\]",
        ),
        (
            lambda state: state["recording"].update(line=None),
            "saved with a forecaster, expected one saved with forecaster=None",
        ),
    ],
)
def test_a_refused_state_changes_nothing(spoil, message):
    parts, saved = stored_run()
    go_on(*parts, 1 / 33)  # a step further than the state, and the jump is still under way
    assert not parts[3].settled
    spoil(saved[3])
    assert refused(parts[3], saved[3], message)


def test_a_state_saved_with_another_forecaster():
    model, optimizer, learning = setup()
    loops.run(learning, model, optimizer, range(1, 13))
    state = learning.state_dict()
    model, optimizer, farcasting = setup(forecaster=wfcast.linear_trend)
    loops.run(farcasting, model, optimizer, range(1, 17))
    assert farcasting.state_dict()["recording"]["states"].keys() == {0, 10, 15}
    assert refused(farcasting, state, "saved with forecaster=None, expected one saved with a")
    assert refused(learning, farcasting.state_dict(), "saved with a forecaster, expected one")


@pytest.mark.parametrize("saved_with", [False, True])
def test_a_state_saved_with_a_scheduler_or_without(saved_with):
    """In the middle of a jump that is half of what taking it back needs, else none of it."""
    model = loops.mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    schedulers = {True: StepLR(optimizer, 7), False: None}
    saved = {}
    first = Farcasting(model, optimizer, scheduler=schedulers[saved_with], **FAST)
    for step in range(1, FIRST + 2):
        loops.run(first, model, optimizer, [step])
        saved[step] = first.state_dict()
    first.close()
    again = Farcasting(model, optimizer, scheduler=schedulers[not saved_with], **FAST)
    kind = "with" if saved_with else "without"
    assert refused(again, saved[FIRST + 1], f"in the middle of a jump and {kind} a scheduler")
    again.load_state_dict(saved[FIRST - 1])
    loops.run(again, model, optimizer, range(FIRST, FIRST + 6))
    assert again.history[0]["verdict"]


def test_losses_of_two_kinds_are_not_compared():
    """Held-out losses lie elsewhere than those of training."""
    model, optimizer, farcasting = setup()
    loops.run(farcasting, model, optimizer, range(1, 5))
    state = farcasting.state_dict()
    loops.optimize(model, optimizer, 5)
    with pytest.raises(WfcastError, match=r"judged by the losses that step\(\) is given so far"):
        farcasting.step(lambda: loops.held_out(model))
    farcasting.close()
    judging = Farcasting(model, optimizer, judge=lambda: loops.held_out(model), **FAST)
    assert refused(judging, state, "saved in a run judged by the losses .* without one")
    loops.run(judging, model, optimizer, range(5, 9), judged=True)
    state = judging.state_dict()
    judging.close()
    given = Farcasting(model, optimizer, **FAST)
    given.load_state_dict(state)
    loops.optimize(model, optimizer, 9)
    with pytest.raises(WfcastError, match="judged by a judge so far, and now there is the losses"):
        given.step(1.0)
    given.close()
    with pytest.raises(WfcastError, match="was closed: make a new one"):
        given.load_state_dict(state)


# ---- bad use ------------------------------------------------------------------------------------


def test_bad_parameters():
    model = loops.mlp()
    optimizer = torch.optim.Adam(model.parameters())
    for parameters, message in [
        ({"spacing": 0}, "spacing is 0"),
        ({"spacing": 2.5}, r"spacing is 2\.5"),
        ({"n_states": 1}, "n_states is 1"),
        ({"period": True}, "period is True"),
        ({"horizon": "far"}, "horizon is 'far'"),
        ({"horizon": -3}, "horizon is -3"),
        ({"recovery": -1}, "recovery is -1"),
        ({"judge": 3}, "judge is 3"),
        ({"optimizer_state": "drop"}, "optimizer_state is 'drop'"),
        ({"store": 3}, "store is 3"),
        ({"store": "gpu"}, "store is 'gpu', expected one of .* or a folder"),
        ({"start": 5, "stop": 4}, "stop is 4"),
        ({"maximize": 1}, "maximize is 1, expected True or False"),
        ({"forecaster": "line"}, "forecaster is a str"),
        ({"forecaster": lambda inputs, targets: 3}, "returned a int"),
        ({"forecaster": wfcast.ModelFarcaster}, "is the class ModelFarcaster, expected an "),
        ({"include": ["nothing*"]}, "include: the pattern 'nothing\\*' matches none of the 4 "),
        ({"exclude": "typo"}, r"exclude: .* parameters of the model, such as '0\.weight'; \*"),
        ({"exclude": "*"}, "no parameter is left"),
    ]:
        with pytest.raises(WfcastError, match=message):
            Farcasting(model, optimizer, **parameters)
    with pytest.raises(WfcastError, match=r"model is a Adam, expected a torch\.nn\.Module"):
        Farcasting(optimizer, model)
    with pytest.raises(WfcastError, match=r"optimizer is a list, expected a torch\.optim"):
        Farcasting(model, list(model.parameters()))
    Farcasting(model, optimizer)  # none of them held on to the model


def test_parameters_go_by_name():
    model = loops.mlp()
    optimizer = torch.optim.Adam(model.parameters())
    with pytest.raises(TypeError, match="positional arguments"):
        Farcasting(model, optimizer, None, 50)
    with pytest.raises(TypeError, match="positional arguments"):
        fit_to_loss(model, {}, loops.loss_of, [], 6)


def test_forecaster_of_another_model():
    mf = siblings((0, 5), (10, 12))
    model = loops.mlp(norm=True)
    optimizer = torch.optim.Adam(model.parameters())
    with pytest.raises(WfcastError, match=r"no coefficients for 4.*'1\.weight' first"):
        Farcasting(model, optimizer, forecaster=mf)
    wide = loops.mlp(width=20)
    with pytest.raises(WfcastError, match=r"'0\.weight' is \[20, 64\] in the model, \[16, 64\]"):
        Farcasting(wide, torch.optim.Adam(wide.parameters()), forecaster=mf)
    past = wfcast.average((0, 5))
    with pytest.raises(WfcastError, match="nowhere to jump"):
        Farcasting(wide, torch.optim.Adam(wide.parameters()), forecaster=past)


def test_optimizer_of_another_model():
    with pytest.raises(WfcastError, match="none of the model's parameters"):
        Farcasting(loops.mlp(), torch.optim.Adam(loops.mlp(width=7).parameters()))


def test_two_controllers():
    model = loops.mlp()
    optimizer = torch.optim.Adam(model.parameters())
    first = Farcasting(model, optimizer)
    with pytest.raises(WfcastError, match="has a Farcasting already"):
        Farcasting(model, optimizer)
    first.close()
    with pytest.raises(WfcastError, match="was closed"):
        first.step(1.0)
    second = Farcasting(model, optimizer)
    del second
    gc.collect()
    Farcasting(model, optimizer)


def test_step_out_of_order_or_twice():
    model, optimizer, farcasting = setup()
    assert not farcasting.step(1.0)  # no optimizer step yet: not counted
    assert farcasting._step == 0
    farcasting.step(loops.optimize(model, optimizer, 1))
    farcasting.step(1.0)
    assert farcasting._step == 1
    loops.optimize(model, optimizer, 2)
    loops.optimize(model, optimizer, 3)
    with pytest.raises(WfcastError, match="took 2 steps since the last call"):
        farcasting.step(1.0)


def test_nothing_to_judge_by(caplog):
    """One warning early on, and no jumps; nothing that breaks a training off."""
    model, optimizer, farcasting = setup()
    for step in range(1, 61):
        loops.optimize(model, optimizer, step)
        if step == FAST["recovery"]:
            with pytest.warns(UserWarning, match="too few losses to judge a jump by: call step"):
                farcasting.step()
        else:
            assert not farcasting.step()
    assert {row["outcome"] for row in farcasting.history} == {"refused"}
    assert "give Farcasting a judge" in farcasting.history[-1]["reason"]
    assert not caplog.records  # of the jumps that were refused: the warning said so


def test_a_loss_that_is_no_number():
    model, optimizer, farcasting = setup()
    loops.optimize(model, optimizer, 1)
    with pytest.raises(WfcastError, match=r"loss has shape \[3\]"):
        farcasting.step(torch.ones(3))


def test_parameters_that_come_and_go():
    model, optimizer, farcasting = setup()
    loops.run(farcasting, model, optimizer, range(1, 5))
    model[2] = torch.nn.Linear(16, 10)
    optimizer.param_groups[0]["params"] = list(model.parameters())
    loss = loops.optimize(model, optimizer, 5)
    with pytest.raises(WfcastError, match=r"2 parameters, '2\.weight' first, are no longer"):
        farcasting.step(loss)
    model, optimizer, farcasting = setup("sgd")
    loops.run(farcasting, model, optimizer, range(1, 5))
    model[2].bias.data = torch.zeros(11)
    model[2].weight.data = torch.zeros(11, 16)
    model.zero_grad()
    loss = loops.optimize(model, optimizer, 5)
    with pytest.raises(WfcastError, match=r"'2\.weight' is \[11, 16\] now and was \[10, 16\]"):
        farcasting.step(loss)


def test_meta_and_odd_dtypes():
    with torch.device("meta"):
        model = torch.nn.Linear(3, 3)
    with pytest.raises(WfcastError, match="'weight' is on the meta device"):
        Farcasting(model, torch.optim.SGD(model.parameters(), lr=0.1))
    model = torch.nn.Linear(3, 3, dtype=torch.complex64)
    with pytest.raises(WfcastError, match="'weight' has dtype complex64"):
        Farcasting(model, torch.optim.SGD(model.parameters(), lr=0.1))


def test_sparse_gradients():
    model = torch.nn.Sequential(torch.nn.Embedding(20, 4, sparse=True))
    optimizer = torch.optim.SparseAdam(model.parameters(), lr=1e-2)
    farcasting = Farcasting(model, optimizer, horizon=1e7, **FAST)
    for step in range(1, FIRST + 6):
        loss = (model(torch.arange(5)) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step == FIRST:
            kept = loops.weights(model)
        farcasting.step(loss)
        if lost(farcasting):
            break
    assert farcasting.history[0]["outcome"] == "rolled back"
    assert loops.equal(loops.weights(model), kept)


def test_state_of_another_run():
    _, _, farcasting = setup()
    _, _, other = setup(norm=True)
    with pytest.raises(WfcastError, match=r"saved for 4 parameters, expected 6.*'1\.bias'"):
        other.load_state_dict(farcasting.state_dict())
    model = loops.mlp(width=20)
    wide = Farcasting(model, torch.optim.Adam(model.parameters()), **FAST)
    with pytest.raises(WfcastError, match=r"'0\.weight' is \[16, 64\], expected \[20, 64\]"):
        wide.load_state_dict(farcasting.state_dict())


# ---- showing ------------------------------------------------------------------------------------


def test_history_is_shown():
    model, optimizer, farcasting = setup()
    loops.run(farcasting, model, optimizer, range(1, 60))
    report = farcasting.summary()
    text = str(report)
    assert text.splitlines()[0].startswith(f"{farcasting.log()['farcasting/jumps']:.0f} jumps")
    assert len(text.splitlines()) >= len(farcasting.history) + 4
    assert "<table>" in farcasting._repr_html_()
    assert all(isinstance(v, float) for v in farcasting.log().values())
    document = report.to_dict()
    assert [j["step"] for j in document["jumps"]] == [e["step"] for e in farcasting.history]
    import matplotlib.pyplot as plt

    ax = farcasting.plot()
    assert len(ax.lines) >= len(farcasting.history)
    plt.close(ax.figure)


@pytest.mark.parametrize(
    ("missing", "use", "message"),
    [
        ("torch", "wfcast.torch", "wfcast.torch needs torch, which is not installed (the extra "),
        ("torch", "wfcast.average([0, 1]).applied(None, {})", "live models need torch, which is "),
        ("transformers", "wfcast.torch.FarcastingCallback", "callbacks of the Trainer need tra"),
        ("lightning", "import wfcast.torch.lightning", "wfcast.torch.lightning needs lightning, "),
    ],
)
def test_what_is_missing_is_named_with_its_extra(missing, use, message):
    code = f"""
import sys, wfcast
sys.modules["{missing}"] = None
try:
    {use}
except ModuleNotFoundError as error:
    print(error.name, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.startswith(f"{missing} {message}"), done.stderr
    assert f"(the extra '{missing}' of wfcast)" in done.stdout


@pytest.mark.parametrize("module", ["wfcast.torch", "wfcast._live"])
def test_a_broken_torch_is_not_reported_as_missing(module, tmp_path):
    (tmp_path / "torch.py").write_text("import what_torch_needs\n", encoding="utf-8")
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
try:
    import {module}
except ModuleNotFoundError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "No module named 'what_torch_needs'\n", done.stderr


def test_wfcast_alone_does_not_import_torch():
    code = """
import sys, wfcast
print("torch" in sys.modules, wfcast.torch.Farcasting.__name__, "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "Farcasting", "True"], done.stderr


def test_a_misspelt_name_does_not_type_check(tmp_path):
    pytest.importorskip("mypy")  # of the extra "lint"
    use = tmp_path / "use.py"
    use.write_text("from wfcast.torch import FarcastingCallback, Farcating\n", encoding="utf-8")
    package = Path(wfcast.torch.__file__)
    # nothing else is followed: torch itself takes mypy a minute
    options = ["--follow-imports=skip", "--cache-dir", str(tmp_path / "cache")]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, str(use), str(package)],
        cwd=package.parents[2],
        capture_output=True,
        text=True,
    )
    found = [line for line in done.stdout.splitlines() if "use.py" in line]
    assert len(found) == 1, done.stdout + done.stderr
    assert 'Module "wfcast.torch" has no attribute "Farcating"' in found[0]
