"""Every GPU kernel that goes over numbers and rows: 16-bit types, the order of threads, captured graphs,
and what each promises of its own."""

import math

import kernel_cases
import numpy as np
import pytest
import reference as ref
from cuda_emulator import emulating
from fake_cupy import cupy  # noqa: F401  the fixture
from kernel_cases import ACTIVATIONS, Kernels, OnDevice

from slm_np import ops
from slm_np.dtypes import BF16
from slm_np.kernels import gpu as kernels
from slm_np.kernels.gpu.vector import count

pytestmark = pytest.mark.usefixtures("cupy")
ULP = np.finfo(np.float32).eps
F16 = np.dtype(np.float16)
HALF_ULP = {BF16: 2.0**-8, F16: 2.0**-11}  # the largest relative error of rounding to a type
SMALLEST = {BF16: 2.0**-126, F16: 2.0**-25}
SHORT = pytest.mark.parametrize("short", [BF16, F16], ids=["bf16", "fp16"])


def stored(x, dtype):
    """Numbers in a storage type, to nearest even."""
    if dtype != BF16:
        return np.asarray(x).astype(dtype)
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.uint64)
    return np.where(np.isnan(x), 0x7FFF, bits + 0x7FFF + (bits >> 16 & 1) >> 16).astype(BF16)


def exact(x):
    """What is stored, as float64."""
    return ((x.astype(np.uint32) << 16).view(np.float32) if x.dtype == BF16 else x).astype(np.float64)


gpu = OnDevice(kernels)
KINDS = (
    "silu",
    "gelu",
    "swiglu",
    "rmsnorm",
    "layernorm",
    "embedding",
    "rotary",
    "accumulate",
    "softmax_cross_entropy",
)
CASES = [case for case in kernel_cases.CASES if case.id.startswith(KINDS)]


@pytest.mark.parametrize("order", ["reversed", "shuffled"])
def test_the_order_of_threads_changes_nothing(order, cupy):  # noqa: F811
    """Bit by bit; a race would."""
    chosen = {}
    for case in CASES:
        if case.id.split(" ")[0] not in chosen or "70" in case.id or "130" in case.id:
            chosen[case.id.split(" ")[0]] = case
    single = Kernels(kernels, np.float32, start=1, arrays=cupy)
    for case in chosen.values():
        usual = single.results(case)
        with emulating(order=order, seed=3):
            for name, found in single.results(case).items():
                np.testing.assert_array_equal(found, usual[name])


# 16 bits: what is stored is rounded once, and nothing before it


def assert_rounded(found, expected):
    """`found` is `expected` rounded to its type, but for float32's own error before that."""
    found = exact(found) if found.dtype in HALF_ULP else found.astype(np.float64), found.dtype
    bound = HALF_ULP.get(found[1], 0) + 16 * ULP
    assert (
        np.abs(found[0] - expected)
        <= bound * np.abs(expected) + SMALLEST.get(found[1], 0) + 8 * ULP * np.abs(expected).max()
    ).all()


@SHORT
@pytest.mark.parametrize("shape", [(3, 7), (5, 64)])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_of_16_bits(name, shape, short):
    gated = name == "swiglu"
    x, dout = (
        stored(kernel_cases.normal(shape[0], columns, seed=i), short)
        for i, columns in enumerate((shape[1] * (1 + gated), shape[1]))
    )
    out = stored(np.full(shape, np.nan), short)
    getattr(gpu, f"{name}_forward")(out, x)
    assert_rounded(out, getattr(ref, name)(exact(x)))
    for kind in (short, np.float32):  # the gradient may be of numbers, as the head's is
        dx, again = x.copy(), exact(dout).astype(np.float32) if kind == np.float32 else dout.copy()
        getattr(gpu, f"{name}_backward")(dx, again)
        assert_rounded(dx, getattr(ref, f"{name}_backward")(exact(dout), exact(x)))
        assert_rounded(again, getattr(ref, name)(exact(x)))


