"""Decoding: one token of each text through the whole model in one compiled call, made of the row functions that training's kernels are made of.

A step reads every weight once, so its floor is the weights' bytes over the memory's bandwidth. Starting a loop on the pool of threads costs
microseconds, so a layer has few: one for attention, two for mixers that carry a state, one for the feed-forward. Each is cut into shares that need nothing of each other: a share makes its
columns of the first product, attends or activates there, and multiplies them with its rows of the second. What shares give to the
stream is added up in their order, and their number follows from the model alone: so results do not depend on the number of threads.
A thread makes the columns of all its shares at once, as memory is read fastest in long pieces; a column's sum is the same in any company.
"""

from typing import NamedTuple

import numpy as np
from numba import prange

from .activation import gelu_block, gelu_tanh_block, silu_block, swiglu_row
from .attention import add_times, dot, step_group
from .convolution import filter_step
from .embedding import embedding_row
from .jit import kernel, row
from .math import multiply_add
from .norm import add_to, layernorm_row, rmsnorm_row
from .rotary import rotate_row
from .scan import gate_row, step_states, take_inputs

ABSENT = -1  # an offset of a tensor that the model does not have
PIECES = 128  # rows of the vocabulary's table that a thread takes at a time

# A layer is a line of numbers: what its mixer is, where its state starts in the flat memory of the texts, the columns that it gives, and where
# its tensors start in the flat weights, the mixer's last.
MIXERS = ("attention", "mamba", "recurrence")
ATTENTION, MAMBA, RECURRENCE = range(3)
(
    MIXER,
    STATE,
    COLUMNS,
    MIXER_NORM,
    MIXER_NORM_BIAS,
    FEED_FORWARD_NORM,
    FEED_FORWARD_NORM_BIAS,
    INPUT,
    INPUT_BIAS,
    DOWN,
    DOWN_BIAS,
    TENSORS,
) = range(12)
QKV, QKV_BIAS, OUTPUT, OUTPUT_BIAS = range(TENSORS, TENSORS + 4)
(PROJECT, PROJECT_BIAS, FILTER, FILTER_BIAS, SELECT, STEP, STEP_BIAS, A_LOG, SKIP, BACK, BACK_BIAS) = range(
    TENSORS, TENSORS + 11
)
ENTER, PASS_ON, LEAVE, BESIDE = range(TENSORS, TENSORS + 4)
LINE = TENSORS + 11

NORMS = ("none", "layernorm", "rmsnorm")
NONE, LAYERNORM, RMSNORM = range(3)
ACTIVATIONS = ("none", "silu", "gelu", "gelu-tanh", "swiglu")
_, SILU, GELU, GELU_TANH, SWIGLU = range(5)


class Ends(NamedTuple):
    """Offsets of what lies before and after the layers."""

    embedding: int
    norm: int
    norm_bias: int
    input: int
    input_bias: int
    table: int


class Sizes(NamedTuple):
    """What the loop has to know of a model. steps: T slots of a cache; activation, norm: places in the lists above; shares: of a feed-forward,
    channel_shares, state_shares: of Mamba and of the linear recurrence; logits: whether the last mixer gives them."""

    pieces: int
    steps: int
    heads: int
    kv_heads: int
    shares: int
    norm: int
    activation: int
    rotary: int
    residual: int
    logits: int
    channel_shares: int
    state_shares: int
    states: int
    rank: int
    filter: int


class Buffers(NamedTuple):
    """Scratch of a step for B texts: the stream and its norm (B, D), the columns between, what shares give, flat, (shares, B, columns), scores (K, T),
    Mamba's projection (B, 2 E), its channels (B, E) and what selects (B, R + 2 S), the linear recurrence's states (B, S)."""

    x: np.ndarray
    normed: np.ndarray
    qkv: np.ndarray
    attended: np.ndarray
    hidden: np.ndarray
    active: np.ndarray
    given: np.ndarray
    scores: np.ndarray
    projected: np.ndarray
    inner: np.ndarray
    selected: np.ndarray
    delta: np.ndarray
    steps: np.ndarray
    inputs: np.ndarray
    readout: np.ndarray
    entered: np.ndarray
    entered_active: np.ndarray
    head_hidden: np.ndarray
    head_active: np.ndarray


