"""Loops that go on with another optimizer, layer or model than the Farcasting was made with."""

import copy
import pickle

import pytest

from wfcast import WfcastError

torch = pytest.importorskip("torch")  # an extra: wfcast itself does without

import loops  # noqa: E402  only with it

from wfcast.torch import Annealed, Farcasting, _loop  # noqa: E402

FAST = {"spacing": 5, "period": 10, "recovery": 5}


def setup(**parameters):
    model = loops.mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return model, optimizer, Farcasting(model, optimizer, **{**FAST, **parameters})


# ---- the optimizer ------------------------------------------------------------------------------


def test_a_loop_with_another_optimizer_is_told_once():
    model, _, farcasting = setup()
    other = torch.optim.SGD(model.parameters(), lr=1e-3)
    assert not loops.run(farcasting, model, other, range(1, _loop.IDLE))
    message = rf"the Adam .* took no step in {_loop.IDLE} calls of step\(\) in a row: .* new Farc"
    with pytest.warns(UserWarning, match=message):
        loops.run(farcasting, model, other, [_loop.IDLE])
    loops.run(farcasting, model, other, range(_loop.IDLE + 1, 3 * _loop.IDLE))
    text = " ".join(str(farcasting.summary()).split())
    assert f"took no step in {_loop.IDLE} calls of step() in a row" in text


def test_steps_that_a_scaler_leaves_out_are_no_other_optimizer():
    model, optimizer, farcasting = setup()
    for step in range(1, 4):
        for _ in range(_loop.IDLE - 1):
            farcasting.step(1.0)
        loops.run(farcasting, model, optimizer, [step])
    assert farcasting._step == 3


# ---- the model ----------------------------------------------------------------------------------


@pytest.mark.parametrize("outputs", [10, 12])
@pytest.mark.parametrize("horizon", ["adaptive", 10])
def test_a_replaced_layer_is_an_error_at_the_next_state(outputs, horizon):
    model, optimizer, farcasting = setup(horizon=horizon)
    loops.run(farcasting, model, optimizer, range(1, 3))
    model[2] = torch.nn.Linear(16, outputs)
    loops.run(farcasting, model, optimizer, range(3, 5))
    message = r"'2\.weight' of the model is another tensor than the one .*: make a new optimizer"
    with pytest.raises(WfcastError, match=message):
        loops.run(farcasting, model, optimizer, [5])


def test_a_layer_that_is_taken_away_is_an_error():
    model, optimizer, farcasting = setup()
    loops.run(farcasting, model, optimizer, range(1, 3))
    model[0] = torch.nn.Identity()
    model[2] = torch.nn.Linear(64, 10)
    with pytest.raises(WfcastError, match=r"'0\.weight' of the model is another tensor than"):
        loops.run(farcasting, model, optimizer, range(3, 6))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_optimizer_of_a_copy_holds_no_masters(dtype):
    model = loops.mlp().to(dtype)
    optimizer = torch.optim.Adam(copy.deepcopy(model).parameters())
    message = "steps other tensors than the model's, .* no more precise: make it from the param"
    with pytest.raises(WfcastError, match=message):
        Farcasting(model, optimizer)


def test_masters_beside_parameters_that_need_none():
    """A layer that is in float32 itself, such as a norm, has a copy in the optimizer, too."""
    model = loops.mlp(norm=True).bfloat16()
    model[1].float()
    masters = [p.detach().clone().float().requires_grad_() for p in model.parameters()]
    farcasting = Farcasting(model, torch.optim.Adam(masters))
    assert len(farcasting.state_dict()["names"]) == 6


def test_the_optimizer_of_another_model_in_higher_precision_holds_no_masters():
    model = loops.mlp().bfloat16()
    optimizer = torch.optim.Adam(loops.mlp(seed=1).parameters())
    with pytest.raises(WfcastError, match=r"place of '0\.weight' has other values, so it is no ma"):
        Farcasting(model, optimizer)


def test_masters_of_some_parameters_alone():
    """The others would jump without them."""
    model = loops.mlp().bfloat16()
    model[2].float()
    masters = [p.detach().clone().float().requires_grad_() for p in model[0].parameters()]
    optimizer = torch.optim.Adam([*masters, *model[2].parameters()], lr=1e-3)
    with pytest.raises(WfcastError, match=r"copies of others, it seems, of '0\.weight' first"):
        Farcasting(model, optimizer)
    farcasting = Farcasting(model, optimizer, exclude="0.*")
    assert farcasting.state_dict()["names"] == ["2.weight", "2.bias"]


# ---- copies -------------------------------------------------------------------------------------


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_what_goes_with_a_live_model_is_not_copied(copied):
    model, optimizer, farcasting = setup()
    for one in (farcasting, Annealed(model)):
        with pytest.raises(WfcastError, match=r"cannot be copied or pickled, .* state_dict\(\)"):
            copied(one)
    with pytest.raises(WfcastError, match="Farcasting cannot be copied"):
        copy.deepcopy({"model": model, "optimizer": optimizer, "jumps": farcasting})


def test_the_model_and_the_optimizer_can_be_copied():
    """In the middle of a jump, too; the copies train by themselves, and are counted by nobody."""
    model, optimizer, farcasting = setup()
    loops.run(farcasting, model, optimizer, range(1, 23))
    assert not farcasting.settled
    for duplicate in (copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))):
        twin, other = duplicate((model, optimizer))
        assert loops.equal(loops.weights(twin), loops.weights(model))
        for step in (23, 24):
            loops.optimize(twin, other, step)
        Farcasting(twin, other).close()
    loops.run(farcasting, model, optimizer, range(23, 26))
    assert farcasting.settled
