"""The GPU's attention beyond tests/kernels/test_kernel_sets.py.

It covers heads of several chunks, 16-bit types, orders of threads, causality, NaN and decoding.
"""

import itertools
import math

import numpy as np
import pytest
from cuda_emulator import ORDERS, emulating
from fake_cupy import cupy, real  # noqa: F401  cupy is a fixture
from gpu_cases import assert_as_numpy, case_id
from kernel_cases import attention as attention_case
from kernel_cases import normal
from sixteen_bit import F16, exact, stored

from slm_np.dtypes import BF16
from slm_np.kernels import gpu
from slm_np.kernels import numpy as numpy_kernels
from slm_np.kernels.gpu import attention
from slm_np.kernels.numpy.dropout import dropout_mask

F32, F64 = map(np.dtype, (np.float32, np.float64))


def ids(shapes):
    return ["x".join(map(str, shape)) for shape in shapes]


def inputs(batch, steps, heads, kv_heads, width, dtype=F32):
    """(qkv, dout)"""
    qkv, dout = normal(batch * steps, (heads + 2 * kv_heads) * width), normal(batch * steps, heads * width, seed=1)
    return stored(qkv, dtype), stored(dout, dtype)


def run_attention(
    arrays,
    qkv,
    dout,
    heads,
    kv_heads,
    steps,
    dropout=None,
    window=0,
    scale=None,
):
    """The GPU's (out, lse, dqkv) as stored. All memory that it writes is NaN before."""
    real_dtype, tasks = F64 if qkv.dtype == F64 else F32, len(qkv) // steps * heads

    def empty(shape, dtype):
        x = arrays.empty(shape, dtype)
        x.view(np.uint8).fill(0xFF)
        return x

    scratch = empty(gpu.attention_scratch(steps, dout.shape[1] // heads, tasks), real_dtype)
    out, lse = empty(dout.shape, qkv.dtype), empty((tasks, steps), real_dtype)
    dqkv, dout = arrays.asarray(qkv), arrays.asarray(dout)
    settings = heads, kv_heads, steps, dropout, window, scale
    gpu.attention_forward(out, lse, scratch, dqkv, *settings)
    scratch.view(np.uint8).fill(0xFF)
    gpu.attention_backward(dqkv, scratch, dout, out, lse, *settings)
    return tuple(arrays.asnumpy(x) for x in (out, lse, dqkv))


def reference_attention(
    qkv,
    dout,
    heads,
    kv_heads,
    steps,
    dropout=None,
    window=0,
    scale=None,
    rounding=lambda x: x,
):
    """(out, lse, dqkv) in float64, where `rounding` is applied to all inputs of matmuls and to the results."""
    batch, width, group = len(qkv) // steps, dout.shape[1] // heads, heads // kv_heads
    q, k, v = (
        part.reshape(batch, steps, -1, width).swapaxes(1, 2)  # (B, H or K, T, w)
        for part in np.split(qkv, [heads * width, (heads + kv_heads) * width], axis=1)
    )
    k, v, d = np.repeat(k, group, 1), np.repeat(v, group, 1), dout.reshape(batch, steps, heads, width).swapaxes(1, 2)
    scale, seen = scale or 1 / math.sqrt(width), np.tril(np.ones((steps, steps), bool))
    if window:
        seen &= ~np.tril(seen, -window)
    scores = np.where(seen, q @ k.swapaxes(2, 3) * scale, -np.inf)  # (B, H, T, T)
    largest = scores.max(-1, keepdims=True)
    lse = largest + np.log(np.exp(scores - largest).sum(-1, keepdims=True))
    p = np.exp(scores - lse)
    mask = dropout_mask(p, 0, dropout)
    dp = d @ v.swapaxes(2, 3) * mask
    ds, dropped = rounding(p * (dp - (p * dp).sum(-1, keepdims=True))), rounding(p * mask)
    dk, dv = (
        x.reshape(batch, kv_heads, group, steps, width).sum(2)
        for x in (ds.swapaxes(2, 3) @ q * scale, dropped.swapaxes(2, 3) @ d)
    )
    dqkv = np.concatenate([ds @ k * scale, dk, dv], axis=1)
    return (
        rounding(dropped @ v).swapaxes(1, 2).reshape(dout.shape),
        lse.reshape(-1, steps),
        rounding(dqkv.swapaxes(1, 2).reshape(qkv.shape)),
    )


# (batch, steps, heads, key-value heads, width): a row of tiles that is full, and heads of several chunks
WIDE_CASES = [
    attention_case(1, 64, 1, 1, 32),
    attention_case(1, 35, 2, 1, 130),
    attention_case(2, 5, 2, 2, 300),
    attention_case(1, 70, 2, 1, 130, window=20, score_scale=0.2),
]


@pytest.mark.parametrize("case", WIDE_CASES, ids=case_id)
def test_wide_heads(cupy, case):  # noqa: F811
    assert_as_numpy(cupy, case)


# (batch, steps, heads, key-value heads, width, dropout, window, scale of the scores)
SHORT = [
    (1, 1, 1, 1, 5, 0.0, 0, None),
    (2, 70, 2, 1, 33, 0.3, 0, None),
    (1, 150, 2, 2, 64, 0.0, 0, None),
    (1, 40, 1, 1, 96, 0.2, 0, None),
    (1, 35, 2, 1, 144, 0.0, 0, None),
    (1, 150, 2, 1, 33, 0.3, 20, None),
    (1, 300, 1, 1, 16, 0.0, 100, 1.0),
    (1, 40, 1, 1, 144, 0.0, 1, 0.5),
]


def rms(x):
    return np.sqrt((x**2).mean())


@pytest.mark.parametrize("shape", SHORT, ids=ids(SHORT))
@pytest.mark.parametrize(
    "dtype, tensor_cores",
    [(BF16, True), (BF16, False), (F16, True)],
    ids=["bfloat16", "bfloat16 without tensor cores", "half"],
)
def test_16_bit_types_only_round_inputs_of_matmuls(cupy, shape, dtype, tensor_cores):  # noqa: F811
    batch, steps, heads, kv_heads, width, rate, window, scale = shape
    qkv, dout = inputs(batch, steps, heads, kv_heads, width, dtype)
    dropout = (rate, 7) if rate else None
    with emulating(tensor_cores=tensor_cores):
        found = run_attention(cupy, qkv, dout, heads, kv_heads, steps, dropout, window, scale)
    found = [exact(x) for x in found]
    arguments = exact(qkv), exact(dout), heads, kv_heads, steps, dropout, window, scale
    precise = reference_attention(*arguments)
    rounded = reference_attention(*arguments, lambda x: exact(stored(x, dtype)))
    np.testing.assert_allclose(found[1], precise[1], rtol=1e-5, atol=1e-5)
    for result, columns in ((0, heads), (2, heads + 2 * kv_heads)):
        for c in range(columns):  # each head's output, and gradients of its queries, keys and values, by themselves
            part = slice(c * width, c * width + width)
            error, unavoidable = (rms(x[result][:, part] - precise[result][:, part]) for x in (found, rounded))
            assert error <= 2 * unavoidable + 1e-6 * math.sqrt(steps) * rms(precise[0]), (result, c)


def test_dropouts_key_may_be_in_device_memory(cupy):  # noqa: F811
    qkv, dout = inputs(1, 20, 2, 1, 8)
    device_key = cupy.zeros(1, np.uint32)
    for key in (5, 6):
        device_key.fill(key)
        by_array, by_value = (run_attention(cupy, qkv, dout, 2, 1, 20, (0.5, k)) for k in (device_key, key))
        for a, b in zip(by_array, by_value):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("width, window", [(16, 0), (130, 0), (16, 30)])
def test_the_order_of_threads_changes_no_bit(cupy, dtype, width, window):  # noqa: F811
    qkv, dout = inputs(2, 70, 2, 1, width, dtype)
    results = []
    for order in ORDERS if real() is None else ["forward"] * 3:
        with emulating(order=order):
            results.append(run_attention(cupy, qkv, dout, 2, 1, 70, (0.2, 3), window))
    for other in results[1:]:
        for a, b in zip(results[0], other):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_attention_sees_neither_the_future_nor_other_sequences(cupy, dtype):  # noqa: F811
    """Sequence 1 of 3 changes from step 33 on."""
    steps, change = 70, 33
    before, dout = inputs(3, steps, 2, 1, 8, dtype)
    after = before.copy()
    changed = np.zeros(3 * steps, bool)
    changed[steps + change : 2 * steps] = True
    after[changed] = stored(normal(steps - change, before.shape[1], seed=2), dtype)
    (out, lse, dqkv), (new_out, new_lse, new_dqkv) = (
        run_attention(cupy, x, dout, 2, 1, steps, (0.2, 3)) for x in (before, after)
    )
    np.testing.assert_array_equal(out[~changed], new_out[~changed])
    assert (out[changed] != new_out[changed]).any(1).mean() > 0.9
    assert (lse == new_lse).reshape(3, 2, steps).all(1).reshape(-1)[~changed].all()
    # Gradients of queries depend on the past only, those of keys and values on the future.
    np.testing.assert_array_equal(dqkv[~changed, :16], new_dqkv[~changed, :16])
    np.testing.assert_array_equal(dqkv[2 * steps :], new_dqkv[2 * steps :])


@pytest.mark.parametrize("window", [2, 9, 40, 100])
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_a_step_reaches_the_queries_of_its_window(cupy, dtype, window):  # noqa: F811
    """A change of step 20 reaches the `window` queries from this step on, and the keys that they see."""
    steps, change, width = 150, 20, 16
    before, dout = inputs(1, steps, 1, 1, width, dtype)
    after = before.copy()
    after[change] = stored(normal(before.shape[1], seed=2), dtype)
    (out, lse, dqkv), (new_out, new_lse, new_dqkv) = (
        run_attention(cupy, x, dout, 1, 1, steps, None, window) for x in (before, after)
    )
    rows = np.arange(steps)
    queries = (rows >= change) & (rows < change + window)
    keys = (rows > change - window) & (rows < change + window)
    changed = (dqkv != new_dqkv).reshape(steps, 3, width).any(2)
    for found, reached in (
        ((out != new_out).any(1), queries),
        (lse[0] != new_lse[0], queries),
        (changed[:, 0], queries),
        (changed[:, 1], keys),
        (changed[:, 2], keys),
    ):
        assert not found[~reached].any() and found[reached].mean() > 0.9  # some change less than the rounding


@pytest.mark.parametrize("position", [0, 3, 7])
@pytest.mark.parametrize("dtype, nan", [(F32, np.nan), (BF16, 0x7FC0)], ids=["float32", "bfloat16"])
def test_a_nan_key_makes_its_queries_nan(cupy, position, dtype, nan):  # noqa: F811
    steps, width = 8, 4
    qkv, dout = inputs(1, steps, 1, 1, width, dtype)
    qkv[position, width] = nan
    out, lse, _ = run_attention(cupy, qkv, dout, 1, 1, steps)
    np.testing.assert_array_equal(np.isnan(exact(out)).all(1), np.arange(steps) >= position)
    np.testing.assert_array_equal(np.isnan(lse[0]), np.arange(steps) >= position)
    assert np.isfinite(exact(out)[:position]).all()


@pytest.mark.parametrize("dtype, cache_dtype", [(F32, F32), (BF16, BF16), (BF16, F32), (F16, F16)], ids=str)
@pytest.mark.parametrize("width, window, scale", [(7, 0, None), (64, 0, None), (300, 0, None), (64, 5, 0.1)])
def test_decoding_attends_to_the_newest_keys(
    cupy,  # noqa: F811
    dtype,
    cache_dtype,
    width,
    window,
    scale,
):
    """The caches have 12 slots and already hold 10 of 17 tokens."""
    batch, heads, kv_heads, slots, filled, total = 2, 4, 2, 12, 10, 17
    qkv = stored(normal(total, batch, (heads + 2 * kv_heads) * width), dtype)
    expected_keys, expected_values = (np.zeros((batch, kv_heads, slots, width)) for _ in range(2))
    expected = np.empty((total, batch, heads * width))
    for t in range(total):
        cache = expected_keys, expected_values
        numpy_kernels.attention_step(expected[t], *cache, exact(qkv[t]), heads, kv_heads, t, window, scale)
        if t == filled - 1:
            nan = np.arange(slots)[:, None] >= filled
            keys, values = (
                cupy.asarray(stored(np.where(nan, np.nan, x), cache_dtype)) for x in (expected_keys, expected_values)
            )
    expected_keys, expected_values = (stored(x, cache_dtype) for x in (expected_keys, expected_values))
    out, device_position = cupy.empty((batch, heads * width), dtype), cupy.zeros(1, np.int32)
    tolerance = {F32: 2e-6, BF16: 2.0**-8, F16: 2.0**-11}[dtype]
    for t in range(filled, total):
        device_position.fill(t)
        position = device_position if t % 2 else t
        new = cupy.asarray(qkv[t].copy())
        gpu.attention_step(out, keys, values, new, heads, kv_heads, position, window, scale)
        np.testing.assert_allclose(exact(cupy.asnumpy(out)), expected[t], rtol=tolerance, atol=tolerance * 0.1)
    np.testing.assert_array_equal(cupy.asnumpy(keys), expected_keys)
    np.testing.assert_array_equal(cupy.asnumpy(values), expected_values)


def test_every_width_fits_into_a_block():
    """A plan for every width and type needs no more shared memory than every GPU since Turing has."""
    for (plans, arrays), width, itemsize, steps in itertools.product(
        ((attention.FORWARD, 1), (attention.BACKWARD_QUERIES, 2), (attention.BACKWARD_KEYS, 2)),
        (1, 16, 63, 64, 80, 128, 129, 256, 512, 1000),
        (2, 4, 8),
        (1, 64, 1024),
    ):
        named, shared = attention.constants(plans, width, itemsize, steps, arrays, 1)
        chunk, chunks = named["CHUNK"], named["CHUNKS"]
        assert shared <= attention.MAX_SHARED and chunk * chunks >= width > chunk * (chunks - 1)
        assert named["ROW_TILES"] >= 1 and (itemsize > 2 or named["COLUMNS"] % 16 == 0) and chunk % 16 == 0
