"""A causal depthwise convolution with its SiLU. Sizes: B batch, T steps, N = B T, E channels, K kernel width."""

from slm_np.ops.device import kernels_of


def convolution_forward(out, x, past, weight, bias):
    """out = silu(p),   p_t = bias + sum_k weight[k] x_(t - K + 1 + k)        out (N, E)   weight (K, E)   bias (E,)

    x     (N, E or more): only the first E columns are read
    past  (B, K - 1, E): the rows before the first one, zeros at the start of a sequence
    """
    kernels_of(out).convolution_forward(out, x, past, weight, bias)


def convolution_backward(x, dweight, dbias, scratch, dout, past, weight, bias):
    """With dp = dout silu'(p):

    dx_t = sum_k weight[k] dp_(t + K - 1 - k),   dweight[k] += sum_t dp_t x_(t - K + 1 + k),   dbias += sum_t dp_t

    The first E columns of x become their gradient; dout becomes out again. scratch (N, E) takes p, which is recomputed.
    Nothing flows into `past`.
    """
    kernels_of(dout).convolution_backward(x, dweight, dbias, scratch, dout, past, weight, bias)
