"""The causal depthwise convolution and its silu: for every channel a filter of its own over the last tokens, a vector of channels at a time."""

from numba import prange

from .activation import silu_backward_block
from .jit import kernel, row
from .math import sigmoid
from .microkernel_f32 import LANES
from .vector import load_some, multiply_add, store_some

STEPS = 64  # of a worker's share of a text: its rows stay in the second-level cache between filter and silu
CHANNELS = 2 * 32  # of a worker's share of the filters


@row
def place_of(b, s, first, steps, columns, kernel_size, channels):
    """Where the row of text b's step s lies: before the first step in the past, else in x."""
    return (
        (b * (kernel_size - 1) + s + kernel_size - 1) * channels + first if s < 0 else (b * steps + s) * columns + first
    )


@row
def filter_row(out, at, x, past, weight, bias, b, t, first, last, kernel_size, columns, channels, steps):
    """out = bias + sum_k weight[k] x[t - K + 1 + k]: channels `first` to `last` of text b's step t, before the silu."""
    for j in range(first, last, LANES):
        n = min(LANES, last - j)
        value = load_some(bias, j, n)
        for k in range(kernel_size):
            s = t - kernel_size + 1 + k
            place = place_of(b, s, j, steps, columns, kernel_size, channels)
            value = multiply_add(
                load_some(weight, k * channels + j, n),
                load_some(past, place, n) if s < 0 else load_some(x, place, n),
                value,
            )
        store_some(out, at + j - first, value, n)


@row
def silu_in_place(x):
    for c in range(x.size):
        x[c] *= sigmoid(x[c])


@row
def filter_step(out, at, x, past, weight, bias, b, first, last, kernel_size, channels):
    """One token of text b, whose row of x (B, 2 E) is all there is; the past moves up by it."""
    filter_row(out, at, x, past, weight, bias, b, 0, first, last, kernel_size, 2 * channels, channels, 1)
    silu_in_place(out[at : at + last - first])
    for s in range(1 - kernel_size, 0):
        here, after = (
            place_of(b, s, first, 1, 2 * channels, kernel_size, channels),
            place_of(b, s + 1, first, 1, 2 * channels, kernel_size, channels),
        )
        if s < -1:
            past[here : here + last - first] = past[after : after + last - first]
        else:
            past[here : here + last - first] = x[after : after + last - first]


@kernel
def _convolution_forward(out, x, past, weight, bias, batch, steps, columns, channels, kernel_size):
    blocks = (steps + STEPS - 1) // STEPS
    for task in prange(batch * blocks):
        b, first = task // blocks, task % blocks * STEPS
        last = min(steps, first + STEPS)
        for t in range(first, last):
            filter_row(
                out,
                (b * steps + t) * channels,
                x,
                past,
                weight,
                bias,
                b,
                t,
                0,
                channels,
                kernel_size,
                columns,
                channels,
                steps,
            )
        silu_in_place(out[(b * steps + first) * channels : (b * steps + last) * channels])


@kernel
def _silu_backward(sums, dout, x, past, weight, bias, batch, steps, columns, channels, kernel_size):
    """sums = dout silu' of what the filters gave, which they give again"""
    blocks = (steps + STEPS - 1) // STEPS
    for task in prange(batch * blocks):
        b, first = task // blocks, task % blocks * STEPS
        last = min(steps, first + STEPS)
        for t in range(first, last):
            filter_row(
                sums,
                (b * steps + t) * channels,
                x,
                past,
                weight,
                bias,
                b,
                t,
                0,
                channels,
                kernel_size,
                columns,
                channels,
                steps,
            )
        part = slice((b * steps + first) * channels, (b * steps + last) * channels)
        silu_backward_block(sums[part], dout[part])


@row
def tap_backward(dweight, dsums, x, past, b, k, j, n, kernel_size, columns, channels, steps):
    """dweight[k] += sum_t dsums_t x_(t - K + 1 + k) over a text: `n` channels from j on, whose sum stays in a register."""
    lag, tap = kernel_size - 1 - k, k * channels + j
    total = load_some(dweight, tap, n)
    for t in range(min(lag, steps)):
        total = multiply_add(
            load_some(dsums, (b * steps + t) * channels + j, n),
            load_some(past, place_of(b, t - lag, j, steps, columns, kernel_size, channels), n),
            total,
        )
    for t in range(lag, steps):
        total = multiply_add(
            load_some(dsums, (b * steps + t) * channels + j, n),
            load_some(x, (b * steps + t - lag) * columns + j, n),
            total,
        )
    store_some(dweight, tap, total, n)


@row
def input_backward(x, dbias, dsums, weight, b, j, n, kernel_size, columns, channels, steps):
    """x_t = sum_k weight[k] dsums_(t + K - 1 - k), what each step that saw it gives back,   dbias += sum_t dsums_t: `n` channels of a text from j on."""
    total = load_some(dbias, j, n)
    for t in range(steps):
        total = total + load_some(dsums, (b * steps + t) * channels + j, n)
        value = load_some(dbias, j, 0)
        for k in range(max(0, t + kernel_size - steps), kernel_size):
            value = multiply_add(
                load_some(weight, k * channels + j, n),
                load_some(dsums, (b * steps + t + kernel_size - 1 - k) * channels + j, n),
                value,
            )
        store_some(x, (b * steps + t) * columns + j, value, n)
    store_some(dbias, j, total, n)


@kernel
def _filter_backward(x, dweight, dbias, dsums, past, weight, batch, steps, columns, channels, kernel_size):
    for block in prange(
        (channels + CHANNELS - 1) // CHANNELS
    ):  # texts and steps in order, as filters are summed over them
        for b in range(batch):
            for j in range(block * CHANNELS, min(channels, block * CHANNELS + CHANNELS), LANES):
                n = min(LANES, channels - j)
                for k in range(kernel_size):
                    tap_backward(dweight, dsums, x, past, b, k, j, n, kernel_size, columns, channels, steps)
                input_backward(x, dbias, dsums, weight, b, j, n, kernel_size, columns, channels, steps)


def convolution_forward(out, x, past, weight, bias):
    batch, (rows, channels) = len(past), out.shape
    _convolution_forward(
        out.reshape(-1),
        x.reshape(-1),
        past.reshape(-1),
        weight.reshape(-1),
        bias,
        batch,
        rows // batch,
        x.shape[1],
        channels,
        len(weight),
    )


def convolution_backward(x, dweight, dbias, scratch, dout, past, weight, bias):
    batch, (rows, channels) = len(past), dout.shape
    x, dweight, sums, past, weight, sizes = (
        x.reshape(-1),
        dweight.reshape(-1),
        scratch.reshape(-1),
        past.reshape(-1),
        weight.reshape(-1),
        (batch, rows // batch, x.shape[1], channels, len(weight)),
    )
    _silu_backward(sums, dout.reshape(-1), x, past, weight, bias, *sizes)
    _filter_backward(x, dweight, dbias, sums, past, weight, *sizes)
