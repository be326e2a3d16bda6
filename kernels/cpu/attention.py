"""Causal grouped-query attention, a block of queries at a time: scores live in a worker's scratch and are never kept.

For a block of queries the scores against all keys up to the block's end fit the second-level cache, so softmax needs no second
pass over blocks of keys; tiles of keys past a tile of queries are not touched. Backward makes the probabilities again from the scores and `lse`.
"""

import numba
import numpy as np
from numba import prange

from slm_np.dtypes import BF16

from . import attention_pairs
from .attention_pairs import give_rows
from .dropout import threshold_of
from .jit import kernel, row
from .math import multiply_add
from .microkernel_f32 import COLUMNS, QUERIES, ROWS, multiply, padded, transpose
from .softmax import drop_row, probability_row, softmax_backward_row, softmax_row

KEYS = 256  # terms of a product over keys at a time, so that their rows stay in the nearest cache while queries pass


def attention_scratch(block_size, width, tasks):
    """Shape of the scratch: for each worker, no more than there are cores or `tasks`, what `rooms` lays out, here or for bfloat16."""
    return min(numba.config.NUMBA_NUM_THREADS, tasks), max(
        rooms(block_size, width)[-1], attention_pairs.rooms(block_size, width)[-1]
    )


def rooms(steps, width):
    """(padded steps, padded width, [where each array of a worker starts], end): two panels of scores (QUERIES, T), keys and values turned
    to (w, T), then as rows and their gradients (T, w), and the queries, their gradients and results of a block (QUERIES, w)."""
    long, wide = (
        padded(steps + ROWS - 1, COLUMNS),
        padded(width, COLUMNS),
    )  # mostly no power of two, whose rows would meet in few places of a cache
    starts = np.cumsum([0] + 2 * [QUERIES * long] + 2 * [width * long] + 3 * [long * wide] + 3 * [QUERIES * wide])
    return long, wide, tuple(int(start) for start in starts[:-1]), int(starts[-1])


@row
def take_rows(rows, wide, x, first, columns, count, width, scale):
    """Rows of one head, times `scale`, zeros around them up to `wide` and to the end of the last tile of rows."""
    for t in range(count):
        source, target = x[first + t * columns : first + t * columns + width], rows[t * wide : t * wide + wide]
        for d in range(width):
            target[d] = source[d] * scale
        target[width:] = 0
    rows[count * wide : padded(count, ROWS) * wide] = 0


@row
def take_turned(turned, x, first, columns, count, width):
    """Rows of one head as tiles of COLUMNS of their transpose, each (w, COLUMNS); zeros after the last."""
    for tile in range(0, count, COLUMNS):
        block, rows = turned[tile * width : (tile + COLUMNS) * width], min(COLUMNS, count - tile)
        if rows < COLUMNS:
            block[:] = 0
        transpose(block, COLUMNS, x, first + tile * columns, columns, rows, width)


@row
def score_tiles(scores, long, queries, wide, turned, width, q, count):
    """Scores of `count` queries from q on against all keys, the tiles past the diagonal left out."""
    for j in range(0, q + count, COLUMNS):
        first = max(0, j - q) // ROWS * ROWS
        multiply(
            scores,
            first * long + j,
            long,
            queries,
            first * wide,
            wide,
            1,
            turned,
            j * width,
            COLUMNS,
            count - first,
            COLUMNS,
            width,
            0,
        )


