"""Causal attention on qkv (N, (H + 2 K) w), grouped queries where K < H; size B x T, heads H / K of width w.

Operations: of the products over keys no later than the query, two forward and five backward; NumPy computes the upper triangle as well.
"""

import numpy as np
from kernel_bench import F, autograd, bench, call, empty_like, normal, pair
from shapes import attention_operations

from slm_np import ops
from slm_np.ops.device import kernels_of


def cases(config, batch):
    T, H, K, w = config.block_size, config.n_head, config.n_kv_head, config.head_dim
    qkv, dout, above = (
        normal(batch * T, (H + 2 * K) * w),
        normal(batch * T, H * w),
        np.triu(np.full((T, T), -np.inf, np.float32), 1),
    )
    dqkv, out, lse, scratch = empty_like(
        qkv, dout, normal(batch * H, T), normal(*kernels_of(qkv).attention_scratch(T, w, batch * H))
    )

    def groups(x, heads):
        """(N, heads w) as (B, K, heads / K, T, w): the queries of a group beside their key's head."""
        return x.reshape(batch, T, K, heads // K, w).transpose(0, 2, 3, 1, 4)

    def rows(x):
        return x.transpose(0, 3, 1, 2, 4).reshape(batch * T, -1)

    def parts():
        return groups(qkv[:, : H * w], H), groups(qkv[:, H * w : (H + K) * w], K), groups(qkv[:, (H + K) * w :], K)

    def probabilities():
        q, k, _ = parts()
        p = q @ k.swapaxes(3, 4) * np.float32(w**-0.5) + above
        np.exp(p - p.max(4, keepdims=True), out=p)
        p /= p.sum(4, keepdims=True)
        return p

    def forward():
        return [rows(probabilities() @ parts()[2])]

    def backward():
        (q, k, v), grad = parts(), groups(dout, H)
        dp = grad @ v.swapaxes(3, 4)
        ds = kept * (dp - (kept * dp).sum(4, keepdims=True)) * np.float32(w**-0.5)
        dk, dv = ((a.swapaxes(3, 4) @ b).sum(2, keepdims=True) for a, b in ((ds, q), (kept, grad)))
        return [np.concatenate((rows(ds @ k), rows(dk), rows(dv)), 1)]

    def attend(qkv):
        q, k, v = qkv.view(batch, T, -1, w).transpose(1, 2).split((H, K, K), 1)
        return (
            F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=H != K)
            .transpose(1, 2)
            .reshape(batch * T, -1)
        )

    kept, operations = probabilities(), attention_operations(config, batch) / (7 * config.n_layer)
    ours = call(ops.attention_forward, 1, out, lse, scratch, qkv, H, K, T, None)
    ours()  # backward wants its lse

    def ours_backward():
        dqkv[:] = qkv  # it works in place; the copy is part of the time
        ops.attention_backward(dqkv, scratch, dout, out, lse, H, K, T, None)
        return [dqkv]

    yield from pair(
        "attention",
        f"{batch} x {T}, {H}/{K} of {w}",
        "GFLOP/s",
        (2 * operations, 5 * operations),
        (ours, ours_backward),
        (forward, backward),
        autograd(attend, (qkv,), dout),
    )


if __name__ == "__main__":
    bench(cases)
