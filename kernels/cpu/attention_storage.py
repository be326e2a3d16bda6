"""What attention does differently for its two kinds of storage: floats (float32, float64) and bfloat16.

`attention.py` holds the algorithm. Its matmuls read a left operand by rows and a right operand by panels of COLUMNS
columns:

    operand                         floats                              bfloat16
    left: Q, dO                     rows (QUERIES, w)                   rows of pairs (QUERIES, w / 2)
    left: P, dS                     the scores themselves               rounded, rows of pairs (QUERIES, T / 2)
    left: P^T, dS^T                 the scores, read by columns         transposed, rows of pairs (T, QUERIES / 2)
    right: K^T, V^T                 panels (T / C, w, C)                panels of pairs (T / C, w / 2, C)
    right: V, K, Q, dO              rows (T, w) or (QUERIES, w)         panels of interleaved rows (w / C, T / 2, C)

A pair is two neighbors along the summed axis, see bfloat16.py. An *entry* is what the summed axis counts: an element,
or a pair. Every function here comes in both kinds and is chosen by the type of its first argument.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.extending import overload, register_jitable

from . import microkernel_bf16, microkernel_f32
from .bfloat16 import pair, rounded
from .jit import FAST, row
from .microkernel_bf16 import STEP, begin_tiles, copy_pairs, end_tiles, interleave_panel, multiply_chosen_tile
from .microkernel_f32 import COLUMNS, QUERIES, multiply_tile, padded, transpose
from .scratch import carve

FLOAT_ROWS, PAIR_ROWS = microkernel_f32.ROWS, microkernel_bf16.ROWS
QUERY_PAIRS = padded(QUERIES // 2, STEP)
FIRST_FLOATS, FIRST_PAIRS = math.lcm(COLUMNS, FLOAT_ROWS), math.lcm(COLUMNS, PAIR_ROWS, 2 * STEP)


class Scratch(NamedTuple):
    """Memory of one worker. T and w are padded; where one view serves two purposes, both names mean it.

    scores, dscores   (QUERIES, T)      S, then P;   dP, then dS
    p, ds             (QUERIES, T)      P and dS in the type of storage
    p_rows, ds_rows                     the same as left operands
    turned                              P^T or dS^T as a left operand, if that takes memory of its own
    keys_t, values_t                    K^T, V^T as right operands
    right                               V (forward) or K (backward) as a right operand
    dkeys, dvalues    (T, w)            sums over the queries of a group
    rows                                K or V on the way to K^T or V^T
    queries, douts                      Q, dO as left operands
    queries_right, douts_right          Q, dO as right operands
    result            (QUERIES, w)      O or dQ
    tile                                pairs of rows of P or dS on the way to `turned`
    """

    scores: Any
    dscores: Any
    p: Any
    ds: Any
    p_rows: Any
    ds_rows: Any
    turned: Any
    keys_t: Any
    values_t: Any
    right: Any
    dkeys: Any
    dvalues: Any
    rows: Any
    queries: Any
    douts: Any
    queries_right: Any
    douts_right: Any
    result: Any
    tile: Any


@register_jitable
def float_layout(memory, steps, width):
    """Scratch for floats, and the rest of the memory."""
    long, wide = padded(steps + FLOAT_ROWS, COLUMNS), padded(width, COLUMNS)
    scores, memory = carve(memory, (QUERIES, long))
    dscores, memory = carve(memory, (QUERIES, long))
    keys_t, memory = carve(memory, (long // COLUMNS, width, COLUMNS))
    values_t, memory = carve(memory, (long // COLUMNS, width, COLUMNS))
    right, memory = carve(memory, (long, wide))
    dkeys, memory = carve(memory, (long, wide))
    dvalues, memory = carve(memory, (long, wide))
    queries, memory = carve(memory, (QUERIES, wide))
    douts, memory = carve(memory, (QUERIES, wide))
    result, memory = carve(memory, (QUERIES, wide))
    return Scratch(
        scores=scores,
        dscores=dscores,
        p=scores,
        ds=dscores,
        p_rows=scores,
        ds_rows=dscores,
        turned=scores,
        keys_t=keys_t,
        values_t=values_t,
        right=right,
        dkeys=dkeys,
        dvalues=dvalues,
        rows=queries,
        queries=queries,
        douts=douts,
        queries_right=queries,
        douts_right=douts,
        result=result,
        tile=result,
    ), memory


@register_jitable
def pair_layout(memory, steps, width):
    """Scratch for bfloat16 in elements of four bytes, and the rest of the memory."""
    long, wide = padded(steps + PAIR_ROWS + 2 * STEP, COLUMNS), padded(width, COLUMNS)
    half = padded((width + 1) // 2, STEP)
    scores, memory = carve(memory, (QUERIES, long))
    dscores, memory = carve(memory, (QUERIES, long))
    p_rows, memory = carve(memory, (QUERIES, long // 2))
    ds_rows, memory = carve(memory, (QUERIES, long // 2))
    turned, memory = carve(memory, (long, QUERY_PAIRS))
    keys_t, memory = carve(memory, (long // COLUMNS, half, COLUMNS))
    values_t, memory = carve(memory, (long // COLUMNS, half, COLUMNS))
    right, memory = carve(memory, (wide // COLUMNS, long // 2, COLUMNS))
    dkeys, memory = carve(memory, (long, wide))
    dvalues, memory = carve(memory, (long, wide))
    rows, memory = carve(memory, (long, half))
    queries, memory = carve(memory, (QUERIES, half))
    douts, memory = carve(memory, (QUERIES, half))
    queries_right, memory = carve(memory, (wide // COLUMNS, QUERY_PAIRS, COLUMNS))
    douts_right, memory = carve(memory, (wide // COLUMNS, QUERY_PAIRS, COLUMNS))
    result, memory = carve(memory, (QUERIES, wide))
    tile, memory = carve(memory, (QUERY_PAIRS, COLUMNS))
    return Scratch(
        scores=scores,
        dscores=dscores,
        p=halves(p_rows),
        ds=halves(ds_rows),
        p_rows=pairs(p_rows),
        ds_rows=pairs(ds_rows),
        turned=pairs(turned),
        keys_t=pairs(keys_t),
        values_t=pairs(values_t),
        right=pairs(right),
        dkeys=dkeys,
        dvalues=dvalues,
        rows=pairs(rows),
        queries=pairs(queries),
        douts=pairs(douts),
        queries_right=pairs(queries_right),
        douts_right=pairs(douts_right),
        result=result,
        tile=pairs(tile),
    ), memory


def pairs(view):
    """A view of four-byte elements as pairs."""
    return view


def halves(view):
    """A view of four-byte elements as twice as many bfloat16."""
    return view


@overload(pairs)
def _pairs(view):
    return lambda view: view.view(np.int32)


@overload(halves)
def _halves(view):
    return lambda view: view.view(np.uint16)


def by_storage(of_floats, of_pairs, inline=False):
    """A function for compiled code: `of_pairs` where an argument is an array of bfloat16 or of pairs, else `of_floats`.

    inline: LLVM compiles it within each caller.
    """
    of_floats, of_pairs = (getattr(function, "py_func", function) for function in (of_floats, of_pairs))

    def function(*arguments):
        raise NotImplementedError("for compiled code only")

    @overload(function, strict=False, jit_options={"fastmath": FAST, "error_model": "numpy", "forceinline": inline})
    def chosen(*arguments):
        stored = {argument.dtype for argument in arguments if isinstance(argument, types.Array)}
        return of_pairs if stored & {types.uint16, types.int32} else of_floats

    return function


@row
def scratch_of_floats(x, memory, steps, width):
    return float_layout(memory, steps, width)[0]


@row
def scratch_of_pairs(x, memory, steps, width):
    return pair_layout(memory, steps, width)[0]


@row
def entries_of_pairs(operand, elements):
    return padded((elements + 1) // 2, STEP)


@row
def first_key_of_floats(operand, key):
    return key // FIRST_FLOATS * FIRST_FLOATS


@row
def first_key_of_pairs(operand, key):
    return key // FIRST_PAIRS * FIRST_PAIRS


@row
def row_stop_of_floats(operand, q, i, count):
    return q + i // FLOAT_ROWS * FLOAT_ROWS + FLOAT_ROWS


@row
def row_stop_of_pairs(operand, q, i, count):
    return padded(q + padded(count, PAIR_ROWS), COLUMNS)


@row
def nothing(operand):
    pass


scratch_for = by_storage(scratch_of_floats, scratch_of_pairs)
begin = by_storage(nothing, lambda operand: begin_tiles())
end = by_storage(nothing, lambda operand: end_tiles())
tile_rows = by_storage(lambda operand: FLOAT_ROWS, lambda operand: PAIR_ROWS)
elements_per_entry = by_storage(lambda operand: 1, lambda operand: 2)
# Entries that hold so many elements, and the first entry of a sum that may leave out all elements before one.
entries = by_storage(lambda operand, elements: elements, entries_of_pairs)
first_entry = by_storage(lambda operand, element: element, lambda operand, element: element // (2 * STEP) * STEP)
# The largest multiple of whole tiles and of whole steps of a sum that is at most `key`: a block of scores may start
# there. Tiles are whole in both directions, because P is also read transposed.
first_key = by_storage(first_key_of_floats, first_key_of_pairs)
# Up to where row i of a block of `count` queries from q on must hold zeros: floats to the end of its tile, pairs for
# `turn_pairs`.
row_stop = by_storage(row_stop_of_floats, row_stop_of_pairs)
# 1 / sqrt(w) is multiplied to queries and to what is summed with them, or to scores and to the sums.
query_scale = by_storage(lambda x, scale: scale, lambda x, scale: np.float32(1))
score_scale = by_storage(lambda x, scale: x.dtype.type(1), lambda x, scale: scale)


# A head of x: its rows begin at `start`, `stride` elements apart


@row
def load_float_rows(rows, x, start, stride, count, width, scale):
    """Rows of a head times `scale`. Zeros after the width, and after the last row to the end of its tile."""
    for t in range(count):
        source, target = x[start + t * stride : start + t * stride + width], rows[t]
        for d in range(width):
            target[d] = source[d] * scale
        target[width:] = 0
    rows[count : padded(count, FLOAT_ROWS)] = 0


@row
def load_pair_rows(rows, x, start, stride, count, width, scale):
    """The same as pairs, as they lie: `scale` is 1."""
    half = rows.shape[1]
    for t in range(count):
        copy_pairs(rows, t * half, x, start + t * stride, width // 2)
        if 2 * half > width:
            rows[t, width // 2 :] = 0
            if width % 2:
                rows[t, width // 2] = pair(x[start + t * stride + width - 1], np.uint16(0))
    rows[count : padded(count, PAIR_ROWS)] = 0


@row
def load_float_panels(panels, rows, x, start, stride, count, width):
    """The transpose of a head in panels (w, COLUMNS), zeros after the last row."""
    for tile in range(0, count, COLUMNS):
        panel, n = panels[tile // COLUMNS], min(COLUMNS, count - tile)
        if n < COLUMNS:
            panel[:] = 0
        transpose(panel, COLUMNS, x, start + tile * stride, stride, n, width)


@row
def load_pair_panels(panels, rows, x, start, stride, count, width):
    """The same of pairs, (w / 2, COLUMNS), by way of `rows`."""
    load_pair_rows(rows, x, start, stride, count, width, np.float32(1))
    half = rows.shape[1]
    for tile in range(0, count, COLUMNS):
        panel, n = panels[tile // COLUMNS], min(COLUMNS, count - tile)
        if n < COLUMNS:
            panel[:] = 0
        transpose(panel, COLUMNS, rows, tile * half, half, n, half)


@row
def load_float_right(right, x, start, stride, count, width):
    """A head as a right operand: its rows."""
    load_float_rows(right, x, start, stride, count, width, right.dtype.type(1))


@row
def interleave_rows(right, x, start, stride, count, width):
    """The same of pairs.

    Rows 2 t and 2 t + 1 are interleaved in panels (T / 2, COLUMNS), zeros after the width and the last row.
    """
    whole = count // 2
    for j in range(0, width, COLUMNS):
        panel, wide = right[j // COLUMNS], min(COLUMNS, width - j)
        if wide == COLUMNS:
            interleave_panel(panel, 0, x, start + j, stride, whole)
        else:
            panel[:whole] = 0
            for t in range(whole):
                source = start + 2 * t * stride + j
                for c in range(wide):
                    panel[t, c] = pair(x[source + c], x[source + stride + c])
        panel[whole:] = 0
        if count % 2:
            for c in range(wide):
                panel[whole, c] = pair(x[start + (count - 1) * stride + j + c], np.uint16(0))


@row
def load_float_queries(left, right, x, start, stride, count, width, scale):
    """Rows of a head as a left and as a right operand: for floats the same memory."""
    load_float_rows(left, x, start, stride, count, width, scale)


@row
def load_pair_queries(left, right, x, start, stride, count, width, scale):
    load_pair_rows(left, x, start, stride, count, width, scale)
    interleave_rows(right, x, start, stride, count, width)


load_rows = by_storage(load_float_rows, load_pair_rows)
load_panels = by_storage(load_float_panels, load_pair_panels)
load_right = by_storage(load_float_right, interleave_rows)
load_queries = by_storage(load_float_queries, load_pair_queries)


# Probabilities, and the gradients of scores


@row
def store_float_row(p, scores, first, start, stop, end):
    """p[first:end] = scores[start:stop], zeros around. Floats lie where they are stored."""
    if start > first:
        p[first:start] = 0
    p[stop:end] = 0


@row
def store_rounded_row(p, scores, first, start, stop, end):
    if start > first:
        p[first:start] = 0
    target, source = p[start:stop], scores[start:stop]
    for j in range(target.size):
        target[j] = rounded(source[j])
    p[stop:end] = 0


@row
def turn_floats(turned, p, tile, first, q, count):
    """P^T (T, QUERIES) as a left operand: floats are read by columns."""
    return p


@row
def turn_pairs(turned, p, tile, first, q, count):
    """P^T as pairs of neighboring queries, of keys from `first` on."""
    for t in range(first, row_stop_of_pairs(p, q, 0, count), COLUMNS):
        interleave_panel(tile, 0, p, t, p.shape[1], QUERIES // 2)
        transpose(turned[t:], QUERY_PAIRS, tile, 0, COLUMNS, QUERY_PAIRS, COLUMNS)
    return turned


store_row = by_storage(store_float_row, store_rounded_row)
turn = by_storage(turn_floats, turn_pairs)


# A tile of a matmul


@row
def multiply_float_tile(c, c_offset, c_row, a, a_offset, a_row, a_step, b, b_offset, b_step, k, accumulate):
    """C (tile_rows, COLUMNS) = A B, or += where `accumulate` is not 0, summed over k entries.

    See `microkernel_f32.multiply_tile_of`.
    """
    multiply_tile(c, c_offset, c_row, a, a_offset, a_row, a_step, b, b_offset, b_step, k, accumulate)


@row
def multiply_pair_tile(c, c_offset, c_row, a, a_offset, a_row, a_step, b, b_offset, b_step, k, accumulate):
    """The same of pairs: `a_step` is 1."""
    multiply_chosen_tile(c, c_offset, c_row, a, a_offset, a_row, 1, b, b_offset, b_step, k, accumulate)


multiply = by_storage(multiply_float_tile, multiply_pair_tile, inline=True)
# (from row to row, from entry to entry) of a left operand P^T;   (from entry to entry, from column to column) of a
# right operand.
turned_strides = by_storage(lambda left: (1, left.shape[1]), lambda left: (left.shape[1], 1))
right_strides = by_storage(lambda right: (right.shape[1], 1), lambda right: (COLUMNS, right.shape[1]))
