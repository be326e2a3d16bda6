"""Embedding: rows of a table looked up forward, summed by token backward.

Backward adds without atomics, whose order varies. The positions of a batch are first sorted by their tokens with a
stable radix sort, eight bits at a time. Equal tokens then form runs. A block sums 64 sorted positions: it adds a run
within them to its row of the table, and stores the sum of a run that continues in other blocks, to be added up in the
order of the blocks. So a token that makes up a fifth of a corpus occupies as many blocks as it needs, and the bits
never vary.
"""

import numpy as np

from .scratch import scratch
from .source import Kernel, grid
from .vector import VECTOR, threads_for_row, variants, vector_size

TILE, SPAN = 512, 64  # positions that a warp sorts, and that a block sums
INDEX = np.dtype(np.uint32)  # of a position

# Tokens may have any integer type. The prelude's name for uint16 is bfloat16.
ROW = r"""
template <class T> __device__ __forceinline__ size_t row_of(T token) { return (size_t)token; }
__device__ __forceinline__ size_t row_of(bfloat16 token) { return token.bits; }
"""
TOKENS = ("int", "bfloat16", "long long", "unsigned", "unsigned char")
TYPES = [dict(Real="float", Token=token) for token in TOKENS] + [dict(Real="double", Token="int")]
SHORT = [dict(Real=short, Token="int") for short in ("bfloat16", "half")]  # types of a cast copy

# One row per warp.
lookup_kernel = Kernel(
    "embedding_forward",
    VECTOR
    + ROW
    + r"""
extern "C" __global__ void embedding_forward(Real* out, const Token* tokens, const Real* weight, const Real* positions,
                                             size_t rows, size_t steps, int width) {
    const size_t r = blockIdx.x * (size_t)(blockDim.x / 32) + threadIdx.x / 32;
    if (r >= rows) return;
    const size_t token_row = row_of(tokens[r]) * width, position_row = positions ? r % steps * width : 0;
    for (int c = VEC * (threadIdx.x % 32); c < width; c += VEC * 32) {
        Vector<Real> v = vector(weight + token_row + c);
        if (positions) {
            const Vector<Real> p = vector(positions + position_row + c);
            for (int j = 0; j < VEC; ++j) v.at[j] = store<Real>(load(v.at[j]) + load(p.at[j]));
        }
        vector(out + r * width + c) = v;
    }
}""",
    variants=[types for one in TYPES + SHORT for types in variants(**one)],
)

# One pass of the sort by the digit (token >> shift) & 255. A block is one warp, which goes through its tile 32
# positions at a time.
# SCATTER 0: counts[digit, tile] = number of positions.   SCATTER 1: counts, summed up by now, are the offsets to
# scatter to.
# order: the positions in their current order; null in the first pass, for 0, 1, 2, ...
sort_kernel = Kernel(
    "sort_positions",
    ROW
    + r"""
extern "C" __global__ void sort_positions(unsigned* sorted, unsigned* counts, const unsigned* order,
                                          const Token* tokens, unsigned n, int shift) {
    __shared__ unsigned seen[256];
    const unsigned lane = threadIdx.x, tile_start = blockIdx.x * TILE;
    const unsigned tile_stop = n - tile_start < TILE ? n : tile_start + TILE;
    for (unsigned d = lane; d < 256; d += 32) seen[d] = SCATTER ? counts[d * gridDim.x + blockIdx.x] : 0;
    __syncwarp();
    for (unsigned start = tile_start; start < tile_stop; start += 32) {
        const bool active = start + lane < tile_stop;
        const unsigned position = !active ? 0 : order ? order[start + lane] : start + lane;
        const unsigned digit = active ? row_of(tokens[position]) >> shift & 255 : 256;
        unsigned before = 0, equals = 0;  // lanes with the same digit: lower ones, and all
        for (unsigned other = 0; other < 32; ++other) {
            const bool equal = __shfl_sync(0xffffffffu, digit, other) == digit;
            equals += equal, before += equal && other < lane;
        }
        const unsigned slot = active ? seen[digit] + before : 0;
        __syncwarp();
        if (active && before == 0) seen[digit] += equals;
        __syncwarp();
        if (SCATTER && active) sorted[slot] = position;
    }
    if (!SCATTER) for (unsigned d = lane; d < 256; d += 32) counts[d * gridDim.x + blockIdx.x] = seen[d];
}""",
    threads=32,
    variants=[dict(Token=token, SCATTER=scatter, TILE=TILE) for token in TOKENS for scatter in (0, 1)],
)

