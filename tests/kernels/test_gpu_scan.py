"""The GPU's selective scan, convolution and linear recurrence, at sizes around the boundaries of their blocks.

It covers orders of threads, NaN and infinity, 16-bit types, and captured graphs beyond
tests/kernels/test_kernel_sets.py.
"""

import kernel_cases
import numpy as np
import pytest
from cuda_emulator import emulating
from fake_cupy import cupy  # noqa: F401  a fixture
from gpu_cases import assert_as_numpy, case_id
from kernel_cases import Kernels, normal
from sixteen_bit import F16, exact, stored

from slm_np.dtypes import BF16
from slm_np.kernels import gpu
from slm_np.kernels import numpy as numpy_kernels
from slm_np.kernels.gpu import convolution, recurrence, scan

F32, F64 = map(np.dtype, (np.float32, np.float64))
ORDERS = [dict(order="forward"), dict(order="reversed"), dict(order="shuffled", seed=1)]


def assert_same_bits_in_every_order(arrays, case):
    """The order of threads and blocks changes no bit of the results."""
    results = []
    for order in ORDERS:
        with emulating(**order):
            results.append(Kernels(gpu, F32, start=1, arrays=arrays).results(case))
    for other in results[1:]:
        for name, x in results[0].items():
            np.testing.assert_array_equal(other[name], x, name)


def results(arrays, case, **changes):
    """The GPU's results in float32 with some inputs replaced; sums start at zero."""
    return Kernels(gpu, F32, arrays=arrays).results(case, case.inputs | changes)


# The selective scan

CHUNK, CHANNELS = scan.CHUNK, scan.CHANNELS
SCANS = [
    kernel_cases.selective_scan(*shape)  # (batch, steps, channels, states, rank)
    for shape in (
        (2, CHUNK, 5, 4, 1),
        (1, CHUNK + 1, CHANNELS + 3, 3, 1),
        (2, 3 * CHUNK - 1, 17, 5, 2),
        (1, 70, 2 * CHANNELS, 16, 1),
        (2, 20, 33, 35, 1),
    )
]


@pytest.mark.parametrize("case", SCANS, ids=case_id)
def test_scan_is_numpys(cupy, case):  # noqa: F811
    assert_as_numpy(cupy, case)


@pytest.mark.parametrize("steps", [1, CHUNK, 3 * CHUNK - 1])
def test_scan_saves_the_states_before_every_chunk(cupy, steps):  # noqa: F811
    batch, channels, states = 2, 17, 5
    inputs = kernel_cases.selective_scan(batch, steps, channels, states, 2).inputs
    names = "x", "delta", "ssm_parameters", "projected", "A_log", "D"

    def saved(kernels, steps):
        """The states that forward over so many steps saves."""
        rows = {
            name: x.reshape(batch, -1, x.shape[1])[:, :steps].reshape(-1, x.shape[1]) if name in names[:4] else x
            for name, x in inputs.items()
        }
        x, *rest = (kernels.array(rows[name]) for name in names)
        h = kernels.empty((batch, kernels.selective_scan_chunks(steps) + 1, states, channels))
        h[:, 0] = kernels.array(inputs["first"])
        scratch = kernels.empty(kernels.selective_scan_scratch(channels, states, batch))
        kernels.selective_scan_forward(kernels.empty(x.shape), h, scratch, x, *rest)
        return kernels.numpy(h)

    found = saved(Kernels(gpu, F64, arrays=cupy), steps)
    for chunk, step in enumerate([*range(0, steps, CHUNK), steps]):
        expected = saved(Kernels(numpy_kernels, F64), step)[:, -1] if step else inputs["first"]
        np.testing.assert_allclose(found[:, chunk], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(2, 21, 37, 16, 1), (3, 5, 3, 19, 2)], ids=str)
def test_scan_has_the_same_bits_in_every_order(cupy, shape):  # noqa: F811
    assert_same_bits_in_every_order(cupy, kernel_cases.selective_scan(*shape))


@pytest.mark.parametrize("delta", [-100.0, -20.0, 0.0, 30.0, 1e4])
def test_scan_with_extreme_time_steps(cupy, delta):  # noqa: F811
    """A time step near zero keeps the state, an endless one forgets it. Nothing overflows."""
    case = kernel_cases.selective_scan(1, 20, 20, 3, 1)
    changed = case.inputs | dict(delta=np.full_like(case.inputs["delta"], delta))
    expected = Kernels(numpy_kernels, F64).results(case, changed)
    for name, x in Kernels(gpu, F32, arrays=cupy).results(case, changed).items():
        assert np.abs(x - expected[name]).max() <= 1e-5 * max(1e-3, np.abs(expected[name]).max()), name


