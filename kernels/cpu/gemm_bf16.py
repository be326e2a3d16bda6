"""Matmuls of bfloat16 operands with float32 sums, from tiles of pairs.

A pair is an int32 that holds two neighbors along the summed axis, see bfloat16.py. Weights are packed once per update
into panels of pairs as wide as a tile: W for x W, and W^T for dout W^T. Rows of activations are read as pairs in place
if their length is even. Every element is summed in the same order however the work is split.
"""

import threading
from typing import Any, NamedTuple

import numba
import numpy as np
from numba.extending import register_jitable
from numba.np.ufunc.parallel import get_thread_id

from slm_np.dtypes import BF16, CastCopy

from .bfloat16 import pair, read, rounded, write
from .gemm_check import projection, projection_error
from .gemm_f32 import even_share, part_of, parts_of
from .jit import kernel, row
from .microkernel_bf16 import (
    AMX,
    ROWS,
    STEP,
    begin_tiles,
    copy_pairs,
    end_tiles,
    interleave_panel,
    multiply_pairs,
    prefetch_tile,
    store_sums,
    store_sums_with_bias,
    store_sums_with_both,
    store_sums_with_residual,
)
from .microkernel_f32 import (
    ADD,
    BIAS,
    BIAS_AND_RESIDUAL,
    COLUMNS,
    LANES,
    NOTHING,
    RESIDUAL,
    padded,
    transpose,
    transpose_tile,
)
from .scratch import carve, elements_of

TERMS = 1024  # pairs summed at a time: the rows of A that go with them stay in a second-level cache
# Rows and terms (pairs) of A's packed panels for A^T B: they leave room in a second-level cache.
OUTER_ROWS, OUTER_TERMS = 384, 256
PACK_ROWS = 2 * LANES  # rows of a weight that a task packs


