"""A residual branch: projection, dropout, sum. And casts to the compute dtype."""

from slm_np import ops
from slm_np.nn import linear
from slm_np.nn.arena import Request


def plan(config, tokens):
    yield Request("branch", (tokens, config.n_embd), "scratch", "compute" if config.dropout else "cast")


def project_forward(w, a, name, out, x, residual, dropout, start=0):
    """out = residual + dropout(x W + b)        residual None: no residual connection. start: see linear.py"""
    if dropout is None:
        linear.forward(w, a, name, out, x, residual, start)
    else:
        branch = a["branch"][: len(x)]  # (N, D)
        linear.forward(w, a, name, branch, x, None, start)
        ops.dropout_forward(out, branch, residual, dropout)


def project_backward(a, dout, dropout):
    """The gradient of x W + b in the compute dtype. The residual's gradient is dout itself."""
    if dropout is None:
        return cast(a, "branch", dout)
    branch = a["branch"][: len(dout)]
    ops.dropout_backward(branch, dout, dropout)
    return branch


def cast(a, name, x):
    """x in the compute dtype: x itself or, in mixed precision, its copy in the array `name`."""
    if name not in a or a[name].dtype == x.dtype:
        return x
    copy = a[name][: len(x)]
    ops.convert(copy, x)
    return copy
