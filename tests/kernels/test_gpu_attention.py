"""The GPU's attention against the float64 oracle: every type, with and without tensor cores, dropout, wide heads, orders of threads, decoding."""

import itertools
import math

import numpy as np
import pytest
import reference as ref
from cuda_emulator import ORDERS, emulating
from fake_cupy import cupy, real  # noqa: F401 (a fixture)

from slm_np.dtypes import BF16
from slm_np.kernels.gpu import attention

SINGLE, DOUBLE, HALF = map(np.dtype, (np.float32, np.float64, np.float16))


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def stored(x, dtype):
    """Numbers x, none of them NaN, in a storage type, to nearest even."""
    if dtype != BF16:
        return x.astype(dtype)
    bits = x.astype(np.float32).view(np.uint32)
    return (bits + 0x7FFF + (bits >> 16 & 1) >> 16).astype(BF16)


def numbers(x):
    """What is stored, as float64."""
    return ((x.astype(np.uint32) << 16).view(np.float32) if x.dtype == BF16 else x).astype(np.float64)


def on_tensor_cores(flag):
    """Tensor cores or none, on the emulator; a GPU has what it has."""
    return emulating(tensor_cores=flag)


def kept(count, share, key):
    """Dropout's mask of numbers 0 ... count - 1: a hash of 32 bits."""
    with np.errstate(over="ignore"):
        x, key = np.arange(count, dtype=np.uint32), np.uint32(key)
        x ^= key
        for shift, factor in ((16, 0x21F0AAAD), (15, 0xD35A2D97), (15, None), (16, 0x85EBCA6B), (13, 0xC2B2AE35)):
            x ^= x >> np.uint32(shift)
            x = x + key if factor is None else x * np.uint32(factor)
        x ^= x >> np.uint32(16)
    return x >= np.uint32(int(share * 2**32))


def in_numpy(qkv, dout, heads, kv_heads, steps, dropout=0.0, key=0, rounding=lambda x: x):
    """(out, lse, dqkv) in the type of the inputs, every operand of a product and every result rounded by `rounding`."""
    batch, width, group = len(qkv) // steps, dout.shape[1] // heads, heads // kv_heads
    q, k, v = (
        x.swapaxes(1, 2)
        for x in (
            part.reshape(batch, steps, -1, width)
            for part in np.split(qkv, [heads * width, (heads + kv_heads) * width], axis=1)
        )
    )
    k, v, d = np.repeat(k, group, 1), np.repeat(v, group, 1), dout.reshape(batch, steps, heads, width).swapaxes(1, 2)
    scale = qkv.dtype.type(1 / math.sqrt(width))
    scores = np.where(np.tril(np.ones((steps, steps), bool)), q @ k.swapaxes(2, 3) * scale, qkv.dtype.type(-np.inf))
    largest = scores.max(-1, keepdims=True)
    lse = largest + np.log(np.exp(scores - largest).sum(-1, keepdims=True))
    p = np.exp(scores - lse)
    mask = (
        (kept(p.size, dropout, key).reshape(p.shape) / (1 - dropout)).astype(qkv.dtype)
        if dropout
        else qkv.dtype.type(1)
    )
    dp = d @ v.swapaxes(2, 3) * mask
    ds, dropped = rounding(p * (dp - (p * dp).sum(-1, keepdims=True))), rounding(p * mask)
    summed = [
        x.reshape(batch, kv_heads, group, steps, width).sum(2)
        for x in (ds.swapaxes(2, 3) @ q * scale, dropped.swapaxes(2, 3) @ d)
    ]
    dqkv = np.concatenate([ds @ k * scale, *summed], axis=1)
    return (
        rounding(dropped @ v).swapaxes(1, 2).reshape(dout.shape),
        lse.reshape(-1, steps),
        rounding(dqkv.swapaxes(1, 2).reshape(qkv.shape)),
    )


