"""The selective scan, a loop over time. Sizes: B batch, T steps, E channels, S states per channel."""

import numpy as np

from .activation import sigmoid


def selective_scan_chunks(steps):
    return 1  # only the states before and after the window are saved


def selective_scan_scratch(channels, states, tasks):
    return (0,)


def selective_scan_partials(batch, steps, channels, states):
    return 0


def by_time(x, batch):
    """Rows (B T, .) as a view (T, B, .)"""
    return x.reshape(batch, -1, x.shape[1]).swapaxes(0, 1)


def scan(states, x, delta, ssm_parameters, projected, A_log, D):
    """x, gate, B, C by time, d = softplus(delta) and y = <h, C> + D x (T, B, E), and every state h (T + 1, B, S, E)"""
    batch, _, n_states, channels = states.shape
    b, c = ssm_parameters[:, -2 * n_states : -n_states], ssm_parameters[:, -n_states:]
    x, gate, b, c = (by_time(part, batch) for part in (x, projected[:, channels:], b, c))
    d, h, y = np.logaddexp(0, by_time(delta, batch)), [states[:, 0]], D * x
    for t in range(len(x)):
        decay = np.exp(-d[t][:, None] * np.exp(A_log))
        h.append(decay * h[t] + (d[t] * x[t])[:, None] * b[t][:, :, None])  # (B, S, E)
        y[t] += (h[t + 1] * c[t][:, :, None]).sum(1)
    return x, gate, b, c, d, y, h


def selective_scan_forward(out, states, scratch, x, delta, ssm_parameters, projected, A_log, D):
    _, gate, _, _, _, y, h = scan(states, x, delta, ssm_parameters, projected, A_log, D)
    by_time(out, len(states))[...] = y * gate * sigmoid(gate)
    states[:, 1] = h[-1]


def selective_scan_backward(
    dx, delta, dssm_parameters, projected, dA_log, dD, partials, scratch, dout, states, x, ssm_parameters, A_log, D
):
    x, gate, b, c, d, y, h = scan(states, x, delta, ssm_parameters, projected, A_log, D)
    batch, n_states = b.shape[1:]
    db, dc = dssm_parameters[:, -2 * n_states : -n_states], dssm_parameters[:, -n_states:]
    dx, delta, dout, db, dc = (by_time(part, batch) for part in (dx, delta, dout, db, dc))  # views
    s, slope = sigmoid(gate), sigmoid(delta)  # softplus' is the sigmoid
    dy = dout * gate * s
    gate[...] = dout * y * s * (1 + gate * (1 - s))  # dgate
    dh = 0  # (B, S, E): the gradient of h_t, first what later steps give to it
    for t in reversed(range(len(x))):
        decay = np.exp(-d[t][:, None] * np.exp(A_log))
        dh = dh + c[t][:, :, None] * dy[t][:, None]
        dc[t] = (h[t + 1] * dy[t][:, None]).sum(2)
        db[t] = (dh * (d[t] * x[t])[:, None]).sum(2)
        dinput = (dh * b[t][:, :, None]).sum(1)  # (B, E): of d x
        drate = -dh * h[t] * decay * np.exp(A_log)  # (B, S, E): decay = exp(-d e^A_log) by d and, times d, by A_log
        delta[t] = (x[t] * dinput + drate.sum(1)) * slope[t]
        dx[t] = d[t] * dinput + D * dy[t]
        dA_log += (drate * d[t][:, None]).sum(0)
        dh = dh * decay
    dD += (dy * x).sum((0, 1))
