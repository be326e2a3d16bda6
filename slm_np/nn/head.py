"""From the normed stream to the loss: the embedding again, a matrix, or a hidden layer with a silu and then a matrix.

All three end in the logits x W^T with W (V, width), fused with softmax cross-entropy. With head "none" the stream is the logits, and backward
leaves their gradient in their place.
"""

import numpy as np

from slm_np import ops
from slm_np.nn.arena import Request
from slm_np.nn.parameters import Tensor, weight
from slm_np.ops.device import at_once, row_length, whole_lines

# Logits of one chunk of rows: large enough that packing W for the product is cheap beside it, small enough to leave memory alone.
CHUNK_BYTES, CHUNK_ROWS = 16 << 20, 512
LARGER = 16  # chunks of a GPU, to which a product of so few rows is short


def width(config):
    """Columns that enter the last product."""
    return config.head_hidden if config.head == "mlp" else config.n_embd


def parameters(config):
    if config.head == "mlp":
        yield weight(config, "head.input.weight", (config.n_embd, config.head_hidden), config.n_embd)
        if config.bias:
            yield Tensor("head.input.bias", (config.head_hidden,), "zeros")
    if config.head in ("linear", "mlp"):
        yield weight(config, "head.weight", (config.vocab_size, width(config)), width(config))


def plan(config, tokens, arrays=np):
    rows = max(CHUNK_ROWS, CHUNK_BYTES // (4 * config.vocab_size))
    rows = at_once(arrays, tokens, rows, LARGER * rows)
    if config.head != "none":
        yield Request("head.logits", (rows, row_length(arrays, config.vocab_size)), "scratch")
        yield Request("head.dlogits", (rows, whole_lines(config.vocab_size)), "scratch", "rounded")
    yield Request("head.losses", (tokens,), "saved")
    if config.head == "mlp":
        for name, kind in (("hidden", "operand"), ("active", "operand"), ("dactive", "number")):
            yield Request(f"head.{name}", (tokens, config.head_hidden), "scratch", kind)


def table(config, views):
    """The last product's W, or its gradient."""
    return views["embedding.weight"] if config.head == "tied" else views["head.weight"]


def last(config, w, a, x):
    """What enters the last product."""
    if config.head != "mlp":
        return x
    ops.linear_forward(a["head.hidden"], x, w["head.input.weight"], w.get("head.input.bias"), None)
    ops.silu_forward(a["head.active"], a["head.hidden"])
    return a["head.active"]


def rooms(config, a):
    """Where a chunk's logits and their gradient lie; the second is the first, or shorter numbers in rows of whole lines."""
    logits = a["head.logits"][:, : config.vocab_size]
    return logits, a.get("head.dlogits", logits)


def logits_forward(config, w, a, out, x):
    """out = the logits of x        out (N, V)"""
    if config.head == "none":
        out[...] = x
        return
    ops.linear_transposed_forward(out, last(config, w, a, x), table(config, w))


def forward(config, w, a, x, targets):
    """a["head.losses"] = cross-entropy of every token in nats, 0 where the target is -1."""
    if config.head == "none":
        ops.softmax_cross_entropy_forward(a["head.losses"], x, targets)
        return
    ops.head_cross_entropy_forward(
        a["head.losses"], rooms(config, a)[0], last(config, w, a, x), table(config, w), targets
    )


def backward(config, w, g, a, dx, x, targets, scale):
    """a["head.losses"] as in forward, and dx = the gradient of scale * sum of losses; with head "none" x becomes its gradient."""
    if config.head == "none":
        ops.softmax_cross_entropy_backward(x, a["head.losses"], x, targets, scale)
        return
    mlp = config.head == "mlp"
    ops.head_cross_entropy_backward(
        a["head.dactive"] if mlp else dx,
        table(config, g),
        a["head.losses"],
        *rooms(config, a),
        last(config, w, a, x),
        table(config, w),
        targets,
        scale,
    )
    if mlp:
        ops.silu_backward(a["head.hidden"], a["head.dactive"])  # hidden is its gradient from here on
        ops.linear_backward(
            dx, g["head.input.weight"], g.get("head.input.bias"), a["head.hidden"], x, w["head.input.weight"]
        )
