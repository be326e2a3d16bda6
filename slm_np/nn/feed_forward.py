"""The feed-forward of a block: two projections with an activation between. Sizes: N tokens, D width, F hidden width.

It treats every token alone, so it goes through them a chunk of rows at a time: the wide arrays between the products stay in the cache, and
one chunk's scratch is all that exists.
"""

from slm_np import ops
from slm_np.nn.arena import Request
from slm_np.nn.parameters import Tensor, weight
from slm_np.nn.residual import join_backward, join_forward
from slm_np.ops.device import at_once

ROWS = 2048  # large enough that packing the weights for a product is small beside it


def hidden_columns(config):
    """Columns before the activation: SwiGLU has a gate beside every value."""
    return config.n_hidden * (2 if config.feed_forward == "swiglu" else 1)


def activation(config, direction):
    """The op of the configured activation: silu, gelu, gelu_tanh or swiglu, forward or backward."""
    return getattr(ops, f"{config.feed_forward.replace('-', '_')}_{direction}")


def parameters(config):
    yield weight(config, "feed_forward.input.weight", (config.n_embd, hidden_columns(config)), config.n_embd)
    yield weight(config, "feed_forward.output.weight", (config.n_hidden, config.n_embd), config.n_hidden, residual=True)
    if config.bias:
        yield Tensor("feed_forward.input.bias", (hidden_columns(config),), "zeros")
        yield Tensor("feed_forward.output.bias", (config.n_embd,), "zeros")


def plan(config, tokens, arrays):
    rows = at_once(arrays, tokens, ROWS)
    yield Request("feed_forward.hidden", (tokens, hidden_columns(config)), "saved", "operand")
    yield Request("feed_forward.active", (rows, config.n_hidden), "scratch", "operand")


def chunks(n, key, length=None):
    """(rows, dropout key) of each chunk of `length` of n tokens; a chunk numbers its places from zero, so its key must be its own."""
    length = length or ROWS
    for start in range(0, n, length):
        yield slice(start, min(n, start + length)), key + start if start and key is not None else key


def forward(config, w, a, out, x, residual, join_key):
    """out = residual + activation(x W1 + b1) W2 + b2        residual None where there is none"""
    for rows, key in chunks(len(x), join_key, len(a["feed_forward.active"])):
        hidden = a["feed_forward.hidden"][rows]
        active = a["feed_forward.active"][: len(hidden)]
        ops.linear_forward(hidden, x[rows], w["feed_forward.input.weight"], w.get("feed_forward.input.bias"), None)
        activation(config, "forward")(active, hidden)
        join_forward(
            config, w, a, "feed_forward.output", out[rows], active, None if residual is None else residual[rows], key
        )


def backward(config, w, g, a, dx, dout, x, join_key):
    """dx = the gradient of the feed-forward's input. What forward saved is used up.

    The activation was not kept: the kernel of its derivative makes it again, where its gradient was, and leaves the gradient of the hidden
    values where they were. So the output's dx comes first and its dweight last.
    """
    for rows, key in chunks(len(x), join_key, len(a["feed_forward.active"])):
        hidden = dhidden = a["feed_forward.hidden"][rows]
        active = dactive = a["feed_forward.active"][: len(hidden)]
        dbranch = join_backward(config, a, dout[rows], key)
        ops.linear_backward_input(dactive, dbranch, w["feed_forward.output.weight"])
        activation(config, "backward")(hidden, dactive)
        ops.linear_backward_weight(g["feed_forward.output.weight"], g.get("feed_forward.output.bias"), dbranch, active)
        ops.linear_backward(
            dx[rows],
            g["feed_forward.input.weight"],
            g.get("feed_forward.input.bias"),
            dhidden,
            x[rows],
            w["feed_forward.input.weight"],
        )
