"""Decoding: one new token of each sequence through the whole model in one compiled call.

This is the fast version of `slm_np/inference/generic_step.py`. It calls the same row functions as the training kernels.

A step reads every weight once, so its lower bound is the bytes of the weights divided by the memory bandwidth. Starting
a parallel loop costs microseconds, so a layer has few: one for attention, two for a mixer with a recurrent state, one
for the feed-forward. Each loop consists of independent splits. A split computes its columns of the first matmul,
applies attention or the activation to them, and multiplies them with its rows of the second matmul. The partial sums of
all splits are added in their order, and the number of splits depends on the model alone, so the result does not depend
on the number of threads. A thread computes the columns of all its splits at once, because long reads are fastest. The
value of a column does not depend on the columns computed with it.

Sizes: B sequences, D width, V vocabulary, H query heads, K key-value heads, w head width, T slots of the cache,
F hidden width, E channels, S states, R rank of the time steps, P splits.
"""

from typing import NamedTuple

import numpy as np

from .activation import gelu_block, gelu_tanh_block, silu_block, swiglu_row
from .attention import add_times, dot, step_group
from .bfloat16 import convert_block
from .convolution import filter_step
from .embedding import embedding_row
from .jit import entry, inlined, loop, row
from .math import multiply_add
from .norm import add_to, head_norm, layernorm_row, rmsnorm_row
from .rotary import rotate_row
from .scan import decode_states, gate_row, time_step_row

# The parameters that the step supports, by their names in the model: those of a layer, and those outside the layers. A
# model with any other parameter is decoded by the generic step.
LAYER_TENSORS = (
    "mixer_norm.weight",
    "mixer_norm.bias",
    "attention.qkv.weight",
    "attention.qkv.bias",
    "attention.output.weight",
    "attention.output.bias",
    "attention.q_norm.weight",
    "attention.k_norm.weight",
    "mamba.in_proj.weight",
    "mamba.in_proj.bias",
    "mamba.conv1d.weight",
    "mamba.conv1d.bias",
    "mamba.x_proj.weight",
    "mamba.dt_proj.weight",
    "mamba.dt_proj.bias",
    "mamba.A_log",
    "mamba.D",
    "mamba.out_proj.weight",
    "mamba.out_proj.bias",
    "recurrence.input.weight",
    "recurrence.state.weight",
    "recurrence.output.weight",
    "recurrence.skip.weight",
    "feed_forward_norm.weight",
    "feed_forward_norm.bias",
    "feed_forward.input.weight",
    "feed_forward.input.bias",
    "feed_forward.output.weight",
    "feed_forward.output.bias",
)
MODEL_TENSORS = (
    "embedding.weight",
    "positions.weight",
    "norm.weight",
    "norm.bias",
    "head.input.weight",
    "head.input.bias",
    "head.weight",
)
MIXER_TENSORS = "attention.qkv.weight", "mamba.in_proj.weight", "recurrence.state.weight"  # a layer's mixer has one
LETTERS = "ALNMS"  # the mixers of --pattern
NORMS = ("none", "layernorm", "rmsnorm")
ACTIVATIONS = ("none", "silu", "gelu", "gelu-tanh", "swiglu")
NO_NORM, LAYERNORM, RMSNORM = range(3)
NO_FEED_FORWARD, SILU, GELU, GELU_TANH, SWIGLU = range(5)
ABSENT = -1  # the start of a tensor that the model or the layer does not have
VOCABULARY_ROWS = 128  # rows of the output embedding per task


def field(name):
    """The field of a parameter: attention.qkv.weight becomes attention_qkv_weight."""
    return name.replace(".", "_")


# The start of each tensor in the flat weights. `state` is the start of the mixer's state in the memory of the states,
# `rotates` whether rotary positions rotate its queries and keys, `window` how many tokens attention sees, at most T.
LAYER = np.dtype([(name, np.int64) for name in ("state", "rotates", "window", *map(field, LAYER_TENSORS))])
Tensors = NamedTuple("Tensors", [(field(name), int) for name in MODEL_TENSORS])


