"""The feed-forward of a block: two projections with an activation between. Sizes: N tokens, D width, F hidden width."""
from slm_np import ops
from slm_np.branch import join_backward, join_forward
from slm_np.params import Tensor, weight
from slm_np.workspace import Request

def hidden_columns(config):
    """Columns before the activation: SwiGLU has a gate beside every value."""
    return config.n_hidden * (2 if config.feed_forward == "swiglu" else 1)


def activation(config, direction):
    """The op of the configured activation: swish, gelu, gelu_tanh or swiglu, forward or backward."""
    return getattr(ops, f"{config.feed_forward.replace('-', '_')}_{direction}")


def parameters(config):
    yield weight(config, "feed_forward.input.weight", (config.n_embd, hidden_columns(config)), config.n_embd)
    yield weight(config, "feed_forward.output.weight", (config.n_hidden, config.n_embd), config.n_hidden, residual=True)
    if config.bias:
        yield Tensor("feed_forward.input.bias", (hidden_columns(config),), "zeros")
        yield Tensor("feed_forward.output.bias", (config.n_embd,), "zeros")


def plan(config, tokens):
    yield Request("feed_forward.hidden", (tokens, hidden_columns(config)), "saved")
    yield Request("feed_forward.dhidden", (tokens, hidden_columns(config)), "scratch")
    yield Request("feed_forward.active", (tokens, config.n_hidden), "scratch")
    yield Request("feed_forward.dactive", (tokens, config.n_hidden), "scratch")


def forward(config, w, a, out, x, residual, join_key):
    """out = residual + activation(x W1 + b1) W2 + b2"""
    ops.linear_forward(a["feed_forward.hidden"], x, w["feed_forward.input.weight"], w.get("feed_forward.input.bias"), None)
    activation(config, "forward")(a["feed_forward.active"], a["feed_forward.hidden"])
    join_forward(config, w, a, "feed_forward.output", out, a["feed_forward.active"], residual, join_key)


def backward(config, w, g, a, dx, dout, x, join_key):
    """dx = the gradient of the feed-forward's input.

    The activation was not kept: its derivative's kernel makes it again. So the output's dx comes first and its dweight last.
    """
    hidden, dhidden, active, dactive = (a[f"feed_forward.{name}"] for name in ("hidden", "dhidden", "active", "dactive"))
    dbranch = join_backward(config, a, dout, join_key)
    ops.linear_backward_input(dactive, dbranch, w["feed_forward.output.weight"])
    activation(config, "backward")(dhidden, active, dactive, hidden)
    ops.linear_backward_weight(g["feed_forward.output.weight"], g.get("feed_forward.output.bias"), dbranch, active)
    ops.linear_backward(dx, g["feed_forward.input.weight"], g.get("feed_forward.input.bias"), dhidden, x, w["feed_forward.input.weight"])
