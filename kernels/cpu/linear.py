"""Matrix products over the pool of threads, with bias and residual laid under the product instead of added after it."""
from numba import prange

from .gemm import gemm
from .jit import kernel, row
from .norm import add_to

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
            gemm(transpose_a, transpose_b, r1 - r0, c1 - c0, k, one,
                 a, r0 if transpose_a else r0 * k, a.shape[1], b, c0 * k if transpose_b else c0, b.shape[1],
                 zero if under == NOTHING else one, out, r0 * n + c0, n)


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


def product(out, a, b, transpose_a, transpose_b, under, bias, residual):
    k = a.shape[0] if transpose_a else a.shape[1]
    split_product(out, a, b, transpose_a, transpose_b, under, bias, residual, parts_of(*out.shape, k))


@kernel
def add_rows(dbias, dout):
    """dbias += sum of the rows of dout, in blocks of columns."""
    rows, columns = dout.shape
    for block in prange((columns + 127) // 128):
        part = slice(block * 128, min(columns, block * 128 + 128))
        for r in range(rows):
            add_to(dbias[part], dout[r, part])


def linear_forward(out, x, weight, bias, residual):
    if bias is None:
        under = NOTHING if residual is None else RESIDUAL
    else:
        under = BIAS if residual is None else BIAS_AND_RESIDUAL
    product(out, x, weight, 0, 0, under, weight[0] if bias is None else bias, out if residual is None else residual)


def linear_backward_input(dx, dout, weight):
    product(dx, dout, weight, 0, 1, NOTHING, weight[0], dx)


def linear_backward_weight(dweight, dbias, dout, x):
    product(dweight, x, dout, 1, 0, ADD, dweight[0], dweight)
    if dbias is not None:
        add_rows(dbias, dout)


def linear_transposed_forward(out, x, weight):
    product(out, x, weight, 0, 1, NOTHING, weight[0], out)


def linear_transposed_backward(dx, dweight, dout, x, weight):
    product(dweight, dout, x, 1, 0, ADD, dweight[0], dweight)
    product(dx, dout, weight, 0, 0, NOTHING, weight[0], dx)
