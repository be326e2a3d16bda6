"""Causal grouped-query attention as in FlashAttention-2 (Dao 2023).

A block of threads keeps some rows of queries and loops over tiles of keys. Scores and probabilities never leave its
registers. Forward keeps a running maximum and sum of each query's scores, and rescales its sums when the maximum grows.

A query sees itself and the `window` - 1 keys before it, or all keys before it if the window is as long as the sequence.
Tiles that no query of a block sees are skipped.

Backward computes the probabilities again from scores and `lse`, twice: blocks of queries loop over keys for dq, blocks
of keys loop over queries for dk and dv. So each gradient is summed by one block, in one order. The derivative of the
softmax, P * (dP - sum P dP), needs a sum over all keys before its first matmul; that sum equals dout . out.
"""

from typing import Any, NamedTuple

import numpy as np

from .attention_tiles import TILES
from .dropout import threshold_of
from .source import Kernel
from .vector import VECTOR, threads_for_row, vector_size

PARAMETERS = (
    "int heads, int kv_heads, int steps, int window, Accum scale, "
    "Scalar<unsigned> key, unsigned threshold, Accum keep_scale"
)

# Blocks: (sequence, head), blocks of query rows, chunks of the head.
forward_kernel = Kernel(
    "attention_forward",
    TILES
    + r"""
extern "C" __global__ void __launch_bounds__(32 * WARPS)
attention_forward(Storage* out, Accum* lse, const Storage* qkv, PARAMETERS) {
    extern __shared__ float4 memory[];
    Storage* queries = (Storage*)memory;
    Storage* keys = queries + ROWS * STRIDE;
    Storage* values = keys + BUFFERS * COLUMNS * STRIDE;
    const int blocks = (steps + ROWS - 1) / ROWS, own = blockIdx.x % CHUNKS;
    const int task = blockIdx.x / CHUNKS / blocks, h = task % heads, stride = (heads + 2 * kv_heads) * W;
    // The last queries see the most keys, so their blocks go first.
    const int block_start = (blocks - 1 - blockIdx.x / CHUNKS % blocks) * ROWS;
    const int start = block_start + warp_row(), last = start + 16 * ROW_TILES - 1;  // the warp's queries
    const int first_tile = max(0, block_start - window + 1) / COLUMNS;
    const int tiles = (min(steps, block_start + ROWS) + COLUMNS - 1) / COLUMNS - first_tile;
    const Storage* q = qkv + (size_t)(task / heads) * steps * stride + h * W;
    const Storage *k = q + (heads - h + h / (heads / kv_heads)) * W, *v = k + kv_heads * W;
    const unsigned key_value = DROPOUT ? key() : 0;
    Tile<CHUNK> sum = {};
    Tile<COLUMNS> p;
    Accum largest[2 * ROW_TILES], shift[2 * ROW_TILES], total[2 * ROW_TILES], factor[2 * ROW_TILES];
    for (int r = 0; r < 2 * ROW_TILES; ++r) largest[r] = -INF, total[r] = 0;
    pipeline(tiles * CHUNKS, [&](int step, int buffer) {
        const int column_start = (first_tile + step / CHUNKS) * COLUMNS, chunk = chunk_of(step, own);
        if (CHUNKS > 1 || step == 0) load_rows<ROWS>(queries, q, stride, block_start, steps, chunk);
        load_rows<COLUMNS>(keys + buffer * COLUMNS * STRIDE, k, stride, column_start, steps, chunk);
        if (chunk == own) load_rows<COLUMNS>(values + buffer * COLUMNS * STRIDE, v, stride, column_start, steps, chunk);
    }, [&](int step, int buffer) {
        const int column_start = (first_tile + step / CHUNKS) * COLUMNS;
        if (column_start > last || column_start + COLUMNS <= start - window + 1) return;  // no query sees these keys
        if (step % CHUNKS == 0) p = {};
        multiply_transposed(p, queries + warp_row() * STRIDE, keys + buffer * COLUMNS * STRIDE);
        if (chunk_of(step, own) != own) return;
        if (column_start + COLUMNS - 1 > start || column_start <= last - window)
            for_each([&](int, int row, int column, Accum& s) {
                const int age = start + row - column_start - column;
                if (age < 0 || age >= window) s = -INF;
            }, p);
        for (int r = 0; r < 2 * ROW_TILES; ++r) factor[r] = largest[r];
        for_each([&](int r, int, int, Accum s) { largest[r] = max_(largest[r], s); }, p);
        for (int r = 0; r < 2 * ROW_TILES; ++r) {
            largest[r] = row_max(largest[r]);
            shift[r] = largest[r] == -INF ? 0 : mul_rn(largest[r], scale);  // -INF: the query saw no key so far
            factor[r] = exponential(factor[r], scale, shift[r]);
            total[r] *= factor[r];
        }
        for_each([&](int r, int, int, Accum& v) { v *= factor[r]; }, sum);
        for_each([&](int r, int row, int column, Accum& s) {
            s = exponential(s, scale, shift[r]);
            total[r] += s;
            const unsigned index = ((unsigned)task * steps + start + row) * steps + column_start + column;
            if (DROPOUT && hash(key_value, index) < threshold) s = 0;
        }, p);
        multiply(sum, p, values + buffer * COLUMNS * STRIDE);
    });
    for (int r = 0; r < 2 * ROW_TILES; ++r) {
        total[r] = row_sum(total[r]);
        const int t = start + 8 * r + lane() / 4;
        if (own == 0 && lane() % 4 == 0 && t < steps)
            lse[(size_t)task * steps + t] = mul_rn(largest[r], scale) + log(total[r]);
        total[r] = 1 / total[r];
    }
    for_each([&](int r, int, int, Accum& v) { v *= total[r]; }, sum);
    Storage* head = out + (size_t)(task / heads) * steps * heads * W + h * W;
    store_rows(head, heads * W, block_start, steps, own, sum, keep_scale, queries);
}""".replace("PARAMETERS", PARAMETERS),
)