@row
def add_times4(total, a, b, c, d, w, x, y, z):
    for i in range(total.size):
        total[i] = multiply_add(z[i], d, multiply_add(y[i], c, multiply_add(x[i], b, multiply_add(w[i], a, total[i]))))


@row
def add_product(out, low, high, x, first, last, weights, start, columns):
    """out[:, low:high] += x[:, first:last] W[first:last, low:high],  W's rows of `columns` numbers begin at `start`: a sum of rows, four at a time."""
    n = high - low
    for i in range(first, last - 3, 4):
        w = start + i * columns + low
        for b in range(len(out)):
            add_times4(
                out[b, low:high],
                x[b, i],
                x[b, i + 1],
                x[b, i + 2],
                x[b, i + 3],
                weights[w : w + n],
                weights[w + columns : w + columns + n],
                weights[w + 2 * columns : w + 2 * columns + n],
                weights[w + 3 * columns : w + 3 * columns + n],
            )
    for i in range(last - (last - first) % 4, last):
        w = start + i * columns + low
        for b in range(len(out)):
            add_times(out[b, low:high], weights[w : w + n], x[b, i])


@row
def lay_bias(out, low, high, weights, bias):
    """out[:, low:high] = b"""
    for b in range(len(out)):
        if bias == ABSENT:
            out[b, low:high] = 0
        else:
            out[b, low:high] = weights[bias + low : bias + high]


@row
def product_columns(out, low, high, x, weights, start, columns, bias):
    """out[:, low:high] = x W[:, low:high] + b"""
    lay_bias(out, low, high, weights, bias)
    add_product(out, low, high, x, 0, x.shape[1], weights, start, columns)


@row
def add_rows(out, x, first, last, weights, start):
    """out += x[:, first:last] W[first:last]"""
    add_product(out, 0, out.shape[1], x, first, last, weights, start, out.shape[1])


@row
def product_rows(out, x, first, last, weights, start):
    """out = x[:, first:last] W[first:last]"""
    out[:] = 0
    add_rows(out, x, first, last, weights, start)


@row
def take(x, given, weights, bias):
    """x += what shares give + b"""
    for b in range(len(x)):
        for share in range(len(given)):
            add_to(x[b], given[share, b])
        if bias != ABSENT:
            add_to(x[b], weights[bias : bias + x.shape[1]])


@row
def flat(x):
    return x.reshape(x.size)


@row
def given_of(buffer, shares, batch, columns):
    """What so many shares give, (shares, B, columns)."""
    return buffer[: shares * batch * columns].reshape((shares, batch, columns))


@row
def norm_rows(out, x, kind, weights, weight, bias, eps):
    width = x.shape[1]
    for b in range(len(x)):
        if kind == RMSNORM:
            rmsnorm_row(out, x, b, weights[weight : weight + width], eps)
        elif kind == LAYERNORM:
            offset = max(bias, 0)
            layernorm_row(
                out, x, b, weights[weight : weight + width], weights[offset : offset + width], bias != ABSENT, eps
            )
        else:
            out[b] = x[b]


@row
def activate(out, hidden, b, low, high, kind):
    """Columns low ... high of text b; a gate lies before all the values above it."""
    part, x = out[b, low:high], hidden[b, low:high]
    if kind == SILU:
        silu_block(part, x)
    elif kind == GELU:
        gelu_block(part, x)
    elif kind == GELU_TANH:
        gelu_tanh_block(part, x)
    else:
        swiglu_row(part, x, hidden[b, out.shape[1] + low : out.shape[1] + high])


