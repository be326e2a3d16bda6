"""The GPU's selective scan, short convolution and linear recurrence against the float64 oracle, at sizes that fill no block, in every order of threads."""

import numpy as np
import pytest
import reference as ref
from cuda_emulator import emulating
from fake_cupy import cupy  # noqa: F401  the fixture

from slm_np.dtypes import BF16
from slm_np.kernels.gpu import convolution, recurrence, scan

pytestmark = pytest.mark.usefixtures("cupy")
FLOATS = pytest.mark.parametrize(
    "dtype, tolerance", [(np.float64, 1e-12), (np.float32, 3e-6)], ids=["float64", "float32"]
)
ORDERS = [dict(order="forward"), dict(order="reversed"), dict(order="shuffled", seed=1)]


def normal(*shape, seed=0, scale=1.0, dtype=np.float32):
    return (scale * np.random.default_rng([seed, *shape]).standard_normal(shape)).astype(dtype)


def near(found, expected, tolerance):
    assert found.shape == expected.shape and np.abs(found - expected).max() <= tolerance * max(
        1e-3, np.abs(expected).max()
    )


def on_device(kernel, *arrays):
    """Run a kernel on copies; what the arrays (None is none) then hold."""
    import cupy

    there = [x if x is None or not isinstance(x, np.ndarray) else cupy.asarray(x) for x in arrays]
    kernel(*there)
    return [cupy.asnumpy(x) for x in there if x is not None and not isinstance(x, int)]


def in_every_order(run):
    """What `run` gives, having seen that the order of threads and blocks changes no bit of it."""
    found = []
    for order in ORDERS:
        with emulating(**order):
            found.append(run())
    for other in found[1:]:
        for one, same in zip(found[0], other):
            np.testing.assert_array_equal(one, same)
    return found[0]


# The selective scan


def scan_inputs(batch, steps, channels, states, rank, dtype=np.float32):
    one = [
        normal(batch, steps, n, seed=i, dtype=dtype)
        for i, n in enumerate((channels, channels, rank + 2 * states, 2 * channels))
    ]
    a_log = np.log(np.arange(1, states + 1))[:, None] + 0.3 * normal(states, channels)
    return [
        *one,
        a_log.astype(dtype),
        normal(channels, dtype=dtype),
        normal(batch, states, channels, seed=7, dtype=dtype),
        normal(batch, steps, channels, seed=8, dtype=dtype),
    ]


def scanned(x, delta, selected, projected, a_log, skip, first, dout, begun=1.0):
    """([out, every gradient], the states that are kept); what is added to a parameter's gradient, which is `begun` before."""
    (batch, steps, channels), states = x.shape, len(a_log)
    x, delta, selected, projected = (a.reshape(batch * steps, -1) for a in (x, delta, selected, projected))
    kept = np.full((batch, scan.selective_scan_chunks(steps) + 1, states, channels), np.nan, x.dtype)
    scratch, parts = (
        np.full(shape, np.nan, x.dtype)
        for shape in (
            scan.selective_scan_scratch(channels, states, batch),
            scan.selective_scan_partials(batch, steps, channels, states),
        )
    )
    kept[:, 0] = first
    out, kept, *_ = on_device(
        scan.selective_scan_forward, np.full_like(x, np.nan), kept, scratch, x, delta, selected, projected, a_log, skip
    )
    dselected = np.full_like(selected, np.nan)
    dselected[:, : -2 * states] = 5
    dx, delta, dselected, dprojected, da_log, dskip, *_ = on_device(
        scan.selective_scan_backward,
        np.full_like(x, np.nan),
        delta,
        dselected,
        projected,
        np.full_like(a_log, begun),
        np.full_like(skip, begun),
        parts,
        scratch,
        dout.reshape(x.shape),
        kept,
        x,
        selected,
        a_log,
        skip,
    )
    np.testing.assert_array_equal(dprojected[:, :channels], projected[:, :channels])
    assert (dselected[:, : -2 * states] == 5).all()
    dprojected[:, :channels], dselected[:, : -2 * states] = 0, 0
    return [
        out,
        dx,
        delta,
        dselected,
        dprojected,
        da_log - a_log.dtype.type(begun),
        dskip - skip.dtype.type(begun),
    ], kept