# Exclusive prefix sum: counts[i] = sum of counts[:i]. One block, as there are few counts; each thread sums a contiguous
# part.
prefix_sum_kernel = Kernel(
    "prefix_sum",
    r"""
extern "C" __global__ void prefix_sum(unsigned* counts, unsigned n) {
    __shared__ unsigned sums[1024];
    const unsigned t = threadIdx.x, each = (n + 1023) / 1024;
    const unsigned start = t * each < n ? t * each : n, stop = start + each < n ? start + each : n;
    unsigned own = 0;
    for (unsigned i = start; i < stop; ++i) own += counts[i];
    sums[t] = own;
    __syncthreads();
    for (unsigned step = 1; step < 1024; step *= 2) {
        const unsigned below = t >= step ? sums[t - step] : 0;
        __syncthreads();
        sums[t] += below;
        __syncthreads();
    }
    unsigned sum = sums[t] - own;
    for (unsigned i = start; i < stop; ++i) {
        const unsigned count = counts[i];
        counts[i] = sum;
        sum += count;
    }
}""",
    threads=1024,
)

# partials (blocks, 2, width): the sum of a block's first run if it began in an earlier block, and of its last run if it
# continues.
sum_runs_kernel = Kernel(
    "sum_runs",
    ROW
    + r"""
extern "C" __global__ void sum_runs(Real* dweight, Real* partials, const Storage* dout, const Token* tokens,
                                    const unsigned* sorted, unsigned n, int width) {
    __shared__ unsigned positions[SPAN];
    __shared__ long long rows[SPAN + 2];  // with the neighbors before and after; -1 where there is none
    const unsigned start = blockIdx.x * SPAN, count = n - start < SPAN ? n - start : SPAN;
    for (unsigned k = threadIdx.x; k < count + 2; k += blockDim.x) {
        const bool exists = start + k > 0 && start + k <= n;
        const unsigned position = exists ? sorted[start + k - 1] : 0;
        rows[k] = exists ? (long long)row_of(tokens[position]) : -1;
        if (k > 0 && k <= count) positions[k - 1] = position;
    }
    __syncthreads();
    for (int c = threadIdx.x; c < width; c += blockDim.x) {
        Real* partial = partials + 2 * blockIdx.x * (size_t)width + c;
        bool began_before = rows[0] == rows[1];
        Accum sum = 0;
        for (unsigned k = 0; k < count; k += 8) {
            Accum next[8];  // eight loads in flight: one by one, each addition would wait for memory
            #pragma unroll
            for (unsigned j = 0; j < 8; ++j)
                next[j] = k + j < count ? load(dout[positions[k + j] * (size_t)width + c]) : 0;
            #pragma unroll
            for (unsigned j = 0; j < 8; ++j) {
                const unsigned i = k + j + 1;  // of the position's own row in `rows`
                if (i > count) break;
                sum += next[j];
                const bool continues = rows[i + 1] == rows[i];
                if (continues && i < count) continue;
                if (began_before) partial[0] = sum;
                else if (continues) partial[width] = sum;
                else dweight[rows[i] * width + c] += sum;
                sum = 0, began_before = false;
            }
        }
    }
}""",
    variants=[dict(types, Storage=types["Real"], SPAN=SPAN) for types in TYPES]
    + [dict(Real="float", Storage=t, Token="int", SPAN=SPAN) for t in ("bfloat16", "half")],
)

