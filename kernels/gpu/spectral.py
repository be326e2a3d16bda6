"""Power iteration for the spectral norm of a square matrix, by `slm_np.training.spectral`'s rule, with nothing for the host to wait for."""

from .gemm import gemm
from .source import Kernel, grid

MOST = 8  # vectors: a warp each
NUMBERS = [dict(Number="float"), dict(Number="double")]

# Gram and Schmidt, one row after another: each warp finds the row's part along one of those before, then all threads take the parts off.
orthonormalise = Kernel(
    "orthonormalise",
    r"""
extern "C" __global__ void orthonormalise(Number* vectors, int rows, int width) {
    __shared__ Number parts[32], shared[32];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (int i = 0; i < rows; ++i) {
        Number *v = vectors + (size_t)i * width, part = 0, square = 0;
        if (warp < i)
            for (int c = lane; c < width; c += 32) part += vectors[(size_t)warp * width + c] * v[c];
        part = warp_sum(part);
        if (lane == 0) parts[warp] = part;
        __syncthreads();
        for (int c = threadIdx.x; c < width; c += blockDim.x) {
            Number x = v[c];
            for (int j = 0; j < i; ++j) x -= parts[j] * vectors[(size_t)j * width + c];
            v[c] = x;
            square += x * x;
        }
        const Number length = sqrt(block_sum(square, shared)), scale = length > 0 ? 1 / length : 0;
        for (int c = threadIdx.x; c < width; c += blockDim.x) v[c] *= scale;
        __syncthreads();
    }
}""",
    threads=32 * MOST,
    variants=NUMBERS,
)

# The largest eigenvalue of P, symmetric and never negative: log of it = sum over s of log(trace of P_s) / 2^s, P_(s+1) = (P_s / trace)^2. The
# squares tend to the projection on its eigenvectors. found: the norm, its root, held down to `limit`, and what A is to be multiplied by for that.
largest = Kernel(
    "largest_eigenvalue",
    r"""
extern "C" __global__ void largest_eigenvalue(double* found, const Number* products, int rows, double limit) {
    __shared__ double p[64];
    const int i = threadIdx.x / rows, j = threadIdx.x % rows, mine = threadIdx.x;
    const bool real = mine < rows * rows;
    double value = real ? products[mine] : 0, power = 1, sum = 0;
    for (int s = 0; s < 30; ++s, power /= 2) {
        if (real) p[mine] = value;
        __syncthreads();
        double trace = 0, square = 0;
        for (int k = 0; k < rows; ++k) trace += p[k * rows + k];
        if (real) for (int k = 0; k < rows; ++k) square += p[i * rows + k] * p[k * rows + j];
        sum += power * log(trace);  // minus infinity where P is 0: a norm of 0
        value = trace > 0 ? square / (trace * trace) : 0;
        __syncthreads();
    }
    if (threadIdx.x > 0) return;
    const double norm = exp(sum / 2);
    const bool above = limit > 0 && norm > limit && norm < 1e300;
    found[0] = above ? limit : norm;
    found[1] = above ? limit / norm : 1;
}""",
    threads=MOST * MOST,
    variants=NUMBERS,
)

shrink = Kernel(
    "shrink",
    r"""
extern "C" __global__ void shrink(Number* a, size_t n, const double* found) {
    const Number scale = found[1];
    if (scale == 1) return;
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x) a[i] *= scale;
}""",
    variants=NUMBERS,
)


def spectral_norm(found, a, vectors, images, products, rounds, limit):
    """found[0] = an estimate of A's largest singular value from the rows of `vectors`, after so many rounds; A is scaled down to `limit`, unless that is 0.

    found (2,) float64   a (S, S)   vectors, images (k, S), k <= 8   products (k, k): scratch, as `images` are
    """
    for _ in range(rounds):
        gemm(images, vectors, a)
        gemm(products, images, images, transpose_b=True)
        gemm(vectors, images, a, transpose_b=True)
        orthonormalise(1, (vectors, *vectors.shape), Number=vectors)
    largest(1, (found, products, len(products), limit), Number=products)
    if limit:
        shrink(grid(a.size), (a, a.size, found), Number=a)
