"""What a Farcasting refuses when it is made, and losses that are none: in a sentence, at once."""

import math

import numpy as np
import pytest

from wfcast import WfcastError

torch = pytest.importorskip("torch")  # an extra: wfcast itself does without

import loops  # noqa: E402  only with it

from wfcast.torch import Farcasting  # noqa: E402


class OnlySaves:
    """Half of what a scheduler is."""

    def state_dict(self):
        return {}


def with_step(step, loss=0.0):
    """What a loop may hand over as its judge by mistake."""


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"state_dtype": "bf16"}, r"state_dtype is 'bf16', expected one of torch\.float64, .* or "),
        ({"state_dtype": torch.int8}, r"state_dtype is torch\.int8, expected one of torch\.flo"),
        ({"state_dtype": torch.float8_e4m3fn}, r"state_dtype is torch\.float8_e4m3fn, expected "),
        ({"scheduler": 3}, "scheduler is 3, expected an object with state_dict and load_state_d"),
        ({"scheduler": OnlySaves()}, "scheduler is <.*OnlySaves.*>, expected an object with"),
        ({"judge": lambda model: 0.0}, r"judge is called without arguments, .* is \(model\): wrap"),
        ({"judge": with_step}, r"judge is called without .* is \(step, loss=0\.0\): wrap"),
        ({"judge": lambda *, model: 0.0}, r"judge is called without arguments, .*\(\*, model\)"),
        ({"judge": 0.3}, r"judge is 0\.3, expected a function or None"),
        ({"refresh": with_step}, "refresh is called without arguments"),
        ({"horizon": 0}, "horizon is 0, expected 'adaptive' or a number of steps above 0"),
        ({"horizon": float("nan")}, "horizon is nan, expected 'adaptive' or a number of steps ab"),
        ({"horizon": float("inf")}, "horizon is inf, expected 'adaptive' or a number of steps ab"),
        ({"stop": 10.0}, r"stop is 10\.0, expected None or an integer above start=0"),
        ({"stop": 0}, "stop is 0, expected None or an integer above start=0"),
        ({"start": 100, "stop": 100}, "stop is 100, expected None or an integer above start=100"),
    ],
)
def test_refused_when_it_is_made(parameters, message):
    model = loops.mlp()
    optimizer = torch.optim.Adam(model.parameters())
    with pytest.raises(WfcastError, match=message):
        Farcasting(model, optimizer, **parameters)
    Farcasting(model, optimizer)  # nothing holds on to the model


@pytest.mark.parametrize(
    "judge",
    [
        lambda: 0.0,
        lambda n=3: 0.0,
        lambda *given, **named: 0.0,
        with_step.__get__(3),  # a method: its object is no argument
        torch.nn.Identity(),  # whose signature says anything goes
        dict.fromkeys([1], 0.0).values().__len__,  # written in C
    ],
)
def test_judges_that_can_be_called(judge):
    model = loops.mlp()
    Farcasting(model, torch.optim.Adam(model.parameters()), judge=judge)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("0.3", r"loss is '0\.3', expected one number"),
        ({"loss": 0.3}, r"loss is \{'loss': 0\.3\}, expected one number"),
        (torch.ones(3).numpy(), r"loss is array\(\[1\., 1\., 1\.\].*, expected one number"),
        (torch.ones(3), r"loss has shape \[3\], expected one number"),
        (lambda model: 0.3, r"loss is called without arguments, and its signature is \(model\)"),
    ],
)
def test_losses_that_are_none(loss, message):
    model = loops.mlp()
    optimizer = torch.optim.Adam(model.parameters())
    farcasting = Farcasting(model, optimizer)
    loops.optimize(model, optimizer, 1)
    with pytest.raises(WfcastError, match=message):
        farcasting.step(loss)


@pytest.mark.parametrize("answer", ["0.3", b"0.3", None, [0.3, 0.4], torch.ones(2)])
def test_judges_that_give_no_number(answer):
    model = loops.mlp()
    optimizer = torch.optim.Adam(model.parameters())
    farcasting = Farcasting(model, optimizer, recovery=4, judge=lambda: answer)
    loops.optimize(model, optimizer, 1)
    with pytest.raises(WfcastError, match=r"the judge returned .*, expected one number"):
        farcasting.step()


@pytest.mark.parametrize("room", [-1, 2.5, True, "5", math.nan])
def test_a_room_that_is_no_number_of_steps(room):
    model = loops.mlp()
    farcasting = Farcasting(model, torch.optim.Adam(model.parameters()))
    with pytest.raises(WfcastError, match=r"room is .*, expected None or the steps that are left"):
        farcasting.step(0.5, room=room)
    assert not farcasting.step(0.5, room=np.int64(7))


@pytest.mark.parametrize("state", [None, "state", {}, {"0.weight": torch.ones(2)}])
def test_a_state_that_is_none(state):
    model = loops.mlp()
    farcasting = Farcasting(model, torch.optim.Adam(model.parameters()))
    with pytest.raises(WfcastError, match="the state is none that state_dict"):
        farcasting.load_state_dict(state)


def test_an_empty_folder_name():
    model = loops.mlp()
    with pytest.raises(WfcastError, match="store is '', expected one of"):
        Farcasting(model, torch.optim.Adam(model.parameters()), store="")
