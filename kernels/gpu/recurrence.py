"""The dense linear recurrence H_t = U_t + H_(t-1) A as a prefix sum over time, and the row order that it needs.

A step of 256 sequences with 512 states is 0.13 GFLOP: 2 us in float32 on an H200. But it is 32 tiles of 64 x 64
elements for 132 multiprocessors, and one launch. T matmuls, one after another, take about four times as long as their
arithmetic, and smaller batches far longer than that. A kernel that keeps A on the chip does not help: A is too large
for one multiprocessor, so either all of them read it at each step, or they divide its columns and synchronize at each
step, which takes as long as the step.

A prefix sum has fewer sequential steps. Within blocks of 16 steps, pairs, fours, eights and sixteens of steps are
combined by A, A^2, A^4 and A^8, all blocks in one matmul. A^16 carries the state from block to block, the only
sequential part left. The same powers then fill in the steps between. That is twice the arithmetic, in T / 16 small
matmuls and 8 that fill the GPU. Higher powers would save little and round worse. Where the tiles of one step fill the
GPU, there is nothing to gain and each step is a matmul. (Estimated from peak rates, not measured.)
"""

import ctypes

from .cublas import gemm_strided_batched_ex
from .gemm import DEFAULT_ALGORITHM, OP_N, OP_T, TYPES, host_scalar
from .source import Kernel, grid

LEVELS = 4  # powers of A: A^2, A^4, A^8, A^16
BLOCK = 2**LEVELS
TILE, TILES = 64, 128  # a step of at least 128 tiles of 64 x 64 elements fills a GPU


def linear_recurrence_scratch(batch, width):
    """Elements of scratch, for the powers of A."""
    return LEVELS * width * width


def batched_gemm(
    out,
    out_start,
    x,
    x_start,
    stride,
    count,
    weight,
    transpose,
    beta=1.0,
):
    """out[out_start + i stride] = beta out[...] + x[x_start + i stride] op(W),  i = 0 ... count - 1        out, x (.,
    B, S)

    One call for all: cuBLAS is column-major, so it computes the transposes. W, its first input, is the same for all
    (stride 0).
    """
    _, batch, width = x.shape
    input_type, output_type, accumulation_type, c_type = TYPES[3 * x.dtype.char]
    alpha, beta = host_scalar(c_type, 1.0), host_scalar(c_type, beta)
    step = batch * width
    gemm_strided_batched_ex(
        OP_T if transpose else OP_N,
        OP_N,
        width,
        batch,
        width,
        ctypes.addressof(alpha),
        weight.data.ptr,
        input_type,
        width,
        0,
        x.data.ptr + x_start * step * x.itemsize,
        input_type,
        width,
        stride * step,
        ctypes.addressof(beta),
        out.data.ptr + out_start * step * out.itemsize,
        output_type,
        width,
        stride * step,
        count,
        accumulation_type,
        DEFAULT_ALGORITHM,
    )


