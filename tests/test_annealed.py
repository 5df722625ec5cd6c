"""Readouts beside a run: averages of its weights, chosen and fitted."""

import copy
import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")  # an extra: wfcast itself does without

import loops  # noqa: E402  only with it

from wfcast import CheckpointError, WfcastError  # noqa: E402
from wfcast.torch import Annealed, fit_to_loss  # noqa: E402

PROFILES = (2, 5, 10, 20, 40)


def trained(steps=60, model=None, seen=None, begin=1, annealed=None, rate=0.3, **settings):
    """A noisy run; what its weights were at each step is left in `seen`."""
    model = loops.mlp() if model is None else model
    annealed = annealed or Annealed(model, **{"every": 2, **settings})
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=rate)
    for step in range(begin, begin + steps):
        loops.optimize(model, optimizer, step)
        annealed.step()
        if seen is not None:
            seen[step] = loops.weights(model)
    return annealed


def reference(seen, name, gamma, every):
    """The average in float64, from all states at once; each stands for the steps since the last."""
    steps = [t for t in seen if t % every == 0]
    shares = np.diff([(t / steps[-1]) ** (gamma + 1) for t in [0, *steps]])
    return sum(c * seen[t][name].double().numpy() for c, t in zip(shares, steps, strict=True))


def readout(annealed, profile=None):
    with annealed.applied(profile):
        return loops.weights(annealed.model)


@pytest.mark.parametrize("store", ["auto", "device", "cpu", "disk", "folder"])
@pytest.mark.parametrize("profiles", [PROFILES, tuple(range(19))])
def test_averages(store, profiles, tmp_path):
    """Of every state with its weight, parameters and BatchNorm's statistics alike."""
    seen = {}
    store = tmp_path if store == "folder" else store
    model = loops.mlp(norm=True)
    annealed = trained(59, model, seen, every=3, profiles=profiles, store=store)
    for gamma in profiles:
        for name, values in readout(annealed, gamma).items():
            if values.is_floating_point():
                exact = reference(seen, name, gamma, 3)
                np.testing.assert_allclose(values, exact, rtol=3e-6, atol=1e-6)
            else:
                assert torch.equal(values, seen[59][name])  # the count is the run's own
    assert loops.equal(loops.weights(model), seen[59])
    if store == tmp_path:
        assert list(tmp_path.iterdir())
        del annealed
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_averages_of_other_dtypes(dtype):
    """They are wider than the weights, and rounded once when they are applied."""
    torch.manual_seed(0)
    model = torch.nn.Linear(50, 40).to(dtype)
    annealed, seen = Annealed(model, every=1), {}
    for step in range(1, 41):
        with torch.no_grad():
            model.weight += 0.01 * torch.randn(40, 50)
        annealed.step()
        seen[step] = loops.weights(model)
    exact = torch.from_numpy(reference(seen, "weight", 5, 1))
    kept = annealed.state_dict()["averages"]["weight"][1]
    assert kept.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(
        kept.double(), exact, rtol=0, atol=1e-14 if dtype == torch.float64 else 1e-6
    )
    assert torch.equal(readout(annealed, 5)["weight"], kept.to(dtype))


@pytest.mark.parametrize("profiles", [PROFILES, (40, 2, 10)])
def test_averages_in_bfloat16(profiles):
    """As exact as stated after a thousand looks, where plain ones would have come to a stop."""
    torch.manual_seed(0)
    model = torch.nn.Linear(50, 40, bias=False)
    annealed = Annealed(model, profiles, every=1, state_dtype=torch.bfloat16)
    plain, exact = model.weight.detach().bfloat16(), {}
    for step in range(1, 1001):
        with torch.no_grad():
            model.weight += 3e-4 * torch.randn(40, 50) - 1e-3 * model.weight
        annealed.step()
        for gamma in profiles:
            share = 1 - ((step - 1) / step) ** (gamma + 1)
            now = model.weight.detach().double()
            exact[gamma] = now.lerp(exact.get(gamma, now), 1 - share)
        slow = 1 - ((step - 1) / step) ** (min(profiles) + 1)
        plain += slow * (model.weight.detach() - plain)
    for gamma in profiles:
        off = (readout(annealed, gamma)["weight"] - exact[gamma]).norm()
        assert off <= 0.02 * (exact[gamma] - exact[2]).norm() + 1e-6 * exact[gamma].norm()
        assert off < 0.1 * (plain - exact[2]).norm()
    kept = annealed.state_dict()["averages"]["weight"]
    assert sum(a.dtype == torch.bfloat16 for a in kept) == len(profiles) - 1


