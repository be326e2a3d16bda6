"""Rotary positions of queries and keys, (N, (H + K) w), turned in place; every shape's heads are turned, whatever its positions.

Bytes: both directions read and write all of x. PyTorch's turned heads are new arrays.
"""

from kernel_bench import autograd, bench, call, normal, pair, torch

from slm_np import ops


def turn(x, cos, sin):
    """Pairs (i, i + w/2) of x (B, T, heads, 2, w/2), in place."""
    a, b = x[..., 0, :], x[..., 1, :]
    a[:], b[:] = a * cos - b * sin, b * cos + a * sin
    return [x]


def cases(config, batch):
    T, heads, w = config.block_size, config.n_head + config.n_kv_head, config.head_dim
    x, dout, cos, sin = normal(batch * T, heads * w), normal(batch * T, heads * w), normal(T, w // 2), normal(T, w // 2)
    ops.rotary_table(cos, sin, config.rope_theta)
    c, s, split = cos[:, None], sin[:, None], (batch, T, heads, 2, w // 2)
    forward, backward = x.copy().reshape(split), dout.copy().reshape(split)

    def in_torch(x):
        a, b = x.view(batch, T, heads, w).chunk(2, -1)
        return torch.cat((a * turns[0] - b * turns[1], b * turns[0] + a * turns[1]), -1)

    turns = torch and (torch.as_tensor(c), torch.as_tensor(s))
    yield from pair(
        "rotary",
        f"{batch * T} x {heads} x {w}",
        "GB/s",
        (2 * x.nbytes, 2 * x.nbytes),
        (
            call(ops.rotary_forward, 1, x.copy(), cos, sin, heads),
            call(ops.rotary_backward, 1, dout.copy(), cos, sin, heads),
        ),
        (lambda: turn(forward, c, s), lambda: turn(backward, c, -s)),
        autograd(in_torch, (x,), dout.reshape(batch, T, heads, w)),
    )


if __name__ == "__main__":
    bench(cases)
