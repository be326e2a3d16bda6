"""Matrix products from register tiles: where registers are wide they are a tenth faster than OpenBLAS, which packs both operands.

A product packs only what a tile reads across, a panel as wide as the tile at a time, and reads the other operand where it lies; a sum of
outer products packs both. Every number is summed in the same order however the product is shared out, so results do not depend on the
number of threads.
"""

import threading

import numba
import numpy as np
from numba import prange
from numba.np.ufunc.parallel import get_thread_id

from .gemm_blas import ADD, NOTHING, lay
from .jit import kernel, row
from .microkernel_f32 import COLUMNS, ROWS, copy_column_panel, copy_row_panel, multiply_tile, padded, transpose

TERMS = 256  # summed in a register before they are added to C: more would be a little faster and less exact
OUTER_TERMS, OUTER_ROWS = (
    384,
    384,
)  # of a sum of outer products, whose panels of A are kept: 590 kB, which leave room in a second-level cache
SMALL = 1 << 21  # multiply-adds that are not worth a second thread
ENOUGH = 256  # rows to share out before columns are: fewer would not repay packing a panel
PANEL = max(TERMS, OUTER_TERMS) * COLUMNS
ROOM = PANEL + max(TERMS * ROWS, OUTER_TERMS * OUTER_ROWS) + ROWS * COLUMNS


class Panels(threading.local):
    """Memory for each thread of the pool: a panel of B, rows of A, a tile of C. Every thread of Python has its own, as two may multiply at once."""

    def __init__(self):
        self.made = {}

    def of(self, dtype):
        if dtype not in self.made:
            self.made[dtype] = np.empty((numba.config.NUMBA_NUM_THREADS, ROOM), dtype)
        return self.made[dtype]


PANELS = Panels()


@row
def even_share(count, most):
    """The size of `count` things' shares, as few and as even as shares of at most `most` can be."""
    shares = (count + most - 1) // most
    return (count + shares - 1) // shares


@row
def take_panel(panel, offset, x, flat, start, terms, first, width):
    """`width` columns of `terms` rows of x from (start, first) on, zeros past x's last column."""
    columns = x.shape[1]
    if first + width <= columns and width == COLUMNS:
        copy_column_panel(panel, offset, flat, start * columns + first, columns, terms)
    elif first + width <= columns and width == ROWS:
        copy_row_panel(panel, offset, flat, start * columns + first, columns, terms)
    else:
        panel[offset : offset + terms * width] = 0
        for t in range(terms):
            for c in range(columns - first):
                panel[offset + t * width + c] = x[start + t, first + c]


@row
def put_tile(c, i, j, tile, adds):
    """Write a tile that reaches past the edge of C, or add it."""
    columns = min(COLUMNS, c.shape[1] - j)
    for r in range(min(ROWS, c.shape[0] - i)):
        target, source = c[i + r, j : j + columns], tile[r * COLUMNS : r * COLUMNS + columns]
        for q in range(columns):
            target[q] = target[q] + source[q] if adds else source[q]


@row
def multiply_block(c, flat_c, i0, i1, j0, j1, a, flat_a, b, flat_b, transpose_b, under, bias, residual, memory):
    """Rows i0 ... i1, columns j0 ... j1 of C."""
    (m, n), k = c.shape, a.shape[1]
    panel, edge_rows, tile = memory[:PANEL], memory[PANEL : ROOM - ROWS * COLUMNS], memory[ROOM - ROWS * COLUMNS :]
    step = even_share(k, TERMS)
    for j in range(j0, j1, COLUMNS):
        columns = min(COLUMNS, n - j)
        if under > ADD:
            lay(c, under, bias, residual, i0, i1, j, j + columns)
        for start in range(0, k, step):
            terms, adds = min(step, k - start), start > 0 or under != NOTHING
            if transpose_b:
                if columns < COLUMNS:
                    panel[:] = 0
                transpose(panel, COLUMNS, flat_b, j * k + start, k, columns, terms)
            else:
                take_panel(panel, 0, b, flat_b, start, terms, j, COLUMNS)
            for i in range(i0, i1, ROWS):
                if i + ROWS <= m and columns == COLUMNS:
                    multiply_tile(flat_c, i * n + j, n, flat_a, i * k + start, k, 1, panel, 0, COLUMNS, terms, adds)
                elif i + ROWS <= m:
                    multiply_tile(tile, 0, COLUMNS, flat_a, i * k + start, k, 1, panel, 0, COLUMNS, terms, 0)
                    put_tile(c, i, j, tile, adds)
                else:
                    edge_rows[: ROWS * terms] = 0
                    for r in range(m - i):
                        edge_rows[r * terms : r * terms + terms] = a[i + r, start : start + terms]
                    multiply_tile(tile, 0, COLUMNS, edge_rows, 0, terms, 1, panel, 0, COLUMNS, terms, 0)
                    put_tile(c, i, j, tile, adds)


