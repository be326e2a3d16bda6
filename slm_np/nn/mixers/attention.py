"""Causal multi-head attention as a mixer.

Sizes: B batch, T steps, N = B T, H query heads, K key-value heads, w head width.
"""

from slm_np import ops
from slm_np.nn import linear
from slm_np.nn.arena import Request
from slm_np.nn.parameters import Tensor, matmul_weight
from slm_np.nn.residual import project_backward, project_forward


def widths(config):
    """(H w, (H + 2 K) w): columns of the heads' output, and of queries | keys | values."""
    return config.n_head * config.head_dim, (config.n_head + 2 * config.n_kv_head) * config.head_dim


def parameters(config, columns):
    attended, qkv = widths(config)
    yield matmul_weight(config, "attention.qkv.weight", (config.n_embd, qkv), config.n_embd)
    yield matmul_weight(config, "attention.output.weight", (attended, columns), attended, residual=True)
    if config.bias:
        yield Tensor("attention.qkv.bias", (qkv,), "zeros")
        yield Tensor("attention.output.bias", (columns,), "zeros")


def plan(config, batch, steps, device):
    (attended, qkv), n = widths(config), batch * steps
    scratch = device.kernels.attention_scratch(steps, config.head_dim, batch * config.n_head)
    yield Request("attention.qkv", (n, qkv), "saved", "compute")
    yield Request("attention.heads", (n, attended), "saved", "compute")
    yield Request("attention.lse", (batch * config.n_head, steps), "saved")
    yield Request("attention.dheads", (n, attended), "scratch", "compute")
    yield Request("attention.scores", scratch, "scratch")


def state_elements(config, batch):
    """Elements of a State."""
    return 2 * batch * config.n_kv_head * config.block_size * config.head_dim


class State:
    """The cache: keys and values (B, K, T, w) of the newest T tokens, in a ring."""

    def __init__(self, config, batch, memory):
        self.keys, self.values = memory.reshape(2, batch, config.n_kv_head, config.block_size, config.head_dim)

    def clear(self):
        """Nothing to do: a sequence overwrites the keys and values of the one before."""

    def fill(self, config, qkv, steps):
        """Cache the keys and values of a prompt of `steps` tokens, which starts a new sequence."""
        batch, kv_heads = self.keys.shape[0], config.n_kv_head
        heads = qkv.reshape(batch, steps, config.n_head + 2 * kv_heads, config.head_dim)
        new = heads[:, :, config.n_head :].swapaxes(1, 2)  # (B, 2 K, T, w)
        self.keys[:, :, :steps], self.values[:, :, :steps] = new[:, :kv_heads], new[:, kv_heads:]


def rotated_qkv(config, w, a, x):
    """a["attention.qkv"] = x W + b, its queries and keys rotated by their positions"""
    qkv = a["attention.qkv"]  # (N, (H + 2 K) w)
    linear.forward(w, a, "attention.qkv", qkv, x)
    if config.positions == "rotary":
        ops.rotary_forward(qkv, a["rotary.cos"], a["rotary.sin"], config.n_head + config.n_kv_head)
    return qkv


def forward(config, w, a, out, x, residual, dropout, state=None):
    """out = residual + dropout(attention(x) W + b). With `state`, the keys and values of a prompt enter the cache."""
    qkv, heads, lse, scratch = (
        rotated_qkv(config, w, a, x),
        a["attention.heads"],
        a["attention.lse"],
        a["attention.scores"],
    )
    steps = lse.shape[1]
    ops.attention_forward(heads, lse, scratch, qkv, config.n_head, config.n_kv_head, steps, dropout.inner)
    if state is not None:
        state.fill(config, qkv, steps)
    project_forward(w, a, "attention.output", out, heads, residual, dropout.branch)


def step(config, w, a, out, x, residual, state, position):
    """`forward` of one new token per sequence, which attends to the cache and enters it. x (B, D)"""
    qkv, heads = rotated_qkv(config, w, a, x), a["attention.heads"]
    ops.attention_step(heads, state.keys, state.values, qkv, config.n_head, config.n_kv_head, position)
    project_forward(w, a, "attention.output", out, heads, residual, None)


def backward(config, w, g, a, dx, dout, x, dropout):
    """dx = the gradient of the mixer's input. The queries, keys and values that forward saved become their gradient."""
    qkv, heads, dheads, lse = a["attention.qkv"], a["attention.heads"], a["attention.dheads"], a["attention.lse"]
    dbranch = project_backward(a, dout, dropout.branch)
    linear.backward(w, g, a, "attention.output", dheads, dbranch, heads)
    ops.attention_backward(
        qkv,
        a["attention.scores"],
        dheads,
        heads,
        lse,
        config.n_head,
        config.n_kv_head,
        lse.shape[1],
        dropout.inner,
    )
    if config.positions == "rotary":
        ops.rotary_backward(qkv, a["rotary.cos"], a["rotary.sin"], config.n_head + config.n_kv_head)
    linear.backward(w, g, a, "attention.qkv", dx, qkv, x)
