"""Softmax cross-entropy on logits (N, V), alone and fused with the vocabulary's product, N x D x V; N is one chunk of the head's rows.

"both" is what a training step does: losses and gradients at once. Bytes of the softmax: forward reads the logits, both also puts their
gradient in their place. Operations of the head: 2 N D V forward, 6 N D V both.
"""

import numpy as np
from kernel_bench import RNG, F, autograd, bench, call, empty_like, normal, pair

from slm_np import ops
from slm_np.nn import head

DIRECTIONS = "forward", "both"


def cross_entropy(logits, targets, scale=None):
    rows, top = np.arange(len(logits)), logits.max(1, keepdims=True)
    e = np.exp(logits - top)
    total = e.sum(1, keepdims=True)
    losses = (np.log(total) + top)[:, 0] - logits[rows, targets]
    if scale is None:
        return [losses]
    e *= np.float32(scale) / total
    e[rows, targets] -= np.float32(scale)
    return [e, losses]


def head_backward(x, weight, targets, scale):
    dlogits, losses = cross_entropy(x @ weight.T, targets, scale)
    return [dlogits @ weight, dlogits.T @ x, losses]


def cases(config, batch):
    d, v = head.width(config), config.vocab_size
    n = next(head.plan(config, batch * config.block_size)).shape[0]
    x, weight, logits, targets = (
        normal(n, d),
        normal(v, d) / np.float32(d**0.5),
        normal(n, v),
        RNG.integers(0, v, n).astype(np.int32),
    )
    each, losses, dx, dweight, room = np.full(n, 1 / n, np.float32), *empty_like(x[:, 0], x, weight, logits)

    def both(dlogits, losses):
        ops.softmax_cross_entropy_backward(dlogits, losses, dlogits, targets, 1 / n)

    yield from pair(
        "softmax",
        f"{n} x {v}",
        "GB/s",
        (logits.nbytes, 2 * logits.nbytes),
        (call(ops.softmax_cross_entropy_forward, 1, losses, logits, targets), call(both, 2, logits.copy(), losses)),
        (lambda: cross_entropy(logits, targets), lambda: cross_entropy(logits, targets, 1 / n)),
        autograd(lambda z, t: F.cross_entropy(z, t, reduction="none"), (logits, targets), each, both=True),
        DIRECTIONS,
    )
    yield from pair(
        "head",
        f"{n} x {d} x {v}",
        "GFLOP/s",
        (2 * n * d * v, 6 * n * d * v),
        (
            call(ops.head_cross_entropy_forward, 1, losses, room, x, weight, targets),
            call(ops.head_cross_entropy_backward, 3, dx, dweight, losses, room, room, x, weight, targets, 1 / n),
        ),
        (lambda: cross_entropy(x @ weight.T, targets), lambda: head_backward(x, weight, targets, 1 / n)),
        autograd(
            lambda x, w, t: F.cross_entropy(F.linear(x, w), t, reduction="none"), (x, weight, targets), each, both=True
        ),
        DIRECTIONS,
    )


if __name__ == "__main__":
    bench(cases)
