"""CUDA building blocks of attention: tiles of a matmul in a warp's registers, their inputs in shared memory.

A warp's part of a matmul stays in registers in the layout of the tensor cores (`Tile`). Attention needs two matmuls:
`multiply_transposed` for scores, and `multiply`, whose left input is such a tile. Without tensor cores, or in float
and double, both are plain multiply-adds.

Constants: W width of a head, CHUNK columns of a head that a block sums (of CHUNKS), WARPS per block, ROW_TILES of 16
rows per warp, COLUMNS of a tile, BUFFERS for tiles in shared memory, VEC elements of a vectorized access.
"""

from .vector import VECTOR

TILES = (
    VECTOR
    + r"""
constexpr int ROWS = 16 * ROW_TILES * WARPS;  // of a block
// Of rows in shared memory. 16 bytes of padding put eight rows into different banks.
constexpr int STRIDE = CHUNK + 16 / (int)sizeof(Storage);
constexpr int VECTORS = CHUNK / VEC;          // per row
constexpr Accum LOG2E = 1.4426950408889634;
constexpr bool TENSOR = TENSOR_CORES && sizeof(Storage) == 2;

// Multiplication that is never fused into a multiply-add.
__device__ __forceinline__ float mul_rn(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ double mul_rn(double a, double b) { return __dmul_rn(a, b); }
// exp(s scale - shift). For probabilities that are rounded to 16 bits, a multiply-add and one more instruction: the
// base of the logarithm goes into the scale. Otherwise s scale is rounded as in lse, so that a score that is the whole
// sum has probability one.
__device__ __forceinline__ Accum exponential(Accum s, Accum scale, Accum shift) {
    if constexpr (sizeof(Storage) == 2) return exp2f((float)(s * (scale * LOG2E) - shift * LOG2E));
    else return exp_(mul_rn(s, scale) - shift);
}
__device__ __forceinline__ float max_(float a, float b) { return fmaxf(a, b); }
__device__ __forceinline__ double max_(double a, double b) { return fmax(a, b); }
__device__ __forceinline__ int lane() { return threadIdx.x % 32; }
// The warp's first row of its block.
__device__ __forceinline__ int warp_row() { return threadIdx.x / 32 * 16 * ROW_TILES; }

// Shared memory

// An asynchronous copy to shared memory, complete after `wait_for_copies`.
template <class T> __device__ __forceinline__ void copy_async(T* target, const T* source) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    if constexpr (sizeof(T) >= 4) {
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2;"
                     :: "r"((unsigned)__cvta_generic_to_shared(target)), "l"(source), "n"(sizeof(T)) : "memory");
        return;
    }
#endif
    *target = *source;
}
__device__ __forceinline__ void wait_for_copies() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// Rows start ... start + COUNT - 1 of one head of one sequence, one chunk of their columns. Zeros past the sequence and
// past the head.
template <int COUNT>
__device__ __forceinline__ void load_rows(Storage* buffer, const Storage* x, int stride, int start, int steps,
                                          int chunk) {
    for (int i = threadIdx.x; i < COUNT * VECTORS; i += 32 * WARPS) {
        const int row = i / VECTORS, column = i % VECTORS * VEC;
        Vector<Storage>* target = &vector(buffer + row * STRIDE + column);
        if (start + row < steps && chunk * CHUNK + column < W)
            copy_async(target, &vector(x + (size_t)(start + row) * stride + chunk * CHUNK + column));
        else *target = Vector<Storage>{};
    }
}

// fetch(step, buffer) fills a buffer in shared memory, compute(step, buffer) uses it. With two buffers, one is filled
// while the other is used.
template <class Fetch, class Compute>
__device__ __forceinline__ void pipeline(int count, Fetch fetch, Compute compute) {
    if (BUFFERS == 2) fetch(0, 0);
    for (int step = 0; step < count; ++step) {
        if (BUFFERS == 1) {
            __syncthreads();  // every warp has finished the previous step
            fetch(step, 0);
        }
        wait_for_copies();
        __syncthreads();
        if (BUFFERS == 2 && step + 1 < count) fetch(step + 1, (step + 1) % 2);
        compute(step, step % BUFFERS);
    }
}

// A head too wide for a block's registers is cut into chunks. A block sums one of them, its `own`, but scores are sums
// over all chunks. A tile then takes CHUNKS steps, the own chunk last, because the matmul with the probabilities reads
// it from shared memory.
__device__ __forceinline__ int chunk_of(int step, int own) { return (own + 1 + step) % CHUNKS; }

// Matmuls of a warp

// 16 ROW_TILES rows, N columns. Of each 16 x 8 elements a lane has two neighbors in row lane / 4 and two in row lane /
// 4 + 8, as in `mma`.
template <int N> struct Tile { Accum at[ROW_TILES][N / 8][4]; };

// f(index among the lane's 2 ROW_TILES rows, row, column, element, ...) for all elements of a lane in one or more
// tiles.
template <class F, int N, class... More> __device__ __forceinline__ void for_each(F f, Tile<N>& tile, More&... more) {
    #pragma unroll
    for (int m = 0; m < ROW_TILES; ++m)
        #pragma unroll
        for (int n = 0; n < N / 8; ++n)
            #pragma unroll
            for (int e = 0; e < 4; ++e)
                f(2 * m + e / 2, 16 * m + 8 * (e / 2) + lane() / 4, 8 * n + 2 * (lane() % 4) + e % 2,
                  tile.at[m][n][e], more.at[m][n][e]...);
}
__device__ __forceinline__ Accum row_sum(Accum v) {  // over the four lanes that share a row
    v += __shfl_xor_sync(0xffffffffu, v, 1);
    return v + __shfl_xor_sync(0xffffffffu, v, 2);
}
__device__ __forceinline__ Accum row_max(Accum v) {
    v = max_(v, __shfl_xor_sync(0xffffffffu, v, 1));
    return max_(v, __shfl_xor_sync(0xffffffffu, v, 2));
}

// Loads four matrices of 8 x 8 elements for `mma`: lanes 8 i ... 8 i + 7 pass the addresses of the rows of matrix i. A
// lane receives the elements (lane / 4, 2 (lane % 4)...) of each matrix, or of its transpose.
template <bool TRANSPOSED> __device__ __forceinline__ void load_matrices(unsigned matrix[4], const void* row) {
#ifdef __CUDA_ARCH__
    const unsigned address = (unsigned)__cvta_generic_to_shared(row);
    if constexpr (TRANSPOSED)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(matrix[0]), "=r"(matrix[1]), "=r"(matrix[2]), "=r"(matrix[3]) : "r"(address) : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(matrix[0]), "=r"(matrix[1]), "=r"(matrix[2]), "=r"(matrix[3]) : "r"(address) : "memory");
#else  // without PTX
    const int i = lane() / 4, j = 2 * (lane() % 4);
    for (int k = 0; k < 4; ++k) {
        unsigned pair = 0;
        for (int e = 0; e < 2; ++e) {
            const int source_lane = 8 * k + (TRANSPOSED ? j + e : i);
            const auto source = (const unsigned short*)__shfl_sync(0xffffffffu, (unsigned long long)row, source_lane);
            pair |= (unsigned)source[TRANSPOSED ? i : j + e] << 16 * e;
        }
        matrix[k] = pair;
    }
#endif
}

// Two elements as `mma` takes them, rounded by one instruction where there is one.
template <class T> __device__ __forceinline__ unsigned pair(Accum low, Accum high) {
#if defined(__CUDA_ARCH__) && TENSOR_CORES
    unsigned bits;
    if constexpr (same<T, bfloat16>)
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"((float)high), "f"((float)low));
    else asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"((float)high), "f"((float)low));
    return bits;
#else
    return store<T>(low).bits | (unsigned)store<T>(high).bits << 16;
#endif
}

// sum += a b^T: the warp's rows a and N rows b, a chunk of columns, both in shared memory.
template <class T, int N> __device__ __forceinline__ void multiply_transposed(Tile<N>& sum, const T* a, const T* b) {
    if constexpr (TENSOR) {
        #pragma unroll
        for (int k = 0; k < CHUNK; k += 16) {
            unsigned left[ROW_TILES][4], right[4];
            #pragma unroll
            for (int m = 0; m < ROW_TILES; ++m)
                load_matrices<false>(left[m], a + (16 * m + lane() % 16) * STRIDE + k + lane() / 16 * 8);
            #pragma unroll
            for (int n = 0; n < N / 8; n += 2) {
                const int row = 8 * n + lane() / 16 * 8 + lane() % 8;
                load_matrices<false>(right, b + row * STRIDE + k + lane() / 8 % 2 * 8);
                #pragma unroll
                for (int m = 0; m < ROW_TILES; ++m) {
                    mma<T>(sum.at[m][n], left[m], right);
                    mma<T>(sum.at[m][n + 1], left[m], right + 2);
                }
            }
        }
    } else {
        constexpr int FULL = 16 / sizeof(T);
        struct alignas(16) Vector16 { T at[FULL]; };
        const int i = lane() / 4, j = 2 * (lane() % 4);
        #pragma unroll 1
        for (int k = 0; k < CHUNK; k += FULL) {
            Vector16 left[ROW_TILES][2];
            #pragma unroll
            for (int m = 0; m < 2 * ROW_TILES; ++m)
                left[m / 2][m % 2] = *(const Vector16*)(a + (8 * m + i) * STRIDE + k);
            #pragma unroll
            for (int n = 0; n < N / 8; ++n) {
                const Vector16 right[2] = {*(const Vector16*)(b + (8 * n + j) * STRIDE + k),
                                           *(const Vector16*)(b + (8 * n + j + 1) * STRIDE + k)};
                #pragma unroll
                for (int m = 0; m < ROW_TILES; ++m)
                    #pragma unroll
                    for (int e = 0; e < 4; ++e)
                        #pragma unroll
                        for (int t = 0; t < FULL; ++t)
                            sum.at[m][n][e] += load(left[m][e / 2].at[t]) * load(right[e % 2].at[t]);
            }
        }
    }
}

// sum += p b: the warp's tile p in registers, and N rows b in shared memory.
template <class T, int N> __device__ __forceinline__ void multiply(Tile<CHUNK>& sum, const Tile<N>& p, const T* b) {
    if constexpr (TENSOR) {
        #pragma unroll
        for (int k = 0; k < N / 8; k += 2) {
            unsigned left[ROW_TILES][4], right[4];
            #pragma unroll
            for (int m = 0; m < ROW_TILES; ++m)  // a lane's outputs of one `mma` are its inputs of the next
                #pragma unroll
                for (int i = 0; i < 4; ++i)
                    left[m][i] = pair<T>(p.at[m][k + i / 2][i % 2 * 2], p.at[m][k + i / 2][i % 2 * 2 + 1]);
            #pragma unroll
            for (int n = 0; n < CHUNK / 8; n += 2) {
                load_matrices<true>(right, b + (8 * k + lane() % 16) * STRIDE + 8 * n + lane() / 16 * 8);
                #pragma unroll
                for (int m = 0; m < ROW_TILES; ++m) {
                    mma<T>(sum.at[m][n], left[m], right);
                    mma<T>(sum.at[m][n + 1], left[m], right + 2);
                }
            }
        }
    } else {
        const int j = 2 * (lane() % 4);
        #pragma unroll
        for (int k = 0; k < N; ++k) {
            Accum left[ROW_TILES][2];
            #pragma unroll
            for (int m = 0; m < 2 * ROW_TILES; ++m) {  // the four lanes that share a row have its elements
                const Accum element = p.at[m / 2][k / 8][m % 2 * 2 + k % 2];
                left[m / 2][m % 2] = __shfl_sync(0xffffffffu, element, lane() / 4 * 4 + k % 8 / 2);
            }
            #pragma unroll
            for (int n = 0; n < CHUNK / 8; ++n) {
                struct alignas(2 * sizeof(T)) Pair { T at[2]; };
                const Pair right = *(const Pair*)(b + k * STRIDE + 8 * n + j);
                #pragma unroll
                for (int m = 0; m < ROW_TILES; ++m)
                    #pragma unroll
                    for (int e = 0; e < 4; ++e) sum.at[m][n][e] += left[m][e / 2] * load(right.at[e % 2]);
            }
        }
    }
}

// A chunk of the warp's rows of x = sum * scale. It passes through the warp's rows of shared memory, so that lanes
// write contiguous elements.
__device__ __forceinline__ void store_rows(Storage* x, int stride, int start, int steps, int own, Tile<CHUNK>& sum,
                                           Accum scale, Storage* buffer) {
    buffer += warp_row() * STRIDE, start += warp_row();
    __syncwarp();
    for_each([&](int, int row, int column, Accum v) {
        buffer[row * STRIDE + column] = store<Storage>(v * scale);
    }, sum);
    __syncwarp();
    for (int i = lane(); i < 16 * ROW_TILES * VECTORS; i += 32) {
        const int row = i / VECTORS, column = i % VECTORS * VEC;
        if (start + row < steps && own * CHUNK + column < W)
            vector(x + (size_t)(start + row) * stride + own * CHUNK + column) = vector(buffer + row * STRIDE + column);
    }
}
"""
)
