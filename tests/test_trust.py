"""What jumps may cost: which are shortened, kept or taken back, and how many are tried."""

import logging

import pytest

torch = pytest.importorskip("torch")  # an extra: wfcast itself does without

from wfcast.torch import Farcasting  # noqa: E402
from wfcast.torch._trust import TrustRegion, verdict_on  # noqa: E402

FAST = {"spacing": 5, "period": 10, "recovery": 5}


class Walk:
    """A weight that goes down by one a step: the line through its states is exact.

    `ahead` is how far it is beyond the steps that count, which is what a jump brings.
    """

    def __init__(self, held_out, **parameters):
        self.model = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.zeros_(self.model.weight)
        optimizer = torch.optim.SGD(self.model.parameters(), lr=1.0)
        self.farcasting = Farcasting(
            self.model, optimizer, judge=lambda: held_out(self), **{**FAST, **parameters}
        )
        self._optimizer = optimizer

    @property
    def place(self):
        return -self.model.weight.item()

    @property
    def ahead(self):
        return self.place - self.farcasting._clock

    def go(self, n):
        for _ in range(n):
            self._optimizer.zero_grad()
            self.model.weight.sum().backward()
            self._optimizer.step()
            self.farcasting.step()
        return self


def cliff(at):
    """A loss that falls slowly, up to a point."""
    return lambda walk: 2 - 0.01 * walk.place if walk.place <= at else 5.0


def test_a_jump_that_raises_the_loss_is_halved_at_once():
    walk = Walk(cliff(13)).go(10)  # 20 and 15 are too far
    (entry,) = walk.farcasting.history
    assert walk.place == 12.5
    assert entry["horizon"] == walk.farcasting.horizon == 2.5
    assert entry["loss_right_after"] == pytest.approx(2 - 0.125)
    assert entry["outcome"] == "pending"


def test_a_jump_is_refused_where_halving_does_not_help(caplog):
    walk = Walk(cliff(10.5), patience=3)
    with caplog.at_level(logging.WARNING, "wfcast"):
        walk.go(10)
    (entry,) = walk.farcasting.history
    assert entry["outcome"] == "refused"
    assert entry["reason"].startswith("even 1.25 steps take the held-out loss beyond 2.09")
    assert walk.place == 10  # as if nothing had been tried
    assert walk.farcasting.steps_lost == 0
    assert "jumps of 1.25 steps do not pay" in walk.farcasting.stopped
    assert "Farcasting stopped at step 10" in caplog.text


def test_refused_jumps_count_as_not_paying():
    walk = Walk(cliff(10.5), spacing=1, patience=1).go(10)
    assert walk.farcasting.stopped == "1 jumps in a row did not pay"


def test_a_horizon_that_is_given_is_not_shortened():
    walk = Walk(cliff(13), horizon=10).go(10)
    assert walk.place == 20
    assert walk.farcasting.history[-1]["outcome"] == "pending"


def harmful(walk):
    """Whatever is gained in steps is lost, and a little more."""
    return (1 + walk.farcasting._clock) ** -0.1 * (1.05 if walk.ahead > 0.5 else 1)


@pytest.mark.parametrize("max_loss", [0.03, 0.1])
def test_a_run_of_known_length_loses_no_more_than_stated(max_loss):
    walk = Walk(harmful, stop=200, max_loss=max_loss, patience=99).go(200)
    jumps = [e for e in walk.farcasting.history if e["outcome"] == "rolled back"]
    assert len(jumps) >= (1 if max_loss < 0.1 else 2)
    assert walk.farcasting.steps_lost == 200 - walk.place
    assert walk.farcasting.steps_lost <= max_loss * 200


def test_a_run_of_unknown_length_loses_no_more_than_stated():
    walk = Walk(harmful, max_loss=0.05, patience=99)
    for step in range(1, 401):
        walk.go(1)
        assert walk.farcasting.steps_lost <= max(5, 0.05 * step)
    assert walk.farcasting.steps_lost > 5


def test_the_recovery_window_is_no_longer_than_what_may_be_lost():
    walk = Walk(harmful, stop=200, recovery=50, patience=99).go(200)  # 3 % of 200 are 6
    assert [e["steps_saved"] for e in walk.farcasting.history] == [-6]
    assert walk.farcasting.steps_lost == 6


def test_the_first_jump_comes_after_a_tenth_of_the_run():
    walk = Walk(cliff(1e9), start=10, stop=410, max_loss=0.5).go(60)
    assert walk.farcasting.history[0]["step"] == 50


def test_no_room_for_a_jump(caplog):
    with caplog.at_level(logging.WARNING, "wfcast"):
        walk = Walk(cliff(1e9), stop=30).go(30)
    assert not walk.farcasting.history
    assert "a run of 30 steps has no room" in caplog.text


def test_kept_jumps_widen_and_pay_for_others():
    walk = Walk(lambda walk: (1 + walk.place) ** -0.5, stop=400).go(100)
    outcomes = {e["outcome"] for e in walk.farcasting.history[:-1]}
    horizons = [e["horizon"] for e in walk.farcasting.history]
    assert outcomes == {"kept"}
    assert horizons[:3] == [10, 20, 40]
    assert walk.farcasting.steps_saved > 60


# ---- verdicts -----------------------------------------------------------------------------------

BEFORE = [(step, step**-0.5) for step in range(115, 155, 5)]
SIGNS = (1, -1, -1, 1, -1, 1, 1, -1)  # neither a mean nor a slope
JITTER = [(step, loss * (1 + 0.02 * s)) for (step, loss), s in zip(BEFORE, SIGNS, strict=True)]


@pytest.mark.parametrize(
    ("before", "factor", "kind"),
    [
        (BEFORE, 0.9, "better"),
        (BEFORE, 0.9999, "even"),
        (BEFORE, 1.001, "harm"),
        (BEFORE, float("nan"), "harm"),
        (JITTER, 0.9, "better"),
        (JITTER, 0.985, "even"),  # no more than noise
        (JITTER, 1.015, "worse"),
        (JITTER, 1.1, "harm"),
    ],
)
def test_verdicts(before, factor, kind):
    verdict = verdict_on(before, [(200, 200**-0.5 * factor)], 50, 100)
    assert verdict.kind == kind
    assert verdict.expected == pytest.approx(200**-0.5, rel=0.05)
    assert -50 <= verdict.steps_saved <= 100


def test_steps_saved_is_what_the_line_takes():
    (_, loss), later = (None, 230**-0.5), [(200, 230**-0.5)]
    verdict = verdict_on(BEFORE, later, 50, 100)
    assert loss == verdict.after
    assert verdict.steps_saved == pytest.approx(30, rel=0.2)  # by the progress at step 200


def test_what_falls_behind_is_paid_for():
    region = TrustRegion(10, 1, 100, adaptive=True, window=50, stop=None, max_loss=0.03, patience=4)
    verdict = verdict_on(JITTER, [(200, 200**-0.5 * 1.015)], 50, 100)
    region.learn(verdict, 50)
    assert verdict.kind == "worse"
    assert 0 < region.lost == -verdict.steps_saved < 25
    assert region.horizon == 5
