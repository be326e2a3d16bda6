"""Causal grouped-query attention in the manner of FlashAttention-2 (Dao 2023): a block of threads holds some rows of queries and walks over tiles
of keys, and what it makes of the scores never leaves its registers.

Forward keeps a running maximum and sum of each query's scores and rescales what it has summed when the maximum grows. Backward makes the
probabilities again from the scores and `lse`, twice: blocks of queries walk over keys for dq, blocks of keys walk over queries for dk and dv.
So each gradient is summed by one block, in one order. The softmax's derivative P * (dP - sum P dP) needs a sum over all keys before the
first product with it, which is dout . out.

A warp's part of any of these products lies in registers as the tensor cores leave it (`Tile`). There are but two products, the scores' and
the one whose left side is such a part; without tensor cores, or for float and double, each is made of plain multiply-adds.
"""

from .dropout import threshold_of
from .source import Kernel
from .vector import SEVERAL, count, threads_of_row

COMMON = r"""
constexpr int ROWS = 16 * TALL * WARPS;                        // of a block
constexpr int STRIDE = CHUNK + 16 / (int)sizeof(Operand);      // of rows in shared memory: 16 bytes more, so that eight rows begin in different banks
constexpr int LOTS = CHUNK / LOT;                              // of a row: LOT numbers are copied at once
constexpr Compute LOG2E = 1.4426950408889634;
constexpr bool TENSOR = TENSOR_CORES && sizeof(Operand) == 2;

struct alignas(LOT * sizeof(Operand)) Lot { Operand at[LOT]; };

__device__ __forceinline__ float product(float a, float b) { return __fmul_rn(a, b); }  // rounded, whatever is added to it
__device__ __forceinline__ double product(double a, double b) { return __dmul_rn(a, b); }
// exp(s scale - shift). For probabilities that are rounded to 16 bits a multiply-add and one instruction more do, as the logarithm's base goes into the scale.
// For others s scale is rounded as it was in lse, so that a score that is the whole sum has a probability of one.
__device__ __forceinline__ Compute exponential(Compute s, Compute scale, Compute shift) {
    if constexpr (sizeof(Operand) == 2) return exp2f((float)(s * (scale * LOG2E) - shift * LOG2E));
    else return exp_(product(s, scale) - shift);
}
__device__ __forceinline__ float most(float a, float b) { return fmaxf(a, b); }
__device__ __forceinline__ double most(double a, double b) { return fmax(a, b); }
__device__ __forceinline__ int lane() { return threadIdx.x % 32; }
__device__ __forceinline__ int first_row() { return threadIdx.x / 32 * 16 * TALL; }  // of a warp

// Shared memory

// A copy to shared memory that goes on behind the thread's back until `finish_copies`.
template <class T> __device__ __forceinline__ void copy(T* target, const T* source) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    if constexpr (sizeof(T) >= 4) {
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" :: "r"((unsigned)__cvta_generic_to_shared(target)), "l"(source), "n"(sizeof(T)) : "memory");
        return;
    }
#endif
    *target = *source;
}
__device__ __forceinline__ void finish_copies() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// Rows first ... first + COUNT of a head of one text, its columns of one chunk; zeros past the text and past the head.
template <int COUNT> __device__ __forceinline__ void take(Operand* room, const Operand* x, int stride, int first, int steps, int chunk) {
    for (int i = threadIdx.x; i < COUNT * LOTS; i += 32 * WARPS) {
        const int row = i / LOTS, column = i % LOTS * LOT;
        Lot* target = (Lot*)(room + row * STRIDE + column);
        if (first + row < steps && chunk * CHUNK + column < W) copy(target, (const Lot*)(x + (size_t)(first + row) * stride + chunk * CHUNK + column));
        else *target = Lot{};
    }
}

// load(step, room) fills a room of shared memory, use(step, room) works with it. Of two rooms one is filled while the other is in use.
template <class Load, class Use> __device__ __forceinline__ void walk(int count, Load load, Use use) {
    if (ROOMS == 2) load(0, 0);
    for (int step = 0; step < count; ++step) {
        if (ROOMS == 1) {
            __syncthreads();  // every warp is done with the step before
            load(step, 0);
        }
        finish_copies();
        __syncthreads();
        if (ROOMS == 2 && step + 1 < count) load(step + 1, (step + 1) % 2);
        use(step, step % ROOMS);
    }
}

// A head too wide for a block's registers is cut into chunks: a block sums one of them, its `part`, but scores are summed over all. A tile is then
// as many steps, `part` the last, so that the chunk which the block goes on with is the one that it finds in shared memory.
__device__ __forceinline__ int chunk_of(int step, int part) { return (part + 1 + step) % CHUNKS; }

// Products of a warp

// TALL x 16 rows, N columns. Of each 16 x 8 a lane holds two neighbours in row lane / 4 and two below them in row lane / 4 + 8, as `mma` leaves them.
template <int N> struct Tile { Compute at[TALL][N / 8][4]; };

// f(which of the lane's 2 TALL rows, row, column, number, ...) for all numbers of a lane in one tile or several.
template <class F, int N, class... More> __device__ __forceinline__ void each(F f, Tile<N>& tile, More&... more) {
    #pragma unroll
    for (int m = 0; m < TALL; ++m)
        #pragma unroll
        for (int n = 0; n < N / 8; ++n)
            #pragma unroll
            for (int e = 0; e < 4; ++e)
                f(2 * m + e / 2, 16 * m + 8 * (e / 2) + lane() / 4, 8 * n + 2 * (lane() % 4) + e % 2, tile.at[m][n][e], more.at[m][n][e]...);
}
__device__ __forceinline__ Compute row_sum(Compute v) {  // the four lanes that share a row
    v += __shfl_xor_sync(0xffffffffu, v, 1);
    return v + __shfl_xor_sync(0xffffffffu, v, 2);
}
__device__ __forceinline__ Compute row_most(Compute v) {
    v = most(v, __shfl_xor_sync(0xffffffffu, v, 1));
    return most(v, __shfl_xor_sync(0xffffffffu, v, 2));
}

// Four pieces of 8 x 8 numbers for `mma`: lanes 8 i ... 8 i + 7 name the rows of piece i. A lane receives the pair of numbers
// (lane / 4, 2 (lane % 4)...) of each piece, or of its transpose.
template <bool TURNED> __device__ __forceinline__ void take_pieces(unsigned piece[4], const void* row) {
#ifdef __CUDA_ARCH__
    const unsigned place = (unsigned)__cvta_generic_to_shared(row);
    if constexpr (TURNED) asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                                       : "=r"(piece[0]), "=r"(piece[1]), "=r"(piece[2]), "=r"(piece[3]) : "r"(place) : "memory");
    else asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                      : "=r"(piece[0]), "=r"(piece[1]), "=r"(piece[2]), "=r"(piece[3]) : "r"(place) : "memory");
#else  // the same where there is no PTX
    const int i = lane() / 4, j = 2 * (lane() % 4);
    for (int k = 0; k < 4; ++k) {
        unsigned pair = 0;
        for (int e = 0; e < 2; ++e) {
            const auto source = (const unsigned short*)__shfl_sync(0xffffffffu, (unsigned long long)row, 8 * k + (TURNED ? j + e : i));
            pair |= (unsigned)source[TURNED ? i : j + e] << 16 * e;
        }
        piece[k] = pair;
    }
#endif
}

// Two numbers as `mma` takes them, rounded at once where there is an instruction for it.
template <class T> __device__ __forceinline__ unsigned pair(Compute low, Compute high) {
#if defined(__CUDA_ARCH__) && TENSOR_CORES
    unsigned bits;
    if constexpr (same<T, bfloat16>) asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"((float)high), "f"((float)low));
    else asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"((float)high), "f"((float)low));
    return bits;
#else
    return store<T>(low).bits | (unsigned)store<T>(high).bits << 16;
#endif
}

// sum += a b^T, the warp's rows a and N rows b in shared memory.
template <class T, int N> __device__ __forceinline__ void multiply_rows(Tile<N>& sum, const T* a, const T* b) {
    if constexpr (TENSOR) {
        #pragma unroll
        for (int k = 0; k < CHUNK; k += 16) {
            unsigned left[TALL][4], right[4];
            #pragma unroll
            for (int m = 0; m < TALL; ++m) take_pieces<false>(left[m], a + (16 * m + lane() % 16) * STRIDE + k + lane() / 16 * 8);
            #pragma unroll
            for (int n = 0; n < N / 8; n += 2) {
                take_pieces<false>(right, b + (8 * n + lane() / 16 * 8 + lane() % 8) * STRIDE + k + lane() / 8 % 2 * 8);
                #pragma unroll
                for (int m = 0; m < TALL; ++m) {
                    mma<T>(sum.at[m][n], left[m], right);
                    mma<T>(sum.at[m][n + 1], left[m], right + 2);
                }
            }
        }
    } else {
        constexpr int SOME = 16 / sizeof(T);
        struct alignas(16) Some { T at[SOME]; };
        const int i = lane() / 4, j = 2 * (lane() % 4);
        #pragma unroll 1
        for (int k = 0; k < CHUNK; k += SOME) {
            Some left[TALL][2];
            #pragma unroll
            for (int m = 0; m < 2 * TALL; ++m) left[m / 2][m % 2] = *(const Some*)(a + (8 * m + i) * STRIDE + k);
            #pragma unroll
            for (int n = 0; n < N / 8; ++n) {
                const Some right[2] = {*(const Some*)(b + (8 * n + j) * STRIDE + k), *(const Some*)(b + (8 * n + j + 1) * STRIDE + k)};
                #pragma unroll
                for (int m = 0; m < TALL; ++m)
                    #pragma unroll
                    for (int e = 0; e < 4; ++e)
                        #pragma unroll
                        for (int t = 0; t < SOME; ++t) sum.at[m][n][e] += load(left[m][e / 2].at[t]) * load(right[e % 2].at[t]);
            }
        }
    }
}

// sum += p b, the warp's tile p in registers and N rows b in shared memory.
template <class T, int N> __device__ __forceinline__ void multiply(Tile<CHUNK>& sum, const Tile<N>& p, const T* b) {
    if constexpr (TENSOR) {
        #pragma unroll
        for (int k = 0; k < N / 8; k += 2) {
            unsigned left[TALL][4], right[4];
            #pragma unroll
            for (int m = 0; m < TALL; ++m)  // a lane's numbers of a product are those that it gives to the next
                #pragma unroll
                for (int i = 0; i < 4; ++i) left[m][i] = pair<T>(p.at[m][k + i / 2][i % 2 * 2], p.at[m][k + i / 2][i % 2 * 2 + 1]);
            #pragma unroll
            for (int n = 0; n < CHUNK / 8; n += 2) {
                take_pieces<true>(right, b + (8 * k + lane() % 16) * STRIDE + 8 * n + lane() / 16 * 8);
                #pragma unroll
                for (int m = 0; m < TALL; ++m) {
                    mma<T>(sum.at[m][n], left[m], right);
                    mma<T>(sum.at[m][n + 1], left[m], right + 2);
                }
            }
        }
    } else {
        const int j = 2 * (lane() % 4);
        #pragma unroll
        for (int k = 0; k < N; ++k) {
            Compute left[TALL][2];
            #pragma unroll
            for (int m = 0; m < 2 * TALL; ++m)  // a row's numbers are with the four lanes that share it
                left[m / 2][m % 2] = __shfl_sync(0xffffffffu, p.at[m / 2][k / 8][m % 2 * 2 + k % 2], lane() / 4 * 4 + k % 8 / 2);
            #pragma unroll
            for (int n = 0; n < CHUNK / 8; ++n) {
                struct alignas(2 * sizeof(T)) Two { T at[2]; };
                const Two right = *(const Two*)(b + k * STRIDE + 8 * n + j);
                #pragma unroll
                for (int m = 0; m < TALL; ++m)
                    #pragma unroll
                    for (int e = 0; e < 4; ++e) sum.at[m][n][e] += left[m][e / 2] * load(right.at[e % 2]);
            }
        }
    }
}

// The warp's rows of x, a chunk of them, = sum * scale; through the warp's own rows of shared memory, so that its lanes write what lies side by side.
__device__ __forceinline__ void give(Operand* x, int stride, int first, int steps, int part, Tile<CHUNK>& sum, Compute scale, Operand* room) {
    room += first_row() * STRIDE, first += first_row();
    __syncwarp();
    each([&](int, int row, int column, Compute v) { room[row * STRIDE + column] = store<Operand>(v * scale); }, sum);
    __syncwarp();
    for (int i = lane(); i < 16 * TALL * LOTS; i += 32) {
        const int row = i / LOTS, column = i % LOTS * LOT;
        if (first + row < steps && part * CHUNK + column < W)
            *(Lot*)(x + (size_t)(first + row) * stride + part * CHUNK + column) = *(const Lot*)(room + row * STRIDE + column);
    }
}
"""

