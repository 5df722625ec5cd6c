"""Weights that are kept are never those of a jump under judgement, and every row says why."""

import copy
import io
import logging
import math
import pickle
import resource
import warnings

import pytest

import wfcast
from wfcast import WfcastError

torch = pytest.importorskip("torch")  # an extra: wfcast itself does without

import loops  # noqa: E402  only with it

from wfcast.torch import Farcasting, _rule  # noqa: E402

FAST = {"spacing": 5, "period": 10, "recovery": 5}
FIRST = 20  # the step of the first jump then


def setup(seed=0, **parameters):
    model = loops.mlp(seed=seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return model, optimizer, Farcasting(model, optimizer, **{**FAST, **parameters})


def under_way(**parameters):
    """Two steps after a jump."""
    parts = setup(**parameters)
    model, optimizer, farcasting = parts
    assert loops.run(farcasting, model, optimizer, range(1, FIRST + 3)) == [FIRST]
    assert not farcasting.settled
    return parts


# ---- room ---------------------------------------------------------------------------------------


def looked_at(model, optimizer, farcasting, looks, last):
    """Train with the room until the next of these steps; where no jump is under judgement."""
    settled = {}
    for step in range(1, last + 1):
        room = min(look for look in looks if look >= step) - step
        farcasting.step(loops.optimize(model, optimizer, step), room=room)
        settled[step] = farcasting.settled
    return settled


@pytest.mark.parametrize("every", [6, 7, 11, 13, 19, 25])
@pytest.mark.parametrize("forecaster", [None, wfcast.linear_trend])
def test_no_window_reaches_over_a_look(every, forecaster):
    """Every look sees weights that have their verdict; jumps come right after the looks."""
    model, optimizer, farcasting = setup(forecaster=forecaster, horizon=3)
    looks = range(every, 200, every)
    settled = looked_at(model, optimizer, farcasting, looks, 150)
    assert all(settled[look] for look in looks if look <= 150)
    jumps = [row["step"] for row in farcasting.history]
    assert len(jumps) >= 3
    for step in jumps:
        assert step % every + FAST["recovery"] <= every


@pytest.mark.parametrize(
    ("look", "jump"), [(19, 20), (20, 21), (22, 23), (24, 25), (25, 20), (26, 20)]
)
def test_a_jump_comes_right_after_the_look_in_its_way(look, jump):
    model, optimizer, farcasting = setup(horizon=3)
    looked_at(model, optimizer, farcasting, [look, 1000], 40)
    assert farcasting.history[0]["step"] == jump


def test_the_line_ends_where_the_jump_was_put_off_to():
    """At the state of the jump itself, beside those that are a spacing apart."""
    model, optimizer, farcasting = setup(horizon=3)
    line = farcasting._recording._line
    real, asked = line.coefficients, []
    line.coefficients = lambda x: asked.append((line.n_states, x)) or real(x)
    looked_at(model, optimizer, farcasting, [22, 1000], 25)
    assert set(asked) == {(6, 23 + 3)}  # 0, 5, 10, 15, 20 and 23


def test_no_room_is_no_jump():
    model, optimizer, farcasting = setup(horizon=3)
    settled = looked_at(model, optimizer, farcasting, range(4, 100, 4), 80)
    assert all(settled.values())
    assert not farcasting.history


def test_without_windows_any_room_will_do():
    model, optimizer, farcasting = setup(recovery=0, horizon=3)
    looked_at(model, optimizer, farcasting, range(1, 100), 40)
    assert [row["step"] for row in farcasting.history] == [10, 20, 30, 40]


# ---- other code that looks ----------------------------------------------------------------------


def warned(look):
    """What was warned of."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        look()
    return [str(warning.message) for warning in found]


@pytest.mark.parametrize("what", ["saved", "evaluated"])
def test_a_look_inside_a_window_is_warned_of_once(what):
    model, optimizer, farcasting = setup(horizon=3)

    def look():
        if what == "saved":
            model.state_dict()
            return
        model.eval()
        loops.held_out(model)
        model.train()

    for step in range(1, 60):
        farcasting.step(loops.optimize(model, optimizer, step))
        found = warned(look)
        assert len(found) == (step == FIRST)
        assert all(f"the model is being {what} while a jump of" in message for message in found)
    assert len(farcasting.history) >= 3


def test_the_warning_names_the_place():
    model, _, _ = under_way(horizon=3)
    with pytest.warns(UserWarning, match="is being saved") as found:
        model.state_dict()
    assert found[0].filename == __file__


def test_training_is_no_look():
    """Neither is a forward pass in training mode, nor one in eval mode with gradients."""
    model, _, farcasting = under_way(horizon=3)
    x, y = loops.batch(1)
    with torch.no_grad():
        model(x)
    model.eval()
    loops.loss_of(model, (x, y)).backward()
    model.train()
    assert not farcasting.settled


def test_the_judge_s_own_look_is_none():
    model, optimizer, farcasting = setup(horizon=3, refresh=lambda: model.state_dict())
    farcasting._losses._judge = lambda: loops.held_out(model) + 0 * len(model.state_dict())
    for step in range(1, 40):
        loops.optimize(model, optimizer, step)
        farcasting.step()
    assert farcasting.history


@pytest.mark.parametrize("given", ["compiled", "inside"])
def test_a_compiled_model_is_watched_without_breaking_its_graph(given):
    """Evaluated and traced for the first time in a window, in one whole graph."""
    torch.compiler.reset()
    model = loops.mlp()
    shown = torch.compile(model, backend="eager", fullgraph=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    watched = shown if given == "compiled" else model
    farcasting = Farcasting(watched, optimizer, horizon=3, **FAST)
    loops.run(farcasting, shown, optimizer, range(1, FIRST + 3))
    assert not farcasting.settled
    shown.eval()
    found = warned(lambda: loops.held_out(shown))
    assert len(found) == (given == "compiled")


def test_the_model_inside_a_wrapper_is_watched():
    """That is what most loops save."""
    for wrap in (torch.nn.DataParallel, lambda m: torch.compile(m, backend="eager")):
        model = loops.mlp()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        farcasting = Farcasting(wrap(model), optimizer, horizon=3, **FAST)
        loops.run(farcasting, model, optimizer, range(1, FIRST + 3))
        assert len(warned(model.state_dict)) == 1
        loops.run(farcasting, model, optimizer, range(FIRST + 3, FIRST + 8))
        assert farcasting.settled
        assert not warned(model.state_dict)


def test_a_copy_of_the_model_is_not_watched():
    """Pickled whole or copied inside a window, as for an average of weights."""
    model, optimizer, farcasting = under_way(horizon=3)
    file = io.BytesIO()
    pickle.dump(model, file)
    copies = [copy.deepcopy(model), pickle.loads(file.getvalue())]
    loops.run(farcasting, model, optimizer, range(FIRST + 3, FIRST + 8))
    assert farcasting.settled
    for one in copies:
        one.eval()
        assert not warned(lambda one=one: (one.state_dict(), loops.held_out(one)))


@pytest.mark.parametrize("then", ["pending", "settled"])
def test_a_state_loaded_inside_a_window_ends_it(then, tmp_path):
    """Nothing of it is left: neither files nor a watch on the model."""
    model, optimizer, farcasting = setup(horizon=3, store=tmp_path)
    last = FIRST + 2 if then == "pending" else FIRST - 3
    loops.run(farcasting, model, optimizer, range(1, last + 1))
    state = farcasting.state_dict()
    loops.run(farcasting, model, optimizer, range(last + 1, FIRST + 4))
    assert not farcasting.settled
    farcasting.load_state_dict(state)
    assert farcasting.settled == (then == "settled")
    if then == "pending":
        loops.run(farcasting, model, optimizer, range(last + 1, last + 5))
    assert farcasting.settled
    assert not warned(model.state_dict)
    (folder,) = tmp_path.iterdir()
    farcasting.close()
    assert not list(folder.iterdir())


# ---- runs that end, and errors ------------------------------------------------------------------


def plain(steps):
    """A run without jumps."""
    model = loops.mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for step in range(1, steps + 1):
        loops.optimize(model, optimizer, step)
    return model, optimizer


@pytest.mark.parametrize("passed", range(5))
def test_a_run_closed_in_a_window_is_the_run_before_the_jump(passed):
    model, optimizer, farcasting = setup()
    loops.run(farcasting, model, optimizer, range(1, FIRST + passed + 1))
    farcasting.close()
    twin, other = plain(FIRST)
    assert loops.equal(model.state_dict(), twin.state_dict())
    assert loops.equal(optimizer.state_dict(), other.state_dict())
    assert farcasting.log()["farcasting/steps_lost"] == passed


def test_a_run_closed_after_a_verdict_keeps_the_jump():
    model, optimizer, farcasting = setup()
    loops.run(farcasting, model, optimizer, range(1, FIRST + 6))
    assert farcasting.settled
    now = loops.weights(model)
    farcasting.close()
    farcasting.close()  # twice is once
    assert loops.equal(loops.weights(model), now)
    assert farcasting.stopped == "it was closed"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("at", [FIRST, FIRST + 1, FIRST + 4, FIRST + 5])
def test_an_error_in_the_judge(at, error):
    """It goes through; the run may go on from there, or end with the weights before the jump."""

    def broken():
        if farcasting._step == at and not ended:
            raise error("no data")
        return loops.held_out(model)

    for close in (False, True):
        model, optimizer, farcasting = setup(judge=broken)
        ended = False
        for step in range(1, at):
            loops.optimize(model, optimizer, step)
            farcasting.step()
        loops.optimize(model, optimizer, at)
        before = loops.weights(model)
        with pytest.raises(error, match="no data"):
            farcasting.step()
        ended = True
        assert loops.equal(loops.weights(model), before)
        assert model.training
        if close:
            farcasting.close()
            twin, _ = plain(FIRST)
            assert loops.equal(loops.weights(model), loops.weights(twin))
            continue
        for step in range(at + 1, 40):
            loops.optimize(model, optimizer, step)
            farcasting.step()
        assert farcasting.history[0]["step"] == FIRST + (at == FIRST)
        assert farcasting.history[0]["outcome"] == "kept"


def test_a_jump_after_an_error_in_the_judge_starts_where_the_run_is():
    """A step later than it was planned: the line ends there, too."""
    fails = True

    def judge():
        if fails and farcasting._step == FIRST:
            raise RuntimeError("no data")
        return loops.held_out(model)

    model, optimizer, farcasting = setup(judge=judge, horizon=7)
    loops.run(farcasting, model, optimizer, range(1, FIRST), judged=True)
    with pytest.raises(RuntimeError, match="no data"):
        loops.run(farcasting, model, optimizer, [FIRST], judged=True)
    loops.optimize(model, optimizer, FIRST + 1)
    line = farcasting._recording._line
    real, asked = line.coefficients, []
    line.coefficients = lambda x: asked.append(x) or real(x)
    assert farcasting.step()
    assert set(asked) == {FIRST + 1 + 7}


def test_an_error_in_refreshing_leaves_the_run_as_it_was():
    def refresh():
        raise RuntimeError("no data")

    model, optimizer, farcasting = setup(refresh=refresh)
    loops.run(farcasting, model, optimizer, range(1, FIRST))
    loss = loops.optimize(model, optimizer, FIRST)
    before = loops.weights(model)
    with pytest.raises(RuntimeError, match="no data"):
        farcasting.step(loss)
    assert farcasting.settled
    assert loops.equal(loops.weights(model), before)


def test_an_interruption_right_after_a_jump_can_be_taken_back(monkeypatch):
    """While the first state of the next history is kept."""
    model, optimizer, farcasting = setup()
    loops.run(farcasting, model, optimizer, range(1, FIRST))
    loss = loops.optimize(model, optimizer, FIRST)
    before = loops.weights(model)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(farcasting._recording, "begin", interrupted)
    with pytest.raises(KeyboardInterrupt):
        farcasting.step(loss)
    monkeypatch.undo()
    farcasting.close()
    assert loops.equal(loops.weights(model), before)


def test_parameters_that_came_in_a_window_are_named_when_it_is_closed():
    model, optimizer, farcasting = under_way()
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(3))]})
    with pytest.raises(WfcastError, match="1 parameters that were not there came"):
        farcasting.close()
    farcasting.close(undo=False)
    Farcasting(model, optimizer)


# ---- what a rollback puts back ------------------------------------------------------------------


class Positions(torch.nn.Module):
    """A layer that may change its buffers in its forward pass, as caches of positions do."""

    def __init__(self, change):
        super().__init__()
        self.change, self.layer = change, torch.nn.Linear(4, 1)
        self.register_buffer("table", torch.zeros(1 if change == "grows from 1" else 8))
        self.register_buffer("mask", None, persistent=False)
        self.register_buffer("late", torch.full((8,), 5.0))

    def forward(self, x, under_way):
        if under_way:
            if self.change.startswith("grows"):
                self.register_buffer("table", torch.arange(16.0), persistent=False)
            elif self.change == "again":
                del self.table
                self.register_buffer("table", torch.full((8,), 7.0))
            elif self.change == "gone":
                del self.late
            elif self.change == "filled":
                self.mask = torch.ones(8)
            elif not hasattr(self, "extra"):
                self.register_buffer("extra", torch.ones(8))
        return self.layer(x)


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize(
    "change", ["again", "grows from 1", "grows from 8", "gone", "filled", "new"]
)
def test_buffers_that_change_in_a_window_are_put_back_by_name(change, loaded):
    torch.manual_seed(0)
    model = Positions(change)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    farcasting = Farcasting(model, optimizer, horizon=3, **FAST)

    def train(farcasting, under_way):
        x = torch.randn(16, 4)
        loss = (model(x, under_way) - x.sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        farcasting.step(loss)

    while farcasting.settled:
        kept = loops.weights(model)
        train(farcasting, under_way=False)
        before = {name: w for name, w in loops.weights(model).items() if "layer" not in name}
    assert loops.equal(before, {name: kept[name] for name in ("table", "late")})
    train(farcasting, under_way=not loaded)
    if loaded:
        state = farcasting.state_dict()
        farcasting.close(undo=False)
        farcasting = Farcasting(model, optimizer, horizon=3, **FAST)
        farcasting.load_state_dict(state)
        train(farcasting, under_way=True)
    assert farcasting.settle()
    after = {name: w for name, w in loops.weights(model).items() if "layer" not in name}
    assert loops.equal(dict(sorted(after.items())), dict(sorted(before.items())))
    assert model.mask is None
    assert not hasattr(model, "extra")


def test_what_is_frozen_in_a_window_is_put_back_by_name():
    """Else its values would come to the one after it."""
    model = loops.mlp()
    model.append(torch.nn.Linear(10, 10)).append(torch.nn.Linear(10, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    farcasting = Farcasting(model, optimizer, horizon=3, exclude=["3.*", "4.*"], **FAST)
    loops.run(farcasting, model, optimizer, range(1, FIRST))
    loss = loops.optimize(model, optimizer, FIRST)
    before = loops.weights(model)
    assert farcasting.step(loss)
    model[3].requires_grad_(False)
    loops.run(farcasting, model, optimizer, range(FIRST + 1, FIRST + 3))
    assert farcasting.settle()
    assert loops.equal(loops.weights(model), before)


def in_a_window_with(scheduler):
    model = loops.mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    farcasting = Farcasting(model, optimizer, horizon=3, scheduler=scheduler, **FAST)
    loops.run(farcasting, model, optimizer, range(1, FIRST + 3))
    assert not farcasting.settled
    return model, optimizer, farcasting


class Broken:
    """A scheduler that cannot go back."""

    def __init__(self):
        self.value, self.breaks = 0, True

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]
        if self.breaks:
            self.breaks = False
            raise RuntimeError("no way back")


@pytest.mark.parametrize("fault", ["scheduler", "buffer", "groups", "parameter"])
def test_a_rollback_that_fails_changes_nothing(fault):
    """What cannot be put back is found before anything is written, and what is mended can be."""
    scheduler = Broken()
    model, optimizer, farcasting = in_a_window_with(scheduler)
    scheduler.value = 9
    if fault == "buffer":
        model.register_buffer("table", torch.ones(2))
        loops.run(farcasting, model, optimizer, range(FIRST + 3, 2 * FIRST))
        while farcasting.settled:
            loops.run(farcasting, model, optimizer, [2 * FIRST])
        del model.table
        model.table = "a text"
        message = "buffer 'table' cannot be put back: "
    elif fault == "groups":
        group = dict(optimizer.param_groups[0])
        optimizer.param_groups[0]["params"] = group["params"][:2]
        optimizer.add_param_group({**group, "params": group["params"][2:]})
        message = "has other parameter groups than before the jump"
    elif fault == "parameter":
        model[0].bias.data = torch.zeros(7)
        message = r"parameter '0\.bias' is \[7\] now and was \[16\]"
    else:
        message = "no way back"
    weights = loops.weights(model)
    moments = copy.deepcopy(optimizer.state_dict())
    with pytest.raises((WfcastError, RuntimeError), match=message):
        farcasting.settle()
    assert loops.equal(loops.weights(model), weights)
    assert loops.equal(optimizer.state_dict(), moments)
    assert scheduler.value == 9
    assert farcasting.history[-1]["outcome"] == "pending"
    if fault == "scheduler":
        assert farcasting.settle()
        assert scheduler.value == 0
    farcasting.close(undo=False)


# ---- a disk that is full ------------------------------------------------------------------------


def test_no_room_for_the_first_state(tmp_path):
    """The run trains on; a history begins where the first jump would have been."""
    model = loops.mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with loops.files_of_at_most(0):
        farcasting = Farcasting(model, optimizer, store=tmp_path, **FAST)
    loops.run(farcasting, model, optimizer, range(1, 60))
    first, *others = farcasting.history
    assert (first["step"], first["outcome"]) == (0, "refused")
    assert first["reason"].startswith("no state could be kept at step 0: ")
    assert [row["outcome"] for row in others[:1]] == ["kept"]


def test_no_room_in_a_window(tmp_path):
    """It is no reason to lose the jump under judgement, and a saved state can be loaded."""
    model, optimizer, farcasting = setup(store=tmp_path)
    loops.run(farcasting, model, optimizer, range(1, FIRST))
    loss = loops.optimize(model, optimizer, FIRST)
    line = farcasting._recording.begin

    def begin(clock):
        line(clock)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with loops.files_of_at_most(soft):
        farcasting._recording.begin = begin
        assert farcasting.step(loss)
    del farcasting._recording.begin
    assert [row["outcome"] for row in farcasting.history] == ["pending", "refused"]
    state = farcasting.state_dict()
    again = setup(store=tmp_path)
    again[2].load_state_dict(state)
    assert not again[2].settled
    for some in ((model, optimizer, farcasting),):
        loops.run(some[2], *some[:2], range(FIRST + 1, FIRST + 6))
        assert some[2].history[0]["outcome"] == "kept"


def test_no_room_does_not_bring_the_first_jump_forward(tmp_path):
    model, optimizer, farcasting = setup(store=tmp_path)
    loops.run(farcasting, model, optimizer, range(1, 5))
    with loops.files_of_at_most(0):
        loops.run(farcasting, model, optimizer, [5])
    assert farcasting.history[0]["outcome"] == "refused"
    assert loops.run(farcasting, model, optimizer, range(6, FIRST + 1)) == [FIRST]


# ---- why there are no more jumps ----------------------------------------------------------------


def stopped(caplog, farcasting):
    """What it says, and has logged once."""
    (message,) = [r.getMessage() for r in caplog.records if "no more jumps" in r.getMessage()]
    assert message.endswith(f": {farcasting.stopped}")
    assert f"stopped: {farcasting.stopped}" in " ".join(str(farcasting.summary()).split())
    return farcasting.stopped


@pytest.fixture(autouse=True)
def logged(caplog):
    caplog.set_level(logging.INFO, "wfcast")


def test_stopped_by_harm(caplog):
    model, optimizer, farcasting = setup(horizon=1e5)
    changed = loops.run(farcasting, model, optimizer, range(1, 120))
    assert stopped(caplog, farcasting) == f"{_rule.MOST_HARMS} jumps had to be taken back"
    assert len(changed) == 2 * _rule.MOST_HARMS
    assert {row["outcome"] for row in farcasting.history} == {"rolled back"}
    assert farcasting.log()["farcasting/steps_lost"] == sum(
        back - there for there, back in zip(changed[::2], changed[1::2], strict=True)
    )
    assert not farcasting._recording.kept  # the memory was given back


def test_stopped_by_the_end_of_the_run(caplog):
    model, optimizer, farcasting = setup(stop=72, horizon=3)
    assert loops.run(farcasting, model, optimizer, range(1, 73)) == [20, 30, 40, 50, 60]
    assert stopped(caplog, farcasting) == (
        "too few steps are left before step 72, where jumps end: the next one could come at step "
        "70, its verdict 5 steps later"
    )


def test_stopped_by_a_run_that_is_too_short(caplog):
    model, optimizer, farcasting = setup(stop=24, period=23)
    loops.run(farcasting, model, optimizer, range(1, 25))
    assert "could come at step 23, its verdict 4 steps later" in stopped(caplog, farcasting)
    assert not farcasting.history


def test_a_run_that_goes_nowhere_waits_and_says_so(caplog):
    """Weights that only jitter: looked at again where the history is twice as long."""
    torch.manual_seed(0)
    model = torch.nn.Linear(30, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    farcasting = Farcasting(model, optimizer, stop=200, **FAST)
    looked = set()
    for _ in range(200):
        loss = model(torch.randn(8, 30)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            model.weight.copy_(torch.randn(1, 30))
        assert not farcasting.step(loss)
        looked |= {row["step"] for row in farcasting.history}
        assert len(farcasting.history) <= 1
    assert looked == {20, 40, 80, 160}
    (row,) = farcasting.history
    assert (row["outcome"], row["horizon"], row["verdict"]) == ("waited", 0, None)
    assert row["drift"] < _rule.LEAST_NEAR
    assert row["reason"].startswith("the run does not drift enough: ")
    assert "before step 200, where jumps end: the first one" in stopped(caplog, farcasting)
    assert str(farcasting.summary()).startswith("0 jumps, 0 kept; steps saved: 0; in ")


def test_what_recovers_late_is_told_after_a_second_window():
    """Behind at the first look, ahead at the second: the row, the total and the next jump know."""
    held_out = {step: (5 + step) ** -0.5 for step in range(200)}
    held_out |= {step: loss * 1.05 for step, loss in held_out.items() if FIRST < step <= FIRST + 5}
    held_out |= {step: (25 + step) ** -0.5 for step in held_out if step > FIRST + 5}
    model, optimizer, farcasting = setup(judge=lambda: held_out[farcasting._step], horizon=30)
    loops.run(farcasting, model, optimizer, range(1, FIRST + 6), judged=True)
    (first,) = farcasting.history
    assert (first["outcome"], first["verdict"]) == ("kept", "worse")
    assert first["judged_at"] == FIRST + 5
    assert first["steps_saved"] < 0
    loops.run(farcasting, model, optimizer, range(FIRST + 6, FIRST + 10), judged=True)
    assert farcasting.history == [first]
    loops.run(farcasting, model, optimizer, range(FIRST + 10, FIRST + 11), judged=True)
    second = farcasting.history[0]
    assert (second["outcome"], second["verdict"]) == ("kept", "better")
    assert second["judged_at"] == FIRST + 10
    assert second["steps_saved"] == pytest.approx(20, abs=2)
    assert sum(farcasting.steps_saved[1:]) / 2 == pytest.approx(second["steps_saved"])


def test_what_is_harm_at_the_second_look_only_stays():
    """The weights have been shown by then; later jumps are shorter."""
    held_out = {step: (5 + step) ** -0.5 for step in range(200)}
    held_out |= {step: 3 * loss for step, loss in held_out.items() if step > FIRST + 5}
    model, optimizer, farcasting = setup(judge=lambda: held_out[farcasting._step])
    loops.run(farcasting, model, optimizer, range(1, FIRST + 10), judged=True)
    assert farcasting.history[0]["outcome"] == "kept"
    assert farcasting._rule.share == 1  # it is too early to tell
    loops.run(farcasting, model, optimizer, range(FIRST + 10, FIRST + 11), judged=True)
    row = farcasting.history[0]
    assert (row["outcome"], row["verdict"]) == ("kept", "worse")
    assert farcasting._rule.share == 0.5


# ---- rows that do not contradict themselves -----------------------------------------------------


def consistent(row, window):
    """What each outcome goes with."""
    outcome, verdict = row["outcome"], row["verdict"]
    after = ("loss_after", "loss_expected", "judged_at", "steps_saved", "steps_low", "steps_high")
    if outcome in ("refused", "waited"):
        empty = (*after, "verdict", "loss_before", "loss_right_after")
        return row["horizon"] == 0 and row["reason"] and all(row[name] is None for name in empty)
    if outcome == "pending":
        return row["horizon"] > 0 and verdict is None and all(row[name] is None for name in after)
    if outcome == "kept":
        known = all(math.isfinite(row[name]) for name in after) and not row["reason"]
        within = row["steps_low"] <= row["steps_saved"] <= row["steps_high"]
        return known and within and verdict in ("better", "even", "worse", "unknown")
    lost = row["steps_saved"]
    same = row["steps_low"] == row["steps_high"] == lost
    return same and -window <= lost < 0 and verdict in (None, "harm") and row["reason"]


@pytest.mark.parametrize("horizon", ["adaptive", 5, 1e5])
@pytest.mark.parametrize("ends", [FIRST - 1, FIRST, FIRST + 1, FIRST + 5, 47, 99])
def test_rows_do_not_contradict_themselves(horizon, ends):
    model, optimizer, farcasting = setup(horizon=horizon)
    for step in range(1, ends + 1):
        loss = loops.optimize(model, optimizer, step)
        farcasting.step(loss if not 60 < step < 64 else torch.tensor(math.nan))
        for row in farcasting.history:
            assert consistent(row, 5), row
    farcasting.close()
    for row in farcasting.history:
        assert row["outcome"] != "pending"
        assert consistent(row, 5) or row["reason"] == "the run ended before its verdict", row
    log = farcasting.log()
    assert log["farcasting/jumps"] == log["farcasting/kept"] + log["farcasting/rolled_back"]
    assert all(type(value) is float for value in log.values())


# ---- rewards ------------------------------------------------------------------------------------


def test_a_reward_is_the_mirrored_loss():
    """The same run, judged by the loss and by its negative: the same jumps to the bit."""
    runs = {}
    for maximize in (False, True):
        sign = -1 if maximize else 1
        model = loops.mlp()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        judge = lambda model=model, sign=sign: sign * loops.held_out(model)  # noqa: E731
        farcasting = Farcasting(model, optimizer, judge=judge, maximize=maximize, **FAST)
        loops.run(farcasting, model, optimizer, range(1, 80), judged=True)
        runs[maximize] = loops.weights(model), farcasting
    (weights, losses), (others, rewards) = runs[False], runs[True]
    assert loops.equal(weights, others)
    assert len(losses.history) >= 4
    signs = dict.fromkeys(("loss_before", "loss_right_after", "loss_after", "loss_expected"), -1)
    for row, other in zip(losses.history, rewards.history, strict=True):
        for name in row.keys() - {"seconds"}:
            value = row[name]
            if name in signs and value is not None:
                value = -value
            assert other[name] == value, name
    assert rewards.steps_saved == losses.steps_saved
    assert [(s, -v) for s, v in losses.summary().curve] == rewards.summary().curve


@pytest.mark.parametrize("maximize", [False, True])
def test_losses_of_the_loop_may_be_rewards(maximize):
    """A reward that collapses is harm, a loss that does is none."""
    model, optimizer, farcasting = setup(maximize=maximize, horizon=5)
    for step in range(1, FIRST + 6):
        loops.optimize(model, optimizer, step)
        farcasting.step(1 + 0.01 * (step % 3) if step <= FIRST else -50.0)
    (row,) = farcasting.history
    assert row["outcome"] == ("rolled back" if maximize else "kept")
    assert row["loss_before"] == pytest.approx(1.02)


# ---- jumps that change nothing ------------------------------------------------------------------


def test_jumps_that_change_nothing_are_not_harm():
    """On a quiet run: persistence, at least a hundred jumps."""
    outcomes = []
    for seed in range(6):
        model, optimizer, farcasting = setup(
            seed=seed, forecaster=wfcast.persistence, horizon=10, spacing=10, recovery=10
        )
        quiet = loops.mlp(seed=seed)
        other = torch.optim.Adam(quiet.parameters(), lr=1e-3)
        for step in range(1, 401):
            farcasting.step(loops.optimize(model, optimizer, step))
            loops.optimize(quiet, other, step)
        assert loops.equal(loops.weights(model), loops.weights(quiet))
        outcomes += [row["verdict"] for row in farcasting.history if row["verdict"]]
        saved, low, high = farcasting.steps_saved
        assert low <= saved <= high
    assert len(outcomes) >= 100
    assert "harm" not in outcomes


@pytest.mark.parametrize("store", ["cpu", "device", "disk"])
def test_what_trains_beside_the_jumping_weights_is_taken_back_with_them(store):
    """The first layer is left out of jumps, but its steps after one are undone like the others'."""
    model = loops.mlp()
    optimizer = loops.OPTIMIZERS["adam"](model.parameters())
    farcasting = Farcasting(
        model, optimizer, spacing=5, period=20, recovery=5, horizon=5, exclude="0.*", store=store
    )
    for step in range(1, 21):
        farcasting.step(loops.optimize(model, optimizer, step))
    assert not farcasting.settled
    last = {name: p.detach().clone() for name, p in model.named_parameters()}
    for step in range(21, 24):
        farcasting.step(loops.optimize(model, optimizer, step))
    assert not torch.equal(last["0.weight"], model[0].weight)
    farcasting.close()
    assert torch.equal(last["0.weight"], model[0].weight)
    assert torch.equal(last["0.bias"], model[0].bias)


def test_a_loss_that_a_gradient_scaler_leaves_out_takes_a_jump_back():
    """After a jump to NaN no step is taken any more, and the weights come back all the same."""
    model = loops.mlp()
    optimizer = loops.OPTIMIZERS["sgd"](model.parameters())
    farcasting = Farcasting(model, optimizer, spacing=5, period=20, recovery=5, horizon=5)
    for step in range(1, 21):
        farcasting.step(loops.optimize(model, optimizer, step))
    assert not farcasting.settled
    assert farcasting.step(torch.tensor(math.nan))
    assert farcasting.settled
    assert farcasting.history[-1]["outcome"] == "rolled back"
