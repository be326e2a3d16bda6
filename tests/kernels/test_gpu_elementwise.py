"""GPU kernels over elements and rows: 16-bit types, extreme values, orders of threads, and access without vectors.

tests/kernels/test_kernel_sets.py compares them with the NumPy set in float32 and float64.
"""

import math

import numpy as np
import pytest
from cuda_emulator import emulating
from fake_cupy import cupy  # noqa: F401  a fixture
from gpu_cases import on_gpu
from kernel_cases import ACTIVATIONS, CASES, EPS, ULP, Kernels, normal
from sixteen_bit import F16, HALF_ULP, SMALLEST, exact, stored

from slm_np.dtypes import BF16
from slm_np.kernels import gpu
from slm_np.kernels import numpy as numpy_kernels
from slm_np.kernels.gpu.vector import vector_size
from slm_np.kernels.numpy.dropout import dropout_mask
from slm_np.ops import rotary_table

pytestmark = pytest.mark.usefixtures("cupy")
SHORT = pytest.mark.parametrize("short", [BF16, F16], ids=["bf16", "fp16"])


def nan(shape, dtype=np.float32):
    """An output."""
    return stored(np.full(shape, np.nan), dtype)


def assert_rounded(found, expected):
    """`found` is `expected`, rounded to its type, up to the error of float32 arithmetic."""
    dtype, found = found.dtype, exact(found)
    relative, size = HALF_ULP.get(dtype, 0) + 16 * ULP, np.abs(expected).max()
    assert (np.abs(found - expected) <= relative * np.abs(expected) + SMALLEST.get(dtype, 0) + 8 * ULP * size).all()


FAMILIES = (
    *ACTIVATIONS,
    "rmsnorm",
    "layernorm",
    "head_norm",
    "embedding",
    "rotary",
    "accumulate",
    "convert",
    "dropout",
    "softmax_cross_entropy",
)


