"""Attention of bfloat16 by tiles of pairs: the loops of `attention.py` with every product's operands rounded, its sums and the softmax in float32.

Whatever is summed over head columns pairs these (scores); what is summed over keys or over queries pairs two rows, so rows are interleaved.
"""

import numpy as np
from numba import prange

from .bfloat16 import pair, rounded, write
from .jit import kernel, row
from .microkernel_bf16 import ROWS, STEP, begin_tiles, copy_pairs, end_tiles, interleave_panel, multiply_pairs
from .microkernel_f32 import COLUMNS, QUERIES, padded, transpose
from .softmax import drop_row, probability_row, softmax_backward_row, softmax_row

KEYS = 256  # pairs of a product over keys at a time
ROW_PAIRS = padded(QUERIES // 2, STEP)


def rooms(steps, width):
    """(padded steps, pairs of a head's row, padded width, [where each array of a worker starts], end), in numbers of four bytes.

    Panels of scores and of their gradients (QUERIES, T), both again in bfloat16, one of them turned (T, QUERIES / 2); keys and values turned
    (w / 2, T), keys interleaved (T / 2, w); the gradients of both (T, w); a head's rows (T, w / 2); queries and their gradients as rows
    (QUERIES, w / 2) and interleaved (QUERIES / 2, w); a block's result (QUERIES, w); a tile.
    """
    long, half, wide = padded(steps + ROWS + 2 * STEP, COLUMNS), padded((width + 1) // 2, STEP), padded(width, COLUMNS)
    sizes = (
        2 * [QUERIES * long]
        + 2 * [QUERIES * long // 2]
        + [long * ROW_PAIRS]
        + 2 * [half * long]
        + [long // 2 * wide]
        + 2 * [long * wide]
        + [long * half]
    )
    sizes += 2 * [QUERIES * half] + 2 * [ROW_PAIRS * wide] + [QUERIES * wide, ROW_PAIRS * COLUMNS]
    starts = np.cumsum([0] + [padded(size, 16) for size in sizes])
    return long, half, wide, tuple(int(start) for start in starts[:-1]), int(starts[-1])


(
    SCORES,
    DSCORES,
    P,
    DS,
    TURNED,
    KEYS_TURNED,
    VALUES_TURNED,
    INTERLEAVED,
    DKEYS,
    DVALUES,
    LINES,
    QUERY_ROWS,
    DOUT_ROWS,
    QUERY_PAIRS,
    DOUT_PAIRS,
    RESULT,
    TILE,
) = range(17)


@row
def take_lines(lines, half, x, first, columns, count, width):
    """Rows of one head as pairs, (count, half), zeros after the width and down to the end of the last tile of rows."""
    for t in range(count):
        copy_pairs(lines, t * half, x, first + t * columns, width // 2)
        if 2 * half > width:
            lines[t * half + width // 2 : t * half + half] = 0
            if width % 2:
                lines[t * half + width // 2] = pair(x[first + t * columns + width - 1], np.uint16(0))
    lines[count * half : padded(count, ROWS) * half] = 0


@row
def turn_lines(turned, lines, half, count):
    """Rows of pairs as tiles of COLUMNS of their transpose, each (half, COLUMNS); zeros after the last."""
    for tile in range(0, count, COLUMNS):
        block, rows = turned[tile * half : (tile + COLUMNS) * half], min(COLUMNS, count - tile)
        if rows < COLUMNS:
            block[:] = 0
        transpose(block, COLUMNS, lines, tile * half, half, rows, half)


@row
def interleave(panels, terms, x, first, columns, count, width):
    """Rows 2t and 2t + 1 of one head side by side, as panels (terms, COLUMNS) one after another; zeros past the head and past `count` rows."""
    whole = count // 2
    for j in range(0, width, COLUMNS):
        panel, wide = panels[j * terms : (j + COLUMNS) * terms], min(COLUMNS, width - j)
        if wide == COLUMNS:
            interleave_panel(panel, 0, x, first + j, columns, whole)
        else:
            panel[: whole * COLUMNS] = 0
            for t in range(whole):
                place = first + 2 * t * columns + j
                for c in range(wide):
                    panel[t * COLUMNS + c] = pair(x[place + c], x[place + columns + c])
        panel[whole * COLUMNS :] = 0
        if count % 2:
            for c in range(wide):
                panel[whole * COLUMNS + c] = pair(x[first + (count - 1) * columns + j + c], np.uint16(0))


@row
def score_tiles(scores, long, rows, half, turned, q, count):
    """Products of `count` rows from query q on with all keys, the tiles past the diagonal left out."""
    for j in range(0, q + count, COLUMNS):
        for i in range(max(0, j - q) // ROWS * ROWS, count, ROWS):
            multiply_pairs(scores, i * long + j, long, rows, i * half, half, turned, j * half, COLUMNS, half, 0)


@row
def round_row(out, x, length, end):
    for j in range(length):
        out[j] = rounded(x[j])
    out[length:end] = 0


@row
def sum_keys(result, wide, p, long, panels, terms, q, count):
    """result (count, w) = p (count, T) rows: each tile of queries over the keys up to its end."""
    for j in range(0, (q + count + 1) // 2, KEYS):
        for i in range(max(0, 2 * j - q) // ROWS * ROWS, count, ROWS):
            n = min(KEYS, padded((q + i + ROWS + 1) // 2, STEP) - j)
            for c in range(0, wide, COLUMNS):
                multiply_pairs(
                    result,
                    i * wide + c,
                    wide,
                    p,
                    i * long // 2 + j,
                    long // 2,
                    panels,
                    c * terms + j * COLUMNS,
                    COLUMNS,
                    n,
                    j,
                )


@row
def turn_rows(turned, x, long, tile, reach):
    """(T, QUERIES / 2): column t of x, whose neighbouring rows are paired."""
    for t in range(0, reach, COLUMNS):
        interleave_panel(tile, 0, x, t, long, QUERIES // 2)
        transpose(turned[t * ROW_PAIRS :], ROW_PAIRS, tile, 0, COLUMNS, ROW_PAIRS, COLUMNS)


@row
def add_queries(dkeys, wide, turned, panels, q, count):
    """dkeys += x^T rows, from x turned and rows interleaved: each tile of keys over the queries from its start on."""
    for j in range(0, q + count, ROWS):
        first = max(0, j - q) // (2 * STEP) * STEP
        for c in range(0, wide, COLUMNS):
            multiply_pairs(
                dkeys,
                j * wide + c,
                wide,
                turned,
                j * ROW_PAIRS + first,
                ROW_PAIRS,
                panels,
                c * ROW_PAIRS + first * COLUMNS,
                COLUMNS,
                ROW_PAIRS - first,
                1,
            )


@row
def give_rows(x, first, columns, rows, wide, count, width, scale):
    """Rows of one head of x = rows, times `scale`."""
    for t in range(count):
        source, target = rows[t * wide : t * wide + width], x[first + t * columns : first + t * columns + width]
        for d in range(width):
            write(target, d, source[d] * scale)


@kernel
def _forward(
    out, lse, scratch, starts, long, half, wide, qkv, columns, heads, kv_heads, steps, width, key, threshold, keep_scale
):
    scale, one, batch, terms = np.float32(1 / np.sqrt(width)), np.float32(1), lse.shape[0] // heads, long // 2
    for worker in prange(len(scratch)):
        begin_tiles()
        floats = scratch[worker]
        pairs, halves = floats.view(np.int32), floats.view(np.uint16)
        scores, p, p_pairs, result = (
            floats[starts[SCORES] :],
            halves[2 * starts[P] :],
            pairs[starts[P] :],
            floats[starts[RESULT] :],
        )
        turned, values, lines, queries = (
            pairs[starts[KEYS_TURNED] :],
            pairs[starts[INTERLEAVED] :],
            pairs[starts[LINES] :],
            pairs[starts[QUERY_ROWS] :],
        )
        for task in range(worker, batch * heads, len(scratch)):
            b, h = task // heads, task % heads
            base = b * steps * columns
            k0 = base + (heads + h // (heads // kv_heads)) * width
            take_lines(lines, half, qkv, k0, columns, steps, width)
            turn_lines(turned, lines, half, steps)
            interleave(values, terms, qkv, k0 + kv_heads * width, columns, steps, width)
            for q in range(0, steps, QUERIES):
                count = min(QUERIES, steps - q)
                take_lines(queries, half, qkv, base + q * columns + h * width, columns, count, width)
                score_tiles(scores, long, queries, half, turned, q, count)
                for i in range(padded(count, ROWS)):
                    line, end = (
                        scores[i * long : i * long + long],
                        min(long, padded(q + i // ROWS * ROWS + ROWS, 2 * STEP) + 1),
                    )
                    if i < count:
                        lse[task, q + i] = softmax_row(line, q + i + 1, q + i + 1, scale)
                        if threshold > 0:
                            drop_row(line, q + i + 1, (task * steps + q + i) * steps, key, threshold, keep_scale)
                    round_row(p[i * long : i * long + long], line, q + i + 1 if i < count else 0, end)
                sum_keys(result, wide, p_pairs, long, values, terms, q, count)
                give_rows(
                    out, (b * steps + q) * heads * width + h * width, heads * width, result, wide, count, width, one
                )
        end_tiles()


@kernel
def _backward(
    qkv,
    scratch,
    starts,
    long,
    half,
    wide,
    dout,
    columns,
    lse,
    heads,
    kv_heads,
    steps,
    width,
    key,
    threshold,
    keep_scale,
):
    scale, one, batch, group, terms = (
        np.float32(1 / np.sqrt(width)),
        np.float32(1),
        lse.shape[0] // heads,
        heads // kv_heads,
        long // 2,
    )
    for worker in prange(
        len(scratch)
    ):  # a task reads and then overwrites the queries, keys and values of one group, which no other reads
        begin_tiles()
        floats = scratch[worker]
        pairs, halves = floats.view(np.int32), floats.view(np.uint16)
        scores, dscores, p, ds, ds_pairs = (
            floats[starts[SCORES] :],
            floats[starts[DSCORES] :],
            halves[2 * starts[P] :],
            halves[2 * starts[DS] :],
            pairs[starts[DS] :],
        )
        turned, turned_keys, turned_values, keys = (
            pairs[starts[TURNED] :],
            pairs[starts[KEYS_TURNED] :],
            pairs[starts[VALUES_TURNED] :],
            pairs[starts[INTERLEAVED] :],
        )
        dkeys, dvalues, result = (
            floats[starts[DKEYS] : starts[DVALUES]],
            floats[starts[DVALUES] : starts[LINES]],
            floats[starts[RESULT] :],
        )
        lines, queries, douts = pairs[starts[LINES] :], pairs[starts[QUERY_ROWS] :], pairs[starts[DOUT_ROWS] :]
        query_pairs, dout_pairs, tile = pairs[starts[QUERY_PAIRS] :], pairs[starts[DOUT_PAIRS] :], pairs[starts[TILE] :]
        for task in range(worker, batch * kv_heads, len(scratch)):
            b, kv = task // kv_heads, task % kv_heads
            base, out_columns = b * steps * columns, heads * width
            k0 = base + (heads + kv) * width
            v0 = k0 + kv_heads * width
            take_lines(lines, half, qkv, v0, columns, steps, width)
            turn_lines(turned_values, lines, half, steps)
            take_lines(lines, half, qkv, k0, columns, steps, width)
            turn_lines(turned_keys, lines, half, steps)
            interleave(keys, terms, qkv, k0, columns, steps, width)
            dkeys[:] = 0
            dvalues[:] = 0
            for h in range(kv * group, kv * group + group):
                for q in range(0, steps, QUERIES):
                    count, place = min(QUERIES, steps - q), (b * steps + q) * out_columns + h * width
                    take_lines(queries, half, qkv, base + q * columns + h * width, columns, count, width)
                    take_lines(douts, half, dout, place, out_columns, count, width)
                    interleave(query_pairs, ROW_PAIRS, qkv, base + q * columns + h * width, columns, count, width)
                    interleave(dout_pairs, ROW_PAIRS, dout, place, out_columns, count, width)
                    score_tiles(scores, long, queries, half, turned_keys, q, count)
                    score_tiles(dscores, long, douts, half, turned_values, q, count)
                    reach = padded(q + padded(count, ROWS), COLUMNS)
                    for i in range(QUERIES):
                        p_line, dp_line, length, index = (
                            scores[i * long : i * long + long],
                            dscores[i * long : i * long + long],
                            0,
                            ((b * heads + h) * steps + q + i) * steps,
                        )
                        if i < count:
                            length = q + i + 1
                            probability_row(p_line, length, length, lse[b * heads + h, q + i], scale)
                            if threshold > 0:
                                drop_row(dp_line, length, index, key, threshold, keep_scale)
                            softmax_backward_row(dp_line, p_line, length, length)
                            if threshold > 0:
                                drop_row(p_line, length, index, key, threshold, keep_scale)
                        round_row(p[i * long : i * long + long], p_line, length, reach)
                        round_row(ds[i * long : i * long + long], dp_line, length, reach)
                    turn_rows(turned, p, long, tile, reach)
                    add_queries(dvalues, wide, turned, dout_pairs, q, count)
                    turn_rows(turned, ds, long, tile, reach)
                    add_queries(dkeys, wide, turned, query_pairs, q, count)
                    sum_keys(result, wide, ds_pairs, long, keys, terms, q, count)
                    give_rows(qkv, base + q * columns + h * width, columns, result, wide, count, width, scale)
            give_rows(qkv, k0, columns, dkeys, wide, steps, width, scale)
            give_rows(qkv, v0, columns, dvalues, wide, steps, width, one)
        end_tiles()


def forward(out, lse, scratch, qkv, heads, kv_heads, steps, key, threshold, keep_scale):
    width = out.shape[1] // heads
    long, half, wide, starts, _ = rooms(steps, width)
    _forward(
        out.reshape(-1),
        lse,
        scratch,
        starts,
        long,
        half,
        wide,
        qkv.reshape(-1),
        qkv.shape[1],
        heads,
        kv_heads,
        steps,
        width,
        key,
        threshold,
        np.float32(keep_scale),
    )


def backward(qkv, scratch, dout, lse, heads, kv_heads, steps, key, threshold, keep_scale):
    width = dout.shape[1] // heads
    long, half, wide, starts, _ = rooms(steps, width)
    _backward(
        qkv.reshape(-1),
        scratch,
        starts,
        long,
        half,
        wide,
        dout.reshape(-1),
        qkv.shape[1],
        lse,
        heads,
        kv_heads,
        steps,
        width,
        key,
        threshold,
        np.float32(keep_scale),
    )
