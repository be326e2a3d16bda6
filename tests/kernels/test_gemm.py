"""Both float gemms, register tiles and BLAS, against float64: any shape, tile edges, no access past an array.

On Apple's processors the BLAS is Accelerate. Elsewhere the tests bind the one in NumPy's wheel.
"""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy_blas import numpy_blas
from thread_counts import over_threads, several

from slm_np.kernels.cpu import blas, gemm_blas, gemm_f32
from slm_np.kernels.cpu.gemm_f32 import TERMS, even_share
from slm_np.kernels.cpu.jit import row
from slm_np.kernels.cpu.microkernel_f32 import (
    ADD,
    BIAS,
    BIAS_AND_RESIDUAL,
    COLUMNS,
    LANES,
    NOTHING,
    RESIDUAL,
    ROWS,
    transpose,
)

both_gemms = pytest.mark.parametrize("gemm", [gemm_f32, gemm_blas], ids=["f32", "blas"], indirect=True)
both_dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])
SHAPES = [  # with one or several blocks of rows, columns and terms
    (1, 1, 1),
    (ROWS, COLUMNS, 1),
    (ROWS - 1, COLUMNS - 1, 3),
    (ROWS + 1, COLUMNS + 1, 7),
    (130, 7, 257),
    (7, 130, 65),
    (300, 70, 513),
    (65, 257, 1030),
    (400, 90, 2100),
    (390, 1500, 600),
]


@pytest.fixture
def gemm(request):
    """A module of gemms. That of BLAS is bound to a library, which runs on one thread."""
    if request.param is gemm_f32 or blas.ON_APPLE:
        yield request.param
        return
    found = numpy_blas()
    if found is None:
        pytest.skip("NumPy's wheel brings no BLAS whose gemm is known by name")
    controller, path, names = found
    blas.bind(path, names)
    with controller.limit(limits=1):
        yield request.param


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def guarded(shape, dtype):
    """An array of NaN between two others: (all three, the middle one). Accesses past its edges show up as NaN."""
    whole = np.full((3, *shape), np.nan, dtype)
    return whole, whole[1]


def assert_close(found, exact, terms, dtype):
    """found = exact but for the rounding of sums of `terms` terms."""
    atol = 4 * np.finfo(dtype).eps * np.sqrt(terms) * (1 + np.abs(exact).max())
    np.testing.assert_allclose(found, exact, rtol=0, atol=atol)


@both_gemms
@both_dtypes
@pytest.mark.parametrize("prefill", [NOTHING, ADD, BIAS, RESIDUAL, BIAS_AND_RESIDUAL])
@pytest.mark.parametrize("transpose_b", [0, 1])
@pytest.mark.parametrize("m, n, k", SHAPES)
def test_gemm(gemm, dtype, prefill, transpose_b, m, n, k):
    shapes = (m, k), (n, k) if transpose_b else (k, n), (n,), (m, n), (m, n)
    a, b, bias, residual, before = (normal(*shape, seed=i).astype(dtype) for i, shape in enumerate(shapes))
    whole, out = guarded((m, n), dtype)
    exact = a.astype(float) @ (b.T if transpose_b else b).astype(float)
    if prefill == ADD:
        out[:] = before
        exact += before
    if prefill in (BIAS, BIAS_AND_RESIDUAL):
        exact += bias
    if prefill in (RESIDUAL, BIAS_AND_RESIDUAL):
        exact += residual
    gemm.matmul(out, a, b, transpose_b, prefill, bias, residual)
    assert_close(out, exact, k, dtype)
    assert np.isnan(whole[[0, 2]]).all()


