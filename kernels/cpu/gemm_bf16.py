"""Matrix products of bfloat16 operands with float32 sums, from register tiles of pairs.

A weight enters as two arrays of pairs that `pack` makes once an update: W for products x W, and W^T for products dout W^T, both with the
summed axis paired and in panels as wide as a tile, so that a product reads them as they lie. An activation's rows are pairs as they lie, where their length allows
it. Every number is summed in the same order however the product is shared out.
"""

import threading

import numba
import numpy as np
from numba import prange
from numba.np.ufunc.parallel import get_thread_id

from slm_np.dtypes import BF16, CastCopy

from .bfloat16 import pair, read, rounded, write
from .gemm_blas import ADD, BIAS, BIAS_AND_RESIDUAL, NOTHING, RESIDUAL
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
    put_row,
    put_row_on_bias,
    put_row_on_both,
    put_row_on_residual,
)
from .microkernel_f32 import COLUMNS, LANES, padded, transpose, transpose_tile

TERMS = 1024  # pairs of a panel: longer sums are made in pieces, so that the rows of A that go with one stay in a second-level cache
OUTER_ROWS = (
    384  # rows of a sum of outer products at a time, and its terms: panels of A that leave room in a second-level cache
)
OUTER_TERMS = 256
STRETCH = 2 * LANES  # rows of a weight that are packed at a time