CHUNK, WIDE = scan.CHUNK, scan.WIDE
SCANS = [
    (2, 5, 3, 2, 1),
    (1, 1, 1, 1, 1),
    (3, 1, 7, 1, 2),
    (2, CHUNK, 5, 4, 1),
    (1, CHUNK + 1, WIDE + 3, 3, 1),
    (2, 3 * CHUNK - 1, 17, 5, 2),
    (1, 70, 2 * WIDE, 16, 1),
    (2, 20, 33, 35, 1),
]


@pytest.mark.parametrize("shape", SCANS, ids=["x".join(map(str, shape)) for shape in SCANS])
@FLOATS
def test_scan_is_the_oracles(shape, dtype, tolerance):
    *inputs, dout = scan_inputs(*shape, dtype)
    found, kept = scanned(*inputs, dout)
    (out, history), gradients = ref.selective_scan(*inputs), ref.selective_scan_backward(dout, *inputs)
    for one, other in zip(found, (out, *gradients)):
        near(one.reshape(other.shape), other, tolerance)
    for place, time in enumerate([*range(0, shape[1], CHUNK), shape[1]]):
        near(kept[:, place], history[:, time], tolerance)


@pytest.mark.parametrize("shape", [(2, 21, 37, 16, 1), (3, 5, 3, 19, 2)], ids=str)
def test_scan_has_the_same_bits_in_every_order(shape):
    inputs = scan_inputs(*shape)
    in_every_order(lambda: scanned(*inputs)[0])


@pytest.mark.parametrize("delta", [-100.0, -20.0, 0.0, 30.0, 1e4])
def test_scan_at_the_ends_of_its_steps(delta):
    """A step of nearly no time keeps the state, an endless one forgets it; nothing overflows."""
    x, _, *rest, dout = scan_inputs(1, 20, 20, 3, 1)
    inputs = [x, np.full_like(x, delta), *rest]
    for one, other in zip(
        scanned(*inputs, dout, begun=0.0)[0],
        (ref.selective_scan(*inputs)[0], *ref.selective_scan_backward(dout, *inputs)),
    ):
        near(one.reshape(other.shape), other, 1e-5)


@pytest.mark.parametrize(
    "name, place, column, remembered",
    [("x", 0, 3, True), ("delta", 1, 3, True), ("B", 2, 2, True), ("C", 2, -1, False), ("gate", 3, -1, False)],
)
def test_scan_keeps_nan(name, place, column, remembered):
    *inputs, dout = scan_inputs(2, 20, 20, 3, 1)
    clean, _ = scanned(*inputs, dout)
    inputs[place][0, 17, column] = np.nan
    found, _ = scanned(*inputs, dout)
    out = found[0].reshape(2, 20, 20)
    np.testing.assert_array_equal(out[0, :17], clean[0].reshape(out.shape)[0, :17])
    assert np.isnan(out[0, 17]).any() and np.isnan(out[0, 18:]).any() == remembered
    for one, other in zip(found[:5], clean[:5]):  # the other text knows nothing of it
        np.testing.assert_array_equal(one[20:], other[20:])


def test_scan_keeps_infinity():
    """Neither states that fill up a warp's four nor lanes without a channel turn it into NaN."""
    *inputs, dout = scan_inputs(1, 6, 5, 3, 1)
    inputs[0][0, 2, 1], inputs[3][0, 2:, 5:] = np.inf, 1.0
    with np.errstate(invalid="ignore"):
        expected, _ = ref.selective_scan(*inputs)
    np.testing.assert_array_equal(np.isinf(scanned(*inputs, dout)[0][0]), np.isinf(expected.reshape(6, 5)))
    *inputs, dout = scan_inputs(1, 6, 5, 3, 1)
    inputs[2][0, 2, 1] = np.inf  # of B: dC is an infinite state, times dy, summed over the channels
    inputs[0][...], dout[...], inputs[3][...] = 1.0, 1.0, 1.0
    dselected = scanned(*inputs, dout)[0][3]
    with np.errstate(invalid="ignore"):
        expected = ref.selective_scan_backward(dout, *inputs)[2].reshape(dselected.shape)
    assert np.isinf(expected).any()
    np.testing.assert_array_equal(np.isinf(dselected), np.isinf(expected))