def test_which_tensors():
    """A tied one once, a frozen one never, one that is unfrozen later from then on."""
    model = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(4)))
    model[1].weight = model[0].weight
    model[2].requires_grad_(False)
    model[3].requires_grad_(False)
    model.register_buffer("scratch", torch.zeros(3), persistent=False)
    annealed = Annealed(model, every=1, profiles=(2,))

    def move(*layers):
        with torch.no_grad():
            for layer in layers:
                layer.weight += 1
        annealed.step()
        return annealed.state_dict()["averages"]

    assert set(move(model[0])) == {"0.weight", "0.bias", "1.bias"}
    model[3].requires_grad_(True)
    first = model[3].weight.detach().clone()
    move(model[0])
    averages = move(model[0], model[3])
    assert set(averages) == {"0.weight", "0.bias", "1.bias", "3.weight", "3.bias"}
    (average,) = averages["3.weight"]
    torch.testing.assert_close(average, first + 1 - (2 / 3) ** 3)
    model[3].requires_grad_(False)  # what was averaged goes on to be
    assert set(move(model[0])) == set(averages)
    with annealed.applied(2):
        assert model[1].weight is model[0].weight


@pytest.mark.parametrize("masked", [-torch.inf, torch.finfo(torch.float32).min])
def test_masks_are_no_statistics(masked):
    """Their infinity has no average, and the least number overflows with a coefficient above 1."""
    model = loops.mlp(norm=True)
    mask = torch.full((4, 4), masked).triu(1)
    model.register_buffer("mask", mask.clone())
    annealed = trained(30, model)
    fitted = annealed.fit(loops.loss_of, [loops.batch(step) for step in range(20)], n_evals=8)
    for profile in (10, 7, "latest", fitted):
        with annealed.applied(profile):
            assert torch.equal(model.mask, mask)
    averages = annealed.state_dict()["averages"]
    assert "mask" not in averages
    assert "1.running_mean" in averages


