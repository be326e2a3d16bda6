"""Matmuls of float32 and float64 from register tiles.

A B packs B into panels as wide as a tile, and reads A in place unless its rows are long; A^T B packs both. Bias and
residual are added when a tile is stored, so they cost no pass over C. Matmuls of the shapes of training are as fast as
OpenBLAS'. Every element is summed in the same order however the work is split, so results do not depend on the number
of threads.
"""

import threading
from typing import Any, NamedTuple

import numba
import numpy as np
from numba.extending import register_jitable
from numba.np.ufunc.parallel import get_thread_id

from .jit import exact, inlined, kernel, row
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
OUTER_TERMS = 384  # the same for A^T B
# Rows of A that are used at a time. They take 390 kB, or 590 kB for A^T B, and leave room in a second-level cache.
BLOCK_ROWS = 384
# Terms, and elements, of B that are packed at a time: 4 MB in float32, read panel by panel.
BLOCK_TERMS, BLOCK_ELEMENTS = 1024, 1 << 20
SMALL = 1 << 21  # multiply-adds below which a second thread does not pay off
ENOUGH = 256  # rows per thread below which columns are split instead: packing a panel must pay off


class Scratch(NamedTuple):
    """Memory of one thread, flat views.

    a_block  (BLOCK_ROWS, terms)            rows of A, or panels of A^T (BLOCK_ROWS / ROWS, terms, ROWS)
    panels   (., terms, C)                  panels of B, C = COLUMNS columns each, BLOCK_ELEMENTS at most
    tile     (ROWS, COLUMNS)                a tile of C that reaches past an edge
    """

    a_block: Any
    panels: Any
    tile: Any


@register_jitable
def layout(memory):
    """The scratch, and the rest of the memory."""
    a_block, memory = carve(memory, (BLOCK_ROWS * max(TERMS, OUTER_TERMS),))
    panels, memory = carve(memory, (BLOCK_ELEMENTS,))
    tile, memory = carve(memory, (ROWS * COLUMNS,))
    return Scratch(a_block, panels, tile), memory


class Memory(threading.local):
    """Scratch for each of Numba's threads. Each Python thread has its own, because two may multiply at once."""

    def __init__(self):
        self.arrays = {}

    def of(self, dtype):
        if dtype not in self.arrays:
            self.arrays[dtype] = np.empty((numba.config.NUMBA_NUM_THREADS, elements_of(layout)), dtype)
        return self.arrays[dtype]


MEMORY = Memory()


@register_jitable
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


@row
def copy_rows(rows, a, start, stop, term, terms):
    """rows (., terms) = a[start:stop, term : term + terms],   zeros after the last row to the end of its tile"""
    for r in range(stop - start):
        target, source = rows[r * terms : r * terms + terms], a[start + r, term : term + terms]
        for t in range(terms):
            target[t] = source[t]
    rows[(stop - start) * terms : padded(stop - start, ROWS) * terms] = 0


@exact
def store_tile(c, start, n, rows, columns, tile, prefill, bias, residual):
    """C = prefill + the first rows and columns of a tile. C and the residual begin at `start`, their rows n apart."""
    for r in range(rows):
        offset = start + r * n
        target, sums = c[offset : offset + columns], tile[r * COLUMNS : r * COLUMNS + columns]
        residual_row = residual[offset : offset + columns]
        if prefill == NOTHING:
            for q in range(columns):
                target[q] = sums[q]
        elif prefill == ADD:
            for q in range(columns):
                target[q] = target[q] + sums[q]
        elif prefill == BIAS:
            for q in range(columns):
                target[q] = bias[q] + sums[q]
        elif prefill == RESIDUAL:
            for q in range(columns):
                target[q] = residual_row[q] + sums[q]
        else:
            for q in range(columns):
                target[q] = (residual_row[q] + bias[q]) + sums[q]