# The convolution


def convolved(x, past, weight, bias, dout):
    """(out, dx, dweight - 1, dbias - 1, what dout becomes); x gets columns that are not the convolution's."""
    (batch, steps, channels), rows = x.shape, x.shape[0] * x.shape[1]
    wide = np.concatenate((x, normal(batch, steps, 3, seed=5, dtype=x.dtype)), axis=2).reshape(rows, -1)
    out, *_ = on_device(
        convolution.convolution_forward, np.full((rows, channels), np.nan, x.dtype), wide, past, weight, bias
    )
    dx, dweight, dbias, _, again, *_ = on_device(
        convolution.convolution_backward,
        wide,
        np.ones_like(weight),
        np.ones_like(bias),
        np.full_like(out, np.nan),
        dout.reshape(rows, -1),
        past,
        weight,
        bias,
    )
    np.testing.assert_array_equal(dx[:, channels:], wide[:, channels:])
    return [out.reshape(x.shape), dx[:, :channels].reshape(x.shape), dweight - 1, dbias - 1, again.reshape(x.shape)]


def convolution_inputs(batch, steps, channels, size, dtype=np.float32):
    return [
        normal(*s, dtype=dtype)
        for s in ((batch, steps, channels), (batch, size - 1, channels), (size, channels), (channels,))
    ] + [normal(batch, steps, channels, seed=1, dtype=dtype)]


# Texts of one span, of several, shorter than the filter and in groups, of one row; fewer rows than sums.
CONVOLUTIONS = [
    (2, 7, 5, 4),
    (1, 1, 1, 4),
    (2, 2, 70, 5),
    (1, 9, 130, 1),
    (2, 100, 33, 4),
    (11, 3, 5, 4),
    (40, 1, 3, 2),
    (3, 70, 2, 20),
]


@pytest.mark.parametrize("shape", CONVOLUTIONS, ids=str)
@FLOATS
def test_convolution_is_the_oracles(shape, dtype, tolerance):
    *inputs, dout = convolution_inputs(*shape, dtype)
    out, *gradients, again = convolved(*inputs, dout)
    near(out, ref.convolution(*inputs), tolerance)
    for found, expected in zip(gradients, ref.convolution_backward(dout, *inputs)):
        near(found, expected, tolerance)
    np.testing.assert_array_equal(again, out)