def test_adapters_alone():
    """Of LoRA only what is trained, in several groups of the optimizer."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    base = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 1))
    model = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["0", "1"]))
    adapters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    annealed = Annealed(model, (5,), every=2)
    rates = (1e-2, 2e-2, 3e-2, 4e-2)
    groups = [{"params": [p], "lr": rate} for p, rate in zip(adapters.values(), rates, strict=True)]
    optimizer, seen = torch.optim.Adam(groups), {}
    for step in range(1, 21):
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()
        if annealed.step():
            seen[step] = {name: p.detach().double() for name, p in adapters.items()}
    assert annealed.state_dict()["averages"].keys() == adapters.keys()
    weights = np.diff([(step / 20) ** 6 for step in (0, *seen)])
    with annealed.applied():
        for name, p in adapters.items():
            want = sum(a * w[name] for a, w in zip(weights, seen.values(), strict=True))
            torch.testing.assert_close(p.detach().double(), want, rtol=1e-5, atol=1e-7)


@pytest.mark.filterwarnings("ignore")  # of torch.compile
def test_wrapped_models():
    """Compiled or replicated, names are those of the bare model."""
    plain = trained(20)
    model = loops.mlp()
    wrapped = trained(20, torch.compile(model, backend="eager"))
    assert loops.equal(wrapped.state_dict(), plain.state_dict())
    assert loops.equal(
        readout(plain), {n.removeprefix("_orig_mod."): v for n, v in readout(wrapped).items()}
    )


def test_the_run_gets_its_own_weights_back():
    model = loops.mlp(norm=True)
    annealed = trained(20, model, refresh=lambda m: m.train()(loops.X))
    before = loops.weights(model)
    places = [p.data_ptr() for p in model.parameters()]

    def block():
        with annealed.applied():
            assert not loops.equal(loops.weights(model), before)
            assert model[1].num_batches_tracked == 21  # refreshed
            for refused in (annealed.step, lambda: annealed.choose(lambda: 1.0), annealed.write):
                with pytest.raises(WfcastError, match="inside applied"):
                    refused()
            raise RuntimeError("in the block")

    with pytest.raises(RuntimeError, match="in the block"):
        block()
    assert loops.equal(loops.weights(model), before)
    assert [p.data_ptr() for p in model.parameters()] == places
    assert annealed.n_steps == 20
    expected = readout(annealed, 5)
    annealed.write(5)
    assert loops.equal(loops.weights(model), expected)

    def fails(model):
        raise RuntimeError("no data")

    annealed.refresh = fails
    for use in (lambda: readout(annealed), annealed.write):
        with pytest.raises(RuntimeError, match="no data"):
            use()
        assert loops.equal(loops.weights(model), expected)


def test_buffers_that_a_refresh_registers_anew():
    """By name and shape the run gets its own again, and a readout that is written its own."""
    model = loops.mlp(norm=True)

    def refresh(model):
        model[1].register_buffer("running_mean", torch.full((16,), 7.0))
        model[1].register_buffer("seen", torch.ones(3))

    annealed = trained(20, model, refresh=refresh)
    before = loops.weights(model)
    with annealed.applied():
        assert bool((model[1].running_mean == 7).all())
    assert loops.equal(loops.weights(model), before)
    annealed.write()
    assert bool((model[1].running_mean == 7).all())
    assert len(model[1].seen) == 3


def test_choose():
    """What is chosen is what is applied; the run knows nothing of it."""
    model = loops.mlp()
    annealed = trained(60, model)
    assert loops.equal(readout(annealed), readout(annealed, 10))
    random, before = torch.get_rng_state(), loops.weights(model)

    def judge():
        torch.rand(1)
        assert not model.training
        return loops.held_out(model)

    chosen = annealed.choose(judge)
    assert model.training
    assert torch.equal(torch.get_rng_state(), random)
    assert loops.equal(loops.weights(model), before)
    assert set(annealed.losses) == {"latest", *PROFILES}
    assert annealed.losses["latest"] == loops.held_out(model)
    assert annealed.losses[chosen] == min(annealed.losses.values()) < annealed.losses["latest"]
    with annealed.applied():
        assert loops.held_out(model) == annealed.losses[chosen]
    assert annealed.log()["annealed/profile"] == chosen
    assert annealed.log()[f"annealed/loss/{chosen}"] == annealed.losses[chosen]
    worst = annealed.choose(judge, maximize=True)
    assert annealed.losses[worst] == max(annealed.losses.values())


def test_judges_that_fail():
    annealed = trained(10, profiles=(2, 5))
    before = loops.weights(annealed.model)
    values = iter([math.nan, 2.0, math.inf])
    assert annealed.choose(lambda: next(values)) == 2
    with pytest.raises(
        WfcastError, match="no finite number, but nan for the latest weights and nan"
    ):
        annealed.choose(lambda: math.nan)
    for nothing in (None, "low", {"eval_loss": 1.0}, torch.zeros(2)):
        with pytest.raises(WfcastError, match=r"the judge returned .*, expected one number"):
            annealed.choose(lambda nothing=nothing: nothing)
    for judge, message in [
        (None, "judge is None, expected a function that returns a held-out loss"),
        (0.5, "judge is 0.5, expected a function"),
        (lambda model: 1.0, "judge is called without arguments, and its signature is"),
    ]:
        with pytest.raises(WfcastError, match=message):
            annealed.choose(judge)
    assert annealed.chosen == 2  # a choice that failed is none

    def fails():
        raise RuntimeError("no held-out data")

    with pytest.raises(RuntimeError, match="no held-out data"):
        annealed.choose(fails)
    assert annealed.chosen == 2
    assert loops.equal(loops.weights(annealed.model), before)


@pytest.mark.parametrize("steps", [20, 120])
def test_fit_is_never_worse_than_the_best_profile(steps):
    annealed = trained(steps)
    model = annealed.model
    before = loops.weights(model)
    batches = [loops.batch(step) for step in range(1000, 1020)]

    def judge():
        return loops.held_out(model)

    operator = annealed.fit(loops.loss_of, batches, n_evals=20, judge=judge)
    assert loops.equal(loops.weights(model), before)
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    annealed.choose(judge)
    best = min(loss for name, loss in annealed.losses.items() if name != "latest")
    assert operator.info["loss_before"] == annealed.losses["latest"]
    assert operator.info["loss_profile"] == pytest.approx(best, rel=1e-5)
    assert operator.info["loss_after"] <= min(
        operator.info["loss_profile"], annealed.losses["latest"]
    )
    with annealed.applied(operator):
        assert loops.held_out(model) == pytest.approx(operator.info["loss_after"], rel=1e-5)
    np.testing.assert_allclose(operator.coef["*"].sum(), 1)
    other = Annealed(model, profiles=(3,), every=1)
    other.step()
    with (
        pytest.raises(WfcastError, match="none that fit has returned here"),
        other.applied(operator),
    ):
        pass
    alien = fit_to_loss(
        model, {0: before, 1: loops.weights(loops.mlp(seed=1))}, loops.loss_of, batches
    )
    with (
        pytest.raises(WfcastError, match="none that fit has returned here"),
        annealed.applied(alien),
    ):
        pass


@pytest.mark.parametrize(("store", "dtype"), [("auto", None), ("disk", torch.bfloat16)])
def test_resumed_to_the_bit(store, dtype, tmp_path):
    settings = {"store": store, "state_dtype": dtype}
    whole = trained(61, loops.mlp(norm=True), **settings)
    first = trained(33, loops.mlp(norm=True), **settings)
    first.choose(lambda: loops.held_out(first.model))
    torch.save((first.state_dict(), first.model.state_dict()), tmp_path / "state.pt")
    saved, weights = torch.load(tmp_path / "state.pt", weights_only=True)
    model = loops.mlp(norm=True, seed=5)
    model.load_state_dict(weights)
    again = Annealed(model, every=2, **settings)
    again.load_state_dict(saved)
    assert (again.chosen, again.losses) == (first.chosen, first.losses)
    trained(28, model, begin=34, annealed=again)
    ours, theirs = again.state_dict(), whole.state_dict()
    assert loops.equal(ours["averages"], theirs["averages"])
    assert ours["n_steps"] == 61


def test_resumed_with_layers_frozen_meanwhile():
    """What was averaged before it was frozen goes on to be, also in a new process."""
    model = loops.mlp()
    first = trained(4, model)
    model[0].requires_grad_(False)
    trained(4, model, begin=5, annealed=first)
    saved = copy.deepcopy(first.state_dict())
    other = loops.mlp(seed=5)
    other.load_state_dict(model.state_dict())
    other[0].requires_grad_(False)
    again = Annealed(other, every=2)
    again.load_state_dict(saved)
    for annealed in (first, again):
        trained(4, annealed.model, begin=9, annealed=annealed)
    assert loops.equal(again.state_dict(), first.state_dict())


@pytest.mark.parametrize("profiles", [PROFILES, (3,)])
def test_a_state_from_before_the_first_look(profiles):
    """It leaves nothing of what was there."""
    fresh = Annealed(loops.mlp(), every=2, profiles=profiles).state_dict()
    annealed = trained(10)
    annealed.load_state_dict(fresh)
    assert not annealed.ready
    assert annealed.state_dict()["averages"] == {}
    with pytest.raises(WfcastError, match="there is no average yet"):
        readout(annealed)


def test_profiles_changed_on_load():
    """Those that lie among the ones kept are put together well, and how well is said."""
    saved = trained(200, every=1).state_dict()
    exact = trained(200, every=1, profiles=(7, 2))
    other = Annealed(loops.mlp(seed=3), profiles=(7, 2), every=1)
    with pytest.warns(UserWarning, match=r"put together from 2, 5, 10, 20, 40: 7 \(.*% off\)"):
        other.load_state_dict(saved)
    for name, (seven, two) in other.state_dict()["averages"].items():
        assert torch.equal(two, saved["averages"][name][0])
        want = exact.state_dict()["averages"][name][0]
        nearest = saved["averages"][name][1]
        assert (seven - want).norm() < 0.1 * (nearest - want).norm()


def test_state_dtype_changed_on_load():
    """Either way; what was rounded stays so."""
    wide, narrow = trained(40), trained(40, state_dtype=torch.bfloat16)
    rounded = Annealed(narrow.model, every=2, state_dtype=torch.bfloat16)
    rounded.load_state_dict(wide.state_dict())
    widened = Annealed(narrow.model, every=2)
    widened.load_state_dict(narrow.state_dict())
    for gamma in PROFILES:
        assert loops.equal(readout(widened, gamma), readout(narrow, gamma))
        for name, value in readout(rounded, gamma).items():
            torch.testing.assert_close(value, readout(wide, gamma)[name], rtol=0, atol=1e-3)


def test_states_that_do_not_fit():
    """Nothing is changed by a state that is refused."""
    annealed = trained(10)
    kept = copy.deepcopy(annealed.state_dict())
    good = trained(20).state_dict()
    lacking = {k: v for k, v in good.items() if k != "n_steps"}
    averages = {**good["averages"], "2.bias": good["averages"]["2.bias"][:4]}
    for state, message in [
        (None, "no state of Annealed"),
        (lacking, "no state of Annealed"),
        ({**good, "version": 9}, "version 9, expected 1"),
        ({**good, "averages": averages}, "4 averages of 5 profiles in the state"),
        (trained(20, loops.mlp(width=8)).state_dict(), r"'0.weight' is \[16, 64\] in the model"),
        (trained(20, loops.mlp(norm=True)).state_dict(), "holds 6 tensors that the model does not"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            annealed.load_state_dict(state)
        assert loops.equal(annealed.state_dict(), kept)


def test_a_run_that_diverges():
    """One warning that names the tensor, and no readout that is not finite."""
    model = loops.mlp()
    annealed = trained(10, model)
    good = copy.deepcopy(annealed.state_dict())
    with torch.no_grad():
        model[2].bias[3] = torch.inf
    annealed.step()
    with pytest.warns(UserWarning, match="parameter '2.bias' holds NaN or infinity by step 12"):
        annealed.step()
    before = loops.weights(model)
    annealed.step()
    annealed.step()  # and no other warning
    with (
        pytest.raises(WfcastError, match=r"NaN or infinity: parameter '2\.bias'"),
        annealed.applied(),
    ):
        pass
    assert loops.equal(loops.weights(model), before)
    annealed.load_state_dict(good)  # and then once more
    with pytest.warns(UserWarning, match="parameter '2.bias' holds NaN or infinity by step 12"):
        annealed.step(), annealed.step()


def test_bad_input(tmp_path):
    model = loops.mlp()
    for settings, message in [
        ({"profiles": ()}, "at least one power"),
        ({"profiles": (2, 2)}, "none of them twice"),
        ({"profiles": (-1,)}, "-1 is no profile"),
        ({"profiles": (math.inf,)}, "inf is no profile"),
        ({"profiles": "10"}, "profiles is '10'"),
        ({"every": 0}, "every is 0"),
        ({"store": tmp_path / "none"}, "expected one of"),
        ({"state_dtype": torch.float16}, "state_dtype is torch.float16, expected"),
        ({"refresh": 3}, "refresh is 3"),
        ({"refresh": lambda: 0}, r"refresh is called as refresh\(model\), and its signature is"),
    ]:
        with pytest.raises(WfcastError, match=message):
            Annealed(model, **settings)
    with pytest.raises(WfcastError, match="model is a dict"):
        Annealed({})
    with pytest.raises(WfcastError, match="no trainable parameters"):
        Annealed(copy.deepcopy(model).requires_grad_(False))
    annealed = Annealed(model)
    assert not annealed.ready
    assert annealed.log() == {}
    for use in (readout, lambda a: a.choose(lambda: 1.0), Annealed.write):
        with pytest.raises(WfcastError, match="the first comes with step 10, and step"):
            use(annealed)
    for _ in range(10):
        annealed.step()
    for profile in ("best", -2, math.nan):
        with pytest.raises(WfcastError, match="profile"), annealed.applied(profile):
            pass
