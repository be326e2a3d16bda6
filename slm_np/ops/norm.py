"""Normalization.

Sizes: N tokens, D width. Backward reads a residual branch, so it accumulates into the residual's gradient.
"""

from slm_np.ops.device import kernels_of


def rmsnorm_forward(out, rstd, x, weight, eps):
    """out = x * rstd * weight,   rstd = (mean(x^2) + eps)^(-1/2)

    out, x (N, D)   rstd (N,)   weight (D,)   (Zhang and Sennrich 2019)
    """
    kernels_of(out).rmsnorm_forward(out, rstd, x, weight, eps)


def rmsnorm_backward(dx, dweight, dout, x, weight, rstd):
    """With g = dout * weight and x^ = x * rstd:   dx += rstd * (g - x^ * mean(g * x^)),   dweight += sum_n dout * x^

    x enters directly, which gives rstd * g, and through rstd, whose differential is -rstd^3 mean(x * dx). Scaling x
    changes nothing, so dx has no component along x (except for eps). dweight None: the weight is frozen.
    """
    kernels_of(dout).rmsnorm_backward(dx, dweight, dout, x, weight, rstd)


def layernorm_forward(out, mean, rstd, x, weight, bias, eps):
    """out = (x - mean) * rstd * weight + bias,   rstd = (var(x) + eps)^(-1/2)

    out, x (N, D)   mean, rstd (N,)   weight (D,)   bias (D,) or None   (Ba et al. 2016)
    """
    kernels_of(out).layernorm_forward(out, mean, rstd, x, weight, bias, eps)


def layernorm_backward(dx, dweight, dbias, dout, x, weight, mean, rstd):
    """With g = dout * weight and x^ = (x - mean) * rstd:

    dx += rstd * (g - mean(g) - x^ * mean(g * x^)),   dweight += sum_n dout * x^,   dbias += sum_n dout

    Shifting or scaling x changes nothing, so dx has no component along the constant vector, nor along x^ (except for
    eps). dweight None: weight and bias are frozen.
    """
    kernels_of(dout).layernorm_backward(dx, dweight, dbias, dout, x, weight, mean, rstd)
