"""The dense linear recurrence, H_t = U_t + H_(t-1) A, walked through time in place by blocks of steps; and the order of rows it wants, time before batch.

A step of 256 texts by a square of 512 is 0.13 GFLOP: 2 us of an H200's float32. But it is 32 tiles of 64 x 64 numbers for 132 multiprocessors, and a
launch: T products, one after another, take some four times as long as their sums, and smaller batches far longer than theirs. A kernel that keeps A
on the chip is no way out: too large for one multiprocessor, A would be read by all of them at each step, or its columns be shared out and blocks
have to meet at each step, which takes as long as the step. So time is cut, as in a prefix sum. Within blocks of 16 steps, neighbours, pairs, fours
and eights are joined by A, A^2, A^4 and A^8, all blocks in one product; A^16 carries from block to block, all that is left to walk; and the same
powers fill the steps between. That is twice the sums, in T / 16 small products and 8 that fill the GPU. Higher powers would save little more and round
worse. Where the tiles of a step fill the GPU, there is nothing to gain and each step is a product. (Reckoned from peaks, not measured.)
"""

from .cublas import gemm_strided_batched_ex
from .gemm import AS_IT_LIES, BEST, PRODUCTS, TRANSPOSED, host_number
from .source import Kernel, grid

LEVELS = 4  # powers of A: A^2, A^4, A^8, A^16
BLOCK = 2**LEVELS
TILE, TILES = 64, 128  # a step of so many tiles of 64 x 64 numbers fills a GPU


def linear_recurrence_scratch(batch, width):
    """Numbers of room for the powers of A."""
    return LEVELS * width * width


def add_products(out, first, x, start, stride, count, weight, transpose, beta=1.0):
    """out[first + i stride] = beta out[...] + x[start + i stride] W or W^T,  i = 0 ... count - 1        out, x (., B, S)

    One call for all: cuBLAS counts in columns, so it is asked for the transposes; W, its first operand, is the same for all (stride 0).
    """
    _, batch, width = x.shape
    operand, output, sums, kind = PRODUCTS[3 * x.dtype.char]
    (alpha, one), (beta, other) = host_number(kind, 1.0), host_number(kind, beta)
    step = batch * width
    gemm_strided_batched_ex(
        TRANSPOSED if transpose else AS_IT_LIES,
        AS_IT_LIES,
        width,
        batch,
        width,
        alpha,
        weight.data.ptr,
        operand,
        width,
        0,
        x.data.ptr + start * step * x.itemsize,
        operand,
        width,
        stride * step,
        beta,
        out.data.ptr + first * step * out.itemsize,
        output,
        width,
        stride * step,
        count,
        sums,
        BEST,
    )


def recur(states, scratch, weight, backwards):
    """states[t + 1] += states[t] A for t = 0, 1, ...; or backwards, states[t] += states[t + 1] A^T for t = T - 1, T - 2, ..."""
    steps, batch, width = len(states) - 1, *states.shape[1:]

    def add(target, source, stride, count, power):
        """Of `count` steps, each `stride` after the one before, the first at `target`; backwards, counted from the end."""
        if backwards:
            target, source = (steps - place - (count - 1) * stride for place in (target, source))
        add_products(states, target, states, source, stride, count, power, backwards)

    small = -(-batch // TILE) * -(-width // TILE) < TILES
    blocks = steps // BLOCK if small and steps >= 2 * BLOCK else 0
    if blocks:
        powers = [weight, *scratch[: LEVELS * width * width].reshape(LEVELS, width, width)]
        for level in range(LEVELS):
            square = powers[level].reshape(1, width, width)
            add_products(powers[level + 1].reshape(1, width, width), 0, square, 0, 0, 1, powers[level], False, beta=0.0)
        for level in range(LEVELS):  # a step that 2^(l + 1) divides: what entered in the 2^(l + 1) steps up to it
            half = 2**level
            add(2 * half, half, 2 * half, blocks * BLOCK // (2 * half), powers[level])
        for block in range(blocks):
            add((block + 1) * BLOCK, block * BLOCK, 1, 1, powers[LEVELS])
        for level in reversed(range(LEVELS)):  # the step half way between two that are done
            half = 2**level
            add(half, 0, 2 * half, blocks * BLOCK // (2 * half), powers[level])
    for t in range(blocks * BLOCK, steps):
        add(t + 1, t, 1, 1, weight)


def linear_recurrence_forward(states, scratch, weight):
    recur(states, scratch, weight, False)


def linear_recurrence_backward(dstates, scratch, weight):
    recur(dstates, scratch, weight, True)


# A warp a row, its lanes side by side along it. x lies apart from what is written, so that its reads need not wait.
time_major_kernel = Kernel(
    "time_major",
    r"""
extern "C" __global__ void time_major(Out* out, const In* __restrict__ x, int batch, int steps, int columns, int first, size_t rows) {
    for (size_t row = (blockIdx.x * (size_t)blockDim.x + threadIdx.x) / 32; row < rows; row += gridDim.x * (size_t)blockDim.x / 32) {
        const size_t at = row * columns, from = (row % batch * steps + first + row / batch) * columns;
        #pragma unroll 4
        for (int d = threadIdx.x % 32; d < columns; d += 32) out[at + d] = store<Out>(load(x[from + d]));
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
extern "C" __global__ void batch_major(Out* out, const In* __restrict__ x, const Residual* residual, int batch, int steps, int columns, int first, size_t rows) {
    for (size_t row = (blockIdx.x * (size_t)blockDim.x + threadIdx.x) / 32; row < rows; row += gridDim.x * (size_t)blockDim.x / 32) {
        const size_t from = row * columns, at = (row % batch * steps + first + row / batch) * columns;
        #pragma unroll 4
        for (int d = threadIdx.x % 32; d < columns; d += 32)
            out[at + d] = store<Out>(residual ? load(x[from + d]) + load(residual[at + d]) : load(x[from + d]));
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


def sizes(turned, plain, first):
    """(B, steps of `plain`, D, first, rows of `turned`)        turned (T, B, D)   plain (B ., D)"""
    steps, batch, columns = turned.shape
    return batch, plain.size // (batch * columns), columns, first, steps * batch


def time_major(out, x, first):
    rows = len(out) * out.shape[1]
    time_major_kernel(grid(32 * rows), (out, x, *sizes(out, x, first)), Out=out, In=x)


def batch_major(out, x, residual, first):
    rows = len(x) * x.shape[1]
    batch_major_kernel(
        grid(32 * rows),
        (out, x, residual, *sizes(x, out, first)),
        Out=out,
        In=x,
        Residual=out if residual is None else residual,
    )
