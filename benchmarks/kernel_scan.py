"""Mamba's convolution and selective scan on x (N, E) with S states a channel; size B x T, E of S, or E by K.

Operations of the scan: what its vector instructions would be as a product's, see shapes.py; bytes of the convolution: what must move.
NumPy and PyTorch walk through time, a step of all channels and texts at once. Ours works in place, and the copies it is given are part of its time.
"""

import numpy as np
from kernel_bench import F, autograd, bench, call, empty_like, normal, pair, torch
from shapes import SCAN_BACKWARD, SCAN_FORWARD

from slm_np import ops
from slm_np.ops.device import kernels_of


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def scan_cases(config, batch):
    T, E, S = config.block_size, config.n_inner, config.ssm_state_size
    n = batch * T
    x, delta, selected, projected, dout = (
        normal(n, E),
        normal(n, E) - np.float32(3),
        normal(n, 2 * S),
        normal(n, 2 * E),
        normal(n, E),
    )
    a_log, skip = np.log(np.arange(1, S + 1, dtype=np.float32))[:, None] + np.zeros((S, E), np.float32), normal(E)
    states = np.zeros((batch, kernels_of(x).selective_scan_chunks(T) + 1, S, E), np.float32)
    scratch = np.zeros(kernels_of(x).selective_scan_scratch(E, S, batch), np.float32)
    parts = np.zeros(kernels_of(x).selective_scan_partials(batch, T, E, S), np.float32)
    out, dx, ddelta, dselected, dprojected, da_log, dskip = empty_like(x, x, delta, selected, projected, a_log, skip)
    forward = call(ops.selective_scan_forward, 1, out, states, scratch, x, delta, selected, projected, a_log, skip)
    forward()

    def backward():
        ddelta[:], dprojected[:] = delta, projected
        da_log.fill(0)
        dskip.fill(0)
        ops.selective_scan_backward(
            dx, ddelta, dselected, dprojected, da_log, dskip, parts, scratch, dout, states, x, selected, a_log, skip
        )
        dprojected[:, :E] = 0
        return [dx, ddelta, dselected, dprojected, da_log, dskip]

    def texts(a):
        return a.reshape(batch, T, -1)

    def plain(keep=None):
        step, h, ys, rate = (
            np.logaddexp(np.float32(0), texts(delta)),
            np.zeros((batch, S, E), np.float32),
            [],
            np.exp(a_log),
        )
        enter, leave, gate = texts(selected)[..., :S], texts(selected)[..., S:], texts(projected)[..., E:]
        for t in range(T):
            if keep is not None:
                keep.append(h)
            h = np.exp(-step[:, t, None] * rate) * h + (step[:, t] * texts(x)[:, t])[:, None] * enter[:, t, :, None]
            ys.append(np.einsum("bse,bs->be", h, leave[:, t]))
        if keep is not None:
            keep.append(h)
            keep.append(np.stack(ys, 1))
        return [((np.stack(ys, 1) + skip * texts(x)) * (gate * sigmoid(gate))).reshape(n, E)]

    def plain_backward():
        keep = []
        plain(keep)
        step, rate, enter, leave, gate, up = (
            np.logaddexp(np.float32(0), texts(delta)),
            np.exp(a_log),
            texts(selected)[..., :S],
            texts(selected)[..., S:],
            texts(projected)[..., E:],
            texts(dout),
        )
        s, xs = sigmoid(gate), texts(x)
        dgate, dy = up * (keep[-1] + skip * xs) * s * (1 + gate * (1 - s)), up * gate * s
        grads, dh, da = (
            [np.zeros_like(texts(a)) for a in (x, delta, selected)],
            np.zeros((batch, S, E), np.float32),
            np.zeros_like(a_log),
        )
        for t in reversed(range(T)):
            decay = np.exp(-step[:, t, None] * rate)
            dh = dh + dy[:, t, None] * leave[:, t, :, None]
            grads[2][:, t, S:] = np.einsum("bse,be->bs", keep[t + 1], dy[:, t])
            grads[2][:, t, :S] = np.einsum("bse,be->bs", dh, step[:, t] * xs[:, t])
            dinput, flow = np.einsum("bse,bs->be", dh, enter[:, t]), dh * keep[t] * decay
            grads[0][:, t] = dinput * step[:, t] + dy[:, t] * skip
            grads[1][:, t] = (dinput * xs[:, t] - (flow * rate).sum(1)) * sigmoid(texts(delta)[:, t])
            da -= (flow * step[:, t, None]).sum(0) * rate
            dh = dh * decay
        return [
            *(g.reshape(n, -1) for g in grads),
            np.concatenate((np.zeros_like(dgate), dgate), 2).reshape(n, -1),
            da,
            (dy * xs).sum((0, 1)),
        ]

    def loop(x, delta, selected, projected, a_log, skip):
        x, step, selected, gate = (
            x.view(batch, T, E),
            F.softplus(delta).view(batch, T, E),
            selected.view(batch, T, 2 * S),
            projected.view(batch, T, 2 * E)[..., E:],
        )
        decays = torch.exp(-step[:, :, None] * torch.exp(a_log))
        inputs = (step * x)[:, :, None] * selected[..., :S, None]
        h, ys = torch.zeros(batch, S, E), []
        for decay, entering, leave in zip(decays.unbind(1), inputs.unbind(1), selected[..., S:, None].unbind(1)):
            h = decay * h + entering
            ys.append((h * leave).sum(1))
        return ((torch.stack(ys, 1) + skip * x) * F.silu(gate)).reshape(n, E)

    work = n * E * S
    yield from pair(
        "scan",
        f"{batch} x {T}, {E} of {S}",
        "GFLOP/s",
        (SCAN_FORWARD * work, SCAN_BACKWARD * work),
        (forward, backward),
        (plain, plain_backward),
        autograd(loop, (x, delta, selected, projected, a_log, skip), dout),
    )


