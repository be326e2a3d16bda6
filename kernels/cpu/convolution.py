"""The causal depthwise convolution of Mamba, followed by SiLU: each channel has its own filter over the last K tokens.

Sizes: B sequences, T steps, E channels, K taps of a filter. All arrays are flat:

    out, dout, dsums    (B, T, E)
    x                   (B, T, columns), of which the first E columns are the inputs
    past                (B, K - 1, E), the inputs before the first step
    weight, bias        (K, E), (E,)

Loops over channels take a vector of LANES channels at a time.
"""

from .activation import silu_backward_block
from .bfloat16 import convert_block
from .jit import kernel, row
from .math import sigmoid
from .microkernel_f32 import LANES
from .vector import load_some, multiply_add, store_some

STEPS = 64  # time steps of a task: their rows stay in the second-level cache between the filter and SiLU
CHANNELS = 2 * 32  # channels of a task of the filter's backward


@row
def input_offset(b, t, channel, steps, columns, kernel_size, channels):
    """Offset of the input of sequence b at step t and a channel: in `past` if t < 0, else in x."""
    if t < 0:
        return (b * (kernel_size - 1) + t + kernel_size - 1) * channels + channel
    return (b * steps + t) * columns + channel


@row
def filter_row(
    out,
    out_offset,
    x,
    past,
    weight,
    bias,
    b,
    t,
    start,
    stop,
    kernel_size,
    columns,
    channels,
    steps,
):
    """out = bias + sum_k weight[k] x[t - K + 1 + k],   channels start ... stop of step t of sequence b, before SiLU"""
    for j in range(start, stop, LANES):
        n = min(LANES, stop - j)
        value = load_some(bias, j, n)
        for k in range(kernel_size):
            s = t - kernel_size + 1 + k
            offset = input_offset(b, s, j, steps, columns, kernel_size, channels)
            value = multiply_add(
                load_some(weight, k * channels + j, n),
                load_some(past, offset, n) if s < 0 else load_some(x, offset, n),
                value,
            )
        store_some(out, out_offset + j - start, value, n)


@row
def silu_in_place(x):
    for c in range(x.size):
        x[c] *= sigmoid(x[c])


@row
def filter_step(
    out,
    out_offset,
    x,
    past,
    weight,
    bias,
    b,
    start,
    stop,
    kernel_size,
    channels,
):
    """Decode one token of sequence b, with x (B, 2 E), and shift `past` by one step to include it."""
    filter_row(
        out,
        out_offset,
        x,
        past,
        weight,
        bias,
        b,
        0,
        start,
        stop,
        kernel_size,
        2 * channels,
        channels,
        1,
    )
    silu_in_place(out[out_offset : out_offset + stop - start])
    for t in range(1 - kernel_size, 0):
        target = input_offset(b, t, start, 1, 2 * channels, kernel_size, channels)
        source = input_offset(b, t + 1, start, 1, 2 * channels, kernel_size, channels)
        if t < -1:
            convert_block(past[target : target + stop - start], past[source : source + stop - start])
        else:
            convert_block(past[target : target + stop - start], x[source : source + stop - start])


@kernel
def _convolution_forward(
    task,
    out,
    x,
    past,
    weight,
    bias,
    batch,
    steps,
    columns,
    channels,
    kernel_size,
):
    blocks = (steps + STEPS - 1) // STEPS
    b, start = task // blocks, task % blocks * STEPS
    stop = min(steps, start + STEPS)
    for t in range(start, stop):
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
    silu_in_place(out[(b * steps + start) * channels : (b * steps + stop) * channels])


@kernel
def _silu_backward(
    task,
    dsums,
    dout,
    x,
    past,
    weight,
    bias,
    batch,
    steps,
    columns,
    channels,
    kernel_size,
):
    """dsums = dout silu'(sums), where sums, the filters' output, is recomputed."""
    blocks = (steps + STEPS - 1) // STEPS
    b, start = task // blocks, task % blocks * STEPS
    stop = min(steps, start + STEPS)
    for t in range(start, stop):
        filter_row(
            dsums,
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
    part = slice((b * steps + start) * channels, (b * steps + stop) * channels)
    silu_backward_block(dsums[part], dout[part])


@row
def tap_backward(
    dweight,
    dsums,
    x,
    past,
    b,
    k,
    j,
    n,
    kernel_size,
    columns,
    channels,
    steps,
):
    """dweight[k] += sum_t dsums_t x_(t - K + 1 + k) over sequence b,   channels j ... j + n, summed in a register"""
    lag, tap = kernel_size - 1 - k, k * channels + j
    total = load_some(dweight, tap, n)
    for t in range(min(lag, steps)):
        total = multiply_add(
            load_some(dsums, (b * steps + t) * channels + j, n),
            load_some(past, input_offset(b, t - lag, j, steps, columns, kernel_size, channels), n),
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
def input_backward(
    x,
    dbias,
    dsums,
    weight,
    b,
    j,
    n,
    kernel_size,
    columns,
    channels,
    steps,
):
    """dx_t = sum_k weight[k] dsums_(t + K - 1 - k),   dbias += sum_t dsums_t,   channels j ... j + n of sequence b

    dx replaces x.
    """
    total = load_some(dbias, j, n)
    for t in range(steps):
        total = total + load_some(dsums, (b * steps + t) * channels + j, n)
        value = load_some(dbias, j, 0)  # zeros
        for k in range(max(0, t + kernel_size - steps), kernel_size):
            value = multiply_add(
                load_some(weight, k * channels + j, n),
                load_some(dsums, (b * steps + t + kernel_size - 1 - k) * channels + j, n),
                value,
            )
        store_some(x, (b * steps + t) * columns + j, value, n)
    store_some(dbias, j, total, n)


@kernel
def _filter_backward(
    block,
    x,
    dweight,
    dbias,
    dsums,
    past,
    weight,
    batch,
    steps,
    columns,
    channels,
    kernel_size,
):
    """Each task sums the gradients of its filters over sequences and steps in their order."""
    for b in range(batch):
        for j in range(block * CHANNELS, min(channels, block * CHANNELS + CHANNELS), LANES):
            n = min(LANES, channels - j)
            for k in range(kernel_size):
                tap_backward(
                    dweight,
                    dsums,
                    x,
                    past,
                    b,
                    k,
                    j,
                    n,
                    kernel_size,
                    columns,
                    channels,
                    steps,
                )
            input_backward(
                x,
                dbias,
                dsums,
                weight,
                b,
                j,
                n,
                kernel_size,
                columns,
                channels,
                steps,
            )


def convolution_forward(out, x, past, weight, bias):
    batch, (rows, channels) = len(past), out.shape
    _convolution_forward(
        batch * -(-(rows // batch) // STEPS),
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
    sizes = batch, rows // batch, x.shape[1], channels, len(weight)
    x, dweight, dsums, past, weight = (a.reshape(-1) for a in (x, dweight, scratch, past, weight))
    _silu_backward(batch * -(-(rows // batch) // STEPS), dsums, dout.reshape(-1), x, past, weight, bias, *sizes)
    _filter_backward(-(-channels // CHANNELS), x, dweight, dbias, dsums, past, weight, *sizes)
