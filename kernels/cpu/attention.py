"""Causal grouped-query attention, a block of queries at a time: scores exist in a worker's scratch only.

The scores of a block against all keys up to its end fit the second-level cache, so softmax needs no second pass over
blocks of keys. Tiles above the diagonal are skipped, and so are tiles of keys that no query of the block sees in its
window. Backward recomputes the probabilities from the scores and `lse`. One algorithm serves float32, float64 and
bfloat16; attention_storage.py holds what differs between them. Sums and the softmax are never of bfloat16.

Sizes: B sequences, T steps, H query heads, K key-value heads, width w. Arrays of heads are flat and addressed by
offsets.
"""

import math
import threading
from typing import NamedTuple

import numba
import numpy as np
from numba.np.ufunc.parallel import get_thread_id

from .attention_storage import (
    begin,
    elements_per_entry,
    end,
    entries,
    first_entry,
    first_key,
    float_layout,
    load_panels,
    load_queries,
    load_right,
    load_rows,
    multiply,
    pair_layout,
    query_scale,
    right_strides,
    row_stop,
    score_scale,
    scratch_for,
    store_row,
    tile_rows,
    turn,
    turned_strides,
)
from .bfloat16 import convert_block, type_of, write
from .dropout import threshold_of
from .jit import inlined, kernel, row
from .math import multiply_add
from .microkernel_f32 import COLUMNS, QUERIES, padded
from .scratch import elements_of
from .softmax import drop_row, probability_row, softmax_backward_row, softmax_row

KEYS = 256  # entries of a sum over keys at a time, so that their rows stay in the nearest cache while queries pass


class Sizes(NamedTuple):
    """`window` equals `steps` if attention has none. `scale` multiplies the scores."""

    heads: int
    kv_heads: int
    steps: int
    width: int
    window: int
    scale: float


class Dropout(NamedTuple):
    """What `drop_row` needs; `threshold` is 0 without dropout."""

    key: int
    threshold: int
    keep_scale: float


@row
def clear(x):
    x.reshape(x.size)[:] = 0


