"""Matmuls and linear layers on the GPU against float64: all types, odd shapes, strided rows, prefilled outputs, column
sums.

Arrays are surrounded by NaN, which no kernel may read into a result or overwrite.
"""

import itertools

import numpy as np
import pytest
from cuda_emulator import emulating
from fake_cupy import cupy  # noqa: F401  a fixture
from sixteen_bit import F16, exact, stored

from slm_np.dtypes import BF16
from slm_np.kernels.gpu import linear
from slm_np.kernels.gpu.gemm import gemm

pytestmark = pytest.mark.usefixtures("cupy")
F32, F64 = map(np.dtype, (np.float32, np.float64))
UNIT = {F32: 2.0**-24, F64: 2.0**-53}  # rounding error of sums
ROUNDING = {BF16: 2.0**-8, F16: 2.0**-11, F32: 0.0, F64: 0.0}  # error of rounding a sum to the output's type
SMALLEST = {BF16: 0.0, F16: 2.0**-24, F32: 0.0, F64: 0.0}
DTYPES = pytest.mark.parametrize(
    "compute_dtype, out_dtype",
    [(F32, F32), (F64, F64), (BF16, F32), (BF16, BF16), (F16, F32), (F16, F16)],
    ids=["f32", "f64", "bf16-f32", "bf16", "f16-f32", "f16"],
)
COMPUTE_DTYPES = pytest.mark.parametrize("compute_dtype", [F32, F64, BF16, F16], ids=["f32", "f64", "bf16", "f16"])
SHORT_DTYPES = pytest.mark.parametrize("dtype", [BF16, F16], ids=["bf16", "f16"])
SHAPES = pytest.mark.parametrize(
    "m, k, n", [(1, 1, 1), (1, 3, 2), (5, 1, 7), (16, 8, 24), (33, 65, 17), (7, 64, 96), (3, 1500, 2)]
)


def accumulation_dtype(compute_dtype):
    return F64 if compute_dtype == F64 else F32


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def on_device(x, dtype=None):
    """A copy on the device, in a storage type if one is given."""
    import cupy  # noqa: F811

    return cupy.asarray(x if dtype is None else stored(x, dtype))


def on_host(x):
    """A copy on the host."""
    import cupy  # noqa: F811

    return cupy.asnumpy(x)


class Guarded:
    """A device array surrounded by NaN.

    array: holds x, or NaN if x is a shape; its rows are `gap` elements apart, and `shift` elements precede the first
    """

    def __init__(self, x, dtype, gap=0, shift=0):
        shape = x if isinstance(x, tuple) else x.shape
        self.inside = np.s_[1 : 1 + shape[0], shift : shift + shape[1]]
        whole = np.empty((shape[0] + 2, shift + shape[1] + gap), dtype)
        whole.view(np.uint8).fill(0xFF)
        if shape is not x:
            whole[self.inside] = stored(x, dtype)
        self.before, self.whole = whole, on_device(whole)
        self.array = self.whole[self.inside]

    def values(self):
        """What the array holds as float64, after a check that the surrounding NaN is unchanged."""
        found, outside = on_host(self.whole), np.ones(self.before.shape, bool)
        outside[self.inside] = False
        bits = f"u{found.itemsize}"
        np.testing.assert_array_equal(found.view(bits)[outside], self.before.view(bits)[outside])
        return exact(found[self.inside])


def assert_matmul(found, a, b, out_dtype, initial=0.0, also_rounded=0.0, compute_dtype=None):
    """found = initial + a b, up to the rounding errors of the sums and of the result.

    also_rounded: what else was rounded to the output's type
    """
    expected, unit = initial + a @ b, UNIT[accumulation_dtype(compute_dtype or out_dtype)]
    sizes = np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=0) + np.abs(initial)
    bound = 8 * unit * sizes + ROUNDING[out_dtype] * also_rounded
    bound = bound + ROUNDING[out_dtype] * (np.abs(expected) + bound) + SMALLEST[out_dtype]
    assert np.isfinite(found).all() and (np.abs(found - expected) <= bound).all()


# Matmuls