# mean_dp (B H, T): sum_j P dP of each query, from dout and out as stored.
# dq: rows of `dq_stride` elements. They cannot overwrite the queries, which blocks of keys have yet to read.
backward_queries_kernel = Kernel(
    "attention_backward_queries",
    TILES
    + r"""
extern "C" __global__ void __launch_bounds__(32 * WARPS)
attention_backward_queries(Storage* dq, Accum* mean_dp, int dq_stride, const Storage* qkv, const Storage* dout,
                           const Storage* out, const Accum* lse, PARAMETERS) {
    extern __shared__ float4 memory[];
    Storage *queries = (Storage*)memory, *douts = queries + ROWS * STRIDE;
    Storage *keys = douts + ROWS * STRIDE, *values = keys + BUFFERS * COLUMNS * STRIDE;
    const int blocks = (steps + ROWS - 1) / ROWS, own = blockIdx.x % CHUNKS;
    const int task = blockIdx.x / CHUNKS / blocks, h = task % heads, stride = (heads + 2 * kv_heads) * W;
    const int block_start = (blocks - 1 - blockIdx.x / CHUNKS % blocks) * ROWS;
    const int start = block_start + warp_row(), last = start + 16 * ROW_TILES - 1;
    const int first_tile = max(0, block_start - window + 1) / COLUMNS;
    const int tiles = (min(steps, block_start + ROWS) + COLUMNS - 1) / COLUMNS - first_tile;
    const size_t sequence = (size_t)(task / heads) * steps;  // its first row
    const Storage* q = qkv + sequence * stride + h * W;
    const Storage *k = q + (heads - h + h / (heads / kv_heads)) * W, *v = k + kv_heads * W;
    const Storage *d = dout + sequence * heads * W + h * W, *o = out + sequence * heads * W + h * W;
    const unsigned key_value = DROPOUT ? key() : 0;
    Tile<CHUNK> sum = {};
    Tile<COLUMNS> p, dp;
    Accum log_sum[2 * ROW_TILES], mean[2 * ROW_TILES];
    for (int r = 0; r < 2 * ROW_TILES; ++r) {
        const int t = start + 8 * r + lane() / 4;
        const size_t row = (size_t)t * heads * W;
        log_sum[r] = t < steps ? lse[(size_t)task * steps + t] : 0, mean[r] = 0;
        if (t < steps)
            for (int c = lane() % 4 * VEC; c < W; c += 4 * VEC) {
                const Vector<Storage> a = vector(d + row + c), b = vector(o + row + c);
                for (int i = 0; i < VEC; ++i) mean[r] += load(a.at[i]) * load(b.at[i]);
            }
        mean[r] = row_sum(mean[r]);
        if (own == 0 && lane() % 4 == 0 && t < steps) mean_dp[(size_t)task * steps + t] = mean[r];
    }
    pipeline(tiles * CHUNKS, [&](int step, int buffer) {
        const int column_start = (first_tile + step / CHUNKS) * COLUMNS, chunk = chunk_of(step, own);
        if (CHUNKS > 1 || step == 0) {
            load_rows<ROWS>(queries, q, stride, block_start, steps, chunk);
            load_rows<ROWS>(douts, d, heads * W, block_start, steps, chunk);
        }
        load_rows<COLUMNS>(keys + buffer * COLUMNS * STRIDE, k, stride, column_start, steps, chunk);
        load_rows<COLUMNS>(values + buffer * COLUMNS * STRIDE, v, stride, column_start, steps, chunk);
    }, [&](int step, int buffer) {
        const int column_start = (first_tile + step / CHUNKS) * COLUMNS;
        if (column_start > last || column_start + COLUMNS <= start - window + 1) return;
        if (step % CHUNKS == 0) p = {}, dp = {};
        multiply_transposed(p, queries + warp_row() * STRIDE, keys + buffer * COLUMNS * STRIDE);
        multiply_transposed(dp, douts + warp_row() * STRIDE, values + buffer * COLUMNS * STRIDE);
        if (chunk_of(step, own) != own) return;
        if (column_start + COLUMNS - 1 > start || column_start <= last - window)
            for_each([&](int, int row, int column, Accum& s) {
                const int age = start + row - column_start - column;
                if (age < 0 || age >= window) s = -INF;
            }, p);
        for_each([&](int r, int row, int column, Accum& s, Accum& ds) {
            s = exponential(s, scale, log_sum[r]);
            const unsigned index = ((unsigned)task * steps + start + row) * steps + column_start + column;
            if (DROPOUT) ds = hash(key_value, index) < threshold ? 0 : ds * keep_scale;
            ds = s * (ds - mean[r]);
        }, p, dp);
        multiply(sum, dp, keys + buffer * COLUMNS * STRIDE);
    });
    store_rows(dq + sequence * dq_stride + h * W, dq_stride, block_start, steps, own, sum, scale, queries);
}""".replace("PARAMETERS", PARAMETERS),
)

