"""How GPU kernels are compiled and launched, and the CUDA helpers that every source may use."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fake_cupy import cupy  # noqa: F401  a fixture
from gpu_kernels import COPY, copy_kernel, local_kernel, reduce_kernel, scale_kernel

from slm_np.dtypes import BF16
from slm_np.kernels.gpu.source import grid
from slm_np.kernels.numpy.dropout import hashed

# Kernels


def test_grid_size():
    assert [grid(n) for n in (0, 1, 256, 257, 10**9)] == [1, 1, 1, 2, 4096]
    assert grid(100, threads=32) == 4 and grid(10**9, limit=7) == 7


def test_cupy_is_not_imported_before_a_launch():
    code = "import sys; sys.modules['cupy'] = None; import slm_np.kernels.gpu.source"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).resolve().parents[2]).returncode == 0


@pytest.mark.parametrize("n", (1, 255, 1000))
@pytest.mark.parametrize("dtype", (np.float32, np.float64, BF16, np.float16))
def test_types_may_be_given_by_arrays(cupy, dtype, n):  # noqa: F811
    x = np.arange(n) % 128  # exact in every type
    stored = x.astype(np.float32).view(np.uint32) >> 16 if dtype is BF16 else x
    out, source = cupy.empty(n, np.float64), cupy.asarray(stored.astype(dtype))
    copy_kernel(grid(n), (out, source, n), To=out, From=source)
    np.testing.assert_array_equal(cupy.asnumpy(out), x)
    back = cupy.empty(n, dtype)
    copy_kernel(grid(n), (back, out, n), To=np.dtype(dtype), From="double")
    np.testing.assert_array_equal(cupy.asnumpy(back), cupy.asnumpy(source))


many_parameters = local_kernel(
    "many_parameters",
    r"""