PARAMETERS = "int heads, int kv_heads, int steps, Scalar<unsigned> key, unsigned threshold, Compute keep_scale"

forward = Kernel(
    "attention_forward",
    COMMON
    + r"""
extern "C" __global__ void __launch_bounds__(32 * WARPS) attention_forward(Operand* out, Compute* lse, const Operand* qkv, PARAMETERS) {
    extern __shared__ float4 memory[];
    Operand *queries = (Operand*)memory, *keys = queries + ROWS * STRIDE, *values = keys + ROOMS * COLUMNS * STRIDE;
    const int blocks = (steps + ROWS - 1) / ROWS, part = blockIdx.x % CHUNKS, task = blockIdx.x / CHUNKS / blocks, h = task % heads, stride = (heads + 2 * kv_heads) * W;
    const int first = (blocks - 1 - blockIdx.x / CHUNKS % blocks) * ROWS;  // the last queries, which see the most keys, go first
    const int mine = first + first_row(), tiles = (min(steps, first + ROWS) + COLUMNS - 1) / COLUMNS;
    const Operand *q = qkv + (size_t)(task / heads) * steps * stride + h * W, *k = q + (heads - h + h / (heads / kv_heads)) * W, *v = k + kv_heads * W;
    const Compute scale = 1 / sqrt(Compute(W));
    const unsigned drawn = DROPOUT ? key() : 0;
    Tile<CHUNK> sum = {};
    Tile<COLUMNS> p;
    Compute top[2 * TALL], total[2 * TALL], factor[2 * TALL];
    for (int r = 0; r < 2 * TALL; ++r) top[r] = -INF, total[r] = 0;
    walk(tiles * CHUNKS, [&](int step, int room) {
        const int start = step / CHUNKS * COLUMNS, chunk = chunk_of(step, part);
        if (CHUNKS > 1 || step == 0) take<ROWS>(queries, q, stride, first, steps, chunk);
        take<COLUMNS>(keys + room * COLUMNS * STRIDE, k, stride, start, steps, chunk);
        if (chunk == part) take<COLUMNS>(values + room * COLUMNS * STRIDE, v, stride, start, steps, chunk);
    }, [&](int step, int room) {
        const int start = step / CHUNKS * COLUMNS;
        if (start > mine + 16 * TALL - 1) return;  // no query of the warp sees these keys
        if (step % CHUNKS == 0) p = {};
        multiply_rows(p, queries + first_row() * STRIDE, keys + room * COLUMNS * STRIDE);
        if (chunk_of(step, part) != part) return;
        if (start + COLUMNS - 1 > mine) each([&](int, int row, int column, Compute& s) { if (start + column > mine + row) s = -INF; }, p);
        for (int r = 0; r < 2 * TALL; ++r) factor[r] = top[r];
        each([&](int r, int, int, Compute s) { top[r] = most(top[r], s); }, p);
        for (int r = 0; r < 2 * TALL; ++r) {
            top[r] = row_most(top[r]);
            factor[r] = exponential(factor[r], scale, product(top[r], scale));
            total[r] *= factor[r];
        }
        each([&](int r, int, int, Compute& v) { v *= factor[r]; }, sum);
        each([&](int r, int row, int column, Compute& s) {
            s = exponential(s, scale, product(top[r], scale));
            total[r] += s;
            if (DROPOUT && hash(drawn, ((unsigned)task * steps + mine + row) * steps + start + column) < threshold) s = 0;
        }, p);
        multiply(sum, p, values + room * COLUMNS * STRIDE);
    });
    for (int r = 0; r < 2 * TALL; ++r) {
        total[r] = row_sum(total[r]);
        const int t = mine + 8 * r + lane() / 4;
        if (part == 0 && lane() % 4 == 0 && t < steps) lse[(size_t)task * steps + t] = product(top[r], scale) + log(total[r]);
        total[r] = 1 / total[r];
    }
    each([&](int r, int, int, Compute& v) { v *= total[r]; }, sum);
    give(out + (size_t)(task / heads) * steps * heads * W + h * W, heads * W, first, steps, part, sum, keep_scale, queries);
}""".replace("PARAMETERS", PARAMETERS),
)

