"""The CPU's dense linear recurrence: precision, independence of sequences, windows, layout."""

import numpy as np
import pytest
from kernel_cases import Kernels, linear_recurrence, normal

from slm_np.kernels import cpu as cpu_kernels
from slm_np.kernels import numpy as numpy_kernels

pytestmark = pytest.mark.usefixtures("one_thread")
SINGLE, DOUBLE = Kernels(cpu_kernels, np.float32), Kernels(numpy_kernels, np.float64)
SIZES = [(1, 1, 1), (1, 8, 32), (5, 1, 7), (9, 3, 33), (6, 16, 64), (4, 13, 70), (3, 24, 257), (2, 7, 600)]  # T, B, S


def forward(states, weight):
    """The states H of one window."""
    states, (_, batch, width) = states.copy(), states.shape
    scratch = np.full(cpu_kernels.linear_recurrence_scratch(batch, width), np.nan, states.dtype)
    cpu_kernels.linear_recurrence_forward(states, scratch, weight)
    return states


def inputs(steps, batch, width):
    """states (T + 1, B, S) with H before the window and the U, and A (S, S) with a spectral radius of about 1."""
    return normal(steps + 1, batch, width), normal(width, width, scale=width**-0.5)


@pytest.mark.parametrize("steps, batch, width", SIZES)
@pytest.mark.parametrize("dtype, tolerance", [(np.float32, 2e-6), (np.float64, 1e-14)], ids=["float32", "float64"])
def test_linear_recurrence_equals_numpys(steps, batch, width, dtype, tolerance):
    case = linear_recurrence(steps, batch, width)
    found, expected = Kernels(cpu_kernels, dtype, start=1).results(case), DOUBLE.results(case)
    for name, x in expected.items():
        start = name in case.sums
        assert found[name].dtype == dtype
        assert np.abs(found[name] - start - x).max() <= tolerance * np.abs(x + start).max()


def test_float32_errors_over_100_steps_are_no_larger_than_numpys():
    case = linear_recurrence(100, 16, 96)
    case.inputs["weight"] = normal(96, 96, scale=96**-0.5)  # a spectral radius of about 1: errors persist
    exact, single = DOUBLE.results(case), Kernels(numpy_kernels, np.float32).results(case)
    for name, x in SINGLE.results(case).items():
        assert np.linalg.norm(x - exact[name]) <= 1.5 * np.linalg.norm(single[name] - exact[name])


def test_a_sequence_has_the_same_states_in_any_batch():
    states, weight = inputs(6, 19, 40)
    whole = forward(states, weight)
    for some in (slice(0, 1), slice(3, 11), slice(18, 19), slice(8, 16)):
        np.testing.assert_array_equal(forward(np.ascontiguousarray(states[:, some]), weight), whole[:, some])


def test_windows_one_after_the_other_have_the_states_of_one_window():
    states, weight = inputs(12, 5, 40)
    whole, continued = forward(states, weight), states.copy()
    for start, stop in ((0, 1), (1, 6), (6, 12)):
        continued[start : stop + 1] = forward(continued[start : stop + 1], weight)
    np.testing.assert_array_equal(continued, whole)


def test_nan_stays_in_its_sequence():
    states, weight = inputs(4, 19, 40)
    clean = forward(states, weight)
    states[2, 17, 3] = np.nan
    found, others = forward(states, weight), np.arange(19) != 17
    np.testing.assert_array_equal(found[:, others], clean[:, others])
    np.testing.assert_array_equal(found[:2], clean[:2])
    assert np.isnan(found[3:, 17]).all()


@pytest.mark.parametrize("steps, batch, columns", [(1, 1, 1), (5, 3, 7), (4, 1, 33), (1, 6, 2)])
def test_time_major_round_trip(steps, batch, columns):
    x, residual = normal(batch, steps, columns), normal(batch, steps, columns, seed=1)
    back, added = np.full((2, batch * steps, columns), np.nan, np.float32)
    for start, stop in ((0, steps // 2), (steps // 2, steps)):
        by_time = np.full((stop - start, batch, columns), np.nan, np.float32)
        cpu_kernels.time_major(by_time, x.reshape(-1, columns), start)
        np.testing.assert_array_equal(by_time, x[:, start:stop].swapaxes(0, 1))
        cpu_kernels.batch_major(back, by_time, None, start)
        cpu_kernels.batch_major(added, by_time, residual.reshape(-1, columns), start)
    np.testing.assert_array_equal(back, x.reshape(-1, columns))
    np.testing.assert_array_equal(added, (x + residual).reshape(-1, columns))
