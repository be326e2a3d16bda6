"""Softmax cross-entropy, a block a row; the gradient may lie where the logits were. A row whose target is negative is not counted.

The largest logit and the sum of exponentials come from one pass over the row, a sum being scaled down whenever its thread meets a larger logit.
Backward goes over the row once more, which by then lies in the cache. Eight logits are asked for together: a thread that waits for each in turn,
as it must for a read after a write to what may be the same array, waits for memory.
"""

from .gemm import row_stride
from .source import Kernel
from .vector import threads_of_row

cross_entropy = Kernel(
    "softmax_cross_entropy",
    r"""
// z[j] = row[start + j threads]; past its end, minus infinity
__device__ __forceinline__ void take(Compute (&z)[8], const Number* row, size_t start, size_t pieces) {
    #pragma unroll
    for (int j = 0; j < 8; ++j) z[j] = start + j * blockDim.x < pieces ? row[start + j * blockDim.x] : -INF;
}

extern "C" __global__ void __launch_bounds__(1024) softmax_cross_entropy(
        Operand* dlogits, size_t dlogits_stride, Number* losses, const Number* logits, size_t logits_stride, const Target* targets, size_t pieces, Scalar<Compute> scale) {
    __shared__ Compute shared[32];
    const size_t r = blockIdx.x;
    const Target target = targets[r];
    logits += r * logits_stride, dlogits += r * dlogits_stride;
    if (target < 0) {
        if (threadIdx.x == 0) losses[r] = 0;
        if (WITH_GRADIENT) for (size_t v = threadIdx.x; v < pieces; v += blockDim.x) dlogits[v] = store<Operand>(Compute(0));
        return;
    }
    // Not from minus infinity on, which a logit may be: less itself it is no number. NaN is never larger and goes into the sum.
    const Compute lowest = sizeof(Compute) == 8 ? -1.7976931348623157e308 : -3.4028234663852886e38;
    Compute largest = lowest, sum = 0, z[8];
    for (size_t start = threadIdx.x; start < pieces; start += 8 * blockDim.x) {
        take(z, logits, start, pieces);
        const Compute before = largest;
        #pragma unroll
        for (int j = 0; j < 8; ++j) largest = z[j] > largest ? z[j] : largest;
        sum *= exp_(before - largest);
        #pragma unroll
        for (int j = 0; j < 8; ++j) sum += exp_(z[j] - largest);
    }
    const Compute at_target = logits[target];  // read before any thread writes: barriers follow
    const Compute top = block_max(largest, shared), total = block_sum(sum * exp_(largest - top), shared);
    if (threadIdx.x == 0) losses[r] = log(total) + (top - at_target);
    if (WITH_GRADIENT) {
        const Compute factor = scale() / total;
        for (size_t start = threadIdx.x; start < pieces; start += 8 * blockDim.x) {
            take(z, logits, start, pieces);
            #pragma unroll
            for (int j = 0; j < 8; ++j) {
                const size_t v = start + j * blockDim.x;
                if (v >= pieces) break;
                const Compute e = exp_(z[j] - top);
                dlogits[v] = store<Operand>((v == target ? e - total : e) * factor);  // less total times factor: less scale
            }
        }
    }
}""",
    variants=[
        dict(Operand=operand, Number=number, Target=target, WITH_GRADIENT=gradient)
        for operand, number, target, gradient in (
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
    rows, pieces = logits.shape
    cross_entropy(
        rows,
        (dlogits, row_stride(dlogits), losses, logits, row_stride(logits), targets, pieces, scale),
        threads=threads_of_row(pieces // 8, 1024),
        Operand=dlogits,
        Number=logits,
        Target=targets,
        WITH_GRADIENT=with_gradient,
    )


def softmax_cross_entropy_forward(losses, logits, targets):
    _cross_entropy(logits, losses, logits, targets, 0.0, 0)


def softmax_cross_entropy_backward(dlogits, losses, logits, targets, scale):
    """scale: a number, or a device array of one, of the logits' type."""
    _cross_entropy(dlogits, losses, logits, targets, scale, 1)
