"""The selective scan: a warp takes 32 channels and four states of each through time, a chunk of steps at a time.

A block is 32 channels of one text, a warp for every four of their states. What a step wants of a channel is made once for all its states and
waits in shared memory, with B and C of the chunk; the states stay in registers. Channels lie side by side in a warp's lanes, so that rows are
read whole, B and C are the same address for all lanes, and a readout is a sum over warps; gradients of B and C are sums over lanes.
Of the states only those before each chunk are kept: backward makes the others again, a chunk at a time from the last to the first, in registers.
"""

from .source import Kernel, grid

CHUNK = 16  # steps between states that are kept: as many as backward holds, four states each, in registers
WIDE = 32  # channels of a block, the lanes of a warp
PER = 4  # states of a channel in a thread


def sizes(states, channels, itemsize):
    """The constants of a kernel: warps of a block, passes over the states where these are not enough, whether every block has all its channels.
    48 KB of shared memory set the limit of warps."""
    quads = -(-states // PER)
    passes = -(-quads // (16 // itemsize))
    return dict(STATES=states, LANES=-(-quads // passes), PASSES=passes, CHUNK=CHUNK, WHOLE=int(channels % WIDE == 0))


def selective_scan_chunks(steps):
    """How many chunks `steps` steps are."""
    return -(-steps // CHUNK)


def selective_scan_scratch(channels, states, tasks):
    """Nothing is wanted but `parts`: a number, as no array is empty."""
    return 1, 1


def selective_scan_partials(batch, steps, channels, states):
    """Numbers of room for the parts of sums: B's and C's gradients of each 32 channels, fours of states side by side; the parameters' of each text."""
    return -(-channels // WIDE) * batch * steps * -(-states // PER) * 2 * PER + batch * (states + 1) * channels


VARIANTS = [
    dict(Number=number, **sizes(states, channels, size))
    for number, size, states, channels in (
        ("float", 4, 16, 512),
        ("float", 4, 16, 50),
        ("float", 4, 1, 32),
        ("float", 4, 19, 50),
        ("double", 8, 16, 512),
        ("double", 8, 5, 50),
    )
]

SCAN = r"""
constexpr int WIDE = 32, PER = 4, PASS = LANES * PER, QUADS = (STATES + PER - 1) / PER, ROUNDS = (CHUNK + LANES - 1) / LANES;
constexpr Compute LOG2_E = 1.4426950408889634, LN_2 = 0.6931471805599453;

__device__ __forceinline__ float power(float x) { return exp2f(x); }
__device__ __noinline__ double power(double x) { return exp2(x); }  // long: not in every round of an unrolled loop
__device__ __forceinline__ float log_of_one_more(float x) { return log1pf(x); }
__device__ __forceinline__ double log_of_one_more(double x) { return log1p(x); }
__device__ __forceinline__ Compute softplus(Compute x) { return (x > 0 ? x : Compute(0)) + log_of_one_more(exp_(x > 0 ? -x : x)); }

// A thread's i-th state in a pass; whether there is one: what fills up a warp's four must not meet an infinity, which it would turn into NaN.
__device__ __forceinline__ int state_of(int pass, int lane, int i) { return pass * PASS + lane * PER + i; }
__device__ __forceinline__ bool is_state(int n) { return PASSES * PASS == STATES || n < STATES; }

// Base-two logarithms of the decay over one unit of time: -e^A_log log2(e), zeros past the last state and channel.
__device__ __forceinline__ void take_rates(Compute (*rates)[PER], const Compute* A_log, int channels, int channel, int lane) {
    for (int pass = 0; pass < PASSES; ++pass)
        for (int i = 0; i < PER; ++i) {
            const int n = state_of(pass, lane, i);
            rates[pass][i] = (WHOLE || channel < channels) && is_state(n) ? -exp_(A_log[(size_t)n * channels + channel]) * LOG2_E : Compute(0);
        }
}

// v[k] = x[(row + t) stride], t = lane + k LANES: a thread's steps of a chunk, asked for together. One by one, each would wait for memory.
__device__ __forceinline__ void take_steps(Compute (&v)[ROUNDS], const Compute* x, size_t row, size_t stride, int lane, int count) {
    #pragma unroll
    for (int k = 0; k < ROUNDS; ++k) v[k] = lane + k * LANES < count ? x[(row + lane + k * LANES) * stride] : Compute(0);
}

// B and C of a chunk for the states of one pass.
__device__ __forceinline__ void take_selected(Compute (*bc)[2][PASS], const Compute* ssm_parameters, int columns, size_t row, int count, int pass) {
    #pragma unroll 4
    for (int e = threadIdx.x; e < count * 2 * PASS; e += WIDE * LANES) {
        const int t = e / (2 * PASS), half = e / PASS % 2, n = pass * PASS + e % PASS;
        bc[t][half][e % PASS] = n < STATES ? ssm_parameters[(row + t + 1) * columns - (2 - half) * STATES + n] : Compute(0);
    }
}
"""

forward = Kernel(
    "selective_scan_forward",
    SCAN
    + r"""
// At least eight blocks at a time: registers to spare would cost more than they save where memory is waited for.
extern "C" __global__ void __launch_bounds__(32 * LANES, 8) selective_scan_forward(
        Compute* out, Compute* states, const Compute* x, const Compute* delta, const Compute* ssm_parameters, const Compute* projected, const Compute* A_log,
        const Compute* D, int steps, int channels, int columns) {
    __shared__ __align__(16) Compute bc[CHUNK][2][PASS];
    __shared__ Compute dt[CHUNK][WIDE], dtx[CHUNK][WIDE], y[LANES][CHUNK][WIDE];
    const int c = threadIdx.x % WIDE, lane = threadIdx.x / WIDE, groups = (channels + WIDE - 1) / WIDE, chunks = (steps + CHUNK - 1) / CHUNK;
    const int b = blockIdx.x / groups, channel = blockIdx.x % groups * WIDE + c;
    const bool here = WHOLE || channel < channels;
    const Compute straight = here ? D[channel] : Compute(0);
    Compute rates[PASSES][PER], h[PASSES][PER];
    Compute* kept = states + (size_t)b * (chunks + 1) * STATES * channels + channel;
    take_rates(rates, A_log, channels, channel, lane);
    for (int pass = 0; pass < PASSES; ++pass)
        for (int i = 0; i < PER; ++i) {
            const int n = state_of(pass, lane, i);
            h[pass][i] = here && is_state(n) ? kept[(size_t)n * channels] : Compute(0);
        }
    for (int chunk = 0; chunk < chunks; ++chunk) {
        const int count = steps - chunk * CHUNK < CHUNK ? steps - chunk * CHUNK : CHUNK;
        const size_t row = (size_t)b * steps + chunk * CHUNK;
        Compute deltas[ROUNDS], inputs[ROUNDS], gates[ROUNDS];
        take_steps(deltas, delta + channel, row, channels, lane, here ? count : 0);
        take_steps(inputs, x + channel, row, channels, lane, here ? count : 0);
        take_steps(gates, projected + channels + channel, row, 2 * channels, lane, here ? count : 0);
        #pragma unroll
        for (int k = 0; k < ROUNDS; ++k) {
            const int t = lane + k * LANES;
            if (t >= count) break;
            const Compute step = here ? softplus(deltas[k]) : Compute(0);
            dt[t][c] = step;
            dtx[t][c] = step * inputs[k];
        }
        for (int pass = 0; pass < PASSES; ++pass) {
            take_selected(bc, ssm_parameters, columns, row, count, pass);
            __syncthreads();
            #pragma unroll 4
            for (int t = 0; t < count; ++t) {  // h = 2^(dt rate) h + dt x B,   y = <h, C>
                const Compute d = dt[t][c], u = dtx[t][c];
                Compute read = pass ? y[lane][t][c] : Compute(0);
                for (int i = 0; i < PER; ++i) {
                    if (!is_state(state_of(pass, lane, i))) continue;
                    h[pass][i] = power(d * rates[pass][i]) * h[pass][i] + u * bc[t][0][lane * PER + i];
                    read += h[pass][i] * bc[t][1][lane * PER + i];
                }
                y[lane][t][c] = read;
            }
            __syncthreads();
        }
        #pragma unroll
        for (int k = 0; k < ROUNDS; ++k) {
            const int t = lane + k * LANES;
            if (!here || t >= count) break;
            Compute read = straight * inputs[k];
            for (int other = 0; other < LANES; ++other) read += y[other][t][c];
            out[(row + t) * channels + channel] = read * (gates[k] * sigmoid(gates[k]));
        }
        kept += (size_t)STATES * channels;
        for (int pass = 0; pass < PASSES; ++pass)
            for (int i = 0; i < PER; ++i) {
                const int n = state_of(pass, lane, i);
                if (here && is_state(n)) kept[(size_t)n * channels] = h[pass][i];
            }
    }
}""",
    128,
    VARIANTS,
)

backward = Kernel(
    "selective_scan_backward",
    SCAN
    + r"""
// The sums over a warp of eight numbers, lane l receiving that of v[l % 8]: lanes give away the half that they do not go on with.
__device__ __forceinline__ Compute share_sums(Compute (&v)[2 * PER], int lane) {
    #pragma unroll
    for (int half = PER; half; half /= 2)
        #pragma unroll
        for (int i = 0; i < half; ++i) {
            const bool upper = lane & half;
            const Compute given = upper ? v[i] : v[i + half];
            v[i] = (upper ? v[i + half] : v[i]) + __shfl_xor_sync(0xffffffffu, given, half);
        }
    v[0] += __shfl_xor_sync(0xffffffffu, v[0], 8);
    return v[0] + __shfl_xor_sync(0xffffffffu, v[0], 16);
}

extern "C" __global__ void selective_scan_backward(Compute* dx, Compute* delta, Compute* projected, Compute* parts, const Compute* dout, const Compute* states,
                                                   const Compute* x, const Compute* ssm_parameters, const Compute* A_log, const Compute* D,
                                                   int batch, int steps, int channels, int columns) {
    __shared__ __align__(16) Compute bc[CHUNK][2][PASS];
    __shared__ Compute dt[CHUNK][WIDE], dtx[CHUNK][WIDE], dy[CHUNK][WIDE], y[LANES][CHUNK][WIDE], ddt[LANES][CHUNK][WIDE], ddtx[LANES][CHUNK][WIDE];
    const int c = threadIdx.x % WIDE, lane = threadIdx.x / WIDE, groups = (channels + WIDE - 1) / WIDE, chunks = (steps + CHUNK - 1) / CHUNK;
    const int b = blockIdx.x / groups, group = blockIdx.x % groups, channel = group * WIDE + c;
    const size_t rows = (size_t)batch * steps;
    const bool here = WHOLE || channel < channels;
    const Compute straight = here ? D[channel] : Compute(0);
    Compute rates[PASSES][PER], g[PASSES][PER] = {}, drates[PASSES][PER] = {}, dD = 0;
    take_rates(rates, A_log, channels, channel, lane);
    for (int chunk = chunks - 1; chunk >= 0; --chunk) {
        const int count = steps - chunk * CHUNK < CHUNK ? steps - chunk * CHUNK : CHUNK;
        const size_t row = (size_t)b * steps + chunk * CHUNK;
        Compute deltas[ROUNDS], inputs[ROUNDS], gates[ROUNDS], douts[ROUNDS];
        const auto take = [&] {
            take_steps(deltas, delta + channel, row, channels, lane, here ? count : 0);
            take_steps(inputs, x + channel, row, channels, lane, here ? count : 0);
            take_steps(gates, projected + channels + channel, row, 2 * channels, lane, here ? count : 0);
            take_steps(douts, dout + channel, row, channels, lane, here ? count : 0);
        };
        take();
        #pragma unroll
        for (int k = 0; k < ROUNDS; ++k) {  // dy = dout silu(gate)
            const int t = lane + k * LANES;
            if (t >= count) break;
            const Compute step = here ? softplus(deltas[k]) : Compute(0);
            dt[t][c] = step;
            dtx[t][c] = step * inputs[k];
            dy[t][c] = douts[k] * (gates[k] * sigmoid(gates[k]));
        }
        for (int pass = 0; pass < PASSES; ++pass) {
            take_selected(bc, ssm_parameters, columns, row, count, pass);
            __syncthreads();
            Compute h[CHUNK + 1][PER];  // the states before every step and after the last
            const Compute* kept = states + ((size_t)b * (chunks + 1) + chunk) * STATES * channels + channel;
            for (int i = 0; i < PER; ++i) {
                const int n = state_of(pass, lane, i);
                h[0][i] = here && is_state(n) ? kept[(size_t)n * channels] : Compute(0);
            }
            #pragma unroll
            for (int t = 0; t < CHUNK; ++t) {  // as many rounds as registers have names; those past the chunk's end do nothing
                if (t >= count) continue;
                const Compute d = dt[t][c], u = dtx[t][c];
                Compute read = pass ? y[lane][t][c] : Compute(0);
                #pragma unroll
                for (int i = 0; i < PER; ++i) {
                    if (!is_state(state_of(pass, lane, i))) continue;
                    h[t + 1][i] = power(d * rates[pass][i]) * h[t][i] + u * bc[t][0][lane * PER + i];
                    read += h[t + 1][i] * bc[t][1][lane * PER + i];
                }
                y[lane][t][c] = read;
            }
            // g = a' g' + C dy,   dC += h dy,   dB += g dt x,   d(dt x) += g B,   d(dt rate) += g a h before, over ln 2. A step's g' and a' are those
            // of the step after; from step to step g carries their product.
            #pragma unroll
            for (int t = CHUNK - 1; t >= 0; --t) {
                if (t >= count) continue;
                const Compute d = dt[t][c], u = dtx[t][c], up = dy[t][c];
                Compute into_step = pass ? ddt[lane][t][c] : Compute(0), into_input = pass ? ddtx[lane][t][c] : Compute(0), shared_sums[2 * PER] = {};
                #pragma unroll
                for (int i = 0; i < PER; ++i) {
                    if (!here || !is_state(state_of(pass, lane, i))) continue;
                    Compute& flow = g[pass][i];
                    flow += up * bc[t][1][lane * PER + i];
                    shared_sums[i] = flow * u;
                    shared_sums[PER + i] = h[t + 1][i] * up;
                    into_input += flow * bc[t][0][lane * PER + i];
                    flow *= power(d * rates[pass][i]);
                    const Compute product = flow * h[t][i];
                    into_step += product * rates[pass][i];
                    drates[pass][i] += product * d;
                }
                ddt[lane][t][c] = into_step;
                ddtx[lane][t][c] = into_input;
                const Compute sum = share_sums(shared_sums, c);
                const int quad = pass * LANES + lane;
                if (c < 2 * PER && quad < QUADS) parts[((group * rows + row + t) * QUADS + quad) * 2 * PER + c] = sum;
            }
            __syncthreads();
        }
        take();  // again: registers are short between
        #pragma unroll
        for (int k = 0; k < ROUNDS; ++k) {  // the same (t, c) as above: what other threads wrote are only the sums over states
            const int t = lane + k * LANES;
            if (!here || t >= count) break;
            const size_t at = (row + t) * channels + channel;
            Compute read = straight * inputs[k], into_step = 0, into_input = 0;
            for (int other = 0; other < LANES; ++other) {
                read += y[other][t][c];
                into_step += ddt[other][t][c];
                into_input += ddtx[other][t][c];
            }
            const Compute z = gates[k], s = sigmoid(z);
            projected[(2 * (row + t) + 1) * channels + channel] = douts[k] * s * (1 + z * (1 - s)) * read;
            delta[at] = (into_step * LN_2 + into_input * inputs[k]) * sigmoid(deltas[k]);
            dx[at] = into_input * dt[t][c] + dy[t][c] * straight;
            dD += dy[t][c] * inputs[k];
        }
    }
    Compute* sums = parts + groups * rows * QUADS * 2 * PER + (size_t)b * (STATES + 1) * channels + channel;
    for (int pass = 0; pass < PASSES; ++pass)
        for (int i = 0; i < PER; ++i) {  // d A_log = d(rate) rate, as the rate is -e^A_log times a constant
            const int n = state_of(pass, lane, i);
            if (here && is_state(n)) sums[(size_t)n * channels] = drates[pass][i] * rates[pass][i] * LN_2;
        }
    __syncthreads();
    y[lane][0][c] = dD;
    __syncthreads();
    if (lane || !here) return;
    for (int other = 1; other < LANES; ++other) dD += y[other][0][c];
    sums[(size_t)STATES * channels] = dD;
}""",
    128,
    VARIANTS,
)

# Sums over groups of channels, a thread one number of a row, and over texts, a thread one state of a channel, in their order.
sum_parts = Kernel(
    "selective_scan_sums",
    r"""
extern "C" __global__ void selective_scan_sums(Compute* dssm_parameters, Compute* dA_log, Compute* dD, const Compute* parts,
                                               int batch, int steps, int channels, int columns) {
    constexpr int PER = 4, QUADS = (STATES + PER - 1) / PER;
    const size_t groups = (channels + 31) / 32, rows = (size_t)batch * steps, start = blockIdx.x * (size_t)blockDim.x + threadIdx.x, stride = (size_t)gridDim.x * blockDim.x;
    for (size_t i = start; i < rows * 2 * STATES; i += stride) {
        const size_t row = i / (2 * STATES);
        const int place = i % (2 * STATES), half = place / STATES, n = place % STATES;
        Compute sum = 0;
        #pragma unroll 4
        for (size_t group = 0; group < groups; ++group) sum += parts[((group * rows + row) * QUADS + n / PER) * 2 * PER + half * PER + n % PER];
        dssm_parameters[(row + 1) * columns - 2 * STATES + place] = sum;
    }
    const Compute* sums = parts + groups * rows * QUADS * 2 * PER;
    const size_t size = (size_t)(STATES + 1) * channels;
    for (size_t i = start; i < size; i += stride) {
        Compute sum = 0;
        #pragma unroll 8
        for (int b = 0; b < batch; ++b) sum += sums[b * size + i];
        (i < (size_t)STATES * channels ? dA_log[i] : dD[i - (size_t)STATES * channels]) += sum;
    }
}""",
    variants=[dict(Number=number, STATES=states) for number in ("float", "double") for states in (1, 5, 16)],
)


def selective_scan_forward(out, states, scratch, x, delta, ssm_parameters, projected, A_log, D):
    batch, _, n_states, channels = states.shape
    constants = sizes(n_states, channels, out.dtype.itemsize)
    forward(
        batch * -(-channels // WIDE),
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
        threads=WIDE * constants["LANES"],
        Number=out,
        **constants,
    )


def selective_scan_backward(
    dx, delta, dssm_parameters, projected, dA_log, dD, parts, scratch, dout, states, x, ssm_parameters, A_log, D
):
    batch, _, n_states, channels = states.shape
    constants, steps, columns = sizes(n_states, channels, dx.dtype.itemsize), len(x) // batch, ssm_parameters.shape[1]
    backward(
        batch * -(-channels // WIDE),
        (dx, delta, projected, parts, dout, states, x, ssm_parameters, A_log, D, batch, steps, channels, columns),
        threads=WIDE * constants["LANES"],
        Number=dx,
        **constants,
    )
    sum_parts(
        grid(max(len(x) * 2 * n_states, (n_states + 1) * channels)),
        (dssm_parameters, dA_log, dD, parts, batch, steps, channels, columns),
        Number=dx,
        STATES=n_states,
    )