@row
def sum_keys(result, wide, p, long, rows, q, count):
    """result (count, w) = p rows: each tile of queries over the keys up to its end."""
    for j in range(0, q + count, KEYS):
        for i in range(max(0, j - q) // ROWS * ROWS, count, ROWS):
            terms = min(KEYS, q + i + ROWS - j)
            multiply(result, i * wide, wide, p, i * long + j, long, 1, rows, j * wide, wide, ROWS, wide, terms, j)


@row
def add_queries(dkeys, wide, p, long, rows, q, count):
    """dkeys += p^T rows: each tile of keys over the queries from its start on."""
    for j in range(0, q + count, ROWS):
        first = max(0, j - q)
        multiply(
            dkeys,
            j * wide,
            wide,
            p,
            first * long + j,
            1,
            long,
            rows,
            first * wide,
            wide,
            ROWS,
            wide,
            padded(count, ROWS) - first,
            1,
        )


@kernel
def _attention_forward(
    out, lse, scratch, starts, long, wide, qkv, columns, heads, kv_heads, steps, width, key, threshold, keep_scale
):
    scale, one, batch = out.dtype.type(1 / np.sqrt(width)), out.dtype.type(1), lse.shape[0] // heads
    for worker in prange(len(scratch)):
        memory = scratch[worker]
        for task in range(worker, batch * heads, len(scratch)):
            b, h = task // heads, task % heads
            scores, turned, values, queries, result = (
                memory[starts[0] :],
                memory[starts[2] :],
                memory[starts[4] :],
                memory[starts[7] :],
                memory[starts[9] :],
            )
            base = b * steps * columns
            k0 = base + (heads + h // (heads // kv_heads)) * width
            take_turned(turned, qkv, k0, columns, steps, width)
            take_rows(values, wide, qkv, k0 + kv_heads * width, columns, steps, width, one)
            for q in range(0, steps, QUERIES):
                count = min(QUERIES, steps - q)
                take_rows(queries, wide, qkv, base + q * columns + h * width, columns, count, width, scale)
                score_tiles(scores, long, queries, wide, turned, width, q, count)
                for i in range(padded(count, ROWS)):
                    line, reach = scores[i * long : i * long + long], q + i // ROWS * ROWS + ROWS
                    if i < count:
                        lse[task, q + i] = softmax_row(line, q + i + 1, reach, one)
                        if threshold > 0:
                            drop_row(line, q + i + 1, (task * steps + q + i) * steps, key, threshold, keep_scale)
                    else:
                        line[:reach] = 0
                sum_keys(result, wide, scores, long, values, q, count)
                give_rows(
                    out, (b * steps + q) * heads * width + h * width, heads * width, result, wide, count, width, one
                )


@kernel
def _attention_backward(
    qkv, scratch, starts, long, wide, dout, columns, lse, heads, kv_heads, steps, width, key, threshold, keep_scale
):
    scale, one, batch, group = (
        dout.dtype.type(1 / np.sqrt(width)),
        dout.dtype.type(1),
        lse.shape[0] // heads,
        heads // kv_heads,
    )
    for worker in prange(
        len(scratch)
    ):  # a task reads and then overwrites the queries, keys and values of one group, which no other reads
        memory = scratch[worker]
        for task in range(worker, batch * kv_heads, len(scratch)):
            b, kv = task // kv_heads, task % kv_heads
            p, dp, turned_keys, turned_values = (
                memory[starts[0] :],
                memory[starts[1] :],
                memory[starts[2] :],
                memory[starts[3] :],
            )
            keys, dkeys, dvalues = memory[starts[4] :], memory[starts[5] : starts[6]], memory[starts[6] : starts[7]]
            queries, douts, result = memory[starts[7] :], memory[starts[8] :], memory[starts[9] :]
            base, out_columns = b * steps * columns, heads * width
            k0 = base + (heads + kv) * width
            v0 = k0 + kv_heads * width
            take_turned(turned_keys, qkv, k0, columns, steps, width)
            take_turned(turned_values, qkv, v0, columns, steps, width)
            take_rows(keys, wide, qkv, k0, columns, steps, width, one)
            dkeys[:] = 0
            dvalues[:] = 0
            for h in range(kv * group, kv * group + group):
                for q in range(0, steps, QUERIES):
                    count = min(QUERIES, steps - q)
                    take_rows(queries, wide, qkv, base + q * columns + h * width, columns, count, width, scale)
                    take_rows(
                        douts, wide, dout, (b * steps + q) * out_columns + h * width, out_columns, count, width, one
                    )
                    score_tiles(p, long, queries, wide, turned_keys, width, q, count)
                    score_tiles(dp, long, douts, wide, turned_values, width, q, count)
                    for i in range(padded(count, ROWS)):
                        p_line, dp_line, length, reach = (
                            p[i * long : i * long + long],
                            dp[i * long : i * long + long],
                            q + i + 1,
                            q + i // ROWS * ROWS + ROWS,
                        )
                        if i < count:
                            index = ((b * heads + h) * steps + q + i) * steps
                            probability_row(p_line, length, reach, lse[b * heads + h, q + i], one)
                            if threshold > 0:
                                drop_row(dp_line, length, index, key, threshold, keep_scale)
                            softmax_backward_row(dp_line, p_line, length, reach)
                            if threshold > 0:
                                drop_row(p_line, length, index, key, threshold, keep_scale)
                        else:
                            p_line[:reach] = 0
                            dp_line[:reach] = 0
                    add_queries(dvalues, wide, p, long, douts, q, count)
                    add_queries(dkeys, wide, dp, long, queries, q, count)
                    sum_keys(result, wide, dp, long, keys, q, count)
                    give_rows(qkv, base + q * columns + h * width, columns, result, wide, count, width, scale)
            give_rows(qkv, k0, columns, dkeys, wide, steps, width, one)
            give_rows(qkv, v0, columns, dvalues, wide, steps, width, one)


@row
def dot(a, b):
    total = a.dtype.type(0)
    for i in range(a.size):
        total += a[i] * b[i]
    return total


@row
def add_times(total, x, factor):
    for i in range(total.size):
        total[i] = multiply_add(x[i], factor, total[i])


@row
def attend(out, query, keys, values, scores, scale):
    """One query over the first len(scores) keys and values, which lie one after another."""
    width = query.size
    for t in range(scores.size):
        scores[t] = dot(query, keys[t * width : t * width + width]) * scale
    softmax_row(scores, scores.size, scores.size, scores.dtype.type(1))
    out[:] = 0
    for t in range(scores.size):
        add_times(out, values[t * width : t * width + width], scores[t])


@row
def step_group(out, b, keys, values, qkv, heads, kv_heads, kv, steps, slot, scores):
    """Text b, key-value head kv: its new key and value enter the cache, (B, K, T, w) each and flat, and its queries attend to len(scores) slots."""
    width = out.shape[1] // heads
    group, scale, start = heads // kv_heads, out.dtype.type(1 / np.sqrt(width)), (b * kv_heads + kv) * steps * width
    k, v, new = keys[start : start + steps * width], values[start : start + steps * width], slot * width
    k[new : new + width] = qkv[b, (heads + kv) * width : (heads + kv + 1) * width]
    v[new : new + width] = qkv[b, (heads + kv_heads + kv) * width : (heads + kv_heads + kv + 1) * width]
    for h in range(kv * group, kv * group + group):
        attend(out[b, h * width : h * width + width], qkv[b, h * width : h * width + width], k, v, scores, scale)


@kernel
def _attention_step(out, keys, values, qkv, heads, kv_heads, slots, slot, scores):
    """keys, values: flat.   scores (B K, filled slots): scratch"""
    for task in prange(len(scores)):
        b, kv = task // kv_heads, task % kv_heads
        step_group(out, b, keys, values, qkv, heads, kv_heads, kv, slots, slot, scores[task])


def attention_step(out, keys, values, qkv, heads, kv_heads, position):
    slots = keys.shape[2]
    scores = np.empty((len(out) * kv_heads, min(position + 1, slots)), out.dtype)
    _attention_step(out, keys.reshape(-1), values.reshape(-1), qkv, heads, kv_heads, slots, position % slots, scores)


def attention_forward(out, lse, scratch, qkv, heads, kv_heads, steps, dropout):
    rate, key = dropout or (0.0, 0)
    width, threshold, keep_scale = out.shape[1] // heads, threshold_of(rate), 1 / (1 - rate)
    if out.dtype == BF16:
        return attention_pairs.forward(out, lse, scratch, qkv, heads, kv_heads, steps, key, threshold, keep_scale)
    long, wide, starts, _ = rooms(steps, width)
    _attention_forward(
        out.reshape(-1),
        lse,
        scratch,
        starts,
        long,
        wide,
        qkv.reshape(-1),
        qkv.shape[1],
        heads,
        kv_heads,
        steps,
        width,
        key,
        threshold,
        out.dtype.type(keep_scale),
    )


def attention_backward(qkv, scratch, dout, out, lse, heads, kv_heads, steps, dropout):
    """out is not read: sum_j P dP costs one pass over rows that lie in the nearest cache."""
    rate, key = dropout or (0.0, 0)
    width, threshold, keep_scale = dout.shape[1] // heads, threshold_of(rate), 1 / (1 - rate)
    if dout.dtype == BF16:
        return attention_pairs.backward(qkv, scratch, dout, lse, heads, kv_heads, steps, key, threshold, keep_scale)
    long, wide, starts, _ = rooms(steps, width)
    _attention_backward(
        qkv.reshape(-1),
        scratch,
        starts,
        long,
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
        dout.dtype.type(keep_scale),
    )
