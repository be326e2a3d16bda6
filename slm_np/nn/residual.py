"""A residual branch: projection, dropout, sum. And casts to the compute dtype."""

from slm_np import ops
from slm_np.nn.arena import Request


def plan(config, tokens):
    yield Request("branch", (tokens, config.n_embd), "scratch", "compute" if config.dropout else "cast")


def project_forward(w, a, name, out, x, residual, dropout):
    """out = residual + dropout(x W + b)        residual None: no residual connection"""
    weight, bias = w[f"{name}.weight"], w.get(f"{name}.bias")
    if dropout is None:
        ops.linear_forward(out, x, weight, bias, residual)
    else:
        branch = a["branch"][: len(x)]  # (N, D)
        ops.linear_forward(branch, x, weight, bias, None)
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