@DTYPES
@SHAPES
def test_gemm(compute_dtype, out_dtype, m, k, n):
    for transpose_a, transpose_b, gap in itertools.product((False, True), (False, True), (0, 3)):
        a = Guarded(normal(*((k, m) if transpose_a else (m, k))), compute_dtype, gap, gap)
        b = Guarded(normal(*((n, k) if transpose_b else (k, n)), seed=1), compute_dtype, gap)
        A, B = (exact(x.before[x.inside]) for x in (a, b))
        A, B = A.T if transpose_a else A, B.T if transpose_b else B
        c = Guarded((m, n), out_dtype, gap)
        gemm(c.array, a.array, b.array, transpose_a, transpose_b)  # does not read the NaN in C
        assert_matmul(c.values(), A, B, out_dtype, compute_dtype=compute_dtype)
        before = normal(m, n, seed=2)
        c = Guarded(before, out_dtype, gap)
        gemm(c.array, a.array, b.array, transpose_a, transpose_b, alpha=-0.5, beta=2.0)
        before = exact(stored(before, out_dtype))
        assert_matmul(c.values(), -0.5 * A, B, out_dtype, 2 * before, compute_dtype=compute_dtype)


def test_float32_is_not_multiplied_in_tf32(cupy):  # noqa: F811
    """TF32 keeps 10 bits of the mantissa, so these elements would be 1."""
    a, c = cupy.full((64, 64), 1 + 2.0**-12, F32), cupy.empty((64, 64), F32)
    gemm(c, a, a)
    np.testing.assert_allclose(on_host(c), 64 * (1 + 2.0**-12) ** 2, rtol=4 * UNIT[F32])


@SHORT_DTYPES
def test_16_bit_results_are_rounded_once(cupy, dtype):  # noqa: F811
    """If the parts of a long sum were rounded too, where cuBLAS splits it, most results would not be the nearest."""
    a, b, c = on_device(normal(24, 8192), dtype), on_device(normal(8192, 24), dtype), cupy.empty((24, 24), dtype)
    gemm(c, a, b)
    assert (on_host(c) == stored(exact(on_host(a)) @ exact(on_host(b)), dtype)).mean() > 0.98


def test_invalid_matmuls_are_refused(cupy):  # noqa: F811
    f, d, h = (cupy.zeros((4, 4), dtype) for dtype in (F32, F64, BF16))
    for c, a, b in (
        (d, f, f),
        (f, f, h),
        (h, f, f),
        (f, d, d),
        (f, h, cupy.zeros((4, 4), F16)),
        (cupy.zeros((4, 4), np.int32), f, f),
    ):
        with pytest.raises(TypeError, match="is not supported"):
            gemm(c, a, b)
    for c, a, b in ((f, f[:2], f), (f, f[:, :2], f), (f[:2], f, f)):
        with pytest.raises(ValueError, match="does not match"):
            gemm(c, a, b)
    column = cupy.ones((4, 1), F32)
    gemm(f[:1], column.T, f)  # a single row may have any stride
    with pytest.raises(ValueError, match="contiguous elements"):
        gemm(f, f, f.T)
    with pytest.raises(ValueError, match="contiguous elements"):
        gemm(f[:, :2], f, cupy.zeros((4, 4), F32)[:, ::2])


# Linear layers


def weights(w, compute_dtype, cast):
    """A weight as matmuls take it, an array or a CastCopy, and its values."""
    if not cast:
        return on_device(w, compute_dtype), exact(stored(w, compute_dtype))
    copy = linear.cast_copy(on_device(w, F32), compute_dtype)
    linear.update_cast_copy(copy)
    return copy, exact(stored(w.astype(np.float32), compute_dtype))


@DTYPES
@SHAPES
def test_linear_forward_with_bias_and_residual(compute_dtype, out_dtype, m, k, n):
    sums, residual = accumulation_dtype(compute_dtype), normal(m, n, seed=3)
    x, bias = stored(normal(m, k), compute_dtype), stored(normal(n, seed=2), sums)
    w, W = weights(normal(k, n, seed=1), compute_dtype, compute_dtype in (BF16, F16))
    for has_bias, kind, gap in itertools.product((False, True), ("none", "other", "same", "wide"), (0, 4)):
        out = Guarded(residual if kind == "same" else (m, n), out_dtype, gap)
        residual_dtype = sums if kind == "wide" else out_dtype
        device_residual = {
            "none": None,
            "same": out.array,  # the output itself
            "other": Guarded(residual, residual_dtype, gap).array,
            "wide": Guarded(residual, residual_dtype, gap).array,  # in the accumulation dtype
        }[kind]
        linear.linear_forward(out.array, on_device(x), w, on_device(bias) if has_bias else None, device_residual)
        initial = has_bias * exact(bias) + (kind != "none") * exact(stored(residual, residual_dtype))
        assert_matmul(out.values(), exact(x), W, out_dtype, initial, np.abs(initial), compute_dtype)