# means (B H, T): sum_j P dP of each query, from dout and out as they are stored.
# dq: rows of `dq_stride` numbers, not the queries' own place, as blocks of keys have yet to read those.
backward_queries = Kernel(
    "attention_backward_queries",
    COMMON
    + r"""
extern "C" __global__ void __launch_bounds__(32 * WARPS) attention_backward_queries(Operand* dq, Compute* means, int dq_stride, const Operand* qkv, const Operand* dout,
                                                                                        const Operand* out, const Compute* lse, PARAMETERS) {
    extern __shared__ float4 memory[];
    Operand *queries = (Operand*)memory, *douts = queries + ROWS * STRIDE, *keys = douts + ROWS * STRIDE, *values = keys + ROOMS * COLUMNS * STRIDE;
    const int blocks = (steps + ROWS - 1) / ROWS, part = blockIdx.x % CHUNKS, task = blockIdx.x / CHUNKS / blocks, h = task % heads, stride = (heads + 2 * kv_heads) * W;
    const int first = (blocks - 1 - blockIdx.x / CHUNKS % blocks) * ROWS, mine = first + first_row(), tiles = (min(steps, first + ROWS) + COLUMNS - 1) / COLUMNS;
    const size_t text = (size_t)(task / heads) * steps;
    const Operand *q = qkv + text * stride + h * W, *k = q + (heads - h + h / (heads / kv_heads)) * W, *v = k + kv_heads * W;
    const Operand *d = dout + text * heads * W + h * W, *o = out + text * heads * W + h * W;
    const Compute scale = 1 / sqrt(Compute(W));
    const unsigned drawn = DROPOUT ? key() : 0;
    Tile<CHUNK> sum = {};
    Tile<COLUMNS> p, dp;
    Compute log_sum[2 * TALL], mean[2 * TALL];
    for (int r = 0; r < 2 * TALL; ++r) {
        const int t = mine + 8 * r + lane() / 4;
        const size_t row = (size_t)t * heads * W;
        log_sum[r] = t < steps ? lse[(size_t)task * steps + t] : 0, mean[r] = 0;
        if (t < steps)
            for (int c = lane() % 4 * LOT; c < W; c += 4 * LOT) {
                const Lot a = *(const Lot*)(d + row + c), b = *(const Lot*)(o + row + c);
                for (int i = 0; i < LOT; ++i) mean[r] += load(a.at[i]) * load(b.at[i]);
            }
        mean[r] = row_sum(mean[r]);
        if (part == 0 && lane() % 4 == 0 && t < steps) means[(size_t)task * steps + t] = mean[r];
    }
    walk(tiles * CHUNKS, [&](int step, int room) {
        const int start = step / CHUNKS * COLUMNS, chunk = chunk_of(step, part);
        if (CHUNKS > 1 || step == 0) {
            take<ROWS>(queries, q, stride, first, steps, chunk);
            take<ROWS>(douts, d, heads * W, first, steps, chunk);
        }
        take<COLUMNS>(keys + room * COLUMNS * STRIDE, k, stride, start, steps, chunk);
        take<COLUMNS>(values + room * COLUMNS * STRIDE, v, stride, start, steps, chunk);
    }, [&](int step, int room) {
        const int start = step / CHUNKS * COLUMNS;
        if (start > mine + 16 * TALL - 1) return;
        if (step % CHUNKS == 0) p = {}, dp = {};
        multiply_rows(p, queries + first_row() * STRIDE, keys + room * COLUMNS * STRIDE);
        multiply_rows(dp, douts + first_row() * STRIDE, values + room * COLUMNS * STRIDE);
        if (chunk_of(step, part) != part) return;
        if (start + COLUMNS - 1 > mine) each([&](int, int row, int column, Compute& s) { if (start + column > mine + row) s = -INF; }, p);
        each([&](int r, int row, int column, Compute& s, Compute& ds) {
            s = exponential(s, scale, log_sum[r]);
            if (DROPOUT) ds = hash(drawn, ((unsigned)task * steps + mine + row) * steps + start + column) < threshold ? 0 : ds * keep_scale;
            ds = s * (ds - mean[r]);
        }, p, dp);
        multiply(sum, dp, keys + room * COLUMNS * STRIDE);
    });
    give(dq + text * dq_stride + h * W, dq_stride, first, steps, part, sum, scale, queries);
}""".replace("PARAMETERS", PARAMETERS),
)

