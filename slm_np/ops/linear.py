"""Linear layers. Sizes: N tokens, D inputs, E outputs."""

from slm_np.ops.device import kernels_of


def linear_forward(out, x, weight, bias, residual):
    """out = x W + b + residual        out, residual (N, E)   x (N, D)   weight (D, E)   bias (E,)

    bias and residual may be None; residual may be `out` itself. They cost almost nothing: the fast kernels prefill C
    with them and accumulate the matmul (beta = 1). weight may be a CastCopy, a weight with its copies in the compute
    dtype.
    """
    kernels_of(out).linear_forward(out, x, weight, bias, residual)


def linear_backward(dx, dweight, dbias, dout, x, weight):
    """dx = dout W^T,   dweight += x^T dout,   dbias += sum_n dout        (dresidual is dout itself)

    The loss's differential is <dout, dx W + x dW + db> = <dout W^T, dx> + <x^T dout, dW> + <sum_n dout, db>.
    dbias may be None. dweight is None if the weight is frozen: then dx alone is computed.
    """
    if dweight is not None:
        linear_backward_weight(dweight, dbias, dout, x)
    linear_backward_input(dx, dout, weight)


def linear_backward_input(dx, dout, weight, residual=None):
    """dx = dout W^T + residual: one half of `linear_backward`, for a caller that has yet to recompute x

    residual may be None, or `dx` itself: then dx accumulates.
    """
    kernels_of(dout).linear_backward_input(dx, dout, weight, residual)


def linear_backward_weight(dweight, dbias, dout, x):
    """dweight += x^T dout,   dbias += sum_n dout: the other half"""
    kernels_of(dout).linear_backward_weight(dweight, dbias, dout, x)


def linear_transposed_forward(out, x, weight):
    """out = x W^T        out (N, V)   x (N, D)   weight (V, D), such as an embedding tied to the head"""
    kernels_of(out).linear_transposed_forward(out, x, weight)


def linear_transposed_backward(dx, dweight, dout, x, weight):
    """dx = dout W,   dweight += dout^T x        dweight None: the weight is frozen

    dout (N, V), or padded rows that `softmax_cross_entropy_backward` wrote
    """
    kernels_of(dout).linear_transposed_backward(dx, dweight, dout, x, weight)
