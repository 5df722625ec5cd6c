"""Coefficients fitted to the loss, and weights that are put into a model for a while."""

import copy
import itertools

import numpy as np
import pytest

import wfcast
from wfcast import CheckpointError, WfcastError

torch = pytest.importorskip("torch")  # an extra: wfcast itself does without

import loops  # noqa: E402  only with it
from safetensors.torch import load_file, save_file  # noqa: E402

from wfcast.torch import fit_to_loss  # noqa: E402


def recorded(steps=120, spacing=10, n=8, rate=0.05):
    """A noisy run at a high rate, and its last states."""
    model = loops.mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    states = {}
    for step in range(1, steps + 1):
        loops.optimize(model, optimizer, step)
        if step % spacing == 0:
            states[step] = loops.weights(model)
    return model, dict(list(states.items())[-n:])


def batches():
    return (loops.batch(step) for step in itertools.count(10_000))


def test_it_lowers_the_held_out_loss_and_leaves_the_run_alone():
    model, states = recorded()
    model.train()
    before, grads = loops.weights(model), [p.grad.clone() for p in model.parameters()]
    addresses = [p.data_ptr() for p in model.parameters()]
    latest = loops.held_out(model)
    mf = fit_to_loss(model, states, loops.loss_of, batches())
    assert mf.info["n_evals"] == 40
    assert mf.info["loss_after"] < mf.info["loss_before"]
    assert loops.equal(loops.weights(model), before)
    assert all(map(torch.equal, grads, (p.grad for p in model.parameters())))
    assert model.training
    np.testing.assert_allclose(mf.coef["*"].sum(), 1, rtol=1e-9)
    with mf.applied(model, states):
        fitted = loops.held_out(model)
        inside = loops.weights(model)
        assert [p.data_ptr() for p in model.parameters()] == addresses
    assert fitted < latest - 0.02
    assert loops.equal(loops.weights(model), before)
    for name, value in inside.items():
        w = np.stack([s[name].double().numpy() for s in states.values()])
        want = np.tensordot(mf.coef["*"][0], w, 1)
        np.testing.assert_allclose(value.numpy(), want, rtol=1e-5, atol=1e-5)


def test_applied_from_files_is_the_forecast_of_the_command_line(tmp_path):
    model, states = recorded(n=3)
    mf = fit_to_loss(model, states, loops.loss_of, batches(), n_evals=10)
    files = {}
    for step, state in states.items():
        files[step] = tmp_path / f"step-{step}.safetensors"
        save_file(state, files[step])
    mf.save(tmp_path / "mf.safetensors")
    again = wfcast.load(tmp_path / "mf.safetensors")
    wfcast.forecast_checkpoint(again, files, None, tmp_path / "out.safetensors")
    want = loops.mlp(seed=3)
    want.load_state_dict(load_file(tmp_path / "out.safetensors"))
    with again.applied(model, files) as shown:
        assert shown is model
        assert loops.equal(loops.weights(model), loops.weights(want))


def test_average_has_the_same_interface():
    model, states = recorded()
    with wfcast.average(states).applied(model, states):
        for name, value in model.state_dict().items():
            mean = torch.stack([s[name].double() for s in states.values()]).mean(0)
            torch.testing.assert_close(value, mean.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["embedding.weight", "head.weight"])
@pytest.mark.parametrize("stored", [False, True])
def test_applied_knows_a_tied_parameter_by_any_of_its_names(name, stored, tmp_path):
    model = torch.nn.ModuleDict(
        {
            "embedding": torch.nn.Embedding(5, 3),
            "other": torch.nn.Linear(3, 3, bias=False),
            "head": torch.nn.Linear(3, 5, bias=False),
        }
    )
    model["head"].weight = model["embedding"].weight
    run = {}
    for step in (0, 10):
        for parameter in model.parameters():
            torch.nn.init.constant_(parameter, step)
        run[step] = copy.deepcopy(model.state_dict())
        if stored:
            torch.save(run[step], tmp_path / f"{step}.pt")
            run[step] = tmp_path / f"{step}.pt"
    operator = wfcast.Operator((0, 10), (20,), {name: [[-1, 2]], "other.weight": [[-1, 2]]})
    with operator.applied(model, run):
        assert all(bool((p == 20).all()) for p in model.parameters())
    assert all(bool((p == 10).all()) for p in model.parameters())


def led_astray(n=8):
    """Batches whose labels are wrong."""
    model, states = recorded(n=n)
    return model, states, ((x, (y + 1) % 10) for x, y in batches())


def test_never_worse_than_the_latest_by_the_judge():
    """Whatever the search finds, a judge that wants the latest weights gets them."""
    model, states, wrong = led_astray()
    latest = loops.weights(model)

    def distance():
        here = loops.weights(model)
        return float(sum((here[name] - latest[name]).square().sum() for name in latest))

    mf = fit_to_loss(model, states, loops.loss_of, wrong, judge=distance)
    np.testing.assert_array_equal(mf.coef["*"][0], np.eye(8)[-1])
    assert (mf.info["loss_before"], mf.info["loss_after"]) == (0.0, 0.0)
    assert mf.info["n_evals"] == 40


