"""The fake CuPy (tests/fake_cupy.py) and its CUDA runtime and cuBLAS: as strict as the real ones."""

import ctypes

import cuda_emulator
import fake_cupy
import numpy as np
import pytest
from cuda_emulator import LaunchError
from fake_cupy import cupy  # noqa: F401  a fixture
from gpu_kernels import copy_kernel
from sixteen_bit import F16, HALF_ULP, exact, stored

from slm_np.dtypes import BF16
from slm_np.kernels.gpu import cublas
from slm_np.kernels.gpu.gemm import COMPUTE_32F, COMPUTE_64F, DEFAULT_ALGORITHM, R_16BF, R_16F, R_32F, R_64F

pytestmark = pytest.mark.skipif(
    cuda_emulator.missing() is not None or fake_cupy.real() is not None,
    reason="needs the emulator, and no GPU that takes precedence",
)


# Arrays


def test_arrays_do_not_mix_with_numpys(cupy):  # noqa: F811
    x, host = cupy.zeros((2, 2), np.float32), np.zeros((2, 2), np.float32)
    for refused in (
        lambda: np.asarray(x),
        lambda: np.matmul(x, x),
        lambda: np.add(x, x),
        lambda: np.sum(x),
        lambda: x + host,
        lambda: host + x,
        lambda: cupy.add(x, host),
        lambda: x.__setitem__(0, host[0]),
        lambda: x.__iadd__(host),
        lambda: np.copyto(host, x),
        lambda: host.__setitem__(..., x),
        lambda: cupy.multiply(x, 2, out=host),
    ):
        with pytest.raises(TypeError):
            refused()


def test_arrays_compute_as_numpys(cupy):  # noqa: F811
    host = np.arange(24, dtype=np.float32).reshape(4, 6)
    x = cupy.asarray(host)
    for function in (
        lambda x: x[1:3, ::2] * 2 - 1,
        lambda x: 3 / (x + 1),
        lambda x: x.T @ x,
        lambda x: x[2],
        lambda x: x[1, 2],
        lambda x: x.max(),
        lambda x: x.reshape(6, 4).sum(0),
        lambda x: x.astype(np.float64).mean(axis=1),
        lambda x: np.float32(2) * x,
        lambda x: -x,
        lambda x: x >= 5,
        lambda x: x.view(np.uint32)[0],
        lambda x: x.ravel()[3:],
    ):
        found = function(x)
        assert isinstance(found, cupy.ndarray) and found.dtype == function(host).dtype
        np.testing.assert_allclose(found.get(), function(host))
    x[1:3] = 5
    x[0] += x[1]
    cupy.multiply(x[3], 2, out=x[3])
    host[1:3], host[0], host[3] = 5, host[0] + 5, host[3] * 2
    np.testing.assert_array_equal(cupy.asnumpy(x), host)
    assert float(x[0, 0]) == 5 and x[1].data.ptr == x.data.ptr + 24
    assert x.T.strides == (4, 24) and x.T.flags.f_contiguous and not x[:, 1:].flags.c_contiguous
    x.set(np.ones((4, 6), np.float32))
    assert cupy.asnumpy(x).sum() == 24


# Captured graphs


def test_a_captured_stream_only_records(cupy):  # noqa: F811
    x, y, stream = cupy.zeros(8, np.float32), cupy.ones(8, np.float32), cupy.cuda.Stream()
    pinned = cupy.cuda.alloc_pinned_memory(x.nbytes)
    values = np.frombuffer(pinned, np.float32)
    with stream:
        stream.begin_capture()
        cupy.cuda.runtime.memcpyAsync(
            y.data.ptr, values.ctypes.data, y.nbytes, cupy.cuda.runtime.memcpyHostToDevice, stream.ptr
        )
        x += y
        x[:4] = y[4:]
        copy_kernel(1, (y, x, 8), To=y, From=x)
        graph = stream.end_capture()
    assert (cupy.asnumpy(x) == 0).all() and (cupy.asnumpy(y) == 1).all()
    values[:] = 3
    graph.launch()
    graph.launch(stream)
    np.testing.assert_array_equal(cupy.asnumpy(x), [3] * 4 + [6] * 4)
    np.testing.assert_array_equal(cupy.asnumpy(y), cupy.asnumpy(x))


@pytest.mark.parametrize("what", ("get", "set", "float", "synchronize", "device", "allocate", "add", "asarray"))
def test_a_captured_stream_refuses_synchronization_and_allocation(cupy, what):  # noqa: F811
    x, stream, host = cupy.zeros(1, np.float32), cupy.cuda.Stream(), np.zeros(1, np.float32)
    forbidden = dict(
        get=x.get,
        set=lambda: x.set(host),
        float=lambda: float(x),
        synchronize=stream.synchronize,
        device=cupy.cuda.Device().synchronize,
        allocate=lambda: cupy.empty(1),
        add=lambda: x + 1,
        asarray=lambda: cupy.asarray(host),
    )[what]
    with stream:
        stream.begin_capture()
        with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="not permitted when stream is capturing"):
            forbidden()
        with pytest.raises(cupy.cuda.runtime.CUDARuntimeError):
            stream.end_capture()
    forbidden()
    with pytest.raises(RuntimeError):
        cupy.cuda.Stream.null.begin_capture()


def test_a_graph_does_not_keep_arrays_alive(cupy):  # noqa: F811
    x, y, stream = cupy.zeros(8, np.float32), cupy.zeros(8, np.float32), cupy.cuda.Stream()
    with stream:
        stream.begin_capture()
        copy_kernel(1, (y, x, 8), To=y, From=x)
        graph = stream.end_capture()
    del x
    with pytest.raises(LaunchError, match="an array that has been freed"):
        graph.launch()


# Counts and memory


