"""Normalisation. Sizes: N tokens, D width. Backward reads the residual stream, so it adds to the stream's gradient."""

from slm_np.ops.device import kernels_of


def rmsnorm_forward(out, rstd, x, weight, eps):
    """out = x * rstd * weight,   rstd = (mean(x^2) + eps)^(-1/2)        out, x (N, D)   rstd (N,)   weight (D,)   (Zhang and Sennrich 2019)"""
    kernels_of(out).rmsnorm_forward(out, rstd, x, weight, eps)


def rmsnorm_backward(dx, dweight, dout, x, weight, rstd):
    """g = dout * weight,   x^ = x * rstd:        dx += rstd * (g - x^ * mean(g * x^)),   dweight += sum_n dout * x^

    d rstd = -rstd^3 mean(x dx) gives the second term: scaling x changes nothing, so dx has no part along x (but for eps).
    """
    kernels_of(dout).rmsnorm_backward(dx, dweight, dout, x, weight, rstd)


def layernorm_forward(out, mean, rstd, x, weight, bias, eps):
    """out = (x - mean) * rstd * weight + bias,   rstd = (var(x) + eps)^(-1/2)        mean, rstd (N,)   bias (D,) or None   (Ba et al. 2016)"""
    kernels_of(out).layernorm_forward(out, mean, rstd, x, weight, bias, eps)


def layernorm_backward(dx, dweight, dbias, dout, x, weight, mean, rstd):
    """g = dout * weight,   x^ = (x - mean) * rstd:        dx += rstd * (g - mean(g) - x^ * mean(g * x^)),   dweight += sum_n dout * x^,   dbias += sum_n dout"""
    kernels_of(dout).layernorm_backward(dx, dweight, dbias, dout, x, weight, mean, rstd)
