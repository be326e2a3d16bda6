"""BLAS's gemm inside compiled loops, on blocks of row-major arrays.

OpenBLAS runs on one thread, because its threads and Numba's would compete for the cores. Kernels split a gemm over
Numba's threads. The routine is the one that `scipy.linalg.cython_blas` exports. It is bound by name, so that compiled
kernels can be cached.
"""

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import get_cython_function_address, intrinsic
from threadpoolctl import threadpool_limits

ROUTINES = {types.float32: "sgemm", types.float64: "dgemm"}
for routine in ROUTINES.values():
    binding.add_symbol(f"slm_np_{routine}", get_cython_function_address("scipy.linalg.cython_blas", routine))
threadpool_limits(1, user_api="blas")


def element_pointer(context, builder, array_type, array, offset):
    """Address of element `offset` of a contiguous array."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.gep(data, [offset])


@intrinsic
def gemm(
    typingctx,
    transpose_a,
    transpose_b,
    m,
    n,
    k,
    alpha,
    a,
    a_offset,
    lda,
    b,
    b_offset,
    ldb,
    beta,
    c,
    c_offset,
    ldc,
):
    """C = alpha op(A) op(B) + beta C on blocks of row-major arrays: C (m, n), op(A) (m, k), op(B) (k, n).

    A block starts `offset` elements into its array, and its rows are `ld` elements apart. op transposes if its flag is
    not 0. BLAS is column-major, so it computes the transpose: C^T = op(B)^T op(A)^T.
    """
    real = c.dtype
    if not (a.dtype == b.dtype == real) or real not in ROUTINES:
        return None

    def codegen(context, builder, signature, args):
        ta, tb, m, n, k, alpha, a, a_offset, lda, b, b_offset, ldb, beta, c, c_offset, ldc = args
        kinds = signature.args
        byte, word, element = ir.IntType(8), ir.IntType(32), context.get_value_type(real)

        def slot(value, kind):
            """Fortran takes its arguments by reference."""
            pointer = cgutils.alloca_once(builder, kind)
            builder.store(value, pointer)
            return pointer

        def letter(flag):
            chosen = builder.icmp_signed("!=", flag, ir.Constant(flag.type, 0))
            return slot(builder.select(chosen, ir.Constant(byte, ord("T")), ir.Constant(byte, ord("N"))), byte)

        def integer(value):
            return slot(builder.trunc(value, word), word)

        pointers = [
            letter(tb),
            letter(ta),
            integer(n),
            integer(m),
            integer(k),
            slot(alpha, element),
            element_pointer(context, builder, kinds[9], b, b_offset),
            integer(ldb),
            element_pointer(context, builder, kinds[6], a, a_offset),
            integer(lda),
            slot(beta, element),
            element_pointer(context, builder, kinds[13], c, c_offset),
            integer(ldc),
        ]
        shape = ir.FunctionType(ir.VoidType(), [p.type for p in pointers])
        builder.call(cgutils.get_or_insert_function(builder.module, shape, f"slm_np_{ROUTINES[real]}"), pointers)
        return context.get_dummy_value()

    i = types.intp
    return types.void(
        i,
        i,
        i,
        i,
        i,
        real,
        a,
        i,
        i,
        b,
        i,
        i,
        real,
        c,
        i,
        i,
    ), codegen