class Sizes(NamedTuple):
    """Settings that do not follow from the shapes of the buffers. norm, activation: indices into NORMS and ACTIVATIONS.

    hidden_splits, channel_splits, state_splits: splits of the feed-forward, of Mamba, of the linear recurrence.
    parallel: whether mixer and feed-forward read the same hidden state. head: whether there is one; otherwise the last
    mixer computes the logits.
    """

    vocab_size: int
    block_size: int
    n_head: int
    n_kv_head: int
    ssm_state_size: int
    time_step_rank: int
    conv_kernel: int
    norm: int
    activation: int
    residual: int
    parallel: int
    head: int
    hidden_splits: int
    channel_splits: int
    state_splits: int


class Buffers(NamedTuple):
    """Scratch of a step."""

    x: np.ndarray  # (B, D), the residual branch
    normed: np.ndarray  # (B, D)
    parallel_normed: np.ndarray  # (B, D), the feed-forward's input in a parallel block
    partials: np.ndarray  # flat, at least (P, B, columns) of every part of a layer
    qkv: np.ndarray  # (B, (H + 2 K) w)
    heads: np.ndarray  # (B, H w)
    scores: np.ndarray  # (K, T)
    projected: np.ndarray  # (B, 2 E), Mamba's channels | gates
    channels: np.ndarray  # (B, E), after the convolution
    ssm_parameters: np.ndarray  # (B, R + 2 S)
    delta: np.ndarray  # (B, E)
    time_steps: np.ndarray  # (B, E)
    scan_inputs: np.ndarray  # (B, E)
    scan_out: np.ndarray  # (B, E)
    states: np.ndarray  # (B, S) of the linear recurrence
    states_active: np.ndarray  # (B, S)
    hidden: np.ndarray  # (B, F), or (B, 2 F) with gates
    active: np.ndarray  # (B, F)
    head_hidden: np.ndarray  # (B, head's hidden width)
    head_active: np.ndarray  # the same


# Tensors and matmuls


@row
def flat(x):
    return x.reshape(x.size)


@row
def matrix(weights, start, rows, columns):
    """The tensor (rows, columns) at `start` in the flat weights."""
    return weights[start : start + rows * columns].reshape((rows, columns))


@row
def vector(weights, start, size):
    """The tensor (size,) at `start`, or an empty one if it is absent."""
    return weights[:0] if start == ABSENT else weights[start : start + size]


@row
def partial_sums(buffer, splits, batch, columns):
    """The first elements of a buffer as (P, B, columns)."""
    return buffer[: splits * batch * columns].reshape((splits, batch, columns))


@row
def add_times4(
    total,
    a,
    b,
    c,
    d,
    w,
    x,
    y,
    z,
):
    """total += a w + b x + c y + d z"""
    for i in range(total.size):
        total[i] = multiply_add(z[i], d, multiply_add(y[i], c, multiply_add(x[i], b, multiply_add(w[i], a, total[i]))))


@row
def add_matmul(out, left, right, x, start, stop, weight):
    """out[:, left:right] += x[:, start:stop] W[start:stop, left:right],   four rows of W at a time"""
    whole = stop - (stop - start) % 4
    for i in range(start, whole, 4):
        for b in range(len(out)):
            add_times4(
                out[b, left:right],
                x[b, i],
                x[b, i + 1],
                x[b, i + 2],
                x[b, i + 3],
                weight[i, left:right],
                weight[i + 1, left:right],
                weight[i + 2, left:right],
                weight[i + 3, left:right],
            )
    for i in range(whole, stop):
        for b in range(len(out)):
            add_times(out[b, left:right], weight[i, left:right], x[b, i])


