"""A causal depthwise convolution with its silu. Sizes: B batch, T steps, N = B T, E channels, K tokens that it sees."""

from slm_np.ops.device import kernels_of


def convolution_forward(out, x, past, weight, bias):
    """out = silu(p),   p_t = bias + sum_k weight[k] x_(t - K + 1 + k)        out (N, E)   weight (K, E)   bias (E,)

    x (N, at least E): only its first E columns. past (B, K - 1, E): the rows before the first; zeros where a text begins.
    """
    kernels_of(out).convolution_forward(out, x, past, weight, bias)


def convolution_backward(x, dweight, dbias, scratch, dout, past, weight, bias):
    """dp = dout silu'(p):   dx_t = sum_k weight[k] dp_(t + K - 1 - k),   dweight[k] += sum_t dp_t x_(t - K + 1 + k),   dbias += sum_t dp_t

    x's first E columns become their gradient in place, dout becomes out again. p is made again, in scratch (N, E). Nothing flows back into `past`.
    """
    kernels_of(dout).convolution_backward(x, dweight, dbias, scratch, dout, past, weight, bias)
