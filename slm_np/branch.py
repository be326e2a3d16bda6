"""A branch returns to the residual stream: projection, dropout, sum."""
from slm_np import ops


def join_forward(config, w, a, name, out, x, residual, key):
    """out = residual + dropout(x W + b). `key` is None when nothing is dropped: then the residual lies under the product."""
    weight, bias = w[f"{name}.weight"], w.get(f"{name}.bias")
    if key is None:
        ops.linear_forward(out, x, weight, bias, residual)
    else:
        branch = a["branch"][:len(x)]
        ops.linear_forward(branch, x, weight, bias, None)
        ops.dropout_forward(out, branch, residual, config.dropout, key)


def join_backward(config, a, dout, key):
    """The gradient of x W + b: dout through the same dropout. The residual's is dout itself."""
    if key is None:
        return dout
    branch = a["branch"][:len(dout)]
    ops.dropout_backward(branch, dout, config.dropout, key)
    return branch
