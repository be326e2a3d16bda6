"""Matmuls by a BLAS library, split over Numba's threads: on Apple's processors, see blas.py.

Bias and residual are not added afterwards: C is prefilled with them, and gemm runs with beta = 1.
"""

from .blas import gemm
from .jit import kernel, row
from .microkernel_f32 import ADD, BIAS, NOTHING, RESIDUAL

# A matmul is split at multiples of ALIGN into at most MOST parts. With fewer than 8 UNIT multiply-adds a second thread
# does not pay off; with parts narrower than WIDTH a third does not.
ALIGN, WIDTH, UNIT, MOST = 64, 384, 1 << 20, 16


@row
def prefill_block(out, prefill, bias, residual, r0, r1, c0, c1):
    """out[r0:r1, c0:c1] = bias, residual or their sum"""
    for r in range(r0, r1):
        row, bias_part, residual_part = out[r, c0:c1], bias[c0:c1], residual[r, c0:c1]
        if prefill == BIAS:
            for c in range(row.size):
                row[c] = bias_part[c]
        elif prefill == RESIDUAL:
            for c in range(row.size):
                row[c] = residual_part[c]
        else:
            for c in range(row.size):
                row[c] = residual_part[c] + bias_part[c]


@kernel
def split_gemm(
    part,
    out,
    a,
    b,
    transpose_a,
    transpose_b,
    prefill,
    bias,
    residual,
    parts,
):
    """out = op(a) op(b) + prefill

    The longer side of `out` is split, because each part packs the whole operand of the other side again.
    """
    m, n = out.shape
    k = a.shape[0] if transpose_a else a.shape[1]
    side = max(m, n)
    step = (side + parts * ALIGN - 1) // (parts * ALIGN) * ALIGN
    zero, one = out.dtype.type(0), out.dtype.type(1)
    start, stop = min(side, part * step), min(side, part * step + step)
    if start < stop:
        r0, r1, c0, c1 = (start, stop, 0, n) if m >= n else (0, m, start, stop)
        if prefill > ADD:
            prefill_block(out, prefill, bias, residual, r0, r1, c0, c1)
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
            zero if prefill == NOTHING else one,
            out,
            r0 * n + c0,
            n,
        )


def parts_of(m, n, k):
    """The number of parts of a matmul: 1, 2, 4, 8 or 16, by its shape alone.

    BLAS may compute an element by another sequence of operations when the elements around it change. So the split, and
    with it the result, must not depend on the number of threads. Each part packs the smaller operand again, so narrow
    parts waste work.
    """
    work, side = m * n * k, max(m, n)
    parts = 2 if work >= 8 * UNIT and side >= 2 * ALIGN else 1
    while 1 < parts < MOST and (2 * parts) ** 3 * UNIT <= work and 2 * parts * WIDTH <= side:
        parts *= 2
    return parts


def matmul(out, a, b, transpose_b, prefill, bias, residual):
    """out (m, n) = a op(b) + prefill        a (m, k)   op(b) (k, n)   prefill: NOTHING, ADD, ..."""
    parts = parts_of(*out.shape, a.shape[1])
    split_gemm(
        parts,
        out,
        a,
        b,
        0,
        transpose_b,
        prefill,
        bias,
        residual,
        parts,
    )


def add_outer_products(c, a, b):
    """C (m, n) += A^T B        A (k, m)   B (k, n)"""
    parts = parts_of(*c.shape, len(a))
    split_gemm(
        parts,
        c,
        a,
        b,
        1,
        0,
        ADD,
        c[0],
        c,
        parts,
    )
