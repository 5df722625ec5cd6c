"""How far a jump goes: the cosine of a run's halves, the factors of the horizon, and its bounds."""

import math

import numpy as np
import pytest
import reference

torch = pytest.importorskip("torch")  # an extra: the module lies in wfcast.torch

from wfcast.torch import _rule  # noqa: E402  only with it
from wfcast.torch._rule import Movement, Rule, carried_on, momentum_of, rates_of  # noqa: E402
from wfcast.torch._verdict import Verdict  # noqa: E402


def moved(first, middle, last, length=100, momentum=0.0):
    """The Movement of a run over these states, each a list of tensors."""
    a = [m - f for f, m in zip(first, middle, strict=True)]
    b = [e - m for m, e in zip(middle, last, strict=True)]
    sums = [[[np.sum(x * y) for y in pair] for x in pair] for pair in zip(a, b, strict=True)]
    return Movement(length, np.array(sums), np.array([np.sum(e * e) for e in last]), momentum)


def straight(cosine, length=100, size=1e3, momentum=0.0, begin=0):
    """Of one tensor, whose halves have the length 1 and this cosine."""
    sums = np.array([[[1.0, cosine], [cosine, 1.0]]])
    return Movement(length, sums, np.array([size**2]), momentum, begin)


def walk(seed, shapes=((3, 4), (5,), (2, 2), ())):
    """Three states of a run that drifts a little."""
    rng = np.random.default_rng(seed)
    drift = [rng.standard_normal(s) for s in shapes]
    states = [[rng.standard_normal(s) for s in shapes]]
    for _ in range(2):
        states.append(
            [
                w + d + rng.standard_normal(s)
                for w, d, s in zip(states[-1], drift, shapes, strict=True)
            ]
        )
    return states


def verdict(kind):
    return Verdict(kind, 1.0, 1.0, 0.1, 0.0, -1.0, 1.0, 1.0, 0.1)


def rule(horizon=None, longest=math.inf, start=0, stop=None, rates=(1.0,)):
    made = Rule(horizon, longest, start, stop)
    made.watch(list(rates))
    return made


# ---- the movement of a run ----------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_cosine_error_and_speed_are_those_of_the_twin(seed):
    states = walk(seed)
    found = moved(*states)
    want = reference.movement(states)
    assert found.cosine == pytest.approx(want["cosine"], rel=1e-12)
    assert found.error == pytest.approx(want["error"], rel=1e-9)
    assert found.speed * 100 == pytest.approx(want["share"], rel=1e-12)
    np.testing.assert_allclose(found.by_tensor, want["by_tensor"], rtol=1e-12)


def test_a_straight_run_has_cosine_1_and_no_error():
    w = [np.arange(6.0), np.ones((2, 3))]
    found = moved(w, [x + 0.1 for x in w], [x + 0.2 for x in w])
    assert found.cosine == pytest.approx(1)
    assert found.error == pytest.approx(0, abs=1e-9)
    assert moved(w, [x + 0.1 for x in w], w).cosine == pytest.approx(-1)


def test_a_half_that_stands_still_has_no_direction():
    here = [np.arange(6.0), np.zeros(2)]
    there = [w + 1 for w in here]
    for states in ((here, here, here), (here, here, there), (here, there, there)):
        found = moved(*states)
        assert (found.cosine, found.error) == (0, 0)
    assert moved(here, here, here).speed == 0


def test_one_tensor_has_no_error():
    assert moved(*([state[0]] for state in walk(0))).error == 0


def test_a_tensor_that_turns_back_widens_the_error():
    """What one tensor alone says is less sure than what all of them say."""
    alike = [np.ones(4) * k for k in range(4)]
    start = [w * 0 for w in alike]
    same = moved(start, alike, [2 * w for w in alike])
    odd = moved(start, alike, [2 * w for w in alike[:-1]] + [alike[-1] * 0])
    assert same.error == pytest.approx(0, abs=1e-9)
    assert odd.error > 0.3
    assert odd.cosine < same.cosine


# ---- what momentum explains ---------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.9, 0.95])
@pytest.mark.parametrize("half", [1, 2, 7, 50])
def test_what_momentum_carries_on_is_that_of_the_twin(momentum, half):
    assert carried_on(momentum, half) == pytest.approx(
        reference.carried_on(momentum, half), abs=1e-12
    )