@DTYPES
@SHAPES
def test_linear_backward_and_transposed_layers(compute_dtype, out_dtype, m, k, n):
    cast, sums = compute_dtype in (BF16, F16), accumulation_dtype(compute_dtype)
    x, dout = normal(m, k), normal(m, n, seed=1)
    w, W = weights(normal(k, n, seed=2), compute_dtype, cast)
    wt, WT = weights(normal(n, k, seed=3), compute_dtype, cast)
    X, D = exact(stored(x, compute_dtype)), exact(stored(dout, compute_dtype))
    # Rows of dout may be longer than the vocabulary; no matmul reads the rest.
    longer = Guarded(np.pad(dout, ((0, 0), (0, 3)), constant_values=np.nan), compute_dtype, 8).array
    x, dout = Guarded(x, compute_dtype, 8).array, Guarded(dout, compute_dtype, 8).array
    dx, out, dx_transposed = (Guarded(shape, out_dtype) for shape in ((m, k), (m, n), (m, k)))
    dweight, dweight_transposed = Guarded(np.ones((k, n)), sums), Guarded(np.ones((n, k)), sums)
    dbias = Guarded(np.ones((1, n)), sums, 1)
    linear.linear_backward_input(dx.array, dout, w)
    linear.linear_backward_weight(dweight.array, dbias.array[0], dout, x)
    linear.linear_transposed_forward(out.array, x, wt)
    linear.linear_transposed_backward(dx_transposed.array, dweight_transposed.array, longer, x, wt)
    for found, a, b in ((dx, D, W.T), (out, X, WT.T), (dx_transposed, D, WT)):
        assert_matmul(found.values(), a, b, out_dtype, compute_dtype=compute_dtype)
    for found, a, b in ((dweight, X.T, D), (dweight_transposed, D.T, X), (dbias, np.ones((1, m)), D)):
        assert_matmul(found.values(), a, b, sums, 1.0)
    linear.linear_backward_weight(dweight.array, None, dout, x)
    assert_matmul(dweight.values(), 2 * X.T, D, sums, 1.0)


@SHORT_DTYPES
@pytest.mark.parametrize("d, e", [(1, 1), (3, 5), (32, 48)])
def test_cast_copy(dtype, d, e):
    w = normal(d, e).astype(np.float32)
    flat = on_device(np.concatenate([np.zeros(1, np.float32), w.reshape(-1)]))
    copy = linear.cast_copy(flat[1:].reshape(d, e), dtype)  # not aligned for vectorized access
    assert (copy.shape, copy.size, copy.nbytes) == ((d, e), d * e, 2 * d * e)
    assert copy.forward is copy.backward and copy.forward.dtype == dtype
    linear.update_cast_copy(copy)
    np.testing.assert_array_equal(on_host(copy.forward), stored(w, dtype))


# Prefilled outputs


@COMPUTE_DTYPES
def test_a_prefilled_sum_is_rounded_once(compute_dtype):
    for (m, n), gap, shift in itertools.product([(1, 1), (3, 5), (5, 64), (300, 12), (2, 1028)], (0, 4, 1), (0, 1)):
        sums, residual = accumulation_dtype(compute_dtype), normal(m, n)
        bias = stored(normal(n, seed=1), sums)
        for residual_dtype in {compute_dtype, sums}:
            out, other = Guarded((m, n), compute_dtype, gap, shift), Guarded(residual, residual_dtype, gap)
            R = exact(stored(residual, residual_dtype))
            linear.prefill(out.array, on_device(bias), other.array)
            np.testing.assert_array_equal(out.values(), exact(stored(R.astype(sums) + bias, compute_dtype)))
            linear.prefill(out.array, None, other.array)
            np.testing.assert_array_equal(out.values(), exact(stored(R, compute_dtype)))
        linear.prefill(out.array, on_device(bias), None)
        np.testing.assert_array_equal(out.values(), np.broadcast_to(exact(stored(bias, compute_dtype)), (m, n)))


def test_few_blocks_prefill_many_rows(cupy):  # noqa: F811
    for m, n in ((37, 65), (300, 7), (2, 3000), (1, 1)):
        residual, bias, out = normal(m, n), normal(n), cupy.zeros((m, n), F64)
        arguments = out, on_device(bias), on_device(residual), m, n, n, n
        linear.prefill_kernel(3, arguments, Out=F64, Residual=F64, VEC=1)
        np.testing.assert_array_equal(on_host(out), residual + bias)


