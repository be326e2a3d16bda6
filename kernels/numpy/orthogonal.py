"""Muon's update: matrices move along their orthogonalized momentum.

Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/. The singular values of a momentum u = U S V^T differ by
orders of magnitude, so a step along u changes few directions. U V^T has the same directions with singular values of 1.
Polynomials in u u^T approximate it, which need matmuls only: see `orthogonalized`.
"""

import math

import numpy as np


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
    """With g the scaled gradient of each matrix w (m, n), and O of `orthogonalized`:

    m = beta m + (1 - beta) g,   u = beta m + (1 - beta) g,   w = (1 - rate decay) w - rate scale sqrt(max(m, n)) O(u)

    u is where the momentum will be after another such gradient (Nesterov). Afterwards g = 0.
    weights, gradients, mean: flat. The elements outside of the matrices stay.
    matrices (N, 5): start, rows, columns, first, stop: the columns [first, stop) of a weight (rows, columns) at `start`
    """
    for start, rows, columns, first, stop in matrices.tolist():
        w, g, m = (
            flat[start : start + rows * columns].reshape(rows, columns)[:, first:stop]
            for flat in (weights, gradients, mean)
        )
        g *= (1 - beta) * gradient_scale
        m *= beta
        m += g
        g += beta * m
        w *= 1 - rate * decay
        w -= rate * scale * math.sqrt(max(w.shape)) * orthogonalized(g, margin, coefficients)
        g[...] = 0


def orthogonalized(u, margin, coefficients):
    """About U V^T of u = U S V^T. With k the smaller side of u, and x = u / (margin |u|):

    A = x x^T, Q = 1, then for each (a, b, c) of the coefficients: P = a + b A + c A^2, Q = P Q, A = A P^2. Returns Q x.

    If u has more rows than columns, A = x^T x, and the result is x Q. All matmuls but the first and the last are of
    (k, k) matrices, which are symmetric and commute, as polynomials in the first A. margin > 1: rounding must not leave
    a singular value above 1.
    """
    norm = np.linalg.norm(u.astype(np.float64))
    if norm == 0:
        return u
    x, wide = (u / (margin * norm)).astype(u.dtype), u.shape[0] <= u.shape[1]
    gram = x @ x.T if wide else x.T @ x
    q = one = np.eye(len(gram), dtype=u.dtype)
    for a, b, c in coefficients.tolist():
        p = a * one + b * gram + c * (gram @ gram)
        q, gram = p @ q, gram @ p @ p
    return q @ x if wide else x @ q
