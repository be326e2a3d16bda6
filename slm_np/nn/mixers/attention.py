"""Causal multi-head attention as a mixer.

Sizes: B batch, T steps, N = B T, H query heads, K key-value heads, w head width.
"""

from typing import NamedTuple

from slm_np import ops
from slm_np.nn import linear
from slm_np.nn.arena import Request
from slm_np.nn.mixers import mimetic
from slm_np.nn.parameters import Tensor, matmul_weight
from slm_np.nn.residual import project_backward, project_forward


def widths(config):
    """(H w, (H + 2 K) w): columns of the heads' output, and of queries | keys | values."""
    return config.n_head * config.head_dim, (config.n_head + 2 * config.n_kv_head) * config.head_dim


def parameters(config, columns):
    attended, qkv = widths(config)
    weights = (
        matmul_weight(config, "attention.qkv.weight", (config.n_embd, qkv), config.n_embd),
        matmul_weight(config, "attention.output.weight", (attended, columns), attended, residual=True),
    )
    yield from mimetic.copying(config, *weights) if config.init == "mimetic" else weights
    if config.has_qkv_bias:
        yield Tensor("attention.qkv.bias", (qkv,), "zeros")
    if config.bias:
        yield Tensor("attention.output.bias", (columns,), "zeros")
    if config.qk_norm:
        yield Tensor("attention.q_norm.weight", (config.head_dim,), "ones")
        yield Tensor("attention.k_norm.weight", (config.head_dim,), "ones")


def plan(config, batch, steps, device):
    (attended, qkv), n = widths(config), batch * steps
    scratch = device.kernels.attention_scratch(steps, config.head_dim, batch * config.n_head)
    yield Request("attention.qkv", (n, qkv), "saved", "compute")
    yield Request("attention.heads", (n, attended), "saved", "compute")
    yield Request("attention.lse", (batch * config.n_head, steps), "saved")
    if config.qk_norm:
        yield Request("attention.normed", (n, qkv), "scratch", "compute")
        yield Request("attention.rstd", (n, config.n_head + config.n_kv_head), "scratch")
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


class Attention(NamedTuple):
    """The mixer of the letters A, L and N, which differ in two settings.

    rotates  whether rotary positions rotate its queries and keys
    local    whether a token attends to the newest `window` tokens only
    """

    rotates: bool = True
    local: bool = False

    parameters, plan = staticmethod(parameters), staticmethod(plan)
    state_elements, State = staticmethod(state_elements), State

    def rotation(self, config, a):
        """The arguments of `rotary_forward` after x; None without rotation."""
        if config.positions != "rotary" or not self.rotates:
            return None
        return a["rotary.cos"], a["rotary.sin"], config.n_head + config.n_kv_head, config.head_dim

    def seen(self, config):
        """(window, scale) of the scores, as `attention_forward` takes them."""
        return config.window if self.local else 0, config.score_scale or None

    def prepared(self, config, w, a):
        """Queries, keys and values as attention reads them: queries and keys normed and rotated by their positions.

        The norm does not change a["attention.qkv"], so that backward can call this again. Without the norm, the
        rotation is in place.
        """
        qkv = a["attention.qkv"]
        if config.qk_norm:
            raw, qkv = qkv, a["attention.normed"]
            weights = w["attention.q_norm.weight"], w["attention.k_norm.weight"]
            heads = config.n_head, config.n_kv_head
            ops.head_norm_forward(qkv, a["attention.rstd"], raw, *weights, *heads, config.norm_eps)
        if rotation := self.rotation(config, a):
            ops.rotary_forward(qkv, *rotation)
        return qkv

    def projected(self, config, w, a, x):
        """`prepared` of x W + b."""
        linear.forward(w, a, "attention.qkv", a["attention.qkv"], x)  # (N, (H + 2 K) w)
        return self.prepared(config, w, a)

    def forward(self, config, w, a, out, x, residual, dropout, state=None):
        """out = residual + dropout(attention(x) W + b). With `state`, a prompt's keys and values enter the cache."""
        qkv, heads, lse = self.projected(config, w, a, x), a["attention.heads"], a["attention.lse"]
        steps, scratch = lse.shape[1], a["attention.scores"]
        ops.attention_forward(
            heads,
            lse,
            scratch,
            qkv,
            config.n_head,
            config.n_kv_head,
            steps,
            dropout.inner,
            *self.seen(config),
        )
        if state is not None:
            state.fill(config, qkv, steps)
        project_forward(w, a, "attention.output", out, heads, residual, dropout.branch)

    def step(self, config, w, a, out, x, residual, state, position):
        """`forward` of one new token per sequence, which attends to the cache and enters it. x (B, D)"""
        qkv, heads = self.projected(config, w, a, x), a["attention.heads"]
        ops.attention_step(
            heads,
            state.keys,
            state.values,
            qkv,
            config.n_head,
            config.n_kv_head,
            position,
            *self.seen(config),
        )
        project_forward(w, a, "attention.output", out, heads, residual, None)

    def backward(self, config, w, g, a, dx, dout, x, dropout):
        """dx = the gradient of the mixer's input. Saved queries, keys and values become their gradients."""
        heads, dheads, lse = a["attention.heads"], a["attention.dheads"], a["attention.lse"]
        dbranch = project_backward(a, dout, dropout.branch)
        linear.backward(w, g, a, "attention.output", dheads, dbranch, heads)
        qkv = self.prepared(config, w, a) if config.qk_norm else a["attention.qkv"]
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
            *self.seen(config),
        )
        if rotation := self.rotation(config, a):
            ops.rotary_backward(qkv, *rotation)
        if config.qk_norm:
            dqkv, qkv = qkv, a["attention.qkv"]
            ops.head_norm_backward(
                qkv,
                g["attention.q_norm.weight"],
                g["attention.k_norm.weight"],
                dqkv,
                w["attention.q_norm.weight"],
                w["attention.k_norm.weight"],
                a["attention.rstd"],
                config.n_head,
                config.n_kv_head,
            )
        linear.backward(w, g, a, "attention.qkv", dx, qkv, x)
