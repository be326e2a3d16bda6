"""Matmuls from register tiles, for processors with AVX-512, where they are about a tenth faster than OpenBLAS.

A B packs only a panel of B, as wide as a tile, and reads A in place; A^T B packs both. OpenBLAS always packs both.
Every element is summed in the same order however the work is split, so results do not depend on the number of threads.
"""

import threading
from typing import Any, NamedTuple

import numba
import numpy as np
from numba import prange
from numba.extending import register_jitable
from numba.np.ufunc.parallel import get_thread_id

from .jit import exact, kernel, row
from .microkernel_f32 import (
    ADD,
    BIAS,
    COLUMNS,
    NOTHING,
    RESIDUAL,
    ROWS,
    copy_column_panel,
    copy_row_panel,
    multiply_prefilled_tile,
    multiply_tile,
    padded,
    transpose,
)
from .scratch import carve, elements_of

TERMS = 256  # summed in registers before they are added to C: more would be a little faster and less exact
# Terms and rows of A's packed panels for A^T B: 590 kB, which leaves room in a second-level cache.
OUTER_TERMS, OUTER_ROWS = 384, 384
SMALL = 1 << 21  # multiply-adds below which a second thread does not pay off
ENOUGH = 256  # rows per thread below which columns are split instead: packing a panel must pay off


class Scratch(NamedTuple):
    """Memory of one thread, flat views.

    panel  (terms, COLUMNS)       a panel of B
    rows   (ROWS, TERMS)          A's last rows padded to a tile; or (OUTER_ROWS, OUTER_TERMS), panels of A^T
    tile   (ROWS, COLUMNS)        a tile of C that reaches past an edge
    """

    panel: Any
    rows: Any
    tile: Any


@register_jitable
def layout(memory):
    """The scratch, and the rest of the memory."""
    panel, memory = carve(memory, (max(TERMS, OUTER_TERMS) * COLUMNS,))
    rows, memory = carve(memory, (max(TERMS * ROWS, OUTER_TERMS * OUTER_ROWS),))
    tile, memory = carve(memory, (ROWS * COLUMNS,))
    return Scratch(panel, rows, tile), memory


class Memory(threading.local):
    """Scratch for each of Numba's threads. Each Python thread has its own, because two may multiply at once."""

    def __init__(self):
        self.arrays = {}

    def of(self, dtype):
        if dtype not in self.arrays:
            self.arrays[dtype] = np.empty((numba.config.NUMBA_NUM_THREADS, elements_of(layout)), dtype)
        return self.arrays[dtype]


MEMORY = Memory()


@row
def even_share(count, most):
    """The size of equal shares of `count`, as few as possible, of at most `most` each."""
    shares = (count + most - 1) // most
    return (count + shares - 1) // shares


@row
def copy_panel(panel, offset, x, flat_x, start, terms, column, width):
    """panel (terms, width) = x[start : start + terms, column : column + width],   zeros past x's last column"""
    columns = x.shape[1]
    if column + width <= columns and width == COLUMNS:
        copy_column_panel(panel, offset, flat_x, start * columns + column, columns, terms)
    elif column + width <= columns and width == ROWS:
        copy_row_panel(panel, offset, flat_x, start * columns + column, columns, terms)
    else:
        panel[offset : offset + terms * width] = 0
        for t in range(terms):
            for c in range(columns - column):
                panel[offset + t * width + c] = x[start + t, column + c]


@exact
def store_tile(c, i, j, tile, prefill, bias, residual):
    """Store the part of a tile that lies inside C: C = prefill + tile."""
    columns = min(COLUMNS, c.shape[1] - j)
    for r in range(min(ROWS, c.shape[0] - i)):
        target, sums = c[i + r, j : j + columns], tile[r * COLUMNS : r * COLUMNS + columns]
        bias_part, residual_part = bias[j : j + columns], residual[i + r, j : j + columns]
        if prefill == NOTHING:
            for q in range(columns):
                target[q] = sums[q]
        elif prefill == ADD:
            for q in range(columns):
                target[q] = target[q] + sums[q]
        elif prefill == BIAS:
            for q in range(columns):
                target[q] = bias_part[q] + sums[q]
        elif prefill == RESIDUAL:
            for q in range(columns):
                target[q] = residual_part[q] + sums[q]
        else:
            for q in range(columns):
                target[q] = (residual_part[q] + bias_part[q]) + sums[q]


@exact
def multiply_block(
    c,
    flat_c,
    i0,
    i1,
    j0,
    j1,
    a,
    flat_a,
    b,
    flat_b,
    transpose_b,
    prefill,
    bias,
    residual,
    flat_residual,
    memory,
):
    """C[i0:i1, j0:j1] = prefill + A op(B)"""
    (m, n), k, scratch = c.shape, a.shape[1], layout(memory)[0]
    panel, rows, tile = scratch.panel, scratch.rows, scratch.tile
    step = even_share(k, TERMS)
    for j in range(j0, j1, COLUMNS):
        columns = min(COLUMNS, n - j)
        for start in range(0, k, step):
            terms, adds = min(step, k - start), prefill if start == 0 else ADD
            if transpose_b:
                if columns < COLUMNS:
                    panel[:] = 0
                transpose(panel, COLUMNS, flat_b, j * k + start, k, columns, terms)
            else:
                copy_panel(panel, 0, b, flat_b, start, terms, j, COLUMNS)
            for i in range(i0, i1, ROWS):
                if i + ROWS <= m and columns == COLUMNS:
                    multiply_prefilled_tile(
                        flat_c,
                        i * n + j,
                        n,
                        flat_a,
                        i * k + start,
                        k,
                        1,
                        panel,
                        0,
                        COLUMNS,
                        terms,
                        adds,
                        bias,
                        j,
                        flat_residual,
                    )
                    continue
                if i + ROWS <= m:
                    multiply_tile(
                        tile,
                        0,
                        COLUMNS,
                        flat_a,
                        i * k + start,
                        k,
                        1,
                        panel,
                        0,
                        COLUMNS,
                        terms,
                        0,
                    )
                else:
                    rows[: ROWS * terms] = 0
                    for r in range(m - i):
                        rows[r * terms : r * terms + terms] = a[i + r, start : start + terms]
                    multiply_tile(
                        tile,
                        0,
                        COLUMNS,
                        rows,
                        0,
                        terms,
                        1,
                        panel,
                        0,
                        COLUMNS,
                        terms,
                        0,
                    )
                store_tile(c, i, j, tile, adds, bias, residual)


