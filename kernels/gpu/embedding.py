"""Rows of a table, picked forward and summed backward.

Backward adds without atomics, whose order varies. The places of a batch are first sorted by their tokens, and places of one token stay in their
order: a radix sort of eight bits at a time. Equal tokens then lie side by side in runs. A block sums 64 sorted places: a run within them is
added to its row of the table; what a run has in several blocks is written down, and added up in the order of the blocks. So a token that makes
up a fifth of a corpus takes as many blocks as it needs, and the bits never vary.
"""

import numpy as np

from .scratch import scratch
from .source import Kernel, grid
from .vector import SEVERAL, count, threads_of_row, variants

TILE, SPAN = 512, 64  # places that a warp sorts, and that a block sums
PLACE = np.dtype(np.uint32)

# Tokens are integers of any type; arrays of uint16 are what the prelude calls bfloat16.
ROW = r"""
template <class T> __device__ __forceinline__ size_t row_of(T token) { return (size_t)token; }
__device__ __forceinline__ size_t row_of(bfloat16 token) { return token.bits; }
"""
TOKENS = ("int", "bfloat16", "long long", "unsigned", "unsigned char")
NUMBERS = [dict(Number="float", Token=token) for token in TOKENS] + [dict(Number="double", Token="int")]

# A warp takes a row.
pick = Kernel(
    "embedding_forward",
    SEVERAL
    + ROW
    + r"""
extern "C" __global__ void embedding_forward(Number* out, const Token* tokens, const Number* weight, const Number* positions,
                                             size_t rows, size_t places, int width) {
    const size_t r = blockIdx.x * (size_t)(blockDim.x / 32) + threadIdx.x / 32;
    if (r >= rows) return;
    const size_t start = row_of(tokens[r]) * width, place = positions ? r % places * width : 0;
    for (int c = COUNT * (threadIdx.x % 32); c < width; c += COUNT * 32) {
        Several<Number> v = several(weight + start + c);
        if (positions) {
            const Several<Number> p = several(positions + place + c);
            for (int j = 0; j < COUNT; ++j) v.at[j] += p.at[j];
        }
        several(out + r * width + c) = v;
    }
}""",
    variants=[types for numbers in NUMBERS for types in variants(**numbers)],
)

# One pass of the sort by the digit (token >> shift) & 255. A block is a warp, which walks its tile 32 places at a time, in order.
# SCATTER 0: counts[digit, tile] = places of that digit.   SCATTER 1: counts, summed up by now, say where they go.   given null: the places in order.
sort_places = Kernel(
    "sort_places",
    ROW
    + r"""
extern "C" __global__ void sort_places(unsigned* sorted, unsigned* counts, const unsigned* given, const Token* tokens, unsigned n, int shift) {
    __shared__ unsigned seen[256];
    const unsigned lane = threadIdx.x, low = blockIdx.x * TILE, high = n - low < TILE ? n : low + TILE;
    for (unsigned d = lane; d < 256; d += 32) seen[d] = SCATTER ? counts[d * gridDim.x + blockIdx.x] : 0;
    __syncwarp();
    for (unsigned start = low; start < high; start += 32) {
        const bool real = start + lane < high;
        const unsigned place = !real ? 0 : given ? given[start + lane] : start + lane;
        const unsigned digit = real ? row_of(tokens[place]) >> shift & 255 : 256;
        unsigned before = 0, all = 0;  // lanes of the same digit
        for (unsigned other = 0; other < 32; ++other) {
            const bool equal = __shfl_sync(0xffffffffu, digit, other) == digit;
            all += equal, before += equal && other < lane;
        }
        const unsigned slot = real ? seen[digit] + before : 0;
        __syncwarp();
        if (real && before == 0) seen[digit] += all;
        __syncwarp();
        if (SCATTER && real) sorted[slot] = place;
    }
    if (!SCATTER) for (unsigned d = lane; d < 256; d += 32) counts[d * gridDim.x + blockIdx.x] = seen[d];
}""",
    threads=32,
    variants=[dict(Token=token, SCATTER=scatter, TILE=TILE) for token in TOKENS for scatter in (0, 1)],
)

# counts[i] = sum of counts before i. One block: there are few of them, and every thread sums a stretch of its own.
sum_before = Kernel(
    "sum_before",
    r"""
extern "C" __global__ void sum_before(unsigned* counts, unsigned n) {
    __shared__ unsigned sums[1024];
    const unsigned t = threadIdx.x, each = (n + 1023) / 1024, low = t * each < n ? t * each : n, high = low + each < n ? low + each : n;
    unsigned mine = 0;
    for (unsigned i = low; i < high; ++i) mine += counts[i];
    sums[t] = mine;
    __syncthreads();
    for (unsigned step = 1; step < 1024; step *= 2) {
        const unsigned below = t >= step ? sums[t - step] : 0;
        __syncthreads();
        sums[t] += below;
        __syncthreads();
    }
    unsigned sum = sums[t] - mine;
    for (unsigned i = low; i < high; ++i) {
        const unsigned found = counts[i];
        counts[i] = sum;
        sum += found;
    }
}""",
    threads=1024,
)

