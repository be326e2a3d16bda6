"""Matrix products of bfloat16 operands with float32 sums, from register tiles of pairs.

A weight enters as two arrays of pairs that `pack` makes once an update: W for products x W, and W^T for products dout W^T, both with the
summed axis paired, so that a panel as wide as a tile is a plain copy. An activation's rows are pairs as they lie, where their length allows
it. Every number is summed in the same order however the product is shared out.
"""
import threading
from typing import NamedTuple

import numba
import numpy as np
from numba import prange
from numba.np.ufunc.parallel import get_thread_id

from .bfloat import pair, read, rounded, write
from .jit import kernel, row
from .pair_tile import ROWS, STEP, begin_tiles, copy_pairs, end_tiles, interleave_panel, multiply_pairs
from .product_blas import ADD, BIAS, BIAS_AND_RESIDUAL, NOTHING, RESIDUAL
from .product_tile import parts_of, part_of
from .tile import COLUMNS, LANES, copy_column_panel, padded, transpose, transpose_tile

TERMS = 1024        # pairs of a panel: longer sums are made in several pieces
OUTER_ROWS = 384    # rows of a sum of outer products at a time, and its terms: panels of A that leave room in a second-level cache
OUTER_TERMS = 256
BLOCK = 512         # rows whose sums are kept in float32 while the pieces of a long sum pass
LINE = 2 * LANES    # a stretch of a weight that is packed at a time


class Packed(NamedTuple):
    """A weight (D, E) as products take it. weight: float32.   forward: pairs (D / 2, E).   backward: pairs (E / 2, D), of its transpose."""
    weight: np.ndarray
    forward: np.ndarray
    backward: np.ndarray


