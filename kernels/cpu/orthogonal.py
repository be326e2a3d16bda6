"""Muon's update, see kernels/numpy/orthogonal.py: each worker updates whole matrices, with scratch of its own.

A matrix is a task of one thread, so that a model's many small matrices need one launch, and results do not depend on
the number of threads. The (k, k) matrices are symmetric: tiles below the diagonal are copied from those above.
"""

import math
import threading
from typing import Any, NamedTuple

import numba
import numpy as np
from numba.extending import register_jitable

from .jit import kernel, row
from .microkernel_f32 import COLUMNS, ROWS, copy_column_panel, copy_row_panel, multiply_tile, padded, transpose
from .scratch import carve, elements_of


class Scratch(NamedTuple):
    """Memory of one worker, flat views. Matrices have whole tiles: (padded(rows, ROWS), padded(columns, COLUMNS)).

    x              (m, n)
    gram           (k, k), and so are square, p, q and product
    panel          (max(m, n), COLUMNS)     columns of the right operand
    rows           (max(m, n), ROWS)        rows of a transposed left operand
    tile           (ROWS, COLUMNS)
    """

    x: Any
    gram: Any
    square: Any
    p: Any
    q: Any
    product: Any
    panel: Any
    rows: Any
    tile: Any


@register_jitable
def layout(memory, m, n):
    """The scratch, and the rest of the memory."""
    square_size = padded(min(m, n), ROWS) * padded(min(m, n), COLUMNS)
    x, memory = carve(memory, (padded(m, ROWS) * padded(n, COLUMNS),))
    gram, memory = carve(memory, (square_size,))
    square, memory = carve(memory, (square_size,))
    p, memory = carve(memory, (square_size,))
    q, memory = carve(memory, (square_size,))
    product, memory = carve(memory, (square_size,))
    panel, memory = carve(memory, (max(m, n) * COLUMNS,))
    rows, memory = carve(memory, (max(m, n) * ROWS,))
    tile, memory = carve(memory, (ROWS * COLUMNS,))
    return Scratch(x, gram, square, p, q, product, panel, rows, tile), memory


class Memory(threading.local):
    """Scratch (workers, elements). Each Python thread has its own, because two may update at once."""

    def __init__(self):
        self.array = np.empty((0, 0))

    def of(self, matrices, dtype):
        """Scratch for these matrices, allocated again only when it must grow."""
        workers = min(numba.config.NUMBA_NUM_THREADS, len(matrices))
        shapes = {(rows, stop - first) for _, rows, _, first, stop in matrices.tolist()}
        size = max((elements_of(layout, *shape) for shape in shapes), default=0)
        if self.array.dtype != dtype or len(self.array) != workers or self.array.shape[1] < size:
            self.array = np.empty((workers, size), dtype)
        return self.array


MEMORY = Memory()


@row
def look_ahead_row(x, gradients, mean, gradient_scale, beta, one_minus_beta):
    """m = beta m + (1 - beta) g,   x = beta m + (1 - beta) g,   g = 0. Returns the sum of x^2."""
    total = np.float64(0)
    for i in range(x.size):
        g = gradients[i] * gradient_scale * one_minus_beta
        m = beta * mean[i] + g
        u = beta * m + g
        mean[i], gradients[i], x[i] = m, 0, u
        total += np.float64(u) * np.float64(u)
    return total


@row
def scale_by(x, factor):
    """x *= factor, a float64: 1 / |u| may exceed the largest float32."""
    for i in range(x.size):
        x[i] = np.float64(x[i]) * factor


@row
def polynomial(p, gram, square, a, b, c, k, side):
    """p = a + b gram + c square"""
    for i in range(k):
        part = slice(i * side, i * side + k)
        target, first, second = p[part], gram[part], square[part]
        for j in range(target.size):
            target[j] = b * first[j] + c * second[j]
        target[i] += a


@row
def multiply_panel(c, j, side, a, a_row, a_step, panel, rows, terms):
    """Columns [j, j + COLUMNS) of C = A B, B's columns being the panel"""
    for i in range(0, rows, ROWS):
        multiply_tile(c, i * side + j, side, a, i * a_row, a_row, a_step, panel, 0, COLUMNS, terms, 0)


@row
def mirror(c, j, side, k):
    """C[j : j + COLUMNS, :j] = C[:j, j : j + COLUMNS]^T"""
    transpose(c[j * side :], side, c, j, side, j, min(COLUMNS, k - j))


@row
def multiply_symmetric(c, a, b, k, side, panel):
    """C = A B for symmetric matrices that commute, so that C is symmetric"""
    for j in range(0, k, COLUMNS):
        copy_column_panel(panel, 0, b, j, side, k)
        multiply_panel(c, j, side, a, side, 1, panel, min(k, j + COLUMNS), k)
        mirror(c, j, side, k)