@kernel
def attention_shares(
    given,
    attended,
    qkv,
    scores,
    x,
    weights,
    places,
    memory,
    heads,
    kv_heads,
    steps,
    rotary,
    cos,
    sin,
    turn,
    slot,
    length,
    threads,
):
    """A share is a key-value head with its queries, of all texts."""
    columns, width, group, one = qkv.shape[1], attended.shape[1] // heads, heads // kv_heads, x.dtype.type(1)
    start, size = places[STATE], len(x) * kv_heads * steps * width
    keys, values = memory[start : start + size], memory[start + size : start + 2 * size]
    for thread in prange(threads):
        low, high = thread * kv_heads // threads, (thread + 1) * kv_heads // threads
        for first, span in ((0, group * width), (heads * width, width), ((heads + kv_heads) * width, width)):
            product_columns(
                qkv, first + low * span, first + high * span, x, weights, places[QKV], columns, places[QKV_BIAS]
            )
        for kv in range(low, high):
            for b in range(len(x)):
                if rotary:
                    rotate_row(qkv, b, kv * group * width, group, cos, sin, turn, one)
                    rotate_row(qkv, b, (heads + kv) * width, 1, cos, sin, turn, one)
                step_group(attended, b, keys, values, qkv, heads, kv_heads, kv, steps, slot, scores[kv, :length])
            product_rows(given[kv], attended, kv * group * width, (kv + 1) * group * width, weights, places[OUTPUT])


@kernel
def mamba_inner_shares(given, inner, projected, x, weights, places, past, size, threads):
    """A share is `step` channels, of all texts: projection, convolution, and what the channels give to the selection."""
    (batch, channels), shares = inner.shape, len(given)
    step = (channels + shares - 1) // shares
    gates, out = flat(projected), flat(inner)
    taps, bias = (
        weights[places[FILTER] : places[FILTER] + size * channels],
        weights[places[FILTER_BIAS] : places[FILTER_BIAS] + channels],
    )
    for thread in prange(threads):
        low, high = thread * shares // threads, (thread + 1) * shares // threads
        first, last = min(channels, low * step), min(channels, high * step)
        for start in (0, channels):
            product_columns(
                projected, start + first, start + last, x, weights, places[PROJECT], 2 * channels, places[PROJECT_BIAS]
            )
        for b in range(batch):
            filter_step(out, b * channels + first, gates, past, taps, bias, b, first, last, size, channels)
        for share in range(low, high):
            product_rows(
                given[share],
                inner,
                min(channels, share * step),
                min(channels, share * step + step),
                weights,
                places[SELECT],
            )


@kernel
def mamba_scan_shares(
    given, out, steps, inputs, delta, selected, inner, projected, weights, places, h, states, rank, threads
):
    """The same shares: time steps, the scan's step, the gate, and what the channels give to the stream."""
    (batch, channels), shares = inner.shape, len(given)
    step = (channels + shares - 1) // shares
    a_log, skip = (
        weights[places[A_LOG] : places[A_LOG] + states * channels],
        weights[places[SKIP] : places[SKIP] + channels],
    )
    flat_gate, flat_x, flat_delta, flat_out = flat(projected), flat(inner), flat(delta), flat(out)
    for thread in prange(threads):
        low, high = thread * shares // threads, (thread + 1) * shares // threads
        first, last = min(channels, low * step), min(channels, high * step)
        lay_bias(delta, first, last, weights, places[STEP_BIAS])
        add_product(delta, first, last, selected, 0, rank, weights, places[STEP], channels)
        for b in range(batch):
            at, width = b * channels + first, last - first
            dt, dtx, y = steps[b, first:last], inputs[b, first:last], flat_delta[at : at + width]
            take_inputs(dt, dtx, flat_delta, flat_x, at, width)
            step_states(y, h, dt, dtx, a_log, selected[b, rank:], b, first, states, channels)
            gate_row(flat_out, at, y, flat_x, skip, flat_gate, (2 * b + 1) * channels + first, first, width)
        for share in range(low, high):
            product_rows(
                given[share],
                out,
                min(channels, share * step),
                min(channels, share * step + step),
                weights,
                places[BACK],
            )