@exact
def multiply_panel(
    c,
    start,
    n,
    rows,
    columns,
    a,
    a_start,
    a_stride,
    a_row,
    a_step,
    panels,
    panel,
    terms,
    prefill,
    bias,
    bias_start,
    residual,
    tile,
):
    """C = prefill + A B for one panel of B: tile after tile, `rows` in all. The prefill is summed before the terms.

    c, residual   flat; the block begins at `start`, its rows n elements apart; `columns` of the panel lie inside it
    a             row i of a tile's A begins at a_start + i a_stride; within a tile, see `multiply_tile_of`
    panels        flat; the panel begins at `panel`
    """
    for i in range(0, rows, ROWS):
        target, source = start + i * n, a_start + i * a_stride
        if i + ROWS <= rows and columns == COLUMNS:
            multiply_prefilled_tile(
                c,
                target,
                n,
                a,
                source,
                a_row,
                a_step,
                panels,
                panel,
                COLUMNS,
                terms,
                prefill,
                bias,
                bias_start,
                residual,
            )
        else:
            multiply_tile(
                tile,
                0,
                COLUMNS,
                a,
                source,
                a_row,
                a_step,
                panels,
                panel,
                COLUMNS,
                terms,
                0,
            )
            bias_part = bias[bias_start : bias_start + columns]
            store_tile(c, target, n, min(ROWS, rows - i), columns, tile, prefill, bias_part, residual)


@row
def copy_b_panel(panels, panel, b, flat_b, transpose_b, term, terms, j, columns):
    """Terms `term` ... `term + terms` of columns j ... j + COLUMNS of op(B) as a panel, zeros past the last column."""
    if not transpose_b:
        copy_panel(panels, panel, b, flat_b, term, terms, j, COLUMNS)
        return
    if columns < COLUMNS:
        panels[panel : panel + COLUMNS * terms] = 0
    transpose(panels[panel:], COLUMNS, flat_b, j * b.shape[1] + term, b.shape[1], columns, terms)


@inlined
def multiply_block(
    flat_c,
    n,
    i0,
    i1,
    j0,
    j1,
    k0,
    k1,
    step,
    a,
    flat_a,
    b,
    flat_b,
    transpose_b,
    prefill,
    bias,
    flat_residual,
    memory,
):
    """C[i0:i1, j0:j1] = prefill + A[i0:i1, k0:k1] op(B)[k0:k1, j0:j1], summed in steps of so many terms

    B's panels are packed once. A block of A stays in the second-level cache while they pass. Its rows are read in place
    if they are contiguous, and else from a copy: the processor's prefetchers do not follow short parts of distant rows.
    """
    k, scratch = a.shape[1], layout(memory)[0]
    a_block, panels, tile = scratch.a_block, scratch.panels, scratch.tile
    width = padded(j1 - j0, COLUMNS)
    for i in range(i0, i1, BLOCK_ROWS):
        rows = min(BLOCK_ROWS, i1 - i)
        for term in range(k0, k1, step):
            terms, added = min(step, k1 - term), prefill if term == 0 else ADD
            in_place = terms == k and rows % ROWS == 0
            if not in_place:
                copy_rows(a_block, a, i, i + rows, term, terms)
            for j in range(j0, j1, COLUMNS):
                columns, panel = min(COLUMNS, n - j), (term - k0) * width + (j - j0) * terms
                if i == i0:
                    copy_b_panel(panels, panel, b, flat_b, transpose_b, term, terms, j, columns)
                multiply_panel(
                    flat_c,
                    i * n + j,
                    n,
                    rows,
                    columns,
                    flat_a if in_place else a_block,
                    i * k if in_place else 0,
                    terms,
                    terms,
                    1,
                    panels,
                    panel,
                    terms,
                    added,
                    bias,
                    j,
                    flat_residual,
                    tile,
                )


