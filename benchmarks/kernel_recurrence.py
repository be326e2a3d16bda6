"""The dense linear recurrence H_t = U_t + H_(t-1) A, states (T, B, S) and A (S, S); size T x B x S x S.

Operations: 2 T B S^2 forward, 4 T B S^2 backward. All engines walk through time; ours does so in place, and the copy it is given is part of its time.
A step alone is a product of B x S x S: the share says what of the rate of one large product it reaches.
"""

import numpy as np
from kernel_bench import autograd, bench, empty_like, normal, pair, torch

from slm_np import ops
from slm_np.ops.device import kernels_of


def cases(config, batch):
    T, S = config.block_size, config.recurrence_size
    entered, dout, weight = normal(T, batch, S), normal(T, batch, S), normal(S, S) * np.float32(0.3 * S**-0.5)
    states, dstates = np.zeros((2, T + 1, batch, S), np.float32)
    dweight, scratch = empty_like(weight, normal(kernels_of(weight).linear_recurrence_scratch(batch, S)))

    def forward():
        states[1:] = entered
        ops.linear_recurrence_forward(states, scratch, weight)
        return [states[1:]]

    forward()  # backward wants its states

    def backward():
        dstates[1:] = dout
        dweight.fill(0)
        ops.linear_recurrence_backward(dstates, dweight, scratch, states, weight)
        return [dstates[1:], dweight]

    def plain():
        h = np.zeros((T + 1, batch, S), np.float32)
        for t in range(T):
            h[t + 1] = entered[t] + h[t] @ weight
        return [h[1:]]

    kept = states[:-1].reshape(-1, S).copy()

    def plain_backward():
        g, above = np.empty_like(dout), np.zeros((batch, S), np.float32)
        for t in reversed(range(T)):
            above = g[t] = dout[t] + above @ weight.T
        return [g, kept.T @ g.reshape(-1, S)]

    def loop(entered, weight):
        h, found = 0, []
        for step in entered:
            h = step + h @ weight if found else step
            found.append(h)
        return torch.stack(found)

    yield from pair(
        "recurrence",
        f"{T} x {batch} x {S} x {S}",
        "GFLOP/s",
        (2 * T * batch * S * S, 4 * T * batch * S * S),
        (forward, backward),
        (plain, plain_backward),
        autograd(loop, (entered, weight), dout),
    )


if __name__ == "__main__":
    bench(cases)