@row
def add_block(c, flat_c, i0, i1, j0, j1, a, flat_a, b, flat_b, memory):
    """Rows i0 ... i1, columns j0 ... j1 of C += A^T B: A's panels are as wide as a tile is high, and so need no transpose either."""
    (m, n), k = c.shape, a.shape[0]
    panel, a_panels, tile = memory[:PANEL], memory[PANEL : ROOM - ROWS * COLUMNS], memory[ROOM - ROWS * COLUMNS :]
    step = even_share(k, OUTER_TERMS)
    for start in range(0, k, step):
        terms = min(step, k - start)
        for first in range(i0, i1, OUTER_ROWS):
            last = min(i1, first + OUTER_ROWS)
            for i in range(first, last, ROWS):
                take_panel(a_panels, (i - first) * terms, a, flat_a, start, terms, i, ROWS)
            for j in range(j0, j1, COLUMNS):
                take_panel(panel, 0, b, flat_b, start, terms, j, COLUMNS)
                for i in range(first, last, ROWS):
                    if i + ROWS <= m and j + COLUMNS <= n:
                        multiply_tile(
                            flat_c, i * n + j, n, a_panels, (i - first) * terms, 1, ROWS, panel, 0, COLUMNS, terms, 1
                        )
                    else:
                        multiply_tile(
                            tile, 0, COLUMNS, a_panels, (i - first) * terms, 1, ROWS, panel, 0, COLUMNS, terms, 0
                        )
                        put_tile(c, i, j, tile, 1)


@row
def part_of(part, c, row_parts, column_parts):
    """Rows i0 ... i1 and columns j0 ... j1 of one part of C, whole tiles but at C's edges; empty where there are more parts than tiles."""
    m, n = c.shape
    tall, wide = padded((m + row_parts - 1) // row_parts, ROWS), padded((n + column_parts - 1) // column_parts, COLUMNS)
    i, j = min(m, part // column_parts * tall), min(n, part % column_parts * wide)
    return i, min(m, i + tall), j, min(n, j + wide)


@kernel
def _product(c, flat_c, a, flat_a, b, flat_b, transpose_b, under, bias, residual, memory, row_parts, column_parts):
    for part in prange(row_parts * column_parts):
        i0, i1, j0, j1 = part_of(part, c, row_parts, column_parts)
        multiply_block(
            c, flat_c, i0, i1, j0, j1, a, flat_a, b, flat_b, transpose_b, under, bias, residual, memory[get_thread_id()]
        )


@kernel
def _outer_products(c, flat_c, a, flat_a, b, flat_b, memory, row_parts, column_parts):
    for part in prange(row_parts * column_parts):
        i0, i1, j0, j1 = part_of(part, c, row_parts, column_parts)
        add_block(c, flat_c, i0, i1, j0, j1, a, flat_a, b, flat_b, memory[get_thread_id()])


def parts_of(m, n, k):
    """(row parts, column parts) in which C (m, n) is shared out, one part a thread."""
    threads = numba.get_num_threads() if m * n * k >= SMALL else 1
    rows = max(r for r in range(1, threads + 1) if threads % r == 0 and (r == 1 or m >= r * ENOUGH))
    return rows, threads // rows


def product(out, a, b, transpose_b, under, bias, residual):
    """out (m, n) = a op(b) + what `under` names        a (m, k)   op(b) (k, n)"""
    _product(
        out,
        out.reshape(-1),
        a,
        a.reshape(-1),
        b,
        b.reshape(-1),
        transpose_b,
        under,
        bias,
        residual,
        PANELS.of(out.dtype),
        *parts_of(*out.shape, a.shape[1]),
    )


def add_outer_products(c, a, b):
    """C (m, n) += A^T B        A (k, m)   B (k, n)"""
    _outer_products(
        c, c.reshape(-1), a, a.reshape(-1), b, b.reshape(-1), PANELS.of(c.dtype), *parts_of(*c.shape, len(a))
    )
