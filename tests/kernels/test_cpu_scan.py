"""The CPU's selective scan: sizes at the edges of its chunks of steps and groups of channels, extreme steps, NaN."""

import numpy as np
import pytest
from kernel_cases import Kernels, selective_scan

from slm_np.kernels import cpu as cpu_kernels
from slm_np.kernels import numpy as numpy_kernels
from slm_np.kernels.cpu.scan import CHUNK, GROUP, PASS
from slm_np.kernels.numpy.scan import scan

pytestmark = pytest.mark.usefixtures("one_thread")
SINGLE, DOUBLE = Kernels(cpu_kernels, np.float32), Kernels(numpy_kernels, np.float64)

SHAPES = [  # batch, steps, channels, states, rank
    (1, 1, 1, 1, 1),
    (3, 1, 7, 1, 2),
    (2, CHUNK, 5, PASS, 1),
    (1, CHUNK + 1, GROUP + 3, 3, 1),
    (2, 3 * CHUNK - 1, 17, PASS + 1, 2),
    (1, 70, 2 * GROUP, 16, 1),
]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=["x".join(map(str, shape)) for shape in SHAPES])
both_types = pytest.mark.parametrize(
    "dtype, tolerance", [(np.float64, 1e-12), (np.float32, 3e-6)], ids=["float64", "float32"]
)


def scan_case(batch, steps, channels, states, rank, **inputs):
    """A case with the decay rates of a trained Mamba. inputs: other inputs by name"""
    case = selective_scan(batch, steps, channels, states, rank)
    A_log = np.log(np.arange(1, states + 1))[:, None] + 0.3 * case.inputs["A_log"]
    return case._replace(inputs={**case.inputs, "A_log": A_log.astype(np.float32), **inputs})


def assert_near(found, expected, tolerance):
    assert np.abs(found - expected).max() <= tolerance * max(1e-3, np.abs(expected).max())


def assert_all_near(found, expected, tolerance):
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        assert_near(found[name], x, tolerance)


@both_types
@every_shape
def test_selective_scan_equals_numpys(shape, dtype, tolerance):
    case = scan_case(*shape)
    assert_all_near(Kernels(cpu_kernels, dtype).results(case), DOUBLE.results(case), tolerance)


@both_types
@every_shape
def test_forward_saves_the_state_before_every_chunk(shape, dtype, tolerance):
    batch, steps, channels, n_states, _ = shape
    inputs = {name: x.astype(dtype) for name, x in scan_case(*shape).inputs.items()}
    first, out = inputs.pop("first"), np.empty_like(inputs.pop("dout"))
    states = np.full((batch, cpu_kernels.selective_scan_chunks(steps) + 1, n_states, channels), np.nan, dtype)
    states[:, 0] = first
    scratch = np.full(cpu_kernels.selective_scan_scratch(channels, n_states, batch), np.nan, dtype)
    cpu_kernels.selective_scan_forward(out, states, scratch, **inputs)
    *_, expected = scan(first[:, None].astype(np.float64), **{name: x.astype(float) for name, x in inputs.items()})
    for index, step in enumerate([*range(0, steps, CHUNK), steps]):
        assert_near(states[:, index], expected[step], tolerance)


@pytest.mark.parametrize("delta", [-100.0, -20.0, 0.0, 30.0, 1e4])
def test_selective_scan_of_extreme_time_steps(delta):
    """A step of almost no time keeps the state, a very long one erases it; nothing overflows."""
    case = scan_case(1, 40, 20, 3, 1, delta=np.full((40, 20), delta, np.float32))
    assert_all_near(SINGLE.results(case), DOUBLE.results(case), 1e-5)


@pytest.mark.parametrize(
    "name, column, remembered",
    [
        ("x", 3, True),
        ("delta", 3, True),
        pytest.param("ssm_parameters", 2, True, id="B"),
        pytest.param("ssm_parameters", -1, False, id="C"),
        pytest.param("projected", -1, False, id="gate"),
    ],
)
def test_selective_scan_propagates_nan(name, column, remembered):
    """It reaches later steps only through the state, which C and the gate do not enter."""
    case = scan_case(1, 40, 20, 3, 1)
    case.inputs[name][35, column] = np.nan
    out = SINGLE.results(case)["out"]
    assert np.isfinite(out[:35]).all() and np.isnan(out[35]).any() and np.isnan(out[36:]).any() == remembered
