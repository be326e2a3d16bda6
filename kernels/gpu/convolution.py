"""The causal depthwise convolution with its SiLU.

A thread runs one channel through some time steps; neighboring threads have neighboring channels. The K rows that a
step sees stay in the thread's registers. A thread loads four steps before it writes the first: a read after a write to
what may be the same array must wait for the write, so one by one the steps would wait for memory.
"""

from .source import Kernel, grid

STEPS = 16  # time steps per thread
SPAN = 32  # least time steps per partial sum of the filters' gradients
VARIANTS = [dict(Real=real, TAPS=taps) for real in ("float", "double") for taps in (1, 4)]

ROW = r"""
// Row t of sequence b: before the first step in `past`, else in x.
__device__ __forceinline__ Accum row_of(const Accum* x, const Accum* past, int b, int t, int channel,
                                        int steps, int columns, int channels) {
    return t < 0 ? past[((size_t)b * (TAPS - 1) + t + TAPS - 1) * channels + channel]
                 : x[((size_t)b * steps + t) * columns + channel];
}
"""

FILTER = (
    ROW
    + r"""
// write(i, p, read(i)) for every row and channel, i their index:   p_t = bias + sum_k weight[k] x_(t - K + 1 + k)
template <class Read, class Write>
__device__ __forceinline__ void filter(const Accum* x, const Accum* past, const Accum* weight, const Accum* bias,
                                       int batch, int steps, int columns, int channels, Read read, Write write) {
    // 32-bit tasks: they divide faster, and 32 bits suffice as the arrays have 16 times as many elements.
    const unsigned segments = (steps + STEPS - 1) / STEPS, tasks = batch * segments * channels;
    for (unsigned task = blockIdx.x * blockDim.x + threadIdx.x; task < tasks; task += gridDim.x * blockDim.x) {
        const int channel = task % channels, b = task / channels / segments, start = task / channels % segments * STEPS;
        const int stop = start + STEPS < steps ? start + STEPS : steps;
        const Accum offset = bias[channel];
        Accum taps[TAPS], window[TAPS];
        for (int k = 0; k < TAPS; ++k) taps[k] = weight[(size_t)k * channels + channel];
        for (int k = 1; k < TAPS; ++k)
            window[k] = row_of(x, past, b, start - TAPS + k, channel, steps, columns, channels);
        for (int t = start; t < stop; t += 4) {
            const size_t row = (size_t)b * steps + t;
            Accum next[4], given[4];
            #pragma unroll
            for (int j = 0; j < 4; ++j) {
                next[j] = t + j < stop ? x[(row + j) * columns + channel] : Accum(0);
                given[j] = t + j < stop ? read((row + j) * channels + channel) : Accum(0);
            }
            #pragma unroll
            for (int j = 0; j < 4; ++j) {
                if (t + j >= stop) break;
                for (int k = 1; k < TAPS; ++k) window[k - 1] = window[k];
                window[TAPS - 1] = next[j];
                Accum p = offset;
                for (int k = 0; k < TAPS; ++k) p += taps[k] * window[k];
                write((row + j) * channels + channel, p, given[j]);
            }
        }
    }
}
"""
)

forward_kernel = Kernel(
    "convolution_forward",
    FILTER
    + r"""
extern "C" __global__ void convolution_forward(Accum* out, const Accum* x, const Accum* past,
                                               const Accum* weight, const Accum* bias,
                                               int batch, int steps, int columns, int channels) {
    filter(x, past, weight, bias, batch, steps, columns, channels, [](size_t) { return Accum(0); },
           [&](size_t i, Accum p, Accum) { out[i] = p * sigmoid(p); });
}""",
    variants=[dict(one, STEPS=STEPS) for one in VARIANTS],
)

# dp = dout silu'(p), and dout becomes out again.
backward_silu_kernel = Kernel(
    "convolution_backward_silu",
    FILTER
    + r"""
extern "C" __global__ void convolution_backward_silu(Accum* dp, Accum* dout, const Accum* x, const Accum* past,
                                                     const Accum* weight, const Accum* bias,
                                                     int batch, int steps, int columns, int channels) {
    filter(x, past, weight, bias, batch, steps, columns, channels, [&](size_t i) { return dout[i]; },
           [&](size_t i, Accum p, Accum d) {
        const Accum s = sigmoid(p);
        dp[i] = d * s * (1 + p * (1 - s));
        dout[i] = p * s;
    });
}""",
    variants=[dict(one, STEPS=STEPS) for one in VARIANTS],
)

SPANS = r"""
// Start of part `part` of `count` elements divided into `parts` parts, as evenly as possible.
__device__ __forceinline__ int start_of(int part, int parts, int count) { return (long long)part * count / parts; }
// Sequences are divided into `groups`, time steps into `segments`; a span is one segment of one group. Returns the row
// after its last.
__device__ __forceinline__ size_t end_of(int span, int groups, int segments, int batch, int steps) {
    const int last_sequence = start_of(span / segments + 1, groups, batch) - 1;
    return (size_t)last_sequence * steps + start_of(span % segments + 1, segments, steps);
}
"""