@row
def prefill_bias(out, left, right, bias):
    """out[:, left:right] = b, or 0 without a bias"""
    for b in range(len(out)):
        if bias.size:
            convert_block(out[b, left:right], bias[left:right])
        else:
            out[b, left:right] = 0


@row
def matmul_columns(out, left, right, x, weight, bias):
    """out[:, left:right] = x W[:, left:right] + b"""
    prefill_bias(out, left, right, bias)
    add_matmul(out, left, right, x, 0, x.shape[1], weight)


@row
def matmul_rows(out, x, start, stop, weight):
    """out = x[:, start:stop] W[start:stop]"""
    out[:] = 0
    add_matmul(out, 0, out.shape[1], x, start, stop, weight)


@row
def add_partials(x, partials, bias):
    """x += sum of the partials (P, B, columns) + b"""
    for b in range(len(x)):
        for split in range(len(partials)):
            add_to(x[b], partials[split, b])
        if bias.size:
            add_to(x[b], bias)


@row
def split_range(split, splits, size):
    """(start, stop) of a split of `size` columns; the last splits may be empty."""
    length = (size + splits - 1) // splits
    return min(size, split * length), min(size, split * length + length)


# Parts of a layer. Each loop has one task per thread, which takes an equal share of the splits.


@row
def norm_rows(out, x, kind, weight, bias, eps):
    for b in range(len(x)):
        if kind == RMSNORM:
            rmsnorm_row(out, x, b, weight, eps)
        elif kind == LAYERNORM:
            layernorm_row(out, x, b, weight, bias if bias.size else weight, bias.size > 0, eps)
        else:
            convert_block(out[b], x[b])


@row
def activate(out, hidden, b, left, right, kind):
    """out[b, left:right] = activation(hidden[b, left:right]);   for SwiGLU hidden is gates | values"""
    part, x = out[b, left:right], hidden[b, left:right]
    if kind == SILU:
        silu_block(part, x)
    elif kind == GELU:
        gelu_block(part, x)
    elif kind == GELU_TANH:
        gelu_tanh_block(part, x)
    else:
        swiglu_row(part, x, hidden[b, out.shape[1] + left : out.shape[1] + right])


@loop
def attention_loop(
    thread,
    partials,
    heads,
    qkv,
    scores,
    x,
    qkv_weight,
    qkv_bias,
    q_norm,
    k_norm,
    eps,
    output_weight,
    keys,
    values,
    n_head,
    n_kv_head,
    block_size,
    cos,
    sin,
    rotates,
    position,
    window,
    scale,
    threads,
):
    """partials = attention(x) W.   A split is a key-value head with its query heads.

    q_norm, k_norm: weights of the norms of heads, empty without. keys, values: the cache, flat.
    cos, sin: rows of angles, as in `decode_step`, without columns if there are no rotary positions.
    """
    width, group, one = heads.shape[1] // n_head, n_head // n_kv_head, x.dtype.type(1)
    angle = position % max(1, len(cos))
    start, stop = thread * n_kv_head // threads, (thread + 1) * n_kv_head // threads
    for first, span in ((0, group * width), (n_head * width, width), ((n_head + n_kv_head) * width, width)):
        matmul_columns(qkv, first + start * span, first + stop * span, x, qkv_weight, qkv_bias)
    for kv in range(start, stop):
        for b in range(len(x)):
            for i in range(group + 1):  # the queries of the group, and their key
                head, weight = (kv * group + i, q_norm) if i < group else (n_head + kv, k_norm)
                if weight.size:
                    head_norm(qkv, qkv, b, head * width, weight, eps)
                if rotates:
                    rotate_row(qkv, b, head * width, 1, width, cos, sin, angle, one)
            step_group(
                heads,
                b,
                keys,
                values,
                qkv,
                n_head,
                n_kv_head,
                kv,
                block_size,
                position,
                window,
                scores[kv],
                x.dtype.type(scale),
            )
        matmul_rows(partials[kv], heads, kv * group * width, (kv + 1) * group * width, output_weight)


