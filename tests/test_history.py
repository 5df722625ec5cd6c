"""What a summary says of a run with jumps: why there were not more, each reason once."""

import math

import pytest

import wfcast

torch = pytest.importorskip("torch")  # an extra: wfcast itself does without
plt = pytest.importorskip("matplotlib.pyplot")  # the same

import loops  # noqa: E402  only with them

from wfcast.torch import Farcasting  # noqa: E402

FAST = {"spacing": 5, "period": 10, "recovery": 5}
FIRST = 20  # the step of the first jump then


def setup(**parameters):
    model = loops.mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return model, optimizer, Farcasting(model, optimizer, **{**FAST, **parameters})


def run(farcasting, model, optimizer, steps, loss_at=lambda step, loss: loss, every=None):
    """`every`: the weights are looked at every so many steps."""
    for step in steps:
        loss = loops.optimize(model, optimizer, step)
        farcasting.step(loss_at(step, loss), room=None if every is None else -step % every)


def said(farcasting):
    """The summary in one line, and its lines."""
    text = str(farcasting.summary())
    return " ".join(text.split()), text.splitlines()


# ---- reasons ------------------------------------------------------------------------------------


def test_refusals_for_one_reason_are_one_line(caplog):
    model, optimizer, farcasting = setup(judge=lambda: math.nan)
    run(farcasting, model, optimizer, range(1, 61))
    text, lines = said(farcasting)
    reason = "the judge gave NaN, at step 2 first, and a jump could not be judged by that"
    assert [row["step"] for row in farcasting.history] == [20, 30, 40, 50, 60]
    assert {row["reason"] for row in farcasting.history} == {reason}
    assert f"20 to 60, refused: {reason}" in text
    assert sum("refused" in line for line in lines) == 2  # of the table, and its reason
    assert "20 to 60, refused" in farcasting._repr_html_()
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("lost", "maximize", "message"),
    [
        (math.nan, False, "a loss was NaN, at step 12 first"),
        (math.inf, False, "a loss was inf, at step 12 first"),
        (-math.inf, True, "a loss was -inf, at step 12 first"),
    ],
)
def test_a_loss_that_was_lost_is_told_by_its_step(lost, maximize, message):
    model, optimizer, farcasting = setup(maximize=maximize)
    run(
        farcasting,
        model,
        optimizer,
        range(1, FIRST + 1),
        lambda step, loss: lost if step in (12, 15) else loss.item(),
    )
    assert farcasting.history[0]["reason"].startswith(message)


def test_lost_losses_are_told_by_the_step_after_a_jump_was_taken_back():
    """Steps that were taken back count as calls of step() do."""
    model, optimizer, farcasting = setup(horizon=1e5)
    run(
        farcasting,
        model,
        optimizer,
        range(1, 80),
        lambda step, loss: math.nan if step in (41, 43) else loss.item(),
    )
    back, refused = farcasting.history[:2]
    assert (back["outcome"], refused["outcome"]) == ("rolled back", "refused")
    assert "at step 41 first" in refused["reason"]


def test_every_row_without_a_jump_has_its_reason_in_the_summary():
    model, optimizer, farcasting = setup(horizon=1e5)
    run(farcasting, model, optimizer, range(1, 60))
    model, optimizer, waiting = setup(stop=300)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.01)  # which is soon left far behind
    run(waiting, model, optimizer, range(1, 61))
    for one, outcome in ((farcasting, "rolled back"), (waiting, "waited")):
        text, lines = said(one)
        rows = [row for row in one.history if row["outcome"] == outcome]
        assert rows
        for row in rows:
            assert row["reason"]
            assert f"{row['step']}, {outcome}: {row['reason']}" in text
        table = next(k for k, line in enumerate(lines) if line.startswith("----"))
        below = lines[table + 1 + len(one.history) :]
        assert max(map(len, below)) <= 80


def test_a_missing_loss_is_reported_once(caplog):
    model, optimizer, farcasting = setup()
    with pytest.warns(UserWarning, match="too few losses to judge a jump by") as warned:
        run(farcasting, model, optimizer, range(1, 61), lambda step, loss: None)
    assert len(warned) == 1
    assert not caplog.records
    assert "20 to 60, refused: there are too few losses" in said(farcasting)[0]


def test_losses_that_end_are_logged(caplog):
    """Nothing warned of them when the run began."""
    model, optimizer, farcasting = setup(recovery=20, period=40)
    run(farcasting, model, optimizer, range(1, 90), lambda step, loss: 1.0 if step == 1 else None)
    assert "too few losses to judge a jump by" in caplog.text