# dx overwrites x. Only the thread that owns a row may read it, so the filters' gradients are sums over rows of x, not
# of dp. A span's sums replace its last K + 1 rows of dp, which no other span reads: the span before reads K - 1 rows of
# this one's 2 K or more.
backward_input_kernel = Kernel(
    "convolution_backward_input",
    ROW
    + SPANS
    + r"""
extern "C" __global__ void convolution_backward_input(Accum* x, Accum* dweight, Accum* dbias, Accum* dp,
                                                      const Accum* past, const Accum* weight, int batch, int steps,
                                                      int columns, int channels, int groups, int segments) {
    const unsigned tasks = groups * segments * channels;
    for (unsigned task = blockIdx.x * blockDim.x + threadIdx.x; task < tasks; task += gridDim.x * blockDim.x) {
        const int channel = task % channels, span = task / channels, group = span / segments, segment = span % segments;
        const int start = start_of(segment, segments, steps), stop = start_of(segment + 1, segments, steps);
        Accum taps[TAPS], sums[TAPS + 1] = {};
        for (int k = 0; k < TAPS; ++k) taps[k] = weight[(size_t)k * channels + channel];
        for (int b = start_of(group, groups, batch); b < start_of(group + 1, groups, batch); ++b) {
            const Accum* gradients = dp + (size_t)b * steps * channels + channel;
            const int begin = start ? start : 1 - TAPS;
            Accum d[TAPS];  // dp of step s + k, which sees row s
            for (int k = 1; k < TAPS; ++k)
                d[k] = begin + k > 0 && begin + k <= steps ? gradients[(size_t)(begin + k - 1) * channels] : Accum(0);
            for (int row = begin; row < stop; row += 4) {
                Accum next[4], values[4];
                #pragma unroll
                for (int j = 0; j < 4; ++j) {
                    const int s = row + j, t = s + TAPS - 1;
                    next[j] = s < stop && t < steps ? gradients[(size_t)t * channels] : Accum(0);
                    values[j] = s < stop ? row_of(x, past, b, s, channel, steps, columns, channels) : Accum(0);
                }
                #pragma unroll
                for (int j = 0; j < 4; ++j) {
                    const int s = row + j;
                    if (s >= stop) break;
                    for (int k = 1; k < TAPS; ++k) d[k - 1] = d[k];
                    d[TAPS - 1] = next[j];
                    Accum dx = 0;
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
        const size_t end = end_of(span, groups, segments, batch, steps);
        for (int k = 0; k <= TAPS; ++k)
            if (groups * segments > 1) dp[(end - TAPS - 1 + k) * channels + channel] = sums[k];
            else if (k < TAPS) dweight[(size_t)k * channels + channel] += sums[k];
            else dbias[channel] += sums[k];
    }
}""",
    variants=VARIANTS,
)

# One block per tap (or the bias) of 32 channels: its warps divide the spans, then add up their sums in order.
sum_spans_kernel = Kernel(
    "convolution_sum_spans",
    SPANS
    + r"""
extern "C" __global__ void convolution_sum_spans(Accum* dweight, Accum* dbias, const Accum* dp, int batch, int steps,
                                                 int channels, int groups, int segments) {
    __shared__ Accum partials[32][32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int k = blockIdx.x % (TAPS + 1), channel = blockIdx.x / (TAPS + 1) * 32 + lane, spans = groups * segments;
    Accum sum = 0;
    if (channel < channels) {
        #pragma unroll 8
        for (int span = start_of(warp, 32, spans); span < start_of(warp + 1, 32, spans); ++span)
            sum += dp[(end_of(span, groups, segments, batch, steps) - TAPS - 1 + k) * channels + channel];
    }
    partials[warp][lane] = sum;
    __syncthreads();
    if (warp || channel >= channels) return;
    for (int other = 1; other < 32; ++other) sum += partials[other][lane];
    if (k < TAPS) dweight[(size_t)k * channels + channel] += sum;
    else dbias[channel] += sum;
}""",
    1024,
    VARIANTS,
)


def spans(batch, steps, taps):
    """(groups, segments): a span is a segment of one sequence or, where sequences have fewer than 2 K rows, a group of
    whole sequences.

    A span has at least 2 K rows, unless it is the only one.
    """
    if steps >= 2 * taps:
        return batch, max(1, steps // max(SPAN, 2 * taps))
    return max(1, batch // -(-2 * taps // steps)), 1


def convolution_forward(out, x, past, weight, bias):
    batch, channels, steps = len(past), out.shape[1], len(out) // len(past)
    forward_kernel(
        grid(batch * -(-steps // STEPS) * channels),
        (out, x, past, weight, bias, batch, steps, x.shape[1], channels),
        Real=out,
        TAPS=len(weight),
        STEPS=STEPS,
    )


def convolution_backward(x, dweight, dbias, scratch, dout, past, weight, bias):
    batch, channels, steps, taps = len(past), dout.shape[1], len(dout) // len(past), len(weight)
    groups, segments = spans(batch, steps, taps)
    dp = scratch  # (N, E), the gradient before the SiLU
    backward_silu_kernel(
        grid(batch * -(-steps // STEPS) * channels),
        (dp, dout, x, past, weight, bias, batch, steps, x.shape[1], channels),
        Real=dout,
        TAPS=taps,
        STEPS=STEPS,
    )
    backward_input_kernel(
        grid(groups * segments * channels),
        (x, dweight, dbias, dp, past, weight, batch, steps, x.shape[1], channels, groups, segments),
        Real=dout,
        TAPS=taps,
    )
    if groups * segments > 1:
        sum_spans_kernel(
            (taps + 1) * -(-channels // 32),
            (dweight, dbias, dp, batch, steps, channels, groups, segments),
            Real=dout,
            TAPS=taps,
        )