@SHORT
@pytest.mark.parametrize("width", [7, 72])
def test_norms_of_16_bits(width, short):
    x, weight, bias, dout = (
        kernel_cases.normal(37, width),
        kernel_cases.normal(width),
        kernel_cases.normal(width, seed=1),
        stored(kernel_cases.normal(37, width, seed=1), short),
    )
    out, mean, rstd = stored(np.full(x.shape, np.nan), short), *(np.full(37, np.nan, np.float32) for _ in range(2))
    gpu.layernorm_forward(out, mean, rstd, x, weight, bias, 1e-5)
    assert_rounded(out, ref.layernorm(x, weight, bias))
    totals = [np.ones_like(z) for z in (x, weight, bias)]
    gpu.layernorm_backward(*totals, dout, x, weight, mean, rstd)
    for total, gradient in zip(totals, ref.layernorm_backward(exact(dout), x, weight, bias)):
        assert_rounded(total, 1 + gradient)
    gpu.rmsnorm_forward(out, rstd, x, weight, 1e-5)
    assert_rounded(out, ref.rmsnorm(x, weight))


@SHORT
def test_rotary_of_16_bits(short):
    for width in (6, 32):
        x, cos, sin = (
            stored(kernel_cases.normal(2 * 5, 3 * width + 8 * (width == 32)), short),
            *(np.zeros((5, width // 2), np.float32) for _ in range(2)),
        )
        ops.rotary_table(cos, sin, 100.0)
        turned = x.copy()
        gpu.rotary_forward(turned, cos, sin, 2)
        assert_rounded(
            turned[:, : 2 * width], ref.rotary(exact(x)[:, : 2 * width].reshape(2, 5, 2, width), 100.0).reshape(10, -1)
        )
        np.testing.assert_array_equal(turned[:, 2 * width :], x[:, 2 * width :])


@SHORT
@pytest.mark.parametrize("width", [7, 64])
def test_sums_and_conversions_of_16_bits(width, short):
    x = stored(kernel_cases.normal(9, width), short)
    total, numbers, back = (
        np.ones((9, width), np.float32),
        np.zeros((9, width), np.float32),
        np.zeros((9, width), short),
    )
    gpu.accumulate(total, x)
    np.testing.assert_array_equal(total, np.float32(1) + exact(x).astype(np.float32))
    gpu.convert(numbers, x)
    np.testing.assert_array_equal(numbers, exact(x))
    gpu.convert(back, numbers)
    np.testing.assert_array_equal(back, x)
    numbers[...] = kernel_cases.normal(9, width, seed=1)
    numbers[0, :5] = np.nan, np.inf, -np.inf, 0, -0.0
    numbers[1, :2] = 1 + 3 * HALF_ULP[short], 1 + HALF_ULP[short]  # halfway, to the even one of two
    gpu.convert(back, numbers)
    np.testing.assert_array_equal(exact(back), exact(stored(numbers, short)))
    places, rows = np.zeros((4, width), np.float32), stored(kernel_cases.normal(4, width), short)
    gpu.embedding_backward(places, None, rows, np.array([[3, 1, 3, 3]], np.int32))
    np.testing.assert_allclose(
        places, np.array([[0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [1, 0, 1, 1]]) @ exact(rows), rtol=1e-6, atol=1e-6
    )


@SHORT
def test_cross_entropy_leaves_its_gradient_in_16_bits(short):
    logits, targets = 3 * kernel_cases.normal(5, 70), np.array([0, 69, -1, 3, 3], np.int32)
    kept, losses, dlogits = logits.copy(), np.full(5, np.nan, np.float32), stored(np.full((5, 70), np.nan), short)
    gpu.softmax_cross_entropy_backward(dlogits, losses, logits, targets, 8.0)
    assert_rounded(dlogits, 8 * 4 * ref.cross_entropy_backward(1.0, kept, targets))
    np.testing.assert_allclose(losses, np.where(targets < 0, 0, kernel_cases.row_losses(kept, targets)), rtol=1e-6)


@pytest.mark.parametrize("pieces", [257, 9001])
@pytest.mark.parametrize("falling", [False, True])
def test_cross_entropy_of_rows_longer_than_a_block_takes_at_once(pieces, falling):
    """The largest logit lies in what threads take last, or first."""
    logits, targets = (
        kernel_cases.normal(2, pieces) + np.linspace(-30, 30, pieces).astype(np.float32),
        np.array([1, pieces - 1], np.int32),
    )
    if falling:
        logits = np.ascontiguousarray(logits[:, ::-1])
    kept, losses, again = logits.copy(), np.full(2, np.nan, np.float32), np.full(2, np.nan, np.float32)
    gpu.softmax_cross_entropy_forward(losses, logits, targets)
    gpu.softmax_cross_entropy_backward(logits, again, logits, targets, 0.5)
    np.testing.assert_allclose(losses, kernel_cases.row_losses(kept, targets), rtol=2e-6)
    np.testing.assert_allclose(logits, ref.cross_entropy_backward(1.0, kept, targets), rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(losses, again)


def test_a_ruled_out_logit_may_be_minus_infinity():
    logits, targets, losses, again = (
        kernel_cases.normal(4, 11),
        np.array([4, 5, 0, 4], np.int32),
        np.full(4, np.nan, np.float32),
        np.full(4, np.nan, np.float32),
    )
    logits[:, :4], logits[2, 1:], logits[2, 0] = -np.inf, -np.inf, 0
    logits[3] = -np.inf
    exactly = exact(logits)
    gpu.softmax_cross_entropy_forward(losses, logits, targets)
    gpu.softmax_cross_entropy_backward(logits, again, logits, targets, 1.0)
    with np.errstate(all="ignore"):
        np.testing.assert_allclose(logits[:3], (ref.softmax(exactly) - np.eye(11)[targets])[:3], atol=1e-6)
    np.testing.assert_array_equal(losses, again)
    assert np.isfinite(losses[:3]).all() and losses[2] == 0 and np.isnan(losses[3]) and np.isnan(logits[3]).all()


# Several numbers a thread


def test_numbers_taken_alone_are_the_same(cupy):  # noqa: F811
    """An array that begins between two fours is gone through one by one."""
    for short, several in ((np.dtype(np.float32), 4), (np.dtype(np.float64), 2), (BF16, 8), (F16, 8)):
        x, dout, residual_ = (stored(kernel_cases.normal(5, 64, seed=i), short) for i in range(3))

        def at(x, shift):
            room = cupy.zeros(x.size + 8, x.dtype)
            view = room[shift : shift + x.size].reshape(x.shape)
            view[...] = cupy.asarray(x)
            return view

        results = []
        for shift in (0, 1):
            assert count(64, at(x, shift)) == (1 if shift else several)
            out, gradient, again, turned = (at(z, shift) for z in (x, x, dout, x))
            kernels.dropout_forward(out, at(x, shift), at(residual_, shift), (0.3, 5))
            kernels.gelu_backward(gradient, again)
            cos, sin = (
                at(kernel_cases.normal(5, 16, seed=7 + i).astype(np.float64 if several == 2 else np.float32), shift)
                for i in range(2)
            )
            kernels.rotary_forward(turned, cos, sin, 2)
            results.append([cupy.asnumpy(z) for z in (out, gradient, again, turned)])
        for one, other in zip(*results, strict=True):
            np.testing.assert_allclose(exact(one), exact(other), rtol=4 * ULP, atol=4 * ULP)


# Embedding


@pytest.mark.parametrize(
    "n, pieces, width",
    [(1, 1, 1), (63, 3, 2), (64, 1, 3), (65, 1, 3), (1700, 2, 3), (1100, 256, 5), (1100, 257, 2), (700, 70000, 1)],
)
def test_embedding_backward_of_many_tokens(n, pieces, width):
    """Whole numbers, whose sums are exact in any order: runs within a block of places, over two, over many, with digits of one byte, two and three."""
    rng = np.random.default_rng(n)
    tokens = np.minimum(rng.integers(0, pieces, (1, n)), rng.integers(0, pieces, (1, n))).astype(np.int32)
    tokens[0, ::5] = pieces - 1
    dout, positions = rng.integers(-9, 10, (n, width)).astype(np.float32), np.ones((n // 2 + 1, width), np.float32)
    dweight, expected, where = (
        np.ones((pieces, width), np.float32),
        np.ones((pieces, width), np.float32),
        np.ones_like(positions),
    )
    gpu.embedding_backward(dweight, positions, dout, tokens)
    np.add.at(expected, tokens.reshape(-1), dout)
    np.add.at(where, np.arange(n) % len(where), dout)
    np.testing.assert_array_equal(dweight, expected)
    np.testing.assert_array_equal(positions, where)


def test_embedding_backward_is_the_same_bits_in_any_order():
    rng = np.random.default_rng(1)
    tokens, dout, found = (
        np.minimum(rng.integers(0, 300, (1, 1200)), rng.integers(0, 300, (1, 1200))).astype(np.int32),
        kernel_cases.normal(1200, 3),
        [],
    )
    tokens[0, :300] = 7
    for order in ("forward", "reversed", "shuffled"):
        with emulating(order=order):
            found.append(np.ones((300, 3), np.float32))
            gpu.embedding_backward(found[-1], None, dout, tokens)
    for other in found[1:]:
        np.testing.assert_array_equal(found[0], other)


# Dropout


def kept(n, share, key):
    """The mask as kernels/cpu/dropout.py draws it."""
    key, mask = np.uint32(key), np.uint32(2**32 - 1)
    x = np.arange(n).astype(np.uint32) ^ key
    x = (x ^ (x >> 16)) * np.uint32(0x21F0AAAD) & mask
    x = (x ^ (x >> 15)) * np.uint32(0xD35A2D97) & mask
    x = ((x ^ (x >> 15)) + key).astype(np.uint32)
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B) & mask
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35) & mask
    return (x ^ (x >> 16)) >= np.uint32(share * 2**32)


@pytest.mark.parametrize("share, key", [(0.0, 1), (0.1, (1 << 31) - 1), (0.5, 77), (0.95, (1 << 32) - 1)])
def test_dropout_draws_the_cpus_mask(share, key, cupy):  # noqa: F811
    shape = 33, 21
    x, residual_ = kernel_cases.normal(*shape) + 10, kernel_cases.normal(*shape, seed=1)
    mask, scale = kept(x.size, share, key).reshape(shape), np.float32(1 / (1 - share))
    out, dx = np.full(shape, np.nan, np.float32), np.full(shape, np.nan, np.float32)
    gpu.dropout_forward(out, x, residual_, (share, key))
    gpu.dropout_backward(dx, x, (share, key))
    np.testing.assert_array_equal(dx, np.where(mask, x * scale, 0))
    np.testing.assert_allclose(out, dx + residual_, rtol=2e-7, atol=2e-6)
    given = cupy.asarray(x), cupy.asarray(np.array([key], np.uint32))
    kernels.dropout_backward(given[0], given[0], (share, given[1]))
    np.testing.assert_array_equal(cupy.asnumpy(given[0]), dx)


@SHORT
def test_dropout_of_16_bits(short):
    for shape in ((3, 7), (4, 64)):
        x, residual_, mask = (
            stored(kernel_cases.normal(*shape), short),
            kernel_cases.normal(*shape, seed=1),
            kept(math.prod(shape), 0.4, 9).reshape(shape),
        )
        out, dx = np.full(shape, np.nan, np.float32), stored(np.full(shape, np.nan), short)
        gpu.dropout_forward(out, x, residual_, (0.4, 9))
        np.testing.assert_allclose(out, residual_ + mask * exact(x) / 0.6, rtol=1e-6, atol=1e-6)
        for dout in (residual_, x):
            gpu.dropout_backward(dx, dout, (0.4, 9))
            assert_rounded(dx, mask * exact(dout) / 0.6)


# The optimiser


def begun(cupy, dtype, n=70 * 61):  # noqa: F811
    rng = np.random.default_rng(1)
    weights, gradients = (cupy.asarray(rng.standard_normal(n).astype(dtype)) for _ in range(2))
    return weights, gradients, cupy.zeros(n, dtype), cupy.zeros(n, dtype)


@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-12), (np.float32, 2e-5)], ids=["float64", "float32"])
@pytest.mark.parametrize("grad_clip", [0.0, 0.5, 1e6])
@pytest.mark.parametrize("on_device", [False, True], ids=["numbers", "arrays"])
def test_updates_are_the_oracles(dtype, tolerance, grad_clip, on_device, cupy):  # noqa: F811
    """The scale comes from the device's own norm; rate and corrections are numbers, or arrays that a captured graph would read."""
    decayed, rng, loss_scale = 3001, np.random.default_rng(2), 16.0
    arrays = weights, gradients, mean, square = begun(cupy, dtype)
    w, m, v = (cupy.asnumpy(x).astype(float) for x in (weights, mean, square))
    partial, found = cupy.zeros(kernels.square_sum_blocks(w.size), np.float64), cupy.zeros(2, dtype)
    for update in range(1, 4):
        g = (rng.standard_normal(w.size) * 10.0 ** rng.integers(-3, 2)).astype(dtype)
        gradients[...] = cupy.asarray(g * dtype(loss_scale))
        total = kernels.square_sum(partial, gradients)
        np.testing.assert_allclose(
            cupy.asnumpy(total), [(cupy.asnumpy(gradients).astype(float) ** 2).sum()], rtol=1e-13
        )
        kernels.clip_scale(found, partial, grad_clip, loss_scale)
        clipped, norm = ref.clip(dict(g=g), grad_clip)
        np.testing.assert_allclose(
            cupy.asnumpy(found),
            [norm, (min(1, grad_clip / (norm + 1e-6)) if grad_clip else 1) / loss_scale],
            rtol=tolerance,
        )
        changing = [0.1 / update, 1 - 0.8**update, 1 - 0.9**update]
        rate, correction1, correction2 = (
            [cupy.asarray(np.array([x], dtype)) for x in changing] if on_device else changing
        )
        kernels.adamw(*arrays, decayed, found[1:], rate, 0.3, 0.8, 0.9, correction1, correction2, 1e-6)
        for part, decay in ((slice(0, decayed), 0.3), (slice(decayed, None), 0.0)):
            w[part], m[part], v[part] = ref.adamw(
                w[part], clipped["g"][part], m[part], v[part], update, changing[0], 0.8, 0.9, 1e-6, decay
            )
        for x, expected in ((weights, w), (mean, m), (square, v)):
            np.testing.assert_allclose(
                cupy.asnumpy(x), expected, rtol=tolerance, atol=tolerance * np.abs(expected).max()
            )
        assert not cupy.asnumpy(gradients).any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 9000, -1])
