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


def causal_scores(q, k):
    """S = q k^T / sqrt(w), and -inf for keys later than the query        (K, G, T, T)"""
    s = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])
    np.copyto(s, -np.inf, where=np.triu(np.ones(s.shape[-2:], bool), 1))
    return s


def attention_forward(out, lse, scratch, qkv, heads, kv_heads, steps, dropout):
    q, k, v = split_heads(qkv, heads, kv_heads, steps)
    out, lse = by_head(out, heads, steps).reshape(q.shape), lse.reshape(*q.shape[:-1], 1)  # views
    for b in range(len(q)):
        s = causal_scores(q[b], k[b])  # (K, G, T, T)
        largest = s.max(-1, keepdims=True)
        e = np.exp(s - largest)
        total = e.sum(-1, keepdims=True)
        lse[b] = np.log(total) + largest
        out[b] = e / total * dropout_mask(e, b * e.size, dropout) @ v[b]


def attention_backward(qkv, scratch, dout, out, lse, heads, kv_heads, steps, dropout):
    q, k, v = split_heads(qkv, heads, kv_heads, steps)
    dout, lse = by_head(dout, heads, steps).reshape(q.shape), lse.reshape(*q.shape[:-1], 1)
    for b in range(len(q)):
        p = np.exp(causal_scores(q[b], k[b]) - lse[b])  # (K, G, T, T)
        mask = dropout_mask(p, b * p.size, dropout)
        dp = dout[b] @ v[b].swapaxes(-1, -2) * mask
        ds = p * (dp - (p * dp).sum(-1, keepdims=True))  # softmax has the Jacobian diag(p) - p p^T
        ds /= math.sqrt(q.shape[-1])
        dq = ds @ k[b]
        dk = (ds.swapaxes(-1, -2) @ q[b]).sum(1, keepdims=True)  # the query heads of a group share k and v
        dv = ((p * mask).swapaxes(-1, -2) @ dout[b]).sum(1, keepdims=True)
        q[b], k[b], v[b] = dq, dk, dv


def attention_step(out, keys, values, qkv, heads, kv_heads, position):
    """One new token per sequence: its key and value enter the ring buffers (B, K, T, w), its queries attend to them."""
    q, k, v = split_heads(qkv, heads, kv_heads, 1)
    position, slots = np.asarray(position).item(), keys.shape[2]
    keys[:, :, position % slots], values[:, :, position % slots] = k[:, :, 0, 0], v[:, :, 0, 0]
    keys, values = (x[:, :, : position + 1] for x in (keys, values))  # the slots that are filled
    s = q[:, :, :, 0] @ keys.swapaxes(-1, -2) / math.sqrt(q.shape[-1])  # (B, K, G, slots)
    e = np.exp(s - s.max(-1, keepdims=True))
    out[...] = (e / e.sum(-1, keepdims=True) @ values).reshape(out.shape)