def cast_copy(weight, dtype=BF16):
    """Allocate the bfloat16 copies of a weight (D, E), which `update_cast_copy` fills.

    forward (E / C, D / 2, C) and backward (D / C, E / 2, C) hold pairs in panels of C = COLUMNS columns, backward those of the
    transpose. Both axes are padded with zeros to whole pairs and panels.
    """
    d, e = weight.shape
    panels = (
        np.zeros(((n + COLUMNS - 1) // COLUMNS, padded((k + 1) // 2, STEP), COLUMNS), np.int32)
        for k, n in ((d, e), (e, d))
    )
    return CastCopy(weight, *panels)


def unpacked(panels, columns):
    """Pairs (K / 2, columns) of panels, a copy."""
    return panels.transpose(1, 0, 2).reshape(panels.shape[1], -1)[:, :columns]


@row
def pack_lines(forward, backward, weight, first, scratch):
    """Rows first ... first + STRETCH of a weight, in both forms. scratch: (LANES, LANES) pairs, twice."""
    d, e = weight.shape
    last = min(d, first + STRETCH)
    for r in range(first, last, 2):
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
    for r0 in range(first, last, LANES):
        rows = min(LANES, last - r0)
        for c0 in range(0, e, 2 * LANES):
            for r in range(rows):
                line, target = weight[r0 + r], scratch[r * LANES : r * LANES + LANES]
                if c0 + 2 * LANES <= e:
                    line = line[c0 : c0 + 2 * LANES]
                    for c in range(LANES):
                        target[c] = pair(rounded(line[2 * c]), rounded(line[2 * c + 1]))
                else:
                    for c in range(LANES):
                        low = rounded(line[c0 + 2 * c]) if c0 + 2 * c < e else np.uint16(0)
                        target[c] = pair(low, rounded(line[c0 + 2 * c + 1]) if c0 + 2 * c + 1 < e else np.uint16(0))
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
def _pack(forward, backward, weight, scratch):
    for block in prange((len(weight) + STRETCH - 1) // STRETCH):
        pack_lines(forward, backward, weight, block * STRETCH, scratch[get_thread_id()])


class Memory(threading.local):
    """Pairs for each thread of the pool: rows of A, and a panel of B where it is no weight. Every thread of Python has its own, as two may multiply at once."""

    def __init__(self):
        self.made = np.zeros((0, 0), np.int32)

    def of(self, terms):
        """Room for rows of `terms` pairs."""
        size = max(terms * ROWS, OUTER_TERMS * (COLUMNS + OUTER_ROWS + ROWS)) + ROWS * COLUMNS
        if self.made.shape[1] < size:
            self.made = np.zeros((numba.config.NUMBA_NUM_THREADS, size), np.int32)
        return self.made


MEMORY = Memory()


def update_cast_copy(copy):
    """Fill a `CastCopy` from its float32 weight."""
    _pack(copy.forward, copy.backward, copy.weight, MEMORY.of(TERMS))


def as_pairs(x):
    """A copy of rows as pairs, a zero after the last number of odd rows."""
    return np.pad(x, ((0, 0), (0, x.shape[1] % 2))).view(np.int32)


class Watch:
    """One product to be checked: the one after `skipped` others."""

    def __init__(self):
        self.skipped = self.error = None

    def due(self):
        """Whether this product is the one. Counts down."""
        if self.skipped is None:
            return False
        self.skipped = self.skipped - 1 if self.skipped else None
        return self.skipped is None


WATCH = Watch()


def watch_matmul(number):
    """Have a coming product checked, the one after `number` others. Without AMX there is nothing to watch."""
    WATCH.skipped, WATCH.error = (number if AMX else None), 0.0


def watched_error():
    """How wrong the product was that was checked, see `slm_np.kernels.cpu.gemm_check`; 0 if none was."""
    WATCH.skipped = None
    return WATCH.error


@row
def take_rows(lines, a, flat, first, count, start, terms):
    """ROWS rows of A as pairs, `terms` from pair `start` on, zeros past A's edges."""
    k = a.shape[1]
    for r in range(ROWS):
        whole = min(terms, (k - 2 * start) // 2) if r < count else 0
        if whole > 0:
            copy_pairs(lines, r * terms, flat, (first + r) * k + 2 * start, whole)
        if whole < terms:
            lines[r * terms + whole : r * terms + terms] = 0
            if r < count and 2 * (start + whole) < k:
                lines[r * terms + whole] = pair(a[first + r, k - 1], np.uint16(0))


@row
def put(out, flat_out, i, j, rows, columns, sums, under, bias, residual, flat_residual):
    """A tile of sums, with what lies under it, enters `out`."""
    n = out.shape[1]
    for r in range(rows):
        place, at = (i + r) * n + j, r * COLUMNS
        if columns == COLUMNS and under == NOTHING:
            put_row(flat_out, place, sums, at, bias, j, flat_residual, place)
        elif columns == COLUMNS and under == BIAS:
            put_row_on_bias(flat_out, place, sums, at, bias, j, flat_residual, place)
        elif columns == COLUMNS and under == RESIDUAL:
            put_row_on_residual(flat_out, place, sums, at, bias, j, flat_residual, place)
        elif columns == COLUMNS and under == BIAS_AND_RESIDUAL:
            put_row_on_both(flat_out, place, sums, at, bias, j, flat_residual, place)
        elif columns == COLUMNS:
            put_row_on_residual(flat_out, place, sums, at, bias, j, flat_out, place)
        else:
            for c in range(columns):
                value = sums[at + c]
                if under == BIAS or under == BIAS_AND_RESIDUAL:
                    value += bias[j + c]
                if under == RESIDUAL or under == BIAS_AND_RESIDUAL:
                    value += read(residual, (i + r, j + c))
                if under == ADD:
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
    under,
    bias,
    residual,
    flat_residual,
    memory,
):
    """Rows i0 ... i1, columns j0 ... j1 of `out`, `terms` pairs at a time. pairs_a: A's rows as pairs, where `direct` says that they may be read as they lie."""
    k, n, half = b.shape[1], out.shape[1], a.shape[1] // 2
    lines, tile = memory, memory[memory.size - ROWS * COLUMNS :].view(np.float32)
    for start in range(0, k, terms):
        length = min(terms, k - start)
        for j in range(j0, j1, COLUMNS):
            columns, panel = min(COLUMNS, n - j), (j // COLUMNS * k + start) * COLUMNS
            for i in range(i0, i1, ROWS):
                rows = min(ROWS, i1 - i)
                if rows == ROWS and columns == COLUMNS:
                    prefetch_tile(
                        flat_out, i * n + j, n
                    )  # where the sums will go comes into the cache while they are made
                if direct and i + ROWS <= len(a):
                    multiply_pairs(tile, 0, COLUMNS, pairs_a, i * half + start, half, flat_b, panel, COLUMNS, length, 0)
                else:
                    take_rows(lines, a, flat_a, i, rows, start, length)
                    multiply_pairs(tile, 0, COLUMNS, lines, 0, length, flat_b, panel, COLUMNS, length, 0)
                put(out, flat_out, i, j, rows, columns, tile, ADD if start else under, bias, residual, flat_residual)


@kernel
def _product(
    out,
    flat_out,
    a,
    flat_a,
    pairs_a,
    direct,
    b,
    flat_b,
    terms,
    under,
    bias,
    residual,
    flat_residual,
    memory,
    row_parts,
    column_parts,
):
    for part in prange(row_parts * column_parts):
        i0, i1, j0, j1 = part_of(part, out, row_parts, column_parts)
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
            under,
            bias,
            residual,
            flat_residual,
            memory[get_thread_id()],
        )
        end_tiles()


def product(out, a, b, under, bias, residual):
    """out (m, n) = A B + what `under` names        A (m, k) bfloat16   B (n / C, k / 2, C) pairs in panels   out float32 or bfloat16

    Long sums are made in pieces, which `out` adds up where it is of float32. Rows of A may be longer than B's axis, by zeros.
    """
    k, pairs = a.shape[1], b.shape[1]
    terms = padded(even_share(pairs, TERMS if out.dtype == np.float32 else pairs), STEP)
    memory, direct = MEMORY.of(terms), k % 2 == 0 and k // 2 >= pairs
    rows = a.reshape(-1).view(np.int32) if direct else memory[0]
    watched = WATCH.due() and out.dtype == np.float32 and under == NOTHING
    _product(
        out,
        out.reshape(-1),
        a,
        a.reshape(-1),
        rows,
        direct,
        b,
        b.reshape(-1),
        terms,
        under,
        bias,
        residual,
        residual.reshape(-1),
        memory,
        *parts_of(*out.shape, (k + 1) // 2),
    )
    if watched:
        used = min((k + 1) // 2, pairs)
        WATCH.error = projection_error(out, as_pairs(a)[:, :used], unpacked(b[:, :used], out.shape[1]), out.size)


@row
def take_outer(panel, x, flat, start, terms, first, columns):
    """Rows 2 start ... of x as a panel of pairs (terms, COLUMNS) from column `first` on; zeros past its edges."""
    k, n = x.shape
    whole = min(terms, (k - 2 * start) // 2)
    if columns == COLUMNS:
        interleave_panel(panel, 0, flat, 2 * start * n + first, n, whole)
    else:
        panel[: whole * COLUMNS] = 0
        for t in range(whole):
            for c in range(columns):
                panel[t * COLUMNS + c] = pair(x[2 * (start + t), first + c], x[2 * (start + t) + 1, first + c])
    if whole < terms:
        panel[whole * COLUMNS : terms * COLUMNS] = 0
        if 2 * (start + whole) < k:
            for c in range(columns):
                panel[whole * COLUMNS + c] = pair(x[k - 1, first + c], np.uint16(0))


@row
def outer_block(c, flat_c, i0, i1, j0, j1, a, flat_a, b, flat_b, memory):
    """Rows i0 ... i1, columns j0 ... j1 of C += A^T B."""
    m, n = c.shape
    k = padded((len(a) + 1) // 2, STEP)
    panel, lines, tile = (
        memory[: OUTER_TERMS * COLUMNS],
        memory[OUTER_TERMS * COLUMNS :],
        memory[memory.size - ROWS * COLUMNS :].view(np.float32),
    )
    step = padded(even_share(k, OUTER_TERMS), STEP)
    for start in range(0, k, step):
        terms = min(step, k - start)
        for first in range(i0, i1, OUTER_ROWS):
            last = min(i1, first + OUTER_ROWS)
            for i in range(first, last, COLUMNS):  # A's columns become rows of pairs
                take_outer(panel, a, flat_a, start, terms, i, min(COLUMNS, m - i))
                transpose(lines[(i - first) * terms :], terms, panel, 0, COLUMNS, terms, COLUMNS)
            for j in range(j0, j1, COLUMNS):
                columns = min(COLUMNS, n - j)
                take_outer(panel, b, flat_b, start, terms, j, columns)
                for i in range(first, last, ROWS):
                    rows = min(ROWS, last - i)
                    if rows == ROWS and columns == COLUMNS:
                        prefetch_tile(flat_c, i * n + j, n)
                        multiply_pairs(
                            flat_c, i * n + j, n, lines, (i - first) * terms, terms, panel, 0, COLUMNS, terms, 1
                        )
                    else:
                        multiply_pairs(tile, 0, COLUMNS, lines, (i - first) * terms, terms, panel, 0, COLUMNS, terms, 0)
                        put(c, flat_c, i, j, rows, columns, tile, ADD, flat_c, c, flat_c)


@kernel
def _outer_products(c, flat_c, a, flat_a, b, flat_b, memory, row_parts, column_parts):
    for part in prange(row_parts * column_parts):
        i0, i1, j0, j1 = part_of(part, c, row_parts, column_parts)
        begin_tiles()
        outer_block(c, flat_c, i0, i1, j0, j1, a, flat_a, b, flat_b, memory[get_thread_id()])
        end_tiles()


def add_outer_products(c, a, b):
    """C (m, n) += A^T B        C float32   A (k, m), B (k, n) bfloat16, whose rows may be longer: only the first columns count"""
    watched = WATCH.due()
    before = projection(c, c.size) if watched else None
    _outer_products(
        c, c.reshape(-1), a, a.reshape(-1), b, b.reshape(-1), MEMORY.of(0), *parts_of(*c.shape, (len(a) + 1) // 2)
    )
    if watched:
        a, b = (as_pairs(np.ascontiguousarray(x[:, :n].T)) for x, n in zip((a, b), c.shape))
        WATCH.error = projection_error(c, a, b.T, c.size, before)