# The same with scores transposed: a row is a key, a column a query, of all query heads of the group one after another.
# dkv: rows of (H + 2 K) w elements. It may overwrite the keys and values: a block reads no keys but its own.
backward_keys_kernel = Kernel(
    "attention_backward_keys",
    TILES
    + r"""
extern "C" __global__ void __launch_bounds__(32 * WARPS)
attention_backward_keys(Storage* dkv, const Storage* qkv, const Storage* dout, const Accum* lse, const Accum* mean_dp,
                        PARAMETERS) {
    extern __shared__ float4 memory[];
    Storage *keys = (Storage*)memory, *values = keys + ROWS * STRIDE;
    Storage *queries = values + ROWS * STRIDE, *douts = queries + BUFFERS * COLUMNS * STRIDE;
    Accum *log_sums = (Accum*)(douts + BUFFERS * COLUMNS * STRIDE), *means = log_sums + BUFFERS * COLUMNS;
    const int blocks = (steps + ROWS - 1) / ROWS, own = blockIdx.x % CHUNKS;
    const int task = blockIdx.x / CHUNKS / blocks, stride = (heads + 2 * kv_heads) * W;
    const int block_start = blockIdx.x / CHUNKS % blocks * ROWS;
    const int start = block_start + warp_row(), last = start + 16 * ROW_TILES - 1;  // the warp's keys
    const int group = heads / kv_heads, h = task % kv_heads * group;
    // Tiles of queries that come before these keys, and those that see some of them.
    const int skipped = block_start / COLUMNS;
    const int tiles = (min(steps, block_start + ROWS - 1 + window) + COLUMNS - 1) / COLUMNS - skipped;
    const int first_task = task / kv_heads * heads + h;  // of the first query head of the group
    const size_t sequence = (size_t)(task / kv_heads) * steps;
    const size_t key_offset = sequence * stride + (heads + task % kv_heads) * W;
    const Storage *q = qkv + sequence * stride + h * W, *k = qkv + key_offset, *v = k + kv_heads * W;
    const Storage* d = dout + sequence * heads * W + h * W;
    const unsigned key_value = DROPOUT ? key() : 0;
    Tile<CHUNK> dk = {}, dv = {};
    Tile<COLUMNS> p, dp;
    pipeline(group * tiles * CHUNKS, [&](int step, int buffer) {
        const int member = step / CHUNKS / tiles, column_start = (skipped + step / CHUNKS % tiles) * COLUMNS;
        const int chunk = chunk_of(step, own);
        if (CHUNKS > 1 || step == 0) {
            load_rows<ROWS>(keys, k, stride, block_start, steps, chunk);
            load_rows<ROWS>(values, v, stride, block_start, steps, chunk);
        }
        load_rows<COLUMNS>(queries + buffer * COLUMNS * STRIDE, q + member * W, stride, column_start, steps, chunk);
        load_rows<COLUMNS>(douts + buffer * COLUMNS * STRIDE, d + member * W, heads * W, column_start, steps, chunk);
        for (int i = threadIdx.x; i < COLUMNS; i += 32 * WARPS) {
            const size_t row = (size_t)(first_task + member) * steps + column_start + i;
            if (column_start + i < steps) {
                copy_async(log_sums + buffer * COLUMNS + i, lse + row);
                copy_async(means + buffer * COLUMNS + i, mean_dp + row);
            } else {  // past the end: probability zero
                log_sums[buffer * COLUMNS + i] = INF, means[buffer * COLUMNS + i] = 0;
            }
        }
    }, [&](int step, int buffer) {
        const int member = step / CHUNKS / tiles, column_start = (skipped + step / CHUNKS % tiles) * COLUMNS;
        if (start >= column_start + COLUMNS || column_start - last >= window) return;  // no query sees the warp's keys
        if (step % CHUNKS == 0) p = {}, dp = {};
        multiply_transposed(p, keys + warp_row() * STRIDE, queries + buffer * COLUMNS * STRIDE);
        multiply_transposed(dp, values + warp_row() * STRIDE, douts + buffer * COLUMNS * STRIDE);
        if (chunk_of(step, own) != own) return;
        if (last > column_start || column_start + COLUMNS - 1 - start >= window)
            for_each([&](int, int row, int column, Accum& s) {
                const int age = column_start + column - start - row;
                if (age < 0 || age >= window) s = -INF;
            }, p);
        const unsigned base = (unsigned)(first_task + member) * steps;
        for_each([&](int, int row, int column, Accum& s, Accum& ds) {
            s = exponential(s, scale, log_sums[buffer * COLUMNS + column]);
            const unsigned index = (base + column_start + column) * steps + start + row;
            const bool dropped = DROPOUT && hash(key_value, index) < threshold;
            ds = s * ((dropped ? 0 : ds * keep_scale) - means[buffer * COLUMNS + column]);
            if (dropped) s = 0;
        }, p, dp);
        multiply(dv, p, douts + buffer * COLUMNS * STRIDE);
        multiply(dk, dp, queries + buffer * COLUMNS * STRIDE);
    });
    store_rows(dkv + key_offset, stride, block_start, steps, own, dk, scale, keys);
    store_rows(dkv + key_offset + kv_heads * W, stride, block_start, steps, own, dv, keep_scale, values);
}""".replace("PARAMETERS", PARAMETERS),
)