def test_vectorized_access_needs_alignment(cupy):  # noqa: F811
    """A GPU cannot load 8 or 16 bytes from an address that is no multiple of it."""
    for dtype, vec in ((F32, 4), (BF16, 8), (F64, 2)):
        flat = cupy.zeros(16 * 64 + vec, dtype)
        for start in range(vec + 1):
            x = flat[start : start + 16 * 64].reshape(16, 64)
            assert linear.vectorizes(vec, x) == linear.vectorizes(vec, x[1:, :vec]) == (start % vec == 0)
            assert not linear.vectorizes(vec, x[:, : vec + 1])
        odd_stride = flat[: 60 * 17].reshape(60, 17)
        assert not linear.vectorizes(vec, odd_stride[:, : 2 * vec])


def test_a_residual_that_is_the_output_is_not_copied(cupy, monkeypatch):  # noqa: F811
    monkeypatch.setattr(linear, "prefill", None)
    out = cupy.ones((3, 5), F32)
    linear.linear_forward(out, cupy.ones((3, 2), F32), cupy.ones((2, 5), F32), None, out)
    assert (on_host(out) == 3).all()


# Column sums


@COMPUTE_DTYPES
def test_column_sums(compute_dtype):
    """Any shape and alignment, and the same bits in every order of threads."""
    sums = accumulation_dtype(compute_dtype)
    for (m, n), gap, shift in itertools.product([(1, 1), (3, 5), (700, 16), (2100, 40), (515, 33)], (0, 8), (0, 1)):
        x, found = normal(m, n), []
        dout = Guarded(x, compute_dtype, gap, shift)
        for order in ("forward", "reversed", "shuffled"):
            dbias = Guarded(np.ones((1, n)), sums)
            with emulating(order=order):
                linear.add_column_sums(dbias.array[0], dout.array)
            found.append(dbias.values())
        X = exact(stored(x, compute_dtype))
        assert (np.abs(found[0][0] - (1 + X.sum(0))) <= 4 * UNIT[sums] * (1 + np.abs(X).sum(0))).all()
        np.testing.assert_array_equal(found[1], found[0])
        np.testing.assert_array_equal(found[2], found[0])


@COMPUTE_DTYPES
def test_nan_stays_in_its_column(cupy, compute_dtype):  # noqa: F811
    x = normal(515, 33)
    x[257, 1] = np.nan
    dbias = cupy.zeros(33, accumulation_dtype(compute_dtype))
    linear.add_column_sums(dbias, on_device(x, compute_dtype))
    np.testing.assert_array_equal(np.isnan(on_host(dbias)), np.arange(33) == 1)


# In a captured graph


@pytest.mark.parametrize("compute_dtype", [F32, BF16], ids=["f32", "bf16"])
def test_a_layer_is_captured_and_replayed(cupy, compute_dtype):  # noqa: F811
    """Nothing allocates or synchronizes. A replay reads the arrays' present values, with the bits of plain calls."""
    m, k, n = 33, 24, 40
    w, _ = weights(normal(k, n), compute_dtype, compute_dtype == BF16)
    x, dout = on_device(normal(m, k), compute_dtype), on_device(normal(m, n), compute_dtype)
    residual, bias = on_device(normal(m, n, seed=1), F32), on_device(normal(n), F32)
    out, dx, dweight, dbias = (cupy.zeros(shape, F32) for shape in ((m, n), (m, k), (k, n), (n,)))
    hidden = cupy.zeros((m, n), compute_dtype)

    def layer():
        if compute_dtype == BF16:
            linear.update_cast_copy(w)
        linear.linear_forward(out, x, w, bias, residual)
        linear.linear_forward(hidden, x, w, bias, None)
        linear.linear_backward_input(dx, dout, w)
        linear.linear_backward_weight(dweight, dbias, dout, x)

    def results():
        found = dict(out=out, hidden=hidden, dx=dx, dweight=dweight, dbias=dbias)
        found = {name: on_host(array).copy() for name, array in found.items()}
        dweight.fill(0)
        dbias.fill(0)
        return found

    stream, new_x = cupy.cuda.Stream(non_blocking=True), on_device(normal(m, k, seed=7), compute_dtype)
    with stream:
        layer()  # compiles the kernels, and cuBLAS allocates its workspace
        first = results()
        stream.begin_capture()
        layer()
        graph = stream.end_capture()
        x[...] = new_x
        graph.launch(stream)
        stream.synchronize()
        replayed = results()
        layer()
        stream.synchronize()
        plain = results()
    for name in first:
        np.testing.assert_array_equal(replayed[name], plain[name])
        depends_on_x = name not in ("dx", "dbias")
        assert (replayed[name] != first[name]).any() == depends_on_x
