"""The optimiser: one sweep over flat memory, and the gradient's norm, which need not leave the device to clip the gradient or to stop the update."""

from .source import Kernel, grid
from .vector import SEVERAL, count, variants

BLOCK = 1 << 13  # numbers that a block sums; fixed, so the sum's order is

squares = Kernel(
    "squares",
    r"""
extern "C" __global__ void squares(double* partial, const Number* x, size_t n) {
    __shared__ double shared[32];
    const size_t low = blockIdx.x * (size_t)BLOCK, high = low + BLOCK < n ? low + BLOCK : n;
    double sum = 0;
    #pragma unroll 8
    for (size_t i = low + threadIdx.x; i < high; i += 256) sum += (double)x[i] * (double)x[i];
    sum = block_sum(sum, shared);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}""",
    variants=[dict(Number=t, BLOCK=BLOCK) for t in ("float", "double")],
)

# partial[n] = sum of the n before it
total = Kernel(
    "total",
    r"""
extern "C" __global__ void total(double* partial, size_t n) {
    __shared__ double shared[32];
    double sum = 0;
    for (size_t i = threadIdx.x; i < n; i += blockDim.x) sum += partial[i];
    sum = block_sum(sum, shared);
    if (threadIdx.x == 0) partial[n] = sum;
}""",
    threads=1024,
)

clip = Kernel(
    "clip_scale",
    r"""
extern "C" __global__ void clip_scale(Number* found, const double* square_sum, Scalar<double> grad_clip, Scalar<double> loss_scale) {
    const double unscale = 1 / loss_scale(), norm = sqrt(*square_sum) * unscale, limit = grad_clip();
    const double share = limit / (norm + 1e-6);
    found[0] = norm;
    found[1] = norm < INF ? (limit > 0 && share < 1 ? share : 1) * unscale : INF - INF;  // no `norm - norm`: a product fused into that leaves its rounding
}""",
    threads=1,
    variants=[dict(Number=t) for t in ("float", "double")],
)

# A scale that is not finite updates nothing; the gradients become zero all the same.
sweep = Kernel(
    "adamw",
    SEVERAL
    + r"""
extern "C" __global__ void adamw(Number* weights, Number* gradients, Number* mean, Number* square, size_t n, size_t n_decayed, Scalar<Number> gradient_scale,
                                 Scalar<Number> rate, Scalar<Number> correction1, Scalar<Number> correction2,
                                 Number decay, Number beta1, Number blend1, Number beta2, Number blend2, Number eps) {
    const Number scale = gradient_scale(), shrink = 1 - rate() * decay, step = rate() / correction1(), root = 1 / sqrt(correction2());
    const bool finite = scale - scale == 0;
    for (size_t i = first_number(); i < n; i += next_numbers()) {
        if (finite) {
            Several<Number> w = several(weights + i), m = several(mean + i), v = several(square + i);
            const Several<Number> g = several(gradients + i);
            for (int j = 0; j < COUNT; ++j) {
                const Number slope = g.at[j] * scale;
                m.at[j] = beta1 * m.at[j] + blend1 * slope;
                v.at[j] = beta2 * v.at[j] + blend2 * slope * slope;
                w.at[j] = w.at[j] * (i + j < n_decayed ? shrink : 1) - step * m.at[j] / (sqrt(v.at[j]) * root + eps);
            }
            several(weights + i) = w, several(mean + i) = m, several(square + i) = v;
        }
        several(gradients + i) = {};
    }
}""",
    variants=[types for t in ("float", "double") for types in variants(Number=t)],
)


def square_sum_blocks(size):
    """Numbers of `partial` for gradients of this size: each block's sum, and the sum of all, the last."""
    return (size + BLOCK - 1) // BLOCK + 1


def square_sum(partial, x):
    """partial[-1] = sum of x^2, left on the device and returned as an array of one.   partial (square_sum_blocks(x.size),) float64"""
    blocks = partial.size - 1
    squares(blocks, (partial, x, x.size), Number=x, BLOCK=BLOCK)
    total(1, (partial, blocks))
    return partial[-1:]


def clip_scale(found, partial, grad_clip, loss_scale):
    """found[0] = norm = sqrt(sum of squares) / loss_scale,   found[1] = min(1, grad_clip / (norm + 1e-6)) / loss_scale, or NaN if the norm is not finite

    partial: what `square_sum` left.   grad_clip: 0 is no limit.   loss_scale: a number, or a device array of one float64.
    found (2,) in the weights' type: found[1:] is the scale that `adamw` takes, so that an update needs no word from the host.
    """
    clip(1, (found, partial[-1:], grad_clip, loss_scale), Number=found)


def adamw(
    weights,
    gradients,
    mean,
    square,
    n_decayed,
    gradient_scale,
    rate,
    decay,
    beta1,
    beta2,
    correction1,
    correction2,
    eps,
):
    """Scale, rate and both corrections: numbers, or device arrays of one in the weights' type. A scale that is not finite only zeroes the gradients."""
    several = count(weights.size, weights, gradients, mean, square)
    sweep(
        grid(weights.size // several),
        (
            weights,
            gradients,
            mean,
            square,
            weights.size,
            n_decayed,
            gradient_scale,
            rate,
            correction1,
            correction2,
            decay,
            beta1,
            1 - beta1,
            beta2,
            1 - beta2,
            eps,
        ),
        Number=weights,
        COUNT=several,
    )
