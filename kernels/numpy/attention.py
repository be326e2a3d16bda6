"""Causal multi-head attention, one sequence at a time so that its (H, T, T) matrices stay small.

Sizes: B batch, T steps, H query heads, K key-value heads, G = H / K query heads per key-value head, w head width.
"""

import math

import numpy as np

from .dropout import dropout_mask


def attention_scratch(steps, width, tasks):
    return (0,)


def by_head(x, heads, steps):
    """Rows (B T, heads w) as a view (B, heads, T, w)"""
    return x.reshape(-1, steps, heads, x.shape[1] // heads).swapaxes(1, 2)


def split_heads(qkv, heads, kv_heads, steps):
    """Views q (B, K, G, T, w), k and v (B, K, 1, T, w)"""
    q, k, v = np.split(by_head(qkv, heads + 2 * kv_heads, steps), [heads, heads + kv_heads], axis=1)
    return q.reshape(len(q), kv_heads, -1, *q.shape[2:]), k[:, :, None], v[:, :, None]


def divisor(q, scale):
    """What scores are divided by: sqrt(w) unless a scale is given."""
    return math.sqrt(q.shape[-1]) if scale is None else 1 / scale


def causal_scores(q, k, window, scale):
    """S = scale q k^T, and -inf for keys later than the query or out of its window        (K, G, T, T)"""
    s = q @ k.swapaxes(-1, -2) / divisor(q, scale)
    age = np.arange(s.shape[-2])[:, None] - np.arange(s.shape[-1])  # (T, T), i - j
    np.copyto(s, -np.inf, where=(age < 0) | (age >= (window or math.inf)))
    return s


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
    q, k, v = split_heads(qkv, heads, kv_heads, steps)
    out, lse = by_head(out, heads, steps).reshape(q.shape), lse.reshape(*q.shape[:-1], 1)  # views
    for b in range(len(q)):
        s = causal_scores(q[b], k[b], window, scale)  # (K, G, T, T)
        largest = s.max(-1, keepdims=True)
        e = np.exp(s - largest)
        total = e.sum(-1, keepdims=True)
        lse[b] = np.log(total) + largest
        out[b] = e / total * dropout_mask(e, b * e.size, dropout) @ v[b]


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
    q, k, v = split_heads(qkv, heads, kv_heads, steps)
    dout, lse = by_head(dout, heads, steps).reshape(q.shape), lse.reshape(*q.shape[:-1], 1)
    for b in range(len(q)):
        p = np.exp(causal_scores(q[b], k[b], window, scale) - lse[b])  # (K, G, T, T)
        mask = dropout_mask(p, b * p.size, dropout)
        dp = dout[b] @ v[b].swapaxes(-1, -2) * mask
        ds = p * (dp - (p * dp).sum(-1, keepdims=True))  # softmax has the Jacobian diag(p) - p p^T
        ds /= divisor(q, scale)
        dq = ds @ k[b]
        dk = (ds.swapaxes(-1, -2) @ q[b]).sum(1, keepdims=True)  # the query heads of a group share k and v
        dv = ((p * mask).swapaxes(-1, -2) @ dout[b]).sum(1, keepdims=True)
        q[b], k[b], v[b] = dq, dk, dv


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
    """One new token per sequence: its key and value enter the ring buffers (B, K, T, w), its queries attend to them."""
    q, k, v = split_heads(qkv, heads, kv_heads, 1)
    position, slots = np.asarray(position).item(), keys.shape[2]
    keys[:, :, position % slots], values[:, :, position % slots] = k[:, :, 0, 0], v[:, :, 0, 0]
    seen = slice(position + 1)  # the slots that are filled
    if 0 < window < slots:
        seen = np.arange(max(0, position + 1 - window), position + 1) % slots
    keys, values = keys[:, :, seen], values[:, :, seen]
    s = q[:, :, :, 0] @ keys.swapaxes(-1, -2) / divisor(q, scale)  # (B, K, G, slots)
    e = np.exp(s - s.max(-1, keepdims=True))
    out[...] = (e / e.sum(-1, keepdims=True) @ values).reshape(out.shape)
