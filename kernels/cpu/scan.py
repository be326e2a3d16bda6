"""The selective scan: step, exponential, state and readout of a group of channels, a chunk of time at a time, in the nearest caches.

Channels lie side by side in vectors, as none needs another. For a vector of them, four states each stay in registers while a chunk of
time passes. Of the states, (T, S) numbers a channel, only those before each chunk are kept: backward makes the others again, a chunk at a
time from the last to the first. The arrays of a chunk are padded to whole vectors and fours of states, with zeros that stay zeros.
"""

import numba
import numpy as np
from numba import prange

from .jit import kernel, row
from .math import exp, sigmoid, softplus
from .microkernel_f32 import LANES, padded
from .vector import load, multiply_add, power, spread, store, total

CHUNK = 32  # steps between states that are kept
GROUP = 128  # channels that a worker takes through time together, at most
PASS = 4  # states of a channel in registers at a time
LOG2_E, LN_2 = 1.4426950408889634, 0.6931471805599453
unsigned = np.uint64  # what an index is when it is not to be tested for Python's wrap-around


@row
def group_of(channels):
    """(groups, channels of each but the last): as even as whole vectors allow."""
    groups = (channels + GROUP - 1) // GROUP
    wide = padded((channels + groups - 1) // groups, LANES)
    return (channels + wide - 1) // wide, wide


def selective_scan_chunks(steps):
    """How many chunks `steps` steps are."""
    return (steps + CHUNK - 1) // CHUNK


def rooms(channels, states):
    """(padded states, [where each array of a worker starts], end): rates, states, their gradients and the rates' (S, wide); time steps, inputs,
    readouts, the gradients of each, and the slopes of step and gate (CHUNK, wide); B and C (CHUNK, 2, S); states and decays of a pass, and lanes of the gradients of B and C."""
    wide, deep = group_of(channels)[1], padded(states, PASS)
    starts = np.cumsum(
        [0]
        + 4 * [deep * wide]
        + 8 * [CHUNK * wide]
        + [2 * CHUNK * deep]
        + 2 * [(CHUNK + 1) * PASS * LANES]
        + [2 * CHUNK * deep * LANES]
    )
    return deep, starts[:-1], starts[-1]


def selective_scan_scratch(channels, states, tasks):
    """Shape of the scratch: for each worker, no more than there are cores or tasks, what `rooms` lays out."""
    return min(numba.config.NUMBA_NUM_THREADS, tasks * group_of(channels)[0]), rooms(channels, states)[-1]


def selective_scan_partials(batch, steps, channels, states):
    """Numbers of room for sums that no two workers may add to: B's and C's gradients of each group of channels, the parameters' of each text."""
    return group_of(channels)[0] * batch * steps * 2 * states + batch * (states + 1) * channels


@row
def take_rates(rates, wide, deep, A_log, channels, states, first, width):
    """Base-two logarithms of the decay over one unit of time: -e^A_log log2(e), zeros in the padding."""
    scale = rates.dtype.type(-LOG2_E)
    rates[: deep * wide] = 0
    for n in range(states):
        for c in range(width):
            rates[unsigned(n * wide + c)] = exp(A_log[unsigned(n * channels + first + c)]) * scale


@row
def take_states(h, wide, deep, states_flat, at, channels, states, first, width):
    h[: deep * wide] = 0
    for n in range(states):
        for c in range(width):
            h[unsigned(n * wide + c)] = states_flat[unsigned(at + n * channels + first + c)]


@row
def give_states(states_flat, at, h, wide, channels, states, first, width):
    for n in range(states):
        for c in range(width):
            states_flat[unsigned(at + n * channels + first + c)] = h[unsigned(n * wide + c)]


@row
def take_inputs(dt, dtx, delta, x, at, width):
    """dt = softplus(delta),   dtx = dt x, of one step"""
    for c in range(width):
        step, _ = softplus(delta[unsigned(at + c)])
        dt[unsigned(c)] = step
        dtx[unsigned(c)] = step * x[unsigned(at + c)]


@row
def take_inputs_again(dt, dtx, slope, delta, x, at, width):
    """The same, with softplus'."""
    for c in range(width):
        step, slope[unsigned(c)] = softplus(delta[unsigned(at + c)])
        dt[unsigned(c)] = step
        dtx[unsigned(c)] = step * x[unsigned(at + c)]


@row
def take_selected(bc, deep, ssm_parameters, columns, states, row0, count):
    """B and C of a chunk, (CHUNK, 2, S)."""
    for t in range(count):
        at = (row0 + t + 1) * columns - 2 * states
        for half in range(2):
            line = (2 * t + half) * deep
            for n in range(states):
                bc[line + n] = ssm_parameters[at + half * states + n]
            for n in range(states, deep):
                bc[line + n] = 0


@row
def scan_pass(y, h, rates, dt, dtx, bc, n, deep, wide, count):
    """States n ... n + 3 of a group through `count` steps:  h = 2^(dt rate) h + dt x B,  y += C h."""
    for j in range(0, wide, LANES):
        at = n * wide + j
        r0, r1, r2, r3 = load(rates, at), load(rates, at + wide), load(rates, at + 2 * wide), load(rates, at + 3 * wide)
        h0, h1, h2, h3 = load(h, at), load(h, at + wide), load(h, at + 2 * wide), load(h, at + 3 * wide)
        for t in range(count):
            d, u, out = load(dt, t * wide + j), load(dtx, t * wide + j), load(y, t * wide + j)
            b, c = 2 * t * deep + n, (2 * t + 1) * deep + n
            h0 = multiply_add(power(d * r0), h0, u * spread(bc, b))
            h1 = multiply_add(power(d * r1), h1, u * spread(bc, b + 1))
            h2 = multiply_add(power(d * r2), h2, u * spread(bc, b + 2))
            h3 = multiply_add(power(d * r3), h3, u * spread(bc, b + 3))
            out = multiply_add(h0, spread(bc, c), multiply_add(h1, spread(bc, c + 1), out))
            store(y, t * wide + j, multiply_add(h2, spread(bc, c + 2), multiply_add(h3, spread(bc, c + 3), out)))
        store(h, at, h0)
        store(h, at + wide, h1)
        store(h, at + 2 * wide, h2)
        store(h, at + 3 * wide, h3)


@row
def remember_pass(y, hs, decays, h, rates, dt, dtx, bc, n, j, deep, wide, count):
    """The same for the vector at j, keeping the states before and after every step, (CHUNK + 1, 4, LANES), and the decays."""
    at = n * wide + j
    r0, r1, r2, r3 = load(rates, at), load(rates, at + wide), load(rates, at + 2 * wide), load(rates, at + 3 * wide)
    h0, h1, h2, h3 = load(h, at), load(h, at + wide), load(h, at + 2 * wide), load(h, at + 3 * wide)
    for t in range(count):
        d, u, out = load(dt, t * wide + j), load(dtx, t * wide + j), load(y, t * wide + j)
        b, c, kept = 2 * t * deep + n, (2 * t + 1) * deep + n, t * PASS * LANES
        a0, a1, a2, a3 = power(d * r0), power(d * r1), power(d * r2), power(d * r3)
        store(decays, kept, a0)
        store(decays, kept + LANES, a1)
        store(decays, kept + 2 * LANES, a2)
        store(decays, kept + 3 * LANES, a3)
        store(hs, kept, h0)
        store(hs, kept + LANES, h1)
        store(hs, kept + 2 * LANES, h2)
        store(hs, kept + 3 * LANES, h3)
        h0 = multiply_add(a0, h0, u * spread(bc, b))
        h1 = multiply_add(a1, h1, u * spread(bc, b + 1))
        h2 = multiply_add(a2, h2, u * spread(bc, b + 2))
        h3 = multiply_add(a3, h3, u * spread(bc, b + 3))
        out = multiply_add(h0, spread(bc, c), multiply_add(h1, spread(bc, c + 1), out))
        store(y, t * wide + j, multiply_add(h2, spread(bc, c + 2), multiply_add(h3, spread(bc, c + 3), out)))
    kept = count * PASS * LANES
    store(hs, kept, h0)
    store(hs, kept + LANES, h1)
    store(hs, kept + 2 * LANES, h2)
    store(hs, kept + 3 * LANES, h3)


@row
def add_lanes(lanes, at, a, b):
    store(lanes, at, multiply_add(a, b, load(lanes, at)))


@row
def back_pass(ddt, ddtx, dlanes, dh, drates, hs, decays, rates, dy, dt, dtx, bc, n, j, deep, wide, count):
    """Back through a chunk for the vector at j:  g = a' g' + C dy,  dC += h dy,  dB += g dt x,  d(dt x) += g B,  d(dt rate) += g a h before, over ln 2.

    A step's g' and a' are those of the step after; `dh` carries their product from chunk to chunk.
    """
    at = n * wide + j
    r0, r1, r2, r3 = load(rates, at), load(rates, at + wide), load(rates, at + 2 * wide), load(rates, at + 3 * wide)
    g0, g1, g2, g3 = load(dh, at), load(dh, at + wide), load(dh, at + 2 * wide), load(dh, at + 3 * wide)
    d0, d1, d2, d3 = load(drates, at), load(drates, at + wide), load(drates, at + 2 * wide), load(drates, at + 3 * wide)
    for back in range(count):
        t = count - 1 - back
        place, kept, lanes = t * wide + j, t * PASS * LANES, (n * CHUNK + t * PASS) * 2 * LANES
        out, d, u, b, c = load(dy, place), load(dt, place), load(dtx, place), 2 * t * deep + n, (2 * t + 1) * deep + n
        add_lanes(dlanes, lanes + LANES, load(hs, kept + 4 * LANES), out)
        add_lanes(dlanes, lanes + 3 * LANES, load(hs, kept + 5 * LANES), out)
        add_lanes(dlanes, lanes + 5 * LANES, load(hs, kept + 6 * LANES), out)
        add_lanes(dlanes, lanes + 7 * LANES, load(hs, kept + 7 * LANES), out)
        g0, g1 = multiply_add(out, spread(bc, c), g0), multiply_add(out, spread(bc, c + 1), g1)
        g2, g3 = multiply_add(out, spread(bc, c + 2), g2), multiply_add(out, spread(bc, c + 3), g3)
        add_lanes(dlanes, lanes, g0, u)
        add_lanes(dlanes, lanes + 2 * LANES, g1, u)
        add_lanes(dlanes, lanes + 4 * LANES, g2, u)
        add_lanes(dlanes, lanes + 6 * LANES, g3, u)
        inputs = multiply_add(g0, spread(bc, b), multiply_add(g1, spread(bc, b + 1), load(ddtx, place)))
        store(ddtx, place, multiply_add(g2, spread(bc, b + 2), multiply_add(g3, spread(bc, b + 3), inputs)))
        g0, g1, g2, g3 = (
            g0 * load(decays, kept),
            g1 * load(decays, kept + LANES),
            g2 * load(decays, kept + 2 * LANES),
            g3 * load(decays, kept + 3 * LANES),
        )
        p0, p1, p2, p3 = (
            g0 * load(hs, kept),
            g1 * load(hs, kept + LANES),
            g2 * load(hs, kept + 2 * LANES),
            g3 * load(hs, kept + 3 * LANES),
        )
        steps = multiply_add(p0, r0, multiply_add(p1, r1, load(ddt, place)))
        store(ddt, place, multiply_add(p2, r2, multiply_add(p3, r3, steps)))
        d0, d1, d2, d3 = (
            multiply_add(p0, d, d0),
            multiply_add(p1, d, d1),
            multiply_add(p2, d, d2),
            multiply_add(p3, d, d3),
        )
    store(dh, at, g0)
    store(dh, at + wide, g1)
    store(dh, at + 2 * wide, g2)
    store(dh, at + 3 * wide, g3)
    store(drates, at, d0)
    store(drates, at + wide, d1)
    store(drates, at + 2 * wide, d2)
    store(drates, at + 3 * wide, d3)


@row
def give_sums(parts, at, dlanes, states, deep, count):
    """The gradients of B and C of a chunk, (count, 2 S): sums of the lanes."""
    for n in range(states):
        for half in range(2):
            for t in range(count):
                lanes = (n // PASS * PASS * CHUNK + t * PASS + n % PASS) * 2 + half
                parts[at + t * 2 * states + half * states + n] = total(load(dlanes, lanes * LANES))


@row
def gate_row(out, at, y, x, D, gate, gate_at, first, width):
    """out = (y + D x) silu(gate), of one step"""
    for c in range(width):
        z = gate[unsigned(gate_at + c)]
        out[unsigned(at + c)] = (y[unsigned(c)] + D[unsigned(first + c)] * x[unsigned(at + c)]) * (z * sigmoid(z))


@row
def step_row(y, h, dt, dtx, A_log, b, c):
    for i in range(y.size):
        h[i] = exp(-exp(A_log[i]) * dt[i]) * h[i] + dtx[i] * b
        y[i] += h[i] * c


@row
def step_states(y, h, dt, dtx, A_log, bc, b, first, states, channels):
    """One step of text b's channels from `first` on, whose states (B, S, E) are h: y = <h, C>. dt, dtx as in `take_inputs`; bc: B, then C."""
    y[:] = 0
    for n in range(states):
        rates = A_log[n * channels + first : n * channels + first + y.size]
        line = h[(b * states + n) * channels + first : (b * states + n) * channels + first + y.size]
        step_row(y, line, dt, dtx, rates, bc[n], bc[states + n])


@row
def gate_backward_row(dy, dgate, dout, at, gate, gate_at, width):
    """dy = dout silu(gate),   dgate = dout silu'(gate), which lacks the readout yet, of one step"""
    one = dy.dtype.type(1)
    for c in range(width):
        z, up = gate[unsigned(gate_at + c)], dout[unsigned(at + c)]
        s = sigmoid(z)
        dy[unsigned(c)] = up * z * s
        dgate[unsigned(c)] = up * s * (one + z * (one - s))


@row
def inputs_backward_row(dx, delta, gate, dD, dgate, dy, y, dt, ddt, ddtx, slope, x, D, at, gate_at, first, width):
    """A step's gradients of x, delta and gate in the end, the latter two in place, and what it adds to the D's."""
    ln_2 = x.dtype.type(LN_2)
    for c in range(width):
        i, k = unsigned(at + c), unsigned(c)
        value, direct, up = x[i], D[unsigned(first + c)], dy[k]
        gate[unsigned(gate_at + c)] = dgate[k] * (y[k] + direct * value)
        dx[i] = ddtx[k] * dt[k] + up * direct
        delta[i] = (ddt[k] * ln_2 + ddtx[k] * value) * slope[k]
        dD[k] += up * value


@kernel
def _selective_scan_forward(
    out,
    states_flat,
    scratch,
    starts,
    x,
    delta,
    ssm_parameters,
    gate,
    A_log,
    D,
    batch,
    steps,
    channels,
    states,
    deep,
    columns,
    chunks,
):
    groups, wide = group_of(channels)
    for worker in prange(len(scratch)):
        memory = scratch[worker]
        rates, h, dt, dtx, y, bc = (
            memory[starts[0] :],
            memory[starts[1] :],
            memory[starts[4] :],
            memory[starts[5] :],
            memory[starts[6] :],
            memory[starts[12] :],
        )
        for task in range(worker, batch * groups, len(scratch)):
            b, first = task // groups, task % groups * wide
            width = min(wide, channels - first)
            take_rates(rates, wide, deep, A_log, channels, states, first, width)
            take_states(
                h, wide, deep, states_flat, b * (chunks + 1) * states * channels, channels, states, first, width
            )
            dt[: CHUNK * wide] = 0
            dtx[: CHUNK * wide] = 0
            for chunk in range(chunks):
                row0 = b * steps + chunk * CHUNK
                count = min(CHUNK, steps - chunk * CHUNK)
                y[: count * wide] = 0
                for t in range(count):
                    take_inputs(dt[t * wide :], dtx[t * wide :], delta, x, (row0 + t) * channels + first, width)
                take_selected(bc, deep, ssm_parameters, columns, states, row0, count)
                for n in range(0, deep, PASS):
                    scan_pass(y, h, rates, dt, dtx, bc, n, deep, wide, count)
                for t in range(count):
                    gate_row(
                        out,
                        (row0 + t) * channels + first,
                        y[t * wide :],
                        x,
                        D,
                        gate,
                        (2 * (row0 + t) + 1) * channels + first,
                        first,
                        width,
                    )
                give_states(
                    states_flat,
                    (b * (chunks + 1) + chunk + 1) * states * channels,
                    h,
                    wide,
                    channels,
                    states,
                    first,
                    width,
                )


@kernel
def _selective_scan_backward(
    dx,
    delta,
    gate,
    parts,
    scratch,
    starts,
    dout,
    states_flat,
    x,
    ssm_parameters,
    A_log,
    D,
    batch,
    steps,
    channels,
    states,
    deep,
    columns,
    chunks,
):
    groups, wide = group_of(channels)
    shared = groups * batch * steps * 2 * states  # where the parameters' sums begin
    for worker in prange(len(scratch)):
        memory = scratch[worker]
        rates, h, dh, drates = memory[starts[0] :], memory[starts[1] :], memory[starts[2] :], memory[starts[3] :]
        dt, dtx, y, dy, ddt, ddtx = (
            memory[starts[4] :],
            memory[starts[5] :],
            memory[starts[6] :],
            memory[starts[7] :],
            memory[starts[8] :],
            memory[starts[9] :],
        )
        slope, dgate, bc, hs, decays, dlanes = (
            memory[starts[10] :],
            memory[starts[11] :],
            memory[starts[12] :],
            memory[starts[13] :],
            memory[starts[14] :],
            memory[starts[15] :],
        )
        for task in range(worker, batch * groups, len(scratch)):
            b, group = task // groups, task % groups
            first = group * wide
            width = min(wide, channels - first)
            sums = shared + b * (states + 1) * channels + first
            take_rates(rates, wide, deep, A_log, channels, states, first, width)
            dh[: deep * wide] = 0
            drates[: deep * wide] = 0
            dt[: CHUNK * wide] = 0
            dtx[: CHUNK * wide] = 0
            dy[: CHUNK * wide] = 0
            dD = parts[sums + states * channels :]
            dD[:width] = 0
            for chunk in range(chunks - 1, -1, -1):
                row0 = b * steps + chunk * CHUNK
                count = min(CHUNK, steps - chunk * CHUNK)
                take_states(
                    h,
                    wide,
                    deep,
                    states_flat,
                    (b * (chunks + 1) + chunk) * states * channels,
                    channels,
                    states,
                    first,
                    width,
                )
                take_selected(bc, deep, ssm_parameters, columns, states, row0, count)
                for t in range(count):
                    take_inputs_again(
                        dt[t * wide :],
                        dtx[t * wide :],
                        slope[t * wide :],
                        delta,
                        x,
                        (row0 + t) * channels + first,
                        width,
                    )
                    gate_backward_row(
                        dy[t * wide :],
                        dgate[t * wide :],
                        dout,
                        (row0 + t) * channels + first,
                        gate,
                        (2 * (row0 + t) + 1) * channels + first,
                        width,
                    )
                y[: count * wide] = 0
                ddt[: count * wide] = 0
                ddtx[: count * wide] = 0
                dlanes[: 2 * CHUNK * deep * LANES] = 0
                for n in range(0, deep, PASS):
                    for j in range(0, wide, LANES):
                        remember_pass(y, hs, decays, h, rates, dt, dtx, bc, n, j, deep, wide, count)
                        back_pass(
                            ddt, ddtx, dlanes, dh, drates, hs, decays, rates, dy, dt, dtx, bc, n, j, deep, wide, count
                        )
                give_sums(parts, (group * batch * steps + row0) * 2 * states, dlanes, states, deep, count)
                for t in range(count):
                    inputs_backward_row(
                        dx,
                        delta,
                        gate,
                        dD,
                        dgate[t * wide :],
                        dy[t * wide :],
                        y[t * wide :],
                        dt[t * wide :],
                        ddt[t * wide :],
                        ddtx[t * wide :],
                        slope[t * wide :],
                        x,
                        D,
                        (row0 + t) * channels + first,
                        (2 * (row0 + t) + 1) * channels + first,
                        first,
                        width,
                    )
            ln_2 = dx.dtype.type(LN_2)
            for n in range(states):
                line = parts[sums + n * channels :]
                for c in range(width):  # d A_log = d(rate) rate, as the rate is -e^A_log times a constant
                    line[unsigned(c)] = drates[unsigned(n * wide + c)] * rates[unsigned(n * wide + c)] * ln_2


@kernel
def _sum_parts(dssm_parameters, dA_log, dD, parts, groups, rows, states, columns, batch, channels):
    """Sums over groups, one row a time, and over texts, one state a time, in their order."""
    for r in prange(rows):
        for n in range(2 * states):
            value = parts[r * 2 * states + n]
            for group in range(1, groups):
                value += parts[(group * rows + r) * 2 * states + n]
            dssm_parameters[(r + 1) * columns - 2 * states + n] = value
    shared = groups * rows * 2 * states
    for n in prange(states + 1):
        for b in range(batch):
            at = shared + (b * (states + 1) + n) * channels
            if n < states:
                for c in range(channels):
                    dA_log[unsigned(n * channels + c)] += parts[unsigned(at + c)]
            else:
                for c in range(channels):
                    dD[unsigned(c)] += parts[unsigned(at + c)]


def selective_scan_forward(out, states, scratch, x, delta, ssm_parameters, projected, A_log, D):
    batch, chunks, n_states, channels = states.shape
    deep, starts, _ = rooms(channels, n_states)
    _selective_scan_forward(
        out.reshape(-1),
        states.reshape(-1),
        scratch,
        starts,
        x.reshape(-1),
        delta.reshape(-1),
        ssm_parameters.reshape(-1),
        projected.reshape(-1),
        A_log.reshape(-1),
        D,
        batch,
        len(x) // batch,
        channels,
        n_states,
        deep,
        ssm_parameters.shape[1],
        chunks - 1,
    )


def selective_scan_backward(
    dx, delta, dssm_parameters, projected, dA_log, dD, parts, scratch, dout, states, x, ssm_parameters, A_log, D
):
    batch, chunks, n_states, channels = states.shape
    deep, starts, _ = rooms(channels, n_states)
    _selective_scan_backward(
        dx.reshape(-1),
        delta.reshape(-1),
        projected.reshape(-1),
        parts,
        scratch,
        starts,
        dout.reshape(-1),
        states.reshape(-1),
        x.reshape(-1),
        ssm_parameters.reshape(-1),
        A_log.reshape(-1),
        D,
        batch,
        len(x) // batch,
        channels,
        n_states,
        deep,
        ssm_parameters.shape[1],
        chunks - 1,
    )
    _sum_parts(
        dssm_parameters.reshape(-1),
        dA_log.reshape(-1),
        dD,
        parts,
        group_of(channels)[0],
        len(x),
        n_states,
        ssm_parameters.shape[1],
        batch,
        channels,
    )
