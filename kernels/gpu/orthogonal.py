"""Muon's update, see kernels/numpy/orthogonal.py: matrix after matrix, by cuBLAS and four small kernels."""

import math

import numpy as np

from .adamw import square_sum, square_sum_blocks
from .gemm import gemm, row_stride
from .scratch import scratch
from .source import Kernel, grid

REALS = [dict(Real="float"), dict(Real="double")]

# x = u. A gradient scale that is not finite leaves the momentum unchanged and sets x = 0.
look_ahead_kernel = Kernel(
    "look_ahead",
    r"""
extern "C" __global__ void look_ahead(Real* x, Real* gradients, Real* mean, size_t n, int width, size_t stride,
                                      Scalar<Real> gradient_scale, Real beta, Real one_minus_beta) {
    const Real scale = gradient_scale();
    const bool finite = scale - scale == 0;
    const size_t first = blockIdx.x * (size_t)blockDim.x + threadIdx.x, step = (size_t)gridDim.x * blockDim.x;
    for (size_t i = first; i < n; i += step) {
        const size_t j = i / width * stride + i % width;
        Real u = 0;
        if (finite) {
            const Real g = gradients[j] * scale * one_minus_beta, m = beta * mean[j] + g;
            mean[j] = m;
            u = beta * m + g;
        }
        gradients[j] = 0;
        x[i] = u;
    }
}""",
    variants=REALS,
)

# x /= margin |x|
normalize_kernel = Kernel(
    "normalize",
    r"""
extern "C" __global__ void normalize(Real* x, size_t n, const double* square_sum, double margin) {
    const double scale = *square_sum > 0 ? 1 / (margin * sqrt(*square_sum)) : 0;
    const size_t first = blockIdx.x * (size_t)blockDim.x + threadIdx.x, step = (size_t)gridDim.x * blockDim.x;
    for (size_t i = first; i < n; i += step) x[i] = (Real)(x[i] * scale);
}""",
    variants=REALS,
)

# p = a + b A + c A^2
polynomial_kernel = Kernel(
    "polynomial",
    r"""
extern "C" __global__ void polynomial(Real* p, const Real* gram, const Real* square, size_t k, Real a, Real b, Real c) {
    const size_t first = blockIdx.x * (size_t)blockDim.x + threadIdx.x, step = (size_t)gridDim.x * blockDim.x;
    for (size_t i = first; i < k * k; i += step) p[i] = b * gram[i] + c * square[i] + (i % (k + 1) == 0 ? a : 0);
}""",
    variants=REALS,
)

# w = (1 - rate decay) w - rate factor x, unless the gradient scale is not finite
move_kernel = Kernel(
    "move",
    r"""
extern "C" __global__ void move(Real* weights, const Real* x, size_t n, int width, size_t stride,
                                Scalar<Real> gradient_scale, Scalar<Real> rate, Real decay, Real factor) {
    const Real scale = gradient_scale(), shrink = 1 - rate() * decay, length = rate() * factor;
    if (!(scale - scale == 0)) return;
    const size_t first = blockIdx.x * (size_t)blockDim.x + threadIdx.x, step = (size_t)gridDim.x * blockDim.x;
    for (size_t i = first; i < n; i += step) {
        Real* w = weights + i / width * stride + i % width;
        *w = *w * shrink - length * x[i];
    }
}""",
    variants=REALS,
)


def orthogonal_update(
    weights,
    gradients,
    mean,
    matrices,
    gradient_scale,
    rate,
    decay,
    beta,
    scale,
    margin,
    coefficients,
):
    """gradient_scale and rate: numbers, or device arrays of one element in the weights' type.

    A gradient_scale that is not finite leaves weights and momentum unchanged and zeroes the gradients.
    """
    for start, rows, columns, first, stop in matrices.tolist():
        w, g, m = (
            flat[start : start + rows * columns].reshape(rows, columns)[:, first:stop]
            for flat in (weights, gradients, mean)
        )
        k, size, dtype = min(w.shape), rows * (stop - first), weights.dtype
        blocks = square_sum_blocks(size)
        partial, x, result, *squares = scratch(
            (blocks, np.dtype(np.float64)), (size, dtype), (size, dtype), *[(k * k, dtype)] * 5
        )
        rectangle, wide = (size, stop - first, row_stride(w)), rows <= stop - first
        look_ahead_kernel(grid(size), (x, g, m, *rectangle, gradient_scale, beta, 1 - beta), Real=weights)
        square_sum(partial, x)
        normalize_kernel(grid(size), (x, size, partial[-1:], margin), Real=weights)
        x, result = x.reshape(w.shape), result.reshape(w.shape)
        q = factor(x, wide, [square.reshape(k, k) for square in squares], coefficients.tolist())
        gemm(result, *((q, x) if wide else (x, q)))
        length = scale * math.sqrt(max(w.shape))
        move_kernel(grid(size), (w, result, *rectangle, gradient_scale, rate, decay, length), Real=weights)


def factor(x, wide, squares, coefficients):
    """The matrix Q (k, k) for which Q x or, if x is not wide, x Q is orthogonal        squares: scratch, 5 of (k, k)"""
    gram, square, p, q, product = squares
    gemm(gram, x, x, transpose_a=not wide, transpose_b=wide)
    for i, (a, b, c) in enumerate(coefficients):
        if i > 0:
            gemm(square, gram, p)
            gemm(gram, square, p)
        gemm(square, gram, gram)
        polynomial_kernel(grid(p.size), (p, gram, square, len(p), a, b, c), Real=p)
        if i == 0:
            q[...] = p
        else:
            gemm(product, p, q)
            q, product = product, q
    return q
