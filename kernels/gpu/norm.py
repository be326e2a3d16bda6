"""RMSNorm and LayerNorm, one warp per row. The gradients of the parameters are summed in a fixed order."""

from .scratch import scratch
from .source import Kernel
from .vector import VECTOR, variants, vector_size

ROWS = 32  # per block in backward: few enough to fill a GPU with a small batch, enough to keep the partial sums small
TYPES = [
    types
    for t in ("float", "double", "bfloat16", "half")
    for centered in (0, 1)
    for types in variants(Real="double" if t == "double" else "float", Storage=t, CENTERED=centered)
]

# CENTERED: LayerNorm, else RMSNorm.
forward_kernel = Kernel(
    "norm_forward",
    VECTOR
    + r"""
extern "C" __global__ void norm_forward(Storage* out, Real* mean, Real* rstd,
                                        const Real* x, const Real* weight, const Real* bias,
                                        size_t rows, int width, Accum eps) {
    const size_t r = blockIdx.x * (size_t)(blockDim.x / 32) + threadIdx.x / 32;
    const int lane = threadIdx.x % 32, start = VEC * lane, stride = VEC * 32;
    if (r >= rows) return;
    x += r * width, out += r * width;
    Accum center = 0, square = 0;
    if (CENTERED) {
        for (int c = start; c < width; c += stride) {
            const Vector<Real> v = vector(x + c);
            for (int j = 0; j < VEC; ++j) center += v.at[j];
        }
        center = warp_sum(center) / width;
    }
    for (int c = start; c < width; c += stride) {
        const Vector<Real> v = vector(x + c);
        for (int j = 0; j < VEC; ++j) square += (v.at[j] - center) * (v.at[j] - center);
    }
    const Accum scale = 1 / sqrt(warp_sum(square) / width + eps);
    for (int c = start; c < width; c += stride) {
        const Vector<Real> v = vector(x + c), w = vector(weight + c);
        Vector<Real> b = {};
        if (bias) b = vector(bias + c);
        Vector<Storage> y;
        for (int j = 0; j < VEC; ++j) y.at[j] = store<Storage>((v.at[j] - center) * scale * w.at[j] + b.at[j]);
        vector(out + c) = y;
    }
    if (lane == 0) {
        if (CENTERED) mean[r] = center;
        rstd[r] = scale;
    }
}""",
    variants=TYPES,
)

# dweight_partial, dbias_partial (blocks, width): sums over each block's rows; they may be null.
backward_kernel = Kernel(
    "norm_backward",
    VECTOR
    + r"""
extern "C" __global__ void norm_backward(Real* dx, Real* dweight_partial, Real* dbias_partial,
                                         const Storage* dout, const Real* x, const Real* weight,
                                         const Real* mean, const Real* rstd, size_t rows, int width) {
    const size_t row_start = blockIdx.x * (size_t)ROWS, row_stop = row_start + ROWS < rows ? row_start + ROWS : rows;
    const int start = VEC * (threadIdx.x % 32), stride = VEC * 32;
    for (size_t r = row_start + threadIdx.x / 32; r < row_stop; r += blockDim.x / 32) {
        const size_t row = r * width;
        const Accum center = CENTERED ? mean[r] : 0, scale = rstd[r];
        Accum sum_dy = 0, sum_dy_xhat = 0;
        for (int c = start; c < width; c += stride) {
            const Vector<Storage> d = vector(dout + row + c);
            const Vector<Real> v = vector(x + row + c), w = vector(weight + c);
            for (int j = 0; j < VEC; ++j) {
                const Accum dy = load(d.at[j]) * w.at[j];
                sum_dy += dy;
                sum_dy_xhat += dy * (v.at[j] - center);
            }
        }
        const Accum mean_dy = CENTERED ? warp_sum(sum_dy) / width : 0;
        const Accum slope = warp_sum(sum_dy_xhat) * (scale * scale / width);
        for (int c = start; c < width; c += stride) {
            const Vector<Storage> d = vector(dout + row + c);
            const Vector<Real> v = vector(x + row + c), w = vector(weight + c);
            Vector<Real> sum = vector(dx + row + c);
            for (int j = 0; j < VEC; ++j)
                sum.at[j] += scale * (load(d.at[j]) * w.at[j] - mean_dy - (v.at[j] - center) * slope);
            vector(dx + row + c) = sum;
        }
    }
    if (!dweight_partial) return;
    // From here a thread takes columns. The block has just read these rows, so they are in the cache.
    for (int c = threadIdx.x; c < width; c += blockDim.x) {
        Accum weight_sum = 0, bias_sum = 0;
        #pragma unroll 8
        for (size_t r = row_start; r < row_stop; ++r) {
            const Accum d = load(dout[r * width + c]);
            weight_sum += d * (x[r * width + c] - (CENTERED ? mean[r] : 0)) * rstd[r];
            bias_sum += d;
        }
        dweight_partial[blockIdx.x * (size_t)width + c] = weight_sum;
        if (dbias_partial) dbias_partial[blockIdx.x * (size_t)width + c] = bias_sum;
    }
}""",
    variants=[dict(types, ROWS=ROWS) for types in TYPES],
)

