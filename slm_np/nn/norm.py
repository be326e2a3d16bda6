"""The norm before a mixer, a feed-forward or the head: none, layer norm or RMS norm. With none, the stream itself goes on."""

from slm_np import ops
from slm_np.nn.arena import Request
from slm_np.nn.parameters import Tensor
from slm_np.nn.residual import operand


def parameters(config, name):
    if config.norm != "none":
        yield Tensor(f"{name}.weight", (config.n_embd,), "ones")
        if config.norm == "layernorm" and config.bias:
            yield Tensor(f"{name}.bias", (config.n_embd,), "zeros")


def plan(config, name, tokens):
    yield Request("normed", (tokens, config.n_embd), "scratch", "rounded" if config.norm == "none" else "operand")
    if config.norm != "none":
        yield Request(f"{name}.rstd", (tokens,), "saved")
    if config.norm == "layernorm":
        yield Request(f"{name}.mean", (tokens,), "saved")


def forward(config, w, a, name, x):
    """The normed stream as products take it; where there is no norm, x itself. Backward calls it again instead of keeping it."""
    if config.norm == "none":
        return operand(a, "normed", x)
    if config.norm == "rmsnorm":
        ops.rmsnorm_forward(a["normed"], a[f"{name}.rstd"], x, w[f"{name}.weight"], config.norm_eps)
    else:
        ops.layernorm_forward(
            a["normed"],
            a[f"{name}.mean"],
            a[f"{name}.rstd"],
            x,
            w[f"{name}.weight"],
            w.get(f"{name}.bias"),
            config.norm_eps,
        )
    return a["normed"]


def backward(config, w, g, a, name, dx, dnormed, x):
    """dx += the gradient that reaches the stream x through its norm."""
    if config.norm == "none":
        ops.accumulate(dx, dnormed)
    elif config.norm == "rmsnorm":
        ops.rmsnorm_backward(dx, g[f"{name}.weight"], dnormed, x, w[f"{name}.weight"], a[f"{name}.rstd"])
    else:
        ops.layernorm_backward(
            dx,
            g[f"{name}.weight"],
            g.get(f"{name}.bias"),
            dnormed,
            x,
            w[f"{name}.weight"],
            a[f"{name}.mean"],
            a[f"{name}.rstd"],
        )