# Copies gradients (rows, columns) to the first `columns` elements of each row of qkv.
copy_rows_kernel = Kernel(
    "attention_copy_rows",
    VECTOR
    + r"""
extern "C" __global__ void attention_copy_rows(Storage* qkv, const Storage* gradients, int stride, int columns) {
    for (int c = VEC * threadIdx.x; c < columns; c += VEC * blockDim.x)
        vector(qkv + (size_t)blockIdx.x * stride + c) = vector(gradients + (size_t)blockIdx.x * columns + c);
}""",
    variants=[dict(Storage=t, VEC=n) for t, n in (("float", 4), ("double", 1), ("bfloat16", 8), ("half", 1))],
)


class Plan(NamedTuple):
    """How a block divides its work."""

    warps: int
    row_tiles: int  # of 16 rows, per warp
    columns: int  # of a tile
    buffers: int  # for tiles in shared memory


CHUNK = 128  # columns of a head that a block can sum in registers
MAX_SHARED = 64 * 1024  # bytes of shared memory that a block may have on every GPU since Turing
# The first plan that fits into shared memory is used. More rows per warp need fewer reads of shared memory per matmul,
# up to the limit of 255 registers per thread. A second buffer hides the latency of memory.
FORWARD = Plan(4, 2, 64, 2), Plan(4, 2, 32, 1), Plan(4, 1, 16, 1), Plan(1, 1, 16, 1)
BACKWARD_QUERIES = Plan(4, 2, 32, 2), Plan(4, 1, 32, 1), Plan(2, 1, 16, 1), Plan(1, 1, 8, 1)
BACKWARD_KEYS = Plan(4, 1, 64, 2), Plan(4, 1, 32, 1), Plan(2, 1, 16, 1), Plan(1, 1, 8, 1)


