"""Verdicts on jumps: what is called harm, and the steps that are said to be saved."""

import numpy as np
import pytest

pytest.importorskip("torch")  # an extra: the module lies in wfcast.torch

from wfcast.torch._verdict import Calibration, total

WINDOW = 50


def run(steps=1000, noise=0.1, seed=0):
    """The training losses of a run: a power law and noise."""
    t = np.arange(1, steps + 1)
    jitter = np.random.default_rng(seed).standard_normal(steps)
    return list(zip(t.tolist(), (t**-0.3 * np.exp(noise * jitter)).tolist(), strict=True))


def null_verdicts(points, first=8 * WINDOW):
    """Of jumps that change nothing, one every two windows."""
    for clock in range(first, len(points) - WINDOW, 2 * WINDOW):
        calibration = Calibration(WINDOW)
        calibration.learn(points[:clock])
        before, after = points[clock - 2 * WINDOW : clock], points[clock + WINDOW // 2 :]
        yield calibration.verdict(before, after[: WINDOW // 2], cap=100)


def test_jumps_that_change_nothing_are_not_called_harm():
    verdicts = [v for seed in range(20) for v in null_verdicts(run(seed=seed))]
    assert len(verdicts) >= 100
    assert sum(v.kind == "harm" for v in verdicts) <= 0.05 * len(verdicts)
    assert sum(v.steps_low <= 0 <= v.steps_high for v in verdicts) >= 0.9 * len(verdicts)


def test_the_sum_of_nothing_contains_zero():
    covered = 0
    for seed in range(20):
        _, low, high = total(null_verdicts(run(seed=seed)))
        covered += low <= 0 <= high
    assert covered >= 17
