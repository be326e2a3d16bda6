"""The GPU's AdamW and clipping, skipped updates, and the kernels of a training step in a captured graph."""

import numpy as np
import pytest
from fake_cupy import cupy  # noqa: F401  a fixture

from slm_np.dtypes import BF16
from slm_np.kernels import gpu
from slm_np.kernels import numpy as numpy_kernels

SETTINGS = 0.1, 0.1, 0.9, 0.95, 0.1, 0.05, 1e-8  # rate, decay, beta1, beta2, correction1, correction2, eps


def initial_state(arrays, dtype, n=70 * 61):
    """Device arrays: weights, gradients, mean, square."""
    rng = np.random.default_rng(1)
    weights, gradients = (arrays.asarray(rng.standard_normal(n).astype(dtype)) for _ in range(2))
    return weights, gradients, arrays.zeros(n, dtype), arrays.zeros(n, dtype)


@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-12), (np.float32, 2e-5)], ids=["float64", "float32"])
@pytest.mark.parametrize("grad_clip", [0.0, 0.5, 1e6])
@pytest.mark.parametrize("on_device", [False, True], ids=["values", "arrays"])
def test_three_clipped_updates(cupy, dtype, tolerance, grad_clip, on_device):  # noqa: F811
    """The scale comes from the norm on the device. Rate and corrections are numbers, or arrays as for a graph."""
    n_decayed, rng, loss_scale, decay, beta1, beta2, eps = 3001, np.random.default_rng(2), 16.0, 0.3, 0.8, 0.9, 1e-6
    arrays = weights, gradients, mean, square = initial_state(cupy, dtype)
    w, m, v = (cupy.asnumpy(x).astype(np.float64) for x in (weights, mean, square))
    partial, found = cupy.zeros(gpu.square_sum_blocks(w.size), np.float64), cupy.zeros(2, dtype)
    for update in range(1, 4):
        g = (rng.standard_normal(w.size) * 10.0 ** rng.integers(-3, 2)).astype(dtype)
        gradients[...] = cupy.asarray(g * dtype(loss_scale))
        total = gpu.square_sum(partial, gradients)
        expected_total = (cupy.asnumpy(gradients).astype(np.float64) ** 2).sum()
        np.testing.assert_allclose(cupy.asnumpy(total), [expected_total], rtol=1e-13)

        gpu.clip_scale(found, partial, grad_clip, loss_scale)
        norm = np.linalg.norm(g.astype(np.float64))
        clip = min(1, grad_clip / (norm + 1e-6)) if grad_clip else 1
        np.testing.assert_allclose(cupy.asnumpy(found), [norm, clip / loss_scale], rtol=tolerance)

        rate, correction1, correction2 = 0.1 / update, 1 - beta1**update, 1 - beta2**update
        settings = rate, decay, beta1, beta2, correction1, correction2, eps
        numpy_kernels.adamw(w, g.astype(np.float64), m, v, n_decayed, clip, *settings)
        if on_device:
            rate, correction1, correction2 = (
                cupy.asarray(np.array([x], dtype)) for x in (rate, correction1, correction2)
            )
        settings = rate, decay, beta1, beta2, correction1, correction2, eps
        gpu.adamw(*arrays, n_decayed, found[1:], *settings)
        for x, expected in ((weights, w), (mean, m), (square, v)):
            np.testing.assert_allclose(
                cupy.asnumpy(x), expected, rtol=tolerance, atol=tolerance * np.abs(expected).max()
            )
        assert not cupy.asnumpy(gradients).any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("index", [0, 9000, -1])