@pytest.mark.parametrize(
    "name, column, persists",
    [
        ("x", 3, True),
        ("delta", 3, True),
        ("ssm_parameters", 2, True),  # B
        ("ssm_parameters", -1, False),  # C
        ("projected", -1, False),  # the gate
    ],
    ids=["x", "delta", "B", "C", "gate"],
)
def test_nan_in_a_scan_reaches_only_its_sequences_future(cupy, name, column, persists):  # noqa: F811
    """Sequence 0 has NaN at step 17 of 20. It persists where it enters the state."""
    case = kernel_cases.selective_scan(2, 20, 20, 3, 1)
    changed = case.inputs[name].copy()
    changed[17, column] = np.nan
    clean, found = results(cupy, case), results(cupy, case, **{name: changed})
    np.testing.assert_array_equal(found["out"][:17], clean["out"][:17])
    assert np.isnan(found["out"][17]).any() and np.isnan(found["out"][18:20]).any() == persists
    for result in ("out", "dx", "ddelta", "dssm_parameters", "dprojected"):
        np.testing.assert_array_equal(found[result][20:], clean[result][20:])


def test_infinity_in_a_scan_stays_infinity(cupy):  # noqa: F811
    """Padding states and lanes without a channel do not turn it into NaN."""
    case = kernel_cases.selective_scan(1, 6, 5, 3, 1)
    inputs = {name: x.copy() for name, x in case.inputs.items()}
    inputs["x"][2, 1], inputs["projected"][2:, 5:] = np.inf, 1.0
    with np.errstate(invalid="ignore"):
        expected = Kernels(numpy_kernels, F64).results(case, inputs)
    np.testing.assert_array_equal(np.isinf(results(cupy, case, **inputs)["out"]), np.isinf(expected["out"]))
    inputs = {name: x.copy() for name, x in case.inputs.items()}
    inputs["ssm_parameters"][2, 1] = np.inf  # B: dC is an infinite state times dy, summed over the channels
    inputs["x"][...], inputs["dout"][...], inputs["projected"][...] = 1.0, 1.0, 1.0
    with np.errstate(invalid="ignore"):
        expected = Kernels(numpy_kernels, F64).results(case, inputs)["dssm_parameters"]
    found = results(cupy, case, **inputs)["dssm_parameters"]
    assert np.isinf(expected).any()
    np.testing.assert_array_equal(np.isinf(found), np.isinf(expected))


# The convolution

# (batch, steps, channels, taps): one span, several, sequences shorter than the filter, alone and in groups, and of one
# row
CONVOLUTIONS = [
    kernel_cases.convolution(*shape) for shape in ((2, 2, 70, 5), (11, 3, 5, 4), (40, 1, 3, 2), (3, 70, 2, 20))
]


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=case_id)
def test_convolution_is_numpys(cupy, case):  # noqa: F811
    assert_as_numpy(cupy, case)