@pytest.mark.parametrize(("make", "beta"), [(torch.optim.Adam, 0.9), (torch.optim.SGD, 0.8)])
def test_a_random_walk_does_not_drift_whatever_its_momentum(make, beta):
    """Real optimizers on gradients that are noise, and on noise with a mean."""
    kind = {"betas": (beta, 0.999)} if make is torch.optim.Adam else {"momentum": beta}
    for mean, low, high in ((0.0, -0.1, 0.1), (1.0, 0.6, 1.0)):
        torch.manual_seed(0)
        weights = torch.nn.Parameter(torch.zeros(4000))
        optimizer = make([weights], lr=1e-3, **kind)
        states = []
        for step in range(70):
            if step in (50, 60):
                states.append(weights.detach().double().numpy().copy())
            weights.grad = torch.randn(4000) + mean
            optimizer.step()
        states.append(weights.detach().double().numpy())
        movement = moved(*([state] for state in states), length=20, momentum=beta)
        assert momentum_of(optimizer) == beta
        assert movement.cosine > 0.3
        assert low < movement.drift < high


def test_short_histories_count_together():
    """The mean by lengths over so many as are six memories of the optimizer long."""
    made = rule(rates=[1.0])
    first = straight(0.6, length=40, size=1e9, momentum=0.9)
    second = straight(0.5, length=30, size=1e9, momentum=0.9)
    third = straight(0.7, length=20, size=1e9, momentum=0.9)
    assert made.drift(first) == pytest.approx(first.drift)
    made.jumped(first, 10.0)
    together = (40 * first.drift + 30 * second.drift) / 70
    assert made.drift(second) == pytest.approx(together)
    horizon, _ = made.horizon(70, [1.0], second)
    assert horizon == pytest.approx(_rule.REACH * 30 * together)
    assert made.drift(second) == pytest.approx(together)  # until it has led to a jump
    made.jumped(second, horizon)
    all_three = (40 * first.drift + 30 * second.drift + 20 * third.drift) / 90
    assert made.drift(third) == pytest.approx(all_three)
    long = straight(0.5, length=61, size=1e9, momentum=0.9)
    assert made.drift(long) == pytest.approx(long.drift)


def test_momentum_of_any_optimizer():
    weights = [torch.nn.Parameter(torch.ones(2)) for _ in range(3)]
    assert momentum_of(torch.optim.SGD(weights, lr=0.1)) == 0
    groups = [{"params": weights[:1], "momentum": 0.5}, {"params": weights[1:]}]
    assert momentum_of(torch.optim.RMSprop(groups, lr=0.1)) == 0.5
    assert momentum_of(torch.optim.NAdam(weights, betas=(0.7, 0.9))) == 0.7
    assert momentum_of(torch.optim.Adafactor(weights)) == 0
    assert momentum_of(torch.optim.LBFGS(weights)) == 0


# ---- the factors of the horizon -----------------------------------------------------------------


SOME = 0.3  # a cosine that leads to jumps of less than the most histories


@pytest.mark.parametrize("length", [10, 100, 1000])
@pytest.mark.parametrize("cosine", [_rule.LEAST_NEAR + 1e-9, SOME, 0.7, 1.0])
def test_a_multiple_of_the_history_times_the_cosine(length, cosine):
    horizon, reason = rule().horizon(length, [1.0], straight(cosine, length, size=1e9))
    assert horizon == pytest.approx(length * min(_rule.REACH * cosine, _rule.FARTHEST))
    assert reason == ""


def test_some_jumps_are_shorter_than_the_most():
    assert _rule.REACH * _rule.LEAST_NEAR < _rule.REACH * SOME < _rule.FARTHEST


def test_the_cosine_counts_less_its_standard_error():
    halves = np.array([[[1.0, 0.4], [0.4, 1.0]], [[1.0, 0.3], [0.3, 1.0]]])
    movement = Movement(100, halves, np.array([1e9, 1e9]))
    assert movement.cosine == pytest.approx(0.35)
    assert movement.error > 0.04
    horizon, _ = rule().horizon(100, [1.0], movement)
    assert horizon == pytest.approx(_rule.REACH * 100 * (movement.cosine - movement.error))


@pytest.mark.parametrize(
    ("highest", "now", "factor"),
    [
        ([1e-3], [1e-3], 1),
        ([1e-3], [2.5e-4], 0.25),
        ([1e-3, 4e-3], [1e-3, 1e-3], 0.625),  # the mean over the groups
        ([0.0, 4e-3], [0.0, 1e-3], 0.25),  # one that never moved tells nothing
        ([0.0], [0.0], 1),
    ],
)
def test_the_share_of_the_highest_rate(highest, now, factor):
    made = rule(rates=highest)
    made.watch(now)
    horizon, _ = made.horizon(100, now, straight(SOME, size=1e9))
    assert horizon == pytest.approx(_rule.REACH * 100 * SOME * factor)


def test_a_rate_beyond_the_highest_seen_counts_in_full():
    horizon, _ = rule(rates=[1e-3]).horizon(100, [5e-3], straight(SOME, size=1e9))
    assert horizon == pytest.approx(_rule.REACH * 100 * SOME)