@row
def multiply_rows(gram, x, width, n, k, side, panel):
    """gram = x x^T        x (k, n), rows `width` elements apart"""
    for j in range(0, k, COLUMNS):
        count = min(COLUMNS, k - j)
        if count < COLUMNS:
            panel[: n * COLUMNS] = 0
        transpose(panel, COLUMNS, x, j * width, width, count, n)
        multiply_panel(gram, j, side, x, width, 1, panel, min(k, j + COLUMNS), n)
        mirror(gram, j, side, k)


@row
def multiply_columns(gram, x, width, m, k, side, panel, rows):
    """gram = x^T x        x (m, k), rows `width` elements apart"""
    for i in range(0, k, ROWS):
        copy_row_panel(rows, 0, x, i, width, m)
        for j in range(i // COLUMNS * COLUMNS, k, COLUMNS):
            multiply_tile(gram, i * side + j, side, rows, 0, 1, ROWS, x, j, width, m, 0)
    for j in range(0, k, COLUMNS):
        mirror(gram, j, side, k)


@row
def move(weights, start, columns, m, n, a, a_row, b, b_row, k, shrink, step, panel, tile):
    """w = shrink w - step A B        w (m, n), at `start`, rows `columns` elements apart"""
    for j in range(0, n, COLUMNS):
        copy_column_panel(panel, 0, b, j, b_row, k)
        width = min(COLUMNS, n - j)
        for i in range(0, m, ROWS):
            multiply_tile(tile, 0, COLUMNS, a, i * a_row, a_row, 1, panel, 0, COLUMNS, k, 0)
            for r in range(min(ROWS, m - i)):
                offset = start + (i + r) * columns + j
                target, source = weights[offset : offset + width], tile[r * COLUMNS : r * COLUMNS + width]
                for q in range(target.size):
                    target[q] = target[q] * shrink - step * source[q]


@row
def factor(s, m, n, coefficients):
    """The matrix Q (k, k) for which Q x or, if x has more rows than columns, x Q is orthogonal: s.q or s.product.

    See `orthogonalized` in kernels/numpy/orthogonal.py.
    """
    k, width, real = min(m, n), padded(n, COLUMNS), s.x.dtype.type
    side = padded(k, COLUMNS)
    gram, square, p, q, product = s.gram, s.square, s.p, s.q, s.product
    if m <= n:
        multiply_rows(gram, s.x, width, n, k, side, s.panel)
    else:
        multiply_columns(gram, s.x, width, m, k, side, s.panel, s.rows)
    for i in range(len(coefficients)):
        if i > 0:
            for _ in range(2):
                multiply_symmetric(square, gram, p, k, side, s.panel)
                gram, square = square, gram
        multiply_symmetric(square, gram, gram, k, side, s.panel)
        a, b, c = real(coefficients[i, 0]), real(coefficients[i, 1]), real(coefficients[i, 2])
        if i == 0:
            polynomial(q, gram, square, a, b, c, k, side)
            p[:] = q
        else:
            polynomial(p, gram, square, a, b, c, k, side)
            multiply_symmetric(product, p, q, k, side, s.panel)
            q, product = product, q
    return q


@row
def update_matrix(
    weights,
    gradients,
    mean,
    start,
    columns,
    m,
    n,
    gradient_scale,
    shrink,
    step,
    beta,
    margin,
    coefficients,
    s,
):
    """Update w (m, n), which lies at `start`, its rows `columns` elements apart. s: Scratch"""
    real, width, total = weights.dtype.type, padded(n, COLUMNS), np.float64(0)
    for r in range(m):
        part, x = slice(start + r * columns, start + r * columns + n), s.x[r * width : r * width + n]
        total += look_ahead_row(x, gradients[part], mean[part], real(gradient_scale), real(beta), real(1 - beta))
        s.x[r * width + n : (r + 1) * width] = 0
    s.x[m * width :] = 0
    scale_by(s.x, 1 / (margin * math.sqrt(total)) if total > 0 else np.float64(0))
    q, side = factor(s, m, n, coefficients), padded(min(m, n), COLUMNS)
    left, left_row, right, right_row = (q, side, s.x, width) if m <= n else (s.x, width, q, side)
    shrink, step = real(shrink), real(step)
    move(weights, start, columns, m, n, left, left_row, right, right_row, min(m, n), shrink, step, s.panel, s.tile)


@kernel
def _orthogonal_update(
    worker,
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
    scratch,
):
    for task in range(worker, len(matrices), len(scratch)):
        m, columns, n = matrices[task, 1], matrices[task, 2], matrices[task, 4] - matrices[task, 3]
        update_matrix(
            weights,
            gradients,
            mean,
            matrices[task, 0] + matrices[task, 3],
            columns,
            m,
            n,
            gradient_scale,
            1 - rate * decay,
            rate * scale * math.sqrt(max(m, n)),
            beta,
            margin,
            coefficients,
            layout(scratch[worker], m, n)[0],
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
    """Workers take the matrices in turn: list large ones first."""
    scratch = MEMORY.of(matrices, weights.dtype)
    _orthogonal_update(
        len(scratch),
        weights,
        gradients,
        mean,
        matrices,
        float(gradient_scale),
        float(rate),
        float(decay),
        float(beta),
        float(scale),
        float(margin),
        coefficients,
        scratch,
    )
