"""Verdicts on jumps: what is called harm, and the steps that are said to be saved."""

import json
import math

import numpy as np
import pytest

pytest.importorskip("torch")  # an extra: the module lies in wfcast.torch

from wfcast import WfcastError
from wfcast.torch._verdict import Calibration, Verdict, student, total

WINDOW = 50
FIRST = 200  # the step of the first jump


def power_law(t):
    return t**-0.3


def bent(t):
    """A run that stands still, falls, and goes on slowly."""
    return 0.2 + 2 / (1 + (t / 150) ** 1.5)


def losses(curve=power_law, noise=0.1, seed=0, every=1, correlation=0.0, steps=1200):
    """{step: loss} of a run: a curve times the exponential of noise."""
    jitter = np.random.default_rng(seed).standard_normal(steps)
    for i in range(1, steps if correlation else 0):
        jitter[i] = correlation * jitter[i - 1] + math.sqrt(1 - correlation**2) * jitter[i]
    t = np.arange(1, steps + 1)
    values = curve(t) * np.exp(noise * jitter)
    chosen = slice(every - 1, None, every)
    return dict(zip(t[chosen].tolist(), values[chosen].tolist(), strict=True))


def jump_often(run, gain=0, apart=150, cap=100.0, sign=1.0):
    """Verdicts on jumps that each bring what `gain` steps of the run bring."""
    calibration, clock, since, ahead, verdicts = Calibration(WINDOW), FIRST, 0, 0, []

    def between(first, last):
        return [
            (step - ahead, sign * loss)
            for step, loss in run.items()
            if first <= step - ahead <= last
        ]

    while clock + WINDOW + ahead + gain <= max(run):
        before = between(since, clock)
        calibration.learn(before, sum(v.steps_saved for v in verdicts))
        ahead += gain
        after = between(clock + WINDOW // 2 + 1, clock + WINDOW)
        verdicts.append(calibration.verdict(before, after, cap))
        since, clock = clock + WINDOW, clock + apart
    return verdicts


RUNS = {
    "training losses": {},
    "held-out losses": {"noise": 0.02, "every": 10},
    "correlated": {"noise": 0.03, "correlation": 0.9},
    "bent": {"curve": bent, "noise": 0.05},
    "bent, held-out": {"curve": bent, "noise": 0.01, "every": 10},
}


@pytest.mark.parametrize("run", RUNS.values(), ids=list(RUNS))
def test_jumps_that_change_nothing(run):
    sets = [jump_often(losses(seed=seed, **run), apart=100) for seed in range(12)]
    verdicts = [verdict for each in sets for verdict in each]
    told = [verdict for verdict in verdicts if verdict.steps_low > -100 or verdict.steps_high < 100]
    assert len(verdicts) >= 100
    assert sum(v.kind == "harm" for v in verdicts) <= 0.05 * len(verdicts)
    assert all(v.kind != "unknown" for v in verdicts)
    assert len(told) >= 0.2 * len(verdicts)
    assert sum(v.steps_low <= 0 <= v.steps_high for v in told) >= 0.9 * len(told)
    sums = [total(each) for each in sets]
    assert sum(saved == 0 and low < 0 < high for saved, low, high in sums) >= 11


@pytest.mark.parametrize(
    "run",
    [
        {"noise": 0.02},
        {"noise": 0.005, "every": 10},
        {"curve": lambda t: 0.3 + t**-0.5, "noise": 0.003},
    ],
    ids=["training losses", "held-out losses", "with a floor"],
)
def test_what_jumps_save_is_found_in_sum(run):
    sums = []
    for seed in range(4):
        verdicts = jump_often(losses(seed=seed, **run), gain=100)
        truth = 100 * len(verdicts)
        saved, low, high = total(verdicts)
        assert low <= truth <= high
        assert all(v.kind == "better" for v in verdicts[:2])
        sums.append(saved / truth)
    assert 1 / 1.5 <= np.mean(sums) <= 1.5


def test_rewards_are_judged_as_they_are():
    rewards = losses(lambda t: np.log(t / 100), noise=0, steps=1200)
    jitter = 0.01 * np.random.default_rng(0).standard_normal(1200)
    rewards = {step: r + e for (step, r), e in zip(rewards.items(), jitter, strict=True)}
    assert min(rewards.values()) < 0 < max(rewards.values())
    verdicts = jump_often(rewards, gain=100, cap=150.0, sign=-1.0)
    saved, low, high = total(verdicts)
    assert saved == pytest.approx(100 * len(verdicts), rel=0.3)
    assert low < 100 * len(verdicts) < high
    (none, _, _) = total(jump_often(rewards, sign=-1.0))
    assert none == 0


def judged(factor, run=None, cap=100.0):
    """The verdict on a jump at step 600 that multiplies the losses."""
    points = list((run or losses()).items())
    before = [point for point in points if point[0] <= 600]
    after = [(step, factor * loss) for step, loss in points if 625 < step <= 650]
    return Calibration(WINDOW).verdict(before, after, cap)


@pytest.mark.parametrize(
    ("factor", "kind"),
    [(0.5, "better"), (1.0, "even"), (1.07, "worse"), (1.5, "harm"), (math.nan, "harm")],
)
def test_kinds(factor, kind):
    verdict = judged(factor)
    assert verdict.kind == kind
    if math.isfinite(factor):
        assert verdict.expected == pytest.approx(638**-0.3, rel=0.05)
        assert verdict.after == pytest.approx(factor * 638**-0.3, rel=0.05)
        assert 0.02 < verdict.spread / verdict.expected < 0.06  # 2 % is what noise of 10 % leaves


def test_the_interval_is_of_the_noise():
    verdict = judged(1.0, losses(noise=0.01), cap=math.inf)
    wide = judged(1.0, losses(noise=0.03), cap=math.inf)
    assert verdict.steps_low < 0 < verdict.steps_high
    ratio = (wide.steps_high - wide.steps_low) / (verdict.steps_high - verdict.steps_low)
    assert 2 < ratio < 4


def test_of_a_run_that_stands_still_nothing_is_told():
    still = losses(lambda t: np.ones(len(t)))
    for verdict in (judged(1.0, still), judged(0.5, still)):
        assert verdict.steps_saved == 0
        assert (verdict.steps_low, verdict.steps_high) == (-100, 100)
    assert judged(0.5, still).kind == "better"
    assert judged(1.0, dict.fromkeys(still, 0.0)).kind == "even"


@pytest.mark.parametrize("constant", [0.0, 0.7, -1.0])
def test_losses_that_never_changed_say_nothing_of_a_change(constant):
    points = [(step, constant) for step in range(1, 601)]

    def kind(loss):
        after = [(step, constant) for step in range(626, 650)] + [(650, loss)]
        return Calibration(WINDOW).verdict(points, after, 100).kind

    assert kind(constant) == "even"
    assert kind(constant + 0.01) == kind(constant - 0.01) == "unknown"
    assert kind(math.inf) == "harm"


def at_random(chance, seed, size=1):
    """{step: mean} of `size` that are each -1 with a chance, as rewards of 0 and 1 are judged."""
    drawn = np.random.default_rng(seed).random((2000, size)) < chance
    return {step: float(-row.mean()) for step, row in enumerate(drawn, 1)}


ODD = {
    "hardly ever a reward": lambda seed: at_random(0.01, seed),
    "saturated": lambda seed: at_random(0.97, seed),
    "saturated, of several": lambda seed: at_random(0.99, seed, size=8),
    "mostly exactly 0": lambda seed: {
        step: max(0.0, loss - 1) for step, loss in losses(np.ones_like, 0.5, seed).items()
    },
    "rounded": lambda seed: {
        step: round(loss, 1) for step, loss in losses(noise=0.02, seed=seed, every=10).items()
    },
    "spikes": lambda seed: {
        step: loss * (1 if reward else 5)
        for (step, loss), reward in zip(
            losses(noise=0.03, seed=seed).items(), at_random(0.99, seed).values(), strict=False
        )
    },
}


@pytest.mark.parametrize("run", ODD.values(), ids=list(ODD))
def test_odd_losses_of_jumps_that_change_nothing(run):
    verdicts = [verdict for seed in range(8) for verdict in jump_often(run(seed), apart=100)]
    assert len(verdicts) >= 60
    assert sum(v.kind == "harm" for v in verdicts) <= 0.05 * len(verdicts)
    assert all(v.steps_low <= v.steps_saved <= v.steps_high for v in verdicts)


def test_a_step_after_losses_that_were_all_equal():
    """What forecasts miss then is out of all proportion; it must not overflow."""
    points = [(step, 1.0 if step < 999 else 0.5) for step in range(1, 2001)]
    calibration = Calibration(WINDOW)
    calibration.learn(points[:200])
    verdict = calibration.verdict(points[950:1000], points[1025:1050], 100)
    assert verdict.kind == "even"
    assert math.isfinite(verdict.expected)


def test_an_early_bend_is_not_taken_for_a_late_one():
    """What forecasts miss while the curve is steep says little of its flat end."""
    run = losses(bent, noise=0.02)
    points = list(run.items())
    calibration = Calibration(WINDOW)
    early = calibration.verdict(points[:150], points[175:200], 100)
    late = calibration.verdict(points[:1100], points[1125:1150], 100)
    assert abs(late.after - late.expected) < 2 * late.spread
    assert late.spread / late.expected < 0.3 * early.spread / early.expected


def test_a_run_that_has_shown_too_little():
    before = [(step, 2.0 - 0.01 * step) for step in range(1, 21)]
    calibration = Calibration(WINDOW)
    verdict = calibration.verdict(before, [(60, 1.8), (70, 1.9)], 100)
    assert verdict.kind == "unknown"
    assert (verdict.steps_saved, verdict.steps_low, verdict.steps_high) == (0, -100, 100)
    assert calibration.verdict(before, [(60, 9.0), (70, 9.0)], 100).kind == "harm"
    assert calibration.verdict(before, [(60, math.inf)], 100).kind == "harm"


def test_losses_count_once():
    points = list(losses().items())
    before, after = points[400:600], points[625:650]
    once, often = Calibration(WINDOW), Calibration(WINDOW)
    once.learn(points[:600])
    for end in (100, 350, 350, 600):
        often.learn([(0, math.nan), *points[:end]])
    assert often.verdict(before, after) == once.verdict(before, after)
    once.learn(points[:1200])
    steps = [step for _, known in once.state_dict()["stretches"] for step, _ in known]
    assert len(steps) == len(set(steps)) <= 32 * WINDOW


def test_steps_may_begin_with_0():
    before = [(step, (1 + step) ** -0.3) for step in range(0, 401, 10)]
    verdict = Calibration(WINDOW).verdict(before, [(step, 500**-0.3) for step in (430, 440, 450)])
    assert verdict.kind == "better"
    assert verdict.steps_saved == pytest.approx(60, rel=0.05)


def test_a_state_goes_through_json():
    points = list(losses().items())
    calibration, again = Calibration(WINDOW), Calibration(WINDOW)
    calibration.learn(points[:400])
    calibration.learn(points[450:600], saved=30.0)
    again.load_state_dict(json.loads(json.dumps(calibration.state_dict())))
    before, after = points[500:600], points[625:650]
    assert again.verdict(before, after) == calibration.verdict(before, after)
    assert again.state_dict() == calibration.state_dict()


def test_a_sum_is_as_sure_as_its_parts():
    (verdict,) = jump_often(losses(noise=0.02), apart=2000)
    saved, low, high = total([verdict])
    assert saved == 0
    assert high - low == pytest.approx(2 * 1.96 * math.hypot(verdict.variance**0.5, verdict.shared))
    many = total([verdict] * 9)
    assert 3 * (high - low) < many[2] - many[1] < 9 * (high - low)  # some of it is shared
    assert total([]) == (0, 0, 0)


def test_no_jump_saves_more_than_its_horizon():
    """Nor is it said to, however far the loss fell: a run of 1000 steps is not 4000 older."""
    for cap in (10.0, 100.0):
        verdicts = jump_often(losses(lambda t: np.exp(-t / 300), noise=0.01), gain=100, cap=cap)
        assert max(v.steps_saved for v in verdicts) == cap
        assert all(-cap <= v.steps_low <= v.steps_saved <= v.steps_high <= cap for v in verdicts)
        assert all(v.steps_low < v.steps_high for v in verdicts)  # at the cap, too
        saved, low, high = total(verdicts)
        assert saved == sum(v.steps_saved for v in verdicts)
        assert 0 < low <= saved <= cap * len(verdicts)
        assert high == pytest.approx(2 * saved - low)


def test_lost_steps_come_off_before_the_interval_is_asked():
    def kept(gain):
        return Verdict("better", 1.0, 1.0, 0.1, gain, -10.0, 100.0, 50.0**2, 0.0)

    assert total([kept(60.0)], lost=50.0) == (0, pytest.approx(10 - 98), pytest.approx(10 + 98))
    assert total([kept(100.0)] * 9, lost=50.0)[0] == 850
    assert total([], lost=50.0) == (-50, -50, -50)


def test_too_few_losses():
    with pytest.raises(WfcastError, match="needs two losses before it and one after it, not 1 and"):
        Calibration(WINDOW).verdict([(1, 2.0)], [(60, 2.0)])


def test_students_t():
    stats = pytest.importorskip("scipy.stats")
    for degrees in (3.0, 4.5, 10.0, 100.0):
        for spreads in (1.0, 1.96, 3.0):
            exact = stats.t.isf(stats.norm.sf(spreads), degrees)
            assert student(spreads, degrees) == pytest.approx(exact, rel=0.03)
