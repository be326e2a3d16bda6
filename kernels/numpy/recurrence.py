"""The dense linear recurrence, and its time-major layout. Sizes: T steps, B batch, S state width, D columns."""


def linear_recurrence_scratch(batch, width):
    return 0


def linear_recurrence_forward(states, scratch, weight):
    for t in range(len(states) - 1):  # states (T + 1, B, S)
        states[t + 1] += states[t] @ weight


def linear_recurrence_backward(dstates, scratch, weight):
    for t in reversed(range(len(dstates) - 1)):
        dstates[t] += dstates[t + 1] @ weight.T


def time_major(out, x, start):
    steps, batch, width = out.shape
    out[...] = x.reshape(batch, -1, width)[:, start : start + steps].swapaxes(0, 1)


def batch_major(out, x, residual, start):
    steps, batch, width = x.shape

    def window(rows):
        return rows.reshape(batch, -1, width)[:, start : start + steps]  # (B, T, D), a view

    x = x.swapaxes(0, 1)
    window(out)[...] = x if residual is None else x + window(residual)
