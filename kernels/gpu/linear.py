"""Linear layers: cuBLAS' products on top of a bias and a residual, sums of rows in a fixed order.

cuBLAS adds a product to what its output holds (beta = 1), so bias and residual are laid there first. Adding them afterwards would move as many
bytes: laying writes an output that the product reads, adding reads and writes it again. But the product reads while it multiplies, and much of
it from the L2 cache, so only the writing takes time of its own, half of what adding a bias takes, two thirds of what adding a residual takes.
Sums in float32 are the same; in a 16-bit output it is the bias that is rounded once more, not the larger product. A residual that is the output
itself costs nothing.
"""

from slm_np.dtypes import BF16, CastCopy

from .convert import convert
from .gemm import gemm, row_stride
from .source import Kernel, grid
from .vector import SEVERAL

OPERANDS = ("float", "bfloat16", "half", "double")

lay_kernel = Kernel(
    "lay",
    SEVERAL
    + r"""
extern "C" __global__ void lay(Out* out, const Compute* bias, const Residual* residual, size_t rows, unsigned columns, size_t out_stride, size_t residual_stride) {
    const unsigned groups = columns / COUNT;                        // of COUNT numbers, in a row
    const size_t first = blockIdx.x * (size_t)blockDim.x + threadIdx.x, step = gridDim.x * (size_t)blockDim.x;
    const size_t down = step / groups;
    const unsigned along = step % groups;                           // divided once: a thread then walks by additions
    size_t r = first / groups;
    unsigned g = first % groups;
    while (r < rows) {
        Compute sum[COUNT];
        for (int i = 0; i < COUNT; i++) sum[i] = bias ? bias[g * COUNT + i] : Compute(0);
        if (residual) {
            const Several<Residual> x = several(residual + r * residual_stride + g * COUNT);
            for (int i = 0; i < COUNT; i++) sum[i] += load(x.at[i]);
        }
        Several<Out> y;
        for (int i = 0; i < COUNT; i++) y.at[i] = store<Out>(sum[i]);
        several(out + r * out_stride + g * COUNT) = y;
        r += down;
        g += along;
        if (g >= groups) {
            g -= groups;
            r++;
        }
    }
}""",
    variants=[
        dict(Out=out, Residual=residual, COUNT=count)
        for count in (1, 4)
        for out, residual in (
            ("float", "float"),
            ("bfloat16", "bfloat16"),
            ("half", "half"),
            ("bfloat16", "float"),
            ("half", "float"),
            ("double", "double"),
        )
    ],
)

