"""Small CUDA kernels that several tests launch or compile."""

from slm_np.kernels.gpu.source import Kernel


def local_kernel(*arguments, **named):
    """A kernel of one test, not in the list of all kernels."""
    kernel = Kernel(*arguments, **named)
    Kernel.KERNELS.remove(kernel)
    return kernel


COPY = r"""
extern "C" __global__ void copy(To* out, const From* x, size_t n) {
    const size_t first = blockIdx.x * (size_t)blockDim.x + threadIdx.x, stride = (size_t)gridDim.x * blockDim.x;
    for (size_t i = first; i < n; i += stride) out[i] = store<To>(load(x[i]));
}"""
copy_kernel = local_kernel("copy", COPY)

scale_kernel = local_kernel(
    "scale",
    r"""
extern "C" __global__ void scale(float* out, Scalar<float> rate, Scalar<unsigned> key, Scalar<Accum> small) {
    out[threadIdx.x] = rate() * threadIdx.x + key() % 1000 + small();
}""",
    threads=32,
)

reduce_kernel = local_kernel(
    "reduce",
    r"""
extern "C" __global__ void reduce(Element* out, const Element* x) {
    __shared__ Element shared[32];
    const Element v = x[blockIdx.x * threads_in_block() + thread_in_block()];
    Element all[] = {warp_sum(v), warp_max(v), block_sum(v, shared), block_max(v, shared)};
    for (int i = 0; i < 4; i++) out[(4 * blockIdx.x + i) * threads_in_block() + thread_in_block()] = all[i];
}""",
)