def test_what_is_left_of_the_run():
    for step, factor in ((100, 1), (300, 0.5), (450, 0.125)):
        made = rule(start=100, stop=500)
        horizon, _ = made.horizon(step, [1.0], straight(SOME, size=1e9))
        assert horizon == pytest.approx(_rule.REACH * 100 * SOME * factor)
    horizon, reason = made.horizon(500, [1.0], straight(0.5))
    assert horizon == 0
    assert reason == "what is left of the run or its rate is too little"
    assert made.horizon(600, [1.0], straight(0.5)) == (0.0, reason)


def test_a_rate_that_is_gone_leaves_nothing():
    made = rule(rates=[1e-3])
    horizon, reason = made.horizon(100, [1e-9], straight(0.5))
    assert horizon == 0
    assert "its rate is too little" in reason


# ---- its bounds ---------------------------------------------------------------------------------


@pytest.mark.parametrize("cosine", [-0.5, 0.0, _rule.LEAST_NEAR - 1e-6])
def test_no_jump_where_the_run_does_not_drift(cosine):
    horizon, reason = rule().horizon(100, [1.0], straight(cosine))
    assert horizon == 0
    assert reason == (
        f"the run does not drift enough: {cosine:.3f}, expected at least {_rule.LEAST_NEAR}; two "
        f"halves of 50 steps have the cosine c = {cosine:.3f} with the error e = 0.000, momentum "
        "alone gives m = 0.000, and drift is (c - e - m) / (1 - m)"
    )
    assert rule().horizon(100, [1.0], straight(_rule.LEAST_NEAR + 1e-6))[0] > 0


def test_a_cosine_within_its_error_of_the_bound_is_none():
    halves = np.array([[[1.0, 0.9], [0.9, 1.0]], [[1.0, -0.4], [-0.4, 1.0]]])
    movement = Movement(100, halves, np.array([1e6, 1e6]))
    assert movement.cosine == pytest.approx(0.25)
    assert movement.error > 0.1
    assert rule().horizon(100, [1.0], movement)[0] == 0


def test_weights_that_have_come_far_must_drift_more():
    """All that the histories and the jumps moved counts, against the norm."""
    between = (_rule.LEAST_NEAR + _rule.LEAST_FAR) / 2
    size = math.sqrt(2 + 2 * between) / _rule.NEAR  # the move over one history is just that share
    for far, jumps in ((1.001, True), (0.999, False)):
        movement = straight(between, size=far * size)
        assert (rule().horizon(100, [1.0], movement)[0] > 0) == jumps
    assert rule().horizon(100, [1.0], straight(_rule.LEAST_FAR + 1e-6, size=10.0))[0] > 0
    made, clock, way, speed = rule(), 0, 0.0, straight(between, size=10 * size).speed
    while way + speed * 100 <= _rule.NEAR:
        movement = straight(between, size=10 * size, begin=clock)
        horizon, reason = made.horizon(100, [1.0], movement)
        assert horizon > 100
        made.jumped(movement, horizon)
        way += speed * (100 + horizon)
        clock += 100
    horizon, reason = made.horizon(100, [1.0], straight(between, size=10 * size, begin=clock))
    assert horizon == 0
    come = made._come(straight(between, size=10 * size, begin=clock))
    assert f"at least {_rule.LEAST_FAR}, as the weights have come {come:.0%} of their" in reason


def test_a_jump_that_is_taken_back_is_no_way():
    """The history before it is."""
    between = (_rule.LEAST_NEAR + _rule.LEAST_FAR) / 2
    made, movement = rule(), straight(between, size=300.0)
    for begin in range(0, 5000, 100):
        movement = straight(between, size=300.0, begin=begin)
        horizon, _ = made.horizon(100, [1.0], movement)
        if not horizon:
            break
        made.jumped(movement, horizon)
        made.taken_back()
        made.taken_back()  # there is nothing more to take back
    come = movement.speed * (begin + 100)
    assert _rule.NEAR < come < _rule.NEAR + 2 * movement.speed * 100


def test_steps_that_no_history_saw_are_way_too():
    """Those before `start`, and those of a history that was given up."""
    between = (_rule.LEAST_NEAR + _rule.LEAST_FAR) / 2
    size = math.sqrt(2 + 2 * between) / _rule.NEAR * 5  # a fifth of the way in one history
    for begin, jumps in ((0, True), (300, True), (500, False)):
        movement = straight(between, size=size, begin=begin)
        assert (rule().horizon(begin + 100, [1.0], movement)[0] > 0) == jumps


def test_the_reason_says_what_the_mean_is_of():
    made = rule()
    made.jumped(straight(0.3, length=40, momentum=0.9), 10.0)
    _, reason = made.horizon(80, [1.0], straight(-0.5, length=40, momentum=0.9, begin=40))
    assert "in the mean over the last 80 steps, expected" in reason