# A block sums a strip of columns over all rows: 32 bytes of each row, the least that memory gives, so that even narrow arrays make work for many
# multiprocessors, and no sum crosses blocks. 1024 threads with several loads under way each keep a multiprocessor's share of the memory busy.
add_rows_kernel = Kernel(
    "add_rows",
    SEVERAL
    + r"""
extern "C" __global__ void add_rows(Compute* dbias, const Operand* dout, size_t rows, int columns, size_t stride) {
    __shared__ Compute sums[32][ACROSS * COUNT];                    // of each warp
    const int place = threadIdx.x % ACROSS, start = blockIdx.x * ACROSS * COUNT, first = start + place * COUNT;
    Compute total[COUNT] = {};
    if (first < columns) {
        #pragma unroll 4
        for (size_t r = threadIdx.x / ACROSS; r < rows; r += 1024 / ACROSS) {
            const Several<Operand> x = several(dout + r * stride + first);
            for (int i = 0; i < COUNT; i++) total[i] += load(x.at[i]);
        }
    }
    for (int i = 0; i < COUNT; i++) {
        for (int lane = 16; lane >= ACROSS; lane /= 2) total[i] += __shfl_xor_sync(0xffffffffu, total[i], lane);
        if (threadIdx.x % 32 < ACROSS) sums[threadIdx.x / 32][place * COUNT + i] = total[i];
    }
    __syncthreads();
    const int c = threadIdx.x;
    if (c < ACROSS * COUNT && start + c < columns) {
        Compute all = 0;
        for (int warp = 0; warp < blockDim.x / 32; warp++) all += sums[warp][c];
        dbias[start + c] += all;
    }
}""",
    threads=1024,
    variants=[
        dict(Operand=name, **sizes)
        for name, size in zip(OPERANDS, (4, 2, 2, 8))
        for sizes in (dict(COUNT=16 // size, ACROSS=2), dict(COUNT=1, ACROSS=32 // size))
    ],
)


def cast_copy(weight, dtype=BF16):
    """Allocate the copy of a weight in bfloat16 or float16, which `update_cast_copy` fills. cuBLAS reads one layout either way."""
    import cupy

    copy = cupy.zeros(weight.shape, dtype)
    return CastCopy(weight, copy, copy)


def update_cast_copy(copy):
    """Fill a `CastCopy` from its float32 weight."""
    convert(copy.forward, copy.weight)


def divides(count, x):
    """Whether every row of x can be taken `count` numbers at once."""
    return x.shape[1] % count == 0 and row_stride(x) % count == 0 and x.data.ptr % (count * x.itemsize) == 0


def lay(out, bias, residual):
    """out = bias + residual, either of which may be None"""
    below = out if residual is None else residual
    count = 4 if divides(4, out) and divides(4, below) else 1
    rows, columns = out.shape
    lay_kernel(
        grid(rows * columns // count),
        (out, bias, residual, rows, columns, row_stride(out), row_stride(below)),
        Out=out,
        Residual=below,
        COUNT=count,
    )


def add_rows(dbias, dout):
    """dbias += sum of the rows of dout"""
    rows, columns = dout.shape
    most = 16 // dout.itemsize
    count, across = (most, 2) if divides(most, dout) else (1, 2 * most)
    add_rows_kernel(
        -(-columns // (count * across)),
        (dbias, dout, rows, columns, row_stride(dout)),
        Operand=dout,
        COUNT=count,
        ACROSS=across,
    )


def values_of(weight):
    """The array that products read."""
    return weight.forward if isinstance(weight, CastCopy) else weight


def multiply(out, a, weight, transpose, bias=None, residual=None):
    """out = a W or a W^T, + bias + residual        weight: an array, or `CastCopy`"""
    nothing = bias is None and residual is None
    if not nothing and (bias is not None or residual is not out):
        lay(out, bias, residual)
    gemm(out, a, values_of(weight), transpose_b=transpose, beta=0.0 if nothing else 1.0)


def add_outer(dweight, a, b):
    """dweight += a^T b"""
    gemm(dweight, a, b, transpose_a=True, beta=1.0)


def linear_forward(out, x, weight, bias, residual):
    multiply(out, x, weight, False, bias, residual)


def linear_backward_input(dx, dout, weight):
    multiply(dx, dout, weight, True)


def linear_backward_weight(dweight, dbias, dout, x):
    add_outer(dweight, x, dout)
    if dbias is not None:
        add_rows(dbias, dout)


def pieces_at_once(values):
    """Slices of a table's rows, of which there are as many as pieces: whole lots of 16 bytes, and the odd rest, if there is one. Tensor cores are
    fed 16 bytes at a time, and an odd number of pieces (50,257) would cost the whole product that."""
    pieces, lot = len(values), 16 // values.itemsize
    whole = pieces // lot * lot if values.itemsize == 2 else pieces
    return [rows for rows in (slice(0, whole), slice(whole, pieces)) if rows.start < rows.stop]


def linear_transposed_forward(out, x, weight):
    values = values_of(weight)
    for rows in pieces_at_once(values):
        gemm(out[:, rows], x, values[rows], transpose_b=True)


def linear_transposed_backward(dx, dweight, dout, x, weight):
    values = values_of(weight)
    dout = dout[:, : len(values)]
    for rows in pieces_at_once(values):
        add_outer(dweight[rows], dout[:, rows], x)
    for rows in pieces_at_once(values) if dx.itemsize > 2 else [slice(0, None)]:  # a sum of 16 bits is rounded once
        gemm(dx, dout[:, rows], values[rows], beta=1.0 if rows.start else 0.0)