@loop
def mamba_projection_loop(
    thread,
    partials,
    channels,
    projected,
    x,
    in_weight,
    in_bias,
    conv_weight,
    conv_bias,
    x_weight,
    past,
    conv_kernel,
    threads,
):
    """channels = convolution(x W_in),   partials = channels W_x.   A split is a range of channels."""
    (batch, width), splits = channels.shape, len(partials)
    flat_channels, flat_projected = flat(channels), flat(projected)
    first, last = thread * splits // threads, (thread + 1) * splits // threads
    start, stop = split_range(first, splits, width)[0], split_range(last, splits, width)[0]
    for offset in (0, width):
        matmul_columns(projected, offset + start, offset + stop, x, in_weight, in_bias)
    for b in range(batch):
        filter_step(
            flat_channels,
            b * width + start,
            flat_projected,
            past,
            conv_weight,
            conv_bias,
            b,
            start,
            stop,
            conv_kernel,
            width,
        )
    for split in range(first, last):
        start, stop = split_range(split, splits, width)
        matmul_rows(partials[split], channels, start, stop, x_weight)


@loop
def mamba_scan_loop(
    thread,
    partials,
    scan_out,
    time_steps,
    scan_inputs,
    delta,
    ssm_parameters,
    channels,
    projected,
    dt_weight,
    dt_bias,
    A_log,
    D,
    out_weight,
    h,
    ssm_state_size,
    threads,
):
    """scan_out = one step of the scan, gated,   partials = scan_out W_out.   A split is a range of channels.

    h: the states (B, S, E), flat.
    """
    (batch, width), splits, rank = channels.shape, len(partials), len(dt_weight)
    gates, flat_channels, flat_delta, flat_out = flat(projected), flat(channels), flat(delta), flat(scan_out)
    first, last = thread * splits // threads, (thread + 1) * splits // threads
    start, stop = split_range(first, splits, width)[0], split_range(last, splits, width)[0]
    prefill_bias(delta, start, stop, dt_bias)
    add_matmul(delta, start, stop, ssm_parameters, 0, rank, dt_weight)
    for b in range(batch):
        offset, n = b * width + start, stop - start
        dt, dtx, y = time_steps[b, start:stop], scan_inputs[b, start:stop], flat_delta[offset : offset + n]
        time_step_row(dt, dtx, flat_delta, flat_channels, offset, n)
        decode_states(
            y,
            h,
            dt,
            dtx,
            A_log,
            ssm_parameters[b, rank:],
            b,
            start,
            ssm_state_size,
            width,
        )
        gate_row(
            flat_out,
            offset,
            y,
            flat_channels,
            D,
            gates,
            (2 * b + 1) * width + start,
            start,
            n,
        )
    for split in range(first, last):
        start, stop = split_range(split, splits, width)
        matmul_rows(partials[split], scan_out, start, stop, out_weight)


