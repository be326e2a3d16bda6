"""Parallel loops: every task runs once, in any number of threads."""

import numba
import numpy as np
import pytest
from thread_counts import CORES

from slm_np.kernels.cpu.jit import loop, row


@loop
def count(task, calls, factor, nothing):
    """calls[task] += factor (task + 1)"""
    calls[task] += factor * (task + 1) + nothing.size


@pytest.mark.parametrize("tasks", [0, 1, 2, 3, 7, 1000])
def test_every_task_runs_once(tasks):
    for threads in range(1, CORES + 1):
        numba.set_num_threads(threads)
        calls = np.zeros(max(1, tasks))
        count(tasks, calls, 2.0, np.zeros(0))
        expected = 2.0 * np.arange(1, len(calls) + 1) if tasks else np.zeros(1)
        np.testing.assert_array_equal(calls, expected)


@row
def twice(calls):
    count(3, calls, 1.0, calls[:0])
    count(2, calls, 10.0, calls[:0])


def test_compiled_functions_call_it():
    calls = np.zeros(3)
    twice(calls)
    np.testing.assert_array_equal(calls, [11.0, 22.0, 3.0])