@row
def multiply_scores(scores, rows, panels, first, q, count):
    """scores = rows panels for `count` queries from q on and keys from `first` on, without tiles above the diagonal."""
    long, height, stride, depth = scores.shape[1], tile_rows(rows), rows.shape[1], panels.shape[1]
    for j in range(first, q + count, COLUMNS):
        for i in range(max(0, j - q) // height * height, count, height):
            multiply(scores, i * long + j, long, rows, i * stride, stride, 1, panels, j * depth, COLUMNS, depth, 0)


@row
def sum_over_keys(result, p, right, first, q, count):
    """result (count, w) = P right: each tile of queries over the keys from `first` up to its end."""
    (step, column), height, wide, long = right_strides(right), tile_rows(p), result.shape[1], p.shape[1]
    start = first // elements_per_entry(p)
    for j in range(start, entries(p, q + count), KEYS):
        for i in range(max(0, j * elements_per_entry(p) - q) // height * height, count, height):
            k = min(KEYS, entries(p, q + i + height) - j)
            for c in range(0, wide, COLUMNS):
                multiply(
                    result,
                    i * wide + c,
                    wide,
                    p,
                    i * long + j,
                    long,
                    1,
                    right,
                    j * step + c * column,
                    step,
                    k,
                    j - start,
                )


@row
def add_over_queries(total, turned, right, start, q, count):
    """total (T, w) += P^T right for keys from `start` on. Each tile of keys skips the queries before its first key."""
    (step, column), (row_stride, entry_stride) = right_strides(right), turned_strides(turned)
    height, wide = tile_rows(turned), total.shape[1]
    stop = entries(turned, padded(count, height))
    for j in range(start, q + count, height):
        first = first_entry(turned, max(0, j - q))
        a = j * row_stride + first * entry_stride
        for c in range(0, wide, COLUMNS):
            b = first * step + c * column
            multiply(total, j * wide + c, wide, turned, a, row_stride, entry_stride, right, b, step, stop - first, 1)


@row
def write_rows(x, start, stride, rows, count, width, scale):
    """Rows of a head of x = rows * scale."""
    for t in range(count):
        source, target = rows[t], x[start + t * stride : start + t * stride + width]
        for d in range(width):
            write(target, d, source[d] * scale)


@row
def first_of_row(sizes, i):
    """The first key that query i sees."""
    return max(0, i + 1 - sizes.window)


@inlined
def forward_head(out, lse, s, qkv, sizes, dropout, b, h):
    """Query head h of sequence b."""
    heads, kv_heads, steps, width, _, _ = sizes
    key, threshold, keep_scale = dropout
    one, scale = type_of(qkv)(1), type_of(qkv)(sizes.scale)
    columns, out_columns, height, task = (heads + 2 * kv_heads) * width, heads * width, tile_rows(qkv), b * heads + h
    base = b * steps * columns
    k = base + (heads + h // (heads // kv_heads)) * width
    load_panels(s.keys_t, s.rows, qkv, k, columns, steps, width)
    load_right(s.right, qkv, k + kv_heads * width, columns, steps, width)
    for q in range(0, steps, QUERIES):
        count, first = min(QUERIES, steps - q), first_key(qkv, first_of_row(sizes, q))
        load_rows(s.queries, qkv, base + q * columns + h * width, columns, count, width, query_scale(qkv, scale))
        multiply_scores(s.scores, s.queries, s.keys_t, first, q, count)
        for i in range(padded(count, height)):
            scores, start, stop = s.scores[i], first, first
            if i < count:
                start, stop = first_of_row(sizes, q + i), q + i + 1
                seen = scores[start:stop]
                lse[task, q + i] = softmax_row(seen, seen.size, score_scale(qkv, scale))
                if threshold > 0:
                    drop_row(seen, seen.size, (task * steps + q + i) * steps + start, key, threshold, keep_scale)
            store_row(s.p[i], scores, first, start, stop, row_stop(qkv, q, i, count))
        sum_over_keys(s.result, s.p_rows, s.right, first, q, count)
        write_rows(out, (b * steps + q) * out_columns + h * width, out_columns, s.result, count, width, one)


@inlined
def backward_group(qkv, s, dout, lse, sizes, dropout, b, kv):
    """Key-value head kv of sequence b with its query heads: no other task reads or overwrites them."""
    heads, kv_heads, steps, width, _, _ = sizes
    key, threshold, keep_scale = dropout
    one, scale, group = type_of(qkv)(1), type_of(qkv)(sizes.scale), heads // kv_heads
    columns, out_columns = (heads + 2 * kv_heads) * width, heads * width
    base = b * steps * columns
    k = base + (heads + kv) * width
    v = k + kv_heads * width
    load_panels(s.values_t, s.rows, qkv, v, columns, steps, width)
    load_panels(s.keys_t, s.rows, qkv, k, columns, steps, width)
    load_right(s.right, qkv, k, columns, steps, width)
    clear(s.dkeys)
    clear(s.dvalues)
    for h in range(kv * group, kv * group + group):
        for q in range(0, steps, QUERIES):
            count, task, first = min(QUERIES, steps - q), b * heads + h, first_key(qkv, first_of_row(sizes, q))
            dq, do = base + q * columns + h * width, (b * steps + q) * out_columns + h * width
            load_queries(s.queries, s.queries_right, qkv, dq, columns, count, width, query_scale(qkv, scale))
            load_queries(s.douts, s.douts_right, dout, do, out_columns, count, width, one)
            multiply_scores(s.scores, s.queries, s.keys_t, first, q, count)
            multiply_scores(s.dscores, s.douts, s.values_t, first, q, count)
            for i in range(QUERIES):
                p, dp, start, stop = s.scores[i], s.dscores[i], first, first
                if i < count:
                    start, stop = first_of_row(sizes, q + i), q + i + 1
                    p_seen, dp_seen, index = p[start:stop], dp[start:stop], (task * steps + q + i) * steps + start
                    probability_row(p_seen, p_seen.size, lse[task, q + i], score_scale(qkv, scale))
                    if threshold > 0:
                        drop_row(dp_seen, p_seen.size, index, key, threshold, keep_scale)
                    softmax_backward_row(dp_seen, p_seen, p_seen.size)
                    if threshold > 0:
                        drop_row(p_seen, p_seen.size, index, key, threshold, keep_scale)
                end_of_row = row_stop(qkv, q, i, count)
                store_row(s.p[i], p, first, start, stop, end_of_row)
                store_row(s.ds[i], dp, first, start, stop, end_of_row)
            add_over_queries(s.dvalues, turn(s.turned, s.p, s.tile, first, q, count), s.douts_right, first, q, count)
            add_over_queries(s.dkeys, turn(s.turned, s.ds, s.tile, first, q, count), s.queries_right, first, q, count)
            sum_over_keys(s.result, s.ds_rows, s.right, first, q, count)
            write_rows(qkv, dq, columns, s.result, count, width, scale)
    write_rows(qkv, k, columns, s.dkeys, steps, width, score_scale(qkv, scale))
    write_rows(qkv, v, columns, s.dvalues, steps, width, one)


@kernel
def _attention_forward(worker, out, lse, scratch, qkv, sizes, dropout):
    begin(qkv)
    s = scratch_for(qkv, scratch[worker], sizes.steps, sizes.width)
    for task in range(worker, len(lse), len(scratch)):
        forward_head(out, lse, s, qkv, sizes, dropout, task // sizes.heads, task % sizes.heads)
    end(qkv)


@kernel
def _attention_backward(worker, qkv, scratch, dout, lse, sizes, dropout):
    begin(qkv)
    s = scratch_for(qkv, scratch[worker], sizes.steps, sizes.width)
    for task in range(worker, len(lse) // sizes.heads * sizes.kv_heads, len(scratch)):
        backward_group(qkv, s, dout, lse, sizes, dropout, task // sizes.kv_heads, task % sizes.kv_heads)
    end(qkv)


def dropout_of(dropout, real):
    rate, key = dropout or (0.0, 0)
    return Dropout(key, threshold_of(rate), real(1 / (1 - rate)))


def attention_scratch(steps, width, tasks):
    """Shape of the scratch: a row for each worker, at most one per core and per task."""
    workers = min(numba.config.NUMBA_NUM_THREADS, tasks)
    return workers, max(elements_of(layout, steps, width) for layout in (float_layout, pair_layout))


def sizes_of(heads, kv_heads, steps, width, window, scale):
    return Sizes(heads, kv_heads, steps, width, min(window or steps, steps), scale_of(width, scale))


def scale_of(width, scale):
    return 1 / math.sqrt(width) if scale is None else float(scale)


def attention_forward(
    out,
    lse,
    scratch,
    qkv,
    heads,
    kv_heads,
    steps,
    dropout,
    window=0,
    scale=None,
):
    sizes = sizes_of(heads, kv_heads, steps, out.shape[1] // heads, window, scale)
    dropout = dropout_of(dropout, type_of(qkv))
    _attention_forward(len(scratch), out.reshape(-1), lse, scratch, qkv.reshape(-1), sizes, dropout)


def attention_backward(
    qkv,
    scratch,
    dout,
    out,
    lse,
    heads,
    kv_heads,
    steps,
    dropout,
    window=0,
    scale=None,
):
    """`out` is not read: sum_j P dP costs one pass over rows in the nearest cache."""
    sizes = sizes_of(heads, kv_heads, steps, dout.shape[1] // heads, window, scale)
    dropout = dropout_of(dropout, type_of(qkv))
    _attention_backward(len(scratch), qkv.reshape(-1), scratch, dout.reshape(-1), lse, sizes, dropout)


# Decoding: one query of each sequence and head over the cached keys, in float32 or float64


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
def attend(out, query, keys, values, first, scores, scale):
    """One query attends to len(scores) keys and values of a ring of rows of w elements, from slot `first` on."""
    width = query.size
    slots = keys.size // width
    for t in range(scores.size):
        slot = first + t if first + t < slots else first + t - slots
        scores[t] = dot(query, keys[slot * width : slot * width + width]) * scale
    softmax_row(scores, scores.size, scores.dtype.type(1))
    out[:] = 0
    for t in range(scores.size):
        slot = first + t if first + t < slots else first + t - slots
        add_times(out, values[slot * width : slot * width + width], scores[t])


@row
def step_group(out, b, keys, values, qkv, heads, kv_heads, kv, steps, position, window, scores, scale):
    """Sequence b, key-value head kv: the key and value of a new token enter the cache, and its queries attend to it.

    keys, values: the caches (B, K, T, w), flat: a ring of `steps` slots. The queries see the newest `window` <= `steps`
    tokens. scores (T,): scratch.
    """
    width, slot, length = out.shape[1] // heads, position % steps, min(position + 1, window)
    group, start, new = heads // kv_heads, (b * kv_heads + kv) * steps * width, slot * width
    first = (position + 1 - length) % steps if window < steps else 0
    k, v = keys[start : start + steps * width], values[start : start + steps * width]
    convert_block(k[new : new + width], qkv[b, (heads + kv) * width : (heads + kv + 1) * width])
    convert_block(v[new : new + width], qkv[b, (heads + kv_heads + kv) * width : (heads + kv_heads + kv + 1) * width])
    for h in range(kv * group, kv * group + group):
        part = slice(h * width, h * width + width)
        attend(out[b, part], qkv[b, part], k, v, first, scores[:length], scale)


@kernel
def _attention_step(task, out, keys, values, qkv, heads, kv_heads, steps, position, window, scores, scale):
    b, kv, own = task // kv_heads, task % kv_heads, scores[get_thread_id()]
    step_group(
        out,
        b,
        keys,
        values,
        qkv,
        heads,
        kv_heads,
        kv,
        steps,
        position,
        window,
        own,
        out.dtype.type(scale),
    )


class StepScores(threading.local):
    """Scores of one query for each thread of the pool. Every Python thread has its own, as two may decode at once."""

    def __init__(self):
        self.memory = np.empty((0, 0))

    def of(self, steps, dtype):
        """Memory (threads, at least `steps`) of a dtype, allocated again only when the cache of keys has grown."""
        if self.memory.shape[1] < steps or self.memory.dtype != dtype:
            self.memory = np.empty((numba.config.NUMBA_NUM_THREADS, steps), dtype)
        return self.memory


STEP_SCORES = StepScores()


def attention_step(
    out,
    keys,
    values,
    qkv,
    heads,
    kv_heads,
    position,
    window=0,
    scale=None,
):
    """One new token per sequence: see `ops.attention_step`."""
    steps = keys.shape[2]
    _attention_step(
        len(out) * kv_heads,
        out,
        keys.reshape(-1),
        values.reshape(-1),
        qkv,
        heads,
        kv_heads,
        steps,
        int(np.asarray(position).item()),
        min(window or steps, steps),
        STEP_SCORES.of(steps, out.dtype),
        scale_of(out.shape[1] // heads, scale),
    )
