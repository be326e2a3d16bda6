"""Linear layers. Sizes: N tokens, D inputs, E outputs."""

from slm_np.ops.device import kernels_of


def linear_forward(out, x, weight, bias, residual):
    """out = x W + b + residual        out, residual (N, E)   x (N, D)   weight (D, E)   bias (E,)

    `bias` and `residual` may be None. They cost almost nothing: they are laid where the product is added to them. `residual` may be `out` itself.
    """
    kernels_of(out).linear_forward(out, x, weight, bias, residual)


def linear_backward(dx, dweight, dbias, dout, x, weight):
    """dx = dout W^T,   dweight += x^T dout,   dbias += sum_n dout        (d residual is dout itself)

    From L's differential <dout, dx W + x dW + db> = <dout W^T, dx> + <x^T dout, dW> + <sum dout, db>. `dbias` may be None.
    """
    linear_backward_weight(dweight, dbias, dout, x)
    linear_backward_input(dx, dout, weight)


def linear_backward_input(dx, dout, weight):
    """dx = dout W^T: the first half of `linear_backward`, for a caller that has yet to make x again."""
    kernels_of(dout).linear_backward_input(dx, dout, weight)


def linear_backward_weight(dweight, dbias, dout, x):
    """dweight += x^T dout,   dbias += sum_n dout: the second half"""
    kernels_of(dout).linear_backward_weight(dweight, dbias, dout, x)


def linear_transposed_forward(out, x, weight):
    """out = x W^T        out (N, V)   x (N, D)   weight (V, D): a table of rows, such as an embedding used again as the head."""
    kernels_of(out).linear_transposed_forward(out, x, weight)


def linear_transposed_backward(dx, dweight, dout, x, weight):
    """dx = dout W,   dweight += dout^T x        dout (N, V), or longer rows that `softmax_cross_entropy_backward` filled"""
    kernels_of(dout).linear_transposed_backward(dx, dweight, dout, x, weight)
