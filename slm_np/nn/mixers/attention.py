"""Causal multi-head attention as a mixer. Sizes: B batch, T steps, N = B T, H query heads, K key-value heads, w head width."""

from slm_np import ops
from slm_np.nn.arena import Request
from slm_np.nn.parameters import Tensor, weight
from slm_np.nn.residual import join_backward, join_forward

NAME = "attention"
TENSORS = ("qkv.weight", "qkv.bias", "output.weight", "output.bias")


def widths(config):
    """(H w, (H + 2 K) w): columns of the attended heads, and of queries, keys and values side by side."""
    return config.n_head * config.head_dim, (config.n_head + 2 * config.n_kv_head) * config.head_dim


def parameters(config, columns):
    attended, qkv = widths(config)
    yield weight(config, "attention.qkv.weight", (config.n_embd, qkv), config.n_embd)
    yield weight(config, "attention.output.weight", (attended, columns), attended, residual=True)
    if config.bias:
        yield Tensor("attention.qkv.bias", (qkv,), "zeros")
        yield Tensor("attention.output.bias", (columns,), "zeros")


def plan(config, batch, steps, arrays):
    attended, qkv = widths(config)
    n = batch * steps
    yield Request("attention.qkv", (n, qkv), "saved", "operand")
    yield Request("attention.heads", (n, attended), "saved", "operand")
    yield Request("attention.lse", (batch * config.n_head, steps), "saved")
    yield Request("attention.dheads", (n, attended), "scratch", "operand")
    yield Request(
        "attention.scores",
        kernels_of(arrays.empty(0)).attention_scratch(steps, config.head_dim, batch * config.n_head),
        "scratch",
    )


def state_elements(config, batch):
    """How many numbers a State holds."""
    return 2 * batch * config.n_kv_head * config.block_size * config.head_dim


class State:
    """Keys and values (B, K, T, w) of the tokens seen, in `memory`; the newest T are kept, in a ring."""

    def __init__(self, config, batch, memory):
        self.keys, self.values = memory.reshape(2, batch, config.n_kv_head, config.block_size, config.head_dim)

    def clear(self):
        """Nothing to do: a text's own keys and values take the places of those before."""

    def take(self, config, qkv, steps):
        """Keep the keys and values of a prompt of `steps` tokens, which starts the text."""
        batch, kv, w = self.keys.shape[0], config.n_kv_head, config.head_dim
        kept = qkv.reshape(batch, steps, config.n_head + 2 * kv, w)[:, :, config.n_head :].swapaxes(1, 2)
        self.keys[:, :, :steps], self.values[:, :, :steps] = kept[:, :kv], kept[:, kv:]


def forward(config, w, a, out, x, residual, key, join_key, state=None):
    """out = residual + attention(x) W + b. With `state`, a prompt is kept there."""
    qkv, heads, scores = a["attention.qkv"], a["attention.heads"], a["attention.scores"]
    steps = a["attention.lse"].shape[1]
    ops.linear_forward(qkv, x, w["attention.qkv.weight"], w.get("attention.qkv.bias"), None)
    if config.positions == "rotary":
        ops.rotary_forward(qkv, a["rotary.cos"], a["rotary.sin"], config.n_head + config.n_kv_head)
    ops.attention_forward(
        heads,
        a["attention.lse"],
        scores,
        qkv,
        config.n_head,
        config.n_kv_head,
        steps,
        config.dropout if key is not None else 0.0,
        0 if key is None else key,
    )
    if state is not None:
        state.take(config, qkv, steps)
    join_forward(config, w, a, "attention.output", out, heads, residual, join_key)


def backward(config, w, g, a, dx, dout, x, key, join_key):
    """dx = the gradient of the mixer's input. The queries, keys and values that forward saved become their gradient."""
    qkv, heads, dheads = a["attention.qkv"], a["attention.heads"], a["attention.dheads"]
    dbranch = join_backward(config, a, dout, join_key)
    ops.linear_backward(
        dheads,
        g["attention.output.weight"],
        g.get("attention.output.bias"),
        dbranch,
        heads,
        w["attention.output.weight"],
    )
    ops.attention_backward(
        qkv,
        a["attention.scores"],
        dheads,
        heads,
        a["attention.lse"],
        config.n_head,
        config.n_kv_head,
        a["attention.lse"].shape[1],
        config.dropout if key is not None else 0.0,
        0 if key is None else key,
    )
    if config.positions == "rotary":
        ops.rotary_backward(qkv, a["rotary.cos"], a["rotary.sin"], config.n_head + config.n_kv_head)
    ops.linear_backward(dx, g["attention.qkv.weight"], g.get("attention.qkv.bias"), qkv, x, w["attention.qkv.weight"])