def chunks(width):
    """Number of chunks of a head."""
    return -(-width // CHUNK)


def constants(plans, width, itemsize, steps, arrays, vec):
    """({name: constant}, bytes of shared memory) of a kernel that keeps so many arrays of its block's rows there."""
    chunk = -(-width // (16 * chunks(width))) * 16
    for warps, row_tiles, columns, buffers in plans:
        row_tiles = min(row_tiles, -(-steps // (16 * warps)))  # no more than a short sequence needs
        if chunks(width) > 1:
            buffers = 1  # the block's own rows change with the chunk, and have one buffer
        tile_bytes = (arrays * 16 * row_tiles * warps + 2 * buffers * columns) * (chunk * itemsize + 16)
        shared = tile_bytes + 2 * buffers * columns * 8
        if shared <= MAX_SHARED:
            break
    return dict(
        W=width,
        CHUNK=chunk,
        CHUNKS=chunks(width),
        WARPS=warps,
        ROW_TILES=row_tiles,
        COLUMNS=columns,
        BUFFERS=buffers,
        VEC=vec,
    ), shared


for kernel, plans, arrays in (
    (forward_kernel, FORWARD, 1),
    (backward_queries_kernel, BACKWARD_QUERIES, 2),
    (backward_keys_kernel, BACKWARD_KEYS, 2),
):
    kernel.variants = [
        dict(constants(plans, width, itemsize, 256, arrays, vec)[0], Storage=t, DROPOUT=dropout)
        for t, itemsize, width, vec, dropout in (
            ("bfloat16", 2, 64, 8, 0),
            ("bfloat16", 2, 33, 1, 1),
            ("half", 2, 256, 8, 1),
            ("float", 4, 64, 4, 1),
            ("double", 8, 33, 1, 0),
        )
    ]


class Shape(NamedTuple):
    """What all three kernels take beside their arrays."""

    width: int
    heads: int
    kv_heads: int
    steps: int
    dropout: Any
    window: int  # 0: all keys up to the query
    scale: Any  # of the scores, or None


def score_scale(storage, width):
    """1 / sqrt(w) as kernels compute it for arrays like `storage`."""
    accumulated = np.float64 if storage.dtype == np.float64 else np.float32
    return accumulated(1) / np.sqrt(accumulated(width))


def launch(kernel, plans, arrays, tasks, arguments, shape, storage):
    """One block per task (sequence and head, or group of heads), block of rows and chunk.

    arrays: as in `constants`.   storage: the arrays of the storage type, which decide on vectorized access
    """
    width, heads, kv_heads, steps, dropout, window, scale = shape
    rate, key = dropout or (0.0, 0)
    itemsize = storage[0].dtype.itemsize
    window = min(window or steps, steps)
    scale = score_scale(storage[0], width) if scale is None else scale
    vec = 16 // itemsize
    if width % vec or any(x.data.ptr % 16 for x in storage):
        vec = 1
    named, shared = constants(plans, width, itemsize, steps, arrays, vec)
    rows = 16 * named["ROW_TILES"] * named["WARPS"]
    kernel(
        tasks * -(-steps // rows) * named["CHUNKS"],
        (*arguments, heads, kv_heads, steps, window, scale, key, threshold_of(rate), 1 / (1 - rate)),
        shared=shared,
        threads=32 * named["WARPS"],
        Storage=storage[0],
        DROPOUT=int(rate > 0),
        **named,
    )


class BackwardScratch(NamedTuple):
    """Views of the scratch of backward."""

    gradients: Any  # (N, H w) of the queries alone or, where a head has several chunks, (N, (H + 2 K) w)
    mean_dp: Any  # (B H, T)


def attention_scratch(steps, width, tasks):
    """Shape of the scratch of backward: one element per query, and the gradients that cannot overwrite their inputs.

    These are the queries' gradients, because the keys' still need the queries, and all three where a head has several
    chunks.
    """
    return tasks, steps * (1 + width * (1 if chunks(width) == 1 else 3))


def attention_forward(
    out,
    lse,
    scratch,
    qkv,
    heads,
    kv_heads,
    steps,
    dropout,
    window=0,
    scale=None,
):
    """dropout: None, or (rate, key). The key is a number, or a device array of one uint32 for a captured graph."""
    shape = Shape(out.shape[1] // heads, heads, kv_heads, steps, dropout, window, scale)
    launch(forward_kernel, FORWARD, 1, lse.size // steps, (out, lse, qkv), shape, (qkv, out))


def attention_backward(
    qkv,
    scratch,
    dout,
    out,
    lse,
    heads,
    kv_heads,
    steps,
    dropout,
    window=0,
    scale=None,
):
    rows, stride = qkv.shape
    shape = Shape(dout.shape[1] // heads, heads, kv_heads, steps, dropout, window, scale)
    columns = dout.shape[1] if chunks(shape.width) == 1 else stride  # of the gradients in scratch
    scratch = scratch.reshape(-1)
    gradients, mean_dp = BackwardScratch(
        gradients=scratch[: scratch.size - lse.size].view(qkv.dtype)[: rows * columns],
        mean_dp=scratch[scratch.size - lse.size :],
    )
    storage = qkv, dout, out, gradients
    launch(
        backward_queries_kernel,
        BACKWARD_QUERIES,
        2,
        lse.size // steps,
        (gradients, mean_dp, columns, qkv, dout, out, lse),
        shape,
        storage,
    )
    launch(
        backward_keys_kernel,
        BACKWARD_KEYS,
        2,
        rows // steps * kv_heads,
        (qkv if columns < stride else gradients, qkv, dout, lse, mean_dp),
        shape,
        storage,
    )
    vec = vector_size(shape.width, qkv, gradients)
    copy_rows_kernel(
        rows, (qkv, gradients, stride, columns), threads=threads_for_row(columns // vec), Storage=qkv, VEC=vec
    )