def convolution_cases(config, batch):
    T, E, K = config.block_size, config.n_inner, config.conv_kernel
    n = batch * T
    x, weight, bias, dout, past = (
        normal(n, E),
        normal(K, E),
        normal(E),
        normal(n, E),
        np.zeros((batch, K - 1, E), np.float32),
    )
    out, dx, dweight, dbias, down, sums = empty_like(x, x, weight, bias, dout, x)

    def backward():
        dx[:], down[:] = x, dout
        dweight.fill(0)
        dbias.fill(0)
        ops.convolution_backward(dx, dweight, dbias, sums, down, past, weight, bias)
        return [dx, dweight, dbias]

    def seen():
        return np.concatenate((past, x.reshape(batch, T, E)), 1)

    def summed():
        wide = seen()
        return sum(wide[:, k : k + T] * weight[k] for k in range(K)) + bias

    def plain():
        p = summed()
        return [(p * sigmoid(p)).reshape(n, E)]

    def plain_backward():
        p, wide = summed(), seen()
        s = sigmoid(p)
        dp = dout.reshape(batch, T, E) * s * (1 + p * (1 - s))
        dwide = np.zeros_like(wide)
        for k in range(K):
            dwide[:, k : k + T] += dp * weight[k]
        return [
            dwide[:, K - 1 :].reshape(n, E),
            np.stack([(dp * wide[:, k : k + T]).sum((0, 1)) for k in range(K)]),
            dp.sum((0, 1)),
        ]

    def theirs(x, weight, bias):
        wide = F.conv1d(x.view(batch, T, E).transpose(1, 2), weight.T[:, None], bias, padding=K - 1, groups=E)[..., :T]
        return F.silu(wide).transpose(1, 2).reshape(n, E)

    yield from pair(
        "convolution",
        f"{batch} x {T}, {E} by {K}",
        "GB/s",
        (8 * n * E, 16 * n * E),
        (call(ops.convolution_forward, 1, out, x, past, weight, bias), backward),
        (plain, plain_backward),
        autograd(theirs, (x, weight, bias), dout),
    )


def cases(config, batch):
    yield from scan_cases(config, batch)
    yield from convolution_cases(config, batch)


if __name__ == "__main__":
    bench(cases)
