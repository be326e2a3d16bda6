"""Both ways to multiply, against float64: any shape, tails of every kind, what lies under a product, NaN around it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm_np.kernels.cpu import gemm_blas as product_blas
from slm_np.kernels.cpu import gemm_f32 as product_tile
from slm_np.kernels.cpu.gemm_blas import ADD, BIAS, BIAS_AND_RESIDUAL, NOTHING, RESIDUAL
from slm_np.kernels.cpu.jit import row
from slm_np.kernels.cpu.microkernel_f32 import COLUMNS, LANES, ROWS, transpose

WAYS = pytest.mark.parametrize("way", [product_tile, product_blas], ids=["tile", "blas"])
TYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])
SHAPES = [
    (1, 1, 1),
    (ROWS, COLUMNS, 1),
    (ROWS - 1, COLUMNS - 1, 3),
    (ROWS + 1, COLUMNS + 1, 7),
    (130, 7, 257),
    (7, 130, 65),
    (300, 70, 513),
    (65, 257, 1030),
]


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def guarded(shape, dtype):
    """An array of NaN between two of NaN, so that a read or a write past its edge shows."""
    whole = np.full((3, *shape), np.nan, dtype)
    return whole, whole[1]


def close(found, exact, terms, dtype):
    np.testing.assert_allclose(
        found, exact, rtol=0, atol=4 * np.finfo(dtype).eps * np.sqrt(terms) * (1 + np.abs(exact).max())
    )


@WAYS
@TYPES
@pytest.mark.parametrize("under", [NOTHING, ADD, BIAS, RESIDUAL, BIAS_AND_RESIDUAL])
@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("m, n, k", SHAPES)
def test_product(way, dtype, under, transposed, m, n, k):
    a, b, bias, residual, before = (
        normal(*shape, seed=i).astype(dtype)
        for i, shape in enumerate([(m, k), (n, k) if transposed else (k, n), (n,), (m, n), (m, n)])
    )
    whole, out = guarded((m, n), dtype)
    exact = a.astype(float) @ (b.T if transposed else b).astype(float)
    if under == ADD:
        out[:] = before
        exact += before
    exact += (under in (BIAS, BIAS_AND_RESIDUAL)) * bias.astype(float) + (
        under in (RESIDUAL, BIAS_AND_RESIDUAL)
    ) * residual.astype(float)
    way.product(out, a, b, transposed, under, bias, residual)
    close(out, exact, k, dtype)
    assert np.isnan(whole[[0, 2]]).all()


@WAYS
@TYPES
@pytest.mark.parametrize("m, n, k", SHAPES)
def test_outer_products_accumulate(way, dtype, m, n, k):
    a, b, before = normal(k, m).astype(dtype), normal(k, n, seed=1).astype(dtype), normal(m, n, seed=2).astype(dtype)
    whole, out = guarded((m, n), dtype)
    out[:] = before
    way.add_outer_products(out, a, b)
    close(out, before + a.T.astype(float) @ b.astype(float), k, dtype)
    assert np.isnan(whole[[0, 2]]).all()


@WAYS
@settings(max_examples=40, deadline=None)
@given(m=st.integers(1, 90), n=st.integers(1, 90), k=st.integers(1, 700), transposed=st.booleans())
def test_any_shape(way, m, n, k, transposed):
    a, b = normal(m, k).astype("f"), normal(*((n, k) if transposed else (k, n)), seed=1).astype("f")
    out = np.full((m, n), np.nan, np.float32)
    way.product(out, a, b, int(transposed), NOTHING, b[0], out)
    close(out, a.astype(float) @ (b.T if transposed else b).astype(float), k, np.float32)


@row
def transposed(out, x, rows, columns):
    transpose(out, rows, x, 0, columns, rows, columns)


@TYPES
@pytest.mark.parametrize(
    "rows, columns", [(1, 1), (LANES, LANES), (LANES + 3, 2 * LANES), (2 * LANES, LANES - 1), (5, 70)]
)
def test_transpose_is_exact(dtype, rows, columns):
    x, (whole, out) = normal(rows, columns).astype(dtype), guarded((columns, rows), dtype)
    transposed(out.reshape(-1), x.reshape(-1), rows, columns)
    np.testing.assert_array_equal(out, x.T)
    assert np.isnan(whole[[0, 2]]).all()