def test_a_gradient_that_is_not_finite_updates_nothing(cupy, value, index):  # noqa: F811
    arrays = weights, gradients, mean, square = initial_state(cupy, np.float32, 9001)
    before, g = cupy.asnumpy(weights), cupy.asnumpy(gradients)
    g[index] = value
    gradients[...] = cupy.asarray(g)
    partial, found = cupy.zeros(gpu.square_sum_blocks(9001), np.float64), cupy.zeros(2, np.float32)
    gpu.square_sum(partial, gradients)
    gpu.clip_scale(found, partial, 1.0, 1.0)
    gpu.adamw(*arrays, 100, found[1:], *SETTINGS)
    norm, scale = cupy.asnumpy(found)
    assert not np.isfinite(norm) and np.isnan(scale)
    np.testing.assert_array_equal(cupy.asnumpy(weights), before)
    assert not any(cupy.asnumpy(x).any() for x in (gradients, mean, square))


def test_a_gradient_whose_square_overflows_float32_is_clipped(cupy):  # noqa: F811
    x, partial, found = cupy.asarray(np.full(3, 1e30, np.float32)), cupy.zeros(2, np.float64), cupy.zeros(2, np.float32)
    gpu.square_sum(partial, x)
    gpu.clip_scale(found, partial, 1.0, 1.0)
    np.testing.assert_allclose(cupy.asnumpy(found), [3**0.5 * 1e30, 3**-0.5 * 1e-30], rtol=1e-6)


def test_a_step_of_many_kernels_is_captured_and_replayed(cupy):  # noqa: F811
    """After the first call nothing allocates or synchronizes. A replay reads the present values of scalar arrays."""
    rng = np.random.default_rng(5)
    n, width, vocab = 40, 16, 11

    def random(*shape):
        return cupy.asarray(rng.standard_normal(shape).astype(np.float32))

    def zeros(*shape):
        return cupy.zeros(shape, np.float32)

    def scalar(value, dtype=np.float32):
        return cupy.asarray(np.array([value], dtype))

    tokens, targets = (cupy.asarray(rng.integers(0, vocab, n).astype(np.int32)) for _ in range(2))
    table, weight, bias, cos, sin, logits = (
        random(*shape) for shape in ((vocab, width), (width,), (width,), (10, 4), (10, 4), (n, vocab))
    )
    x, normed, dx = (random(n, width) for _ in range(3))
    dtable, dpositions, dweight, dbias = zeros(vocab, width), zeros(10, width), zeros(width), zeros(width)
    mean, rstd, losses, short = zeros(n), zeros(n), zeros(n), cupy.zeros((n, width), BF16)
    key, scale, rate = scalar(3, np.uint32), scalar(0.1), scalar(0.01)
    flat = initial_state(cupy, np.float32, 64)
    partial, found = cupy.zeros(gpu.square_sum_blocks(64), np.float64), zeros(2)

    def step():
        gpu.embedding_forward(x, tokens, table, None)
        gpu.dropout_forward(x, x, None, (0.2, key))
        gpu.layernorm_forward(normed, mean, rstd, x, weight, bias, 1e-5)
        gpu.rotary_forward(normed, cos, sin, 2, 8)
        gpu.convert(short, normed)
        gpu.gelu_tanh_forward(short, short)
        gpu.accumulate(x, short)
        gpu.softmax_cross_entropy_backward(logits, losses, logits, targets, scale)
        gpu.layernorm_backward(dx, dweight, dbias, normed, x, weight, mean, rstd)
        gpu.embedding_backward(dtable, dpositions, dx, tokens)
        gpu.square_sum(partial, flat[1])
        gpu.clip_scale(found, partial, 1.0, 1.0)
        gpu.adamw(*flat, 10, found[1:], rate, *SETTINGS[1:])

    arrays = [x, normed, dx, logits, dtable, dpositions, dweight, dbias, losses, short, *flat, found]
    before = [array.copy() for array in arrays]
    step()
    first = [cupy.asnumpy(array) for array in arrays]
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        step()
        graph = stream.end_capture()
        for new_key in (3, 4):
            for array, initial in zip(arrays, before):
                array[...] = initial
            key[...] = new_key
            graph.launch(stream)
            stream.synchronize()
            again = [cupy.asnumpy(array) for array in arrays]
            same = [np.array_equal(a, b, equal_nan=True) for a, b in zip(first, again)]
            assert all(same) if new_key == 3 else not all(same)
