"""AdamW in one sweep over flat buffers, and the gradient's norm, which clips or skips an update on the device."""

from .source import Kernel, grid
from .vector import VECTOR, variants, vector_size

BLOCK = 1 << 13  # elements per partial sum; a constant, which fixes the order of the additions

squares_kernel = Kernel(
    "squares",
    r"""
extern "C" __global__ void squares(double* partial, const Real* x, size_t n) {
    __shared__ double shared[32];
    const size_t start = blockIdx.x * (size_t)BLOCK, stop = start + BLOCK < n ? start + BLOCK : n;
    double sum = 0;
    #pragma unroll 8
    for (size_t i = start + threadIdx.x; i < stop; i += 256) sum += (double)x[i] * (double)x[i];
    sum = block_sum(sum, shared);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}""",
    variants=[dict(Real=t, BLOCK=BLOCK) for t in ("float", "double")],
)

# partial[n] = sum of partial[:n]
total_kernel = Kernel(
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

clip_kernel = Kernel(
    "clip_scale",
    r"""
extern "C" __global__ void clip_scale(Real* found, const double* square_sum,
                                      Scalar<double> grad_clip, Scalar<double> loss_scale) {
    const double unscale = 1 / loss_scale(), norm = sqrt(*square_sum) * unscale, limit = grad_clip();
    const double ratio = limit / (norm + 1e-6);
    found[0] = norm;
    // NaN is INF - INF here: the compiler would fuse `norm - norm` into a multiply-add, which leaves the rounding error
    // of `norm`.
    found[1] = norm < INF ? (limit > 0 && ratio < 1 ? ratio : 1) * unscale : INF - INF;
}""",
    threads=1,
    variants=[dict(Real=t) for t in ("float", "double")],
)

# A gradient scale that is not finite updates nothing, but still zeroes the gradients.
adamw_kernel = Kernel(
    "adamw",
    VECTOR
    + r"""
extern "C" __global__ void adamw(Real* weights, Real* gradients, Real* mean, Real* square, size_t n, size_t n_decayed,
                                 Scalar<Real> gradient_scale, Scalar<Real> rate,
                                 Scalar<Real> correction1, Scalar<Real> correction2, Real decay,
                                 Real beta1, Real one_minus_beta1, Real beta2, Real one_minus_beta2, Real eps) {
    const Real scale = gradient_scale(), shrink = 1 - rate() * decay;
    const Real step = rate() / correction1(), inv_root = 1 / sqrt(correction2());
    const bool finite = scale - scale == 0;
    for (size_t i = first_element(); i < n; i += element_stride()) {
        if (finite) {
            Vector<Real> w = vector(weights + i), m = vector(mean + i), v = vector(square + i);
            const Vector<Real> gradient = vector(gradients + i);
            for (int j = 0; j < VEC; ++j) {
                const Real g = gradient.at[j] * scale;
                m.at[j] = beta1 * m.at[j] + one_minus_beta1 * g;
                v.at[j] = beta2 * v.at[j] + one_minus_beta2 * g * g;
                const Real decayed = w.at[j] * (i + j < n_decayed ? shrink : 1);
                w.at[j] = decayed - step * m.at[j] / (sqrt(v.at[j]) * inv_root + eps);
            }
            vector(weights + i) = w, vector(mean + i) = m, vector(square + i) = v;
        }
        vector(gradients + i) = {};
    }
}""",
    variants=[types for t in ("float", "double") for types in variants(Real=t)],
)


def square_sum_blocks(size):
    """Elements of `partial` for so many gradients: one sum per block, then the total."""
    return (size + BLOCK - 1) // BLOCK + 1


def square_sum(partial, x):
    """partial[-1] = sum of x^2        partial (square_sum_blocks(x.size),) float64

    Returns the sum as a device array of one element.
    """
    blocks = partial.size - 1
    squares_kernel(blocks, (partial, x, x.size), Real=x, BLOCK=BLOCK)
    total_kernel(1, (partial, blocks))
    return partial[-1:]


def clip_scale(found, partial, grad_clip, loss_scale):
    """found[0] = norm = sqrt(sum of squares) / loss_scale,   found[1] = min(1, grad_clip / (norm + 1e-6)) / loss_scale

    found[1] is NaN if the norm is not finite.

    found (2,) in the weights' type. found[1:] is the gradient_scale of `adamw`, so an update needs no synchronization.
    partial: what `square_sum` computed.   grad_clip: 0 for no limit.   loss_scale: a number, or a device array of one
    float64.
    """
    clip_kernel(1, (found, partial[-1:], grad_clip, loss_scale), Real=found)


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
    """gradient_scale, rate and both corrections: numbers, or device arrays of one element in the weights' type.

    A gradient_scale that is not finite leaves weights and moments unchanged and zeroes the gradients.
    """
    vec = vector_size(weights.size, weights, gradients, mean, square)
    adamw_kernel(
        grid(weights.size // vec),
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
        Real=weights,
        VEC=vec,
    )
