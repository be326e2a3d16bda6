"""The causal depthwise convolution and its swish, a row of channels at a time: for every channel a filter of its own over the last tokens."""
from numba import prange

from .elementary import sigmoid
from .jit import kernel, row
from .norm import add_to

CHANNELS = 64  # a worker's


@row
def multiply_add_rows(total, x, weight):
    for c in range(total.size):
        total[c] += x[c] * weight[c]


@row
def filter_row(out, x, past, weight, bias, b, t, first, kernel_size, columns, channels, steps):
    """out = bias + sum_k weight[k] x[t - K + 1 + k]: of text b's step t, channels from `first` on, before the swish."""
    width = out.size
    out[:] = bias[first:first + width]
    for k in range(kernel_size):
        s = t - kernel_size + 1 + k
        tap = weight[k * channels + first:k * channels + first + width]
        if s < 0:
            at = (b * (kernel_size - 1) + s + kernel_size - 1) * channels + first
            multiply_add_rows(out, past[at:at + width], tap)
        else:
            at = (b * steps + s) * columns + first
            multiply_add_rows(out, x[at:at + width], tap)


@row
def swish_slope_row(dout, x):
    """dout times swish'(x), in place"""
    one = x.dtype.type(1)
    for c in range(dout.size):
        s = sigmoid(x[c])
        dout[c] *= s * (one + x[c] * (one - s))


@row
def swish_in_place(x):
    for c in range(x.size):
        x[c] *= sigmoid(x[c])


@row
def filter_step(out, x, past, weight, bias, b, first, kernel_size, channels):
    """One token of text b, whose row of x (B, 2 E) is all there is; the past moves up by it."""
    filter_row(out, x, past, weight, bias, b, 0, first, kernel_size, 2 * channels, channels, 1)
    swish_in_place(out)
    width, at = out.size, b * (kernel_size - 1) * channels + first
    for k in range(kernel_size - 2):
        past[at + k * channels:at + k * channels + width] = past[at + (k + 1) * channels:at + (k + 1) * channels + width]
    if kernel_size > 1:
        last = at + (kernel_size - 2) * channels
        past[last:last + width] = x[2 * b * channels + first:2 * b * channels + first + width]


@kernel
def _convolution_forward(out, x, past, weight, bias, batch, steps, columns, channels, kernel_size):
    blocks = (channels + CHANNELS - 1) // CHANNELS
    for task in prange(batch * blocks):
        b, first = task // blocks, task % blocks * CHANNELS
        width = min(CHANNELS, channels - first)
        for t in range(steps):
            at = (b * steps + t) * channels + first
            filter_row(out[at:at + width], x, past, weight, bias, b, t, first, kernel_size, columns, channels, steps)
            swish_in_place(out[at:at + width])


@kernel
def _convolution_backward(x, dweight, dbias, scratch, dout, past, weight, bias, batch, steps, columns, channels, kernel_size):
    for block in prange((channels + CHANNELS - 1) // CHANNELS):  # texts in order, so that filters are summed in order
        first = block * CHANNELS
        width = min(CHANNELS, channels - first)
        line = scratch[first:first + width]
        for b in range(batch):
            for t in range(steps):
                filter_row(line, x, past, weight, bias, b, t, first, kernel_size, columns, channels, steps)
                at = (b * steps + t) * channels + first
                swish_slope_row(dout[at:at + width], line)
                add_to(dbias[first:first + width], dout[at:at + width])
            for s in range(1 - kernel_size, steps):
                line[:] = 0
                at = (b * (kernel_size - 1) + s + kernel_size - 1) * channels + first if s < 0 else (b * steps + s) * columns + first
                seen = past[at:at + width] if s < 0 else x[at:at + width]
                for k in range(kernel_size):
                    t = s + kernel_size - 1 - k
                    if 0 <= t < steps:
                        below, tap = (b * steps + t) * channels + first, slice(k * channels + first, k * channels + first + width)
                        multiply_add_rows(dweight[tap], dout[below:below + width], seen)
                        multiply_add_rows(line, dout[below:below + width], weight[tap])
                if s >= 0:
                    seen[:] = line


def convolution_forward(out, x, past, weight, bias):
    batch, (rows, channels) = len(past), out.shape
    _convolution_forward(out.reshape(-1), x.reshape(-1), past.reshape(-1), weight.reshape(-1), bias, batch, rows // batch, x.shape[1], channels, len(weight))


def convolution_backward(x, dweight, dbias, scratch, dout, past, weight, bias):
    batch, (rows, channels) = len(past), dout.shape
    _convolution_backward(x.reshape(-1), dweight.reshape(-1), dbias, scratch, dout.reshape(-1), past.reshape(-1), weight.reshape(-1), bias, batch, rows // batch,
                          x.shape[1], channels, len(weight))