def oracle(qkv, dout, heads, kv_heads, steps):
    """(out, dqkv) by the oracle."""
    parts = ref.split_heads(qkv.reshape(len(qkv) // steps, steps, -1), heads, kv_heads)
    grads = ref.attention_backward(dout.reshape(len(qkv) // steps, steps, heads, -1), *parts)
    return ref.attention(*parts).reshape(dout.shape), np.concatenate([g.reshape(len(qkv), -1) for g in grads], axis=1)


def attended(cupy, qkv, dout, heads, kv_heads, steps, dropout=0.0, key=0):
    """The kernels' (out, lse, dqkv), as stored; all that they write was NaN before."""
    number = DOUBLE if qkv.dtype == DOUBLE else SINGLE
    tasks = len(qkv) // steps * heads

    def empty(shape, dtype):
        x = cupy.empty(shape, dtype)
        x.view(np.uint8).fill(0xFF)
        return x

    scratch = empty(attention.attention_scratch(steps, dout.shape[1] // heads, tasks), number)
    out, lse, dqkv, dout = (
        empty(dout.shape, qkv.dtype),
        empty((tasks, steps), number),
        cupy.asarray(qkv),
        cupy.asarray(dout),
    )
    attention.attention_forward(out, lse, scratch, dqkv, heads, kv_heads, steps, (dropout, key))
    scratch.view(np.uint8).fill(0xFF)
    attention.attention_backward(dqkv, scratch, dout, out, lse, heads, kv_heads, steps, (dropout, key))
    return tuple(cupy.asnumpy(x) for x in (out, lse, dqkv))


def inputs(batch, steps, heads, kv_heads, width, dtype=SINGLE):
    return stored(normal(batch * steps, (heads + 2 * kv_heads) * width), dtype), stored(
        normal(batch * steps, heads * width, seed=1), dtype
    )


def size(x):
    return np.sqrt((x**2).mean())


# (texts, steps, heads, key-value heads, width): no multiples, several blocks of rows, several tiles, groups, heads of several chunks
SIZES = [
    (1, 1, 1, 1, 5),
    (2, 7, 4, 2, 3),
    (1, 65, 3, 1, 4),
    (2, 70, 2, 1, 7),
    (1, 130, 2, 2, 8),
    (1, 64, 1, 1, 32),
    (1, 35, 2, 1, 130),
]


def named(*choices):
    return pytest.mark.parametrize("sizes", choices, ids=["x".join(map(str, sizes)) for sizes in choices])


@named(*SIZES)
def test_float64_is_exact(cupy, sizes):  # noqa: F811
    qkv, dout = inputs(*sizes, DOUBLE)
    heads, kv_heads, steps = sizes[2], sizes[3], sizes[1]
    out, lse, dqkv = attended(cupy, qkv, dout, heads, kv_heads, steps)
    exact, dexact = oracle(qkv, dout, heads, kv_heads, steps)
    np.testing.assert_allclose(lse, in_numpy(qkv, dout, heads, kv_heads, steps)[1], rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(out, exact, rtol=1e-12, atol=1e-13 * max(1, np.abs(exact).max()))
    np.testing.assert_allclose(dqkv, dexact, rtol=1e-12, atol=1e-13 * max(1, np.abs(dexact).max()))


@named(*((*sizes, 1.0) for sizes in SIZES), *((*sizes, 5.0) for sizes in SIZES[:5]))
def test_float32_is_as_good_as_numpy(cupy, sizes):  # noqa: F811
    qkv, dout = inputs(*sizes[:5])
    qkv *= SINGLE.type(sizes[5])
    heads, kv_heads, steps = sizes[2], sizes[3], sizes[1]
    found, plain, exact = (
        f(qkv, dout, heads, kv_heads, steps) for f in (lambda *a: attended(cupy, *a), in_numpy, oracle)
    )
    for a, b, x in zip((found[0], found[2]), (plain[0], plain[2]), exact):
        assert np.abs(a - x).max() <= max(3 * np.abs(b - x).max(), 4 * np.finfo(np.float32).eps * np.abs(x).max())


SHORT = [
    (1, 1, 1, 1, 5, 0.0),
    (2, 70, 2, 1, 33, 0.3),
    (1, 150, 2, 2, 64, 0.0),
    (1, 40, 1, 1, 96, 0.2),
    (1, 35, 2, 1, 144, 0.0),
]


@named(*SHORT)
@pytest.mark.parametrize(
    "dtype, cores",
    [(BF16, True), (BF16, False), (HALF, True)],
    ids=["bfloat16", "bfloat16 without tensor cores", "half"],
)
def test_short_types_round_operands_alone(cupy, sizes, dtype, cores):  # noqa: F811
    batch, steps, heads, kv_heads, width, dropout = sizes
    qkv, dout = inputs(*sizes[:5], dtype)
    with on_tensor_cores(cores):
        found = [numbers(x) for x in attended(cupy, qkv, dout, heads, kv_heads, steps, dropout, 7)]
    given = numbers(qkv), numbers(dout), heads, kv_heads, steps, dropout, 7
    exact, ideal = in_numpy(*given), in_numpy(*given, lambda x: numbers(stored(x, dtype)))
    np.testing.assert_allclose(found[1], exact[1], rtol=1e-5, atol=1e-5)
    for place, columns in ((0, heads), (2, heads + 2 * kv_heads)):
        for c in range(columns):  # each head's output, its queries', its keys' and its values' gradient alone
            part = slice(c * width, c * width + width)
            error, unavoidable = (size(x[place][:, part] - exact[place][:, part]) for x in (found, ideal))
            assert error <= 2 * unavoidable + 1e-6 * math.sqrt(steps) * size(exact[0]), (place, c)


@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE], ids=str)
def test_dropout_is_a_mask_on_probabilities(cupy, dtype):  # noqa: F811
    qkv, dout = inputs(2, 40, 4, 2, 6, dtype)
    given = 4, 2, 40, 0.3, 2**31 - 5
    for found, exact in zip(attended(cupy, qkv, dout, *given), in_numpy(numbers(qkv), numbers(dout), *given)):
        np.testing.assert_allclose(found, exact, rtol=0, atol=30 * np.finfo(dtype).eps * np.abs(exact).max())


def test_a_key_in_device_memory_is_read_when_the_kernel_runs(cupy):  # noqa: F811
    qkv, dout = inputs(1, 20, 2, 1, 8)
    held = cupy.asarray(np.array([5], np.uint32))
    for key in (5, 6):
        held.fill(key)
        for a, b in zip(attended(cupy, qkv, dout, 2, 1, 20, 0.5, held), attended(cupy, qkv, dout, 2, 1, 20, 0.5, key)):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", [SINGLE, BF16], ids=str)
@pytest.mark.parametrize("width", [16, 130])
def test_the_order_of_threads_does_not_matter(cupy, dtype, width):  # noqa: F811
    qkv, dout = inputs(2, 70, 2, 1, width, dtype)
    results = []
    for order in ORDERS if real() is None else ["forward"] * 3:
        with emulating(order=order):
            results.append(attended(cupy, qkv, dout, 2, 1, 70, 0.2, 3))
    for again in results[1:]:
        for a, b in zip(results[0], again):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", [SINGLE, BF16], ids=str)
def test_neither_the_future_nor_another_text_is_seen(cupy, dtype):  # noqa: F811
    steps, changed = 70, 33
    before, dout = inputs(3, steps, 2, 1, 8, dtype)
    after = before.copy()
    after[steps + changed : 2 * steps] = stored(normal(steps - changed, before.shape[1], seed=2), dtype)
    a, b = (attended(cupy, x, dout, 2, 1, steps, 0.2, 3) for x in (before, after))
    same = np.ones(3 * steps, bool)
    same[steps + changed : 2 * steps] = False
    np.testing.assert_array_equal(a[0][same], b[0][same])
    assert (a[0][~same] != b[0][~same]).any(1).mean() > 0.9
    assert (a[1] == b[1]).reshape(3, 2, steps).all(1).reshape(-1)[same].all()
    np.testing.assert_array_equal(
        a[2][same, :16], b[2][same, :16]
    )  # the queries' gradient looks back alone, keys' and values' ahead
    np.testing.assert_array_equal(a[2][2 * steps :], b[2][2 * steps :])


@pytest.mark.parametrize("place", [0, 3, 7])
@pytest.mark.parametrize("dtype, bad", [(SINGLE, np.nan), (BF16, 0x7FC0)], ids=["float32", "bfloat16"])
def test_attention_to_a_bad_key_is_nan(cupy, place, dtype, bad):  # noqa: F811
    steps, width = 8, 4
    qkv, dout = inputs(1, steps, 1, 1, width, dtype)
    qkv[place, width] = bad
    out, lse, _ = attended(cupy, qkv, dout, 1, 1, steps)
    np.testing.assert_array_equal(np.isnan(numbers(out)).all(1), np.arange(steps) >= place)
    np.testing.assert_array_equal(np.isnan(lse[0]), np.arange(steps) >= place)
    assert np.isfinite(numbers(out)[:place]).all()


@pytest.mark.parametrize("dtype, cached", [(SINGLE, SINGLE), (BF16, BF16), (BF16, SINGLE), (HALF, HALF)], ids=str)
@pytest.mark.parametrize("width", [7, 64, 300])
def test_decoding_equals_the_last_row_over_the_newest_keys(cupy, dtype, cached, width):  # noqa: F811
    batch, heads, kv_heads, slots, total = 2, 4, 2, 12, 17
    qkv, _ = inputs(batch, total, heads, kv_heads, width, dtype)
    q, k, v = ref.split_heads(numbers(qkv).reshape(batch, total, -1), heads, kv_heads)
    caches = [np.full((batch, kv_heads, slots, width), 0xFFFF if cached == BF16 else np.nan, cached) for _ in range(2)]
    for cache, past in zip(caches, (k, v)):
        cache[:, :, :10] = stored(past[:, :10].swapaxes(1, 2), cached)
    keys, values = map(cupy.asarray, caches)
    out, place = cupy.empty((batch, heads * width), dtype), cupy.zeros(1, np.int32)
    for t in range(10, total):
        place.fill(t)
        attention.attention_step(
            out,
            keys,
            values,
            cupy.asarray(qkv.reshape(batch, total, -1)[:, t].copy()),
            heads,
            kv_heads,
            place if t % 2 else t,
        )
        seen = slice(max(0, t + 1 - slots), t + 1)
        exact = ref.attention(
            np.pad(q[:, t : t + 1], ((0, 0), (t - seen.start, 0), (0, 0), (0, 0))), k[:, seen], v[:, seen]
        )[:, -1].reshape(batch, -1)
        accuracy = {SINGLE: 2e-6, BF16: 2.0**-8, HALF: 2.0**-11}[dtype]
        np.testing.assert_allclose(numbers(cupy.asnumpy(out)), exact, rtol=accuracy, atol=accuracy * 0.1)
        np.testing.assert_array_equal(numbers(cupy.asnumpy(keys))[:, :, t % slots], k[:, t])
        np.testing.assert_array_equal(numbers(cupy.asnumpy(values))[:, :, t % slots], v[:, t])


def test_every_kernel_fits_a_block():
    """Shared memory that each GPU since Turing has, and a plan for every width and type."""
    for (choices, arrays), width, itemsize, steps in itertools.product(
        ((attention.FORWARD, 1), (attention.BACKWARD_QUERIES, 2), (attention.BACKWARD_KEYS, 2)),
        (1, 16, 63, 64, 80, 128, 129, 256, 512, 1000),
        (2, 4, 8),
        (1, 64, 1024),
    ):
        named, shared = attention.constants(choices, width, itemsize, steps, arrays, 1)
        assert shared <= attention.MOST_SHARED and named["CHUNK"] * named["CHUNKS"] >= width > named["CHUNK"] * (
            named["CHUNKS"] - 1
        )
        assert named["TALL"] >= 1 and (itemsize > 2 or named["COLUMNS"] % 16 == 0) and named["CHUNK"] % 16 == 0