# A block whose last run begins in it and continues in later blocks adds up the whole run.
join_runs_kernel = Kernel(
    "join_runs",
    ROW
    + r"""
extern "C" __global__ void join_runs(Real* dweight, const Real* partials, const Token* tokens, const unsigned* sorted,
                                     unsigned n, int width) {
    __shared__ int shared[32];
    const unsigned start = blockIdx.x * SPAN;
    if (n - start <= SPAN) return;
    const size_t row = row_of(tokens[sorted[start + SPAN - 1]]);
    if (row_of(tokens[sorted[start + SPAN]]) != row || (start > 0 && row_of(tokens[sorted[start - 1]]) == row)) return;
    int more = 0;  // blocks that begin within the run: the next ones, as tokens are sorted
    unsigned b = blockIdx.x + 1 + threadIdx.x;
    for (; b < gridDim.x && row_of(tokens[sorted[b * SPAN]]) == row; b += blockDim.x) ++more;
    more = block_sum(more, shared);
    for (int c = threadIdx.x; c < width; c += blockDim.x) {
        const Real* partial = partials + 2 * blockIdx.x * (size_t)width + c;
        Accum sum = partial[width];
        #pragma unroll 8
        for (int b = 1; b <= more; ++b) sum += partial[2 * b * (size_t)width];
        dweight[row * width + c] += sum;
    }
}""",
    variants=[dict(types, SPAN=SPAN) for types in TYPES],
)

# dpositions[t] += sum over sequences of dout[b, t]. One thread per element of the (T, width) table.
sum_sequences_kernel = Kernel(
    "sum_sequences",
    r"""
extern "C" __global__ void sum_sequences(Real* dpositions, const Storage* dout, size_t table, size_t n) {
    const size_t first = blockIdx.x * (size_t)blockDim.x + threadIdx.x;
    for (size_t i = first; i < table && i < n; i += gridDim.x * (size_t)blockDim.x) {
        const size_t sequences = (n - i - 1) / table + 1;  // a count, so that the loop below can be unrolled
        Accum sum = 0;
        #pragma unroll 8
        for (size_t b = 0; b < sequences; ++b) sum += load(dout[b * table + i]);
        dpositions[i] += sum;
    }
}""",
    variants=[
        dict(Real="double" if t == "double" else "float", Storage=t) for t in ("float", "double", "bfloat16", "half")
    ],
)


def embedding_forward(out, tokens, weight, positions):
    rows, width = out.shape
    lookup_kernel(
        -(-rows // 8),
        (out, tokens, weight, positions, rows, 1 if positions is None else len(positions), width),
        Real=out,
        Token=tokens,
        VEC=vector_size(width, out, weight, positions),
    )


def embedding_backward(dweight, dpositions, dout, tokens):
    n, width = dout.shape
    tiles, blocks = -(-n // TILE), -(-n // SPAN)
    counts, sorted_a, sorted_b, partials = scratch(
        (256 * tiles, INDEX), (n, INDEX), (n, INDEX), (2 * blocks * width, dweight.dtype)
    )
    order = None
    for shift in range(0, max(1, (len(dweight) - 1).bit_length()), 8):
        target = sorted_b if order is sorted_a else sorted_a
        for scatter in (0, 1):
            sort_kernel(tiles, (target, counts, order, tokens, n, shift), Token=tokens, SCATTER=scatter, TILE=TILE)
            if not scatter:
                prefix_sum_kernel(1, (counts, 256 * tiles))
        order = target
    threads = threads_for_row(width)
    sum_runs_kernel(
        blocks,
        (dweight, partials, dout, tokens, order, n, width),
        threads=threads,
        Real=dweight,
        Storage=dout,
        Token=tokens,
        SPAN=SPAN,
    )
    join_runs_kernel(
        blocks,
        (dweight, partials, tokens, order, n, width),
        threads=threads,
        Real=dweight,
        Token=tokens,
        SPAN=SPAN,
    )
    if dpositions is not None:
        sum_sequences_kernel(
            grid(dpositions.size), (dpositions, dout, dpositions.size, dout.size), Real=dpositions, Storage=dout
        )