def cast_copy(weight, dtype=BF16):
    """Allocate the bfloat16 copies of a weight (D, E), which `update_cast_copy` fills.

    forward (E / C, D / 2, C) holds pairs of the weight in panels of C = COLUMNS columns, and backward (D / C, E / 2, C)
    those of its transpose. Both axes are padded with zeros to whole pairs and panels.
    """
    d, e = weight.shape
    panels = (
        np.zeros(((n + COLUMNS - 1) // COLUMNS, padded((k + 1) // 2, STEP), COLUMNS), np.int32)
        for k, n in ((d, e), (e, d))
    )
    return CastCopy(weight, *panels)


def unpacked(panels, columns):
    """The pairs (K / 2, columns) in panels, as a copy."""
    return panels.transpose(1, 0, 2).reshape(panels.shape[1], -1)[:, :columns]


@row
def pack_rows(forward, backward, weight, start, scratch):
    """Pack rows start ... start + PACK_ROWS of a weight in both forms. scratch: (LANES, LANES) pairs"""
    d, e = weight.shape
    stop = min(d, start + PACK_ROWS)
    for r in range(start, stop, 2):
        for panel in range(len(forward)):
            target, j = forward[panel, r // 2], panel * COLUMNS
            if r + 1 < d and j + COLUMNS <= e:
                low, high = weight[r, j : j + COLUMNS], weight[r + 1, j : j + COLUMNS]
                for c in range(COLUMNS):
                    target[c] = pair(rounded(low[c]), rounded(high[c]))
            else:
                for c in range(min(COLUMNS, e - j)):
                    target[c] = pair(
                        rounded(weight[r, j + c]), rounded(weight[r + 1, j + c]) if r + 1 < d else np.uint16(0)
                    )
    flat = backward.reshape(-1)
    for r0 in range(start, stop, LANES):
        rows = min(LANES, stop - r0)
        for c0 in range(0, e, 2 * LANES):
            for r in range(rows):
                source, target = weight[r0 + r], scratch[r * LANES : r * LANES + LANES]
                if c0 + 2 * LANES <= e:
                    source = source[c0 : c0 + 2 * LANES]
                    for c in range(LANES):
                        target[c] = pair(rounded(source[2 * c]), rounded(source[2 * c + 1]))
                else:
                    for c in range(LANES):
                        low = rounded(source[c0 + 2 * c]) if c0 + 2 * c < e else np.uint16(0)
                        target[c] = pair(low, rounded(source[c0 + 2 * c + 1]) if c0 + 2 * c + 1 < e else np.uint16(0))
            if rows == LANES and c0 + 2 * LANES <= e:
                transpose_tile(
                    flat,
                    ((r0 // COLUMNS) * backward.shape[1] + c0 // 2) * COLUMNS + r0 % COLUMNS,
                    COLUMNS,
                    scratch,
                    0,
                    LANES,
                )
            else:
                for c in range(min(LANES, (e - c0 + 1) // 2)):
                    for r in range(rows):
                        backward[(r0 + r) // COLUMNS, c0 // 2 + c, (r0 + r) % COLUMNS] = scratch[r * LANES + c]


@kernel
def _pack(block, forward, backward, weight, scratch):
    pack_rows(forward, backward, weight, block * PACK_ROWS, scratch[get_thread_id()])


class Scratch(NamedTuple):
    """Memory of one thread for A B, flat views.

    rows  (ROWS, terms)    rows of A as pairs, if A's own rows cannot be read
    tile  (ROWS, COLUMNS)  sums, bits of float32
    """

    rows: Any
    tile: Any


class OuterScratch(NamedTuple):
    """Memory of one thread for A^T B, flat views.

    panel  (OUTER_TERMS, COLUMNS)            pairs of rows of A, then of B
    rows   (OUTER_ROWS + ROWS, OUTER_TERMS)  rows of A^T as pairs
    tile   (ROWS, COLUMNS)                   sums, bits of float32
    """

    panel: Any
    rows: Any
    tile: Any


@register_jitable
def layout(memory, terms):
    """The scratch of A B, and the rest of the memory."""
    rows, memory = carve(memory, (terms * ROWS,))
    tile, memory = carve(memory, (ROWS * COLUMNS,))
    return Scratch(rows, tile), memory


@register_jitable
def outer_layout(memory):
    """The scratch of A^T B, and the rest of the memory."""
    panel, memory = carve(memory, (OUTER_TERMS * COLUMNS,))
    rows, memory = carve(memory, (OUTER_TERMS * (OUTER_ROWS + ROWS),))
    tile, memory = carve(memory, (ROWS * COLUMNS,))
    return OuterScratch(panel, rows, tile), memory


class Memory(threading.local):
    """Scratch for each of Numba's threads. Each Python thread has its own, because two may multiply at once."""

    def __init__(self):
        self.array = np.zeros((0, 0), np.int32)

    def of(self, terms):
        """Memory (threads, elements) for either layout with `terms` pairs."""
        size = max(elements_of(layout, terms), elements_of(outer_layout))
        if self.array.shape[1] < size:
            self.array = np.zeros((numba.config.NUMBA_NUM_THREADS, size), np.int32)
        return self.array


MEMORY = Memory()


def update_cast_copy(copy):
    """Fill a `CastCopy` from its float32 weight."""
    _pack(-(-len(copy.weight) // PACK_ROWS), copy.forward, copy.backward, copy.weight, MEMORY.of(TERMS))


def cast_copy_rows(copy, ids, columns):
    """Rows of a weight (D, E), E = columns, from its `CastCopy`, as an array of bfloat16.        ids (N,)"""
    pairs = copy.backward[ids // COLUMNS, :, ids % COLUMNS]  # (N, E / 2)
    return np.ascontiguousarray(np.ascontiguousarray(pairs).view(BF16)[:, :columns])


def as_pairs(x):
    """A copy of rows as pairs; rows of odd length are padded with a zero."""
    return np.pad(x, ((0, 0), (0, x.shape[1] % 2))).view(np.int32)


class Watch:
    """Selects one coming matmul to check: the one after `skipped` others."""

    def __init__(self):
        self.skipped = self.error = None

    def due(self):
        """Count one matmul; true if it is the one to check."""
        if self.skipped is None:
            return False
        self.skipped = self.skipped - 1 if self.skipped else None
        return self.skipped is None


WATCH = Watch()


def watch_matmul(number):
    """Check a coming matmul, the one after `number` others. Does nothing without AMX."""
    WATCH.skipped, WATCH.error = (number if AMX else None), 0.0


def watched_error():
    """The error of the checked matmul in tolerances, see gemm_check.py; 0 if none was checked."""
    WATCH.skipped = None
    return WATCH.error


@row
def copy_rows(rows, a, flat_a, i, count, start, terms):
    """rows (ROWS, terms) = pairs start ... start + terms of `count` rows of A from i on; zeros past A's edges"""
    k = a.shape[1]
    for r in range(ROWS):
        whole = min(terms, (k - 2 * start) // 2) if r < count else 0
        if whole > 0:
            copy_pairs(rows, r * terms, flat_a, (i + r) * k + 2 * start, whole)
        if whole < terms:
            rows[r * terms + whole : r * terms + terms] = 0
            if r < count and 2 * (start + whole) < k:
                rows[r * terms + whole] = pair(a[i + r, k - 1], np.uint16(0))


@row
def store_tile(
    out,
    flat_out,
    i,
    j,
    rows,
    columns,
    sums,
    prefill,
    bias,
    residual,
    flat_residual,
):
    """out[i : i + rows, j : j + columns] = sums + prefill, rounded to the type of `out`"""
    n = out.shape[1]
    for r in range(rows):
        offset, source = (i + r) * n + j, r * COLUMNS
        if columns == COLUMNS and prefill == NOTHING:
            store_sums(flat_out, offset, sums, source, bias, j, flat_residual, offset)
        elif columns == COLUMNS and prefill == BIAS:
            store_sums_with_bias(flat_out, offset, sums, source, bias, j, flat_residual, offset)
        elif columns == COLUMNS and prefill == RESIDUAL:
            store_sums_with_residual(flat_out, offset, sums, source, bias, j, flat_residual, offset)
        elif columns == COLUMNS and prefill == BIAS_AND_RESIDUAL:
            store_sums_with_both(flat_out, offset, sums, source, bias, j, flat_residual, offset)
        elif columns == COLUMNS:
            store_sums_with_residual(flat_out, offset, sums, source, bias, j, flat_out, offset)
        else:
            for c in range(columns):
                value = sums[source + c]
                if prefill == BIAS or prefill == BIAS_AND_RESIDUAL:
                    value += bias[j + c]
                if prefill == RESIDUAL or prefill == BIAS_AND_RESIDUAL:
                    value += read(residual, (i + r, j + c))
                if prefill == ADD:
                    value += read(out, (i + r, j + c))
                write(out, (i + r, j + c), value)


@row
def multiply_block(
    out,
    flat_out,
    i0,
    i1,
    j0,
    j1,
    a,
    flat_a,
    pairs_a,
    direct,
    b,
    flat_b,
    terms,
    prefill,
    bias,
    residual,
    flat_residual,
    memory,
):
    """out[i0:i1, j0:j1] = A B + prefill, `terms` pairs at a time

    direct: pairs_a is A as pairs, read in place.
    """
    k, n, half = b.shape[1], out.shape[1], a.shape[1] // 2
    scratch = layout(memory, terms)[0]
    rows, tile = scratch.rows, scratch.tile.view(np.float32)
    for start in range(0, k, terms):
        length = min(terms, k - start)
        for j in range(j0, j1, COLUMNS):
            columns, panel = min(COLUMNS, n - j), (j // COLUMNS * k + start) * COLUMNS
            for i in range(i0, i1, ROWS):
                count = min(ROWS, i1 - i)
                if count == ROWS and columns == COLUMNS:
                    prefetch_tile(flat_out, i * n + j, n)  # loads the target while the sums are computed
                if direct and i + ROWS <= len(a):
                    multiply_pairs(
                        tile,
                        0,
                        COLUMNS,
                        pairs_a,
                        i * half + start,
                        half,
                        flat_b,
                        panel,
                        COLUMNS,
                        length,
                        0,
                    )
                else:
                    copy_rows(rows, a, flat_a, i, count, start, length)
                    multiply_pairs(
                        tile,
                        0,
                        COLUMNS,
                        rows,
                        0,
                        length,
                        flat_b,
                        panel,
                        COLUMNS,
                        length,
                        0,
                    )
                store_tile(
                    out,
                    flat_out,
                    i,
                    j,
                    count,
                    columns,
                    tile,
                    ADD if start else prefill,
                    bias,
                    residual,
                    flat_residual,
                )


@kernel
def _gemm(
    part,
    out,
    flat_out,
    a,
    flat_a,
    pairs_a,
    direct,
    b,
    flat_b,
    terms,
    prefill,
    bias,
    residual,
    flat_residual,
    memory,
    row_parts,
    column_parts,
):
    i0, i1, j0, j1 = part_of(part, *out.shape, row_parts, column_parts)
    begin_tiles()
    multiply_block(
        out,
        flat_out,
        i0,
        i1,
        j0,
        j1,
        a,
        flat_a,
        pairs_a,
        direct,
        b,
        flat_b,
        terms,
        prefill,
        bias,
        residual,
        flat_residual,
        memory[get_thread_id()],
    )
    end_tiles()


def matmul(out, a, b, prefill, bias, residual):
    """out (m, n) = A B + prefill        A (m, k) bfloat16   B (n / C, k / 2, C) pairs in panels

    out is float32 or bfloat16. If it is float32, long sums are split into parts that are added to `out` in turn.
    Rows of A may be longer than those of B if the rest is zeros. prefill: see microkernel_f32.py.
    """
    k, pairs = a.shape[1], b.shape[1]
    terms = padded(even_share(pairs, TERMS if out.dtype == np.float32 else pairs), STEP)
    memory, direct = MEMORY.of(terms), k % 2 == 0 and k // 2 >= pairs
    rows = a.reshape(-1).view(np.int32) if direct else memory[0]
    checked = WATCH.due() and out.dtype == np.float32 and prefill == NOTHING
    row_parts, column_parts = parts_of(*out.shape, (k + 1) // 2)
    _gemm(
        row_parts * column_parts,
        out,
        out.reshape(-1),
        a,
        a.reshape(-1),
        rows,
        direct,
        b,
        b.reshape(-1),
        terms,
        prefill,
        bias,
        residual,
        residual.reshape(-1),
        memory,
        row_parts,
        column_parts,
    )
    if checked:
        used = min((k + 1) // 2, pairs)
        WATCH.error = projection_error(out, as_pairs(a)[:, :used], unpacked(b[:, :used], out.shape[1]), out.size)


@row
def pair_rows(panel, x, flat_x, start, terms, column, columns):
    """panel (terms, COLUMNS) = pairs of rows of x from row 2 start on, `columns` columns from `column` on

    Past x's edges it is zero.
    """
    k, n = x.shape
    whole = min(terms, (k - 2 * start) // 2)
    if columns == COLUMNS:
        interleave_panel(panel, 0, flat_x, 2 * start * n + column, n, whole)
    else:
        panel[: whole * COLUMNS] = 0
        for t in range(whole):
            for c in range(columns):
                panel[t * COLUMNS + c] = pair(x[2 * (start + t), column + c], x[2 * (start + t) + 1, column + c])
    if whole < terms:
        panel[whole * COLUMNS : terms * COLUMNS] = 0
        if 2 * (start + whole) < k:
            for c in range(columns):
                panel[whole * COLUMNS + c] = pair(x[k - 1, column + c], np.uint16(0))


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
    """C[i0:i1, j0:j1] += A^T B"""
    (m, n), scratch = c.shape, outer_layout(memory)[0]
    k = padded((len(a) + 1) // 2, STEP)
    panel, rows, tile = scratch.panel, scratch.rows, scratch.tile.view(np.float32)
    step = padded(even_share(k, OUTER_TERMS), STEP)
    for start in range(0, k, step):
        terms = min(step, k - start)
        for i_start in range(i0, i1, OUTER_ROWS):
            i_stop = min(i1, i_start + OUTER_ROWS)
            for i in range(i_start, i_stop, COLUMNS):  # A's columns become rows of pairs
                pair_rows(panel, a, flat_a, start, terms, i, min(COLUMNS, m - i))
                transpose(rows[(i - i_start) * terms :], terms, panel, 0, COLUMNS, terms, COLUMNS)
            for j in range(j0, j1, COLUMNS):
                columns = min(COLUMNS, n - j)
                pair_rows(panel, b, flat_b, start, terms, j, columns)
                for i in range(i_start, i_stop, ROWS):
                    count, a_row = min(ROWS, i_stop - i), (i - i_start) * terms
                    if count == ROWS and columns == COLUMNS:
                        prefetch_tile(flat_c, i * n + j, n)
                        multiply_pairs(
                            flat_c,
                            i * n + j,
                            n,
                            rows,
                            a_row,
                            terms,
                            panel,
                            0,
                            COLUMNS,
                            terms,
                            1,
                        )
                    else:
                        multiply_pairs(
                            tile,
                            0,
                            COLUMNS,
                            rows,
                            a_row,
                            terms,
                            panel,
                            0,
                            COLUMNS,
                            terms,
                            0,
                        )
                        store_tile(
                            c,
                            flat_c,
                            i,
                            j,
                            count,
                            columns,
                            tile,
                            ADD,
                            flat_c,
                            c,
                            flat_c,
                        )


@kernel
def _outer_products(
    part,
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
    i0, i1, j0, j1 = part_of(part, *c.shape, row_parts, column_parts)
    begin_tiles()
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
    end_tiles()


def add_outer_products(c, a, b):
    """C (m, n) += A^T B        C float32   A (k, m), B (k, n) bfloat16

    A and B may have more columns; only the first m and n count.
    """
    checked = WATCH.due()
    before = projection(c, c.size) if checked else None
    row_parts, column_parts = parts_of(*c.shape, (len(a) + 1) // 2)
    _outer_products(
        row_parts * column_parts,
        c,
        c.reshape(-1),
        a,
        a.reshape(-1),
        b,
        b.reshape(-1),
        MEMORY.of(0),
        row_parts,
        column_parts,
    )
    if checked:
        a, b = (as_pairs(np.ascontiguousarray(x[:, :n].T)) for x, n in zip((a, b), c.shape))
        WATCH.error = projection_error(c, a, b.T, c.size, before)
