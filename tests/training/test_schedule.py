"""The learning rate over a run."""

import math

import numpy as np
import pytest

from slm_np.config import TrainConfig
from slm_np.training.schedule import learning_rate


def rate(schedule, progress, step=10**6, warmup=0):
    config = TrainConfig(learning_rate=1.0, min_lr=0.1, warmup_iters=warmup, lr_schedule=schedule)
    return learning_rate(config, step, progress)


@pytest.mark.parametrize(
    "schedule, points",
    [
        ("constant", {0: 1, 0.5: 1, 1: 1}),
        ("cosine", {0: 1, 0.25: 0.1 + 0.9 * (0.5 + math.sqrt(0.125)), 0.5: 0.55, 1: 0.1}),
        ("linear", {0: 1, 0.25: 0.775, 0.5: 0.55, 1: 0.1}),
        ("stable-decay", {0: 1, 0.5: 1, 0.8: 1, 0.9: 0.55, 1: 0.1}),
    ],
)
def test_schedules(schedule, points):
    for progress, expected in points.items():
        assert rate(schedule, progress) == pytest.approx(expected, rel=1e-12), progress
    assert rate(schedule, -1) == rate(schedule, 0) and rate(schedule, 7) == rate(schedule, 1)
    rates = [rate(schedule, i / 200) for i in range(201)]
    assert all(0.1 - 1e-12 <= b <= a <= 1 for a, b in zip(rates, rates[1:]))


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear", "stable-decay"])
def test_warmup_rises_linearly_to_the_peak(schedule):
    rates = [rate(schedule, 0.0, step, warmup=4) for step in range(6)]
    np.testing.assert_allclose(rates, [0.2, 0.4, 0.6, 0.8, 1.0, 1.0], rtol=1e-12)
    assert rate(schedule, 0.0, 0, warmup=0) == 1