# The same from the keys' side, scores transposed: a row is a key, a column a query, of all query heads of the group one after another.
# dkv: rows of (H + 2 K) w numbers. The keys and values themselves may be those rows: a block reads no keys but its own.
backward_keys = Kernel(
    "attention_backward_keys",
    COMMON
    + r"""
extern "C" __global__ void __launch_bounds__(32 * WARPS) attention_backward_keys(Operand* dkv, const Operand* qkv, const Operand* dout, const Compute* lse,
                                                                                     const Compute* means, PARAMETERS) {
    extern __shared__ float4 memory[];
    Operand *keys = (Operand*)memory, *values = keys + ROWS * STRIDE, *queries = values + ROWS * STRIDE, *douts = queries + ROOMS * COLUMNS * STRIDE;
    Compute *log_sums = (Compute*)(douts + ROOMS * COLUMNS * STRIDE), *mean = log_sums + ROOMS * COLUMNS;
    const int blocks = (steps + ROWS - 1) / ROWS, part = blockIdx.x % CHUNKS, task = blockIdx.x / CHUNKS / blocks, stride = (heads + 2 * kv_heads) * W;
    const int first = blockIdx.x / CHUNKS % blocks * ROWS, mine = first + first_row(), group = heads / kv_heads, h = task % kv_heads * group;
    const int before = first / COLUMNS, tiles = (steps + COLUMNS - 1) / COLUMNS - before;  // of queries that see none of these keys, and of the others
    const int tasks = task / kv_heads * heads + h;                 // before the first query head of the group
    const size_t text = (size_t)(task / kv_heads) * steps, place = text * stride + (heads + task % kv_heads) * W;
    const Operand *q = qkv + text * stride + h * W, *k = qkv + place, *v = k + kv_heads * W, *d = dout + text * heads * W + h * W;
    const Compute scale = 1 / sqrt(Compute(W));
    const unsigned drawn = DROPOUT ? key() : 0;
    Tile<CHUNK> dk = {}, dv = {};
    Tile<COLUMNS> p, dp;
    walk(group * tiles * CHUNKS, [&](int step, int room) {
        const int member = step / CHUNKS / tiles, start = (before + step / CHUNKS % tiles) * COLUMNS, chunk = chunk_of(step, part);
        if (CHUNKS > 1 || step == 0) {
            take<ROWS>(keys, k, stride, first, steps, chunk);
            take<ROWS>(values, v, stride, first, steps, chunk);
        }
        take<COLUMNS>(queries + room * COLUMNS * STRIDE, q + member * W, stride, start, steps, chunk);
        take<COLUMNS>(douts + room * COLUMNS * STRIDE, d + member * W, heads * W, start, steps, chunk);
        for (int i = threadIdx.x; i < COLUMNS; i += 32 * WARPS) {
            const size_t row = (size_t)(tasks + member) * steps + start + i;
            if (start + i < steps) {
                copy(log_sums + room * COLUMNS + i, lse + row);
                copy(mean + room * COLUMNS + i, means + row);
            } else log_sums[room * COLUMNS + i] = INF, mean[room * COLUMNS + i] = 0;  // no query: its probabilities are zero
        }
    }, [&](int step, int room) {
        const int member = step / CHUNKS / tiles, start = (before + step / CHUNKS % tiles) * COLUMNS;
        if (mine > start + COLUMNS - 1) return;  // these queries see no key of the warp
        if (step % CHUNKS == 0) p = {}, dp = {};
        multiply_rows(p, keys + first_row() * STRIDE, queries + room * COLUMNS * STRIDE);
        multiply_rows(dp, values + first_row() * STRIDE, douts + room * COLUMNS * STRIDE);
        if (chunk_of(step, part) != part) return;
        if (mine + 16 * TALL - 1 > start) each([&](int, int row, int column, Compute& s) { if (mine + row > start + column) s = -INF; }, p);
        const unsigned base = (unsigned)(tasks + member) * steps;
        each([&](int, int row, int column, Compute& s, Compute& ds) {
            s = exponential(s, scale, log_sums[room * COLUMNS + column]);
            const bool dropped = DROPOUT && hash(drawn, (base + start + column) * steps + mine + row) < threshold;
            ds = s * ((dropped ? 0 : ds * keep_scale) - mean[room * COLUMNS + column]);
            if (dropped) s = 0;
        }, p, dp);
        multiply(dv, p, douts + room * COLUMNS * STRIDE);
        multiply(dk, dp, queries + room * COLUMNS * STRIDE);
    });
    give(dkv + place, stride, first, steps, part, dk, scale, keys);
    give(dkv + place + kv_heads * W, stride, first, steps, part, dv, keep_scale, values);
}""".replace("PARAMETERS", PARAMETERS),
)