extern "C" __global__ void __launch_bounds__(COUNT)
many_parameters(double* out, int a, unsigned b, size_t c,  // a comment, with a comma
                float d, double e, Accum f, bool g, const float* __restrict__ absent, long long h) {
    if (threadIdx.x) return;
    double all[] = {(double)a, (double)b, (double)c, d, e, (double)f, (double)g, (double)(absent == nullptr),
                    (double)h, (double)COUNT};
    for (int i = 0; i < 10; i++) out[i] = all[i];
}""",
)


def test_arguments_are_converted_to_the_signatures_types(cupy):  # noqa: F811
    assert many_parameters.parameters[0] == ("double*", "out")
    assert many_parameters.parameters[8:] == [("float*", "absent"), ("long long", "h")]
    out = cupy.empty(10)
    arguments = out, -3, 2**32 - 1, 2**40, 0.5, 1 / 3, 0.25, True, None, -(2**40)
    many_parameters(1, arguments, threads=64, COUNT=64, Kind="double")
    assert cupy.asnumpy(out).tolist() == [-3, 2**32 - 1, 2**40, 0.5, 1 / 3, 0.25, 1, 1, -(2**40), 64]
    arguments = out, np.int64(7), np.uint8(1), np.int32(2), 1, 2, np.float32(3), False, None, 0
    many_parameters(1, arguments, threads=32, COUNT=np.int64(32))  # Accum is float here
    assert cupy.asnumpy(out).tolist() == [7, 1, 2, 1, 2, 3, 0, 1, 0, 32]


def test_arguments_of_other_types_are_refused(cupy):  # noqa: F811
    out = cupy.empty(10)
    good = [out, 1, 1, 1, 1.0, 1.0, 1.0, True, None, 1]
    for index, bad, error in (
        (0, cupy.empty(10, np.float32), TypeError),
        (1, 2**31, OverflowError),
        (2, -1, OverflowError),
        (3, -1, OverflowError),
        (1, 1.5, TypeError),
        (4, out, TypeError),
        (8, out, TypeError),
        (3, out, TypeError),
    ):
        with pytest.raises(error):
            many_parameters(1, (*good[:index], bad, *good[index + 1 :]), COUNT=32)
    with pytest.raises(TypeError, match="takes 10 arguments, not 9"):
        many_parameters(1, good[:-1], COUNT=32)
    with pytest.raises(Exception, match="at most 32|CUDA_ERROR"):
        many_parameters(1, good, threads=64, COUNT=32)  # more than the kernel's __launch_bounds__


def test_a_source_without_the_kernel_is_refused():
    with pytest.raises(ValueError, match="defines no kernel other"):
        local_kernel("other", COPY)


def test_blocks_and_threads_of_three_dimensions(cupy):  # noqa: F811
    coordinates = local_kernel(
        "coordinates",
        r"""
    extern "C" __global__ void coordinates(int* out) {
        size_t block = blockIdx.x + gridDim.x * (blockIdx.y + (size_t)gridDim.y * blockIdx.z);
        out[block * threads_in_block() + thread_in_block()] = threadIdx.x + 10 * threadIdx.y + 100 * threadIdx.z
            + 1000 * blockIdx.x + 10000 * blockIdx.y + 100000 * blockIdx.z;
    }""",
    )
    out = cupy.empty((2, 3, 4, 2, 3, 5), np.int32)
    coordinates((4, 3, 2), (out,), threads=(5, 3, 2))
    weights = (100000, 10000, 1000, 100, 10, 1)
    np.testing.assert_array_equal(cupy.asnumpy(out), sum(w * i for w, i in zip(weights, np.indices(out.shape))))


def test_dynamic_shared_memory(cupy):  # noqa: F811
    reverse = local_kernel(
        "reverse",
        r"""
    extern "C" __global__ void reverse(float* out, const float* x, int n) {
        extern __shared__ float shared[];
        for (int i = threadIdx.x; i < n; i += blockDim.x) shared[i] = x[i];
        __syncthreads();
        for (int i = threadIdx.x; i < n; i += blockDim.x) out[i] = shared[n - 1 - i];
    }""",
    )
    for n in (100, 15000, 100):  # 15000 elements exceed the default limit
        x = np.random.default_rng(n).normal(size=n).astype(np.float32)
        out = cupy.empty(n, np.float32)
        reverse(1, (out, cupy.asarray(x), n), shared=4 * n)
        np.testing.assert_array_equal(cupy.asnumpy(out), x[::-1])


# Scalars


def test_scalars_by_value_and_by_array(cupy):  # noqa: F811
    out, index = cupy.empty(32, np.float32), np.arange(32)
    scale_kernel(1, (out, 0.5, 2**32 - 1, 0.25))
    np.testing.assert_array_equal(cupy.asnumpy(out), 0.5 * index + (2**32 - 1) % 1000 + 0.25)
    rates = cupy.asarray(np.array([1, 2, 4], np.float32))
    scale_kernel(1, (out, rates[2], cupy.asarray(np.array([7], np.uint32)), rates[:1]))
    np.testing.assert_array_equal(cupy.asnumpy(out), 4 * index + 8)
    for bad in (rates, cupy.zeros(1), "x", None):
        with pytest.raises(TypeError):
            scale_kernel(1, (out, bad, 0, 0))


def test_a_replayed_graph_reads_the_present_scalar(cupy):  # noqa: F811
    out, rate, stream = cupy.zeros(32, np.float32), cupy.full(1, 2, np.float32), cupy.cuda.Stream(non_blocking=True)
    scale_kernel(1, (out, rate, 0, 0))  # compiles it
    out += 1
    cupy.cuda.Device().synchronize()
    with stream:
        stream.begin_capture()
        scale_kernel(1, (out, rate, 0, 0))
        out += 1
        graph = stream.end_capture()
    for value in (3, 5):
        rate.fill(value)
        cupy.cuda.Device().synchronize()
        graph.launch(stream)
        stream.synchronize()
        np.testing.assert_array_equal(cupy.asnumpy(out), value * np.arange(32) + 1)


# Reductions


@pytest.mark.parametrize("threads", (32, 96, (16, 4, 2), 1024))
@pytest.mark.parametrize("dtype", (np.float32, np.float64, np.int32))
def test_reductions_reach_every_thread(cupy, dtype, threads):  # noqa: F811
    count = int(np.prod(threads))
    x = (np.random.default_rng(0).normal(size=(3, count)) * 100).astype(dtype)
    out = cupy.empty((3, 4, count), dtype)
    reduce_kernel(3, (out, cupy.asarray(x)), threads=threads, Element=out)
    warps, wide = x.reshape(3, -1, 32), x.astype(np.float64)
    expected = [
        warps.astype(np.float64).sum(2).repeat(32, 1),
        warps.max(2).repeat(32, 1),
        wide.sum(1)[:, None].repeat(count, 1),
        wide.max(1)[:, None].repeat(count, 1),
    ]
    atol = 1e-3 if dtype == np.float32 else 1e-9
    np.testing.assert_allclose(cupy.asnumpy(out), np.stack(expected, 1), rtol=1e-5, atol=atol)


def test_reductions_of_nan_and_infinity(cupy):  # noqa: F811
    x = np.full((4, 64), -np.inf, np.float32)
    x[1, 5], x[2, 40], x[3, :] = np.nan, np.inf, np.nan
    out = cupy.empty((4, 4, 64), np.float32)
    reduce_kernel(4, (out, cupy.asarray(x)), threads=64, Element=out)
    sums, maxima = cupy.asnumpy(out)[:, 2], cupy.asnumpy(out)[:, 3]
    np.testing.assert_array_equal(sums[:, 0], [-np.inf, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(maxima, np.array([-np.inf, -np.inf, np.inf, np.nan])[:, None].repeat(64, 1))


# Functions of elements


@pytest.mark.parametrize("dtype", (np.float32, np.float64))
def test_exp_and_sigmoid(cupy, dtype):  # noqa: F811
    functions = local_kernel(
        "functions",
        r"""
    extern "C" __global__ void functions(Accum* out, const Accum* x, int n) {
        for (int i = threadIdx.x; i < n; i += blockDim.x)
            out[i] = sigmoid(x[i]), out[n + i] = exp_(x[i]), out[2 * n + i] = -INF;
    }""",
    )
    x = np.array([-np.inf, -200, -30, -1, -1e-6, 0, 0.5, 3, 80, 200, np.inf, np.nan], dtype)
    out = cupy.zeros((3, len(x)), dtype)
    functions(1, (out, cupy.asarray(x), len(x)), Real=out)
    out, wide, tolerance = cupy.asnumpy(out), x.astype(np.float64), 4 * np.finfo(dtype).eps
    flushed = 2e-38 if dtype == np.float32 else 0  # CuPy flushes smaller float32 values to zero
    with np.errstate(over="ignore"):
        np.testing.assert_allclose(out[0], 1 / (1 + np.exp(-wide)), rtol=tolerance, atol=flushed)
        np.testing.assert_allclose(out[1], np.exp(wide).astype(dtype), rtol=tolerance, atol=2e-38)
    assert (out[2] == -np.inf).all()


def test_dropout_has_the_random_bits_of_every_kernel_set(cupy):  # noqa: F811
    bits = local_kernel(
        "bits",
        r"""
    extern "C" __global__ void bits(unsigned* out, unsigned key, size_t start) {
        out[threadIdx.x] = hash(key, start + threadIdx.x);
    }""",
    )
    out = cupy.empty(256, np.uint32)
    for key, start in ((0, 0), (1, 0), (2**31 - 1, 12345), (123456789, 2**32 - 128), (7, 5 * 2**32)):
        bits(1, (out, key, start))
        index = (np.arange(start, start + 256, dtype=np.uint64) % 2**32).astype(np.uint32)
        np.testing.assert_array_equal(cupy.asnumpy(out), hashed(index, np.array(key, np.uint32)))


def float32_patterns():
    """float32 values: all signs, many exponents, mantissas around the ties of 16-bit types, and random bits."""
    ties = [*range(0, 1 << 23, 1 << 15), *range(0x1000, 1 << 17, 1 << 13)]
    mantissas = np.array([tie + off for tie in ties for off in (-1, 0, 1)][1:] + [(1 << 23) - 1], np.uint32)
    exponents = np.array([*range(0, 256, 16), *range(96, 148), 254, 255], np.uint32)
    random = np.random.default_rng(1).integers(0, 2**32, 50000, np.uint64).astype(np.uint32)
    bits = np.concatenate([np.add.outer(exponents << 23, mantissas).ravel(), random])
    return np.concatenate([bits, bits ^ np.uint32(1 << 31)]).view(np.float32)


@pytest.mark.parametrize("dtype", (BF16, np.dtype(np.float16)))
def test_rounding_to_16_bits(cupy, dtype):  # noqa: F811
    x = float32_patterns()
    out = cupy.empty(len(x), dtype)
    copy_kernel(grid(len(x)), (out, cupy.asarray(x), len(x)), To=out, From="float")
    found, nan = cupy.asnumpy(out).view(np.uint16), np.isnan(x)
    with np.errstate(over="ignore"):
        if dtype == BF16:
            bits = x.view(np.uint32).astype(np.uint64)
            expected = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
        else:
            expected = x.astype(np.float16).view(np.uint16)
    np.testing.assert_array_equal(found[~nan], expected[~nan])
    infinity = 0x7F80 if dtype == BF16 else 0x7C00
    assert ((found[nan] & 0x7FFF) > infinity).all()


@pytest.mark.parametrize("dtype", (BF16, np.dtype(np.float16)))
def test_every_16_bit_value_is_read_exactly(cupy, dtype):  # noqa: F811
    bits = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16)
    out = cupy.empty(len(bits), np.float64)
    copy_kernel(grid(len(bits)), (out, cupy.asarray(bits.view(dtype)), len(bits)), To=out, From=cupy.empty(0, dtype))
    exact = (bits.astype(np.uint32) << 16).view(np.float32) if dtype == BF16 else bits.view(np.float16)
    not_flushed = (np.abs(exact) >= 2.0**-126) | (exact == 0) | np.isnan(exact)
    np.testing.assert_array_equal(cupy.asnumpy(out)[not_flushed], exact[not_flushed])


# Tensor cores


@pytest.mark.parametrize("dtype", (BF16, np.dtype(np.float16)))
def test_mma(cupy, dtype):  # noqa: F811
    if int(cupy.cuda.Device().compute_capability) < 80:
        pytest.skip("mma of 16 x 8 x 16 elements needs compute capability 8.0")
    multiply = local_kernel(
        "multiply",
        r"""
    // Per warp: A (16, 16), B (8, 16), transposed, and D (16, 8).
    extern "C" __global__ void multiply(float* D, const Storage* A, const Storage* B) {
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, i = lane / 4, j = lane % 4;
        A += 256 * warp, B += 128 * warp, D += 128 * warp;
        auto pair = [](const Storage* x) { return *(const unsigned*)x; };
        unsigned a[4], b[2];
        for (int r = 0; r < 4; r++) a[r] = pair(A + (i + r % 2 * 8) * 16 + 2 * j + r / 2 * 8);
        for (int r = 0; r < 2; r++) b[r] = pair(B + i * 16 + 2 * j + r * 8);
        float d[4];
        for (int r = 0; r < 4; r++) d[r] = D[(i + r / 2 * 8) * 8 + 2 * j + r % 2];
        mma<Storage>(d, a, b);
        for (int r = 0; r < 4; r++) D[(i + r / 2 * 8) * 8 + 2 * j + r % 2] = d[r];
    }""",
    )
    rng = np.random.default_rng(2)
    a, b, d = (rng.normal(size=shape).astype(np.float32) for shape in ((3, 16, 16), (3, 8, 16), (3, 16, 8)))
    if dtype == BF16:
        a, b = ((x.view(np.uint32) & 0xFFFF0000).view(np.float32) for x in (a, b))
        stored = [(x.view(np.uint32) >> 16).astype(np.uint16) for x in (a, b)]
    else:
        a, b = (x.astype(np.float16).astype(np.float32) for x in (a, b))
        stored = [x.astype(np.float16) for x in (a, b)]
    out = cupy.asarray(d)
    multiply(1, (out, *map(cupy.asarray, stored)), threads=96, Storage=dtype)
    expected = d + a.astype(np.float64) @ b.astype(np.float64).transpose(0, 2, 1)
    np.testing.assert_allclose(cupy.asnumpy(out), expected, rtol=1e-5, atol=1e-5)
