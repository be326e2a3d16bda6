"""The spectral norm of a matrix by power iteration, as in `slm_np.training.spectral`, without synchronization."""

from .gemm import gemm
from .source import Kernel, grid

MAX_VECTORS = 8  # one warp each
REALS = [dict(Real="float"), dict(Real="double")]

# Gram-Schmidt, one row after another: each warp computes the row's component along one earlier row, then all threads
# subtract them.
orthonormalize_kernel = Kernel(
    "orthonormalize",
    r"""
extern "C" __global__ void orthonormalize(Real* vectors, int rows, int width) {
    __shared__ Real components[32], shared[32];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (int i = 0; i < rows; ++i) {
        Real *v = vectors + (size_t)i * width, component = 0, square = 0;
        if (warp < i)
            for (int c = lane; c < width; c += 32) component += vectors[(size_t)warp * width + c] * v[c];
        component = warp_sum(component);
        if (lane == 0) components[warp] = component;
        __syncthreads();
        for (int c = threadIdx.x; c < width; c += blockDim.x) {
            Real x = v[c];
            for (int j = 0; j < i; ++j) x -= components[j] * vectors[(size_t)j * width + c];
            v[c] = x;
            square += x * x;
        }
        const Real length = sqrt(block_sum(square, shared)), scale = length > 0 ? 1 / length : 0;
        for (int c = threadIdx.x; c < width; c += blockDim.x) v[c] *= scale;
        __syncthreads();
    }
}""",
    threads=32 * MAX_VECTORS,
    variants=REALS,
)

# The largest eigenvalue of P, symmetric and positive semidefinite. With P_(s+1) = (P_s / trace P_s)^2, its logarithm is
# sum over s of log(trace P_s) / 2^s: the squares converge to the projection onto its eigenvectors.
largest_eigenvalue_kernel = Kernel(
    "largest_eigenvalue",
    r"""
extern "C" __global__ void largest_eigenvalue(double* found, const Real* products, int rows, double limit) {
    __shared__ double p[64];
    const int i = threadIdx.x / rows, j = threadIdx.x % rows, element = threadIdx.x;
    const bool active = element < rows * rows;
    double value = active ? products[element] : 0, power = 1, sum = 0;
    for (int s = 0; s < 30; ++s, power /= 2) {
        if (active) p[element] = value;
        __syncthreads();
        double trace = 0, square = 0;
        for (int k = 0; k < rows; ++k) trace += p[k * rows + k];
        if (active) for (int k = 0; k < rows; ++k) square += p[i * rows + k] * p[k * rows + j];
        sum += power * log(trace);  // minus infinity where P is 0, which gives a norm of 0
        value = trace > 0 ? square / (trace * trace) : 0;
        __syncthreads();
    }
    if (threadIdx.x > 0) return;
    const double norm = exp(sum / 2);
    const bool above = limit > 0 && norm > limit && norm < 1e300;
    found[0] = above ? limit : norm;
    found[1] = above ? limit / norm : 1;
}""",
    threads=MAX_VECTORS * MAX_VECTORS,
    variants=REALS,
)

shrink_kernel = Kernel(
    "shrink",
    r"""
extern "C" __global__ void shrink(Real* a, size_t n, const double* found) {
    const Real scale = found[1];
    if (scale == 1) return;
    const size_t first = blockIdx.x * (size_t)blockDim.x + threadIdx.x, stride = (size_t)gridDim.x * blockDim.x;
    for (size_t i = first; i < n; i += stride) a[i] *= scale;
}""",
    variants=REALS,
)


def spectral_norm(found, a, vectors, images, products, rounds, limit):
    """found[0] = an estimate of A's largest singular value from the rows of `vectors`, after `rounds` iterations

    If the estimate exceeds `limit`, A is scaled down to it and found[0] = limit; a limit of 0 leaves A unchanged.
    found[1] = the scale.

    found (2,) float64   a (S, S)   vectors, images (k, S), k <= 8   products (k, k). images and products are scratch.
    """
    for _ in range(rounds):
        gemm(images, vectors, a)
        gemm(products, images, images, transpose_b=True)
        gemm(vectors, images, a, transpose_b=True)
        orthonormalize_kernel(1, (vectors, *vectors.shape), Real=vectors)
    largest_eigenvalue_kernel(1, (found, products, len(products), limit), Real=products)
    if limit:
        shrink_kernel(grid(a.size), (a, a.size, found), Real=a)
