"""Linear layers: cuBLAS matmuls that accumulate onto a prefilled bias and residual, and column sums in a fixed order.

cuBLAS adds to what its output contains (beta = 1), so bias and residual are written there first. Adding them after
the matmul would move as many bytes: prefilling writes an output that the matmul reads, adding reads and writes it
again. But the matmul reads while it computes, and much of it from the L2 cache. So prefilling costs half the time of
adding a bias, and two thirds of that of adding a residual. A float32 output has the same error; in a 16-bit output it
is the bias that is rounded once more, not the larger sum. A residual that is the output itself costs nothing.
"""

from slm_np.dtypes import BF16, CastCopy

from .convert import convert
from .embedding import embedding_forward
from .gemm import gemm, row_stride
from .scratch import scratch
from .source import Kernel, grid
from .vector import VECTOR

TYPES = ("float", "bfloat16", "half", "double")

prefill_kernel = Kernel(
    "prefill",
    VECTOR
    + r"""
extern "C" __global__ void prefill(Out* out, const Accum* bias, const Residual* residual, size_t rows, unsigned columns,
                                   size_t out_stride, size_t residual_stride) {
    const unsigned vectors = columns / VEC;                         // per row
    const size_t first = blockIdx.x * (size_t)blockDim.x + threadIdx.x, stride = gridDim.x * (size_t)blockDim.x;
    const size_t row_step = stride / vectors;
    const unsigned vector_step = stride % vectors;                  // divides once: from here a thread only adds
    size_t r = first / vectors;
    unsigned g = first % vectors;
    while (r < rows) {
        Accum sum[VEC];
        for (int i = 0; i < VEC; i++) sum[i] = bias ? bias[g * VEC + i] : Accum(0);
        if (residual) {
            const Vector<Residual> x = vector(residual + r * residual_stride + g * VEC);
            for (int i = 0; i < VEC; i++) sum[i] += load(x.at[i]);
        }
        Vector<Out> y;
        for (int i = 0; i < VEC; i++) y.at[i] = store<Out>(sum[i]);
        vector(out + r * out_stride + g * VEC) = y;
        r += row_step;
        g += vector_step;
        if (g >= vectors) {
            g -= vectors;
            r++;
        }
    }
}""",
    variants=[
        dict(Out=out, Residual=residual, VEC=vec)
        for vec in (1, 4)
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

# A block sums a strip of columns over all rows. The strip is 32 bytes wide, the smallest memory transaction, so that
# even narrow arrays occupy many multiprocessors, and no sum crosses blocks. 1024 threads with several loads in flight
# each keep the memory busy.
# ACROSS: vectors across a strip.
add_column_sums_kernel = Kernel(
    "add_column_sums",
    VECTOR
    + r"""
extern "C" __global__ void add_column_sums(Accum* dbias, const Storage* dout, size_t rows, int columns, size_t stride) {
    __shared__ Accum sums[32][ACROSS * VEC];                        // one row per warp
    const int index = threadIdx.x % ACROSS, start = blockIdx.x * ACROSS * VEC, column = start + index * VEC;
    Accum total[VEC] = {};
    if (column < columns) {
        #pragma unroll 4
        for (size_t r = threadIdx.x / ACROSS; r < rows; r += 1024 / ACROSS) {
            const Vector<Storage> x = vector(dout + r * stride + column);
            for (int i = 0; i < VEC; i++) total[i] += load(x.at[i]);
        }
    }
    for (int i = 0; i < VEC; i++) {
        for (int lane = 16; lane >= ACROSS; lane /= 2) total[i] += __shfl_xor_sync(0xffffffffu, total[i], lane);
        if (threadIdx.x % 32 < ACROSS) sums[threadIdx.x / 32][index * VEC + i] = total[i];
    }
    __syncthreads();
    const int c = threadIdx.x;
    if (c < ACROSS * VEC && start + c < columns) {
        Accum sum = 0;
        for (int warp = 0; warp < blockDim.x / 32; warp++) sum += sums[warp][c];
        dbias[start + c] += sum;
    }
}""",
    threads=1024,
    variants=[
        dict(Storage=name, **sizes)
        for name, size in zip(TYPES, (4, 2, 2, 8))
        for sizes in (dict(VEC=16 // size, ACROSS=2), dict(VEC=1, ACROSS=32 // size))
    ],
)


def cast_copy(weight, dtype=BF16):
    """Allocate the copy of a weight in bfloat16 or float16, which `update_cast_copy` fills.

    It has one layout, since cuBLAS multiplies by a matrix or its transpose.
    """
    import cupy

    copy = cupy.zeros(weight.shape, dtype)
    return CastCopy(weight, copy, copy)


def update_cast_copy(copy):
    """Fill a `CastCopy` from its float32 weight."""
    convert(copy.forward, copy.weight)


def cast_copy_rows(copy, ids, columns):
    """Rows of a weight (D, E), E = columns, from its `CastCopy`, in scratch memory.        ids (N,)"""
    rows = scratch((len(ids) * columns, copy.forward.dtype))[0].reshape(len(ids), columns)
    embedding_forward(rows, ids, copy.forward, None)
    return rows


def vectorizes(vec, x):
    """Whether every row of x consists of aligned vectors of `vec` elements."""
    return x.shape[1] % vec == 0 and row_stride(x) % vec == 0 and x.data.ptr % (vec * x.itemsize) == 0


def prefill(out, bias, residual):
    """out = bias + residual, either of which may be None"""
    source = out if residual is None else residual
    vec = 4 if vectorizes(4, out) and vectorizes(4, source) else 1
    rows, columns = out.shape
    prefill_kernel(
        grid(rows * columns // vec),
        (out, bias, residual, rows, columns, row_stride(out), row_stride(source)),
        Out=out,
        Residual=source,
        VEC=vec,
    )


def add_column_sums(dbias, dout):
    """dbias += sum of the rows of dout"""
    rows, columns = dout.shape
    full = 16 // dout.itemsize
    vec, across = (full, 2) if vectorizes(full, dout) else (1, 2 * full)
    add_column_sums_kernel(
        -(-columns // (vec * across)),
        (dbias, dout, rows, columns, row_stride(dout)),
        Storage=dout,
        VEC=vec,
        ACROSS=across,
    )


def matmul_array(weight):
    """The array that a matmul reads        weight: an array, or a `CastCopy`"""
    return weight.forward if isinstance(weight, CastCopy) else weight


def linear_forward(out, x, weight, bias, residual):
    if bias is not None or (residual is not None and residual is not out):
        prefill(out, bias, residual)
    beta = 0.0 if bias is None and residual is None else 1.0
    gemm(out, x, matmul_array(weight), beta=beta)


def linear_backward_input(dx, dout, weight, residual=None):
    if residual is not None and residual is not dx:
        prefill(dx, None, residual)
    gemm(dx, dout, matmul_array(weight), transpose_b=True, beta=0.0 if residual is None else 1.0)


def linear_backward_weight(dweight, dbias, dout, x):
    gemm(dweight, x, dout, transpose_a=True, beta=1.0)
    if dbias is not None:
        add_column_sums(dbias, dout)


def aligned_rows(weight):
    """Slices of the rows of weight (V, D): as many whole multiples of 16 bytes of logits as there are, then the
    remaining rows, if any.

    Tensor cores read 16 bytes at a time. An odd vocabulary size (50,257) would keep the whole matmul off them.
    """
    vocab, multiple = len(weight), 16 // weight.itemsize
    whole = vocab // multiple * multiple if weight.itemsize == 2 else vocab
    return [rows for rows in (slice(0, whole), slice(whole, vocab)) if rows.start < rows.stop]


def linear_transposed_forward(out, x, weight):
    weight = matmul_array(weight)
    for rows in aligned_rows(weight):
        gemm(out[:, rows], x, weight[rows], transpose_b=True)


def linear_transposed_backward(dx, dweight, dout, x, weight):
    weight = matmul_array(weight)
    dout = dout[:, : len(weight)]
    for rows in aligned_rows(weight) if dweight is not None else ():
        gemm(dweight[rows], dout[:, rows], x, transpose_a=True, beta=1.0)
    for rows in aligned_rows(weight) if dx.itemsize > 2 else [slice(0, None)]:  # a 16-bit sum must be rounded only once
        gemm(dx, dout[:, rows], weight[rows], beta=1.0 if rows.start else 0.0)
