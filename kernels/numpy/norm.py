"""RMSNorm and LayerNorm. Sizes: N rows, D width. Backward adds to dx, the gradient of the residual branch."""

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