@loop
def recurrence_state_loop(thread, states, x, h, input_weight, state_weight, splits, threads):
    """states = x B + h A.   A split is a range of columns."""
    width, no_bias = states.shape[1], flat(state_weight)[:0]
    start = split_range(thread * splits // threads, splits, width)[0]
    stop = split_range((thread + 1) * splits // threads, splits, width)[0]
    matmul_columns(states, start, stop, x, input_weight, no_bias)
    add_matmul(states, start, stop, h, 0, width, state_weight)


@row
def update_state(h, active, states, start, stop):
    """Columns start ... stop of h = states, and of active = silu(states)"""
    for b in range(len(h)):
        convert_block(h[b, start:stop], states[b, start:stop])
        silu_block(active[b, start:stop], states[b, start:stop])


@loop
def recurrence_output_loop(thread, partials, active, states, x, h, output_weight, skip_weight, threads):
    """h = states,   partials = silu(h) C + x D.   A split is a range of rows of C and one of D."""
    splits = len(partials)
    for split in range(thread * splits // threads, (thread + 1) * splits // threads):
        start, stop = split_range(split, splits, states.shape[1])
        update_state(h, active, states, start, stop)
        matmul_rows(partials[split], active, start, stop, output_weight)
        start, stop = split_range(split, splits, x.shape[1])
        add_matmul(partials[split], 0, partials.shape[2], x, start, stop, skip_weight)


@loop
def feed_forward_loop(
    thread,
    partials,
    active,
    hidden,
    x,
    input_weight,
    input_bias,
    output_weight,
    activation,
    threads,
):
    """partials = activation(x W1 + b1) W2.   A split is a range of hidden columns."""
    width, splits = active.shape[1], len(partials)
    first, last = thread * splits // threads, (thread + 1) * splits // threads
    start, stop = split_range(first, splits, width)[0], split_range(last, splits, width)[0]
    for offset in range(0, hidden.shape[1], width):  # gates and values, or one of them
        matmul_columns(hidden, offset + start, offset + stop, x, input_weight, input_bias)
    for b in range(len(x)):
        activate(active, hidden, b, start, stop, activation)
    for split in range(first, last):
        start, stop = split_range(split, splits, width)
        matmul_rows(partials[split], active, start, stop, output_weight)


@loop
def head_hidden_loop(thread, active, hidden, x, weight, bias, threads):
    """active = silu(x W + b)"""
    width = hidden.shape[1]
    start, stop = thread * width // threads, (thread + 1) * width // threads
    matmul_columns(hidden, start, stop, x, weight, bias)
    for b in range(len(x)):
        activate(active, hidden, b, start, stop, SILU)


@loop
def logits_loop(task, logits, x, weight):
    """logits = x W^T        weight (V, width)"""
    vocab_size = len(weight)
    for v in range(task * VOCABULARY_ROWS, min(vocab_size, (task + 1) * VOCABULARY_ROWS)):
        for b in range(len(x)):
            logits[b, v] = dot(x[b], weight[v])


# The step


@inlined
def head(logits, normed, weights, tensors, buffers, threads):
    """Logits (B, V) of the normed hidden state (B, D)."""
    x = normed
    if tensors.head_input_weight != ABSENT:
        hidden = buffers.head_hidden
        weight = matrix(weights, tensors.head_input_weight, normed.shape[1], hidden.shape[1])
        bias = vector(weights, tensors.head_input_bias, hidden.shape[1])
        x = buffers.head_active
        head_hidden_loop(threads, x, hidden, normed, weight, bias, threads)
    tasks = (logits.shape[1] + VOCABULARY_ROWS - 1) // VOCABULARY_ROWS
    logits_loop(tasks, logits, x, matrix(weights, tensors.head_weight, logits.shape[1], x.shape[1]))


@inlined
def attention(
    out,
    x,
    weights,
    layer,
    memory,
    buffers,
    sizes,
    position,
    cos,
    sin,
    eps,
    scale,
    threads,
):
    """out += attention(x); stores the new keys and values in the cache"""
    qkv, heads, columns, width = buffers.qkv, buffers.heads, out.shape[1], buffers.heads.shape[1] // sizes.n_head
    size = len(x) * sizes.n_kv_head * sizes.block_size * width
    partials = partial_sums(buffers.partials, sizes.n_kv_head, len(x), columns)
    attention_loop(
        threads,
        partials,
        heads,
        qkv,
        buffers.scores,
        x,
        matrix(weights, layer.attention_qkv_weight, x.shape[1], qkv.shape[1]),
        vector(weights, layer.attention_qkv_bias, qkv.shape[1]),
        vector(weights, layer.attention_q_norm_weight, width),
        vector(weights, layer.attention_k_norm_weight, width),
        eps,
        matrix(weights, layer.attention_output_weight, heads.shape[1], columns),
        memory[layer.state : layer.state + size],
        memory[layer.state + size : layer.state + 2 * size],
        sizes.n_head,
        sizes.n_kv_head,
        sizes.block_size,
        cos,
        sin,
        layer.rotates,
        position,
        layer.window,
        scale,
        threads,
    )
    add_partials(out, partials, vector(weights, layer.attention_output_bias, columns))


@inlined
def mamba(out, x, weights, layer, memory, buffers, sizes, threads):
    """out += mamba(x); updates the state"""
    channels, projected, ssm_parameters = buffers.channels, buffers.projected, buffers.ssm_parameters
    (batch, width), columns, rank = channels.shape, out.shape[1], sizes.time_step_rank
    past = layer.state + batch * sizes.ssm_state_size * width  # the convolution's inputs follow the scan's states
    partials = partial_sums(buffers.partials, sizes.channel_splits, batch, ssm_parameters.shape[1])
    mamba_projection_loop(
        threads,
        partials,
        channels,
        projected,
        x,
        matrix(weights, layer.mamba_in_proj_weight, x.shape[1], 2 * width),
        vector(weights, layer.mamba_in_proj_bias, 2 * width),
        vector(weights, layer.mamba_conv1d_weight, sizes.conv_kernel * width),
        vector(weights, layer.mamba_conv1d_bias, width),
        matrix(weights, layer.mamba_x_proj_weight, width, ssm_parameters.shape[1]),
        memory[past : past + batch * (sizes.conv_kernel - 1) * width],
        sizes.conv_kernel,
        threads,
    )
    ssm_parameters[:] = 0
    add_partials(ssm_parameters, partials, weights[:0])
    partials = partial_sums(buffers.partials, sizes.channel_splits, batch, columns)
    mamba_scan_loop(
        threads,
        partials,
        buffers.scan_out,
        buffers.time_steps,
        buffers.scan_inputs,
        buffers.delta,
        ssm_parameters,
        channels,
        projected,
        matrix(weights, layer.mamba_dt_proj_weight, rank, width),
        vector(weights, layer.mamba_dt_proj_bias, width),
        vector(weights, layer.mamba_A_log, sizes.ssm_state_size * width),
        vector(weights, layer.mamba_D, width),
        matrix(weights, layer.mamba_out_proj_weight, width, columns),
        memory[layer.state : past],
        sizes.ssm_state_size,
        threads,
    )
    add_partials(out, partials, vector(weights, layer.mamba_out_proj_bias, columns))


@inlined
def recurrence(out, x, weights, layer, memory, buffers, sizes, threads):
    """out += recurrence(x); updates the state"""
    states, columns = buffers.states, out.shape[1]
    batch, size = states.shape
    h = memory[layer.state : layer.state + batch * size].reshape((batch, size))
    input_weight = matrix(weights, layer.recurrence_input_weight, x.shape[1], size)
    state_weight = matrix(weights, layer.recurrence_state_weight, size, size)
    recurrence_state_loop(threads, states, x, h, input_weight, state_weight, sizes.state_splits, threads)
    partials = partial_sums(buffers.partials, sizes.state_splits, batch, columns)
    output_weight = matrix(weights, layer.recurrence_output_weight, size, columns)
    skip_weight = matrix(weights, layer.recurrence_skip_weight, x.shape[1], columns)
    recurrence_output_loop(threads, partials, buffers.states_active, states, x, h, output_weight, skip_weight, threads)
    add_partials(out, partials, weights[:0])


@inlined
def feed_forward(out, x, weights, layer, buffers, sizes, threads):
    """out += feed_forward(x)"""
    hidden, active, columns = buffers.hidden, buffers.active, out.shape[1]
    partials = partial_sums(buffers.partials, sizes.hidden_splits, len(x), columns)
    input_weight = matrix(weights, layer.feed_forward_input_weight, x.shape[1], hidden.shape[1])
    input_bias = vector(weights, layer.feed_forward_input_bias, hidden.shape[1])
    output_weight = matrix(weights, layer.feed_forward_output_weight, active.shape[1], columns)
    feed_forward_loop(
        threads,
        partials,
        active,
        hidden,
        x,
        input_weight,
        input_bias,
        output_weight,
        sizes.activation,
        threads,
    )
    add_partials(out, partials, vector(weights, layer.feed_forward_output_bias, columns))


@entry
def decode_head(logits, normed, weights, tensors, buffers, threads):
    """Logits (B, V) of the normed hidden state (B, D), for a prompt that was read as in training."""
    head(logits, normed, weights, tensors, buffers, threads)


def step_of(recurrent):
    """The decode step: of any model, or, which compiles faster, of models with attention only."""

    def decode_step(
        logits,
        memory,
        buffers,
        weights,
        tensors,
        layers,
        sizes,
        tokens,
        position,
        positions,
        cos,
        sin,
        eps,
        scale,
        threads,
    ):
        """logits (B, V) after one more token of each sequence; updates the mixers' states.

        memory     the mixers' states, flat: the memory of `States`
        weights    all parameters, flat
        tensors    Tensors
        layers     (L,) of LAYER
        tokens     (B,)
        position   the number of tokens before this one
        positions  (R, D) added to the embedding; R = 0 for none
        cos, sin   (R, r / 2) of rotary angles; r = 0 for none. All tables use row position % R.
        eps        of the norms
        scale      of attention's scores
        """
        x, normed, width = buffers.x, buffers.normed, buffers.x.shape[1]
        embedding = matrix(weights, tensors.embedding_weight, sizes.vocab_size, width)
        for b in range(len(x)):
            embedding_row(x, b, embedding, tokens[b], positions, position % max(1, len(positions)), len(positions) > 0)
        for i in range(len(layers)):
            layer = layers[i]
            weight = vector(weights, layer.mixer_norm_weight, width)
            bias = vector(weights, layer.mixer_norm_bias, width)
            norm_rows(normed, x, sizes.norm, weight, bias, eps)
            if sizes.parallel:
                weight = vector(weights, layer.feed_forward_norm_weight, width)
                bias = vector(weights, layer.feed_forward_norm_bias, width)
                norm_rows(buffers.parallel_normed, x, sizes.norm, weight, bias, eps)
            out = x if sizes.head or i < len(layers) - 1 else logits
            if not sizes.residual:
                out[:] = 0
            if recurrent and layer.mamba_in_proj_weight != ABSENT:
                mamba(out, normed, weights, layer, memory, buffers, sizes, threads)
            elif recurrent and layer.recurrence_state_weight != ABSENT:
                recurrence(out, normed, weights, layer, memory, buffers, sizes, threads)
            else:
                attention(
                    out,
                    normed,
                    weights,
                    layer,
                    memory,
                    buffers,
                    sizes,
                    position,
                    cos,
                    sin,
                    eps,
                    scale,
                    threads,
                )
            if sizes.parallel:
                feed_forward(x, buffers.parallel_normed, weights, layer, buffers, sizes, threads)
            elif sizes.activation != NO_FEED_FORWARD:
                weight = vector(weights, layer.feed_forward_norm_weight, width)
                bias = vector(weights, layer.feed_forward_norm_bias, width)
                norm_rows(normed, x, sizes.norm, weight, bias, eps)
                if not sizes.residual:
                    x[:] = 0
                feed_forward(x, normed, weights, layer, buffers, sizes, threads)
        if sizes.head:
            weight, bias = vector(weights, tensors.norm_weight, width), vector(weights, tensors.norm_bias, width)
            norm_rows(normed, x, sizes.norm, weight, bias, eps)
            head(logits, normed, weights, tensors, buffers, threads)

    decode_step.__name__ += "_any_mixer" if recurrent else "_attention_only"
    return entry(decode_step)


decode_attention_only, decode_any_mixer = step_of(False), step_of(True)
