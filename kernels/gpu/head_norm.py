"""RMSNorm of the heads of queries and keys, one warp per head of a row. Gradients of weights have a fixed order."""

from .norm import sum_columns_kernel
from .scratch import scratch
from .source import Kernel
from .vector import VECTOR, variants, vector_size

ROWS = 16  # per block in backward: few enough to fill a GPU with a small batch, enough to keep the partial sums small
TYPES = [
    types
    for t in ("float", "double", "bfloat16", "half")
    for types in variants(Real="double" if t == "double" else "float", Storage=t)
]

forward_kernel = Kernel(
    "head_norm_forward",
    VECTOR
    + r"""
extern "C" __global__ void head_norm_forward(Storage* out, Real* rstd, const Storage* qkv,
                                             const Real* q_weight, const Real* k_weight,
                                             size_t rows, int heads, int kv_heads, int width, Accum eps) {
    const int all = heads + 2 * kv_heads, normed = heads + kv_heads;
    const size_t task = blockIdx.x * (size_t)(blockDim.x / 32) + threadIdx.x / 32, row = task / all;
    const int head = task % all, lane = threadIdx.x % 32, start = VEC * lane, stride = VEC * 32;
    if (row >= rows) return;
    const Storage* x = qkv + task * width;
    out += task * width;
    if (head >= normed) {  // values
        for (int c = start; c < width; c += stride) vector(out + c) = vector(x + c);
        return;
    }
    const Real* weight = head < heads ? q_weight : k_weight;
    Accum square = 0;
    for (int c = start; c < width; c += stride) {
        const Vector<Storage> v = vector(x + c);
        for (int j = 0; j < VEC; ++j) square += load(v.at[j]) * load(v.at[j]);
    }
    const Accum scale = 1 / sqrt(warp_sum(square) / width + eps);
    for (int c = start; c < width; c += stride) {
        const Vector<Storage> v = vector(x + c);
        const Vector<Real> w = vector(weight + c);
        Vector<Storage> y;
        for (int j = 0; j < VEC; ++j) y.at[j] = store<Storage>(load(v.at[j]) * scale * w.at[j]);
        vector(out + c) = y;
    }
    if (lane == 0) rstd[row * normed + head] = scale;
}""",
    variants=TYPES,
)

# dq_partial, dk_partial (blocks, width): sums over the heads of each block's rows.
backward_kernel = Kernel(
    "head_norm_backward",
    VECTOR
    + r"""
extern "C" __global__ void head_norm_backward(Storage* qkv, Real* dq_partial, Real* dk_partial,
                                              const Storage* dout, const Real* q_weight, const Real* k_weight,
                                              const Real* rstd, size_t rows, int heads, int kv_heads, int width) {
    const int all = heads + 2 * kv_heads, normed = heads + kv_heads;
    const size_t row_start = blockIdx.x * (size_t)ROWS, row_stop = row_start + ROWS < rows ? row_start + ROWS : rows;
    // A thread takes columns of the weights, while qkv still holds what forward read.
    for (int c = threadIdx.x; c < 2 * width; c += blockDim.x) {
        const bool of_keys = c >= width;
        const int first = of_keys ? heads : 0, stop = of_keys ? normed : heads, column = of_keys ? c - width : c;
        Accum sum = 0;
        for (size_t r = row_start; r < row_stop; ++r)
            #pragma unroll 8
            for (int head = first; head < stop; ++head) {
                const size_t index = (r * all + head) * width + column;
                sum += load(dout[index]) * load(qkv[index]) * rstd[r * normed + head];
            }
        (of_keys ? dk_partial : dq_partial)[blockIdx.x * (size_t)width + column] = sum;
    }
    __syncthreads();
    const int start = VEC * (threadIdx.x % 32), stride = VEC * 32;
    for (size_t task = row_start * all + threadIdx.x / 32; task < row_stop * all; task += blockDim.x / 32) {
        const int head = task % all;
        const Storage* d = dout + task * width;
        Storage* x = qkv + task * width;
        if (head >= normed) {
            for (int c = start; c < width; c += stride) vector(x + c) = vector(d + c);
            continue;
        }
        const Real* weight = head < heads ? q_weight : k_weight;
        const Accum scale = rstd[task / all * normed + head];
        Accum sum_dy_x = 0;
        for (int c = start; c < width; c += stride) {
            const Vector<Storage> dy = vector(d + c), v = vector(x + c);
            const Vector<Real> w = vector(weight + c);
            for (int j = 0; j < VEC; ++j) sum_dy_x += load(dy.at[j]) * w.at[j] * load(v.at[j]);
        }
        const Accum slope = warp_sum(sum_dy_x) * (scale * scale / width);
        for (int c = start; c < width; c += stride) {
            const Vector<Storage> dy = vector(d + c);
            const Vector<Real> w = vector(weight + c);
            Vector<Storage> v = vector(x + c);
            for (int j = 0; j < VEC; ++j)
                v.at[j] = store<Storage>(scale * (load(dy.at[j]) * w.at[j] - load(v.at[j]) * slope));
            vector(x + c) = v;
        }
    }
}""",
    variants=[dict(types, ROWS=ROWS) for types in TYPES],
)


def head_norm_forward(
    out,
    rstd,
    qkv,
    q_weight,
    k_weight,
    heads,
    kv_heads,
    eps,
):
    rows, width = len(qkv), q_weight.size
    forward_kernel(
        -(-rows * (heads + 2 * kv_heads) // 8),
        (out, rstd, qkv, q_weight, k_weight, rows, heads, kv_heads, width, eps),
        Real=rstd,
        Storage=qkv,
        VEC=vector_size(width, out, qkv, q_weight, k_weight),
    )


def head_norm_backward(
    qkv,
    dq_weight,
    dk_weight,
    dout,
    q_weight,
    k_weight,
    rstd,
    heads,
    kv_heads,
):
    rows, width = len(qkv), q_weight.size
    blocks = -(-rows // ROWS)
    partials = scratch(*[(blocks * width, rstd.dtype)] * 2)
    backward_kernel(
        blocks,
        (qkv, *partials, dout, q_weight, k_weight, rstd, rows, heads, kv_heads, width),
        Real=rstd,
        Storage=qkv,
        VEC=vector_size(width, qkv, dout, q_weight, k_weight),
        ROWS=ROWS,
    )
    for total, partial in zip((dq_weight, dk_weight), partials):
        sum_columns_kernel(-(-width // 32), (total, partial, blocks, width), Real=total)