def test_synchronizations_and_allocations_are_counted(cupy):  # noqa: F811
    counts = fake_cupy.counts
    before = dict(vars(counts))
    x = cupy.zeros(4, np.float32)
    copy_kernel(1, (x, x, 4), To=x, From=x)
    x.get()
    cupy.cuda.Device().synchronize()
    assert {name: value - before[name] for name, value in vars(counts).items()} == dict(
        synchronizations=2, allocations=1, launches=1, copies=0, cupy_kernels=0
    )


def test_memory_is_limited(cupy):  # noqa: F811
    pool = cupy.get_default_memory_pool()
    free, total = cupy.cuda.runtime.memGetInfo()
    pool.set_limit(size=pool.used_bytes() + 1000)
    try:
        x = cupy.empty(100)
        with pytest.raises(cupy.cuda.memory.OutOfMemoryError):
            cupy.empty(100)
        assert cupy.cuda.runtime.memGetInfo() == (free - 800, total)
        del x
        assert cupy.empty(100).size == 100
    finally:
        pool.set_limit(size=0)


# cuBLAS

DTYPES = {R_32F: np.dtype(np.float32), R_64F: np.dtype(np.float64), R_16F: F16, R_16BF: BF16}


@pytest.mark.parametrize(
    "input_type, output_type",
    ((R_32F, R_32F), (R_64F, R_64F), (R_16F, R_16F), (R_16F, R_32F), (R_16BF, R_16BF), (R_16BF, R_32F)),
)
@pytest.mark.parametrize("transpose_a, transpose_b", ((0, 0), (0, 1), (1, 0), (1, 1)))
def test_cublas_is_column_major(cupy, input_type, output_type, transpose_a, transpose_b):  # noqa: F811
    rng, batch, m, n, k, lda, ldb, ldc = np.random.default_rng(3), 2, 5, 3, 4, 7, 6, 8
    input_dtype, output_dtype = DTYPES[input_type], DTYPES[output_type]

    def random(*shape):
        """Small multiples of 1/8, which are exact in every type."""
        return rng.integers(-15, 16, shape) / 8

    # Matrices as lists of columns.
    a = random(batch, m if transpose_a else k, lda)
    b = random(batch, k if transpose_b else n, ldb)
    c = random(batch, n, ldc)
    A, B = a[:, :, : k if transpose_a else m].swapaxes(1, 2), b[:, :, : n if transpose_b else k].swapaxes(1, 2)
    product = np.matmul(A.swapaxes(1, 2) if transpose_a else A, B.swapaxes(1, 2) if transpose_b else B)
    c_type, compute = (ctypes.c_double, COMPUTE_64F) if input_type == R_64F else (ctypes.c_float, COMPUTE_32F)
    device_a, device_b = (cupy.asarray(stored(x, input_dtype)) for x in (a, b))
    for alpha, beta, start in ((2, 0, np.nan), (1, 0.5, 1)):  # with beta = 0, NaN in C is not read
        batched, single = (cupy.asarray(stored(c * start, output_dtype)) for _ in range(2))
        scalars = c_type(alpha), c_type(beta)
        alpha_pointer, beta_pointer = map(ctypes.addressof, scalars)
        shape = transpose_a, transpose_b, m, n, k, alpha_pointer
        of_a, of_b = (device_a.data.ptr, input_type, lda), (device_b.data.ptr, input_type, ldb)
        of_batched, of_single = ((x.data.ptr, output_type, ldc) for x in (batched, single))
        strided_a, strided_b, strided_c = (*of_a, a[0].size), (*of_b, b[0].size), (*of_batched, c[0].size)
        cublas.gemm_strided_batched_ex(
            *shape, *strided_a, *strided_b, beta_pointer, *strided_c, batch, compute, DEFAULT_ALGORITHM
        )
        cublas.gemm_ex(*shape, *of_a, *of_b, beta_pointer, *of_single, compute, DEFAULT_ALGORITHM)
        np.testing.assert_array_equal(cupy.asnumpy(single)[0], cupy.asnumpy(batched)[0])
        found = exact(cupy.asnumpy(batched))
        expected = alpha * product.swapaxes(1, 2) + (beta * c[:, :, :m] if beta else 0)
        np.testing.assert_allclose(found[:, :, :m], expected, rtol=HALF_ULP.get(output_dtype, 1e-6))
        np.testing.assert_array_equal(found[:, :, m:], c[:, :, m:] * start)  # between the columns


def gemm_of_4x4(x, input_type, output_type, compute, k=4):
    """C = A B on one array for all three matrices."""
    one = ctypes.c_float(1)
    scalar, pointer = ctypes.addressof(one), x.data.ptr
    of_c = pointer, output_type, 4
    cublas.gemm_ex(
        0, 0, 4, 4, k, scalar, pointer, input_type, 4, pointer, input_type, k, scalar, *of_c, compute, DEFAULT_ALGORITHM
    )


@pytest.mark.parametrize(
    "input_type, output_type, compute",
    ((R_32F, R_16BF, COMPUTE_32F), (R_64F, R_64F, COMPUTE_32F), (R_16F, R_16BF, COMPUTE_32F)),
)
def test_cublas_refuses_unsupported_types(cupy, input_type, output_type, compute):  # noqa: F811
    with pytest.raises(cupy.cuda.cublas.CUBLASError, match="NOT_SUPPORTED"):
        gemm_of_4x4(cupy.zeros((4, 4), np.float32), input_type, output_type, compute)


def test_cublas_refuses_matrices_beyond_an_array(cupy):  # noqa: F811
    with pytest.raises(cupy.cuda.cublas.CUBLASError, match="not within one array"):
        gemm_of_4x4(cupy.zeros((4, 4), np.float32), R_32F, R_32F, COMPUTE_32F, k=5)