@inlined
def multiply_part(
    flat_c,
    n,
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
    flat_residual,
    memory,
):
    """C[i0:i1, j0:j1] = prefill + A op(B), as many columns and terms at a time as the packed B has memory for"""
    k = a.shape[1]
    step = even_share(k, TERMS)
    depth = step * even_share((k + step - 1) // step, BLOCK_TERMS // TERMS)
    width = BLOCK_ELEMENTS // depth // COLUMNS * COLUMNS
    for k0 in range(0, k, depth):
        for j in range(j0, j1, width):
            multiply_block(
                flat_c,
                n,
                i0,
                i1,
                j,
                min(j1, j + width),
                k0,
                min(k, k0 + depth),
                step,
                a,
                flat_a,
                b,
                flat_b,
                transpose_b,
                prefill,
                bias,
                flat_residual,
                memory,
            )


@inlined
def outer_block(
    flat_c,
    n,
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
    k, scratch = len(a), layout(memory)[0]
    a_block, panel, tile = scratch.a_block, scratch.panels, scratch.tile
    step = even_share(k, OUTER_TERMS)
    for term in range(0, k, step):
        terms = min(step, k - term)
        for i_start in range(i0, i1, BLOCK_ROWS):
            rows = min(BLOCK_ROWS, i1 - i_start)
            for i in range(0, rows, ROWS):
                copy_panel(a_block, i * terms, a, flat_a, term, terms, i_start + i, ROWS)
            for j in range(j0, j1, COLUMNS):
                copy_panel(panel, 0, b, flat_b, term, terms, j, COLUMNS)
                multiply_panel(
                    flat_c,
                    i_start * n + j,
                    n,
                    rows,
                    min(COLUMNS, n - j),
                    a_block,
                    0,
                    terms,
                    1,
                    ROWS,
                    panel,
                    0,
                    terms,
                    ADD,
                    tile,
                    0,
                    flat_c,
                    tile,
                )


@row
def part_of(part, m, n, row_parts, column_parts):
    """(i0, i1, j0, j1) of one part of C (m, n): whole tiles except at C's edges; empty if there are too few tiles."""
    height = padded((m + row_parts - 1) // row_parts, ROWS)
    width = padded((n + column_parts - 1) // column_parts, COLUMNS)
    i, j = min(m, part // column_parts * height), min(n, part % column_parts * width)
    return i, min(m, i + height), j, min(n, j + width)


@kernel
def _gemm(
    part,
    flat_c,
    n,
    a,
    flat_a,
    b,
    flat_b,
    transpose_b,
    prefill,
    bias,
    flat_residual,
    memory,
    row_parts,
    column_parts,
):
    i0, i1, j0, j1 = part_of(part, len(a), n, row_parts, column_parts)
    multiply_part(
        flat_c,
        n,
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
        flat_residual,
        memory[get_thread_id()],
    )


@kernel
def _outer_products(
    part,
    flat_c,
    a,
    flat_a,
    b,
    flat_b,
    memory,
    row_parts,
    column_parts,
):
    m, n = a.shape[1], b.shape[1]
    i0, i1, j0, j1 = part_of(part, m, n, row_parts, column_parts)
    outer_block(
        flat_c,
        n,
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
    row_parts, column_parts = parts_of(*out.shape, a.shape[1])
    _gemm(
        row_parts * column_parts,
        out.reshape(-1),
        out.shape[1],
        a,
        a.reshape(-1),
        b,
        b.reshape(-1),
        transpose_b,
        prefill,
        bias,
        residual.reshape(-1),
        MEMORY.of(out.dtype),
        row_parts,
        column_parts,
    )


def add_outer_products(c, a, b):
    """C (m, n) += A^T B        A (k, m)   B (k, n)"""
    row_parts, column_parts = parts_of(*c.shape, len(a))
    _outer_products(
        row_parts * column_parts,
        c.reshape(-1),
        a,
        a.reshape(-1),
        b,
        b.reshape(-1),
        MEMORY.of(c.dtype),
        row_parts,
        column_parts,
    )
