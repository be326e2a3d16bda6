"""Softmax cross-entropy, one block per row. The gradient may overwrite the logits.

One pass over the row computes its largest logit and the sum of exponentials, which a thread rescales when it meets a
larger logit (Milakov and Gimelshein 2018). Backward reads the row a second time, from the cache. A thread loads eight
logits before it uses the first: the compiler cannot reorder a read after a write to what may be the same array, so
one by one they would wait for memory.
"""

from .gemm import row_stride
from .source import Kernel
from .vector import threads_for_row

cross_entropy_kernel = Kernel(
    "softmax_cross_entropy",
    r"""
// z[j] = row[start + j threads], minus infinity past its end
__device__ __forceinline__ void read_logits(Accum (&z)[8], const Real* row, size_t start, size_t vocab) {
    #pragma unroll
    for (int j = 0; j < 8; ++j) z[j] = start + j * blockDim.x < vocab ? row[start + j * blockDim.x] : -INF;
}

extern "C" __global__ void __launch_bounds__(1024) softmax_cross_entropy(
        Storage* dlogits, size_t dlogits_stride, Real* losses, const Real* logits, size_t logits_stride,
        const Target* targets, size_t vocab, Scalar<Accum> scale) {
    __shared__ Accum shared[32];
    const size_t r = blockIdx.x;
    const Target target = targets[r];
    logits += r * logits_stride, dlogits += r * dlogits_stride;
    if (target < 0) {
        if (threadIdx.x == 0) losses[r] = 0;
        if (WITH_GRADIENT)
            for (size_t v = threadIdx.x; v < vocab; v += blockDim.x) dlogits[v] = store<Storage>(Accum(0));
        return;
    }
    // Starts at the lowest finite value: a logit may be minus infinity, and infinity minus itself is NaN.
    // NaN never compares as larger, and propagates through the sum.
    const Accum lowest = sizeof(Accum) == 8 ? -1.7976931348623157e308 : -3.4028234663852886e38;
    Accum largest = lowest, sum = 0, z[8];
    for (size_t start = threadIdx.x; start < vocab; start += 8 * blockDim.x) {
        read_logits(z, logits, start, vocab);
        const Accum before = largest;
        #pragma unroll
        for (int j = 0; j < 8; ++j) largest = z[j] > largest ? z[j] : largest;
        sum *= exp_(before - largest);
        #pragma unroll
        for (int j = 0; j < 8; ++j) sum += exp_(z[j] - largest);
    }
    const Accum target_logit = logits[target];  // read before any thread writes: barriers follow
    const Accum top = block_max(largest, shared), total = block_sum(sum * exp_(largest - top), shared);
    if (threadIdx.x == 0) losses[r] = log(total) + (top - target_logit);
    if (WITH_GRADIENT) {
        const Accum factor = scale() / total;
        for (size_t start = threadIdx.x; start < vocab; start += 8 * blockDim.x) {
            read_logits(z, logits, start, vocab);
            #pragma unroll
            for (int j = 0; j < 8; ++j) {
                const size_t v = start + j * blockDim.x;
                if (v >= vocab) break;
                const Accum e = exp_(z[j] - top);
                dlogits[v] = store<Storage>((v == target ? e - total : e) * factor);  // scale (softmax - onehot)
            }
        }
    }
}""",
    variants=[
        dict(Storage=storage, Real=real, Target=target, WITH_GRADIENT=gradient)
        for storage, real, target, gradient in (
            ("float", "float", "int", 0),
            ("float", "float", "int", 1),
            ("bfloat16", "float", "int", 1),
            ("half", "float", "int", 1),
            ("double", "double", "int", 0),
            ("double", "double", "int", 1),
            ("float", "float", "long long", 1),
        )
    ],
)


def _cross_entropy(dlogits, losses, logits, targets, scale, with_gradient):
    rows, vocab = logits.shape
    cross_entropy_kernel(
        rows,
        (dlogits, row_stride(dlogits), losses, logits, row_stride(logits), targets, vocab, scale),
        threads=threads_for_row(vocab // 8, 1024),
        Storage=dlogits,
        Real=logits,
        Target=targets,
        WITH_GRADIENT=with_gradient,
    )


def softmax_cross_entropy_forward(losses, logits, targets):
    _cross_entropy(logits, losses, logits, targets, 0.0, 0)


def softmax_cross_entropy_backward(dlogits, losses, logits, targets, scale):
    """scale: a number, or a device array of one element in the logits' type."""
    _cross_entropy(dlogits, losses, logits, targets, scale, 1)
