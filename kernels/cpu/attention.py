"""Causal grouped-query attention, a block of queries at a time: scores live in a thread's scratch and are never kept.

For a block of queries the scores against all keys up to the block's end fit the second-level cache, so softmax needs no second
pass over blocks of keys; keys past the block are not touched. Backward makes the probabilities again from the scores and `lse`.
"""
import numba
import numpy as np
from numba import prange
from numba.np.ufunc.parallel import get_thread_id

from .dropout import kept, threshold_of
from .elementary import exp, maximum
from .gemm import gemm
from .jit import kernel, row

QUERIES = 64


def attention_scratch(block_size):
    """Shape of the scratch: per thread two panels of scores, (QUERIES, T) each."""
    return numba.config.NUMBA_NUM_THREADS, 2, QUERIES * block_size


@row
def softmax_row(scores, length):
    """scores[:length] become probabilities, the rest zero; returns log sum exp."""
    largest, total = scores[0], scores.dtype.type(0)
    for j in range(length):
        largest = maximum(largest, scores[j])
    for j in range(length):
        e = exp(scores[j] - largest)
        scores[j] = e
        total += e
    inverse = scores.dtype.type(1) / total
    for j in range(length):
        scores[j] *= inverse
    scores[length:] = 0
    return np.log(total) + largest


@row
def probability_row(p, length, log_sum):
    """Scores p[:length] become the probabilities they were in forward."""
    for j in range(length):
        p[j] = exp(p[j] - log_sum)
    p[length:] = 0


@row
def softmax_backward_row(dp, p, length, scale):
    """dp[:length] becomes p * (dp - sum p dp) * scale, the rest zero."""
    mean = p.dtype.type(0)
    for j in range(length):
        mean += p[j] * dp[j]
    for j in range(length):
        dp[j] = p[j] * (dp[j] - mean) * scale
    dp[length:] = 0


@row
def drop_row(values, length, index, key, threshold, keep_scale):
    for j in range(length):
        values[j] = values[j] * keep_scale if kept(index + j, key, threshold) else values.dtype.type(0)


