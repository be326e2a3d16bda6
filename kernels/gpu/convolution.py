"""The causal depthwise convolution and its silu: a thread walks one channel through some steps, neighbouring threads neighbouring channels.

The K rows that a step sees wait in the thread's registers. The reads of four steps are asked for before the first step writes: a read after a
write must wait for it, as it may be to the same place for all the compiler knows, and so would wait for memory at each step.
"""

from .source import Kernel, grid

STEPS = 16  # that a thread filters, one after another
SPAN = 32  # steps, at least, of a part of the filters' gradients
VARIANTS = [dict(Number=number, TAPS=taps) for number in ("float", "double") for taps in (1, 4)]

ROW = r"""
// Row s of text b: before the first step in the past, else in x.
__device__ __forceinline__ Compute row_of(const Compute* x, const Compute* past, int b, int s, int channel, int steps, int columns, int channels) {
    return s < 0 ? past[((size_t)b * (TAPS - 1) + s + TAPS - 1) * channels + channel] : x[((size_t)b * steps + s) * columns + channel];
}
"""

FILTER = (
    ROW
    + r"""
// give(place, p, take(place)) for every row and channel: p_t = bias + sum_k weight[k] x_(t - K + 1 + k)
template <class Take, class Give> __device__ __forceinline__ void filter(const Compute* x, const Compute* past, const Compute* weight, const Compute* bias,
                                                                         int batch, int steps, int columns, int channels, Take take, Give give) {
    const unsigned pieces = (steps + STEPS - 1) / STEPS, tasks = batch * pieces * channels;  // 32 bits, which divide faster, as the arrays are 16 times as large
    for (unsigned task = blockIdx.x * blockDim.x + threadIdx.x; task < tasks; task += gridDim.x * blockDim.x) {
        const int channel = task % channels, b = task / channels / pieces, first = task / channels % pieces * STEPS;
        const int last = first + STEPS < steps ? first + STEPS : steps;
        const Compute offset = bias[channel];
        Compute taps[TAPS], seen[TAPS];
        for (int k = 0; k < TAPS; ++k) taps[k] = weight[(size_t)k * channels + channel];
        for (int k = 1; k < TAPS; ++k) seen[k] = row_of(x, past, b, first - TAPS + k, channel, steps, columns, channels);
        for (int start = first; start < last; start += 4) {
            const size_t row = (size_t)b * steps + start;
            Compute next[4], taken[4];
            #pragma unroll
            for (int j = 0; j < 4; ++j) {
                next[j] = start + j < last ? x[(row + j) * columns + channel] : Compute(0);
                taken[j] = start + j < last ? take((row + j) * channels + channel) : Compute(0);
            }
            #pragma unroll
            for (int j = 0; j < 4; ++j) {
                if (start + j >= last) break;
                for (int k = 1; k < TAPS; ++k) seen[k - 1] = seen[k];
                seen[TAPS - 1] = next[j];
                Compute p = offset;
                for (int k = 0; k < TAPS; ++k) p += taps[k] * seen[k];
                give((row + j) * channels + channel, p, taken[j]);
            }
        }
    }
}
"""
)

forward = Kernel(
    "convolution_forward",
    FILTER
    + r"""
extern "C" __global__ void convolution_forward(Compute* out, const Compute* x, const Compute* past, const Compute* weight, const Compute* bias,
                                               int batch, int steps, int columns, int channels) {
    filter(x, past, weight, bias, batch, steps, columns, channels, [](size_t) { return Compute(0); },
           [&](size_t at, Compute p, Compute) { out[at] = p * sigmoid(p); });
}""",
    variants=[dict(one, STEPS=STEPS) for one in VARIANTS],
)

slopes = Kernel(
    "convolution_slopes",
    FILTER
    + r"""
// dp = dout silu'(p), and dout becomes out again
extern "C" __global__ void convolution_slopes(Compute* dp, Compute* dout, const Compute* x, const Compute* past, const Compute* weight, const Compute* bias,
                                              int batch, int steps, int columns, int channels) {
    filter(x, past, weight, bias, batch, steps, columns, channels, [&](size_t at) { return dout[at]; }, [&](size_t at, Compute p, Compute d) {
        const Compute s = sigmoid(p);
        dp[at] = d * s * (1 + p * (1 - s));
        dout[at] = p * s;
    });
}""",
    variants=[dict(one, STEPS=STEPS) for one in VARIANTS],
)

SPANS = r"""
// Texts and steps are cut into `groups` and `pieces`, as even as can be. Where a span ends: the row after its last.
__device__ __forceinline__ int share(int part, int parts, int whole) { return (long long)part * whole / parts; }
__device__ __forceinline__ size_t end_of(int span, int groups, int pieces, int batch, int steps) {
    return (size_t)(share(span / pieces + 1, groups, batch) - 1) * steps + share(span % pieces + 1, pieces, steps);
}
"""

