"""Causal grouped-query attention, a block of queries at a time: scores live in a thread's scratch and are never kept.

For a block of queries the scores against all keys up to the block's end fit the second-level cache, so softmax needs no second
pass over blocks of keys; keys past the block are not touched. Backward makes the probabilities again from the scores and `lse`.
"""
import numba
import numpy as np
from numba import prange
from numba.np.ufunc.parallel import get_thread_id

from .dropout import kept, threshold_of
from .elementary import exp
from .gemm import gemm
from .jit import kernel, row

QUERIES = 64


def attention_scratch(block_size):
    """Shape of the scratch: per thread two panels of scores, (QUERIES, T) each."""
    return numba.config.NUMBA_NUM_THREADS, 2, QUERIES * block_size


@row
def softmax_row(scores, start, length, end):
    """scores[start : start + length] become probabilities, the rest of the panel's row zero; returns log sum exp."""
    largest = scores[start]
    for j in range(start, start + length):
        largest = max(largest, scores[j])
    total = scores.dtype.type(0)
    for j in range(start, start + length):
        e = exp(scores[j] - largest)
        scores[j] = e
        total += e
    inverse = scores.dtype.type(1) / total
    for j in range(start, start + length):
        scores[j] *= inverse
    for j in range(start + length, start + end):
        scores[j] = scores.dtype.type(0)
    return np.log(total) + largest


@row
def drop_row(values, start, length, index, key, threshold, keep_scale):
    for j in range(length):
        values[start + j] = values[start + j] * keep_scale if kept(index + j, key, threshold) else values.dtype.type(0)


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
                lse[task, q + i] = softmax_row(scores, i * end, q + i + 1, end)
                if threshold > 0:
                    drop_row(scores, i * end, q + i + 1, (task * steps + q + i) * steps, key, threshold, keep_scale)
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
        for t in range(steps):
            for c in range((heads + kv) * width, (heads + kv + 1) * width):
                dqkv[b * steps + t, c] = zero
                dqkv[b * steps + t, c + kv_heads * width] = zero
        for h in range(kv * group, kv * group + group):
            for q in range(0, steps, QUERIES):
                rows = min(QUERIES, steps - q)
                end = q + rows
                q0, o0 = base + q * columns + h * width, (b * steps + q) * out_columns + h * width
                gemm(0, 1, rows, end, width, scale, qkv, q0, columns, qkv, k0, columns, zero, p, 0, end)
                gemm(0, 1, rows, end, width, one, dout, o0, out_columns, qkv, v0, columns, zero, dp, 0, end)
                for i in range(rows):
                    start, length, log_sum = i * end, q + i + 1, lse[b * heads + h, q + i]
                    for j in range(start, start + length):
                        p[j] = exp(p[j] - log_sum)
                    if threshold > 0:
                        drop_row(dp, start, length, ((b * heads + h) * steps + q + i) * steps, key, threshold, keep_scale)
                    mean = zero
                    for j in range(start, start + length):
                        mean += p[j] * dp[j]
                    for j in range(start, start + length):
                        dp[j] = p[j] * (dp[j] - mean) * scale
                    for j in range(start + length, start + end):
                        p[j] = zero
                        dp[j] = zero
                    if threshold > 0:
                        drop_row(p, start, length, ((b * heads + h) * steps + q + i) * steps, key, threshold, keep_scale)
                gemm(1, 0, end, width, rows, one, p, 0, end, dout, o0, out_columns, one, dqkv, v0, columns)
                gemm(1, 0, end, width, rows, one, dp, 0, end, qkv, q0, columns, one, dqkv, k0, columns)
                gemm(0, 0, rows, width, end, one, dp, 0, end, qkv, k0, columns, zero, dqkv, q0, columns)


@kernel
def _attention_step(out, scratch, keys, values, qkv, heads, slot, length):
    kv_heads, width = keys.shape[1], keys.shape[3]
    group, scale = heads // kv_heads, out.dtype.type(1 / np.sqrt(width))
    for task in prange(qkv.shape[0] * kv_heads):
        b, kv = task // kv_heads, task % kv_heads
        scores = scratch[get_thread_id(), 0]
        for c in range(width):
            keys[b, kv, slot, c] = qkv[b, (heads + kv) * width + c]
            values[b, kv, slot, c] = qkv[b, (heads + kv_heads + kv) * width + c]
        for h in range(kv * group, kv * group + group):
            for t in range(length):
                dot = out.dtype.type(0)
                for c in range(width):
                    dot += qkv[b, h * width + c] * keys[b, kv, t, c]
                scores[t] = dot * scale
            softmax_row(scores, 0, length, length)
            for c in range(width):
                out[b, h * width + c] = out.dtype.type(0)
            for t in range(length):
                for c in range(width):
                    out[b, h * width + c] += scores[t] * values[b, kv, t, c]


def attention_forward(out, lse, scratch, qkv, heads, kv_heads, steps, dropout, key):
    _attention_forward(out, lse, scratch, qkv, heads, kv_heads, steps, key, threshold_of(dropout), out.dtype.type(1 / (1 - dropout)))


def attention_backward(dqkv, scratch, dout, qkv, lse, heads, kv_heads, steps, dropout, key):
    _attention_backward(dqkv, scratch, dout, qkv, lse, heads, kv_heads, steps, key, threshold_of(dropout), dout.dtype.type(1 / (1 - dropout)))


def attention_step(out, scratch, keys, values, qkv, heads, slot, length):
    _attention_step(out, scratch, keys, values, qkv, heads, slot, length)