def test_spans_are_long_enough_for_their_sums():
    for batch in range(1, 30):
        for steps in range(1, 80):
            for taps in (1, 2, 4, 9):
                groups, pieces = convolution.spans(batch, steps, taps)
                texts = np.diff(np.arange(groups + 1) * batch // groups)
                rows = np.diff(np.arange(pieces + 1) * steps // pieces)
                assert groups * pieces == 1 or texts.min() * rows.min() >= 2 * taps
                assert pieces == 1 or (texts == 1).all()


def test_convolution_has_the_same_bits_in_every_order():
    for shape in ((2, 70, 33, 4), (11, 3, 5, 4)):
        inputs = convolution_inputs(*shape)
        in_every_order(lambda: convolved(*inputs))


def test_convolution_keeps_nan():
    *inputs, dout = convolution_inputs(2, 70, 5, 4)
    clean = convolved(*inputs, dout)
    inputs[0][0, 69, 3] = np.nan
    found = convolved(*inputs, dout)
    assert np.isnan(found[0][0, 69, 3]) and np.isnan(found[0]).sum() == 1
    assert np.isnan(found[1][0, 66:70, 3]).all() and np.isnan(found[1]).sum() == 4
    assert np.isnan(found[2][:, 3]).all() and np.isnan(found[2]).sum() == 4 and np.isnan(found[3]).sum() == 1
    np.testing.assert_array_equal(found[1][1], clean[1][1])


# The linear recurrence


def slow_walk(states, weight, backwards):
    states, weight = states.astype(np.float64), weight.astype(np.float64)
    for t in range(len(states) - 1):
        here, before, step = (-2 - t, -1 - t, weight.T) if backwards else (t + 1, t, weight)
        states[here] += states[before] @ step
    return states


def walked(states, weight, backwards):
    (_, batch, width), kernel = (
        states.shape,
        recurrence.linear_recurrence_backward if backwards else recurrence.linear_recurrence_forward,
    )
    return on_device(
        kernel, states, np.full(recurrence.linear_recurrence_scratch(batch, width), np.nan, states.dtype), weight
    )[0]


def walk_inputs(steps, batch, width, dtype=np.float32):
    return normal(steps + 1, batch, width, dtype=dtype), normal(width, width, scale=width**-0.5, dtype=dtype)


BLOCK = recurrence.BLOCK
WALKS = [
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


@pytest.mark.parametrize("backwards", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("steps, batch, width", WALKS)
@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-13), (np.float32, 4e-6)], ids=["float64", "float32"])
def test_walk_is_the_slow_one(steps, batch, width, dtype, tolerance, backwards):
    states, weight = walk_inputs(steps, batch, width, dtype)
    found = walked(states, weight, backwards)
    assert found.dtype == dtype
    near(found, slow_walk(states, weight, backwards), tolerance)
    given = -1 if backwards else 0
    np.testing.assert_array_equal(found[given], states[given])


def test_steps_that_fill_a_gpu_are_walked_one_by_one(monkeypatch):
    states, weight = walk_inputs(50, 3, 20)
    blocks = walked(states, weight, False)
    monkeypatch.setattr(recurrence, "TILES", 1)
    steps = walked(states, weight, False)
    near(blocks, steps, 2e-6)
    assert (blocks != steps).any()


def test_walk_in_blocks_errs_no_more_than_numpy():
    """Its error over 100 steps, as a share of NumPy's own in float32; the spectral radius of A is about 1, so that errors come a long way."""
    states, weight = walk_inputs(100, 16, 96)
    for backwards in (False, True):
        plain = states.copy()
        for t in range(100):
            here, before, step = (-2 - t, -1 - t, weight.T) if backwards else (t + 1, t, weight)
            plain[here] += plain[before] @ step
        exact = slow_walk(states, weight, backwards)
        assert np.linalg.norm(walked(states, weight, backwards) - exact) <= 1.5 * np.linalg.norm(plain - exact)


def test_missing_numbers_stay_with_their_text_and_its_future():
    states, weight = walk_inputs(40, 5, 20)
    clean = walked(states, weight, False)
    states[21, 3, 7] = np.nan
    found = walked(states, weight, False)
    others = np.arange(5) != 3
    near(found[:, others], clean[:, others], 1e-6)
    near(found[:21], clean[:21], 1e-6)
    assert np.isnan(found[22:, 3]).all()


# The order of rows


def stored(x, dtype):
    if dtype != BF16:
        return x.astype(dtype)
    bits = x.astype(np.float32).view(np.uint32).astype(np.uint64)
    return (bits + 0x7FFF + (bits >> 16 & 1) >> 16).astype(BF16)


def exact(x):
    return (x.astype(np.uint32) << 16).view(np.float32) if x.dtype == BF16 else x


F32, F16, F64 = map(np.dtype, (np.float32, np.float16, np.float64))


@pytest.mark.parametrize("steps, batch, columns", [(1, 1, 1), (5, 3, 7), (4, 1, 33), (1, 6, 2)])
@pytest.mark.parametrize(
    "number, operand", [(F32, F32), (F64, F64), (F32, BF16), (F32, F16), (BF16, BF16), (F16, F16)], ids=str
)
def test_time_major_and_back(steps, batch, columns, number, operand, cupy):  # noqa: F811
    """`number`: the stream's type; `operand`: that of the turned rows."""
    x, residual = (stored(normal(batch, steps, columns, seed=seed), number) for seed in (0, 1))
    wide = F64 if number == F64 else F32
    back, summed = (cupy.asarray(stored(np.full((batch * steps, columns), np.nan), number)) for _ in range(2))
    for first, last in ((0, steps // 2), (steps // 2, steps)):
        if first == last:
            continue
        turned = cupy.asarray(stored(np.full((last - first, batch, columns), np.nan), operand))
        recurrence.time_major(turned, cupy.asarray(x.reshape(-1, columns)), first)
        np.testing.assert_array_equal(cupy.asnumpy(turned), stored(exact(x[:, first:last].swapaxes(0, 1)), operand))
        y = cupy.asarray(exact(x[:, first:last].swapaxes(0, 1)).astype(wide))
        recurrence.batch_major(back, y, None, first)
        recurrence.batch_major(summed, y, cupy.asarray(residual.reshape(-1, columns)), first)
    np.testing.assert_array_equal(cupy.asnumpy(back), x.reshape(-1, columns))
    np.testing.assert_array_equal(
        cupy.asnumpy(summed),
        stored((exact(x).astype(wide) + exact(residual).astype(wide)), number).reshape(-1, columns),
    )


# All of it in a graph


def test_scan_and_walk_are_captured_and_replayed(cupy):  # noqa: F811
    """No allocation and no waiting for the device after the first call; a replayed graph gives the same bits."""
    batch, steps, channels, states = 2, 40, 5, 3
    *arrays, first, dout = scan_inputs(batch, steps, channels, states, 1)
    x, delta, selected, projected, a_log, skip = (
        cupy.asarray(a.reshape(batch * steps, -1) if a.ndim == 3 else a) for a in arrays
    )
    dout, dselected, da_log, dskip, out, dx = (
        cupy.asarray(dout.reshape(x.shape)),
        *map(cupy.zeros_like, (selected, a_log, skip, x, x)),
    )
    kept, parts = (
        cupy.zeros((batch, scan.selective_scan_chunks(steps) + 1, states, channels), x.dtype),
        cupy.zeros(scan.selective_scan_partials(batch, steps, channels, states), x.dtype),
    )
    past, weight, bias, room = (
        cupy.asarray(normal(*shape)) for shape in ((batch, 3, channels), (4, channels), (channels,), x.shape)
    )
    dweight, dbias, walk, square = (
        cupy.zeros_like(weight),
        cupy.zeros_like(bias),
        *map(cupy.asarray, walk_inputs(steps, batch, channels)),
    )
    powers, turned = (
        cupy.zeros(recurrence.linear_recurrence_scratch(batch, channels), x.dtype),
        cupy.zeros((steps, batch, channels), x.dtype),
    )

    def step():
        convolution.convolution_forward(x, projected, past, weight, bias)
        scan.selective_scan_forward(out, kept, None, x, delta, selected, projected, a_log, skip)
        scan.selective_scan_backward(
            dx, delta, dselected, projected, da_log, dskip, parts, None, dout, kept, x, selected, a_log, skip
        )
        convolution.convolution_backward(projected, dweight, dbias, room, dx, past, weight, bias)
        recurrence.time_major(turned, dx, 0)
        recurrence.linear_recurrence_forward(walk, powers, square)
        recurrence.linear_recurrence_backward(walk, powers, square)
        recurrence.batch_major(dx, walk[1:], dx, 0)

    state = [x, delta, projected, dselected, da_log, dskip, out, dx, kept, dweight, dbias, turned, walk]
    begin = [a.copy() for a in state]
    step()
    once = [cupy.asnumpy(a) for a in state]
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        step()
        graph = stream.end_capture()
        for a, before in zip(state, begin):
            a[...] = before
        graph.launch(stream)
        stream.synchronize()
        for a, expected in zip(state, once):
            np.testing.assert_array_equal(cupy.asnumpy(a), expected)