# A row takes its gradient's place: only the thread that owns it may read x, so the filters' gradients are summed over the rows of x, not of dp.
# A span's sums then replace its last K + 1 rows of dp, which nobody else reads: the span before looks K - 1 rows into this one, of 2 K or more.
inputs = Kernel(
    "convolution_inputs",
    ROW
    + SPANS
    + r"""
extern "C" __global__ void convolution_inputs(Compute* x, Compute* dweight, Compute* dbias, Compute* dp, const Compute* past, const Compute* weight,
                                              int batch, int steps, int columns, int channels, int groups, int pieces) {
    const unsigned tasks = groups * pieces * channels;
    for (unsigned task = blockIdx.x * blockDim.x + threadIdx.x; task < tasks; task += gridDim.x * blockDim.x) {
        const int channel = task % channels, span = task / channels, group = span / pieces, piece = span % pieces;
        const int first = share(piece, pieces, steps), last = share(piece + 1, pieces, steps);
        Compute taps[TAPS], sums[TAPS + 1] = {};
        for (int k = 0; k < TAPS; ++k) taps[k] = weight[(size_t)k * channels + channel];
        for (int b = share(group, groups, batch); b < share(group + 1, groups, batch); ++b) {
            const Compute* slopes = dp + (size_t)b * steps * channels + channel;
            const int begin = first ? first : 1 - TAPS;
            Compute d[TAPS];  // dp of step s + k, which sees row s
            for (int k = 1; k < TAPS; ++k) d[k] = begin + k > 0 && begin + k <= steps ? slopes[(size_t)(begin + k - 1) * channels] : Compute(0);
            for (int start = begin; start < last; start += 4) {
                Compute next[4], values[4];
                #pragma unroll
                for (int j = 0; j < 4; ++j) {
                    const int s = start + j, t = s + TAPS - 1;
                    next[j] = s < last && t < steps ? slopes[(size_t)t * channels] : Compute(0);
                    values[j] = s < last ? row_of(x, past, b, s, channel, steps, columns, channels) : Compute(0);
                }
                #pragma unroll
                for (int j = 0; j < 4; ++j) {
                    const int s = start + j;
                    if (s >= last) break;
                    for (int k = 1; k < TAPS; ++k) d[k - 1] = d[k];
                    d[TAPS - 1] = next[j];
                    Compute dx = 0;
                    for (int k = 0; k < TAPS; ++k) {
                        const int t = s + TAPS - 1 - k;
                        if (t < 0 || t >= steps) continue;
                        sums[k] += d[TAPS - 1 - k] * values[j];
                        dx += taps[k] * d[TAPS - 1 - k];
                    }
                    if (s < 0) continue;
                    sums[TAPS] += d[0];
                    x[((size_t)b * steps + s) * columns + channel] = dx;
                }
            }
        }
        const size_t end = end_of(span, groups, pieces, batch, steps);
        for (int k = 0; k <= TAPS; ++k)
            if (groups * pieces > 1) dp[(end - TAPS - 1 + k) * channels + channel] = sums[k];
            else if (k < TAPS) dweight[(size_t)k * channels + channel] += sums[k];
            else dbias[channel] += sums[k];
    }
}""",
    variants=VARIANTS,
)

# A block a tap (or the bias) of 32 channels: its warps share the spans out and add up what they found in their order.
sums = Kernel(
    "convolution_sums",
    SPANS
    + r"""
extern "C" __global__ void convolution_sums(Compute* dweight, Compute* dbias, const Compute* dp, int batch, int steps, int channels, int groups, int pieces) {
    __shared__ Compute parts[32][32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, k = blockIdx.x % (TAPS + 1), channel = blockIdx.x / (TAPS + 1) * 32 + lane;
    Compute sum = 0;
    if (channel < channels) {
        #pragma unroll 8
        for (int span = share(warp, 32, groups * pieces); span < share(warp + 1, 32, groups * pieces); ++span)
            sum += dp[(end_of(span, groups, pieces, batch, steps) - TAPS - 1 + k) * channels + channel];
    }
    parts[warp][lane] = sum;
    __syncthreads();
    if (warp || channel >= channels) return;
    for (int other = 1; other < 32; ++other) sum += parts[other][lane];
    if (k < TAPS) dweight[(size_t)k * channels + channel] += sum;
    else dbias[channel] += sum;
}""",
    1024,
    VARIANTS,
)


def spans(batch, steps, taps):
    """(groups, pieces): spans are pieces of a text or, where texts are shorter than 2 K rows, groups of texts, of at least 2 K rows or all there are."""
    if steps >= 2 * taps:
        return batch, max(1, steps // max(SPAN, 2 * taps))
    return max(1, batch // -(-2 * taps // steps)), 1


def convolution_forward(out, x, past, weight, bias):
    batch, channels, steps = len(past), out.shape[1], len(out) // len(past)
    forward(
        grid(batch * -(-steps // STEPS) * channels),
        (out, x, past, weight, bias, batch, steps, x.shape[1], channels),
        Number=out,
        TAPS=len(weight),
        STEPS=STEPS,
    )


def convolution_backward(x, dweight, dbias, scratch, dout, past, weight, bias):
    batch, channels, steps, taps = len(past), dout.shape[1], len(dout) // len(past), len(weight)
    groups, pieces = spans(batch, steps, taps)
    slopes(
        grid(batch * -(-steps // STEPS) * channels),
        (scratch, dout, x, past, weight, bias, batch, steps, x.shape[1], channels),
        Number=dout,
        TAPS=taps,
        STEPS=STEPS,
    )
    inputs(
        grid(groups * pieces * channels),
        (x, dweight, dbias, scratch, past, weight, batch, steps, x.shape[1], channels, groups, pieces),
        Number=dout,
        TAPS=taps,
    )
    if groups * pieces > 1:
        sums(
            (taps + 1) * -(-channels // 32),
            (dweight, dbias, scratch, batch, steps, channels, groups, pieces),
            Number=dout,
            TAPS=taps,
        )