@kernel
def recurrence_state_shares(entered, x, h, weights, places, shares, threads):
    """entered = x B + h A,   a share being some of the states"""
    states = entered.shape[1]
    step = (states + shares - 1) // shares
    for thread in prange(threads):
        first, last = (
            min(states, thread * shares // threads * step),
            min(states, (thread + 1) * shares // threads * step),
        )
        product_columns(entered, first, last, x, weights, places[ENTER], states, ABSENT)
        add_product(entered, first, last, h, 0, states, weights, places[PASS_ON], states)


@row
def enter(h, active, entered, first, last):
    """Some columns of the new states, and their silu."""
    for b in range(len(h)):
        h[b, first:last] = entered[b, first:last]
        silu_block(active[b, first:last], entered[b, first:last])


@kernel
def recurrence_shares(given, active, entered, x, h, weights, places, threads):
    """h = entered,   given = silu(h) C + x D,   a share being some rows of C and some of D"""
    states, width, shares = entered.shape[1], x.shape[1], len(given)
    step, wide = (states + shares - 1) // shares, (width + shares - 1) // shares
    for thread in prange(threads):
        for share in range(thread * shares // threads, (thread + 1) * shares // threads):
            first, last = min(states, share * step), min(states, share * step + step)
            enter(h, active, entered, first, last)
            product_rows(given[share], active, first, last, weights, places[LEAVE])
            add_rows(
                given[share], x, min(width, share * wide), min(width, share * wide + wide), weights, places[BESIDE]
            )


@kernel
def feed_forward_shares(given, active, hidden, x, weights, places, kind, threads):
    """A share is `step` hidden columns, of all texts."""
    width, shares = active.shape[1], len(given)
    step = (width + shares - 1) // shares
    for thread in prange(threads):
        low, high = thread * shares // threads, (thread + 1) * shares // threads
        first, last = min(width, low * step), min(width, high * step)
        for start in range(0, hidden.shape[1], width):  # a gate and the values above it, or one
            product_columns(
                hidden, start + first, start + last, x, weights, places[INPUT], hidden.shape[1], places[INPUT_BIAS]
            )
        for b in range(len(x)):
            activate(active, hidden, b, first, last, kind)
        for share in range(low, high):
            product_rows(
                given[share], active, min(width, share * step), min(width, share * step + step), weights, places[DOWN]
            )


@kernel
def head_hidden_shares(active, hidden, x, weights, start, bias, threads):
    columns = hidden.shape[1]
    for thread in prange(threads):
        low, high = thread * columns // threads, (thread + 1) * columns // threads
        product_columns(hidden, low, high, x, weights, start, columns, bias)
        for b in range(len(x)):
            activate(active, hidden, b, low, high, SILU)


@kernel
def table_products(logits, x, weights, start):
    """logits = x W^T, W a row for each piece"""
    pieces, width = logits.shape[1], x.shape[1]
    for part in prange((pieces + PIECES - 1) // PIECES):
        for v in range(part * PIECES, min(pieces, part * PIECES + PIECES)):
            line = weights[start + v * width : start + v * width + width]
            for b in range(len(x)):
                logits[b, v] = dot(x[b], line)


@row
def decode_head(logits, normed, weights, ends, buffers, threads):
    """Logits (B, V) of the normed stream (B, D)."""
    if ends.input == ABSENT:
        table_products(logits, normed, weights, ends.table)
    else:
        head_hidden_shares(
            buffers.head_active, buffers.head_hidden, normed, weights, ends.input, ends.input_bias, threads
        )
        table_products(logits, buffers.head_active, weights, ends.table)


def step_of(others):
    """The step of models that attend, or of those that have other mixers too: what a model does not have need not be compiled for it."""

    def decode_step(
        logits, memory, buffers, weights, layers, ends, sizes, tokens, place, positions, cos, sin, eps, threads
    ):
        """logits (B, V) after one more token of each text, (B,), at `place`; what mixers keep of the past, in `memory`, takes it in.

        weights: all of the model's, flat.   layers (L, LINE): the lines of numbers.   positions: rows that are added to the embedding, and
        cos, sin those of rotary angles: the row of a place is its remainder by their number, and none is none.
        """
        x, normed, batch = buffers.x, buffers.normed, len(buffers.x)
        embedding = weights[ends.embedding : ends.embedding + sizes.pieces * x.shape[1]].reshape(
            (sizes.pieces, x.shape[1])
        )
        for b in range(len(x)):
            embedding_row(x, b, embedding, tokens[b], positions, place % max(1, len(positions)), len(positions) > 0)
        for layer in range(len(layers)):
            places = layers[layer]
            columns, state = places[COLUMNS], places[STATE]
            norm_rows(normed, x, sizes.norm, weights, places[MIXER_NORM], places[MIXER_NORM_BIAS], eps)
            target = logits if sizes.logits and layer == len(layers) - 1 else x
            if not sizes.residual:
                target[:] = 0
            if others and places[MIXER] == MAMBA:
                channels = buffers.inner.shape[1]
                past = state + batch * sizes.states * channels
                given = given_of(buffers.given, sizes.channel_shares, batch, buffers.selected.shape[1])
                mamba_inner_shares(
                    given,
                    buffers.inner,
                    buffers.projected,
                    normed,
                    weights,
                    places,
                    memory[past : past + batch * (sizes.filter - 1) * channels],
                    sizes.filter,
                    threads,
                )
                buffers.selected[:] = 0
                take(buffers.selected, given, weights, ABSENT)
                given, bias = given_of(buffers.given, sizes.channel_shares, batch, columns), places[BACK_BIAS]
                mamba_scan_shares(
                    given,
                    buffers.readout,
                    buffers.steps,
                    buffers.inputs,
                    buffers.delta,
                    buffers.selected,
                    buffers.inner,
                    buffers.projected,
                    weights,
                    places,
                    memory[state:past],
                    sizes.states,
                    sizes.rank,
                    threads,
                )
            elif others and places[MIXER] == RECURRENCE:
                states = buffers.entered.shape[1]
                h = memory[state : state + batch * states].reshape((batch, states))
                recurrence_state_shares(buffers.entered, normed, h, weights, places, sizes.state_shares, threads)
                given, bias = given_of(buffers.given, sizes.state_shares, batch, columns), ABSENT
                recurrence_shares(given, buffers.entered_active, buffers.entered, normed, h, weights, places, threads)
            else:
                given, bias = given_of(buffers.given, sizes.kv_heads, batch, columns), places[OUTPUT_BIAS]
                attention_shares(
                    given,
                    buffers.attended,
                    buffers.qkv,
                    buffers.scores,
                    normed,
                    weights,
                    places,
                    memory,
                    sizes.heads,
                    sizes.kv_heads,
                    sizes.steps,
                    sizes.rotary,
                    cos,
                    sin,
                    place % max(1, len(cos)),
                    place % sizes.steps,
                    min(place + 1, sizes.steps),
                    threads,
                )
            take(target, given, weights, bias)
            if sizes.activation:
                given = given_of(buffers.given, sizes.shares, batch, x.shape[1])
                norm_rows(
                    normed, x, sizes.norm, weights, places[FEED_FORWARD_NORM], places[FEED_FORWARD_NORM_BIAS], eps
                )
                feed_forward_shares(
                    given, buffers.active, buffers.hidden, normed, weights, places, sizes.activation, threads
                )
                if not sizes.residual:
                    x[:] = 0
                take(x, given, weights, places[DOWN_BIAS])
        if not sizes.logits:
            norm_rows(normed, x, sizes.norm, weights, ends.norm, ends.norm_bias, eps)
            decode_head(logits, normed, weights, ends, buffers, threads)

    return row(decode_step)


attention_step, any_step = step_of(False), step_of(True)


def decode_step(logits, memory, buffers, weights, layers, *rest):
    (attention_step if (layers[:, MIXER] == ATTENTION).all() else any_step)(
        logits, memory, buffers, weights, layers, *rest
    )
