"""The norm before a mixer, a feed-forward or the head: none, layer norm or RMS norm."""

from slm_np import ops
from slm_np.nn.arena import Request
from slm_np.nn.parameters import Tensor
from slm_np.nn.residual import cast


def parameters(config, name):
    if config.norm != "none":
        yield Tensor(f"{name}.weight", (config.n_embd,), "ones")
        if config.norm == "layernorm" and config.bias:
            yield Tensor(f"{name}.bias", (config.n_embd,), "zeros")


def plan(config, name, tokens):
    yield Request("normed", (tokens, config.n_embd), "scratch", "cast" if config.norm == "none" else "compute")
    if config.norm != "none":
        yield Request(f"{name}.rstd", (tokens,), "saved")
    if config.norm == "layernorm":
        yield Request(f"{name}.mean", (tokens,), "saved")


def forward(config, w, a, name, x):
    """norm(x) in the compute dtype, or x itself without a norm.

    Backward calls it again instead of saving its result.
    """
    if config.norm == "none":
        return cast(a, "normed", x)
    weight, bias, rstd = w[f"{name}.weight"], w.get(f"{name}.bias"), a[f"{name}.rstd"]
    if config.norm == "rmsnorm":
        ops.rmsnorm_forward(a["normed"], rstd, x, weight, config.norm_eps)
    else:
        ops.layernorm_forward(a["normed"], a[f"{name}.mean"], rstd, x, weight, bias, config.norm_eps)
    return a["normed"]


def backward(config, w, g, a, name, dx, dnormed, x):
    """dx += the gradient that reaches x through its norm"""
    if config.norm == "none":
        ops.accumulate(dx, dnormed)
        return
    weight, rstd = w[f"{name}.weight"], a[f"{name}.rstd"]
    dweight, dbias = g.get(f"{name}.weight"), g.get(f"{name}.bias")
    if config.norm == "rmsnorm":
        ops.rmsnorm_backward(dx, dweight, dnormed, x, weight, rstd)
    else:
        ops.layernorm_backward(dx, dweight, dbias, dnormed, x, weight, a[f"{name}.mean"], rstd)