# total[c] += sum of column c of x (rows, width). A block of 32 x 32 threads sums 32 columns; each of its warps reads
# every 32nd row.
sum_columns_kernel = Kernel(
    "sum_columns",
    r"""
extern "C" __global__ void sum_columns(Real* total, const Real* x, int rows, int width) {
    __shared__ Real sums[32][33];  // padded by one: the elements of a column lie in different banks
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, c = blockIdx.x * 32 + lane;
    Real sum = 0;
    if (c < width)
        #pragma unroll 8
        for (int r = warp; r < rows; r += 32) sum += x[r * (size_t)width + c];
    sums[lane][warp] = sum;
    __syncthreads();
    sum = warp_sum(sums[warp][lane]);
    const int column = blockIdx.x * 32 + warp;
    if (lane == 0 && column < width) total[column] += sum;
}""",
    threads=1024,
    variants=[dict(Real="float"), dict(Real="double")],
)


def _forward(out, mean, rstd, x, weight, bias, eps):
    rows, width = x.shape
    forward_kernel(
        -(-rows // 8),
        (out, mean, rstd, x, weight, bias, rows, width, eps),
        Real=x,
        Storage=out,
        VEC=vector_size(width, out, x, weight, bias),
        CENTERED=int(mean is not None),
    )


def _backward(dx, dweight, dbias, dout, x, weight, mean, rstd):
    rows, width = x.shape
    blocks = -(-rows // ROWS)
    sums = [total for total in (dweight, dbias) if total is not None]
    partials = scratch(*[(blocks * width, x.dtype)] * len(sums)) if sums else []
    backward_kernel(
        blocks,
        (
            dx,
            partials[0] if partials else None,
            partials[1] if len(partials) > 1 else None,
            dout,
            x,
            weight,
            mean,
            rstd,
            rows,
            width,
        ),
        Real=x,
        Storage=dout,
        VEC=vector_size(width, dx, dout, x, weight),
        CENTERED=int(mean is not None),
        ROWS=ROWS,
    )
    for total, partial in zip(sums, partials):
        sum_columns_kernel(-(-width // 32), (total, partial, blocks, width), Real=total)


def rmsnorm_forward(out, rstd, x, weight, eps):
    _forward(out, None, rstd, x, weight, None, eps)


def rmsnorm_backward(dx, dweight, dout, x, weight, rstd):
    _backward(dx, dweight, None, dout, x, weight, None, rstd)


def layernorm_forward(out, mean, rstd, x, weight, bias, eps):
    _forward(out, mean, rstd, x, weight, bias, eps)


def layernorm_backward(dx, dweight, dbias, dout, x, weight, mean, rstd):
    _backward(dx, dweight, dbias, dout, x, weight, mean, rstd)