# The gradients that had to wait elsewhere, (rows, given), become the first `given` numbers of each row of qkv.
take_back = Kernel(
    "attention_take_back",
    SEVERAL
    + r"""
extern "C" __global__ void attention_take_back(Operand* qkv, const Operand* gradients, int stride, int given) {
    for (int c = COUNT * threadIdx.x; c < given; c += COUNT * blockDim.x)
        several(qkv + (size_t)blockIdx.x * stride + c) = several(gradients + (size_t)blockIdx.x * given + c);
}""",
    variants=[dict(Operand=t, COUNT=n) for t, n in (("float", 4), ("double", 1), ("bfloat16", 8), ("half", 1))],
)

# Decoding: one query of each text and head over the newest keys. A warp takes eight keys at a time, its lanes the columns; then the warps' sums are joined.
step = Kernel(
    "attention_step",
    r"""
extern "C" __global__ void __launch_bounds__(32 * WARPS) attention_step(Operand* out, Cached* keys, Cached* values, const Operand* qkv, int heads, int kv_heads,
                                                                            int slots, Scalar<int> place) {
    constexpr int EACH = (W + 31) / 32, KEYS = 8;
    __shared__ Compute sums[WARPS][W], tops[WARPS], totals[WARPS];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, h = blockIdx.x % heads, group = heads / kv_heads, b = blockIdx.x / heads, kv = h / group;
    const int slot = place() % slots, length = place() < slots ? place() + 1 : slots;
    const Operand *q = qkv + ((size_t)b * (heads + 2 * kv_heads) + h) * W, *k = q + (heads - h + kv) * W, *v = k + kv_heads * W;
    keys += ((size_t)b * kv_heads + kv) * slots * W, values += ((size_t)b * kv_heads + kv) * slots * W;
    if (h % group == 0)  // the others of the group read the new key and value where they come from
        for (int c = threadIdx.x; c < W; c += 32 * WARPS) {
            keys[(size_t)slot * W + c] = store<Cached>(load(k[c]));
            values[(size_t)slot * W + c] = store<Cached>(load(v[c]));
        }
    const Compute scale = 1 / sqrt(Compute(W));
    Compute query[EACH], sum[EACH] = {}, top = -INF, total = 0;
    for (int i = 0; i < EACH; ++i) query[i] = lane + 32 * i < W ? load(q[lane + 32 * i]) * scale : 0;
    for (int first = warp * KEYS; first < length; first += WARPS * KEYS) {
        Compute score[KEYS], value[KEYS][EACH], largest = top;
        #pragma unroll
        for (int j = 0; j < KEYS; ++j) {
            score[j] = 0;
            #pragma unroll
            for (int i = 0; i < EACH; ++i) {
                const int c = lane + 32 * i;
                const bool there = first + j < length && c < W, fresh = first + j == slot;
                const size_t at = (size_t)(first + j) * W + c;
                score[j] += there ? query[i] * load(fresh ? store<Cached>(load(k[c])) : keys[at]) : 0;
                value[j][i] = there ? load(fresh ? store<Cached>(load(v[c])) : values[at]) : 0;
            }
        }
        #pragma unroll
        for (int j = 0; j < KEYS; ++j) {
            score[j] = first + j < length ? warp_sum(score[j]) : -INF;
            largest = larger(largest, score[j]);
        }
        const Compute factor = exp_(top - largest);
        top = largest, total *= factor;
        for (int i = 0; i < EACH; ++i) sum[i] *= factor;
        #pragma unroll
        for (int j = 0; j < KEYS; ++j) {
            const Compute p = exp_(score[j] - top);
            total += p;
            #pragma unroll
            for (int i = 0; i < EACH; ++i) sum[i] += p * value[j][i];
        }
    }
    for (int i = 0; i < EACH; ++i) if (lane + 32 * i < W) sums[warp][lane + 32 * i] = sum[i];
    if (lane == 0) tops[warp] = top, totals[warp] = total;
    __syncthreads();
    top = tops[0];
    for (int w = 1; w < WARPS; ++w) top = larger(top, tops[w]);
    for (int c = threadIdx.x; c < W; c += 32 * WARPS) {
        Compute all = 0, share = 0;
        for (int w = 0; w < WARPS; ++w) {
            const Compute factor = exp_(tops[w] - top);  // 0 for a warp without a key
            all += totals[w] * factor, share += sums[w][c] * factor;
        }
        out[((size_t)b * heads + h) * W + c] = store<Operand>(share / all);
    }
}""",
)

