"""RMSNorm and LayerNorm of rows, and RMSNorm of the heads of queries and keys.

Sizes: N rows, D width, H query heads, K key-value heads, w head width. Except for heads, backward adds to dx, the
gradient of the residual branch.
"""

import numpy as np


def rmsnorm_forward(out, rstd, x, weight, eps):
    rstd[...] = 1 / np.sqrt((x * x).mean(1) + eps)  # (N,)
    out[...] = x * rstd[:, None] * weight


def rmsnorm_backward(dx, dweight, dout, x, weight, rstd):
    rstd = rstd[:, None]  # (N, 1)
    xhat = x * rstd  # (N, D)
    g = dout * weight  # the gradient of xhat; scaling x does not change xhat, so dx has no component along it
    dx += rstd * (g - xhat * (g * xhat).mean(1, keepdims=True))
    if dweight is not None:
        dweight += (dout * xhat).sum(0)


def layernorm_forward(out, mean, rstd, x, weight, bias, eps):
    mean[...] = x.mean(1)  # (N,)
    centered = x - mean[:, None]  # (N, D)
    rstd[...] = 1 / np.sqrt((centered * centered).mean(1) + eps)
    xhat = centered * rstd[:, None]
    out[...] = xhat * weight if bias is None else xhat * weight + bias


def layernorm_backward(dx, dweight, dbias, dout, x, weight, mean, rstd):
    rstd = rstd[:, None]  # (N, 1)
    xhat = (x - mean[:, None]) * rstd  # (N, D)
    g = dout * weight  # the gradient of xhat; neither scaling nor shifting x changes xhat
    dx += rstd * (g - g.mean(1, keepdims=True) - xhat * (g * xhat).mean(1, keepdims=True))
    if dweight is not None:
        dweight += (dout * xhat).sum(0)
    if dbias is not None:
        dbias += dout.sum(0)


def normed_heads(qkv, q_weight, k_weight, heads, kv_heads):
    """Views of queries and keys (N, H + K, w) and of values (N, K, w), and the weight of each head (H + K, w)"""
    rows = qkv.reshape(len(qkv), heads + 2 * kv_heads, q_weight.size)
    return *np.split(rows, [heads + kv_heads], axis=1), np.repeat([q_weight, k_weight], [heads, kv_heads], axis=0)


def head_norm_forward(
    out,
    rstd,
    qkv,
    q_weight,
    k_weight,
    heads,
    kv_heads,
    eps,
):
    x, values, weight = normed_heads(qkv, q_weight, k_weight, heads, kv_heads)
    normed, copied, _ = normed_heads(out, q_weight, k_weight, heads, kv_heads)
    rstd[...] = 1 / np.sqrt((x * x).mean(2) + eps)  # (N, H + K)
    normed[...], copied[...] = x * rstd[..., None] * weight, values


def head_norm_backward(
    qkv,
    dq_weight,
    dk_weight,
    dout,
    q_weight,
    k_weight,
    rstd,
    heads,
    kv_heads,
):
    x, values, weight = normed_heads(qkv, q_weight, k_weight, heads, kv_heads)
    dnormed, dvalues, _ = normed_heads(dout, q_weight, k_weight, heads, kv_heads)
    rstd = rstd[..., None]  # (N, H + K, 1)
    xhat = x * rstd
    g = dnormed * weight
    dweight = (dnormed * xhat).sum(0)  # (H + K, w)
    dq_weight += dweight[:heads].sum(0)
    dk_weight += dweight[heads:].sum(0)
    x[...], values[...] = rstd * (g - xhat * (g * xhat).mean(2, keepdims=True)), dvalues