@kernel
def _attention_forward(out, lse, scratch, qkv, heads, kv_heads, steps, key, threshold, keep_scale):
    width, columns, batch = out.shape[1] // heads, qkv.shape[1], qkv.shape[0] // steps
    scale, zero, one = out.dtype.type(1 / np.sqrt(width)), out.dtype.type(0), out.dtype.type(1)
    for task in prange(batch * heads):
        b, h = task // heads, task % heads
        scores = scratch[get_thread_id(), 0]
        base = b * steps * columns
        k0 = base + (heads + h // (heads // kv_heads)) * width
        v0 = k0 + kv_heads * width
        for q in range(0, steps, QUERIES):
            rows = min(QUERIES, steps - q)
            end = q + rows
            gemm(0, 1, rows, end, width, scale, qkv, base + q * columns + h * width, columns, qkv, k0, columns, zero, scores, 0, end)
            for i in range(rows):
                line = scores[i * end:i * end + end]
                lse[task, q + i] = softmax_row(line, q + i + 1)
                if threshold > 0:
                    drop_row(line, q + i + 1, (task * steps + q + i) * steps, key, threshold, keep_scale)
            gemm(0, 0, rows, width, end, one, scores, 0, end, qkv, v0, columns, zero, out, (b * steps + q) * heads * width + h * width, heads * width)


@kernel
def _attention_backward(dqkv, scratch, dout, qkv, lse, heads, kv_heads, steps, key, threshold, keep_scale):
    width, columns, batch, group = dout.shape[1] // heads, qkv.shape[1], qkv.shape[0] // steps, heads // kv_heads
    scale, zero, one = dout.dtype.type(1 / np.sqrt(width)), dout.dtype.type(0), dout.dtype.type(1)
    for task in prange(batch * kv_heads):
        b, kv = task // kv_heads, task % kv_heads
        thread = get_thread_id()
        p, dp = scratch[thread, 0], scratch[thread, 1]
        base, out_columns = b * steps * columns, heads * width
        k0 = base + (heads + kv) * width
        v0 = k0 + kv_heads * width
        for t in range(b * steps, b * steps + steps):
            dqkv[t, (heads + kv) * width:(heads + kv + 1) * width] = 0
            dqkv[t, (heads + kv_heads + kv) * width:(heads + kv_heads + kv + 1) * width] = 0
        for h in range(kv * group, kv * group + group):
            for q in range(0, steps, QUERIES):
                rows = min(QUERIES, steps - q)
                end = q + rows
                q0, o0 = base + q * columns + h * width, (b * steps + q) * out_columns + h * width
                gemm(0, 1, rows, end, width, scale, qkv, q0, columns, qkv, k0, columns, zero, p, 0, end)
                gemm(0, 1, rows, end, width, one, dout, o0, out_columns, qkv, v0, columns, zero, dp, 0, end)
                for i in range(rows):
                    p_line, dp_line, length = p[i * end:i * end + end], dp[i * end:i * end + end], q + i + 1
                    index = ((b * heads + h) * steps + q + i) * steps
                    probability_row(p_line, length, lse[b * heads + h, q + i])
                    if threshold > 0:
                        drop_row(dp_line, length, index, key, threshold, keep_scale)
                    softmax_backward_row(dp_line, p_line, length, scale)
                    if threshold > 0:
                        drop_row(p_line, length, index, key, threshold, keep_scale)
                gemm(1, 0, end, width, rows, one, p, 0, end, dout, o0, out_columns, one, dqkv, v0, columns)
                gemm(1, 0, end, width, rows, one, dp, 0, end, qkv, q0, columns, one, dqkv, k0, columns)
                gemm(0, 0, rows, width, end, one, dp, 0, end, qkv, k0, columns, zero, dqkv, q0, columns)


@row
def dot(a, b):
    total = a.dtype.type(0)
    for i in range(a.size):
        total += a[i] * b[i]
    return total


@row
def add_times(total, x, factor):
    for i in range(total.size):
        total[i] += x[i] * factor


@kernel
def _attention_step(out, scratch, keys, values, qkv, heads, slot, length):
    kv_heads, width = keys.shape[1], keys.shape[3]
    group, scale = heads // kv_heads, out.dtype.type(1 / np.sqrt(width))
    for task in prange(qkv.shape[0] * kv_heads):
        b, kv = task // kv_heads, task % kv_heads
        scores = scratch[get_thread_id(), 0, :length]
        keys[b, kv, slot] = qkv[b, (heads + kv) * width:(heads + kv + 1) * width]
        values[b, kv, slot] = qkv[b, (heads + kv_heads + kv) * width:(heads + kv_heads + kv + 1) * width]
        for h in range(kv * group, kv * group + group):
            query, heading = qkv[b, h * width:h * width + width], out[b, h * width:h * width + width]
            for t in range(length):
                scores[t] = dot(query, keys[b, kv, t]) * scale
            softmax_row(scores, length)
            heading[:] = 0
            for t in range(length):
                add_times(heading, values[b, kv, t], scores[t])


def attention_forward(out, lse, scratch, qkv, heads, kv_heads, steps, dropout, key):
    _attention_forward(out, lse, scratch, qkv, heads, kv_heads, steps, key, threshold_of(dropout), out.dtype.type(1 / (1 - dropout)))


def attention_backward(dqkv, scratch, dout, qkv, lse, heads, kv_heads, steps, dropout, key):
    _attention_backward(dqkv, scratch, dout, qkv, lse, heads, kv_heads, steps, key, threshold_of(dropout), dout.dtype.type(1 / (1 - dropout)))


def attention_step(out, scratch, keys, values, qkv, heads, slot, length):
    _attention_step(out, scratch, keys, values, qkv, heads, slot, length)