@pytest.mark.parametrize("n", [3, 8, 10])
def test_never_worse_than_averages_by_the_judge(n):
    model, states, wrong = led_astray(n)
    losses = {}
    for k in {1, 2, *({4} if n > 4 else ()), *({8} if n > 8 else ()), n}:
        kept = dict(list(states.items())[-k:])
        mean = {name: sum(s[name] for s in kept.values()) / k for name in states[max(states)]}
        twin = loops.mlp()
        twin.load_state_dict(mean)
        losses[k] = loops.held_out(twin)
    mf = fit_to_loss(model, states, loops.loss_of, wrong, judge=lambda: loops.held_out(model))
    k = min(losses, key=losses.get)
    np.testing.assert_allclose(mf.coef["*"][0], [0.0] * (n - k) + [1 / k] * k)
    assert (mf.info["loss_before"], mf.info["loss_after"]) == pytest.approx(
        (losses[1], losses[k]), rel=1e-5
    )


def test_weights_come_back_after_an_error():
    model, states = recorded()
    before = loops.weights(model)
    mf = wfcast.average(states)
    with pytest.raises(RuntimeError, match="inside"), mf.applied(model, states):
        raise RuntimeError("inside")
    assert loops.equal(loops.weights(model), before)

    for kind in (RuntimeError, ValueError):  # the latter as of torch's losses, for odd shapes

        def breaks(model, batch, kind=kind):
            raise kind("in the loss")

        with pytest.raises(kind, match="in the loss"):
            fit_to_loss(model, states, breaks, batches(), judge=lambda: loops.held_out(model))
        assert loops.equal(loops.weights(model), before)


def test_states_that_do_not_move():
    model = loops.mlp()
    states = {step: loops.weights(model) for step in (1, 2, 3)}
    mf = fit_to_loss(model, states, loops.loss_of, batches())
    np.testing.assert_array_equal(mf.coef["*"][0], [0, 0, 1])
    assert mf.info["n_evals"] == 0


def test_bad_input():
    model, states = recorded(n=3)
    latest = max(states)
    few = [loops.batch(1)] * 3

    def no_scalar(model, batch):
        return model(batch[0])

    def infinite(model, batch):
        return loops.loss_of(model, batch) * torch.inf

    for change, message in [
        ({"rank": 0}, "rank is 0"),
        ({"n_evals": 2.5}, r"n_evals is 2\.5"),
        ({"model": 3}, "model is a int"),
        ({"states": {latest: states[latest]}}, "states holds 1 steps, expected at least two"),
        ({"states": {1: {}, 2: {}}}, "lacks 4 of the model's 4 parameters"),
        ({"batches": []}, "batches is empty"),
        ({"batches": few}, "batches held 3, all of them taken to judge by"),
        ({"batches": 5}, "batches is a int, expected an iterable"),
        ({"loss_fn": None}, "loss_fn is None, expected a function of a model and a batch"),
        ({"loss_fn": lambda batch: 0}, r"called as loss_fn\(model, batch\), and its signature"),
        ({"loss_fn": lambda model, batch: None}, "loss_fn returned None, expected one number"),
        (
            {"loss_fn": lambda model, batch: loops.loss_of(model, batch).item()},
            r"loss_fn returned \d.*, expected a tensor of one number that depends on",
        ),
        ({"judge": 0.5}, "judge is 0.5, expected a function"),
        ({"judge": lambda: {"loss": 1.0}}, r"the judge returned {'loss': 1.0}, expected one num"),
        ({"loss_fn": infinite}, "the loss of the latest weights is inf"),
        (
            {"loss_fn": no_scalar, "judge": lambda: loops.held_out(model)},
            r"loss_fn returned a tensor of shape \[.*\], expected a tensor of one number",
        ),
    ]:
        arguments = {
            "model": model,
            "states": states,
            "loss_fn": loops.loss_of,
            "batches": batches(),
        }
        with pytest.raises(WfcastError, match=message):
            fit_to_loss(**{**arguments, **change})
    wide = loops.mlp(width=20)
    with pytest.raises(WfcastError, match=r"'0\.weight' is \[20, 64\] in the model, \[16, 64\]"):
        fit_to_loss(wide, states, loops.loss_of, batches())
    with (
        pytest.raises(WfcastError, match="expected one of the targets"),
        wfcast.average(states).applied(model, states, 999),
    ):
        pass


def test_states_that_the_model_would_write_over_are_refused():
    model = torch.nn.Linear(4, 1)
    copy = {n: w.clone() + 1 for n, w in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"state at step 1 shares the memory of parameter"):
        fit_to_loss(
            model, {0: copy, 1: model.state_dict()}, lambda m, b: m(b).mean(), [torch.ones(2, 4)]
        )
    with (
        pytest.raises(CheckpointError, match=r"step 1 shares the memory of parameter 'weight'"),
        wfcast.linear_trend((0, 1), (2,)).applied(model, {0: copy, 1: model}),
    ):
        pass
    with pytest.raises(CheckpointError, match="steps 0 and 1 are the same tensors in memory"):
        fit_to_loss(model, {0: copy, 1: copy}, lambda m, b: m(b).mean(), [torch.ones(2, 4)])
