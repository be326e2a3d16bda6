"""Dropout of a tenth where a branch returns to the stream, (N, D).

Bytes: forward reads x and the residual and writes out; backward reads dout and writes dx. Ours draws its mask again, the others keep theirs.
"""

import numpy as np
from kernel_bench import RNG, F, autograd, bench, call, empty_like, normal, pair

from slm_np import ops

SHARE, KEY = 0.1, ops.dropout_key(0)
SCALE = np.float32(1 / (1 - SHARE))


def dropout(x, residual):
    kept = RNG.random(x.shape, np.float32) >= SHARE
    return [x * kept * SCALE + residual, kept]


def cases(config, batch):
    n, d = batch * config.block_size, config.n_embd
    x, residual, dout = normal(n, d), normal(n, d), normal(n, d)
    out, dx = empty_like(x, x)
    kept = dropout(x, residual)[1]
    yield from pair(
        "dropout",
        f"{n} x {d}",
        "GB/s",
        (3 * x.nbytes, 2 * x.nbytes),
        (
            call(ops.dropout_forward, 1, out, x, residual, (SHARE, KEY)),
            call(ops.dropout_backward, 1, dx, dout, (SHARE, KEY)),
        ),
        (lambda: dropout(x, residual)[:1], lambda: [dout * kept * SCALE]),
        autograd(lambda x, residual: F.dropout(x, SHARE) + residual, (x, residual), dout),
    )


if __name__ == "__main__":
    bench(cases)