@both_gemms
@both_dtypes
@pytest.mark.parametrize("m, n, k", SHAPES)
def test_outer_products_accumulate(gemm, dtype, m, n, k):
    a, b, before = normal(k, m).astype(dtype), normal(k, n, seed=1).astype(dtype), normal(m, n, seed=2).astype(dtype)
    whole, out = guarded((m, n), dtype)
    out[:] = before
    gemm.add_outer_products(out, a, b)
    assert_close(out, before + a.T.astype(float) @ b.astype(float), k, dtype)
    assert np.isnan(whole[[0, 2]]).all()


@both_gemms
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(m=st.integers(1, 90), n=st.integers(1, 90), k=st.integers(1, 700), transpose_b=st.booleans())
def test_any_shape(gemm, m, n, k, transpose_b):
    a, b = normal(m, k).astype("f"), normal(*((n, k) if transpose_b else (k, n)), seed=1).astype("f")
    out = np.full((m, n), np.nan, np.float32)
    gemm.matmul(out, a, b, int(transpose_b), NOTHING, b[0], out)
    assert_close(out, a.astype(float) @ (b.T if transpose_b else b).astype(float), k, np.float32)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("prefill", [BIAS, RESIDUAL, BIAS_AND_RESIDUAL])
@pytest.mark.parametrize("m, n, k", [(2 * ROWS, 2 * COLUMNS, 2 * TERMS), (ROWS + 1, COLUMNS + 3, 2 * TERMS + 1)])
def test_prefill_is_added_first(dtype, prefill, m, n, k):
    """C = (((residual + bias) + terms) + terms), every sum rounded once: exact where the terms are powers of two."""
    bias, residual = (normal(*shape, seed=i).astype(dtype) for i, shape in enumerate([(n,), (m, n)]))
    expected = {BIAS: bias + 0 * residual, RESIDUAL: residual, BIAS_AND_RESIDUAL: residual + bias}[prefill]
    a, b, step = np.zeros((m, k), dtype), np.zeros((k, n), dtype), even_share(k, TERMS)
    for i, start in enumerate(range(0, k, step)):
        a[:, start], b[start] = 1, 3.0**i / 7
        expected = expected + b[start]
    out = np.full((m, n), np.nan, dtype)
    gemm_f32.matmul(out, a, b, 0, prefill, bias, residual)
    np.testing.assert_array_equal(out, expected)


@several
@both_gemms
@both_dtypes
@pytest.mark.parametrize(
    "m, n, k", [(1030, 65, 700), (70, 1030, 700), (777, 1023, 33), (1, 4099, 2100), (800, 40, 9000)]
)
def test_any_number_of_threads_gives_the_same_bits(gemm, dtype, m, n, k):
    a, b, bias, residual = (
        normal(*shape, seed=i).astype(dtype) for i, shape in enumerate([(m, k), (k, n), (n,), (m, n)])
    )
    at, bt = (np.ascontiguousarray(x.T) for x in (a, b))

    def run():
        outs = [np.full((m, n), np.nan, dtype) for _ in range(2)] + [residual.copy() for _ in range(2)]
        gemm.matmul(outs[0], a, b, 0, BIAS_AND_RESIDUAL, bias, residual)
        gemm.matmul(outs[1], a, bt, 1, NOTHING, bias, residual)
        gemm.matmul(outs[2], a, b, 0, ADD, bias, outs[2])
        gemm.add_outer_products(outs[3], at, b)
        return outs

    over_threads(run)


@row
def call_transpose(out, x, rows, columns):
    transpose(out, rows, x, 0, columns, rows, columns)


@both_dtypes
@pytest.mark.parametrize(
    "rows, columns", [(1, 1), (LANES, LANES), (LANES + 3, 2 * LANES), (2 * LANES, LANES - 1), (5, 70)]
)
def test_transpose_is_exact(dtype, rows, columns):
    x, (whole, out) = normal(rows, columns).astype(dtype), guarded((columns, rows), dtype)
    call_transpose(out.reshape(-1), x.reshape(-1), rows, columns)
    np.testing.assert_array_equal(out, x.T)
    assert np.isnan(whole[[0, 2]]).all()
