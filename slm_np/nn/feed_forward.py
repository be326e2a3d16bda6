"""The feed-forward of a block: two linear layers with an activation between. Sizes: N tokens, D width, F hidden width.

It treats every token alone, so it takes a chunk of rows at a time: the wide arrays between the matmuls stay in the
cache, and one chunk's scratch is all that exists.
"""

from slm_np import ops
from slm_np.nn import linear, lora
from slm_np.nn.arena import Request
from slm_np.nn.parameters import Tensor, matmul_weight
from slm_np.nn.residual import project_backward, project_forward

ROWS = 2048  # of a chunk on a CPU: large enough that packing the weights for a matmul is cheap beside it

ACTIVATIONS = {
    "silu": (ops.silu_forward, ops.silu_backward),
    "gelu": (ops.gelu_forward, ops.gelu_backward),
    "gelu-tanh": (ops.gelu_tanh_forward, ops.gelu_tanh_backward),
    "swiglu": (ops.swiglu_forward, ops.swiglu_backward),
}


def hidden_columns(config):
    """Columns before the activation: SwiGLU has a gate beside every value."""
    return config.n_hidden * (2 if config.feed_forward == "swiglu" else 1)


def parameters(config):
    wide = hidden_columns(config)
    yield matmul_weight(config, "feed_forward.input.weight", (config.n_embd, wide), config.n_embd)
    yield matmul_weight(
        config, "feed_forward.output.weight", (config.n_hidden, config.n_embd), config.n_hidden, residual=True
    )
    if config.bias:
        yield Tensor("feed_forward.input.bias", (wide,), "zeros")
        yield Tensor("feed_forward.output.bias", (config.n_embd,), "zeros")


def plan(config, tokens, device):
    rows = device.chunk_rows(tokens, ROWS)
    yield Request("feed_forward.hidden", (tokens, hidden_columns(config)), "saved", "compute")
    yield Request("feed_forward.active", (rows, config.n_hidden), "scratch", "compute")


def chunks(n, length, dropout):
    """(rows, dropout) of each chunk of `length` of n tokens.

    A chunk's mask counts from zero, so its key must be its own.
    """
    for start in range(0, n, length):
        own = dropout._replace(key=dropout.key + start) if start and dropout else dropout
        yield slice(start, min(n, start + length)), own


def forward(config, w, a, out, x, residual, dropout):
    """out = residual + dropout(activation(x W1 + b1) W2 + b2)        residual None: no residual connection

    out None: compute only what backward reads.
    """
    activation_forward, _ = ACTIVATIONS[config.feed_forward]
    for rows, own in chunks(len(x), len(a["feed_forward.active"]), dropout):
        hidden = a["feed_forward.hidden"][rows]  # (n, F or 2 F)
        active = a["feed_forward.active"][: len(hidden)]  # (n, F)
        linear.forward(w, a, "feed_forward.input", hidden, x[rows], None, rows.start)
        adapter = w.get("feed_forward.output.lora")
        if out is None and adapter is None:
            continue
        activation_forward(active, hidden)
        if out is None:
            lora.save(adapter, w, a, active, rows.start)
            continue
        shortcut = None if residual is None else residual[rows]
        project_forward(w, a, "feed_forward.output", out[rows], active, shortcut, own, rows.start)


def backward(config, w, g, a, dx, dout, x, dropout):
    """dx = the gradient of the feed-forward's input. What forward saved is used up.

    The activation was not saved: its backward recomputes it where its gradient was, and leaves the gradient of the
    hidden values where they were. So the second layer's dx comes first and its dweight last.
    """
    _, activation_backward = ACTIVATIONS[config.feed_forward]
    for rows, own in chunks(len(x), len(a["feed_forward.active"]), dropout):
        hidden = dhidden = a["feed_forward.hidden"][rows]
        active = dactive = a["feed_forward.active"][: len(hidden)]
        dbranch = project_backward(a, dout[rows], own)
        linear.backward_input(w, g, a, "feed_forward.output", dactive, dbranch, rows.start)
        activation_backward(hidden, dactive)
        linear.backward_weight(w, g, a, "feed_forward.output", dbranch, active, rows.start)
        linear.backward(w, g, a, "feed_forward.input", dx[rows], dhidden, x[rows], rows.start)