def recur(states, scratch, weight, backward):
    """states[t + 1] += states[t] A,   t = 0, 1, ...        backward: states[t] += states[t + 1] A^T,   t = ..., 1, 0"""
    steps, batch, width = len(states) - 1, *states.shape[1:]

    def add(target, source, stride, count, power):
        """`count` steps at once, `stride` apart, the first to `target`. Backward, indices count from the end."""
        if backward:
            target, source = (steps - index - (count - 1) * stride for index in (target, source))
        batched_gemm(states, target, states, source, stride, count, power, backward)

    small = -(-batch // TILE) * -(-width // TILE) < TILES
    blocks = steps // BLOCK if small and steps >= 2 * BLOCK else 0
    if blocks:
        powers = [weight, *scratch[: LEVELS * width * width].reshape(LEVELS, width, width)]
        for level in range(LEVELS):
            square = powers[level].reshape(1, width, width)
            target = powers[level + 1].reshape(1, width, width)
            batched_gemm(
                out=target,
                out_start=0,
                x=square,
                x_start=0,
                stride=0,
                count=1,
                weight=powers[level],
                transpose=False,
                beta=0.0,
            )
        for level in range(LEVELS):  # multiples of 2^(l + 1): the inputs of the 2^(l + 1) steps up to them
            half = 2**level
            add(2 * half, half, 2 * half, blocks * BLOCK // (2 * half), powers[level])
        for block in range(blocks):
            add((block + 1) * BLOCK, block * BLOCK, 1, 1, powers[LEVELS])
        for level in reversed(range(LEVELS)):  # the steps half way between two finished ones
            half = 2**level
            add(half, 0, 2 * half, blocks * BLOCK // (2 * half), powers[level])
    for t in range(blocks * BLOCK, steps):
        add(t + 1, t, 1, 1, weight)


def linear_recurrence_forward(states, scratch, weight):
    recur(states, scratch, weight, False)


def linear_recurrence_backward(dstates, scratch, weight):
    recur(dstates, scratch, weight, True)


# One row per warp, its lanes on neighboring elements. x does not overlap out (__restrict__), so its reads need not wait
# for writes.
time_major_kernel = Kernel(
    "time_major",
    r"""
extern "C" __global__ void time_major(Out* out, const In* __restrict__ x, int batch, int steps, int columns, int start,
                                      size_t rows) {
    const size_t first = (blockIdx.x * (size_t)blockDim.x + threadIdx.x) / 32;
    for (size_t row = first; row < rows; row += gridDim.x * (size_t)blockDim.x / 32) {
        const size_t target = row * columns, source = (row % batch * steps + start + row / batch) * columns;
        #pragma unroll 4
        for (int d = threadIdx.x % 32; d < columns; d += 32) out[target + d] = store<Out>(load(x[source + d]));
    }
}""",
    variants=[
        dict(Out=out, In=x)
        for out, x in (
            ("float", "float"),
            ("bfloat16", "float"),
            ("half", "float"),
            ("bfloat16", "bfloat16"),
            ("half", "half"),
            ("double", "double"),
        )
    ],
)

batch_major_kernel = Kernel(
    "batch_major",
    r"""
extern "C" __global__ void batch_major(Out* out, const In* __restrict__ x, const Residual* residual,
                                       int batch, int steps, int columns, int start, size_t rows) {
    const size_t first = (blockIdx.x * (size_t)blockDim.x + threadIdx.x) / 32;
    for (size_t row = first; row < rows; row += gridDim.x * (size_t)blockDim.x / 32) {
        const size_t source = row * columns, target = (row % batch * steps + start + row / batch) * columns;
        #pragma unroll 4
        for (int d = threadIdx.x % 32; d < columns; d += 32)
            out[target + d] = store<Out>(
                residual ? load(x[source + d]) + load(residual[target + d]) : load(x[source + d]));
    }
}""",
    variants=[
        dict(Out=out, In=x, Residual=residual)
        for out, x, residual in (
            ("float", "float", "float"),
            ("bfloat16", "float", "bfloat16"),
            ("half", "float", "half"),
            ("bfloat16", "float", "float"),
            ("half", "float", "float"),
            ("double", "double", "double"),
        )
    ],
)


def sizes(time_first, batch_first, start):
    """(B, steps of `batch_first`, D, start, rows of `time_first`)        time_first (T, B, D)   batch_first (B ., D)"""
    steps, batch, columns = time_first.shape
    return batch, batch_first.size // (batch * columns), columns, start, steps * batch


def time_major(out, x, start):
    rows = len(out) * out.shape[1]
    time_major_kernel(grid(32 * rows), (out, x, *sizes(out, x, start)), Out=out, In=x)


def batch_major(out, x, residual, start):
    rows = len(x) * x.shape[1]
    batch_major_kernel(
        grid(32 * rows),
        (out, x, residual, *sizes(x, out, start)),
        Out=out,
        In=x,
        Residual=out if residual is None else residual,
    )