@row
def outer_block(
    c,
    flat_c,
    i0,
    i1,
    j0,
    j1,
    a,
    flat_a,
    b,
    flat_b,
    memory,
):
    """C[i0:i1, j0:j1] += A^T B: A's panels are as wide as a tile is high, so neither operand needs a transpose."""
    (m, n), k, scratch = c.shape, a.shape[0], layout(memory)[0]
    panel, a_panels, tile = scratch.panel, scratch.rows, scratch.tile
    step = even_share(k, OUTER_TERMS)
    for start in range(0, k, step):
        terms = min(step, k - start)
        for i_start in range(i0, i1, OUTER_ROWS):
            i_stop = min(i1, i_start + OUTER_ROWS)
            for i in range(i_start, i_stop, ROWS):
                copy_panel(a_panels, (i - i_start) * terms, a, flat_a, start, terms, i, ROWS)
            for j in range(j0, j1, COLUMNS):
                copy_panel(panel, 0, b, flat_b, start, terms, j, COLUMNS)
                for i in range(i_start, i_stop, ROWS):
                    a_panel = (i - i_start) * terms
                    if i + ROWS <= m and j + COLUMNS <= n:
                        multiply_tile(
                            flat_c,
                            i * n + j,
                            n,
                            a_panels,
                            a_panel,
                            1,
                            ROWS,
                            panel,
                            0,
                            COLUMNS,
                            terms,
                            1,
                        )
                    else:
                        multiply_tile(
                            tile,
                            0,
                            COLUMNS,
                            a_panels,
                            a_panel,
                            1,
                            ROWS,
                            panel,
                            0,
                            COLUMNS,
                            terms,
                            0,
                        )
                        store_tile(c, i, j, tile, ADD, tile, c)


@row
def part_of(part, c, row_parts, column_parts):
    """(i0, i1, j0, j1) of one part of C: whole tiles except at C's edges; empty if there are more parts than tiles."""
    m, n = c.shape
    height = padded((m + row_parts - 1) // row_parts, ROWS)
    width = padded((n + column_parts - 1) // column_parts, COLUMNS)
    i, j = min(m, part // column_parts * height), min(n, part % column_parts * width)
    return i, min(m, i + height), j, min(n, j + width)


@kernel
def _gemm(
    c,
    flat_c,
    a,
    flat_a,
    b,
    flat_b,
    transpose_b,
    prefill,
    bias,
    residual,
    flat_residual,
    memory,
    row_parts,
    column_parts,
):
    for part in prange(row_parts * column_parts):
        i0, i1, j0, j1 = part_of(part, c, row_parts, column_parts)
        multiply_block(
            c,
            flat_c,
            i0,
            i1,
            j0,
            j1,
            a,
            flat_a,
            b,
            flat_b,
            transpose_b,
            prefill,
            bias,
            residual,
            flat_residual,
            memory[get_thread_id()],
        )


@kernel
def _outer_products(
    c,
    flat_c,
    a,
    flat_a,
    b,
    flat_b,
    memory,
    row_parts,
    column_parts,
):
    for part in prange(row_parts * column_parts):
        i0, i1, j0, j1 = part_of(part, c, row_parts, column_parts)
        outer_block(
            c,
            flat_c,
            i0,
            i1,
            j0,
            j1,
            a,
            flat_a,
            b,
            flat_b,
            memory[get_thread_id()],
        )


def parts_of(m, n, k):
    """(row parts, column parts) of C (m, n): one part per thread."""
    threads = numba.get_num_threads() if m * n * k >= SMALL else 1
    rows = max(r for r in range(1, threads + 1) if threads % r == 0 and (r == 1 or m >= r * ENOUGH))
    return rows, threads // rows


def matmul(out, a, b, transpose_b, prefill, bias, residual):
    """out (m, n) = prefill + a op(b)        a (m, k)   op(b) (k, n)   prefill: NOTHING, ADD, ..."""
    _gemm(
        out,
        out.reshape(-1),
        a,
        a.reshape(-1),
        b,
        b.reshape(-1),
        transpose_b,
        prefill,
        bias,
        residual,
        residual.reshape(-1),
        MEMORY.of(out.dtype),
        *parts_of(*out.shape, a.shape[1]),
    )


def add_outer_products(c, a, b):
    """C (m, n) += A^T B        A (k, m)   B (k, n)"""
    _outer_products(
        c,
        c.reshape(-1),
        a,
        a.reshape(-1),
        b,
        b.reshape(-1),
        MEMORY.of(c.dtype),
        *parts_of(*c.shape, len(a)),
    )
