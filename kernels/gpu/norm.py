"""RMSNorm and LayerNorm. A warp takes a row, which its lanes sum without meeting the block's others; the weight's gradient is summed over
the rows of a block, and then over blocks, in an order that never changes."""

from .scratch import scratch
from .source import Kernel
from .vector import SEVERAL, count, variants

ROWS = 32  # of a block in backward: enough blocks to fill a GPU with the rows of a small batch, and parts that are small beside the rows
TYPES = [
    types
    for t in ("float", "double", "bfloat16", "half")
    for centred in (0, 1)
    for types in variants(Number="double" if t == "double" else "float", Operand=t, CENTRED=centred)
]

forward = Kernel(
    "norm_forward",
    SEVERAL
    + r"""
extern "C" __global__ void norm_forward(Operand* out, Number* mean, Number* rstd, const Number* x, const Number* weight, const Number* bias,
                                        size_t rows, int width, Compute eps) {
    const size_t r = blockIdx.x * (size_t)(blockDim.x / 32) + threadIdx.x / 32;
    const int lane = threadIdx.x % 32, first = COUNT * lane, stride = COUNT * 32;
    if (r >= rows) return;
    x += r * width, out += r * width;
    Compute centre = 0, square = 0;
    if (CENTRED) {
        for (int c = first; c < width; c += stride) {
            const Several<Number> v = several(x + c);
            for (int j = 0; j < COUNT; ++j) centre += v.at[j];
        }
        centre = warp_sum(centre) / width;
    }
    for (int c = first; c < width; c += stride) {
        const Several<Number> v = several(x + c);
        for (int j = 0; j < COUNT; ++j) square += (v.at[j] - centre) * (v.at[j] - centre);
    }
    const Compute scale = 1 / sqrt(warp_sum(square) / width + eps);
    for (int c = first; c < width; c += stride) {
        const Several<Number> v = several(x + c), w = several(weight + c);
        Several<Number> b = {};
        if (bias) b = several(bias + c);
        Several<Operand> y;
        for (int j = 0; j < COUNT; ++j) y.at[j] = store<Operand>((v.at[j] - centre) * scale * w.at[j] + b.at[j]);
        several(out + c) = y;
    }
    if (lane == 0) {
        if (CENTRED) mean[r] = centre;
        rstd[r] = scale;
    }
}""",
    variants=TYPES,
)

# slopes, sums (blocks, width): what each block's rows give to the gradients of the weight and, where `sums` is there, of the bias.
backward = Kernel(
    "norm_backward",
    SEVERAL
    + r"""
extern "C" __global__ void norm_backward(Number* dx, Number* slopes, Number* sums, const Operand* dout, const Number* x, const Number* weight,
                                         const Number* mean, const Number* rstd, size_t rows, int width) {
    const size_t low = blockIdx.x * (size_t)ROWS, high = low + ROWS < rows ? low + ROWS : rows;
    const int first = COUNT * (threadIdx.x % 32), stride = COUNT * 32;
    for (size_t r = low + threadIdx.x / 32; r < high; r += blockDim.x / 32) {
        const size_t start = r * width;
        const Compute centre = CENTRED ? mean[r] : 0, scale = rstd[r];
        Compute plain = 0, slanted = 0;
        for (int c = first; c < width; c += stride) {
            const Several<Operand> d = several(dout + start + c);
            const Several<Number> v = several(x + start + c), w = several(weight + c);
            for (int j = 0; j < COUNT; ++j) {
                const Compute g = load(d.at[j]) * w.at[j];
                plain += g;
                slanted += g * (v.at[j] - centre);
            }
        }
        plain = CENTRED ? warp_sum(plain) / width : 0;
        slanted = warp_sum(slanted) * (scale * scale / width);
        for (int c = first; c < width; c += stride) {
            const Several<Operand> d = several(dout + start + c);
            const Several<Number> v = several(x + start + c), w = several(weight + c);
            Several<Number> sum = several(dx + start + c);
            for (int j = 0; j < COUNT; ++j) sum.at[j] += scale * (load(d.at[j]) * w.at[j] - plain - (v.at[j] - centre) * slanted);
            several(dx + start + c) = sum;
        }
    }
    // Now a thread takes columns. The block has just read these rows, so they come from the cache.
    for (int c = threadIdx.x; c < width; c += blockDim.x) {
        Compute slope = 0, sum = 0;
        #pragma unroll 8
        for (size_t r = low; r < high; ++r) {
            const Compute d = load(dout[r * width + c]);
            slope += d * (x[r * width + c] - (CENTRED ? mean[r] : 0)) * rstd[r];
            sum += d;
        }
        slopes[blockIdx.x * (size_t)width + c] = slope;
        if (sums) sums[blockIdx.x * (size_t)width + c] = sum;
    }
}""",
    variants=[dict(types, ROWS=ROWS) for types in TYPES],
)

# total[c] += sum of column c of x (rows, width): a block of 32 x 32 threads takes 32 columns, each row of threads every 32nd row.
add_rows = Kernel(
    "add_rows",
    r"""
extern "C" __global__ void add_rows(Number* total, const Number* x, int rows, int width) {
    __shared__ Number sums[32][33];  // one more column than is used: a column's numbers then lie in different banks
    const int lane = threadIdx.x % 32, group = threadIdx.x / 32, c = blockIdx.x * 32 + lane;
    Number sum = 0;
    if (c < width)
        #pragma unroll 8
        for (int r = group; r < rows; r += 32) sum += x[r * (size_t)width + c];
    sums[lane][group] = sum;
    __syncthreads();
    sum = warp_sum(sums[group][lane]);
    const int mine = blockIdx.x * 32 + group;
    if (lane == 0 && mine < width) total[mine] += sum;
}""",
    threads=1024,
    variants=[dict(Number="float"), dict(Number="double")],
)


def _forward(out, mean, rstd, x, weight, bias, eps):
    rows, width = x.shape
    forward(
        -(-rows // 8),
        (out, mean, rstd, x, weight, bias, rows, width, eps),
        Number=x,
        Operand=out,
        COUNT=count(width, out, x, weight, bias),
        CENTRED=int(mean is not None),
    )


def _backward(dx, dweight, dbias, dout, x, weight, mean, rstd):
    rows, width = x.shape
    blocks = -(-rows // ROWS)
    slopes, *sums = scratch(*[(blocks * width, x.dtype)] * (1 if dbias is None else 2))
    backward(
        blocks,
        (dx, slopes, sums[0] if sums else None, dout, x, weight, mean, rstd, rows, width),
        Number=x,
        Operand=dout,
        COUNT=count(width, dx, dout, x, weight),
        CENTRED=int(mean is not None),
        ROWS=ROWS,
    )
    for total, parts in zip((dweight, dbias), (slopes, *sums)):
        add_rows(-(-width // 32), (total, parts, blocks, width), Number=total)


def rmsnorm_forward(out, rstd, x, weight, eps):
    _forward(out, None, rstd, x, weight, None, eps)


def rmsnorm_backward(dx, dweight, dout, x, weight, rstd):
    _backward(dx, dweight, None, dout, x, weight, None, rstd)


def layernorm_forward(out, mean, rstd, x, weight, bias, eps):
    _forward(out, mean, rstd, x, weight, bias, eps)


def layernorm_backward(dx, dweight, dbias, dout, x, weight, mean, rstd):
    _backward(dx, dweight, dbias, dout, x, weight, mean, rstd)