CHUNK = 128  # columns of a head that a block's registers can sum
MOST_SHARED = 64 * 1024  # bytes of shared memory: what a block may have on each GPU since Turing
# (warps of a block, tiles of 16 rows of a warp, columns of a tile, rooms for tiles): the first that fits into shared memory. More rows of a warp mean
# less to read from there for each product, up to the 255 registers of a thread; a second room hides the way from memory.
FORWARD = (4, 2, 64, 2), (4, 2, 32, 1), (4, 1, 16, 1), (1, 1, 16, 1)
BACKWARD_QUERIES = (4, 2, 32, 2), (4, 1, 32, 1), (2, 1, 16, 1), (1, 1, 8, 1)
BACKWARD_KEYS = (4, 1, 64, 2), (4, 1, 32, 1), (2, 1, 16, 1), (1, 1, 8, 1)


def chunks(width):
    return -(-width // CHUNK)


def constants(choices, width, itemsize, steps, arrays, lot):
    """({name: constant} of a kernel that has `arrays` of its block's rows and two of a tile's in shared memory, how many bytes they take)."""
    chunk = -(-width // (16 * chunks(width))) * 16
    for warps, tall, columns, rooms in choices:
        tall = min(tall, -(-steps // (16 * warps)))  # a short text has no use for more
        rooms = rooms if chunks(width) == 1 else 1  # the block's own rows change with the chunk, and have one room
        shared = (arrays * 16 * tall * warps + 2 * rooms * columns) * (chunk * itemsize + 16) + 2 * rooms * columns * 8
        if shared <= MOST_SHARED:
            break
    return dict(
        W=width, CHUNK=chunk, CHUNKS=chunks(width), WARPS=warps, TALL=tall, COLUMNS=columns, ROOMS=rooms, LOT=lot
    ), shared


def launch(kernel, choices, arrays, blocks, arguments, width, heads, kv_heads, steps, dropout, operand, *others):
    """One block for each of `blocks` (heads or groups of all texts), chunk and run of rows."""
    rate, key = dropout or (0.0, 0)
    lot = 16 // operand.itemsize
    if width % lot or any(x.data.ptr % 16 for x in (operand, *others)):
        lot = 1
    named, shared = constants(choices, width, operand.itemsize, steps, arrays, lot)
    rows = 16 * named["TALL"] * named["WARPS"]
    kernel(
        blocks * -(-steps // rows) * named["CHUNKS"],
        (*arguments, heads, kv_heads, steps, key, threshold_of(rate), 1 / (1 - rate)),
        shared=shared,
        threads=32 * named["WARPS"],
        Operand=operand,
        DROPOUT=int(rate > 0),
        **named,
    )


for kernel, choices, arrays in (
    (forward, FORWARD, 1),
    (backward_queries, BACKWARD_QUERIES, 2),
    (backward_keys, BACKWARD_KEYS, 2),
):
    kernel.variants = [
        dict(constants(choices, width, itemsize, 256, arrays, lot)[0], Operand=t, DROPOUT=dropout)
        for t, itemsize, width, lot, dropout in (
            ("bfloat16", 2, 64, 8, 0),
            ("bfloat16", 2, 33, 1, 1),
            ("half", 2, 256, 8, 1),
            ("float", 4, 64, 4, 1),
            ("double", 8, 33, 1, 0),
        )
    ]
step.variants = [
    dict(Operand=t, Cached=cached, W=width, WARPS=warps)
    for t, cached, width, warps in (
        ("float", "float", 33, 16),
        ("double", "double", 64, 16),
        ("bfloat16", "bfloat16", 64, 16),
        ("half", "float", 512, 8),
    )
]


def attention_scratch(block_size, width, tasks):
    """Shape of the scratch: room for the queries' gradient, which must not take their place before the keys' is made (for all three where a head
    is cut into chunks), and a number for each query."""
    return tasks, block_size * (1 + width * (1 if chunks(width) == 1 else 3))


def attention_forward(out, lse, scratch, qkv, heads, kv_heads, steps, dropout):
    """key: a number, or a device array of one uint32 where a captured graph finds the present one."""
    launch(
        forward,
        FORWARD,
        1,
        lse.size // steps,
        (out, lse, qkv),
        out.shape[1] // heads,
        heads,
        kv_heads,
        steps,
        dropout,
        qkv,
        out,
    )


def attention_backward(qkv, scratch, dout, out, lse, heads, kv_heads, steps, dropout):
    (rows, stride), attended = qkv.shape, dout.shape[1]
    width, given = attended // heads, attended if chunks(attended // heads) == 1 else stride
    scratch = scratch.reshape(-1)
    means, gradients = (
        scratch[scratch.size - lse.size :],
        scratch[: scratch.size - lse.size].view(qkv.dtype)[: rows * given],
    )
    sizes = width, heads, kv_heads, steps, dropout, qkv, dout, out, gradients
    launch(
        backward_queries, BACKWARD_QUERIES, 2, lse.size // steps, (gradients, means, given, qkv, dout, out, lse), *sizes
    )
    launch(
        backward_keys,
        BACKWARD_KEYS,
        2,
        rows // steps * kv_heads,
        (qkv if given < stride else gradients, qkv, dout, lse, means),
        *sizes,
    )
    several = count(width, qkv, gradients)
    take_back(
        rows, (qkv, gradients, stride, given), threads=threads_of_row(given // several), Operand=qkv, COUNT=several
    )


def attention_step(out, keys, values, qkv, heads, kv_heads, place):
    """The new keys and values of qkv (B, (H + 2 K) w) enter the caches (B, K, T, w) at slot place % T; out (B, H w) = attention to the newest T at most.

    place: how many tokens came before; a number, or a device array of one int32.
    """
    width = keys.shape[3]
    warps = max(1, min(16, 4096 // width))
    step(
        out.shape[0] * heads,
        (out, keys, values, qkv, heads, kv_heads, keys.shape[2], place),
        threads=32 * warps,
        Operand=qkv,
        Cached=keys,
        W=width,
        WARPS=warps,
    )