# parts (blocks, 2, width): the sum of a block's first places, if their run began before it, and of its last ones, if theirs goes on after it.
sum_runs = Kernel(
    "sum_runs",
    ROW
    + r"""
extern "C" __global__ void sum_runs(Number* dweight, Number* parts, const Operand* dout, const Token* tokens, const unsigned* sorted, unsigned n, int width) {
    __shared__ unsigned places[SPAN];
    __shared__ long long rows[SPAN + 2];  // with the neighbours before and after, -1 where there is none
    const unsigned low = blockIdx.x * SPAN, many = n - low < SPAN ? n - low : SPAN;
    for (unsigned k = threadIdx.x; k < many + 2; k += blockDim.x) {
        const bool real = low + k > 0 && low + k <= n;
        const unsigned place = real ? sorted[low + k - 1] : 0;
        rows[k] = real ? (long long)row_of(tokens[place]) : -1;
        if (k > 0 && k <= many) places[k - 1] = place;
    }
    __syncthreads();
    for (int c = threadIdx.x; c < width; c += blockDim.x) {
        Number* part = parts + 2 * blockIdx.x * (size_t)width + c;
        bool begun_before = rows[0] == rows[1];
        Compute sum = 0;
        for (unsigned k = 0; k < many; k += 8) {
            Compute next[8];  // asked for together: a sum that waits for each in turn waits for memory
            #pragma unroll
            for (unsigned j = 0; j < 8; ++j) next[j] = k + j < many ? load(dout[places[k + j] * (size_t)width + c]) : 0;
            #pragma unroll
            for (unsigned j = 0; j < 8; ++j) {
                const unsigned i = k + j + 1;  // the place's own row is rows[i]
                if (i > many) break;
                sum += next[j];
                const bool goes_on = rows[i + 1] == rows[i];
                if (goes_on && i < many) continue;
                if (begun_before) part[0] = sum;
                else if (goes_on) part[width] = sum;
                else dweight[rows[i] * width + c] += sum;
                sum = 0, begun_before = false;
            }
        }
    }
}""",
    variants=[dict(types, Operand=types["Number"], SPAN=SPAN) for types in NUMBERS]
    + [dict(Number="float", Operand=t, Token="int", SPAN=SPAN) for t in ("bfloat16", "half")],
)

# A block whose last run begins in it and goes on adds up all that the run has.
join_runs = Kernel(
    "join_runs",
    ROW
    + r"""
extern "C" __global__ void join_runs(Number* dweight, const Number* parts, const Token* tokens, const unsigned* sorted, unsigned n, int width) {
    __shared__ int shared[32];
    const unsigned low = blockIdx.x * SPAN;
    if (n - low <= SPAN) return;
    const size_t row = row_of(tokens[sorted[low + SPAN - 1]]);
    if (row_of(tokens[sorted[low + SPAN]]) != row || (low > 0 && row_of(tokens[sorted[low - 1]]) == row)) return;
    int more = 0;  // blocks that begin within the run; their tokens are in order, so they come next
    for (unsigned b = blockIdx.x + 1 + threadIdx.x; b < gridDim.x && row_of(tokens[sorted[b * SPAN]]) == row; b += blockDim.x) ++more;
    more = block_sum(more, shared);
    for (int c = threadIdx.x; c < width; c += blockDim.x) {
        const Number* part = parts + 2 * blockIdx.x * (size_t)width + c;
        Compute sum = part[width];
        #pragma unroll 8
        for (int b = 1; b <= more; ++b) sum += part[2 * b * (size_t)width];
        dweight[row * width + c] += sum;
    }
}""",
    variants=[dict(types, SPAN=SPAN) for types in NUMBERS],
)

# dpositions[t] += dout[t] + dout[t + T] + ...: a thread takes one number of the T rows, and all texts.
sum_texts = Kernel(
    "sum_texts",
    r"""
extern "C" __global__ void sum_texts(Number* dpositions, const Operand* dout, size_t places, size_t n) {
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < places && i < n; i += gridDim.x * (size_t)blockDim.x) {
        const size_t texts = (n - i - 1) / places + 1;  // counted, so that the compiler asks for eight together
        Compute sum = 0;
        #pragma unroll 8
        for (size_t text = 0; text < texts; ++text) sum += load(dout[text * places + i]);
        dpositions[i] += sum;
    }
}""",
    variants=[
        dict(Number="double" if t == "double" else "float", Operand=t) for t in ("float", "double", "bfloat16", "half")
    ],
)


def embedding_forward(out, tokens, weight, positions):
    rows, width = out.shape
    pick(
        -(-rows // 8),
        (out, tokens, weight, positions, rows, 1 if positions is None else len(positions), width),
        Number=out,
        Token=tokens,
        COUNT=count(width, out, weight, positions),
    )


def embedding_backward(dweight, dpositions, dout, tokens):
    n, width = dout.shape
    tiles, blocks = -(-n // TILE), -(-n // SPAN)
    counts, sorted_, other, parts = scratch(
        (256 * tiles, PLACE), (n, PLACE), (n, PLACE), (2 * blocks * width, dweight.dtype)
    )
    given = None
    for shift in range(0, max(1, (len(dweight) - 1).bit_length()), 8):
        into = other if given is sorted_ else sorted_
        for scatter in (0, 1):
            sort_places(tiles, (into, counts, given, tokens, n, shift), Token=tokens, SCATTER=scatter, TILE=TILE)
            if not scatter:
                sum_before(1, (counts, 256 * tiles))
        given = into
    threads = threads_of_row(width)
    sum_runs(
        blocks,
        (dweight, parts, dout, tokens, given, n, width),
        threads=threads,
        Number=dweight,
        Operand=dout,
        Token=tokens,
        SPAN=SPAN,
    )
    join_runs(
        blocks, (dweight, parts, tokens, given, n, width), threads=threads, Number=dweight, Token=tokens, SPAN=SPAN
    )
    if dpositions is not None:
        sum_texts(
            grid(dpositions.size), (dpositions, dout, dpositions.size, dout.size), Number=dpositions, Operand=dout
        )