@pytest.mark.parametrize("horizon", [15, 40, "adaptive"])
def test_a_horizon_that_is_cut_to_the_fit_says_so(horizon, monkeypatch):
    from wfcast.torch import _rule

    monkeypatch.setattr(_rule, "LEAST_FAR", 0.0)
    monkeypatch.setattr(_rule, "LARGEST", 10.0)
    operator = wfcast.linear_trend((0, 5), (20,))
    model, optimizer, farcasting = setup(forecaster=operator, horizon=horizon)
    run(farcasting, model, optimizer, range(1, FIRST + 8))
    (row,) = farcasting.history
    assert row["horizon"] == 15
    cut = "its horizon was cut to 15 steps, as far as the forecaster reaches"
    assert row["reason"] == ("" if horizon == 15 else cut)
    assert (f"20, kept: {cut}" in said(farcasting)[0]) == (horizon != 15)


# ---- no room ------------------------------------------------------------------------------------


def test_looks_that_are_too_close_are_blamed():
    model, optimizer, farcasting = setup(horizon=3)
    run(farcasting, model, optimizer, range(1, 60), every=5)
    message = (
        "no jump is possible: the weights are looked at every 5 steps, as room tells, which counts "
        "down to the next look, and its verdict takes 5 steps: save and evaluate every 6 steps or "
        "less often, or lower recovery"
    )
    assert farcasting.hindrance == message
    assert not farcasting.stopped
    assert message in said(farcasting)[0]
    assert farcasting.summary().to_dict()["hindrance"] == message
    run(farcasting, model, optimizer, range(60, 100), every=20)  # they become rarer
    assert farcasting.hindrance == ""
    assert farcasting.history[0]["outcome"] == "kept"


def test_looks_of_two_kinds_leave_room_between_them():
    """A save and an evaluation soon after it are close, and the next pair is far."""
    model, optimizer, farcasting = setup(horizon=3)
    looks = [20, 23, 40, 43, 60, 63, 80, 83, 100]
    for step in range(1, 100):
        loss = loops.optimize(model, optimizer, step)
        farcasting.step(loss, room=min(look for look in looks if look >= step) - step)
        assert farcasting.hindrance == ""
    assert [row["step"] for row in farcasting.history][:2] == [24, 34]


def test_looks_that_are_too_close_are_blamed_at_the_end_too():
    model, optimizer, farcasting = setup(stop=60)
    run(farcasting, model, optimizer, range(1, 61), every=5)
    assert farcasting.stopped == farcasting.hindrance
    assert "stopped: no jump is possible: the weights are looked at every 5" in said(farcasting)[0]


def test_looks_with_room_leave_the_blame_to_the_end():
    model, optimizer, farcasting = setup(stop=104, horizon=3)
    for step in range(1, 105):
        loss = loops.optimize(model, optimizer, step)
        farcasting.step(loss, room=min(-step % 50, 104 - step))
    assert farcasting.hindrance == ""
    assert farcasting.stopped == (
        "too few steps are left before step 104, where jumps end: the next one could come at step "
        "101, its verdict 5 steps later"
    )


def test_the_end_without_verdicts():
    model, optimizer, farcasting = setup(stop=25, recovery=0, horizon=3)
    run(farcasting, model, optimizer, range(1, 26))
    assert farcasting.stopped == (
        "too few steps are left before step 25, where jumps end: the next one could come at step 30"
    )


# ---- the plot -----------------------------------------------------------------------------------


def drawn(farcasting):
    ax = farcasting.plot()
    labels = ax.get_legend_handles_labels()[1]
    plt.close(ax.figure)
    return ax.get_title(loc="left"), labels


def test_a_plot_names_what_came_of_jumps():
    model, optimizer, farcasting = setup(horizon=20)
    run(farcasting, model, optimizer, range(1, 40))
    assert drawn(farcasting)[1] == ["run", "kept", "heading for"]
    model, optimizer, farcasting = setup(horizon=1e5)
    run(farcasting, model, optimizer, range(1, 40))
    title, labels = drawn(farcasting)
    assert labels == ["run", "rolled back"]
    assert title.startswith("jumps")


def test_a_plot_without_jumps_or_without_losses():
    model, optimizer, farcasting = setup()
    run(farcasting, model, optimizer, range(1, 10))
    assert drawn(farcasting) == ("no jumps", ["run"])
    model, optimizer, farcasting = setup(recovery=0)
    run(farcasting, model, optimizer, range(1, 12), lambda step, loss: None)
    assert farcasting.history[0]["outcome"] == "kept"
    assert drawn(farcasting)[1] == []