def test_a_gradient_that_is_not_finite_updates_nothing(bad, place, cupy):  # noqa: F811
    arrays = weights, gradients, mean, square = begun(cupy, np.float32, 9001)
    before = cupy.asnumpy(weights)
    g = cupy.asnumpy(gradients)
    g[place] = bad
    gradients[...] = cupy.asarray(g)
    partial, found = cupy.zeros(kernels.square_sum_blocks(9001), np.float64), cupy.zeros(2, np.float32)
    kernels.square_sum(partial, gradients)
    kernels.clip_scale(found, partial, 1.0, 1.0)
    kernels.adamw(*arrays, 100, found[1:], 0.1, 0.1, 0.9, 0.95, 0.1, 0.05, 1e-8)
    assert not np.isfinite(cupy.asnumpy(found)[0]) and np.isnan(cupy.asnumpy(found)[1])
    np.testing.assert_array_equal(cupy.asnumpy(weights), before)
    assert not any(cupy.asnumpy(x).any() for x in (gradients, mean, square))


def test_a_gradient_whose_square_overflows_float32_is_finite(cupy):  # noqa: F811
    x, partial, found = cupy.asarray(np.full(3, 1e30, np.float32)), cupy.zeros(2, np.float64), cupy.zeros(2, np.float32)
    kernels.square_sum(partial, x)
    kernels.clip_scale(found, partial, 1.0, 1.0)
    np.testing.assert_allclose(cupy.asnumpy(found), [3**0.5 * 1e30, 3**-0.5 * 1e-30], rtol=1e-6)


