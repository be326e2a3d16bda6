"""Matrix products by OpenBLAS, split over the pool of threads. Bias and residual lie under a product instead of being added after it."""

from numba import prange

from .blas import gemm
from .jit import kernel, row

# Products are split at multiples of ALIGN; one of fewer than 8 UNIT multiply-adds is not worth a second thread, and parts narrower
# than WIDTH are not worth a third.
ALIGN, WIDTH, UNIT, MOST = 64, 384, 1 << 20, 16
NOTHING, ADD, BIAS, RESIDUAL, BIAS_AND_RESIDUAL = range(5)


@row
def lay(out, under, bias, residual, r0, r1, c0, c1):
    """Fill a block of `out` with what the product is added to."""
    for r in range(r0, r1):
        row, under_bias, under_residual = out[r, c0:c1], bias[c0:c1], residual[r, c0:c1]
        if under == BIAS:
            for c in range(row.size):
                row[c] = under_bias[c]
        elif under == RESIDUAL:
            for c in range(row.size):
                row[c] = under_residual[c]
        else:
            for c in range(row.size):
                row[c] = under_residual[c] + under_bias[c]


@kernel
def split_product(out, a, b, transpose_a, transpose_b, under, bias, residual, parts):
    """out = op(a) op(b) + what `under` names. The larger side of `out` is split, so that the smaller operand is packed more than once."""
    m, n = out.shape
    k = a.shape[0] if transpose_a else a.shape[1]
    side = max(m, n)
    step = (side + parts * ALIGN - 1) // (parts * ALIGN) * ALIGN
    zero, one = out.dtype.type(0), out.dtype.type(1)
    for part in prange(parts):
        low, high = min(side, part * step), min(side, part * step + step)
        if low < high:
            r0, r1, c0, c1 = (low, high, 0, n) if m >= n else (0, m, low, high)
            if under > ADD:
                lay(out, under, bias, residual, r0, r1, c0, c1)
            gemm(
                transpose_a,
                transpose_b,
                r1 - r0,
                c1 - c0,
                k,
                one,
                a,
                r0 if transpose_a else r0 * k,
                a.shape[1],
                b,
                c0 * k if transpose_b else c0,
                b.shape[1],
                zero if under == NOTHING else one,
                out,
                r0 * n + c0,
                n,
            )


def parts_of(m, n, k):
    """Into how many parts a product is split: 1, 2, 4, 8 or 16 by its shape alone.

    BLAS may compute an element by another sequence of operations when its neighbours change, so the split must not follow the number of
    threads, or results would. Every part packs the smaller operand again: the narrower the part, the larger that is beside its work.
    """
    work, side = m * n * k, max(m, n)
    parts = 2 if work >= 8 * UNIT and side >= 2 * ALIGN else 1
    while 1 < parts < MOST and (2 * parts) ** 3 * UNIT <= work and 2 * parts * WIDTH <= side:
        parts *= 2
    return parts


def product(out, a, b, transpose_b, under, bias, residual):
    """out (m, n) = a op(b) + what `under` names        a (m, k)   op(b) (k, n)"""
    split_product(out, a, b, 0, transpose_b, under, bias, residual, parts_of(*out.shape, a.shape[1]))


def add_outer_products(c, a, b):
    """C (m, n) += A^T B        A (k, m)   B (k, n)"""
    split_product(c, a, b, 1, 0, ADD, c[0], c, parts_of(*c.shape, len(a)))
