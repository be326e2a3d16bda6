"""The selective scan of Mamba.

A warp runs 32 channels and four states of each through time, a chunk of steps at a time. A block is 32 channels of
one sequence, with one warp per four of their states. What a step needs per channel is computed once for all states
and kept in shared memory, with B and C of the chunk; the states stay in registers. A warp's lanes have neighboring
channels, so rows are read whole, B and C are the same address for all lanes, and a readout is a sum over warps.
Gradients of B and C are sums over lanes.

Only the states before each chunk are saved. Backward recomputes the others in registers, one chunk at a time, from
the last to the first.
"""

from typing import Any, NamedTuple

from .source import Kernel, grid

CHUNK = 16  # steps between saved states: as many as backward can hold in registers, four states each
CHANNELS = 32  # channels of a block, one per lane
PER = 4  # states of a channel in a thread


def constants(states, channels, itemsize):
    """A kernel's constants: warps of a block, passes over the states where one is not enough, whether all blocks have
    32 channels.

    48 KB of shared memory limit the number of warps.
    """
    quads = -(-states // PER)
    passes = -(-quads // (16 // itemsize))
    return dict(
        STATES=states, WARPS=-(-quads // passes), PASSES=passes, CHUNK=CHUNK, WHOLE=int(channels % CHANNELS == 0)
    )


def selective_scan_chunks(steps):
    """Number of chunks of `steps` time steps."""
    return -(-steps // CHUNK)


def selective_scan_scratch(channels, states, tasks):
    """Shape of the scratch. This set needs none; one element, as no array is empty."""
    return 1, 1


class Partials(NamedTuple):
    """Views of the partial sums of backward."""

    dBC: Any  # B's and C's gradients summed over each 32 channels, by quads of states: (groups, N, quads, 2, 4)
    dA_D: Any  # A_log's and D's gradients of each sequence: (B, S + 1, E)


def partials_elements(batch, steps, channels, states):
    """(elements of dBC, elements of dA_D)"""
    groups, quads = -(-channels // CHANNELS), -(-states // PER)
    return groups * batch * steps * quads * 2 * PER, batch * (states + 1) * channels


def selective_scan_partials(batch, steps, channels, states):
    """Elements of memory for the partial sums of backward."""
    return sum(partials_elements(batch, steps, channels, states))


VARIANTS = [
    dict(Real=real, **constants(states, channels, size))
    for real, size, states, channels in (
        ("float", 4, 16, 512),
        ("float", 4, 16, 50),
        ("float", 4, 1, 32),
        ("float", 4, 19, 50),
        ("double", 8, 16, 512),
        ("double", 8, 5, 50),
    )
]

SCAN = r"""
constexpr int CHANNELS = 32, PER = 4, PASS = WARPS * PER, QUADS = (STATES + PER - 1) / PER;
constexpr int ROUNDS = (CHUNK + WARPS - 1) / WARPS;  // steps of a chunk per thread
constexpr Accum LOG2_E = 1.4426950408889634, LN_2 = 0.6931471805599453;

__device__ __forceinline__ float exp2_(float x) { return exp2f(x); }
__device__ __noinline__ double exp2_(double x) { return exp2(x); }  // long: not in every round of an unrolled loop
__device__ __forceinline__ float log1p_(float x) { return log1pf(x); }
__device__ __forceinline__ double log1p_(double x) { return log1p(x); }
__device__ __forceinline__ Accum softplus(Accum x) { return (x > 0 ? x : Accum(0)) + log1p_(exp_(x > 0 ? -x : x)); }

// A thread's i-th state in a pass, and whether it exists: the padding of a quad must not meet an infinity, which would
// become NaN.
__device__ __forceinline__ int state_of(int pass, int warp, int i) { return pass * PASS + warp * PER + i; }
__device__ __forceinline__ bool is_state(int n) { return PASSES * PASS == STATES || n < STATES; }

// Base-2 logarithms of the decay over one unit of time: -e^A_log log2(e). Zero past the last state and channel.
__device__ __forceinline__ void load_rates(Accum (*rates)[PER], const Accum* A_log, int channels, int channel,
                                           int warp) {
    for (int pass = 0; pass < PASSES; ++pass)
        for (int i = 0; i < PER; ++i) {
            const int n = state_of(pass, warp, i);
            const bool exists = (WHOLE || channel < channels) && is_state(n);
            rates[pass][i] = exists ? -exp_(A_log[(size_t)n * channels + channel]) * LOG2_E : Accum(0);
        }
}

// v[k] = x[(row + t) stride],   t = warp + k WARPS: a thread's steps of a chunk. All loads are in flight at once.
__device__ __forceinline__ void load_steps(Accum (&v)[ROUNDS], const Accum* x, size_t row, size_t stride,
                                           int warp, int count) {
    #pragma unroll
    for (int k = 0; k < ROUNDS; ++k)
        v[k] = warp + k * WARPS < count ? x[(row + warp + k * WARPS) * stride] : Accum(0);
}

// B and C of a chunk for the states of one pass.
__device__ __forceinline__ void load_BC(Accum (*BC)[2][PASS], const Accum* ssm_parameters, int columns,
                                        size_t row, int count, int pass) {
    #pragma unroll 4
    for (int e = threadIdx.x; e < count * 2 * PASS; e += CHANNELS * WARPS) {
        const int t = e / (2 * PASS), which = e / PASS % 2, n = pass * PASS + e % PASS;
        BC[t][which][e % PASS] =
            n < STATES ? ssm_parameters[(row + t + 1) * columns - (2 - which) * STATES + n] : Accum(0);
    }
}
"""

forward_kernel = Kernel(
    "selective_scan_forward",
    SCAN
    + r"""
// At least eight blocks per multiprocessor: more registers per thread would cost more occupancy than they save in
// memory accesses.
extern "C" __global__ void __launch_bounds__(32 * WARPS, 8) selective_scan_forward(
        Accum* out, Accum* states, const Accum* x, const Accum* delta, const Accum* ssm_parameters,
        const Accum* projected, const Accum* A_log, const Accum* D, int steps, int channels, int columns) {
    __shared__ __align__(16) Accum BC[CHUNK][2][PASS];
    __shared__ Accum dt[CHUNK][CHANNELS], dtx[CHUNK][CHANNELS], y[WARPS][CHUNK][CHANNELS];
    const int c = threadIdx.x % CHANNELS, warp = threadIdx.x / CHANNELS;
    const int groups = (channels + CHANNELS - 1) / CHANNELS, chunks = (steps + CHUNK - 1) / CHUNK;
    const int b = blockIdx.x / groups, channel = blockIdx.x % groups * CHANNELS + c;
    const bool active = WHOLE || channel < channels;
    const Accum skip = active ? D[channel] : Accum(0);
    Accum rates[PASSES][PER], h[PASSES][PER];
    Accum* saved = states + (size_t)b * (chunks + 1) * STATES * channels + channel;
    load_rates(rates, A_log, channels, channel, warp);
    for (int pass = 0; pass < PASSES; ++pass)
        for (int i = 0; i < PER; ++i) {
            const int n = state_of(pass, warp, i);
            h[pass][i] = active && is_state(n) ? saved[(size_t)n * channels] : Accum(0);
        }
    for (int chunk = 0; chunk < chunks; ++chunk) {
        const int count = steps - chunk * CHUNK < CHUNK ? steps - chunk * CHUNK : CHUNK;
        const size_t row = (size_t)b * steps + chunk * CHUNK;
        Accum deltas[ROUNDS], inputs[ROUNDS], gates[ROUNDS];
        load_steps(deltas, delta + channel, row, channels, warp, active ? count : 0);
        load_steps(inputs, x + channel, row, channels, warp, active ? count : 0);
        load_steps(gates, projected + channels + channel, row, 2 * channels, warp, active ? count : 0);
        #pragma unroll
        for (int k = 0; k < ROUNDS; ++k) {
            const int t = warp + k * WARPS;
            if (t >= count) break;
            const Accum step = active ? softplus(deltas[k]) : Accum(0);
            dt[t][c] = step;
            dtx[t][c] = step * inputs[k];
        }
        for (int pass = 0; pass < PASSES; ++pass) {
            load_BC(BC, ssm_parameters, columns, row, count, pass);
            __syncthreads();
            #pragma unroll 4
            for (int t = 0; t < count; ++t) {  // h = 2^(dt rate) h + dt x B,   y = <h, C>
                const Accum d = dt[t][c], u = dtx[t][c];
                Accum readout = pass ? y[warp][t][c] : Accum(0);
                for (int i = 0; i < PER; ++i) {
                    if (!is_state(state_of(pass, warp, i))) continue;
                    h[pass][i] = exp2_(d * rates[pass][i]) * h[pass][i] + u * BC[t][0][warp * PER + i];
                    readout += h[pass][i] * BC[t][1][warp * PER + i];
                }
                y[warp][t][c] = readout;
            }
            __syncthreads();
        }
        #pragma unroll
        for (int k = 0; k < ROUNDS; ++k) {
            const int t = warp + k * WARPS;
            if (!active || t >= count) break;
            Accum readout = skip * inputs[k];
            for (int other = 0; other < WARPS; ++other) readout += y[other][t][c];
            out[(row + t) * channels + channel] = readout * (gates[k] * sigmoid(gates[k]));
        }
        saved += (size_t)STATES * channels;
        for (int pass = 0; pass < PASSES; ++pass)
            for (int i = 0; i < PER; ++i) {
                const int n = state_of(pass, warp, i);
                if (active && is_state(n)) saved[(size_t)n * channels] = h[pass][i];
            }
    }
}""",
    128,
    VARIANTS,
)

backward_kernel = Kernel(
    "selective_scan_backward",
    SCAN
    + r"""
// Sums over a warp of each of eight values: lane l returns the sum of v[l % 8]. A lane gives away the half that it does
// not need.
__device__ __forceinline__ Accum warp_sums(Accum (&v)[2 * PER], int lane) {
    #pragma unroll
    for (int half = PER; half; half /= 2)
        #pragma unroll
        for (int i = 0; i < half; ++i) {
            const bool upper = lane & half;
            const Accum given = upper ? v[i] : v[i + half];
            v[i] = (upper ? v[i + half] : v[i]) + __shfl_xor_sync(0xffffffffu, given, half);
        }
    v[0] += __shfl_xor_sync(0xffffffffu, v[0], 8);
    return v[0] + __shfl_xor_sync(0xffffffffu, v[0], 16);
}

extern "C" __global__ void selective_scan_backward(
        Accum* dx, Accum* delta, Accum* projected, Accum* dBC, Accum* dA_D, const Accum* dout, const Accum* states,
        const Accum* x, const Accum* ssm_parameters, const Accum* A_log, const Accum* D,
        int batch, int steps, int channels, int columns) {
    __shared__ __align__(16) Accum BC[CHUNK][2][PASS];
    __shared__ Accum dt[CHUNK][CHANNELS], dtx[CHUNK][CHANNELS], dy[CHUNK][CHANNELS], y[WARPS][CHUNK][CHANNELS];
    __shared__ Accum ddt[WARPS][CHUNK][CHANNELS], ddtx[WARPS][CHUNK][CHANNELS];
    const int c = threadIdx.x % CHANNELS, warp = threadIdx.x / CHANNELS;
    const int groups = (channels + CHANNELS - 1) / CHANNELS, chunks = (steps + CHUNK - 1) / CHUNK;
    const int b = blockIdx.x / groups, group = blockIdx.x % groups, channel = group * CHANNELS + c;
    const size_t rows = (size_t)batch * steps;
    const bool active = WHOLE || channel < channels;
    const Accum skip = active ? D[channel] : Accum(0);
    Accum rates[PASSES][PER], g[PASSES][PER] = {}, drates[PASSES][PER] = {}, dD = 0;
    load_rates(rates, A_log, channels, channel, warp);
    for (int chunk = chunks - 1; chunk >= 0; --chunk) {
        const int count = steps - chunk * CHUNK < CHUNK ? steps - chunk * CHUNK : CHUNK;
        const size_t row = (size_t)b * steps + chunk * CHUNK;
        Accum deltas[ROUNDS], inputs[ROUNDS], gates[ROUNDS], douts[ROUNDS];
        const auto load_chunk = [&] {
            load_steps(deltas, delta + channel, row, channels, warp, active ? count : 0);
            load_steps(inputs, x + channel, row, channels, warp, active ? count : 0);
            load_steps(gates, projected + channels + channel, row, 2 * channels, warp, active ? count : 0);
            load_steps(douts, dout + channel, row, channels, warp, active ? count : 0);
        };
        load_chunk();
        #pragma unroll
        for (int k = 0; k < ROUNDS; ++k) {  // dy = dout silu(gate)
            const int t = warp + k * WARPS;
            if (t >= count) break;
            const Accum step = active ? softplus(deltas[k]) : Accum(0);
            dt[t][c] = step;
            dtx[t][c] = step * inputs[k];
            dy[t][c] = douts[k] * (gates[k] * sigmoid(gates[k]));
        }
        for (int pass = 0; pass < PASSES; ++pass) {
            load_BC(BC, ssm_parameters, columns, row, count, pass);
            __syncthreads();
            Accum h[CHUNK + 1][PER];  // the states before every step and after the last
            const Accum* saved = states + ((size_t)b * (chunks + 1) + chunk) * STATES * channels + channel;
            for (int i = 0; i < PER; ++i) {
                const int n = state_of(pass, warp, i);
                h[0][i] = active && is_state(n) ? saved[(size_t)n * channels] : Accum(0);
            }
            #pragma unroll
            for (int t = 0; t < CHUNK; ++t) {  // unrolled in full, so that h stays in registers
                if (t >= count) continue;
                const Accum d = dt[t][c], u = dtx[t][c];
                Accum readout = pass ? y[warp][t][c] : Accum(0);
                #pragma unroll
                for (int i = 0; i < PER; ++i) {
                    if (!is_state(state_of(pass, warp, i))) continue;
                    h[t + 1][i] = exp2_(d * rates[pass][i]) * h[t][i] + u * BC[t][0][warp * PER + i];
                    readout += h[t + 1][i] * BC[t][1][warp * PER + i];
                }
                y[warp][t][c] = readout;
            }
            // g = a' g' + C dy, where a' and g' are those of the step after; between steps, the variable holds a' g'.
            // dC += h dy,   dB += g dt x,   d(dt x) += g B,   d(dt rate) += g a h / ln 2, where h is the state before
            // the step
            #pragma unroll
            for (int t = CHUNK - 1; t >= 0; --t) {
                if (t >= count) continue;
                const Accum d = dt[t][c], u = dtx[t][c], up = dy[t][c];
                Accum ddt_sum = pass ? ddt[warp][t][c] : Accum(0), ddtx_sum = pass ? ddtx[warp][t][c] : Accum(0);
                Accum dB_dC[2 * PER] = {};
                #pragma unroll
                for (int i = 0; i < PER; ++i) {
                    if (!active || !is_state(state_of(pass, warp, i))) continue;
                    Accum& dh = g[pass][i];
                    dh += up * BC[t][1][warp * PER + i];
                    dB_dC[i] = dh * u;
                    dB_dC[PER + i] = h[t + 1][i] * up;
                    ddtx_sum += dh * BC[t][0][warp * PER + i];
                    dh *= exp2_(d * rates[pass][i]);
                    const Accum dexponent = dh * h[t][i];
                    ddt_sum += dexponent * rates[pass][i];
                    drates[pass][i] += dexponent * d;
                }
                ddt[warp][t][c] = ddt_sum;
                ddtx[warp][t][c] = ddtx_sum;
                const Accum sum = warp_sums(dB_dC, c);
                const int quad = pass * WARPS + warp;
                if (c < 2 * PER && quad < QUADS) dBC[((group * rows + row + t) * QUADS + quad) * 2 * PER + c] = sum;
            }
            __syncthreads();
        }
        load_chunk();  // again: the registers were needed in between
        #pragma unroll
        for (int k = 0; k < ROUNDS; ++k) {  // the same (t, c) as above; other threads have only written the sums
            const int t = warp + k * WARPS;
            if (!active || t >= count) break;
            const size_t i = (row + t) * channels + channel;
            Accum readout = skip * inputs[k], ddt_sum = 0, ddtx_sum = 0;
            for (int other = 0; other < WARPS; ++other) {
                readout += y[other][t][c];
                ddt_sum += ddt[other][t][c];
                ddtx_sum += ddtx[other][t][c];
            }
            const Accum z = gates[k], s = sigmoid(z);
            projected[(2 * (row + t) + 1) * channels + channel] = douts[k] * s * (1 + z * (1 - s)) * readout;
            delta[i] = (ddt_sum * LN_2 + ddtx_sum * inputs[k]) * sigmoid(deltas[k]);
            dx[i] = ddtx_sum * dt[t][c] + dy[t][c] * skip;
            dD += dy[t][c] * inputs[k];
        }
    }
    Accum* sums = dA_D + (size_t)b * (STATES + 1) * channels + channel;
    for (int pass = 0; pass < PASSES; ++pass)
        for (int i = 0; i < PER; ++i) {  // dA_log = drate rate, as the rate is -e^A_log times a constant
            const int n = state_of(pass, warp, i);
            if (active && is_state(n)) sums[(size_t)n * channels] = drates[pass][i] * rates[pass][i] * LN_2;
        }
    __syncthreads();
    y[warp][0][c] = dD;
    __syncthreads();
    if (warp || !active) return;
    for (int other = 1; other < WARPS; ++other) dD += y[other][0][c];
    sums[(size_t)STATES * channels] = dD;
}""",
    128,
    VARIANTS,
)

# Sums in a fixed order: over groups of channels, one thread per element of a row, and over sequences, one thread per
# parameter.
sum_partials_kernel = Kernel(
    "selective_scan_sum_partials",
    r"""
extern "C" __global__ void selective_scan_sum_partials(Accum* dssm_parameters, Accum* dA_log, Accum* dD,
                                                       const Accum* dBC, const Accum* dA_D,
                                                       int batch, int steps, int channels, int columns) {
    constexpr int PER = 4, QUADS = (STATES + PER - 1) / PER;
    const size_t groups = (channels + 31) / 32, rows = (size_t)batch * steps;
    const size_t first = blockIdx.x * (size_t)blockDim.x + threadIdx.x, stride = (size_t)gridDim.x * blockDim.x;
    for (size_t i = first; i < rows * 2 * STATES; i += stride) {
        const size_t row = i / (2 * STATES);
        const int column = i % (2 * STATES), which = column / STATES, n = column % STATES;  // which: B or C
        Accum sum = 0;
        #pragma unroll 4
        for (size_t group = 0; group < groups; ++group)
            sum += dBC[((group * rows + row) * QUADS + n / PER) * 2 * PER + which * PER + n % PER];
        dssm_parameters[(row + 1) * columns - 2 * STATES + column] = sum;
    }
    const size_t size = (size_t)(STATES + 1) * channels;
    for (size_t i = first; i < size; i += stride) {
        Accum sum = 0;
        #pragma unroll 8
        for (int b = 0; b < batch; ++b) sum += dA_D[b * size + i];
        (i < (size_t)STATES * channels ? dA_log[i] : dD[i - (size_t)STATES * channels]) += sum;
    }
}""",
    variants=[dict(Real=real, STATES=states) for real in ("float", "double") for states in (1, 5, 16)],
)


def selective_scan_forward(
    out,
    states,
    scratch,
    x,
    delta,
    ssm_parameters,
    projected,
    A_log,
    D,
):
    batch, _, n_states, channels = states.shape
    named = constants(n_states, channels, out.dtype.itemsize)
    forward_kernel(
        batch * -(-channels // CHANNELS),
        (
            out,
            states,
            x,
            delta,
            ssm_parameters,
            projected,
            A_log,
            D,
            len(x) // batch,
            channels,
            ssm_parameters.shape[1],
        ),
        threads=CHANNELS * named["WARPS"],
        Real=out,
        **named,
    )


def selective_scan_backward(
    dx,
    delta,
    dssm_parameters,
    projected,
    dA_log,
    dD,
    partials,
    scratch,
    dout,
    states,
    x,
    ssm_parameters,
    A_log,
    D,
):
    batch, _, n_states, channels = states.shape
    named, steps, columns = constants(n_states, channels, dx.dtype.itemsize), len(x) // batch, ssm_parameters.shape[1]
    dBC_elements, dA_D_elements = partials_elements(batch, steps, channels, n_states)
    stop = dBC_elements + dA_D_elements
    sums = Partials(partials[:dBC_elements], partials[dBC_elements:stop])
    backward_kernel(
        batch * -(-channels // CHANNELS),
        (
            dx,
            delta,
            projected,
            *sums,
            dout,
            states,
            x,
            ssm_parameters,
            A_log,
            D,
            batch,
            steps,
            channels,
            columns,
        ),
        threads=CHANNELS * named["WARPS"],
        Real=dx,
        **named,
    )
    sum_partials_kernel(
        grid(max(len(x) * 2 * n_states, (n_states + 1) * channels)),
        (dssm_parameters, dA_log, dD, *sums, batch, steps, channels, columns),
        Real=dx,
        STATES=n_states,
    )