# What a captured graph needs


def test_a_step_of_all_kernels_is_captured_and_replayed(cupy):  # noqa: F811
    """No allocation and no waiting for the device after the first call; replayed, a graph reads the numbers that stand in its arrays by then."""
    rng = np.random.default_rng(5)
    n, width, pieces = 40, 16, 11
    number = lambda *shape: cupy.asarray(rng.standard_normal(shape).astype(np.float32))  # noqa: E731
    tokens, targets = (cupy.asarray(rng.integers(0, pieces, n).astype(np.int32)) for _ in range(2))
    table, weight, bias, stream, normed, dx, cos, sin, logits = (
        number(*shape)
        for shape in (
            (pieces, width),
            (width,),
            (width,),
            (n, width),
            (n, width),
            (n, width),
            (10, 4),
            (10, 4),
            (n, pieces),
        )
    )
    dtable, dplaces, dweight, dbias, mean, rstd, losses, short = (
        *(cupy.zeros(x.shape, np.float32) for x in (table, number(10, width), weight, bias)),
        *(cupy.zeros(n, np.float32) for _ in range(3)),
        cupy.zeros((n, width), BF16),
    )
    key, scale, rate = (
        cupy.asarray(np.array([3], np.uint32)),
        cupy.asarray(np.array([0.1], np.float32)),
        cupy.asarray(np.array([0.01], np.float32)),
    )
    flat = begun(cupy, np.float32, 64)
    partial, found = cupy.zeros(kernels.square_sum_blocks(64), np.float64), cupy.zeros(2, np.float32)

    def step():
        kernels.embedding_forward(stream, tokens, table, None)
        kernels.dropout_forward(stream, stream, None, (0.2, key))
        kernels.layernorm_forward(normed, mean, rstd, stream, weight, bias, 1e-5)
        kernels.rotary_forward(normed, cos, sin, 2)
        kernels.convert(short, normed)
        kernels.gelu_tanh_forward(short, short)
        kernels.accumulate(stream, short)
        kernels.softmax_cross_entropy_backward(logits, losses, logits, targets, scale)
        kernels.layernorm_backward(dx, dweight, dbias, normed, stream, weight, mean, rstd)
        kernels.embedding_backward(dtable, dplaces, dx, tokens)
        kernels.square_sum(partial, flat[1])
        kernels.clip_scale(found, partial, 1.0, 1.0)
        kernels.adamw(*flat, 10, found[1:], rate, 0.1, 0.9, 0.95, 0.1, 0.05, 1e-8)

    state = [stream, normed, dx, logits, dtable, dplaces, dweight, dbias, losses, short, *flat, found]
    begin = [x.copy() for x in state]

    def restore():
        for x, before in zip(state, begin):
            x[...] = before

    step()
    first = [cupy.asnumpy(x) for x in state]
    stream_ = cupy.cuda.Stream(non_blocking=True)
    with stream_:
        stream_.begin_capture()
        step()
        graph = stream_.end_capture()
        for keys in (3, 4):
            restore()
            key[...] = keys
            graph.launch(stream_)
            stream_.synchronize()
            again = [cupy.asnumpy(x) for x in state]
            same = [np.array_equal(a, b, equal_nan=True) for a, b in zip(first, again)]
            assert all(same) if keys == 3 else not all(same)