def packed(weight):
    """Room for a weight's pairs; odd axes are rounded up, with zeros. `pack` fills it."""
    d, e = weight.shape
    return Packed(weight, np.zeros((padded((d + 1) // 2, STEP), e), np.int32), np.zeros((padded((e + 1) // 2, STEP), d), np.int32))


@row
def pack_lines(forward, backward, weight, first, scratch):
    """Rows first ... first + LINE of a weight, in both forms. scratch: (LANES, LANES) pairs, twice."""
    d, e = weight.shape
    last = min(d, first + LINE)
    for r in range(first, last, 2):
        target = forward[r // 2]
        if r + 1 < d:
            low, high = weight[r], weight[r + 1]
            for c in range(e):
                target[c] = pair(rounded(low[c]), rounded(high[c]))
        else:
            low = weight[r]
            for c in range(e):
                target[c] = pair(rounded(low[c]), np.uint16(0))
    flat = backward.reshape(-1)
    for r0 in range(first, last, LANES):
        rows = min(LANES, last - r0)
        for c0 in range(0, e, 2 * LANES):
            for r in range(rows):
                line, target = weight[r0 + r], scratch[r * LANES:r * LANES + LANES]
                if c0 + 2 * LANES <= e:
                    line = line[c0:c0 + 2 * LANES]
                    for c in range(LANES):
                        target[c] = pair(rounded(line[2 * c]), rounded(line[2 * c + 1]))
                else:
                    for c in range(LANES):
                        low = rounded(line[c0 + 2 * c]) if c0 + 2 * c < e else np.uint16(0)
                        target[c] = pair(low, rounded(line[c0 + 2 * c + 1]) if c0 + 2 * c + 1 < e else np.uint16(0))
            if rows == LANES and c0 + 2 * LANES <= e:
                transpose_tile(flat, c0 // 2 * d + r0, d, scratch, 0, LANES)
            else:
                for c in range(min(LANES, (e - c0 + 1) // 2)):
                    for r in range(rows):
                        backward[c0 // 2 + c, r0 + r] = scratch[r * LANES + c]


@kernel
def _pack(forward, backward, weight, scratch):
    for block in prange((len(weight) + LINE - 1) // LINE):
        pack_lines(forward, backward, weight, block * LINE, scratch[get_thread_id()])


class Memory(threading.local):
    """Room for each thread of the pool. Every thread of Python has its own, as two may multiply at once."""

    def __init__(self):
        self.made = None

    def get(self):
        """(pairs: a panel of B and rows of A, floats: sums of a block of rows)"""
        if self.made is None:
            threads = numba.config.NUMBA_NUM_THREADS
            pairs = max(TERMS * (COLUMNS + ROWS), OUTER_TERMS * (COLUMNS + OUTER_ROWS + ROWS)) + 2 * LANES * LANES
            self.made = np.zeros((threads, pairs), np.int32), np.zeros((threads, BLOCK * COLUMNS), np.float32)
        return self.made


MEMORY = Memory()


def pack(weight):
    """Fill a `Packed` with what its float32 weight is now."""
    _pack(weight.forward, weight.backward, weight.weight, MEMORY.get()[0])


@row
def take_rows(lines, a, flat, first, count, start, terms):
    """ROWS rows of A as pairs, `terms` from pair `start` on, zeros past A's edges."""
    k = a.shape[1]
    for r in range(ROWS):
        whole = min(terms, (k - 2 * start) // 2) if r < count else 0
        if whole > 0:
            copy_pairs(lines, r * terms, flat, (first + r) * k + 2 * start, whole)
        if whole < terms:
            lines[r * terms + whole:r * terms + terms] = 0
            if r < count and 2 * (start + whole) < k:
                lines[r * terms + whole] = pair(a[first + r, k - 1], np.uint16(0))


@row
def take_panel(panel, b, flat_b, start, terms, first, columns):
    """COLUMNS columns of pairs from (start, first) on, zeros past the last."""
    n = b.shape[1]
    if columns == COLUMNS:
        copy_column_panel(panel, 0, flat_b, start * n + first, n, terms)
    else:
        panel[:terms * COLUMNS] = 0
        for t in range(terms):
            for c in range(columns):
                panel[t * COLUMNS + c] = b[start + t, first + c]


@row
def put(out, i, j, rows, columns, sums, at, under, bias, residual):
    """A tile of sums, with what lies under it, enters `out`."""
    for r in range(rows):
        target, source = out[i + r, j:j + columns], sums[at + r * COLUMNS:at + r * COLUMNS + columns]
        if under == NOTHING:
            for c in range(columns):
                write(target, c, source[c])
        elif under == BIAS:
            added = bias[j:j + columns]
            for c in range(columns):
                write(target, c, source[c] + added[c])
        elif under == RESIDUAL:
            other = residual[i + r, j:j + columns]
            for c in range(columns):
                write(target, c, source[c] + read(other, c))
        elif under == BIAS_AND_RESIDUAL:
            added, other = bias[j:j + columns], residual[i + r, j:j + columns]
            for c in range(columns):
                write(target, c, source[c] + added[c] + read(other, c))
        else:
            for c in range(columns):
                write(target, c, read(target, c) + source[c])


@row
def multiply_block(out, i0, i1, j0, j1, a, flat_a, pairs_a, direct, b, flat_b, under, bias, residual, memory, sums):
    """Rows i0 ... i1, columns j0 ... j1 of `out`. pairs_a: A's rows as pairs, where `direct` says that they may be read as they lie."""
    k, n, half = len(b), b.shape[1], a.shape[1] // 2
    panel, lines = memory[:TERMS * COLUMNS], memory[TERMS * COLUMNS:]
    pieces = (k + TERMS - 1) // TERMS
    step = padded((k + pieces - 1) // pieces, STEP)
    tall = i1 - i0 if pieces == 1 else BLOCK
    for j in range(j0, j1, COLUMNS):
        columns = min(COLUMNS, n - j)
        for block in range(i0, i1, tall):
            end = min(i1, block + tall)
            for start in range(0, k, step):
                terms, last = min(step, k - start), start + step >= k
                if pieces > 1 or block == i0:
                    take_panel(panel, b, flat_b, start, terms, j, columns)
                for i in range(block, end, ROWS):
                    rows, at = min(ROWS, end - i), 0 if pieces == 1 else (i - block) * COLUMNS
                    if direct and i + ROWS <= len(a):
                        multiply_pairs(sums, at, COLUMNS, pairs_a, i * half + start, half, panel, 0, COLUMNS, terms, start)
                    else:
                        take_rows(lines, a, flat_a, i, rows, start, terms)
                        multiply_pairs(sums, at, COLUMNS, lines, 0, terms, panel, 0, COLUMNS, terms, start)
                    if last:
                        put(out, i, j, rows, columns, sums, at, under, bias, residual)


@kernel
def _product(out, a, flat_a, pairs_a, direct, b, flat_b, under, bias, residual, memory, sums, row_parts, column_parts):
    for part in prange(row_parts * column_parts):
        i0, i1, j0, j1 = part_of(part, out, row_parts, column_parts)
        begin_tiles()
        multiply_block(out, i0, i1, j0, j1, a, flat_a, pairs_a, direct, b, flat_b, under, bias, residual, memory[get_thread_id()], sums[get_thread_id()])
        end_tiles()


def product(out, a, b, under, bias, residual):
    """out (m, n) = A B + what `under` names        A (m, k) bfloat16   B (k / 2, n) pairs   out float32 or bfloat16"""
    memory, sums = MEMORY.get()
    k = a.shape[1]
    direct = k % 2 == 0 and k // 2 == len(b)
    pairs = a.reshape(-1).view(np.int32) if direct else memory[0]
    _product(out, a, a.reshape(-1), pairs, direct, b, b.reshape(-1), under, bias, residual, memory, sums, *parts_of(*out.shape, (k + 1) // 2))


@row
def take_outer(panel, x, flat, start, terms, first, columns):
    """Rows 2 start ... of x as a panel of pairs (terms, COLUMNS) from column `first` on; zeros past its edges."""
    k, n = x.shape
    whole = min(terms, (k - 2 * start) // 2)
    if columns == COLUMNS:
        interleave_panel(panel, 0, flat, 2 * start * n + first, n, whole)
    else:
        panel[:whole * COLUMNS] = 0
        for t in range(whole):
            for c in range(columns):
                panel[t * COLUMNS + c] = pair(x[2 * (start + t), first + c], x[2 * (start + t) + 1, first + c])
    if whole < terms:
        panel[whole * COLUMNS:terms * COLUMNS] = 0
        if 2 * (start + whole) < k:
            for c in range(columns):
                panel[whole * COLUMNS + c] = pair(x[k - 1, first + c], np.uint16(0))


@row
def outer_block(c, flat_c, i0, i1, j0, j1, a, flat_a, b, flat_b, memory, sums):
    """Rows i0 ... i1, columns j0 ... j1 of C += A^T B."""
    m, n = c.shape
    k = padded((len(a) + 1) // 2, STEP)
    panel, lines = memory[:OUTER_TERMS * COLUMNS], memory[OUTER_TERMS * COLUMNS:]
    pieces = (k + OUTER_TERMS - 1) // OUTER_TERMS
    step = padded((k + pieces - 1) // pieces, STEP)
    for start in range(0, k, step):
        terms = min(step, k - start)
        for first in range(i0, i1, OUTER_ROWS):
            last = min(i1, first + OUTER_ROWS)
            for i in range(first, last, COLUMNS):  # A's columns become rows of pairs
                take_outer(panel, a, flat_a, start, terms, i, min(COLUMNS, m - i))
                transpose(lines[(i - first) * terms:], terms, panel, 0, COLUMNS, terms, min(COLUMNS, last - i + ROWS))
            for j in range(j0, j1, COLUMNS):
                columns = min(COLUMNS, n - j)
                take_outer(panel, b, flat_b, start, terms, j, columns)
                for i in range(first, last, ROWS):
                    rows = min(ROWS, last - i)
                    if rows == ROWS and columns == COLUMNS:
                        multiply_pairs(flat_c, i * n + j, n, lines, (i - first) * terms, terms, panel, 0, COLUMNS, terms, 1)
                    else:
                        multiply_pairs(sums, 0, COLUMNS, lines, (i - first) * terms, terms, panel, 0, COLUMNS, terms, 0)
                        put(c, i, j, rows, columns, sums, 0, ADD, sums, c)


@kernel
def _outer_products(c, flat_c, a, flat_a, b, flat_b, memory, sums, row_parts, column_parts):
    for part in prange(row_parts * column_parts):
        i0, i1, j0, j1 = part_of(part, c, row_parts, column_parts)
        begin_tiles()
        outer_block(c, flat_c, i0, i1, j0, j1, a, flat_a, b, flat_b, memory[get_thread_id()], sums[get_thread_id()])
        end_tiles()


def add_outer_products(c, a, b):
    """C (m, n) += A^T B        C float32   A (k, m), B (k, n) bfloat16"""
    _outer_products(c, c.reshape(-1), a, a.reshape(-1), b, b.reshape(-1), *MEMORY.get(), *parts_of(*c.shape, (len(a) + 1) // 2))