def test_lora_factors_never_come_far():
    sums = np.array([[[1.0, 0.5], [0.5, 1.0]]])
    made = rule()
    for begin in range(0, 500, 100):
        movement = Movement(100, sums, np.array([0.0]), begin=begin)
        horizon, _ = made.horizon(100, [1.0], movement)
        assert horizon > 100
        made.jumped(movement, horizon)


@pytest.mark.parametrize("size", [10.0, 50.0])
def test_no_jump_goes_further_than_a_share_of_the_weights(size):
    movement = straight(1.0, size=size)
    horizon, _ = rule().horizon(100, [1.0], movement)
    assert horizon < _rule.REACH * 100
    assert horizon * 2 / 100 == pytest.approx(_rule.LARGEST * size)  # two steps of 1 in 100


def test_no_jump_goes_further_than_the_forecaster():
    assert rule(longest=7).horizon(100, [1.0], straight(0.5))[0] == 7
    assert rule(20, longest=7).horizon(100, [1.0], None) == (7, "")
    assert rule(5, longest=7).horizon(100, [1.0], None) == (5, "")


def test_no_jump_of_less_than_a_step():
    assert rule(longest=0.9).horizon(100, [1.0], straight(0.5))[0] == 0
    assert rule(longest=1.0).horizon(100, [1.0], straight(0.5))[0] == 1


def test_a_horizon_that_is_given_asks_for_no_movement():
    made = rule(30, stop=500)
    assert made.horizon(499, [1e-9], None) == (30, "")
    assert made.horizon(499, [1e-9], straight(-1.0)) == (30, "")


# ---- verdicts -----------------------------------------------------------------------------------


def test_what_is_behind_makes_jumps_shorter_and_ends_them():
    made, horizons = rule(), []
    while not made.stopped:
        horizons.append(made.horizon(100, [1.0], straight(1.0, size=1e9))[0])
        made.learn(verdict("worse"))
    np.testing.assert_allclose(np.diff(np.log2(horizons)), -1)
    assert horizons[-1] == pytest.approx(_rule.SHORTEST * horizons[0])
    assert made.stopped == "jumps, and shorter ones after them, were behind the run without them"


def test_what_is_ahead_makes_them_longer_again():
    made = rule()
    for kind, share in (("worse", 0.5), ("worse", 0.25), ("better", 0.5), ("better", 1)):
        made.learn(verdict(kind))
        assert made.share == share


@pytest.mark.parametrize("kind", ["better", "even", "unknown"])
def test_other_verdicts_change_nothing(kind):
    made = rule()
    before = made.state_dict()
    for _ in range(100):
        made.learn(verdict(kind))
    assert made.state_dict() == before


def test_harm_ends_the_jumps():
    made = rule()
    made.learn(verdict("harm"))
    assert (made.harms, made.share, made.stopped) == (1, 0.25, "")
    made.blame()
    assert made.stopped == f"{_rule.MOST_HARMS} jumps had to be taken back"


def test_a_horizon_that_is_given_is_not_shortened_but_ended():
    made = rule(30)
    for _ in range(9):
        made.learn(verdict("worse"))
    assert made.horizon(100, [1.0], None) == (30, "")
    made.learn(verdict("harm"))
    assert made.horizon(100, [1.0], None) == (30, "")
    made.learn(verdict("harm"))
    assert made.stopped


# ---- what it goes by ----------------------------------------------------------------------------


def test_rates_of_any_optimizer():
    weights = [torch.nn.Parameter(torch.ones(2)) for _ in range(3)]
    groups = [
        {"params": weights[:1], "lr": 0.5},
        {"params": weights[1:2], "lr": torch.tensor(0.25)},
    ]
    optimizer = torch.optim.Adam(groups, capturable=False, foreach=False)
    assert rates_of(optimizer) == [0.5, 0.25]
    without = torch.optim.LBFGS(weights)
    del without.param_groups[0]["lr"]
    assert rates_of(without) == [1.0]


def test_groups_that_come_begin_anew():
    made = rule(rates=[4.0])
    made.watch([2.0, 1.0])
    horizon, _ = made.horizon(100, [1.0, 1.0], straight(SOME, size=1e9))
    assert horizon == pytest.approx(_rule.REACH * 100 * SOME * 0.75)


def test_a_rule_goes_on_from_its_state():
    made = rule(rates=[4.0], stop=1000)
    made.learn(verdict("harm"))
    again = Rule(None, math.inf, 0, 1000)
    again.load_state_dict(made.state_dict())
    assert again.state_dict() == made.state_dict()
    movement = moved(*walk(1))
    assert again.horizon(300, [1.0], movement) == made.horizon(300, [1.0], movement)
