"""A branch leaves the residual stream and returns to it: projection, dropout, sum."""

from slm_np import ops
from slm_np.nn.arena import Request


def plan(config, tokens):
    yield Request("branch", (tokens, config.n_embd), "scratch", "operand" if config.dropout else "rounded")


def join_forward(config, w, a, name, out, x, residual, key):
    """out = residual + dropout(x W + b). `key` is None when nothing is dropped: then the residual lies under the product."""
    weight, bias = w[f"{name}.weight"], w.get(f"{name}.bias")
    if key is None:
        ops.linear_forward(out, x, weight, bias, residual)
    else:
        branch = a["branch"][: len(x)]
        ops.linear_forward(branch, x, weight, bias, None)
        ops.dropout_forward(out, branch, residual, (config.dropout, key))


def join_backward(config, a, dout, key):
    """The gradient of x W + b as an operand: dout through the same dropout. The residual's is dout itself."""
    if key is None:
        return operand(a, "branch", dout)
    branch = a["branch"][: len(dout)]
    ops.dropout_backward(branch, dout, (config.dropout, key))
    return branch


def operand(a, name, x):
    """Numbers x as products take them: x itself or, where operands are of a shorter type, rounded into the array `name`."""
    if name not in a or a[name].dtype == x.dtype:
        return x
    rounded = a[name][: len(x)]
    ops.convert(rounded, x)
    return rounded