@pytest.mark.parametrize("order", ["reversed", "shuffled"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_order_of_threads_changes_no_bit(cupy, family, order):  # noqa: F811
    """A race would. The cases are the largest of a family."""
    cases = [case for case in CASES if case.id.split(" ")[0] == family]
    largest = sorted(cases, key=lambda case: max(x.size for x in case.inputs.values()))[-2:]
    assert largest
    kernels = Kernels(gpu, np.float32, start=1, arrays=cupy)
    for case in largest:
        expected = kernels.results(case)
        with emulating(order=order, seed=3):
            for name, x in kernels.results(case).items():
                np.testing.assert_array_equal(x, expected[name], name)


# Activations


@SHORT
@pytest.mark.parametrize("shape", [(3, 7), (5, 64)])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_in_16_bits(name, shape, short):
    columns = shape[1] * (2 if name == "swiglu" else 1)
    x, dout = stored(normal(shape[0], columns), short), stored(normal(*shape, seed=1), short)
    expected_out, expected_dx = np.empty(shape), exact(x)
    getattr(numpy_kernels, f"{name}_forward")(expected_out, exact(x))
    getattr(numpy_kernels, f"{name}_backward")(expected_dx, exact(dout))
    out = nan(shape, short)
    getattr(on_gpu, f"{name}_forward")(out, x)
    assert_rounded(out, expected_out)
    for dout_dtype in (short, np.float32):  # the head's gradient is float32
        dx, again = x.copy(), dout if dout_dtype == short else exact(dout).astype(np.float32)
        again = again.copy()
        getattr(on_gpu, f"{name}_backward")(dx, again)
        assert_rounded(dx, expected_dx)
        assert_rounded(again, expected_out)


# Norms and rotary positions


@SHORT
@pytest.mark.parametrize("width", [7, 72])
def test_norms_in_16_bits(width, short):
    """`out` and `dout` are of 16 bits."""
    rows = 37
    x, dout = normal(rows, width), stored(normal(rows, width, seed=1), short)
    weight, bias = normal(width), normal(width, seed=1)
    wide = [a.astype(np.float64) for a in (x, weight, bias)]
    expected, expected_mean, expected_rstd = np.empty((rows, width)), np.empty(rows), np.empty(rows)
    expected_gradients = [np.ones(a.shape) for a in wide]
    numpy_kernels.layernorm_forward(expected, expected_mean, expected_rstd, *wide, EPS)
    numpy_kernels.layernorm_backward(*expected_gradients, exact(dout), *wide[:2], expected_mean, expected_rstd)

    out, mean, rstd = nan((rows, width), short), nan(rows), nan(rows)
    gradients = [np.ones(a.shape, np.float32) for a in wide]
    on_gpu.layernorm_forward(out, mean, rstd, x, weight, bias, EPS)
    on_gpu.layernorm_backward(*gradients, dout, x, weight, mean, rstd)
    assert_rounded(out, expected)
    for found, gradient in zip(gradients, expected_gradients):
        assert_rounded(found, gradient)

    numpy_kernels.rmsnorm_forward(expected, expected_rstd, *wide[:2], EPS)
    on_gpu.rmsnorm_forward(out, rstd, x, weight, EPS)
    assert_rounded(out, expected)


@SHORT
@pytest.mark.parametrize("width", [7, 72])
def test_norms_of_heads_in_16_bits(width, short):
    """All arrays but the weights and statistics have 16 bits."""
    rows, heads, kv_heads = 37, 3, 2
    shape = rows, (heads + 2 * kv_heads) * width
    qkv, dout = stored(normal(*shape), short), stored(normal(*shape, seed=1), short)
    weights = normal(width), normal(width, seed=1)
    wide = [w.astype(np.float64) for w in weights]
    expected, expected_rstd = np.empty(shape), np.empty((rows, heads + kv_heads))
    expected_gradients = [exact(qkv), np.ones(width), np.ones(width)]
    numpy_kernels.head_norm_forward(expected, expected_rstd, exact(qkv), *wide, heads, kv_heads, EPS)
    numpy_kernels.head_norm_backward(*expected_gradients, exact(dout), *wide, expected_rstd, heads, kv_heads)

    out, rstd = nan(shape, short), nan((rows, heads + kv_heads))
    gradients = [qkv.copy(), *(np.ones(width, np.float32) for _ in range(2))]
    on_gpu.head_norm_forward(out, rstd, qkv, *weights, heads, kv_heads, EPS)
    on_gpu.head_norm_backward(*gradients, dout, *weights, rstd, heads, kv_heads)
    for found, result in zip((out, rstd, *gradients), (expected, expected_rstd, *expected_gradients)):
        assert_rounded(found, result)
    values = slice((heads + kv_heads) * width, None)
    np.testing.assert_array_equal(out[:, values], qkv[:, values])
    np.testing.assert_array_equal(gradients[0][:, values], dout[:, values])


@SHORT
@pytest.mark.parametrize("width, rotated, more", [(6, 6, 0), (32, 32, 8), (10, 4, 3), (32, 16, 8)])
def test_rotary_in_16_bits(width, rotated, more, short):
    """Rows have three heads and `more` columns; the first columns of two heads are rotated."""
    batch, steps = 2, 5
    x = stored(normal(batch * steps, 3 * width + more), short)
    cos, sin = (np.zeros((steps, rotated // 2), np.float32) for _ in range(2))
    rotary_table(cos, sin, 100.0)
    expected, found = exact(x), x.copy()
    numpy_kernels.rotary_forward(expected, cos.astype(np.float64), sin.astype(np.float64), 2, width)
    on_gpu.rotary_forward(found, cos, sin, 2, width)
    turned = np.arange(3 * width + more)
    turned = (turned < 2 * width) & (turned % width < rotated)
    assert_rounded(found[:, turned], expected[:, turned])
    np.testing.assert_array_equal(found[:, ~turned], x[:, ~turned])


# Sums and conversions


@SHORT
@pytest.mark.parametrize("width", [7, 64])
def test_sums_and_conversions_of_16_bits(width, short):
    x = stored(normal(9, width), short)
    total, single, back = np.ones((9, width), np.float32), nan((9, width)), nan((9, width), short)
    on_gpu.accumulate(total, x)
    np.testing.assert_array_equal(total, np.float32(1) + exact(x).astype(np.float32))
    on_gpu.convert(single, x)
    np.testing.assert_array_equal(single, exact(x))
    on_gpu.convert(back, single)
    np.testing.assert_array_equal(back, x)


@SHORT
def test_conversion_rounds_to_nearest_even(short):
    x = normal(9, 64, seed=1)
    x[0, :5] = np.nan, np.inf, -np.inf, 0, -0.0
    x[1, :2] = 1 + 3 * HALF_ULP[short], 1 + HALF_ULP[short]  # halfway between two values
    found = nan(x.shape, short)
    on_gpu.convert(found, x)
    np.testing.assert_array_equal(exact(found), exact(stored(x, short)))


# Dropout


@pytest.mark.parametrize("rate, key", [(0.0, 1), (0.1, (1 << 31) - 1), (0.5, 77), (0.95, (1 << 32) - 1)])
def test_dropout_has_the_mask_of_every_kernel_set(cupy, rate, key):  # noqa: F811
    shape = 33, 21
    x, residual = normal(*shape) + 10, normal(*shape, seed=1)
    out, dx = nan(shape), nan(shape)
    on_gpu.dropout_forward(out, x, residual, (rate, key))
    on_gpu.dropout_backward(dx, x, (rate, key))
    np.testing.assert_array_equal(dx, x * dropout_mask(x, 0, (rate, key)))
    np.testing.assert_allclose(out, dx + residual, rtol=2e-7, atol=2e-6)
    in_place, device_key = cupy.asarray(x), cupy.asarray(np.array([key], np.uint32))
    gpu.dropout_backward(in_place, in_place, (rate, device_key))
    np.testing.assert_array_equal(cupy.asnumpy(in_place), dx)


@SHORT
@pytest.mark.parametrize("shape", [(3, 7), (4, 64)])
def test_dropout_in_16_bits(shape, short):
    x, residual, dropout = stored(normal(*shape), short), normal(*shape, seed=1), (0.4, 9)
    mask = dropout_mask(exact(x), 0, dropout)
    out, dx = nan(shape), nan(shape, short)
    on_gpu.dropout_forward(out, x, residual, dropout)
    np.testing.assert_allclose(out, residual + exact(x) * mask, rtol=1e-6, atol=1e-6)
    for dout in (residual, x):
        on_gpu.dropout_backward(dx, dout, dropout)
        assert_rounded(dx, exact(dout) * mask)


# Vectorized access


@pytest.mark.parametrize(
    "dtype, full",
    [(np.dtype(np.float32), 4), (np.dtype(np.float64), 2), (BF16, 8), (F16, 8)],
    ids=["f32", "f64", "bf16", "fp16"],
)
def test_results_without_vectorized_access_are_the_same(cupy, dtype, full):  # noqa: F811
    """An array that is not aligned is accessed element by element."""
    x, dout, residual = (stored(normal(5, 64, seed=i), dtype) for i in range(3))
    table_dtype = np.float64 if full == 2 else np.float32

    def at(x, shift):
        """A copy on the device, `shift` elements from an aligned address."""
        memory = cupy.zeros(math.prod(x.shape) + 8, x.dtype)
        view = memory[shift : shift + x.size].reshape(x.shape)
        view[...] = cupy.asarray(x)
        return view

    results = []
    for shift in (0, 1):
        assert vector_size(64, at(x, shift)) == (1 if shift else full)
        out, dx, again, rotated = (at(z, shift) for z in (x, x, dout, x))
        cos, sin = (at(normal(5, 16, seed=7 + i).astype(table_dtype), shift) for i in range(2))
        gpu.dropout_forward(out, at(x, shift), at(residual, shift), (0.3, 5))
        gpu.gelu_backward(dx, again)
        gpu.rotary_forward(rotated, cos, sin, 2, 32)
        normed, rstd, dqkv, qkv = at(x, shift), at(np.ones((5, 3), table_dtype), shift), at(x, shift), at(x, shift)
        weights = [at(normal(16, seed=9 + i).astype(table_dtype), shift) for i in range(2)]
        dweights = [at(np.zeros(16, table_dtype), shift) for _ in range(2)]
        gpu.head_norm_forward(normed, rstd, qkv, *weights, 2, 1, EPS)
        gpu.head_norm_backward(dqkv, *dweights, at(dout, shift), *weights, rstd, 2, 1)
        results.append([cupy.asnumpy(z) for z in (out, dx, again, rotated, normed, dqkv, *dweights)])
    for aligned, shifted in zip(*results, strict=True):
        np.testing.assert_allclose(exact(aligned), exact(shifted), rtol=4 * ULP, atol=4 * ULP)
