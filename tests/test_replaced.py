"""Loops that go on with another optimizer, layer or model than the Farcasting was made with."""

import copy

import pytest

from wfcast import WfcastError

torch = pytest.importorskip("torch")  # an extra: wfcast itself does without

import loops  # noqa: E402  only with it

from wfcast.torch import Farcasting, _loop  # noqa: E402

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
