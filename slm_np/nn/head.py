"""From the normed hidden state to the loss: the tied embedding, a matrix, or a hidden layer with a SiLU before it.

All three end in the logits x W^T with W (V, width), fused with softmax cross-entropy. With head "none" the last mixer
gives the logits, and backward leaves their gradient in their memory.
"""

import numpy as np

from slm_np import ops
from slm_np.nn import linear
from slm_np.nn.arena import Request
from slm_np.nn.parameters import Tensor, matmul_weight
from slm_np.ops.device import whole_lines

# Logits of one chunk of rows: large enough that packing W for the matmul is cheap beside it, small enough to save
# memory.
CHUNK_BYTES, CHUNK_ROWS = 16 << 20, 512
# A chunk reads W twice and adds to dW, 16 V D bytes in all, for 6 V D operations a row. From about 200 rows on the
# operations take far longer than the bytes, so with a large vocabulary a chunk may have fewer than CHUNK_ROWS.
MOST_BYTES, FEWEST_ROWS = 128 << 20, 64
GPU_CHUNKS = 16  # chunks of a CPU that a GPU takes at once, since a matmul of so few rows is short there


def width(config):
    """Columns that enter the last matmul."""
    return config.head_hidden if config.head == "mlp" else config.n_embd


def parameters(config):
    if config.head == "mlp":
        yield matmul_weight(config, "head.input.weight", (config.n_embd, config.head_hidden), config.n_embd)
        if config.bias:
            yield Tensor("head.input.bias", (config.head_hidden,), "zeros")
    if config.head in ("linear", "mlp"):
        yield matmul_weight(config, "head.weight", (config.vocab_size, width(config)), width(config))


def chunk_rows(vocab_size):
    """Rows of a chunk on a CPU."""
    row = 4 * vocab_size  # bytes
    return min(max(CHUNK_ROWS, CHUNK_BYTES // row), max(FEWEST_ROWS, MOST_BYTES // row))


def plan(config, tokens, device):
    rows = chunk_rows(config.vocab_size)
    rows = device.chunk_rows(tokens, rows, GPU_CHUNKS * rows)
    if config.head != "none":
        yield Request("head.logits", (rows, device.row_length(config.vocab_size)), "scratch")
        yield Request("head.dlogits", (rows, whole_lines(config.vocab_size)), "scratch", "cast")
    yield Request("head.losses", (tokens,), "saved")
    if config.head == "mlp":
        for name, kind in (("hidden", "compute"), ("active", "compute"), ("dactive", "accumulation")):
            yield Request(f"head.{name}", (tokens, config.head_hidden), "scratch", kind)


def last_weight(config, views):
    """The last matmul's W (V, width), or its gradient; None for that of a frozen one."""
    return views.get("embedding.weight" if config.head == "tied" else "head.weight")


def last_input(config, w, a, x):
    """The input of the last matmul."""
    if config.head != "mlp":
        return x
    linear.forward(w, a, "head.input", a["head.hidden"], x)
    ops.silu_forward(a["head.active"], a["head.hidden"])
    return a["head.active"]


def chunk_scratch(config, a):
    """(logits, dlogits) of one chunk. dlogits is logits or, in mixed precision, padded rows of the compute dtype."""
    logits = a["head.logits"][:, : config.vocab_size]
    return logits, a.get("head.dlogits", logits)


def logits_forward(config, w, a, out, x):
    """out = the logits of x        out (N, V)"""
    if config.head == "none":
        out[...] = x
        return
    ops.linear_transposed_forward(out, *linear.operands(last_input(config, w, a, x), last_weight(config, w)))


def forward(config, w, a, x, targets):
    """a["head.losses"] = the cross-entropy of every token in nats, 0 where the target is -1"""
    if config.head == "none":
        ops.softmax_cross_entropy_forward(a["head.losses"], x, targets)
        return
    logits, _ = chunk_scratch(config, a)
    x, weight = linear.operands(last_input(config, w, a, x), last_weight(config, w))
    runs, losses = target_runs(targets), a["head.losses"]
    if runs is None:
        ops.head_cross_entropy_forward(losses, logits, x, weight, targets)
        return
    x, targets = gathered(x, runs), targets[targets >= 0]
    ops.head_cross_entropy_forward(losses[: len(x)], logits, x, weight, targets)
    scatter(losses, runs)


def target_runs(targets):
    """[(start, stop)] of the rows that have a target, or None if all rows go through the head.

    In a conversation, most targets are masked. On a GPU all rows go through: captured launches have fixed shapes.
    """
    if not isinstance(targets, np.ndarray) or (targets >= 0).all():
        return None
    edges = np.diff(targets >= 0, prepend=False, append=False)
    return np.flatnonzero(edges).reshape(-1, 2).tolist()


def gathered(x, runs):
    """Move the rows of `runs` to the front of x, and return them."""
    n = 0
    for start, stop in runs:
        x[n : n + stop - start] = x[start:stop]
        n += stop - start
    return x[:n]


def scatter(x, runs):
    """Move the first rows of x to where `runs` had them. All others become 0."""
    n, after = sum(stop - start for start, stop in runs), len(x)
    for start, stop in reversed(runs):
        n -= stop - start
        x[start:stop] = x[n : n + stop - start]
        x[stop:after] = 0
        after = start
    x[:after] = 0


def backward(config, w, g, a, dx, x, targets, scale):
    """a["head.losses"] as in forward, and dx = the gradient of scale * sum of losses

    With head "none" x becomes its gradient.
    """
    if config.head == "none":
        ops.softmax_cross_entropy_backward(x, a["head.losses"], x, targets, scale)
        return
    mlp, dweight, losses = config.head == "mlp", last_weight(config, g), a["head.losses"]
    runs = target_runs(targets) if dweight is None and not mlp else None
    if runs is not None:
        x, targets = gathered(x, runs), targets[targets >= 0]
        rows, scratch = slice(0, len(x)), chunk_scratch(config, a)
        ops.head_cross_entropy_backward(
            dx[rows], None, losses[rows], *scratch, x, last_weight(config, w), targets, scale
        )
        scatter(losses, runs)
        scatter(dx, runs)
        return
    ops.head_cross_entropy_backward(
        a["head.dactive"] if mlp else dx,
        dweight,
        losses,
        *chunk_scratch(config, a),
        last_input(config, w, a, x),
        last_weight(config, w),
        targets,
        scale,
    )
    if mlp:
        ops.silu_backward(a["head.hidden"], a["head.dactive"])  # hidden is its gradient from here on
        linear.backward(w, g, a, "head.input", dx, a["head.hidden"], x)