def test_spans_are_long_enough_for_their_sums():
    for batch in range(1, 30):
        for steps in range(1, 80):
            for taps in (1, 2, 4, 9):
                groups, segments = convolution.spans(batch, steps, taps)
                sequences = np.diff(np.arange(groups + 1) * batch // groups)
                rows = np.diff(np.arange(segments + 1) * steps // segments)
                assert groups * segments == 1 or sequences.min() * rows.min() >= 2 * taps
                assert segments == 1 or (sequences == 1).all()


@pytest.mark.parametrize("shape", [(2, 70, 33, 4), (11, 3, 5, 4)], ids=str)
def test_convolution_has_the_same_bits_in_every_order(cupy, shape):  # noqa: F811
    assert_same_bits_in_every_order(cupy, kernel_cases.convolution(*shape))


def test_nan_in_a_convolution_reaches_only_its_window(cupy):  # noqa: F811
    """Channel 3 of sequence 0 has NaN at its last step, 69."""
    case = kernel_cases.convolution(2, 70, 5, 4)
    x = case.inputs["x"].copy()
    x[69, 3] = np.nan
    clean, found = results(cupy, case), results(cupy, case, x=x)
    for name, n_nan in (("out", 1), ("dx", 4), ("dweight", 4), ("dbias", 1)):
        assert np.isnan(found[name]).sum() == n_nan, name
    assert np.isnan(found["out"][69, 3]) and np.isnan(found["dx"][66:70, 3]).all()
    assert np.isnan(found["dweight"][:, 3]).all()
    np.testing.assert_array_equal(found["dx"][70:], clean["dx"][70:])


# The linear recurrence

BLOCK = recurrence.BLOCK
RECURRENCES = [
    (1, 1, 1),
    (5, 1, 7),
    (9, 3, 33),
    (2 * BLOCK - 1, 2, 5),
    (2 * BLOCK, 3, 17),
    (2 * BLOCK + 1, 1, 1),
    (3 * BLOCK + 5, 4, 30),
    (100, 16, 96),
    (6 * BLOCK, 70, 8),
]


def loop_over_time(states, weight, backward, dtype=np.float64):
    """The recurrence, one step at a time."""
    states, weight = states.astype(dtype), weight.astype(dtype)
    for t in range(len(states) - 1):
        target, source, step = (-2 - t, -1 - t, weight.T) if backward else (t + 1, t, weight)
        states[target] += states[source] @ step
    return states


def run_recurrence(arrays, states, weight, backward):
    """The GPU's states."""
    _, batch, width = states.shape
    kernel = gpu.linear_recurrence_backward if backward else gpu.linear_recurrence_forward
    device_states = arrays.asarray(states)
    scratch = arrays.full(gpu.linear_recurrence_scratch(batch, width), np.nan, states.dtype)
    kernel(device_states, scratch, arrays.asarray(weight))
    return arrays.asnumpy(device_states)


def recurrence_inputs(steps, batch, width, dtype=F32):
    """States and a weight with a spectral radius of about 1, which keeps errors alive."""
    return normal(steps + 1, batch, width).astype(dtype), normal(width, width, scale=width**-0.5).astype(dtype)


def assert_close(found, expected, tolerance):
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * max(1e-3, np.abs(expected).max())


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("steps, batch, width", RECURRENCES)
@pytest.mark.parametrize("dtype, tolerance", [(F64, 1e-13), (F32, 4e-6)], ids=["float64", "float32"])
def test_recurrence_is_a_loop_over_time(cupy, steps, batch, width, dtype, tolerance, backward):  # noqa: F811
    states, weight = recurrence_inputs(steps, batch, width, dtype)
    found = run_recurrence(cupy, states, weight, backward)
    assert found.dtype == dtype
    assert_close(found, loop_over_time(states, weight, backward), tolerance)
    unchanged = -1 if backward else 0
    np.testing.assert_array_equal(found[unchanged], states[unchanged])


def test_steps_that_fill_a_gpu_are_not_combined(cupy, monkeypatch):  # noqa: F811
    states, weight = recurrence_inputs(50, 3, 20)
    by_blocks = run_recurrence(cupy, states, weight, False)
    monkeypatch.setattr(recurrence, "TILES", 1)
    by_steps = run_recurrence(cupy, states, weight, False)
    assert_close(by_blocks, by_steps, 2e-6)
    assert (by_blocks != by_steps).any()


def test_recurrence_by_blocks_is_as_precise_as_numpy(cupy):  # noqa: F811
    states, weight = recurrence_inputs(100, 16, 96)
    for backward in (False, True):
        precise, single = (loop_over_time(states, weight, backward, dtype) for dtype in (np.float64, np.float32))
        found = run_recurrence(cupy, states, weight, backward)
        assert np.linalg.norm(found - precise) <= 1.5 * np.linalg.norm(single - precise)


def test_nan_in_a_recurrence_reaches_only_its_sequences_future(cupy):  # noqa: F811
    states, weight = recurrence_inputs(40, 5, 20)
    clean = run_recurrence(cupy, states, weight, False)
    states[21, 3, 7] = np.nan
    found = run_recurrence(cupy, states, weight, False)
    others = np.arange(5) != 3
    assert_close(found[:, others], clean[:, others], 1e-6)
    assert_close(found[:21], clean[:21], 1e-6)
    assert np.isnan(found[22:, 3]).all()


# The order of rows


@pytest.mark.parametrize("steps, batch, columns", [(1, 1, 1), (5, 3, 7), (4, 1, 33), (1, 6, 2)])
@pytest.mark.parametrize(
    "dtype, time_dtype", [(F32, F32), (F64, F64), (F32, BF16), (F32, F16), (BF16, BF16), (F16, F16)], ids=str
)
def test_time_major_round_trip(cupy, steps, batch, columns, dtype, time_dtype):  # noqa: F811
    """dtype: of the rows by batch.   time_dtype: of the rows by time. The two halves of the steps are moved in turn."""
    x, residual = (stored(normal(batch, steps, columns, seed=seed), dtype) for seed in (0, 1))
    accumulation_dtype = F64 if dtype == F64 else F32
    back, summed = (cupy.asarray(stored(np.full((batch * steps, columns), np.nan), dtype)) for _ in range(2))
    for start, stop in ((0, steps // 2), (steps // 2, steps)):
        if start == stop:
            continue
        part = exact(x[:, start:stop].swapaxes(0, 1))
        by_time = cupy.asarray(stored(np.full((stop - start, batch, columns), np.nan), time_dtype))
        gpu.time_major(by_time, cupy.asarray(x.reshape(-1, columns)), start)
        np.testing.assert_array_equal(cupy.asnumpy(by_time), stored(part, time_dtype))
        y = cupy.asarray(part.astype(accumulation_dtype))
        gpu.batch_major(back, y, None, start)
        gpu.batch_major(summed, y, cupy.asarray(residual.reshape(-1, columns)), start)
    np.testing.assert_array_equal(cupy.asnumpy(back), x.reshape(-1, columns))
    expected = exact(x).astype(accumulation_dtype) + exact(residual).astype(accumulation_dtype)
    np.testing.assert_array_equal(cupy.asnumpy(summed), stored(expected, dtype).reshape(-1, columns))


# In a captured graph


def test_recurrences_are_captured_and_replayed(cupy):  # noqa: F811
    """After the first call nothing allocates or synchronizes. A replayed graph gives the same bits."""
    batch, steps, channels, states = 2, 40, 5, 3
    inputs = kernel_cases.selective_scan(batch, steps, channels, states, 1).inputs
    x, delta, ssm_parameters, projected, A_log, D, dout = (
        cupy.asarray(inputs[name]) for name in ("x", "delta", "ssm_parameters", "projected", "A_log", "D", "dout")
    )
    out, dx, dssm_parameters, dA_log, dD = map(cupy.zeros_like, (x, x, ssm_parameters, A_log, D))
    saved = cupy.zeros((batch, gpu.selective_scan_chunks(steps) + 1, states, channels), F32)
    partials = cupy.zeros(gpu.selective_scan_partials(batch, steps, channels, states), F32)
    past, weight, bias, scratch = (
        cupy.asarray(normal(*shape)) for shape in ((batch, 3, channels), (4, channels), (channels,), x.shape)
    )
    dweight, dbias = cupy.zeros_like(weight), cupy.zeros_like(bias)
    h, transition = map(cupy.asarray, recurrence_inputs(steps, batch, channels))
    powers = cupy.zeros(gpu.linear_recurrence_scratch(batch, channels), F32)
    by_time = cupy.zeros((steps, batch, channels), F32)

    def step():
        gpu.convolution_forward(x, projected, past, weight, bias)
        gpu.selective_scan_forward(
            out,
            saved,
            None,
            x,
            delta,
            ssm_parameters,
            projected,
            A_log,
            D,
        )
        gpu.selective_scan_backward(
            dx,
            delta,
            dssm_parameters,
            projected,
            dA_log,
            dD,
            partials,
            None,
            dout,
            saved,
            x,
            ssm_parameters,
            A_log,
            D,
        )
        gpu.convolution_backward(projected, dweight, dbias, scratch, dx, past, weight, bias)
        gpu.time_major(by_time, dx, 0)
        gpu.linear_recurrence_forward(h, powers, transition)
        gpu.linear_recurrence_backward(h, powers, transition)
        gpu.batch_major(dx, h[1:], dx, 0)

    arrays = [x, delta, projected, dssm_parameters, dA_log, dD, out, dx, saved, dweight, dbias, by_time, h]
    before = [array.copy() for array in arrays]
    step()
    expected = [cupy.asnumpy(array) for array in arrays]
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        step()
        graph = stream.end_capture()
        for array, initial in zip(arrays, before):
            array[...] = initial
        graph.launch(stream)
        stream.synchronize()
        for array, once in zip(arrays, expected):
            np.testing.assert_array_equal(cupy.asnumpy(array), once)
